//! Dropping: capability sets, securebits, ids, no_new_privs, in the one order that works; and reading back.
//!
//! # Theory of operation
//!
//! A stage starts as id 0 of its own user namespace, or as the one id that is mapped there, with every capability over that
//! namespace and what it owns. From there privilege only falls:
//!
//! 1. bounding set, inheritable and ambient set, then securebits: they need CAP_SETPCAP, so they come while it is held.
//! 2. supplementary groups, gid, uid: need CAP_SETGID and CAP_SETUID. With NO_SETUID_FIXUP the sets survive the change
//!    of uid, so nothing here depends on which uid it was.
//! 3. effective and permitted set: now the sets are what the role may hold.
//! 4. no_new_privs: from here no `execve(2)` gives anything back.
//! 5. the keyring, the dumpable flag and the parent-death signal: what a uid or an inheritance could give away.
//! 6. the seccomp filter: needs no_new_privs, and leaves nothing but what the role's work and step 7 take.
//! 7. read everything back from the kernel and compare; a difference is an error, and the start ends.
//!
//! Mustn't: raise anything, keep a capability "for later", or go on after an error.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::io;

use caps::{CapSet, Capability};
use nix::unistd::{Gid, Uid};
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet};
use serde::{Deserialize, Serialize};

use crate::confine::seccomp::Program;

/// What a process holds, as the kernel tells it. Masks have bit N set for capability number N, as in
/// `/proc/PID/status` (proc_pid_status(5)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Privileges {
    /// CapInh.
    pub inheritable: u64,
    /// CapPrm.
    pub permitted: u64,
    /// CapEff.
    pub effective: u64,
    /// CapBnd.
    pub bounding: u64,
    /// CapAmb.
    pub ambient: u64,
    /// The securebits (capabilities(7)).
    pub securebits: u32,
    /// Whether `execve(2)` can't give privileges (`PR_SET_NO_NEW_PRIVS(2const)`).
    pub no_new_privs: bool,
    /// Real, effective and saved uid, inside.
    pub uids: [u32; 3],
    /// Real, effective and saved gid, inside.
    pub gids: [u32; 3],
    /// The seccomp mode: 2 under a filter (`Seccomp` of proc_pid_status(5)).
    pub seccomp: u32,
    /// Supplementary groups, inside. Ids that are not mapped show as the overflow id.
    pub groups: usize,
}

/// Why privileges could not be dropped.
#[derive(Debug, thiserror::Error)]
pub enum DropError {
    /// One call was refused.
    #[error("{what}: {source}")]
    Call {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel took every call, and yet this is held.
    #[error("read back {what}: holds {found}, must hold {wanted}")]
    Mismatch {
        /// Which set or flag.
        what: &'static str,
        /// What the kernel tells.
        found: String,
        /// What it must be.
        wanted: String,
    },
}

/// Every securebit that makes uid 0 an ordinary number, each with its lock (capabilities(7), "securebits").
///
/// `KEEP_CAPS` is not among them: it counts for nothing beside `NO_SETUID_FIXUP`, and named ends if it can't set it.
pub(crate) fn securebits() -> CapabilitiesSecureBits {
    use CapabilitiesSecureBits as S;
    S::NO_ROOT
        | S::NO_ROOT_LOCKED
        | S::NO_SETUID_FIXUP
        | S::NO_SETUID_FIXUP_LOCKED
        | S::NO_CAP_AMBIENT_RAISE
        | S::NO_CAP_AMBIENT_RAISE_LOCKED
}

/// Who a process is, by the ids of the user namespace that it is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ids {
    /// Real, effective and saved uid.
    pub uid: u32,
    /// Real, effective and saved gid.
    pub gid: u32,
}

impl Ids {
    /// Id 0 of the namespace, which is an ordinary number ([`securebits`]).
    pub const ROOT: Self = Self { uid: 0, gid: 0 };
}

/// The host's ids of stacks that root runs, which are nobody else's: 4096 ranges of 65536, which systemd's "Users, Groups, UIDs and
/// GIDs on systemd Systems" lists as used by nobody.
pub const HOST_IDS: std::ops::Range<u32> = 0x7000_0000..0x8000_0000;

/// What an app holds over a range of ids of its own, which is what it takes to begin as root there and go on as others.
///
/// The kernel asks for them where the owner of a file, and the uid of a process, are ids of the range, and nowhere else. Who
/// may become any of these ids could do all of it by becoming the owner; servers that begin as root don't. `CAP_SYS_CHROOT` is
/// asked for by chroot(2), which [`crate::confine::seccomp::over_a_range`] lets such an app call; setns(2) would ask for more.
pub const OVER_A_RANGE: [Capability; 7] = [
    // A log, a socket, a directory for whom it changes to.
    Capability::CAP_CHOWN,
    // What belongs to that one it looks at, and sets up, before it changes: mariadbd, start scripts.
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    // Those who have changed, it ends: a master its workers, and the app's pid 1 whatever is left.
    Capability::CAP_KILL,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    // A directory as its root, before it changes its user: dovecot, openntpd, and what shuts a worker into an empty one. It takes
    // nothing but the sight of files. The way back out of it ends at the app's own root, which is its mount namespace's.
    Capability::CAP_SYS_CHROOT,
];

/// What uid 0 of the namespace is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Zero {
    /// A number as any other.
    Ordinary,
    /// Who holds what is bounded, keeps it over an `execve(2)`, and loses it with the change to another uid.
    Root,
}

impl Zero {
    /// The securebits that make it so, each with its lock.
    fn securebits(self) -> CapabilitiesSecureBits {
        use CapabilitiesSecureBits as S;
        match self {
            Self::Ordinary => securebits(),
            // Who changes its uid may keep what it holds until it executes something: setpriv(1), named and chronyd do.
            Self::Root => securebits() & !(S::NO_ROOT | S::NO_SETUID_FIXUP),
        }
    }
}

/// The securebits of an app that has a range of ids.
pub(crate) fn securebits_over_a_range() -> CapabilitiesSecureBits {
    Zero::Root.securebits()
}

/// `SECCOMP_MODE_FILTER` of linux/seccomp.h.
const FILTERED: u64 = 2;

fn call<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> DropError {
    move |source| DropError::Call {
        what,
        source: source.into(),
    }
}

/// The caps crate's errors have lost their errno; the kernel's last word is still there.
fn caps_call(what: &'static str) -> impl FnOnce(caps::errors::CapsError) -> DropError {
    move |e| DropError::Call {
        what,
        source: io::Error::other(e.to_string()),
    }
}

/// Drops everything but `keep`, becomes `user`, goes under `filter`, reads back.
///
/// Should be called once, by a single-threaded stage that has nothing privileged left to do. Mustn't be followed by
/// anything that needs more than `keep`.
///
/// # Errors
/// [`DropError`]; the caller must then end.
pub fn drop_to(keep: &[Capability], user: Ids, filter: &Program) -> Result<Privileges, DropError> {
    drop_for(keep, keep, (user, Zero::Ordinary), &[], filter)
}

/// As [`drop_to`], for a process that is going to give `keep` up by [`seal`]: the bounding set is empty from now on. The
/// filter must allow `capset(2)`.
///
/// # Errors
/// As [`drop_to`].
pub fn drop_to_until_sealed(
    keep: &[Capability],
    user: Ids,
    filter: &Program,
) -> Result<Privileges, DropError> {
    drop_for(keep, &[], (user, Zero::Ordinary), &[], filter)
}

/// Gives up what [`drop_to_until_sealed`] has kept, and reads back that nothing is left.
///
/// # Errors
/// [`DropError`]; the caller must then end.
pub fn seal() -> Result<Privileges, DropError> {
    clear(CapSet::Effective)?;
    clear(CapSet::Permitted)?;
    let held = read()?;
    compare(&held, &[], &[], &[], Zero::Ordinary)?;
    Ok(held)
}

fn clear(which: CapSet) -> Result<(), DropError> {
    caps::set(None, which, &HashSet::new()).map_err(caps_call("give a capability up"))
}

/// As [`drop_to`], for a process that goes on to execute a program which is to hold `keep` as well: without file
/// capabilities an `execve(2)` keeps what is ambient, and nothing else (capabilities(7)).
///
/// # Errors
/// As [`drop_to`].
pub fn drop_to_and_pass_on(
    keep: &[Capability],
    user: Ids,
    filter: &Program,
) -> Result<Privileges, DropError> {
    drop_for(keep, keep, (user, Zero::Ordinary), keep, filter)
}

/// As [`drop_to`], for an app that has a range of ids and is root over them: it keeps [`OVER_A_RANGE`], over an `execve(2)`
/// too, until it changes to another uid.
///
/// # Errors
/// As [`drop_to`].
pub fn drop_to_range(filter: &Program) -> Result<Privileges, DropError> {
    let keep = &OVER_A_RANGE;
    drop_for(keep, keep, (Ids::ROOT, Zero::Root), &[], filter)
}

fn drop_for(
    keep: &[Capability],
    bound: &[Capability],
    (user, zero): (Ids, Zero),
    pass_on: &[Capability],
    filter: &Program,
) -> Result<Privileges, DropError> {
    lock(bound, pass_on, zero)?;
    let groups = become_user(user)?;
    set(keep)?;
    crate::sys::process::leave_session_keyring().map_err(call("leave the session keyring"))?;
    // Nobody of the same uid may look into this process or take its descriptors (ptrace(2), PR_SET_DUMPABLE(2const)).
    nix::sys::prctl::set_dumpable(false).map_err(call("clear the dumpable flag"))?;
    // A change of uid has cleared the signal that we get when the supervisor ends (PR_SET_PDEATHSIG(2const)).
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(call("set the parent-death signal"))?;

    filter
        .install()
        .map_err(call("install the seccomp filter"))?;

    let held = read()?;
    compare(&held, keep, bound, pass_on, zero)?;
    compare_ids(&held, user)?;
    filtered(&held)?;
    if held.groups != groups {
        return Err(DropError::Mismatch {
            what: "the number of groups",
            found: held.groups.to_string(),
            wanted: groups.to_string(),
        });
    }
    Ok(held)
}

/// Drops root's supplementary groups, before it joins a user namespace in which that might be forbidden.
///
/// # Errors
/// [`DropError::Call`] when the kernel refuses.
pub fn leave_roots_groups() -> Result<(), DropError> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    match nix::unistd::setgroups(&[]) {
        // Root of a user namespace of an ordinary user's.
        Err(nix::Error::EPERM) => Ok(()),
        done => done.map_err(call("drop supplementary groups")),
    }
}

/// Becomes `user`, without groups as far as that may be; how many are left.
fn become_user(user: Ids) -> Result<usize, DropError> {
    // To setresuid(2) it is nobody, and changes nothing.
    if [user.uid, user.gid].contains(&u32::MAX) {
        return Err(call("become an id that is none")(io::Error::from(
            io::ErrorKind::InvalidInput,
        )));
    }
    let groups = match nix::unistd::setgroups(&[]) {
        Ok(()) => 0,
        // An unprivileged gid map forbids setgroups(2) altogether (user_namespaces(7)): the groups stay those of the
        // user who started us, and give nothing that this user had not.
        Err(nix::Error::EPERM) => held_groups()?,
        Err(e) => return Err(call("drop supplementary groups")(e)),
    };
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    nix::unistd::setresgid(gid, gid, gid).map_err(call("set gid"))?;
    nix::unistd::setresuid(uid, uid, uid).map_err(call("set uid"))?;
    Ok(groups)
}

fn compare_ids(held: &Privileges, user: Ids) -> Result<(), DropError> {
    for (what, found, wanted) in [
        ("the uids", held.uids, [user.uid; 3]),
        ("the gids", held.gids, [user.gid; 3]),
    ] {
        if found != wanted {
            return Err(DropError::Mismatch {
                what,
                found: format!("{found:?}"),
                wanted: format!("{wanted:?}"),
            });
        }
    }
    Ok(())
}

/// Drops everything but `keep`, as far as it is held, from a process that goes on as who it is.
///
/// # Errors
/// [`DropError`]; the caller must then end.
pub fn keep_only(keep: &[Capability]) -> Result<Privileges, DropError> {
    keep_and_pass(keep, false, None)
}

/// As [`keep_only`], from a process that goes on as `user`, if that is given, without groups, and goes under `filter`, if that is,
/// with all that it starts from then on: the supervisor, once the stack is up. Who has become another may not be looked into
/// (PR_SET_DUMPABLE(2const)). Of capabilities what it starts later is not bound by this: who joins a user namespace begins anew
/// there (user_namespaces(7)).
///
/// # Errors
/// [`DropError`]; the caller must then end.
pub fn give_up(
    user: Option<Ids>,
    keep: &[Capability],
    filter: Option<&Program>,
) -> Result<Privileges, DropError> {
    keep_and_pass(keep, false, user)?;
    if user.is_some() {
        nix::sys::prctl::set_dumpable(false).map_err(call("clear the dumpable flag"))?;
    }
    if let Some(filter) = filter {
        filter
            .install()
            .map_err(call("install the seccomp filter"))?;
    }
    let held = read()?;
    if let Some(user) = user {
        compare_ids(&held, user)?;
    }
    if filter.is_some() {
        filtered(&held)?;
    }
    Ok(held)
}

/// Drops everything, from a command that goes on as who it is. An ordinary user's holds nothing, and may not even say
/// that it never will: in a user namespace of its own, which nobody else is ever in, it may (user_namespaces(7)).
///
/// # Errors
/// [`DropError`]; the caller must then end.
pub fn keep_nothing() -> Result<Privileges, DropError> {
    let held = rustix::thread::capabilities(None).map_err(call("read the capability sets"))?;
    if !held.effective.contains(CapabilitySet::SETPCAP) {
        crate::sys::namespace::unshare(nix::sched::CloneFlags::CLONE_NEWUSER)
            .map_err(call("make a user namespace to drop everything in"))?;
    }
    keep_only(&[])
}

/// As [`keep_only`], for a process that also executes programs which are to hold `keep`.
///
/// # Errors
/// As [`keep_only`].
pub fn keep_only_and_pass_on(keep: &[Capability]) -> Result<Privileges, DropError> {
    keep_and_pass(keep, true, None)
}

fn keep_and_pass(
    keep: &[Capability],
    pass_on: bool,
    user: Option<Ids>,
) -> Result<Privileges, DropError> {
    let permitted = rustix::thread::capabilities(None)
        .map_err(call("read the capability sets"))?
        .permitted
        .bits();
    let keep: Vec<Capability> = keep
        .iter()
        .copied()
        .filter(|cap| permitted & cap.bitmask() != 0)
        .collect();
    let pass_on = if pass_on { keep.as_slice() } else { &[] };
    lock(&keep, pass_on, Zero::Ordinary)?;
    if let Some(user) = user {
        become_user(user)?;
    }
    set(&keep)?;
    let held = read()?;
    compare(&held, &keep, &keep, pass_on, Zero::Ordinary)?;
    Ok(held)
}

fn filtered(held: &Privileges) -> Result<(), DropError> {
    match u64::from(held.seccomp) {
        FILTERED => Ok(()),
        mode => Err(DropError::Mismatch {
            what: "the seccomp mode",
            found: mode.to_string(),
            wanted: FILTERED.to_string(),
        }),
    }
}

fn mask(capabilities: &[Capability]) -> u64 {
    capabilities
        .iter()
        .fold(0, |mask, cap| mask | cap.bitmask())
}

/// What needs CAP_SETPCAP: the bounding set, what an `execve(2)` passes on, and the securebits.
fn lock(keep: &[Capability], pass_on: &[Capability], zero: Zero) -> Result<(), DropError> {
    let passed: HashSet<Capability> = pass_on.iter().copied().collect();
    let mask = mask(keep);
    // By number and not by the caps crate's names: the kernel may know more of them than the crate.
    for (bit, bounding) in known_to_the_kernel() {
        if bounding && mask & bit.bits() == 0 {
            rustix::thread::remove_capability_from_bounding_set(bit)
                .map_err(call("drop a capability from the bounding set"))?;
        }
    }
    // The ambient set first: one of the securebits keeps everybody from adding to it.
    caps::set(None, CapSet::Inheritable, &passed).map_err(caps_call("set the inheritable set"))?;
    let ambient = "set the ambient set";
    rustix::thread::clear_ambient_capability_set().map_err(call(ambient))?;
    for capability in pass_on {
        let bit = CapabilitySet::from_bits_retain(capability.bitmask());
        rustix::thread::configure_capability_in_ambient_set(bit, true).map_err(call(ambient))?;
    }
    rustix::thread::set_capabilities_secure_bits(zero.securebits()).map_err(call("set securebits"))
}

/// The effective and the permitted set, and no way back.
fn set(keep: &[Capability]) -> Result<(), DropError> {
    let kept: HashSet<Capability> = keep.iter().copied().collect();
    caps::set(None, CapSet::Effective, &HashSet::new())
        .map_err(caps_call("clear the effective set"))?;
    caps::set(None, CapSet::Permitted, &kept).map_err(caps_call("set the permitted set"))?;
    caps::set(None, CapSet::Effective, &kept).map_err(caps_call("set the effective set"))?;
    rustix::thread::set_no_new_privs(true).map_err(call("set no_new_privs"))
}

/// Compares what the kernel says with what must be.
fn compare(
    held: &Privileges,
    keep: &[Capability],
    bound: &[Capability],
    pass_on: &[Capability],
    zero: Zero,
) -> Result<(), DropError> {
    let (bounding, passed) = (mask(bound), mask(pass_on));
    let mask = mask(keep);
    let securebits = u64::from(zero.securebits().bits());
    for (what, found, wanted) in [
        ("the inheritable set", held.inheritable, passed),
        ("the permitted set", held.permitted, mask),
        ("the effective set", held.effective, mask),
        ("the bounding set", held.bounding, bounding),
        ("the ambient set", held.ambient, passed),
        ("the securebits", u64::from(held.securebits), securebits),
        ("no_new_privs", u64::from(held.no_new_privs), 1),
    ] {
        if found != wanted {
            return Err(DropError::Mismatch {
                what,
                found: format!("{found:016x}"),
                wanted: format!("{wanted:016x}"),
            });
        }
    }
    Ok(())
}

/// Makes everything that this process holds ambient: who is not uid 0 keeps it over an `execve(2)` so (capabilities(7)).
///
/// Should be called on the way into a part, by who is executed as its stage, which drops it all again.
///
/// # Errors
/// [`DropError::Call`] when the kernel refuses.
pub fn make_ambient() -> Result<(), DropError> {
    let mut sets = rustix::thread::capabilities(None).map_err(call("read the capability sets"))?;
    sets.inheritable = sets.permitted;
    rustix::thread::set_capabilities(None, sets).map_err(call("set the inheritable set"))?;
    let known = known_to_the_kernel().map(|(bit, _)| bit);
    for bit in known.filter(|bit| sets.permitted.contains(*bit)) {
        rustix::thread::configure_capability_in_ambient_set(bit, true)
            .map_err(call("raise a capability in the ambient set"))?;
    }
    Ok(())
}

/// Makes everything that this process may hold effective again: a change of the effective uid from 0 has cleared that.
///
/// # Errors
/// [`DropError::Call`] when the kernel refuses.
pub fn raise_permitted() -> Result<(), DropError> {
    let mut sets = rustix::thread::capabilities(None).map_err(call("read the capability sets"))?;
    sets.effective = sets.permitted;
    rustix::thread::set_capabilities(None, sets).map_err(call("set the effective set"))
}

/// What this process holds.
///
/// # Errors
/// [`DropError::Call`] when the kernel doesn't tell.
pub fn read() -> Result<Privileges, DropError> {
    let sets = rustix::thread::capabilities(None).map_err(call("read the capability sets"))?;
    let (mut bounding, mut ambient) = (0, 0);
    for (bit, is_bounding) in known_to_the_kernel() {
        if is_bounding {
            bounding |= bit.bits();
        }
        if rustix::thread::capability_is_in_ambient_set(bit)
            .map_err(call("read the ambient set"))?
        {
            ambient |= bit.bits();
        }
    }
    let uids = nix::unistd::getresuid().map_err(call("read the uids"))?;
    let gids = nix::unistd::getresgid().map_err(call("read the gids"))?;
    Ok(Privileges {
        inheritable: sets.inheritable.bits(),
        permitted: sets.permitted.bits(),
        effective: sets.effective.bits(),
        bounding,
        ambient,
        securebits: rustix::thread::capabilities_secure_bits()
            .map_err(call("read the securebits"))?
            .bits(),
        seccomp: rustix::thread::secure_computing_mode().map_err(call("read the seccomp mode"))?
            as u32,
        no_new_privs: rustix::thread::no_new_privs().map_err(call("read no_new_privs"))?,
        uids: [uids.real, uids.effective, uids.saved].map(Uid::as_raw),
        gids: [gids.real, gids.effective, gids.saved].map(Gid::as_raw),
        groups: held_groups()?,
    })
}

fn held_groups() -> Result<usize, DropError> {
    Ok(nix::unistd::getgroups()
        .map_err(call("read the groups"))?
        .len())
}

/// One bit for each capability that this kernel knows (`PR_CAPBSET_READ(2const)` refuses the others), and whether it is in
/// the bounding set.
fn known_to_the_kernel() -> impl Iterator<Item = (CapabilitySet, bool)> {
    (0..64).map_while(|number| {
        let bit = CapabilitySet::from_bits_retain(1 << number);
        let is_bounding = rustix::thread::capability_is_in_bounding_set(bit);
        is_bounding.ok().map(|is_bounding| (bit, is_bounding))
    })
}

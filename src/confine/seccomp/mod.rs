//! Which system calls a part may make: profiles, what they compile to, and putting a process under them.
//!
//! # Theory of operation
//!
//! A [`Profile`] says for every system call of this machine whether it is allowed, allowed with some arguments, or
//! answered with an error; whatever it doesn't name gets one answer for all, EPERM unless a file says otherwise.
//! [`Profile::compile`] makes a [`Program`] of it: classic BPF, which the kernel runs before each call that its cache
//! can't answer (`kernel/seccomp.c`).
//!
//! Filters can only be added, and the strictest answer counts, so a process that has still to start another one needs
//! a wider filter than what it starts. A part that runs a command therefore has [`Filters`]: `stage` from the moment
//! its privileges are dropped, which allows what the command's filter allows and what the way to its `execve(2)` takes;
//! `command` in the child, right before `execve(2)`. The app's pid 1 itself ends up under [`init`], which is next to
//! nothing.
//!
//! - `default`: what servers call. Near Docker's default profile, less what no web app needs.
//! - `strict`: one process with any number of threads, no other sockets than the Internet's.
//! - a file: Docker's format ([`docker`]), but for what no app may do to others ([`floored`]).
//! - [`sidecar`], [`sealing_sidecar`], [`relay`], [`carrier`], [`dialer`], [`init`]: what these really call.
//! - [`supervisor`]: what it calls, and all that is started below it later. Whatever a file says, an app has no call that this
//!   has not ([`floored`]).
#![forbid(unsafe_code)]

mod compile;
pub mod docker;
mod roles;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize, Serializer};
use syscalls::Sysno;

pub use compile::{CompileError, Program};
pub use roles::{
    Carries, carrier, default, dialer, floored, init, is_kept_from_apps, over_a_range, relay,
    sealing_sidecar, sidecar, strict, supervisor, undoer,
};

/// What a call gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// It is made.
    Allow,
    /// It is made, and the kernel's audit log has a line about it.
    Log,
    /// It is not made and returns this error number (errno(3)); with 0 as if it were made.
    Errno(u16),
    /// It is not made, and the thread gets SIGSYS.
    Trap,
    /// The thread ends.
    KillThread,
    /// The process ends with SIGSYS.
    KillProcess,
}

impl Action {
    /// Whether the call is made.
    #[must_use]
    pub fn allows(self) -> bool {
        matches!(self, Action::Allow | Action::Log)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Allow => f.write_str("allowed"),
            Action::Log => f.write_str("allowed and logged"),
            Action::Errno(0) => f.write_str("nothing, as if it were done"),
            Action::Errno(number) => {
                write!(f, "{:?}", nix::Error::from_raw(i32::from(*number)))
            }
            Action::Trap => f.write_str("SIGSYS"),
            Action::KillThread => f.write_str("the thread's end"),
            Action::KillProcess => f.write_str("the process's end"),
        }
    }
}

/// How an argument is compared with a value: as unsigned 64-bit numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Comparison {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
    /// Less.
    Lt,
    /// Less or equal.
    Le,
    /// Greater.
    Gt,
    /// Greater or equal.
    Ge,
}

/// A condition on one argument: what it has in common with `mask`, compared with `value`.
///
/// The kernel takes most arguments as 32-bit numbers and ignores the other half of the register. Who forbids a value
/// must ignore it too, or one stray bit gets past the rule (CVE-2019-7303): our own rules all have 32-bit masks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Test {
    /// Which one, from 0 to 5.
    pub arg: u8,
    /// Which of its bits count.
    pub mask: u64,
    /// The relation.
    pub is: Comparison,
    /// To what.
    pub value: u64,
}

/// What a call gets when all tests hold; without any, always.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rule {
    /// All of these.
    pub when: Vec<Test>,
    /// Then this.
    pub action: Action,
}

/// The answer to every system call. The first rule of a call that applies decides; a call without one, or with none
/// that applies, gets `otherwise`. Calls that are newer than this program get ENOSYS where `otherwise` is an error, as
/// from a kernel that has not got them, and calls of another architecture or ABI are never made.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "Written<'static>")]
pub struct Profile {
    /// `default`, `strict`, the name of a part, or the file's path.
    pub name: String,
    /// What a call gets that no rule decides.
    pub otherwise: Action,
    /// The rules of each call that has any, by the call's number on this machine.
    pub calls: BTreeMap<u32, Vec<Rule>>,
    /// Names of a file that this machine has no call of.
    pub unknown: Vec<String>,
}

/// A profile as JSON has it: calls by name, the plain ones in one list.
#[derive(Serialize, Deserialize)]
struct Written<'p> {
    profile: Cow<'p, str>,
    otherwise: Action,
    allowed: Vec<Cow<'p, str>>,
    conditional: Vec<WrittenCall<'p>>,
    #[serde(default, skip_serializing_if = "<[String]>::is_empty")]
    unknown: Cow<'p, [String]>,
}

#[derive(Serialize, Deserialize)]
struct WrittenCall<'p> {
    name: Cow<'p, str>,
    rules: Cow<'p, [Rule]>,
}

impl Serialize for Profile {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let name = |number: &u32| Cow::Borrowed(name(*number).unwrap_or("?"));
        let (mut allowed, mut conditional) = (vec![], vec![]);
        for (number, rules) in &self.calls {
            match is_always_allowed(rules) {
                true => allowed.push(name(number)),
                false => conditional.push(WrittenCall {
                    name: name(number),
                    rules: rules.into(),
                }),
            }
        }
        allowed.sort_unstable();
        conditional.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let written = Written {
            profile: self.name.as_str().into(),
            otherwise: self.otherwise,
            allowed,
            conditional,
            unknown: (&self.unknown).into(),
        };
        written.serialize(to)
    }
}

impl From<Written<'_>> for Profile {
    /// A name that this machine hasn't is left out: then the call has no rule, which is never more than it had.
    fn from(written: Written<'_>) -> Self {
        let always = |name: &Cow<str>| Some((number(name)?, vec![always(Action::Allow)]));
        let conditional = written
            .conditional
            .into_iter()
            .filter_map(|call| Some((number(&call.name)?, call.rules.into_owned())));
        Self {
            name: written.profile.into_owned(),
            otherwise: written.otherwise,
            calls: written
                .allowed
                .iter()
                .filter_map(always)
                .chain(conditional)
                .collect(),
            unknown: written.unknown.into_owned(),
        }
    }
}

fn always(action: Action) -> Rule {
    Rule {
        when: vec![],
        action,
    }
}

fn is_always_allowed(rules: &[Rule]) -> bool {
    matches!(rules, [Rule { when, action: Action::Allow }] if when.is_empty())
}

/// The number of a system call on this machine.
#[must_use]
pub fn number(name: &str) -> Option<u32> {
    // The crate's own search compares with one name after the other.
    static NUMBERS: OnceLock<BTreeMap<&'static str, u32>> = OnceLock::new();
    let numbers = NUMBERS.get_or_init(|| {
        let calls = Sysno::iter().map(|call| (call.name(), call.id().cast_unsigned()));
        // The crate has another name for this one than the kernel and Docker.
        #[cfg(target_arch = "aarch64")]
        let calls = calls.chain([("newfstatat", Sysno::fstatat.id().cast_unsigned())]);
        calls.collect()
    });
    numbers.get(name).copied()
}

/// The name of a system call of this machine.
#[must_use]
pub fn name(number: u32) -> Option<&'static str> {
    Sysno::new(number as usize).map(|call| call.name())
}

impl Profile {
    /// What a call gets.
    #[must_use]
    pub fn answer(&self, number: u32, args: [u64; 6]) -> Action {
        if number > last_known() {
            return self.unknown(number);
        }
        let rules = self.calls.get(&number).map_or(&[][..], Vec::as_slice);
        rules
            .iter()
            .find(|rule| rule.when.iter().all(|test| test.holds(args)))
            .map_or(self.otherwise, |rule| rule.action)
    }

    /// What a number gets that this program has no name for.
    fn unknown(&self, number: u32) -> Action {
        match self.otherwise {
            // Programs take ENOSYS as "this kernel is older", EPERM as final.
            Action::Errno(_) if number < FOREIGN => Action::Errno(libc::ENOSYS as u16),
            // Whatever is allowed otherwise: x32's calls are the same ones by other numbers.
            Action::Allow | Action::Log if number >= FOREIGN => FOREIGN_ANSWER,
            otherwise => otherwise,
        }
    }

    /// The calls that are always allowed, then those with conditions, then those that are always refused and kept from every
    /// app ([`is_kept_from_apps`]), though the profile has them; names in order.
    #[must_use]
    pub fn names(&self) -> [Vec<&'static str>; 3] {
        let mut lists = [vec![], vec![], vec![]];
        for (number, rules) in &self.calls {
            let Some(name) = name(*number) else { continue };
            let list = match is_always_allowed(rules) {
                true => 0,
                false if is_kept_from_apps(*number) => 2,
                false => 1,
            };
            lists[list].push(name);
        }
        for list in &mut lists {
            list.sort_unstable();
        }
        lists
    }

    /// Whether a call is made with some arguments at least.
    #[must_use]
    pub fn may_allow(&self, name: &str) -> bool {
        let Some(rules) = number(name).and_then(|number| self.calls.get(&number)) else {
            return self.otherwise.allows();
        };
        let all = rules.iter().any(|rule| rule.when.is_empty());
        rules.iter().any(|rule| rule.action.allows()) || (!all && self.otherwise.allows())
    }

    /// The same profile without the ways past Landlock, of which a file need not know: protocols of sockets that connect
    /// without asking it, and requests that do so on a socket of TCP.
    #[must_use]
    pub fn guarded(self) -> Self {
        self.before_all(roles::guards())
    }

    /// The same profile without requests about links, and without binding a socket to one: for who is handed sockets that
    /// are in another network namespace.
    #[must_use]
    pub fn without_links(self) -> Self {
        self.before_all(roles::links())
    }

    fn before_all(mut self, guards: Vec<(Sysno, Vec<Rule>)>) -> Self {
        for (call, mut guards) in guards {
            let number = call.id().cast_unsigned();
            if !self.may_allow(call.name()) {
                continue;
            }
            let rules = self.calls.entry(number).or_default();
            if rules.is_empty() {
                rules.push(always(self.otherwise));
            }
            guards.append(rules);
            *rules = guards;
        }
        self
    }

    /// The two filters of a part whose commands run under this profile.
    ///
    /// # Errors
    /// As [`Profile::compile`].
    pub fn filters(&self) -> Result<Filters, CompileError> {
        Ok(Filters {
            stage: roles::on_the_way_to(self).compile()?,
            command: self.compile()?,
        })
    }
}

/// Calls by which a process becomes somebody else, gives a file to somebody else or changes its root: an app with one id makes
/// them in vain.
const CHANGES_OF_USER: [&str; 12] = [
    "setuid",
    "setgid",
    "setgroups",
    "setreuid",
    "setregid",
    "setresuid",
    "setresgid",
    "chown",
    "fchown",
    "lchown",
    "fchownat",
    "chroot",
];

/// The calls by which a socket gets an address or is connected to one: Landlock refuses them by their port.
pub const OF_ADDRESSES: [&str; 2] = ["bind", "connect"];

/// Whether an app of this profile may have a socket of NETLINK_ROUTE.
#[must_use]
pub fn allows_rtnetlink(profile: &Profile) -> bool {
    let [family, kind, protocol] = [libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE]
        .map(|n| u64::from(n.cast_unsigned()));
    let socket = Sysno::socket.id().cast_unsigned();
    let answer = profile.answer(socket, [family, kind, protocol, 0, 0, 0]);
    answer.allows()
}

/// `base` and these calls, with any arguments, but for what no app may do.
///
/// # Errors
/// What is wrong with a name, in words.
pub fn with(mut base: Profile, names: &[&str]) -> Result<Profile, String> {
    for name in names {
        let number =
            number(name).ok_or_else(|| format!("this machine has no system call `{name}`"))?;
        if is_kept_from_apps(number) {
            return Err(format!(
                "`{name}` is kept from every app, whatever its profile says"
            ));
        }
        match base.calls.get(&number) {
            Some(rules) if rules.iter().any(|rule| rule.action.allows()) => {
                return Err(format!(
                    "`{name}` is allowed by {} as far as it is safe; more of it takes a file",
                    base.name
                ));
            }
            _ => drop(base.calls.insert(number, vec![always(Action::Allow)])),
        }
    }
    base.name = std::iter::once(base.name.as_str())
        .chain(names.iter().copied())
        .collect::<Vec<_>>()
        .join("+");
    Ok(floored(base).guarded())
}

impl Filters {
    /// The same where somebody is asked about each call that would get an error, and about each change of user and each
    /// address that a socket gets or is connected to, which the profile leaves to the kernel ([`explained`]). Until somebody
    /// listens they get ENOSYS.
    ///
    /// # Errors
    /// As [`Profile::compile`].
    pub fn asking(profile: &Profile) -> Result<Self, CompileError> {
        let mut more = profile.clone();
        let asked = CHANGES_OF_USER.iter().chain(&OF_ADDRESSES);
        for number in asked.filter_map(|name| number(name)) {
            let refused = Action::Errno(libc::EPERM as u16);
            more.calls.insert(number, vec![always(refused)]);
        }
        Ok(Self {
            stage: roles::on_the_way_to(profile).compile()?.asking(),
            command: more.compile()?.asking(),
        })
    }
}

/// What a call gets that [`Filters::asking`] has asked about: an error number, or `None` for what the profile leaves to the
/// kernel. It depends on nothing that the caller can still change.
#[must_use]
pub fn explained(profile: &Profile, architecture: u32, number: u32, args: [u64; 6]) -> Option<u16> {
    if architecture != compile::ARCH {
        return Some(libc::EPERM as u16);
    }
    match profile.answer(number, args) {
        Action::Allow | Action::Log => None,
        Action::Errno(errno) => Some(errno),
        // Not asked about.
        Action::Trap | Action::KillThread | Action::KillProcess => Some(libc::EPERM as u16),
    }
}

impl Test {
    /// Whether it holds for these arguments.
    #[must_use]
    pub fn holds(&self, args: [u64; 6]) -> bool {
        let found = args[usize::from(self.arg)] & self.mask;
        match self.is {
            Comparison::Eq => found == self.value,
            Comparison::Ne => found != self.value,
            Comparison::Lt => found < self.value,
            Comparison::Le => found <= self.value,
            Comparison::Gt => found > self.value,
            Comparison::Ge => found >= self.value,
        }
    }
}

/// Numbers from here on are another ABI's: `__X32_SYSCALL_BIT` of asm/unistd.h.
const FOREIGN: u32 = 0x4000_0000;
/// What they get where everything else is allowed.
const FOREIGN_ANSWER: Action = Action::Errno(libc::EPERM as u16);

/// The highest number that has a name here.
fn last_known() -> u32 {
    Sysno::last().id().cast_unsigned()
}

/// The filters of a part that runs a command, or of a command that `lrpns exec` runs in one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filters {
    /// Once privileges are dropped.
    pub stage: Program,
    /// On top of it, right before `execve(2)`.
    pub command: Program,
}

/// The filters of a command that `lrpns exec` runs in a part that never runs one: what reaches out of a process
/// (sockets, and requests to them) is exactly the part's own; what a static program needs beside comes on top.
///
/// # Errors
/// As [`Profile::compile`].
pub fn visitor(part: &Profile) -> Result<Filters, CompileError> {
    roles::visitor(part).filters()
}

impl Program {
    /// Puts this process, which must have one thread, under the program for good; `no_new_privs` must be set.
    ///
    /// # Errors
    /// What `seccomp(2)` says.
    pub fn install(&self) -> io::Result<()> {
        crate::sys::seccomp::install(self.instructions())
    }

    /// As [`Program::install`], for a program that asks; the descriptor is where it does.
    ///
    /// # Errors
    /// As [`Program::install`].
    pub fn install_and_listen(&self) -> io::Result<std::os::fd::OwnedFd> {
        crate::sys::seccomp::install_and_listen(self.instructions())
    }
}

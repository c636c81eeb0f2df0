//! What the kernel tells of a running process, in `/proc` (proc_pid_status(5), namespaces(7)): for `lrpns status`, of which
//! it is the evidence. Nothing here is remembered from when the process was started, but for the securebits, which
//! `/proc` has not and which are locked from then on.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::plan::{Plan, is_supervisors};
use crate::sys::process::by_number;

/// The lines of `uid_map` and `gid_map` of a process: inside, outside, how many.
///
/// # Errors
/// What the kernel says; ESRCH when the process has ended.
pub fn id_maps(pidfd: BorrowedFd<'_>) -> io::Result<[Vec<[u32; 3]>; 2]> {
    let map = |pid: i32, which: &str| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/{which}"))?;
        let lines = text.lines().map(|line| {
            let mut numbers = line.split_whitespace().map(str::parse);
            let mut next = || numbers.next()?.ok();
            Some([next()?, next()?, next()?])
        });
        let lines: Option<Vec<_>> = lines.collect();
        lines.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    };
    by_number(pidfd, |pid| {
        Ok([map(pid, "uid_map")?, map(pid, "gid_map")?])
    })
}

/// Whether a process that a supervisor has named is in the user namespace of a part by its saved plan: root's commands go into no
/// other, and has mounts and numbers that are not the host's. That it is one with the part's ids is enough beside, since who has those
/// is the part, or what it or the supervisor has made. An ordinary user's supervisor is the user.
///
/// # Errors
/// As [`id_maps`].
pub fn is_in_part(pidfd: BorrowedFd<'_>, part: &str, plan: &Plan) -> io::Result<bool> {
    if plan.supervisor().is_none() {
        return Ok(true);
    }
    let ids = plan.ids_of(part).map(|ids| ids.lines());
    Ok(ids == Some(id_maps(pidfd)?) && !shares_mounts_or_numbers(pidfd)?)
}

/// Whether a process is in this one's mount or pid namespace: of a part nobody is, but the supervisor may make one who has its ids.
fn shares_mounts_or_numbers(pidfd: BorrowedFd<'_>) -> io::Result<bool> {
    let of = |whose: &str, kind: &str| -> io::Result<(u64, u64)> {
        let it = rustix::fs::stat(format!("/proc/{whose}/ns/{kind}"))?;
        Ok((it.st_dev, it.st_ino))
    };
    by_number(pidfd, |pid| {
        let shares = |kind| Ok::<_, io::Error>(of(&pid.to_string(), kind)? == of("self", kind)?);
        Ok(shares("mnt")? || shares("pid")?)
    })
}

/// One process. Capability sets have bit N set for capability number N; ids are those of the reader's user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// `supervisor`, or the part that it is of.
    pub part: String,
    /// What it is there.
    pub role: Role,
    /// Its number, where the supervisor is.
    pub pid: i32,
    /// Real, effective, saved and file system uid, outside.
    pub uids: Vec<u32>,
    /// The same of the gid.
    pub gids: Vec<u32>,
    /// CapInh.
    pub inheritable: u64,
    /// CapPrm.
    pub permitted: u64,
    /// CapEff.
    pub effective: u64,
    /// What of the effective set counts on the host: nothing, in a user namespace that is not the host's.
    #[serde(default)]
    pub effective_on_host: u64,
    /// CapBnd.
    pub bounding: u64,
    /// CapAmb.
    pub ambient: u64,
    /// The securebits, as they were read back when the part had dropped everything.
    pub securebits: Option<u32>,
    /// Whether `execve(2)` can't give privileges.
    pub no_new_privs: bool,
    /// The seccomp mode: 2 under a filter.
    pub seccomp: u32,
    /// How many filters it is under.
    pub seccomp_filters: u32,
    /// Its namespaces: type, and the inode that tells one from another.
    pub namespaces: BTreeMap<String, u64>,
}

/// What a process is in its part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The supervisor.
    Supervisor,
    /// A part's pid 1.
    Init,
    /// An app's command.
    Command,
    /// Egress by relay: who connects for the carrier, its pid 1.
    Dialer,
    /// Beside root's supervisor: who takes away at the end what root has made.
    Undoer,
}

/// What the undoer calls itself.
pub const UNDOER: &std::ffi::CStr = c"lrpns-undoer";

/// This process, the supervisor, and who is beside it.
pub fn of_this(securebits: Option<u32>, host: Option<u64>) -> impl Iterator<Item = Process> {
    let own = (Role::Supervisor, std::process::id().cast_signed());
    let all = std::iter::once(own).chain(undoer().map(|pid| (Role::Undoer, pid)));
    all.filter_map(move |(role, pid)| Process::look("supervisor", role, pid, securebits, host))
}

/// Who is [`Role::Undoer`] beside this process.
fn undoer() -> Option<i32> {
    let own = std::process::id();
    let children = std::fs::read_to_string(format!("/proc/self/task/{own}/children")).ok()?;
    let mut children = children.split_whitespace();
    let is_it = |pid: &&str| {
        let name = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.trim_ascii_end() == UNDOER.to_bytes()
    };
    children.find(is_it)?.parse().ok()
}

/// Processes of this pid namespace that are of an id which only root's supervisors have, with that: theirs, and those that these
/// have left. A container's are its own.
pub fn of_supervisors() -> impl Iterator<Item = (i32, u32)> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: i32| Some((pid, supervisor_id(pid)?)))
}

/// Whether a process may be a supervisor: by its id, or by its name where it is an ordinary user's or has not dropped yet.
#[must_use]
pub fn is_ours(pid: i32) -> bool {
    let name = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    supervisor_id(pid).is_some() || name.trim_ascii_end() == b"lrpns"
}

/// That id of a process, if it has one and has not ended.
#[must_use]
pub fn supervisor_id(pid: i32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.split_whitespace())
    };
    // In whatever place it has it: the real, the effective, the saved one, or that for files.
    let uid = field("Uid:")?
        .filter_map(|id| id.parse().ok())
        .find(|id| is_supervisors(*id))?;
    let there = !matches!(field("State:")?.next(), Some("Z" | "X"));
    let space = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let here = || space("self").is_some_and(|own| space(&pid.to_string()) == Some(own));
    (there && here()).then_some(uid)
}

/// The user namespace of this process, which is the supervisor, by its inode, if that is the host's: without root it has one of
/// its own, and all others are below that.
#[must_use]
pub fn hosts_user_namespace(plan: &Plan) -> Option<u64> {
    plan.supervisor().and_then(|_| own_user_namespace())
}

fn own_user_namespace() -> Option<u64> {
    let own = std::fs::read_link("/proc/self/ns/user");
    inode(own.ok()?.to_str()?)
}

/// As in `net:[4026531840]`.
fn inode(link: &str) -> Option<u64> {
    let (_, number) = link.strip_suffix(']')?.split_once(":[")?;
    number.parse().ok()
}

/// The types of namespaces that there is one of for each process (namespaces(7)).
const NAMESPACES: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

impl Process {
    /// Looks at process `pid`; `None` when it is not there any more. `host` is the host's user namespace, if any process of ours
    /// is in that.
    #[must_use]
    pub fn look(
        part: &str,
        role: Role,
        pid: i32,
        securebits: Option<u32>,
        host: Option<u64>,
    ) -> Option<Self> {
        let directory = Path::new("/proc").join(pid.to_string());
        let status = std::fs::read_to_string(directory.join("status")).ok()?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.strip_prefix(':')).map(str::trim)
        };
        let set = |name: &str| u64::from_str_radix(field(name)?, 16).ok();
        let number = |name: &str| field(name)?.parse::<u32>().ok();
        let ids = |name: &str| -> Option<Vec<u32>> {
            let numbers = field(name)?.split_whitespace().map(str::parse);
            numbers.collect::<Result<_, _>>().ok()
        };
        let inode = |kind: &&str| {
            let link = std::fs::read_link(directory.join("ns").join(kind)).ok()?;
            Some(((*kind).to_owned(), inode(link.to_str()?)?))
        };
        let namespaces: BTreeMap<String, u64> = NAMESPACES.iter().filter_map(inode).collect();
        // One whose namespace can't be told is taken to be there.
        let elsewhere = |own: &u64| host.is_none_or(|host| *own != host);
        let is_elsewhere = namespaces.get("user").map_or(host.is_none(), elsewhere);
        let effective = set("CapEff")?;
        Some(Self {
            part: part.to_owned(),
            role,
            pid,
            uids: ids("Uid")?,
            gids: ids("Gid")?,
            inheritable: set("CapInh")?,
            permitted: set("CapPrm")?,
            effective,
            effective_on_host: if is_elsewhere { 0 } else { effective },
            bounding: set("CapBnd")?,
            ambient: set("CapAmb")?,
            securebits,
            no_new_privs: number("NoNewPrivs")? == 1,
            seccomp: number("Seccomp")?,
            seccomp_filters: number("Seccomp_filters").unwrap_or_default(),
            namespaces,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen_as_it_is() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let here = own_user_namespace();
        assert!(here.is_some());
        let seen = Process::look("test", Role::Supervisor, pid, None, here).unwrap();
        let uids = nix::unistd::getresuid().unwrap();
        assert_eq!(
            seen.uids[..3],
            [uids.real, uids.effective, uids.saved].map(|id| id.as_raw())
        );
        let held = rustix::thread::capabilities(None).unwrap();
        assert_eq!(seen.effective, held.effective.bits());
        assert_eq!(seen.effective_on_host, seen.effective);
        for elsewhere in [None, here.map(|here| here + 1)] {
            let seen = Process::look("test", Role::Supervisor, pid, None, elsewhere).unwrap();
            assert_eq!(seen.effective_on_host, 0);
        }
        assert_eq!(seen.no_new_privs, rustix::thread::no_new_privs().unwrap());
        assert_eq!(seen.namespaces.len(), NAMESPACES.len());
    }

    #[test]
    fn a_process_that_is_not_there_is_none() {
        assert_eq!(Process::look("test", Role::Command, -1, None, None), None);
    }
}

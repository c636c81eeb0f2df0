//! What the app's own processes have open.
//!
//! A descriptor is a way past every wall that was built around a process: a file of another mount namespace, a socket of
//! another network, another process. The kernel tells of each where it is from: a file's mount by its number
//! (proc_pid_fdinfo(5)), a socket's network namespace by its cookie (socket(7)), a pidfd's process by its numbers.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::{Found, Scene, nothing_of};
use crate::audit::agent::{Agent, Answer, Ask, SOMETHING_ELSE};
use crate::audit::catalogue::{Probe, Side};
use crate::audit::{Group, Outcome};
use crate::plan::AppPlan;
use crate::sys::attempt;

/// The descriptors of the app's command and of what it has started.
pub const DESCRIPTORS: Probe = Probe {
    id: "leak-app-descriptors",
    group: Group::Leaks,
    from: Side::Look(look),
    title: "every descriptor of the app's own processes",
    why: "CVE-2016-9962, CVE-2024-21626: a directory of the host; a socket of its network (CVE-2020-15257)",
    expected: "files of its own mounts, sockets of its own network or those that it is handed, processes of its own, pipes; its terminal, if it has one",
};

/// More are not looked at of one app.
const MOST: usize = 20_000;
/// What no profile of ours lets a process have.
const STRANGE: [&str; 6] = [
    "[io_uring]",
    "bpf-",
    "[perf_event]",
    "[userfaultfd]",
    "[fanotify]",
    "kvm-",
];

fn look(scene: &Scene<'_>) -> Found {
    let apps = scene.target.apps();
    let found = apps.map(|app| {
        let name = app.name.as_str();
        (
            name.to_owned(),
            of_app(scene, app).unwrap_or_else(Outcome::unknown),
        )
    });
    found.collect()
}

/// The cookie of the network namespace that an agent is in.
fn cookie(agent: &Result<Agent, String>) -> Result<u64, String> {
    match agent.as_ref().map_err(Clone::clone)?.ask(&Ask::Cookie)? {
        Answer::Cookie(cookie) => Ok(cookie),
        _ => Err(SOMETHING_ELSE.to_owned()),
    }
}

fn of_app(scene: &Scene<'_>, app: &AppPlan) -> Result<Outcome, String> {
    let name = app.name.as_str();
    let init = scene.target.part(name).and_then(|part| part.init);
    let init = init.ok_or("it does not run")?;
    let inside = scene.inside.iter().find(|(part, _)| *part == name);
    // A kernel that has none (before Linux 5.14) tells of no socket's.
    let own = inside.and_then(|(_, agent)| cookie(agent).ok());
    let sidecar = scene.inside.iter().find(|(part, _)| *part == "sidecar");
    let sidecar = sidecar.filter(|_| app.via_socket);
    let handed = sidecar.and_then(|(_, agent)| cookie(agent).ok());
    let (mut count, mut wrong) = (0, vec![]);
    // Its pid 1 has a probe of its own, `leak-part-descriptors`.
    for process in scene
        .processes
        .of_part(init)
        .filter(|process| process.pid != init)
    {
        let path = format!("/proc/{}", process.pid);
        let mounts = std::fs::read_to_string(format!("{path}/mountinfo")).unwrap_or_default();
        let mounts: BTreeSet<&str> = mounts
            .lines()
            .filter_map(|line| line.split(' ').next())
            .collect();
        let this = Holder {
            path: &path,
            mounts: &mounts,
            cookie: own,
            handed: handed.map(|cookie| (cookie, app.handed())),
            pidfd: rustix::process::Pid::from_raw(process.pid).and_then(|pid| {
                rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
            }),
        };
        for entry in std::fs::read_dir(format!("{path}/fd"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let Some(fd) = entry.file_name().to_str().and_then(|fd| fd.parse().ok()) else {
                continue;
            };
            count += 1;
            if let Some(what) = this.wrong(fd) {
                wrong.push(format!("process {}, descriptor {fd}: {what}", process.pid));
            }
            if count == MOST {
                return Err(format!("it has more than {MOST} descriptors"));
            }
        }
    }
    Ok(nothing_of(&wrong, format!("{count}, all its own")))
}

/// A process, and what its descriptors may be of.
struct Holder<'a> {
    path: &'a str,
    mounts: &'a BTreeSet<&'a str>,
    cookie: Option<u64>,
    /// The network namespace of the sockets that it is handed, and where they are; what it accepts there is too.
    handed: Option<(u64, Vec<SocketAddr>)>,
    pidfd: Option<OwnedFd>,
}

impl Holder<'_> {
    /// What is wrong with a descriptor; `None` if nothing is, or it is there no more.
    fn wrong(&self, fd: i32) -> Option<String> {
        let link = std::fs::read_link(format!("{}/fd/{fd}", self.path)).ok()?;
        let link = link.to_string_lossy();
        if let Some(strange) = STRANGE.iter().find(|strange| {
            link.strip_prefix("anon_inode:")
                .is_some_and(|kind| kind.starts_with(**strange))
        }) {
            return Some(format!("{strange}: no profile has it"));
        }
        let info = || std::fs::read_to_string(format!("{}/fdinfo/{fd}", self.path)).ok();
        let value = |info: &str, name: &str| -> Option<String> {
            let line = info.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim().to_owned())
        };
        if link == "anon_inode:[pidfd]" {
            // Of a process inside there is a number in each namespace from here on.
            let numbers = value(&info()?, "NSpid:")?;
            return (numbers.split_whitespace().count() < 2 && numbers != "-1")
                .then(|| format!("process {numbers}, outside"));
        }
        if link.starts_with("socket:") {
            let (own, pidfd) = (self.cookie?, self.pidfd.as_ref()?);
            let flags = rustix::process::PidfdGetfdFlags::empty();
            let socket = rustix::process::pidfd_getfd(pidfd, fd, flags).ok()?;
            let found = attempt::netns_cookie(socket.as_fd()).ok()?;
            if found == own {
                return None;
            }
            let at = rustix::net::getsockname(&socket).ok();
            let at = at.and_then(|at| SocketAddr::try_from(at).ok());
            return match (&self.handed, at) {
                (Some((sidecar, handed)), Some(at)) if found == *sidecar => {
                    let planned = handed.contains(&at);
                    (!planned)
                        .then(|| format!("a socket of the sidecar's network namespace, at {at}"))
                }
                _ => Some("a socket of another network namespace".to_owned()),
            };
        }
        if !link.starts_with('/') {
            let kind = link.split(':').next().unwrap_or_default();
            let is_namespace =
                ["mnt", "net", "pid", "user", "ipc", "uts", "cgroup", "time"].contains(&kind);
            return is_namespace.then(|| format!("{link}, a namespace"));
        }
        if link.starts_with("/memfd:") {
            return None;
        }
        let mount = value(&info()?, "mnt_id:")?;
        if self.mounts.contains(mount.as_str()) || fd <= 2 && self.is_a_stream(fd) {
            return None;
        }
        Some(format!("{link}, of a mount that is not its own"))
    }

    /// Whether it is what the supervisor gives a command for a standard stream: the null device, or a terminal.
    fn is_a_stream(&self, fd: i32) -> bool {
        std::fs::metadata(format!("{}/fd/{fd}", self.path)).is_ok_and(|meta| {
            let number = meta.rdev();
            let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
            // Documentation/admin-guide/devices.txt.
            let is_known = (major, minor) == (1, 3) || (136..=143).contains(&major);
            meta.file_type().is_char_device() && is_known
        })
    }
}

//! Who is in a part's namespaces.
//!
//! # Theory of operation
//!
//! Every process of the machine is asked which namespaces it is in, and each of its threads for what a thread may have of its
//! own. One that is in some of a part's and not in all does not belong to the part: somebody has joined it (setns(2)). One that
//! is in all of them must hold no more than the part does, whoever started it; so what `exec` and `audit` run there passes.
//! The machinery of lrpns itself joins parts too, for a moment and with more: its audits and what its supervisor has just
//! started. These are known by their parent, or by the program that they are.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Found, Scene, nothing_of};
use crate::audit::catalogue::{Probe, Side};
use crate::audit::outside::{SETS, mask};
use crate::audit::{Group, Outcome};
use crate::control::{PartState, PartStatus};
use crate::plan::maps_to;

/// Somebody in a part's namespaces who is not of the part.
pub const MEMBERS: Probe = Probe {
    id: "members",
    group: Group::Process,
    from: Side::Look(look),
    title: "every process and thread that is in a namespace of the part",
    why: "setns(2): who has joined a part holds what he brought, in a place that is trusted to hold nothing",
    expected: "in all of its namespaces, with the planned id, no capability that the part does not hold, a filter, no_new_privs, \
               and the part's root",
};

/// The kinds of namespaces that each part has; which of them a thread may have for itself.
const KINDS: [&str; 7] = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"];
const OF_THREADS: [&str; 2] = ["net", "mnt"];
/// As often is somebody looked at again who seems to be where nobody should be: who joins a part to become somebody of the part
/// is on the way for a moment.
const LOOKS: usize = 50;
const BETWEEN_LOOKS: rustix::event::Timespec = rustix::event::Timespec {
    tv_sec: 0,
    tv_nsec: 4_000_000,
};

/// The number of a namespace of each of [`KINDS`].
type Places = [Option<u64>; KINDS.len()];

/// A process, or a thread of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Below /proc.
    path: String,
    places: Places,
}

/// Every process of the machine.
pub struct Processes(Vec<Process>);

fn namespace(path: &str, kind: &str) -> Option<u64> {
    let link = std::fs::read_link(format!("{path}/ns/{kind}")).ok()?;
    let number = link.to_str()?.split_once('[')?.1.strip_suffix(']')?;
    number.parse().ok()
}

fn places(path: &str) -> Places {
    KINDS.map(|kind| namespace(path, kind))
}

fn numbers(directory: &str) -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

impl Processes {
    /// Looks at them all, at this moment.
    #[must_use]
    pub fn look() -> Self {
        let mut all = vec![];
        for pid in numbers("/proc") {
            let path = format!("/proc/{pid}");
            let places = places(&path);
            // The main thread is the process.
            for thread in numbers(&format!("{path}/task")).filter(|thread| *thread != pid) {
                let path = format!("{path}/task/{thread}");
                let mut own = places;
                for (place, kind) in own.iter_mut().zip(KINDS) {
                    if OF_THREADS.contains(&kind) {
                        *place = namespace(&path, kind);
                    }
                }
                if own != places {
                    let places = own;
                    all.push(Process { pid, path, places });
                }
            }
            all.push(Process { pid, path, places });
        }
        Self(all)
    }

    /// Those that are in the same pid namespace as `init`, and in all other namespaces that it is in.
    pub fn of_part(&self, init: i32) -> impl Iterator<Item = &Process> {
        let wanted = places(&format!("/proc/{init}"));
        self.0
            .iter()
            .filter(move |process| wanted[0].is_some() && process.places == wanted)
    }
}

/// Whether a process is in the namespace of that kind that this one is in.
pub(super) fn is_here(path: &str, kind: &str) -> bool {
    let its = namespace(path, kind);
    its.is_some() && its == namespace("/proc/self", kind)
}

/// A field of a process's status (proc_pid_status(5)).
pub(super) fn field(text: &str, name: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    Some(line?.strip_prefix(':')?.trim().to_owned())
}

/// What a process of a part may be, at most.
struct Allowed {
    places: Places,
    /// Of the part's kinds, those that are nobody else's.
    own: BTreeSet<usize>,
    capabilities: u64,
    /// Device and inode of its root directory.
    root: Option<(u64, u64)>,
    /// Whether the superuser runs the stack.
    by_root: bool,
    /// Its ids, as the host has them: an app's pid 1 is another of them until it executes its command.
    ids: Vec<[u32; 3]>,
    /// The cgroups that its pid 1 is in; processes of other parts than an app come and go by themselves.
    cgroup: Option<String>,
}

fn root(path: &str) -> Option<(u64, u64)> {
    let meta = std::fs::metadata(format!("{path}/root")).ok()?;
    Some((meta.dev(), meta.ino()))
}

impl Allowed {
    fn of(scene: &Scene<'_>, part: &PartStatus) -> Result<Self, String> {
        let init = part.init.ok_or("it does not run")?;
        let path = format!("/proc/{init}");
        let (found, here) = (places(&path), places("/proc/self"));
        let supervisor = places(&format!("/proc/{}", scene.target.status.supervisor));
        // The dialer, which is of this part, is where it can dial.
        let apart = |at: usize| part.name == "egress" && KINDS[at] == "net";
        let shared = |at: usize| [here[at], supervisor[at], None].contains(&found[at]) || apart(at);
        let own: BTreeSet<usize> = (0..KINDS.len()).filter(|at| !shared(*at)).collect();
        if own.is_empty() {
            return Err(format!("the namespaces of {path} can't be read"));
        }
        let plan = scene.plan();
        let app = scene.app(&part.name);
        const NET_ADMIN: u64 = 1 << 12;
        Ok(Self {
            places: found,
            own,
            capabilities: match part.name.as_str() {
                "sidecar" if !plan.seal => NET_ADMIN,
                _ => app.map_or(0, |app| mask(app.ids.capabilities())),
            },
            root: root(&path),
            by_root: plan.supervisor().is_some(),
            ids: { plan.ids_of(&part.name) }
                .map(|ids| plan.host_lines(ids))
                .ok_or("the plan has no such part")?,
            cgroup: app.and_then(|_| std::fs::read_to_string(format!("{path}/cgroup")).ok()),
        })
    }

    /// The kinds of the part's own namespaces that a process is in.
    fn shared(&self, places: &Places) -> BTreeSet<usize> {
        let own = self.own.iter().copied();
        own.filter(|at| self.places[*at] == places[*at]).collect()
    }

    /// What is wrong with a process that is in this part's namespaces; `None` if nothing is, or it isn't any more.
    fn wrong(&self, path: &str) -> Option<String> {
        let shared = self.shared(&places(path));
        if shared.is_empty() {
            return None;
        }
        let status = std::fs::read_to_string(format!("{path}/status")).ok()?;
        if shared.len() < self.own.len() {
            let kinds: Vec<&str> = shared.iter().map(|at| KINDS[*at]).collect();
            let others = self.own.len() - shared.len();
            return Some(format!(
                "is in its {} and in {others} other namespaces not",
                kinds.join(", ")
            ));
        }
        let mut wrong = vec![];
        for set in SETS {
            let held = u64::from_str_radix(&field(&status, set)?, 16).ok()?;
            let may = if matches!(set, "CapInh" | "CapAmb") {
                0
            } else {
                self.capabilities
            };
            if held & !may != 0 {
                wrong.push(format!("{set} {:x}", held & !may));
            }
        }
        for (name, wanted) in [("NoNewPrivs", "1"), ("Seccomp", "2")] {
            let found = field(&status, name)?;
            if found != wanted {
                wrong.push(format!("{name} {found}"));
            }
        }
        let kinds: &[&str] = match self.by_root {
            true => &["Uid", "Gid"],
            // Of an ordinary user both are his, and the plan knows the one.
            false => &["Uid"],
        };
        for ids in kinds {
            let found = field(&status, ids)?;
            let is_ours = |id: &str| id.parse().is_ok_and(|id| maps_to(&self.ids, id));
            if !found.split_whitespace().all(is_ours) {
                wrong.push(format!("{ids} {}", found.replace('\t', " ")));
            }
        }
        let root = root(path);
        if root.is_some() && root != self.root {
            wrong.push("another root directory".to_owned());
        }
        let cgroup = std::fs::read_to_string(format!("{path}/cgroup"));
        if let (Some(wanted), Ok(found)) = (&self.cgroup, cgroup)
            && *wanted != found
        {
            wrong.push("outside the part's cgroup".to_owned());
        }
        (!wrong.is_empty()).then(|| format!("holds {}", wrong.join(", ")))
    }
}

/// Whether a process is of lrpns, on its way into a part or out of it: another program of ours that is in some namespace of a
/// part and not in its pid namespace, or a child of the supervisor's.
fn is_machinery(scene: &Scene<'_>, allowed: &Allowed, path: &str) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("{path}/status")) else {
        return true;
    };
    let number = |name| field(&status, name).and_then(|pid| pid.parse::<i32>().ok());
    if number("PPid") == Some(scene.target.status.supervisor) {
        let parts = scene.target.status.parts.iter();
        return parts.into_iter().all(|part| part.init != number("Pid"));
    }
    let program = |path: &str| {
        let meta = std::fs::metadata(Path::new(path).join("exe")).ok()?;
        Some((meta.dev(), meta.ino()))
    };
    let is_inside = places(path)[2] == allowed.places[2];
    !is_inside && program(path).is_some() && program(path) == program("/proc/self")
}

fn look(scene: &Scene<'_>) -> Found {
    let mut parts = BTreeMap::new();
    for part in &scene.target.status.parts {
        // A job that has ended has nobody.
        if scene.app(&part.name).is_some_and(|app| app.job) && part.state == PartState::Ended {
            continue;
        }
        parts.insert(part.name.as_str(), Allowed::of(scene, part));
    }
    let mut found = vec![];
    for (name, allowed) in parts {
        let outcome = match allowed {
            Err(e) => Outcome::unknown(e),
            Ok(allowed) => members(scene, &allowed),
        };
        found.push((name.to_owned(), outcome));
    }
    found
}

fn members(scene: &Scene<'_>, allowed: &Allowed) -> Outcome {
    let mut wrong = vec![];
    let mut count = 0;
    for process in &scene.processes.0 {
        if allowed.shared(&process.places).is_empty() {
            continue;
        }
        count += 1;
        let path = &process.path;
        let mut what = allowed.wrong(path);
        for _ in 1..LOOKS {
            // The rest of the machinery is gone within milliseconds as well, and is looked at as long.
            if what.is_none() || is_machinery(scene, allowed, path) {
                break;
            }
            let _ = rustix::event::poll(&mut [], Some(&BETWEEN_LOOKS));
            what = allowed.wrong(path);
        }
        if let Some(what) = what.filter(|_| !is_machinery(scene, allowed, path)) {
            let name = std::fs::read_to_string(format!("{path}/comm")).unwrap_or_default();
            wrong.push(format!("process {} ({}) {what}", process.pid, name.trim()));
        }
    }
    nothing_of(&wrong, format!("{count}, all of the part"))
}

//! What a part may use, where a stack's cgroups are, and what holds its limits: values, which the plan has.
//! [`crate::part::cgroup`] makes them so.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{Limits, Processors};

/// What the sidecar may use; measured, it needs a sixteenth.
pub const SIDECAR: Limits = Limits {
    memory: Some(64 << 20),
    pids: Some(8),
    cpu: Some(Processors::ONE),
};

/// What the relay may use. Its connections are bounded by its descriptors; what the kernel holds for one (two sockets,
/// their buffers) counts as its memory. It has one thread, so one processor is no limit but for who breaks into it.
pub const RELAY: Limits = Limits {
    memory: Some(512 << 20),
    // After a live change an earlier relay stays until its last connection has ended.
    pids: Some(32),
    cpu: Some(Processors::ONE),
};

/// What carrier and dialer of egress may use together; as [`RELAY`].
pub const EGRESS: Limits = Limits {
    memory: Some(512 << 20),
    pids: Some(8),
    cpu: Some(Processors::ONE),
};

/// How many processes and threads an app may have when nothing is said.
pub const APP_PIDS: u32 = 512;

/// A resource that can be limited, under the name of its controller (cgroups(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Controller {
    /// Bytes of memory.
    Memory,
    /// Processes and threads.
    Pids,
    /// Time of processors.
    Cpu,
}

impl Controller {
    /// Every one that we use.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Pids, Self::Cpu];

    /// Its name in `cgroup.controllers`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Cpu => "cpu",
        }
    }

    /// Whether `limits` has one of its kind.
    fn wanted(self, limits: &Limits) -> bool {
        match self {
            Self::Memory => limits.memory.is_some(),
            Self::Pids => limits.pids.is_some(),
            Self::Cpu => limits.cpu.is_some(),
        }
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What keeps a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeldBy {
    /// The part's cgroup.
    Cgroup,
    /// `RLIMIT_NPROC` (getrlimit(2)).
    Rlimit,
}

/// Where one stack's cgroups are and what holds its limits: part of the plan.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Placement {
    /// The stack's cgroup; each part's is in it, by the part's name. `None` when there is none to be had.
    pub path: Option<PathBuf>,
    /// The cgroup that the supervisor moves to, where the stack's is in its own.
    pub supervisor: Option<PathBuf>,
    /// The limits that a part's cgroup holds.
    pub controllers: Vec<Controller>,
    /// Whether `RLIMIT_NPROC` holds the number of processes.
    pub rlimit: bool,
    /// Why not every limit is held.
    pub why: Option<String>,
}

impl Placement {
    /// Whether this is the cgroup of one of the stack's parts.
    #[must_use]
    pub fn has(&self, cgroup: &Path) -> bool {
        cgroup
            .parent()
            .is_some_and(|above| Some(above) == self.path.as_deref())
            && cgroup.file_name().is_some()
    }

    /// What holds a limit; `None` when nothing does.
    #[must_use]
    pub fn held_by(&self, controller: Controller) -> Option<HeldBy> {
        if self.controllers.contains(&controller) {
            Some(HeldBy::Cgroup)
        } else if controller == Controller::Pids && self.rlimit {
            Some(HeldBy::Rlimit)
        } else {
            None
        }
    }

    /// The limits of `limits` that nothing holds.
    #[must_use]
    pub fn not_held(&self, limits: &Limits) -> Vec<Controller> {
        self.held(limits)
            .filter_map(|(controller, by)| by.is_none().then_some(controller))
            .collect()
    }

    /// One line about the limits that nothing holds, of all parts together; `None` when there are none.
    #[must_use]
    pub fn complaint<'l>(&self, parts: impl IntoIterator<Item = &'l Limits>) -> Option<String> {
        let mut not_held: Vec<_> = parts
            .into_iter()
            .flat_map(|limits| self.not_held(limits))
            .collect();
        not_held.sort_unstable();
        not_held.dedup();
        let names: Vec<&str> = not_held.into_iter().map(Controller::as_str).collect();
        let why = self.why.as_deref().unwrap_or("no reason is known");
        (!names.is_empty()).then(|| format!("{}: {}; {why}", Self::COMPLAINT, names.join(", ")))
    }

    /// What [`Placement::complaint`] begins with.
    pub const COMPLAINT: &str = "limits that can't be enforced";

    /// Every limit of `limits` with what holds it.
    pub fn held(&self, limits: &Limits) -> impl Iterator<Item = (Controller, Option<HeldBy>)> {
        Controller::ALL
            .into_iter()
            .filter(|controller| controller.wanted(limits))
            .map(|controller| (controller, self.held_by(controller)))
    }

    /// How many processes a part's `RLIMIT_NPROC` allows: some more than its cgroup does, where that counts them. The kernel asks the
    /// other first (copy_process(), kernel/fork.c), and tells nobody what it has refused by that.
    #[must_use]
    pub fn nproc(&self, limits: &Limits) -> Option<u32> {
        let pids = limits.pids.filter(|_| self.rlimit)?;
        Some(match self.held_by(Controller::Pids) {
            Some(HeldBy::Cgroup) => pids.saturating_add(Self::MORE_THAN_ITS_CGROUP),
            _ => pids,
        })
    }

    const MORE_THAN_ITS_CGROUP: u32 = 8;
}

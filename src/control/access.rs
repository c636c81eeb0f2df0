//! What root's commands may be in a part, which they join: as the part is, by its plan.
//!
//! The plan is the one that root's commands have saved, which nobody else can write ([`crate::state::StateRoot::saved`]). Of the
//! supervisor comes nothing but a process of the part, which is looked at ([`super::processes::is_in_part`]): one that was taken
//! over could have root execute a program there without a filter, without Landlock's rules, and with every capability.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use caps::Capability;

use crate::confine::landlock::TcpOnlyTo;
use crate::confine::privileges::Ids;
use crate::confine::seccomp::{self, CompileError, Filters};
use crate::plan::{Plan, limits};

/// What a command in a part is.
pub struct Access {
    /// The id inside that the part runs as.
    pub user: Ids,
    /// The part's environment.
    pub env: BTreeMap<String, String>,
    /// What the part holds: the command gets no more.
    pub keep: Vec<Capability>,
    /// Where the part's cgroup is, if it has one, which the command belongs to as well.
    pub cgroup: Option<PathBuf>,
    /// The part's `RLIMIT_NPROC`.
    pub nproc: Option<u32>,
    /// What it may talk to by Landlock; `None` for an app: what goes in by this way is outside of its domain.
    pub confined: Option<TcpOnlyTo>,
    /// What the command may call, on the way to it and in it.
    pub seccomp: Filters,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The plan has no such part.
    #[error("there is no part of that name in the stack's plan")]
    NoPart,
    /// Its filter can't be made.
    #[error(transparent)]
    Compile(#[from] CompileError),
}

impl Access {
    /// By a plan that is the stack's.
    ///
    /// # Errors
    /// [`AccessError`].
    pub fn of(plan: &Plan, part: &str) -> Result<Self, AccessError> {
        let app = plan.app_named(part);
        let ids = plan.ids_of(part).ok_or(AccessError::NoPart)?;
        let (keep, limits, confined, seccomp) = match (part, app) {
            ("sidecar", _) => {
                let keep = match plan.seal {
                    true => vec![],
                    false => vec![Capability::CAP_NET_ADMIN],
                };
                let seccomp = seccomp::visitor(&seccomp::sidecar())?;
                (keep, &plan.sidecar_limits, Some(TcpOnlyTo::of([])), seccomp)
            }
            ("relay", _) => {
                let seccomp = seccomp::visitor(&seccomp::relay(plan.carries()))?;
                let confined = TcpOnlyTo::of_relay(plan);
                (vec![], &plan.relay_limits, Some(confined), seccomp)
            }
            ("egress", _) => {
                let seccomp = seccomp::visitor(&seccomp::carrier())?;
                (vec![], &limits::EGRESS, Some(TcpOnlyTo::of([])), seccomp)
            }
            (_, app) => {
                let app = app.ok_or(AccessError::NoPart)?;
                let keep = app.ids.capabilities().to_vec();
                (keep, &app.limits, None, app.seccomp.filters()?)
            }
        };
        let own_name = app.map_or_else(|| part.to_owned(), |app| app.own_name());
        let stack = plan.cgroup.path.as_ref();
        Ok(Self {
            user: ids.inside(),
            env: app.map(|app| app.env.clone()).unwrap_or_default(),
            keep,
            cgroup: stack.map(|stack| stack.join(own_name)),
            nproc: plan.cgroup.nproc(limits),
            confined,
            seccomp,
        })
    }
}

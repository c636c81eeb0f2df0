//! A stack that is being brought up, as those see it who ask meanwhile: what is there so far, and no more.
//!
//! # Theory of operation
//!
//! What brings the stack up owns everything of it, and tells what happens ([`crate::stack::PartNow`]); this is what was
//! told. It changes nothing, but for commands that `lrpns exec` starts in an app whose own command runs already: those go
//! to its first process by a [`Speaker`], between the messages of who owns it.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};

use jiff::Timestamp;

use super::answer::one_more;
use super::clients::refused;
use crate::config::TrafficLog;
use crate::confine::privileges::{self, Privileges};
use crate::control::processes::{Process, Role, hosts_user_namespace, of_this};
use crate::control::{LimitStatus, PartState, PartStatus, Reply, Request, Status};
use crate::plan::Plan;
use crate::protocol::{Exit, Speaker};
use crate::stack::PartNow;

/// A stack, as far as it has come.
pub(super) struct Rising {
    plan: Plan,
    gated: bool,
    since: Timestamp,
    parts: Vec<RisingPart>,
}

struct RisingPart {
    name: String,
    host_uid: u32,
    state: PartState,
    since: Timestamp,
    init: Option<i32>,
    command: Option<i32>,
    /// Whether its command runs: its first process takes orders only then.
    begun: bool,
    privileges: Option<Privileges>,
    speaker: Option<Speaker>,
    last_exit: Option<Exit>,
    /// What it waits for, or has had to leave out.
    notes: Vec<String>,
    waits: Option<String>,
}

impl Rising {
    /// One of which nothing is there yet.
    pub(super) fn of(plan: &Plan, gated: bool) -> Self {
        let now = Timestamp::now();
        let sidecar = ("sidecar".to_owned(), plan.host_uid(plan.sidecar));
        let relay = plan.has_relay();
        let relay = relay.then(|| ("relay".to_owned(), plan.host_uid(plan.relay)));
        let egress = plan.egress_relay();
        let egress = egress.map(|egress| ("egress".to_owned(), plan.host_uid(egress.ids)));
        let apps = plan.apps.iter();
        let apps = apps.map(|app| (app.name.to_string(), plan.host_uid(app.ids)));
        let all = std::iter::once(sidecar)
            .chain(egress)
            .chain(apps)
            .chain(relay);
        let parts = all.map(|(name, host_uid)| RisingPart {
            waits: plan.app_named(&name).and_then(|app| {
                let after: Vec<String> = app.after.iter().map(ToString::to_string).collect();
                (!after.is_empty()).then(|| format!("comes up after {}", after.join(", ")))
            }),
            name,
            host_uid,
            state: PartState::Starting,
            since: now,
            init: None,
            command: None,
            begun: false,
            privileges: None,
            speaker: None,
            last_exit: None,
            notes: vec![],
        });
        Self {
            plan: plan.clone(),
            gated,
            since: now,
            parts: parts.collect(),
        }
    }

    /// Takes note of what has become of a part.
    pub(super) fn heard(&mut self, name: &str, now: PartNow<'_>) {
        let Some(part) = self.parts.iter_mut().find(|part| part.name == name) else {
            return;
        };
        match now {
            PartNow::Ready(launched) => {
                part.init = Some(launched.container.pid());
                part.privileges = Some(launched.privileges.clone());
                part.notes.clone_from(&launched.notes);
                // Without descriptors left there is no exec, and soon no stack.
                part.speaker = launched.container.speaker().ok();
            }
            PartNow::Begun(command) => {
                part.command = command;
                part.begun = true;
                part.since = Timestamp::now();
                part.waits = None;
            }
            PartNow::Waits(what) => part.waits = Some(what.to_owned()),
            PartNow::Runs => {
                part.state = PartState::Running;
                part.waits = None;
            }
            PartNow::Done => {
                part.state = PartState::Ended;
                (part.init, part.command, part.speaker) = (None, None, None);
                part.begun = false;
                part.last_exit = Some(Exit::Status(0));
                part.waits = None;
            }
        }
    }

    /// Whether it has, or will have, a part of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.parts.iter().any(|part| part.name == name)
    }

    /// What there is to answer now; what is not answered waits until the stack is up.
    pub(super) fn answers(request: &Request) -> bool {
        matches!(
            request,
            Request::Brief | Request::Look { .. } | Request::Logs { .. } | Request::Exec { .. }
        )
    }

    /// How it is.
    pub(super) fn status(&self) -> std::io::Result<Status> {
        let plan = &self.plan;
        let limits = |name: &str| {
            let of = plan.limits().find(|(part, _)| *part == name);
            let held = of
                .into_iter()
                .flat_map(|(_, limits)| plan.cgroup.held(limits));
            held.map(|(limit, held_by)| LimitStatus { limit, held_by })
                .collect()
        };
        let parts = self.parts.iter().map(|part| PartStatus {
            name: part.name.clone(),
            turn: crate::plan::Turn::Serves,
            state: part.state,
            pid: match plan.app_named(&part.name) {
                Some(_) => part.command,
                None => part.init,
            },
            init: part.init,
            host_uid: part.host_uid,
            since: part.since,
            restarts: 0,
            in_a_row: 0,
            next_start: None,
            health: None,
            gave_up: false,
            last_exit: part.last_exit,
            privileges: part.privileges.clone(),
            cgroup: None,
            limits: limits(&part.name),
            notes: part.waits.iter().chain(&part.notes).cloned().collect(),
        });
        Ok(Status {
            plan: plan.clone(),
            compiled: vec![],
            supervisor: nix::unistd::getpid().as_raw(),
            supervisor_privileges: privileges::read().map_err(std::io::Error::other)?,
            since: self.since,
            starting: true,
            stopping: false,
            gated: self.gated,
            closed: std::collections::BTreeSet::new(),
            parts: parts.collect(),
            traffic: (plan.log > TrafficLog::Off).then(Default::default),
            refused_by_relay: plan.has_relay().then(Default::default),
            processes: self.processes(),
        })
    }

    /// Every process that there is.
    fn processes(&self) -> Vec<Process> {
        let host = hosts_user_namespace(&self.plan);
        let parts = self.parts.iter().flat_map(|part| {
            let held = part.privileges.as_ref();
            let securebits = held.map(|held| held.securebits);
            let init = part.init.map(|pid| (Role::Init, pid));
            let command = part.command.map(|pid| (Role::Command, pid));
            let all = init.into_iter().chain(command);
            all.filter_map(move |(role, pid)| {
                Process::look(&part.name, role, pid, securebits, host)
            })
        });
        of_this(None, host).chain(parts).collect()
    }

    /// Has an app's pid 1 run a command more, if its own runs.
    pub(super) fn exec(&self, request: Request, fds: &[OwnedFd]) -> Reply {
        let Request::Exec {
            part: name,
            command,
            term,
            terminal,
        } = request
        else {
            unreachable!("only this is asked for here");
        };
        let stack = &self.plan.stack;
        let Some(app) = self.plan.app_named(&name) else {
            return refused(format!("{stack} has no app `{name}`"), None);
        };
        let part = self.parts.iter().find(|part| part.name == name);
        let speaker = part
            .filter(|part| part.begun)
            .and_then(|part| part.speaker.as_ref());
        let Some(speaker) = speaker else {
            let what = match part {
                Some(part) if part.state == PartState::Ended => "has ended",
                _ => "does not run yet",
            };
            let hint = format!("{stack} is starting: lrpns status {stack} says what it waits for");
            return refused(format!("{name} {what}"), Some(hint));
        };
        let what = one_more(app, command, term, terminal);
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        match speaker.say(&what, &fds) {
            Ok(()) => Reply::Done,
            Err(e) => refused(
                format!("ask {name} to start the command: {e}"),
                Some(format!("{stack} is starting; try again when it is up")),
            ),
        }
    }
}

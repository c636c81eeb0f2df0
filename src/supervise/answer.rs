//! What clients ask of a running stack, and what they are answered.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::Supervisor;
use super::backoff::Backoff;
use super::clients::{Client, refused, tell};
use super::part::Part;
use super::prober::Prober;
use super::process::Order;
use crate::config::TrafficLog;
use crate::control::processes::{self, Role};
use crate::control::{Brief, LimitStatus, PartState, PartStatus, Reply, Request, Status};
use crate::log::budget::LeftOut;
use crate::log::{Reader, TrafficBuf};
use crate::part::secrets;
use crate::plan::AppPlan;
use crate::protocol::{Exit, ToStage};
use crate::stack::PartId;

impl Supervisor {
    pub(super) fn answer(&mut self, request: Request, fds: Vec<OwnedFd>, client: Client) {
        let reply = match request {
            Request::Status | Request::Look { processes: true } => {
                Reply::Status(Box::new(Status {
                    processes: self.processes(),
                    ..self.status()
                }))
            }
            Request::Inspect | Request::Look { processes: false } => {
                Reply::Status(Box::new(self.status()))
            }
            Request::Brief => Reply::Brief(Box::new(Brief::of(&self.status()))),
            Request::Down | Request::Kill => unreachable!("run ends the loop with it"),
            Request::Apply(_) | Request::HostTable | Request::HostRules => {
                unreachable!("it does not come this way")
            }
            Request::Restart { .. } | Request::Replace { .. } if self.stopping => {
                let stack = &self.ground.plan.stack;
                let hint = format!("lrpns status {stack} says what is waited for");
                refused(format!("{stack} is being taken down"), Some(hint))
            }
            Request::LogDirectory { path } => self.log_directory(path, fds),
            Request::Secrets { app, names } => {
                let copies = secrets::taken(names, fds);
                match copies.and_then(|copies| self.ground.renew(&app, &copies)) {
                    Ok(()) => Reply::Done,
                    Err(why) => refused(why, None),
                }
            }
            Request::Restart { part } => return self.restart(part.as_deref(), &client),
            Request::Replace { part } => return self.replace(part.as_deref(), fds, client),
            Request::Signal { part, signal } => self.signal(part.as_deref(), signal),
            Request::Logs { filter, follow } => {
                let parts = filter.parts.iter().map(String::as_str);
                let mut parts = parts.filter(|part| *part != TrafficBuf::PART);
                if let Some(reply) = parts.find_map(|part| self.find(part).err()) {
                    return tell(&client, *reply);
                }
                return self.journal.read(filter, follow, client, &self.sender);
            }
            Request::Enter { part } => {
                let answer = self.enter(&part);
                return tell(&client, answer);
            }
            Request::Load { rules } if cfg!(debug_assertions) => {
                let ground = Arc::clone(&self.ground);
                tokio::spawn(async move {
                    let reply = match ground.load_rules(rules).await {
                        Ok(()) => Reply::Done,
                        Err(e) => refused(e.to_string(), None),
                    };
                    tell(&client, reply);
                });
                return;
            }
            Request::Load { .. } => refused("only a debug build does that".to_owned(), None),
            Request::Exec {
                part,
                command,
                term,
                terminal,
            } => self.exec(&part, command, term, terminal, fds),
            Request::ProbeSupervisor => {
                let answer = self.probe_itself();
                return tell(&client, answer);
            }
            Request::Probe { part } => {
                let answer = self.probe(&part);
                return tell(&client, answer);
            }
        };
        tell(&client, reply);
    }

    pub(super) fn read_on(&mut self, reader: Reader, follow: bool, client: Client) {
        self.journal.read_on(reader, follow, client, &self.sender);
    }

    /// The part of that name; of two, the one that serves.
    pub(super) fn find(&self, name: &str) -> Result<PartId, Box<Reply>> {
        let ids = || self.parts.iter().map(|part| part.id);
        let its = || ids().filter(|id| self.ground.name(*id) == name);
        let found = its().find(|id| self.turn(*id).serves()).or(its().next());
        found.ok_or_else(|| {
            let names: Vec<_> = ids().map(|id| self.ground.name(id)).collect();
            Box::new(refused(
                format!("{} has no part `{name}`", self.ground.plan.stack),
                Some(format!("its parts are {}", names.join(", "))),
            ))
        })
    }

    pub(super) fn find_app(&self, name: &str) -> Result<PartId, Box<Reply>> {
        match self.find(name)? {
            id @ PartId::App(_) => Ok(id),
            _ => Err(Box::new(refused(format!("{name} is no app"), None))),
        }
    }

    pub(super) fn restart(&mut self, part: Option<&str>, client: &Client) {
        let ids = match part.map(|name| self.find(name)) {
            Some(Ok(id)) => vec![id],
            Some(Err(reply)) => {
                tell(client, *reply);
                return;
            }
            None => self.all_to_restart(),
        };
        for id in ids {
            if self.part(id).privileges.is_some() {
                self.note(id, "restart asked for".to_owned());
            }
            let part = self.part(id);
            part.backoff = Backoff::default();
            if part.launching {
                part.waiting_for_next.push(client.clone());
            } else {
                part.waiting.push(client.clone());
                self.launch(id);
            }
        }
    }

    /// Sends a signal to an app's command, or to every app's.
    pub(super) fn signal(&mut self, part: Option<&str>, signal: i32) -> Reply {
        let ids = match part.map(|name| self.find_app(name)) {
            Some(Ok(id)) => vec![id],
            Some(Err(reply)) => return *reply,
            None => self.ground.apps().collect(),
        };
        let mut sent = false;
        for id in ids {
            if let Some(process) = &self.part(id).process {
                let order = Order::Start(ToStage::Signal(signal), vec![]);
                sent |= process.orders.send(order).is_ok();
                let signal = Exit::Signal(signal);
                self.note(id, format!("{signal} sent, as asked for"));
            }
        }
        match sent {
            true => Reply::Done,
            false => refused(
                match part {
                    Some(name) => format!("{name} does not run"),
                    None => "no app runs".to_owned(),
                },
                None,
            ),
        }
    }

    fn enter(&mut self, name: &str) -> (Reply, Option<OwnedFd>) {
        let id = match self.find(name) {
            Ok(id) => id,
            Err(reply) => return (*reply, None),
        };
        let part = self.part(id);
        match (&part.process, &part.privileges) {
            (Some(process), Some(_)) => match process.pidfd.try_clone() {
                Ok(pidfd) => (Reply::Enter {}, Some(pidfd)),
                Err(e) => (refused(format!("copy a pidfd: {e}"), None), None),
            },
            _ => (refused(format!("{name} does not run"), None), None),
        }
    }

    /// Has an app's pid 1 run a command more; who asked hears from there how it goes.
    pub(super) fn exec(
        &mut self,
        name: &str,
        command: Vec<String>,
        term: Option<String>,
        terminal: bool,
        fds: Vec<OwnedFd>,
    ) -> Reply {
        let id = match self.find_app(name) {
            Ok(id) => id,
            Err(reply) => return *reply,
        };
        let what = one_more(self.ground.app_plan(id), command, term, terminal);
        let Some(process) = &self.part(id).process else {
            return refused(format!("{name} does not run"), None);
        };
        // A part that ends now closes the conversation, which tells.
        let _ = process.orders.send(Order::Start(what, fds));
        Reply::Done
    }

    /// Starts a prober in an app; the socket to it goes to who asked.
    fn probe(&mut self, name: &str) -> (Reply, Option<OwnedFd>) {
        let id = match self.find_app(name) {
            Ok(id) => id,
            Err(reply) => return (*reply, None),
        };
        let made = self.ground.own_program().and_then(|program| {
            let (ours, theirs) = crate::part::namespaces::socketpair()?;
            Ok((program, ours, theirs))
        });
        match (&self.part(id).process, made) {
            (Some(process), Ok((program, ours, theirs))) => {
                // A part that ends now closes the socket, which tells.
                let _ = process
                    .orders
                    .send(Order::Start(ToStage::Probe, vec![program, theirs]));
                (Reply::Probe, Some(ours))
            }
            (None, _) => (refused(format!("{name} does not run"), None), None),
            (_, Err(e)) => (refused(format!("make a socket pair: {e}"), None), None),
        }
    }

    fn probe_itself(&mut self) -> (Reply, Option<OwnedFd>) {
        let pair = crate::part::namespaces::socketpair();
        let made = pair.and_then(|(ours, theirs)| Ok((ours, Prober::start(theirs, self.life)?)));
        match made {
            Ok((ours, prober)) => {
                while self.launching.try_join_next().is_some() {}
                let prober = self.launching.spawn(prober.ended());
                if let Some(before) = self.prober.replace(prober) {
                    before.abort();
                }
                (Reply::Probe, Some(ours))
            }
            Err(e) => (refused(format!("start a prober: {e}"), None), None),
        }
    }

    pub(super) fn status(&self) -> Status {
        let plan = &self.ground.plan;
        let parts = self.parts.iter().map(|part| {
            let ids = match part.id {
                PartId::Sidecar => plan.sidecar,
                PartId::Relay => plan.relay,
                // It runs as these; a plan without has no such part.
                PartId::Egress => plan.egress.as_ref().map_or(plan.relay, |egress| egress.ids),
                PartId::App(_) => self.ground.app_plan(part.id).ids,
            };
            let process = part.process.as_ref();
            PartStatus {
                name: self.ground.name(part.id).to_owned(),
                turn: self.turn(part.id),
                state: part.state,
                pid: process.map(|p| p.command.unwrap_or(p.init)),
                init: process.map(|p| p.init),
                host_uid: plan.host_uid(ids),
                since: part.since,
                restarts: part.restarts,
                in_a_row: match part.state {
                    PartState::Running => part.backoff.in_a_row(part.runs_for()),
                    PartState::Starting | PartState::Ended => part.backoff.in_a_row(Duration::ZERO),
                },
                next_start: part.next_start,
                health: Self::health_status(part),
                gave_up: part.gave_up,
                last_exit: part.last_exit,
                privileges: part.privileges.clone(),
                cgroup: self
                    .ground
                    .cgroups
                    .path(&self.ground.cgroup_name(part.id))
                    .map(Into::into),
                limits: plan
                    .cgroup
                    .held(self.ground.limits(part.id))
                    .map(|(limit, held_by)| LimitStatus { limit, held_by })
                    .collect(),
                notes: self.notes(part),
            }
        });
        Status {
            plan: plan.clone(),
            compiled: self.ground.compiled().to_vec(),
            supervisor: nix::unistd::getpid().as_raw(),
            supervisor_privileges: self.privileges.clone(),
            since: self.since,
            starting: self.gated,
            stopping: self.stopping,
            gated: self.gated,
            closed: self.ground.closed(),
            parts: parts.collect(),
            traffic: (plan.log > TrafficLog::Off).then(|| self.sums.summary()),
            refused_by_relay: plan.has_relay().then(|| self.refused.sum()),
            // Asked for when somebody wants to know: it takes as long as the whole rest.
            processes: vec![],
        }
    }

    /// Every process of ours.
    pub(super) fn processes(&self) -> Vec<processes::Process> {
        let securebits = Some(self.privileges.securebits);
        let host = processes::hosts_user_namespace(&self.ground.plan);
        let look = |name: &str, role, pid, securebits| {
            processes::Process::look(name, role, pid, securebits, host)
        };
        let parts = self.parts.iter().flat_map(|part| {
            let name = self.ground.name(part.id);
            let securebits = part.privileges.as_ref().map(|held| held.securebits);
            let process = part.process.as_ref();
            let init = process.map(|process| (Role::Init, process.init));
            let second = match part.id {
                PartId::Egress => Role::Dialer,
                _ => Role::Command,
            };
            let command = process.and_then(|process| Some((second, process.command?)));
            let all = init.into_iter().chain(command);
            all.filter_map(move |(role, pid)| look(name, role, pid, securebits))
        });
        let ours = processes::of_this(securebits, host);
        ours.chain(parts).collect()
    }

    pub(super) fn notes(&self, part: &Part) -> Vec<String> {
        let mut notes = part.notes.clone();
        let cgroup = self.ground.cgroup_name(part.id);
        notes.extend(self.ground.cgroups.kept_from(&cgroup));
        let budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(budget) = budgets.get(self.ground.name(part.id)) {
            let budget = budget.lock().unwrap_or_else(PoisonError::into_inner);
            let LeftOut { lines, bytes } = budget.total();
            if bytes > 0 {
                notes.push(format!(
                    "{lines} lines, {bytes} bytes are left out of its log: it wrote too many a second"
                ));
            }
        }
        let leaving = self
            .leaving
            .iter()
            .filter(|process| process.lives())
            .count();
        if part.id == PartId::Relay && leaving > 0 {
            notes.push(format!(
                "{leaving} more, from before live changes, carry their last connections"
            ));
        }
        notes
    }
}

/// What has an app's pid 1 run a command more, with the app's environment and the terminal's type of who asks.
pub(super) fn one_more(
    app: &AppPlan,
    command: Vec<String>,
    term: Option<String>,
    terminal: bool,
) -> ToStage {
    let mut env = app.env.clone();
    if let Some(term) = term {
        env.entry("TERM".to_owned()).or_insert(term);
    }
    ToStage::Exec {
        command,
        env,
        terminal,
        program: false,
    }
}

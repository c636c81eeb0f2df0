//! A part's life: taken over when it is ready, started again when it has ended, given up when that is too often.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use super::backoff::{Backoff, Next};
use super::clients::{Client, refused, tell};
use super::heard::{Traffic, hear, hear_of_traffic};
use super::journal::event_line;
use super::process::{Life, Order, Process, watch};
use super::{Event, Outcome, Supervisor, health};
use crate::config::{Restart, RestartLimit, Stop};
use crate::confine::privileges::Privileges;
use crate::control::evidence::EndedPart;
use crate::control::{PartState, Reply};
use crate::part::container::{ContainerError, Event as ContainerEvent};
use crate::plan::Turn;
use crate::protocol::Exit;
use crate::stack::{Ground, Launched, PartId, StackError};
use crate::text::duration;
use crate::traffic;

/// A part as the supervisor sees it.
pub(super) struct Part {
    pub(super) id: PartId,
    /// Which start of the part its events must be of to count.
    pub(super) launch: u64,
    pub(super) state: PartState,
    pub(super) since: Timestamp,
    pub(super) restarts: u32,
    pub(super) backoff: Backoff,
    /// When it is started again, of one that has ended.
    pub(super) next_start: Option<Timestamp>,
    /// It is not started again for having been so too often.
    pub(super) gave_up: bool,
    pub(super) process: Option<Process>,
    /// How the command of the running process ended: its process ends next.
    pub(super) exit: Option<Exit>,
    pub(super) last_exit: Option<Exit>,
    /// When that was.
    last_end: Option<Timestamp>,
    /// Whether it was for want of memory.
    pub(super) out_of_memory: bool,
    pub(super) privileges: Option<Privileges>,
    pub(super) notes: Vec<String>,
    /// What its health checks have come to, as long as it runs.
    pub(super) health: Option<health::Watched>,
    /// It is being ended for being unhealthy.
    pub(super) ends_unhealthy: bool,
    /// A task is starting it again.
    pub(super) launching: bool,
    /// That task.
    pub(super) starting: Option<AbortHandle>,
    /// Dropped, it doesn't wait for the app to listen, and ends it.
    pub(super) give_up: Option<oneshot::Sender<()>>,
    /// Who waits for that.
    pub(super) waiting: Vec<Client>,
    /// Who has asked since, and waits for one start more: two at once would meet in the same namespaces.
    pub(super) waiting_for_next: Vec<Client>,
}

impl Supervisor {
    /// How a part is to end: all but apps, at once.
    pub(super) fn stop(&self, id: PartId) -> Stop {
        match id {
            PartId::App(_) => self.ground.app_plan(id).stop,
            PartId::Sidecar | PartId::Relay | PartId::Egress => Stop::default(),
        }
    }

    pub(super) fn part(&mut self, id: PartId) -> &mut Part {
        self.parts
            .iter_mut()
            .find(|part| part.id == id)
            .expect("what a part that is removed has said before is not listened to")
    }

    pub(super) fn is_current(&mut self, id: PartId, launch: u64) -> bool {
        let mut parts = self.parts.iter();
        parts.any(|part| part.id == id && part.launch == launch)
    }

    /// Takes over a part that is ready.
    pub(super) fn adopt(&mut self, id: PartId, launched: Launched) {
        let sender = self.sender.clone();
        let complaint = self.ground.plan.cgroup.complaint([self.ground.limits(id)]);
        let part = self.part(id);
        let Launched {
            container,
            privileges,
            notes,
            traffic,
            health,
        } = launched;
        let Ok(pidfd) = container.pidfd().try_clone_to_owned() else {
            // Out of descriptors: the part is ended by the container's drop, and started again like any that ended.
            let _ = sender.send(Event::Part {
                id,
                launch: part.launch,
                what: Ok(ContainerEvent::Gone),
            });
            return;
        };
        let (orders, orders_in) = mpsc::unbounded_channel();
        let (ended_in, ended) = oneshot::channel();
        let (held, life_in) = oneshot::channel();
        part.process = Some(Process {
            orders,
            life: Some(Life { held, ended }),
            pidfd,
            init: container.pid(),
            command: container.command(),
        });
        part.state = PartState::Running;
        part.exit = None;
        part.since = Timestamp::now();
        part.privileges = Some(privileges);
        part.notes = notes;
        part.notes.extend(complaint);
        let launch = part.launch;
        tokio::spawn(watch(
            (id, launch),
            container,
            orders_in,
            life_in,
            ended_in,
            sender,
        ));
        match (traffic, id) {
            (None, _) => {}
            (Some(socket), PartId::Relay) => {
                let apps = self.ground.plan.apps.iter();
                let relay = self
                    .refused
                    .begin(apps.map(|app| app.name.to_string()).collect());
                let read = move |message: &[u8]| {
                    let (refusals, apps, records) = traffic::wire::read_refusals(message)?;
                    let records = records.to_vec();
                    Some(Traffic::Refused {
                        relay,
                        refusals,
                        apps,
                        records,
                    })
                };
                hear_of_traffic(self.traffic_in.clone(), socket, id, read);
            }
            (Some(socket), _) => {
                let apps = self.ground.plan.apps.iter().filter(|app| app.turn.serves());
                self.sums.begin(apps.map(|app| app.name.as_str()));
                let read = |message: &[u8]| {
                    let (totals, records) = traffic::wire::read(message)?;
                    let records = records.to_vec();
                    Some(Traffic::Told { totals, records })
                };
                hear_of_traffic(self.traffic_in.clone(), socket, id, read);
            }
        }
        if self.is_job(id) {
            return self.wait_for_job(id);
        }
        // One that waits for the gate hears nothing but that it has opened.
        if id == PartId::Relay && !self.gated {
            self.listen_again();
        }
        let known = health.is_some();
        if self.watch_health(id, health) && !known {
            return;
        }
        for client in std::mem::take(&mut self.part(id).waiting) {
            tell(&client, Reply::Done);
        }
    }

    /// Starts a part again, in a task of its own: the loop goes on. There is one such task for a part at a time: two
    /// would meet in its namespaces.
    pub(super) fn launch(&mut self, id: PartId) {
        let part = self.part(id);
        if part.launching {
            return;
        }
        part.launching = true;
        part.state = PartState::Starting;
        part.next_start = None;
        part.gave_up = false;
        part.launch += 1;
        // One that has never been there is started for the first time.
        part.restarts += u32::from(part.privileges.is_some());
        part.health = None;
        part.ends_unhealthy = false;
        let launch = part.launch;
        let old = part.process.take();
        self.enforce();
        let stop = matches!(id, PartId::App(_)).then(|| self.stop(id));
        let user = self.journal.tee.user();
        while self.launching.try_join_next().is_some() {}
        let (ground, sender, lines, budgets) = (
            Arc::clone(&self.ground),
            self.sender.clone(),
            self.lines_in.clone(),
            Arc::clone(&self.budgets),
        );
        let (give_up, given_up) = oneshot::channel();
        let starting = self.launching.spawn(async move {
            if let Some(process) = old {
                process.end(stop).await;
            }
            let name = |app: usize| ground.plan.apps[app].name.as_str();
            let streams =
                |app: usize, pipes| hear(&lines, &budgets, name(app), user.as_ref(), pipes);
            let result = match id {
                PartId::Sidecar => ground.sidecar(true).await,
                PartId::Relay => ground.relay().await,
                PartId::Egress => ground.egress().await,
                PartId::App(index) => ground.relaunch_app(index, &streams, given_up).await,
            };
            let _ = sender.send(Event::Launched {
                id,
                launch,
                result: Box::new(result),
            });
        });
        let part = self.part(id);
        part.starting = Some(starting);
        part.give_up = Some(give_up);
    }

    /// A part is there again, or is not.
    pub(super) fn launched(
        &mut self,
        id: PartId,
        result: Result<Launched, StackError>,
    ) -> Option<Outcome> {
        self.part(id).launching = false;
        if id == PartId::Sidecar {
            self.sidecar_has_started();
        }
        let next = std::mem::take(&mut self.part(id).waiting_for_next);
        let asked_again = !next.is_empty();
        let outcome = match result {
            Ok(launched) => {
                self.adopt(id, launched);
                let again = if self.part(id).restarts > 0 {
                    " again"
                } else {
                    ""
                };
                self.note(id, format!("started{again}"));
                None
            }
            Err(e) => {
                let exit = match &e {
                    StackError::AppEnded { exit, .. } => *exit,
                    _ => Exit::Status(125),
                };
                self.note(id, e.to_string());
                for client in std::mem::take(&mut self.part(id).waiting) {
                    tell(&client, refused(e.to_string(), None));
                }
                (!asked_again).then(|| self.ended(id, exit)).flatten()
            }
        };
        if asked_again {
            self.part(id).waiting = next;
            self.launch(id);
        }
        outcome
    }

    /// A part's process said something.
    pub(super) fn part_said(
        &mut self,
        id: PartId,
        what: Result<ContainerEvent, ContainerError>,
    ) -> Option<Outcome> {
        match what {
            Ok(ContainerEvent::Started { pid }) => {
                if let Some(process) = &mut self.part(id).process {
                    process.command = pid;
                }
                None
            }
            // Whoever waits for it has been told.
            Ok(ContainerEvent::HandedOver) => None,
            Ok(ContainerEvent::Exited(exit)) => {
                self.note(id, format!("ended with {exit}"));
                self.part(id).exit = Some(exit);
                let stop = self.stop(id);
                if let Some(process) = &self.part(id).process {
                    // What it has left running gets its time too; if it was told to stop, it has been told so already.
                    let _ = process.orders.send(Order::Stop(stop));
                }
                None
            }
            Ok(ContainerEvent::Gone) => {
                let cgroup = self.ground.cgroup_name(id);
                if let Some(text) = self.ground.cgroups.kept_from_since(&cgroup) {
                    self.note(id, text);
                }
                let out_of_memory = self.ground.cgroups.ran_out_of_memory(&cgroup);
                self.part(id).out_of_memory = out_of_memory;
                if out_of_memory {
                    let most = self.ground.limits(id).memory.unwrap_or_default();
                    let ended = "ended by the kernel: it needed more than its";
                    self.note(id, format!("{ended} {most} bytes of memory"));
                }
                // Without a word: killed, and its command with it.
                let exit = self.part(id).exit.take();
                let exit = exit.unwrap_or(Exit::Signal(libc::SIGKILL));
                self.ended(id, exit)
            }
            // Its end as well, if it has told how its command ended: with something unread its socket ends by a reset.
            Err(e) => {
                let exit = self.part(id).exit.take();
                if exit.is_none() {
                    self.note(id, e.to_string());
                }
                self.ended(id, exit.unwrap_or(Exit::Status(125)))
            }
        }
    }

    /// A part is not there any more: start it again, or end with it.
    pub(super) fn ended(&mut self, id: PartId, exit: Exit) -> Option<Outcome> {
        let job = self.is_job(id);
        let again = match id {
            _ if !self.turn(id).serves() => false,
            // Without them the stack is nothing; the rules stay in force meanwhile, they are the kernel's.
            PartId::Sidecar | PartId::Relay | PartId::Egress => true,
            PartId::App(_) => match self.ground.app_plan(id).restart {
                Restart::Always => true,
                Restart::OnFailure => exit != Exit::Status(0),
                Restart::No => false,
            },
        };
        let limit = self.restart_limit(id);
        let name = self.ground.name(id).to_owned();
        let serves = self.turn(id).serves();
        let part = self.part(id);
        part.health = None;
        let again = again || (std::mem::take(&mut part.ends_unhealthy) && serves);
        let early = match part.process {
            // Those who wait for a job's end have it.
            Some(_) if !job => std::mem::take(&mut part.waiting),
            _ => vec![],
        };
        for client in early {
            tell(
                &client,
                refused(
                    format!("{name} ended with {exit} before it was healthy"),
                    None,
                ),
            );
        }
        // One that has never come to run has not run for long.
        let ran = match part.process.take() {
            Some(_) => part.runs_for(),
            None => Duration::ZERO,
        };
        part.last_exit = Some(exit);
        part.last_end = Some(Timestamp::now());
        part.state = PartState::Ended;
        part.launch += 1;
        self.enforce();
        let part = self.part(id);
        let next = again.then(|| part.backoff.ended(ran, Instant::now(), limit));
        match next {
            Some(Next::Again(pause)) => {
                self.again_after(id, pause);
                None
            }
            Some(Next::GiveUp(times)) => {
                part.gave_up = true;
                let limit = limit.map_or_else(String::new, |limit| limit.to_string());
                let text =
                    format!("is not started again: it has been {times} times, at most is {limit}");
                self.note(id, text);
                self.job_ended(id, exit);
                self.all_ended()
            }
            None => {
                self.job_ended(id, exit);
                self.all_ended()
            }
        }
    }

    fn restart_limit(&self, id: PartId) -> Option<RestartLimit> {
        match id {
            PartId::App(_) => self.ground.app_plan(id).restart_limit,
            // The stack is nothing without them.
            PartId::Sidecar | PartId::Relay | PartId::Egress => None,
        }
    }

    /// Has a part started again after a pause, and says so.
    fn again_after(&mut self, id: PartId, pause: Duration) {
        let sender = self.sender.clone();
        let part = self.part(id);
        part.state = PartState::Starting;
        part.next_start = Timestamp::now().checked_add(pause).ok();
        let launch = part.launch;
        let text = match part.backoff.in_a_row(Duration::ZERO) {
            1 => format!("is started again in {}", duration(pause)),
            times => format!(
                "is started again in {}, {times} times in a row by then",
                duration(pause)
            ),
        };
        self.note(id, text);
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let _ = sender.send(Event::Again { id, launch });
        });
    }

    /// A line of our own about a part.
    pub(super) fn note(&mut self, id: PartId, text: String) {
        let text = match self.turn(id) {
            Turn::Serves => text,
            Turn::Comes => format!("the one to come: {text}"),
            Turn::Goes => format!("the one before: {text}"),
        };
        let line = event_line(self.ground.name(id).to_owned(), text);
        self.journal.write(line);
    }
}

impl Part {
    pub(super) fn new(id: PartId) -> Self {
        Self {
            id,
            launch: 0,
            state: PartState::Starting,
            since: Timestamp::now(),
            restarts: 0,
            backoff: Backoff::default(),
            next_start: None,
            gave_up: false,
            process: None,
            exit: None,
            last_exit: None,
            last_end: None,
            out_of_memory: false,
            privileges: None,
            notes: vec![],
            health: None,
            ends_unhealthy: false,
            launching: false,
            starting: None,
            give_up: None,
            waiting: vec![],
            waiting_for_next: vec![],
        }
    }

    /// How long it has been running.
    pub(super) fn runs_for(&self) -> Duration {
        Timestamp::now().duration_since(self.since).unsigned_abs()
    }

    /// How it has ended, as far as it has.
    pub(super) fn ended(&self, ground: &Ground) -> EndedPart {
        let runs = self.process.is_some();
        EndedPart {
            name: ground.name(self.id).to_owned(),
            exit: self.last_exit.filter(|_| !runs).or(self.exit),
            out_of_memory: self.out_of_memory && !runs,
            since: Some(self.since),
            ended: match self.exit {
                Some(_) => Some(Timestamp::now()),
                None => self.last_end.filter(|_| !runs),
            },
            restarts: self.restarts,
        }
    }
}

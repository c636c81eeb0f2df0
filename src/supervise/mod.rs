//! The supervisor: one loop over everything that can happen to a running stack.
//!
//! # Theory of operation
//!
//! One thread, one channel of [`Event`]s. Small tasks wait for one thing each (a part's process, a pipe, a client of
//! the control socket, a signal) and say it here; all decisions are made in [`Supervisor::run`], so nothing needs a
//! lock. A part's process is owned by its task, which is told by a channel to signal or kill it.
//!
//! What an app writes comes by a channel of its own, since an app can write faster than anybody reads. It is short and
//! comes last: when it is full the app's pipe fills and the app waits, while events are heard of at once. A client that
//! follows the log and doesn't read is not waited for; it is told how many lines it has missed.
#![forbid(unsafe_code)]

mod answer;
mod apply;
mod backoff;
mod clients;
mod end;
mod gate;
mod health;
mod heard;
mod journal;
pub mod manager;
mod order;
mod part;
pub mod prober;
mod process;
mod replace;
mod rising;
mod shared;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use caps::Capability;
use jiff::Timestamp;
use nftables::schema::Nftables;
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use self::backoff::Backoff;
use self::clients::{Answer, Client, refused, serve, tell};
pub use self::end::the_end;
use self::end::{Ender, LINGERS, end_with, killed, watch_signals};
pub use self::gate::{Gate, Judgement};
use self::heard::{Budgets, Refused, Traffic, hear};
use self::journal::{
    Directories, Journal, LOG_BYTES, RECORD, TRAFFIC_BYTES, TRAFFIC_LINES, TRAFFIC_LINES_AT_ONCE,
    event_line,
};
pub use self::journal::{Tee, in_the_journal, more_files, record, systemd_runs};
use self::part::Part;
use self::process::{Left, Order, Process};
use self::rising::Rising;
pub use self::shared::lives;
use crate::confine::privileges::{self, Privileges};
use crate::confine::seccomp;
use crate::control::evidence::Remains;
use crate::control::{Apply, PartState, Reply, Request, Status};
use crate::log::budget::{Bucket, Rationed};
use crate::log::record::Record;
use crate::log::{LogBuf, LogLine, Reader, TrafficBuf};
use crate::net::publish::Listener;
use crate::part::cgroup::Cgroups;
use crate::part::container::{ContainerError, Event as ContainerEvent};
use crate::part::refused::Refusals;
use crate::plan::Plan;
use crate::protocol::{Channel, Exit};
use crate::stack::{
    Begun, EndTable, Ground, Launched, PartId, Progress, Stack, StackError, weaken,
};
use crate::sys::namespace::unshare;
use crate::traffic;
use crate::traffic::line::Names;

/// What a supervisor without root keeps once the stack is up, in its own user namespace, where it is nothing on the host:
/// open_tree(2) and mount_setattr(2), for what an app is given by a live change, which nobody else is there to open.
///
/// Root's keeps nothing. Starting a part again, joining the parts' user namespaces, signalling, and everything within them need
/// none: who made a user namespace has every capability in it (user_namespaces(7)). What the host has to do for a live change,
/// who makes the change does ([`apply`]).
const KEPT_WITHOUT_ROOT: [Capability; 1] = [Capability::CAP_SYS_ADMIN];
/// How many messages of the sidecar's may wait for the loop.
const TRAFFIC_WAITING: usize = 2;
/// How many lines may wait for the loop.
const LINES_WAITING: usize = 256;

/// Why a stack ended.
#[derive(Debug)]
pub enum Outcome {
    /// By `lrpns down` or a signal.
    Stopped,
    /// Its app ended and is not to be started again.
    AppEnded(Exit),
}

/// Everything that can happen.
enum Event {
    /// A part's process has something to say.
    Part {
        id: PartId,
        launch: u64,
        what: Result<ContainerEvent, ContainerError>,
    },
    /// What is left of an app after its time was up was killed.
    Killed { id: PartId, what: Left },
    /// A part was killed, and the kernel has not ended its pid 1.
    Lingers { id: PartId },
    /// A part was started again, or could not be.
    Launched {
        id: PartId,
        launch: u64,
        result: Box<Result<Launched, StackError>>,
    },
    /// The pause before a part is started again is over.
    Again { id: PartId, launch: u64 },
    /// The time of a job is over.
    Overdue { id: PartId, launch: u64 },
    /// A health check is done.
    Checked {
        id: PartId,
        launch: u64,
        report: Box<health::Report>,
    },
    /// Ports of apps were closed or opened.
    Entries(Box<health::EntriesChange>),
    /// A client asks.
    Asked(Request, Vec<OwnedFd>, Client),
    /// A client has taken what it was given of the log.
    ReadOn(Reader, bool, Client),
    /// A client wants a live change; the conversation goes on.
    Apply(Box<Apply>, Vec<OwnedFd>, Channel),
    /// The task that makes it wants something of the loop.
    Applying(apply::Step),
    /// The task that replaces an app wants something of the loop.
    Replacing(replace::Step),
    /// SIGTERM, SIGINT or SIGHUP.
    Signal(Signal),
}

/// A stack and all that watches it.
pub struct Supervisor {
    privileges: Privileges,
    ground: Arc<Ground>,
    /// The rules where the uplink ends.
    host_table: EndTable,
    /// What the host's table holds.
    host_rules: Nftables<'static>,
    gated: bool,
    parts: Vec<Part>,
    /// Relays that accept no more, and carry their last connections.
    leaving: Vec<Process>,
    /// The number of the next start of a relay, should there be none now.
    relays: u64,
    /// Whether a live change is under way.
    applying: bool,
    /// Whether an app is being replaced.
    replacing: replace::Replacing,
    /// How ports are closed and opened as health has it.
    entries: health::Entries,
    events: mpsc::UnboundedReceiver<Event>,
    sender: mpsc::UnboundedSender<Event>,
    lines: mpsc::Receiver<LogLine>,
    lines_in: mpsc::Sender<LogLine>,
    budgets: Budgets,
    traffic: mpsc::Receiver<Traffic>,
    sums: traffic::Sums,
    refused: Refused,
    traffic_in: mpsc::Sender<Traffic>,
    /// The tasks that start parts again; dropped, they take the processes with them.
    launching: JoinSet<()>,
    /// The task that waits for the end of a prober that is as the supervisor is; ended, it ends it.
    prober: Option<AbortHandle>,
    journal: Journal,
    /// Who asked for the end; answered by the end of this process.
    waiting_for_the_end: Vec<Client>,
    /// Whether nothing is to be waited for at the end.
    killing: bool,
    /// Whether it is being taken down.
    stopping: bool,
    /// Who wants it.
    ender: Ender,
    since: Timestamp,
    /// Who is told the status after a live change.
    changed: fn(&Status),
    /// What a prober does.
    life: prober::Life,
    watchdog: manager::Watchdog,
}

/// Brings a stack up, calls `ready`, supervises it until its end and takes it down.
///
/// The stack ends with the process that `lives_with` is a pidfd of, as by a signal, at whatever step it is. What the apps'
/// filters refuse is noted in `explain`, if that is given.
///
/// `ready` is told the status when the published ports answer, and what was said last. An app without a port that is waited
/// for shows nothing by which to know that it works: where there is one, `ready` is called after `settles`, and not at all
/// if everything has ended by then. `changed` is told it after a live change, also after one that was taken back. `life` is what a
/// prober does ([`prober`]). What there
/// is to know of the stack afterwards is left in `remains`, however it ends.
/// Every process of the stack has ended when this returns.
///
/// # Errors
/// [`StackError`] when the stack could not be brought up; then nothing of it is left.
#[allow(clippy::too_many_arguments)] // each is of another kind, and there is one caller
pub async fn run(
    plan: Plan,
    cgroups: Cgroups,
    listeners: Vec<Listener>,
    control: std::os::unix::net::UnixListener,
    gate: Option<Gate>,
    explain: Option<Refusals>,
    lives_with: Option<OwnedFd>,
    record: Record,
    tee: Tee,
    progress: &mut dyn FnMut(Progress<'_>),
    ready: impl FnOnce(&Status, &[LogLine]),
    changed: fn(&Status),
    life: prober::Life,
    settles: Option<Duration>,
    remains: &mut Remains,
) -> Result<Outcome, StackError> {
    let (sender, mut events) = mpsc::unbounded_channel();
    let io_error = |what| move |source: io::Error| StackError::Io { what, source };
    crate::sys::manager::connect();
    let ender = Ender::default();
    watch_signals(&sender, &ender).map_err(io_error("watch signals"))?;
    if let Some(process) = lives_with {
        end_with(process, sender.clone()).map_err(io_error("watch whom the stack is for"))?;
    }
    let offer = shared::Offer::default();
    serve(control, sender.clone(), ender.clone(), offer.clone())
        .map_err(io_error("watch the control socket"))?;

    let table = shared::table(&plan, &offer).await?;
    let (lines_in, mut lines) = mpsc::channel(LINES_WAITING);
    let budgets = Budgets::default();
    let user = tee.user();
    let mut journal = Journal {
        kept: LogBuf::new(LOG_BYTES),
        record,
        directories: Directories::new(),
        traffic: TrafficBuf::new(TRAFFIC_BYTES, Names::of(&plan)),
        tee,
        followers: vec![],
        following: vec![],
        reading: 0,
        traffic_lines: Rationed::by(Bucket::new(
            TRAFFIC_LINES,
            TRAFFIC_LINES_AT_ONCE,
            Instant::now(),
        )),
    };
    if let Some(complaint) = journal.record.complaint() {
        journal.kept.push(event_line(RECORD.to_owned(), complaint));
    }
    let (traffic_in, traffic) = mpsc::channel(TRAFFIC_WAITING);
    let mut waiting_for_the_end = vec![];
    let mut early = VecDeque::new();
    let stack = {
        let names: Vec<String> = plan.apps.iter().map(|app| app.name.to_string()).collect();
        let streams =
            |app: usize, pipes| hear(&lines_in, &budgets, &names[app], user.as_ref(), pipes);
        let rising = RefCell::new(Rising::of(&plan, gate.is_some()));
        let mut told = |told: Progress<'_>| match told {
            Progress::Part(name, now) => rising.borrow_mut().heard(name, now),
            told => progress(told),
        };
        let mut bring_up = Box::pin(Stack::bring_up(
            plan,
            cgroups,
            listeners,
            table,
            gate.is_some(),
            explain,
            &streams,
            &mut told,
        ));
        loop {
            tokio::select! {
                biased;
                stack = &mut bring_up => break stack,
                Some(event) = events.recv() => match event {
                    Event::Signal(signal) => break Err(StackError::Interrupted { by: Some(signal) }),
                    Event::Asked(Request::Down | Request::Kill, _, client) => {
                        waiting_for_the_end.push(client);
                        break Err(StackError::Interrupted { by: None });
                    }
                    Event::Asked(request, fds, client) if Rising::answers(&request) => {
                        let rising = rising.borrow();
                        journal.answer_early(&rising, request, &fds, client, &sender);
                    }
                    Event::ReadOn(reader, follow, client) => journal.read_on(reader, follow, client, &sender),
                    event => early.push_back(event),
                },
                Some(line) = lines.recv() => journal.hear(line),
            }
        }
    };
    let stack = match stack {
        Ok(stack) => stack,
        Err(e) => {
            // It has not been told to begin, and ends with the conversation.
            drop(gate);
            // What the app has said before it failed to start is the best explanation there is.
            drop(lines_in);
            let hurry = matches!(e, StackError::Interrupted { .. });
            let _answered_by_the_end = journal
                .hear_out(&mut lines, &mut events, &sender, hurry, Journal::hear)
                .await;
            journal.show_kept();
            remains.lines = journal.last();
            (remains.log, remains.journal) = journal.recorded();
            remains.by = ender.get().cloned();
            crate::part::container::reap_all()
                .await
                .map_err(io_error("wait for the parts to end"))?;
            return Err(e);
        }
    };
    let Stack {
        ground,
        host_table,
        host_rules,
        parts,
    } = stack;
    let owner = ground.plan.supervisor();
    let kept: &[Capability] = match owner {
        Some(_) if weaken().as_deref() != Some("supervisor-capability") => &[],
        _ => &KEPT_WITHOUT_ROOT,
    };
    let owner = owner.filter(|_| weaken().as_deref() != Some("supervisor-id"));
    let leaves = ground.plan.supervisor_stays().is_none();
    let give_up = || {
        let filter = match weaken().as_deref() {
            Some("supervisor-filter") => None,
            _ => Some(seccomp::supervisor().compile()?),
        };
        if leaves && weaken().as_deref() != Some("supervisor-network") {
            // What is open stays where it was opened: the ports, and the netlink sockets.
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(io_error("leave the host's network namespace"))?;
        }
        let given_up = privileges::give_up(owner, kept, filter.as_ref());
        given_up.map_err(StackError::Supervisor)
    };
    // What publishing takes is held until it is done.
    let privileges = match &gate {
        None => give_up(),
        Some(_) => privileges::read().map_err(StackError::Supervisor),
    }?;
    let mut supervisor = Supervisor {
        privileges,
        ground,
        host_table,
        host_rules,
        gated: gate.is_some(),
        parts: vec![],
        leaving: vec![],
        relays: 0,
        applying: false,
        replacing: replace::Replacing::default(),
        entries: health::Entries::default(),
        events,
        sender,
        lines,
        lines_in,
        budgets,
        traffic,
        sums: traffic::Sums::default(),
        refused: Refused::default(),
        traffic_in,
        launching: JoinSet::new(),
        prober: None,
        journal,
        waiting_for_the_end,
        killing: false,
        stopping: false,
        ender,
        since: Timestamp::now(),
        changed,
        life,
        watchdog: manager::Watchdog::of_this_process(),
    };
    for (id, begun) in parts {
        supervisor.parts.push(Part::new(id));
        match begun {
            Begun::Runs(launched) => supervisor.adopt(id, launched),
            Begun::Done(done) => supervisor.is_done(id, done),
        }
    }
    if let Some(gate) = gate {
        let mut auditor = Channel::new(gate.auditor).map_err(io_error("watch the audit"))?;
        let opened = supervisor.pass(&mut auditor, &mut early).await;
        let opened = opened.and_then(|()| {
            supervisor.privileges = give_up()?;
            progress(Progress::Done("attacked"));
            progress(Progress::Done("published"));
            Ok(())
        });
        if let Err(e) = opened {
            supervisor.journal.show_kept();
            let _answered_by_the_end = Box::pin(supervisor.take_down(true, remains)).await;
            // It finds nothing any more, nor anybody who answers, and takes its scratch stack down.
            while let Ok(Some(_)) = auditor.receive::<Judgement>().await {}
            crate::part::container::reap_all()
                .await
                .map_err(io_error("wait for the parts to end"))?;
            return Err(e);
        }
    }
    let ended = match settles.filter(|_| supervisor.has_an_unknown_app()) {
        Some(settles) => {
            // What an app that does well says meanwhile is for its log alone.
            let tee = std::mem::replace(&mut supervisor.journal.tee, Tee::Nobody);
            let ended = tokio::time::timeout(settles, supervisor.run(&mut early)).await;
            supervisor.journal.tee = tee;
            ended.ok()
        }
        None => None,
    };
    let outcome = match ended {
        Some(outcome) => {
            supervisor.journal.show_kept();
            outcome
        }
        None => {
            ready(&supervisor.status(), &supervisor.journal.last());
            supervisor.journal.show_kept();
            crate::sys::memory::give_back();
            match supervisor.all_ended() {
                Some(outcome) => outcome,
                None => supervisor.run(&mut early).await,
            }
        }
    };
    let hurry = matches!(outcome, Outcome::Stopped);
    let _answered_by_the_end = Box::pin(supervisor.take_down(hurry, remains)).await;
    crate::part::container::reap_all()
        .await
        .map_err(io_error("wait for the parts to end"))?;
    // Up to here others may ask for it, however long the apps took to end.
    offer.withdraw();
    Ok(outcome)
}

impl Supervisor {
    /// Whether there is an app of which nothing was waited for.
    fn has_an_unknown_app(&self) -> bool {
        let mut apps = self.ground.plan.apps.iter();
        apps.any(|app| {
            !app.job && app.health.is_none() && !app.publish.iter().any(|publish| publish.waited)
        })
    }

    async fn run(&mut self, early: &mut VecDeque<Event>) -> Outcome {
        loop {
            self.say_well_if_owed();
            let event = match early.pop_front() {
                Some(event) => event,
                // Events first: no app is so loud that `lrpns down` isn't heard.
                None => tokio::select! {
                    biased;
                    () = self.watchdog.is_due() => {
                        self.say_well();
                        continue;
                    }
                    // This value holds a sender of each, so neither channel can end.
                    Some(event) = self.events.recv() => event,
                    Some(line) = self.lines.recv() => {
                        self.journal.write(line);
                        continue;
                    }
                    Some(traffic) = self.traffic.recv() => {
                        self.took(traffic);
                        continue;
                    }
                },
            };
            match event {
                Event::Signal(_) => return Outcome::Stopped,
                Event::Asked(request @ (Request::Down | Request::Kill), _, client) => {
                    self.waiting_for_the_end.push(client);
                    self.killing = matches!(request, Request::Kill);
                    return Outcome::Stopped;
                }
                Event::Asked(request, fds, client) => self.answer(request, fds, client),
                Event::ReadOn(reader, follow, client) => self.read_on(reader, follow, client),
                Event::Apply(apply, fds, channel) => self.apply(*apply, fds, channel),
                Event::Applying(step) => {
                    if let Some(outcome) = self.step_of_apply(step) {
                        return outcome;
                    }
                }
                Event::Replacing(step) => self.step_of_replacing(step),
                Event::Part { id, launch, what } => {
                    if self.is_current(id, launch)
                        && let Some(outcome) = self.part_said(id, what)
                    {
                        return outcome;
                    }
                }
                Event::Killed { id, what } => {
                    if self.parts.iter().any(|part| part.id == id) {
                        let text = killed(what, self.stop(id));
                        self.note(id, text);
                    }
                }
                Event::Lingers { id } => self.note(id, LINGERS.to_owned()),
                Event::Again { id, launch } => {
                    if self.is_current(id, launch) {
                        self.launch(id);
                    }
                }
                Event::Overdue { id, launch } => {
                    if self.is_current(id, launch) {
                        self.overdue(id);
                    }
                }
                Event::Checked { id, launch, report } => {
                    if self.is_current(id, launch) {
                        self.checked(id, *report);
                    }
                }
                Event::Entries(change) => self.entries_changed(*change),
                Event::Launched { id, launch, result } => {
                    if self.is_current(id, launch)
                        && let Some(outcome) = self.launched(id, *result)
                    {
                        return outcome;
                    }
                }
            }
        }
    }
}

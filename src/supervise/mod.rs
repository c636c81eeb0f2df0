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
mod starting;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use caps::Capability;
use jiff::Timestamp;
use nftables::schema::Nftables;
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use self::backoff::Backoff;
use self::clients::{Answer, Client, refused, tell};
pub use self::end::the_end;
use self::end::{Ender, LINGERS, killed};
pub use self::gate::{Gate, Judgement};
use self::heard::{Budgets, Refused, Traffic};
use self::journal::Journal;
pub use self::journal::{Tee, in_the_journal, more_files, record, systemd_runs};
use self::part::Part;
use self::process::{Left, Order, Process};
pub use self::shared::lives;
use self::starting::Starting;
use crate::confine::privileges::{self, Privileges};
use crate::confine::seccomp;
use crate::control::evidence::Remains;
use crate::control::{Apply, PartState, Reply, Request, Status};
use crate::log::record::Record;
use crate::log::{LogLine, Reader};
use crate::part::container::{ContainerError, Event as ContainerEvent};
use crate::plan::Plan;
use crate::protocol::{Channel, Exit};
use crate::stack::{EndTable, Ground, Launched, Makings, PartId, Progress, StackError, weaken};
use crate::sys::namespace::unshare;
use crate::sys::watch;
use crate::traffic;

/// What a supervisor without root keeps once the stack is up, in its own user namespace, where it is nothing on the host:
/// open_tree(2) and mount_setattr(2), for what an app is given by a live change, which nobody else is there to open.
///
/// Root's keeps nothing. Starting a part again, joining the parts' user namespaces, signalling, and everything within them need
/// none: who made a user namespace has every capability in it (user_namespaces(7)). What the host has to do for a live change,
/// who makes the change does ([`apply`]).
const KEPT_WITHOUT_ROOT: [Capability; 1] = [Capability::CAP_SYS_ADMIN];

/// Why a stack ended.
#[derive(Debug)]
pub enum Outcome {
    /// By `lrpns down` or a signal.
    Stopped,
    /// Its app ended and is not to be started again.
    AppEnded(Exit),
}

/// A process that this one can't do without, by a descriptor that hangs up when it ends.
struct Watched {
    hangs_up: Option<AsyncFd<OwnedFd>>,
    has_ended: bool,
}

impl Watched {
    /// Should be called within a runtime. One that can't be watched is missed when it is needed.
    fn by(hangs_up: Option<OwnedFd>) -> Self {
        Self {
            hangs_up: hangs_up.and_then(|fd| watch::owned(fd).ok()),
            has_ended: false,
        }
    }

    /// Waits for its end. Never comes back if there is no such process.
    async fn end(&mut self) {
        let Some(fd) = &self.hangs_up else {
            return std::future::pending().await;
        };
        loop {
            let Ok(mut ready) = fd.readable().await else {
                return std::future::pending().await;
            };
            if watch::has_hung_up(fd.as_fd()).unwrap_or(false) {
                self.has_ended = true;
                return;
            }
            // An answer, for somebody else.
            ready.clear_ready();
        }
    }
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
    /// Whether who undoes the stack is still there, without whom no part can be put into its cgroup.
    undoer: Watched,
}

/// What a supervisor is given.
pub struct Given {
    /// What the stack is made of.
    pub makings: Makings,
    /// The control socket.
    pub control: std::os::unix::net::UnixListener,
    /// Who attacks it before its ports open.
    pub gate: Option<Gate>,
    /// A pidfd of a process that the stack ends with, as by a signal, at whatever step it is.
    pub lives_with: Option<OwnedFd>,
    /// Where its log is recorded.
    pub record: Record,
    /// What a prober does ([`prober`]).
    pub life: prober::Life,
    /// How long an app without a port that is waited for is looked at before the stack is said to be up: it shows nothing by
    /// which to know that it works.
    pub settles: Option<Duration>,
}

/// Is told the status of a stack that is up, and what was said last.
pub type Ready = Box<dyn FnOnce(&Status, &[LogLine])>;

/// Who is told how the stack does.
pub struct Output<'o> {
    /// Where the apps' output goes besides the log.
    pub tee: Tee,
    /// How far its start has come.
    pub progress: &'o mut dyn FnMut(Progress<'_>),
    /// Its status when the published ports answer, and what was said last. Where there is an app that [`Given::settles`] is for,
    /// it is called after that, and not at all if everything has ended by then.
    pub ready: Ready,
    /// Its status after a live change, also after one that was taken back.
    pub changed: fn(&Status),
}

/// Brings a stack up, says that it is ready, supervises it until its end and takes it down.
///
/// What there is to know of the stack afterwards is left in `remains`, however it ends. Every process of the stack has ended
/// when this returns.
///
/// # Errors
/// [`StackError`] when the stack could not be brought up; then nothing of it is left.
pub async fn run(
    given: Given,
    output: Output<'_>,
    remains: &mut Remains,
) -> Result<Outcome, StackError> {
    let Given {
        makings,
        control,
        gate,
        lives_with,
        record,
        life,
        settles,
    } = given;
    let Output {
        tee,
        progress,
        ready,
        changed,
    } = output;
    crate::sys::manager::connect();
    let offer = shared::Offer::default();
    let journal = Journal::begin(record, tee, &makings.plan);
    let mut starting = Starting::begin(journal, control, lives_with, &offer)?;
    let table = shared::table(&makings.plan, &offer).await?;
    let gated = gate.is_some();
    let stack = match starting.bring_up(makings, table, gated, progress).await {
        Ok(stack) => stack,
        Err(e) => {
            // It has not been told to begin, and ends with the conversation.
            drop(gate);
            let hurry = matches!(e, StackError::Interrupted { .. });
            starting.end(hurry, remains).await?;
            return Err(e);
        }
    };
    // What publishing takes is held until it is done.
    let privileges = match gated {
        false => give_up(&stack.ground.plan),
        true => privileges::read().map_err(StackError::Supervisor),
    }?;
    offer.complete(&stack.host_table);
    let (mut supervisor, mut early) = starting.supervise(stack, privileges, gated, changed, life);
    if let Some(gate) = gate {
        let mut auditor = Channel::new(gate.auditor).map_err(io_error("watch the audit"))?;
        let opened = supervisor.pass(&mut auditor, &mut early).await;
        let opened = opened.and_then(|()| {
            supervisor.privileges = give_up(&supervisor.ground.plan)?;
            progress(Progress::Done("attacked"));
            progress(Progress::Done("published"));
            Ok(())
        });
        if let Err(e) = opened {
            supervisor.journal.show_kept();
            let _answered_by_the_end = Box::pin(supervisor.take_down(true, remains)).await;
            // It finds nothing any more, nor anybody who answers, and takes its scratch stack down.
            while let Ok(Some(_)) = auditor.receive::<Judgement>().await {}
            reap_all().await?;
            return Err(e);
        }
    }
    let outcome = supervisor.until_the_end(settles, ready, &mut early).await;
    let hurry = matches!(outcome, Outcome::Stopped);
    let crippled = supervisor.undoer.has_ended;
    let _answered_by_the_end = Box::pin(supervisor.take_down(hurry, remains)).await;
    reap_all().await?;
    // Up to here others may ask for it, however long the apps took to end.
    offer.withdraw();
    match crippled {
        true => Err(StackError::Crippled),
        false => Ok(outcome),
    }
}

/// Gives up what the supervisor of a stack that is up, its published ports too, needs no more.
fn give_up(plan: &Plan) -> Result<Privileges, StackError> {
    let owner = plan.supervisor();
    let kept: &[Capability] = match owner {
        Some(_) if weaken().as_deref() != Some("supervisor-capability") => &[],
        _ => &KEPT_WITHOUT_ROOT,
    };
    let owner = owner.filter(|_| weaken().as_deref() != Some("supervisor-id"));
    let filter = match weaken().as_deref() {
        Some("supervisor-filter") => None,
        _ => Some(seccomp::supervisor().compile()?),
    };
    let leaves = plan.supervisor_stays().is_none();
    if leaves && weaken().as_deref() != Some("supervisor-network") {
        // What is open stays where it was opened: the ports, and the netlink sockets.
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(io_error("leave the host's network namespace"))?;
    }
    privileges::give_up(owner, kept, filter.as_ref()).map_err(StackError::Supervisor)
}

/// Waits for every process of the stack.
async fn reap_all() -> Result<(), StackError> {
    let reaped = crate::part::container::reap_all().await;
    reaped.map_err(io_error("wait for the parts to end"))
}

fn io_error(what: &'static str) -> impl Fn(io::Error) -> StackError {
    move |source| StackError::Io { what, source }
}

impl Supervisor {
    /// Whether there is an app of which nothing was waited for.
    fn has_an_unknown_app(&self) -> bool {
        let mut apps = self.ground.plan.apps.iter();
        apps.any(|app| {
            !app.job && app.health.is_none() && !app.publish.iter().any(|publish| publish.waited)
        })
    }

    /// Says that the stack is ready, once it has settled if it is to, and supervises it until it is to end.
    async fn until_the_end(
        &mut self,
        settles: Option<Duration>,
        ready: Ready,
        early: &mut VecDeque<Event>,
    ) -> Outcome {
        if let Some(outcome) = self.settle(settles, early).await {
            self.journal.show_kept();
            return outcome;
        }
        ready(&self.status(), &self.journal.last());
        self.journal.show_kept();
        crate::sys::memory::give_back();
        match self.all_ended() {
            Some(outcome) => outcome,
            None => self.run(early).await,
        }
    }

    /// Supervises an app that shows nothing by which to know that it works for as long as it `settles`; how the stack ended, if
    /// it has by then.
    async fn settle(
        &mut self,
        settles: Option<Duration>,
        early: &mut VecDeque<Event>,
    ) -> Option<Outcome> {
        let settles = settles.filter(|_| self.has_an_unknown_app())?;
        // What an app that does well says meanwhile is for its log alone.
        let tee = std::mem::replace(&mut self.journal.tee, Tee::Nobody);
        let ended = tokio::time::timeout(settles, self.run(early)).await;
        self.journal.tee = tee;
        ended.ok()
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
                    // Nothing of it could be started again, and a part that ended would stay so: better that whoever
                    // has started it does it anew.
                    () = self.undoer.end() => {
                        return Outcome::Stopped;
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

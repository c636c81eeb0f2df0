//! The supervisor: one loop over everything that can happen to a running stack.
//!
//! # Theory of operation
//!
//! One thread, one channel of [`Event`]s. Small tasks wait for one thing each (a part's process, a pipe, a client of
//! the control socket, a signal) and say it here; all decisions are made in [`Supervisor::run`], so nothing needs a
//! lock. A part's process is owned by its task, which is told by a channel to signal or kill it.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::config::Restart;
use crate::container::{Container, ContainerError, Event as ContainerEvent};
use crate::control::{PartState, PartStatus, Reply, Request, Status};
use crate::firewall;
use crate::init::privileges::Privileges;
use crate::logbuf::{Filter, LineSplitter, LogBuf, LogLine, Stream};
use crate::plan::Plan;
use crate::protocol::{Channel, Exit, ToStage};
use crate::publish::Listener;
use crate::stack::{APP_ENDS_WITHIN, Ground, Launched, Output, PartId, Stack, StackError};

/// What the log may take of memory, in bytes.
const LOG_BYTES: usize = 4 << 20;
/// A part that ends again and again is started again after this pause, doubled each time…
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// …up to this one…
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// …and from the first one again when it has run for this long.
const STEADY: Duration = Duration::from_secs(10);

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
    /// A line of a part's output is complete.
    Line(LogLine),
    /// A part's process has something to say.
    Part {
        id: PartId,
        launch: u64,
        what: Result<ContainerEvent, ContainerError>,
    },
    /// A part was started again, or could not be.
    Launched {
        id: PartId,
        launch: u64,
        result: Box<Result<Launched, StackError>>,
    },
    /// The pause before a part is started again is over.
    Again { id: PartId, launch: u64 },
    /// A client asks.
    Asked(Request, Client),
    /// SIGTERM, SIGINT or SIGHUP.
    Signal,
}

/// Who asked, and how to answer.
type Client = mpsc::UnboundedSender<(Reply, Option<OwnedFd>)>;

/// What can be asked of the task that owns a part's process.
enum Order {
    Signal(i32),
    Kill,
    /// Start a prober: the program, and its standard input.
    Probe(OwnedFd, OwnedFd),
}

/// A part as the supervisor sees it.
struct Part {
    id: PartId,
    /// Which start of the part its events must be of to count.
    launch: u64,
    state: PartState,
    since: Timestamp,
    restarts: u32,
    pause: Duration,
    process: Option<Process>,
    last_exit: Option<Exit>,
    privileges: Option<Privileges>,
    notes: Vec<String>,
    /// Who waits for it to be started again.
    waiting: Vec<Client>,
}

struct Process {
    orders: mpsc::UnboundedSender<Order>,
    ended: oneshot::Receiver<()>,
    pidfd: OwnedFd,
    init: i32,
    command: Option<i32>,
}

/// Where lines go while they are written: to the terminal of a foreground `up`.
pub type Tee = Box<dyn FnMut(&LogLine)>;

/// The tasks that read the apps' output.
type Pumps = Arc<std::sync::Mutex<Vec<tokio::task::JoinHandle<()>>>>;

/// A stack and all that watches it.
pub struct Supervisor {
    ground: Arc<Ground>,
    _host_table: firewall::Socket,
    parts: Vec<Part>,
    events: mpsc::UnboundedReceiver<Event>,
    sender: mpsc::UnboundedSender<Event>,
    pumps: Pumps,
    /// The tasks that start parts again; dropped, they take the processes with them.
    launching: JoinSet<()>,
    log: LogBuf,
    tee: Tee,
    followers: Vec<(Filter, Client)>,
    since: Timestamp,
}

/// Brings a stack up, calls `ready`, supervises it until its end and takes it down.
///
/// `ready` is told the status when the published ports answer. Every process of the stack has ended when this returns.
///
/// # Errors
/// [`StackError`] when the stack could not be brought up; then nothing of it is left.
pub async fn run(
    plan: Plan,
    listeners: Vec<Listener>,
    control: std::os::unix::net::UnixListener,
    tee: Tee,
    progress: &mut dyn FnMut(&'static str),
    ready: impl FnOnce(&Status),
) -> Result<Outcome, StackError> {
    let (sender, mut events) = mpsc::unbounded_channel();
    let io_error = |what| move |source: io::Error| StackError::Io { what, source };
    watch_signals(&sender).map_err(io_error("watch signals"))?;
    serve(control, sender.clone()).map_err(io_error("watch the control socket"))?;

    let names: Vec<String> = plan.apps.iter().map(|app| app.name.to_string()).collect();
    let pumps = Pumps::default();
    let output = |app: usize, output: Output| pump(&sender, &pumps, &names[app], output);
    let mut early = VecDeque::new();
    let stack = {
        let bring_up = Stack::bring_up(plan, listeners, &output, progress);
        tokio::pin!(bring_up);
        loop {
            tokio::select! {
                stack = &mut bring_up => break stack,
                event = events.recv() => match event {
                    Some(Event::Signal | Event::Asked(Request::Down, _)) => break Err(StackError::Interrupted),
                    Some(event) => early.push_back(event),
                    None => {}
                }
            }
        }
    };
    let stack = match stack {
        Ok(stack) => stack,
        Err(e) => {
            crate::container::reap_all().map_err(io_error("wait for the parts to end"))?;
            drain(&pumps).await;
            let mut tee = tee;
            explain(&mut early, &mut events, &mut tee);
            return Err(e);
        }
    };
    let Stack {
        ground,
        host_table,
        parts,
    } = stack;
    let mut supervisor = Supervisor {
        ground,
        _host_table: host_table,
        parts: vec![],
        events,
        sender,
        pumps,
        launching: JoinSet::new(),
        log: LogBuf::new(LOG_BYTES),
        tee,
        followers: vec![],
        since: Timestamp::now(),
    };
    for (id, launched) in parts {
        supervisor.parts.push(Part::new(id));
        supervisor.adopt(id, launched);
    }
    ready(&supervisor.status());
    let outcome = supervisor.run(early).await;
    supervisor.take_down().await;
    crate::container::reap_all().map_err(io_error("wait for the parts to end"))?;
    Ok(outcome)
}

/// What the app has said before it failed to start is the best explanation there is.
fn explain(
    early: &mut VecDeque<Event>,
    events: &mut mpsc::UnboundedReceiver<Event>,
    tee: &mut Tee,
) {
    while let Some(event) = early.pop_front().or_else(|| events.try_recv().ok()) {
        if let Event::Line(line) = event {
            tee(&line);
        }
    }
}

impl Supervisor {
    async fn run(&mut self, mut early: VecDeque<Event>) -> Outcome {
        loop {
            let event = match early.pop_front() {
                Some(event) => event,
                // This value holds a sender, so the channel can't end.
                None => self.events.recv().await.unwrap_or(Event::Signal),
            };
            match event {
                Event::Line(line) => self.write(line),
                Event::Signal => return Outcome::Stopped,
                Event::Asked(Request::Down, client) => {
                    // Answered by the end of the conversation, when this process ends.
                    self.followers.push((
                        Filter {
                            from: u64::MAX,
                            ..Filter::default()
                        },
                        client,
                    ));
                    return Outcome::Stopped;
                }
                Event::Asked(request, client) => self.answer(request, client),
                Event::Part { id, launch, what } => {
                    if self.is_current(id, launch)
                        && let Some(outcome) = self.part_said(id, what)
                    {
                        return outcome;
                    }
                }
                Event::Again { id, launch } => {
                    if self.is_current(id, launch) {
                        self.launch(id);
                    }
                }
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

    fn part(&mut self, id: PartId) -> &mut Part {
        self.parts
            .iter_mut()
            .find(|part| part.id == id)
            .expect("parts are never removed while a stack lives")
    }

    fn is_current(&mut self, id: PartId, launch: u64) -> bool {
        self.part(id).launch == launch
    }

    /// Takes over a part that is ready.
    fn adopt(&mut self, id: PartId, launched: Launched) {
        let sender = self.sender.clone();
        let part = self.part(id);
        let Launched {
            container,
            privileges,
            notes,
            command,
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
        part.process = Some(Process {
            orders,
            ended,
            pidfd,
            init: container.pid(),
            command,
        });
        part.state = PartState::Running;
        part.since = Timestamp::now();
        part.privileges = Some(privileges);
        part.notes = notes;
        let launch = part.launch;
        tokio::spawn(watch(id, launch, container, orders_in, ended_in, sender));
        for client in std::mem::take(&mut self.part(id).waiting) {
            let _ = client.send((Reply::Done, None));
        }
    }

    /// Starts a part again, in a task of its own: the loop goes on.
    fn launch(&mut self, id: PartId) {
        let part = self.part(id);
        part.state = PartState::Starting;
        part.launch += 1;
        part.restarts += 1;
        let launch = part.launch;
        let old = part.process.take();
        while self.launching.try_join_next().is_some() {}
        let (ground, sender, pumps) = (
            Arc::clone(&self.ground),
            self.sender.clone(),
            Arc::clone(&self.pumps),
        );
        self.launching.spawn(async move {
            if let Some(process) = old {
                process.end(matches!(id, PartId::App(_))).await;
            }
            let output =
                |app: usize, output| pump(&sender, &pumps, ground.name(PartId::App(app)), output);
            let result = match id {
                PartId::Sidecar => ground.sidecar().await,
                PartId::Relay => ground.relay().await,
                PartId::App(index) => ground.relaunch_app(index, &output).await,
            };
            let _ = sender.send(Event::Launched {
                id,
                launch,
                result: Box::new(result),
            });
        });
    }

    /// A part is there again, or is not.
    fn launched(&mut self, id: PartId, result: Result<Launched, StackError>) -> Option<Outcome> {
        match result {
            Ok(launched) => {
                self.adopt(id, launched);
                self.note(id, "started again".to_owned());
                None
            }
            Err(e) => {
                let exit = match &e {
                    StackError::AppEnded { exit, .. } => *exit,
                    _ => Exit::Status(125),
                };
                self.note(id, e.to_string());
                for client in std::mem::take(&mut self.part(id).waiting) {
                    let _ = client.send((refused(e.to_string(), None), None));
                }
                self.ended(id, exit)
            }
        }
    }

    /// A part's process said something.
    fn part_said(
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
            Ok(ContainerEvent::Exited(exit)) => {
                self.note(id, format!("ended with {exit}"));
                self.part(id).last_exit = Some(exit);
                None
            }
            Ok(ContainerEvent::Gone) => {
                let exit = self
                    .part(id)
                    .last_exit
                    .take()
                    .unwrap_or(Exit::Signal(libc::SIGKILL));
                self.ended(id, exit)
            }
            Err(e) => {
                self.note(id, e.to_string());
                self.ended(id, Exit::Status(125))
            }
        }
    }

    /// A part is not there any more: start it again, or end with it.
    fn ended(&mut self, id: PartId, exit: Exit) -> Option<Outcome> {
        let again = match id {
            // Without them the stack is nothing; the rules stay in force meanwhile, they are the kernel's.
            PartId::Sidecar | PartId::Relay => true,
            PartId::App(index) => match self.ground.plan.apps[index].restart {
                Restart::Always => true,
                Restart::OnFailure => exit != Exit::Status(0),
                Restart::No => false,
            },
        };
        let sender = self.sender.clone();
        let part = self.part(id);
        part.process = None;
        part.last_exit = Some(exit);
        part.state = PartState::Ended;
        part.launch += 1;
        if !again {
            let all_ended = self
                .parts
                .iter()
                .filter(|part| matches!(part.id, PartId::App(_)))
                .all(|part| part.state == PartState::Ended);
            return all_ended.then_some(Outcome::AppEnded(exit));
        }
        let ran = Timestamp::now().duration_since(part.since).unsigned_abs();
        part.pause = if ran >= STEADY {
            FIRST_PAUSE
        } else {
            (part.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE)
        };
        part.state = PartState::Starting;
        let (launch, pause) = (part.launch, part.pause);
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let _ = sender.send(Event::Again { id, launch });
        });
        None
    }

    fn answer(&mut self, request: Request, client: Client) {
        let reply = match request {
            Request::Status => Reply::Status(Box::new(self.status())),
            Request::Down => unreachable!("run ends the loop with it"),
            Request::Restart { part } => return self.restart(part.as_deref(), &client),
            Request::Logs { filter, follow } => {
                for line in self.log.lines(&filter) {
                    let _ = client.send((Reply::Line(line.clone()), None));
                }
                if follow {
                    self.followers.push((filter, client));
                    return;
                }
                Reply::Done
            }
            Request::Enter { part } => {
                let (reply, fd) = self.enter(&part);
                let _ = client.send((reply, fd));
                return;
            }
            Request::Probe { part } => {
                let (reply, fd) = self.probe(&part);
                let _ = client.send((reply, fd));
                return;
            }
        };
        let _ = client.send((reply, None));
    }

    fn find(&self, name: &str) -> Result<PartId, Reply> {
        let known = || self.parts.iter().map(|part| self.ground.name(part.id));
        self.parts
            .iter()
            .map(|part| part.id)
            .find(|id| self.ground.name(*id) == name)
            .ok_or_else(|| {
                let names: Vec<_> = known().collect();
                refused(
                    format!("{} has no part `{name}`", self.ground.plan.stack),
                    Some(format!("its parts are {}", names.join(", "))),
                )
            })
    }

    fn restart(&mut self, part: Option<&str>, client: &Client) {
        let ids = match part.map(|name| self.find(name)) {
            Some(Ok(id)) => vec![id],
            Some(Err(reply)) => {
                let _ = client.send((reply, None));
                return;
            }
            None => (0..self.ground.plan.apps.len()).map(PartId::App).collect(),
        };
        for id in ids {
            self.note(id, "restart asked for".to_owned());
            self.part(id).waiting.push(client.clone());
            self.part(id).pause = Duration::ZERO;
            self.launch(id);
        }
    }

    fn enter(&mut self, name: &str) -> (Reply, Option<OwnedFd>) {
        let id = match self.find(name) {
            Ok(id) => id,
            Err(reply) => return (reply, None),
        };
        let (user, env) = match id {
            PartId::App(index) => {
                let app = &self.ground.plan.apps[index];
                (app.ids.user(), app.env.clone())
            }
            PartId::Sidecar | PartId::Relay => (0, std::collections::BTreeMap::new()),
        };
        let part = self.part(id);
        match (&part.process, &part.privileges) {
            (Some(process), Some(privileges)) => match process.pidfd.try_clone() {
                Ok(pidfd) => {
                    let privileges = privileges.clone();
                    (
                        Reply::Enter {
                            user,
                            env,
                            privileges,
                        },
                        Some(pidfd),
                    )
                }
                Err(e) => (refused(format!("copy a pidfd: {e}"), None), None),
            },
            _ => (refused(format!("{name} does not run"), None), None),
        }
    }

    /// Starts a prober in an app; the socket to it goes to who asked.
    fn probe(&mut self, name: &str) -> (Reply, Option<OwnedFd>) {
        let id = match self.find(name) {
            Ok(id @ PartId::App(_)) => id,
            Ok(_) => return (refused(format!("{name} is no app"), None), None),
            Err(reply) => return (reply, None),
        };
        let made = self.ground.own_program().and_then(|program| {
            let (ours, theirs) = crate::namespaces::socketpair()?;
            Ok((program, ours, theirs))
        });
        match (&self.part(id).process, made) {
            (Some(process), Ok((program, ours, theirs))) => {
                // A part that ends now closes the socket, which tells.
                let _ = process.orders.send(Order::Probe(program, theirs));
                (Reply::Probe, Some(ours))
            }
            (None, _) => (refused(format!("{name} does not run"), None), None),
            (_, Err(e)) => (refused(format!("make a socket pair: {e}"), None), None),
        }
    }

    fn status(&self) -> Status {
        let plan = &self.ground.plan;
        let parts = self.parts.iter().map(|part| {
            let ids = match part.id {
                PartId::Sidecar => plan.sidecar,
                PartId::Relay => plan.relay,
                PartId::App(index) => plan.apps[index].ids,
            };
            let process = part.process.as_ref();
            PartStatus {
                name: self.ground.name(part.id).to_owned(),
                state: part.state,
                pid: process.map(|p| p.command.unwrap_or(p.init)),
                init: process.map(|p| p.init),
                host_uid: plan.host_uid(ids),
                since: part.since,
                restarts: part.restarts,
                last_exit: part.last_exit,
                privileges: part.privileges.clone(),
                notes: part.notes.clone(),
            }
        });
        Status {
            plan: plan.clone(),
            supervisor: nix::unistd::getpid().as_raw(),
            since: self.since,
            parts: parts.collect(),
        }
    }

    /// A line of our own about a part.
    fn note(&mut self, id: PartId, text: String) {
        self.write(LogLine {
            time: Timestamp::now(),
            part: self.ground.name(id).to_owned(),
            stream: Stream::Event,
            text,
            continues: false,
        });
    }

    fn write(&mut self, line: LogLine) {
        (self.tee)(&line);
        self.followers.retain(|(filter, client)| {
            let wanted = filter.from != u64::MAX
                && filter.part.as_ref().is_none_or(|part| *part == line.part)
                && filter.stream.is_none_or(|stream| stream == line.stream);
            !wanted || client.send((Reply::Line(line.clone()), None)).is_ok()
        });
        self.log.push(line);
    }

    /// Ends every part: the relay first, so that no port is open on what is going away; apps get SIGTERM and time.
    async fn take_down(&mut self) {
        let order = |id: PartId| match id {
            PartId::Relay => 0,
            PartId::App(_) => 1,
            PartId::Sidecar => 2,
        };
        self.parts.sort_by_key(|part| order(part.id));
        let (apps, others): (Vec<_>, Vec<_>) = self
            .parts
            .iter_mut()
            .filter_map(|part| Some((part.id, part.process.take()?)))
            .partition(|(id, _)| matches!(id, PartId::App(_)));
        self.launching.shutdown().await;
        for (_, process) in others {
            process.end(false).await;
        }
        futures_util::future::join_all(apps.into_iter().map(|(_, process)| process.end(true)))
            .await;
        drain(&self.pumps).await;
        while let Ok(event) = self.events.try_recv() {
            if let Event::Line(line) = event {
                self.write(line);
            }
        }
    }
}

impl Part {
    fn new(id: PartId) -> Self {
        Self {
            id,
            launch: 0,
            state: PartState::Starting,
            since: Timestamp::now(),
            restarts: 0,
            pause: Duration::ZERO,
            process: None,
            last_exit: None,
            privileges: None,
            notes: vec![],
            waiting: vec![],
        }
    }
}

impl Process {
    /// Ends it, politely first if it is an app, and waits until it has.
    async fn end(mut self, politely: bool) {
        if politely {
            let _ = self.orders.send(Order::Signal(libc::SIGTERM));
            if tokio::time::timeout(APP_ENDS_WITHIN, &mut self.ended)
                .await
                .is_ok()
            {
                return;
            }
        }
        let _ = self.orders.send(Order::Kill);
        let _ = self.ended.await;
    }
}

fn refused(why: String, hint: Option<String>) -> Reply {
    Reply::Refused { why, hint }
}

/// Owns a part's process until its end.
async fn watch(
    id: PartId,
    launch: u64,
    mut container: Container,
    mut orders: mpsc::UnboundedReceiver<Order>,
    ended: oneshot::Sender<()>,
    events: mpsc::UnboundedSender<Event>,
) {
    loop {
        tokio::select! {
            said = container.next() => {
                let over = matches!(said, Ok(ContainerEvent::Gone) | Err(_));
                if over {
                    container.kill().await;
                    let _ = events.send(Event::Part { id, launch, what: said });
                    break;
                }
                let _ = events.send(Event::Part { id, launch, what: said });
            }
            order = orders.recv() => match order {
                // EPIPE: it has ended, and that comes next.
                Some(Order::Signal(signal)) => drop(container.send(&ToStage::Signal(signal), &[]).await),
                Some(Order::Probe(program, socket)) => {
                    drop(container.send(&ToStage::Probe, &[program.as_fd(), socket.as_fd()]).await);
                }
                Some(Order::Kill) | None => {
                    container.kill().await;
                    break;
                }
            }
        }
    }
    // Nobody may be waiting for it.
    let _ = ended.send(());
}

/// Turns an app's pipes into lines.
fn pump(events: &mpsc::UnboundedSender<Event>, pumps: &Pumps, part: &str, output: Output) {
    for (stream, pipe) in [(Stream::Out, output.out), (Stream::Err, output.err)] {
        let (events, part) = (events.clone(), part.to_owned());
        let pump = tokio::spawn(async move {
            let say = |piece: crate::logbuf::Piece| {
                let _ = events.send(Event::Line(LogLine {
                    time: Timestamp::now(),
                    part: part.clone(),
                    stream,
                    text: piece.text,
                    continues: piece.continues,
                }));
            };
            let Ok(mut pipe) = tokio::net::unix::pipe::Receiver::from_owned_fd(pipe) else {
                return;
            };
            let mut splitter = LineSplitter::new();
            let mut chunk = vec![0; 16 << 10];
            // An error is an end as well: nothing more will come of this pipe.
            while let Ok(got @ 1..) = tokio::io::AsyncReadExt::read(&mut pipe, &mut chunk).await {
                splitter.push(&chunk[..got], say);
            }
            splitter.finish(say);
        });
        let mut pumps = pumps
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        pumps.retain(|pump| !pump.is_finished());
        pumps.push(pump);
    }
}

/// Waits until everything that the apps, which have ended, had written is an event.
async fn drain(pumps: &Pumps) {
    let pumps = std::mem::take(
        &mut *pumps
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner),
    );
    for pump in pumps {
        let _ = pump.await;
    }
}

fn watch_signals(events: &mpsc::UnboundedSender<Event>) -> io::Result<()> {
    for kind in [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
    ] {
        let (mut signals, events) = (signal(kind)?, events.clone());
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                let _ = events.send(Event::Signal);
            }
        });
    }
    Ok(())
}

/// Answers the control socket.
fn serve(
    listener: std::os::unix::net::UnixListener,
    events: mpsc::UnboundedSender<Event>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let own_uid = nix::unistd::geteuid().as_raw();
    tokio::spawn(async move {
        // An error is one client's (ECONNABORTED) or passes (EMFILE) when a client ends.
        loop {
            let Ok((client, _)) = listener.accept().await else {
                tokio::time::sleep(FIRST_PAUSE).await;
                continue;
            };
            let uid = client.peer_cred().map(|cred| cred.uid());
            if uid.is_ok_and(|uid| uid == own_uid || uid == 0) {
                tokio::spawn(converse(client, events.clone()));
            }
        }
    });
    Ok(())
}

/// One client: a request, then replies until either side ends.
async fn converse(client: tokio::net::UnixStream, events: mpsc::UnboundedSender<Event>) {
    let Ok(Ok(mut channel)) = client
        .into_std()
        .map(|client| Channel::new(OwnedFd::from(client)))
    else {
        return;
    };
    let Ok(Some((request, _))) = channel.receive::<Request>().await else {
        return;
    };
    let (replies, mut to_send) = mpsc::unbounded_channel::<(Reply, Option<OwnedFd>)>();
    if events.send(Event::Asked(request, replies)).is_err() {
        return;
    }
    loop {
        tokio::select! {
            reply = to_send.recv() => {
                let Some((reply, fd)) = reply else { return };
                let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
                if channel.send(&reply, &fds).await.is_err() {
                    return;
                }
            }
            // A client says nothing more; its end is all there is to hear.
            _ = channel.receive::<Request>() => return,
        }
    }
}

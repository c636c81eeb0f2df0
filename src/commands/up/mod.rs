//! `lrpns up` and `lrpns run`: config -> plan -> preflight -> bring up -> supervise -> take down.
//!
//! Everything here happens on one thread: with `-d`, the fork comes first; then what must be done before there is a
//! runtime (locks, ports, and rootless our own namespaces); then the runtime.
#![forbid(unsafe_code)]

mod undo;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use self::undo::{Undo, Undoer};
use super::advice::{self, case, hints};
use super::explain;
use super::gate;
use super::interrupt::{Heard, Interrupts, tell};
use super::{end_whoever_is, ended};
use crate::commands::failure::{FAILED, Failure, chain};
use crate::config::{Config, Origin};
use crate::control::evidence::{Cause, Ended, EndedPart, Remains};
use crate::control::{Client, PartState, Reply, Request, Status, is_gone, is_silent};
use crate::host::Host;
use crate::log::files;
use crate::log::record::Record;
use crate::log::screen::Screen;
use crate::log::streams::Attached;
use crate::log::{LogLine, Stream};
use crate::net::handed::Handed;
use crate::net::publish::Listener;
use crate::part::cgroup::{self, Cgroups};
use crate::part::namespaces;
use crate::part::refused::Refusals;
use crate::part::rootless;
use crate::plan::reach;
use crate::plan::resolve;
use crate::plan::{self, AppPlan, Mode, Plan};
use crate::protocol::Exit;
use crate::stack::{Makings, Progress, StackError, Wait};
use crate::state::{GlobalLock, Liveness, StackDir, StateRoot};
use crate::supervise::{self, Outcome, Tee, manager};
use crate::sys::process::{detach_with, null_standard_descriptors};
use crate::{preflight, protocol};

/// The step before [`crate::stack::STEPS`].
const CHECKED: &str = "checked";

/// What `up` is asked for beside the configuration.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wishes {
    /// `--strict-limits`.
    pub strict_limits: bool,
    /// `--gate`.
    pub gate: bool,
    /// `--explain`.
    pub explain: bool,
    /// `--timings`: from when.
    pub timings: Option<Instant>,
}

/// What each step has taken.
#[derive(Clone, Copy)]
struct Timings {
    begun: Instant,
    last: Instant,
}

impl Timings {
    fn from(begun: Instant) -> Self {
        Self { begun, last: begun }
    }

    /// A step is done: when, and what it has taken.
    fn done(&mut self, what: &str) -> String {
        let now = Instant::now();
        let ms = |since: Instant| (now - since).as_secs_f64() * 1e3;
        let line = format!("{:>8.1} ms {:>+8.1}  {what}", ms(self.begun), ms(self.last));
        self.last = now;
        line
    }
}

/// What is said first of all where nobody has named a file, so that it is known what runs, and who may reach it.
pub fn demo(config: &Config) -> Option<String> {
    if config.path.is_some() {
        return None;
    }
    let published = config.apps.iter().flat_map(|app| &app.publish);
    let published: Vec<String> = published
        .map(|publish| SocketAddr::new(publish.address, publish.host_port).to_string())
        .collect();
    let why = match config.origins.get("app.publish") {
        Some(Origin::Builtin) => "",
        _ => "there is no lrpns.toml here: ",
    };
    Some(format!(
        "{why}this is the built-in demo, {}, on {}{}",
        config.name,
        published.join(", "),
        match why {
            "" => "",
            _ => "; --demo publishes it on 0.0.0.0, lrpns init writes its file",
        }
    ))
}

/// Creates the stack; in the foreground until Ctrl-C, else until the published ports answer.
pub fn up(config: Config, detach: bool, wishes: Wishes) -> Result<ExitCode, Failure> {
    if detach {
        return detached(config, wishes, None);
    }
    let screen = Screen::new(std::io::stdout())
        .map_err(|e| Failure::unable(format!("open standard output: {e}")))?;
    let mut explained = vec![];
    let ended = supervise_here(
        config,
        wishes,
        Voice::terminal(screen.clone(), wishes.timings),
        None,
        handed()?,
        &mut explained,
    );
    screen.finish();
    explained.iter().for_each(|line| eprintln!("{line}"));
    match ended.map_err(Failure::of_the_stack)? {
        End::Already(message) => {
            eprintln!("{message}");
            Ok(ExitCode::SUCCESS)
        }
        End::Over(Outcome::Stopped, _) => Ok(ExitCode::SUCCESS),
        End::Over(Outcome::AppEnded(exit), advised) => {
            advice::tell(&advised.hints());
            Ok(ExitCode::from(u8::from(exit.code() != 0)))
        }
        End::Early(_, failure) => Err(failure),
    }
}

/// As a detached `up` without wishes, but the stack ends with the process that `lives_with` is a pidfd of.
pub fn up_with(config: Config, lives_with: OwnedFd) -> Result<ExitCode, Failure> {
    detached(config, Wishes::default(), Some(lives_with))
}

/// A stack around one command; its standard streams are the command's, its end too.
pub fn run(
    config: Config,
    tty: bool,
    interactive: bool,
    wishes: Wishes,
) -> Result<ExitCode, Failure> {
    let user = Attached::new(tty, interactive)
        .map_err(|e| Failure::unable(format!("open the standard streams: {e}")))?;
    let user = Arc::new(user);
    let voice = Voice::command(user.clone());
    let mut explained = vec![];
    let ended = supervise_here(config, wishes, voice, None, handed()?, &mut explained);
    user.detach();
    explained.iter().for_each(|line| eprintln!("{line}"));
    match ended? {
        End::Already(message) => Err(Failure::unable(message)),
        End::Over(Outcome::Stopped, _) => Ok(ExitCode::SUCCESS),
        End::Over(Outcome::AppEnded(exit), advised) => {
            // Who is at a terminal has seen what each command of theirs said.
            if !tty {
                advice::tell(&advised.hints());
            }
            Ok(ExitCode::from(exit.code()))
        }
        End::Early(exit, failure) => {
            let _ = failure.print();
            Ok(ExitCode::from(exit.code()))
        }
    }
}

/// How it ended.
enum End {
    /// The stack lives already; what to say about it.
    Already(String),
    /// It was brought up and has ended.
    Over(Outcome, Advised),
    /// Its app ended before it listened.
    Early(Exit, Failure),
}

/// What there is to go by for hints about a stack that has ended: they are found in files of the host's, which whoever asks for them
/// may read, and a supervisor that has dropped may not.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Advised {
    apps: Vec<AppPlan>,
    exit: Option<Exit>,
    said: Vec<LogLine>,
}

impl Advised {
    fn hints(&self) -> Vec<String> {
        match self.exit {
            // Of what has done its work there is nothing to advise.
            None | Some(Exit::Status(0)) => vec![],
            exit => hints(&self.apps, None, exit, &self.said),
        }
    }
}

/// Whom the supervisor tells.
struct Voice {
    progress: Box<dyn FnMut(Progress<'_>)>,
    ready: supervise::Ready,
    tee: Tee,
    /// Whether whoever started it waits for `ready` and sees nothing else.
    detached: bool,
    /// Whether something is left to be read when it has ended: not where its user has seen everything.
    leaves: bool,
}

impl Voice {
    /// A foreground `up`: progress on standard error, the log on standard output.
    fn terminal(screen: Screen, timings: Option<Instant>) -> Self {
        let stdout = std::io::stdout();
        let colour = stdout.is_terminal()
            && anstream::AutoStream::choice(&stdout) != anstream::ColorChoice::Never;
        let begun = Instant::now();
        Self {
            progress: Box::new(move |progress| {
                let elapsed = begun.elapsed().as_secs_f64() * 1e3;
                let what = match progress {
                    Progress::Done(step) => done(step),
                    Progress::App(what) | Progress::Waits(what) => what,
                    Progress::Part(..) => return,
                };
                match timings {
                    Some(_) => tell(what),
                    None => tell(&format!("{elapsed:>8.1} ms  {what}")),
                }
            }),
            detached: false,
            leaves: true,
            ready: Box::new(|status, _| eprintln!("{}\nCtrl-C takes it down", is_up_but(status))),
            tee: Tee::Live(Box::new(move |line| {
                screen.line(&line.human(colour));
                true
            })),
        }
    }

    /// `run`: the command's own output and nothing else, but for what goes wrong.
    fn command(user: Arc<Attached>) -> Self {
        Self {
            progress: Box::new(|_| {}),
            detached: false,
            leaves: false,
            ready: Box::new(|_, _| {}),
            tee: Tee::Bytes(user),
        }
    }
}

/// What a detached supervisor tells the command that started it.
#[derive(Serialize, Deserialize)]
enum Told {
    Step(String),
    App(String),
    Waits(String),
    Line(LogLine),
    /// What it is, and what was said last: what there is to say of it is said by who may read the files it is about.
    Ready(Box<Status>, Vec<LogLine>),
    Already(String),
    Failed(Failure),
    Over(Failure, Advised),
}

/// Supervises in a child of a session of its own; returns when that child says how it went.
fn detached(
    config: Config,
    wishes: Wishes,
    lives_with: Option<OwnedFd>,
) -> Result<ExitCode, Failure> {
    let unable = |what: &str, e: std::io::Error| Failure::unable(format!("{what}: {e}"));
    let (ours, theirs) = namespaces::socketpair().map_err(|e| unable("make a socket pair", e))?;
    let interrupts = Interrupts::watch().map_err(|e| unable("watch signals", e))?;
    let stack = config.name.clone();
    // The child supervises; what this process learns of it comes over the socket, and its end with the socket's.
    let (handed, names) = Handed::apart(handed()?);
    let lives = lives_with.is_some();
    let kept: Vec<OwnedFd> = std::iter::once(theirs)
        .chain(lives_with)
        .chain(handed)
        .collect();
    let supervisor = detach_with(kept, |kept| background(config, wishes, kept, lives, names))
        .map_err(|e| unable("clone", e))?;
    let its_end = || super::exec::wait(&supervisor).map_err(|e| unable("wait for its end", e));
    let verbose = std::io::stderr().is_terminal();
    let mut interrupted = None;
    loop {
        match interrupts
            .or_message(&ours)
            .map_err(|e| unable("hear from the supervisor", e))?
        {
            Heard::Interrupt(_) if interrupted.is_some() => {
                tell(&format!("the start of {stack} is being undone"));
                continue;
            }
            Heard::Interrupt(signal) => {
                tell(&format!(
                    "interrupted by {signal}: undoing the start of {stack}"
                ));
                interrupted = Some(signal);
                // ESRCH: it has ended, and what it had to say comes next.
                let signal = rustix::process::Signal::from_named_raw(signal as i32);
                let _ =
                    signal.map(|signal| rustix::process::pidfd_send_signal(&supervisor, signal));
                continue;
            }
            Heard::Message => {}
        }
        match protocol::receive::<Told>(&ours).map_err(|e| unable("hear from the supervisor", e))? {
            Some((Told::Step(step), _)) if verbose => tell(&format!("  {}", done(&step))),
            Some((Told::Step(_), _)) => {}
            Some((Told::App(what) | Told::Waits(what), _)) => tell(&what),
            Some((Told::Line(line), _)) => tell(&line.human(verbose)),
            // It came up just before it heard of the signal, and goes down.
            Some((Told::Ready(..), _)) if interrupted.is_some() => {}
            Some((Told::Ready(status, said), _)) => {
                let mut message = is_up_but(&status);
                for line in restless(&status, &said) {
                    message.push('\n');
                    message.push_str(&line);
                }
                tell(&message);
                return Ok(ExitCode::SUCCESS);
            }
            // These two it says last; when it has ended, really nothing is left of it.
            Some((Told::Already(message), _)) => {
                its_end()?;
                tell(&message);
                return Ok(ExitCode::SUCCESS);
            }
            Some((Told::Failed(failure), _)) => {
                its_end()?;
                return Err(failure);
            }
            Some((Told::Over(failure, evidence), _)) => {
                its_end()?;
                return Err(advised(failure, &evidence.hints()));
            }
            None => {
                its_end()?;
                return Err(match interrupted {
                    Some(by) => StackError::Interrupted { by: Some(by) }.into(),
                    None => Failure::unable("the supervisor ended without a word"),
                });
            }
        }
    }
}

/// The detached supervisor's whole life. It is given the socket to the command that started it, then, if the stack is to end
/// with some process, that process' pidfd, then the sockets of these names that were handed over.
fn background(
    config: Config,
    wishes: Wishes,
    kept: Vec<OwnedFd>,
    lives: bool,
    names: Vec<String>,
) -> i32 {
    let stack = config.name.clone();
    let mut kept = kept.into_iter().peekable();
    let Some(teller) = kept.next() else { return 1 };
    let lives_with = kept.next_if(|_| lives);
    let handed = Handed::together(kept, names);
    let teller = std::rc::Rc::new(teller);
    let tell = |message: &Told| {
        // The command that started us may have been interrupted; the stack goes on.
        let _ = protocol::send(&*teller, message, &[]);
    };
    if let Err(e) = leave_terminal() {
        tell(&Told::Failed(Failure::unable(format!(
            "leave the terminal: {e}"
        ))));
        return 1;
    }
    let (steps, lines, ready) = (teller.clone(), teller.clone(), teller.clone());
    let heard = std::rc::Rc::new(std::cell::Cell::new(true));
    let still_heard = heard.clone();
    let voice = Voice {
        progress: Box::new(move |progress| {
            let told = match progress {
                Progress::Done(step) => Told::Step(step.to_owned()),
                Progress::App(what) => Told::App(what.to_owned()),
                Progress::Waits(what) => Told::Waits(what.to_owned()),
                Progress::Part(..) => return,
            };
            let _ = protocol::send(&*steps, &told, &[]);
        }),
        detached: true,
        // The scratch stack of an audit, else.
        leaves: lives_with.is_none(),
        ready: Box::new(move |status, said| {
            let told = Told::Ready(Box::new(status.clone()), said.to_vec());
            let _ = protocol::send(&*ready, &told, &[]);
            // From now on there is nobody to hear; a full socket would only hold us up.
            let _ = rustix::net::shutdown(&*ready, rustix::net::Shutdown::Both);
            heard.set(false);
        }),
        tee: Tee::Lines(Box::new(move |line| {
            let heard = still_heard.get();
            if heard {
                let _ = protocol::send(&*lines, &Told::Line(line.clone()), &[]);
            }
            heard
        })),
    };
    match supervise_here(config, wishes, voice, lives_with, handed, &mut vec![]) {
        Ok(End::Already(message)) => tell(&Told::Already(message)),
        Ok(End::Over(Outcome::AppEnded(exit), advised)) => {
            // Heard only if it was never said to be up.
            let message =
                format!("{stack} has ended: its app ended with {exit} right after its start");
            tell(&match exit {
                Exit::Status(0) => Told::Already(message),
                _ => Told::Over(Failure::failed(message).of_the_stack(), advised),
            });
        }
        Ok(End::Over(..)) => {}
        Ok(End::Early(_, failure)) | Err(failure) => tell(&Told::Failed(failure.of_the_stack())),
    }
    0
}

/// What a service manager has handed over.
fn handed() -> Result<Vec<Handed>, Failure> {
    Handed::all().map_err(|e| {
        Failure::unable(format!("take the sockets that $LISTEN_FDS tells of: {e}"))
            .hint("a service manager sets it, with LISTEN_PID and LISTEN_FDNAMES (sd_listen_fds(3)); unset it")
    })
}

/// A session of our own, and the null device on the three standard descriptors.
fn leave_terminal() -> std::io::Result<()> {
    rustix::process::setsid()?;
    supervise::the_end().thread_unblock()?;
    null_standard_descriptors()?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// Claims the stack, brings it up and supervises it until its end. What there is to say with `--explain` is in `explained`.
fn supervise_here(
    config: Config,
    wishes: Wishes,
    mut voice: Voice,
    lives_with: Option<OwnedFd>,
    handed: Vec<Handed>,
    explained: &mut Vec<String>,
) -> Result<End, Failure> {
    if wishes.explain {
        explain::can(&config)?;
    }
    let mut timings = wishes.timings.map(Timings::from);
    // Before there is anything of the stack that it could keep alive.
    let gate = match wishes.gate {
        true => Some(gate::auditor(&config.name)?),
        false => None,
    };
    // Whatever is made from here on (sockets, files) is ours alone.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let mut ours = match claim(&config, &handed, &mut voice.progress)? {
        Turn::Already(message) => return Ok(End::Already(message)),
        Turn::Ours(ours) => *ours,
    };
    if let Some(timings) = &mut timings {
        (voice.progress)(Progress::App(&timings.done("the configuration is a plan")));
    }
    ours.forget_the_last()?;
    let prepared = match ours.prepare(wishes.strict_limits, handed, &mut voice) {
        Ok(prepared) => prepared,
        Err(failure) => {
            if let Some(path) = &ours.plan.cgroup.path {
                // The failure is what there is to tell.
                let _ = cgroup::remove(path);
            }
            ours.state.remove(&config.name, ours.global)?;
            return Err(failure);
        }
    };
    drop(ours.global);
    // With the plans of all other stacks: this process lives as long as its own.
    drop(ours.host);

    let mut progress = timed(voice.progress, timings);
    if wishes.timings.is_some() {
        progress(Progress::Done(CHECKED));
    }
    files::tidy_some(&Host::logs());
    let mut remains = Remains::default();
    let outline = ours.plan.clone();
    let refusals = wishes.explain.then(Refusals::default);
    // Whoever has made a stack for himself sees for himself whether it works.
    let settles = (voice.detached && lives_with.is_none()).then_some(SETTLES_WITHIN);
    let ready = voice.ready;
    let output = supervise::Output {
        tee: beside(&prepared.record, voice.tee),
        progress: &mut progress,
        ready: Box::new(|status, said| {
            ready(status, said);
            tell_systemd(status);
        }),
        changed: tell_systemd,
    };
    let given = supervise::Given {
        makings: Makings {
            plan: ours.plan,
            cgroups: prepared.cgroups,
            listeners: prepared.listeners,
            explain: refusals.clone(),
        },
        control: prepared.control,
        gate,
        lives_with,
        record: prepared.record,
        life: crate::audit::agent::as_the_supervisor,
        settles,
    };
    let runtime = prepared.runtime;
    let ended = runtime.block_on(supervise::run(given, output, &mut remains));
    let said = remains.lines.clone();
    if let Some(refusals) = &refusals {
        *explained = explain::lines(refusals, &outline.apps);
    }
    manager::is_down();
    let document = voice.leaves.then(|| document(&outline, remains, &ended));
    let removed = prepared.undoer.end(document.as_deref());
    // Who has asked for `down` learns that it is done by the end of the conversation, and whoever follows a log by the
    // same. Dropping the runtime here would close those sockets while this process and its lock still live, and a
    // `lrpns up` right after the `down` would find the stack alive. So they stay open until the kernel closes them with
    // everything else that this process has; nothing in the runtime has a destructor that matters outside of it.
    std::mem::forget(runtime);
    let end = end_of(ended, outline.apps, said)?;
    removed?;
    Ok(end)
}

/// A stack that is this command's to make.
struct Ours {
    /// Until the supervisor hears of them, to the end of this process: there is something to be undone from here on.
    _held_back: HeldBack,
    claimed: StackDir,
    plan: Plan,
    host: Host,
    global: GlobalLock,
    state: StateRoot,
}

/// Whose turn it is to make a stack.
enum Turn {
    /// This command's.
    Ours(Box<Ours>),
    /// Nobody's: it lives already; what to say about it.
    Already(String),
}

/// Makes a plan and claims the stack; while it is another's, waits until that one is up or gone.
fn claim(
    config: &Config,
    handed: &[Handed],
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Turn, Failure> {
    let state = Host::state_root();
    loop {
        let held_back = HeldBack::signals()?;
        let global = state.lock()?;
        if state.settle(&config.name, &global)? == Liveness::Crashed {
            ended::note_crash(&state, &config.name, &global);
        }
        let mut host = Host::look_for(config)?;
        host.handed = handed.iter().filter_map(Handed::of_a_unit).collect();
        let plan = resolve::plan(config, &host)?;
        if let Some(claimed) = state.claim(&config.name, &global)? {
            return Ok(Turn::Ours(Box::new(Ours {
                _held_back: held_back,
                claimed,
                plan,
                host,
                global,
                state,
            })));
        }
        drop((global, held_back));
        if let Some(message) = already(config, &plan, &host, progress)? {
            return Ok(Turn::Already(message));
        }
    }
}

/// What a claimed stack is brought up with, and taken away by.
struct Prepared {
    listeners: Vec<Listener>,
    control: UnixListener,
    cgroups: Cgroups,
    record: Record,
    undoer: Undoer,
    runtime: tokio::runtime::Runtime,
}

impl Ours {
    /// Ends and removes what an earlier supervisor may have left: one that was killed.
    fn forget_the_last(&self) -> Result<(), Failure> {
        if let Some(owner) = self.plan.supervisor() {
            end_whoever_is(owner)?;
        }
        let before = self.state.plan(&self.plan.stack);
        if let Some(left) = before.and_then(|plan| plan.cgroup.path) {
            cgroup::remove(&left).map_err(Failure::unable)?;
        }
        Ok(())
    }

    /// Looks whether the stack can be, saves its plan, and makes what there must be before there is a runtime; rootless, this
    /// process is root of its own namespaces from here on.
    fn prepare(
        &mut self,
        strict_limits: bool,
        handed: Vec<Handed>,
        voice: &mut Voice,
    ) -> Result<Prepared, Failure> {
        let (plan, claimed) = (&mut self.plan, &self.claimed);
        let preflight::Passed { listeners, notes } =
            preflight::check(plan, &self.host, strict_limits, handed)
                .map_err(|problems| preflight::describe(plan.stack.as_str(), &problems))?;
        for note in &notes {
            (voice.progress)(Progress::App(note));
        }
        claimed.save(plan)?;
        let control = claimed.listen()?;
        let record = match voice.leaves {
            true => supervise::record(plan, None, plan.supervisor()).map_err(unrecorded)?,
            false => Record::new(None, None, None),
        };
        let placement = plan.cgroup.clone();
        let cgroups = limit(plan, strict_limits)?;
        if plan.cgroup != placement {
            claimed.save(plan)?;
        }
        if plan.mode == Mode::Rootless {
            rootless::become_root_of_own_namespaces(plan.subordinate)
                .map_err(|e| Failure::unable(&e).hint(rootless::HINT))?;
        }
        let undo = Undo {
            state: self.state.clone(),
            stack: plan.stack.clone(),
            run: plan.run.clone(),
            cgroup: plan.cgroup.path.clone(),
            root: plan.supervisor().is_some(),
        };
        let (undoer, door) = Undoer::begin(undo, claimed)
            .map_err(|e| Failure::unable(format!("clone who undoes the stack: {e}")))?;
        let runtime = crate::sys::runtime::of_this_thread()
            .map_err(|e| Failure::unable(format!("make a runtime: {e}")))?;
        Ok(Prepared {
            listeners,
            control,
            cgroups: cgroups.behind(door),
            record,
            undoer,
            runtime,
        })
    }
}

/// The same, with what each step has taken where that is wanted.
fn timed(
    mut progress: Box<dyn FnMut(Progress<'_>)>,
    mut timings: Option<Timings>,
) -> impl FnMut(Progress<'_>) {
    move |what| match (what, &mut timings) {
        (Progress::Done(step), Some(timings)) => {
            progress(Progress::App(&timings.done(done(step))));
        }
        (what, _) => progress(what),
    }
}

/// Whom lines are shown to, beside where they are recorded: else each would be in the journal twice.
fn beside(record: &Record, tee: Tee) -> Tee {
    match tee {
        Tee::Lines(_) | Tee::Live(_) if record.is_in_the_journal() && goes_to_the_journal() => {
            Tee::Nobody
        }
        tee => tee,
    }
}

/// How it ended, with what there is to go by for hints, or the hints: of a failure they are here.
fn end_of(
    ended: Result<Outcome, StackError>,
    apps: Vec<AppPlan>,
    said: Vec<LogLine>,
) -> Result<End, Failure> {
    let e = match ended {
        Ok(Outcome::AppEnded(exit)) => {
            let advised = Advised {
                apps,
                exit: Some(exit),
                said,
            };
            return Ok(End::Over(Outcome::AppEnded(exit), advised));
        }
        Ok(outcome) => return Ok(End::Over(outcome, Advised::default())),
        Err(e) => e,
    };
    let hints = match &e {
        StackError::AppEnded { app, exit, .. }
        | StackError::EndedUnaccepting { app, exit, .. }
        | StackError::EndedBefore { app, exit, .. }
        | StackError::EndedListening { app, exit }
        | StackError::EndedUnhealthy { app, exit }
        | StackError::JobFailed { app, exit } => {
            let (exit, hints) = (*exit, hints(&apps, Some(app), Some(*exit), &said));
            return Ok(End::Early(exit, advised(e.into(), &hints)));
        }
        StackError::NotListening {
            app,
            port,
            listening,
            ..
        } => {
            let case = case(&apps, Some(app), None, &said);
            case.map_or_else(Vec::new, |case| case.elsewhere(port.port, listening))
        }
        StackError::Path { app, .. } => {
            let case = case(&apps, Some(app), None, &said);
            case.map_or_else(Vec::new, |case| case.deaf())
        }
        StackError::Unhealthy { app, .. } | StackError::JobGoesOn { app, .. } => {
            hints(&apps, Some(app), None, &said)
        }
        _ => vec![],
    };
    Err(advised(e.into(), &hints))
}

/// Whether standard output is the journal's, by `$JOURNAL_STREAM` (systemd.exec(5)).
fn goes_to_the_journal() -> bool {
    let Ok(stat) = rustix::fs::fstat(std::io::stdout()) else {
        return false;
    };
    let own = format!("{}:{}", stat.st_dev, stat.st_ino);
    std::env::var("JOURNAL_STREAM").is_ok_and(|stream| stream == own)
}

/// The log can't be recorded where the file wants it.
pub(super) fn unrecorded(why: String) -> Failure {
    Failure::unable(format!("log: {why}"))
        .hint("log.dir names another directory; log.to = \"auto\" does without what can't be had")
}

/// What there is to know of a stack that has ended.
fn document(plan: &Plan, mut remains: Remains, ended: &Result<Outcome, StackError>) -> Vec<u8> {
    if let Err(StackError::AppEnded { app, exit, .. }) = ended
        && remains.parts.is_empty()
    {
        remains.parts.push(EndedPart {
            name: app.clone(),
            exit: Some(*exit),
            out_of_memory: false,
            since: None,
            ended: Some(Timestamp::now()),
            restarts: 0,
        });
    }
    let (cause, why, exit) = match ended {
        Ok(Outcome::Stopped) => (Cause::Stopped, "stopped".to_owned(), 0),
        Ok(Outcome::AppEnded(exit)) => {
            let apps = match plan.apps.as_slice() {
                [app] => format!("its app {} ended", app.name),
                _ => "the last of its apps ended".to_owned(),
            };
            let why = format!("{apps} with {exit}, and is not started again");
            (Cause::AppEnded, why, exit.code())
        }
        Err(e @ StackError::Interrupted { .. }) => (Cause::Stopped, e.to_string(), 1),
        Err(e) => {
            let exit = match e {
                StackError::AppEnded { exit, .. } => exit.code(),
                _ => FAILED,
            };
            (Cause::Failed, chain(e), exit)
        }
    };
    let hints = match ended {
        // One that is a server has not done its work.
        Ok(Outcome::AppEnded(exit))
            if *exit != Exit::Status(0) || plan.apps.iter().any(|app| !app.publish.is_empty()) =>
        {
            hints(&plan.apps, None, Some(*exit), &remains.lines)
        }
        _ => vec![],
    };
    let mut document = Ended::new(plan, remains, cause, why, exit);
    document.hints = hints;
    serde_json::to_vec(&document).unwrap_or_default()
}

/// How long a detached stack whose app publishes nothing that is waited for is looked at before it is said to be up: most of
/// what fails at its start does within this.
const SETTLES_WITHIN: Duration = Duration::from_secs(1);

/// The same with these hints, if there are any, in place of its own.
fn advised(failure: Failure, hints: &[String]) -> Failure {
    if hints.is_empty() {
        return failure;
    }
    failure.hint(hints.join("\nhint: "))
}

/// Apps that have ended, or end again and again, while nothing was waited for: how, and what they said last.
fn restless(status: &Status, said: &[LogLine]) -> Vec<String> {
    let mut lines = vec![];
    for part in &status.parts {
        let Some(app) = status.plan.app_named(&part.name) else {
            continue;
        };
        let Some(exit) = part.last_exit else { continue };
        if app.job && exit == Exit::Status(0) {
            continue;
        }
        let again = match part.restarts {
            times if part.gave_up => {
                format!("and is not started again: it has been {times} times")
            }
            _ if part.state == PartState::Ended => "and is not started again".to_owned(),
            0 => "and is started again".to_owned(),
            times => format!("and was started again {times} times"),
        };
        lines.push(format!(
            "but {} has ended with {exit} {again}; it wrote:",
            part.name
        ));
        let own = said.iter().filter(|line| {
            line.part == part.name && matches!(line.stream, Stream::Out | Stream::Err)
        });
        let own: Vec<&LogLine> = own.collect();
        let last = &own[own.len().saturating_sub(LINES_SHOWN)..];
        lines.extend(last.iter().map(|line| line.human(false)));
        let hints = hints(
            std::slice::from_ref(app),
            Some(&part.name),
            Some(exit),
            said,
        );
        lines.extend(hints.iter().map(|hint| format!("hint: {hint}")));
    }
    lines
}

/// The parts of a stack that was up before which are not well, a line each.
fn ill(status: &Status) -> String {
    let mut text = String::new();
    for part in &status.parts {
        let shown = part.shown(status.plan.app_named(&part.name));
        if part.in_a_row > 0 || part.gave_up {
            let exit = part.last_exit.map_or_else(String::new, |exit| {
                format!(
                    ", it has ended with {exit}; lrpns logs {}/{}",
                    status.plan.stack, part.name
                )
            });
            text.push_str(&format!("\nbut {} is {shown}{exit}", part.name));
        }
    }
    text
}

/// How many lines of an app are shown with how it ended.
const LINES_SHOWN: usize = 10;

/// Signals that would end this process wait as long as this lives, unless the supervisor takes them.
struct HeldBack;

impl HeldBack {
    fn signals() -> Result<Self, Failure> {
        let held = supervise::the_end().thread_block();
        held.map_err(|e| Failure::unable(format!("hold signals back: {e}")))?;
        Ok(Self)
    }
}

impl Drop for HeldBack {
    fn drop(&mut self) {
        // It is refused for nothing but an argument that is wrong.
        let _ = supervise::the_end().thread_unblock();
    }
}

/// Makes the stack's cgroups; what they can't hold after all is no longer in the plan.
fn limit(plan: &mut Plan, strict: bool) -> Result<Cgroups, Failure> {
    let parts: Vec<_> = plan
        .limits()
        .map(|(part, limits)| (part, *limits))
        .collect();
    let (cgroups, placement) = Cgroups::make(&plan.cgroup, &parts).map_err(Failure::unable)?;
    plan.cgroup = placement;
    match preflight::limits(plan).filter(|_| strict) {
        Some(problem) => Err(preflight::describe(plan.stack.as_str(), &[problem])),
        None => Ok(cgroups),
    }
}

/// The stack lives: waits until it is up, says whether it is what was asked for; `None` when it has ended meanwhile, or
/// did not come up, and now it is our turn. For a supervisor that was stopped nobody waits.
fn already(
    config: &Config,
    fresh: &Plan,
    host: &Host,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Option<String>, Failure> {
    let stack = &fresh.stack;
    let mut ask = || -> std::io::Result<_> {
        let client = Client::connect(&host.state.control(stack))?;
        client.ask(&Request::Status)?;
        let mut wait = Wait::begin();
        while !client.has_answered_by(wait.next())? {
            if client.is_stopped() {
                return Err(std::io::ErrorKind::TimedOut.into());
            }
            if let Some(since) = wait.due() {
                let since = since.as_secs();
                let what =
                    format!("waiting for {stack}, which is being started already, for {since} s");
                progress(Progress::Waits(&what));
            }
        }
        client.reply()
    };
    match ask() {
        Ok(Some((Reply::Status(status), _)))
            if resolve::again(config, host, &status.plan)
                .is_ok_and(|wanted| status.plan.asks_for_the_same_as(&wanted)) =>
        {
            Ok(Some(format!(
                "{}, as before; nothing was changed{}",
                is_up(&status),
                ill(&status)
            )))
        }
        Ok(Some((Reply::Status(_), _))) => Err(Failure::failed(format!(
            "{stack} is up with another configuration; nothing was changed"
        ))
        .hint(format!(
            "lrpns apply {stack} changes it while it runs; what that can't, down and up do"
        ))),
        Ok(Some(_)) => Err(super::answered_something_else(stack)),
        Ok(None) => Ok(None),
        Err(e) if is_gone(&e) => Ok(None),
        Err(e) if is_silent(&e) => Err(super::silent(stack)),
        Err(e) => Err(Failure::unable(format!(
            "ask the supervisor of {stack}: {e}"
        ))),
    }
}

/// A step in words.
fn done(step: &str) -> &str {
    match step {
        CHECKED => "the machine can do it, ports are bound",
        "namespaces" => "namespaces are made",
        "parts" => "parts have dropped their privileges, the sidecar's rules are in force",
        "rules" => "the host's table is in force",
        "links" => "links are up",
        "commands" => "commands run",
        "listening" => "apps listen",
        "path" => "apps answer through the sidecar",
        "attacked" => "the audit has passed",
        "published" => "ports are published",
        other => other,
    }
}

/// The same with what it does without.
fn is_up_but(status: &Status) -> String {
    let plan = &status.plan;
    let complaint = plan
        .cgroup
        .complaint(plan.limits().map(|(_, limits)| limits));
    let incomplete = plan.apps.iter().filter_map(|app| {
        let case = case(std::slice::from_ref(app), None, None, &[])?;
        Some(format!("hint: {}", case.incomplete()?))
    });
    let lines: Vec<String> = std::iter::once(is_up(status))
        .chain(complaint)
        .chain(incomplete)
        .collect();
    lines.join("\n")
}

/// What `systemctl status` says of the unit is what the stack is now.
fn tell_systemd(status: &Status) {
    manager::is_up(&is_up(status));
}

/// One line about a stack that is up.
fn is_up(status: &Status) -> String {
    let ports: Vec<String> = reach::ranges(&status.plan)
        .iter()
        .map(|range| {
            let via = match range.first.via {
                plan::Transport::Dnat => "dnat",
                plan::Transport::Relay => "relay",
            };
            format!(
                "{} -> {} port {} by {via}, {}",
                range.listen(),
                range.app.name,
                range.app_ports(),
                range.first.why
            )
        })
        .collect();
    let egress = match &status.plan.egress {
        Some(egress) => format!("; {egress}"),
        None => String::new(),
    };
    if ports.is_empty() {
        return format!("{} is up, nothing is published{egress}", status.plan.stack);
    }
    format!("{} is up: {}{egress}", status.plan.stack, ports.join("; "))
}

//! `lrpns apply`: configuration -> plan -> what changes -> preflight -> the conversation with the supervisor.
//!
//! # Theory of operation
//! This process reads and asks; a child of its own, in a session of its own, talks to the supervisor and changes the host's
//! table when it is told to (`crate::supervise`), with NET_ADMIN and nothing else; for an app that joins, or a volume that
//! comes, also with SETUID and SETGID, which the id maps of a new user namespace take; for a port below 1024 that moves to
//! another address, with NET_BIND_SERVICE. So a hangup, Ctrl-C or the
//! `kill -9` of the command that somebody waits at is a "no" that the child hears, whether it is asked for a yes by then or
//! not, and it is still there to take the host's
//! table back. Should somebody kill that one too, the supervisor takes its own part back.
//!
//! It makes, limits and removes the cgroups of apps that join, change, are replaced or leave, as it is told to, for the apps of
//! the two plans and nothing else, and hands over the way into them ([`cgroup::Entrance`]).
//!
//! What a stack is by root's own word is in its `plan.json`, which these two alone write, and `lrpns restart --rolling`. What the supervisor says that it is
//! is compared with it before anything follows from that ([`Plan::seated`]); when the change stays, what is saved is the plan
//! that was asked for, with the apps where the supervisor says that they are.
#![forbid(unsafe_code)]

mod diff;

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;

use caps::Capability;
use futures_util::future::FutureExt;
use nftables::schema::Nftables;
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags};
use serde::{Deserialize, Serialize};

use crate::cli::Source;
use crate::commands::failure::{Failure, interrupted_by};
use crate::commands::interrupt::{Heard, Interrupts, tell};
use crate::commands::up::unrecorded;
use crate::commands::{
    Instead, Named, answered_something_else, as_saved, ask_with, configuration_or, ended, print,
    print_json, reply, restart, status_of,
};
use crate::config::Protocol;
use crate::confine::privileges;
use crate::control::{Apply, Applying, Client, Reply, Request, Said};
use crate::firewall;
use crate::host::Host;
use crate::names::{PartName, StackName};
use crate::net::publish;
use crate::net::publish::Listener;
use crate::part::cgroup::{self, Entrance};
use crate::part::namespaces::{self, Itself};
use crate::plan::change::{self, Change};
use crate::plan::limits::Placement;
use crate::plan::resolve;
use crate::plan::{AppPlan, Mode, Plan, Turn, UplinkEnd};
use crate::preflight;
use crate::protocol::{self, Exit};
use crate::stack::{Open, Opened, StackError};
use crate::state::{self, Staged};
use crate::supervise;
use crate::sys::namespace::setns;
use crate::sys::process::{Cloned, clone3, exit_now};
use crate::text::harmless_lines;
use diff::Line;

/// What the command line says.
pub struct Options {
    /// Take it back unless confirmed within so many seconds.
    pub confirm: Option<u64>,
    /// Change nothing.
    pub dry_run: bool,
    /// Say it as JSON.
    pub json: bool,
}

/// What it takes to open for an app what it is given of the host's, and to map its ids.
const OPENS: [Capability; 4] = [
    Capability::CAP_SETUID,
    Capability::CAP_SETGID,
    // open_tree(2) and mount_setattr(2).
    Capability::CAP_SYS_ADMIN,
    // The directories on the way may be somebody else's.
    Capability::CAP_DAC_READ_SEARCH,
];

/// Brings a running stack to what the configuration says.
pub fn apply(source: &Source, options: &Options) -> Result<ExitCode, Failure> {
    // Where nothing else is said, what it was made from: the built-in example would be a great change to it.
    let config = configuration_or(source, Named::Too, |stack| {
        Ok(Instead::of(&status_of(stack)?.plan))
    })?;
    let stack = &config.name;
    let running = status_of(stack)?.plan;
    // What is there twice has no one place to compare with.
    if let Some(app) = running.apps.iter().find(|app| !app.turn.serves()) {
        return Err(Failure::failed(format!(
            "{stack}: {} is being replaced; nothing was changed",
            app.name
        ))
        .hint(format!(
            "try again when that is over: lrpns events {stack} says so"
        )));
    }
    let host = Host::look_for(&config)?;
    let mut wanted = resolve::again(&config, &host, &running)?;
    let change = change::between(&running, &wanted).map_err(|e| {
        let hint = format!("lrpns down {stack} && lrpns up {stack}");
        Failure::failed(format!("{stack}: {e}; nothing was changed")).hint(match e.instead() {
            Some(instead) => format!("{instead}, or {hint}"),
            None => hint,
        })
    })?;
    for app in &mut wanted.apps {
        // Its connections end with it.
        if change
            .restart
            .iter()
            .any(|part| app.name.as_str() == part.part)
        {
            app.closing.clear();
        }
    }
    let report = Report::new(&running, &wanted, change)?;
    if !report.changed {
        eprintln!("{stack} is as the configuration says; nothing was changed");
        return report.end(options, false);
    }
    let _ = anstream::stderr().write_all(report.keys().as_bytes());
    let passed = preflight::check_change(&wanted, &running, &host).map_err(|problems| {
        preflight::describe_as(&format!("{stack} can't be changed to that"), &problems)
    })?;
    for note in &passed.notes {
        eprintln!("{note}");
    }
    if options.dry_run {
        if !options.json {
            print(&report.rules())?;
        }
        return report.end(options, false);
    }
    let running = as_saved(stack, &running)?;
    let mut keep = vec![];
    let opens = |app: &AppPlan| {
        let before = running.app(&app.name);
        before.is_none_or(|before| !app.is_given_as(before))
    };
    if wanted.apps.iter().any(opens) {
        keep.extend(OPENS);
    }
    hand_over_log(stack, &running, &wanted)?;
    // What is opened has them from there.
    restart::renew(&running, |name| {
        let mut again = report.change.restart.iter();
        again.any(|part| part.part == name.as_str()) && !wanted.app(name).is_some_and(opens)
    })?;
    let mut moved = publish::moved_ports(&wanted, &running).into_iter();
    if moved.any(|publish| publish.listen.port() < host.first_user_port) {
        keep.push(Capability::CAP_NET_BIND_SERVICE);
    }
    let order = Apply {
        running,
        wanted,
        confirm: options.confirm,
    };
    carry_out(stack, order, &passed.listeners, &keep)?;
    eprintln!("{stack}: done");
    report.end(options, true)
}

/// Opens what the log is to be in, and hands it over, as the supervisor may not be able to.
fn hand_over_log(stack: &StackName, running: &Plan, wanted: &Plan) -> Result<(), Failure> {
    let files = supervise::more_files(wanted, &running.record, wanted.supervisor());
    let Some(files) = files.map_err(unrecorded)? else {
        return Ok(());
    };
    let request = Request::LogDirectory {
        path: files.path().to_owned(),
    };
    let client = ask_with(stack, &request, &[files.directory()])?;
    match reply(&client, stack)?.0 {
        Reply::Done => Ok(()),
        _ => Err(answered_something_else(stack)),
    }
}

/// The difference, for people and for programs.
#[derive(Serialize)]
struct Report {
    stack: StackName,
    /// Whether there is a difference.
    changed: bool,
    /// Whether it is in force now.
    applied: bool,
    #[serde(flatten)]
    change: Change,
    rules: Vec<RulesChange>,
}

/// The difference of one table.
#[derive(Serialize)]
struct RulesChange {
    /// `sidecar` or `host`: whose network namespace it is in.
    namespace: &'static str,
    removed: Vec<String>,
    added: Vec<String>,
    #[serde(skip)]
    lines: Vec<Line>,
}

impl Report {
    fn new(running: &Plan, wanted: &Plan, change: Change) -> Result<Self, Failure> {
        let mut rules = vec![];
        let host = diff::rules(
            &firewall::host_rules(running),
            &firewall::host_rules(wanted),
        );
        for (namespace, lines) in [("sidecar", diff::sidecar(running, wanted)), ("host", host)] {
            let lines = lines.map_err(Failure::unable)?;
            let only = |which: fn(&Line) -> Option<&String>| -> Vec<String> {
                let found = lines.iter().filter_map(which);
                found.map(|line| line.trim().to_owned()).collect()
            };
            rules.push(RulesChange {
                namespace,
                removed: only(|line| match line {
                    Line::Removed(line) => Some(line),
                    _ => None,
                }),
                added: only(|line| match line {
                    Line::Added(line) => Some(line),
                    _ => None,
                }),
                lines,
            });
        }
        Ok(Self {
            stack: wanted.stack.clone(),
            changed: !change.is_empty(),
            applied: false,
            change,
            rules,
        })
    }

    /// What changes, in keys and parts.
    fn keys(&self) -> String {
        let (bold, plain) = (anstyle::Style::new().bold(), anstyle::Reset);
        let mut text = String::new();
        for part in &self.change.restart {
            // Names that the supervisor has said are among them.
            let because = harmless_lines(&part.because.join(", "));
            let how = match part.rolling {
                true => "is replaced by another",
                false => "starts again",
            };
            text += &format!("{bold}{}{plain} {how}: {because}\n", part.part);
            for why in &part.why {
                text += &format!("  {}\n", harmless_lines(why));
            }
        }
        for app in &self.change.added {
            text += &format!("{bold}{app}{plain} joins\n");
        }
        for app in &self.change.removed {
            text += &format!("{bold}{app}{plain} leaves\n");
        }
        if !self.change.live.is_empty() {
            text += &format!("live: {}\n", harmless_lines(&self.change.live.join(", ")));
        }
        for (what, ports) in [
            ("opened", &self.change.opened),
            ("closed", &self.change.closed),
        ] {
            if !ports.is_empty() {
                text += &format!("{what}: {}\n", ports.join(", "));
            }
        }
        text
    }

    /// What changes in the rules.
    fn rules(&self) -> String {
        let (red, green, plain) = (
            anstyle::AnsiColor::Red.on_default(),
            anstyle::AnsiColor::Green.on_default(),
            anstyle::Reset,
        );
        let mut text = String::new();
        for table in self.rules.iter().filter(|table| !table.lines.is_empty()) {
            text += &format!("# {}\n", table.namespace);
            for line in &table.lines {
                text += &match line {
                    Line::Within(line) => format!(" {line}\n"),
                    Line::Removed(line) => format!("{red}-{line}{plain}\n"),
                    Line::Added(line) => format!("{green}+{line}{plain}\n"),
                };
            }
        }
        text
    }

    fn end(mut self, options: &Options, applied: bool) -> Result<ExitCode, Failure> {
        self.applied = applied;
        if options.json {
            print_json(&self)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What the child that talks to the supervisor says.
#[derive(Serialize, Deserialize)]
enum Told {
    Step(String),
    Confirm(u64),
    Done,
    Failed(Failure),
}

/// Has it done, and asks who waits whether it is to stay.
fn carry_out(
    stack: &StackName,
    order: Apply,
    listeners: &[Listener],
    keep: &[Capability],
) -> Result<(), Failure> {
    let client = Client::connect(&Host::state_root().control(stack))
        .map_err(|e| unable("connect to the supervisor", e))?;
    let (ours, theirs) = namespaces::socketpair().map_err(|e| unable("make a socket pair", e))?;
    let mut interrupts = Interruption {
        signals: Interrupts::watch().map_err(|e| unable("watch signals", e))?,
        by: None,
    };
    match clone3(0).map_err(|e| unable("clone", e))? {
        Cloned::Child => {
            drop(ours);
            exit_now(guard(&client, stack, order, listeners, &theirs, keep))
        }
        Cloned::Parent { .. } => {}
    }
    // The child's alone: the supervisor is to hear of its end.
    drop((client, theirs));
    loop {
        let heard = interrupts.signals.or_message(&ours);
        if let Heard::Interrupt(signal) = heard.map_err(|e| unable("hear from the child", e))? {
            interrupts.take(signal);
            // Should it have ended, what it has said last comes next.
            let _ = protocol::send(&ours, &Said::Revert, &[]);
            continue;
        }
        let told = protocol::receive::<Told>(&ours);
        match told.map_err(|e| unable("hear from the child", e))? {
            Some((Told::Step(step), _)) => tell(&format!("  {step}")),
            Some((Told::Confirm(seconds), _)) => {
                let said = confirmed(seconds, &ours, &mut interrupts);
                let said = said.map_err(|e| unable("wait for the confirmation", e))?;
                // Who has waited too long hears so next.
                let _ = protocol::send(&ours, &said, &[]);
            }
            Some((Told::Done, _)) => return interrupts.too_late(stack),
            Some((Told::Failed(failure), _)) => return Err(interrupts.why(failure)),
            None => {
                return Err(interrupts.why(Failure::unable(
                    "the process that talked to the supervisor has ended: lrpns status says how things are",
                )));
            }
        }
    }
}

/// Whether somebody wants it all back.
struct Interruption {
    signals: Interrupts,
    /// The first signal.
    by: Option<Signal>,
}

impl Interruption {
    fn take(&mut self, signal: Signal) {
        tell(match self.by {
            None => "interrupted: the old rules come back",
            Some(_) => "the old rules are coming back",
        });
        self.by.get_or_insert(signal);
    }

    /// A failure that was asked for.
    fn why(&self, failure: Failure) -> Failure {
        match self.by {
            Some(signal) => Failure {
                code: interrupted_by(signal),
                ..failure
            },
            None => failure,
        }
    }

    fn too_late(&self, stack: &StackName) -> Result<(), Failure> {
        match self.by {
            Some(signal) => Err(self
                .why(Failure::failed(format!(
                    "{stack}: {signal} came too late: the change was made, and stays"
                )))
                .hint("apply the file from before takes it back")),
            None => Ok(()),
        }
    }
}

/// Waits for a line on standard input, or for what the child says next: then it is too late.
fn confirmed(
    seconds: u64,
    child: &OwnedFd,
    interrupts: &mut Interruption,
) -> std::io::Result<Said> {
    let how = if std::io::stdin().is_terminal() {
        "press Enter"
    } else {
        "write a line to standard input"
    };
    let stdin = std::io::stdin();
    if stdin.is_terminal() {
        // What was typed before the question answers something else.
        rustix::termios::tcflush(&stdin, rustix::termios::QueueSelector::IFlush)?;
    }
    tell(&format!("to keep it, {how} within {seconds} s"));
    loop {
        let mut ready = [
            PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN),
            PollFd::new(child, PollFlags::IN),
            PollFd::new(&interrupts.signals, PollFlags::IN),
        ];
        match rustix::event::poll(&mut ready, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        }
        let [line, over, _] = ready.map(|fd| !fd.revents().is_empty());
        if let Some(signal) = interrupts.signals.came()? {
            interrupts.take(signal);
            return Ok(Said::Revert);
        }
        if over {
            return Ok(Said::Revert);
        }
        if line {
            let mut chunk = [0; 256];
            // A terminal that is gone says no as well.
            let got = rustix::io::retry_on_intr(|| rustix::io::read(&stdin, &mut chunk));
            let got = got.unwrap_or(0);
            if got == 0 {
                return Ok(Said::Revert);
            }
            if chunk[..got].contains(&b'\n') {
                return Ok(Said::Keep);
            }
        }
    }
}

/// The child's whole life.
fn guard(
    client: &Client,
    stack: &StackName,
    order: Apply,
    listeners: &[Listener],
    teller: &OwnedFd,
    keep: &[Capability],
) -> i32 {
    let moved = publish::moved_ports(&order.wanted, &order.running);
    let moved: Vec<u16> = moved.iter().map(|moved| moved.listen.port()).collect();
    let guard = Guard::of(client, stack, &order, teller);
    let told = match guard.converse(order, listeners, keep) {
        Ok(()) => Told::Done,
        Err(failure) => Told::Failed(failure),
    };
    // Where the supervisor has left the ports' network namespace.
    moved.into_iter().for_each(publish::end_of_sharing);
    // Whoever waited may have gone.
    let _ = protocol::send(teller, &told, &[]);
    0
}

fn unable(what: &str, e: std::io::Error) -> Failure {
    Failure::unable(format!("{what}: {e}"))
}

/// What the child that talks to the supervisor goes by.
struct Guard<'g> {
    client: &'g Client,
    stack: &'g StackName,
    /// The way to who waits.
    teller: &'g OwnedFd,
    running: Plan,
    wanted: Plan,
    asked: Asked,
    /// The plan that is to be saved, as far as it has come.
    staged: Option<Staged>,
}

/// What is to follow from what the supervisor says.
enum Next {
    /// It has its answer.
    Answered,
    /// Who waits is to hear this.
    Tell(Told),
    /// It is done.
    Over,
}

impl<'g> Guard<'g> {
    fn of(client: &'g Client, stack: &'g StackName, order: &Apply, teller: &'g OwnedFd) -> Self {
        let (running, wanted) = (order.running.clone(), order.wanted.clone());
        Self {
            client,
            stack,
            teller,
            asked: Asked::of(&running, &wanted),
            running,
            wanted,
            staged: None,
        }
    }

    /// Asks the supervisor for the change, and does what it wants of the host, until that is over or who waits wants it back.
    fn converse(
        mut self,
        order: Apply,
        listeners: &[Listener],
        keep: &[Capability],
    ) -> Result<(), Failure> {
        rustix::process::setsid().map_err(|e| unable("start a session", e.into()))?;
        if order.running.mode == Mode::Root {
            let keep = [&[Capability::CAP_NET_ADMIN], keep].concat();
            privileges::keep_only(&keep).map_err(Failure::unable)?;
        }
        self.ask(order, listeners)?;
        let mut waiting = true;
        loop {
            let mut ready = [
                PollFd::from_borrowed_fd(self.client.as_fd(), PollFlags::IN),
                PollFd::new(self.teller, PollFlags::IN),
            ];
            let wanted = if waiting { 2 } else { 1 };
            match rustix::event::poll(&mut ready[..wanted], None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(unable("wait", e.into())),
            }
            let [supervisor, user] = ready.map(|fd| !fd.revents().is_empty());
            if supervisor {
                // A refusal is an error, and the end.
                let (Reply::Applying(order), fds) = reply(self.client, self.stack)? else {
                    return Err(answered_something_else(self.stack));
                };
                match self.follow(order, fds)? {
                    Next::Answered => {}
                    Next::Tell(told) => drop(protocol::send(self.teller, &told, &[])),
                    Next::Over => return Ok(()),
                }
            } else if user {
                let said = match protocol::receive::<Said>(self.teller) {
                    Ok(Some((said, _))) => said,
                    // Who would have confirmed is gone.
                    _ => {
                        waiting = false;
                        Said::Revert
                    }
                };
                self.client.say(&said, &[]).map_err(|_| ended(self.stack))?;
            }
        }
    }

    /// Asks for the change, and hands the ports over that it opens.
    fn ask(&self, order: Apply, listeners: &[Listener]) -> Result<(), Failure> {
        let fds: Vec<_> = listeners
            .iter()
            .map(|listener| listener.socket.as_fd())
            .collect();
        let (first, rest) = fds.split_at(fds.len().min(protocol::MAX_FDS));
        self.client
            .say(&Request::Apply(Box::new(order)), first)
            .map_err(|e| unable("ask the supervisor", e))?;
        // Who has refused takes no more, and has said why.
        let _ = say_more(self.client, rest);
        Ok(())
    }

    /// Does what the supervisor wants, if that follows from the plans, and answers.
    fn follow(&mut self, order: Applying, fds: Vec<OwnedFd>) -> Result<Next, Failure> {
        let (running, wanted) = (&self.running, &self.wanted);
        match order {
            Applying::Host { old, new, grants } => {
                self.change_host_table(&fds, &old, &new, &grants)?;
            }
            Applying::Room { cgroup } => {
                answered(room(self.client, running, wanted, &cgroup))?;
            }
            Applying::Limit { cgroup, back } => {
                let plan = if back { running } else { wanted };
                self.done(limit(&running.cgroup, plan, &cgroup))?;
            }
            Applying::Vacate { cgroup } => self.done(vacate(running, wanted, &cgroup))?,
            Applying::Stage => {
                let held = change::held(running, wanted.clone());
                let begun = state::stage(&held).map(|begun| self.staged = Some(begun));
                self.done(begun.map_err(|e| e.to_string()))?;
            }
            Applying::Save { plan: said } => {
                let saved = save(self.staged.take(), running, wanted, &said);
                self.done(saved)?;
            }
            Applying::Bind { ports } if !self.asked.ports(&ports) => self.refuse()?,
            Applying::Bind { ports } => answered(bind(self.client, &ports))?,
            Applying::Open { app } => answered(open(self.client, wanted, &app))?,
            Applying::Map { uids, gids } if !self.asked.maps(&uids, &gids) => self.refuse()?,
            Applying::Map { uids, gids } => self.done(map(fds, &uids, &gids))?,
            Applying::AdmitNoMore => {
                let mut sockets = fds.iter();
                let admits = sockets.try_for_each(publish::admit_no_more);
                self.done(admits.map_err(|e| e.to_string()))?;
            }
            Applying::Step(step) => {
                return Ok(Next::Tell(Told::Step(harmless_lines(&step))));
            }
            Applying::Confirm { seconds } => return Ok(Next::Tell(Told::Confirm(seconds))),
            Applying::Applied => return Ok(Next::Over),
        }
        Ok(Next::Answered)
    }

    /// Changes the rules where the uplink ends, unless the supervisor waits for it no more.
    fn change_host_table(
        &self,
        fds: &[OwnedFd],
        old: &Nftables<'static>,
        new: &Nftables<'static>,
        grants: &[firewall::Grants],
    ) -> Result<(), Failure> {
        if !self.asked.rules(old, new) || !self.asked.grants(grants) {
            return self.refuse();
        }
        let shares = self.running.uplink.ends_at == UplinkEnd::Host;
        let part = shares.then_some(&self.running);
        if given_up(self.client).map_err(|e| unable("look at the supervisor", e))? {
            return Err(too_late(self.stack));
        }
        let changed = change_host(fds, part, old, new, grants);
        let undo = changed.is_ok();
        if self.done(changed).is_err() {
            // Whoever asked for it takes it for not done.
            if undo {
                change_host(fds, part, new, old, &[]).map_err(Failure::unable)?;
            }
            return Err(too_late(self.stack));
        }
        Ok(())
    }

    /// Says how it went.
    fn done(&self, done: Result<(), String>) -> Result<(), Failure> {
        answered(self.client.say(&Said::Changed(done), &[]))
    }

    fn refuse(&self) -> Result<(), Failure> {
        self.done(Err(Asked::ELSE.to_owned()))
    }
}

fn answered(said: std::io::Result<()>) -> Result<(), Failure> {
    said.map_err(|e| unable("answer the supervisor", e))
}

/// Whether the supervisor has ended the conversation, whatever there is still to be read: this process was stopped, and
/// what it is asked for there is asked for no more.
fn given_up(client: &Client) -> std::io::Result<bool> {
    Ok(crate::sys::watch::has_hung_up(client.as_fd())?)
}

fn too_late(stack: &StackName) -> Failure {
    Failure::failed(format!(
        "{stack}: the supervisor has waited too long for this process, and gone on without it"
    ))
    .hint(format!("lrpns status {stack} says how it is"))
}

/// Sends descriptors, as many messages as it takes.
fn say_more(client: &Client, fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
    let mut batches = fds.chunks(protocol::MAX_FDS);
    batches.try_for_each(|batch| client.say(&Said::More, batch))
}

/// What a supervisor may want of the host for a change: what follows from the two plans, and nothing that it makes up.
struct Asked {
    wanted: Plan,
    /// The ports that move.
    ports: Vec<SocketAddr>,
    /// What the host's table may come to.
    rules: Vec<Nftables<'static>>,
    /// What connections through the host may be left.
    grants: Vec<firewall::Grants>,
}

impl Asked {
    const ELSE: &'static str = "that does not follow from the plans";

    fn of(running: &Plan, wanted: &Plan) -> Self {
        let held = change::held(running, wanted.clone());
        let last = last(&held, wanted);
        let wide = change::wide(running, &held);
        let both = change::both(running, &held);
        let ports = publish::moved_ports(wanted, running).into_iter();
        Self {
            wanted: wanted.clone(),
            ports: ports.map(|publish| publish.listen).collect(),
            rules: [running, &wide, &both, &last]
                .map(firewall::host_rules)
                .into(),
            grants: firewall::host_grants(&last),
        }
    }

    fn maps(&self, uids: &str, gids: &str) -> bool {
        let mut apps = self.wanted.apps.iter();
        apps.any(|app| app.ids.maps() == [uids, gids])
    }

    fn ports(&self, ports: &[SocketAddr]) -> bool {
        ports.iter().all(|port| self.ports.contains(port))
    }

    /// What there is by now may be more than the plans have, of a change whose client was killed; but it is the stack's.
    fn rules(&self, old: &Nftables<'static>, new: &Nftables<'static>) -> bool {
        self.rules.contains(new) && firewall::is_of(old, &self.wanted.stack)
    }

    fn grants(&self, grants: &[firewall::Grants]) -> bool {
        grants.is_empty() || grants == self.grants
    }
}

/// What a stack is when the apps that leave have left.
fn last(held: &Plan, wanted: &Plan) -> Plan {
    let mut last = held.clone();
    last.apps.retain(|app| wanted.app(&app.name).is_some());
    last
}

/// The app of a plan that is, or may be, in the cgroup of that name.
fn app_in<'p>(plan: &'p Plan, cgroup: &str) -> Option<&'p AppPlan> {
    let mut apps = plan.apps.iter();
    apps.find(|app| {
        [app.own_name(), app.others_name()]
            .iter()
            .any(|its| its == cgroup)
    })
}

/// Makes a cgroup for an app, and hands over the way into it.
fn room(client: &Client, running: &Plan, wanted: &Plan, cgroup: &str) -> std::io::Result<()> {
    let made = match app_in(wanted, cgroup) {
        Some(app) => cgroup::add(&running.cgroup, cgroup, &app.limits).map_err(|e| e.to_string()),
        None => Err(format!("the new plan has no app {cgroup}")),
    };
    match made {
        Ok(entrance) => {
            let fds = entrance.iter().flat_map(Entrance::fds).collect::<Vec<_>>();
            client.say(&Said::Room, &fds)
        }
        Err(why) => client.say(&Said::Failed { why, hint: None }, &[]),
    }
}

/// Gives a part the limits that a plan has for it.
fn limit(placement: &Placement, plan: &Plan, cgroup: &str) -> Result<(), String> {
    let app = app_in(plan, cgroup).map(|app| &app.limits);
    let of_part = || plan.limits().find(|(part, _)| *part == cgroup);
    let limits = app.or_else(|| of_part().map(|(_, limits)| limits));
    let limits = limits.ok_or_else(|| format!("the plan has no part {cgroup}"))?;
    cgroup::change(placement, cgroup, limits).map_err(|e| e.to_string())
}

/// Removes the cgroup of an app of either plan.
fn vacate(running: &Plan, wanted: &Plan, cgroup: &str) -> Result<(), String> {
    if app_in(running, cgroup).or(app_in(wanted, cgroup)).is_none() {
        return Err(format!("neither plan has an app {cgroup}"));
    }
    cgroup::take(&running.cgroup, cgroup).map_err(|e| e.to_string())
}

/// Saves what the supervisor says that the stack is by now, as far as it is what was asked for.
fn save(staged: Option<Staged>, running: &Plan, wanted: &Plan, said: &Plan) -> Result<(), String> {
    let last = last(&change::held(running, wanted.clone()), wanted).seated(said);
    let last = last.ok_or("the supervisor says that it has another plan than it was asked for")?;
    let staged = staged.ok_or("it was not staged")?;
    staged.commit(&last).map_err(|e| e.to_string())
}

/// Binds ports that the supervisor has let us share, and hands them over.
fn bind(client: &Client, ports: &[SocketAddr]) -> std::io::Result<()> {
    let bound: Result<Vec<OwnedFd>, String> = ports
        .iter()
        .map(|address| {
            let socket = publish::bound(*address, Protocol::Tcp, publish::Others::Shared);
            socket.map_err(|e| format!("listen on {address}: {e}"))
        })
        .collect();
    match bound {
        Ok(sockets) => say_more(client, &sockets.iter().map(AsFd::as_fd).collect::<Vec<_>>()),
        Err(why) => client.say(&Said::Changed(Err(why)), &[]),
    }
}

/// Opens what an app of the plan is given of the host's, and hands it over.
fn open(client: &Client, wanted: &Plan, app: &PartName) -> std::io::Result<()> {
    let place = wanted.place_of(app, Turn::Serves);
    // It waits for nothing but children of its own.
    let opened = place.and_then(|place| Itself.open(wanted, place).now_or_never());
    let none = || StackError::Unopened {
        why: format!("the new plan has no app {app}"),
        hint: None,
    };
    match opened.unwrap_or_else(|| Err(none())) {
        Ok(Opened {
            mounts, secrets, ..
        }) => {
            let mut fds: Vec<_> = mounts.iter().map(AsFd::as_fd).collect();
            fds.extend(secrets.values().map(AsFd::as_fd));
            let secrets = secrets.keys().cloned().collect();
            client.say(&Said::Opened { secrets }, &fds)
        }
        Err(e) => {
            let Failure { message, hint, .. } = Failure::from(e);
            client.say(&Said::Failed { why: message, hint }, &[])
        }
    }
}

/// Maps the ids of the supervisor's child, in the namespace that it was made in: rootless that is not ours, but we own it.
fn map(fds: Vec<OwnedFd>, uids: &str, gids: &str) -> Result<(), String> {
    let Ok([process, user]) = <[OwnedFd; 2]>::try_from(fds) else {
        return Err("no namespace came".to_owned());
    };
    let ours = rustix::fs::stat("/proc/self/ns/user").map_err(|e| e.to_string())?;
    let its = rustix::fs::fstat(&user).map_err(|e| e.to_string())?;
    if (ours.st_dev, ours.st_ino) == (its.st_dev, its.st_ino) {
        return namespaces::write_maps(process.as_fd(), uids, gids).map_err(|e| e.to_string());
    }
    let child = match clone3(0).map_err(|e| e.to_string())? {
        Cloned::Child => {
            let mapped = setns(&user, CloneFlags::CLONE_NEWUSER)
                .and_then(|()| namespaces::write_maps(process.as_fd(), uids, gids));
            exit_now(mapped.err().map_or(0, |e| e.raw_os_error().unwrap_or(255)))
        }
        Cloned::Parent { pidfd, .. } => pidfd,
    };
    match crate::commands::exec::wait(&child).map_err(|e| e.to_string())? {
        Exit::Status(0) => Ok(()),
        Exit::Status(errno) => Err(std::io::Error::from_raw_os_error(errno).to_string()),
        Exit::Signal(_) => Err("the child that maps the ids was killed".to_owned()),
    }
}

/// Changes the host's table on the socket that owns it, and forgets what is not granted any more.
fn change_host(
    fds: &[OwnedFd],
    part: Option<&Plan>,
    old: &nftables::schema::Nftables<'static>,
    new: &nftables::schema::Nftables<'static>,
    grants: &[firewall::Grants],
) -> Result<(), String> {
    let socket = fds.first().ok_or("no socket came")?;
    let socket = socket.try_clone().map_err(|e| e.to_string())?;
    let socket = match part {
        Some(plan) => {
            let table =
                firewall::Shared::from_fd(socket, plan.stacks_dir()).map_err(|e| e.to_string())?;
            let table = table.ok_or("the socket that came owns no table here")?;
            table.change(plan, old, new).map_err(|e| e.to_string())?;
            // Others may use that one meanwhile.
            firewall::Socket::open().map_err(|e| e.to_string())?
        }
        None => {
            let socket = firewall::Socket::from_fd(socket).map_err(|e| e.to_string())?;
            firewall::update(&socket, old, new).map_err(|e| e.to_string())?;
            socket
        }
    };
    if grants.is_empty() {
        return Ok(());
    }
    firewall::forget_ungranted(&socket, grants)
        .map_err(|e| format!("forget connections that are not granted: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan;
    use crate::plan::Transport;

    /// A stack that publishes one port more, and of which an app leaves.
    fn plans() -> (Plan, Plan) {
        let mut running = plan::example();
        running.uplink.ends_at = UplinkEnd::Host;
        running.apps[0].publish[0].via = Transport::Dnat;
        let mut wanted = running.clone();
        let mut more = wanted.apps[0].publish[0].clone();
        more.listen.set_port(81);
        more.entry_port = 81;
        wanted.apps[0].publish.push(more);
        wanted.apps.pop();
        wanted.apps[0].connect.clear();
        wanted.derive_serves();
        (running, wanted)
    }

    #[test]
    fn of_the_host_a_supervisor_has_what_the_plans_say_and_nothing_else() {
        let (running, wanted) = plans();
        let asked = Asked::of(&running, &wanted);
        let (old, new) = (
            firewall::host_rules(&running),
            firewall::host_rules(&wanted),
        );
        assert_ne!(old, new);
        assert!(asked.rules(&old, &new) && asked.rules(&new, &old));
        // More than either plan has, of what is there or is to come.
        let mut other = wanted.clone();
        other.apps[0].publish[1].listen.set_port(22);
        let other = firewall::host_rules(&other);
        assert!(!asked.rules(&old, &other));
        assert!(asked.rules(&other, &new), "it is the stack's still");
        let mut anothers = running.clone();
        anothers.stack = StackName::new("another").unwrap();
        let anothers = firewall::host_rules(&anothers);
        assert!(!asked.rules(&anothers, &new) && !asked.rules(&old, &anothers));

        let [uids, gids] = wanted.apps[0].ids.maps();
        assert!(asked.maps(&uids, &gids));
        assert!(!asked.maps("0 0 4294967295\n", &gids) && !asked.maps(&uids, "0 0 1\n"));

        assert!(asked.ports(&[]));
        assert!(!asked.ports(&["0.0.0.0:22".parse().unwrap()]));

        let all = firewall::host_grants(&wanted);
        assert!(asked.grants(&all) && asked.grants(&[]));
        let mut others = running.clone();
        others.uplink.sidecar_address = [10, 0, 0, 1].into();
        assert!(!asked.grants(&firewall::host_grants(&others)));
    }

    #[test]
    fn cgroups_are_those_of_apps_of_the_plans() {
        let (running, wanted) = plans();
        for (cgroup, of_wanted, of_running) in [
            ("web", true, true),
            ("web.2", true, true),
            ("db", false, true),
            ("sidecar", false, false),
            ("../other", false, false),
            ("", false, false),
        ] {
            assert_eq!(app_in(&wanted, cgroup).is_some(), of_wanted, "{cgroup}");
            assert_eq!(app_in(&running, cgroup).is_some(), of_running, "{cgroup}");
            let vacated = vacate(&running, &wanted, cgroup);
            assert_eq!(vacated.is_ok(), of_wanted || of_running, "{cgroup}");
            // Without a place for cgroups there is nothing to be done for it.
            let limited = limit(&running.cgroup, &wanted, cgroup);
            assert_eq!(
                limited.is_ok(),
                of_wanted || cgroup == "sidecar",
                "{cgroup}"
            );
        }
    }

    #[test]
    fn what_is_saved_is_what_was_asked_for() {
        let (mut running, mut wanted) = plans();
        let dir = tempfile::tempdir().unwrap();
        for plan in [&mut running, &mut wanted] {
            plan.state_dir = dir.path().to_owned();
        }
        let begin = || Some(state::stage(&running).unwrap());
        let mut said = wanted.clone();
        said.apps[0].command.push("more".into());
        assert!(save(begin(), &running, &wanted, &said).is_err());
        assert!(
            save(begin(), &running, &wanted, &running).is_err(),
            "with who has left"
        );
        assert!(save(None, &running, &wanted, &wanted).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        save(begin(), &running, &wanted, &wanted).unwrap();
        assert!(dir.path().join("plan.json").exists());
    }
}

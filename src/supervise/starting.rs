//! The supervisor while its stack is brought up: it hears of everything, and answers what can be answered then.
//!
//! # Theory of operation
//!
//! What brings the stack up is one future, and owns all that it makes: dropped, it takes that with it. So a signal, or who
//! wants the end, is heard at any step. What else happens meanwhile, and is not answered by [`Rising`], waits for the
//! [`Supervisor`] that this becomes.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::clients::{Client, serve};
use super::end::{Ender, end_with, watch_signals};
use super::heard::{Budgets, Refused, hear};
use super::journal::Journal;
use super::part::Part;
use super::rising::Rising;
use super::shared::Offer;
use super::{Event, Supervisor, Watched, health, io_error, manager, prober, reap_all, replace};
use crate::confine::privileges::Privileges;
use crate::control::evidence::Remains;
use crate::control::{Request, Status};
use crate::firewall::Shared;
use crate::log::LogLine;
use crate::stack::{Begun, Makings, Progress, Stack, StackError};
use crate::traffic;

/// How many messages of the sidecar's may wait for the loop.
const TRAFFIC_WAITING: usize = 2;
/// How many lines may wait for the loop.
const LINES_WAITING: usize = 256;

/// What there is of a [`Supervisor`] before there is a stack.
pub(super) struct Starting {
    events: mpsc::UnboundedReceiver<Event>,
    sender: mpsc::UnboundedSender<Event>,
    lines: mpsc::Receiver<LogLine>,
    lines_in: mpsc::Sender<LogLine>,
    budgets: Budgets,
    journal: Journal,
    /// Who asked for the end; answered by the end of this process.
    waiting_for_the_end: Vec<Client>,
    /// Who wants it.
    ender: Ender,
    /// What has happened, and waits until the stack is up.
    early: VecDeque<Event>,
}

impl Starting {
    /// Begins to hear of signals, of the end of who the stack is for, and of clients, who may ask for the host's table if it
    /// is on `offer`.
    pub(super) fn begin(
        journal: Journal,
        control: UnixListener,
        lives_with: Option<OwnedFd>,
        offer: &Offer,
    ) -> Result<Self, StackError> {
        let (sender, events) = mpsc::unbounded_channel();
        let ender = Ender::default();
        watch_signals(&sender, &ender).map_err(io_error("watch signals"))?;
        if let Some(process) = lives_with {
            end_with(process, sender.clone()).map_err(io_error("watch whom the stack is for"))?;
        }
        serve(control, sender.clone(), ender.clone(), offer.clone())
            .map_err(io_error("watch the control socket"))?;
        let (lines_in, lines) = mpsc::channel(LINES_WAITING);
        Ok(Self {
            events,
            sender,
            lines,
            lines_in,
            budgets: Budgets::default(),
            journal,
            waiting_for_the_end: vec![],
            ender,
            early: VecDeque::new(),
        })
    }

    /// Brings the stack up, unless its end is asked for first. An error leaves nothing behind.
    pub(super) async fn bring_up(
        &mut self,
        makings: Makings,
        table: Option<Arc<Shared>>,
        gated: bool,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Stack, StackError> {
        let Self {
            events,
            sender,
            lines,
            lines_in,
            budgets,
            journal,
            waiting_for_the_end,
            early,
            ..
        } = self;
        let user = journal.tee.user();
        let apps = makings.plan.apps.iter();
        let names: Vec<String> = apps.map(|app| app.name.to_string()).collect();
        let streams =
            |app: usize, pipes| hear(lines_in, budgets, &names[app], user.as_ref(), pipes);
        let rising = RefCell::new(Rising::of(&makings.plan, gated));
        let mut told = |told: Progress<'_>| match told {
            Progress::Part(name, now) => rising.borrow_mut().heard(name, now),
            told => progress(told),
        };
        let stack = Stack::bring_up(makings, table, gated, &streams, &mut told);
        let mut stack = Box::pin(stack);
        loop {
            tokio::select! {
                biased;
                stack = &mut stack => return stack,
                Some(event) = events.recv() => match event {
                    Event::Signal(signal) => return Err(StackError::Interrupted { by: Some(signal) }),
                    Event::Asked(Request::Down | Request::Kill, _, client) => {
                        waiting_for_the_end.push(client);
                        return Err(StackError::Interrupted { by: None });
                    }
                    Event::Asked(request, fds, client) if Rising::answers(&request) => {
                        let rising = rising.borrow();
                        journal.answer_early(&rising, request, &fds, client, sender);
                    }
                    Event::ReadOn(reader, follow, client) => journal.read_on(reader, follow, client, sender),
                    event => early.push_back(event),
                },
                Some(line) = lines.recv() => journal.hear(line),
            }
        }
    }

    /// Ends without a stack: hears what the apps of the one that did not come up have said, and waits for its processes.
    pub(super) async fn end(
        mut self,
        hurry: bool,
        remains: &mut Remains,
    ) -> Result<(), StackError> {
        // What the app has said before it failed to start is the best explanation there is.
        drop(self.lines_in);
        let (lines, events) = (&mut self.lines, &mut self.events);
        let _answered_by_the_end = self
            .journal
            .hear_out(lines, events, &self.sender, hurry, Journal::hear)
            .await;
        self.journal.show_kept();
        remains.lines = self.journal.last();
        (remains.log, remains.journal) = self.journal.recorded();
        remains.by = self.ender.get().cloned();
        reap_all().await
    }

    /// The supervisor of the stack that came up, and what has happened meanwhile.
    pub(super) fn supervise(
        self,
        stack: Stack,
        privileges: Privileges,
        gated: bool,
        changed: fn(&Status),
        life: prober::Life,
    ) -> (Supervisor, VecDeque<Event>) {
        let (traffic_in, traffic) = mpsc::channel(TRAFFIC_WAITING);
        let undoer = Watched::by(stack.ground.cgroups.door().ok().flatten());
        let mut supervisor = Supervisor {
            privileges,
            ground: stack.ground,
            host_table: stack.host_table,
            host_rules: stack.host_rules,
            gated,
            parts: vec![],
            leaving: vec![],
            relays: 0,
            applying: false,
            replacing: replace::Replacing::default(),
            entries: health::Entries::default(),
            events: self.events,
            sender: self.sender,
            lines: self.lines,
            lines_in: self.lines_in,
            budgets: self.budgets,
            traffic,
            sums: traffic::Sums::default(),
            refused: Refused::default(),
            traffic_in,
            launching: JoinSet::new(),
            prober: None,
            journal: self.journal,
            waiting_for_the_end: self.waiting_for_the_end,
            killing: false,
            stopping: false,
            ender: self.ender,
            since: Timestamp::now(),
            changed,
            life,
            watchdog: manager::Watchdog::of_this_process(),
            undoer,
        };
        for (id, begun) in stack.parts {
            supervisor.parts.push(Part::new(id));
            match begun {
                Begun::Runs(launched) => supervisor.adopt(id, launched),
                Begun::Done(done) => supervisor.is_done(id, done),
            }
        }
        (supervisor, self.early)
    }
}

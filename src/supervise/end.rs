//! The end of a stack: who wants it, and how it is taken down.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use nix::sys::signal::{SigSet, Signal};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch as watched};

use super::clients::{Client, tell_all};
use super::journal::{Journal, event_line};
use super::part::Part;
use super::process::{Awaited, Left, Process};
use super::{Event, Supervisor, manager};
use crate::config::Stop;
use crate::control::evidence::{By, Remains};
use crate::control::{PartState, Request};
use crate::part::container::Event as ContainerEvent;
use crate::stack::{Ground, PartId, Wait};
use crate::text::duration;

/// How long it may take, once nobody new is let in, until who is there is with an app that accepts.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(3);
/// How long the relay may take, once the apps have ended and the kernel has delivered what they had written, to hand the
/// last of it on.
const RELAY_ENDS_WITHIN: Duration = Duration::from_secs(1);
/// How long a service manager is asked to wait for what ends beside the apps.
const OURS_TO_END: Duration = Duration::from_secs(15);
/// What there is to say of a part that [`crate::part::container::Container::kill`] could not wait for.
pub(super) const LINGERS: &str = "killed, and does not end: a process in its namespaces that is none of ours hangs in the kernel, or is \
                       a zombie that its parent does not wait for; what the part had of the network is gone";
/// The signals that end a stack.
const END: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

impl Supervisor {
    /// Ends every part ([`Alive::end`]). What apps say meanwhile is still read: one that ends in order may have much to say. Gives
    /// back who has to be kept waiting until the very end. In a `hurry`, see [`Journal::hear_out`].
    pub(super) async fn take_down(mut self, hurry: bool, remains: &mut Remains) -> Vec<Client> {
        let ground = Arc::clone(&self.ground);
        remains.since = Some(self.since);
        let serves = |part: &&Part| self.turn(part.id).serves();
        let parts = self.parts.iter().filter(serves);
        remains.parts = parts.map(|part| part.ended(&ground)).collect();
        self.stopping = true;
        // A signal may come before a new start.
        let for_good = !self.waiting_for_the_end.is_empty();
        let alive = self.alive();
        let mut left: Vec<(PartId, Left)> = alive
            .apps
            .iter()
            .map(|(id, ..)| (*id, Left::Command))
            .collect();
        // Under systemd an app may take longer than the unit's TimeoutStopSec.
        let longest = alive.apps.iter().map(|(.., stop)| 2 * stop.timeout).max();
        let longest = longest.unwrap_or_default() + OURS_TO_END;
        manager::goes_down(longest);
        let (kill, killed_at_once) = watched::channel(self.killing);
        let mut launching = std::mem::take(&mut self.launching);
        let ending = async {
            launching.shutdown().await;
            alive.end(&ground, for_good, killed_at_once).await
        };
        let mut wait = Wait::begin();
        tokio::pin!(ending);
        let went = loop {
            tokio::select! {
                biased;
                done = &mut ending => break done,
                Some(event) = self.events.recv() => {
                    if self.at_the_end(event, &mut left, remains) {
                        kill.send_replace(true);
                        for (id, _) in std::mem::take(&mut left) {
                            self.say_to_all(ground.name(id), "killed, as asked for".to_owned());
                        }
                    }
                }
                Some(line) = self.lines.recv() => self.journal.write(line),
                () = tokio::time::sleep_until(wait.next()) => {
                    if let Some(since) = wait.due() {
                        for (id, what) in &left {
                            let app = ground.app_plan(*id);
                            self.say_to_all(app.name.as_str(), stopping(*what, app.stop, since));
                        }
                    }
                }
            }
        };
        for (id, _) in went.into_iter().filter(|(_, went)| !went) {
            self.say_to_all(ground.name(id), LINGERS.to_owned());
        }
        // The pumps have the other senders, and end with the apps.
        drop(self.lines_in);
        let (lines, events) = (&mut self.lines, &mut self.events);
        let asked = self
            .journal
            .hear_out(lines, events, &self.sender, hurry, Journal::write)
            .await;
        remains.lines = self.journal.last();
        (remains.log, remains.journal) = self.journal.recorded();
        remains.by = self.ender.get().cloned();
        self.waiting_for_the_end.extend(asked);
        self.waiting_for_the_end
    }

    /// The parts that live, for one who waits for their ends.
    fn alive(&mut self) -> Alive {
        let mut alive = Alive {
            apps: vec![],
            relays: self.leaving.iter_mut().map(Process::awaited).collect(),
            egress: None,
            sidecar: None,
        };
        for part in &mut self.parts {
            let Some(process) = &mut part.process else {
                continue;
            };
            let awaited = process.awaited();
            match part.id {
                PartId::App(_) => {
                    let stop = self.ground.app_plan(part.id).stop;
                    alive.apps.push((part.id, awaited, stop));
                }
                PartId::Relay => alive.relays.push(awaited),
                PartId::Egress => alive.egress = Some((part.id, awaited)),
                PartId::Sidecar => alive.sidecar = Some((part.id, awaited)),
            }
        }
        alive
    }

    /// What happens while the parts end, of whose apps `left` is still there; whether all of that is to be killed at once.
    fn at_the_end(
        &mut self,
        event: Event,
        left: &mut Vec<(PartId, Left)>,
        remains: &mut Remains,
    ) -> bool {
        let ground = Arc::clone(&self.ground);
        match event {
            // Of a part that has left before.
            Event::Part {
                id: PartId::App(number),
                ..
            }
            | Event::Killed {
                id: PartId::App(number),
                ..
            } if ground.place(number).is_none() => {}
            Event::Signal(Signal::SIGINT) => return true,
            Event::Asked(Request::Kill, _, client) => {
                self.waiting_for_the_end.push(client);
                return true;
            }
            Event::Asked(Request::Down, _, client) => self.waiting_for_the_end.push(client),
            Event::Asked(request, fds, client) => self.answer(request, fds, client),
            Event::ReadOn(reader, follow, client) => self.read_on(reader, follow, client),
            Event::Part {
                id,
                launch,
                what: Ok(ContainerEvent::Exited(exit)),
            } => {
                for (_, what) in left.iter_mut().filter(|(app, _)| *app == id) {
                    *what = Left::Rest;
                }
                let name = ground.name(id).to_owned();
                remains.note(&name, |part| {
                    part.exit = Some(exit);
                    part.ended = Some(Timestamp::now());
                });
                if self.is_current(id, launch) {
                    self.part(id).last_exit = Some(exit);
                }
                self.journal
                    .write(event_line(name, format!("ended with {exit}")));
            }
            Event::Part {
                id,
                launch,
                what: Ok(ContainerEvent::Gone) | Err(_),
            } => {
                let cgroup = ground.cgroup_name(id);
                if let Some(text) = ground.cgroups.kept_from_since(&cgroup) {
                    self.journal
                        .write(event_line(ground.name(id).to_owned(), text));
                }
                remains.note(ground.name(id), |part| {
                    part.out_of_memory |= ground.cgroups.ran_out_of_memory(&cgroup);
                });
                left.retain(|(app, _)| *app != id);
                if self.is_current(id, launch) {
                    let part = self.part(id);
                    part.process = None;
                    part.state = PartState::Ended;
                }
            }
            Event::Killed { id, what } => {
                let text = killed(what, ground.app_plan(id).stop);
                self.say_to_all(ground.name(id), text);
            }
            _ => {}
        }
        false
    }

    /// Says of a part what its log and everybody who waits for the end are to know.
    fn say_to_all(&mut self, name: &str, text: String) {
        tell_all(&self.waiting_for_the_end, &format!("{name}: {text}"));
        self.journal.write(event_line(name.to_owned(), text));
    }
}

/// The parts that live when a stack is to end.
struct Alive {
    apps: Vec<(PartId, Awaited, Stop)>,
    relays: Vec<Awaited>,
    egress: Option<(PartId, Awaited)>,
    sidecar: Option<(PartId, Awaited)>,
}

impl Alive {
    /// Ends them. Listening ends first, and what is under way is carried on: apps get their signal and their time, then the relay
    /// has what they have written last to hand on. Whatever is waited for is `killed_at_once` when that says so. Gives back of
    /// each part whether it went.
    async fn end(
        self,
        ground: &Ground,
        for_good: bool,
        killed_at_once: watched::Receiver<bool>,
    ) -> Vec<(PartId, bool)> {
        let Self {
            apps,
            relays,
            egress,
            sidecar,
        } = self;
        ground.close_entries(for_good).await;
        // They have accepted whoever was there, and apps that are asked to end close their sockets to who waits at them.
        let handed_over = futures_util::future::join_all(relays.iter().map(Awaited::hand_over));
        let there = async {
            handed_over.await;
            ground.accepted().await;
        };
        let mut at_once = killed_at_once.clone();
        tokio::select! {
            _ = tokio::time::timeout(HANDED_OVER_WITHIN, there) => {}
            _ = at_once.wait_for(|kill| *kill) => {}
        }
        let ends = apps.into_iter().map(|(id, process, stop)| {
            let mut at_once = killed_at_once.clone();
            async move {
                let asked = process.stop(stop);
                tokio::select! {
                    () = asked => {}
                    _ = at_once.wait_for(|kill| *kill) => {}
                }
                (id, process.kill().await)
            }
        });
        let mut went = futures_util::future::join_all(ends).await;
        // An app that ends in order may have to say so elsewhere, and to who has asked it something.
        if !*killed_at_once.borrow() {
            ground.delivered().await;
            for relay in &relays {
                let _ = tokio::time::timeout(RELAY_ENDS_WITHIN, relay.has_ended()).await;
            }
        }
        let relays = relays.into_iter().map(|relay| (PartId::Relay, relay));
        for (id, process) in relays.chain(egress).chain(sidecar) {
            went.push((id, process.kill().await));
        }
        went
    }
}

/// What to tell of an app that has not ended by itself.
pub(super) fn killed(what: Left, stop: Stop) -> String {
    let within = duration(stop.timeout);
    match what {
        Left::Command => format!(
            "killed: its command did not end within {within} of {}",
            stop.signal
        ),
        Left::Rest => format!(
            "killed: what its command had left running did not end within {within} of {}",
            stop.signal
        ),
    }
}

/// What to tell of an app that is waited for.
pub(super) fn stopping(what: Left, stop: Stop, since: Duration) -> String {
    let what = match what {
        Left::Command => "its command",
        Left::Rest => "what its command has left running",
    };
    let (since, within) = (since.as_secs(), duration(stop.timeout));
    format!(
        "waiting for {what} to end on {}, for {since}s of at most {within}",
        stop.signal
    )
}

/// The same as a set, to be held back as long as their plain effect, the end of this process, would leave something.
#[must_use]
pub fn the_end() -> SigSet {
    END.into_iter().collect()
}

/// Who wanted the end first.
pub(super) type Ender = Arc<OnceLock<By>>;

/// Makes events of them, also of what was held back ([`the_end`]).
pub(super) fn watch_signals(
    events: &mpsc::UnboundedSender<Event>,
    ender: &Ender,
) -> io::Result<()> {
    for kind in END {
        let mut signals = signal(SignalKind::from_raw(kind as i32))?;
        let (events, ender) = (events.clone(), ender.clone());
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                ender.get_or_init(|| By::Signal(kind as i32));
                let _ = events.send(Event::Signal(kind));
            }
        });
    }
    Ok(the_end().thread_unblock()?)
}

/// Makes the end of `process`, a pidfd, the same as a signal to end.
pub(super) fn end_with(process: OwnedFd, events: mpsc::UnboundedSender<Event>) -> io::Result<()> {
    let ended = crate::sys::watch::owned(process)?;
    tokio::spawn(async move {
        // An error of the watch would leave the stack without an end.
        let _ = ended.readable().await;
        let _ = events.send(Event::Signal(Signal::SIGTERM));
    });
    Ok(())
}

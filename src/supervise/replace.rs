//! Another of an app in its place, without a gap: the new one starts beside the old one, and the connections follow.
//!
//! # Theory of operation
//!
//! ```text
//! namespaces and links, down -> rules that know the new one -> its links, routes to it -> it starts: listens, is healthy
//!     -> one transaction of rules: who is new is taken to it (hand over) -> the path is tried
//!     -> the old one has no clients left, or its time is over -> it ends -> rules, links, cgroup without it (finish)
//! ```
//!
//! What doesn't work before the hand-over is taken back, and the old one has never noticed; nor does one that was being
//! replaced end the stack. The host's table and the relay know the sidecar's ports and no app's address, so neither changes.
//! Connections that are open stay where they are: conntrack translates them as it did when they began.
//!
//! A task goes through it, and has the loop do what is the loop's ([`Step`]). The loop closes and opens ports as health has
//! it ([`super::health`]), which is a change of rules too: the task asks it to hold that back while it changes them.
//! There is no other undo: should this process end, all of both goes with it.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::{Backoff, Client, Event, Order, Part, PartState, Reply, Supervisor, refused, tell};
use crate::names::PartName;
use crate::part::cgroup::Entrance;
use crate::plan::{Plan, Turn};
use crate::stack::{Ground, PartId};
use crate::traffic::line::Names;

/// What the task wants of the loop.
pub(super) enum Step {
    /// No port is to be closed or opened, from the answer on…
    Hold(oneshot::Sender<()>),
    /// …until now.
    Release,
    /// What is started from now on is started on this.
    Ground(Arc<Ground>),
    /// There is a part more, to be started; who waits is told how that went.
    Start(PartId, Client),
    /// Whether it runs.
    Runs(PartId, oneshot::Sender<bool>),
    /// It is to end for good; answered when it has.
    End(PartId, oneshot::Sender<()>),
    /// It is not there any more.
    Remove(PartId),
    /// The second has the place of the first.
    Replaced(PartId, PartId),
    /// A line for the log, about an app.
    Note(PartName, String),
    /// It is over.
    Over,
}

/// What the loop remembers of a replacement.
#[derive(Default)]
pub(super) struct Replacing {
    /// There is one.
    under_way: bool,
    /// Ports are not to be closed or opened.
    pub(super) held: bool,
    /// Who waits for that.
    pub(super) holds: Option<oneshot::Sender<()>>,
}

impl Replacing {
    pub(super) fn is_under_way(&self) -> bool {
        self.under_way
    }
}

/// One app, replaced.
pub(super) struct Replacement {
    pub(super) events: mpsc::UnboundedSender<Event>,
    pub(super) name: PartName,
    /// What is current.
    pub(super) ground: Arc<Ground>,
    /// The plan whose rules are in force: that of the ground, but during a live change.
    pub(super) rules: Plan,
    /// The way into the cgroup of the new one; without it it is in that of one before it, or in none.
    pub(super) room: Option<Entrance>,
    /// It is during one: then no port is closed or opened anyway.
    pub(super) within_apply: bool,
}

impl Replacement {
    fn tell(&self, step: Step) {
        // The loop is gone only when this task is about to be.
        let _ = self.events.send(Event::Replacing(step));
    }

    fn note(&self, text: impl Into<String>) {
        self.tell(Step::Note(self.name.clone(), text.into()));
    }

    async fn hold(&self) {
        if !self.within_apply {
            let (held, is_held) = oneshot::channel();
            self.tell(Step::Hold(held));
            let _ = is_held.await;
        }
    }

    fn release(&self) {
        if !self.within_apply {
            self.tell(Step::Release);
        }
    }

    /// The old one is replaced when this returns, and has ended; or the new one has. `wanted` ends, with why, when nobody
    /// wants the new one any more that is being started.
    ///
    /// # Errors
    /// Why the old one still is what it was.
    pub(super) async fn run<W: Future<Output = String>>(
        &mut self,
        wanted: impl FnOnce(Arc<Ground>, PartId) -> W,
    ) -> Result<(), String> {
        let old = self.id(Turn::Serves)?;
        self.hold().await;
        let begun = self.begin().await;
        self.release();
        begun?;
        let new = self.id(Turn::Comes)?;
        let wanted = wanted(Arc::clone(&self.ground), new);
        let came = match self.start(new, wanted).await {
            Ok(()) => self.hand_over(new).await,
            Err(why) => Err(why),
        };
        if let Err(why) = came {
            self.abandon(new).await;
            return Err(why);
        }
        self.drain(old).await;
        self.finish(old, new).await;
        Ok(())
    }

    fn id(&self, turn: Turn) -> Result<PartId, String> {
        let id = self.ground.in_turn(&self.name, turn);
        id.ok_or_else(|| format!("there is no such {}", self.name))
    }

    /// Namespaces, rules and links for the new one.
    async fn begin(&mut self) -> Result<(), String> {
        let before = Arc::clone(&self.ground);
        let next = before.with_another(&self.name, self.room.take()).await;
        let next = next.map_err(|e| e.to_string())?;
        let next = Arc::new(next.ok_or_else(|| format!("{} is being replaced", self.name))?);
        let mut rules = self.rules.clone();
        if let Some(new) = next.in_turn(&self.name, Turn::Comes) {
            rules.begin(next.app_plan(new));
        }
        let made = async {
            next.update_rules(&self.rules, &rules).await?;
            next.join_another(&self.name, &before).await
        };
        if let Err(e) = made.await {
            self.back(&next, &before, &rules).await;
            return Err(e.to_string());
        }
        self.rules = rules;
        self.ground = Arc::clone(&next);
        self.tell(Step::Ground(next));
        Ok(())
    }

    /// Starts the new one, and waits until it is well, or nobody wants it any more.
    async fn start(&self, new: PartId, wanted: impl Future<Output = String>) -> Result<(), String> {
        let (client, mut answers) = mpsc::channel(4);
        self.tell(Step::Start(new, client));
        let answer = tokio::select! {
            answer = answers.recv() => answer,
            why = wanted => return Err(why),
        };
        match answer.map(|answer| answer.replies).as_deref() {
            Some([Reply::Done]) => Ok(()),
            Some([Reply::Refused { why, .. }]) => Err(why.clone()),
            _ => Err(format!("another {} ended before it was ready", self.name)),
        }
    }

    /// Has who is new taken to the new one, if it still is there.
    async fn hand_over(&mut self, new: PartId) -> Result<(), String> {
        self.hold().await;
        let handed = self.change_hands(new).await;
        self.release();
        handed
    }

    async fn change_hands(&mut self, new: PartId) -> Result<(), String> {
        let (runs, answer) = oneshot::channel();
        self.tell(Step::Runs(new, runs));
        if !answer.await.unwrap_or(false) {
            return Err(format!(
                "another {} ended before it had a client",
                self.name
            ));
        }
        let next = Arc::new(self.ground.handed_over(&self.name));
        let mut rules = self.rules.clone();
        rules.hand_over(&self.name);
        let moved = async {
            next.update_rules(&self.rules, &rules).await?;
            let known = self.rules.in_force(&BTreeSet::new());
            next.try_the_path_to(new, &known).await
        };
        if let Err(e) = moved.await {
            if next.update_rules(&rules, &self.rules).await.is_err() {
                self.load_all(&self.rules).await;
            }
            return Err(e.to_string());
        }
        self.rules = rules;
        self.ground = Arc::clone(&next);
        self.tell(Step::Ground(next));
        self.note("another one has its clients; the one before is to end");
        Ok(())
    }

    /// Waits until the old one has no clients left, as long as it may take to end.
    async fn drain(&self, old: PartId) {
        let time = self.ground.app_plan(old).stop.timeout;
        match tokio::time::timeout(time, self.ground.drained(old)).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => self.note(format!("who its clients are can't be found out: {e}")),
            Err(_) => self.note(format!(
                "the one before still has clients after {}, and is ended",
                crate::text::duration(time)
            )),
        }
        let (ended, has) = oneshot::channel();
        self.tell(Step::End(old, ended));
        let _ = has.await;
    }

    async fn finish(&mut self, old: PartId, new: PartId) {
        self.hold().await;
        let held = Arc::clone(&self.ground);
        let next = Arc::new(held.finished(&self.name));
        let mut rules = self.rules.clone();
        rules.finish(&self.name);
        self.tell(Step::Replaced(old, new));
        self.tell(Step::Ground(Arc::clone(&next)));
        if next.update_rules(&self.rules, &rules).await.is_err() {
            self.load_all(&rules).await;
        }
        let left = [
            next.only_own_routes(&held).await,
            held.remove_turn(&self.name, Turn::Goes).await,
        ];
        for e in left.into_iter().filter_map(Result::err) {
            self.note(format!("the one before: {e}"));
        }
        self.rules = rules;
        self.ground = next;
        self.release();
    }

    /// The new one is not to be.
    async fn abandon(&mut self, new: PartId) {
        let (ended, has) = oneshot::channel();
        self.tell(Step::End(new, ended));
        let _ = has.await;
        self.hold().await;
        let held = Arc::clone(&self.ground);
        let before = Arc::new(held.abandoned(&self.name));
        self.tell(Step::Remove(new));
        self.tell(Step::Ground(Arc::clone(&before)));
        let rules = self.rules.clone();
        self.rules.abandon(&self.name);
        self.back(&held, &before, &rules).await;
        self.ground = before;
        self.release();
    }

    /// Takes away what there is of the one that comes: `rules` are in force, or nearly.
    async fn back(&self, held: &Ground, before: &Ground, rules: &Plan) {
        if before.update_rules(rules, &self.rules).await.is_err() {
            self.load_all(&self.rules).await;
        }
        let left = [
            before.only_own_routes(held).await,
            held.remove_turn(&self.name, Turn::Comes).await,
        ];
        for e in left.into_iter().filter_map(Result::err) {
            self.note(format!("another one, which didn't come to be: {e}"));
        }
    }

    async fn load_all(&self, rules: &Plan) {
        if let Err(e) = self.ground.load_plan(rules).await {
            self.note(format!("the sidecar's rules: {e}"));
        }
    }
}

/// Several apps, one after the other, for a client.
struct Series {
    events: mpsc::UnboundedSender<Event>,
    ground: Arc<Ground>,
    apps: Vec<PartName>,
    room: Option<Entrance>,
    client: Client,
}

impl Series {
    async fn run(mut self) {
        let mut done = Reply::Done;
        for name in std::mem::take(&mut self.apps) {
            let mut one = Replacement {
                events: self.events.clone(),
                name: name.clone(),
                rules: self.ground.plan.clone(),
                ground: Arc::clone(&self.ground),
                room: self.room.take(),
                within_apply: false,
            };
            let went = one.run(|_, _| std::future::pending()).await;
            self.ground = one.ground;
            if let Err(why) = went {
                let stays = format!("{name} is not replaced, and the one before stays: {why}");
                let _ = self
                    .events
                    .send(Event::Replacing(Step::Note(name, stays.clone())));
                let stack = &self.ground.plan.stack;
                let hint = format!("lrpns logs {stack} has what it said");
                done = refused(stays, Some(hint));
                break;
            }
            tell(&self.client, Reply::Waits(format!("{name} is replaced")));
        }
        let _ = self.events.send(Event::Replacing(Step::Over));
        tell(&self.client, done);
    }
}

impl Supervisor {
    /// Replaces an app, or every one that can be.
    pub(super) fn replace(&mut self, part: Option<&str>, fds: Vec<OwnedFd>, client: Client) {
        let room = Entrance::of_fds(fds);
        let lacks_room = |apps: &[PartName]| match &room {
            None => self.ground.plan.cgroup.path.is_some(),
            Some(_) => apps.len() > 1,
        };
        let apps = match self.to_replace(part) {
            Ok(apps) if lacks_room(&apps) => Err(Box::new(refused(
                "there is no cgroup for another of it".to_owned(),
                Some("another command was at it: try again".to_owned()),
            ))),
            other => other,
        };
        match apps {
            Ok(apps) => {
                self.replacing.under_way = true;
                let series = Series {
                    events: self.sender.clone(),
                    ground: Arc::clone(&self.ground),
                    apps,
                    room,
                    client,
                };
                while self.launching.try_join_next().is_some() {}
                self.launching.spawn(series.run());
            }
            Err(reply) => tell(&client, *reply),
        }
    }

    fn to_replace(&self, part: Option<&str>) -> Result<Vec<PartName>, Box<Reply>> {
        let busy = |why: &str| {
            let hint = "try again when that is over";
            Err(Box::new(refused(why.to_owned(), Some(hint.to_owned()))))
        };
        if self.applying {
            return busy("a live change is under way");
        }
        if self.replacing.under_way {
            return busy("an app is being replaced");
        }
        if self.gated {
            return busy("the stack is being audited");
        }
        let plan = &self.ground.plan;
        let can = |name: &PartName| {
            let app = plan
                .app(name)
                .ok_or_else(|| Box::new(refused(format!("{name} is gone"), None)))?;
            plan.can_roll(app)
                .map_err(|e| Box::new(refused(e.to_string(), Some(e.hint().to_owned()))))
        };
        let apps: Vec<PartName> = match part {
            Some(name) => {
                let id = self.find_app(name)?;
                let name = self.ground.app_plan(id).name.clone();
                can(&name)?;
                vec![name]
            }
            None => {
                let order = plan.start_order().into_iter();
                let apps = order.map(|place| plan.apps[place].name.clone());
                apps.filter(|name| can(name).is_ok()).collect()
            }
        };
        if apps.is_empty() {
            let hint = "lrpns restart, without --rolling, restarts in place";
            let why = "no app of it can be replaced while it runs".to_owned();
            return Err(Box::new(refused(why, Some(hint.to_owned()))));
        }
        Ok(apps)
    }

    /// Which of two a part is.
    pub(super) fn turn(&self, id: PartId) -> Turn {
        match id {
            PartId::App(number) => match self.ground.place(number) {
                Some(place) => self.ground.plan.apps[place].turn,
                None => Turn::Goes,
            },
            PartId::Sidecar | PartId::Relay | PartId::Egress => Turn::Serves,
        }
    }

    /// Does what the task wants.
    pub(super) fn step_of_replacing(&mut self, step: Step) {
        match step {
            Step::Hold(held) if self.entries.is_changing() => self.replacing.holds = Some(held),
            Step::Hold(held) => {
                self.replacing.held = true;
                let _ = held.send(());
            }
            Step::Release => {
                self.replacing.held = false;
                self.enforce();
            }
            Step::Ground(ground) => {
                self.journal.traffic.rename(Names::of(&ground.plan));
                self.ground = ground;
            }
            Step::Start(id, client) => {
                let mut part = Part::new(id);
                part.waiting.push(client);
                self.parts.push(part);
                self.launch(id);
            }
            Step::Runs(id, answer) => {
                let mut parts = self.parts.iter();
                let runs = parts.any(|part| {
                    part.id == id && part.process.is_some() && part.state == PartState::Running
                });
                let _ = answer.send(runs);
            }
            Step::End(id, ended) => self.end_of_turn(id, ended),
            Step::Remove(id) => self.parts.retain(|part| part.id != id),
            Step::Replaced(old, new) => self.replaced(old, new),
            Step::Note(name, text) => {
                self.journal
                    .write(super::journal::event_line(name.to_string(), text));
            }
            Step::Over => self.replacing.under_way = false,
        }
    }

    fn end_of_turn(&mut self, id: PartId, ended: oneshot::Sender<()>) {
        let stop = self.stop(id);
        let Some(part) = self.parts.iter_mut().find(|part| part.id == id) else {
            return;
        };
        // With it goes what it has started.
        if let Some(starting) = part.starting.take() {
            starting.abort();
        }
        part.give_up = None;
        part.waiting.clear();
        let Some(process) = &part.process else {
            let _ = ended.send(());
            return;
        };
        let orders = process.orders.clone();
        let _ = orders.send(Order::Stop(stop));
        tokio::spawn(async move {
            orders.closed().await;
            let _ = ended.send(());
        });
    }

    fn replaced(&mut self, old: PartId, new: PartId) {
        let place = |id| self.parts.iter().position(|part| part.id == id);
        let (Some(before), Some(after)) = (place(old), place(new)) else {
            return;
        };
        self.parts.swap(before, after);
        let gone = self.parts.remove(after);
        let part = &mut self.parts[before];
        part.restarts += gone.restarts + 1;
        part.backoff = Backoff::default();
    }
}

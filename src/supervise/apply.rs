//! A live change: one task that goes through it step by step, and what it needs of the loop meanwhile.
//!
//! # Theory of operation
//!
//! ```text
//! another Ground -> parts that have changed start again -> apps that are new start, behind rules without their ports
//!     -> the sidecar's rules -> the host's table -> the path is tried
//!     -> listen, another relay, what is closed refuses -> that is tried -> confirmed -> the host's table loses the rest
//! ```
//!
//! Whatever doesn't work, or isn't confirmed, takes back what was done.
//!
//! - **What decides is the sidecar's rules**, which this process can change and change back by itself (a loader, see
//!   [`Ground::load_rules`]). The host's table is the client's to change: this process has dropped NET_ADMIN over the host's
//!   namespace, and the kernel looks at who sends as well as at who opened the socket (`netlink_net_capable()`). So until
//!   the change is confirmed the host's table only gains: should the client be gone when the old rules have to come back,
//!   what is left over in it leads to a port of the sidecar that nobody answers.
//! - **What an app that joins is in** (namespaces, cgroup, links that are down) is made before anything is changed. Its id
//!   maps are the client's to write ([`Mapper`]): this process has dropped SETUID and SETGID. Its links come up behind rules
//!   that know it, with what it may reach and without its ports, which are opened when it listens.
//! - **An app that leaves** runs on until the change is confirmed; until then only its ports are closed.
//! - **Listening sockets stay**; the relay that takes their connections is another process, since one that is confined to
//!   its targets can't be given more. The earlier one takes last orders.
//! - **A port that closes** refuses at once who is new; who is connected stays ([`crate::plan::AppPlan::closing`]).

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use ipnet::IpNet;
use nftables::schema::Nftables;
use tokio::sync::{mpsc, oneshot};

use super::{Event, Order, Outcome, Part, PartState, Process, Supervisor, refused, tell};
use crate::admission::Rate;
use crate::change::{self, Change, PartChange};
use crate::config::Protocol;
use crate::control::{Apply, Applying, Reply, Request, Said};
use crate::firewall;
use crate::names::PartName;
use crate::namespaces::Mapper;
use crate::plan::{AppPlan, Plan};
use crate::protocol::Channel;
use crate::publish::{self, Listener};
use crate::stack::{Ground, Launched, PartId, StackError};
use crate::state;
use crate::traffic::line::Names;

/// How long a port that must be closed may take to turn out to be open: a connection within this machine takes a
/// thousandth of it.
const CLOSED_AFTER: Duration = Duration::from_millis(100);
/// How long the client may take for the host's table.
const CLIENT_WITHIN: Duration = Duration::from_secs(20);
/// How many earlier relays there may be: each is a process of the relay's cgroup.
const LEAVING: usize = 24;

/// What the task wants of the loop.
pub(super) enum Step {
    /// What is started from now on is started on this.
    Ground(Arc<Ground>),
    /// There is a part more, to be started.
    Join(PartId),
    /// These parts end for good; when they have, it is said.
    Leave(Vec<PartId>, oneshot::Sender<()>),
    /// Another relay has the published ports, or, with none published, there is no relay any more.
    Relay(Option<Box<Launched>>),
    /// The host's table holds this now.
    Host(Box<Nftables<'static>>),
    /// A line for the log, about the sidecar.
    Note(String),
    /// It is over.
    Over,
}

impl Supervisor {
    /// Begins a live change, unless there is one.
    pub(super) fn apply(&mut self, apply: Apply, sockets: Vec<OwnedFd>, channel: Channel) {
        let leaving = self.leaving.iter().filter(|relay| relay.lives()).count();
        let why = if self.applying {
            Some("another live change is under way".to_owned())
        } else if apply.running != self.ground.plan {
            Some("the stack has changed meanwhile".to_owned())
        } else if leaving >= LEAVING {
            Some(format!(
                "{LEAVING} earlier relays still carry connections: wait for their end, or restart the stack"
            ))
        } else {
            None
        };
        let change = change::between(&self.ground.plan, &apply.wanted).map_err(|e| e.to_string());
        let socket = self.host_table.as_fd().try_clone_to_owned();
        let (change, host_socket) = match (why, change, socket) {
            (None, Ok(change), Ok(socket)) => (change, socket),
            (why, change, socket) => {
                let socket = socket.err().map(|e| format!("copy a socket: {e}"));
                let why = why.or(change.err()).or(socket).unwrap_or_default();
                let reply = refused(why, None);
                tokio::spawn(async move { channel.send(&reply, &[]).await });
                return;
            }
        };
        self.applying = true;
        let task = Task {
            old: Arc::clone(&self.ground),
            change,
            channel,
            events: self.sender.clone(),
            host_socket,
            host_rules: self.host_rules.clone(),
            done: Done::default(),
        };
        while self.launching.try_join_next().is_some() {}
        self.launching.spawn(task.run(apply, sockets));
    }

    /// Does what the task wants.
    pub(super) fn step_of_apply(&mut self, step: Step) -> Option<Outcome> {
        match step {
            Step::Ground(ground) => {
                self.journal.traffic.rename(Names::of(&ground.plan));
                self.ground = ground;
            }
            Step::Join(id) => self.parts.push(Part::new(id)),
            Step::Leave(ids, ended) => self.leave(&ids, ended),
            Step::Relay(launched) => self.take_over(launched.map(|launched| *launched)),
            Step::Host(rules) => self.host_rules = *rules,
            Step::Note(text) => self.note(PartId::Sidecar, text),
            Step::Over => {
                self.applying = false;
                return self.all_ended();
            }
        }
        None
    }

    fn leave(&mut self, ids: &[PartId], ended: oneshot::Sender<()>) {
        let (gone, stay) = std::mem::take(&mut self.parts)
            .into_iter()
            .partition::<Vec<_>, _>(|part| ids.contains(&part.id));
        self.parts = stay;
        let mut ending = vec![];
        for part in gone {
            let name = self.ground.name(part.id);
            for client in part.waiting.iter().chain(&part.waiting_for_next) {
                tell(client, refused(format!("{name} is gone"), None));
            }
            // With it goes what it has started.
            if let Some(starting) = part.starting {
                starting.abort();
            }
            ending.extend(part.process);
        }
        self.launching.spawn(async move {
            join_all(ending.into_iter().map(|process| process.end(true))).await;
            let _ = ended.send(());
        });
    }

    /// The relay that was takes last orders, another one is the relay.
    fn take_over(&mut self, launched: Option<Launched>) {
        self.leaving.retain(Process::lives);
        let known = self.parts.iter().any(|part| part.id == PartId::Relay);
        if !known && launched.is_some() {
            let mut part = Part::new(PartId::Relay);
            part.launch = self.relays;
            self.parts.push(part);
        }
        if known {
            let part = self.part(PartId::Relay);
            // What that process and a start of it still have to say is not the relay's any more.
            part.launch += 1;
            part.launching = false;
            let launch = part.launch;
            if let Some(process) = part.process.take() {
                let _ = process.orders.send(Order::LastOrders);
                self.leaving.push(process);
            }
            self.relays = launch + 1;
        }
        match launched {
            Some(launched) => {
                self.adopt(PartId::Relay, launched);
                self.part(PartId::Relay).state = PartState::Running;
            }
            None => self.parts.retain(|part| part.id != PartId::Relay),
        }
    }
}

/// Maps ids by way of the client: this process has dropped what that takes.
struct ByClient<'c>(&'c mut Channel);

impl Mapper for ByClient<'_> {
    async fn map(&mut self, process: BorrowedFd<'_>, uids: &str, gids: &str) -> io::Result<()> {
        let own = std::fs::File::open("/proc/self/ns/user")?;
        let order = Reply::Applying(Applying::Map {
            uids: uids.to_owned(),
            gids: gids.to_owned(),
        });
        self.0.send(&order, &[process, own.as_fd()]).await?;
        answered(self.0).await.map_err(io::Error::other)
    }
}

/// Waits until the client has done what it was asked for.
async fn answered(channel: &mut Channel) -> Result<(), String> {
    let answered = async {
        loop {
            match channel.receive::<Said>().await {
                Ok(Some((Said::Changed(changed), _))) => return changed,
                // It has thought better of it; but what it was asked for comes first.
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return Err("the client is gone".to_owned()),
            }
        }
    };
    let answer = tokio::time::timeout(CLIENT_WITHIN, answered).await;
    answer.unwrap_or_else(|_| Err("the client doesn't answer".to_owned()))
}

/// How far it has come, which is what has to be taken back.
#[derive(Default)]
struct Done {
    ground: bool,
    restarted: Vec<PartId>,
    joined: Vec<PartId>,
    rules: bool,
    host: bool,
    relay: bool,
}

/// What could not even begin. What nft says of a user's rules has lines of its own, and the cure is the same as for `up`.
fn untouched(e: &StackError) -> Reply {
    let why = e.to_string();
    let after = if why.contains('\n') { "\n" } else { "; " };
    let hint = match e {
        StackError::Extra(e) => e.hint().map(str::to_owned),
        StackError::Volume(e) => e.hint(),
        _ => None,
    };
    refused(format!("{why}{after}nothing was changed"), hint)
}

/// A live change.
struct Task {
    old: Arc<Ground>,
    change: Change,
    channel: Channel,
    events: mpsc::UnboundedSender<Event>,
    host_socket: OwnedFd,
    host_rules: Nftables<'static>,
    done: Done,
}

impl Task {
    async fn run(mut self, apply: Apply, sockets: Vec<OwnedFd>) {
        let new: Vec<Listener> = publish::new_ports(&apply.wanted, Some(&apply.running))
            .zip(sockets)
            .map(|(publish, socket)| Listener {
                address: publish.listen,
                protocol: publish.protocol,
                target: publish::target(&apply.wanted, publish),
                socket: Arc::new(socket),
            })
            .collect();
        let held = held(&apply.running, apply.wanted);
        let mut mapper = ByClient(&mut self.channel);
        let changed = self.old.changed(held, &new, &mut mapper).await;
        let reply = match changed {
            Ok(next) => self.go(&Arc::new(next), apply.confirm).await,
            Err(e) => untouched(&e),
        };
        self.tell(Step::Over);
        // Should the client be gone, nobody hears.
        let _ = self.channel.send(&reply, &[]).await;
    }

    /// There, or there and back.
    async fn go(&mut self, next: &Arc<Ground>, confirm: Option<u64>) -> Reply {
        let why = match self.forward(next, confirm).await {
            Ok(()) => {
                self.settle(next).await;
                return Reply::Applying(Applying::Applied);
            }
            Err(why) => why,
        };
        self.note(format!("live change: {why}; the old rules come back"));
        let left = self.back(next).await;
        if left.is_empty() {
            return refused(format!("{why}; all is as it was before"), None);
        }
        let left = left.join("; ");
        self.note(format!("live change: not taken back in full: {left}"));
        refused(
            format!("{why}; and it could not be taken back in full: {left}"),
            Some("lrpns down, then up".to_owned()),
        )
    }

    fn tell(&self, step: Step) {
        // The loop is gone only when this task is about to be.
        let _ = self.events.send(Event::Applying(step));
    }

    fn note(&self, text: String) {
        self.tell(Step::Note(text));
    }

    async fn say(&self, step: impl Into<String>) {
        let said = Reply::Applying(Applying::Step(step.into()));
        let _ = self.channel.send(&said, &[]).await;
    }

    /// All but the last step; what is about to be done is noted first.
    async fn forward(&mut self, next: &Arc<Ground>, confirm: Option<u64>) -> Result<(), String> {
        let old = Arc::clone(&self.old);
        let (old_plan, new_plan) = (&old.plan, &next.plan);
        self.done.ground = true;
        self.tell(Step::Ground(Arc::clone(next)));
        let (sidecar, others): (Vec<_>, Vec<_>) = self
            .change
            .restart
            .clone()
            .into_iter()
            .partition(|part| part.part == "sidecar");
        // That an app has gone it is to know when it has.
        let (_, sidecar): (Vec<_>, Vec<_>) = sidecar
            .into_iter()
            .partition(|part| self.only_tells_of_apps(part) && !self.change.removed.is_empty());
        for part in others {
            self.start_again(&part.part, next).await?;
        }
        let between = self.join(next).await?;
        for index in 0..new_plan.apps.len() {
            if let Some(deaf) = next.deaf(index).map_err(|e| e.to_string())? {
                return Err(deaf);
            }
        }

        self.done.rules = true;
        let updated = next.update_rules(&between, new_plan).await;
        updated.map_err(|e| e.to_string())?;
        self.say("the sidecar's rules are in force").await;
        for part in sidecar {
            self.start_again(&part.part, next).await?;
        }
        self.done.host = true;
        let more = firewall::host_rules(&both(old_plan, new_plan));
        self.change_host(more).await?;
        next.try_the_path().await.map_err(|e| e.to_string())?;
        self.say("apps answer through the sidecar").await;

        if ports(old_plan) != ports(new_plan) || clients(old_plan) != clients(new_plan) {
            self.done.relay = true;
            for listener in listeners(next, &old) {
                listener.listen().map_err(|e| e.to_string())?;
            }
            self.replace_relay(next).await?;
            for listener in listeners(&old, next) {
                listener.close();
            }
            self.say("ports are published").await;
        }
        let open = still_open(next, &entries(old_plan, new_plan)).await;
        if !open.is_empty() {
            return Err(format!("open, and should be closed: {}", open.join(", ")));
        }
        match confirm {
            Some(seconds) => self.confirmed(seconds).await,
            None => Ok(()),
        }
    }

    async fn start_again(&mut self, part: &str, next: &Ground) -> Result<(), String> {
        let id = find(next, part).ok_or("there is no such part")?;
        self.done.restarted.push(id);
        self.restart(id, next).await?;
        self.say(format!("{part} is started again")).await;
        Ok(())
    }

    /// Starts the apps that are new, where they can reach what they may and nobody comes to them yet. Gives back the plan
    /// that the sidecar's rules are of then.
    async fn join(&mut self, next: &Ground) -> Result<Plan, String> {
        let mut between = self.old.plan.clone();
        let joining = between.apps.len()..next.plan.apps.len();
        if joining.is_empty() {
            return Ok(between);
        }
        for app in &next.plan.apps[joining.clone()] {
            let mut app = app.clone();
            app.publish.clear();
            between.apps.push(app);
        }
        self.done.rules = true;
        let updated = next.update_rules(&self.old.plan, &between).await;
        updated.map_err(|e| e.to_string())?;
        for index in joining {
            next.join(index).await.map_err(|e| e.to_string())?;
            let id = next.apps().nth(index).ok_or("there is no such app")?;
            self.done.joined.push(id);
            self.tell(Step::Join(id));
            self.restart(id, next).await?;
            self.say(format!("{} is started", next.name(id))).await;
        }
        Ok(between)
    }

    /// Ends apps for good, and waits until they have.
    async fn end(&self, apps: Vec<PartId>) {
        let (ended, all) = oneshot::channel();
        self.tell(Step::Leave(apps, ended));
        // Without an answer the loop is gone, and they with it.
        let _ = all.await;
    }

    /// Starts a part again on the ground that is current, with its limits.
    async fn restart(&self, id: PartId, ground: &Ground) -> Result<(), String> {
        let name = ground.name(id);
        let limits = ground.limits(id);
        let limited = ground.cgroups.change(&ground.plan.cgroup, name, limits);
        limited.map_err(|e| e.to_string())?;
        let (client, mut answers) = mpsc::channel(4);
        let request = Request::Restart {
            part: Some(name.to_owned()),
        };
        let _ = self.events.send(Event::Asked(request, vec![], client));
        let answer = answers.recv().await.map(|answer| answer.replies);
        match answer.as_deref() {
            Some([Reply::Done]) => Ok(()),
            Some([Reply::Refused { why, .. }]) => Err(why.clone()),
            _ => Err(format!(
                "start {name} again: the supervisor didn't say how it went"
            )),
        }
    }

    /// Has the client change the host's table.
    async fn change_host(&mut self, new: Nftables<'static>) -> Result<(), String> {
        if self.host_rules == new {
            return Ok(());
        }
        let order = Reply::Applying(Applying::Host {
            old: Box::new(self.host_rules.clone()),
            new: Box::new(new.clone()),
        });
        let gone = |_: io::Error| "the client is gone".to_owned();
        let socket = self.host_socket.as_fd();
        self.channel.send(&order, &[socket]).await.map_err(gone)?;
        let answer = answered(&mut self.channel).await;
        answer.map_err(|e| format!("change the host's table: {e}"))?;
        self.host_rules = new.clone();
        self.tell(Step::Host(Box::new(new)));
        Ok(())
    }

    /// Starts another relay, for the ports of `ground`, and lets the one that is there take last orders.
    async fn replace_relay(&self, ground: &Ground) -> Result<(), String> {
        let launched = if !ground.plan.has_relay() {
            None
        } else {
            let launched = ground.relay().await.map_err(|e| e.to_string())?;
            Some(Box::new(launched))
        };
        self.tell(Step::Relay(launched));
        Ok(())
    }

    /// Asks whether it is to stay, and waits for the answer.
    async fn confirmed(&mut self, seconds: u64) -> Result<(), String> {
        let question = Reply::Applying(Applying::Confirm { seconds });
        if self.channel.send(&question, &[]).await.is_err() {
            return Err("the client is gone".to_owned());
        }
        let answer = self.channel.receive::<Said>();
        match tokio::time::timeout(Duration::from_secs(seconds), answer).await {
            Err(_) => Err(format!("not confirmed within {seconds} s")),
            Ok(Ok(Some((Said::Keep, _)))) => Ok(()),
            Ok(_) => Err("not confirmed".to_owned()),
        }
    }

    fn only_tells_of_apps(&self, part: &PartChange) -> bool {
        part.because.iter().all(|key| key.starts_with("app."))
    }

    /// Ends the apps that leave, and takes away what they had.
    async fn part_with(&mut self, held: &Arc<Ground>) -> Arc<Ground> {
        let apps: Vec<usize> = (0..held.plan.apps.len())
            .filter(|app| {
                let name = held.plan.apps[*app].name.as_str();
                self.change.removed.iter().any(|removed| removed == name)
            })
            .collect();
        if apps.is_empty() {
            return Arc::clone(held);
        }
        let next = Arc::new(held.without(&apps));
        let ids = held.apps().enumerate();
        let leaving = ids.filter(|(place, _)| apps.contains(place));
        self.end(leaving.map(|(_, id)| id).collect()).await;
        self.tell(Step::Ground(Arc::clone(&next)));
        let mut left = vec![];
        if next.update_rules(&held.plan, &next.plan).await.is_err() {
            left.extend(load_whole(&next).await.err());
        }
        left.extend(held.remove(apps).await.err().map(|e| e.to_string()));
        if let Some(sidecar) = find(&next, "sidecar")
            && self
                .change
                .restart
                .iter()
                .any(|part| part.part == "sidecar")
        {
            left.extend(self.restart(sidecar, &next).await.err());
        }
        for why in left {
            self.note(format!("live change: {why}"));
        }
        next
    }

    /// The change stays.
    async fn settle(&mut self, next: &Arc<Ground>) {
        let next = &self.part_with(next).await;
        // A port that is published no more is closed already, by the sidecar.
        if let Err(e) = self.change_host(firewall::host_rules(&next.plan)).await {
            self.note(format!(
                "live change: {e}; what is left in it leads nowhere"
            ));
        }
        if let Err(e) = state::save(&next.plan) {
            self.note(format!("live change: {e}"));
        }
        let restarts = self.change.restart.iter().flat_map(|part| &part.because);
        let keys: Vec<&str> = self
            .change
            .live
            .iter()
            .chain(&self.change.added)
            .chain(&self.change.removed)
            .chain(restarts)
            .map(String::as_str)
            .collect();
        self.note(format!("live change: {}", keys.join(", ")));
    }

    /// Takes back what has been done; what can't be is told.
    async fn back(&mut self, next: &Arc<Ground>) -> Vec<String> {
        let old = Arc::clone(&self.old);
        let mut left = vec![];
        if self.done.rules && old.update_rules(&next.plan, &old.plan).await.is_err() {
            // Whatever is in force, by now or still.
            left.extend(load_whole(&old).await.err());
        }
        // While they are there the ground has to be one that knows them.
        let joined = std::mem::take(&mut self.done.joined);
        self.end(joined).await;
        if self.done.ground {
            self.tell(Step::Ground(Arc::clone(&old)));
        }
        let joined = old.plan.apps.len()..next.plan.apps.len();
        left.extend(next.remove(joined).await.err().map(|e| e.to_string()));
        for id in std::mem::take(&mut self.done.restarted) {
            left.extend(self.restart(id, &old).await.err());
        }
        if self.done.relay {
            for listener in listeners(next, &old) {
                listener.close();
            }
            for listener in listeners(&old, next) {
                left.extend(listener.listen().err().map(|e| e.to_string()));
            }
            left.extend(self.replace_relay(&old).await.err());
        }
        if self.done.host
            && let Err(e) = self.change_host(firewall::host_rules(&old.plan)).await
        {
            self.note(format!(
                "live change: {e}; what is left in it leads nowhere"
            ));
        }
        left
    }
}

/// Puts the sidecar's rules in the place of whatever there is.
async fn load_whole(ground: &Ground) -> Result<(), String> {
    let rules = firewall::sidecar_batch(&ground.plan);
    let loaded = ground.load_rules(rules.map_err(|e| e.to_string())?).await;
    loaded.map_err(|e| e.to_string())
}

/// The part of that name.
fn find(ground: &Ground, name: &str) -> Option<PartId> {
    [PartId::Sidecar, PartId::Relay]
        .into_iter()
        .chain(ground.apps())
        .find(|id| ground.name(*id) == name)
}

/// The new plan with the apps that leave, as long as it isn't confirmed: nobody gets in to them any more, and who was in
/// stays. Those that either plan has keep their places.
fn held(old: &Plan, new: Plan) -> Plan {
    let mut held = new;
    let mut apps = vec![];
    for before in &old.apps {
        let place = held.apps.iter().position(|app| app.name == before.name);
        apps.push(match place {
            Some(place) => held.apps.remove(place),
            None => {
                let closing = before.reachable().cloned();
                let closing = closing.filter(|publish| publish.protocol == Protocol::Tcp);
                AppPlan {
                    closing: closing.collect(),
                    publish: vec![],
                    ..before.clone()
                }
            }
        });
    }
    apps.append(&mut held.apps);
    Plan { apps, ..held }
}

/// The new plan with every port that either has.
fn both(old: &Plan, new: &Plan) -> Plan {
    let mut both = new.clone();
    let known: Vec<_> = new
        .published()
        .map(|(_, publish)| publish.outside())
        .collect();
    for app in &mut both.apps {
        let before = old.app(&app.name).map(|app| app.publish.as_slice());
        let closing = before.unwrap_or_default().iter();
        app.publish
            .extend(closing.filter(|p| !known.contains(&p.outside())).cloned());
    }
    both
}

/// What the relay has to know: where it listens, and where that leads.
fn ports(plan: &Plan) -> BTreeSet<(SocketAddr, Protocol, u16)> {
    plan.published()
        .map(|(_, publish)| (publish.listen, publish.protocol, publish.entry_port))
        .collect()
}

/// Whom the relay lets in to each app.
fn clients(plan: &Plan) -> Vec<(&PartName, &[IpNet], Option<Rate>)> {
    let apps = plan.apps.iter();
    apps.map(|app| (&app.name, app.allow.as_slice(), app.rate))
        .collect()
}

/// The listening sockets that only the first has.
fn listeners<'g>(these: &'g Ground, those: &'g Ground) -> impl Iterator<Item = &'g Listener> {
    these.listeners().iter().filter(|listener| {
        let mut those = those.listeners().iter();
        !those.any(|other| other.outside() == listener.outside())
    })
}

/// The entry ports that lead nowhere any more.
fn entries(old: &Plan, new: &Plan) -> BTreeSet<SocketAddr> {
    let of = |plan: &Plan| -> BTreeSet<SocketAddr> {
        plan.published()
            // Silence is no proof by UDP.
            .filter(|(_, publish)| publish.protocol == Protocol::Tcp)
            .map(|(_, publish)| plan.uplink.entry(publish))
            .collect()
    };
    of(old).difference(&of(new)).copied().collect()
}

async fn still_open(ground: &Ground, entries: &BTreeSet<SocketAddr>) -> Vec<String> {
    let asked = join_all(
        entries
            .iter()
            .map(|entry| ground.answers(*entry, CLOSED_AFTER)),
    )
    .await;
    let open = entries.iter().zip(asked).filter(|(_, open)| *open);
    open.map(|(entry, _)| format!("entry port {}", entry.port()))
        .collect()
}

//! A live change: one task that goes through it step by step, and what it needs of the loop meanwhile.
//!
//! # Theory of operation
//!
//! ```text
//! another Ground -> rules and routes to what is granted besides
//!     -> parts that have changed start again -> apps that are new start, behind rules without their ports
//!     -> the sidecar's rules -> routes to what is granted no more go -> the host's table -> the path is tried
//!     -> listen, another relay, what is closed refuses -> that is tried -> confirmed
//!     -> connections that are not granted are forgotten -> the host's table loses the rest
//! ```
//!
//! Whatever doesn't work, or isn't confirmed, takes back what was done.
//!
//! - **The saved plan is the client's to write**, who is trusted where this process need not be: before anything changes, which
//!   finds a file system that is full, and when the change stays. Should the client be gone by then, it stays all the same, since
//!   there is no way back: the log says that its plan isn't saved, and there is no other live change until the stack was brought
//!   up anew.
//! - **What decides is the sidecar's rules**, which this process can change and change back by itself (a loader, see
//!   [`Ground::load_rules`]). The host's table is the client's to change: this process has dropped NET_ADMIN over the
//!   host's namespace, and the kernel looks at who sends as well as at who opened the socket (`netlink_net_capable()`).
//!   So until the change is confirmed the host's table only gains: should the client be gone when the old rules have to
//!   come back, what is left over in it leads to a port of the sidecar that nobody answers.
//! - **What an app that joins is in** (namespaces, cgroup, links that are down) is made before anything is changed. Its
//!   id maps are the client's to write ([`Mapper`]): this process has dropped SETUID and SETGID. Its links come up
//!   behind rules that know it, with what it may reach and without its ports, which are opened when it listens.
//! - **What an app may reach** it may reach before it starts again, since it may need it to start, and so does one that
//!   joins. What it may reach no more it has no route to, and the sidecar drops it before conntrack is asked (`guard`).
//!   What comes back on a connection that was made is let in as its answer until that is forgotten, by a process as the
//!   loader, and in the host's namespace by the client: when the change is confirmed, so that a connection which must
//!   come back has only lost some packets. The routes are changed by the sockets that were made with an app's network
//!   namespace, as those of an app that joins are: the namespace's owner made this process.
//! - **An app that sees its clients no more** starts again: it has no route to them then. Between its start and the rules
//!   nobody is let in to it, who would be lost.
//! - **Cgroups are the client's** to make, to limit and to remove, since they are root's. Of an app that was replaced the old
//!   one's stays until the end, limits and all, so that it can come back without a client. Limits can't: should the client be gone
//!   when the old ones are to come back, the part has the new ones, and the log says so.
//! - **An app that leaves** runs on until the change is confirmed; until then only its ports are closed.
//! - **Listening sockets stay**; a port that moves from one address to all of them, or back, is at both
//!   (`SO_REUSEPORT`) until the other relay has it. The relay that takes their connections is another process, since
//!   one that is confined to its targets can't be given more. The earlier one takes last orders.
//! - **A port that closes** refuses at once who is new; who is connected stays ([`crate::plan::AppPlan::closing`]).

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{FutureExt, join_all};
use ipnet::IpNet;
use nftables::schema::Nftables;
use tokio::sync::{mpsc, oneshot};

use super::replace::Replacement;
use super::{Event, Order, Outcome, Part, PartState, Process, Supervisor, refused, tell};
use crate::config::clients::Rate;
use crate::config::{Egress, Protocol, Source};
use crate::control::{Apply, Applying, Reply, Request, Said};
use crate::firewall::{self, Grants};
use crate::names::PartName;
use crate::net::handed::Held;
use crate::net::publish::{self, Listener};
use crate::part::cgroup::Entrance;
use crate::part::namespaces::{Itself, Mapper};
use crate::part::secrets;
use crate::plan::change::{self, Change, PartChange};
use crate::plan::{AppPlan, Mode, Plan, PublishPlan, Turn};
use crate::protocol::{Channel, MAX_FDS};
use crate::stack::{self, Ground, Launched, Open, Opened, PartId, StackError, Wait};
use crate::traffic::line::Names;

/// How long a port that must be closed may take to turn out to be open: a connection within this machine takes a
/// thousandth of it.
const CLOSED_AFTER: Duration = Duration::from_millis(100);
/// How long the client may take for the host's table.
const CLIENT_WITHIN: Duration = Duration::from_secs(20);
/// Of addresses that are listened on no more, so many are tried.
const PORTS_TRIED: usize = 16;
/// Of what an app may reach no more, so much is tried.
const REVOKED_TRIED: usize = 8;
/// How many earlier relays there may be: each is a process of the relay's cgroup.
const LEAVING: usize = 24;

/// Why a change is taken back that its client wants no more.
const INTERRUPTED: &str = "interrupted";

/// What the task wants of the loop.
pub(super) enum Step {
    /// What is started from now on is started on this.
    Ground(Arc<Ground>),
    /// There is a part more, to be started.
    Join(PartId),
    /// This part, which is being started, need not come up.
    GiveUp(PartId),
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

/// A live change that has not begun.
pub(super) struct Waiting {
    pub(super) apply: Apply,
    pub(super) sockets: Vec<OwnedFd>,
    pub(super) channel: Channel,
}

impl Supervisor {
    /// Begins a live change, unless there is one. Ports that are being closed or opened are waited for.
    pub(super) fn apply(&mut self, apply: Apply, sockets: Vec<OwnedFd>, channel: Channel) {
        if self.entries.is_changing() && self.entries.waiting.is_none() {
            self.entries.waiting = Some(Waiting {
                apply,
                sockets,
                channel,
            });
            return;
        }
        let leaving = self.leaving.iter().filter(|relay| relay.lives()).count();
        let why = if self.replacing.is_under_way() {
            Some("an app is being replaced: try again when that is over".to_owned())
        } else if self.applying || self.entries.waiting.is_some() {
            Some("another live change is under way".to_owned())
        } else if apply.running != self.ground.plan {
            Some("the stack has changed meanwhile".to_owned())
        } else if let Some(why) = self.would_leave_a_unit(&apply.wanted) {
            Some(why)
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
        super::manager::changes();
        let task = Task {
            old: Arc::clone(&self.ground),
            change,
            channel,
            events: self.sender.clone(),
            host_socket,
            host_rules: self.host_rules.clone(),
            reverted: false,
            deaf: false,
            moves: vec![],
            moved: vec![],
            done: Done::default(),
        };
        while self.launching.try_join_next().is_some() {}
        self.launching.spawn(task.run(apply, sockets));
    }

    /// A port that a socket unit has, and that is published no more: who connects there would wait for ever.
    fn would_leave_a_unit(&self, wanted: &Plan) -> Option<String> {
        let published: Vec<_> = wanted.published().map(|(_, port)| port.outside()).collect();
        self.ground.listeners().iter().find_map(|listener| {
            let Held::Handed(unit) = &listener.held else {
                return None;
            };
            let (address, protocol) = listener.outside();
            (!published.contains(&(address, protocol))).then(|| {
                format!("{unit} has {address}/{protocol}, which is published no more: change the socket unit, restart it, then the stack")
            })
        })
    }

    /// Does what the task wants.
    pub(super) fn step_of_apply(&mut self, step: Step) -> Option<Outcome> {
        match step {
            Step::Ground(ground) => {
                self.journal.traffic.rename(Names::of(&ground.plan));
                self.record_as(&ground.plan);
                let before = std::mem::replace(&mut self.ground, ground);
                self.check_as_planned(&before);
            }
            Step::Join(id) => self.parts.push(Part::new(id)),
            Step::GiveUp(id) => self.give_up(id),
            Step::Leave(ids, ended) => self.leave(&ids, ended),
            Step::Relay(launched) => self.take_over(launched.map(|launched| *launched)),
            Step::Host(rules) => self.host_rules = *rules,
            Step::Note(text) => self.note(PartId::Sidecar, text),
            Step::Over => {
                self.applying = false;
                self.close_directories();
                self.change_is_over();
                (self.changed)(&self.status());
                return self.all_ended();
            }
        }
        None
    }

    /// Waits no longer for an app to listen, nor for a job to end.
    fn give_up(&mut self, id: PartId) {
        if !self.parts.iter().any(|part| part.id == id) {
            return;
        }
        let job = self.is_job(id).then(|| self.stop(id));
        let part = self.part(id);
        part.give_up = None;
        if let (Some(stop), Some(process)) = (job, &part.process) {
            let _ = process.orders.send(Order::Stop(stop));
        }
    }

    fn leave(&mut self, ids: &[PartId], ended: oneshot::Sender<()>) {
        let (gone, stay) = std::mem::take(&mut self.parts)
            .into_iter()
            .partition::<Vec<_>, _>(|part| ids.contains(&part.id));
        self.parts = stay;
        let mut ending = vec![];
        for part in gone {
            let stop = self.stop(part.id);
            let name = self.ground.name(part.id);
            for client in part.waiting.iter().chain(&part.waiting_for_next) {
                tell(client, refused(format!("{name} is gone"), None));
            }
            // With it goes what it has started.
            if let Some(starting) = part.starting {
                starting.abort();
            }
            ending.extend(part.process.map(|process| (process, stop)));
        }
        self.launching.spawn(async move {
            let ending = ending.into_iter();
            join_all(ending.map(|(process, stop)| process.end(Some(stop)))).await;
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
                let _ = process.orders.send(Order::LastOrders(None));
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

/// Has the client do what takes power over the host, which this process has dropped. An ordinary user's supervisor has all in its
/// own mount namespace, and the user has no more.
struct ByClient<'c>(&'c mut Channel, &'c mut bool);

impl Mapper for ByClient<'_> {
    async fn map(&mut self, process: BorrowedFd<'_>, uids: &str, gids: &str) -> io::Result<()> {
        let own = std::fs::File::open("/proc/self/ns/user")?;
        let order = Reply::Applying(Applying::Map {
            uids: uids.to_owned(),
            gids: gids.to_owned(),
        });
        send(self.0, &order, &[process, own.as_fd()]).await?;
        answered(self.0, self.1).await.map_err(io::Error::other)
    }
}

impl Open for ByClient<'_> {
    async fn open(&mut self, plan: &Plan, app: usize) -> Result<Opened, StackError> {
        if plan.mode == Mode::Rootless {
            return Itself.open(plan, app).await;
        }
        let app = plan.apps[app].name.clone();
        let opened = self.ask(Applying::Open { app }, |said, fds| match said {
            Said::Opened { secrets } => {
                let mut mounts = fds;
                let copies = mounts.split_off(mounts.len().saturating_sub(secrets.len()));
                Some(match secrets::taken(secrets, copies) {
                    Ok(secrets) => Ok(Opened {
                        mounts,
                        first: None,
                        secrets,
                    }),
                    Err(why) => Err(unopened(why)),
                })
            }
            Said::Failed { why, hint } => Some(Err(StackError::Unopened { why, hint })),
            _ => None,
        });
        opened.await?
    }

    async fn room(
        &mut self,
        plan: &Plan,
        _: usize,
        cgroup: &str,
    ) -> Result<Option<Entrance>, StackError> {
        if plan.cgroup.path.is_none() {
            return Ok(None);
        }
        let cgroup = cgroup.to_owned();
        let room = self.ask(Applying::Room { cgroup }, |said, fds| match said {
            Said::Room => Some(Ok(Entrance::of_fds(fds))),
            Said::Failed { why, hint } => Some(Err(StackError::Unopened { why, hint })),
            _ => None,
        });
        room.await?
    }

    async fn vacate(&mut self, plan: &Plan, cgroup: &str) -> Result<(), StackError> {
        if plan.cgroup.path.is_none() {
            return Ok(());
        }
        let cgroup = cgroup.to_owned();
        let vacated = self.ask(Applying::Vacate { cgroup }, |said, _| match said {
            Said::Changed(changed) => Some(changed),
            _ => None,
        });
        vacated.await?.map_err(unopened)
    }
}

fn unopened(why: String) -> StackError {
    StackError::Unopened { why, hint: None }
}

impl ByClient<'_> {
    /// Asks for something, and waits until the client has done it, as `heard` knows it.
    async fn ask<T>(
        &mut self,
        what: Applying,
        heard: impl Fn(Said, Vec<OwnedFd>) -> Option<T>,
    ) -> Result<T, StackError> {
        let sent = send(self.0, &Reply::Applying(what), &[]).await;
        sent.map_err(|_| unopened("the client is gone".to_owned()))?;
        answer(self.0, self.1, heard).await.map_err(unopened)
    }
}

/// Tells the client something. One that was stopped doesn't read, and must not keep a change between two plans.
async fn send(channel: &Channel, reply: &Reply, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let sent = tokio::time::timeout(CLIENT_WITHIN, channel.send(reply, fds)).await;
    sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Waits until the client has done what it was asked for.
async fn answered(channel: &mut Channel, reverted: &mut bool) -> Result<(), String> {
    let changed = |said, _| match said {
        Said::Changed(changed) => Some(changed),
        _ => None,
    };
    answer(channel, reverted, changed).await?
}

/// Waits for what the client answers, as `heard` knows it. It may have thought better of the change meanwhile.
async fn answer<T>(
    channel: &mut Channel,
    reverted: &mut bool,
    heard: impl Fn(Said, Vec<OwnedFd>) -> Option<T>,
) -> Result<T, String> {
    let answered = async {
        loop {
            match channel.receive::<Said>().await {
                // What it was asked for comes first.
                Ok(Some((Said::Revert, _))) => *reverted = true,
                Ok(Some((said, fds))) => {
                    if let Some(answer) = heard(said, fds) {
                        return Ok(answer);
                    }
                }
                Ok(None) | Err(_) => return Err("the client is gone".to_owned()),
            }
        }
    };
    let answer = tokio::time::timeout(CLIENT_WITHIN, answered).await;
    answer.unwrap_or_else(|_| {
        // A client that was stopped would do it late. It must see that nobody waits for that any more, or there is another
        // table than this process remembers.
        let _ = channel.end();
        Err("the client doesn't answer".to_owned())
    })
}

/// Waits until the client wants the change no more, or is gone; says which.
async fn given_up(channel: &mut Channel) -> String {
    loop {
        match channel.receive::<Said>().await {
            Ok(Some((Said::Revert, _))) => return INTERRUPTED.to_owned(),
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return "the client is gone".to_owned(),
        }
    }
}

/// The same while a part is started, which may take its time: what it is waited for the client is told.
async fn wanted_no_more(channel: &mut Channel, ground: Arc<Ground>, id: PartId) -> String {
    let mut wait = Wait::begin();
    loop {
        tokio::select! {
            why = given_up(channel) => return why,
            () = tokio::time::sleep_until(wait.next()) => {}
        }
        if let Some(what) = wait.due().and_then(|since| ground.not_yet(id, since)) {
            // That it is gone is heard of above.
            let _ = send(channel, &Reply::Applying(Applying::Step(what)), &[]).await;
        }
    }
}

/// How far it has come, which is what has to be taken back.
#[derive(Default)]
struct Done {
    ground: bool,
    restarted: Vec<PartId>,
    replaced: Vec<PartName>,
    joined: Vec<PartId>,
    rules: Rules,
    routes: bool,
    host: bool,
    relay: bool,
    /// The cgroups of apps that have come or gone.
    rooms: BTreeSet<String>,
}

/// Which rules are in force in the sidecar.
#[derive(Default)]
enum Rules {
    /// Those from before.
    #[default]
    Old,
    /// Those of this plan.
    Of(Box<Plan>),
    /// One or the other: who was to change them didn't say.
    Unknown,
}

/// What could not even begin. What nft says of a user's rules has lines of its own, and the cure is the same as for `up`.
fn untouched(e: &StackError) -> Reply {
    let why = e.to_string();
    let after = if why.contains('\n') { "\n" } else { "; " };
    let hint = match e {
        StackError::Extra(e) => e.hint().map(Cow::into_owned),
        StackError::Volume(e) => e.hint(),
        StackError::Secret(e) => e.hint(),
        StackError::Unopened { hint, .. } => hint.clone(),
        _ => None,
    };
    Reply::Refused {
        why: format!("{why}{after}nothing was changed"),
        hint,
        configuration: e.is_of_the_configuration(),
    }
}

/// A live change.
struct Task {
    old: Arc<Ground>,
    change: Change,
    channel: Channel,
    events: mpsc::UnboundedSender<Event>,
    host_socket: OwnedFd,
    host_rules: Nftables<'static>,
    /// The client wants it no more, and has said so while it was asked for something else.
    reverted: bool,
    /// The client reads no more: what it is told would come late, or in pieces.
    deaf: bool,
    /// The ports of TCP that move to another address, of which one is all of them…
    moves: Vec<SocketAddr>,
    /// …and their sockets.
    moved: Vec<Listener>,
    done: Done,
}

impl Task {
    async fn run(mut self, apply: Apply, sockets: Vec<OwnedFd>) {
        let reply = match self.sockets(&apply, sockets).await {
            Ok(sockets) => self.change(apply, sockets).await,
            Err(why) => refused(format!("{why}; nothing was changed"), None),
        };
        self.share_ports(false);
        self.tell(Step::Over);
        // Should the client be gone, nobody hears.
        let _ = self.channel.send(&reply, &[]).await;
    }

    /// A bound socket for each port that is new and for each that moves, of which this process has the `first` ones.
    async fn sockets(
        &mut self,
        apply: &Apply,
        mut first: Vec<OwnedFd>,
    ) -> Result<Vec<OwnedFd>, String> {
        publish::make_room_for(&apply.wanted);
        let count = publish::new_ports(&apply.wanted, Some(&apply.running)).count();
        self.take_more(&mut first, count).await?;
        let moved = publish::moved_ports(&apply.wanted, &apply.running);
        if !moved.is_empty() {
            self.moves = moved.iter().map(|publish| publish.listen).collect();
            self.share_ports(true);
            let ports = self.moves.clone();
            let order = Applying::Bind { ports };
            self.send(order, &[]).await?;
            self.take_more(&mut first, count + self.moves.len()).await?;
        }
        Ok(first)
    }

    /// Takes sockets from the client until there are as many.
    async fn take_more(&mut self, taken: &mut Vec<OwnedFd>, count: usize) -> Result<(), String> {
        let taking = async {
            while taken.len() < count {
                match self.channel.receive::<Said>().await {
                    Ok(Some((Said::More, more))) if !more.is_empty() => taken.extend(more),
                    Ok(Some((Said::Changed(Err(why)), _))) => return Err(why),
                    _ => return Err("the client has handed over too few sockets".to_owned()),
                }
            }
            Ok(())
        };
        let taken = tokio::time::timeout(CLIENT_WITHIN, taking).await;
        taken.unwrap_or_else(|_| Err("the client doesn't answer".to_owned()))
    }

    /// Whether it is of a port that moves between one address and all.
    fn moves(&self, listener: &Listener) -> bool {
        let mut moves = self.moves.iter();
        listener.protocol == Protocol::Tcp
            && moves.any(|moved| moved.port() == listener.address.port())
    }

    /// Lets the ports that move be at both of their addresses, or not any more.
    fn share_ports(&self, shared: bool) {
        for listener in self.old.listeners().iter().chain(&self.moved) {
            if self.moves(listener) {
                // What fails because of it says so.
                let _ = listener.share(shared);
            }
        }
        if !shared {
            for address in &self.moves {
                publish::end_of_sharing(address.port());
            }
        }
    }

    async fn change(&mut self, apply: Apply, sockets: Vec<OwnedFd>) -> Reply {
        let moved = publish::moved_ports(&apply.wanted, &apply.running);
        let ports = apply.wanted.published().count();
        let new: Vec<Listener> = publish::new_ports(&apply.wanted, Some(&apply.running))
            .chain(moved)
            .zip(sockets)
            .map(|(publish, socket)| Listener {
                held: Held::of_ours(publish, ports),
                early: 0,
                address: publish.listen,
                protocol: publish.protocol,
                target: publish::target(&apply.wanted, publish),
                socket: Arc::new(socket),
            })
            .collect();
        let moves = |listener: &&Listener| {
            listener.protocol == Protocol::Tcp && self.moves.contains(&listener.address)
        };
        self.moved = new.iter().filter(moves).cloned().collect();
        let held = change::held(&apply.running, apply.wanted);
        let mut mapper = ByClient(&mut self.channel, &mut self.reverted);
        let changed = self.old.changed(held, &new, &mut mapper).await;
        match changed {
            Ok(next) => self.go(Arc::new(next), apply.confirm).await,
            Err(e) => untouched(&e),
        }
    }

    /// There, or there and back.
    async fn go(&mut self, mut next: Arc<Ground>, confirm: Option<u64>) -> Reply {
        // What could not be saved is not begun.
        if let Err(e) = self.by_client(Applying::Stage).await {
            return refused(format!("{e}; nothing was changed"), None);
        }
        let why = match self.forward(&mut next, confirm).await {
            Ok(()) => {
                return match self.settle(&next).await {
                    Ok(()) => Reply::Applying(Applying::Applied),
                    Err(e) => refused(
                        format!("the change is in force, but its plan could not be saved: {e}"),
                        Some("lrpns down, then up".to_owned()),
                    ),
                };
            }
            Err(why) => why,
        };
        self.note(format!("live change: {why}; the old rules come back"));
        let started = [&self.done.restarted, &self.done.joined];
        let started = started.iter().any(|parts| !parts.is_empty());
        let started = started || !self.done.replaced.is_empty();
        let left = self.back(&next).await;
        if left.is_empty() {
            let stack = &next.plan.stack;
            let hint = started.then(|| format!("lrpns logs {stack} has what the parts said"));
            return refused(format!("{why}; all is as it was before"), hint);
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

    async fn say(&mut self, step: impl Into<String>) {
        let _ = self.send(Applying::Step(step.into()), &[]).await;
    }

    /// Tells the client how far it is, or what it is to do.
    async fn send(&mut self, what: Applying, fds: &[BorrowedFd<'_>]) -> Result<(), String> {
        let gone = || "the client is gone".to_owned();
        if self.deaf {
            return Err(gone());
        }
        let sent = send(&self.channel, &Reply::Applying(what), fds).await;
        self.deaf = sent.is_err();
        sent.map_err(|_| gone())
    }

    /// Has the client do something, and waits until it has.
    async fn by_client(&mut self, what: Applying) -> Result<(), String> {
        self.send(what, &[]).await?;
        answered(&mut self.channel, &mut self.reverted).await
    }

    /// All but the last step; what is about to be done is noted first.
    async fn forward(
        &mut self,
        next: &mut Arc<Ground>,
        confirm: Option<u64>,
    ) -> Result<(), String> {
        self.done.ground = true;
        self.tell(Step::Ground(Arc::clone(next)));
        let (mut sidecar, others): (Vec<_>, Vec<_>) = self
            .change
            .restart
            .clone()
            .into_iter()
            .partition(|part| part.part == "sidecar");
        // That an app has gone it is to know when it has.
        if !self.change.removed.is_empty() {
            sidecar.retain(|part| !part.because.iter().all(|key| is_of_app(key)));
        }
        let wide = change::wide(&self.old.plan, &next.plan);
        let mut between = behind_closed_ports(&wide, &next.plan);
        self.widen(next, &wide, &between).await?;
        self.start_apps(&others, next, &mut between).await?;
        let (old, next) = (Arc::clone(&self.old), Arc::clone(next));
        let (old_plan, new_plan, next) = (&old.plan, &next.plan, &next);
        for index in 0..new_plan.apps.len() {
            if let Some(deaf) = next.deaf(index).map_err(|e| e.to_string())? {
                return Err(deaf);
            }
        }

        self.rules(next, &between, new_plan).await?;
        self.say("the sidecar's rules are in force").await;
        let routes = next.only_own_routes(&old).await;
        routes.map_err(|e| e.to_string())?;
        for part in sidecar {
            self.start_again(&part.part, next).await?;
        }
        let more = firewall::host_rules(&change::both(old_plan, new_plan));
        self.change_host(more, vec![]).await?;
        next.try_the_path().await.map_err(|e| e.to_string())?;
        self.say("apps answer through the sidecar").await;

        self.publish(next).await?;
        self.try_what_is_closed(next).await?;
        self.try_what_is_revoked(next).await?;
        if let Some(seconds) = confirm {
            self.confirmed(seconds).await?;
        }
        // From here on there is no way back.
        self.still_wanted()?;
        self.revoke(next).await
    }

    /// Rules, the host's too, and routes to what is granted besides: `between` is `wide` as the sidecar is to have it.
    async fn widen(&mut self, next: &Ground, wide: &Plan, between: &Plan) -> Result<(), String> {
        let old = Arc::clone(&self.old);
        self.rules(next, &old.plan, between).await?;
        self.done.host = true;
        self.change_host(firewall::host_rules(wide), vec![]).await?;
        self.done.routes = true;
        next.add_routes(&old).await.map_err(|e| e.to_string())
    }

    /// Another relay, if what it has to know has changed.
    async fn publish(&mut self, next: &Ground) -> Result<(), String> {
        let old = Arc::clone(&self.old);
        let (before, after) = (&old.plan, &next.plan);
        let joins = (before.joins_datagrams(), after.joins_datagrams());
        let same = ports(before) == ports(after) && clients(before) == clients(after);
        if same && (joins.0 == joins.1 || !after.has_relay()) {
            return Ok(());
        }
        self.done.relay = true;
        for listener in listeners(next, &old) {
            listener.listen().map_err(|e| e.to_string())?;
        }
        self.replace_relay(next, &old).await?;
        self.share_ports(false);
        self.say("ports are published").await;
        Ok(())
    }

    /// Tries to connect where nobody listens any more, on the host and in the sidecar.
    async fn try_what_is_closed(&self, next: &Ground) -> Result<(), String> {
        let (before, after) = (&self.old.plan, &next.plan);
        let mut open = still_open(next, &entries(before, after)).await;
        for address in gone(before, after) {
            if next.answers(address, CLOSED_AFTER).await {
                open.push(address.to_string());
            }
        }
        if open.is_empty() {
            return Ok(());
        }
        Err(format!("open, and should be closed: {}", open.join(", ")))
    }

    /// The last step, by which connections that are granted no more end: who would have to take it back is known to be
    /// there.
    async fn revoke(&mut self, next: &Ground) -> Result<(), String> {
        let last = self.without_who_leaves(&next.plan);
        let revokes = revoked(&self.old.plan, &next.plan).next().is_some();
        if revokes {
            let forgotten = next.forget_ungranted().await;
            forgotten.map_err(|e| e.to_string())?;
        }
        let grants = revokes.then(|| firewall::host_grants(&last));
        self.change_host(firewall::host_rules(&last), grants.unwrap_or_default())
            .await
    }

    /// Changes the sidecar's rules from those of one plan to those of another.
    async fn rules(&mut self, ground: &Ground, from: &Plan, to: &Plan) -> Result<(), String> {
        let updated = ground.update_rules(from, to).await;
        match &updated {
            Ok(()) => self.done.rules = Rules::Of(Box::new(to.clone())),
            // The kernel has refused: all is as it was.
            Err(StackError::Rules(_)) => {}
            Err(_) => self.done.rules = Rules::Unknown,
        }
        updated.map_err(|e| e.to_string())
    }

    /// Tries to connect, from the apps' network namespaces, to what is granted no more. By UDP silence is no proof.
    async fn try_what_is_revoked(&self, next: &Ground) -> Result<(), String> {
        for index in 0..self.old.plan.apps.len() {
            let name = &self.old.plan.apps[index].name;
            let targets: Vec<SocketAddr> = revoked(&self.old.plan, &next.plan)
                .filter(|(app, egress)| app.name == *name && egress.protocol == Protocol::Tcp)
                .map(|(_, egress)| SocketAddr::new(within_reach_of(&egress), egress.first_port))
                .filter(|to| {
                    let mut granted = reach(&next.plan, &next.plan.apps[index]);
                    !granted.any(|egress| egress.covers(Protocol::Tcp, to.ip(), to.port()))
                })
                .take(REVOKED_TRIED)
                .collect();
            let reached = next.reached(index, &targets, CLOSED_AFTER).await;
            if let Some(target) = reached.map_err(|e| e.to_string())? {
                return Err(format!("{name} still reaches {target}, and should not"));
            }
        }
        Ok(())
    }

    /// The plan without the apps that leave.
    fn without_who_leaves(&self, held: &Plan) -> Plan {
        let mut last = held.clone();
        last.apps.retain(|app| !self.leaves(app));
        last
    }

    fn leaves(&self, app: &AppPlan) -> bool {
        let mut removed = self.change.removed.iter();
        removed.any(|name| name == app.name.as_str())
    }

    async fn start_again(&mut self, part: &str, next: &Ground) -> Result<(), String> {
        let id = find(next, part).ok_or("there is no such part")?;
        self.still_wanted()?;
        self.done.restarted.push(id);
        let old = Arc::clone(&self.old);
        self.limit(id, next, &old, false).await?;
        self.restart_if_wanted(id, next).await?;
        self.say(format!("{part} is started again")).await;
        Ok(())
    }

    /// Starts again the apps of which a part has changed, and starts those that are new, where they can reach what they may
    /// and nobody comes to them yet; in the order of the new plan.
    async fn start_apps(
        &mut self,
        changed: &[PartChange],
        next: &mut Arc<Ground>,
        in_force: &mut Plan,
    ) -> Result<(), String> {
        for index in next.plan.start_order() {
            let app = &next.plan.apps[index];
            let name = app.name.clone();
            if index >= self.old.plan.apps.len() {
                self.join(index, next).await?;
            } else if let Some(part) = changed.iter().find(|part| part.part == name.as_str()) {
                match part.rolling {
                    true => self.replace(name, next, in_force).await?,
                    false => self.start_again(name.as_str(), next).await?,
                }
            }
        }
        Ok(())
    }

    /// Puts another of an app in its place, made as `next` has it; the old one has ended then. `in_force` is the plan whose
    /// rules are.
    async fn replace(
        &mut self,
        name: PartName,
        next: &mut Arc<Ground>,
        in_force: &mut Plan,
    ) -> Result<(), String> {
        self.still_wanted()?;
        let place = next.plan.place_of(&name, Turn::Serves);
        let place = place.ok_or_else(|| format!("there is no such {name}"))?;
        let app = &next.plan.apps[place];
        let other = app.others_name();
        self.done.rooms.extend([app.own_name(), other.clone()]);
        let mut client = ByClient(&mut self.channel, &mut self.reverted);
        let room = client.room(&next.plan, place, &other).await;
        let mut one = Replacement {
            room: room.map_err(|e| e.to_string())?,
            events: self.events.clone(),
            name: name.clone(),
            ground: Arc::clone(next),
            rules: in_force.clone(),
            within_apply: true,
        };
        let channel = &mut self.channel;
        let went = one
            .run(|ground, id| wanted_no_more(channel, ground, id))
            .await;
        self.done.rules = Rules::Of(Box::new(one.rules.clone()));
        (*next, *in_force) = (one.ground, one.rules);
        went?;
        // Should all come back, it comes back to where the app is now.
        self.old = Arc::new(self.old.seated_as(next));
        self.say(format!("{name} is replaced")).await;
        self.done.replaced.push(name);
        Ok(())
    }

    async fn join(&mut self, index: usize, next: &Ground) -> Result<(), String> {
        self.still_wanted()?;
        next.join(index).await.map_err(|e| e.to_string())?;
        let id = next.apps().nth(index).ok_or("there is no such app")?;
        self.done.joined.push(id);
        self.tell(Step::Join(id));
        self.restart_if_wanted(id, next).await?;
        let how = match next.plan.apps[index].job {
            true => "is done",
            false => "is started",
        };
        self.say(format!("{} {how}", next.name(id))).await;
        Ok(())
    }

    /// Ends apps for good, and waits until they have.
    async fn end(&self, apps: Vec<PartId>) {
        let (ended, all) = oneshot::channel();
        self.tell(Step::Leave(apps, ended));
        // Without an answer the loop is gone, and they with it.
        let _ = all.await;
    }

    /// An error as soon as the client has said that it wants the change no more.
    fn still_wanted(&mut self) -> Result<(), String> {
        if self.reverted {
            return Err(INTERRUPTED.to_owned());
        }
        match given_up(&mut self.channel).now_or_never() {
            Some(why) => Err(why),
            None => Ok(()),
        }
    }

    /// Starts a part again as [`restart`]; a part that takes its time is not waited for when the client wants it no more.
    async fn restart_if_wanted(&mut self, id: PartId, ground: &Ground) -> Result<(), String> {
        let events = self.events.clone();
        let restart = restart(&events, id, ground);
        tokio::pin!(restart);
        let mut wait = Wait::begin();
        let why = loop {
            tokio::select! {
                done = &mut restart => return done,
                why = given_up(&mut self.channel) => break why,
                () = tokio::time::sleep_until(wait.next()) => {}
            }
            let what = wait.due().and_then(|since| ground.not_yet(id, since));
            if let Some(what) = what {
                self.say(what).await;
            }
        };
        self.tell(Step::GiveUp(id));
        // It has not come up, or it has just done so: either way it starts again as it was.
        let _ = restart.await;
        Err(why)
    }

    /// Has the client change the host's table, and forget what is not of these grants, if there are any.
    async fn change_host(
        &mut self,
        new: Nftables<'static>,
        grants: Vec<Grants>,
    ) -> Result<(), String> {
        if self.host_rules == new && grants.is_empty() {
            return Ok(());
        }
        let order = Applying::Host {
            old: Box::new(self.host_rules.clone()),
            new: Box::new(new.clone()),
            grants,
        };
        let socket = self.host_socket.try_clone().map_err(|e| e.to_string())?;
        self.send(order, &[socket.as_fd()]).await?;
        let answer = answered(&mut self.channel, &mut self.reverted).await;
        answer.map_err(|e| format!("change the host's table: {e}"))?;
        self.host_rules = new.clone();
        self.tell(Step::Host(Box::new(new)));
        Ok(())
    }

    /// Starts another relay, for the ports of `ground`, closes those that only `other` has, and lets the relay that is
    /// there take last orders.
    async fn replace_relay(&mut self, ground: &Ground, other: &Ground) -> Result<(), String> {
        let launched = if !ground.plan.has_relay() {
            None
        } else {
            let launched = ground.relay().await.map_err(|e| e.to_string())?;
            Some(Box::new(launched))
        };
        let closing: Vec<&Listener> = listeners(other, ground).collect();
        self.admit_no_more(&closing).await;
        stack::close(closing).await;
        self.tell(Step::Relay(launched));
        Ok(())
    }

    /// Has the client see to it that nobody is reset whose port only moves, where this process may not. Who is gone does not.
    async fn admit_no_more(&mut self, closing: &[&Listener]) {
        let refused = |listener: &&&Listener| listener.admit_no_more().is_err();
        let sockets: Vec<BorrowedFd<'_>> = closing
            .iter()
            .filter(|listener| self.moves(listener))
            .filter(refused)
            .map(|listener| listener.socket.as_fd())
            .take(MAX_FDS)
            .collect();
        if !sockets.is_empty() && self.send(Applying::AdmitNoMore, &sockets).await.is_ok() {
            let _ = answered(&mut self.channel, &mut self.reverted).await;
        }
    }

    /// Asks whether it is to stay, and waits for the answer.
    async fn confirmed(&mut self, seconds: u64) -> Result<(), String> {
        self.send(Applying::Confirm { seconds }, &[]).await?;
        let answer = self.channel.receive::<Said>();
        match tokio::time::timeout(Duration::from_secs(seconds), answer).await {
            Err(_) => Err(format!("not confirmed within {seconds} s")),
            Ok(Ok(Some((Said::Keep, _)))) => Ok(()),
            Ok(_) => Err("not confirmed".to_owned()),
        }
    }

    /// Ends the apps that leave, and takes away what they had.
    async fn part_with(&mut self, held: &Arc<Ground>) -> Arc<Ground> {
        let apps: Vec<usize> = (0..held.plan.apps.len())
            .filter(|app| self.leaves(&held.plan.apps[*app]))
            .collect();
        if apps.is_empty() {
            return Arc::clone(held);
        }
        let next = Arc::new(held.without(&apps));
        let names = apps.iter().map(|app| held.plan.apps[*app].own_name());
        self.done.rooms.extend(names);
        let ids = held.apps().enumerate();
        let leaving = ids.filter(|(place, _)| apps.contains(place));
        self.end(leaving.map(|(_, id)| id).collect()).await;
        self.tell(Step::Ground(Arc::clone(&next)));
        let mut left = vec![];
        if next.update_rules(&held.plan, &next.plan).await.is_err() {
            left.extend(load_whole(&next).await.err());
        }
        left.extend(held.remove(apps).await.err().map(|e| e.to_string()));
        // For its own keys it has been started again already.
        let restarts = &self.change.restart;
        let counts_by_place = |part: &PartChange| {
            part.part == "sidecar" && part.because.iter().any(|key| is_of_app(key))
        };
        if restarts.iter().any(counts_by_place) {
            left.extend(restart(&self.events, PartId::Sidecar, &next).await.err());
        }
        for why in left {
            self.note(format!("live change: {why}"));
        }
        next
    }

    /// The change stays.
    async fn settle(&mut self, next: &Arc<Ground>) -> Result<(), String> {
        let next = self.part_with(next).await;
        self.vacate(&next.plan).await;
        let plan = Box::new(next.plan.clone());
        let saved = self.by_client(Applying::Save { plan }).await;
        if let Err(e) = &saved {
            self.note(format!(
                "live change: it is in force, and its plan is not saved: {e}"
            ));
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
        saved
    }

    /// Takes back what has been done; what can't be is told.
    async fn back(&mut self, next: &Arc<Ground>) -> Vec<String> {
        let mut old = Arc::clone(&self.old);
        let mut left = vec![];
        let rules = match &self.done.rules {
            Rules::Old => true,
            Rules::Of(plan) => old.update_rules(plan, &old.plan).await.is_ok(),
            Rules::Unknown => false,
        };
        if !rules {
            // Whatever is in force, by now or still.
            left.extend(load_whole(&old).await.err());
        }
        if self.done.routes {
            // What is there already is no error, so this is all of them.
            for routes in [old.add_routes(next).await, old.only_own_routes(next).await] {
                left.extend(routes.err().map(|e| e.to_string()));
            }
        }
        // While they are there the ground has to be one that knows them.
        let joined = std::mem::take(&mut self.done.joined);
        self.end(joined).await;
        if self.done.ground {
            self.tell(Step::Ground(Arc::clone(&old)));
        }
        let joined = old.plan.apps.len()..next.plan.apps.len();
        let names = next.plan.apps[joined.clone()].iter();
        self.done.rooms.extend(names.map(AppPlan::own_name));
        left.extend(next.remove(joined).await.err().map(|e| e.to_string()));
        for name in std::mem::take(&mut self.done.replaced) {
            let mut one = Replacement {
                events: self.events.clone(),
                name: name.clone(),
                // That of the one before is there still.
                room: None,
                rules: old.plan.clone(),
                ground: Arc::clone(&old),
                within_apply: true,
            };
            let went = one.run(|_, _| std::future::pending()).await;
            old = one.ground;
            if went.is_err() {
                self.done.restarted.extend(find(&old, name.as_str()));
            }
        }
        for id in std::mem::take(&mut self.done.restarted) {
            left.extend(self.limit(id, &old, next, true).await.err());
            let again = restart(&self.events, id, &old).await;
            // What was not well before need not be so now.
            let was_ill =
                matches!(id, PartId::App(_)) && old.closed().contains(&old.app_plan(id).name);
            left.extend(again.err().filter(|_| !was_ill));
        }
        if self.done.relay {
            self.share_ports(true);
            for listener in listeners(&old, next) {
                left.extend(listener.listen().err().map(|e| e.to_string()));
            }
            left.extend(self.replace_relay(&old, next).await.err());
            self.share_ports(false);
        }
        if self.done.host
            && let Err(e) = self
                .change_host(firewall::host_rules(&old.plan), vec![])
                .await
        {
            self.note(format!(
                "live change: {e}; what is left in it leads nowhere"
            ));
        }
        self.vacate(&old.plan).await;
        left
    }

    /// Has a part's limits changed, if they are others in the other plan.
    async fn limit(
        &mut self,
        id: PartId,
        ground: &Ground,
        other: &Ground,
        back: bool,
    ) -> Result<(), String> {
        let name = ground.name(id);
        let before = find(other, name).map(|id| other.limits(id));
        let same = before.is_none_or(|before| before == ground.limits(id));
        if same || ground.plan.cgroup.path.is_none() {
            return Ok(());
        }
        let cgroup = ground.cgroup_name(id);
        let limited = self.by_client(Applying::Limit { cgroup, back }).await;
        limited.map_err(|e| format!("the limits of {name}: {e}"))
    }

    /// Has the cgroups removed that nobody of the plan is in any more. What can't be goes with the stack.
    async fn vacate(&mut self, plan: &Plan) {
        let mut rooms = std::mem::take(&mut self.done.rooms);
        for app in &plan.apps {
            rooms.remove(&app.own_name());
        }
        for cgroup in rooms {
            let mut client = ByClient(&mut self.channel, &mut self.reverted);
            if let Err(e) = client.vacate(plan, &cgroup).await {
                self.note(format!("live change: the cgroup of {cgroup}: {e}"));
            }
        }
    }
}

/// Starts a part again on the ground that is current.
async fn restart(
    events: &mpsc::UnboundedSender<Event>,
    id: PartId,
    ground: &Ground,
) -> Result<(), String> {
    let name = ground.name(id);
    let (client, mut answers) = mpsc::channel(4);
    let request = Request::Restart {
        part: Some(name.to_owned()),
    };
    let _ = events.send(Event::Asked(request, vec![], client));
    let answer = answers.recv().await.map(|answer| answer.replies);
    match answer.as_deref() {
        Some([Reply::Done]) => Ok(()),
        Some([Reply::Refused { why, .. }]) => Err(why.clone()),
        _ => Err(format!(
            "start {name} again: the supervisor didn't say how it went"
        )),
    }
}

/// Puts the sidecar's rules in the place of whatever there is.
async fn load_whole(ground: &Ground) -> Result<(), String> {
    let rules = ground.whole_rules();
    let loaded = ground.load_rules(rules.map_err(|e| e.to_string())?).await;
    loaded.map_err(|e| e.to_string())
}

/// Of the sidecar's reasons to start again: which apps there are, of which it counts the traffic by their places.
fn is_of_app(key: &str) -> bool {
    key.starts_with("app.")
}

/// The part of that name.
fn find(ground: &Ground, name: &str) -> Option<PartId> {
    [PartId::Sidecar, PartId::Relay]
        .into_iter()
        .chain(ground.apps())
        .find(|id| ground.name(*id) == name)
}

/// All that an app may connect to, other apps too.
fn reach<'p>(plan: &'p Plan, app: &'p AppPlan) -> impl Iterator<Item = Egress> + 'p {
    let links = plan.links(app).map(|(_, link)| link);
    app.egress.iter().copied().chain(links)
}

/// What the old plan grants and the new one doesn't.
fn revoked<'p>(old: &'p Plan, new: &'p Plan) -> impl Iterator<Item = (&'p AppPlan, Egress)> {
    old.apps.iter().flat_map(|app| {
        let after = new.app(&app.name).into_iter();
        let after: Vec<Egress> = after.flat_map(|app| reach(new, app)).collect();
        let gone = reach(old, app).filter(move |egress| {
            let still = |after: &Egress| {
                after.protocol == egress.protocol
                    && after.to.contains(&egress.to)
                    && after.first_port <= egress.first_port
                    && egress.last_port <= after.last_port
            };
            !after.iter().any(still)
        });
        gone.map(move |egress| (app, egress))
    })
}

/// The same with closed ports for those who see their clients no more.
fn behind_closed_ports(wide: &Plan, new: &Plan) -> Plan {
    let mut plan = wide.clone();
    for app in &mut plan.apps {
        let after = new.app(&app.name).map(|app| app.source);
        if app.source == Source::Client && after.is_some_and(|after| after != Source::Client) {
            app.closing.append(&mut app.publish);
        }
    }
    plan
}

/// An address of these, to try; whatever comes of it, it isn't one of the app's own.
fn within_reach_of(egress: &Egress) -> IpAddr {
    match egress.to {
        // RFC 5737, RFC 3849.
        IpNet::V4(net) if net.prefix_len() == 0 => Ipv4Addr::new(192, 0, 2, 1).into(),
        IpNet::V6(net) if net.prefix_len() == 0 => {
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()
        }
        net => net.addr(),
    }
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

/// Where the relay listens no more, as far as that can be tried from here: not at an address that it still listens on, and
/// of all addresses at the one that only the host has.
fn gone(old: &Plan, new: &Plan) -> Vec<SocketAddr> {
    let tried = |publish: &PublishPlan| match publish.listen {
        SocketAddr::V4(all) if all.ip().is_unspecified() => {
            SocketAddr::new(Ipv4Addr::LOCALHOST.into(), all.port())
        }
        SocketAddr::V6(all) if all.ip().is_unspecified() => {
            SocketAddr::new(Ipv6Addr::LOCALHOST.into(), all.port())
        }
        one => one,
    };
    let by_tcp = old
        .published()
        .map(|(_, publish)| publish)
        .filter(|publish| publish.protocol == Protocol::Tcp);
    let tried = by_tcp.filter_map(|publish| {
        let listen = tried(publish);
        let at = PublishPlan {
            listen,
            ..publish.clone()
        };
        let mut stays = new.published();
        let stays = stays.any(|(_, publish)| publish::overlap(publish, &at));
        (!stays).then_some(listen)
    });
    tried.take(PORTS_TRIED).collect()
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

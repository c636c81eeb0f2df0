//! A process in some part's place that does what it is told and says what happened.
//!
//! Three kinds run the same loop, [`serve`]: the prober, which the app's pid 1 starts as it started the command, forks of the audit
//! itself that have joined a part's namespaces ([`Agent::join`]), and a clone of the supervisor ([`as_the_supervisor`]). Whatever may
//! end a process is done in a child of its own ([`in_child`]), so that the loop survives it; where the part may start no process (the
//! profile `strict`), one such process does one probe and ends. Should the loop's process end all the same, that probe is unknown and
//! [`super::target`] starts another one.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Duration;

use nix::sched::CloneFlags;
use rustix::event::{PollFd, PollFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use serde::{Deserialize, Serialize};

use super::domain::BAIT;
use super::inside::{self, Context};
use super::route::{self, Port, Route};
use super::survey::{Survey, survey};
use super::{Outcome, catalogue};
use crate::confine::privileges;
use crate::confine::seccomp::{self, Program};
use crate::control::access::Access;
use crate::firewall::{self, Batch, Listing};
use crate::protocol;
use crate::sys::attempt;
use crate::sys::namespace::{every_kind, setns, unshare};
use crate::sys::process::{Cloned, by_number, clone3, exit_now};

/// How long a probe inside may take: one that starts as many processes as it may does so on a busy machine, too.
const PROBE: Duration = Duration::from_secs(5);
/// How long an answer to a connection may take.
const CONNECT: Duration = Duration::from_millis(600);
/// How long an answer of an agent may take; longer than any probe.
const ANSWER: Duration = Duration::from_secs(20);

/// What an agent is told.
#[derive(Debug, Serialize, Deserialize)]
pub enum Ask {
    /// What its probes need to know.
    Context(Box<Context>),
    /// Run the probe of that name.
    Probe(String),
    /// Send one packet, and keep the socket.
    Send(Shot),
    /// Wait for an answer to it, at most so many milliseconds.
    Await(u64),
    /// Send a frame on a link.
    Inject {
        /// The link's name.
        link: String,
        /// The frame, link-layer header and all.
        frame: Vec<u8>,
    },
    /// Read the counters of the rules of `table inet NAME`, of the links, and of discarded IPv6 packets.
    Counters(String),
    /// List what is in force of `table inet NAME`.
    List(String),
    /// List what the kernel makes of a ruleset, in an empty network namespace.
    Meant {
        /// The ruleset.
        batch: Batch,
        /// Its table.
        table: String,
        /// A link that it is about, which is made for it; empty for none.
        link: String,
    },
    /// Read these files.
    Read(Vec<String>),
    /// List the routes.
    Routes,
    /// List the bridge ports.
    Ports,
    /// Say which network namespace this is.
    Cookie,
    /// List all that there is in this network namespace; or at one link of it.
    Survey(Option<String>),
    /// Connect, as a client would.
    Connect(SocketAddr),
    /// Bind a TCP port of every address.
    Bind(u16),
    /// Open what is in the directory that comes along, in each way.
    OpenIn,
    /// Listen on an abstract socket of that name, until the end.
    Listen(String),
    /// Connect to it.
    ConnectAbstract(String),
    /// The number of this process, where it is.
    Whoami,
    /// Ask whether that process could be signalled.
    Signal(i32),
}

/// What a rule or a link has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// So many packets.
    pub packets: u64,
    /// With so many bytes, where that is counted: from the IP header on, and of what leaves by a link from the link's header on.
    pub bytes: Option<u64>,
}

impl Count {
    fn of_packets(packets: u64) -> Self {
        Self {
            packets,
            bytes: None,
        }
    }
}

/// What is wrong where an answer is none to what was asked.
pub const SOMETHING_ELSE: &str = "the process inside answered something else";

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// It is done.
    Done,
    /// How a probe went.
    Outcome(Outcome),
    /// How a probe went that this process had to run itself, since it may start none: it ends now.
    Last(Outcome),
    /// The probe's child was ended by this signal.
    Died(i32),
    /// How a packet went.
    Landing(Landing),
    /// To [`Ask::Counters`]: by `chain/name`, or by [`LINK`] and a link's name.
    Counters(BTreeMap<String, Count>),
    /// To [`Ask::List`] and [`Ask::Meant`].
    Listing(Box<Listing>),
    /// To [`Ask::Read`]: what is not readable is nothing.
    Texts(Vec<Option<String>>),
    /// To [`Ask::Routes`].
    Routes(Vec<Route>),
    /// To [`Ask::Ports`].
    Ports(Vec<Port>),
    /// To [`Ask::Cookie`].
    Cookie(u64),
    /// To [`Ask::Survey`].
    Survey(Box<Survey>),
    /// What was tried, and the errno of what was refused.
    Tried(Vec<(String, Option<i32>)>),
    /// To [`Ask::Whoami`].
    Pid(i32),
    /// It could not.
    Failed(String),
}

/// One packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shot {
    /// The SYN of a connection.
    Tcp(SocketAddr),
    /// One datagram.
    Udp(SocketAddr),
    /// An ICMP echo request (icmp(7), without a raw socket).
    Ping(Ipv4Addr),
    /// One datagram to all nodes of `eth0` (ff02::1).
    AllNodes,
}

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Landing {
    /// The kernel did not send it: errno.
    Refused(i32),
    /// It was sent, and nothing has come back so far.
    Sent,
    /// Somebody answered: a connection, a datagram.
    Answered,
    /// Somebody answered that nobody listens.
    Reset,
}

/// A connection to an agent; it ends with it.
pub struct Agent {
    socket: OwnedFd,
    child: Option<OwnedFd>,
    /// Why nothing more is to be had of it.
    lost: OnceCell<Lost>,
}

/// What has become of an agent that does not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// Its process is gone.
    #[error("the process inside has ended")]
    Ended,
    /// It is there, and says nothing.
    #[error("the process inside has not answered within {} s", ANSWER.as_secs())]
    Silent,
    /// The conversation broke.
    #[error("the process inside can't be talked to: {0}")]
    Broken(String),
}

/// Where a fork of the audit goes.
pub enum Join<'a> {
    /// Nowhere: where the audit itself is.
    Stay,
    /// The user namespace of a part alone.
    User(BorrowedFd<'a>),
    /// The user and network namespace of a part, with every capability over them and the host's files.
    Network(BorrowedFd<'a>),
    /// The supervisor's network namespace, where the uplink ends, by way of the relay's or another process of the same
    /// one: the user namespace that owns it, then it.
    Uplink(OwnedFd, OwnedFd),
    /// All of a part's namespaces, then what the part holds, as `lrpns exec` does.
    Part {
        /// Its pid 1.
        pidfd: BorrowedFd<'a>,
        /// What a command in it may be. Each probe goes under its filter. What sends packets from here does not, since it
        /// asks the rules and not the filter.
        access: &'a Access,
    },
}

/// The filter that each probe of this process goes under, if it isn't under it already.
static FILTER: OnceLock<Program> = OnceLock::new();

impl Agent {
    /// Takes over the socket to a prober.
    ///
    /// # Errors
    /// What `setsockopt(2)` says.
    pub fn adopt(socket: OwnedFd) -> io::Result<Self> {
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER))?;
        Ok(Self {
            socket,
            child: None,
            lost: OnceCell::new(),
        })
    }

    /// Forks an agent that goes to `place`.
    ///
    /// # Errors
    /// What `clone(2)` says; a place that can't be joined shows as an agent that has ended.
    pub fn join(place: &Join<'_>) -> io::Result<Self> {
        let (ours, theirs) = crate::part::namespaces::socketpair()?;
        match clone3(0)? {
            Cloned::Child => {
                drop(ours);
                exit_now(enter(place, &theirs))
            }
            Cloned::Parent { pidfd, .. } => {
                let mut agent = Self::adopt(ours)?;
                agent.child = Some(pidfd);
                Ok(agent)
            }
        }
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// In words: what the agent could not do, or that it has ended.
    pub fn ask(&self, ask: &Ask) -> Result<Answer, String> {
        self.ask_with(ask, &[])
    }

    /// As [`Agent::ask`], with descriptors.
    ///
    /// # Errors
    /// As [`Agent::ask`].
    pub fn ask_with(&self, ask: &Ask, fds: &[BorrowedFd<'_>]) -> Result<Answer, String> {
        self.tell(ask, fds)?;
        self.hear()
    }

    /// Asks, without waiting: what is answered is for [`Agent::hear`].
    ///
    /// # Errors
    /// As [`Agent::ask`].
    pub fn tell(&self, ask: &Ask, fds: &[BorrowedFd<'_>]) -> Result<(), String> {
        if let Some(lost) = self.lost() {
            return Err(lost.to_string());
        }
        protocol::send(&self.socket, ask, fds).map_err(|e| self.lose(&e))
    }

    /// Waits for the answer to what it was told.
    ///
    /// # Errors
    /// As [`Agent::ask`].
    pub fn hear(&self) -> Result<Answer, String> {
        if let Some(lost) = self.lost() {
            return Err(lost.to_string());
        }
        match protocol::receive(&self.socket) {
            Ok(Some((Answer::Failed(why), _))) => Err(why),
            Ok(Some((answer, _))) => Ok(answer),
            Ok(None) => Err(self.lost.get_or_init(|| Lost::Ended).to_string()),
            Err(e) => Err(self.lose(&e)),
        }
    }

    /// Notes why nothing more is to be had of it.
    fn lose(&self, e: &io::Error) -> String {
        let lost = || match e.kind() {
            io::ErrorKind::WouldBlock => Lost::Silent,
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Lost::Ended,
            _ => Lost::Broken(e.to_string()),
        };
        self.lost.get_or_init(lost).to_string()
    }

    /// Ends the conversation, which ends it, and does not wait for that. Said, not only closed: later agents were forked with
    /// this socket.
    pub fn dismiss(&self) {
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }

    /// Why nothing more is to be had of it. Whoever has been waited for once is not asked again: each question would cost
    /// as long a wait.
    #[must_use]
    pub fn lost(&self) -> Option<&Lost> {
        self.lost.get()
    }
}

/// How long an agent may take to end; one that is stuck in a probe is killed.
const ENDS_WITHIN: rustix::event::Timespec = rustix::event::Timespec {
    tv_sec: 0,
    tv_nsec: 500_000_000,
};

impl Drop for Agent {
    fn drop(&mut self) {
        let Some(child) = &self.child else { return };
        // A child in a part's pid namespace ends first, and is reaped. One whose parent is killed is left to the machine's
        // pid 1, and the part's own pid 1 can't end before that has reaped it (zap_pid_ns_processes(),
        // kernel/pid_namespace.c).
        self.dismiss();
        let mut ends = [rustix::event::PollFd::new(
            child,
            rustix::event::PollFlags::IN,
        )];
        let ended = rustix::event::poll(&mut ends, Some(&ENDS_WITHIN));
        if !matches!(ended, Ok(1..)) {
            let _ = rustix::process::pidfd_send_signal(child, rustix::process::Signal::KILL);
        }
        let _ = rustix::process::waitid(
            rustix::process::WaitId::PidFd(child.as_fd()),
            rustix::process::WaitIdOptions::EXITED,
        );
    }
}

/// The life of a fork of the audit.
fn enter(place: &Join<'_>, socket: &OwnedFd) -> i32 {
    match try_enter(place, socket) {
        Ok(()) => 0,
        Err(e) => {
            let _ = protocol::send(socket, &Answer::Failed(e), &[]);
            1
        }
    }
}

fn try_enter(place: &Join<'_>, socket: &OwnedFd) -> Result<(), String> {
    let die_with_parent = || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
            .map_err(|e| e.to_string())
    };
    let joined = |e: io::Error| format!("join the part's namespaces: {e}");
    die_with_parent()?;
    if !matches!(place, Join::Stay) {
        privileges::leave_roots_groups().map_err(|e| format!("drop privileges: {e}"))?;
    }
    match place {
        Join::Stay => {}
        Join::User(pidfd) => setns(pidfd, CloneFlags::CLONE_NEWUSER).map_err(joined)?,
        Join::Network(pidfd) => {
            setns(pidfd, CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).map_err(joined)?;
        }
        Join::Uplink(user, net) => {
            setns(user, CloneFlags::CLONE_NEWUSER).map_err(joined)?;
            setns(net, CloneFlags::CLONE_NEWNET).map_err(joined)?;
        }
        Join::Part { pidfd, access } => {
            setns(pidfd, every_kind()).map_err(joined)?;
            // Only a child is in the pid namespace.
            match clone3(0).map_err(|e| format!("clone into the part's pid namespace: {e}"))? {
                Cloned::Parent { pidfd, .. } => {
                    let _ = rustix::process::waitid(
                        rustix::process::WaitId::PidFd(pidfd.as_fd()),
                        rustix::process::WaitIdOptions::EXITED,
                    );
                    return Ok(());
                }
                Cloned::Child => {
                    let _ = FILTER.set(access.seccomp.command.clone());
                    let open = seccomp::Profile {
                        name: "audit".to_owned(),
                        otherwise: seccomp::Action::Allow,
                        calls: BTreeMap::new(),
                        unknown: vec![],
                    };
                    let open = open.compile().map_err(|e| format!("make a filter: {e}"))?;
                    privileges::drop_to(&access.keep, access.user, &open)
                        .map_err(|e| format!("drop privileges: {e}"))?;
                    die_with_parent()?;
                }
            }
        }
    }
    serve(socket);
    Ok(())
}

/// Whether this process is a prober: its standard input is a socket. `lrpns probe` of a user is a mistake.
#[must_use]
pub fn was_started_by_us() -> bool {
    sockopt::socket_domain(io::stdin()).is_ok_and(|domain| domain == AddressFamily::UNIX)
}

/// The prober's whole life.
#[must_use]
pub fn prober() -> ExitCode {
    serve(&io::stdin());
    ExitCode::SUCCESS
}

/// The whole life of a clone of the supervisor, which that makes when it is asked to (`supervise::prober`).
#[must_use]
pub fn as_the_supervisor(socket: OwnedFd) -> i32 {
    serve(&socket);
    0
}

/// Answers until the other side ends.
fn serve(socket: &impl AsFd) {
    // Before anything of ours is open.
    let inherited = attempt::open_descriptors(1024);
    let mut context = Context::default();
    let mut pending: Option<OwnedFd> = None;
    let mut listening = vec![];
    let sockets = Sockets::default();
    while let Ok(Some((ask, fds))) = protocol::receive::<Ask>(socket) {
        let answer = match ask {
            Ask::Context(new) => {
                context = *new;
                context.inherited.clone_from(&inherited);
                Answer::Done
            }
            Ask::Probe(id) => match catalogue::find(&id) {
                Some(probe) => match in_child(|| inside::run(probe, &context)) {
                    Ran::Apart(answer) => answer,
                    Ran::Here(outcome) => {
                        let _ = protocol::send(socket, &Answer::Last(outcome), &[]);
                        return;
                    }
                },
                None => Answer::Failed(format!("there is no probe {id}")),
            },
            Ask::Send(shot) => {
                let (landing, socket) = send(shot);
                pending = socket;
                Answer::Landing(landing)
            }
            Ask::Await(milliseconds) => {
                let landing = pending
                    .take()
                    .map_or(Landing::Sent, |socket| hear(&socket, milliseconds));
                Answer::Landing(landing)
            }
            Ask::Inject { link, frame } => match sockets.inject(&link, &frame) {
                Ok(()) => Answer::Done,
                Err(e) => Answer::Failed(format!("send a frame on {link}: {e}")),
            },
            Ask::Counters(table) => match sockets.counters(&table) {
                Ok(counters) => Answer::Counters(counters),
                Err(e) => Answer::Failed(format!("read the counters of {table}: {e}")),
            },
            Ask::List(table) => list(&table),
            Ask::Meant { batch, table, link } => meant(&batch, &table, &link),
            Ask::Read(paths) => Answer::Texts(
                paths
                    .iter()
                    .map(|path| std::fs::read_to_string(path).ok())
                    .collect(),
            ),
            Ask::Routes => match route::routes() {
                Ok(routes) => Answer::Routes(routes),
                Err(e) => Answer::Failed(format!("list the routes: {e}")),
            },
            Ask::Ports => match route::ports() {
                Ok(ports) => Answer::Ports(ports),
                Err(e) => Answer::Failed(format!("list the bridge ports: {e}")),
            },
            Ask::Cookie => match attempt::socket(libc::AF_INET, libc::SOCK_DGRAM, 0)
                .and_then(|socket| attempt::netns_cookie(socket.as_fd()))
            {
                Ok(cookie) => Answer::Cookie(cookie),
                Err(e) => Answer::Failed(format!("ask for the network namespace: {e}")),
            },
            Ask::Survey(only) => match survey(only.as_deref()) {
                Ok(found) => Answer::Survey(Box::new(found)),
                Err(e) => Answer::Failed(format!("list what is in the network namespace: {e}")),
            },
            Ask::Connect(to) => connect(to),
            Ask::Bind(port) => {
                let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
                tried([(format!("bind {port}"), bind(any))])
            }
            Ask::OpenIn => match fds.first() {
                Some(directory) => in_child(|| open_in(directory)).answer(),
                None => Answer::Failed("its descriptor did not come".to_owned()),
            },
            Ask::Listen(name) => match abstract_socket(&name)
                .and_then(|address| std::os::unix::net::UnixListener::bind_addr(&address))
            {
                Ok(listener) => {
                    listening.push(listener);
                    Answer::Done
                }
                Err(e) => Answer::Failed(format!("listen on @{name}: {e}")),
            },
            Ask::ConnectAbstract(name) => {
                let connected = abstract_socket(&name)
                    .and_then(|address| std::os::unix::net::UnixStream::connect_addr(&address));
                tried([(format!("@{name}"), connected.map(drop))])
            }
            Ask::Whoami => Answer::Pid(std::process::id().cast_signed()),
            Ask::Signal(pid) => {
                let signalled = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None);
                tried([(format!("process {pid}"), signalled.map_err(io::Error::from))])
            }
        };
        if protocol::send(socket, &answer, &[]).is_err() {
            return;
        }
    }
}

/// What a counter of frames, and not of a rule, begins with.
pub const LINK: &str = "link ";

/// What is kept open from one question to the next. To close a packet socket takes a grace period of RCU, many milliseconds
/// (`packet_release()`, net/packet/af_packet.c).
#[derive(Default)]
struct Sockets {
    rules: OnceCell<firewall::Socket>,
    frames: OnceCell<OwnedFd>,
}

/// The one that is there, or a new one.
fn kept<T, E>(cell: &OnceCell<T>, open: impl FnOnce() -> Result<T, E>) -> Result<&T, E> {
    match cell.get() {
        Some(open) => Ok(open),
        None => {
            let new = open()?;
            Ok(cell.get_or_init(|| new))
        }
    }
}

impl Sockets {
    fn counters(&self, table: &str) -> Result<BTreeMap<String, Count>, String> {
        let socket = kept(&self.rules, firewall::Socket::open).map_err(|e| e.to_string())?;
        counters(socket, table)
    }

    fn inject(&self, link: &str, frame: &[u8]) -> io::Result<()> {
        let index = nix::net::if_::if_nametoindex(link)?;
        let open = || attempt::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
        let socket = kept(&self.frames, open)?;
        match attempt::send_frame(socket.as_fd(), index, frame) {
            // A rule of the link's own has dropped it already, and counted it.
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
            sent => sent,
        }
    }
}

fn counters(socket: &firewall::Socket, table: &str) -> Result<BTreeMap<String, Count>, String> {
    let rules = firewall::counters(socket, table).map_err(|e| e.to_string())?;
    let mut all: BTreeMap<String, Count> = rules
        .into_iter()
        .map(|(rule, (packets, bytes))| {
            let bytes = Some(bytes);
            (rule, Count { packets, bytes })
        })
        .collect();
    // What the bridge itself drops no rule sees.
    let links = std::fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    for line in links.lines().skip(2) {
        let Some((link, numbers)) = line.split_once(':') else {
            continue;
        };
        let packets = |at| {
            numbers
                .split_whitespace()
                .nth(at)
                .and_then(|n| n.parse().ok())
                .map(Count::of_packets)
                .unwrap_or_default()
        };
        all.insert(format!("{LINK}{} received", link.trim()), packets(1));
        all.insert(format!("{LINK}{} sent", link.trim()), packets(9));
    }
    // IPv6 that is switched off discards before any rule sees it (net/ipv6/ip6_input.c).
    let ipv6 = std::fs::read_to_string("/proc/self/net/snmp6").unwrap_or_default();
    let discards = ipv6
        .lines()
        .find_map(|line| line.strip_prefix("Ip6InDiscards")?.trim().parse().ok());
    all.insert(
        "ipv6/drop-disabled".to_owned(),
        discards.map(Count::of_packets).unwrap_or_default(),
    );
    Ok(all)
}

fn list(table: &str) -> Answer {
    let listing = firewall::Socket::open()
        .map_err(|e| e.to_string())
        .and_then(|socket| firewall::list(&socket, table).map_err(|e| e.to_string()));
    match listing {
        Ok(listing) => Answer::Listing(Box::new(listing)),
        Err(e) => Answer::Failed(format!("list the table {table}: {e}")),
    }
}

/// Loads a ruleset where nothing else is, and lists it. In a child, since unshare(2) is for good.
fn meant(batch: &Batch, table: &str, link: &str) -> Answer {
    let work = || -> Result<Listing, String> {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)
            .map_err(|e| format!("make an empty network namespace: {e}"))?;
        if !link.is_empty() {
            route::make_link(link).map_err(|e| format!("make a link there: {e}"))?;
        }
        let socket = firewall::Socket::open().map_err(|e| e.to_string())?;
        firewall::transact(&socket, batch).map_err(|e| format!("load the planned rules: {e}"))?;
        firewall::list(&socket, table).map_err(|e| e.to_string())
    };
    let child = in_child(|| match work() {
        Ok(listing) => Answer::Listing(Box::new(listing)),
        Err(e) => Answer::Failed(e),
    });
    child.answer()
}

/// What a child may say.
trait IntoAnswer {
    fn into_answer(self) -> Answer;
}

impl IntoAnswer for Answer {
    fn into_answer(self) -> Answer {
        self
    }
}

impl IntoAnswer for Outcome {
    fn into_answer(self) -> Answer {
        Answer::Outcome(self)
    }
}

/// What [`in_child`] came to.
enum Ran<R> {
    /// Its child said, or what became of it.
    Apart(Answer),
    /// There could be no child; whatever the work has changed stays.
    Here(R),
}

impl<R: IntoAnswer> Ran<R> {
    fn answer(self) -> Answer {
        match self {
            Self::Apart(answer) => answer,
            Self::Here(result) => result.into_answer(),
        }
    }
}

/// Runs `work` in a child, for a bounded time; or here, if a filter allows no child.
fn in_child<R: IntoAnswer>(work: impl FnOnce() -> R) -> Ran<R> {
    let failed =
        |what: &str, e: &dyn std::fmt::Display| Ran::Apart(Answer::Failed(format!("{what}: {e}")));
    let (read, write) = match rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC) {
        Ok(pipe) => pipe,
        Err(e) => return failed("make a pipe", &e),
    };
    let pid = match attempt::fork() {
        Ok(None) => {
            drop(read);
            let _ = rustix::process::set_parent_process_death_signal(Some(
                rustix::process::Signal::KILL,
            ));
            // Only the part's filter can end it so: what the app sends where nothing scopes signals (before Linux 6.12)
            // must not pass for that. What the kernel forces no mask holds up (force_sig_info_to_task(), kernel/signal.c).
            let mut sigsys = nix::sys::signal::SigSet::empty();
            sigsys.add(nix::sys::signal::Signal::SIGSYS);
            let blocked = sigsys.thread_block();
            let answer = match FILTER.get().map(Program::install) {
                _ if blocked.is_err() => Answer::Failed("block SIGSYS".to_owned()),
                Some(Err(e)) => Answer::Failed(format!("install the part's filter: {e}")),
                _ => work().into_answer(),
            };
            let text = serde_json::to_vec(&answer).unwrap_or_default();
            let mut file = std::fs::File::from(write);
            let _ = io::Write::write_all(&mut file, &text);
            exit_now(0)
        }
        Ok(Some(pid)) => nix::unistd::Pid::from_raw(pid),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => {
            return Ran::Here(work());
        }
        Err(e) => return failed("fork", &e),
    };
    drop(write);
    let (mut text, mut file) = (vec![], std::fs::File::from(read));
    let begun = std::time::Instant::now();
    let mut in_time = true;
    loop {
        let left = PROBE.saturating_sub(begun.elapsed());
        if !readable(file.as_fd(), PollFlags::IN, left) {
            in_time = false;
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            break;
        }
        let mut chunk = [0; 4096];
        match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(got) => text.extend_from_slice(&chunk[..got]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    let status = loop {
        match nix::sys::wait::waitpid(pid, None) {
            Err(nix::Error::EINTR) => {}
            status => break status,
        }
    };
    Ran::Apart(match status {
        _ if !in_time => Answer::Failed(format!("it did not end within {} ms", PROBE.as_millis())),
        Ok(nix::sys::wait::WaitStatus::Signaled(_, signal, _)) => Answer::Died(signal as i32),
        _ => serde_json::from_slice(&text)
            .unwrap_or_else(|e| Answer::Failed(format!("its child said nothing: {e}"))),
    })
}

/// Whether something is to be had of a descriptor within `time`.
fn readable(fd: BorrowedFd<'_>, what: PollFlags, time: Duration) -> bool {
    let timeout = rustix::event::Timespec::try_from(time).ok();
    let mut ready = [PollFd::from_borrowed_fd(fd, what)];
    matches!(rustix::event::poll(&mut ready, timeout.as_ref()), Ok(1..))
}

/// So far and no farther: a hop to the sidecar, one to the host, and there it ends.
const HOPS: u8 = 2;

fn send(shot: Shot) -> (Landing, Option<OwnedFd>) {
    let refused = |e: rustix::io::Errno| (Landing::Refused(e.raw_os_error()), None);
    let make = || -> Result<(OwnedFd, Result<(), rustix::io::Errno>), rustix::io::Errno> {
        let open = |to: SocketAddr, kind, protocol| {
            let family = if to.is_ipv4() {
                AddressFamily::INET
            } else {
                AddressFamily::INET6
            };
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(family, kind, flags, protocol)?;
            if to.is_ipv4() {
                sockopt::set_ip_ttl(&socket, HOPS.into())?;
            } else {
                sockopt::set_ipv6_unicast_hops(&socket, Some(HOPS))?;
            }
            Ok::<_, rustix::io::Errno>(socket)
        };
        let datagram = |to: SocketAddr, protocol, bytes: &[u8]| {
            let socket = open(to, SocketType::DGRAM, protocol)?;
            if to.is_ipv4() {
                sockopt::set_socket_broadcast(&socket, true)?;
            }
            let sent = rustix::net::connect(&socket, &to)
                .and_then(|()| rustix::net::send(&socket, bytes, rustix::net::SendFlags::empty()));
            Ok((socket, sent.map(|_| ())))
        };
        match shot {
            Shot::Tcp(to) => {
                let socket = open(to, SocketType::STREAM, None)?;
                let connected = rustix::net::connect(&socket, &to);
                Ok((socket, connected))
            }
            Shot::Udp(to) => datagram(to, None, b"lrpns audit"),
            Shot::Ping(to) => {
                let to = SocketAddr::new(to.into(), 0);
                // Type 8, code 0; the kernel fills in checksum and identifier.
                datagram(
                    to,
                    Some(rustix::net::ipproto::ICMP),
                    &[8, 0, 0, 0, 0, 0, 0, 1],
                )
            }
            Shot::AllNodes => {
                let link =
                    nix::net::if_::if_nametoindex("eth0").map_err(|_| rustix::io::Errno::NODEV)?;
                let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
                datagram(
                    SocketAddrV6::new(all, 9, 0, link).into(),
                    None,
                    b"lrpns audit",
                )
            }
        }
    };
    match make() {
        Err(e) => refused(e),
        Ok((socket, Err(rustix::io::Errno::INPROGRESS))) => (Landing::Sent, Some(socket)),
        Ok((_, Err(rustix::io::Errno::CONNREFUSED))) => (Landing::Reset, None),
        Ok((_, Err(e))) => refused(e),
        Ok((_, Ok(()))) if matches!(shot, Shot::Tcp(_)) => (Landing::Answered, None),
        Ok((socket, Ok(()))) => (Landing::Sent, Some(socket)),
    }
}

fn hear(socket: &OwnedFd, milliseconds: u64) -> Landing {
    let stream = sockopt::socket_type(socket).is_ok_and(|kind| kind == SocketType::STREAM);
    let what = if stream {
        PollFlags::OUT
    } else {
        PollFlags::IN
    };
    if !readable(socket.as_fd(), what, Duration::from_millis(milliseconds)) {
        return Landing::Sent;
    }
    match sockopt::socket_error(socket) {
        Ok(Ok(())) => Landing::Answered,
        Ok(Err(rustix::io::Errno::CONNREFUSED)) => Landing::Reset,
        Ok(Err(e)) | Err(e) => Landing::Refused(e.raw_os_error()),
    }
}

/// A connection as any client makes it; waits for as long as a probe may take.
fn connect(to: SocketAddr) -> Answer {
    match std::net::TcpStream::connect_timeout(&to, CONNECT) {
        Ok(_) => Answer::Landing(Landing::Answered),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Answer::Landing(Landing::Reset),
        Err(e) => Answer::Landing(e.raw_os_error().map_or(Landing::Sent, Landing::Refused)),
    }
}

/// What each came to.
fn tried(attempts: impl IntoIterator<Item = (String, io::Result<()>)>) -> Answer {
    Answer::Tried(
        attempts
            .into_iter()
            .map(|(what, result)| {
                let errno = result.err().map(|e| e.raw_os_error().unwrap_or(libc::EIO));
                (what, errno)
            })
            .collect(),
    )
}

fn bind(address: SocketAddr) -> io::Result<()> {
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    Ok(rustix::net::bind(&socket, &address)?)
}

fn abstract_socket(name: &str) -> io::Result<std::os::unix::net::SocketAddr> {
    <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name)
}

/// What a process would do with a directory that is not of its root.
fn open_in(directory: &OwnedFd) -> Answer {
    use rustix::fs::{Mode, OFlags};
    let ways = [
        ("list it", ".", OFlags::RDONLY | OFlags::DIRECTORY),
        ("read a file of it", BAIT, OFlags::RDONLY),
        ("write to a file of it", BAIT, OFlags::WRONLY),
        ("make a file in it", "new", OFlags::CREATE | OFlags::RDWR),
    ];
    tried(ways.map(|(what, path, flags)| {
        let mode = Mode::from_raw_mode(0o600);
        let opened = rustix::fs::openat(directory, path, flags | OFlags::CLOEXEC, mode);
        (what.to_owned(), opened.map(drop).map_err(io::Error::from))
    }))
}

/// The namespaces of [`Join::Uplink`]: the network namespace of process `pid`, and the user namespace that owns it.
///
/// # Errors
/// What `open(2)` or `ioctl_nsfs(2)` says.
pub fn uplink_of(pidfd: BorrowedFd<'_>) -> io::Result<Join<'static>> {
    let net = by_number(pidfd, |pid| {
        std::fs::File::open(format!("/proc/{pid}/ns/net"))
    })?;
    let net = OwnedFd::from(net);
    let user = attempt::owner_of(net.as_fd())?;
    Ok(Join::Uplink(user, net))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_the_app_sends_is_no_filter_that_ended_a_probe() {
        let answer = in_child(|| {
            let sent = nix::sys::signal::raise(nix::sys::signal::Signal::SIGSYS);
            Outcome::pass(format!("{sent:?}"))
        });
        let answer = answer.answer();
        assert!(matches!(answer, Answer::Outcome(_)), "{answer:?}");
    }
}

//! The relay: an unprivileged process that carries connections and datagrams from sockets on the host to the sidecar's
//! uplink.
//!
//! # Theory of operation
//!
//! One thread, one epoll. A listener's task waits for a free place, accepts, and starts a task for the connection,
//! which dials the listener's target and then moves bytes both ways (`flow`) until both sides have said that they are
//! done, or one of them is gone.
//!
//! - **Abort by default.** Every socket has `SO_LINGER` with a time of zero from its first moment on, so closing it
//!   sends a reset, and only a connection that both sides ended in order is told to close in order. A peer's reset, a
//!   target that refuses, a stack that stops and a relay that is killed are all resets for whoever is left: a torn
//!   transfer never looks like a complete one.
//! - **Half-close is kept.** The end of one side's stream becomes `shutdown(SHUT_WR)` on the other.
//! - **What was received before a reset is handed on**, as far as the other side takes it at once.
//! - **Bounded.** `RLIMIT_NOFILE` decides how many connections there are at most; the others wait in the kernel's
//!   backlog. A waiting connection holds no buffer at all. A stalled one holds, in each direction, one of at most 64
//!   pipes, or a copy: at most 64 KiB, and 4 KiB once 16 MiB are held together.
//! - **Shared.** No client has all places: see `share`. One that has its share is reset, and counted.
//! - **Datagrams** have no connections: what stands for them is in `udp`.
//! - **Dead peers** are found by TCP keepalive on both sides: 60 seconds of silence, then 4 probes 15 seconds apart.
//!   There is no other idle time limit. Data on the wire that nobody acknowledges ends by `tcp_retries2` (tcp(7)).
//!
//! In a network namespace of its own it dials from its client's address and port. A connection that is ended *by the client
//! first* leaves that port in TIME-WAIT for 60 seconds, of which `net.ipv4.tcp_tw_reuse=1` there leaves one: so nothing runs
//! out, whatever clients do. Beside DNAT it dials from the uplink's one address on the host, whose 28,000 ephemeral ports bound
//! how many such ends there may be a minute.
//!
//! # What it needs
//!
//! No capability, no file, no thread. `SIGPIPE` must be ignored (Rust's runtime does so before `main`): splice(2) has
//! no `MSG_NOSIGNAL`. The system calls, as strace(1) shows them from [`run`] to its end, memory and signals aside:
//!
//! - start: `prlimit64` (reading), `epoll_create1`, `eventfd2`, `socketpair`, `fcntl` (`F_DUPFD_CLOEXEC`), `ioctl`
//!   (`FIONBIO`), `getsockname`, `getrandom`;
//! - each connection: `accept4`, `socket`, `setsockopt`, `bind` (as a client), `connect`, `getsockopt`
//!   (`SO_ERROR`), `epoll_ctl`, `shutdown`, `close`;
//! - bytes: `epoll_wait`, `recvfrom`, `sendto`, `splice`, `pipe2`, `fcntl` (`F_SETPIPE_SZ`);
//! - datagrams: `recvmsg`, `sendmsg`, `recvfrom`, `sendto`;
//! - waking itself: `write` to its eventfd, `futex`.
#![forbid(unsafe_code)]

pub mod egress;
mod flow;
mod refused;
mod share;
#[cfg(test)]
mod tests;
mod udp;

use std::cell::{Cell, RefCell};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::process::{Resource, getrlimit};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixStream};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;

use crate::config::Protocol;
use crate::config::clients::Gate;
use crate::net::publish::carried;
use crate::traffic::{Refusals, Why};
use flow::{Buffers, Tuning};
use refused::Refused;
use share::{Held, Shares};

/// Written to the control socket, it asks for one line of JSON: [`Stats`].
pub const STATS_REQUEST: u8 = b'?';
/// Written to the control socket, it asks to accept nothing more, and to end with the last connection: another relay has
/// the listening sockets as well.
pub const LAST_ORDERS: u8 = b'.';

/// Written to the control socket, it says that listening sockets which were shut down may listen again.
pub const LISTEN_AGAIN: u8 = b'+';

/// How long the target may take to answer a connection attempt before the client is reset.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Descriptors that are neither listeners, connections nor pipes: standard streams, control socket, epoll and its
/// wakers, and some that the process was started with.
const OTHER_DESCRIPTORS: u64 = 32;

/// How long accepting rests when the machine has run out of something and no connection of ours is there to end.
const EXHAUSTED_PAUSE: Duration = Duration::from_secs(1);

/// Why the relay ended, other than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// `RLIMIT_NOFILE` leaves no place for connections.
    #[error(
        "the limit of {limit} open files leaves no place for connections on {listeners} listeners\nhint: raise it with `ulimit -n` or LimitNOFILE="
    )]
    Descriptors {
        /// The soft limit.
        limit: u64,
        /// How many listeners there are.
        listeners: usize,
    },
    /// The event loop can't be made.
    #[error("start the relay's event loop")]
    Runtime {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A listening socket can't be used.
    #[error("prepare the listener on {listen}")]
    Listener {
        /// Its address, as far as it is known.
        listen: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The control socket can't be used.
    #[error("prepare the relay's control socket")]
    Control {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Egress: who dials has ended, or says what makes no sense.
    #[error("ask the dialer")]
    Dialer {
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// A listening socket has failed for good.
    #[error("accept on {listen}")]
    Accept {
        /// Its address.
        listen: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Where what comes to a socket goes, and from whom it may come.
#[derive(Debug, Clone)]
pub struct Way {
    /// The address that is dialled; with an unspecified one (`0.0.0.0`), the port of whichever address the client wrote to.
    pub target: SocketAddr,
    /// The clients; all others are reset before a byte, or, by UDP, not heard.
    pub gate: Rc<Gate>,
    /// Where the relay dials as its clients, it dials as nobody else for these.
    pub shows_client: bool,
    /// Whose clients are refused here, of those that are counted apart: a place among them.
    pub app: usize,
    /// Datagrams of one flow may go there as one packet.
    pub joined: bool,
    /// So many connections, the first ones, may not be born [as they are carried](carried).
    pub early: u32,
}

impl Way {
    /// Where a client is taken who wrote to `ours`.
    fn to(&self, ours: IpAddr) -> SocketAddr {
        match self.target.ip().is_unspecified() {
            true => SocketAddr::new(ours, self.target.port()),
            false => self.target,
        }
    }
}

/// What the relay has done since it started; the answer to [`STATS_REQUEST`], as one line of JSON with these keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Connections that are open now, those still dialling included.
    pub open: u64,
    /// The most connections that can be open at once.
    pub limit: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Connections reset because the target refused, did not answer, or could not be dialled.
    pub refused: u64,
    /// Connections that ended in a reset of either side.
    pub reset: u64,
    /// Times that accepting had to rest because descriptors or memory had run out.
    pub exhausted: u64,
    /// Connections reset, and datagrams dropped, because the client is not among those who may connect.
    pub not_allowed: u64,
    /// The same because the app's rate was reached.
    pub too_many: u64,
    /// Connections reset because the client has its share of the places.
    #[serde(default)]
    pub over_share: u64,
    /// UDP: flows begun.
    pub flows: u64,
    /// UDP: flows that had to make room for others.
    pub evicted: u64,
    /// UDP: datagrams carried from clients to the target.
    pub datagrams_in: u64,
    /// UDP: datagrams carried from the target to clients.
    pub datagrams_out: u64,
    /// UDP: datagrams that were not, in either direction.
    pub dropped: u64,
    /// Bytes carried from clients to the target.
    pub bytes_in: u64,
    /// Bytes carried from the target to clients.
    pub bytes_out: u64,
}

/// Throws away the datagrams that have come to a published socket so far, and no more than a socket can hold: a flood does
/// not keep the relay from starting.
pub fn forget_what_waits(socket: &std::net::UdpSocket) {
    // `net.core.rmem_max` is some hundred thousand bytes, and a datagram costs at least 500 of them.
    const MOST: u32 = 1 << 16;
    let _last = (0..MOST).find(|_| {
        let none: &mut [u8] = &mut [];
        match rustix::net::recv(socket, none, rustix::net::RecvFlags::DONTWAIT) {
            Err(e) => e == Errno::AGAIN,
            Ok(_) => false,
        }
    });
}

/// How many connections there can be at once over so many listeners and datagram sockets, and of one client alone; nothing
/// if the descriptors leave no place.
#[must_use]
pub fn capacity(listeners: usize, datagrams: usize) -> Option<(usize, usize)> {
    let places = Places::share_out(listeners, datagrams).ok()?.connections;
    Some((places, Shares::most(places)))
}

/// Carries connections until told to stop; blocks, with an event loop of its own on the calling thread.
///
/// Each listener is bound and listens, and its connections are born [as they are carried](carried), but for the first of some
/// ([`Way::early`]). It comes with the way that its connections are carried, and each socket of `datagrams` with the one that
/// its datagrams are. They may be shared with other processes; they are made non-blocking.
///
/// `control` is one end of a stream socket pair. After [`LAST_ORDERS`] no connection is accepted; what is in a listener's
/// backlog is left to whoever shares it, and `handed_over` is written there once whoever was accepted has been connected to
/// the target, or has not. End of file, or any byte other than these and [`STATS_REQUEST`], means stop:
/// listeners and connections are dropped at once, open connections are reset on both sides. A listener that is shut down
/// (shutdown(2)) accepts no more until [`LISTEN_AGAIN`], which is no error.
///
/// With `as_clients` it dials from the address of the client that it carries, which the network namespace must take for
/// its own. It does not take these: a client with one of them is reset if its way shows clients, and else carried from the
/// relay's own address, as one of this machine's loopback always is.
///
/// At `told`, a socket of messages, it tells of the clients that it refuses ([`crate::traffic::wire::read_refusals`]).
///
/// # Errors
/// [`RelayError`]. Nothing that a client or a target does is an error.
pub fn run(
    listeners: Vec<(std::net::TcpListener, Way)>,
    datagrams: Vec<(std::net::UdpSocket, Way)>,
    as_clients: Option<Vec<IpNet>>,
    (control, handed_over): (OwnedFd, &[u8]),
    told: OwnedFd,
) -> Result<(), RelayError> {
    let places = Places::share_out(listeners.len(), datagrams.len())?;
    let tuning = Tuning::default();
    let dials = Dials::Itself { as_clients };
    let sockets = (control, handed_over, Some(told));
    run_with(listeners, datagrams, dials, sockets, places, tuning)
}

fn run_with(
    listeners: Vec<(std::net::TcpListener, Way)>,
    datagrams: Vec<(std::net::UdpSocket, Way)>,
    dials: Dials,
    (control, handed_over, told): (OwnedFd, &[u8], Option<OwnedFd>),
    places: Places,
    tuning: Tuning,
) -> Result<(), RelayError> {
    let runtime = crate::sys::runtime::local().map_err(|source| RelayError::Runtime { source })?;
    // its end drops the runtime, and every connection with it
    runtime.block_on(async {
        let mut control = watch_end(control)?;
        let relay = Relay::new(places, tuning, dials);
        let relay = Rc::new(relay.map_err(|source| RelayError::Dialer { source })?);
        let mut accepting = JoinSet::new();
        for (listener, way) in listeners {
            let listener = prepare(listener)?;
            accepting.spawn_local(accept_all(listener, way, Rc::clone(&relay)));
        }
        if !datagrams.is_empty() {
            let relay = Rc::clone(&relay);
            tokio::task::spawn_local(async move { relay.flows.sweep().await });
        }
        let hears = told.map(Rc::new);
        if let Some(told) = hears.clone() {
            let relay = Rc::clone(&relay);
            tokio::task::spawn_local(async move { relay.refused.tell(&told).await });
        }
        for (number, (socket, way)) in datagrams.into_iter().enumerate() {
            let relay = Rc::clone(&relay);
            accepting
                .spawn_local(async move { Some(udp::carry_all(number, socket, way, relay).await) });
        }
        let failed = async {
            while let Some(ended) = accepting.join_next().await {
                if let Some(error) = ended.expect("it does not panic, and nobody aborts it") {
                    return error;
                }
            }
            std::future::pending().await
        };
        let told = tokio::select! {
            biased;
            told = serve_control(&mut control, &relay) => told,
            error = failed => return Err(error),
            error = relay.dialer_ended() => return Err(error),
        };
        if let Told::LastOrders = told {
            accepting.shutdown().await;
            relay.flows.end();
            let mut word = Some(handed_over);
            loop {
                tokio::select! {
                    biased;
                    told = serve_control(&mut control, &relay) => match told {
                        // Said once more it changes nothing.
                        Told::LastOrders => {}
                        Told::Stop => break,
                    },
                    () = relay.has_dialled(), if word.is_some() => {
                        // Who is told has ended, or has not: the next look says so.
                        let _ = control.write_all(word.take().unwrap_or_default()).await;
                    }
                    () = relay.idle() => break,
                }
            }
        }
        if let Some(told) = hears {
            relay.refused.tell_now(&told, &mut Refusals::default());
        }
        Ok(())
    })
}

/// How the descriptors are shared out.
#[derive(Debug, Clone, Copy)]
struct Places {
    connections: usize,
    pipes: usize,
    /// Of UDP.
    flows: usize,
}

impl Places {
    /// A connection needs two descriptors, and so does a pipe; an eighth of the pairs, 64 at most, are kept for pipes. With
    /// UDP, a quarter of all goes to its flows, which need one each.
    fn share_out(listeners: usize, datagrams: usize) -> Result<Self, RelayError> {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let sockets = (listeners + datagrams) as u64;
        let left = limit.saturating_sub(OTHER_DESCRIPTORS + sockets);
        let flows = match datagrams {
            0 => 0,
            _ => (left / 4).min(udp::MOST_FLOWS),
        };
        let pairs = (left - flows) / 2;
        let pipes = (pairs / 8).min(64);
        // the semaphore's own bound is far above any number of ports
        let connections = (pairs - pipes).min(1 << 20);
        // each listener holds a place while it waits for a client
        if connections <= listeners as u64 || (flows == 0 && datagrams > 0) {
            let listeners = listeners + datagrams;
            return Err(RelayError::Descriptors { limit, listeners });
        }
        let count = |n| usize::try_from(n).expect("it is at most 2^20");
        Ok(Self {
            connections: count(connections),
            pipes: count(pipes),
            flows: count(flows),
        })
    }
}

/// Who dials.
enum Dials {
    /// The relay, from the client's address if so, unless that is one of these.
    Itself { as_clients: Option<Vec<IpNet>> },
    /// Another process, which is asked at this socket.
    Asks(OwnedFd),
    /// We do, but only to what is granted.
    Granted(egress::dialer::Grants),
}

/// What all connections share.
struct Relay {
    as_clients: Option<Vec<IpNet>>,
    /// Who is asked to dial.
    dialer: Option<egress::Asker>,
    /// All that may be dialled, if not everything may.
    grants: Option<egress::dialer::Grants>,
    stats: RefCell<Stats>,
    buffers: Buffers,
    places: Arc<Semaphore>,
    shares: Rc<Shares>,
    refused: Refused,
    /// How many listeners accept, each with a place.
    accepting: Cell<usize>,
    flows: udp::Flows,
    /// Told whenever a connection has closed its descriptors.
    closed: Notify,
    /// How many that were accepted are still to be connected to their target.
    dialling: Cell<usize>,
    /// Told whenever that comes to none.
    dialled: Notify,
    /// How often it was said that sockets listen again.
    reopened: watch::Sender<u32>,
}

impl Relay {
    fn new(places: Places, tuning: Tuning, dials: Dials) -> io::Result<Self> {
        let (mut as_clients, mut dialer, mut grants) = (None, None, None);
        match dials {
            Dials::Itself { as_clients: does } => as_clients = does,
            Dials::Asks(socket) => dialer = Some(egress::Asker::new(socket)?),
            Dials::Granted(list) => grants = Some(list),
        }
        let stats = Stats {
            limit: places.connections as u64,
            ..Stats::default()
        };
        Ok(Self {
            as_clients,
            dialer,
            grants,
            stats: RefCell::new(stats),
            buffers: Buffers::new(places.pipes, tuning),
            places: Arc::new(Semaphore::new(places.connections)),
            shares: Rc::default(),
            refused: Refused::new(),
            accepting: Cell::new(0),
            flows: udp::Flows::new(places.flows),
            closed: Notify::new(),
            dialling: Cell::new(0),
            dialled: Notify::new(),
            reopened: watch::Sender::new(0),
        })
    }

    /// Counts a connection that is reset, and says so.
    fn refuse(&self, app: usize, why: Why, peer: SocketAddr, client: &TcpStream) {
        let ours = || client.local_addr().ok();
        self.refused.note(app, why, Protocol::Tcp, peer, ours);
    }

    /// EACCES for what may not be dialled.
    fn permit(&self, protocol: Protocol, to: SocketAddr) -> io::Result<()> {
        let permit = |grants: &egress::dialer::Grants| grants.permit(protocol, to);
        self.grants.as_ref().map_or(Ok(()), permit)
    }

    /// Takes the dialer's answers until its end; for ever, if there is none.
    async fn dialer_ended(&self) -> RelayError {
        match &self.dialer {
            Some(dialer) => RelayError::Dialer {
                source: dialer.take_answers().await,
            },
            None => std::future::pending().await,
        }
    }

    /// As whom to dial for this client: itself, unless it is of this machine's loopback, which leads nowhere else.
    fn source(&self, client: SocketAddr, way: &Way) -> Option<SocketAddr> {
        let not = self.as_clients.as_ref()?;
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        let is_foreign = || not.iter().any(|net| net.contains(&client.ip()));
        let own = client.ip().is_loopback() || (!way.shows_client && is_foreign());
        (!own).then_some(client)
    }

    fn count(&self, change: impl FnOnce(&mut Stats)) {
        change(&mut self.stats.borrow_mut());
    }

    /// A place for this client, if it has not got its share yet. One is held already, and others wait for their client.
    fn share(&self, client: IpAddr) -> Option<Held> {
        let waiting = self.accepting.get().saturating_sub(1);
        self.shares
            .take(client, self.places.available_permits() + waiting)
    }

    /// Waits until nobody who was accepted is still to be connected to the target; one who waits at a time.
    async fn has_dialled(&self) {
        while self.dialling.get() > 0 {
            self.dialled.notified().await;
        }
    }

    /// Waits until no connection is open; nobody else may wait for [`Relay::closed`].
    async fn idle(&self) {
        while self.stats.borrow().open > 0 {
            self.closed.notified().await;
        }
    }
}

/// A client that was accepted, until it is connected to its target or won't be.
struct Dialling(Rc<Relay>);

impl Dialling {
    fn begin(relay: &Rc<Relay>) -> Self {
        relay.dialling.set(relay.dialling.get() + 1);
        Self(Rc::clone(relay))
    }
}

impl Drop for Dialling {
    fn drop(&mut self) {
        let left = self.0.dialling.get() - 1;
        self.0.dialling.set(left);
        if left == 0 {
            self.0.dialled.notify_one();
        }
    }
}

fn prepare(listener: std::net::TcpListener) -> Result<TcpListener, RelayError> {
    let listen = listener
        .local_addr()
        .map_or_else(|_| "an unknown address".to_owned(), |a| a.to_string());
    listener
        .set_nonblocking(true)
        .and_then(|()| TcpListener::from_std(listener))
        .map_err(|source| RelayError::Listener { listen, source })
}

fn watch_end(control: OwnedFd) -> Result<UnixStream, RelayError> {
    let control = StdUnixStream::from(control);
    control
        .set_nonblocking(true)
        .and_then(|()| UnixStream::from_std(control))
        .map_err(|source| RelayError::Control { source })
}

/// What the relay is told.
enum Told {
    Stop,
    LastOrders,
}

/// Answers requests for [`Stats`] until there is something else to do.
async fn serve_control(control: &mut UnixStream, relay: &Relay) -> Told {
    loop {
        match control.read_u8().await {
            Ok(STATS_REQUEST) => {}
            Ok(LAST_ORDERS) => return Told::LastOrders,
            Ok(LISTEN_AGAIN) => {
                relay
                    .reopened
                    .send_modify(|times| *times = times.wrapping_add(1));
                continue;
            }
            _ => return Told::Stop,
        }
        let refused = relay.refused.counts();
        let stats = Stats {
            not_allowed: refused.not_allowed,
            too_many: refused.rate,
            over_share: refused.share,
            ..*relay.stats.borrow()
        };
        let mut line = serde_json::to_vec(&stats).expect("numbers are JSON");
        line.push(b'\n');
        if control.write_all(&line).await.is_err() {
            return Told::Stop;
        }
    }
}

/// Accepts until it can't, which it returns; not while the listener is shut down.
async fn accept_all(mut listener: TcpListener, way: Way, relay: Rc<Relay>) -> Option<RelayError> {
    let mut reopened = relay.reopened.subscribe();
    let mut early = way.early;
    loop {
        let place = Arc::clone(&relay.places)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        relay.accepting.set(relay.accepting.get() + 1);
        let accepted = tokio::select! {
            biased;
            // Its sender is the relay's.
            _ = reopened.changed() => None,
            accepted = accept(&listener, &way, &relay) => Some(accepted),
        };
        relay.accepting.set(relay.accepting.get() - 1);
        let (client, peer, share) = match accepted {
            Some(Ok(client)) => client,
            // A socket that was shut down is readable for ever to who watches it: it is to be watched anew.
            None => match listener.into_std().map(prepare) {
                Ok(Ok(again)) => {
                    listener = again;
                    continue;
                }
                Ok(Err(error)) => return Some(error),
                Err(source) => {
                    let listen = "a socket that was shut down".to_owned();
                    return Some(RelayError::Listener { listen, source });
                }
            },
            // accept(2): it isn't listening.
            Some(Err(e)) if Errno::from_io_error(&e) == Some(Errno::INVAL) => {
                drop(place);
                let _ = reopened.changed().await;
                reopened.mark_changed();
                continue;
            }
            Some(Err(source)) => {
                let listen = listener
                    .local_addr()
                    .unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
                return Some(RelayError::Accept { listen, source });
            }
        };
        if let Some(left) = early.checked_sub(1) {
            early = left;
            // What refuses it has gone already.
            let _ = carried(&client);
        }
        let dialling = Dialling::begin(&relay);
        let relay = Rc::clone(&relay);
        let way = way.clone();
        tokio::task::spawn_local(async move {
            let carried = carry(client, peer, &way, &relay, dialling);
            // the relay counts its budget itself: tokio's would end the last drain of a reset connection early
            tokio::task::coop::unconstrained(carried).await;
            relay.count(|s| s.open -= 1);
            drop((place, share));
            relay.closed.notify_one();
        });
    }
}

/// One connection, past errors that say nothing about the listener (accept(2), "Error handling").
async fn accept(
    listener: &TcpListener,
    way: &Way,
    relay: &Relay,
) -> io::Result<(TcpStream, SocketAddr, Held)> {
    loop {
        let error = match listener.accept().await {
            Ok((client, peer)) if !way.gate.admits(peer.ip()) => {
                relay.refuse(way.app, Why::NotAllowed, peer, &client);
                continue;
            }
            Ok((client, peer)) if !way.gate.may_begin(peer.ip(), Instant::now()) => {
                relay.refuse(way.app, Why::Rate, peer, &client);
                continue;
            }
            Ok((client, peer)) => {
                let Some(share) = relay.share(peer.ip()) else {
                    relay.refuse(way.app, Why::Share, peer, &client);
                    continue;
                };
                relay.count(|s| {
                    s.accepted += 1;
                    s.open += 1;
                });
                return Ok((client, peer, share));
            }
            Err(error) => error,
        };
        match Errno::from_io_error(&error) {
            // trying again at once would spin: the client stays in the backlog and the listener stays readable
            Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                relay.count(|s| s.exhausted += 1);
                tokio::select! {
                    () = relay.closed.notified() => {}
                    () = tokio::time::sleep(EXHAUSTED_PAUSE) => {}
                }
            }
            Some(
                Errno::CONNABORTED
                | Errno::INTR
                | Errno::PERM
                | Errno::PROTO
                | Errno::NOPROTOOPT
                | Errno::NETDOWN
                | Errno::NETUNREACH
                | Errno::HOSTDOWN
                | Errno::HOSTUNREACH
                | Errno::NONET
                | Errno::OPNOTSUPP,
            ) => {}
            _ => return Err(error),
        }
    }
}

/// Carries one connection to its end. Whatever way it returns, both sockets are closed, by a reset unless both sides
/// had ended their streams.
async fn carry(client: TcpStream, peer: SocketAddr, way: &Way, relay: &Relay, dialling: Dialling) {
    let source = relay.source(peer, way);
    let target = match way.target.ip().is_unspecified() {
        true => client.local_addr().map(|ours| way.to(ours.ip())),
        false => Ok(way.target),
    };
    let Ok(target) = target else {
        // It has gone already.
        return relay.count(|s| s.reset += 1);
    };
    let dial = async {
        match &relay.dialer {
            Some(dialer) => dialer.dial(target).await,
            None => dial_from(source, target).await,
        }
    };
    let dialled = tokio::select! {
        biased;
        dialled = dial => dialled,
        // nobody waits for the answer any more
        _ = client.ready(Interest::ERROR) => return relay.count(|s| s.reset += 1),
    };
    drop(dialling);
    let Ok(server) = dialled else {
        return relay.count(|s| s.refused += 1);
    };
    let in_order = flow::both_ways(&client, &server, &relay.buffers, |bytes_in, bytes_out| {
        relay.count(|s| {
            s.bytes_in += bytes_in;
            s.bytes_out += bytes_out;
        });
    })
    .await;
    match in_order {
        Ok(()) => {
            // Both can only fail for a bad descriptor. From here on the kernel delivers what it still holds.
            let _ = sockopt::set_socket_linger(&client, None);
            let _ = sockopt::set_socket_linger(&server, None);
        }
        Err(_) => relay.count(|s| s.reset += 1),
    }
}

/// Dials from the client's own address, and its port if that is free: two connections of one client to two published
/// ports may have the same, and the address is what matters.
async fn dial_from(source: Option<SocketAddr>, target: SocketAddr) -> io::Result<TcpStream> {
    match dial(source, target).await {
        Err(e) => dial(at_any_port(source, e)?, target).await,
        dialled => dialled,
    }
}

/// The same address with any port, if the error was that the port is taken; else the error. bind(2) says the one;
/// connect(2) the other, and bind(2) too, of an address that is not to be had on any port.
fn at_any_port(source: Option<SocketAddr>, e: io::Error) -> io::Result<Option<SocketAddr>> {
    match source {
        Some(source) if is_taken(&e) => Ok(Some(SocketAddr::new(source.ip(), 0))),
        _ => Err(e),
    }
}

fn is_taken(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable
    )
}

async fn dial(source: Option<SocketAddr>, target: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket_for(target)?;
    if let Some(source) = source {
        socket.set_reuseaddr(true)?;
        socket.bind(source)?;
    }
    connected(socket, target).await
}

fn socket_for(target: SocketAddr) -> io::Result<TcpSocket> {
    let socket = match target {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    carried(&socket)?;
    Ok(socket)
}

async fn connected(socket: TcpSocket, target: SocketAddr) -> io::Result<TcpStream> {
    tokio::time::timeout(CONNECT_TIMEOUT, socket.connect(target)).await?
}

//! One rtnetlink connection: steps in, answers out, and waiting for links.
#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;

use futures_util::{Stream, StreamExt};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, State};
use netlink_sys::{AsyncSocket, Socket, SocketAddr, TokioSocket};
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkMessage, NetlinkPayload, NlasIterator,
};
use rtnetlink::proto::{Connection, ConnectionHandle, NetlinkCodec};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use super::message;
use crate::sys;

/// What went wrong between us and the kernel's network configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no rtnetlink socket to be had.
    #[error("open an rtnetlink socket")]
    Open(#[source] io::Error),
    /// The descriptor can't be used.
    #[error("use the descriptor as an rtnetlink socket")]
    Socket(#[source] io::Error),
    /// The kernel refused a step.
    #[error("{namespace}: {what}")]
    Refused {
        /// Whose network namespace: `host`, `sidecar` or `app NAME`.
        namespace: String,
        /// What was tried, with its object.
        what: String,
        /// What the kernel said.
        #[source]
        source: Refusal,
    },
    /// The connection ended before the answer.
    #[error("{namespace}: {what}: the rtnetlink connection ended before the kernel's answer")]
    Ended {
        /// Whose network namespace.
        namespace: String,
        /// What was tried, with its object.
        what: String,
    },
    /// The kernel answered something else.
    #[error("{namespace}: {what}: the kernel's answer has no such link")]
    Answer {
        /// Whose network namespace.
        namespace: String,
        /// What was tried, with its object.
        what: String,
    },
    /// A link didn't come up in time.
    #[error("{namespace}: link {link} is {state}, not up, after {seconds} s")]
    NotUp {
        /// Whose network namespace.
        namespace: String,
        /// The link's name.
        link: String,
        /// Its operational state (RFC 2863), and whether it was set up at all.
        state: String,
        /// How long it was waited for, in seconds.
        seconds: u64,
    },
    /// A setting of our link in the host's namespace.
    #[error("host: set net/ipv6/conf/{link}/{name} to {value}")]
    Setting {
        /// The setting, such as `forwarding`.
        name: &'static str,
        /// The link's name.
        link: String,
        /// What it was to be.
        value: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel doesn't tell where sockets listen.
    #[error("ask where sockets listen")]
    SockDiag(#[source] io::Error),
    /// A link of a namespace that has ended is still there.
    #[error("host: link {link} is still there after {seconds} s")]
    StillThere {
        /// The link's name.
        link: String,
        /// How long it was waited for, in seconds.
        seconds: u64,
    },
    /// Links change faster than we listen.
    #[error("{namespace}: listen for changes of links")]
    Listen {
        /// Whose network namespace.
        namespace: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The link is somebody else's.
    #[error("host: remove link {link}: it is not ours, its alias is {}", .alias.as_deref().unwrap_or("empty"))]
    NotOurs {
        /// The link's name.
        link: String,
        /// Its alias.
        alias: Option<String>,
    },
}

/// The kernel's no: an errno and, mostly, words (`NLMSGERR_ATTR_MSG`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The error number.
    pub errno: Errno,
    /// What the kernel adds in words.
    pub words: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", io::Error::from(self.errno))?;
        match &self.words {
            Some(words) => write!(f, ": {words}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<&ErrorMessage> for Refusal {
    fn from(message: &ErrorMessage) -> Self {
        const HEADER: usize = 16;
        const NLMSGERR_ATTR_MSG: u16 = 1;
        let attributes = message.header.get(HEADER..).unwrap_or_default();
        let words = NlasIterator::new(attributes)
            .filter_map(Result::ok)
            .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)
            .map(|attribute| {
                String::from_utf8_lossy(attribute.value())
                    .trim_end_matches(['\0', '.'])
                    .to_owned()
            });
        Self {
            errno: Errno::from_raw(message.raw_code().abs()),
            words,
        }
    }
}

/// One request and what it is for.
pub(super) struct Step {
    what: String,
    message: NetlinkMessage<RouteNetlinkMessage>,
    /// The errno that means the same as success.
    success: Option<Errno>,
}

impl Step {
    /// Makes something that mustn't be there yet: what is there is somebody else's.
    pub fn create(what: impl Into<String>, message: RouteNetlinkMessage) -> Self {
        Self::new(what, message, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Makes something of ours, or brings it to the wanted state.
    pub fn replace(what: impl Into<String>, message: RouteNetlinkMessage) -> Self {
        Self::new(what, message, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Changes, deletes or reads one thing that is there.
    pub fn on(what: impl Into<String>, message: RouteNetlinkMessage) -> Self {
        Self::new(what, message, 0)
    }

    /// Reads all of a kind; in a batch of its own, since a socket has one list under way at a time.
    pub fn dump(what: impl Into<String>, message: RouteNetlinkMessage) -> Self {
        Self::new(what, message, NLM_F_DUMP)
    }

    /// Takes this errno for success: what was to be reached is so already.
    pub fn or(mut self, errno: Errno) -> Self {
        self.success = Some(errno);
        self
    }

    fn new(what: impl Into<String>, message: RouteNetlinkMessage, flags: u16) -> Self {
        let mut message = NetlinkMessage::from(message);
        // A reply that can't be parsed is dropped by the crate: the acknowledgement is what ends every request.
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        Self {
            what: what.into(),
            message,
            success: None,
        }
    }
}

/// How many steps go into one datagram. All their answers wait in the socket's buffer at once, some 4 kB for a link,
/// and what finds no room there (212,992 bytes by default) is dropped, acknowledgements too: nothing would ever end the
/// waiting.
const BATCH: usize = 16;

type Incoming = (NetlinkMessage<RouteNetlinkMessage>, SocketAddr);

/// An rtnetlink connection into one network namespace, for as long as it lives.
///
/// Which namespace it changes was decided where the socket was made; descriptors in messages, and the right to do it, are
/// those of the process that sends: it needs `CAP_NET_ADMIN` over the namespace and over every other that a link is to be
/// born in. The socket's maker isn't asked, since every message names its destination (`__netlink_ns_capable`,
/// net/netlink/af_netlink.c). The socket also keeps the namespace: that goes with its last `Rtnl`, as soon as the runtime
/// has dropped the connection's task.
pub struct Rtnl {
    requests: ConnectionHandle<RouteNetlinkMessage>,
    events: Mutex<Pin<Box<dyn Stream<Item = Incoming> + Send>>>,
    /// The same socket, for its options.
    socket: Socket,
}

impl fmt::Debug for Rtnl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Rtnl").field(&self.socket.as_fd()).finish()
    }
}

impl Rtnl {
    /// A connection into the caller's own network namespace. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Open`], [`Error::Socket`].
    pub fn open() -> Result<Self, Error> {
        let fd = sys::netlink::open(SockProtocol::NetlinkRoute).map_err(Error::Open)?;
        Self::from_fd(fd)
    }

    /// A connection by a `NETLINK_ROUTE` socket that was made inside the namespace it is to change. Must be called within
    /// a tokio runtime, which then runs the connection's task until the `Rtnl` is dropped.
    ///
    /// # Errors
    /// [`Error::Socket`]: it is no netlink socket, or can't be set up.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, Error> {
        let twin = fd.try_clone().map_err(Error::Socket)?;
        let socket = sys::netlink::socket(twin).map_err(Error::Socket)?;
        // Errors in words, and without a copy of the request before them.
        socket.set_ext_ack(true).map_err(Error::Socket)?;
        socket.set_cap_ack(true).map_err(Error::Socket)?;
        let (mut connection, requests, events): (
            Connection<RouteNetlinkMessage, TokioSocket, NetlinkCodec>,
            _,
            _,
        ) = rtnetlink::proto::from_socket_with_codec(
            sys::netlink::tokio_socket(fd).map_err(Error::Socket)?,
        );
        // Left to itself the crate ends a request's answers in the same way whether it was acknowledged or the connection
        // was lost.
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        // Port number 0 is the kernel's: a socket that was never bound gets no events (netlink(7)).
        connection
            .socket_mut()
            .socket_mut()
            .bind_auto()
            .map_err(Error::Socket)?;
        tokio::spawn(connection);
        Ok(Self {
            requests,
            events: Mutex::new(Box::pin(events)),
            socket,
        })
    }

    /// Sends the steps, and returns the objects that were asked for, in order.
    ///
    /// They go [`BATCH`] to a datagram, so that they don't cost a wake-up each; the kernel takes them in order and goes on
    /// after a failed one, whose error is returned. So a step must do no harm when the one before it failed: name links by
    /// index.
    pub(super) async fn run(
        &self,
        namespace: &str,
        steps: Vec<Step>,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let mut objects = Vec::new();
        let mut steps = steps.into_iter();
        loop {
            let batch: Vec<Step> = steps.by_ref().take(BATCH).collect();
            if batch.is_empty() {
                return Ok(objects);
            }
            self.run_batch(namespace, batch, &mut objects).await?;
        }
    }

    async fn run_batch(
        &self,
        namespace: &str,
        steps: Vec<Step>,
        objects: &mut Vec<RouteNetlinkMessage>,
    ) -> Result<(), Error> {
        let mut pending = Vec::with_capacity(steps.len());
        let mut messages = Vec::with_capacity(steps.len());
        for step in steps {
            pending.push((step.what, step.success));
            messages.push(step.message);
        }
        let ended = |what: &str| Error::Ended {
            namespace: namespace.to_owned(),
            what: what.to_owned(),
        };
        let mut answers = self
            .requests
            .request_batch(messages, SocketAddr::new(0, 0))
            .map_err(|_| ended(&pending[0].0))?;
        let mut first_error = None;
        for (what, success) in pending {
            loop {
                let answer = answers.next().await.ok_or_else(|| ended(&what))?;
                match answer.payload {
                    NetlinkPayload::InnerMessage(object) => objects.push(object),
                    NetlinkPayload::Error(message) => {
                        let refusal = Refusal::from(&message);
                        if message.code.is_some() && Some(refusal.errno) != success {
                            first_error.get_or_insert(Error::Refused {
                                namespace: namespace.to_owned(),
                                what,
                                source: refusal,
                            });
                        }
                        break;
                    }
                    NetlinkPayload::Done(_) => break,
                    _ => {}
                }
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    /// Makes links and returns their indices: `created` are the steps, and each of `links` is then looked up.
    pub(super) async fn create_links<const N: usize>(
        &self,
        namespace: &str,
        mut steps: Vec<Step>,
        links: [&str; N],
    ) -> Result<[u32; N], Error> {
        for link in links {
            steps.push(Step::on(
                format!("look up link {link}"),
                message::link_by_name(link),
            ));
        }
        let mut found = self.run(namespace, steps).await?.into_iter();
        let mut indices = [0; N];
        for (index, name) in indices.iter_mut().zip(links) {
            *index = next_link(namespace, name, &mut found)?.header.index;
        }
        Ok(indices)
    }

    /// The link of that name, if there is one.
    pub(super) async fn link(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<LinkMessage>, Error> {
        let what = format!("look up link {name}");
        let step = Step::on(what, message::link_by_name(name)).or(Errno::ENODEV);
        let found = self.run(namespace, vec![step]).await?;
        if found.is_empty() {
            return Ok(None);
        }
        next_link(namespace, name, &mut found.into_iter()).map(Some)
    }

    /// Waits until every link's operational state is up: until then its queue discards what is sent, and a connection's
    /// first segment is sent again only after a second.
    ///
    /// Asking for one link by itself also makes a kernel since 6.9 do at once what it would otherwise leave to its
    /// link-watch worker (`linkwatch_sync_dev` in `rtnl_getlink`), so mostly the first answer is the last; on other kernels
    /// events are awaited.
    ///
    /// # Errors
    /// [`Error::NotUp`] when `deadline`, which was `within` after the start, has passed.
    pub(super) async fn wait_up(
        &self,
        namespace: &str,
        links: &[(u32, &str)],
        deadline: Instant,
        within: std::time::Duration,
    ) -> Result<(), Error> {
        if self.not_up(namespace, links).await?.is_empty() {
            return Ok(());
        }
        let mut events = self.events.lock().await;
        let _listening = Listening::start(&self.socket, namespace)?;
        loop {
            // Asked again after listening began, so that no change falls between the two.
            let late = self.not_up(namespace, links).await?;
            let Some((_, link, state)) = late.first() else {
                return Ok(());
            };
            let indices: Vec<u32> = late.iter().map(|(index, ..)| *index).collect();
            timeout_at(deadline, next_change(&mut *events, &indices))
                .await
                .map_err(|_| Error::NotUp {
                    namespace: namespace.to_owned(),
                    link: (*link).to_owned(),
                    state: state.clone(),
                    seconds: within.as_secs(),
                })?;
        }
    }

    /// Waits until there is no link of that name; `false` when there still is one at `deadline`.
    pub(super) async fn wait_gone(
        &self,
        namespace: &str,
        name: &str,
        deadline: Instant,
    ) -> Result<bool, Error> {
        let mut events = self.events.lock().await;
        let _listening = Listening::start(&self.socket, namespace)?;
        // Asked after listening began, so that no change falls between the two.
        while let Some(link) = self.link(namespace, name).await? {
            let index = [link.header.index];
            if timeout_at(deadline, next_change(&mut *events, &index))
                .await
                .is_err()
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn not_up<'a>(
        &self,
        namespace: &str,
        links: &[(u32, &'a str)],
    ) -> Result<Vec<(u32, &'a str, String)>, Error> {
        let steps = links
            .iter()
            .map(|(index, name)| {
                Step::on(
                    format!("look at link {name}"),
                    message::link_by_index(*index),
                )
            })
            .collect();
        let mut found = self.run(namespace, steps).await?.into_iter();
        let mut late = Vec::new();
        for (index, name) in links {
            let link = next_link(namespace, name, &mut found)?;
            let state = link
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    LinkAttribute::OperState(state) => Some(*state),
                    _ => None,
                });
            if state != Some(State::Up) {
                late.push((*index, *name, describe(&link, state)));
            }
        }
        Ok(late)
    }
}

fn describe(link: &LinkMessage, state: Option<State>) -> String {
    use netlink_packet_route::link::LinkFlags;
    let state = state.map_or_else(
        || "in no state".to_owned(),
        |state| state.to_string().to_lowercase(),
    );
    if link.header.flags.contains(LinkFlags::Up) {
        state
    } else {
        format!("{state} (it was not set up)")
    }
}

fn next_link(
    namespace: &str,
    name: &str,
    answers: &mut impl Iterator<Item = RouteNetlinkMessage>,
) -> Result<LinkMessage, Error> {
    match answers.next() {
        Some(RouteNetlinkMessage::NewLink(link)) => Ok(link),
        _ => Err(Error::Answer {
            namespace: namespace.to_owned(),
            what: format!("look up link {name}"),
        }),
    }
}

/// Returns when one of the links may have changed. If the connection has ended, at once: the next request says so.
async fn next_change(events: &mut (impl Stream<Item = Incoming> + Unpin), indices: &[u32]) {
    while let Some((event, _)) = events.next().await {
        match event.payload {
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link),
            ) if indices.contains(&link.header.index) => {
                return;
            }
            // Events were lost: ask again.
            NetlinkPayload::Overrun(_) => return,
            _ => {}
        }
    }
}

/// Membership of the group of link events. Nobody reads events at other times, so that lasts no longer than the waiting.
struct Listening<'a>(&'a Socket);

impl<'a> Listening<'a> {
    fn start(socket: &'a Socket, namespace: &str) -> Result<Self, Error> {
        socket
            .add_membership(MulticastGroup::Link as u32)
            .map_err(|source| Error::Listen {
                namespace: namespace.to_owned(),
                source,
            })?;
        Ok(Self(socket))
    }
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        // It can only fail for a group that doesn't exist.
        let _ = self.0.drop_membership(MulticastGroup::Link as u32);
    }
}

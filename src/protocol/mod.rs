//! What supervisor and stage say to each other, over a stream socketpair: a length, then JSON; descriptors ride on
//! the length.
//!
//! The supervisor's end may face a process that has been broken into (the sidecar's, say), so it takes nothing on
//! trust: a length is bounded, a message is of a known shape, descriptors are bounded in number.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, sockopt,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

use crate::config::clients::Admission;
use crate::config::{Egress, Limits, Protocol, Tmpfs, Volume};
use crate::confine::privileges::{Ids, Privileges};
use crate::plan::Door;

/// No message is longer, in bytes. The longest have the user's own rules in them, at some 800 bytes each.
const MAX_LEN: usize = 64 << 20;
/// None of a part's is longer, which may have been broken into and say what it likes; but of the compiler's.
const MAX_LEN_OF_PART: usize = 4 << 20;
/// The bytes of a message's length.
const HEAD: usize = 4;
/// How much of a message is read at once.
const AT_ONCE: usize = 64 << 10;
/// No message carries more descriptors; the kernel's own limit is 253 (`SCM_MAX_FD` of include/net/scm.h).
pub const MAX_FDS: usize = 200;

/// To the stage.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToStage {
    /// Relay, egress: the descriptors that the message before had no room for.
    More,
    /// The first message: what to become. Descriptors: as [`Start`] lists them.
    Start(Box<Start>),
    /// App: run the command. Relay: the sockets listen.
    Proceed,
    /// App: send this signal to the command; once that has ended, to everything that it has left running.
    Signal(i32),
    /// App: it is given up on, so say what it has written to its own log, and [`FromStage::Told`].
    Tell,
    /// App: run one command more, as the command was started, for who is at the other end of the last descriptor: told
    /// [`FromStage::Exited`] or [`FromStage::Failed`] there; should that end first, the command does. Descriptors:
    /// standard input, output and error, that conversation, and our own program if it is that.
    Exec {
        /// Program and arguments.
        command: Vec<String>,
        /// The whole environment.
        env: BTreeMap<String, String>,
        /// One of the three is a terminal, and is to be the command's own.
        terminal: bool,
        /// It is our own program.
        #[serde(default)]
        program: bool,
    },
    /// App: start our own program as `lrpns probe`, as the command was started. Descriptors: the program, and the
    /// prober's standard input, a socket.
    Probe,
}

/// What a stage becomes.
#[derive(Debug, Serialize, Deserialize)]
pub struct Start {
    /// The name shown by `uname -n` inside.
    pub hostname: String,
    /// How many processes and threads it may have, where that can be counted for it alone (`RLIMIT_NPROC`).
    pub nproc: Option<u32>,
    /// The role with what it needs.
    pub role: Role,
    /// What a test wants to be left undone; only debug builds listen.
    pub weaken: Option<String>,
}

/// The three kinds of part, and what works for one of them.
#[derive(Debug, Serialize, Deserialize)]
pub enum Role {
    /// Holds NET_ADMIN over its network namespace, loads the rules, watches the traffic. Descriptor: where to tell of
    /// it, if it is to.
    Sidecar {
        /// The ruleset as netlink bytes, made by [`crate::firewall::encode`].
        rules: crate::firewall::Batch,
        /// What of the traffic is told; `None` for nothing.
        traffic: Option<crate::traffic::Settings>,
        /// Whether it gives NET_ADMIN up once they are loaded.
        seal: bool,
    },
    /// Loads rules into the sidecar's network namespace, says how that went, and ends. No descriptors.
    Loader {
        /// One transaction.
        rules: crate::firewall::Batch,
    },
    /// Lets nft make objects of the user's rules, in an empty network namespace, and ends. Descriptors: the mounts of
    /// `rootfs`.
    Compiler {
        /// Our own rules, to which they are added.
        ours: crate::firewall::Batch,
        /// The rules.
        text: String,
        /// nft and its arguments, the last the file that the rules are to be in.
        command: Vec<String>,
    },
    /// Changes the rules in the sidecar's network namespace with the least change, says how that went, and ends. No
    /// descriptors.
    Updater {
        /// What is in force.
        old: Box<nftables::schema::Nftables<'static>>,
        /// What shall be.
        new: Box<nftables::schema::Nftables<'static>>,
        /// What becomes of the user's; `None` if they stay.
        theirs: Option<crate::firewall::ExtraChange>,
        /// Entry ports of UDP that lead elsewhere now, or nowhere: their flows are forgotten.
        forget: Vec<u16>,
    },
    /// Forgets, in the sidecar's network namespace, the connections that apps have made and may make no more, says how
    /// that went, and ends. No descriptors.
    Forgetter {
        /// What they may.
        grants: Vec<crate::firewall::Grants>,
    },
    /// Carries bytes from the published sockets to the uplink. Descriptors: a socket of messages where it tells of clients
    /// that it refuses, then the sockets, in the order of `carried`; as many [`ToStage::More`] follow as it takes to hand
    /// over all.
    Relay {
        /// What each socket is.
        carried: Vec<Carried>,
        /// The clients of each app.
        admissions: Vec<Admission>,
        /// It has a network namespace of its own, in which it dials as the client that it carries; but for these, whom
        /// it can't be.
        as_clients: Option<Vec<IpNet>>,
        /// Datagrams of one flow may pass the sidecar as one packet ([`Plan::joins_datagrams`](crate::plan::Plan::joins_datagrams)).
        joined: bool,
        /// Only bound so far: be ready, and wait for [`ToStage::Proceed`].
        wait: bool,
    },
    /// Carries out what apps connect to. Descriptors: the sockets, in the order of `doors`; as many [`ToStage::More`]
    /// follow as it takes to hand over all.
    Egress {
        /// What may be connected to.
        grants: Vec<Egress>,
        /// What each socket is.
        doors: Vec<Door>,
        /// Who may ask: the sidecar.
        clients: Admission,
    },
    /// Runs the user's command. Descriptors: standard output, standard error, our own program, the sockets that it is
    /// `handed`, standard input if it has one, the mounts of `rootfs`, the mounts of `volumes`, what is in its `secrets`.
    App(Box<AppStart>),
}

/// A published socket that the relay is handed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// What it speaks.
    pub protocol: Protocol,
    /// Where what comes to it goes.
    pub target: SocketAddr,
    /// From whom it may come: a place in the list of admissions.
    pub admission: usize,
    /// Its app sees its clients: then who can't be shown is not carried.
    pub shows_client: bool,
    /// How many connections may wait there that are not set as those that are carried.
    pub early: u32,
}

/// What an app's stage needs.
#[derive(Debug, Serialize, Deserialize)]
pub struct AppStart {
    /// Who the command runs as.
    pub user: Ids,
    /// Whether it has a range of ids, and is root over them.
    pub range: bool,
    /// Where the command starts.
    pub workdir: PathBuf,
    /// Program and arguments.
    pub command: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// What is writable.
    pub tmpfs: Vec<Tmpfs>,
    /// How the root is made.
    pub rootfs: RootfsStart,
    /// What else is mounted in it: the descriptors, detached and with their attributes set, come after those of the root.
    pub volumes: Vec<Volume>,
    /// The names of its secrets: the descriptors of what is in them are the last of all.
    pub secrets: Vec<String>,
    /// Where the Unix sockets of others are that it may connect to.
    pub sockets: Vec<PathBuf>,
    /// What it may use, for what it is shown of the machine.
    pub limits: Limits,
    /// What its `/etc/hosts` says.
    pub hosts: String,
    /// Whether it has a standard input; else that is the null device.
    pub stdin: bool,
    /// Whether one of its three is a terminal, and is to be the command's own.
    pub terminal: bool,
    /// What it may do by TCP, and with files.
    pub confined: crate::confine::landlock::App,
    /// What it may call, on the way to the command and in it.
    pub seccomp: Box<crate::confine::seccomp::Filters>,
    /// Whether the command's filter asks the supervisor ([`FromStage::Asks`]).
    #[serde(default)]
    pub explain: bool,
    /// The names of the listening sockets that it is handed (sd_listen_fds(3)).
    #[serde(default)]
    pub handed: Vec<String>,
    /// Whether the command goes to the background, and what it leaves is the app.
    #[serde(default)]
    pub forks: bool,
}

/// How often what a command has left takes its place; one more and the app has ended. A daemon does so twice or three times
/// as it starts.
pub const SUCCESSORS: usize = 100;

/// How the stage makes the app's root; the descriptors are mounts, detached and read-only already.
#[derive(Debug, Serialize, Deserialize)]
pub enum RootfsStart {
    /// The one descriptor is the root.
    Whole,
    /// The one descriptor is our own program.
    Webapp,
    /// Of the host's programs and of what everybody may read of its /etc: the stage opens them itself, and there are no descriptors.
    Host {
        /// Small files beside those: (path, content), mode 0444.
        files: Vec<(PathBuf, String)>,
    },
}

/// From the stage.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromStage {
    /// Everything is dropped, read back and as it should be; the sidecar's rules are in force.
    Ready {
        /// What the kernel said it holds.
        privileges: Privileges,
        /// What had to be left out and why, in whole sentences (`/proc` where the kernel refuses it).
        notes: Vec<String>,
    },
    /// Loader: the transaction went through, or nothing has changed; the process ends next.
    Loaded(Result<(), crate::firewall::LoadError>),
    /// Compiler: how it went; the process ends next.
    Compiled(Compiled),
    /// App: the command runs. Egress: the dialer does. Descriptor: its pidfd.
    Started,
    /// App that forks: the command ended with 0, and this process, which it has left, takes its place. Descriptor: its pidfd.
    Succeeded,
    /// App that is explained, by the command's process right before it is the command: its filter asks there. Descriptor: where.
    Asks,
    /// Relay, after its last orders: whoever it had accepted is with the app, or was refused there.
    HandedOver,
    /// App: what was asked for by [`ToStage::Tell`] is said.
    Told,
    /// App: the command ended; the stage ends with the last process that the command has left running.
    Exited(Exit),
    /// A step did not work; the process ends next.
    Failed {
        /// The step, as in "mount /proc".
        step: String,
        /// What the kernel said.
        cause: String,
        /// For the command's `execve(2)`: its errno.
        errno: Option<i32>,
    },
}

/// What has become of the user's rules.
#[derive(Debug, Serialize, Deserialize)]
pub enum Compiled {
    /// These objects, to be loaded beside ours.
    Objects(Vec<crate::plan::ExtraObject>),
    /// nft took them, but they do what must not be done.
    NotAllowed(String),
    /// nft did not take them, and said so.
    NftSays(String),
}

/// How an app is, by its health checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// No check has passed since it was started.
    Starting,
    /// The last check has passed, or not as many in a row have failed as it takes.
    Healthy,
    /// As many in a row have failed.
    Unhealthy,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// By `exit(3)` with this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
}

impl Exit {
    /// The exit code a shell would show: the status, or 128 + the signal.
    #[must_use]
    pub fn code(self) -> u8 {
        let code = match self {
            Exit::Status(status) => status,
            // From a part, so it may be any number.
            Exit::Signal(signal) => signal.wrapping_add(128),
        };
        u8::try_from(code & 0xff).expect("masked to eight bits")
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Exit::Status(status) => write!(f, "exit status {status}"),
            Exit::Signal(signal) => write!(
                f,
                "signal {}",
                nix::sys::signal::Signal::try_from(*signal).map_or("?", |s| s.as_str())
            ),
        }
    }
}

/// The bytes of a message, for who sends it without [`send`].
///
/// # Errors
/// `InvalidInput` for one that is too long.
pub fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; HEAD];
    serde_json::to_writer(&mut bytes, message)?;
    let len = u32::try_from(bytes.len() - HEAD)
        .ok()
        .filter(|len| *len as usize <= MAX_LEN)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "message too long"))?;
    bytes[..HEAD].copy_from_slice(&len.to_le_bytes());
    Ok(bytes)
}

/// One `sendmsg(2)`; the descriptors go with its first byte.
fn send_some(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if fds.is_empty() {
        // Who has no descriptor to send needs no call that could: the sidecar and the relay are not allowed any.
        return Ok(rustix::net::send(socket, bytes, SendFlags::NOSIGNAL)?);
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too many descriptors",
        ));
    }
    Ok(rustix::net::sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?)
}

/// One `recvmsg(2)`; 0 is the other side's end.
fn receive_some(
    socket: BorrowedFd<'_>,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    if fds.len() > MAX_FDS {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "too many descriptors",
        ));
    }
    if got.flags.contains(ReturnFlags::CTRUNC) {
        // There was room for them in the buffer, so it is the process that has none for another (unix(7)).
        return Err(io::Error::from_raw_os_error(libc::EMFILE));
    }
    Ok(got.bytes)
}

/// A message on its way in: first its length, then its body.
struct Incoming {
    head: Vec<u8>,
    body: Vec<u8>,
    fds: Vec<OwnedFd>,
    /// The longest body that is read.
    longest: usize,
}

/// How far an [`Incoming`] message is.
enum Progress {
    More,
    Done,
    End,
}

impl Incoming {
    fn at_most(longest: usize) -> Self {
        Self {
            head: vec![],
            body: vec![],
            fds: vec![],
            longest,
        }
    }

    /// Reads once; never past the end of this message, so descriptors stay with theirs.
    fn advance(&mut self, socket: BorrowedFd<'_>) -> io::Result<Progress> {
        let (part, whole) = match self.wanted()? {
            Some(body) => (&mut self.body, body),
            None => (&mut self.head, HEAD),
        };
        let before = part.len();
        // There is no more room than has come, and a bit: who says how long it is to be may lie.
        part.resize(whole.min(before + AT_ONCE), 0);
        let got = receive_some(socket, &mut part[before..], &mut self.fds);
        part.truncate(before + got.as_ref().map_or(0, |got| *got));
        if got? == 0 {
            return if self.head.is_empty() {
                Ok(Progress::End)
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            };
        }
        Ok(match self.wanted()? {
            Some(body) if self.body.len() == body => Progress::Done,
            _ => Progress::More,
        })
    }

    /// The body's length, once the head is here.
    fn wanted(&self) -> io::Result<Option<usize>> {
        let Ok(head) = <[u8; 4]>::try_from(self.head.as_slice()) else {
            return Ok(None);
        };
        let len = u32::from_le_bytes(head) as usize;
        if len == 0 || len > self.longest {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "message of impossible length",
            ));
        }
        Ok(Some(len))
    }

    fn finish<T: DeserializeOwned>(self) -> io::Result<(T, Vec<OwnedFd>)> {
        Ok((serde_json::from_slice(&self.body)?, self.fds))
    }
}

/// Sends one message and waits until it is gone.
///
/// # Errors
/// What `sendmsg(2)` says; EPIPE when the other side has ended.
pub fn send(socket: impl AsFd, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = encode(message)?;
    let mut sent = 0;
    while sent < bytes.len() {
        let fds = if sent == 0 { fds } else { &[] };
        sent += send_some(socket.as_fd(), &bytes[sent..], fds)?;
    }
    Ok(())
}

/// Waits for one message; `None` is the other side's end.
///
/// # Errors
/// What `recvmsg(2)` says; `InvalidData` for a message of no known shape.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    receive_after(socket, || Ok(()))
}

/// The same, within a time, however many pieces it comes in.
///
/// # Errors
/// As [`receive`]; `TimedOut` when it has not come by then.
pub fn receive_within<T: DeserializeOwned>(
    socket: impl AsFd,
    within: Duration,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let until = Instant::now() + within;
    let limit = |limit| sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, limit);
    let received = receive_after(&socket, || {
        let left = until.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(io::ErrorKind::TimedOut.into()),
            false => Ok(limit(Some(left))?),
        }
    });
    limit(None)?;
    received.map_err(|e| match e.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => e,
    })
}

fn receive_after<T: DeserializeOwned>(
    socket: impl AsFd,
    mut each: impl FnMut() -> io::Result<()>,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut incoming = Incoming::at_most(MAX_LEN);
    loop {
        each()?;
        match incoming.advance(socket.as_fd()) {
            Ok(Progress::More) => {}
            Ok(Progress::Done) => return incoming.finish().map(Some),
            Ok(Progress::End) => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// The supervisor's end: the same, without blocking its one thread.
pub struct Channel {
    socket: AsyncFd<OwnedFd>,
    incoming: Incoming,
}

impl Channel {
    /// Takes one end of a socketpair. Must be called inside the runtime.
    ///
    /// # Errors
    /// What `fcntl(2)` or `epoll_ctl(2)` says.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self {
            socket: crate::sys::watch::owned(socket)?,
            incoming: Incoming::at_most(MAX_LEN),
        })
    }

    /// As [`Self::new`], to a part: what it says is short.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn to_part(socket: OwnedFd) -> io::Result<Self> {
        let mut channel = Self::new(socket)?;
        channel.incoming.longest = MAX_LEN_OF_PART;
        Ok(channel)
    }

    /// Whoever is there may say as much as anybody.
    pub fn hear_all(&mut self) {
        self.incoming.longest = MAX_LEN;
    }

    /// Sends one message.
    ///
    /// # Errors
    /// As [`send`].
    pub async fn send(&self, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = encode(message)?;
        let mut sent = 0;
        while sent < bytes.len() {
            let fds = if sent == 0 { fds } else { &[] };
            sent += self
                .socket
                .async_io(tokio::io::Interest::WRITABLE, |socket| {
                    send_some(socket.as_fd(), &bytes[sent..], fds)
                })
                .await?;
        }
        Ok(())
    }

    /// Another one to speak, in the same conversation.
    ///
    /// # Errors
    /// What `fcntl(2)` says.
    pub fn speaker(&self) -> io::Result<Speaker> {
        Ok(Speaker(self.socket.get_ref().as_fd().try_clone_to_owned()?))
    }

    /// From now on no descriptor comes in, whatever the other side sends.
    ///
    /// Closing the last descriptor of a socket takes as long as whoever made it wants (`SO_LINGER` of socket(7)), and who
    /// closes one that was sent to us, wanted or not, is this process.
    ///
    /// # Errors
    /// What `setsockopt(2)` says: ENOPROTOOPT before Linux 6.16.
    pub fn refuse_descriptors(&self) -> io::Result<()> {
        let socket = self.socket.get_ref();
        Ok(nix::sys::socket::setsockopt(
            socket,
            crate::sys::socket::PassRights,
            &false,
        )?)
    }

    /// Ends the conversation, which the other side sees at once; what was sent before can still be read.
    ///
    /// # Errors
    /// What `shutdown(2)` says.
    pub fn end(&self) -> io::Result<()> {
        let both = rustix::net::Shutdown::Both;
        Ok(rustix::net::shutdown(self.socket.get_ref(), both)?)
    }

    /// Sends one byte that is no message.
    ///
    /// # Errors
    /// What `sendmsg(2)` says.
    pub async fn say(&self, byte: u8) -> io::Result<()> {
        self.socket
            .async_io(tokio::io::Interest::WRITABLE, |socket| {
                send_some(socket.as_fd(), &[byte], &[])
            })
            .await
            .map(|_| ())
    }

    /// Waits for one message; `None` is the other side's end. Cancel safe: what has been read stays.
    ///
    /// # Errors
    /// As [`receive`].
    pub async fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        loop {
            let incoming = &mut self.incoming;
            let progress = self
                .socket
                .async_io_mut(tokio::io::Interest::READABLE, |socket| {
                    incoming.advance(socket.as_fd())
                })
                .await?;
            match progress {
                Progress::More => {}
                Progress::Done => {
                    let next = Incoming::at_most(self.incoming.longest);
                    let done = std::mem::replace(&mut self.incoming, next);
                    return done.finish().map(Some);
                }
                Progress::End => return Ok(None),
            }
        }
    }
}

/// Says short messages in a [`Channel`]'s conversation, between those that it sends.
pub struct Speaker(OwnedFd);

impl Speaker {
    /// The longest message that goes whole or not at all: the kernel takes that much as one piece of a socket's buffer
    /// (`unix_stream_sendmsg()`, net/unix/af_unix.c), so none is ever cut in two by another.
    const MOST: usize = 32 << 10;

    /// Says one.
    ///
    /// # Errors
    /// EAGAIN when the other side has left no room, and when it is too long.
    pub fn say(&self, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = encode(message)?;
        if bytes.len() > Self::MOST {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("it is longer than {} bytes", Self::MOST),
            ));
        }
        match send_some(self.0.as_fd(), &bytes, fds)? {
            sent if sent == bytes.len() => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        rustix::net::socketpair(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::STREAM,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )
        .unwrap()
    }

    #[test]
    fn a_message_arrives_whole_with_its_descriptors_and_the_next_one_after_it() {
        let (a, b) = pair();
        let file = std::fs::File::open("/proc/self/status").unwrap();
        let long = "x".repeat(100_000);
        send(
            &a,
            &FromStage::Failed {
                step: long.clone(),
                cause: String::new(),
                errno: None,
            },
            &[file.as_fd()],
        )
        .unwrap();
        send(&a, &FromStage::Started, &[]).unwrap();
        drop(a);
        let (first, fds) = receive::<FromStage>(&b).unwrap().unwrap();
        assert!(matches!(first, FromStage::Failed { step, .. } if step == long));
        assert_eq!(fds.len(), 1);
        let (second, fds) = receive::<FromStage>(&b).unwrap().unwrap();
        assert!(matches!(second, FromStage::Started));
        assert!(fds.is_empty());
        assert!(receive::<FromStage>(&b).unwrap().is_none());
    }

    #[test]
    fn a_length_that_cannot_be_is_refused_before_anything_is_allocated() {
        let (a, b) = pair();
        rustix::io::write(&a, &u32::MAX.to_le_bytes()).unwrap();
        assert_eq!(
            receive::<FromStage>(&b).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }

    #[test]
    fn a_message_that_was_tampered_with_is_an_error_or_another_message() {
        let ready = serde_json::json!({"Ready": {"privileges": crate::confine::privileges::read().unwrap(), "notes": ["a", "b"]}});
        let failed = serde_json::json!({"Failed": {"step": "s", "cause": "\u{1b}", "errno": -1}});
        let mut whole = vec![];
        for message in [ready, failed, "Started".into()] {
            whole.extend(encode(&message).unwrap());
        }
        let mut chance = 0x6c72_706e_7300_0001_u64;
        let mut below = |most: usize| {
            chance ^= chance >> 12;
            chance ^= chance << 25;
            chance ^= chance >> 27;
            usize::try_from(chance.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % most
        };
        let (mut errors, mut messages) = (0, 0);
        for _ in 0..3000 {
            let mut bytes = whole.clone();
            let at = below(bytes.len());
            match below(4) {
                0 => bytes[at] ^= 1 << below(8),
                1 => bytes[at] = [0, 0xff, b'"', b'}', b'9', b'[', b'\\'][below(7)],
                2 => bytes.truncate(at),
                _ => bytes.insert(at, b'['),
            }
            let (a, b) = pair();
            rustix::io::write(&a, &bytes).unwrap();
            drop(a);
            // As much as there is, and then the end, whatever was read before.
            loop {
                match receive::<FromStage>(&b) {
                    Ok(Some(_)) => messages += 1,
                    Ok(None) => break,
                    Err(_) => {
                        errors += 1;
                        break;
                    }
                }
            }
        }
        assert!(errors > 500 && messages > 500, "{errors} {messages}");
        // Deeper than anything that is meant: an error, and not the end of the stack.
        let (a, b) = pair();
        let nested = "[".repeat(100_000);
        let mut bytes = u32::try_from(nested.len()).unwrap().to_le_bytes().to_vec();
        bytes.extend(nested.as_bytes());
        rustix::io::write(&a, &bytes).unwrap();
        assert!(receive::<FromStage>(&b).is_err());
    }

    #[test]
    fn an_end_in_the_middle_of_a_message_is_an_error() {
        let (a, b) = pair();
        rustix::io::write(&a, &[9, 0, 0, 0, b'x']).unwrap();
        drop(a);
        assert_eq!(
            receive::<FromStage>(&b).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }
}

//! Sockets that a service manager has beside the stack: those of a socket unit, which it hands over (sd_listen_fds(3),
//! systemd.socket(5)), and those that it keeps for the next start (`FDSTORE=1`, sd_notify(3)).
//!
//! # Theory of operation
//!
//! A socket has one queue, whoever has a descriptor of it: who connects while nobody accepts waits there, and is accepted by
//! the next who does. So a published port that the manager has too refuses nobody while a stack is started anew. It also has
//! one state: shut down or behind a filter by one, it is so for all. So a port of a socket unit is never shut down, since the
//! manager waits there for who comes when the stack is gone; and what has a filter loses it when it is taken over, whoever
//! has left it so, and when it is left ([`Listener::leave`]).
//!
//! The kernel translates all that a client sends as it did its first SYN. So where a port is published by DNAT, nobody new may be translated
//! any more before the sidecar ends, and not until the apps answer again; the supervisor says both at the socket ([`super::publish`]),
//! though it has dropped what changing a rule takes. One that is killed says nothing. Then the host's table translates as before, if
//! another stack keeps it, until the next command of ours takes the port out of it (`ExecStopPost=` of the unit): who comes within that
//! moment sends to a link that is gone, and gets through, or not, when the stack is back. A port of a socket unit is relayed: the manager's
//! socket says nothing of this. Of UDP nothing is kept that is translated: there is no first packet that could be told.
//!
//! What the manager keeps goes with the unit: it can't be told from a stop whether a start follows, but the manager knows.
//! It also drops a socket that is shut down, by itself (`FDPOLL`), and is told to.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::MsgFlags;
use rustix::net::{AddressFamily, SocketType, sockopt};
use sd_notify::NotifyState;

use crate::sys::manager::say;

use super::Listening;
use super::publish::{self, Listener};
use crate::config::Protocol;
use crate::plan::{Plan, PublishPlan, Transport};
use crate::sys::socket::{self, Dropped, drop_incoming};

/// Who has the socket of a published port beside the stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// Nobody: it is gone with the stack.
    Nobody,
    /// The service manager keeps it for the next start.
    Stored,
    /// It is the service manager's own, by the unit of this name.
    Handed(String),
}

/// With this begins the name of what is kept; a socket unit's has its own (`FileDescriptorName=`).
const STORED: &str = "lrpns-port-";

impl Held {
    /// Who is to have the socket of a published port of ours, in a stack with so many: the manager keeps all or, if there are
    /// more than it takes, none. It takes them from the process that it has started alone, and says how many since systemd 254; for one before
    /// that the unit says it.
    #[must_use]
    pub fn of_ours(publish: &PublishPlan, ports: usize) -> Self {
        if is_not_kept(publish) {
            return Self::Nobody;
        }
        let number = |name| std::env::var(name).ok()?.parse::<usize>().ok();
        let is_main = number("SYSTEMD_EXEC_PID") == usize::try_from(std::process::id()).ok();
        let room = number("FDSTORE").filter(|_| is_main).unwrap_or(0);
        let hears = std::env::var_os("NOTIFY_SOCKET").is_some();
        match hears && ports <= room {
            true => Self::Stored,
            false => Self::Nobody,
        }
    }
}

/// A socket that came with the start of this process.
pub struct Handed {
    name: String,
    socket: OwnedFd,
}

/// What a socket is that can't be a published port, and what would do in the socket unit.
type NoPort = (String, &'static str);

const ONE_FAMILY: &str =
    "BindIPv6Only=ipv6-only in the socket unit, and a line for each address that is published";
const A_PORT: &str = "ListenStream= and ListenDatagram= with an address and a port, and no Accept=yes, in the socket unit";

/// One that can't be a published port.
#[derive(Debug, thiserror::Error)]
#[error("{unit} hands over {what}, {why}")]
pub struct Unfit {
    unit: String,
    what: String,
    why: String,
    /// What would do.
    pub hint: String,
}

impl Handed {
    /// All of them, once: [`crate::sys::socket::take_handed`].
    ///
    /// # Errors
    /// What `$LISTEN_FDS` and its like say can't be so.
    pub fn all() -> io::Result<Vec<Self>> {
        let all = socket::take_handed()?.into_iter();
        Ok(all.map(|(socket, name)| Self { name, socket }).collect())
    }

    /// Their descriptors and names, to be handed on to a clone of this process.
    #[must_use]
    pub fn apart(all: Vec<Self>) -> (Vec<OwnedFd>, Vec<String>) {
        all.into_iter().map(|one| (one.socket, one.name)).unzip()
    }

    /// The contrary.
    #[must_use]
    pub fn together(sockets: impl IntoIterator<Item = OwnedFd>, names: Vec<String>) -> Vec<Self> {
        let all = names.into_iter().zip(sockets);
        all.map(|(name, socket)| Self { name, socket }).collect()
    }

    fn is_stored(&self) -> bool {
        self.name.starts_with(STORED)
    }

    /// The port of one that a socket unit has.
    #[must_use]
    pub fn of_a_unit(&self) -> Option<(SocketAddr, Protocol)> {
        self.look().ok().filter(|_| !self.is_stored())
    }

    /// Where it is bound, and what it speaks; or what it is instead.
    fn look(&self) -> Result<(SocketAddr, Protocol), NoPort> {
        let no_port = |what: String| Err((what, A_PORT));
        let no_socket = |e| (format!("no socket that could be looked at ({e})"), A_PORT);
        let kind = sockopt::socket_type(&self.socket).map_err(no_socket)?;
        let family = sockopt::socket_domain(&self.socket).map_err(no_socket)?;
        if ![AddressFamily::INET, AddressFamily::INET6].contains(&family) {
            return no_port("a socket that is neither of IPv4 nor of IPv6".to_owned());
        }
        let address = rustix::net::getsockname(&self.socket).map_err(no_socket)?;
        let address = SocketAddr::try_from(address).map_err(no_socket)?;
        let protocol = match kind {
            SocketType::STREAM => Protocol::Tcp,
            SocketType::DGRAM => Protocol::Udp,
            _ => return no_port(format!("a socket of another type at {address}")),
        };
        if rustix::net::getpeername(&self.socket).is_ok() {
            return no_port(format!("a connection that came to {address}"));
        }
        if protocol == Protocol::Tcp && !sockopt::socket_acceptconn(&self.socket).unwrap_or(false) {
            return no_port(format!("a socket at {address}/tcp that does not listen"));
        }
        // `[::]` of a plan is IPv6 and nothing else.
        if address.ip().is_unspecified() && address.is_ipv6() {
            let only = sockopt::ipv6_v6only(&self.socket).unwrap_or(false);
            if !only {
                return Err((format!("{address}/{protocol} with IPv4 in it"), ONE_FAMILY));
            }
        }
        Ok((address, protocol))
    }

    /// The published port that it is.
    fn fit(self, plan: &Plan) -> Result<Listener, Unfit> {
        let unfit = |what: String, why: String, hint: String| Unfit {
            unit: self.name.clone(),
            what,
            why,
            hint,
        };
        let (address, protocol) = self.look().map_err(|(what, hint)| {
            unfit(
                what,
                format!("and {} publishes {}", plan.stack, listed(plan)),
                hint.to_owned(),
            )
        })?;
        let fits = |outside: (SocketAddr, Protocol)| outside == (address, protocol);
        let mut published = plan.published().map(|(_, publish)| publish);
        let Some(publish) = published.find(|publish| fits(publish.outside())) else {
            return Err(unfit(
                format!("{address}/{protocol}"),
                format!(
                    "which {} does not publish: it publishes {}",
                    plan.stack,
                    listed(plan)
                ),
                "the same address, port and protocol in `publish` of the file and in the socket unit (ListenStream=, ListenDatagram=)"
                    .to_owned(),
            ));
        };
        let target = publish::target(plan, publish);
        let held = match (self.is_stored(), publish.via) {
            (true, _) if is_not_kept(publish) => {
                forget(&self.name);
                Held::Nobody
            }
            (true, _) => Held::Stored,
            (false, _) => Held::Handed(self.name.clone()),
        };
        let prepared = || -> io::Result<u32> {
            // Whoever had it may have been killed while it was to admit nobody.
            if protocol == Protocol::Udp {
                drop_incoming(self.socket.as_fd(), Dropped::Nothing)?;
                return Ok(0);
            }
            publish::connects_nowhere(&self.socket)?;
            publish::carried(&self.socket)?;
            // Who waits already was born before that.
            let waiting = Listening::open().and_then(|listening| listening.backlog(address));
            Ok(waiting.unwrap_or(u32::MAX))
        };
        let early = prepared().map_err(|e| {
            let why = format!("which can't be prepared: {e}");
            unfit(format!("{address}/{protocol}"), why, String::new())
        })?;
        Ok(Listener {
            address,
            protocol,
            target,
            socket: Arc::new(self.socket),
            held,
            early,
        })
    }
}

/// Datagrams that are translated: those of a client that has sent one are for as long as it sends more, and nothing ends that.
fn is_not_kept(publish: &PublishPlan) -> bool {
    (publish.via, publish.protocol) == (Transport::Dnat, Protocol::Udp)
}

/// What a plan publishes, as far as it is worth reading.
fn listed(plan: &Plan) -> String {
    let all = plan.published().map(|(_, publish)| publish);
    let all: Vec<String> = all
        .map(|publish| format!("{}/{}", publish.listen, publish.protocol))
        .collect();
    match all.as_slice() {
        [] => "nothing".to_owned(),
        [some @ .., _] if some.len() > 8 => format!("{} and more", some[..8].join(", ")),
        all => all.join(", "),
    }
}

/// The published ports that were handed over. What was kept, and is published no more, the manager is told to forget.
///
/// # Errors
/// All that a socket unit has handed over and that can be no published port.
pub fn fit(plan: &Plan, handed: Vec<Handed>) -> Result<Vec<Listener>, Vec<Unfit>> {
    let (mut listeners, mut unfit) = (vec![], vec![]);
    for one in handed {
        let stored = one.is_stored();
        let kept = stored.then(|| (one.name.clone(), one.socket.try_clone()));
        match (one.fit(plan), kept) {
            (Ok(listener), _) => listeners.push(listener),
            (Err(_), Some((name, socket))) => {
                forget(&name);
                // The manager may be a moment late, and nobody is to wait there. A socket of UDP refuses it.
                let _ =
                    socket.map(|socket| rustix::net::shutdown(socket, rustix::net::Shutdown::Read));
            }
            (Err(e), None) => unfit.push(e),
        }
    }
    match unfit.is_empty() {
        true => Ok(listeners),
        false => Err(unfit),
    }
}

fn name(listener: &Listener) -> String {
    let (address, protocol) = listener.outside();
    // It may have any character but a colon.
    let address = address.to_string().replace(':', "_");
    format!("{STORED}{protocol}-{address}")
}

fn forget(name: &str) {
    // As for READY=1: who isn't heard has no manager.
    say(
        &[NotifyState::FdStoreRemove, NotifyState::FdName(name)],
        &[],
        MsgFlags::empty(),
    );
}

/// Has the manager keep what is to be kept.
pub(super) fn store(listener: &Listener) {
    if listener.held == Held::Stored {
        let name = name(listener);
        let what = [NotifyState::FdStore, NotifyState::FdName(&name)];
        say(&what, &[listener.socket.as_fd()], MsgFlags::empty());
    }
}

/// Has the manager keep it no longer.
pub(super) fn unstore(listener: &Listener) {
    if listener.held == Held::Stored {
        forget(&name(listener));
    }
}

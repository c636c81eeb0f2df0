//! Why a stack could not be brought up, changed or taken down.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::time::Duration;
use std::{fmt, io};

use nix::sys::signal::Signal;

use super::rules;
use crate::config::Protocol;
use crate::net::publish::ListenError;
use crate::part::container::ContainerError;
use crate::part::namespaces::NamespaceError;
use crate::part::{secrets, volumes};
use crate::protocol::Exit;
use crate::{firewall, net, rootfs};

/// Why a stack could not be brought up.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// A part.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// A part's namespaces.
    #[error(transparent)]
    Namespaces(#[from] NamespaceError),
    /// The cgroup of a part that joins.
    #[error(transparent)]
    Cgroup(#[from] crate::part::cgroup::CgroupError),
    /// A root file system.
    #[error("root file system: {0}")]
    Rootfs(#[from] rootfs::RootfsError),
    /// A root that is a directory can't be had.
    #[error("rootfs of {app}: {source}")]
    Directory {
        /// The app.
        app: String,
        /// Why.
        source: rootfs::DirectoryError,
    },
    /// A secret.
    #[error(transparent)]
    Secret(#[from] secrets::SecretError),
    /// A volume.
    #[error(transparent)]
    Volume(#[from] volumes::VolumeError),
    /// An app's seccomp filters.
    #[error(transparent)]
    Seccomp(#[from] crate::confine::seccomp::CompileError),
    /// The links.
    #[error("network: {0}")]
    Net(#[from] net::Error),
    /// A ruleset that could not be encoded.
    #[error("rules: {0}")]
    Encode(#[from] firewall::EncodeError),
    /// The host's table.
    #[error("the host's table: {0}")]
    HostTable(#[from] firewall::LoadError),
    /// The one that stacks share.
    #[error("the host's table: {0}")]
    SharedTable(#[from] firewall::SharedError),
    /// New rules for a sidecar that is up; the old ones are in force, all of them.
    #[error("the sidecar's rules: {0}")]
    Rules(#[source] firewall::LoadError),
    /// The rules in an app's own network namespace.
    #[error("load the rules by which clients of {app} come to its loopback: {source}")]
    OwnRules {
        /// The app.
        app: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The user's own rules.
    #[error(transparent)]
    Extra(#[from] rules::ExtraError),
    /// A published port.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A pipe or a descriptor of our own.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The app ended too early.
    #[error("{app} ended with {exit} before it listened on {port}")]
    AppEnded {
        /// The app.
        app: String,
        /// How.
        exit: Exit,
        /// The first port that nobody listens on.
        port: AppPort,
    },
    /// The app listened, and ended before anybody was let in.
    #[error("{app} listened, and then ended with {exit}")]
    EndedListening {
        /// The app.
        app: String,
        /// How.
        exit: Exit,
    },
    /// An app that others come up after ended before they did.
    #[error("{app} ended with {exit} before {before} was started, which comes after it")]
    EndedBefore {
        /// The app.
        app: String,
        /// How.
        exit: Exit,
        /// The first one that comes after it.
        before: String,
    },
    /// The app ended before a health check had passed.
    #[error("{app} ended with {exit} before it was healthy")]
    EndedUnhealthy {
        /// The app.
        app: String,
        /// How.
        exit: Exit,
    },
    /// The app's health checks fail.
    #[error("{app} is not healthy: {said}")]
    Unhealthy {
        /// The app.
        app: String,
        /// What the last check said.
        said: String,
    },
    /// A job did not end with 0.
    #[error("{app} ended with {exit}; it is a job, which has to end with 0")]
    JobFailed {
        /// The app.
        app: String,
        /// How.
        exit: Exit,
    },
    /// A job takes too long.
    #[error("{app} is a job and has not ended after {seconds} s")]
    JobGoesOn {
        /// The app.
        app: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The app runs and doesn't listen where it should.
    #[error("{app} does not listen on {port} after {seconds} s; {found}")]
    NotListening {
        /// The app.
        app: String,
        /// How long it was waited for.
        seconds: u64,
        /// The first port that nobody listens on.
        port: AppPort,
        /// Where it listens instead, in words.
        found: String,
        /// The same by that protocol.
        listening: Vec<SocketAddr>,
    },
    /// A socket for an app can't be had.
    #[error("make the listening socket at {at} that {app} is handed: {source}")]
    Handed {
        /// The app.
        app: String,
        /// Where.
        at: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// The app runs and takes nobody off the socket that it was handed.
    #[error("{app} has accepted no connection at its socket for port {port} after {seconds} s")]
    NotAccepting {
        /// The app.
        app: String,
        /// How long it was waited for.
        seconds: u64,
        /// The port.
        port: u16,
    },
    /// The app ended before it had accepted anybody.
    #[error(
        "{app} ended with {exit} before it had accepted a connection at its socket for port {port}"
    )]
    EndedUnaccepting {
        /// The app.
        app: String,
        /// How.
        exit: Exit,
        /// The port.
        port: u16,
    },
    /// Who changes the stack can't open what an app is given.
    #[error("{why}")]
    Unopened {
        /// Why.
        why: String,
        /// What to do about it, where that is known.
        hint: Option<String>,
    },
    /// The way from the host to the app's port doesn't work.
    #[error("connect through the sidecar to {app} port {port}: {source}")]
    Path {
        /// The app.
        app: String,
        /// Its port.
        port: u16,
        /// What the kernel said.
        source: io::Error,
    },
    /// A step took longer than any machine needs.
    #[error("{step}: not done after {} s", limit.as_secs())]
    TimedOut {
        /// The step.
        step: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// The supervisor could not drop what it doesn't need any more.
    #[error("supervisor: {0}")]
    Supervisor(#[source] crate::confine::privileges::DropError),
    /// Who undoes the stack, and puts its parts into their cgroups, was killed.
    #[error(
        "the process that undoes the stack, and puts its parts into their cgroups, has ended: nothing can be started again"
    )]
    Crippled,
    /// With `--gate`: the audit did not pass, or could not be made.
    #[error("not published: {findings}")]
    Gate {
        /// What it said.
        findings: String,
    },
    /// By a signal, or else by `lrpns down`.
    #[error("interrupted by {}: all that was made is undone", by.map_or("lrpns down", Signal::as_str))]
    Interrupted {
        /// The signal.
        by: Option<Signal>,
    },
    /// The change that it was started for is taken back.
    #[error("{app}: ended before it listened: the change is taken back")]
    GivenUp {
        /// The app.
        app: String,
    },
    /// A test asked for it (debug builds only).
    #[error("step {0}: failed on request")]
    OnRequest(&'static str),
}

impl StackError {
    /// Whether somebody else has the host's table, and neither hands it over nor lets go of it.
    #[must_use]
    pub fn is_for_want_of_the_table(&self) -> bool {
        use firewall::SharedError as E;
        matches!(self, Self::SharedTable(E::NotHandedOver | E::Lock(_)))
    }

    /// Whether what is wrong is what the user has written.
    #[must_use]
    pub fn is_of_the_configuration(&self) -> bool {
        use rules::ExtraError as E;
        matches!(
            self,
            Self::Extra(E::Refused { .. } | E::NotAllowed { .. } | E::TooLarge { .. })
        )
    }
}

/// A port of an app's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AppPort {
    /// Of which protocol.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
}

impl fmt::Display for AppPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            Protocol::Tcp => write!(f, "port {}", self.port),
            Protocol::Udp => write!(f, "UDP port {}", self.port),
        }
    }
}

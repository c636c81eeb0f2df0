//! What Landlock (landlock(7)) leaves of the network and the files: for every part, on top of everything else, and as far
//! as the kernel has it.
//!
//! # Theory of operation
//!
//! [`TcpOnlyTo`] is for the sidecar and the relay, which only talk. The relay needs it most. It has to be in the host's
//! network namespace, where every service of loopback is in reach; no capability and no filter of system calls keeps a
//! relay that was broken into from them.
//!
//! [`App`] is for an app. Its pid 1 enters the domain before it drops, so that its command, the audit's prober and what
//! `lrpns exec` starts are born in it, by the one way that there is, and so may signal one another. The command goes one
//! domain deeper ([`apart`]): exec looks at it, and it does not look at exec, whose descriptors are the operator's.
//! What it adds to namespaces, mounts and rules is another way to say no, that does not know the others:
//!
//! - a connection by TCP ends in the app, with EACCES, before there is a packet for the sidecar's rules to eat. Not in an
//!   app that has `egress`: it has routes, and who tries where it may not go shall be in the log, with the name of the rule
//!   that ate the packet;
//! - a directory or a file from outside the root, should a descriptor of one ever get in (CVE-2024-21626), can't be
//!   opened, whatever its mode: it is beneath no path that has a rule.
//!
//! - a Unix socket of the host's in a volume is connected to only if `sockets` declares it, from Linux 7.1 on. Before, those
//!   that are there when the app starts are found by who starts it ([`crate::part::volumes::sockets`]).
//!
//! A socket that was never bound gets a free port when it connects or listens (`ip_local_port_range`); Landlock does not
//! ask about that, so port 0 needs no rule to connect, and whoever binds port 0 by name is refused, unless `listen` has 0.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::config::{Connect, Protocol};
use crate::plan::{AppPlan, Plan, PublishPlan};

/// What is left of TCP: binding nothing if not said otherwise, connecting to these ports only. Abstract sockets and
/// signals end at the part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpOnlyTo {
    /// The ports.
    pub ports: Vec<u16>,
    /// Binding to any port is left, too.
    pub binds: bool,
    /// Binding to these is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bound: Vec<u16>,
}

impl TcpOnlyTo {
    /// To the ports of these addresses: a rule of Landlock knows ports only.
    #[must_use]
    pub fn of(targets: impl IntoIterator<Item = std::net::SocketAddr>) -> Self {
        Self::ports(targets.into_iter().map(|target| target.port()))
    }

    /// To these ports.
    #[must_use]
    pub fn ports(ports: impl IntoIterator<Item = u16>) -> Self {
        Self {
            ports: sorted(ports),
            binds: false,
            bound: vec![],
        }
    }

    /// And from these ports, beside those that the kernel chooses.
    #[must_use]
    pub fn from(self, bound: &[u16]) -> Self {
        Self {
            bound: sorted(bound.iter().copied()),
            ..self
        }
    }

    /// What the relay keeps: it binds its sockets if it dials as its clients, whose ports may be any.
    #[must_use]
    pub fn relay(
        targets: impl IntoIterator<Item = std::net::SocketAddr>,
        as_clients: bool,
    ) -> Self {
        Self {
            binds: as_clients,
            ..Self::of(targets)
        }
    }

    /// The same by a plan.
    #[must_use]
    pub fn of_relay(plan: &Plan) -> Self {
        let published = plan.published();
        let tcp = published.filter(|(_, publish)| publish.protocol == Protocol::Tcp);
        let targets = tcp.map(|(_, publish)| plan.uplink.entry(publish));
        Self::relay(targets, plan.carries().as_clients)
    }

    /// Puts this process and all that comes of it under it, for good. Tells, in a sentence, what this kernel could not do.
    ///
    /// # Errors
    /// What the kernel says other than that it doesn't know Landlock, or not this much of it.
    pub fn enforce(&self) -> Result<Option<String>, RulesetError> {
        let rules = ports(&self.ports, AccessNet::ConnectTcp);
        // Where any may be bound no rule is known for it.
        let bound: &[u16] = if self.binds { &[] } else { &self.bound };
        let bound = ports(bound, AccessNet::BindTcp);
        let status = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(if self.binds {
                AccessNet::ConnectTcp.into()
            } else {
                AccessNet::from_all(ABI::V4)
            })?
            .scope(Scope::from_all(ABI::V6))?
            .create()?
            .add_rules(rules)?
            .add_rules(bound)?
            .restrict_self()?;
        Ok(match status.ruleset {
            RulesetStatus::FullyEnforced => None,
            RulesetStatus::PartiallyEnforced => Some(
                "Landlock in part: this kernel knows its rules for TCP, but none for abstract sockets and signals (6.12 does)"
                    .to_owned(),
            ),
            RulesetStatus::NotEnforced => {
                Some("no Landlock: this kernel has none, or none for TCP (6.7 has)".to_owned())
            }
        })
    }
}

fn sorted(ports: impl IntoIterator<Item = u16>) -> Vec<u16> {
    let mut ports: Vec<u16> = ports.into_iter().collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn ports(
    ports: &[u16],
    access: AccessNet,
) -> impl Iterator<Item = Result<NetPort, RulesetError>> + '_ {
    ports
        .iter()
        .map(move |port| Ok(NetPort::new(*port, access)))
}

/// What this kernel's Landlock can keep from an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Support {
    /// Files. Before 5.19 it kept every program from moving files between directories, so there it counts as lacking.
    pub files: bool,
    /// `bind(2)` and `connect(2)` by TCP (6.7).
    pub tcp: bool,
    /// Abstract sockets and signals (6.12).
    pub scopes: bool,
    /// Unix sockets of others, by their paths (7.1).
    pub sockets: bool,
}

impl Support {
    /// Asks the kernel.
    #[must_use]
    pub fn of_this_kernel() -> Self {
        let strictly = || Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        Self {
            files: strictly().handle_access(AccessFs::Refer).is_ok(),
            tcp: strictly()
                .handle_access(AccessNet::from_all(ABI::V4))
                .is_ok(),
            scopes: strictly().scope(Scope::from_all(ABI::V6)).is_ok(),
            sockets: strictly().handle_access(AccessFs::ResolveUnix).is_ok(),
        }
    }

    /// What is lacking, in a sentence. Of Unix sockets `plan` tells, where an app has volumes: nothing else can bring one.
    #[must_use]
    pub fn lack(self) -> Option<String> {
        let mut lacks = vec![];
        for (has, what) in [
            (self.files, "files (5.19 has)"),
            (self.tcp, "TCP (6.7 has)"),
            (self.scopes, "abstract sockets and signals (6.12 has)"),
        ] {
            if !has {
                lacks.push(what);
            }
        }
        let all = lacks.join(", ");
        match lacks.len() {
            0 => None,
            3 => Some("no Landlock: this kernel has none".to_owned()),
            _ => Some(format!(
                "Landlock in part: this kernel has no rules of it for {all}"
            )),
        }
    }
}

/// Why an app could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// A path of a rule.
    #[error("open {}: {source}", path.display())]
    Open {
        /// The path, inside.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The rules themselves.
    #[error(transparent)]
    Ruleset(#[from] RulesetError),
}

/// What an app may do by TCP; what it may do with files follows from its root ([`App::enforce`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    /// The ports that it may bind.
    pub bind: Vec<u16>,
    /// The ports that it may connect to, wherever: a rule of Landlock knows no addresses, the sidecar's rules do. `None` is
    /// all of them.
    pub connect: Option<Vec<u16>>,
}

/// What an app has of files, beside reading and executing what is in its root.
pub struct Writable<'a> {
    /// Where anything but a device may be made and changed.
    pub trees: Vec<&'a Path>,
    /// Unix sockets of others, or directories of them, that may be connected to.
    pub sockets: Vec<&'a Path>,
    /// A program that is executed by its descriptor, since it is beneath no path: our own, for the audit.
    pub program: BorrowedFd<'a>,
}

/// The devices, which may be written to although all that is in `/dev` is read-only.
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];

impl App {
    /// Binds what is published, what other apps connect to and what the app uses within itself, and connects to the same: a
    /// server's own tools (`redis-cli ping`) talk to it on its loopback. Connects to the ports of `connect` as well. With
    /// `egress` the rules say where to, and log what they refuse.
    ///
    /// Of a port of UDP also TCP's of the same number, where nobody reaches it: who serves DNS binds both, and ends if it
    /// can't.
    #[must_use]
    pub fn of(app: &AppPlan) -> Self {
        Self::binding(app, |_| true)
    }

    /// Without what [`App::of`] adds for UDP: a process that was started with less than this has to be started again.
    #[must_use]
    pub fn at_least(app: &AppPlan) -> Self {
        Self::binding(app, |publish| publish.protocol == Protocol::Tcp)
    }

    fn binding(app: &AppPlan, which: impl Fn(&PublishPlan) -> bool) -> Self {
        // A port that is closing was published when the process was started, which is still there.
        let published = app.reachable().filter(|publish| which(publish));
        // What it is handed is bound, and what it accepts there can be made a new socket of (tcp_disconnect()), in the
        // sidecar's network namespace.
        let published = published.filter(|_| !app.via_socket);
        let published = published.map(|publish| publish.app_port);
        let ports = |connect: &Connect| connect.first_port..=connect.last_port;
        // Of what others reach by UDP too: who serves DNS binds both.
        let served = app.serves.iter().flat_map(ports);
        let tcp = |connect: &&Connect| connect.protocol == Protocol::Tcp;
        let linked = app.connect.iter().filter(tcp).flat_map(ports);
        let own = sorted(published.chain(app.listen.iter().copied()).chain(served));
        Self {
            connect: (app.egress.is_empty()).then(|| sorted(own.iter().copied().chain(linked))),
            bind: own,
        }
    }

    /// Whether this kernel lets it bind a socket of TCP's to that port, and connect one to it.
    #[must_use]
    pub fn allows(&self, port: u16, support: Support) -> (bool, bool) {
        let connects = self.connect.as_ref();
        let connects = connects.is_none_or(|ports| ports.contains(&port));
        (
            !support.tcp || self.bind.contains(&port),
            !support.tcp || connects,
        )
    }

    /// Puts this process and all that comes of it under it, for good, but for the `without`. Tells, in a sentence, what
    /// this kernel could not do.
    ///
    /// Should be called in the app's root, when it is as the app will find it, with the network namespace joined.
    ///
    /// # Errors
    /// [`ConfineError`]; that the kernel doesn't know Landlock, or not this much of it, is none.
    pub fn enforce(
        &self,
        files: &Writable<'_>,
        without: impl Fn(&str) -> bool,
    ) -> Result<Option<String>, ConfineError> {
        let support = Support::of_this_kernel();
        let (with_files, with_tcp, with_scopes) = (
            support.files && !without("files"),
            support.tcp && !without("tcp"),
            support.scopes && !without("scopes"),
        );
        if !(with_files || with_tcp || with_scopes) {
            return Ok(support.lack());
        }
        let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort);
        if with_files {
            // Its last right, to connect to a Unix socket by its path, is about the sockets of others alone: those that were
            // made in this domain, or below it, stay in reach.
            ruleset = ruleset.handle_access(AccessFs::from_all(ABI::V9))?;
        }
        if with_tcp {
            ruleset = ruleset.handle_access(match self.connect {
                Some(_) => AccessNet::from_all(ABI::V4),
                None => AccessNet::BindTcp.into(),
            })?;
        }
        if with_scopes {
            ruleset = ruleset.scope(Scope::from_all(ABI::V6))?;
        }
        let mut ruleset = ruleset.create()?;
        if with_files {
            ruleset = allow_files(ruleset, files)?;
        }
        if with_tcp {
            ruleset = ruleset
                .add_rules(ports(&self.bind, AccessNet::BindTcp))?
                .add_rules(ports(
                    self.connect.as_deref().unwrap_or_default(),
                    AccessNet::ConnectTcp,
                ))?;
        }
        ruleset.restrict_self()?;
        Ok(support.lack())
    }
}

/// Puts this process and all that comes of it into a domain below the one that it is in. From there it can neither look
/// into processes that are in that one and not in this (landlock(7), "Ptrace restrictions"; /proc/PID asks for the same),
/// nor, from Linux 6.12 on, signal them. They can do both to it.
///
/// # Errors
/// What the kernel says other than that it doesn't know Landlock, or not this much of it.
pub fn apart() -> Result<(), ConfineError> {
    if !Support::of_this_kernel().files {
        return Ok(());
    }
    // A layer has to handle something. This is what every layer denies that does not allow it, and so it is allowed.
    let allow = PathBeneath::new(open(Path::new("/"))?, AccessFs::Refer);
    Ruleset::default()
        .handle_access(AccessFs::Refer)?
        .scope(Scope::Signal)?
        .create()?
        .add_rule(allow)?
        .restrict_self()?;
    Ok(())
}

fn allow_files(
    mut ruleset: RulesetCreated,
    files: &Writable<'_>,
) -> Result<RulesetCreated, ConfineError> {
    let read = AccessFs::Execute | AccessFs::ReadFile | AccessFs::ReadDir;
    let write = AccessFs::WriteFile | AccessFs::Truncate;
    let devices = AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev;
    let allow = |ruleset: RulesetCreated, path: &Path, access: BitFlags<AccessFs>| {
        let opened = open(path)?;
        let is_directory = rustix::fs::fstat(&opened)
            .map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode))
            .is_ok_and(|kind| kind == rustix::fs::FileType::Directory);
        // What only a directory can have is refused for a file (landlock_add_rule(2), EINVAL).
        let access = if is_directory {
            access
        } else {
            access & AccessFs::from_file(ABI::V9)
        };
        Ok::<_, ConfineError>(ruleset.add_rule(PathBeneath::new(opened, access))?)
    };
    ruleset = allow(ruleset, Path::new("/"), read)?;
    for tree in &files.trees {
        ruleset = allow(ruleset, tree, AccessFs::from_all(ABI::V6) & !devices)?;
    }
    // A kernel before 7.1 leaves the right out, and with it the rule.
    for socket in &files.sockets {
        ruleset = allow(ruleset, socket, read | AccessFs::ResolveUnix)?;
    }
    for name in DEVICES {
        // A request to a device that is none of a terminal's must be told so (ENOTTY): isatty(3).
        let access = write | AccessFs::ReadFile | AccessFs::IoctlDev;
        ruleset = allow(ruleset, &Path::new("/dev").join(name), access)?;
    }
    // A program's name for its threads, its score for the kernel when memory is short. A root without a /proc of its own
    // has a directory there, which is read-only.
    if has_proc() {
        let access = write | AccessFs::ReadFile | AccessFs::ReadDir;
        ruleset = allow(ruleset, Path::new("/proc"), access)?;
    }
    let run = AccessFs::Execute | AccessFs::ReadFile;
    Ok(ruleset.add_rule(PathBeneath::new(files.program, run))?)
}

/// Whether a `/proc` is there.
fn has_proc() -> bool {
    rustix::fs::statfs("/proc").is_ok_and(|fs| fs.f_type == rustix::fs::PROC_SUPER_MAGIC)
}

fn open(path: &Path) -> Result<std::os::fd::OwnedFd, ConfineError> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|e| ConfineError::Open {
        path: path.to_owned(),
        source: e.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_lacks_is_named_and_what_it_has_is_not() {
        let all = Support {
            files: true,
            tcp: true,
            scopes: true,
            sockets: true,
        };
        assert_eq!(all.lack(), None);
        let old = Support {
            tcp: false,
            scopes: false,
            ..all
        };
        let said = old.lack().unwrap();
        assert!(said.contains("TCP") && said.contains("signals") && !said.contains("files"));
        let none = Support {
            files: false,
            ..old
        };
        assert!(none.lack().unwrap().starts_with("no Landlock"));
    }
}

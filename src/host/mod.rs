//! Read-only facts of this machine, gathered once; what follows from them is decided in [`crate::plan`].
#![forbid(unsafe_code)]

pub mod holder;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::accounts::{Accounts, subordinate};
use crate::config::{Config, IdCount, Protocol, Rootfs};
use crate::firewall::{self, Forwarding, IpFamily};
use crate::names::StackName;
use crate::net;
use crate::part::cgroup;
use crate::plan::neighbour::Neighbour;
use crate::plan::{Mode, RANGE, Subordinate};
use crate::state::StateRoot;
use crate::sys::runtime;

/// This machine, as far as a plan depends on it.
#[derive(Debug, Clone)]
pub struct Host {
    /// Root or an ordinary user.
    pub mode: Mode,
    /// Who we are.
    pub uid: u32,
    /// Where the stacks' directories are.
    pub state: StateRoot,
    /// Where their logs are.
    pub logs: PathBuf,
    /// Eight hexadecimal digits nobody else has: see [`run`](crate::plan::Plan::run).
    pub run: String,
    /// Addresses, routes and links of the host.
    pub net: net::Facts,
    /// Whether the host forwards, and nothing of another owner drops what it does.
    pub forwarding: Forwarding,
    /// The same for IPv6.
    pub forwarding6: Forwarding,
    /// The links whose routers this host does not listen to, since it forwards: the kernel would if `accept_ra` were 2.
    pub deaf_to_routers: Vec<String>,
    /// Why there can be no IPv6 here, if there can't.
    pub no_ipv6: Option<String>,
    /// The other stacks here.
    pub others: Vec<Neighbour>,
    /// The first port that an ordinary user may bind (`net.ipv4.ip_unprivileged_port_start`).
    pub first_user_port: u16,
    /// Where cgroups may be made.
    pub cgroups: cgroup::Place,
    /// Users and groups by name, of each root of which a configuration names some.
    pub accounts: Vec<(Rootfs, Accounts)>,
    /// Where systemd has put what is secret for the service that this is (`$CREDENTIALS_DIRECTORY`).
    pub credentials: Option<PathBuf>,
    /// An ordinary user's further ids, or what is missing and what helps, where an app wants a range.
    pub subordinate: Option<Result<Subordinate, (String, String)>>,
    /// The ports that a socket unit hands over ([`net::handed`]).
    pub handed: Vec<(SocketAddr, Protocol)>,
    /// Bytes of memory; 0 when the kernel doesn't tell.
    pub memory: u64,
}

/// A fact could not be had.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The network's state.
    #[error("read the host's network: {0}")]
    Net(#[from] net::Error),
    /// The users and groups of a root.
    #[error("read {}: {source}", file.display())]
    Accounts {
        /// Its /etc/passwd or /etc/group.
        file: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Anything else.
    #[error("{what}: {source}")]
    Io {
        /// What was read.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Host {
    /// Whether it forwards packets of this address's family.
    #[must_use]
    pub fn forwards(&self, address: IpAddr) -> &Forwarding {
        match address {
            IpAddr::V4(_) => &self.forwarding,
            IpAddr::V6(_) => &self.forwarding6,
        }
    }

    /// Its addresses, each with its link.
    pub fn addresses(&self) -> impl Iterator<Item = (&str, IpAddr)> {
        let four = self.net.addresses.iter();
        let four = four.map(|(link, net)| (link.as_str(), IpAddr::V4(net.addr())));
        let six = self.net.addresses6.iter();
        four.chain(six.map(|(link, address)| (link.as_str(), IpAddr::V6(*address))))
    }

    /// Whether it has this address.
    #[must_use]
    pub fn has(&self, address: IpAddr) -> bool {
        self.addresses().any(|(_, own)| own == address)
    }

    /// A machine with one address, which forwards, and root: for tests of what is decided by it.
    #[cfg(test)]
    pub(crate) fn example() -> Self {
        Self {
            mode: Mode::Root,
            uid: 0,
            state: StateRoot::for_user(0, None),
            logs: "/var/log/lrpns".into(),
            run: "0123abcd".to_owned(),
            net: net::Facts {
                addresses: vec![(
                    "eth0".to_owned(),
                    ipnet::Ipv4Net::new_assert([192, 0, 2, 10].into(), 24),
                )],
                links: vec!["lo".to_owned(), "eth0".to_owned()],
                ..net::Facts::default()
            },
            forwarding: Forwarding::Open,
            forwarding6: Forwarding::Open,
            deaf_to_routers: vec![],
            no_ipv6: None,
            others: vec![],
            first_user_port: 1024,
            cgroups: cgroup::Place::default(),
            accounts: vec![],
            credentials: None,
            subordinate: None,
            handed: vec![],
            memory: 8 << 30,
        }
    }

    /// Looks at the machine on behalf of the stack `name`.
    ///
    /// # Errors
    /// [`HostError`] when the kernel doesn't tell.
    pub fn look(name: &StackName) -> Result<Self, HostError> {
        let uid = nix::unistd::geteuid().as_raw();
        let mode = if uid == 0 { Mode::Root } else { Mode::Rootless };
        let state = Self::state_root();
        let io = |what: &'static str| move |source: io::Error| HostError::Io { what, source };
        let mut random = [0; 4];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(|e| io("ask for a random number")(e.into()))?;
        let others: Vec<Neighbour> = state
            .stacks()
            .unwrap_or_default()
            .iter()
            .filter(|other| *other != name)
            .filter_map(|other| state.neighbour(other))
            .collect();
        let (net, [forwarding, forwarding6]) = match mode {
            // The runtime lives for this question only: what follows may unshare, which a process with a runtime
            // should not do.
            Mode::Root => {
                let runtime = runtime::of_this_thread().map_err(io("make a runtime"))?;
                let facts = runtime.block_on(async { net::facts(&net::Rtnl::open()?).await })?;
                let forwarding = [IpFamily::V4, IpFamily::V6].map(|family| {
                    firewall::forwarding(family)
                        .unwrap_or_else(|e| Forwarding::Closed { why: e.to_string() })
                });
                (facts, forwarding)
            }
            // The uplink ends in a fresh network namespace that has nothing in it yet.
            Mode::Rootless => (
                net::Facts::default(),
                [(); 2].map(|()| Forwarding::Closed {
                    why: "that needs root".to_owned(),
                }),
            ),
        };
        Ok(Self {
            mode,
            uid,
            state,
            logs: Self::logs(),
            run: format!("{:08x}", u32::from_ne_bytes(random)),
            deaf_to_routers: deaf_to_routers(&net.links, &others),
            net,
            forwarding,
            forwarding6,
            no_ipv6: no_ipv6(),
            others,
            first_user_port: std::fs::read_to_string(
                "/proc/sys/net/ipv4/ip_unprivileged_port_start",
            )
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(1024),
            cgroups: cgroup::find(mode == Mode::Root),
            accounts: vec![],
            // systemd names an absolute one; anything else would be a file of whatever directory this process stands in.
            credentials: std::env::var_os("CREDENTIALS_DIRECTORY")
                .map(PathBuf::from)
                .filter(|directory| directory.is_absolute()),
            subordinate: None,
            handed: vec![],
            memory: memory(),
        })
    }

    /// As [`Host::look`], and also at what names in `config` mean.
    ///
    /// # Errors
    /// As [`Host::look`]; and when a root's /etc/passwd or /etc/group can't be read.
    pub fn look_for(config: &Config) -> Result<Self, HostError> {
        let mut host = Self::look(&config.name)?;
        host.accounts = accounts(config)?;
        if host.mode == Mode::Rootless && config.apps.iter().any(|app| app.ids == IdCount::Range) {
            let further = subordinate::of(host.uid, RANGE - 1);
            host.subordinate = Some(further.map(|(uid, gid)| Subordinate { uid, gid }));
        }
        Ok(host)
    }

    /// Where the stacks' logs are, by the XDG base directory specification for an ordinary user.
    #[must_use]
    pub fn logs() -> PathBuf {
        if nix::unistd::geteuid().is_root() {
            return "/var/log/lrpns".into();
        }
        let of = |name| std::env::var_os(name).map(PathBuf::from);
        let absolute = |path: Option<PathBuf>| path.filter(|path| path.is_absolute());
        let home = || absolute(of("HOME")).map(|home| home.join(".local/state"));
        let base = absolute(of("XDG_STATE_HOME")).or_else(home);
        // Who has no home has a runtime directory at most, which lasts until the logout.
        match base {
            Some(base) => base.join("lrpns"),
            None => Self::state_root().path().join(".logs"),
        }
    }

    /// Where the stacks' directories are.
    #[must_use]
    pub fn state_root() -> StateRoot {
        let uid = nix::unistd::geteuid().as_raw();
        StateRoot::for_user(uid, std::env::var_os("XDG_RUNTIME_DIR").as_deref())
    }
}

/// The users and groups of each root of which `config` names some.
fn accounts(config: &Config) -> Result<Vec<(Rootfs, Accounts)>, HostError> {
    let mut all: Vec<(Rootfs, Accounts)> = vec![];
    for app in &config.apps {
        let owners = app.volumes.iter().any(|volume| volume.owner_name.is_some());
        let named = app.user.is_some() || app.group.is_some() || owners;
        if !named || all.iter().any(|(root, _)| *root == app.rootfs) {
            continue;
        }
        let root = match &app.rootfs {
            Rootfs::BuiltinWebapp => continue,
            Rootfs::Host => Path::new("/"),
            Rootfs::Dir(path) => path,
        };
        let accounts =
            Accounts::of(root).map_err(|(file, source)| HostError::Accounts { file, source })?;
        all.push((app.rootfs.clone(), accounts));
    }
    Ok(all)
}

/// Why there can be no IPv6 in this network namespace, and so in none that is reached from it (ip-sysctl.rst).
fn no_ipv6() -> Option<String> {
    match std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6") {
        Ok(off) if off.trim() == "0" => None,
        Ok(_) => Some("net.ipv6.conf.all.disable_ipv6 is 1".to_owned()),
        Err(_) => Some("this kernel has no IPv6".to_owned()),
    }
}

/// As `ipv6_accept_ra` has it (include/net/ipv6.h).
fn deaf_to_routers(links: &[String], others: &[Neighbour]) -> Vec<String> {
    // Stacks' own are not asked: no router is there, and there may be hundreds.
    let ours = others.iter().map(|other| other.uplink.host_link.as_str());
    let ours: BTreeSet<&str> = ours.collect();
    let is = |link: &str, name: &str, value: &str| {
        let path = format!("/proc/sys/net/ipv6/conf/{link}/{name}");
        std::fs::read_to_string(path).is_ok_and(|text| text.trim() == value)
    };
    let deaf = |link: &&String| {
        let others_or_lo = ours.contains(link.as_str()) || link.as_str() == "lo";
        !others_or_lo && is(link, "forwarding", "1") && is(link, "accept_ra", "1")
    };
    links.iter().filter(deaf).cloned().collect()
}

/// This machine's memory in bytes (proc_meminfo(5)).
fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kilobytes = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next())
        .and_then(|number| number.parse::<u64>().ok());
    kilobytes.unwrap_or(0) << 10
}

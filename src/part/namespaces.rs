//! The user and network namespace of one part: made once, held by descriptors, outliving every process in them.
//!
//! # Theory of operation
//!
//! A short-lived child makes the two namespaces with itself as first member, sets the network namespace's sysctls
//! (nobody else could, once the part has dropped), opens a NETLINK_ROUTE socket in it, and stands still until
//! the supervisor has written the id map. It has the supervisor's memory and descriptors, so all of it is the supervisor's
//! as well. Because the descriptors outlive the processes, a part can be restarted without its links, addresses, rules and
//! connections noticing; because nothing else holds them, they go when the supervisor goes, by whatever way.
//!
//! The network namespace is owned by the part's own user namespace, so the sidecar's NET_ADMIN counts there and
//! nowhere else (network_namespaces(7)).
#![forbid(unsafe_code)]

use std::future::ready;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use nix::sched::CloneFlags;
use nix::sys::socket::SockProtocol;
use nix::unistd::{Gid, Uid};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::mount::OpenTreeFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::confine::privileges::{self, Ids};
use crate::plan::IdMap;
use crate::sys::mount;
use crate::sys::namespace::{setns, unshare};
use crate::sys::process::vfork_and_rest;

/// Why a part's namespaces could not be made.
#[derive(Debug, thiserror::Error)]
#[error("make the namespaces of {part}: {what}: {source}")]
pub struct NamespaceError {
    part: String,
    what: &'static str,
    source: io::Error,
}

/// What the network namespace is for, which decides its sysctls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Forwards between uplink and bridge.
    Sidecar {
        /// IPv6 too.
        ipv6: bool,
    },
    /// One address of each family, forwards nothing.
    App {
        /// IPv6 too.
        ipv6: bool,
    },
    /// The far end of the uplink, and nothing else.
    Relay {
        /// IPv6 too.
        ipv6: bool,
    },
    /// The part stays in the supervisor's network namespace (the relay, which dials from there).
    Shared,
}

/// A part's namespaces, held open.
#[derive(Debug)]
pub struct Namespaces {
    /// The user namespace.
    pub user: OwnedFd,
    /// The network namespace; `None` for [`Network::Shared`].
    pub net: Option<OwnedFd>,
    /// Who a stage in them begins as.
    pub first: Ids,
    /// Of [`Network::Relay`]: a TCP socket of IPv4 that was made with them. Each start connects from there once, and need
    /// have no process for a socket.
    spare: Mutex<Option<OwnedFd>>,
}

/// Sockets inside a part's network namespace, for `crate::net`: they ask and change it from outside.
#[derive(Debug)]
pub struct Sockets {
    /// NETLINK_ROUTE: links, addresses, routes.
    pub route: OwnedFd,
    /// NETLINK_SOCK_DIAG: who listens; of [`Network::Relay`], NETLINK_NETFILTER: its rules.
    pub second: OwnedFd,
}

/// Sysctls below /proc/sys/net of every network namespace of ours. A new one copies the host's settings on some
/// machines (`net.core.devconf_inherit_init_net`), so what matters is set and not assumed
/// (Documentation/networking/ip-sysctl.rst).
pub(crate) const COMMON: [(&str, &str); 18] = [
    ("ipv4/conf/all/rp_filter", "1"),
    ("ipv4/conf/default/rp_filter", "1"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    ("ipv4/conf/all/secure_redirects", "0"),
    ("ipv4/conf/default/secure_redirects", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv4/conf/all/accept_source_route", "0"),
    ("ipv4/conf/default/accept_source_route", "0"),
    ("ipv4/conf/all/accept_local", "0"),
    ("ipv4/conf/default/accept_local", "0"),
    ("ipv4/conf/all/route_localnet", "0"),
    ("ipv4/conf/default/route_localnet", "0"),
    ("ipv4/conf/all/proxy_arp", "0"),
    ("ipv4/conf/default/proxy_arp", "0"),
    // Or an app could fill the host's kernel log.
    ("ipv4/conf/all/log_martians", "0"),
    ("ipv4/conf/default/log_martians", "0"),
];

/// IPv6 is off as a whole unless the stack has a prefix.
const NO_IPV6: [(&str, &str); 2] = [
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
];

/// With a prefix, every address, neighbour and route is ours to set: links make none up by themselves (`addr_gen_mode` 1 is
/// none), believe no router and no redirect, don't ask around, and take no source route of any kind, segment routing and
/// its relatives included. `all` is what counts for `forwarding`, `default` is what a new link gets.
pub(crate) const IPV6: [(&str, &str); 21] = [
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/default/disable_ipv6", "0"),
    ("ipv6/conf/default/addr_gen_mode", "1"),
    ("ipv6/conf/default/use_tempaddr", "0"),
    ("ipv6/conf/default/autoconf", "0"),
    ("ipv6/conf/all/accept_ra", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/router_solicitations", "0"),
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/all/accept_redirects", "0"),
    ("ipv6/conf/default/accept_redirects", "0"),
    ("ipv6/conf/all/accept_source_route", "-1"),
    ("ipv6/conf/default/accept_source_route", "-1"),
    ("ipv6/conf/all/proxy_ndp", "0"),
    ("ipv6/conf/default/proxy_ndp", "0"),
    ("ipv6/conf/default/ndisc_notify", "0"),
    ("ipv6/conf/all/seg6_enabled", "0"),
    ("ipv6/conf/default/seg6_enabled", "0"),
    ("ipv6/conf/default/rpl_seg_enabled", "0"),
    ("ipv6/conf/default/ioam6_enabled", "0"),
];

/// In the sidecar's namespace packets are forwarded, but no link of it is a router's: that would join groups, and say so by
/// multicast (`dev_forward_change`, net/ipv6/addrconf.c). In the app's, nothing is.
const SIDECAR_IPV6: [(&str, &str); 2] = [
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/default/forwarding", "0"),
];
/// See [`SIDECAR_IPV6`].
const APP_IPV6: [(&str, &str); 2] = [
    ("ipv6/conf/all/forwarding", "0"),
    ("ipv6/conf/default/forwarding", "0"),
];

/// As the app's; and a socket may be bound to an address that only a route makes local, as it may by IPv4 anyway.
const RELAY_IPV6: [(&str, &str); 3] = [
    ("ipv6/conf/all/forwarding", "0"),
    ("ipv6/conf/default/forwarding", "0"),
    ("ipv6/ip_nonlocal_bind", "1"),
];

/// What is set in a part's network namespace, in this order.
pub(crate) fn sysctls(network: Network) -> impl Iterator<Item = (&'static str, &'static str)> {
    let (own, own6): (&[_], &[_]) = match network {
        Network::Sidecar { ipv6: false } => (&SIDECAR, &[]),
        Network::Sidecar { ipv6: true } => (&SIDECAR, &SIDECAR_IPV6),
        Network::App { ipv6: false } => (&APP, &[]),
        Network::App { ipv6: true } => (&APP, &APP_IPV6),
        Network::Relay { ipv6: false } => (&RELAY, &[]),
        Network::Relay { ipv6: true } => (&RELAY, &RELAY_IPV6),
        Network::Shared => (&[], &[]),
    };
    let ports: &[_] = match network {
        Network::App { .. } => &APP_PORTS,
        _ => &[],
    };
    let (common, common6): (&[_], &[_]) = match network {
        Network::Shared => (&[], &[]),
        Network::Sidecar { ipv6 } | Network::App { ipv6 } | Network::Relay { ipv6 } => {
            (&COMMON, if ipv6 { &IPV6 } else { &NO_IPV6 })
        }
    };
    // Forwarding comes before the rest: setting it resets some of that.
    let own = own.iter().chain(own6).chain(ports);
    own.chain(common6).chain(common).copied()
}

/// What a part's user namespace may have of what is counted up the tree of user namespaces, that is for host root as well
/// (namespaces(7), "The /proc/sys/user directory"; kernel/ucount.c). Who could raise a limit again holds CAP_SYS_RESOURCE
/// there, that is nobody.
const CEILINGS: [(&str, u32); 9] = [
    ("max_time_namespaces", 0),
    ("max_fanotify_groups", 0),
    ("max_fanotify_marks", 0),
    // The part's own, of all its processes and those that are ending still.
    ("max_cgroup_namespaces", OWN_NAMESPACES),
    ("max_ipc_namespaces", OWN_NAMESPACES),
    ("max_mnt_namespaces", OWN_NAMESPACES),
    ("max_net_namespaces", OWN_NAMESPACES),
    ("max_pid_namespaces", OWN_NAMESPACES),
    ("max_uts_namespaces", OWN_NAMESPACES),
];
/// In a user namespace of its own a process holds every capability, and may make any other namespace: that is how most holes
/// of the kernel are reached. No part needs one.
const NO_USER_NAMESPACES: &str = "max_user_namespaces";
const OWN_NAMESPACES: u32 = 64;

/// What an app may have of the host's inotify instances and watches, which are few (128 and some thousands for each user
/// of the host): at most this many, and at most an eighth. The other parts have none.
const INOTIFY: [(&str, &str, u64); 2] = [
    ("max_inotify_instances", "max_user_instances", 16),
    ("max_inotify_watches", "max_user_watches", 16_384),
];

/// Sets [`CEILINGS`] and [`INOTIFY`] in the user namespace of this process, and how many others may be made in it.
fn limit_what_counts_for_the_host(
    proc: &Procfs,
    network: Network,
    namespaces: u32,
) -> io::Result<()> {
    let limits = Settings::at(proc, "sys/user")?;
    for (name, most) in user_limits(network, namespaces) {
        match limits.set(name, &most.to_string()) {
            // A kernel without it has nothing to count.
            Err(e) if e.kind() == io::ErrorKind::NotFound && name != NO_USER_NAMESPACES => {}
            done => {
                done.map_err(|e| io::Error::new(e.kind(), format!("/proc/sys/user/{name}: {e}")))?;
            }
        }
    }
    Ok(())
}

/// Where the settings of namespaces are looked up that are about to be made.
///
/// A procfs caches a name below /proc/sys/net and /proc/sys/user once for each namespace in which somebody has looked it up, all in
/// one chain of its hash, which is searched from one end (`proc_sys_compare`, fs/proc/proc_sysctl.c): with 150 stacks on the
/// machine the settings of another took 25 ms. So it is one that nobody else has, which goes with them.
struct Procfs(OwnedFd);

impl Procfs {
    /// The host's for who may mount none, as an ordinary user's supervisor.
    fn new() -> io::Result<Self> {
        let host = || rustix::fs::open("/proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let opened = mount::new("proc", &[]).or_else(|_| host());
        let opened = opened.map_err(|e| io::Error::new(e.kind(), format!("/proc: {e}")))?;
        Ok(Self(opened))
    }
}

/// A directory of settings of a procfs, in the namespaces of who has opened it. There are a hundred to be set at a start: each is
/// looked up from here, and never made.
struct Settings(OwnedFd);

impl Settings {
    fn at(proc: &Procfs, directory: &str) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&proc.0, directory, flags, Mode::empty());
        let opened = opened
            .map_err(io::Error::from)
            .map_err(|e| io::Error::new(e.kind(), format!("/proc/{directory}: {e}")))?;
        Ok(Self(opened))
    }

    fn set(&self, name: &str, value: &str) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let setting = rustix::fs::openat(&self.0, name, flags, Mode::empty())?;
        // One call: each is a value of its own (proc_sys_write, fs/proc/proc_sysctl.c).
        rustix::io::write(&setting, value.as_bytes())?;
        Ok(())
    }
}

/// Every limit of a part's user namespace, by its name in /proc/sys/user, where so many others may be made in it.
pub(crate) fn user_limits(network: Network, namespaces: u32) -> Vec<(&'static str, u64)> {
    let mut all: Vec<_> = CEILINGS.map(|(name, most)| (name, most.into())).into();
    all.push((NO_USER_NAMESPACES, namespaces.into()));
    for (name, of_the_host, most) in INOTIFY {
        let most = match network {
            Network::App { .. } => {
                let path = format!("/proc/sys/fs/inotify/{of_the_host}");
                let there = std::fs::read_to_string(path).unwrap_or_default();
                let there = there.trim().parse().unwrap_or(u64::MAX);
                most.min((there / 8).max(1))
            }
            _ => 0,
        };
        all.push((name, most));
    }
    all
}

/// The sidecar forwards, and frames between its bridge's ports meet no other rules than its own. Forwarding comes
/// before the rest: setting it resets some of that.
pub(crate) const SIDECAR: [(&str, &str); 10] = [
    ("ipv4/ip_forward", "1"),
    ("bridge/bridge-nf-call-iptables", "0"),
    ("bridge/bridge-nf-call-ip6tables", "0"),
    ("bridge/bridge-nf-call-arptables", "0"),
    // What a connection has carried is told when conntrack forgets it.
    ("netfilter/nf_conntrack_acct", "1"),
    // Nothing is told but what a rule asks for.
    ("netfilter/nf_conntrack_events", "0"),
    // Of 120 s: ten thousand connections a second would fill the table with what is over.
    ("netfilter/nf_conntrack_tcp_timeout_time_wait", "10"),
    // Of 120 s and 60 s: who only begins connections, with made-up addresses perhaps, takes a port of the sidecar's
    // towards the app for each. Every SYN and SYN,ACK that is sent again begins anew.
    ("netfilter/nf_conntrack_tcp_timeout_syn_sent", "10"),
    ("netfilter/nf_conntrack_tcp_timeout_syn_recv", "10"),
    // Of five days: what only conntrack knows any more must go. No shorter than RFC 5382 (REQ-5) asks for.
    ("netfilter/nf_conntrack_tcp_timeout_established", "7440"),
];

/// Gives the port of a connection that has ended out again after a second, and not after 60: who connects to one service all the
/// time has no more than 28,000.
const PORTS_AGAIN: (&str, &str) = ("ipv4/tcp_tw_reuse", "1");

/// The app forwards nothing.
pub(crate) const APP: [(&str, &str); 2] = [("ipv4/ip_forward", "0"), PORTS_AGAIN];

/// It listens where it likes, at port 80 as well: its ports are its own, and who reaches them the rules say.
const APP_PORTS: [(&str, &str); 1] = [("ipv4/ip_unprivileged_port_start", "0")];

/// Where connections are tracked, in an app's network namespace: as in the sidecar's, through which all of them come.
pub(crate) const TRACKING: [(&str, &str); 5] =
    [SIDECAR[5], SIDECAR[6], SIDECAR[7], SIDECAR[8], SIDECAR[9]];

/// What is translated to 127.0.0.1 is taken in, and out again.
pub(crate) const LOCALNET: (&str, &str) = ("ipv4/conf/all/route_localnet", "1");
/// As it is without.
pub(crate) const NO_LOCALNET: (&str, &str) = (LOCALNET.0, "0");

/// What of [`COMMON`] and beside it is set in an app's network namespace, where its clients come to its loopback or else.
pub(crate) fn of_an_app(by_loopback: bool) -> Vec<(&'static str, &'static str)> {
    let own = |setting: (&'static str, &'static str)| match by_loopback && setting == NO_LOCALNET {
        true => LOCALNET,
        false => setting,
    };
    let more = TRACKING.into_iter().filter(|_| by_loopback);
    COMMON.into_iter().map(own).chain(more).collect()
}

/// Sets them in the network namespace that this process is in, over which it has NET_ADMIN.
///
/// # Errors
/// What the kernel says, of which.
pub fn set(settings: &[(&str, &str)]) -> io::Result<()> {
    let there = Settings::at(&Procfs::new()?, "sys/net")?;
    for (name, value) in settings {
        match there.set(name, value) {
            Err(e) if e.kind() == io::ErrorKind::NotFound && name.ends_with("_events") => {}
            done => done.map_err(|e| io::Error::new(e.kind(), format!("net/{name}: {e}")))?,
        }
    }
    Ok(())
}

/// The relay's forwards nothing.
pub(crate) const RELAY: [(&str, &str); 2] = [("ipv4/ip_forward", "0"), PORTS_AGAIN];

/// Who writes the two maps of a user namespace that has just been made (user_namespaces(7)): that takes CAP_SETUID and
/// CAP_SETGID over the namespace that it was made in, of the writer and of whoever has opened the file.
pub trait Mapper {
    /// Writes `uid_map` and `gid_map` below `process`, a directory of /proc.
    ///
    /// # Errors
    /// What the kernel says.
    fn map(
        &mut self,
        process: BorrowedFd<'_>,
        uids: &str,
        gids: &str,
    ) -> impl Future<Output = io::Result<()>> + Send;
}

/// This process.
pub struct Itself;

impl Mapper for Itself {
    async fn map(&mut self, process: BorrowedFd<'_>, uids: &str, gids: &str) -> io::Result<()> {
        write_maps(process, uids, gids)
    }
}

/// As [`Mapper::map`], by who calls it.
///
/// # Errors
/// What the kernel says.
pub fn write_maps(process: BorrowedFd<'_>, uids: &str, gids: &str) -> io::Result<()> {
    for (file, lines) in [("uid_map", uids), ("gid_map", gids)] {
        // The directory may be somebody's who has mounted something there, and who asks root to write. Opening alone does
        // something, where it is a device.
        let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(process, file, flags, Mode::empty())?;
        let of_proc = rustix::fs::fstatfs(&file)?.f_type == rustix::fs::PROC_SUPER_MAGIC;
        if !of_proc || mount_id(&file)? != mount_id(process)? {
            return Err(io::Error::other("it is no file of /proc"));
        }
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty())?;
        // One call: the kernel takes a map whole, and once.
        rustix::io::write(&file, lines.as_bytes())?;
    }
    Ok(())
}

/// The number of the mount that something is on.
fn mount_id(fd: impl AsFd) -> io::Result<u64> {
    let wanted = StatxFlags::MNT_ID;
    let it = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, wanted)?;
    match it.stx_mask & wanted.bits() {
        0 => Err(io::Error::other(
            "the kernel does not say which mount it is on",
        )),
        _ => Ok(it.stx_mnt_id),
    }
}

impl Namespaces {
    /// Makes the namespaces of `part` and maps its ids. Who is `owner`, outside, has every capability in them
    /// (user_namespaces(7)); `None` is who this process is.
    ///
    /// # Errors
    /// [`NamespaceError`]; needs CAP_SYS_ADMIN, or none of it where the kernel lets unprivileged users have user
    /// namespaces.
    pub async fn make(
        part: &str,
        ids: IdMap,
        owner: Option<Ids>,
        network: Network,
    ) -> Result<(Self, Option<Sockets>), NamespaceError> {
        Self::make_by(part, (ids, None), owner, network, &mut Itself).await
    }

    /// As [`Namespaces::make`], with the ids mapped by somebody else. Of a range, all ids together have so many processes, if
    /// that is given.
    ///
    /// # Errors
    /// As [`Namespaces::make`].
    pub async fn make_by(
        part: &str,
        (ids, processes): (IdMap, Option<u32>),
        owner: Option<Ids>,
        network: Network,
        mapper: &mut impl Mapper,
    ) -> Result<(Self, Option<Sockets>), NamespaceError> {
        let [uids, gids] = ids.maps();
        let range = ids.is_range().then_some(Range {
            ids: ids.count,
            of_user: ids.host_id == 0,
            processes,
        });
        let first = (ids.first(), range);
        Self::make_mapped(part, (&uids, &gids), first, owner, network, mapper).await
    }

    async fn make_mapped(
        part: &str,
        maps: (&str, &str),
        (first, range): (Ids, Option<Range>),
        owner: Option<Ids>,
        network: Network,
        mapper: &mut impl Mapper,
    ) -> Result<(Self, Option<Sockets>), NamespaceError> {
        let made = match range {
            None => from_child(|| make(owner, network), |pid| map_ids(pid, maps, mapper)).await,
            Some(range) => {
                make_over_a_range(owner, network, range, |pid| map_ids(pid, maps, mapper)).await
            }
        };
        let mut fds = made.map_err(failed(part))?.into_iter();
        let user = fds
            .next()
            .ok_or_else(|| ("take the user namespace", io::ErrorKind::InvalidData.into()))
            .map_err(failed(part))?;
        let net = fds.next();
        let sockets = match (fds.next(), fds.next()) {
            (Some(route), Some(second)) => Some(Sockets { route, second }),
            _ => None,
        };
        let spare = Mutex::new(fds.next());
        let namespaces = Self {
            user,
            net,
            first,
            spare,
        };
        Ok((namespaces, sockets))
    }

    /// Another network namespace, empty and without a link that is up, owned by the same user namespace.
    ///
    /// Needs no id map, so who has dropped what that takes can make one.
    ///
    /// # Errors
    /// [`NamespaceError`]; joining a user namespace that is not our own child needs CAP_SYS_ADMIN over it.
    pub async fn with_empty_network(&self, part: &str) -> Result<Self, NamespaceError> {
        let made = from_child(|| empty_network(&self.user), |_| ready(Ok(()))).await;
        let net = made.map_err(failed(part))?.into_iter().next();
        let user = self.user.try_clone();
        let user = user.map_err(|e| failed(part)(("copy a descriptor", e)))?;
        Ok(Self {
            user,
            net,
            first: self.first,
            spare: Mutex::default(),
        })
    }

    /// Another network namespace as the one of a part, owned by the same user namespace, and sockets in it.
    ///
    /// As [`Namespaces::with_empty_network`] it needs no id map.
    ///
    /// # Errors
    /// As [`Namespaces::with_empty_network`].
    pub async fn another(
        &self,
        part: &str,
        network: Network,
    ) -> Result<(Self, Sockets), NamespaceError> {
        let made = from_child(|| another_network(&self.user, network), |_| ready(Ok(()))).await;
        let mut fds = made.map_err(failed(part))?.into_iter();
        match (fds.next(), fds.next(), fds.next(), fds.next()) {
            (Some(user), net @ Some(_), Some(route), Some(second)) => {
                let namespaces = Self {
                    user,
                    net,
                    first: self.first,
                    spare: Mutex::default(),
                };
                Ok((namespaces, Sockets { route, second }))
            }
            _ => Err(failed(part)((
                "take a network namespace",
                io::ErrorKind::InvalidData.into(),
            ))),
        }
    }

    /// A TCP socket of `family` that was made inside.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn tcp_socket(&self, family: AddressFamily) -> io::Result<OwnedFd> {
        if family == AddressFamily::INET {
            let spare = self
                .spare
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            if let Some(spare) = spare {
                return Ok(spare);
            }
        }
        let open = || Ok(vec![stream_socket(family)?]);
        let socket = self.open_inside(open).await?.pop();
        socket.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Descriptors of what `open` opens inside, where it has every capability.
    ///
    /// # Errors
    /// What `open` says, or the kernel.
    pub async fn open_inside(
        &self,
        open: impl FnOnce() -> io::Result<Vec<OwnedFd>>,
    ) -> io::Result<Vec<OwnedFd>> {
        let made = from_child(|| self.join_and_open(open), |_| ready(Ok(()))).await;
        made.map_err(|(_, e)| e)
    }

    /// A mount namespace that belongs to the user namespace, once `fill` has given it a root: there it has every capability over
    /// it, as the first of the ids.
    ///
    /// # Errors
    /// [`NamespaceError`]; what `fill` says.
    pub fn mounts(
        &self,
        part: &str,
        fill: impl FnOnce() -> io::Result<()>,
    ) -> Result<OwnedFd, NamespaceError> {
        let made = self.made_as(self.first, || {
            unshare(CloneFlags::CLONE_NEWNS)?;
            let mounts = std::fs::File::open("/proc/self/ns/mnt")?;
            fill()?;
            Ok(vec![mounts.into()])
        });
        let made = made.and_then(|made| {
            let mut made = made.into_iter();
            made.next().ok_or_else(|| io::ErrorKind::InvalidData.into())
        });
        made.map_err(|e| failed(part)(("keep what the root is made of", e)))
    }

    /// Descriptors of what `make` opens in such a mount namespace, with every capability over it.
    ///
    /// # Errors
    /// [`NamespaceError`]; what `make` says.
    pub fn made_in(
        &self,
        part: &str,
        mounts: &OwnedFd,
        make: impl FnOnce() -> io::Result<Vec<OwnedFd>>,
    ) -> Result<Vec<OwnedFd>, NamespaceError> {
        let made = self.made_as(self.first, || {
            setns(mounts, CloneFlags::CLONE_NEWNS)?;
            make()
        });
        made.map_err(|e| failed(part)(("copy what the root is made of", e)))
    }

    /// So many pipes that belong to somebody inside: /dev/stdout there is such a descriptor by way of /proc/self/fd, and opening it
    /// asks for the owner.
    ///
    /// # Errors
    /// What `pipe2(2)` says, or the kernel.
    pub fn pipes(&self, owner: Ids, count: usize) -> io::Result<Vec<(OwnedFd, OwnedFd)>> {
        let made = self.made_as(owner, || {
            let mut ends = Vec::with_capacity(2 * count);
            for _ in 0..count {
                let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
                ends.extend([read, write]);
            }
            Ok(ends)
        });
        let mut ends = made?.into_iter();
        let pair = || Some((ends.next()?, ends.next()?));
        Ok(std::iter::from_fn(pair).collect())
    }

    /// What a child makes in the user namespace, as that id of it and with every capability there.
    ///
    /// A start of a part takes this, so the child has descriptors of its own and hands over what it has made: one that is killed
    /// takes it along.
    fn made_as(
        &self,
        owner: Ids,
        make: impl FnOnce() -> io::Result<Vec<OwnedFd>>,
    ) -> io::Result<Vec<OwnedFd>> {
        let (ours, theirs) = socketpair()?;
        let life = || {
            setns(&self.user, CloneFlags::CLONE_NEWUSER)?;
            become_first(owner).map_err(|(_, e)| e)?;
            die_with_parent().map_err(|(_, e)| e)?;
            let made = make()?;
            let made: Vec<_> = made.iter().map(AsFd::as_fd).collect();
            crate::protocol::send(&theirs, &(), &made)
        };
        let (made, child) = vfork_and_rest(0, life)?;
        drop(theirs);
        made?;
        child.end()?;
        let handed = crate::protocol::receive::<()>(&ours)?;
        Ok(handed.ok_or(io::ErrorKind::InvalidData)?.1)
    }

    fn join_and_open(&self, open: impl FnOnce() -> io::Result<Vec<OwnedFd>>) -> Made {
        setns(&self.user, CloneFlags::CLONE_NEWUSER).map_err(|e| ("join the user namespace", e))?;
        if let Some(net) = &self.net {
            setns(net, CloneFlags::CLONE_NEWNET).map_err(|e| ("join the network namespace", e))?;
        }
        open().map_err(|e| ("open sockets", e))
    }
}

/// A user namespace that is nothing but its two maps, the lines of `uid_map` and `gid_map` (user_namespaces(7)): what an
/// id-mapped mount of `part` is made with.
///
/// # Errors
/// As [`Namespaces::make`].
pub async fn id_map(
    part: &str,
    uids: &str,
    gids: &str,
    mapper: &mut impl Mapper,
) -> Result<OwnedFd, NamespaceError> {
    let made = Namespaces::make_mapped(
        part,
        (uids, gids),
        (Ids::ROOT, None),
        None,
        Network::Shared,
        mapper,
    )
    .await;
    made.map(|(namespaces, _)| namespaces.user)
}

/// The same mounts, detached, with their attributes locked (mount_namespaces(7)): who joins an app's namespaces has every
/// capability there, and yet makes none of them writable. The kernel does that where a mount namespace is copied into one of another
/// user namespace; `mounts` are directories, or else files. Needs CAP_SYS_ADMIN.
///
/// # Errors
/// [`NamespaceError`].
pub async fn locked(
    part: &str,
    mounts: Vec<(OwnedFd, bool)>,
) -> Result<Vec<OwnedFd>, NamespaceError> {
    let locked = from_child(|| lock(&mounts), |_| ready(Ok(()))).await;
    locked.map_err(failed(part))
}

fn lock(mounts: &[(OwnedFd, bool)]) -> Made {
    let at = |step: &'static str| move |e: rustix::io::Errno| (step, io::Error::from(e));
    die_with_parent()?;
    let own = CloneFlags::CLONE_NEWNS;
    unshare(own).map_err(|e| ("unshare the mounts", e))?;
    mount::cut_off().map_err(at("make the mounts private"))?;
    let place = mount::new("tmpfs", &[("mode", "700"), ("size", "1M")]);
    let place = place.map_err(at("make a tmpfs"))?;
    // Any directory does that is there, but the root: who is in a root that was mounted over makes no user namespace.
    mount::attach(&place, "/proc").map_err(at("attach a tmpfs"))?;
    // The copy of the mounts has this directory moved as well.
    rustix::process::fchdir(&place).map_err(at("enter a tmpfs"))?;
    for (number, (volume, is_directory)) in mounts.iter().enumerate() {
        let name = number.to_string();
        let mode = Mode::RWXU;
        let made = match is_directory {
            true => rustix::fs::mkdir(&name, mode),
            false => rustix::fs::open(&name, OFlags::CREATE | OFlags::CLOEXEC, mode).map(drop),
        };
        made.map_err(at("make a place for a mount"))?;
        mount::attach(volume, &name).map_err(at("attach a mount"))?;
    }
    unshare(own | CloneFlags::CLONE_NEWUSER).map_err(|e| ("copy the mounts", e))?;
    let copies = mounts
        .iter()
        .enumerate()
        .map(|(number, (_, is_directory))| {
            let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            if *is_directory {
                flags |= OpenTreeFlags::AT_RECURSIVE;
            }
            rustix::mount::open_tree(CWD, number.to_string(), flags).map_err(at("clone a mount"))
        });
    copies.collect()
}

/// Waits until the process ends and takes its exit status off the kernel's hands.
///
/// # Errors
/// What `waitid(2)` or `epoll_ctl(2)` says.
pub async fn reap(pidfd: &OwnedFd) -> io::Result<Option<i32>> {
    let ended = crate::sys::watch::readable(pidfd.as_fd())?;
    ended.readable().await?.retain_ready();
    let status = rustix::process::waitid(
        rustix::process::WaitId::PidFd(pidfd.as_fd()),
        rustix::process::WaitIdOptions::EXITED,
    )?;
    Ok(status.and_then(|s| s.exit_status()))
}

/// As [`reap`], of one that has ended or is about to.
///
/// # Errors
/// What `waitid(2)` says.
pub fn wait(pidfd: &OwnedFd) -> io::Result<()> {
    let pidfd = rustix::process::WaitId::PidFd(pidfd.as_fd());
    rustix::process::waitid(pidfd, rustix::process::WaitIdOptions::EXITED)?;
    Ok(())
}

/// A stream pair, close-on-exec.
///
/// # Errors
/// What `socketpair(2)` says.
pub fn socketpair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// How many ids there are, and how many processes all of them may have together, if that is limited.
#[derive(Debug, Clone, Copy)]
struct Range {
    ids: u32,
    /// Whether the first is an ordinary user's own, and so a range by itself.
    of_user: bool,
    processes: Option<u32>,
}

/// What a child has made, or the step that failed.
type Made = Result<Vec<OwnedFd>, (&'static str, io::Error)>;

fn failed(part: &str) -> impl Fn((&'static str, io::Error)) -> NamespaceError {
    move |(what, source)| NamespaceError {
        part: part.to_owned(),
        what,
        source,
    }
}

/// Has a short-lived child `make` descriptors, which are this process's as well. It exists until `meanwhile`, which is told its
/// number, is done.
async fn from_child<F: Future<Output = io::Result<()>>>(
    make: impl FnOnce() -> Made,
    meanwhile: impl FnOnce(i32) -> F,
) -> Made {
    let at = |step: &'static str| move |e: io::Error| (step, e);
    let child = vfork_and_rest(libc::CLONE_FILES, make);
    let (made, child) = child.map_err(at("have a child do it"))?;
    let made = match made {
        Ok(made) => meanwhile(child.pid).await.map(|()| made),
        Err((step, e)) => Err(io::Error::new(e.kind(), format!("{step}: {e}"))),
    };
    let made = made.map_err(at("in the child"))?;
    child.end().map_err(at("end the child"))?;
    Ok(made)
}

fn empty_network(user: &OwnedFd) -> Made {
    let at = |step: &'static str| move |e: io::Error| (step, e);
    setns(user, CloneFlags::CLONE_NEWUSER).map_err(at("join the user namespace"))?;
    die_with_parent()?;
    unshare(CloneFlags::CLONE_NEWNET).map_err(at("unshare"))?;
    let net = std::fs::File::open("/proc/self/ns/net");
    Ok(vec![net.map_err(at("open the network namespace"))?.into()])
}

fn another_network(user: &OwnedFd, network: Network) -> Made {
    let at = |step: &'static str| move |e: io::Error| (step, e);
    let proc = Procfs::new().map_err(at("have a procfs"))?;
    setns(user, CloneFlags::CLONE_NEWUSER).map_err(at("join the user namespace"))?;
    die_with_parent()?;
    unshare(CloneFlags::CLONE_NEWNET).map_err(at("unshare"))?;
    open_all(&proc, network)
}

fn make(owner: Option<Ids>, network: Network) -> Made {
    let at = |step: &'static str| move |e: io::Error| (step, e);
    let proc = Procfs::new().map_err(at("have a procfs"))?;
    become_owner(owner)?;
    die_with_parent()?;
    crate::confine::ceilings::halve_what_counts_for_the_host()
        .map_err(at("lower the resource limits"))?;
    unshare(kinds(network)).map_err(at("unshare"))?;
    limit_what_counts_for_the_host(&proc, network, 0)
        .map_err(at("limit what counts for the host in the user namespace"))?;
    open_all(&proc, network)
}

/// As [`make`], for a range of ids, of which there are so many in each namespace.
///
/// The limits of a user namespace are each id's, and there are many. What all of them have together is counted for who has
/// made the namespace, in the one that it was made in, and there one limit holds it (kernel/ucount.c). So the namespace is
/// made in another, with the same ids, by their first.
async fn make_over_a_range<F: Future<Output = io::Result<()>>>(
    owner: Option<Ids>,
    network: Network,
    range: Range,
    map: impl FnOnce(i32) -> F,
) -> Made {
    let outer = from_child(|| make_for_all_ids(owner, network), map)
        .await?
        .pop();
    let outer = outer.ok_or(("take a user namespace", io::ErrorKind::InvalidData.into()))?;
    from_child(|| make_within(&outer, network, range), |_| ready(Ok(()))).await
}

fn make_for_all_ids(owner: Option<Ids>, network: Network) -> Made {
    let at = |step: &'static str| move |e: io::Error| (step, e);
    let proc = Procfs::new().map_err(at("have a procfs"))?;
    become_owner(owner)?;
    die_with_parent()?;
    crate::confine::ceilings::halve_what_counts_for_the_host()
        .map_err(at("lower the resource limits"))?;
    unshare(CloneFlags::CLONE_NEWUSER).map_err(at("unshare for all ids together"))?;
    limit_what_counts_for_the_host(&proc, network, 1)
        .map_err(at("limit what counts for the host for all ids together"))?;
    let user = std::fs::File::open("/proc/self/ns/user");
    Ok(vec![user.map_err(at("open the user namespace"))?.into()])
}

fn make_within(outer: &OwnedFd, network: Network, range: Range) -> Made {
    let at = |step: &'static str| move |e: io::Error| (step, e);
    die_with_parent()?;
    let proc = Procfs::new().map_err(at("have a procfs"))?;
    setns(outer, CloneFlags::CLONE_NEWUSER).map_err(at("join the user namespace of all ids"))?;
    become_first(Ids::ROOT).map_err(|(_, e)| ("become the first of the ids", e.into()))?;
    // It has cleared the signal.
    die_with_parent()?;
    crate::confine::ceilings::lower(range.processes).map_err(at("lower the resource limits"))?;
    let inner = || {
        unshare(kinds(network)).map_err(at("unshare"))?;
        limit_what_counts_for_the_host(&proc, network, 0)
            .map_err(at("limit what counts for the host in the user namespace"))?;
        open_all(&proc, network)
    };
    // Or nobody but the host's root could open its maps (proc_pid(5)): it shares this memory.
    nix::sys::prctl::set_dumpable(true).map_err(|e| ("be dumpable", e.into()))?;
    // Who has moved into the inner one can't map its ids any more.
    let inner = vfork_and_rest(libc::CLONE_FILES, inner);
    let (made, inner) = inner.map_err(at("have a child do it"))?;
    let made = made?;
    let lines = match range.of_user {
        true => format!("0 0 1\n1 1 {}\n", range.ids - 1),
        false => format!("0 0 {}\n", range.ids),
    };
    process_directory(inner.pid)
        .and_then(|process| write_maps(process.as_fd(), &lines, &lines))
        .map_err(at("map the ids"))?;
    Ok(made)
}

/// Becomes who is to own what is made next, by its effective ids, and holds what it may hold all the same: where an ordinary user
/// may make no user namespace, it takes a capability. That clears the parent-death signal.
fn become_owner(owner: Option<Ids>) -> Result<(), (&'static str, io::Error)> {
    let Some(owner) = owner else {
        return Ok(());
    };
    let at = |step: &'static str| move |e: nix::Error| (step, e.into());
    nix::unistd::setegid(Gid::from_raw(owner.gid)).map_err(at("become the owner's gid"))?;
    nix::unistd::seteuid(Uid::from_raw(owner.uid)).map_err(at("become the owner's uid"))?;
    privileges::raise_permitted().map_err(|e| ("keep what it may hold", io::Error::other(e)))
}

/// Becomes the first id of a user namespace that was joined. That clears the parent-death signal.
///
/// # Errors
/// The step, and what the kernel says.
pub fn become_first(first: Ids) -> Result<(), (&'static str, nix::Error)> {
    let at = |step: &'static str| move |e: nix::Error| (step, e);
    match nix::unistd::setgroups(&[]) {
        // Forbidden by an unprivileged gid map (user_namespaces(7)).
        Ok(()) | Err(nix::Error::EPERM) => {}
        Err(e) => return Err(at("drop supplementary groups")(e)),
    }
    let (uid, gid) = (Uid::from_raw(first.uid), Gid::from_raw(first.gid));
    nix::unistd::setresgid(gid, gid, gid).map_err(at("become its first gid"))?;
    nix::unistd::setresuid(uid, uid, uid).map_err(at("become its first uid"))
}

/// Has the kernel end this process with its parent; a change of ids clears that (PR_SET_PDEATHSIG(2const)).
///
/// # Errors
/// What `prctl(2)` says.
pub fn die_with_parent() -> Result<(), (&'static str, io::Error)> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(|e| ("set the parent-death signal", e.into()))
}

/// What of its own it gets.
fn kinds(network: Network) -> CloneFlags {
    match network {
        Network::Shared => CloneFlags::CLONE_NEWUSER,
        _ => CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET,
    }
}

/// The namespaces that this process has made, with their sysctls set, and sockets in them.
fn open_all(proc: &Procfs, network: Network) -> Made {
    let at = |step: &'static str| move |e: io::Error| (step, e);
    let open = |path: &str| Ok(OwnedFd::from(std::fs::File::open(path)?));
    let mut fds = vec![open("/proc/self/ns/user").map_err(at("open the user namespace"))?];
    let ipv6 = match network {
        Network::Shared => return Ok(fds),
        Network::Sidecar { ipv6 } | Network::App { ipv6 } | Network::Relay { ipv6 } => ipv6,
    };
    fds.push(open("/proc/self/ns/net").map_err(at("open the network namespace"))?);
    // It shows the namespace of who opens it, and NET_ADMIN over that is enough (net/sysctl_net.c).
    let settings = Settings::at(proc, "sys/net").map_err(at("open the sysctls"))?;
    for (name, value) in sysctls(network) {
        let set = || settings.set(name, value);
        let done = match set() {
            Err(e) if e.kind() == io::ErrorKind::NotFound && name.starts_with("netfilter/") => {
                load_connection_tracking().map_err(at("have connection tracking loaded"))?;
                set()
            }
            done => done,
        };
        match done {
            Ok(()) => {}
            // A kernel without IPv6, segment routing, br_netfilter or conntrack's events has nothing to switch off.
            Err(e)
                if e.kind() == io::ErrorKind::NotFound
                    && !name.starts_with("ipv4/")
                    && (!name.starts_with("netfilter/") || name.ends_with("_events"))
                    && !(ipv6 && name.ends_with("disable_ipv6")) => {}
            Err(e) => {
                return Err((
                    "set the sysctls",
                    io::Error::new(e.kind(), format!("net/{name}: {e}")),
                ));
            }
        }
    }
    let second = match network {
        Network::Relay { .. } => SockProtocol::NetlinkNetFilter,
        _ => SockProtocol::NetlinkSockDiag,
    };
    for protocol in [SockProtocol::NetlinkRoute, second] {
        let socket = crate::sys::netlink::open(protocol);
        fds.push(socket.map_err(|e| ("open a netlink socket", e))?);
    }
    if let Network::Relay { .. } = network {
        fds.push(stream_socket(AddressFamily::INET).map_err(at("open a TCP socket"))?);
    }
    Ok(fds)
}

fn stream_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    Ok(socket)
}

/// Has the kernel load connection tracking, where that is a module and nobody has needed it since the boot: a namespace
/// has its settings only then, and when the sidecar's rules load it is too late to set them.
///
/// Who is asked for something of a subsystem that is not there fetches its module first, and then says what is wrong with
/// the question: it names no connection (nfnetlink_rcv_msg, net/netfilter/nfnetlink.c).
fn load_connection_tracking() -> io::Result<()> {
    let socket = crate::sys::netlink::open(SockProtocol::NetlinkNetFilter)?;
    let mut request = [0; 20];
    request[..4].copy_from_slice(&20u32.to_ne_bytes());
    // NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET.
    request[4..6].copy_from_slice(&(1u16 << 8 | 1).to_ne_bytes());
    // NLM_F_REQUEST.
    request[6..8].copy_from_slice(&1u16.to_ne_bytes());
    rustix::net::send(&socket, &request, rustix::net::SendFlags::empty())?;
    Ok(())
}

fn process_directory(pid: i32) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty())?;
    Ok(directory)
}

/// Has the ids of a child mapped that waits for it; `pid` is ours and not yet waited for, so the number can't have been
/// given to another.
async fn map_ids(pid: i32, (uids, gids): (&str, &str), mapper: &mut impl Mapper) -> io::Result<()> {
    let process = process_directory(pid)?;
    mapper.map(process.as_fd(), uids, gids).await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn ids_are_mapped_by_files_of_proc_alone() {
        let directory = tempfile::tempdir().unwrap();
        let map = directory.path().join("uid_map");
        std::fs::write(&map, "root's").unwrap();
        let opened = std::fs::File::open(directory.path()).unwrap();
        let wrong = write_maps(opened.as_fd(), "0 0 1\n", "0 0 1\n").unwrap_err();
        assert!(wrong.to_string().contains("no file of /proc"), "{wrong}");
        assert_eq!(std::fs::read_to_string(&map).unwrap(), "root's");
        // Nor through a link.
        std::fs::remove_file(&map).unwrap();
        std::os::unix::fs::symlink("/proc/self/uid_map", &map).unwrap();
        let wrong = write_maps(opened.as_fd(), "0 0 1\n", "0 0 1\n").unwrap_err();
        assert!(wrong.to_string().contains("no file of /proc"), "{wrong}");
    }
}

//! The probes that run inside a part. Each has a process of its own, which ends with it.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, sockopt};
use rustix::fs::StatVfsMountFlags;
use serde::{Deserialize, Serialize};

use super::catalogue::{Probe, Side};
use super::{Outcome, Verdict};
use crate::confine::privileges;
use crate::firewall;
use crate::rootfs::{self, proc};
use crate::sys::attempt::{self, Attempt, SocketOption};

/// What probes inside need to know of the plan and of the host.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Context {
    /// The planned environment.
    pub env: BTreeMap<String, String>,
    /// The declared tmpfs: path and size in bytes.
    pub tmpfs: Vec<(PathBuf, u64)>,
    /// What else is declared writable.
    pub writable: Vec<PathBuf>,
    /// What is the host's in its root.
    pub volumes: Vec<PathBuf>,
    /// The declared Unix sockets, and directories of them.
    pub sockets: Vec<PathBuf>,
    /// Numbers of processes outside that no process inside has.
    pub host_pids: Vec<i32>,
    /// The host's name.
    pub hostname: String,
    /// An abstract socket on which somebody listens outside.
    pub abstract_name: String,
    /// Files of the host: path, device, inode.
    pub host_files: Vec<(PathBuf, u64, u64)>,
    /// Sockets of the host.
    pub host_sockets: Vec<PathBuf>,
    /// The control sockets of the stacks.
    pub stacks: Vec<PathBuf>,
    /// Why the supervisor is in the host's network namespace, if it is.
    pub stays: Option<String>,
    /// How many processes are allowed, or why there is no limit.
    pub pids: Option<u64>,
    /// Why there is none.
    pub no_pids: String,
    /// How many processors it may use at a time, if not all.
    pub processors: Option<u32>,
    /// Its limit of memory in bytes.
    pub memory: Option<u64>,
    /// Whether it may have a socket of NETLINK_ROUTE.
    pub rtnetlink: bool,
    /// What it may hold: capabilities by their bits.
    pub holds: u64,
    /// Its securebits.
    pub securebits: u32,
    /// What the kernel said that the app's command holds, when it was started.
    pub read_back: Option<privileges::Privileges>,
    /// The descriptors that the agent had when it was started.
    pub inherited: Vec<i32>,
}

/// Runs a probe.
#[must_use]
pub fn run(probe: &Probe, context: &Context) -> Outcome {
    match probe.from {
        Side::AppCall(call) => attempt(call, context),
        Side::SidecarCall(call) | Side::SupervisorCall(call) => attempt(call, &Context::default()),
        _ => named(probe.id, context),
    }
}

/// An error as its name and its words.
fn say(e: &io::Error) -> String {
    match e.raw_os_error() {
        Some(number) => format!("{:?}", nix::Error::from_raw(number)),
        None => e.to_string(),
    }
}

fn is(e: &io::Error, numbers: &[i32]) -> bool {
    e.raw_os_error()
        .is_some_and(|number| numbers.contains(&number))
}

/// A call that must be refused. Another error than a refusal means that the kernel looked at it.
fn attempt(call: Attempt, context: &Context) -> Outcome {
    if call == Attempt::Setgroups && context.holds != 0 {
        return Outcome::not_applicable("ids = \"range\" grants it, within the app's own ids");
    }
    if call == Attempt::BecomeRoot && nix::unistd::getuid().is_root() {
        return Outcome::not_applicable("it runs as 0 inside; the host's is another");
    }
    let also: &[i32] = match call {
        // A mount, and not a filter, may be what refuses.
        Attempt::Mknod(_) => &[libc::EROFS],
        // user_namespaces(7): a limit of none.
        Attempt::UnshareUser | Attempt::CloneUser | Attempt::Clone3User => &[libc::ENOSPC],
        // There is no id 0 to become where one id alone is mapped.
        Attempt::BecomeRoot => &[libc::EINVAL],
        _ => &[],
    };
    match call.make() {
        Ok(_) => Outcome::fail("it was granted"),
        Err(e) if is(&e, &[libc::EPERM, libc::EACCES, libc::ENOSYS]) || is(&e, also) => {
            Outcome::pass(say(&e))
        }
        Err(e) => Outcome::fail(format!("{}: the kernel looked at it", say(&e))),
    }
}

const NO_PROC: &str = "there is no /proc inside";

fn has_proc() -> bool {
    Path::new("/proc/self").exists()
}

/// The attack of each probe.
fn named(id: &str, context: &Context) -> Outcome {
    match id {
        "app-cap-inside" => capabilities(context),
        "app-no-new-privs" => no_new_privileges(context),
        "app-securebits" => securebits(context),
        "sidecar-rules-change" => rules_of_sealed(context),
        "app-root-read-only" | "sidecar-root" => root(id == "sidecar-root"),
        "app-dotdot" => dotdot(),
        "app-cwd" => working_directory(),
        "app-exe-read-only" => own_program(),
        "app-init-root" => closed(&["/proc/1/root", "/proc/1/cwd", "/proc/1/exe"]),
        "process-init-memory" => closed(&[
            "/proc/1/mem",
            "/proc/1/environ",
            "/proc/1/fd",
            "/proc/1/maps",
        ]),
        "app-socket-netlink" => {
            // All protocols that there are, but for NETLINK_ROUTE where the profile grants that.
            let granted = |protocol| context.rtnetlink && protocol == libc::NETLINK_ROUTE;
            no_socket(&netlink_but(granted))
        }
        "app-rtnetlink" | "host-links" => super::links::attack(),
        "host-secrets" => refused(&HOSTS_SECRETS, context, |path| File::open(path).map(drop)),
        "host-settings" => refused(&HOSTS_SETTINGS, context, |path| {
            OpenOptions::new().write(true).open(path).map(drop)
        }),
        "host-signal" => signalled(context),
        "host-rules" => rules(),
        "host-connect" => match &context.stays {
            Some(why) => Outcome::not_applicable(format!("it stays in the host's network: {why}")),
            None => nowhere(),
        },
        "host-stacks" => stacks(context),
        "host-mount" => mount_on_host(context),
        "host-sockets" => {
            let netlink = netlink_but(|protocol| NETLINK_NEEDED.contains(&protocol));
            no_socket(&[&OF_HOST[..], &netlink].concat())
        }
        "app-socket-packet" | "sidecar-packet" => no_socket(&PACKET),
        "app-socket-alg" => no_socket(&[(libc::AF_ALG, libc::SOCK_SEQPACKET, 0)]),
        "app-socket-vsock" => no_socket(&[
            (libc::AF_VSOCK, libc::SOCK_STREAM, 0),
            (libc::AF_VSOCK, libc::SOCK_DGRAM, 0),
        ]),
        "app-socket-rare" => no_socket(&RARE),
        "out-raw" | "sidecar-raw" => no_socket(&[
            (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
            (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW),
        ]),
        "out-bind-foreign" => bind_foreign(),
        "out-transparent" => option(SocketOption::Transparent),
        "out-mark" => option(SocketOption::Mark),
        "files-writable" => writable(context),
        "files-noexec" => noexec(context),
        "files-tmpfs-size" => tmpfs_size(context),
        "sockets-host" => sockets_of_others(context),
        "files-proc" => shown(context),
        "app-ids" => ids(context),
        "app-chroot" => chroot(context),
        "files-proc-sys" => closed_or_empty(&OF_PROC),
        "files-sys" => match std::fs::read_dir("/sys") {
            Err(e) => Outcome::pass(say(&e)),
            Ok(mut entries) => Outcome::check(entries.next().is_none(), "it is there"),
        },
        "files-devices" => devices(),
        "files-host-secrets" => secrets(context),
        "files-host-sockets" => sockets(context),
        "sockets-log" => descriptor_to_log(),
        "process-see" => processes(),
        "process-signal" => signals(context),
        "process-oom" => never_killed(),
        "limit-pids" => fork_bomb(context),
        "leak-descriptors" => Outcome::check(
            context.inherited == [0, 1, 2],
            format!("{:?}", context.inherited),
        ),
        "leak-environment" => environment(context),
        "leak-abstract" => abstract_socket(context),
        "leak-terminal" => match File::open("/dev/tty") {
            Ok(_) => Outcome::fail("/dev/tty opens"),
            Err(e) => Outcome::pass(say(&e)),
        },
        "leak-hostname" => hostname(context),
        "leak-cgroup" => cgroup(),
        other => Outcome::unknown(format!("no such probe inside: {other}")),
    }
}

/// A kind of socket: family, type and protocol.
type Kind = (i32, i32, i32);

/// Which see and send whole packets.
const PACKET: [Kind; 2] = [
    (libc::AF_PACKET, libc::SOCK_RAW, 0),
    (libc::AF_PACKET, libc::SOCK_DGRAM, 0),
];
/// What the supervisor needs none of.
const OF_HOST: [Kind; 6] = [
    (libc::AF_PACKET, libc::SOCK_RAW, 0),
    (libc::AF_PACKET, libc::SOCK_DGRAM, 0),
    (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
    (libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_RAW),
    (libc::AF_VSOCK, libc::SOCK_STREAM, 0),
    (libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
];
/// The protocols of netlink that it needs.
const NETLINK_NEEDED: [i32; 3] = [
    libc::NETLINK_ROUTE,
    libc::NETLINK_SOCK_DIAG,
    libc::NETLINK_NETFILTER,
];
/// Families whose code few have looked at.
const RARE: [Kind; 10] = [
    (libc::AF_AX25, libc::SOCK_SEQPACKET, 0),
    (libc::AF_RDS, libc::SOCK_SEQPACKET, 0),
    (libc::AF_TIPC, libc::SOCK_RDM, 0),
    (libc::AF_CAN, libc::SOCK_RAW, 1),
    (libc::AF_BLUETOOTH, libc::SOCK_RAW, 1),
    (libc::AF_PHONET, libc::SOCK_DGRAM, 0),
    (libc::AF_KEY, libc::SOCK_RAW, 2),
    (39, libc::SOCK_SEQPACKET, 1),
    (libc::AF_XDP, libc::SOCK_RAW, 0),
    (43, libc::SOCK_STREAM, 0),
];

/// All protocols of netlink that there are, but for those that are `granted`.
fn netlink_but(granted: impl Fn(i32) -> bool) -> Vec<Kind> {
    let others = (0..32).filter(|protocol| !granted(*protocol));
    others
        .map(|protocol| (libc::AF_NETLINK, libc::SOCK_RAW, protocol))
        .collect()
}

/// What a /proc has of the kernel and of the whole machine.
const OF_PROC: [&str; 21] = [
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/kptr_restrict",
    "/proc/sys/kernel/random/boot_id",
    "/proc/sys/fs/binfmt_misc",
    "/proc/sys/vm/drop_caches",
    "/proc/sys/user",
    "/proc/sysrq-trigger",
    "/proc/kcore",
    "/proc/kallsyms",
    "/proc/keys",
    "/proc/timer_list",
    "/proc/acpi",
    "/proc/scsi",
    "/proc/bus",
    "/proc/irq",
    "/proc/fs",
    "/proc/kmsg",
    "/proc/interrupts",
    "/proc/modules",
    "/proc/latency_stats",
];

fn capabilities(context: &Context) -> Outcome {
    held(context, |held| {
        let all = [
            held.inheritable,
            held.permitted,
            held.effective,
            held.bounding,
            held.ambient,
        ];
        Outcome::check(
            all == [0, context.holds, context.holds, context.holds, 0],
            format!(
                "inheritable {:x}, permitted {:x}, effective {:x}, bounding {:x}, ambient {:x}",
                all[0], all[1], all[2], all[3], all[4]
            ),
        )
    })
}

fn no_new_privileges(context: &Context) -> Outcome {
    held(context, |held| {
        Outcome::check(
            held.no_new_privs,
            format!("{}", u8::from(held.no_new_privs)),
        )
    })
}

fn securebits(context: &Context) -> Outcome {
    held(context, |held| {
        let wanted = context.securebits;
        Outcome::check(
            held.securebits == wanted,
            format!("{:#x}, meant is {wanted:#x}", held.securebits),
        )
    })
}

fn rules_of_sealed(context: &Context) -> Outcome {
    held(context, |held| {
        if held.effective | held.permitted != 0 {
            return Outcome::not_applicable("the sidecar is not sealed: it holds NET_ADMIN");
        }
        rules()
    })
}

fn working_directory() -> Outcome {
    match std::env::current_dir() {
        Ok(path) => Outcome::check(
            path.is_absolute() && !path.starts_with("(unreachable)"),
            path.display().to_string(),
        ),
        Err(e) => Outcome::fail(format!("getcwd: {}", say(&e))),
    }
}

fn mount_on_host(context: &Context) -> Outcome {
    const SYS_ADMIN: u64 = 1 << 21;
    match context.holds & SYS_ADMIN {
        0 => attempt(Attempt::Mount, context),
        _ => Outcome::not_applicable(
            "without root it may, in namespaces of its own, which are nothing on the host",
        ),
    }
}

fn bind_foreign() -> Outcome {
    match std::net::UdpSocket::bind("192.0.2.7:0") {
        Ok(_) => Outcome::fail("bound to 192.0.2.7"),
        Err(e) => Outcome::check(
            is(&e, &[libc::EADDRNOTAVAIL, libc::EACCES, libc::EPERM]),
            say(&e),
        ),
    }
}

/// Asks to be the last whom the kernel kills for want of memory.
fn never_killed() -> Outcome {
    match OpenOptions::new()
        .write(true)
        .open("/proc/self/oom_score_adj")
    {
        Err(e) => Outcome::pass(say(&e)),
        Ok(mut file) => match io::Write::write_all(&mut file, b"-1000") {
            Err(e) => Outcome::pass(say(&e)),
            Ok(()) => Outcome::fail("it was granted"),
        },
    }
}

fn abstract_socket(context: &Context) -> Outcome {
    let address = SocketAddr::from_abstract_name(context.abstract_name.as_bytes());
    match address.and_then(|address| UnixStream::connect_addr(&address)) {
        Ok(_) => Outcome::fail(format!("connected to @{}", context.abstract_name)),
        Err(e) => Outcome::check(
            is(&e, &[libc::ECONNREFUSED, libc::EPERM, libc::EACCES]),
            say(&e),
        ),
    }
}

fn hostname(context: &Context) -> Outcome {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    Outcome::check(name != context.hostname, name)
}

fn cgroup() -> Outcome {
    match std::fs::read_to_string("/proc/self/cgroup") {
        Err(_) if !has_proc() => Outcome::not_applicable(NO_PROC),
        Err(e) => Outcome::unknown(format!("/proc/self/cgroup: {}", say(&e))),
        Ok(text) => {
            let elsewhere: Vec<&str> = text.lines().filter(|line| !line.ends_with(":/")).collect();
            Outcome::check(
                elsewhere.is_empty(),
                if elsewhere.is_empty() {
                    "/".to_owned()
                } else {
                    elsewhere.join(", ")
                },
            )
        }
    }
}

fn held(context: &Context, look: impl FnOnce(&privileges::Privileges) -> Outcome) -> Outcome {
    match (privileges::read(), &context.read_back) {
        (Ok(held), _) => look(&held),
        // `strict` lets nobody ask.
        (Err(privileges::DropError::Call { source, .. }), Some(held))
            if is(&source, &[libc::EPERM, libc::ENOSYS]) =>
        {
            let Outcome { verdict, happened } = look(held);
            let when =
                "as it was read back when the command was started; the filter lets nobody ask";
            Outcome {
                verdict,
                happened: format!("{happened}, {when}"),
            }
        }
        (Err(e), _) => Outcome::unknown(e.to_string()),
    }
}

fn mount_flags(path: &Path) -> io::Result<StatVfsMountFlags> {
    Ok(rustix::fs::statvfs(path)?.f_flag)
}

fn root(must_be_empty: bool) -> Outcome {
    let path = Path::new("/lrpns-audit");
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(_) => {
            let _ = std::fs::remove_file(path);
            Outcome::fail("a file could be made in it")
        }
        Err(e) if !is(&e, &[libc::EROFS, libc::EACCES, libc::EPERM]) => Outcome::unknown(say(&e)),
        Err(e) => match mount_flags(Path::new("/")) {
            Ok(flags) if !flags.contains(StatVfsMountFlags::RDONLY) => {
                Outcome::fail(format!("{}, but the mount is not read-only", say(&e)))
            }
            Ok(_) if must_be_empty => match std::fs::read_dir("/") {
                Ok(mut entries) => match entries.next() {
                    None => Outcome::pass(format!("{}, empty", say(&e))),
                    Some(_) => Outcome::fail("there is something in it"),
                },
                Err(e) => Outcome::pass(format!("it can't be listed: {}", say(&e))),
            },
            Ok(_) => Outcome::pass(format!("{}, read-only", say(&e))),
            Err(e) => Outcome::unknown(format!("statvfs: {}", say(&e))),
        },
    }
}

fn dotdot() -> Outcome {
    let look = |path: &str| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
    match (look("/"), look("/.."), look("/../../../../..")) {
        (Ok(root), Ok(up), Ok(far)) => Outcome::check(
            root == up && root == far,
            format!("inode {}, its parent's {}", root.1, up.1),
        ),
        (Err(e), ..) | (_, Err(e), _) | (.., Err(e)) => Outcome::unknown(say(&e)),
    }
}

fn own_program() -> Outcome {
    if !has_proc() {
        return Outcome::not_applicable(NO_PROC);
    }
    let link = Path::new("/proc/self/exe");
    match OpenOptions::new().write(true).open(link) {
        Ok(_) => Outcome::fail("it could be opened for writing"),
        Err(e) => {
            let read_only = File::open(link).and_then(|file| {
                Ok(rustix::fs::fstatvfs(&file)?
                    .f_flag
                    .contains(StatVfsMountFlags::RDONLY))
            });
            match read_only {
                Ok(true) => Outcome::pass(format!("{}, read-only", say(&e))),
                Ok(false) => Outcome::fail(format!("{}, but its mount is not read-only", say(&e))),
                Err(other) => Outcome::check(
                    is(&e, &[libc::EROFS, libc::EACCES]),
                    format!("{}; to read: {}", say(&e), say(&other)),
                ),
            }
        }
    }
}

/// What of the host root alone may read.
const HOSTS_SECRETS: [&str; 8] = [
    "/etc/shadow",
    "/etc/gshadow",
    "/etc/ssh/ssh_host_ed25519_key",
    "/etc/ssh/ssh_host_rsa_key",
    "/proc/1/environ",
    "/proc/1/mem",
    "/proc/kcore",
    "/dev/mem",
];
/// What of the host root alone may write: each would make who does so root, or change the host for everybody.
const HOSTS_SETTINGS: [&str; 10] = [
    "/etc/passwd",
    "/etc/shadow",
    "/etc/group",
    "/etc/ld.so.cache",
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sysrq-trigger",
    "/proc/1/oom_score_adj",
    "/dev/mem",
];

/// None of these, of those that there are, may be opened so.
fn refused(paths: &[&str], context: &Context, open: impl Fn(&str) -> io::Result<()>) -> Outcome {
    // In a container the supervisor may be process 1 itself.
    let is_itself = |path: &&&str| path.starts_with("/proc/1/") && !context.host_pids.contains(&1);
    let mut tried = 0;
    for path in paths.iter().filter(|path| !is_itself(path)) {
        match open(path) {
            Ok(()) => return Outcome::fail(format!("{path} opens")),
            Err(e) if is(&e, &[libc::EACCES, libc::EPERM, libc::EROFS]) => tried += 1,
            Err(e) if is(&e, &[libc::ENOENT, libc::ENOTDIR, libc::ENXIO]) => {}
            Err(e) => return Outcome::unknown(format!("{path}: {}", say(&e))),
        }
    }
    match tried {
        0 => Outcome::unknown("none of them is there"),
        tried => Outcome::pass(format!("{tried} of them are there, and none opens")),
    }
}

/// None of these processes may be signalled.
fn signalled(context: &Context) -> Outcome {
    for pid in &context.host_pids {
        match nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), None) {
            Err(nix::Error::EPERM) => {}
            Ok(()) => return Outcome::fail(format!("process {pid} could be signalled")),
            Err(e) => return Outcome::unknown(format!("process {pid}: {e}")),
        }
    }
    Outcome::pass(format!("EPERM for {} processes", context.host_pids.len()))
}

/// No address is to be had: neither the host's loopback, nor one that it would ask its router for (TEST-NET-1, RFC 5737; RFC 3849).
fn nowhere() -> Outcome {
    use std::net::{SocketAddr, TcpStream, UdpSocket};
    let mut said = vec![];
    for address in [
        "127.0.0.1:22",
        "[::1]:22",
        "192.0.2.7:22",
        "[2001:db8::7]:22",
    ] {
        let address: SocketAddr = address.parse().expect("it is an address");
        let any = match address.is_ipv6() {
            true => "[::]:0",
            false => "0.0.0.0:0",
        };
        let tcp = TcpStream::connect_timeout(&address, std::time::Duration::from_secs(1));
        let udp = UdpSocket::bind(any).and_then(|socket| socket.connect(address));
        for (what, came) in [("TCP", tcp.map(drop)), ("UDP", udp)] {
            match came {
                Err(e)
                    if is(
                        &e,
                        &[libc::ENETUNREACH, libc::EADDRNOTAVAIL, libc::EAFNOSUPPORT],
                    ) =>
                {
                    said.push(say(&e));
                }
                Err(e) => return Outcome::fail(format!("{what} to {address}: {}", say(&e))),
                Ok(()) => return Outcome::fail(format!("{what} to {address}: there is a way")),
            }
        }
    }
    said.sort();
    said.dedup();
    Outcome::pass(said.join(", "))
}

/// Nor the control socket of a stack, its own included, which root and its user alone may ask.
fn stacks(context: &Context) -> Outcome {
    if context.stacks.is_empty() {
        return Outcome::not_applicable("without root it is its user's, who may");
    }
    for path in &context.stacks {
        match UnixStream::connect(path) {
            Ok(_) => return Outcome::fail(format!("connected to {}", path.display())),
            Err(e) if is(&e, &[libc::EACCES, libc::EPERM]) => {}
            // It has ended meanwhile.
            Err(e) if is(&e, &[libc::ENOENT, libc::ECONNREFUSED]) => {}
            Err(e) => return Outcome::unknown(format!("{}: {}", path.display(), say(&e))),
        }
    }
    Outcome::pass(format!("EACCES for {}", context.stacks.len()))
}

/// As much of a ruleset as there must be for a refusal; in force it would do nothing.
fn rules() -> Outcome {
    let tried = firewall::Socket::open()
        .and_then(|socket| firewall::transact(&socket, &firewall::an_empty_table()));
    match tried {
        Ok(()) => Outcome::fail("the kernel took it"),
        Err(e) => Outcome::check(e.is_denied(), e.to_string()),
    }
}

/// None of these may be opened, listed or followed, in whichever way.
fn closed(paths: &[&str]) -> Outcome {
    if !has_proc() {
        return Outcome::pass(NO_PROC);
    }
    let mut last = String::new();
    for path in paths {
        let tries = [
            File::open(path).map(|_| "opens"),
            OpenOptions::new()
                .write(true)
                .open(path)
                .map(|_| "opens for writing"),
            std::fs::read_dir(path).map(|_| "can be listed"),
            std::fs::read_link(path).map(|_| "can be followed"),
        ];
        for tried in tries {
            match tried {
                Ok(how) => return Outcome::fail(format!("{path} {how}")),
                Err(e) if is(&e, &[libc::EINVAL, libc::ENOTDIR, libc::EISDIR]) => {}
                Err(e) => last = format!("{path}: {}", say(&e)),
            }
        }
    }
    Outcome::pass(last)
}

/// As [`closed`]; but root over a range of ids may open what covers an entry, in which there is nothing.
fn closed_or_empty(paths: &[&str]) -> Outcome {
    let of = |path: &str| std::fs::metadata(path).map(|meta| meta.dev()).ok();
    let proc = of("/proc/self");
    let is_cover = |path: &&&str| {
        let empty = match std::fs::read_dir(path) {
            Ok(mut list) => list.next().is_none(),
            Err(_) => std::fs::read(path).is_ok_and(|text| text.is_empty()),
        };
        let written = OpenOptions::new().write(true).open(path);
        let fixed = written.is_err_and(|e| is(&e, &[libc::EROFS, libc::EISDIR]));
        empty && fixed && of(path) != proc
    };
    let others: Vec<&str> = paths
        .iter()
        .filter(|path| !is_cover(path))
        .copied()
        .collect();
    if others.is_empty() {
        return Outcome::pass("all are covered by what is empty");
    }
    closed(&others)
}

/// What comes with a range of ids is worth nothing beyond it, and is gone with the change to another.
fn ids(context: &Context) -> Outcome {
    use nix::unistd::{Gid, Uid, chown, setresgid, setresuid};
    if context.holds == 0 {
        return Outcome::not_applicable("it has one id");
    }
    let beyond = crate::plan::RANGE;
    let (uid, gid) = (Uid::from_raw(beyond), Gid::from_raw(beyond));
    let tries = [
        ("setresuid beyond the range", setresuid(uid, uid, uid)),
        ("setresgid beyond the range", setresgid(gid, gid, gid)),
        // The root's: of ids that are none of its own.
        ("chown of /", chown("/", Some(Uid::from_raw(1)), None)),
    ];
    for (what, tried) in tries {
        match tried {
            Ok(()) => return Outcome::fail(format!("{what} was granted")),
            Err(nix::Error::EINVAL | nix::Error::EPERM | nix::Error::EROFS) => {}
            Err(e) => return Outcome::fail(format!("{what}: {e:?}")),
        }
    }
    let (uid, gid) = (Uid::from_raw(33), Gid::from_raw(33));
    let changed = setresgid(gid, gid, gid).and_then(|()| setresuid(uid, uid, uid));
    if let Err(e) = changed {
        return Outcome::fail(format!("change to 33: {e:?}"));
    }
    let root = Uid::from_raw(0);
    if setresuid(root, root, root).is_ok() {
        return Outcome::fail("who is 33 became 0 again");
    }
    held(context, |held| {
        let left = held.permitted | held.effective | held.ambient | held.inheritable;
        Outcome::check(left == 0, format!("who is 33 holds {left:x}"))
    })
}

/// Who may not change its root is refused it. Who may has the classic way out of a new one, a directory beside it that is still
/// open, which must end at the app's own root: nothing else is mounted in its namespace, above or below.
fn chroot(context: &Context) -> Outcome {
    use rustix::fs::{CWD, Mode, OFlags, fstat, openat};
    use rustix::process::{chdir, chroot, fchdir};
    /// More than directories are deep.
    const UP: usize = 64;
    let may = context.holds & (1 << caps::Capability::CAP_SYS_CHROOT.index()) != 0;
    if !may {
        return attempt(Attempt::Chroot, context);
    }
    let identity = |path: &str| {
        let directory = openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
        let meta = fstat(&directory)?;
        rustix::io::Result::Ok((directory, (meta.st_dev, meta.st_ino)))
    };
    let (root, own) = match identity("/") {
        Ok(found) => found,
        Err(e) => return Outcome::unknown(format!("open /: {e}")),
    };
    let mut places = ["/dev", "/proc", "/tmp", "/usr", "/etc"].iter();
    let Some(place) = places.find(|place| Path::new(place).is_dir()) else {
        return Outcome::unknown("its root has no directory to take for another");
    };
    match chroot(*place) {
        Ok(()) => {}
        Err(rustix::io::Errno::PERM | rustix::io::Errno::NOSYS) => {
            return Outcome::pass("its profile refuses it");
        }
        Err(e) => return Outcome::fail(format!("chroot to {place}: {e}")),
    }
    let inner = identity("/").map(|(_, inner)| inner);
    let climbed = fchdir(&root)
        .and_then(|()| (0..UP).try_for_each(|_| chdir("..")))
        .and_then(|()| identity("."))
        .map(|(_, found)| found);
    // This may be the prober itself and no child of it: it goes on from its own root.
    let back = fchdir(&root).and_then(|()| chroot("."));
    match (inner, climbed, back) {
        (Ok(inner), Ok(found), Ok(())) if inner != own => Outcome::check(
            found == own,
            format!(
                "from outside {place} as its root, .. ends at {found:?}; the app's root is {own:?}"
            ),
        ),
        (inner, climbed, back) => Outcome::unknown(format!("{inner:?}, {climbed:?}, {back:?}")),
    }
}

/// Everything in /proc beside processes is on a list, or can't be read; what is on it shows no more than the limits and can't be
/// written to.
fn shown(context: &Context) -> Outcome {
    if !has_proc() {
        return Outcome::pass(NO_PROC);
    }
    let entries = match std::fs::read_dir("/proc") {
        Ok(entries) => entries,
        Err(e) => return Outcome::unknown(format!("/proc: {}", say(&e))),
    };
    let listed = proc::LIVE.iter().chain(&proc::MADE);
    let (mut seen, mut closed, mut wrong) = (vec![], 0, vec![]);
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if name.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let path = entry.path();
        if let Some((_, why)) = listed.clone().find(|(listed, _)| *listed == name) {
            seen.push(format!("{name} ({why})"));
        } else if readable(&path) {
            wrong.push(format!("{name} can be read"));
        } else {
            closed += 1;
        }
    }
    let mut below = vec![PathBuf::from("/proc/sys")];
    while let Some(directory) = below.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                below.push(path);
                continue;
            }
            let name = path.strip_prefix("/proc").unwrap_or(&path);
            let setting = name.strip_prefix("sys").ok().and_then(Path::to_str);
            let known = name == Path::new(proc::UUID)
                || setting.is_some_and(|setting| proc::SETTINGS.contains(&setting));
            if !known {
                wrong.push(format!("{} is there", path.display()));
            }
            if OpenOptions::new().write(true).open(&path).is_ok() {
                wrong.push(format!("{} opens for writing", path.display()));
            }
        }
    }
    let text = |name: &str| std::fs::read_to_string(Path::new("/proc").join(name));
    if let (Some(most), Ok(text)) = (context.processors, text("cpuinfo")) {
        let count = text
            .lines()
            .filter(|line| line.starts_with("processor"))
            .count();
        if count > most as usize {
            wrong.push(format!(
                "cpuinfo has {count} processors, the limit is {most}"
            ));
        }
    }
    if let (Some(most), Ok(text)) = (context.memory, text("meminfo")) {
        let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let total = total.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        if total.is_none_or(|total| total > most / 1024) {
            wrong.push(format!(
                "meminfo has {total:?} kB, the limit is {most} bytes"
            ));
        }
    }
    if !wrong.is_empty() {
        wrong.truncate(5);
        return Outcome::fail(wrong.join(", "));
    }
    seen.sort();
    Outcome::pass(format!(
        "{}; {closed} others can't be read",
        seen.join(", ")
    ))
}

/// Whether something can be read of a file, or is in a directory.
fn readable(path: &Path) -> bool {
    if let Ok(mut entries) = std::fs::read_dir(path) {
        return entries.next().is_some();
    }
    let open = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    // A file that is read to its end at once has nothing.
    open.is_ok_and(|mut file| !matches!(io::Read::read(&mut file, &mut [0; 16]), Ok(0)))
}

fn no_socket(kinds: &[Kind]) -> Outcome {
    let mut errors = vec![];
    for (domain, kind, protocol) in kinds {
        match attempt::socket(*domain, *kind, *protocol) {
            Ok(_) => {
                return Outcome::fail(format!("socket({domain}, {kind}, {protocol}) was granted"));
            }
            Err(e) => errors.push(say(&e)),
        }
    }
    errors.dedup();
    Outcome::pass(errors.join(", "))
}

fn option(option: SocketOption) -> Outcome {
    let socket = match attempt::socket(libc::AF_INET, libc::SOCK_STREAM, 0) {
        Ok(socket) => socket,
        Err(e) => return Outcome::pass(format!("no socket: {}", say(&e))),
    };
    match attempt::set_option(socket.as_fd(), option) {
        Ok(()) => Outcome::fail("it was granted"),
        Err(e) => Outcome::check(is(&e, &[libc::EPERM, libc::EACCES, libc::ENOSYS]), say(&e)),
    }
}

/// How many names of a root are looked at: enough for what is shown to an app, and bounded for an image of any size.
const NAMES: usize = 5000;

fn writable(context: &Context) -> Outcome {
    let declared: Vec<&Path> = context
        .tmpfs
        .iter()
        .map(|(path, _)| path.as_path())
        .chain(context.writable.iter().map(PathBuf::as_path))
        .chain([Path::new("/proc")])
        .collect();
    let mut directories = std::collections::VecDeque::from([PathBuf::from("/")]);
    let (mut seen, mut found) = (0, vec![]);
    while let Some(directory) = directories.pop_front() {
        for entry in std::fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .flatten()
        {
            let path = entry.path();
            let Ok(kind) = entry.file_type() else {
                continue;
            };
            seen += 1;
            // To write to a socket is to connect to it: `sockets-host`.
            let other = kind.is_symlink() || kind.is_char_device() || kind.is_socket();
            if other || declared.contains(&path.as_path()) {
                continue;
            }
            if rustix::fs::access(&path, rustix::fs::Access::WRITE_OK).is_ok()
                // What a directory says of a name is not what is mounted on it.
                && std::fs::symlink_metadata(&path).is_ok_and(|meta| {
                    let kind = meta.file_type();
                    !(kind.is_char_device() || kind.is_socket())
                })
            {
                found.push(path.display().to_string());
            }
            if kind.is_dir() && seen < NAMES {
                directories.push_back(path);
            }
        }
        if seen >= NAMES {
            break;
        }
    }
    if found.is_empty() {
        Outcome::pass(format!("none of the {seen} names looked at"))
    } else {
        found.truncate(5);
        Outcome::fail(found.join(", "))
    }
}

fn noexec(context: &Context) -> Outcome {
    if context.tmpfs.is_empty() {
        return Outcome::not_applicable("no tmpfs is declared");
    }
    let mut said = String::new();
    for (place, _) in &context.tmpfs {
        match mount_flags(place) {
            Ok(flags) if flags.contains(StatVfsMountFlags::NOEXEC) => {}
            Ok(_) => return Outcome::fail(format!("{} is not noexec", place.display())),
            Err(e) => return Outcome::unknown(format!("{}: {}", place.display(), say(&e))),
        }
        let path = place.join(format!("lrpns-audit-{}", std::process::id()));
        let made = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o700)
            .open(&path)
            .and_then(|mut file| io::Write::write_all(&mut file, b"\x7fELF"));
        if let Err(e) = made {
            // A tmpfs that is full: the flag has been seen.
            said = format!("noexec; {}: {}", path.display(), say(&e));
            continue;
        }
        let c_path =
            std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap_or_default();
        let none: [&std::ffi::CStr; 0] = [];
        let Err(e) = nix::unistd::execve(&c_path, &none, &none);
        let _ = std::fs::remove_file(&path);
        if e != nix::Error::EACCES && e != nix::Error::EPERM {
            return Outcome::fail(format!(
                "{}: {e:?}: the kernel began to execute it",
                path.display()
            ));
        }
        said = format!("{e:?}");
    }
    Outcome::pass(said)
}

fn tmpfs_size(context: &Context) -> Outcome {
    if context.tmpfs.is_empty() {
        return Outcome::not_applicable("no tmpfs is declared");
    }
    for (place, size) in &context.tmpfs {
        let path = place.join(format!("lrpns-audit-{}", std::process::id()));
        let file = match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => file,
            Err(e) if is(&e, &[libc::ENOSPC]) => continue,
            Err(e) => return Outcome::unknown(format!("{}: {}", path.display(), say(&e))),
        };
        let grown = rustix::fs::fallocate(
            &file,
            rustix::fs::FallocateFlags::empty(),
            0,
            size + (1 << 20),
        );
        drop(file);
        let _ = std::fs::remove_file(&path);
        match grown {
            Ok(()) => {
                return Outcome::fail(format!("{} took more than {size} bytes", place.display()));
            }
            Err(rustix::io::Errno::NOSPC) => {}
            Err(e) => return Outcome::unknown(format!("{}: fallocate: {e}", place.display())),
        }
    }
    Outcome::pass("ENOSPC")
}

/// Name and number of each (Documentation/admin-guide/devices.txt).
const DEVICES: [(&str, u32, u32); 5] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
];

fn devices() -> Outcome {
    let mut wrong = vec![];
    let mut seen = vec![];
    let mut directories = vec![PathBuf::from("/dev")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .flatten()
        {
            let path = entry.path();
            let Ok(meta) = std::fs::symlink_metadata(&path) else {
                continue;
            };
            let kind = meta.file_type();
            if kind.is_dir() {
                directories.push(path);
            } else if kind.is_block_device() || kind.is_char_device() {
                let (major, minor) = (
                    rustix::fs::major(meta.rdev()),
                    rustix::fs::minor(meta.rdev()),
                );
                let name = path.display().to_string();
                if kind.is_char_device() && DEVICES.contains(&(name.as_str(), major, minor)) {
                    seen.push(name);
                } else {
                    wrong.push(format!("{name} is {major}:{minor}"));
                }
            }
        }
    }
    wrong.truncate(5);
    if !wrong.is_empty() {
        return Outcome::fail(wrong.join(", "));
    }
    seen.sort();
    Outcome::pass(if seen.is_empty() {
        "none".to_owned()
    } else {
        seen.join(", ")
    })
}

fn secrets(context: &Context) -> Outcome {
    for (path, device, inode) in &context.host_files {
        let same =
            std::fs::metadata(path).is_ok_and(|meta| (meta.dev(), meta.ino()) == (*device, *inode));
        if same {
            return Outcome::fail(format!("{} is the host's", path.display()));
        }
    }
    Outcome::pass(format!(
        "none of the host's {} is there",
        context.host_files.len()
    ))
}

/// Unix sockets in the volumes, and then in the rest of the root, that are not declared: connects to each.
fn sockets_of_others(context: &Context) -> Outcome {
    let own = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let own: HashSet<&str> = own
        .lines()
        .filter_map(|line| line.split_whitespace().nth(7))
        .collect();
    let (mut seen, mut declared, mut others) = (0, 0, vec![]);
    let root = [PathBuf::from("/")];
    for (place, most) in [(&context.volumes[..], 4 * NAMES), (&root[..], NAMES)] {
        let mut left = most;
        let mut directories: VecDeque<PathBuf> = place.iter().cloned().collect();
        while let Some(path) = directories.pop_front() {
            let Ok(kind) = std::fs::symlink_metadata(&path).map(|meta| meta.file_type()) else {
                continue;
            };
            if kind.is_dir() && !path.starts_with("/proc") {
                let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
                for entry in entries.take(left) {
                    left -= 1;
                    seen += 1;
                    // Most are files, which take no more calls.
                    let kind = entry.file_type();
                    if kind.is_ok_and(|kind| kind.is_dir() || kind.is_socket()) {
                        directories.push_back(entry.path());
                    }
                }
            } else if !kind.is_socket() || others.contains(&path) {
            } else if context.sockets.iter().any(|s| path.starts_with(s)) {
                declared += 1;
            } else if is_of_another(&path, &own) {
                others.push(path);
            }
        }
    }
    let said = format!("among {seen} names, {declared} declared");
    if others.is_empty() {
        return Outcome::pass(format!("no other's {said}"));
    }
    let others: Vec<String> = others
        .iter()
        .take(5)
        .map(|o| o.display().to_string())
        .collect();
    Outcome::fail(format!("connected to {}", others.join(", ")))
}

/// Whether somebody outside of the app is bound to a socket. The kernel names who listens on a stream by the number that he
/// has in our pid namespace, 0 if he has none; of datagrams it says nothing, and what is bound in our own network namespace
/// is the app's.
fn is_of_another(path: &Path, own: &HashSet<&str>) -> bool {
    let listed = || own.contains(&*path.to_string_lossy());
    match listener(path) {
        Ok(Some(pid)) => pid == 0,
        Ok(None) => !listed(),
        Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => !listed(),
        Err(_) => false,
    }
}

/// How long the app's pid 1 may take to close what was sent to it.
const CLOSES_WITHIN: rustix::fs::Timespec = rustix::fs::Timespec {
    tv_sec: 3,
    tv_nsec: 0,
};

/// Sends one end of a pipe to `/dev/log`, closes its own, and sees at the other whether nobody has it any more.
fn descriptor_to_log() -> Outcome {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix};
    let sent = || {
        let (end, sent) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let socket = rustix::net::socket_with(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::DGRAM,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(rootfs::LOG)?)?;
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut along = SendAncillaryBuffer::new(&mut space);
        let fds = [sent.as_fd()];
        along.push(SendAncillaryMessage::ScmRights(&fds));
        // Of which no line is made.
        let message = [io::IoSlice::new(b"\0")];
        rustix::net::sendmsg(&socket, &message, &mut along, SendFlags::NOSIGNAL)?;
        Ok::<_, rustix::io::Errno>(end)
    };
    let end = match sent().map_err(io::Error::from) {
        Ok(end) => end,
        Err(e) if is(&e, &[libc::EPERM, libc::EACCES, libc::ENOENT]) => {
            return Outcome::pass(say(&e));
        }
        Err(e) => return Outcome::unknown(say(&e)),
    };
    let mut closed = [rustix::event::PollFd::new(
        &end,
        rustix::event::PollFlags::IN,
    )];
    match rustix::event::poll(&mut closed, Some(&CLOSES_WITHIN)) {
        Ok(0) => Outcome::fail("it was taken and is open still"),
        Ok(_) => Outcome::pass("it was taken and closed"),
        Err(e) => Outcome::unknown(say(&e.into())),
    }
}

/// Connects to a Unix socket: the process number of who listens there on a stream, `None` if it is one of datagrams.
fn listener(path: &Path) -> io::Result<Option<i32>> {
    let address = UnixAddr::new(path)?;
    for kind in [SockType::Datagram, SockType::Stream, SockType::SeqPacket] {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = nix::sys::socket::socket(AddressFamily::Unix, kind, flags, None)?;
        match nix::sys::socket::connect(socket.as_raw_fd(), &address) {
            Ok(()) if kind == SockType::Datagram => return Ok(None),
            Ok(()) => {
                let peer = nix::sys::socket::getsockopt(&socket, sockopt::PeerCredentials)?;
                return Ok(Some(peer.pid()));
            }
            Err(nix::Error::EPROTOTYPE) => {}
            // It has another end that it listens to alone.
            Err(nix::Error::EPERM) if kind == SockType::Datagram => return Ok(None),
            Err(e) => return Err(e.into()),
        }
    }
    Err(io::ErrorKind::Unsupported.into())
}

fn sockets(context: &Context) -> Outcome {
    for path in &context.host_sockets {
        if context.sockets.iter().any(|s| path.starts_with(s)) {
            continue;
        }
        if UnixStream::connect(path).is_ok() {
            return Outcome::fail(format!("connected to {}", path.display()));
        }
    }
    Outcome::pass(format!(
        "none of {} can be connected to",
        context.host_sockets.len()
    ))
}

fn processes() -> Outcome {
    if !has_proc() {
        return Outcome::pass(NO_PROC);
    }
    let own = std::fs::read_link("/proc/self").ok();
    if own.as_deref() != Some(Path::new(&std::process::id().to_string())) {
        return Outcome::fail("/proc/self is another process: this /proc is not its own");
    }
    let mut seen = 0;
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == 1 {
            return Outcome::fail("pid 1 is visible");
        }
        seen += 1;
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let levels = status
            .lines()
            .find_map(|line| line.strip_prefix("NSpid:"))
            .map(|pids| pids.split_whitespace().count());
        if levels.is_some_and(|levels| levels > 1) {
            return Outcome::fail(format!(
                "process {pid} is of a namespace below: this /proc is not its own"
            ));
        }
    }
    Outcome::pass(format!("{seen}, all its own"))
}

fn signals(context: &Context) -> Outcome {
    if context.host_pids.is_empty() {
        return Outcome::unknown(
            "every number of a process outside that could be tried is one inside too",
        );
    }
    // Of no process outside: this one and the one that runs it were started after the numbers were chosen.
    let ours = [std::process::id(), std::os::unix::process::parent_id()].map(u32::cast_signed);
    for pid in context.host_pids.iter().filter(|pid| !ours.contains(pid)) {
        match nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), None) {
            Err(nix::Error::ESRCH | nix::Error::EPERM | nix::Error::ENOSYS) => {}
            // By now something of the app's own may have the number, such as a health check.
            Ok(()) if is_inside(*pid) => {}
            Ok(()) => return Outcome::fail(format!("process {pid} can be signalled")),
            Err(e) => return Outcome::fail(format!("kill({pid}, 0): {e:?}")),
        }
    }
    Outcome::pass("ESRCH")
}

/// Whether a process that could be signalled is one that is seen here, or is gone already.
fn is_inside(pid: i32) -> bool {
    let gone = || {
        let again = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None);
        again == Err(nix::Error::ESRCH)
    };
    has_proc() && (Path::new(&format!("/proc/{pid}")).exists() || gone())
}

fn fork_bomb(context: &Context) -> Outcome {
    let Some(limit) = context.pids else {
        return Outcome::not_applicable(context.no_pids.clone());
    };
    let mut children = vec![];
    let outcome = loop {
        if children.len() as u64 > limit {
            break Outcome::fail(format!(
                "{} more processes, and the limit is {limit}",
                children.len()
            ));
        }
        match attempt::fork() {
            Ok(None) => {
                let _ = rustix::process::set_parent_process_death_signal(Some(
                    rustix::process::Signal::KILL,
                ));
                nix::unistd::pause();
                crate::sys::process::exit_now(0)
            }
            Ok(Some(pid)) => children.push(nix::unistd::Pid::from_raw(pid)),
            Err(e) if is(&e, &[libc::EAGAIN]) => {
                break Outcome::pass(format!(
                    "EAGAIN after {} more; the limit is {limit}",
                    children.len()
                ));
            }
            Err(e) if is(&e, &[libc::EPERM, libc::ENOSYS]) => {
                break Outcome::pass(format!("fork: {}: there is none but itself", say(&e)));
            }
            Err(e) => break Outcome::unknown(format!("fork: {}", say(&e))),
        }
    };
    for child in &children {
        let _ = nix::sys::signal::kill(*child, nix::sys::signal::Signal::SIGKILL);
    }
    for child in children {
        let _ = nix::sys::wait::waitpid(child, None);
    }
    outcome
}

fn environment(context: &Context) -> Outcome {
    let found: BTreeMap<String, String> = std::env::vars_os()
        .map(|(name, value)| {
            (
                name.to_string_lossy().into_owned(),
                value.to_string_lossy().into_owned(),
            )
        })
        .collect();
    let mut wrong: Vec<&str> = found
        .iter()
        .filter(|(name, value)| context.env.get(*name) != Some(*value))
        .map(|(name, _)| name.as_str())
        .chain(
            context
                .env
                .keys()
                .filter(|name| !found.contains_key(*name))
                .map(String::as_str),
        )
        .collect();
    wrong.dedup();
    let verdict = if wrong.is_empty() {
        Verdict::Pass
    } else {
        Verdict::Fail
    };
    let happened = if wrong.is_empty() {
        format!("{} variables, as planned", found.len())
    } else {
        format!("not as planned: {}", wrong.join(", "))
    };
    Outcome { verdict, happened }
}

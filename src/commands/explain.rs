//! `--explain`: what the apps' system calls were refused, and the lines that would allow them, the least first. Nothing is
//! granted by this: the lines are there to be pasted.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::failure::Failure;
use crate::config::Config;
use crate::confine::privileges::Ids;
use crate::confine::seccomp::{self, Action, Profile};
use crate::part::refused::{Refusals, Refused};
use crate::plan::AppPlan;

/// Calls that the kernel keeps for who has a capability that no app has, whatever its profile says.
const PRIVILEGED: &[&str] = &[
    "acct",
    "adjtimex",
    "bpf",
    "clock_adjtime",
    "clock_settime",
    "clone",
    "delete_module",
    "fanotify_init",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "init_module",
    "ioperm",
    "iopl",
    "kexec_file_load",
    "kexec_load",
    "mknod",
    "mknodat",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "setdomainname",
    "sethostname",
    "setns",
    "settimeofday",
    "swapoff",
    "swapon",
    "syslog",
    "umount2",
    "unshare",
    "vhangup",
];

/// Whether it can be found out what these apps are refused.
///
/// # Errors
/// An app's profile keeps it from handing over where its filter asks.
pub(super) fn can(config: &Config) -> Result<(), Failure> {
    let mut apps = config.apps.iter();
    match apps.find(|app| !app.seccomp.may_allow("sendmsg")) {
        None => Ok(()),
        Some(app) => Err(Failure::usage(format!(
            "{} can't be explained: its profile {} has no sendmsg, by which it hands over what its filter asks",
            app.name, app.seccomp.name
        ))
        .hint("add sendmsg to the profile, or explain it with seccomp = \"default\"")),
    }
}

/// What there is to say.
pub(super) fn lines(refusals: &Refusals, apps: &[AppPlan]) -> Vec<String> {
    let (all, more) = refusals.all();
    let mut lines = vec![];
    for app in apps {
        let own = |call: &&Refused| call.app == app.name.as_str() && !is_itself(call, app);
        let own: Vec<&Refused> = all.iter().filter(own).collect();
        if own.is_empty() {
            lines.push(format!(
                "{}: it was refused no system call and no port of TCP; what it was refused of files it says itself",
                app.name
            ));
            continue;
        }
        lines.push(format!("{} was refused, the latest last:", app.name));
        lines.extend(own.iter().map(|call| format!("  {}", said(call))));
        lines.extend(
            hints(&own, app)
                .into_iter()
                .map(|hint| format!("hint: {hint}")),
        );
    }
    if more > 0 {
        lines.push(format!("and {more} calls more, of which no list was kept"));
    }
    lines
}

/// Whether a change of user is none: to whom it is, or by who may be anybody of a range.
fn is_itself(call: &Refused, app: &AppPlan) -> bool {
    if call.errno.is_some() {
        return false;
    }
    let name = seccomp::name(call.number).unwrap_or_default();
    if name == "chroot" {
        return app.ids.is_range();
    }
    let Ids { uid, gid } = app.ids.inside();
    let same = |wanted: u64, own: u32| wanted == u64::from(u32::MAX) || wanted == u64::from(own);
    let [a, b, c] = call.args;
    app.ids.is_range()
        || match name {
            "setuid" => same(a, uid),
            "setgid" => same(a, gid),
            "setreuid" => same(a, uid) && same(b, uid),
            "setregid" => same(a, gid) && same(b, gid),
            "setresuid" => [a, b, c].iter().all(|wanted| same(*wanted, uid)),
            "setresgid" => [a, b, c].iter().all(|wanted| same(*wanted, gid)),
            "setgroups" => false,
            _ => same(b, uid) && same(c, gid),
        }
}

/// The keys for the ports of TCP that were refused.
fn of_ports(calls: &[&Refused], app: &AppPlan) -> Vec<String> {
    let at = |wanted: &'static str| {
        let calls = calls.iter();
        let calls = calls.filter(move |call| seccomp::name(call.number) == Some(wanted));
        calls.filter_map(|call| call.at)
    };
    let mut hints = vec![];
    let bound: BTreeSet<u16> = at("bind").map(|at| at.port()).collect();
    // A server's own tools, and its other processes, connect to what it listens on.
    let listed = |new: &BTreeSet<u16>| -> String {
        let all: BTreeSet<u16> = app.listen.iter().chain(new).copied().collect();
        let all: Vec<String> = all.iter().map(u16::to_string).collect();
        all.join(", ")
    };
    let words = |ports: &BTreeSet<u16>| match ports.len() {
        1 => "a port of TCP that no key names",
        _ => "ports of TCP that no key names",
    };
    if !bound.is_empty() {
        let outside = bound.iter().find(|port| **port != 0);
        let outside = outside.map_or_else(String::new, |port| {
            format!("; what its clients are to reach is published instead: publish = [\"{port}:{port}\"]")
        });
        hints.push(format!(
            "it listens on {}: listen = [{}]{outside}",
            words(&bound),
            listed(&bound)
        ));
    }
    let within: BTreeSet<u16> = at("connect")
        .filter(|at| at.ip().is_loopback() || at.ip().is_unspecified())
        .map(|at| at.port())
        .filter(|port| !bound.contains(port))
        .collect();
    if !within.is_empty() {
        let port = within.first().copied().unwrap_or_default();
        let all: BTreeSet<u16> = bound.union(&within).copied().collect();
        hints.push(format!(
            "it connects to {} at its own loopback: listen = [{}], if another process of its own listens there; a server that is another app of the stack takes connect = [\"APP:{port}\"], and that app's name for the address in its configuration",
            words(&within),
            listed(&all)
        ));
    }
    let elsewhere: BTreeSet<SocketAddr> = at("connect")
        .filter(|at| !at.ip().is_loopback() && !at.ip().is_unspecified())
        .collect();
    if !elsewhere.is_empty() {
        let all: Vec<String> = elsewhere.iter().map(|at| format!("\"tcp {at}\"")).collect();
        hints.push(format!(
            "it connects to others by TCP: egress = [{}]",
            all.join(", ")
        ));
    }
    hints
}

fn said(call: &Refused) -> String {
    let by = match call.by.as_str() {
        "" => String::new(),
        by => format!(" by {by}"),
    };
    let times = match call.times {
        1 => String::new(),
        times => format!(", {times} times"),
    };
    let answer = match call.errno {
        Some(errno) => Action::Errno(errno).to_string(),
        None => "what the kernel says to who has one user".to_owned(),
    };
    format!("{}{by}: {answer}{times}", written(call))
}

/// As in a program.
fn written(call: &Refused) -> String {
    let name =
        seccomp::name(call.number).map_or_else(|| format!("call {}", call.number), str::to_owned);
    let id = |id: u64| match id {
        id if id == u64::from(u32::MAX) => "-1".to_owned(),
        id => id.to_string(),
    };
    if let Some(at) = call.at {
        return format!("{name}({at}) by TCP");
    }
    let [a, b, c] = call.args;
    match name.as_str() {
        "socket" => format!("socket({})", socket(call.args)),
        "prctl" | "personality" | "keyctl" | "bpf" | "setuid" | "setgid" | "setgroups" => {
            format!("{name}({})", id(a))
        }
        "setreuid" | "setregid" => format!("{name}({}, {})", id(a), id(b)),
        "setresuid" | "setresgid" => format!("{name}({}, {}, {})", id(a), id(b), id(c)),
        "chown" | "lchown" | "fchown" | "fchownat" => format!("{name}(…, {}, {})", id(b), id(c)),
        "clone" | "unshare" => format!("{name}({a:#x})"),
        "setns" | "ioctl" | "fcntl" => format!("{name}(…, {b:#x})"),
        "setsockopt" => format!("setsockopt(…, {b}, {c})"),
        _ => name,
    }
}

fn socket([family, kind, protocol]: [u64; 3]) -> String {
    let family_name = match i32::try_from(family) {
        Ok(libc::AF_UNIX) => "AF_UNIX",
        Ok(libc::AF_INET) => "AF_INET",
        Ok(libc::AF_INET6) => "AF_INET6",
        Ok(libc::AF_NETLINK) => "AF_NETLINK",
        Ok(libc::AF_PACKET) => "AF_PACKET",
        Ok(libc::AF_ALG) => "AF_ALG",
        Ok(libc::AF_VSOCK) => "AF_VSOCK",
        Ok(libc::AF_BLUETOOTH) => "AF_BLUETOOTH",
        Ok(libc::AF_CAN) => "AF_CAN",
        _ => "",
    };
    let kind_name = match kind & 0xf {
        1 => "SOCK_STREAM",
        2 => "SOCK_DGRAM",
        3 => "SOCK_RAW",
        5 => "SOCK_SEQPACKET",
        _ => "",
    };
    let netlink = match (family_name, i32::try_from(protocol)) {
        ("AF_NETLINK", Ok(libc::NETLINK_ROUTE)) => "NETLINK_ROUTE",
        ("AF_NETLINK", Ok(libc::NETLINK_SOCK_DIAG)) => "NETLINK_SOCK_DIAG",
        ("AF_NETLINK", Ok(libc::NETLINK_XFRM)) => "NETLINK_XFRM",
        ("AF_NETLINK", Ok(libc::NETLINK_AUDIT)) => "NETLINK_AUDIT",
        ("AF_NETLINK", Ok(libc::NETLINK_NETFILTER)) => "NETLINK_NETFILTER",
        ("AF_NETLINK", Ok(libc::NETLINK_KOBJECT_UEVENT)) => "NETLINK_KOBJECT_UEVENT",
        ("AF_NETLINK", Ok(libc::NETLINK_GENERIC)) => "NETLINK_GENERIC",
        _ => "",
    };
    let word = |name: &str, number: u64| match name {
        "" => number.to_string(),
        name => name.to_owned(),
    };
    format!(
        "{}, {}, {}",
        word(family_name, family),
        word(kind_name, kind & 0xf),
        word(netlink, protocol)
    )
}

/// What would allow them, the least first.
fn hints(calls: &[&Refused], app: &AppPlan) -> Vec<String> {
    let profile = &app.seccomp;
    let mut hints = vec![];
    let is_named = |call: &Refused, names: &[&str]| {
        seccomp::name(call.number).is_some_and(|name| names.contains(&name))
    };
    let (ports, known): (Vec<&Refused>, Vec<&Refused>) = calls
        .iter()
        .copied()
        .filter(|call| call.errno.is_some())
        .partition(|call| call.at.is_some());
    hints.extend(of_ports(&ports, app));
    let (older, known): (Vec<&Refused>, Vec<&Refused>) = known
        .into_iter()
        .partition(|call| call.errno == Some(libc::ENOSYS as u16));
    if !older.is_empty() {
        hints.push(format!(
            "{}: answered as by a kernel that does not have it, and programs go on without",
            names(&older).join(", ")
        ));
    }
    // What `default` allows needs no more than that.
    let by_default = |call: &&Refused| seccomp::default().answer(call.number, call.first).allows();
    let (of_default, known): (Vec<&Refused>, Vec<&Refused>) =
        known.into_iter().partition(by_default);
    if !of_default.is_empty() {
        hints.push(format!(
            "{}: seccomp = \"default\"",
            names(&of_default).join(", ")
        ));
    }
    let (root, known): (Vec<&Refused>, Vec<&Refused>) = known
        .into_iter()
        .partition(|call| is_named(call, &["chroot"]));
    let (in_vain, known): (Vec<&Refused>, Vec<&Refused>) = known
        .into_iter()
        .partition(|call| is_named(call, PRIVILEGED) || is_floored(call));
    let (socket, known): (Vec<&Refused>, Vec<&Refused>) = known
        .into_iter()
        .partition(|call| is_conditional(profile, call));
    if !known.is_empty() {
        let names = names(&known);
        hints.push(match profile.name.contains(['/', '.']) {
            true => format!(
                "if it does not go on without: {} in {}",
                names.join(", "),
                profile.name
            ),
            false => format!(
                "if it does not go on without: seccomp = \"{}+{}\"",
                profile.name,
                names.join("+")
            ),
        });
    }
    if !socket.is_empty() {
        let calls: Vec<String> = socket.iter().map(|call| written(call)).collect();
        hints.push(format!(
            "{} is more of a call than {} allows: a profile of its own that does, seccomp = \"FILE\"",
            calls.join(", "),
            profile.name
        ));
    }
    if !in_vain.is_empty() {
        hints.push(format!(
            "{}: no key gives an app that: switch it off in its configuration (sandbox, set-user-ID files)",
            names(&in_vain).join(", ")
        ));
    }
    let by_kernel = calls.iter().copied();
    let by_kernel = by_kernel.filter(|call| call.errno.is_none() && is_named(call, &["chroot"]));
    if !root.is_empty() || by_kernel.count() > 0 {
        hints.push(match app.ids.is_range() {
            true => format!(
                "chroot: it takes another directory for its root, which the profile {} refuses: seccomp = \"default\" has it where ids = \"range\"",
                profile.name
            ),
            false => "chroot: it takes another directory for its root: switch that off in its configuration; one that has to begin as root takes ids = \"range\", which lets it".to_owned(),
        });
    }
    let changes = |call: &&&Refused| call.errno.is_none() && !is_named(call, &["chroot"]);
    let changes: Vec<&Refused> = calls.iter().filter(changes).copied().collect();
    if !changes.is_empty() {
        hints.push(format!(
            "{}: it becomes another user, or gives files to one: leave that out of its configuration and let it be that user from its start, user = \"NAME\"; one that has to begin as root takes ids = \"range\"",
            names(&changes).join(", ")
        ));
    }
    hints
}

/// The names of calls, each once.
fn names(calls: &[&Refused]) -> Vec<String> {
    let mut names: Vec<String> = vec![];
    for call in calls {
        let name =
            seccomp::name(call.number).map_or_else(|| call.number.to_string(), str::to_owned);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Whether no profile gives it to an app.
fn is_floored(call: &Refused) -> bool {
    let all = Profile {
        name: String::new(),
        otherwise: Action::Allow,
        calls: std::collections::BTreeMap::new(),
        unknown: vec![],
    };
    let answer = seccomp::floored(all)
        .guarded()
        .answer(call.number, call.first);
    !answer.allows()
}

/// Whether the profile allows it with other arguments.
fn is_conditional(profile: &Profile, call: &Refused) -> bool {
    let rules = profile.calls.get(&call.number);
    rules.is_some_and(|rules| rules.iter().any(|rule| rule.action.allows()))
}

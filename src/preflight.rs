//! Everything that would keep a plan from working, found before anything is made, and told at once.
#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use rustix::fs::{FileType, Mode as FileMode, OFlags};

use crate::config::{Egress, Protocol, Rootfs, SECRETS, SHARED_MEMORY, UnixGrant, Volume};
use crate::firewall::Forwarding;
use crate::host::{Host, holder};
use crate::net::handed::{self, Handed, Held};
use crate::net::publish::{self, Listener};
use crate::part::secrets;
use crate::part::volumes::{self, sockets};
use crate::plan::neighbour::{self, Neighbour};
use crate::plan::reach;
use crate::plan::{AppPlan, MOST_DOORS, Mode, Plan, PublishPlan, Transport, UplinkEnd};
use crate::rootfs::{self, Enclosing};
use crate::stack::rules::{self, ExtraError};

/// One thing that is in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What.
    pub what: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

fn problem(what: impl Into<String>, hint: impl Into<String>) -> Problem {
    Problem {
        what: what.into(),
        hint: Some(hint.into()),
    }
}

/// Of ports that can't be had, so many are shown one by one.
const REFUSED_SHOWN: usize = 10;

/// There is nothing in the way.
pub struct Passed {
    /// The published ports, bound.
    pub listeners: Vec<Listener>,
    /// What could not be looked at, in whole sentences.
    pub notes: Vec<String>,
}

/// Looks for everything that is in the way of `plan`, and binds the published ports that were not `handed` over, which is the
/// only way to know that they are free.
///
/// # Errors
/// All problems, never only the first.
pub fn check(
    plan: &Plan,
    host: &Host,
    strict_limits: bool,
    handed: Vec<Handed>,
) -> Result<Passed, Vec<Problem>> {
    let strict = limits(plan).filter(|_| strict_limits);
    look(plan, None, host, strict.into_iter().collect(), handed)
}

/// As [`check`], for a stack that runs and is to have `plan`; binds the ports that `running` has not.
///
/// # Errors
/// As [`check`].
pub fn check_change(plan: &Plan, running: &Plan, host: &Host) -> Result<Passed, Vec<Problem>> {
    look(plan, Some(running), host, vec![], vec![])
}

fn look(
    plan: &Plan,
    running: Option<&Plan>,
    host: &Host,
    mut problems: Vec<Problem>,
    handed: Vec<Handed>,
) -> Result<Passed, Vec<Problem>> {
    problems.extend(plan.apps.iter().flat_map(|app| mounts(app, plan)));
    for app in &plan.apps {
        if let Err(e) = secrets::read(app, plan) {
            let what = e.to_string();
            problems.push(Problem {
                what,
                hint: e.hint(),
            });
        }
    }
    let mut notes = vec![];
    for app in &plan.apps {
        let running = running.and_then(|running| running.app(&app.name));
        problems.extend(sockets(app, running, &mut notes));
    }
    problems.extend(plan.apps.iter().flat_map(|app| root(app, plan)));
    problems.extend(extra_rules(plan));
    problems.extend(ipv6(plan, host));
    problems.extend(own_addresses(plan, host));
    problems.extend(published(plan, host));
    problems.extend(plan.apps.iter().flat_map(|app| egress(app, plan, host)));
    problems.extend(hairpins(plan, host));
    let handed = handed::fit(plan, handed).unwrap_or_else(|unfit| {
        problems.extend(unfit.into_iter().map(|unfit| Problem {
            what: unfit.to_string(),
            hint: Some(unfit.hint).filter(|hint| !hint.is_empty()),
        }));
        vec![]
    });
    for listener in &handed {
        if let Held::Handed(unit) = &listener.held {
            let (address, protocol) = listener.outside();
            let mut published = plan.published().map(|(_, publish)| publish);
            let by_dnat = |publish: &PublishPlan| {
                publish.outside() == (address, protocol) && publish.via == Transport::Dnat
            };
            if published.any(by_dnat) {
                problems.push(problem(
                    format!("{address}/{protocol} was handed over by {unit}, and via = \"dnat\" translates what comes there, also when the stack is gone and {unit} waits for the next client"),
                    "via = \"auto\" or \"relay\", or no socket unit",
                ));
            }
            notes.push(format!("{address}/{protocol} was handed over by {unit}"));
        }
    }
    let listeners = publish::bind_new(plan, running, handed).unwrap_or_else(|refused| {
        problems.extend(
            refused
                .iter()
                .take(REFUSED_SHOWN)
                .map(|(publish, e)| cannot_bind(publish, e, running, host)),
        );
        if refused.len() > REFUSED_SHOWN {
            problems.push(Problem {
                what: format!("and {} more ports", refused.len() - REFUSED_SHOWN),
                hint: None,
            });
        }
        vec![]
    });
    if problems.is_empty() {
        Ok(Passed { listeners, notes })
    } else {
        Err(problems)
    }
}

/// Grants by NAT for an address of this host's at which a stack publishes by DNAT, this one or another. Such a packet is
/// translated first, and the rule that grants it knows it no more: it would be dropped, and the app would wait.
fn hairpins(plan: &Plan, host: &Host) -> Vec<Problem> {
    let (own, others) = (Neighbour::from(plan), host.others.iter());
    let pairs = std::iter::once((&own, &own))
        .chain(others.clone().map(|other| (&own, other)))
        .chain(others.map(|other| (other, &own)));
    let mut problems = vec![];
    for (from, to) in pairs {
        if !from.leaves_by_nat() {
            continue;
        }
        let ports: Vec<(&neighbour::App, &PublishPlan)> = to
            .published()
            .filter(|(_, publish)| publish.via == Transport::Dnat)
            .collect();
        for app in &from.apps {
            // A range of addresses does not open the host, whether something is published there or not.
            for egress in app.egress.iter().filter(|egress| egress.is_single()) {
                let address = egress.to.addr();
                let meets = |publish: &PublishPlan| {
                    let listen = publish.listen.ip();
                    let there = if listen.is_unspecified() {
                        listen.is_ipv6() == address.is_ipv6() && host.has(address)
                    } else {
                        listen == address
                    };
                    there && egress.covers(publish.protocol, address, publish.listen.port())
                };
                let Some((published, publish)) = ports.iter().find(|(_, port)| meets(port)) else {
                    continue;
                };
                let whose =
                    |of: &Neighbour, app: &neighbour::App| format!("{} of {}", app.name, of.stack);
                problems.push(problem(
                    format!(
                        "egress \"{egress}\" of {} leads to {}, which is published on this host by dnat: by the host's nat that does not come through",
                        whose(from, app),
                        whose(to, published),
                    ),
                    format!(
                        "via = \"relay\" for {}, port {}: then it is a socket of the host's",
                        whose(to, published),
                        publish.listen.port()
                    ),
                ));
            }
        }
    }
    problems
}

/// Whether there is an nft to read the user's own rules.
fn extra_rules(plan: &Plan) -> Option<Problem> {
    let file = plan.rules.as_ref()?.file.clone();
    if rules::nft().is_some() {
        return None;
    }
    let missing = ExtraError::NoNft { file };
    Some(problem(
        missing.to_string(),
        missing.hint().unwrap_or_default(),
    ))
}

/// Whether a limit is held by nothing.
#[must_use]
pub fn limits(plan: &Plan) -> Option<Problem> {
    let complaint = plan
        .cgroup
        .complaint(plan.limits().map(|(_, limits)| limits))?;
    Some(problem(
        complaint,
        "cgroup version 2 with the controllers memory, pids and cpu (systemd.unified_cgroup_hierarchy=1), as an ordinary user \
         in a cgroup of one's own (`systemd-run --user --scope -p Delegate=yes lrpns up`), or no --strict-limits",
    ))
}

/// Whether an app's root can be made.
fn root(app: &AppPlan, plan: &Plan) -> Vec<Problem> {
    match &app.rootfs {
        Rootfs::BuiltinWebapp if !is_static() => vec![problem(
            "this lrpns is linked dynamically, and the root of builtin:webapp has no libraries",
            "build it as scripts/quickstart does, with -C target-feature=+crt-static, or use rootfs = \"host\"",
        )],
        Rootfs::Host | Rootfs::BuiltinWebapp => vec![],
        Rootfs::Dir(path) => {
            if let Err(e) = rootfs::Directory::open(path, plan.stacks_dir()) {
                return vec![problem(format!("rootfs of {}: {e}", app.name), e.hint())];
            }
            let missing = rootfs::MOUNT_POINTS.iter().filter_map(|point| {
                let inside = path.join(point.trim_start_matches('/'));
                let is = std::fs::symlink_metadata(&inside).is_ok_and(|meta| meta.is_dir());
                (!is).then(|| {
                    problem(
                        format!(
                            "rootfs of {}: {} has no directory {point} to mount on",
                            app.name,
                            path.display(),
                        ),
                        format!("mkdir -p {}", inside.display()),
                    )
                })
            });
            missing.collect()
        }
    }
}

/// Whether an app's volumes can be had, and these and its tmpfs mounted where they shall be.
fn mounts(app: &AppPlan, plan: &Plan) -> Vec<Problem> {
    let mut problems = vec![];
    for volume in &app.mounted() {
        match volumes::look(volume, app, plan.mode) {
            Ok((source, look)) => {
                let what = format!("volume {}", volume.host.display());
                problems.extend(off_limits(
                    &what,
                    volume,
                    look.directory.then_some(&source),
                    plan,
                ));
                problems.extend(mount_point(app, &what, &volume.path, look.directory));
            }
            Err(e) => problems.push(Problem {
                what: e.to_string(),
                hint: e.hint(),
            }),
        }
    }
    if !app.secrets.is_empty() {
        problems.extend(mount_point(app, "secrets", Path::new(SECRETS), true));
    }
    for tmpfs in &app.tmpfs {
        problems.extend(mount_point(app, "tmpfs", &tmpfs.path, true));
    }
    problems
}

/// Whether a volume shows stacks: the socket by which this one is commanded is made only after [`sockets()`] has looked, and an
/// ordinary user's app is that user to it.
fn off_limits(
    what: &str,
    volume: &Volume,
    directory: Option<&OwnedFd>,
    plan: &Plan,
) -> Option<Problem> {
    let stacks = plan.stacks_dir();
    let found = match directory {
        Some(source) => rootfs::off_limits(source, &volume.host, stacks),
        None => rootfs::file_off_limits(&volume.host, stacks),
    };
    let why = match found {
        Ok(found) => found?,
        Err(e) => e.to_string(),
    };
    let hint = format!(
        "name what the app needs of it, each directory by itself, and nothing of {}: who reaches what is there commands the stacks",
        stacks.display()
    );
    Some(problem(format!("{what}: it {why}"), hint))
}

/// Whether somebody listens on Unix sockets of the app's that it does not declare. What it has had already, while it ran, may
/// be its own. What was looked at in part is noted.
fn sockets(app: &AppPlan, running: Option<&AppPlan>, notes: &mut Vec<String>) -> Option<Problem> {
    let new = |volume: &&Volume| !running.is_some_and(|r| r.volumes.contains(volume));
    let volumes = app.volumes.iter().filter(new);
    let mut places: Vec<(PathBuf, PathBuf)> =
        volumes.map(|v| (v.host.clone(), v.path.clone())).collect();
    match &app.rootfs {
        Rootfs::Dir(root) if !running.is_some_and(|r| r.rootfs == app.rootfs) => {
            places.push((root.clone(), "/".into()));
        }
        _ => {}
    }
    let declared = |path: &Path| sockets::is_declared(path, app);
    let mut found: Vec<UnixGrant> = vec![];
    for (host, path) in &places {
        let here = sockets::find(host, path, declared);
        if here.partly {
            notes.push(format!("{}: {}", app.name, sockets::in_part(path)));
        }
        found.extend(here.sockets);
    }
    let first = found.first()?;
    let more = match found.len() - 1 {
        0 => String::new(),
        1 => " and one more".to_owned(),
        more => format!(" and {more} more"),
    };
    Some(problem(
        format!(
            "{}: somebody listens on the Unix socket {}{more}, which it would have at {}: a way out past every rule",
            app.name,
            sockets::shown(&first.host),
            sockets::shown(&first.path)
        ),
        format!(
            "if it shall: {}; else leave them out of the volume",
            sockets::line(app, &found)
        ),
    ))
}

/// Whether there is something to mount on at `path`, or it is made ([`rootfs::enclosing`]).
fn mount_point(app: &AppPlan, what: &str, path: &Path, directory: bool) -> Option<Problem> {
    // It is in our own /dev.
    if path == Path::new(SHARED_MEMORY) {
        return None;
    }
    let (root, at) = match rootfs::enclosing(path, &app.tmpfs, &app.volumes) {
        Some(Enclosing::Tmpfs) => return None,
        Some(Enclosing::Volume(volume)) => (volume.host.as_path(), volume.path.as_path()),
        // Where the root is not ours to make, or its programs are the host's, the mount point must be there.
        None => match &app.rootfs {
            Rootfs::Dir(root) => (root.as_path(), Path::new("/")),
            Rootfs::Host if rootfs::is_of_the_host(path) => (Path::new("/"), Path::new("/")),
            Rootfs::Host | Rootfs::BuiltinWebapp => return None,
        },
    };
    let within = path.strip_prefix(at).unwrap_or(path);
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let there = rustix::fs::open(root, flags, FileMode::empty())
        .ok()
        .and_then(|root| rootfs::inside(root, within).ok())
        .and_then(|point| rustix::fs::fstat(point).ok())
        .map(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
    if there == Some(directory) {
        return None;
    }
    let (kind, make) = if directory {
        ("directory", "mkdir -p")
    } else {
        ("file", "touch")
    };
    let of = match at {
        at if at == Path::new("/") => format!("the root of {}", app.name),
        at => format!("the volume at {} of {}", at.display(), app.name),
    };
    Some(problem(
        format!(
            "{what}: {of} has no {kind} {} to mount it on, or has a symbolic link there",
            path.display()
        ),
        if root == Path::new("/") {
            "mount it somewhere else, such as below /srv".to_owned()
        } else {
            format!("{make} {}", root.join(within).display())
        },
    ))
}

/// Whether this program needs no loader.
fn is_static() -> bool {
    cfg!(target_feature = "crt-static")
}

/// Whether there is IPv6 where the stack has a prefix.
fn ipv6(plan: &Plan, host: &Host) -> Option<Problem> {
    let prefix = plan.bridge.prefix6?;
    let why = host.no_ipv6.as_ref()?;
    Some(problem(
        format!("network.ipv6 = \"{prefix}\" needs IPv6 on this host: {why}"),
        "switch IPv6 on here, or use network.ipv6 = \"off\"",
    ))
}

/// Addresses that only the stack may have.
fn own_addresses(plan: &Plan, host: &Host) -> Vec<Problem> {
    let mut ours: Vec<(&str, IpAddr)> = vec![];
    ours.extend(
        plan.families()
            .iter()
            .map(|family| ("sidecar", family.bridge)),
    );
    for app in &plan.apps {
        ours.extend(app.addresses().map(|address| (app.name.as_str(), address)));
    }
    ours.into_iter()
        .filter_map(|(part, address)| {
            let (link, _) = host.addresses().find(|(_, other)| *other == address)?;
            let key = if address.is_ipv6() { "ipv6" } else { "subnet" };
            Some(problem(
                format!("the address {address} of {part} is this host's own, on {link}"),
                format!("choose another network.{key} in the configuration"),
            ))
        })
        .collect()
}

/// Whether the published ports can work the way they are planned.
fn published(plan: &Plan, host: &Host) -> Vec<Problem> {
    let mut problems = vec![];
    for range in reach::ranges(plan) {
        let publish = range.first;
        let (address, port) = (publish.listen.ip(), publish.listen.port());
        if plan.mode == Mode::Rootless && port < host.first_user_port {
            problems.push(problem(
                format!(
                    "port {port} can't be published by an ordinary user: the first is {}",
                    host.first_user_port
                ),
                "publish a higher one, or lower net.ipv4.ip_unprivileged_port_start",
            ));
        }
        if publish.via == Transport::Dnat {
            let forwarding = host.forwards(address);
            match (forwarding, plan.uplink.ends_at) {
                (Forwarding::Closed { why }, _) => problems.push(problem(
                    format!(
                        "{}: via = \"dnat\" does not work on this host: {why}",
                        range.listen()
                    ),
                    "open it, or use via = \"auto\" or \"relay\", which need no forwarding",
                )),
                (Forwarding::Open, UplinkEnd::Relay) => {
                    problems.push(problem(
                        format!(
                            "{}: via = \"dnat\" does not work where the uplink ends at the relay, as for source = \"client\" by relay, egress by relay, and a stack that was brought up with nothing forwarded",
                            publish.listen
                        ),
                        "use via = \"auto\" for both, or two stacks; a stack that runs has to be brought up anew",
                    ));
                }
                (Forwarding::Open, UplinkEnd::Host) => {}
            }
        }
        let somewhere = address.is_unspecified()
            || address.is_loopback()
            || host.has(address)
            // An ordinary user's facts are those of an empty namespace; bind(2) tells.
            || plan.mode == Mode::Rootless;
        if !somewhere {
            problems.push(problem(
                format!(
                    "{}: no link of this host has the address {address}",
                    range.listen()
                ),
                addresses_hint(host, address),
            ));
        }
    }
    problems
}

/// Whether an app can get to what it may connect to.
fn egress(app: &AppPlan, plan: &Plan, host: &Host) -> Vec<Problem> {
    let mut problems: Vec<Problem> = vec![];
    let Some(first) = app.egress.first() else {
        return problems;
    };
    let of = format!("egress \"{first}\" of {}", app.name);
    let doors = plan.doors().len();
    if doors > MOST_DOORS {
        let why = plan.egress_relay().map(|egress| egress.why.as_str());
        problems.push(problem(
            format!(
                "{of}: egress by relay takes a socket for each port, and {doors} are more than {MOST_DOORS} ({})",
                why.unwrap_or_default()
            ),
            "list the ports that are needed, such as \"tcp 192.0.2.10:443\"; as root, a host that forwards (net.ipv4.ip_forward=1) takes any number",
        ));
    }
    if plan.egress_relay().is_some() {
        return problems;
    }
    // To the host itself nothing needs to be forwarded.
    let is_host = |egress: &Egress| egress.is_single() && host.has(egress.to.addr());
    let beyond: Vec<&Egress> = app
        .egress
        .iter()
        .filter(|egress| !is_host(egress))
        .collect();
    let by = |six| {
        beyond
            .iter()
            .find(move |egress| egress.to.addr().is_ipv6() == six)
    };
    let closed = |egress: &Egress, why: &str| {
        format!(
            "egress \"{egress}\" of {}: this host does not forward to it: {why}",
            app.name
        )
    };
    if let (Some(egress), Forwarding::Closed { why }) = (by(false), &host.forwarding) {
        problems.push(problem(
            closed(egress, why),
            "open it, such as by sysctl net.ipv4.ip_forward=1; lrpns changes nothing global",
        ));
    }
    match (by(true), &host.forwarding6) {
        (Some(egress), Forwarding::Closed { why }) => {
            problems.push(problem(closed(egress, why), open6(host)));
        }
        (Some(_), Forwarding::Open) => problems.extend(no_way6(app, &beyond, host)),
        (None, _) => {}
    }
    problems
}

/// How IPv6 is forwarded, without the host losing what routers have told it: a kernel that forwards doesn't listen to
/// them, unless `accept_ra` is 2 (ip-sysctl.rst).
fn open6(host: &Host) -> String {
    let mut settings: Vec<String> = (host.net.told_by_routers.iter())
        .map(|link| format!("net.ipv6.conf.{link}.accept_ra=2"))
        .collect();
    let why = match settings.is_empty() {
        true => "",
        false => ", of which the former keeps the routes that routers tell the host",
    };
    settings.push("net.ipv6.conf.all.forwarding=1".to_owned());
    format!(
        "open it, such as by sysctl {}{why}; lrpns changes nothing global",
        settings.join(" ")
    )
}

/// A host that forwards, and so doesn't hear the routers that would have told it the way.
fn no_way6(app: &AppPlan, beyond: &[&Egress], host: &Host) -> Option<Problem> {
    let deaf = host.deaf_to_routers.first()?;
    let has_way = |to: &IpNet| {
        let mut routes = host.net.routes6.iter();
        routes.any(|route| IpNet::V6(*route).contains(to) || to.contains(&IpNet::V6(*route)))
    };
    let egress = beyond
        .iter()
        .find(|egress| egress.to.addr().is_ipv6() && !has_way(&egress.to))?;
    Some(problem(
        format!(
            "egress \"{egress}\" of {}: this host has no route to it, and its link {deaf} does not listen to routers, since the host forwards",
            app.name
        ),
        format!(
            "add a route, or sysctl net.ipv6.conf.{deaf}.accept_ra=2; lrpns changes nothing global"
        ),
    ))
}

/// Which addresses of the same family there are instead.
fn addresses_hint(host: &Host, wanted: IpAddr) -> String {
    let mut known: Vec<IpAddr> = host
        .addresses()
        .map(|(_, address)| address)
        .filter(|address| address.is_ipv6() == wanted.is_ipv6())
        .collect();
    known.sort();
    known.dedup();
    let known: Vec<String> = known.iter().map(ToString::to_string).collect();
    let all = if wanted.is_ipv6() { "[::]" } else { "0.0.0.0" };
    match known.as_slice() {
        [] => format!("{all} is all of them; this host has none"),
        known => format!("{all} is all of them; this host has {}", known.join(", ")),
    }
}

fn cannot_bind(
    publish: &PublishPlan,
    e: &io::Error,
    running: Option<&Plan>,
    host: &Host,
) -> Problem {
    let address = publish.listen;
    let udp = match publish.protocol {
        Protocol::Tcp => "",
        Protocol::Udp => "/udp",
    };
    let what = format!("listen on {address}{udp}: {e}");
    match e.kind() {
        io::ErrorKind::AddrInUse => {
            let other = host.others.iter().find(|other| {
                other.published().any(|(_, theirs)| {
                    theirs.protocol == publish.protocol
                        && theirs.listen.port() == address.port()
                        && theirs.listen.is_ipv6() == address.is_ipv6()
                        && (theirs.listen.ip() == address.ip()
                            || theirs.listen.ip().is_unspecified()
                            || address.ip().is_unspecified())
                })
            });
            let own = running.and_then(|running| {
                let mut published = running.published();
                published.find(|(_, running)| publish::overlap(running, publish))
            });
            if let Some((_, publish)) = own {
                let listen = publish.listen;
                return problem(
                    what,
                    match publish.protocol {
                        Protocol::Tcp => format!("the stack itself listens on {listen}"),
                        Protocol::Udp => format!(
                            "the stack itself has {listen}/udp, and what is sent to a socket of UDP waits there, read or not, so a port of UDP can't be taken back: apply without it first, then with it where it is to be"
                        ),
                    },
                );
            }
            if let Some(other) = other {
                let stack = &other.stack;
                return problem(
                    what,
                    format!("the stack {stack} publishes it: lrpns down {stack}"),
                );
            }
            match holder::who_has(address, publish.protocol) {
                Some((who, hint)) => problem(format!("{what}: {who}"), hint),
                None => problem(
                    what,
                    format!(
                        "{} shows who has it, if it is not free again by now",
                        holder::shown_by(address.port(), publish.protocol)
                    ),
                ),
            }
        }
        io::ErrorKind::PermissionDenied => problem(
            what,
            "ports below 1024 need root, or net.ipv4.ip_unprivileged_port_start",
        ),
        _ if e.raw_os_error() == Some(libc::EMFILE) => problem(
            what,
            "each published port takes a descriptor: raise the limit, as with `ulimit -Hn 65536` or LimitNOFILE=",
        ),
        _ => Problem { what, hint: None },
    }
}

/// The problems as one message, and the first hint; further ones follow their problem.
#[must_use]
pub fn describe(stack: &str, problems: &[Problem]) -> crate::commands::failure::Failure {
    describe_as(&format!("{stack} can't be brought up"), problems)
}

/// As [`describe`], with what can't be done.
#[must_use]
pub fn describe_as(what: &str, problems: &[Problem]) -> crate::commands::failure::Failure {
    let mut lines = vec![];
    for Problem { what, hint } in problems {
        lines.push(what.clone());
        if problems.len() > 1 {
            lines.extend(hint.as_ref().map(|hint| format!("  hint: {hint}")));
        }
    }
    let failure =
        crate::commands::failure::Failure::unable(format!("{what}: {}", lines.join("\n")));
    if problems.iter().any(|problem| names_tmp(&problem.what)) && has_own_tmp() {
        return failure.hint(OWN_TMP);
    }
    match problems {
        [
            Problem {
                hint: Some(hint), ..
            },
        ] => failure.hint(hint),
        _ => failure,
    }
}

/// What to do where something is looked for in a /tmp that systemd has made for this unit.
const OWN_TMP: &str = "/tmp and /var/tmp of this unit are its own, and empty when it starts (PrivateTmp=yes): keep the files elsewhere, or say PrivateTmp=no in a \
     drop-in (systemctl edit)";

/// Whether something below /tmp or /var/tmp is the matter.
fn names_tmp(what: &str) -> bool {
    let mut words = what.split_whitespace();
    words.any(|word| word.starts_with("/tmp/") || word.starts_with("/var/tmp/"))
}

fn has_own_tmp() -> bool {
    // Where that can't be read the problem has the hint that it has anywhere.
    std::fs::read_to_string("/proc/self/mountinfo").is_ok_and(|mounts| is_own_tmp(&mounts))
}

/// Whether /tmp is a directory that systemd has made for one unit: the root of that mount says so (proc_pid_mountinfo(5)).
fn is_own_tmp(mountinfo: &str) -> bool {
    mountinfo.lines().any(|line| {
        let mut fields = line.split(' ').skip(3);
        let root = fields.next().unwrap_or_default();
        root.contains("/systemd-private-") && fields.next() == Some("/tmp")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tmp_that_systemd_has_made_for_a_unit_is_told_from_the_hosts() {
        let units = "612 600 254:1 /tmp/systemd-private-4c1f-lrpns@one.service-Yx2/tmp /tmp rw,nosuid - ext4 /dev/vda1 rw\n";
        assert!(is_own_tmp(units));
        // One that is mounted there by itself: a path of its own begins at its root.
        assert!(is_own_tmp(
            &units.replace("/tmp/systemd-private", "/systemd-private")
        ));
        assert!(!is_own_tmp(&units.replace(" /tmp rw", " /mnt rw")));
        assert!(!is_own_tmp(
            "31 24 0:28 / /tmp rw,nosuid,nodev shared:13 - tmpfs tmpfs rw\n"
        ));
        assert!(names_tmp(
            "volume /tmp/data: open: No such file or directory"
        ));
        assert!(names_tmp("rootfs of app: /var/tmp/root is not a directory"));
        assert!(!names_tmp(
            "tmpfs: the root of app has no directory /tmp to mount it on"
        ));
    }
}

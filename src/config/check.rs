//! What can only be judged by looking at several values at once.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use ipnet::{Ipv4Net, Ipv6Net};

use super::values::{self, ValueError};
use super::{
    App, Egress, Protocol, Publish, Rootfs, SECRETS, Secret, Source, Tmpfs, UnixGrant, Until,
    Volume,
};

/// A value and the bytes of the file that it stands in.
#[derive(Debug, Clone)]
pub(super) struct Placed<T> {
    pub(super) value: T,
    pub(super) span: Range<usize>,
}

/// How many hosts the subnet has, network and broadcast address not counted.
fn hosts(subnet: Ipv4Net) -> u64 {
    (1_u64 << (32 - u32::from(subnet.prefix_len()))).saturating_sub(2)
}

/// The subnet has an address for the sidecar and each app.
pub(super) fn room(subnet: Ipv4Net, apps: usize) -> Result<(), ValueError> {
    let hosts = hosts(subnet);
    if (apps as u64) < hosts {
        return Ok(());
    }
    Err(ValueError::form(
        format!(
            "`{subnet}` has {hosts} addresses, the sidecar and {apps} apps need {}",
            apps + 1
        ),
        "a wider subnet",
        "subnet = \"172.18.0.0/24\"",
    ))
}

/// The prefix has an address for the sidecar and each app; its first is the routers' anycast address (RFC 4291, 2.6.1).
pub(super) fn room6(prefix: Ipv6Net, apps: usize) -> Result<(), ValueError> {
    let bits = u32::from(128 - prefix.prefix_len());
    let hosts = 1_u128.checked_shl(bits).map_or(u128::MAX, |all| all - 1);
    if (apps as u128) < hosts {
        return Ok(());
    }
    Err(ValueError::form(
        format!(
            "`{prefix}` has {hosts} addresses, the sidecar and {apps} apps need {}",
            apps + 1
        ),
        "a wider prefix",
        "ipv6 = \"fd00:18::/64\"",
    ))
}

/// The error for what is published at an IPv6 address of the host's without a prefix for the stack.
pub(super) fn no_prefix(address: Ipv6Addr) -> ValueError {
    ValueError::form(
        format!("[{address}] is an IPv6 address, and the stack's IPv6 is off"),
        "an IPv4 address, or `ipv6` with a prefix in the file's `[network]`",
        "ipv6 = \"fd00:18::/64\"",
    )
}

/// The error for what an app connects to by IPv6 in a stack without a prefix.
pub(super) fn no_prefix_for(egress: Egress) -> ValueError {
    ValueError::form(
        format!("`{egress}` is IPv6, and the stack's IPv6 is off"),
        "an IPv4 destination, or `ipv6` with a prefix in the file's `[network]`",
        "ipv6 = \"fd00:18::/64\"",
    )
}

/// One address of the stack. `sidecar` is the sidecar's if it was written down, `taken` are those before this one.
pub(super) fn address<'t>(
    address: Ipv4Addr,
    owner: &str,
    subnet: Ipv4Net,
    sidecar: Option<Ipv4Addr>,
    taken: impl IntoIterator<Item = (&'t str, Ipv4Addr)>,
) -> Result<(), ValueError> {
    let first = Ipv4Addr::from(u32::from(subnet.network()).saturating_add(1));
    let message = if !subnet.contains(&address) {
        format!("{address} is not in the subnet {subnet}")
    } else if address == subnet.network() {
        format!("{address} is the subnet's own address")
    } else if address == subnet.broadcast() {
        format!("{address} is the subnet's broadcast address")
    } else if let Some((other, _)) = taken.into_iter().find(|(_, other)| *other == address) {
        format!("{address} is also the address of {other}")
    } else if sidecar.is_none() && address == first && owner != "the sidecar" {
        format!(
            "{address} is the subnet's first address, which is the sidecar's when it has no other"
        )
    } else {
        return Ok(());
    };
    Err(ValueError::form(
        message,
        "an address of the subnet that nobody else has",
        "address = \"172.18.0.23\"",
    ))
}

/// Whether two published ports can't be listened on at once.
pub(super) fn collide(a: Publish, b: Publish) -> bool {
    // 0.0.0.0 stands for the addresses of IPv4 and `::` for those of IPv6, which never share a socket.
    let any = a.address.is_ipv6() == b.address.is_ipv6()
        && (a.address.is_unspecified() || b.address.is_unspecified());
    let end = |of: Publish| u32::from(of.host_port) + u32::from(of.count);
    let meet = u32::from(a.host_port) < end(b) && u32::from(b.host_port) < end(a);
    a.protocol == b.protocol && meet && (any || a.address == b.address)
}

/// No more ports than the start has room for: each is a socket on the host and three elements of the sidecar's rules.
pub(super) fn ports(all: impl IntoIterator<Item = Publish>) -> Result<(), ValueError> {
    const MOST: u32 = values::MOST_PORTS as u32;
    let count: u32 = all
        .into_iter()
        .map(|publish| u32::from(publish.count))
        .sum();
    if count <= MOST {
        return Ok(());
    }
    Err(ValueError::form(
        format!("{count} ports are published"),
        "at most 4096 in a stack: each is a socket of the host's, held open, and an element of three maps",
        "0.0.0.0:8000-8010:8000-8010/tcp",
    ))
}

/// The error for `later`, which collides with `earlier`.
pub(super) fn collision(earlier: Publish, later: Publish, place: &str) -> ValueError {
    ValueError::form(
        format!(
            "{} is published already, by {} {place}",
            std::net::SocketAddr::new(later.address, later.host_port),
            std::net::SocketAddr::new(earlier.address, earlier.host_port)
        ),
        "every port of an address once; 0.0.0.0 stands for all addresses",
        values::PUBLISH_EXAMPLE,
    )
}

/// The error for an app that is handed its sockets and has none to be handed.
pub(super) fn no_socket() -> ValueError {
    ValueError::form(
        "an app with `via = \"socket\"` has no network but the sockets of its published ports, and this one publishes none"
            .to_owned(),
        "`publish` with a port of TCP",
        "publish = [\"127.0.0.1:8080:8080\"]",
    )
}

/// No more than a message to the stage has descriptors for, beside the volumes and secrets.
const MOST_HANDED: u32 = 32;

/// What is published by sockets that the app is handed is TCP, and not many.
pub(super) fn handed(publish: Publish, earlier: &[Publish]) -> Result<(), ValueError> {
    let count = |publish: &Publish| u32::from(publish.count);
    let all: u32 = earlier.iter().chain([&publish]).map(count).sum();
    if all > MOST_HANDED {
        return Err(ValueError::form(
            format!(
                "an app with `via = \"socket\"` is handed at most {MOST_HANDED} sockets, and this is more"
            ),
            "fewer ports, or `via = \"auto\"`",
            "publish = [\"127.0.0.1:8080:8080\"]",
        ));
    }
    if publish.protocol == Protocol::Tcp {
        return Ok(());
    }
    Err(ValueError::form(
        "`via = \"socket\"` hands over listening sockets, which UDP has not".to_owned(),
        "a port of TCP, or `via = \"auto\"`",
        "publish = [\"127.0.0.1:8080:8080\"]",
    ))
}

/// The error for `egress` or `connect` of an app that is handed its sockets.
pub(super) fn no_network(key: &str) -> ValueError {
    ValueError::form(
        format!("`{key}` needs a network, and an app with `via = \"socket\"` has none"),
        "`via = \"auto\"`, or an app that connects to nothing",
        "via = \"auto\"",
    )
}

/// The error for what others connect to at an app that is handed its sockets.
pub(super) fn not_to_be_reached(app: &str) -> ValueError {
    ValueError::form(
        format!(
            "`{app}` has no network by which other apps could reach it: its `via` is \"socket\""
        ),
        "an app with `via = \"auto\"`, \"dnat\" or \"relay\"",
        "connect = [\"db:5432\"]",
    )
}

/// The error for another `source` than `client` of an app that is handed its sockets.
pub(super) fn sees_its_clients(source: Source) -> ValueError {
    let place = match source {
        Source::Localhost => "it has no link from which they could be taken to its loopback",
        _ => "it has no link on which the sidecar could put its own address in their place",
    };
    ValueError::form(
        format!("an app with `via = \"socket\"` sees its clients: {place}"),
        "`source = \"client\"`, or no `source`",
        "source = \"client\"",
    )
}

/// The error for an IPv6 address at which an app with `source = "localhost"` is published.
pub(super) fn no_localhost6() -> ValueError {
    ValueError::form(
        "`source = \"localhost\"` takes clients to 127.0.0.1, and Linux takes nobody to ::1 who comes by a link".to_owned(),
        "an IPv4 address",
        "publish = [\"127.0.0.1:8080:8080\"]",
    )
}

/// The error for `replace = "rolling"` of an app that is handed its sockets.
pub(super) fn waits_in_the_backlog() -> ValueError {
    ValueError::form(
        "an app with `via = \"socket\"` need not be there twice: who connects while it starts again waits in the socket's backlog"
            .to_owned(),
        "`replace = \"stop-first\"`, or no `replace`",
        "replace = \"stop-first\"",
    )
}

/// The error for a health check by TCP of an app that is handed its sockets.
pub(super) fn no_port_within() -> ValueError {
    ValueError::form(
        "a check by `http` or `tcp` connects within the app, and one with `via = \"socket\"` has no network there".to_owned(),
        "a `command`",
        "health = { command = [\"/usr/bin/test\", \"-e\", \"/tmp/ready\"] }",
    )
}

/// The program can be in the root.
pub(super) fn program(program: &str, rootfs: Option<&Rootfs>) -> Result<(), ValueError> {
    values::program(program)?;
    if rootfs == Some(&Rootfs::BuiltinWebapp) && program != "/webapp" {
        return Err(ValueError::form(
            "there is no other program than `/webapp` in `builtin:webapp`".to_owned(),
            "/webapp, or another rootfs",
            "command = [\"/webapp\"]",
        ));
    }
    Ok(())
}

/// No more volumes than a message to the stage has descriptors for.
const MOST_VOLUMES: usize = 64;

/// One volume, given those before it and the app's tmpfs. One mount may be in another, but not at its place.
pub(super) fn volume(
    volume: &Volume,
    earlier: &[Volume],
    tmpfs: &[Tmpfs],
) -> Result<(), ValueError> {
    let said = |message: String| Err(ValueError::form(message, "", ""));
    if earlier.len() == MOST_VOLUMES {
        return said(format!("there are more than {MOST_VOLUMES} volumes"));
    }
    let shown = values_path(&volume.path);
    if tmpfs.iter().any(|tmpfs| tmpfs.path == volume.path) {
        return said(format!("a volume and a tmpfs are both to be at {shown}"));
    }
    if earlier.iter().any(|other| other.path == volume.path) {
        return said(format!("two volumes are to be at {shown}"));
    }
    Ok(())
}

/// One entry of `sockets`, given those before it and the app's other mounts.
pub(super) fn socket(
    socket: &UnixGrant,
    earlier: &[UnixGrant],
    volumes: &[Volume],
    tmpfs: &[Tmpfs],
) -> Result<(), ValueError> {
    let said = |message: String| Err(ValueError::form(message, "", ""));
    let shown = values_path(&socket.path);
    if earlier.iter().any(|other| other.path == socket.path) {
        return said(format!("two entries of sockets are to be at {shown}"));
    }
    if socket.is_in(volumes) {
        return Ok(());
    }
    let mounted = earlier.iter().filter(|other| !other.is_in(volumes)).count();
    if volumes.len() + mounted >= MOST_VOLUMES {
        return said(format!(
            "there are more than {MOST_VOLUMES} volumes and sockets"
        ));
    }
    let other = if volumes.iter().any(|volume| volume.path == socket.path) {
        "a volume of something else"
    } else if tmpfs.iter().any(|tmpfs| tmpfs.path == socket.path) {
        "a tmpfs"
    } else {
        return Ok(());
    };
    said(format!(
        "{other} and an entry of sockets are both to be at {shown}"
    ))
}

/// No more secrets than an app needs, each of which is a descriptor while it is started.
const MOST_SECRETS: usize = 32;

/// One secret, given those before it and the app's other mounts.
pub(super) fn secret(
    secret: &Secret,
    earlier: &[Secret],
    volumes: &[Volume],
    tmpfs: &[Tmpfs],
) -> Result<(), ValueError> {
    let said = |message: String| Err(ValueError::form(message, "", ""));
    if earlier.len() == MOST_SECRETS {
        return said(format!("there are more than {MOST_SECRETS} secrets"));
    }
    if earlier.iter().any(|other| other.name == secret.name) {
        return said(format!("two secrets are to be called `{}`", secret.name));
    }
    let mut paths = volumes
        .iter()
        .map(|volume| &volume.path)
        .chain(tmpfs.iter().map(|tmpfs| &tmpfs.path));
    if paths.any(|path| path.starts_with(SECRETS)) {
        return said(format!("{SECRETS} is where the app's secrets are"));
    }
    Ok(())
}

/// Another app of the same file, whose apps have these names.
pub(super) fn other_app(name: &str, own: &str, names: &[&str]) -> Result<(), ValueError> {
    let said = |message: String| Err(ValueError::form(message, "", ""));
    let others: Vec<&str> = names
        .iter()
        .copied()
        .filter(|other| *other != own)
        .collect();
    if others.contains(&name) {
        return Ok(());
    }
    if name == own {
        return said(format!("`{name}` is this app itself"));
    }
    match super::errors::nearest(name, others.iter().copied()) {
        Some(near) => said(format!(
            "there is no app `{name}` in this file, the nearest is `{near}`"
        )),
        None => said(format!("there is no app `{name}` in this file")),
    }
}

/// An app can get as far as those who come after it want.
pub(super) fn gets_there(app: &App, until: Until) -> Result<(), ValueError> {
    let name = &app.name;
    let message = match until {
        Until::Started => return Ok(()),
        Until::Done if app.job => return Ok(()),
        Until::Healthy if app.health.is_some() => return Ok(()),
        Until::Done => format!("`{name}` is never done: it is no job"),
        Until::Healthy => format!("`{name}` is never known to be healthy: it has no `health`"),
    };
    let (expected, example) = match until {
        Until::Done => ("a job, or \"started\"", "job = true"),
        _ => ("an app with `health`, or \"started\"", "after = [\"db\"]"),
    };
    Err(ValueError::form(message, expected, example))
}

fn values_path(path: &std::path::Path) -> String {
    super::errors::quoted(&path.to_string_lossy())
}

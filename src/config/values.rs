//! The forms of single values: text in, a checked value or a [`ValueError`] out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::sys::signal::Signal;

use crate::config::clients::Rate;
use crate::confine::seccomp as profiles;
use crate::names::PartName;

use super::errors::{Place, Problem, escaped, nearest, quoted};
use super::{
    Account, Connect, Egress, IdCount, OnUnhealthy, Protocol, Publish, RecordTo, Replace, Restart,
    Rootfs, Secret, SecretFrom, Source, StopSignal, Tmpfs, TrafficLog, UnixGrant, Until, Via,
    Volume,
};

/// Why a value was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// The value has not the form that it must have.
    #[error("{message}; expected {expected}, for example `{example}`")]
    Form {
        /// What is wrong.
        message: String,
        /// What would be right; empty where the key says it.
        expected: &'static str,
        /// Something right; empty where the key says it.
        example: &'static str,
    },
    /// The value is right, but what it asks for does not exist yet.
    #[error("not supported yet: {value}; expected {now}")]
    Later {
        /// The value.
        value: String,
        /// What is supported now.
        now: &'static str,
    },
}

impl ValueError {
    pub(super) fn form(message: String, expected: &'static str, example: &'static str) -> Self {
        Self::Form {
            message,
            expected,
            example,
        }
    }

    /// A form error whose key knows what is expected.
    fn said(message: impl Into<String>) -> Self {
        Self::form(message.into(), "", "")
    }

    fn later(value: &str, now: &'static str) -> Self {
        let value = quoted(value);
        Self::Later { value, now }
    }

    /// The same with what was expected, where that was not said yet.
    pub(super) fn saying(self, expected: &'static str, example: &'static str) -> Self {
        match self {
            Self::Form {
                message,
                expected: "",
                ..
            } => Self::form(message, expected, example),
            said => said,
        }
    }

    /// The same as a problem at `place`.
    pub(super) fn problem(self, place: Place) -> Problem {
        let (message, expected, example) = match self {
            Self::Form {
                message,
                expected,
                example,
            } => (message, expected, example),
            Self::Later { value, now } => (format!("not supported yet: {value}"), now, ""),
        };
        Problem {
            place,
            message,
            label: String::new(),
            expected: expected.to_owned(),
            example: example.to_owned(),
        }
    }
}

/// One of `words`, or an error that names the nearest.
fn one_of<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, ValueError> {
    let found = words.iter().find(|(word, _)| *word == text);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let near = nearest(text, words.iter().map(|(word, _)| *word));
        let near = near.map_or(String::new(), |near| format!(", the nearest is `{near}`"));
        ValueError::said(format!("{} is unknown{near}", quoted(text)))
    })
}

/// A number without sign, blanks or leading zeros.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits || (text.len() > 1 && text.starts_with('0')) {
        return None;
    }
    text.parse().ok()
}

pub(super) fn port(text: &str) -> Result<u16, ValueError> {
    let number =
        number(text).ok_or_else(|| ValueError::said(format!("{} is no port", quoted(text))))?;
    match u16::try_from(number) {
        Ok(0) => Err(ValueError::said("port 0 does not exist")),
        Ok(port) => Ok(port),
        Err(_) => Err(ValueError::said(format!("port {number} is above 65535"))),
    }
}

/// A port, or the first and the last of a range.
fn ports(text: &str) -> Result<(u16, u16), ValueError> {
    let Some((first, last)) = text.split_once('-') else {
        let port = port(text)?;
        return Ok((port, port));
    };
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err(ValueError::said(format!(
            "the range {} ends before it begins",
            quoted(text)
        )));
    }
    Ok((first, last))
}

/// What `publish` looks like.
pub(super) const PUBLISH: &str = "[ADDRESS:]HOST_PORT:APP_PORT[/tcp|/udp], ports from 1 to 65535 or ranges of them; without ADDRESS it is 127.0.0.1";
/// No more ports in one stack.
pub(super) const MOST_PORTS: u16 = 4096;
/// A right `publish`.
pub(super) const PUBLISH_EXAMPLE: &str = "0.0.0.0:5000:5000/tcp";

impl FromStr for Publish {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        publish(text).map_err(|error| error.saying(PUBLISH, PUBLISH_EXAMPLE))
    }
}

fn publish(text: &str) -> Result<Publish, ValueError> {
    let (rest, protocol) = match text.split_once('/') {
        None => (text, Protocol::Tcp),
        Some((rest, protocol)) => {
            let words = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
            (rest, one_of(protocol, &words)?)
        }
    };
    let (address, rest) = publish_address(rest)?;
    let Some((host, app)) = rest.split_once(':') else {
        return Err(ValueError::said(format!(
            "{} has only one port, it needs the host's and the app's",
            quoted(text)
        )));
    };
    let (host, app) = (ports(host)?, ports(app)?);
    if host.1 - host.0 != app.1 - app.0 {
        return Err(ValueError::said(format!(
            "the two ranges of {} have not the same length",
            quoted(text)
        )));
    }
    if host.1 - host.0 >= MOST_PORTS {
        return Err(ValueError::said(format!(
            "the range {}-{} has more than {MOST_PORTS} ports, each of which is a socket of the host's, held open",
            host.0, host.1
        )));
    }
    Ok(Publish {
        address,
        host_port: host.0,
        app_port: app.0,
        count: host.1 - host.0 + 1,
        protocol,
    })
}

/// Takes the address off the front of `text`; two fields are ports, three begin with an address.
fn publish_address(text: &str) -> Result<(IpAddr, &str), ValueError> {
    let no_address = |text: &str| ValueError::said(format!("{} is no address", quoted(text)));
    if let Some(inside) = text.strip_prefix('[') {
        let (address, rest) = inside.split_once("]:").ok_or_else(|| no_address(text))?;
        let address: Ipv6Addr = address.parse().map_err(|_| no_address(address))?;
        let why_not = if address.is_multicast() {
            "is for multicast"
        } else if address.is_unicast_link_local() {
            "is link-local, which means nothing without its link"
        } else if address.to_ipv4_mapped().is_some() {
            "is an IPv4 address, which is written as such"
        } else {
            return Ok((address.into(), rest));
        };
        return Err(ValueError::said(format!(
            "{address} is not an address to listen on: it {why_not}"
        )));
    }
    match text.matches(':').count() {
        0 | 1 => Ok((Ipv4Addr::LOCALHOST.into(), text)),
        2 => {
            let (address, rest) = text.split_once(':').expect("two colons were counted");
            let address: Ipv4Addr = address.parse().map_err(|_| no_address(address))?;
            if address.is_multicast() || address.is_broadcast() {
                return Err(ValueError::said(format!(
                    "{address} is not an address to listen on"
                )));
            }
            Ok((address.into(), rest))
        }
        _ => Err(ValueError::said(format!(
            "{} has too many colons (an IPv6 address stands in brackets)",
            quoted(text)
        ))),
    }
}

/// `network.subnet`.
pub(super) fn subnet(text: &str) -> Result<Ipv4Net, ValueError> {
    let subnet: Ipv4Net = text.parse().map_err(|_| {
        let prefixless = text.parse::<Ipv4Addr>().is_ok();
        ValueError::said(if prefixless {
            format!("{} has no prefix length", quoted(text))
        } else {
            format!("{} is no IPv4 subnet", quoted(text))
        })
    })?;
    if subnet.addr() != subnet.network() {
        return Err(ValueError::said(format!(
            "`{subnet}` is an address within the subnet `{}`",
            subnet.trunc()
        )));
    }
    if !(8..=30).contains(&subnet.prefix_len()) {
        return Err(ValueError::said(format!(
            "the prefix length {} is not between 8 and 30",
            subnet.prefix_len()
        )));
    }
    let first = subnet.network();
    if first.octets()[0] == 0 || first.is_loopback() || first.octets()[0] >= 224 {
        return Err(ValueError::said(format!(
            "`{subnet}` is reserved (0/8, 127/8, 224/3), no app can have an address of it"
        )));
    }
    Ok(subnet)
}

/// `sidecar.address` and `app.address`.
pub(super) fn address(text: &str) -> Result<Ipv4Addr, ValueError> {
    text.parse()
        .map_err(|_| ValueError::said(format!("{} is no IPv4 address", quoted(text))))
}

/// `network.ipv6`; `None` is `off`.
pub(super) fn ipv6(text: &str) -> Result<Option<Ipv6Net>, ValueError> {
    if text == "off" {
        return Ok(None);
    }
    let prefix: Ipv6Net = text.parse().map_err(|_| {
        let lengthless = text.parse::<Ipv6Addr>().is_ok();
        ValueError::said(if lengthless {
            format!("{} has no prefix length", quoted(text))
        } else {
            format!("{} is neither `off` nor an IPv6 prefix", quoted(text))
        })
    })?;
    if prefix.addr() != prefix.network() {
        return Err(ValueError::said(format!(
            "`{prefix}` is an address within the prefix `{}`",
            prefix.trunc()
        )));
    }
    if !(8..=126).contains(&prefix.prefix_len()) {
        return Err(ValueError::said(format!(
            "the prefix length {} is not between 8 and 126",
            prefix.prefix_len()
        )));
    }
    // RFC 4291, 2.4; below ::/8 are the unspecified address, loopback, IPv4-mapped ones and NAT64's.
    let reserved =
        |first, length| Ipv6Net::new_assert(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0), length);
    for (reserved, why) in [
        (reserved(0, 8), "it has loopback and IPv4-mapped addresses"),
        (reserved(0xfe80, 10), "it is for link-local addresses"),
        (reserved(0xff00, 8), "it is for multicast"),
        (super::UPLINK_POOL6, "lrpns takes its uplinks from it"),
    ] {
        if reserved.contains(&prefix) || prefix.contains(&reserved) {
            return Err(ValueError::said(format!(
                "`{prefix}` meets {reserved}: {why}, and no app can have an address of it"
            )));
        }
    }
    Ok(Some(prefix))
}

/// `sidecar.log`.
pub(super) fn log(text: &str) -> Result<TrafficLog, ValueError> {
    one_of(
        text,
        &[
            ("off", TrafficLog::Off),
            ("connections", TrafficLog::Connections),
            ("packets", TrafficLog::Packets),
        ],
    )
}

/// `log.to`.
pub(super) fn record_to(text: &str) -> Result<RecordTo, ValueError> {
    one_of(
        text,
        &[
            ("auto", RecordTo::Auto),
            ("file", RecordTo::File),
            ("journal", RecordTo::Journal),
            ("both", RecordTo::Both),
            ("off", RecordTo::Off),
        ],
    )
}

/// `log.dir`.
pub(super) fn directory(text: &str) -> Result<PathBuf, ValueError> {
    inner_path(text)
}

/// `log.size`.
pub(super) fn record_size(text: &str) -> Result<u64, ValueError> {
    let size = size(text)?;
    if size < 64 << 10 {
        return Err(ValueError::said(format!(
            "{} is less than 64K, in which there is no room for lines of every part",
            quoted(text)
        )));
    }
    Ok(size)
}

/// `log.age`.
pub(super) fn age(text: &str) -> Result<Duration, ValueError> {
    let units = [("m", 60), ("h", 3600), ("d", 24 * 3600)];
    let unit = units
        .iter()
        .find_map(|(unit, seconds)| Some((number(text.strip_suffix(unit)?)?, *seconds)));
    match unit.and_then(|(count, unit)| count.checked_mul(unit)) {
        Some(seconds @ 1..=315_360_000) => Ok(Duration::from_secs(seconds)),
        Some(_) => Err(ValueError::said(format!(
            "{} is not between 1m and 3650d",
            quoted(text)
        ))),
        None => Err(ValueError::said(format!("{} is no time", quoted(text)))),
    }
}

/// `sidecar.rules`; a relative path is taken from `base`, which is absolute.
pub(super) fn rules(text: &str, base: &Path) -> Result<PathBuf, ValueError> {
    if text.is_empty() {
        return Err(ValueError::said("a path can't be empty"));
    }
    Ok(base.join(text))
}

const ROOTFS_NOW: &str = "builtin:webapp, host or dir:PATH";

/// `rootfs`; a relative path is taken from `base`, which is absolute.
pub(super) fn rootfs(text: &str, base: &Path) -> Result<Rootfs, ValueError> {
    const KINDS: [&str; 7] = [
        "builtin",
        "host",
        "dir",
        "oci",
        "oci-archive",
        "docker-archive",
        "image",
    ];
    let (kind, rest) = match text.split_once(':') {
        Some((kind, rest)) => (kind, Some(rest)),
        None => (text, None),
    };
    match (kind, rest) {
        ("builtin", Some("webapp")) => Ok(Rootfs::BuiltinWebapp),
        ("builtin", Some(other)) => Err(ValueError::said(format!(
            "nothing built in is called {}, the nearest is `builtin:webapp`",
            quoted(other)
        ))),
        ("host", None) => Ok(Rootfs::Host),
        ("host", Some(_)) => Err(ValueError::said("`host` takes no path")),
        (kind, Some("")) | (kind, None) if KINDS.contains(&kind) => Err(ValueError::said(format!(
            "`{kind}:` without what follows it"
        ))),
        ("dir", Some(path)) => {
            let path = base.join(path);
            let names = path.components();
            if !names.into_iter().any(|c| matches!(c, Component::Normal(_))) {
                return Err(ValueError::said(
                    "the host's whole root can't be an app's; `host` shows it the programs alone",
                ));
            }
            Ok(Rootfs::Dir(path))
        }
        (kind, Some(_)) if KINDS.contains(&kind) => Err(ValueError::later(text, ROOTFS_NOW)),
        (kind, _) => {
            let near = match nearest(kind, KINDS) {
                Some(near) => format!(", the nearest is `{near}`"),
                None if text.contains('/') => {
                    format!(
                        "; a directory is written `dir:{}`",
                        super::errors::escaped(text)
                    )
                }
                None => String::new(),
            };
            Err(ValueError::said(format!(
                "{} is unknown{near}",
                quoted(kind)
            )))
        }
    }
}

/// `seccomp`, before a file is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seccomp {
    Default,
    Strict,
    With(Box<profiles::Profile>),
    File(PathBuf),
}

/// `seccomp`; a relative path is taken from `base`, which is absolute. A path has a slash or a dot, a word has not.
pub(super) fn seccomp(text: &str, base: &Path) -> Result<Seccomp, ValueError> {
    match text {
        "default" => Ok(Seccomp::Default),
        "strict" => Ok(Seccomp::Strict),
        path if path.contains(['/', '.']) => Ok(Seccomp::File(base.join(path))),
        more if more.contains('+') => {
            let mut words = more.split('+').map(str::trim);
            let words_of_base = [
                ("default", profiles::default as fn() -> _),
                ("strict", profiles::strict),
            ];
            let profile = one_of(words.next().unwrap_or_default(), &words_of_base)?();
            let with = profiles::with(profile, &words.collect::<Vec<_>>());
            with.map(|profile| Seccomp::With(Box::new(profile)))
                .map_err(ValueError::said)
        }
        word => one_of(word, &[("default", ()), ("strict", ())]).map(|()| Seccomp::Default),
    }
}

/// `via`.
pub(super) fn via(text: &str) -> Result<Via, ValueError> {
    let words = [
        ("auto", Via::Auto),
        ("dnat", Via::Dnat),
        ("relay", Via::Relay),
        ("socket", Via::Socket),
    ];
    one_of(text, &words)
}

/// `source`.
pub(super) fn source(text: &str) -> Result<Source, ValueError> {
    let words = [
        ("sidecar", Source::Sidecar),
        ("client", Source::Client),
        ("localhost", Source::Localhost),
    ];
    one_of(text, &words)
}

/// `restart`.
pub(super) fn restart(text: &str) -> Result<Restart, ValueError> {
    let words = [
        ("no", Restart::No),
        ("on-failure", Restart::OnFailure),
        ("always", Restart::Always),
    ];
    if let Some(ours) = super::foreign::restart(text) {
        return Err(ValueError::said(format!(
            "{} is what others call it; here it is `{ours}`",
            quoted(text)
        )));
    }
    one_of(text, &words)
}

/// One entry of `egress`: `PROTOCOL ADDRESS[/LENGTH]:PORT[-PORT]`.
pub(super) fn egress(text: &str) -> Result<Egress, ValueError> {
    let bad = || ValueError::said(format!("{} is no destination", quoted(text)));
    let (protocol, rest) = text.split_once(' ').ok_or_else(bad)?;
    let protocol = one_of(protocol, &[("tcp", Protocol::Tcp), ("udp", Protocol::Udp)])?;
    let (address, range) = rest.rsplit_once(':').ok_or_else(bad)?;
    let inside = address
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let address = inside.unwrap_or(address);
    let to = range_of_addresses(address)
        .ok_or_else(|| ValueError::said(format!("{} is no address", quoted(address))))?;
    // Without brackets nobody sees where the address ends.
    if to.addr().is_ipv6() && inside.is_none() {
        return Err(ValueError::said(format!(
            "an IPv6 address needs brackets before its port: `[{address}]:{range}`"
        )));
    }
    if to.trunc() != to {
        return Err(ValueError::said(format!(
            "`{to}` is an address within the range `{}`",
            to.trunc()
        )));
    }
    let (first_port, last_port) = ports(range)?;
    match to {
        IpNet::V4(net) => destination(net)?,
        IpNet::V6(net) => destination6(net)?,
    }
    Ok(Egress {
        protocol,
        to,
        first_port,
        last_port,
    })
}

/// The name of an app.
pub(super) fn app(text: &str) -> Result<PartName, ValueError> {
    PartName::new(text).map_err(|error| ValueError::said(escaped(&error.to_string())))
}

/// `on_unhealthy`.
pub(super) fn on_unhealthy(text: &str) -> Result<OnUnhealthy, ValueError> {
    let words = [
        ("nothing", OnUnhealthy::Nothing),
        ("restart", OnUnhealthy::Restart),
    ];
    one_of(text, &words)
}

/// `replace`.
pub(super) fn replace(text: &str) -> Result<Replace, ValueError> {
    let words = [
        ("rolling", Replace::Rolling),
        ("stop-first", Replace::StopFirst),
    ];
    one_of(text, &words)
}

/// How far an app of `after` has to be.
pub(super) fn until(text: &str) -> Result<Until, ValueError> {
    let words = [
        ("started", Until::Started),
        ("healthy", Until::Healthy),
        ("done", Until::Done),
    ];
    let ours = match text {
        "service_started" => Some("started"),
        "service_healthy" => Some("healthy"),
        "service_completed_successfully" => Some("done"),
        _ => None,
    };
    if let Some(ours) = ours {
        return Err(ValueError::said(format!(
            "{} is what docker compose calls it; here it is `{ours}`",
            quoted(text)
        )));
    }
    one_of(text, &words)
}

/// One entry of `connect`: `APP:PORT[-PORT][/tcp|/udp]`.
pub(super) fn connect(text: &str) -> Result<Connect, ValueError> {
    let bad = || ValueError::said(format!("{} is no port of an app", quoted(text)));
    let (app, rest) = text.split_once(':').ok_or_else(bad)?;
    let app = self::app(app)?;
    let (range, protocol) = match rest.split_once('/') {
        None => (rest, Protocol::Tcp),
        Some((range, protocol)) => {
            let words = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
            (range, one_of(protocol, &words)?)
        }
    };
    let (first_port, last_port) = ports(range)?;
    if last_port - first_port >= MOST_PORTS {
        return Err(ValueError::said(format!(
            "{} has more than {MOST_PORTS} ports",
            quoted(text)
        )));
    }
    Ok(Connect {
        app,
        protocol,
        first_port,
        last_port,
    })
}

fn destination(net: Ipv4Net) -> Result<(), ValueError> {
    let first = net.network();
    let everything = net.prefix_len() == 0;
    if !everything && (first.octets()[0] == 0 || first.is_loopback() || first.octets()[0] >= 224) {
        return Err(ValueError::said(format!(
            "no app can reach `{net}`: it is reserved (0/8, 127/8, 224/3)"
        )));
    }
    // Clouds tell credentials there: who opens it shall have seen the address.
    if first.is_link_local() && net.prefix_len() != 32 {
        return Err(ValueError::said(format!(
            "`{net}` is link-local: each address of 169.254.0.0/16 must be listed by itself"
        )));
    }
    Ok(())
}

/// A wider range than what is reserved is right: rules take out of it what it may not open.
fn destination6(net: Ipv6Net) -> Result<(), ValueError> {
    not_mapped(net)?;
    // RFC 4291, 2.4 and 2.5; what begins with 64:ff9b:: leads to IPv4 by NAT64 (RFC 6052) and may be reached.
    let reserved =
        |first: u128, length| Ipv6Net::new_assert(Ipv6Addr::from_bits(first << 112), length);
    for (reserved, why) in [
        (reserved(0, 96), "it has no address of anybody's but ::1"),
        (reserved(0xfe80, 10), "it is for link-local addresses"),
        (reserved(0xff00, 8), "it is for multicast"),
        (super::UPLINK_POOL6, "lrpns takes its uplinks from it"),
    ] {
        if reserved.contains(&net) {
            return Err(ValueError::said(format!(
                "no app can reach `{net}`: it is within {reserved}, {why}"
            )));
        }
    }
    Ok(())
}

/// Of such an address everybody but a socket says that it is IPv4's: a rule would never meet it.
fn not_mapped(net: Ipv6Net) -> Result<(), ValueError> {
    if let (Some(four), 96..) = (net.addr().to_ipv4_mapped(), net.prefix_len()) {
        let four = Ipv4Net::new(four, net.prefix_len() - 96).expect("at most 128 - 96");
        return Err(ValueError::said(format!(
            "`{net}` is IPv4 written as IPv6: write `{four}`"
        )));
    }
    Ok(())
}

fn range_of_addresses(text: &str) -> Option<IpNet> {
    let net = text.parse::<IpNet>().ok();
    net.or_else(|| Some(text.parse::<IpAddr>().ok()?.into()))
}

/// One entry of `allow`.
pub(super) fn allow(text: &str) -> Result<IpNet, ValueError> {
    let range = range_of_addresses(text)
        .ok_or_else(|| ValueError::said(format!("{} is no range of addresses", quoted(text))))?;
    if range.trunc() != range {
        return Err(ValueError::said(format!(
            "`{range}` is an address within the range `{}`",
            range.trunc()
        )));
    }
    if let IpNet::V6(six) = range {
        not_mapped(six)?;
    }
    Ok(range)
}

/// `rate`: `off` or `NUMBER/UNIT[ per client]`.
pub(super) fn rate(text: &str) -> Result<Option<Rate>, ValueError> {
    if text == "off" {
        return Ok(None);
    }
    let bad = || ValueError::said(format!("{} is no rate", quoted(text)));
    let (count, unit) = text.split_once('/').ok_or_else(bad)?;
    let per_client = unit.strip_suffix(" per client");
    let count = u32::try_from(number(count).ok_or_else(bad)?).ok();
    let count = count.filter(|count| (1..=1_000_000).contains(count));
    let beyond = || ValueError::said("a rate counts from 1 to 1000000");
    Ok(Some(Rate {
        count: count.ok_or_else(beyond)?,
        seconds: one_of(
            per_client.unwrap_or(unit),
            &[("second", 1), ("minute", 60), ("hour", 3600)],
        )?,
        per_client: per_client.is_some(),
    }))
}

/// A size in bytes: a number with K, M or G (powers of 1024), or plain bytes.
pub(super) fn size(text: &str) -> Result<u64, ValueError> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let size = number(digits)
        .and_then(|n| n.checked_mul(1 << shift))
        .filter(|bytes| i64::try_from(*bytes).is_ok())
        .ok_or_else(|| ValueError::said(format!("{} is no size", quoted(text))))?;
    // To the kernel a tmpfs of size 0 has no limit at all, tmpfs(5).
    if size == 0 {
        return Err(ValueError::said("the size 0 would mean no limit"));
    }
    Ok(size)
}

/// `limits.memory`.
pub(super) fn memory(text: &str) -> Result<u64, ValueError> {
    let size = size(text)?;
    // What a part is before its command: our program, its mounts, its page tables.
    if size < 4 << 20 {
        return Err(ValueError::said(format!(
            "{} is less than the 4M that starting takes",
            quoted(text)
        )));
    }
    Ok(size)
}

/// A path in an app's root: absolute, without `..`, `.` and doubled slashes.
fn inner_path(text: &str) -> Result<PathBuf, ValueError> {
    if !text.starts_with('/') {
        return Err(ValueError::said(format!(
            "{} is not an absolute path",
            quoted(text)
        )));
    }
    if text.split('/').any(|part| part == "..") {
        return Err(ValueError::said(format!("{} has a `..`", quoted(text))));
    }
    Ok(Path::new(text).components().collect())
}

/// What `tmpfs` looks like.
pub(super) const TMPFS: &str = "PATH:SIZE, the path absolute, the size in bytes or with K, M or G";
/// A right `tmpfs`.
const TMPFS_EXAMPLE: &str = "/tmp:16M";

impl FromStr for Tmpfs {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        tmpfs(text).map_err(|error| error.saying(TMPFS, TMPFS_EXAMPLE))
    }
}

/// Whether nothing of the user's may be mounted at `path`: what lrpns fills itself, whole, and what holds the programs.
fn taken(path: &Path) -> bool {
    const OURS: [&str; 3] = ["/proc", "/sys", "/dev"];
    const PROGRAMS: [&str; 9] = [
        "/", "/etc", "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32",
    ];
    OURS.iter().any(|ours| path.starts_with(ours))
        || PROGRAMS.iter().any(|programs| path == Path::new(programs))
}

fn tmpfs(text: &str) -> Result<Tmpfs, ValueError> {
    let (path, size_text) = text
        .rsplit_once(':')
        .ok_or_else(|| ValueError::said(format!("{} has no size", quoted(text))))?;
    let path = inner_path(path)?;
    if taken(&path) && path != Path::new(super::SHARED_MEMORY) {
        return Err(ValueError::said(format!(
            "{} can't be writable",
            quoted(&path.to_string_lossy())
        )));
    }
    let size = size(size_text)?;
    Ok(Tmpfs { path, size })
}

/// What `volumes` looks like.
pub(super) const VOLUME: &str = "a list of `HOST_PATH:PATH[:OPTIONS]`, a relative HOST_PATH taken from the file's directory, PATH absolute, OPTIONS of ro (the default) or rw, exec, and with ids = \"range\" owner=USER or, of what is ro, owners";

/// A path of the host: absolute, without `..`, `.` and doubled slashes; a relative one is taken from `base`, which is absolute.
pub(super) fn host_path(text: &str, base: &Path) -> Result<PathBuf, ValueError> {
    if text.is_empty() {
        return Err(ValueError::said("a path can't be empty"));
    }
    if text.starts_with('~') {
        return Err(ValueError::said(format!(
            "{} begins with `~`, which only a shell knows",
            quoted(text)
        )));
    }
    if text.starts_with('/') {
        return inner_path(text);
    }
    // `base` has no links, so that its parents are those that its path says.
    let mut path = base.to_owned();
    for name in Path::new(text).components() {
        match name {
            Component::ParentDir => drop(path.pop()),
            Component::Normal(name) => path.push(name),
            _ => {}
        }
    }
    Ok(path)
}

/// One entry of `volumes`: `HOST_PATH:PATH[:OPTIONS]`; a relative HOST_PATH is taken from `base`, which is absolute.
pub(super) fn volume(text: &str, base: &Path) -> Result<Volume, ValueError> {
    let mut fields = text.split(':');
    let (Some(host), Some(path), options, None) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return Err(ValueError::said(format!("{} is no volume", quoted(text))));
    };
    let (mut writable, mut exec, mut owner, mut owners) = (None, false, None, false);
    for option in options.iter().flat_map(|options| options.split(',')) {
        if let Some(name) = option.strip_prefix("owner=") {
            if owner.replace(account(name)?).is_some() {
                return Err(ValueError::said(format!("{} has two owners", quoted(text))));
            }
            continue;
        }
        let words = [("ro", 0), ("rw", 1), ("exec", 2), ("owners", 3)];
        let twice = match one_of(option, &words)? {
            2 => std::mem::replace(&mut exec, true),
            3 => std::mem::replace(&mut owners, true),
            rw => writable.replace(rw == 1).is_some(),
        };
        if twice {
            return Err(ValueError::said(format!(
                "{} has two options that say the same or the opposite",
                quoted(text)
            )));
        }
    }
    let clash = match (owners, writable, &owner) {
        (true, Some(true), _) => {
            Some("rw and owners: what an app's root writes would be root's on the host")
        }
        (true, _, Some(_)) => {
            Some("owner and owners: its files are one user's within, or whose they are on the host")
        }
        _ => None,
    };
    if let Some(clash) = clash {
        return Err(ValueError::said(format!("{} has {clash}", quoted(text))));
    }
    let (host, path) = (host_path(host, base)?, inner_path(path)?);
    if host == Path::new("/") {
        return Err(ValueError::said(
            "the host's whole root can't be given to an app",
        ));
    }
    if taken(&path) {
        return Err(ValueError::said(format!(
            "nothing can be mounted at {}",
            quoted(&path.to_string_lossy())
        )));
    }
    Ok(Volume {
        host,
        path,
        writable: writable.unwrap_or(false),
        exec,
        owner: None,
        owners,
        owner_name: owner,
    })
}

/// What `sockets` looks like.
pub(super) const SOCKET: &str = "a list of `HOST_PATH:PATH`, a Unix socket of the host's or a directory of them, a relative HOST_PATH taken from the file's directory, PATH absolute";

/// One entry of `sockets`: `HOST_PATH:PATH`; a relative HOST_PATH is taken from `base`, which is absolute.
pub(super) fn socket(text: &str, base: &Path) -> Result<UnixGrant, ValueError> {
    let mut fields = text.split(':');
    let (Some(host), Some(path), None) = (fields.next(), fields.next(), fields.next()) else {
        return Err(ValueError::said(format!(
            "{} is no `HOST_PATH:PATH`",
            quoted(text)
        )));
    };
    let Volume { host, path, .. } = volume(&format!("{host}:{path}"), base)?;
    Ok(UnixGrant { host, path })
}

/// What `secrets` looks like.
pub(super) const SECRET: &str = "a list of `NAME=HOST_PATH`, a relative HOST_PATH taken from the file's directory, `NAME=credential:CREDENTIAL` of systemd's or `NAME`, for a credential of that name";

/// One entry of `secrets`; a relative path is taken from `base`, which is absolute.
pub(super) fn secret(text: &str, base: &Path) -> Result<Secret, ValueError> {
    let (name, from) = match text.split_once('=') {
        None => (text, SecretFrom::Credential(file_name(text)?)),
        Some((name, from)) => match from.strip_prefix("credential:") {
            Some(credential) => (name, SecretFrom::Credential(file_name(credential)?)),
            None => (name, SecretFrom::File(host_path(from, base)?)),
        },
    };
    let name = file_name(name)?;
    Ok(Secret { name, from })
}

/// A name that is harmless in a path, in a message and in a shell.
fn file_name(text: &str) -> Result<String, ValueError> {
    const LONGEST: usize = 64;
    if !Secret::may_be_called(text) {
        return Err(ValueError::said(format!(
            "{} is no name of a file in {}: letters, digits, `.`, `_` and `-`",
            quoted(text),
            super::SECRETS
        )));
    }
    if text.len() > LONGEST {
        return Err(ValueError::said(format!(
            "{} is longer than {LONGEST} bytes",
            quoted(text)
        )));
    }
    Ok(text.to_owned())
}

/// The first word of `command`.
pub(super) fn program(text: &str) -> Result<(), ValueError> {
    if text.is_empty() {
        return Err(ValueError::said("the program can't be empty"));
    }
    if text.contains('/') && !text.starts_with('/') {
        return Err(ValueError::said(format!(
            "{} is neither absolute nor a bare name (which is looked up in PATH)",
            quoted(text)
        )));
    }
    Ok(())
}

/// `health.http`.
pub(super) fn http_path(text: &str) -> Result<String, ValueError> {
    let is_graphic = |c: char| c.is_ascii_graphic();
    if text.starts_with('/') && text.chars().all(is_graphic) {
        return Ok(text.to_owned());
    }
    Err(ValueError::said(format!(
        "{} is no path of an URL",
        quoted(text)
    )))
}

/// A time such as `500ms`, `5s` or `2m`: at least a millisecond, at most an hour.
pub(super) fn time(text: &str) -> Result<Duration, ValueError> {
    let units = [("ms", 1), ("s", 1000), ("m", 60_000)];
    let unit = units
        .iter()
        .find_map(|(unit, milliseconds)| Some((number(text.strip_suffix(unit)?)?, *milliseconds)));
    let milliseconds = unit.and_then(|(count, unit)| count.checked_mul(unit));
    match milliseconds {
        Some(milliseconds @ 1..=3_600_000) => Ok(Duration::from_millis(milliseconds)),
        Some(_) => Err(ValueError::said(format!(
            "{} is not between 1ms and 60m",
            quoted(text)
        ))),
        None => Err(ValueError::said(format!("{} is no time", quoted(text)))),
    }
}

/// `stop_signal`: a name, with `SIG` or without. SIGSTOP ends nothing.
pub(super) fn stop_signal(text: &str) -> Result<StopSignal, ValueError> {
    StopSignal::named(text).ok_or_else(|| {
        let names: Vec<&str> = StopSignal::all().map(Signal::as_str).collect();
        let long = format!("SIG{}", text.trim_start_matches("SIG"));
        let near = nearest(&long, names.iter().copied()).unwrap_or("SIGTERM");
        ValueError::said(format!(
            "{} is no signal that ends a program, the nearest is `{near}`",
            quoted(text)
        ))
    })
}

/// `user` or `group`: a number, or a name as useradd(8) takes it.
pub(super) fn account(text: &str) -> Result<Account, ValueError> {
    const LONGEST: usize = 64;
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // The last one means none to setresuid(2).
        let id = text.parse().ok().filter(|id| *id < u32::MAX);
        return id
            .map(Account::Id)
            .ok_or_else(|| ValueError::said(format!("{} is larger than any id", quoted(text))));
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'$');
    let first = text.bytes().next().is_some_and(|b| plain(b) && b != b'-');
    if !first || !text.bytes().all(plain) || text.len() > LONGEST {
        return Err(ValueError::said(format!(
            "{} is neither a name nor a number",
            quoted(text)
        )));
    }
    Ok(Account::Name(text.to_owned()))
}

/// `ids`.
pub(super) fn ids(text: &str) -> Result<IdCount, ValueError> {
    one_of(text, &[("one", IdCount::One), ("range", IdCount::Range)])
}

/// `workdir`.
pub(super) fn workdir(text: &str) -> Result<PathBuf, ValueError> {
    inner_path(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connect_is_an_app_and_ports_of_it() {
        for (text, shown) in [
            ("db:5432", "db:5432"),
            ("db:5432/tcp", "db:5432"),
            ("my-db:1-3", "my-db:1-3"),
            ("dns:53/udp", "dns:53/udp"),
            ("a:7000-7001/udp", "a:7000-7001/udp"),
            ("a:9-9", "a:9"),
        ] {
            assert_eq!(connect(text).unwrap().to_string(), shown);
        }
        for text in [
            "",
            "db",
            "db:",
            ":5432",
            "db:0",
            "db:65536",
            "db:5-4",
            "db:5432/sctp",
            "db/5432",
            "d b:1",
            "db:1-65535",
            "tcp db:5432",
        ] {
            assert!(connect(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_time_has_a_unit_and_a_bound() {
        for (text, milliseconds) in [
            ("1ms", 1),
            ("500ms", 500),
            ("5s", 5000),
            ("2m", 120_000),
            ("60m", 3_600_000),
        ] {
            let time = time(text).unwrap();
            assert_eq!(time, Duration::from_millis(milliseconds), "{text}");
        }
        for text in [
            "",
            "s",
            "5",
            "0s",
            "0ms",
            "-1s",
            "1.5s",
            "5 s",
            "05s",
            "1h",
            "61m",
            "5S",
            "18446744073709551615m",
        ] {
            assert!(time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_stop_signal_is_named_with_its_prefix_or_without() {
        for (text, name) in [
            ("SIGTERM", "SIGTERM"),
            ("TERM", "SIGTERM"),
            ("QUIT", "SIGQUIT"),
            ("SIGWINCH", "SIGWINCH"),
            ("SIGKILL", "SIGKILL"),
        ] {
            assert_eq!(stop_signal(text).unwrap().to_string(), name, "{text}");
        }
        for text in [
            "", "SIG", "15", "sigterm", "SIGSTOP", "STOP", "SIGTRM", "SIGCONT",
        ] {
            assert!(stop_signal(text).is_err(), "{text}");
        }
        let said = stop_signal("SIGTRM").unwrap_err();
        assert!(format!("{said:?}").contains("SIGTERM"), "{said:?}");
    }

    #[test]
    fn a_publish_has_an_address_and_two_ports() {
        let publish = |a: [u8; 4], host_port, app_port| {
            Ok(Publish {
                address: Ipv4Addr::from(a).into(),
                host_port,
                app_port,
                count: 1,
                protocol: Protocol::Tcp,
            })
        };
        assert_eq!("80:8080".parse(), publish([127, 0, 0, 1], 80, 8080));
        assert_eq!("0.0.0.0:1:65535/tcp".parse(), publish([0; 4], 1, 65535));
        assert_eq!("10.0.0.1:80:80".parse(), publish([10, 0, 0, 1], 80, 80));
        for (text, words) in [
            ("", "only one port"),
            ("80", "only one port"),
            (":80", "`` is no port"),
            ("80:", "`` is no port"),
            ("0:80", "port 0"),
            ("80:0", "port 0"),
            ("65536:80", "port 65536 is above"),
            ("99999999999999999999:80", "is no port"),
            ("+80:80", "`+80` is no port"),
            ("080:80", "`080` is no port"),
            (" 80:80", "` 80` is no port"),
            ("80:80/", "`` is unknown"),
            ("80:80/tpc", "the nearest is `tcp`"),
            ("localhost:80:80", "`localhost` is no address"),
            ("224.0.0.1:80:80", "not an address to listen on"),
            ("::1:80:80", "in brackets"),
            ("[::1:80:80", "no address"),
            ("[::x]:80:80", "no address"),
            ("[ff02::1]:80:80", "is for multicast"),
            ("[fe80::1]:80:80", "is link-local"),
            ("[fe80::1%eth0]:80:80", "no address"),
            ("[::ffff:10.0.0.1]:80:80", "written as such"),
            ("[10.0.0.1]:80:80", "no address"),
            ("8010-8000:8000-8010", "ends before it begins"),
            ("8000-8010:8000-8011", "not the same length"),
            ("8000-:80", "`` is no port"),
            ("1-4097:1-4097", "more than 4096"),
        ] {
            match text.parse::<Publish>() {
                Err(ValueError::Form { message, .. }) => {
                    assert!(message.contains(words), "{text}: {message}");
                }
                other => panic!("{text}: {other:?}"),
            }
        }
        let parsed: Publish = "53:5353/udp".parse().unwrap();
        assert_eq!((parsed.protocol, parsed.count), (Protocol::Udp, 1));
        let range: Publish = "8000-8010:9000-9010".parse().unwrap();
        assert_eq!(range.ports().count(), 11);
        assert_eq!(range.ports().last(), Some((8010, 9010)));
        let last: Publish = "61440-65535:61440-65535".parse().unwrap();
        assert_eq!(last.ports().last(), Some((65535, 65535)));
    }

    #[test]
    fn a_size_is_a_number_and_a_letter() {
        for (text, bytes) in [("1", 1), ("64K", 65536), ("16M", 16 << 20), ("1G", 1 << 30)] {
            assert_eq!(size(text), Ok(bytes));
        }
        for bad in [
            "",
            "M",
            "16m",
            "-1",
            "1.5G",
            "16 M",
            "0",
            "0K",
            "16MB",
            "99999999999G",
        ] {
            assert!(size(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_tmpfs_can_not_be_put_over_what_lrpns_or_programs_need() {
        let tmpfs: Tmpfs = "/a//b/./c/:4K".parse().unwrap();
        assert_eq!(tmpfs.path, Path::new("/a/b/c"));
        assert!("/usr/local/logs:1M".parse::<Tmpfs>().is_ok());
        assert!("/dev/shm:1M".parse::<Tmpfs>().is_ok());
        for bad in [
            "/:1M",
            "//:1M",
            "/./:1M",
            "/proc:1M",
            "/proc/x:1M",
            "/dev/shm/x:1M",
            "/dev/mqueue:1M",
            "/sys:1M",
            "/etc:1M",
            "/usr/:1M",
            "/lib64:1M",
            "tmp:1M",
            "/tmp",
            "/tmp:",
            "/a/../proc:1M",
            ":1M",
            "",
        ] {
            assert!(bad.parse::<Tmpfs>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_volume_is_read_only_and_noexec_unless_it_says_otherwise() {
        let base = Path::new("/etc/lrpns");
        let parse = |text: &str| volume(text, base).map(|v| (v.writable, v.exec));
        for (text, options) in [
            ("/srv:/data", (false, false)),
            ("/srv:/data:ro", (false, false)),
            ("/srv:/data:rw", (true, false)),
            ("/srv:/data:exec", (false, true)),
            ("/srv:/data:rw,exec", (true, true)),
            ("/srv:/data:exec,ro", (false, true)),
            ("/srv:/data:owners", (false, false)),
            ("/srv:/data:ro,owners,exec", (false, true)),
        ] {
            assert_eq!(parse(text), Ok(options), "{text}");
        }
        for (text, host) in [
            ("data:/data", "/etc/lrpns/data"),
            ("./data/x/:/data", "/etc/lrpns/data/x"),
            ("../data:/data", "/etc/data"),
            (".:/data", "/etc/lrpns"),
        ] {
            assert_eq!(volume(text, base).unwrap().host, Path::new(host), "{text}");
        }
        let clean = volume("/srv//a/./b/:/data//x/", base).unwrap();
        assert_eq!(clean.host, Path::new("/srv/a/b"));
        assert_eq!(clean.path, Path::new("/data/x"));
        for bad in [
            "",
            "/srv",
            "/srv:",
            ":/data",
            "/srv:/data:",
            "/srv:/data:rx",
            "/srv:/data:ro,rw",
            "/srv:/data:rw,owners",
            "/srv:/data:owners,owners",
            "/srv:/data:owners,owner=1",
            "/srv:/data:rw,rw",
            "/srv:/data:exec,exec",
            "/srv:/data:ro:rw",
            "~/srv:/data",
            "../../..:/data",
            "/srv:data",
            "/srv/../etc:/data",
            "/srv:/data/../etc",
            "/:/data",
            "/srv:/",
            "/srv:/proc",
            "/srv:/proc/1",
            "/srv:/dev/shm",
            "/srv:/usr",
            "/srv:/etc/",
        ] {
            assert!(volume(bad, base).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_rootfs_names_its_kind() {
        let base = Path::new("/etc/lrpns");
        assert_eq!(rootfs("host", base), Ok(Rootfs::Host));
        assert_eq!(
            rootfs("dir:web", base),
            Ok(Rootfs::Dir("/etc/lrpns/web".into()))
        );
        assert_eq!(
            rootfs("dir:/srv/a:b", base),
            Ok(Rootfs::Dir("/srv/a:b".into()))
        );
        for later in [
            "oci:x",
            "oci:x:tag",
            "oci-archive:x",
            "docker-archive:x",
            "image:x",
        ] {
            let parsed = rootfs(later, base);
            assert!(matches!(parsed, Err(ValueError::Later { .. })), "{later}");
        }
        for bad in [
            "",
            "hots",
            "host:",
            "host:/",
            "dir",
            "dir:",
            "dir:/",
            "dir:/..",
            "builtin",
            "builtin:",
            "builtin:x",
            "oci",
            "image:",
            "/srv",
        ] {
            let parsed = rootfs(bad, base);
            assert!(
                matches!(parsed, Err(ValueError::Form { .. })),
                "{bad}: {parsed:?}"
            );
        }
    }

    #[test]
    fn a_program_is_absolute_or_a_bare_name() {
        assert_eq!(program("/bin/sh"), Ok(()));
        assert_eq!(program("sh"), Ok(()));
        for bad in ["", "./x", "bin/sh", "../x"] {
            assert!(program(bad).is_err(), "{bad:?} was taken");
        }
    }
}

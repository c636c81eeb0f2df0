//! Records as lines: for people, and with typed fields for programs.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::packet::{flag_names, protocol_name};
use super::{Event, Flow, How, LostBy, Packet, Record};
use crate::config::Protocol;
use crate::firewall::logging;
use crate::plan::Plan;

/// What a line says, for programs. The keys are stable; those that don't belong to `event` are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Fields {
    /// What happened.
    pub event: Kind,
    /// The protocol, by name if it has one here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// `open`, `end`: address and port of who began the connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<SocketAddr>,
    /// `open`, `end`: address and port of who it is with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<SocketAddr>,
    /// `relay` where `client` is the relay, and who is behind it is not known here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    /// The app that connects, where it is one of the stack's and connects to another: then `app` is the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_app: Option<String>,
    /// The app's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// `end`: bytes of payload from the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_from_client: Option<u64>,
    /// `end`: bytes of payload to the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_to_client: Option<u64>,
    /// `end`: how long the connection was open, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_us: Option<u64>,
    /// `end`: how.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub how: Option<How>,
    /// `refused`, `accepted`: the rule, as `chain/name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// `refused`, `accepted`: the link that the packet came by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// `refused`, `accepted`, `suppressed`: whom the packet says it is from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// `refused`, `accepted`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// `refused`, `accepted`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<IpAddr>,
    /// `refused`, `accepted`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
    /// `refused`, `accepted`: TCP's flags, such as `syn,ack`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_flags: Option<String>,
    /// `refused`, `accepted`: ICMP's type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_type: Option<u8>,
    /// `refused`, `accepted`: ICMP's code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp_code: Option<u8>,
    /// `refused`, `accepted`: the packet's length in bytes, headers and all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<u32>,
    /// `suppressed`, `lost`: how many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// `lost`: by whom.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<LostBy>,
}

/// What happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A connection began.
    #[default]
    Open,
    /// A connection ended.
    End,
    /// A packet was refused.
    Refused,
    /// A packet was let through.
    Accepted,
    /// A rule of the user's logged a packet; `rule` is its prefix.
    Logged,
    /// Refused packets have no line of their own.
    Suppressed,
    /// Something is missing here.
    Lost,
}

/// Who is who in a stack.
#[derive(Debug, Clone, Default)]
pub struct Names {
    apps: Vec<(IpAddr, String)>,
    /// What of the host is whose, by protocol.
    published: Vec<(u8, SocketAddr, String)>,
    /// The relay's addresses, one of each family.
    relay: Vec<IpAddr>,
}

impl Names {
    /// Those of `plan`.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        Self {
            apps: plan
                .apps
                .iter()
                .flat_map(|app| (app.everywhere()).map(|address| (address, app.name.to_string())))
                .collect(),
            published: (plan.published())
                .map(|(app, publish)| {
                    let protocol = match publish.protocol {
                        Protocol::Tcp => 6,
                        Protocol::Udp => 17,
                    };
                    (protocol, publish.listen, app.name.to_string())
                })
                .collect(),
            relay: (plan.families().iter()).map(|family| family.host).collect(),
        }
    }

    fn app(&self, address: IpAddr) -> Option<&str> {
        let mut apps = self.apps.iter();
        apps.find(|(of, _)| *of == address)
            .map(|(_, name)| name.as_str())
    }

    /// The app that is published where a packet goes.
    fn published(&self, packet: &Packet) -> Option<&str> {
        let to = SocketAddr::new(packet.target, packet.ports?.1);
        let is_its = |listen: &SocketAddr| {
            let ip = listen.ip();
            let any = ip.is_unspecified() && ip.is_ipv6() == to.is_ipv6();
            listen.port() == to.port() && (any || ip == to.ip())
        };
        let mut published = self.published.iter();
        published
            .find(|(protocol, listen, _)| *protocol == packet.protocol && is_its(listen))
            .map(|(.., name)| name.as_str())
    }

    /// The names of both, if both are apps.
    fn between(&self, from: IpAddr, to: IpAddr) -> Option<(&str, &str)> {
        Some((self.app(from)?, self.app(to)?))
    }

    /// A record as a line: when, in words, and in fields.
    #[must_use]
    pub fn line(&self, record: &Record) -> (Timestamp, String, Fields) {
        let time = Timestamp::from_nanosecond(record.time.into()).unwrap_or_default();
        let (text, fields) = match &record.event {
            Event::Open(flow) => {
                let (text, fields) = self.flow(flow, Kind::Open);
                (format!("{text} opened"), fields)
            }
            Event::End {
                flow,
                bytes,
                duration,
                how,
            } => self.end(flow, *bytes, *duration, *how),
            Event::Packet {
                rule,
                link,
                accepted,
                packet,
            } => self.packet(rule.as_str(), link.as_str(), *accepted, packet),
            Event::Suppressed { source, packets } => suppressed(*source, *packets),
            Event::Lost { by, count } => lost(*by, *count),
        };
        (time, text, fields)
    }

    fn end(
        &self,
        flow: &Flow,
        bytes: [Option<u64>; 2],
        duration: Option<u64>,
        how: How,
    ) -> (String, Fields) {
        let (mut text, fields) = self.flow(flow, Kind::End);
        text += match how {
            How::ClosedByClient => " closed by the client",
            How::ClosedByApp => " closed by the app",
            How::ResetByClient => " reset by the client",
            How::ResetByApp => " reset by the app",
            How::RefusedByApp => " refused by the app, which does not listen there",
            How::Unanswered => " was not answered",
            How::TimedOut => " timed out",
            How::Unknown => " ended, and nobody saw how",
        };
        if let Some(duration) = duration {
            say(
                &mut text,
                format_args!(" after {:.3} s", duration as f64 / 1e9),
            );
        }
        let count =
            |bytes: Option<u64>| bytes.map_or_else(|| "?".to_owned(), |bytes| bytes.to_string());
        let (from, to) = (count(bytes[0]), count(bytes[1]));
        say(
            &mut text,
            format_args!(", {from} bytes from the client, {to} to it"),
        );
        let fields = Fields {
            bytes_from_client: bytes[0],
            bytes_to_client: bytes[1],
            duration_us: duration.map(|nanos| nanos / 1000),
            how: Some(how),
            ..fields
        };
        (text, fields)
    }

    fn packet(&self, rule: &str, link: &str, accepted: bool, packet: &Packet) -> (String, Fields) {
        let (source_port, target_port) = packet.ports.unzip();
        let with_port = |address: IpAddr, port: Option<u16>| match port {
            Some(port) => SocketAddr::new(address, port).to_string(),
            None => address.to_string(),
        };
        let protocol = protocol_name(packet.protocol);
        let tcp_flags = packet.tcp.map(|tcp| flag_names(tcp.flags));
        let own = rule.strip_prefix(logging::OWN_PREFIX);
        let (event, what) = match (own, accepted) {
            (Some(_), _) => (Kind::Logged, "logged"),
            (None, true) => (Kind::Accepted, "let through"),
            (None, false) => (Kind::Refused, "refused"),
        };
        let rule = own.unwrap_or(rule);
        let between = self.between(packet.source, packet.target);
        let whose = between.map_or_else(String::new, |(from, to)| {
            format!("app {from} -> app {to}, ")
        });
        let mut text = format!(
            "{what} by {rule}: {whose}{protocol} {} -> {}",
            with_port(packet.source, source_port),
            with_port(packet.target, target_port),
        );
        if let Some(flags) = &tcp_flags {
            say(&mut text, format_args!(" {flags}"));
        }
        if let Some((kind, code)) = packet.icmp {
            say(&mut text, format_args!(" type {kind} code {code}"));
        }
        let length = (packet.length > 0).then_some(packet.length);
        if let Some(length) = length {
            say(&mut text, format_args!(", {length} bytes"));
        }
        if !link.is_empty() {
            say(&mut text, format_args!(", from link {link}"));
        }
        let app = self
            .app(packet.source)
            .or_else(|| self.app(packet.target))
            .or_else(|| self.published(packet));
        let fields = Fields {
            event,
            protocol: Some(protocol),
            app: app.map(str::to_owned),
            rule: Some(rule.to_owned()),
            link: (!link.is_empty()).then(|| link.to_owned()),
            source: Some(packet.source),
            source_port,
            target: Some(packet.target),
            target_port,
            tcp_flags,
            icmp_type: packet.icmp.map(|(kind, _)| kind),
            icmp_code: packet.icmp.map(|(_, code)| code),
            length,
            ..Fields::default()
        };
        (text, fields)
    }

    fn flow(&self, flow: &Flow, event: Kind) -> (String, Fields) {
        let app = self
            .app(flow.server.ip())
            .or_else(|| self.app(flow.client.ip()))
            .map(str::to_owned);
        let relayed = self.relay.contains(&flow.client.ip());
        let protocol = protocol_name(flow.protocol);
        let named = |address: SocketAddr| {
            let name = self.app(address.ip()).map(|name| format!("{name} "));
            format!("{}{address}", name.unwrap_or_default())
        };
        let between = self.between(flow.client.ip(), flow.server.ip());
        let text = match &between {
            Some((from, to)) => format!(
                "{protocol} app {from} -> app {to}:{} ({} -> {})",
                flow.server.port(),
                flow.client,
                flow.server
            ),
            None => format!(
                "{protocol} {}{} -> {}",
                if relayed { "relay " } else { "" },
                named(flow.client),
                named(flow.server)
            ),
        };
        let fields = Fields {
            event,
            protocol: Some(protocol),
            client: Some(flow.client),
            server: Some(flow.server),
            via: relayed.then(|| "relay".to_owned()),
            client_app: between.map(|(from, _)| from.to_owned()),
            app,
            ..Fields::default()
        };
        (text, fields)
    }
}

fn suppressed(source: Option<IpAddr>, packets: u64) -> (String, Fields) {
    let whose = source.map_or_else(|| "other sources".to_owned(), |s| s.to_string());
    let text = format!("{packets} more refused packets from {whose} are not listed");
    let fields = Fields {
        event: Kind::Suppressed,
        source,
        count: Some(packets),
        ..Fields::default()
    };
    (text, fields)
}

fn lost(by: LostBy, count: u64) -> (String, Fields) {
    let text = match by {
        LostBy::Kernel => {
            format!("{count} packets are missing here: the kernel's queue for the sidecar was full")
        }
        LostBy::Sidecar => {
            format!("{count} lines are missing here: they came faster than they were taken")
        }
        LostBy::Table => format!(
            "the ends of {count} connections will be missing: more were open than are remembered"
        ),
    };
    let fields = Fields {
        event: Kind::Lost,
        count: Some(count),
        by: Some(by),
        ..Fields::default()
    };
    (text, fields)
}

fn say(text: &mut String, more: std::fmt::Arguments<'_>) {
    text.write_fmt(more).expect("a String takes everything");
}

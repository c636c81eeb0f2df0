//! By what way a client gets to the sidecar, and what apps connect to leaves this machine.
#![forbid(unsafe_code)]

use std::net::SocketAddr;

use crate::config::{self, Config, Source, Via};
use crate::firewall::Forwarding;
use crate::host::Host;
use crate::plan::{EgressVia, Mode, Plan, Transport, UplinkEnd};

/// The host's namespace, if it forwards something for the stack; else the relay's own, where a dialled connection takes no
/// port of the host's, and shows the sidecar who the client is. To show that to an app, and for egress by relay, it has to
/// be the relay's. Where a stack that runs has it stays.
pub(super) fn uplink_end(config: &Config, host: &Host, running: Option<&Plan>) -> UplinkEnd {
    if let Some(UplinkEnd::Relay) = running.map(|plan| plan.uplink.ends_at) {
        // What it is needed for may be gone; it goes on working.
        return UplinkEnd::Relay;
    }
    let any = |is: &dyn Fn(&config::App, Transport) -> bool| {
        config.apps.iter().any(|app| {
            app.publish.iter().any(|publish| {
                let (via, _) = transport(publish, app, UplinkEnd::Host, host);
                !publish.address.is_loopback() && is(app, via)
            })
        })
    };
    let relayed_as_client =
        any(&|app, via| app.source == Source::Client && via == Transport::Relay);
    let decided = || egress_way(config, host, UplinkEnd::Host).map(|(via, _)| via);
    let before = running.and_then(|plan| plan.egress.as_ref());
    let egress = before.map(|egress| egress.via).or_else(decided);
    if relayed_as_client || egress == Some(EgressVia::Relay) {
        return UplinkEnd::Relay;
    }
    let forwards = egress == Some(EgressVia::Nat) || any(&|_, via| via == Transport::Dnat);
    if forwards || running.is_some() {
        UplinkEnd::Host
    } else {
        UplinkEnd::Relay
    }
}

/// How what apps connect to leaves this machine, and why so; `None` if none of them connects to anything.
pub(super) fn egress_way(
    config: &Config,
    host: &Host,
    ends_at: UplinkEnd,
) -> Option<(EgressVia, String)> {
    let mut granted = config.apps.iter().flat_map(|app| &app.egress).peekable();
    granted.peek()?;
    let by_relay = |why: &str| Some((EgressVia::Relay, why.to_owned()));
    if host.mode == Mode::Rootless {
        return by_relay("an ordinary user can't have the host forward");
    }
    let wants = |app: &config::App| app.via == Via::Relay && !app.egress.is_empty();
    if config.apps.iter().any(wants) {
        return by_relay("as configured");
    }
    // To the host itself nothing needs to be forwarded.
    let is_host = |egress: &config::Egress| egress.is_single() && host.has(egress.to.addr());
    let mut beyond = granted.filter(|egress| !is_host(egress)).peekable();
    let needs_nothing = beyond.peek().is_none();
    let closed = beyond.find_map(|egress| match host.forwards(egress.to.addr()) {
        Forwarding::Closed { why } => Some(why),
        Forwarding::Open => None,
    });
    match closed {
        Some(why) => by_relay(why),
        None if ends_at == UplinkEnd::Relay => by_relay("the uplink ends at the relay"),
        None => {
            let why = match needs_nothing {
                true => "to the host itself nothing needs to be forwarded",
                false => "the host forwards, and nothing of another owner drops it",
            };
            Some((EgressVia::Nat, why.to_owned()))
        }
    }
}

/// How a published address gets to the sidecar, and why so.
pub(super) fn transport(
    publish: &config::Publish,
    app: &config::App,
    ends_at: UplinkEnd,
    host: &Host,
) -> (Transport, String) {
    let address = publish.address;
    if address.is_loopback() {
        return (Transport::Relay, "loopback is always relayed".to_owned());
    }
    let forwarding = host.forwards(address);
    let is_handed = |port| {
        let outside = (SocketAddr::new(address, port), publish.protocol);
        host.handed.contains(&outside)
    };
    // An app that is handed its sockets is behind the sidecar's rules as well; how a client gets there is the host's affair.
    let chosen = matches!(app.via, Via::Auto | Via::Socket);
    if chosen && publish.ports().any(|(port, _)| is_handed(port)) {
        let why = "a socket unit has it, and waits there when the stack is gone";
        return (Transport::Relay, why.to_owned());
    }
    match (app.via, forwarding) {
        (Via::Relay, _) => (Transport::Relay, "as configured".to_owned()),
        (Via::Dnat, _) => (Transport::Dnat, "as configured".to_owned()),
        (Via::Auto | Via::Socket, Forwarding::Open) if ends_at == UplinkEnd::Relay => {
            (Transport::Relay, "the uplink ends at the relay".to_owned())
        }
        (Via::Auto | Via::Socket, Forwarding::Open) => (
            Transport::Dnat,
            "the host forwards, and nothing of another owner drops it".to_owned(),
        ),
        (Via::Auto | Via::Socket, Forwarding::Closed { why }) => (Transport::Relay, why.clone()),
    }
}

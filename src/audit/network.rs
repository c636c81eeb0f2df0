//! Packets that must not arrive, and the rules that eat them.
//!
//! A packet is sent, and the counters of every rule on its way are read before and after: on a veth pair it has gone
//! all its way by the time that the sender's system call returns, unless the machine is busy: then it waits at a processor until
//! a kernel thread has its turn (ksoftirqd), as long as that takes. Only when no counter has moved is there anything to wait for,
//! and nothing is said of a packet before every processor has been through those that waited ([`taken_in`]).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsFd;

use super::agent::{Agent, Answer, Ask, Count, Join, LINK, Landing, SOMETHING_ELSE, Shot};
use super::planned::NOT_BY_LOOPBACK;
use super::target::{Findings, Scratch, Target};
use super::{Outcome, Verdict};
use crate::config::{Egress, METADATA6, Protocol, Source};
use crate::firewall::{APP_TABLE, SIDECAR_TABLE, UPLINK_OUT, end_table};
use crate::plan::{AppPlan, Mac, Plan};
use crate::state::StateRoot;

/// How long something that did not meet a rule is waited for, in milliseconds.
const PATIENCE: u64 = 50;
/// An address that documentation is free to use (RFC 3849).
const STRANGER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// A port on which nothing is published; `discard`.
const DISCARD: u16 = 9;

/// What the packets go through.
pub struct Field<'a> {
    /// The stack.
    pub plan: &'a Plan,
    /// In the sidecar's network namespace.
    pub sidecar: &'a Result<Agent, String>,
    /// Where the host's end of the uplink is.
    pub host: &'a Result<Agent, String>,
}

/// What rules have counted, by `where chain/name`.
type Counters = BTreeMap<String, Count>;

impl Field<'_> {
    fn counters(&self) -> Result<Counters, String> {
        let sidecar = self.sidecar.as_ref().map_err(Clone::clone)?;
        let host = self.host.as_ref().map_err(Clone::clone)?;
        // Both at the same time; and what was asked is heard, or the next answer would be taken for another.
        sidecar.tell(&Ask::Counters(SIDECAR_TABLE.to_owned()), &[])?;
        let told = host.tell(&Ask::Counters(end_table(self.plan)), &[]);
        let of_sidecar = sidecar.hear();
        let of_host = told.and_then(|()| host.hear());
        let mut all = Counters::new();
        for (place, answer) in [("sidecar", of_sidecar), ("host", of_host)] {
            let Answer::Counters(counters) = answer? else {
                return Err("the counters could not be read".to_owned());
            };
            for (counter, count) in counters {
                // What else crosses the host's links, or is IPv6 there, is no concern of ours.
                if place == "sidecar" || !(is_link(&counter) || counter.starts_with("ipv6/")) {
                    all.insert(format!("{place} {counter}"), count);
                }
            }
        }
        Ok(all)
    }
}

fn is_link(counter: &str) -> bool {
    counter.trim_start_matches("sidecar ").starts_with(LINK)
}

/// The rules that have counted something since. A rule that translates counts what is offered to it, by anybody who tries
/// to get in just now, and one at the uplink itself what goes on to the other end: what they let through meets a rule that
/// accepts, or drops.
fn grown(before: &Counters, after: &Counters) -> Vec<String> {
    let goes_on = |rule: &str| is_at_its_way_out(rule) && rule.contains("/accept-");
    let offered = |rule: &str| rule.contains("/dnat-") || goes_on(rule);
    after
        .iter()
        .filter(|(rule, count)| {
            let old = before.get(*rule);
            !offered(rule) && old.is_none_or(|old| count.packets > old.packets)
        })
        .map(|(rule, _)| rule.clone())
        .collect()
}

/// Whether it is a rule at the uplink, for what leaves by that.
fn is_at_its_way_out(rule: &str) -> bool {
    rule.contains(&format!(" {UPLINK_OUT}/"))
}

fn is_drop(rule: &str) -> bool {
    rule.split('/')
        .nth(1)
        .is_some_and(|name| name.starts_with("drop-"))
}

/// The rule that has dropped a packet since, of that length if it is known: one that was let through may be answered, and the answer
/// dropped, by the same rule even.
fn dropped_by(before: &Counters, after: &Counters, length: Option<u64>) -> Option<String> {
    let is_it = |rule: &str| {
        let old = before.get(rule).copied().unwrap_or_default();
        let Some(new) = after.get(rule) else {
            return false;
        };
        match (new.bytes, length) {
            (Some(bytes), Some(length)) => {
                // What leaves by a link has its header already (dev_hard_header()), of which a rule there counts the bytes too.
                let header = match is_at_its_way_out(rule) {
                    true => ETHERNET as u64,
                    false => 0,
                };
                let length = length + header;
                bytes - old.bytes.unwrap_or_default() == (new.packets - old.packets) * length
            }
            _ => true,
        }
    };
    let grown = grown(before, after);
    grown.into_iter().rfind(|rule| is_drop(rule) && is_it(rule))
}

/// What became of a packet, of that length if it is known, that was sent at `before`.
fn eaten(
    field: &Field<'_>,
    before: &Counters,
    length: Option<u64>,
) -> Result<Option<Outcome>, String> {
    let rule = dropped_by(before, &field.counters()?, length);
    Ok(rule.map(|rule| Outcome::pass(format!("{rule} counted it"))))
}

/// How often a packet is sent while others of the stack's are let through, so that what became of it can't be told.
const TRIES: usize = 5;

/// Sends a packet that must not arrive.
fn shoot(field: &Field<'_>, from: &Result<Agent, String>, shot: Shot) -> Outcome {
    let work = || -> Result<Outcome, String> {
        let from = from.as_ref().map_err(Clone::clone)?;
        tried(field, || shoot_once(field, from, shot))
    };
    work().unwrap_or_else(Outcome::unknown)
}

/// Sends a packet until it can be told what became of it: a stack that is used lets others through all the time.
fn tried(
    field: &Field<'_>,
    mut once: impl FnMut() -> Result<Became, String>,
) -> Result<Outcome, String> {
    // The rules that have let something through, each time.
    let mut through: Option<Vec<String>> = None;
    for _ in 0..TRIES {
        match once()? {
            Became::Known(outcome) => return Ok(outcome),
            Became::Among(rules) => match &mut through {
                None => through = Some(rules),
                Some(each) => each.retain(|rule| rules.contains(rule)),
            },
        }
    }
    // And without it?
    let before = field.counters()?;
    pause(PATIENCE);
    let anyway = grown(&before, &field.counters()?);
    let mut through = through.unwrap_or_default();
    through.retain(|rule| !anyway.contains(rule));
    Ok(match through.as_slice() {
        [] => Outcome::unknown(format!(
            "sent {TRIES} times; no answer, no rule that drops has counted it, and others are let through all the time"
        )),
        through => Outcome::fail(format!("let through by {}", through.join(", "))),
    })
}

/// Waits so many milliseconds for what another processor does.
fn pause(milliseconds: u64) {
    let time = std::time::Duration::from_millis(milliseconds);
    let wait = rustix::event::Timespec {
        tv_sec: time.as_secs().cast_signed(),
        tv_nsec: time.subsec_nanos().into(),
    };
    let _ = rustix::event::poll(&mut [], Some(&wait));
}

/// So long a packet may wait for a processor, in milliseconds.
const TAKEN_IN: u64 = 10_000;

/// Waits until every processor has been seen with no packet that waits for it: what was sent before has met the rules by then, or
/// there was none that it met. A link counts a packet as received when it comes to wait.
fn taken_in() -> Result<(), String> {
    let read = || std::fs::read_to_string("/proc/net/softnet_stat");
    let mut busy: Option<BTreeSet<String>> = None;
    for _ in 0..TAKEN_IN {
        let told = read().map_err(|e| format!("read /proc/net/softnet_stat: {e}"))?;
        let now = waited_for(&told);
        busy = Some(match busy {
            None => now,
            Some(before) => before.intersection(&now).cloned().collect(),
        });
        // The last of them is taken from its queue before it meets a rule.
        pause(1);
        if busy.as_ref().is_some_and(BTreeSet::is_empty) {
            return Ok(());
        }
    }
    Err(format!(
        "a processor has not taken in what was sent within {} s: the machine is too busy to tell what became of it",
        TAKEN_IN / 1000
    ))
}

/// The processors that packets wait for, by what `/proc/net/softnet_stat` says: a line for each, hexadecimal, the eleventh of them
/// from 0 how many wait and the twelfth its number (`softnet_seq_show()`). Before Linux 5.10 it has neither, and none is named.
fn waited_for(told: &str) -> BTreeSet<String> {
    let lines = told.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(11);
        let waiting = u32::from_str_radix(words.next()?, 16).ok()?;
        let processor = words.next()?;
        (waiting > 0).then(|| processor.to_owned())
    });
    lines.collect()
}

/// What there is to be seen of a frame that was sent, as soon as it is: another processor may have taken it over.
fn seen<T>(mut look: impl FnMut() -> Result<Option<T>, String>) -> Result<Option<T>, String> {
    for _ in 0..20 {
        if let Some(seen) = look()? {
            return Ok(Some(seen));
        }
        pause(2);
    }
    taken_in()?;
    look()
}

/// What became of a packet.
enum Became {
    Known(Outcome),
    /// These rules have let something through meanwhile.
    Among(Vec<String>),
}

fn shoot_once(field: &Field<'_>, from: &Agent, shot: Shot) -> Result<Became, String> {
    let before = field.counters()?;
    let ask = |ask: &Ask| match from.ask(ask)? {
        Answer::Landing(landing) => Ok(landing),
        _ => Err(SOMETHING_ELSE.to_owned()),
    };
    let landing = match ask(&Ask::Send(shot))? {
        Landing::Sent => match eaten(field, &before, None)? {
            Some(outcome) => return Ok(Became::Known(outcome)),
            None => ask(&Ask::Await(PATIENCE))?,
        },
        landing => landing,
    };
    Ok(Became::Known(match landing {
        Landing::Answered => Outcome::fail("somebody answered"),
        Landing::Reset => Outcome::fail("ECONNREFUSED: it arrived, and nobody listens there"),
        Landing::Refused(errno) => Outcome::pass(format!("{:?}", nix::Error::from_raw(errno))),
        Landing::Sent => match taken_in().and_then(|()| eaten(field, &before, None))? {
            Some(outcome) => outcome,
            None => return Ok(lost(&before, &field.counters()?)),
        },
    }))
}

/// Neither answered nor eaten.
fn lost(before: &Counters, after: &Counters) -> Became {
    let (links, grown): (Vec<String>, Vec<String>) = grown(before, after)
        .into_iter()
        .partition(|counter| is_link(counter));
    if !grown.is_empty() {
        // What a rule has dropped meanwhile was something else.
        let through = grown.into_iter().filter(|rule| !is_drop(rule));
        return Became::Among(through.collect());
    }
    Became::Known(match links.as_slice() {
        [link] if link.ends_with(" received") => {
            Outcome::pass(format!("{link} it, and it went no further"))
        }
        _ => Outcome::unknown(format!(
            "sent; no answer within {PATIENCE} ms, and no rule counted it"
        )),
    })
}

/// The worst of several.
fn worst(outcomes: impl IntoIterator<Item = Outcome>, none: &str) -> Outcome {
    let rank = |outcome: &Outcome| match outcome.verdict {
        Verdict::Fail => 3,
        Verdict::Unknown => 2,
        Verdict::Pass => 1,
        Verdict::NotApplicable => 0,
    };
    outcomes
        .into_iter()
        .max_by_key(rank)
        .unwrap_or_else(|| Outcome::not_applicable(none))
}

fn tcp(address: Ipv4Addr, port: u16) -> Shot {
    Shot::Tcp(SocketAddrV4::new(address, port).into())
}

fn udp(address: Ipv4Addr, port: u16) -> Shot {
    Shot::Udp(SocketAddrV4::new(address, port).into())
}

/// An address of the subnet that nobody has.
fn nobody(plan: &Plan) -> Option<Ipv4Addr> {
    let taken: Vec<Ipv4Addr> = plan
        .apps
        .iter()
        .map(|app| app.address)
        .chain([plan.bridge.address])
        .collect();
    plan.bridge
        .subnet
        .hosts()
        .find(|address| !taken.contains(address))
}

/// A port of the sidecar's that is not published.
fn unpublished(plan: &Plan) -> u16 {
    let taken: Vec<u16> = plan
        .published()
        .map(|(_, publish)| publish.entry_port)
        .collect();
    (DISCARD..)
        .find(|port| !taken.contains(port))
        .unwrap_or(DISCARD)
}

/// The same of UDP: a port that is published by TCP if there is one.
fn unpublished_udp(plan: &Plan) -> u16 {
    let entries = |protocol| {
        plan.published()
            .filter(move |(_, publish)| publish.protocol == protocol)
            .map(|(_, publish)| publish.entry_port)
    };
    let taken: Vec<u16> = entries(Protocol::Udp).collect();
    entries(Protocol::Tcp)
        .chain(DISCARD..)
        .find(|port| !taken.contains(port))
        .unwrap_or(DISCARD)
}

/// An address that a selective app's clients don't have, of those that documentation is free to use (RFC 5737).
fn outsider(plan: &Plan, app: &AppPlan) -> Option<Ipv4Addr> {
    [[192, 0, 2, 1], [198, 51, 100, 1], [203, 0, 113, 1]]
        .map(Ipv4Addr::from)
        .into_iter()
        .find(|address| !is_client(app, *address) && !plan.bridge.subnet.contains(address))
}

/// The same by IPv6 (RFC 3849 and RFC 9637).
fn outsider6(plan: &Plan, app: &AppPlan) -> Option<Ipv6Addr> {
    let prefix = plan.bridge.prefix6?;
    [
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
        Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 1),
    ]
    .into_iter()
    .find(|address| !is_client(app, *address) && !prefix.contains(address))
}

fn is_client(app: &AppPlan, address: impl Into<IpAddr>) -> bool {
    let address = address.into();
    app.allow.iter().any(|net| net.contains(&address))
}

/// The host's own addresses that are neither loopback's nor an uplink's, nor a link's alone.
fn host_addresses() -> Vec<IpAddr> {
    let links = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let address = |link: nix::ifaddrs::InterfaceAddress| {
        let address = link.address?;
        let four = address.as_sockaddr_in().map(|to| IpAddr::V4(to.ip()));
        let six = address.as_sockaddr_in6().map(|to| IpAddr::V6(to.ip()));
        let uplink = link.interface_name.starts_with("lrp");
        four.or(six).filter(|address| {
            let of_link = matches!(address, IpAddr::V6(six) if six.is_unicast_link_local());
            !uplink && !address.is_loopback() && !of_link
        })
    };
    links.filter_map(address).collect()
}

/// Whether an app's egress grants a connection. A range of addresses grants neither the host's own, nor anything of the
/// stack.
fn grants(
    app: &AppPlan,
    plan: &Plan,
    hosts: &[IpAddr],
    protocol: Protocol,
    to: SocketAddr,
) -> bool {
    let own = hosts.contains(&to.ip())
        || plan
            .families()
            .iter()
            .any(|of| of.subnet.contains(&to.ip()) || to.ip() == of.host || to.ip() == of.sidecar);
    let covers = |egress: &Egress| {
        egress.covers(protocol, to.ip(), to.port()) && (egress.is_single() || !own)
    };
    let linked = |egress: &Egress| egress.covers(protocol, to.ip(), to.port());
    app.egress.iter().any(covers) || plan.links(app).any(|(_, link)| linked(&link))
}

/// What is next to what an app may connect to: the port after the last one, the same port of the other protocol, and of
/// the address after the last one.
fn beside_egress(app: &AppPlan) -> impl Iterator<Item = Shot> {
    app.egress.iter().flat_map(|egress| {
        let last = egress.to.broadcast();
        let here = match egress.to.network() {
            // To a socket that is its own host (ip(7)): another of everywhere (RFC 5737, RFC 3849).
            here if here == Ipv4Addr::UNSPECIFIED => Ipv4Addr::new(192, 0, 2, 1).into(),
            here if here == Ipv6Addr::UNSPECIFIED => STRANGER6.into(),
            here => here,
        };
        let after: Option<IpAddr> = match last {
            IpAddr::V4(last) => last
                .to_bits()
                .checked_add(1)
                .map(|next| Ipv4Addr::from_bits(next).into()),
            IpAddr::V6(last) => last
                .to_bits()
                .checked_add(1)
                .map(|next| Ipv6Addr::from_bits(next).into()),
        };
        let (same, other): (fn(_) -> _, fn(_) -> _) = match egress.protocol {
            Protocol::Tcp => (Shot::Tcp, Shot::Udp),
            Protocol::Udp => (Shot::Udp, Shot::Tcp),
        };
        let at = SocketAddr::new;
        let mut shots = vec![other(at(here, egress.first_port))];
        shots.extend(
            egress
                .last_port
                .checked_add(1)
                .map(|port| same(at(here, port))),
        );
        shots.extend(after.map(|after| same(at(after, egress.first_port))));
        shots
    })
}

/// So many ports of each app are tried by each other one.
const PORTS_TRIED: usize = 32;
/// Why there is no such attack.
const ALL_GRANTED: &str = "the app's egress grants every such port";

/// The ports at which an app is tried by the others: those that it has, what is next to them, and two of which it may have
/// none.
fn ports_of(app: &AppPlan) -> impl Iterator<Item = (Protocol, u16)> + use<> {
    let published = app.publish.iter();
    let published = published.map(|publish| (publish.protocol, publish.app_port));
    let own = app.listen.iter().filter(|port| **port != 0);
    let own = own.map(|port| (Protocol::Tcp, *port));
    let served = app.serves.iter().flat_map(|serves| {
        let after = serves.last_port.checked_add(1);
        let before = serves.first_port.checked_sub(1).filter(|port| *port > 0);
        let next = after.into_iter().chain(before);
        let same = next.map(|port| (serves.protocol, port));
        let both = [Protocol::Tcp, Protocol::Udp].map(|protocol| (protocol, serves.first_port));
        same.chain(both)
    });
    let others = [
        (Protocol::Tcp, 22),
        (Protocol::Tcp, 80),
        (Protocol::Udp, 53),
    ];
    let all: BTreeSet<(Protocol, u16)> = published.chain(own).chain(served).chain(others).collect();
    all.into_iter().take(PORTS_TRIED)
}

/// What the plan grants an app is no attack: then it is another port, or there is none.
fn not_granted(app: &AppPlan, plan: &Plan, hosts: &[IpAddr], shot: Shot) -> Option<Shot> {
    let (protocol, to) = match &shot {
        Shot::Tcp(to) => (Protocol::Tcp, *to),
        Shot::Udp(to) => (Protocol::Udp, *to),
        _ => return Some(shot),
    };
    let granted = |port| grants(app, plan, hosts, protocol, SocketAddr::new(to.ip(), port));
    let port = (to.port()..=u16::MAX).find(|port| !granted(*port))?;
    let to = SocketAddr::new(to.ip(), port);
    Some(match protocol {
        Protocol::Tcp => Shot::Tcp(to),
        Protocol::Udp => Shot::Udp(to),
    })
}

/// An app whose reach is tried.
struct Reach<'r> {
    field: &'r Field<'r>,
    app: &'r AppPlan,
    prober: &'r Result<Agent, String>,
    beside: &'r Result<Agent, String>,
    /// The host's own addresses.
    hosts: Vec<IpAddr>,
}

impl Reach<'_> {
    /// One that must be refused, if the plan does not grant all such.
    fn refused(&self, shot: Shot) -> Option<Shot> {
        not_granted(self.app, self.field.plan, &self.hosts, shot)
    }

    /// Tries it.
    fn fire(&self, shot: Shot) -> Outcome {
        match shot {
            Shot::Tcp(_) => shoot(self.field, self.beside, shot),
            shot => shoot(self.field, self.prober, shot),
        }
    }

    /// The worst of those of these that must be refused.
    fn worst(&self, shots: impl IntoIterator<Item = Shot>, none: &str) -> Outcome {
        let refused = shots.into_iter().filter_map(|shot| self.refused(shot));
        worst(refused.map(|shot| self.fire(shot)), none)
    }

    /// What it tries by IPv4, by what that proves; or why there is no such attack.
    fn by_ipv4(&self) -> [(&'static str, Result<Shot, &'static str>); 16] {
        let plan = self.field.plan;
        let (bridge, uplink) = (plan.bridge.address, &plan.uplink);
        let entry = first_entry(plan);
        let host = self.hosts.iter().find_map(|address| match address {
            IpAddr::V4(address) => Some(tcp(*address, 22)),
            IpAddr::V6(_) => None,
        });
        let published = entry.map(|entry| tcp(bridge, entry));
        let neighbour = nobody(plan).map(|address| tcp(address, 80));
        let subnet = udp(plan.bridge.subnet.broadcast(), DISCARD);
        let sidecar = tcp(uplink.sidecar_address, entry.unwrap_or(DISCARD));
        let foreign = Ipv4Addr::new;
        [
            ("out-sidecar-tcp", Ok(tcp(bridge, unpublished(plan)))),
            (
                "out-sidecar-published",
                published.ok_or("nothing is published"),
            ),
            ("out-sidecar-udp", Ok(udp(bridge, 53))),
            ("out-sidecar-icmp", Ok(Shot::Ping(bridge))),
            ("out-uplink", Ok(sidecar)),
            ("out-gateway", Ok(tcp(uplink.host_address, 22))),
            (
                "out-host",
                host.ok_or("the host has no address but loopback's"),
            ),
            ("out-lan", Ok(tcp(foreign(192, 0, 2, 1), 80))),
            ("out-internet", Ok(tcp(foreign(203, 0, 113, 1), 443))),
            ("out-metadata", Ok(tcp(foreign(169, 254, 169, 254), 80))),
            ("out-dns", Ok(udp(foreign(192, 0, 2, 53), 53))),
            ("out-broadcast", Ok(udp(Ipv4Addr::BROADCAST, 67))),
            ("out-subnet-broadcast", Ok(subnet)),
            ("out-multicast", Ok(udp(foreign(224, 0, 0, 251), 5353))),
            (
                "out-neighbour",
                neighbour.ok_or("every address of the subnet is taken"),
            ),
            ("out-ipv6-link", Ok(Shot::AllNodes)),
        ]
    }

    /// What it tries by IPv6.
    fn by_ipv6(&self) -> Vec<Shot> {
        let plan = self.field.plan;
        let stranger = IpAddr::from(STRANGER6);
        let tcp = |to, port| Shot::Tcp(SocketAddr::new(to, port));
        let udp = |to, port| Shot::Udp(SocketAddr::new(to, port));
        let mut shots = vec![tcp(stranger, 80)];
        if let [_, six] = plan.families().as_slice() {
            let clouds = METADATA6.into_iter().map(|to| tcp(to.into(), 80));
            shots.extend(clouds);
            let hosts = self.hosts.iter();
            let ours = hosts.filter(|address| address.is_ipv6()).take(4);
            shots.extend(ours.map(|address| tcp(*address, 22)));
            let entry = first_entry(plan).unwrap_or(DISCARD);
            shots.extend([
                tcp(six.bridge, unpublished(plan)),
                tcp(six.bridge, entry),
                udp(six.bridge, 53),
                tcp(six.sidecar, entry),
                tcp(six.host, 22),
                udp(six.host, 53),
                udp(stranger, 53),
            ]);
            let others = self.others().filter_map(|other| six.app(other));
            shots.extend(others.map(|to| tcp(to, 80)));
        }
        shots
    }

    /// The stack's other apps.
    fn others(&self) -> impl Iterator<Item = &AppPlan> {
        let apps = self.field.plan.apps.iter();
        apps.filter(|other| other.name != self.app.name)
    }

    /// What it tries of those.
    fn at_others(&self) -> impl Iterator<Item = Shot> {
        let shots = self
            .others()
            .flat_map(|other| ports_of(other).map(move |shot| (other, shot)));
        shots.flat_map(|(other, (protocol, port))| {
            other.addresses().map(move |address| {
                let to = SocketAddr::new(address, port);
                match protocol {
                    Protocol::Tcp => Shot::Tcp(to),
                    Protocol::Udp => Shot::Udp(to),
                }
            })
        })
    }
}

/// The sidecar's port of the first that is published.
fn first_entry(plan: &Plan) -> Option<u16> {
    let mut entries = plan.published().map(|(_, publish)| publish.entry_port);
    entries.next()
}

/// What an app tries to reach. Connections are tried by who is `beside` it: those of the app itself end at Landlock, and
/// would say nothing of the rules.
pub fn from_app(
    field: &Field<'_>,
    app: &AppPlan,
    prober: &Result<Agent, String>,
    beside: &Result<Agent, String>,
    findings: &mut Findings,
) {
    let reach = Reach {
        field,
        app,
        prober,
        beside,
        hosts: host_addresses(),
    };
    let name = app.name.as_str();
    for (id, shot) in reach.by_ipv4() {
        let outcome = match shot {
            Ok(shot) => reach.worst([shot], ALL_GRANTED),
            Err(why_not) => Outcome::not_applicable(why_not),
        };
        findings.add(id, name, outcome);
    }
    let outcome = reach.worst(reach.by_ipv6(), "");
    findings.add("out-ipv6", name, outcome);
    let outcome = reach.worst(beside_egress(app), "the app may connect to nothing");
    findings.add("out-egress-beside", name, outcome);
    let outcome = reach.worst(
        reach.at_others(),
        "the stack has one app, or `connect` grants every port",
    );
    findings.add("out-other-app", name, outcome);
}

/// What the sidecar tries to reach.
pub fn from_sidecar(field: &Field<'_>, sidecar: &Result<Agent, String>, findings: &mut Findings) {
    let plan = field.plan;
    findings.add(
        "sidecar-out-host",
        "sidecar",
        shoot(field, sidecar, tcp(plan.uplink.host_address, 22)),
    );
    findings.add(
        "sidecar-out-lan",
        "sidecar",
        shoot(field, sidecar, tcp(Ipv4Addr::new(192, 0, 2, 1), 80)),
    );
    let apps = plan.apps.iter().map(|app| {
        let port = app.publish.first().map_or(80, |publish| publish.app_port);
        shoot(field, sidecar, tcp(app.address, port))
    });
    findings.add("sidecar-out-app", "sidecar", worst(apps, "there is no app"));
}

/// What comes over the uplink.
pub fn from_host(field: &Field<'_>, findings: &mut Findings) {
    let plan = field.plan;
    let uplink = &plan.uplink;
    let link = uplink.host_link.as_str();
    let to_sidecar = |to: Mac, kind: u16, packet: &[u8]| {
        let frame = ethernet(to, uplink.host_mac, kind, packet);
        inject(field, field.host, link, frame)
    };
    let working = worst(published_ports(field), "nothing is published by TCP");
    findings.add("in-control", "host", working);

    for (id, packet) in over_the_uplink(plan) {
        let outcome = match packet {
            Some(packet) => to_sidecar(uplink.sidecar_mac, 0x0800, &packet),
            None => Outcome::not_applicable("nothing is published"),
        };
        findings.add(id, "sidecar", outcome);
    }
    let refused = of_outsiders(plan)
        .into_iter()
        .map(|(kind, packet)| to_sidecar(uplink.sidecar_mac, kind, &packet));
    findings.add(
        "in-not-allowed",
        "sidecar",
        worst(refused, "every client is allowed"),
    );
    let packet = datagram(uplink.host_address, Ipv4Addr::BROADCAST, DISCARD);
    findings.add(
        "in-broadcast",
        "sidecar",
        to_sidecar(Mac([0xff; 6]), 0x0800, &packet),
    );
    let outcomes = ipv6_attacks(plan)
        .into_iter()
        .map(|packet| to_sidecar(uplink.sidecar_mac, 0x86dd, &packet));
    findings.add("in-ipv6", "sidecar", worst(outcomes, ""));
    findings.add("host-guard", "host", to_host(field));
}

/// The published ports that an app must answer at, tried as a client does.
fn published_ports(field: &Field<'_>) -> Vec<Outcome> {
    let plan = field.plan;
    plan.published()
        // Only an app could answer by UDP, and need not.
        .filter(|(_, publish)| publish.protocol == Protocol::Tcp)
        .map(|(_, publish)| {
            let to = plan.uplink.entry(publish);
            match field
                .host
                .as_ref()
                .map_err(Clone::clone)
                .and_then(|host| host.ask(&Ask::Connect(to)))
            {
                Ok(Answer::Landing(Landing::Answered)) => Outcome::pass("connected"),
                Ok(Answer::Landing(landing)) => Outcome::fail(format!("{to}: {landing:?}")),
                Ok(_) => Outcome::unknown(SOMETHING_ELSE),
                Err(e) => Outcome::unknown(e),
            }
        })
        .collect()
}

/// Packets of IPv4 that must get no further than the sidecar, by what that proves; none where nothing is published.
fn over_the_uplink(plan: &Plan) -> [(&'static str, Option<Vec<u8>>); 8] {
    let (here, there) = (plan.uplink.host_address, plan.uplink.sidecar_address);
    let (app, sidecar) = (&plan.apps[0], plan.bridge.address);
    let app_port = app.publish.first().map_or(80, |publish| publish.app_port);
    let published = first_entry(plan);
    let entry = published.unwrap_or(DISCARD);
    let syn = |from, to, port| Some(segment(from, to, port, SYN));
    [
        ("in-bypass-app", syn(here, app.address, app_port)),
        ("in-bypass-sidecar", syn(here, sidecar, entry)),
        ("in-spoof-app", syn(app.address, there, entry)),
        ("in-spoof-sidecar", syn(sidecar, there, entry)),
        ("in-unpublished", syn(here, there, unpublished(plan))),
        (
            "in-unpublished-udp",
            Some(datagram(here, there, unpublished_udp(plan))),
        ),
        (
            "in-invalid",
            published.map(|entry| segment(here, there, entry, SYN | FIN)),
        ),
        ("in-icmp", Some(echo(here, there))),
    ]
}

/// To each published port, a packet of somebody whom its app does not allow, with its EtherType.
fn of_outsiders(plan: &Plan) -> Vec<(u16, Vec<u8>)> {
    let outsiders = plan.published().filter_map(|(app, publish)| {
        let entry = publish.entry_port;
        let payload = match publish.protocol {
            Protocol::Tcp => tcp_header(entry, SYN),
            Protocol::Udp => udp_header(entry),
        };
        Some(match plan.uplink.entry(publish).ip() {
            IpAddr::V4(there) => (0x0800, covered(outsider(plan, app)?, there, payload)),
            IpAddr::V6(there) => (0x86dd, covered6(outsider6(plan, app)?, there, payload)),
        })
    });
    outsiders.collect()
}

/// What a sidecar that was taken over sends to the host.
fn to_host(field: &Field<'_>) -> Outcome {
    let uplink = &field.plan.uplink;
    let (here, there) = (uplink.host_address, uplink.sidecar_address);
    let mut packets = vec![(0x0800, segment(there, here, 22, SYN))];
    if let (Some(there), Some(here)) = (uplink.sidecar_address6, uplink.host_address6) {
        packets.push((0x86dd, ipv6(there, here, 17, &UDP_TO_DISCARD)));
    }
    let outcomes = packets.into_iter().map(|(kind, packet)| {
        let frame = ethernet(uplink.host_mac, uplink.sidecar_mac, kind, &packet);
        inject(field, field.sidecar, uplink.sidecar_link.as_str(), frame)
    });
    worst(outcomes, "")
}

/// What a sidecar that was taken over sends to the loopback of an app whose clients come there, or in its name. The kernel would
/// take it in.
pub fn to_loopback(
    field: &Field<'_>,
    app: &AppPlan,
    net: &Result<Agent, String>,
    findings: &mut Findings,
) {
    let own = Ipv4Addr::LOCALHOST;
    let port = app.publish.first().map_or(DISCARD, |port| port.app_port);
    let from = field.plan.bridge.address;
    let attacks = [
        ("guard/drop-to-loopback", segment(from, own, DISCARD, SYN)),
        ("guard/drop-to-loopback", segment(from, own, port, SYN)),
        (
            "guard/drop-from-loopback",
            segment(own, app.address, port, SYN),
        ),
    ];
    let outcome = match app.source {
        Source::Localhost => {
            let dropped = attacks.into_iter().map(|(rule, packet)| {
                let frame = ethernet(app.mac, field.plan.bridge.mac, 0x0800, &packet);
                counted_by(field, app, net, rule, frame).unwrap_or_else(Outcome::unknown)
            });
            worst(dropped, "")
        }
        _ => Outcome::not_applicable(NOT_BY_LOOPBACK),
    };
    findings.add("in-app-loopback", app.name.as_str(), outcome);
}

/// Puts a frame on an app's link, which that rule in its network namespace must drop.
fn counted_by(
    field: &Field<'_>,
    app: &AppPlan,
    net: &Result<Agent, String>,
    rule: &str,
    frame: Vec<u8>,
) -> Result<Outcome, String> {
    let net = net.as_ref().map_err(Clone::clone)?;
    let count = || match net.ask(&Ask::Counters(APP_TABLE.to_owned()))? {
        Answer::Counters(counters) => Ok(counters.get(rule).map_or(0, |count| count.packets)),
        _ => Err("the counters could not be read".to_owned()),
    };
    let before = count()?;
    let sidecar = field.sidecar.as_ref().map_err(Clone::clone)?;
    sidecar.ask(&Ask::Inject {
        link: app.port_link.to_string(),
        frame,
    })?;
    let counted = seen(|| Ok((count()? > before).then_some(())))?;
    Ok(match counted {
        Some(()) => Outcome::pass(format!("{rule} counted it")),
        None => Outcome::fail(format!("sent, and {rule} has not counted it")),
    })
}

/// What comes over the uplink and must get no further: between strangers; and, of a stack that has IPv6, to an app, to a
/// port that isn't published, in the name of an app, and what a router says to everybody (RFC 4861, 4.2).
fn ipv6_attacks(plan: &Plan) -> Vec<Vec<u8>> {
    // RFC 3849.
    let stranger = |last| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last);
    let mut packets = vec![ipv6(stranger(1), stranger(2), 17, &UDP_TO_DISCARD)];
    let app = plan.apps[0].address6;
    if let (Some(app), Some(bridge), Some(there)) =
        (app, plan.bridge.address6, plan.uplink.sidecar_address6)
    {
        let link = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        packets.extend([
            ipv6(stranger(1), app, 17, &UDP_TO_DISCARD),
            ipv6(stranger(1), bridge, 17, &UDP_TO_DISCARD),
            ipv6(stranger(1), there, 17, &UDP_TO_DISCARD),
            ipv6(app, there, 17, &UDP_TO_DISCARD),
            ipv6(
                link,
                all_nodes,
                58,
                &[134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0],
            ),
        ]);
    }
    packets
}

/// Puts a frame on one end of the uplink.
fn inject(field: &Field<'_>, from: &Result<Agent, String>, link: &str, frame: Vec<u8>) -> Outcome {
    let work = || -> Result<Outcome, String> {
        let from = from.as_ref().map_err(Clone::clone)?;
        let length = frame.len().checked_sub(ETHERNET).map(|n| n as u64);
        tried(field, || {
            let before = field.counters()?;
            from.ask(&Ask::Inject {
                link: link.to_owned(),
                frame: frame.clone(),
            })?;
            Ok(match seen(|| eaten(field, &before, length))? {
                Some(outcome) => Became::Known(outcome),
                None => lost(&before, &field.counters()?),
            })
        })
    };
    work().unwrap_or_else(Outcome::unknown)
}

/// This stack's apps against another stack, and that one's against this one.
pub fn other_stack(
    field: &Field<'_>,
    beside: &[Result<Agent, String>],
    scratch: &mut io::Result<Scratch>,
    state: &StateRoot,
    findings: &mut Findings,
) {
    let hosts = host_addresses();
    let attack = |scratch: &mut io::Result<Scratch>| -> Result<(Outcome, Outcome), String> {
        let scratch = scratch
            .as_mut()
            .map_err(|e| format!("start a scratch stack: {e}"))?;
        scratch.wait()?;
        let other = Target::find(state, &scratch.name)?;
        let theirs = &other.status.plan;
        let targets = |plan: &Plan| {
            let app = &plan.apps[0];
            let port = app.publish.first().map_or(80, |publish| publish.app_port);
            let entry = plan
                .published()
                .map(|(_, publish)| publish.entry_port)
                .next()
                .unwrap_or(DISCARD);
            [
                tcp(app.address, port),
                tcp(plan.bridge.address, entry),
                tcp(plan.uplink.sidecar_address, entry),
            ]
        };
        let out = field
            .plan
            .apps
            .iter()
            .zip(beside)
            .flat_map(|(app, beside)| {
                let shots = targets(theirs).into_iter();
                let shots = shots.filter_map(|shot| not_granted(app, field.plan, &hosts, shot));
                shots.map(|shot| shoot(field, beside, shot))
            });
        let out = worst(out.collect::<Vec<_>>(), ALL_GRANTED);

        let sidecar = other.enter("sidecar")?;
        let sidecar = Agent::join(&Join::Network(sidecar.pidfd.as_fd())).map_err(|e| e.to_string());
        let across = Field {
            plan: theirs,
            sidecar: &sidecar,
            host: field.host,
        };
        let app = other.enter(theirs.apps[0].name.as_str());
        let beside = super::target::beside(&app);
        let into = worst(
            targets(field.plan).map(|shot| shoot(&across, &beside, shot)),
            "",
        );
        Ok((out, into))
    };
    let (out, into) =
        attack(scratch).unwrap_or_else(|e| (Outcome::unknown(e.clone()), Outcome::unknown(e)));
    if let Ok(scratch) = scratch {
        scratch.leave();
    }
    findings.add("out-other-stack", BETWEEN, out);
    findings.add("in-other-stack", BETWEEN, into);
}

/// Whom the probes between stacks are about.
const BETWEEN: &str = "apps";

const FIN: u8 = 1;
const SYN: u8 = 2;
/// A hop to the other end, one more for who would forward it, and there it ends.
const HOPS: u8 = 2;

/// Bytes of its header.
const ETHERNET: usize = 14;

fn ethernet(to: Mac, from: Mac, kind: u16, packet: &[u8]) -> Vec<u8> {
    [&to.0[..], &from.0, &kind.to_be_bytes(), packet].concat()
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| {
            u32::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]))
        })
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).expect("payloads here are a few bytes");
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0x4c, 0x52, 0, 0, HOPS, protocol, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum);
    packet.extend(payload);
    packet
}

/// What a packet carries, whose checksum covers the pseudo-header too.
struct Payload {
    protocol: u8,
    bytes: Vec<u8>,
    /// Where its checksum is.
    at: usize,
}

impl Payload {
    /// Over the addresses, the protocol and the length; in what order they come doesn't matter to the sum (RFC 793,
    /// 3.1, and RFC 8200, 8.1).
    fn sum(mut self, addresses: &[u8]) -> Self {
        let length = u16::try_from(self.bytes.len()).expect("payloads here are a few bytes");
        let mut all = addresses.to_vec();
        all.extend([0, self.protocol]);
        all.extend(length.to_be_bytes());
        all.extend(&self.bytes);
        let sum = checksum(&all);
        self.bytes[self.at..self.at + 2].copy_from_slice(&sum);
        self
    }
}

fn covered(from: Ipv4Addr, to: Ipv4Addr, payload: Payload) -> Vec<u8> {
    let payload = payload.sum(&[from.octets(), to.octets()].concat());
    ipv4(from, to, payload.protocol, &payload.bytes)
}

fn covered6(from: Ipv6Addr, to: Ipv6Addr, payload: Payload) -> Vec<u8> {
    let payload = payload.sum(&[from.octets(), to.octets()].concat());
    ipv6(from, to, payload.protocol, &payload.bytes)
}

fn segment(from: Ipv4Addr, to: Ipv4Addr, port: u16, flags: u8) -> Vec<u8> {
    covered(from, to, tcp_header(port, flags))
}

fn datagram(from: Ipv4Addr, to: Ipv4Addr, port: u16) -> Vec<u8> {
    covered(from, to, udp_header(port))
}

/// A few bytes after what a packet needs. With them it has an odd length, which an answer to it has not: RST, ICMP's errors.
const ODD: [u8; 3] = [0; 3];

/// TCP with next to no data.
fn tcp_header(port: u16, flags: u8) -> Payload {
    // Another source port each time, or the kernel would take the second for a repetition of the first.
    let mut random = [0; 2];
    let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    let mut payload = vec![];
    payload.extend((u16::from_ne_bytes(random) | 0x8000).to_be_bytes());
    payload.extend(port.to_be_bytes());
    payload.extend([0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, flags, 0x10, 0, 0, 0, 0, 0]);
    payload.extend(ODD);
    Payload {
        protocol: 6,
        bytes: payload,
        at: 16,
    }
}

fn udp_header(port: u16) -> Payload {
    let mut payload = vec![0x9c, 0x40];
    payload.extend(port.to_be_bytes());
    payload.extend([0, 8 + ODD.len() as u8, 0, 0]);
    payload.extend(ODD);
    Payload {
        protocol: 17,
        bytes: payload,
        at: 6,
    }
}

fn echo(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut payload = vec![8, 0, 0, 0, 0x4c, 0x52, 0, 1];
    payload.extend(ODD);
    let sum = checksum(&payload);
    payload[2..4].copy_from_slice(&sum);
    ipv4(from, to, 1, &payload)
}

/// UDP of an odd length; its checksum is nobody's concern before a rule has seen it.
const UDP_TO_DISCARD: [u8; 11] = [0x9c, 0x40, 0, 9, 0, 11, 0, 0, 0, 0, 0];

fn ipv6(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("payloads here are a few bytes");
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([protocol, HOPS]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(rules: &[(&str, u64, u64)]) -> Counters {
        let count = |&(rule, packets, bytes): &(&str, u64, u64)| {
            let bytes = Some(bytes);
            (rule.to_owned(), Count { packets, bytes })
        };
        rules.iter().map(count).collect()
    }

    #[test]
    fn a_drop_of_another_length_is_of_another_packet() {
        let rule = "sidecar guard/drop-uplink-bypass";
        let before = counted(&[(rule, 5, 500)]);
        let dropped = |packets, bytes| {
            let after = counted(&[(rule, packets, bytes)]);
            dropped_by(&before, &after, Some(51))
        };
        assert_eq!(dropped(6, 551).as_deref(), Some(rule));
        // It has been sent again.
        assert_eq!(dropped(7, 602).as_deref(), Some(rule));
        // The answer to it; itself or something beside it can't be told; nothing.
        assert_eq!(dropped(6, 596), None);
        assert_eq!(dropped(7, 647), None);
        assert_eq!(dropped(5, 500), None);
        let after = counted(&[(rule, 6, 596)]);
        assert_eq!(dropped_by(&before, &after, None).as_deref(), Some(rule));
        // Nor has that rule let the packet through.
        assert!(matches!(lost(&before, &after), Became::Among(rules) if rules.is_empty()));
        // With the header of the link by which it leaves.
        let sent = |bytes| {
            let after = counted(&[("host uplink-out/drop-uplink-bypass", 1, bytes)]);
            dropped_by(&Counters::new(), &after, Some(51))
        };
        assert!(sent(65).is_some() && sent(51).is_none() && sent(96).is_none());
        let new = counted(&[("sidecar forward/drop-new", 1, 51)]);
        let by = dropped_by(&Counters::new(), &new, Some(51));
        assert_eq!(by.as_deref(), Some("sidecar forward/drop-new"));
    }

    #[test]
    fn the_processors_that_packets_wait_for_are_known() {
        let line = |waiting: &str, processor: &str| {
            format!(
                "03f16750 00000000 {}{waiting} {processor} 00000000 00000000\n",
                "00000000 ".repeat(9)
            )
        };
        let none = BTreeSet::new();
        let both = line("00000000", "00000000") + &line("00000000", "00000001");
        assert_eq!(waited_for(&both), none);
        let second = line("00000000", "00000000") + &line("0000001f", "0000000b");
        assert_eq!(waited_for(&second), BTreeSet::from(["0000000b".to_owned()]));
        // As Linux 5.4 says it.
        assert_eq!(
            waited_for("03f16750 00000000 00000028 0 0 0 0 0 0 0 0\n"),
            none
        );
        // Of the kernel that this runs on.
        let told = std::fs::read_to_string("/proc/net/softnet_stat").unwrap();
        let processors: Vec<_> = told
            .lines()
            .map(|line| line.split_whitespace().nth(12))
            .collect();
        assert!(
            !processors.is_empty() && processors.iter().all(Option::is_some),
            "{told}"
        );
    }

    #[test]
    fn a_checksum_over_a_packet_with_its_checksum_is_nothing() {
        let packet = ipv4(
            Ipv4Addr::new(192, 0, 2, 1),
            Ipv4Addr::new(192, 0, 2, 2),
            6,
            &[],
        );
        assert_eq!(checksum(&packet), [0, 0]);
    }

    #[test]
    fn a_rule_that_drops_is_known_by_its_name() {
        assert!(is_drop("sidecar guard/drop-app-egress"));
        assert!(!is_drop("sidecar guard/accept-uplink"));
        assert!(!is_drop("sidecar forward/(unnamed)"));
    }

    #[test]
    fn a_packet_that_only_an_accept_has_counted_was_let_through() {
        let before = counted(&[("sidecar forward/accept-published", 1, 60)]);
        let after = counted(&[("sidecar forward/accept-published", 2, 120)]);
        assert!(matches!(lost(&before, &after), Became::Among(rules) if rules.len() == 1));
        let nothing = lost(&before, &before);
        assert!(matches!(nothing, Became::Known(outcome) if outcome.verdict == Verdict::Unknown));
    }
}

//! Tables: what was seen, in a line each, and the sentence that comes of it. Nothing here asks the kernel.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::Question;
use super::asked::Asked;
use super::judge::{Case, Outcome};
use super::seen::{Sight, Site};
use crate::config::clients::{Rate, everybody};
use crate::config::{Protocol, Source};
use crate::firewall::Fill;
use crate::firewall::trace::{Content, Headers, Hop, Step, Verdict};
use crate::net::Route;
use crate::plan::{Plan, Transport, UplinkEnd, example};

/// What the kernel would say.
struct Said {
    host_listens: Option<bool>,
    app_listens: Option<bool>,
    /// Settings by their name below /proc/sys/net.
    settings: &'static [(&'static str, u64)],
    /// The host's way back to the client.
    back: Option<Route>,
}

/// A host where everything is in order.
const WELL: Said = Said {
    host_listens: Some(true),
    app_listens: Some(true),
    settings: &[("ipv4/ip_forward", 1)],
    back: Some(Route {
        is_local: false,
        leads_away: true,
        link: Some(2),
    }),
};

impl Asked for Said {
    fn host_listens(&self, _: Protocol, _: SocketAddr) -> Option<bool> {
        self.host_listens
    }

    fn app_listens(&self, app: &str, _: Protocol, at: SocketAddr) -> Option<bool> {
        assert_eq!((app, at), ("web", "172.18.0.10:8080".parse().unwrap()));
        self.app_listens
    }

    fn link_name(&self, _: Site, link: u32) -> Option<String> {
        (link == 2).then(|| "eth0".to_owned())
    }

    fn route(&self, _: Site, _: (IpAddr, IpAddr), _: u32) -> io::Result<Route> {
        self.back
            .ok_or_else(|| io::Error::other("Network is unreachable"))
    }

    fn way_back(&self, to: IpAddr) -> io::Result<Route> {
        self.route(Site::Host, (to, to), 0)
    }

    fn setting(&self, name: &str) -> Option<u64> {
        let mut all = self.settings.iter();
        all.find(|(known, _)| *known == name)
            .map(|(_, value)| *value)
    }
}

/// Of a line such as `host syn 203.0.113.5:4000>192.0.2.1:80 in tracked ip/mine/input/7=drop` what the kernel tells: a packet,
/// and in order where it was seen and which rules it met. `7` is a rule's handle, `-` a policy.
fn take(sights: &mut [Sight], order: &mut usize, number: u32, line: &str) {
    let mut words = line.split_whitespace();
    let mut word = || words.next().unwrap();
    let site = word();
    let sight = sights.iter_mut().find(|sight| sight.site.name() == site);
    let sight = sight.unwrap_or_else(|| panic!("no {site} is looked at: {line}"));
    let content = match word() {
        "syn" => Content::Syn,
        "synack" => Content::SynAck,
        "reset" => Content::Reset,
        "datagram" => Content::Datagram,
        "unreachable" => Content::Unreachable,
        other => panic!("{other}: {line}"),
    };
    let (source, target) = word().split_once('>').unwrap();
    let headers = Headers {
        source: source.parse().unwrap(),
        target: target.parse().unwrap(),
        content,
    };
    for word in words {
        let mut step = Step {
            packet: number,
            family: "inet".to_owned(),
            table: "lrpns-trace".to_owned(),
            chain: "marking".to_owned(),
            rule: None,
            verdict: Verdict::Continue,
            headers: Some(headers),
            link: Some(2),
            connection: None,
        };
        let hop = match word {
            "in" => Hop::ComesIn,
            "tracked" => Hop::Tracked,
            "routing" => Hop::Routing,
            "for-us" => Hop::ForUs,
            "delivered" => Hop::Delivered,
            "sent" => Hop::Sent,
            "forwarded" => Hop::Forwarded,
            "leaves" => Hop::Leaves,
            rule => {
                let (place, verdict) = rule.split_once('=').unwrap();
                let place: Vec<&str> = place.split('/').collect();
                let [family, table, chain, handle] = place[..] else {
                    panic!("{rule}: {line}")
                };
                step.family = family.to_owned();
                step.table = table.to_owned();
                step.chain = chain.to_owned();
                step.rule = handle.parse().ok();
                step.verdict = match verdict {
                    "accept" => Verdict::Accept,
                    "drop" => Verdict::Drop,
                    other => panic!("{other}: {line}"),
                };
                sight.take(step, None, order);
                continue;
            }
        };
        sight.take(step, Some(hop), order);
    }
}

/// Where is looked at: at the host's side as well, or as an ordinary user.
fn sights(plan: &Plan, as_root: bool, connections: Option<Fill>) -> Vec<Sight> {
    let mut sites = vec![];
    if as_root {
        sites.push(Site::Host);
    }
    if plan.uplink.ends_at == UplinkEnd::Relay {
        sites.push(Site::Relay);
    }
    sites.push(Site::Sidecar);
    // Handle 7 is a rule with a text, 8 one with a comment of ours.
    let text = ("inet".to_owned(), "mine".to_owned(), 7);
    let other = ("ip".to_owned(), "nat".to_owned(), 9);
    let comment = ("ip".to_owned(), "lrpns".to_owned(), 8);
    let one = |site| Sight {
        site,
        connections,
        comments: BTreeMap::from([(comment.clone(), "forward/web-80".to_owned())]),
        texts: BTreeMap::from([
            (text.clone(), "tcp dport 80 drop".to_owned()),
            (other.clone(), "tcp dport 80 dnat to 192.0.2.99".to_owned()),
        ]),
        seen: vec![],
    };
    sites.into_iter().map(one).collect()
}

/// One that the relay carries, from the client's packet to the app's answer, as far as these many lines.
const BY_RELAY: [&str; 5] = [
    "host syn 203.0.113.5:4000>192.0.2.10:80 in tracked routing for-us delivered",
    "host synack 192.0.2.10:80>203.0.113.5:4000 sent leaves",
    "relay syn 203.0.113.5:4000>198.19.0.1:80 sent leaves",
    "sidecar syn 203.0.113.5:4000>198.19.0.1:80 in tracked routing forwarded ip/lrpns/forward/8=accept leaves",
    "sidecar synack 172.18.0.10:8080>172.18.0.1:4000 in tracked routing forwarded leaves",
];

/// The same by DNAT.
const BY_DNAT: [&str; 4] = [
    "host syn 203.0.113.5:4000>192.0.2.10:80 in tracked inet/lrpns.host/prerouting.shop/3=accept routing forwarded leaves",
    "sidecar syn 203.0.113.5:4000>198.19.0.1:80 in tracked routing forwarded ip/lrpns/forward/8=accept leaves",
    "sidecar synack 172.18.0.10:8080>203.0.113.5:4000 in tracked routing forwarded leaves",
    "host synack 198.19.0.1:80>203.0.113.5:4000 in tracked routing forwarded leaves",
];

/// A stack of which everybody may reach `web` at port 80.
fn shop() -> Plan {
    let mut plan = example();
    plan.apps[0].allow = everybody();
    plan
}

/// A question about port 80 over a stack that publishes it by relay, unless it is told otherwise.
struct Row<'a> {
    lines: Vec<&'a str>,
    plan: Plan,
    running: &'a [&'a str],
    said: Said,
    client: &'a str,
    port: u16,
    protocol: Protocol,
    as_root: bool,
    connections: Option<Fill>,
    outcome: Outcome,
    sentence: &'a str,
    /// Whether there is nothing to wait for any more.
    over: bool,
}

fn row<'a>(lines: &[&'a str], outcome: Outcome, sentence: &'a str) -> Row<'a> {
    Row {
        lines: lines.to_vec(),
        plan: shop(),
        running: &["sidecar", "relay", "web", "db"],
        said: WELL,
        client: "203.0.113.5",
        port: 80,
        protocol: Protocol::Tcp,
        as_root: true,
        connections: None,
        outcome,
        sentence,
        over: false,
    }
}

fn over<'a>(lines: &[&'a str], outcome: Outcome, sentence: &'a str) -> Row<'a> {
    Row {
        over: true,
        ..row(lines, outcome, sentence)
    }
}

fn by_dnat() -> Plan {
    let mut plan = shop();
    plan.uplink.ends_at = UplinkEnd::Host;
    plan.apps[0].publish[0].via = Transport::Dnat;
    plan
}

fn by_udp() -> Plan {
    let mut plan = shop();
    plan.apps[0].publish[0].protocol = Protocol::Udp;
    plan
}

fn check(rows: Vec<Row<'_>>) {
    for (number, row) in rows.into_iter().enumerate() {
        let question = Question {
            client: row.client.parse().unwrap(),
            port: row.port,
            protocol: row.protocol,
            within: Duration::from_secs(10),
        };
        let running = row.running.iter().map(|&name| name.to_owned()).collect();
        let case = Case::new(&question, &row.plan, running);
        let mut sights = sights(&row.plan, row.as_root, row.connections);
        let mut order = 0;
        for (line, packet) in row.lines.iter().zip(1..) {
            take(&mut sights, &mut order, packet, line);
        }
        let sights: Vec<&Sight> = sights.iter().collect();
        let answer = case.answer(&sights, &row.said);
        let text = answer.text();
        let sentence = text.lines().next().unwrap();
        let found = (answer.outcome, sentence, case.is_over(&sights, &row.said));
        assert_eq!(
            found,
            (row.outcome, row.sentence, row.over),
            "row {number}: {:#?}",
            row.lines
        );
        assert_eq!(
            case.has_begun(&sights),
            !row.lines.is_empty(),
            "row {number}"
        );
    }
}

#[test]
fn one_that_the_relay_carries_and_each_place_where_it_may_end() {
    let arrives = "arrives at web port 8080: accepted in the sidecar by table ip lrpns, chain forward, rule `forward/web-80`";
    let first = BY_RELAY[0];
    check(vec![
        over(&BY_RELAY, Outcome::Arrives, arrives),
        row(
            &[],
            Outcome::NotSeen,
            "no packet of 203.0.113.5 to port 80 reached the host within 10 s",
        ),
        Row {
            as_root: false,
            ..row(
                &[],
                Outcome::NotSeen,
                "no packet for 203.0.113.5 and port 80 reached the sidecar within 10 s; what the host does before that can be \
                 traced by root only",
            )
        },
        // As an ordinary user only the stack's own side is seen.
        Row {
            as_root: false,
            ..over(&BY_RELAY[2..], Outcome::Arrives, arrives)
        },
        over(
            &["host syn 203.0.113.5:4000>192.0.2.10:80 in tracked inet/mine/input/7=drop"],
            Outcome::Dropped,
            "dropped in the host by table inet mine, chain input, rule `tcp dport 80 drop`",
        ),
        over(
            &[
                "host syn 203.0.113.5:4000>192.0.2.10:80 in tracked routing for-us inet/mine/input/-=drop",
            ],
            Outcome::Dropped,
            "dropped in the host by table inet mine, chain input, its policy",
        ),
        over(
            &[
                first,
                BY_RELAY[2],
                "sidecar syn 203.0.113.5:4000>198.19.0.1:80 in tracked routing ip/lrpns/forward/5=drop",
            ],
            Outcome::Dropped,
            "dropped in the sidecar by table ip lrpns, chain forward, the rule with handle 5",
        ),
        row(
            &["host syn 203.0.113.5:4000>192.0.2.10:80 in tracked routing for-us"],
            Outcome::Lost,
            "lost in the host: something in its input hook that is no rule of nftables has taken it",
        ),
        Row {
            running: &["sidecar", "web"],
            ..row(
                &[first],
                Outcome::Lost,
                "lost in the host: it is for the relay, which does not run",
            )
        },
        Row {
            said: Said {
                host_listens: Some(false),
                ..WELL
            },
            ..row(
                &[first],
                Outcome::Lost,
                "lost in the host: nobody listens on port 80",
            )
        },
        over(
            &[
                first,
                "host reset 192.0.2.10:80>203.0.113.5:4000 sent leaves",
            ],
            Outcome::Lost,
            "lost in the host: nobody listens on port 80",
        ),
        over(
            &[
                first,
                BY_RELAY[1],
                "host reset 192.0.2.10:80>203.0.113.5:4000 sent leaves",
            ],
            Outcome::Refused,
            "refused by the relay: it could not dial for it",
        ),
        row(
            &[first],
            Outcome::Lost,
            "reaches the relay's port 80, which has not answered: it has more to do than it can",
        ),
        row(
            &[first, BY_RELAY[1]],
            Outcome::Lost,
            "reaches the relay's port 80, which has answered and not dialled: the answer doesn't get back to 203.0.113.5, or \
             the relay has no place for more connections",
        ),
        over(
            &[
                first,
                "host synack 192.0.2.10:80>203.0.113.5:4000 sent inet/mine/output/7=drop",
            ],
            Outcome::AnswerDropped,
            "reaches the relay's port 80, whose answer is dropped in the host by table inet mine, chain output, rule `tcp \
             dport 80 drop`",
        ),
        row(
            &[first, BY_RELAY[2]],
            Outcome::Lost,
            "lost between relay and sidecar: the relay has dialled, and it left by lrp0",
        ),
        row(
            &[
                first,
                "relay syn 203.0.113.5:4000>198.19.0.1:80 sent inet/mine/output/7=accept",
            ],
            Outcome::Lost,
            "lost in the relay after table inet mine, chain output, rule `tcp dport 80 drop`: the relay has dialled",
        ),
        // Another client's of the same moment is nobody's business.
        row(
            &[
                first,
                "relay syn 203.0.113.6:4000>198.19.0.1:80 sent leaves",
            ],
            Outcome::Lost,
            "reaches the relay's port 80, which has not answered: it has more to do than it can",
        ),
    ]);
}

#[test]
fn whom_the_relay_refuses() {
    let allow = |ranges: &[&str]| {
        let mut plan = shop();
        plan.apps[0].allow = ranges.iter().map(|range| range.parse().unwrap()).collect();
        plan
    };
    let rated = |mut plan: Plan| {
        plan.apps[0].rate = Some(Rate {
            count: 10,
            seconds: 1,
            per_client: false,
        });
        plan
    };
    let reset = "host reset 192.0.2.10:80>203.0.113.5:4000 sent leaves";
    check(vec![
        Row {
            plan: allow(&["10.0.0.0/8"]),
            ..row(
                &BY_RELAY[..2],
                Outcome::Refused,
                "refused by the relay: 203.0.113.5 is in no range of `allow` of web, which has 10.0.0.0/8",
            )
        },
        Row {
            plan: allow(&[]),
            ..row(
                &BY_RELAY[..2],
                Outcome::Refused,
                "refused by the relay: 203.0.113.5 is in no range of `allow` of web, which has nothing",
            )
        },
        Row {
            plan: rated(shop()),
            ..over(
                &[BY_RELAY[0], BY_RELAY[1], reset],
                Outcome::Refused,
                "refused by the relay: `rate` of web, 10/second, lets nobody more in at the moment",
            )
        },
    ]);
}

#[test]
fn what_an_app_says_to_it_and_what_becomes_of_that() {
    let by = "accepted in the sidecar by table ip lrpns, chain forward, rule `forward/web-80`";
    let there = &BY_RELAY[..4];
    let then = |line: &'static str| {
        let mut lines = there.to_vec();
        lines.push(line);
        lines
    };
    let nobody = format!(
        "reaches web port 8080, where nobody listens: its kernel answers with a reset; {by}"
    );
    let silent = format!("reaches web port 8080, where nobody listens; {by}");
    let gone = format!("reaches web port 8080, but web does not run; {by}");
    let full = format!(
        "reaches web port 8080, where somebody listens, but nobody answers: its backlog is full, or it has no way back; {by}"
    );
    let crowd = format!(
        "reaches web port 8080, where somebody listens, but nobody answers: the sidecar knows 60000 connections, and has \
         hardly a port of its own left to reach it from, or its backlog is full; {by}"
    );
    let arrives = format!("arrives at web port 8080: {by}");
    let crowded = Some(Fill {
        now: 60_000,
        most: 262_144,
    });
    let deaf = || Said {
        app_listens: Some(false),
        ..WELL
    };
    check(vec![
        over(
            &then(
                "sidecar reset 172.18.0.10:8080>172.18.0.1:4000 in tracked routing forwarded leaves",
            ),
            Outcome::Refused,
            &nobody,
        ),
        over(
            &then(
                "sidecar synack 172.18.0.10:8080>172.18.0.1:4000 in tracked ip/lrpns/forward/6=drop",
            ),
            Outcome::AnswerDropped,
            "arrives at web port 8080, but its answer is dropped in the sidecar by table ip lrpns, chain forward, the rule \
             with handle 6",
        ),
        // What another app sends is not taken for the answer.
        row(
            &then(
                "sidecar synack 172.18.0.11:8080>172.18.0.1:4000 in tracked routing forwarded leaves",
            ),
            Outcome::Lost,
            &full,
        ),
        Row {
            running: &["sidecar", "relay"],
            ..row(there, Outcome::Lost, &gone)
        },
        Row {
            said: deaf(),
            ..row(there, Outcome::Refused, &silent)
        },
        row(there, Outcome::Lost, &full),
        Row {
            connections: crowded,
            ..row(there, Outcome::Lost, &crowd)
        },
        // The relay's ports are no bound where the client's own are used.
        Row {
            connections: crowded,
            plan: {
                let mut plan = shop();
                plan.apps[0].source = Source::Client;
                plan
            },
            ..row(there, Outcome::Lost, &full)
        },
        // Nobody tells who listens there.
        Row {
            said: Said {
                app_listens: None,
                ..WELL
            },
            ..row(there, Outcome::Arrives, &arrives)
        },
    ]);
}

#[test]
fn a_datagram_arrives_where_somebody_listens() {
    let arrives = "arrives at web port 8080: accepted in the sidecar by table ip lrpns, chain forward, rule `forward/web-80`";
    let datagram: Vec<String> = [BY_RELAY[0], BY_RELAY[2], BY_RELAY[3]]
        .iter()
        .map(|line| line.replace(" syn ", " datagram "))
        .collect();
    let there: Vec<&str> = datagram.iter().map(String::as_str).collect();
    let udp = |row| Row {
        plan: by_udp(),
        protocol: Protocol::Udp,
        ..row
    };
    let mut refused = there.clone();
    refused
        .push("sidecar unreachable 172.18.0.10:0>172.18.0.1:0 in tracked routing forwarded leaves");
    check(vec![
        udp(over(&there, Outcome::Arrives, arrives)),
        udp(over(
            &refused,
            Outcome::Refused,
            "reaches web port 8080, where nobody listens: its kernel answers with port unreachable; accepted in the sidecar by \
             table ip lrpns, chain forward, rule `forward/web-80`",
        )),
        udp(row(
            &there[..1],
            Outcome::Lost,
            "reaches the relay's port 80, which has not carried it on: it has more to do than it can",
        )),
    ]);
}

#[test]
fn one_that_the_host_forwards_and_each_place_where_it_may_end() {
    let arrives = "arrives at web port 8080: accepted in the sidecar by table ip lrpns, chain forward, rule `forward/web-80`";
    let dnat = |row| Row {
        plan: by_dnat(),
        ..row
    };
    let told = |said: Said, row| Row { said, ..dnat(row) };
    let translated = "host syn 203.0.113.5:4000>192.0.2.10:80 in tracked inet/lrpns.host/prerouting.shop/3=accept routing";
    let settings = |settings| Said { settings, ..WELL };
    check(vec![
        dnat(over(&BY_DNAT, Outcome::Arrives, arrives)),
        // The answer is on its way in the host.
        dnat(row(&BY_DNAT[..3], Outcome::Arrives, arrives)),
        dnat(row(
            &BY_DNAT[..1],
            Outcome::Lost,
            "lost between host and sidecar: it left the host by lrp0",
        )),
        dnat(row(
            &["host syn 203.0.113.5:4000>192.0.2.10:80 in tracked routing forwarded leaves"],
            Outcome::Lost,
            "lost in the host: it is forwarded, not to the sidecar: somebody else translates it",
        )),
        dnat(row(
            &[
                "host syn 203.0.113.5:4000>192.0.2.10:80 in tracked ip/nat/PREROUTING/9=accept routing",
            ],
            Outcome::Lost,
            "lost in the host: table ip nat, chain PREROUTING, rule `tcp dport 80 dnat to 192.0.2.99` sends it elsewhere, \
             before lrpns can",
        )),
        dnat(over(
            &[
                "host syn 203.0.113.5:4000>192.0.2.10:80 in tracked routing forwarded inet/mine/forward/7=drop",
            ],
            Outcome::Dropped,
            "dropped in the host by table inet mine, chain forward, rule `tcp dport 80 drop`",
        )),
        dnat(row(
            &[
                "host syn 203.0.113.5:4000>192.0.2.10:80 in tracked inet/lrpns.host/prerouting.shop/3=accept routing forwarded",
            ],
            Outcome::Lost,
            "lost in the host: after table inet lrpns.host, chain prerouting.shop, the rule with handle 3: no rule dropped it",
        )),
        Row {
            connections: Some(Fill { now: 8, most: 8 }),
            ..dnat(row(
                &["host syn 203.0.113.5:4000>192.0.2.10:80 in"],
                Outcome::Lost,
                "lost in the host: its connection table is full, with 8 of 8 (net.netfilter.nf_conntrack_max)",
            ))
        },
        told(
            settings(&[("ipv4/ip_forward", 0)]),
            row(
                &[translated],
                Outcome::Lost,
                "lost in the host: it doesn't forward any more, net.ipv4.ip_forward is 0",
            ),
        ),
        told(
            Said {
                back: Some(Route {
                    is_local: false,
                    leads_away: true,
                    link: Some(3),
                }),
                ..settings(&[
                    ("ipv4/conf/all/rp_filter", 1),
                    ("ipv4/conf/eth0/rp_filter", 0),
                ])
            },
            row(
                &[translated],
                Outcome::Lost,
                "lost in the host: it took the source for a wrong one, since its way to 203.0.113.5 is not by eth0 \
                 (net.ipv4.conf.all.rp_filter is 1)",
            ),
        ),
        told(
            Said {
                back: Some(Route {
                    is_local: true,
                    leads_away: false,
                    link: Some(1),
                }),
                ..WELL
            },
            row(
                &[translated],
                Outcome::Lost,
                "lost in the host: 203.0.113.5 is an address of its own, and came in by eth0 (a martian)",
            ),
        ),
        told(
            Said { back: None, ..WELL },
            row(
                &[translated],
                Outcome::Lost,
                "lost in the host: there is no route for it from eth0 to 198.19.0.1: Network is unreachable",
            ),
        ),
    ]);
}

#[test]
fn a_port_that_nobody_publishes_is_told_with_those_that_are() {
    let to = |port| Row {
        port,
        ..row(&[], Outcome::Lost, "")
    };
    check(vec![
        Row {
            lines: vec![
                "host syn 203.0.113.5:4000>192.0.2.10:81 in tracked routing for-us delivered",
            ],
            sentence: "lost in the host: shop doesn't publish port 81; its ports are 80",
            ..to(81)
        },
        Row {
            lines: vec![
                "host datagram 203.0.113.5:4000>192.0.2.10:80 in tracked routing for-us delivered",
            ],
            protocol: Protocol::Udp,
            sentence: "lost in the host: shop doesn't publish udp port 80 of that IPv4 address; its ports are 0.0.0.0:80",
            ..to(80)
        },
    ]);
}

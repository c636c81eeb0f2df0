//! From what was seen to one sentence.
//!
//! What the kernel tells anybody (routes, who listens, settings) is asked for where it is needed, by [`Asked`].

use std::net::IpAddr;

use serde::Serialize;

use super::Question;
use super::asked::Asked;
use super::seen::{Seen, Sight, Site};
use super::trail::{Found, Trail};
use crate::config::clients::Admission;
use crate::config::{Protocol, Source};
use crate::firewall::trace::{Content, Hop, Packets, Step, Verdict};
use crate::firewall::{Fill, SHARED_TABLE, SIDECAR_TABLE, host_table, is_ours};
use crate::plan::{AppPlan, FamilyPlan, Plan, PublishPlan, Transport, UplinkEnd};

/// Of 64512 connections with one port of an app from the sidecar's one address (`nf_nat_l4proto_unique_tuple`,
/// net/netfilter/nf_nat_core.c, looks at some free ports by chance), so many that new ones find none.
const CROWD: u32 = 60_000;

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Outcome {
    /// At the app.
    Arrives,
    /// By a rule or a policy.
    Dropped,
    /// By the relay, or by the app's kernel, since nobody listens.
    Refused,
    /// By something else than a rule.
    Lost,
    /// It arrives, but the answer was dropped by a rule or a policy.
    AnswerDropped,
    /// No packet came.
    NotSeen,
}

/// Which of the packets that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Which {
    /// The client's.
    Request,
    /// What the relay makes of it.
    Dial,
    /// What is answered.
    Answer,
}

/// What one rule or policy did.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Evidence {
    namespace: Site,
    packet: Which,
    family: String,
    table: String,
    chain: String,
    /// Its name or text; `null` for a policy, the end of a chain, and a rule of which nobody tells more than the handle.
    rule: Option<String>,
    handle: Option<u64>,
    verdict: String,
}

impl Evidence {
    fn new(place: &Sight, packet: Which, step: &Step) -> Self {
        let verdict = match &step.verdict {
            Verdict::Accept => "accept".to_owned(),
            Verdict::Drop => "drop".to_owned(),
            Verdict::Continue => "continue".to_owned(),
            Verdict::Return => "return".to_owned(),
            Verdict::Jump(chain) => format!("jump {chain}"),
            Verdict::Queue => "queue".to_owned(),
        };
        Self {
            namespace: place.site,
            packet,
            family: step.family.clone(),
            table: step.table.clone(),
            chain: step.chain.clone(),
            rule: place.named(step),
            handle: step.rule,
            verdict,
        }
    }

    /// Table, chain and rule, in words.
    fn place(&self) -> String {
        let rule = match (&self.rule, self.handle) {
            (Some(rule), _) => format!("rule `{rule}`"),
            (None, Some(handle)) => format!("the rule with handle {handle}"),
            (None, None) => "its policy".to_owned(),
        };
        format!(
            "table {} {}, chain {}, {rule}",
            self.family, self.table, self.chain
        )
    }
}

/// How it went, in one sentence, and what decided.
type Conclusion = (Outcome, String, Option<Evidence>);

/// What `trace` says.
#[derive(Debug, Serialize)]
pub(super) struct Answer {
    client: IpAddr,
    port: u16,
    protocol: Protocol,
    pub(super) outcome: Outcome,
    /// The answer in one sentence.
    sentence: String,
    /// What decided; `null` if it was no rule.
    by: Option<Evidence>,
    evidence: Vec<Evidence>,
}

impl Answer {
    pub(super) fn text(&self) -> String {
        let mut text = format!("{}\n", self.sentence);
        for step in &self.evidence {
            let of = match step.packet {
                Which::Answer => "answer: ",
                Which::Request | Which::Dial => "",
            };
            text += &format!(
                "  {:7} {of}{}: {}\n",
                step.namespace.name(),
                step.place(),
                step.verdict
            );
        }
        text
    }
}

/// What is known of the stack and of the question.
pub(super) struct Case<'a> {
    pub(super) question: &'a Question,
    plan: &'a Plan,
    /// The parts of it that run, by name.
    running: Vec<String>,
    /// The ports that may be meant: which it is, the packet's target tells.
    pub(super) candidates: Vec<(&'a AppPlan, &'a PublishPlan)>,
    /// What the stack has of the client's address family.
    pub(super) family: Option<FamilyPlan>,
}

impl<'a> Case<'a> {
    pub(super) fn new(question: &'a Question, plan: &'a Plan, running: Vec<String>) -> Self {
        let is_candidate = |publish: &PublishPlan| {
            publish.listen.port() == question.port
                && publish.protocol == question.protocol
                && publish.listen.is_ipv6() == question.client.is_ipv6()
        };
        let families = plan.families();
        Self {
            question,
            plan,
            running,
            candidates: plan
                .published()
                .filter(|(_, publish)| is_candidate(publish))
                .collect(),
            family: families.into_iter().find(|it| it.has(question.client)),
        }
    }

    /// The apps that may be meant.
    pub(super) fn apps(&self) -> impl Iterator<Item = &'a AppPlan> {
        let mut found: Vec<&AppPlan> = vec![];
        for (app, _) in &self.candidates {
            if !found.iter().any(|known| known.name == app.name) {
                found.push(app);
            }
        }
        found.into_iter()
    }

    /// Whether the relay has a network namespace of its own.
    pub(super) fn relay_is_apart(&self) -> bool {
        self.plan.uplink.ends_at == UplinkEnd::Relay
    }

    /// What is to be marked at a place.
    pub(super) fn marks(&self, site: Site) -> Vec<Packets> {
        let Question {
            client,
            port,
            protocol,
            ..
        } = *self.question;
        let by_tcp = protocol == Protocol::Tcp;
        let to = |from, port| Packets::To {
            from,
            port,
            protocol,
        };
        let mut marks = vec![];
        if site == Site::Host {
            marks.push(to(client, port));
            if by_tcp {
                marks.push(Packets::Answers {
                    from: None,
                    port,
                    to: Some(client),
                });
            }
        }
        for (app, publish) in &self.candidates {
            let entry = publish.entry_port;
            let dialled = self.family.map(|family| to(family.host, entry));
            match site {
                Site::Host => {
                    marks.extend(dialled);
                    if let (Some(family), true) = (self.family, by_tcp) {
                        marks.push(Packets::Answers {
                            from: Some(family.sidecar),
                            port: entry,
                            to: Some(client),
                        });
                    }
                }
                Site::Relay => marks.extend(dialled.into_iter().chain([to(client, entry)])),
                Site::Sidecar => {
                    marks.extend(dialled.into_iter().chain([to(client, entry)]));
                    let service = app.service(publish);
                    if by_tcp {
                        marks.push(Packets::Answers {
                            from: Some(service.ip()),
                            port: service.port(),
                            to: None,
                        });
                    }
                    marks.push(Packets::Errors { from: service.ip() });
                }
            }
        }
        if marks.is_empty() {
            // Nothing of that port comes here; a table that marks nothing is of no use, but asks for no other way either.
            marks.push(to(client, port));
        }
        marks
    }

    /// Whether the first packet has been seen.
    pub(super) fn has_begun(&self, places: &[&Sight]) -> bool {
        let trail = self.trail(places);
        !trail.request.is_empty() || trail.arriving.is_some()
    }

    /// Whether there is nothing to wait for any more.
    pub(super) fn is_over(&self, places: &[&Sight], asked: &impl Asked) -> bool {
        let trail = self.trail(places);
        let all = trail.all();
        if all.iter().any(|(_, _, seen)| seen.drop().is_some()) {
            return true;
        }
        let content = |seen: Option<Found<'_>>| seen.map(|(_, seen)| seen.headers.content);
        match content(trail.answer) {
            Some(Content::SynAck) => {
                let by_dnat = trail.is_forwarded();
                let left = |(_, seen): &Found<'_>| seen.met(Hop::Leaves);
                let host = places.iter().any(|place| place.site == Site::Host);
                return trail.answer.is_some_and(|it| left(&it))
                    && (!by_dnat || !host || trail.to_client.iter().any(left));
            }
            Some(_) => return true,
            None => {}
        }
        let reset = |(_, seen): &Found<'_>| seen.headers.content == Content::Reset;
        if trail.arriving.is_none() && trail.to_client.iter().any(reset) {
            return true;
        }
        self.question.protocol == Protocol::Udp
            && trail.reached_app()
            && trail
                .published
                .is_some_and(|at| self.app_listens(asked, at) == Some(true))
    }

    pub(super) fn answer(&self, places: &[&Sight], asked: &impl Asked) -> Answer {
        let trail = self.trail(places);
        let mut evidence = vec![];
        for (which, place, seen) in trail.all() {
            let steps = seen.steps.iter();
            evidence.extend(steps.map(|step| Evidence::new(place, which, step)));
        }
        let (outcome, sentence, by) = self.conclude(places, &trail, asked);
        Answer {
            client: self.question.client,
            port: self.question.port,
            protocol: self.question.protocol,
            outcome,
            sentence,
            by,
            evidence,
        }
    }

    fn conclude(&self, places: &[&Sight], trail: &Trail<'_>, asked: &impl Asked) -> Conclusion {
        let on_its_way = trail.all().into_iter();
        let on_its_way = on_its_way.filter(|(which, _, _)| *which != Which::Answer);
        for (which, place, seen) in on_its_way {
            if let Some(step) = seen.drop() {
                let by = Evidence::new(place, which, step);
                let sentence = format!("dropped in the {} by {}", place.site.name(), by.place());
                return (Outcome::Dropped, sentence, Some(by));
            }
        }
        if trail.reached_app() {
            return self.at_app(trail, asked);
        }
        if let Some((place, seen)) = trail.arriving {
            let last = last_met(place, seen);
            let sentence = if seen.met(Hop::Routing) && !seen.met(Hop::Forwarded) {
                let target = trail.published.map(|at| self.candidates[at]);
                let target = target.map_or(seen.headers.target, |(app, to)| app.service(to));
                let why = unrouted(place, seen, target.ip(), asked);
                format!("lost in the sidecar after {last}: {why}")
            } else if !seen.met(Hop::Tracked) {
                format!("lost in the sidecar after {last}: {}", untracked(place))
            } else {
                format!("lost in the sidecar after {last}: no rule dropped it")
            };
            return (Outcome::Lost, sentence, None);
        }
        let Question { client, port, .. } = self.question;
        let within = self.question.within.as_secs();
        if places.iter().all(|place| place.site != Site::Host) {
            let sentence = format!(
                "no packet for {client} and port {port} reached the sidecar within {within} s; what the host does before that \
                 can be traced by root only"
            );
            return (Outcome::NotSeen, sentence, None);
        }
        if trail.request.is_empty() {
            let sentence =
                format!("no packet of {client} to port {port} reached the host within {within} s");
            return (Outcome::NotSeen, sentence, None);
        }
        self.in_host(trail, asked)
    }

    /// It has gone through the sidecar.
    fn at_app(&self, trail: &Trail<'_>, asked: &impl Asked) -> Conclusion {
        let (place, arriving) = trail.arriving.expect("it reached the app");
        let accepted = arriving.steps.iter().find(|step| {
            step.table == SIDECAR_TABLE
                && ["forward", "input"].contains(&step.chain.as_str())
                && step.verdict == Verdict::Accept
        });
        let which = trail.arriving_is();
        let by = accepted.map(|step| Evidence::new(place, which, step));
        let rule = by.as_ref().map_or_else(String::new, Evidence::place);
        let at = trail
            .published
            .expect("what arrives is for a published port");
        let (app, publish) = self.candidates[at];
        let words = format!("{} port {}", app.name, publish.app_port);
        let accepted = format!("accepted in the sidecar by {rule}");
        match trail.answer.map(|(_, seen)| seen.headers.content) {
            Some(Content::Reset | Content::Unreachable) => {
                let how = match self.question.protocol {
                    Protocol::Udp => "port unreachable",
                    Protocol::Tcp => "a reset",
                };
                let sentence = format!(
                    "reaches {words}, where nobody listens: its kernel answers with {how}; {accepted}"
                );
                return (Outcome::Refused, sentence, by);
            }
            Some(_) => {
                for (which, place, seen) in trail.all() {
                    if which == Which::Answer
                        && let Some(step) = seen.drop()
                    {
                        let by = Evidence::new(place, which, step);
                        let sentence = format!(
                            "arrives at {words}, but its answer is dropped in the {} by {}",
                            place.site.name(),
                            by.place()
                        );
                        return (Outcome::AnswerDropped, sentence, Some(by));
                    }
                }
                return (
                    Outcome::Arrives,
                    format!("arrives at {words}: {accepted}"),
                    by,
                );
            }
            None => {}
        }
        if !self.runs(app.name.as_str()) {
            let sentence = format!("reaches {words}, but {} does not run; {accepted}", app.name);
            return (Outcome::Lost, sentence, by);
        }
        match (self.app_listens(asked, at), self.question.protocol) {
            (Some(false), _) => {
                let sentence = format!("reaches {words}, where nobody listens; {accepted}");
                (Outcome::Refused, sentence, by)
            }
            (Some(true), Protocol::Tcp) => {
                let crowd = place.connections.map(|fill| fill.now);
                let crowd = crowd.filter(|now| *now >= CROWD && app.source != Source::Client);
                let why = crowd.map_or_else(
                    || "its backlog is full, or it has no way back".to_owned(),
                    |now| {
                        format!(
                            "the sidecar knows {now} connections, and has hardly a port of its own left to reach it from, \
                             or its backlog is full"
                        )
                    },
                );
                let sentence = format!(
                    "reaches {words}, where somebody listens, but nobody answers: {why}; {accepted}"
                );
                (Outcome::Lost, sentence, by)
            }
            _ => (
                Outcome::Arrives,
                format!("arrives at {words}: {accepted}"),
                by,
            ),
        }
    }

    /// It reached the host, was not dropped by a rule there, and never came to the sidecar.
    fn in_host(&self, trail: &Trail<'_>, asked: &impl Asked) -> Conclusion {
        let plan = self.plan;
        let lost = |text: String| (Outcome::Lost, format!("lost in the host: {text}"), None);
        let Some((app, publish)) = trail.published.map(|at| self.candidates[at]) else {
            return lost(self.unpublished());
        };
        let (place, seen) = *trail.request.last().expect("it reached the host");
        if let Some(step) = seen.steps.iter().find(|step| goes_elsewhere(place, step)) {
            let by = Evidence::new(place, Which::Request, step);
            let sentence = format!(
                "lost in the host: {} sends it elsewhere, before lrpns can",
                by.place()
            );
            return (Outcome::Lost, sentence, Some(by));
        }
        let chain = match plan.uplink.ends_at {
            UplinkEnd::Host => (
                SHARED_TABLE.to_owned(),
                format!("prerouting.{}", plan.stack),
            ),
            UplinkEnd::Relay => (host_table(&plan.stack), "prerouting".to_owned()),
        };
        let translated = seen.steps.iter().any(|step| {
            (&step.table, &step.chain) == (&chain.0, &chain.1)
                && step.verdict == Verdict::Accept
                && step.rule.is_some()
        });
        if seen.met(Hop::Forwarded) {
            return if !seen.met(Hop::Leaves) {
                lost(format!(
                    "after {}: no rule dropped it",
                    last_met(place, seen)
                ))
            } else if translated {
                let link = &plan.uplink.host_link;
                let text = format!("lost between host and sidecar: it left the host by {link}");
                (Outcome::Lost, text, None)
            } else {
                lost("it is forwarded, not to the sidecar: somebody else translates it".to_owned())
            };
        }
        if !seen.met(Hop::ForUs) {
            let stopped_here = if seen.met(Hop::Routing) {
                let target = match (translated, self.family) {
                    (true, Some(family)) => family.sidecar,
                    _ => seen.headers.target.ip(),
                };
                unrouted(place, seen, target, asked)
            } else if seen.met(Hop::Tracked) {
                "something in its prerouting hook that is no rule of nftables has taken it"
                    .to_owned()
            } else if seen.met(Hop::ComesIn) {
                untracked(place)
            } else {
                "it was sent from here, and has not come in".to_owned()
            };
            return lost(stopped_here);
        }
        if !seen.met(Hop::Delivered) {
            return lost(
                "something in its input hook that is no rule of nftables has taken it".to_owned(),
            );
        }
        if translated && publish.via == Transport::Dnat {
            return lost("it was translated, and is for the host itself all the same".to_owned());
        }
        self.at_relay(trail, (app, publish), asked)
    }

    /// It came to the relay's socket.
    fn at_relay(
        &self,
        trail: &Trail<'_>,
        (app, publish): (&AppPlan, &PublishPlan),
        asked: &impl Asked,
    ) -> Conclusion {
        let Question {
            client,
            port,
            protocol,
            ..
        } = *self.question;
        let lost = |text: String| (Outcome::Lost, text, None);
        let refused = |text: String| {
            (
                Outcome::Refused,
                format!("refused by the relay: {text}"),
                None,
            )
        };
        if !self.runs("relay") {
            return lost("lost in the host: it is for the relay, which does not run".to_owned());
        }
        let mine = |seen: &Seen| seen.headers.source.port() == port;
        let said = |content| {
            let mut all = trail.to_client.iter();
            all.any(|(_, seen)| mine(seen) && seen.headers.content == content)
        };
        let nobody = asked.host_listens(publish.protocol, publish.listen) == Some(false);
        if nobody || (said(Content::Reset) && !said(Content::SynAck)) {
            return lost(format!("lost in the host: nobody listens on port {port}"));
        }
        if !Admission::of(&app.allow, None).admits(client) {
            let ranges: Vec<String> = app.allow.iter().map(ToString::to_string).collect();
            let ranges = match ranges.as_slice() {
                [] => "nothing".to_owned(),
                ranges => ranges.join(", "),
            };
            return refused(format!(
                "{client} is in no range of `allow` of {}, which has {ranges}",
                app.name
            ));
        }
        if let Some((place, dial)) = trail.dial {
            let link = &self.plan.uplink.host_link;
            return lost(if dial.met(Hop::Leaves) {
                format!(
                    "lost between relay and sidecar: the relay has dialled, and it left by {link}"
                )
            } else {
                let last = last_met(place, dial);
                format!(
                    "lost in the {} after {last}: the relay has dialled",
                    place.site.name()
                )
            });
        }
        // A datagram has no handshake, of which a reset would be seen.
        if let Some(rate) = app.rate
            && (protocol == Protocol::Udp || said(Content::Reset))
        {
            return refused(format!(
                "`rate` of {}, {rate}, lets nobody more in at the moment",
                app.name
            ));
        }
        if said(Content::Reset) {
            return refused("it could not dial for it".to_owned());
        }
        let answer_dropped = trail
            .to_client
            .iter()
            .find_map(|(place, seen)| Some((place, seen.drop()?)));
        if let Some((place, step)) = answer_dropped {
            let by = Evidence::new(place, Which::Answer, step);
            let sentence = format!(
                "reaches the relay's port {port}, whose answer is dropped in the host by {}",
                by.place()
            );
            return (Outcome::AnswerDropped, sentence, Some(by));
        }
        if said(Content::SynAck) {
            return lost(format!(
                "reaches the relay's port {port}, which has answered and not dialled: the answer doesn't get back to {client}, \
                 or the relay has no place for more connections"
            ));
        }
        let what = match protocol {
            Protocol::Udp => "not carried it on",
            Protocol::Tcp => "not answered",
        };
        lost(format!(
            "reaches the relay's port {port}, which has {what}: it has more to do than it can"
        ))
    }

    /// That a port isn't published, and what is.
    fn unpublished(&self) -> String {
        let Question { port, protocol, .. } = *self.question;
        let plan = self.plan;
        let all: Vec<&PublishPlan> = plan.published().map(|(_, publish)| publish).collect();
        let near = all.iter().any(|publish| publish.listen.port() == port);
        let words = all.iter().map(|publish| {
            let protocol = match publish.protocol {
                Protocol::Tcp => "",
                Protocol::Udp => "/udp",
            };
            if near {
                format!("{}{protocol}", publish.listen)
            } else {
                format!("{}{protocol}", publish.listen.port())
            }
        });
        let words: Vec<String> = words.collect();
        let what = if near {
            let family = if self.question.client.is_ipv6() { 6 } else { 4 };
            format!("{protocol} port {port} of that IPv{family} address")
        } else {
            format!("port {port}")
        };
        if words.is_empty() {
            return format!("{} publishes no port", plan.stack);
        }
        format!(
            "{} doesn't publish {what}; its ports are {}",
            plan.stack,
            words.join(", ")
        )
    }

    fn runs(&self, part: &str) -> bool {
        self.running.iter().any(|name| name == part)
    }

    /// Whether the app listens where the packet goes; `None` if nobody tells.
    fn app_listens(&self, asked: &impl Asked, published: usize) -> Option<bool> {
        let (app, publish) = self.candidates[published];
        if app.via_socket {
            // It is the supervisor's as well.
            return Some(true);
        }
        asked.app_listens(app.name.as_str(), publish.protocol, app.service(publish))
    }
}

/// What a packet has met last, in words.
fn last_met(place: &Sight, seen: &Seen) -> String {
    let last = seen.steps.last();
    last.map_or_else(
        || "it came in".to_owned(),
        |step| Evidence::new(place, Which::Request, step).place(),
    )
}

/// Whether it was somebody else's rule, by its text, that gave a packet another target.
fn goes_elsewhere(place: &Sight, step: &Step) -> bool {
    let text = place.named(step).unwrap_or_default();
    let statements = text.split(" comment \"").next().unwrap_or_default();
    let mut words = statements.split(' ');
    step.verdict == Verdict::Accept
        && !is_ours(&step.table)
        && words.any(|word| ["dnat", "redirect", "tproxy"].contains(&word))
}

/// Why a packet that every rule before its route has let through has met none after it.
fn unrouted(place: &Sight, seen: &Seen, target: IpAddr, asked: &impl Asked) -> String {
    let client = seen.headers.source.ip();
    let Some(link) = seen.link else {
        return "no rule dropped it, so the kernel had no way for it".to_owned();
    };
    let name = asked.link_name(place.site, link);
    let name = name.unwrap_or_else(|| format!("link {link}"));
    let unreachable = || match asked.route(place.site, (client, target), link) {
        Err(e) => format!("there is no route for it from {name} to {target}: {e}"),
        Ok(_) => "no rule dropped it, so the kernel had no way for it".to_owned(),
    };
    // The settings that can be read are the host's.
    if place.site != Site::Host {
        return unreachable();
    }
    let back = asked.way_back(client);
    if client.is_ipv4() {
        let of = |link: &str| {
            asked
                .setting(&format!("ipv4/conf/{link}/rp_filter"))
                .unwrap_or(0)
        };
        let filter = of("all").max(of(&name));
        let by_other = match (&back, filter) {
            (Ok(route), 1) => route.is_local || route.link != Some(link),
            (Ok(route), 2) => route.is_local,
            (Err(_), 1 | 2) => true,
            _ => false,
        };
        if by_other {
            let whose = if of("all") < filter { &name } else { "all" };
            return format!(
                "it took the source for a wrong one, since its way to {client} is not by {name} \
                 (net.ipv4.conf.{whose}.rp_filter is {filter})"
            );
        }
    }
    if let Ok(route) = back
        && route.is_local
    {
        return format!("{client} is an address of its own, and came in by {name} (a martian)");
    }
    if let IpAddr::V6(address) = client
        && address.is_unicast_link_local()
    {
        return format!("{client} is link-local, and such an address is not forwarded");
    }
    let forwards = if client.is_ipv4() {
        ("ipv4/ip_forward", "net.ipv4.ip_forward")
    } else {
        ("ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding")
    };
    if asked.setting(forwards.0) == Some(0) {
        return format!("it doesn't forward any more, {} is 0", forwards.1);
    }
    unreachable()
}

/// Why a packet didn't get past conntrack.
fn untracked(place: &Sight) -> String {
    match place.connections {
        Some(Fill { now, most }) if now >= most => format!(
            "its connection table is full, with {now} of {most} (net.netfilter.nf_conntrack_max)"
        ),
        _ => "no rule dropped it, so conntrack or something else that is no rule of nftables has"
            .to_owned(),
    }
}

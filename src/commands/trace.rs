//! `lrpns trace`: why does this packet not arrive?
//!
//! # Theory of operation
//!
//! It takes a packet of that client, so this waits for one. Before that it marks, in the host's network namespace and in
//! the sidecar's, by a temporary table in each ([`crate::firewall::trace`]), what the client sends to the port, and what
//! the relay makes of it. The kernel then tells each rule that the packet meets, whoever made it. What netfilter didn't
//! decide (no forwarding, no route, nobody listens) is found by where the trace ends.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sched::CloneFlags;
use rustix::event::{PollFd, PollFlags, Timespec};
use serde::Serialize;

use super::{ask, print, print_json, reply};
use crate::config::Protocol;
use crate::control::{PartState, Reply, Request, Status};
use crate::error::Failure;
use crate::extra;
use crate::firewall::trace::{MARKED_IN, MARKED_OUT, Packets, Step, Tracer, Verdict, rule_names};
use crate::firewall::{self, SIDECAR_TABLE, Socket};
use crate::names::StackName;
use crate::plan::{AppPlan, Mode, Plan, PublishPlan, Transport};
use crate::sys::namespace::setns;

/// How long the rest of a packet's way may take once it has been seen.
const AFTER: Duration = Duration::from_millis(1500);

/// What is asked.
#[derive(Debug, Clone)]
pub struct Question {
    /// Who doesn't get through.
    pub client: IpAddr,
    /// To which port of the host.
    pub port: u16,
    /// UDP instead of TCP.
    pub udp: bool,
    /// How long to wait for a packet.
    pub within: Duration,
}

/// Waits for a packet and says what became of it; exit code 1 unless it arrived.
pub fn trace(stack: &StackName, question: &Question, json: bool) -> Result<ExitCode, Failure> {
    let unable = |what: &str, e: &dyn std::fmt::Display| Failure::unable(format!("{what}: {e}"));
    let Reply::Status(status) = reply(&ask(stack, &Request::Status)?, stack)?.0 else {
        return Err(Failure::unable("the supervisor answered something else"));
    };
    let request = Request::Enter {
        part: "sidecar".to_owned(),
    };
    let pidfd = reply(&ask(stack, &request)?, stack)?.1.into_iter().next();
    let pidfd = pidfd.ok_or_else(|| Failure::unable("no pidfd came for the sidecar"))?;
    let case = Case {
        question,
        status: &status,
        published: find(&status.plan, question),
    };
    let from_client = |port| Packets {
        from: question.client,
        port,
        udp: question.udp,
    };
    let host = match status.plan.mode {
        Mode::Root => {
            let start = || {
                Ok::<_, firewall::LoadError>((
                    Tracer::start(&[from_client(question.port)])?,
                    Socket::open()?,
                ))
            };
            let (tracer, socket) = start().map_err(|e| unable("trace in the host", &e))?;
            Some(Place::new("host", tracer, socket))
        }
        Mode::Rootless => None,
    };
    let entry = case
        .published
        .map_or(question.port, |(_, publish)| publish.entry_port);
    let sidecar = inside(&pidfd, status.plan.mode, || {
        let relayed = Packets {
            from: status.plan.uplink.host_address.into(),
            ..from_client(entry)
        };
        Ok::<_, firewall::LoadError>((
            Tracer::start(&[from_client(entry), relayed])?,
            Socket::open()?,
        ))
    });
    let (tracer, socket) = sidecar
        .map_err(|e| unable("join the sidecar's network namespace", &e))?
        .map_err(|e| unable("trace in the sidecar", &e))?;
    let mut sidecar = Place::new("sidecar", tracer, socket);
    let protocol = if question.udp { "udp" } else { "tcp" };
    eprintln!(
        "waiting {} s for a packet of {} to {protocol} port {}: try now",
        question.within.as_secs(),
        question.client,
        question.port
    );
    let mut host = host;
    watch(&mut host, &mut sidecar, question.within).map_err(|e| unable("hear of a packet", &e))?;

    let name = |place: &Place, step: &Step| {
        let text = || match place.name {
            "host" => list(step),
            _ => inside(&pidfd, status.plan.mode, || list(step))
                .ok()
                .flatten(),
        };
        place.named(step, text)
    };
    let mut evidence = vec![];
    for place in host.iter().chain([&sidecar]) {
        for step in &place.steps {
            evidence.push(Evidence::new(place.name, step, name(place, step)));
        }
    }
    let answer = case.answer(host.as_ref(), &sidecar, evidence);
    if json {
        print_json(&answer)?;
    } else {
        print(&answer.text())?;
    }
    let arrived = answer.outcome == Outcome::Arrives;
    Ok(ExitCode::from(u8::from(!arrived)))
}

/// The published port that is meant.
fn find<'p>(plan: &'p Plan, question: &Question) -> Option<(&'p AppPlan, &'p PublishPlan)> {
    let protocol = if question.udp {
        Protocol::Udp
    } else {
        Protocol::Tcp
    };
    plan.published()
        .find(|(_, publish)| publish.listen.port() == question.port && publish.protocol == protocol)
}

/// Does something in the sidecar's network namespace. As an ordinary user there is no way back, nor a need for one.
fn inside<T>(pidfd: &OwnedFd, mode: Mode, work: impl FnOnce() -> T) -> std::io::Result<T> {
    let here = File::open("/proc/self/ns/net")?;
    match mode {
        Mode::Root => setns(pidfd, CloneFlags::CLONE_NEWNET)?,
        Mode::Rootless => {
            let there = setns(pidfd, CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET);
            // There already.
            there.or_else(|_| setns(pidfd, CloneFlags::CLONE_NEWNET))?;
            return Ok(work());
        }
    }
    let done = work();
    setns(here, CloneFlags::CLONE_NEWNET)?;
    Ok(done)
}

/// One network namespace, and what the packet met there.
struct Place {
    name: &'static str,
    tracer: Tracer,
    socket: Socket,
    /// The first packet. One that is sent from here to here is another to the kernel when it comes in.
    packets: Vec<u32>,
    /// Whether the first was sent from here.
    sent_here: bool,
    steps: Vec<Step>,
}

impl Place {
    fn new(name: &'static str, tracer: Tracer, socket: Socket) -> Self {
        Self {
            name,
            tracer,
            socket,
            packets: vec![],
            sent_here: false,
            steps: vec![],
        }
    }

    /// Takes what has come; the first packet is the one that counts.
    fn take(&mut self) -> Result<(), firewall::LoadError> {
        for step in self.tracer.steps()? {
            let own = self.tracer.is_own(&step);
            let first = self.packets.is_empty();
            let comes_back = self.sent_here
                && self.packets.len() == 1
                && own
                && step.chain == MARKED_IN
                && step.packet != self.packets[0];
            if first || comes_back {
                self.sent_here = first && step.chain == MARKED_OUT;
                self.packets.push(step.packet);
            }
            if !own && self.packets.contains(&step.packet) {
                self.steps.push(step);
            }
        }
        Ok(())
    }

    fn dropped(&self) -> Option<&Step> {
        self.steps.iter().find(|step| step.verdict == Verdict::Drop)
    }

    fn accepted_in(&self, chain: &str) -> Option<&Step> {
        self.steps
            .iter()
            .find(|step| step.chain == chain && step.verdict == Verdict::Accept)
    }

    /// The name of a rule: its comment in a table of ours, its text in another's, if there is an nft to tell it.
    fn named(&self, step: &Step, text: impl FnOnce() -> Option<String>) -> Option<String> {
        let handle = step.rule?;
        let comment = || -> Option<String> {
            let names: BTreeMap<u64, String> =
                rule_names(&self.socket, &step.family, &step.table).ok()?;
            names.get(&handle).cloned()
        };
        if step.table == SIDECAR_TABLE || step.table.starts_with("lrpns-") {
            comment().or_else(text)
        } else {
            text().or_else(comment)
        }
    }
}

/// A rule's text, as nft lists it in this network namespace.
fn list(step: &Step) -> Option<String> {
    let output = std::process::Command::new(extra::nft()?)
        .args([
            "-a",
            "list",
            "chain",
            &step.family,
            &step.table,
            &step.chain,
        ])
        .env_clear()
        .stdin(std::process::Stdio::null())
        .output()
        .ok()?;
    let marker = format!("# handle {}", step.rule?);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.strip_suffix(&marker))?;
    Some(line.trim().to_owned())
}

/// Waits for a packet, and then for the rest of its way.
fn watch(
    host: &mut Option<Place>,
    sidecar: &mut Place,
    within: Duration,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut deadline = Instant::now() + within;
    let mut seen = false;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        let wait = Timespec::try_from(left)?;
        let mut ready = vec![PollFd::new(&sidecar.tracer, PollFlags::IN)];
        if let Some(host) = host.as_ref() {
            ready.push(PollFd::from_borrowed_fd(host.tracer.as_fd(), PollFlags::IN));
        }
        match rustix::event::poll(&mut ready, Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        drop(ready);
        // The host first: what comes to the sidecar comes from there, and what comes of others is not asked for.
        let here = match host.as_mut() {
            Some(host) => {
                host.take()?;
                !host.packets.is_empty()
            }
            None => true,
        };
        if here {
            sidecar.take()?;
        } else {
            sidecar.tracer.steps()?;
        }
        let first = host.as_ref().unwrap_or(sidecar);
        if !seen && !first.packets.is_empty() {
            seen = true;
            deadline = Instant::now() + AFTER;
        }
        let over = sidecar.dropped().is_some()
            || sidecar.accepted_in("forward").is_some()
            || host.as_ref().is_some_and(|host| host.dropped().is_some());
        if over {
            return Ok(());
        }
    }
}

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Outcome {
    /// At the app.
    Arrives,
    /// By a rule or a policy.
    Dropped,
    /// By something else than a rule.
    Lost,
    /// No packet came.
    NotSeen,
}

/// What one rule or policy did.
#[derive(Debug, Clone, Serialize)]
struct Evidence {
    /// `host` or `sidecar`.
    namespace: &'static str,
    family: String,
    table: String,
    chain: String,
    /// Its name or text; `null` for a policy, the end of a chain, and a rule of which nobody tells more than the handle.
    rule: Option<String>,
    handle: Option<u64>,
    verdict: String,
}

impl Evidence {
    fn new(namespace: &'static str, step: &Step, rule: Option<String>) -> Self {
        let verdict = match &step.verdict {
            Verdict::Accept => "accept".to_owned(),
            Verdict::Drop => "drop".to_owned(),
            Verdict::Continue => "continue".to_owned(),
            Verdict::Return => "return".to_owned(),
            Verdict::Jump(chain) => format!("jump {chain}"),
            Verdict::Queue => "queue".to_owned(),
        };
        Self {
            namespace,
            family: step.family.clone(),
            table: step.table.clone(),
            chain: step.chain.clone(),
            rule,
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

/// What `trace` says.
#[derive(Debug, Serialize)]
struct Answer {
    client: IpAddr,
    port: u16,
    protocol: &'static str,
    outcome: Outcome,
    /// The answer in one sentence.
    sentence: String,
    /// What decided; `null` if it was no rule.
    by: Option<Evidence>,
    evidence: Vec<Evidence>,
}

impl Answer {
    fn text(&self) -> String {
        let mut text = format!("{}\n", self.sentence);
        for step in &self.evidence {
            text += &format!(
                "  {:7} {}: {}\n",
                step.namespace,
                step.place(),
                step.verdict
            );
        }
        text
    }
}

/// What is known of the stack and of the question.
struct Case<'a> {
    question: &'a Question,
    status: &'a Status,
    published: Option<(&'a AppPlan, &'a PublishPlan)>,
}

impl Case<'_> {
    fn answer(&self, host: Option<&Place>, sidecar: &Place, evidence: Vec<Evidence>) -> Answer {
        let Question { client, port, .. } = self.question;
        let decided = |place: &Place, step: &Step| {
            let mut all = evidence.iter();
            let found = all.find(|it| {
                it.namespace == place.name
                    && (it.table == step.table && it.chain == step.chain)
                    && (it.handle == step.rule)
                    && (it.verdict == "drop" || it.verdict == "accept")
            });
            found.cloned()
        };
        let in_place = |place: &Place| match place.name {
            "host" => "in the host",
            _ => "in the sidecar",
        };
        let drop = host
            .into_iter()
            .chain([sidecar])
            .find_map(|place| Some((place, place.dropped()?)));
        let (outcome, sentence, by) = if let Some((place, step)) = drop {
            let by = decided(place, step);
            let rule = by.as_ref().map_or_else(String::new, Evidence::place);
            (
                Outcome::Dropped,
                format!("dropped {} by {rule}", in_place(place)),
                by,
            )
        } else if let Some(step) = sidecar.accepted_in("forward") {
            let by = decided(sidecar, step);
            let rule = by.as_ref().map_or_else(String::new, Evidence::place);
            let (listens, app) = self.app_listens();
            match listens {
                Some(false) => (
                    Outcome::Lost,
                    format!("accepted by {rule}, but nobody listens there: {app}"),
                    by,
                ),
                _ => (
                    Outcome::Arrives,
                    format!("arrives at {app}: accepted in the sidecar by {rule}"),
                    by,
                ),
            }
        } else if !sidecar.packets.is_empty() {
            let last = evidence.iter().rfind(|step| step.namespace == "sidecar");
            let last = last.map_or_else(|| "it came in".to_owned(), Evidence::place);
            (
                Outcome::Lost,
                format!(
                    "lost in the sidecar after {last}: no rule dropped it, so the kernel had no way for it"
                ),
                None,
            )
        } else {
            match host.map(|host| (host, host.packets.first())) {
                Some((host, Some(_))) => (Outcome::Lost, self.lost_in_host(host), None),
                Some((_, None)) => (
                    Outcome::NotSeen,
                    format!(
                        "no packet of {client} to port {port} reached the host within {} s",
                        self.question.within.as_secs()
                    ),
                    None,
                ),
                None => (
                    Outcome::NotSeen,
                    format!(
                        "no packet for {client} and port {port} reached the sidecar within {} s; what the host does before \
                         that can be traced by root only",
                        self.question.within.as_secs()
                    ),
                    None,
                ),
            }
        };
        Answer {
            client: *client,
            port: *port,
            protocol: if self.question.udp { "udp" } else { "tcp" },
            outcome,
            sentence,
            by,
            evidence,
        }
    }

    /// Where it ended that reached the host, was not dropped by a rule there, and never came to the sidecar.
    fn lost_in_host(&self, host: &Place) -> String {
        let plan = &self.status.plan;
        let port = self.question.port;
        let Some((_, publish)) = self.published else {
            let published: Vec<String> = plan
                .published()
                .map(|(_, publish)| publish.listen.port().to_string())
                .collect();
            return format!(
                "lost in the host: {} doesn't publish port {port}; its ports are {}",
                plan.stack,
                published.join(", ")
            );
        };
        let table = firewall::host_table(&plan.stack);
        let met = |chain: &str| {
            host.steps
                .iter()
                .any(|step| step.table == table && step.chain == chain)
        };
        let translated = host.steps.iter().any(|step| {
            step.table == table
                && step.chain == "prerouting"
                && step.verdict == Verdict::Accept
                && step.rule.is_some()
        });
        let forwards = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward");
        if publish.via == Transport::Dnat && translated && !met("forward") {
            return if forwards.is_ok_and(|value| value.trim() == "0") {
                "lost in the host: it doesn't forward any more, net.ipv4.ip_forward is 0".to_owned()
            } else {
                "lost in the host: no rule dropped it, so the kernel had no route for it, or took its source for a wrong one \
                 (rp_filter)"
                    .to_owned()
            };
        }
        if translated {
            return format!(
                "lost between host and sidecar: it left the host by {}",
                plan.uplink.host_link
            );
        }
        let relay = self.status.parts.iter().find(|part| part.name == "relay");
        if relay.is_none_or(|relay| relay.state != PartState::Running) {
            return "lost in the host: it is for the relay, which does not run".to_owned();
        }
        let listening = listening("/proc/self/net", port, self.question.udp);
        if listening == Some(false) {
            return format!("lost in the host: nobody listens on port {port}");
        }
        format!(
            "reaches the relay's port {port}, which has not dialled for it: the answer doesn't get back to {}, or the address \
             that it asked for is not {}",
            self.question.client, publish.listen
        )
    }

    /// Whether the app listens where the packet goes, and what the app is for people.
    fn app_listens(&self) -> (Option<bool>, String) {
        let Some((app, publish)) = self.published else {
            return (None, "an app".to_owned());
        };
        let words = format!("{} port {}", app.name, publish.app_port);
        let part = self
            .status
            .parts
            .iter()
            .find(|part| part.name == app.name.as_str());
        let Some(pid) = part.and_then(|part| part.init) else {
            return (Some(false), format!("{words}; {} does not run", app.name));
        };
        let there = format!("/proc/{pid}/net");
        (
            listening(&there, publish.app_port, self.question.udp),
            words,
        )
    }
}

/// Whether somebody listens on a port (proc_pid_net(5)); `None` if nobody tells.
fn listening(directory: &str, port: u16, udp: bool) -> Option<bool> {
    // TCP_LISTEN and, for UDP, TCP_CLOSE: include/net/tcp_states.h.
    let (files, state) = if udp {
        (["udp", "udp6"], "07")
    } else {
        (["tcp", "tcp6"], "0A")
    };
    let port = format!(":{port:04X}");
    let texts: Vec<String> = files
        .iter()
        .filter_map(|file| std::fs::read_to_string(format!("{directory}/{file}")).ok())
        .collect();
    let listens = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, state_of) = (fields.next(), fields.nth(1));
        local.is_some_and(|local| local.ends_with(&port)) && state_of == Some(state)
    };
    (!texts.is_empty()).then(|| texts.iter().flat_map(|text| text.lines()).any(listens))
}

//! The stack under attack: its parts as the supervisor hands them out, and the attack from beginning to end.

use std::collections::HashSet;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;

use super::agent::{Agent, Answer, Ask, Join, Lost, SOMETHING_ELSE, uplink_of};
use super::catalogue::{CATALOGUE, Probe, Side, find};
use super::domain::{self, Pair};
use super::inside::Context;
use super::network::{self, Field};
use super::probes::members::Processes;
use super::probes::network::{Place, Surveyed};
use super::probes::{Scene, host};
use super::{Finding, Outcome, Report, Verdict, outside, planned};
use crate::confine::privileges;
use crate::control::access::Access;
use crate::control::{
    ANSWERS_WITHIN, Client, PartState, PartStatus, Reply, Request, Status, processes,
};
use crate::firewall::{self, Listing};
use crate::names::StackName;
use crate::plan::limits::Controller;
use crate::plan::{AppPlan, Plan, UplinkEnd};
use crate::state::StateRoot;
use crate::text::harmless;

/// The probe that tries to signal processes outside, by their numbers there.
const SIGNAL: &str = "process-signal";
/// More than that is told of no probe, in bytes.
const MOST: usize = 4096;

/// A process of a part, and what a command may be there.
pub struct Entered {
    /// Its pid 1.
    pub pidfd: OwnedFd,
    /// By the saved plan.
    pub access: Access,
}

/// A running stack.
pub struct Target {
    /// How it is.
    pub status: Status,
    /// Its plan as this user's commands have saved it.
    saved: Plan,
    control: PathBuf,
}

/// What is found on the way.
#[derive(Default)]
pub struct Findings(pub Vec<Finding>);

impl Findings {
    /// Notes how a probe went.
    ///
    /// # Panics
    /// The catalogue has no such probe.
    pub fn add(&mut self, id: &str, part: &str, outcome: Outcome) {
        let probe = find(id).expect("the catalogue has every probe that is run");
        self.0.push(Finding {
            probe,
            part: part.to_owned(),
            // Names of files and mounts are in it, and a part may call these what it likes.
            outcome: Outcome {
                happened: harmless(&outcome.happened, MOST),
                ..outcome
            },
        });
    }
}

impl Target {
    /// Asks the supervisor of `stack`.
    ///
    /// # Errors
    /// In words.
    pub fn find(state: &StateRoot, stack: &StackName) -> Result<Self, String> {
        let control = state.control(stack);
        match ask(&control, &Request::Inspect)? {
            (Reply::Status(mut status), _) => {
                // Whether others could have written it is a probe's to say.
                let saved = state.plan(stack).ok_or("its saved plan can't be read")?;
                status.only_cgroups_of(Some(&saved));
                // What is published is what people are let in to now.
                status.plan = status.plan.in_force(&status.closed).into_owned();
                Ok(Self {
                    status: *status,
                    saved,
                    control,
                })
            }
            _ => Err("the supervisor answered something else".to_owned()),
        }
    }

    /// The part of that name.
    #[must_use]
    pub fn part(&self, name: &str) -> Option<&PartStatus> {
        self.status.parts.iter().find(|part| part.name == name)
    }

    /// The apps that there is something of to attack: not a job that has ended.
    pub fn apps(&self) -> impl Iterator<Item = &AppPlan> {
        let over = |app: &AppPlan| {
            let part = self.part(app.name.as_str());
            app.job && part.is_some_and(|part| part.state == PartState::Ended)
        };
        self.status.plan.apps.iter().filter(move |app| !over(app))
    }

    /// What it takes to join a part.
    ///
    /// # Errors
    /// In words; the part does not run.
    pub fn enter(&self, part: &str) -> Result<Entered, String> {
        match ask(
            &self.control,
            &Request::Enter {
                part: part.to_owned(),
            },
        )? {
            (Reply::Enter {}, fds) => Ok(Entered {
                pidfd: self.in_part(part, fds.into_iter().next())?,
                access: Access::of(&self.saved, part).map_err(|e| e.to_string())?,
            }),
            _ => Err("the supervisor answered something else".to_owned()),
        }
    }

    /// The pidfd that came, of one who is in the part.
    fn in_part(&self, part: &str, pidfd: Option<OwnedFd>) -> Result<OwnedFd, String> {
        let pidfd = pidfd.ok_or("no pidfd came")?;
        match processes::is_in_part(pidfd.as_fd(), part, &self.saved) {
            Ok(true) => Ok(pidfd),
            Err(e) => Err(format!("look at a process of {part}: {e}")),
            Ok(false) => Err("the supervisor has named a process that is not in it".to_owned()),
        }
    }

    /// Starts a prober that is as the supervisor is.
    ///
    /// # Errors
    /// In words.
    fn prober_of_supervisor(&self) -> Result<Agent, String> {
        let (_, fds) = ask(&self.control, &Request::ProbeSupervisor)?;
        let socket = fds.into_iter().next().ok_or("no socket came")?;
        let agent = Agent::adopt(socket).map_err(|e| e.to_string())?;
        // On the host: root's supervisor is nobody there.
        let plan = &self.status.plan;
        let is_another = plan.supervisor().is_some();
        let own = std::process::id().cast_signed();
        let context = Context {
            holds: match is_another {
                true => 0,
                false => self.status.supervisor_privileges.permitted,
            },
            // Without root the audit is the same user's, who may.
            host_pids: match is_another {
                true if self.status.supervisor == 1 => vec![own],
                true => vec![1, own],
                false => vec![1],
            },
            stacks: match is_another {
                true => control_sockets(plan),
                false => vec![],
            },
            stays: plan.supervisor_stays().map(str::to_owned),
            ..Context::default()
        };
        match agent.ask(&Ask::Context(Box::new(context))) {
            // The first probe says so.
            Err(_) if agent.lost().is_some() => Ok(agent),
            answer => answer.map(|_| agent),
        }
    }

    /// Starts a prober in an app.
    ///
    /// # Errors
    /// In words.
    pub fn prober(&self, app: &str, context: &Context) -> Result<Agent, String> {
        let (_, fds) = ask(
            &self.control,
            &Request::Probe {
                part: app.to_owned(),
            },
        )?;
        let socket = fds.into_iter().next().ok_or("no socket came")?;
        let agent = Agent::adopt(socket).map_err(|e| e.to_string())?;
        match agent.ask(&Ask::Context(Box::new(context.clone()))) {
            // The first probe says so.
            Err(_) if agent.lost().is_some() => Ok(agent),
            answer => answer.map(|_| agent),
        }
    }
}

fn ask(control: &Path, request: &Request) -> Result<(Reply, Vec<OwnedFd>), String> {
    let client = Client::connect(control).map_err(|e| format!("connect to the supervisor: {e}"))?;
    client
        .ask(request)
        .map_err(|e| format!("ask the supervisor: {e}"))?;
    let until = tokio::time::Instant::now() + ANSWERS_WITHIN;
    match client.has_answered_by(until) {
        Ok(true) => {}
        Ok(false) => return Err("the supervisor does not answer".to_owned()),
        Err(e) => return Err(format!("hear from the supervisor: {e}")),
    }
    match client.reply() {
        Ok(Some((Reply::Refused { why, .. }, _))) => Err(why),
        Ok(Some(reply)) => Ok(reply),
        Ok(None) => Err("the supervisor ended the conversation".to_owned()),
        Err(e) => Err(format!("hear from the supervisor: {e}")),
    }
}

/// Attacks the stack. `progress` is told each step.
///
/// # Errors
/// In words, when there is nothing to attack; whatever can't be tried later is a finding.
pub fn run(
    state: &StateRoot,
    stack: &StackName,
    progress: &mut dyn FnMut(&str),
) -> Result<Report, String> {
    let target = Target::find(state, stack)?;
    let _alone = state.audits(stack).map_err(|e| e.to_string())?;
    let begun = Instant::now();
    // It takes the longest, so it starts first.
    let mut scratch = Scratch::start(state, &target.status.plan);
    let mut findings = Findings::default();
    let plan = &target.status.plan;
    let abstract_name = format!("lrpns-audit-{}", std::process::id());
    // Kept open until the end: somebody must be there to be reached.
    let _listener = SocketAddr::from_abstract_name(abstract_name.as_bytes())
        .and_then(|address| UnixListener::bind_addr(&address));

    progress("from outside");
    let sidecar = target.enter("sidecar");
    let sidecar_net = agent(&sidecar, |entered| Join::Network(entered.pidfd.as_fd()));
    let host_net = host_agent(&target);
    let apps: Vec<(&AppPlan, Result<Entered, String>)> = target
        .apps()
        .map(|app| (app, target.enter(app.name.as_str())))
        .collect();
    outside::processes(&target, &mut findings);
    let nets: Vec<_> = apps
        .iter()
        .map(|(_, entered)| agent(entered, |entered| Join::Network(entered.pidfd.as_fd())))
        .collect();
    let of_apps = apps.iter().map(|(app, _)| *app).zip(&nets);
    let field = Field {
        plan,
        sidecar: &sidecar_net,
        host: &host_net,
    };
    planned::rules(&target, &field, of_apps, &mut findings);
    for ((app, _), net) in apps.iter().zip(&nets) {
        planned::app_network(app, plan, net, &mut findings);
    }
    let beside_relay = carrier(&target);
    let of_apps: Vec<_> = apps.iter().map(|(app, _)| *app).zip(&nets).collect();
    let at_relay = beside_relay.as_ref();
    look_around(&target, &field, &of_apps, at_relay, &mut findings);

    progress("from inside");
    let probers: Vec<_> = apps
        .iter()
        .map(|(app, _)| in_app(&target, app, &abstract_name, &mut findings))
        .collect();
    let in_sidecar = in_sidecar(&sidecar, &mut findings);

    progress("as the supervisor");
    let as_supervisor = as_supervisor(&target, &mut findings);

    let besides: Vec<_> = apps.iter().map(|(_, entered)| beside(entered)).collect();
    // First: what is left of it ends while the other attacks go on.
    progress("from another stack");
    network::other_stack(&field, &besides, &mut scratch, state, &mut findings);

    progress("over the network");
    for (((app, _), inside), beside) in apps.iter().zip(&probers).zip(&besides) {
        network::from_app(&field, app, inside, beside, &mut findings);
        domain::probe(plan, app, &Pair { inside, beside }, &mut findings);
    }
    for ((app, _), net) in apps.iter().zip(&nets) {
        network::to_loopback(&field, app, net, &mut findings);
    }
    network::from_sidecar(&field, &in_sidecar, &mut findings);
    network::from_host(&field, &mut findings);

    // Each takes its time to end, so all do at once.
    let agents = nets.iter().chain(&probers).chain(&besides);
    let agents = agents.chain([&sidecar_net, &host_net, &in_sidecar, &as_supervisor]);
    let agents = agents.chain(&beside_relay);
    agents.flatten().for_each(Agent::dismiss);
    let milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(Report::new(stack.to_string(), findings.0, milliseconds))
}

/// The probes that look at everything there is, and attack nothing; `apps` with who answers in the network namespace of each,
/// `beside_relay` is in that of the egress's carrier, where it has one.
fn look_around(
    target: &Target,
    field: &Field<'_>,
    apps: &[(&AppPlan, &Result<Agent, String>)],
    beside_relay: Option<&Result<Agent, String>>,
    findings: &mut Findings,
) {
    let Field {
        plan,
        sidecar,
        host,
    } = *field;
    let others = others(target);
    let mut places = vec![(Place::Sidecar, sidecar)];
    let of_apps = apps.iter();
    places.extend(of_apps.map(|(app, net)| (Place::App(app), *net)));
    places.push(match plan.uplink.ends_at {
        UplinkEnd::Host => (Place::Host, host),
        UplinkEnd::Relay => (Place::Relay, host),
    });
    places.extend(beside_relay.map(|agent| (Place::Egress, agent)));
    let networks = places.into_iter();
    let networks = networks.map(|(place, agent)| Surveyed::of(place, agent, plan));
    let of_apps = apps.iter();
    let of_apps = of_apps.map(|(app, net)| (app.name.as_str(), *net));
    let inside = std::iter::once(("sidecar", sidecar)).chain(of_apps);
    let scene = Scene {
        target,
        processes: Processes::look(),
        inside: inside
            .chain(others.iter().map(|(name, agent)| (*name, agent)))
            .collect(),
        networks: networks.collect(),
    };
    for probe in CATALOGUE {
        if let Side::Look(look) = probe.from {
            for (part, outcome) in look(&scene) {
                findings.add(probe.id, &part, outcome);
            }
        }
    }
}

/// The probes from within an app, and who has made them.
fn in_app(
    target: &Target,
    app: &AppPlan,
    abstract_name: &str,
    findings: &mut Findings,
) -> Result<Agent, String> {
    let name = app.name.as_str();
    let context = context(target, app, abstract_name);
    let mut prober = Inside::new(|| target.prober(name, &context));
    for probe in CATALOGUE {
        if matches!(probe.from, Side::App | Side::AppCall(_)) {
            let mut outcome = prober.run(probe);
            // The app may have started something since that has the number of a process outside.
            if probe.id == SIGNAL && outcome.verdict == Verdict::Fail {
                let context = self::context(target, app, abstract_name);
                if prober.learn(&context) {
                    outcome = prober.run(probe);
                }
            }
            findings.add(probe.id, name, outcome);
        }
    }
    prober.agent
}

/// The same from within the sidecar.
fn in_sidecar(sidecar: &Result<Entered, String>, findings: &mut Findings) -> Result<Agent, String> {
    let start = || {
        let agent = beside(sidecar)?;
        agent.ask(&Ask::Context(Box::default()))?;
        Ok(agent)
    };
    let mut prober = Inside::new(start);
    for probe in CATALOGUE {
        if matches!(probe.from, Side::Sidecar | Side::SidecarCall(_)) {
            findings.add(probe.id, "sidecar", prober.run(probe));
        }
    }
    prober.agent
}

/// The same as whoever has taken over the supervisor.
fn as_supervisor(target: &Target, findings: &mut Findings) -> Result<Agent, String> {
    let gated = target.status.gated;
    let mut prober = Inside::new(|| match gated {
        true => Err(String::new()),
        false => target.prober_of_supervisor(),
    });
    for probe in CATALOGUE {
        if matches!(probe.from, Side::Supervisor | Side::SupervisorCall(_)) {
            let outcome = match gated {
                true => Outcome::not_applicable(host::GATED),
                false => prober.run(probe),
            };
            findings.add(probe.id, host::SUPERVISOR, outcome);
        }
    }
    prober.agent
}

/// An agent in all of a part's namespaces, with what the part holds, and not in its Landlock domain.
///
/// # Errors
/// In words.
pub fn beside(entered: &Result<Entered, String>) -> Result<Agent, String> {
    agent(entered, |entered| Join::Part {
        pidfd: entered.pidfd.as_fd(),
        access: &entered.access,
    })
}

/// An agent that goes where `place` says.
fn agent<'a>(
    entered: &'a Result<Entered, String>,
    place: impl FnOnce(&'a Entered) -> Join<'a>,
) -> Result<Agent, String> {
    let entered = entered.as_ref().map_err(Clone::clone)?;
    Agent::join(&place(entered)).map_err(|e| format!("fork: {e}"))
}

/// An agent in the network namespace of what carries egress by relay.
fn carrier(target: &Target) -> Option<Result<Agent, String>> {
    target.part("egress")?.init?;
    let agent = target.enter("egress").and_then(|entered| {
        uplink_of(entered.pidfd.as_fd())
            .and_then(|place| Agent::join(&place))
            .map_err(|e| format!("join the network namespace of egress: {e}"))
    });
    Some(agent)
}

/// An agent in the user namespace of each part that has no network namespace of its own to be looked at.
fn others(target: &Target) -> Vec<(&'static str, Result<Agent, String>)> {
    let parts = ["relay", "egress"].into_iter();
    let running = parts.filter(|name| target.part(name).is_some());
    let agents = running.map(|name| {
        let entered = target.enter(name);
        let agent = agent(&entered, |entered| Join::User(entered.pidfd.as_fd()));
        (name, agent)
    });
    agents.collect()
}

/// An agent where the host's end of the uplink is.
fn host_agent(target: &Target) -> Result<Agent, String> {
    let plan = &target.status.plan;
    let place = match plan.uplink.ends_at {
        UplinkEnd::Host => Join::Stay,
        UplinkEnd::Relay => {
            let relay = target.enter("relay")?;
            uplink_of(relay.pidfd.as_fd())
                .map_err(|e| format!("find the namespace in which the uplink ends: {e}"))?
        }
    };
    Agent::join(&place).map_err(|e| format!("fork: {e}"))
}

/// The tables of a running stack as the kernel lists them, with what their rules have counted so far: the sidecar's, then
/// the host's. Reading changes no count.
///
/// # Errors
/// In words.
pub fn tables(target: &Target) -> Result<[(String, Listing); 2], String> {
    let host = firewall::end_table(&target.status.plan);
    let sidecar = target.enter("sidecar");
    let in_sidecar = agent(&sidecar, |entered| Join::Network(entered.pidfd.as_fd()))?;
    let list = |agent: &Agent, table: &str| match agent.ask(&Ask::List(table.to_owned()))? {
        Answer::Listing(listing) => Ok((table.to_owned(), *listing)),
        _ => Err(SOMETHING_ELSE.to_owned()),
    };
    Ok([
        list(&in_sidecar, firewall::SIDECAR_TABLE)?,
        list(&host_agent(target)?, &host)?,
    ])
}

/// A process inside, to run probes in.
struct Inside<'a> {
    agent: Result<Agent, String>,
    /// Makes another one.
    again: Box<dyn Fn() -> Result<Agent, String> + 'a>,
    /// One that has ended was replaced.
    replaced: bool,
    /// Each does one probe and ends.
    one_each: bool,
    /// It was said that the part hinders the audit.
    hindered: bool,
}

impl<'a> Inside<'a> {
    fn new(make: impl Fn() -> Result<Agent, String> + 'a) -> Self {
        Self {
            agent: make(),
            again: Box::new(make),
            replaced: false,
            one_each: false,
            hindered: false,
        }
    }

    /// Tells it what its probes need to know; whether it has heard that.
    fn learn(&self, context: &Context) -> bool {
        let told = self.agent.as_ref().ok();
        told.is_some_and(|agent| agent.ask(&Ask::Context(Box::new(context.clone()))).is_ok())
    }

    /// Runs one probe. A process that has ended is replaced once: a probe may have ended it, or a limit. No probe ends two,
    /// and none keeps one from answering, since each has a process of its own that is killed when its time is up: then it is
    /// the part that hinders the audit, and a part whose audit it hinders has failed.
    fn run(&mut self, probe: &Probe) -> Outcome {
        let agent = match &self.agent {
            Ok(agent) => agent,
            Err(e) => return Outcome::unknown(e.clone()),
        };
        let answer = agent.ask(&Ask::Probe(probe.id.to_owned()));
        match answer {
            Ok(Answer::Outcome(outcome)) => outcome,
            Ok(Answer::Last(outcome)) => {
                self.one_each = true;
                self.agent = (self.again)();
                outcome
            }
            Ok(Answer::Died(libc::SIGSYS)) => Outcome::pass("SIGSYS: the filter ended the process"),
            Ok(Answer::Died(signal)) => {
                Outcome::unknown(format!("the probe was ended by signal {signal}"))
            }
            Ok(_) => Outcome::unknown(SOMETHING_ELSE),
            Err(e) => match agent.lost() {
                None => Outcome::unknown(e),
                Some(_) if self.hindered => Outcome::unknown(format!("not tried: {e}")),
                Some(Lost::Ended) if self.one_each || !self.replaced => {
                    self.replaced = true;
                    self.agent = (self.again)();
                    Outcome::unknown(e)
                }
                Some(_) => {
                    self.hindered = true;
                    Outcome::fail(format!("the part hinders the audit: {e}"))
                }
            },
        }
    }
}

/// Files of the host that no app needs, where they exist.
const SECRETS: [&str; 14] = [
    "/etc/shadow",
    "/etc/gshadow",
    "/etc/sudoers",
    "/etc/ssh",
    "/etc/machine-id",
    "/root",
    "/home",
    "/boot",
    "/var/lib",
    "/var/log",
    "/srv",
    "/etc/passwd",
    "/etc/hosts",
    "/etc/resolv.conf",
];
/// Sockets of the host through which one becomes root, or learns much.
const SOCKETS: [&str; 9] = [
    "/run/docker.sock",
    "/var/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
    "/run/crio/crio.sock",
    "/run/systemd/private",
    "/run/dbus/system_bus_socket",
    "/run/systemd/notify",
    "/run/systemd/journal/stdout",
];

fn context(target: &Target, app: &AppPlan, abstract_name: &str) -> Context {
    let plan = &target.status.plan;
    let init = target.part(app.name.as_str()).and_then(|part| part.init);
    let inside: HashSet<i32> = init.map(pids_inside).unwrap_or_default();
    let outside = target
        .status
        .parts
        .iter()
        .flat_map(|part| [part.pid, part.init])
        .flatten()
        .chain([target.status.supervisor, std::process::id().cast_signed()]);
    let held = outside::held(target.part(app.name.as_str()), Controller::Pids);
    let (pids, no_pids) = match held {
        Ok(_) => (app.limits.pids.map(u64::from), String::new()),
        Err(why) => (None, why),
    };
    Context {
        env: app.env.clone(),
        tmpfs: app
            .tmpfs
            .iter()
            .map(|tmpfs| (tmpfs.path.clone(), tmpfs.size))
            .collect(),
        writable: outside::volumes(app),
        volumes: app.mounted().into_iter().map(|v| v.path).collect(),
        sockets: app.sockets.iter().map(|s| s.path.clone()).collect(),
        host_pids: outside
            .filter(|pid| !inside.contains(pid) && *pid > 1)
            .collect(),
        hostname: rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
        abstract_name: abstract_name.to_owned(),
        host_files: SECRETS
            .iter()
            .filter_map(|path| {
                let meta = std::fs::metadata(path).ok()?;
                Some((PathBuf::from(path), meta.dev(), meta.ino()))
            })
            .collect(),
        stacks: vec![],
        stays: None,
        host_sockets: SOCKETS
            .iter()
            .map(PathBuf::from)
            .chain([plan.state_dir.join("control.sock")])
            .collect(),
        pids,
        no_pids,
        processors: app.limits.cpu.map(|cpu| cpu.thousandths().div_ceil(1000)),
        memory: app.limits.memory,
        holds: app
            .ids
            .capabilities()
            .iter()
            .fold(0, |all, one| all | one.bitmask()),
        securebits: match app.ids.is_range() {
            true => privileges::securebits_over_a_range().bits(),
            false => privileges::securebits().bits(),
        },
        rtnetlink: crate::confine::seccomp::allows_rtnetlink(&app.seccomp),
        read_back: target
            .part(app.name.as_str())
            .and_then(|part| part.privileges.clone()),
        inherited: vec![],
    }
}

/// The numbers, inside, of every process that is in the pid namespace of `init`, and of their threads: kill(2) takes a
/// thread's number for its process.
fn pids_inside(init: i32) -> HashSet<i32> {
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let wanted = namespace(&init.to_string());
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
        .filter(|pid| wanted.is_some() && namespace(pid) == wanted)
        .flat_map(|pid| {
            std::fs::read_dir(format!("/proc/{pid}/task"))
                .into_iter()
                .flatten()
        })
        .flatten()
        .filter_map(|thread| {
            let status = std::fs::read_to_string(thread.path().join("status")).ok()?;
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("NSpid:"))?;
            line.split_whitespace().next_back()?.parse().ok()
        })
        .collect()
}

/// Where the scratch stack may be: documentation's (RFC 5737), and benchmarks' (RFC 2544).
const SUBNETS: [Ipv4Net; 2] = [
    Ipv4Net::new_assert(Ipv4Addr::new(198, 51, 100, 0), 29),
    Ipv4Net::new_assert(Ipv4Addr::new(198, 18, 255, 248), 29),
];

/// The word on our command line that makes a process the supervisor of a scratch stack ([`scratch_config`]).
pub const SCRATCH: &str = "scratch";

/// The configuration of a scratch stack: the built-in example without a published port.
#[must_use]
pub fn scratch_config(name: &StackName, subnet: &Ipv4Net) -> String {
    format!(
        "name = \"{name}\"\n[network]\nsubnet = \"{subnet}\"\n[app]\nrootfs = \"builtin:webapp\"\ncommand = [\"/webapp\"]\nlisten = [5000]\n"
    )
}

/// A stack of the built-in example without a published port, for the time of the audit.
///
/// Its supervisor holds a pidfd of the audit and ends with it: no process and no file has to outlive an audit that is
/// interrupted or killed.
pub struct Scratch {
    /// Its name.
    pub name: StackName,
    /// Its control socket.
    control: PathBuf,
    /// The command that brings it up, while it runs.
    up: Option<Child>,
    /// The conversation in which it was told to go down.
    down: Option<Client>,
}

/// How long the supervisor of a scratch stack may take to end.
const SCRATCH_ENDS_WITHIN: Duration = Duration::from_secs(10);

impl Scratch {
    /// Starts one whose subnet is not `plan`'s: the same addresses in another stack are others, and its own app would
    /// answer for theirs.
    fn start(state: &StateRoot, plan: &Plan) -> io::Result<Self> {
        let mut random = [0; 4];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let name = format!("audit-{:08x}", u32::from_ne_bytes(random));
        let name = StackName::new(name).map_err(io::Error::other)?;
        let subnet = SUBNETS
            .into_iter()
            .find(|subnet| {
                !plan.bridge.subnet.contains(subnet) && !subnet.contains(&plan.bridge.subnet)
            })
            .unwrap_or(SUBNETS[0]);
        let this = rustix::process::pidfd_open(
            rustix::process::getpid(),
            rustix::process::PidfdFlags::empty(),
        )?;
        let up = Command::new("/proc/self/exe")
            .args([SCRATCH, name.as_str(), &subnet.to_string()])
            // What weakens the stack under audit is not to be in the one that helps.
            .env_remove("LRPNS_TEST_WEAKEN")
            .stdin(this)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Ctrl-C at the audit is none for it.
            .process_group(0)
            .spawn()?;
        Ok(Self {
            control: state.control(&name),
            name,
            up: Some(up),
            down: None,
        })
    }

    /// Has it go down, and does not wait for that.
    pub fn leave(&mut self) {
        let _ = self.wait();
        if self.down.is_some() {
            return;
        }
        // One that could not be brought up listens no more, and one that can't be asked ends when we do.
        if let Ok(client) = Client::connect(&self.control)
            && client.ask(&Request::Down).is_ok()
        {
            self.down = Some(client);
        }
    }

    /// Waits until it is up.
    ///
    /// # Errors
    /// What its supervisor said.
    pub fn wait(&mut self) -> Result<(), String> {
        let Some(up) = self.up.take() else {
            return Ok(());
        };
        let output = up
            .wait_with_output()
            .map_err(|e| format!("wait for the scratch stack: {e}"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!(
            "a scratch stack could not be brought up: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.leave();
        if let Some(client) = &self.down {
            // It answers by ending, when nothing of the stack is left.
            let limit = tokio::time::Instant::now() + SCRATCH_ENDS_WITHIN;
            let _ = client.has_answered_by(limit);
        }
    }
}
/// Of all stacks, this one's included.
fn control_sockets(plan: &Plan) -> Vec<PathBuf> {
    let state = StateRoot::of_stack(&plan.state_dir);
    let stacks = state.stacks().unwrap_or_default();
    stacks.iter().map(|stack| state.control(stack)).collect()
}

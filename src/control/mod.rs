//! The control socket: what a command asks of a running stack, and what it gets.
//!
//! Framed as in [`crate::protocol`]. The socket is in a directory of ours alone, and the supervisor looks at the peer's
//! uid all the same (`SO_PEERCRED`, unix(7)).
#![forbid(unsafe_code)]

pub mod access;
pub mod evidence;
pub mod processes;
pub mod usage;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use rustix::process::{Pid, PidfdFlags};
use serde::{Deserialize, Serialize};

use crate::confine::privileges::Privileges;
use crate::log::{Filter, LogLine};
use crate::plan::Plan;
use crate::plan::limits::{Controller, HeldBy};
use crate::protocol;
use crate::sys;

/// What a command asks.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// How the stack is; while it starts, answered when it has started.
    Status,
    /// The same for people: answered at once, while the stack starts with what there is of it.
    Look {
        /// With every process of ours.
        processes: bool,
    },
    /// Its line in a list of stacks; answered as [`Request::Look`] is.
    Brief,
    /// The same for the audit: answered while the gate is closed as well.
    Inspect,
    /// Take everything down. Answered by [`Reply::Waits`] as long as that takes its time, and by the end.
    Down,
    /// The same at once: whatever still runs is killed.
    Kill,
    /// The directory that the log's files may be in by the next plan, which who is supervisor may not be able to open. Descriptor:
    /// that.
    LogDirectory {
        /// Where it is.
        path: std::path::PathBuf,
    },
    /// What is in an app's secrets now, for the starts from now on: who is supervisor may not read it. Descriptors: an anonymous
    /// sealed file for each.
    Secrets {
        /// The app.
        app: crate::names::PartName,
        /// The secrets' names.
        names: Vec<String>,
    },
    /// Start a part again; `None` for every app.
    Restart {
        /// The part.
        part: Option<String>,
    },
    /// Put another of an app in its place, without a gap; `None` for every app that can be. Answered by [`Reply::Waits`]
    /// for each. Descriptors: where the stack has cgroups, the way into one for the other, which the supervisor has dropped
    /// what it takes to make ([`crate::part::cgroup::Entrance`]).
    Replace {
        /// The app.
        part: Option<String>,
    },
    /// Send a signal to an app's command; `None` for every app's.
    Signal {
        /// The app.
        part: Option<String>,
        /// The signal's number.
        signal: i32,
    },
    /// The socket that owns the table of the host's that stacks share ([`crate::firewall::Shared`]): [`Reply::Done`] with
    /// that descriptor, or a refusal by who has no part in it.
    HostTable,
    /// The same for who takes the stack down, and then the socket that owns the rules at the stack's own link: so who has them
    /// takes all of the host's rules away in transactions, and the supervisor need not wait for what closing them takes.
    HostRules,
    /// The log; with `follow` until either side ends.
    Logs {
        /// Which lines.
        filter: Filter,
        /// Go on with what comes.
        follow: bool,
    },
    /// A process of a part, whose namespaces it has.
    Enter {
        /// The part.
        part: String,
    },
    /// Load these rules into the sidecar's namespace. Only debug builds do, for tests: the commands say what the rules
    /// are to come from, and not what they are.
    Load {
        /// One transaction.
        rules: crate::firewall::Batch,
    },
    /// Bring the stack to another plan; from here on client and supervisor talk to each other: [`Reply::Applying`],
    /// [`Said`]. Descriptors: a bound socket for each port that is new, in the plan's order; what one message has no room
    /// for comes by [`Said::More`].
    Apply(Box<Apply>),
    /// Run a command in an app, as its own was started. Descriptors: as [`protocol::ToStage::Exec`] has them.
    Exec {
        /// The app.
        part: String,
        /// Program and arguments.
        command: Vec<String>,
        /// `TERM`, which is of the caller's terminal; the rest of the environment is the app's.
        term: Option<String>,
        /// One of the three descriptors is a terminal.
        terminal: bool,
    },
    /// Start a prober in an app, as its command was started ([`crate::audit`]).
    Probe {
        /// The app.
        part: String,
    },
    /// Start a prober as the supervisor is: with its ids, capabilities, namespaces and cgroup, and under its filter; one at a
    /// time, who comes later ends it. Answered by [`Reply::Probe`].
    ProbeSupervisor,
}

/// What a live change is to come to.
#[derive(Debug, Serialize, Deserialize)]
pub struct Apply {
    /// The plan that it was made from: another change meanwhile is a refusal.
    pub running: Plan,
    /// The plan that the stack is to have.
    pub wanted: Plan,
    /// Take it back unless it is confirmed within so many seconds.
    pub confirm: Option<u64>,
}

/// What the client of a live change hears.
#[derive(Debug, Serialize, Deserialize)]
pub enum Applying {
    /// A step is done, in words.
    Step(String),
    /// Make the cgroup of this name for an app of the plan that the stack is to have, with its limits: the supervisor has
    /// dropped what that takes. Answered by [`Said::Room`], or by [`Said::Failed`].
    Room {
        /// [`crate::plan::AppPlan::own_name`], or what another of it is called.
        cgroup: String,
    },
    /// Give the part of this cgroup its limits. Answered by [`Said::Changed`].
    Limit {
        /// Its name.
        cgroup: String,
        /// Those from before.
        back: bool,
    },
    /// Remove the cgroup of this name, of an app that has ended for good. Answered by [`Said::Changed`].
    Vacate {
        /// Its name.
        cgroup: String,
    },
    /// Write the plan that the stack is to have beside the saved one, before anything is changed. Answered by
    /// [`Said::Changed`].
    Stage,
    /// The change stays: put the plan in the place of the saved one, if it is what was asked for, but for where apps are that
    /// were replaced. Answered by [`Said::Changed`].
    Save {
        /// What the stack is by now.
        plan: Box<Plan>,
    },
    /// The host's table is to change, which is the client's to do: the supervisor has dropped NET_ADMIN. Descriptor: the
    /// socket that owns the table. Answered by [`Said::Changed`].
    Host {
        /// What is in force.
        old: Box<nftables::schema::Nftables<'static>>,
        /// What shall be.
        new: Box<nftables::schema::Nftables<'static>>,
        /// Then connections are forgotten that are not of these.
        grants: Vec<crate::firewall::Grants>,
    },
    /// Write the maps of a user namespace that was just made (user_namespaces(7)): the supervisor has dropped what that
    /// takes. Descriptors: the directory of /proc of a process in it, and the user namespace that it was made in. Answered
    /// by [`Said::Changed`].
    Map {
        /// The lines of `uid_map`.
        uids: String,
        /// The lines of `gid_map`.
        gids: String,
    },
    /// Open what an app is given of the host's: the supervisor has dropped what that takes. Answered by [`Said::Opened`] with the
    /// mounts, or by [`Said::Failed`].
    Open {
        /// Which, of the plan that the stack is to have.
        app: crate::names::PartName,
    },
    /// Bind these ports of TCP, which the supervisor's own sockets share for now ([`crate::net::publish::bound`]). Answered
    /// by as many [`Said::More`] as it takes, or by [`Said::Changed`] with why not.
    Bind {
        /// The host's addresses and ports.
        ports: Vec<std::net::SocketAddr>,
    },
    /// Have these sockets, which listen, answer nobody new ([`crate::net::publish::Listener::admit_no_more`]), where the
    /// kernel takes a filter from root only. Descriptors: the sockets. Answered by [`Said::Changed`].
    AdmitNoMore,
    /// Everything works: is it to stay? Answered by [`Said::Keep`], or by [`Said::Revert`], the end, or silence.
    Confirm {
        /// How long there is to answer.
        seconds: u64,
    },
    /// Done, and in force for good.
    Applied,
}

/// What the client of a live change says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Said {
    /// What was asked for is done, or not and why.
    Changed(Result<(), String>),
    /// Descriptors: sockets, in the order of what they were asked for by, or belong to.
    More,
    /// What was asked for is open. Descriptors: the mounts, then what is in the secrets.
    Opened {
        /// The secrets' names.
        secrets: Vec<String>,
    },
    /// The cgroup is there. Descriptors: the way into it.
    Room,
    /// It can't be had.
    Failed {
        /// Why.
        why: String,
        /// What to do about it, where that is known.
        hint: Option<String>,
    },
    /// It is to stay.
    Keep,
    /// It is not.
    Revert,
}

/// What a command gets.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Brief`].
    Brief(Box<Brief>),
    /// It is done.
    Done,
    /// It takes its time: what is waited for, in words, or that it was not waited for any longer.
    Waits(String),
    /// One line of the log.
    Line(LogLine),
    /// What comes next of the log is new.
    UpToDate,
    /// To [`Request::Enter`]. Descriptor: the pidfd of the part's pid 1. What who asks may be there is told by the plan
    /// ([`access`]).
    Enter {},
    /// To [`Request::Apply`]: how far it is. The last one is [`Applying::Applied`], or else a refusal.
    Applying(Applying),
    /// To [`Request::Probe`] and [`Request::ProbeSupervisor`]. Descriptor: the other end of the prober's standard input.
    Probe,
    /// It can't be done.
    Refused {
        /// Why.
        why: String,
        /// What to do about it.
        hint: Option<String>,
        /// It is the configuration that is wrong, and not the stack.
        configuration: bool,
    },
}

/// How a stack is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// What it was brought up with.
    pub plan: Plan,
    /// What nft has made of the file of `sidecar.rules`; left out without one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compiled: Vec<crate::plan::ExtraObject>,
    /// The supervisor's process.
    pub supervisor: i32,
    /// What the kernel said it holds since the stack is up.
    pub supervisor_privileges: Privileges,
    /// When it was up, RFC 3339, UTC.
    pub since: jiff::Timestamp,
    /// Whether it is still being brought up: then nothing is published yet, and parts may be missing.
    #[serde(default)]
    pub starting: bool,
    /// Whether it is being taken down: nobody new is let in, and parts go one by one.
    #[serde(default)]
    pub stopping: bool,
    /// Whether its ports are still closed, since the audit that `up --gate` asks for has not passed yet.
    pub gated: bool,
    /// Apps to which nobody new is let in, since they are not healthy.
    #[serde(default)]
    pub closed: std::collections::BTreeSet<crate::names::PartName>,
    /// Its parts.
    pub parts: Vec<PartStatus>,
    /// What the sidecar has seen of the traffic; `null` with `log = "off"`.
    pub traffic: Option<crate::traffic::Summary>,
    /// Clients that the relay has refused, whom the sidecar never sees; `null` without a relay.
    pub refused_by_relay: Option<crate::traffic::RefusedByRelay>,
    /// Every process of ours, as the kernel tells when it is asked.
    pub processes: Vec<crate::control::processes::Process>,
}

/// How a part is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PartStatus {
    /// Its name: `sidecar`, `relay`, or an app's.
    pub name: String,
    /// Which of two of its name it is, while one takes the other's place; left out as a rule.
    #[serde(default, skip_serializing_if = "crate::plan::Turn::serves")]
    pub turn: crate::plan::Turn,
    /// Whether it runs.
    pub state: PartState,
    /// The process that does the part's work, in the supervisor's pid namespace: the app's command, or the part's pid 1.
    pub pid: Option<i32>,
    /// The part's pid 1, in the supervisor's pid namespace.
    pub init: Option<i32>,
    /// The host's uid of the process.
    pub host_uid: u32,
    /// When it was started last.
    pub since: jiff::Timestamp,
    /// How often it was started again, by itself or by command.
    pub restarts: u32,
    /// How often of these since it has last run for a while: of one that ends again and again.
    #[serde(default)]
    pub in_a_row: u32,
    /// Of one that has ended: when it is started again.
    #[serde(default)]
    pub next_start: Option<jiff::Timestamp>,
    /// What its health checks have come to, of an app that runs and has any.
    #[serde(default)]
    pub health: Option<HealthStatus>,
    /// It has ended as often as its limit allows, and is not started again.
    #[serde(default)]
    pub gave_up: bool,
    /// How its command ended last.
    pub last_exit: Option<protocol::Exit>,
    /// What the kernel said it holds, when it had dropped everything.
    pub privileges: Option<Privileges>,
    /// Its cgroup.
    pub cgroup: Option<std::path::PathBuf>,
    /// Its limits, as the plan has them, and what holds each.
    pub limits: Vec<LimitStatus>,
    /// What had to be left out, and what its limits have kept it from.
    pub notes: Vec<String>,
}

/// What an app's health checks have come to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthStatus {
    /// How it is.
    pub state: protocol::Health,
    /// Since when.
    pub since: jiff::Timestamp,
    /// How many checks in a row have failed that count.
    pub failures: u32,
    /// When the last check was done.
    pub checked: Option<jiff::Timestamp>,
    /// What it said, in one line.
    pub output: Option<String>,
}

/// A stack in a line: of a hundred, a list is made in the time that one whole [`Status`] takes to read.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Brief {
    /// [`Status::word`], if a supervisor says it.
    pub word: Option<String>,
    /// Who brought it up.
    pub mode: crate::plan::Mode,
    /// Addresses and ports of the host, ports in a row as `FIRST-LAST`, with `/udp` where it is that.
    pub published: Vec<String>,
    /// Its apps.
    pub apps: Vec<String>,
    /// How each is ([`PartStatus::shown`]), in the same order.
    pub app_states: Vec<String>,
    /// Its configuration file.
    pub config: Option<std::path::PathBuf>,
}

impl Brief {
    fn apps(plan: &Plan) -> impl Iterator<Item = &crate::plan::AppPlan> {
        plan.apps.iter().filter(|app| app.turn.serves())
    }

    /// What a plan alone tells, of a stack whose supervisor does not answer.
    #[must_use]
    pub fn of_plan(plan: &Plan) -> Self {
        let ranges = crate::plan::reach::ranges(plan);
        Self {
            word: None,
            mode: plan.mode,
            published: ranges.iter().map(|range| range.listen()).collect(),
            apps: Self::apps(plan).map(|app| app.name.to_string()).collect(),
            app_states: vec![],
            config: plan.config.clone(),
        }
    }

    /// Of one that says how it is.
    #[must_use]
    pub fn of(status: &Status) -> Self {
        let plan = &status.plan;
        let state = |app: &crate::plan::AppPlan| {
            let its = |part: &&PartStatus| part.turn.serves() && app.name.as_str() == part.name;
            let part = status.parts.iter().find(its);
            part.map_or_else(|| "ended".to_owned(), |part| part.shown(Some(app)))
        };
        Self {
            word: Some(status.word().to_owned()),
            app_states: Self::apps(plan).map(state).collect(),
            ..Self::of_plan(plan)
        }
    }
}

impl Status {
    /// Leaves out cgroups that are not the stack's by its saved plan: below those that are, files are read.
    pub fn only_cgroups_of(&mut self, saved: Option<&Plan>) {
        let is_its = |path: &Path| saved.is_some_and(|plan| plan.cgroup.has(path));
        for part in &mut self.parts {
            part.cgroup.take_if(|path| !is_its(path));
        }
    }

    /// How it is, in a word.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match (self.starting, self.stopping) {
            (_, true) => "stopping",
            (true, false) => "starting",
            (false, false) => "up",
        }
    }
}

impl PartStatus {
    /// Its state in a word or two, of `app` if it is one.
    #[must_use]
    pub fn shown(&self, app: Option<&crate::plan::AppPlan>) -> String {
        let done = self.last_exit == Some(protocol::Exit::Status(0));
        match self.turn {
            crate::plan::Turn::Serves => {}
            crate::plan::Turn::Comes => return "to come".to_owned(),
            crate::plan::Turn::Goes => return "to go".to_owned(),
        }
        match self.state {
            PartState::Ended if self.gave_up => format!("given up ({})", self.restarts),
            PartState::Ended if done && app.is_some_and(|app| app.job) => "done".to_owned(),
            PartState::Ended => match self.last_exit {
                Some(protocol::Exit::Status(status)) => format!("ended ({status})"),
                Some(exit) => format!("ended ({})", exit.to_string().trim_start_matches("signal ")),
                None => "ended".to_owned(),
            },
            PartState::Running if self.is(protocol::Health::Healthy) => "healthy".to_owned(),
            PartState::Running if self.is(protocol::Health::Unhealthy) => "unhealthy".to_owned(),
            _ if self.in_a_row > 0 => format!("restarting ({})", self.in_a_row),
            PartState::Starting => "starting".to_owned(),
            PartState::Running if self.is(protocol::Health::Starting) => "starting".to_owned(),
            PartState::Running => "running".to_owned(),
        }
    }

    fn is(&self, state: protocol::Health) -> bool {
        self.health
            .as_ref()
            .is_some_and(|health| health.state == state)
    }
}

/// One limit of a part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitStatus {
    /// Which.
    pub limit: Controller,
    /// What holds it; `null` when nothing does.
    pub held_by: Option<HeldBy>,
}

/// Whether a part runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PartState {
    /// It works.
    Running,
    /// It is being started.
    Starting,
    /// It has ended and is not started again.
    Ended,
}

/// Whether this error of a [`Client`] means that there is no supervisor, or none any more.
#[must_use]
pub fn is_gone(e: &io::Error) -> bool {
    use io::ErrorKind as E;
    matches!(
        e.kind(),
        E::NotFound | E::ConnectionRefused | E::ConnectionReset | E::BrokenPipe
    )
}

/// Whether this error of a [`Client`] means that the supervisor lives and does not answer.
#[must_use]
pub fn is_silent(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock
    )
}

/// How long a supervisor may take to hear a request, and how often is looked whether it was stopped meanwhile.
pub const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// A conversation with a supervisor.
pub struct Client(UnixStream);

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// ENOENT or ECONNREFUSED when nobody supervises this stack, EACCES when somebody else pretends to: the directory
    /// may be one below /tmp that another user made first.
    pub fn connect(path: &Path) -> io::Result<Self> {
        // One that was stopped has a queue that fills, and then neither connect(2) nor sendmsg(2) returns.
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(ANSWERS_WITHIN))?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        let socket = UnixStream::from(socket);
        // Not rustix's: that wants a pid, and a supervisor in another pid namespace has none here.
        let supervisor =
            nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::PeerCredentials)?;
        if supervisor.uid() != nix::unistd::geteuid().as_raw() {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "uid {} listens there, and that is not you",
                    supervisor.uid()
                ),
            ));
        }
        Ok(Self(socket))
    }

    /// Asks; then [`Client::reply`] tells.
    ///
    /// # Errors
    /// What `sendmsg(2)` says.
    pub fn ask(&self, request: &Request) -> io::Result<()> {
        self.ask_with(request, &[])
    }

    /// As [`Client::ask`], with descriptors.
    ///
    /// # Errors
    /// What `sendmsg(2)` says.
    pub fn ask_with(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        protocol::send(&self.0, request, fds)
    }

    /// As [`Client::ask`], with descriptors, or with more to say in the same conversation.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub fn say(&self, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        protocol::send(&self.0, message, fds)
    }

    /// The supervisor's process, unless that is in another pid namespace.
    ///
    /// # Errors
    /// What `pidfd_open(2)` says, and ESRCH when it has ended: then its number may be another's.
    pub fn supervisor(&self) -> io::Result<(Pid, OwnedFd)> {
        let peer =
            nix::sys::socket::getsockopt(&self.0, nix::sys::socket::sockopt::PeerCredentials)?;
        let pid = Pid::from_raw(peer.pid()).ok_or(rustix::io::Errno::SRCH)?;
        // Who holds its end of the conversation may be another than who listened, whose number may be anybody's by now.
        let pidfd =
            match nix::sys::socket::getsockopt(&self.0, nix::sys::socket::sockopt::PeerPidfd) {
                Ok(pidfd) => pidfd,
                // Before Linux 6.5.
                Err(nix::Error::ENOPROTOOPT) => {
                    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
                    match processes::is_ours(pid.as_raw_nonzero().get()) {
                        true => pidfd,
                        false => return Err(rustix::io::Errno::SRCH.into()),
                    }
                }
                Err(e) => return Err(e.into()),
            };
        // Its end of the conversation ends with it: as long as it is open, nobody else has had its number.
        let mut hung_up = [PollFd::new(&self.0, PollFlags::empty())];
        let now = Timespec::default();
        match rustix::event::poll(&mut hung_up, Some(&now))? {
            0 => Ok((pid, pidfd)),
            _ => Err(rustix::io::Errno::SRCH.into()),
        }
    }

    /// Whether the supervisor was stopped by a signal (SIGSTOP, SIGTSTP; state T of proc_pid_stat(5)).
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        let Ok((pid, _held)) = self.supervisor() else {
            return false;
        };
        sys::process::state(pid.as_raw_nonzero().get().unsigned_abs()) == Some('T')
    }

    /// Waits for a reply, or the end, until then; whether there is one.
    ///
    /// # Errors
    /// What `poll(2)` says.
    pub fn has_answered_by(&self, then: tokio::time::Instant) -> io::Result<bool> {
        let left = then.saturating_duration_since(tokio::time::Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut ready = [PollFd::new(&self.0, PollFlags::IN)];
        match rustix::event::poll(&mut ready, Some(&left)) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// The next reply; `None` when the supervisor has ended the conversation, or itself.
    ///
    /// # Errors
    /// What `recvmsg(2)` says.
    pub fn reply(&self) -> io::Result<Option<(Reply, Vec<OwnedFd>)>> {
        // How long it takes to come is for others to judge; once it comes it comes.
        let mut comes = [PollFd::new(&self.0, PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut comes, None))?;
        let reply = protocol::receive_within(&self.0, COMES_WITHIN);
        reply.map_err(|e| match e.kind() {
            io::ErrorKind::TimedOut => io::Error::new(
                io::ErrorKind::TimedOut,
                "it has begun an answer, and not ended it",
            ),
            _ => e,
        })
    }
}

/// How long an answer may take that has begun.
const COMES_WITHIN: Duration = Duration::from_secs(10);

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_request_is_in_the_manuals_table_and_no_other() {
        // What serde expects is all that there is.
        let said = serde_json::from_str::<Request>("\"x\"")
            .unwrap_err()
            .to_string();
        let (_, expected) = said.split_once("expected one of ").unwrap();
        let (expected, _) = expected.split_once(" at line").unwrap();
        let mut expected: Vec<&str> = expected
            .split(", ")
            .map(|name| name.trim_matches('`'))
            .collect();
        let manual = include_str!("../manual/commands.md");
        let (_, table) = manual.split_once("\n| request |").unwrap();
        let rows = table
            .lines()
            .skip(2)
            .take_while(|line| line.starts_with('|'));
        let names = rows.flat_map(|row| row.split('|').nth(1).unwrap().split(','));
        let mut names: Vec<&str> = names.map(|name| name.trim().trim_matches('`')).collect();
        expected.sort_unstable();
        names.sort_unstable();
        assert_eq!(names, expected);
    }
}

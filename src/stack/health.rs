//! Health checks: one check of an app, and what follows from all of them.
//!
//! # Theory of operation
//!
//! A check is a process in the app, started by the app's pid 1 in the way that its command was: same privileges, filter,
//! Landlock domain, cgroup. So there is no way to an app's port that is not the app's own, and a check can do no more
//! than the app. By HTTP and TCP it is our own program ([`crate::check`]). It has its time; then the end of the
//! conversation kills it. Of what it says so much is kept, and so much more is read and thrown away.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::pipe::PipeFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{Ground, StackError};
use crate::check;
use crate::config::{Check, Health};
use crate::part::container::Container;
use crate::part::namespaces::socketpair;
use crate::plan::AppPlan;
use crate::protocol::{Channel, Exit, FromStage, Health as State, ToStage};
use crate::text::harmless;

/// How much of what a check says is kept, in bytes…
const KEPT: usize = 1024;
/// …and how much more is read, so that it comes to its end.
const READ: usize = 1 << 20;
/// How much of it is shown to who waits.
const SHOWN: usize = 200;
/// The first pause between two checks of an app that starts; each one after it is twice as long, up to the interval.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// What one check came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// Whether it has passed.
    pub passed: bool,
    /// What it said, in one line.
    pub said: String,
}

impl Checked {
    fn failed(said: impl Into<String>) -> Self {
        let (passed, said) = (false, said.into());
        Self { passed, said }
    }
}

/// What follows from an app's checks. Pure but for the time.
#[derive(Debug, Clone)]
pub struct Watch {
    /// How it is.
    pub state: State,
    /// Since when.
    pub since: Timestamp,
    /// How many checks in a row have failed that count.
    pub failures: u32,
    /// When the last check was done, and what it came to.
    pub last: Option<(Timestamp, Checked)>,
    begun: Instant,
    /// How many checks were made while it starts.
    made: u32,
}

impl Watch {
    /// Of an app that has just been started.
    #[must_use]
    pub fn begin(now: Instant) -> Self {
        Self {
            state: State::Starting,
            since: Timestamp::now(),
            failures: 0,
            last: None,
            begun: now,
            made: 0,
        }
    }

    /// Takes note of a check; gives back what the app is now if that is something else than before.
    pub fn checked(&mut self, checked: Checked, now: Instant, health: &Health) -> Option<State> {
        self.made = self.made.saturating_add(1);
        let passed = checked.passed;
        let time = Timestamp::now();
        self.last = Some((time, checked));
        let starts = self.starts(now, health);
        self.failures = match passed {
            true => 0,
            false if starts => 0,
            false => self.failures.saturating_add(1),
        };
        let state = match passed {
            true => State::Healthy,
            false if self.failures >= health.retries => State::Unhealthy,
            false => self.state,
        };
        if state == self.state {
            return None;
        }
        self.state = state;
        self.since = time;
        Some(state)
    }

    /// Whether what fails does not count yet.
    fn starts(&self, now: Instant, health: &Health) -> bool {
        self.state == State::Starting
            && now.saturating_duration_since(self.begun) < health.start_period
    }

    /// How long it is until the next check: an app that starts is asked more often at first.
    #[must_use]
    pub fn pause(&self, now: Instant, health: &Health) -> Duration {
        let Some(before) = self.made.checked_sub(1) else {
            return Duration::ZERO;
        };
        if !self.starts(now, health) {
            return health.interval;
        }
        let doubled = 2_u32.saturating_pow(before);
        FIRST_PAUSE.saturating_mul(doubled).min(health.interval)
    }

    /// What the last check said.
    #[must_use]
    pub fn said(&self) -> &str {
        self.last
            .as_ref()
            .map_or("", |(_, last)| last.said.as_str())
    }
}

/// A check that an app's pid 1 is asked to make.
pub struct Asked {
    conversation: Channel,
    out: AsyncFd<OwnedFd>,
    time: Duration,
}

/// What is to be sent to the app's pid 1 for a check, with its descriptors, and where its answer comes.
///
/// # Errors
/// What the kernel says to a socket pair, a pipe or the null device.
pub fn ask(
    app: &AppPlan,
    health: &Health,
    program: OwnedFd,
) -> io::Result<(ToStage, Vec<OwnedFd>, Asked)> {
    let (ours, theirs) = socketpair()?;
    let (out, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&out, true)?;
    let null = OwnedFd::from(std::fs::File::open("/dev/null")?);
    let time = health.timeout;
    let milliseconds = time.as_millis().to_string();
    let of = |kind: &str, port: u16, more: &[&str]| {
        let address = format!("{}:{port}", app.address);
        let words = ["lrpns", check::ROLE, kind, &address, &milliseconds];
        let words = words.iter().chain(more);
        words.map(|word| (*word).to_owned()).collect::<Vec<_>>()
    };
    let (command, env, ours_runs) = match &health.check {
        Check::Http { port, path } => {
            let host = app.name.as_str();
            (of("http", *port, &[host, path]), BTreeMap::new(), true)
        }
        Check::Tcp { port } => (of("tcp", *port, &[]), BTreeMap::new(), true),
        Check::Command { command } => (command.clone(), app.env.clone(), false),
    };
    let what = ToStage::Exec {
        command,
        env,
        terminal: false,
        program: ours_runs,
    };
    let mut fds = vec![null, write.try_clone()?, write, theirs];
    if ours_runs {
        fds.push(program);
    }
    let asked = Asked {
        conversation: Channel::to_part(ours)?,
        out: crate::sys::watch::owned(out)?,
        time,
    };
    Ok((what, fds, asked))
}

impl Asked {
    /// Waits for the end of the check, which has its time.
    pub async fn answer(mut self) -> Checked {
        let mut kept = vec![];
        let ended = tokio::time::timeout(self.time, self.end(&mut kept)).await;
        let said = harmless(String::from_utf8_lossy(&kept).trim(), KEPT);
        let also = |what: String| match said.as_str() {
            "" => what,
            said => format!("{what}: {said}"),
        };
        // Its end is the check's: pid 1 of the app kills it.
        match ended {
            Err(_) => Checked::failed(also(format!(
                "no answer within {}",
                crate::text::duration(self.time)
            ))),
            Ok(Err(why)) => Checked::failed(also(why)),
            Ok(Ok(Exit::Status(0))) => Checked { passed: true, said },
            // Our own program says it all in its line.
            Ok(Ok(Exit::Status(1))) if !said.is_empty() => Checked::failed(said),
            Ok(Ok(exit)) => Checked::failed(also(exit.to_string())),
        }
    }

    /// How it ended. What it says is read meanwhile, and then what is left of it at once.
    async fn end(&mut self, kept: &mut Vec<u8>) -> Result<Exit, String> {
        let (mut read, mut more) = (0, true);
        let exit = loop {
            tokio::select! {
                biased;
                said = self.conversation.receive::<FromStage>() => match said {
                    Ok(Some((FromStage::Started, _))) => {}
                    Ok(Some((FromStage::Exited(exit), _))) => break exit,
                    Ok(Some((FromStage::Failed { step, cause, .. }, _))) => {
                        return Err(harmless(&format!("{step}: {cause}"), KEPT));
                    }
                    Ok(Some(_)) => return Err("it said what makes no sense".to_owned()),
                    Ok(None) | Err(_) => return Err("the app ended".to_owned()),
                },
                got = take(&self.out, kept), if more => {
                    read += got;
                    more = got > 0;
                    if read > READ {
                        return Err(format!("it wrote more than {READ} bytes"));
                    }
                }
            }
        };
        loop {
            let mut chunk = [0; KEPT];
            // EAGAIN: a process that it has left running has the pipe too.
            match rustix::io::read(self.out.get_ref(), &mut chunk) {
                Ok(got @ 1..) if kept.len() < KEPT => keep(kept, &chunk[..got]),
                _ => return Ok(exit),
            }
        }
    }
}

/// Reads what there is; 0 at its end.
async fn take(out: &AsyncFd<OwnedFd>, kept: &mut Vec<u8>) -> usize {
    // On the heap: the future of whoever waits for this is no larger for it.
    let mut chunk = vec![0; 16 << 10];
    let read = |out: &OwnedFd| Ok(rustix::io::read(out.as_fd(), &mut chunk[..])?);
    let got = out.async_io(Interest::READABLE, read).await.unwrap_or(0);
    keep(kept, &chunk[..got]);
    got
}

fn keep(kept: &mut Vec<u8>, more: &[u8]) {
    let room = KEPT.saturating_sub(kept.len()).min(more.len());
    kept.extend_from_slice(&more[..room]);
}

impl Ground {
    /// Waits until an app that is being started is healthy; `ends` is its end.
    pub(super) async fn until_healthy(
        &self,
        app: &AppPlan,
        health: &Health,
        container: &mut Container,
        mut waits: impl FnMut(&str),
    ) -> Result<Watch, StackError> {
        let mut watch = Watch::begin(Instant::now());
        let mut wait = super::Wait::begin();
        let failed = |source| StackError::Io {
            what: "make a health check",
            source,
        };
        loop {
            let next = tokio::time::sleep(watch.pause(Instant::now(), health));
            super::order::unless_ended(app, container, next).await?;
            let program = self.own_program().map_err(failed)?;
            let (what, fds, asked) = ask(app, health, program).map_err(failed)?;
            let sent: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            container.send(&what, &sent).await?;
            drop(fds);
            let checked = super::order::unless_ended(app, container, asked.answer()).await?;
            match watch.checked(checked, Instant::now(), health) {
                Some(State::Healthy) => return Ok(watch),
                Some(State::Unhealthy) => {
                    return Err(StackError::Unhealthy {
                        app: app.name.to_string(),
                        said: watch.said().to_owned(),
                    });
                }
                Some(State::Starting) | None => {}
            }
            if let Some(since) = wait.due() {
                let (name, since) = (&app.name, since.as_secs());
                let said = harmless(watch.said(), SHOWN);
                waits(&format!(
                    "waiting for {name} to be healthy, for {since} s; {said}"
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(start_period: u64, retries: u32) -> Health {
        Health {
            check: Check::Tcp { port: 1 },
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(5),
            retries,
            start_period: Duration::from_secs(start_period),
            on_unhealthy: crate::config::OnUnhealthy::Nothing,
        }
    }

    /// One check each second, `+` passed and `-` failed: each state by its first letter.
    fn states(checks: &str, health: &Health) -> String {
        let begun = Instant::now();
        let mut watch = Watch::begin(begun);
        let state = |(second, check): (usize, char)| {
            let now = begun + Duration::from_secs(second as u64);
            let checked = Checked {
                passed: check == '+',
                said: String::new(),
            };
            let before = watch.state;
            let changed = watch.checked(checked, now, health);
            assert_eq!(changed.is_some(), before != watch.state);
            match watch.state {
                State::Starting => 's',
                State::Healthy => 'h',
                State::Unhealthy => 'u',
            }
        };
        checks.chars().enumerate().map(state).collect()
    }

    #[test]
    fn a_state_follows_from_checks_in_a_row() {
        let cases = [
            ("+", 10, 3, "h"),
            // What fails while it starts does not count…
            ("-----+", 10, 3, "sssssh"),
            // …until its time is over.
            ("------", 3, 2, "ssssuu"),
            ("--+--+---+", 0, 3, "sshhhhhhuh"),
            ("+-+--+", 0, 2, "hhhhuh"),
            ("-", 0, 1, "u"),
        ];
        for (checks, start_period, retries, expected) in cases {
            assert_eq!(
                states(checks, &health(start_period, retries)),
                expected,
                "{checks}"
            );
        }
    }

    #[test]
    fn an_app_that_starts_is_asked_more_often() {
        let health = health(60, 3);
        let begun = Instant::now();
        let mut watch = Watch::begin(begun);
        let mut pauses = vec![];
        for _ in 0..9 {
            pauses.push(watch.pause(begun, &health).as_millis());
            watch.checked(Checked::failed(""), begun, &health);
        }
        assert_eq!(pauses, [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        let passed = Checked {
            passed: true,
            said: String::new(),
        };
        watch.checked(passed, begun, &health);
        assert_eq!(watch.pause(begun, &health), health.interval);
    }
}

//! What a service manager is told (sd_notify(3)): that the stack is up, that it is being changed, that it is well.
//!
//! Nobody waits for it where there is none, and one that is too old for a word passes over it: so no error is one.
//!
//! # Theory of operation
//!
//! `WATCHDOG=1` is sent by the one loop that decides everything, twice in the time that the manager gives it
//! (`WATCHDOG_USEC`): a loop that stands still sends nothing, and the manager starts the stack anew. It is also kept back
//! while one of our own parts (sidecar, relay, egress) has ended, or was stopped: what they do, nobody else does, and one
//! that does not come back in that time may be helped by a new start alone. Apps are not asked about: whether and when one
//! that has ended or is unhealthy starts again is said by its `restart` and `health`, and a new start of the whole stack
//! would take the other apps' clients with it.
#![forbid(unsafe_code)]

use std::time::Duration;

use nix::sys::socket::MsgFlags;
use sd_notify::NotifyState;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::Supervisor;
use crate::stack::PartId;
use crate::sys::manager::say;
use crate::sys::process::is_stopped;

/// Says that the stack is up, or up again as it was changed, and what it is in a line.
pub fn is_up(status: &str) {
    let what = [NotifyState::Ready, NotifyState::Status(status)];
    say(&what, &[], MsgFlags::empty());
}

/// Says that the stack is being changed; [`is_up`] is the end of it.
pub(super) fn changes() {
    // A manager of systemd 253 or later wants to know when, to tell this change from an earlier one.
    let Ok(now) = NotifyState::monotonic_usec_now() else {
        return;
    };
    say(&[NotifyState::Reloading, now], &[], MsgFlags::empty());
}

/// Says that the stack is being taken down, which may take so long.
pub(super) fn goes_down(longest: Duration) {
    let longest = u32::try_from(longest.as_micros()).unwrap_or(u32::MAX);
    let what = [
        NotifyState::Stopping,
        NotifyState::ExtendTimeoutUsec(longest),
    ];
    say(&what, &[], MsgFlags::empty());
}

/// Says that all is over.
pub fn is_down() {
    say(&[NotifyState::Stopping], &[], MsgFlags::empty());
}

/// Says that all is well, and waits for nobody: this is the loop that decides everything, and a manager that does not read
/// (`net.unix.max_dgram_qlen` messages wait for it) must not have it stand still.
fn ping() {
    say(&[NotifyState::Watchdog], &[], MsgFlags::MSG_DONTWAIT);
}

/// When the manager is to be told that all is well.
pub(super) struct Watchdog {
    /// Nobody asks where there is none.
    ticks: Option<Interval>,
    /// It was time, and not all was well: as soon as it is.
    owed: bool,
}

impl Watchdog {
    /// As this process was started (sd_watchdog_enabled(3)).
    pub(super) fn of_this_process() -> Self {
        let ticks = sd_notify::watchdog_enabled().map(|within| {
            // A tick every zero seconds is none.
            let every = (within / 2).max(Duration::from_millis(1));
            let mut ticks = tokio::time::interval_at(Instant::now() + every, every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        });
        Self { ticks, owed: false }
    }

    /// Waits until it is time.
    pub(super) async fn is_due(&mut self) {
        match &mut self.ticks {
            Some(ticks) => {
                ticks.tick().await;
            }
            None => std::future::pending().await,
        }
    }
}

impl Supervisor {
    /// It is time: says that all is well, or notes which part is not, and that nothing is said.
    pub(super) fn say_well(&mut self) {
        match self.unwell() {
            None => {
                self.watchdog.owed = false;
                ping();
            }
            Some((id, what)) => {
                if !std::mem::replace(&mut self.watchdog.owed, true) {
                    self.note(id, format!("{what}: the service manager is not told that all is well, and starts the stack anew if that lasts"));
                }
            }
        }
    }

    /// Something has happened, after which what was kept back may be said.
    pub(super) fn say_well_if_owed(&mut self) {
        if self.watchdog.owed && self.unwell().is_none() {
            self.say_well();
        }
    }

    /// One of our own parts that does not do its work.
    fn unwell(&self) -> Option<(PartId, &'static str)> {
        let ours = self.parts.iter();
        let mut ours = ours.filter(|part| !matches!(part.id, PartId::App(_)));
        ours.find_map(|part| match &part.process {
            Some(process) if !process.lives() => Some((part.id, "has ended")),
            Some(process) if is_stopped(process.init.unsigned_abs()) => {
                Some((part.id, "was stopped"))
            }
            Some(_) => None,
            None => Some((part.id, "does not run")),
        })
    }
}

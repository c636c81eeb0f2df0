//! Health: who is checked, and what follows: an app's ports are published only while it is healthy.
//!
//! # Theory of operation
//!
//! A task for each app that runs and has a `health` has its checks made, one after the other, and says here what each came to
//! ([`crate::stack::health`]). It ends with the app's process.
//!
//! Nobody new is let in to an app with a `health` but while it is healthy: not as long as it starts, nor while it ends. A
//! task closes and opens ([`Ground::close_only`]), one at a time; what is wanted when it is done is looked at again. It
//! waits for a live change to be over, for the gate, and for a sidecar that is being started, which loads the rules itself.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::apply::Waiting;
use super::{Event, Order, PartState, Supervisor, refused, tell};
use crate::config::{Health, OnUnhealthy};
use crate::control::{HealthStatus, Reply};
use crate::names::PartName;
use crate::plan::AppPlan;
use crate::protocol::Health as State;
use crate::stack::health::{self, Checked, Watch};
use crate::stack::{Ground, PartId, StackError};

/// An app that is checked.
pub(super) struct Watched {
    watch: Watch,
    /// The task that has it checked.
    task: AbortHandle,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How the ports of apps are closed and opened.
#[derive(Default)]
pub(super) struct Entries {
    /// A task does it.
    changing: bool,
    /// All rules are to be loaded anew.
    whole: bool,
    /// A live change that has come meanwhile.
    pub(super) waiting: Option<Waiting>,
}

impl Entries {
    pub(super) fn is_changing(&self) -> bool {
        self.changing
    }
}

/// What a check came to, and how its app is since.
pub(super) struct Report {
    watch: Watch,
    /// What it has become by it.
    became: Option<State>,
}

/// Has an app checked until its process ends.
async fn keep_checking(
    (id, launch): (PartId, u64),
    (app, health): (AppPlan, Health),
    ground: Arc<Ground>,
    mut watch: Watch,
    orders: mpsc::UnboundedSender<Order>,
    events: mpsc::UnboundedSender<Event>,
) {
    loop {
        let pause = watch.pause(Instant::now(), &health);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = orders.closed() => return,
        }
        let asked = ground
            .own_program()
            .and_then(|program: OwnedFd| health::ask(&app, &health, program));
        let checked = match asked {
            Ok((what, fds, asked)) => {
                if orders.send(Order::Start(what, fds)).is_err() {
                    return;
                }
                asked.answer().await
            }
            Err(e) => Checked {
                passed: false,
                said: format!("make a health check: {e}"),
            },
        };
        // What the end of the app does to a check is no news.
        if orders.is_closed() {
            return;
        }
        let became = watch.checked(checked, Instant::now(), &health);
        let report = Box::new(Report {
            watch: watch.clone(),
            became,
        });
        if events.send(Event::Checked { id, launch, report }).is_err() {
            return;
        }
    }
}

impl Supervisor {
    /// Begins to have an app checked that runs, where it left off in `known`. Whether it has a health check at all.
    pub(super) fn watch_health(&mut self, id: PartId, known: Option<Watch>) -> bool {
        self.part(id).health = None;
        let PartId::App(_) = id else { return false };
        let app = self.ground.app_plan(id).clone();
        let Some(health) = app.health.clone() else {
            return false;
        };
        let watch = known.unwrap_or_else(|| Watch::begin(Instant::now()));
        let (ground, events) = (Arc::clone(&self.ground), self.sender.clone());
        let part = self.part(id);
        let Some(process) = &part.process else {
            return true;
        };
        let checking = keep_checking(
            (id, part.launch),
            (app, health),
            ground,
            watch.clone(),
            process.orders.clone(),
            events,
        );
        let task = tokio::spawn(checking).abort_handle();
        part.health = Some(Watched { watch, task });
        true
    }

    /// A check is done.
    pub(super) fn checked(&mut self, id: PartId, report: Report) {
        let Report { watch, became } = report;
        let said = watch.said().to_owned();
        let failures = watch.failures;
        if let Some(watched) = &mut self.part(id).health {
            watched.watch = watch;
        }
        match became {
            Some(State::Healthy) => {
                self.note(id, "is healthy".to_owned());
                for client in std::mem::take(&mut self.part(id).waiting) {
                    tell(&client, Reply::Done);
                }
            }
            Some(State::Unhealthy) => {
                let times = match failures {
                    1 => "check".to_owned(),
                    times => format!("{times} checks in a row"),
                };
                self.note(id, format!("is unhealthy: {times} failed: {said}"));
                let name = self.ground.name(id).to_owned();
                for client in std::mem::take(&mut self.part(id).waiting) {
                    tell(
                        &client,
                        refused(format!("{name} is unhealthy: {said}"), None),
                    );
                }
            }
            Some(State::Starting) | None => {}
        }
        if became == Some(State::Unhealthy) {
            self.is_unhealthy(id);
        }
        self.enforce();
    }

    fn is_unhealthy(&mut self, id: PartId) {
        let app = self.ground.app_plan(id);
        let restarts = app
            .health
            .as_ref()
            .is_some_and(|health| health.on_unhealthy == OnUnhealthy::Restart);
        if !restarts {
            return;
        }
        let stop = self.stop(id);
        let part = self.part(id);
        part.ends_unhealthy = true;
        if let Some(process) = &part.process {
            let _ = process.orders.send(Order::Stop(stop));
        }
        self.note(id, "is ended, to be started again".to_owned());
    }

    /// The apps to which nobody new is to be let in.
    fn unhealthy(&self) -> BTreeSet<PartName> {
        let open = |part: &super::Part| {
            let watched = part.health.as_ref();
            part.state == PartState::Running
                && !part.ends_unhealthy
                && watched.is_some_and(|health| health.watch.state == State::Healthy)
        };
        let apps = self.parts.iter().filter(|part| {
            let app = matches!(part.id, PartId::App(_));
            let app = app && self.turn(part.id).serves();
            app && self.ground.app_plan(part.id).health.is_some()
        });
        apps.filter(|part| !open(part))
            .map(|part| self.ground.app_plan(part.id).name.clone())
            .collect()
    }

    /// Closes and opens ports as the apps' health has it, if that is not so already and nothing is in its way.
    pub(super) fn enforce(&mut self) {
        let sidecar = self.parts.iter().find(|part| part.id == PartId::Sidecar);
        let starts = sidecar.is_some_and(|sidecar| sidecar.launching);
        if self.applying || self.gated || starts || self.entries.changing || self.replacing.held {
            return;
        }
        let (wanted, closed) = (self.unhealthy(), self.ground.closed());
        let whole = std::mem::take(&mut self.entries.whole);
        if wanted == closed && !whole {
            return;
        }
        self.entries.changing = true;
        let (ground, events) = (Arc::clone(&self.ground), self.sender.clone());
        self.launching.spawn(async move {
            let changed = ground.close_only(wanted.clone(), whole).await;
            let closes = wanted.difference(&closed).cloned().collect();
            let opens = closed.difference(&wanted).cloned().collect();
            let _ = events.send(Event::Entries(Box::new(EntriesChange {
                closes,
                opens,
                changed,
            })));
        });
    }

    /// Loads the rules of a sidecar that was started again once more, if what they are depends on health: that may have
    /// changed while it loaded them.
    pub(super) fn sidecar_has_started(&mut self) {
        let mut apps = self.ground.plan.apps.iter();
        self.entries.whole |= apps.any(|app| app.health.is_some());
        // Or on a replacement: it may have loaded what was in force before.
        self.entries.whole |= self.replacing.is_under_way();
        self.enforce();
    }

    /// Ports were closed or opened, or could not be.
    pub(super) fn entries_changed(&mut self, change: EntriesChange) {
        self.entries.changing = false;
        if let Some(held) = self.replacing.holds.take() {
            self.replacing.held = held.send(()).is_ok();
        }
        if let Some(Waiting {
            apply,
            sockets,
            channel,
        }) = self.entries.waiting.take()
        {
            self.apply(apply, sockets, channel);
        }
        let failed = match change.changed {
            Ok(()) => None,
            Err(e) => {
                // The next check asks for it again.
                self.entries.whole = true;
                Some(e.to_string())
            }
        };
        for (apps, done, not) in [
            (
                &change.closes,
                "its ports are taken away",
                "its ports could not all be taken away",
            ),
            (
                &change.opens,
                "its ports are published",
                "its ports could not be published",
            ),
        ] {
            for app in apps {
                let publishes = self
                    .ground
                    .plan
                    .app(app)
                    .is_some_and(|app| !app.publish.is_empty());
                let text = match &failed {
                    None => done.to_owned(),
                    Some(why) => format!("{not}: {why}"),
                };
                if publishes {
                    self.journal
                        .write(super::journal::event_line(app.to_string(), text));
                }
            }
        }
        if failed.is_none() {
            if !change.opens.is_empty() {
                self.listen_again();
            }
            self.enforce();
        }
    }

    /// A live change is over, in which nothing was closed or opened for health.
    pub(super) fn change_is_over(&mut self) {
        // It may have made sockets listen that were to be shut down.
        self.entries.whole |= !self.ground.closed().is_empty();
        self.enforce();
    }

    /// Tells the relay that sockets which were shut down may listen again.
    pub(super) fn listen_again(&self) {
        let relay = self.parts.iter().find(|part| part.id == PartId::Relay);
        if let Some(process) = relay.and_then(|relay| relay.process.as_ref()) {
            let _ = process.orders.send(Order::ListenAgain);
        }
    }

    /// After a live change: checks are made as the new plan says, of what runs on from where it was.
    pub(super) fn check_as_planned(&mut self, before: &Ground) {
        let ids: Vec<PartId> = self.parts.iter().map(|part| part.id).collect();
        for id in ids {
            let PartId::App(number) = id else { continue };
            let health = |ground: &Ground| {
                let place = ground.place(number)?;
                ground.plan.apps[place].health.clone()
            };
            if self.ground.place(number).is_none() || health(before) == health(&self.ground) {
                continue;
            }
            let known = self
                .part(id)
                .health
                .as_ref()
                .map(|known| known.watch.clone());
            // One that nobody has looked at until now was let in to: until it is known better, it is well.
            let known = known.unwrap_or_else(|| {
                let mut watch = Watch::begin(Instant::now());
                watch.state = State::Healthy;
                watch
            });
            self.watch_health(id, Some(known));
        }
    }

    pub(super) fn health_status(part: &super::Part) -> Option<HealthStatus> {
        let watch = &part.health.as_ref()?.watch;
        Some(HealthStatus {
            state: watch.state,
            since: watch.since,
            failures: watch.failures,
            checked: watch.last.as_ref().map(|(time, _)| *time),
            output: watch.last.as_ref().map(|(_, last)| last.said.clone()),
        })
    }
}

/// What was done to ports.
pub(super) struct EntriesChange {
    closes: Vec<PartName>,
    opens: Vec<PartName>,
    changed: Result<(), StackError>,
}

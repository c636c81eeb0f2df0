//! The apps of a stack are started in their order.
//!
//! # Theory of operation
//!
//! All apps' processes are there already, each before its command: what is in order is the commands. One future for each
//! app waits until those that it comes after are as far as it wants, lets its command start, and says how far it is itself;
//! apps that wait for nothing run at the same time. The first one that fails ends all.
//!
//! An app that others come after is watched until they are started: should it end meanwhile, they would be started for
//! nothing. What happens to it later is the supervisor's, as is its restart: the order is one of a start, and an app that
//! starts again takes nobody with it.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use tokio::sync::watch;

use super::{Begun, Done, Ground, Launched, PartNow, Progress, StackError, Wait, done, patience};
use crate::config::Until;
use crate::part::container::{Container, ContainerError, Event};
use crate::plan::AppPlan;
use crate::protocol::{Exit, ToStage};

/// How far an app is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Far {
    /// Its command does not run yet.
    Waits,
    /// Its command runs.
    Begun,
    /// It listens.
    Started,
    /// Its health check has passed.
    Healthy,
    /// A job: it has ended with 0.
    Done,
}

impl Far {
    /// What an entry of `after` waits for.
    fn of(until: Until) -> Self {
        match until {
            Until::Started => Self::Started,
            Until::Healthy => Self::Healthy,
            Until::Done => Self::Done,
        }
    }
}

/// What the futures of all apps share.
struct All<'a> {
    ground: &'a Ground,
    progress: RefCell<&'a mut dyn FnMut(Progress<'_>)>,
    /// How far each is.
    far: Vec<watch::Sender<Far>>,
    /// For each, the places of those that come after it.
    before: Vec<Vec<usize>>,
    /// How many commands run.
    begun: Cell<usize>,
}

impl Ground {
    /// Starts the apps' commands, `apps` being their processes in the plan's order, and waits until each listens, or has
    /// ended if it is a job.
    pub(super) async fn start_apps(
        &self,
        apps: Vec<Launched>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Vec<Begun>, StackError> {
        let mut before = vec![vec![]; apps.len()];
        for (app, others) in self.plan.after().into_iter().enumerate() {
            for other in others {
                before[other].push(app);
            }
        }
        let all = All {
            ground: self,
            progress: RefCell::new(progress),
            far: apps
                .iter()
                .map(|_| watch::Sender::new(Far::Waits))
                .collect(),
            before,
            begun: Cell::new(0),
        };
        let apps = apps.into_iter().enumerate();
        try_join_all(apps.map(|(index, app)| all.start(index, app))).await
    }
}

impl All<'_> {
    async fn start(&self, index: usize, mut launched: Launched) -> Result<Begun, StackError> {
        let app = &self.ground.plan.apps[index];
        for (other, after) in self.ground.plan.after()[index].iter().zip(&app.after) {
            self.is(*other, Far::of(after.until)).await;
        }
        launched.proceed().await?;
        self.part(index, PartNow::Begun(launched.container.command()));
        self.has_begun(index)?;
        if app.job {
            let waits = &mut |what: &str| self.waits(index, what);
            let done = self.ground.run_job(app, launched, waits).await?;
            self.part(index, PartNow::Done);
            self.is_now(index, Far::Done, "is done");
            return Ok(Begun::Done(done));
        }
        let container = &mut launched.container;
        let listens = self
            .ground
            .wait_until_listening(index, container, |what| self.waits(index, what));
        listens.await?;
        let how = match self.ground.plan.has_to_listen(app).is_empty() {
            true => "runs",
            false => "listens",
        };
        self.is_now(index, Far::Started, how);
        if let Some(health) = &app.health {
            let waits = |what: &str| self.waits(index, what);
            let watch = self.ground.until_healthy(app, health, container, waits);
            launched.health = Some(watch.await?);
            self.is_now(index, Far::Healthy, "is healthy");
        }
        self.part(index, PartNow::Runs);
        let container = &mut launched.container;
        self.stays(index, container).await?;
        Ok(Begun::Runs(launched))
    }

    /// Waits until an app is as far as that.
    async fn is(&self, index: usize, far: Far) {
        let mut seen = self.far[index].subscribe();
        // Its sender is in this value.
        let _ = seen.wait_for(|now| *now >= far).await;
    }

    fn is_now(&self, index: usize, far: Far, how: &str) {
        self.far[index].send_replace(far);
        if self.ground.plan.has_order() {
            let name = &self.ground.plan.apps[index].name;
            self.say(Progress::App(&format!("{name} {how}")));
        }
    }

    fn has_begun(&self, index: usize) -> Result<(), StackError> {
        let app = &self.ground.plan.apps[index];
        let after: Vec<String> = app.after.iter().map(ToString::to_string).collect();
        // A job that somebody comes after as if it were a server is started when it runs.
        let far = if app.job { Far::Started } else { Far::Begun };
        match after.as_slice() {
            [] => self.is_now(index, far, "is started"),
            after => self.is_now(
                index,
                far,
                &format!("is started, after {}", after.join(", ")),
            ),
        }
        self.begun.set(self.begun.get() + 1);
        if self.begun.get() == self.far.len() {
            done("commands", &mut **self.progress.borrow_mut())?;
        }
        Ok(())
    }

    fn part(&self, index: usize, now: PartNow<'_>) {
        let name = self.ground.plan.apps[index].name.as_str();
        self.say(Progress::Part(name, now));
    }

    fn waits(&self, index: usize, what: &str) {
        self.part(index, PartNow::Waits(what));
        self.say(Progress::Waits(what));
    }

    fn say(&self, progress: Progress<'_>) {
        (self.progress.borrow_mut())(progress);
    }

    /// Watches an app until all that come after it have begun.
    async fn stays(&self, index: usize, container: &mut Container) -> Result<(), StackError> {
        let later = &self.before[index];
        let begun = join_all(later.iter().map(|later| self.is(*later, Far::Begun)));
        let exit = tokio::select! {
            biased;
            _ = begun => return Ok(()),
            exit = ended(container) => exit?,
        };
        let waits = later
            .iter()
            .find(|later| *self.far[**later].borrow() == Far::Waits);
        let name = |index: usize| self.ground.plan.apps[index].name.to_string();
        Err(StackError::EndedBefore {
            app: name(index),
            exit,
            before: waits.map_or_else(String::new, |later| name(*later)),
        })
    }
}

/// Waits for something while an app runs.
pub(super) async fn unless_ended<T>(
    app: &AppPlan,
    container: &mut Container,
    work: impl Future<Output = T>,
) -> Result<T, StackError> {
    tokio::select! {
        done = work => Ok(done),
        exit = ended(container) => Err(StackError::EndedUnhealthy {
            app: app.name.to_string(),
            exit: exit?,
        }),
    }
}

/// Waits for the end of an app's command.
pub(super) async fn ended(container: &mut Container) -> Result<Exit, ContainerError> {
    loop {
        match container.next().await? {
            Event::Started { .. } | Event::HandedOver => {}
            Event::Exited(exit) => return Ok(exit),
            Event::Gone => return Ok(Exit::Signal(libc::SIGKILL)),
        }
    }
}

impl Ground {
    /// Waits until a job has ended, and what it has left running too.
    async fn run_job(
        &self,
        app: &AppPlan,
        mut launched: Launched,
        waits: &mut dyn FnMut(&str),
    ) -> Result<Done, StackError> {
        let container = &mut launched.container;
        let begun = tokio::time::Instant::now();
        let mut wait = Wait::begin();
        let exit = loop {
            tokio::select! {
                exit = ended(container) => break exit?,
                () = tokio::time::sleep_until(begun + patience(app)) => {
                    return Err(StackError::JobGoesOn {
                        app: app.name.to_string(),
                        seconds: app.start_timeout.as_secs(),
                    });
                }
                () = tokio::time::sleep_until(wait.next()) => {
                    if let Some(since) = wait.due() {
                        waits(&goes_on(app, since));
                    }
                }
            }
        };
        if exit != Exit::Status(0) {
            let app = app.name.to_string();
            return Err(StackError::JobFailed { app, exit });
        }
        // What it has left running is asked to end as what any command has left.
        let end = async {
            let signal = ToStage::Signal(app.stop.signal.number());
            if container.send(&signal, &[]).await.is_ok() {
                let _ = ended(container).await;
            }
        };
        let _ = tokio::time::timeout(app.stop.timeout, end).await;
        launched.container.kill().await;
        Ok(Done {
            privileges: launched.privileges,
            notes: launched.notes,
        })
    }
}

/// What to tell who waits for a job.
pub(super) fn goes_on(app: &AppPlan, since: Duration) -> String {
    let (name, since, most) = (&app.name, since.as_secs(), app.start_timeout.as_secs());
    format!("waiting for {name} to end, for {since} s of at most {most}")
}

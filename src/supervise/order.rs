//! Jobs: apps that run to their end while the stack lives on; and what follows from the order of a stack once it runs.
#![forbid(unsafe_code)]

use jiff::Timestamp;

use super::{Event, Order, Outcome, PartState, Reply, Supervisor, refused, tell};
use crate::protocol::Exit;
use crate::stack::{Done, PartId};

impl Supervisor {
    /// Takes over a job that has ended while the stack was brought up.
    pub(super) fn is_done(&mut self, id: PartId, done: Done) {
        let part = self.part(id);
        part.state = PartState::Ended;
        part.since = Timestamp::now();
        part.last_exit = Some(Exit::Status(0));
        part.privileges = Some(done.privileges);
        part.notes = done.notes;
    }

    pub(super) fn is_job(&self, id: PartId) -> bool {
        matches!(id, PartId::App(_)) && self.ground.app_plan(id).job
    }

    /// A job runs: it has to end within its time.
    pub(super) fn wait_for_job(&mut self, id: PartId) {
        let (time, sender) = (self.ground.app_plan(id).start_timeout, self.sender.clone());
        let launch = self.part(id).launch;
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            let _ = sender.send(Event::Overdue { id, launch });
        });
    }

    /// A job has not ended in its time.
    pub(super) fn overdue(&mut self, id: PartId) {
        let (stop, time) = (self.stop(id), self.ground.app_plan(id).start_timeout);
        let text = format!(
            "is a job and has not ended within {}: it is ended",
            crate::text::duration(time)
        );
        self.note(id, text);
        if let Some(process) = &self.part(id).process {
            let _ = process.orders.send(Order::Stop(stop));
        }
    }

    /// A job has ended for good: who waits for that is told how.
    pub(super) fn job_ended(&mut self, id: PartId, exit: Exit) {
        if !self.is_job(id) {
            return;
        }
        let name = self.ground.name(id).to_owned();
        for client in std::mem::take(&mut self.part(id).waiting) {
            let reply = match exit {
                Exit::Status(0) => Reply::Done,
                exit => refused(format!("{name} ended with {exit}"), None),
            };
            tell(&client, reply);
        }
    }

    /// The end, when every app has ended for good that is no job, and where there are only jobs, every job; while a live
    /// change is under way, that decides.
    pub(super) fn all_ended(&self) -> Option<Outcome> {
        let only_jobs = self.ground.plan.apps.iter().all(|app| app.job);
        let mut last = None;
        for app in &self.parts {
            if !matches!(app.id, PartId::App(_)) || self.is_job(app.id) != only_jobs {
                continue;
            }
            if app.state != PartState::Ended {
                return None;
            }
            last = app.last_exit;
        }
        last.filter(|_| !self.applying).map(Outcome::AppEnded)
    }

    /// What is started again when no part is named: every app, but not what was done once.
    pub(super) fn all_to_restart(&self) -> Vec<PartId> {
        let apps: Vec<PartId> = self.ground.apps().collect();
        let servers: Vec<PartId> = { apps.iter().copied() }
            .filter(|id| !self.is_job(*id))
            .collect();
        if servers.is_empty() { apps } else { servers }
    }
}

//! A gate: the stack is attacked while its published ports are closed, and they open when it has stood that.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::process::Order;
use super::{Event, Supervisor};
use crate::control::Request;
use crate::part::container::Event as ContainerEvent;
use crate::protocol::{Channel, ToStage};
use crate::stack::{PartId, StackError};

/// Who audits the stack before its ports open: told `()`, it answers with a [`Judgement`].
pub struct Gate {
    /// The conversation with it.
    pub auditor: OwnedFd,
}

/// What an audit came to.
#[derive(Debug, Serialize, Deserialize)]
pub struct Judgement {
    /// Whether everything that is claimed was proved.
    pub passed: bool,
    /// The report, for people.
    pub findings: String,
}

impl Supervisor {
    /// Has the stack attacked while its ports are closed, and opens them when it has stood that. What else is asked
    /// meanwhile waits, as during the start.
    pub(super) async fn pass(
        &mut self,
        auditor: &mut Channel,
        early: &mut VecDeque<Event>,
    ) -> Result<(), StackError> {
        let failed = |findings: String| StackError::Gate { findings };
        let lost = |e: io::Error| failed(format!("the audit: {e}"));
        auditor.send(&(), &[]).await.map_err(lost)?;
        let judgement = loop {
            tokio::select! {
                biased;
                judged = auditor.receive::<Judgement>() => match judged.map_err(lost)? {
                    Some((judgement, _)) => break judgement,
                    None => return Err(failed("the audit ended without a word".to_owned())),
                },
                Some(event) = self.events.recv() => match event {
                    Event::Signal(signal) => return Err(StackError::Interrupted { by: Some(signal) }),
                    Event::Asked(Request::Down | Request::Kill, _, client) => {
                        self.waiting_for_the_end.push(client);
                        return Err(StackError::Interrupted { by: None });
                    }
                    Event::Asked(
                        request @ (Request::Brief
                        | Request::Look { .. }
                        | Request::Logs { .. }
                        | Request::Exec { .. }
                        | Request::Inspect
                        | Request::Enter { .. }
                        | Request::Probe { .. }),
                        fds,
                        client,
                    ) => self.answer(request, fds, client),
                    Event::ReadOn(reader, follow, client) => self.read_on(reader, follow, client),
                    Event::Asked(..)
                    | Event::Apply(..)
                    | Event::Checked { .. }
                    | Event::Entries(_)
                    | Event::Replacing(_)
                    | Event::Applying(_) => {
                        early.push_back(event);
                    }
                    Event::Part {
                        what: Ok(ContainerEvent::Started { .. }),
                        ..
                    } => {}
                    // One that starts again is not the one that was attacked.
                    Event::Part { id, .. }
                    | Event::Killed { id, .. }
                    | Event::Lingers { id }
                    | Event::Again { id, .. }
                    | Event::Overdue { id, .. }
                    | Event::Launched { id, .. } => {
                        let name = self.ground.name(id);
                        return Err(failed(format!("{name} ended while it was attacked")));
                    }
                },
                Some(line) = self.lines.recv() => self.journal.hear(line),
            }
        };
        if !judgement.passed {
            return Err(failed(judgement.findings));
        }
        self.host_rules = self.ground.publish(&self.host_table)?;
        let relay = self.parts.iter().find(|part| part.id == PartId::Relay);
        if let Some(process) = relay.and_then(|relay| relay.process.as_ref()) {
            // A relay that has ended meanwhile is started again, without a gate.
            let _ = process.orders.send(Order::Start(ToStage::Proceed, vec![]));
        }
        self.gated = false;
        self.enforce();
        Ok(())
    }
}

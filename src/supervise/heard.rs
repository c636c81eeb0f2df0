//! What parts say while they run: what apps write, and what the sidecar and the relays tell of the traffic.
//!
//! # Theory of operation
//!
//! A task for each pipe or socket ([`pump`], [`hear_of_traffic`]) reads no further than there is room for, and within a
//! budget: a part can write faster than anybody reads, and may have been broken into. What makes no sense ends the
//! conversation ([`Traffic::Nonsense`]).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use jiff::Timestamp;
use tokio::sync::mpsc;

use super::Supervisor;
use crate::config::TrafficLog;
use crate::log::budget::{Bucket, Budget, LeftOut};
use crate::log::streams::{self, Attached, Pipe, Said, Streams};
use crate::log::{LineSplitter, LogLine, Piece, Stream};
use crate::stack::PartId;
use crate::traffic;

/// How many messages of the sidecar's are read each second, and…
const TRAFFIC_MESSAGES: u64 = 1_000;
/// …how many bytes: of about 40,000 connections. The rest waits, and the sidecar counts what it can't say meanwhile.
const TRAFFIC_BYTES_A_SECOND: u64 = 4 << 20;

impl Supervisor {
    /// The sidecar or a relay has said something of the traffic.
    pub(super) fn took(&mut self, traffic: Traffic) {
        match traffic {
            Traffic::Told { totals, records } => {
                self.journal.write_traffic(&records);
                self.sums.set(totals);
            }
            Traffic::Refused {
                relay,
                refusals,
                apps,
                records,
            } => {
                if self.ground.plan.log > TrafficLog::Off {
                    self.journal.write_traffic(&records);
                }
                self.refused.set(relay, refusals, apps);
            }
            Traffic::Nonsense(id) => {
                let name = self.ground.name(id);
                let text = format!(
                    "told of the traffic what makes no sense: it is not listened to any more, until the {name} is started again"
                );
                self.note(id, text);
            }
        }
    }
}

/// What the sidecar or a relay has said at once.
pub(super) enum Traffic {
    /// A message of the sidecar's.
    Told {
        totals: traffic::Totals,
        /// As the sidecar wrote them: see [`traffic::wire::records`].
        records: Vec<u8>,
    },
    /// A message of a relay's.
    Refused {
        /// Which.
        relay: usize,
        /// What it has refused since it was started.
        refusals: traffic::Refusals,
        /// The same of each app's clients, in the order of the plan that it was started by.
        apps: Vec<u64>,
        /// As of the sidecar.
        records: Vec<u8>,
    },
    /// What that part never says. It is not listened to any more: it may have been broken into.
    Nonsense(PartId),
}

/// What relays have refused.
#[derive(Default)]
pub(super) struct Refused {
    /// Those that are gone.
    before: traffic::RefusedByRelay,
    /// Those that may say more.
    now: Vec<Refusing>,
    relays: usize,
}

/// A relay, and what it has told last.
struct Refusing {
    number: usize,
    /// The apps that it knows.
    names: Vec<String>,
    all: traffic::Refusals,
    apps: Vec<u64>,
}

impl Refusing {
    /// What it and others have refused. It is a part's words: no number of it is too large.
    pub(super) fn and(&self, others: traffic::RefusedByRelay) -> traffic::RefusedByRelay {
        let traffic::RefusedByRelay { all, mut apps } = others;
        for (name, count) in self.names.iter().zip(&self.apps) {
            if *count > 0 {
                let sum = apps.entry(name.clone()).or_default();
                *sum = sum.saturating_add(*count);
            }
        }
        traffic::RefusedByRelay {
            all: all.and(self.all),
            apps,
        }
    }
}

impl Refused {
    /// No more relays than that are told apart: one, and those that carry their last connections.
    const MOST: usize = 32;

    /// Another relay, which knows the apps of these names in this order; its number.
    pub(super) fn begin(&mut self, names: Vec<String>) -> usize {
        if self.now.len() >= Self::MOST {
            let oldest = self.now.remove(0);
            self.before = oldest.and(std::mem::take(&mut self.before));
        }
        self.relays += 1;
        self.now.push(Refusing {
            number: self.relays,
            names,
            all: traffic::Refusals::default(),
            apps: vec![],
        });
        self.relays
    }

    /// What that one has told last.
    pub(super) fn set(&mut self, relay: usize, all: traffic::Refusals, apps: Vec<u64>) {
        let mut now = self.now.iter_mut();
        if let Some(told) = now.find(|told| told.number == relay) {
            (told.all, told.apps) = (all, apps);
        }
    }

    pub(super) fn sum(&self) -> traffic::RefusedByRelay {
        let now = self.now.iter();
        now.fold(self.before.clone(), |sum, told| told.and(sum))
    }
}

/// Takes what a part says of the traffic, a message at a time and no further than there is room for: then the part counts
/// what it can't say. What can't be `read` makes no sense, and ends the conversation.
pub(super) fn hear_of_traffic(
    heard: mpsc::Sender<Traffic>,
    socket: OwnedFd,
    id: PartId,
    read: impl Fn(&[u8]) -> Option<Traffic> + Send + 'static,
) {
    let socket = rustix::io::ioctl_fionbio(&socket, true)
        .map_err(io::Error::from)
        .and_then(|()| crate::sys::watch::owned(socket));
    let Ok(socket) = socket else {
        return;
    };
    tokio::spawn(async move {
        let mut buffer = vec![0; traffic::wire::LARGEST];
        let now = Instant::now();
        let mut messages = Bucket::new(TRAFFIC_MESSAGES, TRAFFIC_MESSAGES, now);
        let mut bytes = Bucket::new(TRAFFIC_BYTES_A_SECOND, TRAFFIC_BYTES_A_SECOND, now);
        loop {
            // Meanwhile the sidecar counts what it can't say.
            let spent = messages.until_one(Instant::now());
            let spent = spent.max(bytes.until_one(Instant::now()));
            if !spent.is_zero() {
                tokio::time::sleep(spent).await;
            }
            let receive = |socket: &OwnedFd| {
                let flags = rustix::net::RecvFlags::empty();
                let (got, _) = rustix::net::recv(socket, &mut buffer[..], flags)?;
                Ok(got)
            };
            let got = match socket
                .async_io(tokio::io::Interest::READABLE, receive)
                .await
            {
                Ok(got @ 1..) => got,
                _ => return,
            };
            messages.take(1, Instant::now());
            bytes.take(got as u64, Instant::now());
            let told = read(&buffer[..got]).unwrap_or(Traffic::Nonsense(id));
            let over = matches!(told, Traffic::Nonsense(_));
            if heard.send(told).await.is_err() || over {
                return;
            }
        }
    });
}

/// The budgets of those who write to the log, by the part's name: a part that is started again goes on with its own.
pub(super) type Budgets = Arc<Mutex<BTreeMap<String, Arc<Mutex<Budget>>>>>;

/// Makes an app's streams, and hears what it writes: as lines, and as bytes for the user if there is one.
pub(super) fn hear(
    lines: &mpsc::Sender<LogLine>,
    budgets: &Budgets,
    part: &str,
    user: Option<&Arc<Attached>>,
    pipes: Vec<Pipe>,
) -> io::Result<Streams> {
    let (streams, said) = match user {
        Some(user) => user.streams(pipes)?,
        None => streams::alone(pipes)?,
    };
    let mut budgets = budgets.lock().unwrap_or_else(PoisonError::into_inner);
    let budget = budgets
        .entry(part.to_owned())
        .or_insert_with(|| Arc::new(Mutex::new(Budget::new(Instant::now()))));
    for said in said {
        tokio::spawn(pump(
            said,
            lines.clone(),
            Arc::clone(budget),
            part.to_owned(),
        ));
    }
    Ok(streams)
}

/// Turns what an app writes into lines, as far as its budget allows. Reads no further than there is room for what it has
/// read, and slowly once the budget is exceeded: unless a user is handed every byte, who then decides.
async fn pump(said: Said, lines: mpsc::Sender<LogLine>, budget: Arc<Mutex<Budget>>, part: String) {
    let budget = || budget.lock().unwrap_or_else(PoisonError::into_inner);
    let mut splitter = LineSplitter::new();
    let mut chunk = vec![0; 16 << 10];
    let mut more = true;
    while more {
        let silent = budget().says_within(Instant::now());
        let mut pieces = vec![];
        // An error is an end as well: nothing more will come of this pipe.
        let got = tokio::select! {
            biased;
            got = said.read(&mut chunk) => Some(got.unwrap_or(0)),
            () = tokio::time::sleep(silent.unwrap_or_default()), if silent.is_some() => None,
        };
        match got {
            Some(0) => splitter.finish(|piece| pieces.push(piece)),
            Some(got) => {
                let within = budget().allows(&chunk[..got], Instant::now());
                splitter.push(&chunk[..within], |piece| pieces.push(piece));
                let bytes = (got - within) as u64;
                let lines = splitter.leave_out(&chunk[within..got]);
                budget().leave_out(LeftOut { lines, bytes });
            }
            None => {}
        }
        let time = Timestamp::now();
        let line = |stream, piece: Piece| LogLine {
            time,
            part: part.clone(),
            stream,
            text: piece.text,
            continues: piece.continues,
            traffic: None,
        };
        for piece in pieces {
            if lines.send(line(said.stream, piece)).await.is_err() {
                return;
            }
        }
        let left_out = budget().say(got == Some(0), Instant::now());
        if let Some(text) = left_out {
            let continues = false;
            let piece = Piece { text, continues };
            if lines.send(line(Stream::Event, piece)).await.is_err() {
                return;
            }
        }
        if let Some(got) = got {
            more = got > 0 && said.pass_on(&chunk[..got]).await.is_ok();
            let pause = budget().pause(Instant::now());
            let pause = pause.filter(|_| more && !said.has_user());
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
        }
    }
}

//! Clients that are refused: each is counted, and told of to the supervisor for its traffic log, as far as there are lines
//! for it. A flood of them costs a look into a table each.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant, SystemTime};

use rustix::net::SendFlags;
use tokio::sync::Notify;

use crate::config::Protocol;
use crate::traffic::refused::Lines;
use crate::traffic::{Event, Name, Packet, Record, Refusals, Why, wire};

/// What is refused together is told together.
const TOGETHER: Duration = Duration::from_millis(20);
/// How often it is looked for what had no line.
const TICK: Duration = Duration::from_secs(1);
/// How many records wait for the supervisor; more have no line.
const MOST_RECORDS: usize = 1 << 10;

/// Counts, and tells.
pub(super) struct Refused {
    counts: Cell<Refusals>,
    /// Of each app's clients, as far as it is among the first [`wire::MOST_APPS`].
    apps: RefCell<Vec<u64>>,
    lines: RefCell<Lines>,
    records: RefCell<VecDeque<Record>>,
    begun: Instant,
    more: Notify,
}

impl Refused {
    pub(super) fn new() -> Self {
        Self {
            counts: Cell::default(),
            apps: RefCell::default(),
            lines: RefCell::default(),
            records: RefCell::default(),
            begun: Instant::now(),
            more: Notify::new(),
        }
    }

    pub(super) fn counts(&self) -> Refusals {
        self.counts.get()
    }

    /// A client of an app's was refused; `ours` says which address it has written to, if somebody wants to know.
    pub(super) fn note(
        &self,
        app: usize,
        why: Why,
        protocol: Protocol,
        client: SocketAddr,
        ours: impl FnOnce() -> Option<SocketAddr>,
    ) {
        let mut counts = self.counts.get();
        match why {
            Why::NotAllowed => counts.not_allowed += 1,
            Why::Rate => counts.rate += 1,
            Why::Share => counts.share += 1,
        }
        self.counts.set(counts);
        if app < wire::MOST_APPS {
            let mut apps = self.apps.borrow_mut();
            if apps.len() <= app {
                apps.resize(app + 1, 0);
            }
            apps[app] += 1;
        }
        self.more.notify_one();
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        let mut records = self.records.borrow_mut();
        if records.len() >= MOST_RECORDS || !self.lines.borrow_mut().take(client.ip(), self.now()) {
            return;
        }
        let Some(ours) = ours() else { return };
        let rule = format!("{}/{}", Why::CHAIN, why.rule());
        records.push_back(record(Event::Packet {
            rule: Name::new(rule.as_bytes()),
            link: Name::new(b""),
            accepted: false,
            packet: Packet {
                source: client.ip(),
                target: ours.ip().to_canonical(),
                protocol: match protocol {
                    Protocol::Tcp => 6,
                    Protocol::Udp => 17,
                },
                length: 0,
                ports: Some((client.port(), ours.port())),
                tcp: None,
                icmp: None,
            },
        }));
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Tells the supervisor at `socket`, for ever.
    pub(super) async fn tell(&self, socket: &OwnedFd) {
        let mut told = Refusals::default();
        loop {
            let owes = self.lines.borrow().owes() || told != self.counts.get();
            tokio::select! {
                () = self.more.notified() => tokio::time::sleep(TOGETHER).await,
                () = tokio::time::sleep(TICK), if owes => {}
            }
            self.tell_now(socket, &mut told);
        }
    }

    /// Tells what there is to tell, as far as there is room.
    pub(super) fn tell_now(&self, socket: &OwnedFd, told: &mut Refusals) {
        let mut records = self.records.borrow_mut();
        for (source, packets) in self.lines.borrow_mut().left_out(self.now()) {
            records.push_back(record(Event::Suppressed { source, packets }));
        }
        let counts = self.counts.get();
        let mut message = vec![];
        while !records.is_empty() || *told != counts {
            message.clear();
            wire::put_refusals(&mut message, &counts, &self.apps.borrow());
            let mut count = 0;
            for record in &*records {
                if message.len() + wire::RECORD > wire::LARGEST {
                    break;
                }
                wire::put_record(&mut message, record);
                count += 1;
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            if rustix::net::send(socket, &message, flags).is_err() {
                // There is no room, or nobody there any more, and then the end comes next.
                return;
            }
            records.drain(..count);
            *told = counts;
        }
    }
}

fn record(event: Event) -> Record {
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Record {
        time: wall.map_or(0, |wall| wall.as_nanos() as i64),
        event,
    }
}

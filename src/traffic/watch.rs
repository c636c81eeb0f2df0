//! The sidecar's work: one thread, one loop over its sockets, which are opened once and need no privilege afterwards.
//!
//! It calls poll(2), recvfrom(2), sendto(2) and ioctl(2) for the names of links, and nothing else: [`crate::confine::seccomp`]
//! has the list. It never waits for the supervisor: what can't be sent is kept, up to a bound, and then counted.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::SendFlags;

use super::kernel::{Group, HEAD, Logged, Reader};
use super::track::{Now, Tracker};
use super::{LostBy, Name, Settings, Totals, wire};
use crate::firewall::logging;

/// How often conntrack is looked at while connections are open, and how soon it is told what was left out.
const TICK: Duration = Duration::from_secs(1);
/// How often one socket is read before the others have their turn.
const TURN: usize = 64;
/// How many links have their names kept; a sidecar has one for each app, and two.
const MOST_LINKS: usize = 1024;

/// The sockets.
pub struct Watch {
    connections: Reader,
    refused: Reader,
    accepted: Option<Reader>,
    /// What rules of the user's log.
    own: Reader,
    forgotten: Reader,
    links: Links,
    tracker: Tracker,
    /// Where records go.
    told: OwnedFd,
    begun: Instant,
    /// What was said of what was lost, in the order of [`Watch::losses`], and when.
    said: [u64; 3],
    said_at: u64,
    /// The totals that were sent last, and when.
    sent: Totals,
    sent_at: u64,
    /// How many refused packets were lost already counted.
    refused_lost: u64,
    /// A message.
    buffer: Vec<u8>,
}

/// The names of links by number.
struct Links(HashMap<u32, Name>);

impl Links {
    fn name(&mut self, socket: impl AsFd, number: u32) -> Name {
        if number == 0 {
            return Name::new(b"");
        }
        if let Some(name) = self.0.get(&number) {
            return *name;
        }
        let name = rustix::net::netdevice::index_to_name(socket, number).unwrap_or_default();
        let name = Name::new(name.as_bytes());
        if self.0.len() < MOST_LINKS {
            self.0.insert(number, name);
        }
        name
    }
}

impl Watch {
    /// Opens and configures everything.
    ///
    /// # Errors
    /// What the kernel says: EPERM without NET_ADMIN over this network namespace.
    pub fn open(settings: &Settings, told: OwnedFd) -> io::Result<Self> {
        let group = |number| Group {
            number,
            snaplen: HEAD,
            patience: 10,
        };
        let connections = Reader::nflog(&group(logging::CONNECTIONS))?;
        let forgotten = Reader::conntrack()?;
        let mut tracker = Tracker::new(settings);
        if settings.again {
            // After those sockets: what ends meanwhile is heard of.
            Reader::existing(|found| tracker.existing(&found))?;
        }
        Ok(Self {
            connections,
            refused: Reader::nflog(&group(logging::REFUSED))?,
            accepted: settings
                .packets
                .then(|| Reader::nflog(&group(logging::ACCEPTED)))
                .transpose()?,
            own: Reader::nflog(&group(logging::OWN))?,
            forgotten,
            links: Links(HashMap::new()),
            tracker,
            told,
            begun: Instant::now(),
            said: [0; 3],
            said_at: 0,
            sent: Totals::default(),
            sent_at: 0,
            refused_lost: 0,
            buffer: Vec::with_capacity(wire::LARGEST),
        })
    }

    /// Reads and tells until there is something to hear from the supervisor.
    ///
    /// # Errors
    /// What poll(2) or recvfrom(2) says.
    pub fn run(&mut self, supervisor: &OwnedFd) -> io::Result<()> {
        loop {
            let tick = self
                .owes()
                .then(|| Timespec::try_from(TICK).expect("a second is a time"));
            let to_send = !self.tracker.records.is_empty();
            let ready = {
                let mut fds = vec![
                    PollFd::new(supervisor, PollFlags::IN),
                    PollFd::from_borrowed_fd(self.connections.fd(), PollFlags::IN),
                    PollFd::from_borrowed_fd(self.refused.fd(), PollFlags::IN),
                    PollFd::from_borrowed_fd(self.own.fd(), PollFlags::IN),
                ];
                if let Some(accepted) = &self.accepted {
                    fds.push(PollFd::from_borrowed_fd(accepted.fd(), PollFlags::IN));
                }
                if tick.is_none() {
                    // The end of one that was never answered, so that nothing is known of it.
                    fds.push(PollFd::from_borrowed_fd(self.forgotten.fd(), PollFlags::IN));
                }
                if to_send {
                    fds.push(PollFd::new(&self.told, PollFlags::OUT));
                }
                match rustix::event::poll(&mut fds, tick.as_ref()) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(e) => return Err(e.into()),
                }
                !fds[0].revents().is_empty()
            };
            if ready {
                return Ok(());
            }
            self.read()?;
            self.send();
        }
    }

    fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Now {
            wall: wall.map_or(0, |wall| wall.as_nanos() as i64),
            ticks: self.begun.elapsed().as_nanos() as u64,
        }
    }

    fn read(&mut self) -> io::Result<()> {
        let now = self.now();
        let tracker = &mut self.tracker;
        for _ in 0..TURN {
            if !self
                .connections
                .packets(|logged| tracker.edge(now, &logged))?
            {
                break;
            }
        }
        let links = &mut self.links;
        // Any socket of this namespace will do to ask for a name.
        let ask = self.forgotten.fd();
        for _ in 0..TURN {
            let each = |logged: Logged<'_>| {
                let link = links.name(ask, logged.from_link);
                tracker.refused(now, &logged, link);
            };
            if !self.refused.packets(each)? {
                break;
            }
        }
        if let Some(accepted) = &mut self.accepted {
            for _ in 0..TURN {
                let each = |logged: Logged<'_>| {
                    let link = links.name(ask, logged.from_link);
                    tracker.accepted(now, &logged, link);
                };
                if !accepted.packets(each)? {
                    break;
                }
            }
        }
        for _ in 0..TURN {
            let each = |logged: Logged<'_>| {
                let link = links.name(ask, logged.from_link);
                tracker.accepted(now, &logged, link);
            };
            if !self.own.packets(each)? {
                break;
            }
        }
        // After those that say how a connection ended.
        while self
            .forgotten
            .forgotten(|forgotten| tracker.forgotten(now, &forgotten))?
        {}
        tracker.tick(now);

        // What the kernel could not hand over of them was refused as well.
        let missed =
            self.refused.lost - std::mem::replace(&mut self.refused_lost, self.refused.lost);
        tracker.totals.refused += missed;
        tracker.totals.lost_by_kernel = self.connections.lost
            + self.own.lost
            + self.refused.lost
            + self.forgotten.lost
            + self.accepted.as_ref().map_or(0, |reader| reader.lost);
        self.tell_what_was_lost(now);
        Ok(())
    }

    fn losses(&self) -> [(LostBy, u64); 3] {
        let totals = &self.tracker.totals;
        [
            (LostBy::Kernel, totals.lost_by_kernel),
            (LostBy::Sidecar, totals.lost_by_sidecar),
            (LostBy::Table, totals.lost_by_table),
        ]
    }

    /// Whether there is more to do than to wait for a packet.
    fn owes(&self) -> bool {
        let unsaid = self.losses().map(|(_, count)| count) != self.said;
        unsaid
            || self.tracker.is_waiting()
            || self.tracker.owes()
            || self.sent != self.tracker.totals
    }

    /// Once a second: a flood that is lost must not be told of in a flood.
    fn tell_what_was_lost(&mut self, now: Now) {
        if now.ticks.saturating_sub(self.said_at) < TICK.as_nanos() as u64 {
            return;
        }
        for (index, (by, count)) in self.losses().into_iter().enumerate() {
            let more = count - std::mem::replace(&mut self.said[index], count);
            if more > 0 {
                self.said_at = now.ticks;
                self.tracker.lost(now, by, more);
            }
        }
    }

    /// Sends what there is, until it is gone or there is no room for it; totals alone once a second.
    fn send(&mut self) {
        let now = self.now().ticks;
        let tracker = &mut self.tracker;
        let due = now.saturating_sub(self.sent_at) >= TICK.as_nanos() as u64;
        while !tracker.records.is_empty() || (due && self.sent != tracker.totals) {
            self.buffer.clear();
            wire::put_totals(&mut self.buffer, &tracker.totals);
            let mut count = 0;
            for record in &tracker.records {
                if self.buffer.len() + wire::RECORD > wire::LARGEST {
                    break;
                }
                wire::put_record(&mut self.buffer, record);
                count += 1;
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            if rustix::net::send(&self.told, &self.buffer, flags).is_err() {
                // There is no room, or nobody there any more, and then the end comes next.
                return;
            }
            tracker.records.drain(..count);
            self.sent.clone_from(&tracker.totals);
            self.sent_at = now;
        }
    }
}

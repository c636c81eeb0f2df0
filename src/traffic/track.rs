//! From packets to records: which connections are open, and whose refused packets still get a line.
//!
//! All memory is bounded: so many connections are remembered, so many sources, so many records that nobody has taken. What
//! doesn't fit is counted.
//!
//! The bytes of a TCP connection come from its sequence numbers: those of SYN and FIN differ by the bytes between them, so
//! nothing has to be counted, and the end of a connection is known at once; conntrack would tell of it when it has waited
//! for stray packets and its next collection comes. That difference has 32 bits; `large` connections wait for conntrack.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr};

use super::kernel::{Forgotten, Logged};
use super::packet::{ACK, FIN, Packet, RST, SYN, Tcp};
use super::{AppTotals, Event, Flow, How, LostBy, Name, Record, Settings, Totals};

/// How many open connections are remembered: some 10 MiB.
const MOST_CONNECTIONS: usize = 1 << 16;
/// How many records wait for the supervisor.
const MOST_RECORDS: usize = 1 << 13;
/// How many sources have a bucket of their own; the rest share one.
const MOST_SOURCES: usize = 1 << 12;
/// How many lines a source may fill at once…
const BURST: u32 = 10;
/// …and all sources together…
const BURST_OF_ALL: u32 = 200;
/// …and how many each second in the long run.
const PER_SECOND: u32 = 1;
/// As [`PER_SECOND`], of all sources together.
const PER_SECOND_OF_ALL: u32 = 50;
/// How many sources are named when it is told what has no line.
const NAMED: usize = 5;

/// Of a side of a connection.
#[derive(Debug, Clone, Copy, Default)]
struct Side {
    /// The number of its SYN.
    first: Option<u32>,
    /// The number of its FIN, when it has closed.
    last: Option<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Connection {
    /// When it began, in nanoseconds since 1970; `None` if we were not there.
    opened: Option<i64>,
    /// Which of [`Totals::apps`].
    app: u16,
    /// The client, then the server.
    sides: [Side; 2],
    /// Who has closed first.
    closer: Option<u8>,
}

/// Fills by so many lines a second, up to so many.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// In thousandths of a line.
    level: u32,
    /// When it was filled last, monotonic, in milliseconds.
    at: u64,
    /// What found it empty.
    suppressed: u64,
}

impl Bucket {
    fn full(lines: u32, at: u64) -> Self {
        Self {
            level: lines * 1000,
            at,
            suppressed: 0,
        }
    }

    fn take(&mut self, now: u64, per_second: u32, most: u32) -> bool {
        let more = now
            .saturating_sub(self.at)
            .saturating_mul(per_second.into());
        let level = u64::from(self.level).saturating_add(more);
        self.level = level.min(u64::from(most) * 1000) as u32;
        self.at = now;
        let enough = self.level >= 1000;
        if enough {
            self.level -= 1000;
        }
        enough
    }
}

/// What the time is.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Nanoseconds since 1970.
    pub wall: i64,
    /// Nanoseconds, monotonic.
    pub ticks: u64,
}

/// See the module.
pub struct Tracker {
    connections: HashMap<Flow, Connection>,
    apps: HashMap<IpAddr, u16>,
    sources: HashMap<IpAddr, Bucket>,
    others: Bucket,
    all: Bucket,
    /// When suppressed packets were told of last, monotonic, in milliseconds.
    told: u64,
    /// What was counted.
    pub totals: Totals,
    /// What is to be told, oldest first.
    pub records: std::collections::VecDeque<Record>,
}

impl Tracker {
    /// With nothing seen.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        let most = super::wire::MOST_APPS;
        let apps = settings.apps.iter().take(most);
        let others = apps.len();
        Self {
            connections: HashMap::new(),
            apps: apps
                .enumerate()
                .flat_map(|(index, addresses)| {
                    addresses
                        .iter()
                        .map(move |address| (*address, index as u16))
                })
                .collect(),
            sources: HashMap::new(),
            others: Bucket::full(BURST, 0),
            all: Bucket::full(BURST_OF_ALL, 0),
            told: 0,
            totals: Totals {
                apps: vec![AppTotals::default(); others + 1],
                ..Totals::default()
            },
            records: std::collections::VecDeque::new(),
        }
    }

    /// Whether a connection is remembered.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.connections.is_empty()
    }

    fn tell(&mut self, time: i64, event: Event) {
        if self.records.len() >= MOST_RECORDS {
            self.totals.lost_by_sidecar += 1;
            return;
        }
        self.records.push_back(Record { time, event });
    }

    /// Which app a connection belongs to: the one that it is with, or the one that began it.
    fn app_of(&self, flow: &Flow) -> u16 {
        let of = |address: SocketAddr| self.apps.get(&address.ip()).copied();
        of(flow.server)
            .or_else(|| of(flow.client))
            .unwrap_or(self.totals.apps.len() as u16 - 1)
    }

    fn app(&mut self, app: u16) -> &mut AppTotals {
        &mut self.totals.apps[usize::from(app)]
    }

    /// A packet that begins or ends a connection.
    pub fn edge(&mut self, now: Now, logged: &Logged<'_>) {
        let Some(packet) = Packet::parse(logged.payload) else {
            return;
        };
        let now = Now {
            wall: logged.time.unwrap_or(now.wall),
            ..now
        };
        let ports = packet.ports.unwrap_or_default();
        let there = Flow {
            protocol: packet.protocol,
            client: SocketAddr::new(packet.source, ports.0),
            server: SocketAddr::new(packet.target, ports.1),
        };
        let back = Flow {
            protocol: packet.protocol,
            client: there.server,
            server: there.client,
        };
        let Some(tcp) = packet.tcp else {
            if !self.connections.contains_key(&back) {
                self.open(now, there, [None; 2]);
            }
            return;
        };
        match tcp.flags & (SYN | ACK | FIN | RST) {
            SYN => self.open(now, there, [Some(tcp.sequence), None]),
            flags if flags == SYN | ACK => {
                let client = tcp.acknowledged.wrapping_sub(1);
                self.open(now, back, [Some(client), Some(tcp.sequence)]);
            }
            flags if flags & RST != 0 => {
                let there_is = self.connections.contains_key(&there);
                let (flow, from) = if there_is { (there, 0) } else { (back, 1) };
                self.reset(now, flow, from, tcp);
            }
            flags if flags & FIN != 0 => {
                let from = if self.connections.contains_key(&there) {
                    0
                } else if self.connections.contains_key(&back) {
                    1
                } else {
                    // It was said already that it has ended.
                    return;
                };
                let flow = if from == 0 { there } else { back };
                self.close(now, flow, from, tcp);
            }
            _ => {}
        }
    }

    /// A SYN, or the answer to one, or the first packet of a protocol that has none.
    fn open(&mut self, now: Now, flow: Flow, first: [Option<u32>; 2]) {
        if let Some(known) = self.connections.get_mut(&flow) {
            let same = match (known.sides[0].first, first[0]) {
                (Some(known), Some(seen)) => known == seen,
                _ => true,
            };
            if same {
                for (side, first) in known.sides.iter_mut().zip(first) {
                    side.first = side.first.or(first);
                }
                return;
            }
            self.end(now, &flow, How::Unknown, None);
        }
        let app = self.app_of(&flow);
        self.app(app).opened += 1;
        self.remember(
            flow,
            Connection {
                opened: Some(now.wall),
                app,
                sides: first.map(|first| Side { first, last: None }),
                closer: None,
            },
        );
        self.tell(now.wall, Event::Open(flow));
    }

    fn remember(&mut self, flow: Flow, connection: Connection) {
        if self.connections.len() >= MOST_CONNECTIONS {
            self.make_room();
        }
        if self.connections.len() >= MOST_CONNECTIONS {
            self.totals.lost_by_table += 1;
            return;
        }
        self.app(connection.app).open += 1;
        self.connections.insert(flow, connection);
    }

    /// Forgets connections of which one side has closed: of those the end may have been missed.
    fn make_room(&mut self) {
        let (apps, totals) = (&mut self.totals.apps, &mut self.totals.lost_by_table);
        self.connections.retain(|_, known| {
            if known.closer.is_some() {
                apps[usize::from(known.app)].open -= 1;
                *totals += 1;
            }
            known.closer.is_none()
        });
    }

    fn close(&mut self, now: Now, flow: Flow, from: u8, tcp: Tcp) {
        let Some(known) = self.connections.get_mut(&flow) else {
            return;
        };
        let last = tcp.sequence.wrapping_add(tcp.payload);
        known.sides[usize::from(from)].last = Some(last);
        let closer = *known.closer.get_or_insert(from);
        if known.sides.iter().all(|side| side.last.is_some()) {
            let how = if closer == 0 {
                How::ClosedByClient
            } else {
                How::ClosedByApp
            };
            self.end(now, &flow, how, None);
        }
    }

    fn reset(&mut self, now: Now, flow: Flow, from: u8, tcp: Tcp) {
        // The answer to a first packet that nobody listens for (RFC 9293, 3.10.7.1).
        let refused = from == 1 && tcp.sequence == 0 && tcp.flags & ACK != 0;
        if refused && !self.connections.contains_key(&flow) {
            self.open(now, flow, [Some(tcp.acknowledged.wrapping_sub(1)), None]);
        }
        // What follows the end of a connection is no news.
        let Some(known) = self.connections.get_mut(&flow) else {
            return;
        };
        let (ours, theirs) = (usize::from(from), usize::from(1 - from));
        let how = match from {
            1 if known.sides[1].first.is_none() => How::RefusedByApp,
            1 => How::ResetByApp,
            _ => How::ResetByClient,
        };
        let sent = &mut known.sides[ours];
        sent.last = sent.last.or(Some(tcp.sequence));
        if tcp.flags & ACK != 0 {
            let got = &mut known.sides[theirs];
            got.last = got.last.or(Some(tcp.acknowledged));
        }
        self.end(now, &flow, how, None);
    }

    /// Takes a connection out and tells of it. `counted` are bytes that somebody else has counted.
    fn end(&mut self, now: Now, flow: &Flow, how: How, counted: Option<[Option<u64>; 2]>) {
        let Entry::Occupied(known) = self.connections.entry(*flow) else {
            return;
        };
        let known = known.remove();
        let bytes = counted.unwrap_or_else(|| {
            known.sides.map(|side| {
                let sent = side.last?.wrapping_sub(side.first?).wrapping_sub(1);
                // A reset may say any number; more than half of them is none that was reached.
                let impossible = sent > u32::MAX / 2
                    && matches!(
                        how,
                        How::ResetByApp | How::ResetByClient | How::RefusedByApp
                    );
                Some(if impossible { 0 } else { sent.into() })
            })
        });
        let app = self.app(known.app);
        app.open -= 1;
        for (sum, bytes) in app.bytes.iter_mut().zip(bytes) {
            *sum = sum.saturating_add(bytes.unwrap_or_default());
        }
        self.tell(
            now.wall,
            Event::End {
                flow: *flow,
                bytes,
                // A clock that was set back in between makes it none.
                duration: known
                    .opened
                    .and_then(|opened| u64::try_from(now.wall.checked_sub(opened)?).ok()),
                how,
            },
        );
    }

    /// A connection from before we were there.
    pub fn existing(&mut self, found: &Forgotten) {
        let flow = found.flow();
        let unseen = Connection {
            opened: None,
            app: self.app_of(&flow),
            sides: [Side::default(); 2],
            closer: None,
        };
        self.remember(flow, unseen);
    }

    /// A connection that conntrack has forgotten. Most have ended before.
    pub fn forgotten(&mut self, now: Now, forgotten: &Forgotten) {
        let flow = forgotten.flow();
        if !self.connections.contains_key(&flow) {
            if forgotten.to_client.0 > 0 {
                return;
            }
            // There was no answer to begin with.
            self.open(now, flow, [None; 2]);
            if let Some(known) = self.connections.get_mut(&flow) {
                known.opened = None;
            }
        }
        let how = if forgotten.to_client.0 == 0 {
            How::Unanswered
        } else {
            How::TimedOut
        };
        // What conntrack counts has headers in it: of the network, and of TCP with its time stamps, or UDP.
        let network = if flow.client.is_ipv4() { 20 } else { 40 };
        let header = network
            + match forgotten.protocol {
                6 => 32,
                17 => 8,
                _ => 0,
            };
        let counted = [forgotten.from_client, forgotten.to_client]
            .map(|(packets, bytes)| Some(bytes.saturating_sub(packets.saturating_mul(header))));
        self.end(now, &flow, how, Some(counted));
    }

    /// A packet that was refused.
    pub fn refused(&mut self, now: Now, logged: &Logged<'_>, link: Name) {
        self.totals.refused += 1;
        let Some(packet) = Packet::parse(logged.payload) else {
            return;
        };
        let at = now.ticks / 1_000_000;
        let room = self.sources.len() < MOST_SOURCES;
        let bucket = match self.sources.entry(packet.source) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) if room => new.insert(Bucket::full(BURST, at)),
            Entry::Vacant(_) => &mut self.others,
        };
        // The second is only asked when the first has some.
        if bucket.take(at, PER_SECOND, BURST) && self.all.take(at, PER_SECOND_OF_ALL, BURST_OF_ALL)
        {
            self.packet(now, logged, link, packet, false);
        } else {
            bucket.suppressed += 1;
        }
    }

    /// A packet that was let through.
    pub fn accepted(&mut self, now: Now, logged: &Logged<'_>, link: Name) {
        if let Some(packet) = Packet::parse(logged.payload) {
            self.packet(now, logged, link, packet, true);
        }
    }

    fn packet(
        &mut self,
        now: Now,
        logged: &Logged<'_>,
        link: Name,
        packet: Packet,
        accepted: bool,
    ) {
        self.tell(
            logged.time.unwrap_or(now.wall),
            Event::Packet {
                rule: Name::new(logged.rule.as_bytes()),
                link,
                accepted,
                packet,
            },
        );
    }

    /// Whether there is something that [`Tracker::tick`] will tell.
    #[must_use]
    pub fn owes(&self) -> bool {
        !self.sources.is_empty() || self.others.suppressed > 0
    }

    /// What was left out in the last ten seconds; sources that were quiet for that long are forgotten.
    pub fn tick(&mut self, now: Now) {
        let at = now.ticks / 1_000_000;
        if at.saturating_sub(self.told) < 10_000 {
            return;
        }
        self.told = at;
        let mut left: Vec<(u64, IpAddr)> = vec![];
        self.sources.retain(|source, bucket| {
            let suppressed = std::mem::take(&mut bucket.suppressed);
            if suppressed > 0 {
                left.push((suppressed, *source));
            }
            suppressed > 0 || at.saturating_sub(bucket.at) < 10_000
        });
        left.sort_unstable();
        let mut rest = std::mem::take(&mut self.others.suppressed);
        for (index, (packets, source)) in left.into_iter().rev().enumerate() {
            if index < NAMED {
                let source = Some(source);
                self.tell(now.wall, Event::Suppressed { source, packets });
            } else {
                rest += packets;
            }
        }
        if rest > 0 {
            let event = Event::Suppressed {
                source: None,
                packets: rest,
            };
            self.tell(now.wall, event);
        }
    }

    /// What was lost before it got here, or after.
    pub fn lost(&mut self, now: Now, by: LostBy, count: u64) {
        self.records.push_back(Record {
            time: now.wall,
            event: Event::Lost { by, count },
        });
    }
}

//! From packets to records: which connections are open, and whose refused packets still get a line.
//!
//! All memory is bounded: so many connections are remembered, so many sources, so many records that nobody has taken. What
//! doesn't fit is counted.
//!
//! The bytes of a TCP connection come from its sequence numbers: those of SYN and FIN differ by the bytes between them, so
//! nothing has to be counted, and the end of a connection is known at once; conntrack would tell of it when it has waited
//! for stray packets and its next collection comes. That difference has 32 bits: bytes are told modulo 4 GiB.
//!
//! Of the packets at the end only the last FIN is seen, or a reset. It acknowledges the other's FIN, unless that was
//! under way at the same moment; so its mark is the number of the first FIN (`firewall::ruleset::edges`), which has
//! whatever that packet brought besides on top. What nobody has acknowledged of that last packet is not counted.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr};

use super::kernel::{Forgotten, Logged};
use super::packet::{ACK, FIN, Packet, RST, SYN, Tcp};
use super::refused::Lines;
use crate::firewall::logging;

use super::{AppTotals, Event, Flow, How, LostBy, Name, Record, Settings, Totals};

/// How many open connections are remembered: some 10 MiB.
const MOST_CONNECTIONS: usize = 1 << 16;
/// How many records wait for the supervisor.
const MOST_RECORDS: usize = 1 << 13;
/// Of a full table, the part that is forgotten to make room.
const FORGOTTEN: usize = MOST_CONNECTIONS / 8;

#[derive(Debug, Clone, Copy)]
struct Connection {
    /// When it began, in nanoseconds since 1970; `None` if we were not there.
    opened: Option<i64>,
    /// Which of [`Totals::apps`].
    app: u16,
    /// The numbers of the SYNs, the client's and the server's.
    first: [Option<u32>; 2],
}

/// How much went from the client, and to it.
enum Sent {
    /// Somebody has counted.
    Counted([u64; 2]),
    /// Up to these numbers, which are those of FINs; `None` where it isn't known.
    Until([Option<u32>; 2]),
}

/// What `from` has, and the other, as the client's and the server's.
fn in_order<T>(from: usize, ours: T, theirs: T) -> [T; 2] {
    if from == 0 {
        [ours, theirs]
    } else {
        [theirs, ours]
    }
}

/// The number of the FIN of who didn't send this packet, as far as it and the first FIN tell.
fn last_of_the_other(tcp: Tcp, first_fin: Option<u32>) -> Option<u32> {
    let acknowledged = (tcp.flags & ACK != 0).then(|| tcp.acknowledged.wrapping_sub(1));
    match (acknowledged, first_fin) {
        (Some(seen), Some(fin)) if (seen.wrapping_sub(fin) as i32) < 0 => Some(fin),
        (seen, fin) => seen.or(fin),
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
    lines: Lines,
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
            lines: Lines::default(),
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
            flags if flags & (RST | FIN) != 0 => {
                let there_is = self.connections.contains_key(&there);
                let (flow, from) = if there_is { (there, 0) } else { (back, 1) };
                // It is the header's four bytes as they were, which a mark takes for a number of this machine.
                let ours = logged.mark != 0 && logged.rule != logging::OTHERS_MARKS;
                let first_fin = ours.then(|| u32::from_be_bytes(logged.mark.to_ne_bytes()));
                if flags & RST != 0 {
                    self.reset(now, flow, from, tcp, first_fin);
                } else {
                    self.close(now, flow, from, tcp, first_fin);
                }
            }
            _ => {}
        }
    }

    /// A SYN, or the answer to one, or the first packet of a protocol that has none.
    fn open(&mut self, now: Now, flow: Flow, first: [Option<u32>; 2]) {
        if let Some(known) = self.connections.get_mut(&flow) {
            let same = match (known.first[0], first[0]) {
                (Some(known), Some(seen)) => known == seen,
                _ => true,
            };
            if same {
                for (known, first) in known.first.iter_mut().zip(first) {
                    *known = known.or(first);
                }
                return;
            }
            self.end(now, &flow, How::Unknown, Sent::Until([None; 2]));
        }
        let app = self.app_of(&flow);
        self.app(app).opened += 1;
        self.remember(
            flow,
            Connection {
                opened: Some(now.wall),
                app,
                first,
            },
        );
        self.tell(now.wall, Event::Open(flow));
    }

    fn remember(&mut self, flow: Flow, connection: Connection) {
        if self.connections.len() >= MOST_CONNECTIONS {
            self.make_room();
        }
        self.app(connection.app).open += 1;
        self.connections.insert(flow, connection);
    }

    /// Forgets those that began first: the end of many of them was missed, or there would not be so many.
    fn make_room(&mut self) {
        let mut begun: Vec<_> = self
            .connections
            .values()
            .map(|known| known.opened)
            .collect();
        let (_, last, _) = begun.select_nth_unstable(FORGOTTEN - 1);
        let (last, mut left) = (*last, FORGOTTEN);
        let apps = &mut self.totals.apps;
        self.connections.retain(|_, known| {
            let goes = known.opened <= last && left > 0;
            if goes {
                left -= 1;
                apps[usize::from(known.app)].open -= 1;
            }
            !goes
        });
        self.totals.lost_by_table += FORGOTTEN as u64;
    }

    /// The last FIN, or the first one again: conntrack takes that for the last (`tcp_conntracks`, sFW to sLA).
    fn close(&mut self, now: Now, flow: Flow, from: usize, tcp: Tcp, first_fin: Option<u32>) {
        let again = first_fin.is_some_and(|fin| fin.wrapping_sub(tcp.sequence) <= tcp.payload);
        let first = if again { from } else { 1 - from };
        let how = match first {
            0 => How::ClosedByClient,
            _ => How::ClosedByApp,
        };
        let ours = tcp.sequence.wrapping_add(tcp.payload);
        let theirs = if again {
            // There is no FIN that it could acknowledge.
            (tcp.flags & ACK != 0).then_some(tcp.acknowledged)
        } else {
            last_of_the_other(tcp, first_fin)
        };
        let last = in_order(from, Some(ours), theirs);
        self.end(now, &flow, how, Sent::Until(last));
    }

    fn reset(&mut self, now: Now, flow: Flow, from: usize, tcp: Tcp, first_fin: Option<u32>) {
        // The answer to a first packet that nobody listens for (RFC 9293, 3.10.7.1).
        let refused = from == 1 && tcp.sequence == 0 && tcp.flags & ACK != 0;
        if refused && !self.connections.contains_key(&flow) {
            self.open(now, flow, [Some(tcp.acknowledged.wrapping_sub(1)), None]);
        }
        // What follows the end of a connection is no news.
        let Some(known) = self.connections.get(&flow) else {
            return;
        };
        let how = match from {
            1 if known.first[1].is_none() => How::RefusedByApp,
            1 => How::ResetByApp,
            _ => How::ResetByClient,
        };
        // Who resets after a FIN of its own says the number that follows that; the other's numbers are far from it.
        let is_own = |fin: &u32| tcp.sequence.wrapping_sub(*fin) <= 1 << 16;
        let (ours, theirs) = match first_fin {
            Some(fin) if is_own(&fin) => (fin, last_of_the_other(tcp, None)),
            other => (tcp.sequence, last_of_the_other(tcp, other)),
        };
        let last = in_order(from, Some(ours), theirs);
        self.end(now, &flow, how, Sent::Until(last));
    }

    /// Takes a connection out and tells of it.
    fn end(&mut self, now: Now, flow: &Flow, how: How, sent: Sent) {
        let Entry::Occupied(known) = self.connections.entry(*flow) else {
            return;
        };
        let known = known.remove();
        let bytes = match sent {
            Sent::Counted(bytes) => bytes.map(Some),
            Sent::Until(last) => [0, 1].map(|side| {
                // Of two who close at once, on a processor each, the second may go by before the first one's number is kept. So its
                // acknowledgement tells, which may be of nothing but the SYN.
                let sent = last[side]?
                    .wrapping_sub(known.first[side]?)
                    .saturating_sub(1);
                // A reset may say any number; more than half of them is none that was reached.
                let impossible = sent > u32::MAX / 2
                    && matches!(
                        how,
                        How::ResetByApp | How::ResetByClient | How::RefusedByApp
                    );
                Some(if impossible { 0 } else { sent.into() })
            }),
        };
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
            first: [None; 2],
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
        // The first one's has more options than those after it: its segment size, its window's scale, and that it takes SACK.
        let first = match forgotten.protocol {
            6 => 8,
            _ => 0,
        };
        let counted = [forgotten.from_client, forgotten.to_client].map(|(packets, bytes)| {
            let headers = packets.saturating_mul(header).saturating_add(first);
            bytes.saturating_sub(headers)
        });
        self.end(now, &flow, how, Sent::Counted(counted));
    }

    /// A packet that was refused.
    pub fn refused(&mut self, now: Now, logged: &Logged<'_>, link: Name) {
        self.totals.refused += 1;
        let Some(packet) = Packet::parse(logged.payload) else {
            return;
        };
        let ends = [packet.target, packet.source];
        let its = ends.map(|address| self.apps.get(&address).copied());
        if let Some((way, app)) = its
            .into_iter()
            .enumerate()
            .find_map(|(way, app)| Some((way, app?)))
        {
            self.app(app).refused[way] += 1;
        }
        if self.lines.take(packet.source, now.ticks / 1_000_000) {
            self.packet(now, logged, link, packet, false);
        }
    }

    /// A packet that was let through, or that a rule of the user's logs.
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
        self.lines.owes()
    }

    /// What was left out in the last ten seconds; sources that were quiet for that long are forgotten.
    pub fn tick(&mut self, now: Now) {
        for (source, packets) in self.lines.left_out(now.ticks / 1_000_000) {
            self.tell(now.wall, Event::Suppressed { source, packets });
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

#[cfg(test)]
mod tests {
    use super::super::refused::BURST;
    use super::*;

    /// A tracker of one app, 172.18.0.23.
    fn tracker() -> Tracker {
        Tracker::new(&Settings {
            apps: vec![vec![[172, 18, 0, 23].into()]],
            ..Settings::default()
        })
    }

    fn at(seconds: u64) -> Now {
        Now {
            wall: seconds as i64 * 1_000_000_000,
            ticks: seconds * 1_000_000_000,
        }
    }

    /// A TCP packet without options, from a client's port to the app's, or back.
    fn tcp(port: u16, to_app: bool, flags: u8, sequence: u32, acknowledged: u32) -> Vec<u8> {
        let (client, app) = ([10, 0, 0, 9], [172, 18, 0, 23]);
        let (from, to) = if to_app { (client, app) } else { (app, client) };
        let ports = if to_app { [port, 5000] } else { [5000, port] };
        let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0];
        packet.extend(from);
        packet.extend(to);
        ports
            .iter()
            .for_each(|port: &u16| packet.extend(port.to_be_bytes()));
        packet.extend(sequence.to_be_bytes());
        packet.extend(acknowledged.to_be_bytes());
        packet.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
        packet
    }

    /// The same packet with so many bytes behind its headers.
    fn with_payload(mut packet: Vec<u8>, bytes: u8) -> Vec<u8> {
        packet[3] += bytes;
        packet
    }

    fn see(tracker: &mut Tracker, now: Now, payload: &[u8]) {
        let logged = Logged {
            payload,
            ..Logged::default()
        };
        tracker.edge(now, &logged);
    }

    /// The last FIN, or a reset, of a connection whose first FIN had this number.
    fn see_marked(tracker: &mut Tracker, now: Now, payload: &[u8], first_fin: u32) {
        let logged = Logged {
            payload,
            mark: u32::from_ne_bytes(first_fin.to_be_bytes()),
            ..Logged::default()
        };
        tracker.edge(now, &logged);
    }

    fn end(tracker: &mut Tracker) -> ([Option<u64>; 2], How) {
        match tracker.records.pop_back().unwrap().event {
            Event::End { bytes, how, .. } => (bytes, how),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_conntrack_has_counted_is_told_without_headers() {
        // Packets and bytes to the client: SYN,ACK 60, an acknowledgement 52, FIN the same, a reset 40.
        for (protocol, counted, bytes) in [
            (6, (0, 0), 0),
            (6, (1, 60), 0),
            (6, (2, 112), 0),
            (6, (3, 152), 0),
            (6, (3, 60 + 52 + 52 + 1), 1),
            (6, (3, 60 + 52 + 52 + 1000), 1000),
            (17, (2, 2 * 28 + 100), 100),
        ] {
            let mut tracker = tracker();
            let forgotten = Forgotten {
                protocol,
                client: ([10, 0, 0, 9].into(), 1),
                server: ([172, 18, 0, 23].into(), 5000),
                from_client: (0, 0),
                to_client: counted,
                is_over: true,
            };
            tracker.existing(&forgotten);
            tracker.forgotten(at(1), &forgotten);
            let (sent, _) = end(&mut tracker);
            assert_eq!(sent, [Some(0), Some(bytes)], "{protocol} {counted:?}");
            assert_eq!(tracker.totals.apps[0].bytes, [0, bytes]);
        }
    }

    #[test]
    fn who_closes_at_once_with_the_other_and_has_not_heard_of_it_makes_no_bytes() {
        for first in [100, u32::MAX] {
            let mut tracker = tracker();
            let second = u32::wrapping_add(first, 1);
            see(&mut tracker, at(0), &tcp(1, false, SYN | ACK, first, 11));
            // Without a mark.
            see(&mut tracker, at(1), &tcp(1, true, FIN | ACK, 15, second));
            assert_eq!(end(&mut tracker).0, [Some(4), Some(0)], "{first}");
        }
    }

    #[test]
    fn bytes_are_right_when_sequence_numbers_wrap() {
        let mut tracker = tracker();
        see(
            &mut tracker,
            at(0),
            &tcp(1, false, SYN | ACK, u32::MAX - 1, u32::MAX),
        );
        let last = tcp(1, false, FIN | ACK, 99, 10);
        see_marked(&mut tracker, at(2), &last, 9);
        let end = tracker.records.pop_back().unwrap();
        let Event::End {
            bytes,
            how,
            duration,
            ..
        } = end.event
        else {
            panic!("{end:?}");
        };
        assert_eq!(bytes, [Some(10), Some(100)]);
        assert_eq!((how, duration), (How::ClosedByClient, Some(2_000_000_000)));
    }

    #[test]
    fn bytes_are_right_however_a_connection_is_closed() {
        let mut tracker = tracker();
        // The client's SYN is 100, the app's 200; each sends 10 bytes, so their FINs are 111 and 211.
        let cases = [
            // In turn, the last one with and without bytes of its own, the first as well.
            (tcp(1, true, FIN | ACK, 111, 212), 211, How::ClosedByApp),
            (tcp(1, true, FIN | ACK, 111, 212), 206, How::ClosedByApp),
            (tcp(1, false, FIN | ACK, 211, 112), 111, How::ClosedByClient),
            // At the same moment: neither acknowledges the other's, or all that came before it.
            (tcp(1, true, FIN | ACK, 111, 211), 211, How::ClosedByApp),
            (tcp(1, true, FIN | ACK, 111, 205), 211, How::ClosedByApp),
            (tcp(1, false, FIN | ACK, 211, 111), 111, How::ClosedByClient),
            // The first one again, since there was no answer to it; with the last bytes or without.
            (tcp(1, false, FIN | ACK, 211, 111), 211, How::ClosedByApp),
            (tcp(1, true, FIN | ACK, 111, 211), 111, How::ClosedByClient),
            (
                with_payload(tcp(1, false, FIN | ACK, 201, 111), 10),
                206,
                How::ClosedByApp,
            ),
            // Nobody saw the first, or it had the number that is no mark.
            (tcp(1, true, FIN | ACK, 111, 212), 0, How::ClosedByApp),
            // Resets: after one's own FIN, after the other's, after none; with an ACK and without.
            (tcp(1, true, RST | ACK, 112, 212), 111, How::ResetByClient),
            (tcp(1, true, RST, 111, 0), 211, How::ResetByClient),
            (tcp(1, true, RST | ACK, 111, 211), 211, How::ResetByClient),
            (tcp(1, false, RST | ACK, 211, 112), 0, How::ResetByApp),
        ];
        for (packet, first_fin, how) in cases {
            see(&mut tracker, at(0), &tcp(1, false, SYN | ACK, 200, 101));
            see_marked(&mut tracker, at(1), &packet, first_fin);
            let (bytes, ended) = end(&mut tracker);
            let packet = Packet::parse(&packet);
            assert_eq!(bytes, [Some(10), Some(10)], "{first_fin}, {packet:?}");
            assert_eq!(ended, how, "{first_fin}, {packet:?}");
        }
    }

    #[test]
    fn what_others_mark_is_no_number() {
        let mut tracker = tracker();
        see(&mut tracker, at(0), &tcp(1, false, SYN | ACK, 200, 101));
        let logged = Logged {
            payload: &tcp(1, true, FIN | ACK, 111, 212),
            mark: u32::from_ne_bytes(4_000_u32.to_be_bytes()),
            rule: logging::OTHERS_MARKS,
            ..Logged::default()
        };
        tracker.edge(at(1), &logged);
        assert_eq!(end(&mut tracker).0, [Some(10), Some(10)]);
    }

    #[test]
    fn what_comes_after_the_end_opens_nothing() {
        let mut tracker = tracker();
        see(&mut tracker, at(0), &tcp(1, false, SYN | ACK, 0, 1));
        for _ in 0..3 {
            see(&mut tracker, at(1), &tcp(1, false, FIN | ACK, 1, 2));
            see(&mut tracker, at(1), &tcp(1, false, RST, 2, 0));
        }
        assert_eq!(tracker.records.len(), 2);
        assert!(!tracker.is_waiting());
        assert_eq!(
            (tracker.totals.apps[0].open, tracker.totals.apps[0].opened),
            (0, 1)
        );
    }

    #[test]
    fn a_full_table_and_a_full_queue_are_counted_and_no_more() {
        let mut tracker = tracker();
        for number in 0..MOST_CONNECTIONS as u32 + 100 {
            let mut packet = tcp(number as u16, false, SYN | ACK, 0, 1);
            packet[18] = (number >> 16) as u8;
            see(&mut tracker, at(number.into()), &packet);
        }
        let left = MOST_CONNECTIONS + 100 - FORGOTTEN;
        assert_eq!(tracker.connections.len(), left);
        assert_eq!(tracker.totals.apps[0].open, left as u64);
        assert_eq!(tracker.totals.lost_by_table, FORGOTTEN as u64);
        assert_eq!(tracker.records.len(), MOST_RECORDS);
        assert_eq!(tracker.totals.apps[0].opened, MOST_CONNECTIONS as u64 + 100);
    }

    #[test]
    fn a_source_has_its_lines_back_when_it_has_been_quiet() {
        let mut tracker = tracker();
        let payload = tcp(1, true, SYN, 0, 0);
        let logged = Logged {
            payload: &payload,
            rule: "guard/drop-rest",
            ..Logged::default()
        };
        let lines = |tracker: &mut Tracker, now| {
            for _ in 0..100 {
                tracker.refused(now, &logged, Name::new(b"uplink"));
            }
            let all = std::mem::take(&mut tracker.records);
            let listed = |record: &&Record| matches!(record.event, Event::Packet { .. });
            all.iter().filter(listed).count()
        };
        assert_eq!(lines(&mut tracker, at(0)), BURST as usize);
        assert_eq!(lines(&mut tracker, at(3)), 3);
        tracker.tick(at(11));
        let told = tracker.records.pop_front().unwrap();
        let packets = 200 - u64::from(BURST) - 3;
        let source = Some([10, 0, 0, 9].into());
        assert_eq!(told.event, Event::Suppressed { source, packets });
        assert_eq!(lines(&mut tracker, at(100)), BURST as usize);
        assert_eq!(tracker.totals.refused, 300);
        // To the app; what comes from one is counted there.
        assert_eq!(tracker.totals.apps[0].refused, [300, 0]);
    }
}

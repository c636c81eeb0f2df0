//! Records as bytes, from the sidecar and the relay to the supervisor: one message is the totals and some records, of at most
//! [`LARGEST`] bytes. Numbers are little endian. What is not of this shape is refused as a whole.

use std::net::{IpAddr, SocketAddr};

use super::packet::Tcp;
use super::{AppTotals, Event, Flow, How, LostBy, Name, Packet, Record, Refusals, Totals, Why};

/// No message is longer, in bytes.
pub const LARGEST: usize = 48 << 10;
/// More than the longest record takes, in bytes.
pub const RECORD: usize = 192;
/// More apps than that have no totals of their own.
pub const MOST_APPS: usize = 256;

/// Writes the beginning of a message.
pub fn put_totals(out: &mut Vec<u8>, totals: &Totals) {
    for number in [
        totals.refused,
        totals.lost_by_kernel,
        totals.lost_by_sidecar,
        totals.lost_by_table,
    ] {
        put64(out, number);
    }
    let apps = &totals.apps[..totals.apps.len().min(MOST_APPS + 1)];
    out.extend((apps.len() as u16).to_le_bytes());
    for app in apps {
        let [to, from] = app.refused;
        for number in [app.open, app.opened, app.bytes[0], app.bytes[1], to, from] {
            put64(out, number);
        }
    }
}

/// Writes the beginning of a message of the relay's: what it has refused, and of whose clients.
pub fn put_refusals(out: &mut Vec<u8>, refusals: &Refusals, apps: &[u64]) {
    for (_, count) in refusals.by_rule() {
        put64(out, count);
    }
    let apps = &apps[..apps.len().min(MOST_APPS)];
    out.extend((apps.len() as u16).to_le_bytes());
    for app in apps {
        put64(out, *app);
    }
}

/// Writes a record.
pub fn put_record(out: &mut Vec<u8>, record: &Record) {
    put64(out, record.time.cast_unsigned());
    match &record.event {
        Event::Open(flow) => {
            out.push(0);
            put_flow(out, flow);
        }
        Event::End {
            flow,
            bytes,
            duration,
            how,
        } => {
            out.push(1);
            put_flow(out, flow);
            for number in [bytes[0], bytes[1], *duration] {
                out.push(number.is_some().into());
                put64(out, number.unwrap_or_default());
            }
            out.push(*how as u8);
        }
        Event::Packet {
            rule,
            link,
            accepted,
            packet,
        } => {
            out.push(2);
            put_name(out, rule);
            put_name(out, link);
            out.push((*accepted).into());
            put_address(out, packet.source);
            put_address(out, packet.target);
            out.push(packet.protocol);
            out.extend(packet.length.to_le_bytes());
            let (source, target) = packet.ports.unwrap_or_default();
            out.push(packet.ports.is_some().into());
            out.extend(source.to_le_bytes());
            out.extend(target.to_le_bytes());
            out.push(packet.tcp.is_some().into());
            out.push(packet.tcp.map_or(0, |tcp| tcp.flags));
            let (kind, code) = packet.icmp.unwrap_or_default();
            out.extend([packet.icmp.is_some().into(), kind, code]);
        }
        Event::Suppressed { source, packets } => {
            out.push(3);
            out.push(source.is_some().into());
            if let Some(source) = source {
                put_address(out, *source);
            }
            put64(out, *packets);
        }
        Event::Lost { by, count } => {
            out.push(4);
            out.push(*by as u8);
            put64(out, *count);
        }
    }
}

fn put64(out: &mut Vec<u8>, number: u64) {
    out.extend(number.to_le_bytes());
}

fn put_address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            out.push(4);
            out.extend(address.octets());
        }
        IpAddr::V6(address) => {
            out.push(6);
            out.extend(address.octets());
        }
    }
}

fn put_socket(out: &mut Vec<u8>, socket: SocketAddr) {
    put_address(out, socket.ip());
    out.extend(socket.port().to_le_bytes());
}

fn put_flow(out: &mut Vec<u8>, flow: &Flow) {
    out.push(flow.protocol);
    put_socket(out, flow.client);
    put_socket(out, flow.server);
}

fn put_name(out: &mut Vec<u8>, name: &Name) {
    out.push(name.length);
    out.extend(name.as_str().as_bytes());
}

/// Reads a message: the totals, and the bytes of its [`records`], which are all whole; `None` when it is none.
#[must_use]
pub fn read(bytes: &[u8]) -> Option<(Totals, &[u8])> {
    let mut rest = Rest(bytes);
    let totals = rest.totals()?;
    let kept = rest.0;
    while !rest.0.is_empty() {
        rest.record()?;
    }
    Some((totals, kept))
}

/// As [`read`], of what the relay says: nothing but packets that it has refused.
#[must_use]
pub fn read_refusals(bytes: &[u8]) -> Option<(Refusals, Vec<u64>, &[u8])> {
    let mut rest = Rest(bytes);
    let refusals = Refusals {
        not_allowed: rest.u64()?,
        rate: rest.u64()?,
        share: rest.u64()?,
    };
    let apps = usize::from(rest.u16()?);
    if apps > MOST_APPS {
        return None;
    }
    let apps = (0..apps).map(|_| rest.u64()).collect::<Option<_>>()?;
    let kept = rest.0;
    while !rest.0.is_empty() {
        let is_its = match rest.record()?.event {
            Event::Packet { rule, accepted, .. } => {
                let chain = rule.as_str().split_once('/').map(|(chain, _)| chain);
                chain == Some(Why::CHAIN) && !accepted
            }
            Event::Suppressed { .. } => true,
            _ => false,
        };
        is_its.then_some(())?;
    }
    Some((refusals, apps, kept))
}

/// The records that these bytes are, up to what is none.
pub fn records(bytes: &[u8]) -> impl Iterator<Item = Record> {
    let mut rest = Rest(bytes);
    std::iter::from_fn(move || rest.record())
}

/// What has not been read yet.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take().map(|[byte]| byte)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.byte()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn maybe(&mut self) -> Option<Option<u64>> {
        let there = self.flag()?;
        let number = self.u64()?;
        Some(there.then_some(number))
    }

    fn totals(&mut self) -> Option<Totals> {
        let mut totals = Totals {
            refused: self.u64()?,
            lost_by_kernel: self.u64()?,
            lost_by_sidecar: self.u64()?,
            lost_by_table: self.u64()?,
            apps: vec![],
        };
        let apps = usize::from(self.u16()?);
        if apps > MOST_APPS + 1 {
            return None;
        }
        for _ in 0..apps {
            totals.apps.push(AppTotals {
                open: self.u64()?,
                opened: self.u64()?,
                bytes: [self.u64()?, self.u64()?],
                refused: [self.u64()?, self.u64()?],
            });
        }
        Some(totals)
    }

    fn address(&mut self) -> Option<IpAddr> {
        match self.byte()? {
            4 => self.take::<4>().map(IpAddr::from),
            6 => self.take::<16>().map(IpAddr::from),
            _ => None,
        }
    }

    fn socket(&mut self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.address()?, self.u16()?))
    }

    fn flow(&mut self) -> Option<Flow> {
        Some(Flow {
            protocol: self.byte()?,
            client: self.socket()?,
            server: self.socket()?,
        })
    }

    fn name(&mut self) -> Option<Name> {
        let length = usize::from(self.byte()?);
        let (name, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        // What the sidecar writes is clean; who has broken into it may write anything.
        (length <= Name::MOST).then(|| Name::new(name))
    }

    fn record(&mut self) -> Option<Record> {
        let time = self.u64()?.cast_signed();
        let event = match self.byte()? {
            0 => Event::Open(self.flow()?),
            1 => Event::End {
                flow: self.flow()?,
                bytes: [self.maybe()?, self.maybe()?],
                duration: self.maybe()?,
                how: match self.byte()? {
                    0 => How::ClosedByClient,
                    1 => How::ClosedByApp,
                    2 => How::ResetByClient,
                    3 => How::ResetByApp,
                    4 => How::RefusedByApp,
                    5 => How::Unanswered,
                    6 => How::TimedOut,
                    7 => How::Unknown,
                    _ => return None,
                },
            },
            2 => Event::Packet {
                rule: self.name()?,
                link: self.name()?,
                accepted: self.flag()?,
                packet: self.packet()?,
            },
            3 => Event::Suppressed {
                source: match self.flag()? {
                    true => Some(self.address()?),
                    false => None,
                },
                packets: self.u64()?,
            },
            4 => Event::Lost {
                by: match self.byte()? {
                    0 => LostBy::Kernel,
                    1 => LostBy::Sidecar,
                    2 => LostBy::Table,
                    _ => return None,
                },
                count: self.u64()?,
            },
            _ => return None,
        };
        Some(Record { time, event })
    }

    fn packet(&mut self) -> Option<Packet> {
        let (source, target) = (self.address()?, self.address()?);
        let protocol = self.byte()?;
        let length = self.take().map(u32::from_le_bytes)?;
        let (has_ports, ports) = (self.flag()?, (self.u16()?, self.u16()?));
        let (has_tcp, flags) = (self.flag()?, self.byte()?);
        let (has_icmp, icmp) = (self.flag()?, (self.byte()?, self.byte()?));
        Some(Packet {
            source,
            target,
            protocol,
            length,
            ports: has_ports.then_some(ports),
            tcp: has_tcp.then_some(Tcp {
                flags,
                sequence: 0,
                acknowledged: 0,
                payload: 0,
            }),
            icmp: has_icmp.then_some(icmp),
        })
    }
}

/// A record of each kind.
#[cfg(test)]
pub(crate) fn samples() -> Vec<Record> {
    let flow = Flow {
        protocol: 6,
        client: "10.0.0.9:40000".parse().unwrap(),
        server: "[fd00::5]:5000".parse().unwrap(),
    };
    let packet = Packet {
        source: [10, 0, 0, 9].into(),
        target: [10, 0, 0, 1].into(),
        protocol: 6,
        length: 60,
        ports: Some((1, 2)),
        tcp: Some(Tcp {
            flags: 2,
            sequence: 0,
            acknowledged: 0,
            payload: 0,
        }),
        icmp: None,
    };
    [
        Event::Open(flow),
        Event::End {
            flow,
            bytes: [Some(7), None],
            duration: Some(1 << 40),
            how: How::ResetByApp,
        },
        Event::Packet {
            rule: Name::new(&[b'x'; 99]),
            link: Name::new(b"uplink"),
            accepted: false,
            packet,
        },
        Event::Suppressed {
            source: Some(flow.server.ip()),
            packets: 12,
        },
        Event::Lost {
            by: LostBy::Sidecar,
            count: 3,
        },
    ]
    .map(|event| Record { time: -5, event })
    .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> (Totals, Vec<u8>) {
        let totals = Totals {
            refused: 1,
            apps: vec![
                AppTotals::default(),
                AppTotals {
                    open: 3,
                    refused: [4, 5],
                    ..AppTotals::default()
                },
            ],
            ..Totals::default()
        };
        let mut bytes = vec![];
        put_totals(&mut bytes, &totals);
        for record in samples() {
            let before = bytes.len();
            put_record(&mut bytes, &record);
            assert!(bytes.len() - before < RECORD);
        }
        (totals, bytes)
    }

    #[test]
    fn what_is_written_is_read() {
        let (totals, bytes) = message();
        let (told, kept) = read(&bytes).unwrap();
        assert_eq!(told, totals);
        assert_eq!(super::records(kept).collect::<Vec<_>>(), samples());
    }

    #[test]
    fn whatever_else_is_read_is_no_panic() {
        let (_, bytes) = message();
        for length in 0..bytes.len() {
            let _ = read(&bytes[..length]);
        }
        for at in 0..bytes.len() {
            for value in 0..=255 {
                let mut changed = bytes.clone();
                changed[at] = value;
                let _ = read(&changed);
            }
        }
    }

    #[test]
    fn what_a_relay_has_refused_is_read_as_it_was_written_and_no_more_of_it() {
        let refusals = Refusals {
            not_allowed: 1,
            rate: 2,
            share: 3,
        };
        for apps in [vec![], vec![7, 0, 9], vec![1; MOST_APPS]] {
            let mut bytes = vec![];
            put_refusals(&mut bytes, &refusals, &apps);
            assert_eq!(read_refusals(&bytes), Some((refusals, apps, &[][..])));
            assert_eq!(read_refusals(&bytes[..bytes.len() - 1]), None);
            bytes.push(0);
            assert_eq!(read_refusals(&bytes), None);
        }
        let mut bytes = vec![0; 24];
        bytes.extend((MOST_APPS as u16 + 1).to_le_bytes());
        bytes.extend(vec![0; 8 * (MOST_APPS + 1)]);
        assert_eq!(read_refusals(&bytes), None);
    }

    /// xorshift64*: the same numbers each time.
    struct Chance(u64);

    impl Chance {
        fn below(&mut self, most: usize) -> usize {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            let mixed = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
            usize::try_from(mixed).expect("31 bits") % most
        }
    }

    #[test]
    fn what_is_taken_of_a_message_that_was_tampered_with_is_bounded_and_clean() {
        let (_, whole) = message();
        let mut chance = Chance(0x6c72_706e_7300_0001);
        let interesting = [0, 1, 4, 6, 0x7f, 0x80, 0xff, b'\x1b', b'\n'];
        let mut taken = 0;
        for _ in 0..60_000 {
            let mut bytes = whole.clone();
            for _ in 0..=chance.below(3) {
                let at = chance.below(bytes.len());
                match chance.below(6) {
                    0 => bytes[at] ^= 1 << chance.below(8),
                    1 => bytes[at] = interesting[chance.below(interesting.len())],
                    2 => bytes.truncate(at + 1),
                    3 => drop(bytes.remove(at)),
                    4 => bytes.insert(at, interesting[chance.below(interesting.len())]),
                    _ => {
                        let from = chance.below(bytes.len());
                        let piece = bytes[from.min(at)..from.max(at)].to_vec();
                        bytes.extend(piece);
                    }
                }
                if bytes.is_empty() {
                    break;
                }
            }
            let Some((totals, kept)) = read(&bytes) else {
                continue;
            };
            taken += 1;
            assert!(totals.apps.len() <= MOST_APPS + 1);
            let found: Vec<Record> = super::records(kept).collect();
            // All of it was read, and means the same when it is written again.
            let mut again = vec![];
            for record in &found {
                let before = again.len();
                put_record(&mut again, record);
                assert!(again.len() - before <= RECORD);
                if let Event::Packet { rule, link, .. } = &record.event {
                    let shown = |c: char| c.is_ascii_graphic() || c == ' ';
                    assert!(
                        rule.as_str()
                            .chars()
                            .chain(link.as_str().chars())
                            .all(shown)
                    );
                }
            }
            assert_eq!(again.len(), kept.len());
            assert_eq!(super::records(&again).collect::<Vec<_>>(), found);
        }
        // Else it would show nothing.
        assert!(taken > 1000, "{taken}");
    }

    #[test]
    fn a_name_has_no_characters_that_a_terminal_obeys() {
        assert_eq!(Name::new(b"a\x1b[2J\xff").as_str(), "a??2J?");
    }
}

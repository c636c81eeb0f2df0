//! The head of a packet: as much of it as a line of the log says. Packets are made by attackers, and cut by the kernel
//! where we asked it to: whatever is not there is `None`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A packet's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Who it says it is from.
    pub source: IpAddr,
    /// Where it goes.
    pub target: IpAddr,
    /// The protocol's number (IANA "Protocol Numbers").
    pub protocol: u8,
    /// What the packet says of its length, headers and all, in bytes.
    pub length: u32,
    /// Source and target port, if the protocol has ports and they are in this packet.
    pub ports: Option<(u16, u16)>,
    /// What else there is of TCP.
    pub tcp: Option<Tcp>,
    /// ICMP's type and code.
    pub icmp: Option<(u8, u8)>,
}

/// What TCP's header says (RFC 9293, 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tcp {
    /// Of the first byte, or of the SYN.
    pub sequence: u32,
    /// What was acknowledged, if `flags` say that something was.
    pub acknowledged: u32,
    /// As on the wire.
    pub flags: u8,
    /// How many bytes follow the header.
    pub payload: u32,
}

/// `FIN`, `SYN`, `RST` and `ACK` of [`Tcp::flags`].
pub const FIN: u8 = 0x01;
/// See [`FIN`].
pub const SYN: u8 = 0x02;
/// See [`FIN`].
pub const RST: u8 = 0x04;
/// See [`FIN`].
pub const ACK: u8 = 0x10;

/// The names of all eight, from bit 0 on.
const FLAGS: [&str; 8] = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"];

/// TCP's flags by name, joined by commas.
#[must_use]
pub fn flag_names(flags: u8) -> String {
    let set = FLAGS.iter().enumerate();
    let set: Vec<_> = set
        .filter(|(bit, _)| flags & 1 << bit != 0)
        .map(|(_, name)| *name)
        .collect();
    set.join(",")
}

/// The protocol's name, or its number.
#[must_use]
pub fn protocol_name(protocol: u8) -> String {
    match protocol {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        number => number.to_string(),
    }
}

impl Packet {
    /// Reads an IPv4 or IPv6 packet.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => Self::ipv4(bytes),
            6 => Self::ipv6(bytes),
            _ => None,
        }
    }

    /// RFC 791, 3.1.
    fn ipv4(bytes: &[u8]) -> Option<Self> {
        let head: &[u8; 20] = bytes.first_chunk()?;
        let header = usize::from(head[0] & 0xf) * 4;
        let address = |at: usize| {
            let [a, b, c, d] = [head[at], head[at + 1], head[at + 2], head[at + 3]];
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        };
        let length = u32::from(u16::from_be_bytes([head[2], head[3]]));
        // Of a later fragment, what follows is no header.
        let first = u16::from_be_bytes([head[6], head[7]]) & 0x1fff == 0;
        let packet = Self {
            source: address(12),
            target: address(16),
            protocol: head[9],
            length,
            ports: None,
            tcp: None,
            icmp: None,
        };
        let rest = bytes.get(header.max(20)..).filter(|_| first);
        Some(packet.transport(rest.unwrap_or_default(), header as u32))
    }

    /// RFC 8200, 3 and 4.
    fn ipv6(bytes: &[u8]) -> Option<Self> {
        let head: &[u8; 40] = bytes.first_chunk()?;
        let address = |at: usize| {
            let octets: &[u8; 16] = head[at..]
                .first_chunk()
                .expect("24 and 8 are 16 before the end");
            IpAddr::V6(Ipv6Addr::from(*octets))
        };
        let length = 40 + u32::from(u16::from_be_bytes([head[4], head[5]]));
        let (mut next, mut at) = (head[6], 40usize);
        // Extension headers, as many as a real packet may have.
        for _ in 0..8 {
            let Some([following, size, _, low]) =
                bytes.get(at..).and_then(|b| b.first_chunk::<4>())
            else {
                break;
            };
            match next {
                // Hop by hop, routing, destination options.
                0 | 43 | 60 => at += 8 + usize::from(*size) * 8,
                // Fragment: only the first one goes on with the header that it names.
                44 => {
                    let offset = u16::from_be_bytes([bytes[at + 2], *low]) & 0xfff8;
                    at += if offset == 0 { 8 } else { bytes.len() };
                }
                // Authentication (RFC 4302).
                51 => at += 8 + usize::from(*size) * 4,
                _ => break,
            }
            next = *following;
        }
        let packet = Self {
            source: address(8),
            target: address(24),
            protocol: next,
            length,
            ports: None,
            tcp: None,
            icmp: None,
        };
        Some(packet.transport(bytes.get(at..).unwrap_or_default(), at as u32))
    }

    fn transport(mut self, bytes: &[u8], before: u32) -> Self {
        match self.protocol {
            // ICMP (RFC 792), ICMPv6 (RFC 4443).
            1 | 58 => self.icmp = bytes.first_chunk().map(|[kind, code]| (*kind, *code)),
            // TCP, UDP, DCCP, SCTP, UDP-Lite.
            6 | 17 | 33 | 132 | 136 => {
                self.ports = bytes.first_chunk().map(|[a, b, c, d]| {
                    (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]))
                });
            }
            _ => {}
        }
        if self.protocol == 6
            && let Some(head) = bytes.first_chunk::<20>()
        {
            let word = |at: usize| {
                u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
            };
            let header = u32::from(head[12] >> 4) * 4;
            self.tcp = Some(Tcp {
                sequence: word(4),
                acknowledged: word(8),
                flags: head[13],
                payload: self.length.saturating_sub(before + header),
            });
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syn() -> Vec<u8> {
        let mut packet = vec![
            0x45, 0, 0, 44, 0, 7, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ];
        packet.extend([
            0x9c, 0x40, 0x13, 0x88, 0, 0, 0, 9, 0, 0, 0, 0, 0x60, 2, 0xff, 0xff, 0, 0, 0, 0,
        ]);
        packet.extend([2, 4, 5, 0xb4]);
        packet
    }

    #[test]
    fn a_syn_is_read_in_full() {
        let packet = Packet::parse(&syn()).unwrap();
        assert_eq!(packet.source, IpAddr::from([10, 0, 0, 1]));
        assert_eq!(packet.ports, Some((40_000, 5000)));
        let tcp = packet.tcp.unwrap();
        assert_eq!((tcp.sequence, tcp.flags, tcp.payload), (9, SYN, 0));
        assert_eq!(flag_names(SYN | ACK), "syn,ack");
    }

    #[test]
    fn a_later_fragment_has_no_ports() {
        let mut packet = syn();
        packet[7] = 3;
        assert_eq!(Packet::parse(&packet).unwrap().ports, None);
    }

    #[test]
    fn extension_headers_of_ipv6_are_stepped_over() {
        let mut packet = vec![0x60, 0, 0, 0, 0, 24, 0, 64];
        packet.extend([1; 16]);
        packet.extend([2; 16]);
        packet.extend([60, 0, 0, 0, 0, 0, 0, 0]);
        packet.extend([17, 0, 0, 0, 0, 0, 0, 0]);
        packet.extend([0, 53, 0, 99, 0, 8, 0, 0]);
        let read = Packet::parse(&packet).unwrap();
        assert_eq!(
            (read.protocol, read.ports, read.length),
            (17, Some((53, 99)), 64)
        );
        packet[6] = 44;
        packet[40..44].copy_from_slice(&[17, 0, 0xff, 0xf8]);
        assert_eq!(Packet::parse(&packet).unwrap().ports, None);
    }

    #[test]
    fn whatever_is_cut_off_or_flipped_is_no_panic() {
        let mut ipv6 = vec![0x60, 0, 0, 0, 0, 24, 0, 64];
        ipv6.extend([0xff; 64]);
        for packet in [syn(), ipv6] {
            for length in 0..=packet.len() {
                let _ = Packet::parse(&packet[..length]);
            }
            for at in 0..packet.len() {
                for value in 0..=255 {
                    let mut changed = packet.clone();
                    changed[at] = value;
                    let _ = Packet::parse(&changed);
                }
            }
        }
    }
}

//! A writer of pcapng (draft-ietf-opsawg-pcapng): as much as a capture of ours needs, which is four kinds of block with two
//! options each. `pcap-file`, the library for it, had its last stable release in 2023.

use std::io::{self, Write};

/// Which way a packet went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It came by the interface.
    In,
    /// It was to leave by the interface.
    Out,
}

/// Writes blocks; what has been written so far is a whole file after each [`Writer::flush`].
pub struct Writer<W> {
    out: W,
    /// What is not written yet.
    pending: Vec<u8>,
    interfaces: u32,
}

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;

const OPT_COMMENT: u16 = 1;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_DESCRIPTION: u16 = 3;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;
const ISB_IFDROP: u16 = 5;

/// `LINKTYPE_LINUX_SLL`: a header of 16 bytes says the way and the protocol. `LINKTYPE_RAW` would do without, but libpcap
/// refuses a file with several interfaces of it: it compares that number with its own, which is another.
const COOKED: u16 = 113;
/// Its length.
const HEADER: u32 = 16;
/// More than any packet has: libpcap wants all interfaces to say the same.
const SNAPLEN: u32 = 0x4_0000;

impl<W: Write> Writer<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// What `write(2)` says.
    pub fn new(out: W) -> io::Result<Self> {
        let mut writer = Self {
            out,
            pending: vec![],
            interfaces: 0,
        };
        writer.block(SECTION, |out| {
            out.extend(0x1a2b_3c4du32.to_ne_bytes());
            out.extend(1u16.to_ne_bytes());
            out.extend(0u16.to_ne_bytes());
            out.extend((-1i64).to_ne_bytes());
            let program = concat!("lrpns ", env!("CARGO_PKG_VERSION"));
            option(out, SHB_USERAPPL, program.as_bytes());
            end_of_options(out);
        });
        writer.flush()?;
        Ok(writer)
    }

    /// Adds an interface; its number.
    pub fn interface(&mut self, name: &str, description: &str) -> u32 {
        self.block(INTERFACE, |out| {
            out.extend(COOKED.to_ne_bytes());
            out.extend([0; 2]);
            out.extend(SNAPLEN.to_ne_bytes());
            option(out, IF_NAME, name.as_bytes());
            option(out, IF_DESCRIPTION, description.as_bytes());
            // Nanoseconds.
            option(out, IF_TSRESOL, &[9]);
            end_of_options(out);
        });
        self.interfaces += 1;
        self.interfaces - 1
    }

    /// Adds a packet: when, in nanoseconds since 1970, where and which way, its whole length, and what there is of it.
    pub fn packet(
        &mut self,
        time: i64,
        (interface, way): (u32, Way),
        length: u32,
        data: &[u8],
        comment: Option<&str>,
    ) {
        let time = time.cast_unsigned();
        self.block(PACKET, |out| {
            out.extend(interface.to_ne_bytes());
            out.extend(((time >> 32) as u32).to_ne_bytes());
            out.extend((time as u32).to_ne_bytes());
            let captured = data.len() as u32;
            out.extend((captured + HEADER).to_ne_bytes());
            out.extend((length.max(captured) + HEADER).to_ne_bytes());
            let ipv6 = data.first().is_some_and(|byte| byte >> 4 == 6);
            // The way (to us, from us), no address, and EtherType.
            let mut frame = match way {
                Way::In => vec![0, 0],
                Way::Out => vec![0, 4],
            };
            frame.extend([0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            frame.extend(if ipv6 { [0x86, 0xdd] } else { [0x08, 0x00] });
            frame.extend(data);
            padded(out, &frame);
            let way: u32 = match way {
                Way::In => 1,
                Way::Out => 2,
            };
            option(out, EPB_FLAGS, &way.to_ne_bytes());
            if let Some(comment) = comment {
                option(out, OPT_COMMENT, comment.as_bytes());
            }
            end_of_options(out);
        });
    }

    /// Says how many packets an interface has lost until this time.
    pub fn lost(&mut self, time: i64, interface: u32, packets: u64) {
        let time = time.cast_unsigned();
        self.block(STATISTICS, |out| {
            out.extend(interface.to_ne_bytes());
            out.extend(((time >> 32) as u32).to_ne_bytes());
            out.extend((time as u32).to_ne_bytes());
            option(out, ISB_IFDROP, &packets.to_ne_bytes());
            end_of_options(out);
        });
    }

    /// Writes what there is.
    ///
    /// # Errors
    /// What `write(2)` says.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.write_all(&self.pending)?;
        self.pending.clear();
        self.out.flush()
    }

    fn block(&mut self, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
        let out = &mut self.pending;
        let start = out.len();
        out.extend(kind.to_ne_bytes());
        out.extend([0; 4]);
        body(out);
        let length = ((out.len() - start + 4) as u32).to_ne_bytes();
        out.extend(length);
        out[start + 4..start + 8].copy_from_slice(&length);
    }
}

fn padded(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(bytes);
    out.resize(out.len() + bytes.len().next_multiple_of(4) - bytes.len(), 0);
}

fn option(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend(kind.to_ne_bytes());
    out.extend((value.len() as u16).to_ne_bytes());
    padded(out, value);
}

fn end_of_options(out: &mut Vec<u8>) {
    out.extend([0; 4]);
}

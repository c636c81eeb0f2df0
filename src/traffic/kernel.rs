//! What the kernel tells: NFLOG's messages (include/uapi/linux/netfilter/nfnetlink_log.h) and conntrack's
//! (nfnetlink_conntrack.h), over netlink sockets that are opened and configured once, with NET_ADMIN. Reading them needs
//! nothing: the kernel asks for the capability when something is sent to it.
//!
//! Both are read into buffers of a fixed size; a message that is none is skipped.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::Flow;
use crate::netlink::{self, Attributes, FAMILY_HEADER, attributes};

/// How much of a packet is asked for where its head is all that counts: two headers with every option.
pub const HEAD: u32 = 128;

const NFULNL_MSG_CONFIG: libc::c_int = libc::NFNL_SUBSYS_ULOG << 8 | 1;
const NFULNL_MSG_PACKET: libc::c_int = libc::NFNL_SUBSYS_ULOG << 8;
const IPCTNL_MSG_CT_DELETE: libc::c_int = libc::NFNL_SUBSYS_CTNETLINK << 8 | 2;
const NFNLGRP_CONNTRACK_DESTROY: u32 = 3;

/// What the kernel gathers before it wakes a reader: this many bytes, which fill, with what it keeps beside them, the
/// pages that it takes for them…
const BATCH_BYTES: u32 = (128 << 10) - 1024;
/// …or this many packets, more than it takes to fill that…
const BATCH_PACKETS: u32 = 1000;
/// What a reader's buffer holds: more than the kernel puts into one message.
const BUFFER: usize = 128 << 10;
/// What a socket may hold for us, if `net.core.rmem_max` allows for it.
const QUEUE: usize = 4 << 20;

/// A socket that the kernel writes to.
pub struct Reader {
    socket: Socket,
    buffer: Vec<u8>,
    /// NFLOG: the number that the next message must have.
    next: u32,
    /// How many messages the kernel could not hand over; of conntrack's, how often there were some.
    pub lost: u64,
}

/// How a group of NFLOG is read.
pub struct Group {
    /// Its number.
    pub number: u16,
    /// How many bytes of a packet.
    pub snaplen: u32,
    /// How long the kernel may wait for more packets, in hundredths of a second.
    pub patience: u32,
}

impl Reader {
    fn new() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        // Before any group is joined: a socket without a port id of its own hears nothing (netlink_bind()).
        socket.bind_auto()?;
        socket.set_rx_buf_sz(QUEUE as libc::c_int)?;
        Ok(Self {
            socket,
            buffer: Vec::with_capacity(BUFFER),
            next: 0,
            lost: 0,
        })
    }

    /// Becomes the reader of an NFLOG group; there is one at most.
    ///
    /// # Errors
    /// What the kernel says: EPERM without NET_ADMIN over this network namespace, and when the group has a reader.
    pub fn nflog(group: &Group) -> io::Result<Self> {
        const NFULA_CFG_CMD: u16 = 1;
        const NFULA_CFG_MODE: u16 = 2;
        const NFULA_CFG_NLBUFSIZ: u16 = 3;
        const NFULA_CFG_TIMEOUT: u16 = 4;
        const NFULA_CFG_QTHRESH: u16 = 5;
        const NFULA_CFG_FLAGS: u16 = 6;
        const NFULNL_CFG_CMD_BIND: u8 = 1;
        const NFULNL_COPY_PACKET: u8 = 2;
        const NFULNL_CFG_F_SEQ: u16 = 1;
        let reader = Self::new()?;
        let mut request = vec![];
        let flags = libc::NLM_F_ACK;
        let about = (libc::AF_UNSPEC, libc::c_int::from(group.number));
        netlink::message(
            &mut request,
            (NFULNL_MSG_CONFIG, flags, 0),
            about,
            |out: &mut Attributes<'_>| {
                out.bytes(NFULA_CFG_CMD, &[NFULNL_CFG_CMD_BIND]);
                let mut mode = group.snaplen.to_be_bytes().to_vec();
                mode.extend([NFULNL_COPY_PACKET, 0]);
                out.bytes(NFULA_CFG_MODE, &mode);
                out.number(NFULA_CFG_NLBUFSIZ, BATCH_BYTES);
                out.number(NFULA_CFG_TIMEOUT, group.patience);
                out.number(NFULA_CFG_QTHRESH, BATCH_PACKETS);
                out.bytes(NFULA_CFG_FLAGS, &NFULNL_CFG_F_SEQ.to_be_bytes());
            },
        );
        reader.socket.send(&request, 0)?;
        // The kernel answers within the call.
        let mut answer = Vec::with_capacity(BUFFER);
        reader.socket.recv(&mut answer, libc::MSG_DONTWAIT)?;
        let refused = netlink::messages(&answer)
            .filter(|message| message.kind == libc::NLMSG_ERROR)
            .map(|message| message.error())
            .find(|number| *number != 0);
        match refused {
            Some(number) => Err(io::Error::from_raw_os_error(number)),
            None => Ok(reader),
        }
    }

    /// The connections that there are: those that began before we were there. Asks, so it needs NET_ADMIN.
    ///
    /// # Errors
    /// As [`Reader::nflog`].
    pub fn existing(mut each: impl FnMut(Forgotten)) -> io::Result<()> {
        const IPCTNL_MSG_CT_NEW: libc::c_int = libc::NFNL_SUBSYS_CTNETLINK << 8;
        const IPCTNL_MSG_CT_GET: libc::c_int = libc::NFNL_SUBSYS_CTNETLINK << 8 | 1;
        let mut reader = Self::new()?;
        let mut request = vec![];
        let kind = (IPCTNL_MSG_CT_GET, libc::NLM_F_DUMP, 0);
        netlink::message(&mut request, kind, (libc::AF_UNSPEC, 0), |_| ());
        reader.socket.send(&request, 0)?;
        loop {
            reader.buffer.clear();
            reader.socket.recv(&mut reader.buffer, 0)?;
            for message in netlink::messages(&reader.buffer) {
                match message.kind {
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_ERROR => {
                        return Err(io::Error::from_raw_os_error(message.error()));
                    }
                    IPCTNL_MSG_CT_NEW => {
                        if let Some(found) = Forgotten::parse(message.body)
                            && !found.is_over
                        {
                            each(found);
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    /// Hears of connections that the kernel forgets.
    ///
    /// # Errors
    /// As [`Reader::nflog`].
    pub fn conntrack() -> io::Result<Self> {
        let reader = Self::new()?;
        reader.socket.add_membership(NFNLGRP_CONNTRACK_DESTROY)?;
        Ok(reader)
    }

    /// One that was opened and configured by another process.
    ///
    /// # Errors
    /// It is no netlink socket.
    pub fn from_fd(fd: std::os::fd::OwnedFd) -> io::Result<Self> {
        Ok(Self {
            socket: crate::sys::netlink::socket(fd)?,
            buffer: Vec::with_capacity(BUFFER),
            next: 0,
            lost: 0,
        })
    }

    /// Names links by their numbers, in the socket's network namespace; an unknown one has an empty name.
    pub fn names(&self) -> impl Fn(u32) -> String + use<> {
        let socket = self.fd().try_clone_to_owned();
        move |number| {
            let name = socket
                .as_ref()
                .ok()
                .and_then(|socket| rustix::net::netdevice::index_to_name(socket, number).ok());
            name.unwrap_or_default()
        }
    }

    /// The socket, to wait for.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Reads once; `None` when there is nothing to read.
    fn receive(&mut self) -> io::Result<Option<usize>> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, libc::MSG_DONTWAIT) {
                Ok(got) => return Ok(Some(got)),
                Err(e) => match e.raw_os_error() {
                    Some(libc::EAGAIN) => return Ok(None),
                    // The queue was full; what is lost of NFLOG shows in the numbers, of conntrack nowhere else.
                    Some(libc::ENOBUFS) => {
                        self.lost += u64::from(self.next == 0);
                    }
                    Some(libc::EINTR) => {}
                    _ => return Err(e),
                },
            }
        }
    }

    /// Hands on the packets that one message of NFLOG brings; `false` when there was none.
    ///
    /// # Errors
    /// What `recvmsg(2)` says, but for a full queue, which is counted.
    pub fn packets(&mut self, mut each: impl FnMut(Logged<'_>)) -> io::Result<bool> {
        if self.receive()?.is_none() {
            return Ok(false);
        }
        let messages = netlink::messages(&self.buffer);
        for message in messages.filter(|message| message.kind == NFULNL_MSG_PACKET) {
            let Some(logged) = Logged::parse(message.body) else {
                continue;
            };
            if let Some(number) = logged.number {
                self.lost += u64::from(number.wrapping_sub(self.next));
                self.next = number.wrapping_add(1);
            }
            each(logged);
        }
        Ok(true)
    }

    /// Hands on the connections that one message of conntrack is about; `false` when there was none.
    ///
    /// # Errors
    /// As [`Reader::packets`].
    pub fn forgotten(&mut self, mut each: impl FnMut(Forgotten)) -> io::Result<bool> {
        if self.receive()?.is_none() {
            return Ok(false);
        }
        netlink::messages(&self.buffer)
            .filter(|message| message.kind == IPCTNL_MSG_CT_DELETE)
            .filter_map(|message| Forgotten::parse(message.body))
            .for_each(&mut each);
        Ok(true)
    }
}

fn be32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|b| u32::from_be_bytes(*b))
}

fn be64(bytes: &[u8]) -> Option<u64> {
    bytes.first_chunk().map(|b| u64::from_be_bytes(*b))
}

/// A packet that a rule has logged.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Logged<'a> {
    /// The number of the link that it came by; 0 if we have sent it.
    pub from_link: u32,
    /// The number of the link that it would leave by; 0 if that isn't known yet.
    pub to_link: u32,
    /// What the rule calls itself.
    pub rule: &'a str,
    /// From the network header on, as much as was asked for.
    pub payload: &'a [u8],
    /// What the rule has marked it with; 0 is none.
    pub mark: u32,
    /// When the kernel saw it first, in nanoseconds since 1970, if it was asked for times.
    pub time: Option<i64>,
    pub(crate) number: Option<u32>,
}

impl<'a> Logged<'a> {
    pub(crate) fn parse(body: &'a [u8]) -> Option<Self> {
        const NFULA_MARK: u16 = 2;
        const NFULA_TIMESTAMP: u16 = 3;
        const NFULA_IFINDEX_INDEV: u16 = 4;
        const NFULA_IFINDEX_OUTDEV: u16 = 5;
        const NFULA_PAYLOAD: u16 = 9;
        const NFULA_PREFIX: u16 = 10;
        const NFULA_SEQ: u16 = 12;
        let mut logged = Self::default();
        for (kind, value) in attributes(body.get(FAMILY_HEADER..)?) {
            match kind {
                NFULA_TIMESTAMP => {
                    let time = be64(value).zip(value.get(8..).and_then(be64));
                    logged.time = time.and_then(|(seconds, micros)| {
                        let nanos = seconds.checked_mul(1_000_000)?.checked_add(micros)?;
                        i64::try_from(nanos.checked_mul(1000)?).ok()
                    });
                }
                NFULA_MARK => logged.mark = be32(value).unwrap_or_default(),
                NFULA_IFINDEX_INDEV => logged.from_link = be32(value).unwrap_or_default(),
                NFULA_IFINDEX_OUTDEV => logged.to_link = be32(value).unwrap_or_default(),
                NFULA_PAYLOAD => logged.payload = value,
                NFULA_PREFIX => {
                    let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
                    logged.rule = std::str::from_utf8(text).unwrap_or_default();
                }
                NFULA_SEQ => logged.number = be32(value),
                _ => {}
            }
        }
        Some(logged)
    }
}

/// A connection that conntrack has no entry for any more, as the forward hook saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forgotten {
    /// The protocol's number.
    pub protocol: u8,
    /// Who began it.
    pub client: (IpAddr, u16),
    /// Who answers for it, behind every translation.
    pub server: (IpAddr, u16),
    /// Packets and bytes from the client; the bytes with all headers from the network's on.
    pub from_client: (u64, u64),
    /// The same to the client.
    pub to_client: (u64, u64),
    /// TCP: both have closed, or one has reset it.
    pub is_over: bool,
}

impl Forgotten {
    /// Which connection it was.
    #[must_use]
    pub fn flow(&self) -> Flow {
        Flow {
            protocol: self.protocol,
            client: SocketAddr::new(self.client.0, self.client.1),
            server: SocketAddr::new(self.server.0, self.server.1),
        }
    }

    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        const CTA_TUPLE_ORIG: u16 = 1;
        const CTA_TUPLE_REPLY: u16 = 2;
        const CTA_PROTOINFO: u16 = 4;
        const CTA_COUNTERS_ORIG: u16 = 9;
        const CTA_COUNTERS_REPLY: u16 = 10;
        let mut is_over = false;
        let (mut client, mut server) = (None, None);
        let (mut from_client, mut to_client) = ((0, 0), (0, 0));
        for (kind, value) in attributes(body.get(FAMILY_HEADER..)?) {
            match kind {
                CTA_TUPLE_ORIG => client = netlink::end(value, netlink::SOURCE),
                CTA_TUPLE_REPLY => server = netlink::end(value, netlink::SOURCE),
                CTA_PROTOINFO => is_over = tcp_state(value).is_some_and(|state| state >= LAST_ACK),
                CTA_COUNTERS_ORIG => from_client = counters(value),
                CTA_COUNTERS_REPLY => to_client = counters(value),
                _ => {}
            }
        }
        let ((protocol, client), (_, server)) = (client?, server?);
        Some(Self {
            protocol,
            client,
            server,
            from_client,
            to_client,
            is_over,
        })
    }
}

/// `TCP_CONNTRACK_LAST_ACK` of nf_conntrack_tcp.h; TIME_WAIT and CLOSE follow.
const LAST_ACK: u8 = 6;

/// TCP's state, if it is TCP.
fn tcp_state(protoinfo: &[u8]) -> Option<u8> {
    const CTA_PROTOINFO_TCP: u16 = 1;
    const CTA_PROTOINFO_TCP_STATE: u16 = 1;
    let (_, tcp) = attributes(protoinfo).find(|(kind, _)| *kind == CTA_PROTOINFO_TCP)?;
    let (_, state) = attributes(tcp).find(|(kind, _)| *kind == CTA_PROTOINFO_TCP_STATE)?;
    state.first().copied()
}

/// Packets and bytes.
fn counters(value: &[u8]) -> (u64, u64) {
    let mut counted = (0, 0);
    for (kind, value) in attributes(value) {
        match kind {
            1 => counted.0 = be64(value).unwrap_or_default(),
            2 => counted.1 = be64(value).unwrap_or_default(),
            _ => {}
        }
    }
    counted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destroyed() -> Vec<u8> {
        let mut body = vec![2, 0, 0, 0];
        let out = &mut Attributes(&mut body);
        for (tuple, address, port) in [(1, [10, 0, 0, 9], 40_000u16), (2, [172, 18, 0, 23], 5000)] {
            out.nest(tuple, |out| {
                out.nest(1, |out| out.bytes(1, &address));
                out.nest(2, |out| {
                    out.bytes(1, &[17]);
                    out.bytes(2, &port.to_be_bytes());
                });
            });
        }
        for (counters, packets) in [(9, 3u64), (10, 2)] {
            out.nest(counters, |out| {
                out.bytes(1, &packets.to_be_bytes());
                out.bytes(2, &(packets * 100).to_be_bytes());
            });
        }
        body
    }

    fn logged() -> Vec<u8> {
        let mut body = vec![2, 0, 0, 2];
        let out = &mut Attributes(&mut body);
        out.text(10, "guard/drop-rest");
        out.number(2, 0x0102_0304);
        out.number(4, 7);
        out.number(12, 41);
        out.bytes(3, &[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2]);
        out.bytes(9, &[0x45, 0]);
        body
    }

    #[test]
    fn a_forgotten_connection_is_read() {
        let read = Forgotten::parse(&destroyed()).unwrap();
        assert_eq!(read.client, ([10, 0, 0, 9].into(), 40_000));
        assert_eq!(read.server, ([172, 18, 0, 23].into(), 5000));
        assert_eq!((read.from_client, read.to_client), ((3, 300), (2, 200)));
    }

    #[test]
    fn a_logged_packet_is_read() {
        let body = logged();
        let read = Logged::parse(&body).unwrap();
        assert_eq!(read.rule, "guard/drop-rest");
        assert_eq!((read.from_link, read.number), (7, Some(41)));
        assert_eq!(read.mark, 0x0102_0304);
        assert_eq!(read.time, Some(1_000_002_000));
        assert_eq!(read.payload, [0x45, 0]);
    }

    #[test]
    fn whatever_is_cut_off_or_flipped_is_no_panic() {
        for body in [destroyed(), logged()] {
            for length in 0..=body.len() {
                let _ = Forgotten::parse(&body[..length]);
                let _ = Logged::parse(&body[..length]);
            }
            for at in 0..body.len() {
                for value in 0..=255 {
                    let mut changed = body.clone();
                    changed[at] = value;
                    let _ = Forgotten::parse(&changed);
                    let _ = Logged::parse(&changed);
                }
            }
        }
    }
}

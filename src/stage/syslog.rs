//! What an app says by syslog(3): from its `/dev/log` to the pipe that the supervisor makes lines of.
//!
//! # Theory of operation
//!
//! The app's pid 1 reads the socket, and nobody outside: whatever comes with a datagram, of whatever kind, ends in the app.
//! A descriptor that is sent along is refused by the kernel from 6.16 on, and before that closed here, which may take as long
//! as its sender wants (`SO_LINGER` of socket(7)): pid 1 is the app's own to delay.
//!
//! A message is read when the one before it is written, and writing never waits: while the supervisor reads slowly (the app is
//! over its budget), messages stay in the socket, which takes a few, and their senders wait, as they would for a pipe.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::{Errno, IoSliceMut};
use rustix::net::{RecvAncillaryBuffer, RecvFlags, ReturnFlags};

/// The longest message that is taken whole, in bytes; of a longer one the rest is left out, and the line says so.
const LONGEST: usize = 8 << 10;
/// How many are carried before pid 1 looks at what else has happened.
const AT_ONCE: usize = 64;
/// How long the supervisor may take to read the last ones.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

/// Has the kernel refuse whoever sends a descriptor along; one before 6.16 does not know that.
///
/// # Errors
/// What else `setsockopt(2)` says.
pub(super) fn refuse_descriptors(socket: &OwnedFd) -> nix::Result<()> {
    match nix::sys::socket::setsockopt(socket, crate::sys::socket::PassRights, &false) {
        Err(nix::Error::ENOPROTOOPT) => Ok(()),
        done => done,
    }
}

/// The socket, the pipe, and what is between them.
pub(super) struct Syslog {
    /// Both; none once nobody reads the pipe any more.
    ends: Option<(OwnedFd, OwnedFd)>,
    /// What is not written yet.
    line: Vec<u8>,
    /// What pid 1 says itself, after what was said by then.
    own: VecDeque<String>,
    /// How a line ends: the user's terminal may hand on what it is given as it is.
    end: &'static [u8],
}

impl Syslog {
    /// From a socket to a pipe, which both must have O_NONBLOCK.
    pub(super) fn new(socket: OwnedFd, pipe: OwnedFd, terminal: bool) -> Self {
        Self {
            ends: Some((socket, pipe)),
            line: vec![],
            own: VecDeque::new(),
            end: if terminal { b"\r\n" } else { b"\n" },
        }
    }

    /// The same, of which nobody reads anything: a test's weakness.
    pub(super) fn unread(mut self) -> Self {
        std::mem::forget(self.ends.take());
        self
    }

    /// Has these lines go the same way, behind what was said until now.
    pub(super) fn say(&mut self, lines: Vec<String>) {
        self.own.extend(lines);
    }

    /// What to wait for.
    pub(super) fn awaits(&self) -> Option<PollFd<'_>> {
        let (socket, pipe) = self.ends.as_ref()?;
        Some(match self.line.is_empty() && self.own.is_empty() {
            true => PollFd::new(socket, PollFlags::IN),
            false => PollFd::new(pipe, PollFlags::OUT),
        })
    }

    /// Carries what is there, without waiting; whether there may be more that can be carried now.
    pub(super) fn carry(&mut self) -> bool {
        for _ in 0..AT_ONCE {
            let Some((socket, pipe)) = &self.ends else {
                return false;
            };
            if self.line.is_empty() {
                let mut message = [0; LONGEST];
                match receive(socket, &mut message) {
                    Ok((length, whole)) => {
                        line(&message[..length], whole, self.end, &mut self.line)
                    }
                    Err(Errno::INTR) => {}
                    Err(_) => match self.own.pop_front() {
                        Some(own) => line(own.as_bytes(), true, self.end, &mut self.line),
                        None => return false,
                    },
                }
                continue;
            }
            match rustix::io::write(pipe, &self.line) {
                Ok(written) => drop(self.line.drain(..written)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return false,
                Err(_) => self.ends = None,
            }
        }
        true
    }

    /// Carries what is left when nobody can send any more: a few messages at most, the socket takes no more.
    pub(super) fn finish(mut self) {
        let limit = Timespec::try_from(ENDS_WITHIN).unwrap_or_default();
        loop {
            while self.carry() {}
            let Some((_, pipe)) = self.ends.as_ref().filter(|_| !self.line.is_empty()) else {
                return;
            };
            let mut room = [PollFd::new(pipe, PollFlags::OUT)];
            if !matches!(
                rustix::event::poll(&mut room, Some(&limit)),
                Ok(1..) | Err(Errno::INTR)
            ) {
                return;
            }
        }
    }
}

/// The next message, how long it is, and whether that is all of it. There is no room for a descriptor: none is taken.
fn receive(socket: &OwnedFd, message: &mut [u8]) -> Result<(usize, bool), Errno> {
    let mut nothing: [MaybeUninit<u8>; 0] = [];
    let mut nothing = RecvAncillaryBuffer::new(&mut nothing);
    let mut into = [IoSliceMut::new(message)];
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let got = rustix::net::recvmsg(socket, &mut into, &mut nothing, flags)?;
    Ok((got.bytes, !got.flags.contains(ReturnFlags::TRUNC)))
}

const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv",
    "ftp", "ntp", "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4",
    "local5", "local6", "local7",
];
const SEVERITIES: [&str; 8] = [
    "emerg", "alert", "crit", "err", "warning", "notice", "info", "debug",
];

/// A message as a line: `<30>Nov 29 18:40:01 dnsmasq[12]: started` is `daemon.info dnsmasq[12]: started`, since the log has
/// its own time. What has no priority is taken as it is.
fn line(message: &[u8], whole: bool, end: &[u8], line: &mut Vec<u8>) {
    let mut text = message;
    if let Some((facility, severity, rest)) = priority(message) {
        line.extend_from_slice(format!("{facility}.{severity} ").as_bytes());
        text = rest;
    }
    if is_time(text) {
        text = &text[TIME..];
    }
    let is_end = |byte: &u8| matches!(byte, b'\n' | b'\r' | 0);
    let length = text.len() - text.iter().rev().take_while(|byte| is_end(byte)).count();
    line.extend_from_slice(&text[..length]);
    if !whole {
        line.extend_from_slice(format!(" [longer than {LONGEST} bytes]").as_bytes());
    }
    if !line.is_empty() {
        line.extend_from_slice(end);
    }
}

/// `<N>` (RFC 3164, RFC 5424).
fn priority(message: &[u8]) -> Option<(&'static str, &'static str, &[u8])> {
    let rest = message.strip_prefix(b"<")?;
    let end = rest.iter().take(4).position(|byte| *byte == b'>')?;
    if !rest[..end].iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: usize = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
    let facility = FACILITIES.get(number / 8)?;
    Some((facility, SEVERITIES[number % 8], &rest[end + 1..]))
}

/// How long `Nov 29 18:40:01 ` is.
const TIME: usize = 16;

fn is_time(text: &[u8]) -> bool {
    let of_digits = |range: std::ops::Range<usize>| text[range].iter().all(u8::is_ascii_digit);
    text.len() >= TIME
        && text[..3].iter().all(u8::is_ascii_alphabetic)
        && [(3, b' '), (6, b' '), (9, b':'), (12, b':'), (15, b' ')]
            .iter()
            .all(|(at, byte)| text[*at] == *byte)
        && [5..6, 7..9, 10..12, 13..15].into_iter().all(of_digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(message: &[u8]) -> String {
        let mut text = vec![];
        line(message, true, b"\n", &mut text);
        String::from_utf8_lossy(&text).into_owned()
    }

    #[test]
    fn a_message_is_a_line_without_its_time_and_with_its_priority_in_words() {
        for (message, expected) in [
            (
                "<30>Nov 29 18:40:01 dnsmasq[12]: started",
                "daemon.info dnsmasq[12]: started\n",
            ),
            (
                "<13>Nov  9 08:40:01 root: hello\n\0",
                "user.notice root: hello\n",
            ),
            ("<191>x", "local7.debug x\n"),
            (
                "<165>1 2026-11-29T18:40:01Z h a - - - m",
                "local4.notice 1 2026-11-29T18:40:01Z h a - - - m\n",
            ),
            ("<192>x", "<192>x\n"),
            ("<>x", "<>x\n"),
            ("<-1>x", "<-1>x\n"),
            ("<+30>x", "<+30>x\n"),
            ("<30", "<30\n"),
            ("two\nlines", "two\nlines\n"),
            ("\n", ""),
            ("", ""),
        ] {
            assert_eq!(of(message.as_bytes()), expected, "{message}");
        }
        assert_eq!(of(b"<3>\xff\0x"), "kern.err \u{fffd}\0x\n");
        let mut text = vec![];
        line(b"<14>long", false, b"\r\n", &mut text);
        assert_eq!(text, b"user.info long [longer than 8192 bytes]\r\n");
    }
}

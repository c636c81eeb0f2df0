//! What an app was refused by its seccomp filter, and of ports by Landlock, for `--explain`.
//!
//! # Theory of operation
//!
//! The filter of an app that is explained asks (`SECCOMP_RET_USER_NOTIF`, seccomp_unotify(2)) where another's answers with an
//! error number, and where a process would become somebody else. The supervisor is asked: it notes the call's number and
//! its arguments as they are, and gives the answer that the profile has. So an app that is explained makes no call that it
//! could not make otherwise.
//!
//! It asks at each bind(2) and connect(2) as well, which the kernel then makes or refuses as always. What the argument points
//! to may change meanwhile: so of the address that is read there nothing is decided, it is only told. What else arguments
//! point to is not read.
//!
//! The app waits for each answer, and the supervisor for nothing: one answer at a time, between its other work. What is kept
//! is bounded, however often and whatever the app asks.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::confine::landlock::{self, Support};
use crate::confine::seccomp::{self, Profile};
use crate::sys;
use crate::text::harmless;

/// No more different calls are kept of all apps together.
const MOST: usize = 64;

/// What is kept of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The app.
    pub app: String,
    /// The call's number.
    pub number: u32,
    /// Those of its first three arguments that tell what was wanted; else 0.
    pub args: [u64; 3],
    /// All of the first such call's arguments, of which those that are addresses say nothing.
    pub first: [u64; 6],
    /// What it got; `None` for what was left to the kernel.
    pub errno: Option<u16>,
    /// Of a port that Landlock refuses: where it would bind, or connect to.
    pub at: Option<SocketAddr>,
    /// How the program calls itself that made it first.
    pub by: String,
    /// How often.
    pub times: u64,
}

/// Whose filter it is that asks, and what it has.
#[derive(Debug)]
pub struct Explains {
    /// The app.
    pub app: String,
    /// By which it is answered.
    pub profile: Profile,
    /// What Landlock leaves it of ports.
    pub confined: landlock::App,
}

/// All that was refused so far, the latest last; the same for all clones.
#[derive(Debug, Clone, Default)]
pub struct Refusals(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    calls: Vec<Refused>,
    /// How many calls more there were than are kept.
    more: u64,
}

impl Refusals {
    /// All of them, the latest last, and how many calls more there were.
    #[must_use]
    pub fn all(&self) -> (Vec<Refused>, u64) {
        let kept = self.lock();
        (kept.calls.clone(), kept.more)
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(
        &self,
        app: &str,
        asked: &sys::seccomp::Asked,
        errno: Option<u16>,
        at: Option<SocketAddr>,
    ) {
        let args = telling(asked.number, asked.args);
        let mut kept = self.lock();
        let same = |call: &Refused| {
            call.app == app && call.number == asked.number && call.args == args && call.at == at
        };
        if let Some(at) = kept.calls.iter().position(same) {
            let mut call = kept.calls.remove(at);
            call.times += 1;
            kept.calls.push(call);
        } else if kept.calls.len() < MOST {
            let by = std::fs::read_to_string(format!("/proc/{}/comm", asked.thread));
            kept.calls.push(Refused {
                app: app.to_owned(),
                number: asked.number,
                args,
                first: asked.args,
                errno,
                at,
                by: harmless(by.unwrap_or_default().trim(), 16),
                times: 1,
            });
        } else {
            kept.more += 1;
        }
    }

    /// Answers what the filter of `app` asks, as `profile` has it, until the last of its processes has ended; what `confined`
    /// leaves it of ports is Landlock's answer. Should be called inside the runtime.
    ///
    /// # Errors
    /// What `epoll_ctl(2)` says.
    pub fn watch(&self, explains: Explains, listener: OwnedFd) -> io::Result<()> {
        let Explains {
            app,
            profile,
            confined,
        } = explains;
        let support = Support::of_this_kernel();
        let listener = sys::watch::owned(listener)?;
        let refusals = self.clone();
        tokio::spawn(async move {
            while let Ok(mut ready) = listener.readable().await {
                match waits(listener.get_ref()) {
                    Ok(Some(true)) => {}
                    Ok(Some(false)) => {
                        ready.clear_ready();
                        continue;
                    }
                    // Nobody is left who could ask.
                    Ok(None) | Err(_) => break,
                }
                match sys::seccomp::asked(listener.as_fd()) {
                    Ok(asked) => {
                        let errno = seccomp::explained(
                            &profile,
                            asked.architecture,
                            asked.number,
                            asked.args,
                        );
                        let name = seccomp::name(asked.number);
                        let of_a_port =
                            name.is_some_and(|name| seccomp::OF_ADDRESSES.contains(&name));
                        match errno {
                            // One that is answered as if it were done is nothing that it lacks.
                            Some(0) => {}
                            None if of_a_port => {
                                let at = address(listener.get_ref(), &asked).filter(|at| {
                                    let (binds, connects) = confined.allows(at.port(), support);
                                    match name {
                                        Some("bind") => !binds,
                                        _ => !connects,
                                    }
                                });
                                if at.is_some() {
                                    let refused = Some(libc::EACCES as u16);
                                    refusals.note(&app, &asked, refused, at);
                                }
                            }
                            errno => refusals.note(&app, &asked, errno, None),
                        }
                        // It may have been ended meanwhile.
                        let _ = sys::seccomp::answer(listener.as_fd(), asked.id, errno);
                    }
                    Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
                    Err(_) => break,
                }
                tokio::task::yield_now().await;
            }
        });
        Ok(())
    }
}

/// Whether a call waits; `None` once nobody can make any. The kernel counts what it has announced, also if who made the call
/// has ended since: so the one who listens and has seen that a call waits does not wait for it (recv_wait_event(),
/// kernel/seccomp.c).
fn waits(listener: &OwnedFd) -> io::Result<Option<bool>> {
    let mut poll = [PollFd::new(listener, PollFlags::IN)];
    match rustix::event::poll(&mut poll, Some(&Timespec::default())) {
        Ok(0) | Err(rustix::io::Errno::INTR) => Ok(Some(false)),
        Ok(_) if poll[0].revents().contains(PollFlags::IN) => Ok(Some(true)),
        Ok(_) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Which address of TCP a call is about; `None` for other sockets, and where that can't be read. The process that has asked
/// may have ended: so it is looked at again once what is read is open.
fn address(listener: &OwnedFd, asked: &sys::seccomp::Asked) -> Option<SocketAddr> {
    /// As long as an address of IPv6 is, and no longer.
    const LONGEST: usize = 28;
    let descriptor = u32::try_from(asked.args[0]).ok()?;
    let mut protocol = [0; 16];
    // Sockets have the name of their protocol as an attribute (sockfs_xattr_get(), net/socket.c).
    let socket = format!("/proc/{}/fd/{descriptor}", asked.thread);
    let length = rustix::fs::getxattr(socket, "system.sockprotoname", &mut protocol).ok()?;
    let protocol = protocol[..length].split(|byte| *byte == 0).next()?;
    if !matches!(protocol, b"TCP" | b"TCPv6") {
        return None;
    }
    let memory = File::open(format!("/proc/{}/mem", asked.thread)).ok()?;
    if !sys::seccomp::still_waits(listener.as_fd(), asked.id) {
        return None;
    }
    let length = usize::try_from(asked.args[2]).ok()?.min(LONGEST);
    let mut bytes = [0; LONGEST];
    memory
        .read_exact_at(&mut bytes[..length], asked.args[1])
        .ok()?;
    read_address(&bytes[..length])
}

/// A `struct sockaddr_in` or `sockaddr_in6`, as the kernel reads it.
fn read_address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(*bytes.first_chunk()?));
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
    let ip = match family {
        libc::AF_INET => IpAddr::from(*bytes.get(4..)?.first_chunk::<4>()?),
        libc::AF_INET6 => IpAddr::from(*bytes.get(8..)?.first_chunk::<16>()?).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// The arguments that tell one wish from another, where the number alone does not.
fn telling(number: u32, args: [u64; 6]) -> [u64; 3] {
    let low = |at: usize| args[at] & u64::from(u32::MAX);
    match seccomp::name(number) {
        Some("socket") => [low(0), low(1), low(2)],
        Some("prctl" | "unshare" | "clone" | "personality" | "keyctl" | "bpf") => [low(0), 0, 0],
        Some("ioctl" | "setns" | "fcntl") => [0, low(1), 0],
        Some("setsockopt") => [0, low(1), low(2)],
        Some(
            "setuid" | "setgid" | "setreuid" | "setregid" | "setresuid" | "setresgid" | "setgroups",
        ) => {
            let many = match seccomp::name(number) {
                Some("setresuid" | "setresgid") => 3,
                Some("setreuid" | "setregid") => 2,
                _ => 1,
            };
            [0, 1, 2].map(|at| if at < many { low(at) } else { 0 })
        }
        Some("chown" | "fchown" | "lchown") => [0, low(1), low(2)],
        Some("fchownat") => [0, low(2), low(3)],
        _ => [0; 3],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_the_kernel_does_and_no_further_than_it_goes() {
        let four = u16::try_from(libc::AF_INET).unwrap().to_ne_bytes();
        let six = u16::try_from(libc::AF_INET6).unwrap().to_ne_bytes();
        let of = |family: [u8; 2], rest: &[u8]| [&family[..], &[0x11, 0x11], rest].concat();
        let mapped = [&[0; 14][..], &[255, 255, 192, 0, 2, 9], &[0; 4]].concat();
        let cases = [
            (of(four, &[0, 0, 0, 0]), Some("0.0.0.0:4369")),
            (of(four, &[127, 0, 0, 1, 9, 9]), Some("127.0.0.1:4369")),
            (of(six, &[0; 24]), Some("[::]:4369")),
            (of(six, &mapped), Some("192.0.2.9:4369")),
            (of(four, &[0, 0, 0]), None),
            (of(six, &[0; 19]), None),
            (of([1, 0], &[0; 24]), None),
            (vec![2], None),
            (vec![], None),
        ];
        for (bytes, at) in cases {
            let read = read_address(&bytes).map(|at| at.to_string());
            assert_eq!(read.as_deref(), at, "{bytes:?}");
        }
    }
}

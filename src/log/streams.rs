//! An app's three standard streams, and for `lrpns run` what joins them to those of its user.
//!
//! # Theory of operation
//!
//! No descriptor of the user's goes into an app, bytes do. One that is open on the host is a way around the app's root (a
//! directory, or a file that is open to all by `/proc/self/fd`), what a terminal is told to take for typed goes to the
//! shell that comes next (TIOCSTI, CVE-2017-5226), and O_NONBLOCK is set for all who have the same file open. So an app
//! has a pipe for each stream, or a pseudo-terminal in the place of those that are terminals, if that is asked for.
//!
//! What it says by syslog(3) its pid 1 writes to one more pipe (`stage::syslog`); for the user that is standard error.
//!
//! Nobody is waited for. What an app writes is read as fast as its user takes it, and no faster: then its pipe fills, and
//! the app waits. What its user writes is read as fast as the app takes it. What is on its way is one [`CHUNK`] each.
//!
//! Standard input is opened once more by `/proc/self/fd` for its O_NONBLOCK, as [`crate::log::screen`] does with standard output.
#![forbid(unsafe_code)]

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FileType, OFlags};
use rustix::net::RecvFlags;
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Termios};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use crate::log::Stream;
use crate::log::screen::{self, Output};
use crate::sys::watch;

/// How much of a stream is on its way, in bytes.
const CHUNK: usize = 16 << 10;

/// The app's ends.
pub struct Streams {
    /// Standard input; without one it is the null device.
    pub stdin: Option<OwnedFd>,
    /// Standard output.
    pub out: OwnedFd,
    /// Standard error.
    pub err: OwnedFd,
    /// Where what comes to its `/dev/log` goes, line by line; writing to it never waits.
    pub syslog: OwnedFd,
    /// One of the three is a pseudo-terminal, and is to be the command's own.
    pub terminal: bool,
}

/// Two ends: where it is read, where it is written to.
pub type Pipe = (OwnedFd, OwnedFd);

/// How many pipes the streams of an app take at most.
pub const PIPES: usize = 4;

/// Our end of what an app writes.
pub struct Said {
    /// As what it is logged.
    pub stream: Stream,
    fd: AsyncFd<OwnedFd>,
    to: Option<(Arc<Attached>, Stream)>,
}

impl Said {
    /// The next bytes; none at its end.
    ///
    /// # Errors
    /// What `read(2)` says; EIO when nobody has a pseudo-terminal open any more (pty(7)).
    pub async fn read(&self, chunk: &mut [u8]) -> io::Result<usize> {
        let read = |fd: &OwnedFd| Ok(rustix::io::read(fd, &mut *chunk)?);
        self.fd.async_io(Interest::READABLE, read).await
    }

    /// Whether somebody is handed every byte of it: then nobody else decides how fast it is read.
    #[must_use]
    pub fn has_user(&self) -> bool {
        self.to.is_some()
    }

    /// Hands bytes on to the user, if there is one; returns when all are written.
    ///
    /// # Errors
    /// What `write(2)` says; EPIPE when nobody reads any more.
    pub async fn pass_on(&self, bytes: &[u8]) -> io::Result<()> {
        match &self.to {
            Some((user, Stream::Err)) => user.err.write_all(bytes).await,
            Some((user, _)) => user.out.write_all(bytes).await,
            None => Ok(()),
        }
    }
}

/// Streams of which nobody but the log hears, on these [`PIPES`].
///
/// # Errors
/// What `epoll_ctl(2)` says; [`io::ErrorKind::InvalidInput`] for too few pipes.
pub fn alone(pipes: Vec<Pipe>) -> io::Result<(Streams, Vec<Said>)> {
    let mut said = vec![];
    let mut pipes = pipes.into_iter();
    let mut pipe = |stream| {
        let (fd, theirs) = pipes.next().ok_or(io::ErrorKind::InvalidInput)?;
        said.push(Said {
            stream,
            fd: nonblocking(fd)?,
            to: None,
        });
        Ok::<_, io::Error>(theirs)
    };
    let (out, err, syslog) = (pipe(Stream::Out)?, pipe(Stream::Err)?, pipe(Stream::Err)?);
    rustix::io::ioctl_fionbio(&syslog, true)?;
    let streams = Streams {
        stdin: None,
        out,
        err,
        syslog,
        terminal: false,
    };
    Ok((streams, said))
}

/// The streams of this process, for an app.
pub struct Attached {
    stdin: Option<Input>,
    out: Output,
    err: Output,
    /// Which of the three are terminals, and get a pseudo-terminal in their place.
    terminals: [bool; 3],
    raw: Mutex<Option<Raw>>,
    /// What carries standard input to the app that is there now.
    carrying: Mutex<JoinSet<()>>,
}

impl Attached {
    /// Attaches standard input, output and error of this process. With `tty` the app gets a pseudo-terminal in the place
    /// of each that is a terminal; else standard input is left alone if it is a terminal, unless `interactive`.
    ///
    /// # Errors
    /// What `dup(2)` or `fstat(2)` says.
    pub fn new(tty: bool, interactive: bool) -> io::Result<Self> {
        let terminals = terminals();
        let reads = tty || interactive || !terminals[0];
        Ok(Self {
            stdin: reads.then(|| Input::of(io::stdin())).transpose()?,
            out: Output::of(io::stdout())?,
            err: Output::of(io::stderr())?,
            terminals: if tty { terminals } else { [false; 3] },
            raw: Mutex::default(),
            carrying: Mutex::default(),
        })
    }

    /// Streams on these [`PIPES`] for an app that starts now; one that was there before gets nothing more. Called within a tokio runtime.
    ///
    /// # Errors
    /// What `openpt(3)` or `epoll_ctl(2)` says; [`io::ErrorKind::InvalidInput`] for too few pipes.
    pub fn streams(self: &Arc<Self>, pipes: Vec<Pipe>) -> io::Result<(Streams, Vec<Said>)> {
        let mut pipes = pipes.into_iter();
        let mut next = || pipes.next().ok_or(io::ErrorKind::InvalidInput);
        let mut carrying = JoinSet::new();
        let mut said = vec![];
        let pty = match shown_at(self.terminals) {
            None => None,
            Some(at) => {
                let (ours, theirs) = pseudo_terminal()?;
                let to = Some((Arc::clone(self), at));
                said.push(Said {
                    stream: at,
                    fd: nonblocking(ours.try_clone()?)?,
                    to,
                });
                carrying.spawn(follow_size(ours.try_clone()?));
                Some((ours, theirs))
            }
        };
        let mut pipe = |stream| {
            let (fd, theirs) = next()?;
            let to = Some((Arc::clone(self), stream));
            said.push(Said {
                stream,
                fd: nonblocking(fd)?,
                to,
            });
            Ok::<_, io::Error>(theirs)
        };
        let mut end = |index: usize, stream| match &pty {
            Some((_, theirs)) if self.terminals[index] => theirs.try_clone(),
            _ => pipe(stream),
        };
        let (out, err) = (end(1, Stream::Out)?, end(2, Stream::Err)?);
        let syslog = pipe(Stream::Err)?;
        rustix::io::ioctl_fionbio(&syslog, true)?;
        let stdin = match &pty {
            Some((ours, theirs)) if self.terminals[0] => {
                // Not before: until there is an app, Ctrl-C is ours to hear.
                let mut raw = self.raw.lock().unwrap_or_else(PoisonError::into_inner);
                if raw.is_none() {
                    *raw = Some(Raw::set()?);
                }
                let to = nonblocking(ours.try_clone()?)?;
                carrying.spawn(Arc::clone(self).carry(to));
                Some(theirs.try_clone()?)
            }
            _ if self.stdin.is_some() => {
                let (theirs, ours) = next()?;
                carrying.spawn(Arc::clone(self).carry(nonblocking(ours)?));
                Some(theirs)
            }
            _ => None,
        };
        *self.carrying() = carrying;
        let streams = Streams {
            stdin,
            out,
            err,
            syslog,
            terminal: pty.is_some(),
        };
        Ok((streams, said))
    }

    /// Gives the terminal back as it was.
    pub fn detach(&self) {
        drop(
            self.raw
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
    }

    /// Hands standard input on until its end, or until nobody reads it any more.
    async fn carry(self: Arc<Self>, to: AsyncFd<OwnedFd>) {
        let Some(stdin) = &self.stdin else { return };
        let mut chunk = vec![0; CHUNK];
        loop {
            let mut bytes: &[u8] = match stdin.read(&mut chunk).await {
                Ok(0) => return,
                Ok(got) => &chunk[..got],
                Err(e) => {
                    let text = format!("lrpns: read standard input: {e}\n");
                    let _ = self.err.write_all(text.as_bytes()).await;
                    return;
                }
            };
            while !bytes.is_empty() {
                let write = |fd: &OwnedFd| Ok(rustix::io::write(fd, bytes)?);
                match to.async_io(Interest::WRITABLE, write).await {
                    Ok(written) => bytes = &bytes[written..],
                    Err(_) => return,
                }
            }
        }
    }

    fn carrying(&self) -> std::sync::MutexGuard<'_, JoinSet<()>> {
        self.carrying.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which of standard input, output and error are terminals.
#[must_use]
pub fn terminals() -> [bool; 3] {
    [
        io::stdin().is_terminal(),
        io::stdout().is_terminal(),
        io::stderr().is_terminal(),
    ]
}

/// Where what a pseudo-terminal says is shown, given which of the three are terminals: at one that is, so that its echo
/// never gets into a file.
#[must_use]
pub fn shown_at(terminals: [bool; 3]) -> Option<Stream> {
    match terminals {
        [false, false, false] => None,
        [_, true, _] => Some(Stream::Out),
        _ => Some(Stream::Err),
    }
}

/// A pseudo-terminal of the size of this process's terminal: the end that shows, and the one that a command gets.
///
/// # Errors
/// What `openpt(3)` or ioctl_tty(2) says.
pub fn pseudo_terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = || OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = rustix::pty::openpt(flags())?;
    rustix::pty::grantpt(&ours)?;
    rustix::pty::unlockpt(&ours)?;
    let theirs = rustix::pty::ioctl_tiocgptpeer(&ours, flags())?;
    copy_size(&ours)?;
    Ok((ours, theirs))
}

/// Gives a pseudo-terminal the size of the terminal that is there.
fn copy_size(pty: &OwnedFd) -> io::Result<()> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let mut all = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()].into_iter();
    if let Some(size) = all.find_map(|fd| rustix::termios::tcgetwinsize(fd).ok()) {
        rustix::termios::tcsetwinsize(pty, size)?;
    }
    Ok(())
}

/// Keeps it at that.
async fn follow_size(pty: OwnedFd) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else {
        return;
    };
    while changes.recv().await.is_some() {
        let _ = copy_size(&pty);
    }
}

/// The terminal at standard input, which hands each byte on as it is typed, until this is dropped.
pub struct Raw(Termios);

impl Raw {
    /// Makes it so.
    ///
    /// # Errors
    /// What `tcsetattr(3)` says.
    pub fn set() -> io::Result<Self> {
        let before = rustix::termios::tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The terminal may be gone; then it needs nothing back.
        let _ = rustix::termios::tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

fn nonblocking(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    watch::owned(fd)
}

/// An input that is read without waiting for anything else.
struct Input {
    fd: OwnedFd,
    kind: Kind,
}

enum Kind {
    /// With O_NONBLOCK, or such that it never blocks.
    Plain,
    /// It may block.
    Polled,
    Socket,
}

impl Input {
    fn of(fd: impl AsFd) -> io::Result<Self> {
        let fd = fd.as_fd().try_clone_to_owned()?;
        let kind = match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
            FileType::Socket => Kind::Socket,
            FileType::Fifo => return Ok(Self::opened_again(fd)),
            FileType::CharacterDevice if fd.is_terminal() => return Ok(Self::opened_again(fd)),
            FileType::CharacterDevice => Kind::Polled,
            _ => Kind::Plain,
        };
        Ok(Self { fd, kind })
    }

    fn opened_again(fd: OwnedFd) -> Self {
        match screen::opened_again(&fd, OFlags::RDONLY) {
            Ok(fd) => Self {
                fd,
                kind: Kind::Plain,
            },
            Err(_) => Self {
                fd,
                kind: Kind::Polled,
            },
        }
    }

    async fn read(&self, chunk: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.read_now(chunk) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                // A terminal that is gone (a hangup).
                Err(e) if e.raw_os_error() == Some(libc::EIO) => return Ok(0),
                got => return got,
            }
            let watched = watch::owned(self.fd.try_clone()?)?;
            return watched
                .async_io(Interest::READABLE, |_| self.read_now(chunk))
                .await;
        }
    }

    fn read_now(&self, chunk: &mut [u8]) -> io::Result<usize> {
        match self.kind {
            Kind::Socket => {
                let (got, _) = rustix::net::recv(&self.fd, chunk, RecvFlags::DONTWAIT)?;
                Ok(got)
            }
            Kind::Polled if !watch::has_something(self.fd.as_fd()) => {
                Err(io::ErrorKind::WouldBlock.into())
            }
            Kind::Plain | Kind::Polled => Ok(rustix::io::read(&self.fd, chunk)?),
        }
    }
}

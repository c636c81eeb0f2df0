//! The app's pid 1: makes the root, drops everything, starts the command, reaps.
//!
//! # Theory of operation
//!
//! The command is not pid 1 itself: a pid 1 without handlers ignores SIGTERM, and few servers reap what they did not
//! start (pid_namespaces(7)). This process holds nothing either: it has dropped before it starts the command, so the
//! command has no more than it, and it can't be looked into (not dumpable), although it has the same uid.
//! When it ends, the kernel ends every process of the namespace. So it does not end with the command: a server that a shell
//! has started outlives the shell, and may have to write what it holds to disk. It tells the supervisor how the command
//! ended, passes the supervisor's signal on to all that is left, and ends with the last of them. How long they have is the
//! supervisor's to say.
//!
//! What `lrpns exec` and `lrpns audit` run in the app, it starts as well, by the function that started the command: same
//! privileges, same filters, same Landlock domain. So it can hold no more than the command, and sees what that sees. The
//! command itself is in a domain below that one and can neither look back nor signal back: what comes with a visitor is not
//! the app's, and the audit is not the app's to stop. Limits of other processes are kept from it by the filter. On a kernel
//! without scopes for signals (before 6.12) it can; so no wait for a process of the app is without a limit.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{CString, NulError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use caps::Capability;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags};

use super::ownlog;
use super::syslog::{self, Syslog};
use super::{StageError, drop_privileges, step, weakened};
use crate::confine::ceilings;
use crate::confine::landlock::{self, Writable};
use crate::confine::privileges;
use crate::confine::seccomp::Program;
use crate::plan::DEFAULT_PATH;
use crate::protocol::{self, AppStart, Exit, FromStage, SUCCESSORS, ToStage};
use crate::rootfs;
use crate::sys::process::{
    Cloned, clone3, close_on_exec_from, default_signals, exit_now, null_standard_descriptors,
    place_at,
};

/// Becomes the app's pid 1; returns when the command has ended or the supervisor has.
///
/// # Errors
/// [`StageError`] with the step that did not work, up to and with the `execve(2)` of the command.
pub fn run(
    supervisor: &OwnedFd,
    start: AppStart,
    fds: Vec<OwnedFd>,
) -> Result<ExitCode, StageError> {
    let mut fds = fds.into_iter();
    let (Some(out), Some(err), Some(said), Some(program)) =
        (fds.next(), fds.next(), fds.next(), fds.next())
    else {
        return Err(step("take the output")("its descriptors did not come"));
    };
    let handed: Vec<OwnedFd> = fds.by_ref().take(start.handed.len()).collect();
    let stdin = if start.stdin { fds.next() } else { None };
    if let Some(cpu) = start.limits.cpu {
        ceilings::processors(cpu.thousandths().div_ceil(1000))
            .map_err(step("take as many processors as it may use"))?;
    }
    let (mut notes, log) = rootfs::enter(
        &start.rootfs,
        fds.collect(),
        rootfs::Own {
            tmpfs: &start.tmpfs,
            volumes: &start.volumes,
            secrets: &start.secrets,
            owner: start.user,
        },
        &start.limits,
        &start.hosts,
    )
    .map_err(step("make the root"))?;
    // Those of the beginning are of a mount that nobody sees any more, and have no name here.
    null_standard_descriptors().map_err(step("open the null device"))?;
    if !weakened("log-descriptors") {
        syslog::refuse_descriptors(&log).map_err(step("refuse descriptors at /dev/log"))?;
    }
    notes.extend(enter_domain(&start, program.as_fd())?);
    if weakened("leak-everything") {
        std::mem::forget(program);
    } else {
        drop(program);
    }
    rustix::process::chdir(&start.workdir).map_err(|e| {
        let cause = format!("{}: {}", start.workdir.display(), io::Error::from(e));
        step("enter the working directory")(cause)
    })?;
    let keep: &[Capability] = if weakened("app-capability") {
        &[Capability::CAP_NET_RAW]
    } else {
        &[]
    };
    let privileges = if start.range {
        privileges::drop_to_range(&start.seccomp.stage).map_err(step("drop privileges"))?
    } else {
        drop_privileges(keep, start.user, &start.seccomp.stage)?
    };
    if weakened("dumpable") {
        nix::sys::prctl::set_dumpable(true).map_err(step("set the dumpable flag"))?;
    }
    protocol::send(supervisor, &FromStage::Ready { privileges, notes }, &[])
        .map_err(step("say ready"))?;

    match protocol::receive(supervisor).map_err(step("wait for the network"))? {
        Some((ToStage::Proceed, _)) => {}
        Some(_) => return Err(step("wait for the network")("another message came first")),
        None => return Ok(ExitCode::SUCCESS),
    }
    let child_ended = watch_children().map_err(step("watch for the command's end"))?;
    let command = Command::new(&start.command, &start.env).map_err(step("read the command"))?;
    let (pid, pidfd) = command.start(&Launch {
        stdin: stdin.as_ref().map(AsFd::as_fd),
        out: out.as_fd(),
        err: err.as_fd(),
        program: None,
        terminal: start.terminal,
        within: None,
        apart: !weakened("landlock"),
        filter: &start.seccomp.command,
        asks: start.explain.then(|| supervisor.as_fd()),
        handed: (&handed, &start.handed),
    })?;
    drop((stdin, out, err, handed));
    protocol::send(supervisor, &FromStage::Started, &[pidfd.as_fd()])
        .map_err(step("say started"))?;
    let mut syslog = Syslog::new(log, said, start.terminal);
    if weakened("log-descriptors") {
        syslog = syslog.unread();
    }
    tend(supervisor, &child_ended, &mut syslog, pid, &start).map_err(step("tend the command"))?;
    syslog.finish();
    Ok(ExitCode::SUCCESS)
}

/// Landlock, for this process and so for all that it starts; says what the kernel could not do.
fn enter_domain(start: &AppStart, program: BorrowedFd<'_>) -> Result<Option<String>, StageError> {
    let tmpfs = start.tmpfs.iter().map(|tmpfs| tmpfs.path.as_path());
    let volumes = start.volumes.iter().filter(|volume| volume.writable);
    let files = Writable {
        trees: tmpfs
            .chain(volumes.map(|volume| volume.path.as_path()))
            .collect(),
        sockets: start
            .sockets
            .iter()
            .map(PathBuf::as_path)
            .chain([Path::new(rootfs::LOG)])
            .collect(),
        program,
    };
    let without = |what: &str| weakened("landlock") || weakened(&format!("landlock-{what}"));
    start
        .confined
        .enforce(&files, without)
        .map_err(step("confine by Landlock"))
}

/// SIGCHLD as a descriptor.
fn watch_children() -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// A command that `lrpns exec` has asked for.
struct Visitor {
    pid: Pid,
    /// Who waits for its end; `None` when that one has ended first.
    host: Option<OwnedFd>,
}

/// Reaps every child, tells how the command ended, passes signals and lines of syslog on, runs what `lrpns exec` asks for;
/// returns when no process is left, or the supervisor has ended.
fn tend(
    supervisor: &OwnedFd,
    child_ended: &SignalFd,
    syslog: &mut Syslog,
    mut command: Pid,
    start: &AppStart,
) -> io::Result<()> {
    let mut visitors: Vec<Visitor> = vec![];
    let mut command_lives = true;
    // How often what a command has left may still take its place.
    let mut successors = if start.forks { SUCCESSORS } else { 0 };
    // Why it ends is known already, or has been told.
    let mut told = false;
    loop {
        let mut ready = vec![
            PollFd::new(supervisor, PollFlags::IN),
            PollFd::new(child_ended, PollFlags::IN),
        ];
        let hosts = visitors.iter().filter_map(|visitor| visitor.host.as_ref());
        ready.extend(hosts.map(|host| PollFd::new(host, PollFlags::IN)));
        ready.extend(syslog.awaits());
        match rustix::event::poll(&mut ready, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        }
        let ready: Vec<bool> = ready.iter().map(|r| !r.revents().is_empty()).collect();
        let hosts = visitors.iter_mut().filter(|visitor| visitor.host.is_some());
        // What syslog awaits is after them.
        for (visitor, _) in hosts.zip(&ready[2..]).filter(|(_, ready)| **ready) {
            // A host says nothing: it has ended. The command is the leader of its group.
            visitor.host = None;
            let _ = nix::sys::signal::killpg(visitor.pid, Signal::SIGKILL);
        }
        // Before the command's end is told of: the last thing that it said may be why.
        syslog.carry();
        if ready[1] {
            while child_ended.read_signal()?.is_some() {}
            let reaped = reap(command, &mut visitors)?;
            let heir = match reaped.command {
                Some(Exit::Status(0)) if successors > 0 => heir(&visitors),
                _ => None,
            };
            if let Some((pid, pidfd)) = heir {
                successors -= 1;
                command = pid;
                let _ = protocol::send(supervisor, &FromStage::Succeeded, &[pidfd.as_fd()]);
            } else if let Some(exit) = reaped.command {
                command_lives = false;
                if exit != Exit::Status(0) && !std::mem::replace(&mut told, true) {
                    syslog.say(ownlog::last_lines(&start.tmpfs));
                    syslog.carry();
                }
                // Should the supervisor be gone, there is nobody to tell.
                let _ = protocol::send(supervisor, &FromStage::Exited(exit), &[]);
            }
            // Whatever else runs here is a child of this process, or comes to be one.
            if !command_lives && !reaped.children {
                return Ok(());
            }
        }
        if ready[0] {
            match protocol::receive(supervisor)? {
                Some((ToStage::Signal(signal), _)) => {
                    let signal = Signal::try_from(signal)?;
                    // Who ends now does not go to the background.
                    successors = 0;
                    told = true;
                    if command_lives {
                        signal_to(command, signal)?;
                    } else {
                        // An interactive shell of a visitor's ignores SIGTERM, and ends when its terminal does.
                        for visitor in &visitors {
                            let _ = nix::sys::signal::killpg(visitor.pid, Signal::SIGHUP);
                        }
                        signal_to(EVERYBODY_ELSE, signal)?;
                    }
                }
                Some((ToStage::Tell, _)) => {
                    if command_lives && !std::mem::replace(&mut told, true) {
                        syslog.say(ownlog::last_lines(&start.tmpfs));
                        syslog.carry();
                    }
                    let _ = protocol::send(supervisor, &FromStage::Told, &[]);
                }
                // A prober that can't be started is one whose socket ends.
                Some((ToStage::Probe, fds)) => {
                    let prober = start_prober(start, fds).ok();
                    visitors.extend(prober.map(|pid| Visitor { pid, host: None }));
                }
                Some((
                    ToStage::Exec {
                        command,
                        env,
                        terminal,
                        program,
                    },
                    fds,
                )) => {
                    let visitor = (command.as_slice(), &env, terminal, program);
                    visitors.extend(start_visitor(start, visitor, fds));
                }
                Some(_) => return Err(io::ErrorKind::InvalidData.into()),
                None => return Ok(()),
            }
        }
    }
}

/// The first process that the command has left and that nobody else has started here; who is left without a parent is this
/// process' child. `None` as well where there is no /proc, or a kernel without CONFIG_PROC_CHILDREN: then the app ends as
/// every other.
fn heir(visitors: &[Visitor]) -> Option<(Pid, OwnedFd)> {
    let children = std::fs::read_to_string("/proc/thread-self/children").ok()?;
    let mut children = children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .map(Pid::from_raw);
    let pid = children.find(|pid| visitors.iter().all(|visitor| visitor.pid != *pid))?;
    let open = rustix::process::Pid::from_raw(pid.as_raw())?;
    let pidfd = rustix::process::pidfd_open(open, rustix::process::PidfdFlags::empty()).ok()?;
    Some((pid, pidfd))
}

/// Every process of this pid namespace but this one (kill(2)).
const EVERYBODY_ELSE: Pid = Pid::from_raw(-1);

/// Sends a signal, and lets who is stopped go on to hear it.
fn signal_to(whom: Pid, signal: Signal) -> nix::Result<()> {
    for signal in [signal, Signal::SIGCONT] {
        match nix::sys::signal::kill(whom, signal) {
            // It has ended and SIGCHLD is on its way.
            Ok(()) | Err(nix::Error::ESRCH) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Starts a command for `lrpns exec`, by the way that the app's own command took: it can have no more.
fn start_visitor(
    start: &AppStart,
    (command, env, terminal, ours): (&[String], &BTreeMap<String, String>, bool, bool),
    mut fds: Vec<OwnedFd>,
) -> Option<Visitor> {
    let program = if ours { Some(fds.pop()?) } else { None };
    let [stdin, out, err, host] = <[OwnedFd; 4]>::try_from(fds).ok()?;
    let started = Command::new(command, env)
        .map_err(step("read the command"))
        .and_then(|command| {
            command.start(&Launch {
                stdin: Some(stdin.as_fd()),
                out: out.as_fd(),
                err: err.as_fd(),
                program: program.as_ref().map(AsFd::as_fd),
                terminal,
                within: Some(BEGINS_WITHIN),
                apart: false,
                filter: &start.seccomp.command,
                asks: None,
                handed: (&[], &[]),
            })
        });
    match started {
        Ok((pid, _)) => {
            // Should it be gone, that is heard of next.
            let _ = protocol::send(&host, &FromStage::Started, &[]);
            Some(Visitor {
                pid,
                host: Some(host),
            })
        }
        Err(e) => {
            let failed = FromStage::from(e);
            // Should it be gone, there is nobody to tell.
            let _ = protocol::send(&host, &failed, &[]);
            None
        }
    }
}

/// Starts our own program as `lrpns probe` ([`crate::audit`]), by the way that the command took: what the prober may
/// do is what the command may do.
fn start_prober(start: &AppStart, fds: Vec<OwnedFd>) -> Result<Pid, StageError> {
    let mut fds = fds.into_iter();
    let (Some(program), Some(socket)) = (fds.next(), fds.next()) else {
        return Err(step("start the prober")("its descriptors did not come"));
    };
    let args = ["lrpns", "probe"].map(str::to_owned);
    let prober = Command::new(&args, &start.env).map_err(step("start the prober"))?;
    // The standard descriptors of this process are the null device.
    let (out, err) = (io::stdout(), io::stderr());
    let (pid, _) = prober.start(&Launch {
        stdin: Some(socket.as_fd()),
        out: out.as_fd(),
        err: err.as_fd(),
        program: Some(program.as_fd()),
        terminal: false,
        within: Some(BEGINS_WITHIN),
        apart: false,
        filter: &start.seccomp.command,
        asks: None,
        handed: (&[], &[]),
    })?;
    Ok(pid)
}

/// What [`reap`] found.
struct Reaped {
    /// How the command ended, if it was among them.
    command: Option<Exit>,
    /// Whether there are children still.
    children: bool,
}

/// Waits for all that have ended, and tells the visitors' hosts.
fn reap(command: Pid, visitors: &mut Vec<Visitor>) -> nix::Result<Reaped> {
    let mut ended = None;
    loop {
        let reaped = |children| Reaped {
            command: ended,
            children,
        };
        let (pid, exit) = match nix::sys::wait::waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) => (pid, Exit::Status(status)),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Exit::Signal(signal as i32)),
            Ok(WaitStatus::StillAlive) => return Ok(reaped(true)),
            Err(nix::Error::ECHILD) => return Ok(reaped(false)),
            Ok(_) | Err(nix::Error::EINTR) => continue,
            Err(e) => return Err(e),
        };
        if pid == command {
            ended = Some(exit);
            continue;
        }
        if let Some(at) = visitors.iter().position(|visitor| visitor.pid == pid)
            && let Some(host) = visitors.swap_remove(at).host
        {
            // Should it be gone, there is nobody to tell.
            let _ = protocol::send(&host, &FromStage::Exited(exit), &[]);
        }
    }
}

/// A command, ready for `execve(2)`: after the clone nothing is left to compute.
#[derive(Clone)]
pub(crate) struct Command {
    /// Every path the program may be at, the first that exists is it.
    candidates: Vec<CString>,
    args: Vec<CString>,
    env: Vec<CString>,
}

impl Command {
    pub(crate) fn new(
        command: &[String],
        env: &BTreeMap<String, String>,
    ) -> Result<Self, NulError> {
        let program = command.first().map_or("", String::as_str);
        let path = env.get("PATH").map_or(DEFAULT_PATH, String::as_str);
        let candidates = if program.contains('/') {
            vec![CString::new(program)?]
        } else {
            path.split(':')
                .filter(|directory| !directory.is_empty())
                .map(|directory| CString::new(format!("{directory}/{program}")))
                .collect::<Result<_, _>>()?
        };
        Ok(Self {
            candidates,
            args: command
                .iter()
                .map(|arg| CString::new(arg.as_str()))
                .collect::<Result<_, _>>()?,
            env: env
                .iter()
                .map(|(name, value)| CString::new(format!("{name}={value}")))
                .collect::<Result<_, _>>()?,
        })
    }

    /// The same for this process, which is handed sockets of these names (sd_listen_fds(3)).
    fn handed(&self, names: &[String]) -> Self {
        const OURS: [&str; 3] = ["LISTEN_PID=", "LISTEN_FDS=", "LISTEN_FDNAMES="];
        let values = [
            std::process::id().to_string(),
            names.len().to_string(),
            names.join(":"),
        ];
        let mut own = self.clone();
        own.env.retain(|one| {
            let is = |name: &&str| one.as_bytes().starts_with(name.as_bytes());
            !OURS.iter().any(is)
        });
        let ours = OURS.iter().zip(values);
        // Numbers have no NUL.
        own.env
            .extend(ours.filter_map(|(name, value)| CString::new(format!("{name}{value}")).ok()));
        own
    }

    /// Replaces this process's image; returns only what kept it from that: ENOENT when no candidate exists.
    pub(crate) fn exec(&self) -> io::Error {
        let mut last = nix::Error::ENOENT;
        for program in &self.candidates {
            let Err(e) = nix::unistd::execve(program, &self.args, &self.env);
            match e {
                nix::Error::ENOENT | nix::Error::ENOTDIR => {}
                // As execvp(3): a later directory may have one that may be executed.
                nix::Error::EACCES => last = e,
                e => return e.into(),
            }
        }
        last.into()
    }

    /// As [`Command::exec`], from an open program: for a root in which there is none.
    pub(crate) fn exec_from(&self, program: BorrowedFd<'_>) -> io::Error {
        let Err(e) = nix::unistd::execveat(
            program,
            c"",
            &self.args,
            &self.env,
            nix::fcntl::AtFlags::AT_EMPTY_PATH,
        );
        e.into()
    }

    /// Clones and executes; the child has the three standard descriptors, no other, and the filter.
    pub(super) fn start(&self, launch: &Launch<'_>) -> Result<(Pid, OwnedFd), StageError> {
        let (told, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(step("make a pipe"))?;
        match clone3(0).map_err(step("clone for the command"))? {
            Cloned::Child => {
                // Where the sockets go, this pipe may be.
                let tell = match launch.handed.0.len() {
                    0 => tell,
                    count => above(&tell, count).unwrap_or(tell),
                };
                let ready = prepare_child(launch).and_then(|()| launch.hand_over());
                let error = match (ready, launch.program) {
                    (Ok(()), None) if !launch.handed.0.is_empty() => {
                        self.handed(launch.handed.1).exec()
                    }
                    (Ok(()), None) => self.exec(),
                    (Ok(()), Some(program)) => self.exec_from(program),
                    (Err(e), _) => e,
                };
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                let _ = rustix::io::write(&tell, &errno.to_le_bytes());
                exit_now(127)
            }
            Cloned::Parent { pid, pidfd } => {
                drop(tell);
                let mut errno = [0; 4];
                if let Some(limit) = launch.within
                    && !readable_within(&told, limit).map_err(step("wait for the command"))?
                {
                    // Reaped as every other.
                    let _ =
                        rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
                    let what = format!("it did not begin within {} s", limit.as_secs());
                    return Err(step("start the command")(what));
                }
                // The pipe is close-on-exec: its end without a word means that the image was replaced.
                match rustix::io::retry_on_intr(|| rustix::io::read(&told, &mut errno)) {
                    Ok(0) => Ok((Pid::from_raw(pid), pidfd)),
                    Ok(_) => {
                        let e = io::Error::from_raw_os_error(i32::from_le_bytes(errno));
                        Err(StageError {
                            step: "execute the command",
                            cause: self.explain(&e),
                            errno: e.raw_os_error(),
                        })
                    }
                    Err(e) => Err(step("start the command")(e)),
                }
            }
        }
    }

    /// What was tried, and what the kernel said.
    pub(crate) fn explain(&self, e: &io::Error) -> String {
        let program = match self.candidates.as_slice() {
            [one] => one.to_string_lossy().into_owned(),
            _ => format!(
                "{} (looked up in PATH)",
                self.args.first().map_or("".into(), |a| a.to_string_lossy())
            ),
        };
        let interpreter = e.raw_os_error() == Some(libc::ENOENT)
            && self
                .candidates
                .iter()
                .any(|c| Path::new(&*c.to_string_lossy()).exists());
        if interpreter {
            format!("{program}: its interpreter or loader is not in this root file system")
        } else {
            format!("{program}: {e}")
        }
    }
}

/// How long a visitor may take from its clone to its `execve(2)`: where the app can signal it, it could be stopped there.
const BEGINS_WITHIN: Duration = Duration::from_secs(5);

fn readable_within(fd: &OwnedFd, limit: Duration) -> io::Result<bool> {
    let timeout = rustix::event::Timespec::try_from(limit).map_err(io::Error::other)?;
    let mut ready = [PollFd::new(fd, PollFlags::IN)];
    Ok(rustix::io::retry_on_intr(|| rustix::event::poll(&mut ready, Some(&timeout)))? > 0)
}

/// How a process of the app is started.
pub(super) struct Launch<'a> {
    /// Its standard input; the null device when there is none.
    pub(super) stdin: Option<BorrowedFd<'a>>,
    /// Its standard output.
    pub(super) out: BorrowedFd<'a>,
    /// Its standard error.
    pub(super) err: BorrowedFd<'a>,
    /// The open program, if it is not looked up in the root.
    pub(super) program: Option<BorrowedFd<'a>>,
    /// Whether one of the three is a terminal that is to be its own.
    pub(super) terminal: bool,
    /// How long it may take to replace its image.
    pub(super) within: Option<Duration>,
    /// Whether it is to see nothing of what else is started here: neither a visitor's descriptors, which are those of who
    /// runs `lrpns exec`, nor the prober's.
    pub(super) apart: bool,
    /// What it may call.
    pub(super) filter: &'a Program,
    /// Who is handed the descriptor at which the filter asks, if it does.
    pub(super) asks: Option<BorrowedFd<'a>>,
    /// The listening sockets that it is handed, and their names.
    pub(super) handed: (&'a [OwnedFd], &'a [String]),
}

impl Launch<'_> {
    /// Puts the sockets where the command looks for them, and puts itself under the filter.
    fn hand_over(&self) -> io::Result<()> {
        let (sockets, count) = (self.handed.0, self.handed.0.len());
        if count == 0 {
            return self.confine(self.asks);
        }
        let sockets: Vec<OwnedFd> = sockets
            .iter()
            .map(|socket| above(socket, count))
            .collect::<io::Result<_>>()?;
        let asks = self.asks.map(|asks| above(&asks, count)).transpose()?;
        for (socket, number) in sockets.iter().zip(FIRST_HANDED..) {
            place_at(socket.as_fd(), number)?;
        }
        self.confine(asks.as_ref().map(AsFd::as_fd))
    }

    fn confine(&self, asks: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let Some(supervisor) = asks else {
            return self.filter.install();
        };
        let listener = self.filter.install_and_listen()?;
        // Under the filter by now: `--explain` is refused to a profile without sendmsg(2).
        protocol::send(supervisor, &FromStage::Asks, &[listener.as_fd()])
    }
}

/// Where the first socket is that a command is handed (`SD_LISTEN_FDS_START` of sd_listen_fds(3)).
const FIRST_HANDED: i32 = 3;

/// The same descriptor, close-on-exec, where none is put of so many that are handed over.
fn above(fd: &impl AsFd, handed: usize) -> io::Result<OwnedFd> {
    let first = FIRST_HANDED + i32::try_from(handed).map_err(io::Error::other)?;
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, first)?)
}

/// The child's last steps before `execve(2)`.
fn prepare_child(launch: &Launch<'_>) -> io::Result<()> {
    default_signals();
    nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    rustix::process::setsid()?;
    if let Some(stdin) = launch.stdin {
        rustix::stdio::dup2_stdin(stdin)?;
    }
    rustix::stdio::dup2_stdout(launch.out)?;
    rustix::stdio::dup2_stderr(launch.err)?;
    if launch.terminal {
        let own = |fd: BorrowedFd<'_>| rustix::process::ioctl_tiocsctty(fd);
        // ENOTTY of those that are none.
        own(io::stdin().as_fd())
            .or_else(|_| own(launch.out))
            .or_else(|_| own(launch.err))?;
    }
    if launch.apart {
        landlock::apart().map_err(io::Error::other)?;
    }
    close_on_exec_from(3)?;
    if weakened("leak-descriptor") {
        std::mem::forget(rustix::io::dup(launch.out)?);
    }
    if weakened("leak-everything") {
        crate::sys::process::keep_on_exec_from(3);
    }
    Ok(())
}

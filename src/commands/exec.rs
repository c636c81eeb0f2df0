//! `lrpns exec`: a command with exactly a part's privileges.
//!
//! # Theory of operation
//!
//! In an app, the app's pid 1 starts the command, by the function that started the app's own ([`crate::stage::app`]); this
//! process hands its three standard descriptors over, and waits at the end of a conversation for how it went.
//!
//! Sidecar and relay start nothing. There the supervisor hands out the pidfd of the part's pid 1. A child joins all of its
//! namespaces with one setns(2), a grandchild is in its pid namespace and drops by the same function as the part itself
//! did, to what the part holds by its plan ([`Access`]): not by what the supervisor says, since this process may be root's.
//!
//! Either way the command has no more than the part has, by construction.
//!
//! No terminal of the host goes in: where one of the three standard descriptors is a terminal, the command gets a
//! pseudo-terminal of its own, and this process carries the bytes.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::event::{PollFd, PollFlags};
use rustix::net::sockopt;

use super::opener::part_of;
use super::{answered_something_else, ask_with, reply};
use crate::commands::failure::Failure;
use crate::confine::ceilings;
use crate::confine::privileges;
use crate::control::access::Access;
use crate::control::{Reply, Request};
use crate::host::Host;
use crate::log::Stream;
use crate::log::streams::{self, Raw};
use crate::names::StackName;
use crate::protocol::{self, Exit, FromStage};
use crate::stage::app::Command;
use crate::sys::namespace::{every_kind, setns};
use crate::sys::process::{
    Cloned, clone3, clone3_into, close_on_exec_from, default_signals, exit_now,
};

/// Runs `command` in `part` and ends with its exit code.
pub fn exec(
    stack: &StackName,
    part: Option<String>,
    command: &[String],
) -> Result<ExitCode, Failure> {
    let part = match part {
        Some(part) => part,
        None => Host::state_root()
            .plan(stack)
            .map_or_else(|| "app".to_owned(), |plan| plan.apps[0].name.to_string()),
    };
    match part.as_str() {
        // The roots of sidecar and relay are empty: what runs there must come from here, and need nothing.
        "sidecar" | "relay" | "egress" => enter(stack, &part, command),
        _ => exec_in_app(stack, part, command),
    }
}

/// In an app, by its pid 1.
fn exec_in_app(stack: &StackName, part: String, command: &[String]) -> Result<ExitCode, Failure> {
    let unable = |what: &str, e: &dyn std::fmt::Display| {
        Failure::unable(format!("{stack}/{part}: {what}: {e}"))
    };
    let terminal = Terminal::needed().map_err(|e| unable("open a pseudo-terminal", &e))?;
    let (ours, theirs) =
        crate::part::namespaces::socketpair().map_err(|e| unable("make a socket pair", &e))?;
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let mut fds = vec![stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    if let Some(terminal) = &terminal {
        for (fd, _) in fds
            .iter_mut()
            .zip(terminal.instead_of)
            .filter(|(_, is)| *is)
        {
            *fd = terminal.theirs.as_fd();
        }
    }
    fds.push(theirs.as_fd());
    let request = Request::Exec {
        part: part.clone(),
        command: command.to_vec(),
        term: std::env::var("TERM").ok(),
        terminal: terminal.is_some(),
    };
    let client = ask_with(stack, &request, &fds)?;
    let (Reply::Done, _) = reply(&client, stack)? else {
        return Err(answered_something_else(stack));
    };
    drop((client, theirs));
    let starts = |limit| {
        sockopt::set_socket_timeout(&ours, sockopt::Timeout::Recv, limit)
            .map_err(|e| unable("wait for the command", &e))
    };
    starts(Some(STARTS_WITHIN))?;
    let first = match protocol::receive(&ours) {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
            let late = format!(
                "nothing was heard of it within {} s",
                STARTS_WITHIN.as_secs()
            );
            return Err(unable("start the command", &late).hint(format!(
                "the app leaves what is started in it no processor, memory or processes: lrpns restart {stack} {part}"
            )));
        }
        first => first,
    };
    starts(None)?;
    let told = match (first, terminal) {
        (Ok(Some((FromStage::Started, _))), terminal) => told_by(&ours, terminal),
        (first, _) => first,
    };

    match told.map_err(|e| unable("wait for the command", &e))? {
        Some((FromStage::Exited(exit), _)) => Ok(ExitCode::from(exit.code())),
        Some((FromStage::Failed { step, cause, errno }, _)) => Err(Failure {
            // As a shell: not found, or found and not executable.
            code: match errno {
                Some(libc::ENOENT) => 127,
                Some(_) => 126,
                None => crate::commands::failure::UNABLE,
            },
            ..unable(&step, &cause)
        }),
        Some(_) => Err(unable("wait for the command", &"it said something else")),
        // With its part, whose end the kernel made of all that was in it.
        None => Ok(ExitCode::from(Exit::Signal(libc::SIGKILL).code())),
    }
}

/// How long an app's pid 1 may take to start a command: longer than it gives that one.
const STARTS_WITHIN: Duration = Duration::from_secs(10);

type Heard = io::Result<Option<(FromStage, Vec<OwnedFd>)>>;

/// What is heard of a command that runs, which is its end.
fn told_by(socket: &OwnedFd, terminal: Option<Terminal>) -> Heard {
    match terminal {
        Some(terminal) => terminal.carry(socket, || protocol::receive(socket)),
        None => protocol::receive(socket),
    }
}

/// In the sidecar or the relay.
fn enter(stack: &StackName, part: &str, command: &[String]) -> Result<ExitCode, Failure> {
    let (pidfd, plan) = part_of(stack, part)?;
    let access = Access::of(&plan, part);
    let mut access = access.map_err(|e| Failure::unable(format!("{stack}/{part}: {e}")))?;
    if let Ok(term) = std::env::var("TERM") {
        access.env.entry("TERM".to_owned()).or_insert(term);
    }
    let unable = |what: &str, e: &dyn std::fmt::Display| {
        Failure::unable(format!("{stack}/{part}: {what}: {e}"))
    };
    let program = open_program(&command[0])?;
    let command = Command::new(command, &access.env).map_err(|e| unable("read the command", &e))?;
    let terminal = Terminal::needed().map_err(|e| unable("open a pseudo-terminal", &e))?;
    let entry = Entry {
        caller: rustix::process::getpid(),
        pidfd,
        command,
        program,
        access,
    };
    // From its first moment in the part's cgroup: the part's limits are the command's as well.
    let open = |path: &PathBuf| {
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        rustix::fs::open(path, flags, rustix::fs::Mode::empty())
    };
    let cgroup = match entry.access.cgroup.as_ref().map(open).transpose() {
        // It could not be made, as the stack's own command has said.
        Err(rustix::io::Errno::NOENT) => None,
        opened => opened.map_err(|e| unable("open the part's cgroup", &e))?,
    };
    let cloned = clone3_into(0, cgroup.as_ref().map(AsFd::as_fd)).map_err(|e| match e.kind() {
        io::ErrorKind::PermissionDenied => unable("enter the part's cgroup", &e).hint(
            "a user may do so from below the cgroup that the stack was started in: systemd-run --user --scope lrpns exec ...",
        ),
        _ => unable("clone", &e),
    })?;
    let status = match cloned {
        Cloned::Child => exit_now(entry.enter(terminal.as_ref())),
        Cloned::Parent { pidfd, .. } => match terminal {
            Some(terminal) => terminal.carry(&pidfd, || wait(&pidfd)),
            None => wait(&pidfd),
        },
    };
    let exit = status.map_err(|e| unable("wait for the command", &e))?;
    Ok(ExitCode::from(exit.code()))
}

/// A static program of the host's, for a part whose root is empty.
fn open_program(name: &str) -> Result<OwnedFd, Failure> {
    let path = if name.contains('/') {
        Some(std::path::PathBuf::from(name))
    } else {
        std::env::var_os("PATH")
            .iter()
            .flat_map(std::env::split_paths)
            .map(|directory| directory.join(name))
            .find(|path| path.is_file())
    };
    let not_found = || Failure {
        code: 127,
        ..Failure::unable(format!("{name}: not found on this host"))
    };
    let path = path.ok_or_else(not_found)?;
    let file = crate::config::open_regular(&path).map_err(|_| not_found())?;
    Ok(file.into())
}

/// What the child needs to know; nothing is allocated or looked up after the clone that could be before it.
struct Entry {
    /// This process: the child ends with it, and the command with the child.
    caller: rustix::process::Pid,
    pidfd: OwnedFd,
    command: Command,
    program: OwnedFd,
    access: Access,
}

impl Entry {
    /// The child's whole life: joins, clones into the pid namespace, mirrors the exit status.
    ///
    /// A part's pid namespace is not gone before this process has waited for the command. So it must neither be
    /// stopped with the terminal's foreground (a process group of its own), nor outlive who started it.
    fn enter(&self, terminal: Option<&Terminal>) -> i32 {
        let complain = |what: &str, e: &dyn std::fmt::Display| {
            eprintln!("lrpns: {what}: {e}");
            i32::from(crate::commands::failure::UNABLE)
        };
        if let Err(e) = rustix::process::setpgid(None, None) {
            return complain("leave the foreground", &e);
        }
        if let Err(e) = privileges::leave_roots_groups() {
            return complain("drop privileges", &e);
        }
        if let Err(e) = setns(&self.pidfd, every_kind()) {
            return complain("join the part's namespaces", &e);
        }
        // Not before: joining a user namespace clears it (PR_SET_PDEATHSIG(2const)). The command's own is set where it
        // drops.
        let kill = Some(rustix::process::Signal::KILL);
        if let Err(e) = rustix::process::set_parent_process_death_signal(kill) {
            return complain("set the parent-death signal", &e);
        }
        if rustix::process::getppid() != Some(self.caller) {
            return i32::from(crate::commands::failure::UNABLE);
        }
        match clone3(0) {
            Err(e) => complain("clone into the part's pid namespace", &e),
            Ok(Cloned::Parent { pidfd, .. }) => match wait(&pidfd) {
                Ok(exit) => i32::from(exit.code()),
                Err(e) => complain("wait for the command", &e),
            },
            Ok(Cloned::Child) => {
                if let Err(e) = ceilings::lower(self.access.nproc) {
                    return complain("lower the resource limits", &e);
                }
                if let Some(confined) = &self.access.confined
                    && let Err(e) = confined.enforce()
                {
                    return complain("confine by Landlock", &e);
                }
                let (access, filters) = (&self.access, &self.access.seccomp);
                if let Err(e) =
                    privileges::drop_to_and_pass_on(&access.keep, access.user, &filters.stage)
                {
                    return complain("drop privileges", &e);
                }
                if let Err(e) = prepare(terminal) {
                    return complain("prepare the command", &e);
                }
                if let Err(e) = filters.command.install() {
                    return complain("install the seccomp filter", &e);
                }
                let e = self.command.exec_from(self.program.as_fd());
                complain("execute the command", &self.command.explain(&e));
                if e.raw_os_error() == Some(libc::ENOENT) {
                    127
                } else {
                    126
                }
            }
        }
    }
}

/// The command's last steps before `execve(2)`: a session of its own, its three descriptors and no other.
fn prepare(terminal: Option<&Terminal>) -> io::Result<()> {
    default_signals();
    nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    rustix::process::setsid()?;
    if let Some(terminal) = terminal {
        terminal.hand_in()?;
    }
    close_on_exec_from(3)
}

/// Waits for a child and says how it ended.
pub(super) fn wait(pidfd: &OwnedFd) -> io::Result<Exit> {
    let status = rustix::io::retry_on_intr(|| {
        rustix::process::waitid(
            rustix::process::WaitId::PidFd(pidfd.as_fd()),
            rustix::process::WaitIdOptions::EXITED,
        )
    })?
    .ok_or(io::ErrorKind::NotFound)?;
    Ok(match (status.exit_status(), status.terminating_signal()) {
        (Some(status), _) => Exit::Status(status),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Status(i32::from(crate::commands::failure::UNABLE)),
    })
}

/// A pseudo-terminal in place of the host's.
struct Terminal {
    ours: OwnedFd,
    theirs: OwnedFd,
    /// Which of the three standard descriptors were terminals.
    instead_of: [bool; 3],
    /// Where what it says is shown.
    shown_at: Stream,
}

impl Terminal {
    /// Makes one if any standard descriptor is a terminal.
    fn needed() -> io::Result<Option<Self>> {
        let instead_of = streams::terminals();
        let Some(shown_at) = streams::shown_at(instead_of) else {
            return Ok(None);
        };
        let (ours, theirs) = streams::pseudo_terminal()?;
        Ok(Some(Self {
            ours,
            theirs,
            instead_of,
            shown_at,
        }))
    }

    /// In the command's process: puts the pseudo-terminal where the host's was.
    fn hand_in(&self) -> io::Result<()> {
        let [stdin, stdout, stderr] = self.instead_of;
        if stdin {
            rustix::stdio::dup2_stdin(&self.theirs)?;
        }
        if stdout {
            rustix::stdio::dup2_stdout(&self.theirs)?;
        }
        if stderr {
            rustix::stdio::dup2_stderr(&self.theirs)?;
        }
        rustix::process::ioctl_tiocsctty(&self.theirs)?;
        Ok(())
    }

    /// Carries bytes until there is something to read of `over`, which is when the command has ended, and everything has
    /// been said; then `exit` tells how.
    fn carry<T>(self, over: &OwnedFd, exit: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let _raw = self.instead_of[0].then(Raw::set).transpose()?;
        let (null, _write) = rustix::pipe::pipe()?;
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let shown_at = match self.shown_at {
            Stream::Err => stderr.as_fd(),
            _ => stdout.as_fd(),
        };
        let mut input: BorrowedFd<'_> = if self.instead_of[0] {
            stdin.as_fd()
        } else {
            null.as_fd()
        };
        let mut chunk = [0; 4096];
        loop {
            let mut ready = [
                PollFd::from_borrowed_fd(input, PollFlags::IN),
                PollFd::new(&self.ours, PollFlags::IN),
                PollFd::new(over, PollFlags::IN),
            ];
            match rustix::event::poll(&mut ready, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
            let [typed, said, ended] = ready.map(|fd| !fd.revents().is_empty());
            if said {
                // EIO: nobody has the other side open any more (pty(7)).
                let got = rustix::io::read(&self.ours, &mut chunk).unwrap_or(0);
                write_all(shown_at, &chunk[..got])?;
                if got > 0 {
                    continue;
                }
            }
            if ended {
                return exit();
            }
            if typed {
                match rustix::io::read(input, &mut chunk) {
                    Ok(got @ 1..) => write_all(self.ours.as_fd(), &chunk[..got])?,
                    _ => input = null.as_fd(),
                }
            }
        }
    }
}

fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(fd, bytes))?;
        bytes = &bytes[written..];
    }
    Ok(())
}

//! A part's process, seen from the supervisor: starting it inside its namespaces, and the conversation with it.
//!
//! # Theory of operation
//!
//! The user and network namespace exist ([`crate::part::namespaces`]). A child of ours joins them, becomes id 0 there, or
//! the one id that is mapped, and clones once more with `CLONE_PARENT`, now with the other five namespaces (mount, pid,
//! ipc, uts, cgroup), which so belong to the part's user namespace; then it ends, and the grandchild is a child of ours and
//! pid 1 of the part. It executes our own program through a read-only descriptor: a fresh image, so that nothing of the
//! supervisor's memory is ever in a part. Its one descriptor is the socket, as standard input.
//!
//! Both run on the supervisor's memory until that `execve(2)`, which a copy would be most of the cost of, and the supervisor
//! waits for them. Nobody of the part can touch them there: they are in the supervisor's pid and mount namespaces until the
//! second clone, and no process of the part is in those that it makes. Whoever has ptrace(2) over either has it over the
//! supervisor: the memory is not dumpable from the change of ids on, and belongs to the user namespace that the supervisor
//! was executed in (`__ptrace_may_access()`, kernel/ptrace.c). Where memory is short in the part's cgroup, the kernel ends neither
//! ([`Spared`]). A helper that is killed takes along what it has made.
//!
//! Should keep every process reachable by pidfd only. Mustn't be used by a process with threads.
#![forbid(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::sched::CloneFlags;
use nix::sys::wait::{WaitPidFlag, WaitStatus};
use rustix::process::Signal;

use crate::confine::privileges::{self, Privileges};
use crate::part::cgroup::{Admission, Entrance};
use crate::part::namespaces::{Namespaces, become_first, die_with_parent, reap, socketpair, wait};
use crate::part::refused::{Explains, Refusals};
use crate::protocol::{self, Channel, Compiled, Exit, FromStage, Role, SUCCESSORS, ToStage};
use crate::sys::namespace::setns;
use crate::sys::process::{Second, Vforked, close_on_exec_from, pid_of, vfork_into};
use crate::text::harmless;

/// How long an app's pid 1 has for its last words.
const TELLS_WITHIN: Duration = Duration::from_secs(1);

/// How long the kernel may take to end a part that was killed.
const ENDS_WITHIN: Duration = Duration::from_secs(5);

/// How much of a sentence that a part says is kept, in bytes, and how many of its notes.
const SENTENCE: usize = 4096;
const NOTES: usize = 16;

/// Why a part could not be started, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// Something on our side.
    #[error("{part}: {what}: {source}")]
    Ours {
        /// The part.
        part: String,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A step inside the part.
    #[error("{part}: {step}: {cause}")]
    Stage {
        /// The part.
        part: String,
        /// Its step.
        step: String,
        /// What the kernel said.
        cause: String,
        /// For the command's `execve(2)`: its errno.
        errno: Option<i32>,
    },
    /// The part ended without a word.
    #[error("{part}: ended while {during}")]
    Ended {
        /// The part.
        part: String,
        /// What we were waiting for.
        during: &'static str,
    },
}

/// What came after `Ready`.
#[derive(Debug)]
pub enum Event {
    /// The command runs, or what it has left has taken its place: [`Container::command`] is another.
    Started {
        /// Its number in our pid namespace, for people.
        pid: Option<i32>,
    },
    /// The relay has handed whoever it had accepted over.
    HandedOver,
    /// The command ended.
    Exited(Exit),
    /// The part's process ended.
    Gone,
}

/// One part's process.
pub struct Container {
    part: String,
    pid: i32,
    pidfd: OwnedFd,
    channel: Channel,
    /// What it has said since it was ready; each can be said once.
    said: Said,
    /// Where it is noted what its filter asks about, and the profile that has the answers, if it does.
    explains: Option<(Refusals, Explains)>,
    /// How often another process may still take its command's place.
    successors: usize,
    command: Option<i32>,
}

/// What a part that is ready has said.
#[derive(Default)]
struct Said {
    started: bool,
    handed_over: bool,
    exited: bool,
}

impl Container {
    /// Starts the process of `part` in `namespaces` and `cgroup` from `program`; it then waits for [`ToStage::Start`].
    ///
    /// # Errors
    /// [`ContainerError::Ours`], or [`ContainerError::Stage`] when joining the namespaces did not work.
    pub async fn spawn(
        part: &str,
        namespaces: &Namespaces,
        program: BorrowedFd<'_>,
        cgroup: Option<Admission<'_>>,
    ) -> Result<Self, ContainerError> {
        let failed = |what: &'static str| {
            move |source: io::Error| ContainerError::Ours {
                part: part.to_owned(),
                what,
                source,
            }
        };
        let (ours, theirs) = socketpair().map_err(failed("make a socket pair"))?;
        let title = CString::new(part).expect("part names are letters, digits, `-`, `_` and `/`");
        // The helper goes there too, and the part is born where its parent is: joined to the part's user namespace, the
        // helper could not put it there.
        let second = Second::new().map_err(failed("have memory for a process"))?;
        let life = || join(&theirs, namespaces, program, &title, &second);
        let spared = cgroup.map(|cgroup| Spared::begin(cgroup.entrance));
        let spared = spared.transpose();
        let spared = spared.map_err(failed("have no process but one ended for want of memory"))?;
        let directory = cgroup.map(|cgroup| cgroup.entrance.directory.as_fd());
        let helper = match (
            vfork_into(libc::CLONE_FILES, directory, &second, life),
            cgroup,
        ) {
            // Who has dropped since the cgroup was made may clone nobody into it. Slower: it waits for every processor.
            (Err(e), Some(cgroup)) if e.kind() == io::ErrorKind::PermissionDenied => {
                let life = || match cgroup.ask() {
                    Ok(()) => life(),
                    Err(e) => Err(("enter the cgroup", e)),
                };
                vfork_into(libc::CLONE_FILES, None, &second, life)
            }
            (helper, _) => helper,
        };
        drop(spared);
        let helper = helper.map_err(failed("clone"))?;
        wait(&helper.pidfd).map_err(failed("wait for the helper"))?;
        drop(theirs);
        let stage = helper.done.ok_or_else(|| ContainerError::Ended {
            part: part.to_owned(),
            during: "joining its namespaces",
        })?;
        let not_begun = |(step, e): (&str, io::Error)| ContainerError::Stage {
            part: part.to_owned(),
            step: step.to_owned(),
            cause: e.to_string(),
            errno: None,
        };
        let Vforked { pid, pidfd, done } = stage.map_err(not_begun)?;
        if let Some(e) = done {
            wait(&pidfd).map_err(failed("wait for the part"))?;
            return Err(not_begun(("execute lrpns", e)));
        }
        let channel = Channel::to_part(ours).map_err(failed("watch the part"))?;
        Ok(Self {
            part: part.to_owned(),
            pid,
            pidfd,
            channel,
            said: Said::default(),
            explains: None,
            successors: 0,
            command: None,
        })
    }

    /// The number of the part's pid 1 in our pid namespace, for people and for `/proc`; it is ours to wait for, so
    /// while this value lives it can't mean another process.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The number of an app's command in our pid namespace, for people.
    #[must_use]
    pub fn command(&self) -> Option<i32> {
        self.command
    }

    /// The part's pid 1.
    #[must_use]
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Whether it has said that whoever it had accepted is handed over.
    #[must_use]
    pub fn has_handed_over(&self) -> bool {
        self.said.handed_over
    }

    /// Sends one message.
    ///
    /// # Errors
    /// [`ContainerError::Ours`] with EPIPE when the part has ended.
    pub async fn send(
        &self,
        message: &ToStage,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ContainerError> {
        if let ToStage::Start(start) = message
            && !matches!(start.role, Role::App(_) | Role::Egress { .. })
        {
            self.wants_no_descriptors();
        }
        self.channel
            .send(message, fds)
            .await
            .map_err(|source| ContainerError::Ours {
                part: self.part.clone(),
                what: "send a message",
                source,
            })
    }

    /// Another one to say short messages to it.
    ///
    /// # Errors
    /// What `fcntl(2)` says.
    pub fn speaker(&self) -> io::Result<protocol::Speaker> {
        self.channel.speaker()
    }

    /// Says one byte as it is, for a part that has become what hears nothing else (the relay).
    ///
    /// # Errors
    /// As [`Container::send`].
    pub async fn say(&self, byte: u8) -> Result<(), ContainerError> {
        let said = self.channel.say(byte).await;
        said.map_err(|source| ContainerError::Ours {
            part: self.part.clone(),
            what: "say a word",
            source,
        })
    }

    /// Neither wants nor takes any from now on. An earlier kernel doesn't know that; there the filters of the parts that
    /// only talk have no call that sends one, but for a relay that carries UDP.
    fn wants_no_descriptors(&self) {
        let _ = self.channel.refuse_descriptors();
    }

    async fn receive(&mut self) -> Result<Option<(FromStage, Vec<OwnedFd>)>, ContainerError> {
        match self.channel.receive().await {
            Ok(Some((FromStage::Failed { step, cause, errno }, _))) => Err(ContainerError::Stage {
                part: self.part.clone(),
                step: harmless(&step, SENTENCE),
                cause: harmless(&cause, SENTENCE),
                errno,
            }),
            Ok(message) => Ok(message),
            Err(source) => Err(ContainerError::Ours {
                part: self.part.clone(),
                what: "hear a message",
                source,
            }),
        }
    }

    /// Which process its command is, by its pidfd.
    fn runs(&mut self, fds: &[OwnedFd]) -> Event {
        if self.successors == 0 {
            self.wants_no_descriptors();
        }
        self.command = fds.first().and_then(|fd| pid_of(fd.as_fd()).ok());
        Event::Started { pid: self.command }
    }

    fn ended(&self, during: &'static str) -> ContainerError {
        ContainerError::Ended {
            part: self.part.clone(),
            during,
        }
    }

    /// Notes what the filter of its command asks about, and answers it.
    pub fn explain(&mut self, refusals: Refusals, explains: Explains) {
        self.explains = Some((refusals, explains));
    }

    /// What its command leaves behind may take its place.
    pub fn forks(&mut self) {
        self.successors = SUCCESSORS;
    }

    /// Waits until the part has dropped everything and is ready for its work.
    ///
    /// # Errors
    /// [`ContainerError::Stage`] names the step that did not work.
    pub async fn ready(&mut self) -> Result<(Privileges, Vec<String>), ContainerError> {
        match self.receive().await? {
            Some((FromStage::Ready { privileges, notes }, _)) => {
                let notes = notes.iter().take(NOTES);
                let notes = notes.map(|note| harmless(note, SENTENCE)).collect();
                Ok((privileges, notes))
            }
            _ => Err(self.ended("getting ready")),
        }
    }

    /// Waits until a loader has told how its transaction went, and until it has ended.
    ///
    /// # Errors
    /// [`ContainerError::Stage`] names the step that did not work before anything was sent to the kernel. That the kernel
    /// refused is no error of this process: it is the value.
    pub async fn loaded(
        mut self,
    ) -> Result<Result<(), crate::firewall::LoadError>, ContainerError> {
        match self.receive().await? {
            Some((FromStage::Loaded(loaded), _)) => {
                self.kill().await;
                Ok(loaded)
            }
            _ => Err(self.ended("loading rules")),
        }
    }

    /// Waits until a compiler has told how it went, and until it has ended.
    ///
    /// # Errors
    /// [`ContainerError::Stage`] names the step that did not work.
    pub async fn compiled(mut self) -> Result<Compiled, ContainerError> {
        self.channel.hear_all();
        match self.receive().await? {
            Some((FromStage::Compiled(compiled), _)) => {
                self.kill().await;
                Ok(compiled)
            }
            _ => Err(self.ended("compiling rules")),
        }
    }

    /// Waits for the next thing that happens to a part that is ready. Cancel safe.
    ///
    /// # Errors
    /// [`ContainerError::Stage`] when the command could not be executed.
    pub async fn next(&mut self) -> Result<Event, ContainerError> {
        loop {
            return Ok(match self.receive().await? {
                Some((FromStage::Asks, fds)) if self.explains.is_some() && !self.said.started => {
                    let explains = self.explains.take();
                    if let (Some((refusals, explains)), Some(listener)) =
                        (explains, fds.into_iter().next())
                    {
                        let watched = refusals.watch(explains, listener);
                        watched.map_err(|source| ContainerError::Ours {
                            part: self.part.clone(),
                            what: "watch what its filter asks",
                            source,
                        })?;
                    }
                    continue;
                }
                Some((FromStage::Started, fds))
                    if !std::mem::replace(&mut self.said.started, true) =>
                {
                    self.runs(&fds)
                }
                Some((FromStage::Succeeded, fds)) if self.said.started && self.successors > 0 => {
                    self.successors -= 1;
                    self.runs(&fds)
                }
                Some((FromStage::HandedOver, _))
                    if !std::mem::replace(&mut self.said.handed_over, true) =>
                {
                    Event::HandedOver
                }
                Some((FromStage::Exited(exit), _))
                    if !std::mem::replace(&mut self.said.exited, true) =>
                {
                    Event::Exited(exit)
                }
                // A part that has been broken into could talk without end.
                Some(_) => {
                    return Err(self.ended("working, with a message that makes no sense"));
                }
                None => Event::Gone,
            });
        }
    }

    /// Has an app that is given up on say what it has written to its own log, and waits until that is said, for a while: it ends
    /// next, whatever it does.
    pub async fn tell(&mut self) {
        if self.send(&ToStage::Tell, &[]).await.is_err() {
            return;
        }
        let told = async {
            while let Ok(Some((message, _))) = self.receive().await {
                if matches!(message, FromStage::Told) {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(TELLS_WITHIN, told).await;
    }

    /// Sends SIGKILL to the part's pid 1, and with it every process of its pid namespace, and waits for the end.
    /// A part that has ended already is success. `false` when it has not ended within [`ENDS_WITHIN`]: its pid 1 ends when
    /// every other process of its pid namespace has, and one that came from outside (`nsenter`, a debugger) is a zombie
    /// there until its parent waits for it, which may be stopped or not care; or one hangs in the kernel. What it had of
    /// the network is gone by then (`do_exit()`, kernel/exit.c).
    pub async fn kill(self) -> bool {
        self.send_kill();
        // ECHILD: it was waited for already.
        tokio::time::timeout(ENDS_WITHIN, reap(&self.pidfd))
            .await
            .is_ok()
    }

    fn send_kill(&self) {
        // ESRCH: it has ended already.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }
}

impl Drop for Container {
    /// A part must not outlive what watches it, nor stay a zombie; who has the time to wait for its end calls
    /// [`Container::kill`].
    fn drop(&mut self) {
        self.send_kill();
        if let Ok(runtime) = tokio::runtime::Handle::try_current()
            && let Ok(pidfd) = self.pidfd.try_clone()
        {
            // ECHILD: it was waited for already, here or by `reap_all`.
            runtime.spawn(async move { drop(reap(&pidfd).await) });
        }
    }
}

/// Waits until every child of this process has ended, but not for those that don't within [`ENDS_WITHIN`]
/// ([`Container::kill`]); they must have been told to.
///
/// # Errors
/// What `waitid(2)` or `sigaction(2)` says, but for "there is none".
pub async fn reap_all() -> io::Result<()> {
    // Before the first look, so that no end is missed.
    let mut child_ended = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::child())?;
    let all = async {
        loop {
            match nix::sys::wait::waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => {
                    child_ended.recv().await;
                }
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(nix::Error::ECHILD) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
    };
    tokio::time::timeout(ENDS_WITHIN, all)
        .await
        .unwrap_or(Ok(()))
}

/// A cgroup in which the kernel ends one process where memory is short, and not all of them, as long as this lives.
///
/// It spares who runs on another's memory between a `vfork(2)` and an `execve(2)`, but not where it ends all; and then it ends
/// whoever has the same memory, which is the supervisor (`oom_badness()` and `__oom_kill_process()`, mm/oom_kill.c). What is
/// started beside a relay or sidecar at its limit would so be the stack's end.
struct Spared<'f>(Option<&'f OwnedFd>);

impl<'f> Spared<'f> {
    fn begin(cgroup: &'f Entrance) -> io::Result<Self> {
        // Without, memory is not limited there.
        let Some(group) = &cgroup.oom_group else {
            return Ok(Self(None));
        };
        let mut set = [0];
        if rustix::io::pread(group, &mut set, 0)? == 0 || set != *b"1" {
            return Ok(Self(None));
        }
        rustix::io::pwrite(group, b"0", 0)?;
        Ok(Self(Some(group)))
    }
}

impl Drop for Spared<'_> {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // The kernel took the other one.
            let _ = rustix::io::pwrite(group, b"1", 0);
        }
    }
}

/// The helper's whole life: join, clone. What comes of it is the part, which runs our own program unless that failed.
fn join(
    socket: &OwnedFd,
    namespaces: &Namespaces,
    program: BorrowedFd<'_>,
    title: &CString,
    second: &Second,
) -> Result<Vforked<io::Error>, (&'static str, io::Error)> {
    die_with_parent()?;
    setns(&namespaces.user, CloneFlags::CLONE_NEWUSER)
        .map_err(|e| ("join the user namespace", e))?;
    if let Some(net) = &namespaces.net {
        setns(net, CloneFlags::CLONE_NEWNET).map_err(|e| ("join the network namespace", e))?;
    }
    become_first(namespaces.first).map_err(|(step, e)| (step, e.into()))?;
    // It has cleared the signal, and the supervisor's descriptors are this process's as well.
    die_with_parent()?;
    if namespaces.first.uid != 0 {
        // Whoever is not 0 keeps over an execve(2) what is ambient, and nothing else (capabilities(7)).
        privileges::make_ambient()
            .map_err(|e| ("keep what the stage drops", io::Error::other(e)))?;
    }
    let flags = libc::CLONE_PARENT
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    // Its descriptors are its own: it has the socket as standard input, and everything else is closed by the execve(2).
    second
        .vfork(flags, || execute(socket, program, title))
        .map_err(|e| ("clone into the other namespaces", e))
}

fn execute(socket: &OwnedFd, program: BorrowedFd<'_>, title: &CString) -> io::Error {
    let ready = || {
        // A change of uid cleared it, and a clone doesn't inherit it.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        rustix::stdio::dup2_stdin(socket)?;
        close_on_exec_from(1)
    };
    if let Err(e) = ready() {
        return e;
    }
    let args = [c"lrpns", c"init", title.as_c_str()];
    let env: [&std::ffi::CStr; 0] = [];
    let flags = nix::fcntl::AtFlags::AT_EMPTY_PATH;
    let Err(e) = nix::unistd::execveat(program, c"", &args, &env, flags);
    e.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_cgroup_whose_processes_end_all_or_none_is_spared_that_for_a_moment() {
        let cgroup = tempfile::tempdir().unwrap();
        let entrance = || Entrance::open(cgroup.path()).unwrap();
        // One without a limit of memory has no such file.
        drop(Spared::begin(&entrance()).unwrap());
        let group = cgroup.path().join("memory.oom.group");
        for (before, meanwhile) in [("1\n", "0\n"), ("0\n", "0\n")] {
            std::fs::write(&group, before).unwrap();
            let entrance = entrance();
            let spared = Spared::begin(&entrance).unwrap();
            assert_eq!(std::fs::read_to_string(&group).unwrap(), meanwhile);
            drop(spared);
            assert_eq!(std::fs::read_to_string(&group).unwrap(), before);
        }
    }
}

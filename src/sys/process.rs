//! `clone3(2)` of a single-threaded process, `close_range(2)`, `_exit(2)`, `signal(2)`, `keyctl(2)`.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// What [`clone3`] returned.
pub enum Cloned {
    /// In the caller: the child, by number (valid until it is waited for) and by pidfd.
    Parent {
        /// Its number in the caller's pid namespace.
        pid: i32,
        /// Its pidfd, close-on-exec.
        pidfd: OwnedFd,
    },
    /// In the child.
    Child,
}

/// Of linux/sched.h; libc's constant is an int, into which it doesn't fit.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Clones this process as `fork(2)` does, with `flags` (`CLONE_NEW*`, `CLONE_PARENT`) on top and a pidfd.
///
/// # Errors
/// What `clone3(2)` says; EBUSY when this process has more than one thread: in the child of such a process only
/// async-signal-safe calls are legal (signal-safety(7)), and we make others.
pub fn clone3(flags: i32) -> io::Result<Cloned> {
    clone3_into(flags, None)
}

/// As [`clone3`], with the child in `cgroup` from its first moment (`CLONE_INTO_CGROUP`): the directory of a cgroup v2,
/// opened in whatever way, `O_PATH` included. `None` is the caller's own.
///
/// # Errors
/// As [`clone3`]; EACCES when the caller may not move processes there, EAGAIN when that cgroup's `pids.max` is reached,
/// EBUSY also when it gives controllers to cgroups below it (cgroups(7), "no internal processes").
pub fn clone3_into(flags: i32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    single_threaded()?;
    let mut pidfd: RawFd = -1;
    // CLONE_PARENT children signal our parent as we would: clone3 wants no signal of its own then.
    let exit_signal = if flags & libc::CLONE_PARENT != 0 {
        0
    } else {
        libc::SIGCHLD
    };
    // SAFETY: clone_args is plain data for which all zeroes is a valid value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::from(flags.cast_unsigned()) | libc::CLONE_PIDFD as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = u64::from(exit_signal.cast_unsigned());
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    // SAFETY: no CLONE_VM, so the child has its own copy of this address space; the process has one thread (checked
    // above), so no lock is held by a thread that the child lacks. `args` and `pidfd` outlive the call.
    match unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut args,
            size_of::<libc::clone_args>(),
        )
    } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        pid => Ok(Cloned::Parent {
            pid: i32::try_from(pid).expect("the kernel's pids fit pid_t"),
            // SAFETY: CLONE_PIDFD made the kernel store a fresh descriptor here, owned by nobody else.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}

/// Whether this process has one thread only, which is what many calls are safe for.
///
/// # Errors
/// EBUSY when it has more.
pub fn single_threaded() -> io::Result<()> {
    // unshare(2): CLONE_THREAD does nothing, but is EINVAL if there is another thread. It asks no /proc.
    // SAFETY: with this flag nothing is changed.
    if unsafe { libc::unshare(libc::CLONE_THREAD) } == -1 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    Ok(())
}

/// Ends this process at once: no destructors, no buffers, nothing of the parent's that a forked child must not run.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) has no precondition.
    unsafe { libc::_exit(status) }
}

/// As [`detach_with`], with one descriptor.
///
/// # Errors
/// As [`clone3`].
pub fn detach(kept: OwnedFd, life: impl FnOnce(OwnedFd) -> i32) -> io::Result<OwnedFd> {
    detach_with([kept], |[kept]| life(kept))
}

/// Clones this process for good: the child lives `life` with no other descriptor from 3 on than `kept`, and ends with the
/// status that it returns. The pidfd of the child is for the caller, who has `kept` no more.
///
/// So whatever the caller was started with (a pipe that somebody waits for the end of, a lock) ends with the caller.
/// Nothing that `life` captures may own a descriptor: it is closed. The caller, which should be about to end, never frees it.
///
/// # Errors
/// As [`clone3`].
pub fn detach_with<K: AsRef<[OwnedFd]>>(
    kept: K,
    life: impl FnOnce(K) -> i32,
) -> io::Result<OwnedFd> {
    match clone3(0)? {
        Cloned::Parent { pidfd, .. } => {
            // Freeing it would copy its pages, which both have still. It owns no descriptor.
            std::mem::forget(life);
            Ok(pidfd)
        }
        Cloned::Child => {
            let fds = kept.as_ref().iter();
            let mut numbers: Vec<u32> = fds.map(|fd| fd.as_raw_fd().cast_unsigned()).collect();
            numbers.sort_unstable();
            let mut next = 3;
            for number in numbers {
                if number > next {
                    close_range(next, number - 1);
                }
                next = next.max(number + 1);
            }
            close_range(next, u32::MAX);
            exit_now(life(kept))
        }
    }
}

/// `close_range(2)`, of a child in which nothing lives on that owns one of them.
fn close_range(first: u32, last: u32) {
    // SAFETY: no value that owns one of these descriptors is ever used or dropped: the caller's frames are never returned
    // to, and the child has one thread. EINVAL (first > last) and ENOSYS leave them as they were inherited.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}

/// Marks every descriptor from `first` on close-on-exec (`close_range(2)` with `CLOSE_RANGE_CLOEXEC`).
///
/// # Errors
/// What `close_range(2)` says.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: closes nothing now; a flag on descriptors breaks no owner's invariant.
    let done = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    if done == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The opposite, of the first descriptors from `first` on that are no pipes, whose end somebody waits for: what a test of
/// the audit leaks on purpose.
pub fn keep_on_exec_from(first: i32) {
    const SOME: i32 = 64;
    let is_pipe = |fd| {
        let link = std::fs::read_link(format!("/proc/self/fd/{fd}"));
        link.is_ok_and(|link| link.to_string_lossy().starts_with("pipe:"))
    };
    for fd in (first..SOME).filter(|fd| !is_pipe(*fd)) {
        // SAFETY: a flag on descriptors breaks no owner's invariant; a number that is not open is an error.
        unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
    }
}

/// Gives every signal its default action back: an ignored signal stays so across `execve(2)` (signal(7)). Rust's
/// runtime ignores SIGPIPE, nohup(1) SIGHUP, a shell without job control SIGINT and SIGQUIT, and whoever started us
/// may have ignored any.
pub fn default_signals() {
    for number in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL runs no code of ours. EINVAL for SIGKILL, SIGSTOP and those of the C library changes nothing.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
}

/// Lets this process hear of its children's ends again, should whoever started it have ignored SIGCHLD: then the
/// kernel reaps them itself, and there is nothing to wait for (waitpid(2), "Notes").
pub fn default_sigchld() {
    // SAFETY: as above.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Joins a new, empty session keyring: the keys of whoever started us are inherited otherwise, and holding a keyring
/// is all it takes to read and change what is in it, whatever the uid and the namespaces (keyrings(7)).
///
/// # Errors
/// What `keyctl(2)` says; where this kernel has no keyrings, or a seccomp filter around us refuses keyctl(2) to us
/// and so to all our children, there is nothing to leave and that is success.
pub fn leave_session_keyring() -> io::Result<()> {
    let unnamed = std::ptr::null::<libc::c_char>();
    // SAFETY: the null pointer is the documented way to ask for a keyring without a name.
    let id = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, unnamed) };
    if id == -1 {
        let e = io::Error::last_os_error();
        return match e.raw_os_error() {
            Some(libc::ENOSYS | libc::EPERM) => Ok(()),
            _ => Err(e),
        };
    }
    Ok(())
}

/// Puts the null device on the three standard descriptors.
///
/// # Errors
/// What `open(2)` or `dup2(2)` says.
pub fn null_standard_descriptors() -> io::Result<()> {
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// The state of a process by its letter (proc_pid_stat(5)): `T` was stopped by a signal, `t` by who traces it. `None` where
/// there is no such process.
#[must_use]
pub fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Its name is in parentheses, and may have some of its own.
    stat.rsplit_once(") ")?.1.chars().next()
}

//! `clone3(2)` of a single-threaded process, as `fork(2)` and as `vfork(2)`, `close_range(2)`, `_exit(2)`, `signal(2)`,
//! `keyctl(2)`.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::process::{
    DumpableBehavior, Signal, WaitId, WaitIdOptions, dumpable_behavior, set_dumpable_behavior,
    waitid,
};

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

/// What [`vfork_into`] returned: the child has ended, or executed something.
pub struct Vforked<T> {
    /// Its number in the caller's pid namespace (valid until it is waited for).
    pub pid: i32,
    /// Its pidfd, close-on-exec.
    pub pidfd: OwnedFd,
    /// What its life came to; `None` if it has executed something, or was killed.
    pub done: Option<T>,
}

/// A child that has done its work on this process's memory and stands still; it ends with this value.
pub struct Resting {
    /// Its number in the caller's pid namespace.
    pub pid: i32,
    pidfd: OwnedFd,
    _stack: Stack,
}

impl Resting {
    /// Ends it.
    ///
    /// # Errors
    /// EPERM when it is somebody else by now, and this process may signal no such (kill(2)): then it ends with this process.
    pub fn end(self) -> io::Result<()> {
        end(&self.pidfd)
    }
}

impl Drop for Resting {
    fn drop(&mut self) {
        let _ = end(&self.pidfd);
    }
}

/// Kills a child and waits for its end; one that has ended, or was waited for, is no error.
///
/// # Errors
/// EPERM when this process may not signal it (kill(2)): then it is not waited for.
pub fn end(pidfd: &OwnedFd) -> io::Result<()> {
    match rustix::process::pidfd_send_signal(pidfd, Signal::KILL) {
        // ESRCH: it has ended.
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        // It would be waited for in vain.
        Err(e) => return Err(e.into()),
    }
    // ECHILD: it was waited for.
    let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
    Ok(())
}

/// How much of a stack there is for the life of such a child, in bytes.
const STACK: usize = 512 << 10;

/// What the child of a child on this memory is made with: it is this process's, so that it outlives a child who is killed.
pub struct Second {
    stack: Stack,
    /// Where the kernel notes the pidfd; -1 before.
    pidfd: Cell<RawFd>,
}

impl Second {
    /// None is made yet.
    ///
    /// # Errors
    /// ENOMEM when there is no memory for a stack.
    pub fn new() -> io::Result<Self> {
        let (stack, pidfd) = (Stack::new()?, Cell::new(-1));
        Ok(Self { stack, pidfd })
    }

    /// As [`vfork_into`], by the child, in its cgroup.
    ///
    /// # Errors
    /// As [`vfork_into`].
    pub fn vfork<T>(&self, flags: i32, life: impl FnOnce() -> T) -> io::Result<Vforked<T>> {
        let mut call = Call::new(life, false);
        let dumpable = dumpable_behavior()?;
        let flags = flags | libc::CLONE_VFORK;
        // SAFETY: CLONE_VFORK lets this process go on when the child has ended or executed something.
        let begun = unsafe { call.begin(flags, None, &self.stack, &self.pidfd) };
        // What is noted of a clone that came to nothing is nobody's; of another it is the caller's, if he comes to say so.
        let (pid, pidfd) = begun.inspect_err(|_| self.pidfd.set(-1))?;
        still(dumpable)?;
        let done = call.done.take();
        Ok(Vforked { pid, pidfd, done })
    }

    /// Ends whom a child has made that was killed before it said so, and waits for the end.
    fn end(&self) {
        let number = self.pidfd.replace(-1);
        // SAFETY: no memory is involved. A clone that came to nothing leaves a number that is no descriptor.
        if number < 0 || unsafe { libc::fcntl(number, libc::F_GETFD) } == -1 {
            return;
        }
        // SAFETY: the kernel has made this descriptor for who was killed, and nothing has run since that could have it.
        let pidfd = unsafe { OwnedFd::from_raw_fd(number) };
        let _ = end(&pidfd);
    }
}

/// Clones this process as `vfork(2)` does, with `flags` on top and a pidfd, and returns when the child has ended or executed
/// something: it has this process's memory, and a stack of its own in it. So nothing is copied, which is most of what a
/// `fork(2)` costs, and what `life` comes to is there for the caller. With `CLONE_FILES` so are the descriptors that it has
/// opened; without, it must close none that is the caller's: `life` should borrow them.
///
/// Namespaces, ids, capabilities, limits and the working directory are the child's own. `life` should be short: this process
/// does nothing else meanwhile. Handlers of signals run in the child as well, on this memory.
///
/// What `life` has made of `second` ends with a child that is killed. Whoever kills the child alone may leave this memory in
/// the middle of a change. That takes what it takes to kill this process: the child is in its pid namespace, where no process
/// of a part can name it. The kernel's want of memory spares it (`in_vfork()`, include/linux/sched/mm.h), unless its cgroup
/// has memory.oom.group.
///
/// # Errors
/// As [`clone3_into`]; ENOMEM when there is no memory for a stack.
pub fn vfork_into<T>(
    flags: i32,
    cgroup: Option<BorrowedFd<'_>>,
    second: &Second,
    life: impl FnOnce() -> T,
) -> io::Result<Vforked<T>> {
    let mut call = Call::new(life, false);
    let dumpable = dumpable_behavior()?;
    let (stack, noted) = (Stack::new()?, Cell::new(-1));
    // SAFETY: CLONE_VFORK lets this process go on when the child has ended or executed something.
    let begun = unsafe { call.begin(flags | libc::CLONE_VFORK, cgroup, &stack, &noted) };
    let (pid, pidfd) = begun?;
    let done = call.done.take();
    if done.is_none() {
        // Before the stack goes that what it runs on has come from.
        second.end();
    }
    still(dumpable)?;
    Ok(Vforked { pid, pidfd, done })
}

/// As [`vfork_into`], but when its life is done the child stands still and exists until the value is dropped: what the kernel tells
/// of a process, and takes for it, in /proc, it does for one that has not ended. It hears no signal meanwhile.
///
/// # Errors
/// As [`vfork_into`]; ECANCELED if it was killed.
pub fn vfork_and_rest<T>(flags: i32, life: impl FnOnce() -> T) -> io::Result<(T, Resting)> {
    let mut call = Call::new(life, true);
    let dumpable = dumpable_behavior()?;
    let (stack, noted) = (Stack::new()?, Cell::new(-1));
    // Or a handler could run here while the child runs: two on one memory.
    let signals = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    // SAFETY: this process only waits until the child stands still.
    let begun = unsafe { call.begin(flags, None, &stack, &noted) };
    let rests = begun.and_then(|(pid, pidfd)| {
        let rests = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        // Waited for by the drop, whatever has become of it.
        waitid(WaitId::PidFd(pidfd.as_fd()), rests)?;
        Ok(Resting {
            pid,
            pidfd,
            _stack: stack,
        })
    });
    signals.thread_set_mask()?;
    let rests = rests?;
    still(dumpable)?;
    let done = call.done.take();
    let done = done.ok_or_else(|| io::Error::from_raw_os_error(libc::ECANCELED))?;
    Ok((done, rests))
}

/// Whether this process is dumpable belongs to its memory, and a change of ids by the child has cleared it (`commit_creds()`,
/// kernel/cred.c), or the child has set it.
fn still(dumpable: DumpableBehavior) -> io::Result<()> {
    match (dumpable, dumpable_behavior()?) {
        (DumpableBehavior::Dumpable, _) => set_dumpable_behavior(dumpable)?,
        // To be readable by root alone (fs.suid_dumpable) can't be set again; not to be readable at all can.
        (_, DumpableBehavior::Dumpable) => {
            set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        }
        _ => {}
    }
    Ok(())
}

/// What a child on our memory is given, in the caller's frame.
struct Call<T, F> {
    life: Option<F>,
    done: Option<T>,
    rests: bool,
    /// Who waits for it.
    parent: u32,
}

impl<T, F: FnOnce() -> T> Call<T, F> {
    fn new(life: F, rests: bool) -> Self {
        let (life, done) = (Some(life), None);
        Self {
            life,
            done,
            rests,
            parent: 0,
        }
    }

    /// Clones a child that shares our memory.
    ///
    /// # Safety
    /// Until it has ended, executed something or stands still, this process must not touch memory that the child may, nor
    /// `stack` be dropped.
    unsafe fn begin(
        &mut self,
        flags: i32,
        cgroup: Option<BorrowedFd<'_>>,
        stack: &Stack,
        noted: &Cell<RawFd>,
    ) -> io::Result<(i32, OwnedFd)> {
        single_threaded()?;
        self.parent = std::process::id();
        let flags = flags | libc::CLONE_VM;
        let mut args = arguments(flags, exit_signal(flags), noted.as_ptr(), cgroup);
        (args.stack, args.stack_size) = (stack.lowest() as u64, STACK as u64);
        let call = std::ptr::from_mut(self).cast();
        // SAFETY: the stack is as large as said, and mapped until after the call; `call` is what the life was made for. The
        // process has one thread, whose locks the child so holds itself, as a function that is called does.
        let pid = unsafe { clone3_with_stack(&mut args, Self::live, call) }?;
        // SAFETY: CLONE_PIDFD made the kernel store a fresh descriptor here, owned by nobody else.
        Ok((pid, unsafe { OwnedFd::from_raw_fd(noted.get()) }))
    }

    /// Where the child begins.
    ///
    /// # Safety
    /// `call` must be a `Self` that nobody else looks at until this process has ended, executed something or stands still.
    unsafe extern "C" fn live(call: *mut libc::c_void) -> ! {
        // SAFETY: as above.
        let call = unsafe { &mut *call.cast::<Self>() };
        call.done = call.life.take().map(|life| life());
        if call.rests {
            // It has all the descriptors of who waits for it: a listening socket would live on with it. Who has ended before
            // this is no parent any more.
            let death = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
            if death.is_err() || std::os::unix::process::parent_id() != call.parent {
                exit_now(0)
            }
            // To the whole process, which is this thread. Should somebody have it go on, it ends.
            // SAFETY: no memory is involved.
            unsafe { libc::kill(libc::getpid(), libc::SIGSTOP) };
        }
        exit_now(0)
    }
}

/// Memory for a stack, above a page that nobody may touch.
struct Stack {
    /// The address of the mapping.
    whole: usize,
}

impl Stack {
    /// More than a page of any machine.
    const GUARD: usize = 64 << 10;

    fn new() -> io::Result<Self> {
        let (nobody, ours) = (libc::PROT_NONE, libc::PROT_READ | libc::PROT_WRITE);
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
        let whole = Self::GUARD + STACK;
        // SAFETY: a new mapping wherever there is room for it.
        let guard = unsafe { libc::mmap(std::ptr::null_mut(), whole, nobody, kind, -1, 0) };
        if guard == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = Self {
            whole: guard as usize,
        };
        // SAFETY: what lies above the guard is ours alone.
        match unsafe { libc::mprotect(stack.lowest() as *mut _, STACK, ours) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(stack),
        }
    }

    fn lowest(&self) -> usize {
        self.whole + Self::GUARD
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nobody runs on it any more.
        unsafe { libc::munmap(self.whole as *mut _, Self::GUARD + STACK) };
    }
}

/// Where a child begins that has a stack of its own, with the argument that was given to [`clone3_with_stack`].
type Begin = unsafe extern "C" fn(*mut libc::c_void) -> !;

/// `clone3(2)` with a stack for the child, which no C library wraps: the child can't come back to where the parent does, for
/// what lies on the parent's stack is not on its own.
///
/// # Safety
/// `args` must name a stack that the child can use, and if it shares our memory, `begin` must be sound there with `argument`.
unsafe fn clone3_with_stack(
    args: &mut libc::clone_args,
    begin: Begin,
    argument: *mut libc::c_void,
) -> io::Result<i32> {
    let returned: isize;
    // SAFETY: as above. The kernel keeps every register but those of the result and of its own way back; the child begins
    // with all of them and its own stack pointer, aligned as a call wants it, and never returns.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, rdx",
            "call r8",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 as isize => returned,
            in("rdi") args,
            in("rsi") size_of::<libc::clone_args>(),
            in("rdx") argument,
            in("r8") begin,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x30, xzr",
            "mov x0, x2",
            "blr x3",
            "brk #1",
            "2:",
            inlateout("x0") std::ptr::from_mut(args) => returned,
            in("x1") size_of::<libc::clone_args>(),
            in("x2") argument,
            in("x3") begin,
            in("x8") libc::SYS_clone3,
        );
    }
    match i32::try_from(returned) {
        Ok(pid) if pid > 0 => Ok(pid),
        Ok(errno) => Err(io::Error::from_raw_os_error(-errno)),
        Err(_) => unreachable!("the kernel's pids and errors fit pid_t"),
    }
}

/// CLONE_PARENT children signal our parent as we would: clone3 wants no signal of its own then.
fn exit_signal(flags: i32) -> i32 {
    match flags & libc::CLONE_PARENT {
        0 => libc::SIGCHLD,
        _ => 0,
    }
}

/// What `clone3(2)` is asked for, but for a stack.
fn arguments(
    flags: i32,
    exit_signal: i32,
    pidfd: *mut RawFd,
    cgroup: Option<BorrowedFd<'_>>,
) -> libc::clone_args {
    // SAFETY: clone_args is plain data for which all zeroes is a valid value.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::from(flags.cast_unsigned()) | libc::CLONE_PIDFD as u64;
    args.pidfd = pidfd as u64;
    args.exit_signal = u64::from(exit_signal.cast_unsigned());
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    args
}

/// As [`clone3`], with the child in `cgroup` from its first moment (`CLONE_INTO_CGROUP`): the directory of a cgroup v2,
/// opened in whatever way, `O_PATH` included. `None` is the caller's own.
///
/// # Errors
/// As [`clone3`]; EACCES when the caller may not move processes there, EAGAIN when that cgroup's `pids.max` is reached,
/// EBUSY also when it gives controllers to cgroups below it (cgroups(7), "no internal processes").
pub fn clone3_into(flags: i32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    clone3_saying(flags, exit_signal(flags), cgroup)
}

/// As [`clone3_into`], with that signal at its end.
fn clone3_saying(
    flags: i32,
    exit_signal: i32,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<Cloned> {
    single_threaded()?;
    let mut pidfd: RawFd = -1;
    let mut args = arguments(flags, exit_signal, &raw mut pidfd, cgroup);
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

/// The number that a pidfd stands for, in our pid namespace (`/proc/PID/fdinfo`, proc_pid_fdinfo(5)).
///
/// # Errors
/// What the kernel says; ESRCH when the process has ended, or is in no namespace of ours.
pub fn pid_of(pidfd: BorrowedFd<'_>) -> io::Result<i32> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"));
    let pid = pid.and_then(|pid| pid.trim().parse().ok());
    let ended = || io::Error::from_raw_os_error(libc::ESRCH);
    pid.filter(|pid| *pid > 0).ok_or_else(ended)
}

/// What is found of a process by its number, as in /proc/PID: of the one that the pidfd stands for and of no other.
///
/// # Errors
/// What `look` says; ESRCH when the process has ended.
pub fn by_number<T>(
    pidfd: BorrowedFd<'_>,
    look: impl FnOnce(i32) -> io::Result<T>,
) -> io::Result<T> {
    let pid = pid_of(pidfd)?;
    let found = look(pid)?;
    // As long as it has not been waited for, nobody else has its number.
    match pid_of(pidfd)? == pid {
        true => Ok(found),
        false => Err(io::Error::from_raw_os_error(libc::ESRCH)),
    }
}

/// Ends every process of that uid, and in user namespaces that it owns, whatever has been forked meanwhile: kill(2) sees all at once,
/// and who is told to end forks no more.
/// It is done by a child that is that uid by its effective one alone, and `nobody` else: none of those can signal it.
///
/// # Errors
/// What `clone3(2)`, `setresuid(2)` or `kill(2)` says: EPERM without CAP_SETUID.
pub fn end_all_of(uid: u32, nobody: u32) -> io::Result<()> {
    let [uid, nobody] = [uid, nobody].map(nix::unistd::Uid::from_raw);
    let life = || {
        nix::unistd::setresuid(nobody, uid, nobody)?;
        match nix::sys::signal::kill(nix::unistd::Pid::from_raw(-1), nix::sys::signal::SIGKILL) {
            // There is none.
            Ok(()) | Err(nix::Error::ESRCH | nix::Error::EPERM) => Ok(()),
            Err(e) => Err(e),
        }
    };
    let child = vfork_into(0, None, &Second::new()?, life)?;
    let _ = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED);
    let done = child.done.ok_or(io::ErrorKind::Interrupted)?;
    Ok(done?)
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
    detach_by(clone3(0)?, kept, life)
}

/// As [`detach_with`], but who waits for any child, or for all, does not wait for this one (`__WCLONE` of waitpid(2)).
///
/// # Errors
/// As [`clone3`].
pub fn beside<K: AsRef<[OwnedFd]>>(kept: K, life: impl FnOnce(K) -> i32) -> io::Result<OwnedFd> {
    detach_by(clone3_saying(0, 0, None)?, kept, life)
}

fn detach_by<K: AsRef<[OwnedFd]>>(
    cloned: Cloned,
    kept: K,
    life: impl FnOnce(K) -> i32,
) -> io::Result<OwnedFd> {
    match cloned {
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

/// Makes `number` a descriptor of the same, which stays across `execve(2)`. What has been there is closed.
///
/// # Errors
/// What `dup3(2)` says.
pub fn place_at(fd: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    // SAFETY: whoever owns what was there is this process, which calls this when it is about to replace its image, and uses
    // nothing any more that could be there.
    let done = unsafe { libc::dup3(fd.as_raw_fd(), number, 0) };
    if done == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
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

/// Whether a process was stopped, by a signal or by who traces it; not if it is not there.
#[must_use]
pub fn is_stopped(pid: u32) -> bool {
    matches!(state(pid), Some('T' | 't'))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `check` in a process with one thread, which the test's is not.
    fn alone(check: impl FnOnce() + std::panic::UnwindSafe) {
        // SAFETY: the C library has its own locks ready in the child, and ours are held by nobody: each test has its own.
        match unsafe { libc::fork() } {
            -1 => panic!("{}", io::Error::last_os_error()),
            0 => exit_now(std::panic::catch_unwind(check).map_or(1, |()| 0)),
            pid => {
                let pid = nix::unistd::Pid::from_raw(pid);
                let status = nix::sys::wait::waitpid(pid, None).unwrap();
                assert_eq!(status, nix::sys::wait::WaitStatus::Exited(pid, 0));
            }
        }
    }

    fn status_of<T>(child: &Vforked<T>) -> Option<i32> {
        let ended = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED);
        ended.unwrap().unwrap().exit_status()
    }

    fn open_descriptors() -> usize {
        std::fs::read_dir("/proc/self/fd").unwrap().count()
    }

    fn vfork<T>(flags: i32, life: impl FnOnce() -> T) -> io::Result<Vforked<T>> {
        Second::new()?.vfork(flags, life)
    }

    #[test]
    fn what_a_child_on_our_memory_comes_to_is_ours_and_what_it_is_in_is_not() {
        alone(|| {
            let here = || std::fs::read_link("/proc/self/ns/uts").unwrap();
            let (before, mut lines) = (here(), vec![]);
            let child = vfork(libc::CLONE_FILES, || {
                lines.push("a line".to_owned());
                std::env::set_current_dir("/proc").unwrap();
                let kinds =
                    nix::sched::CloneFlags::CLONE_NEWUSER | nix::sched::CloneFlags::CLONE_NEWUTS;
                super::super::namespace::unshare(kinds).unwrap();
                (here(), std::fs::File::open("/dev/null").unwrap())
            })
            .unwrap();
            assert_eq!(status_of(&child), Some(0));
            let (there, null) = child.done.unwrap();
            assert_eq!(lines, ["a line"]);
            assert_ne!(there, before);
            assert_eq!(here(), before);
            assert_ne!(
                std::env::current_dir().unwrap(),
                std::path::Path::new("/proc")
            );
            assert!(rustix::fs::fstat(null).is_ok());
        });
    }

    #[test]
    fn without_its_descriptors_shared_a_child_opens_its_own() {
        alone(|| {
            let before = open_descriptors();
            let open = || std::mem::forget(std::fs::File::open("/dev/null"));
            let child = vfork(0, open).unwrap();
            assert_eq!(child.done, Some(()));
            drop(child);
            assert_eq!(open_descriptors(), before);
            let child = vfork(libc::CLONE_FILES, open).unwrap();
            drop(child);
            assert_eq!(open_descriptors(), before + 1);
        });
    }

    #[test]
    fn a_child_that_executes_or_is_killed_comes_to_nothing() {
        alone(|| {
            let args = [c"sh", c"-c", c"exit 7"];
            let executes = || nix::unistd::execv(c"/bin/sh", &args);
            let child = vfork(0, executes).unwrap();
            assert!(child.done.is_none());
            assert_eq!(status_of(&child), Some(7));
            let kill = || nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
            let child = vfork(0, kill).unwrap();
            assert!(child.done.is_none());
            assert_eq!(status_of(&child), None);
            let killed = vfork_and_rest(0, kill).map(|_| ()).unwrap_err();
            assert_eq!(killed.raw_os_error(), Some(libc::ECANCELED));
        });
    }

    #[test]
    fn what_a_child_that_is_killed_has_made_ends_with_it() {
        alone(|| {
            let before = open_descriptors();
            let second = Second::new().unwrap();
            let child = vfork_into(libc::CLONE_FILES, None, &second, || {
                let own = rustix::process::getpid();
                let life = || {
                    rustix::process::kill_process(own, Signal::KILL).unwrap();
                    loop {
                        nix::unistd::pause();
                    }
                };
                let made: Vforked<()> = second.vfork(libc::CLONE_PARENT, life).unwrap();
                made.pid
            });
            let child = child.unwrap();
            assert_eq!(child.done, None);
            assert_eq!(status_of(&child), None);
            drop(child);
            assert_eq!(open_descriptors(), before);
            let none = nix::sys::wait::waitpid(None, None);
            assert_eq!(none, Err(nix::Error::ECHILD));
        });
    }

    #[test]
    fn a_child_that_rests_ends_with_who_waits_for_it() {
        alone(|| {
            let (mut said, say) = io::pipe().unwrap();
            let (hold, held) = io::pipe().unwrap();
            let Cloned::Parent { .. } = clone3(0).unwrap() else {
                drop(held);
                let (pid, resting) = vfork_and_rest(0, std::process::id).unwrap();
                std::mem::forget(resting);
                io::Write::write_all(&mut &say, &pid.to_ne_bytes()).unwrap();
                // Until the other end is closed.
                let _ = io::Read::read(&mut &hold, &mut [0]);
                exit_now(0)
            };
            let mut pid = [0; 4];
            io::Read::read_exact(&mut said, &mut pid).unwrap();
            let pid = rustix::process::Pid::from_raw(i32::from_ne_bytes(pid)).unwrap();
            let none = rustix::process::PidfdFlags::empty();
            let pidfd = rustix::process::pidfd_open(pid, none).unwrap();
            drop(held);
            let mut ended = [rustix::event::PollFd::new(
                &pidfd,
                rustix::event::PollFlags::IN,
            )];
            let limit = rustix::event::Timespec {
                tv_sec: 20,
                tv_nsec: 0,
            };
            assert_eq!(rustix::event::poll(&mut ended, Some(&limit)), Ok(1));
        });
    }

    #[test]
    fn a_child_that_rests_is_there_until_it_is_dropped_and_hears_nothing() {
        alone(|| {
            let before = open_descriptors();
            let own = || rustix::process::getpid().as_raw_nonzero().get();
            let (said, resting) = vfork_and_rest(libc::CLONE_FILES, own).unwrap();
            assert_eq!(said, resting.pid);
            let pid = resting.pid.cast_unsigned();
            assert_eq!(state(pid), Some('T'));
            let term = rustix::process::pidfd_send_signal(&resting.pidfd, Signal::TERM);
            assert_eq!(term, Ok(()));
            assert_eq!(state(pid), Some('T'));
            drop(resting);
            assert_eq!(state(pid), None);
            assert_eq!(open_descriptors(), before);
            let signals = SigSet::thread_get_mask().unwrap();
            assert!(!signals.contains(nix::sys::signal::Signal::SIGTERM));
        });
    }

    #[test]
    fn a_child_that_becomes_somebody_else_leaves_us_dumpable() {
        alone(|| {
            assert_eq!(dumpable_behavior(), Ok(DumpableBehavior::Dumpable));
            let undumpable = || set_dumpable_behavior(DumpableBehavior::NotDumpable);
            assert_eq!(vfork(0, undumpable).unwrap().done, Some(Ok(())));
            assert_eq!(dumpable_behavior(), Ok(DumpableBehavior::Dumpable));
            assert_eq!(vfork_and_rest(0, undumpable).unwrap().0, Ok(()));
            assert_eq!(dumpable_behavior(), Ok(DumpableBehavior::Dumpable));
            undumpable().unwrap();
            assert_eq!(vfork(0, || ()).unwrap().done, Some(()));
            assert_eq!(dumpable_behavior(), Ok(DumpableBehavior::NotDumpable));
        });
    }

    #[test]
    fn a_process_that_was_stopped_is_known_by_that() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        assert!(!is_stopped(child.id()));
        nix::sys::signal::kill(pid, nix::sys::signal::SIGSTOP).unwrap();
        let flags = nix::sys::wait::WaitPidFlag::WUNTRACED;
        nix::sys::wait::waitpid(pid, Some(flags)).unwrap();
        assert!(is_stopped(child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_stopped(child.id()));
    }

    #[test]
    fn a_process_with_threads_has_no_child_on_its_memory() {
        let refused = std::thread::spawn(|| vfork(0, || ()).map(|_| ()).unwrap_err());
        assert_eq!(refused.join().unwrap().raw_os_error(), Some(libc::EBUSY));
    }
}

//! System calls that [`crate::audit`] attempts and hopes to be refused, and what it takes to attempt them.
//!
//! Each is made with arguments that change nothing of anybody's, or only of the process that makes it, should the
//! kernel grant it; the caller is a child that is thrown away.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{c_int, c_long};

/// What is attempted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// `bpf(2)`: make a map.
    Bpf,
    /// `io_uring_setup(2)` of one entry.
    IoUring,
    /// `perf_event_open(2)`: a software counter of this process, user space only.
    PerfEvent,
    /// `userfaultfd(2)` for user space only.
    Userfaultfd,
    /// `add_key(2)` to the process's own keyring.
    AddKey,
    /// `keyctl(2)`: the number of the session keyring.
    Keyctl,
    /// `ptrace(2)`: be traced by the parent.
    PtraceTraceme,
    /// `ptrace(2)`: follow pid 1, without stopping it.
    PtraceInit,
    /// `process_vm_readv(2)` of pid 1.
    ReadInitMemory,
    /// `pidfd_getfd(2)`: pid 1's descriptor 0.
    TakeInitDescriptor,
    /// `kexec_load(2)` with flags that don't exist.
    KexecLoad,
    /// `init_module(2)` of nothing.
    InitModule,
    /// `iopl(2)`, where there is one.
    Iopl,
    /// `swapon(2)` of nothing.
    Swapon,
    /// `reboot(2)`: Ctrl-Alt-Del is a signal, which it is.
    Reboot,
    /// `settimeofday(2)` with neither time nor zone.
    SetTime,
    /// `sethostname(2)` with an impossible length.
    SetHostname,
    /// `open_by_handle_at(2)` of a handle that is nothing's.
    OpenByHandle,
    /// `mount(2)` of a file system that doesn't exist.
    Mount,
    /// `mount(2)`: the root, with the flags that it should have anyway.
    Remount,
    /// `umount2(2)` of the root, which can't expire.
    Umount,
    /// `pivot_root(2)` to where it is.
    PivotRoot,
    /// `chroot(2)` to the root.
    Chroot,
    /// `fsopen(2)` of a tmpfs.
    Fsopen,
    /// `open_tree(2)`: a copy of the root's mount.
    OpenTree,
    /// `move_mount(2)` of nothing.
    MoveMount,
    /// `mount_setattr(2)` that changes nothing.
    MountSetattr,
    /// `setns(2)` to its own uts namespace.
    Setns,
    /// `unshare(2)` of the user namespace.
    UnshareUser,
    /// `unshare(2)` of the network namespace.
    UnshareNet,
    /// `unshare(2)` of the mount namespace.
    UnshareMount,
    /// `clone(2)` with a new user namespace.
    CloneUser,
    /// `clone3(2)` with a new user namespace.
    Clone3User,
    /// `syslog(2)`: read the kernel's log.
    Syslog,
    /// `fanotify_init(2)`.
    Fanotify,
    /// `ioctl(2)` TIOCSTI on standard input.
    Tiocsti,
    /// `personality(2)`: no address space randomization.
    Personality,
    /// `getpid(2)` by the number of the x32 ABI.
    X32,
    /// `setgroups(2)` to none.
    Setgroups,
    /// `capset(2)`: every capability, permitted and effective.
    Capset,
    /// `prctl(2)`: raise an ambient capability.
    AmbientRaise,
    /// `prctl(2)`: no securebits.
    Securebits,
    /// `setresuid(2)` to 0.
    BecomeRoot,
    /// `mknod(2)`: a device in that directory.
    Mknod(&'static std::ffi::CStr),
    /// `sched_setscheduler(2)`: SCHED_FIFO.
    Realtime,
    /// `setpriority(2)`: -20.
    Priority,
    /// `setrlimit(2)`: more descriptors than the hard limit.
    RaiseLimit,
    /// `prlimit(2)`: pid 1's limit of descriptors, to what this process has.
    OthersLimit,
    /// `fchmod(2)`: the set-user-ID bit, on a file in memory.
    SetUserId,
}

type Words = [usize; 6];

fn word(value: i64) -> usize {
    value as usize
}

impl Attempt {
    /// Makes the call, by a table of numbers and arguments; what it returned.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn make(self) -> io::Result<c_long> {
        let mut scratch = [0_u64; 32];
        let place = scratch.as_mut_ptr() as usize;
        let root = c"/".as_ptr() as usize;
        let empty = c"".as_ptr() as usize;
        let (nr, args): (c_long, Words) = match self {
            Self::Bpf => {
                // BPF_MAP_TYPE_ARRAY of one entry: type, key size, value size, entries.
                scratch[0] = 2 | 4 << 32;
                scratch[1] = 4 | 1 << 32;
                (libc::SYS_bpf, [0, place, 72, 0, 0, 0])
            }
            Self::IoUring => (libc::SYS_io_uring_setup, [1, place, 0, 0, 0, 0]),
            Self::PerfEvent => {
                // PERF_TYPE_SOFTWARE, size 128, PERF_COUNT_SW_CPU_CLOCK; exclude_kernel and exclude_hv.
                scratch[0] = 1 | 128 << 32;
                scratch[5] = 0x60;
                (
                    libc::SYS_perf_event_open,
                    [place, 0, word(-1), word(-1), 8, 0],
                )
            }
            Self::Userfaultfd => (
                libc::SYS_userfaultfd,
                [libc::O_CLOEXEC as usize | 1, 0, 0, 0, 0, 0],
            ),
            Self::AddKey => (
                libc::SYS_add_key,
                [
                    c"user".as_ptr() as usize,
                    c"lrpns-audit".as_ptr() as usize,
                    c"x".as_ptr() as usize,
                    1,
                    word(-2),
                    0,
                ],
            ),
            Self::Keyctl => (libc::SYS_keyctl, [0, word(-3), 0, 0, 0, 0]),
            Self::PtraceTraceme => (libc::SYS_ptrace, [0; 6]),
            Self::PtraceInit => (libc::SYS_ptrace, [0x4206, 1, 0, 0, 0, 0]),
            Self::ReadInitMemory => {
                scratch[0] = (place + 64) as u64;
                scratch[1] = 8;
                scratch[2] = 0x1_0000;
                scratch[3] = 8;
                (libc::SYS_process_vm_readv, [1, place, 1, place + 16, 1, 0])
            }
            Self::TakeInitDescriptor => {
                let init = raw(libc::SYS_pidfd_open, [1, 0, 0, 0, 0, 0])?;
                (libc::SYS_pidfd_getfd, [word(init), 0, 0, 0, 0, 0])
            }
            Self::KexecLoad => (libc::SYS_kexec_load, [0, 0, 0, 0x7fff_0000, 0, 0]),
            Self::InitModule => (libc::SYS_init_module, [0, 0, empty, 0, 0, 0]),
            #[cfg(target_arch = "x86_64")]
            Self::Iopl => (libc::SYS_iopl, [3, 0, 0, 0, 0, 0]),
            #[cfg(target_arch = "x86_64")]
            Self::X32 => (0x4000_0000 | libc::SYS_getpid, [0; 6]),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Iopl | Self::X32 => {
                return Err(io::Error::from_raw_os_error(libc::ENOSYS));
            }
            Self::Swapon => (libc::SYS_swapon, [empty, 0, 0, 0, 0, 0]),
            Self::Reboot => (
                libc::SYS_reboot,
                [
                    libc::LINUX_REBOOT_MAGIC1 as u32 as usize,
                    libc::LINUX_REBOOT_MAGIC2 as u32 as usize,
                    libc::LINUX_REBOOT_CMD_CAD_OFF as u32 as usize,
                    0,
                    0,
                    0,
                ],
            ),
            Self::SetTime => (libc::SYS_settimeofday, [0; 6]),
            Self::SetHostname => (libc::SYS_sethostname, [place, 4096, 0, 0, 0, 0]),
            Self::OpenByHandle => {
                // handle_bytes 8, handle_type 1, then eight bytes that name no inode.
                scratch[0] = 8 | 1 << 32;
                scratch[1] = u64::MAX;
                (
                    libc::SYS_open_by_handle_at,
                    [word(libc::AT_FDCWD.into()), place, 0, 0, 0, 0],
                )
            }
            Self::Mount => (
                libc::SYS_mount,
                [
                    empty,
                    root,
                    c"lrpns-no-such-file-system".as_ptr() as usize,
                    0,
                    0,
                    0,
                ],
            ),
            Self::Remount => (
                libc::SYS_mount,
                [
                    empty,
                    root,
                    0,
                    (libc::MS_REMOUNT
                        | libc::MS_BIND
                        | libc::MS_RDONLY
                        | libc::MS_NOSUID
                        | libc::MS_NODEV) as usize,
                    0,
                    0,
                ],
            ),
            Self::Umount => (
                libc::SYS_umount2,
                [root, libc::MNT_EXPIRE as usize, 0, 0, 0, 0],
            ),
            Self::PivotRoot => (libc::SYS_pivot_root, [root, root, 0, 0, 0, 0]),
            Self::Chroot => (libc::SYS_chroot, [root, 0, 0, 0, 0, 0]),
            Self::Fsopen => (
                libc::SYS_fsopen,
                [c"tmpfs".as_ptr() as usize, 1, 0, 0, 0, 0],
            ),
            Self::OpenTree => (
                libc::SYS_open_tree,
                [
                    word(libc::AT_FDCWD.into()),
                    root,
                    1 | libc::O_CLOEXEC as usize,
                    0,
                    0,
                    0,
                ],
            ),
            Self::MoveMount => (
                libc::SYS_move_mount,
                [word(-1), empty, word(-1), empty, 0x44, 0],
            ),
            Self::MountSetattr => (
                libc::SYS_mount_setattr,
                [word(libc::AT_FDCWD.into()), root, 0, place, 32, 0],
            ),
            Self::Setns => {
                let own = raw(
                    libc::SYS_pidfd_open,
                    [std::process::id() as usize, 0, 0, 0, 0, 0],
                )?;
                (
                    libc::SYS_setns,
                    [word(own), libc::CLONE_NEWUTS as usize, 0, 0, 0, 0],
                )
            }
            Self::UnshareUser => (
                libc::SYS_unshare,
                [libc::CLONE_NEWUSER as usize, 0, 0, 0, 0, 0],
            ),
            Self::UnshareNet => (
                libc::SYS_unshare,
                [libc::CLONE_NEWNET as usize, 0, 0, 0, 0, 0],
            ),
            Self::UnshareMount => (
                libc::SYS_unshare,
                [libc::CLONE_NEWNS as usize, 0, 0, 0, 0, 0],
            ),
            Self::CloneUser => {
                return clone_and_reap(
                    libc::SYS_clone,
                    [
                        (libc::CLONE_NEWUSER | libc::SIGCHLD) as usize,
                        0,
                        0,
                        0,
                        0,
                        0,
                    ],
                );
            }
            Self::Clone3User => {
                // struct clone_args: flags first, exit_signal fifth.
                scratch[0] = libc::CLONE_NEWUSER as u64;
                scratch[4] = libc::SIGCHLD as u64;
                let done = clone_and_reap(libc::SYS_clone3, [place, 64, 0, 0, 0, 0]);
                std::hint::black_box(&scratch);
                return done;
            }
            Self::Syslog => (libc::SYS_syslog, [3, place, 8, 0, 0, 0]),
            // FAN_CLASS_NOTIF | FAN_REPORT_FID, which needs no capability since Linux 5.13.
            Self::Fanotify => (libc::SYS_fanotify_init, [0x201, 0, 0, 0, 0, 0]),
            Self::Tiocsti => (libc::SYS_ioctl, [0, libc::TIOCSTI as usize, place, 0, 0, 0]),
            Self::Personality => (libc::SYS_personality, [0x004_0000, 0, 0, 0, 0, 0]),
            Self::Setgroups => (libc::SYS_setgroups, [0; 6]),
            Self::Capset => {
                // Version 3: header (version, pid), then two times effective, permitted, inheritable.
                scratch[0] = 0x2008_0522;
                scratch[1] = u64::MAX;
                scratch[2] = u64::from(u32::MAX) << 32;
                scratch[3] = u64::from(u32::MAX);
                (libc::SYS_capset, [place, place + 8, 0, 0, 0, 0])
            }
            // CAP_NET_RAW.
            Self::AmbientRaise => (
                libc::SYS_prctl,
                [
                    libc::PR_CAP_AMBIENT as usize,
                    libc::PR_CAP_AMBIENT_RAISE as usize,
                    13,
                    0,
                    0,
                    0,
                ],
            ),
            Self::Securebits => (
                libc::SYS_prctl,
                [libc::PR_SET_SECUREBITS as usize, 0, 0, 0, 0, 0],
            ),
            Self::BecomeRoot => (libc::SYS_setresuid, [0; 6]),
            Self::Mknod(path) => (
                libc::SYS_mknodat,
                [
                    word(libc::AT_FDCWD.into()),
                    path.as_ptr() as usize,
                    (libc::S_IFCHR | 0o600) as usize,
                    // 1:3, the null device.
                    0x103,
                    0,
                    0,
                ],
            ),
            Self::Realtime => {
                scratch[0] = 1;
                (
                    libc::SYS_sched_setscheduler,
                    [0, libc::SCHED_FIFO as usize, place, 0, 0, 0],
                )
            }
            Self::Priority => (libc::SYS_setpriority, [0, 0, word(-20), 0, 0, 0]),
            Self::RaiseLimit => {
                raw(
                    libc::SYS_prlimit64,
                    [0, libc::RLIMIT_NOFILE as usize, 0, place, 0, 0],
                )?;
                scratch[1] = scratch[1].saturating_add(1);
                (
                    libc::SYS_prlimit64,
                    [0, libc::RLIMIT_NOFILE as usize, place, 0, 0, 0],
                )
            }
            Self::OthersLimit => {
                raw(
                    libc::SYS_prlimit64,
                    [0, libc::RLIMIT_NOFILE as usize, 0, place, 0, 0],
                )?;
                (
                    libc::SYS_prlimit64,
                    [1, libc::RLIMIT_NOFILE as usize, place, 0, 0, 0],
                )
            }
            Self::SetUserId => {
                let name = c"lrpns-audit".as_ptr() as usize;
                let file = raw(
                    libc::SYS_memfd_create,
                    [name, libc::MFD_CLOEXEC as usize, 0, 0, 0, 0],
                )?;
                (libc::SYS_fchmod, [word(file), 0o4600, 0, 0, 0, 0])
            }
        };
        let done = raw(nr, args);
        // The kernel has read it, which the compiler doesn't see.
        std::hint::black_box(&scratch);
        done
    }
}

fn raw(nr: c_long, [a, b, c, d, e, f]: Words) -> io::Result<c_long> {
    // SAFETY: every caller in this module passes numbers, static C strings, or the address of its own `scratch`, which
    // is longer than what any of these calls reads or writes and outlives the call.
    match unsafe { libc::syscall(nr, a, b, c, d, e, f) } {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

/// A clone whose child ends at once, and is waited for.
fn clone_and_reap(nr: c_long, args: Words) -> io::Result<c_long> {
    let pid = raw(nr, args)?;
    if pid == 0 {
        super::process::exit_now(0);
    }
    let pid = c_int::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: no pointer; `pid` is a child of ours.
    unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL) };
    Ok(pid.into())
}

/// `fork(2)`: the child's number, `None` in the child. By the C library, and so by `clone(2)`: [`super::process::clone3`]
/// is not to be had under a filter that can't look into its arguments.
///
/// # Errors
/// What `fork(2)` says: EAGAIN at a limit.
pub fn fork() -> io::Result<Option<c_int>> {
    // SAFETY: the program has one thread, wherever this is called: the prober and the audit's agents never start one.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some(pid)),
    }
}

/// `socket(2)` by numbers: rustix knows not all of them.
///
/// # Errors
/// What the kernel said.
pub fn socket(domain: c_int, kind: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends one frame, link-layer header and all, out of the link of that index; `socket` is of AF_PACKET and SOCK_RAW.
///
/// # Errors
/// What `sendto(2)` says.
pub fn send_frame(socket: BorrowedFd<'_>, link: u32, frame: &[u8]) -> io::Result<()> {
    // SAFETY: sockaddr_ll is plain data for which all zeroes is a valid value.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = link.cast_signed();
    // SAFETY: both pointers are of live values of the lengths that are given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The open descriptors of this process below `limit`, without looking at /proc, which may not be there.
#[must_use]
pub fn open_descriptors(limit: c_int) -> Vec<c_int> {
    (0..limit)
        // SAFETY: F_GETFD reads a flag and touches nothing; a number that is not open is an error.
        .filter(|fd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } != -1)
        .collect()
}

/// The user namespace that owns the namespace behind `fd` (`NS_GET_USERNS`, ioctl_nsfs(2)).
///
/// # Errors
/// What `ioctl(2)` says; EPERM when that is out of reach.
pub fn owner_of(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const NS_GET_USERNS: libc::Ioctl = 0xb701;
    // SAFETY: this request takes no argument and returns a new descriptor.
    let owner = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_USERNS) };
    if owner == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(owner) })
}

/// Which socket option [`set_option`] sets to 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketOption {
    /// `IP_TRANSPARENT` (ip(7)).
    Transparent,
    /// `SO_MARK` (socket(7)).
    Mark,
}

/// Sets a socket option to 1.
///
/// # Errors
/// What `setsockopt(2)` says.
pub fn set_option(socket: BorrowedFd<'_>, option: SocketOption) -> io::Result<()> {
    let (level, name) = match option {
        SocketOption::Transparent => (libc::SOL_IP, libc::IP_TRANSPARENT),
        SocketOption::Mark => (libc::SOL_SOCKET, libc::SO_MARK),
    };
    let one: c_int = 1;
    // SAFETY: the option's value is a live integer of the size that is given.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const one).cast(),
            size_of::<c_int>() as libc::socklen_t,
        )
    };
    if done == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Which network namespace a socket is of, as a number that no other namespace has until the next boot
/// (`SO_NETNS_COOKIE`, Linux 5.14).
///
/// # Errors
/// What `getsockopt(2)` says.
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie: u64 = 0;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: both pointers are of live values, of which the first is as long as the second says.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if done == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(cookie)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_the_filter_refuses_is_granted_without_one() {
        // Pid 1's limits are not this test's to set.
        assert!(Attempt::SetUserId.make().is_ok());
    }
}

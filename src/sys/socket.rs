//! Socket options that no crate has.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::{setsockopt_impl, sockopt_impl};

sockopt_impl!(
    /// Whether descriptors may come by this socket (`SO_PASSRIGHTS`, Linux 6.16): without, whoever sends one is refused
    /// (`unix_stream_sendmsg()` of net/unix/af_unix.c). ENOPROTOOPT from a kernel that has it not.
    PassRights,
    SetOnly,
    libc::SOL_SOCKET,
    SO_PASSRIGHTS,
    bool
);

sockopt_impl!(
    /// Whether the filter of a socket stays what it is, whoever has the socket (`SO_LOCK_FILTER`, socket(7)). It can't be undone.
    LockFilter,
    SetOnly,
    libc::SOL_SOCKET,
    libc::SO_LOCK_FILTER,
    bool
);

/// Of include/uapi/asm-generic/socket.h; x86-64 and ARM64 both have that list.
const SO_PASSRIGHTS: libc::c_int = 83;

/// The descriptors that were handed to this process at its start (`$LISTEN_FDS`, sd_listen_fds(3)), with their names, marked
/// close-on-exec; nothing when it is asked again. Should be asked before anything is executed, which would inherit them.
///
/// # Errors
/// `$LISTEN_FDS` and its like can't be understood, or name what isn't open.
pub fn take_handed() -> io::Result<Vec<(OwnedFd, String)>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(vec![]);
    }
    // Of another process, names that were inherited are nothing to us.
    if sd_notify::listen_fds()?.len() == 0 {
        return Ok(vec![]);
    }
    let all = sd_notify::listen_fds_with_names()?;
    // SAFETY: `$LISTEN_PID` is this process, so whoever executed it has opened them for it, by the protocol: nothing that was
    // opened since can have one of their numbers. Each was open just now, when it was marked, and they are taken once.
    let owned = |(number, name)| (unsafe { OwnedFd::from_raw_fd(number) }, name);
    Ok(all.map(owned).collect())
}

/// What the kernel throws away of what comes to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// All of it: a listening socket of TCP then answers no SYN, not even by a reset.
    All,
    /// Of TCP, what answers who asks for a connection. So a socket that is to listen does nothing else, whoever has it:
    /// disconnected (connect(2) with AF_UNSPEC), it could connect to wherever its network namespace reaches. What is
    /// accepted is not in the way: a connection has the filter of the socket that it was accepted from, and gets no such answer.
    Answers,
    /// The same, and what asks for a connection: who has been answered still connects.
    NewConnections,
    /// Nothing.
    Nothing,
}

/// Has nobody put a filter on a socket that has none, which would keep what comes to it from whoever else has it.
///
/// # Errors
/// What `setsockopt(2)` says.
pub fn lock_filter(socket: BorrowedFd<'_>) -> io::Result<()> {
    Ok(nix::sys::socket::setsockopt(&socket, LockFilter, &true)?)
}

/// Has the kernel throw away what comes to a socket (`SO_ATTACH_FILTER`, socket(7)), or no more (`SO_DETACH_FILTER`).
///
/// # Errors
/// What `setsockopt(2)` says; that there was no filter to take away is none.
pub fn drop_incoming(socket: BorrowedFd<'_>, what: Dropped) -> io::Result<()> {
    const fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
        libc::sock_filter { code, jt, jf, k }
    }
    // Instructions of linux/bpf_common.h. A socket of TCP has its filter look from the TCP header on.
    const KEEP_NOTHING: libc::sock_filter = instruction(0x06, 0, 0, 0);
    const KEEP_ALL: libc::sock_filter = instruction(0x06, 0, 0, u32::MAX);
    /// BPF_LD | BPF_B | BPF_ABS: the byte of the flags.
    const LOAD_FLAGS: libc::sock_filter = instruction(0x30, 0, 0, 13);
    /// BPF_JMP | BPF_JSET | BPF_K: to the next instruction with SYN among them, else to the one after.
    const IF_SYN: libc::sock_filter = instruction(0x45, 0, 1, 0x02);
    /// BPF_ALU | BPF_AND | BPF_K: of them, SYN and ACK.
    const SYN_AND_ACK: libc::sock_filter = instruction(0x54, 0, 0, 0x12);
    /// BPF_JMP | BPF_JEQ | BPF_K: to the next instruction with both, else to the one after.
    const IF_BOTH: libc::sock_filter = instruction(0x15, 0, 1, 0x12);
    let filter: &[libc::sock_filter] = match what {
        Dropped::Answers => &[LOAD_FLAGS, SYN_AND_ACK, IF_BOTH, KEEP_NOTHING, KEEP_ALL],
        Dropped::NewConnections => &[LOAD_FLAGS, IF_SYN, KEEP_NOTHING, KEEP_ALL],
        Dropped::All | Dropped::Nothing => &[KEEP_NOTHING],
    };
    let program = libc::sock_fprog {
        len: filter.len() as libc::c_ushort,
        filter: filter.as_ptr().cast_mut(),
    };
    let option = if what == Dropped::Nothing {
        libc::SO_DETACH_FILTER
    } else {
        libc::SO_ATTACH_FILTER
    };
    // SAFETY: the program has as many instructions as its length says and outlives the call, in which the kernel copies it
    // and writes nothing; SO_DETACH_FILTER looks at none of it.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    match io::Error::last_os_error() {
        _ if done == 0 => Ok(()),
        e if what == Dropped::Nothing && e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        e => Err(e),
    }
}

//! Socket options that no crate has.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

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

/// Of include/uapi/asm-generic/socket.h; x86-64 and ARM64 both have that list.
const SO_PASSRIGHTS: libc::c_int = 83;

/// Has the kernel throw away whatever comes to a socket (`SO_ATTACH_FILTER`, socket(7)), or no more (`SO_DETACH_FILTER`):
/// a listening socket of TCP then answers no SYN, not even by a reset.
///
/// # Errors
/// What `setsockopt(2)` says; that there was no filter to take away is none.
pub fn drop_all(socket: BorrowedFd<'_>, drop: bool) -> io::Result<()> {
    // BPF_RET | BPF_K of linux/bpf_common.h: keep no byte.
    let nothing = libc::sock_filter {
        code: 0x06,
        jt: 0,
        jf: 0,
        k: 0,
    };
    let program = libc::sock_fprog {
        len: 1,
        filter: (&raw const nothing).cast_mut(),
    };
    let option = if drop {
        libc::SO_ATTACH_FILTER
    } else {
        libc::SO_DETACH_FILTER
    };
    // SAFETY: the program has the one instruction that its length says and outlives the call, in which the kernel copies it
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
        e if !drop && e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        e => Err(e),
    }
}

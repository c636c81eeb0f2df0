//! `seccomp(2)`: `seccompiler`'s function for it brings its own compiler along.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Puts this thread, and what it clones from here on, under a filter, for good. `no_new_privs` must be set, or
/// CAP_SYS_ADMIN held.
///
/// # Errors
/// What `seccomp(2)` says; EINVAL for a program that the kernel does not take, an empty one for example.
pub fn install(program: &[libc::sock_filter]) -> io::Result<()> {
    set_filter(program, 0).map(drop)
}

/// As [`install`]; who holds the descriptor is told of each call for which the filter says `SECCOMP_RET_USER_NOTIF`, and
/// answers it (seccomp_unotify(2)).
///
/// # Errors
/// As [`install`]; EBUSY where a filter of this thread has a listener already.
pub fn install_and_listen(program: &[libc::sock_filter]) -> io::Result<OwnedFd> {
    let fd = set_filter(program, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor, for nobody else; it is close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_filter(program: &[libc::sock_filter], flags: libc::c_ulong) -> io::Result<libc::c_long> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: `program` has as many instructions as its length says and outlives the call, in which the kernel copies
    // and checks them, and writes nothing.
    let done = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    if done == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(done)
}

/// A call that waits for its answer.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// By which it is answered.
    pub id: u64,
    /// The thread, in our pid namespace; 0 where it is in none of ours.
    pub thread: u32,
    /// The call's number.
    pub number: u32,
    /// Of which architecture: `AUDIT_ARCH_*` of linux/audit.h.
    pub architecture: u32,
    /// Its arguments.
    pub args: [u64; 6],
}

/// The next call that waits. Should only be called where the listener is readable, else it waits.
///
/// # Errors
/// What `ioctl(2)` says: ENOENT where the caller has ended meanwhile.
pub fn asked(listener: BorrowedFd<'_>) -> io::Result<Asked> {
    let mut asked = MaybeUninit::<libc::seccomp_notif>::zeroed();
    // SAFETY: the kernel wants zeroes, and writes one such structure.
    let done = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_RECV,
            asked.as_mut_ptr(),
        )
    };
    if done == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroes are a value of it, and the kernel has written the rest.
    let asked = unsafe { asked.assume_init() };
    Ok(Asked {
        id: asked.id,
        thread: asked.pid,
        number: asked.data.nr.cast_unsigned(),
        architecture: asked.data.arch,
        args: asked.data.args,
    })
}

/// Whether it waits still: so its thread is the one that it was.
#[must_use]
pub fn still_waits(listener: BorrowedFd<'_>, id: u64) -> bool {
    // SAFETY: the kernel reads one such number.
    let done = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_ID_VALID,
            &raw const id,
        )
    };
    done == 0
}

/// Answers a call: with an error number, or, for `None`, by letting the kernel make it as if there were no filter. That must
/// be decided by nothing but its number and its arguments as they are: what an argument points to may change meanwhile.
///
/// # Errors
/// What `ioctl(2)` says: ENOENT where the caller has ended meanwhile.
pub fn answer(listener: BorrowedFd<'_>, id: u64, errno: Option<u16>) -> io::Result<()> {
    let mut answer = libc::seccomp_notif_resp {
        id,
        val: 0,
        error: -errno.map_or(0, i32::from),
        flags: match errno {
            Some(_) => 0,
            None => libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
        },
    };
    // SAFETY: the kernel reads one such structure.
    let done = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_SEND,
            &raw mut answer,
        )
    };
    if done == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

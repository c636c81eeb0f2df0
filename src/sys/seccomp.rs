//! `seccomp(2)`: `seccompiler`'s function for it brings its own compiler along.
#![allow(unsafe_code)]

use std::io;

/// Puts this thread, and what it clones from here on, under a filter, for good. `no_new_privs` must be set, or
/// CAP_SYS_ADMIN held.
///
/// # Errors
/// What `seccomp(2)` says; EINVAL for a program that the kernel does not take, an empty one for example.
pub fn install(program: &[libc::sock_filter]) -> io::Result<()> {
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
            0,
            &raw const program,
        )
    };
    if done == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

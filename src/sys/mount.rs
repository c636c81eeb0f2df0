//! `mount_setattr(2)`.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Sets mount attributes (`MOUNT_ATTR_*` of linux/mount.h) of the mount that `mount` stands for, and of all below it
/// when `recursive`, and makes them private: a copy of a shared mount is its peer, and what is mounted on the one
/// later appears on the other too, without these attributes (mount_namespaces(7)).
///
/// # Errors
/// What `mount_setattr(2)` says; EPERM when a flag is locked by a more privileged mount namespace.
pub fn set_attributes(mount: BorrowedFd<'_>, recursive: bool, set: u64) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a static empty C string, `attr` outlives the call and its size is given.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

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
    apply(mount, recursive, set, 0)
}

/// Maps the ids of the files below `mount`, a detached mount that nobody has mapped yet: an id on disk is what stands
/// inside the map of `user_namespace`, who uses the mount has the id outside of it (`MOUNT_ATTR_IDMAP`).
///
/// # Errors
/// What `mount_setattr(2)` says: EINVAL when the file system can't do it, EPERM without CAP_SYS_ADMIN over the file
/// system's user namespace.
pub fn map_ids(
    mount: BorrowedFd<'_>,
    recursive: bool,
    user_namespace: BorrowedFd<'_>,
) -> io::Result<()> {
    let fd = u64::from(user_namespace.as_raw_fd().cast_unsigned());
    apply(mount, recursive, libc::MOUNT_ATTR_IDMAP, fd)
}

fn apply(mount: BorrowedFd<'_>, recursive: bool, set: u64, userns_fd: u64) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd,
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

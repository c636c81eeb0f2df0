//! Mounts without a place, and `mount_setattr(2)`.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
};

/// A new file system of that type, detached: nosuid, nodev, noexec.
///
/// # Errors
/// What `fsopen(2)`, `fsconfig(2)` or `fsmount(2)` says.
pub fn new(kind: &str, options: &[(&str, &str)]) -> rustix::io::Result<OwnedFd> {
    let fs = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, value) in options {
        rustix::mount::fsconfig_set_string(&fs, *name, *value)?;
    }
    rustix::mount::fsconfig_create(&fs)?;
    rustix::mount::fsmount(
        &fs,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )
}

/// Makes every mount of this mount namespace private: what is mounted here appears nowhere else, nor the other way round.
///
/// # Errors
/// What `mount(2)` says.
pub fn cut_off() -> rustix::io::Result<()> {
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags)
}

/// Attaches a detached mount at a path from the working directory.
///
/// # Errors
/// What `move_mount(2)` says.
pub fn attach(mount: impl AsFd, path: impl AsRef<Path>) -> rustix::io::Result<()> {
    attach_within(mount, CWD, path)
}

/// As [`attach`], at a path from `directory`; a link that it ends in is not followed.
///
/// # Errors
/// As [`attach`].
pub fn attach_within(
    mount: impl AsFd,
    directory: impl AsFd,
    path: impl AsRef<Path>,
) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", directory, path.as_ref(), flags)
}

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

/// The mount points in a mountinfo (proc_pid_mountinfo(5)), whose blanks and backslashes are written as `\ooo`, each with the
/// type of its file system.
pub fn points(mountinfo: &[u8]) -> impl Iterator<Item = (PathBuf, String)> {
    use std::os::unix::ffi::OsStringExt;
    mountinfo.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let mut rest = fields.nth(4)?;
        let mut path = vec![];
        while let Some((first, more)) = rest.split_first() {
            let octal = more.get(..3).filter(|_| *first == b'\\');
            let escaped = octal
                .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
            path.push(escaped.unwrap_or(*first));
            rest = &more[if escaped.is_some() { 3 } else { 0 }..];
        }
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        let kind = String::from_utf8_lossy(kind).into_owned();
        Some((std::ffi::OsString::from_vec(path).into(), kind))
    })
}

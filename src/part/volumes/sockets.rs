//! What else of the host a volume brings in: Unix sockets, which lead out past every rule of the network, and file systems of
//! the kernel's own.
//!
//! # Theory of operation
//!
//! A connection to a Unix socket by its path asks for write access to the socket's inode, and for nothing that a mount could
//! refuse: neither read-only nor a network namespace keeps an app from the process that listens there. So who starts the app
//! looks for sockets first ([`find`]). It takes those for dangerous to which somebody is bound. One that was left behind can't
//! come to life again: bind(2) makes a new inode, or fails.
//!
//! A look before the start doesn't see what comes later. That takes Landlock ([`crate::confine::landlock`]) from Linux 7.1 on,
//! or `lrpns audit`.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use crate::config::{UnixGrant, joined};
use crate::plan::AppPlan;
use crate::sys::path::without_links;
use crate::text::harmless;

/// How many names are looked at in a volume, and for how long: it may be any size, on any disk.
const NAMES: usize = 20_000;
const TIME: Duration = Duration::from_millis(500);
/// How many sockets are told of.
const SHOWN: usize = 10;
/// How much of a path is shown, in bytes.
const MOST_SHOWN: usize = 512;

/// What was found in a volume.
#[derive(Debug, Default)]
pub struct Found {
    /// Sockets to which somebody is bound: the host's paths and the app's.
    pub sockets: Vec<UnixGrant>,
    /// Not everything was looked at.
    pub partly: bool,
}

/// Sockets below `host`, which the app has at `path`, to which somebody is bound, the uppermost first; without those that are
/// `passed` over by the app's path: if they counted, enough of them would hide the next one.
#[must_use]
pub fn find(host: &Path, path: &Path, passed: impl Fn(&Path) -> bool) -> Found {
    let begin = Instant::now();
    let mut found = Found::default();
    let mut seen = 0_usize;
    let mut directories = VecDeque::from([PathBuf::new()]);
    if std::fs::symlink_metadata(host).is_ok_and(|meta| meta.file_type().is_socket()) {
        directories.clear();
        found.keep(host, path, Path::new(""), &passed);
    }
    while let Some(directory) = directories.pop_front() {
        let entries = match std::fs::read_dir(joined(host, &directory)) {
            Ok(entries) => entries,
            Err(e) => {
                // Too deep for a path, or not to be listed: whoever goes there step by step gets to what is there.
                let none = [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory];
                found.partly |= !none.contains(&e.kind());
                continue;
            }
        };
        for entry in entries.flatten() {
            seen += 1;
            if seen > NAMES || begin.elapsed() > TIME || found.sockets.len() == SHOWN {
                found.partly = true;
                return found;
            }
            let within = directory.join(entry.file_name());
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => directories.push_back(within),
                Ok(kind) if kind.is_socket() => found.keep(host, path, &within, &passed),
                _ => {}
            }
        }
    }
    found
}

impl Found {
    fn keep(&mut self, host: &Path, path: &Path, within: &Path, passed: impl Fn(&Path) -> bool) {
        let socket = UnixGrant {
            host: joined(host, within),
            path: joined(path, within),
        };
        if passed(&socket.path) {
            return;
        }
        match is_bound(&socket.host) {
            Some(true) => self.sockets.push(socket),
            Some(false) => {}
            None => self.partly = true,
        }
    }
}

/// Whether somebody is bound to a socket. Nobody there hears of it: of a stream it is a connection of the wrong type, and of
/// datagrams one of which the other end is not told. `None` if its path is longer than a path may be.
fn is_bound(path: &Path) -> Option<bool> {
    // Its path may be longer than an address. Who may not look at it has no app that may.
    let fd = match open(path) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::NAMETOOLONG) => return None,
        Err(_) => return Some(false),
    };
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let answer = UnixDatagram::unbound().and_then(|socket| socket.connect(link));
    let kinds = [
        io::ErrorKind::ConnectionRefused,
        io::ErrorKind::PermissionDenied,
    ];
    // EPERM is of a socket of datagrams that has another end.
    Some(!answer.is_err_and(|e| kinds.contains(&e.kind()) && e.raw_os_error() != Some(libc::EPERM)))
}

fn open(path: &Path) -> rustix::io::Result<OwnedFd> {
    without_links(path, OFlags::empty())
}

/// One as the configuration has it, to be pasted: whoever may write there has given it its name.
fn quoted(socket: &UnixGrant) -> String {
    let text = format!("{}:{}", socket.host.display(), socket.path.display());
    harmless(&serde_json::Value::from(text).to_string(), MOST_SHOWN)
}

/// The path of something in a volume as it can be shown: whoever may write there has given it its name.
#[must_use]
pub fn shown(path: &Path) -> String {
    harmless(&path.to_string_lossy(), MOST_SHOWN)
}

/// What there is to say of a volume at `path` that was looked at in part.
#[must_use]
pub fn in_part(path: &Path) -> String {
    format!(
        "{} has too many names, or too deep ones, to find every Unix socket in it that somebody listens on",
        path.display()
    )
}

/// Whether `sockets` of an app declares one that it has at `path`: by itself, or with its directory.
#[must_use]
pub fn is_declared(path: &Path, app: &AppPlan) -> bool {
    let mut declared = app.sockets.iter();
    declared.any(|socket| path.starts_with(&socket.path))
}

/// The `sockets` line with which an app has these too, each with its directory: a server that is started again makes another
/// socket there, which is not the one that was declared.
#[must_use]
pub fn line(app: &AppPlan, more: &[UnixGrant]) -> String {
    let directory = |socket: &UnixGrant| {
        let (host, path) = (socket.host.parent(), socket.path.parent());
        // Of a volume that is a single socket there is no more.
        let is_volume = app.volumes.iter().any(|v| v.path == socket.path);
        match (host, path) {
            (Some(host), Some(path)) if !is_volume => UnixGrant {
                host: host.to_owned(),
                path: path.to_owned(),
            },
            _ => socket.clone(),
        }
    };
    let mut all = app.sockets.clone();
    for socket in more {
        let socket = directory(socket);
        if !all.contains(&socket) {
            all.push(socket);
        }
    }
    let all: Vec<String> = all.iter().map(quoted).collect();
    format!("sockets = [{}]", all.join(", "))
}

/// File systems in which the kernel shows itself or the machine, or is told what to do.
const KERNELS: [&str; 33] = [
    "proc",
    "sysfs",
    "devtmpfs",
    "devpts",
    "cgroup",
    "cgroup2",
    "debugfs",
    "tracefs",
    "securityfs",
    "selinuxfs",
    "bpf",
    "configfs",
    "efivarfs",
    "pstore",
    "fusectl",
    "binfmt_misc",
    "mqueue",
    "nsfs",
    "smackfs",
    "apparmorfs",
    "cpuset",
    "resctrl",
    "nfsd",
    "rpc_pipefs",
    // A call to a driver for each file, as of a device.
    "binder",
    "functionfs",
    "gadgetfs",
    "usbfs",
    "xenfs",
    "s390_hypfs",
    "spufs",
    "openpromfs",
    // The locks of a cluster.
    "ocfs2_dlmfs",
];

/// Whether a file system of that type is the kernel's own.
#[must_use]
pub fn is_kernels(kind: &str) -> bool {
    KERNELS.contains(&kind)
}

/// File systems of the kernel's that a volume of the directory `host` has, at it or below it: where, and of which type.
///
/// # Errors
/// What the kernel says of its list of mounts.
pub fn kernels(host: &Path) -> io::Result<Vec<(PathBuf, String)>> {
    let mounts = std::fs::read("/proc/self/mountinfo")?;
    let mounts: Vec<(PathBuf, String)> = crate::sys::mount::points(&mounts).collect();
    // Of several at one place the last one is seen.
    let at = mounts
        .iter()
        .filter(|(point, _)| host.starts_with(point))
        .max_by_key(|(point, _)| point.components().count());
    let below = mounts
        .iter()
        .filter(|(point, _)| point.starts_with(host) && point != host);
    let all = at.into_iter().chain(below);
    Ok(all.filter(|(_, kind)| is_kernels(kind)).cloned().collect())
}

#[cfg(test)]
mod tests {
    use rustix::fs::Mode;

    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn what_is_too_deep_for_a_path_is_not_passed_over_silently() {
        let temporary = tempfile::tempdir().unwrap();
        let path = Path::new("/data");
        let none = |_: &Path| false;
        let _listener = UnixListener::bind(temporary.path().join("a")).unwrap();
        let found = find(temporary.path(), path, none);
        assert_eq!((found.sockets.len(), found.partly), (1, false));
        let file = temporary.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(!find(&file, path, none).partly);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut at = rustix::fs::open(temporary.path(), flags, Mode::empty()).unwrap();
        let name = "d".repeat(200);
        for _ in 0..=libc::PATH_MAX as usize / 200 {
            rustix::fs::mkdirat(&at, &name, Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, &name, flags, Mode::empty()).unwrap();
        }
        let found = find(temporary.path(), path, none);
        assert_eq!((found.sockets.len(), found.partly), (1, true));
    }

    /// A kernel to come brings others: each type that needs no disk is either one or the other.
    #[test]
    fn every_file_system_without_a_disk_is_the_kernels_or_somebodys_data() {
        const DATA: &[&str] = &[
            "9p",
            "afs",
            "aufs",
            "autofs",
            "ceph",
            "cifs",
            "coda",
            "ecryptfs",
            "fuse",
            "gfs2meta",
            "hugetlbfs",
            "incremental-fs",
            "jffs2",
            "lustre",
            "nfs",
            "nfs4",
            "overlay",
            "ramfs",
            "rootfs",
            "shiftfs",
            "smb3",
            "tmpfs",
            "ubifs",
            "vboxsf",
            "virtiofs",
            "zfs",
        ];
        // Nobody can mount these.
        const NONE: &[&str] = &[
            "aio",
            "anon_inodefs",
            "bdev",
            "btrfs_test_fs",
            "cxl",
            "dax",
            "devmem",
            "dma_buf",
            "drm",
            "guest_memfd",
            "pidfs",
            "pipefs",
            "secretmem",
            "sockfs",
            "zsmalloc",
        ];
        let there = std::fs::read_to_string("/proc/filesystems").unwrap();
        for kind in there.lines().filter_map(|line| line.strip_prefix("nodev")) {
            let kind = kind.trim();
            let known = [is_kernels(kind), DATA.contains(&kind), NONE.contains(&kind)];
            let known = known.iter().filter(|known| **known).count();
            assert_eq!(known, 1, "{kind}");
        }
    }

    #[test]
    fn the_name_of_one_is_shown_and_obeyed_by_nobody() {
        let name = "a\x1b[31m\x07\n\"],x=[\"";
        assert_eq!(
            shown(&Path::new("/data").join(name)),
            r#"/data/a\u{1b}[31m\u{7}\u{a}"],x=[""#
        );
        let socket = UnixGrant {
            host: Path::new("/srv").join(name),
            path: Path::new("/data").join(name),
        };
        let line = format!("sockets = [{}]", quoted(&socket));
        assert!(!line.contains(crate::text::is_hostile), "{line}");
        let read: toml::Table = line.parse().unwrap();
        let expected = format!("/srv/{name}:/data/{name}");
        assert_eq!(read["sockets"][0].as_str().unwrap(), expected);
    }

    #[test]
    fn declared_ones_hide_no_other() {
        let temporary = tempfile::tempdir().unwrap();
        let path = Path::new("/data");
        let bind = |name: String| UnixListener::bind(temporary.path().join(name)).unwrap();
        let _declared: Vec<_> = (0..2 * SHOWN)
            .map(|i| bind(format!("declared{i}")))
            .collect();
        std::fs::create_dir(temporary.path().join("below")).unwrap();
        let _other = bind("below/other".to_owned());
        let passed = |path: &Path| !path.ends_with("below/other");
        let found = find(temporary.path(), path, passed);
        let paths: Vec<_> = found.sockets.iter().map(|s| s.path.as_path()).collect();
        assert_eq!(paths, [Path::new("/data/below/other")]);
        let all = find(temporary.path(), path, |_: &Path| false);
        assert_eq!((all.sockets.len(), all.partly), (SHOWN, true));
    }
}

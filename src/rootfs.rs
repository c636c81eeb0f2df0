//! The root file systems: what the supervisor opens, and what the stage makes of it.
//!
//! # Theory of operation
//!
//! The supervisor opens every source, with its own rights, as a detached mount that is read-only, nosuid and nodev
//! from its first moment ([`open`]); no path of the host is looked up by a process that serves an app. The stage, in
//! its own mount namespace, attaches these descriptors below a fresh root and pivots into it ([`enter`]). Targets
//! are resolved inside the new root without following symbolic links ([`sys::path`]), so an image can't send a mount
//! elsewhere. What is writable afterwards is the declared tmpfs, and nothing else.
//!
//! A directory that is a root ([`Directory`]) is opened once, without following a link in its path, and held for restarts:
//! its owner could otherwise put a link to `/` in its place.
#![forbid(unsafe_code)]

pub mod etc;
pub mod proc;

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};

use crate::accounts::{Accounts, LAST_SYSTEM_ID, User};
use crate::config::{Limits, Rootfs, SECRETS, Tmpfs, Volume};
use crate::confine::privileges::Ids;
use crate::plan::{APP_ID, APP_NAME};
use crate::protocol::RootfsStart;
use crate::sys;
use crate::sys::path::{within, without_links};

/// One step of making a root did not work.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}: {source}", path.display())]
pub struct RootfsError {
    /// What was tried.
    pub what: &'static str,
    /// On which path.
    pub path: PathBuf,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

fn at<E: Into<io::Error>>(
    what: &'static str,
    path: impl AsRef<Path>,
) -> impl FnOnce(E) -> RootfsError {
    let path = path.as_ref().to_owned();
    move |source| RootfsError {
        what,
        path,
        source: source.into(),
    }
}

const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

/// Opens `path` and all that is mounted below it as a detached, read-only mount.
///
/// # Errors
/// [`RootfsError`]; `open_tree(2)` and `mount_setattr(2)` need CAP_SYS_ADMIN over our mount namespace.
pub fn detached(path: &Path) -> Result<OwnedFd, RootfsError> {
    let recursive = path.is_dir();
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let fd = rustix::mount::open_tree(CWD, path, flags).map_err(at("open", path))?;
    sys::mount::set_attributes(fd.as_fd(), recursive, READ_ONLY)
        .map_err(at("make read-only", path))?;
    Ok(fd)
}

/// Our own program, read-only: what a stage is executed from. Nothing that can be opened through a stage's
/// `/proc/PID/exe` can be written to, whoever opens it (CVE-2019-5736).
///
/// # Errors
/// As [`detached`].
pub fn own_program() -> Result<OwnedFd, RootfsError> {
    let link = Path::new("/proc/self/exe");
    match detached(link) {
        // Rootless, this process has a mount namespace of its own, and what it was executed from is in another, of
        // which open_tree(2) copies nothing. So the same file is opened by its path.
        Err(e) if e.source.raw_os_error() == Some(libc::EINVAL) => {
            let path = std::fs::read_link(link).map_err(at("read", link))?;
            let program = detached(&path)?;
            let of =
                |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
            let running = std::fs::File::open(link).map_err(at("open", link))?;
            let same = of(program.as_fd()).and_then(|p| Ok(p == of(running.as_fd())?));
            if !same.map_err(at("look at", &path))? {
                let why = "it is not the program that runs any more";
                return Err(at("open", path)(replaced(why)));
            }
            Ok(program)
        }
        result => result,
    }
}

/// Top level directories of a root made from the host's, where they exist.
const HOST_DIRECTORIES: [&str; 7] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// Whether `path` of a root made from the host's is the host's own, and so can't be added to.
#[must_use]
pub fn is_of_the_host(path: &Path) -> bool {
    HOST_DIRECTORIES
        .iter()
        .any(|name| path.starts_with(Path::new("/").join(name)))
}

fn replaced(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, why)
}

/// A `dir:` root, held open: what it is doesn't change with what its path comes to mean.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    source: OwnedFd,
}

/// Why a directory can't be a root.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// One call was refused.
    #[error(transparent)]
    Call(#[from] RootfsError),
    /// A part of the path is a symbolic link.
    #[error("{} goes through a symbolic link", path.display())]
    Link {
        /// The path.
        path: PathBuf,
        /// The same without links.
        real: Option<PathBuf>,
    },
    /// A file, or nothing.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// An app in it would see what no app may.
    #[error("{} {what}", path.display())]
    OffLimits {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: String,
    },
}

impl DirectoryError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Link {
                real: Some(real), ..
            } => format!("it stands for {}: write that", real.display()),
            Self::Link { .. } => "the link leads nowhere".to_owned(),
            Self::OffLimits { .. } => {
                "rootfs = \"host\" is a root of the host's programs without the rest; volumes add what an app needs".to_owned()
            }
            Self::Call(_) | Self::NotADirectory { .. } => "scripts/rootfs builds one".to_owned(),
        }
    }
}

/// A directory, whatever its name.
type Identity = (u64, u64);

fn identity(fd: &OwnedFd, path: &Path) -> Result<Identity, RootfsError> {
    let stat = rustix::fs::fstat(fd).map_err(at("look at", path))?;
    Ok((stat.st_dev, stat.st_ino))
}

const PLACE: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A directory and all that it is in, up to the root.
fn upwards(directory: &OwnedFd, path: &Path) -> Result<Vec<Identity>, RootfsError> {
    let mut all = vec![identity(directory, path)?];
    let mut up = rustix::fs::openat(directory, "..", PLACE, Mode::empty());
    loop {
        let above = up.map_err(at("look above", path))?;
        let next = identity(&above, path)?;
        if all.last() == Some(&next) {
            return Ok(all);
        }
        all.push(next);
        up = rustix::fs::openat(&above, "..", PLACE, Mode::empty());
    }
}

/// What no app may see that a directory is, contains or is within: the directory of all stacks, `state`, and the host's root; by
/// whatever path, `..` or mount.
///
/// # Errors
/// What the kernel says.
pub fn off_limits(
    source: &OwnedFd,
    path: &Path,
    state: &Path,
) -> Result<Option<String>, RootfsError> {
    let above = upwards(source, path)?;
    let root = rustix::fs::open("/", PLACE, Mode::empty()).map_err(at("open", "/"))?;
    let root = identity(&root, Path::new("/"))?;
    // Of a stack that is not up yet the directory may not be there; then nothing of others is.
    let stacks = match rustix::fs::open(state, PLACE, Mode::empty()) {
        Ok(stacks) => upwards(&stacks, state)?,
        Err(_) => vec![root],
    };
    let what = |found: &Identity| match *found {
        found if found == root => Some("is the host's root"),
        found if stacks.first() == Some(&found) => Some("is the directory of all stacks"),
        found if stacks.contains(&found) => Some("contains the directory of all stacks"),
        _ => None,
    };
    if let Some(what) = what(&above[0]) {
        return Ok(Some(what.to_owned()));
    }
    if stacks.len() > 1 && above.contains(&stacks[0]) {
        return Ok(Some(PART_OF_STATE.to_owned()));
    }
    // All that is mounted below comes along.
    for mount in mounted_below(source)? {
        let Ok(there) = rustix::fs::open(&mount, PLACE | OFlags::NOFOLLOW, Mode::empty()) else {
            // A file, or gone.
            continue;
        };
        if let Some(what) = what(&identity(&there, &mount)?) {
            return Ok(Some(format!(
                "has a mount at {}, which {what}",
                mount.display()
            )));
        }
    }
    Ok(None)
}

/// As [`off_limits`], of what is in a directory and none itself.
///
/// # Errors
/// What the kernel says.
pub fn file_off_limits(path: &Path, state: &Path) -> Result<Option<String>, RootfsError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let opened = rustix::fs::open(directory, PLACE, Mode::empty());
    let above = upwards(&opened.map_err(at("open", directory))?, directory)?;
    let Ok(stacks) = rustix::fs::open(state, PLACE, Mode::empty()) else {
        return Ok(None);
    };
    let within = above.contains(&identity(&stacks, state)?);
    Ok(within.then(|| PART_OF_STATE.to_owned()))
}

const PART_OF_STATE: &str = "is part of a stack's state";

impl Directory {
    /// Opens the directory of a root that is one. `state` is the directory of all stacks. Should be called in the mount
    /// namespace that the app's mounts come from.
    ///
    /// # Errors
    /// [`DirectoryError`]; also for what is, contains or is within the directory of stacks, or is or contains the host's
    /// root, by whatever path, `..` or mount.
    pub fn open(path: &Path, state: &Path) -> Result<Self, DirectoryError> {
        let source = without_links(path, OFlags::DIRECTORY);
        let path = path.to_owned();
        let source = source.map_err(|e| match e {
            rustix::io::Errno::LOOP => DirectoryError::Link {
                real: std::fs::canonicalize(&path).ok(),
                path: path.clone(),
            },
            rustix::io::Errno::NOTDIR | rustix::io::Errno::NOENT => {
                DirectoryError::NotADirectory { path: path.clone() }
            }
            e => at("open", &path)(e).into(),
        })?;
        let opened = Self { path, source };
        opened.is_of_nobody_else(state)?;
        Ok(opened)
    }

    fn is_of_nobody_else(&self, state: &Path) -> Result<(), DirectoryError> {
        match off_limits(&self.source, &self.path, state)? {
            None => Ok(()),
            Some(what) => Err(DirectoryError::OffLimits {
                path: self.path.clone(),
                what,
            }),
        }
    }

    /// A fresh detached, read-only mount of it.
    fn detached(&self) -> Result<OwnedFd, RootfsError> {
        let stat = rustix::fs::fstat(&self.source).map_err(at("look at", &self.path))?;
        if stat.st_nlink == 0 {
            return Err(at("open", &self.path)(replaced(
                "the directory was removed or replaced since the stack came up: take it down and up again",
            )));
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH
            | OpenTreeFlags::AT_RECURSIVE;
        let mount = rustix::mount::open_tree(&self.source, "", flags)
            .map_err(at("clone the mount of", &self.path))?;
        sys::mount::set_attributes(mount.as_fd(), true, READ_ONLY)
            .map_err(at("make read-only", &self.path))?;
        Ok(mount)
    }
}

/// Where something is mounted below a directory (proc_pid_mountinfo(5)).
fn mounted_below(directory: &OwnedFd) -> Result<Vec<PathBuf>, RootfsError> {
    use std::os::fd::AsRawFd;
    let link = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    let path = std::fs::read_link(&link).map_err(at("read", &link))?;
    let file = Path::new("/proc/self/mountinfo");
    let mounts = std::fs::read(file).map_err(at("read", file))?;
    Ok(sys::mount::points(&mounts)
        .map(|(point, _)| point)
        .filter(|mount| mount.starts_with(&path) && *mount != path)
        .collect())
}

/// Opens what the app's root is made of and the stage can't open itself; `directory` is the one of a root that is a directory.
///
/// # Errors
/// [`RootfsError`] when a source can't be opened.
pub fn open(rootfs: &Rootfs, directory: Option<&Directory>) -> Result<Vec<OwnedFd>, RootfsError> {
    match rootfs {
        Rootfs::Dir(path) => {
            let held = directory.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound));
            Ok(vec![held.map_err(at("open", path))?.detached()?])
        }
        Rootfs::BuiltinWebapp => {
            let program = own_program()?;
            // A file that has no name any more can be executed, but not mounted where a root has one for it.
            let link = Path::new("/proc/self/exe");
            let there_is = rustix::fs::fstat(&program).map_err(at("look at", link))?;
            if there_is.st_nlink == 0 {
                return Err(at("open", link)(replaced(
                    "lrpns was removed or replaced since it was started: start it again",
                )));
            }
            Ok(vec![program])
        }
        Rootfs::Host => Ok(vec![]),
    }
}

/// How a root is made at one start: of what is made anew for each, who the app is and whom it knows; `resolvers` are those that it
/// may ask.
#[must_use]
pub fn start(
    rootfs: &Rootfs,
    (hostname, user): (&str, Ids),
    resolvers: &[IpAddr],
    hosts: &str,
) -> RootfsStart {
    match rootfs {
        Rootfs::Dir(_) => RootfsStart::Whole,
        Rootfs::BuiltinWebapp => RootfsStart::Webapp,
        Rootfs::Host => RootfsStart::Host {
            files: minimal_etc(hostname, user, resolvers, hosts),
        },
    }
}

/// An empty root that is filled.
#[derive(Default)]
struct Assembled {
    /// Where each of the first descriptors is attached.
    mounts: Vec<PathBuf>,
    /// Symbolic links: (path, target).
    links: Vec<(PathBuf, PathBuf)>,
    /// Small files: (path, content), mode 0444.
    files: Vec<(PathBuf, String)>,
}

/// Opens a root made from the host's, of which a path may come to mean something else with each of its updates: the loader's cache
/// is another file after every library that is installed, and a file without a name can't be mounted. It takes no power over the
/// host: this is what everybody may read.
///
/// Should be called by a stage in a mount namespace of its own, which is a copy of the host's still.
fn of_the_host(files: &[(PathBuf, String)]) -> Result<(Assembled, Vec<OwnedFd>), RootfsError> {
    let (mut root, mut fds) = (Assembled::default(), vec![]);
    for name in HOST_DIRECTORIES {
        let path = Path::new("/").join(name);
        if let Ok(target) = std::fs::read_link(&path) {
            root.links.push((PathBuf::from(name), target));
        } else if path.is_dir() {
            fds.push(detached(&path)?);
            root.mounts.push(PathBuf::from(name));
        }
    }
    let public = etc::public(Path::new("/etc"));
    for (inside, host) in public.mounts {
        fds.push(detached(&host)?);
        root.mounts.push(inside);
    }
    root.links.extend(public.links);
    for (path, target) in [("etc/mtab", "/proc/mounts"), ("var/run", "/run")] {
        root.links.push((path.into(), target.into()));
    }
    root.files.extend_from_slice(files);
    root.files.extend(public.files);
    Ok((root, fds))
}

/// The /etc of a root made from the host's: nothing in it is the host's own.
fn minimal_etc(
    hostname: &str,
    user: Ids,
    resolvers: &[IpAddr],
    hosts: &str,
) -> Vec<(PathBuf, String)> {
    let (passwd, group) = names(user);
    [
        ("etc/passwd", passwd),
        ("etc/group", group),
        ("etc/hostname", format!("{hostname}\n")),
        ("etc/hosts", hosts.to_owned()),
        (
            "etc/nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files dns\n".to_owned(),
        ),
        (
            "etc/resolv.conf",
            resolvers
                .iter()
                .map(|address| format!("nameserver {address}\n"))
                .collect(),
        ),
    ]
    .into_iter()
    .map(|(path, text)| (PathBuf::from(path), text))
    .collect()
}

/// Nobody's, and nogroup's.
const NOBODY: u32 = 65534;

/// Its /etc/passwd and /etc/group: who it runs as, and the host's users that are no person's, by name alone. Of persons, of
/// passwords, and of what else a line may tell there is nothing.
fn names(user: Ids) -> (String, String) {
    // What can't be read has no names.
    names_of(&Accounts::of(Path::new("/")).unwrap_or_default(), user)
}

fn names_of(host: &Accounts, user: Ids) -> (String, String) {
    let Ids { uid, gid } = user;
    let system = |id: u32| (1..=LAST_SYSTEM_ID).contains(&id) || id == NOBODY;
    // Nobody has a password, so nobody looks for one in a shadow that isn't there: su and others would refuse who needs none.
    let mut passwd = "root:*:0:0:root:/:/usr/sbin/nologin\n".to_owned();
    let mut group = "root:x:0:\n".to_owned();
    let users = || host.users.iter().filter(|(_, user)| system(user.uid));
    let groups = || host.groups.iter().filter(|(_, group)| system(group.gid));
    let own = host.user(uid).filter(|_| uid != APP_ID);
    if uid != 0 && users().all(|(_, user)| user.uid != uid) {
        let name = own.map_or(APP_NAME, |(name, _)| name);
        passwd += &format!("{name}:*:{uid}:{gid}::/:/usr/sbin/nologin\n");
    }
    let of_gid = |wanted: u32| {
        let named = host.groups.iter().find(|(_, group)| group.gid == wanted);
        named
            .filter(|_| wanted != APP_ID)
            .map_or(APP_NAME, |(name, _)| name)
    };
    if gid != 0 && groups().all(|(_, group)| group.gid != gid) {
        group += &format!("{}:x:{gid}:\n", of_gid(gid));
    }
    for (name, user) in users() {
        let User {
            uid,
            gid,
            home,
            shell,
        } = user;
        passwd += &format!("{name}:*:{uid}:{gid}::{home}:{shell}\n");
    }
    for (name, found) in groups() {
        let members = found.members.iter();
        let members = members.filter(|member| users().any(|(name, _)| name == *member));
        let members: Vec<&str> = members.map(String::as_str).collect();
        group += &format!("{name}:x:{}:{}\n", found.gid, members.join(","));
    }
    for (text, id, line) in [
        (
            &mut passwd,
            host.user(NOBODY).is_some(),
            "nobody:*:65534:65534::/:/usr/sbin/nologin\n",
        ),
        (
            &mut group,
            groups().any(|(_, group)| group.gid == NOBODY),
            "nogroup:x:65534:\n",
        ),
    ] {
        if !id {
            *text += line;
        }
    }
    (passwd, group)
}

/// What `/etc/hosts` says: this host's own names, and those that the app is to know. Without IPv6 there is no `::1`, and a
/// server that is to listen on every address of `localhost` would fail at it.
#[must_use]
pub fn hosts(names: &[(IpAddr, String)], ipv6: bool) -> String {
    let mut own = "127.0.0.1 localhost\n".to_owned();
    if ipv6 {
        own += "::1 localhost ip6-localhost ip6-loopback\n";
    }
    let names = names
        .iter()
        .map(|(address, name)| format!("{address} {name}\n"));
    std::iter::once(own).chain(names).collect()
}

/// What a mount of an app's own is mounted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enclosing<'m> {
    /// A tmpfs, in which its mount point is made.
    Tmpfs,
    /// A volume, in which its mount point must be: making it would change the host's disk.
    Volume(&'m Volume),
}

/// The innermost mount of the app's own around `path`; `None` if that is the root.
#[must_use]
pub fn enclosing<'m>(path: &Path, tmpfs: &[Tmpfs], volumes: &'m [Volume]) -> Option<Enclosing<'m>> {
    let tmpfs = tmpfs
        .iter()
        .map(|tmpfs| (tmpfs.path.as_path(), Enclosing::Tmpfs));
    let volumes = volumes
        .iter()
        .map(|volume| (volume.path.as_path(), Enclosing::Volume(volume)));
    tmpfs
        .chain(volumes)
        .filter(|(other, _)| *other != path && path.starts_with(other))
        .max_by_key(|(other, _)| other.components().count())
        .map(|(_, enclosing)| enclosing)
}

/// What everybody may write to, as on any system. Every other tmpfs is the app's: servers refuse to keep their keys and logs
/// where everybody could.
const EVERYBODYS: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];

/// The directories that a `dir:` root must have, to mount on: its own /proc and /dev.
pub const MOUNT_POINTS: [&str; 2] = ["/proc", "/dev"];

/// Gives this process an empty, read-only root.
///
/// Should be called by a stage in its own mount namespace. Mustn't be called where a path of the host is still needed.
///
/// # Errors
/// [`RootfsError`]; the stage must then end.
pub fn enter_empty() -> Result<(), RootfsError> {
    let root = begin(tmpfs(Path::new("/"), "4k", "555")?)?;
    // Its mode alone would not do: the part is its owner.
    sys::mount::set_attributes(root.as_fd(), false, READ_ONLY)
        .map_err(at("make read-only", "/"))?;
    pivot(root)
}

/// What an app has of its own in its root.
#[derive(Clone, Copy)]
pub struct Own<'a> {
    /// What it may write to.
    pub tmpfs: &'a [Tmpfs],
    /// The host's directories and files that it is given.
    pub volumes: &'a [Volume],
    /// The names of its secrets.
    pub secrets: &'a [String],
    /// Whose secrets and tmpfs are.
    pub owner: Ids,
}

/// Makes the app's root from what the supervisor opened and gives it to this process; says what had to be left out, and hands
/// out the socket that is its `/dev/log`. The descriptors are the root's, those of volumes and of secrets, in this order.
///
/// Should be called by a stage in its own mount and pid namespace, before it drops anything. Mustn't be called where
/// a path of the host is still needed.
///
/// # Errors
/// [`RootfsError`]; the stage must then end.
pub fn enter(
    start: &RootfsStart,
    fds: Vec<OwnedFd>,
    own: Own<'_>,
    limits: &Limits,
    hosts: &str,
) -> Result<(Vec<String>, OwnedFd), RootfsError> {
    let (assembled, opened) = match start {
        RootfsStart::Whole => (None, vec![]),
        RootfsStart::Webapp => {
            let mounts = vec!["webapp".into()];
            let root = Assembled {
                mounts,
                ..Assembled::default()
            };
            (Some(root), vec![])
        }
        RootfsStart::Host { files } => {
            let (root, opened) = of_the_host(files)?;
            (Some(root), opened)
        }
    };
    let mut fds = Descriptors(opened.into_iter().chain(fds));
    let (root, over) = match &assembled {
        None => {
            let over = hosts_file(hosts)?;
            (begin(fds.next_for("/")?)?, Some(over))
        }
        Some(assembled) => (assembled.make(&mut fds, own)?, None),
    };
    let dev = device_files(&root)?;
    let mut notes = vec![];
    if !proc::make(&root, limits)? {
        notes.push(
            "no /proc inside: the kernel refused it, since this host's own is partly covered"
                .to_owned(),
        );
    }
    if let Some(over) = over {
        notes.extend(own.cover_hosts(&over, &root)?);
    }
    own.attach(&root, fds, assembled.is_some())?;
    sys::mount::set_attributes(root.as_fd(), false, READ_ONLY)
        .map_err(at("make read-only", "/"))?;
    pivot(root)?;
    // By its whole path, so that /proc/net/unix has it as the app's own.
    let log = bind_log()?;
    sys::mount::set_attributes(dev.as_fd(), false, READ_ONLY & !libc::MOUNT_ATTR_NODEV)
        .map_err(at("make read-only", "/dev"))?;
    Ok((notes, log))
}

/// What a root is made of, opened, in the order in which it is needed.
struct Descriptors<I>(I);

impl<I: Iterator<Item = OwnedFd>> Descriptors<I> {
    /// The one that belongs at `path`.
    fn next_for(&mut self, path: impl AsRef<Path>) -> Result<OwnedFd, RootfsError> {
        let missing = || io::Error::new(io::ErrorKind::InvalidInput, "its descriptor did not come");
        self.0
            .next()
            .ok_or_else(missing)
            .map_err(at("attach", path))
    }
}

impl Assembled {
    /// Makes it.
    fn make(
        &self,
        fds: &mut Descriptors<impl Iterator<Item = OwnedFd>>,
        own: Own<'_>,
    ) -> Result<OwnedFd, RootfsError> {
        let root = begin(tmpfs(Path::new("/"), "1M", "755")?)?;
        for (path, text) in &self.files {
            file(&root, path, text)?;
        }
        for (path, target) in &self.links {
            // Where the app has a mount of its own, that is what is there.
            if own.is_at(&Path::new("/").join(path)) {
                continue;
            }
            if let Some(parent) = path.parent() {
                directories(&root, parent, DIRECTORY)?;
            }
            rustix::fs::symlinkat(target, &root, path).map_err(at("link", path))?;
        }
        for path in &self.mounts {
            let mount = fds.next_for(path)?;
            make_target(&root, path, &mount, DIRECTORY)?;
            attach(&mount, &root, path)?;
        }
        // A root of the host's programs has links, and what they, and programs, expect beside them.
        let more: &[&str] = if self.links.is_empty() {
            &[]
        } else {
            &["run", "sys"]
        };
        for path in ["proc", "dev"].iter().chain(more) {
            directories(&root, Path::new(path), DIRECTORY)?;
        }
        Ok(root)
    }
}

impl Own<'_> {
    /// Whether there is a mount of it at `path` or below.
    fn is_at(&self, path: &Path) -> bool {
        let tmpfs = self.tmpfs.iter().map(|tmp| &tmp.path);
        let mut all = tmpfs.chain(self.volumes.iter().map(|volume| &volume.path));
        all.any(|mount| mount.starts_with(path))
    }

    /// Mounts names over the root's own `/etc/hosts`, unless a volume is there; says if that can't be.
    fn cover_hosts(&self, over: &OwnedFd, root: &OwnedFd) -> Result<Option<String>, RootfsError> {
        let names = Path::new("/etc/hosts");
        let mut volumes = self.volumes.iter();
        if volumes.any(|volume| names.starts_with(&volume.path)) {
            return Ok(None);
        }
        let target = names.strip_prefix("/").unwrap_or(names);
        if inside(root, target).is_err() {
            return Ok(Some(
                "names of apps are not looked up inside: its root has no file /etc/hosts to put them over"
                    .to_owned(),
            ));
        }
        attach(over, root, target)?;
        Ok(None)
    }

    /// Attaches all of it. In a root that was `made` here there need be no mount points.
    fn attach(
        &self,
        root: &OwnedFd,
        mut fds: Descriptors<impl Iterator<Item = OwnedFd>>,
        made: bool,
    ) -> Result<(), RootfsError> {
        let mut mounts: Vec<(&Path, OwnedFd)> =
            Vec::with_capacity(self.volumes.len() + self.tmpfs.len() + 1);
        for Volume { path, .. } in self.volumes {
            mounts.push((path, fds.next_for(path)?));
        }
        for tmp in self.tmpfs {
            mounts.push((&tmp.path, self.tmpfs(tmp)?));
        }
        let secrets: Vec<(&String, OwnedFd)> = self.secrets.iter().zip(fds.0).collect();
        let place = Path::new(SECRETS);
        if !secrets.is_empty() {
            // Its pages are never swapped to a disk, as those of a tmpfs may be.
            let mount = sys::mount::new("ramfs", &[("mode", "755")])
                .map_err(at("make a ramfs for", place))?;
            mounts.push((place, mount));
        }
        // What one of them is mounted in comes before it.
        mounts.sort_by_key(|(path, _)| path.components().count());
        for (path, mount) in mounts {
            let mode = match enclosing(path, self.tmpfs, self.volumes) {
                None => made.then_some(DIRECTORY),
                Some(Enclosing::Tmpfs) => Some(SHARED),
                // It would be made on the host's disk.
                Some(Enclosing::Volume(_)) => None,
            };
            // Absolute, it would be the host's for all but [`inside`].
            let target = path.strip_prefix("/").unwrap_or(path);
            if let (Some(mode), Err(_)) = (mode, inside(root, target)) {
                make_target(root, target, &mount, mode)?;
            }
            attach(&mount, root, target)?;
            if path == place && !secrets.is_empty() {
                fill(&mount, &secrets, self.owner)?;
            }
        }
        Ok(())
    }

    /// A tmpfs of the app's, detached.
    fn tmpfs(&self, tmp: &Tmpfs) -> Result<OwnedFd, RootfsError> {
        let (size, inodes) = (tmp.size.to_string(), inodes(tmp.size).to_string());
        let options = [("size", size.as_str()), ("nr_inodes", &inodes)];
        let (uid, gid) = (self.owner.uid.to_string(), self.owner.gid.to_string());
        // Who begins as root goes on as others, who write there, too.
        let everybodys =
            self.owner.uid == 0 || EVERYBODYS.iter().any(|path| tmp.path == Path::new(path));
        let whose: &[(&str, &str)] = match everybodys {
            true => &[("mode", "1777")],
            false => &[("mode", "755"), ("uid", &uid), ("gid", &gid)],
        };
        let options = [&options, whose].concat();
        sys::mount::new("tmpfs", &options).map_err(at("make a tmpfs for", &tmp.path))
    }
}

/// Where syslog(3) sends its messages.
pub const LOG: &str = "/dev/log";

/// The socket at [`LOG`], to which everybody in the app may send.
fn bind_log() -> Result<OwnedFd, RootfsError> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)
        .map_err(at("make a socket for", LOG))?;
    let address = SocketAddrUnix::new(LOG).map_err(at("name", LOG))?;
    rustix::net::bind(&socket, &address).map_err(at("bind", LOG))?;
    rustix::fs::chmod(LOG, Mode::from_raw_mode(0o666)).map_err(at("open to all", LOG))?;
    Ok(socket)
}

/// Puts an app's secrets where it finds them, for itself alone, and for good.
fn fill(
    directory: &OwnedFd,
    secrets: &[(&String, OwnedFd)],
    owner: Ids,
) -> Result<(), RootfsError> {
    let uid = rustix::fs::Uid::from_raw(owner.uid);
    let gid = rustix::fs::Gid::from_raw(owner.gid);
    for (name, content) in secrets {
        let path = Path::new(SECRETS).join(name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(directory, name.as_str(), flags, Mode::RUSR)
            .map_err(at("make the file", &path))?;
        rustix::fs::fchown(&file, Some(uid), Some(gid)).map_err(at("give the app", &path))?;
        // At a place of its own: the file is also another start's.
        let mut place = 0;
        while rustix::fs::sendfile(&file, content, Some(&mut place), 1 << 20)
            .map_err(at("write", &path))?
            > 0
        {}
    }
    sys::mount::set_attributes(
        directory.as_fd(),
        false,
        READ_ONLY | libc::MOUNT_ATTR_NOEXEC,
    )
    .map_err(at("make read-only", SECRETS))
}

/// Where the new root is attached until the pivot. Any directory that is always there would do.
const STAGING: &str = "/tmp";

/// A file that is not the root's, detached, to be mounted over the root's own `/etc/hosts`. It is in a tmpfs that the root
/// hides: only what is mounted somewhere can be opened file by file before Linux 6.15.
fn hosts_file(text: &str) -> Result<OwnedFd, RootfsError> {
    let (path, name) = (Path::new("/etc/hosts"), Path::new("hosts"));
    let directory = begin(tmpfs(path, "1M", "755")?)?;
    file(&directory, name, text)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let over = rustix::mount::open_tree(&directory, name, flags).map_err(at("open", path))?;
    sys::mount::set_attributes(over.as_fd(), false, READ_ONLY | libc::MOUNT_ATTR_NOEXEC)
        .map_err(at("make read-only", path))?;
    Ok(over)
}

/// Where [`store`] keeps mounts.
const STORE: &str = "store";

/// Gives this mount namespace a root that has these mounts for every start of an app to come, and nothing else.
///
/// Should be called with every capability over the app's user namespace, in a mount namespace of its own.
///
/// # Errors
/// [`RootfsError`].
pub fn store(mounts: &[OwnedFd]) -> Result<(), RootfsError> {
    let root = begin(tmpfs(Path::new("/"), "1M", "755")?)?;
    for (number, mount) in mounts.iter().enumerate() {
        let path = Path::new(STORE).join(number.to_string());
        has_a_name(mount, &path)?;
        make_target(&root, &path, mount, DIRECTORY)?;
        attach(mount, &root, &path)?;
    }
    pivot(root)
}

/// Copies of so many mounts of this namespace's [`store`], detached.
///
/// # Errors
/// [`RootfsError`].
pub fn stored(count: usize) -> Result<Vec<OwnedFd>, RootfsError> {
    let copy = |number: usize| {
        let path = Path::new("/").join(STORE).join(number.to_string());
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE;
        let mount = rustix::mount::open_tree(CWD, &path, flags).map_err(at("copy", &path))?;
        has_a_name(&mount, &path)?;
        Ok(mount)
    };
    (0..count).map(copy).collect()
}

/// What has no name any more the kernel mounts nowhere.
fn has_a_name(mount: &OwnedFd, path: &Path) -> Result<(), RootfsError> {
    let stat = rustix::fs::fstat(mount).map_err(at("look at", path))?;
    match stat.st_nlink {
        0 => Err(at("keep", path)(replaced(
            "something that the app is given (the directory that is its root, lrpns itself for the built-in one, a file that is a \
             volume) was removed or replaced since the stack came up: take it down and up again",
        ))),
        _ => Ok(()),
    }
}

/// Cuts this mount namespace's ties to the host's and attaches the new root.
fn begin(root: OwnedFd) -> Result<OwnedFd, RootfsError> {
    sys::mount::cut_off().map_err(at("make private", "/"))?;
    sys::mount::attach(&root, STAGING).map_err(at("attach", "/"))?;
    Ok(root)
}

/// Makes the new root this process's and lets go of the old one, with all that was mounted in it (pivot_root(2)).
fn pivot(root: OwnedFd) -> Result<(), RootfsError> {
    rustix::process::fchdir(&root).map_err(at("enter", "/"))?;
    rustix::process::pivot_root(".", ".").map_err(at("pivot to", "/"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(at("let go of", "the old root"))?;
    rustix::process::chdir("/").map_err(at("enter", "/"))?;
    Ok(())
}

/// A new tmpfs, detached: nosuid, nodev, noexec.
fn tmpfs(path: &Path, size: &str, mode: &str) -> Result<OwnedFd, RootfsError> {
    sys::mount::new("tmpfs", &[("size", size), ("mode", mode)])
        .map_err(at("make a tmpfs for", path))
}

/// How many files and directories a tmpfs of so many bytes may have. Each takes about a KiB of the kernel's memory, however
/// small it is; what the kernel allows if nobody says otherwise (half as many as the machine has pages) is far more memory
/// than the size of the tmpfs, and not all machines can limit an app's memory.
fn inodes(size: u64) -> u64 {
    (size / 1024).max(1024)
}

/// The devices an app gets, with their numbers (Documentation/admin-guide/devices.txt).
const DEVICES: [(&str, u32, u32); 5] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
];

/// A /dev with five devices, bound from the host's since mknod(2) is refused in a user namespace. It is writable still.
fn device_files(root: &OwnedFd) -> Result<OwnedFd, RootfsError> {
    let dev = tmpfs(Path::new("/dev"), "64k", "755")?;
    attach(&dev, root, Path::new("dev"))?;
    for (name, major, minor) in DEVICES {
        let host = Path::new("/dev").join(name);
        let node = rustix::mount::open_tree(
            CWD,
            &host,
            OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_SYMLINK_NOFOLLOW,
        )
        .map_err(at("open", &host))?;
        let stat = rustix::fs::fstat(&node).map_err(at("look at", &host))?;
        let is = rustix::fs::FileType::from_raw_mode(stat.st_mode)
            == rustix::fs::FileType::CharacterDevice
            && (
                rustix::fs::major(stat.st_rdev),
                rustix::fs::minor(stat.st_rdev),
            ) == (major, minor);
        if !is {
            let wrong = io::Error::new(io::ErrorKind::InvalidData, "not the device of that name");
            return Err(at("open", &host)(wrong));
        }
        sys::mount::set_attributes(
            node.as_fd(),
            false,
            libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC,
        )
        .map_err(at("make read-only", &host))?;
        file(&dev, Path::new(name), "")?;
        attach(&node, &dev, Path::new(name))?;
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        rustix::fs::symlinkat(target, &dev, name).map_err(at("link", name))?;
    }
    rustix::fs::mkdirat(&dev, "shm", Mode::from_raw_mode(0o755)).map_err(at("make", "/dev/shm"))?;
    Ok(dev)
}

/// `path` within `root`, opened without following a symbolic link anywhere.
///
/// # Errors
/// [`RootfsError`]; ELOOP when there is one, ENOENT when there is nothing.
pub fn inside(root: impl AsFd, path: &Path) -> Result<OwnedFd, RootfsError> {
    within(root, path).map_err(at("find the mount point", path))
}

fn attach(mount: &OwnedFd, root: &OwnedFd, path: &Path) -> Result<(), RootfsError> {
    let target = inside(root, path)?;
    rustix::mount::move_mount(
        mount,
        "",
        &target,
        "",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
    .map_err(at("mount", path))
}

/// The mode of a directory that leads to a mount point in the root.
const DIRECTORY: u32 = 0o755;
/// The mode of one within a tmpfs, which is the tmpfs' own: whoever may write there may write here.
const SHARED: u32 = 0o1777;

/// A directory or an empty file to attach `mount` on, whichever it is.
fn make_target(root: &OwnedFd, path: &Path, mount: &OwnedFd, mode: u32) -> Result<(), RootfsError> {
    let stat = rustix::fs::fstat(mount).map_err(at("look at", path))?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory {
        directories(root, path, mode)
    } else {
        if let Some(parent) = path.parent() {
            directories(root, parent, mode)?;
        }
        file(root, path, "")
    }
}

/// Makes `path` and what leads there, in a root or a tmpfs that we made ourselves.
fn directories(root: &OwnedFd, path: &Path, mode: u32) -> Result<(), RootfsError> {
    let mut so_far = PathBuf::new();
    for name in path.components() {
        let std::path::Component::Normal(name) = name else {
            continue;
        };
        so_far.push(name);
        match rustix::fs::mkdirat(root, &so_far, Mode::from_raw_mode(mode)) {
            // Of what mkdir(2) is given, the umask is taken off.
            Ok(()) if mode == SHARED => {
                rustix::fs::chmodat(
                    root,
                    &so_far,
                    Mode::from_raw_mode(mode),
                    rustix::fs::AtFlags::empty(),
                )
                .map_err(at("set the mode of the directory", &so_far))?;
            }
            Ok(()) => {}
            // What is there may be a link, and this process has the host's root still.
            Err(rustix::io::Errno::EXIST) => drop(inside(root, &so_far)?),
            Err(e) => return Err(at("make the directory", so_far)(e)),
        }
    }
    Ok(())
}

/// Writes a small file of a root that we made ourselves.
fn file(root: &OwnedFd, path: &Path, text: &str) -> Result<(), RootfsError> {
    if let Some(parent) = path.parent() {
        directories(root, parent, DIRECTORY)?;
    }
    file_in_its_place(root, path, text)
}

/// The same where the directory that it is in has been made.
fn file_in_its_place(root: &OwnedFd, path: &Path, text: &str) -> Result<(), RootfsError> {
    let fd = rustix::fs::openat(
        root,
        path,
        OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC,
        Mode::from_raw_mode(0o444),
    )
    .map_err(at("make the file", path))?;
    let mut file = std::fs::File::from(fd);
    io::Write::write_all(&mut file, text.as_bytes()).map_err(at("write the file", path))
}

//! Volumes: directories and single files of the host's in an app's root.
//!
//! # Theory of operation
//!
//! Each is opened once, without following a symbolic link anywhere in its path: who may write to a directory
//! on the way (an app to its own volume, say) could otherwise send the next start elsewhere. What is held is a detached mount of
//! that directory or file, whatever its path comes to mean later: nosuid and nodev always, read-only and noexec unless the volume
//! says otherwise. Each start of the app gets a copy of it (`stack::mounts`).
//!
//! What an app writes has to belong to somebody on the disk. That is the owner of the volume: the mount's ids are mapped
//! (`MOUNT_ATTR_IDMAP` of mount_setattr(2)), the volume's owner to the app's id and nobody else's to anything. So two
//! stacks, or the same one under other ids, can share a volume, and nothing on the disk ever belongs to an id that only
//! lrpns knows. So it is with what is read-only, where the file system can: its owner's own files are the app's to read. A
//! volume that belongs to root is not mapped, and can't be writable: a set-user-id program that the app leaves there would
//! be root's, on the host, where no nosuid protects anybody.
//!
//! An app that runs as one of the host's users (`user`, with the host's root) is that user in a volume of root's: root's files
//! are root's, whom nobody in the app can become, that user's own are the app's. So a key of `root:openldap` can be read, and
//! what is written to a directory of that group belongs to that user.
//!
//! A server that begins as root over a range of ids expects its configuration as its package has left it: root's, a group's,
//! its own. For that a read-only volume may have all its owners (`owners`): the host's ids 0 to 65535 are those of the range.
#![forbid(unsafe_code)]

pub mod sockets;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, FileType, OFlags};
use rustix::mount::OpenTreeFlags;

use crate::config::{Rootfs, UnixGrant, Volume};
use crate::confine::privileges::Ids;
use crate::part::namespaces::{self, Mapper, NamespaceError};
use crate::plan::{APP_ID, AppPlan, Mode};
use crate::sys;
use crate::sys::path::without_links;

/// Why a volume can't be had.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// One call was refused.
    #[error("volume {}: {what}: {source}", path.display())]
    Call {
        /// What was tried.
        what: &'static str,
        /// The host's path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A part of the path is a symbolic link.
    #[error("volume {}: its path goes through a symbolic link", path.display())]
    Link {
        /// The host's path.
        path: PathBuf,
        /// The same without links.
        real: Option<PathBuf>,
    },
    /// The kernel's own, or with such a thing in it.
    #[error("volume {}: {} is a {kind}, the kernel's own", path.display(), at.display())]
    Kernels {
        /// The host's path.
        path: PathBuf,
        /// Where it is mounted.
        at: PathBuf,
        /// Its type.
        kind: String,
    },
    /// A socket that is no volume.
    #[error("volume {}: it is a Unix socket, by which the app would reach a process of the host past every rule", path.display())]
    Socket {
        /// The host's path.
        path: PathBuf,
        /// The line that declares it.
        line: String,
    },
    /// A device, a pipe.
    #[error("volume {}: it is neither a directory nor a regular file", path.display())]
    Kind {
        /// The host's path.
        path: PathBuf,
    },
    /// A writable volume of root's.
    #[error("volume {}: it belongs to user {uid} and group {gid}, and what the app writes would too", path.display())]
    Roots {
        /// The host's path.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
        /// The host's id of the app.
        app: u32,
    },
    /// A writable volume that the user may not write to.
    #[error("volume {}: you may not write to it", path.display())]
    NotYours {
        /// The host's path.
        path: PathBuf,
    },
    /// A file system on which ids can't be mapped.
    #[error("volume {}: its file system can't map the ids of its files", path.display())]
    NoIdMap {
        /// The host's path.
        path: PathBuf,
        /// The host's id of the app.
        app: u32,
        /// With whose owners it was to be.
        owners: bool,
    },
    /// The user namespace that holds the map.
    #[error(transparent)]
    Map(#[from] NamespaceError),
}

impl VolumeError {
    /// What to do about it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let own = |path: &Path, id: u32| match is_the_systems(path) {
            true => format!(
                "install -d -o {id} -g {id} /srv/DIRECTORY, and that for this one, which is the system's"
            ),
            false => format!("chown -R {id}:{id} {}", path.display()),
        };
        match self {
            Self::Call { source, path, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some(format!("mkdir -p {}", path.display()))
            }
            Self::Link { real, .. } => Some(match real {
                Some(real) => format!("it stands for {}: write that", real.display()),
                None => "the link leads nowhere".to_owned(),
            }),
            Self::Kernels { path, at, kind } => Some(kernels_hint(path, at, kind)),
            Self::Socket { line, .. } => Some(format!("in place of the volume: {line}")),
            Self::Roots { path, app, .. } => Some(format!(
                "give it to a user of its own, or to the app's: {}",
                own(path, *app)
            )),
            Self::NoIdMap { owners: true, .. } => Some(
                "leave owners out, and give the app what everybody may read, or copy it to a file system that can (ext4, xfs, btrfs, tmpfs)".to_owned(),
            ),
            Self::NoIdMap { path, app, .. } => Some(format!(
                "give it to the app's own id, which needs no map: {}",
                own(path, *app)
            )),
            _ => None,
        }
    }
}

/// Whether others than the app live of what is there: a line that gives it away would be the machine's end.
fn is_the_systems(path: &Path) -> bool {
    const ALL_OF: [&str; 9] = [
        "/usr", "/etc", "/boot", "/bin", "/sbin", "/lib", "/proc", "/sys", "/dev",
    ];
    let below = path.components().count().saturating_sub(1);
    let shared = below < 2 || path.starts_with("/var") && below < 3;
    shared || ALL_OF.iter().any(|top| path.starts_with(top))
}

fn kernels_hint(path: &Path, at: &Path, kind: &str) -> String {
    if !path.starts_with(at) {
        return format!(
            "name what the app needs of {} without {}, each directory by itself",
            path.display(),
            at.display()
        );
    }
    let own = match kind {
        "proc" => {
            "an app has a /proc of its own, which shows its own processes and what programs size themselves by"
        }
        "devtmpfs" | "devpts" => {
            "an app has a /dev of its own with null, zero, full, random and urandom, and no other device works in it"
        }
        _ => "it tells of the whole machine, and no app is given any of it",
    };
    format!("leave it out: {own}")
}

fn at<E: Into<io::Error>>(
    what: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> VolumeError + use<E> {
    let path = path.to_owned();
    move |source| VolumeError::Call {
        what,
        path,
        source: source.into(),
    }
}

/// What a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// A directory, or else a regular file.
    pub directory: bool,
    /// Its owner, and whose group it is.
    owner: (u32, u32),
    /// Whom of the host's users the app is in it, beside root.
    namesake: Option<Ids>,
}

/// Whom of the host's users an app is that runs under his name, in what is root's. A number that was not chosen is nobody's.
fn namesake(app: &AppPlan, owner: (u32, u32)) -> Option<Ids> {
    let ids = app.ids.inside();
    let one = |id: u32| id != 0 && id != APP_ID;
    let named = app.rootfs == Rootfs::Host && !app.ids.is_range() && one(ids.uid) && one(ids.gid);
    (named && (owner.0 == 0 || owner.1 == 0)).then_some(ids)
}

/// Whether this user may make files in what has such an owner and mode.
fn writes(ids: Ids, (uid, gid): (u32, u32), mode: u32) -> bool {
    let bit = match () {
        () if ids.uid == uid => 0o200,
        () if ids.gid == gid => 0o020,
        () => 0o002,
    };
    mode & bit != 0
}

struct Open {
    host: PathBuf,
    source: OwnedFd,
    directory: bool,
    attributes: u64,
    /// The user namespace whose map the mount's ids go through.
    map: Option<OwnedFd>,
    /// Whether the app can't do without.
    must: bool,
    /// Whether all its owners are mapped.
    owners: bool,
}

/// Opens a volume and looks whether the app may have it: all but whether its file system can map ids.
///
/// # Errors
/// [`VolumeError`].
pub fn look(volume: &Volume, app: &AppPlan, mode: Mode) -> Result<(OwnedFd, Look), VolumeError> {
    let path = &volume.host;
    let source = without_links(path, OFlags::empty()).map_err(|e| match e {
        rustix::io::Errno::LOOP => VolumeError::Link {
            path: path.clone(),
            real: std::fs::canonicalize(path).ok(),
        },
        e => at("open", path)(e),
    })?;
    let stat = rustix::fs::fstat(&source).map_err(at("look at", path))?;
    let directory = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => true,
        FileType::RegularFile => false,
        FileType::Socket if sockets::is_declared(&volume.path, app) => false,
        FileType::Socket => {
            let socket = UnixGrant {
                host: path.clone(),
                path: volume.path.clone(),
            };
            return Err(VolumeError::Socket {
                path: path.clone(),
                line: sockets::line(app, &[socket]),
            });
        }
        _ => return Err(VolumeError::Kind { path: path.clone() }),
    };
    let kernels = sockets::kernels(path).map_err(at("look what is mounted in", path))?;
    if let Some((at, kind)) = kernels.into_iter().next() {
        return Err(VolumeError::Kernels {
            path: path.clone(),
            at,
            kind,
        });
    }
    let owner = (stat.st_uid, stat.st_gid);
    let look = Look {
        directory,
        owner,
        namesake: namesake(app, owner),
    };
    if volume.writable {
        match (mode, look.owner) {
            (Mode::Root, owner)
                if look
                    .namesake
                    .is_some_and(|ids| writes(ids, owner, stat.st_mode)) => {}
            (Mode::Root, (uid, gid)) if uid == 0 || gid == 0 => {
                return Err(VolumeError::Roots {
                    path: path.clone(),
                    uid,
                    gid,
                    app: app.ids.host_user(),
                });
            }
            (Mode::Rootless, _) if rustix::fs::access(path, Access::WRITE_OK).is_err() => {
                return Err(VolumeError::NotYours { path: path.clone() });
            }
            _ => {}
        }
    }
    Ok((source, look))
}

/// The volumes of `app` as detached mounts, in the configuration's order, `N` times; `mapper` maps their owners. Should be called in the
/// mount namespace that the app's mounts come from.
///
/// # Errors
/// [`VolumeError`].
pub async fn open<const N: usize>(
    app: &AppPlan,
    mode: Mode,
    nobody: Option<u32>,
    mapper: &mut impl Mapper,
) -> Result<[Vec<OwnedFd>; N], VolumeError> {
    let mounted = app.mounted();
    let mut opened = [(); N].map(|()| Vec::with_capacity(mounted.len()));
    for volume in &mounted {
        let (source, look) = look(volume, app, mode)?;
        let mut attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
        if !volume.writable {
            attributes |= libc::MOUNT_ATTR_RDONLY;
        }
        if !volume.exec {
            attributes |= libc::MOUNT_ATTR_NOEXEC;
        }
        let (uid, gid) = look.owner;
        let id = app.ids.host_user();
        let theirs = match volume.owner {
            Some((uid, gid)) => (app.ids.host_id + uid, app.ids.host_id + gid),
            None => (id, id),
        };
        // An ordinary user's app is that user, and may not map anything. Of what is read-only the owner's own files are the
        // app's to read; root's are not, whatever is mounted.
        let roots = uid == 0 || gid == 0;
        // To connect to a socket is to write to it, which nobody may to a file whose owner has no id on the mount.
        let has_sockets =
            !volume.writable && app.sockets.iter().any(|s| s.path.starts_with(&volume.path));
        let (first, count) = (app.ids.host_id, app.ids.count);
        let line = |owner: u32, id: u32| format!("{owner} {id} 1\n");
        let lines = match volume.owners {
            true => Some([(); 2].map(|()| format!("0 {first} {count}\n"))),
            false if mode == Mode::Rootless || (uid, gid) == theirs || has_sockets => None,
            false => match look.namesake {
                // No user namespace of the part's has it, so that nobody who has joined one is root there.
                Some(own) => nobody
                    .map(|nobody| [own.uid, own.gid].map(|own| line(0, nobody) + &line(own, id))),
                None if roots => None,
                None => Some([line(uid, theirs.0), line(gid, theirs.1)]),
            },
        };
        let map = if let Some([uids, gids]) = lines {
            let what = format!("the volume {}", volume.host.display());
            Some(namespaces::id_map(&what, &uids, &gids, mapper).await?)
        } else {
            None
        };
        let open = Open {
            host: volume.host.clone(),
            source,
            directory: look.directory,
            attributes,
            map,
            must: volume.writable || volume.owners,
            owners: volume.owners,
        };
        for mounts in &mut opened {
            mounts.push((open.detached(id)?, look.directory));
        }
    }
    let all: Vec<_> = opened.into_iter().flatten().collect();
    // An ordinary user's supervisor may do with his files as he does.
    let all: Vec<OwnedFd> = match mode == Mode::Root && !all.is_empty() {
        true => namespaces::locked(app.name.as_str(), all).await?,
        false => all.into_iter().map(|(mount, _)| mount).collect(),
    };
    let mut all = all.into_iter();
    Ok([(); N].map(|()| all.by_ref().take(mounted.len()).collect()))
}

impl Open {
    fn detached(&self, user: u32) -> Result<OwnedFd, VolumeError> {
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        if self.directory {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let mount = rustix::mount::open_tree(&self.source, "", flags)
            .map_err(at("clone its mount", &self.host))?;
        sys::mount::set_attributes(mount.as_fd(), self.directory, self.attributes)
            .map_err(at("set the attributes of its mount", &self.host))?;
        let Some(map) = &self.map else {
            return Ok(mount);
        };
        match sys::mount::map_ids(mount.as_fd(), self.directory, map.as_fd()) {
            Ok(()) => Ok(mount),
            Err(_) if !self.must => Ok(mount),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Err(VolumeError::NoIdMap {
                path: self.host.clone(),
                app: user,
                owners: self.owners,
            }),
            Err(e) => Err(at("map the ids of its files", &self.host)(e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_the_systems_is_not_to_be_given_away() {
        for (path, is) in [
            ("/", true),
            ("/srv", true),
            ("/usr", true),
            ("/usr/share/app", true),
            ("/etc/app", true),
            ("/var/lib", true),
            ("/var/lib/app", false),
            ("/srv/app", false),
            ("/home/user", false),
        ] {
            assert_eq!(is_the_systems(Path::new(path)), is, "{path}");
            let hint = VolumeError::Roots {
                path: path.into(),
                uid: 0,
                gid: 0,
                app: 7,
            };
            let hint = hint.hint().unwrap_or_default();
            assert_eq!(hint.contains("chown -R 7:7 "), !is, "{hint}");
        }
    }
}

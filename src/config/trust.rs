//! Whose files are read: root takes the word of root, and of the user that sudo names, and of nobody else.
//!
//! # Theory of operation
//!
//! A configuration says which directories of the host an app sees, so whoever writes the one that root brings up reads
//! every file of the machine. [`Trust::open`] therefore walks a path one component after the other, each opened without
//! following a link (`O_PATH | O_NOFOLLOW`), and looks at what it has opened: the file, every directory above it and every
//! link on the way belong to a trusted user, and nobody else may write to them, as sudoers(5) and sshd's `StrictModes` ask
//! it. In a directory with the sticky bit (/tmp) others may make names, but replace none that isn't theirs, and what is
//! behind a name is looked at by itself. What has been looked at is what is read: the file is opened by its descriptor.
//!
//! An ordinary user reads what the kernel lets them read: nothing is gained by it.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FileType, Mode, OFlags, Stat};

/// `--trust-file` was given.
static EVERYBODY: AtomicBool = AtomicBool::new(false);

/// From now on this process takes everybody's word: `--trust-file`, which holds for every file that a command line means.
pub fn trust_everybody() {
    EVERYBODY.store(true, Ordering::Relaxed);
}

/// How many links are followed (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// Whose files are read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Trust {
    /// Files of these users only; `None` is anybody's.
    owners: Option<Vec<u32>>,
    /// Who has root do this (sudo(8)).
    caller: Option<Caller>,
}

/// The user that sudo names.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Caller {
    uid: u32,
    gid: Option<u32>,
    name: Option<String>,
}

/// A file that is open for reading.
#[derive(Debug)]
pub struct Opened {
    /// The file.
    pub file: File,
    /// Whether the user that sudo names could not have read it: errors must not quote it.
    pub private: bool,
}

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The kernel refused, or it is not a file.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Somebody else could have put the words into root's mouth.
    #[error("root does not read it: {} {why}", path.display())]
    NotTrusted {
        /// The file, or what is above it.
        path: PathBuf,
        /// What is wrong with that.
        why: String,
    },
}

impl OpenError {
    /// What would have been right, and the way out, where somebody else's file is the problem.
    #[must_use]
    pub fn remedy(&self) -> Option<(String, String)> {
        let Self::NotTrusted { path, .. } = self else {
            return None;
        };
        let expected = "a file that belongs to root, or to the user who runs sudo, as does every directory above it, and that \
                        nobody else may write to";
        let example = format!(
            "chown root: {0} && chmod go-w {0}; or --trust-file, once you have read it",
            path.display()
        );
        Some((expected.to_owned(), example))
    }
}

/// What the walk has to look at next.
enum Step {
    Into(OsString),
    Up,
}

impl Trust {
    /// That of this process: everybody's files for an ordinary user, and after [`trust_everybody`].
    #[must_use]
    pub fn of_this_process() -> Self {
        let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
        if !nix::unistd::geteuid().is_root() {
            return Self::default();
        }
        let caller = number("SUDO_UID")
            .filter(|uid| *uid != 0)
            .map(|uid| Caller {
                uid,
                gid: number("SUDO_GID"),
                name: std::env::var("SUDO_USER").ok(),
            });
        let owners = [0]
            .into_iter()
            .chain(caller.as_ref().map(|caller| caller.uid));
        Self {
            owners: (!EVERYBODY.load(Ordering::Relaxed)).then(|| owners.collect()),
            caller,
        }
    }

    /// Opens a file that somebody has named, if it is one, and if its word is taken.
    ///
    /// # Errors
    /// [`OpenError`]; a pipe, for whose writer `open(2)` waits, and a device, where opening may do something, are refused.
    pub fn open(&self, path: &Path) -> Result<Opened, OpenError> {
        if self.owners.is_none() && self.caller.is_none() {
            return Ok(Opened {
                file: super::open_regular(path)?,
                private: false,
            });
        }
        let (found, private) = self.walk(&std::path::absolute(path)?)?;
        // The very file that was looked at, by no name that could be another's by now.
        let file = super::open_regular(Path::new(&format!("/proc/self/fd/{}", found.as_raw_fd())))?;
        Ok(Opened { file, private })
    }

    /// The file at an absolute path, opened without access, and whether the caller could not have read it.
    fn walk(&self, path: &Path) -> Result<(OwnedFd, bool), OpenError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = || -> Result<_, OpenError> {
            let fd = rustix::fs::open("/", flags | OFlags::DIRECTORY, Mode::empty());
            Ok((fd.map_err(io::Error::from)?, PathBuf::from("/")))
        };
        let mut steps = steps(path);
        let mut at = vec![root()?];
        let mut private = !self.may_enter(&stat(&at[0].0)?);
        self.judge(&stat(&at[0].0)?, &at[0].1)?;
        let mut links = 0;
        while let Some(step) = steps.pop() {
            let name = match step {
                Step::Up => {
                    if at.len() > 1 {
                        at.pop();
                    }
                    continue;
                }
                Step::Into(name) => name,
            };
            let (directory, above) = &at[at.len() - 1];
            let whole = above.join(&name);
            let found = rustix::fs::openat(directory, &name, flags, Mode::empty());
            let found = found.map_err(io::Error::from)?;
            let seen = stat(&found)?;
            let kind = FileType::from_raw_mode(seen.st_mode);
            let may_be_read = [
                FileType::RegularFile,
                FileType::Directory,
                FileType::Symlink,
            ];
            if steps.is_empty() && !may_be_read.contains(&kind) {
                // It is opened by nobody, whosever it is: that is what there is to say of it.
                return Ok((found, true));
            }
            self.judge(&seen, &whole)?;
            match kind {
                FileType::Symlink => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(io::Error::from_raw_os_error(libc::ELOOP).into());
                    }
                    let target = rustix::fs::readlinkat(&found, "", Vec::new());
                    let target = target.map_err(io::Error::from)?.into_bytes();
                    let target = PathBuf::from(OsString::from_vec(target));
                    if target.is_absolute() {
                        at = vec![root()?];
                    }
                    steps.extend(self::steps(&target));
                }
                FileType::Directory => {
                    private |= !self.may_enter(&seen);
                    at.push((found, whole));
                }
                _ if steps.is_empty() => return Ok((found, private | !self.may_read(&seen))),
                _ => return Err(io::Error::from_raw_os_error(libc::ENOTDIR).into()),
            }
        }
        Err(io::Error::from(io::ErrorKind::IsADirectory).into())
    }

    /// Whether what was seen at `path` may be believed.
    fn judge(&self, seen: &Stat, path: &Path) -> Result<(), OpenError> {
        let Some(owners) = &self.owners else {
            return Ok(());
        };
        let no = |why: String| {
            Err(OpenError::NotTrusted {
                path: path.to_owned(),
                why,
            })
        };
        if !owners.contains(&seen.st_uid) {
            return no(format!("belongs to uid {}", seen.st_uid));
        }
        let (kind, mode) = (FileType::from_raw_mode(seen.st_mode), seen.st_mode & 0o7777);
        let sticky = kind == FileType::Directory && mode & 0o1000 != 0;
        if kind == FileType::Symlink || sticky {
            return Ok(());
        }
        if mode & 0o002 != 0 {
            return no(format!("may be written to by everybody (mode {mode:04o})"));
        }
        if mode & 0o020 != 0 && !self.is_private_group(seen.st_gid) {
            return no(format!(
                "may be written to by the group {} (mode {mode:04o})",
                seen.st_gid
            ));
        }
        Ok(())
    }

    /// Whether nobody but a trusted user is in a group: many distributions give each user one, named as they are, and an
    /// umask that lets it write.
    fn is_private_group(&self, gid: u32) -> bool {
        let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
        let caller = self.caller.as_ref().and_then(|caller| {
            let own = caller.gid == Some(gid);
            caller.name.as_deref().filter(|_| own)
        });
        let user = match gid {
            0 => Some("root"),
            _ => caller,
        };
        user.is_some_and(|user| has_nobody_else(&groups, gid, user))
    }

    fn may_enter(&self, seen: &Stat) -> bool {
        self.caller_may(seen, 0o1)
    }

    fn may_read(&self, seen: &Stat) -> bool {
        self.caller_may(seen, 0o4)
    }

    /// Whether the caller has `bit` of a mode; supplementary groups are not known, so they give nothing.
    fn caller_may(&self, seen: &Stat, bit: u32) -> bool {
        let Some(caller) = &self.caller else {
            return true;
        };
        let shift = match () {
            () if seen.st_uid == caller.uid => 6,
            () if Some(seen.st_gid) == caller.gid => 3,
            () => 0,
        };
        seen.st_mode >> shift & bit != 0
    }
}

fn stat(fd: &OwnedFd) -> io::Result<Stat> {
    Ok(rustix::fs::fstat(fd)?)
}

/// The components of a path, the first one last.
fn steps(path: &Path) -> Vec<Step> {
    let steps = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(Step::Into(name.to_owned())),
        Component::ParentDir => Some(Step::Up),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    let mut steps: Vec<Step> = steps.collect();
    steps.reverse();
    steps
}

/// Whether group(5) `groups` has a group of that number, called `user`, in which there is nobody but `user`.
fn has_nobody_else(groups: &str, gid: u32, user: &str) -> bool {
    let of_that_number: Vec<Vec<&str>> = groups
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .filter(|fields| fields.get(2).and_then(|gid| gid.parse().ok()) == Some(gid))
        .collect();
    let [fields] = of_that_number.as_slice() else {
        return false;
    };
    let members = fields.get(3).unwrap_or(&"").split(',').map(str::trim);
    fields[0] == user
        && members
            .filter(|name| !name.is_empty())
            .all(|name| name == user)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    /// The trust of root, if this user were root, and of whoever runs sudo.
    fn trust(caller: Option<u32>) -> Trust {
        let me = nix::unistd::geteuid().as_raw();
        Trust {
            owners: Some([0, me].into_iter().chain(caller).collect()),
            caller: caller.map(|uid| Caller {
                uid,
                gid: Some(uid),
                name: Some("bob".to_owned()),
            }),
        }
    }

    fn mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    /// What the refusal says, without the directory that the test made.
    fn refusal(trust: &Trust, dir: &Path, name: &str) -> Option<String> {
        match trust.open(&dir.join(name)) {
            Ok(_) => None,
            Err(e) => Some(e.to_string().replace(&*dir.to_string_lossy(), "DIR")),
        }
    }

    #[test]
    fn nobody_elses_word_is_taken() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = std::fs::canonicalize(temporary.path()).unwrap();
        let trust = trust(None);
        std::fs::create_dir_all(dir.join("a/b")).unwrap();
        mode(&dir.join("a"), 0o755);
        std::fs::write(dir.join("a/b/x"), "x").unwrap();
        mode(&dir.join("a/b/x"), 0o644);
        symlink("a/b/x", dir.join("link")).unwrap();
        symlink(dir.join("a/b"), dir.join("absolute")).unwrap();
        symlink("loop", dir.join("loop")).unwrap();
        let said = trust.open(&dir.join("loop")).unwrap_err().to_string();
        assert!(said.contains("Too many levels"), "{said}");
        for name in [
            "a/b/x",
            "link",
            "absolute/x",
            "a/../a/./b/x",
            "absolute/../b/x",
        ] {
            assert_eq!(refusal(&trust, &dir, name), None, "{name}");
        }
        for (name, error) in [
            ("a", io::ErrorKind::IsADirectory),
            ("a/b/x/y", io::ErrorKind::NotADirectory),
            ("no", io::ErrorKind::NotFound),
        ] {
            let said = trust.open(&dir.join(name)).unwrap_err();
            let OpenError::Io(e) = said else {
                panic!("{said}")
            };
            assert_eq!(e.kind(), error, "{name}");
        }
        for (path, bits, why) in [
            (
                "a/b/x",
                0o666,
                Some("DIR/a/b/x may be written to by everybody (mode 0666)"),
            ),
            (
                "a/b",
                0o757,
                Some("DIR/a/b may be written to by everybody (mode 0757)"),
            ),
            ("a", 0o1777, None),
            ("a/b/x", 0o600, None),
        ] {
            let before = std::fs::metadata(dir.join(path)).unwrap().permissions();
            mode(&dir.join(path), bits);
            let said = refusal(&trust, &dir, "link");
            std::fs::set_permissions(dir.join(path), before).unwrap();
            let why = why.map(|why| format!("root does not read it: {why}"));
            assert_eq!(said, why, "{path} {bits:o}");
        }
        // Whose file it is can be changed by root only.
        if nix::unistd::geteuid().is_root() {
            for path in ["a/b/x", "a", "link"] {
                std::os::unix::fs::lchown(dir.join(path), Some(4321), None).unwrap();
                let said = refusal(&trust, &dir, "link").unwrap();
                assert_eq!(
                    said,
                    format!("root does not read it: DIR/{path} belongs to uid 4321")
                );
                assert_eq!(refusal(&self::trust(Some(4321)), &dir, "link"), None);
                std::os::unix::fs::lchown(dir.join(path), Some(0), None).unwrap();
            }
            chown(dir.join("a"), None, Some(4321)).unwrap();
            mode(&dir.join("a"), 0o775);
            let said = refusal(&trust, &dir, "a/b/x").unwrap();
            assert!(said.contains("by the group 4321"), "{said}");
            let anybodys = Trust::default();
            assert_eq!(refusal(&anybodys, &dir, "a/b/x"), None);
        }
    }

    #[test]
    fn what_the_caller_could_not_read_is_private() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = std::fs::canonicalize(temporary.path()).unwrap();
        mode(&dir, 0o755);
        let file = dir.join("x");
        std::fs::write(&file, "x").unwrap();
        for (bits, private) in [(0o644, false), (0o640, true), (0o600, true)] {
            mode(&file, bits);
            assert_eq!(
                trust(Some(4321)).open(&file).unwrap().private,
                private,
                "{bits:o}"
            );
            assert!(!trust(None).open(&file).unwrap().private);
        }
        mode(&file, 0o644);
        mode(&dir, 0o700);
        assert!(trust(Some(4321)).open(&file).unwrap().private);
    }

    #[test]
    fn a_group_of_one_may_write() {
        let groups = "root:x:0:\nbob:x:1000:\nann:x:1001:ann\nstaff:x:50:bob\ncrowd:x:1002:bob,eve\nbob:x:7:eve\n";
        assert!(has_nobody_else(groups, 0, "root"));
        assert!(has_nobody_else(groups, 1000, "bob"));
        assert!(has_nobody_else(groups, 1001, "ann"));
        for (gid, user) in [
            (50, "bob"),
            (1002, "bob"),
            (7, "bob"),
            (9, "bob"),
            (1000, "ann"),
        ] {
            assert!(!has_nobody_else(groups, gid, user), "{gid} {user}");
        }
    }
}

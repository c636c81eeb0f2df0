//! Paths opened step by step, without following a symbolic link, or without one that leads out of a root.
//!
//! openat2(2) does that in one call, but its flags and its mode are in memory, where no filter can look; so who is under the
//! supervisor's filter has none ([`crate::confine::seccomp::supervisor`]).
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

/// A place on the way, which is entered and not read.
const STEP: OFlags = OFlags::PATH
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Opens `path` with `O_PATH`, and with `more`.
///
/// # Errors
/// What `openat(2)` says; ELOOP where there is a symbolic link.
pub fn without_links(path: &Path, more: OFlags) -> rustix::io::Result<OwnedFd> {
    let start = match path.is_absolute() {
        true => rustix::fs::openat(CWD, "/", STEP, Mode::empty())?,
        false => rustix::fs::openat(CWD, ".", STEP, Mode::empty())?,
    };
    walk(start, path, more)
}

/// The same within `root`, which an absolute path begins at as well.
///
/// # Errors
/// As [`without_links`]; EXDEV for a path with `..` in it.
pub fn within(root: impl AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(Errno::XDEV);
    }
    let start = rustix::fs::openat(root, ".", STEP, Mode::empty())?;
    walk(start, path, OFlags::empty())
}

/// The most symbolic links that are followed, as the kernel has it (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// As [`within`], but links are followed, as if `root` were the root; so is `..`.
///
/// # Errors
/// What `openat(2)` says; ELOOP for too many links.
pub fn in_root(root: OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    /// What is still to be gone, the next one last.
    fn add(steps: &mut Vec<OsString>, path: &Path) {
        let parts = path.components().rev().filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
        });
        steps.extend(parts);
    }
    let (mut above, mut at) = (vec![], root);
    let (mut steps, mut links) = (vec![], 0);
    add(&mut steps, path);
    while let Some(step) = steps.pop() {
        if step == *OsStr::new("..") {
            at = above.pop().unwrap_or(at);
            continue;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let next = rustix::fs::openat(&at, &step, flags, Mode::empty())?;
        if !is_link(&next)? {
            above.push(std::mem::replace(&mut at, next));
            continue;
        }
        links += 1;
        if links > MOST_LINKS {
            return Err(Errno::LOOP);
        }
        let target = rustix::fs::readlinkat(&next, "", vec![])?.into_bytes();
        let target = std::path::PathBuf::from(OsString::from_vec(target));
        if target.is_absolute() {
            at = above.drain(..).next().unwrap_or(at);
        }
        add(&mut steps, &target);
    }
    Ok(at)
}

fn walk(start: OwnedFd, path: &Path, more: OFlags) -> rustix::io::Result<OwnedFd> {
    let mut at = start;
    let mut parts = path.components().peekable();
    while let Some(part) = parts.next() {
        let name = match part {
            Component::Prefix(_) | Component::RootDir | Component::CurDir => continue,
            Component::ParentDir => "..".as_ref(),
            Component::Normal(name) => name,
        };
        let flags = match parts.peek() {
            Some(_) => STEP,
            None => OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC | more,
        };
        at = match rustix::fs::openat(&at, name, flags, Mode::empty()) {
            Ok(next) if is_link(&next)? => return Err(Errno::LOOP),
            Ok(next) => next,
            // It says the same of a link and of a file.
            Err(Errno::NOTDIR) => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let it = rustix::fs::openat(&at, name, flags, Mode::empty())?;
                return Err(if is_link(&it)? {
                    Errno::LOOP
                } else {
                    Errno::NOTDIR
                });
            }
            Err(e) => return Err(e),
        };
    }
    Ok(at)
}

fn is_link(fd: &OwnedFd) -> rustix::io::Result<bool> {
    let mode = rustix::fs::fstat(fd)?.st_mode;
    Ok(FileType::from_raw_mode(mode) == FileType::Symlink)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn no_link_is_followed_wherever_it_stands_and_nothing_leaves_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(dir.path()).unwrap();
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("a/file"), "").unwrap();
        symlink("a", root.join("link")).unwrap();
        symlink("/proc/self/fd", root.join("a/magic")).unwrap();
        let number = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        let ino = |path: &str| std::fs::metadata(root.join(path)).unwrap().ino();
        let top = without_links(&root, OFlags::DIRECTORY).unwrap();
        for (path, same) in [
            ("a/b", "a/b"),
            ("/a/file", "a/file"),
            ("./a/./b", "a/b"),
            ("/", "."),
            ("", "."),
        ] {
            let found = within(&top, Path::new(path)).unwrap();
            assert_eq!(number(&found), ino(same), "{path}");
        }
        for (path, wanted) in [
            ("link", Errno::LOOP),
            ("link/b", Errno::LOOP),
            ("a/magic", Errno::LOOP),
            ("a/magic/0", Errno::LOOP),
            ("a/file/b", Errno::NOTDIR),
            ("a/none", Errno::NOENT),
            ("a/../../etc", Errno::XDEV),
        ] {
            let came = within(&top, Path::new(path)).map(drop);
            assert_eq!(came, Err(wanted), "{path}");
        }
        symlink("/a/b", root.join("a/top")).unwrap();
        symlink("../../../a/./file", root.join("a/b/up")).unwrap();
        symlink("round", root.join("round")).unwrap();
        symlink(&root, root.join("out")).unwrap();
        for (path, wanted) in [
            ("link/top/up", Ok("a/file")),
            ("a/top/../../../..", Ok(".")),
            ("out", Err(Errno::NOENT)),
            ("a/magic/0", Err(Errno::NOENT)),
            ("round", Err(Errno::LOOP)),
            ("a/file/b", Err(Errno::NOTDIR)),
        ] {
            let found = in_root(top.try_clone().unwrap(), Path::new(path));
            assert_eq!(found.map(|it| number(&it)), wanted.map(ino), "{path}");
        }
        let up = without_links(&root.join("a/../a/b"), OFlags::empty()).unwrap();
        assert_eq!(number(&up), ino("a/b"));
        let of_proc = without_links(Path::new("/proc/self/status"), OFlags::empty());
        assert_eq!(of_proc.map(drop), Err(Errno::LOOP));
        let file = without_links(&root.join("a/file"), OFlags::DIRECTORY);
        assert_eq!(file.map(drop), Err(Errno::NOTDIR));
    }
}

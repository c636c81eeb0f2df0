//! What a server wrote to its own log, where that is in memory: it goes with the app, and with it why the app has ended.
//!
//! # Theory of operation
//!
//! When the command has failed, or is given up on, the app's pid 1 puts the last lines of what the app has just written to files that
//! are logs by their name among the lines that it said, and names each tmpfs that is full. It reads them as the app may, in the app's
//! mounts, and only what is in a tmpfs: nothing of the host's, and nothing that could make it wait.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{CWD, FileType, Mode, OFlags, StatFs};

use crate::config::Tmpfs;

/// No more entries of directories are looked at, of all the app's.
const ENTRIES: usize = 500;
/// At most so many files are told of: those that were written to last.
const FILES: usize = 3;
/// At most so many lines of each.
const LINES: usize = 12;
/// At most so many bytes of each, from its end.
const TAIL: u64 = 8 << 10;
/// A file that was last written to so long before the latest one does not tell why the app has ended.
const TOGETHER: Duration = Duration::from_secs(10);
/// A tmpfs that has less left, in bytes, is full: most have a page of a file's to take, or none.
const LEFT: u64 = 4096;

/// One of the app's logs.
struct Log {
    changed: SystemTime,
    name: String,
    file: OwnedFd,
    length: u64,
}

/// What there is to say, as lines.
pub(super) fn last_lines(mounts: &[Tmpfs]) -> Vec<String> {
    let mut logs = vec![];
    let mut places: Vec<PathBuf> = mounts.iter().map(|tmpfs| tmpfs.path.clone()).collect();
    let mut seen = 0;
    while let Some(place) = places.pop() {
        look(&place, &mut places, &mut seen, &mut logs);
    }
    logs.sort_by_key(|log| std::cmp::Reverse(log.changed));
    logs.truncate(FILES);
    let latest = logs.first().map(|log| log.changed);
    logs.retain(|log| {
        let before = latest.and_then(|latest| latest.duration_since(log.changed).ok());
        before.is_none_or(|before| before < TOGETHER)
    });
    // The latest is said last, as its last line is.
    logs.reverse();
    let full = mounts.iter().filter(|tmpfs| is_full(&tmpfs.path));
    let full = full.map(|tmpfs| {
        let (path, size) = (tmpfs.path.display(), tmpfs.size);
        format!("the tmpfs {path}, of {size} bytes, is full")
    });
    logs.iter().flat_map(Log::lines).chain(full).collect()
}

/// Adds what is in a directory, if that is in memory: to what is still to be looked at, and to the logs.
fn look(place: &Path, places: &mut Vec<PathBuf>, seen: &mut usize, logs: &mut Vec<Log>) {
    let Ok(directory) = opened(place, OFlags::DIRECTORY) else {
        return;
    };
    if in_memory(&directory).is_none() {
        return;
    }
    let Ok(entries) = rustix::fs::Dir::read_from(&directory) else {
        return;
    };
    for entry in entries.flatten() {
        *seen += 1;
        if *seen > ENTRIES {
            return;
        }
        let Ok(name) = entry.file_name().to_str() else {
            continue;
        };
        let path = place.join(name);
        match entry.file_type() {
            FileType::Directory if !matches!(name, "." | "..") => places.push(path),
            FileType::RegularFile if is_a_log(&path) => logs.extend(Log::of(&path)),
            _ => {}
        }
    }
}

fn opened(path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let always = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, always | flags, Mode::empty())
}

/// What there is of the tmpfs that it is in; `None` if it is in none.
fn in_memory(fd: &OwnedFd) -> Option<StatFs> {
    let stat = rustix::fs::fstatfs(fd).ok()?;
    (stat.f_type == libc::TMPFS_MAGIC).then_some(stat)
}

fn is_a_log(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Accounts of who was logged in.
    let other = ["lastlog", "faillog"].contains(&name.as_ref());
    let bare = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    !other
        && (path.starts_with("/var/log")
            || bare.ends_with(".log")
            || name.starts_with("log.")
            || name.ends_with(".err"))
}

fn is_full(path: &Path) -> bool {
    let directory = opened(path, OFlags::DIRECTORY).ok();
    let Some(stat) = directory.and_then(|directory| in_memory(&directory)) else {
        return false;
    };
    let size = u64::try_from(stat.f_bsize).unwrap_or(LEFT);
    stat.f_bfree.saturating_mul(size) < LEFT || stat.f_ffree == 0
}

impl Log {
    fn of(path: &Path) -> Option<Self> {
        let file = opened(path, OFlags::empty()).ok()?;
        let stat = rustix::fs::fstat(&file).ok()?;
        let plain = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        let length = u64::try_from(stat.st_size).ok()?;
        let since = Duration::from_secs(u64::try_from(stat.st_mtime).ok()?);
        let changed = UNIX_EPOCH.checked_add(since)?;
        (plain && length > 0 && in_memory(&file).is_some()).then(|| Self {
            changed,
            // Without its directory: what is looked for in a line are paths of others.
            name: path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            file,
            length,
        })
    }

    fn lines(&self) -> Vec<String> {
        let mut tail = vec![0; usize::try_from(self.length.min(TAIL)).unwrap_or_default()];
        let from = self.length.saturating_sub(TAIL);
        let Ok(got) = rustix::io::pread(&self.file, &mut tail, from) else {
            return vec![];
        };
        let text = String::from_utf8_lossy(&tail[..got]);
        let lines = text.lines().map(str::trim_end);
        let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
        let last = &lines[lines.len().saturating_sub(LINES)..];
        last.iter()
            .map(|line| format!("{}: {line}", self.name))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_a_log_is_so_by_its_name_or_its_place() {
        for (path, is) in [
            ("/var/log/samba/log.smbd", true),
            ("/var/log/x/error", true),
            ("/run/x/x.log", true),
            ("/var/lib/x/x.log.1", true),
            ("/var/lib/mysql/host.err", true),
            ("/var/log/lastlog", false),
            ("/run/x/x.pid", false),
            ("/var/lib/x/catalogue", false),
        ] {
            assert_eq!(is_a_log(Path::new(path)), is, "{path}");
        }
    }
}

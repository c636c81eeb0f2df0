//! The log on disk: what is said survives the stack and its supervisor's death, up to a size and an age.
//!
//! ```text
//! /var/log/lrpns/STACK/         its supervisor's id; $XDG_STATE_HOME/lrpns/STACK, else ~/.local/state/lrpns/STACK
//!   about.json                  when the stack that writes here was started, and the one before; how old lines may get
//!   PART.log, PART.log.1        a line of JSON each, as `lrpns logs --json` prints them; the second is the older one
//! ```
//!
//! # Theory of operation
//!
//! A line is one write(2), so what was said before a SIGKILL is there. Each part has an equal share of the size to itself:
//! one that floods its own throws its own lines out, and no other's. A file that has half of its part's share, or lines
//! of half the age, takes the place of the older one. A part also has a budget of bytes a second, and what
//! exceeds it is counted and left out: rewriting the same few megabytes again and again wears a disk out as much as
//! filling it. Nothing is written where less than a fiftieth of the file system is free.
//!
//! Root's directories are in one of root's, and belong to the id that a stack's supervisor has; whoever once was that may have put
//! anything there. So nobody takes more from it than regular files with one name, of an id that such a directory can have; no
//! link is followed, nothing waited for, and what is removed is removed beneath the directory that was looked at. Who opens it to
//! write takes it back first, for as long as it is put in order ([`Files::open`]).
//!
//! Nothing here ends the stack: what can't be written is counted, said once in the log itself, and once more on disk when
//! that works again.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid};
use serde::{Deserialize, Serialize};

use super::budget::{Bucket, LeftOut};
use super::{LogLine, Stream};
use crate::confine::privileges::{HOST_IDS, Ids};

/// What of a part may be written each second…
const BYTES_A_SECOND: u64 = 1 << 20;
/// …and at once.
const BYTES_AT_ONCE: u64 = 8 << 20;
/// How often a disk that takes nothing is tried, and how often is looked whether there is room.
const TRY_EVERY: Duration = Duration::from_secs(1);
/// How often is looked for what has grown old.
const LOOK_EVERY: SignedDuration = SignedDuration::from_mins(1);
/// One of so many parts of a file system stays free…
const KEEP_FREE: u64 = 50;
/// …and no log takes more than one of so many.
const TAKE_AT_MOST: u64 = 10;
/// The longest line that is read back: a whole piece of a line, each byte of it escaped.
const LONGEST: u64 = 256 << 10;

/// What is known of the stack that writes a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// When it was started.
    pub begun: Timestamp,
    /// When the one before was.
    pub previous: Option<Timestamp>,
    /// How old lines may get, in seconds.
    pub age: u64,
}

const ABOUT: &str = "about.json";
const ABOUT_NEW: &str = "about.json.new";

/// A log that is written.
#[derive(Debug)]
pub struct Files {
    dir: OwnedFd,
    path: PathBuf,
    /// Whose what is made here is, if not its maker's.
    owner: Option<Ids>,
    size: u64,
    /// What each part may take.
    share: u64,
    age: SignedDuration,
    parts: BTreeMap<String, PartFile>,
    /// When to look for what has grown old.
    look: Timestamp,
    /// When it was last looked whether there is room, and what came of it.
    room: Option<(Instant, bool)>,
    trouble: Option<Trouble>,
}

/// The disk takes nothing.
#[derive(Debug)]
struct Trouble {
    why: String,
    lines: u64,
    tried: Instant,
}

#[derive(Debug)]
struct PartFile {
    file: File,
    len: u64,
    /// The time of its first line.
    begun: Timestamp,
    budget: Bucket,
    left_out: LeftOut,
}

impl Files {
    /// Makes the directory, or goes on in it; no more than its owner may read what is there. Root gives it to `owner`, with what
    /// is a log of its.
    ///
    /// # Errors
    /// What the kernel says, with what was tried.
    pub fn open(
        path: &Path,
        size: u64,
        age: Duration,
        parts: usize,
        owner: Option<Ids>,
    ) -> Result<Self, String> {
        let at = |what: &str, e: io::Error| format!("{what} {}: {e}", path.display());
        let dir = make_dir(path).map_err(|e| at("make", e))?;
        let whose = may_be(&dir).map_err(|e| at("open", e))?;
        let is_root = rustix::process::geteuid().is_root();
        let owner = owner.filter(|_| is_root);
        if is_root {
            // Nobody else puts anything there meanwhile.
            give(&dir, Ids::ROOT, Mode::RWXU).map_err(|e| at("take", e))?;
            put_in_order(&dir, whose, owner.unwrap_or(Ids::ROOT))
                .map_err(|e| at("put in order", e))?;
        }
        let about = About {
            begun: Timestamp::now(),
            previous: about_in(&dir).map(|about| about.begun),
            age: age.as_secs(),
        };
        let files = Self::begin(dir, path, owner, &about, (size, parts))?;
        if let Some(owner) = owner {
            give(&files.dir, owner, Mode::RWXU).map_err(|e| at("give", e))?;
        }
        Ok(files)
    }

    /// Goes on in a directory that was opened by who could, or by another plan: the stack is the same.
    ///
    /// # Errors
    /// As [`Files::open`].
    pub fn go_on(
        dir: OwnedFd,
        path: &Path,
        size: u64,
        age: Duration,
        parts: usize,
    ) -> Result<Self, String> {
        may_be(&dir).map_err(|e| format!("go on in {}: {e}", path.display()))?;
        let known = about_in(&dir);
        let about = About {
            begun: known.as_ref().map_or_else(Timestamp::now, |it| it.begun),
            previous: known.and_then(|it| it.previous),
            age: age.as_secs(),
        };
        Self::begin(dir, path, None, &about, (size, parts))
    }

    fn begin(
        dir: OwnedFd,
        path: &Path,
        owner: Option<Ids>,
        about: &About,
        (size, parts): (u64, usize),
    ) -> Result<Self, String> {
        let at = |what: &str, e: io::Error| format!("{what} {}: {e}", path.display());
        let size = size.min(most(&dir).map_err(|e| at("look for room at", e))?);
        let now = Timestamp::now();
        let age = i64::try_from(about.age).map_or(SignedDuration::MAX, SignedDuration::from_secs);
        let files = Self {
            dir,
            path: path.to_owned(),
            owner,
            size,
            share: share(size, parts),
            age,
            parts: BTreeMap::new(),
            look: now,
            room: None,
            trouble: None,
        };
        files.write_about(about).map_err(|e| at("write", e))?;
        // Of parts that are no more there is nobody to do it.
        remove_old(&files.dir, files.age, now);
        Ok(files)
    }

    /// The directory, for who is to write there.
    #[must_use]
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    fn write_about(&self, about: &About) -> io::Result<()> {
        match unlink(&self.dir, ABOUT_NEW) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        self.create(ABOUT_NEW)?
            .write_all(&serde_json::to_vec(about)?)?;
        Ok(rustix::fs::renameat(
            &self.dir, ABOUT_NEW, &self.dir, ABOUT,
        )?)
    }

    fn create(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = rustix::fs::openat(&self.dir, name, flags, mode)?;
        if let Some(owner) = self.owner
            && rustix::process::geteuid().is_root()
        {
            give(&file, owner, mode)?;
        }
        Ok(File::from(file))
    }

    /// What is in the place of a log of ours and is none goes.
    fn open_or_create(&self, name: &str) -> io::Result<File> {
        match rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if is_log(&stat).is_ok() => return open_file(&self.dir, name, OFlags::RDWR),
            Ok(_) => unlink(&self.dir, name)?,
            Err(rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
        self.create(name)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Why it is not written at the moment, if it isn't.
    #[must_use]
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_ref().map(|trouble| trouble.why.as_str())
    }

    /// From now on there are so many parts.
    pub fn divide(&mut self, parts: usize) {
        self.share = share(self.size, parts);
    }

    /// Writes a line; what goes wrong for the first time is given back, to be said elsewhere.
    pub fn write(&mut self, line: &LogLine, now: Instant) -> Option<String> {
        if let Some(trouble) = &mut self.trouble {
            if now.saturating_duration_since(trouble.tried) < TRY_EVERY {
                trouble.lines += 1;
                return None;
            }
            trouble.tried = now;
        }
        if line.time >= self.look {
            self.look = line.time.saturating_add(LOOK_EVERY).unwrap_or(line.time);
            self.grow_old(line.time);
        }
        let written = self.has_room(now).and_then(|()| self.try_write(line, now));
        match (written, &mut self.trouble) {
            (Ok(()), _) => None,
            (Err(_), Some(trouble)) => {
                trouble.lines += 1;
                None
            }
            (Err(e), none) => {
                let why = format!("write {}: {e}", self.path.display());
                *none = Some(Trouble {
                    why: why.clone(),
                    lines: 1,
                    tried: now,
                });
                Some(format!(
                    "the log on disk lacks what follows until it works again: {why}"
                ))
            }
        }
    }

    fn try_write(&mut self, line: &LogLine, now: Instant) -> io::Result<()> {
        if let Some(trouble) = &self.trouble {
            let Trouble { why, lines, .. } = trouble;
            let text = format!("{lines} lines are missing on disk: {why}");
            self.append(&of_ours(&line.part, text, line.time), now)?;
            self.trouble = None;
        }
        // What happens to a part is seldom, and ours.
        if line.stream == Stream::Event {
            return self.append(line, now);
        }
        let size = line.text.len() as u64 + 100;
        let part = self.part(&line.part, line.time, now)?;
        if part.budget.left(now) < size {
            part.left_out.lines += 1;
            part.left_out.bytes += line.text.len() as u64 + 1;
            return Ok(());
        }
        part.budget.take(size, now);
        let LeftOut { lines, bytes } = std::mem::take(&mut part.left_out);
        if lines > 0 {
            let text = format!(
                "{lines} lines, {bytes} bytes are left out here: more than {BYTES_A_SECOND} bytes a second are not written to disk"
            );
            self.append(&of_ours(&line.part, text, line.time), now)?;
        }
        self.append(line, now)
    }

    /// The file of a part, opened where it ends.
    fn part(&mut self, name: &str, time: Timestamp, now: Instant) -> io::Result<&mut PartFile> {
        if !self.parts.contains_key(name) {
            let file = self.open_or_create(&format!("{name}.log"))?;
            let mut len = file.metadata()?.len();
            // A line that was torn by the end of a machine, or of its room.
            let mut last = [b'\n'];
            if len > 0 {
                file.read_exact_at(&mut last, len - 1)?;
            }
            if last != [b'\n'] {
                file.write_all_at(b"\n", len)?;
                len += 1;
            }
            let begun = first(&file).unwrap_or(time);
            self.parts.insert(
                name.to_owned(),
                PartFile {
                    file,
                    len,
                    begun,
                    budget: Bucket::new(BYTES_A_SECOND, BYTES_AT_ONCE, now),
                    left_out: LeftOut::default(),
                },
            );
        }
        let part = self.parts.get_mut(name);
        part.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn append(&mut self, line: &LogLine, now: Instant) -> io::Result<()> {
        let most = self.share / 2;
        let mut text = line.json();
        text.push('\n');
        if text.len() as u64 > most {
            let note = format!("a line of {} bytes is left out here", line.text.len());
            text = of_ours(&line.part, note, line.time).json() + "\n";
        }
        let part = self.part(&line.part, line.time, now)?;
        if part.len > 0 && part.len + text.len() as u64 > most {
            self.rotate(&line.part)?;
        }
        let part = self.part(&line.part, line.time, now)?;
        match part.file.write_all_at(text.as_bytes(), part.len) {
            Ok(()) => {
                part.len += text.len() as u64;
                Ok(())
            }
            Err(e) => {
                // Of half a line nothing is understood.
                let _ = part.file.set_len(part.len);
                Err(e)
            }
        }
    }

    /// The file of a part takes the place of its older one.
    fn rotate(&mut self, name: &str) -> io::Result<()> {
        let (new, old) = (format!("{name}.log"), format!("{name}.log.1"));
        rustix::fs::renameat(&self.dir, new, &self.dir, old)?;
        // The budget is the part's, and goes on.
        let Some(PartFile {
            budget, left_out, ..
        }) = self.parts.remove(name)
        else {
            return Ok(());
        };
        let now = Instant::now();
        let part = self.part(name, Timestamp::now(), now)?;
        part.budget = budget;
        part.left_out = left_out;
        Ok(())
    }

    /// Rotates what has lines of half the age, and removes what has lines that are too old.
    fn grow_old(&mut self, now: Timestamp) {
        let half = self.age / 2;
        let old: Vec<String> = { self.parts.iter() }
            .filter(|(_, part)| part.len > 0 && now.duration_since(part.begun) > half)
            .map(|(name, _)| name.clone())
            .collect();
        for name in old {
            // Then its lines get older than they should, and the next look tries again.
            let _ = self.rotate(&name);
        }
        remove_old(&self.dir, self.age, now);
        // Another command may have tidied up, of a stack that has been silent.
        self.parts
            .retain(|_, part| part.file.metadata().is_ok_and(|meta| meta.nlink() > 0));
    }

    /// Whether there is room, as far as is known.
    fn has_room(&mut self, now: Instant) -> io::Result<()> {
        let known = self
            .room
            .filter(|(at, _)| now.saturating_duration_since(*at) < TRY_EVERY);
        let free = match known {
            Some((_, free)) => free,
            None => {
                let room = rustix::fs::fstatvfs(self.dir.as_fd())?;
                let free = room.f_bavail >= room.f_blocks / KEEP_FREE;
                self.room = Some((now, free));
                free
            }
        };
        match free {
            true => Ok(()),
            false => Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!("less than 1/{KEEP_FREE} of the file system is free"),
            )),
        }
    }
}

fn share(size: u64, parts: usize) -> u64 {
    size / u64::try_from(parts).unwrap_or(u64::MAX).max(1)
}

/// A line of our own.
fn of_ours(part: &str, text: String, time: Timestamp) -> LogLine {
    LogLine {
        time,
        part: part.to_owned(),
        stream: Stream::Event,
        text,
        continues: false,
        traffic: None,
    }
}

/// The most that a log in that directory may take, whatever is asked for.
fn most(dir: &OwnedFd) -> io::Result<u64> {
    let room = rustix::fs::fstatvfs(dir)?;
    let all = room.f_blocks.saturating_mul(room.f_frsize);
    Ok((all / TAKE_AT_MOST).max(1))
}

/// Whether what belongs to that uid is this process's, or one of the stacks' that root tidies up after.
fn is_ours(uid: u32) -> bool {
    let own = rustix::process::geteuid();
    uid == own.as_raw() || (own.is_root() && HOST_IDS.contains(&uid))
}

fn give(fd: impl AsFd, owner: Ids, mode: Mode) -> io::Result<()> {
    let belongs_to = |owner: Ids| {
        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        rustix::fs::fchown(&fd, Some(uid), Some(gid))
    };
    // The mode is its owner's to change, or takes CAP_FOWNER.
    belongs_to(Ids::ROOT)?;
    rustix::fs::fchmod(&fd, mode)?;
    if owner != Ids::ROOT {
        belongs_to(owner)?;
    }
    Ok(())
}

/// Makes the directory unless it is there, in one that is looked at once.
fn make_dir(path: &Path) -> io::Result<OwnedFd> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut make = DirBuilder::new();
    make.recursive(true).mode(0o700).create(above)?;
    strays(path)?;
    let above = rustix::fs::open(above, ABOVE, Mode::empty())?;
    match rustix::fs::mkdirat(&above, name, Mode::RWXU) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    Ok(rustix::fs::openat(&above, name, DIR, Mode::empty())?)
}

/// As what a directory is opened: itself, as somebody may have put a link in its place since it was made.
const DIR: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::RDONLY);

/// As what the directory above it is opened.
const ABOVE: OFlags = OFlags::DIRECTORY.union(OFlags::PATH).union(OFlags::CLOEXEC);

/// An error if somebody who is a stack's could have chosen where root is led by a path.
fn strays(path: &Path) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let real = match path.parent() {
        Some(above) => std::fs::canonicalize(above)?,
        None => return Ok(()),
    };
    for on_the_way in path.ancestors().skip(1).chain(real.ancestors()) {
        // What is relative begins in the directory that root is in.
        if on_the_way.as_os_str().is_empty() {
            continue;
        }
        let uid = std::fs::symlink_metadata(on_the_way)?.uid();
        if HOST_IDS.contains(&uid) {
            return Err(io::Error::other(format!(
                "{} belongs to uid {uid}, which is a stack's",
                on_the_way.display()
            )));
        }
    }
    Ok(())
}

/// The directory, if it is one and ours: in the place of one above it, somebody else may have put a link since it was made.
fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    strays(path)?;
    let dir = rustix::fs::open(path, DIR, Mode::empty())?;
    may_be(&dir)?;
    Ok(dir)
}

/// Whose it is, if it may be the directory of a log.
fn may_be(dir: &OwnedFd) -> io::Result<u32> {
    let Stat {
        st_uid, st_mode, ..
    } = rustix::fs::fstat(dir)?;
    // Of a stack's it makes no difference who else may write there.
    let is_own = st_uid == rustix::process::geteuid().as_raw();
    if !is_ours(st_uid) || (is_own && st_mode & 0o022 != 0) {
        return Err(io::Error::other(format!(
            "it belongs to uid {st_uid} with mode {:o}: it must be ours, and nobody else may write there",
            st_mode & 0o7777
        )));
    }
    Ok(st_uid)
}

/// Gives what is a log in a directory, which was `whose`, to who is to write it; what is none, and is where one would be, goes.
fn put_in_order(dir: &OwnedFd, whose: u32, owner: Ids) -> io::Result<()> {
    for name in files(dir)?
        .into_iter()
        .chain([ABOUT.to_owned(), ABOUT_NEW.to_owned()])
    {
        let stat = match rustix::fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(rustix::io::Errno::NOENT) => continue,
            Err(e) => return Err(e.into()),
        };
        // One of root's can only have been moved there by who had the directory.
        if is_log(&stat).is_err() || (stat.st_uid != whose && stat.st_uid == 0) {
            unlink(dir, &name)?;
            continue;
        }
        match open_file(dir, &name, OFlags::RDONLY) {
            Ok(file) => give(file, owner, Mode::RUSR | Mode::WUSR)?,
            // Somebody has a lease on it (fcntl(2)).
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => unlink(dir, &name)?,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Removes what has that name, if it is not a directory that has something in it.
fn unlink(dir: &OwnedFd, name: &str) -> io::Result<()> {
    let removed = match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(rustix::io::Errno::ISDIR) => rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR),
        removed => removed,
    };
    removed.map_err(|e| {
        let e = io::Error::from(e);
        io::Error::new(e.kind(), format!("remove {name}: {e}"))
    })
}

/// An error unless it can be a file that a log has.
fn is_log(stat: &Stat) -> io::Result<()> {
    let no = |why: String| Err(io::Error::other(why));
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        _ => return no("it is not a regular file".to_owned()),
    }
    if !is_ours(stat.st_uid) {
        return no(format!("it belongs to uid {}", stat.st_uid));
    }
    // None when it was removed meanwhile.
    match stat.st_nlink {
        0 | 1 => Ok(()),
        more => no(format!("it has {more} names, and may be another's")),
    }
}

/// A file of the directory, if it is one: nothing waits for who opens the other end of a pipe.
fn open_file(dir: &OwnedFd, name: &str, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    is_log(&rustix::fs::fstat(&file)?)?;
    Ok(File::from(file))
}

/// The time of the first line of a file.
fn first(file: &File) -> Option<Timestamp> {
    let mut line = vec![];
    let mut start = BufReader::new(io::Read::take(file, LONGEST));
    start.read_until(b'\n', &mut line).ok()?;
    Some(serde_json::from_slice::<LogLine>(&line).ok()?.time)
}

/// Whether a file of this name has lines; of which part.
fn part_of(file: &str) -> Option<&str> {
    file.strip_suffix(".log")
        .or_else(|| file.strip_suffix(".log.1"))
}

fn files(dir: &OwnedFd) -> io::Result<Vec<String>> {
    let mut files = vec![];
    for entry in rustix::fs::Dir::read_from(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if part_of(&name).is_some() {
            files.push(name);
        }
    }
    Ok(files)
}

/// Removes files whose first line is older than that. Its others are not much younger: at most by half the age.
fn remove_old(dir: &OwnedFd, age: SignedDuration, now: Timestamp) {
    for name in files(dir).unwrap_or_default() {
        let file = open_file(dir, &name, OFlags::RDONLY).ok();
        let begun = file.and_then(|file| first(&file));
        if begun.is_some_and(|begun| now.duration_since(begun) > age) {
            let _ = unlink(dir, &name);
        }
    }
}

/// What is known of the stack that wrote a log last, if one has.
#[must_use]
pub fn about(path: &Path) -> Option<About> {
    about_in(&open_dir(path).ok()?)
}

fn about_in(dir: &OwnedFd) -> Option<About> {
    let mut text = vec![];
    let file = open_file(dir, ABOUT, OFlags::RDONLY).ok()?;
    io::Read::read_to_end(&mut io::Read::take(file, LONGEST), &mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// What was read of a log.
#[derive(Debug, Default)]
pub struct Found {
    /// Its lines, in the order of time.
    pub lines: Vec<LogLine>,
    /// What has the name of a file of it and is none: of each the name, and why.
    pub passed_over: Vec<String>,
}

/// Every line of a log that `wants` lets through; what is no line is passed over. No more is read than a log can have.
///
/// # Errors
/// What the kernel says; a directory that isn't there has no lines.
pub fn read(path: &Path, mut wants: impl FnMut(&LogLine) -> bool) -> io::Result<Found> {
    let mut found = Found::default();
    let dir = match open_dir(path) {
        Ok(dir) => dir,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(e) => return Err(e),
    };
    let mut left = most(&dir)?;
    for name in files(&dir)? {
        let file = match open_file(&dir, &name, OFlags::RDONLY) {
            Ok(file) => file,
            // It was rotated away while we looked.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            // Who has been the supervisor may have put anything there, and the rest is to be read all the same.
            Err(e) if is_something_else(&e) => {
                found.passed_over.push(format!("{name}: {e}"));
                continue;
            }
            Err(e) => return Err(io::Error::new(e.kind(), format!("{name}: {e}"))),
        };
        let mut file = BufReader::new(file);
        let mut text = vec![];
        loop {
            text.clear();
            let most = left.min(LONGEST);
            let got = io::Read::take(&mut file, most).read_until(b'\n', &mut text)?;
            if got == 0 {
                break;
            }
            left = left.saturating_sub(got as u64);
            if let Ok(line) = serde_json::from_slice::<LogLine>(&text)
                && wants(&line)
            {
                found.lines.push(line);
            }
        }
    }
    found.lines.sort_by_key(|line| line.time);
    Ok(found)
}

/// Whether a file could not be opened since it is none that a log has: [`is_log`] says so, or it is a link, a socket or a device
/// without a driver.
fn is_something_else(e: &io::Error) -> bool {
    match e.raw_os_error() {
        Some(errno) => [libc::ELOOP, libc::ENXIO, libc::ENODEV].contains(&errno),
        None => e.kind() == io::ErrorKind::Other,
    }
}

/// Removes a log; `false` when there was none.
///
/// # Errors
/// What the kernel says.
pub fn remove(path: &Path) -> io::Result<bool> {
    let (above, name, dir) = match open_in_its_place(path) {
        Ok(opened) => opened,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    };
    // Others have files of such names too, and whatever directory this is, they are not ours to remove.
    if about_in(&dir).is_none() {
        return Ok(false);
    }
    // What tells that it is a log goes last.
    for name in files(&dir)?.into_iter().chain([ABOUT.to_owned()]) {
        match unlink(&dir, &name) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    // With the last one; else they say that they aren't empty.
    let _ = remove_if(&above, name, &dir);
    if let Some(name) = path.parent().and_then(Path::file_name) {
        let over = rustix::fs::openat(&above, "..", ABOVE, Mode::empty());
        let _ = over
            .map_err(io::Error::from)
            .and_then(|over| remove_if(over, name, &above));
    }
    Ok(true)
}

/// Opens the directory of a log as [`open_dir`] does, with the one that it is in, in which it is removed later: what a path leads to may
/// be another one by then.
fn open_in_its_place(path: &Path) -> io::Result<(OwnedFd, &OsStr, OwnedFd)> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let above = rustix::fs::open(above, ABOVE, Mode::empty())?;
    strays(path)?;
    let dir = rustix::fs::openat(&above, name, DIR, Mode::empty())?;
    may_be(&dir)?;
    Ok((above, name, dir))
}

/// Removes an empty directory, if it is this one. Who puts another there just then has moved one of his own.
fn remove_if(above: impl AsFd, name: &OsStr, is: &OwnedFd) -> io::Result<()> {
    let which = |stat: Stat| (stat.st_dev, stat.st_ino);
    let there = rustix::fs::statat(&above, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if which(there) == which(rustix::fs::fstat(is)?) {
        rustix::fs::unlinkat(&above, name, AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

/// Removes what has grown old of the logs of all stacks below `root`, whether they run or not.
pub fn tidy(root: &Path) {
    tidy_all(directories(root));
}

/// The same of a few of them, of others each time: a start that looked at all would take the longer the more stacks there are.
pub fn tidy_some(root: &Path) {
    let mut some = directories(root);
    let now = usize::try_from(Timestamp::now().subsec_nanosecond()).unwrap_or_default();
    let first = now.checked_rem(some.len()).unwrap_or_default();
    some.rotate_left(first);
    some.truncate(SOME);
    tidy_all(some);
}

/// How many those are.
const SOME: usize = 8;

fn directories(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn tidy_all(paths: Vec<PathBuf>) {
    let now = Timestamp::now();
    for path in paths {
        let Ok(dir) = open_dir(&path) else { continue };
        let Some(about) = about_in(&dir) else {
            continue;
        };
        let is_old = SignedDuration::from_secs(i64::try_from(about.age).unwrap_or(i64::MAX));
        remove_old(&dir, is_old, now);
        if files(&dir).is_ok_and(|files| files.is_empty())
            && now.duration_since(about.begun) > is_old
        {
            let _ = remove(&path);
        }
    }
}

/// The names of the stacks that have one below `root`.
#[must_use]
pub fn stacks(root: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let named = entries.filter(|entry| about(&entry.path()).is_some());
    named
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(part: &str, text: &str, time: Timestamp) -> LogLine {
        LogLine {
            time,
            part: part.to_owned(),
            stream: Stream::Out,
            text: text.to_owned(),
            continues: false,
            traffic: None,
        }
    }

    const DAY: Duration = Duration::from_hours(24);

    struct Log {
        dir: tempfile::TempDir,
        now: Timestamp,
        begun: Instant,
    }

    impl Log {
        fn new() -> Self {
            Self {
                dir: tempfile::tempdir().unwrap(),
                now: Timestamp::now(),
                begun: Instant::now(),
            }
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("lrpns/shop")
        }

        fn open(&self, size: u64) -> Files {
            Files::open(&self.path(), size, DAY, 2, None).unwrap()
        }

        fn texts(&self, part: &str) -> Vec<String> {
            let found = read(&self.path(), |line| line.part == part).unwrap();
            found.lines.into_iter().map(|line| line.text).collect()
        }

        fn size(&self) -> u64 {
            let files = files(&open_dir(&self.path()).unwrap()).unwrap();
            let length = |name: &String| self.path().join(name).metadata().unwrap().len();
            files.iter().map(length).sum()
        }
    }

    #[test]
    fn what_was_written_is_read_after_a_restart_and_who_wrote_is_known() {
        let log = Log::new();
        let mut files = log.open(1 << 20);
        assert_eq!(files.write(&line("web", "one", log.now), log.begun), None);
        drop(files);
        let first = about(&log.path()).unwrap();
        assert_eq!((first.previous, first.age), (None, 86_400));
        // Torn by the machine's end.
        let path = log.path().join("web.log");
        let mut torn = File::options().append(true).open(path).unwrap();
        torn.write_all(b"{\"time\":\"20").unwrap();
        let mut files = log.open(1 << 20);
        assert_eq!(files.write(&line("web", "two", log.now), log.begun), None);
        assert_eq!(log.texts("web"), ["one", "two"]);
        assert_eq!(about(&log.path()).unwrap().previous, Some(first.begun));
        let mode = |path: &Path| path.metadata().unwrap().mode() & 0o777;
        assert_eq!(mode(&log.path()), 0o700);
        assert_eq!(mode(&log.path().join("web.log")), 0o600);
        assert!(remove(&log.path()).unwrap());
        assert!(!remove(&log.path()).unwrap());
        assert!(!log.path().exists());
    }

    #[test]
    fn a_flood_takes_neither_more_than_its_share_nor_the_lines_of_others() {
        let log = Log::new();
        let size = 64 << 10;
        let mut files = log.open(size);
        assert_eq!(files.write(&line("db", "quiet", log.now), log.begun), None);
        let mut most = 0;
        for number in 0..10_000 {
            let text = format!("{number} {}", "x".repeat(100));
            files.write(&line("web", &text, log.now), log.begun);
            if number % 100 == 0 {
                most = most.max(log.size());
            }
        }
        assert!(most <= size, "{most}");
        assert!(log.size() > size / 8, "{}", log.size());
        assert_eq!(log.texts("db"), ["quiet"]);
        let last = log.texts("web");
        assert!(last.last().unwrap().starts_with("9999 "), "{last:?}");
        // A line that has no room in its whole share is said to be missing.
        files.write(&line("web", &"y".repeat(40 << 10), log.now), log.begun);
        let last = log.texts("web").pop().unwrap();
        assert_eq!(last, "a line of 40960 bytes is left out here");
    }

    #[test]
    fn what_exceeds_the_budget_is_counted_and_said_when_there_is_some_again() {
        let log = Log::new();
        let mut files = log.open(64 << 20);
        let text = "x".repeat(1 << 10);
        for _ in 0..10_000 {
            files.write(&line("web", &text, log.now), log.begun);
        }
        let written = log.texts("web").len();
        assert!((7_000..8_000).contains(&written), "{written}");
        let later = log.begun + Duration::from_secs(1);
        let after = log.now + SignedDuration::from_secs(1);
        files.write(&line("web", "again", after), later);
        let texts = log.texts("web");
        let [.., said, again] = texts.as_slice() else {
            panic!("{texts:?}")
        };
        assert!(
            said.starts_with(&format!("{} lines, ", 10_000 - written)),
            "{said}"
        );
        assert_eq!(again, "again");
    }

    #[test]
    fn lines_get_no_older_than_they_may() {
        let log = Log::new();
        let mut files = log.open(1 << 20);
        files.write(&line("web", "old", log.now), log.begun);
        files.write(&line("db", "silent", log.now), log.begun);
        let later = |hours| log.now + SignedDuration::from_hours(hours);
        files.write(&line("web", "newer", later(13)), log.begun);
        assert_eq!(log.texts("web"), ["old", "newer"]);
        assert!(log.path().join("web.log.1").exists());
        files.write(&line("web", "newest", later(25)), log.begun);
        assert_eq!(log.texts("web"), ["newer", "newest"]);
        assert!(log.texts("db").is_empty());
        // One that was removed while nothing was said.
        std::fs::remove_file(log.path().join("web.log")).unwrap();
        files.write(&line("web", "after", later(26)), log.begun);
        assert_eq!(log.texts("web"), ["newer", "after"]);
        // Of a stack that has ended it is done by whoever tidies up.
        drop(files);
        let root = log.path().parent().unwrap().to_owned();
        tidy(&root);
        assert_eq!(log.texts("web"), ["newer", "after"]);
        let mut old = log.open(1 << 20);
        old.write(&line("db", "old", later(-25)), log.begun);
        tidy(&root);
        assert!(log.texts("db").is_empty());
        assert!(log.path().exists(), "its stack is not that old");
    }

    #[test]
    fn a_start_tidies_up_after_eight_and_after_all_in_the_end() {
        let log = Log::new();
        let root = log.path().parent().unwrap().to_owned();
        let old = line("db", "old", log.now - SignedDuration::from_hours(25));
        for number in 0..20 {
            let path = root.join(format!("s{number}"));
            let mut files = Files::open(&path, 1 << 20, DAY, 2, None).unwrap();
            files.write(&old, log.begun);
        }
        let left = || {
            let has_lines = |path: &PathBuf| !read(path, |_| true).unwrap().lines.is_empty();
            directories(&root)
                .iter()
                .filter(|path| has_lines(path))
                .count()
        };
        assert_eq!(left(), 20);
        tidy_some(&root);
        assert_eq!(left(), 12);
        // Of which eight it is the clock decides.
        let again = (0..10_000).take_while(|_| left() > 0);
        again.for_each(|_| tidy_some(&root));
        assert_eq!(left(), 0);
    }

    #[test]
    fn a_directory_of_somebody_elses_is_refused() {
        let log = Log::new();
        std::fs::create_dir_all(log.path()).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(log.path(), mode).unwrap();
        let e = Files::open(&log.path(), 1 << 20, DAY, 1, None).unwrap_err();
        assert!(e.contains("it must be ours"), "{e}");
        let target = log.dir.path().join("elsewhere");
        std::fs::create_dir(&target).unwrap();
        std::fs::remove_dir(log.path()).unwrap();
        std::os::unix::fs::symlink(&target, log.path()).unwrap();
        let e = Files::open(&log.path(), 1 << 20, DAY, 1, None).unwrap_err();
        assert!(e.starts_with("make "), "{e}");
    }

    #[test]
    fn what_has_taken_the_place_of_a_log_is_neither_read_nor_removed() {
        let log = Log::new();
        let mut files = log.open(1 << 20);
        assert_eq!(files.write(&line("web", "one", log.now), log.begun), None);
        drop(files);
        // In the place of the log, a link to it.
        let (path, aside) = (log.path(), log.dir.path().join("aside"));
        std::fs::rename(&path, &aside).unwrap();
        std::os::unix::fs::symlink(&aside, &path).unwrap();
        assert!(remove(&path).is_err());
        assert!(read(&path, |_| true).is_err());
        assert_eq!(about(&path), None);
        // A link above it, to a directory that has files of such names.
        std::fs::remove_file(&path).unwrap();
        let other = log.dir.path().join("var");
        DirBuilder::new().mode(0o755).create(&other).unwrap();
        let shop = other.join("shop");
        DirBuilder::new().mode(0o755).create(&shop).unwrap();
        std::fs::write(shop.join("kern.log"), "kept").unwrap();
        std::fs::remove_dir(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&other, path.parent().unwrap()).unwrap();
        assert!(!remove(&path).unwrap());
        assert_eq!(std::fs::read(shop.join("kern.log")).unwrap(), b"kept");
        // Who waits for a writer waits for ever.
        rustix::fs::mknodat(
            rustix::fs::CWD,
            aside.join("pipe.log"),
            rustix::fs::FileType::Fifo,
            Mode::RUSR,
            0,
        )
        .unwrap();
        // Nor does a directory keep the rest from who reads.
        std::fs::create_dir(aside.join("relay.log")).unwrap();
        let found = read(&aside, |_| true).unwrap();
        let mut passed_over = found.passed_over;
        passed_over.sort();
        let what =
            ["pipe.log", "relay.log"].map(|name| format!("{name}: it is not a regular file"));
        assert_eq!(passed_over, what);
        assert_eq!(found.lines.len(), 1);
        assert!(remove(&aside).unwrap());
    }

    #[test]
    fn a_directory_is_removed_where_it_was_found_and_no_other_of_its_name() {
        let log = Log::new();
        drop(log.open(1 << 20));
        let path = log.path();
        let (above, name, dir) = open_in_its_place(&path).unwrap();
        for file in files(&dir)
            .unwrap()
            .iter()
            .map(String::as_str)
            .chain([ABOUT])
        {
            unlink(&dir, file).unwrap();
        }
        // The way there leads elsewhere by now, to an empty directory of that name.
        let (there, aside) = (log.dir.path().join("lrpns"), log.dir.path().join("aside"));
        std::fs::rename(&there, &aside).unwrap();
        std::fs::create_dir_all(log.path()).unwrap();
        remove_if(&above, name, &dir).unwrap();
        assert!(log.path().exists() && !aside.join("shop").exists());
        // And one in its own place that is another.
        std::fs::create_dir(aside.join("shop")).unwrap();
        remove_if(&above, name, &dir).unwrap();
        assert!(aside.join("shop").exists());
    }

    const STACKS: Ids = Ids {
        uid: HOST_IDS.start + 0xfff0,
        gid: HOST_IDS.start + 0xfff0,
    };

    /// Only root can give something away.
    fn is_root() -> bool {
        rustix::process::geteuid().is_root()
    }

    impl Log {
        /// As a supervisor leaves it that has an id of its own.
        fn given(&self) -> Files {
            let mut files = Files::open(&self.path(), 1 << 20, DAY, 2, Some(STACKS)).unwrap();
            assert_eq!(files.write(&line("web", "one", self.now), self.begun), None);
            files
        }

        fn owner(&self, name: &str) -> u32 {
            { self.path().join(name).symlink_metadata() }.unwrap().uid()
        }

        fn put(&self, name: &str, how: &str) {
            let path = self.path().join(name);
            let _ = std::fs::remove_file(&path);
            match how {
                "link" => std::os::unix::fs::symlink(self.dir.path().join("other"), path).unwrap(),
                "name" => std::fs::hard_link(self.dir.path().join("other"), path).unwrap(),
                "directory" => std::fs::create_dir(path).unwrap(),
                "pipe" => {
                    let (fifo, mode) = (FileType::Fifo, Mode::RUSR | Mode::WUSR);
                    rustix::fs::mknodat(rustix::fs::CWD, &path, fifo, mode, 0).unwrap();
                }
                "moved" => std::fs::rename(self.dir.path().join("other"), path).unwrap(),
                how => panic!("{how}"),
            }
        }
    }

    #[test]
    fn root_gives_a_log_to_who_writes_it_and_still_reads_and_removes_it() {
        if !is_root() {
            return;
        }
        let log = Log::new();
        // Of a supervisor that was root.
        let mut files = log.open(1 << 20);
        assert_eq!(files.write(&line("db", "zero", log.now), log.begun), None);
        drop(files);
        let files = log.given();
        for name in ["", "about.json", "web.log", "db.log"] {
            assert_eq!(log.owner(name), STACKS.uid, "{name}");
        }
        assert_eq!(log.dir.path().join("lrpns").metadata().unwrap().uid(), 0);
        let before = about(&log.path()).unwrap();
        let dir = files.directory().try_clone_to_owned().unwrap();
        let again = Files::go_on(dir, &log.path(), 1 << 20, 2 * DAY, 3).unwrap();
        let age = 2 * before.age;
        assert_eq!(about(&log.path()), Some(About { age, ..before }));
        drop((files, again));
        assert_eq!(
            (log.texts("web"), log.texts("db")),
            (vec!["one".to_owned()], vec!["zero".to_owned()])
        );
        let above = log.path().parent().unwrap().to_owned();
        assert_eq!(stacks(&above), ["shop"]);
        tidy(&above);
        assert_eq!(log.texts("web"), ["one"]);
        // What it has done to the mode is its own business; the next run takes it back.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(log.path(), mode).unwrap();
        assert_eq!(log.texts("web"), ["one"]);
        drop(log.given());
        assert_eq!(log.path().metadata().unwrap().mode() & 0o777, 0o700);
        assert_eq!(log.texts("web"), ["one", "one"]);
        assert!(remove(&log.path()).unwrap());
        assert!(!log.path().exists());
    }

    #[test]
    fn what_a_stack_has_put_into_its_log_leads_root_nowhere() {
        if !is_root() {
            return;
        }
        let names = ["web.log", "web.log.1", "about.json", "about.json.new"];
        for how in ["link", "name", "directory", "pipe", "moved"] {
            for name in names {
                let log = Log::new();
                drop(log.given());
                let other = log.dir.path().join("other");
                let secret = line("web", "secret", log.now).json() + "\n";
                std::fs::write(&other, &secret).unwrap();
                log.put(name, how);
                let kept = || match how {
                    "moved" => {}
                    _ => {
                        assert_eq!(std::fs::read_to_string(&other).unwrap(), secret);
                        assert_eq!(other.metadata().unwrap().uid(), 0);
                    }
                };
                // Neither a reader nor who tidies up.
                if how != "moved" {
                    let found = read(&log.path(), |_| true).unwrap();
                    assert!(found.lines.iter().all(|line| line.text == "one"));
                    let passed_over = &found.passed_over;
                    assert_eq!(passed_over.len(), usize::from(part_of(name).is_some()));
                    assert!(passed_over.iter().all(|said| said.starts_with(name)));
                    let is_about = name == "about.json";
                    assert_eq!(about(&log.path()).is_none(), is_about, "{how}");
                }
                tidy(log.path().parent().unwrap());
                kept();
                // Nor who goes on in it.
                let files = log.given();
                kept();
                assert_eq!(log.owner("web.log"), STACKS.uid, "{how} {name}");
                let lines = read(&log.path(), |_| true).unwrap().lines;
                assert!(lines.iter().all(|line| line.text == "one"), "{how} {name}");
                drop(files);
                // Nor who writes there while it is another's already.
                if name == "web.log" && how != "moved" {
                    let mut files = log.given();
                    files.parts.clear();
                    log.put(name, how);
                    assert_eq!(files.write(&line("web", "one", log.now), log.begun), None);
                    kept();
                    assert_eq!(log.texts("web"), ["one"]);
                }
                log.put("db.log", if how == "moved" { "pipe" } else { how });
                assert!(remove(&log.path()).unwrap());
                assert!(!log.path().exists());
                kept();
            }
        }
    }

    #[test]
    fn a_directory_with_something_in_it_is_left_and_said() {
        let log = Log::new();
        drop(log.open(1 << 20));
        std::fs::create_dir_all(log.path().join("about.json.new/more")).unwrap();
        let e = Files::open(&log.path(), 1 << 20, DAY, 1, None).unwrap_err();
        assert!(e.contains("remove about.json.new: "), "{e}");
    }

    #[test]
    fn root_goes_no_way_that_a_stack_could_have_chosen() {
        if !is_root() {
            return;
        }
        let log = Log::new();
        drop(log.given());
        let chosen = log.dir.path().join("chosen");
        std::os::unix::fs::symlink(log.path().parent().unwrap(), &chosen).unwrap();
        assert!(about(&chosen.join("shop")).is_some());
        std::os::unix::fs::lchown(&chosen, Some(STACKS.uid), None).unwrap();
        assert!(about(&chosen.join("shop")).is_none());
        let e = remove(&chosen.join("shop")).unwrap_err();
        assert!(e.to_string().contains("which is a stack's"), "{e}");
        assert!(read(&chosen.join("shop"), |_| true).is_err());
        let opened = Files::open(&chosen.join("shop"), 1 << 20, DAY, 1, Some(STACKS));
        assert!(opened.is_err());
        // Nor is somebody else's directory taken.
        std::os::unix::fs::chown(log.path(), Some(1234), Some(1234)).unwrap();
        let e = Files::open(&log.path(), 1 << 20, DAY, 1, Some(STACKS)).unwrap_err();
        assert!(e.contains("belongs to uid 1234"), "{e}");
        assert_eq!(log.owner(""), 1234);
    }
}

//! Limits on memory, processes and processors: one cgroup (version 2) a part, and what helps where there is none.
//!
//! # Theory of operation
//!
//! ```text
//! /lrpns/STACK.RUN/PART                  below the root of the hierarchy
//! OWN/lrpns-STACK.RUN/PART               below our own cgroup, where that was delegated to us (systemd's Delegate=yes),
//! OWN/lrpns-supervisor                   and then this process moves out of the way: a cgroup that hands controllers
//!                                        to those below it has no process of its own (cgroups(7))
//! ```
//!
//! [`find`] looks, and changes nothing; what follows from it for one stack is a [`Placement`], part of the plan. So
//! `lrpns plan` shows it, and whoever finds a plan of a stack that has crashed knows what to remove. [`Cgroups::make`]
//! makes the cgroups and writes and reads back the limits before there is any process; a part's first process is cloned
//! into its own (`CLONE_INTO_CGROUP`), so none of it was ever outside. The run's number in the name keeps two machines
//! apart that share the hierarchy and not /run, as containers do.
//!
//! [`remove`] is the one way to take it back: kill, wait until the kernel says that nobody is left, remove. What isn't
//! there is success.
//!
//! A controller that isn't there (another has it: version 1), or may not be handed on, can't hold anything. Then the
//! stack works without, and says so; the number of processes is held by `RLIMIT_NPROC` as well, since every part has a
//! user of its own in a user namespace of its own, which is what the kernel counts by.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs::Permissions;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config::Limits;
use crate::plan::limits::{Controller, Placement};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Access, Mode, OFlags};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags};

/// The period of a processor limit, in microseconds; the kernel's own default.
const PERIOD: u32 = 100_000;

/// How long the last process of a killed cgroup may take to go.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// A step that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}: {source}", path.display())]
pub struct CgroupError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn at<E: Into<io::Error>>(what: &'static str, path: &Path) -> impl FnOnce(E) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError {
        what,
        path,
        source: source.into(),
    }
}

/// Where on this machine a process of ours may make cgroups.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// The cgroup that a stack's is made in, and whether it is ours by delegation; `None` when there is none to be had.
    base: Option<(PathBuf, bool)>,
    /// What it can hold.
    controllers: Vec<Controller>,
    /// Why that is not everything.
    why: Option<String>,
    /// Whether `RLIMIT_NPROC` counts each part for itself.
    rlimit: bool,
}

/// Looks where cgroups may be made; `root` says whether we are the superuser.
#[must_use]
pub fn find(root: bool) -> Place {
    let none = |why: String| Place {
        why: Some(why),
        ..Place::default()
    };
    let read = |path: &str| std::fs::read_to_string(path).map_err(|e| format!("read {path}: {e}"));
    let look = || {
        let mountinfo = read("/proc/self/mountinfo")?;
        // Something else may have been mounted over it.
        let is_there = |path: &PathBuf| {
            rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type == libc::CGROUP2_SUPER_MAGIC)
        };
        let mount = mounted(&mountinfo)
            .find(is_there)
            .ok_or("there is no file system of cgroup version 2 here")?;
        let own = read("/proc/self/cgroup")?
            .lines()
            .find_map(|line| line.strip_prefix("0::").map(PathBuf::from))
            .ok_or("this process is in no cgroup of version 2")?;
        Ok::<_, String>(Place::look(&mount, &own, root))
    };
    Place {
        rlimit: root || counts_by_namespace(),
        ..look().unwrap_or_else(none)
    }
}

/// Where the whole hierarchy of version 2, as far as this process sees it, is mounted (proc_pid_mountinfo(5)).
fn mounted(mountinfo: &str) -> impl Iterator<Item = PathBuf> {
    mountinfo.lines().filter_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        // A backslash begins an escaped character; nobody mounts it at such a place.
        let usable = file_system.starts_with("cgroup2 ") && root == "/" && !point.contains('\\');
        usable.then(|| PathBuf::from(point))
    })
}

/// Whether processes are counted for each user of each user namespace, not for a user on the whole machine: since
/// Linux 5.14 (kernel/ucount.c).
fn counts_by_namespace() -> bool {
    let version = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = version
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(5), Some(14))
}

impl Place {
    /// Decides from the hierarchy at `mount` and our own cgroup in it.
    fn look(mount: &Path, own: &Path, root: bool) -> Self {
        let none = |why: String| Self {
            why: Some(why),
            ..Self::default()
        };
        if own.starts_with("/..") {
            return none(format!(
                "our own cgroup {} is not below {}",
                own.display(),
                mount.display()
            ));
        }
        let own_dir = mount.join(own.strip_prefix("/").unwrap_or(own));
        let writable = |path: &Path| rustix::fs::access(path, Access::WRITE_OK).is_ok();
        // Only the root of the whole hierarchy has no type.
        let is_real_root = !own_dir.join("cgroup.type").exists();
        let delegated = !is_real_root
            && ["", "cgroup.procs", "cgroup.subtree_control"]
                .iter()
                .all(|file| writable(&own_dir.join(file)))
            // To the superuser everything is writable: what counts is whether it is meant to be.
            && (!root || own == Path::new("/") || is_delegated(&own_dir));
        let (base, available_in) = match (delegated, root) {
            (true, _) => (own_dir.clone(), own_dir.as_path()),
            (false, true) => (mount.join("lrpns"), mount),
            (false, false) => {
                return none(format!(
                    "our own cgroup {} is not ours to divide (`systemd-run --user --scope -p Delegate=yes lrpns up` starts in one that is)",
                    own.display()
                ));
            }
        };
        if !writable(available_in) {
            return none(format!("{} can't be written to", available_in.display()));
        }
        let listed =
            std::fs::read_to_string(available_in.join("cgroup.controllers")).unwrap_or_default();
        let listed: Vec<&str> = listed.split_whitespace().collect();
        let (controllers, missing): (Vec<_>, Vec<_>) = Controller::ALL
            .into_iter()
            .partition(|controller| listed.contains(&controller.as_str()));
        let base = Some((base, delegated));
        if let Some(other) = delegated
            .then(|| processes(&own_dir))
            .and_then(|processes| {
                processes
                    .into_iter()
                    .find(|process| !is_one_of_us(*process))
            })
        {
            return Self {
                base,
                why: Some(format!(
                    "process {other} is in our own cgroup {} as well, so that can't hand controllers on",
                    own_dir.display()
                )),
                ..Self::default()
            };
        }
        let missing: Vec<&str> = missing.into_iter().map(Controller::as_str).collect();
        Self {
            base,
            controllers,
            why: (!missing.is_empty()).then(|| {
                format!(
                    "{} has no controller {} (cgroup version 1 may have it)",
                    available_in.display(),
                    missing.join(", ")
                )
            }),
            rlimit: false,
        }
    }

    /// Where the stack's cgroups will be. `run` is no other run's.
    #[must_use]
    pub fn of(&self, stack: &str, run: &str) -> Placement {
        let base = self.base.as_ref();
        Placement {
            path: base.map(|(base, delegated)| {
                let prefix = if *delegated { "lrpns-" } else { "" };
                base.join(format!("{prefix}{stack}.{run}"))
            }),
            supervisor: base
                .filter(|(_, delegated)| *delegated)
                .map(|(base, _)| base.join("lrpns-supervisor")),
            controllers: self.controllers.clone(),
            rlimit: self.rlimit,
            why: self.why.clone(),
        }
    }
}

/// Whether systemd has given this cgroup away (systemd.resource-control(5), `Delegate=`).
fn is_delegated(cgroup: &Path) -> bool {
    ["trusted.delegate", "user.delegate"].iter().any(|name| {
        let mut value = [0; 8];
        rustix::fs::getxattr(cgroup, *name, &mut value).is_ok_and(|got| value[..got] == *b"1")
    })
}

/// The processes that are in a cgroup itself.
fn processes(cgroup: &Path) -> Vec<i32> {
    std::fs::read_to_string(cgroup.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect()
}

/// Whether a process runs our program: this one, and with `-d` the command that waits for it.
fn is_one_of_us(process: i32) -> bool {
    let program = |process: &dyn fmt::Display| {
        std::fs::metadata(format!("/proc/{process}/exe")).map(|meta| (meta.dev(), meta.ino()))
    };
    matches!((program(&process), program(&"self")), (Ok(its), Ok(own)) if its == own)
}

/// One part's cgroup.
#[derive(Debug)]
struct Part {
    name: String,
    path: PathBuf,
    entrance: Entrance,
    /// How many of its processes have been ended for want of memory, when it was last asked.
    ended: AtomicU64,
    /// What its limits had kept it from, when it was last told.
    told: Mutex<Kept>,
}

impl Part {
    fn of(stack: &Path, name: &str, entrance: Entrance) -> Self {
        Self {
            name: name.to_owned(),
            path: stack.join(name),
            entrance,
            ended: AtomicU64::new(0),
            told: Mutex::default(),
        }
    }
}

/// What starting a process in a part's cgroup takes, opened by whose that is. It lets nobody put processes there: who may write
/// `cgroup.procs` as root could have any process of the host there, and so end it with the stack ([`Door`]).
#[derive(Debug)]
pub struct Entrance {
    /// The cgroup's directory, for [`crate::sys::process::clone3_into`].
    pub directory: OwnedFd,
    /// `memory.oom.group`, where memory is limited.
    pub oom_group: Option<OwnedFd>,
}

impl Entrance {
    /// Opens it.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn open(path: &Path) -> Result<Self, CgroupError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty());
        let directory = directory.map_err(at("open the cgroup", path))?;
        let file = |name: &str, flags: OFlags| {
            rustix::fs::openat(&directory, name, flags | OFlags::CLOEXEC, Mode::empty())
        };
        let oom_group = match file("memory.oom.group", OFlags::RDWR) {
            Ok(file) => Some(file),
            Err(rustix::io::Errno::NOENT) => None,
            Err(e) => return Err(at("open", &path.join("memory.oom.group"))(e)),
        };
        Ok(Self {
            directory,
            oom_group,
        })
    }

    /// What it is to who is handed it ([`Entrance::of_fds`]).
    #[must_use]
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let last = self.oom_group.iter().map(AsFd::as_fd);
        std::iter::once(self.directory.as_fd())
            .chain(last)
            .collect()
    }

    /// What came of [`Entrance::fds`]; `None` if nothing did.
    #[must_use]
    pub fn of_fds(fds: Vec<OwnedFd>) -> Option<Self> {
        let mut fds = fds.into_iter();
        Some(Self {
            directory: fds.next()?,
            oom_group: fds.next(),
        })
    }
}

/// Where a child of a supervisor that has dropped asks to be put into a part's cgroup: the other end is with somebody who may
/// ([`usher`]).
#[derive(Debug)]
pub struct Door(OwnedFd);

/// The longest name of a part's cgroup.
const NAME: usize = 128;

impl Door {
    /// One, and the end of who answers.
    ///
    /// # Errors
    /// What `socketpair(2)` says.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self(ours), theirs))
    }

    /// Has this process put there.
    fn pass(&self, part: &str) -> io::Result<()> {
        let mut asked = std::process::id().to_ne_bytes().to_vec();
        asked.extend(part.as_bytes());
        rustix::net::send(&self.0, &asked, SendFlags::NOSIGNAL)?;
        loop {
            let mut answer = [0; 8];
            let (heard, _) = rustix::net::recv(&self.0, &mut answer, RecvFlags::empty())?;
            let (errno, whose) = answer.split_at(4);
            // Of one that was killed before it heard.
            if heard == answer.len() && whose != &asked[..4] {
                continue;
            }
            let errno = errno.try_into().map(i32::from_ne_bytes);
            return match (heard, errno) {
                (8, Ok(0)) => Ok(()),
                (8, Ok(errno)) => Err(io::Error::from_raw_os_error(errno)),
                _ => Err(io::ErrorKind::BrokenPipe.into()),
            };
        }
    }
}

/// Puts who asks at a [`Door`] into the cgroup of a part below the stack's, if it is a child of `supervisor`; `false` at the end of
/// whoever could ask.
///
/// # Errors
/// What `recvfrom(2)` and `sendto(2)` say.
pub fn usher(door: &OwnedFd, stack: &Path, supervisor: i32) -> io::Result<bool> {
    let mut asked = [0; 4 + NAME];
    let (_, length) = rustix::net::recv(door, &mut asked, RecvFlags::TRUNC)?;
    if length == 0 {
        return Ok(false);
    }
    let done = match asked.get(..length).and_then(who_and_where) {
        Some((pid, name)) => put(pid, &stack.join(name), supervisor),
        None => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    };
    let errno = done.map_or_else(|e| e.raw_os_error().unwrap_or(libc::EIO), |()| 0);
    let answer = [&errno.to_ne_bytes()[..], &asked[..4]].concat();
    // Who does not read what he has asked for has no more to ask.
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    match rustix::net::send(door, &answer, flags) {
        Err(rustix::io::Errno::AGAIN) => Ok(false),
        sent => Ok(sent.map(|_| true)?),
    }
}

/// What is asked at a [`Door`]: for which process, into which part's.
fn who_and_where(asked: &[u8]) -> Option<(i32, &str)> {
    let (pid, name) = asked.split_first_chunk::<4>()?;
    let name = std::str::from_utf8(name).ok()?;
    let is_name = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
    let pid = i32::try_from(u32::from_ne_bytes(*pid)).ok()?;
    is_name.then_some((pid, name))
}

/// Puts a child of `supervisor` into a cgroup.
fn put(pid: i32, cgroup: &Path, supervisor: i32) -> io::Result<()> {
    let process = Pid::from_raw(pid).ok_or(rustix::io::Errno::SRCH)?;
    let process = rustix::process::pidfd_open(process, PidfdFlags::empty())?;
    let is_its_child = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        let ended = &mut [PollFd::new(&process, PollFlags::IN)];
        let lives = rustix::event::poll(ended, Some(&Timespec::default())) == Ok(0);
        lives && parent.and_then(|parent| parent.trim().parse().ok()) == Some(supervisor)
    };
    if !is_its_child() {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    let before = of_process(pid);
    let to = |cgroup: &Path| write(cgroup, "cgroup.procs", &pid.to_string()).map_err(|e| e.source);
    to(cgroup)?;
    // It may have ended meanwhile, and its number be another's: that one goes back.
    if !is_its_child() {
        before.map_or(Ok(()), |before| to(&before))?;
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(())
}

/// The cgroup that a process is in.
fn of_process(pid: i32) -> Option<PathBuf> {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mount = mounted(&mountinfo).next()?;
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(mount.join(own))
}

/// What it takes to start a process of a part in its cgroup.
#[derive(Debug, Clone, Copy)]
pub struct Admission<'c> {
    part: &'c str,
    /// The way in for who may.
    pub entrance: &'c Entrance,
    door: Option<&'c Door>,
}

impl Admission<'_> {
    /// Has this process put there, which may not go by itself.
    ///
    /// # Errors
    /// EACCES where there is nobody to ask; else what he says: EAGAIN when `pids.max` is reached, ENOENT when the cgroup is gone.
    pub fn ask(&self) -> io::Result<()> {
        match self.door {
            Some(door) => door.pass(self.part),
            None => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }
}

/// What the kernel has kept a part from at its limits since its cgroup was made; memory has [its own](Cgroups::ran_out_of_memory).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Kept {
    /// New processes that were refused.
    processes: u64,
    /// Whole seconds in which it had to wait for a processor, summed over all. A start is a burst, of less than one.
    seconds: u64,
}

impl Kept {
    /// By `pids.events` and `cpu.stat` (cgroup-v2.rst); nothing where the controller is not there.
    fn of(cgroup: &Path) -> Self {
        let number = |file: &str, key: &str| {
            let text = std::fs::read_to_string(cgroup.join(file)).unwrap_or_default();
            let mut lines = text.lines();
            lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
        };
        Self {
            processes: number("pids.events", "max").unwrap_or(0),
            seconds: number("cpu.stat", "throttled_usec").unwrap_or(0) / 1_000_000,
        }
    }

    fn text(self) -> Option<String> {
        let processes = match self.processes {
            0 => None,
            1 => Some("pids: 1 new process was refused".to_owned()),
            many => Some(format!("pids: {many} new processes were refused")),
        };
        let seconds =
            (self.seconds > 0).then(|| format!("cpu: it had to wait for {} s", self.seconds));
        let both: Vec<String> = processes.into_iter().chain(seconds).collect();
        (!both.is_empty()).then(|| format!("held at its limits: {}", both.join("; ")))
    }
}

/// A stack's cgroups.
#[derive(Debug, Default)]
pub struct Cgroups(Vec<Arc<Part>>, Option<Arc<Door>>);

impl Cgroups {
    /// Makes the stack's cgroup and one for each part, with its limits. Returns the placement as it came out: a
    /// controller that can't be handed on after all is missing from it. An error leaves nothing behind.
    ///
    /// # Errors
    /// [`CgroupError`].
    pub fn make(
        placement: &Placement,
        parts: &[(&str, Limits)],
    ) -> Result<(Self, Placement), CgroupError> {
        let mut placement = placement.clone();
        let Some(path) = placement.path.clone() else {
            return Ok((Self::default(), placement));
        };
        let made = divide(&path, &mut placement, parts);
        match made {
            Ok(parts) => Ok((Self(parts, None), placement)),
            Err(e) => {
                // The first error is the one to tell.
                let _ = remove(&path);
                Err(e)
            }
        }
    }

    /// These and one more, into which somebody who may has opened the way; in the place of one of that name.
    #[must_use]
    pub fn with(&self, placement: &Placement, part: &str, entrance: Entrance) -> Self {
        let mut cgroups = self.without(part);
        if let Some(stack) = &placement.path {
            cgroups.0.push(Arc::new(Part::of(stack, part, entrance)));
        }
        cgroups
    }

    /// These, into which who has dropped is let in by that door.
    #[must_use]
    pub fn behind(self, door: Option<Door>) -> Self {
        Self(self.0, door.map(Arc::new))
    }

    /// By which it is seen that nobody is behind the door any more: the descriptor has hung up (`POLLHUP`, poll(2)). `None` without
    /// a door.
    ///
    /// # Errors
    /// What `fcntl(2)` says.
    pub fn door(&self) -> io::Result<Option<OwnedFd>> {
        let door = self.1.as_ref();
        door.map(|door| door.0.try_clone()).transpose()
    }

    /// These without one.
    #[must_use]
    pub fn without(&self, part: &str) -> Self {
        let others = self.0.iter().filter(|other| other.name != part);
        Self(others.cloned().collect(), self.1.clone())
    }

    fn part(&self, name: &str) -> Option<&Part> {
        let part = self.0.iter().find(|part| part.name == name)?;
        Some(part)
    }

    /// The way into a part's cgroup; `None` where there is none.
    #[must_use]
    pub fn entrance(&self, part: &str) -> Option<Admission<'_>> {
        let part = self.part(part)?;
        Some(Admission {
            part: &part.name,
            entrance: &part.entrance,
            door: self.1.as_deref(),
        })
    }

    /// Where a part's cgroup is.
    #[must_use]
    pub fn path(&self, part: &str) -> Option<&Path> {
        Some(&self.part(part)?.path)
    }

    /// Whether processes of the part have been ended for want of memory since this was last asked.
    #[must_use]
    pub fn ran_out_of_memory(&self, part: &str) -> bool {
        let Some(part) = self.part(part) else {
            return false;
        };
        let events = std::fs::read_to_string(part.path.join("memory.events")).unwrap_or_default();
        let ended = events
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
            .unwrap_or(0);
        part.ended.swap(ended, Ordering::Relaxed) < ended
    }

    /// What the part's limits of processes and processors have kept it from since its cgroup was made, in words.
    #[must_use]
    pub fn kept_from(&self, part: &str) -> Option<String> {
        Kept::of(&self.part(part)?.path).text()
    }

    /// The same, unless nothing has come since this was last asked.
    #[must_use]
    pub fn kept_from_since(&self, part: &str) -> Option<String> {
        let part = self.part(part)?;
        let now = Kept::of(&part.path);
        let mut told = part.told.lock().unwrap_or_else(PoisonError::into_inner);
        let text = (*told != now).then(|| now.text());
        *told = now;
        text.flatten()
    }
}

/// Makes the cgroup of a part that joins a stack which is up, unless it is there, and opens the way into it; `None` where
/// the stack has none. Whoever has the others takes it with [`Cgroups::with`].
///
/// # Errors
/// [`CgroupError`]; then it is not there.
pub fn add(
    placement: &Placement,
    part: &str,
    limits: &Limits,
) -> Result<Option<Entrance>, CgroupError> {
    let Some(stack) = &placement.path else {
        return Ok(None);
    };
    let path = stack.join(part);
    directory(&path)?;
    let made = change(placement, part, limits).and_then(|()| Entrance::open(&path));
    if made.is_err() {
        // The first error is the one to tell. One that somebody is in stays.
        let _ = remove_one(&path);
    }
    made.map(Some)
}

/// Gives a part other limits; what `limits` doesn't have is unlimited from now on.
///
/// # Errors
/// [`CgroupError`].
pub fn change(placement: &Placement, part: &str, limits: &Limits) -> Result<(), CgroupError> {
    let Some(stack) = &placement.path else {
        return Ok(());
    };
    let mut wanted: Vec<(&str, String)> = placement
        .controllers
        .iter()
        .map(|controller| match controller {
            Controller::Memory => ("memory.max", "max".to_owned()),
            Controller::Pids => ("pids.max", "max".to_owned()),
            Controller::Cpu => ("cpu.max", format!("max {PERIOD}")),
        })
        .collect();
    for (file, value) in settings(limits, &placement.controllers) {
        wanted.retain(|(other, _)| *other != file);
        wanted.push((file, value));
    }
    for (file, value) in wanted {
        set(&stack.join(part), file, &value)?;
    }
    Ok(())
}

/// Kills what is in a part's cgroup and removes it.
///
/// # Errors
/// As [`remove`].
pub fn take(placement: &Placement, part: &str) -> Result<(), CgroupError> {
    let stack = placement.path.as_ref();
    stack.map_or(Ok(()), |stack| remove(&stack.join(part)))
}

fn divide(
    path: &Path,
    placement: &mut Placement,
    parts: &[(&str, Limits)],
) -> Result<Vec<Arc<Part>>, CgroupError> {
    let base = path.parent().unwrap_or(Path::new("/"));
    let mut chain = vec![base, path];
    if let Some(supervisor) = &placement.supervisor {
        if !placement.controllers.is_empty() {
            directory(supervisor)?;
            for process in processes(base).into_iter().filter(|p| is_one_of_us(*p)) {
                write(supervisor, "cgroup.procs", &process.to_string())?;
            }
        }
    } else {
        directory(base)?;
        chain.insert(0, base.parent().unwrap_or(Path::new("/")));
    }
    if let Err(e) = directory(path) {
        if e.source.kind() != io::ErrorKind::NotFound {
            return Err(e);
        }
        // Another machine that shares the hierarchy has just removed its last stack, and the base with it.
        directory(base)?;
        directory(path)?;
    }
    for controller in placement.controllers.clone() {
        for cgroup in &chain {
            if let Err(e) = enable(cgroup, controller) {
                placement.controllers.retain(|other| *other != controller);
                placement.why = Some(e.to_string());
                break;
            }
        }
    }
    parts
        .iter()
        .map(|(name, limits)| one(path, &placement.controllers, name, limits).map(Arc::new))
        .collect()
}

/// Makes one part's, with its limits.
fn one(
    stack: &Path,
    controllers: &[Controller],
    name: &str,
    limits: &Limits,
) -> Result<Part, CgroupError> {
    let path = stack.join(name);
    directory(&path)?;
    for (file, value) in settings(limits, controllers) {
        set(&path, file, &value)?;
    }
    Ok(Part::of(stack, name, Entrance::open(&path)?))
}

/// Makes a cgroup unless it is there.
fn directory(path: &Path) -> Result<(), CgroupError> {
    match std::fs::create_dir(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let there = std::fs::metadata(path).map_err(at("look at the cgroup", path))?;
            if there.mode() & 0o055 == 0o055 {
                return Ok(());
            }
        }
        Err(e) => return Err(at("make the cgroup", path)(e)),
        Ok(()) => {}
    }
    // Whatever the umask, or that of an earlier version: who reads there what became of a part is another than who has made it.
    std::fs::set_permissions(path, Permissions::from_mode(0o755))
        .map_err(at("set the mode of the cgroup", path))
}

/// Hands a controller on to the cgroups below `cgroup`.
fn enable(cgroup: &Path, controller: Controller) -> Result<(), CgroupError> {
    let file = cgroup.join("cgroup.subtree_control");
    let on = std::fs::read_to_string(&file).map_err(at("read", &file))?;
    if on
        .split_whitespace()
        .any(|name| name == controller.as_str())
    {
        return Ok(());
    }
    write(cgroup, "cgroup.subtree_control", &format!("+{controller}"))
}

/// The files that the limits are written to, as far as their controllers are there.
#[must_use]
pub fn settings(limits: &Limits, controllers: &[Controller]) -> Vec<(&'static str, String)> {
    let mut settings = vec![];
    let on = |controller| controllers.contains(&controller);
    if let Some(bytes) = limits.memory.filter(|_| on(Controller::Memory)) {
        settings.push(("memory.max", bytes.to_string()));
        // Memory is memory: a part that has used up its own doesn't go on by the host's swap.
        settings.push(("memory.swap.max", "0".to_owned()));
        // All or nothing: a server without one of its processes is of no use, and what starts it again sees the end.
        settings.push(("memory.oom.group", "1".to_owned()));
    }
    if let Some(pids) = limits.pids.filter(|_| on(Controller::Pids)) {
        settings.push(("pids.max", pids.to_string()));
    }
    if let Some(cpu) = limits.cpu.filter(|_| on(Controller::Cpu)) {
        let quota = u64::from(cpu.thousandths()) * u64::from(PERIOD) / 1000;
        settings.push(("cpu.max", format!("{quota} {PERIOD}")));
    }
    settings
}

/// Writes a limit and reads it back.
fn set(cgroup: &Path, file: &str, value: &str) -> Result<(), CgroupError> {
    match write(cgroup, file, value) {
        // A kernel without swap accounting has no swap limit.
        Err(e) if e.source.kind() == io::ErrorKind::NotFound && file == "memory.swap.max" => {
            return Ok(());
        }
        result => result?,
    }
    let path = cgroup.join(file);
    let found = std::fs::read_to_string(&path).map_err(at("read back", &path))?;
    let found = found.trim_end();
    if says(file, found, value) {
        return Ok(());
    }
    let wrong = io::Error::other(format!("it says {found}, and {value} was written"));
    Err(at("read back", &path)(wrong))
}

/// Whether what was found in one of the files of [`settings`] is what was written there.
#[must_use]
pub fn says(file: &str, found: &str, value: &str) -> bool {
    // Memory is counted in pages, and what is no whole page is cut off.
    let page = rustix::param::page_size() as u64;
    let whole = |value: &str| value.parse::<u64>().map(|bytes| bytes - bytes % page);
    found == value
        || (file == "memory.max"
            && matches!((whole(found), whole(value)), (Ok(a), Ok(b)) if a == b))
}

fn write(cgroup: &Path, file: &str, value: &str) -> Result<(), CgroupError> {
    let path = cgroup.join(file);
    // The file is the kernel's: it is never made.
    std::fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(&path)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(at("write to", &path))
}

/// Kills what is in a stack's cgroups and removes them. What isn't there is success.
///
/// # Errors
/// [`CgroupError`]; EBUSY when a process was still there after ten seconds.
pub fn remove(stack: &Path) -> Result<(), CgroupError> {
    match write(stack, "cgroup.kill", "1") {
        // Before Linux 5.14 there is no such file; the parts have ended with their pid namespaces.
        Err(e) if !is_gone(&e.source) => return Err(e),
        _ => {}
    }
    wait_until_empty(stack)?;
    remove_empty(stack)
}

/// The same of one that nobody is in.
fn remove_empty(stack: &Path) -> Result<(), CgroupError> {
    let entries = match std::fs::read_dir(stack) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(at("list", stack)(e)),
    };
    for entry in entries {
        let entry = entry.map_err(at("list", stack))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_one(&entry.path())?;
        }
    }
    remove_one(stack)
}

/// How long a stack of another machine that shares the hierarchy may take from its cgroup to its first process.
const BEGINS_WITHIN: Duration = Duration::from_secs(60);

/// Removes cgroups of stacks that nobody is in and nobody speaks of any more. `known` are those of the stacks that there
/// are here. Another machine that shares the hierarchy has its own, in which there are processes.
pub fn sweep(root: bool, known: &[PathBuf]) {
    let Some((base, delegated)) = find(root).base else {
        return;
    };
    let is_run = |run: &str| run.len() == 8 && run.bytes().all(|b| b.is_ascii_hexdigit());
    let is_stacks = |name: &str| {
        let name = if delegated {
            name.strip_prefix("lrpns-")
        } else {
            Some(name)
        };
        let split = name.and_then(|name| name.rsplit_once('.'));
        split.is_some_and(|(_, run)| is_run(run))
    };
    let entries = std::fs::read_dir(base).into_iter().flatten().flatten();
    let all = entries.filter(|entry| entry.file_name().to_str().is_some_and(is_stacks));
    let left = all.map(|entry| entry.path()).filter(|path| {
        let events = std::fs::read_to_string(path.join("cgroup.events")).unwrap_or_default();
        // Since its mode was set, when it was made.
        let age = || {
            std::fs::metadata(path)
                .ok()?
                .modified()
                .ok()?
                .elapsed()
                .ok()
        };
        !known.contains(path)
            && events.lines().any(|line| line == "populated 0")
            && age().is_some_and(|age| age > BEGINS_WITHIN)
    });
    for path in left {
        // The kernel removes none that somebody is in after all.
        let _ = remove_empty(&path);
    }
}

/// Removes the cgroup that stacks are made in, unless there are any. The root of the hierarchy is writable to nobody, so
/// this takes CAP_DAC_OVERRIDE; without it the cgroup stays, empty, for `lrpns gc`.
pub fn tidy(root: bool) {
    if let Some((base, false)) = find(root).base {
        let _ = std::fs::remove_dir(base);
    }
}

/// ENODEV: the file is open, or was found, and its cgroup is gone (fs/kernfs/file.c).
fn is_gone(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ENODEV)
}

fn remove_one(cgroup: &Path) -> Result<(), CgroupError> {
    match std::fs::remove_dir(cgroup) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(at("remove the cgroup", cgroup)(e)),
        _ => Ok(()),
    }
}

/// Waits until the kernel says that a cgroup and those below it have no process (cgroups(7), `cgroup.events`).
fn wait_until_empty(cgroup: &Path) -> Result<(), CgroupError> {
    let path = cgroup.join("cgroup.events");
    let mut file = match std::fs::File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(at("open", &path)(e)),
    };
    let deadline = Instant::now() + GONE_WITHIN;
    loop {
        let mut events = String::new();
        io::Seek::rewind(&mut file)
            .and_then(|()| file.read_to_string(&mut events).map(drop))
            .or_else(|e| if is_gone(&e) { Ok(()) } else { Err(e) })
            .map_err(at("read", &path))?;
        if !events.lines().any(|line| line == "populated 1") {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let busy = io::Error::from_raw_os_error(libc::EBUSY);
            return Err(at("wait for the end of every process of", cgroup)(busy));
        }
        // A change since the last read is PRI, and ERR with it (fs/kernfs/file.c).
        let mut changed = [PollFd::new(&file, PollFlags::PRI)];
        let left = Timespec::try_from(left).expect("ten seconds fit");
        match rustix::event::poll(&mut changed, Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(at("wait for", &path)(e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Processors;
    use crate::plan::limits::{HeldBy, SIDECAR};

    /// A directory that looks like a hierarchy: the kernel's files are plain ones.
    struct Tree(tempfile::TempDir);

    impl Tree {
        /// With these cgroups besides the root, and these controllers in all of them.
        fn new(cgroups: &[&str], controllers: &str) -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            for cgroup in [""].iter().chain(cgroups) {
                tree.add(cgroup, controllers);
            }
            std::fs::remove_file(tree.path("").join("cgroup.type")).unwrap();
            tree
        }

        fn add(&self, cgroup: &str, controllers: &str) {
            let path = self.path(cgroup);
            std::fs::create_dir_all(&path).unwrap();
            let files = [
                ("cgroup.type", "domain"),
                ("cgroup.procs", ""),
                ("cgroup.controllers", controllers),
                ("cgroup.subtree_control", ""),
                ("memory.max", "max"),
                ("memory.swap.max", "max"),
                ("memory.oom.group", "0"),
                ("pids.max", "max"),
                ("cpu.max", "max 100000"),
            ];
            for (file, text) in files {
                std::fs::write(path.join(file), text).unwrap();
            }
        }

        fn path(&self, cgroup: &str) -> PathBuf {
            self.0.path().join(cgroup)
        }

        fn read(&self, file: &str) -> String {
            std::fs::read_to_string(self.path(file)).unwrap()
        }

        fn look(&self, own: &str, root: bool) -> Place {
            Place::look(self.0.path(), Path::new(own), root)
        }
    }

    const ALL: &str = "cpuset cpu io memory hugetlb pids rdma";

    fn limits() -> Limits {
        Limits {
            memory: Some(256 << 20),
            pids: Some(64),
            cpu: Processors::new(1.5),
        }
    }

    #[test]
    fn the_superuser_makes_them_below_the_root() {
        for own in ["/", "/user.slice/session-1.scope"] {
            let tree = Tree::new(&["user.slice/session-1.scope"], ALL);
            let place = tree.look(own, true);
            let placement = place.of("web", "0123abcd");
            assert_eq!(
                placement.path,
                Some(tree.path("lrpns/web.0123abcd")),
                "{own}"
            );
            assert_eq!(placement.supervisor, None);
            assert_eq!(placement.controllers, Controller::ALL);
            assert_eq!(placement.why, None);
            assert_eq!(placement.not_held(&limits()), []);
        }
    }

    #[test]
    fn a_namespaces_root_is_divided_and_the_supervisor_moves_out_of_the_way() {
        // The root of a cgroup namespace is a cgroup like any other: it has a type.
        let tree = Tree::new(&[], ALL);
        std::fs::write(tree.path("cgroup.type"), "domain").unwrap();
        let own = std::process::id().to_string();
        std::fs::write(tree.path("cgroup.procs"), &own).unwrap();
        let placement = tree.look("/", true).of("web", "0123abcd");
        assert_eq!(placement.path, Some(tree.path("lrpns-web.0123abcd")));
        assert_eq!(placement.supervisor, Some(tree.path("lrpns-supervisor")));
        for cgroup in [
            "lrpns-web.0123abcd",
            "lrpns-supervisor",
            "lrpns-web.0123abcd/app",
        ] {
            tree.add(cgroup, ALL);
        }
        // The kernel's mkdir(2) makes the files; here the directories must be there before.
        let (_, made) = remake(&tree, &placement);
        assert_eq!(made, placement);
        assert_eq!(tree.read("lrpns-supervisor/cgroup.procs"), own);
        assert_eq!(tree.read("lrpns-web.0123abcd/app/pids.max"), "64");
    }

    /// As [`Cgroups::make`], in a tree whose directories are there.
    fn remake(tree: &Tree, placement: &Placement) -> (Vec<Arc<Part>>, Placement) {
        let mut placement = placement.clone();
        let path = placement.path.clone().unwrap();
        assert!(path.starts_with(tree.0.path()));
        let parts = divide(&path, &mut placement, &[("app", limits())]).unwrap();
        (parts, placement)
    }

    #[test]
    fn limits_are_written_where_the_kernel_looks() {
        let tree = Tree::new(&["lrpns", "lrpns/web.1", "lrpns/web.1/app"], ALL);
        let placement = tree.look("/", true).of("web", "1");
        let (parts, made) = remake(&tree, &placement);
        assert_eq!(made, placement);
        assert_eq!(parts[0].path, tree.path("lrpns/web.1/app"));
        for (file, text) in [
            ("memory.max", "268435456"),
            ("memory.swap.max", "0"),
            ("pids.max", "64"),
            ("memory.oom.group", "1"),
        ] {
            assert_eq!(tree.read(&format!("lrpns/web.1/app/{file}")), text);
        }
        assert_eq!(tree.read("lrpns/web.1/app/cpu.max"), "150000 100000");
        // Handed on from the root to the stack's own, and no further: a part is divided by nobody.
        for cgroup in ["", "lrpns", "lrpns/web.1"] {
            let last = tree.path(cgroup).join("cgroup.subtree_control");
            assert_eq!(std::fs::read_to_string(last).unwrap(), "+cpu", "{cgroup}");
        }
        assert_eq!(tree.read("lrpns/web.1/app/cgroup.subtree_control"), "");
    }

    #[test]
    fn a_part_that_joins_has_its_limits_and_not_those_of_one_before_it() {
        let tree = Tree::new(&["lrpns", "lrpns/web.1", "lrpns/web.1/app.2"], ALL);
        let placement = tree.look("/", true).of("web", "1");
        std::fs::write(tree.path("lrpns/web.1/app.2/cpu.max"), "5 100000").unwrap();
        let less = Limits {
            cpu: None,
            ..limits()
        };
        let entrance = add(&placement, "app.2", &less).unwrap().unwrap();
        assert_eq!(tree.read("lrpns/web.1/app.2/pids.max"), "64");
        assert_eq!(tree.read("lrpns/web.1/app.2/cpu.max"), "max 100000");
        // Handed over as descriptors, and in the place of an earlier one.
        let copies = |entrance: &Entrance| -> Vec<OwnedFd> {
            let fds = entrance.fds().into_iter();
            fds.map(|fd| fd.try_clone_to_owned().unwrap()).collect()
        };
        let handed = Entrance::of_fds(copies(&entrance)).unwrap();
        assert!(handed.oom_group.is_some());
        let cgroups = Cgroups::default().with(&placement, "app.2", entrance);
        let cgroups = cgroups.with(&placement, "app.2", handed);
        assert_eq!(cgroups.0.len(), 1);
        assert_eq!(
            cgroups.path("app.2"),
            Some(&*tree.path("lrpns/web.1/app.2"))
        );
        assert!(cgroups.entrance("app.2").unwrap().ask().is_err());
        assert!(Entrance::of_fds(vec![]).is_none());

        let nowhere = Placement::default();
        assert!(add(&nowhere, "app.2", &limits()).unwrap().is_none());
        change(&nowhere, "app.2", &limits()).unwrap();
        take(&nowhere, "app.2").unwrap();
    }

    #[test]
    fn a_limit_that_the_kernel_changed_is_an_error() {
        let tree = Tree::new(&["app"], ALL);
        // A file that takes everything and says nothing.
        std::fs::remove_file(tree.path("app/pids.max")).unwrap();
        std::os::unix::fs::symlink("/dev/null", tree.path("app/pids.max")).unwrap();
        let e = set(&tree.path("app"), "pids.max", "64").unwrap_err();
        assert!(e.to_string().starts_with("read back"), "{e}");
    }

    #[test]
    fn what_the_limits_have_kept_a_part_from_is_told_and_logged_once() {
        let tree = Tree::new(&["lrpns", "lrpns/web.1", "lrpns/web.1/app"], ALL);
        let placement = tree.look("/", true).of("web", "1");
        let cgroups = Cgroups(remake(&tree, &placement).0, None);
        let app = tree.path("lrpns/web.1/app");
        let is = |pids: &str, cpu: &str| {
            std::fs::write(app.join("pids.events"), pids).unwrap();
            std::fs::write(app.join("cpu.stat"), cpu).unwrap();
        };
        // No controllers, then nothing to tell: a start's burst is none.
        assert_eq!(cgroups.kept_from("app"), None);
        is(
            "max 0\n",
            "usage_usec 7\nnr_throttled 3\nthrottled_usec 999999\n",
        );
        assert_eq!(cgroups.kept_from("app"), None);
        assert_eq!(cgroups.kept_from_since("app"), None);
        is("max 1\n", "usage_usec 7\n");
        let one = Some("held at its limits: pids: 1 new process was refused".to_owned());
        assert_eq!(cgroups.kept_from("app"), one);
        assert_eq!(cgroups.kept_from_since("app"), one);
        assert_eq!(cgroups.kept_from_since("app"), None);
        is("max 14\n", "throttled_usec 12345678\n");
        let both =
            "held at its limits: pids: 14 new processes were refused; cpu: it had to wait for 12 s";
        assert_eq!(cgroups.kept_from_since("app").as_deref(), Some(both));
        assert_eq!(cgroups.kept_from("app").as_deref(), Some(both));
        assert_eq!(cgroups.kept_from("other"), None);
    }

    #[test]
    fn memory_is_compared_in_whole_pages() {
        let tree = Tree::new(&["app"], ALL);
        // As the kernel would have rounded it.
        std::fs::write(tree.path("app/memory.max"), "").unwrap();
        set(&tree.path("app"), "memory.max", "268435457").unwrap();
        assert_eq!(settings(&limits(), &[]), []);
        assert_eq!(
            settings(&limits(), &[Controller::Pids]),
            [("pids.max", "64".to_owned())]
        );
    }

    #[test]
    fn a_supervisors_own_children_are_let_in_and_nobody_else() {
        let tree = Tree::new(&["lrpns", "lrpns/web.1", "lrpns/web.1/app"], ALL);
        let stack = tree.path("lrpns/web.1");
        let entered = || tree.read("lrpns/web.1/app/cgroup.procs");
        let (door, theirs) = Door::pair().unwrap();
        let parent = i32::try_from(std::os::unix::process::parent_id()).unwrap();
        let own = std::process::id();
        let ask = |pid: u32, name: &[u8]| {
            let asked = [&pid.to_ne_bytes()[..], name].concat();
            rustix::net::send(&door.0, &asked, SendFlags::empty()).unwrap();
        };
        let told = || {
            let mut answer = [0; 8];
            rustix::net::recv(&door.0, &mut answer, RecvFlags::empty()).unwrap();
            i32::from_ne_bytes(answer[..4].try_into().unwrap())
        };
        ask(own, b"app");
        assert!(usher(&theirs, &stack, parent).unwrap());
        assert_eq!((told(), entered()), (0, own.to_string()));
        std::fs::write(stack.join("app/cgroup.procs"), "").unwrap();
        // Somebody else's child; nobody; and no name of a cgroup of the stack's.
        let long = [b'x'; NAME + 1];
        for (pid, name, of, wrong) in [
            (own, &b"app"[..], parent + 1, libc::EPERM),
            (1, b"app", parent, libc::EPERM),
            (u32::MAX, b"app", parent, libc::EINVAL),
            (own, b"../app", parent, libc::EINVAL),
            (own, b"..", parent, libc::EINVAL),
            (own, b"", parent, libc::EINVAL),
            (own, b"other", parent, libc::ENOENT),
            (own, &long, parent, libc::EINVAL),
        ] {
            ask(pid, name);
            assert!(usher(&theirs, &stack, of).unwrap());
            assert_eq!(told(), wrong, "{name:?}");
        }
        assert_eq!(entered(), "");
        drop(door);
        assert!(!usher(&theirs, &stack, parent).unwrap());
    }

    #[test]
    fn a_missing_controller_is_said_and_pids_are_held_otherwise() {
        let tree = Tree::new(&[], "hugetlb cpu");
        let place = Place {
            rlimit: true,
            ..tree.look("/", true)
        };
        let placement = place.of("web", "1");
        assert_eq!(placement.held_by(Controller::Cpu), Some(HeldBy::Cgroup));
        assert_eq!(placement.held_by(Controller::Pids), Some(HeldBy::Rlimit));
        assert_eq!(placement.not_held(&limits()), [Controller::Memory]);
        assert_eq!(placement.nproc(&limits()), Some(64));
        // Where the cgroup counts it is to refuse first, since it tells.
        let both = Place {
            rlimit: true,
            ..Tree::new(&[], ALL).look("/", true)
        };
        let both = both.of("web", "1");
        assert_eq!(both.held_by(Controller::Pids), Some(HeldBy::Cgroup));
        assert!(both.nproc(&limits()) > Some(64));
        let complaint = placement.complaint([&limits(), &SIDECAR]).unwrap();
        assert!(complaint.contains("enforced: memory;"), "{complaint}");
        assert!(
            complaint.contains("no controller memory, pids"),
            "{complaint}"
        );
        assert_eq!(placement.complaint([&Limits::default()]), None);
    }

    #[test]
    fn a_user_needs_a_cgroup_of_its_own() {
        // Everything is writable to the superuser, who runs this: so what is left to see is the case where it isn't.
        let tree = Tree::new(&["session"], ALL);
        let placement = tree.look("/", false).of("web", "1");
        assert_eq!(placement.path, None, "the root is nobody's");
        assert!(placement.why.unwrap().contains("Delegate=yes"));
        let placement = tree.look("/session", false).of("web", "1");
        assert_eq!(placement.path, Some(tree.path("session/lrpns-web.1")));
        let placement = tree.look("/../x", false).of("web", "1");
        assert_eq!(placement.path, None);
    }

    #[test]
    fn who_shares_its_cgroup_gets_no_controllers() {
        let tree = Tree::new(&["session"], ALL);
        std::fs::write(tree.path("session/cgroup.procs"), "1\n").unwrap();
        let placement = tree.look("/session", false).of("web", "1");
        assert_eq!(placement.path, Some(tree.path("session/lrpns-web.1")));
        assert_eq!(placement.controllers, []);
        assert!(placement.why.unwrap().starts_with("process 1 is in"));
    }

    #[test]
    fn only_the_whole_hierarchy_counts() {
        let line = |root: &str, point: &str, kind: &str| {
            format!("36 25 0:31 {root} {point} rw,relatime shared:9 - {kind} cgroup2 rw\n")
        };
        let find = |lines: &[String]| mounted(&lines.concat()).next();
        assert_eq!(find(&[line("/", "/sys/fs/cgroup", "tmpfs")]), None);
        assert_eq!(find(&[line("/a", "/sys/fs/cgroup", "cgroup2")]), None);
        assert_eq!(find(&[line("/", "/a\\040b", "cgroup2")]), None);
        assert_eq!(
            find(&[
                line("/a", "/elsewhere", "cgroup2"),
                line("/", "/sys/fs/cgroup/unified", "cgroup2")
            ]),
            Some("/sys/fs/cgroup/unified".into())
        );
        assert_eq!(mounted("nonsense\n - \n").next(), None);
    }

    #[test]
    fn removing_what_is_not_there_is_success() {
        let dir = tempfile::tempdir().unwrap();
        remove(&dir.path().join("none")).unwrap();
    }
}

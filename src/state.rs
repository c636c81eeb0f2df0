//! What a stack leaves on disk while it lives, and the locks.
//!
//! ```text
//! /run/lrpns/                 root; $XDG_RUNTIME_DIR/lrpns or /tmp/lrpns-UID rootless
//!   .lock                     held by whoever decides something for more than one stack: names, ports, directories
//!   .ended/STACK.json         what there is to know of a stack that has ended, until one of that name ends again
//!   STACK/
//!     lock                    held for the supervisor's life: a held lock means alive, a free one means crashed
//!     plan.json               written before the first change to the machine
//!     control.sock            the supervisor's, answers status, logs, restart, down
//! ```
//!
//! A stack's directory is made and removed under `.lock` only, so nobody can hold the lock of a directory that is
//! gone. There is no pid file: who wants to talk to the supervisor connects.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs::{File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, DirEntryExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use rustix::event::Timespec;

use crate::names::StackName;
use crate::plan::Plan;
use crate::plan::neighbour::Neighbour;
use crate::plan::reach::Document;
use crate::sys;

/// What stacks that have ended leave.
const ENDED: &str = ".ended";
/// How many of them leave something…
const ENDED_STACKS: usize = 50;
/// …of how many bytes together.
pub const ENDED_BYTES: u64 = 8 << 20;

/// How long a lock is waited for: far longer than anybody has one who works.
const LOCK_WITHIN: Duration = Duration::from_secs(30);
/// The same when who has it was stopped (SIGSTOP), and won't give it back by himself.
const STOPPED_WITHIN: Duration = Duration::from_secs(2);
/// flock(2) waits without a limit, so it is tried this often instead.
const TRIED_EVERY: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 2_000_000,
};

/// A file or directory of the state could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// One call was refused.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Somebody has a lock for too long.
    #[error("wait for the lock {}: {} has it{}", path.display(), holder.map_or_else(|| "somebody".to_owned(), |pid| format!("process {pid}")), if *stopped { ", and was stopped (SIGSTOP)" } else { " for too long" })]
    Held {
        /// The lock's file.
        path: PathBuf,
        /// Whose it is, where the kernel tells.
        holder: Option<u32>,
        /// Whether that one was stopped.
        stopped: bool,
    },
    /// The directory is not ours alone.
    #[error("{} belongs to uid {uid} with mode {mode:o}: it must be ours, and nobody else may write there", path.display())]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        uid: u32,
        /// Its permission bits.
        mode: u32,
    },
}

fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::Io { what, path, source }
}

/// The directory of all stacks of this user.
#[derive(Debug, Clone)]
pub struct StateRoot(PathBuf);

/// `.lock`, held. Who lets go of it when there is no stack takes the file and the directory away with it, so that nothing
/// stays of a question or of an `up` that was refused.
#[must_use = "the lock is held as long as this value lives"]
pub struct GlobalLock {
    root: StateRoot,
    _lock: Flock<File>,
}

impl Drop for GlobalLock {
    fn drop(&mut self) {
        if self.root.stacks().is_ok_and(|stacks| stacks.is_empty()) {
            // Somebody who waits for this lock finds another file, or none, when it gets it, and begins anew.
            let _ = std::fs::remove_file(self.root.0.join(".lock"));
            let _ = std::fs::remove_dir(&self.root.0);
        }
    }
}

/// A stack's directory with its lock held: this process is its supervisor.
pub struct StackDir {
    path: PathBuf,
    lock: Flock<File>,
}

/// Whether a stack lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// There is no such directory.
    Absent,
    /// The lock is held.
    Alive,
    /// The directory is there, the lock is free.
    Crashed,
}

impl StateRoot {
    /// Where `uid`'s stacks are, given the environment's XDG_RUNTIME_DIR.
    #[must_use]
    pub fn for_user(uid: u32, runtime_dir: Option<&std::ffi::OsStr>) -> Self {
        if uid == 0 {
            return Self("/run/lrpns".into());
        }
        if let Some(dir) = runtime_dir.filter(|dir| Path::new(dir).is_absolute()) {
            return Self(Path::new(dir).join("lrpns"));
        }
        let dir = PathBuf::from(format!("/run/user/{uid}"));
        if dir.is_dir() {
            return Self(dir.join("lrpns"));
        }
        Self(format!("/tmp/lrpns-{uid}").into())
    }

    /// Where a stack's directory is, and its neighbours'.
    #[must_use]
    pub fn of_stack(dir: &Path) -> Self {
        Self(dir.parent().unwrap_or(dir).to_owned())
    }

    /// It.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The directory of one stack.
    #[must_use]
    pub fn stack(&self, name: &StackName) -> PathBuf {
        self.0.join(name.as_str())
    }

    /// Takes `.lock`, waiting for whoever holds it; makes the root directory if it isn't there.
    ///
    /// # Errors
    /// [`StateError`]; `NotOurs` when somebody else could have put something there.
    pub fn lock(&self) -> Result<GlobalLock, StateError> {
        loop {
            match self.try_lock() {
                Ok(Some(lock)) => return Ok(lock),
                // Whoever removed the last stack has removed the directory under our hands: begin anew.
                Ok(None) => {}
                Err(StateError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// `None` when the file that we have waited for is not the one that is there.
    fn try_lock(&self) -> Result<Option<GlobalLock>, StateError> {
        match std::fs::create_dir(&self.0) {
            Ok(()) => std::fs::set_permissions(&self.0, Permissions::from_mode(0o700))
                .map_err(at("set the mode of", &self.0))?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                std::fs::create_dir_all(self.0.parent().unwrap_or(Path::new("/")))
                    .map_err(at("make", &self.0))?;
                return Ok(None);
            }
            Err(e) => return Err(at("make", &self.0)(e)),
        }
        self.check_ours()?;
        let path = self.0.join(".lock");
        let lock = lock_in_time(&path, open_lock(&path)?, FlockArg::LockExclusiveNonblock)?;
        self.held(&path, lock)
    }

    /// `None` when `lock`, which we have, is not the file that is there.
    fn held(&self, path: &Path, lock: Flock<File>) -> Result<Option<GlobalLock>, StateError> {
        Ok(is_at(&lock, path)?.then(|| GlobalLock {
            root: self.clone(),
            _lock: lock,
        }))
    }

    /// Removes `.lock` and the directory of whoever was killed while it had them, if there is no stack and nobody else has
    /// them now. Makes nothing and waits for nobody.
    pub fn tidy(&self) {
        let path = self.0.join(".lock");
        let Ok(file) = File::open(&path) else {
            return;
        };
        if self.check_ours().is_ok()
            && let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock)
        {
            // What takes them away is letting go; what can't be looked at stays, for the next one.
            drop(self.held(&path, lock));
        }
    }

    /// [`StateError::NotOurs`] when somebody else could have put something into the directory.
    fn check_ours(&self) -> Result<(), StateError> {
        let meta = std::fs::symlink_metadata(&self.0).map_err(at("look at", &self.0))?;
        let ours = meta.is_dir()
            && meta.uid() == nix::unistd::geteuid().as_raw()
            && meta.mode() & 0o022 == 0;
        if !ours {
            return Err(StateError::NotOurs {
                path: self.0.clone(),
                uid: meta.uid(),
                mode: meta.mode() & 0o7777,
            });
        }
        Ok(())
    }

    /// Whether the stack lives. Only under the global lock is the answer true for longer than the call.
    ///
    /// # Errors
    /// [`StateError`] when its lock can't be tried.
    pub fn liveness(&self, name: &StackName) -> Result<Liveness, StateError> {
        let path = self.stack(name).join("lock");
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Ok(if self.stack(name).is_dir() {
                    Liveness::Crashed
                } else {
                    Liveness::Absent
                });
            }
            Err(e) => return Err(at("open", &path)(e)),
        };
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(_) => Ok(Liveness::Crashed),
            Err((_, nix::Error::EWOULDBLOCK)) => Ok(Liveness::Alive),
            Err((_, e)) => Err(at("try the lock", &path)(e.into())),
        }
    }

    /// As [`StateRoot::liveness`], but waits for the end of a supervisor that is ending: one that was killed holds its
    /// lock for a moment longer than its control socket.
    ///
    /// Under the global lock whoever lives listens, so this waits for nobody else.
    ///
    /// # Errors
    /// As [`StateRoot::liveness`].
    pub fn settle(&self, name: &StackName, held: &GlobalLock) -> Result<Liveness, StateError> {
        let liveness = self.liveness(name)?;
        // One that lets nobody in holds up nobody who looks, under the lock of all.
        let refused = || {
            use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket =
                rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
            let (Ok(socket), Ok(at)) = (socket, SocketAddrUnix::new(self.control(name))) else {
                return false;
            };
            let connected = rustix::net::connect(&socket, &at);
            matches!(
                connected,
                Err(rustix::io::Errno::CONNREFUSED | rustix::io::Errno::NOENT)
            )
        };
        if liveness != Liveness::Alive || !refused() {
            return Ok(liveness);
        }
        self.ends(name, held)
    }

    /// Waits until a supervisor that is ending has let its lock go.
    ///
    /// # Errors
    /// [`StateError`]; [`StateError::Held`] when it does not end.
    pub fn ends(&self, name: &StackName, _held: &GlobalLock) -> Result<Liveness, StateError> {
        let path = self.stack(name).join("lock");
        let lock = File::open(&path).map_err(at("open", &path))?;
        lock_in_time(&path, lock, FlockArg::LockSharedNonblock).map(|_| Liveness::Crashed)
    }

    /// Waits until nobody else audits the stack, and keeps others from it: two at once would count each other's packets, and
    /// fill each other's limits.
    ///
    /// # Errors
    /// [`StateError`]; [`StateError::Held`] when another one does not end.
    pub fn audits(&self, name: &StackName) -> Result<Flock<File>, StateError> {
        let path = self.stack(name);
        let directory = File::open(&path).map_err(at("open", &path))?;
        lock_in_time(&path, directory, FlockArg::LockExclusiveNonblock)
    }

    /// Makes the stack's directory and takes its lock; `None` when it lives.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn claim(
        &self,
        name: &StackName,
        _held: &GlobalLock,
    ) -> Result<Option<StackDir>, StateError> {
        let path = self.stack(name);
        match std::fs::create_dir(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(at("make", &path)(e)),
        }
        std::fs::set_permissions(&path, Permissions::from_mode(0o700))
            .map_err(at("set the mode of", &path))?;
        let lock_path = path.join("lock");
        match Flock::lock(open_lock(&lock_path)?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Some(StackDir { path, lock })),
            Err((_, nix::Error::EWOULDBLOCK)) => Ok(None),
            Err((_, e)) => Err(at("lock", &lock_path)(e.into())),
        }
    }

    /// The names of all stacks that have a directory here.
    ///
    /// # Errors
    /// [`StateError`] when the root can't be read; a root that isn't there has no stacks.
    pub fn stacks(&self) -> Result<Vec<StackName>, StateError> {
        names(&self.0, |name| Some(name))
    }

    /// The directories of all stacks, each with its inode: of a stack that was brought up since it is another.
    ///
    /// # Errors
    /// As [`StateRoot::stacks`].
    pub fn directories(&self) -> Result<BTreeSet<(StackName, u64)>, StateError> {
        named(&self.0, |name| Some(name))
    }

    /// Whether what is in a stack's directory is of that run ([`Plan::run`]), and not of one since.
    #[must_use]
    pub fn is_of(&self, name: &StackName, run: &str) -> bool {
        #[derive(serde::Deserialize)]
        struct Run {
            run: String,
        }
        let saved = self.read_plan::<Run>(name);
        saved.is_some_and(|saved| saved.run == run)
    }

    /// The plan that a stack was brought up with; `None` when there is none that can be read.
    #[must_use]
    pub fn plan(&self, name: &StackName) -> Option<Plan> {
        self.read_plan(name)
    }

    /// The same, as nobody but this user's commands can have written it: root's do by it what a supervisor that has dropped could not.
    ///
    /// # Errors
    /// [`StateError`]; [`StateError::NotOurs`] when somebody else could have written it.
    pub fn saved(&self, name: &StackName) -> Result<Plan, StateError> {
        self.check_ours()?;
        let path = self.stack(name).join("plan.json");
        let own = nix::unistd::geteuid().as_raw();
        for (path, is_kind) in [(&self.stack(name), libc::S_IFDIR), (&path, libc::S_IFREG)] {
            let meta = std::fs::symlink_metadata(path).map_err(at("look at", path))?;
            let mode = meta.mode();
            if meta.uid() != own || mode & 0o022 != 0 || mode & libc::S_IFMT != is_kind {
                let (path, uid, mode) = (path.clone(), meta.uid(), mode & 0o7777);
                return Err(StateError::NotOurs { path, uid, mode });
            }
        }
        let text = std::fs::read(&path).map_err(at("read", &path))?;
        serde_json::from_slice(&text).map_err(|e| at("read", &path)(e.into()))
    }

    /// Whether somebody is about to save another plan of a stack.
    #[must_use]
    pub fn is_changing(&self, name: &StackName) -> bool {
        let staged = File::open(self.stack(name).join("plan.json.new"));
        let locked = staged.map(|file| Flock::lock(file, FlockArg::LockSharedNonblock));
        matches!(locked, Ok(Err((_, nix::Error::EWOULDBLOCK))))
    }

    /// What others have to know of a stack, as [`StateRoot::plan`].
    #[must_use]
    pub fn neighbour(&self, name: &StackName) -> Option<Neighbour> {
        self.read_plan(name)
    }

    /// As much of a stack's plan as `T` has.
    fn read_plan<T: serde::de::DeserializeOwned>(&self, name: &StackName) -> Option<T> {
        let text = std::fs::read(self.stack(name).join("plan.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// The path of a stack's control socket.
    #[must_use]
    pub fn control(&self, name: &StackName) -> PathBuf {
        self.stack(name).join("control.sock")
    }

    /// Keeps a document about a stack that has ended, in the place of an earlier one; the oldest of others go when there
    /// are too many.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn leave(
        &self,
        name: &StackName,
        document: &[u8],
        _held: &GlobalLock,
    ) -> Result<(), StateError> {
        let dir = self.0.join(ENDED);
        match std::fs::DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(at("make", &dir)(e)),
        }
        let path = self.ended(name);
        let new = dir.join(".new");
        let written = File::options()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&new)
            .and_then(|mut file| file.write_all(document))
            .and_then(|()| std::fs::rename(&new, &path));
        if let Err(e) = written {
            let _ = std::fs::remove_file(&new);
            return Err(at("write", &path)(e));
        }
        self.prune(name)
    }

    /// Removes the oldest documents but `newest`, as far as there are too many or they are too large.
    fn prune(&self, newest: &StackName) -> Result<(), StateError> {
        let mut all = vec![];
        for name in self.all_ended()? {
            let path = self.ended(&name);
            let meta = std::fs::symlink_metadata(&path).map_err(at("look at", &path))?;
            let age = (name != *newest).then(|| meta.modified().ok());
            all.push((age, meta.len(), path));
        }
        // The newest has no age, and so comes first; of the others the youngest does.
        all.sort_by_key(|(age, ..)| (age.is_some(), std::cmp::Reverse(*age)));
        let mut size = 0;
        for (index, (_, len, path)) in all.iter().enumerate() {
            size += len;
            if index >= ENDED_STACKS || (size > ENDED_BYTES && index > 0) {
                std::fs::remove_file(path).map_err(at("remove", path))?;
            }
        }
        Ok(())
    }

    fn ended(&self, name: &StackName) -> PathBuf {
        self.0.join(ENDED).join(format!("{name}.json"))
    }

    /// The document about a stack that has ended; `None` where there is none that can be read.
    #[must_use]
    pub fn left(&self, name: &StackName) -> Option<Vec<u8>> {
        std::fs::read(self.ended(name)).ok()
    }

    /// The names of all stacks that have left one, whether one of that name lives now or not.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn all_ended(&self) -> Result<Vec<StackName>, StateError> {
        names(&self.0.join(ENDED), |file| file.strip_suffix(".json"))
    }

    /// Removes the document about a stack that has ended; `false` when there was none.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn forget(&self, name: &StackName, _held: &GlobalLock) -> Result<bool, StateError> {
        let path = self.ended(name);
        match std::fs::remove_file(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(at("remove", &path)(e)),
        }
        // With the last one; else it says that it isn't empty.
        let _ = std::fs::remove_dir(self.0.join(ENDED));
        Ok(true)
    }

    /// Removes a stack's directory with all that is in it; what isn't there is success.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn remove(&self, name: &StackName, held: GlobalLock) -> Result<(), StateError> {
        let path = self.stack(name);
        match std::fs::remove_dir_all(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(at("remove", &path)(e)),
        }
        drop(held);
        Ok(())
    }
}

impl StackDir {
    /// Writes the plan, before the first change to the machine.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn save(&self, plan: &Plan) -> Result<(), StateError> {
        Staged::begin(&self.path)?.commit(plan)
    }

    /// The lock once more, for who is to hold it as well.
    ///
    /// # Errors
    /// What `dup(2)` says.
    pub fn lock(&self) -> io::Result<std::os::fd::OwnedFd> {
        Ok(self.lock.try_clone()?.into())
    }

    /// Listens on the control socket. A socket that a crash left is replaced: its lock was free.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn listen(&self) -> Result<std::os::unix::net::UnixListener, StateError> {
        let path = self.path.join("control.sock");
        match std::fs::remove_file(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(at("remove", &path)(e)),
        }
        std::os::unix::net::UnixListener::bind(&path).map_err(at("listen on", &path))
    }
}

/// The plan that a stack is about to have, written beside the one that it has. Dropped, it is gone again. One process has it at
/// a time.
pub struct Staged {
    file: Flock<File>,
    new: PathBuf,
    path: PathBuf,
    committed: bool,
}

/// Writes a plan beside the saved one, for who is about to change a stack: what can't be saved is known before anything has
/// changed.
///
/// # Errors
/// [`StateError`]; a full file system is found now.
pub fn stage(plan: &Plan) -> Result<Staged, StateError> {
    let staged = Staged::begin(&plan.state_dir)?;
    staged.write(plan)?;
    Ok(staged)
}

impl Staged {
    /// Keeps others from it, with nothing written yet.
    ///
    /// # Errors
    /// [`StateError`]; [`StateError::Held`] when another does not end.
    pub fn begin(dir: &Path) -> Result<Self, StateError> {
        loop {
            let (new, file) = Self::open(dir)?;
            let file = lock_in_time(&new, file, FlockArg::LockExclusiveNonblock)?;
            if let Some(staged) = Self::held(dir, new, file)? {
                return Ok(staged);
            }
        }
    }

    /// The same, unless another has it: `None`.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn try_begin(dir: &Path) -> Result<Option<Self>, StateError> {
        loop {
            let (new, file) = Self::open(dir)?;
            let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((_, nix::Error::EWOULDBLOCK)) => return Ok(None),
                Err((_, e)) => return Err(at("lock", &new)(e.into())),
            };
            if let Some(staged) = Self::held(dir, new, file)? {
                return Ok(Some(staged));
            }
        }
    }

    fn open(dir: &Path) -> Result<(PathBuf, File), StateError> {
        let new = dir.join("plan.json.new");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&new)
            .map_err(at("write", &new))?;
        Ok((new, file))
    }

    /// `None` when who had the lock before has taken the file away, or made it the saved one.
    fn held(dir: &Path, new: PathBuf, file: Flock<File>) -> Result<Option<Self>, StateError> {
        Ok(is_at(&file, &new)?.then(|| Self {
            file,
            new,
            path: dir.join("plan.json"),
            committed: false,
        }))
    }

    /// Puts `plan` in the place of the saved one: what was staged, or less. Whoever reads it finds the old one or the new
    /// one.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn commit(mut self, plan: &Plan) -> Result<(), StateError> {
        self.write(plan)?;
        std::fs::rename(&self.new, &self.path).map_err(at("write", &self.path))?;
        self.committed = true;
        Ok(())
    }

    /// Over what is there, whose blocks stay its own until the rest is cut off: for no more than that there is room.
    fn write(&self, plan: &Plan) -> Result<(), StateError> {
        use std::os::unix::fs::FileExt as _;
        // Others on the machine read it before each start: not for people to look at, who have `lrpns plan` and `status --json`.
        let text = serde_json::to_vec(&Document::of(plan))
            .map_err(|e| at("write", &self.new)(e.into()))?;
        let written = self.file.write_all_at(&text, 0);
        let cut = written.and_then(|()| self.file.set_len(text.len() as u64));
        cut.map_err(at("write", &self.new))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // After a commit that name is free, or another's.
        if !self.committed {
            let _ = std::fs::remove_file(&self.new);
        }
    }
}

/// Whether a file that is open is the one that is at a path.
fn is_at(file: &File, path: &Path) -> Result<bool, StateError> {
    let ours = file.metadata().map_err(at("look at", path))?;
    let there = std::fs::metadata(path);
    Ok(there.is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())))
}

/// The stacks' names that the files in a directory have, as far as `name_of` finds one, in order.
fn names(dir: &Path, name_of: fn(&str) -> Option<&str>) -> Result<Vec<StackName>, StateError> {
    let named = named(dir, name_of)?.into_iter();
    Ok(named.map(|(name, _)| name).collect())
}

/// The same with the inode of each.
fn named(
    dir: &Path,
    name_of: fn(&str) -> Option<&str>,
) -> Result<BTreeSet<(StackName, u64)>, StateError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(e) => return Err(at("list", dir)(e)),
    };
    let named = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let name = StackName::new(name_of(entry.file_name().to_str()?)?).ok()?;
        Some((name, entry.ino()))
    });
    Ok(named.collect())
}

/// Takes a lock, or says who has it after [`LOCK_WITHIN`], or [`STOPPED_WITHIN`].
fn lock_in_time(path: &Path, mut file: File, how: FlockArg) -> Result<Flock<File>, StateError> {
    let begun = Instant::now();
    let mut looks = STOPPED_WITHIN;
    loop {
        file = match Flock::lock(file, how) {
            Ok(lock) => return Ok(lock),
            Err((file, nix::Error::EWOULDBLOCK | nix::Error::EINTR)) => file,
            Err((_, e)) => return Err(at("lock", path)(e.into())),
        };
        let waited = begun.elapsed();
        if waited >= looks {
            looks += Duration::from_secs(1);
            let holder = holder_of(&file);
            let stopped = holder.is_some_and(sys::process::is_stopped);
            if stopped || waited >= LOCK_WITHIN {
                let path = path.to_owned();
                return Err(StateError::Held {
                    path,
                    holder,
                    stopped,
                });
            }
        }
        // EINTR only makes it the shorter.
        let _ = rustix::event::poll(&mut [], Some(&TRIED_EVERY));
    }
}

/// Who has the lock of a file, by /proc/locks (proc_locks(5)).
fn holder_of(file: &File) -> Option<u32> {
    let meta = file.metadata().ok()?;
    let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
    let wanted = format!("{major:02x}:{minor:02x}:{}", meta.ino());
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        // Who waits has an arrow in the place of FLOCK.
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            [_, "FLOCK", _, _, pid, file, ..] if file == wanted => pid.parse().ok(),
            _ => None,
        }
    })
}

fn open_lock(path: &Path) -> Result<File, StateError> {
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .read(true)
        .mode(0o600)
        .open(path)
        .map_err(at("open", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> (tempfile::TempDir, StateRoot) {
        let dir = tempfile::tempdir().unwrap();
        let root = StateRoot(dir.path().join("lrpns"));
        (dir, root)
    }

    #[test]
    fn a_held_lock_means_alive_and_a_free_one_crashed() {
        let (_dir, root) = root();
        let name = StackName::new("web").unwrap();
        assert_eq!(root.liveness(&name).unwrap(), Liveness::Absent);
        let global = root.lock().unwrap();
        let held = root.claim(&name, &global).unwrap().unwrap();
        assert_eq!(root.liveness(&name).unwrap(), Liveness::Alive);
        assert!(root.claim(&name, &global).unwrap().is_none());
        drop(held);
        assert_eq!(root.liveness(&name).unwrap(), Liveness::Crashed);
        assert!(root.claim(&name, &global).unwrap().is_some());
        root.remove(&name, global).unwrap();
        root.remove(&name, root.lock().unwrap()).unwrap();
        assert!(!root.0.exists(), "with the last stack its directory goes");
        assert_eq!(root.liveness(&name).unwrap(), Liveness::Absent);
    }

    #[test]
    fn a_supervisor_that_is_ending_is_waited_for_and_one_that_listens_is_not() {
        let (_dir, root) = root();
        let name = StackName::new("web").unwrap();
        let global = root.lock().unwrap();
        assert_eq!(root.settle(&name, &global).unwrap(), Liveness::Absent);
        let claimed = root.claim(&name, &global).unwrap().unwrap();
        let listener = claimed.listen().unwrap();
        assert_eq!(root.settle(&name, &global).unwrap(), Liveness::Alive);
        drop(listener);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| root.settle(&name, &global).unwrap());
            drop(claimed);
            assert_eq!(waiting.join().unwrap(), Liveness::Crashed);
        });
        root.remove(&name, global).unwrap();
    }

    #[test]
    fn one_at_a_time_has_the_plan_that_is_to_be() {
        let (_dir, root) = root();
        let name = StackName::new("web").unwrap();
        let dir = root.stack(&name);
        std::fs::create_dir_all(&dir).unwrap();
        let new = dir.join("plan.json.new");
        assert!(!root.is_changing(&name));
        // Of somebody who was killed.
        std::fs::write(&new, "half").unwrap();
        assert!(!root.is_changing(&name));
        let first = Staged::begin(&dir).unwrap();
        assert!(root.is_changing(&name));
        // Who waits for it has a file that is not there any more when he gets it.
        let waits = std::thread::spawn(move || drop(Staged::begin(&dir).unwrap()));
        drop(first);
        waits.join().unwrap();
        assert!(!new.exists() && !root.is_changing(&name));
    }

    #[test]
    fn a_lock_that_was_let_go_of_leaves_nothing_where_there_is_no_stack() {
        let (_dir, root) = root();
        drop(root.lock().unwrap());
        assert!(!root.0.exists());
    }

    #[test]
    fn a_lock_of_somebody_who_was_killed_is_tidied_away_unless_it_is_held_or_there_is_a_stack() {
        let (_dir, root) = root();
        let name = StackName::new("web").unwrap();
        let path = root.0.join(".lock");
        root.tidy();
        assert!(!root.0.exists(), "makes nothing");
        let global = root.lock().unwrap();
        root.tidy();
        assert!(path.exists(), "it is held");
        drop(root.claim(&name, &global).unwrap());
        drop(global);
        root.tidy();
        assert!(path.exists(), "there is a stack");
        root.remove(&name, root.lock().unwrap()).unwrap();
        std::fs::create_dir(&root.0).unwrap();
        std::fs::write(&path, "").unwrap();
        root.tidy();
        assert!(!root.0.exists(), "nobody has it");
    }

    #[test]
    fn a_lock_is_had_in_turn_while_everybody_removes_it() {
        let (_dir, root) = root();
        let inside = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let held = root.lock().unwrap();
                        let others = inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        assert_eq!(others, 0, "two have the lock");
                        inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                        drop(held);
                    }
                });
            }
        });
        assert!(!root.0.exists());
    }

    #[test]
    fn what_ended_stacks_leave_is_bounded_and_the_oldest_goes_first() {
        let (_dir, root) = root();
        let held = root.lock().unwrap();
        let name = |number: usize| StackName::new(format!("s{number}")).unwrap();
        let leave = |number: usize, document: &[u8]| {
            root.leave(&name(number), document, &held).unwrap();
            let file = File::open(root.ended(&name(number))).unwrap();
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(number as u64);
            file.set_modified(time).unwrap();
        };
        for number in 0..ENDED_STACKS + 2 {
            leave(number, b"{}");
        }
        assert_eq!(root.all_ended().unwrap().len(), ENDED_STACKS);
        assert_eq!(root.left(&name(1)), None);
        assert_eq!(root.left(&name(2)).unwrap(), b"{}");
        // One that takes all the room that there is leaves none to others, and stays itself.
        let large = vec![b' '; usize::try_from(ENDED_BYTES).unwrap() + 1];
        leave(1, &large);
        assert_eq!(root.all_ended().unwrap(), [name(1)]);
        assert!(root.stacks().unwrap().is_empty(), "it is no stack");
        assert!(root.forget(&name(1), &held).unwrap());
        assert!(!root.forget(&name(1), &held).unwrap());
        drop(held);
        assert!(!root.0.exists());
    }

    #[test]
    fn a_root_that_others_may_write_to_is_refused() {
        let (_dir, root) = root();
        let held = root.lock().unwrap();
        std::fs::set_permissions(&root.0, Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(root.lock(), Err(StateError::NotOurs { .. })));
        drop(held);
    }

    #[test]
    fn a_user_without_a_runtime_directory_gets_one_of_his_own_in_tmp() {
        assert_eq!(
            StateRoot::for_user(0, Some("/x".as_ref())).0,
            Path::new("/run/lrpns")
        );
        assert_eq!(
            StateRoot::for_user(4_000_001, Some("/x".as_ref())).0,
            Path::new("/x/lrpns")
        );
        assert_eq!(
            StateRoot::for_user(4_000_001, None).0,
            Path::new("/tmp/lrpns-4000001")
        );
    }
}

//! Without root: our own user and mount namespace, in which the rest works as it does for root.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::CloneFlags;

use crate::accounts::subordinate;
use crate::plan::{RANGE, Subordinate};
use crate::sys::namespace::unshare;
use crate::sys::process::{Cloned, clone3, exit_now};

/// What to do when [`become_root_of_own_namespaces`] is refused.
pub const HINT: &str = "unprivileged user namespaces must be allowed: sysctl user.max_user_namespaces and user.max_net_namespaces, on Debian \
                        kernel.unprivileged_userns_clone=1, on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0 or a profile";

/// A step that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct RootlessError {
    what: &'static str,
    #[source]
    source: io::Error,
}

/// Makes this process id 0 of a new user namespace in which its own id alone is mapped, in a new mount namespace that it
/// owns. It stays in the host's network namespace, over which it has no privilege. With `further` ids these are mapped, too,
/// from 1 on, by the set-user-ID helpers that the host has for that, and only then.
///
/// Should be called by a single-threaded process, before there is a runtime (unshare(2)).
///
/// # Errors
/// [`RootlessError`]; EPERM or ENOSPC where unprivileged user namespaces are not allowed.
pub fn become_root_of_own_namespaces(further: Option<Subordinate>) -> Result<(), RootlessError> {
    let at = |what: &'static str| move |source: io::Error| RootlessError { what, source };
    let (uid, gid) = (
        nix::unistd::geteuid().as_raw(),
        nix::unistd::getegid().as_raw(),
    );
    let mapper = match further {
        Some(further) => Some(
            Mapper::begin(uid, gid, further).map_err(at("begin to map the ids of /etc/subuid"))?,
        ),
        None => None,
    };
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
        .map_err(at("make a user namespace"))?;
    match mapper {
        Some(mapper) => mapper.map().map_err(at(
            "have newuidmap and newgidmap map the ids of /etc/subuid and /etc/subgid",
        ))?,
        None => {
            // A gid map may be written without privilege only after setgroups(2) has been given up (user_namespaces(7)).
            std::fs::write("/proc/self/setgroups", "deny").map_err(at("give up setgroups"))?;
            std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))
                .map_err(at("map the uid"))?;
            std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
                .map_err(at("map the gid"))?;
        }
    }
    crate::sys::mount::cut_off().map_err(|e| at("make the mounts private")(e.into()))
}

/// A child that stays where this process was, to have its ids mapped from there.
struct Mapper {
    tell: io::PipeWriter,
    child: OwnedFd,
}

impl Mapper {
    fn begin(uid: u32, gid: u32, further: Subordinate) -> io::Result<Self> {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let (mut told, tell) = io::pipe()?;
        let child = match clone3(0)? {
            Cloned::Child => {
                drop(tell);
                let mut word = [0];
                // Its end without a word is this process's: there is nothing to be mapped.
                let done = io::Read::read_exact(&mut told, &mut word).and_then(|()| {
                    run("newuidmap", own, uid, further.uid)?;
                    run("newgidmap", own, gid, further.gid)
                });
                exit_now(i32::from(done.is_err()))
            }
            Cloned::Parent { pidfd, .. } => pidfd,
        };
        Ok(Self { tell, child })
    }

    fn map(mut self) -> io::Result<()> {
        io::Write::write_all(&mut self.tell, &[0])?;
        let status = rustix::process::waitid(
            rustix::process::WaitId::PidFd(self.child.as_fd()),
            rustix::process::WaitIdOptions::EXITED,
        )?;
        match status.and_then(|status| status.exit_status()) {
            Some(0) => Ok(()),
            _ => Err(io::Error::other("they refused, and have said why")),
        }
    }
}

/// Has one of the two helpers map this user's id to 0 and the further ones from 1 on; what it says goes to standard error.
fn run(name: &str, process: i32, own: u32, further: u32) -> io::Result<()> {
    let program = subordinate::helper(name).ok_or(io::ErrorKind::NotFound)?;
    let numbers = [0, own, 1, 1, further, RANGE - 1].map(|number| number.to_string());
    let status = std::process::Command::new(program)
        .arg(process.to_string())
        .args(numbers)
        .env_clear()
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .status()?;
    match status.success() {
        true => Ok(()),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

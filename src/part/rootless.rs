//! Without root: our own user and mount namespace, in which the rest works as it does for root.
#![forbid(unsafe_code)]

use std::io;

use nix::sched::CloneFlags;
use rustix::mount::MountPropagationFlags;

use crate::sys::namespace::unshare;

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
/// owns. It stays in the host's network namespace, over which it has no privilege.
///
/// Should be called by a single-threaded process, before there is a runtime (unshare(2)).
///
/// # Errors
/// [`RootlessError`]; EPERM or ENOSPC where unprivileged user namespaces are not allowed.
pub fn become_root_of_own_namespaces() -> Result<(), RootlessError> {
    let at = |what: &'static str| move |source: io::Error| RootlessError { what, source };
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)
        .map_err(at("make a user namespace"))?;
    // A gid map may be written without privilege only after setgroups(2) has been given up (user_namespaces(7)).
    std::fs::write("/proc/self/setgroups", "deny").map_err(at("give up setgroups"))?;
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1")).map_err(at("map the uid"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1")).map_err(at("map the gid"))?;
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(|e| at("make the mounts private")(e.into()))
}

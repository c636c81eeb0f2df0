//! `unshare(2)` and `setns(2)` of a single-threaded process.
//!
//! Both change what the caller is in for good, and most namespaces belong to a thread, not to a process: a process with
//! several would be in two places at once. So each refuses such a process, also where the kernel wouldn't.
#![forbid(unsafe_code)]
#![expect(
    clippy::disallowed_methods,
    reason = "the place that .clippy.toml sends everybody to"
)]

use std::io;
use std::os::fd::AsFd;

use nix::sched::CloneFlags;

use super::process::single_threaded;

/// Moves this process into new namespaces of the kinds in `flags`; a new pid namespace is its next child's.
///
/// Should be called before there is a runtime. Mustn't be taken for something that can be undone.
///
/// # Errors
/// What `unshare(2)` says; EBUSY when this process has more than one thread.
pub fn unshare(flags: CloneFlags) -> io::Result<()> {
    single_threaded()?;
    Ok(nix::sched::unshare(flags)?)
}

/// Moves this process into the namespace that `fd` stands for, or, when it is a pidfd, into those of that process of
/// the kinds in `kinds`; a pid namespace is its next child's.
///
/// Should be called by a child that was cloned for it. Mustn't be followed by a look at a path of the caller's when a
/// mount namespace was joined: root and current directory are then those of the namespace.
///
/// Who owns a user namespace has every capability over who is in it, ptrace(2)'s too; over this process' memory it has not, which
/// belongs to the user namespace that it was executed in, once that is not dumpable (`__ptrace_may_access()`, kernel/ptrace.c). So
/// it is not when it comes there, as what it may still do outside would be the owner's.
///
/// # Errors
/// What `setns(2)` says; EBUSY when this process has more than one thread.
pub fn setns(fd: impl AsFd, kinds: CloneFlags) -> io::Result<()> {
    single_threaded()?;
    if kinds.contains(CloneFlags::CLONE_NEWUSER) {
        nix::sys::prctl::set_dumpable(false)?;
    }
    Ok(nix::sched::setns(fd, kinds)?)
}

/// Every kind of namespace that a part has of its own, for [`setns`].
#[must_use]
pub fn every_kind() -> CloneFlags {
    CloneFlags::CLONE_NEWUSER
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_refused_and_stays_where_it_is() {
        let second = std::thread::spawn(|| {
            let before = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
            let refused = unshare(CloneFlags::CLONE_NEWNET).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EBUSY));
            let own = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
            let refused = setns(&own, CloneFlags::CLONE_NEWNET).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EBUSY));
            assert_eq!(
                std::fs::read_link("/proc/thread-self/ns/net").unwrap(),
                before
            );
        });
        second.join().unwrap();
    }
}

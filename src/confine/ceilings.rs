//! Resource limits of a process (getrlimit(2)): what holds without a cgroup, and what a cgroup doesn't know.
//!
//! Hard limits are only ever lowered: raising needs CAP_SYS_RESOURCE in the host's user namespace, which even root may lack.
#![forbid(unsafe_code)]

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

const MOST_DESCRIPTORS: u64 = 65_536;

/// What a part's processes may have of each at most: (which, soft, hard).
const CEILINGS: [(Resource, u64, u64); 6] = [
    // A core is what is in memory, written where the host's core_pattern says. If that is a program (`|`), the kernel
    // starts it as the host's root at any limit but this one, which is too small for a file as well (coredump_pipe(),
    // fs/coredump.c). It can't be lowered to 0 any more either: `crate::confine::seccomp` has that.
    (Resource::Core, 1, 1),
    // The kernel's table of descriptors is memory too; programs that need more than the soft limit raise it.
    (Resource::Nofile, MOST_DESCRIPTORS, 524_288),
    // Queued signals and POSIX timers. They count for all user namespaces above as well, so for host root: see
    // [`halve_what_counts_for_the_host`].
    (Resource::Sigpending, 1024, 1024),
    // Bytes of POSIX message queues, counted in the same way; a tenth of the kernel's default.
    (Resource::Msgqueue, 81_920, 81_920),
    // Memory that is not given back under pressure, each process; the kernel's default since Linux 5.16.
    (Resource::Memlock, 8 << 20, 8 << 20),
    // No real-time priority, also where the user who started us may have one.
    (Resource::Rtprio, 0, 0),
];

/// Lowers this process's soft limits of what is counted up the tree of user namespaces to a half, before it makes one: all
/// parts of all stacks together then leave the other half to who started them.
///
/// What a namespace's processes have queued counts for the namespace's owner in the one above too, and there must not exceed
/// the limit that who made the namespace had at that time (`inc_rlimit_get_ucounts()` of kernel/ucount.c, since Linux 5.14).
///
/// # Errors
/// What `prlimit(2)` says.
pub fn halve_what_counts_for_the_host() -> io::Result<()> {
    for resource in [Resource::Sigpending, Resource::Msgqueue] {
        let now = getrlimit(resource);
        let current = now.current.map(|most| most / 2);
        setrlimit(resource, Rlimit { current, ..now })?;
    }
    Ok(())
}

/// What `/proc/PID/limits` calls each (proc_pid_limits(5)), and the hard limit of a part's processes, or less.
#[must_use]
pub fn hard(nproc: Option<u32>) -> Vec<(&'static str, u64)> {
    let name = |resource| match resource {
        Resource::Core => Some("Max core file size"),
        Resource::Nofile => Some("Max open files"),
        Resource::Sigpending => Some("Max pending signals"),
        Resource::Msgqueue => Some("Max msgqueue size"),
        Resource::Memlock => Some("Max locked memory"),
        Resource::Rtprio => Some("Max realtime priority"),
        _ => None,
    };
    let own = CEILINGS
        .into_iter()
        .filter_map(|(resource, _, hard)| Some((name(resource)?, hard)));
    let nproc = nproc.map(|most| ("Max processes", u64::from(most)));
    own.chain(nproc).collect()
}

/// Raises this process's soft limit of descriptors to its hard one, which [`lower`] has lowered: for the relay, whose
/// connections it bounds.
///
/// # Errors
/// What `prlimit(2)` says.
pub fn all_descriptors() -> io::Result<()> {
    let now = getrlimit(Resource::Nofile);
    let most = now
        .maximum
        .map_or(MOST_DESCRIPTORS, |most| most.min(MOST_DESCRIPTORS));
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: now.current.max(Some(most)),
            ..now
        },
    )?;
    Ok(())
}

/// Lowers this process's limits to those of a part, and its number of processes to `nproc`.
///
/// Should be called before the change to the uid whose processes are counted: nothing here needs privilege, and nothing
/// gives back what was lowered.
///
/// # Errors
/// What `prlimit(2)` says.
pub fn lower(nproc: Option<u32>) -> io::Result<()> {
    let nproc = nproc.map(|most| (Resource::Nproc, u64::from(most), u64::from(most)));
    for (resource, soft, hard) in CEILINGS.into_iter().chain(nproc) {
        let now = getrlimit(resource);
        let least = |now: Option<u64>, most: u64| Some(now.map_or(most, |now| now.min(most)));
        let maximum = least(now.maximum, hard);
        let current = match resource {
            // Not less: 0, which most are started with, is no limit for a program.
            Resource::Core => least(maximum, soft),
            _ => least(now.current, soft),
        };
        setrlimit(resource, Rlimit { current, maximum })?;
    }
    Ok(())
}

/// Lets this process run on no more than so many processors: the one that the kernel has put it on, and the next ones. So a
/// program that asks how many it has (sched_getaffinity(2), nproc(1)) hears of those it may use; it can take that back, and
/// what holds the limit is the cgroup.
///
/// # Errors
/// What `sched_setaffinity(2)` says.
pub fn processors(count: u32) -> io::Result<()> {
    let may = rustix::thread::sched_getaffinity(None)?;
    if may.count() <= count {
        return Ok(());
    }
    let all: Vec<usize> = (0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|number| may.is_set(*number))
        .collect();
    let here = rustix::thread::sched_getcpu();
    let first = all.iter().position(|number| *number == here).unwrap_or(0);
    let mut own = rustix::thread::CpuSet::new();
    for number in all.iter().cycle().skip(first).take(count as usize) {
        own.set(*number);
    }
    rustix::thread::sched_setaffinity(None, &own)?;
    Ok(())
}

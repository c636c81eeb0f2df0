//! An app's /proc: its own processes, and of the rest what programs size themselves by.
//!
//! # Theory of operation
//!
//! A new procfs of the app's own pid namespace shows the host as well: its interrupts, its modules, its settings, the
//! kernel's memory. So everything that the kernel lists beside processes is covered by a mount, unless it is in [`LIVE`]:
//! by a file that is made at the app's start from its limits ([`MADE`]), or by an empty one that nobody may open. What is
//! covered is what the kernel lists, not a list of ours: an entry that a kernel to come may have is covered too. (One that
//! a module adds while the app runs is not, until its next start; `lrpns audit` finds it.)
//!
//! What covers comes from a tmpfs that lies below the procfs, out of everybody's reach. An app has no capability to take a
//! mount away.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::OpenTreeFlags;

use super::{
    DIRECTORY, READ_ONLY, RootfsError, at, attach, directories, file, file_in_its_place, tmpfs,
};
use crate::config::Limits;
use crate::sys;

/// What is shown as the kernel has it, and why.
pub const LIVE: [(&str, &str); 6] = [
    ("self", "the process that looks"),
    ("thread-self", "the thread that looks"),
    ("mounts", "the app's own mounts: a link to self/mounts"),
    ("net", "the app's own network namespace: a link to self/net"),
    ("uptime", "clocks of ps and top; sysinfo(2) tells the same"),
    ("version", "the kernel's version; uname(2) tells the same"),
];

/// What is made when the app starts, and why. It doesn't change while the app runs.
pub const MADE: [(&str, &str); 9] = [
    ("cpuinfo", "as many processors as the app may use at a time"),
    ("filesystems", "the file systems of its mounts, for psutil"),
    ("loadavg", "zeros: the load is the host's"),
    ("meminfo", "the app's limit of memory"),
    (
        "stat",
        "its processors and the time of boot; the counts are zeros",
    ),
    ("swaps", "none: there is no swap on top of the limit"),
    (
        "sys",
        "settings that programs size themselves by, as they were at the app's start",
    ),
    ("vmstat", "zeros, for psutil"),
    ("cgroups", "none, for JVMs"),
];

/// Settings below /proc/sys that programs read before they allocate, listen or start threads.
pub const SETTINGS: [&str; 31] = [
    "fs/aio-max-nr",
    "fs/file-max",
    "fs/nr_open",
    "fs/pipe-max-size",
    "kernel/cap_last_cap",
    "kernel/domainname",
    "kernel/hostname",
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/ngroups_max",
    "kernel/osrelease",
    "kernel/ostype",
    "kernel/overflowgid",
    "kernel/overflowuid",
    "kernel/pid_max",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/threads-max",
    "kernel/version",
    "net/core/rmem_max",
    "net/core/somaxconn",
    "net/core/wmem_max",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/ip_unprivileged_port_start",
    "net/ipv6/conf/all/disable_ipv6",
    "vm/max_map_count",
    "vm/overcommit_memory",
    "vm/overcommit_ratio",
];

/// A fresh number for each reader: the one setting that is the kernel's own file.
pub const UUID: &str = "sys/kernel/random/uuid";

/// What covers everything else. Names that no entry of procfs has.
const NOTHING: &str = ".nothing";
const NO_DIRECTORY: &str = ".no-directory";

/// How much is read of a file of procfs: that of a machine with a thousand processors has less than two MiB.
const MOST: u64 = 4 << 20;
const PAGE: usize = 4096;

/// Makes the app's /proc in `root`, which has a directory of that name; whether the kernel made one. A container whose own
/// is partly covered can't (`mnt_already_visible()`, fs/namespace.c): then the app has none, which is less and not more.
///
/// # Errors
/// [`RootfsError`].
pub(super) fn make(root: &OwnedFd, limits: &Limits) -> Result<bool, RootfsError> {
    let own = match sys::mount::new("proc", &[("hidepid", "invisible")]) {
        Ok(own) => own,
        Err(rustix::io::Errno::PERM) => return Ok(false),
        Err(e) => return Err(at("make", "/proc")(e)),
    };
    let covers = tmpfs(Path::new("/proc"), "4M", "755")?;
    let here = Path::new("proc");
    attach(&covers, root, here)?;
    fill(&covers, &own, limits)?;
    attach(&own, root, here)?;
    // What is cloned from a mount has its attributes.
    let flags = READ_ONLY | libc::MOUNT_ATTR_NOEXEC;
    sys::mount::set_attributes(covers.as_fd(), false, flags)
        .map_err(at("make read-only", "/proc"))?;
    let uuid = clone(&own, Path::new(UUID)).ok();
    for (name, is_directory) in entries(&own)? {
        if name.bytes().all(|b| b.is_ascii_digit()) || LIVE.iter().any(|(live, _)| *live == name) {
            continue;
        }
        let cover = if MADE.iter().any(|(made, _)| *made == name) {
            name.as_str()
        } else if is_directory {
            NO_DIRECTORY
        } else {
            NOTHING
        };
        let name = Path::new(&name);
        put(&clone(&covers, Path::new(cover))?, &own, name)?;
    }
    if let Some(uuid) = uuid {
        sys::mount::set_attributes(uuid.as_fd(), false, flags)
            .map_err(at("make read-only", UUID))?;
        put(&uuid, &own, Path::new(UUID))?;
    }
    Ok(true)
}

/// The names that the kernel lists, and which are directories.
fn entries(proc: &OwnedFd) -> Result<Vec<(String, bool)>, RootfsError> {
    let listed = || -> rustix::io::Result<Vec<(String, bool)>> {
        // What stands for a mount is no open directory (open(2), O_PATH).
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = rustix::fs::openat(proc, ".", flags, Mode::empty())?;
        let directory = rustix::fs::Dir::new(open)?;
        let mut names = vec![];
        for entry in directory {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                let is_directory = entry.file_type() == rustix::fs::FileType::Directory;
                names.push((name, is_directory));
            }
        }
        Ok(names)
    };
    listed().map_err(at("list", "/proc"))
}

/// A detached mount of one file or directory, with the attributes of the one that it is of.
fn clone(of: &OwnedFd, path: &Path) -> Result<OwnedFd, RootfsError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    rustix::mount::open_tree(of, path, flags).map_err(at("open for /proc", path))
}

/// Attaches `mount` over `path` of the procfs, through no link.
fn put(mount: &OwnedFd, proc: &OwnedFd, path: &Path) -> Result<(), RootfsError> {
    sys::mount::attach_within(mount, proc, path).map_err(at("cover in /proc", path))
}

/// Writes what covers into the tmpfs.
fn fill(covers: &OwnedFd, proc: &OwnedFd, limits: &Limits) -> Result<(), RootfsError> {
    let processors = rustix::thread::sched_getaffinity(None)
        .map_or(1, |set| set.count())
        .max(1) as usize;
    let host = |name: &str| read(proc, name).unwrap_or_default();
    for (name, text) in [
        ("cpuinfo", cpuinfo(&host("cpuinfo"), processors)),
        (
            "filesystems",
            "nodev\tproc\nnodev\ttmpfs\n\text4\n\txfs\n\tbtrfs\n".to_owned(),
        ),
        ("loadavg", "0.00 0.00 0.00 1/1 1\n".to_owned()),
        ("meminfo", meminfo(&host("meminfo"), limits.memory)),
        ("stat", stat(&host("stat"), processors)),
        (
            "swaps",
            "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n".to_owned(),
        ),
        (
            "vmstat",
            "pgpgin 0\npgpgout 0\npswpin 0\npswpout 0\npgfault 0\npgmajfault 0\n".to_owned(),
        ),
        (
            "cgroups",
            "#subsys_name\thierarchy\tnum_cgroups\tenabled\n".to_owned(),
        ),
    ] {
        file(covers, Path::new(name), &text)?;
    }
    // Nothing but what is made here is in the tmpfs: no link, and no directory that must be looked at again.
    let mut made = HashSet::new();
    let mut put = |path: PathBuf, text: &str| {
        let mut missing: Vec<&Path> = path.ancestors().skip(1).collect();
        // The last is the tmpfs itself.
        missing.pop();
        for directory in missing.into_iter().rev() {
            if made.insert(directory.to_owned()) {
                rustix::fs::mkdirat(covers, directory, Mode::from_raw_mode(DIRECTORY))
                    .map_err(at("make the directory", directory))?;
            }
        }
        file_in_its_place(covers, &path, text)
    };
    for name in SETTINGS {
        let path = PathBuf::from(format!("sys/{name}"));
        // What this kernel has not, nobody misses.
        if let Some(text) = setting(proc, &path) {
            put(path, &text)?;
        }
    }
    put(PathBuf::from(UUID), "")?;
    let nobody = Mode::empty();
    directories(covers, Path::new(NO_DIRECTORY), DIRECTORY)?;
    file(covers, Path::new(NOTHING), "")?;
    for name in [NOTHING, NO_DIRECTORY] {
        rustix::fs::chmodat(covers, name, nobody, rustix::fs::AtFlags::empty())
            .map_err(at("close", name))?;
    }
    Ok(())
}

fn read(proc: &OwnedFd, path: &str) -> Option<String> {
    let mut text = String::with_capacity(PAGE);
    let file = std::fs::File::from(open(proc, Path::new(path))?);
    let read: io::Result<usize> = file.take(MOST).read_to_string(&mut text);
    read.ok().map(|_| text)
}

/// A setting: procfs says the whole of one in one read, if there is room (`proc_sys_call_handler()`,
/// fs/proc/proc_sysctl.c), and none of these fills a page.
fn setting(proc: &OwnedFd, path: &Path) -> Option<String> {
    let mut text = Vec::with_capacity(PAGE);
    rustix::io::read(open(proc, path)?, rustix::buffer::spare_capacity(&mut text)).ok()?;
    String::from_utf8(text).ok()
}

fn open(proc: &OwnedFd, path: &Path) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::openat(proc, path, flags, Mode::empty()).ok()
}

/// The first processors of the host's list, numbered from 0, as one package of so many cores.
fn cpuinfo(host: &str, count: usize) -> String {
    let mut number = 0;
    let mut out = String::new();
    for stanza in host.split_inclusive("\n\n") {
        if !stanza.starts_with("processor") {
            // What some architectures say of the whole machine.
            out += stanza;
            continue;
        }
        if number == count {
            continue;
        }
        for line in stanza.lines() {
            let Some((key, _)) = line.split_once(':') else {
                out.push_str(line);
                out.push('\n');
                continue;
            };
            let own = match key.trim() {
                "processor" | "core id" | "apicid" | "initial apicid" => Some(number),
                "physical id" => Some(0),
                "siblings" | "cpu cores" => Some(count),
                _ => None,
            };
            // Writing to a string can't fail.
            let _ = match own {
                Some(own) => writeln!(out, "{key}: {own}"),
                None => writeln!(out, "{line}"),
            };
        }
        number += 1;
    }
    // A machine that lists none, or that lists them otherwise.
    for number in number..count {
        let _ = writeln!(out, "processor\t: {number}\n");
    }
    out
}

/// So many processors, the time of boot, and nothing else of the host's.
fn stat(host: &str, count: usize) -> String {
    let zeros = " 0 0 0 0 0 0 0 0 0 0\n";
    let mut out = format!("cpu {zeros}");
    for number in 0..count {
        let _ = write!(out, "cpu{number}{zeros}");
    }
    let boot = host.lines().find(|line| line.starts_with("btime "));
    let _ = write!(
        out,
        "intr 0\nctxt 0\n{}\nprocesses 1\nprocs_running 1\nprocs_blocked 0\nsoftirq 0 0 0 0 0 0 0 0 0 0 0\n",
        boot.unwrap_or("btime 0")
    );
    out
}

/// The limit, or what the machine has if that is less; all of it free, as far as an app can know.
fn meminfo(host: &str, limit: Option<u64>) -> String {
    let of_host = |name: &str| -> Option<u64> {
        let line = host.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let limit = limit.map_or(u64::MAX, |bytes| bytes / 1024);
    let total = of_host("MemTotal:").unwrap_or(0).min(limit);
    let free = of_host("MemAvailable:").unwrap_or(total).min(total);
    let mut out = String::new();
    for (name, value) in [
        ("MemTotal", total),
        ("MemFree", free),
        ("MemAvailable", free),
        ("Buffers", 0),
        ("Cached", 0),
        ("SwapCached", 0),
        ("Active", 0),
        ("Inactive", 0),
        ("Active(file)", 0),
        ("Inactive(file)", 0),
        ("SwapTotal", 0),
        ("SwapFree", 0),
        ("Dirty", 0),
        ("Writeback", 0),
        ("AnonPages", 0),
        ("Mapped", 0),
        ("Shmem", 0),
        ("KReclaimable", 0),
        ("Slab", 0),
        ("SReclaimable", 0),
        ("SUnreclaim", 0),
        ("CommitLimit", total),
        ("Committed_AS", 0),
    ] {
        let _ = writeln!(out, "{:<15} {value:>8} kB", format!("{name}:"));
    }
    let page = of_host("Hugepagesize:").unwrap_or(2048);
    let _ = write!(
        out,
        "HugePages_Total:       0\nHugePages_Free:        0\nHugepagesize:   {page:>8} kB\n"
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "processor\t: 0\nmodel name\t: Fast\nsiblings\t: 4\ncore id\t\t: 2\ncpu cores\t: 4\n\n\
                        processor\t: 1\nmodel name\t: Fast\nsiblings\t: 4\ncore id\t\t: 3\ncpu cores\t: 4\n\n";

    #[test]
    fn processors_are_as_many_as_may_be_used() {
        let one = cpuinfo(HOST, 1);
        let expected =
            "processor\t: 0\nmodel name\t: Fast\nsiblings\t: 1\ncore id\t\t: 0\ncpu cores\t: 1\n\n";
        assert_eq!(one, expected);
        let count = |text: &str| text.lines().filter(|l| l.starts_with("processor")).count();
        assert_eq!(count(&cpuinfo(HOST, 2)), 2);
        // A machine that tells nothing of its processors has them all the same.
        assert_eq!(count(&cpuinfo("", 3)), 3);
        let arm = format!("{HOST}Hardware\t: A board\n");
        assert!(cpuinfo(&arm, 1).ends_with("Hardware\t: A board\n"));
    }

    #[test]
    fn the_counts_of_the_host_are_left_out() {
        let host =
            "cpu  9 9 9 9\ncpu0 9 9 9 9\nintr 99 9\nctxt 99\nbtime 1700000000\nprocesses 99\n";
        let own = stat(host, 2);
        assert!(
            own.contains("\nbtime 1700000000\n") && !own.contains('9'),
            "{own}"
        );
        assert_eq!(
            own.lines().filter(|line| line.starts_with("cpu")).count(),
            3
        );
    }

    #[test]
    fn memory_is_the_limit_or_what_there_is() {
        let host = "MemTotal:       8000000 kB\nMemFree: 1 kB\nMemAvailable:  700000 kB\n";
        for (limit, total, available) in [
            (Some(256 << 20), 262_144, 262_144),
            (Some(1 << 40), 8_000_000, 700_000),
            (None, 8_000_000, 700_000),
        ] {
            let own = meminfo(host, limit);
            let of = |name: &str| -> u64 {
                let line = own
                    .lines()
                    .find_map(|line| line.strip_prefix(name))
                    .unwrap();
                line.split_whitespace().next().unwrap().parse().unwrap()
            };
            assert_eq!((of("MemTotal:"), of("MemAvailable:")), (total, available));
            assert_eq!(of("SwapTotal:"), 0);
        }
    }
}

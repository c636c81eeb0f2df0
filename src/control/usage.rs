//! What a part uses now, as the kernel has it: its cgroup (version 2) where that counts, else `/proc`.
//!
//! A cgroup of version 2 counts processor time whatever its controllers are, and memory if the controller is there.
//! In version 1 a part has no cgroup of its own. `/proc` knows the processes that are there, and of those that have ended
//! what their parents have waited for.
#![forbid(unsafe_code)]

use std::path::Path;

use serde::Serialize;

use super::PartStatus;

/// How many processes of a part are looked at.
pub const MOST: usize = 1000;

/// What a part uses; its fields are keys of the JSON form, which are stable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Usage {
    /// Seconds of processor time since it was made: by its cgroup, with what ran in it before a restart.
    pub cpu_seconds: Option<f64>,
    /// Bytes of memory: its cgroup's, else what its processes have in memory, shared pages counted in each.
    pub memory: Option<u64>,
    /// Processes.
    pub processes: u64,
    /// Bytes that its network namespace's link to the stack has received, with headers; none of a part without one.
    pub received: Option<u64>,
    /// Bytes that it has sent.
    pub sent: Option<u64>,
}

/// What a part uses. `link` is its link to the stack, in its own network namespace.
#[must_use]
pub fn of(part: &PartStatus, link: Option<&str>) -> Usage {
    let processes: Vec<Stat> = { part.init.map(tree).unwrap_or_default().into_iter() }
        .filter_map(stat)
        .collect();
    let seconds: f64 = processes.iter().map(|stat| stat.cpu_seconds).sum();
    let memory: u64 = processes.iter().map(|stat| stat.memory).sum();
    let there = !processes.is_empty();
    let cgroup = part.cgroup.as_deref();
    let bytes = part
        .init
        .zip(link)
        .and_then(|(init, link)| bytes(init, link));
    Usage {
        cpu_seconds: cgroup.and_then(cpu).or(there.then_some(seconds)),
        memory: cgroup.and_then(current).or(there.then_some(memory)),
        processes: processes.len() as u64,
        received: bytes.map(|[received, _]| received),
        sent: bytes.map(|[_, sent]| sent),
    }
}

/// By `cpu.stat`.
fn cpu(cgroup: &Path) -> Option<f64> {
    let text = std::fs::read_to_string(cgroup.join("cpu.stat")).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "))?;
    Some(line.trim().parse::<u64>().ok()? as f64 / 1e6)
}

/// By `memory.current`.
fn current(cgroup: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(cgroup.join("memory.current")).ok()?;
    text.trim().parse().ok()
}

/// What the link of the namespace that this process is in has received and sent (proc_pid_net(5)).
fn bytes(pid: i32, link: &str) -> Option<[u64; 2]> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).ok()?;
    link_bytes(&text, link)
}

fn link_bytes(text: &str, link: &str) -> Option<[u64; 2]> {
    let line = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(link)?.strip_prefix(':'))?;
    let mut fields = line.split_whitespace();
    let received = fields.next()?.parse().ok()?;
    // Packets, errs, drop, fifo, frame, compressed, multicast.
    let sent = fields.nth(7)?.parse().ok()?;
    Some([received, sent])
}

/// A part's pid 1 and all that is below it, which is all that the part has; the oldest first.
#[must_use]
pub fn tree(init: i32) -> Vec<i32> {
    let mut found = vec![];
    let mut left = vec![init];
    while let Some(pid) = left.pop() {
        if found.len() == MOST {
            break;
        }
        found.push(pid);
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
        for task in tasks.into_iter().flatten().flatten().take(MOST) {
            let children = std::fs::read_to_string(task.path().join("children"));
            let children = children.unwrap_or_default();
            let children = children.split_whitespace();
            left.extend(children.filter_map(|pid| pid.parse::<i32>().ok()));
        }
        left.sort_unstable_by(|a, b| b.cmp(a));
    }
    found
}

struct Stat {
    cpu_seconds: f64,
    memory: u64,
}

/// By proc_pid_stat(5); with the time of its children that it has waited for.
fn stat(pid: i32) -> Option<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // What is in brackets before it is the program's name, which may have brackets of its own.
    let (_, rest) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let ticks = number(11)? + number(12)? + number(13)? + number(14)?;
    Some(Stat {
        cpu_seconds: ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
        memory: number(21)? * rustix::param::page_size() as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_a_link_are_found_by_its_name() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
                    face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
                    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0\n  \
                    eth0:    1234      17    0    0    0     0          0         0     5678      18    0    0    0     0       0          0\n";
        assert_eq!(link_bytes(text, "eth0"), Some([1234, 5678]));
        assert_eq!(link_bytes(text, "lo"), Some([0, 0]));
        assert_eq!(link_bytes(text, "eth"), None);
        assert_eq!(link_bytes("", "eth0"), None);
    }

    #[test]
    fn this_process_has_used_something() {
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(tree(pid).contains(&pid));
        let stat = stat(pid).unwrap();
        assert!(stat.memory > 1 << 16 && stat.cpu_seconds >= 0.0);
    }
}

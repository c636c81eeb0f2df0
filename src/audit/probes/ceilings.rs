//! What a part may have of what is counted for the whole machine, read back.

use super::{Found, Scene, nothing_of};
use crate::audit::catalogue::{Probe, Side};
use crate::audit::outside::texts;
use crate::audit::{Group, Outcome};
use crate::confine::ceilings;
use crate::part::namespaces::{self, Network};

/// The limits of each part's user namespace.
pub const USER: Probe = Probe {
    id: "limit-user-namespace",
    group: Group::Resources,
    from: Side::Look(user),
    title: "the limits of each part's user namespace, in /proc/sys/user",
    why: "namespaces(7): what is counted there counts for the host's root too; with a user namespace of its own a process \
          reaches most of the kernel's bugs",
    expected: "no user namespace, no fanotify, few of the rest, as planned",
};

/// The resource limits of each part's processes.
pub const PROCESS: Probe = Probe {
    id: "limit-process",
    group: Group::Resources,
    from: Side::Look(process),
    title: "the resource limits of every process of each part",
    why: "getrlimit(2): queued signals, message queues and cores are the host's as well",
    expected: "hard limits as planned, or lower",
};

fn user(scene: &Scene<'_>) -> Found {
    let look = |name: &str, agent| -> Result<Outcome, String> {
        let network = match scene.app(name) {
            Some(_) => Network::App { ipv6: false },
            None => Network::Shared,
        };
        let wanted = namespaces::user_limits(network, 0);
        let paths = wanted.iter();
        let paths = paths.map(|(limit, _)| format!("/proc/sys/user/{limit}"));
        let found = texts(agent, paths.collect())?;
        let mut wrong = vec![];
        for ((limit, most), found) in wanted.iter().zip(&found) {
            // A kernel without it has nothing to count.
            let Some(found) = found else { continue };
            let found = found.trim();
            if !found.parse::<u64>().is_ok_and(|found| found <= *most) {
                wrong.push(format!("{limit} is {found}, planned is {most}"));
            }
        }
        if found.iter().all(Option::is_none) {
            return Err("/proc/sys/user can't be read".to_owned());
        }
        Ok(nothing_of(&wrong, format!("{} as planned", wanted.len())))
    };
    let inside = scene.inside.iter();
    let found = inside.map(|(name, agent)| {
        let outcome = look(name, agent).unwrap_or_else(Outcome::unknown);
        ((*name).to_owned(), outcome)
    });
    found.collect()
}

fn process(scene: &Scene<'_>) -> Found {
    let plan = scene.plan();
    let mut found = vec![];
    for (name, limits) in plan.limits() {
        let Some(init) = scene.target.part(name).and_then(|part| part.init) else {
            continue;
        };
        let wanted = ceilings::hard(plan.cgroup.nproc(limits));
        let mut wrong = vec![];
        let mut count = 0;
        for process in scene.processes.of_part(init) {
            let Ok(text) = std::fs::read_to_string(format!("/proc/{}/limits", process.pid)) else {
                continue;
            };
            count += 1;
            for (limit, most) in &wanted {
                let line = text.lines().find_map(|line| line.strip_prefix(limit));
                let hard = line.and_then(|line| line.split_whitespace().nth(1));
                match hard {
                    None => wrong.push(format!("{limit} can't be read")),
                    // "unlimited" is not a number, and exceeds every limit.
                    Some(hard) if hard.parse::<u64>().is_ok_and(|hard| hard <= *most) => {}
                    Some(hard) => wrong.push(format!(
                        "process {}: {} is {hard}, planned is {most}",
                        process.pid,
                        limit.to_lowercase()
                    )),
                }
            }
        }
        let outcome = match count {
            0 => Outcome::unknown("no process of it can be looked at"),
            _ => nothing_of(&wrong, format!("{} of each of {count}", wanted.len())),
        };
        found.push((name.to_owned(), outcome));
    }
    found
}

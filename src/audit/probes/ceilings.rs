//! What a part may have of what is counted for the whole machine, read back.

use super::{Found, Scene, nothing_of};
use crate::audit::catalogue::{Probe, Side};
use crate::audit::planned::texts;
use crate::audit::{Group, Outcome};
use crate::confine::ceilings;
use crate::part::cgroup::{says, settings};
use crate::part::namespaces::{self, Network};
use crate::plan::limits::{Controller, HeldBy};

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

/// The cgroups of the parts.
pub const CGROUP: Probe = Probe {
    id: "limit-cgroup",
    group: Group::Resources,
    from: Side::Look(cgroup),
    title: "the cgroup that each part is in, and the limits that are set there",
    why: "cgroups(7): a process in another cgroup is bounded by that one's limits, or by none",
    expected: "the part's own, with nothing below it and the planned limits",
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

fn cgroup(scene: &Scene<'_>) -> Found {
    let plan = scene.plan();
    let look = |name: &str, limits| -> Result<Outcome, String> {
        let part = scene.target.part(name).ok_or("there is no such part")?;
        let Some(path) = &part.cgroup else {
            let why = plan.cgroup.why.as_deref();
            return Ok(Outcome::not_applicable(
                why.unwrap_or("there is no cgroup for it"),
            ));
        };
        let init = part.init.ok_or("the part does not run")?;
        // The rest of an app is compared with its pid 1 by `members`.
        let own = std::fs::read_to_string(format!("/proc/{init}/cgroup"))
            .map_err(|e| format!("read the cgroup of process {init}: {e}"))?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
        let mut wrong = vec![];
        // It is told from the hierarchy's root on.
        if own.is_none_or(|own| own.is_empty() || !path.ends_with(own)) {
            let own = own.unwrap_or_default();
            wrong.push(format!("process {init} is in /{own}"));
        }
        let entries =
            std::fs::read_dir(path).map_err(|e| format!("list {}: {e}", path.display()))?;
        let below = entries.flatten().filter(|entry| entry.path().is_dir());
        wrong.extend(below.map(|entry| format!("unexpected: {}", entry.path().display())));
        let held = part.limits.iter();
        let held = held.filter(|status| status.held_by == Some(HeldBy::Cgroup));
        let controllers: Vec<Controller> = held.map(|status| status.limit).collect();
        let wanted = settings(limits, &controllers);
        for (file, value) in &wanted {
            match std::fs::read_to_string(path.join(file)) {
                Ok(found) if says(file, found.trim_end(), value) => {}
                Ok(found) => wrong.push(format!(
                    "{file} is {}, planned is {value}",
                    found.trim_end()
                )),
                // A kernel without swap accounting has no swap limit.
                Err(e)
                    if e.kind() == std::io::ErrorKind::NotFound && *file == "memory.swap.max" => {}
                Err(e) => wrong.push(format!("{file}: {e}")),
            }
        }
        Ok(nothing_of(
            &wrong,
            format!("its own, with {} limits as planned", wanted.len()),
        ))
    };
    let running = plan.limits().filter(|(name, _)| {
        let part = scene.target.part(name);
        part.is_some_and(|part| part.init.is_some())
    });
    let found = running.map(|(name, limits)| {
        let outcome = look(name, limits).unwrap_or_else(Outcome::unknown);
        (name.to_owned(), outcome)
    });
    found.collect()
}

//! What the processes of a stack are on the host.

use super::members::{field, is_here};
use super::{Found, Scene, nothing_of};
use crate::audit::catalogue::{Probe, Side};
use crate::audit::outside::SETS;
use crate::audit::{Group, Outcome};

/// Power over the host.
pub const CAPABILITIES: Probe = Probe {
    id: "host-capabilities",
    group: Group::Host,
    from: Side::Look(look),
    title: "the supervisor and every process below it",
    why: "capabilities(7), user_namespaces(7): the supervisor reads what parts say; whoever takes it over has what it holds",
    expected: "in a user namespace that is not the host's, or five empty sets",
};

/// What keeps the supervisor from most of the kernel.
pub const CONFINED: Probe = Probe {
    id: "host-filter",
    group: Group::Host,
    from: Side::Look(confined),
    title: "the supervisor's seccomp filter and no_new_privs, and how many threads it has",
    why: "seccomp(2): a filter is of a thread, and of what that starts",
    expected: "one thread, filtered, no_new_privs",
};

fn confined(scene: &Scene<'_>) -> Found {
    let pid = scene.target.status.supervisor;
    let outcome = match std::fs::read_to_string(format!("/proc/{pid}/status")) {
        _ if scene.target.status.gated => Outcome::not_applicable(GATED),
        Err(e) => Outcome::unknown(format!("/proc/{pid}/status: {e}")),
        Ok(status) => {
            let held =
                [("Threads", "1"), ("Seccomp", "2"), ("NoNewPrivs", "1")].map(|(name, wanted)| {
                    let found = field(&status, name).unwrap_or_default();
                    (found == wanted, format!("{name} {found}"))
                });
            Outcome::check(
                held.iter().all(|(right, _)| *right),
                held.map(|(_, said)| said).join(", "),
            )
        }
    };
    vec![(SUPERVISOR.to_owned(), outcome)]
}

/// The part that the report names for what is tried as the supervisor.
pub const SUPERVISOR: &str = "supervisor";
/// Why nothing is tried as the supervisor yet.
pub const GATED: &str = "what it takes to open the ports is held until they are open";

/// The supervisor, and all that it and its children have started.
fn below(scene: &Scene<'_>) -> Vec<i32> {
    let mut all = vec![scene.target.status.supervisor];
    let mut at = 0;
    while let Some(parent) = all.get(at) {
        let path = format!("/proc/{parent}/task/{parent}/children");
        let children = std::fs::read_to_string(path).unwrap_or_default();
        let children = children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok());
        all.extend(children.collect::<Vec<i32>>());
        at += 1;
    }
    all
}

fn look(scene: &Scene<'_>) -> Found {
    let outcome = if scene.target.status.gated {
        Outcome::not_applicable(GATED)
    } else {
        of_all(&below(scene))
    };
    vec![("host".to_owned(), outcome)]
}

fn of_all(processes: &[i32]) -> Outcome {
    let (mut wrong, mut of_the_host) = (vec![], 0);
    for pid in processes {
        let path = format!("/proc/{pid}");
        // One that has ended holds nothing.
        let Ok(status) = std::fs::read_to_string(format!("{path}/status")) else {
            continue;
        };
        // Nor does one that nobody has waited for yet.
        let ended = field(&status, "State").is_some_and(|state| state.starts_with('Z'));
        if ended || !is_here(&path, "user") {
            continue;
        }
        of_the_host += 1;
        for set in SETS {
            match field(&status, set).map(|held| u64::from_str_radix(&held, 16)) {
                Some(Ok(0)) => {}
                Some(Ok(held)) => wrong.push(format!("{pid} holds {set} {held:x}")),
                _ => return Outcome::unknown(format!("{path}/status has no {set}")),
            }
        }
    }
    let processes = processes.len();
    nothing_of(
        &wrong,
        format!(
            "{processes} processes, {of_the_host} in the host's user namespace, which hold nothing"
        ),
    )
}

//! What `plan -v` prints: every decision, and where each value comes from.
#![forbid(unsafe_code)]

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use super::{order, rootfs};
use crate::commands::failure::Failure;
use crate::commands::picture::{self, Picture};
use crate::config::{Limits, OnUnhealthy, Origin, RecordTo, Restart, Source as Seen};
use crate::confine::privileges::Ids;
use crate::confine::seccomp::Profile;
use crate::firewall;
use crate::plan::limits::{Controller, HeldBy};
use crate::plan::reach;
use crate::plan::{AppPlan, CannotRoll, Mode, Plan, Subordinate, Transport, UplinkEnd};
use crate::text::{duration, size};

/// Who may reach whom as a matrix: who connects stands at the left, `.` is no port at all.
pub fn matrix(plan: &Plan) -> String {
    let mut out = String::new();
    // Writing to a String can't fail.
    let _ = matrix_to(&mut out, plan);
    out
}

fn matrix_to(out: &mut String, plan: &Plan) -> std::fmt::Result {
    let all = reach::reach(plan);
    let names: Vec<&str> = plan.apps.iter().map(|app| app.name.as_str()).collect();
    let rows: Vec<&str> = std::iter::once("clients")
        .chain(names.iter().copied())
        .collect();
    let cell = |from: &str, to: &str| {
        let its = all
            .iter()
            .find(|reach| reach.from == from && reach.to == to);
        its.map_or_else(|| ".".to_owned(), |reach| reach.ports.join(","))
    };
    let widths: Vec<usize> = names
        .iter()
        .map(|to| {
            let cells = rows.iter().map(|from| cell(from, to).len());
            cells.chain([to.len()]).max().unwrap_or(0)
        })
        .collect();
    let first = rows.iter().map(|row| row.len()).max().unwrap_or(0);
    writeln!(out, "\nwho may reach whom, and at which ports")?;
    let mut line = format!("  {:first$}", "");
    for (to, width) in names.iter().zip(&widths) {
        write!(line, "  {to:width$}")?;
    }
    writeln!(out, "{}", line.trim_end())?;
    for from in &rows {
        let mut line = format!("  {from:first$}");
        for (to, width) in names.iter().zip(&widths) {
            write!(line, "  {:width$}", cell(from, to))?;
        }
        let outside = all
            .iter()
            .filter(|reach| reach.from == *from && !names.contains(&reach.to.as_str()));
        let outside: Vec<&str> = outside.map(|reach| reach.to.as_str()).collect();
        if !outside.is_empty() {
            write!(line, "  {}", outside.join(", "))?;
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Everything.
pub fn describe(plan: &Plan) -> Result<String, Failure> {
    let mut text = String::new();
    describe_to(&mut text, plan).map_err(Failure::unable)?;
    let rules = firewall::to_text(&firewall::sidecar_rules(plan)).map_err(Failure::unable)?;
    let mut host = firewall::to_text(&firewall::host_rules(plan)).map_err(Failure::unable)?;
    if let Some(at_link) = firewall::uplink_rules(plan) {
        host += "\n";
        host += &firewall::to_text(&at_link).map_err(Failure::unable)?;
    }
    let rules = rules
        + &plan
            .rules
            .as_ref()
            .map_or_else(String::new, crate::commands::rules::extra);
    Ok(format!(
        "{text}\nthe sidecar's rules\n{}\nthe host's table, gone when the supervisor is\n{}",
        indent(&rules),
        indent(&host)
    ))
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

fn describe_to(out: &mut String, plan: &Plan) -> std::fmt::Result {
    describe_stack(out, plan)?;
    writeln!(out, "\n{}", picture::draw(&Picture::of(plan)).trim_end())?;
    matrix_to(out, plan)?;
    if plan.has_order() {
        writeln!(out, "\n{}", order(plan))?;
    }
    describe_sidecar(out, plan)?;
    for app in &plan.apps {
        describe_app(out, plan, app)?;
    }
    describe_egress(out, plan)?;
    if plan.has_relay() {
        writeln!(
            out,
            "\nrelay\n  holds no capability; runs as {} outside; empty read-only root",
            plan.host_uid(plan.relay)
        )?;
        limits(out, plan, &plan.relay_limits, &|_| "default".to_owned())?;
    }
    Ok(())
}

/// Where a value comes from.
fn origin(plan: &Plan, key: &str) -> String {
    match plan.origins.get(key) {
        None | Some(Origin::Default) => "default".to_owned(),
        Some(Origin::Builtin) => "built-in example".to_owned(),
        Some(Origin::File { path, line }) => format!("{}:{line}", path.display()),
        Some(Origin::Flag { name }) => name.clone(),
        Some(Origin::Environment { name }) => format!("${name}"),
        Some(Origin::Chosen { how }) => format!("chosen: {how}"),
    }
}

fn describe_stack(out: &mut String, plan: &Plan) -> std::fmt::Result {
    writeln!(
        out,
        "{}, state in {}",
        plan.title(),
        plan.state_dir.display()
    )?;
    if let Some(path) = &plan.cgroup.path {
        writeln!(out, "cgroup {}", path.display())?;
    }
    if let Some(complaint) = plan
        .cgroup
        .complaint(plan.limits().map(|(_, limits)| limits))
    {
        writeln!(out, "{complaint}")?;
    }
    record(out, plan)?;
    let (bridge, uplink) = (&plan.bridge, &plan.uplink);
    writeln!(
        out,
        "subnet {}  ({})",
        bridge.subnet,
        origin(plan, "network.subnet")
    )?;
    match bridge.prefix6 {
        Some(prefix) => writeln!(out, "ipv6 {prefix}  ({})", origin(plan, "network.ipv6"))?,
        None => writeln!(out, "ipv6 off  ({})", origin(plan, "network.ipv6"))?,
    }
    writeln!(
        out,
        "uplink {} {} {}/31 in the {} == {} {} {}/31 in the sidecar's netns",
        uplink.host_link,
        uplink.host_mac,
        uplink.host_address,
        match plan.uplink.ends_at {
            UplinkEnd::Relay => "relay's netns",
            UplinkEnd::Host => "host's netns",
        },
        uplink.sidecar_link,
        uplink.sidecar_mac,
        uplink.sidecar_address
    )?;
    if let (Some(host), Some(sidecar)) = (uplink.host_address6, uplink.sidecar_address6) {
        writeln!(out, "  and {host}/127 == {sidecar}/127")?;
    }
    match plan.supervisor_stays() {
        None => writeln!(
            out,
            "supervisor in a network namespace with nothing in it, once the stack is up"
        )?,
        Some(why) => writeln!(out, "supervisor in the host's network namespace: {why}")?,
    }
    Ok(())
}

/// Where the log goes.
fn record(out: &mut String, plan: &Plan) -> std::fmt::Result {
    let record = &plan.record;
    let files = format!(
        "{}, at most {} and {} old",
        record.dir.display(),
        size(record.size),
        duration(Duration::from_secs(record.age)),
    );
    let place = match record.to {
        RecordTo::Off => "only".to_owned(),
        RecordTo::File => format!("and in {files}"),
        RecordTo::Journal => "and in the journal".to_owned(),
        RecordTo::Both => format!("and in the journal, and in {files}"),
        RecordTo::Auto => format!("and in the journal, or without systemd in {files}"),
    };
    let from = origin(plan, "log.to");
    writeln!(out, "log in memory {place}  ({from})")
}

fn describe_sidecar(out: &mut String, plan: &Plan) -> std::fmt::Result {
    let bridge = &plan.bridge;
    writeln!(
        out,
        "\nsidecar\n  bridge {} {} {}/{}  ({})\n  holds NET_ADMIN over its own netns{}, nothing else; runs as {} outside; empty read-only root",
        bridge.name,
        bridge.mac,
        bridge.address,
        bridge.subnet.prefix_len(),
        origin(plan, "sidecar.address"),
        if plan.seal {
            " until its rules are loaded"
        } else {
            ""
        },
        plan.host_uid(plan.sidecar)
    )?;
    if let (Some(address), Some(prefix)) = (bridge.address6, bridge.prefix6) {
        writeln!(
            out,
            "  and {address}/{}  (chosen: the prefix's first)",
            prefix.prefix_len()
        )?;
    }
    limits(out, plan, &plan.sidecar_limits, &|_| "default".to_owned())?;
    Ok(())
}

fn describe_app(out: &mut String, plan: &Plan, app: &AppPlan) -> std::fmt::Result {
    let key = |name: &str| {
        let several = format!("app.{}.{name}", app.name);
        let one = format!("app.{name}");
        let is_one_of_several = plan.origins.contains_key(&several);
        origin(plan, if is_one_of_several { &several } else { &one })
    };
    writeln!(out, "\napp {}", app.name)?;
    app_itself(out, plan, app, &key)?;
    app_within(out, plan, app, &key)?;
    app_reach(out, plan, app, &key)?;
    app_life(out, plan, app, &key)?;
    app_clients(out, app, &key)
}

/// Where a key of the app's comes from.
type Key<'a> = &'a dyn Fn(&str) -> String;

/// Its address, and who it is.
fn app_itself(out: &mut String, plan: &Plan, app: &AppPlan, key: Key<'_>) -> std::fmt::Result {
    let (address, from) = (app.address, key("address"));
    if app.via_socket {
        writeln!(
            out,
            "  no network but the listening sockets that it is handed, in the sidecar's, at its address {address}  ({from})"
        )?;
    } else {
        let (mac, port) = (app.mac, &app.port_link);
        writeln!(
            out,
            "  address {address} {mac} behind bridge port {port}  ({from})"
        )?;
    }
    if let Some(address) = app.address6 {
        writeln!(out, "  and {address}  (chosen: the next of the prefix)")?;
    }
    writeln!(
        out,
        "  holds {}; runs as {} inside, {} outside  ({})",
        match app.ids.is_range() {
            true => "what root has over files and processes of its own ids, see below".to_owned(),
            false => "no capability".to_owned(),
        },
        match app.ids.inside() {
            Ids { uid, gid } if uid == gid => uid.to_string(),
            Ids { uid, gid } => format!("{uid}, group {gid},"),
        },
        plan.host_uid(app.ids),
        key("user")
    )?;
    if app.ids.is_range() {
        range(out, app, plan.subordinate, &key("ids"))?;
    }
    if app.workdir != Path::new("/") {
        writeln!(
            out,
            "  starts in {}  ({})",
            app.workdir.display(),
            key("workdir")
        )?;
    }
    Ok(())
}

/// What it runs, in what root, with what it may use.
fn app_within(out: &mut String, plan: &Plan, app: &AppPlan, key: Key<'_>) -> std::fmt::Result {
    let root = rootfs(&app.rootfs);
    writeln!(out, "  rootfs {root}, read-only  ({})", key("rootfs"))?;
    describe_seccomp(out, &app.seccomp, &key("seccomp"))?;
    let tcp = crate::confine::landlock::App::of(app);
    writeln!(
        out,
        "  Landlock: may bind TCP {}, connect to TCP {}  ({})",
        ports(&tcp.bind),
        tcp.connect
            .map_or_else(|| "wherever the rules let it".to_owned(), |own| ports(&own)),
        key("listen")
    )?;
    for tmpfs in &app.tmpfs {
        writeln!(
            out,
            "  tmpfs {} of {}  ({})",
            tmpfs.path.display(),
            size(tmpfs.size),
            key("tmpfs")
        )?;
    }
    for volume in &app.volumes {
        writeln!(
            out,
            "  volume {} of the host's {}, {}, {}, nosuid, nodev  ({})",
            volume.path.display(),
            volume.host.display(),
            match (volume.writable, plan.mode) {
                (false, _) if volume.owners => "read-only, each file its owner's: what is root's alone on the host, this app reads, too".to_owned(),
                (false, _) => "read-only".to_owned(),
                (true, Mode::Root) => format!(
                    "writable, {} is its owner on the disk",
                    volume.owner.map_or(app.ids.uid, |(uid, _)| uid)
                ),
                (true, Mode::Rootless) => "writable".to_owned(),
            },
            if volume.exec { "exec" } else { "noexec" },
            key("volumes")
        )?;
    }
    for said in super::secrets_of(app, plan) {
        writeln!(out, "  secret {said}  ({})", key("secrets"))?;
    }
    for said in super::unix_sockets(app) {
        writeln!(out, "  {said}  ({})", key("sockets"))?;
    }
    limits(out, plan, &app.limits, &|limit| {
        key(&format!("limits.{limit}"))
    })?;
    writeln!(
        out,
        "  command {}  ({})",
        app.command.join(" "),
        key("command")
    )?;
    for name in app.env.keys() {
        // Values may be secrets; `--json` has them.
        writeln!(out, "  env {name}  ({})", key(&format!("env.{name}")))?;
    }
    Ok(())
}

/// By what it is reached, and what it may reach.
fn app_reach(out: &mut String, plan: &Plan, app: &AppPlan, key: Key<'_>) -> std::fmt::Result {
    let ranges = reach::ranges(plan);
    for range in ranges.iter().filter(|range| range.app.name == app.name) {
        let via = match range.first.via {
            Transport::Dnat => "dnat",
            Transport::Relay => "relay",
        };
        writeln!(
            out,
            "  publish {} by {via}, {} -> {} -> {}  ({})",
            range.listen(),
            range.first.why,
            range.entry(&plan.uplink),
            range.service(),
            key("publish")
        )?;
    }
    let source = match app.source {
        Seen::Sidecar => "the sidecar's address for every client",
        Seen::Client => "its clients' own addresses, and has a default route to answer them",
        Seen::Localhost => "127.0.0.1 for every client, and is reached at its own 127.0.0.1",
    };
    writeln!(out, "  sees {source}  ({})", key("source"))?;
    if !app.connect.is_empty() {
        let list: Vec<String> = app.connect.iter().map(ToString::to_string).collect();
        writeln!(
            out,
            "  may connect to {} by way of the sidecar  ({})",
            list.join(", "),
            key("connect")
        )?;
    }
    match app.egress.as_slice() {
        [] if !app.connect.is_empty() => {
            writeln!(out, "  may connect to nothing else  ({})", key("egress"))?;
        }
        [] => writeln!(out, "  may connect to nothing  ({})", key("egress"))?,
        egress => {
            let list: Vec<String> = egress.iter().map(ToString::to_string).collect();
            writeln!(
                out,
                "  may connect to {}  ({})",
                list.join(", "),
                key("egress")
            )?;
        }
    }
    Ok(())
}

/// When it is started, started again, ended and replaced.
fn app_life(out: &mut String, plan: &Plan, app: &AppPlan, key: Key<'_>) -> std::fmt::Result {
    if let Some(health) = &app.health {
        writeln!(
            out,
            "  is healthy by {}, every {}, within {}; not after {} failed in a row{}  ({})",
            health.check,
            crate::text::duration(health.interval),
            crate::text::duration(health.timeout),
            health.retries,
            match health.on_unhealthy {
                OnUnhealthy::Nothing => ", and is let be",
                OnUnhealthy::Restart => ", and is started again",
            },
            key("health")
        )?;
    }
    let limit = app.restart_limit.map(|limit| format!(", at most {limit}"));
    writeln!(
        out,
        "  {}{}  ({})",
        match app.restart {
            Restart::No => "is not started again when it ends",
            Restart::OnFailure => "is started again when it fails",
            Restart::Always => "is started again when it ends",
        },
        limit.unwrap_or_default(),
        key("restart")
    )?;
    if app.job {
        writeln!(
            out,
            "  is a job: it has to end with 0, within {}  ({})",
            crate::text::duration(app.start_timeout),
            key("job")
        )?;
    }
    if app.forks {
        writeln!(
            out,
            "  goes to the background: what its command leaves running is the app  ({})",
            key("forks")
        )?;
    }
    if !app.after.is_empty() {
        let list: Vec<String> = app.after.iter().map(ToString::to_string).collect();
        writeln!(
            out,
            "  comes up after {}  ({})",
            list.join(", "),
            key("after")
        )?;
    }
    writeln!(
        out,
        "  ends on {} within {}, and then what its command leaves running  ({})",
        app.stop.signal,
        crate::text::duration(app.stop.timeout),
        key("stop_signal")
    )?;
    writeln!(
        out,
        "  {}  ({})",
        match (plan.can_roll(app), app.spare) {
            (Ok(()), Some(spare)) =>
                format!("is replaced by another one beside it, at {}", spare.address),
            (Err(CannotRoll::StopFirst(_)), _) | (Ok(()), None) =>
                "is replaced stop-first".to_owned(),
            (Err(why), _) => format!("is replaced stop-first: {why}"),
        },
        key("replace")
    )?;
    Ok(())
}

/// Of its clients, those that are let in.
fn app_clients(out: &mut String, app: &AppPlan, key: Key<'_>) -> std::fmt::Result {
    if let Some(rate) = app.rate {
        writeln!(out, "  new connections: {rate}  ({})", key("rate"))?;
    }
    if app.is_selective() {
        let allow: Vec<String> = app.allow.iter().map(ToString::to_string).collect();
        let allow: Vec<&str> = allow.iter().map(String::as_str).collect();
        wrap(
            out,
            &format!("clients of these only ({}):", key("allow")),
            &allow,
        )?;
    }
    Ok(())
}

fn describe_egress(out: &mut String, plan: &Plan) -> std::fmt::Result {
    if let Some(egress) = &plan.egress {
        writeln!(out, "\n{egress}")?;
    }
    if plan.egress_relay().is_some() {
        writeln!(
            out,
            "  two processes, carrier and dialer; they hold no capability; run as {} outside; empty read-only root",
            plan.egress
                .as_ref()
                .map_or(0, |egress| plan.host_uid(egress.ids))
        )?;
        limits(out, plan, &crate::plan::limits::EGRESS, &|_| {
            "default".to_owned()
        })?;
    }
    Ok(())
}

/// The limits of one part, and what holds each that something holds.
fn limits(
    out: &mut String,
    plan: &Plan,
    limits: &Limits,
    from: &dyn Fn(Controller) -> String,
) -> std::fmt::Result {
    for (limit, held_by) in plan.cgroup.held(limits) {
        let value = match limit {
            Controller::Memory => limits.memory.map(size),
            Controller::Pids => limits.pids.map(|pids| pids.to_string()),
            Controller::Cpu => limits.cpu.map(|cpu| f64::from(cpu).to_string()),
        };
        let held_by = match held_by {
            Some(HeldBy::Cgroup) => ", held by the cgroup",
            Some(HeldBy::Rlimit) => ", held by RLIMIT_NPROC",
            // That is said once, of all of them.
            None => "",
        };
        writeln!(
            out,
            "  {limit} {}{held_by}  ({})",
            value.unwrap_or_default(),
            from(limit)
        )?;
    }
    Ok(())
}

/// `5000, 6379`, or `nothing`.
fn ports(ports: &[u16]) -> String {
    if ports.is_empty() {
        return "nothing".to_owned();
    }
    let runs = ports.chunk_by(|a, b| a.checked_add(1) == Some(*b));
    let runs: Vec<String> = runs
        .map(|run| match run {
            [first, .., last] => format!("{first}-{last}"),
            [] | [_] => run.iter().map(u16::to_string).collect(),
        })
        .collect();
    runs.join(", ")
}

/// What a range of ids is, and what it costs.
fn range(
    out: &mut String,
    app: &AppPlan,
    further: Option<Subordinate>,
    origin: &str,
) -> std::fmt::Result {
    let (first, count) = (app.ids.host_id, app.ids.count);
    let held = app.ids.capabilities().iter().map(ToString::to_string);
    match further {
        None => writeln!(
            out,
            "  ids 0 to {} inside, {first} to {} outside, of nobody else  ({origin})",
            count - 1,
            first + count - 1
        )?,
        Some(further) => writeln!(
            out,
            "  ids 0 to {} inside: you, and {} to {} of /etc/subuid, which your other stacks have, too  ({origin})",
            count - 1,
            further.uid,
            further.uid + count - 2
        )?,
    }
    writeln!(
        out,
        "    begins as root with {}, over these ids alone, and loses them with the change to another\n    \
         price: who breaks in before that is whoever it likes among them, reads and writes whatever they own, takes any of its\n    \
         directories for its root (chroot), and reaches the kernel's code behind these capabilities",
        held.collect::<Vec<_>>().join(", ")
    )
}

/// How many system calls, then their names; rules in full are in `--json`.
fn describe_seccomp(out: &mut String, profile: &Profile, from: &str) -> std::fmt::Result {
    let [allowed, conditional, kept] = profile.names();
    writeln!(
        out,
        "  seccomp {}: {} system calls, {} more by their arguments, the others: {}  ({from})",
        profile.name,
        allowed.len(),
        conditional.len(),
        profile.otherwise
    )?;
    for (title, names) in [
        ("always", allowed),
        ("by their arguments", conditional),
        ("kept from every app", kept),
        (
            "unknown here",
            profile.unknown.iter().map(String::as_str).collect(),
        ),
    ] {
        if !names.is_empty() {
            wrap(out, &format!("{title}:"), &names)?;
        }
    }
    Ok(())
}

/// Words in lines of at most 110 characters, indented.
fn wrap(out: &mut String, title: &str, words: &[&str]) -> std::fmt::Result {
    let mut line = format!("    {title}");
    for word in words {
        if line.len() + 1 + word.len() > 110 {
            writeln!(out, "{line}")?;
            line = " ".repeat(5);
        }
        write!(line, " {word}")?;
    }
    writeln!(out, "{line}")
}

#[cfg(test)]
mod tests {
    use super::ports;

    #[test]
    fn ports_in_a_row_are_a_range() {
        assert_eq!(ports(&[]), "nothing");
        assert_eq!(
            ports(&[80, 443, 8000, 8001, 8002, 65534, 65535]),
            "80, 443, 8000-8002, 65534-65535"
        );
    }
}

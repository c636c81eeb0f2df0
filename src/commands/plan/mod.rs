//! `lrpns plan`.
#![forbid(unsafe_code)]

mod brief;
mod full;

use std::path::Path;
use std::process::ExitCode;

use super::{Named, configuration, print, print_json};
use crate::cli::Source;
use crate::commands::failure::Failure;
use crate::config::{Rootfs, Secret, SecretFrom, order};
use crate::confine::landlock::Support;
use crate::host::Host;
use crate::part::secrets;
use crate::part::volumes::sockets;
use crate::plan::reach::Document;
use crate::plan::resolve;
use crate::plan::{AppPlan, Plan};

/// Prints what `up` would do, `verbose` to the last system call; changes nothing.
pub fn plan(source: &Source, json: bool, verbose: bool) -> Result<ExitCode, Failure> {
    let config = configuration(source, Named::No)?;
    let plan = resolve::plan(&config, &Host::look_for(&config)?)?;
    match (json, verbose) {
        (true, _) => print_json(&Document::of(&plan))?,
        (_, true) => print(&full::describe(&plan)?)?,
        _ => print(&brief::describe(&plan))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// In which order the apps come up: those of a step at the same time.
fn order(plan: &Plan) -> String {
    let steps = order::steps(&plan.after());
    let steps: Vec<String> = steps
        .iter()
        .map(|step| {
            let names = step.iter().map(|app| {
                let app = &plan.apps[*app];
                let job = if app.job { " (a job)" } else { "" };
                format!("{}{job}", app.name)
            });
            names.collect::<Vec<_>>().join(", ")
        })
        .collect();
    format!("order of start: {}", steps.join(", then "))
}

/// As the configuration has it.
fn rootfs(rootfs: &Rootfs) -> String {
    match rootfs {
        Rootfs::BuiltinWebapp => "builtin:webapp".to_owned(),
        Rootfs::Host => "host".to_owned(),
        Rootfs::Dir(path) => format!("dir:{}", path.display()),
    }
}

/// An app's secrets: where each comes from.
fn secrets_of(app: &AppPlan, plan: &Plan) -> Vec<String> {
    let one = |secret: &Secret| {
        let from = match (&secret.from, &plan.credentials) {
            (SecretFrom::File(path), _) => path.display().to_string(),
            (SecretFrom::Credential(name), Some(_)) => format!("systemd's credential {name}"),
            (SecretFrom::Credential(name), None) => {
                format!("systemd's credential {name}, which only a service has")
            }
        };
        let path = secrets::path(secret);
        format!("{} from {from}, for the app alone", path.display())
    };
    app.secrets.iter().map(one).collect()
}

/// Unix sockets of the host's that an app has: what it declares, what is in its volumes now, and what is not seen.
fn unix_sockets(app: &AppPlan) -> Vec<String> {
    let mut all = vec![];
    for socket in &app.sockets {
        let root = match is_of_a_runtime(&socket.host) {
            true => ", and this one makes root of those who ask",
            false => "",
        };
        all.push(format!(
            "{} is {}: a way past every rule, to whoever listens there{root}",
            socket.path.display(),
            socket.host.display(),
        ));
    }
    for volume in &app.volumes {
        let found = sockets::find(&volume.host, &volume.path, |_| false);
        for socket in &found.sockets {
            let path = sockets::shown(&socket.path);
            let then = match sockets::is_declared(&socket.path, app) {
                true => "declared".to_owned(),
                false => format!(
                    "up refuses that without {}",
                    sockets::line(app, std::slice::from_ref(socket))
                ),
            };
            all.push(format!("somebody listens on {path} in a volume: {then}"));
        }
        if found.partly {
            all.push(sockets::in_part(&volume.path));
        }
    }
    if !(app.volumes.is_empty() || Support::of_this_kernel().sockets) {
        all.push(
            "one that is made in a volume later is not seen before Linux 7.1, which refuses it (Landlock's ABI 9); lrpns audit finds it"
                .to_owned(),
        );
    }
    all
}

/// Whether a socket is one by which containers are made.
fn is_of_a_runtime(path: &Path) -> bool {
    const WORDS: [&str; 5] = ["docker", "containerd", "podman", "crio", "lxd"];
    let path = path.to_string_lossy();
    WORDS.iter().any(|word| path.contains(word))
}

//! `lrpns plan`.
#![forbid(unsafe_code)]

mod brief;
mod full;

use std::process::ExitCode;

use super::{Named, configuration, print, print_json};
use crate::cli::Source;
use crate::commands::failure::Failure;
use crate::config::{Rootfs, order};
use crate::host::Host;
use crate::plan::Plan;
use crate::plan::reach::Document;
use crate::plan::resolve;

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

//! `lrpns graph`: the picture of a stack, with what it counts if it runs.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;

use super::picture::{self, Picture};
use super::{Named, configuration, print, status_now};
use crate::cli::Source;
use crate::commands::failure::Failure;
use crate::host::Host;
use crate::names::StackName;
use crate::plan::resolve;
use crate::state::Liveness;

/// Draws a stack: the running one of that name, else what `up` would make.
pub(super) fn graph(
    stack: &StackName,
    file: Option<&Path>,
    named: bool,
    svg: Option<&Path>,
) -> Result<ExitCode, Failure> {
    let lives = matches!(Host::state_root().liveness(stack), Ok(Liveness::Alive));
    let (picture, is) = match lives {
        true => {
            let status = status_now(stack)?;
            let is = status.word();
            (Picture::counted(&status), is)
        }
        false => {
            let source = Source {
                stack: named.then(|| stack.clone()),
                file: file.map(Path::to_owned),
                demo: false,
                set: vec![],
                env_file: None,
            };
            let config = configuration(&source, Named::Too)?;
            let plan = resolve::plan(&config, &Host::look_for(&config)?)?;
            (Picture::of(&plan), "not up")
        }
    };
    let title = format!("{stack} ({is})");
    match svg {
        None => print(&format!("{title}\n\n{}", picture::draw(&picture)))?,
        Some(path) => {
            let drawn = picture::svg(&title, &picture);
            match path == Path::new("-") {
                true => print(&drawn)?,
                false => std::fs::write(path, drawn)
                    .map_err(|e| Failure::unable(format!("write {}: {e}", path.display())))?,
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

//! `lrpns rules`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use super::{configuration, print, target_name};
use crate::cli::{RulesFormat, Source};
use crate::error::Failure;
use crate::firewall;
use crate::host::Host;
use crate::resolve;

/// Prints the sidecar's ruleset: the running stack's if it runs, else the one that `up` would load.
pub fn rules(source: &Source, format: RulesFormat) -> Result<ExitCode, Failure> {
    let named_only = source.file.is_none() && source.set.is_empty() && source.env_file.is_none();
    let running = if named_only {
        let name = target_name(source.stack.clone(), None)?;
        Host::state_root().plan(&name)
    } else {
        None
    };
    let plan = match running {
        Some(plan) => plan,
        None => {
            let config = configuration(source)?;
            resolve::plan(&config, &Host::look(&config.name)?)?
        }
    };
    let rules = firewall::sidecar_rules(&plan);
    let text = match format {
        RulesFormat::Nft => firewall::to_text(&rules).map_err(Failure::unable)?,
        RulesFormat::Json => serde_json::to_string_pretty(&rules).map_err(Failure::unable)? + "\n",
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

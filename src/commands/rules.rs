//! `lrpns rules`.
#![forbid(unsafe_code)]

use std::fmt::Write;
use std::process::ExitCode;

use nftables::schema::Nftables;
use serde::Serialize;

use super::{Named, configuration, print, print_json, target};
use crate::audit::target::{Target, tables};
use crate::cli::{RulesFormat, Source};
use crate::commands::failure::Failure;
use crate::control::{Client, Request};
use crate::firewall::{self, Listing};
use crate::host::Host;
use crate::names::StackName;
use crate::plan::resolve;
use crate::plan::{ExtraRules, UplinkEnd};
use crate::traffic::{Refusals, Why};

/// Prints the sidecar's ruleset: the running stack's if it runs, else the one that `up` would load.
pub fn rules(source: &Source, format: RulesFormat) -> Result<ExitCode, Failure> {
    let named_only = source.file.is_none() && source.set.is_empty() && source.env_file.is_none();
    let running = if named_only {
        let stack = source.stack.as_ref().map(StackName::as_str);
        let name = target::whole(stack, None, "rules", None)?;
        Host::state_root().plan(&name)
    } else {
        None
    };
    let plan = match running {
        Some(plan) => plan,
        None => {
            let config = configuration(source, Named::Too)?;
            resolve::plan(&config, &Host::look_for(&config)?)?
        }
    };
    let rules = firewall::sidecar_rules(&plan);
    let text = match format {
        RulesFormat::Nft => {
            let ours = firewall::to_text(&rules).map_err(Failure::unable)?;
            ours + &plan.rules.as_ref().map_or_else(String::new, extra)
        }
        RulesFormat::Json => {
            serde_json::to_string_pretty(&firewall::to_json(&rules)).map_err(Failure::unable)?
                + "\n"
        }
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// One rule and what it has counted.
#[derive(Serialize)]
pub(super) struct Counted {
    pub(super) chain: String,
    pub(super) name: String,
    pub(super) packets: u64,
    pub(super) bytes: u64,
}

/// A table's rules, in the order of `lrpns rules`.
#[derive(Serialize)]
pub(super) struct CountedTable {
    /// Whose network namespace it is in: `sidecar`; `host` or `relay`, where the uplink ends. What the relay itself has
    /// counted is a table `relay`.
    pub(super) namespace: &'static str,
    pub(super) table: String,
    pub(super) rules: Vec<Counted>,
}

/// Prints what every rule of a running stack has counted.
pub fn counters(stack: &StackName, json: bool) -> Result<ExitCode, Failure> {
    // Says who does not run, in the words of every other command.
    drop::<Client>(super::ask(stack, &Request::Status)?);
    let tables = count(stack)?;
    if json {
        print_json(&tables)?;
    } else {
        print(&describe(&tables))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What every rule of a running stack has counted.
pub(super) fn count(stack: &StackName) -> Result<Vec<CountedTable>, Failure> {
    let unable = |e| Failure::unable(format!("read the counters of {stack}: {e}"));
    let target = Target::find(&Host::state_root(), stack).map_err(unable)?;
    let [sidecar, host] = tables(&target).map_err(unable)?;
    let plan = &target.status.plan;
    let end = match plan.uplink.ends_at {
        UplinkEnd::Host => "host",
        UplinkEnd::Relay => "relay",
    };
    let mut tables = vec![
        counted("sidecar", sidecar, &firewall::sidecar_rules(plan)),
        counted(end, host, &firewall::host_rules(plan)),
    ];
    tables.extend(
        target
            .status
            .refused_by_relay
            .map(|refused| by_relay(refused.all)),
    );
    Ok(tables)
}

/// The counts in the order of the rules; what the kernel has besides comes last.
fn counted(
    namespace: &'static str,
    (table, mut listing): (String, Listing),
    rules: &Nftables<'_>,
) -> CountedTable {
    let mut found: Vec<_> = firewall::counted(rules)
        .into_iter()
        .filter_map(|path| listing.counters.remove_entry(&path))
        .collect();
    found.extend(listing.counters);
    let rules = found.into_iter().map(|(path, (packets, bytes))| {
        let (chain, name) = path.split_once('/').unwrap_or(("", &path));
        Counted {
            chain: chain.to_owned(),
            name: name.to_owned(),
            packets,
            bytes,
        }
    });
    CountedTable {
        namespace,
        table,
        rules: rules.collect(),
    }
}

/// The relay's own counts: of connections and datagrams, whose bytes it doesn't look at.
fn by_relay(refusals: Refusals) -> CountedTable {
    let rules = refusals.by_rule().map(|(why, packets)| Counted {
        chain: Why::CHAIN.to_owned(),
        name: why.rule().to_owned(),
        packets,
        bytes: 0,
    });
    CountedTable {
        namespace: "relay",
        table: "relay".to_owned(),
        rules: rules.into(),
    }
}

fn describe(tables: &[CountedTable]) -> String {
    let mut text = String::new();
    for table in tables {
        // Writing to a String can't fail.
        let _ = writeln!(text, "table inet {} ({})", table.table, table.namespace);
        let mut rows = super::status::table(&["", "PACKETS", "BYTES", "RULE"]);
        for column in [1, 2] {
            if let Some(column) = rows.column_mut(column) {
                column.set_cell_alignment(comfy_table::CellAlignment::Right);
            }
        }
        for rule in &table.rules {
            rows.add_row([
                "",
                &rule.packets.to_string(),
                &rule.bytes.to_string(),
                &format!("{}/{}", rule.chain, rule.name),
            ]);
        }
        let _ = writeln!(text, "{}", rows.trim_fmt());
    }
    text
}

/// The user's own rules as they are written, such that nft reads the whole.
pub(super) fn extra(rules: &ExtraRules) -> String {
    let file = rules.file.display();
    let mut text = format!(
        "\n# {file}: its chains `before`, `after` and `nat` are where the table above jumps to\n"
    );
    for (name, value) in &rules.defines {
        text += &format!("define {name} = {value}\n");
    }
    text + &format!(
        "table inet {} {{\n{}\n}}\n",
        firewall::SIDECAR_TABLE,
        rules.text.trim_end()
    )
}

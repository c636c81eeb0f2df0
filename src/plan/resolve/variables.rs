//! What the variables of the user's own rules mean.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::config::RulesFile;
use crate::names::StackName;
use crate::plan::{AppPlan, ExtraRules, Quoting, UplinkPlan};

use super::{PlanError, bridge_name};

/// The user's own rules, and what their variables mean. Only those are defined that they use: a name that is no word of
/// nft's (an app called `ip`) harms nobody who doesn't say it.
pub(super) fn extra_rules(
    file: &RulesFile,
    (sidecar, subnet): (Ipv4Addr, Ipv4Net),
    (stack, uplink): (&StackName, &UplinkPlan),
    apps: &[AppPlan],
) -> Result<ExtraRules, PlanError> {
    let mut all = variables(file, (sidecar, subnet), (stack, uplink), apps);
    let used = used_variables(&file.text);
    all.retain(|(name, _, _)| used.contains(name.as_str()));
    let mut defines = BTreeMap::new();
    let shown = || file.path.display().to_string();
    for (name, value, what) in all {
        if value.contains(['\n', '\r', ';', '#']) || value.is_empty() {
            return Err(PlanError::RulesValue {
                name,
                file: shown(),
                value,
            });
        }
        if let Some((_, other)) = defines.insert(name.clone(), (value, what)) {
            return Err(PlanError::RulesVariable {
                name,
                file: shown(),
                one: other,
                other: what,
            });
        }
    }
    Ok(ExtraRules {
        file: file.path.clone(),
        text: file.text.clone(),
        quoting: match file.private {
            true => Quoting::Private,
            false => Quoting::Allowed,
        },
        defines: defines
            .into_iter()
            .map(|(name, (value, _))| (name, value))
            .collect(),
    })
}

/// Every variable that rules may use: its name, its value, and what that is in words.
fn variables(
    file: &RulesFile,
    (sidecar, subnet): (Ipv4Addr, Ipv4Net),
    (stack, uplink): (&StackName, &UplinkPlan),
    apps: &[AppPlan],
) -> Vec<(String, String, &'static str)> {
    let set = |elements: BTreeSet<String>| {
        let elements: Vec<String> = elements.into_iter().collect();
        match elements.as_slice() {
            [one] => one.clone(),
            several => format!("{{ {} }}", several.join(", ")),
        }
    };
    let ports: BTreeSet<u16> = apps
        .iter()
        .flat_map(|app| app.publish.iter().map(|publish| publish.app_port))
        .collect();
    let addresses = apps.iter().map(|app| app.address.to_string()).collect();
    let mut all = vec![
        ("app".to_owned(), set(addresses), "every app's address"),
        (
            "sidecar".to_owned(),
            sidecar.to_string(),
            "the sidecar's address",
        ),
        (
            "subnet".to_owned(),
            subnet.trunc().to_string(),
            "the stack's subnet",
        ),
        (
            "ports".to_owned(),
            format!(
                "{{ {} }}",
                ports
                    .iter()
                    .map(u16::to_string)
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
            "the apps' published ports",
        ),
        (
            "uplink".to_owned(),
            format!("\"{}\"", uplink.sidecar_link),
            "the uplink's name",
        ),
        (
            "bridge".to_owned(),
            format!("\"{}\"", bridge_name(stack)),
            "the bridge's name",
        ),
    ];
    // The one app of a stack may be called `app`, and `$app` is its address either way.
    let named = apps
        .iter()
        .filter(|app| apps.len() > 1 || app.name.as_str() != "app");
    all.extend(named.map(|app| {
        (
            app.name.to_string(),
            app.address.to_string(),
            "an app's address",
        )
    }));
    all.extend(
        file.vars
            .iter()
            .map(|(name, value)| (name.clone(), value.clone(), "a variable of [vars]")),
    );
    all
}

/// The names that follow a `$`, as nft's scanner takes them: an app's name may have a `-`.
fn used_variables(text: &str) -> BTreeSet<&str> {
    let mut pieces = text.split('$');
    pieces.next();
    let name = |piece: &'_ str| {
        piece
            .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/')))
            .unwrap_or(piece.len())
    };
    pieces.map(|piece| &piece[..name(piece)]).collect()
}

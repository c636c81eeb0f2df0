//! Whether each network namespace has in force what was planned for it: rules, bridge ports, neighbours, routes, settings.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use super::agent::{Agent, Answer, Ask, Join, SOMETHING_ELSE};
use super::network::Field;
use super::route::Route;
use super::target::{Findings, Target};
use super::{Outcome, Verdict};
use crate::config::Source;
use crate::firewall::{self, SIDECAR_TABLE, end_table};
use crate::part::namespaces::{self, Network};
use crate::plan::{AppPlan, Plan};

/// Whether this table is the one that a capture under way has put there, and as it is put there.
fn is_captures(agent: &Agent, here: &Result<Agent, String>, table: &str) -> bool {
    let (Ok(here), Ok(meant)) = (here, firewall::encode(&firewall::capture_rules())) else {
        return false;
    };
    let name = table.to_owned();
    let (Ok(Answer::Listing(found)), Ok(Answer::Listing(meant))) = (
        agent.ask(&Ask::List(name.clone())),
        here.ask(&Ask::Meant {
            batch: meant,
            table: name,
            link: String::new(),
        }),
    ) else {
        return false;
    };
    // One of another family has the same name, and no rule of it was compared.
    let namesake = found.other_tables.iter().any(|other| other == table);
    table == firewall::CAPTURE_TABLE && !namesake && found.differences(&meant).is_empty()
}

/// What is to be in force where the uplink ends.
fn planned_for_host(target: &Target) -> Result<firewall::Batch, firewall::EncodeError> {
    let plan = &target.status.plan;
    let rules = if target.status.gated {
        firewall::closed_host_rules(plan)
    } else {
        firewall::host_rules(plan)
    };
    match firewall::uplink_rules(plan) {
        Some(at_link) => firewall::alone(plan, &rules, &at_link),
        None => firewall::encode(&rules),
    }
}

/// Why there are no rules in an app.
pub const NOT_BY_LOOPBACK: &str = "its clients don't come to its loopback";

/// Where the plan is put in force, to be compared with what is.
struct Planned<'a> {
    plan: &'a Plan,
    /// In an empty network namespace. Who has joined another user namespace can't make one below it: its own id is not
    /// mapped there.
    here: Result<Agent, String>,
}

/// The rules in force, the sidecar's network and the host's.
pub fn rules<'a>(
    target: &Target,
    field: &Field<'_>,
    apps: impl Iterator<Item = (&'a AppPlan, &'a Result<Agent, String>)>,
    findings: &mut Findings,
) {
    let Field {
        plan,
        sidecar,
        host,
    } = *field;
    let planned = Planned {
        plan,
        here: Agent::join(&Join::Stay).map_err(|e| format!("fork: {e}")),
    };
    let batch = firewall::sidecar_batch(plan, &target.status.compiled);
    let outcome = planned.compare(sidecar, SIDECAR_TABLE, batch, true);
    findings.add("rules-sidecar", "sidecar", outcome);
    let outcome = planned.compare(host, &end_table(plan), planned_for_host(target), false);
    findings.add("rules-host", "host", outcome);
    for (app, net) in apps {
        let outcome = match firewall::app_rules(app) {
            Some(rules) => {
                planned.compare(net, firewall::APP_TABLE, firewall::encode(&rules), true)
            }
            None => Outcome::not_applicable(NOT_BY_LOOPBACK),
        };
        findings.add("rules-app", app.name.as_str(), outcome);
    }

    let wanted = [
        namespaces::SIDECAR.as_slice(),
        namespaces::COMMON.as_slice(),
    ];
    let outcome = sysctls(sidecar, &wanted.concat());
    findings.add("sidecar-sysctls", "sidecar", outcome);
    let network = Network::Sidecar {
        ipv6: plan.has_ipv6(),
    };
    let own = plan.bridge.address6.into_iter();
    let own = own.chain(plan.uplink.sidecar_address6);
    // Those of the apps that are handed their sockets are its own.
    let own = own.chain(plan.handed_apps().filter_map(|app| app.address6));
    let ipv6 = ipv6_as_planned(sidecar, network, own.collect());
    findings.add("sidecar-ipv6-off", "sidecar", ipv6);
    let neighbours = text(sidecar, "/proc/self/net/arp", |table| {
        permanent(plan, table)
    });
    findings.add("arp-static", "sidecar", neighbours);
    let ports = bridge_ports(field).unwrap_or_else(Outcome::unknown);
    findings.add("bridge-ports", "sidecar", ports);
    let routes = host_routes(field).unwrap_or_else(Outcome::unknown);
    findings.add("in-host-route", "host", routes);
}

impl Planned<'_> {
    /// Whether a table has the rules that `batch` loads and, if it has to be `alone`, whether there is no other table.
    fn compare(
        &self,
        agent: &Result<Agent, String>,
        table: &str,
        batch: Result<firewall::Batch, firewall::EncodeError>,
        alone: bool,
    ) -> Outcome {
        let work = || -> Result<Outcome, String> {
            let agent = agent.as_ref().map_err(Clone::clone)?;
            let batch = batch.map_err(|e| e.to_string())?;
            let (Answer::Listing(found), Answer::Listing(meant)) = (
                agent.ask(&Ask::List(table.to_owned()))?,
                self.here.as_ref().map_err(Clone::clone)?.ask(&Ask::Meant {
                    batch,
                    table: table.to_owned(),
                    link: self.plan.uplink.host_link.to_string(),
                })?,
            ) else {
                return Err(SOMETHING_ELSE.to_owned());
            };
            let mut wrong = found.differences(&meant);
            if alone {
                let others = found.other_tables.iter();
                wrong.extend(
                    others
                        .filter(|other| !is_captures(agent, &self.here, other))
                        .map(|other| format!("there is another table, {other}")),
                );
            }
            Ok(if wrong.is_empty() {
                Outcome::pass(format!("{} objects, as planned", found.objects.len()))
            } else {
                Outcome::fail(wrong.join("; "))
            })
        };
        work().unwrap_or_else(Outcome::unknown)
    }
}

/// Whether each app's link is a port of the bridge that is closed to others, and nothing else is one.
fn bridge_ports(field: &Field<'_>) -> Result<Outcome, String> {
    let sidecar = field.sidecar.as_ref().map_err(Clone::clone)?;
    let Answer::Ports(ports) = sidecar.ask(&Ask::Ports)? else {
        return Err(SOMETHING_ELSE.to_owned());
    };
    for app in field.plan.linked_apps() {
        let link = app.port_link.as_str();
        let Some(port) = ports.iter().find(|port| port.name == link) else {
            let fault = format!("{link} is no port of the bridge");
            return Ok(Outcome::fail(fault));
        };
        if !port.isolated || !port.locked || port.learning || port.flood {
            return Ok(Outcome::fail(format!("{port:?}")));
        }
    }
    Ok(Outcome::check(
        ports.len() == field.plan.linked_apps().count(),
        format!("{} ports", ports.len()),
    ))
}

/// Whether the host has a way to the sidecar's end of the uplink and, by that link, to nothing behind it.
fn host_routes(field: &Field<'_>) -> Result<Outcome, String> {
    let host = field.host.as_ref().map_err(Clone::clone)?;
    let Answer::Routes(routes) = host.ask(&Ask::Routes)? else {
        return Err(SOMETHING_ELSE.to_owned());
    };
    let link = field.plan.uplink.host_link.as_str();
    // The kernel's own for the address and its /31 are of the same link.
    let families = field.plan.families();
    let pair = |route: &Route| {
        families.iter().any(|of| {
            (route.to == of.host || route.to == of.sidecar) && route.prefix >= of.bits() - 1
        })
    };
    let strange: Vec<String> = routes
        .iter()
        .filter(|route| route.name == link && !pair(route) && !is_multicast(route))
        .map(|route| format!("{}/{} in table {}", route.to, route.prefix, route.table))
        .collect();
    Ok(match strange.as_slice() {
        [] => Outcome::pass("none but to the sidecar's end"),
        strange => Outcome::fail(strange.join(", ")),
    })
}
/// Whether each address that the sidecar sends to has its link-layer address for good, by its table of them
/// (proc_pid_net(5)).
fn permanent(plan: &Plan, table: &str) -> Outcome {
    /// `ATF_COM` and `ATF_PERM` (linux/if_arp.h).
    const FLAGS: &str = "0x6";
    let (uplink, bridge) = (&plan.uplink, plan.bridge.name.as_str());
    let wanted = plan
        .linked_apps()
        .map(|app| (app.address, app.mac, bridge))
        .chain([(
            uplink.host_address,
            uplink.host_mac,
            uplink.sidecar_link.as_str(),
        )]);
    for (address, mac, link) in wanted {
        let (address, mac) = (address.to_string(), mac.to_string());
        let lines = table.lines();
        let mut lines = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
        let line = lines.find(|fields| {
            fields.first() == Some(&address.as_str()) && fields.last() == Some(&link)
        });
        let Some(line) = line else {
            return Outcome::fail(format!("there is none for {address} on {link}"));
        };
        if line.get(2) != Some(&FLAGS) || line.get(3) != Some(&mac.as_str()) {
            return Outcome::fail(format!(
                "{address} is {} with flags {}",
                line.get(3).unwrap_or(&"?"),
                line.get(2).unwrap_or(&"?")
            ));
        }
    }
    Outcome::pass("permanent")
}

/// An app's network, from within it.
pub fn app_network(
    app: &AppPlan,
    plan: &Plan,
    net: &Result<Agent, String>,
    findings: &mut Findings,
) {
    let name = app.name.as_str();
    let routes = || -> Result<Outcome, String> {
        let Answer::Routes(routes) = net.as_ref().map_err(Clone::clone)?.ask(&Ask::Routes)? else {
            return Err(SOMETHING_ELSE.to_owned());
        };
        let linked = plan.linked(app).flat_map(AppPlan::known_at);
        let granted: BTreeSet<(IpAddr, u8)> = app
            .routes()
            .into_iter()
            .chain(linked.map(IpNet::from))
            .map(|net: IpNet| (net.network(), net.prefix_len()))
            .collect();
        let strange: Vec<String> = routes
            .iter()
            .filter(|route| {
                let host = route.prefix == if route.to.is_ipv6() { 128 } else { 32 };
                // IPv6 has a route to ::1 in the main table as well.
                let own = route.name == "lo" && (route.table == 255 || route.to.is_loopback())
                    || app.addresses().any(|own| route.to == own) && host;
                let families = plan.families();
                let sidecar = families.iter().any(|of| route.to == of.bridge) && host;
                let everywhere =
                    route.to.is_ipv6() && route.prefix == 0 && app.source == Source::Client;
                let by_plan = granted.contains(&(route.to, route.prefix)) && route.table != 255;
                // The kernel's own broadcast routes of the local table lead nowhere else.
                let kernels = route.table == 255 && route.kind == 3 || is_multicast(route);
                !(own || sidecar || everywhere || by_plan || kernels)
            })
            .map(|route| format!("{}/{} over {}", route.to, route.prefix, route.name))
            .collect();
        Ok(Outcome::check(
            strange.is_empty(),
            if strange.is_empty() {
                match granted.len() {
                    0 => format!("{} only", plan.bridge.address),
                    more => format!(
                        "{}, and by it the {more} that are planned",
                        plan.bridge.address
                    ),
                }
            } else {
                strange.join(", ")
            },
        ))
    };
    findings.add(
        "app-routes",
        name,
        routes().unwrap_or_else(Outcome::unknown),
    );
    let network = Network::App {
        ipv6: plan.has_ipv6() && !app.via_socket,
    };
    let own = app.address6.filter(|_| !app.via_socket);
    let own = own.into_iter().collect();
    findings.add("app-ipv6-off", name, ipv6_as_planned(net, network, own));
    findings.add("app-forwarding", name, sysctls(net, &namespaces::APP));
    let settings = namespaces::of_an_app(app.source == Source::Localhost);
    findings.add("app-sysctls", name, sysctls(net, &settings));
}

/// The kernel's own for a link's multicast (ff00::/8), in the local table, which leads to that link only.
fn is_multicast(route: &Route) -> bool {
    route.table == 255 && route.kind == 5 && route.to.is_multicast()
}

fn text(agent: &Result<Agent, String>, path: &str, look: impl FnOnce(&str) -> Outcome) -> Outcome {
    match texts(agent, vec![path.to_owned()]) {
        Ok(texts) => match texts.into_iter().flatten().next() {
            Some(text) => look(&text),
            None => Outcome::unknown(format!("{path} can't be read")),
        },
        Err(e) => Outcome::unknown(e),
    }
}

/// The contents of files, read where the agent is; what can't be read there is `None`.
pub(super) fn texts(
    agent: &Result<Agent, String>,
    paths: Vec<String>,
) -> Result<Vec<Option<String>>, String> {
    match agent
        .as_ref()
        .map_err(Clone::clone)?
        .ask(&Ask::Read(paths))?
    {
        Answer::Texts(texts) => Ok(texts),
        _ => Err(SOMETHING_ELSE.to_owned()),
    }
}

/// Settings below /proc/sys/net, without IPv6's, which have a probe of their own.
fn sysctls(agent: &Result<Agent, String>, wanted: &[(&str, &str)]) -> Outcome {
    let without: Vec<(&str, &str)> = wanted
        .iter()
        .filter(|(name, _)| !name.starts_with("ipv6/"))
        .copied()
        .collect();
    settings(agent, &without)
}

/// Settings below /proc/sys/net.
fn settings(agent: &Result<Agent, String>, wanted: &[(&str, &str)]) -> Outcome {
    let paths = wanted
        .iter()
        .map(|(name, _)| format!("/proc/sys/net/{name}"))
        .collect();
    match texts(agent, paths) {
        Err(e) => Outcome::unknown(e),
        Ok(found) => {
            let wrong: Vec<String> = wanted
                .iter()
                .zip(found)
                .filter_map(|((name, value), found)| match found {
                    Some(found) if found.trim() == *value => None,
                    Some(found) => Some(format!("{name} is {}", found.trim())),
                    // A kernel without br_netfilter.
                    None if !name.starts_with("ipv4/") => None,
                    None => Some(format!("{name} can't be read")),
                })
                .collect();
            let number = wanted.len();
            Outcome::check(
                wrong.is_empty(),
                if wrong.is_empty() {
                    format!("{number} as set")
                } else {
                    wrong.join(", ")
                },
            )
        }
    }
}

/// IPv6 is off as a whole; or, where the stack has a prefix, has the planned addresses, `own`, and every setting as
/// planned.
fn ipv6_as_planned(
    agent: &Result<Agent, String>,
    network: Network,
    own: BTreeSet<Ipv6Addr>,
) -> Outcome {
    if own.is_empty() {
        return ipv6_off(agent);
    }
    let addresses = text(agent, "/proc/self/net/if_inet6", |table| {
        // Thirty-two digits without colons, and much else (net/ipv6/addrconf.c, if6_seq_show).
        let found: Option<BTreeSet<Ipv6Addr>> = table
            .lines()
            .map(|line| {
                let digits = line.split_whitespace().next()?;
                u128::from_str_radix(digits, 16).ok().map(Ipv6Addr::from)
            })
            .collect();
        let Some(mut found) = found else {
            return Outcome::unknown("the addresses can't be read");
        };
        found.remove(&Ipv6Addr::LOCALHOST);
        Outcome::check(found == own, format!("the addresses {found:?}"))
    });
    if addresses.verdict != Verdict::Pass {
        return addresses;
    }
    let wanted = namespaces::sysctls(network).filter(|(name, _)| name.starts_with("ipv6/"));
    let settings = settings(agent, &wanted.collect::<Vec<_>>());
    if settings.verdict == Verdict::Pass {
        addresses
    } else {
        settings
    }
}

fn ipv6_off(agent: &Result<Agent, String>) -> Outcome {
    let paths = [
        "/proc/sys/net/ipv6/conf/all/disable_ipv6",
        "/proc/self/net/if_inet6",
    ];
    match texts(agent, paths.map(str::to_owned).to_vec()).as_deref() {
        Err(e) => Outcome::unknown(e.clone()),
        Ok([None, None]) => Outcome::not_applicable("this kernel has no IPv6"),
        Ok([Some(off), addresses]) => {
            let addresses = addresses.as_deref().unwrap_or_default().lines().count();
            Outcome::check(
                off.trim() == "1" && addresses == 0,
                format!("disable_ipv6 is {}, {addresses} addresses", off.trim()),
            )
        }
        Ok(_) => Outcome::unknown("disable_ipv6 can't be read"),
    }
}

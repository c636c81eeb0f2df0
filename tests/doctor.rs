//! `lrpns doctor` finds out what a machine can do by doing it, names what is in the way, and its remedies work.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::Value;
use support::lab::{LAB, Lab, describe};
use support::look;

/// What `doctor --json` has found, and its exit code.
fn doctor(lab: &Lab) -> (Vec<Value>, i32) {
    let output = lab.lrpns(&["doctor", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", describe(&output)));
    assert_eq!(report["version"], 1);
    assert_eq!(report["ok"], output.status.success(), "{report:#}");
    let findings = report["findings"].as_array().unwrap().clone();
    (findings, output.status.code().unwrap())
}

fn find<'a>(findings: &'a [Value], id: &str) -> &'a Value {
    findings
        .iter()
        .find(|finding| finding["id"] == id)
        .unwrap_or_else(|| panic!("{id}: {findings:#?}"))
}

#[test]
fn a_plain_machine_is_well_and_is_left_as_it_was() {
    if !look::machine() {
        return;
    }
    let lab = Lab::forwarding();
    let before = lab.traces();
    let (findings, code) = doctor(&lab);
    assert_eq!(code, 0, "{findings:#?}");
    for id in ["kernel", "stack", "forwarding", "firewall", "ports", "ids"] {
        assert_eq!(find(&findings, id)["status"], "ok", "{findings:#?}");
    }
    lab.assert_as(&before);
    let text = lab.lrpns_ok(&["doctor"]);
    assert!(text.contains("stacks run here as root"), "{text}");
    assert!(!text.contains('\x1b'), "{text}");
}

#[test]
fn what_keeps_a_stack_from_coming_up_is_a_problem_with_its_cause() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    lab.ok(&["mount", "-t", "tmpfs", "-o", "ro", "none", "/run"]);
    let (findings, code) = doctor(&lab);
    assert_eq!(code, 1);
    let stack = find(&findings, "stack");
    assert_eq!(stack["status"], "problem");
    let what = stack["what"].as_str().unwrap();
    assert!(what.contains("Read-only file system"), "{what}");
    // The rest is looked at all the same.
    assert_eq!(find(&findings, "kernel")["status"], "ok");
}

#[test]
fn a_proc_that_is_mounted_over_is_noted() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    lab.ok(&["mount", "--bind", "/dev/null", "/proc/version"]);
    let (findings, code) = doctor(&lab);
    assert_eq!(code, 0, "{findings:#?}");
    let proc = find(&findings, "proc");
    assert_eq!(proc["status"], "note");
    assert!(proc["what"].as_str().unwrap().contains("/proc/version"));
}

/// A firewall that is not ours, as a script of root, and whose the doctor says it is.
const FIREWALLS: [(&str, &str); 5] = [
    (
        "nft 'add table inet mine; add chain inet mine in { type filter hook input priority 5; policy drop; }; \
         add rule inet mine in iif lo accept; add rule inet mine in ct state established accept'",
        "nftables: table inet mine, chain in has policy drop",
    ),
    (
        "iptables-nft -P INPUT DROP; iptables-nft -A INPUT -i lo -j ACCEPT; \
         iptables-nft -A INPUT -m conntrack --ctstate ESTABLISHED -j ACCEPT",
        "iptables: table ip filter, chain INPUT has policy drop",
    ),
    (
        "nft 'add table ip6 filter; add chain ip6 filter INPUT { type filter hook input priority 0; policy drop; }; \
         add rule ip6 filter INPUT iif lo accept'",
        "ip6tables: table ip6 filter, chain INPUT has policy drop",
    ),
    // As ufw and firewalld name what they make.
    (
        "iptables-nft -P INPUT DROP; iptables-nft -N ufw-before-input; iptables-nft -A INPUT -j ufw-before-input; \
         iptables-nft -A ufw-before-input -i lo -j ACCEPT; \
         iptables-nft -A ufw-before-input -m conntrack --ctstate ESTABLISHED -j ACCEPT",
        "ufw: table ip filter, chain INPUT has policy drop",
    ),
    (
        "nft 'add table inet firewalld; add chain inet firewalld filter_INPUT { type filter hook input priority 10; policy accept; }; \
         add rule inet firewalld filter_INPUT iif lo accept; add rule inet firewalld filter_INPUT ct state established accept; add rule inet firewalld filter_INPUT reject'",
        "firewalld: table inet firewalld, chain filter_INPUT has 3 rules",
    ),
];

#[test]
fn a_firewall_of_others_is_named_with_the_line_that_opens_a_port() {
    if !look::machine_with(&["iptables-nft"]) {
        return;
    }
    for (script, named) in FIREWALLS {
        let lab = Lab::new();
        lab.ok(&["sh", "-ec", script]);
        let (findings, code) = doctor(&lab);
        assert_eq!(code, 0, "{findings:#?}");
        let firewall = find(&findings, "firewall");
        assert_eq!(firewall["status"], "note");
        assert_eq!(firewall["what"], named);
        let remedy = firewall["remedy"].as_str().unwrap().replace("PORT", "5000");
        // ufw, firewalld and a firewall of the other family have programs or clients that are not here.
        if !named.starts_with("nftables") && !named.starts_with("iptables") {
            continue;
        }
        lab.lrpns_ok(&["up", "-d", "--demo"]);
        let url = format!("http://{LAB}:5000/");
        assert!(
            lab.client_get(&url).is_err(),
            "{named}: the firewall lets everybody in"
        );
        let remedy = remedy.replace("iptables ", "iptables-nft ");
        lab.ok(&["sh", "-ec", &remedy]);
        assert_eq!(lab.client_get(&url).unwrap(), "Hello world!", "{remedy}");
    }
}

#[test]
fn an_ordinary_user_hears_what_an_ordinary_user_lacks() {
    if !look::machine_with(&["setpriv"]) {
        return;
    }
    let lab = Lab::new();
    let user = support::user::User::new(&lab, 1000);
    let report: Value = serde_json::from_str(&user.lrpns_ok(&["doctor", "--json"])).unwrap();
    let findings = report["findings"].as_array().unwrap();
    assert_eq!(report["mode"], "rootless");
    assert_eq!(find(findings, "stack")["status"], "ok", "{findings:#?}");
    let ports = find(findings, "ports");
    assert_eq!(ports["status"], "note");
    assert!(
        ports["remedy"]
            .as_str()
            .unwrap()
            .contains("ip_unprivileged_port_start")
    );
}

//! `lrpns trace` names who dropped a packet: table, chain and rule, whoever's they are; and what is nobody's rule.
#![allow(clippy::unwrap_used)]

mod support;
use std::io::{BufRead, BufReader, Read};

use serde_json::Value;
use support::lab::{CLIENT, Lab};
use support::look;

/// A lab in which the stack `web` runs, its port 5000 published by `via`; `sidecar` are lines for its sidecar.
fn web(lab: Lab, via: &str, sidecar: &str) -> Lab {
    let file = look::telling(
        "web",
        &look::token(),
        "0.0.0.0:5000:5000",
        &format!("via = \"{via}\""),
    );
    look::up(
        &lab,
        &file.replace("[sidecar]\n", &format!("[sidecar]\n{sidecar}\n")),
    );
    lab
}

/// Runs `lrpns trace`, and `attempt` when it waits; what it prints, and its exit code.
fn trace(lab: &Lab, args: &[&str], attempt: impl FnOnce()) -> (Value, i32) {
    let all = [&["trace"], args, &["--json"]].concat();
    let mut child = lab.spawn_lrpns(&all);
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(line.contains("try now"), "{line}");
    attempt();
    let mut text = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    let code = child.wait().unwrap().code().unwrap();
    (
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")),
        code,
    )
}

/// The client knocks at a port of the lab.
fn knock(lab: &Lab, port: u16) {
    let url = format!("http://10.99.0.1:{port}/");
    drop(lab.client(&["curl", "-s", "--max-time", "1", &url]));
}

fn sentence(answer: &Value) -> &str {
    answer["sentence"].as_str().unwrap()
}

/// No table of `trace` is left, in the host and in the sidecar.
fn assert_gone(lab: &Lab) {
    let sidecar = look::init(&lab.status("web"), "sidecar");
    let all = lab.ok(&["nft", "list", "tables"])
        + &look::beside(lab, sidecar, &["nft", "list", "tables"]);
    assert!(!all.contains("trace"), "{all}");
}

#[test]
fn a_packet_that_arrives_is_followed_to_the_app_by_both_ways() {
    if !look::machine() {
        return;
    }
    for (via, source) in [
        ("dnat", ""),
        ("relay", ""),
        ("relay", "client"),
        ("dnat", "client"),
    ] {
        let lab = Lab::forwarding();
        let more = match source {
            "" => format!("via = \"{via}\""),
            source => format!("via = \"{via}\"\nsource = \"{source}\""),
        };
        let file = look::telling("web", &look::token(), "0.0.0.0:5000:5000", &more);
        look::up(&lab, &file);
        let (answer, code) = trace(&lab, &[CLIENT, "5000", "web"], || knock(&lab, 5000));
        assert_eq!(
            (answer["outcome"].as_str(), code),
            (Some("arrives"), 0),
            "{via}: {answer}"
        );
        assert!(
            sentence(&answer).contains("arrives at app port 5000")
                && sentence(&answer)
                    .contains("table inet lrpns, chain forward, rule `accept-published`"),
            "{via}: {answer}"
        );
        let by = &answer["by"];
        assert_eq!(by["namespace"], "sidecar");
        // What was met on the way, in order, in both namespaces.
        let evidence = answer["evidence"].as_array().unwrap();
        let met: Vec<_> = evidence
            .iter()
            .map(|step| {
                format!(
                    "{} {}",
                    step["namespace"].as_str().unwrap(),
                    step["rule"].as_str().unwrap_or("-")
                )
            })
            .collect();
        let position = |what: &str| met.iter().position(|it| it == what);
        assert!(
            position("sidecar accept-uplink") < position("sidecar accept-published"),
            "{met:?}"
        );
        assert!(position("sidecar accept-uplink").is_some(), "{met:?}");
        assert_eq!(
            position("host dnat-any").is_some(),
            via == "dnat",
            "{met:?}"
        );
        assert_gone(&lab);
    }
}

#[test]
fn a_drop_of_our_own_guard_is_named() {
    if !look::machine() {
        return;
    }
    // A client of the stack's own subnet has no business on the uplink.
    let lab = Lab::forwarding();
    lab.ok(&[
        "ip",
        "-n",
        "client",
        "addr",
        "add",
        "172.18.0.99/32",
        "dev",
        "eth0",
    ]);
    lab.ok(&["ip", "route", "add", "172.18.0.99/32", "dev", "ext0"]);
    let lab = web(lab, "dnat", "");
    let (answer, code) = trace(&lab, &["172.18.0.99", "5000", "web"], || {
        let url = "http://10.99.0.1:5000/";
        drop(lab.client(&[
            "curl",
            "-s",
            "--interface",
            "172.18.0.99",
            "--max-time",
            "1",
            url,
        ]));
    });
    assert_eq!(
        (answer["outcome"].as_str(), code),
        (Some("dropped"), 1),
        "{answer}"
    );
    assert_eq!(
        sentence(&answer),
        "dropped in the sidecar by table inet lrpns, chain guard, rule `drop-uplink-spoof`"
    );
    assert_gone(&lab);
}

#[test]
fn a_rule_of_the_users_is_named_with_and_without_a_comment() {
    if !look::machine() {
        return;
    }
    for (rule, named) in [
        (
            "ip saddr 10.99.0.2 drop comment \"drop-bad\"",
            "rule `drop-bad`",
        ),
        ("ip saddr 10.99.0.2 drop", "rule `ip saddr 10.99.0.2 drop`"),
    ] {
        let lab = Lab::forwarding();
        lab.write("extra.nft", &format!("chain before {{\n{rule}\n}}\n"));
        let lab = web(lab, "dnat", "rules = \"extra.nft\"");
        let (answer, _) = trace(&lab, &[CLIENT, "5000", "web"], || knock(&lab, 5000));
        assert_eq!(
            sentence(&answer),
            format!("dropped in the sidecar by table inet lrpns, chain before, {named}")
        );
    }
}

#[test]
fn a_foreign_rule_in_the_host_is_named_by_its_text() {
    if !look::machine() {
        return;
    }
    let lab = web(Lab::new(), "relay", "");
    lab.ok(&[
        "nft",
        "add table inet mine; add chain inet mine in { type filter hook input priority 5; }; \
        add rule inet mine in tcp dport 5000 counter drop",
    ]);
    let (answer, code) = trace(&lab, &[CLIENT, "5000", "web"], || knock(&lab, 5000));
    assert_eq!(
        (answer["outcome"].as_str(), code),
        (Some("dropped"), 1),
        "{answer}"
    );
    assert!(
        sentence(&answer).starts_with(
            "dropped in the host by table inet mine, chain in, rule `tcp dport 5000 counter packets"
        ),
        "{answer}"
    );
    assert_eq!(answer["by"]["chain"], "in");

    // Without nft the place is known all the same.
    let handle = answer["by"]["handle"].as_u64().unwrap();
    let script = format!(
        "mount --bind /dev/null $(readlink -f $(which nft)) && exec {} trace {CLIENT} 5000 web --json",
        look::program_under_test()
    );
    let mut child = lab.spawn(&["unshare", "--mount", "sh", "-c", &script]);
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    knock(&lab, 5000);
    let mut text = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    child.wait().unwrap();
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        sentence(&answer),
        format!("dropped in the host by table inet mine, chain in, the rule with handle {handle}")
    );
}

#[test]
fn a_policy_and_a_rule_of_iptables_are_named() {
    if !look::machine_with(&["iptables-nft"]) {
        return;
    }
    let lab = web(Lab::forwarding(), "dnat", "");
    lab.ok(&["iptables-nft", "-P", "FORWARD", "DROP"]);
    let (answer, _) = trace(&lab, &[CLIENT, "5000", "web"], || knock(&lab, 5000));
    assert_eq!(
        sentence(&answer),
        "dropped in the host by table ip filter, chain FORWARD, its policy"
    );
    lab.ok(&["iptables-nft", "-P", "FORWARD", "ACCEPT"]);
    lab.ok(&["iptables-nft", "-A", "FORWARD", "-s", CLIENT, "-j", "DROP"]);
    let (answer, _) = trace(&lab, &[CLIENT, "5000", "web"], || knock(&lab, 5000));
    assert!(
        sentence(&answer).starts_with(
            "dropped in the host by table ip filter, chain FORWARD, rule `ip saddr 10.99.0.2"
        ),
        "{answer}"
    );
}

#[test]
fn what_no_rule_has_done_is_told_too() {
    if !look::machine() {
        return;
    }
    let lab = web(Lab::forwarding(), "dnat", "");
    let (answer, code) = trace(&lab, &[CLIENT, "5001", "web"], || knock(&lab, 5001));
    assert_eq!(
        (answer["outcome"].as_str(), code),
        (Some("lost"), 1),
        "{answer}"
    );
    assert_eq!(
        sentence(&answer),
        "lost in the host: web doesn't publish port 5001; its ports are 5000"
    );

    let (answer, code) = trace(&lab, &["192.0.2.9", "5000", "web", "--within", "1"], || {});
    assert_eq!(
        (answer["outcome"].as_str(), code),
        (Some("not-seen"), 1),
        "{answer}"
    );
    assert_eq!(
        sentence(&answer),
        "no packet of 192.0.2.9 to port 5000 reached the host within 1 s"
    );

    lab.ok(&["sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_forward"]);
    let (answer, _) = trace(&lab, &[CLIENT, "5000", "web"], || knock(&lab, 5000));
    assert_eq!(
        sentence(&answer),
        "lost in the host: it doesn't forward any more, net.ipv4.ip_forward is 0"
    );
    lab.ok(&["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
    assert_gone(&lab);
}

#[test]
fn an_app_that_listens_no_more_is_found() {
    if !look::machine() {
        return;
    }
    let lab = Lab::forwarding();
    let code = "import socket, time\ns = socket.create_server((\"0.0.0.0\", 5000))\ns.accept()[0].close()\ns.accept()[0].close()\ns.close()\ntime.sleep(1000)";
    let file = look::telling("web", "x", "0.0.0.0:5000:5000", "via = \"dnat\"");
    let from = file.find("command = ").unwrap();
    let to = from + file[from..].find('\n').unwrap();
    let command = format!("command = {}", look::toml_list(&[look::PYTHON, "-c", code]));
    look::up(&lab, &file.replace(&file[from..to], &command));
    knock(&lab, 5000);
    let listens = || {
        let app = look::pid(&lab.status("web"), "app");
        lab.proc(app, "net/tcp").contains(" 0A ")
    };
    look::eventually("it listens no more", &false, listens);
    let (answer, _) = trace(&lab, &[CLIENT, "5000", "web"], || knock(&lab, 5000));
    assert_eq!(answer["outcome"], "lost", "{answer}");
    assert!(
        sentence(&answer).contains("nobody listens there: app port 5000"),
        "{answer}"
    );
}

#[test]
fn udp_is_traced_when_it_is_asked_for() {
    if !look::machine() {
        return;
    }
    let lab = web(Lab::new(), "relay", "");
    lab.ok(&[
        "nft",
        "add table inet mine; add chain inet mine in { type filter hook input priority 5; }; \
        add rule inet mine in udp dport 5353 drop",
    ]);
    let throw = || {
        let sent = look::attack_from_client(&lab, "say([throw('10.99.0.1', 5353)])");
        assert_eq!(sent, serde_json::json!(["OK"]));
    };
    let (answer, _) = trace(&lab, &[CLIENT, "5353", "web", "--udp"], throw);
    assert_eq!(answer["protocol"], "udp");
    assert_eq!(
        sentence(&answer),
        "dropped in the host by table inet mine, chain in, rule `udp dport 5353 drop`"
    );
}

#[test]
fn a_trace_that_is_killed_leaves_no_table() {
    if !look::machine() {
        return;
    }
    let lab = web(Lab::forwarding(), "dnat", "");
    let mut child = lab.spawn_lrpns(&["trace", CLIENT, "5000", "web"]);
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let tables = lab.ok(&["nft", "list", "tables"]);
    assert!(tables.contains("lrpns-trace-"), "{tables}");
    lab.ok(&["pkill", "-KILL", "-f", "lrpns trace"]);
    child.wait().unwrap();
    assert_gone(&lab);
}

//! `lrpns trace` names who dropped a packet: table, chain and rule, whoever's they are; and what is nobody's rule.
#![allow(clippy::unwrap_used)]

mod support;
use std::io::{BufRead, BufReader, Read};

use serde_json::Value;
use support::lab::{CLIENT, CLIENT6, LAB6, Lab};
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

/// The client asks from one of its addresses, or one that is not its own, and waits for no longer than a second.
fn ask_as(lab: &Lab, address: &str, url: &str) {
    drop(lab.client(&["curl", "-s", "--interface", address, "--max-time", "1", url]));
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
        ask_as(&lab, "172.18.0.99", "http://10.99.0.1:5000/");
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
fn a_foreign_rule_that_sends_a_packet_elsewhere_is_named() {
    if !look::machine() {
        return;
    }
    for via in ["dnat", "relay"] {
        for how in ["redirect to :1234", "dnat to 10.99.0.77"] {
            let lab = web(Lab::forwarding(), via, "");
            lab.ok(&[
                "nft",
                &format!(
                    "add table ip mine; add chain ip mine pre {{ type nat hook prerouting priority -150; }}; \
                     add rule ip mine pre tcp dport 5000 {how}"
                ),
            ]);
            let (answer, code) = trace(&lab, &[CLIENT, "5000", "web"], || knock(&lab, 5000));
            assert_eq!(
                (answer["outcome"].as_str(), code),
                (Some("lost"), 1),
                "{answer}"
            );
            assert_eq!(
                sentence(&answer),
                format!(
                    "lost in the host: table ip mine, chain pre, rule `tcp dport 5000 {how}` sends it elsewhere, before \
                     lrpns can"
                )
            );
            assert_eq!(answer["by"]["table"], "mine");
        }
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
        support::lab::lrpns()
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
    look::up(&lab, &look::with_program(&file, code));
    knock(&lab, 5000);
    let listens = || {
        let app = look::pid(&lab.status("web"), "app");
        lab.proc(app, "net/tcp").contains(" 0A ")
    };
    look::eventually("it listens no more", &false, listens);
    let (answer, _) = trace(&lab, &[CLIENT, "5000", "web"], || knock(&lab, 5000));
    assert_eq!(answer["outcome"], "refused", "{answer}");
    assert_eq!(
        sentence(&answer),
        "reaches app port 5000, where nobody listens: its kernel answers with a reset; accepted in the sidecar by table inet \
         lrpns, chain forward, rule `accept-published`"
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

#[test]
fn it_holds_nothing_while_it_waits() {
    if !look::machine() {
        return;
    }
    let lab = web(Lab::forwarding(), "dnat", "");
    let mut child = lab.spawn_lrpns(&["trace", CLIENT, "5000", "web", "--json"]);
    let mut line = String::new();
    BufReader::new(child.stderr.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let found = lab.ok(&["pgrep", "-f", "^[^ ]*lrpns trace"]);
    // One process, which is no opener that has stayed.
    let pid: i64 = found.trim().parse().unwrap();
    let held = look::capabilities(&lab, pid);
    assert!(held.iter().all(|set| set == "0000000000000000"), "{held:?}");
    assert_eq!(look::status_line(&lab, pid, "NoNewPrivs"), "1");
    // Nor a way back to privileges by a descriptor: sockets, pipes and what it was started with.
    for (number, target) in look::links(&lab, pid, "fd") {
        let harmless = ["socket:", "pipe:", "/dev/null"];
        assert!(
            harmless.iter().any(|kind| target.starts_with(kind)),
            "{number}: {target}"
        );
    }
    // And it works all the same, with the names of rules.
    knock(&lab, 5000);
    let mut text = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(answer["by"]["rule"], "accept-published");
    child.wait().unwrap();
    assert_gone(&lab);
}

/// A lab with a stack of both address families, whose app answers on both; `more` are lines for its app.
fn both(lab: Lab, more: &str) -> Lab {
    let lab = lab.with_ipv6();
    let telling = look::TELLING
        .replace("\"0.0.0.0\", port", "\"::\", port")
        .replace(
            "def serve(port):",
            "class Both(http.server.ThreadingHTTPServer):\n    address_family = __import__('socket').AF_INET6\n\
             def serve(port):",
        )
        .replace("return http.server.ThreadingHTTPServer", "return Both");
    let file = format!(
        "name = \"web\"\n[network]\nipv6 = \"fd00:18::/64\"\n[app]\nrootfs = \"host\"\ncommand = {}\n\
         publish = [\"0.0.0.0:5000:5000\", \"[::]:5000:5000\"]\nlisten = [6000]\n{more}\n",
        look::toml_list(&[look::PYTHON, "-c", &telling]),
    );
    look::up(&lab, &file);
    lab
}

/// The client knocks at port 5000 by IPv6.
fn knock6(lab: &Lab) {
    let url = format!("http://[{LAB6}]:5000/");
    drop(lab.client(&["curl", "-s", "--max-time", "1", &url]));
}

#[test]
fn ipv6_is_followed_to_the_app_by_every_way() {
    if !look::machine() {
        return;
    }
    for (more, spaces) in [
        ("via = \"dnat\"", &["host", "sidecar"][..]),
        ("via = \"relay\"", &["sidecar"]),
        ("via = \"relay\"\nsource = \"client\"", &["sidecar"]),
    ] {
        let lab = both(Lab::forwarding(), more);
        let (answer, code) = trace(&lab, &[CLIENT6, "5000", "web"], || knock6(&lab));
        assert_eq!(
            (answer["outcome"].as_str(), code),
            (Some("arrives"), 0),
            "{more}: {answer}"
        );
        assert_eq!(
            sentence(&answer),
            "arrives at app port 5000: accepted in the sidecar by table inet lrpns, chain forward, rule \
             `accept-published6`"
        );
        let evidence = answer["evidence"].as_array().unwrap();
        for space in spaces {
            assert!(
                evidence.iter().any(|step| step["namespace"] == *space),
                "{more}: {answer}"
            );
        }
        let dials = evidence.iter().any(|step| step["packet"] == "dial");
        assert_eq!(dials, more.contains("relay"), "{answer}");
        assert_gone(&lab);
    }
}

#[test]
fn drops_of_ipv6_are_named_wherever_they_are() {
    if !look::machine() {
        return;
    }
    let lab = both(Lab::forwarding(), "via = \"dnat\"");
    lab.ok(&[
        "nft",
        "add table ip6 mine; add chain ip6 mine way { type filter hook forward priority 5; }; \
         add rule ip6 mine way ip6 saddr 2001:db8::/64 drop",
    ]);
    let (answer, _) = trace(&lab, &[CLIENT6, "5000", "web"], || knock6(&lab));
    assert_eq!(
        sentence(&answer),
        "dropped in the host by table ip6 mine, chain way, rule `ip6 saddr 2001:db8::/64 drop`"
    );
    lab.ok(&["nft", "delete table ip6 mine"]);

    // IPv4 beside it is another matter.
    let (answer, _) = trace(&lab, &[CLIENT, "5000", "web"], || knock(&lab, 5000));
    assert_eq!(answer["outcome"], "arrives", "{answer}");

    lab.ok(&["sysctl", "-q", "-w", "net.ipv6.conf.all.forwarding=0"]);
    let (answer, _) = trace(&lab, &[CLIENT6, "5000", "web"], || knock6(&lab));
    assert_eq!(
        sentence(&answer),
        "lost in the host: it doesn't forward any more, net.ipv6.conf.all.forwarding is 0"
    );
    lab.ok(&["sysctl", "-q", "-w", "net.ipv6.conf.all.forwarding=1"]);

    // Without a route to the sidecar's end of the uplink.
    let status = lab.status("web");
    let entry = look::planned(&status, "/uplink/sidecar_address6").to_owned();
    lab.ok(&["ip", "-6", "route", "del", &format!("{entry}/128")]);
    let (answer, _) = trace(&lab, &[CLIENT6, "5000", "web"], || knock6(&lab));
    assert!(
        sentence(&answer).starts_with("lost in the host: there is no route for it from ext0 to"),
        "{answer}"
    );
}

#[test]
fn the_answers_way_back_is_looked_at_too() {
    if !look::machine() {
        return;
    }
    let lab = both(Lab::forwarding(), "via = \"dnat\"");
    let drop = |hook: &str, rule: &str| {
        let table = format!(
            "add table inet mine; flush table inet mine; add chain inet mine back {{ type filter hook {hook} priority 5; }}; \
             add rule inet mine back {rule}"
        );
        lab.ok(&["nft", &table]);
    };
    drop("forward", "tcp flags & (syn | ack) == syn | ack drop");
    for (client, knock) in [
        (CLIENT, &(|| knock(&lab, 5000)) as &dyn Fn()),
        (CLIENT6, &|| knock6(&lab)),
    ] {
        let (answer, code) = trace(&lab, &[client, "5000", "web"], knock);
        assert_eq!(
            (answer["outcome"].as_str(), code),
            (Some("answer-dropped"), 1),
            "{answer}"
        );
        assert!(
            sentence(&answer).starts_with(
                "arrives at app port 5000, but its answer is dropped in the host by table inet mine, chain back, rule `tcp flags"
            ),
            "{answer}"
        );
        assert_eq!(answer["by"]["packet"], "answer");
    }
}

#[test]
fn what_the_relay_refuses_is_said_to_be_its_doing() {
    if !look::machine() {
        return;
    }
    // Somebody who is let in comes right after: his connection is not taken for the client's.
    let lab = both(
        Lab::new(),
        "via = \"relay\"\nallow = [\"10.99.0.77/32\", \"2001:db8::77/128\"]",
    );
    for address in ["10.99.0.77/32", "2001:db8::77/128"] {
        let output = lab.client(&["ip", "address", "add", address, "dev", "eth0", "nodad"]);
        assert!(output.status.success());
    }
    for (client, friend, url, allow) in [
        (
            CLIENT,
            "10.99.0.77",
            "http://10.99.0.1:5000/".to_owned(),
            "10.99.0.77/32, 2001:db8::77/128",
        ),
        (
            CLIENT6,
            "2001:db8::77",
            format!("http://[{LAB6}]:5000/"),
            "10.99.0.77/32, 2001:db8::77/128",
        ),
    ] {
        let (answer, code) = trace(&lab, &[client, "5000", "web"], || {
            for from in [client, friend] {
                ask_as(&lab, from, &url);
            }
        });
        assert_eq!(
            (answer["outcome"].as_str(), code),
            (Some("refused"), 1),
            "{answer}"
        );
        assert_eq!(
            sentence(&answer),
            format!(
                "refused by the relay: {client} is in no range of `allow` of app, which has {allow}"
            )
        );
        let (answer, _) = trace(&lab, &[friend, "5000", "web"], || {
            ask_as(&lab, friend, &url);
        });
        assert_eq!(answer["outcome"], "arrives", "{answer}");
    }

    let lab = both(Lab::new(), "via = \"relay\"\nrate = \"1/hour per client\"");
    for (client, knock) in [
        (CLIENT, &(|| knock(&lab, 5000)) as &dyn Fn()),
        (CLIENT6, &|| knock6(&lab)),
    ] {
        let (answer, _) = trace(&lab, &[client, "5000", "web"], knock);
        assert_eq!(answer["outcome"], "arrives", "{answer}");
        let (answer, _) = trace(&lab, &[client, "5000", "web"], knock);
        assert_eq!(
            sentence(&answer),
            "refused by the relay: `rate` of app, 1/hour per client, lets nobody more in at the moment"
        );
    }
}

#[test]
fn a_rule_in_the_relays_own_namespace_is_found() {
    if !look::machine() {
        return;
    }
    let lab = both(Lab::new(), "via = \"relay\"\nsource = \"client\"");
    let relay = look::init(&lab.status("web"), "relay");
    look::beside(
        &lab,
        relay,
        &[
            "nft",
            "add table inet mine; add chain inet mine out { type filter hook output priority 5; }; \
             add rule inet mine out tcp flags syn drop comment \"drop-strange\"",
        ],
    );
    for (client, knock) in [
        (CLIENT, &(|| knock(&lab, 5000)) as &dyn Fn()),
        (CLIENT6, &|| knock6(&lab)),
    ] {
        let (answer, _) = trace(&lab, &[client, "5000", "web"], knock);
        assert_eq!(
            sentence(&answer),
            "dropped in the relay by table inet mine, chain out, rule `tcp flags syn drop comment \"drop-strange\"`"
        );
        assert_eq!(answer["by"]["namespace"], "relay");
        assert_eq!(answer["by"]["packet"], "dial");
    }
    let tables = look::beside(&lab, relay, &["nft", "list", "tables"]);
    assert!(!tables.contains("trace"), "{tables}");
}

#[test]
fn a_source_that_rp_filter_refuses_is_no_rules_doing() {
    if !look::machine() {
        return;
    }
    let stranger = "192.0.2.50";
    for via in ["relay", "dnat"] {
        let lab = web(Lab::forwarding(), via, "");
        for args in [
            &[
                "ip", "link", "add", "other", "type", "veth", "peer", "name", "other1",
            ][..],
            &["ip", "link", "set", "other", "up"],
            &["ip", "link", "set", "other1", "up"],
            &["ip", "route", "add", "192.0.2.0/24", "dev", "other"],
            &["sysctl", "-q", "-w", "net.ipv4.conf.all.rp_filter=1"],
            &[
                "ip",
                "-n",
                "client",
                "addr",
                "add",
                "192.0.2.50/32",
                "dev",
                "eth0",
            ],
        ] {
            lab.ok(args);
        }
        // Else it would not even be told the lab's link-layer address.
        knock(&lab, 5000);
        let attempt = || {
            ask_as(&lab, stranger, "http://10.99.0.1:5000/");
        };
        let (answer, _) = trace(&lab, &[stranger, "5000", "web"], attempt);
        assert_eq!(answer["outcome"], "lost", "{answer}");
        assert_eq!(
            sentence(&answer),
            "lost in the host: it took the source for a wrong one, since its way to 192.0.2.50 is not by ext0 \
             (net.ipv4.conf.all.rp_filter is 1)"
        );
    }
}

#[test]
fn a_client_with_an_address_of_the_hosts_is_a_martian() {
    if !look::machine() {
        return;
    }
    let lab = web(Lab::forwarding(), "dnat", "");
    // An address of the host's, on the link that the client comes by; for the client, its own.
    for args in [
        &["ip", "addr", "add", "192.0.2.50/32", "dev", "ext0"][..],
        &[
            "sysctl",
            "-q",
            "-w",
            "net.ipv4.conf.all.rp_filter=0",
            "net.ipv4.conf.ext0.rp_filter=0",
        ],
        &[
            "ip",
            "-n",
            "client",
            "addr",
            "add",
            "192.0.2.50/32",
            "dev",
            "eth0",
        ],
    ] {
        lab.ok(args);
    }
    knock(&lab, 5000);
    let attempt = || {
        ask_as(&lab, "192.0.2.50", "http://10.99.0.1:5000/");
    };
    let (answer, _) = trace(&lab, &["192.0.2.50", "5000", "web"], attempt);
    assert_eq!(answer["outcome"], "lost", "{answer}");
    assert_eq!(
        sentence(&answer),
        "lost in the host: 192.0.2.50 is an address of its own, and came in by ext0 (a martian)"
    );
}

/// Fills a connection table through ctnetlink, up to so many: from made-up clients to an address and port, answered by
/// `back` from the sidecar's ports if that is given. All are assured, so the kernel lets none of them go for a new one.
const FILL: &str = r#"
import socket, struct, sys
target, port, back, sidecar, most, tcp = sys.argv[1:]
limit = int(open("/proc/sys/net/netfilter/nf_conntrack_max").read())
count = min(limit, int(most)) if int(most) else limit
nla = lambda kind, value, flag=0x8000: struct.pack("=HH", 4 + len(value), kind | flag) + value + b"\0" * (-len(value) % 4)
flat = lambda kind, value: nla(kind, value, 0)
def tuple_(kind, source, sport, to, dport):
    ip = nla(1, flat(1, source) + flat(2, to))
    return nla(kind, ip + nla(2, flat(1, bytes([int(tcp)])) + flat(2, struct.pack(">H", sport)) + flat(3, struct.pack(">H", dport))))
address = socket.inet_aton
state = nla(4, nla(1, flat(1, b"\3"))) if tcp == "6" else b""
rest = flat(3, struct.pack(">I", 0xe)) + flat(7, struct.pack(">I", 600)) + state
def one(n):
    client, sport = struct.pack(">I", 0xcb007100 + n // 60000), 1024 + n % 60000
    reply = (address(back), int(port), address(sidecar), 1024 + n) if sidecar else (address(target), int(port), client, sport)
    body = b"\2\0\0\0" + tuple_(1, client, sport, address(target), int(port)) + tuple_(2, *reply) + rest
    # IPCTNL_MSG_CT_NEW; NLM_F_REQUEST, NLM_F_CREATE, NLM_F_EXCL
    return struct.pack("=IHHII", 16 + len(body), 0x100, 0x601, n, 0) + body
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
for begin in range(0, count + 64 if not int(most) else count, 64):
    s.send(b"".join(one(n) for n in range(begin, begin + 64)))
print(open("/proc/sys/net/netfilter/nf_conntrack_count").read())
"#;

/// See [`FILL`], in the host or beside a process.
fn fill(lab: &Lab, pid: Option<i64>, args: [&str; 6]) {
    let all = [&[look::PYTHON, "-c", FILL], &args[..]].concat();
    match pid {
        Some(pid) => look::beside(lab, pid, &all),
        None => lab.ok(&all),
    };
}

#[test]
fn a_connection_table_that_is_full_is_said_to_be() {
    if !look::machine() {
        return;
    }
    let most = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max").unwrap();
    let most = most.trim();
    if most.parse::<u64>().unwrap() > 300_000 {
        support::skip("memory", "the connection table takes more than 300,000");
        return;
    }
    let full = format!(
        "its connection table is full, with {most} of {most} (net.netfilter.nf_conntrack_max)"
    );
    for place in ["host", "sidecar"] {
        let lab = web(Lab::forwarding(), "dnat", "");
        let status = lab.status("web");
        let sidecar = (place == "sidecar").then(|| look::init(&status, "sidecar"));
        fill(&lab, sidecar, ["192.0.2.1", "9", "", "", "0", "17"]);
        let (answer, _) = trace(&lab, &[CLIENT, "5000", "web"], || knock(&lab, 5000));
        assert_eq!(answer["outcome"], "lost", "{answer}");
        let expected = match place {
            "host" => format!("lost in the host: {full}"),
            _ => format!(
                "lost in the sidecar after table inet lrpns, chain guard, rule `accept-uplink`: {full}"
            ),
        };
        assert_eq!(sentence(&answer), expected);
        // Each namespace has a table of its own, and what fills one takes nothing from another.
        if place == "sidecar" {
            let other = look::telling(
                "other",
                &look::token(),
                "0.0.0.0:5002:5000",
                "via = \"dnat\"",
            );
            look::up(&lab, &other);
            assert!(lab.client_get("http://10.99.0.1:5002/").is_ok());
        }
    }
}

#[test]
fn a_sidecar_without_a_port_left_towards_the_app_is_found() {
    if !look::machine() {
        return;
    }
    let lab = web(Lab::forwarding(), "dnat", "");
    let status = lab.status("web");
    let sidecar = look::init(&status, "sidecar");
    let uplink = look::planned(&status, "/uplink/sidecar_address");
    let service = ["172.18.0.23", "172.18.0.33"];
    fill(
        &lab,
        Some(sidecar),
        [uplink, "5000", service[0], service[1], "64512", "6"],
    );
    let (answer, _) = trace(&lab, &[CLIENT, "5000", "web"], || knock(&lab, 5000));
    assert_eq!(answer["outcome"], "lost", "{answer}");
    let said = sentence(&answer);
    assert!(said.contains("has hardly a port of its own left"), "{said}");
}

#[test]
fn a_datagram_is_followed_and_so_is_that_nobody_takes_it() {
    if !look::machine() {
        return;
    }
    let code = "import socket, time\ns = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\ns.bind((\"::\", 5353))\n\
        while s.recv(99) != b\"over\":\n    pass\ns.close()\ntime.sleep(1000)";
    let send = "import socket, sys\nsocket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(sys.argv[2].encode(), (sys.argv[1], 5353))";
    for (lab, via) in [(Lab::new(), "relay"), (Lab::forwarding(), "dnat")] {
        let lab = lab.with_ipv6();
        let file = format!(
            "name = \"web\"\n[network]\nipv6 = \"fd00:18::/64\"\n[app]\nrootfs = \"host\"\ncommand = {}\n\
             publish = [\"0.0.0.0:5353:5353/udp\", \"[::]:5353:5353/udp\"]\nvia = \"{via}\"\n",
            look::toml_list(&[look::PYTHON, "-c", code]),
        );
        look::up(&lab, &file);
        let say = |to: &str, what: &str| {
            assert!(
                lab.client(&[look::PYTHON, "-c", send, to, what])
                    .status
                    .success()
            );
        };
        let ends = [(CLIENT, "::ffff:10.99.0.1", ""), (CLIENT6, LAB6, "6")];
        for (client, to, rule) in ends {
            let args = [client, "5353", "web", "--udp"];
            let (answer, code) = trace(&lab, &args, || say(to, "hello"));
            assert_eq!(
                (answer["outcome"].as_str(), code),
                (Some("arrives"), 0),
                "{via}: {answer}"
            );
            assert!(
                sentence(&answer).contains(&format!("rule `accept-published-udp{rule}`")),
                "{via}: {answer}"
            );
        }
        say(LAB6, "over");
        let app = look::pid(&lab.status("web"), "app");
        // Not by /proc/net/udp6, which now and then skips a socket.
        let is_bound = || look::beside(&lab, app, &["ss", "-Huan"]).contains(":5353 ");
        look::eventually("its socket is there", &false, is_bound);
        for (client, to, _) in ends {
            let args = [client, "5353", "web", "--udp"];
            let (answer, code) = trace(&lab, &args, || say(to, "hello"));
            assert_eq!(
                (answer["outcome"].as_str(), code),
                (Some("refused"), 1),
                "{via}: {answer}"
            );
            assert!(
                sentence(&answer).starts_with("reaches app port 5353, where nobody listens"),
                "{via}: {answer}"
            );
        }
    }
}

#[test]
fn the_hosts_own_packets_are_followed_too() {
    if !look::machine() {
        return;
    }
    let lab = both(Lab::forwarding(), "via = \"dnat\"");
    for (client, url) in [
        ("127.0.0.1", "http://127.0.0.1:5000/"),
        ("::1", "http://[::1]:5000/"),
    ] {
        let (answer, code) = trace(&lab, &[client, "5000", "web"], || drop(lab.get(url)));
        assert_eq!(
            (answer["outcome"].as_str(), code),
            (Some("arrives"), 0),
            "{client}: {answer}"
        );
    }
}

#[test]
fn a_link_local_client_is_followed_by_relay_and_is_none_for_dnat() {
    if !look::machine() {
        return;
    }
    for (lab, via) in [(Lab::new(), "relay"), (Lab::forwarding(), "dnat")] {
        let lab = both(lab, &format!("via = \"{via}\""));
        for (netns, link, address) in [("client", "eth0", "fe80::c/64"), ("", "ext0", "fe80::a/64")]
        {
            let namespace: &[&str] = if netns.is_empty() {
                &[]
            } else {
                &["-n", netns]
            };
            let add = ["-6", "address", "add", address, "dev", link, "nodad"];
            lab.ok(&[&["ip"], namespace, &add].concat());
        }
        let attempt = || {
            let code = "import socket\ns = socket.socket(socket.AF_INET6)\ns.settimeout(1)\n\
                s.bind(('fe80::c', 0, 0, socket.if_nametoindex('eth0')))\n\
                s.connect(('fe80::a', 5000, 0, socket.if_nametoindex('eth0')))";
            drop(lab.client(&[look::PYTHON, "-c", code]));
        };
        let (answer, _) = trace(&lab, &["fe80::c", "5000", "web"], attempt);
        match via {
            "relay" => assert_eq!(answer["outcome"], "arrives", "{answer}"),
            _ => assert_eq!(
                sentence(&answer),
                "lost in the host: fe80::c is link-local, and such an address is not forwarded"
            ),
        }
    }
}

//! Rules of a running stack, and who may change them: the loader, a sealed sidecar, and the user's own rules.
#![allow(clippy::unwrap_used)]

mod support;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lrpns::control::{Client, Reply, Request};
use lrpns::firewall::{Batch, encode, sidecar_rules};
use lrpns::plan::Plan;
use nftables::schema::{NfListObject, NfObject, Nftables};
use serde_json::Value;
use support::lab::Lab;
use support::look;

/// A lab in which the stack `web` runs, its one port 5000; `sidecar` is what its `[sidecar]` says beside the address.
fn web(sidecar: &str) -> (Lab, Value) {
    let lab = Lab::new();
    let file = look::telling("web", &look::token(), "0.0.0.0:5000:5000", "");
    let file = file.replace("[sidecar]\n", &format!("[sidecar]\n{sidecar}\n"));
    look::up(&lab, &file);
    let status = lab.status("web");
    (lab, status)
}

fn plan(status: &Value) -> Plan {
    serde_json::from_value(status["plan"].clone()).unwrap()
}

/// Rules like the running ones, but that its first port enters at another one, as netlink bytes.
fn moved(status: &Value, without: Option<&str>) -> Batch {
    let mut plan = plan(status);
    plan.apps[0].publish[0].entry_port = 7777;
    let mut objects = sidecar_rules(&plan).objects.to_vec();
    if let Some(set) = without {
        objects.retain(|object| {
            !matches!(object, NfObject::ListObject(NfListObject::Set(it)) if it.name == set)
        });
    }
    encode(&Nftables {
        objects: objects.into(),
    })
    .unwrap()
}

/// Lets the supervisor's loader load: what it said, and how long that took.
fn load(lab: &Lab, rules: Batch) -> (Result<(), String>, Duration) {
    let socket = lab.root().join("run/lrpns/web/control.sock");
    let client = Client::connect(&socket).unwrap();
    let begun = Instant::now();
    client.ask(&Request::Load { rules }).unwrap();
    let answer = match client.reply().unwrap() {
        Some((Reply::Done, _)) => Ok(()),
        Some((Reply::Refused { why, .. }, _)) => Err(why),
        other => panic!("{other:?}"),
    };
    (answer, begun.elapsed())
}

/// Everything in the sidecar's namespace, without counts.
fn ruleset(lab: &Lab, status: &Value) -> String {
    let sidecar = look::init(status, "sidecar");
    look::beside(lab, sidecar, &["nft", "-s", "list", "ruleset"])
}

/// The processes of the lab whose title has `word`.
fn processes(lab: &Lab, word: &str) -> String {
    let found = lab.run(&["pgrep", "-fa", word]);
    String::from_utf8_lossy(&found.stdout).into_owned()
}

#[test]
fn the_loader_changes_the_rules_of_a_running_stack_and_is_gone() {
    if !look::machine() {
        return;
    }
    let (lab, status) = web("");
    let before = ruleset(&lab, &status);
    assert!(before.contains("5000") && !before.contains("7777"));
    let sidecar = look::init(&status, "sidecar");

    let (loaded, _) = load(&lab, moved(&status, None));
    assert_eq!(loaded, Ok(()));
    let after = ruleset(&lab, &status);
    assert!(after.contains("7777"), "{after}");
    assert_eq!(processes(&lab, "web/loader"), "");
    assert_eq!(
        look::init(&lab.status("web"), "sidecar"),
        sidecar,
        "the sidecar goes on"
    );

    // Loaded again and again: each replaces what was there, and none leaves anything. How long it takes is for people.
    let mut times: Vec<Duration> = (0..20)
        .map(|_| {
            let (loaded, time) = load(&lab, moved(&status, None));
            assert_eq!(loaded, Ok(()));
            time
        })
        .collect();
    times.sort();
    eprintln!(
        "a load takes {:?} at best, {:?} in the middle",
        times[0], times[10]
    );
    assert!(
        processes(&lab, "lrpns init")
            .lines()
            .all(|line| !line.contains("loader"))
    );
    assert!(
        !processes(&lab, "web/sidecar").is_empty(),
        "this is how one is seen"
    );
}

#[test]
fn the_loader_names_what_the_kernel_refuses_and_changes_nothing() {
    if !look::machine() {
        return;
    }
    let (lab, status) = web("");
    let before = ruleset(&lab, &status);
    let (loaded, _) = load(&lab, moved(&status, Some("services")));
    let why = loaded.unwrap_err();
    assert!(
        why.contains("rule guard/accept-app-reply") && why.contains("No such file"),
        "{why}"
    );
    assert_eq!(ruleset(&lab, &status), before);
    assert_eq!(processes(&lab, "web/loader"), "");
    lab.get("http://127.0.0.1:5000/").unwrap();
}

/// `nft` with the sidecar's own sets, in its user and network namespace: what it says to a change.
fn nft_as_the_sidecar(lab: &Lab, status: &Value, command: &str) -> std::process::Output {
    let sidecar = look::init(status, "sidecar");
    let held = look::status_line(lab, sidecar, "CapEff");
    let caps = if held == "0000000000000000" {
        "-all"
    } else {
        assert_eq!(held, "0000000000001000");
        "-all,+net_admin"
    };
    let target = sidecar.to_string();
    lab.run(&[
        "nsenter",
        "--user",
        "--net",
        "--target",
        &target,
        "--",
        "setpriv",
        "--nnp",
        &format!("--inh-caps={caps}"),
        &format!("--bounding-set={caps}"),
        &format!("--ambient-caps={caps}"),
        "nft",
        command,
    ])
}

#[test]
fn a_sealed_sidecar_holds_nothing_and_still_has_its_rules() {
    if !look::machine() {
        return;
    }
    let (lab, status) = web("seal = true");
    lab.get("http://127.0.0.1:5000/").unwrap();
    let sidecar = look::init(&status, "sidecar");
    assert_eq!(
        look::capabilities(&lab, sidecar),
        ["0000000000000000"; 5],
        "as the kernel has it"
    );
    let told = &look::part(&status, "sidecar")["privileges"];
    for set in [
        "inheritable",
        "permitted",
        "effective",
        "bounding",
        "ambient",
    ] {
        assert_eq!(told[set], 0, "{set}");
    }
    assert_eq!(status["plan"]["seal"], true);
    let table = look::beside(&lab, sidecar, &["nft", "list", "table", "inet", "lrpns"]);
    assert!(table.contains("drop-rest"));
}

#[test]
fn nobody_in_a_sealed_sidecar_changes_rules_and_the_loader_still_does() {
    if !look::machine_with(&["setpriv"]) {
        return;
    }
    let (lab, status) = web("seal = true");
    let first = look::init(&status, "sidecar");
    let before = ruleset(&lab, &status);
    for change in [
        "flush ruleset",
        "add table inet mine",
        "delete table inet lrpns",
    ] {
        let refused = nft_as_the_sidecar(&lab, &status, change);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success(), "{change}");
        assert!(said.contains("Operation not permitted"), "{change}: {said}");
    }
    assert_eq!(ruleset(&lab, &status), before);
    // By exec, under the part's filter and Landlock as well: it gets what the sidecar has, which is nothing.
    let audit = lab.lrpns(&["audit", "web", "--json"]);
    let report: Value = serde_json::from_slice(&audit.stdout).unwrap();
    let probe = |id: &str| {
        let groups = report["groups"].as_array().unwrap().iter();
        let mut all = groups.flat_map(|group| group["probes"].as_array().unwrap());
        all.find(|probe| probe["id"] == id).unwrap().clone()
    };
    for id in [
        "sidecar-rules-change",
        "sidecar-cap-sets",
        "sidecar-cap-raise",
        "rules-sidecar",
    ] {
        assert_eq!(probe(id)["result"], "pass", "{}", probe(id));
    }
    assert!(
        probe("sidecar-rules-change")["happened"]
            .to_string()
            .contains("not permitted"),
        "{}",
        probe("sidecar-rules-change")
    );

    assert_eq!(load(&lab, moved(&status, None)).0, Ok(()));
    assert!(ruleset(&lab, &status).contains("7777"));
    // A fresh process loads what was planned, and seals itself again.
    lab.lrpns_ok(&["restart", "web", "sidecar"]);
    let status = lab.status("web");
    assert_eq!(ruleset(&lab, &status), before);
    let again = look::init(&status, "sidecar");
    assert_ne!(again, first);
    assert_eq!(look::capabilities(&lab, again), ["0000000000000000"; 5]);
}

#[test]
fn a_sidecar_that_is_not_sealed_changes_rules_by_the_same_way() {
    if !look::machine_with(&["setpriv"]) {
        return;
    }
    let (lab, status) = web("");
    let done = nft_as_the_sidecar(&lab, &status, "add table inet mine");
    assert!(done.status.success(), "{}", support::lab::describe(&done));
    assert!(ruleset(&lab, &status).contains("mine"));
}

#[test]
fn the_audit_notices_a_sidecar_that_has_not_sealed_itself() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let file = look::telling("web", &look::token(), "0.0.0.0:5000:5000", "");
    let file = lab.write(
        "web.toml",
        &file.replace("[sidecar]", "[sidecar]\nseal = true"),
    );
    let up = lab.lrpns_with(
        &[("LRPNS_TEST_WEAKEN", "seal")],
        &["up", "-d", "-f", file.to_str().unwrap()],
    );
    assert!(up.status.success(), "{}", support::lab::describe(&up));
    let audit = lab.lrpns(&["audit", "web"]);
    assert_eq!(audit.status.code(), Some(1));
    let said = String::from_utf8_lossy(&audit.stdout);
    assert!(said.contains("the five sets of the sidecar"), "{said}");
}

/// A lab with a stack `web` that has these rules of its own, not up yet; the stack's file.
fn with_rules(lab: &Lab, rules: &str, vars: &str) -> String {
    lab.write("extra.nft", rules);
    let file = look::telling("web", &look::token(), "0.0.0.0:5000:5000", "");
    let file = file.replace("[sidecar]\n", "[sidecar]\nrules = \"extra.nft\"\n");
    let path = lab.write("web.toml", &format!("{file}{vars}"));
    path.to_str().unwrap().to_owned()
}

/// A bit of everything: named and anonymous sets, intervals, verdict maps, a chain of its own, an object, a limit.
const ALL_KINDS: &str = r#"
# blocked clients
set blocked {
    type ipv4_addr
    flags interval
    elements = $BLOCKED
}
map verdicts {
    type inet_service : verdict
    elements = { 9 : drop, 7 : jump odd }
}
counter seen {
}
set visitors {
    type ipv4_addr
    flags dynamic,timeout
    timeout 1h
}
set held {
    type ipv4_addr
    size 1000
    flags dynamic
}
chain odd {
    counter comment "odd"
    return
}
chain before {
    ip saddr @blocked counter drop comment "drop-blocked"
    ip daddr $app tcp dport $ports counter name seen
    tcp dport vmap @verdicts
    ip saddr { 192.0.2.200, 192.0.2.202 } tcp dport 1-1023 drop
    ct state new add @visitors { ip saddr } limit rate 100/second burst 50 packets accept
    ct state new add @held { ip saddr ct count over 1000 } drop
    iifname $uplink meta l4proto { tcp, udp } log prefix "extra " group 7
}
chain after { ip saddr $subnet ip daddr $sidecar reject with icmp type admin-prohibited; }
chain nat { iifname $uplink tcp dport 8081 dnat ip to $app:5000; }
"#;

/// As README has it, with a number that a test comes to.
const HELD: &str = r#"
set held {
    type ipv4_addr
    size 65536
    flags dynamic
}
chain before {
    iifname $uplink ct state new add @held { ip saddr ct count over 3 } counter drop comment "drop-held"
}
"#;

#[test]
fn a_client_that_holds_connections_can_be_bounded_and_keeps_nobody_else_out() {
    if !look::machine() {
        return;
    }
    let lab = Lab::forwarding();
    let file = with_rules(&lab, HELD, "");
    let file = std::fs::read_to_string(file).unwrap();
    let file = file.replace("publish = ", "via = \"dnat\"\npublish = ");
    let file = lab.write("held.toml", &file);
    lab.lrpns_ok(&["up", "-d", "-f", file.to_str().unwrap()]);
    lab.ok(&[
        "ip",
        "-n",
        "client",
        "addr",
        "add",
        "10.99.0.3/24",
        "dev",
        "eth0",
    ]);
    let code = "import socket\nheld = []\ntry:\n    while len(held) < 9:\n        held.append(socket.create_connection(('10.99.0.1', 5000), 1))\n\
         except OSError: pass\nprint(len(held))\nsocket.create_connection(('10.99.0.1', 5000), 5, ('10.99.0.3', 0))";
    let output = lab.client(&[look::PYTHON, "-c", code]);
    assert!(
        output.status.success(),
        "{}",
        support::lab::describe(&output)
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), "3\n");
}

#[test]
fn the_users_rules_are_in_force_as_nft_itself_would_have_loaded_them() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let vars = "[vars]\nBLOCKED = \"{ 192.0.2.1, 192.0.2.128/25 }\"\n";
    let file = with_rules(&lab, ALL_KINDS, vars);
    lab.lrpns_ok(&["up", "-d", "-f", &file]);
    lab.get("http://127.0.0.1:5000/").unwrap();
    let status = lab.status("web");
    let seen = ruleset(&lab, &status);

    // The same by nft: our own part as we print it, with the user's in its places.
    let own = lab.lrpns_ok(&["rules", "web"]);
    let own = own.split("\n# ").next().unwrap();
    let defines = "define app = 172.18.0.23\ndefine ports = { 5000 }\ndefine sidecar = 172.18.0.33\n\
         define subnet = 172.18.0.0/24\ndefine uplink = \"uplink\"\n\
         define BLOCKED = { 192.0.2.1, 192.0.2.128/25 }\n";
    let reference = lab.write(
        "reference.nft",
        &format!("{own}\n{defines}table inet lrpns {{\n{ALL_KINDS}\n}}\n"),
    );
    let script = format!("nft -f {} && nft -s list ruleset", reference.display());
    let meant = lab.ok(&["unshare", "--net", "sh", "-c", &script]);
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text
            .lines()
            // What a client has put in by now.
            .filter(|line| !line.contains("elements = { 198.19."))
            .map(|line| line.trim().to_owned())
            .collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&seen), sorted(&meant));

    // A fresh sidecar loads them without nft, and the audit knows them.
    lab.lrpns_ok(&["restart", "web", "sidecar"]);
    let status = lab.status("web");
    assert_eq!(sorted(&ruleset(&lab, &status)), sorted(&meant));
    lab.get("http://127.0.0.1:5000/").unwrap();
    let audit = lab.lrpns(&["audit", "web", "--json"]);
    let report = String::from_utf8_lossy(&audit.stdout).into_owned();
    let bad = report.lines().filter(|line| {
        line.contains("\"result\": \"unknown\"") || line.contains("\"result\": \"fail\"")
    });
    assert!(audit.status.success(), "{} of {report}", bad.count());
}

#[test]
fn the_audit_sees_a_rule_that_is_missing_among_the_users() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let file = with_rules(&lab, "chain before { ip saddr 192.0.2.7 drop; }", "");
    lab.lrpns_ok(&["up", "-d", "-f", &file]);
    let sidecar = look::init(&lab.status("web"), "sidecar");
    look::beside(
        &lab,
        sidecar,
        &["nft", "flush", "chain", "inet", "lrpns", "before"],
    );
    let audit = lab.lrpns(&["audit", "web"]);
    let said = String::from_utf8_lossy(&audit.stdout);
    assert_eq!(audit.status.code(), Some(1));
    assert!(said.contains("rule before/(unnamed) is missing"), "{said}");
}

#[test]
fn a_client_that_the_users_rules_drop_gets_no_answer_and_others_do() {
    if !look::machine() {
        return;
    }
    let lab = Lab::forwarding();
    let rules = "chain before { ip saddr $BAD drop comment \"drop-bad\"; }";
    let file = with_rules(&lab, rules, "[vars]\nBAD = \"10.99.0.2\"\n");
    lab.lrpns_ok(&["up", "-d", "-f", &file]);
    assert_eq!(
        lab.client_get("http://10.99.0.1:5000/"),
        Err(28),
        "curl's timeout"
    );
    lab.get("http://127.0.0.1:5000/").unwrap();
    lab.lrpns_ok(&["down", "web"]);
    // The value is the environment's, where there is one.
    let up = lab.lrpns_with(&[("LRPNS_BAD", "192.0.2.1")], &["up", "-d", "-f", &file]);
    assert!(up.status.success(), "{}", support::lab::describe(&up));
    lab.client_get("http://10.99.0.1:5000/").unwrap();
    // And the flag's before that.
    lab.lrpns_ok(&["down", "web"]);
    lab.lrpns_ok(&["up", "-d", "-f", &file, "--set", "BAD=10.99.0.0/24"]);
    assert_eq!(
        lab.client_get("http://10.99.0.1:5000/"),
        Err(28),
        "curl's timeout"
    );
}

#[test]
fn what_nft_refuses_is_told_with_file_line_and_column_and_nothing_is_up() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let many: String = (0..20_000)
        .map(|n| format!("10.{}.{}.1, ", n / 256, n % 256))
        .collect();
    let too_many = format!("chain before {{\nip saddr {{ {many} }} drop\n}}\n");
    for (rules, vars, place, hint) in [
        (
            "chain before {\n    ip saddr $A drop\n    ip sddr 192.0.2.1 drop\n}\n",
            "[vars]\nA = \"192.0.2.9\"\n",
            "extra.nft:3:8: syntax error",
            "the inside of a table",
        ),
        (
            "chain before {\n    ip saddr $MISSING drop\n}\n",
            "",
            "extra.nft:2:15: unknown identifier 'MISSING'",
            "the inside of a table",
        ),
        // Only where connections begin can they be sent elsewhere: the kernel says so, and nft says where.
        (
            "chain before {\n  tcp dport 1 dnat ip to $app\n}\n",
            "",
            "extra.nft:2:3: Could not process rule",
            "",
        ),
        (
            "chain before {\n  drop\n",
            "",
            "extra.nft:2: syntax error",
            "",
        ),
        (
            "set known { type ipv4_addr; }\nchain before {\n  ip saddr @knwon drop\n}\n",
            "",
            "extra.nft:3:12: No such file or directory; did you mean set",
            "",
        ),
        (
            &too_many,
            "",
            "Message too long",
            "a named set may have any number",
        ),
        (
            "include \"/etc/hostname.nft\"\n",
            "",
            "extra.nft:1:",
            "`include` has nothing to include",
        ),
        (
            "chain before { ip saddr $A drop; }\n",
            "[vars]\nA = \"no address\"\n",
            "the value of `$A`",
            "",
        ),
    ] {
        let file = with_rules(&lab, rules, vars);
        let (code, said) = lab.lrpns_err(&["up", "-d", "-f", &file]);
        assert!(
            said.contains(place) && said.contains(hint),
            "{rules}\n{said}"
        );
        // No hint is better than one that leads astray.
        assert_eq!(
            said.contains("include"),
            rules.contains("include"),
            "{said}"
        );
        assert_eq!(code, 2, "{said}");
        assert!(lab.get("http://127.0.0.1:5000/").is_err());
        assert!(!lab.lrpns_ok(&["ps"]).contains("web"));
    }
}

#[test]
fn more_rules_and_elements_than_nft_can_send_are_loaded_whole_in_their_order_and_change_live() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    // Some 340 kB, of which nft can send 208 at once without privilege, and we twice that where nobody has changed it.
    let rules = |first: usize| {
        let elements: Vec<_> = (0..1500)
            .map(|n| format!("198.18.{}.{}", n / 250, n % 250))
            .collect();
        let ports = (first..first + 700).map(|port| format!("  tcp dport {port} counter accept\n"));
        format!(
            "set known {{\n  type ipv4_addr; flags interval; elements = {{ {} }}\n}}\nchain before {{\n\
             {}  ip saddr @known drop comment \"the last\"\n}}\n",
            elements.join(",\n"),
            ports.collect::<String>()
        )
    };
    let file = with_rules(&lab, &rules(10_000), "");
    lab.lrpns_ok(&["up", "-d", "-f", &file]);
    let status = lab.status("web");
    let assert_loaded = |first: u64| {
        let list = ["nft", "-j", "list", "table", "inet", "lrpns"];
        let listed = look::json(&lab, Some(look::init(&status, "sidecar")), &list);
        let objects = listed["nftables"].as_array().unwrap();
        let before: Vec<_> = objects
            .iter()
            .filter_map(|object| object.get("rule"))
            .filter(|rule| rule["chain"] == "before")
            .collect();
        let ports: Vec<_> = before
            .iter()
            .filter_map(|rule| rule["expr"][0]["match"]["right"].as_u64())
            .collect();
        assert!(ports.iter().copied().eq(first..first + 700), "{ports:?}");
        assert_eq!(before.last().unwrap()["comment"], "the last");
        let mut sets = objects.iter().filter_map(|object| object.get("set"));
        let known = sets.find(|set| set["name"] == "known").unwrap();
        // nft lists neighbours as one range or as many.
        let elements = known["elem"].to_string();
        assert!(elements.contains("198.18.0.0") && elements.contains("198.18.5.249"));
    };
    assert_loaded(10_000);
    lab.get("http://127.0.0.1:5000/").unwrap();
    with_rules(&lab, &rules(20_000), "");
    lab.lrpns_ok(&["apply", "-f", &file]);
    assert_loaded(20_000);

    // What is wrong far behind is still said with its line.
    let wrong = rules(10_000).replace("tcp dport 10600 ", "tcp dprt 10600 ");
    let line = 1 + wrong
        .lines()
        .position(|line| line.contains("dprt"))
        .unwrap();
    with_rules(&lab, &wrong, "");
    let (code, said) = lab.lrpns_err(&["apply", "-f", &file]);
    assert_eq!(code, 2, "{said}");
    assert!(
        said.contains(&format!("extra.nft:{line}:7: syntax error")),
        "{said}"
    );
    assert_loaded(20_000);
}

#[test]
fn rules_that_reach_beyond_their_places_are_refused() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    for (rules, why) in [
        (
            "chain mine { type filter hook forward priority -500; accept; }",
            "`chain mine` hooks itself",
        ),
        (
            "}\nflush ruleset\ntable inet lrpns {",
            "which is lrpns' own",
        ),
        (
            "}\ndelete table inet lrpns\ntable inet lrpns {",
            "which is lrpns' own",
        ),
        (
            "}\ntable ip mine { }\ntable inet lrpns {",
            "it makes the table `mine`",
        ),
        ("chain guard { accept; }", "it adds a rule to `chain guard`"),
        (
            "}\ninsert rule inet lrpns guard accept\ntable inet lrpns {",
            "it adds a rule to `chain guard`",
        ),
        (
            "set apps { type ipv4_addr; elements = { 172.18.0.99 }; }",
            "elements of set apps",
        ),
        (
            "}\nflush chain inet lrpns guard\ntable inet lrpns {",
            "which is lrpns' own",
        ),
        (
            "}\nadd chain inet lrpns forward { policy accept; }\ntable inet lrpns {",
            "which is lrpns' own",
        ),
        (
            "flowtable f { hook ingress priority 0; devices = { lo }; }",
            "flowtable",
        ),
    ] {
        let file = with_rules(&lab, rules, "");
        let (code, said) = lab.lrpns_err(&["up", "-d", "-f", &file]);
        assert!(
            said.contains("extra.nft") && said.contains(why),
            "{rules}\n{said}"
        );
        // No hint is better than one that leads astray.
        assert_eq!(
            said.contains("include"),
            rules.contains("include"),
            "{said}"
        );
        assert_eq!(code, 2, "{said}");
    }
}

#[test]
fn the_guard_stands_before_the_users_rules() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let file = with_rules(
        &lab,
        "chain before { accept comment \"all\"; }\nchain nat { }",
        "",
    );
    lab.lrpns_ok(&["up", "-d", "-f", &file]);
    let status = lab.status("web");
    // As wide open as the user can make it, an app still has nobody to talk to.
    let tried = look::attack(
        &lab,
        "web",
        "app",
        "say([throw('172.18.0.33', 53), throw('172.18.0.33', 54)])",
    );
    assert_eq!(tried, serde_json::json!(["OK", "OK"]));
    let sidecar = look::init(&status, "sidecar");
    look::eventually("dropped by the guard", &true, || {
        let counted = look::counters(&lab, Some(sidecar), "lrpns");
        counted["guard/drop-app-egress"] >= 2
    });
}

#[test]
fn without_nft_the_key_is_refused_before_anything_is_made() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let file = with_rules(&lab, "chain before { }", "");
    // In a mount namespace in which it is covered.
    let script = format!(
        "mount --bind /dev/null $(readlink -f $(which nft)) && exec {} up -d -f {file}",
        support::lab::lrpns()
    );
    let refused = lab.run(&["unshare", "--mount", "sh", "-c", &script]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success());
    assert!(
        said.contains("there is no nft") && said.contains("apt install nftables"),
        "{said}"
    );
}

#[test]
fn apply_changes_the_users_rules_and_leaves_them_alone_when_something_else_changes() {
    if !look::machine() {
        return;
    }
    let lab = Lab::forwarding();
    let rules = "set bad { type ipv4_addr; elements = { 192.0.2.1 }; }\n\
         chain before { ip saddr @bad counter drop comment \"drop-bad\"; }";
    let file = with_rules(&lab, rules, "");
    lab.lrpns_ok(&["up", "-d", "-f", &file]);
    lab.client_get("http://10.99.0.1:5000/").unwrap();

    // Another key: the user's rules stay, to the handle.
    let text = std::fs::read_to_string(&file).unwrap();
    let two = "\"0.0.0.0:5000:5000\", \"0.0.0.0:6000:6000\"";
    std::fs::write(&file, text.replace("\"0.0.0.0:5000:5000\"", two)).unwrap();
    let sidecar = look::init(&lab.status("web"), "sidecar");
    let place = ["nft", "-a", "list", "chain", "inet", "lrpns", "before"];
    let before = look::beside(&lab, sidecar, &place);
    assert!(before.contains("drop-bad"));
    lab.lrpns_ok(&["apply", "-f", &file]);
    assert_eq!(look::beside(&lab, sidecar, &place), before);
    lab.client_get("http://10.99.0.1:6000/").unwrap();
    lab.client_get("http://10.99.0.1:5000/").unwrap();

    // A broken file changes nothing, and says where it is broken.
    lab.write("extra.nft", "chain before {\n  ip sddr 10.99.0.2 drop\n}\n");
    let (code, said) = lab.lrpns_err(&["apply", "-f", &file]);
    assert_eq!(code, 2, "as of `up`: {said}");
    assert!(said.contains("extra.nft:2:6: syntax error"), "{said}");
    // On lines of their own, below nft's caret.
    let after: Vec<_> = said
        .lines()
        .skip_while(|line| !line.ends_with('^'))
        .collect();
    assert_eq!(after.get(1), Some(&"nothing was changed"), "{said}");
    assert!(said.contains("hint: the file is the inside"), "{said}");
    assert_eq!(look::beside(&lab, sidecar, &place), before);

    lab.write("extra.nft", &rules.replace("192.0.2.1", "10.99.0.2"));
    let dry = lab.lrpns_ok(&["apply", "-f", &file, "--dry-run"]);
    for line in [
        "-set bad { type ipv4_addr; element 192.0.2.1",
        "+set bad { type ipv4_addr; element 10.99.0.2",
    ] {
        assert!(dry.contains(line), "{dry}");
    }
    lab.lrpns_ok(&["apply", "-f", &file]);
    assert_eq!(
        lab.client_get("http://10.99.0.1:5000/"),
        Err(28),
        "curl's timeout"
    );
    assert_eq!(look::init(&lab.status("web"), "sidecar"), sidecar);
    let again = lab.lrpns_ok(&["apply", "-f", &file, "--json"]);
    assert!(again.contains("\"changed\": false"), "{again}");
}

/// Of lrpns' own rules, by their handles: chain and text without counts, and what they have counted.
fn own_rules(lab: &Lab, sidecar: i64) -> BTreeMap<u64, (String, u64)> {
    let list = ["nft", "-j", "-a", "list", "table", "inet", "lrpns"];
    let table: Value = serde_json::from_str(&look::beside(lab, sidecar, &list)).unwrap();
    let rules = table["nftables"].as_array().unwrap().iter();
    let own = rules
        .filter_map(|object| object.get("rule"))
        .filter(|rule| {
            !["before", "after", "nat", "odd", "more"].contains(&rule["chain"].as_str().unwrap())
        });
    own.map(|rule| {
        let mut packets = 0;
        let mut plain = rule["expr"].clone();
        for statement in plain.as_array_mut().unwrap() {
            if let Some(counter) = statement.get_mut("counter") {
                packets = counter["packets"].as_u64().unwrap();
                *counter = Value::Null;
            }
        }
        let text = format!("{} {} {plain}", rule["chain"], rule["comment"]);
        (rule["handle"].as_u64().unwrap(), (text, packets))
    })
    .collect()
}

#[test]
fn a_change_of_the_users_rules_touches_none_of_ours() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let vars = "[vars]\nBLOCKED = \"{ 192.0.2.1, 192.0.2.128/25 }\"\n";
    let file = with_rules(&lab, ALL_KINDS, vars);
    lab.lrpns_ok(&["up", "-d", "-f", &file]);
    lab.get("http://127.0.0.1:5000/").unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    let sidecar = look::init(&lab.status("web"), "sidecar");
    let loaded = |lab: &Lab| {
        let text = ruleset(lab, &lab.status("web"));
        let mut lines: Vec<String> = text
            .lines()
            .filter(|line| !line.contains("elements = { 198.19."))
            .map(|line| line.trim().to_owned())
            .collect();
        lines.sort();
        lines
    };

    // Names stay and mean something else: an object, a chain, a set of another type, a map without its set.
    let other = "counter seen {\n}\nset blocked { type inet_service; elements = { 9, 7 }; }\n\
         chain odd { tcp dport { 1, 2 } counter drop; }\n\
         chain more { jump odd; }\n\
         chain before { tcp dport @blocked drop; tcp dport { 3, 4 } jump more; counter name seen; }\n";
    let changed_variable = text.replace("192.0.2.1,", "192.0.2.7,");
    let no_rules = text.replace("rules = \"extra.nft\"\n", "");
    let mut seen = vec![];
    for (what, rules, file_text) in [
        ("another file", other, &text),
        ("the first one", ALL_KINDS, &text),
        ("another value of a variable", ALL_KINDS, &changed_variable),
        ("none", ALL_KINDS, &no_rules),
        ("some again", other, &text),
    ] {
        let before = own_rules(&lab, sidecar);
        assert!(before.values().any(|(_, packets)| *packets > 0));
        lab.write("extra.nft", rules);
        std::fs::write(&file, file_text).unwrap();
        lab.lrpns_ok(&["apply", "-f", &file]);

        let after = own_rules(&lab, sidecar);
        for (handle, (text, packets)) in &before {
            // Where there are none of the user's, nothing jumps there, and nothing is rejected.
            let theirs = ["jump-", "accept-reset", "accept-unreachable"];
            if what == "none" && theirs.iter().any(|name| text.contains(name)) {
                assert!(!after.contains_key(handle), "{what}: {text}");
                continue;
            }
            let (now, count) = after
                .get(handle)
                .unwrap_or_else(|| panic!("{what}: {text}"));
            assert_eq!(now, text, "{what}");
            assert!(count >= packets, "{what}: {text} counts anew");
        }
        lab.get("http://127.0.0.1:5000/").unwrap();
        seen.push((what, rules, file_text, loaded(&lab)));
    }

    // A fresh load comes to the same.
    for (what, rules, file_text, changed) in seen {
        lab.write("extra.nft", rules);
        std::fs::write(&file, file_text).unwrap();
        lab.lrpns_ok(&["apply", "-f", &file]);
        lab.lrpns_ok(&["restart", "web", "sidecar"]);
        assert_eq!(loaded(&lab), changed, "{what}");
    }
}

/// Connects by TCP or UDP and says what came of it.
const TRIED: &str = r"
import socket
def tried_to(kind, port):
    s = socket.socket(socket.AF_INET, kind)
    s.settimeout(9)
    try:
        s.connect(('10.99.0.1', port))
        s.send(b'x')
        s.recv(1)
        return 'OK'
    except OSError as e:
        return type(e).__name__
    finally:
        s.close()
";

#[test]
fn a_client_that_the_users_rules_reject_hears_of_it_and_no_packet_else_leaves_the_sidecar() {
    if !look::machine() {
        return;
    }
    for via in ["dnat", "relay"] {
        rejected(via);
    }
}

fn rejected(via: &str) {
    let lab = Lab::forwarding();
    let rules = "chain before {\n  tcp dport 5000 counter reject with tcp reset\n  \
                 udp dport 5001 counter reject\n  tcp dport 5002 counter reject\n}\n";
    lab.write("extra.nft", rules);
    let server = "import socket\nfor port in (5000, 5002):\n  s = socket.socket()\n  s.bind(('0.0.0.0', port))\n  s.listen()\n  \
                  globals()[f's{port}'] = s\nu = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nu.bind(('0.0.0.0', 5001))\n\
                  import signal\nsignal.pause()";
    look::up(
        &lab,
        &format!(
            "name = \"web\"\n[sidecar]\nrules = \"extra.nft\"\n[app]\nrootfs = \"host\"\nvia = \"{via}\"\n\
             command = {}\npublish = [\"0.0.0.0:5000:5000\", \"0.0.0.0:5001:5001/udp\", \"0.0.0.0:5002:5002\"]\nwait = false\n",
            look::toml_list(&[look::PYTHON, "-c", server])
        ),
    );
    let seen = look::attack_from_client(
        &lab,
        &format!(
            "{TRIED}say([tried_to(socket.SOCK_STREAM, 5000), tried_to(socket.SOCK_DGRAM, 5001), tried_to(socket.SOCK_STREAM, 5002)])"
        ),
    );
    // The relay has accepted a client of TCP by then, and resets it; by UDP it has nobody to tell.
    let (refused, reset) = ("ConnectionRefusedError", "ConnectionResetError");
    let wanted = match via {
        "dnat" => serde_json::json!([refused, refused, refused]),
        _ => serde_json::json!([reset, "TimeoutError", reset]),
    };
    assert_eq!(seen, wanted, "{via}");
    // What a sidecar sends of itself is not let out for it: nothing of its own is related to anything.
    let status = lab.status("web");
    let sidecar = look::pid(&status, "sidecar");
    let before = look::counters(&lab, Some(sidecar), "lrpns");
    let seen = look::attack_beside(
        &lab,
        sidecar,
        &format!(
            "{TRIED}say([tried_to(socket.SOCK_STREAM, 5000), tried_to(socket.SOCK_DGRAM, 5001)])"
        ),
    );
    assert!(!seen.to_string().contains("OK"), "{seen}");
    let counted = look::since(&before, &look::counters(&lab, Some(sidecar), "lrpns"));
    assert!(counted.contains_key("output/drop-rest"), "{counted:?}");
    assert!(
        !counted.keys().any(|rule| rule.starts_with("output/accept")),
        "{counted:?}"
    );
}

#[test]
fn what_a_rule_of_the_users_logs_is_in_the_traffic_log_with_its_prefix() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let rules = "chain before {\n  tcp flags syn log prefix \"mine: \" counter\n  tcp flags fin log level debug flags all\n}\n";
    let file = with_rules(&lab, rules, "");
    lab.lrpns_ok(&["up", "-d", "-f", &file]);
    lab.get("http://127.0.0.1:5000/").unwrap();
    let line = support::lab::until("the packet is in the log", || {
        let log = lab.lrpns_ok(&["logs", "web", "--part", "traffic", "--json"]);
        let lines = log.lines().map(|line| serde_json::from_str(line).unwrap());
        let mut own = lines.filter(|line: &Value| line["traffic"]["event"] == "logged");
        own.find(|line| line["traffic"]["rule"] == "mine")
    });
    assert!(
        line["text"]
            .as_str()
            .unwrap()
            .starts_with("logged by mine: tcp "),
        "{line}"
    );
    assert_eq!(line["traffic"]["tcp_flags"], "syn", "{line}");
    assert_eq!(line["traffic"]["app"], "app", "{line}");
    // Nothing is counted as refused for it.
    let status = lab.status("web");
    assert_eq!(status["traffic"]["refused"], 0, "{status}");
}

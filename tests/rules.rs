//! Rules of a running stack, and who may change them: the loader, a sealed sidecar, and the user's own rules.
#![allow(clippy::unwrap_used)]

mod support;
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

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
    look::beside(lab, sidecar, &["nft", "-s", "-j", "list", "ruleset"])
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

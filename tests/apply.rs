//! Live changes: `lrpns apply`, with real clients meanwhile; and what `lrpns rules --counters` says of it.
#![allow(clippy::unwrap_used)]

mod support;
use serde_json::Value;
use support::lab::{LAB, Lab};
use support::look;

/// `lrpns rules --counters --json`: packets by `chain/name` of one namespace's table.
fn counted(lab: &Lab, namespace: &str) -> look::Counters {
    let tables = lab.lrpns_ok(&["rules", "web", "--counters", "--json"]);
    let tables: Value = serde_json::from_str(&tables).unwrap();
    let mut tables = tables.as_array().unwrap().iter();
    let table = tables
        .find(|table| table["namespace"] == namespace)
        .unwrap();
    let rules = table["rules"].as_array().unwrap().iter();
    rules
        .map(|rule| {
            let name = format!(
                "{}/{}",
                rule["chain"].as_str().unwrap(),
                rule["name"].as_str().unwrap()
            );
            (name, rule["packets"].as_u64().unwrap())
        })
        .collect()
}

#[test]
fn rules_counters_are_those_of_the_kernel_and_reading_them_resets_nothing() {
    if !look::machine() {
        return;
    }
    let lab = Lab::forwarding();
    look::up(
        &lab,
        &look::telling("web", "", "0.0.0.0:5000:5000", "via = \"dnat\""),
    );
    for _ in 0..3 {
        lab.client_get(&format!("http://{LAB}:5000/")).unwrap();
    }
    let status = lab.status("web");
    look::settle(&lab, &status);
    let sidecar = Some(look::init(&status, "sidecar"));
    for (namespace, pid, table) in [("sidecar", sidecar, "lrpns"), ("host", None, "lrpns-web")] {
        let seen = look::counters(&lab, pid, table);
        assert!(seen.len() > 4);
        assert_eq!(counted(&lab, namespace), seen);
        assert_eq!(counted(&lab, namespace), seen);
    }
    assert_eq!(counted(&lab, "host")["prerouting/dnat-any"], 3);

    let text = lab.lrpns_ok(&["rules", "web", "--counters"]);
    let row = text
        .lines()
        .find(|line| line.ends_with("forward/accept-established"));
    let packets = row.unwrap().split_whitespace().next().unwrap();
    assert_eq!(
        packets,
        counted(&lab, "sidecar")["forward/accept-established"].to_string()
    );
    assert!(text.starts_with("table inet lrpns (sidecar)\n"), "{text}");
}

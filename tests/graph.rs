//! `lrpns graph`: in the terminal and as SVG, of a plan and of a running stack.
#![allow(clippy::unwrap_used)]

mod support;

use support::lab::{Lab, describe, until};
use support::{look, program, skip};

const PAIR: &str = r#"
name = "pair"
[app.web]
rootfs = "builtin:webapp"
publish = ["0.0.0.0:8080:8000"]
connect = ["db:5432"]
allow = ["10.99.0.0/24"]
env = { PORT = "8000" }
[app.db]
rootfs = "builtin:webapp"
env = { PORT = "5432" }
"#;

#[test]
fn a_stack_is_drawn_with_its_grants_ports_and_counts() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let file = lab.write("pair.toml", PAIR);
    let file = file.to_str().unwrap();
    let plan = lab.lrpns_ok(&["graph", "-f", file]);
    for words in [
        "pair (not up)",
        "10.99.0.0/24 ",
        " 0.0.0.0:8080 ",
        "- 5432 -",
    ] {
        assert!(plan.contains(words), "{words}: {plan}");
    }
    lab.lrpns_ok(&["up", "-d", "-f", file]);
    // One that `allow` does not name.
    let _ = lab.get("http://127.0.0.1:8080/");
    lab.client_get("http://10.99.0.1:8080/").unwrap();
    until("it is counted", || {
        let graph = lab.lrpns_ok(&["graph", "pair"]);
        let all = [
            "pair (up)",
            "1 by relay",
            "relay, 1 refused",
            "| running",
            "0 open",
        ];
        all.iter().all(|words| graph.contains(words)).then_some(())
    });
    let svg = lab.dir.path().join("pair.svg");
    lab.lrpns_ok(&["graph", "pair", "--svg", svg.to_str().unwrap()]);
    let text = std::fs::read_to_string(&svg).unwrap();
    for words in [
        "10.99.0.0/24 → 0.0.0.0:8080 (relay, 1 refused)",
        "1 by relay",
        "5432",
        "running",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let Some(rsvg) = program("rsvg-convert") else {
        skip("machine", "there is no rsvg-convert (package librsvg2-bin)");
        return;
    };
    let png = lab.dir.path().join("pair.png");
    let output = lab.run(&[
        rsvg.to_str().unwrap(),
        "-o",
        png.to_str().unwrap(),
        svg.to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{}", describe(&output));
    assert!(std::fs::read(&png).unwrap().starts_with(b"\x89PNG"));
    if let Some(to) = std::env::var_os("LRPNS_TEST_KEEP_PICTURE") {
        std::fs::copy(&png, to).unwrap();
    }
}

#[test]
fn what_was_refused_stands_at_the_way_it_came() {
    if !look::machine() {
        return;
    }
    let lab = Lab::forwarding();
    // By dnat the sidecar refuses. Of two ways in, it is not known which.
    let file = PAIR.replace(
        "[\"0.0.0.0:8080:8000\"]",
        "[\"0.0.0.0:8080:8000\", \"0.0.0.0:8082:8000\"]\nvia = \"dnat\"",
    );
    let file = file.replace("10.99.0.0/24", "10.99.0.9/32");
    lab.lrpns_ok(&[
        "up",
        "-d",
        "-f",
        lab.write("pair.toml", &file).to_str().unwrap(),
    ]);
    assert!(lab.client_get("http://10.99.0.1:8080/").is_err());
    until("it is counted", || {
        let status = lab.status("pair");
        let apps = status["traffic"]["apps"].as_array().unwrap();
        let web = apps.iter().find(|app| app["name"] == "web").unwrap();
        let refused = web["refused"].as_u64().unwrap();
        let graph = lab.lrpns_ok(&["graph", "pair"]);
        (refused > 0
            && graph.contains(&format!("| {refused} refused "))
            && !graph.contains("dnat, "))
        .then_some(())
    });
}

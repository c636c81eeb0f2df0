//! The main job: `lrpns up` serves the webapp, with the least privilege that works, and `lrpns down` leaves nothing.
#![allow(clippy::unwrap_used)]

mod support;
use serde_json::Value;
use support::lab::{LAB, Lab, describe};
use support::look;

#[test]
fn up_detached_returns_when_the_published_port_answers() {
    let lab = Lab::new();
    let up = lab.lrpns(&["up", "-d", "--demo"]);
    assert!(up.status.success(), "{}", describe(&up));
    assert_eq!(lab.get("http://localhost:5000/").unwrap(), "Hello world!");
    assert_eq!(
        lab.client_get(&format!("http://{LAB}:5000/")).unwrap(),
        "Hello world!"
    );
    lab.lrpns_ok(&["down"]);
    assert!(lab.get("http://localhost:5000/").is_err());
}

/// Who listens on port 5000, as the kernel has it.
fn listening(lab: &Lab) -> Vec<String> {
    let said = lab.ok(&["ss", "-Hltn", "sport", "=", ":5000"]);
    let column = |line: &str| line.split_whitespace().nth(3).map(str::to_owned);
    said.lines().filter_map(column).collect()
}

#[test]
fn the_demo_is_open_to_the_network_only_when_asked_and_says_where_first() {
    let lab = Lab::forwarding();
    for detach in [&["up", "-d"][..], &["up", "-d", "--set", "PROVIDER=world"]] {
        let up = lab.lrpns(detach);
        assert!(up.status.success(), "{}", describe(&up));
        let said = String::from_utf8_lossy(&up.stderr).into_owned();
        let first = said.lines().next().unwrap();
        assert!(
            first.contains("demo") && first.contains("127.0.0.1:5000"),
            "{said}"
        );
        assert_eq!(lab.get("http://localhost:5000/").unwrap(), "Hello world!");
        assert!(lab.client_get(&format!("http://{LAB}:5000/")).is_err());
        assert_eq!(listening(&lab), ["127.0.0.1:5000"]);
        // What was brought up is what `apply` and `plan` mean here.
        let same = lab.lrpns(&["apply"]);
        let said = describe(&same);
        assert!(
            same.status.success() && said.contains("nothing was changed"),
            "{said}"
        );
        lab.lrpns_ok(&["down"]);
    }
    let up = lab.lrpns(&["up", "-d", "--demo"]);
    let said = String::from_utf8_lossy(&up.stderr).into_owned();
    assert!(
        said.lines().next().unwrap().contains("0.0.0.0:5000"),
        "{said}"
    );
    assert!(lab.client_get(&format!("http://{LAB}:5000/")).is_ok());
    let same = lab.lrpns(&["apply"]);
    let said = describe(&same);
    assert!(
        same.status.success() && said.contains("nothing was changed"),
        "{said}"
    );
}

#[test]
fn a_stack_that_is_named_and_has_no_file_is_never_the_demo() {
    let lab = Lab::new();
    let before = lab.traces();
    for args in [
        &["up", "customerA", "-d"][..],
        &["up", "customerA"],
        &["up", "-d", "shop"],
        &["plan", "customerA"],
        &["up", "shop", "--demo"],
        &["up", "--demo", "-f", "x.toml"],
    ] {
        let output = lab.lrpns(args);
        let said = describe(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(
            said.contains("hint:") || said.contains("Usage"),
            "{args:?}: {said}"
        );
        assert!(!said.contains("is up"), "{args:?}: {said}");
    }
    support::lab::assert_unchanged(&before, &lab.traces());
}

#[test]
fn each_step_is_timed_when_asked() {
    let lab = Lab::new();
    let up = lab.lrpns(&["up", "-d", "--timings"]);
    assert!(up.status.success(), "{}", describe(&up));
    let said = String::from_utf8_lossy(&up.stderr).into_owned();
    // When, and what it took.
    let steps: Vec<(f64, f64, &str)> = { said.lines() }
        .filter_map(|line| {
            let (at, rest) = line.trim_start().split_once(" ms ")?;
            let (took, what) = rest.trim_start().split_once("  ")?;
            Some((
                at.parse().ok()?,
                took.strip_prefix('+')?.parse().ok()?,
                what,
            ))
        })
        .collect();
    let [first, .., last] = steps.as_slice() else {
        panic!("{said}");
    };
    assert_eq!(
        (first.2, last.2),
        ("the configuration is a plan", "ports are published")
    );
    assert!(steps.len() > 8, "{said}");
    // Rounded, each of them.
    let sum: f64 = steps.iter().map(|(_, took, _)| took).sum();
    assert!((sum - last.0).abs() < 0.1 * steps.len() as f64, "{said}");
    assert!(steps.is_sorted_by(|a, b| a.0 <= b.0), "{said}");
    // Nobody else hears of it.
    lab.lrpns_ok(&["down"]);
    let up = lab.lrpns(&["up", "-d"]);
    assert!(!String::from_utf8_lossy(&up.stderr).contains(" ms "));
}

/// A plan without what differs between any two runs, which `src/manual/json.md` names: its number, and the cgroup that is
/// named after it.
fn but_for_the_run(mut plan: Value) -> Value {
    let run = plan["run"].take();
    let text = plan.to_string();
    if let Value::String(run) = run {
        return serde_json::from_str(&text.replace(&run, "RUN")).unwrap();
    }
    panic!("{text}");
}

#[test]
fn a_plan_is_the_same_before_a_start_on_disk_and_while_the_stack_runs() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    lab.write(
        "extra.nft",
        "chain before { ip saddr 192.0.2.1 drop comment \"theirs\"; }\n",
    );
    let file = "name = \"web\"\n[sidecar]\nrules = \"extra.nft\"\n[app]\nrootfs = \"builtin:webapp\"\n\
        publish = [\"5000:5000\"]\nvia = \"relay\"\negress = [\"tcp 10.99.0.2:5432\"]\n\
        [app.limits]\nmemory = \"64M\"\n";
    let file = lab.write("web.toml", file);
    let file = file.to_str().unwrap();
    let json = |text: String| -> Value { serde_json::from_str(&text).unwrap() };
    let before = json(lab.lrpns_ok(&["plan", "-f", file, "--json"]));
    lab.lrpns_ok(&["up", "-d", "-f", file]);
    let saved = json(lab.ok(&["cat", "/run/lrpns/web/plan.json"]));
    let mut running = lab.status("web")["plan"].take();
    assert_eq!(but_for_the_run(before.clone()), but_for_the_run(saved));
    // What nft has made of the user's rules is no plan, but what came of one.
    let compiled = lab.status("web")["compiled"].to_string();
    assert!(compiled.contains("theirs"), "{compiled}");
    // Who may reach whom is of a plan only.
    running["reach"] = before["reach"].clone();
    assert_eq!(but_for_the_run(running), but_for_the_run(before));
}

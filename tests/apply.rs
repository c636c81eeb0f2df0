//! Live changes: `lrpns apply`, with real clients meanwhile; and what `lrpns rules --counters` says of it.
#![allow(clippy::unwrap_used)]

mod support;
use std::process::Output;

use serde_json::Value;
use support::lab::{LAB, Lab, describe};
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

/// Changes the file that the stack was made from, and applies it.
struct Stack {
    lab: Lab,
    via: &'static str,
}

impl Stack {
    /// One telling app, published on port 5000.
    fn up(via: &'static str) -> Self {
        let lab = Lab::forwarding();
        let stack = Self { lab, via };
        let file = stack.file(&["0.0.0.0:5000:5000"], "");
        let path = stack.lab.write("web.toml", &file);
        stack
            .lab
            .lrpns_ok(&["up", "-d", "-f", path.to_str().unwrap()]);
        stack
    }

    fn file(&self, publish: &[&str], more: &str) -> String {
        let list = publish.join("\", \"");
        let more = format!("via = \"{}\"\n{more}", self.via);
        look::telling("web", "", &list, &more)
    }

    /// `lrpns apply` of a file with these ports.
    fn apply(&self, publish: &[&str], more: &str, args: &[&str]) -> Output {
        self.apply_file(&self.file(publish, more), args)
    }

    fn apply_file(&self, file: &str, args: &[&str]) -> Output {
        let path = self.lab.write("web.toml", file);
        let args = [&["apply", "-f", path.to_str().unwrap()], args].concat();
        self.lab.lrpns(&args)
    }

    fn pids(&self) -> Vec<(String, i64)> {
        let status = self.lab.status("web");
        let parts = status["parts"].as_array().unwrap().iter();
        parts
            .map(|part| {
                (
                    part["name"].as_str().unwrap().to_owned(),
                    part["pid"].as_i64().unwrap(),
                )
            })
            .collect()
    }

    fn pid(&self, part: &str) -> i64 {
        look::pid(&self.lab.status("web"), part)
    }

    /// The status codes' numbers of curl, or 0, for a client outside and one on the host itself.
    fn get(&self, port: u16) -> (bool, bool) {
        let ask = |answer: Result<String, i32>| answer.is_ok();
        (
            ask(self.lab.client_get(&format!("http://{LAB}:{port}/"))),
            ask(self.lab.get(&format!("http://127.0.0.1:{port}/"))),
        )
    }

    /// What is in force, in both tables, as the kernel lists it, without counts and handles.
    fn rules(&self) -> [String; 2] {
        let status = self.lab.status("web");
        let sidecar = look::init(&status, "sidecar");
        let plain = |text: String| -> String {
            let words = text.split_whitespace().collect::<Vec<_>>();
            let mut kept = vec![];
            let mut skip = 0;
            for word in words {
                if skip > 0 {
                    skip -= 1;
                } else if word == "counter" {
                    skip = 4;
                } else {
                    kept.push(word);
                }
            }
            kept.join(" ")
        };
        [
            plain(look::beside(
                &self.lab,
                sidecar,
                &["nft", "list", "table", "inet", "lrpns"],
            )),
            plain(self.lab.ok(&["nft", "list", "table", "inet", "lrpns-web"])),
        ]
    }
}

fn assert_done(output: &Output) {
    assert!(output.status.success(), "{}", describe(output));
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const ONE: &[&str] = &["0.0.0.0:5000:5000"];
const TWO: &[&str] = &["0.0.0.0:5000:5000", "0.0.0.0:8080:6000"];

#[test]
fn a_port_comes_and_goes_while_the_app_and_the_sidecar_go_on() {
    if !look::machine() {
        return;
    }
    for via in ["dnat", "relay"] {
        let stack = Stack::up(via);
        let (app, sidecar, rules) = (stack.pid("app"), stack.pid("sidecar"), stack.rules());
        assert_eq!(stack.get(8080), (false, false));
        assert_done(&stack.apply(TWO, "", &[]));
        assert_eq!(
            (stack.get(5000), stack.get(8080)),
            ((true, true), (true, true)),
            "{via}"
        );
        assert_ne!(stack.rules(), rules);
        assert_done(&stack.apply(ONE, "", &[]));
        assert_eq!(
            (stack.get(5000), stack.get(8080)),
            ((true, true), (false, false)),
            "{via}"
        );
        assert_eq!((stack.pid("app"), stack.pid("sidecar")), (app, sidecar));
        let plan: Value =
            serde_json::from_str(&stack.lab.ok(&["cat", "/run/lrpns/web/plan.json"])).unwrap();
        assert_eq!(plan, stack.lab.status("web")["plan"]);
    }
}

#[test]
fn applying_the_same_file_says_so_and_changes_nothing() {
    if !look::machine() {
        return;
    }
    let stack = Stack::up("relay");
    let pids = stack.pids();
    let output = stack.apply(ONE, "", &["--json"]);
    assert_done(&output);
    assert!(
        stderr(&output).contains("nothing was changed"),
        "{}",
        describe(&output)
    );
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&told["changed"], &told["applied"]),
        (&false.into(), &false.into())
    );
    assert_eq!(stack.pids(), pids);
}

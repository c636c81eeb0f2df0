//! Live changes: `lrpns apply`, with real clients meanwhile; and what `lrpns rules --counters` says of it.
#![allow(clippy::unwrap_used)]

mod support;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Output};

use serde_json::Value;
use support::lab::{LAB, Lab, describe, lrpns};
use support::look;

/// `lrpns rules --counters --json`: packets by `chain/name` of one namespace's table.
fn counted(lab: &Lab, namespace: &str) -> look::Counters {
    let tables = lab.lrpns_ok(&["rules", "web", "--counters", "--json"]);
    look::told_counters(&tables, namespace)
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
        let mut seen = look::counters(&lab, pid, table);
        assert!(seen.len() > 4);
        if namespace == "host" {
            seen.extend(look::uplink_counters(&lab, "web"));
        }
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
        let more = format!("via = \"{}\"\n{more}", self.via);
        let file = look::telling("web", "", "PORTS", &more);
        file.replace("[\"PORTS\"]", &look::toml_list(publish))
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
        // The elements of a set are listed in the order in which they came.
        let sorted = |list: &str| -> String {
            let (elements, rest) = list.split_once('}').unwrap();
            let mut elements: Vec<_> = elements.split(',').map(str::trim).collect();
            elements.sort_unstable();
            format!("{}}}{rest}", elements.join(", "))
        };
        let plain = |text: String| -> String {
            let mut lists = text.split("elements = {");
            let mut text = lists.next().unwrap().to_owned();
            for list in lists {
                text += &format!("elements = {{{}", sorted(list));
            }
            let words = text.split_whitespace().collect::<Vec<_>>();
            let mut kept = vec![];
            let mut skip = 0;
            for (place, word) in words.iter().enumerate() {
                if skip > 0 {
                    skip -= 1;
                } else if words[place..].starts_with(&["counter", "packets"]) {
                    skip = 4;
                } else {
                    kept.push(*word);
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
            plain(self.far_rules()),
        ]
    }

    /// Those where the uplink ends. That may be known by the relay, and another one takes its place while a change is made, or
    /// taken back: who has gone since is asked no more.
    fn far_rules(&self) -> String {
        loop {
            let (far, table) = look::far(&self.lab.status("web"));
            let Some(pid) = far else {
                return look::table_text(&self.lab, far, &table, &[]);
            };
            let target = pid.to_string();
            let beside = ["nsenter", "--net", "--target", &target, "--"];
            let list = ["nft", "list", "table", "inet", &table];
            let listed = self.lab.run(&[&beside[..], &list].concat());
            if listed.status.success() {
                return String::from_utf8(listed.stdout).unwrap();
            }
            let now = look::far(&self.lab.status("web")).0;
            assert_ne!(now, far, "{}", describe(&listed));
        }
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
        // By number: a table that is made anew has another, and so has a chain in the same table.
        let chains = || {
            let init = look::init(&stack.lab.status("web"), "sidecar");
            ["tables", "chains"].map(|what| {
                // As text: see `look::counters`.
                let list = ["nft", "-a", "list", what];
                [look::beside(&stack.lab, init, &list), stack.lab.ok(&list)]
            })
        };
        let made = chains();
        assert_eq!(stack.get(8080), (false, false));
        assert_done(&stack.apply(TWO, "", &[]));
        assert_eq!(
            (stack.get(5000), stack.get(8080)),
            ((true, true), (true, true)),
            "{via}"
        );
        assert_ne!(stack.rules(), rules);
        assert_eq!(chains(), made, "{via}: base chains stay");
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

#[test]
fn a_part_starts_again_only_if_something_that_it_is_made_of_has_changed() {
    if !look::machine() {
        return;
    }
    let stack = Stack::up("relay");
    let before = stack.lab.status("web");
    let file = stack
        .file(ONE, "")
        .replace("TOKEN = \"\"", "TOKEN = \"new\"");
    let output = stack.apply_file(&file, &["--json"]);
    assert_done(&output);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["restart"][0]["part"], "app");
    assert_eq!(
        told["restart"][0]["because"],
        serde_json::json!(["app.env.TOKEN"])
    );
    let answer = stack.lab.get("http://127.0.0.1:5000/").unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["token"], "new");
    let after = stack.lab.status("web");
    assert_ne!(look::pid(&before, "app"), look::pid(&after, "app"));
    for part in ["sidecar", "relay"] {
        assert_eq!(look::pid(&before, part), look::pid(&after, part), "{part}");
    }
    // What starts an app again is decided by the supervisor: no process knows of it.
    assert_done(&stack.apply_file(&(file.clone() + "restart = \"no\"\n"), &[]));
    assert_eq!(stack.pid("app"), look::pid(&after, "app"));
    // A limit is a file of a cgroup, or, where there is none, of the process: it starts again.
    assert_done(&stack.apply_file(&(file + "limits = { pids = 100 }\n"), &[]));
    let limited = stack.lab.status("web");
    assert_ne!(look::pid(&limited, "app"), look::pid(&after, "app"));
    assert_eq!(limited["plan"]["apps"][0]["limits"]["pids"], 100);
    if let Some(cgroup) = look::part(&limited, "app")["cgroup"].as_str()
        && let Ok(most) = std::fs::read_to_string(format!("{cgroup}/pids.max"))
    {
        assert_eq!(most.trim(), "100");
    }
}

/// That nothing has changed, whatever was tried.
struct AsBefore<'s> {
    stack: &'s Stack,
    plan: Value,
    rules: [String; 2],
    ports: [(bool, bool); 2],
}

impl<'s> AsBefore<'s> {
    fn look(stack: &'s Stack) -> Self {
        Self {
            stack,
            plan: stack.lab.status("web")["plan"].clone(),
            rules: stack.rules(),
            ports: [stack.get(5000), stack.get(8080)],
        }
    }

    fn assert(&self, what: &str) {
        let now = Self::look(self.stack);
        assert_eq!(now.plan, self.plan, "{what}");
        assert_eq!(now.rules, self.rules, "{what}");
        assert_eq!(now.ports, self.ports, "{what}");
    }
}

#[test]
fn what_does_not_work_is_taken_back_and_said() {
    if !look::machine() {
        return;
    }
    for via in ["dnat", "relay"] {
        let lab = Lab::forwarding();
        let stack = Stack { lab, via };
        let path = stack.lab.write("web.toml", &stack.file(ONE, ""));
        let up = ["up", "-d", "-f", path.to_str().unwrap()];
        let up = stack.lab.lrpns_with(&[("LRPNS_TEST_PATIENCE", "500")], &up);
        assert!(up.status.success(), "{}", describe(&up));
        let before = AsBefore::look(&stack);
        let pids = stack.pids();
        let file = stack.file(TWO, "");
        let refused = |file: &str, code: i32, said: &str| {
            let output = stack.apply_file(file, &[]);
            assert_eq!(output.status.code(), Some(code), "{}", describe(&output));
            assert!(stderr(&output).contains(said), "{}", describe(&output));
            before.assert(said);
        };
        refused(
            "name = \"web\"\n[app]\ncomand = [\"/x\"]\n",
            2,
            "web.toml:3:1",
        );
        refused(
            &file.replace("172.18.0.0/24", "172.18.0.0/16"),
            1,
            "network.subnet can't be changed",
        );
        refused(
            &file.replace("address = \"172.18.0.23\"", "address = \"172.18.0.24\""),
            1,
            "app.address",
        );
        refused(&(file.clone() + "[app.other]\n"), 2, "web.toml");
        assert_eq!(stack.pids(), pids, "none of that was tried");

        let ends = file.replace("import http", "import os; os._exit(3); import http");
        refused(&ends, 1, "exit status 3");
        let deaf = file.replace("import http", "import time; time.sleep(1000); import http");
        refused(&deaf, 1, "does not listen on port 5000");
        let nowhere = file.replace("8080:6000", "8080:7000");
        refused(&nowhere, 1, "does not listen on port 7000");
        let mine = stack.lab.listen("0.0.0.0:8080");
        let output = stack.apply_file(&file, &[]);
        drop(mine);
        assert_eq!(output.status.code(), Some(125), "{}", describe(&output));
        assert!(
            stderr(&output).contains("0.0.0.0:8080"),
            "{}",
            describe(&output)
        );
        before.assert("a port that somebody has");
        let answer = stack.lab.get("http://127.0.0.1:5000/").unwrap();
        assert!(answer.contains("\"token\": \"\""), "{answer}");
        // And what does work is not in the way of anything that didn't.
        assert_done(&stack.apply_file(&file, &[]));
        assert_eq!(
            (stack.get(5000), stack.get(8080)),
            ((true, true), (true, true)),
            "{via}"
        );
    }
}

#[test]
fn a_dry_run_shows_the_difference_as_rules_and_changes_nothing() {
    if !look::machine() {
        return;
    }
    let stack = Stack::up("dnat");
    let (before, pids) = (AsBefore::look(&stack), stack.pids());
    let output = stack.apply(TWO, "", &["--dry-run"]);
    assert_done(&output);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for line in [
        " table inet lrpns {",
        "+\t\telement 172.18.0.23 . 6000",
        "+\t\telement 8080 : 8080",
        " table inet lrpns-web {",
    ] {
        assert!(
            text.lines().any(|l| l == line),
            "{line:?} is not in\n{text}"
        );
    }
    assert!(!text.lines().any(|line| line.starts_with('-')), "{text}");
    assert!(
        stderr(&output).contains("opened: 0.0.0.0:8080/tcp"),
        "{}",
        describe(&output)
    );
    let output = stack.apply(&[], "", &["--dry-run", "--json"]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["closed"], serde_json::json!(["0.0.0.0:5000/tcp"]));
    let removed = told["rules"][0]["removed"].as_array().unwrap();
    assert!(
        removed.contains(&"element 5000 : 172.18.0.23".into()),
        "{told}"
    );
    before.assert("a dry run");
    assert_eq!(stack.pids(), pids);
}

/// A connection of Python's to a port, which sends a request for every line that it is told, and says how that went.
const KEEPS: &str = r#"
import http.client, sys
connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=5)
for line in sys.stdin:
    connection.request("GET", "/")
    answer = connection.getresponse()
    answer.read()
    print(answer.status, connection.sock.getsockname()[1], flush=True)
"#;

/// One such connection.
struct Keeping {
    child: Child,
    says: BufReader<ChildStdout>,
}

impl Keeping {
    fn to(lab: &Lab, client: bool, address: &str, port: &str) -> Self {
        let netns: &[&str] = if client {
            &["ip", "netns", "exec", "client"]
        } else {
            &[]
        };
        let mut child = lab.spawn(&[netns, &[look::PYTHON, "-c", KEEPS, address, port]].concat());
        let says = BufReader::new(child.stdout.take().unwrap());
        Self { child, says }
    }

    /// What came, and from which port of the client's.
    fn ask(&mut self) -> String {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        let mut line = String::new();
        self.says.read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

#[test]
fn connections_live_on_through_a_port_that_closes_and_new_ones_are_refused() {
    if !look::machine() {
        return;
    }
    for via in ["dnat", "relay"] {
        let stack = Stack::up(via);
        // An app whose server keeps connections.
        let keeps = |publish: &[&str]| {
            let file = stack.file(publish, "");
            file.replace(
                "def do_GET",
                "protocol_version = 'HTTP/1.1'\\n    def do_GET",
            )
        };
        assert_done(&stack.apply_file(&keeps(TWO), &[]));
        let mut open = vec![];
        for (client, address) in [(true, LAB), (false, "127.0.0.1")] {
            for port in ["5000", "8080"] {
                let mut connection = Keeping::to(&stack.lab, client, address, port);
                let first = connection.ask();
                assert!(first.starts_with("200 "), "{first:?}");
                open.push((connection, first));
            }
        }
        for (publish, is_open) in [(ONE, false), (TWO, true), (&[][..], false), (TWO, true)] {
            assert_done(&stack.apply_file(&keeps(publish), &[]));
            assert_eq!(stack.get(8080), (is_open, is_open), "{via} {publish:?}");
            for (connection, first) in &mut open {
                assert_eq!(connection.ask(), *first, "{via} {publish:?}");
            }
        }
        // With the last of its connections an earlier relay ends.
        drop(open);
        let notes = || {
            let status = stack.lab.status("web");
            let relay = look::part(&status, "relay")["notes"].clone();
            relay
                .as_array()
                .unwrap()
                .iter()
                .any(|note| note.as_str().unwrap().contains("last connections"))
        };
        look::eventually("earlier relays", &false, notes);
        let relays = stack
            .lab
            .ok(&["sh", "-c", "ps -eo args | grep -c '[i]nit web/relay'"]);
        assert_eq!(relays.trim(), "1");
    }
}

/// `lrpns apply --confirm` that has come to the question.
fn asked(stack: &Stack, seconds: &str) -> (Child, BufReader<std::process::ChildStderr>) {
    let asked = asked_about(stack, &stack.file(TWO, ""), seconds);
    assert_eq!(stack.get(8080), (true, true), "it is in force already");
    asked
}

/// The same for any file.
fn asked_about(
    stack: &Stack,
    file: &str,
    seconds: &str,
) -> (Child, BufReader<std::process::ChildStderr>) {
    let path = stack.lab.write("web.toml", file);
    let args = ["apply", "-f", path.to_str().unwrap(), "--confirm", seconds];
    let mut child = stack.lab.spawn_lrpns(&args);
    let mut says = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("to keep it") {
        let mut line = String::new();
        assert_ne!(says.read_line(&mut line).unwrap(), 0, "{said}");
        said += &line;
    }
    (child, says)
}

fn rest(mut child: Child, mut says: BufReader<std::process::ChildStderr>) -> (Option<i32>, String) {
    let mut text = String::new();
    says.read_to_string(&mut text).unwrap();
    (child.wait().unwrap().code(), text)
}

#[test]
fn a_change_stays_only_if_it_is_confirmed() {
    if !look::machine() {
        return;
    }
    for via in ["dnat", "relay"] {
        let stack = Stack::up(via);
        let before = AsBefore::look(&stack);

        let (mut child, says) = asked(&stack, "60");
        let path = stack.lab.dir.path().join("web.toml");
        let second = stack.lab.lrpns(&["apply", "-f", path.to_str().unwrap()]);
        assert_eq!(
            second.status.code(),
            Some(0),
            "it is what the file says: {}",
            describe(&second)
        );
        let third = stack.apply(&["0.0.0.0:9090:6000"], "", &[]);
        assert_eq!(third.status.code(), Some(1), "{}", describe(&third));
        assert!(
            stderr(&third).contains("another live change"),
            "{}",
            describe(&third)
        );
        // The end of its input is a no.
        drop(child.stdin.take());
        let (code, said) = rest(child, says);
        assert_eq!(code, Some(1));
        assert!(said.contains("not confirmed"), "{said}");
        before.assert("the end of the input");

        let (child, says) = asked(&stack, "1");
        let (code, said) = rest(child, says);
        assert_eq!(code, Some(1));
        assert!(said.contains("not confirmed within 1 s"), "{said}");
        before.assert("silence");

        let (mut child, says) = asked(&stack, "60");
        child.stdin.as_mut().unwrap().write_all(b"yes\n").unwrap();
        let (code, said) = rest(child, says);
        assert_eq!((code, said.contains("done")), (Some(0), true), "{said}");
        assert_eq!(
            (stack.get(5000), stack.get(8080)),
            ((true, true), (true, true))
        );
        assert_done(&stack.apply(ONE, "", &[]));
        // What was there once is closing, and that is all that is left of it.
        assert_eq!(stack.get(8080), (false, false));
    }
}

/// Kills the command of a live change and its guardian, both before either can do anything about the other's end.
fn kill_who_applies(lab: &Lab) {
    let [command, guardian] = appliers(lab).try_into().unwrap();
    for (signal, pid) in [
        ("-STOP", &guardian),
        ("-KILL", &command),
        ("-KILL", &guardian),
    ] {
        lab.ok(&["kill", signal, pid]);
    }
}

/// The processes of the lab that are `lrpns apply`, the oldest first.
fn appliers(lab: &Lab) -> Vec<String> {
    let list = lab.ok(&["pgrep", "-f", &format!("^{} apply", support::lab::lrpns())]);
    list.lines().map(str::to_owned).collect()
}

#[test]
fn who_waits_at_the_question_may_be_killed_and_the_old_rules_come_back() {
    if !look::machine() {
        return;
    }
    for via in ["dnat", "relay"] {
        let stack = Stack::up(via);
        let before = AsBefore::look(&stack);
        let (child, says) = asked(&stack, "60");
        let [command, guardian] = appliers(&stack.lab).try_into().unwrap();
        // The one that talks to the supervisor holds what it takes to change rules, and is out of the terminal's reach.
        let status = stack.lab.ok(&["cat", &format!("/proc/{guardian}/status")]);
        assert!(status.contains("CapPrm:\t0000000000001000"), "{status}");
        let session = |pid: &str| {
            stack
                .lab
                .ok(&["ps", "-o", "sid=", "-p", pid])
                .trim()
                .to_owned()
        };
        assert_ne!(session(&command), session(&guardian));
        stack.lab.ok(&["kill", "-KILL", &command]);
        drop(says);
        drop(child);
        look::eventually("the rules", &before.rules, || stack.rules());
        look::eventually("who applies", &1, || {
            stack
                .lab
                .run(&["pgrep", "-f", "lrpns apply"])
                .status
                .code()
                .unwrap()
        });
        before.assert("kill -9 of the command");

        // And if it is that one: nobody may change the host's table, but what decides comes back.
        let (child, says) = asked(&stack, "60");
        kill_who_applies(&stack.lab);
        drop((child, says));
        look::eventually("the sidecar's rules", &before.rules[0], || {
            stack.rules()[0].clone()
        });
        look::eventually("the plan", &before.plan, || {
            stack.lab.status("web")["plan"].clone()
        });
        assert_eq!((stack.get(5000), stack.get(8080).1), ((true, true), false));
        let through_what_is_left = stack.lab.client(&[
            "curl",
            "-sS",
            "--max-time",
            "1",
            &format!("http://{LAB}:8080/"),
        ]);
        assert!(!through_what_is_left.status.success());
        // The next change knows what is in the host's table.
        assert_done(&stack.apply(TWO, "", &[]));
        assert_eq!(
            (stack.get(5000), stack.get(8080)),
            ((true, true), (true, true))
        );
        // And so does whoever compares what is in force with the plan.
        let audit = stack.lab.lrpns(&["audit", "web", "--json"]);
        let told = String::from_utf8_lossy(&audit.stdout).into_owned();
        let has = |what: &str| told.contains(what);
        assert!(
            has("\"result\": \"pass\"") && !has("\"result\": \"fail\""),
            "{told}"
        );
    }
}

/// An app of the host's programs, which never listens.
const DEAF: &str = "rootfs = \"host\"\ncommand = [\"/bin/sleep\", \"600\"]\n";

#[test]
fn a_change_that_is_interrupted_while_an_app_does_not_listen_is_taken_back_at_once() {
    if !look::machine() {
        return;
    }
    let stack = Stack::up("dnat");
    let before = AsBefore::look(&stack);
    let text = stack.file(ONE, "");
    let changed = |text: &str| {
        let start = text.find("rootfs =").unwrap();
        let end = text.find("publish =").unwrap();
        format!("{}{DEAF}{}", &text[..start], &text[end..])
    };
    let joined = format!(
        "{}\n[app.other]\n{DEAF}publish = [\"0.0.0.0:9090:9090\"]\n",
        text.replace("[app]", "[app.app]")
    );
    for (file, signal, code) in [
        (changed(&text), "INT", 130),
        (joined.clone(), "TERM", 143),
        (changed(&text), "HUP", 129),
        // Not even a word of goodbye.
        (joined, "KILL", -1),
    ] {
        let path = stack.lab.write("web.toml", &file);
        let mut apply = stack
            .lab
            .spawn_lrpns(&["apply", "-f", path.to_str().unwrap()]);
        let mut says = BufReader::new(apply.stderr.take().unwrap());
        support::lab::until("the app that doesn't listen runs", || {
            let found = stack.lab.run(&["pgrep", "-f", "^/bin/sleep 600"]);
            found.status.success().then_some(())
        });
        let mut line = String::new();
        while signal == "INT" && !line.contains("waiting for app to listen on port 5000, for 2 s") {
            assert_ne!(says.read_line(&mut line).unwrap(), 0, "{line}");
        }
        let command = appliers(&stack.lab)[0].clone();
        stack.lab.ok(&["kill", "-s", signal, &command]);
        // Whoever is impatient ends with the same.
        let _ = stack.lab.run(&["kill", "-s", signal, &command]);
        let (ended, said) = rest(apply, says);
        if code > 0 {
            assert_eq!(ended, Some(code), "{said}");
            assert!(said.contains("all is as it was before"), "{said}");
        }
        look::eventually("the plan", &before.plan, || {
            stack.lab.status("web")["plan"].clone()
        });
        look::eventually("the app", &(true, true), || stack.get(5000));
        look::eventually("the rules", &before.rules, || stack.rules());
        assert!(!stack.lab.run(&["pgrep", "-x", "sleep"]).status.success());
    }
}

#[test]
fn a_client_that_was_stopped_does_nothing_late() {
    if !look::machine() {
        return;
    }
    let stack = Stack::up("dnat");
    let before = AsBefore::look(&stack);
    let (child, says) = asked(&stack, "1");
    let [_, guardian] = appliers(&stack.lab).try_into().unwrap();
    stack.lab.ok(&["kill", "-STOP", &guardian]);
    support::lab::until("the supervisor goes on alone", || {
        let log = stack.lab.lrpns_ok(&["logs", "web"]);
        log.contains("the client doesn't answer").then_some(())
    });
    let left = stack.rules();
    assert_ne!(left, before.rules, "nothing was left to be done late");
    stack.lab.ok(&["kill", "-CONT", &guardian]);
    let (code, said) = rest(child, says);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("gone on without it"), "{said}");
    assert_eq!(stack.rules(), left);
    // What is in the host's table is what the next change takes it for.
    assert_done(&stack.apply(TWO, "", &[]));
    let map = look::table_text(&stack.lab, None, "lrpns-web", &[]);
    assert!(map.contains("8080 : "), "{map}");
}

#[test]
fn at_a_terminal_enter_keeps_and_a_hangup_does_not() {
    if !look::machine() {
        return;
    }
    let stack = Stack::up("dnat");
    let before = AsBefore::look(&stack);
    let path = stack.lab.write("web.toml", &stack.file(TWO, ""));
    let typed = |first: &str, then: &str| {
        let code = format!(
            "import os, pty, signal\n\
             ready, go = os.pipe()\n\
             pid, terminal = pty.fork()\n\
             if pid == 0:\n    os.read(ready, 1)\n    os.execv('{0}', ['{0}', 'apply', '-f', '{1}', '--confirm', '60'])\n\
             {first}\n\
             os.write(go, b'x')\n\
             said = b''\n\
             while b'press Enter' not in said: said += os.read(terminal, 4096)\n\
             {then}\n\
             print(os.waitpid(pid, 0)[1])",
            support::lab::lrpns(),
            path.to_str().unwrap(),
        );
        stack.lab.ok(&[look::PYTHON, "-c", &code]).trim().to_owned()
    };
    let at_a_terminal = |then: &str| typed("pass", then);
    let enter = "os.write(terminal, b'\\n')";
    let said = typed(enter, "os.write(terminal, b'\\x03')");
    // 130 and 129 by exit(2), as waitpid(2) has them.
    assert_eq!(said, "33280", "before the question, Enter says nothing");
    look::eventually("the rules", &before.rules, || stack.rules());
    assert_eq!(at_a_terminal("os.close(terminal)"), "33024", "SIGHUP");
    look::eventually("the rules", &before.rules, || stack.rules());
    look::eventually("the plan", &before.plan, || {
        stack.lab.status("web")["plan"].clone()
    });
    before.assert("a hangup");
    assert_eq!(
        at_a_terminal("os.write(terminal, b'\\x03')"),
        "33280",
        "SIGINT"
    );
    look::eventually("the rules", &before.rules, || stack.rules());
    look::eventually("the plan", &before.plan, || {
        stack.lab.status("web")["plan"].clone()
    });
    assert_eq!(at_a_terminal(enter), "0");
    assert_eq!(
        (stack.get(5000), stack.get(8080)),
        ((true, true), (true, true))
    );
}

/// New connections, one after the other, each with one request, until its input ends: how many, how many failed, the
/// longest in milliseconds.
const CONNECTS: &str = r#"
import select, socket, sys, time
count = failed = 0
longest = 0.0
while count < 2000 or not select.select([sys.stdin], [], [], 0)[0]:
    begun = time.monotonic()
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as s:
            s.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            answer = b""
            while chunk := s.recv(4096):
                answer += chunk
        failed += not (answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"world!"))
    except OSError as e:
        failed += 1
        print(e, file=sys.stderr, flush=True)
    longest = max(longest, time.monotonic() - begun)
    count += 1
print(count, failed, longest * 1000)
"#;

/// What the kernel of the client's namespace has counted by that name (netstat(8)).
fn netstat(lab: &Lab, name: &str) -> u64 {
    let text = lab.client(&["cat", "/proc/net/netstat", "/proc/net/snmp"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(' ').collect()).collect();
    let pairs = lines
        .chunks(2)
        .flat_map(|pair| pair[0].iter().zip(&pair[1]));
    let mut found = pairs.filter(|(key, _)| **key == name);
    found.next().unwrap().1.parse().unwrap()
}

#[test]
fn fifty_changes_cost_no_request_no_connection_and_no_syn() {
    if !look::machine_with(&["wrk"]) {
        return;
    }
    for via in ["dnat", "relay"] {
        let lab = Lab::forwarding();
        let file = |publish: &[&str]| {
            format!(
                "name = \"web\"\n[app]\nrootfs = \"builtin:webapp\"\ncommand = [\"/webapp\"]\nvia = \"{via}\"\n\
                 publish = {}\n",
                look::toml_list(publish)
            )
        };
        let path = lab.write("web.toml", &file(ONE));
        let path = path.to_str().unwrap();
        lab.lrpns_ok(&["up", "-d", "-f", path]);
        let url = format!("http://{LAB}:5000/");
        let in_client = ["ip", "netns", "exec", "client"];
        // One that is sent again without a reset before was lost. Else the last connection from that port of the sidecar's,
        // which is in TIME-WAIT in the app, has answered the first: the client resets that, and tries again after 8 ms
        // (tcp_rcv_synsent_state_process, net/ipv4/tcp_input.c). It happens once in some ten thousand, changes or not.
        let lost = || netstat(&lab, "TCPSynRetrans").saturating_sub(netstat(&lab, "OutRsts"));
        let before = lost();
        // Far longer than it takes; it is interrupted.
        let wrk = lab.spawn(
            &[
                &in_client,
                &["wrk", "-t1", "-c4", "-d600", "--latency", &url][..],
            ]
            .concat(),
        );
        let mut new =
            lab.spawn(&[&in_client, &[look::PYTHON, "-c", CONNECTS, LAB, "5000"][..]].concat());
        for run in 0..50 {
            let publish: &[&str] = match run % 4 {
                0 => &["0.0.0.0:5000:5000", "0.0.0.0:8080:5000"],
                1 => &[
                    "0.0.0.0:5000:5000",
                    "0.0.0.0:8080:5000",
                    "10.99.0.1:9090:5000",
                    "127.0.0.1:9091:5000",
                ],
                2 => &["127.0.0.1:9091:5000", "0.0.0.0:5000:5000"],
                _ => ONE,
            };
            lab.write("web.toml", &file(publish));
            assert_done(&lab.lrpns(&["apply", "-f", path]));
        }
        drop(new.stdin.take());
        let new = new.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&new.stdout).into_owned();
        let told: Vec<f64> = told
            .split_whitespace()
            .map(|word| word.parse().unwrap())
            .collect();
        // wrk resets its connections when it ends.
        let after = lost();
        lab.ok(&["pkill", "-INT", "-x", "wrk"]);
        let wrk = String::from_utf8_lossy(&wrk.wait_with_output().unwrap().stdout).into_owned();
        eprintln!("{via}: new connections, failed, longest ms: {told:?}\n{wrk}");
        assert!(told[0] >= 2000.0 && told[1] == 0.0, "{}", describe(&new));
        assert!(
            !wrk.contains("Socket errors") && !wrk.contains("Non-2xx"),
            "{wrk}"
        );
        let requests = wrk
            .lines()
            .find(|line| line.contains("requests in"))
            .unwrap();
        let requests: u64 = requests.split_whitespace().next().unwrap().parse().unwrap();
        assert!(requests >= 10_000, "{wrk}");
        // A SYN that is lost costs a second.
        assert_eq!(after, before, "{via}");
        assert!(told[2] < 1000.0, "{via}: {told:?}");
    }
}

#[test]
fn a_sealed_sidecar_is_changed_too_and_sealing_starts_it_again() {
    if !look::machine() {
        return;
    }
    let stack = Stack::up("dnat");
    let seal = |publish: &[&str]| {
        stack
            .file(publish, "")
            .replace("[sidecar]\n", "[sidecar]\nseal = true\n")
    };
    let before = stack.lab.status("web");
    let output = stack.apply_file(&seal(ONE), &["--json"]);
    assert_done(&output);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        told["restart"],
        serde_json::json!([{ "part": "sidecar", "because": ["sidecar.seal"] }])
    );
    let sealed = stack.lab.status("web");
    assert_ne!(look::pid(&before, "sidecar"), look::pid(&sealed, "sidecar"));
    let held = look::capabilities(&stack.lab, look::pid(&sealed, "sidecar"));
    assert!(held.iter().all(|set| set == "0000000000000000"), "{held:?}");
    assert_done(&stack.apply_file(&seal(TWO), &[]));
    assert_eq!(
        (stack.get(5000), stack.get(8080)),
        ((true, true), (true, true))
    );
    assert_eq!(stack.pid("sidecar"), look::pid(&sealed, "sidecar"));
}

/// A server of UDP on ports 7001 and 7002 that answers with its port; and of TCP on 5000, which is what `up` tries.
const ECHO: &str = r#"
import select, socket
tcp = socket.create_server(("0.0.0.0", 5000))
ports = {}
for port in (7001, 7002):
    ports[port] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ports[port].bind(("0.0.0.0", port))
while True:
    for s in select.select([*ports.values()], [], [])[0]:
        s.sendto(str(s.getsockname()[1]).encode(), s.recvfrom(100)[1])
"#;

/// A client of UDP with one socket, which sends for every line that it is told, again and again for so many seconds, and
/// says what was answered: a datagram that meets one relay while another takes over may be lost, and is no stuck flow.
const SENDS: &str = r#"
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 45678))
for line in sys.stdin:
    answer = "silence"
    end = time.monotonic() + float(line)
    s.settimeout(0.3)
    while answer == "silence" and time.monotonic() < end:
        s.sendto(b"x", (sys.argv[1], 7000))
        try:
            answer = s.recv(100).decode()
        except TimeoutError:
            pass
    # An answer to an earlier one would be taken for the next one's.
    s.setblocking(False)
    try:
        while s.recv(100):
            pass
    except BlockingIOError:
        pass
    print(answer, flush=True)
"#;

#[test]
fn a_flow_of_udp_goes_to_whoever_is_behind_its_port_now() {
    if !look::machine() {
        return;
    }
    for via in ["dnat", "relay"] {
        let lab = Lab::forwarding();
        let stack = Stack { lab, via };
        let file = |publish: &[&str]| {
            let publish = [ONE, publish].concat();
            let file = stack.file(&publish, "");
            look::with_program(&file, ECHO)
        };
        let path = stack
            .lab
            .write("web.toml", &file(&["0.0.0.0:7000:7001/udp"]));
        stack
            .lab
            .lrpns_ok(&["up", "-d", "-f", path.to_str().unwrap()]);
        let app = stack.pid("app");
        let client = [
            "ip",
            "netns",
            "exec",
            "client",
            look::PYTHON,
            "-c",
            SENDS,
            LAB,
        ];
        let mut child = stack.lab.spawn(&client);
        let says = BufReader::new(child.stdout.take().unwrap());
        let mut flow = Keeping { child, says };
        let mut ask = |patience: &str| {
            flow.child
                .stdin
                .as_mut()
                .unwrap()
                .write_all(patience.as_bytes())
                .unwrap();
            let mut line = String::new();
            flow.says.read_line(&mut line).unwrap();
            line.trim().to_owned()
        };
        assert_eq!(ask("10\n"), "7001", "{via}");
        for (publish, answer) in [
            (&["0.0.0.0:7000:7002/udp"][..], "7002"),
            (&["0.0.0.0:7000:7001/udp"], "7001"),
            (&[], "silence"),
            (&["0.0.0.0:7000:7002/udp"], "7002"),
        ] {
            assert_done(&stack.apply_file(&file(publish), &[]));
            let patience = if answer == "silence" { "0.3\n" } else { "10\n" };
            assert_eq!(ask(patience), answer, "{via} {publish:?}");
        }
        assert_eq!(stack.pid("app"), app);
    }
}

#[test]
fn a_flow_of_udp_that_goes_on_shows_its_client_as_source_says_now() {
    if !look::machine() {
        return;
    }
    for (via, begins) in [("dnat", "sidecar"), ("dnat", "client"), ("relay", "client")] {
        let stack = Stack {
            lab: Lab::forwarding(),
            via,
        };
        let tells = ECHO.replace(
            "s.sendto(str(s.getsockname()[1]).encode(), s.recvfrom(100)[1])",
            "peer = s.recvfrom(100)[1]; s.sendto(peer[0].encode(), peer)",
        );
        assert_ne!(tells, ECHO);
        let file = |source: &str| {
            let publish = [ONE, &["0.0.0.0:7000:7001/udp"]].concat();
            let file = stack.file(&publish, &format!("source = \"{source}\"\n"));
            let command = look::toml_list(&[look::PYTHON, "-c", &tells]);
            let lines = file
                .lines()
                .map(|line| match line.starts_with("command = ") {
                    true => format!("command = {command}\n"),
                    false => format!("{line}\n"),
                });
            lines.collect::<String>()
        };
        let path = stack.lab.write("web.toml", &file(begins));
        stack
            .lab
            .lrpns_ok(&["up", "-d", "-f", path.to_str().unwrap()]);
        let client = ["ip", "netns", "exec", "client"];
        let client = [&client[..], &[look::PYTHON, "-c", SENDS, LAB]].concat();
        let mut child = stack.lab.spawn(&client);
        let says = BufReader::new(child.stdout.take().unwrap());
        let mut flow = Keeping { child, says };
        let mut ask = || {
            let input = flow.child.stdin.as_mut().unwrap();
            input.write_all(b"10\n").unwrap();
            let mut line = String::new();
            flow.says.read_line(&mut line).unwrap();
            line.trim().to_owned()
        };
        let seen = |source: &str| match source {
            "client" => support::lab::CLIENT,
            _ => "172.18.0.33",
        };
        assert_eq!(ask(), seen(begins), "{via}");
        for source in ["sidecar", "client", "sidecar"] {
            assert_done(&stack.apply_file(&file(source), &[]));
            assert_eq!(ask(), seen(source), "{via}, began with {begins}");
        }
    }
}

/// Somebody else's server, in the client's namespace: it echoes, and for every line that it is told it says something to
/// everybody who has ever talked to it but at port 7000.
const ECHOES: &str = r#"
import selectors, socket, sys
chosen = selectors.DefaultSelector()
peers = {}
for where in sys.argv[1:]:
    kind, address, port = where.split()
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((address, int(port)))
    if kind == "tcp":
        s.listen()
    chosen.register(s, selectors.EVENT_READ, "listen" if kind == "tcp" else "udp")
chosen.register(sys.stdin, selectors.EVENT_READ, "stdin")
print("ready", flush=True)
while True:
    for key, _ in chosen.select():
        s = key.fileobj
        try:
            if key.data == "stdin":
                if not sys.stdin.readline():
                    sys.exit()
                for say in list(peers.values()):
                    try:
                        say(b"news")
                    except OSError:
                        pass
                print("said", flush=True)
            elif key.data == "listen":
                c, peer = s.accept()
                if c.getsockname()[1] != 7000:
                    peers[peer] = c.sendall
                chosen.register(c, selectors.EVENT_READ, "tcp")
            elif key.data == "udp":
                data, peer = s.recvfrom(99)
                peers[peer] = lambda data, s=s, peer=peer: s.sendto(data, peer)
                s.sendto(data, peer)
            else:
                data = s.recv(99)
                if data:
                    s.sendall(data)
                else:
                    chosen.unregister(s)
                    s.close()
        except OSError as e:
            print(e, file=sys.stderr)
"#;

/// A connection out of an app, with all that an app has: for every line it says what came of it. `ask` sends and waits,
/// `hear` waits.
const TALKS: &str = r#"
import errno, socket, sys
kind, address, port = sys.argv[1:]
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
s.settimeout(5)
s.connect((address, int(port)))
for line in sys.stdin:
    try:
        if line == "ask\n":
            s.settimeout(1)
            s.send(b"echo")
        else:
            s.settimeout(0.3)
        print(s.recv(99).decode(), flush=True)
    except TimeoutError:
        print("silence", flush=True)
    except OSError as e:
        print(errno.errorcode[e.errno], flush=True)
"#;

/// A process that answers lines.
struct Answering {
    child: Child,
    says: BufReader<ChildStdout>,
}

impl Answering {
    fn new(mut child: Child) -> Self {
        let says = BufReader::new(child.stdout.take().unwrap());
        Self { child, says }
    }

    fn server(lab: &Lab, places: &[&str]) -> Self {
        let python = ["ip", "netns", "exec", "client", look::PYTHON, "-c", ECHOES];
        let mut server = Self::new(lab.spawn(&[&python, places].concat()));
        assert_eq!(server.line(), "ready");
        server
    }

    fn out_of(lab: &Lab, app: &str, way: &str) -> Self {
        let python = [
            "exec",
            "web",
            "--part",
            app,
            "--",
            look::PYTHON,
            "-c",
            TALKS,
        ];
        let way: Vec<&str> = way.split(' ').collect();
        Self::new(lab.spawn_lrpns(&[&python, &way[..]].concat()))
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.says.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn ask(&mut self, what: &str) -> String {
        writeln!(self.child.stdin.as_mut().unwrap(), "{what}").unwrap();
        self.line()
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Where a process has routes to.
fn routes(stack: &Stack, part: &str) -> Vec<String> {
    look::routes(&stack.lab, stack.pid(part), "-4")
}

/// What conntrack has, in a namespace, of connections that were begun by `from` with the port `to`.
fn tracked(stack: &Stack, part: Option<&str>, from: &str, to: &str) -> Vec<String> {
    let status = stack.lab.status("web");
    let list = ["cat", "/proc/net/nf_conntrack"];
    let text = match part {
        Some(part) => look::beside(&stack.lab, look::init(&status, part), &list),
        None => stack.lab.ok(&list),
    };
    let of = |line: &&str| {
        let mut words = line.split_whitespace();
        let mut first = |key: &str| {
            let word = words.find(|word| word.starts_with(key));
            word.map(|word| word[key.len()..].to_owned())
        };
        first("src=").is_some_and(|source| source == from)
            && first("dport=").is_some_and(|port| port == to)
    };
    text.lines().filter(of).map(str::to_owned).collect()
}

/// Two apps, of which the first may connect to `one`, and the second to port 7000; two more neighbours in the client's
/// namespace.
fn with_egress(one: &[&str]) -> String {
    let one = format!("egress = {}\n", look::toml_list(one));
    let two = "egress = [\"tcp 10.99.0.2:7000\"]\n";
    several(
        "dnat",
        &[
            ("one", 23, "0.0.0.0:5000:5000", &one),
            ("two", 24, "0.0.0.0:8080:5000", two),
        ],
    )
}

fn up_with_egress(one: &[&str]) -> Stack {
    let stack = Stack {
        lab: Lab::forwarding(),
        via: "dnat",
    };
    stack.lab.ok(&[
        "ip",
        "-n",
        "client",
        "address",
        "add",
        "10.99.0.3/24",
        "dev",
        "eth0",
    ]);
    let path = stack.lab.write("web.toml", &with_egress(one));
    stack
        .lab
        .lrpns_ok(&["up", "-d", "-f", path.to_str().unwrap()]);
    stack
}

const SERVED: &[&str] = &[
    "tcp 10.99.0.2 6000",
    "tcp 10.99.0.3 6000",
    "udp 10.99.0.2 6000",
    "tcp 10.99.0.2 7000",
];

#[test]
fn egress_comes_and_goes_while_all_runs_and_what_is_granted_no_more_ends() {
    if !look::machine() {
        return;
    }
    // With none it could not connect at all, and would have to start again.
    let nothing = "udp 10.99.0.4:9";
    let stack = up_with_egress(&[nothing]);
    let lab = &stack.lab;
    let mut server = Answering::server(lab, SERVED);
    let mut keeping = Keeping::to(lab, true, LAB, "5000");
    let client = keeping.ask();
    let mut others = Answering::out_of(lab, "two", "tcp 10.99.0.2 7000");
    assert_eq!(others.ask("ask"), "echo");
    let (pids, before) = (stack.pids(), stack.rules());
    let mut as_ever = |keeping: &mut Keeping, what: &str| {
        assert_eq!(others.ask("ask"), "echo", "{what}");
        assert_eq!(keeping.ask(), client, "{what}");
        assert_eq!(stack.pids(), pids, "{what}");
    };
    let try_once = |way: &str| {
        let python = [
            "exec",
            "web",
            "--part",
            "one",
            "--",
            look::PYTHON,
            "-c",
            TALKS,
        ];
        let way: Vec<&str> = way.split(' ').collect();
        let output = lab.lrpns(&[&python, &way[..]].concat());
        output.status.success()
    };
    assert_eq!(routes(&stack, "one"), ["10.99.0.4", "172.18.0.33"]);
    assert!(!try_once("tcp 10.99.0.2 6000"));

    let (tcp, udp) = ("tcp 10.99.0.2:6000", "udp 10.99.0.2:6000");
    assert_done(&stack.apply_file(&with_egress(&[tcp, udp]), &[]));
    assert_eq!(routes(&stack, "one"), ["10.99.0.2", "172.18.0.33"]);
    let mut by_tcp = Answering::out_of(lab, "one", "tcp 10.99.0.2 6000");
    let mut by_udp = Answering::out_of(lab, "one", "udp 10.99.0.2 6000");
    assert_eq!(
        (by_tcp.ask("ask"), by_udp.ask("ask")),
        ("echo".into(), "echo".into())
    );
    assert!(!try_once("tcp 10.99.0.3 6000"));
    as_ever(&mut keeping, "from something else");

    // To another address; what is left of the first one goes on.
    assert_done(&stack.apply_file(&with_egress(&[udp, "tcp 10.99.0.3:6000"]), &[]));
    assert_eq!(
        routes(&stack, "one"),
        ["10.99.0.2", "10.99.0.3", "172.18.0.33"]
    );
    assert_eq!(by_udp.ask("ask"), "echo");
    assert!(try_once("tcp 10.99.0.3 6000") && !try_once("tcp 10.99.0.2 6000"));
    assert_eq!(server.ask("say"), "said");
    assert_eq!(by_udp.ask("hear"), "news");
    assert_eq!(by_tcp.ask("hear"), "silence", "the far end is not heard");
    assert_ne!(by_tcp.ask("ask"), "echo");
    let uplink = look::planned(&lab.status("web"), "/uplink/sidecar_address").to_owned();
    let seen = |from: &str, to: &str| {
        let tcp = |lines: Vec<String>| lines.iter().filter(|line| line.contains(" tcp ")).count();
        (
            tcp(tracked(&stack, Some("sidecar"), from, to)),
            tcp(tracked(&stack, None, &uplink, to)),
        )
    };
    assert_eq!(seen("172.18.0.24", "7000"), (1, 1));
    let first = tracked(&stack, Some("sidecar"), "172.18.0.23", "6000");
    assert!(
        !first
            .iter()
            .any(|line| line.contains(" tcp ") && line.contains("dst=10.99.0.2 ")),
        "{first:?}"
    );
    as_ever(&mut keeping, "to another address");

    // By UDP, too, the far end is not heard any more, however often it tries.
    assert_done(&stack.apply_file(&with_egress(&[nothing]), &[]));
    assert_eq!(server.ask("say"), "said");
    assert_eq!(
        (by_udp.ask("hear"), by_udp.ask("ask")),
        ("silence".into(), "ENETUNREACH".into())
    );
    assert_eq!(routes(&stack, "one"), ["10.99.0.4", "172.18.0.33"]);
    assert_eq!(
        tracked(&stack, Some("sidecar"), "172.18.0.23", "6000"),
        [""; 0]
    );
    assert_eq!(tracked(&stack, None, &uplink, "6000"), [""; 0]);
    assert_eq!(stack.rules(), before);
    as_ever(&mut keeping, "to what there was");
    // The last one: what an app without egress is kept from, one that runs can't be kept from any more.
    assert_done(&stack.apply_file(&with_egress(&[]), &[]));
    assert_eq!(routes(&stack, "one"), ["172.18.0.33"]);
    assert_ne!(stack.pids(), pids);
    let audit = lab.lrpns(&["audit", "web", "--json"]);
    let told = String::from_utf8_lossy(&audit.stdout).into_owned();
    assert!(
        told.contains("\"result\": \"pass\"") && !told.contains("\"result\": \"fail\""),
        "{told}"
    );
}

#[test]
fn a_change_of_egress_that_is_not_confirmed_gives_back_routes_rules_and_connections() {
    if !look::machine() {
        return;
    }
    let stack = up_with_egress(&["tcp 10.99.0.2:6000"]);
    let lab = &stack.lab;
    let _server = Answering::server(lab, SERVED);
    let mut held = Answering::out_of(lab, "one", "tcp 10.99.0.2 6000");
    assert_eq!(held.ask("ask"), "echo");
    let (pids, rules, before) = (stack.pids(), stack.rules(), routes(&stack, "one"));
    let other = with_egress(&["tcp 10.99.0.3:6000"]);
    for how in ["the end of its input", "the command's death", "both deaths"] {
        let (mut child, says) = asked_about(&stack, &other, "60");
        assert_eq!(routes(&stack, "one"), ["10.99.0.3", "172.18.0.33"], "{how}");
        assert_eq!(held.ask("ask"), "silence", "{how}");
        match how {
            "the end of its input" => drop(child.stdin.take()),
            "the command's death" => drop(lab.ok(&["kill", "-KILL", &appliers(lab)[0]])),
            _ => kill_who_applies(lab),
        }
        drop(says);
        let _ = child.wait();
        look::eventually("the routes", &before, || routes(&stack, "one"));
        look::eventually("the sidecar's rules", &rules[0], || {
            stack.rules()[0].clone()
        });
        // What was sent meanwhile is sent again by TCP.
        look::eventually(how, &true, || held.ask("ask").contains("echo"));
        // And each piece of it may be answered by itself.
        look::eventually("no answer is left", &"silence".to_owned(), || {
            held.ask("hear")
        });
        assert_eq!(stack.pids(), pids, "{how}");
        look::eventually("the plan", &"10.99.0.2/32".to_owned(), || {
            let plan = stack.lab.status("web")["plan"].clone();
            plan["apps"][0]["egress"][0]["to"]
                .as_str()
                .unwrap()
                .to_owned()
        });
    }
    // What is left over in the host's table is known to the next change.
    assert_done(&stack.apply_file(&other, &[]));
    assert_done(&stack.apply_file(&with_egress(&["tcp 10.99.0.2:6000"]), &[]));
    assert_eq!(stack.rules(), rules);
}

#[test]
fn a_dry_run_says_why_an_app_starts_again_for_its_egress() {
    if !look::machine() {
        return;
    }
    let stack = up_with_egress(&[]);
    let domain =
        "a Landlock domain is for good, and keeps an app that has no egress from connecting";
    let resolvers = "its /etc/resolv.conf is made when it starts";
    let dry_run = |stack: &Stack, egress: &[&str]| {
        let output = stack.apply_file(&with_egress(egress), &["--dry-run", "--json"]);
        assert_done(&output);
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        (told, stderr(&output))
    };
    let pids = stack.pids();
    for (egress, why) in [
        (&["tcp 10.99.0.2:6000"][..], &[domain][..]),
        (&["udp 10.99.0.2:53"], &[domain, resolvers]),
    ] {
        let (told, said) = dry_run(&stack, egress);
        assert_eq!(
            told["restart"],
            serde_json::json!([{ "part": "one", "because": ["app.one.egress"], "why": why, "rolling": true }])
        );
        for why in why {
            let line = format!("one is replaced by another: app.one.egress\n  {why}\n");
            assert!(
                said.contains(&line) || why == &resolvers && said.contains(why),
                "{said}"
            );
        }
        for rules in told["rules"].as_array().unwrap() {
            let added = rules["added"].as_array().unwrap();
            let is = |line: &&Value| line.as_str().unwrap().contains("accept-egress-one-0");
            assert!(added.iter().any(|line| is(&line)), "{told}");
        }
    }
    assert_eq!(stack.pids(), pids);
    assert_eq!(routes(&stack, "one"), ["172.18.0.33"]);

    // Who has egress gets more of it as it runs, whatever the port.
    let stack = up_with_egress(&["tcp 10.99.0.2:6000"]);
    let (told, _) = dry_run(&stack, &["tcp 10.99.0.2:6000", "tcp 10.99.0.3:5432"]);
    assert_eq!(told["restart"], serde_json::json!([]));
    assert_eq!(told["live"], serde_json::json!(["app.one.egress"]));
    let (told, _) = dry_run(&stack, &["udp 10.99.0.2:53"]);
    assert_eq!(told["restart"][0]["why"], serde_json::json!([resolvers]));
    let (told, _) = dry_run(&stack, &[]);
    assert_eq!(told["restart"][0]["why"], serde_json::json!([domain]));
}

#[test]
fn an_app_that_starts_again_or_joins_reaches_from_its_start_what_it_is_granted() {
    if !look::machine() {
        return;
    }
    let stack = up_with_egress(&[]);
    let _server = Answering::server(&stack.lab, &["tcp 10.99.0.2 5432"]);
    // It ends if it doesn't reach it, and is not waited for.
    let needs = |file: String, app: &str| {
        let (head, rest) = file.split_once(&format!("[app.{app}]")).unwrap();
        let needs = "import socket; socket.create_connection(('10.99.0.2', 5432), 5)\\n";
        let rest = rest.replacen("import http", &format!("{needs}import http"), 1);
        format!("{head}[app.{app}]{rest}")
    };
    let granted = with_egress(&["tcp 10.99.0.2:5432"]);
    let refused = stack.apply_file(&needs(with_egress(&[]), "one"), &[]);
    assert_eq!(refused.status.code(), Some(1), "{}", describe(&refused));
    assert_done(&stack.apply_file(&needs(granted.clone(), "one"), &[]));
    assert_eq!(stack.get(5000), (true, true));
    let third = granted.split_once("[app.two]").unwrap().1;
    let third = third
        .replace("172.18.0.24", "172.18.0.25")
        .replace("8080", "9090")
        .replace(":7000\"]", ":5432\"]");
    let three = format!("{}[app.three]{third}", needs(granted, "one"));
    assert_done(&stack.apply_file(&needs(three, "three"), &[]));
    assert_eq!(stack.get(9090), (true, true));
}

/// Whom the app behind a port of the lab's sees, when the client asks.
fn seen_at(stack: &Stack, port: u16) -> String {
    let answer = stack.lab.client_get(&format!("http://{LAB}:{port}/"));
    let answer: Value = serde_json::from_str(&answer.unwrap()).unwrap();
    answer["peer"].as_str().unwrap().to_owned()
}

#[test]
fn an_app_comes_to_see_its_clients_live_and_starts_again_to_see_them_no_more() {
    if !look::machine() {
        return;
    }
    for (via, begins) in [
        ("dnat", "sidecar"),
        ("relay", "sidecar"),
        ("relay", "client"),
    ] {
        let file = |source: &str| {
            let one = (
                "one",
                23,
                "0.0.0.0:5000:5000",
                // In place, so that all is where it was before.
                format!("source = \"{source}\"\nreplace = \"stop-first\"\n"),
            );
            several(via, &[(one.0, one.1, one.2, &one.3), SECOND])
        };
        let stack = Stack {
            lab: Lab::forwarding(),
            via,
        };
        let path = stack.lab.write("web.toml", &file(begins));
        stack
            .lab
            .lrpns_ok(&["up", "-d", "-f", path.to_str().unwrap()]);
        let mut other = Keeping::to(&stack.lab, true, LAB, "8080");
        let others = other.ask();
        assert!(others.starts_with("200"), "{others:?}");
        if begins == "client" {
            assert_done(&stack.apply_file(&file("sidecar"), &[]));
        }
        let rules = || stack.rules();
        let before = (rules(), routes(&stack, "one"));
        assert_eq!(before.1, ["172.18.0.33"]);
        let mut own = Keeping::to(&stack.lab, true, LAB, "5000");
        let owns = own.ask();
        let pids = stack.pids();
        assert_eq!(seen_at(&stack, 5000), "172.18.0.33");

        assert_done(&stack.apply_file(&file("client"), &[]));
        assert_eq!(seen_at(&stack, 5000), support::lab::CLIENT, "{via}");
        assert_eq!(seen_at(&stack, 8080), "172.18.0.33", "{via}");
        assert_eq!(routes(&stack, "one"), ["172.18.0.33", "default"]);
        assert_eq!((own.ask(), other.ask()), (owns, others.clone()), "{via}");
        assert_eq!(stack.pids(), pids, "{via}");

        let (child, says) = asked_about(&stack, &file("sidecar"), "60");
        assert_eq!(seen_at(&stack, 5000), "172.18.0.33", "{via}");
        assert_eq!(routes(&stack, "one"), ["172.18.0.33"]);
        stack.lab.ok(&["kill", "-KILL", &appliers(&stack.lab)[0]]);
        drop((child, says));
        look::eventually("no change under way", &true, || {
            stack.lab.run(&["pgrep", "-f", "lrpns apply"]).status.code() == Some(1)
        });
        let plan = stack.lab.status("web")["plan"].clone();
        assert_eq!(plan["apps"][0]["source"], "client");
        assert_eq!(routes(&stack, "one"), ["172.18.0.33", "default"]);
        assert_eq!(seen_at(&stack, 5000), support::lab::CLIENT, "{via}");

        let output = stack.apply_file(&file("sidecar"), &["--json"]);
        assert_done(&output);
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            told["restart"][0]["because"],
            serde_json::json!(["app.one.source"])
        );
        assert_eq!(seen_at(&stack, 5000), "172.18.0.33", "{via}");
        assert_eq!((rules(), routes(&stack, "one")), before, "{via}");
        assert_eq!(other.ask(), others, "{via}");
        let pid = |name: &str| pids.iter().find(|(part, _)| part == name).unwrap().1;
        assert_eq!(stack.pid("two"), pid("two"));
        assert_ne!(stack.pid("one"), pid("one"));
    }
}

/// Connections from the lab itself to one port, one after the other, until its input ends: how many, and how many failed.
const HAMMERS: &str = r#"
import select, socket, sys
count = failed = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as s:
            s.settimeout(5)
            s.sendall(b"GET / HTTP/1.0\r\n\r\n")
            failed += not s.recv(4096)
    except OSError as e:
        failed += 1
        print(e, file=sys.stderr, flush=True)
    count += 1
    if count == 1:
        print("begun", flush=True)
print(count, failed, flush=True)
"#;

#[test]
fn a_port_moves_between_one_address_and_all_of_them_while_it_is_asked() {
    if !look::machine() {
        return;
    }
    for via in ["dnat", "relay"] {
        let stack = Stack::up(via);
        let lab = &stack.lab;
        let (app, sidecar) = (stack.pid("app"), stack.pid("sidecar"));
        let hammer = lab.spawn(&[look::PYTHON, "-c", HAMMERS, "127.0.0.1", "5000"]);
        let mut hammer = Answering::new(hammer);
        assert_eq!(hammer.line(), "begun");
        let listens = || {
            let list = lab.ok(&["ss", "-Hltn", "sport = :5000"]);
            let mut at: Vec<String> = list
                .lines()
                .map(|line| line.split_whitespace().nth(3).unwrap().to_owned())
                .collect();
            at.sort();
            at
        };
        for (publish, outside) in [
            (&["127.0.0.1:5000:5000"][..], false),
            (ONE, true),
            (&["127.0.0.1:5000:5000", "10.99.0.1:5000:5000"], true),
            (ONE, true),
        ] {
            assert_done(&stack.apply(publish, "", &[]));
            assert_eq!(stack.get(5000), (outside, true), "{via} {publish:?}");
            let mut expected: Vec<_> = publish
                .iter()
                .map(|publish| publish.rsplit_once(':').unwrap().0.to_owned())
                .collect();
            expected.sort();
            assert_eq!(listens(), expected, "{via} {publish:?}");
        }
        let before = AsBefore::look(&stack);
        let (mut child, says) =
            asked_about(&stack, &stack.file(&["127.0.0.1:5000:5000"], ""), "60");
        drop(child.stdin.take());
        let (code, said) = rest(child, says);
        assert_eq!(code, Some(1), "{said}");
        before.assert("not confirmed");
        assert_eq!(listens(), ["0.0.0.0:5000"], "{via}");
        // Nobody else may have the port: neither root, nor a user who would share it.
        let steal = "import os, socket, sys\nos.setuid(int(sys.argv[1]))\ns = socket.socket()\n\
             s.setsockopt(socket.SOL_SOCKET, int(sys.argv[2]), 1)\ns.bind(('127.0.0.1', 5000))\ns.listen()";
        for (user, option) in [
            ("0", libc::SO_REUSEADDR),
            ("0", libc::SO_REUSEPORT),
            ("1234", libc::SO_REUSEPORT),
        ] {
            let option = option.to_string();
            let stolen = lab.run(&[look::PYTHON, "-c", steal, user, &option]);
            let said = stderr(&stolen);
            assert!(
                said.contains("Address already in use"),
                "{via} {user}: {said}"
            );
        }
        drop(hammer.child.stdin.take());
        let told = hammer.line();
        let (count, failed) = told.split_once(' ').unwrap();
        assert!(
            count.parse::<u32>().unwrap() > 10 && failed == "0",
            "{via}: {told}"
        );
        assert_eq!((stack.pid("app"), stack.pid("sidecar")), (app, sidecar));
    }
}

#[test]
fn hundreds_of_ports_are_opened_at_once() {
    if !look::machine() {
        return;
    }
    let stack = Stack::up("relay");
    let many: Vec<String> = (0..300)
        .map(|port| format!("0.0.0.0:{}:5000", 8000 + port))
        .collect();
    let many: Vec<&str> = ONE
        .iter()
        .copied()
        .chain(many.iter().map(String::as_str))
        .collect();
    assert_done(&stack.apply(&many, "", &[]));
    for port in [5000, 8000, 8127, 8128, 8255, 8256, 8299] {
        assert_eq!(stack.get(port), (true, true), "{port}");
    }
    assert_done(&stack.apply(ONE, "", &[]));
    assert_eq!(
        (stack.get(5000), stack.get(8128)),
        ((true, true), (false, false))
    );
}

#[test]
fn what_cannot_change_live_says_why_and_what_to_do_instead() {
    if !look::machine() {
        return;
    }
    let stack = Stack::up("relay");
    let before = AsBefore::look(&stack);
    let file = stack.file(ONE, "");
    for (old, new, says) in [
        (
            "172.18.0.0/24",
            "172.18.0.0/16",
            &["network.subnet", "every address of the stack"][..],
        ),
        (
            "\"172.18.0.33\"",
            "\"172.18.0.34\"",
            &["sidecar.address", "one way out"],
        ),
        (
            "\"172.18.0.23\"",
            "\"172.18.0.24\"",
            &["app.address", "another name too"],
        ),
        (
            "listen = [6000]",
            "listen = [6000]\negress = [\"tcp 10.99.0.2:6000\"]",
            &["app.egress (by relay)", "a socket for each port"],
        ),
        (
            "[sidecar]",
            "ipv6 = \"fd00:1::/64\"\n[sidecar]",
            &["network.ipv6", "made with IPv6 or without"],
        ),
    ] {
        let output = stack.apply_file(&file.replace(old, new), &[]);
        assert_eq!(output.status.code(), Some(1), "{}", describe(&output));
        let said = stderr(&output);
        for part in says {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(
            said.contains("nothing was changed") && said.contains("lrpns down web && lrpns up web"),
            "{said}"
        );
    }
    before.assert("what is refused");
}

#[test]
fn without_a_file_it_is_the_one_that_the_stack_was_made_from_and_not_the_example() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    for name in ["customerA", "web"] {
        let of = |publish: &[&str]| {
            let file = look::telling(name, "", "PORTS", "");
            file.replace("[\"PORTS\"]", &look::toml_list(publish))
        };
        let path = lab.write("a file.toml", &of(ONE));
        lab.lrpns_ok(&["up", "-d", "-f", path.to_str().unwrap()]);
        lab.write("a file.toml", &of(TWO));
        let elsewhere = |args: &[&str]| lab.run(&[&["env", "-C", "/", lrpns()], args].concat());
        assert_done(&elsewhere(&["apply", name]));
        let open = |port: u16| lab.get(&format!("http://localhost:{port}/")).is_ok();
        assert_eq!((open(5000), open(8080)), (true, true), "{name}");
        lab.write("a file.toml", &of(ONE).replace(name, "other"));
        let output = elsewhere(&["apply", name]);
        assert_eq!(output.status.code(), Some(2), "{}", describe(&output));
        assert!(stderr(&output).contains("is for the stack other now"));
        lab.lrpns_ok(&["down", name]);
    }
}

#[test]
fn rules_that_would_lock_everybody_out_are_taken_back() {
    if !look::machine() {
        return;
    }
    for via in ["dnat", "relay"] {
        let stack = Stack::up(via);
        let before = AsBefore::look(&stack);
        let pids = stack.pids();
        let file = stack
            .file(TWO, "")
            .replace("[sidecar]\n", "[sidecar]\nrules = \"extra.nft\"\n");
        stack.lab.write(
            "extra.nft",
            "chain before {\n  tcp dport $ports counter drop comment \"drop-all\"\n}\n",
        );
        let output = stack.apply_file(&file, &[]);
        assert_eq!(output.status.code(), Some(1), "{}", describe(&output));
        let said = stderr(&output);
        assert!(
            said.contains("connect through the sidecar to app"),
            "{said}"
        );
        assert!(said.contains("all is as it was before"), "{said}");
        before.assert("a rule that drops everything");
        assert_eq!(stack.pids(), pids, "{via}");
    }
}

/// A file of telling apps: each its name, the last byte of its address, what it publishes, and more keys.
fn several(via: &str, apps: &[(&str, u8, &str, &str)]) -> String {
    let file = look::telling("web", "", "PORTS", "MORE");
    let (head, app) = file.split_once("[app]").unwrap();
    let apps = apps.iter().map(|(name, address, publish, more)| {
        let list: Vec<&str> = publish.split_whitespace().collect();
        format!("[app.{name}]{app}")
            .replace("172.18.0.23", &format!("172.18.0.{address}"))
            .replace("[\"PORTS\"]", &look::toml_list(&list))
            .replace("MORE", &format!("via = \"{via}\"\n{more}"))
            .replace(
                "def do_GET",
                "protocol_version = 'HTTP/1.1'\\n    def do_GET",
            )
    });
    head.to_owned() + &apps.collect::<String>()
}

const FIRST: (&str, u8, &str, &str) = ("one", 23, "0.0.0.0:5000:5000", "");
const SECOND: (&str, u8, &str, &str) = ("two", 24, "0.0.0.0:8080:5000", "");

/// The links in the sidecar's network namespace, and the cgroups of the stack.
fn room(stack: &Stack) -> (Vec<String>, Vec<String>) {
    let status = stack.lab.status("web");
    let init = look::init(&status, "sidecar");
    let links = look::json(&stack.lab, Some(init), &["ip", "-j", "link"]);
    let mut links: Vec<String> = links
        .as_array()
        .unwrap()
        .iter()
        .map(|link| link["ifname"].as_str().unwrap().to_owned())
        .collect();
    links.sort();
    let mut cgroups = vec![];
    if let Some(own) = look::part(&status, "sidecar")["cgroup"].as_str() {
        let stack = std::path::Path::new(own).parent().unwrap();
        for entry in std::fs::read_dir(stack).into_iter().flatten().flatten() {
            if entry.file_type().unwrap().is_dir() {
                cgroups.push(entry.file_name().to_str().unwrap().to_owned());
            }
        }
    }
    cgroups.sort();
    (links, cgroups)
}

fn up_several(via: &'static str, more: &[(&str, &str)], apps: &[(&str, u8, &str, &str)]) -> Stack {
    let stack = Stack {
        lab: Lab::forwarding(),
        via,
    };
    let path = stack.lab.write("web.toml", &several(via, apps));
    let up = ["up", "-d", "-f", path.to_str().unwrap()];
    let up = stack.lab.lrpns_with(more, &up);
    assert!(up.status.success(), "{}", describe(&up));
    stack
}

#[test]
fn an_app_joins_a_stack_that_runs_and_nothing_else_notices() {
    if !look::machine() {
        return;
    }
    for via in ["dnat", "relay"] {
        let lab = Lab::forwarding();
        let empty = lab.traces();
        let stack = Stack { lab, via };
        let path = stack.lab.write("web.toml", &several(via, &[FIRST]));
        stack
            .lab
            .lrpns_ok(&["up", "-d", "-f", path.to_str().unwrap()]);
        let (one, before) = (stack.pid("one"), room(&stack));
        let mut keeping = Keeping::to(&stack.lab, true, LAB, "5000");
        let client = keeping.ask();
        assert!(client.starts_with("200"), "{client:?}");
        // In the file the new one comes first.
        let output = stack.apply_file(&several(via, &[SECOND, FIRST]), &["--json"]);
        assert_done(&output);
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(told["added"], serde_json::json!(["two"]), "{told}");
        assert_eq!(stack.get(5000), (true, true), "{via}");
        assert_eq!(stack.get(8080), (true, true), "{via}");
        assert_eq!(stack.pid("one"), one, "{via}");
        assert_eq!(keeping.ask(), client, "{via}");
        let status = stack.lab.status("web");
        let two = look::part(&status, "two");
        assert_eq!(two["restarts"], 0);
        assert_eq!(two["privileges"]["permitted"], 0);
        let ids = |app: usize| {
            status["plan"]["apps"][app]["ids"]["host_id"]
                .as_u64()
                .unwrap()
        };
        assert_ne!(ids(0), ids(1));
        let uid = stack
            .lab
            .ok(&["stat", "-c", "%u", &format!("/proc/{}", two["pid"])]);
        assert_eq!(uid.trim(), (ids(1) + 1).to_string());
        let after = room(&stack);
        assert_eq!(after.0.len(), before.0.len() + 1, "{after:?}");
        if !before.1.is_empty() {
            assert!(after.1.contains(&"two".to_owned()), "{after:?}");
        }
        // Apps don't reach each other.
        let other = ["curl", "-s", "-m", "1", "http://172.18.0.23:5000/"];
        let init = look::init(&status, "two");
        let netns = format!("--net=/proc/{init}/ns/net");
        let asked = stack.lab.run(&[&["nsenter", &netns][..], &other].concat());
        assert!(!asked.status.success(), "{}", describe(&asked));
        stack.lab.lrpns_ok(&["restart", "web", "two"]);
        assert_eq!(stack.get(8080), (true, true), "{via}");
        drop(keeping);
        stack.lab.lrpns_ok(&["down", "web"]);
        stack.lab.assert_as(&empty);
    }
}

#[test]
fn an_app_that_joins_and_does_not_work_leaves_no_trace() {
    if !look::machine() {
        return;
    }
    let stack = up_several("relay", &[("LRPNS_TEST_PATIENCE", "500")], &[FIRST]);
    let (before, pids, rooms) = (AsBefore::look(&stack), stack.pids(), room(&stack));
    let file = several("relay", &[FIRST, SECOND]);
    let (one, two) = file.split_at(file.rfind("[app.two]").unwrap());
    let processes = || {
        stack
            .lab
            .run(&["pgrep", "-cf", "web/two|import http"])
            .stdout
    };
    let running = processes();
    for (new, said) in [
        ("import os; os._exit(3); import http", "exit status 3"),
        (
            "import time; time.sleep(1000); import http",
            "two does not listen on port 5000",
        ),
    ] {
        let two = two.replace("import http", new);
        let output = stack.apply_file(&format!("{one}{two}"), &[]);
        assert_eq!(output.status.code(), Some(1), "{}", describe(&output));
        assert!(stderr(&output).contains(said), "{}", describe(&output));
        before.assert(said);
        assert_eq!(stack.pids(), pids);
        assert_eq!(room(&stack), rooms, "{said}");
        assert_eq!(processes(), running, "{said}");
    }
    // One that works and isn't wanted after all, and then is.
    let unwanted = stack.apply_file(&file, &["--confirm", "30"]);
    assert_eq!(unwanted.status.code(), Some(1), "{}", describe(&unwanted));
    let mut now = stack.pids();
    let mut then = pids.clone();
    // The relay has changed there and back, and the sidecar was told of apps.
    for pids in [&mut now, &mut then] {
        pids.retain(|(part, _)| part == "one");
    }
    assert_eq!((now, room(&stack)), (then, rooms));
    assert_eq!(
        (stack.get(5000), stack.get(8080)),
        ((true, true), (false, false))
    );
    assert_done(&stack.apply_file(&file, &[]));
    assert_eq!(
        (stack.get(5000), stack.get(8080)),
        ((true, true), (true, true))
    );
}

#[test]
fn an_app_leaves_a_stack_that_runs_and_comes_back() {
    if !look::machine() {
        return;
    }
    for via in ["dnat", "relay"] {
        let lab = Lab::forwarding();
        let empty = lab.traces();
        let stack = Stack { lab, via };
        let path = stack.lab.write("web.toml", &several(via, &[SECOND]));
        let up = ["up", "-d", "-f", path.to_str().unwrap()];
        stack.lab.lrpns_ok(&up);
        let alone = room(&stack);
        assert_done(&stack.apply_file(&several(via, &[SECOND, FIRST]), &[]));
        let (both, pids) = (room(&stack), [stack.pid("one"), stack.pid("two")]);
        let mut to_two = Keeping::to(&stack.lab, true, LAB, "8080");
        let mut to_one = Keeping::to(&stack.lab, true, LAB, "5000");
        let clients = (to_one.ask(), to_two.ask());
        assert!(clients.0.starts_with("200"), "{clients:?}");

        // Not confirmed: it was there all the time.
        let only = several(via, &[FIRST]);
        let asked = stack.apply_file(&only, &["--confirm", "30"]);
        assert_eq!(asked.status.code(), Some(1), "{}", describe(&asked));
        assert_eq!([stack.pid("one"), stack.pid("two")], pids, "{via}");
        assert_eq!((to_one.ask(), to_two.ask()), clients, "{via}");
        assert_eq!((stack.get(8080), room(&stack)), ((true, true), both));

        // The first of the plan goes: the other one's place is another now.
        let output = stack.apply_file(&only, &["--json"]);
        assert_done(&output);
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(told["removed"], serde_json::json!(["two"]), "{told}");
        assert_eq!(to_one.ask(), clients.0, "{via}");
        assert_eq!(stack.pid("one"), pids[0]);
        assert_eq!(stack.get(5000), (true, true), "{via}");
        assert_eq!(stack.get(8080), (false, false), "{via}");
        let gone = stack
            .lab
            .run(&["test", "-e", &format!("/proc/{}", pids[1])]);
        assert!(!gone.status.success(), "{via}");
        let now = room(&stack);
        assert_eq!(now.0.len(), alone.0.len(), "{now:?}");
        assert!(!now.1.contains(&"two".to_owned()), "{now:?}");
        assert!(!stack.rules()[0].contains("172.18.0.24"));
        let status = stack.lab.status("web");
        assert_eq!(status["plan"]["apps"].as_array().unwrap().len(), 1);
        let counted = status["traffic"]["apps"].as_array().unwrap();
        assert!(counted.iter().all(|app| app["name"] != "two"), "{status}");

        // What ends by itself is started again, under its own name, and so is what is told to.
        drop((to_one, to_two));
        stack.lab.lrpns_ok(&["restart", "web"]);
        assert_eq!(stack.get(5000), (true, true), "{via}");
        assert_ne!(stack.pid("one"), pids[0]);
        assert_done(&stack.apply_file(&several(via, &[SECOND, FIRST]), &[]));
        assert_eq!(stack.get(8080), (true, true), "{via}");
        let two = stack.pid("two");
        stack.lab.lrpns_ok(&["restart", "web", "one"]);
        assert_eq!(stack.pid("two"), two);
        assert_eq!(stack.get(5000), (true, true), "{via}");
        stack.lab.lrpns_ok(&["down", "web"]);
        stack.lab.assert_as(&empty);
    }
}

/// An app that ends when it is killed, and not before.
const SLOW: &str = "stop_signal = \"WINCH\"\nstop_timeout = \"60s\"";

#[test]
fn who_applies_may_be_killed_when_there_is_no_way_back_and_the_change_stays() {
    if !look::machine() {
        return;
    }
    let slow = (SECOND.0, SECOND.1, SECOND.2, SLOW);
    let stack = up_several("relay", &[], &[FIRST, slow]);
    let two = stack.pid("two");
    let saved = || stack.lab.ok(&["cat", "/run/lrpns/web/plan.json"]);
    let before = saved();
    let only = stack.lab.write("only.toml", &several("relay", &[FIRST]));
    let only = only.to_str().unwrap();
    let mut apply = stack.lab.spawn_lrpns(&["apply", "-f", only]);
    let mut says = BufReader::new(apply.stderr.take().unwrap());
    let mut said = String::new();
    // Then who leaves is ended, which it takes its time for.
    while !said.contains("ports are published") {
        assert_ne!(says.read_line(&mut said).unwrap(), 0, "{said}");
    }
    look::eventually("the app that leaves is no part any more", &1, || {
        let status = stack.lab.status("web");
        status["parts"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|part| part["name"] == "two")
            .count()
            + 1
    });
    kill_who_applies(&stack.lab);
    apply.wait().unwrap();
    stack.lab.ok(&["kill", "-KILL", &two.to_string()]);
    look::eventually("the log says so", &true, || {
        let log = stack.lab.lrpns_ok(&["logs", "web"]);
        log.contains("it is in force, and its plan is not saved: the client is gone")
    });
    assert_eq!(
        stack.lab.status("web")["plan"]["apps"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        (stack.get(5000), stack.get(8080)),
        ((true, true), (false, false))
    );
    assert_eq!(saved(), before);

    // What its supervisor alone says is no plan to change the host by.
    let both = stack
        .lab
        .write("both.toml", &several("relay", &[FIRST, SECOND]));
    let (code, said) = stack
        .lab
        .lrpns_err(&["apply", "-f", both.to_str().unwrap()]);
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("its supervisor says that it has another plan than the one in /run/lrpns/web/plan.json; nothing was changed")
            && said.contains("lrpns down web && lrpns up web"),
        "{said}"
    );
    stack.lab.lrpns_ok(&["down", "web"]);
}

/// What makes the sidecar start again by itself is no reason to do so once more when the app has gone; that it counts the
/// traffic by the apps' places is.
#[test]
fn an_app_that_leaves_together_with_a_key_of_the_sidecar_starts_it_again_once() {
    if !look::machine() {
        return;
    }
    let stack = up_several("relay", &[], &[FIRST, SECOND]);
    let starts = || {
        let logs = stack.lab.lrpns_ok(&["logs", "web", "--part", "sidecar"]);
        logs.lines().filter(|line| line.contains("started")).count()
    };
    let quiet = |apps| {
        let file = several("relay", apps);
        file.replace("[sidecar]\n", "[sidecar]\nlog = \"off\"\n")
    };
    let before = starts();
    assert_done(&stack.apply_file(&quiet(&[FIRST]), &[]));
    assert_eq!(starts(), before + 1);
    assert_done(&stack.apply_file(&quiet(&[FIRST, SECOND]), &[]));
    assert_eq!(starts(), before + 1);
    assert_done(&stack.apply_file(&several("relay", &[FIRST, SECOND]), &[]));
    assert_eq!(starts(), before + 2);
    assert_done(&stack.apply_file(&several("relay", &[FIRST]), &[]));
    assert_eq!(starts(), before + 3);
}

#[test]
fn a_port_goes_from_an_app_that_leaves_to_one_that_joins() {
    if !look::machine() {
        return;
    }
    let stack = up_several("relay", &[], &[FIRST]);
    let other = ("two", 24, "0.0.0.0:5000:5000", "");
    assert_done(&stack.apply_file(&several("relay", &[other]), &[]));
    assert_eq!(stack.get(5000), (true, true));
    let names: Vec<String> = stack.pids().into_iter().map(|(name, _)| name).collect();
    assert!(names.contains(&"two".to_owned()) && !names.contains(&"one".to_owned()));
}

#[test]
fn a_volume_that_is_new_comes_with_its_owner_mapped() {
    if !look::machine() {
        return;
    }
    let stack = Stack::up("relay");
    let data = stack.lab.dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::os::unix::fs::chown(&data, Some(4321), Some(4321)).unwrap();
    let volume = format!("volumes = [\"{}:/data:rw\"]\n", data.display());
    let file = stack.file(ONE, &volume).replace(
        "import http",
        "open('/data/written', 'w').close(); import http",
    );
    assert_done(&stack.apply_file(&file, &[]));
    let owner = std::fs::metadata(data.join("written")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&owner), 4321);
}

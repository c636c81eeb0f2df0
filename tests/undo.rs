//! One undo: whatever goes wrong, at whichever step, a machine is as it was before. Compared are processes, links,
//! addresses, routes, neighbours, nft tables, mounts, namespaces, /run, control groups, settings and listening sockets.
#![allow(clippy::unwrap_used)]

mod support;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};

use lrpns::stack::STEPS;
use support::lab::{Lab, Traces, assert_unchanged, describe, lrpns, until};
use support::look;

const URL: &str = "http://localhost:5000/";

/// A stack of a name that no other test has: so what it leaves behind can be found by it.
struct Stack<'a> {
    lab: &'a Lab,
    name: String,
    file: String,
    before: Traces,
}

impl<'a> Stack<'a> {
    fn new(lab: &'a Lab) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("undo-{}-{number}", std::process::id());
        let text = format!(
            "name = \"{name}\"\n[app]\nrootfs = \"builtin:webapp\"\npublish = [\"0.0.0.0:5000:5000\"]\nrestart = \"always\"\n"
        );
        let file = lab.write(&format!("{name}.toml"), &text);
        Self {
            lab,
            name,
            file: file.to_str().unwrap().to_owned(),
            before: lab.traces(),
        }
    }

    fn up(&self) {
        self.lab.lrpns_ok(&["up", "-d", "-f", &self.file]);
        self.assert_answers();
    }

    fn down(&self) {
        self.lab.lrpns_ok(&["down", &self.name]);
    }

    fn assert_answers(&self) {
        assert_eq!(self.lab.get(URL).unwrap(), "Hello world!");
    }

    fn status(&self) -> serde_json::Value {
        self.lab.status(&self.name)
    }

    fn part(&self, name: &str) -> serde_json::Value {
        let status = self.status();
        let parts = status["parts"].as_array().unwrap();
        let part = parts.iter().find(|part| part["name"] == name);
        part.unwrap_or_else(|| panic!("no part {name}: {status}"))
            .clone()
    }

    fn assert_nothing_is_left(&self) {
        self.lab.assert_as(&self.before);
        assert_eq!(cgroups(self.lab, &self.name), Vec::<String>::new());
    }
}

#[test]
fn the_comparison_sees_a_running_stack_in_every_section_it_has_something_in() {
    let lab = Lab::forwarding();
    let stack = Stack::new(&lab);
    stack.up();
    let now = lab.traces();
    for section in [
        "processes",
        "links",
        "addresses",
        "routes",
        "neighbours",
        "tables",
        "namespaces",
        "run",
        "listening",
    ] {
        let (before, now) = (stack.before.get(section), now.get(section));
        assert_ne!(before, now, "{section} shows nothing of a running stack");
    }
    for section in ["mounts", "rules"] {
        let (before, now) = (stack.before.get(section), now.get(section));
        assert_eq!(before, now, "a running stack changes the host's {section}");
    }
    stack.down();
    stack.assert_nothing_is_left();
}

#[test]
fn a_running_stack_changes_no_setting_but_those_of_its_own_link() {
    let lab = Lab::forwarding();
    let stack = Stack::new(&lab);
    stack.up();
    let link = stack.status()["plan"]["uplink"]["host_link"].clone();
    let mine = format!("conf/{}/", link.as_str().unwrap());
    let now = lab.traces();
    let others: Vec<&str> = now["settings"]
        .lines()
        .filter(|line| !line.starts_with(&mine))
        .collect();
    let before: Vec<&str> = stack.before["settings"].lines().collect();
    assert_eq!(before, others);
}

#[test]
fn an_up_that_fails_at_any_step_names_it_and_leaves_nothing() {
    for lab in [Lab::new(), Lab::forwarding()] {
        let stack = Stack::new(&lab);
        for step in STEPS {
            let up = lab.lrpns_with(
                &[("LRPNS_TEST_FAIL_AT", step)],
                &["up", "-d", "-f", &stack.file],
            );
            let said = String::from_utf8_lossy(&up.stderr).into_owned();
            assert_eq!(up.status.code(), Some(125), "{step}: {}", describe(&up));
            assert!(said.contains(&format!("step {step}")), "{step}: {said}");
            stack.assert_nothing_is_left();
        }
        stack.up();
    }
}

#[test]
fn an_up_that_has_no_descriptor_left_leaves_nothing() {
    let lab = Lab::new();
    let stack = Stack::new(&lab);
    let mut refused = 0;
    // From less than it takes to read the file to what is enough, so that each that it opens is once the one too many.
    for most in 3..64 {
        let up = lab.run(&with_descriptors(most, &["up", "-d", "-f", &stack.file]));
        if up.status.success() {
            stack.down();
        } else {
            assert_names_the_shortage(most, &up);
            refused += 1;
        }
        stack.assert_nothing_is_left();
    }
    assert_ne!(refused, 0);
    assert_ne!(refused, 64 - 3);
}

/// A call of lrpns that may have so many descriptors.
fn with_descriptors<'a>(most: usize, args: &[&'a str]) -> Vec<&'a str> {
    let limit: &str = Box::leak(format!("--nofile={most}:{most}").into_boxed_str());
    let mut all = vec!["prlimit", limit, lrpns()];
    all.extend(args);
    all
}

fn assert_names_the_shortage(most: usize, output: &std::process::Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    for word in ["lrpns: ", "Too many open files", "hint: ", "RLIMIT_NOFILE"] {
        let what = describe(output);
        assert!(said.contains(word), "{most}: no {word:?} in {what}");
    }
    assert!(!said.contains("panicked"), "{most}: {}", describe(output));
}

#[test]
fn a_command_that_has_no_descriptor_left_says_so_and_does_no_harm() {
    let lab = Lab::new();
    let stack = Stack::new(&lab);
    stack.up();
    let name = stack.name.as_str();
    for args in [
        &["status", name][..],
        &["ps"],
        &["logs", name],
        &["exec", name, "--", "/webapp", "--no-such-option"],
        &["audit", name],
        &["rules", name, "--counters"],
        &["stats", name],
        &["plan", "-f", &stack.file],
        &["apply", "-f", &stack.file],
        &["restart", name],
        &["restart", "--rolling", name],
        &["gc"],
        &["down", name],
    ] {
        let mut refused = 0;
        for most in 3.. {
            let output = lab.run(&with_descriptors(most, args));
            // 1 is the app's own word to `exec`.
            if matches!(output.status.code(), Some(0 | 1)) {
                break;
            }
            assert!(most < 100, "{args:?}: {}", describe(&output));
            assert_names_the_shortage(most, &output);
            refused += 1;
        }
        assert_ne!(refused, 0, "{args:?}");
        if args[0] != "down" {
            stack.assert_answers();
        }
    }
    stack.assert_nothing_is_left();
}

#[test]
fn a_supervisor_that_has_no_descriptor_left_says_so_and_goes_on() {
    let lab = Lab::new();
    let stack = Stack::new(&lab);
    stack.up();
    let supervisor = stack.status()["supervisor"].to_string();
    // Nobody else may set it without CAP_SYS_RESOURCE.
    let status = lab.ok(&["cat", &format!("/proc/{supervisor}/status")]);
    let owner = status.lines().find_map(|line| line.strip_prefix("Uid:\t"));
    let owner = owner.unwrap().split('\t').next().unwrap().to_owned();
    let limit = |limit: &str| {
        lab.ok(&[
            "setpriv",
            &format!("--reuid={owner}"),
            &format!("--regid={owner}"),
            "--clear-groups",
            "prlimit",
            "--pid",
            &supervisor,
            &format!("--nofile={limit}"),
        ]);
    };
    let open = lab.ok(&["ls", &format!("/proc/{supervisor}/fd")]);
    let open: Vec<usize> = open.lines().map(|fd| fd.parse().unwrap()).collect();
    // Enough to hear a command and to begin, and not for another app beside the one that is there.
    let mut free = (0..).filter(|fd| !open.contains(fd));
    limit(&format!("{}:4096", free.nth(4).unwrap()));
    let refused = lab.lrpns(&["restart", "--rolling", &stack.name]);
    assert_eq!(refused.status.code(), Some(1), "{}", describe(&refused));
    assert_names_the_shortage(4, &refused);
    stack.assert_answers();
    limit("1024:4096");
    lab.lrpns_ok(&["restart", "--rolling", &stack.name]);
    stack.assert_answers();
    stack.down();
    stack.assert_nothing_is_left();
}

#[test]
fn a_foreground_up_that_fails_at_any_step_leaves_nothing() {
    let lab = Lab::new();
    let stack = Stack::new(&lab);
    for step in STEPS {
        let up = lab.lrpns_with(&[("LRPNS_TEST_FAIL_AT", step)], &["up", "-f", &stack.file]);
        assert_eq!(up.status.code(), Some(125), "{step}: {}", describe(&up));
        stack.assert_nothing_is_left();
    }
}

/// Kills the supervisor at the end of a step of `up`.
fn die_at(stack: &Stack<'_>, step: &str) {
    let up = stack.lab.lrpns_with(
        &[("LRPNS_TEST_DIE_AT", step)],
        &["up", "-d", "-f", &stack.file],
    );
    assert_eq!(up.status.code(), Some(125), "{step}: {}", describe(&up));
    until("nothing is reachable without the supervisor", || {
        stack.lab.connect("127.0.0.1:5000").is_err().then_some(())
    });
}

#[test]
fn down_works_whichever_step_of_up_the_supervisor_was_killed_at() {
    let lab = Lab::forwarding();
    let stack = Stack::new(&lab);
    for step in STEPS {
        die_at(&stack, step);
        stack.down();
        stack.assert_nothing_is_left();
    }
}

#[test]
fn up_works_whichever_step_of_an_earlier_one_the_supervisor_was_killed_at() {
    let lab = Lab::forwarding();
    let stack = Stack::new(&lab);
    for step in STEPS {
        die_at(&stack, step);
        stack.up();
        stack.down();
        stack.assert_nothing_is_left();
    }
}

#[test]
fn with_a_killed_supervisor_nothing_is_reachable_and_down_removes_the_rest() {
    for lab in [Lab::new(), Lab::forwarding()] {
        let stack = Stack::new(&lab);
        stack.up();
        lab.kill("KILL", &stack.status()["supervisor"]);
        for address in ["127.0.0.1:5000", "10.99.0.1:5000"] {
            until("the port is closed", || {
                lab.connect(address).is_err().then_some(())
            });
        }
        // curl's 7: could not connect.
        until("the port is refused to a client", || {
            (lab.client_get("http://10.99.0.1:5000/") == Err(7)).then_some(())
        });
        // Its lock goes with the last of its descriptors, a moment after its listening sockets.
        until("ps says that it has crashed", || {
            let state = lab.lrpns_ok(&["ps", "--json"]);
            state.contains("\"crashed\"").then_some(())
        });
        let (code, said) = lab.lrpns_err(&["status", &stack.name]);
        assert_eq!(code, 1, "{said}");
        assert!(
            said.contains("crashed") && said.contains("lrpns down"),
            "{said}"
        );
        stack.down();
        stack.assert_nothing_is_left();
    }
}

#[test]
fn up_works_after_the_supervisor_was_killed() {
    let lab = Lab::forwarding();
    let stack = Stack::new(&lab);
    stack.up();
    lab.kill("KILL", &stack.status()["supervisor"]);
    stack.up();
    stack.down();
    stack.assert_nothing_is_left();
}

#[test]
fn gc_removes_what_a_crashed_stack_left_and_nothing_of_a_living_one() {
    let lab = Lab::new();
    let stack = Stack::new(&lab);
    stack.up();
    let alive = lab.traces();
    let said = lab.lrpns(&["gc"]);
    assert!(said.status.success(), "{}", describe(&said));
    assert!(
        String::from_utf8_lossy(&said.stderr).contains("nothing to remove"),
        "{}",
        describe(&said)
    );
    assert_unchanged(&alive, &lab.traces());
    lab.kill("KILL", &stack.status()["supervisor"]);
    // gc takes a stack as crashed when its lock is free, which is when its supervisor is gone.
    until("the supervisor is gone", || {
        lab.lrpns_ok(&["ps", "--json"])
            .contains("\"crashed\"")
            .then_some(())
    });
    lab.lrpns_ok(&["gc"]);
    stack.assert_nothing_is_left();
    assert_eq!(lab.lrpns_ok(&["ps", "--json"]).trim(), "[]");
}

#[test]
fn a_part_that_is_killed_is_started_again_and_the_port_answers() {
    for lab in [Lab::new(), Lab::forwarding()] {
        let stack = Stack::new(&lab);
        stack.up();
        let others = |part: &str| -> Vec<serde_json::Value> {
            let all = stack.status()["parts"].as_array().unwrap().clone();
            all.into_iter()
                .filter(|other| other["name"] != part)
                .map(|other| other["pid"].clone())
                .collect()
        };
        for name in ["app", "sidecar", "relay"] {
            let (before, rest) = (stack.part(name), others(name));
            lab.kill("KILL", &before["init"]);
            until("the part runs again", || {
                let now = stack.part(name);
                let again = now["state"] == "running" && now["restarts"] == 1;
                again.then(|| assert_ne!(now["init"], before["init"]))
            });
            stack.assert_answers();
            let from_outside = lab.client_get("http://10.99.0.1:5000/");
            assert_eq!(from_outside.unwrap(), "Hello world!");
            assert_eq!(rest, others(name), "{name} alone was started again");
        }
        stack.down();
        stack.assert_nothing_is_left();
    }
}

#[test]
fn a_normal_end_leaves_nothing_and_down_of_nothing_is_success() {
    for lab in [Lab::new(), Lab::forwarding()] {
        let stack = Stack::new(&lab);
        stack.down();
        stack.assert_nothing_is_left();
        stack.up();
        stack.down();
        stack.assert_nothing_is_left();
        stack.down();
        stack.assert_nothing_is_left();
    }
}

#[test]
fn asking_for_a_stack_that_does_not_run_leaves_nothing() {
    let lab = Lab::new();
    let before = lab.traces();
    for args in [
        &["status"][..],
        &["logs"],
        &["restart", "customerA", "app"],
        &["exec", "--", "true"],
        &["ps"],
        &["gc"],
        &["down", "--all"],
        &["rules"],
        &["plan"],
    ] {
        let output = lab.lrpns(args);
        let fails = matches!(args[0], "status" | "logs" | "restart" | "exec");
        let wanted = if fails { 1 } else { 0 };
        assert_eq!(output.status.code(), Some(wanted), "{}", describe(&output));
        lab.assert_as(&before);
    }
}

/// `up` must refuse `text` with every one of `reasons`, and change nothing.
fn assert_refused(lab: &Lab, text: &str, code: i32, reasons: &[&str]) {
    let file = lab.write("lrpns.toml", text);
    let before = lab.traces();
    for args in [&["up", "-d"][..], &["up"]] {
        let args = [args, &["-f", file.to_str().unwrap()]].concat();
        let (ended, said) = lab.lrpns_err(&args);
        for reason in reasons {
            assert!(said.contains(reason), "`{reason}` is not told: {said}");
        }
        assert_eq!(ended, code, "{said}");
        assert_unchanged(&before, &lab.traces());
        assert!(!lab.run(&["test", "-e", "/run/lrpns"]).status.success());
    }
}

fn text(subnet: &str, app: &str) -> String {
    format!("name = \"x\"\n[network]\nsubnet = \"{subnet}\"\n[app]\n{app}\n")
}

const WEBAPP: &str = "rootfs = \"builtin:webapp\"\npublish = [\"0.0.0.0:5000:5000\"]";

#[test]
fn a_busy_port_is_refused_before_anything_is_made() {
    let lab = Lab::new();
    let _busy: TcpListener = lab.listen("0.0.0.0:5000");
    assert_refused(
        &lab,
        &text("172.18.0.0/24", WEBAPP),
        125,
        &["0.0.0.0:5000", "in use", "ss -tanp"],
    );
}

#[test]
fn a_port_of_another_stack_is_refused_and_the_stack_named() {
    let lab = Lab::new();
    lab.lrpns_ok(&["up", "-d", "--demo"]);
    let file = lab.write("lrpns.toml", &text("172.19.0.0/24", WEBAPP));
    let before = lab.traces();
    let (code, said) = lab.lrpns_err(&["up", "-d", "-f", file.to_str().unwrap()]);
    assert_eq!(code, 125, "{said}");
    assert!(said.contains("lrpns down customerA"), "{said}");
    assert_unchanged(&before, &lab.traces());
}

#[test]
fn an_address_that_is_not_this_hosts_is_refused_before_anything_is_made() {
    let lab = Lab::new();
    let app = "rootfs = \"builtin:webapp\"\npublish = [\"192.0.2.1:5000:5000\"]";
    assert_refused(
        &lab,
        &text("172.18.0.0/24", app),
        125,
        &["192.0.2.1", "no link of this host", "10.99.0.1"],
    );
}

#[test]
fn an_address_of_the_stack_that_is_the_hosts_own_is_refused_before_anything_is_made() {
    let lab = Lab::new();
    let app = format!("address = \"10.99.0.1\"\n{WEBAPP}\n[sidecar]\naddress = \"10.99.0.33\"");
    assert_refused(
        &lab,
        &text("10.99.0.0/24", &app),
        125,
        &["10.99.0.1", "of app", "ext0"],
    );
}

#[test]
fn a_root_that_is_not_there_or_has_no_mount_points_is_refused_before_anything_is_made() {
    let lab = Lab::new();
    let app = |dir: &str| {
        format!("rootfs = \"dir:{dir}\"\ncommand = [\"/bin/true\"]\npublish = [\"5000:5000\"]")
    };
    assert_refused(
        &lab,
        &text("172.18.0.0/24", &app("/nowhere")),
        125,
        &["/nowhere", "not a directory"],
    );
    let empty = lab.dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    assert_refused(
        &lab,
        &text("172.18.0.0/24", &app(empty.to_str().unwrap())),
        125,
        &["/proc", "/dev", "/tmp", "mkdir -p"],
    );
}

#[test]
fn every_problem_is_told_at_once() {
    let lab = Lab::new();
    let _busy = lab.listen("0.0.0.0:5000");
    let app = "address = \"10.99.0.2\"\nrootfs = \"dir:/nowhere\"\ncommand = [\"/bin/true\"]\n\
               publish = [\"0.0.0.0:5000:5000\", \"192.0.2.1:5001:5001\"]\n";
    let text = format!(
        "{}[sidecar]\naddress = \"10.99.0.1\"\n",
        text("10.99.0.0/24", app)
    );
    assert_refused(
        &lab,
        &text,
        125,
        &[
            "/nowhere",
            "10.99.0.1 of sidecar",
            "192.0.2.1",
            "0.0.0.0:5000",
        ],
    );
}

#[test]
fn a_subnet_without_room_is_refused_before_anything_is_made() {
    let lab = Lab::new();
    let file = lab.write("lrpns.toml", &text("172.18.0.0/31", WEBAPP));
    let before = lab.traces();
    let (code, said) = lab.lrpns_err(&["up", "-d", "-f", file.to_str().unwrap()]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("172.18.0.0/31"), "{said}");
    assert_unchanged(&before, &lab.traces());
}

#[test]
fn a_command_that_can_not_start_is_told_and_leaves_nothing() {
    let lab = Lab::new();
    let before = lab.traces();
    let app = "rootfs = \"host\"\ncommand = [\"/no/such/program\"]\npublish = [\"5000:5000\"]";
    let file = lab.write("lrpns.toml", &text("172.18.0.0/24", app));
    let (code, said) = lab.lrpns_err(&["up", "-d", "-f", file.to_str().unwrap()]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("/no/such/program"), "{said}");
    lab.assert_as(&before);
}

#[test]
fn an_app_that_ends_before_it_listens_has_its_words_shown_and_leaves_nothing() {
    let lab = Lab::new();
    let before = lab.traces();
    let app = "rootfs = \"host\"\ncommand = [\"/bin/sh\", \"-c\", \"echo no database >&2; exit 3\"]\npublish = [\"5000:5000\"]";
    let file = lab.write("lrpns.toml", &text("172.18.0.0/24", app));
    for args in [&["up", "-d"][..], &["up"]] {
        let up = lab.lrpns(&[args, &["-f", file.to_str().unwrap()]].concat());
        assert_eq!(up.status.code(), Some(1), "{}", describe(&up));
        let said = [up.stdout, up.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(said.contains("no database"), "{said}");
        assert!(said.contains("exit status 3"), "{said}");
        lab.assert_as(&before);
    }
}

#[test]
fn an_up_that_is_interrupted_while_it_waits_for_the_app_leaves_nothing() {
    let lab = Lab::new();
    let before = lab.traces();
    // It never listens.
    let app = "rootfs = \"host\"\ncommand = [\"/bin/sleep\", \"600\"]\npublish = [\"5000:5000\"]";
    let file = lab.write("lrpns.toml", &text("172.18.0.0/24", app));
    // As a shell shows the end by a signal.
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        for detach in [&[][..], &["-d"]] {
            let args = [&["up"], detach, &["-f", file.to_str().unwrap()]].concat();
            let up = lab.spawn_lrpns(&args);
            until("the app runs", || {
                let pgrep = lab.run(&["pgrep", "-f", "^/bin/sleep 600"]);
                pgrep.status.success().then_some(())
            });
            // The one that a person started is the first.
            let first = lab.ok(&["pgrep", "-o", "-f", &format!("^{} up", lrpns())]);
            lab.ok(&["kill", "-s", signal, first.trim()]);
            // Whoever is impatient ends with the same.
            let _ = lab.run(&["kill", "-s", signal, first.trim()]);
            let up = up.wait_with_output().unwrap();
            assert_eq!(up.status.code(), Some(code), "{}", describe(&up));
            let said = String::from_utf8_lossy(&up.stderr);
            let words = format!("interrupted by SIG{signal}: all that was made is undone");
            assert!(said.contains(&words), "{}", describe(&up));
            lab.assert_as(&before);
        }
    }
}

#[test]
fn a_wait_for_an_app_is_told_of_without_a_terminal_too() {
    let lab = Lab::new();
    let before = lab.traces();
    let app = "rootfs = \"host\"\ncommand = [\"busybox\", \"httpd\", \"-f\", \"-p\", \"0.0.0.0:6000\"]\npublish = [\"5000:5000\"]\nlisten = [6000]";
    lab.write("lrpns.toml", &text("172.18.0.0/24", app));
    let mut ups = [&["up"][..], &["up", "-d"]].map(|args| lab.spawn_lrpns(args));
    // One makes the stack, the other waits for that.
    let words = [
        "waiting for app to listen on port 5000, for 2 s of at most 60; it listens on 0.0.0.0:6000 so far",
        "waiting for x, which is being started already, for 2 s",
    ];
    let mut heard: Vec<String> = ups
        .iter_mut()
        .map(|up| {
            let mut says = BufReader::new(up.stderr.take().unwrap());
            let mut said = String::new();
            while !said.contains("waiting") {
                assert_ne!(says.read_line(&mut said).unwrap(), 0, "{said}");
            }
            said
        })
        .collect();
    heard.sort_by_key(|line| !line.contains(words[0]));
    for (line, words) in heard.iter().zip(words) {
        assert!(line.contains(words), "{heard:?}");
    }
    lab.lrpns_ok(&["down", "x"]);
    for mut up in ups {
        // Whose turn it is then, is interrupted.
        let _ = lab.run(&["pkill", "-INT", "-f", &format!("^{} up", lrpns())]);
        up.wait().unwrap();
    }
    lab.assert_as(&before);
}

#[test]
fn an_up_that_is_interrupted_before_it_can_hear_of_it_leaves_nothing() {
    let lab = Lab::new();
    let before = lab.traces();
    for detach in [&[][..], &["-d"]] {
        // As long as another command holds the lock, this one waits for it, ahead of all that it makes.
        lab.ok(&["mkdir", "-p", "-m", "700", "/run/lrpns"]);
        let mut holder = lab.spawn(&["flock", "/run/lrpns/.lock", "sh", "-c", "echo held; cat"]);
        let mut line = String::new();
        let mut said = BufReader::new(holder.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        let up = lab.spawn_lrpns(&[&["up"], detach].concat());
        let waits = || {
            // Of two with -d the last is the one that waits.
            let found = lab.run(&["pgrep", "-f", &format!("^{} up", lrpns())]);
            let all = String::from_utf8_lossy(&found.stdout).into_owned();
            let pids: Vec<&str> = all.split_whitespace().collect();
            let (first, last) = (pids.first()?, pids.last()?);
            let open = lab.run(&["ls", "-l", &format!("/proc/{last}/fd")]);
            let waits = String::from_utf8_lossy(&open.stdout).contains("/run/lrpns/.lock");
            (waits && pids.len() == 1 + detach.len()).then(|| (*first).to_owned())
        };
        let first = until("it waits for the lock", waits);
        lab.ok(&["kill", "-s", "INT", &first]);
        drop(holder.stdin.take());
        holder.wait().unwrap();
        let up = up.wait_with_output().unwrap();
        assert_eq!(up.status.code(), Some(130), "{}", describe(&up));
        lab.assert_as(&before);
    }
}

#[test]
fn a_down_while_up_waits_for_the_app_ends_it_and_leaves_nothing() {
    let lab = Lab::new();
    let before = lab.traces();
    let app = "rootfs = \"host\"\ncommand = [\"/bin/sleep\", \"600\"]\npublish = [\"5000:5000\"]";
    let file = lab.write("lrpns.toml", &text("172.18.0.0/24", app));
    let up = lab.spawn_lrpns(&["up", "-d", "-f", file.to_str().unwrap()]);
    until("the app runs", || {
        let pgrep = lab.run(&["pgrep", "-f", "^/bin/sleep 600"]);
        pgrep.status.success().then_some(())
    });
    lab.lrpns_ok(&["down", "x"]);
    let up = up.wait_with_output().unwrap();
    assert_eq!(up.status.code(), Some(1), "{}", describe(&up));
    lab.assert_as(&before);
}

/// The cgroups of a stack, by its name.
fn cgroups(lab: &Lab, name: &str) -> Vec<String> {
    let wanted = format!("*{name}.????????");
    let found = lab.run(&["find", "/sys/fs/cgroup", "-type", "d", "-name", &wanted]);
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    found.lines().map(str::to_owned).collect()
}

#[test]
fn a_supervisor_that_is_killed_leaves_no_cgroup_and_its_directory_says_that_it_was() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let stack = Stack::new(&lab);
    stack.up();
    if cgroups(&lab, &stack.name).is_empty() {
        return support::skip("cgroup2", "there are no cgroups of version 2 to be left");
    }
    lab.kill("KILL", &stack.status()["supervisor"]);
    until("its cgroup is gone", || {
        cgroups(&lab, &stack.name).is_empty().then_some(())
    });
    until("ps says that it has crashed", || {
        let state = lab.lrpns_ok(&["ps", "--json"]);
        state.contains("\"crashed\"").then_some(())
    });
    stack.down();
    stack.assert_nothing_is_left();
}

/// The number of the process that undoes a stack.
fn undoer(status: &serde_json::Value) -> &serde_json::Value {
    let mut all = status["processes"].as_array().unwrap().iter();
    let its = all.find(|process| process["role"] == "undoer");
    &its.unwrap()["pid"]
}

#[test]
fn a_stack_ends_and_says_why_when_who_undoes_it_was_killed() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let stack = Stack::new(&lab);
    for _ in 0..2 {
        let up = lab.spawn(&[lrpns(), "up", "-f", &stack.file]);
        until("it answers", || {
            lab.get("http://localhost:5000/").ok().map(drop)
        });
        let status = stack.status();
        lab.kill("KILL", undoer(&status));
        let output = up.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{said}");
        assert!(said.contains("nothing can be started again"), "{said}");
    }
    // It was root that could remove the rest, and is again.
    lab.lrpns_ok(&["gc"]);
    stack.up();
    stack.down();
    stack.assert_nothing_is_left();
}

/// As who has taken a supervisor over: somebody in the user namespace of a part, as its first id, with the supervisor's listening
/// sockets, who lives on; and another, of the supervisor's own id, with the lock, if it is told so. The control socket hears nothing any
/// more.
const LEAVES: &str = r#"# LEAVES
import ctypes, os, signal, socket, sys
supervisor, part, keeps_lock = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "lock"
libc = ctypes.CDLL(None, use_errno=True)
pidfd = os.pidfd_open(supervisor)
uid = os.stat(f"/proc/{supervisor}").st_uid
kept = []
for number in os.listdir(f"/proc/{supervisor}/fd"):
    at = os.readlink(f"/proc/{supervisor}/fd/{number}")
    is_lock = at.endswith("/lock")
    if is_lock and not keeps_lock or not is_lock and not at.startswith("socket:"):
        continue
    taken = libc.syscall(438, pidfd, int(number), 0)
    assert taken >= 0, os.strerror(ctypes.get_errno())
    if not is_lock:
        taken = socket.socket(fileno=taken)
        listens = taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if not listens:
            taken.close()
            continue
        if taken.family == socket.AF_UNIX and keeps_lock:
            taken.shutdown(socket.SHUT_RDWR)
    kept.append(taken)
if not keeps_lock:
    assert libc.setns(os.pidfd_open(part), 0x10000000) == 0, os.strerror(ctypes.get_errno())
    uid = 0
else:
    os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
print("ready", flush=True)
signal.pause()
"#;

#[test]
fn whom_a_killed_supervisor_has_left_no_command_leaves() {
    if !look::machine() {
        return;
    }
    for (keeps, command) in [
        ("sockets", &["gc"][..]),
        ("sockets", &["down", "customerA"]),
        ("lock", &["down", "customerA"]),
    ] {
        let lab = Lab::new();
        lab.lrpns_ok(&["up", "-d"]);
        let status = lab.status("customerA");
        let supervisor = status["supervisor"].to_string();
        let sidecar = look::init(&status, "sidecar").to_string();
        let left = lab.start(&[look::PYTHON, "-c", LEAVES, &supervisor, &sidecar, keeps]);
        lab.kill("KILL", &status["supervisor"]);
        let output = lab.run(&[&["timeout", "100", lrpns()], command].concat());
        assert!(output.status.success(), "{keeps}: {}", describe(&output));
        let lives = lab.run(&["pgrep", "-f", "LEAVES"]);
        assert!(
            !lives.status.success(),
            "{keeps} {command:?}: {}",
            describe(&lives)
        );
        drop(left);
        lab.lrpns_ok(&["up", "-d"]);
        lab.lrpns_ok(&["down", "customerA"]);
    }
}

/// As who has taken a supervisor over: frees the lock of the stack, and tells who undoes it that this is the end, while that one
/// is kept from hearing.
const TELLS_LATE: &str = r#"# TELLS_LATE
import array, ctypes, fcntl, os, re, signal, struct, subprocess, sys, socket
supervisor, undoer = int(sys.argv[1]), int(sys.argv[2])
os.kill(undoer, signal.SIGSTOP)
libc = ctypes.CDLL(None, use_errno=True)
def take(number):
    fd = libc.syscall(438, os.pidfd_open(supervisor), number, 0)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    return fd
fds = {}
for number in os.listdir(f"/proc/{supervisor}/fd"):
    fds[os.readlink(f"/proc/{supervisor}/fd/{number}")] = int(number)
lock = next(fds[at] for at in fds if at.endswith("/lock"))
streams = subprocess.run(["ss", "-xpnH"], capture_output=True, text=True).stdout
its = next(line.split() for line in streams.splitlines() if f"pid={undoer}," in line and "u_str" in line)
word = take(fds[f"socket:[{its[7]}]"])
fcntl.flock(take(lock), fcntl.LOCK_UN)
os.write(word, struct.pack("<Q", 2**64 - 1))
socket.socket(fileno=word).shutdown(socket.SHUT_WR)
print("ready", flush=True)
signal.pause()
"#;

#[test]
fn who_undoes_a_stack_and_is_told_late_leaves_the_next_one_of_that_name() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let stack = Stack::new(&lab);
    stack.up();
    let status = stack.status();
    let undoer = undoer(&status).to_string();
    let supervisor = status["supervisor"].to_string();
    let late = lab.start(&[look::PYTHON, "-c", TELLS_LATE, &supervisor, &undoer]);
    // Its lock is free: so it is taken for one that has crashed, and ended; the kernel takes a moment for its ports.
    until("the next one is up", || {
        let up = lab.lrpns(&["up", "-d", "-f", &stack.file]);
        up.status.success().then_some(())
    });
    lab.run(&["kill", "-CONT", &undoer]);
    until("who undoes the first one has ended", || {
        let gone = lab.run(&["kill", "-0", &undoer]);
        (!gone.status.success()).then_some(())
    });
    lab.ok(&["pkill", "-KILL", "-f", "TELLS_LATE"]);
    drop(late);
    stack.assert_answers();
    let next = stack.status();
    assert_ne!(next["supervisor"], status["supervisor"]);
    stack.down();
    stack.assert_nothing_is_left();
}

#[test]
fn gc_removes_an_old_cgroup_of_no_stack_and_none_that_somebody_is_in_or_that_is_new() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let stack = Stack::new(&lab);
    stack.up();
    let cgroups = cgroups(&lab, &stack.name);
    let [own] = cgroups.as_slice() else {
        return support::skip("cgroup2", "there are no cgroups of version 2 to be left");
    };
    let (base, _) = own.rsplit_once('/').unwrap();
    let prefix = if own.contains("/lrpns-") {
        "lrpns-"
    } else {
        ""
    };
    let name = |what: &str| format!("{base}/{prefix}{}{what}", stack.name);
    let [old, new, used, other] =
        ["old.0123abcd", "new.0123abcd", "used.0123abcd", "other"].map(name);
    for path in [&old, &new, &used, &other] {
        lab.ok(&["mkdir", "-p", &format!("{path}/app")]);
        lab.ok(&["chmod", "755", path]);
        if *path != new {
            lab.ok(&["touch", "-d", "2 hours ago", path]);
        }
    }
    let mut sleeps = std::process::Command::new("sleep")
        .arg("600")
        .spawn()
        .unwrap();
    let enter = format!("echo {} > {used}/app/cgroup.procs", sleeps.id());
    assert!(
        std::process::Command::new("sh")
            .args(["-c", &enter])
            .status()
            .unwrap()
            .success()
    );
    let said = lab.lrpns(&["gc"]);
    let there = [&old, &new, &used, &other, own].map(|path| std::path::Path::new(path).exists());
    sleeps.kill().unwrap();
    sleeps.wait().unwrap();
    for path in [&new, &used, &other] {
        until("it is empty", || {
            let _ = std::fs::remove_dir(format!("{path}/app"));
            std::fs::remove_dir(path).is_ok().then_some(())
        });
    }
    assert_eq!(
        there,
        [false, true, true, true, true],
        "{}",
        describe(&said)
    );
    stack.assert_answers();
    stack.down();
    stack.assert_nothing_is_left();
}

//! The table in the host's network namespace that stacks share: one for all, nobody else's, and nothing of a stack in it that
//! leads anywhere when the stack has gone.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};

use lrpns::stack::STEPS;
use serde_json::Value;
use support::lab::{Lab, describe, until};
use support::look;

const NAMES: [&str; 4] = ["one", "two", "three", "four"];

fn port(name: &str) -> usize {
    5001 + NAMES.iter().position(|known| *known == name).unwrap()
}

/// A forwarding lab with a file for each stack, published by DNAT at a port of its own.
fn lab() -> Lab {
    let lab = Lab::forwarding();
    for name in NAMES {
        let published = format!("0.0.0.0:{}:5000", port(name));
        let text = look::telling(name, "", &published, "via = \"dnat\"");
        lab.write(&format!("{name}.toml"), &text);
    }
    lab
}

fn file(lab: &Lab, name: &str) -> String {
    let path = lab.dir.path().join(format!("{name}.toml"));
    path.to_str().unwrap().to_owned()
}

fn up(lab: &Lab, name: &str) {
    lab.lrpns_ok(&["up", "-d", "-f", &file(lab, name)]);
}

fn get(lab: &Lab, name: &str) -> Result<String, i32> {
    lab.client_get(&format!("http://10.99.0.1:{}/", port(name)))
}

fn assert_answers(lab: &Lab, names: &[&str]) {
    for name in names {
        assert!(get(lab, name).is_ok(), "{name}: {:?}", get(lab, name));
    }
}

/// Kills a stack's supervisor, and waits until the stack is known to have crashed.
fn kill(lab: &Lab, name: &str) {
    lab.kill("KILL", &lab.status(name)["supervisor"]);
    until("it has crashed", || is_crashed(lab, name).then_some(()));
}

fn is_crashed(lab: &Lab, name: &str) -> bool {
    let all: Value = serde_json::from_str(&lab.lrpns_ok(&["ps", "--json"])).unwrap();
    let mut all = all.as_array().unwrap().iter();
    all.any(|stack| stack["stack"] == name && stack.to_string().contains("\"crashed\""))
}

/// How many tables of ours there are of family inet.
fn tables(lab: &Lab) -> usize {
    let all = lab.ok(&["nft", "list", "tables"]);
    all.matches("table inet lrpns").count()
}

/// What there is of a stack in the table; empty where nothing is.
fn part(lab: &Lab, name: &str) -> String {
    let all = lab.ok(&["nft", "list", "table", "inet", "lrpns.host"]);
    let suffix = format!(".{name} ");
    let its = all.lines().filter(|line| line.contains(&suffix));
    its.map(|line| format!("{line}\n")).collect()
}

/// What every packet of the host meets: the chains at its hooks, each with how many rules it has.
fn at_the_hooks(lab: &Lab) -> Vec<(String, usize)> {
    let all: Value =
        serde_json::from_str(&lab.ok(&["nft", "-j", "list", "ruleset", "inet"])).unwrap();
    let all = all["nftables"].as_array().unwrap();
    let name = |part: &Value, key: &str| format!("{}.{}", part["table"], part[key]);
    let hooked = all.iter().map(|part| &part["chain"]);
    let mut found: Vec<_> = hooked
        .filter(|chain| chain["hook"].is_string())
        .map(|chain| {
            let name_of_chain = name(chain, "name");
            let rules = all.iter().map(|part| &part["rule"]);
            let rules =
                rules.filter(|rule| rule.is_object() && name(rule, "chain") == name_of_chain);
            let count = rules.count();
            (name_of_chain, count)
        })
        .collect();
    found.sort();
    found
}

/// What scripts/bench measures, by counting: a packet costs the same beside one stack as beside any number of them.
#[test]
fn a_packet_meets_no_more_rules_beside_four_stacks_than_beside_one() {
    if !look::machine() {
        return;
    }
    let lab = lab();
    up(&lab, NAMES[0]);
    let with_one = at_the_hooks(&lab);
    assert!(!with_one.is_empty());
    for name in &NAMES[1..] {
        up(&lab, name);
    }
    assert_eq!(at_the_hooks(&lab), with_one);
    assert_answers(&lab, &NAMES);
}

#[test]
fn stacks_share_one_table_that_outlives_who_made_it_and_goes_with_the_last() {
    if !look::machine() {
        return;
    }
    let lab = lab();
    let before = lab.traces();
    for name in NAMES {
        up(&lab, name);
    }
    assert_eq!(tables(&lab), 1);
    assert_answers(&lab, &NAMES);
    // The first has made it.
    lab.lrpns_ok(&["down", "one"]);
    assert_eq!(part(&lab, "one"), "");
    assert_eq!(get(&lab, "one"), Err(7));
    assert_answers(&lab, &NAMES[1..]);
    kill(&lab, "two");
    assert_answers(&lab, &NAMES[2..]);
    up(&lab, "one");
    assert_answers(&lab, &["one", "three", "four"]);
    assert_eq!(tables(&lab), 1);
    lab.lrpns_ok(&["down", "--all"]);
    lab.assert_as(&before);
}

#[test]
fn what_down_has_told_to_end_is_out_of_the_hosts_rules_when_it_returns() {
    if !look::machine() {
        return;
    }
    let lab = lab();
    let tables = || lab.ok(&["nft", "list", "tables"]);
    for name in ["one", "two"] {
        up(&lab, name);
    }
    lab.lrpns_ok(&["down", "one"]);
    assert_eq!(tables(), "table inet lrpns.host\ntable netdev lrpns-two\n");
    assert_eq!(part(&lab, "one"), "");
    assert_answers(&lab, &["two"]);
    lab.lrpns_ok(&["down", "two"]);
    assert_eq!(tables(), "");
    // Whoever closes the sockets keeps no new table from being made.
    for name in NAMES {
        up(&lab, name);
    }
    assert_answers(&lab, &NAMES);
    lab.lrpns_ok(&["down", "--all"]);
    assert_eq!(tables(), "");
}

#[test]
fn nobody_takes_the_table_away() {
    if !look::machine() {
        return;
    }
    let lab = lab();
    for name in ["one", "two"] {
        up(&lab, name);
    }
    // What every reload of Debian's nftables.service does: its file begins with it.
    let conf = lab.write(
        "nftables.conf",
        "flush ruleset\ntable inet filter {\n chain input { type filter hook input priority filter; }\n \
         chain forward { type filter hook forward priority filter; }\n}\n",
    );
    for _ in 0..3 {
        lab.ok(&["nft", "-f", conf.to_str().unwrap()]);
        assert_answers(&lab, &["one", "two"]);
    }
    for command in [
        "delete table inet lrpns.host",
        "flush table inet lrpns.host",
        "flush chain inet lrpns.host forward",
        "add rule inet lrpns.host forward accept",
        "flush map inet lrpns.host forward_in",
    ] {
        assert!(!lab.run(&["nft", command]).status.success(), "{command}");
    }
    for name in ["one", "two"] {
        let report = lab.lrpns(&["audit", name, "--json"]);
        assert!(report.status.success(), "{}", describe(&report));
    }
}

#[test]
fn stacks_that_come_and_go_at_once_find_each_other_and_leave_nothing() {
    if !look::machine() {
        return;
    }
    let lab = lab();
    let before = lab.traces();
    let at_once = |commands: Vec<Vec<String>>| {
        let spawn = |args: &Vec<String>| {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            lab.spawn_lrpns(&args)
        };
        let running: Vec<_> = commands.iter().map(spawn).collect();
        for (child, args) in running.into_iter().zip(&commands) {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{args:?}: {}", describe(&output));
        }
    };
    let start = |name: &str| {
        ["up", "-d", "-f", &file(&lab, name)]
            .map(str::to_owned)
            .to_vec()
    };
    let stop = |name: &str| ["down", name].map(str::to_owned).to_vec();
    for _ in 0..4 {
        at_once(NAMES.iter().map(|name| start(name)).collect());
        assert_eq!(tables(&lab), 1);
        assert_answers(&lab, &NAMES);
        at_once(NAMES[..2].iter().map(|name| stop(name)).collect());
        assert_answers(&lab, &NAMES[2..]);
        let both = NAMES[..2].iter().map(|name| start(name));
        at_once(
            both.chain(NAMES[2..].iter().map(|name| stop(name)))
                .collect(),
        );
        assert_answers(&lab, &NAMES[..2]);
        for name in &NAMES[2..] {
            assert_eq!(part(&lab, name), "");
        }
        at_once(NAMES[..2].iter().map(|name| stop(name)).collect());
        lab.assert_as(&before);
    }
}

#[test]
fn what_a_killed_stack_leaves_beside_another_leads_nowhere_and_the_next_command_removes_it() {
    if !look::machine() {
        return;
    }
    let lab = lab();
    up(&lab, "two");
    // Without counts.
    let table = || lab.ok(&["nft", "-s", "list", "table", "inet", "lrpns.host"]);
    let before = table();
    let next: [&[&str]; 4] = [
        &["down", "one"],
        &["gc"],
        &["up", "-d", "-f", &file(&lab, "three")],
        &["down", "three"],
    ];
    for step in STEPS {
        for next in next {
            let dies = [("LRPNS_TEST_DIE_AT", step)];
            let start = ["up", "-d", "-f", &file(&lab, "one")];
            let died = lab.lrpns_with(&dies, &start);
            assert_eq!(died.status.code(), Some(125), "{}", describe(&died));
            until("nobody answers", || {
                (get(&lab, "one") == Err(7)).then_some(())
            });
            assert_answers(&lab, &["two"]);
            until("it has crashed", || is_crashed(&lab, "one").then_some(()));
            let has_a_part = !["namespaces", "parts"].contains(&step);
            assert_eq!(!part(&lab, "one").is_empty(), has_a_part, "{step}");
            lab.lrpns_ok(next);
            assert_eq!(part(&lab, "one"), "", "{step}, {next:?}");
            lab.lrpns_ok(&["down", "one"]);
            lab.lrpns_ok(&["down", "three"]);
            assert_eq!(table(), before);
        }
    }
}

/// As who has taken over a supervisor that has the table's socket: every lock of it that there is, kept.
const KEEPS: &str = r#"
import array, fcntl, signal, socket, struct
s = socket.socket(socket.AF_UNIX)
s.connect("/run/lrpns/one/control.sock")
s.sendall(struct.pack("<I", 11) + b'"HostTable"')
_, control, _, _ = s.recvmsg(1000, socket.CMSG_SPACE(4))
table = array.array("i", control[0][2])[0]
fcntl.lockf(table, fcntl.LOCK_EX)
fcntl.flock(table, fcntl.LOCK_EX)
print("ready", flush=True)
signal.pause()
"#;

#[test]
fn no_supervisor_can_keep_the_lock_of_the_table_from_others() {
    if !look::machine() {
        return;
    }
    let lab = lab();
    up(&lab, "one");
    let keeps = lab.start(&[look::PYTHON, "-c", KEEPS]);
    up(&lab, "two");
    let supervisor = lab.status("one")["supervisor"].clone();
    // What the supervisor itself has is no lock, nor a way to take one that others take, but that of its own stack.
    let open = lab.ok(&["find", &format!("/proc/{supervisor}/fd"), "-printf", "%l\n"]);
    let ours: Vec<&str> = open
        .lines()
        .filter(|at| at.contains("/run/lrpns"))
        .collect();
    assert_eq!(ours, ["/run/lrpns/one/lock"], "{open}");
    lab.ok(&["pkill", "-KILL", "-f", "HostTable"]);
    drop(keeps);
    lab.lrpns_ok(&["down", "two"]);
    lab.lrpns_ok(&["down", "one"]);
    assert_eq!(tables(&lab), 0);
}

/// As who has taken a supervisor over: puts a filter on each of its netlink sockets, and takes one away.
const FILTERS: &str = r#"
import ctypes, json, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
pid = int(sys.argv[1])
drops = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
program = struct.pack("HxxxxxxQ", 1, ctypes.addressof(drops))
said = {}
for number in os.listdir(f"/proc/{pid}/fd"):
    at = os.readlink(f"/proc/{pid}/fd/{number}")
    if not at.startswith("socket:"):
        continue
    taken = socket.socket(fileno=libc.syscall(438, os.pidfd_open(pid), int(number), 0))
    # NETLINK_NETFILTER.
    if (taken.family, taken.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL)) != (16, 12):
        continue
    for option, value in ((26, program), (27, 0), (44, 0)):
        try:
            taken.setsockopt(socket.SOL_SOCKET, option, value)
            said.setdefault(at, []).append(0)
        except OSError as e:
            said.setdefault(at, []).append(e.errno)
print(json.dumps(said))
"#;

#[test]
fn no_supervisor_keeps_the_answers_about_the_table_from_others() {
    if !look::machine() {
        return;
    }
    let lab = lab();
    up(&lab, "one");
    up(&lab, "two");
    let filters = |name: &str| -> serde_json::Map<String, Value> {
        let supervisor = lab.status(name)["supervisor"].to_string();
        let said = lab.ok(&[look::PYTHON, "-c", FILTERS, &supervisor]);
        serde_json::from_str(&said).unwrap()
    };
    let (one, two) = (filters("one"), filters("two"));
    let shared: Vec<_> = one.iter().filter(|(at, _)| two.contains_key(*at)).collect();
    // EPERM: to attach one, to detach it, to unlock.
    let [(_, said)] = shared[..] else {
        panic!("{one:?} {two:?}")
    };
    assert_eq!(*said, serde_json::json!([1, 1, 1]));
    lab.lrpns_ok(&["down", "one"]);
    up(&lab, "three");
    assert_answers(&lab, &["two", "three"]);
}

#[test]
fn a_program_that_takes_the_port_of_a_killed_stack_is_reached_from_everywhere() {
    let lab = lab();
    up(&lab, "one");
    up(&lab, "two");
    kill(&lab, "one");
    assert!(!part(&lab, "one").is_empty());
    assert_eq!(get(&lab, "one"), Err(7));
    let listener = lab.listen(&format!("0.0.0.0:{}", port("one")));
    listener.set_nonblocking(true).unwrap();
    for (from, wanted) in [("client", "10.99.0.2"), ("lab", "127.0.0.1")] {
        let at = match from {
            "client" => "10.99.0.1",
            _ => "127.0.0.1",
        };
        let url = format!("http://{at}:{}/", port("one"));
        let asks = ["curl", "-sS", "--max-time", "20", &url];
        let asks = match from {
            "client" => lab.spawn(&[&["ip", "netns", "exec", "client"], &asks[..]].concat()),
            _ => lab.spawn(&asks),
        };
        let (mut made, peer) = until("it is reached", || listener.accept().ok());
        assert_eq!(peer.ip().to_string(), wanted, "{from}");
        let mut request = vec![];
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            made.read_exact(&mut byte).unwrap();
            request.push(byte[0]);
        }
        made.write_all(b"HTTP/1.0 200 OK\r\n\r\nthe host's")
            .unwrap();
        drop(made);
        let output = asks.wait_with_output().unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains("the host's"));
    }
}

#[test]
fn a_supervisor_that_was_stopped_holds_nobody_up_unless_it_alone_has_the_table() {
    if !look::machine() {
        return;
    }
    let lab = lab();
    up(&lab, "one");
    let supervisor = lab.status("one")["supervisor"].clone();
    lab.kill("STOP", &supervisor);
    let (code, said) = lab.lrpns_err(&["up", "-d", "-f", &file(&lab, "two")]);
    assert_eq!(code, 125, "{said}");
    assert!(said.contains("table inet lrpns.host"), "{said}");
    assert!(said.contains("kill -CONT"), "{said}");
    lab.kill("CONT", &supervisor);
    up(&lab, "two");
    lab.kill("STOP", &supervisor);
    up(&lab, "three");
    assert_answers(&lab, &["two", "three"]);
    lab.kill("CONT", &supervisor);
    assert_answers(&lab, &["one", "two", "three"]);
}

#[test]
fn a_stack_whose_apps_take_their_time_to_end_holds_up_no_other() {
    if !look::machine() {
        return;
    }
    let lab = lab();
    // A signal that nobody ends by.
    let slow = "via = \"dnat\"\nstop_signal = \"WINCH\"\nstop_timeout = \"8s\"";
    lab.write(
        "one.toml",
        &look::telling("one", "", "0.0.0.0:5001:5000", slow),
    );
    up(&lab, "one");
    let ends = lab.spawn_lrpns(&["down", "one"]);
    // New clients are refused at once, who come from elsewhere too.
    until("it is being taken down", || {
        (get(&lab, "one") == Err(7)).then_some(())
    });
    up(&lab, "two");
    assert_answers(&lab, &["two"]);
    assert!(ends.wait_with_output().unwrap().status.success());
    assert_eq!(part(&lab, "one"), "");
    assert_answers(&lab, &["two"]);
}

/// A link of ours by another name is no way around the rules, whatever that name is.
#[test]
fn a_sidecar_whose_link_has_another_name_still_reaches_nobody() {
    if !look::machine() {
        return;
    }
    let lab = lab();
    for name in ["one", "two"] {
        up(&lab, name);
    }
    let status = lab.status("one");
    let sidecar = look::init(&status, "sidecar");
    look::beside(&lab, sidecar, &["nft", "flush", "ruleset"]);
    let link = look::planned(&status, "/uplink/host_link");
    let two = lab.status("two");
    let theirs = look::planned(&two, "/uplink/sidecar_address");
    let mut from = link;
    for name in ["lrpother", "other0", link] {
        lab.ok(&["ip", "link", "set", from, "name", name]);
        from = name;
        let counters = || {
            let mut all = look::counters(&lab, None, "lrpns-one");
            all.retain(|rule, _| !rule.starts_with("prerouting/return-"));
            all
        };
        let before = counters();
        look::attack_beside(
            &lab,
            sidecar,
            &format!(
                "throw('10.99.0.1', 53)\nthrow('10.99.0.2', 53)\nthrow('{theirs}', 5002)\nsay(1)"
            ),
        );
        look::eventually(name, &[1, 2], || {
            let seen = look::since(&before, &counters());
            let of = |chain: &str| {
                let its = seen.iter().filter(|(rule, _)| rule.starts_with(chain));
                its.map(|(_, packets)| *packets).sum::<u64>()
            };
            [of("input/drop-"), of("forward/drop-")]
        });
    }
}

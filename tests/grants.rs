//! What many grants cost, and that each still has its name, its count and its end.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::Value;
use support::lab::{Lab, Running, describe};
use support::look;

/// Python of a server that answers every datagram with itself, at ports of 10.99.0.2.
const ECHO: &str = r#"
import selectors, socket, sys
selector = selectors.DefaultSelector()
for port in sys.argv[1:]:
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind(("10.99.0.2", int(port)))
    selector.register(s, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in selector.select():
        data, peer = key.fileobj.recvfrom(99)
        key.fileobj.sendto(data, peer)
"#;

/// What asks it, by one socket: whether each datagram comes back.
const ASK: &str = r#"
import socket, sys
for port in sys.argv[1:]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(2)
        try:
            s.connect(("10.99.0.2", int(port)))
            s.send(b"?")
            print(port, s.recv(9) == b"?")
        except OSError as e:
            print(port, e.__class__.__name__)
"#;

fn server(lab: &Lab, ports: &[&str]) -> Running {
    let program = &["ip", "netns", "exec", "client", look::PYTHON, "-c", ECHO];
    lab.start(&[program, ports].concat())
}

fn file(egress: &[String]) -> String {
    let egress: Vec<_> = egress.iter().map(String::as_str).collect();
    let more = format!("egress = {}", look::toml_list(&egress));
    look::telling("web", "t", "0.0.0.0:5000:5000", &more)
}

/// Asks at each port, from the app's namespace, with a route to everywhere; the ports that answered.
fn answering(lab: &Lab, status: &Value, ports: &[&str]) -> Vec<String> {
    let ask = [&[look::PYTHON, "-c", ASK], ports].concat();
    let said = look::beside(lab, look::pid(status, "app"), &ask);
    let answered = said.lines().filter_map(|line| line.strip_suffix(" True"));
    answered.map(str::to_owned).collect()
}

/// The rules of a stack's two tables, by the kernel's handles, and the elements of all sets.
fn rules(lab: &Lab, status: &Value) -> (Vec<String>, usize) {
    let sidecar = look::init(status, "sidecar");
    let list = |table: &str| -> String {
        let pid = (table == "lrpns").then_some(sidecar);
        look::table_text(lab, pid, table, &["-a"])
    };
    let (mut rules, mut elements) = (vec![], 0);
    for line in (list("lrpns") + &list("lrpns-web")).lines() {
        let of_rule = |line: &&str| line.contains("counter packets") && line.contains("# handle");
        match Some(line).filter(of_rule) {
            Some(line) => {
                let (_, comment) = line.split_once(" comment ").unwrap();
                rules.push(comment.to_owned());
            }
            None => elements += line.matches(" comment \"accept-egress-").count(),
        }
    }
    rules.sort_unstable();
    (rules, elements)
}

fn some(count: usize) -> Vec<String> {
    // The last is the one that answers.
    let others = (0..count - 1).map(|n| format!("udp 10.99.{}.{}:7777", 1 + n / 200, 1 + n % 200));
    others.chain(["udp 10.99.0.2:7777".to_owned()]).collect()
}

#[test]
fn five_hundred_grants_are_as_many_rules_as_one_and_change_as_elements_alone() {
    if !look::machine() {
        return;
    }
    let lab = Lab::forwarding();
    let _server = server(&lab, &["7777", "7778"]);
    look::up(&lab, &file(&some(1)));
    let status = lab.status("web");
    let (one, _) = rules(&lab, &status);
    assert_eq!(answering(&lab, &status, &["7777", "7778"]), ["7777"]);

    // Not one rule comes, goes or is made anew.
    let apply = |egress: &[String]| {
        lab.write("lrpns.toml", &file(egress));
        let path = lab.dir.path().join("lrpns.toml");
        let output = lab.lrpns(&["apply", "-f", path.to_str().unwrap()]);
        assert!(output.status.success(), "{}", describe(&output));
    };
    let sidecar = Some(look::init(&status, "sidecar"));
    apply(&some(500));
    let (five_hundred, elements) = rules(&lab, &status);
    assert_eq!(five_hundred, one);
    // In `guard` and `forward`, and in the host's `input` and `forward`.
    assert_eq!(elements, 4 * 500);
    assert_eq!(answering(&lab, &status, &["7777", "7778"]), ["7777"]);
    let counted = look::counters(&lab, sidecar, "lrpns");
    assert_eq!(counted["guard/accept-egress-app-499"], 1, "{counted:?}");
    assert_eq!(counted["forward/accept-egress-app-499"], 1, "{counted:?}");
    // The rule is the same that has counted before.
    assert_eq!(counted["guard/accept-egress-udp"], 2, "{counted:?}");

    // And `rules --counters` tells of each, as the kernel does.
    let told = lab.lrpns_ok(&["rules", "web", "--counters", "--json"]);
    for (namespace, pid, table) in [("sidecar", sidecar, "lrpns"), ("host", None, "lrpns-web")] {
        let told = look::told_counters(&told, namespace);
        let mut counted = look::counters(&lab, pid, table);
        if pid.is_none() {
            counted.extend(look::uplink_counters(&lab, "web"));
        }
        assert_eq!(told, counted);
        assert!(told.len() > 1000);
    }
    let told: Value = serde_json::from_str(&told).unwrap();
    let rows = told[0]["rules"].as_array().unwrap();
    let at = rows
        .iter()
        .position(|rule| rule["name"] == "accept-egress-udp");
    assert_eq!(rows[at.unwrap() + 1]["name"], "accept-egress-app-0");

    // The last is revoked.
    let mut others = some(500);
    others.pop();
    apply(&others);
    assert_eq!(rules(&lab, &status), (five_hundred, 4 * 499));
    assert_eq!(answering(&lab, &status, &["7777"]), [""; 0]);
}

#[test]
fn grants_that_overlap_work_each_and_the_exact_one_counts_before_the_first_range() {
    if !look::machine() {
        return;
    }
    let lab = Lab::forwarding();
    let ports = ["1", "50", "80", "99", "101", "7000"];
    let _server = server(&lab, &ports);
    let egress = [
        "udp 10.99.0.0/16:1-100",
        "udp 10.99.0.0/24:40-60",
        "udp 10.99.0.2:99-101",
        "udp 10.0.0.0/8:99",
        "udp 10.99.0.2:80",
        "udp 10.98.0.0/15:1-100",
    ];
    look::up(&lab, &file(&egress.map(str::to_owned)));
    let status = lab.status("web");
    let sidecar = Some(look::init(&status, "sidecar"));
    let before = look::counters(&lab, sidecar, "lrpns");
    let answered = answering(&lab, &status, &ports);
    assert_eq!(answered, ["1", "50", "80", "99", "101"]);
    let counted = look::since(&before, &look::counters(&lab, sidecar, "lrpns"));
    let by: Vec<_> = (0..6)
        .map(|place| {
            let name = format!("guard/accept-egress-app-{place}");
            counted.get(&name).copied().unwrap_or(0)
        })
        .collect();
    assert_eq!(by, [3, 0, 1, 0, 1, 0], "{counted:?}");
}

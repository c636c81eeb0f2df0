//! `source = "localhost"`: clients come to an app's own loopback, and from there, at its published ports and at no other.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{Read, Write};

use serde_json::{Value, json};
use support::lab::{CLIENT, LAB, Lab, describe, until};
use support::look::{self, PYTHON};
use support::user::User;

/// On its loopback alone, at 5000 and 6000 by TCP and 5000 by UDP: says from whom somebody comes, and by TCP then sends what it gets
/// back, as often as that many times.
const SERVER: &str = r#"
import os, socket, sys, threading
at = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1"
which = os.urandom(8).hex()
def echo(c, peer):
    with c:
        asked = c.recv(9000)
        if asked.startswith(b"GET "):
            body = f"{peer[0]} {which} " + "x" * int(asked.split()[1][1:] or b"0")
            c.sendall(f"HTTP/1.0 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        while asked:
            c.sendall(asked)
            asked = c.recv(9000)
def serve(port):
    s = socket.create_server((at, port))
    while True:
        threading.Thread(target=echo, args=s.accept(), daemon=True).start()
def datagrams():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.bind((at, 5000))
    while True:
        size, peer = s.recvfrom(9000)
        s.sendto(f"{peer[0]} ".encode() + b"x" * int(size), peer)
threading.Thread(target=serve, args=[6000], daemon=True).start()
threading.Thread(target=datagrams, daemon=True).start()
serve(5000)
"#;

const APP: &str = "172.18.0.23";

fn panel(via: &str, more: &str) -> String {
    panel_at(
        "127.0.0.1",
        &format!("via = \"{via}\"\nsource = \"localhost\"\n{more}"),
    )
}

fn panel_at(bound: &str, more: &str) -> String {
    format!(
        "name = \"panel\"\n[network]\nsubnet = \"172.18.0.0/24\"\n[sidecar]\naddress = \"172.18.0.33\"\n\
         [app]\naddress = \"{APP}\"\nrootfs = \"host\"\ncommand = {}\nlisten = [6000]\n\
         publish = [\"0.0.0.0:5000:5000\", \"0.0.0.0:5000:5000/udp\"]\n{more}\n",
        look::toml_list(&[PYTHON, "-c", SERVER, bound])
    )
}

/// Whom the app says that a client of the lab's is.
fn seen_by_http(lab: &Lab) -> String {
    let said = lab.client_get(&format!("http://{LAB}:5000/0")).unwrap();
    said.split(' ').next().unwrap().to_owned()
}

/// The same by UDP, in an answer of so many bytes.
fn seen_by_udp(lab: &Lab, size: usize) -> Value {
    look::attack_from_client(
        lab,
        &format!(
            "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20)\n\
             s.sendto(b'{size}', ('{LAB}', 5000)); said = s.recvfrom(9000)[0].decode().split()\n\
             say([said[0], len(said[1])])"
        ),
    )
}

fn audited(lab: &Lab) -> Vec<String> {
    let output = lab.lrpns(&["audit", "panel", "--json"]);
    let found = look::findings(&output.stdout).into_iter();
    // By its name, but of what is not expected all.
    let found: std::collections::BTreeSet<String> = found
        .map(|said| match said.split_once(": ") {
            Some((id @ ("rules-app" | "in-app-loopback" | "net-policies"), _)) => id.to_owned(),
            _ => said,
        })
        .collect();
    found.into_iter().collect()
}

#[test]
fn clients_come_to_its_loopback_and_from_there() {
    if !look::machine() {
        return;
    }
    for via in ["relay", "dnat"] {
        let lab = match via {
            "relay" => Lab::new(),
            _ => Lab::forwarding(),
        };
        look::up(&lab, &panel(via, ""));
        let status = lab.status("panel");
        assert_eq!(look::planned(&status, "/apps/0/source"), "localhost");
        assert_eq!(look::planned(&status, "/apps/0/publish/0/via"), via);
        for _ in 0..3 {
            assert_eq!(seen_by_http(&lab), "127.0.0.1", "{via}");
        }
        assert!(
            lab.get("http://127.0.0.1:5000/0")
                .unwrap()
                .starts_with("127.0.0.1 ")
        );
        // Of more than a segment, and of more than a packet.
        let long = lab
            .client_get(&format!("http://{LAB}:5000/3000000"))
            .unwrap();
        assert!(long.len() > 3_000_000, "{via}: {}", long.len());
        for size in [1, 1400, 3000, 8000] {
            assert_eq!(seen_by_udp(&lab, size), json!(["127.0.0.1", size]), "{via}");
        }
        // What it starts within itself is not taken anywhere.
        let within = look::attack(
            &lab,
            "panel",
            "app",
            "s = socket.create_connection(('127.0.0.1', 6000)); s.sendall(b'x'); say([s.recv(9).decode(), knock('172.18.0.33', 22)])",
        );
        assert_eq!(
            within,
            json!(["x", look::refused_tcp("EINPROGRESS")]),
            "{via}"
        );
        // The log knows who it was.
        let logged = until("a line of the client", || {
            let lines = lab.lrpns_ok(&["logs", "panel"]);
            let line = lines
                .lines()
                .find(|line| line.contains(CLIENT) && line.contains(APP));
            let line = line.or(lines.lines().find(|line| line.contains(CLIENT)));
            line.map(str::to_owned)
        });
        assert!(!logged.contains("127.0.0.1:"), "{logged}");
        assert_eq!(audited(&lab), [""; 0], "{via}");
        lab.lrpns_ok(&["restart", "panel/app"]);
        assert_eq!(seen_by_http(&lab), "127.0.0.1", "{via}, started again");
        lab.lrpns_ok(&["down", "panel"]);
    }
}

#[test]
fn a_sidecar_that_was_broken_into_reaches_nothing_else_there() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    look::up(&lab, &panel("relay", ""));
    let status = lab.status("panel");
    let (sidecar, app) = (look::init(&status, "sidecar"), look::init(&status, "app"));
    look::beside(&lab, sidecar, &["nft", "flush", "ruleset"]);
    let ask = |address: &str, port: u16| {
        look::attack_beside(
            &lab,
            sidecar,
            &format!(
                "s = socket.socket(); s.settimeout(20)\n\
                 how = tried(s.connect, ('{address}', {port}))\n\
                 if how == 'OK': s.sendall(b'GET /0 '); how = s.recv(99).decode().split('\\r\\n')[-1].split()[0]\n\
                 say(how)"
            ),
        )
    };
    assert_eq!(ask(APP, 5000), "127.0.0.1");
    assert_eq!(ask(APP, 6000), "ECONNREFUSED");
    // As it is, and in the name of the loopback itself: by hand, and by a route.
    let rules = (Some(app), "lrpns");
    let before = look::counters(&lab, rules.0, rules.1);
    let (port, to, from) = (
        look::planned(&status, "/apps/0/port_link").to_owned(),
        look::planned(&status, "/apps/0/mac").to_owned(),
        look::planned(&status, "/bridge/mac").to_owned(),
    );
    look::attack_beside(
        &lab,
        sidecar,
        &format!(
            "for target in ['127.0.0.1', '127.0.0.2', '127.255.255.254']:\n    \
                 for kind in [tcp, udp]:\n        \
                     for at in [5000, 6000]:\n            \
                         frame('{port}', '{to}', '{from}', kind('172.18.0.33', target, 999, at))\n\
             for at in [5000, 6000]:\n    frame('{port}', '{to}', '{from}', tcp('127.0.0.1', '{APP}', 999, at))\n\
             say(1)"
        ),
    );
    look::assert_counted(
        &lab,
        rules,
        &before,
        &[
            ("guard/drop-to-loopback", 12),
            ("guard/drop-from-loopback", 2),
        ],
    );
}

#[test]
fn the_audit_finds_what_is_changed_of_its_rules() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    look::up(&lab, &panel("relay", ""));
    let within = |args: &[&str]| {
        let app = look::init(&lab.status("panel"), "app");
        look::beside(&lab, app, args);
    };
    let again = || drop(lab.lrpns_ok(&["restart", "panel/app"]));
    within(&[
        "nft",
        "add",
        "element",
        "inet",
        "lrpns",
        "services",
        &format!("{{ {APP} . 6000 }}"),
    ]);
    assert_eq!(audited(&lab), ["rules-app"]);
    within(&[
        "nft",
        "delete",
        "element",
        "inet",
        "lrpns",
        "services",
        &format!("{{ {APP} . 6000 }}"),
    ]);
    assert_eq!(audited(&lab), [""; 0]);
    within(&[
        "nft", "insert", "rule", "inet", "lrpns", "guard", "counter", "accept",
    ]);
    assert_eq!(audited(&lab), ["in-app-loopback", "rules-app"]);
    within(&["nft", "flush", "ruleset"]);
    let found = audited(&lab);
    assert!(found.contains(&"in-app-loopback".to_owned()), "{found:?}");
    assert!(found.contains(&"net-policies".to_owned()), "{found:?}");
    again();
}

#[test]
fn an_ordinary_users_app_is_reached_so_too() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let user = User::new(&lab, 1001);
    if !user.may() {
        return;
    }
    user.up(&panel("relay", ""));
    assert_eq!(seen_by_http(&lab), "127.0.0.1");
    assert_eq!(seen_by_udp(&lab, 3000), json!(["127.0.0.1", 3000]));
    let output = user.lrpns(&["audit", "panel", "--json"]);
    assert_eq!(look::findings(&output.stdout), [""; 0]);
    user.lrpns_ok(&["down", "panel"]);
}

#[test]
fn it_comes_and_goes_while_the_stack_runs() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let all = |more: &str| panel_at("0.0.0.0", more);
    look::up(&lab, &all(""));
    let tables = || {
        let app = look::init(&lab.status("panel"), "app");
        look::beside(&lab, app, &["nft", "list", "tables"])
    };
    let localnet = || {
        let app = look::init(&lab.status("panel"), "app");
        look::beside(
            &lab,
            app,
            &["cat", "/proc/sys/net/ipv4/conf/all/route_localnet"],
        )
    };
    assert_eq!(seen_by_http(&lab), "172.18.0.33");
    let apply = |text: &str| {
        let path = lab.write("other.toml", text);
        let output = lab.lrpns(&["apply", "-f", path.to_str().unwrap()]);
        assert!(output.status.success(), "{}", describe(&output));
        describe(&output)
    };
    for _ in 0..2 {
        apply(&all("source = \"localhost\""));
        assert_eq!(seen_by_http(&lab), "127.0.0.1");
        assert_eq!(localnet().trim(), "1");
        assert_eq!(audited(&lab), [""; 0]);
        apply(&all("source = \"client\""));
        assert_eq!(seen_by_http(&lab), CLIENT);
        assert_eq!((tables().as_str(), localnet().trim()), ("", "0"));
        assert_eq!(audited(&lab), [""; 0]);
    }
    // Another port is one more element there.
    apply(&panel("relay", ""));
    let text = panel("relay", "").replace("publish = [", "publish = [\"0.0.0.0:6000:6000\", ");
    apply(&text);
    let said = lab.client_get(&format!("http://{LAB}:6000/0")).unwrap();
    assert!(said.starts_with("127.0.0.1 "), "{said}");
    assert_eq!(audited(&lab), [""; 0]);
    // What does not come up is taken back, to where it was.
    let path = lab.write(
        "deaf.toml",
        &panel_at(
            "127.0.0.2",
            "source = \"localhost\"\nvia = \"relay\"\nstart_timeout = \"1s\"",
        ),
    );
    let (code, said) = lab.lrpns_err(&["apply", "-f", path.to_str().unwrap()]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("let it bind 127.0.0.1"), "{said}");
    assert_eq!(seen_by_http(&lab), "127.0.0.1");
    assert_eq!(audited(&lab), [""; 0]);
}

#[test]
fn another_takes_its_place_when_its_clients_have_gone() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    look::up(
        &lab,
        &panel("relay", "replace = \"rolling\"\nstop_timeout = \"60s\""),
    );
    let asked = || {
        let said = lab.client_get(&format!("http://{LAB}:5000/0")).unwrap();
        said.split(' ').nth(1).unwrap().to_owned()
    };
    let before = asked();
    let mut held = lab.connect("127.0.0.1:5000").unwrap();
    let mut echo = |word: &[u8]| {
        let mut back = [0; 4];
        held.write_all(word).unwrap();
        held.read_exact(&mut back).unwrap();
        assert_eq!(back, word);
    };
    echo(b"one ");
    let mut restart = lab.spawn_lrpns(&["restart", "--rolling", "panel/app"]);
    let after = until("another answers", || {
        Some(asked()).filter(|now| *now != before)
    });
    // The old one waits for its client, who is no connection within.
    echo(b"two ");
    assert!(restart.try_wait().unwrap().is_none());
    drop(held);
    assert!(restart.wait().unwrap().success());
    assert_eq!(asked(), after);
    assert_eq!(audited(&lab), [""; 0]);
}

#[test]
fn another_app_comes_to_its_loopback_by_connect() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new().with_ipv6();
    let app = |name: &str, more: &str| {
        format!(
            "[app.{name}]\nrootfs = \"host\"\ncommand = {}\n{more}\n",
            look::toml_list(&[PYTHON, "-c", SERVER])
        )
    };
    let file = format!(
        "name = \"shop\"\n[network]\nsubnet = \"172.18.0.0/24\"\nipv6 = \"fd00:18::/64\"\n{}{}",
        app("db", "listen = [6000]\nsource = \"localhost\""),
        app(
            "web",
            "listen = [6000]\nconnect = [\"db:5000\", \"db:5000/udp\"]\nafter = [\"db\"]\npublish = [\"5000:5000\"]\nsource = \"localhost\""
        ),
    );
    look::up(&lab, &file);
    let found = look::attack(
        &lab,
        "shop",
        "web",
        "s = socket.create_connection(('db', 5000)); s.sendall(b'GET /0 ')\n\
         u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.settimeout(20); u.sendto(b'3', ('db', 5000))\n\
         say([s.recv(99).decode().split('\\r\\n')[-1].split()[0], u.recv(99).decode()])",
    );
    assert_eq!(found, json!(["127.0.0.1", "127.0.0.1 xxx"]));
    let output = lab.lrpns(&["audit", "shop", "--json"]);
    assert_eq!(look::findings(&output.stdout), [""; 0]);
}

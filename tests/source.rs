//! `source = "client"`: the app sees who its clients are, and reaches nobody by that.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use support::lab::{CLIENT, LAB, Lab, describe};
use support::look::{self, PYTHON};

const APP: &str = "172.18.0.23";
const SIDECAR: &str = "172.18.0.33";

/// A lab with a telling app that sees its clients, published on all addresses.
fn seeing(lab: Lab, via: &str) -> (Lab, String, Value) {
    let token = look::token();
    let more = format!("via = \"{via}\"\nsource = \"client\"");
    look::up(
        &lab,
        &look::telling("web", &token, "0.0.0.0:5000:5000", &more),
    );
    let status = lab.status("web");
    assert_eq!(look::planned(&status, "/apps/0/publish/0/via"), via);
    look::settle(&lab, &status);
    (lab, token, status)
}

#[test]
fn the_app_sees_the_client_by_dnat() {
    if !look::machine() {
        return;
    }
    let (lab, token, _) = seeing(Lab::forwarding(), "dnat");
    for _ in 0..3 {
        let answer = look::told(lab.client_get(&format!("http://{LAB}:5000/")));
        assert_eq!(answer["peer"], CLIENT);
        assert_eq!(answer["token"], token.as_str());
    }
}

#[test]
fn the_app_sees_the_client_by_relay() {
    if !look::machine() {
        return;
    }
    let (lab, token, status) = seeing(Lab::new(), "relay");
    for _ in 0..3 {
        let answer = look::told(lab.client_get(&format!("http://{LAB}:5000/")));
        assert_eq!(answer["peer"], CLIENT);
        assert_eq!(answer["token"], token.as_str());
    }
    // The host's own address is a client's like any other; loopback's leads nowhere else.
    let answer = look::told(lab.get(&format!("http://{LAB}:5000/")));
    assert_eq!(answer["peer"], LAB);
    let answer = look::told(lab.get("http://127.0.0.1:5000/"));
    assert_eq!(
        answer["peer"],
        look::planned(&status, "/uplink/host_address")
    );
    // The host has no part in it: no link, no rule.
    let links = look::json(&lab, None, &["ip", "-j", "link"]);
    assert_eq!(links.as_array().unwrap().len(), 2, "lo and ext0: {links}");
    assert_eq!(lab.ok(&["nft", "list", "ruleset"]), "");
    lab.lrpns_ok(&["restart", "web", "relay"]);
    let answer = look::told(lab.client_get(&format!("http://{LAB}:5000/")));
    assert_eq!(answer["peer"], CLIENT, "after a restart of the relay");
}

#[test]
fn an_app_that_sees_its_clients_has_a_default_route_and_starts_nothing_with_it() {
    if !look::machine() {
        return;
    }
    let (lab, token, status) = seeing(Lab::forwarding(), "dnat");
    let app = look::pid(&status, "app");
    let routes = look::json(&lab, Some(app), &["ip", "-j", "route"]);
    let routes: Vec<_> = routes
        .as_array()
        .unwrap()
        .iter()
        .map(|route| (&route["dst"], &route["gateway"]))
        .collect();
    assert_eq!(
        routes,
        [
            (&json!("default"), &json!(SIDECAR)),
            (&json!(SIDECAR), &Value::Null)
        ]
    );

    let uplink = look::planned(&status, "/uplink/host_link").to_owned();
    let near = look::planned(&status, "/uplink/host_address");
    let far = look::planned(&status, "/uplink/sidecar_address");
    let sidecar = (Some(look::init(&status, "sidecar")), "lrpns");
    let heard = look::received(&lab, None, &uplink);
    let (to, from) = (
        look::planned(&status, "/bridge/mac"),
        look::planned(&status, "/apps/0/mac"),
    );
    // Inside the subnet: the sidecar, and another app that could be there. Outside: all others.
    let prelude = format!(
        "me = '{APP}'\n\
         inside = ['{SIDECAR}', '172.18.0.24']\n\
         outside = ['{near}', '{LAB}', '{CLIENT}', '169.254.169.254', '203.0.113.8']\n\
         anybody = inside + ['{far}'] + outside\n\
         def send(packet, to='{to}'):\n    frame('eth0', to, '{from}', packet)\n"
    );

    // With what an app has: Landlock doesn't know the route; the sidecar does not mind it.
    let before = look::counters(&lab, sidecar.0, sidecar.1);
    let found = look::attack(
        &lab,
        "web",
        "app",
        &format!(
            "{prelude}say([sorted({{knock(a, 80) for a in anybody}}), sorted({{throw(a, 53) for a in anybody}})])"
        ),
    );
    assert_eq!(found, json!([["EACCES"], ["OK"]]));
    look::assert_counted(&lab, sidecar, &before, &[("guard/drop-app-egress", 8)]);

    type Attack = (&'static str, &'static str, &'static [(&'static str, u64)]);
    let attacks: [Attack; 8] = [
        (
            "TCP, UDP and ICMP to anybody, from a port that is not published",
            "for a in anybody:\n    send(tcp(me, a, 4999, 80))\n    send(udp(me, a, 5000, 53))\n    send(ping(me, a))",
            &[("guard/drop-app-egress", 24)],
        ),
        (
            "a connection from the published port",
            "for a in outside:\n    send(tcp(me, a, 5000, 80, 2))",
            &[
                ("guard/accept-app-reply-to-client", 5),
                ("forward/drop-from-app", 5),
            ],
        ),
        (
            "in the words of a reply that nobody waits for: SYN and ACK, which belongs to nothing",
            "for a in outside:\n    send(tcp(me, a, 5000, 80, 18))",
            &[
                ("guard/accept-app-reply-to-client", 5),
                ("forward/drop-invalid", 5),
            ],
        ),
        (
            "in the middle of a connection that nobody has seen begin",
            "for a in outside:\n    send(tcp(me, a, 5000, 81, 16))\n    send(tcp(me, a, 5000, 81, 24))",
            &[
                ("guard/accept-app-reply-to-client", 10),
                ("forward/drop-from-app", 10),
            ],
        ),
        (
            "to other apps from the published port",
            "send(tcp(me, '172.18.0.24', 5000, 80, 2))\nsend(tcp(me, '172.18.0.24', 5000, 5000, 16))",
            &[("guard/drop-app-egress", 2)],
        ),
        (
            "to the sidecar from the published port",
            "send(tcp(me, anybody[0], 5000, 80, 2))\nsend(tcp(me, anybody[2], 5000, 80, 2))",
            &[
                ("guard/accept-app-reply", 1),
                ("guard/accept-app-reply-to-client", 1),
                ("input/drop-from-app", 2),
            ],
        ),
        (
            "as somebody else, from the published port",
            "for a in ('172.18.0.24', '172.18.0.33', '10.99.0.2', '10.99.0.1'):\n    send(tcp(a, '203.0.113.8', 5000, 80, 2))",
            &[("guard/drop-app-spoof", 4)],
        ),
        (
            "broadcast and multicast",
            "for a in ('255.255.255.255', '224.0.0.1', '172.18.0.255'):\n    send(udp(me, a, 5000, 67), 'ff:ff:ff:ff:ff:ff')",
            &[("guard/drop-app-egress", 3)],
        ),
    ];
    for (what, attack, counted) in attacks {
        println!("{what}");
        let before = look::counters(&lab, sidecar.0, sidecar.1);
        look::attack_beside(&lab, app, &format!("{prelude}{attack}\nsay(1)"));
        look::assert_counted(&lab, sidecar, &before, counted);
    }
    assert_eq!(
        look::received(&lab, None, &uplink),
        heard,
        "nothing came to the host"
    );
    assert_eq!(
        look::told(lab.client_get(&format!("http://{LAB}:5000/")))["token"],
        token.as_str(),
        "and the app still answers its clients"
    );
}

#[test]
fn a_client_of_the_subnet_or_with_a_link_local_address_gets_no_word_of_the_app() {
    if !look::machine() {
        return;
    }
    let (lab, _, status) = seeing(Lab::forwarding(), "dnat");
    let sidecar = (Some(look::init(&status, "sidecar")), "lrpns");
    let app = Some(look::pid(&status, "app"));
    let links = look::json(&lab, None, &["ip", "-j", "link", "show", "dev", "ext0"]);
    let mac = links[0]["address"].as_str().unwrap();
    // The host has no opinion on sources here: that is what is tested.
    lab.ok(&[
        "sh",
        "-c",
        "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done",
    ]);
    let before = look::counters(&lab, sidecar.0, sidecar.1);
    let heard = look::received(&lab, app, "eth0");
    look::attack_from_client(
        &lab,
        &format!(
            "for source in ('172.18.0.24', '{SIDECAR}', '{APP}', '169.254.169.254'):\n\
             \x20   frame('eth0', '{mac}', '02:00:00:00:00:09', tcp(source, '{LAB}', 4321, 5000))\nsay(1)"
        ),
    );
    look::assert_dropped(
        &lab,
        sidecar,
        &before,
        &[
            ("guard/drop-uplink-spoof", 3),
            ("forward/drop-link-local-client", 1),
        ],
    );
    assert_eq!(
        look::received(&lab, app, "eth0"),
        heard,
        "nothing came to the app"
    );
}

#[test]
fn one_app_may_see_its_clients_and_another_the_sidecar() {
    if !look::machine() {
        return;
    }
    let lab = Lab::forwarding();
    let app = |name: &str, port: u16, source: &str| {
        format!(
            "[app.{name}]\nrootfs = \"host\"\ncommand = {}\npublish = [\"0.0.0.0:{port}:5000\"]\nsource = \"{source}\"\nlisten = [6000]\n",
            look::toml_list(&[look::PYTHON, "-c", look::TELLING])
        )
    };
    look::up(
        &lab,
        &format!(
            "name = \"web\"\n{}{}",
            app("a", 5000, "client"),
            app("b", 5001, "sidecar")
        ),
    );
    let status = lab.status("web");
    let sidecar = look::planned(&status, "/bridge/address");
    for (port, peer) in [(5000, CLIENT), (5001, sidecar)] {
        let answer = look::told(lab.client_get(&format!("http://{LAB}:{port}/")));
        assert_eq!(answer["peer"], peer, "{port}");
    }
}

#[test]
fn nginx_logs_the_true_client_by_dnat_and_by_relay() {
    if !look::machine_with(&["nginx"]) {
        return;
    }
    for (lab, via) in [(Lab::forwarding(), "dnat"), (Lab::new(), "relay")] {
        std::fs::create_dir(lab.dir.path().join("conf")).unwrap();
        lab.write("conf/nginx.conf", look::NGINX);
        look::up(
            &lab,
            &format!(
                "name = \"web\"\n[app]\nrootfs = \"host\"\n\
                 command = [\"/usr/sbin/nginx\", \"-e\", \"stderr\", \"-c\", \"/conf/nginx.conf\"]\n\
                 volumes = [\"{}:/conf\"]\npublish = [\"0.0.0.0:5000:5000\"]\nsource = \"client\"\nvia = \"{via}\"\n",
                lab.dir.path().join("conf").display()
            ),
        );
        let answer = lab.client_get(&format!("http://{LAB}:5000/"));
        assert_eq!(answer.as_deref(), Ok("from nginx\n"), "{via}");
        let wanted = format!("{CLIENT} 200");
        support::lab::until("nginx's access log names the client", || {
            let log = lab.lrpns_ok(&["logs", "web", "--part", "app"]);
            log.contains(&wanted).then_some(())
        });
    }
}

#[test]
fn two_connections_of_one_client_port_to_two_published_ports_both_work() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let file = look::telling("web", "t", "0.0.0.0:5000:5000", "source = \"client\"").replace(
        "[\"0.0.0.0:5000:5000\"]",
        "[\"0.0.0.0:5000:5000\", \"0.0.0.0:6000:6000\"]",
    );
    look::up(&lab, &file);
    // Open at the same time, from one address and port of the client; and each twice, one right after the other.
    let seen = look::attack_from_client(
        &lab,
        &format!(
            r#"
def dial(port):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("{CLIENT}", 40000))
    s.settimeout(5)
    s.connect(("{LAB}", port))
    return s
def ask(s):
    s.sendall(b"GET / HTTP/1.0\r\n\r\n")
    answer = b""
    while more := s.recv(4096):
        answer += more
    s.close()
    return json.loads(answer.split(b"\r\n\r\n")[1])["peer"]
seen = []
for again in range(3):
    both = [dial(5000), dial(6000)]
    seen += [ask(s) for s in both]
say(seen)
"#
        ),
    );
    assert_eq!(seen, json!(vec![CLIENT; 6]));
}

#[test]
fn where_the_uplink_ends_at_the_relay_it_leads_nowhere_but_to_published_ports() {
    if !look::machine() {
        return;
    }
    let (lab, token, status) = seeing(Lab::forwarding(), "relay");
    let relay = look::init(&status, "relay");
    let sidecar = (Some(look::init(&status, "sidecar")), "lrpns");
    let entry = look::planned(&status, "/uplink/sidecar_address");
    let app = Some(look::pid(&status, "app"));
    let heard = look::received(&lab, app, "eth0");

    // A relay that was broken into: everywhere but the sidecar is itself.
    let before = look::counters(&lab, sidecar.0, sidecar.1);
    let found = look::attack_beside(
        &lab,
        relay,
        &format!(
            r#"
def dial(address, port):
    with socket.socket() as s:
        s.settimeout(5)
        s.connect((address, port))
def bind(address):
    with socket.socket() as s:
        s.bind((address, 4321))
say([
    [tried(dial, a, 22) for a in ("{LAB}", "{CLIENT}", "127.0.0.1", "8.8.8.8")],
    [tried(bind, a) for a in ("{APP}", "{SIDECAR}", "172.18.0.99", "169.254.169.254", "{entry}")],
    [knock("{APP}", 5000), knock("169.254.169.254", 80)],
    [knock("{entry}", 22), throw("{entry}", 5000)],
])
"#
        ),
    );
    assert_eq!(
        found,
        json!([
            vec!["ECONNREFUSED"; 4],
            vec!["EADDRNOTAVAIL"; 5],
            ["ENETUNREACH", "ENETUNREACH"],
            ["EINPROGRESS", "OK"],
        ])
    );
    look::assert_dropped(&lab, sidecar, &before, &[("input/drop-unpublished", 2)]);
    assert_eq!(
        look::received(&lab, app, "eth0"),
        heard,
        "nothing came to the app"
    );

    // A sidecar that was broken into, and has lost its rules: nobody is there, and the relay's table says so first.
    look::beside(&lab, sidecar.0.unwrap(), &["nft", "flush", "ruleset"]);
    let far = (Some(relay), "lrpns-web");
    let before = look::counters(&lab, far.0, far.1);
    look::attack_beside(
        &lab,
        sidecar.0.unwrap(),
        &format!(
            "for a in ('{LAB}', '{CLIENT}', '8.8.8.8', '{}'):\n    knock(a, 22)\n    throw(a, 53)\nsay(1)",
            look::planned(&status, "/uplink/host_address")
        ),
    );
    look::assert_dropped(&lab, far, &before, &[("input/drop-from-sidecar", 8)]);
    lab.lrpns_ok(&["restart", "web", "sidecar"]);
    let answer = look::told(lab.client_get(&format!("http://{LAB}:5000/")));
    assert_eq!(answer["token"], token.as_str());
}

#[test]
fn a_client_of_the_stacks_subnet_is_reset_by_the_relay() {
    if !look::machine() {
        return;
    }
    let (lab, _, _) = seeing(Lab::new(), "relay");
    lab.ok(&["ip", "address", "add", "172.18.0.1/24", "dev", "ext0"]);
    lab.ok(&[
        "ip",
        "-n",
        "client",
        "address",
        "add",
        "172.18.0.99/24",
        "dev",
        "eth0",
    ]);
    // A reset, at once: while curl still waits for the connection (7), or after (56).
    let refused = lab.client_get("http://172.18.0.1:5000/");
    assert!(matches!(refused, Err(7 | 56)), "{refused:?}");
    assert!(lab.client_get(&format!("http://{LAB}:5000/")).is_ok());
    // Where nobody is to see who it is, it is carried from the relay's own address.
    lab.lrpns_ok(&["down", "web"]);
    look::up(&lab, &look::telling("web", "t", "0.0.0.0:5000:5000", ""));
    let answer = look::told(lab.client_get("http://172.18.0.1:5000/"));
    assert_eq!(answer["peer"], "172.18.0.33");
}

#[test]
fn dnat_beside_source_client_by_relay_is_refused_before_anything_is_made() {
    if !look::machine() {
        return;
    }
    let lab = Lab::forwarding();
    let app = |name: &str, port: u16, more: &str| {
        format!(
            "[app.{name}]\nrootfs = \"builtin:webapp\"\npublish = [\"0.0.0.0:{port}:5000\"]\n{more}\n"
        )
    };
    let a = app("a", 5000, "source = \"client\"\nvia = \"relay\"");
    let path = lab.write(
        "both.toml",
        &format!("name = \"web\"\n{a}{}", app("b", 5001, "via = \"dnat\"")),
    );
    let (code, said) = lab.lrpns_err(&["up", "-d", "-f", path.to_str().unwrap()]);
    assert_eq!(code, 125);
    for words in [
        "0.0.0.0:5001: via = \"dnat\"",
        "the uplink ends at the relay",
        "hint: ",
    ] {
        assert!(said.contains(words), "no `{words}` in {said}");
    }
    // What is left to lrpns goes the same way as the other.
    look::up(&lab, &format!("name = \"web\"\n{a}{}", app("b", 5001, "")));
    let status = lab.status("web");
    assert_eq!(look::planned(&status, "/uplink/ends_at"), "relay");
    assert_eq!(look::planned(&status, "/apps/1/publish/0/via"), "relay");
    assert!(lab.client_get(&format!("http://{LAB}:5001/")).is_ok());
}

#[test]
fn an_app_sees_who_writes_to_it_by_udp_too() {
    if !look::machine() {
        return;
    }
    for (lab, via) in [(Lab::forwarding(), "dnat"), (Lab::new(), "relay")] {
        let code = "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.bind(('0.0.0.0', 5000))\n\
                    while True:\n    _, peer = s.recvfrom(99)\n    s.sendto(peer[0].encode(), peer)\n";
        look::up(
            &lab,
            &format!(
                "name = \"web\"\n[app]\nrootfs = \"host\"\ncommand = {}\npublish = [\"0.0.0.0:5000:5000/udp\"]\n\
                 source = \"client\"\nvia = \"{via}\"\n",
                look::toml_list(&[look::PYTHON, "-c", code])
            ),
        );
        let seen = look::attack_from_client(
            &lab,
            &format!(
                "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.settimeout(5)\ns.connect(('{LAB}', 5000))\n\
                 seen = []\nfor _ in range(3):\n    s.send(b'?')\n    seen.append(s.recv(99).decode())\nsay(seen)"
            ),
        );
        assert_eq!(seen, json!(vec![CLIENT; 3]), "{via}");
    }
}

#[test]
fn a_stack_that_ends_at_the_relay_is_changed_and_counted_like_any_other() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let file = |publish: &[&str], source: &str| {
        let file = look::telling("web", "t", "PORTS", &format!("source = \"{source}\""));
        file.replace("[\"PORTS\"]", &look::toml_list(publish))
    };
    look::up(&lab, &file(&["0.0.0.0:5000:5000"], "client"));
    let more = lab.write(
        "more.toml",
        &file(&["0.0.0.0:5000:5000", "0.0.0.0:6000:6000"], "client"),
    );
    lab.lrpns_ok(&["apply", "-f", more.to_str().unwrap()]);
    for port in [5000, 6000] {
        let answer = look::told(lab.client_get(&format!("http://{LAB}:{port}/")));
        assert_eq!(answer["peer"], CLIENT, "{port}");
    }
    let counters = lab.lrpns_ok(&["rules", "web", "--counters", "--json"]);
    let counters = look::told_counters(&counters, "relay");
    assert!(counters["input/accept-relay-reply"] > 0, "{counters:?}");
    // The uplink's end stays where it is.
    let other = lab.write("other.toml", &file(&["0.0.0.0:5000:5000"], "sidecar"));
    lab.lrpns_ok(&["apply", "-f", other.to_str().unwrap()]);
    let answer = look::told(lab.client_get(&format!("http://{LAB}:5000/")));
    assert_eq!(answer["peer"], "172.18.0.33");
    lab.lrpns_ok(&["down", "web"]);
    // It is there for what is relayed, whatever an app is to see.
    look::up(&lab, &file(&["5000:5000"], "sidecar"));
    lab.lrpns_ok(&["apply", "-f", more.to_str().unwrap()]);
    let answer = look::told(lab.client_get(&format!("http://{LAB}:6000/")));
    assert_eq!(answer["peer"], CLIENT);
}

#[test]
fn a_stack_that_ends_at_the_host_shows_no_client_by_relay_until_it_is_made_anew() {
    if !look::machine() {
        return;
    }
    let lab = Lab::forwarding();
    let file = |more: &str| look::telling("web", "t", "0.0.0.0:5000:5000", more);
    look::up(&lab, &file("via = \"dnat\""));
    let relayed = lab.write(
        "relayed.toml",
        &file("via = \"relay\"\nsource = \"client\""),
    );
    let (_, said) = lab.lrpns_err(&["apply", "-f", relayed.to_str().unwrap()]);
    assert!(
        said.contains("the uplink would have to end at the relay"),
        "{said}"
    );
    let answer = look::told(lab.client_get(&format!("http://{LAB}:5000/")));
    assert_eq!(answer["peer"], "172.18.0.33");
    lab.lrpns_ok(&["down", "web"]);
    look::up(&lab, &std::fs::read_to_string(relayed).unwrap());
    let answer = look::told(lab.client_get(&format!("http://{LAB}:5000/")));
    assert_eq!(answer["peer"], CLIENT);
}

/// Connections that the client closes first, one after another: how many were answered.
const CLOSES_FIRST: &str = r#"
import socket, sys
answered = 0
for _ in range(int(sys.argv[2])):
    with socket.create_connection((sys.argv[1], 5000), 20) as s:
        s.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answered += s.recv(16).startswith(b"HTTP/1.0 200")
print(answered)
"#;

#[test]
fn connections_that_clients_close_first_take_no_port_of_the_hosts() {
    if !look::machine() {
        return;
    }
    const CONNECTIONS: &str = "2000";
    let lab = Lab::new();
    // Each such end leaves a port in TIME-WAIT for a minute: with so few, one that is taken for each is soon missed.
    let few = ["sysctl", "-q", "net.ipv4.ip_local_port_range=20000 20099"];
    lab.ok(&few);
    look::up(&lab, &look::telling("web", "t", "0.0.0.0:5000:5000", ""));
    let (relay, _) = look::far(&lab.status("web"));
    look::beside(&lab, relay.unwrap(), &few);
    let output = lab.client(&[PYTHON, "-c", CLOSES_FIRST, LAB, CONNECTIONS]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said.trim(), CONNECTIONS, "{}", describe(&output));
}

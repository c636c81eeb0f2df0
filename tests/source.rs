//! `source = "client"`: the app sees who its clients are, and reaches nobody by that.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use support::lab::{CLIENT, LAB, Lab};
use support::look;

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

fn told(answer: Result<String, i32>) -> Value {
    serde_json::from_str(&answer.expect("an answer")).unwrap()
}

/// The packets that a link has received.
fn received(lab: &Lab, pid: Option<i64>, link: &str) -> u64 {
    let links = look::json(lab, pid, &["ip", "-j", "-s", "link", "show", "dev", link]);
    links[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
}

#[test]
fn the_app_sees_the_client_by_dnat() {
    if !look::machine() {
        return;
    }
    let (lab, token, _) = seeing(Lab::forwarding(), "dnat");
    for _ in 0..3 {
        let answer = told(lab.client_get(&format!("http://{LAB}:5000/")));
        assert_eq!(answer["peer"], CLIENT);
        assert_eq!(answer["token"], token.as_str());
    }
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
    let heard = received(&lab, None, &uplink);
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

    // With what an app has: its calls work now, and that is all.
    let before = look::counters(&lab, sidecar.0, sidecar.1);
    let found = look::attack(
        &lab,
        "web",
        "app",
        &format!(
            "{prelude}say([sorted({{knock(a, 80) for a in anybody}}), sorted({{throw(a, 53) for a in anybody}})])"
        ),
    );
    assert_eq!(found, json!([["EINPROGRESS"], ["OK"]]));
    look::assert_counted(&lab, sidecar, &before, &[("guard/drop-app-egress", 16)]);

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
        received(&lab, None, &uplink),
        heard,
        "nothing came to the host"
    );
    assert_eq!(
        told(lab.client_get(&format!("http://{LAB}:5000/")))["token"],
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
    let heard = received(&lab, app, "eth0");
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
        received(&lab, app, "eth0"),
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
            "[app.{name}]\nrootfs = \"host\"\ncommand = {}\npublish = [\"0.0.0.0:{port}:5000\"]\nsource = \"{source}\"\n",
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
        let answer = told(lab.client_get(&format!("http://{LAB}:{port}/")));
        assert_eq!(answer["peer"], peer, "{port}");
    }
}

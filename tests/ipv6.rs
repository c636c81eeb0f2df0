//! A stack with an IPv6 prefix: published, filtered and counted like IPv4, and off where nobody has asked for it.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::{Value, json};
use support::lab::{CLIENT6 as CLIENT, LAB6 as LAB, Lab, describe, lrpns, until};
use support::look::{self, PYTHON};

const SIDECAR: &str = "fd00:18::1";
const APP: &str = "fd00:18::2";

/// A lab whose network to the client has IPv6 too; in one that forwards, IPv6 is forwarded as well.
fn lab(forwarding: bool) -> Lab {
    let lab = if forwarding {
        Lab::forwarding()
    } else {
        Lab::new()
    };
    lab.with_ipv6()
}

/// As [`look::TELLING`], on all addresses of both families.
fn telling() -> String {
    look::TELLING
        .replace("\"0.0.0.0\", port", "\"::\", port")
        .replace(
            "def serve(port):",
            "class Both(http.server.ThreadingHTTPServer):\n    address_family = __import__('socket').AF_INET6\ndef serve(port):",
        )
        .replace("return http.server.ThreadingHTTPServer", "return Both")
}

/// A stack with a prefix and one telling app.
fn file(stack: &str, token: &str, publish: &[&str], more: &str) -> String {
    format!(
        "name = \"{stack}\"\n[network]\nsubnet = \"172.18.0.0/24\"\nipv6 = \"fd00:18::/64\"\n\
         [app]\nrootfs = \"host\"\ncommand = {}\nenv = {{ TOKEN = \"{token}\" }}\npublish = {}\nlisten = [5000, 6000]\n{more}\n",
        look::toml_list(&[PYTHON, "-c", &telling()]),
        look::toml_list(publish),
    )
}

/// Brings one up in a lab, published on all addresses of both families.
fn up(forwarding: bool, via: &str) -> (Lab, String, Value) {
    let (lab, token) = (lab(forwarding), look::token());
    let publish = ["0.0.0.0:5000:5000", "[::]:5000:5000"];
    look::up(
        &lab,
        &file("web", &token, &publish, &format!("via = \"{via}\"")),
    );
    let status = lab.status("web");
    for port in [0, 1] {
        let planned = look::planned(&status, &format!("/apps/0/publish/{port}/via")).to_owned();
        assert_eq!(planned, via);
    }
    look::settle(&lab, &status);
    (lab, token, status)
}

fn url(host: &str) -> String {
    format!("http://[{host}]:5000/")
}

#[test]
fn clients_and_loopback_reach_the_app_by_ipv6_and_it_sees_the_sidecar() {
    if !look::machine() {
        return;
    }
    for (forwarding, via) in [(false, "relay"), (true, "dnat")] {
        let (lab, token, status) = up(forwarding, via);
        let sidecar = Some(look::init(&status, "sidecar"));
        let (far, table) = look::far(&status);
        let (inside, host) = (
            look::counters(&lab, sidecar, "lrpns"),
            look::counters(&lab, far, &table),
        );
        let answer = look::told(lab.client_get(&url(LAB)));
        assert_eq!(answer["peer"], SIDECAR, "{via}");
        assert_eq!(answer["token"], token.as_str());
        let counted = look::since(&host, &look::counters(&lab, far, &table));
        let translated = counted.contains_key("prerouting/dnat-any6")
            && counted.contains_key("forward/accept-published6");
        assert_eq!(translated, via == "dnat", "{counted:?}");
        // One connection, whichever way it came; nothing was dropped, and no rule of IPv4 has seen it.
        let counted = look::since(&inside, &look::counters(&lab, sidecar, "lrpns"));
        assert_eq!(counted.get("prerouting/dnat-published6"), Some(&1));
        assert_eq!(counted.get("forward/accept-published6"), Some(&1));
        assert_eq!(counted.get("postrouting/snat-published6"), Some(&1));
        for rule in counted.keys() {
            assert!(
                rule.ends_with('6')
                    || rule == "forward/accept-established"
                    || rule == "forward/note-edge"
                    || rule.starts_with("log-connections/"),
                "{via}: {rule}"
            );
        }
        // The host itself, by loopback and by its address.
        for host in ["::1", LAB] {
            assert_eq!(
                look::told(lab.get(&url(host)))["token"],
                token.as_str(),
                "{host}"
            );
        }
        // And IPv4 beside it.
        let four = look::told(lab.client_get("http://10.99.0.1:5000/"));
        assert_eq!(
            four["peer"], "::ffff:172.18.0.1",
            "a socket of both families"
        );
    }
}

#[test]
fn an_ipv6_address_is_published_alone_and_0_0_0_0_says_nothing_of_ipv6() {
    if !look::machine() {
        return;
    }
    let (lab, token) = (lab(true), look::token());
    let loopback = [
        "0.0.0.0:5000:5000",
        "[::1]:6000:6000",
        "[2001:db8::1]:7000:5000",
    ];
    look::up(&lab, &file("web", &token, &loopback, ""));
    assert!(lab.client_get("http://10.99.0.1:5000/").is_ok());
    assert_eq!(lab.client_get(&url(LAB)), Err(7), "nobody said [::]:5000");
    assert_eq!(lab.get(&url("::1")), Err(7));
    assert_eq!(look::told(lab.get("http://[::1]:6000/"))["port"], 6000);
    assert_eq!(lab.client_get(&format!("http://[{LAB}]:6000/")), Err(7));
    assert_eq!(
        look::told(lab.client_get(&format!("http://[{LAB}]:7000/")))["port"],
        5000
    );
    assert_eq!(lab.client_get("http://10.99.0.1:7000/"), Err(7));
}

/// The client's attempts to get past what is published, with exactly the rule that has refused each.
#[test]
fn what_is_not_published_is_refused_by_the_rule_for_it() {
    if !look::machine() {
        return;
    }
    let (lab, _, status) = up(true, "dnat");
    let sidecar = Some(look::init(&status, "sidecar"));
    let entry = look::planned(&status, "/uplink/sidecar_address6").to_owned();
    let link = look::planned(&status, "/uplink/host_link").to_owned();
    let host = || look::counters(&lab, None, "lrpns-web");
    let inside = || look::counters(&lab, sidecar, "lrpns");
    let client_pings = |to: &str| {
        let output = lab.client(&[PYTHON, "-c", SEND_UDP, to]);
        assert!(output.status.success(), "{}", describe(&output));
    };

    // By routing to the sidecar's end: the host's own table.
    let before = host();
    client_pings(&entry);
    look::assert_dropped(
        &lab,
        (None, "lrpns-web"),
        &before,
        &[("forward/drop-bypass", 1)],
    );

    // The host, with the privilege to route as it likes, to the app itself and to a port that isn't published.
    lab.ok(&[
        "ip",
        "-6",
        "route",
        "add",
        "fd00:18::/64",
        "via",
        &entry,
        "dev",
        &link,
    ]);
    let at_link = || look::uplink_counters(&lab, "web")["uplink-out/drop-uplink-bypass"];
    let sent = at_link();
    for to in [APP, SIDECAR] {
        lab.ok(&[PYTHON, "-c", SEND_UDP, to]);
    }
    look::eventually("dropped before it is sent", &(sent + 2), at_link);
    let before = inside();
    lab.ok(&[PYTHON, "-c", SEND_UDP, &entry]);
    let dropped = [("input/drop-unpublished", 1)];
    look::assert_dropped(&lab, (sidecar, "lrpns"), &before, &dropped);

    // As somebody of the stack's own prefix, and with a source route.
    lab.ok(&[
        "ip",
        "-6",
        "address",
        "add",
        "fd00:18::99/128",
        "dev",
        &link,
        "nodad",
    ]);
    for (script, arguments, rule) in [
        (
            SEND_UDP_FROM,
            ["fd00:18::99", &entry],
            "guard/drop-uplink-spoof6",
        ),
        (SEND_ROUTED, [&link, &entry], "guard/drop-routing-header"),
    ] {
        let before = inside();
        lab.ok(&[&[PYTHON, "-c", script], &arguments[..]].concat());
        look::assert_dropped(&lab, (sidecar, "lrpns"), &before, &[(rule, 1)]);
    }
    assert!(lab.client_get(&url(LAB)).is_ok(), "it answers all the same");
}

/// One datagram to an address.
const SEND_UDP: &str = r#"
import socket, sys
socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b"x", (sys.argv[1], 9))
"#;

/// One datagram from an address of ours.
const SEND_UDP_FROM: &str = r#"
import socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 0))
s.sendto(b"x", (sys.argv[2], 9))
"#;

/// A packet over a link, to an address by its link-layer address, with a routing header of type 4 (RFC 8754).
const SEND_ROUTED: &str = r#"
import json, socket, struct, subprocess, sys
link, to = sys.argv[1:]
lladdr = next(n["lladdr"] for n in json.loads(subprocess.check_output(["ip", "-6", "-j", "neigh", "show", "dev", link])) if n["dst"] == to)
header = struct.pack("!BBBBBBH", 17, 2, 4, 0, 0, 0, 0) + socket.inet_pton(socket.AF_INET6, to)
payload = header + struct.pack("!HHHH", 4000, 5000, 8, 0)
packet = struct.pack("!IHBB", 6 << 28, len(payload), 43, 4) + socket.inet_pton(socket.AF_INET6, "2001:db8::9") + socket.inet_pton(socket.AF_INET6, to)
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
raw.bind((link, 0))
raw.send(bytes.fromhex(lladdr.replace(":", "")) + bytes(6) + b"\x86\xdd" + packet + payload)
"#;

#[test]
fn an_app_starts_nothing_by_ipv6() {
    if !look::machine() {
        return;
    }
    let (lab, _, status) = up(true, "dnat");
    let sidecar = Some(look::init(&status, "sidecar"));
    let app = look::pid(&status, "app");
    let uplink = look::planned(&status, "/uplink/host_address6").to_owned();
    // As the app's own user, by UDP, of which Landlock knows nothing: where it has no route, the kernel says so.
    for to in [LAB, CLIENT, "fd00:18::3", uplink.as_str(), "fe80::1"] {
        let script = format!(
            "import socket\ns = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\nprint(s.connect_ex(({to:?}, 80)))"
        );
        let output = lab.lrpns(&["exec", "web", "--", PYTHON, "-c", &script]);
        assert!(output.status.success(), "{}", describe(&output));
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert!(
            ["101", "113", "22"].contains(&said.as_str()),
            "{to}: errno {said}"
        );
    }
    // With more than an app has, from its namespace: as itself to its neighbours, as somebody else, and in the words of
    // neighbour and router discovery. Each is one packet, and each is counted.
    let add = [
        "ip",
        "-6",
        "address",
        "add",
        "fd00:18::77/128",
        "dev",
        "eth0",
        "nodad",
    ];
    look::beside(&lab, app, &add);
    look::beside(
        &lab,
        app,
        &["ip", "-6", "route", "add", "default", "via", SIDECAR],
    );
    for (script, arguments, rule) in [
        (SEND_UDP_FROM, [APP, SIDECAR], "guard/drop-app-egress"),
        (SEND_UDP_FROM, [APP, CLIENT], "guard/drop-app-egress"),
        (SEND_UDP_FROM, [APP, &uplink], "guard/drop-app-egress"),
        (
            SEND_UDP_FROM,
            ["fd00:18::77", SIDECAR],
            "guard/drop-app-spoof6",
        ),
        (SEND_ICMP, ["134", "ff02::1"], "guard/drop-app-egress"),
        (SEND_ICMP, ["135", SIDECAR], "guard/drop-app-egress"),
        (SEND_ICMP, ["136", SIDECAR], "guard/drop-app-egress"),
        (SEND_ICMP, ["128", SIDECAR], "guard/drop-app-egress"),
    ] {
        let before = look::counters(&lab, sidecar, "lrpns");
        look::beside(
            &lab,
            app,
            &[&[PYTHON, "-c", script], &arguments[..]].concat(),
        );
        look::assert_dropped(&lab, (sidecar, "lrpns"), &before, &[(rule, 1)]);
    }
}

/// An ICMPv6 message of a type to an address, from the app's own.
const SEND_ICMP: &str = r#"
import socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
s.bind(("fd00:18::2", 0))
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, socket.if_nametoindex("eth0"))
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
s.sendto(bytes([int(sys.argv[1]), 0, 0, 0]) + bytes(20), (sys.argv[2], 0))
"#;

#[test]
fn two_stacks_of_the_same_prefix_do_not_meet() {
    if !look::machine() {
        return;
    }
    let (lab, first, second) = (lab(true), look::token(), look::token());
    look::up(&lab, &file("one", &first, &["[::]:5000:5000"], ""));
    look::up(&lab, &file("two", &second, &["[::]:5001:5000"], ""));
    assert_eq!(
        look::told(lab.client_get(&url(LAB)))["token"],
        first.as_str()
    );
    let other = lab.client_get(&format!("http://[{LAB}]:5001/"));
    assert_eq!(look::told(other)["token"], second.as_str());
    // The same app's address in both, and no route of the host to either.
    let routes = lab.ok(&["ip", "-6", "route", "show", "table", "all"]);
    assert!(!routes.contains("fd00:18:"), "{routes}");
    let (code, said) = {
        let path = lab.write("three.toml", &file("three", "", &["[::]:5001:5000"], ""));
        lab.lrpns_err(&["up", "-d", "-f", path.to_str().unwrap()])
    };
    assert_eq!(code, 125, "{said}");
    assert!(said.contains("listen on [::]:5001"), "{said}");
}

#[test]
fn a_restart_of_the_app_loses_no_rule_and_no_address() {
    if !look::machine() {
        return;
    }
    let (lab, token, status) = up(true, "dnat");
    let sidecar = Some(look::init(&status, "sidecar"));
    let seen = |status: &Value| {
        let app = Some(look::pid(status, "app"));
        let of = |pid, what: &[&str]| look::json(&lab, pid, what).to_string();
        [
            of(app, &["ip", "-6", "-j", "address"]),
            of(app, &["ip", "-6", "-j", "route", "show", "table", "all"]),
            of(
                sidecar,
                &["ip", "-6", "-j", "neigh", "show", "nud", "permanent"],
            ),
        ]
    };
    let before = seen(&status);
    lab.lrpns_ok(&["restart", "web", "app"]);
    let status = lab.status("web");
    assert_eq!(seen(&status), before);
    assert_eq!(
        look::told(lab.client_get(&url(LAB)))["token"],
        token.as_str()
    );
}

#[test]
fn without_a_prefix_ipv6_is_off_and_said_to_be() {
    if !look::machine() {
        return;
    }
    let lab = lab(true);
    let file = file("web", "", &["[::]:5000:5000"], "").replace("ipv6 = \"fd00:18::/64\"\n", "");
    let path = lab.write("off.toml", &file);
    let (code, said) = lab.lrpns_err(&["up", "-d", "-f", path.to_str().unwrap()]);
    assert_eq!(code, 2, "{said}");
    for words in [
        "[::] is an IPv6 address",
        "IPv6 is off",
        "ipv6 = \"fd00:18::/64\"",
    ] {
        assert!(said.contains(words), "{said}");
    }
    let path = path.to_str().unwrap();
    std::fs::write(path, file.replace("[::]:5000:5000", "0.0.0.0:5000:5000")).unwrap();
    lab.lrpns_ok(&["up", "-d", "-f", path]);
    assert_eq!(lab.client_get(&url(LAB)), Err(7));
    let app = look::pid(&lab.status("web"), "app");
    let addresses = look::json(&lab, Some(app), &["ip", "-6", "-j", "address"]);
    assert_eq!(addresses, serde_json::json!([]));
}

#[test]
fn a_host_without_ipv6_is_told_before_anything_is_made() {
    if !look::machine() {
        return;
    }
    let lab = lab(false);
    lab.ok(&["sysctl", "-q", "-w", "net.ipv6.conf.all.disable_ipv6=1"]);
    let before = lab.traces();
    let path = lab.write("web.toml", &file("web", "", &["0.0.0.0:5000:5000"], ""));
    let (code, said) = lab.lrpns_err(&["up", "-d", "-f", path.to_str().unwrap()]);
    assert_eq!(code, 125, "{said}");
    for words in [
        "needs IPv6",
        "net.ipv6.conf.all.disable_ipv6 is 1",
        "\"off\"",
    ] {
        assert!(said.contains(words), "{said}");
    }
    assert_eq!(lab.traces(), before);
}

#[test]
fn an_app_that_listens_on_ipv4_only_is_told_to_listen_on_both() {
    if !look::machine() {
        return;
    }
    let lab = lab(false);
    let file = file("web", "", &["[::1]:5000:5000"], "restart = \"no\"");
    // It ends by itself, so that nobody has to wait for what will not come.
    let server =
        "import socket, time\ns = socket.create_server((\"0.0.0.0\", 5000))\ntime.sleep(1)";
    let file = look::with_program(&file, server);
    let path = lab.write("web.toml", &file);
    let (_, said) = lab.lrpns_err(&["up", "-d", "-f", path.to_str().unwrap()]);
    assert!(said.contains("before it listened on port 5000"), "{said}");
}

#[test]
fn the_builtin_app_answers_by_both_families() {
    if !look::machine() {
        return;
    }
    let lab = lab(false);
    let file = "name = \"web\"\n[network]\nipv6 = \"fd00:18::/64\"\n[app]\nrootfs = \"builtin:webapp\"\n\
                publish = [\"[::]:5000:5000\", \"0.0.0.0:5000:5000\"]\n";
    look::up(&lab, file);
    for host in [&url(LAB), &url("::1"), "http://10.99.0.1:5000/"] {
        assert_eq!(lab.get(host).as_deref(), Ok("Hello world!"), "{host}");
    }
}

#[test]
fn an_app_sees_its_clients_own_addresses_of_both_families() {
    if !look::machine() {
        return;
    }
    for (forwarding, via) in [(true, "dnat"), (false, "relay")] {
        let (lab, token) = (lab(forwarding), look::token());
        let more = format!("source = \"client\"\nvia = \"{via}\"");
        let publish = ["0.0.0.0:5000:5000", "[::]:5000:5000"];
        look::up(&lab, &file("web", &token, &publish, &more));
        let status = lab.status("web");
        for _ in 0..3 {
            let answer = look::told(lab.client_get(&url(LAB)));
            assert_eq!(answer["peer"], CLIENT, "{via}");
            assert_eq!(answer["token"], token.as_str());
        }
        let four = look::told(lab.client_get("http://10.99.0.1:5000/"));
        assert_eq!(four["peer"], "::ffff:10.99.0.2", "{via}");
        if via == "relay" {
            assert_eq!(look::planned(&status, "/uplink/ends_at"), "relay");
            // The host's own address is a client's like any other; loopback's leads nowhere else.
            assert_eq!(look::told(lab.get(&url(LAB)))["peer"], LAB);
            let near = look::planned(&status, "/uplink/host_address6");
            assert_eq!(look::told(lab.get(&url("::1")))["peer"], near);
            lab.lrpns_ok(&["restart", "web", "relay"]);
            assert_eq!(look::told(lab.client_get(&url(LAB)))["peer"], CLIENT);
        }
    }
}

#[test]
fn a_client_of_the_stacks_prefix_or_with_a_link_local_address_is_reset_by_the_relay() {
    if !look::machine() {
        return;
    }
    let lab = lab(false);
    look::up(
        &lab,
        &file("web", "", &["[::]:5000:5000"], "source = \"client\""),
    );
    let status = lab.status("web");
    let sidecar = Some(look::init(&status, "sidecar"));
    let before = look::counters(&lab, sidecar, "lrpns");
    for (host, client) in [("fd00:18::1", "fd00:18::99"), ("fe80::1", "fe80::99")] {
        let add =
            |address: &str, link: &str| format!("ip -6 address add {address}/64 dev {link} nodad");
        lab.ok(&["sh", "-c", &add(host, "ext0")]);
        let added = lab.client(&["sh", "-c", &add(client, "eth0")]);
        assert!(added.status.success(), "{}", describe(&added));
        // Whether the reset comes before the connection is known to be made, or after.
        let told = look::attack_from_client(
            &lab,
            &format!(
                "link = socket.if_nametoindex('eth0') if '{host}'[:2] == 'fe' else 0\n\
                 def ask():\n    s = socket.socket(socket.AF_INET6)\n    s.settimeout(5)\n\
                 \x20   s.bind(('{client}', 0, 0, link))\n    s.connect(('{host}', 5000, 0, link))\n    s.recv(1)\n\
                 say(tried(ask))"
            ),
        );
        assert_eq!(told, "ECONNRESET", "{client}");
    }
    let counted = look::since(&before, &look::counters(&lab, sidecar, "lrpns"));
    assert!(counted.is_empty(), "the sidecar heard of it: {counted:?}");
    assert!(lab.client_get(&url(LAB)).is_ok());
}

#[test]
fn a_relay_that_dials_as_its_clients_reaches_nothing_but_the_sidecar_by_ipv6() {
    if !look::machine() {
        return;
    }
    let lab = lab(true);
    look::up(
        &lab,
        &file(
            "web",
            "",
            &["[::]:5000:5000"],
            "source = \"client\"\nvia = \"relay\"",
        ),
    );
    let status = lab.status("web");
    let relay = look::init(&status, "relay");
    let sidecar = (Some(look::init(&status, "sidecar")), "lrpns");
    let entry = look::planned(&status, "/uplink/sidecar_address6");
    let before = look::counters(&lab, sidecar.0, sidecar.1);
    let found = look::attack_beside(
        &lab,
        relay,
        &format!(
            r#"
def dial(address, port, source="::"):
    with socket.socket(socket.AF_INET6) as s:
        s.settimeout(5)
        s.bind((source, 0))
        s.connect((address, port))
def throw6(address, port):
    socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).sendto(b"x", (address, port))
say([
    [tried(dial, a, 22) for a in ("{LAB}", "{CLIENT}", "::1", "2606:4700:4700::1111")],
    [tried(dial, "{entry}", 22, a) for a in ("{APP}", "{SIDECAR}", "fd00:18::99")],
    [tried(dial, a, 5000) for a in ("{APP}", "{SIDECAR}")],
    [tried(throw6, "{entry}", 5000)],
])
"#
        ),
    );
    assert_eq!(
        found,
        json!([
            vec!["ECONNREFUSED"; 4],
            vec!["ENETUNREACH"; 3],
            vec!["ENETUNREACH"; 2],
            ["OK"],
        ])
    );
    look::assert_dropped(&lab, sidecar, &before, &[("input/drop-unpublished", 1)]);

    // A sidecar that was broken into, and has lost its rules: the relay's table drops what it begins.
    look::beside(&lab, sidecar.0.unwrap(), &["nft", "flush", "ruleset"]);
    let far = (Some(relay), "lrpns-web");
    let before = look::counters(&lab, far.0, far.1);
    let near = look::planned(&status, "/uplink/host_address6");
    for to in [LAB, CLIENT, near] {
        look::beside(&lab, sidecar.0.unwrap(), &[PYTHON, "-c", SEND_UDP, to]);
    }
    look::assert_dropped(&lab, far, &before, &[("input/drop-from-sidecar", 3)]);
}

#[test]
fn nginx_logs_the_true_ipv6_client_by_dnat_and_by_relay() {
    if !look::machine_with(&["nginx"]) {
        return;
    }
    for (forwarding, via) in [(true, "dnat"), (false, "relay")] {
        let lab = lab(forwarding);
        let conf = lab.dir.path().join("conf");
        std::fs::create_dir(&conf).unwrap();
        lab.write("conf/nginx.conf", look::NGINX);
        look::up(
            &lab,
            &format!(
                "name = \"web\"\n[network]\nipv6 = \"fd00:18::/64\"\n[app]\nrootfs = \"host\"\n\
                 command = [\"/usr/sbin/nginx\", \"-e\", \"stderr\", \"-c\", \"/conf/nginx.conf\"]\n\
                 volumes = [\"{}:/conf\"]\npublish = [\"0.0.0.0:5000:5000\", \"[::]:5000:5000\"]\n\
                 source = \"client\"\nvia = \"{via}\"\n",
                conf.display()
            ),
        );
        for (url, client) in [
            (url(LAB), CLIENT),
            ("http://10.99.0.1:5000/".to_owned(), "10.99.0.2"),
        ] {
            let answer = lab.client_get(&url);
            assert_eq!(answer.as_deref(), Ok("from nginx\n"), "{via} {url}");
            let wanted = format!("{client} 200");
            until("nginx's access log names the client", || {
                let log = lab.lrpns_ok(&["logs", "web", "--part", "app"]);
                log.contains(&wanted).then_some(())
            });
        }
    }
}

/// A server of datagrams that answers with whom it sees.
const WHO: &str = "import socket\ns = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\ns.bind((\"::\", 5000))\nwhile True:\n    sent, peer = s.recvfrom(9999)\n    s.sendto(peer[0].encode() + b\" \" + sent, peer)\n";

/// Asks one of these, and prints its answers.
const ASK: &str = "import socket, sys\ns = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\ns.settimeout(10)\ns.connect((sys.argv[1], 5000))\nfor n in range(3):\n    s.send(b\"%d\" % n)\n    print(s.recv(9999).decode())\n";

#[test]
fn datagrams_are_published_by_ipv6_and_the_app_sees_whom_it_is_to_see() {
    if !look::machine() {
        return;
    }
    for (forwarding, via) in [(true, "dnat"), (false, "relay")] {
        for (source, peer) in [("sidecar", SIDECAR), ("client", CLIENT)] {
            let lab = lab(forwarding);
            let file = format!(
                "name = \"web\"\n[network]\nipv6 = \"fd00:18::/64\"\n[app]\nrootfs = \"host\"\ncommand = {}\n\
                 publish = [\"[::]:5000:5000/udp\"]\nsource = \"{source}\"\nvia = \"{via}\"\n",
                look::toml_list(&[PYTHON, "-c", WHO])
            );
            look::up(&lab, &file);
            let output = lab.client(&[PYTHON, "-c", ASK, LAB]);
            assert!(output.status.success(), "{}", describe(&output));
            let said = String::from_utf8_lossy(&output.stdout);
            let wanted = format!("{peer} 0\n{peer} 1\n{peer} 2\n");
            assert_eq!(said, wanted, "{via} {source}");
            // From the host itself, too.
            for host in ["::1", LAB] {
                lab.ok(&[PYTHON, "-c", ASK, host]);
            }
            // By TCP nobody is there.
            assert_eq!(lab.client_get(&url(LAB)), Err(7), "{via} {source}");
        }
    }
}

/// The lines of the traffic log of one kind, once there is one of them that `mine` takes.
fn line_of(lab: &Lab, event: &str, mine: impl Fn(&Value) -> bool) -> Value {
    until(&format!("a line of {event}"), || {
        let text = lab.lrpns_ok(&["logs", "web", "--part", "traffic", "--json"]);
        text.lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["traffic"].clone())
            .find(|line| line["event"] == event && mine(line))
    })
}

#[test]
fn connections_and_refused_packets_of_ipv6_are_told_of_like_ipv4s() {
    if !look::machine() {
        return;
    }
    for (forwarding, via) in [(true, "dnat"), (false, "relay")] {
        let (lab, _, status) = up(forwarding, via);
        let entry = look::planned(&status, "/uplink/sidecar_address6");
        let near = look::planned(&status, "/uplink/host_address6");
        let script = format!(
            "import socket\ns = socket.create_connection((\"{LAB}\", 5000))\ns.sendall(b\"x\" * 12345)\n\
             s.shutdown(socket.SHUT_WR)\nwhile s.recv(65536): pass\n"
        );
        let output = lab.client(&[PYTHON, "-c", &script]);
        assert!(output.status.success(), "{}", describe(&output));
        let of_client = |line: &Value| {
            let who = line["client"].as_str().unwrap();
            who.starts_with(&format!("[{CLIENT}]"))
        };
        let sent = |line: &Value| of_client(line) && line["bytes_from_client"] == 12345;
        let end = line_of(&lab, "end", sent);
        let open = line_of(&lab, "open", |line| line["client"] == end["client"]);
        for line in [&open, &end] {
            assert_eq!(line["server"], format!("[{APP}]:5000"));
            assert_eq!(line["app"], "app");
            assert_eq!(line["protocol"], "tcp");
            assert_eq!(line["via"], Value::Null, "{via}");
        }
        assert!(end["bytes_to_client"].as_u64().unwrap() > 0, "{end}");
        assert!(end["how"].is_string(), "{end}");
        look::eventually("the app's sum", &json!(12345), || {
            lab.status("web")["traffic"]["apps"][0]["bytes_from_clients"].clone()
        });

        // From where the uplink ends to what is not published; and from the app to somebody, with its name.
        let send = [PYTHON, "-c", SEND_UDP, entry];
        match look::far(&status).0 {
            Some(relay) => look::beside(&lab, relay, &send),
            None => lab.ok(&send),
        };
        let refused = line_of(&lab, "refused", |line| line["target"] == entry);
        assert_eq!(refused["rule"], "input/drop-unpublished");
        assert_eq!(refused["link"], "uplink");
        assert_eq!(refused["source"], near);
        assert_eq!(refused["target_port"], 9);
        assert_eq!(refused["length"], 40 + 8 + 1);
        let app = look::pid(&status, "app");
        look::beside(&lab, app, &[PYTHON, "-c", SEND_UDP, SIDECAR]);
        let refused = line_of(&lab, "refused", |line| line["source"] == APP);
        assert_eq!(refused["rule"], "guard/drop-app-egress");
        assert_eq!(refused["app"], "app");
        assert_eq!(refused["target"], SIDECAR);
    }
}

#[test]
fn a_capture_holds_the_packets_of_ipv6() {
    if !look::machine_with(&["tshark"]) {
        return;
    }
    let (lab, _, status) = up(true, "dnat");
    let sidecar = look::init(&status, "sidecar");
    let entry = look::planned(&status, "/uplink/sidecar_address6");
    let file = lab.dir.path().join("six.pcapng");
    let file = file.to_str().unwrap();
    let accepted = || -> u64 {
        look::counters(&lab, Some(sidecar), "lrpns")
            .iter()
            .filter(|(rule, _)| rule.starts_with("forward/accept-"))
            .map(|(_, packets)| packets)
            .sum()
    };
    let before = accepted();
    let mut capture = lab
        .command(&[lrpns(), "capture", "web", "-w", file])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let stderr = capture.stderr.as_mut().unwrap();
    BufReader::new(stderr).read_line(&mut said).unwrap();
    assert!(said.starts_with("capturing"), "{said}");
    look::told(lab.client_get(&url(LAB)));
    lab.ok(&[PYTHON, "-c", SEND_UDP, entry]);
    look::settle(&lab, &status);
    let forwarded = accepted() - before;
    let pid = lab.ok(&["pgrep", "-f", "^[^ ]*lrpns capture web"]);
    lab.ok(&["kill", "-INT", pid.trim()]);
    assert!(capture.wait().unwrap().success());

    let fields = [
        "ipv6.src",
        "ipv6.dst",
        "frame.interface_name",
        "frame.comment",
        "tcp.dstport",
        "udp.dstport",
    ];
    let mut args = vec!["tshark", "-n", "-r", file, "-T", "fields"];
    fields.iter().for_each(|field| args.extend(["-e", field]));
    let packets = lab.ok(&args);
    let packets: Vec<Vec<&str>> = packets.lines().map(|p| p.split('\t').collect()).collect();
    let (refused, let_through): (Vec<_>, Vec<_>) =
        packets.iter().partition(|packet| !packet[3].is_empty());
    let near = look::planned(&status, "/uplink/host_address6");
    assert_eq!(
        refused,
        [&[
            near,
            entry,
            "uplink",
            "refused by input/drop-unpublished",
            "",
            "9"
        ]]
    );
    assert_eq!(let_through.len() as u64, forwarded);
    assert!(forwarded >= 8, "{packets:?}");
    for packet in let_through {
        match packet[0] {
            CLIENT => assert_eq!(packet[..3], [CLIENT, APP, "uplink"]),
            _ => assert_eq!(packet[..3], [APP, CLIENT, "port0"]),
        }
    }
}

#[test]
fn a_prefix_does_not_change_while_the_stack_runs() {
    if !look::machine() {
        return;
    }
    let lab = lab(false);
    let file = file("web", "", &["[::]:5000:5000"], "");
    let path = lab.write("web.toml", &file);
    let path = path.to_str().unwrap();
    lab.lrpns_ok(&["up", "-d", "-f", path]);
    std::fs::write(path, file.replace("fd00:18::/64", "fd00:19::/64")).unwrap();
    let (_, said) = lab.lrpns_err(&["apply", "-f", path]);
    assert!(said.contains("network.ipv6 can't be changed"), "{said}");
    assert!(lab.get(&url("::1")).is_ok());
}

/// Connects from an address of the client's, and prints what came of it.
const ASK_AS: &str = r#"
import socket, sys
source, host = sys.argv[1:]
try:
    with socket.create_connection((host, 5000), timeout=1, source_address=(source, 0)) as s:
        s.sendall(b"GET / HTTP/1.0\r\n\r\n")
        print("served" if s.recv(100) else "end")
except OSError as e:
    print(type(e).__name__)
"#;

#[test]
fn an_allow_is_exactly_what_it_lists_in_each_family() {
    if !look::machine() {
        return;
    }
    const FOUR: &str = "10.99.0.2";
    const OTHER: &str = "2001:db8::7";
    for (forwarding, via) in [(false, "relay"), (true, "dnat")] {
        // What the rules drop is never answered; the relay resets what it has accepted.
        let refused = match via {
            "relay" => "ConnectionResetError",
            _ => "TimeoutError",
        };
        for (allow, served) in [
            ("10.99.0.0/24", &[FOUR][..]),
            ("0.0.0.0/0", &[FOUR]),
            (CLIENT, &[CLIENT]),
            ("::/0", &[CLIENT, OTHER]),
        ] {
            let (lab, token) = (lab(forwarding), look::token());
            let other = format!("{OTHER}/64");
            let add = ["ip", "-6", "address", "add", &other, "dev", "eth0", "nodad"];
            assert!(lab.client(&add).status.success());
            let more = format!("via = \"{via}\"\nallow = [\"{allow}\"]");
            let publish = ["0.0.0.0:5000:5000", "[::]:5000:5000"];
            look::up(&lab, &file("web", &token, &publish, &more));
            let status = lab.status("web");
            let sidecar = Some(look::init(&status, "sidecar"));
            for (source, host, rule) in [
                (FOUR, "10.99.0.1", "forward/drop-not-allowed"),
                (CLIENT, LAB, "forward/drop-not-allowed6"),
                (OTHER, LAB, "forward/drop-not-allowed6"),
            ] {
                let before = look::counters(&lab, sidecar, "lrpns");
                let output = lab.client(&[PYTHON, "-c", ASK_AS, source, host]);
                assert!(output.status.success(), "{}", describe(&output));
                let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
                let expected = if served.contains(&source) {
                    "served"
                } else {
                    refused
                };
                assert_eq!(said, expected, "{via} allow {allow} from {source}");
                let counted = look::since(&before, &look::counters(&lab, sidecar, "lrpns"));
                assert_eq!(
                    counted.contains_key(rule),
                    expected == "TimeoutError",
                    "{via} allow {allow} from {source}: {counted:?}"
                );
            }
        }
    }
}

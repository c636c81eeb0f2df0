//! `egress` by IPv6: exactly what is listed, as by IPv4, whatever is put before the ports, and by no other way.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use support::lab::{CLIENT6 as CLIENT, LAB6 as LAB, Lab, describe};
use support::look::{self, PYTHON};
use support::servers::{ASK, servers};

const SIDECAR: &str = "fd00:18::1";
const APP: &str = "fd00:18::2";

/// Packets of IPv6 by hand, beside those of [`look::ATTACKS`]; `knock6` sends one SYN, `throw6` one datagram.
const SIX: &str = r#"
def at(address):
    return socket.inet_pton(socket.AF_INET6, address)
def six(source, target, protocol, payload):
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + at(source) + at(target) + payload
def summed(source, target, protocol, payload, place):
    pseudo = at(source) + at(target) + struct.pack("!II", len(payload), protocol)
    return payload[:place] + struct.pack("!H", checksum(pseudo + payload)) + payload[place + 2:]
def segment(source, target, sport, dport, flags=2):
    head = struct.pack("!HHIIBBHHH", sport, dport, 1, 1 if flags & 16 else 0, 0x50, flags, 64240, 0, 0)
    return summed(source, target, 6, head, 16)
def datagram(source, target, sport, dport, payload=b"x"):
    return summed(source, target, 17, struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload, 6)
def control(source, target, payload):
    return summed(source, target, 58, payload, 2)
def tcp6(source, target, sport, dport, flags=2):
    return six(source, target, 6, segment(source, target, sport, dport, flags))
def udp6(source, target, sport, dport, payload=b"x"):
    return six(source, target, 17, datagram(source, target, sport, dport, payload))
def icmp6(source, target, payload):
    return six(source, target, 58, control(source, target, payload))
def fragment(kind, offset, more, number=7):
    return struct.pack("!BBHI", kind, 0, offset * 8 | more, number)
def options(kind, what=b"\x01\x04\0\0\0\0"):
    return struct.pack("!BB", kind, (len(what) + 2) // 8 - 1) + what
def throw6(address, port, size=1):
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
        return tried(s.sendto, b"x" * size, (address, port))
"#;

/// A lab that forwards both families, whose client has two addresses more.
fn lab() -> Lab {
    let lab = Lab::forwarding().with_ipv6();
    for last in [3, 4] {
        give(&lab, &format!("2001:db8::{last}/64"));
    }
    lab
}

/// Gives the client an address.
fn give(lab: &Lab, address: &str) {
    let add = [
        "ip", "-6", "address", "add", address, "dev", "eth0", "nodad",
    ];
    let output = lab.client(&add);
    assert!(output.status.success(), "{}", describe(&output));
}

fn file(stack: &str, egress: &[&str], more: &str) -> String {
    let more = format!("egress = {}\n{more}", look::toml_list(egress));
    look::telling(stack, "t", "0.0.0.0:5000:5000", &more)
        .replace("[network]\n", "[network]\nipv6 = \"fd00:18::/64\"\n")
}

/// A stack whose app may connect to `egress`.
fn stack(lab: &Lab, egress: &[&str]) -> Value {
    look::up(lab, &file("web", egress, ""));
    let status = lab.status("web");
    look::settle(lab, &status);
    status
}

/// What an app's Python finds, with what the app has.
fn from_app(lab: &Lab, app: &str, found: &str) -> Value {
    look::attack(lab, "web", app, &format!("{ASK}\nsay({found})"))
}

/// Everything of a network namespace that somebody could have told it: routes of every table, addresses, and neighbours,
/// without those that the kernel itself makes of whom it answers.
fn ways(lab: &Lab, pid: i64) -> String {
    let all = |of: &[&str]| look::json(lab, Some(pid), of);
    let mut neighbours = all(&["ip", "-6", "-j", "neigh", "show", "nud", "all"]);
    let told = |of: &Value| of["state"] != json!(["NOARP"]) || of["lladdr"] == LIAR;
    neighbours.as_array_mut().unwrap().retain(told);
    let routes = all(&["ip", "-6", "-j", "route", "show", "table", "all"]);
    json!([routes, neighbours, all(&["ip", "-6", "-j", "address"])]).to_string()
}

/// The link-layer address of whoever claims to be somebody.
const LIAR: &str = "02:00:00:00:00:66";

/// As the owner of the app's namespace, with a route to everywhere: what is left is the rules.
fn free(lab: &Lab, app: i64) {
    let add = [
        "ip", "-6", "route", "replace", "default", "via", SIDECAR, "dev", "eth0", "onlink",
    ];
    look::beside(lab, app, &add);
}

/// Runs Python there; `send` puts a packet on the app's link to the sidecar.
fn attack_beside(lab: &Lab, status: &Value, app: &str, code: &str) {
    let to = look::planned(status, "/bridge/mac");
    let apps = status["plan"]["apps"].as_array().unwrap();
    let from = apps.iter().find(|plan| plan["name"] == app).unwrap();
    let from = from["mac"].as_str().unwrap();
    look::attack_beside(
        lab,
        look::pid(status, app),
        &format!(
            "{SIX}\nme = '{APP}'\ndef send(packet):\n    frame('eth0', '{to}', '{from}', packet, 0x86dd)\n{code}\nsay(1)"
        ),
    );
}

#[test]
fn an_app_reaches_exactly_what_is_listed_by_ipv6() {
    if !look::machine() {
        return;
    }
    let lab = lab();
    let _servers = servers(
        &lab,
        Some("client"),
        &[
            "tcp 2001:db8::2 5432",
            "tcp 2001:db8::2 5433",
            "udp 2001:db8::2 53",
            "tcp 2001:db8::2 53",
            "udp 2001:db8::2 5432",
            "tcp 2001:db8::3 5432",
            "tcp 10.99.0.2 5432",
        ],
    );
    let status = stack(&lab, &["tcp [2001:db8::2]:5432", "udp [2001:db8::2]:53"]);
    let app = look::pid(&status, "app");
    assert_eq!(look::routes(&lab, app, "-6"), [CLIENT, SIDECAR]);
    assert_eq!(look::routes(&lab, app, "-4"), ["172.18.0.33"]);
    let sidecar = (Some(look::init(&status, "sidecar")), "lrpns");

    // From within, with all that an app has; the server sees the host.
    let served = format!("{LAB} 1");
    assert_eq!(
        from_app(
            &lab,
            "app",
            "[ask('tcp', '2001:db8::2', 5432), ask('udp', '2001:db8::2', 53), knock6('2001:db8::2', 5433), \
             ask('tcp', '2001:db8::3', 5432), ask('udp', '2001:db8::3', 53), ask('tcp', '10.99.0.2', 5432)]"
        ),
        json!([
            served,
            served,
            "EINPROGRESS",
            "ENETUNREACH",
            "ENETUNREACH",
            "ENETUNREACH"
        ])
    );
    let counted = look::counters(&lab, sidecar.0, sidecar.1);
    for rule in [
        "guard/accept-egress-app-0",
        "forward/accept-egress-app-0",
        "forward/accept-egress-app-1",
        "postrouting/snat-egress6",
    ] {
        assert!(counted[rule] > 0, "{rule}: {counted:?}");
    }
    assert!(!counted.contains_key("postrouting/snat-egress"));
    look::settle(&lab, &status);

    free(&lab, app);
    let near = look::planned(&status, "/uplink/host_address6");
    let far = look::planned(&status, "/uplink/sidecar_address6");
    let attacks = [
        (
            "the port after",
            "knock6('2001:db8::2', 5433)",
            "guard/drop-app-egress",
            1,
        ),
        (
            "the port before",
            "knock6('2001:db8::2', 5431)",
            "guard/drop-app-egress",
            1,
        ),
        (
            "the other protocol",
            "throw6('2001:db8::2', 5432)\nknock6('2001:db8::2', 53)",
            "guard/drop-app-egress",
            2,
        ),
        (
            "the address after",
            "knock6('2001:db8::3', 5432)",
            "guard/drop-app-egress",
            1,
        ),
        (
            "an echo request",
            "send(icmp6(me, '2001:db8::2', bytes([128, 0, 0, 0, 0, 7, 0, 7])))",
            "guard/drop-app-egress",
            1,
        ),
        (
            "the host and the sidecar",
            &format!(
                "for a in ('{LAB}', '{near}', '{far}', '{SIDECAR}', '::1'):\n    send(tcp6(me, a, 9, 5432))"
            ),
            // The kernel takes no packet to ::1 from a link (ip6_rcv_core(), net/ipv6/ip6_input.c).
            "guard/drop-app-egress",
            4,
        ),
        (
            "the link's own addresses",
            "for a in ('fe80::1', 'ff02::1', 'ff05::2', 'ff0e::1'):\n    send(udp6(me, a, 9, 53))",
            "guard/drop-app-egress",
            4,
        ),
        (
            "the cloud",
            "knock6('fd00:ec2::254', 80)",
            "guard/drop-app-egress",
            1,
        ),
        (
            "another app",
            "knock6('fd00:18::3', 5432)",
            "guard/drop-app-egress",
            1,
        ),
        (
            "as another app",
            "send(tcp6('fd00:18::3', '2001:db8::2', 9, 5432))",
            "guard/drop-app-spoof6",
            1,
        ),
        (
            "as the client",
            "send(tcp6('2001:db8::2', '2001:db8::2', 9, 5432))",
            "guard/drop-app-spoof6",
            1,
        ),
        (
            "from the link",
            "send(tcp6('fe80::2', '2001:db8::2', 9, 5432))",
            "guard/drop-app-spoof6",
            1,
        ),
    ];
    let uplink = look::planned(&status, "/uplink/host_link").to_owned();
    let heard = look::received(&lab, None, &uplink);
    for (what, attack, rule, packets) in attacks {
        println!("{what}");
        let before = look::counters(&lab, sidecar.0, sidecar.1);
        attack_beside(&lab, &status, "app", attack);
        look::assert_counted(&lab, sidecar, &before, &[(rule, packets)]);
    }
    assert_eq!(
        look::received(&lab, None, &uplink),
        heard,
        "nothing came to the host"
    );

    // Nor does anybody get in by the way out.
    let at_link = || look::uplink_counters(&lab, "web")["uplink-out/drop-uplink-bypass"];
    let sent = at_link();
    let before = look::counters(&lab, sidecar.0, sidecar.1);
    from_host(
        &lab,
        &status,
        &format!(
            "send(tcp6('2001:db8::2', '{far}', 5432, 9, 18))\nsend(tcp6('2001:db8::2', me, 5432, 9, 18))"
        ),
    );
    look::assert_dropped(&lab, sidecar, &before, &[("input/drop-invalid", 1)]);
    look::eventually("dropped before it is sent", &(sent + 1), at_link);
}

/// Runs Python on the host; `send` puts a packet on the uplink to the sidecar.
fn from_host(lab: &Lab, status: &Value, code: &str) {
    let (link, to, from) = (
        look::planned(status, "/uplink/host_link"),
        look::planned(status, "/uplink/sidecar_mac"),
        look::planned(status, "/uplink/host_mac"),
    );
    look::attack_from_host(
        lab,
        &format!(
            "{SIX}\nme = '{APP}'\ndef send(packet):\n    frame('{link}', '{to}', '{from}', packet, 0x86dd)\n{code}\nsay(1)"
        ),
    );
}

#[test]
fn a_range_has_its_ends_and_opens_neither_the_host_nor_a_link_nor_a_clouds_credentials() {
    if !look::machine() {
        return;
    }
    let lab = lab();
    give(&lab, "fd00:ec2::254/64");
    lab.ok(&["ip", "-6", "route", "add", "fd00:ec2::/64", "dev", "ext0"]);
    let _theirs = servers(
        &lab,
        Some("client"),
        &[
            "tcp 2001:db8::2 8000",
            "tcp 2001:db8::3 8003",
            "tcp 2001:db8::4 8000",
            "tcp 2001:db8::2 8004",
            "tcp fd00:ec2::254 8000",
        ],
    );
    let _hosts = servers(&lab, None, &["tcp :: 8000"]);
    let served = json!(format!("{LAB} 1"));

    let status = stack(&lab, &["tcp [2001:db8::2/127]:8000-8003"]);
    assert_eq!(
        look::routes(&lab, look::pid(&status, "app"), "-6"),
        ["2001:db8::2/127", SIDECAR]
    );
    assert_eq!(
        from_app(
            &lab,
            "app",
            "[ask('tcp', '2001:db8::2', 8000), ask('tcp', '2001:db8::3', 8003), \
             ask('tcp', '2001:db8::4', 8000), knock6('2001:db8::2', 8004)]"
        ),
        json!([served, served, "ENETUNREACH", "EINPROGRESS"])
    );
    lab.lrpns_ok(&["down", "web"]);

    // Everywhere, which is a default route: but the host is not elsewhere.
    let status = stack(&lab, &["tcp [::/0]:8000"]);
    let app = look::pid(&status, "app");
    assert_eq!(look::routes(&lab, app, "-6"), ["default", SIDECAR]);
    assert_eq!(look::routes(&lab, app, "-4"), ["172.18.0.33"]);
    assert_eq!(
        from_app(&lab, "app", "ask('tcp', '2001:db8::4', 8000)"),
        served
    );
    look::settle(&lab, &status);
    let sidecar = (Some(look::init(&status, "sidecar")), "lrpns");
    let host = (None, "lrpns-web");
    let before = [
        look::counters(&lab, sidecar.0, sidecar.1),
        look::counters(&lab, host.0, host.1),
    ];
    let near = look::planned(&status, "/uplink/host_address6");
    attack_beside(
        &lab,
        &status,
        "app",
        &format!(
            "for a in ('fd00:ec2::254', 'fd00:18::3', '{SIDECAR}', 'fe80::1', 'ff02::1', 'ff0e::1', '{LAB}', '{near}'):\n    \
             send(tcp6(me, a, 9, 8000))"
        ),
    );
    look::assert_dropped(
        &lab,
        sidecar,
        &before[0],
        &[
            ("guard/drop-app-metadata6", 1),
            ("guard/drop-app-subnet6", 2),
            ("guard/drop-app-link-local6", 1),
            ("guard/drop-app-multicast6", 2),
        ],
    );
    look::assert_dropped(&lab, host, &before[1], &[("input/drop-from-sidecar", 2)]);
    lab.lrpns_ok(&["down", "web"]);

    // By themselves they are.
    stack(
        &lab,
        &[
            "tcp [::/0]:8000",
            "tcp [fd00:ec2::254]:8000",
            &format!("tcp [{LAB}]:8000"),
        ],
    );
    let status = lab.status("web");
    let uplink = look::planned(&status, "/uplink/sidecar_address6");
    let found = from_app(
        &lab,
        "app",
        &format!(
            "[ask('tcp', a, 8000).split()[0] for a in ('{LAB}', '2001:db8::2', 'fd00:ec2::254')]"
        ),
    );
    assert_eq!(found[0], uplink);
    assert_eq!(found[1], LAB);
    assert_eq!(found[2], LAB);
}

/// Two apps of one stack, by their names, each with what it may connect to.
fn two(lab: &Lab, a: &[&str], b: &[&str]) -> Value {
    let app = |name: &str, port: u16, egress: &[&str]| {
        format!(
            "[app.{name}]\nrootfs = \"host\"\ncommand = {}\npublish = [\"0.0.0.0:{port}:5000\"]\nlisten = [6000]\negress = {}\n",
            look::toml_list(&[PYTHON, "-c", look::TELLING]),
            look::toml_list(egress)
        )
    };
    let apps = app("a", 5000, a) + &app("b", 5001, b);
    look::up(
        lab,
        &format!("name = \"web\"\n[network]\nipv6 = \"fd00:18::/64\"\n{apps}"),
    );
    let status = lab.status("web");
    look::settle(lab, &status);
    status
}

#[test]
fn of_two_apps_each_has_the_ways_of_its_own_egress_and_its_own_family() {
    if !look::machine() {
        return;
    }
    let lab = lab();
    let _servers = servers(
        &lab,
        Some("client"),
        &["tcp 2001:db8::2 5432", "tcp 10.99.0.2 5432"],
    );
    let status = two(&lab, &["tcp [2001:db8::2]:5432"], &["tcp 10.99.0.2:5432"]);
    let sidecar = (Some(look::init(&status, "sidecar")), "lrpns");
    let bridge = look::planned(&status, "/bridge/address").to_owned();
    let (a, b) = (look::pid(&status, "a"), look::pid(&status, "b"));
    assert_eq!(look::routes(&lab, a, "-6"), [CLIENT, SIDECAR]);
    assert_eq!(look::routes(&lab, a, "-4"), [bridge.as_str()]);
    assert_eq!(look::routes(&lab, b, "-6"), [SIDECAR]);
    assert_eq!(look::routes(&lab, b, "-4"), ["10.99.0.2", bridge.as_str()]);
    let both = "[ask('tcp', '2001:db8::2', 5432), ask('tcp', '10.99.0.2', 5432)]";
    assert_eq!(
        from_app(&lab, "a", both),
        json!([format!("{LAB} 1"), "ENETUNREACH"])
    );
    assert_eq!(
        from_app(&lab, "b", both),
        json!(["ENETUNREACH", "10.99.0.1 1"])
    );
    look::settle(&lab, &status);

    // With a route to everywhere.
    let add = [
        "ip", "route", "replace", "default", "via", &bridge, "dev", "eth0", "onlink",
    ];
    look::beside(&lab, a, &add);
    free(&lab, b);
    let before = look::counters(&lab, sidecar.0, sidecar.1);
    attack_beside(&lab, &status, "a", "knock('10.99.0.2', 5432)");
    attack_beside(&lab, &status, "b", "knock6('2001:db8::2', 5432)");
    look::assert_counted(&lab, sidecar, &before, &[("guard/drop-app-egress", 2)]);
}

/// IPv6 lets anybody bind an address that is not theirs (`ipv6_can_nonlocal_bind`, include/net/ipv6.h), and sends from it.
#[test]
fn an_app_does_not_speak_with_the_address_of_another_that_may() {
    if !look::machine() {
        return;
    }
    let lab = lab();
    let status = two(&lab, &["udp [2001:db8::2]:53"], &["udp [2001:db8::2]:54"]);
    let sidecar = (Some(look::init(&status, "sidecar")), "lrpns");
    let first = look::planned(&status, "/apps/0/address6");
    let before = look::counters(&lab, sidecar.0, sidecar.1);
    let found = look::attack(
        &lab,
        "web",
        "b",
        &format!(
            "def lie():\n    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:\n        \
             s.setsockopt(socket.IPPROTO_IPV6, 78, 1)\n        s.bind(('{first}', 9009))\n        \
             s.sendto(b'x', ('2001:db8::2', 53))\nsay(tried(lie))"
        ),
    );
    assert_eq!(
        found, "OK",
        "whoever can't even try says nothing of the rules"
    );
    look::assert_counted(&lab, sidecar, &before, &[("guard/drop-app-spoof6", 1)]);
}

/// Wherever the other stack's port is translated to: a range opens neither the host nor what is behind it.
#[test]
fn a_range_does_not_open_another_stack_that_the_host_publishes_by_dnat() {
    if !look::machine() {
        return;
    }
    let lab = lab();
    look::up(
        &lab,
        "name = \"other\"\n[network]\nipv6 = \"fd00:19::/64\"\n[app]\nrootfs = \"builtin:webapp\"\n\
         publish = [\"0.0.0.0:7000:5000\", \"[::]:7000:5000\"]\nvia = \"dnat\"\n",
    );
    let other = lab.status("other");
    let status = stack(&lab, &["tcp [::/0]:7000", "tcp 0.0.0.0/0:7000"]);
    let tables = [(None, "lrpns-web"), (None, "lrpns-other")];
    let before = tables.map(|(pid, table)| look::counters(&lab, pid, table));
    attack_beside(
        &lab,
        &status,
        "app",
        &format!(
            "knock6('{LAB}', 7000)\nknock('10.99.0.1', 7000)\nknock6('{}', 7000)\nknock('{}', 7000)",
            look::planned(&other, "/uplink/sidecar_address6"),
            look::planned(&other, "/uplink/sidecar_address"),
        ),
    );
    // To where it is published, and to where it is.
    for (table, before, rule) in [
        (tables[0], &before[0], "forward/drop-egress-translated"),
        (tables[1], &before[1], "forward/drop-bypass"),
    ] {
        look::assert_dropped(&lab, table, before, &[(rule, 2)]);
    }
}

/// Ports are where a rule looks for them, whatever comes before: options, routes, fragments, fragments of fragments.
#[test]
fn what_is_put_before_the_ports_goes_around_no_rule() {
    if !look::machine() {
        return;
    }
    let lab = lab();
    let _servers = servers(
        &lab,
        Some("client"),
        &[
            "udp 2001:db8::2 53",
            "udp 2001:db8::2 54",
            "tcp 2001:db8::2 5432",
        ],
    );
    let status = stack(&lab, &["udp [2001:db8::2]:53", "tcp [2001:db8::2]:5432"]);
    let sidecar = (Some(look::init(&status, "sidecar")), "lrpns");
    // What is longer than a packet gets there, in pieces.
    assert_eq!(
        from_app(&lab, "app", "ask('udp', '2001:db8::2', 53, 5000)"),
        json!(format!("{LAB} 5000"))
    );
    look::settle(&lab, &status);
    free(&lab, look::pid(&status, "app"));
    let uplink = look::planned(&status, "/uplink/host_link").to_owned();
    let heard = look::received(&lab, None, &uplink);
    let (ports, spoof, source_route) = (
        "guard/drop-app-egress",
        "guard/drop-app-spoof6",
        "guard/drop-routing-header",
    );
    let attacks = [
        ("in pieces", "throw6(to, 54, 5000)", Some((ports, 1))),
        (
            "one fragment that is all of it",
            "send(six(me, to, 44, fragment(17, 0, 0) + datagram(me, to, 9, 54)))",
            Some((ports, 1)),
        ),
        (
            "ports in the second fragment only",
            "send(six(me, to, 44, fragment(60, 0, 1) + options(17)))\n\
             send(six(me, to, 44, fragment(60, 1, 0) + datagram(me, to, 9, 53)))",
            // The first is no fragment to the kernel (RFC 8200, 4.5), and has no ports; the second waits for it.
            Some((ports, 1)),
        ),
        (
            "a fragment whose first never comes",
            "send(six(me, to, 44, fragment(17, 8, 0, 8) + datagram(me, to, 9, 53)))",
            None,
        ),
        (
            "fragments that overlap",
            "send(six(me, to, 44, fragment(17, 0, 1, 9) + datagram(me, to, 9, 53, bytes(24))))\n\
             send(six(me, to, 44, fragment(17, 2, 0, 9) + bytes(32)))",
            None,
        ),
        (
            "a fragment twice, the second with the right port",
            "whole = [datagram(me, to, 9, port, bytes(32)) for port in (54, 53)]\n\
             for piece in whole: send(six(me, to, 44, fragment(17, 0, 1, 10) + piece[:32]))\n\
             send(six(me, to, 44, fragment(17, 4, 0, 10) + whole[1][32:]))",
            Some((ports, 1)),
        ),
        (
            "a fragment in a fragment",
            "send(six(me, to, 44, fragment(44, 0, 0) + fragment(17, 1, 0, 8) + datagram(me, to, 9, 53)))",
            None,
        ),
        (
            "options of the destination",
            "send(six(me, to, 60, options(6) + segment(me, to, 9, 5433)))",
            Some((ports, 1)),
        ),
        (
            "options of every hop",
            "send(six(me, to, 0, options(60) + options(6) + segment(me, to, 9, 5433)))",
            Some((ports, 1)),
        ),
        (
            "a home address",
            "send(six(me, to, 60, options(6, b'\\xc9\\x10' + at('fd00:18::3') + b'\\x01\\x02\\0\\0') + segment(me, to, 9, 5433)))",
            Some((ports, 1)),
        ),
        (
            "routes",
            "for kind in (0, 2, 3, 4):\n    \
             send(six(me, to, 43, struct.pack('!BBBBI', 6, 2, kind, 1, 0) + at('2001:db8::3') + segment(me, to, 9, 5432)))",
            Some((source_route, 4)),
        ),
        (
            "a route that is used up",
            "send(six(me, to, 43, struct.pack('!BBBBI', 6, 2, 0, 0, 0) + at('2001:db8::3') + segment(me, to, 9, 5432)))",
            Some((source_route, 1)),
        ),
        (
            "a route behind options and a fragment",
            "send(six(me, to, 60, options(44) + fragment(43, 0, 0) + struct.pack('!BBBBI', 6, 2, 4, 1, 0) + at('2001:db8::3') + segment(me, to, 9, 5432)))",
            Some((source_route, 1)),
        ),
        (
            "other protocols with the same ports",
            "for protocol in (4, 33, 41, 47, 50, 59, 132, 136):\n    send(six(me, to, protocol, datagram(me, to, 9, 53)))",
            Some((ports, 8)),
        ),
        (
            "in pieces as somebody else",
            "for offset, more, piece in ((0, 1, datagram('fd00:18::3', to, 9, 53, bytes(8))), (2, 0, bytes(8))):\n    \
             send(six('fd00:18::3', to, 44, fragment(17, offset, more) + piece))",
            Some((spoof, 1)),
        ),
    ];
    for (what, attack, rule) in attacks {
        println!("{what}");
        let before = look::counters(&lab, sidecar.0, sidecar.1);
        attack_beside(
            &lab,
            &status,
            "app",
            &format!("to = '2001:db8::2'\n{attack}"),
        );
        let expected: Vec<_> = rule.into_iter().collect();
        look::assert_counted(&lab, sidecar, &before, &expected);
    }
    assert_eq!(
        look::received(&lab, None, &uplink),
        heard,
        "nothing came to the host"
    );
    // Options are no crime: before the right port they get there.
    let before = look::counters(&lab, sidecar.0, sidecar.1);
    attack_beside(
        &lab,
        &status,
        "app",
        "send(six(me, '2001:db8::2', 60, options(17) + datagram(me, '2001:db8::2', 9, 53)))",
    );
    look::eventually("let through", &Some(1), || {
        let now = look::counters(&lab, sidecar.0, sidecar.1);
        look::since(&before, &now)
            .get("forward/accept-egress-app-0")
            .copied()
    });
}

/// A network behind the client, whose last link takes less than the others.
const BEHIND: &str = r#"
set -e
ip netns add far
ip -n client link add r0 mtu 1280 type veth peer name eth0 netns far
ip -n client -6 address add 2001:db8:1::1/64 dev r0 nodad
ip -n far -6 address add 2001:db8:1::2/64 dev eth0 nodad
ip -n client link set r0 up
ip -n far link set lo up
ip -n far link set eth0 up
ip -n far -6 route add default via 2001:db8:1::1
ip netns exec client sysctl -qw net.ipv6.conf.all.forwarding=1
ip -6 route add 2001:db8:1::/64 via 2001:db8::2
"#;

#[test]
fn an_app_is_told_how_much_a_path_takes_and_by_nobody_else() {
    if !look::machine() {
        return;
    }
    for (narrow, to) in [("a router", "2001:db8:1::2"), ("the host", CLIENT)] {
        let lab = lab();
        lab.ok(&["sh", "-c", BEHIND]);
        let place = if narrow == "the host" {
            lab.ok(&["ip", "link", "set", "ext0", "mtu", "1280"]);
            "client"
        } else {
            "far"
        };
        let served = format!("tcp {to} 5432");
        let _servers = servers(&lab, Some(place), &[&served]);
        let status = stack(&lab, &[&format!("tcp [{to}]:5432")]);
        let inside = (Some(look::init(&status, "sidecar")), "lrpns");
        let before = look::counters(&lab, inside.0, inside.1);

        // What nobody has sent, nobody is told of.
        let (near, far) = (
            look::planned(&status, "/uplink/host_address6"),
            look::planned(&status, "/uplink/sidecar_address6"),
        );
        let too_big = |about: &str| {
            format!("send(icmp6('{near}', '{far}', struct.pack('!BBHI', 2, 0, 0, 1280) + {about}))")
        };
        from_host(
            &lab,
            &status,
            &too_big(&format!("tcp6('{far}', '{to}', 999, 5432)")),
        );
        look::assert_dropped(&lab, inside, &before, &[("input/drop-invalid", 1)]);

        // A segment is what a packet has room for without the headers of IPv6 and TCP.
        let found = look::attack(
            &lab,
            "web",
            "app",
            &format!(
                "with socket.create_connection(('{to}', 5432), 20) as s:\n    \
                 s.sendall(bytes(300000))\n    s.shutdown(socket.SHUT_WR)\n    \
                 told = s.recv(99).decode()\n    \
                 say([told, s.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 1280 - 40 - 20])"
            ),
        );
        assert_eq!(found, json!([format!("{LAB} 300000"), true]), "{narrow}");
        let counted = look::since(&before, &look::counters(&lab, inside.0, inside.1));
        assert!(
            counted["forward/accept-icmp-error6"] > 0,
            "{narrow}: {counted:?}"
        );
        if place == "far" {
            let counted = look::counters(&lab, None, "lrpns-web");
            assert!(counted["forward/accept-egress-error6"] > 0, "{counted:?}");
        }
    }
}

/// What a router says to those who listen (RFC 4861, 4.2), what anybody may claim (4.4) and a better way (4.5).
const CLAIMS: &str = r#"
def of_link(packet):
    return packet[:7] + b"\xff" + packet[8:]
prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xc0, 1800, 1800, 0) + at("2001:db8:bad::")
ra = of_link(icmp6("fe80::1", "ff02::1", struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + prefix))
claims = [
    ra,
    of_link(icmp6("fe80::1", to, ra[40:42] + bytes(2) + ra[44:])),
    of_link(icmp6("fe80::1", to, struct.pack("!BBHI", 137, 0, 0, 0) + at("2001:db8::66") + at("2001:db8::2"))),
    of_link(icmp6(gateway, to, struct.pack("!BBHI", 136, 0, 0, 0x60000000) + at(gateway) + b"\x02\x01\x02\0\0\0\0\x66")),
    of_link(icmp6("fe80::1", to, struct.pack("!BBHI", 135, 0, 0, 0) + at(to) + b"\x01\x01\x02\0\0\0\0\x66")),
]
"#;

#[test]
fn no_part_learns_a_way_a_neighbour_or_an_address_from_a_packet() {
    if !look::machine() {
        return;
    }
    let lab = lab();
    let status = stack(&lab, &["udp [2001:db8::2]:53"]);
    let (sidecar, app) = (look::init(&status, "sidecar"), look::pid(&status, "app"));
    let before = [ways(&lab, sidecar), ways(&lab, app)];
    let (near, far) = (
        look::planned(&status, "/uplink/host_address6"),
        look::planned(&status, "/uplink/sidecar_address6"),
    );

    // From the host to the sidecar; what is said to everybody ends before it is sent.
    let at_link = || look::uplink_counters(&lab, "web")["uplink-out/drop-uplink-bypass"];
    let sent = at_link();
    let counters = look::counters(&lab, Some(sidecar), "lrpns");
    from_host(
        &lab,
        &status,
        &format!("to, gateway = '{far}', '{near}'\n{CLAIMS}\nfor claim in claims: send(claim)"),
    );
    look::assert_dropped(
        &lab,
        (Some(sidecar), "lrpns"),
        &counters,
        &[
            ("input/drop-unpublished", 3),
            // Of these kinds conntrack takes a redirect for an answer to nothing.
            ("input/drop-invalid", 1),
        ],
    );
    look::eventually("dropped before it is sent", &(sent + 1), at_link);
    // From an app to the sidecar.
    let counters = look::counters(&lab, Some(sidecar), "lrpns");
    attack_beside(
        &lab,
        &status,
        "app",
        &format!("to, gateway = '{SIDECAR}', me\n{CLAIMS}\nfor claim in claims: send(claim)"),
    );
    look::assert_dropped(
        &lab,
        (Some(sidecar), "lrpns"),
        &counters,
        &[("guard/drop-app-spoof6", 4), ("guard/drop-app-egress", 1)],
    );
    // From a sidecar that was broken into, to an app, which has no rules.
    let claim = || {
        look::attack_beside(
            &lab,
            sidecar,
            &format!(
                "{SIX}\nto, gateway = '{APP}', '{SIDECAR}'\n{CLAIMS}\n\
                 for claim in claims: frame('port0', '{}', '{}', claim, 0x86dd)\nsay(1)",
                look::planned(&status, "/apps/0/mac"),
                look::planned(&status, "/bridge/mac"),
            ),
        )
    };
    claim();
    assert_eq!([ways(&lab, sidecar), ways(&lab, app)], before);
    // Who listens would have learned.
    look::beside(
        &lab,
        app,
        &["sysctl", "-qw", "net.ipv6.conf.eth0.accept_ra=2"],
    );
    claim();
    look::eventually("a route by the router", &true, || {
        look::routes(&lab, app, "-6").contains(&"default".to_owned())
    });
}

#[test]
fn a_sidecar_that_has_lost_its_rules_reaches_by_ipv6_what_its_apps_may_and_no_more() {
    if !look::machine() {
        return;
    }
    let lab = lab();
    let _servers = servers(
        &lab,
        Some("client"),
        &["tcp 2001:db8::2 5432", "tcp 2001:db8::2 5433"],
    );
    let status = stack(&lab, &["tcp [2001:db8::2]:5432"]);
    let sidecar = look::init(&status, "sidecar");
    look::beside(&lab, sidecar, &["nft", "flush", "ruleset"]);
    let host = (None, "lrpns-web");
    let before = look::counters(&lab, host.0, host.1);
    let found = look::attack_beside(
        &lab,
        sidecar,
        &format!(
            "{ASK}\n{SIX}\nfirst = ask('tcp', '{CLIENT}', 5432)\n\
             knock6('{CLIENT}', 5433)\nthrow6('{CLIENT}', 5432)\nknock6('{LAB}', 5432)\nsay(first)"
        ),
    );
    assert_eq!(found, format!("{LAB} 1"));
    look::assert_dropped(
        &lab,
        host,
        &before,
        &[
            ("forward/drop-from-sidecar", 2),
            ("input/drop-from-sidecar", 1),
        ],
    );
}

#[test]
fn a_resolver_is_known_by_its_ipv6_address_if_it_may_be_asked() {
    if !look::machine() {
        return;
    }
    let lab = lab();
    stack(
        &lab,
        &[
            "udp [2001:db8::2]:53",
            "udp [2001:db8::/64]:53",
            "udp 10.99.0.2:53",
        ],
    );
    let args = ["exec", "web", "--", "/bin/cat", "/etc/resolv.conf"];
    assert_eq!(
        lab.lrpns_ok(&args),
        "nameserver 2001:db8::2\nnameserver 10.99.0.2\n"
    );
}

#[test]
fn egress_by_ipv6_is_refused_where_there_is_no_way_with_what_is_missing() {
    if !look::machine() {
        return;
    }
    let refused = |lab: &Lab, file: &str, words: &[&str]| {
        let before = lab.ok(&["ip", "-j", "link"]);
        let path = lab.write("refused.toml", file);
        let (_, said) = lab.lrpns_err(&["up", "-d", "-f", path.to_str().unwrap()]);
        for word in words {
            assert!(said.contains(word), "no `{word}` in {said}");
        }
        assert_eq!(lab.ok(&["ip", "-j", "link"]), before);
    };
    let beyond = file("web", &["tcp [2001:db8::2]:5432"], "");

    // IPv4 alone is forwarded.
    let lab = Lab::new().with_ipv6();
    lab.ok(&["sysctl", "-qw", "net.ipv4.ip_forward=1"]);
    // So the other takes the relay, and the host goes on listening to routers.
    let status = stack(&lab, &["tcp [2001:db8::2]:5432"]);
    assert_eq!(look::planned(&status, "/egress/via"), "relay");
    let why = look::planned(&status, "/egress/why");
    assert_eq!(why, "net.ipv6.conf.all.forwarding is 0");
    lab.lrpns_ok(&["down", "web"]);
    // To the host nothing needs to be forwarded.
    let _hosts = servers(&lab, None, &["tcp 2001:db8::1 8000"]);
    let status = stack(&lab, &[&format!("tcp [{LAB}]:8000")]);
    let uplink = look::planned(&status, "/uplink/sidecar_address6");
    assert_eq!(
        from_app(&lab, "app", &format!("ask('tcp', '{LAB}', 8000)")),
        json!(format!("{uplink} 1"))
    );

    // One that forwards and has lost it.
    let lab = self::lab();
    refused(
        &lab,
        &file(
            "web",
            &["tcp [2001:db8::2]:5432", "tcp [2001:db8:5::1]:80"],
            "",
        ),
        &[
            "egress \"tcp [2001:db8:5::1]:80\" of app: this host has no route to it",
            "link ext0 does not listen to routers, since the host forwards",
            "hint: add a route, or sysctl net.ipv6.conf.ext0.accept_ra=2",
        ],
    );
    refused(
        &lab,
        &file("web", &["tcp [fd00:18::99]:80"], ""),
        &["within the stack's own subnet", "hint: "],
    );
    refused(
        &lab,
        &beyond.replace("ipv6 = \"fd00:18::/64\"\n", ""),
        &["`tcp [2001:db8::2]:5432` is IPv6, and the stack's IPv6 is off"],
    );
}

/// What the audit has found wrong or does not know.
fn audit(lab: &Lab) -> Vec<String> {
    look::findings(&lab.lrpns(&["audit", "web", "--json"]).stdout)
}

#[test]
fn the_audit_finds_nothing_in_a_stack_with_egress_by_ipv6_and_a_rule_too_many() {
    if !look::machine() {
        return;
    }
    let lab = lab();
    // Of a range, of which the probes' own addresses are a part, too.
    stack(&lab, &["tcp [::/0]:443", "udp [::/0]:53", "tcp [::/0]:22"]);
    assert_eq!(audit(&lab), Vec::<String>::new());
    lab.lrpns_ok(&["down", "web"]);

    let status = stack(
        &lab,
        &[
            "tcp [2001:db8::2]:5432",
            "udp [2001:db8::2]:53",
            "tcp [2001:db8::/64]:8000-8010",
        ],
    );
    assert_eq!(audit(&lab), Vec::<String>::new());
    // The rule that lets one port more out, in both chains.
    let sidecar = look::init(&status, "sidecar");
    for chain in ["guard", "forward"] {
        let rule = "ip6 daddr 2001:db8::2 tcp dport 5433 counter accept";
        let insert = ["nft", "insert", "rule", "inet", "lrpns", chain];
        let args: Vec<_> = insert.into_iter().chain(rule.split(' ')).collect();
        look::beside(&lab, sidecar, &args);
    }
    let found = audit(&lab);
    for probe in ["rules-sidecar", "out-egress-beside"] {
        assert!(
            found.iter().any(|id| id.starts_with(probe)),
            "no {probe} in {found:?}"
        );
    }
}

//! `egress`: an app reaches exactly what is listed, and everything else is refused by a rule that counts it.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use support::lab::{CLIENT, LAB, Lab, until};
use support::look::{self, PYTHON};
use support::servers::{ASK, servers};

const APP: &str = "172.18.0.23";
/// What a server says of who asks it from the lab.
const SAID: &str = "10.99.0.1 1";

/// A stack whose app may connect to `egress`; and the counters' place.
fn stack(lab: &Lab, egress: &[&str]) -> Value {
    let more = format!("egress = {}", look::toml_list(egress));
    look::up(lab, &look::telling("web", "t", "0.0.0.0:5000:5000", &more));
    let status = lab.status("web");
    look::settle(lab, &status);
    status
}

fn neighbours(lab: &Lab) {
    for address in ["10.99.0.3/24", "10.99.0.4/24"] {
        lab.ok(&[
            "ip", "-n", "client", "address", "add", address, "dev", "eth0",
        ]);
    }
}

#[test]
fn an_app_reaches_exactly_what_is_listed() {
    if !look::machine() {
        return;
    }
    let lab = Lab::forwarding();
    neighbours(&lab);
    let _servers = servers(
        &lab,
        Some("client"),
        &[
            "tcp 10.99.0.2 5432",
            "tcp 10.99.0.2 5433",
            "udp 10.99.0.2 53",
            "udp 10.99.0.2 5432",
            "tcp 10.99.0.2 53",
            "tcp 10.99.0.3 5432",
        ],
    );
    let status = stack(&lab, &["tcp 10.99.0.2:5432", "udp 10.99.0.2:53"]);
    let app = look::pid(&status, "app");
    assert_eq!(look::routes(&lab, app, "-4"), ["10.99.0.2", "172.18.0.33"]);
    let sidecar = (Some(look::init(&status, "sidecar")), "lrpns");

    // From within, with all that an app has; the server sees the host.
    let found = look::attack(
        &lab,
        "web",
        "app",
        &format!(
            "{ASK}\nsay([ask('tcp', '{CLIENT}', 5432), ask('udp', '{CLIENT}', 53), \
             knock('{CLIENT}', 5433), ask('tcp', '10.99.0.3', 5432), ask('udp', '10.99.0.3', 53)])"
        ),
    );
    assert_eq!(
        found,
        json!([SAID, SAID, "EINPROGRESS", "ENETUNREACH", "ENETUNREACH"])
    );
    // Where there is a route, who tries in vain is told of.
    let refused = until("the line of what was refused", || {
        let all = lab.lrpns_ok(&["logs", "web", "--part", "traffic", "--json"]);
        let mut all = all
            .lines()
            .map(|line| -> Value { serde_json::from_str(line).unwrap() });
        all.find(|line| line["traffic"]["event"] == "refused")
    });
    let refused = &refused["traffic"];
    assert_eq!(refused["rule"], "guard/drop-app-egress", "{refused}");
    assert_eq!(
        (&refused["protocol"], &refused["target_port"]),
        (&json!("tcp"), &json!(5433))
    );
    let counted = look::counters(&lab, sidecar.0, sidecar.1);
    for rule in [
        "guard/accept-egress-app-0",
        "forward/accept-egress-app-0",
        "forward/accept-egress-app-1",
    ] {
        assert!(counted[rule] > 0, "{rule}: {counted:?}");
    }
    look::settle(&lab, &status);

    // As the owner of its namespace, with a route to everywhere and no Landlock: what is left is the rules.
    look::route_everywhere(&lab, app);
    let uplink = look::planned(&status, "/uplink/host_link").to_owned();
    let near = look::planned(&status, "/uplink/host_address");
    let far = look::planned(&status, "/uplink/sidecar_address");
    let (to, from) = (
        look::planned(&status, "/bridge/mac"),
        look::planned(&status, "/apps/0/mac"),
    );
    let heard = look::received(&lab, None, &uplink);
    let attacks = [
        (
            "the port after",
            "knock('10.99.0.2', 5433)",
            "guard/drop-app-egress",
            1,
        ),
        (
            "the port before",
            "knock('10.99.0.2', 5431)",
            "guard/drop-app-egress",
            1,
        ),
        (
            "the other protocol",
            "throw('10.99.0.2', 5432)\nknock('10.99.0.2', 53)",
            "guard/drop-app-egress",
            2,
        ),
        (
            "the address after",
            "knock('10.99.0.3', 5432)",
            "guard/drop-app-egress",
            1,
        ),
        (
            "an echo request",
            "send(ping(me, '10.99.0.2'))",
            "guard/drop-app-egress",
            1,
        ),
        (
            "the host",
            &format!(
                "for a in ('{LAB}', '{near}', '{far}', '127.0.0.1'):\n    send(tcp(me, a, 9, 5432))"
            ),
            "guard/drop-app-egress",
            4,
        ),
        (
            "the cloud",
            "knock('169.254.169.254', 80)",
            "guard/drop-app-egress",
            1,
        ),
        (
            "another app",
            "knock('172.18.0.24', 5432)",
            "guard/drop-app-egress",
            1,
        ),
        (
            "as another app",
            "send(tcp('172.18.0.24', '10.99.0.2', 9, 5432))",
            "guard/drop-app-spoof",
            1,
        ),
        (
            "as the client",
            "send(tcp('10.99.0.2', '10.99.0.2', 9, 5432))",
            "guard/drop-app-spoof",
            1,
        ),
    ];
    for (what, attack, rule, packets) in attacks {
        println!("{what}");
        let before = look::counters(&lab, sidecar.0, sidecar.1);
        look::attack_beside(
            &lab,
            app,
            &format!(
                "me = '{APP}'\ndef send(packet):\n    frame('eth0', '{to}', '{from}', packet)\n{attack}\nsay(1)"
            ),
        );
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
    look::attack_from_host(
        &lab,
        &format!(
            "frame('{uplink}', '{}', '{}', tcp('10.99.0.2', '{far}', 5432, 9, 18))\n\
             frame('{uplink}', '{}', '{}', tcp('10.99.0.2', '{APP}', 5432, 9, 18))\nsay(1)",
            look::planned(&status, "/uplink/sidecar_mac"),
            look::planned(&status, "/uplink/host_mac"),
            look::planned(&status, "/uplink/sidecar_mac"),
            look::planned(&status, "/uplink/host_mac"),
        ),
    );
    look::assert_dropped(&lab, sidecar, &before, &[("input/drop-invalid", 1)]);
    look::eventually("dropped before it is sent", &(sent + 1), at_link);
}

#[test]
fn a_range_of_addresses_and_ports_has_its_ends_and_opens_neither_the_host_nor_the_link_local() {
    if !look::machine() {
        return;
    }
    let lab = Lab::forwarding();
    neighbours(&lab);
    lab.ok(&[
        "ip",
        "-n",
        "client",
        "address",
        "add",
        "169.254.169.254/16",
        "dev",
        "eth0",
    ]);
    lab.ok(&["ip", "route", "add", "169.254.0.0/16", "dev", "ext0"]);
    let _theirs = servers(
        &lab,
        Some("client"),
        &[
            "tcp 10.99.0.2 8000",
            "tcp 10.99.0.3 8003",
            "tcp 10.99.0.4 8000",
            "tcp 10.99.0.2 8004",
            "tcp 169.254.169.254 8000",
        ],
    );
    let _hosts = servers(&lab, None, &["tcp 0.0.0.0 8000"]);
    let ask = |found: &str| look::attack(&lab, "web", "app", &format!("{ASK}\nsay({found})"));
    let three = "[ask('tcp', '10.99.0.2', 8000), ask('tcp', '10.99.0.3', 8003), ask('tcp', '10.99.0.4', 8000), knock('10.99.0.2', 8004)]";

    let status = stack(&lab, &["tcp 10.99.0.2/31:8000-8003"]);
    assert_eq!(
        look::routes(&lab, look::pid(&status, "app"), "-4"),
        ["10.99.0.2/31", "172.18.0.33"]
    );
    assert_eq!(
        ask(three),
        json!([SAID, SAID, "ENETUNREACH", "EINPROGRESS"])
    );
    lab.lrpns_ok(&["down", "web"]);

    // Everywhere, which is a default route: but the host is not elsewhere, and 169.254.0.0/16 is opened by nothing but
    // its own address.
    let status = stack(&lab, &["tcp 0.0.0.0/0:8000"]);
    let app = look::pid(&status, "app");
    assert_eq!(look::routes(&lab, app, "-4"), ["172.18.0.33", "default"]);
    assert_eq!(ask("[ask('tcp', '10.99.0.4', 8000)]"), json!([SAID]));
    look::settle(&lab, &status);
    let sidecar = (Some(look::init(&status, "sidecar")), "lrpns");
    let host = (None, "lrpns-web");
    let before = [
        look::counters(&lab, sidecar.0, sidecar.1),
        look::counters(&lab, host.0, host.1),
    ];
    let near = look::planned(&status, "/uplink/host_address");
    look::attack(
        &lab,
        "web",
        "app",
        &format!(
            "say([knock(a, 8000) for a in ('169.254.169.254', '172.18.0.24', '{LAB}', '{near}')])"
        ),
    );
    look::assert_dropped(
        &lab,
        sidecar,
        &before[0],
        &[
            ("guard/drop-app-link-local", 1),
            ("guard/drop-app-subnet", 1),
        ],
    );
    look::assert_dropped(&lab, host, &before[1], &[("input/drop-from-sidecar", 2)]);
    lab.lrpns_ok(&["down", "web"]);

    // By themselves they are.
    stack(
        &lab,
        &[
            "tcp 0.0.0.0/0:8000",
            "tcp 169.254.169.254:8000",
            &format!("tcp {LAB}:8000"),
        ],
    );
    let found = ask(&format!(
        "[ask('tcp', a, 8000) for a in ('169.254.169.254', '{LAB}', '10.99.0.2')]"
    ));
    let status = lab.status("web");
    let uplink = look::planned(&status, "/uplink/sidecar_address");
    assert_eq!(found, json!([SAID, format!("{uplink} 1"), SAID]));
}

#[test]
fn of_two_apps_only_the_one_that_may_gets_out() {
    if !look::machine() {
        return;
    }
    let lab = Lab::forwarding();
    let _servers = servers(&lab, Some("client"), &["tcp 10.99.0.2 5432"]);
    let app = |name: &str, port: u16, more: &str| {
        format!(
            "[app.{name}]\nrootfs = \"host\"\ncommand = {}\npublish = [\"0.0.0.0:{port}:5000\"]\nlisten = [6000]\n{more}\n",
            look::toml_list(&[PYTHON, "-c", look::TELLING])
        )
    };
    look::up(
        &lab,
        &format!(
            "name = \"web\"\n{}{}",
            app("a", 5000, "egress = [\"tcp 10.99.0.2:5432\"]"),
            app("b", 5001, "source = \"client\"")
        ),
    );
    let status = lab.status("web");
    let ask = |app: &str| {
        let code = format!("{ASK}\nsay(ask('tcp', '{CLIENT}', 5432))");
        look::attack(&lab, "web", app, &code)
    };
    assert_eq!(ask("a"), SAID);
    assert_eq!(ask("b"), json!("EACCES"));
    // And without Landlock: by its own address, and by the other's.
    let sidecar = (Some(look::init(&status, "sidecar")), "lrpns");
    look::settle(&lab, &status);
    let before = look::counters(&lab, sidecar.0, sidecar.1);
    look::attack_beside(
        &lab,
        look::pid(&status, "b"),
        &format!(
            "knock('{CLIENT}', 5432)\nframe('eth0', '{}', '{}', tcp('{}', '{CLIENT}', 9, 5432))\nsay(1)",
            look::planned(&status, "/bridge/mac"),
            look::planned(&status, "/apps/1/mac"),
            look::planned(&status, "/apps/0/address"),
        ),
    );
    look::assert_dropped(
        &lab,
        sidecar,
        &before,
        &[("guard/drop-app-egress", 1), ("guard/drop-app-spoof", 1)],
    );
}

#[test]
fn a_resolver_is_known_only_if_it_may_be_asked() {
    if !look::machine() {
        return;
    }
    let lab = Lab::forwarding();
    for (egress, wanted) in [
        (
            &["udp 10.99.0.2:53", "tcp 10.99.0.3:53"][..],
            "nameserver 10.99.0.2\n",
        ),
        (&["tcp 10.99.0.2:5432", "udp 10.99.0.0/24:53"], ""),
    ] {
        stack(&lab, egress);
        let args = ["exec", "web", "--", "/bin/cat", "/etc/resolv.conf"];
        assert_eq!(lab.lrpns_ok(&args), wanted, "{egress:?}");
        lab.lrpns_ok(&["down", "web"]);
    }
}

#[test]
fn what_no_egress_can_be_is_refused_before_anything_is_made() {
    if !look::machine() {
        return;
    }
    let refused = |lab: &Lab, more: &str, words: &[&str]| {
        let before = lab.ok(&["ip", "-j", "link"]);
        let file = look::telling("web", "t", "0.0.0.0:5000:5000", more);
        let path = lab.write("refused.toml", &file);
        let (code, said) = lab.lrpns_err(&["up", "-d", "-f", path.to_str().unwrap()]);
        // By the configuration alone.
        assert_eq!(code, 2, "{said}");
        for word in words {
            assert!(said.contains(word), "{more}: no `{word}` in {said}");
        }
        assert_eq!(lab.ok(&["ip", "-j", "link"]), before);
    };
    // To the host nothing needs to be forwarded.
    let lab = Lab::new();
    let _hosts = servers(&lab, None, &["tcp 10.99.0.1 8000"]);
    stack(&lab, &["tcp 10.99.0.1:8000"]);
    let status = lab.status("web");
    assert_eq!(look::planned(&status, "/egress/via"), "nat");
    let found = look::attack(
        &lab,
        "web",
        "app",
        &format!("{ASK}\nsay(ask('tcp', '{LAB}', 8000))"),
    );
    let uplink = look::planned(&status, "/uplink/sidecar_address");
    assert_eq!(found, format!("{uplink} 1"));

    let lab = Lab::forwarding();
    refused(
        &lab,
        "egress = [\"tcp 172.18.0.99:80\"]",
        &["within the stack's own subnet", "hint: "],
    );
}

#[test]
fn a_sidecar_that_has_lost_its_rules_reaches_what_its_apps_may_and_no_more() {
    if !look::machine() {
        return;
    }
    let lab = Lab::forwarding();
    let _servers = servers(
        &lab,
        Some("client"),
        &["tcp 10.99.0.2 5432", "tcp 10.99.0.2 5433"],
    );
    let status = stack(&lab, &["tcp 10.99.0.2:5432"]);
    let sidecar = look::init(&status, "sidecar");
    look::beside(&lab, sidecar, &["nft", "flush", "ruleset"]);
    let host = (None, "lrpns-web");
    let before = look::counters(&lab, host.0, host.1);
    let found = look::attack_beside(
        &lab,
        sidecar,
        &format!(
            "{ASK}\nfirst = ask('tcp', '{CLIENT}', 5432)\n\
             knock('{CLIENT}', 5433)\nthrow('{CLIENT}', 5432)\nknock('{LAB}', 5432)\nsay(first)"
        ),
    );
    assert_eq!(found, SAID);
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

/// What the audit has found wrong or does not know, as `id`.
fn audit(lab: &Lab) -> Vec<String> {
    look::findings(&lab.lrpns(&["audit", "web", "--json"]).stdout)
}

#[test]
fn the_audit_finds_nothing_in_a_stack_with_egress_and_a_rule_too_many() {
    if !look::machine() {
        return;
    }
    let lab = Lab::forwarding();
    let status = stack(
        &lab,
        &[
            "tcp 10.99.0.2:5432",
            "udp 10.99.0.2:53",
            "tcp 10.99.0.0/24:8000-8010",
        ],
    );
    assert_eq!(audit(&lab), Vec::<String>::new());

    // A grant so wide that the other stack of the audit is within it: its ports that aren't granted are tried.
    let wide = Lab::forwarding();
    // With a way there: else the host says that there is none, whoever asks.
    wide.ok(&["ip", "route", "add", "default", "via", "10.99.0.2"]);
    stack(&wide, &["tcp 198.0.0.0/8:5000", "tcp 0.0.0.0/0:80-443"]);
    assert_eq!(audit(&wide), Vec::<String>::new());
    drop(wide);

    // The rule that lets one port more out, in both chains.
    let sidecar = look::init(&status, "sidecar");
    for chain in ["guard", "forward"] {
        look::beside(
            &lab,
            sidecar,
            &[
                "nft",
                "insert",
                "rule",
                "inet",
                "lrpns",
                chain,
                "ip",
                "daddr",
                "10.99.0.2",
                "tcp",
                "dport",
                "5433",
                "counter",
                "accept",
            ],
        );
    }
    let found = audit(&lab);
    for probe in ["rules-sidecar", "out-egress-beside"] {
        assert!(
            found.iter().any(|id| id.starts_with(probe)),
            "no {probe} in {found:?}"
        );
    }
}

#[test]
fn what_is_published_by_dnat_is_reached_from_another_stack_by_relay_or_refused_with_the_way_out() {
    if !look::machine() {
        return;
    }
    let lab = Lab::forwarding();
    let shop = |name: &str, port: u16, via: &str, more: &str| {
        format!(
            "name = \"{name}\"\n[app]\nrootfs = \"builtin:webapp\"\npublish = [\"0.0.0.0:{port}:5000\"]\nvia = \"{via}\"\n{more}\n"
        )
    };
    let asks = |egress: &str| {
        format!(
            "name = \"asks\"\n[app]\nrootfs = \"host\"\ncommand = [\"/bin/sleep\", \"infinity\"]\negress = [\"{egress}\"]\n"
        )
    };
    let refused = |file: &str| {
        let path = lab.write("refused.toml", file);
        let (code, said) = lab.lrpns_err(&["up", "-d", "-f", path.to_str().unwrap()]);
        assert_eq!(code, 125, "{said}");
        said
    };
    let here = format!("tcp {LAB}:5001");
    // The one that asks comes second, comes first, and is the stack itself.
    look::up(&lab, &shop("web", 5001, "dnat", ""));
    let said = refused(&asks(&here));
    assert!(
        said.contains("of app of asks leads to app of web"),
        "{said}"
    );
    assert!(
        said.contains("hint: via = \"relay\" for app of web, port 5001"),
        "{said}"
    );
    // Another port of the same address is no matter.
    look::up(&lab, &asks(&format!("tcp {LAB}:5002")));
    lab.lrpns_ok(&["down", "--all"]);
    look::up(&lab, &asks(&here));
    let said = refused(&shop("web", 5001, "dnat", ""));
    assert!(
        said.contains("of app of asks leads to app of web"),
        "{said}"
    );
    let said = refused(&shop(
        "own",
        5003,
        "dnat",
        &format!("egress = [\"tcp {LAB}:5003\"]"),
    ));
    assert!(said.contains("of app of own leads to app of own"), "{said}");
    // By what the hint says it works.
    look::up(&lab, &shop("web", 5001, "relay", ""));
    let seen = look::attack(
        &lab,
        "asks",
        "app",
        "import urllib.request\nsay(urllib.request.urlopen('http://10.99.0.1:5001/', timeout=9).read().decode())",
    );
    assert_eq!(seen, json!("Hello world!"));
}

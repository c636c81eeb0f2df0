//! The network of a stack, from outside and from inside: who answers whom, who reaches whom, and which rule counted what
//! was refused.
#![allow(clippy::unwrap_used)]

mod support;
use std::path::PathBuf;

use serde_json::{Value, json};
use support::lab::{CLIENT, LAB, Lab, describe, lrpns};
use support::look::{self, PYTHON};
use support::skip;

/// The app of [`look::telling`] and of the built-in example.
const APP: &str = "172.18.0.23";
const SIDECAR: &str = "172.18.0.33";

fn names(list: &Value, key: &str) -> Vec<String> {
    let mut names: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry[key].as_str().unwrap_or_default().to_owned())
        .collect();
    names.sort();
    names
}

/// Every IPv4 and IPv6 address in a namespace, as `LINK ADDRESS/PREFIX`.
fn addresses(lab: &Lab, pid: Option<i64>) -> Vec<String> {
    let links = look::json(lab, pid, &["ip", "-j", "address"]);
    let mut found = vec![];
    for link in links.as_array().unwrap() {
        for address in link["addr_info"].as_array().into_iter().flatten() {
            found.push(format!(
                "{} {}/{}",
                link["ifname"].as_str().unwrap(),
                address["local"].as_str().unwrap(),
                address["prefixlen"]
            ));
        }
    }
    found.sort();
    found
}

/// A lab with a telling app, published on all addresses, and its token.
fn telling(lab: Lab, via: &str) -> (Lab, String, Value) {
    let token = look::token();
    let file = look::telling(
        "web",
        &token,
        "0.0.0.0:5000:5000",
        &format!("via = \"{via}\""),
    );
    look::up(&lab, &file);
    let status = lab.status("web");
    assert_eq!(
        look::planned(&status, "/apps/0/publish/0/via"),
        via,
        "what was asked for"
    );
    look::settle(&lab, &status);
    (lab, token, status)
}

/// The two ways a port is published, each in a lab of its own.
fn both_ways() -> [(Lab, String, Value); 2] {
    [
        telling(Lab::forwarding(), "relay"),
        telling(Lab::forwarding(), "dnat"),
    ]
}

#[test]
fn the_bridge_and_its_address_are_the_sidecars_and_the_host_has_one_uplink_if_it_forwards() {
    if !look::machine() {
        return;
    }
    let lab = Lab::forwarding();
    let links = lab.ok(&["ip", "-j", "link"]);
    let tables = lab.ok(&["nft", "list", "ruleset"]);
    let (lab, _, status) = telling(lab, "relay");
    assert_eq!(look::planned(&status, "/uplink/ends_at"), "relay");
    // What is relayed needs no link and no rule of the host's.
    assert_eq!(lab.ok(&["ip", "-j", "link"]), links);
    assert_eq!(lab.ok(&["nft", "list", "ruleset"]), tables);
    drop(lab);

    let (lab, _, status) = telling(Lab::forwarding(), "dnat");
    let sidecar = Some(look::init(&status, "sidecar"));
    let uplink = look::planned(&status, "/uplink/host_link").to_owned();
    let (near, far) = (
        look::planned(&status, "/uplink/host_address"),
        look::planned(&status, "/uplink/sidecar_address"),
    );

    let links = look::json(&lab, sidecar, &["ip", "-j", "-d", "link"]);
    assert_eq!(names(&links, "ifname"), ["lo", "port0", "uplink", "web"]);
    let kind = |name: &str| {
        let link = links.as_array().unwrap().iter();
        let mut link = link.filter(|link| link["ifname"] == name);
        link.next().unwrap()["linkinfo"]["info_kind"].clone()
    };
    assert_eq!(kind("web"), "bridge");
    assert_eq!(kind("uplink"), "veth");
    assert_eq!(
        addresses(&lab, sidecar),
        [
            "lo 127.0.0.1/8".to_owned(),
            format!("uplink {far}/31"),
            format!("web {SIDECAR}/24"),
        ]
    );

    // The host: one end of the uplink, its address, its name in the alias; not a word of the stack's subnet.
    let links = look::json(&lab, None, &["ip", "-j", "-d", "link"]);
    assert_eq!(names(&links, "ifname"), ["ext0", "lo", uplink.as_str()]);
    let end = links.as_array().unwrap().iter();
    let end = end.filter(|link| link["ifname"] == uplink.as_str());
    assert_eq!(
        end.map(|link| link["ifalias"].clone()).collect::<Vec<_>>(),
        ["lrpns:web"]
    );
    let ours = addresses(&lab, None).into_iter();
    assert_eq!(
        ours.filter(|address| address.starts_with("lrp"))
            .collect::<Vec<_>>(),
        [format!("{uplink} {near}/31")]
    );
    let routes = look::json(&lab, None, &["ip", "-j", "route", "show", "table", "all"]);
    assert!(!routes.to_string().contains("172.18."), "{routes}");
}

#[test]
fn the_app_has_loopback_one_address_and_no_default_route() {
    if !look::machine() {
        return;
    }
    let (lab, _, status) = telling(Lab::new(), "relay");
    let pid = look::pid(&status, "app");
    let app = Some(pid);
    let links = look::json(&lab, app, &["ip", "-j", "link"]);
    assert_eq!(names(&links, "ifname"), ["eth0", "lo"]);
    assert_eq!(
        addresses(&lab, app),
        ["eth0 172.18.0.23/24", "lo 127.0.0.1/8"]
    );
    let routes = look::json(&lab, app, &["ip", "-j", "route"]);
    assert_eq!(names(&routes, "dst"), [SIDECAR]);
    let routes = look::json(
        &lab,
        app,
        &["ip", "-j", "-6", "route", "show", "table", "all"],
    );
    assert_eq!(routes, json!([]), "no IPv6 at all");
    for setting in ["ipv4.ip_forward", "ipv4.conf.all.route_localnet"] {
        let value = look::beside(&lab, pid, &["sysctl", "-n", &format!("net.{setting}")]);
        assert_eq!(value.trim(), "0", "{setting}");
    }
}

#[test]
fn bridge_ports_are_isolated_and_learn_nothing_and_neighbours_are_permanent() {
    if !look::machine() {
        return;
    }
    let (lab, _, status) = telling(Lab::new(), "relay");
    let (sidecar, app) = (
        Some(look::init(&status, "sidecar")),
        Some(look::pid(&status, "app")),
    );
    let ports = look::json(&lab, sidecar, &["bridge", "-j", "-d", "link"]);
    let port = &ports[0];
    assert_eq!(
        (&port["ifname"], &port["master"]),
        (&json!("port0"), &json!("web"))
    );
    for (flag, value) in [
        ("isolated", true),
        ("locked", true),
        ("learning", false),
        ("flood", false),
        ("mcast_flood", false),
        ("bcast_flood", false),
        ("hairpin", false),
    ] {
        assert_eq!(port[flag], value, "{flag}");
    }
    for (pid, link) in [(sidecar, "web"), (sidecar, "uplink"), (app, "eth0")] {
        let neighbours = look::json(&lab, pid, &["ip", "-j", "neigh", "show", "dev", link]);
        let neighbours = neighbours.as_array().unwrap();
        assert_eq!(neighbours.len(), 1, "{link}");
        assert_eq!(neighbours[0]["state"], json!(["PERMANENT"]), "{link}");
    }
}

#[test]
fn up_executes_nothing_but_itself_and_the_apps_command() {
    if !look::machine_with(&["strace"]) {
        return;
    }
    let lab = Lab::forwarding();
    let trace = lab.dir.path().join("trace");
    // The shell so that the trace ends: the supervisor does when the stack is taken down.
    let job = format!(
        "{0} up -d --demo && curl -sS http://{LAB}:5000/ && {0} restart && {0} down",
        lrpns()
    );
    let output = lab.run(&[
        "strace",
        "--follow-forks",
        "--output-separately",
        "--quiet=all",
        "--signal=none",
        "--trace=execve,execveat",
        "--string-limit=200",
        "--output",
        trace.to_str().unwrap(),
        "sh",
        "-c",
        &job,
    ]);
    assert!(output.status.success(), "{}", describe(&output));
    // One file for each process, so that no line is torn in two.
    let trace: String = std::fs::read_dir(lab.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().contains("trace"))
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect();
    let mut executed: Vec<_> = trace
        .lines()
        .filter(|line| line.ends_with("= 0"))
        .map(|line| {
            let (call, words) = line.split_once('(').unwrap();
            match call {
                "execve" => words.split('"').nth(1).unwrap().to_owned(),
                // Our own program by descriptor: what it is called says what it becomes.
                _ => words
                    .split_once('[')
                    .unwrap()
                    .1
                    .split_once(']')
                    .unwrap()
                    .0
                    .replace('"', ""),
            }
        })
        .collect();
    executed.sort();
    executed.dedup();
    let ours = lrpns();
    let mut expected = [
        "/usr/bin/sh",
        "/usr/bin/curl",
        ours,
        "lrpns, init, customerA/sidecar",
        "lrpns, init, customerA/relay",
        "lrpns, init, customerA/app",
        "/webapp",
    ];
    expected.sort_unstable();
    assert_eq!(executed, expected, "{trace}");
}

/// The one app of `status` answers `answer` on port 5000 of every address it should, by `via`.
fn answers_everywhere(lab: &Lab, stack: &str, via: &str, answer: &str) {
    let status = lab.status(stack);
    assert_eq!(look::planned(&status, "/apps/0/publish/0/via"), via);
    let (far, table) = look::far(&status);
    let before = look::counters(lab, far, &table);
    assert_eq!(
        lab.client_get(&format!("http://{LAB}:5000/")).unwrap(),
        answer
    );
    let counted = look::since(&before, &look::counters(lab, far, &table));
    let translated = counted.contains_key("prerouting/dnat-any")
        && counted.contains_key("forward/accept-published");
    assert_eq!(translated, via == "dnat", "the way it went: {counted:?}");
    // The host's own connections are relayed, whatever the address.
    for host in ["localhost", "127.0.0.1", LAB] {
        assert_eq!(
            lab.get(&format!("http://{host}:5000/")).unwrap(),
            answer,
            "{host}"
        );
    }
}

#[test]
fn the_builtin_app_answers_the_client_and_loopback_by_relay_and_by_dnat() {
    if !look::machine() {
        return;
    }
    for (lab, via) in [(Lab::new(), "relay"), (Lab::forwarding(), "dnat")] {
        lab.lrpns_ok(&["up", "-d", "--demo", "--set", "PROVIDER=lrpns"]);
        answers_everywhere(&lab, "customerA", via, "Hello lrpns!");
        lab.lrpns_ok(&["down"]);
        assert_eq!(lab.client_get(&format!("http://{LAB}:5000/")), Err(7));
    }
}

#[test]
fn a_server_of_the_host_answers_the_client_and_loopback_by_relay_and_by_dnat() {
    if !look::machine() {
        return;
    }
    for (lab, via) in [(Lab::new(), "relay"), (Lab::forwarding(), "dnat")] {
        let command =
            look::toml_list(&[PYTHON, "-m", "http.server", "5000", "--directory", "/etc"]);
        let file = format!(
            "name = \"files\"\n[app]\nrootfs = \"host\"\ncommand = {command}\npublish = [\"0.0.0.0:5000:5000\"]\n"
        );
        look::up(&lab, &file);
        let listing = lab.client_get(&format!("http://{LAB}:5000/")).unwrap();
        assert!(listing.contains("nsswitch.conf"), "{listing}");
        assert!(!listing.contains("shadow"), "an /etc of our own: {listing}");
        answers_everywhere(&lab, "files", via, &listing);
    }
}

#[test]
fn an_app_with_nothing_listens_on_port_80_of_its_own() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let command = look::toml_list(&[PYTHON, "-m", "http.server", "80", "--directory", "/etc"]);
    look::up(
        &lab,
        &format!(
            "name = \"web\"\n[app]\nrootfs = \"host\"\ncommand = {command}\npublish = [\"0.0.0.0:5000:80\"]\n"
        ),
    );
    lab.client_get(&format!("http://{LAB}:5000/")).unwrap();
    // Of the host's ports below 1024 that says nothing.
    let status = lab.status("web");
    let start = |target: &[&str]| {
        let read = ["cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"];
        lab.ok(&[target, &read].concat())
    };
    let app = format!("--target={}", look::init(&status, "app"));
    assert_eq!(start(&["nsenter", &app, "--net"]), "0\n");
    assert_ne!(start(&[]), "0\n");
}

#[test]
fn the_flask_root_answers_the_client_and_loopback_by_relay_and_by_dnat() {
    if !look::machine() {
        return;
    }
    let root = std::env::var_os("LRPNS_TEST_WEBAPP").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/rootfs/webapp"),
        PathBuf::from,
    );
    if !root.join("opt/webapp/app.py").is_file() {
        return skip("rootfs", &format!("there is no {}", root.display()));
    }
    for (lab, via) in [(Lab::new(), "relay"), (Lab::forwarding(), "dnat")] {
        let command = look::toml_list(&[
            PYTHON,
            "-m",
            "gunicorn",
            "--config",
            "/opt/webapp/gunicorn.conf.py",
            "app:app",
        ]);
        let token = look::token();
        let file = format!(
            "name = \"flask\"\n[app]\nrootfs = \"dir:{}\"\ncommand = {command}\n\
             env = {{ PROVIDER = \"{token}\", PORT = \"5000\" }}\npublish = [\"0.0.0.0:5000:5000\"]\n",
            root.display()
        );
        look::up(&lab, &file);
        answers_everywhere(&lab, "flask", via, &format!("Hello {token}!"));
    }
}

#[test]
fn an_exact_address_is_published_on_that_address_only() {
    if !look::machine() {
        return;
    }
    for via in ["relay", "dnat"] {
        let lab = Lab::forwarding();
        lab.ok(&["ip", "address", "add", "10.99.0.7/24", "dev", "ext0"]);
        let token = look::token();
        let publish = format!("{LAB}:8080:5000");
        look::up(
            &lab,
            &look::telling("web", &token, &publish, &format!("via = \"{via}\"")),
        );
        let answer = look::told(lab.client_get(&format!("http://{LAB}:8080/")));
        assert_eq!(answer["token"], token.as_str(), "{via}");
        for other in ["10.99.0.7:8080", "10.99.0.1:5000"] {
            let refused = lab.client_get(&format!("http://{other}/"));
            assert_eq!(refused, Err(7), "{via} {other}");
        }
    }
}

#[test]
fn a_loopback_port_is_not_reachable_from_the_client() {
    if !look::machine() {
        return;
    }
    let lab = Lab::forwarding();
    let token = look::token();
    look::up(&lab, &look::telling("web", &token, "5000:5000", ""));
    let status = lab.status("web");
    let sidecar = (Some(look::init(&status, "sidecar")), "lrpns");
    assert_eq!(look::planned(&status, "/apps/0/publish/0/via"), "relay");
    assert_eq!(
        look::told(lab.get("http://localhost:5000/"))["token"],
        token.as_str()
    );
    assert_eq!(lab.client_get(&format!("http://{LAB}:5000/")), Err(7));

    look::settle(&lab, &status);
    // Nor when the client puts 127.0.0.1 on the wire (CVE-2020-8558).
    let before = look::counters(&lab, sidecar.0, sidecar.1);
    let links = look::json(&lab, None, &["ip", "-j", "link", "show", "dev", "ext0"]);
    let mac = links[0]["address"].as_str().unwrap();
    let arrived = look::received(&lab, None, "ext0");
    look::attack_from_client(
        &lab,
        &format!(
            "say([frame('eth0', '{mac}', '02:00:00:00:00:09', tcp('{CLIENT}', '127.0.0.1', 4321, 5000))])"
        ),
    );
    // A packet behind it that is answered: so the one before has been looked at.
    assert_eq!(lab.client_get(&format!("http://{LAB}:5000/")), Err(7));
    assert!(look::received(&lab, None, "ext0") > arrived);
    assert_eq!(
        look::since(&before, &look::counters(&lab, sidecar.0, sidecar.1)),
        look::Counters::new()
    );
}

#[test]
fn the_app_sees_the_sidecar_and_the_sidecar_sees_the_client() {
    if !look::machine() {
        return;
    }
    for (lab, _, status) in both_ways() {
        let via = look::planned(&status, "/apps/0/publish/0/via").to_owned();
        let answer = look::told(lab.client_get(&format!("http://{LAB}:5000/")));
        assert_eq!(answer["peer"], SIDECAR, "{via}");
        let entry = look::planned(&status, "/uplink/sidecar_address");
        let connections = look::beside(
            &lab,
            look::init(&status, "sidecar"),
            &["cat", "/proc/net/nf_conntrack"],
        );
        let wanted = format!("src={CLIENT} dst={entry} ");
        assert!(
            connections.contains(&wanted),
            "{via}: no {wanted} in {connections}"
        );
    }
}

#[test]
fn auto_takes_what_works_and_says_why() {
    if !look::machine() {
        return;
    }
    let file = look::telling("web", "t", "0.0.0.0:5000:5000", "");
    let said = look::up(&Lab::new(), &file);
    assert!(
        said.contains("by relay, net.ipv4.ip_forward is 0"),
        "{said}"
    );
    let said = look::up(&Lab::forwarding(), &file);
    assert!(said.contains("by dnat, the host forwards"), "{said}");
}

/// A lab whose host forwards, but for a table of somebody else.
fn behind_a_foreign_table() -> Lab {
    let lab = Lab::forwarding();
    lab.ok(&["nft", "add table inet theirs"]);
    lab.ok(&[
        "nft",
        "add chain inet theirs crossing { type filter hook forward priority 10; policy drop; }",
    ]);
    lab
}

#[test]
fn auto_relays_where_a_foreign_table_drops_and_names_its_chain() {
    if !look::machine() {
        return;
    }
    let lab = behind_a_foreign_table();
    let before = lab.ok(&["nft", "-j", "list", "table", "inet", "theirs"]);
    let token = look::token();
    let said = look::up(&lab, &look::telling("web", &token, "0.0.0.0:5000:5000", ""));
    assert!(
        said.contains("by relay, chain crossing of table inet theirs has policy drop"),
        "{said}"
    );
    let answer = look::told(lab.client_get(&format!("http://{LAB}:5000/")));
    assert_eq!(answer["token"], token.as_str());
    assert_eq!(
        lab.ok(&["nft", "-j", "list", "table", "inet", "theirs"]),
        before,
        "others' tables are not ours to change"
    );
}

#[test]
fn dnat_is_refused_where_a_foreign_table_drops_before_anything_is_made() {
    if !look::machine() {
        return;
    }
    let lab = behind_a_foreign_table();
    let links = lab.ok(&["ip", "-j", "link"]);
    let tables = lab.ok(&["nft", "-j", "list", "ruleset"]);
    let file = look::telling("web", "t", "0.0.0.0:5000:5000", "via = \"dnat\"");
    let path = lab.write("lrpns.toml", &file);
    let refused = lab.lrpns(&["up", "-d", "-f", path.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(125), "{}", describe(&refused));
    for word in [
        "chain crossing",
        "table inet theirs",
        "policy drop",
        "hint: ",
    ] {
        assert!(said.contains(word), "no `{word}` in {said}");
    }
    assert_eq!(lab.ok(&["ip", "-j", "link"]), links);
    assert_eq!(lab.ok(&["nft", "-j", "list", "ruleset"]), tables);
    assert!(!lab.run(&["test", "-e", "/run/lrpns"]).status.success());
}

#[test]
fn ports_of_the_app_that_are_not_published_are_closed() {
    if !look::machine() {
        return;
    }
    for (lab, _, status) in both_ways() {
        let inside = look::beside(
            &lab,
            look::pid(&status, "app"),
            &["curl", "-sS", "http://127.0.0.1:6000/"],
        );
        assert!(inside.contains("6000"), "it listens there: {inside}");
        for host in [LAB, "localhost"] {
            assert_eq!(lab.get(&format!("http://{host}:6000/")), Err(7));
        }
        assert_eq!(lab.client_get(&format!("http://{LAB}:6000/")), Err(7));

        // Past the host's end, where only the sidecar is left to refuse it.
        let sidecar = (Some(look::init(&status, "sidecar")), "lrpns");
        let before = look::counters(&lab, sidecar.0, sidecar.1);
        let entry = look::planned(&status, "/uplink/sidecar_address");
        look::attack_from_far(
            &lab,
            &status,
            &format!("say([knock('{entry}', 6000), knock('{entry}', 22), throw('{entry}', 5000)])"),
        );
        look::assert_counted(
            &lab,
            sidecar,
            &before,
            &[
                ("guard/accept-uplink", 3),
                // Two SYNs; a nat chain sees the first packet of every connection.
                ("prerouting/dnat-published", 2),
                ("input/drop-unpublished", 3),
            ],
        );
    }
}

#[test]
fn the_apps_address_is_unreachable_from_the_host_even_with_a_route() {
    if !look::machine() {
        return;
    }
    let (lab, _, status) = telling(Lab::forwarding(), "dnat");
    let knock =
        format!("say([knock('{APP}', 5000), knock('{APP}', 6000), knock('{SIDECAR}', 5000)])");
    assert_eq!(
        look::attack_from_host(&lab, &knock),
        json!(["ENETUNREACH", "ENETUNREACH", "ENETUNREACH"])
    );

    let sidecar = (Some(look::init(&status, "sidecar")), "lrpns");
    let app = Some(look::pid(&status, "app"));
    let entry = look::planned(&status, "/uplink/sidecar_address");
    lab.ok(&["ip", "route", "add", "172.18.0.0/24", "via", entry]);
    let before = look::counters(&lab, sidecar.0, sidecar.1);
    let heard = look::received(&lab, app, "eth0");
    let at_link = || look::uplink_counters(&lab, "web")["uplink-out/drop-uplink-bypass"];
    let sent = at_link();
    look::attack_from_host(&lab, &knock);
    look::eventually("dropped before it is sent", &(sent + 3), at_link);
    look::assert_counted(&lab, sidecar, &before, &[]);

    // Nor by claiming to be the sidecar, or another app: what goes to the sidecar's address meets it there.
    let (uplink, sent) = (look::planned(&status, "/uplink/host_link"), at_link());
    let (to, from) = (
        look::planned(&status, "/uplink/sidecar_mac"),
        look::planned(&status, "/uplink/host_mac"),
    );
    look::attack_from_host(
        &lab,
        &format!(
            "for source in ('{SIDECAR}', '172.18.0.99'):\n\
             \x20   frame('{uplink}', '{to}', '{from}', tcp(source, '{entry}', 4321, 5000))\n\
             \x20   frame('{uplink}', '{to}', '{from}', tcp(source, '{APP}', 4321, 5000))\n\
             say(1)"
        ),
    );
    look::eventually("dropped before it is sent", &(sent + 2), at_link);
    look::assert_counted(&lab, sidecar, &before, &[("guard/drop-uplink-spoof", 2)]);
    assert_eq!(
        look::received(&lab, app, "eth0"),
        heard,
        "nothing came to the app"
    );
}

#[test]
fn the_client_reaches_neither_app_nor_uplink_through_a_host_that_forwards() {
    if !look::machine() {
        return;
    }
    for (lab, _, status) in both_ways() {
        let entry = look::planned(&status, "/uplink/sidecar_address").to_owned();
        let sidecar = (Some(look::init(&status, "sidecar")), "lrpns");
        let (far, table) = look::far(&status);
        let host = (far, table.as_str());
        // Worse than any host would be: it knows a way to the stack's subnet. By relay it can't even.
        let route = ["ip", "route", "add", "172.18.0.0/24", "via", &entry];
        assert_eq!(lab.run(&route).status.success(), far.is_none());
        lab.ok(&[
            "ip",
            "-n",
            "client",
            "route",
            "add",
            "172.18.0.0/24",
            "via",
            LAB,
        ]);
        let (inside, outside) = (
            look::counters(&lab, sidecar.0, sidecar.1),
            look::counters(&lab, host.0, host.1),
        );
        look::attack_from_client(
            &lab,
            &format!(
                "say([knock('{APP}', 5000), knock('{SIDECAR}', 5000), knock('{entry}', 5000), throw('{entry}', 53)])"
            ),
        );
        let dropped: &[_] = match far {
            None => &[("forward/drop-bypass", 4)],
            Some(_) => &[],
        };
        look::assert_dropped(&lab, host, &outside, dropped);
        assert_eq!(
            look::since(&inside, &look::counters(&lab, sidecar.0, sidecar.1)),
            look::Counters::new(),
            "nothing came to the sidecar"
        );
        // And the published way works all the same.
        assert_eq!(
            look::told(lab.client_get(&format!("http://{LAB}:5000/")))["peer"],
            SIDECAR
        );
    }
}

#[test]
fn the_app_reaches_nothing() {
    if !look::machine() {
        return;
    }
    let (lab, _, status) = telling(Lab::forwarding(), "dnat");
    let uplink = look::planned(&status, "/uplink/host_link").to_owned();
    let near = look::planned(&status, "/uplink/host_address");
    let far = look::planned(&status, "/uplink/sidecar_address");
    let sidecar = (Some(look::init(&status, "sidecar")), "lrpns");
    let before = look::counters(&lab, sidecar.0, sidecar.1);
    let heard = look::received(&lab, None, &uplink);

    let elsewhere = [
        near,
        far,
        LAB,
        CLIENT,
        "169.254.169.254",
        "203.0.113.8",
        "172.18.0.24",
        "224.0.0.1",
        "255.255.255.255",
    ];
    let found = look::attack(
        &lab,
        "web",
        "app",
        &format!(
            r#"
elsewhere = {elsewhere:?}
found = {{}}
found["tcp elsewhere"] = sorted({{knock(address, 5000) for address in elsewhere}})
found["udp elsewhere"] = sorted({{throw(address, 53) for address in elsewhere}})
found["tcp sidecar"] = [knock("{SIDECAR}", port) for port in (22, 80, 5000)]
found["udp sidecar"] = throw("{SIDECAR}", 53)
found["broadcast"] = throw("172.18.0.255", 53)
found["ping"] = tried(socket.socket, socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
found["raw"] = tried(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
found["packet"] = tried(socket.socket, socket.AF_PACKET, socket.SOCK_RAW)
found["raw6"] = tried(socket.socket, socket.AF_INET6, socket.SOCK_RAW, 58)
def six(address):
    with socket.socket(socket.AF_INET6) as s:
        s.connect((address, 5000))
found["ipv6"] = [tried(six, "2001:db8::1") != "OK", tried(six, "::1") != "OK", tried(six, "fe80::1%eth0") != "OK"]
say(found)
"#
        ),
    );
    assert_eq!(
        found,
        json!({
            // Landlock lets it connect to the number of its own port, for its own loopback; there is no route elsewhere.
            "tcp elsewhere": ["ENETUNREACH"],
            "udp elsewhere": ["ENETUNREACH"],
            // Other numbers are refused by Landlock, before there is a packet; its own by a rule.
            "tcp sidecar": [look::refused_tcp("EINPROGRESS"), look::refused_tcp("EINPROGRESS"), "EINPROGRESS"],
            // This leaves the app, and that was it.
            "udp sidecar": "OK",
            // A link without ARP sends its broadcasts to itself, and the bridge gives none back.
            "broadcast": "OK",
            "ping": "EPROTONOSUPPORT",
            "raw": "EPERM",
            "packet": "EPERM",
            "raw6": "EPERM",
            "ipv6": [true, true, true],
        })
    );
    let refused = if look::landlock_knows_tcp() { 2 } else { 4 };
    look::assert_counted(
        &lab,
        sidecar,
        &before,
        &[("guard/drop-app-egress", refused)],
    );
    // Whoever is not under Landlock there meets the missing route and the rules: neither hides that the other is gone.
    let found = look::attack_beside(
        &lab,
        look::pid(&status, "app"),
        &format!(
            "say([sorted({{knock(address, 5000) for address in {elsewhere:?}}}),\n\
             \x20   [knock('{SIDECAR}', port) for port in (22, 80, 5000)]])"
        ),
    );
    assert_eq!(
        found,
        json!([
            ["ENETUNREACH"],
            ["EINPROGRESS", "EINPROGRESS", "EINPROGRESS"]
        ])
    );
    look::assert_counted(
        &lab,
        sidecar,
        &before,
        &[("guard/drop-app-egress", refused + 3)],
    );
    assert_eq!(
        look::received(&lab, None, &uplink),
        heard,
        "nothing came to the host"
    );
}

#[test]
fn abstract_sockets_of_the_host_and_of_other_parts_do_not_exist_for_an_app() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let other = "[app.b]\nrootfs = \"host\"\ncommand = [\"/usr/bin/python3\", \"-c\", CODE]\npublish = [\"5001:5000\"]\n";
    let name = format!("lrpns-{}", look::token());
    let code = format!(
        "import socket\nu = socket.socket(socket.AF_UNIX)\nu.bind('\\0{name}')\nu.listen()\n\
         s = socket.create_server(('0.0.0.0', 5000))\nwhile True: s.accept()"
    );
    let other = other.replace("CODE", &look::toml(&code));
    look::up(
        &lab,
        &format!(
            "name = \"web\"\n{}{other}",
            other.replace("app.b", "app.a").replace("5001", "5000")
        ),
    );
    let mut holder = lab
        .command(&[
            PYTHON,
            "-c",
            &format!("import socket\nu = socket.socket(socket.AF_UNIX)\nu.bind('\\0host{name}')\nu.listen()\nprint(1, flush=True)\nu.accept()"),
        ])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 1];
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut ready).unwrap();
    let code = |names: &str| {
        format!(
            "def reach(name):\n    with socket.socket(socket.AF_UNIX) as s:\n        s.connect(name)\n\
             say([tried(reach, '\\0' + name) for name in {names}])"
        )
    };
    let names = format!("('host{name}', '{name}')");
    // Each app has its own of that name, so: the host's is there for the host, and each app reaches only its own.
    assert_eq!(
        look::attack_from_host(&lab, &code(&names)),
        json!(["OK", "ECONNREFUSED"])
    );
    for app in ["a", "b"] {
        assert_eq!(
            look::attack(&lab, "web", app, &code(&names)),
            json!(["ECONNREFUSED", "OK"])
        );
    }
    holder.wait().unwrap();
}

#[test]
fn whoever_owns_the_apps_namespace_still_meets_a_rule_for_every_packet() {
    if !look::machine() {
        return;
    }
    let (lab, token, status) = telling(Lab::forwarding(), "dnat");
    let uplink = look::planned(&status, "/uplink/host_link").to_owned();
    let sidecar = (Some(look::init(&status, "sidecar")), "lrpns");
    let app = look::pid(&status, "app");
    look::route_everywhere(&lab, app);
    let heard = look::received(&lab, None, &uplink);
    let near = look::planned(&status, "/uplink/host_address");
    let far = look::planned(&status, "/uplink/sidecar_address");
    let (to, from) = (
        look::planned(&status, "/bridge/mac"),
        look::planned(&status, "/apps/0/mac"),
    );

    type Attack = (&'static str, &'static str, &'static [(&'static str, u64)]);
    let attacks: [Attack; 7] = [
        (
            "egress: TCP, UDP and ICMP to anybody",
            "for a in anybody:\n    knock(a, 80)\n    throw(a, 53)\n    send(ping(me, a))",
            &[("guard/drop-app-egress", 24)],
        ),
        (
            "egress from the published port",
            "for a in anybody[1:]:\n    send(tcp(me, a, 5000, 80, 18))",
            &[("guard/drop-app-egress", 7)],
        ),
        (
            "broadcast and multicast",
            "for a in ('255.255.255.255', '224.0.0.1', '172.18.0.255'):\n    send(udp(me, a, 68, 67), 'ff:ff:ff:ff:ff:ff')",
            &[("guard/drop-app-egress", 3)],
        ),
        (
            "another's address",
            "for a in ('172.18.0.24', '172.18.0.33', '127.0.0.1', '10.99.0.1', '0.0.0.0'):\n    send(tcp(a, '172.18.0.33', 5000, 80))",
            &[("guard/drop-app-spoof", 5)],
        ),
        (
            "fragments are looked at as the packet that they are",
            "whole = udp(me, '10.99.0.2', 9, 9)[20:] + b'y' * 15\n\
             send(ipv4(me, '10.99.0.2', 17, whole[:8], 0x2000))\nsend(ipv4(me, '10.99.0.2', 17, whole[8:], 1))",
            &[("guard/drop-app-egress", 1)],
        ),
        (
            "out of turn to the sidecar, in the words of a reply",
            "send(tcp(me, '172.18.0.33', 5000, 22, 2))\nsend(tcp(me, '172.18.0.33', 5000, 23, 16))",
            &[("guard/accept-app-reply", 2), ("input/drop-from-app", 2)],
        ),
        (
            "what belongs to no connection",
            "send(tcp(me, '172.18.0.33', 5000, 24, 0))\nsend(tcp(me, '172.18.0.33', 5000, 24, 41))",
            &[("guard/accept-app-reply", 2), ("input/drop-invalid", 2)],
        ),
    ];
    for (what, attack, counted) in attacks {
        let before = look::counters(&lab, sidecar.0, sidecar.1);
        look::attack_beside(
            &lab,
            app,
            &format!(
                "me = '{APP}'\n\
                 anybody = ['{SIDECAR}', '{near}', '{far}', '{LAB}', '{CLIENT}', '169.254.169.254', '203.0.113.8', '172.18.0.24']\n\
                 def send(packet, to='{to}'):\n    frame('eth0', to, '{from}', packet)\n\
                 {attack}\nsay(1)"
            ),
        );
        println!("{what}");
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
fn the_bridge_takes_no_foreign_source_and_forgets_no_neighbour() {
    if !look::machine() {
        return;
    }
    let (lab, token, status) = telling(Lab::new(), "relay");
    let sidecar = (Some(look::init(&status, "sidecar")), "lrpns");
    let app = look::pid(&status, "app");
    let tables = || {
        [
            look::json(&lab, sidecar.0, &["bridge", "-j", "fdb", "show"]),
            look::json(&lab, sidecar.0, &["ip", "-j", "neigh"]),
        ]
    };
    let before = tables();
    let counted = look::counters(&lab, sidecar.0, sidecar.1);
    let (to, from) = (
        look::planned(&status, "/bridge/mac"),
        look::planned(&status, "/apps/0/mac"),
    );
    look::attack_beside(
        &lab,
        app,
        &format!(
            "wish = udp('{APP}', '{LAB}', 9, 9)\n\
             arp = struct.pack('!HHBBH', 1, 0x800, 6, 4, 2) + mac('02:00:00:00:00:01') + socket.inet_aton('{SIDECAR}')\n\
             arp += mac('{to}') + socket.inet_aton('{APP}')\n\
             frame('eth0', '{to}', '02:00:00:00:00:01', wish)\n\
             frame('eth0', '{to}', '{to}', wish)\n\
             frame('eth0', 'ff:ff:ff:ff:ff:ff', '{from}', arp, 0x806)\n\
             frame('eth0', '{to}', '{from}', arp, 0x806)\n\
             frame('eth0', '{to}', '{from}', struct.pack('!HH', 7, 0x800) + wish, 0x8100)\n\
             frame('eth0', '{to}', '{from}', b'\\x60' + bytes(39), 0x86dd)\n\
             frame('eth0', '{to}', '{from}', wish)\n\
             say(1)"
        ),
    );
    // Only the last one is taken for the app's word, and it came behind the others.
    look::assert_counted(&lab, sidecar, &counted, &[("guard/drop-app-egress", 1)]);
    assert_eq!(tables(), before);
    assert_eq!(
        look::told(lab.get("http://localhost:5000/"))["token"],
        token.as_str()
    );
}

#[test]
fn two_apps_of_one_stack_do_not_reach_each_other() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let app = |name: &str, port: u16| {
        format!(
            "[app.{name}]\nrootfs = \"host\"\ncommand = {}\nenv = {{ TOKEN = \"{name}\" }}\npublish = [\"{port}:5000\"]\nlisten = [6000]\n",
            look::toml_list(&[PYTHON, "-c", look::TELLING])
        )
    };
    look::up(
        &lab,
        &format!("name = \"web\"\n{}{}", app("a", 5000), app("b", 5001)),
    );
    let status = lab.status("web");
    look::settle(&lab, &status);
    let sidecar = (Some(look::init(&status, "sidecar")), "lrpns");
    let (a, b) = (look::pid(&status, "a"), look::pid(&status, "b"));
    let [ours, theirs] =
        ["/apps/0/address", "/apps/1/address"].map(|at| look::planned(&status, at));
    let [from, to] = ["/apps/0/mac", "/apps/1/mac"].map(|at| look::planned(&status, at));
    let router = look::planned(&status, "/bridge/address");
    let bridge = look::planned(&status, "/bridge/mac");

    // With what an app has, there is no way at all.
    let found = look::attack(
        &lab,
        "web",
        "a",
        &format!("say([knock('{theirs}', 7000), knock('{theirs}', 6000), throw('{theirs}', 53)])"),
    );
    // By Landlock; 6000 is a port that it uses within itself, so that only the missing route is left.
    assert_eq!(
        found,
        json!([
            look::refused_tcp("ENETUNREACH"),
            "ENETUNREACH",
            "ENETUNREACH"
        ])
    );
    // Without Landlock there is none either.
    let found = look::attack_beside(
        &lab,
        a,
        &format!("say([knock('{theirs}', 5000), knock('{theirs}', 6000)])"),
    );
    assert_eq!(found, json!(["ENETUNREACH", "ENETUNREACH"]));

    // With the namespace's root: by the bridge, and by the sidecar.
    look::beside(
        &lab,
        a,
        &[
            "ip", "route", "add", "default", "via", router, "onlink", "dev", "eth0",
        ],
    );
    let before = look::counters(&lab, sidecar.0, sidecar.1);
    let heard = look::received(&lab, Some(b), "eth0");
    look::attack_beside(
        &lab,
        a,
        &format!(
            "wish = tcp('{ours}', '{theirs}', 5000, 5000)\n\
             for to in ('{to}', 'ff:ff:ff:ff:ff:ff', '01:00:5e:00:00:01', '02:00:00:00:00:01', '{bridge}'):\n\
             \x20   frame('eth0', to, '{from}', wish)\n\
             say([knock('{theirs}', 5000), throw('{theirs}', 53)])"
        ),
    );
    // To the bridge's own address, to all (two), and by route (two): the sidecar hears and refuses; the others are
    // for a port that there is no way to.
    look::assert_counted(&lab, sidecar, &before, &[("guard/drop-app-egress", 5)]);
    assert_eq!(
        look::received(&lab, Some(b), "eth0"),
        heard,
        "nothing came to b"
    );
    for (port, name) in [(5000, "a"), (5001, "b")] {
        let answer = look::told(lab.get(&format!("http://localhost:{port}/")));
        assert_eq!(answer["token"], name);
    }
    assert!(
        look::received(&lab, Some(b), "eth0") > heard,
        "its clients came to b"
    );
}

/// Two stacks with the same subnet and the same addresses, published on ports 5000 and 5001 of a host that forwards.
fn two_stacks() -> (Lab, [Value; 2]) {
    let lab = Lab::forwarding();
    for (stack, port) in [("one", 5000), ("two", 5001)] {
        look::up(
            &lab,
            &look::telling(stack, stack, &format!("0.0.0.0:{port}:5000"), ""),
        );
    }
    let statuses = ["one", "two"].map(|stack| lab.status(stack));
    for status in &statuses {
        look::settle(&lab, status);
    }
    (lab, statuses)
}

#[test]
fn two_stacks_with_one_subnet_answer_side_by_side_and_do_not_reach_each_other() {
    if !look::machine() {
        return;
    }
    let (lab, [one, two]) = two_stacks();
    for (port, stack) in [(5000, "one"), (5001, "two")] {
        for answer in [
            lab.client_get(&format!("http://{LAB}:{port}/")),
            lab.get(&format!("http://localhost:{port}/")),
        ] {
            assert_eq!(look::told(answer)["token"], stack);
        }
    }
    look::settle(&lab, &one);
    look::settle(&lab, &two);
    let app = look::pid(&one, "app");
    let sidecars = [&one, &two].map(|status| (Some(look::init(status, "sidecar")), "lrpns"));
    let before = sidecars.map(|(pid, table)| look::counters(&lab, pid, table));
    look::route_everywhere(&lab, app);
    let [near, far] =
        ["/uplink/host_address", "/uplink/sidecar_address"].map(|at| look::planned(&two, at));
    look::attack_beside(
        &lab,
        app,
        &format!("say([knock(a, p) for a in ('{near}', '{far}', '{LAB}') for p in (5000, 5001)])"),
    );
    look::assert_counted(
        &lab,
        sidecars[0],
        &before[0],
        &[("guard/drop-app-egress", 6)],
    );
    assert_eq!(
        look::since(
            &before[1],
            &look::counters(&lab, sidecars[1].0, sidecars[1].1)
        ),
        look::Counters::new(),
        "nothing came to the other stack"
    );
}

#[test]
fn a_sidecar_that_has_lost_its_rules_still_reaches_nobody() {
    if !look::machine() {
        return;
    }
    let (lab, [one, two]) = two_stacks();
    let sidecar = look::init(&one, "sidecar");
    look::beside(&lab, sidecar, &["nft", "flush", "ruleset"]);
    let answered = look::received(&lab, Some(sidecar), "uplink");
    let host = (None, "lrpns-one");
    let before = look::counters(&lab, host.0, host.1);
    let other = (Some(look::init(&two, "sidecar")), "lrpns");
    let untouched = look::counters(&lab, other.0, other.1);
    let near = look::planned(&one, "/uplink/host_address");
    let theirs = look::planned(&two, "/uplink/sidecar_address");
    let [to, from] = ["/uplink/host_mac", "/uplink/sidecar_mac"].map(|at| look::planned(&one, at));
    let mine = look::planned(&one, "/uplink/sidecar_address");
    look::attack_beside(
        &lab,
        sidecar,
        &format!(
            "for a in ('{near}', '{LAB}'):\n\
             \x20   knock(a, 22)\n    knock(a, 5000)\n    throw(a, 53)\n    frame('uplink', '{to}', '{from}', ping('{mine}', a))\n\
             knock('{CLIENT}', 5000)\nthrow('{CLIENT}', 53)\n\
             # In the words of a reply, but to somebody that it was not asked by, or as somebody else.\n\
             frame('uplink', '{to}', '{from}', tcp('{mine}', '{LAB}', 5000, 22, 16))\n\
             frame('uplink', '{to}', '{from}', tcp('{mine}', '{near}', 5000, 22, 2))\n\
             frame('uplink', '{to}', '{from}', tcp('{mine}', '{near}', 5001, 22, 16))\n\
             say(1)"
        ),
    );
    look::assert_dropped(
        &lab,
        host,
        &before,
        &[
            ("input/drop-from-sidecar", 9),
            // Two to the client, and two to a published port, which are translated: to the sidecar itself, of all places.
            ("forward/drop-from-sidecar", 4),
        ],
    );

    // A host that had taken any of them would have answered each: with RST, or an ICMP error, or an echo.
    assert_eq!(look::received(&lab, Some(sidecar), "uplink"), answered);

    // To another stack: what the one's table lets out, the other's lets in, so either may be the first to refuse.
    let before = [&one, &two].map(|status| {
        let table = format!("lrpns-{}", look::planned(status, "/stack"));
        (look::counters(&lab, None, &table), table)
    });
    look::attack_beside(
        &lab,
        sidecar,
        &format!("say([knock('{theirs}', 5001), throw('{theirs}', 53)])"),
    );
    look::eventually("dropped by either", &2, || {
        before
            .iter()
            .flat_map(|(before, table)| look::since(before, &look::counters(&lab, None, table)))
            .filter(|(rule, _)| rule.contains("/drop-"))
            .map(|(_, packets)| packets)
            .sum()
    });
    assert_eq!(
        look::since(&untouched, &look::counters(&lab, other.0, other.1)),
        look::Counters::new(),
        "nothing came to the other stack"
    );
}

/// What can take a link of the host's over, with an address of its own: afterwards packets no longer come in by the link's
/// name. Not every kernel has all of them; the first two every one has.
const TAKEOVERS: [(&str, &str); 8] = [
    (
        "bridge",
        "ip link add over0 type bridge; ip link set $LINK master over0",
    ),
    (
        "macvlan",
        "ip link add link $LINK name over0 type macvlan mode bridge",
    ),
    (
        "macvlan, passthru",
        "ip link add link $LINK name over0 type macvlan mode passthru",
    ),
    ("vlan", "ip link add link $LINK name over0 type vlan id 7"),
    (
        "vlan of a bridge",
        "ip link add br0 type bridge; ip link set $LINK master br0; ip link set br0 up; \
         ip link add link br0 name over0 type vlan id 7",
    ),
    (
        "ipvlan",
        "ip link add link $LINK name over0 type ipvlan mode l2",
    ),
    (
        "vrf",
        "ip link add over0 type vrf table 77; ip link set $LINK master over0",
    ),
    ("macsec", "ip link add link $LINK name over0 type macsec"),
];

/// Every packet that somebody in the sidecar can think of: to whichever link-layer address, from whichever address, with
/// and without a tag of VLAN 7.
const EVERY_WAY: &str = r#"
for target in macs:
    for own in (mine, '10.98.0.2', '203.0.113.9'):
        for to in (near, '10.99.0.1', '10.98.0.1'):
            for packet in (tcp(own, to, 5000, 9999), udp(own, to, 5000, 9999)):
                frame('uplink', target, source, packet)
                frame('uplink', target, source, struct.pack('!HH', 7, 0x0800) + packet, 0x8100)
for to in (near, '10.99.0.1', '10.98.0.1'):
    knock(to, 9999)
    throw(to, 9999)
say(1)
"#;

#[test]
fn a_sidecar_that_has_lost_its_rules_reaches_no_service_of_the_host_whatever_takes_its_uplink_over()
{
    if !look::machine() {
        return;
    }
    for (kind, takeover) in TAKEOVERS {
        let (lab, _, status) = telling(Lab::forwarding(), "dnat");
        // What reaches a service meets this, behind all other rules.
        lab.ok(&[
            "nft",
            "add table inet seen; add chain inet seen input { type filter hook input priority 500; }; \
             add rule inet seen input th dport 9999 counter comment \"arrived\"",
        ]);
        let arrived = || look::counters(&lab, None, "seen")["input/arrived"];
        let link = look::planned(&status, "/uplink/host_link");
        let script = format!(
            "LINK={link}; {{ {takeover}; }} && ip addr add 10.98.0.1/24 dev over0 && ip link set over0 up"
        );
        let taken = lab.run(&["sh", "-c", &script]);
        if !taken.status.success() {
            assert!(
                !["bridge", "macvlan"].contains(&kind),
                "{}",
                describe(&taken)
            );
            eprintln!("not tried here: {kind}: {}", describe(&taken));
            continue;
        }
        // The counter counts, so that nothing can be hidden by there being none.
        look::attack_from_client(&lab, "say(throw('10.99.0.1', 9999))");
        look::eventually("a packet of the client's", &1, arrived);

        let sidecar = look::init(&status, "sidecar");
        look::beside(&lab, sidecar, &["nft", "flush", "ruleset"]);
        let over = look::json(&lab, None, &["ip", "-j", "link", "show", "over0"]);
        let over = over[0]["address"].as_str().unwrap();
        let at = |pointer| look::planned(&status, pointer);
        let received = look::received(&lab, None, link);
        look::attack_beside(
            &lab,
            sidecar,
            &format!(
                "near, mine, source = '{}', '{}', '{}'\nmacs = ['{}', '{over}', 'ff:ff:ff:ff:ff:ff']\n{EVERY_WAY}",
                at("/uplink/host_address"),
                at("/uplink/sidecar_address"),
                at("/uplink/sidecar_mac"),
                at("/uplink/host_mac"),
            ),
        );
        assert!(look::received(&lab, None, link) >= received + 108, "{kind}");
        // What a processor has in its queue is taken before what comes after it.
        look::attack_from_client(&lab, "say(throw('10.99.0.1', 9999))");
        look::eventually(kind, &2, arrived);
    }
}

#[test]
fn nobody_reaches_the_sidecar_through_a_bridge_that_has_its_uplink() {
    if !look::machine() {
        return;
    }
    let (lab, _, status) = telling(Lab::forwarding(), "dnat");
    let at = |pointer| look::planned(&status, pointer);
    let link = at("/uplink/host_link");
    lab.ok(&[
        "sh",
        "-ec",
        &format!(
            "ip link add over0 type bridge; ip link set {link} master over0; ip link set ext0 master over0; \
             ip addr add 10.98.0.1/24 dev over0; ip link set over0 up"
        ),
    ]);
    let sidecar = look::init(&status, "sidecar");
    let before = look::received(&lab, Some(sidecar), "uplink");
    // As the host, as the relay's client, and as itself; to the published port, to the app, to everybody.
    let attack = format!(
        "near, there, app = '{}', '{}', '{APP}'\n\
         for own in (near, '{CLIENT}', '10.98.0.7'):\n\
         \x20   for to in (there, app, '255.255.255.255'):\n\
         \x20       for target in ('{}', 'ff:ff:ff:ff:ff:ff'):\n\
         \x20           for source in ('02:00:00:00:00:99', '{}'):\n\
         \x20               frame('eth0', target, source, tcp(own, to, 40000, 5000))\n\
         \x20               frame('eth0', target, source, udp(own, to, 40000, 53))\n\
         say(1)",
        at("/uplink/host_address"),
        at("/uplink/sidecar_address"),
        at("/uplink/sidecar_mac"),
        at("/uplink/host_mac"),
    );
    let over = look::received(&lab, None, "ext0");
    look::attack_from_client(&lab, &attack);
    look::eventually("what the client sent", &true, || {
        look::received(&lab, None, "ext0") >= over + 72
    });
    // The host itself still gets there, and its packet is behind all others.
    let host = format!("say(throw('{}', 9))", at("/uplink/sidecar_address"));
    look::attack_from_host(&lab, &host);
    look::eventually("received", &(before + 1), || {
        look::received(&lab, Some(sidecar), "uplink")
    });
}

/// 60 times up, first request, down, in one lab; what the kernel had to send twice.
fn first_requests(lab: &Lab) -> Value {
    let cycles = format!(
        r#"
import json, subprocess, sys
def sent_again(file, file2):
    total = {{}}
    for name, key in ((file, "RetransSegs"), (file2, "TCPSynRetrans")):
        lines = [line.split() for line in (open(name) if isinstance(name, str) else name)]
        for head, values in zip(lines[::2], lines[1::2]):
            if key in head:
                total[key] = int(values[head.index(key)])
    return total
def run(*args):
    return subprocess.run(args, check=True, capture_output=True, text=True).stdout
def client(file):
    return run("ip", "netns", "exec", "client", "cat", file).splitlines()
answers = 0
apps = []
for cycle in range(60):
    run("{0}", "up", "-d", "--demo")
    answer = run("ip", "netns", "exec", "client", "curl", "-sS", "--max-time", "60", "http://{LAB}:5000/")
    answers += answer == "Hello world!"
    parts = json.loads(run("{0}", "status", "--json"))["parts"]
    pid = [part["pid"] for part in parts if part["name"] == "app"][0]
    again = sent_again("/proc/%d/net/snmp" % pid, "/proc/%d/net/netstat" % pid)
    if any(again.values()):
        apps.append((cycle, again))
    run("{0}", "down")
print(json.dumps({{
    "answers": answers,
    "app": apps,
    "host": sent_again("/proc/net/snmp", "/proc/net/netstat"),
    "client": sent_again(client("/proc/net/snmp"), client("/proc/net/netstat")),
}}))
"#,
        lrpns()
    );
    let text = lab.ok(&[PYTHON, "-c", &cycles]);
    serde_json::from_str(&text).unwrap()
}

fn nothing_sent_again() -> Value {
    let none = json!({ "RetransSegs": 0, "TCPSynRetrans": 0 });
    json!({ "answers": 60, "app": [], "host": none, "client": none })
}

#[test]
fn no_first_connection_is_sent_twice_by_relay() {
    if !look::machine() {
        return;
    }
    assert_eq!(first_requests(&Lab::new()), nothing_sent_again());
}

#[test]
fn no_first_connection_is_sent_twice_by_dnat() {
    if !look::machine() {
        return;
    }
    assert_eq!(first_requests(&Lab::forwarding()), nothing_sent_again());
}

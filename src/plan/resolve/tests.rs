//! Tables: a configuration, a machine made by hand, and what is decided. Nothing here asks the kernel.

use std::path::Path;

use super::*;
use crate::accounts::{Accounts, Group, User};
use crate::config::{Protocol, RulesFile, Vars, parse};
use crate::firewall::Forwarding;
use crate::plan::neighbour::Neighbour;
use crate::plan::{APP_ID, EgressVia, Mode, SUPERVISOR_ID, Subordinate, Transport};

/// Why the machine of these tests forwards nothing.
const CLOSED: &str = "net.ipv4.ip_forward is 0";

/// A machine with one address, which forwards, and root.
fn machine() -> Host {
    Host::example()
}

fn closed() -> Host {
    Host {
        forwarding: Forwarding::Closed {
            why: CLOSED.to_owned(),
        },
        ..machine()
    }
}

fn rootless() -> Host {
    Host {
        mode: Mode::Rootless,
        uid: 1000,
        ..closed()
    }
}

fn config(text: &str) -> Config {
    parse(Path::new("lrpns.toml"), text, &Vars::default())
        .unwrap_or_else(|errors| panic!("{text}\n{errors}"))
}

/// A stack `shop` with one app, `web`, of which these are the further lines.
fn one(lines: &str) -> Config {
    config(&format!("name = \"shop\"\n{}", app("web", lines)))
}

fn app(name: &str, lines: &str) -> String {
    format!("[app.{name}]\nrootfs = \"host\"\ncommand = [\"serve\"]\n{lines}\n")
}

fn decided(config: &Config, host: &Host) -> Plan {
    plan(config, host).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn a_bridge_has_its_stacks_name_unless_that_is_taken() {
    for (stack, bridge) in [
        ("customerA", "customerA"),
        ("a-stack-with-a-long-name", "a-stack-with-a-"),
        ("lo", "br-lo"),
        ("uplink", "br-uplink"),
        ("port0", "br-port0"),
        ("port123456789012", "br-port12345678"),
        ("portal", "portal"),
        ("all", "br-all"),
        ("default", "br-default"),
    ] {
        let stack = StackName::new(stack).unwrap();
        assert_eq!(bridge_name(&stack).as_str(), bridge);
    }
}

#[test]
fn by_what_way_clients_come_and_where_the_uplink_ends() {
    use Transport::{Dnat, Relay};
    use UplinkEnd::{Host as AtHost, Relay as AtRelay};
    let open = "the host forwards, and nothing of another owner drops it";
    let own = "the uplink ends at the relay";
    let handed = "a socket unit has it, and waits there when the stack is gone";
    let has_80 = || Host {
        handed: vec![("0.0.0.0:80".parse().unwrap(), Protocol::Tcp)],
        ..machine()
    };
    let web = "publish = [\"0.0.0.0:80:8000\"]\n";
    // The lines of the app; the machine; the way of its one port and why; where the uplink ends.
    for (lines, host, way, why, end) in [
        ("", machine(), Dnat, open, AtHost),
        ("", closed(), Relay, CLOSED, AtRelay),
        ("", rootless(), Relay, CLOSED, AtRelay),
        ("", has_80(), Relay, handed, AtRelay),
        (
            "via = \"relay\"",
            machine(),
            Relay,
            "as configured",
            AtRelay,
        ),
        ("via = \"dnat\"", closed(), Dnat, "as configured", AtHost),
        // A socket unit's port by DNAT is for preflight to refuse, which says so.
        ("via = \"dnat\"", has_80(), Dnat, "as configured", AtHost),
        ("via = \"socket\"", machine(), Dnat, open, AtHost),
        ("via = \"socket\"", closed(), Relay, CLOSED, AtRelay),
        // Only a relay that has the uplink can dial as the client.
        (
            "via = \"relay\"\nsource = \"client\"",
            machine(),
            Relay,
            "as configured",
            AtRelay,
        ),
        // What leaves by relay takes the uplink's end with it, and then nothing is forwarded.
        (
            "egress = [\"tcp 198.51.100.1:443\"]",
            machine(),
            Dnat,
            open,
            AtHost,
        ),
        (
            "egress = [\"tcp 198.51.100.1:443\"]",
            closed(),
            Relay,
            CLOSED,
            AtRelay,
        ),
    ] {
        let plan = decided(&one(&format!("{web}{lines}")), &host);
        let publish = &plan.apps[0].publish[0];
        let found = (publish.via, publish.why.as_str(), plan.uplink.ends_at);
        assert_eq!(found, (way, why, end), "{lines:?} {:?}", host.forwarding);
    }

    // One app that the relay has to dial for as its clients moves the uplink of the other.
    let both = config(&format!(
        "name = \"shop\"\n{}{}",
        app("web", "publish = [\"0.0.0.0:80:8000\"]"),
        app(
            "api",
            "publish = [\"0.0.0.0:81:8001\"]\nvia = \"relay\"\nsource = \"client\""
        ),
    ));
    let plan = decided(&both, &machine());
    assert_eq!(plan.uplink.ends_at, AtRelay);
    for app in &plan.apps {
        let publish = &app.publish[0];
        let why = if app.name.as_str() == "web" {
            own
        } else {
            "as configured"
        };
        assert_eq!((publish.via, publish.why.as_str()), (Relay, why));
    }

    // Loopback is the host's own, and says nothing about where the uplink is.
    let loopback = one("publish = [\"127.0.0.1:80:8000\"]");
    let plan = decided(&loopback, &machine());
    assert_eq!(plan.apps[0].publish[0].via, Relay);
    assert_eq!(plan.uplink.ends_at, AtRelay);
}

#[test]
fn by_what_way_that_leaves_which_is_granted() {
    let own = "to the host itself nothing needs to be forwarded";
    let open = "the host forwards, and nothing of another owner drops it";
    let user = "an ordinary user can't have the host forward";
    for (lines, host, expected) in [
        ("", machine(), None),
        (
            "egress = [\"tcp 198.51.100.1:443\"]",
            machine(),
            Some((EgressVia::Nat, open)),
        ),
        (
            "egress = [\"tcp 192.0.2.10:5432\"]",
            closed(),
            Some((EgressVia::Nat, own)),
        ),
        // Of a whole network one address at most is the host's.
        (
            "egress = [\"tcp 192.0.2.0/24:5432\"]",
            closed(),
            Some((EgressVia::Relay, CLOSED)),
        ),
        (
            "egress = [\"tcp 192.0.2.10:5432\", \"tcp 198.51.100.1:443\"]",
            closed(),
            Some((EgressVia::Relay, CLOSED)),
        ),
        (
            "egress = [\"tcp 198.51.100.1:443\"]\nvia = \"relay\"",
            machine(),
            Some((EgressVia::Relay, "as configured")),
        ),
        (
            "egress = [\"tcp 198.51.100.1:443\"]",
            rootless(),
            Some((EgressVia::Relay, user)),
        ),
    ] {
        let plan = decided(&one(lines), &host);
        let found = plan
            .egress
            .as_ref()
            .map(|egress| (egress.via, egress.why.as_str()));
        assert_eq!(found, expected, "{lines:?}");
    }
}

#[test]
fn addresses_are_the_first_free_ones_of_a_subnet_that_nothing_else_is_in() {
    let many: String = (0..6).map(|n| app(&format!("a{n}"), "")).collect();
    let routed = |net: &str| {
        let mut host = machine();
        host.net.routes.push(net.parse().unwrap());
        host
    };
    for (text, host, subnet, sidecar, first) in [
        (
            app("web", ""),
            machine(),
            "198.18.0.0/29",
            "198.18.0.1",
            "198.18.0.2",
        ),
        // A network and a broadcast address, the sidecar, six apps.
        (many, machine(), "198.18.0.0/28", "198.18.0.1", "198.18.0.2"),
        (
            app("web", ""),
            routed("198.18.0.4/32"),
            "198.18.0.8/29",
            "198.18.0.9",
            "198.18.0.10",
        ),
        (
            app("web", ""),
            routed("198.18.0.0/17"),
            "198.18.128.0/29",
            "198.18.128.1",
            "198.18.128.2",
        ),
        // Where all of the pool is taken, an overlap hides nobody but who is in it.
        (
            app("web", ""),
            routed("198.18.0.0/16"),
            "198.18.0.0/29",
            "198.18.0.1",
            "198.18.0.2",
        ),
        (
            format!(
                "[network]\nsubnet = \"10.0.0.0/29\"\n[sidecar]\naddress = \"10.0.0.2\"\n{}",
                app("web", "")
            ),
            machine(),
            "10.0.0.0/29",
            "10.0.0.2",
            "10.0.0.1",
        ),
        (
            format!(
                "[network]\nsubnet = \"10.0.0.0/29\"\n{}",
                app("web", "address = \"10.0.0.5\"")
            ),
            machine(),
            "10.0.0.0/29",
            "10.0.0.1",
            "10.0.0.5",
        ),
    ] {
        let plan = decided(&config(&format!("name = \"shop\"\n{text}")), &host);
        let found = (
            plan.bridge.subnet.to_string(),
            plan.bridge.address.to_string(),
            plan.apps[0].address.to_string(),
        );
        let expected = (subnet.to_owned(), sidecar.to_owned(), first.to_owned());
        assert_eq!(found, expected, "{text}");
        let mut all: Vec<IpAddr> = plan.apps.iter().flat_map(AppPlan::everywhere).collect();
        all.push(plan.bridge.address.into());
        let different: BTreeSet<&IpAddr> = all.iter().collect();
        assert_eq!(different.len(), all.len(), "one address twice: {all:?}");
    }
}

#[test]
fn nobody_has_ids_or_an_uplink_that_another_has() {
    let text = format!(
        "name = \"shop\"\n{}{}{}",
        app("web", "egress = [\"tcp 198.51.100.1:443\"]"),
        app("root", "user = 0"),
        app("range", "ids = \"range\""),
    );
    let of = |plan: &Plan| -> Vec<std::ops::Range<u32>> {
        let egress = plan.egress.iter().map(|egress| egress.ids);
        let apps = plan.apps.iter().map(|app| app.ids);
        let all = [plan.sidecar, plan.relay]
            .into_iter()
            .chain(egress)
            .chain(apps);
        all.map(|ids| ids.host_id..ids.host_id + ids.count)
            .collect()
    };
    let mut host = machine();
    let mut taken = vec![];
    let mut uplinks = BTreeSet::new();
    for name in ["shop", "shop2", "shop3"] {
        let mut config = config(&text);
        config.name = StackName::new(name).unwrap();
        let plan = decided(&config, &host);
        let supervisor = plan.sidecar.host_id - plan.sidecar.host_id % RANGE + SUPERVISOR_ID;
        taken.extend(of(&plan));
        taken.push(supervisor..supervisor + 1);
        assert!(uplinks.insert(plan.uplink.host_address));
        host.others.push(Neighbour::from(&plan));
    }
    taken.sort_by_key(|range| range.start);
    for pair in taken.windows(2) {
        assert!(pair[0].end <= pair[1].start, "{pair:?} meet");
    }
    // An ordinary user is every part, and has one id to give.
    let plan = decided(&one(""), &rootless());
    assert_eq!(of(&plan), [0..1, 0..1, 0..1]);
}

#[test]
fn who_an_app_is_within() {
    let known = || {
        let user = |uid, gid, home: &str| User {
            uid,
            gid,
            home: home.to_owned(),
            shell: "/bin/sh".to_owned(),
        };
        let group = |gid| Group {
            gid,
            members: vec![],
        };
        let accounts = Accounts {
            users: [
                ("www-data".to_owned(), user(33, 34, "/var/www")),
                ("alice".to_owned(), user(1001, 1001, "/home/alice")),
                ("none".to_owned(), user(65534, 65534, "/nonexistent")),
            ]
            .into(),
            groups: [("ssl-cert".to_owned(), group(110))].into(),
        };
        Host {
            accounts: vec![(Rootfs::Host, accounts)],
            ..machine()
        }
    };
    for (lines, ids, home) in [
        ("", (APP_ID, APP_ID), "/"),
        ("user = \"www-data\"", (33, 34), "/var/www"),
        (
            "user = \"www-data\"\ngroup = \"ssl-cert\"",
            (33, 110),
            "/var/www",
        ),
        ("user = \"www-data\"\ngroup = 7", (33, 7), "/var/www"),
        // A number has the group of who has it, and is not told where it is at home.
        ("user = 33", (33, 34), "/"),
        ("user = 77", (77, 77), "/"),
        ("group = \"ssl-cert\"", (APP_ID, 110), "/"),
        // A person's files are not in a root of the host's.
        ("user = \"alice\"", (1001, 1001), "/"),
        ("user = \"none\"", (65534, 65534), "/"),
        ("user = \"app\"", (APP_ID, APP_ID), "/"),
        ("ids = \"range\"", (0, 0), "/"),
    ] {
        let plan = decided(&one(lines), &known());
        let app = &plan.apps[0];
        assert_eq!((app.ids.uid, app.ids.gid), ids, "{lines:?}");
        assert_eq!(app.env["HOME"], home, "{lines:?}");
    }
    for (lines, host, expected) in [
        (
            "user = \"www-date\"",
            known(),
            "user \"www-date\" of web: this host has no such user, the nearest is `www-data`",
        ),
        (
            "group = \"nobody-knows\"",
            known(),
            "group \"nobody-knows\" of web: this host has no such group",
        ),
        (
            "ids = \"range\"\nuser = \"www-data\"",
            known(),
            "web has ids = \"range\" and a user or group that is not root's",
        ),
        (
            "ids = \"range\"",
            rootless(),
            "web has ids = \"range\", and an ordinary user has one id",
        ),
        (
            "ids = \"range\"",
            Host {
                subordinate: Some(Err(("/etc/subuid has no line".to_owned(), String::new()))),
                ..rootless()
            },
            "web has ids = \"range\", and /etc/subuid has no line",
        ),
        (
            "volumes = [\"/srv:/srv:ro,owner=www-data\"]",
            known(),
            "volume /srv of web: owner=www-data, and the app has ids = \"one\"",
        ),
        (
            "volumes = [\"/srv:/srv:ro,owners\"]",
            known(),
            "volume /srv of web: owners, and the app has ids = \"one\"",
        ),
        (
            "ids = \"range\"\nvolumes = [\"/srv:/srv:ro,owner=65536\"]",
            known(),
            "volume /srv of web: owner=65536 is none of its ids, which are 0 to 65535",
        ),
        (
            "ids = \"range\"\nvolumes = [\"/srv:/srv:ro,owners\"]",
            Host {
                subordinate: Some(Ok(Subordinate {
                    uid: 100_000,
                    gid: 100_000,
                })),
                ..rootless()
            },
            "volume /srv of web: owners, which takes root",
        ),
    ] {
        let error = plan(&one(lines), &host).expect_err(lines);
        assert_eq!(error.to_string(), expected, "{lines:?}");
    }
}

#[test]
fn what_cannot_be_decided_is_refused_by_name() {
    let text = format!(
        "name = \"shop\"\n[network]\nsubnet = \"10.0.0.0/29\"\n{}{}",
        app("web", "egress = [\"tcp 10.0.0.3:5432\"]"),
        app("db", "address = \"10.0.0.3\"")
    );
    let error = plan(&config(&text), &machine()).map(|_| ()).unwrap_err();
    let expected = "egress \"tcp 10.0.0.3:5432\" of web: that is within the stack's own subnet";
    assert_eq!(error.to_string(), expected);
    // Who names another app's address is told by what key to reach it.
    let PlanError::EgressWithin { instead, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(instead.unwrap().app.as_str(), "db");

    // Who leaves while another is in its place keeps its own address until that has ended: five apps fit.
    let of = |names: &[&str]| -> Config {
        let apps: String = names.iter().map(|name| app(name, "")).collect();
        config(&format!(
            "name = \"shop\"\n[network]\nsubnet = \"10.0.0.0/29\"\n{apps}"
        ))
    };
    let mut running = decided(&of(&["a", "b", "c", "d"]), &machine());
    running.apps[3].away = true;
    let after = of(&["a", "b", "c", "e", "f"]);
    let error = again(&after, &machine(), &running).map(|_| ()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the subnet 10.0.0.0/29 has no address left for f"
    );
}

#[test]
fn variables_of_own_rules_are_those_that_they_use() {
    let shop = |text: &str, vars: &[(&str, &str)]| {
        let mut config = config(&format!(
            "name = \"shop\"\n{}{}",
            app("web", "publish = [\"0.0.0.0:80:8000\"]"),
            app("db", "publish = [\"0.0.0.0:81:5432\", \"0.0.0.0:82:8000\"]"),
        ));
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        config.sidecar.rules = Some(RulesFile {
            path: "own.nft".into(),
            text: text.to_owned(),
            private: false,
            vars: vars.iter().map(own).collect(),
        });
        plan(&config, &machine())
    };
    for (text, vars, expected) in [
        ("", &[][..], &[][..]),
        ("accept", &[("unused", "1;2")], &[]),
        (
            "ip saddr $web ip daddr $app tcp dport $ports",
            &[],
            &[
                ("app", "{ 198.18.0.2, 198.18.0.3 }"),
                ("ports", "{ 5432, 8000 }"),
                ("web", "198.18.0.2"),
            ],
        ),
        (
            "iifname $uplink oifname $bridge ip saddr $subnet ip daddr != $sidecar",
            &[],
            &[
                ("bridge", "\"shop\""),
                ("sidecar", "198.18.0.1"),
                ("subnet", "198.18.0.0/29"),
                ("uplink", "\"uplink\""),
            ],
        ),
        (
            "ip saddr $friends",
            &[("friends", "{ 192.0.2.1 }")],
            &[("friends", "{ 192.0.2.1 }")],
        ),
        // A longer name is another name.
        ("$web-server $webs", &[], &[]),
    ] {
        let found = shop(text, vars).unwrap().rules.unwrap().defines;
        let expected: BTreeMap<String, String> = expected
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        assert_eq!(found, expected, "{text:?}");
    }
    for (text, vars, expected) in [
        (
            "$web",
            [("web", "10.0.0.1")],
            "`$web` in own.nft is both an app's address and a variable of [vars]; rename the variable",
        ),
        (
            "$friends",
            [("friends", "1; drop")],
            "`$friends` in own.nft has \"1; drop\" as its value; expected is one line without `;` and `#`, such as \
             `{ 192.0.2.1, 192.0.2.7 }`",
        ),
    ] {
        assert_eq!(shop(text, &vars).unwrap_err().to_string(), expected);
    }
}

/// Ports of the sidecar's uplink address: `publish` of each app, in order, and what comes of it.
#[test]
fn a_way_in_has_the_hosts_port_where_it_is_free() {
    for (web, db, expected) in [
        ("\"0.0.0.0:80:8000\"", "\"0.0.0.0:81:8000\"", &[80, 81][..]),
        // Two addresses of the host for one port of one app are one way in.
        (
            "\"192.0.2.10:80:8000\", \"127.0.0.1:80:8000\"",
            "",
            &[80, 80],
        ),
        (
            "\"192.0.2.10:80:8000\", \"127.0.0.1:81:8000\"",
            "",
            &[80, 80],
        ),
        // And one port at two addresses for two apps two.
        (
            "\"192.0.2.10:80:8000\"",
            "\"127.0.0.1:80:8000\"",
            &[80, 61_000],
        ),
        ("\"0.0.0.0:53:53/udp\"", "\"0.0.0.0:53:53\"", &[53, 53]),
    ] {
        let text = format!(
            "name = \"shop\"\n{}{}",
            app("web", &format!("publish = [{web}]")),
            app("db", &format!("publish = [{db}]")),
        );
        let plan = decided(&config(&text), &machine());
        let found: Vec<u16> = plan
            .published()
            .map(|(_, publish)| publish.entry_port)
            .collect();
        assert_eq!(found, expected, "{web} {db}");
    }
}

#[test]
fn what_nobody_has_configured_stays_as_it_is_while_a_stack_runs() {
    let before = decided(
        &config(&format!(
            "name = \"shop\"\n{}{}",
            app("web", "publish = [\"0.0.0.0:80:8000\"]"),
            app("db", "publish = [\"0.0.0.0:5432:5432\"]"),
        )),
        &machine(),
    );
    // The machine has changed, the file has another order, another app and no `publish` of the second.
    let mut later = closed();
    later.run = "ffffffff".to_owned();
    later.net.routes.push("198.18.0.0/16".parse().unwrap());
    let file = config(&format!(
        "name = \"shop\"\n{}{}{}",
        app("new", "publish = [\"0.0.0.0:81:8000\"]"),
        app("db", ""),
        app(
            "web",
            "publish = [\"0.0.0.0:80:8000\", \"0.0.0.0:443:8443\"]"
        ),
    ));
    let after = again(&file, &later, &before).unwrap();

    assert_eq!(
        (&after.run, &after.uplink, &after.cgroup),
        (&before.run, &before.uplink, &before.cgroup)
    );
    assert_eq!(after.bridge, before.bridge);
    assert_eq!((after.sidecar, after.relay), (before.sidecar, before.relay));
    let names: Vec<&str> = after.apps.iter().map(|app| app.name.as_str()).collect();
    assert_eq!(names, ["web", "db", "new"], "who runs first, in its order");
    for app in &before.apps {
        let now = after.app(&app.name).unwrap();
        assert_eq!((now.address, &now.port_link), (app.address, &app.port_link));
        assert_eq!((now.ids, now.spare), (app.ids, app.spare));
    }
    let [web, db, new] = &after.apps[..] else {
        panic!("{names:?}")
    };
    // `auto` stays what it came to; a new port is as the machine has it now.
    let ways: Vec<(u16, Transport)> = web
        .publish
        .iter()
        .map(|publish| (publish.listen.port(), publish.via))
        .collect();
    assert_eq!(ways, [(80, Transport::Dnat), (443, Transport::Relay)]);
    // Who has a connection through a port that goes keeps the rules for it.
    let closing = |app: &AppPlan| -> Vec<u16> {
        app.closing
            .iter()
            .map(|publish| publish.entry_port)
            .collect()
    };
    assert_eq!(
        (closing(web), closing(db), closing(new)),
        (vec![], vec![5432], vec![])
    );
    // The new one has nothing that another has or had.
    let had: Vec<IpAddr> = before.apps.iter().flat_map(AppPlan::everywhere).collect();
    assert!(new.everywhere().all(|address| !had.contains(&address)));
    for other in [web, db] {
        assert_ne!(new.port_link, other.port_link);
        let (one, two) = (new.ids, other.ids);
        assert!(one.host_id + one.count <= two.host_id || two.host_id + two.count <= one.host_id);
    }

    // A second time nothing changes any more.
    let mut third = again(&file, &later, &after).unwrap();
    for app in &mut third.apps {
        // Of a port that was closed once nothing is kept for ever.
        let closing: Vec<u16> = app
            .closing
            .iter()
            .map(|publish| publish.entry_port)
            .collect();
        assert!(closing.is_empty() || closing == [5432]);
        app.closing.clear();
    }
    let mut after = after;
    after.apps.iter_mut().for_each(|app| app.closing.clear());
    assert_eq!(third, after);
}

#[test]
fn a_port_means_the_same_as_long_as_a_connection_may_go_through_it() {
    let stack = |web: &str, db: &str| {
        config(&format!(
            "name = \"shop\"\n{}{}",
            app("web", &format!("publish = [{web}]")),
            app("db", &format!("publish = [{db}]")),
        ))
    };
    let before = decided(
        &stack("\"0.0.0.0:80:8000\"", "\"0.0.0.0:81:8000\""),
        &machine(),
    );
    let entries = |plan: &Plan| -> Vec<(String, u16, u16)> {
        let all = plan.published();
        all.map(|(app, publish)| {
            (
                app.name.to_string(),
                publish.listen.port(),
                publish.entry_port,
            )
        })
        .collect()
    };
    let row = |name: &str, port, entry| (name.to_owned(), port, entry);
    for (web, db, expected) in [
        // Each port keeps its own, whoever is behind it now.
        (
            "\"0.0.0.0:81:8000\"",
            "\"0.0.0.0:80:8000\"",
            [row("web", 81, 81), row("db", 80, 80)],
        ),
        // Another port of the host for the same app: not by an entry through which clients of another go.
        (
            "\"0.0.0.0:80:8000\"",
            "\"0.0.0.0:82:8000\"",
            [row("web", 80, 80), row("db", 82, 82)],
        ),
        (
            "\"0.0.0.0:83:9000\"",
            "\"0.0.0.0:81:8000\"",
            [row("web", 83, 83), row("db", 81, 81)],
        ),
    ] {
        let after = again(&stack(web, db), &machine(), &before).unwrap();
        assert_eq!(entries(&after), expected, "{web} {db}");
    }
}

#[test]
fn who_is_replaced_by_another_beside_it_and_who_ends_first() {
    for (lines, expected) in [
        ("publish = [\"0.0.0.0:80:8000\"]", Replace::Rolling),
        // Nobody would be taken from one to the other.
        ("", Replace::StopFirst),
        (
            "publish = [\"0.0.0.0:80:8000\"]\nvolumes = [\"/srv:/srv:rw\"]",
            Replace::StopFirst,
        ),
        (
            "publish = [\"0.0.0.0:80:8000\"]\nvolumes = [\"/srv:/srv\"]",
            Replace::Rolling,
        ),
        (
            "publish = [\"0.0.0.0:80:8000\"]\nvia = \"socket\"",
            Replace::StopFirst,
        ),
        ("replace = \"rolling\"", Replace::Rolling),
        (
            "publish = [\"0.0.0.0:80:8000\"]\nreplace = \"stop-first\"",
            Replace::StopFirst,
        ),
    ] {
        let plan = decided(&one(lines), &machine());
        let app = &plan.apps[0];
        assert_eq!(app.replace, expected, "{lines:?}");
        assert_eq!(
            app.spare.is_some(),
            expected == Replace::Rolling,
            "{lines:?}"
        );
    }
}

#[test]
fn limits_and_shared_memory_where_the_file_says_nothing() {
    for (memory, lines, limit, shared) in [
        (8 << 30, "", Some(6 << 30), 16 << 20),
        // The kernel doesn't tell.
        (0, "", None, 16 << 20),
        (
            8 << 30,
            "limits = { memory = \"8M\" }",
            Some(8 << 20),
            4 << 20,
        ),
        (
            8 << 30,
            "tmpfs = [\"/dev/shm:64M\"]",
            Some(6 << 30),
            64 << 20,
        ),
    ] {
        let host = Host {
            memory,
            ..machine()
        };
        let plan = decided(&one(lines), &host);
        let app = &plan.apps[0];
        assert_eq!(app.limits.memory, limit, "{memory} {lines:?}");
        let of_shm: Vec<u64> = app
            .tmpfs
            .iter()
            .filter(|tmpfs| tmpfs.path == Path::new("/dev/shm"))
            .map(|tmpfs| tmpfs.size)
            .collect();
        assert_eq!(of_shm, [shared], "{memory} {lines:?}");
    }
}

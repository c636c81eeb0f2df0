//! The rules in a kernel, seen with nft's eyes and met by real packets. Each test has network namespaces of its own, and
//! needs root or a user namespace (`unshare -rn`).
#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use lrpns::config::clients::Rate;
use lrpns::config::{Egress, Protocol, Restart, Rootfs, Source};
use lrpns::firewall::{
    EncodeError, Forwarding, IpFamily, LoadError, SHARED_TABLE, Shared, Socket, Updated, encode,
    encode_owned, encode_together, end_table, forwarding, host_rules, host_table, list,
    sidecar_rules, to_json, to_text, transact, update, uplink_rules,
};
use lrpns::names::{IfName, PartName, StackName};
use lrpns::net::publish::Listener;
use lrpns::plan::{
    AppPlan, BridgePlan, EgressPlan, EgressVia, IdMap, Mac, Mode, Plan, PublishPlan, Transport,
    UplinkEnd, UplinkPlan,
};
use nftables::schema::{NfListObject, NfObject, Nftables};
use nftables::stmt::Statement;
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::{Value, json};

/// A network namespace that lives as long as this value.
struct Netns(File);

impl Netns {
    fn new() -> Self {
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        Self(thread.join().unwrap())
    }

    /// Runs `inside` on a thread in it.
    fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                inside()
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// As `ip ... netns` takes it.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Runs `ip` in it, once per line.
    fn ip(&self, commands: &str) {
        self.enter(|| must("ip", &["-batch", "-"], commands));
    }
}

fn in_netns<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    Netns::new().enter(test)
}

fn run(program: &str, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

fn must(program: &str, arguments: &[&str], input: &str) -> String {
    let output = run(program, arguments, input);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {errors}\n{input}"
    );
    String::from_utf8(output.stdout).unwrap()
}

fn listing() -> Value {
    serde_json::from_str(&must("nft", &["-j", "list", "ruleset"], "")).unwrap()
}

/// What nft sees, without what differs by nature: versions, handles, counts, and the order of a set's elements.
fn listed() -> Value {
    normal(listing())
}

fn modelled(rules: &Nftables<'_>) -> Value {
    normal(to_json(rules))
}

fn normal(mut document: Value) -> Value {
    fn walk(value: &mut Value) {
        match value {
            Value::Object(members) => {
                members.remove("handle");
                if let Some(counter) = members.get_mut("counter") {
                    *counter = json!("counted");
                }
                // What the crate writes out although it isn't there.
                if let Some(Value::Object(header)) = members.get_mut("exthdr") {
                    header.retain(|_, value| !value.is_null());
                }
                if let Some(Value::Array(elements)) = members.get_mut("elem") {
                    elements.sort_by_key(ToString::to_string);
                }
                members.values_mut().for_each(walk);
            }
            Value::Array(items) => items.iter_mut().for_each(walk),
            _ => {}
        }
    }
    let objects = document["nftables"].as_array_mut().unwrap();
    objects.retain(|object| object.get("metainfo").is_none());
    walk(&mut document);
    document
}

fn assert_same(seen: &Value, wanted: &Value) {
    let (seen, wanted) = (
        seen["nftables"].as_array().unwrap(),
        wanted["nftables"].as_array().unwrap(),
    );
    for (seen, wanted) in seen.iter().zip(wanted) {
        assert_eq!(seen, wanted, "\nseen   {seen}\nwanted {wanted}");
    }
    assert_eq!(seen.len(), wanted.len());
}

/// How many packets met a rule, in the namespace of the calling thread.
fn counted(chain: &str, rule: &str) -> u64 {
    let listing = listing();
    let rules = listing["nftables"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|object| object.get("rule"));
    let found: Vec<_> = rules
        .filter(|found| found["chain"] == chain && found["comment"] == rule)
        .collect();
    assert_eq!(found.len(), 1, "rule {chain}/{rule}");
    let statements = found[0]["expr"].as_array().unwrap();
    let counter = statements
        .iter()
        .find_map(|statement| statement.get("counter"))
        .unwrap();
    counter["packets"].as_u64().unwrap()
}

fn load(rules: &Nftables<'_>) {
    transact(&Socket::open().unwrap(), &encode(rules).unwrap()).unwrap();
}

/// A stack of `apps` apps with `ports` ports each: on all addresses, on 192.0.2.1 and on the loopback in turn.
fn plan(apps: u16, ports: u16, via: impl Fn(u16) -> Transport) -> Plan {
    let ids = IdMap {
        host_id: 100_000,
        count: 2,
        uid: 1000,
        gid: 1000,
    };
    let app = |number: u16| AppPlan {
        name: PartName::new(format!("app{number}")).unwrap(),
        address: Ipv4Addr::new(172, 18, 0, 23 + number as u8),
        address6: None,
        mac: Mac([2, 0, 0, 0, 1, number as u8]),
        seccomp: lrpns::confine::seccomp::default(),
        port_link: IfName::new(format!("port{number}")).unwrap(),
        ids,
        rootfs: Rootfs::BuiltinWebapp,
        workdir: "/".into(),
        command: vec!["/webapp".into()],
        env: BTreeMap::new(),
        tmpfs: Vec::new(),
        volumes: Vec::new(),
        sockets: Vec::new(),
        secrets: Vec::new(),
        limits: Default::default(),
        start_timeout: std::time::Duration::from_secs(60),
        listen: vec![],
        after: vec![],
        job: false,
        forks: false,
        restart_limit: Default::default(),
        replace: lrpns::config::Replace::StopFirst,
        via_socket: false,
        spare: None,
        away: false,
        turn: lrpns::plan::Turn::Serves,
        health: None,
        publish: (0..ports)
            .map(|port| PublishPlan {
                protocol: lrpns::config::Protocol::Tcp,
                listen: SocketAddr::new(
                    match port % 3 {
                        0 => Ipv4Addr::UNSPECIFIED,
                        1 => Ipv4Addr::new(192, 0, 2, 1),
                        _ => Ipv4Addr::LOCALHOST,
                    }
                    .into(),
                    8000 + number * ports + port,
                ),
                entry_port: 20_000 + number * ports + port,
                app_port: 5000 + port,
                via: via(port),
                why: String::new(),
                waited: true,
            })
            .collect(),
        source: Source::Sidecar,
        egress: vec![],
        allow: lrpns::config::clients::everybody(),
        rate: None,
        closing: vec![],
        restart: Restart::No,
        stop: Default::default(),
        connect: vec![],
        serves: vec![],
    };
    Plan {
        stack: StackName::new("customer-A_1").unwrap(),
        mode: Mode::Root,
        owner: 0,
        subordinate: None,
        run: "0123abcd".into(),
        credentials: None,
        state_dir: PathBuf::from("/run/lrpns/customerA"),
        config: None,
        bridge: BridgePlan {
            name: IfName::new("customerA").unwrap(),
            address: Ipv4Addr::new(172, 18, 0, 10),
            subnet: "172.18.0.0/27".parse().unwrap(),
            address6: None,
            prefix6: None,
            mac: Mac([2, 0, 0, 0, 0, 1]),
        },
        uplink: UplinkPlan {
            ends_at: Default::default(),
            host_link: IfName::new("lrp0123abcd").unwrap(),
            host_address: Ipv4Addr::new(10, 77, 0, 0),
            host_address6: None,
            host_mac: Mac([2, 0, 0, 0, 0, 2]),
            sidecar_link: IfName::new("uplink").unwrap(),
            sidecar_address: Ipv4Addr::new(10, 77, 0, 1),
            sidecar_address6: None,
            sidecar_mac: Mac([2, 0, 0, 0, 0, 3]),
        },
        log: lrpns::config::TrafficLog::Connections,
        sidecar: ids,
        relay: ids,
        egress: None,
        seal: false,
        rules: None,
        record: Default::default(),
        sidecar_limits: Default::default(),
        relay_limits: Default::default(),
        cgroup: Default::default(),
        apps: (0..apps).map(app).collect(),
        origins: BTreeMap::new(),
    }
}

/// The same stack with a prefix, each published port at an address of IPv6 as well.
fn with_ipv6(mut plan: Plan, prefix: &str) -> Plan {
    let prefix: ipnet::Ipv6Net = prefix.parse().unwrap();
    let number = |n: u128| Some(Ipv6Addr::from_bits(prefix.network().to_bits() + n));
    plan.bridge.prefix6 = Some(prefix);
    plan.bridge.address6 = number(1);
    plan.uplink.host_address6 = Some(lrpns::net::uplink6(plan.uplink.host_address));
    plan.uplink.sidecar_address6 = Some(lrpns::net::uplink6(plan.uplink.sidecar_address));
    for (app, n) in plan.apps.iter_mut().zip(2..) {
        app.address6 = number(n);
        let six: Vec<_> = app
            .publish
            .iter()
            .map(|publish| {
                let mut publish = publish.clone();
                publish.listen.set_ip(match publish.listen.ip() {
                    ip if ip.is_unspecified() => Ipv6Addr::UNSPECIFIED.into(),
                    ip if ip.is_loopback() => Ipv6Addr::LOCALHOST.into(),
                    _ => "2001:db8::1".parse().unwrap(),
                });
                publish
            })
            .collect();
        app.publish.extend(six);
    }
    plan
}

fn plans() -> Vec<Plan> {
    let mut wide = plan(1, 2, |_| Transport::Dnat);
    wide.bridge.subnet = "172.16.0.0/12".parse().unwrap();
    let by_udp = |mut plan: Plan, every: usize| {
        for app in &mut plan.apps {
            for published in app.publish.iter_mut().step_by(every) {
                published.protocol = lrpns::config::Protocol::Udp;
            }
        }
        plan
    };
    let mut seeing = plan(2, 2, |_| Transport::Dnat);
    seeing.apps[1].source = Source::Client;
    let mut six_only = with_ipv6(plan(1, 3, |_| Transport::Dnat), "2001:db8:1::/64");
    six_only.apps[0]
        .publish
        .retain(|port| port.listen.is_ipv6());
    let mut six_unpublished = with_ipv6(plan(1, 3, |_| Transport::Dnat), "2001:db8:1::/126");
    six_unpublished.apps[0]
        .publish
        .retain(|port| port.listen.is_ipv4());
    let mut six_seeing = with_ipv6(plan(2, 2, |_| Transport::Dnat), "fd00:18::/61");
    six_seeing.apps[1].source = Source::Client;
    let mut reaching = plan(2, 1, |_| Transport::Dnat);
    let egress = |protocol, to: &str, first_port, last_port| Egress {
        protocol,
        to: to.parse().unwrap(),
        first_port,
        last_port,
    };
    reaching.apps[0].egress = vec![
        egress(Protocol::Tcp, "192.0.2.10/32", 5432, 5432),
        egress(Protocol::Udp, "192.0.2.53/32", 53, 53),
        egress(Protocol::Tcp, "10.0.0.0/8", 443, 443),
        egress(Protocol::Tcp, "192.0.2.0/29", 8000, 8010),
        egress(Protocol::Udp, "0.0.0.0/0", 1, 65535),
        egress(Protocol::Tcp, "169.254.169.254/32", 80, 80),
        // Each overlaps those before it; then two that are there before.
        egress(Protocol::Tcp, "10.1.0.0/16", 400, 500),
        egress(Protocol::Tcp, "10.1.2.3/32", 0, 65535),
        egress(Protocol::Tcp, "10.1.2.3/32", 443, 443),
        egress(Protocol::Tcp, "10.0.0.0/8", 443, 443),
        egress(Protocol::Tcp, "192.0.2.10/32", 5432, 5432),
    ];
    reaching.apps[1].egress = vec![egress(Protocol::Tcp, "0.0.0.0/0", 443, 443)];
    let mut reaching6 = with_ipv6(reaching.clone(), "fd00:18::/64");
    reaching6.apps[0].egress.extend([
        egress(Protocol::Tcp, "2001:db8::10/128", 5432, 5432),
        egress(Protocol::Udp, "2001:db8:1::/48", 8000, 8010),
        egress(Protocol::Tcp, "fd00:ec2::254/128", 80, 80),
        egress(Protocol::Tcp, "::/0", 443, 443),
    ]);
    let mut reaching_by_relay = reaching6.clone();
    reaching_by_relay.uplink.ends_at = UplinkEnd::Relay;
    reaching_by_relay.egress = Some(EgressPlan {
        via: EgressVia::Relay,
        why: "a test".to_owned(),
        ids: reaching.relay,
    });
    let mut six_reaching = with_ipv6(plan(2, 1, |_| Transport::Relay), "fd00:18::/64");
    six_reaching.apps[1].egress = vec![egress(Protocol::Udp, "2001:db8::/33", 1, 65535)];
    let mut selective = plan(3, 2, |_| Transport::Dnat);
    selective.apps[0].allow = [
        "192.0.2.0/24",
        "198.51.100.7/32",
        "10.0.0.0/9",
        "203.0.113.4/31",
    ]
    .map(|net| net.parse().unwrap())
    .to_vec();
    // Has the relay's own address in it.
    selective.apps[2].allow = vec!["10.0.0.0/8".parse().unwrap()];
    let mut selective6 = with_ipv6(selective.clone(), "fd00:18::/64");
    selective6.apps[1].allow = ["2001:db8::/33", "2001:db8:8000::7/128", "::/1"]
        .map(|net| net.parse().unwrap())
        .to_vec();
    let mut six_selective = with_ipv6(plan(2, 1, |_| Transport::Dnat), "fd00:18::/64");
    six_selective.apps[0].allow = vec!["0.0.0.0/0".parse().unwrap()];
    let mut rated = with_ipv6(plan(3, 2, |_| Transport::Dnat), "fd00:18::/64");
    for (app, (count, seconds, per_client)) in
        rated
            .apps
            .iter_mut()
            .zip([(5, 3600, true), (1_000_000, 1, true), (60, 60, false)])
    {
        app.rate = Some(Rate {
            count,
            seconds,
            per_client,
        });
    }
    let mut rated_otherwise = rated.clone();
    rated_otherwise.apps[0].rate = rated.apps[2].rate;
    rated_otherwise.apps[1].rate = rated.apps[0].rate;
    rated_otherwise.apps[2].rate = None;
    let mut relaying = plan(1, 2, |_| Transport::Relay);
    relaying.apps[0].source = Source::Client;
    relaying.uplink.ends_at = UplinkEnd::Relay;
    let mut handed = plan(2, 2, |_| Transport::Dnat);
    (handed.apps[1].via_socket, handed.apps[1].source) = (true, Source::Client);
    let mut handed6 = rated.clone();
    for app in &mut handed6.apps[..2] {
        (app.via_socket, app.source) = (true, Source::Client);
        app.allow = vec![
            "192.0.2.0/24".parse().unwrap(),
            "2001:db8::/33".parse().unwrap(),
        ];
    }
    vec![
        handed,
        handed6,
        reaching_by_relay,
        selective,
        selective6,
        six_selective,
        rated,
        rated_otherwise,
        with_ipv6(plan(1, 1, |_| Transport::Dnat), "fd00:18::/64"),
        with_ipv6(plan(1, 3, |_| Transport::Relay), "fd00:18::/64"),
        with_ipv6(by_udp(plan(2, 30, |_| Transport::Dnat), 2), "fd00:18::/9"),
        six_only,
        six_unpublished,
        six_seeing,
        plan(1, 1, |_| Transport::Dnat),
        plan(1, 1, |_| Transport::Relay),
        by_udp(plan(1, 1, |_| Transport::Dnat), 1),
        by_udp(plan(1, 1, |_| Transport::Relay), 1),
        by_udp(plan(2, 30, |_| Transport::Dnat), 2),
        plan(3, 40, |port| {
            if port % 2 == 0 {
                Transport::Dnat
            } else {
                Transport::Relay
            }
        }),
        plan(1, 300, |_| Transport::Dnat),
        plan(2, 0, |_| Transport::Dnat),
        wide,
        seeing,
        relaying,
        reaching,
        reaching6,
        six_reaching,
    ]
}

/// Every ruleset of every plan.
fn rulesets() -> Vec<Nftables<'static>> {
    plans()
        .iter()
        .flat_map(|plan| [sidecar_rules(plan), host_rules(plan)])
        .chain(of_apps())
        .collect()
}

/// The rules of apps whose clients come to their loopback: by TCP, by both, and at rows of ports.
fn of_apps() -> Vec<Nftables<'static>> {
    let mut all = plan(3, 2, |_| Transport::Dnat).apps;
    let serves = |protocol, first_port, last_port| lrpns::config::Connect {
        app: all[0].name.clone(),
        protocol,
        first_port,
        last_port,
    };
    use lrpns::config::Protocol;
    let more = [
        vec![],
        vec![serves(Protocol::Udp, 53, 53)],
        vec![
            serves(Protocol::Tcp, 7000, 7100),
            serves(Protocol::Tcp, 7050, 7101),
            serves(Protocol::Tcp, 7102, 7102),
            serves(Protocol::Udp, 1, 65_535),
        ],
    ];
    for (app, serves) in all.iter_mut().zip(more) {
        (app.source, app.serves) = (Source::Localhost, serves);
    }
    all.iter()
        .map(|app| lrpns::firewall::app_rules(app).unwrap())
        .collect()
}

#[test]
fn the_kernel_holds_what_the_model_says_when_we_load_it() {
    for rules in rulesets() {
        in_netns(|| {
            load(&rules);
            assert_same(&listed(), &modelled(&rules));
        });
    }
}

#[test]
fn the_kernel_holds_what_the_model_says_when_nft_loads_our_json() {
    for rules in rulesets() {
        in_netns(|| {
            must("nft", &["-j", "-f", "-"], &to_json(&rules).to_string());
            assert_same(&listed(), &modelled(&rules));
        });
    }
}

#[test]
fn the_kernel_holds_what_the_model_says_when_nft_loads_our_text() {
    for rules in rulesets() {
        in_netns(|| {
            let text = to_text(&rules).unwrap();
            must("nft", &["-c", "-f", "-"], &text);
            must("nft", &["-f", "-"], &text);
            assert_same(&listed(), &modelled(&rules));
        });
    }
}

/// Not only the same to read: the same instructions, so nothing is lost in nft's reading them back. Elements are listed
/// in the order of a hash, so lines are compared sorted.
#[test]
fn the_kernel_runs_the_same_instructions_whoever_loads_them() {
    fn instructions(table: &str) -> Vec<String> {
        let listing = must(
            "nft",
            &["--debug=netlink", "list", "table", "inet", table],
            "",
        );
        let mut lines: Vec<_> = listing
            .lines()
            .filter(|line| line.starts_with("  [ ") || line.starts_with("\telement "))
            .map(str::to_owned)
            .collect();
        lines.sort();
        lines
    }
    let of_apps = of_apps().into_iter();
    let of_apps = of_apps.map(|rules| vec![(lrpns::firewall::APP_TABLE.to_owned(), rules)]);
    let of_plans = plans().into_iter().map(|plan| {
        vec![
            ("lrpns".to_owned(), sidecar_rules(&plan)),
            (host_table(&plan.stack), host_rules(&plan)),
        ]
    });
    for all in of_plans.chain(of_apps) {
        for (table, rules) in all {
            let ours = in_netns(|| {
                load(&rules);
                instructions(&table)
            });
            let nfts = in_netns(|| {
                must("nft", &["-f", "-"], &to_text(&rules).unwrap());
                instructions(&table)
            });
            assert!(ours.len() > 20, "{ours:?}");
            assert_eq!(ours, nfts);
        }
    }
}

#[test]
fn our_text_is_what_nft_prints() {
    in_netns(|| {
        let plan = plan(1, 1, |_| Transport::Dnat);
        for rules in [sidecar_rules(&plan), host_rules(&plan)] {
            must("nft", &["flush", "ruleset"], "");
            load(&rules);
            assert_eq!(
                to_text(&rules).unwrap(),
                must("nft", &["list", "ruleset"], "")
            );
        }
    });
}

/// Runs `test` where the uplink's end of each plan is, with the rules that are bound to it.
fn at_each_uplink(test: impl Fn(&Nftables<'static>) + Sync) {
    let mut seen = 0;
    for plan in plans() {
        let Some(rules) = uplink_rules(&plan) else {
            continue;
        };
        seen += 1;
        in_netns(|| {
            let link = plan.uplink.host_link.as_str();
            must("ip", &["link", "add", link, "type", "veth"], "");
            test(&rules);
        });
    }
    assert!(seen > 2, "{seen}");
}

#[test]
fn the_rules_at_the_uplink_are_in_the_kernel_as_modelled_and_as_nft_would_make_them() {
    at_each_uplink(|rules| {
        // nft 1.0.6 lists no link of a chain.
        let mut wanted = modelled(rules);
        for object in wanted["nftables"].as_array_mut().unwrap() {
            if let Some(Value::Object(chain)) = object.get_mut("chain") {
                chain.remove("dev");
            }
        }
        let instructions = || {
            let listing = must("nft", &["--debug=netlink", "list", "ruleset"], "");
            let lines = listing.lines().filter(|line| line.starts_with("  [ "));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        load(rules);
        assert_same(&listed(), &wanted);
        let text = to_text(rules).unwrap();
        assert_eq!(text, must("nft", &["list", "ruleset"], ""));
        let ours = instructions();
        must("nft", &["flush", "ruleset"], "");
        must("nft", &["-f", "-"], &text);
        assert_eq!(ours, instructions());
        must("nft", &["flush", "ruleset"], "");
        must("nft", &["-j", "-f", "-"], &to_json(rules).to_string());
        assert_same(&listed(), &wanted);
    });
}

#[test]
fn rules_at_the_uplink_are_loaded_and_listed_with_the_hosts() {
    let plan = plan(1, 1, |_| Transport::Dnat);
    let at_link = uplink_rules(&plan).unwrap();
    in_netns(|| {
        let both = encode_together(&[&host_rules(&plan), &at_link]).unwrap();
        let link = plan.uplink.host_link.as_str();
        must("ip", &["link", "add", link, "type", "veth"], "");
        transact(&Socket::open().unwrap(), &both).unwrap();
        let listing = list(&Socket::open().unwrap(), &host_table(&plan.stack)).unwrap();
        assert!(listing.other_tables.is_empty());
        let labels: Vec<_> = listing.objects.iter().map(|object| &object.label).collect();
        for label in [
            "table netdev lrpns-customer-A_1",
            "chain netdev uplink-out",
            "rule uplink-in/drop-uplink-foreign",
            "rule forward/drop-as-sidecar",
        ] {
            assert!(
                labels.iter().any(|found| *found == label),
                "{label}: {labels:?}"
            );
        }
    });
}

#[test]
fn every_rule_has_a_name_of_its_own_and_a_counter_and_every_dropping_chain_ends_in_drop_rest() {
    for rules in rulesets() {
        let mut names = HashSet::new();
        let mut last = BTreeMap::new();
        let mut drops = Vec::new();
        for object in rules.objects.iter() {
            match object {
                NfObject::ListObject(NfListObject::Rule(rule)) => {
                    let name = rule.comment.clone().unwrap();
                    assert!(
                        rule.expr
                            .iter()
                            .any(|statement| matches!(statement, Statement::Counter(_)))
                    );
                    assert!(
                        names.insert((rule.chain.clone(), name.clone())),
                        "{name} is there twice"
                    );
                    last.insert(rule.chain.clone(), name);
                }
                NfObject::ListObject(NfListObject::Chain(chain))
                    if chain.policy == Some(nftables::types::NfChainPolicy::Drop) =>
                {
                    drops.push(chain.name.clone());
                }
                _ => {}
            }
        }
        for chain in drops {
            assert_eq!(last[&chain], "drop-rest", "{chain}");
        }
    }
}

#[test]
fn loading_twice_is_loading_once_and_touches_no_other_table() {
    in_netns(|| {
        must(
            "nft",
            &["-f", "-"],
            "add table ip mine\nadd chain ip mine c\nadd rule ip mine c accept",
        );
        let rules = sidecar_rules(&plan(1, 2, |_| Transport::Dnat));
        load(&rules);
        let once = listed();
        load(&rules);
        assert_same(&listed(), &once);
        assert!(once.to_string().contains("\"mine\""));
    });
}

#[test]
fn an_owned_table_is_refused_to_others_can_be_replaced_and_vanishes_with_its_socket() {
    in_netns(|| {
        let plan = plan(1, 3, |_| Transport::Dnat);
        let table = host_table(&plan.stack);
        let rules = host_rules(&plan);
        let batch = encode_owned(&rules).unwrap();
        let socket = Socket::open().unwrap();
        transact(&socket, &batch).unwrap();
        transact(&socket, &batch).unwrap();
        let mut seen = listed();
        // nft 1.0.6 writes the table's family here.
        seen["nftables"][0]["table"]
            .as_object_mut()
            .unwrap()
            .remove("flags")
            .unwrap();
        assert_same(&seen, &modelled(&rules));
        assert!(must("nft", &["list", "ruleset"], "").contains("flags owner"));

        let output = run("nft", &["delete", "table", "inet", &table], "");
        assert!(!output.status.success());
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(errors.contains("Operation not permitted"), "{errors}");
        let error = transact(&Socket::open().unwrap(), &batch).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("load table inet {table}: Operation not permitted (os error 1)")
        );
        let LoadError::Refused { source, .. } = error else {
            panic!("{error:?}")
        };
        assert_eq!(source.raw_os_error(), Some(libc::EPERM));

        drop(socket);
        assert_eq!(listed(), json!({ "nftables": [] }));
    });
}

/// Takes one object away, so that the kernel misses it.
fn without(
    rules: &Nftables<'static>,
    gone: impl Fn(&NfListObject<'_>) -> bool,
) -> Nftables<'static> {
    let mut objects = rules.objects.to_vec();
    objects.retain(|object| !matches!(object, NfObject::ListObject(object) if gone(object)));
    assert_eq!(objects.len() + 1, rules.objects.len());
    Nftables {
        objects: objects.into(),
    }
}

#[test]
fn a_refused_object_is_named_and_the_old_rules_stay() {
    in_netns(|| {
        let old = sidecar_rules(&plan(1, 1, |_| Transport::Dnat));
        load(&old);
        let new = sidecar_rules(&plan(2, 7, |_| Transport::Dnat));
        let socket = Socket::open().unwrap();
        let refused = |broken: &Nftables<'_>, object: &str, errno: i32| {
            let error = transact(&socket, &encode(broken).unwrap()).unwrap_err();
            let named = format!("load {object}: {}", io::Error::from_raw_os_error(errno));
            assert_eq!(error.to_string(), named);
            let LoadError::Refused { source, .. } = error else {
                panic!("{error:?}")
            };
            assert_eq!(source.raw_os_error(), Some(errno));
            assert_same(&listed(), &modelled(&old));
        };
        let broken = without(
            &new,
            |object| matches!(object, NfListObject::Set(set) if set.name == "services"),
        );
        refused(&broken, "rule guard/accept-app-reply", libc::ENOENT);
        let broken = without(
            &new,
            |object| matches!(object, NfListObject::Chain(chain) if chain.name == "output"),
        );
        refused(&broken, "rule output/drop-ipv6", libc::ENOENT);
        // The socket is none the worse for it.
        transact(&socket, &encode(&new).unwrap()).unwrap();
        assert_same(&listed(), &modelled(&new));
    });
}

#[test]
fn a_batch_may_be_larger_than_a_socket_buffer() {
    in_netns(|| {
        let rules = sidecar_rules(&plan(1, 4000, |_| Transport::Dnat));
        let batch = encode(&rules).unwrap();
        assert!(batch.size() > 256 * 1024, "{}", batch.size());
        transact(&Socket::open().unwrap(), &batch).unwrap();
        assert_same(&listed(), &modelled(&rules));
    });
}

#[test]
fn net_admin_over_the_namespace_is_enough_and_without_it_nothing_is_loaded() {
    use caps::{CapSet, Capability};
    for (kept, permitted) in [(Some(Capability::CAP_NET_ADMIN), true), (None, false)] {
        let result = in_netns(|| {
            caps::set(None, CapSet::Effective, &kept.into_iter().collect()).unwrap();
            caps::set(None, CapSet::Permitted, &kept.into_iter().collect()).unwrap();
            let rules = sidecar_rules(&plan(3, 40, |_| Transport::Dnat));
            transact(&Socket::open().unwrap(), &encode(&rules).unwrap())
        });
        match result {
            Ok(()) => assert!(permitted),
            Err(error) => {
                assert!(!permitted, "{error}");
                let named = "load the batch: Operation not permitted (os error 1)";
                assert_eq!(error.to_string(), named);
                let LoadError::Refused { source, .. } = error else {
                    panic!("{error:?}")
                };
                assert_eq!(source.raw_os_error(), Some(libc::EPERM));
            }
        }
    }
}

#[test]
fn what_the_encoder_does_not_know_is_an_error_that_names_it() {
    let rules = sidecar_rules(&plan(1, 1, |_| Transport::Dnat));
    let with = |change: &dyn Fn(&mut NfListObject<'static>)| {
        let mut objects = rules.objects.to_vec();
        for object in &mut objects {
            if let NfObject::ListObject(object) = object {
                change(object);
            }
        }
        Nftables {
            objects: objects.into(),
        }
    };
    let log = with(&|object| {
        if let NfListObject::Rule(rule) = object
            && rule.chain == "forward"
            && rule.comment.as_deref() == Some("accept-published")
        {
            rule.expr.to_mut().push(Statement::Log(None));
        }
    });
    assert_eq!(
        encode(&log).unwrap_err(),
        EncodeError::Unsupported {
            object: "rule forward/accept-published".into(),
            what: r#"{"log":null}"#.into()
        }
    );
    assert_eq!(
        to_text(&log).unwrap_err().to_string(),
        r#"print {"log":null}: not supported"#
    );
    let wrong = with(&|object| {
        if let NfListObject::Set(set) = object
            && set.name == "apps"
        {
            set.elem = Some(vec![nftables::expr::Expression::String("10.0.0.256".into())].into());
        }
    });
    assert_eq!(
        encode(&wrong).unwrap_err().to_string(),
        r#"encode set apps: "10.0.0.256" is no ipv4_addr"#
    );
    let timeout = with(&|object| {
        if let NfListObject::Set(set) = object {
            set.timeout = Some(1);
        }
    });
    assert!(
        encode(&timeout)
            .unwrap_err()
            .to_string()
            .starts_with("encode set services: {")
    );
}

#[test]
fn a_stack_that_only_relays_makes_the_host_track_no_connections() {
    let rules = host_rules(&plan(3, 9, |_| Transport::Relay));
    let text = to_text(&rules).unwrap();
    assert!(!text.contains("ct ") && !text.contains(" nat "), "{text}");
    let loopback = plan(1, 3, |port| {
        if port == 2 {
            Transport::Dnat
        } else {
            Transport::Relay
        }
    });
    let text = to_text(&host_rules(&loopback)).unwrap();
    assert!(
        !text.contains("dnat"),
        "loopback is relayed, whatever the plan says: {text}"
    );
}

#[test]
fn forwarding_names_what_is_in_the_way() {
    let closed = |why: &str| Forwarding::Closed { why: why.into() };
    in_netns(|| {
        let set = |value: &str| std::fs::write("/proc/sys/net/ipv4/ip_forward", value).unwrap();
        set("0");
        assert_eq!(
            forwarding(IpFamily::V4).unwrap(),
            closed("net.ipv4.ip_forward is 0")
        );
        set("1");
        assert_eq!(forwarding(IpFamily::V4).unwrap(), Forwarding::Open);

        load(&host_rules(&plan(1, 3, |_| Transport::Dnat)));
        must(
            "nft",
            &["-f", "-"],
            "add table ip6 f
             add chain ip6 f c { type filter hook forward priority 0; policy drop; }
             add table inet i
             add chain inet i c { type filter hook input priority 0; policy drop; }
             add chain inet i notbase
             add rule inet i notbase drop
             add chain inet i empty { type filter hook forward priority 0; policy accept; }
             add table ip i
             add chain ip i empty
             add rule ip i empty drop",
        );
        assert_eq!(forwarding(IpFamily::V4).unwrap(), Forwarding::Open);

        must("nft", &["add", "rule", "inet", "i", "empty", "counter"], "");
        assert_eq!(
            forwarding(IpFamily::V4).unwrap(),
            closed("chain empty of table inet i has rules")
        );
        must("nft", &["flush", "chain", "inet", "i", "empty"], "");
        let docker =
            "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }";
        must(
            "nft",
            &["-f", "-"],
            &format!("add table ip filter\n{docker}"),
        );
        assert_eq!(
            forwarding(IpFamily::V4).unwrap(),
            closed("chain FORWARD of table ip filter has policy drop")
        );

        // The same of IPv6, to which a table of family ip is nothing.
        let of_ipv6 = || forwarding(IpFamily::V6).unwrap();
        assert_eq!(of_ipv6(), closed("net.ipv6.conf.all.forwarding is 0"));
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        assert_eq!(of_ipv6(), closed("chain c of table ip6 f has policy drop"));
        must("nft", &["delete", "table", "ip6", "f"], "");
        assert_eq!(of_ipv6(), Forwarding::Open);
        must("nft", &["add", "rule", "inet", "i", "empty", "counter"], "");
        assert_eq!(of_ipv6(), closed("chain empty of table inet i has rules"));
    });
}

/// A client, a host, a sidecar and two apps, with the rules of a plan, and a server on each port of an app that says who
/// asked.
struct Stack {
    plan: Plan,
    client: Netns,
    host: Netns,
    sidecar: Netns,
    apps: [Netns; 2],
    /// What listens at the ports that are published by DNAT, which clients are translated past.
    listeners: Vec<Listener>,
}

impl Stack {
    /// The apps' ports 5000 to 5002 are published, 5003 is not; nothing listens on 5002.
    fn new(via: Transport) -> Self {
        let mut stack = Stack {
            plan: plan(2, 3, |_| via),
            client: Netns::new(),
            host: Netns::new(),
            sidecar: Netns::new(),
            apps: [Netns::new(), Netns::new()],
            listeners: vec![],
        };
        stack.sidecar.enter(|| load(&sidecar_rules(&stack.plan)));
        stack.host.enter(|| load(&host_rules(&stack.plan)));
        for router in [&stack.sidecar, &stack.host] {
            router.enter(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
        }
        stack.client.ip(&format!(
            "link add eth0 type veth peer name lan netns {}
             addr add 192.0.2.2/24 dev eth0\nlink set eth0 up\nroute add default via 192.0.2.1",
            stack.host.path()
        ));
        stack.host.ip(&format!(
            "link add lrp0123abcd type veth peer name uplink netns {}
             link set lo up
             addr add 192.0.2.1/24 dev lan\nlink set lan up
             addr add 10.77.0.0/31 dev lrp0123abcd\nlink set lrp0123abcd up\nroute add 172.18.0.0/27 via 10.77.0.1",
            stack.sidecar.path()
        ));
        stack.sidecar.ip(
            "addr add 10.77.0.1/31 dev uplink\nlink set uplink up\nroute add default via 10.77.0.0
             link add customerA type bridge\naddr add 172.18.0.10/27 dev customerA\nlink set customerA up",
        );
        for (number, app) in stack.apps.iter().enumerate() {
            stack.sidecar.ip(&format!(
                "link add port{number} type veth peer name eth0 netns {}
                 link set port{number} master customerA up",
                app.path()
            ));
            // The default route and the second address are what an attacker would like to have.
            app.ip(&format!(
                "link set lo up\nlink set eth0 address {}
                 addr add {}/27 dev eth0\naddr add 172.18.0.{}/27 dev eth0\nlink set eth0 up
                 route add default via 172.18.0.10",
                stack.plan.apps[number].mac,
                stack.plan.apps[number].address,
                5 + number
            ));
            for port in [5000, 5001, 5003] {
                let listener = app.enter(|| TcpListener::bind(("0.0.0.0", port)).unwrap());
                std::thread::spawn(move || serve(&listener, number));
            }
        }
        let all = stack.plan.published().map(|(_, port)| port);
        let by_dnat =
            all.filter(|port| port.via == Transport::Dnat && !port.listen.ip().is_loopback());
        let listeners = by_dnat.map(|port| {
            stack.host.enter(|| {
                let listener = Listener::bind(port.listen, port.protocol, port.listen).unwrap();
                listener.listen().unwrap();
                listener
            })
        });
        stack.listeners = listeners.collect();
        stack
    }

    /// `attempt` fails, and the rule says that it was the one. Time only decides how long a drop is waited for.
    fn refused(
        &self,
        at: &Netns,
        chain: &str,
        rule: &str,
        attempt: impl FnOnce() -> io::Result<String> + Send,
        from: &Netns,
    ) {
        let before = at.enter(|| counted(chain, rule));
        let result = from.enter(attempt);
        assert!(result.is_err(), "{chain}/{rule}: {result:?}");
        let deadline = Instant::now() + LONG;
        while at.enter(|| counted(chain, rule)) == before {
            assert!(
                Instant::now() < deadline,
                "{chain}/{rule} was not what refused: {result:?}"
            );
        }
    }
}

fn serve(listener: &TcpListener, number: usize) {
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        let peer = stream.peer_addr().unwrap();
        // The other side may be gone.
        let _ = write!(stream, "app{number} for {}", peer.ip());
    }
}

fn ask(address: &str, patience: Duration) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address.parse::<SocketAddr>().unwrap(), patience)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(150);

fn asks(address: &'static str) -> impl FnOnce() -> io::Result<String> + Send {
    move || ask(address, SHORT)
}

/// Asks from an address and port of the caller's choice.
fn asks_from(
    local: &'static str,
    address: &'static str,
) -> impl FnOnce() -> io::Result<String> + Send {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
    };
    move || {
        let fd = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::empty(),
            None,
        )?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        setsockopt(&fd, sockopt::ReusePort, &true)?;
        let millis = nix::sys::time::TimeVal::new(0, 150_000);
        setsockopt(&fd, sockopt::SendTimeout, &millis)?;
        bind(
            fd.as_raw_fd(),
            &SockaddrIn::from(local.parse::<SocketAddrV4>().unwrap()),
        )?;
        connect(
            fd.as_raw_fd(),
            &SockaddrIn::from(address.parse::<SocketAddrV4>().unwrap()),
        )?;
        Ok("connected".to_owned())
    }
}

fn says(address: &'static str) -> impl FnOnce() -> io::Result<String> + Send {
    move || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_broadcast(true)?;
        socket.set_read_timeout(Some(SHORT))?;
        socket.send_to(b"hello", address)?;
        socket.recv_from(&mut [0]).map(|_| "an answer".to_owned())
    }
}

#[test]
fn published_ports_answer_by_dnat_and_by_the_uplink_and_the_app_sees_the_sidecar() {
    let stack = Stack::new(Transport::Dnat);
    // 8000 on all addresses is app 0's 5000, 8001 on 192.0.2.1 its 5001; 8003 and 8004 are app 1's.
    for (address, app) in [
        ("192.0.2.1:8000", 0),
        ("192.0.2.1:8001", 0),
        ("192.0.2.1:8003", 1),
        ("192.0.2.1:8004", 1),
    ] {
        let answer = stack.client.enter(|| ask(address, LONG)).unwrap();
        assert_eq!(answer, format!("app{app} for 172.18.0.10"), "{address}");
    }
    for (address, app) in [("10.77.0.1:20000", 0), ("10.77.0.1:20003", 1)] {
        let answer = stack.host.enter(|| ask(address, LONG)).unwrap();
        assert_eq!(answer, format!("app{app} for 172.18.0.10"), "{address}");
    }
    assert_eq!(
        stack
            .sidecar
            .enter(|| counted("forward", "accept-published")),
        6
    );
    assert_eq!(
        stack.sidecar.enter(|| counted("guard", "drop-app-egress")),
        0
    );
    // One that is left is where clients come to, though the rules are the same.
    let (left, others) = stack.listeners.split_first().unwrap();
    left.leave();
    let made = stack
        .client
        .enter(|| TcpStream::connect_timeout(&"192.0.2.1:8000".parse().unwrap(), LONG))
        .unwrap();
    assert!(left.has_waiting());
    drop(made);
    assert!(!others.iter().any(Listener::has_waiting));
    // Published on the host's loopback, for the relay: not to the world.
    let refusal = stack
        .client
        .enter(|| ask("192.0.2.1:8002", LONG))
        .unwrap_err();
    assert_eq!(refusal.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn nothing_else_gets_in() {
    for via in [Transport::Dnat, Transport::Relay] {
        let stack = Stack::new(via);
        let Stack {
            client,
            host,
            sidecar,
            ..
        } = &stack;
        assert!(host.enter(|| ask("10.77.0.1:20000", LONG)).is_ok());
        // Not published: an app's port by its number, the sidecar's own, anything but TCP.
        stack.refused(
            sidecar,
            "input",
            "drop-unpublished",
            asks("10.77.0.1:5003"),
            host,
        );
        stack.refused(
            sidecar,
            "input",
            "drop-unpublished",
            asks("10.77.0.1:5000"),
            host,
        );
        stack.refused(
            sidecar,
            "input",
            "drop-unpublished",
            says("10.77.0.1:20000"),
            host,
        );
        // Past the uplink's address: the app itself, the bridge's address.
        stack.refused(
            sidecar,
            "guard",
            "drop-uplink-bypass",
            asks("172.18.0.23:5000"),
            host,
        );
        stack.refused(
            sidecar,
            "guard",
            "drop-uplink-bypass",
            asks("172.18.0.10:20000"),
            host,
        );
        // From outside, the host routes nothing there either.
        stack.refused(
            host,
            "forward",
            "drop-bypass",
            asks("10.77.0.1:20000"),
            client,
        );
        stack.refused(
            host,
            "forward",
            "drop-bypass",
            asks("172.18.0.23:5000"),
            client,
        );
        // A neighbour that plays app.
        host.ip("addr add 172.18.0.24/32 dev lo");
        stack.refused(
            sidecar,
            "guard",
            "drop-uplink-spoof",
            asks_from("172.18.0.24:5000", "10.77.0.1:20000"),
            host,
        );
    }
}

#[test]
fn an_app_starts_nothing() {
    let stack = Stack::new(Transport::Dnat);
    let Stack {
        sidecar,
        host,
        apps: [app, _],
        ..
    } = &stack;
    assert!(host.enter(|| ask("10.77.0.1:20000", LONG)).is_ok());
    let listener = host.enter(|| TcpListener::bind("0.0.0.0:9999").unwrap());
    std::thread::spawn(move || serve(&listener, 9));
    for address in [
        "10.77.0.0:9999",
        "192.0.2.1:8000",
        "192.0.2.2:1",
        "169.254.169.254:80",
        "172.18.0.10:22",
        "10.77.0.1:20000",
    ] {
        stack.refused(sidecar, "guard", "drop-app-egress", asks(address), app);
    }
    for address in [
        "10.77.0.0:53",
        "172.18.0.31:1",
        "255.255.255.255:67",
        "224.0.0.251:5353",
        "172.18.0.10:53",
    ] {
        stack.refused(sidecar, "guard", "drop-app-egress", says(address), app);
    }
    // With the source of a reply: to a stranger, and to the only one it may speak to.
    stack.refused(
        sidecar,
        "guard",
        "drop-app-egress",
        asks_from("172.18.0.23:5002", "10.77.0.0:9999"),
        app,
    );
    stack.refused(
        sidecar,
        "input",
        "drop-from-app",
        asks_from("172.18.0.23:5002", "172.18.0.10:20000"),
        app,
    );
    // With somebody else's address.
    stack.refused(
        sidecar,
        "guard",
        "drop-app-spoof",
        asks_from("172.18.0.5:5002", "172.18.0.10:20000"),
        app,
    );
    assert_eq!(
        host.enter(|| counted("input", "drop-from-sidecar")),
        0,
        "nothing came as far as the host"
    );
}

#[test]
fn a_sidecar_that_lost_its_rules_still_starts_nothing_on_the_host() {
    for via in [Transport::Dnat, Transport::Relay] {
        let stack = Stack::new(via);
        let Stack {
            sidecar,
            host,
            client,
            ..
        } = &stack;
        let listener = host.enter(|| TcpListener::bind("0.0.0.0:9999").unwrap());
        std::thread::spawn(move || serve(&listener, 9));
        stack.refused(
            sidecar,
            "output",
            "drop-rest",
            asks("10.77.0.0:9999"),
            sidecar,
        );
        sidecar.enter(|| must("nft", &["flush", "ruleset"], ""));
        stack.refused(
            host,
            "input",
            "drop-from-sidecar",
            asks("10.77.0.0:9999"),
            sidecar,
        );
        stack.refused(
            host,
            "input",
            "drop-from-sidecar",
            asks("192.0.2.1:9999"),
            sidecar,
        );
        stack.refused(
            host,
            "input",
            "drop-from-sidecar",
            asks_from("10.77.0.1:20000", "10.77.0.0:9999"),
            sidecar,
        );
        stack.refused(
            host,
            "input",
            "drop-from-sidecar",
            says("10.77.0.0:9999"),
            sidecar,
        );
        let listener = client.enter(|| TcpListener::bind("0.0.0.0:9999").unwrap());
        std::thread::spawn(move || serve(&listener, 8));
        stack.refused(
            host,
            "forward",
            "drop-from-sidecar",
            asks("192.0.2.2:9999"),
            sidecar,
        );
    }
}

/// Prints, for a report: `cargo test --test firewall -- --ignored --nocapture time`.
#[test]
#[ignore = "measures"]
fn time_of_encoding_and_loading() {
    for (apps, ports) in [(1, 1), (3, 40), (1, 300), (1, 3000)] {
        let plan = plan(apps, ports, |_| Transport::Dnat);
        for rules in [sidecar_rules(&plan), host_rules(&plan)] {
            let (mut model, mut encoding, mut loading, mut replacing, mut size) =
                (vec![], vec![], vec![], vec![], 0);
            for _ in 0..20 {
                in_netns(|| {
                    let start = Instant::now();
                    drop(sidecar_rules(&plan));
                    model.push(start.elapsed());
                    let start = Instant::now();
                    let batch = encode(&rules).unwrap();
                    encoding.push(start.elapsed());
                    size = batch.size();
                    let start = Instant::now();
                    let socket = Socket::open().unwrap();
                    transact(&socket, &batch).unwrap();
                    loading.push(start.elapsed());
                    let start = Instant::now();
                    transact(&socket, &batch).unwrap();
                    replacing.push(start.elapsed());
                });
            }
            let median = |times: &mut Vec<Duration>| {
                times.sort();
                times[times.len() / 2]
            };
            println!(
                "{apps} apps {ports} ports: {size} bytes, model {:?}, encode {:?}, open+load {:?}, replace {:?}",
                median(&mut model),
                median(&mut encoding),
                median(&mut loading),
                median(&mut replacing)
            );
        }
    }
}

/// The objects of a ruleset, to change them.
fn objects<'a>(rules: &'a mut Nftables<'static>) -> &'a mut Vec<NfObject<'static>> {
    rules.objects.to_mut()
}

/// Rulesets that differ in all that an update knows: elements, rules, their order, chains, sets and their types.
fn variants() -> Vec<Nftables<'static>> {
    let base = sidecar_rules(&plan(3, 40, |_| Transport::Dnat));
    let mut fewer_rules = base.clone();
    objects(&mut fewer_rules).retain(|object| {
        !matches!(object, NfObject::ListObject(NfListObject::Rule(rule))
            if ["drop-ipv6", "drop-rest", "accept-icmp-error"].contains(&rule.comment.as_deref().unwrap()))
    });
    let mut reversed = base.clone();
    objects(&mut reversed).reverse();
    // The order of a listing: table, sets, chains, rules.
    objects(&mut reversed).sort_by_key(|object| match object {
        NfObject::ListObject(NfListObject::Table(_)) => 0,
        NfObject::ListObject(NfListObject::Set(_) | NfListObject::Map(_)) => 1,
        NfObject::ListObject(NfListObject::Chain(_)) => 2,
        _ => 3,
    });
    let mut without_chain = base.clone();
    objects(&mut without_chain).retain(|object| match object {
        NfObject::ListObject(NfListObject::Chain(chain)) => chain.name != "forward",
        NfObject::ListObject(NfListObject::Rule(rule)) => rule.chain != "forward",
        _ => true,
    });
    let mut other_type = base.clone();
    for object in objects(&mut other_type) {
        if let NfObject::ListObject(NfListObject::Set(set)) = object
            && set.name == "apps"
        {
            set.set_type =
                nftables::schema::SetTypeValue::Single(nftables::schema::SetType::InetService);
            set.elem = None;
        }
        // What compares an address with it would no longer load.
        if let NfObject::ListObject(NfListObject::Rule(rule)) = object
            && rule.comment.as_deref() == Some("drop-app-spoof")
        {
            rule.expr = vec![Statement::Drop(None)].into();
        }
    }
    let mut accepting = base.clone();
    for object in objects(&mut accepting) {
        if let NfObject::ListObject(NfListObject::Chain(chain)) = object
            && chain.hook.is_some()
        {
            chain.policy = Some(nftables::types::NfChainPolicy::Accept);
        }
    }
    let fewer_ports = sidecar_rules(&plan(3, 7, |_| Transport::Dnat));
    let other_addresses = sidecar_rules(&plan(2, 50, |_| Transport::Dnat));
    vec![
        base,
        fewer_rules,
        reversed,
        without_chain,
        other_type,
        accepting,
        fewer_ports,
        other_addresses,
    ]
}

#[test]
fn an_update_ends_where_a_fresh_load_does_for_every_pair_of_rulesets() {
    let host: Vec<_> = plans().iter().map(host_rules).collect();
    for (table, rules) in [
        ("lrpns".to_owned(), variants()),
        (host_table(&plans()[0].stack), host),
    ] {
        let fresh: Vec<_> = rules
            .iter()
            .map(|rules| {
                in_netns(|| {
                    load(rules);
                    list(&Socket::open().unwrap(), &table).unwrap()
                })
            })
            .collect();
        assert_ne!(
            fresh[0].differences(&fresh[1]),
            Vec::<String>::new(),
            "they do differ"
        );
        for (from, old) in rules.iter().enumerate() {
            for (to, new) in rules.iter().enumerate() {
                in_netns(|| {
                    let socket = Socket::open().unwrap();
                    transact(&socket, &encode_owned(old).unwrap()).unwrap();
                    let updated = update(&socket, old, new).unwrap();
                    if from == to {
                        assert_eq!(updated, Updated::Nothing);
                    }
                    let seen = list(&socket, &table).unwrap();
                    assert_eq!(
                        seen.differences(&fresh[to]),
                        Vec::<String>::new(),
                        "{from} to {to}"
                    );
                    assert_eq!(update(&socket, new, new).unwrap(), Updated::Nothing);
                });
            }
        }
    }
}

#[test]
fn nft_sees_what_an_update_has_made() {
    let rules = variants();
    let mut pairs: Vec<_> = (1..rules.len())
        .flat_map(|other| [(0, other), (other, 0)])
        .collect();
    // A new set comes last in nft's listing, and a chain too: only the others are in the order of the model.
    pairs.retain(|pair| ![3, 4].contains(&pair.0) && ![2, 3, 4].contains(&pair.1) && pair.0 != 2);
    for (from, to) in pairs {
        in_netns(|| {
            load(&rules[from]);
            update(&Socket::open().unwrap(), &rules[from], &rules[to]).unwrap();
            assert_same(&listed(), &modelled(&rules[to]));
        });
    }
}

/// The handles of everything in the kernel that has one, with what it is.
fn identities() -> BTreeMap<String, u64> {
    let listing: Value =
        serde_json::from_str(&must("nft", &["-a", "-j", "list", "ruleset"], "")).unwrap();
    let mut found = BTreeMap::new();
    for object in listing["nftables"].as_array().unwrap() {
        let (kind, object) = object.as_object().unwrap().iter().next().unwrap();
        let name = object
            .get("comment")
            .or(object.get("name"))
            .cloned()
            .unwrap_or_default();
        let chain = object.get("chain").cloned().unwrap_or_default();
        if let Some(handle) = object["handle"].as_u64() {
            found.insert(format!("{kind} {chain} {name}"), handle);
        }
    }
    found
}

#[test]
fn an_update_leaves_every_chain_and_every_rule_that_stays_where_it_is_with_its_count() {
    in_netns(|| {
        let [base, fewer_rules] = &variants()[..2] else {
            panic!("two")
        };
        let mut counting = base.clone();
        let rules = |object: &mut NfObject<'static>, packets| {
            if let NfObject::ListObject(NfListObject::Rule(rule)) = object {
                for statement in rule.expr.to_mut() {
                    if let Statement::Counter(counter) = statement {
                        *counter = nftables::stmt::Counter::Anonymous(Some(
                            nftables::stmt::AnonymousCounter {
                                packets: Some(packets),
                                bytes: Some(0),
                            },
                        ));
                    }
                }
            }
        };
        objects(&mut counting)
            .iter_mut()
            .for_each(|object| rules(object, 7));
        load(&counting);
        let socket = Socket::open().unwrap();
        let before = identities();
        update(&socket, base, fewer_rules).unwrap();
        let fewer = identities();
        assert!(fewer.len() < before.len());
        assert!(fewer.iter().all(|(name, handle)| before[name] == *handle));
        assert_eq!(counted("guard", "drop-app-egress"), 7);
        update(&socket, fewer_rules, base).unwrap();
        let after = identities();
        for (name, handle) in &fewer {
            assert_eq!(after[name], *handle, "{name}");
        }
        assert_eq!(after.len(), before.len());
        assert_eq!(counted("guard", "drop-app-egress"), 7);
        assert_eq!(
            counted("guard", "drop-rest"),
            0,
            "a rule that is new begins anew"
        );
    });
}

#[test]
fn an_update_that_the_kernel_refuses_changes_nothing_and_names_the_object() {
    in_netns(|| {
        let rules = variants();
        load(&rules[0]);
        let before = listing();
        let mut bad = rules[6].clone();
        for object in objects(&mut bad) {
            if let NfObject::ListObject(NfListObject::Rule(rule)) = object
                && rule.comment.as_deref() == Some("drop-app-spoof")
            {
                let text = serde_json::to_string(&rule.expr)
                    .unwrap()
                    .replace("@senders", "@nobody");
                rule.expr = serde_json::from_str::<Vec<Statement<'static>>>(&text)
                    .unwrap()
                    .into();
            }
        }
        let e = update(&Socket::open().unwrap(), &rules[0], &bad).unwrap_err();
        let said = e.to_string();
        assert!(
            said.starts_with("load rule guard/drop-app-spoof: "),
            "{said}"
        );
        assert_eq!(listing(), before);
    });
}

#[test]
fn a_part_of_the_shared_table_ends_where_a_fresh_one_does_for_every_pair_and_leaves_others_alone() {
    let mut other = plan(1, 1, |_| Transport::Dnat);
    other.stack = StackName::new("other").unwrap();
    other.uplink.host_link = IfName::new("lrp00000001".to_owned()).unwrap();
    other.uplink.sidecar_address = "198.19.200.201".parse().unwrap();
    other.relay.host_id = 7_000_001;
    other.apps[0].publish[0].listen.set_port(61_000);
    let mut plans = plans();
    plans.retain(|plan| plan.uplink.ends_at == UplinkEnd::Host);
    assert!(plans.len() > 5);
    let part = |plan: &Plan| list(&Socket::open().unwrap(), &end_table(plan)).unwrap();
    let fresh: Vec<_> = plans
        .iter()
        .map(|plan| {
            in_netns(|| {
                let table = Shared::make(STACKS.as_ref()).unwrap().unwrap();
                table.enter(plan, &host_rules(plan)).unwrap();
                part(plan)
            })
        })
        .collect();
    for (from, old) in plans.iter().enumerate() {
        for (to, new) in plans.iter().enumerate() {
            // A live change leaves a stack its families.
            if old.has_ipv6() != new.has_ipv6() {
                continue;
            }
            in_netns(|| {
                let table = Shared::make(STACKS.as_ref()).unwrap().unwrap();
                assert!(
                    Shared::make(STACKS.as_ref()).unwrap().is_none(),
                    "there is one"
                );
                table.enter(&other, &host_rules(&other)).unwrap();
                let beside = part(&other);
                let (before, after) = (host_rules(old), host_rules(new));
                table.enter(old, &before).unwrap();
                let updated = table.change(old, &before, &after).unwrap();
                assert!(from != to || updated == Updated::Nothing);
                let none = Vec::<String>::new();
                assert_eq!(part(new).differences(&fresh[to]), none, "{from} to {to}");
                assert_eq!(part(&other).differences(&beside), none, "{from} to {to}");
                // Again: an earlier run's part is none that stays.
                table.enter(new, &after).unwrap();
                assert_eq!(part(new).differences(&fresh[to]), none, "{from} to {to}");
                assert_eq!(table.sweep(|stack| stack == "other").unwrap(), 1);
                assert_eq!(part(&other).differences(&beside), none, "{from} to {to}");
                assert_eq!(table.sweep(|_| true).unwrap(), 0);
                assert_eq!(table.sweep(|_| false).unwrap(), 1);
                drop(table);
                // A child of another test's has a copy until it executes.
                let deadline = Instant::now() + LONG;
                while Shared::is_there().unwrap() {
                    assert!(Instant::now() < deadline, "it goes with its socket");
                }
            });
        }
    }
}

#[test]
fn nft_makes_the_shared_table_of_what_it_prints_of_it() {
    for plan in plans() {
        if plan.uplink.ends_at != UplinkEnd::Host {
            continue;
        }
        let listing = || list(&Socket::open().unwrap(), &end_table(&plan)).unwrap();
        let (meant, text) = in_netns(|| {
            let table = Shared::make(STACKS.as_ref()).unwrap().unwrap();
            table.enter(&plan, &host_rules(&plan)).unwrap();
            let text = must("nft", &["-s", "list", "table", "inet", SHARED_TABLE], "");
            (listing(), text)
        });
        let theirs = in_netns(|| {
            must("nft", &["-f", "-"], &text.replace("flags owner", ""));
            listing()
        });
        assert_eq!(theirs.differences(&meant), Vec::<String>::new());
    }
}

#[test]
fn the_hosts_table_goes_at_once_though_the_directory_of_its_lock_has_gone() {
    let mut plans = plans();
    plans.retain(|plan| plan.uplink.ends_at == UplinkEnd::Host);
    let stacks = tempfile::tempdir().unwrap();
    in_netns(|| {
        let table = Shared::make(stacks.path()).unwrap().unwrap();
        table.enter(&plans[0], &host_rules(&plans[0])).unwrap();
        // The last stack that ends takes it along, while who takes down another is about to look.
        std::fs::remove_dir(stacks.path()).unwrap();
        assert_eq!(table.sweep(|_| true).unwrap(), 0);
        assert!(table.enter(&plans[0], &host_rules(&plans[0])).is_err());
        // Its socket is open still.
        let _socket = table.remove().unwrap();
        assert!(!Shared::is_there().unwrap());
    });
}

/// Whose lock is the shared table's.
const STACKS: &str = env!("CARGO_TARGET_TMPDIR");

#[test]
fn the_hosts_table_is_taken_from_nobody_who_is_elsewhere_or_speaks_of_something_else() {
    use nix::sys::socket::{
        AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname, socket,
    };
    use std::os::fd::AsFd;

    let (here, elsewhere) = (Netns::new(), Netns::new());
    let table = here.enter(|| Shared::make(STACKS.as_ref()).unwrap().unwrap());
    let address: NetlinkAddr = getsockname(table.as_fd().as_raw_fd()).unwrap();
    // The same address as the owner's. In another namespace everybody who is root there may have it, and a table of that name; to
    // another protocol the beginning of a transaction is a change of a link.
    let forged = |protocol| {
        let flags = SockFlag::SOCK_CLOEXEC;
        let forged = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol).unwrap();
        bind(forged.as_raw_fd(), &address).unwrap();
        forged
    };
    let is_taken = |fd| here.enter(|| matches!(Shared::from_fd(fd, STACKS.as_ref()), Ok(Some(_))));
    let there = elsewhere.enter(|| forged(SockProtocol::NetlinkNetFilter));
    assert!(!is_taken(there));
    let of_links = here.enter(|| forged(SockProtocol::NetlinkRoute));
    assert!(!is_taken(of_links));
    let its = table.as_fd().try_clone_to_owned().unwrap();
    assert!(is_taken(its));
}

//! `egress` by relay: without root, and where the host does not forward, an app reaches exactly what is listed.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Output;

use serde_json::{Value, json};
use support::lab::{CLIENT, LAB, LAB6, Lab, describe};
use support::look::{self, PYTHON};
use support::servers::{ASK, servers};
use support::user::User;

const APP: &str = "172.18.0.23";

/// Who runs stacks in a lab: the superuser, or an ordinary user.
struct Runner<'a> {
    lab: &'a Lab,
    user: Option<User<'a>>,
}

impl<'a> Runner<'a> {
    fn root(lab: &'a Lab) -> Self {
        Self { lab, user: None }
    }

    /// `None` where ordinary users may not have user namespaces.
    fn user(lab: &'a Lab) -> Option<Self> {
        let user = User::new(lab, 4321);
        user.may().then_some(Self {
            lab,
            user: Some(user),
        })
    }

    fn lrpns(&self, args: &[&str]) -> Output {
        match &self.user {
            Some(user) => user.lrpns(args),
            None => self.lab.lrpns(args),
        }
    }

    /// Those of the ordinary user.
    fn processes(&self) -> Vec<String> {
        self.user.as_ref().map_or_else(Vec::new, User::processes)
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.lrpns(args);
        assert!(output.status.success(), "{args:?}: {}", describe(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.ok(&["status", "web", "--json"])).unwrap()
    }

    fn up_file(&self, file: &str) -> Output {
        let path = self.lab.write(&format!("{}.toml", look::token()), file);
        self.lrpns(&["up", "-d", "-f", path.to_str().unwrap()])
    }

    /// A stack whose app may connect to `egress`, with `more` lines for the app.
    fn up(&self, egress: &[&str], more: &str) -> Value {
        let more = format!("egress = {}\n{more}", look::toml_list(egress));
        let file = look::telling("web", "t", "0.0.0.0:5000:5000", &more);
        let output = self.up_file(&file);
        assert!(output.status.success(), "{}", describe(&output));
        let status = self.status();
        assert_eq!(look::planned(&status, "/egress/via"), "relay");
        look::settle(self.lab, &status);
        status
    }

    /// What Python in the app says.
    fn attack(&self, code: &str) -> Value {
        let code = format!("{}\n{ASK}\n{code}", look::ATTACKS);
        let output = self.lrpns(&["exec", "web", "--part", "app", "--", PYTHON, "-c", &code]);
        assert!(output.status.success(), "{}", describe(&output));
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}", describe(&output)))
    }

    /// What the audit has found wrong or does not know.
    fn audit(&self) -> Vec<String> {
        look::findings(&self.lrpns(&["audit", "web", "--json"]).stdout)
    }
}

fn machine() -> bool {
    look::machine_with(&["setpriv", "ps"])
}

fn neighbours(lab: &Lab) {
    for address in ["10.99.0.3/24", "10.99.0.4/24", "169.254.169.254/16"] {
        lab.ok(&[
            "ip", "-n", "client", "address", "add", address, "dev", "eth0",
        ]);
    }
    lab.ok(&["ip", "route", "add", "169.254.0.0/16", "dev", "ext0"]);
}

/// Says who has asked, and how much.
fn said(bytes: usize) -> Value {
    json!(format!("{LAB} {bytes}"))
}

/// The table where the uplink ends.
fn far(status: &Value) -> (Option<i64>, &'static str) {
    (Some(look::init(status, "relay")), "lrpns-web")
}

fn sidecar(status: &Value) -> (Option<i64>, &'static str) {
    (Some(look::init(status, "sidecar")), "lrpns")
}

#[test]
fn an_ordinary_users_app_reaches_exactly_what_is_listed() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    let Some(user) = Runner::user(&lab) else {
        return;
    };
    neighbours(&lab);
    let _theirs = servers(
        &lab,
        Some("client"),
        &[
            "tcp 10.99.0.2 5432",
            "tcp 10.99.0.2 5433",
            "udp 10.99.0.2 53",
            "udp 10.99.0.2 5432",
            "tcp 10.99.0.3 5432",
            "tcp 10.99.0.3 8003",
            "udp 10.99.0.4 8000",
            "tcp 169.254.169.254 80",
        ],
    );
    let links = lab.ok(&["ip", "-j", "link"]);
    let status = user.up(
        &[
            "tcp 10.99.0.2:5432",
            "udp 10.99.0.2:53",
            "tcp 10.99.0.2/31:8000-8003",
            "udp 10.99.0.4:8000-8001",
            "tcp 169.254.169.254:80",
        ],
        "",
    );
    // Nothing of the host's was changed.
    assert_eq!(lab.ok(&["ip", "-j", "link"]), links);
    assert_eq!(lab.ok(&["nft", "list", "ruleset"]), "");
    assert_eq!(lab.ok(&["sysctl", "-n", "net.ipv4.ip_forward"]), "0\n");

    let before = look::counters(&lab, sidecar(&status).0, "lrpns");
    let found = user.attack(
        "say([ask('tcp', '10.99.0.2', 5432), ask('tcp', '10.99.0.2', 5432, 3000000), \
         ask('udp', '10.99.0.2', 53), ask('udp', '10.99.0.2', 53, 60000), ask('tcp', '10.99.0.3', 8003), \
         ask('udp', '10.99.0.4', 8000), ask('tcp', '169.254.169.254', 80)])",
    );
    let wanted = [1, 3_000_000, 1, 60_000, 1, 1, 1].map(said);
    assert_eq!(found, json!(wanted));
    // By the rules that are those of the host's own forwarding, too.
    let counted = look::since(&before, &look::counters(&lab, sidecar(&status).0, "lrpns"));
    for place in 0..5 {
        let rule = format!("forward/accept-egress-app-{place}");
        assert!(counted.contains_key(&rule), "{rule}: {counted:?}");
    }
    let refused = user.attack(
        "say([knock('10.99.0.2', 5433), ask('tcp', '10.99.0.5', 5432), ask('udp', '10.99.0.5', 53)])",
    );
    assert_eq!(
        refused,
        json!(["EINPROGRESS", "ENETUNREACH", "ENETUNREACH"])
    );
    look::settle(&lab, &status);

    // As the owner of its namespace, with a route to everywhere and no Landlock.
    let app = look::pid(&status, "app");
    look::route_everywhere(&lab, app);
    let heard = look::counters(&lab, far(&status).0, far(&status).1);
    for (what, attack, packets) in [
        ("the port after", "knock('10.99.0.2', 5433)", 1),
        ("the port before the first", "knock('10.99.0.3', 7999)", 1),
        ("the port after the last", "knock('10.99.0.3', 8004)", 1),
        ("the other protocol", "throw('10.99.0.2', 5432)", 1),
        ("the address after the last", "knock('10.99.0.4', 8000)", 1),
        (
            "another address of a listed port",
            "knock('10.99.0.3', 5432)",
            1,
        ),
        ("the host", &format!("knock('{LAB}', 5432)"), 1),
        (
            "another link-local address",
            "knock('169.254.169.253', 80)",
            1,
        ),
    ] {
        println!("{what}");
        let before = look::counters(&lab, sidecar(&status).0, "lrpns");
        look::attack_beside(&lab, app, &format!("me = '{APP}'\n{attack}\nsay(1)"));
        let dropped = [("guard/drop-app-egress", packets)];
        look::assert_counted(&lab, sidecar(&status), &before, &dropped);
    }
    let now = look::counters(&lab, far(&status).0, far(&status).1);
    assert_eq!(
        look::since(&heard, &now),
        look::Counters::new(),
        "nothing came further"
    );
    let log = user.ok(&["logs", "web", "--part", "traffic"]);
    for words in [
        "-> 10.99.0.2:5432 opened",
        "refused by guard/drop-app-egress: tcp 172.18.0.23:",
    ] {
        assert!(log.contains(words), "no `{words}` in {log}");
    }
    // Which it would find.
    look::beside(&lab, app, &["ip", "route", "del", "default"]);
    assert_eq!(user.audit(), Vec::<String>::new());

    user.ok(&["down", "web"]);
    assert_eq!(user.processes(), Vec::<String>::new());
}

#[test]
fn carrier_and_dialer_hold_nothing_and_only_the_dialer_is_in_the_hosts_network() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    let Some(user) = Runner::user(&lab) else {
        return;
    };
    for runner in [user, Runner::root(&lab)] {
        let status = runner.up(&["tcp 10.99.0.2:5432", "udp 10.99.0.2:53"], "");
        let (carrier, dialer) = (look::init(&status, "egress"), look::pid(&status, "egress"));
        assert_ne!(carrier, dialer);
        for pid in [carrier, dialer] {
            assert_eq!(look::capabilities(&lab, pid), ["0000000000000000"; 5]);
            for (name, value) in [("NoNewPrivs", "1"), ("Seccomp", "2"), ("Groups", "")] {
                assert_eq!(look::status_line(&lab, pid, name), value, "{name}");
            }
            let uids = look::status_line(&lab, pid, "Uid");
            assert!(!uids.split_whitespace().any(|uid| uid == "0"), "{uids}");
            let mounts = look::mounts(&lab, pid);
            assert!(mounts.len() == 1 && mounts[0].has("ro"), "{mounts:?}");
            let shared = look::namespace(&lab, &pid.to_string(), "user");
            assert_ne!(shared, look::namespace(&lab, "self", "user"));
        }
        let net = |pid: i64| look::namespace(&lab, &pid.to_string(), "net");
        assert_eq!(net(dialer), look::namespace(&lab, "self", "net"));
        // The carrier's has loopback alone, which is down.
        let links = look::json(&lab, Some(carrier), &["ip", "-j", "link"]);
        let names: Vec<_> = links.as_array().unwrap().iter().collect();
        assert_eq!(names.len(), 1, "{links}");
        assert_eq!(names[0]["operstate"], "DOWN", "{links}");
        // Neither keeps the supervisor's side of anything, nor the other's sockets.
        let sockets = |pid: i64| {
            let links = look::links(&lab, pid, "fd");
            links
                .values()
                .filter(|to| to.starts_with("socket:"))
                .count()
        };
        // Conversation with the supervisor twice, with the dialer, a waker of the runtime's, the listening socket.
        assert!(
            sockets(carrier) <= 8,
            "{:?}",
            look::links(&lab, carrier, "fd")
        );
        assert!(
            sockets(dialer) <= 6,
            "{:?}",
            look::links(&lab, dialer, "fd")
        );
        let processes = status["processes"].as_array().unwrap();
        let roles: Vec<_> = processes
            .iter()
            .filter(|process| process["part"] == "egress")
            .map(|process| process["role"].as_str().unwrap())
            .collect();
        assert_eq!(roles, ["init", "dialer"]);
        runner.ok(&["down", "web"]);
    }
}

#[test]
fn whoever_breaks_into_sidecar_or_relay_reaches_what_the_apps_may_at_most() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    let Some(user) = Runner::user(&lab) else {
        return;
    };
    neighbours(&lab);
    let _theirs = servers(
        &lab,
        Some("client"),
        &[
            "tcp 10.99.0.2 5432",
            "tcp 10.99.0.2 5433",
            "tcp 10.99.0.3 5432",
            "udp 10.99.0.3 53",
        ],
    );
    let _hosts = servers(&lab, None, &["tcp 0.0.0.0 5432", "udp 0.0.0.0 53"]);
    let status = user.up(&["tcp 10.99.0.0/30:5432", "udp 10.99.0.2:53"], "");
    let uplink = look::planned(&status, "/uplink/host_address").to_owned();

    // The sidecar's rules are gone: what is left are those at the other end, and the dialer.
    look::beside(
        &lab,
        look::init(&status, "sidecar"),
        &["nft", "flush", "ruleset"],
    );
    let before = look::counters(&lab, far(&status).0, far(&status).1);
    let found = look::attack_beside(
        &lab,
        look::init(&status, "sidecar"),
        &format!(
            "{ASK}\nfirst = [ask('tcp', '10.99.0.3', 5432), ask('tcp', '{LAB}', 5432)]\n\
             knock('10.99.0.2', 5433)\nthrow('10.99.0.2', 5432)\nthrow('10.99.0.3', 53)\nknock('10.99.0.4', 5432)\n\
             knock('{uplink}', 5432)\nknock('169.254.169.254', 5432)\nsay(first)"
        ),
    );
    // The host is in the range, and is not meant by it.
    assert_eq!(found, json!([said(1), "ECONNRESET"]));
    // The link-local one has no way there that a rule would see.
    let dropped = [("input/drop-from-sidecar", 5)];
    look::assert_dropped(&lab, far(&status), &before, &dropped);

    // The relay's namespace has every address, and so the very sockets that the sidecar's connections come to.
    let before = look::counters(&lab, far(&status).0, far(&status).1);
    look::attack_beside(
        &lab,
        look::init(&status, "relay"),
        "knock('10.99.0.3', 5432)\nthrow('10.99.0.2', 53)\nknock('127.0.0.1', 5432)\nsay(1)",
    );
    look::assert_dropped(&lab, far(&status), &before, &[("input/drop-within", 3)]);
}

#[test]
fn the_ends_of_a_connection_are_passed_on_as_they_were() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    let Some(user) = Runner::user(&lab) else {
        return;
    };
    let _theirs = servers(&lab, Some("client"), &["tcp 10.99.0.2 5432"]);
    user.up(&["tcp 10.99.0.2:5432-5433", "udp 10.99.0.2:5433"], "");
    // An end of one direction: the server answers after it, in `ask`. Nobody listens at the other port.
    let found =
        user.attack("say([ask('tcp', '10.99.0.2', 5432, 100000), ask('tcp', '10.99.0.2', 5433)])");
    assert_eq!(found, json!([said(100_000), "ECONNRESET"]));
    // A new process of both, and of whichever ends: connections wait for it.
    for part in ["egress", "sidecar", "relay"] {
        user.ok(&["restart", "web", part]);
        let found = user.attack("say(ask('tcp', '10.99.0.2', 5432))");
        assert_eq!(found, said(1), "after a restart of {part}");
    }
    for which in ["init", "pid"] {
        let of = |status: &Value| look::part(status, "egress")[which].as_i64();
        let victim = of(&user.status());
        lab.ok(&["kill", "-9", &victim.unwrap().to_string()]);
        look::eventually("another carrier and dialer run", &true, || {
            let now = user.status();
            let part = look::part(&now, "egress");
            part["state"] == "running" && part["pid"] != part["init"] && of(&now) != victim
        });
        let found = user.attack("say(ask('tcp', '10.99.0.2', 5432))");
        assert_eq!(found, said(1), "after the end of {which}");
    }
    // No process of an earlier one is left.
    let mut all = user.processes();
    all.retain(|process| process.contains("web/egress"));
    assert_eq!(all.len(), 2, "{all:?}");
}

#[test]
fn as_root_egress_is_by_relay_where_the_host_does_not_forward_or_the_file_says_so() {
    if !machine() {
        return;
    }
    for (lab, more, why) in [
        (Lab::new(), "", "net.ipv4.ip_forward is 0"),
        (Lab::forwarding(), "via = \"relay\"", "as configured"),
        (
            Lab::new(),
            "source = \"client\"",
            "net.ipv4.ip_forward is 0",
        ),
    ] {
        let root = Runner::root(&lab);
        let _theirs = servers(
            &lab,
            Some("client"),
            &["tcp 10.99.0.2 5432", "udp 10.99.0.2 53"],
        );
        let _hosts = servers(&lab, None, &["tcp 0.0.0.0 7000"]);
        let forwards = lab.ok(&["sysctl", "-n", "net.ipv4.ip_forward"]);
        let status = root.up(
            &[
                "tcp 10.99.0.2:5432",
                "udp 10.99.0.2:53",
                "tcp 10.99.0.1:7000",
                "tcp 10.0.0.0/8:7000",
            ],
            more,
        );
        assert_eq!(look::planned(&status, "/egress/why"), why);
        assert_eq!(look::planned(&status, "/uplink/ends_at"), "relay");
        assert_eq!(lab.ok(&["nft", "list", "ruleset"]), "");
        assert_eq!(lab.ok(&["sysctl", "-n", "net.ipv4.ip_forward"]), forwards);
        let found = root.attack(&format!(
            "say([ask('tcp', '{CLIENT}', 5432), ask('udp', '{CLIENT}', 53), ask('tcp', '{LAB}', 7000)])"
        ));
        assert_eq!(found, json!([said(1), said(1), said(1)]), "{more}");
        let answer = lab.client_get(&format!("http://{LAB}:5000/")).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let seen = if more.contains("client") {
            CLIENT
        } else {
            "172.18.0.33"
        };
        assert_eq!(answer["peer"], seen, "{more}");
        assert_eq!(root.audit(), Vec::<String>::new(), "{more}");
        root.ok(&["down", "web"]);
    }
}

#[test]
fn an_app_that_publishes_nothing_has_egress_and_stands_its_audit() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    let Some(user) = Runner::user(&lab) else {
        return;
    };
    let _theirs = servers(&lab, Some("client"), &["tcp 10.99.0.2 5432"]);
    let output = user.up_file(
        "name = \"web\"\n[app]\nrootfs = \"host\"\ncommand = [\"/bin/sleep\", \"1000\"]\negress = [\"tcp 10.99.0.2:5432\"]\n",
    );
    assert!(output.status.success(), "{}", describe(&output));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("egress by relay, an ordinary user"), "{told}");
    assert_eq!(user.attack("say(ask('tcp', '10.99.0.2', 5432))"), said(1));
    assert_eq!(user.audit(), Vec::<String>::new());
}

#[test]
fn more_ports_than_there_are_sockets_for_are_refused_with_a_hint() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    let Some(user) = Runner::user(&lab) else {
        return;
    };
    let up = |ports: &str| {
        let more = format!("egress = [\"tcp 10.99.0.2:{ports}\", \"tcp 10.99.0.0/24:2000\"]");
        user.up_file(&look::telling("web", "t", "0.0.0.0:5000:5000", &more))
    };
    let output = up("1000-2024");
    assert_eq!(output.status.code(), Some(125), "{}", describe(&output));
    let said_it = String::from_utf8_lossy(&output.stderr).into_owned();
    for words in ["1025 are more than 1024", "an ordinary user", "hint: "] {
        assert!(said_it.contains(words), "no `{words}` in {said_it}");
    }
    // As many as there may be: the last one works.
    let output = up("1001-2024");
    assert!(output.status.success(), "{}", describe(&output));
    let _theirs = servers(&lab, Some("client"), &["tcp 10.99.0.2 2024"]);
    assert_eq!(user.attack("say(ask('tcp', '10.99.0.2', 2024))"), said(1));
    // A change of it needs a new start.
    let more = "egress = [\"tcp 10.99.0.2:2000\"]";
    let path = lab.write(
        "other.toml",
        &look::telling("web", "t", "0.0.0.0:5000:5000", more),
    );
    let output = user.lrpns(&["apply", "-f", path.to_str().unwrap()]);
    assert!(!output.status.success());
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("egress"), "{told}");
}

#[test]
fn by_ipv6_an_ordinary_users_app_reaches_exactly_what_is_listed() {
    if !machine() {
        return;
    }
    let lab = Lab::new().with_ipv6();
    let Some(user) = Runner::user(&lab) else {
        return;
    };
    for address in ["2001:db8::3/64", "fd00:ec2::254/128"] {
        lab.ok(&[
            "ip", "-n", "client", "-6", "address", "add", address, "dev", "eth0", "nodad",
        ]);
    }
    lab.ok(&["ip", "-6", "route", "add", "fd00:ec2::254", "dev", "ext0"]);
    let _theirs = servers(
        &lab,
        Some("client"),
        &[
            "tcp 2001:db8::2 5432",
            "tcp 2001:db8::2 5433",
            "udp 2001:db8::2 53",
            "tcp 2001:db8::3 8003",
            "tcp fd00:ec2::254 8003",
        ],
    );
    let _hosts = servers(&lab, None, &["tcp :: 8003", "tcp :: 7000"]);
    let file = format!(
        "name = \"web\"\n[network]\nipv6 = \"fd00:18::/64\"\n[app]\nrootfs = \"host\"\ncommand = [\"/bin/sleep\", \"1000\"]\negress = {}\n",
        look::toml_list(&[
            "tcp [2001:db8::2]:5432",
            "udp [2001:db8::2]:53",
            "tcp [::/0]:8000-8003",
            &format!("tcp [{LAB6}]:7000"),
        ])
    );
    let output = user.up_file(&file);
    assert!(output.status.success(), "{}", describe(&output));
    let found = user.attack(&format!(
        "say([ask('tcp', '2001:db8::2', 5432, 100000), ask('udp', '2001:db8::2', 53, 1000), \
         ask('tcp', '2001:db8::3', 8003), ask('tcp', '{LAB6}', 7000), ask('tcp', '{LAB6}', 8003), \
         knock6('2001:db8::2', 5433)])"
    ));
    let told = |bytes: usize| json!(format!("{LAB6} {bytes}"));
    // The range is not the host, whose own address it has in it.
    assert_eq!(
        found,
        json!([
            told(100_000),
            told(1000),
            told(1),
            told(1),
            "ECONNRESET",
            "EINPROGRESS"
        ])
    );
    // Nor where a cloud tells its credentials.
    let status = user.status();
    look::settle(&lab, &status);
    let before = look::counters(&lab, sidecar(&status).0, "lrpns");
    look::attack_beside(
        &lab,
        look::pid(&status, "app"),
        "s = socket.socket(socket.AF_INET6)\ns.setblocking(False)\ns.connect_ex(('fd00:ec2::254', 8003))\nsay(1)",
    );
    let dropped = [("guard/drop-app-metadata6", 1)];
    look::assert_counted(&lab, sidecar(&status), &before, &dropped);
    assert_eq!(user.audit(), Vec::<String>::new());
}

#[test]
fn a_host_that_has_ceased_to_forward_makes_no_other_stack_of_one_that_runs() {
    if !machine() {
        return;
    }
    let lab = Lab::forwarding();
    let root = Runner::root(&lab);
    let more = "egress = [\"tcp 10.99.0.2:5432\"]";
    let file = look::telling("web", "t", "0.0.0.0:5000:5000", more);
    let path = lab.write("web.toml", &file);
    let up = || root.lrpns(&["up", "-d", "-f", path.to_str().unwrap()]);
    let output = up();
    assert!(output.status.success(), "{}", describe(&output));
    assert_eq!(look::planned(&root.status(), "/egress/via"), "nat");
    lab.ok(&["sysctl", "-qw", "net.ipv4.ip_forward=0"]);
    let again = up();
    let told = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(again.status.success(), "{told}");
    assert!(told.contains("nothing was changed"), "{told}");
}

#[test]
fn more_connections_than_the_host_has_ports_left_reach_one_destination() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    // Three hundred ports, and what closes first keeps each for a minute.
    for setting in [
        "net.ipv4.ip_local_port_range=40000 40299",
        "net.ipv4.tcp_tw_reuse=0",
    ] {
        lab.ok(&["sysctl", "-qw", setting]);
    }
    let root = Runner::root(&lab);
    let _theirs = servers(&lab, Some("client"), &["tcp 10.99.0.2 5432"]);
    root.up(&["tcp 10.99.0.2:5432"], "");
    let found = root.attack(
        "found = {}
for _ in range(900):
    one = ask('tcp', '10.99.0.2', 5432)
    found[one] = found.get(one, 0) + 1
say(found)",
    );
    assert_eq!(found, json!({ format!("{LAB} 1"): 900 }));
    let waiting = lab.ok(&["ss", "-tanH", "state", "time-wait", "dst", "10.99.0.2"]);
    let waiting = waiting.lines().count();
    assert!((100..=300).contains(&waiting), "{waiting} in TIME-WAIT");
    assert_eq!(root.audit(), Vec::<String>::new());
}

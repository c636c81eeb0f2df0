//! `connect`: an app reaches exactly the ports of others that it was granted, by way of the sidecar, and nobody else does.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::Value;
use support::lab::{Lab, describe, until};
use support::look::{self, PYTHON, toml_list};
use support::servers::ASK;
use support::user::User;

/// Says to whom it is talking, on ports of TCP and UDP that its arguments name.
const SERVER: &str = r#"
import selectors, socket, sys
chosen = selectors.DefaultSelector()
for where in sys.argv[1:]:
    kind, port = where.split("/")
    s = socket.socket(socket.AF_INET6, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    s.bind(("::", int(port)))
    if kind == "tcp":
        s.listen()
    chosen.register(s, selectors.EVENT_READ, kind)
def name(peer): return peer[0].removeprefix("::ffff:")
while True:
    for key, _ in chosen.select():
        if key.data == "tcp":
            c, peer = key.fileobj.accept()
            with c:
                while c.recv(99): pass
                c.sendall(name(peer).encode())
        else:
            _, peer = key.fileobj.recvfrom(99)
            key.fileobj.sendto(name(peer).encode(), peer)
"#;

/// The same without IPv6.
fn server(ipv6: bool) -> String {
    match ipv6 {
        true => SERVER.to_owned(),
        false => SERVER
            .replace("AF_INET6", "AF_INET")
            .replace(
                "    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)\n",
                "",
            )
            .replace("\"::\"", "\"0.0.0.0\""),
    }
}

/// web may reach some ports of db; cache may reach nothing.
fn shop(ipv6: bool, web: &str, cache: &str) -> String {
    let app = |name: &str, ports: &[&str], more: &str| {
        let server = server(ipv6);
        let command = [&[PYTHON, "-c", &server], ports].concat();
        format!(
            "[app.{name}]\nrootfs = \"host\"\ncommand = {}\n{more}\n",
            toml_list(&command)
        )
    };
    let prefix = if ipv6 {
        "ipv6 = \"fd00:18::/64\"\n"
    } else {
        ""
    };
    format!(
        "name = \"shop\"\n[network]\nsubnet = \"172.18.0.0/24\"\n{prefix}{}{}{}",
        app(
            "db",
            &["tcp/5432", "tcp/5433", "tcp/7001", "udp/5353"],
            "address = \"172.18.0.10\"\nlisten = [5433]"
        ),
        app(
            "cache",
            &["tcp/6379"],
            &format!("address = \"172.18.0.11\"\nlisten = [6379]\n{cache}")
        ),
        app(
            "web",
            &["tcp/5000"],
            &format!("address = \"172.18.0.12\"\npublish = [\"0.0.0.0:5000:5000\"]\n{web}")
        ),
    )
}

const GRANTED: &str = r#"connect = ["db:5432", "db:7000-7002", "db:5353/udp"]"#;

/// Asks by `ask` of servers.rs.
fn question(kind: &str, address: &str, port: u16) -> String {
    format!("import socket, errno\n{ASK}\nprint(ask(\"{kind}\", \"{address}\", {port}).strip())")
        .replace("s.settimeout(20)", "s.settimeout(2)")
}

/// What an app hears from another, under all that confines it.
fn ask(lab: &Lab, app: &str, kind: &str, address: &str, port: u16) -> String {
    let code = question(kind, address, port);
    let said = lab.lrpns_ok(&["exec", "shop", "--part", app, "--", PYTHON, "-c", &code]);
    said.trim().to_owned()
}

/// What somebody hears who is in the app's network namespace and whom nothing else confines.
fn ask_beside(lab: &Lab, app: &str, kind: &str, address: &str, port: u16) -> String {
    let code = question(kind, address, port);
    let pid = look::init(&lab.status("shop"), app);
    look::beside(lab, pid, &[PYTHON, "-c", &code])
        .trim()
        .to_owned()
}

fn is_refused(answer: &str) -> bool {
    ["EACCES", "ENETUNREACH", "timed out", "EHOSTUNREACH"].contains(&answer)
}

/// What the audit found wrong of the network, of who may reach whom.
fn found(report: &[u8]) -> Vec<String> {
    let all = look::findings(report).into_iter();
    all.filter(|finding| !finding.starts_with("process-"))
        .collect()
}

fn apply(lab: &Lab, file: &str) {
    let path = lab.write("shop.toml", file);
    let output = lab.lrpns(&["apply", "-f", path.to_str().unwrap()]);
    assert!(output.status.success(), "{}", describe(&output));
}

#[test]
fn an_app_reaches_what_it_was_granted_of_another_and_nobody_else_does() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    look::up(&lab, &shop(false, GRANTED, ""));
    for (kind, port) in [("tcp", 5432), ("tcp", 7001), ("udp", 5353)] {
        assert_eq!(
            ask(&lab, "web", kind, "db", port),
            "172.18.0.12",
            "{kind} {port}"
        );
        for (app, to) in [("cache", "172.18.0.10"), ("db", "172.18.0.12")] {
            let answer = ask_beside(&lab, app, kind, to, port);
            assert!(is_refused(&answer), "{app}: {answer}");
        }
    }
    // The port and the protocol beside, its own server, and another app.
    assert_eq!(
        ask(&lab, "web", "tcp", "db", 5433),
        look::refused_tcp("timed out")
    );
    for (kind, address, port) in [
        ("tcp", "172.18.0.10", 5433),
        ("udp", "172.18.0.10", 5432),
        ("tcp", "172.18.0.10", 5353),
        ("tcp", "172.18.0.11", 6379),
    ] {
        let answer = ask_beside(&lab, "web", kind, address, port);
        assert!(is_refused(&answer), "{kind} {address} {port}: {answer}");
    }
    let answer = ask_beside(&lab, "db", "tcp", "172.18.0.12", 5000);
    assert!(is_refused(&answer), "{answer}");
    // A port that nobody listens on says so at once.
    assert_eq!(ask(&lab, "web", "tcp", "db", 7002), "ECONNREFUSED");

    let hosts =
        |app: &str| lab.lrpns_ok(&["exec", "shop", "--part", app, "--", "cat", "/etc/hosts"]);
    assert!(
        hosts("web").contains("172.18.0.12 web\n172.18.0.10 db\n"),
        "{}",
        hosts("web")
    );
    assert!(!hosts("web").contains("cache"));
    // Whom a server sees that is published has a name; who sees nobody needs none.
    assert!(hosts("web").contains(" sidecar\n") && !hosts("db").contains("sidecar"));
    assert!(hosts("db").contains("172.18.0.10 db\n") && !hosts("db").contains("web"));

    let log = until("the log has it", || {
        let log = lab.lrpns_ok(&["logs", "shop", "--part", "traffic"]);
        log.contains("app web -> app db:5353").then_some(log)
    });
    assert!(
        log.contains("tcp app web -> app db:5432 (172.18.0.12:"),
        "{log}"
    );
    assert!(
        log.contains("app db -> app web, tcp"),
        "refusals have names too: {log}"
    );
    let tables = lab.lrpns_ok(&["rules", "shop", "--counters", "--json"]);
    let counters = look::told_counters(&tables, "sidecar");
    assert_eq!(
        counters["forward/accept-connect-web-db-5432"], 1,
        "{counters:?}"
    );
    assert_eq!(
        counters["forward/accept-connect-web-db-7000-7002"], 2,
        "{counters:?}"
    );

    let audit = lab.lrpns(&["audit", "shop", "--json"]);
    assert_eq!(found(&audit.stdout), Vec::<String>::new());
    let counters = look::told_counters(
        &lab.lrpns_ok(&["rules", "shop", "--counters", "--json"]),
        "sidecar",
    );
    assert!(
        counters["guard/drop-app-egress"] > 10,
        "every pair was attacked: {counters:?}"
    );
}

#[test]
fn links_come_and_go_while_the_stack_runs() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let up = lab.write("shop.toml", &shop(false, GRANTED, ""));
    lab.lrpns_ok(&["up", "-d", "-f", up.to_str().unwrap()]);
    let before = lab.status("shop");
    assert_eq!(ask(&lab, "web", "tcp", "db", 5432), "172.18.0.12");

    // One more app is let in, and one port fewer: db runs on, and so does web.
    apply(
        &lab,
        &shop(
            false,
            r#"connect = ["db:7000-7002", "db:5353/udp"]"#,
            r#"connect = ["db:5432"]"#,
        ),
    );
    let answer = ask_beside(&lab, "web", "tcp", "172.18.0.10", 5432);
    assert!(is_refused(&answer), "{answer}");
    assert_eq!(ask(&lab, "web", "tcp", "db", 7001), "172.18.0.12");
    assert_eq!(ask(&lab, "cache", "tcp", "db", 5432), "172.18.0.11");
    let now = lab.status("shop");
    for app in ["web", "db"] {
        assert_eq!(look::init(&before, app), look::init(&now, app), "{app}");
    }

    apply(&lab, &shop(false, "", ""));
    for (app, port) in [("cache", 5432), ("web", 7001)] {
        let answer = ask_beside(&lab, app, "tcp", "172.18.0.10", port);
        assert!(is_refused(&answer), "{answer}");
        assert!(
            !look::routes(&lab, look::init(&lab.status("shop"), app), "-4")
                .contains(&"172.18.0.10".to_owned())
        );
    }
}

#[test]
fn by_ipv6_as_by_ipv4() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new().with_ipv6();
    look::up(&lab, &shop(true, GRANTED, ""));
    let status = lab.status("shop");
    let address = |name: &str| {
        let apps = status["plan"]["apps"].as_array().unwrap().iter();
        let mut apps = apps.filter(|app| app["name"] == name);
        apps.next().unwrap()["address6"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let (db, web) = (address("db"), address("web"));
    for (kind, port) in [("tcp", 5432), ("udp", 5353)] {
        assert_eq!(ask(&lab, "web", kind, &db, port), web);
        let answer = ask_beside(&lab, "cache", kind, &db, port);
        assert!(is_refused(&answer), "{answer}");
    }
    let answer = ask_beside(&lab, "web", "tcp", &db, 5433);
    assert!(is_refused(&answer), "{answer}");
    let audit = lab.lrpns(&["audit", "shop", "--json"]);
    assert_eq!(found(&audit.stdout), Vec::<String>::new());
}

#[test]
fn the_names_are_put_over_a_roots_own_hosts() {
    if !look::machine_with(&["busybox"]) {
        return;
    }
    let lab = Lab::new();
    let root = lab.dir.path().join("root");
    let script = format!(
        "mkdir -p {0}/bin {0}/proc {0}/dev {0}/tmp {0}/etc && cp $(command -v busybox) {0}/bin/busybox && \
         echo '192.0.2.7 db elsewhere' >{0}/etc/hosts",
        root.display()
    );
    lab.ok(&["sh", "-c", &script]);
    let file = format!(
        "name = \"own\"\n[app.web]\nrootfs = \"dir:{0}\"\ncommand = [\"/bin/busybox\", \"sleep\", \"1000\"]\nconnect = [\"db:5432\"]\n\
         [app.db]\nrootfs = \"dir:{0}\"\ncommand = [\"/bin/busybox\", \"sleep\", \"1000\"]\n",
        root.display()
    );
    look::up(&lab, &file);
    let cat = ["/bin/busybox", "cat", "/etc/hosts"];
    let hosts = lab.lrpns_ok(&[&["exec", "own", "--part", "web", "--"][..], &cat].concat());
    assert!(
        hosts.contains(" web\n") && hosts.contains(" db\n"),
        "{hosts}"
    );
    assert!(!hosts.contains("elsewhere"), "{hosts}");
    let write = ["/bin/busybox", "sh", "-c", "echo x >/etc/hosts"];
    let write = lab.lrpns(&[&["exec", "own", "--part", "web", "--"][..], &write].concat());
    assert!(!write.status.success(), "it is read-only");
}

#[test]
fn plan_says_who_may_reach_whom_and_what_egress_can_not_be() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let file = lab.write("shop.toml", &shop(false, GRANTED, ""));
    let file = file.to_str().unwrap();
    let text = lab.lrpns_ok(&["plan", "-f", file]);
    let row = |name: &str| {
        let mut lines = text
            .lines()
            .skip_while(|line| !line.starts_with("who may reach whom"));
        // The names of the columns.
        let _ = lines.by_ref().nth(1);
        let line = lines.find(|line| line.trim_start().starts_with(&format!("{name} ")));
        line.unwrap()
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(row("web"), ["web", "5432,7000-7002,5353/udp", ".", "."]);
    assert_eq!(row("clients"), ["clients", ".", ".", "5000"]);
    assert_eq!(row("db"), ["db", ".", ".", "."]);
    let plan: Value = serde_json::from_str(&lab.lrpns_ok(&["plan", "-f", file, "--json"])).unwrap();
    let reach = &plan["reach"];
    assert_eq!(reach.as_array().unwrap().len(), 2, "{reach}");
    assert_eq!(reach[1]["from"], "web");
    assert_eq!(reach[1]["to"], "db");
    assert_eq!(
        reach[1]["ports"],
        serde_json::json!(["5432", "7000-7002", "5353/udp"])
    );

    let wrong = |web: &str| {
        let path = lab.write("wrong.toml", &shop(false, web, ""));
        lab.lrpns_err(&["plan", "-f", path.to_str().unwrap()])
    };
    let (code, said) = wrong(r#"egress = ["tcp 172.18.0.10:5432"]"#);
    assert_eq!(code, 2, "{said}");
    assert!(
        said.contains(r#"hint: apps of a stack reach each other by connect = ["db:5432"] of web"#),
        "{said}"
    );
    for (web, expected) in [
        ("connect = [\"dbb:5432\"]", "the nearest is `db`"),
        ("connect = [\"web:5432\"]", "`web` is this app itself"),
        ("connect = [\"db\"]", "no port of an app"),
    ] {
        let (code, said) = wrong(web);
        assert_eq!(code, 2, "{said}");
        assert!(said.contains(expected), "{expected}: {said}");
    }
}

#[test]
fn the_same_without_root() {
    if !look::machine_with(&["setpriv"]) {
        return;
    }
    let lab = Lab::new();
    let user = User::new(&lab, 4321);
    if !user.may() {
        return;
    }
    user.up(&shop(false, GRANTED, ""));
    let ask = |app: &str, port: u16| {
        let code = question("tcp", "172.18.0.10", port);
        let said = user.lrpns_ok(&["exec", "shop", "--part", app, "--", PYTHON, "-c", &code]);
        said.trim().to_owned()
    };
    assert_eq!(ask("web", 5432), "172.18.0.12");
    for (app, port) in [("web", 5433), ("cache", 5432)] {
        let answer = ask(app, port);
        assert!(is_refused(&answer), "{app} {port}: {answer}");
    }
    let audit = user.lrpns(&["audit", "shop", "--json"]);
    assert_eq!(found(&audit.stdout), Vec::<String>::new());
}

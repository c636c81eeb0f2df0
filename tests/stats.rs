//! What parts use: `lrpns stats`, and `lrpns metrics` for Prometheus.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use serde_json::Value;
use support::lab::{Lab, describe, until};
use support::look::{self, PYTHON, toml_list};
use support::program;
use support::user::User;

/// Serves, and uses a second of processor time and 64 MiB of memory first.
const BUSY: &str = r#"
import socket, time
block = bytearray(b"x") * (64 << 20)
while time.process_time() < 1: pass
s = socket.create_server(("0.0.0.0", 5000))
while True:
    c = s.accept()[0]
    try:
        if c.recv(9999): c.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 100000)
    except OSError: pass
    c.close()
"#;

fn busy() -> String {
    format!(
        "name = \"shop\"\n[app.web]\nrootfs = \"host\"\ncommand = {}\npublish = [\"0.0.0.0:5001:5000\"]\n\
         limits = {{ memory = \"256M\" }}\n",
        toml_list(&[PYTHON, "-c", BUSY])
    )
}

fn part<'s>(stats: &'s Value, name: &str) -> &'s Value {
    look::part(stats, name)
}

fn assert_used(stats: &Value) {
    let web = part(stats, "web");
    assert!(web["cpu_seconds"].as_f64().unwrap() >= 0.9, "{web}");
    assert!(web["memory"].as_u64().unwrap() >= 64 << 20, "{web}");
    assert_eq!(web["memory_limit"], 256 << 20, "{web}");
    // Its pid 1 and its command.
    assert_eq!(web["processes"], 2, "{web}");
    assert!(web["cpus"].as_f64().unwrap() > 0.0, "{web}");
    assert!(part(stats, "sidecar")["memory"].as_u64().unwrap() > 0);
}

#[test]
fn processor_time_memory_connections_and_bytes_are_told_of_each_part() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    look::up(&lab, &busy());
    let stats =
        || -> Value { serde_json::from_str(&lab.lrpns_ok(&["stats", "shop", "--json"])).unwrap() };
    let before = stats();
    assert_used(&before);
    assert_eq!(
        lab.client_get("http://10.99.0.1:5001/").unwrap().len(),
        100_000
    );
    let kept = lab.connect("127.0.0.1:5001").unwrap();
    until("the sidecar has counted it", || {
        (part(&stats(), "web")["connections"] == 1).then_some(())
    });
    let after = stats();
    for (name, key) in [("web", "sent"), ("sidecar", "sent"), ("web", "received")] {
        let grown =
            part(&after, name)[key].as_u64().unwrap() - part(&before, name)[key].as_u64().unwrap();
        let least = if key == "sent" { 100_000 } else { 100 };
        assert!(grown >= least, "{name} {key}: {grown}");
    }
    drop(kept);

    let text = lab.lrpns_ok(&["stats", "shop/web"]);
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.contains(" 256M "), "{text}");
    let (code, said) = lab.lrpns_err(&["stats", "shop/nobody"]);
    assert!(
        code == 1 && said.contains("its parts are sidecar, web, relay"),
        "{said}"
    );

    // Whoever begins to watch sees it, each time.
    for _ in 0..8 {
        let mut watch = lab.spawn_lrpns(&["stats", "-f", "--json", "shop"]);
        let mut line = String::new();
        let mut said = BufReader::new(watch.stdout.take().unwrap());
        said.read_line(&mut line).unwrap();
        assert!(line.starts_with('{'), "{line}");
        // It ends when nobody reads any more.
        drop(said);
        assert!(watch.wait().unwrap().success());
    }
    // Until the stack's end.
    let mut follow = lab.spawn_lrpns(&["stats", "-f", "--json", "shop"]);
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let line: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_used_in_follow(&line);
    }
    lab.lrpns_ok(&["down", "shop"]);
    assert!(follow.wait().unwrap().success());
}

/// An idle app keeps no processor busy.
fn assert_used_in_follow(stats: &Value) {
    let web = part(stats, "web");
    assert!(web["cpu_seconds"].as_f64().unwrap() >= 0.9, "{web}");
    assert!(web["cpus"].as_f64().is_some(), "{web}");
}

#[test]
fn without_root_it_is_told_as_well() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let user = User::new(&lab, 1000);
    if !user.may() {
        return;
    }
    user.up(&busy());
    let stats: Value = serde_json::from_str(&user.lrpns_ok(&["stats", "shop", "--json"])).unwrap();
    assert_used(&stats);
    assert!(part(&stats, "web")["sent"].is_number(), "{stats}");
    let metrics = user.lrpns_ok(&["metrics", "shop"]);
    assert!(
        metrics.contains("lrpns_up{stack=\"shop\"} 1\n"),
        "{metrics}"
    );
    assert!(metrics.contains("rule=\"accept-published\"} "), "{metrics}");
}

/// What `promtool check metrics` says of it.
fn check(text: &str) {
    let Some(promtool) = program("promtool") else {
        support::skip("machine", "there is no promtool (package prometheus)");
        return;
    };
    let mut check = std::process::Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = check.wait_with_output().unwrap();
    assert!(output.status.success(), "{}\n{text}", describe(&output));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{text}");
}

fn value(metrics: &str, sample: &str) -> f64 {
    let mut lines = metrics.lines();
    let line = lines.find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    let line = line.unwrap_or_else(|| panic!("no {sample} in\n{metrics}"));
    line.parse().unwrap()
}

#[test]
fn metrics_are_what_prometheus_takes_printed_and_by_a_socket() {
    if !look::machine() {
        return;
    }
    for lab in [Lab::new(), Lab::forwarding()] {
        look::up(&lab, &busy());
        lab.lrpns_ok(&["up", "-d"]);
        let one = lab.lrpns_ok(&["metrics", "shop"]);
        check(&one);
        assert!(!one.contains("customerA"), "{one}");
        let all = lab.lrpns_ok(&["metrics", "--all"]);
        check(&all);
        for stack in ["shop", "customerA"] {
            assert_eq!(value(&all, &format!("lrpns_up{{stack=\"{stack}\"}}")), 1.0);
        }
        let web = "{stack=\"shop\",part=\"web\"}";
        assert!(value(&all, &format!("lrpns_part_cpu_seconds_total{web}")) >= 0.9);
        assert_eq!(value(&all, &format!("lrpns_part_running{web}")), 1.0);

        let socket = lab.dir.path().join("metrics.sock").display().to_string();
        let listen = format!("unix:{socket}");
        let mut served = lab.spawn_lrpns(&["metrics", "--all", "--listen", &listen]);
        let scrape = |path: &str| {
            let url = format!("http://localhost{path}");
            lab.run(&["curl", "-sS", "--fail", "--unix-socket", &socket, &url])
        };
        until("it listens", || {
            scrape("/metrics").status.success().then_some(())
        });
        let published = "lrpns_rule_packets_total{stack=\"shop\",namespace=\"sidecar\",table=\"lrpns\",\
                         chain=\"forward\",rule=\"accept-published\"}";
        let scraped = || String::from_utf8(scrape("/metrics").stdout).unwrap();
        let before = value(&scraped(), published);
        lab.client_get("http://10.99.0.1:5001/").unwrap();
        let after = scraped();
        check(&after);
        assert!(value(&after, published) >= before + 1.0, "{after}");
        assert!(!scrape("/else").status.success());
        let (_, said) = lab.lrpns_err(&["metrics", "--listen", &listen, "shop"]);
        assert!(said.contains("somebody listens there"), "{said}");
        lab.lrpns_ok(&["down", "shop"]);
        assert!(!scraped().contains("\"shop\""));
        lab.kill("TERM", &pid_of(&lab, &listen).into());
        assert!(served.wait().unwrap().success());
        assert!(!lab.dir.path().join("metrics.sock").exists());
    }
}

#[test]
fn who_is_slow_keeps_no_scrape_waiting_and_no_other_file_is_removed() {
    let lab = Lab::new();
    let socket = lab.dir.path().join("metrics.sock");
    let listen = format!("unix:{}", socket.display());
    let mut served = lab.spawn_lrpns(&["metrics", "--all", "--listen", &listen]);
    let connect = || std::os::unix::net::UnixStream::connect(&socket).ok();
    let slow: Vec<_> = (0..8)
        .map(|_| until("it listens", &connect))
        .map(|mut client| {
            client.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
            client
        })
        .collect();
    // Each of the eight may take 10 s.
    let path = socket.display().to_string();
    lab.ok(&[
        "curl",
        "-sS",
        "--fail",
        "-m",
        "9",
        "--unix-socket",
        &path,
        "http://localhost/metrics",
    ]);
    // Another has the name by now.
    std::fs::remove_file(&socket).unwrap();
    std::fs::write(&socket, "kept").unwrap();
    lab.kill("TERM", &pid_of(&lab, &listen).into());
    assert!(served.wait().unwrap().success());
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "kept");
    drop(slow);
}

/// The process that has this argument.
fn pid_of(lab: &Lab, argument: &str) -> i64 {
    let list = lab.ok(&["ps", "-eo", "pid=,args="]);
    let own = |line: &&str| {
        line.contains("metrics --all") && line.contains(argument) && !line.contains("nsenter")
    };
    let line = list.lines().find(own).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

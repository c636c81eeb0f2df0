//! `health`: checks run within the app, with what it holds and no more; its ports are published only while it is healthy.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};

use serde_json::Value;
use support::lab::{LAB, Lab, Running, describe, until};
use support::look::{self, PYTHON, part, toml_list};
use support::user::User;

/// Answers `/` always, and `/healthz` with what /data/health says: 200 if that is there, else 503.
const SERVER: &str = r#"
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        healthy = self.path != "/healthz" or os.path.exists("/data/health")
        body = b"from web"
        self.send_response(200 if healthy else 503, "fine" if healthy else "no database")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer(("0.0.0.0", 5000), Handler).serve_forever()
"#;

/// Quick enough for a test.
const QUICK: &str = "interval = \"50ms\", timeout = \"2s\", retries = 2";

fn is_well(data: &Path, well: bool) {
    let path = data.join("health");
    match well {
        true => std::fs::write(path, "").unwrap(),
        false => std::fs::remove_file(path).unwrap(),
    }
}

fn app(name: &str, command: &[&str], data: &Path, more: &str) -> String {
    format!(
        "[app.{name}]\nrootfs = \"host\"\ncommand = {}\nvolumes = [\"{}:/data:rw\"]\n{more}\n",
        toml_list(command),
        data.display()
    )
}

fn web(data: &Path, health: &str, more: &str) -> String {
    let more =
        format!("publish = [\"0.0.0.0:5000:5000\"]\nhealth = {{ {health}, {QUICK} }}\n{more}");
    format!(
        "name = \"shop\"\n{}",
        app("web", &[PYTHON, "-c", SERVER], data, &more)
    )
}

const HTTP: &str = "http = \"/healthz\"";

/// Waits until the app's health is that, and its ports are as they are to be then.
fn becomes(lab: &Lab, state: &str) -> Value {
    until(state, || {
        let status = lab.status("shop");
        let closed = status["closed"] == serde_json::json!(["web"]);
        let is = part(&status, "web")["health"]["state"] == state;
        (is && closed == (state != "healthy")).then_some(status)
    })
}

/// All that changes in the rules of a network namespace, as the kernel says it.
struct Monitor<'a> {
    lab: &'a Lab,
    _process: Running,
    said: PathBuf,
}

impl<'a> Monitor<'a> {
    fn begin(lab: &'a Lab, pid: i64) -> Self {
        let said = lab.dir.path().join("changes");
        let command = format!(
            "exec nsenter --net --target {pid} -- sh -c 'echo ready; exec nft monitor >{}'",
            said.display()
        );
        let monitor = Self {
            lab,
            _process: lab.start(&["sh", "-c", &command]),
            said,
        };
        monitor.hears("begins");
        monitor
    }

    /// A table of this name comes and goes until it is told of.
    fn hears(&self, name: &str) {
        let sidecar = look::init(&self.lab.status("shop"), "sidecar");
        let change = format!("add table inet {name}; delete table inet {name}");
        until("nft monitor tells of it", || {
            look::beside(self.lab, sidecar, &["nft", &change]);
            self.read().contains(name).then_some(())
        });
    }

    fn read(&self) -> String {
        // Of a range nft prints what is no text.
        String::from_utf8_lossy(&std::fs::read(&self.said).unwrap_or_default()).into_owned()
    }

    fn until_now(self) -> String {
        self.hears("ends");
        // Its own parent does not take it along.
        until("the monitor has ended", || {
            let monitor = ["pkill", "-KILL", "-f", "^nft monitor"];
            (!self.lab.run(&monitor).status.success()).then_some(())
        });
        self.read()
    }
}

#[test]
fn ports_are_published_only_while_the_app_is_healthy() {
    if !look::machine() {
        return;
    }
    for via in ["relay", "dnat"] {
        let lab = match via {
            "relay" => Lab::new(),
            _ => Lab::forwarding(),
        };
        let data = lab.volume("data");
        let file = web(&data, HTTP, &format!("via = \"{via}\""));
        let file = lab.write("shop.toml", &file);
        let url = format!("http://{LAB}:5000/");
        let outside = || {
            let get = lab.client(&["curl", "-sS", "--max-time", "1", &url]);
            get.status.success()
        };
        let up = lab.spawn_lrpns(&["up", "-d", "-f", file.to_str().unwrap()]);
        // It runs, and answers by itself.
        until("it is asked", || {
            let ask = "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline; echo; done 2>/dev/null";
            lab.ok(&["sh", "-c", ask])
                .contains("healthcheck http")
                .then_some(())
        });
        assert_eq!(lab.get("http://127.0.0.1:5000/"), Err(7), "{via}");
        is_well(&data, true);
        let up = up.wait_with_output().unwrap();
        assert!(up.status.success(), "{via}: {}", describe(&up));
        assert_eq!(lab.get("http://127.0.0.1:5000/").as_deref(), Ok("from web"));
        assert!(outside(), "{via}");

        for _ in 0..2 {
            let mut kept = lab.connect(&format!("{LAB}:5000")).unwrap();
            is_well(&data, false);
            let status = becomes(&lab, "unhealthy");
            let health = &part(&status, "web")["health"];
            assert_eq!(health["output"], "HTTP 503 no database");
            assert_eq!(lab.get("http://127.0.0.1:5000/"), Err(7), "{via}");
            if via == "relay" {
                assert_eq!(lab.get(&url), Err(7), "{via}");
            }
            assert!(!outside(), "{via}: closed to the client");
            // Who was in stays.
            let mut answer = [0; 4];
            std::io::Write::write_all(&mut kept, b"GET / HTTP/1.0\r\n\r\n").unwrap();
            std::io::Read::read_exact(&mut kept, &mut answer).unwrap();
            assert_eq!(&answer, b"HTTP", "{via}");
            let text = lab.lrpns_ok(&["ps"]);
            assert!(text.contains("web unhealthy"), "{text}");
            let text = lab.lrpns_ok(&["status", "shop"]);
            assert!(
                text.contains("the last said: HTTP 503 no database"),
                "{text}"
            );

            is_well(&data, true);
            becomes(&lab, "healthy");
            assert_eq!(lab.get("http://127.0.0.1:5000/").as_deref(), Ok("from web"));
            assert!(outside(), "{via}");
        }
        let log = lab.lrpns_ok(&["logs", "shop", "--part", "web"]);
        for line in [
            "web | is unhealthy: 2 checks in a row failed: HTTP 503 no database\n",
            "web | its ports are taken away\n",
            "web | is healthy\n",
            "web | its ports are published\n",
        ] {
            assert!(log.contains(line), "{line}{log}");
        }
        lab.lrpns_ok(&["down", "shop"]);
    }
}

#[test]
fn an_unhealthy_app_keeps_its_ports_closed_whatever_starts_again() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let data = lab.volume("data");
    is_well(&data, true);
    look::up(&lab, &web(&data, HTTP, "via = \"relay\""));
    is_well(&data, false);
    let status = becomes(&lab, "unhealthy");
    let monitor = Monitor::begin(&lab, look::init(&status, "sidecar"));
    for name in ["sidecar", "relay"] {
        let before = part(&status, name)["init"].clone();
        lab.kill("KILL", &before);
        until("there is another one", || {
            let status = lab.status("shop");
            let now = part(&status, name);
            (now["state"] == "running" && now["init"] != before).then_some(())
        });
        assert_eq!(lab.get("http://127.0.0.1:5000/"), Err(7), "{name}");
    }
    // Nor does a change of the rules let anybody in.
    let changed = web(&data, HTTP, "via = \"relay\"\nallow = [\"127.0.0.1\"]");
    let changed = changed.replace("[\"0.0.0.0:5000", "[\"0.0.0.0:5001:5000\", \"0.0.0.0:5000");
    let path = lab.write("shop.toml", &changed);
    lab.lrpns_ok(&["apply", "-f", path.to_str().unwrap()]);
    // Not for a moment.
    let changes = monitor.until_now();
    let elements = |of: &str| {
        let added = format!("add element inet lrpns {of} ");
        changes.lines().any(|line| line.starts_with(&added))
    };
    assert!(elements("services") && elements("allowed"));
    assert!(!elements("publish_address"));
    // The claims hold as it is now.
    let audit = lab.lrpns(&["audit", "shop", "--json"]);
    assert_eq!(look::findings(&audit.stdout), [""; 0]);
    // A restart that is asked for has to end healthy.
    let restart = lab.spawn_lrpns(&["restart", "shop", "web"]);
    is_well(&data, true);
    let restart = restart.wait_with_output().unwrap();
    assert!(restart.status.success(), "{}", describe(&restart));
    becomes(&lab, "healthy");
    assert_eq!(lab.get("http://127.0.0.1:5000/").as_deref(), Ok("from web"));
}

#[test]
fn an_app_that_never_becomes_healthy_ends_the_start() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let before = lab.traces();
    let data = lab.volume("data");
    let health = format!("{HTTP}, start_period = \"300ms\"");
    let file = lab.write("shop.toml", &web(&data, &health, ""));
    let (code, said) = lab.lrpns_err(&["up", "-d", "-f", file.to_str().unwrap()]);
    assert_eq!(code, 1, "{said}");
    let why = "web is not healthy: HTTP 503 no database";
    assert!(said.contains(why), "{said}");
    lab.assert_as(&before);
}

/// Says what it holds and what it reaches.
const PRIVILEGES: &str = r#"
import json, socket, sys
def reach(host, port):
    try:
        socket.create_connection((host, port), 0.5)
        return "reached"
    except OSError as e:
        return "refused"
lines = dict(line.strip("\n").split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
keep = ["CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "Uid"]
print(json.dumps({k: lines[k] for k in keep} | {"out": reach("10.99.0.1", 7000)}))
"#;

#[test]
fn a_check_holds_no_more_than_its_app() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let _outside = lab.listen(&format!("{LAB}:7000"));
    let data = lab.volume("data");
    let check = format!("command = {}", toml_list(&[PYTHON, "-c", PRIVILEGES]));
    look::up(&lab, &web(&data, &check, ""));
    let status = becomes(&lab, "healthy");
    let said = part(&status, "web")["health"]["output"].as_str().unwrap();
    let said: Value = serde_json::from_str(said).unwrap_or_else(|e| panic!("{e}: {said}"));
    let nothing = "0000000000000000";
    assert_eq!(
        (&said["CapEff"], &said["CapBnd"]),
        (&nothing.into(), &nothing.into())
    );
    assert_eq!(
        (&said["NoNewPrivs"], &said["Seccomp"]),
        (&"1".into(), &"2".into())
    );
    assert_eq!(said["Uid"], "1000\t1000\t1000\t1000");
    assert_eq!(said["out"], "refused");
}

#[test]
fn what_a_check_says_and_how_long_it_takes_is_bounded() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let data = lab.volume("data");
    let script = "head -c 500000 /dev/zero | tr '\\0' x; if [ -e /data/hang ]; then touch /data/hangs; sleep 600; fi";
    let check = format!("command = {}", toml_list(&["/bin/sh", "-c", script]));
    let file = web(&data, &check, "").replace("timeout = \"2s\"", "timeout = \"700ms\"");
    look::up(&lab, &file);
    let status = becomes(&lab, "healthy");
    let said = part(&status, "web")["health"]["output"].as_str().unwrap();
    assert!(
        said.starts_with("xxx") && said.len() <= 1024,
        "{}",
        said.len()
    );
    std::fs::write(data.join("hang"), "").unwrap();
    let status = becomes(&lab, "unhealthy");
    let said = part(&status, "web")["health"]["output"].as_str().unwrap();
    assert!(said.starts_with("no answer within 700ms: xxx"), "{said}");
    assert!(data.join("hangs").exists());
    std::fs::remove_file(data.join("hang")).unwrap();
    becomes(&lab, "healthy");
    // Nothing of them is left.
    let left = lab.lrpns_ok(&[
        "exec",
        "shop",
        "--part",
        "web",
        "--",
        "sh",
        "-c",
        "for p in /proc/[0-9]*; do cat $p/comm; done 2>/dev/null; true",
    ]);
    assert!(!left.contains("sleep"), "{left}");
}

#[test]
fn an_unhealthy_app_is_started_again_if_it_says_so() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let data = lab.volume("data");
    is_well(&data, true);
    let health = format!("{HTTP}, on_unhealthy = \"restart\"");
    look::up(&lab, &web(&data, &health, "restart = \"no\""));
    is_well(&data, false);
    let status = until("it is started again", || {
        let status = lab.status("shop");
        (part(&status, "web")["restarts"] == 1).then_some(status)
    });
    assert_ne!(part(&status, "web")["health"]["state"], "healthy");
    is_well(&data, true);
    becomes(&lab, "healthy");
    assert_eq!(lab.get("http://127.0.0.1:5000/").as_deref(), Ok("from web"));
    let log = lab.lrpns_ok(&["logs", "shop", "--part", "web"]);
    assert!(
        log.contains("web | is ended, to be started again\n"),
        "{log}"
    );
}

#[test]
fn a_strict_app_is_checked_by_tcp_and_waited_for_until_it_is_healthy() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let file = "name = \"shop\"\n\
        [app.web]\nrootfs = \"host\"\ncommand = [\"sleep\", \"600\"]\nafter = { db = \"healthy\" }\n\
        [app.db]\nrootfs = \"builtin:webapp\"\nseccomp = \"strict\"\nlisten = [5000]\nhealth = { tcp = true }\n\
        [app.http]\nrootfs = \"builtin:webapp\"\nseccomp = \"strict\"\npublish = [\"5000:5000\"]\nhealth = { http = \"/\" }\n";
    let said = look::up(&lab, file);
    let (healthy, started) = (
        said.find("db is healthy\n"),
        said.find("web is started, after db (healthy)\n"),
    );
    assert!(healthy.is_some() && healthy < started, "{said}");
    let status = lab.status("shop");
    let output = |name: &str| {
        part(&status, name)["health"]["output"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert!(
        output("db").starts_with("connected to "),
        "{}",
        output("db")
    );
    assert_eq!(output("http"), "HTTP 200 OK");
}

#[test]
fn health_changes_live_and_an_unhealthy_app_is_healed_by_apply() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let data = lab.volume("data");
    is_well(&data, true);
    let file = web(&data, HTTP, "");
    look::up(&lab, &file);
    let pid = look::pid(&lab.status("shop"), "web");
    // Another interval: the app runs on, and is let in to all the time.
    let path = lab.write("shop.toml", &file.replace("50ms", "60ms"));
    let path = path.to_str().unwrap();
    lab.lrpns_ok(&["apply", "-f", path]);
    let status = lab.status("shop");
    assert_eq!(look::pid(&status, "web"), pid);
    assert_eq!(part(&status, "web")["health"]["state"], "healthy");
    is_well(&data, false);
    becomes(&lab, "unhealthy");
    // By what is not asked for health any more, and by a check that passes.
    lab.write("shop.toml", &file.replace(HTTP, "http = \"/\""));
    lab.lrpns_ok(&["apply", "-f", path]);
    becomes(&lab, "healthy");
    let got = lab.get("http://127.0.0.1:5000/");
    let log = lab.lrpns_ok(&["logs", "shop"]);
    assert_eq!(got.as_deref(), Ok("from web"), "{log}");
    lab.write("shop.toml", &file);
    lab.lrpns_ok(&["apply", "-f", path]);
    becomes(&lab, "unhealthy");
    let none: String = file
        .lines()
        .filter(|line| !line.starts_with("health"))
        .flat_map(|line| [line, "\n"])
        .collect();
    lab.write("shop.toml", &none);
    lab.lrpns_ok(&["apply", "-f", path]);
    until("its ports are open", || {
        lab.get("http://127.0.0.1:5000/").ok()
    });
    // One that starts again in a change and does not become healthy takes the change back.
    let health = format!("{HTTP}, start_period = \"100ms\"");
    lab.write("shop.toml", &web(&data, &health, "env = { NEW = \"1\" }"));
    let (_, said) = lab.lrpns_err(&["apply", "-f", path]);
    assert!(
        said.contains("web is unhealthy: HTTP 503 no database"),
        "{said}"
    );
    assert!(said.contains("all is as it was before"), "{said}");
    let got = lab.get("http://127.0.0.1:5000/");
    let log = lab.lrpns_ok(&["logs", "shop"]);
    assert_eq!(got.as_deref(), Ok("from web"), "{log}");
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
    let data = lab.volume("data");
    is_well(&data, true);
    user.up(&web(&data, HTTP, ""));
    assert_eq!(lab.get("http://127.0.0.1:5000/").as_deref(), Ok("from web"));
    is_well(&data, false);
    until("its ports are closed", || {
        (lab.get("http://127.0.0.1:5000/") == Err(7)).then_some(())
    });
    is_well(&data, true);
    until("its ports are open", || {
        lab.get("http://127.0.0.1:5000/").ok()
    });
}

//! `restart --rolling` and `replace`: another of an app takes its place without a gap, or the old one stays.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::Value;
use support::lab::{LAB, Lab, describe, until};
use support::load::Load;
use support::look::{self, PYTHON, part, toml_list};
use support::user::User;

/// Answers with a word of its own, which each start chooses anew. Asked to end, it lets nobody in any more, and each
/// connection has its last answer.
const SERVER: &str = r#"
import http.server, os, signal, socket, threading, time
word = os.urandom(4).hex()
ends = threading.Event()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.path == "/slow":
            time.sleep(1)
        body = (self.client_address[0] if self.path == "/peer" else word).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        if ends.is_set() or self.close_connection:
            self.send_header("connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = False
server = Server(("0.0.0.0", 5000), Handler)
def end(*_):
    ends.set()
    threading.Thread(target=server.shutdown).start()
signal.signal(signal.SIGTERM, end)
server.serve_forever()
server.server_close()
"#;

fn shop(via: &str, more: &str) -> String {
    format!(
        "name = \"shop\"\n[app.web]\nrootfs = \"host\"\ncommand = {}\npublish = [\"0.0.0.0:5000:5000\"]\n\
         via = \"{via}\"\nstop_timeout = \"1s\"\n{more}\n",
        toml_list(&[PYTHON, "-c", SERVER])
    )
}

fn apps(status: &Value) -> Vec<(String, String)> {
    let parts = status["parts"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let apps = parts.iter().filter(|part| part["name"] == "web");
    apps.map(|part| (text(&part["state"]), text(&part["turn"])))
        .collect()
}

/// The addresses within the stack that are neighbours of the sidecar's, and its bridge ports.
fn within(lab: &Lab, status: &Value) -> (usize, usize) {
    let sidecar = look::init(status, "sidecar");
    let ports = look::beside(lab, sidecar, &["ip", "-o", "link", "show", "type", "veth"]);
    let neighbours = look::beside(lab, sidecar, &["ip", "-4", "neigh", "show"]);
    (neighbours.lines().count(), ports.lines().count())
}

/// The cgroups of the stack's parts, by their names.
fn cgroups(status: &Value) -> Vec<String> {
    let Some(own) = part(status, "sidecar")["cgroup"].as_str() else {
        return vec![];
    };
    let stack = std::path::Path::new(own).parent().unwrap();
    let all = std::fs::read_dir(stack).unwrap().map(Result::unwrap);
    let all = all.filter(|entry| entry.file_type().unwrap().is_dir());
    all.map(|entry| entry.file_name().into_string().unwrap())
        .collect()
}

#[test]
fn under_load_no_request_fails_when_an_app_is_replaced_by_relay_and_by_dnat() {
    if !look::machine() {
        return;
    }
    for via in ["dnat", "relay"] {
        let lab = match via {
            "relay" => Lab::new(),
            _ => Lab::forwarding(),
        };
        look::up(&lab, &shop(via, ""));
        let before = lab.status("shop");
        let load = Load::begin(&lab, true, "10.99.0.1", "5000");
        let mut addresses = vec![look::planned(&before, "/apps/0/address").to_owned()];
        for _ in 0..3 {
            lab.lrpns_ok(&["restart", "--rolling", "shop/web"]);
            let status = lab.status("shop");
            assert_eq!(apps(&status), [("running".to_owned(), String::new())]);
            addresses.push(look::planned(&status, "/apps/0/address").to_owned());
            let saved = lab.ok(&["cat", "/run/lrpns/shop/plan.json"]);
            let saved: Value = serde_json::from_str(&saved).unwrap();
            assert_eq!(saved, status["plan"], "{via}");
            // What the one before was in is not there any more.
            if let Some(own) = part(&status, "web")["cgroup"].as_str() {
                let (own, all) = (std::path::Path::new(own), cgroups(&status));
                let is_webs = |name: &&String| name.starts_with("web");
                let webs: Vec<_> = all.iter().filter(is_webs).collect();
                assert_eq!(webs, [own.file_name().unwrap().to_str().unwrap()], "{via}");
                assert!(
                    !std::fs::read_to_string(own.join("cgroup.procs"))
                        .unwrap()
                        .is_empty()
                );
            }
        }
        let came = load.end();
        assert_eq!(came["wrong"], serde_json::json!([]), "{via}: {came}");
        assert_eq!(came["words"], 4, "{via}: {came}");
        // There and back.
        assert_ne!(addresses[0], addresses[1]);
        assert_eq!(addresses[0], addresses[2]);
        assert_eq!(addresses[1], addresses[3]);
        let after = lab.status("shop");
        assert_eq!(part(&after, "web")["restarts"], 3);
        assert_eq!(within(&lab, &before), within(&lab, &after), "{via}");
        let audit = lab.lrpns(&["audit", "shop"]);
        assert!(audit.status.success(), "{via}: {}", describe(&audit));
        lab.lrpns_ok(&["down", "shop"]);
    }
}

#[test]
fn an_ordinary_user_replaces_an_app_too() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let user = User::new(&lab, 1001);
    if !user.may() {
        return;
    }
    user.up(&shop("relay", ""));
    let load = Load::begin(&lab, false, "127.0.0.1", "5000");
    for _ in 0..2 {
        user.lrpns_ok(&["restart", "--rolling", "shop"]);
    }
    let came = load.end();
    assert_eq!(came["wrong"], serde_json::json!([]), "{came}");
    assert_eq!(came["words"], 3, "{came}");
    user.lrpns_ok(&["down", "shop"]);
}

#[test]
fn one_that_is_never_well_goes_and_the_old_one_stays() {
    if !look::machine() {
        return;
    }
    let lab = Lab::forwarding();
    let data = lab.volume("data");
    // The second start finds what the first has left, and fails.
    let health = "health = { command = [\"sh\", \"-c\", \"! test -e /data/bad\"], interval = \"50ms\", timeout = \"2s\", \
                  retries = 2, start_period = \"100ms\" }\nreplace = \"rolling\"";
    let volume = format!("volumes = [\"{}:/data:rw\"]\n{health}", data.display());
    look::up(&lab, &shop("dnat", &volume));
    let before = lab.status("shop");
    let word = lab.client_get("http://10.99.0.1:5000/").unwrap();
    let rules = || lab.lrpns_ok(&["rules", "shop"]);
    let _ = rules();
    std::fs::write(data.join("bad"), "").unwrap();
    // The old one is not well either now, but it is the new one that is asked.
    let (code, said) = lab.lrpns_err(&["restart", "--rolling", "shop/web"]);
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("web is not replaced, and the one before stays"),
        "{said}"
    );
    std::fs::remove_file(data.join("bad")).unwrap();
    let status = until("well again", || {
        let status = lab.status("shop");
        (status["closed"] == serde_json::json!([])).then_some(status)
    });
    assert_eq!(part(&status, "web")["pid"], part(&before, "web")["pid"]);
    assert_eq!(apps(&status).len(), 1);
    assert_eq!(lab.client_get("http://10.99.0.1:5000/").unwrap(), word);
    assert_eq!(within(&lab, &before), within(&lab, &status));
    // And then it can be.
    lab.lrpns_ok(&["restart", "--rolling", "shop/web"]);
    assert_ne!(lab.client_get("http://10.99.0.1:5000/").unwrap(), word);
}

#[test]
fn another_has_the_secrets_as_they_are_now() {
    if !look::machine() {
        return;
    }
    let lab = Lab::forwarding();
    let key = lab.write("key", "old");
    let secret = format!("secrets = [\"key={}\"]", key.display());
    look::up(&lab, &shop("dnat", &secret));
    let before = look::pid(&lab.status("shop"), "web");
    let read = || lab.lrpns_ok(&["exec", "shop/web", "--", "cat", "/run/secrets/key"]);
    std::fs::write(&key, "new").unwrap();
    assert_eq!(read(), "old");
    lab.lrpns_ok(&["restart", "--rolling", "shop/web"]);
    assert_eq!(read(), "new");
    let now = look::pid(&lab.status("shop"), "web");
    assert_ne!(now, before);
    std::fs::remove_file(&key).unwrap();
    let (code, said) = lab.lrpns_err(&["restart", "--rolling", "shop"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("secret key of web"), "{said}");
    assert_eq!(look::pid(&lab.status("shop"), "web"), now);
}

#[test]
fn what_is_under_way_is_answered_by_the_old_one() {
    if !look::machine() {
        return;
    }
    let lab = Lab::forwarding();
    look::up(&lab, &shop("dnat", "").replace("\"1s\"", "\"10s\""));
    let word = lab.client_get("http://10.99.0.1:5000/").unwrap();
    let slow = lab.spawn(&[
        "ip",
        "netns",
        "exec",
        "client",
        "curl",
        "-sS",
        "http://10.99.0.1:5000/slow",
    ]);
    let app = look::pid(&lab.status("shop"), "web");
    until("it is connected", || {
        let all = look::beside(&lab, app, &["ss", "-Htn", "state", "established"]);
        (!all.trim().is_empty()).then_some(())
    });
    lab.lrpns_ok(&["restart", "--rolling", "shop/web"]);
    let answer = slow.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&answer.stdout), word);
    assert_ne!(lab.client_get("http://10.99.0.1:5000/").unwrap(), word);
}

#[test]
fn a_live_change_waits_for_a_replacement_and_says_so() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let text = shop("relay", "").replace("\"1s\"", "\"60s\"");
    look::up(&lab, &text);
    // Connected to the old one for as long as it likes.
    let stays = "import socket, sys\ns = socket.create_connection(('10.99.0.1', 5000))\n\
                 s.sendall(b'GET / HTTP/1.1\\r\\nhost: a\\r\\n\\r\\n')\ns.recv(9)\nsys.stdin.read()";
    let inside = ["ip", "netns", "exec", "client", PYTHON, "-c", stays];
    let mut client = lab.spawn(&inside);
    let app = look::pid(&lab.status("shop"), "web");
    until("it is connected", || {
        let all = look::beside(&lab, app, &["ss", "-Htn", "state", "established"]);
        (!all.trim().is_empty()).then_some(())
    });
    let mut restart = lab.spawn_lrpns(&["restart", "--rolling", "shop/web"]);
    until("the old one is to go", || {
        let all = apps(&lab.status("shop"));
        all.iter().any(|(_, turn)| turn == "goes").then_some(())
    });
    let file = lab.write("other.toml", &format!("{text}env = {{ A = \"1\" }}\n"));
    let file = file.to_str().unwrap();
    for args in [
        &["apply", "-f", file][..],
        &["apply", "-f", file, "--dry-run"],
    ] {
        let (_, said) = lab.lrpns_err(args);
        assert!(
            said.contains("shop: web is being replaced; nothing was changed"),
            "{said}"
        );
        assert!(said.contains("hint: try again when that is over"), "{said}");
    }
    drop(client.stdin.take());
    client.wait().unwrap();
    assert!(restart.wait().unwrap().success());
    lab.lrpns_ok(&["apply", "-f", file]);
}

#[test]
fn nothing_is_left_when_either_is_killed_amid_a_replacement() {
    if !look::machine() {
        return;
    }
    let lab = Lab::forwarding();
    let before = lab.traces();
    let data = lab.volume("data");
    let health = "health = { command = [\"test\", \"-e\", \"/data/well\"], interval = \"50ms\", start_period = \"60s\" }\n\
                  replace = \"rolling\"";
    let more = format!("volumes = [\"{}:/data:rw\"]\n{health}", data.display());
    std::fs::write(data.join("well"), "").unwrap();
    look::up(&lab, &shop("dnat", &more));
    let word = lab.client_get("http://10.99.0.1:5000/").unwrap();
    let old = lab.status("shop");
    let amid = || {
        std::fs::remove_file(data.join("well")).unwrap();
        let command = lab.spawn_lrpns(&["restart", "--rolling", "shop/web"]);
        let status = until("both are there", || {
            let status = lab.status("shop");
            let parts = status["parts"].as_array().unwrap();
            let comes = parts.iter().find(|part| part["turn"] == "comes")?;
            let runs = comes["state"] == "running" || !comes["pid"].is_null();
            runs.then(|| status.clone())
        });
        (command, status)
    };
    // The new one.
    let (command, status) = amid();
    let parts = status["parts"].as_array().unwrap();
    let comes = parts.iter().find(|part| part["turn"] == "comes").unwrap();
    lab.kill("KILL", &comes["init"]);
    let said = command.wait_with_output().unwrap();
    assert_eq!(said.status.code(), Some(1), "{}", describe(&said));
    std::fs::write(data.join("well"), "").unwrap();
    let status = until("well again", || {
        let status = lab.status("shop");
        (status["closed"] == serde_json::json!([])).then_some(status)
    });
    assert_eq!(within(&lab, &status), within(&lab, &old));
    assert_eq!(lab.client_get("http://10.99.0.1:5000/").unwrap(), word);
    // The supervisor.
    let (mut command, status) = amid();
    lab.kill("KILL", &status["supervisor"]);
    assert!(!command.wait().unwrap().success());
    lab.lrpns(&["down", "shop"]);
    lab.assert_as(&before);
}

#[test]
fn an_app_that_can_not_be_twice_is_not_made_twice() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let data = lab.volume("data");
    let more = format!("volumes = [\"{}:/data:rw\"]", data.display());
    look::up(&lab, &shop("relay", &more));
    let (code, said) = lab.lrpns_err(&["restart", "--rolling", "shop/web"]);
    assert_eq!(code, 1);
    assert!(said.contains("web is replaced stop-first"), "{said}");
    assert!(said.contains("hint: "), "{said}");
}

#[test]
fn a_live_change_that_starts_an_app_again_replaces_it_and_takes_that_back_the_same_way() {
    if !look::machine() {
        return;
    }
    for via in ["dnat", "relay"] {
        let lab = Lab::forwarding();
        let file = |more: &str| {
            let path = lab.write("shop.toml", &shop(via, more));
            path.to_str().unwrap().to_owned()
        };
        lab.lrpns_ok(&["up", "-d", "-f", &file("")]);
        let load = Load::begin(&lab, true, LAB, "5000");
        let apply = |more: &str, args: &[&str]| {
            let path = file(more);
            lab.lrpns(&[&["apply", "-f", &path], args].concat())
        };
        let pid = || look::pid(&lab.status("shop"), "web");
        let first = pid();
        let how = |said: &[u8]| {
            let said = String::from_utf8_lossy(said).into_owned();
            let line = said.lines().find(|line| line.starts_with("web ")).unwrap();
            line.to_owned()
        };
        let output = apply("env = { COLOUR = \"red\" }", &["--dry-run"]);
        let rolls = "web is replaced by another: app.web.env.COLOUR";
        assert_eq!(how(&output.stderr), rolls, "{via}");
        // A second.
        let output = apply("env = { COLOUR = \"red\" }", &[]);
        assert!(output.status.success(), "{via}: {}", describe(&output));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("web is replaced"), "{via}: {said}");
        let second = pid();
        assert_ne!(first, second);
        // One that is never ready.
        let output = apply(
            "start_timeout = \"300ms\"\nenv = { PYTHONHOME = \"/nowhere\" }",
            &[],
        );
        assert_eq!(
            output.status.code(),
            Some(1),
            "{via}: {}",
            describe(&output)
        );
        assert_eq!(pid(), second, "{via}");
        // A third, which nobody confirms, and so a fourth.
        let output = apply("env = { COLOUR = \"blue\" }", &["--confirm", "30"]);
        assert_eq!(
            output.status.code(),
            Some(1),
            "{via}: {}",
            describe(&output)
        );
        let status = lab.status("shop");
        assert_eq!(status["plan"]["apps"][0]["env"]["COLOUR"], "red", "{via}");
        let app = look::pid(&status, "web");
        assert!(![first, second].contains(&app), "{via}");
        assert!(lab.proc(app, "environ").contains("COLOUR=red"), "{via}");
        let came = load.end();
        assert_eq!(came["wrong"], serde_json::json!([]), "{via}: {came}");
        assert_eq!(came["words"], 4, "{via}: {came}");
        let audit = lab.lrpns(&["audit", "shop"]);
        assert!(audit.status.success(), "{via}: {}", describe(&audit));
        // What is not to be twice starts again in its place.
        let output = apply("env = { COLOUR = \"red\" }\nreplace = \"stop-first\"", &[]);
        assert!(output.status.success(), "{via}: {}", describe(&output));
        let before = look::planned(&lab.status("shop"), "/apps/0/address").to_owned();
        let output = apply("replace = \"stop-first\"", &["--dry-run"]);
        assert_eq!(
            how(&output.stderr),
            "web starts again: app.web.env.COLOUR",
            "{via}"
        );
        let output = apply("replace = \"stop-first\"", &[]);
        assert!(output.status.success(), "{via}: {}", describe(&output));
        assert_eq!(
            look::planned(&lab.status("shop"), "/apps/0/address"),
            before
        );
        lab.lrpns_ok(&["down", "shop"]);
    }
}

#[test]
fn apps_that_are_linked_go_on_by_name_when_either_is_replaced() {
    if !look::machine() {
        return;
    }
    for ipv6 in [false, true] {
        let lab = match ipv6 {
            true => Lab::new().with_ipv6(),
            false => Lab::new(),
        };
        let prefix = if ipv6 {
            "[network]\nipv6 = \"fd00:18::/64\"\n"
        } else {
            ""
        };
        let command = toml_list(&[PYTHON, "-c", SERVER]);
        let file = format!(
            "name = \"shop\"\n{prefix}[app.web]\nrootfs = \"host\"\ncommand = {command}\nconnect = [\"db:5000\"]\n\
             publish = [\"127.0.0.1:5000:5000\"]\n[app.db]\nrootfs = \"host\"\ncommand = {command}\n\
             stop_timeout = \"1s\"\n"
        );
        let path = lab.write("shop.toml", &file);
        let path = path.to_str().unwrap();
        lab.lrpns_ok(&["up", "-d", "-f", path]);
        let ask = |path: &str| {
            lab.lrpns_ok(&[
                "exec",
                "shop/web",
                "--",
                "curl",
                "-4sS",
                "--max-time",
                "5",
                &format!("http://db:5000{path}"),
            ])
        };
        let address = |app: usize| {
            let status = lab.status("shop");
            look::planned(&status, &format!("/apps/{app}/address")).to_owned()
        };
        let home = address(1);
        for times in 1..=2 {
            let word = ask("/");
            lab.lrpns_ok(&["restart", "--rolling", "shop/db"]);
            assert_ne!(ask("/"), word);
            assert_eq!(address(1) == home, times == 2);
            let hosts = lab.lrpns_ok(&["exec", "shop/web", "--", "cat", "/etc/hosts"]);
            assert!(hosts.contains(&home), "{hosts}");
            // It still sees who it is that asks.
            assert_eq!(ask("/peer"), address(0));
            let audit = lab.lrpns(&["audit", "shop"]);
            assert!(audit.status.success(), "{}", describe(&audit));
        }
        let before = address(0);
        lab.lrpns_ok(&["restart", "--rolling", "shop/web"]);
        assert_ne!(address(0), before);
        assert_eq!(ask("/peer"), address(0));
        // Both are elsewhere.
        lab.lrpns_ok(&["restart", "--rolling", "shop"]);
        assert_eq!(ask("/peer"), address(0));
        let audit = lab.lrpns(&["audit", "shop"]);
        assert!(audit.status.success(), "{}", describe(&audit));
        // That is no difference to the file.
        let before = lab.status("shop");
        for args in [&["apply", "-f", path][..], &["up", "-d", "-f", path]] {
            lab.lrpns_ok(args);
            let after = lab.status("shop");
            assert_eq!(after["plan"]["apps"], before["plan"]["apps"], "{args:?}");
            assert_eq!(
                look::pid(&after, "web"),
                look::pid(&before, "web"),
                "{args:?}"
            );
        }
        // One that joins takes none of their addresses.
        let more = format!("{file}[app.more]\nrootfs = \"host\"\ncommand = [\"sleep\", \"600\"]\n");
        lab.write("shop.toml", &more);
        lab.lrpns_ok(&["apply", "-f", path]);
        let after = lab.status("shop");
        let more = look::planned(&after, "/apps/2/address").to_owned();
        for app in after["plan"]["apps"].as_array().unwrap() {
            assert_ne!(app["spare"]["address"], more.as_str(), "{app}");
        }
        assert_eq!(ask("/peer"), address(0));
        lab.lrpns_ok(&["restart", "--rolling", "shop"]);
        assert_eq!(ask("/peer"), address(0));
    }
}

/// What wrk found wrong; it asks by so many connections, each kept or each for one request.
fn wrk(lab: &Lab, from_client: bool, host: &str, kept: bool) -> std::process::Child {
    let url = format!("http://{host}:5000/");
    let header: &[&str] = if kept {
        &[]
    } else {
        &["-H", "Connection: close"]
    };
    let args = [
        &["wrk", "-t1", "-c8", "-d75s", "--timeout", "10s"],
        header,
        &[&url],
    ]
    .concat();
    match from_client {
        true => lab.spawn(&[&["ip", "netns", "exec", "client"], args.as_slice()].concat()),
        false => lab.spawn(&args),
    }
}

#[test]
#[ignore = "measures"]
fn twenty_replacements_under_wrk_fail_no_request() {
    if !look::machine_with(&["wrk"]) {
        return;
    }
    for (via, rootless) in [("dnat", false), ("relay", false), ("relay", true)] {
        let lab = Lab::forwarding();
        let user = rootless.then(|| User::new(&lab, 1001));
        let lrpns = |args: &[&str]| match &user {
            Some(user) => user.lrpns_ok(args),
            None => lab.lrpns_ok(args),
        };
        let path = lab.write("shop.toml", &shop(via, ""));
        lrpns(&["up", "-d", "-f", path.to_str().unwrap()]);
        let clients = [true, false].map(|kept| wrk(&lab, true, LAB, kept));
        let begun = std::time::Instant::now();
        for _ in 0..20 {
            lrpns(&["restart", "--rolling", "shop/web"]);
        }
        let took = begun.elapsed();
        for client in clients {
            let output = client.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            println!("{via} rootless {rootless}: 20 in {took:?}\n{said}");
            assert!(said.contains("requests in"), "{said}");
            for wrong in ["Socket errors", "Non-2xx"] {
                assert!(!said.contains(wrong), "{via}: {said}");
            }
        }
        lrpns(&["down", "shop"]);
    }
}

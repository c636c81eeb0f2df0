//! `via = "socket"`: an app that is handed its listening sockets, in the sidecar's network namespace, and has no network.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;

use serde_json::{Value, json};
use support::lab::{LAB, Lab, describe, until};
use support::load::Load;
use support::look::{self, ATTACKS, PYTHON, init, part, pid, planned, toml_list};
use support::user::User;

/// A server of HTTP at the first socket that it is handed, which tells who it is and whom it sees; asked to end, it finishes what
/// it has accepted.
const SERVER: &str = r#"
import http.server, json, os, signal, socket, threading
class Tell(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        handed = {name: os.environ.get(name) for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")}
        body = json.dumps({"peer": self.client_address[0], "handed": handed, "pid": os.getpid(), "start": START,
                           "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:5]}).encode()
        body = body if self.path == "/all" else START.encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
START = open("/proc/sys/kernel/random/uuid").read().strip()
class Server(http.server.ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 1000
server = Server(("", 0), Tell, bind_and_activate=False)
server.socket.close()
server.socket = socket.socket(fileno=3)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever()
server.server_close()
"#;

/// A stack of one app that runs this, published at the host's port 5000.
fn stack(code: &str, more: &str) -> String {
    let command = toml_list(&[PYTHON, "-c", code]);
    format!(
        "name = \"hand\"\n[network]\nsubnet = \"172.18.0.0/24\"\n\
         [app]\naddress = \"172.18.0.23\"\nrootfs = \"host\"\ncommand = {command}\n\
         publish = [\"0.0.0.0:5000:8000\"]\nvia = \"socket\"\n{more}\n"
    )
}

/// What there is in the network namespace of a process: its links, addresses and routes.
fn network(lab: &Lab, pid: i64) -> Value {
    let list = |args: &[&str]| look::json(lab, Some(pid), args);
    let links = list(&["ip", "-j", "address"]);
    let links: Vec<&Value> = links.as_array().unwrap().iter().collect();
    let names: Vec<&Value> = links.iter().map(|link| &link["ifname"]).collect();
    let addresses = links
        .iter()
        .flat_map(|link| link["addr_info"].as_array().unwrap());
    let addresses: Vec<&Value> = addresses.map(|address| &address["local"]).collect();
    let routes = list(&["ip", "-j", "route"]);
    json!({ "links": names, "addresses": addresses, "routes": routes })
}

fn assert_serves(lab: &Lab, status: &Value, way: &str) {
    let answer = look::told(lab.client_get(&format!("http://{LAB}:5000/all")));
    assert_eq!(answer["peer"], support::lab::CLIENT, "{answer}");
    let handed = &answer["handed"];
    assert_eq!(handed["LISTEN_PID"], answer["pid"].to_string(), "{answer}");
    assert_eq!(
        (&handed["LISTEN_FDS"], &handed["LISTEN_FDNAMES"]),
        (&"1".into(), &"8000".into())
    );
    assert_eq!(planned(status, "/apps/0/publish/0/via"), way);
    let app = network(lab, init(status, "app"));
    assert_eq!(
        app,
        json!({ "links": ["lo"], "addresses": ["127.0.0.1"], "routes": [] })
    );
}

#[test]
fn an_app_serves_at_the_socket_it_is_handed_and_has_no_network() {
    if !look::machine() {
        return;
    }
    for (lab, way) in [(Lab::new(), "relay"), (Lab::forwarding(), "dnat")] {
        look::up(&lab, &stack(SERVER, ""));
        let status = lab.status("hand");
        assert_serves(&lab, &status, way);
        // This host's own clients come by the relay either way.
        lab.get("http://127.0.0.1:5000/")
            .expect("an answer on the loopback");
        let report = lab.lrpns(&["audit", "hand", "--json"]);
        assert_eq!(
            look::findings(&report.stdout),
            Vec::<String>::new(),
            "{way}"
        );

        let client = support::lab::CLIENT;
        let line = format!("tcp {client}:");
        let log = until("the connection is logged", || {
            let log = lab.lrpns_ok(&["logs", "hand", "--part", "traffic"]);
            // Whoever it is: the client has all of it when it has what the header says.
            let closed = |text: &&str| text.contains(&line) && text.contains(" closed by the ");
            log.lines().find(closed).map(str::to_owned)
        });
        assert!(log.contains("-> app 172.18.0.23:8000"), "{log}");
        let traced = lab.spawn_lrpns(&["trace", client, "5000", "hand", "--json"]);
        let traced = trace_of(&lab, traced);
        assert_eq!(traced["outcome"], "arrives", "{traced}");
        assert_eq!(traced["by"]["rule"], "accept-socket", "{traced}");
        let file = lab.write("hand.toml", &stack(SERVER, ""));
        let plan = lab.lrpns_ok(&["plan", "-f", file.to_str().unwrap()]);
        assert!(
            plan.contains("network   none; it is handed the listening sockets of its ports"),
            "{plan}"
        );
        lab.lrpns_ok(&["down", "hand"]);
    }
}

/// What a trace tells of a request of the client's.
fn trace_of(lab: &Lab, mut trace: std::process::Child) -> Value {
    let mut line = String::new();
    let mut said = BufReader::new(trace.stderr.take().unwrap());
    said.read_line(&mut line).unwrap();
    assert!(line.contains("try now"), "{line}");
    lab.client_get(&format!("http://{LAB}:5000/"))
        .expect("an answer");
    let mut text = String::new();
    trace
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    trace.wait().unwrap();
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn an_ordinary_user_has_one_as_well() {
    if !look::machine_with(&["setpriv"]) {
        return;
    }
    let lab = Lab::new();
    let user = User::new(&lab, 3000);
    if !user.may() {
        return;
    }
    user.up(&stack(SERVER, ""));
    assert_serves(&lab, &user.status("hand"), "relay");
    let report = user.lrpns(&["audit", "hand", "--json"]);
    assert_eq!(look::findings(&report.stdout), Vec::<String>::new());
    user.lrpns_ok(&["restart", "hand", "app"]);
    assert_serves(&lab, &user.status("hand"), "relay");
    user.lrpns_ok(&["down", "hand"]);
}

#[test]
fn by_ipv6_as_by_ipv4() {
    if !look::machine() {
        return;
    }
    for lab in [Lab::new(), Lab::forwarding()] {
        let lab = lab.with_ipv6();
        let file = stack(SERVER, "").replace("[network]\n", "[network]\nipv6 = \"fd00:18::/64\"\n");
        // A server for each socket.
        let file = file.replace("\"0.0.0.0:5000:8000\"", "\"[::]:5000:8000\"");
        look::up(&lab, &file);
        let url = format!("http://[{}]:5000/all", support::lab::LAB6);
        let answer = look::told(lab.client_get(&url));
        assert_eq!(answer["peer"], support::lab::CLIENT6, "{answer}");
        let status = lab.status("hand");
        let app = network(&lab, init(&status, "app"));
        assert_eq!(app["links"], json!(["lo"]));
        let report = lab.lrpns(&["audit", "hand", "--json"]);
        assert_eq!(look::findings(&report.stdout), Vec::<String>::new());
        lab.lrpns_ok(&["down", "hand"]);
    }
}

#[test]
fn a_restart_under_load_refuses_nobody() {
    if !look::machine() {
        return;
    }
    for lab in [Lab::new(), Lab::forwarding()] {
        look::up(&lab, &stack(SERVER, ""));
        let load = Load::begin(&lab, true, LAB, "5000");
        for _ in 0..3 {
            let before = pid(&lab.status("hand"), "app");
            lab.lrpns_ok(&["restart", "hand", "app"]);
            assert_ne!(pid(&lab.status("hand"), "app"), before);
            // The one that is there now has served somebody.
            lab.client_get(&format!("http://{LAB}:5000/"))
                .expect("an answer");
        }
        let came = load.end();
        assert_eq!(came["wrong"], json!([]), "{came}");
        assert!(came["words"].as_u64().unwrap() >= 4, "{came}");
    }
}

/// As [`SERVER`], once somebody has written into a pipe of the volume.
fn held() -> String {
    format!("open('/data/go').read()\n{SERVER}")
}

fn volume(lab: &Lab) -> (String, std::path::PathBuf) {
    let dir = lab.volume("data");
    let pipe = dir.join("go");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    std::fs::set_permissions(&pipe, everybody).unwrap();
    (format!("volumes = [\"{}:/data:rw\"]", dir.display()), pipe)
}

/// Lets the app that waits at its pipe go on: opening it waits for who reads.
fn go(pipe: &Path) {
    std::fs::write(pipe, "go").unwrap();
}

#[test]
fn up_waits_until_it_has_accepted_and_who_connects_while_it_starts_again_waits() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let (volume, pipe) = volume(&lab);
    let file = stack(&held(), &format!("{volume}\nrestart = \"always\""));
    let path = lab.write("hand.toml", &file);
    let mut up = lab.spawn_lrpns(&["up", "-d", "-f", path.to_str().unwrap()]);
    // It has read the pipe once it is opened, and accepts after that alone.
    let opened = std::fs::OpenOptions::new().write(true).open(&pipe).unwrap();
    assert!(
        up.try_wait().unwrap().is_none(),
        "it is up, and nobody has accepted"
    );
    drop(opened);
    assert!(up.wait().unwrap().success());

    let asks = || {
        let mut stream = lab.connect(&format!("{LAB}:5000")).unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        stream
    };
    let answered = |stream: TcpStream| {
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        assert_eq!(line, "HTTP/1.0 200 OK\r\n");
    };
    // A restart on request: it returns when the new command runs, which waits.
    lab.lrpns_ok(&["restart", "hand", "app"]);
    let waiting: Vec<TcpStream> = (0..20).map(|_| asks()).collect();
    go(&pipe);
    waiting.into_iter().for_each(answered);
    // One by itself, after a crash.
    let status = lab.status("hand");
    lab.kill("KILL", &part(&status, "app")["pid"]);
    let waiting: Vec<TcpStream> = (0..20).map(|_| asks()).collect();
    go(&pipe);
    waiting.into_iter().for_each(answered);
    let app = part(&lab.status("hand"), "app").clone();
    assert_eq!(app["last_exit"], json!({ "signal": 9 }), "{app}");
    lab.lrpns_ok(&["down", "hand"]);
}

#[test]
fn an_app_that_accepts_nobody_is_not_up() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let code = "import signal; signal.pause()";
    let path = lab.write("hand.toml", &stack(code, ""));
    let path = path.to_str().unwrap();
    let output = lab.lrpns_with(&[("LRPNS_TEST_PATIENCE", "200")], &["up", "-d", "-f", path]);
    let said = describe(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("app has accepted no connection at its socket for port 8000"),
        "{said}"
    );
    assert!(said.contains("hint: "), "{said}");
    let path = lab.write("ends.toml", &stack("import sys; sys.exit(3)", ""));
    let output = lab.lrpns(&["up", "-d", "-f", path.to_str().unwrap()]);
    let said = describe(&output);
    assert!(said.contains("app ended with exit status 3"), "{said}");
    // Who needs no client to be well is not waited for.
    look::up(&lab, &stack(code, "wait = false"));
    lab.lrpns_ok(&["down", "hand"]);
}

/// An app that does what it is told: who connects sends a program of Python that ends in a zero byte, is answered what that
/// has put into `result`, and may be the next one whom it accepts.
fn taken_over() -> String {
    format!(
        r#"
{ATTACKS}
import fcntl
listener = socket.socket(fileno=3)
def disconnect(made):
    call(libc.connect(made.fileno(), bytes(16), 16))
def accept():
    while True:
        made, peer = listener.accept()
        try:
            if made.recv(6) == b"victim": return made, peer
        except OSError: pass
def begin(made, to):
    made.setblocking(False)
    return tried(made.connect, to)
while True:
    control, _ = listener.accept()
    code = b""
    try:
        while not code.endswith(b"\0") and (more := control.recv(65536)): code += more
    except OSError: pass
    if not code.endswith(b"\0"): continue
    scope = dict(globals())
    exec(code[:-1], scope)
    control.sendall(json.dumps(scope["result"]).encode())
    control.close()
    if scope.get("after"): scope["after"]()
"#
    )
}

/// From the client: has the app run `code`, and connects once more, to be attacked.
fn have_it(lab: &Lab, code: &str) -> Value {
    let client = format!(
        r#"
control = socket.create_connection(("{LAB}", 5000), timeout=20)
control.sendall({code:?}.encode() + b"\0")
victim = socket.create_connection(("{LAB}", 5000), timeout=20)
victim.sendall(b"victim")
print(control.makefile().read())
"#
    );
    look::attack_from_client(lab, &client)
}

/// The links of the sidecar's namespace, asked for and changed; and options that bind a socket to one.
const ASK_ABOUT_LINKS: &str = r#"
result = {}
for name, request in dict(SIOCGIFNAME=0x8910, SIOCGIFCONF=0x8912, SIOCGIFFLAGS=0x8913, SIOCSIFFLAGS=0x8914, SIOCGIFADDR=0x8915,
                          SIOCSIFADDR=0x8916, SIOCETHTOOL=0x8946, SIOCGSKNS=0x894c, SIOCADDRT=0x890b).items():
    link = b"uplink".ljust(16, b"\0") + bytes(24)
    result[name] = tried(fcntl.ioctl, listener, request, link)
for name, level, option, value in [("device", 1, 25, b"uplink\0"), ("index", 1, 62, struct.pack("i", 2)), ("lock", 1, 44, struct.pack("i", 1)),
                                   ("mark", 1, 36, struct.pack("i", 7)), ("transparent", 0, 19, struct.pack("i", 1)),
                                   ("repair", 6, 19, struct.pack("i", 1))]:
    result[name] = tried(listener.setsockopt, level, option, value)
"#;

/// What it has accepted, made a new socket of the sidecar's, and what it tries with that.
const CONNECT_ELSEWHERE: &str = r#"
victim, peer = accept()
disconnect(victim)
result = {}
for name, to in [("client", (peer[0], 7000)), ("host", ("198.19.255.255", 22)), ("bridge", (BRIDGE, 22)), ("other", (OTHER, 5000)),
                 ("lan", ("192.0.2.1", 80)), ("cloud", ("169.254.169.254", 80)), ("own", (OWN, 8000)), ("loopback", ("127.0.0.1", 22))]:
    result[name] = begin(victim, to)
    disconnect(victim)
result["bind"] = tried(victim.bind, ("0.0.0.0", 7777))
"#;

#[test]
fn what_an_app_can_do_with_its_socket_leads_nowhere() {
    if !look::machine() {
        return;
    }
    for (lab, weaken) in [
        (Lab::new(), "landlock"),
        (Lab::forwarding(), "landlock"),
        (Lab::new(), "nothing"),
    ] {
        let other = format!(
            "[app.other]\naddress = \"172.18.0.24\"\nrootfs = \"host\"\ncommand = {}\npublish = [\"0.0.0.0:6000:5000\"]\nlisten = [6000]\n",
            toml_list(&[PYTHON, "-c", look::TELLING])
        );
        let file =
            stack(&taken_over(), "restart = \"always\"").replace("[app]", "[app.app]") + &other;
        let path = lab.write("hand.toml", &file);
        let output = lab.lrpns_with(
            &[("LRPNS_TEST_WEAKEN", weaken)],
            &["up", "-d", "-f", path.to_str().unwrap()],
        );
        assert!(output.status.success(), "{}", describe(&output));
        let status = lab.status("hand");
        let sidecar = init(&status, "sidecar");
        let links = have_it(&lab, ASK_ABOUT_LINKS);
        for (what, came) in links.as_object().unwrap() {
            // The last one is refused by the kernel itself: it is not of those about links.
            assert_eq!(came, "EPERM", "{what}: {links}");
        }
        let counted = || look::counters(&lab, Some(sidecar), "lrpns");
        let dropped = |now: &look::Counters| now["output/drop-rest"];
        let before = counted();
        let (bridge, own) = (planned(&status, "/bridge/address"), "172.18.0.23");
        let code = format!(
            "BRIDGE, OTHER, OWN = {bridge:?}, \"172.18.0.24\", {own:?}\n{CONNECT_ELSEWHERE}"
        );
        let came = have_it(&lab, &code);
        let knows = look::landlock_knows_tcp() && weaken == "nothing";
        for (what, came) in came.as_object().unwrap() {
            let expected: &[&str] = match (knows, what.as_str()) {
                (true, _) => &["EACCES"],
                // It may have a port of its own, at which nobody arrives.
                (false, "bind") => &["OK"],
                // Its packet is on its way, and is dropped there; or it has none.
                (false, _) => &[
                    "EINPROGRESS",
                    "EPERM",
                    "EACCES",
                    "ENETUNREACH",
                    "EHOSTUNREACH",
                ],
            };
            assert!(expected.contains(&came.as_str().unwrap()), "{what}: {came}");
        }
        if !knows {
            // Each but those that have no route, and one of them at least: what it knows as an answer of somebody would have been one.
            let now = counted();
            assert!(dropped(&now) >= dropped(&before) + 6, "{before:?}\n{now:?}");
            // At a port of its own nobody gets to it.
            let code = "victim, _ = accept()\ndisconnect(victim)\nvictim.bind((\"0.0.0.0\", 7777))\nvictim.listen()\nkept = globals().setdefault(\"kept\", [])\nkept.append(victim)\nresult = {}";
            have_it(&lab, code);
            // Which the audit sees.
            let found = look::findings(&lab.lrpns(&["audit", "hand", "--json"]).stdout);
            for probe in ["net-sockets: ", "leak-app-descriptors: "] {
                assert!(
                    found.iter().any(|one| one.starts_with(probe)),
                    "{probe}{found:?}"
                );
            }
            let entry = planned(&status, "/uplink/sidecar_address");
            let before = counted();
            look::attack_from_far(&lab, &status, &format!("knock(\"{entry}\", 7777)\nsay(1)"));
            look::eventually("the knock is dropped", &1, || {
                counted()["input/drop-unpublished"] - before["input/drop-unpublished"]
            });
        }
        // With the listening socket itself, in the words of a connection that was: to the very port of its client.
        let before_it = part(&lab.status("hand"), "app").clone();
        let before = counted();
        let code = "victim, peer = accept()\ndisconnect(victim)\ndisconnect(listener)\nresult = begin(listener, peer)\nafter = lambda: os._exit(1)";
        let came = have_it(&lab, code);
        match knows {
            true => assert_eq!(came, "EACCES"),
            false => {
                assert_eq!(came, "EINPROGRESS");
                assert!(dropped(&counted()) > dropped(&before));
            }
        }
        // Its socket is broken for good; the next one has a new one.
        until("it is there again", || {
            let app = part(&lab.status("hand"), "app").clone();
            (app["state"] == "running" && app["pid"] != before_it["pid"]).then_some(())
        });
        let again = have_it(&lab, "result = listener.getsockname()");
        assert_eq!(again, json!([own, 8000]));
        // And nobody but the sidecar's rules has had anything to do with it.
        let strange: Vec<String> = look::findings(&lab.lrpns(&["audit", "hand", "--json"]).stdout);
        if weaken == "nothing" {
            assert_eq!(strange, Vec::<String>::new());
        }
        lab.lrpns_ok(&["down", "hand"]);
    }
}

#[test]
fn the_sidecars_rules_judge_who_comes() {
    if !look::machine() {
        return;
    }
    for lab in [Lab::new(), Lab::forwarding()] {
        let file = stack(SERVER, "allow = [\"192.0.2.0/24\"]");
        look::up(&lab, &file);
        assert!(lab.client_get(&format!("http://{LAB}:5000/")).is_err());
        let told = until("the refusal is counted", || {
            let status = lab.status("hand");
            let relay = status["refused_by_relay"]["not_allowed"]
                .as_u64()
                .unwrap_or(0);
            let sidecar = status["traffic"]["refused"].as_u64().unwrap_or(0);
            (relay + sidecar > 0).then_some(status)
        });
        let status = told;
        if planned(&status, "/apps/0/publish/0/via") == "dnat" {
            let sidecar = init(&status, "sidecar");
            let counted = look::counters(&lab, Some(sidecar), "lrpns");
            assert!(counted["input/drop-socket-not-allowed"] > 0, "{counted:?}");
        }
        // Live, and back.
        let path = lab.write("more.toml", &stack(SERVER, "rate = \"2/minute\""));
        lab.lrpns_ok(&["apply", "-f", path.to_str().unwrap()]);
        let url = format!("http://{LAB}:5000/");
        let answered = (0..6).filter(|_| lab.client_get(&url).is_ok()).count();
        assert!((1..=2).contains(&answered), "{answered}");
        lab.lrpns_ok(&["down", "hand"]);
    }
}

#[test]
fn the_users_own_rules_see_what_comes() {
    if !look::machine() {
        return;
    }
    let lab = Lab::forwarding();
    let client = support::lab::CLIENT;
    lab.write(
        "own.nft",
        &format!("chain before {{ tcp dport 8000 ip saddr {client} counter drop; }}\n"),
    );
    let file = stack(SERVER, "").replace("[app]", "[sidecar]\nrules = \"own.nft\"\n[app]");
    look::up(&lab, &file);
    assert!(lab.client_get(&format!("http://{LAB}:5000/")).is_err());
    lab.get("http://127.0.0.1:5000/")
        .expect("this host is another client");
    let report = lab.lrpns(&["audit", "hand", "--json"]);
    assert_eq!(look::findings(&report.stdout), Vec::<String>::new());
    lab.lrpns_ok(&["down", "hand"]);
}

#[test]
fn it_changes_live_as_others_do() {
    if !look::machine() {
        return;
    }
    for lab in [Lab::new(), Lab::forwarding()] {
        look::up(&lab, &stack(SERVER, ""));
        let before = pid(&lab.status("hand"), "app");
        // Another port of the host: nothing of it starts again.
        let other = stack(SERVER, "").replace("0.0.0.0:5000:8000", "0.0.0.0:5001:8000");
        let path = lab.write("hand.toml", &other);
        let path = path.to_str().unwrap();
        lab.lrpns_ok(&["apply", "-f", path]);
        lab.client_get(&format!("http://{LAB}:5001/"))
            .expect("an answer at the new port");
        assert!(lab.client_get(&format!("http://{LAB}:5000/")).is_err());
        assert_eq!(pid(&lab.status("hand"), "app"), before);
        // Another port of its own: it is handed another socket.
        lab.write(
            "hand.toml",
            &stack(SERVER, "").replace("5000:8000", "5000:8001"),
        );
        lab.lrpns_ok(&["apply", "-f", path]);
        let answer = look::told(lab.client_get(&format!("http://{LAB}:5000/all")));
        assert_eq!(answer["handed"]["LISTEN_FDNAMES"], "8001", "{answer}");
        // One joins, and one leaves.
        let another = |file: &str| {
            let app = stack(SERVER, "")
                .split_once("[app]\n")
                .unwrap()
                .1
                .to_owned();
            let app = app
                .replace("172.18.0.23", "172.18.0.24")
                .replace("5000:8000", "5002:8000");
            format!("{}[app.web]\n{app}", file.replace("[app]", "[app.app]"))
        };
        let file = stack(SERVER, "").replace("5000:8000", "5000:8001");
        lab.write("hand.toml", &another(&file));
        lab.lrpns_ok(&["apply", "-f", path]);
        lab.client_get(&format!("http://{LAB}:5002/"))
            .expect("an answer of who joined");
        let audit = || look::findings(&lab.lrpns(&["audit", "hand", "--json"]).stdout);
        assert_eq!(audit(), Vec::<String>::new());
        lab.write("hand.toml", &file);
        lab.lrpns_ok(&["apply", "-f", path]);
        assert!(lab.client_get(&format!("http://{LAB}:5002/")).is_err());
        lab.client_get(&format!("http://{LAB}:5000/"))
            .expect("an answer of who stays");
        // What it had is gone.
        assert_eq!(audit(), Vec::<String>::new());
        lab.write(
            "hand.toml",
            &file.replace("via = \"socket\"", "via = \"auto\""),
        );
        let (code, said) = lab.lrpns_err(&["apply", "-f", path]);
        assert!(
            said.contains("app.via can't be changed while the stack runs"),
            "{code}: {said}"
        );
        lab.lrpns_ok(&["down", "hand"]);
    }
}

/// What a server is called here, the program that has to be there, its files, what it is run as, and what more it needs.
type Server = (
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static [&'static str],
    &'static str,
);

/// As the manual has them.
const SERVERS: [Server; 4] = [
    (
        "gunicorn",
        &[(
            "hello.py",
            "def app(environ, start):\n    start('200 OK', [])\n    return [b'hello']\n",
        )],
        &[
            "/usr/bin/gunicorn",
            "--chdir",
            "/srv/app",
            "--worker-tmp-dir",
            "/dev/shm",
            "hello:app",
        ],
        "",
    ),
    (
        "nginx",
        &[("nginx.conf", NGINX)],
        &["/usr/sbin/nginx", "-c", "/srv/app/nginx.conf"],
        "env = { NGINX = \"3;\" }",
    ),
    (
        "node",
        &[(
            "server.js",
            "require('http').createServer((ask, answer) => answer.end('hello')).listen({ fd: 3 });",
        )],
        &["/usr/bin/node", "/srv/app/server.js"],
        "",
    ),
    ("go", &[("main.go", GO)], &["/srv/app/hello"], ""),
];

const NGINX: &str = r#"
daemon off;
pid /tmp/nginx.pid;
error_log stderr;
events {}
http {
    client_body_temp_path /tmp/body;
    proxy_temp_path /tmp/proxy;
    fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi;
    scgi_temp_path /tmp/scgi;
    access_log off;
    server {
        listen 172.18.0.23:8000;
        return 200 "hello";
    }
}
"#;

const GO: &str = r#"
package main
import ("net"; "net/http"; "os")
func main() {
	listener, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil { panic(err) }
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("hello")) })
	panic(http.Serve(listener, nil))
}
"#;

#[test]
fn servers_take_what_they_are_handed() {
    if !look::machine() {
        return;
    }
    for (name, files, command, more) in SERVERS {
        if support::program(name).is_none() {
            support::skip(name, "it is to be handed a socket");
            continue;
        }
        let lab = Lab::new();
        let dir = lab.volume("app");
        for (file, text) in files {
            std::fs::write(dir.join(file), text).unwrap();
        }
        if name == "go" {
            let home = lab.dir.path().join("home");
            let built = std::process::Command::new("go")
                .args(["build", "-o", "hello", "main.go"])
                .current_dir(&dir)
                .env("HOME", &home)
                .env("GOCACHE", home.join("cache"))
                .output()
                .unwrap();
            assert!(built.status.success(), "{}", describe(&built));
        }
        let volume = format!("volumes = [\"{}:/srv/app:ro,exec\"]\n{more}", dir.display());
        let file = stack("", &volume);
        let lines = file.lines().map(|line| match line {
            line if line.starts_with("command = ") => format!("command = {}\n", toml_list(command)),
            line => format!("{line}\n"),
        });
        look::up(&lab, &lines.collect::<String>());
        let answer = || lab.client_get(&format!("http://{LAB}:5000/"));
        assert_eq!(answer(), Ok("hello".to_owned()), "{name}");
        lab.lrpns_ok(&["restart", "hand", "app"]);
        assert_eq!(answer(), Ok("hello".to_owned()), "{name}, started again");
        let report = lab.lrpns(&["audit", "hand", "--json"]);
        assert_eq!(
            look::findings(&report.stdout),
            Vec::<String>::new(),
            "{name}"
        );
        lab.lrpns_ok(&["down", "hand"]);
    }
}

#[test]
fn what_takes_a_network_is_refused_with_the_file() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let with = |more: &str| stack("pass", more);
    let other =
        "[app.other]\nrootfs = \"host\"\ncommand = [\"/bin/true\"]\nconnect = [\"app:8000\"]\n";
    let cases = [
        (
            with("egress = [\"tcp 192.0.2.1:80\"]"),
            "`egress` needs a network",
        ),
        (with("connect = [\"db:5432\"]"), "`connect` needs a network"),
        (with("source = \"sidecar\""), "sees its clients"),
        (with("replace = \"rolling\""), "need not be there twice"),
        (with("health = { tcp = true }"), "connects within the app"),
        (
            with("").replace(":8000\"", ":8000/udp\""),
            "which UDP has not",
        ),
        (
            with("").replace("0.0.0.0:5000:8000", "0.0.0.0:5000-5032:8000-8032"),
            "at most 32 sockets",
        ),
        (
            with("").replace("\"0.0.0.0:5000:8000\"", ""),
            "this one publishes none",
        ),
        (
            with("").replace("[app]", "[app.app]") + other,
            "`app` has no network by which other apps could reach it",
        ),
    ];
    for (file, expected) in cases {
        let path = lab.write("hand.toml", &file);
        let (code, said) = lab.lrpns_err(&["plan", "-f", path.to_str().unwrap()]);
        assert_eq!(code, 2, "{file}\n{said}");
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let (code, said) = lab.lrpns_err(&["run", "--via", "socket", "--", "/bin/true"]);
    assert!(
        code == 2 && said.contains("this one publishes none"),
        "{said}"
    );
}

//! What Landlock leaves an app: its own ports, its own files, its own processes; and that it is the same for the app's
//! command and for what `lrpns exec` runs.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use support::lab::{Lab, describe, lrpns};
use support::look::{self, PYTHON};

/// Whether this machine can show it.
fn machine() -> bool {
    if !look::machine() {
        return false;
    }
    let support = lrpns::confine::landlock::Support::of_this_kernel();
    if !(support.files && support.tcp && support.scopes) {
        support::skip("landlock", "this kernel has not all of Landlock (6.12)");
        return false;
    }
    true
}

/// What an app tries, and how each went: with its published port 5000 taken, 6000 in `listen`, and UDP's
/// 5300 published.
const TRIES: &str = r#"
def bind(port):
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("0.0.0.0", port))
def otherwise(address, port):
    # The two ways to speak TCP that Landlock is not asked about.
    with socket.socket() as s:
        fast = tried(s.sendto, b"x", 0x20000000, (address, port))
    return [fast, tried(socket.socket, socket.AF_INET, socket.SOCK_STREAM, 262)]
def files(*paths):
    return {path: tried(lambda: os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))) for path in paths}
def move():
    os.makedirs("/tmp/a", exist_ok=True)
    open("/tmp/here", "w").close()
    os.rename("/tmp/here", "/tmp/a/there")
def talk():
    with socket.socket(socket.AF_UNIX) as s, socket.socket(socket.AF_UNIX) as c:
        s.bind("\0own-%d" % os.getpid())
        s.listen()
        c.connect("\0own-%d" % os.getpid())
tries = {
    "bind": {port: tried(bind, port) for port in (5000, 6000, 5300, 7000, 0)},
    "listen without": tried(lambda: socket.socket().listen()),
    "connect": {port: knock("127.0.0.1", port) for port in (5000, 6001, 22)},
    "within": knock("127.0.0.1", 6000),
    "otherwise": otherwise("127.0.0.1", 22),
    "devices": files("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"),
    "terminal": os.isatty(os.open("/dev/null", os.O_RDWR)),
    "tmpfs": files("/tmp/x"),
    "move": tried(move),
    "name": tried(lambda: open("/proc/self/comm", "w").write("me")),
    "abstract": tried(talk),
}
"#;

#[test]
fn an_app_binds_and_connects_to_its_own_ports_and_so_does_exec() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    // With its ports taken, and before it serves.
    let (listen, serve) = look::TELLING.split_once("serve(5000).").unwrap();
    let serve = format!(
        "{}\n{listen}\nserver = serve(5000)\nudp = socket.socket(type=socket.SOCK_DGRAM)\nudp.bind(('0.0.0.0', 5300))\n{TRIES}\nos.environ['TOKEN'] = json.dumps(tries)\nserver.{serve}",
        look::ATTACKS
    );
    let file = format!(
        "name = \"web\"\n[app]\nrootfs = \"host\"\ncommand = {}\npublish = [\"5000:5000\", \"5300:5300/udp\"]\nlisten = [6000]\n",
        look::toml_list(&[PYTHON, "-c", &serve])
    );
    look::up(&lab, &file);
    let answer: Value = serde_json::from_str(&lab.get("http://localhost:5000/").unwrap()).unwrap();
    let by_command: Value = serde_json::from_str(answer["token"].as_str().unwrap()).unwrap();
    let by_exec = look::attack(&lab, "web", "app", &format!("{TRIES}\nsay(tries)"));
    let ok = |names: &[&str]| -> Value { names.iter().map(|name| (*name, json!("OK"))).collect() };
    for (who, found) in [("command", by_command), ("exec", by_exec)] {
        assert_eq!(
            found,
            json!({
                // Landlock is asked before the kernel looks who has the port. Nobody has TCP's port 5300: DNS servers bind it
                // besides UDP's.
                "bind": {"5000": "EADDRINUSE", "6000": "EADDRINUSE", "5300": "OK", "7000": "EACCES", "0": "EACCES"},
                "listen without": "OK",
                "connect": {"5000": "EINPROGRESS", "6001": "EACCES", "22": "EACCES"},
                "within": "EINPROGRESS",
                "otherwise": ["ENOTSUP", "EPROTONOSUPPORT"],
                "devices": ok(&["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"]),
                "terminal": false,
                "tmpfs": ok(&["/tmp/x"]),
                "move": "OK",
                "name": "OK",
                "abstract": "OK",
            }),
            "{who}"
        );
    }
    let notes = look::part(&lab.status("web"), "app")["notes"].to_string();
    assert!(!notes.contains("Landlock"), "{notes}");
}

#[test]
fn exec_sees_and_signals_what_the_app_does() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    let file = "name = \"web\"\n[app]\nrootfs = \"host\"\nrestart = \"no\"\n\
                command = [\"sh\", \"-c\", \"echo $$$$ >/tmp/pid; exec sleep infinity\"]\n";
    look::up(&lab, file);
    let seen = look::attack(
        &lab,
        "web",
        "app",
        "pid, exe = '', ''\n\
         while not exe.endswith('sleep'):\n\
         \x20   pid = open('/tmp/pid').read().strip() if os.path.exists('/tmp/pid') else ''\n\
         \x20   exe = os.readlink('/proc/' + pid + '/exe') if pid else ''\n\
         say([open('/proc/' + pid + '/cmdline').read(), exe])",
    );
    assert_eq!(seen, json!(["sleep\0infinity\0", "/usr/bin/sleep"]));
    let kill = lab.lrpns(&["exec", "web", "--", "sh", "-c", "kill -0 $(cat /tmp/pid)"]);
    assert!(kill.status.success(), "{}", describe(&kill));
}

#[test]
fn a_directory_of_the_host_that_got_in_is_of_no_use() {
    if !machine() {
        return;
    }
    // The second time without, to see that nothing else keeps it from the app.
    for (weaken, found) in [("", ""), ("landlock-files", "of the host\nnew\nsecret\n")] {
        let lab = Lab::new();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_str().unwrap();
        std::fs::write(directory.path().join("secret"), "of the host\n").unwrap();
        lab.ok(&["chmod", "777", path]);
        let file = lab.write(
            "x.toml",
            "name = \"x\"\n[app]\nrootfs = \"host\"\ncommand = [\"sleep\", \"infinity\"]\n",
        );
        let weaken = format!("LRPNS_TEST_WEAKEN={weaken}");
        lab.ok(&[
            "env",
            &weaken,
            lrpns(),
            "up",
            "-d",
            "-f",
            file.to_str().unwrap(),
        ]);
        // Standard input is the one thing that whoever starts something in an app may choose.
        let code = "cd /proc/self/fd/0/ && cat secret && : >new && ls";
        let output = lab
            .command(&[lrpns(), "exec", "x", "--", "sh", "-c", code])
            .stdin(std::fs::File::open(path).unwrap())
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            found,
            "{}",
            describe(&output)
        );
        assert_eq!(output.status.success(), !found.is_empty());
    }
}

#[test]
fn an_app_that_needs_another_port_is_told_which_key_gives_it() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    let file = look::telling("web", "", "5000:5000", "").replace("listen = [6000]\n", "");
    let path = lab.write("lrpns.toml", &file);
    let up = lab.lrpns(&["up", "-d", "-f", path.to_str().unwrap()]);
    assert_eq!(up.status.code(), Some(1), "{}", describe(&up));
    let said = String::from_utf8_lossy(&up.stderr).into_owned();
    assert!(said.contains("Permission denied"), "{said}");
    assert!(said.contains("listen = [PORT]"), "{said}");
}

#[test]
fn listening_at_0_lets_an_app_bind_what_is_free_and_connect_nowhere() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    let code = "import socket\n\
                s = socket.socket(); s.bind(('0.0.0.0', 0)); s.listen()\n\
                free = s.getsockname()[1]\n\
                def tried(f, at):\n\
                \x20try: f(at); return 0\n\
                \x20except OSError as e: return e.errno\n\
                print(free >= 32768, tried(socket.socket().bind, ('0.0.0.0', 7000)), \
                tried(socket.socket().connect, ('127.0.0.1', free)), flush=True)\n\
                import signal; signal.pause()";
    let file = format!(
        "name = \"web\"\n[app]\nrootfs = \"host\"\nlisten = [0]\ncommand = {}\n",
        look::toml_list(&[look::PYTHON, "-c", code])
    );
    look::up(&lab, &file);
    support::lab::until("the app says what it could", || {
        let said = lab.lrpns_ok(&["logs", "web"]);
        said.contains("True 13 13").then_some(())
    });
    // A socket that listens there is none that audit does not expect.
    lab.lrpns_ok(&["audit", "web"]);
}

#[test]
fn a_port_that_is_none_is_refused_with_its_place() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    for (listen, words) in [
        ("[70000]", "above 65535"),
        ("[true]", "a port"),
        ("6379", "a list of ports"),
    ] {
        let file = look::telling("web", "", "5000:5000", "").replace("[6000]", listen);
        let path = lab.write("lrpns.toml", &file);
        let plan = lab.lrpns(&["plan", "-f", path.to_str().unwrap()]);
        assert_eq!(plan.status.code(), Some(2), "{}", describe(&plan));
        let said = String::from_utf8_lossy(&plan.stderr).into_owned();
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn no_protocol_connects_past_it_whatever_the_profile_says() {
    if !look::machine() {
        return;
    }
    let open = r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [] }"#;
    let tries = r#"
def of(family, kind, protocol=0):
    return tried(lambda: call(libc.socket(family, kind, protocol)))
def ulp():
    s = socket.socket()
    s.setsockopt(6, 31, b"smc")
say([of(2, 1, 256), of(10, 1, 256), of(2, 1, 262), of(2, 1, 132), of(2, 5), of(43, 1), of(40, 1), of(21, 5), tried(ulp),
     of(2, 1), of(2, 2), of(1, 1)])
"#;
    for profile in ["default", "strict", "open.json"] {
        let lab = Lab::new();
        lab.write("open.json", open);
        let more = format!("seccomp = \"{profile}\"");
        look::up(&lab, &look::telling("web", "t", "5000:5000", &more));
        let said = look::attack(&lab, "web", "app", tries);
        let said: Vec<_> = said
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_str().unwrap())
            .collect();
        let protocol = "EPROTONOSUPPORT";
        assert_eq!(
            said[..5],
            [protocol, protocol, protocol, protocol, "EPERM"],
            "{profile}"
        );
        assert_eq!(said[5..8], ["EPERM"; 3], "{profile}");
        assert_eq!(said[8], "ENOENT", "{profile}");
        let local = if profile == "strict" { "EPERM" } else { "OK" };
        assert_eq!(said[9..], ["OK", "OK", local], "{profile}");
    }
}

//! How a stack ends: in order, with what is under way answered, and within the time that each app has.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Output};

use support::lab::{LAB, Lab, describe, lrpns, until};
use support::look::{self, PYTHON, toml_list};
use support::user::User;

/// Answers `/slow` when it has been told to end and `/data/go` is there, then ends with what is under way.
const GRACEFUL: &str = r#"
import http.server, os, signal, threading, time
stopping = threading.Event()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"at once"
        if self.path == "/slow":
            open("/data/asked." + str(threading.get_ident()), "w").close()
            stopping.wait()
            while not os.path.exists("/data/go"):
                time.sleep(0.01)
            body = b"in the end" + b"." * 200000
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
server = http.server.ThreadingHTTPServer(("0.0.0.0", 5000), Handler)
server.daemon_threads = False
def stop(signal, frame):
    open("/data/" + signal_names[signal], "w").close()
    stopping.set()
    threading.Thread(target=server.shutdown).start()
signal_names = {s: s.name for s in signal.Signals}
for s in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(s, stop)
server.serve_forever()
server.server_close()
"#;

/// Writes what it holds to disk when it is told to end, and not at once.
const FLUSHES: &str = r#"
import os, signal, sys, threading
told = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: told.set())
open("/data/ready", "w").close()
while not told.wait(0.01): pass
threading.Event().wait(0.3)
open("/data/flushed", "w").close()
"#;

/// Serves one client after the other, the first of them when `/data/go` is there; told to end, it ends with who it has. Half a
/// second more is what it takes until it has been told, if it is to be told at once.
const ONE_BY_ONE: &str = r#"
import os, signal, socket, time
ends = False
def stop(signal, frame):
    global ends
    ends = True
signal.signal(signal.SIGTERM, stop)
listening = socket.create_server(("0.0.0.0", 5000))
listening.settimeout(0.01)
first = True
while not ends:
    try: client, _ = listening.accept()
    except TimeoutError: continue
    request = client.recv(1000)
    if not request: continue
    if first:
        first = False
        open("/data/asked", "w").close()
        while not os.path.exists("/data/go"): time.sleep(0.01)
        for _ in range(50):
            if not ends: time.sleep(0.01)
    client.sendall(b"HTTP/1.0 200 OK\r\n\r\nserved")
    client.close()
"#;

/// A stack of one app.
fn stack(name: &str, command: &[&str], data: &Path, more: &str) -> String {
    format!(
        "name = \"{name}\"\n[app]\nrootfs = \"host\"\ncommand = {}\nvolumes = [\"{}:/data:rw\"]\n{more}\n",
        toml_list(command),
        data.display()
    )
}

/// A stack of the built-in app, which nobody asks anything.
fn idle(name: &str) -> String {
    format!("name = \"{name}\"\n[app]\nrootfs = \"builtin:webapp\"\nenv = {{ PORT = \"5000\" }}\n")
}

/// A lab where a port can be published so, a volume's directory, and the lines that publish it.
fn published(via: &str) -> (Lab, PathBuf, String) {
    let lab = match via {
        "dnat" => Lab::forwarding(),
        _ => Lab::new(),
    };
    let data = lab.volume("data");
    let more = format!("publish = [\"0.0.0.0:5000:5000\"]\nvia = \"{via}\"");
    (lab, data, more)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn is_there(path: &Path) {
    until(&format!("{}", path.display()), || {
        path.exists().then_some(())
    });
}

/// How many requests are under way.
fn asked(data: &Path) -> usize {
    let names = std::fs::read_dir(data).unwrap().flatten();
    let is_one = |name: &std::fs::DirEntry| name.file_name().to_string_lossy().starts_with("asked");
    names.filter(is_one).count()
}

/// What a client that was asking when the end began has got.
fn answered(client: Child) {
    let output = client.wait_with_output().unwrap();
    let body = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", describe(&output));
    assert!(body.starts_with("in the end") && body.len() == 200_010);
}

const SLOW: &str = "curl -sS --max-time 60 http://";

/// Clients of every kind, each with a request under way.
fn clients(lab: &Lab, data: &Path) -> Vec<Child> {
    let local = format!("{SLOW}127.0.0.1:5000/slow");
    let own = format!("{SLOW}{LAB}:5000/slow");
    let outside = format!("ip netns exec client {own}");
    let all = [local, own, outside];
    let started = all.map(|command| lab.spawn(&command.split(' ').collect::<Vec<_>>()));
    until("the requests are under way", || {
        (asked(data) == 3).then_some(())
    });
    started.into()
}

#[test]
fn what_is_under_way_at_down_is_answered_and_nobody_new_is_let_in() {
    if !look::machine() {
        return;
    }
    for via in ["relay", "dnat"] {
        let (lab, data, more) = published(via);
        look::up(
            &lab,
            &stack("served", &[PYTHON, "-c", GRACEFUL], &data, &more),
        );
        let clients = clients(&lab, &data);
        let down = lab.spawn_lrpns(&["down", "served"]);
        is_there(&data.join("SIGTERM"));
        for url in [
            "http://127.0.0.1:5000/".to_owned(),
            format!("http://{LAB}:5000/"),
        ] {
            assert_eq!(lab.get(&url), Err(7), "{via}: {url} refuses");
        }
        // At once: nobody is left to try again until he gives up.
        let outside = lab.client_get(&format!("http://{LAB}:5000/"));
        assert_eq!(outside, Err(7), "{via}: refuses the client");
        std::fs::write(data.join("go"), "").unwrap();
        clients.into_iter().for_each(answered);
        let down = down.wait_with_output().unwrap();
        assert!(down.status.success(), "{via}: {}", describe(&down));
    }
}

#[test]
fn an_app_is_told_to_end_when_it_has_accepted_whoever_was_let_in() {
    if !look::machine() {
        return;
    }
    for via in ["relay", "dnat"] {
        let (lab, data, more) = published(via);
        let command = [PYTHON, "-c", ONE_BY_ONE];
        look::up(&lab, &stack("turns", &command, &data, &more));
        let ask = || {
            let url = format!("http://{LAB}:5000/");
            lab.spawn(&[
                "ip",
                "netns",
                "exec",
                "client",
                "curl",
                "-sS",
                "--max-time",
                "60",
                &url,
            ])
        };
        let first = ask();
        is_there(&data.join("asked"));
        let second = ask();
        until("the second waits to be accepted", || {
            let table = lab.lrpns_ok(&["exec", "turns", "--", "cat", "/proc/net/tcp"]);
            // A listening socket has for its queue how many wait (proc_net(5)).
            let waits = |line: &str| line.contains(" 0A 00000000:00000001 ");
            table.lines().any(waits).then_some(())
        });
        let down = lab.spawn_lrpns(&["down", "turns"]);
        until("it goes down", || {
            (lab.status("turns")["stopping"] == true).then_some(())
        });
        std::fs::write(data.join("go"), "").unwrap();
        for client in [first, second] {
            let output = client.wait_with_output().unwrap();
            let body = String::from_utf8_lossy(&output.stdout);
            assert_eq!(body, "served", "{via}: {}", describe(&output));
        }
        let down = down.wait_with_output().unwrap();
        assert!(down.status.success(), "{via}: {}", describe(&down));
    }
}

#[test]
fn what_is_under_way_is_answered_at_a_restart_and_at_a_signal_to_up() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let data = lab.volume("data");
    let more = "publish = [\"0.0.0.0:5000:5000\"]\nvia = \"relay\"\nstop_signal = \"USR1\"";
    let file = stack("served", &[PYTHON, "-c", GRACEFUL], &data, more);
    let file = lab.write("served.toml", &file);
    let mut up = lab.spawn_lrpns(&["up", "-f", file.to_str().unwrap()]);
    until("it is up", || lab.get("http://127.0.0.1:5000/").ok());
    let asking = clients(&lab, &data);
    let restart = lab.spawn_lrpns(&["restart", "served", "app"]);
    is_there(&data.join("SIGUSR1"));
    std::fs::write(data.join("go"), "").unwrap();
    asking.into_iter().for_each(answered);
    let restart = restart.wait_with_output().unwrap();
    assert!(restart.status.success(), "{}", describe(&restart));

    for entry in std::fs::read_dir(&data).unwrap().flatten() {
        std::fs::remove_file(entry.path()).unwrap();
    }
    let asking = clients(&lab, &data);
    lab.kill("TERM", &lab.status("served")["supervisor"]);
    is_there(&data.join("SIGUSR1"));
    std::fs::write(data.join("go"), "").unwrap();
    asking.into_iter().for_each(answered);
    assert!(up.wait().unwrap().success());
}

#[test]
fn what_a_command_has_left_running_gets_its_signal_and_its_time() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let server = format!("{PYTHON} -c '{FLUSHES}'");
    // The shell dies of its signal; it waits for the server and passes nothing on; it ends by itself.
    for (name, command, more) in [
        ("dies", format!("{server} & wait"), ""),
        (
            "holds",
            format!("trap : TERM; {server}; while :; do sleep 60 & wait; done"),
            "stop_timeout = \"2s\"",
        ),
    ] {
        let data = lab.volume(name);
        look::up(
            &lab,
            &stack(name, &["/bin/sh", "-c", &command], &data, more),
        );
        is_there(&data.join("ready"));
        let down = lab.lrpns(&["down", name]);
        assert!(down.status.success(), "{}", describe(&down));
        assert!(data.join("flushed").exists(), "{name}: {}", stderr(&down));
    }
    let data = lab.volume("ends");
    let command =
        format!("{server} & while [ ! -e /data/end ]; do sleep 0.01; done; rm /data/end; exit 3");
    look::up(
        &lab,
        &stack("ends", &["/bin/sh", "-c", &command], &data, ""),
    );
    is_there(&data.join("ready"));
    std::fs::remove_file(data.join("ready")).unwrap();
    let end = data.join("end");
    std::fs::write(&end, "").unwrap();
    std::os::unix::fs::chown(&end, Some(1000), Some(1000)).unwrap();
    is_there(&data.join("ready"));
    assert!(data.join("flushed").exists(), "before it was started again");
}

#[test]
fn down_says_what_it_waits_for_and_that_it_killed() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let data = lab.volume("data");
    let command = "trap '' TERM; touch /data/ready; while :; do sleep 60; done";
    let more = "stop_timeout = \"2500ms\"";
    look::up(
        &lab,
        &stack("deaf", &["/bin/sh", "-c", command], &data, more),
    );
    is_there(&data.join("ready"));
    let down = lab.lrpns(&["down", "deaf"]);
    assert!(down.status.success(), "{}", describe(&down));
    let said = stderr(&down);
    for part in [
        "deaf: app: waiting for its command to end on SIGTERM, for 2s of at most 2500ms",
        "deaf: app: killed: its command did not end within 2500ms of SIGTERM",
        "deaf: app: killed: what its command had left running did not end within 2500ms",
        "deaf is down",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn a_second_ctrl_c_kills_at_once() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let data = lab.volume("data");
    let command =
        "trap 'touch /data/told' TERM; touch /data/ready; while :; do sleep 60 & wait; done";
    let text = stack(
        "deaf",
        &["/bin/sh", "-c", command],
        &data,
        "stop_timeout = \"60m\"",
    );
    let file = lab.write("deaf.toml", &text);
    let file = file.to_str().unwrap();
    let clean = || {
        for name in ["ready", "told"] {
            let _ = std::fs::remove_file(data.join(name));
        }
    };

    let mut up = lab.spawn_lrpns(&["up", "-f", file]);
    is_there(&data.join("ready"));
    let supervisor = until("it is up", || {
        let status = lab.lrpns(&["status", "deaf", "--json"]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).ok()?;
        Some(status["supervisor"].clone())
    });
    lab.kill("INT", &supervisor);
    is_there(&data.join("told"));
    lab.kill("INT", &supervisor);
    assert!(up.wait().unwrap().success());
    let mut said = String::new();
    up.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("killed, as asked for"), "{said}");

    clean();
    lab.lrpns_ok(&["up", "-d", "-f", file]);
    is_there(&data.join("ready"));
    // By its number in the lab, which only the lab knows.
    let script = format!("echo $$; exec {} down deaf", lrpns());
    let mut down = lab.spawn(&["sh", "-c", &script]);
    let mut pid = String::new();
    BufReader::new(down.stdout.take().unwrap())
        .read_line(&mut pid)
        .unwrap();
    let pid = serde_json::Value::from(pid.trim().parse::<i64>().unwrap());
    is_there(&data.join("told"));
    let mut said = BufReader::new(down.stderr.take().unwrap());
    lab.kill("INT", &pid);
    let mut line = String::new();
    while !line.contains("Ctrl-C again kills it at once") {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "it says so");
    }
    lab.kill("INT", &pid);
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert!(down.wait().unwrap().success());
    assert!(rest.contains("deaf: app: killed, as asked for"), "{rest}");
    assert!(rest.contains("deaf is down"), "{rest}");
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
    let command = format!("{PYTHON} -c '{GRACEFUL}' & wait");
    let more = "publish = [\"0.0.0.0:5000:5000\"]";
    user.up(&stack("served", &["/bin/sh", "-c", &command], &data, more));
    let clients = clients(&lab, &data);
    let mut down = user
        .command(&[&user.program(), "down", "served"])
        .spawn()
        .unwrap();
    is_there(&data.join("SIGTERM"));
    assert_eq!(lab.get("http://127.0.0.1:5000/"), Err(7), "it refuses");
    std::fs::write(data.join("go"), "").unwrap();
    clients.into_iter().for_each(answered);
    assert!(down.wait().unwrap().success());
}

/// Becomes the parent of a process in another pid namespace, and never waits for it.
const CARELESS: &str = r#"
import ctypes, os, signal, sys
if ctypes.CDLL(None).setns(os.open(f"/proc/{sys.argv[1]}/ns/pid", os.O_RDONLY), 0):
    sys.exit("setns")
if os.fork() == 0:
    signal.pause()
print("ready", flush=True)
signal.pause()
"#;

#[test]
fn a_zombie_that_somebody_else_left_in_a_part_keeps_neither_the_part_nor_the_stack() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let text = "name = \"visited\"\n[app]\nrootfs = \"builtin:webapp\"\nenv = { PORT = \"5000\" }\npublish = [\"5000:5000\"]\n";
    look::up(&lab, text);
    let sidecar = || look::pid(&lab.status("visited"), "sidecar");
    let first = sidecar();
    let _one = lab.start(&[PYTHON, "-c", CARELESS, &first.to_string()]);
    lab.kill("KILL", &first.into());
    let second = until("another sidecar is there", || {
        let status = lab.status("visited");
        let parts = status["parts"].as_array().unwrap();
        let part = parts.iter().find(|part| part["name"] == "sidecar").unwrap();
        part["pid"].as_i64().filter(|pid| *pid != first)
    });
    let _other = lab.start(&[PYTHON, "-c", CARELESS, &second.to_string()]);
    let lrpns = lrpns();
    let down = lab.run(&["timeout", "60", lrpns, "down", "visited"]);
    assert!(down.status.success(), "{}", describe(&down));
    let said = stderr(&down);
    assert!(said.contains("sidecar: killed, and does not end"), "{said}");
    assert!(!lab.root().join("run/lrpns/visited").exists());
    assert!(!lab.ok(&["ip", "-o", "link"]).contains("lrp"));
}

/// Has the lock of all stacks, and is stopped.
const STOPPED: &str = r#"
import fcntl, os, signal
os.makedirs("/run/lrpns", 0o700, exist_ok=True)
lock = open("/run/lrpns/.lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("ready", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"#;

#[test]
fn who_was_stopped_with_the_lock_of_all_stacks_is_named_and_not_waited_for() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    look::up(&lab, &idle("other"));
    let _stopped = lab.start(&[PYTHON, "-c", STOPPED]);
    for command in [&["ps"][..], &["rm", "none"], &["gc"], &["up", "-d"]] {
        let args = [&["timeout", "60", lrpns()][..], command].concat();
        let refused = lab.run(&args);
        let said = stderr(&refused);
        assert_eq!(refused.status.code(), Some(125), "{command:?}: {said}");
        assert!(said.contains("/run/lrpns/.lock: process "), "{said}");
        assert!(said.contains("was stopped (SIGSTOP)"), "{said}");
        assert!(said.contains("hint: kill -CONT "), "{said}");
    }
}

#[test]
fn an_up_of_a_stack_whose_supervisor_was_stopped_names_it_and_does_not_wait() {
    let lab = Lab::new();
    let text = "name = \"other\"\n[app]\nrootfs = \"builtin:webapp\"\nenv = { PORT = \"5000\" }\n";
    look::up(&lab, text);
    let supervisor = lab.status("other")["supervisor"].to_string();
    lab.ok(&["kill", "-STOP", &supervisor]);
    let file = lab.write("again.toml", text);
    let refused = lab.run(&[
        "timeout",
        "60",
        lrpns(),
        "up",
        "-d",
        "-f",
        file.to_str().unwrap(),
    ]);
    let said = stderr(&refused);
    assert_eq!(refused.status.code(), Some(125), "{said}");
    assert!(
        said.contains("the supervisor of other does not answer"),
        "{said}"
    );
    assert!(said.contains("hint: it was stopped (SIGSTOP)"), "{said}");
    lab.lrpns_ok(&["down", "other"]);
}

#[test]
fn a_restart_whose_supervisor_is_stopped_in_between_says_so_and_does_not_wait() {
    let lab = Lab::new();
    let text = "name = \"slow\"\n[app]\nrootfs = \"host\"\nstop_timeout = \"600s\"\n\
        command = [\"/bin/sh\", \"-c\", \"trap 'echo heard it' TERM; echo begun; while :; do sleep 0.1; done\"]\n";
    look::up(&lab, text);
    let logged = |words: &str| {
        until(words, || {
            let log = lab.lrpns_ok(&["logs", "slow"]);
            log.contains(words).then_some(())
        });
    };
    logged("begun");
    let asked = lab.spawn_lrpns(&["restart", "slow"]);
    logged("heard it");
    let supervisor = lab.status("slow")["supervisor"].to_string();
    lab.ok(&["kill", "-STOP", &supervisor]);
    let refused = asked.wait_with_output().unwrap();
    let said = stderr(&refused);
    assert_eq!(refused.status.code(), Some(125), "{said}");
    assert!(said.contains("hint: it was stopped (SIGSTOP)"), "{said}");
    lab.lrpns_ok(&["down", "slow"]);
}

/// As a supervisor that was killed: its end of the conversation is closed, and it has its socket and its lock for a moment
/// more.
const DYING: &str = r#"
import fcntl, os, socket, time
os.chdir("/run/lrpns/customerA")
lock = open("lock", "r+")
fcntl.flock(lock, fcntl.LOCK_EX)
os.unlink("control.sock")
listener = socket.socket(socket.AF_UNIX)
listener.bind("control.sock")
listener.listen()
print("ready", flush=True)
client, _ = listener.accept()
client.close()
# The kernel takes a while, at times, to close what comes between, and who connects meanwhile is not refused.
time.sleep(0.3)
"#;

#[test]
fn what_a_supervisor_leaves_that_ends_while_it_is_asked_is_removed() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    lab.lrpns_ok(&["up", "-d"]);
    let supervisor = lab.status("customerA")["supervisor"].clone();
    lab.kill("KILL", &supervisor);
    until("its lock is free", || {
        let free = ["flock", "--nonblock", "/run/lrpns/customerA/lock", "true"];
        lab.run(&free).status.success().then_some(())
    });
    let _dying = lab.start(&[PYTHON, "-c", DYING]);
    let down = lab.run(&[lrpns(), "down", "customerA"]);
    assert!(down.status.success(), "{}", describe(&down));
    assert!(!lab.root().join("run/lrpns/customerA").exists());
}

/// Listens in the place of a supervisor that has ended, by a process that has ended too; another has its number, and is stopped.
const NUMBER_OF_ANOTHER: &str = r#"
import os, signal, socket
path = "/run/lrpns/other/control.sock"
os.unlink(path)
listener = socket.socket(socket.AF_UNIX)
listens = os.fork()
if listens == 0:
    listener.bind(path)
    listener.listen()
    os._exit(0)
os.waitpid(listens, 0)
while True:
    with open("/proc/sys/kernel/ns_last_pid", "w") as last:
        last.write(str(listens - 1))
    other = os.fork()
    if other == 0:
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    if other == listens:
        break
    os.kill(other, signal.SIGKILL)
    os.waitpid(other, 0)
os.waitpid(other, os.WUNTRACED)
with open("other.pid", "w") as file:
    file.write(str(other))
print("ready", flush=True)
signal.pause()
"#;

#[test]
fn down_kills_nobody_who_has_the_number_of_who_listened() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    look::up(&lab, &idle("other"));
    lab.kill("KILL", &lab.status("other")["supervisor"]);
    let _listens = lab.start(&[PYTHON, "-c", NUMBER_OF_ANOTHER]);
    let other = std::fs::read_to_string(lab.dir.path().join("other.pid")).unwrap();
    let down = lab.run(&["timeout", "60", lrpns(), "down", "other"]);
    assert!(down.status.success(), "{}", describe(&down));
    let stat = lab.ok(&["cat", &format!("/proc/{other}/stat")]);
    assert_eq!(stat.split(' ').nth(2), Some("T"), "{stat}");
}

/// Who has taken a supervisor over, had its stack removed, and forks.
const GHOST: &str = r#"
import os, signal, sys
os.setgroups([])
os.setresgid(*[int(sys.argv[1])] * 3)
os.setresuid(*[int(sys.argv[1])] * 3)
for _ in range(3):
    os.fork()
signal.pause()
"#;

/// The lab's processes of that uid which have not ended.
fn of_uid(lab: &Lab, uid: u32) -> usize {
    let all = std::fs::read_dir(lab.root().join("proc")).unwrap();
    let line = format!("Uid:\t{uid}\t");
    let is_it = |status: &String| status.contains(&line) && !status.contains("State:\tZ");
    let all = all.map(|entry| std::fs::read_to_string(entry.unwrap().path().join("status")));
    all.flatten().filter(is_it).count()
}

#[test]
fn what_a_supervisor_without_a_stack_has_left_is_ended_and_nobody_else() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    look::up(&lab, &idle("stays"));
    let status = lab.status("stays");
    let uids = &status["processes"][0]["uids"];
    let own = u32::try_from(uids[0].as_u64().unwrap()).unwrap();
    // A supervisor's id in the range of no stack that is up; the id after it is no supervisor's.
    let ghost = if own == 0x7000_fff0 {
        0x7001_fff0
    } else {
        0x7000_fff0
    };
    for command in [&["gc"][..], &["down", "none"], &["down", "--all"]] {
        let _all: Vec<Child> = [ghost, ghost + 1]
            .map(|uid| lab.spawn(&[PYTHON, "-c", GHOST, &uid.to_string()]))
            .into();
        until("they are there", || {
            [ghost, ghost + 1]
                .iter()
                .all(|uid| of_uid(&lab, *uid) == 8)
                .then_some(())
        });
        lab.lrpns_ok(command);
        assert_eq!(of_uid(&lab, ghost), 0, "{command:?}");
        assert_eq!(of_uid(&lab, ghost + 1), 8, "{command:?}");
        lab.ok(&[
            "sh",
            "-c",
            "kill -KILL $(ps -o pid= -u \"$0\")",
            &(ghost + 1).to_string(),
        ]);
        until("they are gone", || {
            (of_uid(&lab, ghost + 1) == 0).then_some(())
        });
        if command != ["down", "--all"] {
            assert_eq!(lab.status("stays")["supervisor"], status["supervisor"]);
        }
    }
}

/// Listens in the place of a supervisor, and answers nobody; or begins an answer and says no more.
const SILENT: &str = r#"
import os, signal, socket, struct, sys
os.chdir("/run/lrpns/other")
os.rename("control.sock", "real.sock")
listener = socket.socket(socket.AF_UNIX)
listener.bind("control.sock")
listener.listen(100)
print("ready", flush=True)
kept = []
while sys.argv[1] == "drips":
    client, _ = listener.accept()
    try:
        client.sendall(struct.pack("<I", 1000) + b"{")
    except OSError:
        # Who has asked whether it answers has gone.
        pass
    kept.append(client)
signal.pause()
"#;

#[test]
fn a_supervisor_that_answers_nothing_is_waited_for_by_no_command() {
    if !look::machine() {
        return;
    }
    for how in ["silent", "drips"] {
        let lab = Lab::new();
        look::up(&lab, &idle("other"));
        let silent = lab.start(&[PYTHON, "-c", SILENT, how]);
        let commands = [
            &["status", "other"][..],
            &["restart", "other"],
            &[
                "exec", "other", "--part", "sidecar", "--", "busybox", "true",
            ],
            &["logs", "other"],
            &["stats", "other"],
            &["audit", "other"],
        ];
        let ask = |command: &&[&str]| {
            let args = [&["timeout", "60", lrpns()][..], command].concat();
            (command.to_vec().join(" "), lab.spawn(&args))
        };
        let asked: Vec<_> = commands.iter().map(ask).collect();
        for (command, child) in asked {
            let output = child.wait_with_output().unwrap();
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(125), "{how}: {command}: {said}");
            let words = ["does not answer", "not ended it"];
            assert!(
                words.iter().any(|words| said.contains(words)),
                "{how}: {command}: {said}"
            );
        }
        drop(silent);
        lab.ok(&[
            "mv",
            "/run/lrpns/other/real.sock",
            "/run/lrpns/other/control.sock",
        ]);
        lab.lrpns_ok(&["down", "other"]);
    }
}

//! Limits: each part is in a cgroup of its own from its first moment, what can't be held is said, and an app that takes
//! all it can get takes nobody else's.
#![allow(clippy::unwrap_used)]

mod support;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::lab::{Lab, describe, lrpns};
use support::look::{self, PYTHON, part};
use support::skip;

/// Where cgroup version 2 is mounted, by the kernel's own list.
fn hierarchy() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let found = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let point = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(point))
    });
    if found.is_none() {
        skip("cgroup2", "no cgroup version 2 is mounted");
    }
    found
}

/// A cgroup that a test has made, removed with what lrpns has made in it.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(hierarchy: &Path) -> Self {
        let path = hierarchy.join(format!("lrpns-test-{}", look::token()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let inside = std::fs::read_dir(&self.0).into_iter().flatten().flatten();
        for entry in inside.filter(|entry| entry.path().is_dir()) {
            let _ = std::fs::remove_dir(entry.path());
        }
        // The last process in it may be ending still.
        let begun = std::time::Instant::now();
        while std::fs::remove_dir(&self.0).is_err() && begun.elapsed().as_secs() < 5 {
            std::thread::yield_now();
        }
    }
}

/// A stack's cgroup, from its status.
fn stack_cgroup(status: &Value) -> PathBuf {
    look::planned(status, "/cgroup/path").into()
}

/// The processes of a cgroup, as the lab numbers them.
fn members(lab: &Lab, cgroup: &Path) -> Vec<i64> {
    let text = lab.ok(&["cat", cgroup.join("cgroup.procs").to_str().unwrap()]);
    let mut all: Vec<i64> = text.lines().map(|line| line.parse().unwrap()).collect();
    all.sort_unstable();
    all
}

/// An app that does nothing but wait, and its file with more lines.
fn waiting(more: &str) -> String {
    format!(
        "name = \"web\"\n[app]\nrootfs = \"host\"\ncommand = {}\n{more}\n",
        look::toml_list(&["/bin/sleep", "infinity"])
    )
}

/// What a part's `RLIMIT_NPROC` is: some more than its limit where its cgroup is to refuse first.
fn most_processes(status: &Value, name: &str, pids: u32) -> [String; 2] {
    let limits = part(status, name)["limits"].as_array().unwrap();
    let of_cgroup = json!({ "limit": "pids", "held_by": "cgroup" });
    let more = if limits.contains(&of_cgroup) { 8 } else { 0 };
    [(); 2].map(|()| (pids + more).to_string())
}

/// What a process's limit is, soft and hard, by `/proc/PID/limits`.
fn rlimit(lab: &Lab, pid: i64, name: &str) -> [String; 2] {
    let limits = lab.proc(pid, "limits");
    let line = limits.lines().find_map(|line| line.strip_prefix(name));
    let mut fields = line.unwrap().split_whitespace();
    [fields.next().unwrap().into(), fields.next().unwrap().into()]
}

#[test]
fn each_part_is_in_a_cgroup_of_its_own_and_sees_no_other() {
    if !look::machine() {
        return;
    }
    let Some(_) = hierarchy() else { return };
    let lab = Lab::new();
    look::up(&lab, &waiting("publish = []"));
    let status = lab.status("web");
    let stack = stack_cgroup(&status);
    assert_eq!(members(&lab, &stack), Vec::<i64>::new());
    for name in ["sidecar", "app"] {
        let part = part(&status, name);
        let cgroup = PathBuf::from(part["cgroup"].as_str().unwrap());
        assert_eq!(cgroup, stack.join(name));
        let mut own = vec![
            part["init"].as_i64().unwrap(),
            part["pid"].as_i64().unwrap(),
        ];
        own.sort_unstable();
        own.dedup();
        assert_eq!(members(&lab, &cgroup), own, "{name}");
        // By a cgroup namespace of its own, that is the root of all it can know of.
        let namespace = |pid: &str| look::namespace(&lab, pid, "cgroup");
        assert_ne!(namespace(&own[0].to_string()), namespace("self"));
    }
    let seen = look::attack(&lab, "web", "app", "say(open('/proc/self/cgroup').read())");
    let seen = seen.as_str().unwrap();
    assert!(seen.lines().any(|line| line == "0::/"), "{seen}");
    assert!(!seen.contains("web"), "{seen}");
}

#[test]
fn the_audit_finds_who_has_left_a_parts_cgroup_and_what_is_below_it() {
    if !look::machine() {
        return;
    }
    let Some(hierarchy) = hierarchy() else { return };
    let lab = Lab::new();
    look::up(&lab, &waiting("publish = []"));
    let status = lab.status("web");
    let findings = || look::findings(&lab.lrpns(&["audit", "web", "--json"]).stdout);
    let is_caught = |probe: &str, because: &str| {
        let found = findings();
        let is_it = |line: &String| line.starts_with(probe) && line.contains(because);
        assert!(found.iter().any(is_it), "{found:?}");
    };
    let before = findings();
    assert!(before.iter().all(|line| !line.starts_with("limit-cgroup")));

    let elsewhere = Cgroup::new(&hierarchy);
    let app = PathBuf::from(part(&status, "app")["cgroup"].as_str().unwrap());
    let (pid, init) = (look::pid(&status, "app"), look::init(&status, "app"));
    let to = |process: i64, cgroup: &Path| {
        let path = cgroup.join("cgroup.procs");
        lab.ok(&["sh", "-c", &format!("echo {process} > {}", path.display())]);
    };
    to(init, &elsewhere.0);
    is_caught("limit-cgroup", &format!("process {init} is in /"));
    to(init, &app);
    to(pid, &elsewhere.0);
    is_caught("members", "outside the part's cgroup");
    to(pid, &app);
    let below = app.join("below");
    lab.ok(&["mkdir", below.to_str().unwrap()]);
    is_caught("limit-cgroup", "unexpected: ");
    lab.ok(&["rmdir", below.to_str().unwrap()]);
    assert_eq!(findings(), before);
}

#[test]
fn a_part_that_is_started_again_is_in_its_cgroup_again() {
    if !look::machine() {
        return;
    }
    let Some(_) = hierarchy() else { return };
    let lab = Lab::new();
    look::up(&lab, &waiting(""));
    let stack = stack_cgroup(&lab.status("web"));
    let before = members(&lab, &stack.join("app"));
    lab.lrpns_ok(&["restart", "web", "app"]);
    lab.lrpns_ok(&["restart", "web", "sidecar"]);
    let after = members(&lab, &stack.join("app"));
    assert_eq!(after.len(), 2);
    assert!(before.iter().all(|pid| !after.contains(pid)));
    assert_eq!(
        members(&lab, &stack.join("sidecar")),
        [look::init(&lab.status("web"), "sidecar")]
    );
}

#[test]
fn the_supervisor_reads_there_what_became_of_a_part_and_writes_nothing() {
    if hierarchy().is_none() {
        return;
    }
    let lab = Lab::new();
    // As a login of root's may have it, and as lrpns has it.
    let file = lab.write("web.toml", &waiting(""));
    let up = format!(
        "umask 077; exec '{}' up -d -f '{}'",
        lrpns(),
        file.display()
    );
    lab.ok(&["sh", "-c", &up]);
    let status = lab.status("web");
    let supervisor = &status["processes"][0];
    let ids = supervisor["uids"][0].to_string();
    let app = stack_cgroup(&status).join("app");
    let as_it = |test: &str, file: &str| {
        let file = app.join(file);
        let file = file.to_str().unwrap();
        let ids = [format!("--reuid={ids}"), format!("--regid={ids}")];
        let tried = lab.run(&[
            "setpriv",
            &ids[0],
            &ids[1],
            "--clear-groups",
            "test",
            test,
            file,
        ]);
        tried.status.success()
    };
    assert!(as_it("-r", "cgroup.events"));
    for file in [
        "",
        "cgroup.procs",
        "cgroup.subtree_control",
        "cgroup.freeze",
    ] {
        assert!(!as_it("-w", file), "{file}");
    }
    lab.lrpns_ok(&["down", "web"]);
}

#[test]
fn an_executed_command_is_in_the_parts_cgroup_with_the_parts_ceilings() {
    if !look::machine() {
        return;
    }
    let Some(_) = hierarchy() else { return };
    let lab = Lab::new();
    look::up(&lab, &waiting("limits = { pids = 40 }"));
    let status = lab.status("web");
    let stack = stack_cgroup(&status);
    let before = members(&lab, &stack.join("app"));
    let mut exec = lab.spawn(&[lrpns(), "exec", "web", "--", "/bin/cat"]);
    let command = support::lab::until("the command", || {
        let all = members(&lab, &stack.join("app"));
        all.into_iter()
            .filter(|pid| !before.contains(pid))
            .find(|pid| lab.proc(*pid, "comm").trim() == "cat")
    });
    assert_eq!(
        rlimit(&lab, command, "Max processes"),
        most_processes(&status, "app", 40)
    );
    assert_eq!(rlimit(&lab, command, "Max core file size"), ["1", "1"]);
    // The end of its input.
    drop(exec.stdin.take());
    assert!(exec.wait().unwrap().success());
    assert_eq!(members(&lab, &stack.join("app")), before);
}

#[test]
fn a_crash_starts_no_program_of_the_hosts() {
    if !look::machine() {
        return;
    }
    // core(5): the limit does not hold for a core_pattern that is a program, which then runs as the host's root. At 1 it
    // is not started. So that has to be what an app is left with, whatever it tries.
    let tried = "import resource as r\nfor to in [(0, 1), (0, 0), (1, 0)]:\n    try:\n        r.setrlimit(r.RLIMIT_CORE, to)\n        print('told that it is done')\n    except (OSError, ValueError) as e:\n        print(type(e).__name__)\n\
                 r.setrlimit(r.RLIMIT_NOFILE, (9, 10))\nprint(r.getrlimit(r.RLIMIT_CORE), r.getrlimit(r.RLIMIT_NOFILE))";
    for profile in ["default", "strict"] {
        let lab = Lab::new();
        look::up(&lab, &waiting(&format!("seccomp = \"{profile}\"")));
        let said = lab.lrpns_ok(&["exec", "web", "--", look::PYTHON, "-c", tried]);
        let lines: Vec<_> = said.lines().collect();
        assert!(
            lines[..3]
                .iter()
                .all(|line| *line == "told that it is done"),
            "{profile}: {said}"
        );
        assert_eq!(lines[3], "(1, 1) (9, 10)", "{profile}");
    }
}

#[test]
fn no_cgroup_is_left_by_down_nor_by_a_supervisor_that_was_killed() {
    if !look::machine() {
        return;
    }
    let Some(_) = hierarchy() else { return };
    let lab = Lab::new();
    let up = || {
        look::up(&lab, &waiting(""));
        let status = lab.status("web");
        (stack_cgroup(&status), status["supervisor"].clone())
    };
    let (first, _) = up();
    assert!(first.join("app").is_dir());
    lab.lrpns_ok(&["down", "web"]);
    assert!(!first.exists());

    // Killed, then down.
    let (second, supervisor) = up();
    assert_ne!(first, second, "no two runs share a cgroup");
    lab.kill("KILL", &supervisor);
    lab.lrpns_ok(&["down", "web"]);
    assert!(!second.exists());

    // Killed, then up, then gc.
    let (third, supervisor) = up();
    lab.kill("KILL", &supervisor);
    let (fourth, supervisor) = up();
    assert!(!third.exists());
    lab.kill("KILL", &supervisor);
    support::lab::until("the end of the supervisor", || {
        let gone = lab.run(&["kill", "-0", &supervisor.to_string()]);
        (!gone.status.success()).then_some(())
    });
    lab.lrpns_ok(&["gc"]);
    assert!(!fourth.exists());

    // A start that fails.
    let file = lab.write(
        "bad.toml",
        &waiting("publish = [\"8000:8000\"]").replace("/bin/sleep", "/no/such/program"),
    );
    lab.lrpns_err(&["up", "-d", "-f", file.to_str().unwrap()]);
    let base = fourth.parent().unwrap().to_owned();
    let left = std::fs::read_dir(base).into_iter().flatten().flatten();
    let ours: Vec<_> = left
        .map(|entry| entry.file_name().into_string().unwrap())
        .filter(|name| {
            // Other tests' labs have stacks of that name too: ours is one in which a process of this lab could be.
            name.starts_with("web.")
                && [&first, &second, &third, &fourth]
                    .iter()
                    .any(|p| p.ends_with(name))
        })
        .collect();
    assert_eq!(ours, Vec::<String>::new());
}

#[test]
fn a_process_that_joined_a_parts_cgroup_from_outside_ends_with_the_stack() {
    if !look::machine() {
        return;
    }
    let Some(_) = hierarchy() else { return };
    let lab = Lab::new();
    look::up(&lab, &waiting(""));
    let app = stack_cgroup(&lab.status("web")).join("app");
    let script = format!(
        "echo 0 > {}/cgroup.procs && exec sleep infinity",
        app.display()
    );
    let mut stray = lab.spawn(&["sh", "-c", &script]);
    support::lab::until("the stray", || {
        (members(&lab, &app).len() == 3).then_some(())
    });
    lab.lrpns_ok(&["down", "web"]);
    // By cgroup.kill: nothing else in the stack knows of it.
    assert!(!stray.wait().unwrap().success());
    assert!(!app.exists());
}

#[test]
fn what_can_not_be_held_is_said_and_refused_when_asked_before_anything_is_made() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    // No cgroups at all, on any machine.
    lab.ok(&["mount", "-t", "tmpfs", "tmpfs", "/sys/fs/cgroup"]);
    let text = waiting("limits = { memory = \"64M\", pids = 40, cpu = 0.5 }");
    let file = lab.write("lrpns.toml", &text);
    let file = file.to_str().unwrap();

    let before = lab.traces();
    let (code, said) = lab.lrpns_err(&["up", "-d", "--strict-limits", "-f", file]);
    assert_eq!(code, 125);
    assert!(
        said.contains("limits that can't be enforced: memory, cpu; "),
        "{said}"
    );
    assert!(said.contains("hint: "), "{said}");
    lab.assert_as(&before);

    let plan = lab.lrpns_ok(&["plan", "-v", "-f", file]);
    assert!(
        plan.contains("memory 64M  (") && plan.contains("cpu 0.5  ("),
        "{plan}"
    );
    // What this machine can't hold is said once.
    let brief = lab.lrpns_ok(&["plan", "-f", file]);
    for text in [&plan, &brief] {
        let complaint = "limits that can't be enforced: memory, cpu";
        assert_eq!(text.matches(complaint).count(), 1, "{text}");
    }

    let up = lab.lrpns(&["up", "-d", "-f", file]);
    assert!(up.status.success(), "{}", describe(&up));
    let said = String::from_utf8(up.stderr).unwrap();
    let complaint = said.lines().find(|line| line.contains("can't be enforced"));
    assert!(
        complaint
            .unwrap()
            .contains("no file system of cgroup version 2"),
        "{said}"
    );
    let status = lab.status("web");
    let app = part(&status, "app");
    assert_eq!(
        app["limits"],
        json!([
            { "limit": "memory", "held_by": null },
            { "limit": "pids", "held_by": "rlimit" },
            { "limit": "cpu", "held_by": null },
        ])
    );
    assert_eq!(app["cgroup"], json!(null));
    let notes = app["notes"].to_string();
    assert!(notes.contains("can't be enforced: memory, cpu"), "{notes}");
    assert_eq!(
        rlimit(&lab, look::pid(&status, "app"), "Max processes"),
        ["40", "40"]
    );
    lab.lrpns_ok(&["down", "web"]);
}

/// Forks until the kernel refuses, and never more than 200 times, then serves how often it worked.
const BOMB: &str = r#"
import errno, http.server, os, signal, sys
made, why = 0, "nothing"
while made < 200:
    try:
        child = os.fork()
    except OSError as e:
        why = errno.errorcode[e.errno]
        break
    if child == 0:
        signal.pause()
        os._exit(0)
    made += 1
class Tell(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"{made} {why}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
http.server.HTTPServer(("0.0.0.0", 5000), Tell).serve_forever()
"#;

#[test]
fn a_fork_bomb_stays_within_its_app() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let app = |port: u16, pids: u32| {
        format!(
            "rootfs = \"host\"\ncommand = {}\npublish = [\"{port}:5000\"]\nlimits = {{ pids = {pids} }}\n",
            look::toml_list(&[PYTHON, "-c", BOMB])
        )
    };
    // The neighbour's bomb is bounded by its own limit, and has all of it although this one is full.
    look::up(
        &lab,
        &format!(
            "name = \"web\"\n[app.a]\n{}[app.b]\n{}",
            app(8001, 20),
            app(8002, 30)
        ),
    );
    // One is lrpns' own, one the command.
    assert_eq!(lab.get("http://127.0.0.1:8001/").unwrap(), "18 EAGAIN");
    assert_eq!(lab.get("http://127.0.0.1:8002/").unwrap(), "28 EAGAIN");
    let status = lab.status("web");
    assert_eq!(part(&status, "a")["restarts"], 0);
    // The host goes on: the supervisor makes processes as before, also in that very app.
    lab.lrpns_ok(&["restart", "web", "a"]);
    assert_eq!(lab.get("http://127.0.0.1:8001/").unwrap(), "18 EAGAIN");
    lab.lrpns_ok(&["down", "web"]);
}

#[test]
fn every_part_has_the_ceilings_that_a_cgroup_does_not_know() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    look::up(&lab, &waiting("publish = []\nlimits = { pids = 33 }"));
    let status = lab.status("web");
    for (pid, processes) in [
        (
            look::init(&status, "sidecar"),
            most_processes(&status, "sidecar", 8),
        ),
        (
            look::init(&status, "app"),
            most_processes(&status, "app", 33),
        ),
        (
            look::pid(&status, "app"),
            most_processes(&status, "app", 33),
        ),
    ] {
        assert_eq!(rlimit(&lab, pid, "Max core file size"), ["1", "1"]);
        assert_eq!(rlimit(&lab, pid, "Max processes"), processes);
        assert_eq!(rlimit(&lab, pid, "Max realtime priority"), ["0", "0"]);
        let files = rlimit(&lab, pid, "Max open files").map(|n| n.parse::<u64>().unwrap());
        assert!(files[0] <= 65_536 && files[1] <= 524_288, "{files:?}");
    }
}

#[test]
fn a_delegated_cgroup_is_divided_and_nothing_is_made_elsewhere() {
    if !look::machine() {
        return;
    }
    let Some(hierarchy) = hierarchy() else { return };
    let lab = Lab::new();
    let own = Cgroup::new(&hierarchy);
    let own_path = own.0.to_str().unwrap();
    let file = lab.write("lrpns.toml", &waiting(""));
    let up = |program: &str| {
        let script = format!(
            "echo 0 > {own_path}/cgroup.procs && exec {program} up -d -f {}",
            file.display()
        );
        lab.ok(&["sh", "-c", &script]);
        stack_cgroup(&lab.status("web"))
    };
    // Not ours to divide: nobody has said so.
    let elsewhere = up(lrpns());
    assert_eq!(elsewhere.parent(), Some(hierarchy.join("lrpns").as_path()));
    lab.lrpns_ok(&["down", "web"]);
    // As systemd says it.
    let say = format!("import os; os.setxattr('{own_path}', 'trusted.delegate', b'1')");
    lab.ok(&[PYTHON, "-c", &say]);
    let inside = up(lrpns());
    assert_eq!(inside.parent(), Some(own.0.as_path()));
    assert_eq!(members(&lab, &inside.join("app")).len(), 2);
    lab.lrpns_ok(&["down", "web"]);
    assert!(!inside.exists());
}

#[test]
fn a_user_divides_a_cgroup_of_his_own_and_is_told_when_there_is_none() {
    if !look::machine_with(&["setpriv"]) {
        return;
    }
    let Some(hierarchy) = hierarchy() else { return };
    let lab = Lab::new();
    let own = Cgroup::new(&hierarchy);
    let program = lab.dir.path().join("lrpns");
    // By a process of its own: a descriptor that is written to would make it busy for others.
    lab.ok(&["cp", lrpns(), program.to_str().unwrap()]);
    let file = lab.write("lrpns.toml", &waiting(""));
    lab.ok(&["install", "-d", "-m", "700", "-o", "4321", "/run/lab/4321"]);
    let as_user = |first: &str, rest: &str| {
        let script = format!(
            "{first} exec setpriv --reuid 4321 --regid 4321 --clear-groups env XDG_RUNTIME_DIR=/run/lab/4321 {} {rest}",
            program.display()
        );
        let output = lab.run(&["sh", "-c", &script]);
        assert!(output.status.success(), "{}", describe(&output));
        output
    };
    let up = format!("up -d -f {}", file.display());
    let said = as_user("", &up);
    let said = String::from_utf8(said.stderr).unwrap();
    assert!(said.contains("Delegate=yes"), "{said}");
    as_user("", "down web");

    let own_path = own.0.to_str().unwrap();
    lab.ok(&["chown", "-R", "4321", own_path]);
    let enter = format!("echo 0 > {own_path}/cgroup.procs &&");
    as_user(&enter, &up);
    let status = as_user("", "status web --json");
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    let inside = stack_cgroup(&status);
    assert_eq!(inside.parent(), Some(own.0.as_path()));
    assert_eq!(members(&lab, &inside.join("app")).len(), 2);
    // In the app it is started by who is there already.
    let exec = as_user("", "exec web -- cat /proc/self/cgroup");
    let said = String::from_utf8(exec.stdout).unwrap();
    assert_eq!(said.lines().last(), Some("0::/"), "{said}");
    // From elsewhere a user can't put a process there, and the command doesn't run without.
    let exec = format!("exec web --part sidecar -- {}", program.display());
    let script = format!(
        "setpriv --reuid 4321 --regid 4321 --clear-groups env XDG_RUNTIME_DIR=/run/lab/4321 {} {exec}",
        program.display()
    );
    let refused = lab.run(&["sh", "-c", &script]);
    assert!(!refused.status.success());
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("enter the part's cgroup"),
        "{}",
        describe(&refused)
    );
    // A cgroup that hands controllers on takes no process: where there are some, its supervisor's does.
    let supervisors = own.0.join("lrpns-supervisor");
    let enter = match supervisors.exists() {
        true => format!("echo 0 > {}/cgroup.procs &&", supervisors.display()),
        false => enter,
    };
    as_user(&enter, &format!("{exec} --version"));
    as_user("", "down web");
    assert!(!inside.exists());
}

#[test]
fn no_part_has_the_keys_of_who_started_it() {
    if !look::machine_with(&["setpriv"]) {
        return;
    }
    let lab = Lab::new();
    let file = lab.write("lrpns.toml", &waiting(""));
    // A session with a key, which starts the stack.
    let key = look::token();
    let session = format!(
        "import ctypes, os\n\
         libc = ctypes.CDLL(None, use_errno=True)\n\
         assert libc.syscall(250, 1, None) != -1\n\
         assert libc.syscall(248, b'user', b'{key}', b'secret', 6, -3) != -1\n\
         os.execv('{}', ['lrpns', 'up', '-d', '-f', '{}'])",
        lrpns(),
        file.display()
    );
    if std::env::consts::ARCH != "x86_64" {
        skip(
            "x86_64",
            "the numbers of add_key(2) and keyctl(2) are another machine's",
        );
        return;
    }
    lab.ok(&[PYTHON, "-c", &session]);
    let status = lab.status("web");
    for name in ["sidecar", "app"] {
        // What a process of that user may see, outside: its own session's keyring, and in it nothing of ours.
        let uid = part(&status, name)["host_uid"].to_string();
        let keys = lab.ok(&[
            "setpriv",
            "--reuid",
            &uid,
            "--clear-groups",
            "cat",
            "/proc/keys",
        ]);
        assert!(
            keys.lines().any(|line| {
                let fields: Vec<_> = line.split_whitespace().collect();
                fields[5] == uid && fields[7] == "keyring" && fields[8].starts_with("_ses")
            }),
            "{name} has no session keyring of its own:\n{keys}"
        );
        assert!(!keys.contains(&key), "{name}:\n{keys}");
    }
}

/// How long a process has used a processor, in ticks of 10 ms, by `/proc/PID/stat` (proc_pid_stat(5)).
fn ticks(lab: &Lab, pid: i64) -> u64 {
    let stat = lab.proc(pid, "stat");
    let after = stat.rsplit(") ").next().unwrap().split(' ').skip(11);
    after.take(2).map(|n| n.parse::<u64>().unwrap()).sum()
}

/// The lines of a log that say that something was left out.
fn left_out(lab: &Lab) -> Vec<String> {
    let log = lab.lrpns_ok(&["logs", "web", "--part", "app"]);
    let said = log.lines().filter(|line| line.contains("| left out "));
    said.map(str::to_owned).collect()
}

/// Brings up an app that writes without end, and gives back how much of a processor its supervisor takes.
fn share_of_the_supervisor(lab: &Lab, writes: &str) -> f64 {
    let code = format!("import os, time\nwhile True:\n    {writes}");
    let file = waiting("").replace(
        &look::toml_list(&["/bin/sleep", "infinity"]),
        &look::toml_list(&[PYTHON, "-c", &code]),
    );
    look::up(lab, &file);
    let supervisor = lab.status("web")["supervisor"].as_i64().unwrap();
    support::lab::until("something is left out", || {
        let notes = part(&lab.status("web"), "app")["notes"].to_string();
        notes.contains("are left out of its log").then_some(())
    });
    // Reading the log costs as well: not meanwhile.
    let (begun, before) = (std::time::Instant::now(), ticks(lab, supervisor));
    lab.ok(&["sleep", "2"]);
    let used = ticks(lab, supervisor) - before;
    used as f64 / 100.0 / begun.elapsed().as_secs_f64()
}

#[test]
fn a_flood_of_lines_costs_the_supervisor_little_and_what_is_left_out_is_said() {
    if !look::machine() {
        return;
    }
    for writes in [
        // A few thousandths of a processor.
        "os.write(1, b'\\n' * 65536); time.sleep(.01)",
        "os.write(2, b'short\\n' * 10000)",
    ] {
        let lab = Lab::new();
        let share = share_of_the_supervisor(&lab, writes);
        // A debug build makes ten thousand lines in a sixth of a second.
        assert!(share < 0.5, "{writes}: {share} of a processor");
        let said = left_out(&lab);
        assert!(
            said.iter().all(|line| line.contains("a second")),
            "{said:?}"
        );
        // Neither is anybody else kept waiting, nor does the flood go on being told of in one.
        assert!(said.len() < 100, "{said:?}");
        lab.lrpns_ok(&["down", "web"]);
    }
}

#[test]
fn a_stack_answers_so_many_clients_at_a_time_and_always_the_one_who_wants_its_end() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    look::up(&lab, &waiting(""));
    let follow = || lab.spawn_lrpns(&["logs", "web", "-f"]);
    // One more than there may be: which of them is refused is up to the machine.
    let mut followers: Vec<_> = (0..33).map(|_| follow()).collect();
    let refused = support::lab::until("one that is refused", || {
        let ended = |follower: &mut std::process::Child| follower.try_wait().unwrap().is_some();
        followers.iter_mut().position(ended)
    });
    let refused = followers.remove(refused).wait_with_output().unwrap();
    let code = refused.status.code();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("32 clients follow this log already"),
        "{said}"
    );
    // And those who say nothing, more than are heard at once.
    let silent = "import glob, os, socket, sys\nall = []\nfor _ in range(79 - 32):\n    s = socket.socket(socket.AF_UNIX)\n    s.connect('/run/lrpns/web/control.sock')\n    all.append(s)\nprint('ready', flush=True)\nsys.stdin.read()";
    let _silent = lab.start(&[PYTHON, "-c", silent]);
    lab.lrpns_ok(&["down", "web"]);
    for mut follower in followers {
        follower.wait().unwrap();
    }
}

#[test]
fn one_client_with_hundreds_of_connections_shuts_nobody_out_of_a_relay_with_few_descriptors() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let file = look::telling("web", "t", "0.0.0.0:5000:5000", "");
    let path = lab.write("few.toml", &file);
    let up = format!(
        "ulimit -n 256; exec {} up -d -f {}",
        lrpns(),
        path.display()
    );
    lab.ok(&["sh", "-c", &up]);
    let relay = part(&lab.status("web"), "relay")["notes"].to_string();
    assert!(relay.contains("connections at once"), "{relay}");
    // As many as it can get, all kept, and then some that are reset.
    let greedy = "import socket, sys\nopen_ones, reset = [], 0\nfor _ in range(400):\n    s = socket.socket()\n    s.settimeout(5)\n    try:\n        s.connect(('10.99.0.1', 5000))\n        s.sendall(b'GET / HTTP/1.1\\r\\nhost: x\\r\\n')\n        s.settimeout(.01)\n        s.recv(1)\n    except TimeoutError:\n        open_ones.append(s)\n    except OSError:\n        reset += 1\nassert reset > 100, reset\nassert len(open_ones) > 50, len(open_ones)\nprint('ready', flush=True)\nsys.stdin.read()\n";
    let client = ["ip", "netns", "exec", "client", PYTHON, "-c", greedy];
    let mut greedy = lab.spawn(&client);
    let mut line = String::new();
    let mut said = std::io::BufReader::new(greedy.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    assert_eq!(line, "ready\n");
    for _ in 0..20 {
        let told = look::told(lab.get("http://10.99.0.1:5000/"));
        assert_eq!(told["token"], "t");
    }
    drop(greedy.stdin.take());
    greedy.wait().unwrap();
}

/// What an app tries to take of what the host has once; each gives how much it got.
const TAKERS: &str = r#"
import ctypes, resource, signal, mmap
def count(most, what):
    for n in range(most):
        try:
            what()
        except OSError as e:
            return [n, errno.errorcode[e.errno]]
    return [most, "OK"]
def instances():
    call(libc.inotify_init1(0))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
def queue():
    call(libc.sigqueue(os.getpid(), signal.SIGRTMIN, None))
def pages():
    mmap.mmap(-1, 2 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)
def attach():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    code = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0xffff))
    s.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HxxxxxxQ", 1, ctypes.addressof(code)))
def aio():
    context = ctypes.c_ulong(0)
    call(libc.syscall(206 if os.uname().machine == "x86_64" else 0, 64, ctypes.byref(context)))
"#;

#[test]
fn what_counts_for_the_whole_host_is_left_to_it_whatever_an_app_takes() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    look::up(&lab, &waiting(""));
    // A host whose root has few inotify instances is every host: 128. It never comes to that here.
    let holds = format!(
        "{}\n{TAKERS}\ntook = {{'instances': count(200, instances), 'signals': count(5000, queue), 'aio': count(1, aio),\n  'pages': count(1, pages), 'filters': count(1, attach), 'shm': count(1, lambda: call(libc.shmget(0, 2 << 20, 0o5600))),\n  'memfd': count(1, lambda: call(libc.memfd_create(b'x', 4)))}}\nsay(took)\nsys.stdin.read()",
        look::ATTACKS
    );
    let mut app = lab.spawn_lrpns(&["exec", "web", "--", PYTHON, "-c", &holds]);
    let mut line = String::new();
    let mut said = std::io::BufReader::new(app.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    let took: Value = serde_json::from_str(&line).unwrap();
    // While it holds all that: what the host's root can have.
    let host = format!(
        "{TAKERS}\nsay({{'instances': count(20, instances), 'signals': count(2000, queue)}})"
    );
    let host = look::attack_from_host(&lab, &host);
    assert_eq!(
        host,
        json!({ "instances": [20, "OK"], "signals": [2000, "OK"] })
    );
    let most = |of: &str| took[of][0].as_u64().unwrap();
    assert!((1..=16).contains(&most("instances")), "{took}");
    assert_eq!(took["instances"][1], "EMFILE");
    assert!((100..=1024).contains(&most("signals")), "{took}");
    assert_eq!(took["signals"][1], "EAGAIN");
    for (what, errno) in [
        ("aio", "ENOSYS"),
        ("pages", "ENOMEM"),
        ("filters", "EPERM"),
        ("shm", "ENOMEM"),
        ("memfd", "ENOMEM"),
    ] {
        assert_eq!(took[what], json!([0, errno]), "{what}");
    }
    drop(app.stdin.take());
    app.wait().unwrap();
}

#[test]
fn no_part_may_have_more_of_what_user_namespaces_count_than_it_needs() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    look::up(
        &lab,
        &waiting("publish = [\"8000:8000\"]\nlisten = [8001]").replace(
            &look::toml_list(&["/bin/sleep", "infinity"]),
            &look::toml_list(&[
                "/usr/bin/busybox",
                "httpd",
                "-f",
                "-p",
                "8000",
                "-h",
                "/usr/share",
            ]),
        ),
    );
    let status = lab.status("web");
    for (name, instances) in [("sidecar", 0), ("relay", 0), ("app", 16)] {
        let pid = look::init(&status, name).to_string();
        let limit = |file: &str| -> u64 {
            let path = format!("/proc/sys/user/{file}");
            let args = [
                "nsenter",
                "--user",
                "--preserve-credentials",
                "--target",
                &pid,
                "cat",
                &path,
            ];
            lab.ok(&args).trim().parse().unwrap()
        };
        let found = limit("max_inotify_instances");
        assert!(
            found <= instances && (found > 0) == (instances > 0),
            "{name}: {found}"
        );
        assert_eq!(limit("max_inotify_watches") > 0, instances > 0, "{name}");
        for none in ["max_user_namespaces", "max_time_namespaces"] {
            assert_eq!(limit(none), 0, "{name}: {none}");
        }
        for few in [
            "max_pid_namespaces",
            "max_net_namespaces",
            "max_mnt_namespaces",
        ] {
            assert_eq!(limit(few), 64, "{name}: {few}");
        }
        let pid = look::pid(&status, name);
        for (limit, most) in [
            ("Max pending signals", 1024),
            ("Max msgqueue size", 81_920),
            ("Max locked memory", 8 << 20),
        ] {
            let found = rlimit(&lab, pid, limit).map(|n| n.parse::<u64>().unwrap());
            assert!(
                found.iter().all(|found| *found <= most),
                "{name}: {limit}: {found:?}"
            );
        }
    }
}

#[test]
fn a_supervisor_holds_no_memory_for_the_other_stacks_of_its_machine() {
    if !look::machine() {
        return;
    }
    const STACKS: usize = 12;
    let lab = Lab::new();
    let mut held = vec![];
    for number in 1..=STACKS {
        let file = format!(
            "name = \"s{number}\"\n[app]\nrootfs = \"builtin:webapp\"\npublish = [\"{}:5000\"]\n",
            6000 + number
        );
        look::up(&lab, &file);
        if number == 1 || number == STACKS {
            let supervisor = lab.status(&format!("s{number}"))["supervisor"].as_i64();
            let maps = lab.proc(supervisor.unwrap(), "smaps");
            let heap = maps.lines().skip_while(|line| !line.ends_with("[heap]"));
            let mut heap = heap.filter_map(|line| line.strip_prefix("Private_Dirty:"));
            let kilobytes = heap.next().unwrap().trim().trim_end_matches(" kB");
            held.push(kilobytes.parse::<usize>().unwrap());
        }
    }
    // Their plans as they are written would be some 50 kB each.
    assert!(held[1] < held[0] + 15 * STACKS, "{held:?}");
}

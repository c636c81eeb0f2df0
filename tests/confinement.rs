//! What each part holds, and what an app can do with it: nothing.
#![allow(clippy::unwrap_used)]

mod support;
use std::process::Stdio;

use serde_json::{Value, json};
use support::lab::{Lab, describe, lrpns};
use support::look::{self, PYTHON};

/// Host ids that nobody else has: systemd's "Users, Groups, UIDs and GIDs on systemd Systems".
const UIDS: std::ops::Range<u64> = 0x7000_0000..0x8000_0000;

/// A lab with a stack whose one app is a Python server, and its status.
fn serving() -> (Lab, Value) {
    let lab = Lab::new();
    look::up(&lab, &look::telling("web", "t", "5000:5000", ""));
    let status = lab.status("web");
    (lab, status)
}

/// A server that tells what `view`, a function, returned when the command began.
fn witness(view: &str) -> String {
    format!(
        r#"
import ctypes, json, os, socket, sys
{view}
seen = json.dumps(view()).encode()
server = socket.create_server(("0.0.0.0", 5000))
while True:
    client, _ = server.accept()
    client.recv(4096)
    client.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + seen)
    client.close()
"#
    )
}

/// What the command itself saw of its surroundings when it began; `run_up` runs `lrpns up -d -f FILE`.
fn witnessed(lab: &Lab, view: &str, run_up: impl FnOnce(&str) -> std::process::Output) -> Value {
    let file = format!(
        "name = \"web\"\n[app]\nrootfs = \"host\"\ncommand = {}\nenv = {{ ONE = \"1\", TWO = \"a b\" }}\npublish = [\"5000:5000\"]\n",
        look::toml_list(&[PYTHON, "-S", "-c", &witness(view)])
    );
    let path = lab.write("witness.toml", &file);
    let output = run_up(path.to_str().unwrap());
    assert!(output.status.success(), "{}", describe(&output));
    let seen = lab.get("http://localhost:5000/").unwrap();
    serde_json::from_str(&seen).unwrap()
}

#[test]
fn every_part_is_confined_from_the_start_and_after_a_restart() {
    if !look::machine() {
        return;
    }
    let (lab, status) = serving();
    look::assert_confined(&lab, &status, UIDS);
    for part in ["app", "sidecar", "relay"] {
        lab.lrpns_ok(&["restart", "web", part]);
    }
    let restarted = lab.status("web");
    assert_ne!(
        look::init(&restarted, "sidecar"),
        look::init(&status, "sidecar")
    );
    look::assert_confined(&lab, &restarted, UIDS);
}

#[test]
fn the_builtin_example_is_confined_by_relay_and_by_dnat() {
    if !look::machine() {
        return;
    }
    for lab in [Lab::new(), Lab::forwarding()] {
        lab.lrpns_ok(&["up", "-d", "--demo"]);
        look::assert_confined(&lab, &lab.status("customerA"), UIDS);
    }
}

#[test]
fn no_two_parts_and_no_two_stacks_share_a_host_id() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    for (stack, port) in [("one", 5000), ("two", 5001)] {
        look::up(
            &lab,
            &look::telling(stack, "t", &format!("{port}:5000"), ""),
        );
    }
    let mut ids = vec![];
    for status in [lab.status("one"), lab.status("two")] {
        // An app's pid 1 was another id before it dropped, and is the app's since.
        for part in ["sidecar", "relay", "app"] {
            ids.push(look::status_line(&lab, look::pid(&status, part), "Uid"));
        }
        let app = look::pid(&status, "app");
        let map = lab.proc(app, "uid_map");
        let mapped = map
            .lines()
            .map(|line| line.split_whitespace().last().unwrap() == "1");
        assert!(
            mapped.clone().all(|single| single) && mapped.count() == 2,
            "{map}"
        );
    }
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count, "{ids:?}");
}

#[test]
fn the_command_has_three_descriptors_its_environment_and_locked_securebits() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let view = r#"
def view():
    fds = {}
    for fd in range(1024):
        try:
            fds[fd] = os.readlink("/proc/self/fd/%d" % fd).split(":")[0]
        except OSError:
            pass
    libc = ctypes.CDLL(None)
    with open("/proc/self/environ") as environ:
        env = sorted(environ.read().strip("\0").split("\0"))
    signals = {}
    for line in open("/proc/self/status"):
        name, value = line.split(":", 1)
        if name in ("SigBlk", "SigIgn"):
            signals[name] = int(value, 16)
    return {"fds": fds, "env": env, "securebits": libc.prctl(27, 0, 0, 0, 0), "hostname": socket.gethostname(),
            "cwd": os.getcwd(), "umask": os.umask(0), "ids": [os.getuid(), os.getgid(), os.getgroups()],
            "session": os.getsid(0) == os.getpid(), "blocked": signals["SigBlk"]}
"#;
    // Whoever calls `up` has a secret in the environment, and files open that are not close-on-exec.
    let secret = lab.write("secret", "secret");
    let seen = witnessed(&lab, view, |file| {
        lab.run(&[
            "bash",
            "-c",
            &format!(
                "umask 0; cd /usr; export SECRET=1 LRPNS_SECRET=2 LD_LIBRARY_PATH=/tmp; exec 9<{0} 77<{0} 300<{0}; exec {1} up -d -f {file}",
                secret.display(),
                lrpns()
            ),
        ])
    });
    assert_eq!(
        seen,
        json!({
            "fds": { "0": "/dev/null", "1": "pipe", "2": "pipe" },
            "env": [
                "HOME=/",
                "HOSTNAME=app",
                "ONE=1",
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "TWO=a b",
            ],
            // NOROOT, NO_SETUID_FIXUP, NO_CAP_AMBIENT_RAISE and the locks of all three (linux/securebits.h).
            "securebits": 0b1100_1111,
            "hostname": "app",
            "cwd": "/",
            "umask": 0o022,
            "ids": [1000, 1000, []],
            "session": true,
            "blocked": 0,
        })
    );
    // Nor does any other part have the file, or the environment.
    let status = lab.status("web");
    // The sidecar: the supervisor, the rules, and the traffic log with the group of the user's rules and its way out. The
    // app's pid 1: the supervisor, and the app's /dev/log.
    let null = ["/null", "/dev/null"];
    for (part, sockets, null) in [
        ("sidecar", 7, null[0]),
        ("relay", 7, null[0]),
        ("app", 2, null[1]),
    ] {
        let pid = look::init(&status, part);
        let fds = look::links(&lab, pid, "fd");
        let files: Vec<_> = fds.values().filter(|link| link.starts_with('/')).collect();
        assert_eq!(files, [null; 3], "{part}: {fds:?}");
        let found = fds.values().filter(|link| link.starts_with("socket:"));
        assert!(found.count() <= sockets, "{part}: {fds:?}");
        assert_eq!(lab.proc(pid, "environ"), "", "{part}");
    }
}

#[test]
fn exec_has_exactly_what_the_command_has() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let view = r#"
def view():
    kept = ("Cap", "NoNewPrivs", "Seccomp", "Uid", "Gid", "Groups", "SigBlk")
    status = [line.strip() for line in open("/proc/self/status") if line.startswith(kept)]
    fds = [fd for fd in range(3, 1024) if os.path.lexists("/proc/self/fd/%d" % fd)]
    return {"status": status, "namespaces": [os.readlink("/proc/self/ns/" + n) for n in sorted(os.listdir("/proc/self/ns"))],
            "proc": {name: open("/proc/self/" + name).read() for name in ("uid_map", "gid_map", "setgroups", "limits", "cgroup")},
            # What Landlock has to say of it.
            "tcp": socket.socket().connect_ex(("127.0.0.1", 9)),
            "env": dict(os.environ), "securebits": ctypes.CDLL(None).prctl(27, 0, 0, 0, 0), "fds": fds,
            "hostname": socket.gethostname(), "root": sorted(os.listdir("/")), "cwd": os.getcwd()}
"#;
    let command = witnessed(&lab, view, |file| lab.lrpns(&["up", "-d", "-f", file]));
    let output = lab.run(&[
        "bash",
        "-c",
        &format!(
            "cd /usr; export SECRET=1; exec 9</etc/hostname; exec {} exec web -- {PYTHON} -S -c \"$0\"",
            lrpns()
        ),
        &format!("import ctypes, json, os, socket\n{view}\nprint(json.dumps(view()))"),
    ]);
    assert!(output.status.success(), "{}", describe(&output));
    let exec: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(exec, command);
}

/// What /proc says that a process of a part is: what `lrpns exec` starts there has to be the same.
fn of_process(lab: &Lab, pid: i64) -> Value {
    let lines = ["Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp"];
    let kinds = ["user", "mnt", "net", "pid", "ipc", "uts", "cgroup", "time"];
    let files = ["uid_map", "gid_map", "setgroups", "limits", "cgroup"];
    json!({
        "status": lines.map(|name| look::status_line(lab, pid, name)),
        "namespaces": kinds.map(|kind| look::namespace(lab, &pid.to_string(), kind)),
        "files": files.map(|file| lab.proc(pid, file)),
        "environment": lab.proc(pid, "environ"),
        "root": lab.ok(&["ls", "-A", &format!("/proc/{pid}/root/")]),
    })
}

/// A shell that `lrpns exec` has started in a part; it ends with its input.
fn shell_in(lab: &Lab, part: &str) -> (std::process::Child, i64) {
    let shell = ["/bin/busybox", "sh", "-c", "echo; read x"];
    let exec = [lrpns(), "exec", "web", "--part", part, "--"];
    let mut exec = lab
        .command(&[&exec[..], &shell].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 1];
    std::io::Read::read_exact(exec.stdout.as_mut().unwrap(), &mut ready).unwrap();
    let inside = look::namespace(
        lab,
        &look::init(&lab.status("web"), part).to_string(),
        "pid",
    );
    let pids = lab.ok(&["sh", "-c", "cd /proc; echo [0-9]*"]);
    let pid = pids.split_whitespace().find(|pid| {
        let is = |args: &[&str], what: &str| lab.run(args).stdout == what.as_bytes();
        let said = shell.join("\0") + "\0";
        is(&["cat", &format!("/proc/{pid}/cmdline")], &said)
            && is(
                &["readlink", &format!("/proc/{pid}/ns/pid")],
                &format!("{inside}\n"),
            )
    });
    let pid = pid.expect("the shell in the part's namespaces");
    (exec, pid.parse().unwrap())
}

#[test]
fn exec_in_sidecar_relay_and_egress_is_what_they_are() {
    if !look::machine_with(&["busybox"]) {
        return;
    }
    let lab = Lab::new();
    let more = "egress = [\"tcp 10.99.0.2:5432\"]";
    look::up(&lab, &look::telling("web", "t", "5000:5000", more));
    let status = lab.status("web");
    assert_eq!(look::planned(&status, "/egress/via"), "relay");
    for part in ["sidecar", "relay", "egress"] {
        let of = look::init(&status, part);
        let (mut exec, pid) = shell_in(&lab, part);
        assert_eq!(of_process(&lab, pid), of_process(&lab, of), "{part}");
        let (its, own) = (look::capabilities(&lab, pid), look::capabilities(&lab, of));
        // Permitted, effective, bounding. What it is to keep through execve(2) is ambient, and so inheritable.
        assert_eq!(its[1..4], own[1..4], "{part}");
        assert!(
            [&its[0], &its[4]].iter().all(|kept| **kept == own[1]),
            "{part}: {its:?}"
        );
        drop(exec.stdin.take());
        assert!(exec.wait().unwrap().code().is_some());
    }
    // Landlock and seccomp, by what they do: neither part connects to anything.
    for part in ["sidecar", "egress"] {
        let nc = ["busybox", "nc", "-w", "2", "127.0.0.1", "9"];
        let exec = ["exec", "web", "--part", part, "--"];
        let output = lab.lrpns(&[&exec[..], &nc].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{part}");
        assert!(
            said.contains("Permission denied") || said.contains("not permitted"),
            "{part}: {said}"
        );
    }
}

#[test]
fn nothing_can_be_written_but_tmp() {
    if !look::machine() {
        return;
    }
    let (lab, _) = serving();
    let found = look::attack(
        &lab,
        "web",
        "app",
        r#"
refused, wrote, tried_at = set(), [], 0
for directory, names, files in os.walk("/"):
    if directory == "/":
        names.remove("proc")
    tried_at += 1
    # A file without a name: nothing is left when it works, and no mode hides that a mount is writable.
    why = tried(lambda: os.close(os.open(directory, os.O_TMPFILE | os.O_RDWR)))
    if why == "OK":
        wrote.append(directory)
    else:
        refused.add(why)
say({"wrote": wrote, "refused": sorted(refused), "many": tried_at > 100})
"#,
    );
    assert_eq!(
        found,
        json!({ "wrote": ["/tmp", "/dev/shm"], "refused": ["EROFS"], "many": true })
    );

    let found = look::attack(
        &lab,
        "web",
        "app",
        r#"
os.makedirs("/tmp/a/b")
with open("/tmp/a/b/program", "w") as program:
    program.write("exit 0")
os.chmod("/tmp/a/b/program", 0o777)
say({
    "create": tried(lambda: os.mkdir("/new")),
    "remove": tried(lambda: os.unlink("/etc/passwd")),
    "rename": tried(lambda: os.rename("/etc/passwd", "/etc/password")),
    "link": tried(lambda: os.link("/etc/passwd", "/etc/password")),
    "mode": tried(lambda: os.chmod("/etc", 0o777)),
    "owner": tried(lambda: os.chown("/etc", 1000, 1000)),
    "times": tried(lambda: os.utime("/etc/passwd", (0, 0))),
    "attribute": tried(lambda: os.setxattr("/etc/passwd", "user.x", b"x")),
    "run from tmp": tried(lambda: os.execv("/tmp/a/b/program", ["program"])),
    "too much": tried(lambda: os.posix_fallocate(os.open("/tmp/big", os.O_CREAT | os.O_RDWR), 0, 17 << 20)),
    "device": tried(lambda: os.mknod("/tmp/device", 0o20666, os.makedev(1, 1))),
    "sysrq": tried(lambda: open("/proc/sysrq-trigger", "w")),
    "sysctl": tried(lambda: open("/proc/sys/kernel/core_pattern", "w")),
    "null is a device": open("/dev/null", "w").write("x"),
})
"#,
    );
    assert_eq!(
        found,
        json!({
            "create": "EROFS", "remove": "EROFS", "rename": "EROFS", "link": "EROFS", "mode": "EROFS",
            "owner": "EROFS", "times": "EROFS", "attribute": "EROFS", "run from tmp": "EACCES", "too much": "ENOSPC",
            "device": "EPERM", "sysrq": "ENOENT", "sysctl": "EROFS", "null is a device": 1,
        })
    );
}

#[test]
fn dev_has_five_devices_and_every_one_is_what_it_is_called() {
    if !look::machine() {
        return;
    }
    let (lab, _) = serving();
    let found = look::attack(
        &lab,
        "web",
        "app",
        r#"
import stat
found = {}
for name in os.listdir("/dev"):
    at = os.lstat("/dev/" + name)
    if stat.S_ISCHR(at.st_mode) or stat.S_ISBLK(at.st_mode):
        found[name] = [os.major(at.st_rdev), os.minor(at.st_rdev)]
    elif stat.S_ISLNK(at.st_mode):
        found[name] = os.readlink("/dev/" + name)
    elif stat.S_ISSOCK(at.st_mode):
        found[name] = "%o" % at.st_mode
    else:
        found[name] = os.listdir("/dev/" + name)
say(found)
"#,
    );
    assert_eq!(
        found,
        json!({
            "null": [1, 3], "zero": [1, 5], "full": [1, 7], "random": [1, 8], "urandom": [1, 9],
            "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
            "shm": [], "log": "140666",
        })
    );
}

#[test]
fn the_app_sees_no_process_but_its_own_and_cannot_touch_its_pid_1() {
    if !look::machine() {
        return;
    }
    let (lab, status) = serving();
    let outside = [
        look::pid(&status, "app"),
        look::init(&status, "sidecar"),
        status["supervisor"].as_i64().unwrap(),
    ];
    let found = look::attack(
        &lab,
        "web",
        "app",
        &format!(
            r#"
commands = set()
for name in os.listdir("/proc"):
    if name.isdigit():
        commands.add(open("/proc/%s/cmdline" % name).read().split("\0")[0])
def entry(name, how=os.listdir):
    return tried(how, "/proc/1/" + name) != "OK"
def ptrace(request):
    # PTRACE_ATTACH is 16, PTRACE_SEIZE 0x4206.
    call(libc.ptrace(request, 1, 0, 0))
def read_memory():
    buffer = ctypes.create_string_buffer(8)
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
    call(libc.process_vm_readv(1, vector, 1, vector, 1, 0))
def take_descriptor():
    # pidfd_open is 434, pidfd_getfd 438.
    call(libc.syscall(438, call(libc.syscall(434, 1, 0)), 3, 0))
outside = {outside:?}
say({{
    "commands": sorted(commands),
    "hidden": [entry("fd"), entry("mem", open), entry("maps", open), entry("environ", open), entry("root"), entry("ns")],
    "attach": tried(ptrace, 16), "seize": tried(ptrace, 0x4206), "read": tried(read_memory), "take": tried(take_descriptor),
    "others": sorted({{tried(os.kill, pid, 0) for pid in outside if pid > 20}}),
}})
"#
        ),
    );
    let others = found["others"].as_array().unwrap();
    assert!(others.iter().all(|why| why == "ESRCH"), "{found}");
    assert_eq!(found["commands"], json!([PYTHON]), "{found}");
    assert_eq!(
        found["hidden"],
        json!([true, true, true, true, true, true]),
        "{found}"
    );
    for how in ["attach", "seize", "read", "take"] {
        assert_eq!(found[how], "EPERM", "{how}");
    }
}

#[test]
fn the_app_cannot_ask_for_more() {
    if !look::machine() {
        return;
    }
    let (lab, _) = serving();
    let found = look::attack(
        &lab,
        "web",
        "app",
        r#"
def unshare(flag):
    def child():
        call(libc.unshare(flag))
    return tried(child)
namespaces = {"user": 0x10000000, "mnt": 0x20000, "net": 0x40000000, "pid": 0x20000000, "ipc": 0x8000000,
              "uts": 0x4000000, "cgroup": 0x2000000, "time": 0x80}
got = [name for name, flag in namespaces.items() if unshare(flag) == "OK"]
# named ends if it may not set this flag; who holds nothing keeps nothing by it.
def keep():
    call(libc.prctl(8, 1, 0, 0, 0))
    tried(os.setuid, os.getuid())
    held = [line for line in open("/proc/self/status") if line.startswith("Cap") and int(line.split()[1], 16)]
    if not held: raise PermissionError(1, "nothing")
got += ["user and " + name for name, flag in namespaces.items() if unshare(flag | 0x10000000) == "OK"]
for what, function in {
    "uid": lambda: os.setuid(0), "gid": lambda: os.setgid(0), "groups": lambda: os.setgroups([0]),
    "hostname": lambda: socket.sethostname("x"), "chroot": lambda: os.chroot("/tmp"),
    "nice": lambda: os.nice(-5), "keep caps": keep,
    "securebits": lambda: call(libc.prctl(28, 0, 0, 0, 0)),
    "ambient": lambda: call(libc.prctl(47, 2, 12, 0, 0)),
    "new privileges": lambda: call(libc.prctl(38, 0, 0, 0, 0)),
    "mount": lambda: call(libc.mount(b"x", b"/tmp", b"tmpfs", 0, 0)),
    "remount": lambda: call(libc.mount(b"", b"/", b"", 0x20 | 0x1000, 0)),
    "umount": lambda: call(libc.umount2(b"/proc", 2)),
    "detached mount": lambda: call(libc.syscall(430, b"tmpfs", 0)),
    "open tree": lambda: call(libc.syscall(428, -100, b"/usr", 1)),
    "reboot": lambda: call(libc.reboot(0)),
    "bpf": lambda: call(libc.syscall(321, 0, b"\x05\0\0\0\4\0\0\0\4\0\0\0\1\0\0\0" + bytes(56), 72)),
    "module": lambda: call(libc.syscall(175, 0, 0, b"")),
    "syslog": lambda: call(libc.klogctl(3, ctypes.create_string_buffer(16), 16)),
    "open by handle": lambda: call(libc.syscall(304, -100, bytes(8) + bytes(128), 0)),
    "port below 1024": lambda: socket.create_server(("127.0.0.1", 80)),
    "network": lambda: call(libc.ioctl(socket.socket().fileno(), 0x8914, b"eth0".ljust(16, b"\0") + bytes(24))),
    "tun": lambda: os.open("/dev/net/tun", os.O_RDWR),
    "vsock": lambda: socket.socket(40, socket.SOCK_STREAM).connect((1, 5000)),
}.items():
    if tried(function) == "OK":
        got.append(what)
say(got)
"#,
    );
    assert_eq!(found, json!([]));
}

#[test]
fn keys_of_whoever_runs_lrpns_are_not_the_apps() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let file = lab.write("lrpns.toml", &look::telling("web", "t", "5000:5000", ""));
    // keyctl(2) is 250, add_key(2) 248; -3 is the session keyring.
    let search = "libc.syscall(250, 10, -3, b'user', b'lrpns-secret', 0)";
    let found = lab.ok(&[
        PYTHON,
        "-c",
        &format!(
            r#"{}
import subprocess
def run(*args):
    return subprocess.run(args, check=True, capture_output=True, text=True).stdout
call(libc.syscall(250, 1, 0))
call(libc.syscall(248, b"user", b"lrpns-secret", b"x", 1, -3))
run("{2}", "up", "-d", "-f", "{1}")
inside = run("{2}", "exec", "web", "--", "{PYTHON}", "-c", """{attacks}
say({search})""")
say([{search} > 0, int(inside)])
"#,
            look::ATTACKS,
            file.display(),
            lrpns(),
            attacks = look::ATTACKS.replace('\\', "\\\\"),
        ),
    ]);
    let found: Value = serde_json::from_str(&found).unwrap();
    assert_eq!(
        found,
        json!([true, -1]),
        "the caller has it, and the app not"
    );
}

#[test]
fn the_command_itself_has_no_keys_either() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let view = "def view():\n    libc = ctypes.CDLL(None)\n    return libc.syscall(250, 10, -3, b'user', b'lrpns-secret', 0)\n";
    let mut had = None;
    let seen = witnessed(&lab, view, |file| {
        let output = lab.run(&[
            PYTHON,
            "-c",
            &format!(
                "{}\ncall(libc.syscall(250, 1, 0))\ncall(libc.syscall(248, b'user', b'lrpns-secret', b'x', 1, -3))\n\
                 say(libc.syscall(250, 10, -3, b'user', b'lrpns-secret', 0) > 0)\n\
                 os.execv('{1}', ['lrpns', 'up', '-d', '-f', '{file}'])",
                look::ATTACKS,
                lrpns()
            ),
        ]);
        had = Some(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        output
    });
    assert_eq!(had.as_deref(), Some("true"));
    assert_eq!(seen, -1);
}

#[test]
fn shared_memory_and_message_queues_of_the_host_are_not_the_apps() {
    if !look::machine() {
        return;
    }
    let (lab, _) = serving();
    // The lab has no ipc namespace of its own: a key that nobody else has, and away with it before anything can fail.
    let key = std::process::id() | 0x4000_0000;
    let look_for = format!(
        "say([tried(lambda: call(libc.shmget({key}, 0, 0))), tried(lambda: call(libc.msgget({key}, 0)))])"
    );
    let here = look::attack_from_host(
        &lab,
        &format!(
            "call(libc.shmget({key}, 4096, 0o1666))\ncall(libc.msgget({key}, 0o1666))\n{look_for}"
        ),
    );
    let there = look::attack(&lab, "web", "app", &look_for);
    let key = key.to_string();
    lab.ok(&["ipcrm", "-M", &key, "-Q", &key]);
    assert_eq!(here, json!(["OK", "OK"]));
    // EPERM is a filter's answer.
    for why in there.as_array().unwrap() {
        assert!(
            ["ENOENT", "EPERM"].contains(&why.as_str().unwrap()),
            "{there}"
        );
    }
}

#[test]
fn the_relay_reaches_its_entry_port_and_nobody_elses_service_even_at_that_port() {
    let lab = Lab::new();
    let _others = support::servers::servers(&lab, Some("client"), &["tcp 10.99.0.2 5000"]);
    lab.lrpns_ok(&["up", "-d", "--demo"]);
    let status = lab.status("customerA");
    let parts = status["parts"].as_array().unwrap();
    let relay = parts.iter().find(|part| part["name"] == "relay").unwrap();
    if relay["notes"].to_string().contains("no Landlock") {
        support::skip("landlock", "this kernel has no Landlock for TCP");
        return;
    }
    let uplink = status["plan"]["uplink"].clone();
    let sidecar = uplink["sidecar_address"].as_str().unwrap().to_owned();
    let dial = |address: &str, port: &str| {
        let nc = [
            "exec", "--part", "relay", "--", "busybox", "nc", "-w", "2", address, port,
        ];
        lab.lrpns(&nc)
    };
    let own = dial(&sidecar, "5000");
    assert!(own.status.success(), "{}", describe(&own));
    // The port that it may dial, at whatever other address: the host's own, where it is published, and the world's.
    for address in ["127.0.0.1", "10.99.0.1", "10.99.0.2"] {
        let refused = dial(address, "5000");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("Connection refused"), "{address}: {said}");
    }
    // Port 22 is nobody's here: who may dial it is told that, who may not is told so first.
    for address in ["127.0.0.1", sidecar.as_str()] {
        let refused = dial(address, "22");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("Permission denied"), "{}", describe(&refused));
    }
}

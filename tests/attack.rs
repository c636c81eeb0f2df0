//! Attacks, each as somebody would try it: from inside an app, or from beside it on the host. An attack that works is
//! a failed test.
#![allow(clippy::unwrap_used)]

mod support;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use support::lab::{Lab, describe, lrpns};
use support::look;
use support::user::User;

/// Numbers of add_key(2) and keyctl(2): no program that everybody has calls them.
const ADD_KEY: i32 = libc_number(248, 217);
const KEYCTL: i32 = libc_number(250, 219);

const fn libc_number(x86_64: i32, others: i32) -> i32 {
    if cfg!(target_arch = "x86_64") {
        x86_64
    } else {
        others
    }
}

/// A stack `x` whose app has the host's programs and runs this shell script.
fn shell_app(lab: &Lab, script: &str, more: &str) -> String {
    let text = format!(
        "name = \"x\"\n[app]\nrootfs = \"host\"\ncommand = [\"sh\", \"-c\", '''{script}''']\n{more}\n"
    );
    lab.write("x.toml", &text).to_str().unwrap().to_owned()
}

/// A stack `x` whose app's root file system is a directory with the webapp in it; the directory.
fn directory_app(lab: &Lab, more: &str) -> (String, PathBuf) {
    let root = lab.dir.path().join("root");
    for mount_point in ["proc", "dev", "tmp"] {
        std::fs::create_dir_all(root.join(mount_point)).unwrap();
    }
    std::fs::copy(lrpns(), root.join("webapp")).unwrap();
    let text = format!(
        "name = \"x\"\n[app]\nrootfs = \"dir:{}\"\ncommand = [\"/webapp\"]\npublish = [\"5000:5000\"]\n{more}\n",
        root.display()
    );
    (
        lab.write("x.toml", &text).to_str().unwrap().to_owned(),
        root,
    )
}

/// Starts a command of the lab and waits until it has printed this line on standard output or error.
fn start_and_hear(lab: &Lab, args: &[&str], line: &str) -> (Child, impl BufRead + use<>) {
    let (read, write) = std::io::pipe().unwrap();
    let child = lab
        .command(args)
        .stdout(write.try_clone().unwrap())
        .stderr(write)
        .process_group(0)
        .spawn()
        .unwrap();
    let mut said = BufReader::new(read);
    let mut all = String::new();
    while !all.lines().any(|said| said.ends_with(line)) {
        let got = said.read_line(&mut all).unwrap();
        assert!(got > 0, "`{line}` was never said: {all}");
    }
    (child, said)
}

#[test]
fn output_faster_than_anybody_reads_does_not_fill_the_supervisors_memory() {
    let lab = Lab::new();
    let file = shell_app(&lab, "yes '' | head -n 500000", "restart = \"no\"");
    // Of address space, in KiB; the lines would take much more if they were all kept.
    let up = format!(
        "ulimit -v 80000 && exec {} up -f {file} >/dev/null",
        lrpns()
    );
    let up = lab.run(&["sh", "-c", &up]);
    assert!(up.status.success(), "{}", describe(&up));
}

#[test]
fn down_is_heard_while_an_app_writes_as_fast_as_it_can() {
    let lab = Lab::new();
    let file = shell_app(&lab, "exec yes ''", "");
    lab.lrpns_ok(&["up", "-d", "-f", &file]);
    lab.lrpns_ok(&["logs", "x"]);
    lab.ok(&["timeout", "60", lrpns(), "down", "x"]);
}

#[test]
fn no_part_can_make_a_user_namespace_and_be_root_there() {
    let lab = Lab::new();
    let file = shell_app(&lab, "exec sleep infinity", "");
    lab.lrpns_ok(&["up", "-d", "-f", &file]);
    let try_it = "grep NoNewPrivs /proc/self/status; exec unshare --user --map-root-user true";
    let tried = lab.lrpns(&["exec", "x", "--", "sh", "-c", try_it]);
    let said = describe(&tried);
    assert!(
        said.contains("NoNewPrivs"),
        "the attack did not run: {said}"
    );
    assert!(!tried.status.success(), "{said}");
}

#[test]
fn keys_of_who_started_the_stack_are_out_of_an_apps_reach() {
    let lab = Lab::new();
    // KEYCTL_SEARCH in the session keyring, which finds what is possessed, whoever it belongs to.
    // In variables, since perl's syscall takes no string that it couldn't change.
    let names = "($t, $n) = (\"user\", \"secret\");";
    let search = format!("{names} print syscall({KEYCTL}, 10, -3, $t, $n, 0), \"\\n\"");
    let file = shell_app(&lab, "exec sleep infinity", "");
    let with_a_key = |args: &[&str]| {
        let program = format!(
            "syscall({KEYCTL}, 1, 0); {names} syscall({ADD_KEY}, $t, $n, $n, 1, -3) > 0 or die $!; {search}; exec @ARGV"
        );
        lab.ok(&[&["perl", "-e", &format!("$| = 1; {program}")], args].concat())
    };
    let found = |said: String| -> Vec<bool> { said.lines().map(|id| id.trim() != "-1").collect() };
    let found_by_exec = |said: String| {
        assert_eq!(
            found(said),
            [true, false],
            "found by the starter, by the app"
        );
    };

    with_a_key(&[lrpns(), "up", "-d", "-f", &file]);
    found_by_exec(with_a_key(&[
        lrpns(),
        "exec",
        "x",
        "--",
        "perl",
        "-e",
        &search,
    ]));
    lab.lrpns_ok(&["down", "x"]);
    let file = shell_app(
        &lab,
        &format!("exec perl -e '{search}'"),
        "restart = \"no\"",
    );
    let said = with_a_key(&[lrpns(), "up", "-f", &file]);
    assert!(said.contains("app | -1"), "{said}");
}

#[test]
fn what_the_host_mounts_later_does_not_appear_in_an_app() {
    let lab = Lab::new();
    // As systemd leaves every host.
    lab.ok(&["mount", "--make-rshared", "/"]);
    let file = shell_app(&lab, "exec sleep infinity", "");
    lab.lrpns_ok(&["up", "-d", "-f", &file]);
    lab.ok(&[
        "mount",
        "-t",
        "tmpfs",
        "-o",
        "mode=1777",
        "later",
        "/usr/local",
    ]);
    let pid = look::pid(&lab.status("x"), "app");
    let mounts = lab.proc(pid, "mountinfo");
    assert!(mounts.contains(" /usr "), "{mounts}");
    assert!(!mounts.contains("later"), "{mounts}");
    assert!(!mounts.contains("shared:"), "{mounts}");
    let write = lab.lrpns(&["exec", "x", "--", "sh", "-c", "echo > /usr/local/x"]);
    assert!(!write.status.success());
}

#[test]
fn a_directory_on_a_shared_mount_can_be_a_root() {
    let lab = Lab::new();
    lab.ok(&["mount", "--make-rshared", "/"]);
    let (file, _) = directory_app(&lab, "");
    lab.lrpns_ok(&["up", "-d", "-f", &file]);
    assert_eq!(lab.get("http://localhost:5000/").unwrap(), "Hello world!");
    let host = lab.ok(&["cat", "/proc/self/mountinfo"]);
    assert!(
        !host.contains("/root/dev"),
        "the app's mounts are on the host: {host}"
    );
}

#[test]
fn down_during_up_ends_it_and_succeeds() {
    let lab = Lab::new();
    // It never listens, so `up` waits.
    let file = shell_app(&lab, "exec sleep infinity", "publish = [\"5000:5000\"]");
    // What would go wrong is a race between the two.
    for _ in 0..20 {
        let up = [lrpns(), "up", "-f", &file];
        let (mut up, _said) = start_and_hear(&lab, &up, "commands run");
        let down = lab.lrpns(&["down", "x"]);
        assert!(down.status.success(), "{}", describe(&down));
        assert!(!up.wait().unwrap().success());
    }
}

#[test]
fn signals_that_the_starter_ignored_are_not_ignored_inside() {
    let lab = Lab::new();
    let file = shell_app(&lab, "exec sleep infinity", "");
    let ignoring = |args: &[&str]| {
        let ignore = "$SIG{$_} = 'IGNORE' for qw(CHLD HUP INT QUIT USR1 PIPE); exec @ARGV";
        lab.ok(&[&["perl", "-e", ignore], args].concat())
    };
    ignoring(&[lrpns(), "up", "-d", "-f", &file]);
    // Bit N-1 for signal N; 32 and 33 belong to the C library, which lets nobody touch them.
    let ignored = |status: String| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("SigIgn:\t"));
        u64::from_str_radix(line.unwrap(), 16).unwrap() & !(0b11 << 31)
    };
    let pid = look::pid(&lab.status("x"), "app");
    assert_eq!(ignored(lab.proc(pid, "status")), 0);
    let own = [lrpns(), "exec", "x", "--", "cat", "/proc/self/status"];
    assert_eq!(ignored(ignoring(&own)), 0);
}

#[test]
fn what_exec_runs_holds_what_the_apps_command_holds_and_no_descriptor_more() {
    let lab = Lab::new();
    let file = shell_app(&lab, "exec sleep infinity", "");
    lab.lrpns_ok(&["up", "-d", "-f", &file]);
    let pid = look::pid(&lab.status("x"), "app");
    // What of them is the same for all processes that are started alike.
    let lines = |status: String| -> Vec<String> {
        let names = ["Groups", "Cap", "NoNewPrivs", "Seccomp", "SigIgn", "SigBlk"];
        let kept = status
            .lines()
            .filter(|line| names.iter().any(|name| line.starts_with(name)));
        kept.map(str::to_owned).collect()
    };
    let exec = |command: &[&str]| {
        let mut child = lab.command(&[&[lrpns(), "exec", "x", "--"], command].concat());
        // A descriptor of the caller's is nothing of the app's.
        let output = child
            .stdin(std::fs::File::open("/").unwrap())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", describe(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let own = lines(exec(&["cat", "/proc/self/status"]));
    assert_eq!(own, lines(lab.proc(pid, "status")));
    assert!(own.len() > 8, "{own:?}");
    for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let link = format!("ns/{kind}");
        assert_eq!(
            exec(&["readlink", &format!("/proc/self/{link}")]),
            lab.ok(&["readlink", &format!("/proc/{pid}/{link}")])
        );
    }
    // The fourth is the directory that ls itself has opened.
    assert_eq!(exec(&["ls", "/proc/self/fd"]), "0\n1\n2\n3\n");
    // Two at a time: neither sees the other's.
    let two = ["sh", "-c", "ls /proc/self/fd; exec sleep infinity"];
    let (mut first, _said) = start_and_hear(
        &lab,
        &[&[lrpns(), "exec", "x", "--"], &two[..]].concat(),
        "3",
    );
    assert_eq!(exec(&["ls", "/proc/self/fd"]), "0\n1\n2\n3\n");
    killpg(
        Pid::from_raw(i32::try_from(first.id()).unwrap()),
        Signal::SIGKILL,
    )
    .unwrap();
    first.wait().unwrap();
}

#[test]
fn an_app_that_kills_what_exec_started_or_ends_itself_ends_exec_in_order() {
    let lab = Lab::new();
    let file = shell_app(&lab, "exec sleep infinity", "restart = \"always\"");
    lab.lrpns_ok(&["up", "-d", "-f", &file]);
    let killed = lab.lrpns(&["exec", "x", "--", "sh", "-c", "kill -TERM $$"]);
    assert_eq!(
        killed.status.code(),
        Some(128 + 15),
        "{}",
        describe(&killed)
    );
    // Its pid 1 can't be reached from inside, so nothing there ends but the one that tries.
    let tried = lab.lrpns(&[
        "exec",
        "x",
        "--",
        "sh",
        "-c",
        "kill -KILL 1; kill -STOP 1; echo lives",
    ]);
    assert!(
        String::from_utf8_lossy(&tried.stdout).contains("lives"),
        "{}",
        describe(&tried)
    );
    assert!(lab.lrpns(&["exec", "x", "--", "true"]).status.success());
    let missing = lab.lrpns(&["exec", "x", "--", "no-such-program"]);
    assert_eq!(missing.status.code(), Some(127), "{}", describe(&missing));
    let not_executable = lab.lrpns(&["exec", "x", "--", "/etc/passwd"]);
    assert_eq!(
        not_executable.status.code(),
        Some(126),
        "{}",
        describe(&not_executable)
    );
}

#[test]
fn an_exec_that_was_stopped_does_not_keep_the_stack_from_going_down() {
    let lab = Lab::new();
    let file = shell_app(&lab, "exec sleep infinity", "");
    lab.lrpns_ok(&["up", "-d", "-f", &file]);
    let command = [
        "exec",
        "x",
        "--",
        "sh",
        "-c",
        "echo runs; exec sleep infinity",
    ];
    let (mut exec, _said) = start_and_hear(&lab, &[&[lrpns()], &command[..]].concat(), "runs");
    // What Ctrl-Z does, with the one signal that can't be handled.
    let group = Pid::from_raw(i32::try_from(exec.id()).unwrap());
    killpg(group, Signal::SIGSTOP).unwrap();
    let down = lab.run(&["timeout", "60", lrpns(), "down", "x"]);
    killpg(group, Signal::SIGKILL).unwrap();
    exec.wait().unwrap();
    assert!(down.status.success(), "{}", describe(&down));
}

#[test]
fn the_command_of_a_killed_exec_ends_with_it() {
    let lab = Lab::new();
    let file = shell_app(&lab, "exec sleep infinity", "");
    lab.lrpns_ok(&["up", "-d", "-f", &file]);
    let command = [
        "exec",
        "x",
        "--",
        "sh",
        "-c",
        "echo runs; exec sleep infinity",
    ];
    let (mut exec, mut said) = start_and_hear(&lab, &[&[lrpns()], &command[..]].concat(), "runs");
    // nsenter has one child, and that is lrpns.
    let children = format!("/proc/{0}/task/{0}/children", exec.id());
    let child = std::fs::read_to_string(children).unwrap();
    kill(
        Pid::from_raw(child.trim().parse().unwrap()),
        Signal::SIGKILL,
    )
    .unwrap();
    exec.wait().unwrap();
    // The command holds the pipe as long as it lives.
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
}

#[test]
fn an_app_that_can_not_be_started_again_leaves_no_zombie_each_time() {
    let lab = Lab::new();
    let (file, root) = directory_app(&lab, "restart = \"always\"");
    lab.lrpns_ok(&["up", "-d", "-f", &file]);
    std::fs::remove_file(root.join("webapp")).unwrap();
    let pid = look::part(&lab.status("x"), "app")["pid"].to_string();
    let mut log = lab
        .command(&[lrpns(), "logs", "x", "-f"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    lab.ok(&["kill", "-KILL", &pid]);
    let lines = BufReader::new(log.stdout.take().unwrap()).lines();
    let failures = lines
        .map(Result::unwrap)
        .filter(|line| line.contains("execute the command"));
    assert_eq!(failures.take(4).count(), 4);
    let states = lab.ok(&["ps", "-eo", "stat,args"]);
    let zombies = states.lines().filter(|line| line.starts_with('Z')).count();
    // The last one may just be ending.
    assert!(zombies <= 1, "{states}");
    lab.lrpns_ok(&["down", "x"]);
    log.wait().unwrap();
}

#[test]
fn a_supervisor_of_somebody_else_is_not_talked_to() {
    let lab = Lab::new();
    let stack = lab.dir.path().join("runtime/lrpns/customerA");
    std::fs::create_dir_all(&stack).unwrap();
    let socket = stack.join("control.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o777)).unwrap();
    let user = User {
        lab: &lab,
        uid: 4321,
        runtime: Some(format!("{}/runtime", lab.dir.path().display())),
    };
    for verb in ["status", "down", "logs"] {
        let asked = user.run(&["timeout", "60", &user.program(), verb, "customerA"]);
        let said = describe(&asked);
        assert!(
            said.contains("not you") || said.contains("must be ours"),
            "{said}"
        );
        assert!(!asked.status.success(), "{said}");
    }
}

/// Sends a datagram by IPv6 to a port of the lab's that says it is from an IPv4 address (RFC 4291, 2.5.5.2): the kernel
/// refuses that of TCP alone (`tcp_v6_conn_request`). Then one that is from the client itself.
const MAPPED: &str = r#"
import socket, struct, sys
own, target, port, mapped = *sys.argv[1:3], int(sys.argv[3]), sys.argv[4]
a = lambda text: socket.inet_pton(socket.AF_INET6, text)
def packet(source, text):
    udp = struct.pack(">HHHH", 40000, port, 8 + len(text), 0) + text
    pseudo = a(source) + a(target) + struct.pack(">II", len(udp), 17) + udp
    pseudo += b"\0" * (len(pseudo) % 2)
    total = sum(struct.unpack(f">{len(pseudo) // 2}H", pseudo))
    total = (total >> 16) + (total & 0xffff)
    check = ~(total + (total >> 16)) & 0xffff
    return struct.pack(">IHBB", 6 << 28, len(udp), 17, 64) + a(source) + a(target) + udp[:6] + struct.pack(">H", check) + udp[8:]
lab = bytes.fromhex(sys.argv[5].replace(":", ""))
s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0x86dd)
for source, text in [(mapped, b"forged"), (own, b"true")]:
    s.sendto(packet(source, text), ("eth0", 0x86dd, 0, 0, lab))
"#;

#[test]
fn nobody_is_a_client_of_ipv4_by_ipv6() {
    // It prints who sent what.
    let hears = "import socket\ns = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\ns.bind((\"::\", 5353))\nwhile True:\n    print(*s.recvfrom(99)[:2], flush=True)";
    for (via, source) in [
        ("relay", "sidecar"),
        ("relay", "client"),
        ("dnat", "sidecar"),
        ("dnat", "client"),
    ] {
        let lab = Lab::forwarding().with_ipv6();
        // 127.0.0.1 sends nothing over a network: by IPv4 the kernel sees to that.
        let allow = match via {
            "relay" => "allow = [\"127.0.0.1\", \"2001:db8::/64\"]",
            _ => "",
        };
        let more = format!("via = \"{via}\"\nsource = \"{source}\"\n{allow}");
        let file = format!(
            "name = \"x\"\n[network]\nipv6 = \"fd00:18::/64\"\n[app]\nrootfs = \"host\"\ncommand = {}\n\
             publish = [\"[::]:5353:5353/udp\"]\n{more}\n",
            support::look::toml_list(&[support::look::PYTHON, "-c", hears]),
        );
        let file = lab.write("x.toml", &file).to_str().unwrap().to_owned();
        lab.lrpns_ok(&["up", "-d", "-f", &file]);
        let link: serde_json::Value =
            serde_json::from_str(&lab.ok(&["ip", "-j", "link", "show", "ext0"])).unwrap();
        let mac = link[0]["address"].as_str().unwrap();
        let sent = lab.client(&[
            support::look::PYTHON,
            "-c",
            MAPPED,
            "2001:db8::2",
            "2001:db8::1",
            "5353",
            "::ffff:127.0.0.1",
            mac,
        ]);
        assert!(sent.status.success(), "{}", describe(&sent));
        let said = support::lab::until("the true one", || {
            let said = lab.lrpns_ok(&["logs", "x", "--part", "app"]);
            said.contains("b'true'").then_some(said)
        });
        assert!(!said.contains("forged"), "{via}, {source}: {said}");
    }
}

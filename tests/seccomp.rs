//! Every part under its seccomp filter: real servers serve all the same, and what is refused is refused.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;

use support::lab::{Lab, describe};
use support::{program, skip};

/// Debian's own interpreter: one that lies elsewhere is not in a root made from the host's.
const PYTHON: &str = "/usr/bin/python3";

/// A stack around one command in a root made from the host's; the command is a shell's script.
fn stack(port: u16, seccomp: &str, script: &str) -> String {
    stack_in("host", port, seccomp, script)
}

fn stack_in(rootfs: &str, port: u16, seccomp: &str, script: &str) -> String {
    assert!(!script.contains("'''"));
    // `$` begins a variable of lrpns's.
    let script = script.replace('$', "$$");
    format!(
        "name = \"s\"\n[app]\nrootfs = \"{rootfs}\"\ncommand = [\"/bin/sh\", \"-ec\", '''\n{script}''']\n\
         publish = [\"127.0.0.1:{port}:{port}\"]\ntmpfs = [\"/tmp:256M\"]\nrestart = \"no\"\nseccomp = \"{seccomp}\"\n"
    )
}

/// Brings it up; it must come to listen.
fn up(lab: &Lab, text: &str) {
    let file = lab.write("lrpns.toml", text);
    let up = lab.lrpns(&["up", "-d", "-f", file.to_str().unwrap()]);
    assert!(
        up.status.success(),
        "{}\n{}",
        describe(&up),
        String::from_utf8_lossy(&lab.lrpns(&["logs", "s"]).stdout)
    );
}

/// Whether the programs are there that the test is about.
fn have(programs: &[&str]) -> bool {
    for name in programs {
        if program(name).is_none() {
            skip("servers", &format!("{name} is not installed"));
            return false;
        }
    }
    true
}

/// Writes a file, in a shell's script and without another process.
fn file(path: &str, text: &str) -> String {
    assert!(!text.contains('\''));
    format!("printf '%s\\n' '{text}' >{path}\n")
}

const WSGI: &str = r#"def app(environ, start):
    start("200 OK", [("Content-Type", "text/plain")])
    return [b"gunicorn serves"]"#;

#[test]
fn nginx_serves_under_the_default() {
    if !have(&["nginx"]) {
        return;
    }
    let lab = Lab::new();
    let conf = "daemon off; worker_processes 2; pid /tmp/nginx.pid; error_log stderr;
events {}
http {
    access_log off; sendfile on; aio threads;
    client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
    server { listen 8001; root /tmp/www; }
}";
    let script = file("/tmp/nginx.conf", conf)
        + "mkdir /tmp/www; echo nginx serves >/tmp/www/index.html\nexec nginx -e stderr -c /tmp/nginx.conf";
    up(&lab, &stack(8001, "default", &script));
    assert_eq!(lab.get("http://127.0.0.1:8001/").unwrap(), "nginx serves\n");
    every_process_is_filtered(&lab);
    // SIGHUP: new workers, and a look at the address it listens on
    lab.lrpns_ok(&[
        "exec",
        "s",
        "--",
        "/bin/sh",
        "-c",
        "kill -HUP $(cat /tmp/nginx.pid)",
    ]);
    assert_eq!(lab.get("http://127.0.0.1:8001/").unwrap(), "nginx serves\n");
}

#[test]
fn gunicorn_serves_under_the_default() {
    if !have(&["gunicorn"]) {
        return;
    }
    let lab = Lab::new();
    let script = file("/tmp/app.py", WSGI)
        + "exec /usr/bin/gunicorn -w 2 -b 0.0.0.0:8002 --chdir /tmp --worker-tmp-dir /tmp app:app";
    up(&lab, &stack(8002, "default", &script));
    assert_eq!(
        lab.get("http://127.0.0.1:8002/").unwrap(),
        "gunicorn serves"
    );
}

#[test]
fn node_serves_under_default_and_strict() {
    if !have(&["node"]) {
        return;
    }
    for seccomp in ["default", "strict"] {
        let lab = Lab::new();
        // fs.promises goes through libuv's threads, the dns lookup through getaddrinfo
        let code = r#"const fs = require("fs").promises, dns = require("dns").promises;
require("http").createServer(async (_, answer) => {
    await fs.writeFile("/tmp/x", "node serves");
    await dns.lookup("localhost");
    answer.end(await fs.readFile("/tmp/x"));
}).listen(8003, "0.0.0.0");"#;
        let script =
            file("/tmp/server.js", code) + "exec node --max-old-space-size=64 /tmp/server.js";
        up(&lab, &stack(8003, seccomp, &script));
        assert_eq!(lab.get("http://127.0.0.1:8003/").unwrap(), "node serves");
    }
}

#[test]
fn redis_serves_and_saves_under_the_default() {
    if !have(&["redis-server", "redis-cli"]) {
        return;
    }
    let lab = Lab::new();
    let script = "exec redis-server --port 8004 --bind 0.0.0.0 --protected-mode no --dir /tmp --appendonly yes";
    up(&lab, &stack(8004, "default", script));
    let cli = |args: &[&str]| lab.ok(&[&["redis-cli", "-p", "8004"], args].concat());
    assert_eq!(cli(&["set", "a", "redis serves"]), "OK\n");
    assert_eq!(cli(&["get", "a"]), "redis serves\n");
    // forks
    assert_eq!(cli(&["bgsave"]), "Background saving started\n");
}

#[test]
fn postgresql_serves_under_the_default() {
    let Some(bin) = std::fs::read_dir("/usr/lib/postgresql")
        .ok()
        .and_then(|mut versions| versions.next())
        .map(|version| version.unwrap().path().join("bin"))
        .filter(|_| program("psql").is_some())
    else {
        skip("servers", "PostgreSQL is not installed");
        return;
    };
    let lab = Lab::new();
    let bin = bin.display();
    let script = format!(
        "{bin}/initdb -D /tmp/pg --no-sync -A trust --locale=C -U app >/dev/null
echo 'host all all 0.0.0.0/0 trust' >>/tmp/pg/pg_hba.conf
exec {bin}/postgres -D /tmp/pg -p 8005 -c listen_addresses=0.0.0.0 -c unix_socket_directories=/tmp \
    -c shared_buffers=8MB -c fsync=off"
    );
    up(&lab, &stack(8005, "default", &script));
    let query = "create table t as select generate_series(1, 6) * 7 as n; select max(n) from t;";
    let psql = [
        "psql",
        "-qAt",
        "-h",
        "127.0.0.1",
        "-p",
        "8005",
        "-U",
        "app",
        "-c",
        query,
        "postgres",
    ];
    assert_eq!(lab.ok(&psql), "42\n");
}

#[test]
fn a_java_server_serves_under_default_and_strict() {
    if !have(&["java", "javac"]) {
        return;
    }
    for seccomp in ["default", "strict"] {
        let lab = Lab::new();
        // Debian's JDK has its configuration in /etc.
        let root = lab.dir.path().join("root");
        lab.ok(&[
            "sh",
            "-ec",
            "mkdir -p $0/usr $0/etc $0/proc $0/dev $0/tmp; ln -s usr/bin usr/lib usr/lib64 $0/
             mount -o bind,ro /usr $0/usr; cp -rL /etc/java* /etc/alternatives /etc/ld.so.cache $0/etc/ 2>/dev/null || :
             rm -r $0/etc/alternatives; cp -r /etc/alternatives $0/etc/",
            root.to_str().unwrap(),
        ]);
        let code = r#"public class Server {
    public static void main(String[] a) throws Exception {
        var server = com.sun.net.httpserver.HttpServer.create(new java.net.InetSocketAddress("0.0.0.0", 8006), 0);
        server.createContext("/", exchange -> {
            byte[] body = "java serves".getBytes();
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.start();
    }
}"#;
        let script = file("/tmp/Server.java", code)
            + "exec java -Xmx64m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 /tmp/Server.java";
        let rootfs = format!("dir:{}", root.display());
        up(&lab, &stack_in(&rootfs, 8006, seccomp, &script));
        assert_eq!(lab.get("http://127.0.0.1:8006/").unwrap(), "java serves");
    }
}

/// Runs a script of Python's in the app, by `lrpns exec`; its output.
fn python_in_the_app(lab: &Lab, script: &str) -> String {
    let exec = lab.lrpns(&["exec", "s", "--", PYTHON, "-c", script]);
    assert!(exec.status.success(), "{}", describe(&exec));
    String::from_utf8(exec.stdout).unwrap()
}

const SERVER: &str = "exec /usr/bin/python3 -m http.server 8000 --bind 0.0.0.0 --directory /tmp";

/// One line per call: a name, and the name of the error or `ok`.
const TRY_CALLS: &str = r#"
import ctypes, errno, sys
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, number, *args):
    ctypes.set_errno(0)
    got = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) for a in args])
    print(name, "ok" if got >= 0 else errno.errorcode[ctypes.get_errno()])
path = ctypes.addressof(ctypes.create_string_buffer(b"/tmp"))
"#;

#[test]
#[cfg(target_arch = "x86_64")]
fn what_no_web_app_needs_is_refused() {
    let lab = Lab::new();
    up(&lab, &stack(8000, "default", SERVER));
    let calls = [
        ("unshare", "272, 0x10000000"),
        ("unshare of nothing", "272, 0"),
        ("setns", "308, 0, 0"),
        ("mount", "165, path, path, 0, 4096, 0"),
        ("umount2", "166, path, 0"),
        ("move_mount", "429, -100, path, -100, path, 0"),
        ("open_tree", "428, -100, path, 1"),
        ("fsopen", "430, path, 0"),
        ("fsconfig", "431, 0, 0, 0, 0, 0"),
        ("fsmount", "432, 0, 0, 0"),
        ("fspick", "433, -100, path, 0"),
        ("mount_setattr", "442, -100, path, 0, 0, 0"),
        ("open_tree_attr", "467, -100, path, 1, 0, 0"),
        ("pivot_root", "155, path, path"),
        ("chroot", "161, path"),
        ("clone of a user namespace", "56, 0x10000011, 0, 0, 0, 0"),
        ("clone with a stray bit", "56, 0x110000011, 0, 0, 0, 0"),
        ("ptrace", "101, 0, 0, 0, 0"),
        ("process_vm_readv", "310, 1, 0, 0, 0, 0, 0"),
        ("pidfd_getfd", "438, 0, 0, 0"),
        ("kcmp", "312, 1, 1, 0, 0, 0"),
        ("keyctl", "250, 0, -3, 0"),
        ("add_key", "248, path, path, 0, 0, -3"),
        ("request_key", "249, path, path, 0, -3"),
        ("bpf", "321, 0, 0, 0"),
        ("io_uring_setup", "425, 1, 0"),
        ("io_uring_enter", "426, 0, 0, 0, 0, 0"),
        ("io_uring_register", "427, 0, 0, 0, 0"),
        ("perf_event_open", "298, 0, 0, -1, -1, 0"),
        ("userfaultfd", "323, 1"),
        ("name_to_handle_at", "303, -100, path, 0, 0, 0"),
        ("open_by_handle_at", "304, 0, 0, 0"),
        ("init_module", "175, 0, 0, path"),
        ("finit_module", "313, 0, path, 0"),
        ("kexec_load", "246, 0, 0, 0, 0"),
        ("reboot", "169, 0, 0, 0, 0"),
        ("swapon", "167, path, 0"),
        ("acct", "163, path"),
        ("quotactl", "179, 0, path, 0, 0"),
        ("settimeofday", "164, 0, 0"),
        ("clock_settime", "227, 0, 0"),
        ("adjtimex", "159, 0"),
        ("syslog", "103, 0, 0, 0"),
        ("iopl", "172, 3"),
        ("ioperm", "173, 0, 1, 1"),
        ("modify_ldt", "154, 0, 0, 0"),
        ("vhangup", "153"),
        ("sethostname", "170, path, 4"),
        ("fanotify_init", "300, 0, 0"),
        ("mbind", "237, 0, 0, 0, 0, 0, 0"),
        ("personality", "135, 0x0040000"),
        ("mknod of a device", "133, path, 0o20666, 0x103"),
        ("socket of netlink", "41, 16, 3, 4"),
        ("socket of packet", "41, 17, 3, 0"),
        ("socket of alg", "41, 38, 5, 0"),
        ("socket of vsock", "41, 40, 1, 0"),
        (
            "socket of netlink with a stray bit",
            "41, 0x100000010, 3, 0x10000000c",
        ),
        ("socketpair of tipc", "53, 30, 1, 0, path"),
        ("TIOCSTI", "16, 0, 0x5412, path"),
        ("TIOCSTI with a stray bit", "16, 0, 0x100005412, path"),
        ("TIOCLINUX", "16, 0, 0x541c, path"),
        ("TIOCSETD", "16, 0, 0x5423, path"),
        ("PR_SET_MM", "157, 35, 1, 0, 0, 0"),
        ("PR_SET_PTRACER", "157, 0x59616d61, -1, 0, 0, 0"),
        ("a filter with a listener", "317, 1, 8, 0"),
        ("an x32 call", "0x40000000 + 39"),
    ];
    let script: String = calls
        .iter()
        .map(|(name, args)| format!("attempt({name:?}, {args})\n"))
        .collect();
    let said = python_in_the_app(&lab, &format!("{TRY_CALLS}{script}"));
    let wanted: Vec<String> = calls
        .iter()
        .map(|(name, _)| format!("{name} EPERM"))
        .collect();
    assert_eq!(said.lines().collect::<Vec<_>>(), wanted);
    let said = python_in_the_app(
        &lab,
        &format!("{TRY_CALLS}attempt('clone3', 435, 0, 0)\nattempt('of the future', 600)"),
    );
    assert_eq!(said, "clone3 ENOSYS\nof the future ENOSYS\n");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn what_is_refused_by_the_filter_is_not_refused_by_the_kernel_anyway() {
    let lab = Lab::new();
    let open = lab.write("open.json", r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#);
    up(&lab, &stack(8000, open.to_str().unwrap(), SERVER));
    let said = python_in_the_app(
        &lab,
        &format!(
            "{TRY_CALLS}
attempt('unshare', 272, 0x10000000)
attempt('socket of netlink', 41, 16, 3, 0)
attempt('personality', 135, 0x0040000)
attempt('an x32 call', 0x40000000 + 39)"
        ),
    );
    assert_eq!(
        said,
        "unshare ENOSPC\nsocket of netlink ok\npersonality ok\nan x32 call EPERM\n"
    );
}

#[test]
fn ordinary_python_does_not_notice_the_filter() {
    let lab = Lab::new();
    up(&lab, &stack(8000, "default", SERVER));
    let said = python_in_the_app(
        &lab,
        r#"
import os, socket, subprocess, sqlite3, tempfile, threading, multiprocessing, time, select, signal, ssl
thread = threading.Thread(target=lambda: time.sleep(0)); thread.start(); thread.join()
assert subprocess.run(["/bin/sh", "-c", "echo a | cat"], capture_output=True).stdout == b"a\n"
process = multiprocessing.get_context("fork").Process(target=print, args=["forked"]); process.start(); process.join()
assert socket.getaddrinfo("localhost", 80)[0][4] == ("127.0.0.1", 80)
a, b = socket.socketpair(); a.send(b"x"); assert b.recv(1) == b"x"
with tempfile.NamedTemporaryFile(dir="/tmp") as f: sqlite3.connect(f.name).execute("create table t(n)")
os.mkfifo("/tmp/fifo"); os.memfd_create("m"); os.sched_getaffinity(0); os.setuid(os.getuid())
assert os.getrandom(4) and select.epoll() and ssl.create_default_context()
signal.setitimer(signal.ITIMER_REAL, 100)
print("fine")
"#,
    );
    assert_eq!(said, "forked\nfine\n");
}

/// Says `Seccomp: 2` of every process in the stack but the supervisor; how many there are.
fn every_process_is_filtered(lab: &Lab) -> usize {
    let script = r#"
for status in /proc/[0-9]*/status; do
    awk '/^(Name|Pid|NSpid|Seccomp):/ { v[$1] = $2; n[$1] = NF }
        END { if (n["NSpid:"] > 2) print v["Name:"], v["Seccomp:"] }' "$status"
done"#;
    let seen = lab.ok(&["sh", "-ec", script]);
    let processes: Vec<&str> = seen.lines().collect();
    assert!(processes.len() >= 4, "{seen}");
    for process in &processes {
        assert!(process.ends_with(" 2"), "{process} is not filtered");
    }
    processes.len()
}

#[test]
fn all_parts_are_filtered_and_say_so() {
    let lab = Lab::new();
    lab.lrpns_ok(&["up", "-d", "--demo"]);
    // sidecar, relay, the app's pid 1, the app
    assert_eq!(every_process_is_filtered(&lab), 4);
    let status = lab.status("customerA");
    for part in status["parts"].as_array().unwrap() {
        assert_eq!(part["privileges"]["seccomp"], 2, "{part:#}");
    }
}

/// Calls that an open profile allows, and calls that no profile does, with arguments that change nothing.
#[cfg(target_arch = "x86_64")]
const SAME_AT_EACH_START: &str = r#"
attempt('ptrace', 101, 0x4206, 1, 0, 0)
attempt('keyctl', 250, 0, -3, 0)
attempt('a keyring', 250, 1, 0)
attempt('bpf', 321, 0, 0, 0)
attempt('io_uring_setup', 425, 1, 0)
attempt('perf_event_open', 298, 0, 0, -1, -1, 0)
attempt('userfaultfd', 323, 1)
attempt('process_vm_readv', 310, 1, 0, 0, 0, 0, 0)
attempt('process_vm_readv of itself', 310, __import__('os').getpid(), 0, 0, 0, 0, 0)
attempt('kcmp', 312, 1, 1, 0, 0, 0)
attempt('adjtimex', 159, 0)
attempt('fanotify_init', 300, 0, 0)
attempt('unshare', 272, 0x10000000)
attempt('mbind', 237, 0, 0, 0, 0, 0, 0)
attempt('io_setup', 206, 1, 0)
attempt('mq_open', 240, path, 0, 0, 0)
attempt('personality', 135, 0x0040000)
attempt('netlink of routes', 41, 16, 3, 0)
attempt('netlink of netfilter', 41, 16, 3, 12)
attempt('netlink of events', 41, 16, 3, 15)
attempt('vsock', 41, 40, 1, 0)
attempt('TIOCSTI', 16, 0, 0x5412, path)
attempt('TCGETS', 16, 0, 0x5401, path)
attempt('a filter with a listener', 317, 1, 8, 0)
attempt('setns', 308, 0, 0)
attempt('mount', 165, path, path, 0, 4096, 0)
attempt('of the future', 600)
sys.stdout.flush()
"#;

#[test]
#[cfg(target_arch = "x86_64")]
fn an_app_that_is_started_again_has_the_calls_of_its_first_start() {
    for profile in ["default", "strict", "open.json"] {
        let lab = Lab::new();
        lab.write("open.json", r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#);
        let path = lab.write("calls.py", &format!("{TRY_CALLS}{SAME_AT_EACH_START}"));
        std::fs::rename(&path, lab.volume("code").join("calls.py")).unwrap();
        let server = "import http.server; http.server.test(HandlerClass=http.server.SimpleHTTPRequestHandler, port=8000)";
        let text = format!(
            "name = \"s\"\n[app]\nrootfs = \"host\"\nseccomp = \"{profile}\"\nvolumes = [\"{}:/code\"]\n\
             command = [\"{PYTHON}\", \"-c\", \"exec(open('/code/calls.py').read()); {server}\"]\n\
             publish = [\"127.0.0.1:8000:8000\"]\n",
            lab.dir.path().join("code").display()
        );
        up(&lab, &text);
        lab.lrpns_ok(&["restart", "s", "app"]);
        lab.lrpns_ok(&["restart", "s", "--rolling"]);
        let log = lab.lrpns_ok(&["logs", "s", "--part", "app"]);
        let calls = SAME_AT_EACH_START.matches("attempt(").count();
        let said: Vec<&str> = log
            .lines()
            .filter_map(|line| Some(line.split_once("| ")?.1))
            .filter(|line| line.ends_with(" ok") || line.rsplit_once(" E").is_some())
            .collect();
        assert_eq!(said.len(), 3 * calls, "{log}");
        assert_eq!(said[..calls], said[calls..2 * calls], "{profile}");
        assert_eq!(said[..calls], said[2 * calls..], "{profile}");
        for line in [
            "ptrace EPERM",
            "keyctl EPERM",
            "a keyring EPERM",
            "bpf EPERM",
        ] {
            assert!(said.contains(&line), "{profile}: {line}: {said:?}");
        }
        let open = said.contains(&"personality ok") && said.contains(&"netlink of netfilter ok");
        assert_eq!(open, profile == "open.json", "{said:?}");
    }
}

#[test]
fn the_supervisor_is_under_its_filter_when_the_ports_answer() {
    for more in [&[][..], &["--gate"]] {
        let lab = Lab::new();
        lab.lrpns_ok(&[&["up", "-d", "--demo"], more].concat());
        let status = lab.status("customerA");
        assert_eq!(status["supervisor_privileges"]["seccomp"], 2, "{more:?}");
        let supervisor = lab.proc(status["supervisor"].as_i64().unwrap(), "status");
        for line in ["Seccomp:\t2", "NoNewPrivs:\t1", "Threads:\t1"] {
            assert!(supervisor.contains(line), "{more:?}: {supervisor}");
        }
        assert_eq!(lab.get("http://127.0.0.1:5000/").unwrap(), "Hello world!");
    }
}

#[test]
fn exec_runs_under_the_filter_of_its_part() {
    let Some(busybox) = program("busybox") else {
        skip("busybox", "busybox is not installed");
        return;
    };
    let lab = Lab::new();
    let probe = "import ctypes, errno; l = ctypes.CDLL(None, use_errno=True); l.unshare(0x10000000); \
                 print(open('/proc/self/status').read().split('Seccomp:')[1].split()[0], ctypes.get_errno())";
    up(&lab, &stack(8000, "default", SERVER));
    assert_eq!(python_in_the_app(&lab, probe), "2 1\n");
    for part in ["sidecar", "relay"] {
        let busybox = busybox.to_str().unwrap();
        let refused = |command: &[&str]| {
            let command = [&["exec", "s", "--part", part, "--", busybox], command].concat();
            let output = lab.lrpns(&command);
            assert!(!output.status.success(), "{}", describe(&output));
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(said.contains("Operation not permitted"), "{said}");
        };
        refused(&["unshare", "-n", "true"]);
        // The relay has TCP, the sidecar netfilter alone; neither has UDP.
        refused(&["nslookup", "a", "127.0.0.1"]);
        if part == "sidecar" {
            refused(&["nc", "-l"]);
        }
        let output = lab.lrpns_ok(&["exec", "s", "--part", part, "--", busybox, "echo", "runs"]);
        assert_eq!(output, "runs\n");
    }
}

#[test]
fn strict_starts_no_other_process() {
    let lab = Lab::new();
    up(&lab, &stack(8000, "strict", SERVER));
    assert!(lab.get("http://127.0.0.1:8000/").is_ok());
    let said = python_in_the_app(
        &lab,
        r#"
import os, socket, threading
thread = threading.Thread(target=print, args=["a thread"]); thread.start(); thread.join()
for name, call in {"fork": os.fork, "unix": lambda: socket.socket(socket.AF_UNIX)}.items():
    try: call()
    except PermissionError: print(name, "refused")
"#,
    );
    assert_eq!(said, "a thread\nfork refused\nunix refused\n");
}

#[test]
fn a_file_of_dockers_decides() {
    let lab = Lab::new();
    let profile = lab.write(
        "profile.json",
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir", "mkdirat", "a_call_of_another_kernel"], "action": "SCMP_ACT_ERRNO", "errnoRet": 30}]}"#,
    );
    up(&lab, &stack(8000, profile.to_str().unwrap(), SERVER));
    let said = python_in_the_app(
        &lab,
        "import os\ntry: os.mkdir('/tmp/d')\nexcept OSError as e: print(e.errno)",
    );
    assert_eq!(said, "30\n");
    let file = lab.dir.path().join("lrpns.toml");
    let plan = lab.lrpns_ok(&["plan", "-v", "-f", file.to_str().unwrap()]);
    assert!(
        plan.contains("unknown here: a_call_of_another_kernel\n"),
        "{plan}"
    );
    let kept = plan
        .split("kept from every app: ")
        .nth(1)
        .unwrap_or_default();
    let kept = kept.split(':').next().unwrap();
    for call in ["ptrace", "keyctl", "bpf"] {
        assert!(
            kept.split_whitespace().any(|word| word == call),
            "{call}: {plan}"
        );
    }
}

#[test]
fn a_file_that_is_wrong_is_shown_with_its_place() {
    let lab = Lab::new();
    let bad = lab.write(
        "bad.json",
        "{\"defaultAction\": \"SCMP_ACT_ERRNO\",\n \"syscalls\": [{\"names\": [\"read\"], \"action\": \"SCMP_ACT_ALOW\"}]}",
    );
    let file = lab.write("lrpns.toml", &stack(8000, bad.to_str().unwrap(), SERVER));
    let plan = lab.lrpns(&["plan", "-f", file.to_str().unwrap()]);
    assert_eq!(plan.status.code(), Some(2));
    let said = String::from_utf8(plan.stderr).unwrap();
    assert!(said.contains("unknown variant `SCMP_ACT_ALOW`"), "{said}");
    assert!(said.contains("bad.json:2:"), "{said}");

    let nothing = lab.write("nothing.json", r#"{"defaultAction": "SCMP_ACT_ERRNO"}"#);
    let file = lab.write(
        "lrpns.toml",
        &stack(8000, nothing.to_str().unwrap(), SERVER),
    );
    let plan = lab.lrpns(&["plan", "-f", file.to_str().unwrap()]);
    assert_eq!(plan.status.code(), Some(2));
    let said = String::from_utf8(plan.stderr).unwrap();
    assert!(said.contains("`execve` is not allowed"), "{said}");
}

#[test]
fn plan_shows_the_effective_list() {
    let lab = Lab::new();
    let text = lab.lrpns_ok(&["plan", "-v"]);
    assert!(text.contains("\n  seccomp default: "), "{text}");
    let list = text.split("\n  seccomp default: ").nth(1).unwrap();
    let mut list = list.lines().take_while(|line| !line.is_empty());
    assert!(list.all(|line| line.len() < 200), "{text}");
    let plan: serde_json::Value = serde_json::from_str(&lab.lrpns_ok(&["plan", "--json"])).unwrap();
    let seccomp = &plan["apps"][0]["seccomp"];
    assert_eq!(seccomp["profile"], "default");
    let allowed: Vec<&str> = seccomp["allowed"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect();
    assert!(
        allowed.contains(&"accept4") && allowed.is_sorted(),
        "{allowed:?}"
    );
    for never in ["mount", "unshare", "bpf", "ptrace", "socket"] {
        assert!(!allowed.contains(&never), "{never}");
    }
    let conditional = seccomp["conditional"].as_array().unwrap();
    assert!(conditional.iter().any(|call| call["name"] == "socket"));
    // Names of other eyes: all of them are known to the C library's header.
    let header = Path::new("/usr/include/x86_64-linux-gnu/asm/unistd_64.h");
    if let Ok(header) = std::fs::read_to_string(header) {
        let unknown: Vec<_> = allowed
            .iter()
            .filter(|name| !header.contains(&format!("#define __NR_{name} ")))
            .collect();
        // newer than Debian 12's
        assert!(unknown.len() < 20, "{unknown:?}");
    }
}

/// Run it with `cargo test --test seccomp -- --ignored --nocapture`.
#[test]
#[ignore = "measures, does not check"]
fn how_long_the_kernel_takes_to_take_a_filter() {
    use lrpns::confine::seccomp;
    let on_the_way = seccomp::default().filters().unwrap().stage;
    for (name, program) in [
        ("default", seccomp::default().compile().unwrap()),
        ("strict", seccomp::strict().compile().unwrap()),
        ("sidecar", seccomp::sidecar().compile().unwrap()),
        (
            "relay",
            seccomp::relay(seccomp::Carries {
                udp: true,
                ipv6: true,
                as_clients: true,
            })
            .compile()
            .unwrap(),
        ),
        ("init", seccomp::init().compile().unwrap()),
        ("on the way to default", on_the_way),
    ] {
        let mut times: Vec<_> = (0..40)
            .map(|_| {
                // A filter is for good: each time it is another thread's.
                std::thread::scope(|scope| {
                    let install = || {
                        rustix::thread::set_no_new_privs(true).unwrap();
                        let begun = std::time::Instant::now();
                        program.install().unwrap();
                        begun.elapsed()
                    };
                    scope.spawn(install).join().unwrap()
                })
            })
            .collect();
        times.sort();
        println!(
            "{name}: {} instructions, {} us median, {} us least",
            program.instructions().len(),
            times[20].as_micros(),
            times[0].as_micros()
        );
    }
}

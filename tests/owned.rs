//! Parts that were broken into: what an attacker who is the sidecar or the relay can do to the supervisor, to the host and
//! to whoever reads the log. The attacker is Python that has taken the part's own sockets (pidfd_getfd(2)), and so says by
//! them whatever it wants.
#![allow(clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use support::lab::{Lab, describe, lrpns, until};
use support::look::{self, PYTHON};

/// What has the part's sockets: `unix(kind)` are those to the supervisor, the first one is the conversation.
const TAKE: &str = r#"
pid = int(os.environ["PART"])
pidfd = os.pidfd_open(pid)
def take(fd):
    number = libc.syscall(438, pidfd, fd, 0)
    return socket.socket(fileno=call(number))
def unix(kind):
    fds = sorted(int(fd) for fd in os.listdir("/proc/%d/fd" % pid))
    links = {fd: os.readlink("/proc/%d/fd/%d" % (pid, fd)) for fd in fds}
    taken = [take(fd) for fd, link in links.items() if link.startswith("socket:")]
    return [s for s in taken if (s.family, s.type) == (socket.AF_UNIX, kind)]
def message(value):
    body = json.dumps(value).encode()
    return struct.pack("<I", len(body)) + body
"#;

/// A stack `x` of the built-in app.
fn up(lab: &Lab, more: &str) {
    let file = format!(
        "name = \"x\"\n[app]\nrootfs = \"builtin:webapp\"\npublish = [\"5000:5000\"]\n{more}\n"
    );
    let file = lab.write("x.toml", &file);
    lab.lrpns_ok(&["up", "-d", "-f", file.to_str().unwrap()]);
}

fn init(lab: &Lab, part: &str) -> String {
    look::part(&lab.status("x"), part)["init"].to_string()
}

/// Runs Python that is the part.
fn as_part(lab: &Lab, part: &str, code: &str) -> Value {
    let part = format!("PART={}", init(lab, part));
    let code = format!("{}\n{TAKE}\n{code}", look::ATTACKS);
    let text = lab.ok(&["env", &part, PYTHON, "-c", &code]);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// What a supervisor answers within a minute it answers.
fn within_a_minute(lab: &Lab, args: &[&str]) -> String {
    lab.ok(&[&["timeout", "60", lrpns()], args].concat())
}

#[test]
fn no_part_makes_the_supervisor_close_what_takes_forever_to_close() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    up(&lab, "");
    for part in ["relay", "sidecar"] {
        // A socket whose last owner waits for a day until its bytes are taken, which they never are.
        let sent = as_part(
            &lab,
            part,
            r#"
listener = socket.socket()
listener.bind(("127.0.0.1", 0))
listener.listen()
s = socket.create_connection(listener.getsockname())
kept.append(listener.accept())
s.setblocking(False)
while tried(s.send, bytes(65536)) == "OK":
    pass
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 86400))
say(tried(socket.send_fds, unix(socket.SOCK_STREAM)[0], [message("Started")], [s.fileno()]))
# Not by way of closing it.
os._exit(0)
"#,
        );
        // SO_PASSRIGHTS is of Linux 6.16; before, a part that only talks has no call that sends descriptors.
        if sent == json!("OK") {
            support::skip(
                "descriptors",
                "this kernel lets every part send descriptors",
            );
            return;
        }
        assert_eq!(sent, json!("EPERM"), "{part}");
        within_a_minute(&lab, &["status", "x"]);
    }
    within_a_minute(&lab, &["down", "x"]);
}

#[test]
fn the_relay_gets_past_landlock_neither_by_mptcp_nor_by_fast_open() {
    let lab = Lab::new();
    let source = lab.write(
        "dial.c",
        r#"
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
int main(int argc, char **argv) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    inet_pton(AF_INET, argv[1], &to.sin_addr);
    int protocol = argc > 3 ? atoi(argv[3]) : 0, how = argc > 4;
    int s = socket(AF_INET, SOCK_STREAM, protocol);
    int done = s < 0 ? s
        : how ? (int)sendto(s, "x", 1, MSG_FASTOPEN, (void *)&to, sizeof to)
        : connect(s, (void *)&to, sizeof to);
    puts(done < 0 ? strerrorname_np(errno) : "OK");
}
"#,
    );
    let dial = lab.dir.path().join("dial");
    let (source, dial) = (source.to_str().unwrap(), dial.to_str().unwrap());
    lab.ok(&["cc", "-D_GNU_SOURCE", "-static", "-o", dial, source]);
    up(&lab, "via = \"relay\"");
    let status = lab.status("x");
    if look::part(&status, "relay")["notes"]
        .to_string()
        .contains("no Landlock")
    {
        support::skip("landlock", "this kernel has no Landlock for TCP");
        return;
    }
    let sidecar = status["plan"]["uplink"]["sidecar_address"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut service = lab
        .command(&[PYTHON, "-m", "http.server", "--bind", "127.0.0.1", "8080"])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    until("the service", || lab.get("http://127.0.0.1:8080/").ok());
    let dial = |more: &[&str]| {
        let command = [&["exec", "x", "--part", "relay", "--", dial], more].concat();
        lab.lrpns_ok(&command).trim().to_owned()
    };
    // Where it may go it gets; elsewhere there is somebody, and he hears nothing.
    assert_eq!(dial(&[&sidecar, "5000"]), "OK");
    assert_eq!(dial(&["127.0.0.1", "8080"]), "EACCES");
    let mptcp = libc::IPPROTO_MPTCP.to_string();
    assert_eq!(dial(&["127.0.0.1", "8080", &mptcp]), "EPERM");
    assert_eq!(dial(&["127.0.0.1", "8080", "0", "fast"]), "EOPNOTSUPP");
    service.kill().unwrap();
    service.wait().unwrap();
}

#[test]
fn a_listening_socket_of_the_hosts_connects_to_nothing_whoever_has_it() {
    let lab = Lab::new();
    up(&lab, "");
    // Its filter is what is asked for here: who has it is root.
    let connected = as_part(
        &lab,
        "relay",
        r#"
fds = os.listdir("/proc/%d/fd" % pid)
links = {int(fd): os.readlink("/proc/%d/fd/%s" % (pid, fd)) for fd in fds}
taken = [take(fd) for fd, link in links.items() if link.startswith("socket:")]
listens = lambda s: s.family == socket.AF_INET and s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
[published] = filter(listens, taken)
assert published.getsockname()[1] == 5000
of_the_host = socket.create_server(("127.0.0.1", 0))
def disconnect_and_connect(s):
    call(libc.connect(s.fileno(), bytes(16), 16))
    s.setblocking(True)
    # Two requests, and the kernel gives up.
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
    s.connect(of_the_host.getsockname())
plain = socket.create_server(("127.0.0.1", 0))
say([tried(disconnect_and_connect, s) for s in (plain, published)])
"#,
    );
    assert_eq!(connected, json!(["OK", "ETIMEDOUT"]));
    within_a_minute(&lab, &["down", "x"]);
}

#[test]
fn what_a_part_says_of_its_failure_is_short_and_no_terminal_obeys_it() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    up(&lab, "");
    // As long as a message may be: with it the log would have room for nothing else.
    as_part(
        &lab,
        "relay",
        r#"
said = {"step": "work", "cause": "\n2026-11-23T00:00:00.000Z app | forged\x1b]0;owned\x07" + "x" * 4000000, "errno": None}
s = unix(socket.SOCK_STREAM)[0]
s.setblocking(True)
say(tried(s.sendall, message({"Failed": said})))
"#,
    );
    let log = until("the end of the relay", || {
        let log = within_a_minute(&lab, &["logs", "x"]);
        log.contains("x/relay: work").then_some(log)
    });
    assert!(!log.contains('\x1b'), "an escape sequence is in the log");
    assert!(
        !log.lines()
            .any(|line| line.starts_with("2026-11-23T00:00:00.000Z"))
    );
    assert!(log.contains("listening on"), "what the app said is gone");
    assert!(log.len() < 20_000, "{} bytes", log.len());
    // Another relay is there by itself.
    until("another relay", || lab.get("http://localhost:5000/").ok());
    within_a_minute(&lab, &["down", "x"]);
}

#[test]
fn a_sidecar_that_tells_nonsense_of_the_traffic_is_not_listened_to_and_that_is_said() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    up(&lab, "");
    let sent = as_part(
        &lab,
        "sidecar",
        "say([tried(s.send, bytes(31)) for s in unix(socket.SOCK_SEQPACKET) + unix(socket.SOCK_DGRAM)])",
    );
    assert_eq!(sent, json!(["OK"]));
    until("a word about it", || {
        let log = within_a_minute(&lab, &["logs", "x", "--part", "sidecar"]);
        log.contains("makes no sense").then_some(())
    });
    // A sidecar that is started again is heard again.
    lab.lrpns_ok(&["restart", "x", "sidecar"]);
    lab.get("http://localhost:5000/").unwrap();
    until("the traffic log", || {
        let log = within_a_minute(&lab, &["logs", "x", "--part", "traffic"]);
        log.lines().last()?.contains("closed by").then_some(())
    });
}

#[test]
fn a_sidecar_that_tells_more_than_anybody_reads_costs_no_memory_and_keeps_nobody_waiting() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    up(&lab, "");
    // Each message has totals, and as many of the shortest records as it has room for.
    let rounds = |count: u32| {
        as_part(
            &lab,
            "sidecar",
            &format!(
                r#"
record = struct.pack("<qBBQ", 1 << 60, 4, 0, 7)
told = struct.pack("<QQQQH", 1, 2, 3, 4, 0) + record * 2600
s = (unix(socket.SOCK_SEQPACKET) + unix(socket.SOCK_DGRAM))[0]
s.setblocking(True)
say([tried(s.send, told) for _ in range({count})].count("OK"))
"#
            ),
        )
    };
    assert_eq!(rounds(200), json!(200));
    let supervisor = lab.status("x")["supervisor"].as_i64().unwrap();
    let memory = || -> u64 {
        let status = lab.proc(supervisor, "status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.unwrap().trim().trim_end_matches(" kB");
        number.parse().unwrap()
    };
    let before = memory();
    assert_eq!(rounds(800), json!(800));
    within_a_minute(&lab, &["status", "x"]);
    let after = memory();
    assert!(after < before + 8 * 1024, "{before} KiB, then {after}");
    within_a_minute(&lab, &["down", "x"]);
}

#[test]
fn down_ends_a_stack_whose_app_hears_nothing_any_more() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    up(&lab, "");
    let app = init(&lab, "app");
    lab.ok(&["kill", "-STOP", &app]);
    // More than there is room for in its socket.
    let long = "x".repeat(100_000);
    let mut asking: Vec<_> = (0..8)
        .map(|_| {
            lab.command(&[lrpns(), "exec", "x", "--", "true", &long])
                .stderr(std::process::Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    // It can't be ended but by SIGKILL, whatever waits to be said to it.
    until("a full socket", || {
        let queued = lab.ok(&["ss", "-xn"]);
        queued
            .lines()
            .any(|line| {
                let mut words = line.split_whitespace().skip(2);
                let queued = words.next().and_then(|queued| queued.parse::<u32>().ok());
                queued.is_some_and(|bytes| bytes > 100_000)
            })
            .then_some(())
    });
    let down = lab.run(&["timeout", "60", lrpns(), "down", "x"]);
    for exec in &mut asking {
        exec.wait().unwrap();
    }
    assert!(down.status.success(), "{}", describe(&down));
}

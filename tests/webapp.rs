//! The built-in app, as a process, seen through curl and raw sockets. Each test has a network namespace of its own.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

struct Webapp {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Webapp {
    fn command(env: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lrpns"));
        command
            .arg0("/webapp")
            .env_clear()
            .envs(env.iter().copied());
        command
    }

    /// Started in a new network namespace on this thread, and listening.
    fn start(env: &[(&str, &str)]) -> Self {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status()
            .unwrap();
        assert!(up.success());
        let mut child = Self::command(env).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let mut webapp = Self { child, lines };
        assert!(webapp.line().starts_with("listening on [::]:"));
        webapp
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }

    fn stop(mut self, signal: Signal) -> (Option<i32>, Option<i32>) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
        let status = self.child.wait().unwrap();
        (status.code(), status.signal())
    }
}

impl Drop for Webapp {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn curl(args: &[&str]) -> String {
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "20"])
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn status_of(args: &[&str]) -> String {
    curl(&[&["-o", "/dev/null", "-w", "%{http_code}"], args].concat())
}

#[test]
fn it_greets_the_world_on_port_5000() {
    let mut webapp = Webapp::start(&[]);
    assert_eq!(curl(&["http://127.0.0.1:5000/"]), "Hello world!");
    assert_eq!(webapp.line(), "GET / 200\n");
    let head = curl(&["-I", "http://127.0.0.1:5000/?a=b"]).to_lowercase();
    assert!(head.starts_with("http/1.1 200 ok\r\n"), "{head}");
    assert!(head.contains("\r\ncontent-length: 12\r\n"), "{head}");
    assert!(
        head.contains("\r\ncontent-type: text/plain; charset=utf-8\r\n"),
        "{head}"
    );
    assert_eq!(webapp.line(), "HEAD / 200\n");
}

#[test]
fn provider_and_port_come_from_the_environment() {
    let _webapp = Webapp::start(&[("PROVIDER", "wörld & <b>"), ("PORT", "81")]);
    assert_eq!(curl(&["http://127.0.0.1:81/"]), "Hello wörld & <b>!");
    assert!(TcpStream::connect("127.0.0.1:5000").is_err());
}

#[test]
fn other_paths_are_404_and_other_methods_405() {
    let mut webapp = Webapp::start(&[]);
    assert_eq!(status_of(&["http://127.0.0.1:5000/nothing"]), "404");
    assert_eq!(webapp.line(), "GET /nothing 404\n");
    let answer = curl(&["-i", "-d", "x=y", "http://127.0.0.1:5000/"]).to_lowercase();
    assert!(answer.starts_with("http/1.1 405 "), "{answer}");
    assert!(answer.contains("\r\nallow: get, head\r\n"), "{answer}");
    assert_eq!(webapp.line(), "POST / 405\n");
}

#[test]
fn sigterm_and_sigint_end_it_at_once_and_well() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let webapp = Webapp::start(&[]);
        // an open connection is no reason to stay
        let _open = TcpStream::connect("127.0.0.1:5000").unwrap();
        assert_eq!(webapp.stop(signal), (Some(0), None));
    }
}

#[test]
fn a_port_that_is_none_or_in_use_is_an_error() {
    let _webapp = Webapp::start(&[]);
    let run = |port| -> Output { Webapp::command(&[("PORT", port)]).output().unwrap() };
    for bad in ["", "0", "65536", "http"] {
        let output = run(bad);
        assert_eq!(output.status.code(), Some(2));
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            told,
            format!("webapp: `{bad}` in PORT is no TCP port, such as 5000\n")
        );
    }
    let output = run("5000");
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(
        told.starts_with("webapp: listen on [::]:5000: Address already in use"),
        "{told}"
    );
}

#[test]
fn a_head_that_is_too_long_is_refused() {
    let _webapp = Webapp::start(&[]);
    let long = format!("X-Long: {}", "x".repeat(20_000));
    assert_eq!(status_of(&["-H", &long, "http://127.0.0.1:5000/"]), "431");
    assert_eq!(curl(&["http://127.0.0.1:5000/"]), "Hello world!");
}

#[test]
fn connections_past_the_limit_wait_and_are_served_then() {
    let webapp = Webapp::start(&[]);
    let connect = || TcpStream::connect("127.0.0.1:5000").unwrap();
    let mut silent: Vec<_> = (0..lrpns::webapp::MAX_CONNECTIONS)
        .map(|_| connect())
        .collect();
    let mut late = connect();
    late.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    // every silent client is accepted once the last of them is answered
    let last = silent.last_mut().unwrap();
    last.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .unwrap();
    assert!(last.read(&mut [0; 512]).unwrap() > 0);
    let sockets = std::fs::read_dir(format!("/proc/{}/fd", webapp.child.id()))
        .unwrap()
        .filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
        .filter(|to| to.to_string_lossy().starts_with("socket:"))
        .count();
    let threads = std::fs::read_dir(format!("/proc/{}/task", webapp.child.id()))
        .unwrap()
        .count();
    assert_eq!(threads, 1);
    // the listener, tokio's signal pair (with a duplicate), and the clients
    assert!(
        sockets <= lrpns::webapp::MAX_CONNECTIONS + 4,
        "{sockets} sockets"
    );
    drop(silent.pop());
    let mut answer = String::new();
    late.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("\r\n\r\nHello world!"), "{answer}");
}

#[test]
fn a_client_that_sends_no_request_is_dropped() {
    let _webapp = Webapp::start(&[]);
    let mut client = TcpStream::connect("127.0.0.1:5000").unwrap();
    client
        .write_all(b"GET / HTTP/1.1\r\nhost: a\r\nx: ")
        .unwrap();
    // returns when the app gives up on it; never, if it doesn't
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest);
    assert!(!rest.starts_with(b"HTTP/1.1 200"), "{rest:?}");
}

#[test]
fn it_runs_in_an_empty_root_without_proc() {
    // unshare(1) chroots after the binary has been opened by path, so the binary alone is in there
    let root = tempfile::tempdir().unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_lrpns"), root.path().join("webapp")).unwrap();
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let mut child = Command::new("chroot")
        .arg(root.path())
        .arg("/webapp")
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    // Its loopback is down here, and so it has no IPv6.
    assert_eq!(line, "listening on 0.0.0.0:5000\n");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

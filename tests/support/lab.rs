//! A machine of its own for one test: network, mount and pid namespaces, a fresh /run and /proc, and a client that is
//! joined to it by one veth pair.
//!
//! ```text
//! client netns, eth0 10.99.0.2  ==(veth)==  ext0 10.99.0.1, the lab
//! ```
//!
//! Nothing in a lab has a route to anywhere else. When it is dropped its pid namespace ends, and with it everything
//! that was started in it.
#![allow(dead_code)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// The lab's address on the client's network.
pub const LAB: &str = "10.99.0.1";
/// The client's.
pub const CLIENT: &str = "10.99.0.2";

/// What makes a lab, in its namespaces: it says "ready" and holds them until its standard input ends.
const SETUP: &str = r#"
set -e
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns /run/lab
ip link set lo up
ip netns add client
ip link add ext0 type veth peer name eth0 netns client
ip addr add 10.99.0.1/24 dev ext0
ip link set ext0 up
ip -n client link set lo up
ip -n client addr add 10.99.0.2/24 dev eth0
ip -n client link set eth0 up
ip -n client route add default via 10.99.0.1
echo ready
cat >/dev/null
"#;

/// One such machine.
pub struct Lab {
    holder: Child,
    /// The number of its first process, outside.
    pid: u32,
    /// A directory of its own, seen from both sides, removed with it.
    pub dir: tempfile::TempDir,
}

impl Lab {
    /// A lab in which the host doesn't forward: `via = "auto"` comes to the relay.
    pub fn new() -> Self {
        let mut holder = Command::new("unshare")
            .args([
                "--net",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "--propagation",
                "private",
            ])
            .args(["sh", "-c", SETUP])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start unshare");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("its output is a pipe"))
            .read_line(&mut line)
            .expect("hear from the lab");
        assert_eq!(line, "ready\n", "the lab could not be made");
        // `unshare --fork` has one child, and that is in the pid namespace.
        let children = format!("/proc/{0}/task/{0}/children", holder.id());
        let pid = std::fs::read_to_string(children)
            .expect("ask for the lab's first process")
            .trim()
            .parse()
            .expect("it has one child");
        let dir = tempfile::Builder::new()
            .prefix("lrpns-lab")
            .tempdir()
            .expect("make a directory");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), mode).expect("let everybody read it");
        Self { holder, pid, dir }
    }

    /// A lab in which the host forwards: `via = "auto"` comes to DNAT.
    pub fn forwarding() -> Self {
        let lab = Self::new();
        lab.ok(&["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
        lab
    }

    /// The lab's root directory, seen from outside: its own /proc and /run are below it.
    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.pid))
    }

    /// A command in the lab, with a clean environment but for PATH.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args([
                "--target",
                &self.pid.to_string(),
                "--net",
                "--mount",
                "--pid",
                "--",
            ])
            .args(args)
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    /// Runs a command in the lab to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args)
            .output()
            .expect("run a command in the lab")
    }

    /// Runs a command that must succeed; its standard output.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", describe(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a command in the client's network namespace.
    pub fn client(&self, args: &[&str]) -> Output {
        self.run(&[&["ip", "netns", "exec", "client"], args].concat())
    }

    /// Runs lrpns in the lab.
    pub fn lrpns(&self, args: &[&str]) -> Output {
        self.run(&[&[lrpns()], args].concat())
    }

    /// Runs lrpns, which must succeed; its standard output.
    pub fn lrpns_ok(&self, args: &[&str]) -> String {
        self.ok(&[&[lrpns()], args].concat())
    }

    /// `lrpns status --json` of a stack.
    pub fn status(&self, stack: &str) -> serde_json::Value {
        serde_json::from_str(&self.lrpns_ok(&["status", stack, "--json"]))
            .expect("status prints JSON")
    }

    /// The body that a URL answers with, from the lab itself; the error's number where curl has none.
    pub fn get(&self, url: &str) -> Result<String, i32> {
        body(&self.run(&["curl", "-sS", "--max-time", "5", url]))
    }

    /// The same from the client.
    pub fn client_get(&self, url: &str) -> Result<String, i32> {
        body(&self.client(&["curl", "-sS", "--max-time", "5", url]))
    }

    /// Writes a file into the lab's directory; its path.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).expect("write a file");
        path
    }

    /// A file of `/proc/PID` for a process of the lab.
    pub fn proc(&self, pid: i64, file: &str) -> String {
        self.ok(&["cat", &format!("/proc/{pid}/{file}")])
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // The end of its input ends the first process, and that its pid namespace.
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

/// The program under test.
pub fn lrpns() -> &'static str {
    env!("CARGO_BIN_EXE_lrpns")
}

/// Everything an output says, for a failed assertion.
pub fn describe(output: &Output) -> String {
    format!(
        "{}\nout: {}\nerr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn body(output: &Output) -> Result<String, i32> {
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(output.status.code().unwrap_or(-1))
    }
}

/// Whether a path is there.
pub fn exists(path: impl AsRef<Path>) -> bool {
    path.as_ref().exists()
}

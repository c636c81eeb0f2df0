//! A machine of its own for one test: network, mount and pid namespaces, a fresh /run and /proc, and a client that is
//! joined to it by one veth pair.
//!
//! ```text
//! client netns, eth0 10.99.0.2  ==(veth)==  ext0 10.99.0.1, the lab
//! ```
//!
//! The machine's own programs are read-only in it: whatever a test does as root, /usr is as it was. Nothing in a lab has a
//! route to anywhere else. When it is dropped its pid namespace ends, and with it everything
//! that was started in it.

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The lab's address on the client's network.
pub const LAB: &str = "10.99.0.1";
/// The client's.
pub const CLIENT: &str = "10.99.0.2";
/// The lab's IPv6 address there, and the client's (RFC 3849), where [`Lab::with_ipv6`] was called.
pub const LAB6: &str = "2001:db8::1";
pub const CLIENT6: &str = "2001:db8::2";

/// What makes a lab, in its namespaces: it says "ready" and holds them until its standard input ends.
const SETUP: &str = r#"
set -e
mount -o bind,ro /usr /usr
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=755 tmpfs /var/log
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

/// A program in a lab, until this is dropped.
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
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

    /// The same lab, whose network to the client has IPv6 too; one that forwards IPv4 forwards IPv6 as well.
    pub fn with_ipv6(self) -> Self {
        let (lab, client) = (format!("{LAB6}/64"), format!("{CLIENT6}/64"));
        self.ok(&["ip", "-6", "address", "add", &lab, "dev", "ext0", "nodad"]);
        for args in [
            &[
                "ip", "-6", "address", "add", &client, "dev", "eth0", "nodad",
            ][..],
            &["ip", "-6", "route", "add", "default", "via", LAB6],
        ] {
            let output = self.client(args);
            assert!(output.status.success(), "{}", describe(&output));
        }
        if self.ok(&["sysctl", "-n", "net.ipv4.ip_forward"]).trim() == "1" {
            self.ok(&["sysctl", "-q", "-w", "net.ipv6.conf.all.forwarding=1"]);
        }
        self
    }

    /// The lab's root directory, seen from outside: its own /proc and /run are below it.
    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.pid))
    }

    /// Starts a program that says `ready` when it is, and ends with what is returned.
    pub fn start(&self, args: &[&str]) -> Running {
        let mut child = self
            .command(args)
            .stdout(Stdio::piped())
            .spawn()
            .expect("start a program");
        let mut line = String::new();
        let said = child.stdout.take().expect("it is a pipe");
        BufReader::new(said)
            .read_line(&mut line)
            .expect("read what it says");
        assert_eq!(line, "ready\n", "{args:?}");
        Running(child)
    }

    /// A command in the lab, in its directory, with a clean environment but for PATH.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args([
                "--target",
                &self.pid.to_string(),
                "--net",
                "--mount",
                "--pid",
                // Else it is the root, in which a command is started.
                &format!("--wdns={}", self.dir.path().display()),
                "--",
            ])
            // Whoever joins a mount namespace is at its root.
            .arg("env")
            .arg("-C")
            .arg(self.dir.path())
            .args(args)
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
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

    /// A new directory in the lab's, to be a writable volume, which is its app's user's on the disk.
    pub fn volume(&self, name: &str) -> PathBuf {
        let dir = self.dir.path().join(name);
        std::fs::create_dir(&dir).expect("make a directory");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(&dir, mode).expect("open it to everybody");
        std::os::unix::fs::chown(&dir, Some(1000), Some(1000)).expect("give it away");
        dir
    }

    /// Gives the lab a copy of the host's /etc: what is changed there from now on is the lab's alone.
    pub fn own_etc(&self) {
        let copy = "mkdir /run/lab/etc; cp -a /etc/. /run/lab/etc; mount --bind /run/lab/etc /etc";
        self.ok(&["sh", "-ec", copy]);
    }

    /// A file of `/proc/PID` for a process of the lab.
    pub fn proc(&self, pid: i64, file: &str) -> String {
        self.ok(&["cat", &format!("/proc/{pid}/{file}")])
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let cgroups = self.cgroups();
        // The end of its input ends the first process, and that its pid namespace.
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
        cgroups.iter().for_each(|cgroup| remove_cgroup(cgroup));
    }
}

impl Lab {
    /// The cgroups of the stacks that have not been taken down: the one thing that a lab shares with the machine.
    fn cgroups(&self) -> Vec<PathBuf> {
        let state = format!("/proc/{}/root/run/lrpns", self.pid);
        let stacks = std::fs::read_dir(state).into_iter().flatten().flatten();
        stacks
            .filter_map(|stack| {
                let plan = std::fs::read(stack.path().join("plan.json")).ok()?;
                let plan: serde_json::Value = serde_json::from_slice(&plan).ok()?;
                Some(plan["cgroup"]["path"].as_str()?.into())
            })
            .collect()
    }
}

/// Removes a stack's cgroup, whose processes have ended.
fn remove_cgroup(stack: &Path) {
    let parts = std::fs::read_dir(stack).into_iter().flatten().flatten();
    for part in parts.filter(|entry| entry.path().is_dir()) {
        let _ = std::fs::remove_dir(part.path());
    }
    let _ = std::fs::remove_dir(stack);
    // With the last one, of whichever lab.
    let _ = stack.parent().map(std::fs::remove_dir);
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

/// How long a test waits for something that comes by itself before it fails; no test takes this long.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks again and again until there is an answer.
///
/// # Panics
/// If `what` has not come after half a minute.
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}: not seen");
    }
}

/// Everything that a stack could leave on a machine, one section each, but for what is to be read of it afterwards.
const TRACES: &str = r#"
echo @processes
for p in /proc/[0-9]*; do
    p=${p#/proc/}
    [ "$p" = $$ ] || { read -r name </proc/$p/comm && echo "$p $name"; } 2>/dev/null
done
echo @links;        ip -j link
echo @addresses;    ip -4 -j addr
echo @routes;       ip -4 -o route show table all; ip -6 -o route show table all | grep -v 'dev ext0'
echo @rules;        ip -j rule
echo @neighbours;   ip -j neigh show nud permanent
echo @tables;       nft -j list ruleset
echo @mounts;       cat /proc/1/mountinfo
echo @namespaces;   lsns -n -o NS,TYPE
echo @run;          find /run \( -name .ended -o -name .logs \) -prune -o -printf '%p %y %m\n' | grep -v '/lrpns d 700$' | sort
echo @settings;     cd /proc/sys/net/ipv4 && grep -s . ip_forward ip_nonlocal_bind ip_unprivileged_port_start conf/*/*
echo @listening;    cat /proc/net/tcp /proc/net/udp | awk '$4 == "0A" || $4 == "07" { print $2 }'
"#;

/// What [`Lab::traces`] saw, by section.
pub type Traces = std::collections::BTreeMap<String, String>;

/// The lines that only one of two has.
pub fn difference(before: &Traces, now: &Traces) -> String {
    let lines = |traces: &Traces| -> Vec<String> {
        traces
            .iter()
            .flat_map(|(name, text)| text.lines().map(move |line| format!(" {name}: {line}\n")))
            .collect()
    };
    let (before, now) = (lines(before), lines(now));
    let only = |these: &[String], those: &[String], sign: &str| -> String {
        let kept = these.iter().filter(|line| !those.contains(line));
        kept.map(|line| format!("{sign}{line}")).collect()
    };
    format!("\n{}{}", only(&before, &now, "-"), only(&now, &before, "+"))
}

/// Asserts that nothing has changed.
#[track_caller]
pub fn assert_unchanged(before: &Traces, now: &Traces) {
    assert!(before == now, "changed: {}", difference(before, now));
}

/// What makes up the state of a machine, and ways to compare it.
impl Lab {
    /// Runs lrpns with variables in its environment.
    pub fn lrpns_with(&self, env: &[(&str, &str)], args: &[&str]) -> Output {
        self.command(&[&[lrpns()], args].concat())
            .envs(env.iter().copied())
            .output()
            .expect("run lrpns in the lab")
    }

    /// Runs lrpns, which must not succeed: its exit code and what it said on standard error.
    pub fn lrpns_err(&self, args: &[&str]) -> (i32, String) {
        let output = self.lrpns(args);
        assert!(!output.status.success(), "{args:?}: {}", describe(&output));
        (
            output.status.code().unwrap_or(-1),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    /// Starts a command in the lab; its three descriptors are pipes.
    pub fn spawn(&self, args: &[&str]) -> Child {
        self.command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start a command in the lab")
    }

    /// Starts lrpns in the lab; its three descriptors are pipes.
    pub fn spawn_lrpns(&self, args: &[&str]) -> Child {
        self.spawn(&[&[lrpns()], args].concat())
    }

    /// Sends a signal, by its name, to a process of the lab.
    pub fn kill(&self, signal: &str, pid: &serde_json::Value) {
        let pid = pid.as_i64().expect("a process number").to_string();
        self.ok(&["kill", "-s", signal, &pid]);
    }

    /// Everything that a stack could leave here.
    pub fn traces(&self) -> Traces {
        // The lab's own link comes up by itself, and its first process starts what it waits for.
        let settled = "ip link show ext0 | grep -q 'state UP' && pgrep -x cat >/dev/null";
        until("the lab is there", || {
            let seen = self.run(&["sh", "-c", settled]);
            seen.status.success().then_some(())
        });
        let mut traces = Traces::new();
        let mut section = String::new();
        for line in self.ok(&["sh", "-c", TRACES]).lines() {
            match line.strip_prefix('@') {
                Some(name) => section = name.to_owned(),
                None => *traces.entry(section.clone()).or_default() += &format!("{line}\n"),
            }
        }
        traces
    }

    /// Waits until the lab is as it was: the kernel takes the links of a namespace away on its own time.
    ///
    /// # Panics
    /// If it doesn't become so.
    pub fn assert_as(&self, before: &Traces) {
        let begun = Instant::now();
        loop {
            let now = self.traces();
            if now == *before {
                return;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "not as it was: {}",
                difference(before, &now)
            );
        }
    }

    /// A socket call made in the lab's network namespace; the socket stays there.
    fn inside<T: Send>(&self, call: impl FnOnce() -> T + Send) -> T {
        let netns = std::fs::File::open(format!("/proc/{}/ns/net", self.pid))
            .expect("open the lab's network namespace");
        // A thread that is thrown away.
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                #[allow(clippy::disallowed_methods)]
                nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET)
                    .expect("enter the lab's network namespace");
                call()
            });
            thread.join().expect("the call doesn't panic")
        })
    }

    /// Connects from the lab itself.
    pub fn connect(&self, address: &str) -> std::io::Result<TcpStream> {
        self.inside(|| TcpStream::connect(address))
    }

    /// Listens in the lab.
    pub fn listen(&self, address: &str) -> TcpListener {
        self.inside(|| TcpListener::bind(address))
            .expect("listen in the lab")
    }
}

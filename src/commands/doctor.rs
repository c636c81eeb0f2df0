//! `lrpns doctor`: whether this machine can do what lrpns needs, found out by doing it.
//!
//! A scratch stack comes up, answers a request and goes down again, so whatever it needs is there; the other findings name
//! what stacks of other kinds need, and what of this machine would stand in their way. Nothing is changed.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags};
use serde::Serialize;

use super::print;
use crate::accounts::subordinate;
use crate::commands::failure::Failure;
use crate::config::{Limits, Processors};
use crate::confine::landlock;
use crate::firewall::{self, ForeignChain, Forwarding, Hook};
use crate::host::Host;
use crate::names::StackName;
use crate::plan::{Mode, RANGE};
use crate::stack::rules;

/// How long the scratch stack may take for each step.
const STEP: Duration = Duration::from_secs(60);
/// How much of what a step says is read.
const SAID: u64 = 64 << 10;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// As it should be.
    Ok,
    /// Something that not every stack needs.
    Note,
    /// No stack, or none of an important kind, works.
    Problem,
}

/// What a check has found.
#[derive(Debug, Serialize)]
struct Finding {
    /// Stable.
    id: &'static str,
    status: Status,
    /// What was found.
    what: String,
    /// Why it matters.
    why: Option<String>,
    /// What to do about it.
    remedy: Option<String>,
    /// What the remedy costs.
    price: Option<String>,
}

impl Finding {
    fn ok(id: &'static str, what: impl Into<String>) -> Self {
        Self {
            id,
            status: Status::Ok,
            what: what.into(),
            why: None,
            remedy: None,
            price: None,
        }
    }

    fn note(id: &'static str, what: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            status: Status::Note,
            why: Some(why.into()),
            ..Self::ok(id, what)
        }
    }

    fn problem(id: &'static str, what: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            status: Status::Problem,
            ..Self::note(id, what, why)
        }
    }

    fn remedy(mut self, remedy: impl Into<String>, price: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self.price = Some(price.into());
        self
    }
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Report {
    version: u32,
    mode: Mode,
    /// Whether nothing is a problem.
    ok: bool,
    findings: Vec<Finding>,
}

/// Looks, tries, and reports.
pub(super) fn doctor(json: bool) -> Result<ExitCode, Failure> {
    let name = scratch_name()?;
    let host = Host::look(&name)?;
    let mut findings = vec![kernel(), scratch(&name)];
    findings.extend(user_namespaces(&host));
    findings.push(landlock());
    findings.extend(seccomp());
    findings.push(limits(&host, &name));
    findings.push(proc());
    findings.push(forwarding(
        "forwarding",
        &host.forwarding,
        "net.ipv4.ip_forward",
        &host,
    ));
    findings.push(forwarding(
        "forwarding6",
        &host.forwarding6,
        "net.ipv6.conf.all.forwarding",
        &host,
    ));
    findings.extend(firewalls(&host));
    findings.push(ports(&host));
    findings.extend(conntrack(&host));
    findings.push(id_ranges(&host));
    findings.push(nft());
    findings.extend(container());
    let report = Report {
        version: 1,
        mode: host.mode,
        ok: findings.iter().all(|it| it.status != Status::Problem),
        findings,
    };
    if json {
        let text = serde_json::to_string_pretty(&report);
        print(&format!("{}\n", text.map_err(Failure::unable)?))?;
    } else {
        print(&human(&report))?;
    }
    Ok(ExitCode::from(u8::from(!report.ok)))
}

fn human(report: &Report) -> String {
    use anstyle::{AnsiColor, Style};
    let mut text = String::new();
    for it in &report.findings {
        let (word, style) = match it.status {
            Status::Ok => ("ok", AnsiColor::Green.on_default()),
            Status::Note => ("note", AnsiColor::Yellow.on_default()),
            Status::Problem => ("problem", AnsiColor::Red.on_default().bold()),
        };
        text += &format!("{style}{word:<8}{style:#} {:<16} {}\n", it.id, it.what);
        let dim = Style::new().dimmed();
        for (label, line) in [
            ("why", &it.why),
            ("remedy", &it.remedy),
            ("price", &it.price),
        ] {
            if let Some(line) = line {
                text += &format!("{:25} {dim}{label}:{dim:#} {line}\n", "");
            }
        }
    }
    let count = |status| {
        report
            .findings
            .iter()
            .filter(|it| it.status == status)
            .count()
    };
    let (problems, notes) = (count(Status::Problem), count(Status::Note));
    let who = report.mode.by();
    text + &match problems {
        0 => format!("stacks run here {who}; {notes} notes\n"),
        _ => format!("{problems} problems, {notes} notes ({who})\n"),
    }
}

fn scratch_name() -> Result<StackName, Failure> {
    let mut random = [0; 4];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Failure::unable(format!("ask for a random number: {e}")))?;
    let name = format!("doctor-{:08x}", u32::from_ne_bytes(random));
    StackName::new(&name).map_err(Failure::unable)
}

fn kernel() -> Finding {
    let system = rustix::system::uname();
    let release = system.release().to_string_lossy().into_owned();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (5, 15) {
        return Finding::ok("kernel", format!("Linux {release}"));
    }
    Finding::problem(
        "kernel",
        format!("Linux {release}"),
        "lrpns makes system calls that Linux has since 5.15",
    )
    .remedy("a newer kernel", "a reboot")
}

/// Brings a stack up, asks it, takes it down.
fn scratch(name: &StackName) -> Finding {
    match try_stack(name) {
        Ok((up, down)) => Finding::ok(
            "stack",
            format!(
                "a scratch stack came up, answered and went: namespaces, links, rules, confinement ({} ms up, {} ms down)",
                up.as_millis(),
                down.as_millis()
            ),
        ),
        Err(e) => {
            let mut lines = e.lines().map(|line| line.trim_start_matches("lrpns: "));
            let what = lines.next().unwrap_or("it said nothing").to_owned();
            let hint = lines.find_map(|line| line.strip_prefix("hint: ").map(str::to_owned));
            Finding {
                remedy: hint,
                ..Finding::problem(
                    "stack",
                    format!("a scratch stack does not work: {what}"),
                    "every stack needs what this one needs",
                )
            }
        }
    }
}

fn try_stack(name: &StackName) -> Result<(Duration, Duration), String> {
    let body = "name = \"NAME\"\n[app]\nrootfs = \"builtin:webapp\"\ncommand = [\"/webapp\"]\n\
                env = { PROVIDER = \"doctor\", PORT = \"5000\" }\npublish = [\"127.0.0.1:HOST:5000\"]\n";
    // A free port: nobody else gets it at once, since the kernel hands out others first.
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|socket| socket.local_addr())
        .map_err(|e| format!("find a free port of 127.0.0.1: {e}"))?;
    let file = ScratchFile::write(
        name,
        &body
            .replace("NAME", &name.to_string())
            .replace("HOST", &free.port().to_string()),
    )?;
    let began = Instant::now();
    let up = lrpns(&[
        "up".as_ref(),
        "-d".as_ref(),
        "-f".as_ref(),
        file.0.as_os_str(),
    ]);
    let answered = up.and_then(|()| ask(free));
    let (up, began) = (began.elapsed(), Instant::now());
    let down = lrpns(&["down".as_ref(), name.to_string().as_ref()]);
    answered.and(down).map(|()| (up, began.elapsed()))
}

/// A configuration on disk, for as long as it is needed.
struct ScratchFile(PathBuf);

impl ScratchFile {
    fn write(name: &StackName, text: &str) -> Result<Self, String> {
        let path = std::env::temp_dir().join(format!("lrpns-{name}.toml"));
        let unable = |e: std::io::Error| format!("write {}: {e}", path.display());
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(unable)?;
        let scratch = Self(path.clone());
        file.write_all(text.as_bytes()).map_err(unable)?;
        Ok(scratch)
    }
}

impl Drop for ScratchFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Runs a command of ours; what it said if it didn't work.
fn lrpns(args: &[&std::ffi::OsStr]) -> Result<(), String> {
    let verb = args[0].to_string_lossy().into_owned();
    let unable = |e: &dyn std::fmt::Display| format!("start lrpns {verb}: {e}");
    let said = rustix::fs::memfd_create("said", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|e| unable(&e))?;
    let mut said = File::from(said);
    let stderr = said.try_clone().map_err(|e| unable(&e))?;
    let mut child = Command::new("/proc/self/exe")
        .args(args)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .map_err(|e| unable(&e))?;
    let pidfd = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
        .map_err(|e| unable(&e))?;
    let limit = rustix::event::Timespec::try_from(STEP).map_err(|e| unable(&e))?;
    let mut ready = [PollFd::new(&pidfd, PollFlags::IN)];
    let ended = rustix::io::retry_on_intr(|| rustix::event::poll(&mut ready, Some(&limit)));
    if ended.map_err(|e| unable(&e))? == 0 {
        // Its supervisor dies with it; what is left, `lrpns gc` removes.
        let _ = child.kill();
        let _ = child.wait();
        return Err(format!(
            "lrpns {verb} did not end within {} s",
            STEP.as_secs()
        ));
    }
    if child.wait().map_err(|e| unable(&e))?.success() {
        return Ok(());
    }
    let mut text = String::new();
    let _ = said.rewind();
    let _ = said.take(SAID).read_to_string(&mut text);
    Err(text)
}

/// One request.
fn ask(address: SocketAddr) -> Result<(), String> {
    let unable = |e: std::io::Error| format!("ask it at {address}: {e}");
    let mut stream = TcpStream::connect_timeout(&address, STEP).map_err(unable)?;
    stream.set_read_timeout(Some(STEP)).map_err(unable)?;
    stream
        .write_all(b"GET / HTTP/1.0\r\n\r\n")
        .map_err(unable)?;
    let mut answer = String::new();
    stream
        .take(SAID)
        .read_to_string(&mut answer)
        .map_err(unable)?;
    match answer.contains("Hello doctor!") {
        true => Ok(()),
        false => Err(format!("asked at {address}, it answered {answer:?}")),
    }
}

/// A file of /proc that holds a number.
fn number(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The settings that keep user namespaces from an ordinary user, or from everybody.
fn user_namespaces(host: &Host) -> Vec<Finding> {
    let mut findings = vec![];
    let mut closed = |what: &str, remedy: &str, price: &str| {
        let why = match host.mode {
            Mode::Root => "an ordinary user of this machine can run no stack",
            Mode::Rootless => "without root every stack begins with a user namespace",
        };
        let finding = match host.mode {
            Mode::Root => Finding::note("user-namespaces", what, why),
            Mode::Rootless => Finding::problem("user-namespaces", what, why),
        };
        findings.push(finding.remedy(remedy, price));
    };
    if number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        closed(
            "AppArmor restricts unprivileged user namespaces (Ubuntu 24.04 and newer)",
            "install the AppArmor profile for lrpns: scripts/README.md",
            "lrpns may make user namespaces, and so may whoever can run it",
        );
    }
    if number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        closed(
            "kernel.unprivileged_userns_clone is 0",
            "sysctl -w kernel.unprivileged_userns_clone=1",
            "every user may make user namespaces, which opens more of the kernel to attacks",
        );
    }
    if number("/proc/sys/user/max_user_namespaces") == Some(0) {
        findings.push(
            Finding::problem(
                "user-namespaces",
                "user.max_user_namespaces is 0",
                "every part has a user namespace of its own",
            )
            .remedy(
                "sysctl -w user.max_user_namespaces=10000",
                "users may make user namespaces, which opens more of the kernel to attacks",
            ),
        );
    }
    findings
}

fn landlock() -> Finding {
    let support = landlock::Support::of_this_kernel();
    match support.lack() {
        None => Finding::ok("landlock", "files, TCP, abstract sockets and signals"),
        Some(lack) => Finding::note(
            "landlock",
            lack,
            "namespaces and rules hold without it; it is one more wall around an app",
        )
        .remedy("Linux 6.12 or newer, with landlock in lsm=", "a reboot"),
    }
}

fn seccomp() -> Option<Finding> {
    let actions = std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail");
    let known = actions.is_ok_and(|actions| actions.split_whitespace().any(|it| it == "errno"));
    (!known).then(|| {
        Finding::problem(
            "seccomp",
            "this kernel has no seccomp filters",
            "every part is confined by one",
        )
        .remedy("a kernel with CONFIG_SECCOMP_FILTER", "a reboot")
    })
}

fn limits(host: &Host, name: &StackName) -> Finding {
    let all = Limits {
        memory: Some(1),
        pids: Some(1),
        cpu: Some(Processors::ONE),
    };
    match host.cgroups.of(name.as_str(), &host.run).complaint([&all]) {
        None => Finding::ok("limits", "memory, pids and cpu are held by cgroup version 2"),
        Some(complaint) => Finding::note(
            "limits",
            complaint,
            "an app could use up what the others and the host need",
        )
        .remedy(
            match host.mode {
                Mode::Root => "cgroup version 2 with the controllers memory, pids and cpu: systemd.unified_cgroup_hierarchy=1",
                Mode::Rootless => "systemd-run --user --scope -p Delegate=yes lrpns up",
            },
            match host.mode {
                Mode::Root => "a reboot",
                Mode::Rootless => "none",
            },
        ),
    }
}

/// Whether something is mounted over parts of /proc: then the kernel lets nobody mount one in a user namespace
/// (`mount_too_revealing`, fs/namespace.c).
fn proc() -> Finding {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let masked: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| point.starts_with("/proc/") && *point != "/proc/sys/fs/binfmt_misc")
        .collect();
    match masked.first() {
        None => Finding::ok("proc", "apps have a /proc of their own"),
        Some(first) => Finding::note(
            "proc",
            format!("{first} is mounted over, with {} more", masked.len() - 1),
            "the kernel then gives no app a /proc of its own; programs that look at themselves there fail",
        )
        .remedy(
            "start the container that this is with its /proc unmasked",
            "what the masks hid is seen in that container",
        ),
    }
}

fn forwarding(id: &'static str, state: &Forwarding, sysctl: &str, host: &Host) -> Finding {
    let Forwarding::Closed { why } = state else {
        return Finding::ok(
            id,
            "the host forwards, and nothing of another owner drops it",
        );
    };
    let finding = Finding::note(
        id,
        why.clone(),
        "ports are published by the relay, which needs no forwarding; via = \"dnat\" is refused",
    );
    match host.mode {
        Mode::Root if why.starts_with(sysctl) => finding.remedy(
            format!("sysctl -w {sysctl}=1"),
            "the host forwards packets of others, too, unless its firewall keeps it from that",
        ),
        _ => finding,
    }
}

/// Who made a table, as far as its names say, and the line that opens a port there.
fn owner(chain: &ForeignChain) -> (&'static str, String) {
    let ForeignChain {
        family,
        table,
        name,
        ..
    } = chain;
    if table == "firewalld" {
        let line = "firewall-cmd --permanent --add-port=PORT/tcp && firewall-cmd --reload";
        return ("firewalld", line.to_owned());
    }
    if matches!(*family, "ip" | "ip6") && table == "filter" {
        if chain.calls("ufw") {
            return ("ufw", "ufw allow PORT/tcp".to_owned());
        }
        let program = match *family {
            "ip" => "iptables",
            _ => "ip6tables",
        };
        let line = format!("{program} -I {name} -p tcp --dport PORT -j ACCEPT");
        let owner = match chain.calls("LIBVIRT") {
            true => "libvirt",
            false => program,
        };
        return (owner, line);
    }
    let line = format!("nft insert rule {family} {table} {name} tcp dport PORT accept");
    ("nftables", line)
}

/// Chains of others that may drop what comes to the relay's listening sockets. Those that may drop what the host forwards
/// are the reason why there is no DNAT ([`forwarding`]).
fn firewalls(host: &Host) -> Vec<Finding> {
    if host.mode == Mode::Rootless {
        return vec![Finding::note(
            "firewall",
            "only root can read the host's rules",
            "a rule of the host's may drop what comes to a published port; sudo lrpns doctor names it",
        )];
    }
    let chains = match firewall::foreign_chains(Hook::Input) {
        Ok(chains) => chains,
        Err(e) => {
            return vec![Finding::note(
                "firewall",
                crate::commands::failure::chain(&e),
                "whether rules of others drop what is published is not known",
            )];
        }
    };
    let mut findings: Vec<Finding> = chains
        .iter()
        .filter(|chain| chain.drops || chain.rules > 0)
        .map(|chain| {
            let (owner, line) = owner(chain);
            let ForeignChain {
                family,
                table,
                name,
                rules,
                ..
            } = chain;
            let place = format!("{owner}: table {family} {table}, chain {name}");
            let (what, why) = match chain.drops {
                true => (
                    format!("{place} has policy drop"),
                    "it drops connections to a published port, unless one of its rules accepts them",
                ),
                false => (
                    format!("{place} has {rules} rules"),
                    "one of them may drop connections to a published port: lrpns trace CLIENT PORT names it",
                ),
            };
            Finding::note("firewall", what, why).remedy(
                line,
                "the port is open to every client that reaches the host; allow and rate still hold",
            )
        })
        .collect();
    if findings.is_empty() {
        findings.push(Finding::ok(
            "firewall",
            "no rules of others stand before published ports",
        ));
    }
    findings
}

fn ports(host: &Host) -> Finding {
    let first = host.first_user_port;
    match host.mode {
        Mode::Root => Finding::ok("ports", "root publishes any port that is free"),
        Mode::Rootless if first <= 80 => Finding::ok("ports", format!("ports from {first} up")),
        Mode::Rootless => Finding::note(
            "ports",
            format!("net.ipv4.ip_unprivileged_port_start is {first}"),
            "without root no port below it can be published",
        )
        .remedy(
            "sysctl -w net.ipv4.ip_unprivileged_port_start=80",
            "every user may listen on ports from 80 up",
        ),
    }
}

fn conntrack(host: &Host) -> Option<Finding> {
    let most = number("/proc/sys/net/netfilter/nf_conntrack_max")?;
    let used = number("/proc/sys/net/netfilter/nf_conntrack_count")?;
    let text = format!("{used} of {most} entries of the host's table are taken");
    if host.mode == Mode::Rootless || most == 0 || used * 5 < most * 4 {
        return Some(Finding::ok("conntrack", text));
    }
    Some(
        Finding::problem(
            "conntrack",
            text,
            "when it is full the host takes no connection that is tracked",
        )
        .remedy(
            format!("sysctl -w net.netfilter.nf_conntrack_max={}", most * 2),
            "about 300 bytes of kernel memory an entry",
        ),
    )
}

fn id_ranges(host: &Host) -> Finding {
    if host.mode == Mode::Root {
        return Finding::ok("ids", "root maps ids as it needs them");
    }
    match subordinate::of(host.uid, RANGE - 1) {
        Ok(_) => Finding::ok("ids", "a range of ids in /etc/subuid and /etc/subgid, and newuidmap"),
        Err((why, remedy)) => Finding::note(
            "ids",
            why,
            "a server that starts as root and drops to a user of its own needs a range; one id is enough for others",
        )
        .remedy(remedy, "none"),
    }
}

fn nft() -> Finding {
    match rules::nft() {
        Some(path) => Finding::ok("nft", format!("{}", path.display())),
        None => Finding::note(
            "nft",
            "the program nft is not installed",
            "only rules of your own need it: sidecar.rules",
        )
        .remedy("apt install nftables", "none"),
    }
}

/// Whether this is a container, where much is another's to decide.
fn container() -> Option<Finding> {
    let named = std::fs::read_to_string("/run/systemd/container").ok();
    let docker = Path::new("/.dockerenv")
        .exists()
        .then(|| "docker".to_owned());
    let podman = Path::new("/run/.containerenv")
        .exists()
        .then(|| "podman".to_owned());
    let kind = named.map(|it| it.trim().to_owned()).or(docker).or(podman)?;
    Some(Finding::note(
        "container",
        format!("this machine is a container ({kind})"),
        "its host decides about cgroups, /proc and sysctls; what it forbids is named above",
    ))
}

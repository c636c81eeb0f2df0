//! Other eyes to look at a stack with: `ip -j`, `nft -j`, `/proc`, and Python, inside the app and beside it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::lab::{Lab, describe};
use super::{program, skip};

/// Python inside an app with `rootfs = "host"`, and in a lab.
pub const PYTHON: &str = "/usr/bin/python3";

/// How long the kernel may take for what it does at once. Only a test that fails waits for it.
const AT_ONCE: Duration = Duration::from_secs(20);

/// Whether this machine has what the end-to-end tests look with; if not, the test is skipped.
pub fn machine() -> bool {
    machine_with(&[])
}

/// As [`machine`], with some programs more.
pub fn machine_with(more: &[&str]) -> bool {
    if !nix::unistd::geteuid().is_root() {
        skip(
            "netns",
            "only root can make network and mount namespaces for a lab",
        );
        return false;
    }
    for name in ["ip", "bridge", "nft", "curl", "python3"]
        .iter()
        .chain(more)
    {
        if program(name).is_none() {
            let need = if *name == "bridge" { "ip" } else { name };
            skip(need, &format!("there is no {name}"));
            return false;
        }
    }
    true
}

/// What an app meets that connects by TCP to where it may not: Landlock's EACCES before there is a packet, or, where the
/// kernel's Landlock does not know TCP (before Linux 6.7), `otherwise`, by the route or the rules.
pub fn refused_tcp(otherwise: &'static str) -> &'static str {
    if landlock_knows_tcp() {
        "EACCES"
    } else {
        otherwise
    }
}

/// Whether Landlock scopes signals, as from its sixth version on.
pub fn landlock_knows_signals() -> bool {
    landlock_version() >= 6
}

/// Whether Landlock is there in its fourth version at least.
pub fn landlock_knows_tcp() -> bool {
    landlock_version() >= 4
}

/// The version of Landlock's ABI (landlock_create_ruleset(2)); negative where there is none.
fn landlock_version() -> i32 {
    let ask = "import ctypes; print(ctypes.CDLL(None).syscall(444, None, 0, 1))";
    let output = std::process::Command::new(PYTHON)
        .args(["-c", ask])
        .output()
        .unwrap();
    let version = String::from_utf8(output.stdout).unwrap();
    version.trim().parse().unwrap()
}

/// Something nobody can guess, so that it can only have come from where it was put.
pub fn token() -> String {
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap();
    uuid.trim().to_owned()
}

/// A text as a string of TOML, in which `$` begins a variable.
pub fn toml(text: &str) -> String {
    serde_json::to_string(text).unwrap().replace('$', "$$")
}

/// A list of them.
pub fn toml_list(texts: &[&str]) -> String {
    let texts: Vec<_> = texts.iter().map(|text| toml(text)).collect();
    format!("[{}]", texts.join(", "))
}

/// A server that tells whom it sees and a token, on ports 5000 and 6000.
pub const TELLING: &str = r#"
import http.server, json, os, threading
class Tell(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"peer": self.client_address[0], "port": self.server.server_port,
                           "token": os.environ.get("TOKEN", "")}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
def serve(port):
    return http.server.ThreadingHTTPServer(("0.0.0.0", port), Tell)
threading.Thread(target=serve(6000).serve_forever, daemon=True).start()
serve(5000).serve_forever()
"#;

/// The file of a stack with one app that is [`TELLING`], published as `publish`, with `more` lines for the app.
pub fn telling(stack: &str, token: &str, publish: &str, more: &str) -> String {
    format!(
        "name = \"{stack}\"\n[network]\nsubnet = \"172.18.0.0/24\"\n\
         [sidecar]\naddress = \"172.18.0.33\"\n\
         [app]\naddress = \"172.18.0.23\"\nrootfs = \"host\"\ncommand = {}\nenv = {{ TOKEN = \"{token}\" }}\n\
         publish = [\"{publish}\"]\nlisten = [6000]\n{more}\n",
        toml_list(&[PYTHON, "-c", TELLING])
    )
}

/// The same file with another program of Python for the app.
pub fn with_program(file: &str, code: &str) -> String {
    let command = format!("command = {}", toml_list(&[PYTHON, "-c", code]));
    let lines = file.lines().map(|line| match line {
        line if line.starts_with("command = ") => command.as_str(),
        line => line,
    });
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// What a [`TELLING`] server answered.
pub fn told(answer: Result<String, i32>) -> Value {
    serde_json::from_str(&answer.expect("an answer")).unwrap()
}

/// Brings up what `file` says, from the lab's directory; what `up` said.
pub fn up(lab: &Lab, file: &str) -> String {
    let path = lab.write(&format!("{}.toml", token()), file);
    let output = lab.lrpns(&["up", "-d", "-f", path.to_str().unwrap()]);
    assert!(output.status.success(), "{}", describe(&output));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Nginx as Debian has it, with the host's programs, telling in its access log whom it serves.
pub const NGINX: &str = r#"
daemon off;
worker_processes 1;
pid /tmp/nginx.pid;
error_log stderr;
events {}
http {
    client_body_temp_path /tmp/body;
    proxy_temp_path /tmp/proxy;
    fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi;
    scgi_temp_path /tmp/scgi;
    log_format short "$remote_addr $status";
    access_log /dev/stdout short;
    server {
        listen 5000;
        listen [::]:5000;
        return 200 "from nginx\n";
    }
}
"#;

/// A part of a status.
pub fn part<'a>(status: &'a Value, name: &str) -> &'a Value {
    let parts = status["parts"].as_array().unwrap();
    parts
        .iter()
        .find(|part| part["name"] == name)
        .unwrap_or_else(|| panic!("no part {name} in {status}"))
}

/// The number, in the lab, of the process that does a part's work.
pub fn pid(status: &Value, name: &str) -> i64 {
    part(status, name)["pid"].as_i64().unwrap()
}

/// The number, in the lab, of a part's pid 1.
pub fn init(status: &Value, name: &str) -> i64 {
    part(status, name)["init"].as_i64().unwrap()
}

/// A string of a plan, such as `/uplink/host_link`.
pub fn planned<'a>(status: &'a Value, pointer: &str) -> &'a str {
    status["plan"]
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_else(|| panic!("no {pointer} in {status}"))
}

/// Runs a command of the lab's in the network namespace of one of its processes, as root there; it must succeed.
pub fn beside(lab: &Lab, pid: i64, args: &[&str]) -> String {
    lab.ok(&[
        &["nsenter", "--net", "--target", &pid.to_string(), "--"],
        args,
    ]
    .concat())
}

/// What a command prints in the network namespace of `pid`, as JSON; `None` is the lab's own.
pub fn json(lab: &Lab, pid: Option<i64>, args: &[&str]) -> Value {
    let ask = || match pid {
        Some(pid) => beside(lab, pid, args),
        None => lab.ok(args),
    };
    let parse = |text: &str| match text.trim() {
        // `ip -j` prints nothing at all for an empty list on some versions.
        "" => Ok(Value::Array(vec![])),
        text => serde_json::from_str(text),
    };
    let text = ask();
    parse(&text).unwrap_or_else(|e| panic!("{args:?}: {e}: {text}"))
}

/// The packets that a link has received, in the network namespace of `pid`.
pub fn received(lab: &Lab, pid: Option<i64>, link: &str) -> u64 {
    let links = json(lab, pid, &["ip", "-j", "-s", "link", "show", "dev", link]);
    links[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
}

/// Where the routes of `family`, such as `-4`, lead to in the network namespace of `pid`, sorted.
pub fn routes(lab: &Lab, pid: i64, family: &str) -> Vec<String> {
    let routes = json(lab, Some(pid), &["ip", family, "-j", "route"]);
    let routes = routes.as_array().unwrap().iter();
    let mut routes: Vec<_> = routes
        .map(|route| route["dst"].as_str().unwrap().to_owned())
        .filter(|to| to != "::1")
        .collect();
    routes.sort();
    routes
}

/// As the owner of an app's network namespace: a route to everywhere, by the sidecar of a [`telling`] stack.
pub fn route_everywhere(lab: &Lab, app: i64) {
    let add = [
        "ip",
        "route",
        "add",
        "default",
        "via",
        "172.18.0.33",
        "dev",
        "eth0",
        "onlink",
    ];
    beside(lab, app, &add);
}

/// What of a report of `lrpns audit --json` is wrong or not known.
pub fn findings(report: &[u8]) -> Vec<String> {
    let report: Value = serde_json::from_slice(report).unwrap();
    let groups = report["groups"].as_array().unwrap().iter();
    groups
        .flat_map(|group| group["probes"].as_array().unwrap())
        .filter(|probe| ["fail", "unknown"].contains(&probe["result"].as_str().unwrap()))
        .map(|probe| format!("{}: {probe}", probe["id"].as_str().unwrap()))
        .collect()
}

/// Packets counted by each rule of our table, by `CHAIN/RULE`.
pub type Counters = BTreeMap<String, u64>;

/// Where a stack's uplink ends that is not its sidecar: the relay's process, if that is a namespace of its own, and the
/// table there.
pub fn far(status: &Value) -> (Option<i64>, String) {
    let apart = planned(status, "/uplink/ends_at") == "relay";
    let table = format!("lrpns-{}", planned(status, "/stack"));
    (apart.then(|| init(status, "relay")), table)
}

/// As [`attack_from_host`], from where a stack's uplink ends.
pub fn attack_from_far(lab: &Lab, status: &Value, code: &str) -> Value {
    match far(status).0 {
        Some(relay) => attack_beside(lab, relay, code),
        None => attack_from_host(lab, code),
    }
}

/// The counters of `table` in the network namespace of `pid`, or the lab's.
pub fn counters(lab: &Lab, pid: Option<i64>, table: &str) -> Counters {
    counters_of(lab, pid, "inet", table)
}

/// The counters of the rules at the uplink's end in the lab's network namespace.
pub fn uplink_counters(lab: &Lab, stack: &str) -> Counters {
    counters_of(lab, None, "netdev", &format!("lrpns-{stack}"))
}

/// A table of family inet as `nft` with these flags lists it. In the lab's network namespace `lrpns-STACK` is a stack's part of
/// the table that stacks share, as though it were a table of its own.
pub fn table_text(lab: &Lab, pid: Option<i64>, table: &str, flags: &[&str]) -> String {
    let list = |table| [&["nft"], flags, &["list", "table", "inet", table]].concat();
    let stack = match (pid, table.strip_prefix("lrpns-")) {
        (Some(pid), _) => return beside(lab, pid, &list(table)),
        (None, None) => return lab.ok(&list(table)),
        (None, Some(stack)) => stack,
    };
    let suffix = format!(".{stack}");
    let all = lab.ok(&list("lrpns.host"));
    let mut text = String::new();
    let mut within = false;
    for line in all.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["chain" | "set" | "map", name, "{", ..] = words[..] {
            within = name.ends_with(&suffix);
        }
        if within {
            text += &line.replace(&suffix, "");
            text.push('\n');
        }
        within &= words != ["}"];
    }
    text
}

fn counters_of(lab: &Lab, pid: Option<i64>, family: &str, table: &str) -> Counters {
    // As text: of a table with an owner, nft 1.0.6 prints in JSON what it has freed (table_flags_json(), src/json.c), and
    // then often stops there.
    let text = match (pid, family) {
        (None, "inet") => table_text(lab, None, table, &[]),
        (None, _) => lab.ok(&["nft", "list", "table", family, table]),
        (Some(pid), _) => beside(lab, pid, &["nft", "list", "table", family, table]),
    };
    let mut counters = Counters::new();
    let mut chain = "";
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("chain ") {
            chain = name.trim_end_matches(" {");
        }
        // A set of grants is called by the chain that asks it, and each of its elements counts like a rule.
        if let Some(name) = line.strip_prefix("set ") {
            chain = name.split('_').next().unwrap();
        }
        let Some((rule, comment)) = line.split_once(" comment \"") else {
            continue;
        };
        let packets = rule.split("counter packets ").skip(1).map(|rest| {
            let number = rest.split(' ').next().unwrap();
            number.parse::<u64>().unwrap()
        });
        let name = format!("{chain}/{}", comment.split('"').next().unwrap());
        counters.insert(name, packets.sum());
    }
    assert!(!counters.is_empty(), "{text}");
    counters
}

/// The same as `lrpns rules --counters --json` told it of the table in one namespace, such as `host`.
pub fn told_counters(tables: &str, namespace: &str) -> Counters {
    let tables: Value = serde_json::from_str(tables).unwrap();
    let mut tables = tables.as_array().unwrap().iter();
    let table = tables.find(|table| table["namespace"] == namespace);
    let rules = table.unwrap()["rules"].as_array().unwrap().iter();
    rules
        .map(|rule| {
            let name = format!(
                "{}/{}",
                rule["chain"].as_str().unwrap(),
                rule["name"].as_str().unwrap()
            );
            (name, rule["packets"].as_u64().unwrap())
        })
        .collect()
}

/// What was counted since `before`, without what wasn't.
pub fn since(before: &Counters, now: &Counters) -> Counters {
    let change = |(name, packets): (&String, &u64)| {
        let more = packets - before.get(name).copied().unwrap_or(0);
        (more > 0).then(|| (name.clone(), more))
    };
    now.iter().filter_map(change).collect()
}

/// Asserts that what has been counted in `table` since `before` is exactly `expected`, once the last packet, which may
/// still be on its way, has been.
pub fn assert_counted(
    lab: &Lab,
    table: (Option<i64>, &str),
    before: &Counters,
    expected: &[(&str, u64)],
) {
    assert_counted_by(|_| true, lab, table, before, expected);
}

/// As [`assert_counted`], but only rules that drop count.
pub fn assert_dropped(
    lab: &Lab,
    table: (Option<i64>, &str),
    before: &Counters,
    expected: &[(&str, u64)],
) {
    assert_counted_by(|rule| rule.contains("/drop-"), lab, table, before, expected);
}

fn assert_counted_by(
    interesting: impl Fn(&str) -> bool,
    lab: &Lab,
    (pid, table): (Option<i64>, &str),
    before: &Counters,
    expected: &[(&str, u64)],
) {
    let expected: Counters = expected
        .iter()
        .map(|(name, packets)| ((*name).to_owned(), *packets))
        .collect();
    eventually(&format!("counted in table {table}"), &expected, || {
        let mut counted = since(before, &counters(lab, pid, table));
        counted.retain(|rule, _| interesting(rule));
        counted
    });
}

/// Asserts that what `seen` sees is `expected`, when the kernel has done what it does at once.
pub fn eventually<T: PartialEq + std::fmt::Debug>(
    what: &str,
    expected: &T,
    mut seen: impl FnMut() -> T,
) {
    let deadline = Instant::now() + AT_ONCE;
    loop {
        let now = seen();
        if now == *expected || Instant::now() > deadline {
            assert_eq!(now, *expected, "{what}");
            return;
        }
    }
}

/// Waits until every connection through the sidecar that there has been is over, to its last packet: what is counted
/// from then on is new.
pub fn settle(lab: &Lab, status: &Value) {
    let sidecar = init(status, "sidecar");
    eventually("connections that go on", &Vec::<String>::new(), || {
        beside(lab, sidecar, &["cat", "/proc/net/nf_conntrack"])
            .lines()
            // TIME_WAIT is what conntrack says after the last ACK.
            .filter(|line| line.contains(" tcp ") && !line.contains(" TIME_WAIT "))
            .map(str::to_owned)
            .collect()
    });
}

/// Runs Python in an app, by `lrpns exec`, with the app's privileges; what it prints, as JSON.
pub fn attack(lab: &Lab, stack: &str, app: &str, code: &str) -> Value {
    let args = [
        "exec",
        stack,
        "--part",
        app,
        "--",
        PYTHON,
        "-c",
        &format!("{ATTACKS}\n{code}"),
    ];
    let output = lab.lrpns(&args);
    assert!(output.status.success(), "{}", describe(&output));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", describe(&output)))
}

/// Runs Python in the network namespace of `pid`, as root there, so with more than an app ever has.
pub fn attack_beside(lab: &Lab, pid: i64, code: &str) -> Value {
    let text = beside(lab, pid, &[PYTHON, "-c", &format!("{ATTACKS}\n{code}")]);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// The same in the lab's own.
pub fn attack_from_host(lab: &Lab, code: &str) -> Value {
    let text = lab.ok(&[PYTHON, "-c", &format!("{ATTACKS}\n{code}")]);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// The same in the client's.
pub fn attack_from_client(lab: &Lab, code: &str) -> Value {
    let output = lab.client(&[PYTHON, "-c", &format!("{ATTACKS}\n{code}")]);
    assert!(output.status.success(), "{}", describe(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What an attacker's Python has at hand. Nothing of it waits: whether a packet got through is seen elsewhere.
///
/// `say` prints; `tried` gives "OK" or the errno's name; `knock` sends one SYN; `frame`, `ipv4`, `tcp`, `udp` and `ping`
/// make packets by hand.
pub const ATTACKS: &str = r#"
import ctypes, errno, json, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def say(value):
    print(json.dumps(value), flush=True)
def tried(what, *args):
    try:
        what(*args)
        return "OK"
    except OSError as e:
        return errno.errorcode.get(e.errno, str(e))
def call(result):
    if result == -1:
        raise OSError(ctypes.get_errno(), "")
    return result
kept = []
def knock(address, port, source=0):
    s = socket.socket()
    kept.append(s)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.setblocking(False)
    if source:
        s.bind(("", source))
    return errno.errorcode.get(s.connect_ex((address, port)), "OK")
def knock6(address, port):
    s = socket.socket(socket.AF_INET6)
    kept.append(s)
    s.setblocking(False)
    return errno.errorcode.get(s.connect_ex((address, port)), "OK")
def throw(address, port, kind=socket.SOCK_DGRAM):
    with socket.socket(socket.AF_INET, kind) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        return tried(s.sendto, b"x", (address, port))
def checksum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff
def ipv4(source, target, protocol, payload, offset=0):
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 7, offset, 64, protocol, 0,
                       socket.inet_aton(source), socket.inet_aton(target))
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload
def tcp(source, target, sport, dport, flags=2):
    head = struct.pack("!HHIIBBHHH", sport, dport, 1, 1 if flags & 16 else 0, 0x50, flags, 64240, 0, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(target) + struct.pack("!BBH", 0, 6, len(head))
    return ipv4(source, target, 6, head[:16] + struct.pack("!H", checksum(pseudo + head)) + head[18:])
def udp(source, target, sport, dport):
    return ipv4(source, target, 17, struct.pack("!HHHH", sport, dport, 9, 0) + b"x")
def ping(source, target):
    head = struct.pack("!BBHHH", 8, 0, 0, 7, 7)
    return ipv4(source, target, 1, head[:2] + struct.pack("!H", checksum(head)) + head[4:])
def mac(text):
    return bytes.fromhex(text.replace(":", ""))
def frame(link, target, source, payload, kind=0x0800):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
        s.bind((link, 0))
        try:
            s.send(mac(target) + mac(source) + struct.pack("!H", kind) + payload)
        except OSError as e:
            # What a rule of the link's own drops.
            if e.errno != errno.ENOBUFS:
                raise
"#;

/// A process's capability sets, as `/proc/PID/status` has them, in this order: Inh, Prm, Eff, Bnd, Amb.
pub fn capabilities(lab: &Lab, pid: i64) -> Vec<String> {
    ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
        .map(|name| status_line(lab, pid, name))
        .to_vec()
}

/// One value of `/proc/PID/status`.
pub fn status_line(lab: &Lab, pid: i64, name: &str) -> String {
    let status = lab.proc(pid, "status");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .unwrap_or_else(|| panic!("no {name} in {status}"));
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What a process's namespace of that kind is, such as `net:[4026531840]`.
pub fn namespace(lab: &Lab, pid: &str, kind: &str) -> String {
    lab.ok(&["readlink", &format!("/proc/{pid}/ns/{kind}")])
        .trim()
        .to_owned()
}

/// The names of a directory of `/proc/PID`, each with what it links to.
pub fn links(lab: &Lab, pid: i64, directory: &str) -> BTreeMap<String, String> {
    let list = lab.ok(&[
        "find",
        &format!("/proc/{pid}/{directory}"),
        "-mindepth",
        "1",
        "-printf",
        "%f %l\n",
    ]);
    list.lines()
        .map(|line| line.split_once(' ').unwrap_or((line, "")))
        .map(|(name, target)| (name.to_owned(), target.to_owned()))
        .collect()
}

/// A line of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Debug)]
pub struct Mount {
    pub point: String,
    pub options: Vec<String>,
    pub kind: String,
}

impl Mount {
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|o| o == option)
    }
}

/// The mounts that a process sees.
pub fn mounts(lab: &Lab, pid: i64) -> Vec<Mount> {
    let text = lab.proc(pid, "mountinfo");
    text.lines()
        .map(|line| {
            let fields: Vec<_> = line.split(' ').collect();
            let dash = fields.iter().position(|field| *field == "-").unwrap();
            Mount {
                point: fields[4].to_owned(),
                options: fields[5].split(',').map(str::to_owned).collect(),
                kind: fields[dash + 1].to_owned(),
            }
        })
        .collect()
}

/// The kinds of namespaces that every part has for itself; the network is another matter.
const NAMESPACES: [&str; 6] = ["user", "mnt", "pid", "ipc", "uts", "cgroup"];

/// Every process of a stack that is in the host's user namespace has five empty sets and is under a filter. Root's are two: the
/// supervisor, of an id that nobody else has, and who takes away at the end what root has made.
pub fn holds_nothing_on_the_host(lab: &Lab, status: &Value) {
    let supervisor = &status["supervisor"];
    let script = format!(
        "for p in {supervisor} $(pgrep -P {supervisor}); do readlink /proc/$p/ns/user /proc/self/ns/user; \
         grep -E '^(Uid|Gid|Groups|Seccomp|Cap(Inh|Prm|Eff|Bnd|Amb)):' /proc/$p/status; echo; done"
    );
    let told = lab.ok(&["sh", "-c", &script]);
    let mut of_the_host = vec![];
    for process in told.split("\n\n").filter(|told| !told.trim().is_empty()) {
        let lines: Vec<&str> = process.trim().lines().collect();
        if lines[0] != lines[1] {
            continue;
        }
        let said = |what: &str| {
            let mut lines = lines.iter();
            lines.find_map(|line| Some(line.strip_prefix(what)?.strip_prefix(":\t")?.trim()))
        };
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(said(set), Some("0000000000000000"), "{told}");
        }
        assert_eq!(said("Seccomp"), Some("2"), "{told}");
        let ids = ["Uid", "Gid"].map(|which| said(which).unwrap().split('\t').next().unwrap());
        assert_eq!(ids[0], ids[1], "{told}");
        of_the_host.push((ids[0].parse::<u32>().unwrap(), said("Groups").unwrap()));
    }
    if status["plan"]["mode"] != "root" {
        // An ordinary user's is in a user namespace of its own.
        assert_eq!(of_the_host, [], "{told}");
        return;
    }
    let [(uid, ""), (0, _)] = of_the_host.as_slice() else {
        panic!("{told}");
    };
    let sidecar = status["plan"]["sidecar"]["host_id"].as_u64().unwrap();
    assert_eq!(
        u64::from(*uid),
        sidecar / 0x10000 * 0x10000 + 0xfff0,
        "{told}"
    );
}

/// Asserts what must hold for every part of a running stack, whoever runs it; `uids` are the host's that are allowed.
pub fn assert_confined(lab: &Lab, status: &Value, uids: std::ops::Range<u64>) {
    let parts = status["parts"].as_array().unwrap();
    let mut processes = vec![];
    for part in parts {
        let name = part["name"].as_str().unwrap();
        for at in ["pid", "init"] {
            processes.push((name, at, part[at].as_i64().unwrap()));
        }
    }
    for (name, at, pid) in processes {
        let what = format!("{at} of {name}");
        let (none, net_admin) = ("0000000000000000", "0000000000001000");
        let held = match name {
            "sidecar" => [none, net_admin, net_admin, net_admin, none],
            _ => [none; 5],
        };
        assert_eq!(capabilities(lab, pid), held, "{what}");
        assert_eq!(status_line(lab, pid, "NoNewPrivs"), "1", "{what}");
        for kind in ["Uid", "Gid"] {
            let ids = status_line(lab, pid, kind);
            let ids: Vec<u64> = ids.split(' ').map(|id| id.parse().unwrap()).collect();
            assert!(
                ids.iter().all(|id| uids.contains(id)),
                "{what}: {kind} {ids:?}"
            );
        }
        assert_eq!(status_line(lab, pid, "Groups"), "", "{what}");
    }

    // Every namespace once: no two parts share one, and none is the lab's.
    for kind in NAMESPACES {
        let mut all: Vec<_> = parts
            .iter()
            .map(|part| namespace(lab, &part["init"].to_string(), kind))
            .chain([namespace(lab, "self", kind)])
            .collect();
        all.sort();
        let count = all.len();
        all.dedup();
        assert_eq!(all.len(), count, "{kind} namespaces: {all:?}");
    }
    let net = |name: &str| namespace(lab, &init(status, name).to_string(), "net");
    let here = namespace(lab, "self", "net");
    let (app, sidecar, relay) = (net("app"), net("sidecar"), net("relay"));
    assert!(app != here && sidecar != here && app != sidecar);
    let supervisor = status["supervisor"].as_i64().unwrap();
    let its = namespace(lab, &supervisor.to_string(), "net");
    let dials = status["plan"]["egress"]["via"] == "relay";
    match planned(status, "/mode") {
        "root" if planned(status, "/uplink/ends_at") == "relay" && !dials => {
            assert!(![&here, &app, &sidecar, &relay].contains(&&its));
        }
        _ => assert_eq!(here, its, "what it starts dials on the host"),
    }
    holds_nothing_on_the_host(lab, status);
    match planned(status, "/uplink/ends_at") {
        "relay" => assert!(![&here, &app, &sidecar].contains(&&relay)),
        _ => assert_eq!(relay, here, "it dials from where the uplink ends"),
    }
    // A command is where its part is.
    for kind in NAMESPACES.iter().chain(&["net"]) {
        assert_eq!(
            namespace(lab, &pid(status, "app").to_string(), kind),
            namespace(lab, &init(status, "app").to_string(), kind)
        );
    }

    for name in ["sidecar", "relay"] {
        let mounts = mounts(lab, init(status, name));
        assert_eq!(mounts.len(), 1, "{name}: {mounts:?}");
        let root = &mounts[0];
        assert_eq!((root.point.as_str(), root.kind.as_str()), ("/", "tmpfs"));
        for option in ["ro", "nosuid", "nodev", "noexec"] {
            assert!(root.has(option), "{name}: {root:?} is not {option}");
        }
        let root = format!("/proc/{}/root", init(status, name));
        assert_eq!(lab.ok(&["ls", "-A", &format!("{root}/")]), "", "{name}");
        let write = lab.run(&["touch", &format!("{root}/file")]);
        assert!(
            String::from_utf8_lossy(&write.stderr).contains("Read-only file system"),
            "{name}: {}",
            describe(&write)
        );
    }
    for mount in mounts(lab, pid(status, "app")) {
        // What covers entries of /proc lies below it, and is read-only.
        let writable = match mount.point.as_str() {
            "/tmp" | "/dev/shm" => true,
            "/proc" => mount.kind == "proc",
            _ => false,
        };
        assert_eq!(mount.has("rw"), writable, "{mount:?}");
        assert!(mount.has("nosuid"), "{mount:?}");
        // The five devices are what may be one.
        assert!(
            mount.has("nodev") || mount.point.starts_with("/dev/"),
            "{mount:?}"
        );
    }
}

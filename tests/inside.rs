//! What a program finds around it in an app: what real servers look at before they start, with the real programs.
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Output;

use support::lab::{Lab, describe};
use support::look::{self, PYTHON};
use support::user::User;

/// An uid without a line in /etc/subuid.
const SOMEBODY: u32 = 4321;

/// `lrpns run --rootfs host`, with flags, as root and as an ordinary user.
struct Runner<'a> {
    lab: &'a Lab,
    user: Option<User<'a>>,
}

impl Runner<'_> {
    fn output(&self, flags: &[&str], command: &[&str]) -> Output {
        let args = [&["run", "--rootfs", "host"], flags, &["--"], command].concat();
        match &self.user {
            None => self.lab.lrpns(&args),
            Some(user) => user.lrpns(&args),
        }
    }

    /// What a command printed, which must succeed.
    #[track_caller]
    fn with(&self, flags: &[&str], command: &[&str]) -> String {
        let output = self.output(flags, command);
        assert!(
            output.status.success(),
            "{command:?}: {}",
            describe(&output)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn says(&self, command: &[&str]) -> String {
        self.with(&[], command)
    }

    #[track_caller]
    fn python(&self, code: &str) -> String {
        self.says(&[PYTHON, "-c", code])
    }
}

/// Asks by both ways.
fn each_way(programs: &[&str], ask: impl Fn(&Runner<'_>)) {
    if !look::machine_with(programs) {
        return;
    }
    let lab = Lab::new();
    ask(&Runner {
        lab: &lab,
        user: None,
    });
    let user = User::new(&lab, SOMEBODY);
    if user.may() {
        ask(&Runner {
            lab: &lab,
            user: Some(user),
        });
    }
}

#[test]
fn posix_shared_memory_is_there_and_bounded() {
    each_way(&[], |run| {
        // The semaphores of Python, and what PostgreSQL calls `posix`.
        let code = r#"
import multiprocessing, os
from multiprocessing import shared_memory
multiprocessing.Lock()
memory = shared_memory.SharedMemory(create=True, size=1 << 20)
memory.unlink()
flags = [line.split() for line in open("/proc/self/mounts") if " /dev/shm " in line][0]
print(flags[2], sorted(set(flags[3].split(",")) & {"noexec", "nosuid", "nodev", "rw"}))
whole = os.statvfs("/dev/shm")
print(whole.f_blocks * whole.f_frsize >> 20, whole.f_files)
try:
    with open("/dev/shm/much", "wb") as file:
        file.write(bytes(17 << 20))
except OSError as error:
    print(error.errno)
"#;
        let said = run.python(code);
        let expected = "tmpfs ['nodev', 'noexec', 'nosuid', 'rw']\n16 16384\n28\n";
        assert_eq!(said, expected);
        let size = "import os; whole = os.statvfs('/dev/shm'); print(whole.f_blocks * whole.f_frsize >> 20)";
        let command = [PYTHON, "-c", size];
        assert_eq!(run.with(&["--tmpfs", "/dev/shm:64M"], &command), "64\n");
    });
}

#[test]
fn a_program_lists_its_own_links_and_changes_none() {
    each_way(&["node"], |run| {
        let node = "for (const [name, all] of Object.entries(require('os').networkInterfaces())) \
                    console.log(name, all.map(one => one.address).join())";
        let said = run.says(&["node", "-e", node]);
        assert!(said.contains("lo 127.0.0.1"), "{said}");
        assert!(
            said.lines().count() == 2 && said.contains("eth0 "),
            "{said}"
        );
        // The tool that would change them, by each kind of object that it knows.
        let changes = [
            "link set lo down",
            "link set eth0 address 02:00:00:00:00:99",
            "link add dummy0 type dummy",
            "link delete eth0",
            "address add 192.0.2.1/24 dev eth0",
            "address flush dev eth0",
            "route add default dev eth0",
            "route flush table all",
            "rule add from 192.0.2.1 table 7",
            "neighbour add 192.0.2.2 lladdr 02:00:00:00:00:98 dev eth0",
            "neighbour flush dev eth0",
            "netns set client 7",
            "nexthop add id 7 blackhole",
            "-6 address add 2001:db8::9/64 dev eth0",
            "token set ::7 dev eth0",
            "maddress add 01:00:5e:00:00:07 dev eth0",
            "mroute flush",
            "xfrm state flush",
        ];
        let look = "ip -o link; ip -o address; ip -o route; ip -o rule; ip -o neighbour";
        let tries: String = changes
            .iter()
            .map(|change| format!("ip {change} 2>/dev/null && echo 'done: {change}'\n"))
            .collect();
        let script = format!(
            "{{ {look}; }} > /tmp/before\n{tries}tc qdisc add dev eth0 root pfifo 2>/dev/null && echo done: tc\n\
             {{ {look}; }} > /tmp/after\ncmp /tmp/before /tmp/after && cat /tmp/after"
        );
        let said = run.says(&["sh", "-c", &script]);
        // Flushing nothing is no error.
        let said: String = said
            .lines()
            .filter(|line| !line.contains("flush"))
            .collect();
        assert!(
            said.contains("LOOPBACK,UP") && !said.contains("done:"),
            "{said}"
        );
        // Other protocols of netlink stay refused, as do messages to others than the kernel.
        let code = r#"
import errno, socket, struct
for protocol in range(32):
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        print("protocol", protocol)
    except OSError as error:
        # By what a library takes for a kernel without it: pam_unix would refuse everybody.
        refused = errno.EPROTONOSUPPORT if protocol == 9 else errno.EPERM
        assert error.errno == refused, (protocol, error)
s = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
s.bind((0, 0))
for group in range(1, 64):
    try:
        s.setsockopt(270, 1, group)
    except OSError as error:
        # Of routes to groups; and there is no group of that number.
        assert error.errno in (errno.EPERM, errno.EINVAL), (group, error)
question = struct.pack("=IHHIIBxxx", 20, 18, 0x301, 1, 0, 0)
for address in ((0, 1), (s.getsockname()[0] ^ 1, 0), (1, 0)):
    try:
        s.sendto(question, address)
        print("sent to", address)
    except OSError as error:
        assert error.errno == errno.EPERM, (address, error)
try:
    s.setsockopt(270, 8, 1)
    print("listens to all namespaces")
except OSError as error:
    assert error.errno == errno.EPERM, error
"#;
        assert_eq!(run.python(code), "protocol 0\n");
    });
}

#[test]
fn strict_has_no_socket_to_list_links_with() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let more = "seccomp = \"strict\"";
    look::up(&lab, &look::telling("web", "t", "5000:5000", more));
    let tried = look::attack(
        &lab,
        "web",
        "app",
        "say(tried(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, 0))",
    );
    assert_eq!(tried, "EPERM");
}

#[test]
fn an_app_connects_to_its_own_published_port_on_its_loopback() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    look::up(&lab, &look::telling("web", "t", "5000:5000", ""));
    let code = "import urllib.request\nprint(urllib.request.urlopen('http://127.0.0.1:5000/').read().decode())";
    let said = lab.lrpns_ok(&["exec", "web", "--", PYTHON, "-c", code]);
    assert!(said.contains("\"port\": 5000"), "{said}");
    // Nobody else at that port: the sidecar's rules and the missing route say so, with Landlock out of the way.
    let tried = look::attack(
        &lab,
        "web",
        "app",
        "say([knock(address, 5000) for address in ('172.18.0.33', '192.0.2.1', '127.0.0.1')])",
    );
    assert_ne!(tried[0], "OK");
    assert_ne!(tried[1], "OK");
    let report = lab.lrpns(&["audit", "web", "--json"]);
    assert_eq!(look::findings(&report.stdout), Vec::<String>::new());
}

/// Asks what a program thinks it has.
const SIZES: &str = r#"
import os, subprocess
def out(*args):
    return subprocess.run(args, capture_output=True, text=True, check=True).stdout
print("affinity", len(os.sched_getaffinity(0)))
print("nproc", out("nproc").strip())
print("node", out("node", "-p", "os.cpus().length + ' ' + os.totalmem() / 1048576"))
print("cpuinfo", open("/proc/cpuinfo").read().count("processor\t"))
print("stat", sum(line.startswith("cpu") for line in open("/proc/stat")) - 1)
print("free", out("free", "-m").split()[7])
"#;

#[test]
fn programs_size_themselves_by_the_limits() {
    if !look::machine_with(&["node", "free"]) {
        return;
    }
    let lab = Lab::new();
    let more = "limits = { cpu = 1.0, memory = \"1G\" }";
    look::up(&lab, &look::telling("web", "t", "5000:5000", more));
    let said = lab.lrpns_ok(&["exec", "web", "--", PYTHON, "-c", SIZES]);
    let said: Vec<&str> = said.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(
        said,
        [
            "affinity 1",
            "nproc 1",
            "node 1 1024",
            "cpuinfo 1",
            "stat 1",
            "free 1024"
        ]
    );
    let report = lab.lrpns(&["audit", "web", "--json"]);
    assert_eq!(look::findings(&report.stdout), Vec::<String>::new());
    let report = String::from_utf8(report.stdout).unwrap();
    assert!(
        report.contains("meminfo (the app's limit of memory)"),
        "{report}"
    );
}

#[test]
fn programs_that_look_at_the_machine_work_and_see_nothing_of_it() {
    each_way(&["node", "ps", "free", "top", "uptime"], |run| {
        let cpus = run.says(&["node", "-p", "os.cpus().length"]);
        assert!(cpus.trim().parse::<usize>().unwrap() >= 1, "{cpus}");
        let script = "ps aux && free && top -bn1 && uptime && nproc && cat /proc/loadavg && cat /proc/version";
        let said = run.says(&["sh", "-c", script]);
        let processes = said
            .lines()
            .take_while(|line| !line.contains("total"))
            .count();
        assert!((2..5).contains(&processes), "{said}");
        let psutil = "import psutil as p; p.cpu_percent(); p.virtual_memory(); p.swap_memory(); p.boot_time(); \
                      p.disk_partitions(); p.net_if_addrs(); p.net_io_counters(); p.cpu_count(logical=False); \
                      p.getloadavg(); p.Process().memory_info(); print(len(p.pids()))";
        let script = format!(
            "{PYTHON} -c 'import psutil' 2>/dev/null || exit 0; exec {PYTHON} -c '{psutil}'"
        );
        let said = run.says(&["sh", "-c", &script]);
        assert!(["1\n", ""].contains(&said.as_str()), "{said}");
        // Nothing is there but what is meant to be, and nothing of it can be written to.
        let code = r#"
import os
def readable(path):
    try:
        return bool(os.listdir(path)) if os.path.isdir(path) else bool(open(path, "rb").read(1))
    except OSError:
        return False
names = [name for name in os.listdir("/proc") if not name.isdigit()]
print(*sorted(name for name in names if readable("/proc/" + name)))
for top, _, files in os.walk("/proc/sys"):
    for name in files:
        try:
            open(os.path.join(top, name), "w")
            print("written:", top, name)
        except OSError:
            pass
for path in "sys/kernel/core_pattern", "sysrq-trigger", "kcore", "kallsyms", "keys", "modules", "interrupts", "config.gz", "cmdline":
    try:
        os.close(os.open("/proc/" + path, os.O_RDONLY))
        print("open:", path)
    except OSError:
        pass
print(open("/proc/sys/net/core/somaxconn").read(), len(open("/proc/sys/kernel/random/uuid").read()))
"#;
        let said = run.python(code);
        let expected = "cgroups cpuinfo filesystems loadavg meminfo mounts net self stat swaps sys thread-self uptime version \
                        vmstat\n4096\n 37\n";
        assert_eq!(said, expected);
    });
}

"""What scripts/bench measures, in namespaces that it made. See there for the usage.

Every figure is taken in rounds, in each of which every candidate is measured once in turn: a slow minute of the machine meets
all of them. A ratio is that of two figures of the same round; what is shown is the median, least and most.
"""
import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
HOST = "10.99.0.1"
CLIENT = "/run/netns/client"
SOURCES = ["10.99.0.%d" % k for k in range(2, 18)]
RESULTS = {}


def note(text):
    print("%s %s" % (time.strftime("%H:%M:%S"), text), file=sys.stderr, flush=True)


# ---- what is measured

LRPNS = {
    "lrpns dnat": {"VIA": "dnat"},
    "lrpns dnat, source client": {"VIA": "dnat", "SOURCE": "client"},
    "lrpns relay": {"VIA": "relay"},
    "lrpns rootless": {"VIA": "relay", "USER_RUN": "yes"},
    "lrpns socket": {"VIA": "socket"},
}
PEERS = {
    "bare veth": ("direct", {}),
    "routed": ("routed", {}),
    "iproute2": ("iproute2", {}),
    "docker": ("docker", {"LAST": "sleep"}),
    "docker, tcpdump": ("docker", {"LAST": "tcpdump"}),
    "podman": ("podman", {"LAST": "sleep"}),
    "pasta": ("pasta", {}),
    "rootlesskit": ("rootlesskit", {}),
    "rootlessport": ("rootlessport", {}),
}
# What a peer needs, and the Debian package that has it.
NEEDS = {
    "docker": ["/usr/sbin/dockerd docker.io", "/usr/bin/docker docker.io", "/usr/sbin/xtables-nft-multi iptables", "/usr/bin/tcpdump tcpdump"],
    "podman": ["/usr/bin/podman podman", "/usr/bin/crun crun", "/usr/lib/podman/netavark netavark"],
    "pasta": ["/usr/bin/pasta passt"],
    "rootlesskit": ["/usr/bin/rootlesskit rootlesskit", "/usr/bin/slirp4netns slirp4netns", "/usr/bin/newuidmap uidmap"],
    "rootlessport": ["/usr/bin/podman podman", "/usr/bin/slirp4netns slirp4netns", "/usr/bin/newuidmap uidmap", "/usr/bin/crun crun"],
    "iproute2": ["/usr/sbin/nft nftables"],
}


class Unusable(Exception):
    """A candidate that can't be measured here, and why."""


class Lab:
    """A candidate in namespaces of its own."""

    def __init__(self, bench, name, up=True, **more):
        self.name = name
        self.who, given = ("lrpns", LRPNS[name]) if name in LRPNS else PEERS.get(name, ("none", {}))
        for need in NEEDS.get(self.who, []):
            path, package = need.split()
            if not os.path.exists(path):
                raise Unusable("not installed (%s has %s)" % (package, path))
        self.dir = tempfile.mkdtemp(prefix="lab.", dir=bench.dir)
        os.chmod(self.dir, 0o755)
        self.environment = {**os.environ, "LAST": "sleep", **given, **{k: str(v) for k, v in more.items()},
                            "LAB": self.dir, "TOOLS": bench.tools}
        for none in [k for k, v in self.environment.items() if v == ""]:
            del self.environment[none]
        # Routed alone is asked at the app's own address: nothing is published there.
        self.host = "172.31.0.23" if name == "routed" else HOST
        script = ":" if self.who == "none" else " && ".join(
            self.script(what) for what in (["prepare", "up"] if up else ["prepare"]))
        self.process = subprocess.Popen(
            ["bash", HERE + "/lab.sh", self.dir, bench.tools, "bash", "-c", script], env=self.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=open(self.dir + "/lab.log", "w"))
        bench.labs.append(self)
        self.pid = None

    def script(self, what):
        return "bash %s/peers.sh %s %s" % (HERE, self.who, what)

    def wait(self, seconds=60):
        end = time.monotonic() + seconds
        while not os.path.exists(self.dir + "/ready"):
            if time.monotonic() > end or self.process.poll() is not None:
                raise Unusable("is not up within %d seconds: %s" % (seconds, self.said()))
            time.sleep(0.05)
        if open(self.dir + "/ready").read().strip() != "0":
            raise Unusable(self.said())
        # This process became unshare, whose one child is the lab's first process.
        self.pid = int(open("/proc/%d/task/%d/children" % (self.process.pid, self.process.pid)).read().split()[0])
        return self

    def said(self):
        for file in ("log", "daemon.log", "lab.log"):
            try:
                lines = [line.strip() for line in open("%s/%s" % (self.dir, file), errors="replace") if line.strip()]
            except OSError:
                continue
            if lines:
                return lines[-1][:200]
        return "it says nothing"

    def command(self, command, client=False):
        enter = ["nsenter", "-t", str(self.pid), "-m", "-n", "-p", "-u", "-i"]
        return enter + (["nsenter", "--net=" + CLIENT] if client else []) + command

    def run(self, command, client=False, seconds=60, check=True):
        done = subprocess.run(self.command(command, client), env=self.environment, capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, timeout=seconds)
        if check and done.returncode != 0:
            raise Unusable("%s: %s" % (" ".join(command[:3]), (done.stderr or done.stdout).strip()[:400].replace("\n", " ")))
        return done.stdout

    def lrpns(self, *command, seconds=120, check=True):
        return self.run([self.environment["TOOLS"] + "/lrpns", *command], seconds=seconds, check=check)

    def end(self):
        if self.process.poll() is None:
            # unshare ends its child with it (--kill-child), and the kernel the rest of the process namespace.
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()


class Bench:
    def __init__(self, options):
        self.options = options
        self.labs = []
        self.dir = tempfile.mkdtemp(prefix="lrpns-bench.", dir="/var/tmp")
        os.chmod(self.dir, 0o755)
        self.tools = self.dir + "/tools"
        self.reasons = {}
        self.goals = []
        self.tables = []
        os.mkdir(self.tools)
        # A copy: how the page cache holds a program counts for as much as anything here.
        shutil.copy(options.binary, self.tools + "/lrpns")
        subprocess.run(["gcc", "-O2", "-static", "-o", self.tools + "/load", HERE + "/load.c"], check=True)
        subprocess.run(["gcc", "-O2", "-o", self.tools + "/floor", HERE + "/floor.c"], check=True)
        self.load = self.tools + "/load"
        self.images()

    def images(self):
        for image in ("app", "sidecar"):
            root = "%s/%s" % (self.tools, image)
            for directory in ("proc", "sys", "dev", "tmp", "run", "etc", "bin", "usr/sbin"):
                os.makedirs("%s/%s" % (root, directory))
            os.chmod(root + "/tmp", 0o1777)
        shutil.copy(self.load, self.tools + "/app/load")
        side = self.tools + "/sidecar"
        programs = ["/usr/sbin/xtables-nft-multi", "/usr/bin/tcpdump", "/usr/bin/busybox"]
        plugins = subprocess.run("find /usr/lib -name 'libxt_*.so' -o -name 'libipt_*.so'", shell=True, capture_output=True, text=True)
        files = [program for program in programs if os.path.exists(program)]
        libraries = subprocess.run(["ldd", *files], capture_output=True, text=True).stdout
        for file in [*files, *re.findall(r"(/\S+\.so\S*)", libraries), *plugins.stdout.split()]:
            file = file.rstrip(":")
            os.makedirs(side + os.path.dirname(file), exist_ok=True)
            if not os.path.exists(side + file):
                shutil.copy(file, side + file)
        for name, target in (("usr/sbin/iptables", "xtables-nft-multi"), ("bin/sh", "/usr/bin/busybox"), ("bin/sleep", "/usr/bin/busybox")):
            os.symlink(target, "%s/%s" % (side, name))
        with open(side + "/etc/passwd", "w") as file:
            file.write("root:x:0:0::/:/bin/sh\ntcpdump:x:105:105::/:/bin/sh\n")
        with open(side + "/etc/group", "w") as file:
            file.write("root:x:0:\ntcpdump:x:105:\n")
        shutil.copy(HERE + "/sidecar.sh", side + "/rules")
        for image in ("app", "sidecar"):
            subprocess.run(["tar", "-C", "%s/%s" % (self.tools, image), "-cf", "%s/%s.tar" % (self.tools, image), "."], check=True)

    def up(self, names, up=True, **more):
        """Labs by name, those that can be had: two are made at a time."""
        made, found = {}, {}
        for name in names:
            try:
                made[name] = Lab(self, name, up, **more)
            except Unusable as why:
                self.without(name, why)
            while sum(not os.path.exists(lab.dir + "/ready") and lab.process.poll() is None for lab in made.values()) > 1:
                time.sleep(0.05)
        for name, lab in made.items():
            try:
                found[name] = lab.wait()
            except Unusable as why:
                self.without(name, why)
        return found

    def without(self, name, why):
        note("%s can't be measured: %s" % (name, why))
        self.reasons.setdefault(name, str(why))

    def end_labs(self):
        for lab in self.labs:
            lab.end()
        for lab in self.labs:
            parent = os.path.basename(lab.dir)
            subprocess.run("find /sys/fs/cgroup -depth -type d -path '*%s*' -exec rmdir {} + 2>/dev/null" % parent, shell=True)
            shutil.rmtree(lab.dir, ignore_errors=True)
        self.labs = []

    def rounds(self, budget, most, measure, least=3):
        """Runs `measure(round)` again and again: until the budget, in seconds, would be overdrawn, but three times at least."""
        if self.options.quick:
            most, least = 2, 2
        start, count = time.monotonic(), 0
        while count < most:
            begun = time.monotonic()
            measure(count)
            count += 1
            if count >= least and time.monotonic() - start + (time.monotonic() - begun) > budget:
                break
        return count

    def goal(self, row, text, figure, met):
        self.goals.append((row, text, figure, met))

    def table(self, title, text, head, lines):
        self.tables.append((title, text, head, lines))
        print("\n%s\n" % markdown(title, text, head, lines), flush=True)


def markdown(title, text, head, lines):
    rows = ["| %s |" % " | ".join(str(cell) for cell in line) for line in lines]
    return "\n".join(["### " + title, "", text, "", "| %s |" % " | ".join(head), "|" + "---|" * len(head), *rows])


def middle(list):
    list = [x for x in list if x is not None]
    return statistics.median(list) if list else None


def spread(list, digits=0, unit=""):
    list = [x for x in list if x is not None]
    if not list:
        return "-"
    return "%s (%s to %s)%s" % (*("{:,.{}f}".format(x, digits) for x in (middle(list), min(list), max(list))), unit)


def ratios(one, other):
    return [a / b for a, b in zip(one or [], other or []) if a and b]


def ratio(one, other):
    return middle(ratios(one, other))


def judge(bench, row, text, figure, at_least=None, at_most=None, digits=2, unit=""):
    """A goal of a figure; without the figure it is neither met nor missed."""
    if figure is None:
        bench.goal(row, text, "not measured", None)
    else:
        met = (at_least is None or figure >= at_least) and (at_most is None or figure <= at_most)
        bench.goal(row, text, "{:,.{}f}{}".format(figure, digits, unit), met)


def wrk(lab, close, port=5000, seconds=1, connections=32):
    output = lab.run(["wrk", "-t1", "-c%d" % connections, "-d%ds" % seconds, "--latency", *(["-H", "Connection: close"] if close else []),
                      "http://%s:%d/" % (lab.host, port)], client=True)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    tail = re.search(r"^\s+99%\s+([\d.]+)(us|ms|s)", output, re.M)
    return (float(rate[1]) if rate else None,
            float(tail[1]) * {"us": 1e-3, "ms": 1, "s": 1e3}[tail[2]] if tail else None)


# ---- the rows

def row_a(bench, budget):
    names = ["lrpns relay", "lrpns dnat", "iproute2", "docker", "podman"]
    labs = bench.up(names, up=False)
    floor = Lab(bench, "none").wait()
    first, down = {name: [] for name in names + ["system calls"]}, {name: [] for name in names + ["system calls"]}

    def one(number):
        for name in names + ["system calls"]:
            if name == "system calls":
                made, removed = map(float, floor.run([bench.tools + "/floor", HERE + "/rules.nft"]).split())
                first[name].append(made)
                down[name].append(removed)
            elif name in labs:
                lab = labs[name]
                try:
                    for what, verb, list, field in (("up", "first", first, 1), ("down", "gone", down, None)):
                        said = lab.run([bench.load, verb, CLIENT, lab.host, "5000", "--", "bash", HERE + "/peers.sh", lab.who, what]
                                       if lab.who != "lrpns" else
                                       [bench.load, verb, CLIENT, lab.host, "5000", "--", bench.tools + "/lrpns", *what.split(),
                                        *(["-d"] if what == "up" else []), "-f", lab.dir + "/bench.toml"])
                        values = list_of(said)
                        list[name].append(values[1] if field == 1 else max(values))
                except (Unusable, subprocess.TimeoutExpired) as why:
                    bench.without(name, why)
                    del labs[name]

    one(-1)
    for list in (*first.values(), *down.values()):
        list.clear()
    count = bench.rounds(budget, 20, one)
    lines = [[name, spread(first[name], 1), spread(down[name], 1), bench.reasons.get(name, "")] for name in names + ["system calls"]]
    bench.table("Start and end", "From before the command's `exec` to the first answer at the published port; then the command that ends it, to "
                "its end and a refused connection. Milliseconds, %d rounds." % count, ["", "first answer", "down", ""], lines)
    for via in ("lrpns relay", "lrpns dnat"):
        judge(bench, "a", "first answer of %s, to the batched iproute2 script, at most 0.5" % via, ratio(first[via], first["iproute2"]), at_most=0.5)
        judge(bench, "a", "the same to Docker, at most 1/60 (0.017)", ratio(first[via], first["docker"]), at_most=1 / 60, digits=3)
        judge(bench, "a", "down of %s, at most 8 ms" % via, middle(down[via]), at_most=8, digits=1, unit=" ms")


def list_of(said):
    return [float(word) for word in said.split()]


def row_b(bench, budget):
    names = ["bare veth", "routed", "lrpns dnat", "lrpns dnat, source client", "lrpns relay", "lrpns rootless", "lrpns socket", "iproute2", "docker",
             "docker, tcpdump", "podman", "pasta", "rootlesskit", "rootlessport"]
    labs = bench.up(names)
    found = {name: {"kept": [], "new": [], "bulk": [], "tail": []} for name in names}

    def one(number):
        for name in names:
            kept = new = bulk = tail = None
            if name in labs:
                try:
                    kept, tail = wrk(labs[name], False)
                    new, _ = wrk(labs[name], True)
                    bulk = float(labs[name].run([bench.load, "bulk", labs[name].host, "5000", "1"], client=True))
                except (Unusable, subprocess.TimeoutExpired) as why:
                    bench.without(name, why)
                    del labs[name]
            for key, value in (("kept", kept), ("new", new), ("bulk", bulk), ("tail", tail)):
                found[name][key].append(value)

    one(-1)
    for lists in found.values():
        for list in lists.values():
            list.clear()
    count = bench.rounds(budget, 8, one)
    bare = found["bare veth"]

    def cell(name, key, digits):
        if not any(found[name][key]):
            return "-"
        return "%s; **%.2f**" % (spread(found[name][key], digits), ratio(found[name][key], bare[key]) or 0)

    bench.table(
        "Data path", "`wrk -t1 -c32 -d1s`, with and without `Connection: close`, and one connection that carries as much as it can for a second, "
        "from a network namespace at the end of a veth pair; %d rounds: median (least to most), and the median of the ratios to the bare veth pair. "
        "The server is a small one of its own (scripts/bench.d/load.c), the same for all, with 1 KiB an answer; lrpns with `log = \"connections\"`." % count,
        ["", "kept, requests a second", "new connections a second", "bulk, Gbit/s", "p99 kept, ms", ""],
        [[name, cell(name, "kept", 0), cell(name, "new", 0), cell(name, "bulk", 1), "-" if middle(found[name]["tail"]) is None else "%.1f" % middle(found[name]["tail"]),
          bench.reasons.get(name, "")] for name in names])

    def against(one, other, at_least, keys=("kept", "new", "bulk")):
        for key in keys:
            least = at_least if isinstance(at_least, float) else at_least[key]
            judge(bench, "b", "%s to %s, %s, at least %.2f" % (one, other, key, least), ratio(found[one][key], found[other][key]), at_least=least)

    against("lrpns dnat", "docker", 1.1)
    against("lrpns dnat", "podman", 1.1)
    against("lrpns dnat", "routed", 0.95)
    for relay in ("lrpns relay", "lrpns rootless"):
        against(relay, "lrpns dnat", {"kept": 0.9, "new": 0.85, "bulk": 0.85})
        against(relay, "pasta", {"kept": 1.0, "new": 0.8, "bulk": 1.0})
        for other in ("rootlesskit", "rootlessport"):
            against(relay, other, 1.4)
            judge(bench, "b", "p99 of %s to %s, at most 1" % (relay, other), ratio(found[relay]["tail"], found[other]["tail"]), at_most=1)
    against("lrpns socket", "bare veth", {"kept": 0.85, "new": 0.75, "bulk": 0.9})


# Run in the lab, which has the processes: PSS of all that is lrpns's, how much of it is no file, and
# each supervisor's private memory, in MB.
MEMORY = r"""
import os, re
total, anonymous, private = 0, 0, []
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        command = open("/proc/%s/cmdline" % pid).read().split("\0")
        text = open("/proc/%s/smaps_rollup" % pid).read()
        program = os.readlink("/proc/%s/exe" % pid)
    except OSError:
        continue
    if pid in ("1", str(os.getpid())) or "/load" in command[0] or os.path.basename(program) in ("sleep", "nginx", "load"):
        continue
    number = dict(re.findall(r"^(\w+):\s+(\d+) kB", text, re.M))
    total += int(number["Pss"])
    anonymous += int(number.get("Pss_Anon", 0))
    if "up" in command:
        private.append((int(number["Private_Clean"]) + int(number["Private_Dirty"])) / 1024)
print(total / 1024, anonymous / 1024, *private)
"""


def memory(lab):
    total, anonymous, *private = list_of(lab.run([sys.executable, "-c", MEMORY]))
    if not private:
        raise Unusable("no supervisor is found")
    return total, anonymous, private


def several(lab, numbers, via="dnat"):
    """Brings up a stack for each number: how long each `up -d` took, in milliseconds."""
    times = []
    for number in numbers:
        file = "%s/%d.toml" % (lab.dir, number)
        with open(file, "w") as out:
            out.write("""name = "s%d"
[sidecar]
log = "connections"
[app]
rootfs = "dir:%s/app"
command = ["/load", "serve", "5000"]
publish = ["0.0.0.0:%d:5000"]
via = "%s"
""" % (number, lab.environment["TOOLS"], 10000 + number, via))
        begun = time.perf_counter()
        lab.lrpns("up", "-d", "-f", file)
        times.append((time.perf_counter() - begun) * 1e3)
    return times


def row_c(bench, budget):
    ways = [("bare veth", "bare veth", {}, None), ("lrpns relay", "lrpns relay", {}, None), ("lrpns relay, over loopback", "lrpns relay", {}, "loopback"),
            ("lrpns rootless", "lrpns rootless", {}, None), ("lrpns dnat", "lrpns dnat", {}, None),
            ("outwards, by nat", "lrpns dnat", {"EGRESS": "tcp 10.99.0.2:6000"}, "out"), ("outwards, by relay", "lrpns relay", {"EGRESS": "tcp 10.99.0.2:6000"}, "out")]
    seconds, count, tail = max(15, budget // len(ways) - 3), 10 ** 9, 10
    if bench.options.quick:
        seconds, tail = 12, 4
    if bench.options.long:
        seconds, count, tail = 900, 10 ** 6, 60
    lines = []
    for title, name, more, how in ways:
        labs = bench.up([name], **more)
        if name not in labs:
            lines.append([title, "-", "-", "-", "-", "-", bench.reasons.get(name, "")])
            continue
        lab = labs[name]
        at_rest = memory(lab) if name.startswith("lrpns") else None
        clients = [bench.load, "closers", lab.host, "5000", str(seconds), str(count)]
        if how == "out":
            # Beside it, and ended with the lab.
            subprocess.Popen(lab.command([bench.load, "serve", "6000"], client=True), stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            said = lab.lrpns("exec", "bench", "--", "/load", "closers", "10.99.0.2", "6000", str(seconds), str(count), seconds=seconds + 60)
        elif how == "loopback":
            clients[2] = "127.0.0.1"
            said = lab.run(clients + ["127.0.0.%d" % k for k in range(2, 18)], seconds=seconds + 60)
        else:
            said = lab.run(clients + SOURCES, client=True, seconds=seconds + 60)
        answered, failed = zip(*(map(int, line.split()) for line in said.splitlines()))
        all = sum(answered)
        head, last = sum(answered[:10 if tail > 4 else 4]) / (10 if tail > 4 else 4), sum(answered[-tail:]) / tail
        grown = "-"
        if at_rest:
            after = memory(lab)
            grown = "%.1f to %.1f" % (at_rest[2][0], after[2][0])
            if how is None:
                judge(bench, "e", "supervisor of %s after %d connections, at most 2 MB more than at rest" % (name, all), after[2][0] - at_rest[2][0],
                      at_most=2, digits=1, unit=" MB more")
        lines.append([title, "{:,}".format(all), "{:,}".format(sum(failed)), "{:,.0f}".format(head), "{:,.0f}".format(last), "%.2f" % (last / head if head else 0), grown])
        if name != "bare veth" or how:
            judge(bench, "c", "%s: last %d seconds to the first %d, at least 0.9" % (title, tail, 10 if tail > 4 else 4), last / head if head else 0, at_least=0.9)
            judge(bench, "c", "%s: connections refused or lost, none" % title, sum(failed), at_most=0, digits=0)
        bench.end_labs()
    bench.table(
        "Clients that close first", "32 connections at a time from 16 addresses, each with one request and closed by the client, %s in a row; "
        "outwards, an app's own to one granted destination. The rates are those of the first %d seconds and the last %d. The bare veth pair "
        "shows that the client itself holds." % ("a million" if bench.options.long else "for %d seconds" % seconds, 10 if tail > 4 else 4, tail),
        ["", "answered", "failed", "a second at first", "at last", "ratio", "supervisor's private memory, MB"], lines)


def plain_server(lab):
    """A server of the host that has nothing to do with any stack, at port 8080."""
    if os.path.exists("/usr/sbin/nginx"):
        with open(lab.dir + "/nginx.conf", "w") as file:
            file.write("""user root; worker_processes 1; daemon on; pid %s/nginx.pid; error_log /dev/null crit;
events { worker_connections 4096; }
http { access_log off; keepalive_requests 1000000000; server { listen 8080 backlog=4096; location / { return 200 "%s"; } } }
""" % (lab.dir, "x" * 1024))
        lab.run(["/usr/sbin/nginx", "-c", lab.dir + "/nginx.conf"])
    else:
        subprocess.Popen(lab.command([lab.environment["TOOLS"] + "/load", "serve", "8080"]), stdin=subprocess.DEVNULL,
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def left_in(lab):
    """What of stacks is still there: links, tables, directories, processes."""
    links = [line.split(":")[1].strip().split("@")[0] for line in lab.run(["ip", "-o", "link"]).splitlines()]
    left = ["link " + link for link in links if link not in ("lo", "ext0")]
    left += lab.run(["nft", "list", "tables"]).split("\n")[:-1]
    left += ["/run/lrpns/" + name for name in lab.run(["sh", "-c", "ls /run/lrpns 2>/dev/null | grep -x 's[0-9]*'"], check=False).split()]
    left += [line for line in lab.run(["ps", "-eo", "args="]).splitlines() if "serve 5000" in line and "nsenter" not in line]
    return left


def row_d(bench, budget):
    few, many = (20, 50) if bench.options.quick else (100, 500)
    none, one, beside = (Lab(bench, "none") for _ in range(3))
    for lab in (none, one, beside):
        plain_server(lab.wait())
    several(one, [0])
    up = several(beside, [0])
    stages, lines = [few, many], []
    end = time.monotonic() + budget
    for stage, number in enumerate(stages):
        up += several(beside, range(len(up), number + 1))
        found = {}

        def round(_):
            for key, lab, port in (("nginx alone", none, 8080), ("nginx beside 1", one, 8080), ("nginx", beside, 8080), ("stack alone", one, 10000), ("stack", beside, 10000)):
                for close in (True, False):
                    found.setdefault((key, close), []).append(wrk(lab, close, port)[0])

        count = bench.rounds((end - time.monotonic()) * (0.35 if stage == 0 else 0.5), 8, round)
        for close, what in ((True, "new"), (False, "kept")):
            stack = ratio(found["stack", close], found["stack alone", close])
            server = ratio(found["nginx", close], found["nginx alone", close])
            server_one = ratio(found["nginx", close], found["nginx beside 1", close])
            lines.append(["%d others, %s" % (number, what), spread(found["stack alone", close]), spread(found["stack", close]), "%.2f" % stack,
                          spread(found["nginx alone", close]), spread(found["nginx", close]), "%.2f" % server, "%.2f" % server_one])
            if number == many:
                judge(bench, "d", "one stack beside %d others, %s, to alone, at least 0.95" % (number, what), stack, at_least=0.95)
                judge(bench, "d", "a plain server beside %d stacks, %s, to beside none, at least 0.98" % (number, what), server, at_least=0.98)
        if number == few:
            listed = []
            for _ in range(7):
                begun = time.perf_counter()
                beside.lrpns("ps")
                listed.append((time.perf_counter() - begun) * 1e3)
    # nsenter's and Python's own part is in each of these.
    begun = time.perf_counter()
    beside.lrpns("down", "--all")
    down_many = time.perf_counter() - begun
    # The kernel takes the links away on its own time.
    since, left = time.monotonic(), left_in(beside)
    while left and time.monotonic() < since + 20:
        time.sleep(0.1)
        left = left_in(beside)
    gone = time.monotonic() - since
    several(beside, range(few))
    begun = time.perf_counter()
    beside.lrpns("down", "--all")
    down_few = time.perf_counter() - begun
    bench.table(
        "Beside many other stacks", "By DNAT; new and kept connections a second as in the data path, %d rounds at the end. The plain server is a server of the host "
        "(nginx) that has nothing to do with lrpns: beside no stack, beside all of them, and the ratio to no stack and to one. "
        "`up -d`: the first ten %s ms, the last ten %s ms. `ps` of %d: %s ms. `down --all`: %d in %.2f s, %d in %.2f s; left, %.1f s later: %s." % (
            count, spread(up[:10], 1), spread(up[-10:], 1), few, spread(listed, 1), few, down_few, many, down_many, gone, ", ".join(left[:5]) or "nothing"),
        ["", "stack, alone", "beside them", "ratio", "plain server, no stack", "beside them", "ratio", "ratio to one stack"], lines)
    judge(bench, "d", "the last ten `up` of %d to the first ten, at most 1.3" % many, middle(up[-10:]) / middle(up[:10]), at_most=1.3)
    judge(bench, "d", "`ps` of %d, less than 20 ms" % few, middle(listed), at_most=20, digits=1, unit=" ms")
    judge(bench, "d", "`down --all` of %d, less than 1.5 s" % few, down_few, at_most=1.5, unit=" s")
    judge(bench, "d", "`down --all` of %d, less than 5 s" % many, down_many, at_most=5, unit=" s")
    judge(bench, "d", "what is left after it, nothing", len(left), at_most=0, digits=0)


def row_e(bench, budget):
    lines = []
    most = 20 if bench.options.quick else 100
    for via in ("dnat", "relay"):
        lab = Lab(bench, "none").wait()
        sizes, numbers = {}, [1, 2, 20] + ([most] if most > 20 else [])
        for number in numbers:
            before = max(sizes, default=0)
            several(lab, range(before, number), via)
            # What was started has had its time to come to rest when `ps` has heard every supervisor.
            lab.lrpns("ps")
            total, anonymous, private = memory(lab)
            sizes[number] = (total, middle(private))
            lines.append([via, number, "%.1f" % total, "%.1f" % anonymous, "%.2f" % (total if number == 1 else (total - sizes[1][0]) / (number - 1)), "%.2f" % middle(private)])
        judge(bench, "e", "first stack by %s, at most 1.5 MB" % via, sizes[1][0], at_most=1.5, digits=1, unit=" MB")
        judge(bench, "e", "each further one of %d by %s, at most 1.0 MB" % (number, via), (sizes[number][0] - sizes[1][0]) / (number - 1), at_most=1, unit=" MB")
        # What one of them maps alone is private until a second maps it as well: so not from the first on.
        judge(bench, "e", "supervisor's private memory, %d stacks to %d, by %s, at most 1.1" % (numbers[-1], numbers[-2], via),
              sizes[numbers[-1]][1] / sizes[numbers[-2]][1], at_most=1.1)
        bench.end_labs()
    bench.table("Memory", "PSS (smaps_rollup) of all processes of lrpns, without the apps; each further stack is what the number has come to since the first, "
                "shared out. The supervisor's own is what is private to it. At rest; after many connections, see the clients that close first.",
                ["", "stacks", "PSS, MB", "of it no file, MB", "each, MB", "supervisor's private, MB"], lines)


def row_f(bench, budget):
    names = ["bare veth", "lrpns dnat", "lrpns relay", "lrpns rootless"]
    labs = bench.up(names, UDP="yes")
    rates = [50000, 150000]
    found = {(name, rate): [] for name in names for rate in rates}

    def one(_):
        for rate in rates:
            for name, lab in labs.items():
                sent, arrived, trips = list_of(lab.run([bench.load, "udp", lab.host, "5000", str(rate), "2"], client=True))
                found[name, rate].append((sent, 100 - arrived / 1e4, trips))

    count = bench.rounds(budget, 4, one, least=2)
    column = lambda name, rate, k: [x[k] for x in found[name, rate]]  # noqa: E731
    bench.table("UDP", "Datagrams of 1,200 bytes for two seconds at the rate asked for, then round trips of 100 bytes, one at a time, for a second; %d rounds. "
                "Where fewer are sent than asked for, sending itself takes longer." % count, ["", "asked for", "sent a second", "lost, %", "round trips a second"],
                [[name, "{:,}".format(rate), spread(column(name, rate, 0)), spread(column(name, rate, 1), 2), spread(column(name, rate, 2))]
                 for rate in rates for name in names if found[name, rate]])
    for name in ("lrpns relay", "lrpns rootless"):
        if name in labs:
            judge(bench, "f", "%s, lost at 150,000 a second, none" % name, middle(column(name, 150000, 1)), at_most=0, unit=" %")
            judge(bench, "f", "%s, round trips to dnat, at least 0.7" % name, ratio(
                column(name, 50000, 2), column("lrpns dnat", 50000, 2)), at_least=0.7)


def row_g(bench, budget):
    size = os.path.getsize(bench.options.binary) / 1e6
    times = []
    for _ in range(60):
        begun = time.perf_counter()
        subprocess.run([bench.tools + "/lrpns", "--version"], stdout=subprocess.DEVNULL, check=True)
        times.append((time.perf_counter() - begun) * 1e3)
    bench.table("The program", "`lrpns --version` is started from Python, whose own part is in it; 60 times.", ["size", "`lrpns --version`"],
                [["%.1f MB" % size, spread(times, 1, " ms")]])
    judge(bench, "g", "size, less than 6 MB", size, at_most=6, digits=1, unit=" MB")
    judge(bench, "g", "`lrpns --version`, less than 2 ms", middle(times), at_most=2, digits=1, unit=" ms")


# A row, what measures it, and its part of the time in seconds.
ROWS = {
    "a": (row_a, 120),
    "b": (row_b, 300),
    "c": (row_c, 290),
    "d": (row_d, 220),
    "e": (row_e, 100),
    "f": (row_f, 85),
    "g": (row_g, 5),
}


def machine():
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown processor")
    return "%d x %s, Linux %s" % (os.cpu_count(), model, os.uname().release)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--binary", required=True)
    parser.add_argument("--commit", required=True)
    parser.add_argument("--command", required=True)
    parser.add_argument("--write", metavar="FILE")
    options = parser.parse_args()
    load = "%.2f" % os.getloadavg()[0]
    begun = time.monotonic()
    bench = Bench(options)
    # So that a signal ends the labs as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    failed = []
    try:
        for row in options.rows.split(","):
            measure, budget = ROWS[row]
            note("row %s" % row)
            start = time.monotonic()
            try:
                measure(bench, budget)
            except (Unusable, subprocess.SubprocessError, OSError, ValueError) as why:
                # The other rows are still worth their time.
                note("row %s has failed: %s" % (row, why))
                failed.append((row, str(why)))
            bench.end_labs()
            note("row %s took %d seconds" % (row, time.monotonic() - start))
    finally:
        bench.end_labs()
        shutil.rmtree(bench.dir, ignore_errors=True)
    met = sum(goal[3] is True for goal in bench.goals)
    head = ("%s, commit %s, %s, load %s at its begin, %d minutes: `%s`" % (
        time.strftime("%Y-%m-%d"), options.commit, machine(), load, (time.monotonic() - begun) / 60 + 1, options.command))
    goals = markdown("Goals", "%d of %d are met." % (met, len(bench.goals)), ["row", "goal", "figure", "met"], [
        [row, text, figure, {True: "yes", False: "**no**", None: "-"}[good]] for row, text, figure, good in bench.goals])
    print("\n%s\n\n%s" % (head, goals))
    for row, why in failed:
        print("\nRow %s has failed: %s" % (row, why))
    if options.write:
        text = open(options.write).read()
        lines = ["## All rows of one run", "", head, *(x for table in bench.tables for x in ("", markdown(*table))), "", goals,
                 *("\nRow %s has failed: %s" % (row, why) for row, why in failed)]
        begin, end = "<!-- scripts/bench: from here -->\n", "<!-- scripts/bench: to here -->\n"
        part = begin + "\n".join(lines) + "\n" + end
        if begin in text and end in text:
            text = text[:text.index(begin)] + part + text[text.index(end) + len(end):]
        else:
            text = text.rstrip("\n") + "\n\n" + part
        with open(options.write, "w") as file:
            file.write(text)
    sys.exit(1 if failed else 0)


main()

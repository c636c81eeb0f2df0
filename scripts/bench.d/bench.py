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
            raise Unusable("%s: %s" % (" ".join(command[:3]), (done.stderr or done.stdout).strip()[-200:]))
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


def memory(lab, mine=None):
    """(PSS of all but the app, private memory of the supervisors) in MB, by process: what smaps_rollup says."""
    total, private = 0.0, []
    for pid in lab.run(["sh", "-c", "cd /proc && echo [0-9]*"]).split():
        text = lab.run(["sh", "-c", "tr '\\0' ' ' </proc/%s/cmdline; echo; readlink /proc/%s/exe; cat /proc/%s/smaps_rollup" % (pid, pid, pid)], check=False)
        lines = text.splitlines()
        if len(lines) < 4 or not lines[1].startswith(lab.environment["TOOLS"] + "/lrpns") and "lrpns" not in lines[1]:
            continue
        if lines[0].startswith("/webapp"):
            continue
        numbers = dict(re.findall(r"^(\w+):\s+(\d+) kB", text, re.M))
        total += int(numbers["Pss"]) / 1024
        if " up " in lines[0]:
            private.append((int(numbers["Private_Clean"]) + int(numbers["Private_Dirty"])) / 1024)
    return total, private


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
    "b": (row_b, 330),
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

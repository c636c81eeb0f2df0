"""What `faults` runs, in namespaces of its own: see there."""

import json
import os
import random
import signal
import subprocess
import sys
import time

BINARY = sys.argv[1]
KIND = sys.argv[2]
ROUNDS, KILLS, SIGNALS, CYCLES, SEED = map(int, sys.argv[3:])
# Control groups are the machine's: a name that nobody else has.
NAME = "%s-%d" % (KIND, time.time_ns() // 1000 % 10**9)
HOST, PORT, SECOND = "10.77.0.1", 5000, 5001
SIDES = "198.18.0.0/15"  # where lrpns takes its addresses from
PATIENCE = 40
USER = 1000  # who runs a rootless one
LOGS = 8 << 10  # KiB: what a supervisor keeps at most of its apps' lines and of connections (LOG_BYTES, TRAFFIC_BYTES)
FILES = {"one": ([PORT], ""), "two": ([PORT, SECOND], 'rate = "1000/second"'), "other": ([PORT, SECOND], 'env = { A = "1" }')}
TRACES = r"""
echo @links;      ip -o link show | sed 's/^[0-9]*: //'
echo @addresses;  ip -o addr show | sed 's/^[0-9]*: //' | grep -v 'inet6 fe80'
echo @routes;     ip -4 -o route show table all; ip -6 -o route show table all | grep -v 'fe80\|ff00'
echo @rules;      ip rule
echo @neighbours; ip neigh show nud permanent
echo @tables;     nft list ruleset
echo @mounts;     cat /proc/1/mountinfo
echo @namespaces; lsns -n -o NS,TYPE; ip netns list-id
echo @run;        find /run \( -name .ended -o -name .logs -o -name filler \) -prune -o -printf '%p %y %m\n' | grep -v '/lrpns d 700$' | sort
echo @groups;     find /sys/fs/cgroup -type d -name "*$1*"
echo @settings;   cd /proc/sys/net/ipv4 && grep -s . ip_forward ip_nonlocal_bind ip_unprivileged_port_start conf/*/*
"""
CLIENT = """
import socket, sys
print("ready", flush=True)
for line in sys.stdin:
    address, port, ask = line.split()
    try:
        with socket.create_connection((address, int(port)), timeout=float(ask)) as peer:
            peer.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
            said = b""
            while got := peer.recv(4096):
                said += got
            print("served" if b"Hello" in said else "connected", flush=True)
    except OSError as e:
        print("no", flush=True)
"""


class Fault(Exception):
    """What should not have been."""


class Gone(Fault):
    """There is no supervisor."""


def sh(text, *args):
    return subprocess.run(["sh", "-c", text, "sh", *args], stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout


def lrpns(*args, before=(), patience=60, check=False):
    command = [*before, BINARY, *args]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=patience, **CALLER)
    except subprocess.TimeoutExpired as e:
        raise Fault("lrpns %s has not ended in %d s" % (" ".join(args), patience)) from e
    if "panicked" in done.stderr or done.returncode < 0:
        raise Fault("lrpns %s: %d\n%s" % (" ".join(args), done.returncode, done.stderr))
    if check and done.returncode != 0:
        raise Fault("lrpns %s: exit %d\n%s" % (" ".join(args), done.returncode, done.stderr))
    return done


def stat(pid):
    """Its parent and state, or nothing if it is gone."""
    try:
        with open("/proc/%s/stat" % pid) as file:
            fields = file.read().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return int(fields[1]), fields[0]


def processes():
    """Of lrpns: every one in this namespace that is not ours, except the dead."""
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        if pid in OURS:
            continue
        seen = stat(pid)
        if seen and seen[1] not in "ZX":
            found.append(pid)
    return found


def kill(pid, number):
    try:
        os.kill(pid, number)
        return True
    except ProcessLookupError:
        return False


def words(pid):
    try:
        with open("/proc/%d/cmdline" % pid) as file:
            return file.read().replace("\0", " ").replace(BINARY, "lrpns").strip()[:60]
    except OSError:
        return "?"


def probe(address, port, seconds=1.0):
    """As a client in another network namespace: "served", "connected", or "no"."""
    CLIENTS.stdin.write("%s %d %f\n" % (address, port, seconds))
    CLIENTS.stdin.flush()
    return CLIENTS.stdout.readline().strip()


def listening():
    """Ports on which something listens here."""
    ports = set()
    for which in ("tcp", "tcp6", "udp", "udp6"):
        with open("/proc/net/" + which) as file:
            for line in file.readlines()[1:]:
                fields = line.split()
                if fields[3] == ("0A" if which.startswith("tcp") else "07"):
                    ports.add(int(fields[1].rsplit(":", 1)[1], 16))
    return ports


def status():
    done = lrpns("status", NAME, "--json")
    try:
        seen = json.loads(done.stdout)
    except ValueError:
        return None
    return seen if seen.get("supervisor") else None


def traces():
    found, section = {}, ""
    for line in sh(TRACES, NAME).splitlines():
        if line.startswith("@"):
            section = line[1:]
        else:
            found.setdefault(section, []).append(line)
    found["listening"] = [str(port) for port in sorted(listening())]
    found["processes"] = ["%d %s" % (pid, words(pid)) for pid in processes()]
    return found


def until(what, ready, patience=PATIENCE):
    """Until `ready` returns None: before that it says what is missing."""
    end = time.monotonic() + patience
    while (missing := ready()) is not None:
        if time.monotonic() > end:
            raise Fault("%s: not within %d s: %s" % (what, patience, missing))
        time.sleep(0.02)


def clean(why):
    """All is as it was before the first `up`."""

    def left():
        now = traces()
        lines = []
        for section in sorted({*BEFORE, *now}):
            was, has = BEFORE.get(section, []), now.get(section, [])
            lines += ["-%s: %s" % (section, line) for line in was if line not in has]
            lines += ["+%s: %s" % (section, line) for line in has if line not in was]
        return "\n".join(lines) or None

    until("clean after " + why, left)
    closed(why)


def closed(why, address=None):
    for where, port in ((HOST, PORT), (HOST, SECOND)):
        if probe(where, port, 0.3) == "served":
            raise Fault("%s is served after %s" % (port, why))
    if ports := listening():
        raise Fault("after %s something listens on %s" % (why, ports))


def serving(why, beside=True):
    """Every part runs and the client is served; exactly what the plan publishes is open."""
    seen = {}

    def missing():
        now = status()
        if now is None:
            raise Gone("no supervisor after %s" % why)
        seen.update(now)
        states = [(part["name"], part["state"], part.get("turn")) for part in now["parts"]]
        if any(state != "running" or turn for _, state, turn in states) or now.get("closed"):
            return str(states)
        wanted = {int(one["listen"].rsplit(":", 1)[1]) for app in now["plan"]["apps"] for one in app["publish"]}
        if listening() != wanted:
            return "listens on %s, should on %s" % (listening(), wanted)
        for port in (PORT, SECOND):
            answer = probe(HOST, port)
            if answer != ("served" if port in wanted else "no"):
                return "port %d: %s" % (port, answer)
        return None

    until("serving after " + why, missing)
    if beside:
        for address in (seen["plan"]["apps"][0]["address"], seen["plan"]["uplink"]["sidecar_address"]):
            if probe(address, PORT, 0.05) != "no":
                raise Fault("after %s %s answers past what is published" % (why, address))
    return seen


def audit(why):
    done = lrpns("audit", NAME)
    if done.returncode != 0:
        raise Fault("audit after %s: exit %d\n%s%s" % (why, done.returncode, done.stdout, done.stderr))


def up(why="nothing", before=()):
    lrpns("up", "-d", "-f", FILE["one"], before=before, check=True)
    return serving("up after " + why)


def down(why):
    lrpns("down", NAME, check=True)
    clean("down after " + why)


def ended(why):
    """Its supervisor is gone: soon every process of it is, nothing answers, and whoever comes next clears the rest."""
    until("no process after " + why, lambda: ", ".join("%d %s" % (p, words(p)) for p in processes()) or None)
    closed(why)
    way = random.choice(["down", "gc", "up"])
    if way == "up":
        up(why)
    else:
        lrpns(*({"down": ["down", NAME], "gc": ["gc"]}[way]), check=True)
        clean("%s after %s" % (way, why))


def settle(why):
    """It goes on, or ends and leaves nothing."""
    state = {}

    def missing():
        seen = json.loads(lrpns("ps", "--json").stdout or "[]")
        state["is"] = seen[0]["state"] if seen else "gone"
        if state["is"] == "up":
            return None
        # Of `up -d` the one that was killed may not be the one that goes on.
        return state["is"] if state["is"] in ("starting", "stopping") or processes() else None

    until("settled after " + why, missing)
    if state["is"] == "up":
        try:
            serving(why)
        except Gone:
            # It has ended meanwhile: whoever kills a client does not stop what it has asked for.
            ended(why)
    else:
        ended(why)
    return state["is"]


def start(*args, before=()):
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*before, BINARY, *args], **quiet, **CALLER)


def finish(client, what):
    try:
        said = client.communicate(timeout=60)[1]
    except subprocess.TimeoutExpired as e:
        raise Fault("%s hangs" % what) from e
    if "panicked" in said:
        raise Fault("%s: %s" % (what, said))
    return said


COMMANDS = {
    "apply": lambda: ["apply", "-f", FILE[random.choice(list(FILE))]],
    "restart": lambda: ["restart", NAME],
    "restart sidecar": lambda: ["restart", NAME + "/sidecar"],
    "restart relay": lambda: ["restart", NAME + "/relay"],
    "rolling": lambda: ["restart", "--rolling", NAME],
    "down": lambda: ["down", NAME],
    "up": lambda: ["up", "-d", "-f", FILE["one"]],
}


def a_child(of, until_when):
    """The next process that it starts, caught as early as can be."""
    path = "/proc/%d/task/%d/children" % (of, of)
    old, skip = None, random.choice([0, 0, 1, 2, 3])
    while time.monotonic() < until_when:
        try:
            with open(path) as file:
                now = set(file.read().split())
        except OSError:
            return None
        if old is not None and (new := now - old):
            if skip == 0:
                return int(new.pop())
            skip -= 1
        old = now if old is None else old | now
    return None


def killed_in_between():
    """A command, and a process of the stack that is killed at some moment of it."""
    counts, slowest = {}, (0, "")
    for _ in range(KILLS):
        began = time.monotonic()
        seen = status()
        what = random.choice([c for c in COMMANDS if c != "up"]) if seen else "up"
        supervisor = seen["supervisor"] if seen else None
        old = set(processes())
        how = random.choice(["new", "new", "any", "client", "child"])
        client = start(*COMMANDS[what]())
        moment = time.monotonic() + random.random() * random.choice([0.005, 0.02, 0.05, 0.2])
        victim = None
        if how == "child" and (supervisor or what == "up"):
            if supervisor is None:
                while supervisor is None and client.poll() is None:
                    supervisor = next((p for p in processes() if p not in old and p != client.pid), None)
            victim = supervisor and a_child(supervisor, time.monotonic() + 0.3)
        else:
            while time.monotonic() < moment:
                pass
            found = [client.pid] if how == "client" else processes()
            if how == "new":
                found = [pid for pid in found if pid not in old] or found
            victim = random.choice(found) if found else None
        name = words(victim) if victim else "nobody"
        if victim:
            kill(victim, signal.SIGKILL)
        why = "%s, %s killed (%s)" % (what, name, how)
        finish(client, why)
        if what == "down" and client.returncode == 0:
            clean(why)
            became = "gone"
        else:
            became = settle(why)
        slowest = max(slowest, (time.monotonic() - began, why))
        key = "%s: %s" % (what, became)
        counts[key] = counts.get(key, 0) + 1
    return "%s; slowest %.1f s: %s" % (", ".join("%s %d" % one for one in sorted(counts.items())), *slowest)


def fill():
    # Whole pages first, then what is left of them.
    with open("/run/filler", "ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass


def full_run():
    counts = {}
    for what in ["up", "apply", "restart", "rolling", "restart sidecar", "restart relay", "down"]:
        if what == "up":
            if status():
                down("a full /run")
        elif not status():
            up("a full /run")
        fill()
        try:
            client = start(*COMMANDS[what]())
            finish(client, what + " with a full /run")
            counts[what] = client.returncode
            if what == "down" or what == "up" and client.returncode:
                until(what + " with a full /run", lambda: ", ".join(map(words, processes())) or None)
            elif what != "up":
                serving(what + " with a full /run")
        finally:
            os.unlink("/run/filler")
        if status():
            serving(what + " with a full /run, which is over")
        else:
            lrpns("down", NAME, check=True)
            clean(what + " with a full /run")
    up("a full /run")
    fill()
    kill(status()["supervisor"], signal.SIGKILL)
    until("no process", lambda: ", ".join(map(words, processes())) or None)
    done = lrpns("down", NAME)
    os.unlink("/run/filler")
    if done.returncode:
        raise Fault("down with a full /run after a crash: " + done.stderr)
    clean("down of a crashed one with a full /run")
    return ", ".join("%s: exit %d" % one for one in counts.items())


def may_open(pid, descriptors):
    """Whoever is not the same user needs CAP_SYS_RESOURCE, which root in a container may not have."""
    subprocess.run(["prlimit", "--pid", str(pid), "--nofile=%d:" % descriptors], stderr=subprocess.DEVNULL, **CALLER)


def no_descriptors():
    counts = {}
    for limit in [*range(4, 40, 3), 48, 64]:
        client = start("up", "-d", "-f", FILE["one"], before=["prlimit", "--nofile=%d:%d" % (limit, limit)])
        said = finish(client, "up with %d descriptors" % limit)
        if client.returncode == 0:
            serving("up with %d descriptors" % limit)
            lrpns("down", NAME, check=True)
        elif "lrpns: " not in said:
            raise Fault("up with %d descriptors says nothing: %s" % (limit, said))
        else:
            until("no process", lambda: ", ".join(map(words, processes())) or None)
        clean("up with %d descriptors" % limit)
        counts["up %d" % (client.returncode)] = counts.get("up %d" % client.returncode, 0) + 1
    for beyond in (0, 1, 2, 4, 8, 12):
        for what in ["apply", "restart", "rolling", "restart sidecar", "restart relay"]:
            if not status():
                up("no descriptors")
            supervisor = status()["supervisor"]
            with open("/proc/%d/limits" % supervisor) as file:
                usual = next(int(line.split()[3]) for line in file if line.startswith("Max open files"))
            most = max(map(int, os.listdir("/proc/%d/fd" % supervisor))) + 1 + beyond
            may_open(supervisor, most)
            why = "%s with %d descriptors left" % (what, beyond)
            client = start(*COMMANDS[what]())
            # It may wait for the supervisor, which can't accept it before there is a descriptor.
            try:
                client.wait(timeout=1)
            except subprocess.TimeoutExpired:
                pass
            may_open(supervisor, usual)
            finish(client, why)
            became = settle(why)
            key = "%s %d: %s" % (what, client.returncode, became)
            counts[key] = counts.get(key, 0) + 1
    if status():
        audit("no descriptors")
        down("no descriptors")
    return ", ".join("%s %d" % one for one in sorted(counts.items()))


def inside(pid, text):
    return sh('exec nsenter -n -t "$1" sh -c "$2"', str(pid), text)


def taken_away():
    took = []
    # Where, and what is taken. The host's own rules are lrpns' alone: nothing must come of that.
    mine = "for l in $(ip -o link | sed 's/^[0-9]*: \\([^@:]*\\).*/\\1/' | grep -v '^lo$\\|^lan0$'); do ip link %s $l%s; done"
    ways = [("host", "rules", "nft flush ruleset; nft delete table inet lrpns.host; nft delete table netdev lrpns-%s" % NAME)]
    for where in ("host", "relay", "sidecar", "app"):
        ways.append((where, "links", mine % ("del", "")))
        ways.append((where, "links down", mine % ("set", " down")))
        ways.append((where, "rules", "nft flush ruleset"))
        ways.append((where, "routes", "ip route flush table main"))
    for where, what, text in ways:
        seen = status() or up("nothing")
        if where == "host":
            # The client's way here is not lrpns'.
            sh(text + "; ip route replace 10.77.0.0/24 dev lan0 proto kernel src %s" % HOST)
        else:
            pid = next((part["pid"] for part in seen["parts"] if part["name"] == where), None)
            if pid is None or os.readlink("/proc/%d/ns/net" % pid) == os.readlink("/proc/self/ns/net"):
                continue
            inside(pid, text)
        why = "the %s's %s" % (where, what)
        # Whether it is served now is its own matter; past what is published nothing is.
        for address in (seen["plan"]["apps"][0]["address"], seen["plan"]["uplink"]["sidecar_address"]):
            if probe(address, PORT, 0.05) != "no":
                raise Fault("%s answers past what is published after %s" % (address, why))
        served = probe(HOST, PORT, 0.5)
        if where == "host" and what == "rules" and served != "served":
            raise Fault("%s reached lrpns' own rules" % why)
        way = random.choice(["down", "kill"])
        if way == "kill":
            kill(seen["supervisor"], signal.SIGKILL)
            until("no process after " + why, lambda: ", ".join(map(words, processes())) or None)
        took.append("%s: %s" % (why, served))
        lrpns("down", NAME, check=True)
        clean("down after " + why)
    return "; ".join(took)


def stopped():
    for who in ("supervisor", "sidecar", "relay", "app", "all"):
        seen = status() or up("nothing")
        if who == "supervisor":
            whom = [seen["supervisor"]]
        elif who == "all":
            whom = processes()
        else:
            whom = [p["init"] for p in seen["parts"] if p["name"] == who]
        for pid in whom:
            kill(pid, signal.SIGSTOP)
        if who in ("supervisor", "all"):
            for command in (["restart", NAME], ["apply", "-f", FILE["two"]], ["up", "-d", "-f", FILE["one"]]):
                done = lrpns(*command)
                if done.returncode == 0 or "hint:" not in done.stderr:
                    raise Fault("%s with a stopped supervisor: exit %d %s" % (command, done.returncode, done.stderr))
        begun = time.monotonic()
        lrpns("down", NAME, check=True)
        took = time.monotonic() - begun
        clean("down with %s stopped" % who)
        if took > 30:
            raise Fault("down with %s stopped took %d s" % (who, took))
    return "supervisor, each part, all: ended by down"


def storm():
    sent, ups, gone = 0, 0, 0
    client, begun = None, time.monotonic()
    # SIGKILL ends most of it at once, so it is not sent more often than each other.
    numbers = [n for n in signal.valid_signals() if n != signal.SIGCHLD]
    while sent < SIGNALS:
        wait = begun + sent * 0.06 - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        if client is None:
            what = random.choice(list(COMMANDS))
            client = start(*COMMANDS[what]())
            ups += 1
        elif client.poll() is not None:
            client.communicate()
            client = None
        found = processes()
        if not found:
            gone += 1
        else:
            kill(random.choice(found), random.choice(numbers))
        sent += 1
    if client is not None:
        kill(client.pid, signal.SIGCONT)
        kill(client.pid, signal.SIGKILL)
        client.communicate()
    took = time.monotonic() - begun
    if random.random() < 0.5:
        lrpns("down", NAME, check=True)
        clean("a storm")
    else:
        done = lrpns("up", "-d", "-f", FILE["one"])
        if done.returncode != 0:
            # It runs, or was stopped: then it says how to go on.
            if "hint:" not in done.stderr:
                raise Fault("up after a storm: " + done.stderr)
            lrpns("down", NAME, check=True)
            clean("a storm")
            lrpns("up", "-d", "-f", FILE["one"], check=True)
        serving("a storm")
        audit("a storm")
        down("a storm")
    return "%d signals in %d s, %d commands, %d times nobody was there" % (sent, took, ups, gone)


def numbers_of(pid):
    with open("/proc/%d/status" % pid) as file:
        kilobytes = next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
    return len(os.listdir("/proc/%d/fd" % pid)), kilobytes


def used():
    at = os.statvfs("/run")
    return (at.f_blocks - at.f_bfree) * at.f_bsize


def cycles():
    """Many starts and ends, and many changes of one that stays: neither leaves anything."""
    lrpns("up", "-d", "-f", FILE["one"], check=True)
    lrpns("down", NAME, check=True)
    clean("one cycle")
    before, began = used(), time.monotonic()
    for _ in range(CYCLES):
        lrpns("up", "-d", "-f", FILE["one"], check=True)
        lrpns("restart", NAME, check=True)
        lrpns("down", NAME, check=True)
    took = time.monotonic() - began
    clean("%d cycles" % CYCLES)
    if used() > before:
        raise Fault("%d bytes more of /run are in use" % (used() - before))
    supervisor = up()["supervisor"]

    def change(times):
        for turn in range(times):
            lrpns("apply", "-f", FILE["two" if turn % 2 else "one"], check=True)
            lrpns("restart", "--rolling", NAME, check=True)
            lrpns("restart", NAME, check=True)
        lrpns("apply", "-f", FILE["one"], check=True)
        return serving("changes")

    # As much as it will have at most: until then it grows.
    change(max(20, CYCLES // 10))
    first = numbers_of(supervisor)
    seen = change(CYCLES // 4)
    if seen["supervisor"] != supervisor:
        raise Fault("it has another supervisor")
    last = numbers_of(supervisor)
    if last[0] > first[0] or last[1] > first[1] + LOGS + 1024:
        raise Fault("the supervisor had %d descriptors and %d KiB, has %d and %d" % (*first, *last))
    down("changes")
    return "%d in %d s; the supervisor before %d changes: %d descriptors, %d KiB; after: %d, %d" % (CYCLES, took, CYCLES // 4 * 3, *first, *last)


def main():
    failed = 0
    for name, (ports, more) in FILES.items():
        with open(FILE[name], "w") as file:
            publish = ", ".join('"0.0.0.0:%d:5000"' % port for port in ports)
            file.write(
                'name = "%s"\n[app]\nrootfs = "builtin:webapp"\ncommand = ["/webapp"]\nenv = { PORT = "5000" }\nvia = "%s"\n'
                'publish = [%s]\nrestart = "always"\n%s\n'
                % (NAME, "dnat" if KIND == "dnat" else "relay", publish, "" if "env" in more else more)
            )
    steps = [killed_in_between, full_run, no_descriptors, taken_away, stopped, *([storm] if SIGNALS else [])]
    for number in range(1, ROUNDS + 1 + bool(CYCLES)):
        for step in steps if number <= ROUNDS else [cycles]:
            random.seed("%d %s %d %s" % (SEED, KIND, number, step.__name__))
            begun = time.monotonic()
            try:
                said = step()
                if status():
                    audit(step.__name__)
                    down(step.__name__)
                else:
                    lrpns("down", NAME, check=True)
                    clean(step.__name__)
                word = "ok"
            except Fault as fault:
                failed += 1
                word, said = "FAILED", str(fault)
                said += "\n" + sh("ps -eo pid,ppid,stat,wchan:20,args | grep -v 'python3\|faults.py'") + lrpns("logs", NAME, "-n", "15").stdout[-3000:]
                for pid in processes():
                    kill(pid, signal.SIGKILL)
                until("nobody", lambda: processes() or None)
                lrpns("down", NAME)
            print("%-8s %d %-18s %-6s %4.0f s  %s" % (KIND, number, step.__name__, word, time.monotonic() - begun, said), flush=True)
            if word != "ok":
                clean("a failure, by force")
    return 1 if failed else 0


FILE = {name: "/run/%s.toml" % name for name in FILES}
CLIENTS = subprocess.Popen(["unshare", "-n", sys.executable, "-c", CLIENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
CLIENTS.stdout.readline()
OURS = {1, os.getpid(), CLIENTS.pid}
CALLER = {}
if KIND == "rootless":
    PLACES = {"HOME": "/run/home", "XDG_RUNTIME_DIR": "/run/user", "XDG_STATE_HOME": "/var/log/user"}
    CALLER = {"user": USER, "group": USER, "extra_groups": [], "env": {"PATH": os.environ["PATH"], **PLACES}}
    for name in PLACES.values():
        os.mkdir(name, 0o700)
        os.chown(name, USER, USER)
sh(
    'ip link add lan0 type veth peer name lan netns "$1"; ip addr add "$2/24" dev lan0; ip link set lan0 up;'
    'nsenter -n -t "$1" sh -c "ip addr add 10.77.0.2/24 dev lan; ip link set lan up; ip route add $3 via $2"',
    str(CLIENTS.pid), HOST, SIDES,
)
for name in FILES:
    open(FILE[name], "w").close()
until("the link", lambda: None if "state UP" in sh("ip link show lan0") else "down", 10)
BEFORE = traces()
sys.exit(main())

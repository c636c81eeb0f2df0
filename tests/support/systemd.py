# As much of systemd as a unit with a socket unit and a store for descriptors sees (sd_listen_fds(3), sd_notify(3)), played
# for `lrpns up`. It does what its standard input says, a line each, and answers each with a line.
import array, fcntl, json, os, select, signal, socket, sys, threading

lrpns = sys.argv[1]
handed, stored, told = [], {}, []
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.bind("notify")
heard = threading.Condition()

def hear():
    while True:
        text, control, _, _ = notify.recvmsg(65536, socket.CMSG_SPACE(253 * 4))
        fds = array.array("i")
        for _, _, data in control:
            fds.frombytes(data)
        said = dict(line.split("=", 1) for line in text.decode().splitlines())
        with heard:
            if "FDSTORE" in said:
                for fd in fds:
                    for old in stored.pop(said["FDNAME"], []):
                        os.close(old)
                    stored.setdefault(said["FDNAME"], []).append(fd)
            if "FDSTOREREMOVE" in said:
                for fd in stored.pop(said["FDNAME"], []):
                    os.close(fd)
            told.append(said)
            heard.notify_all()

threading.Thread(target=hear, daemon=True).start()

def hung_up():
    # It drops what hangs up.
    for name in list(stored):
        poll = select.poll()
        for fd in stored[name]:
            poll.register(fd, 0)
        if poll.poll(0):
            for fd in stored.pop(name):
                os.close(fd)

def unit(kind, address, port, name):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[kind])
    if kind == "tcp":
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, int(port)))
    if kind == "tcp":
        made.listen(100)
    handed.append((made.fileno(), name, made))
    return "ok"

child = None
def start(*more):
    global child
    with heard:
        hung_up()
        told.clear()
        given = [(fd, name) for fd, name, _ in handed]
        given += [(fd, name) for name, fds in stored.items() for fd in fds]
        copies = [fcntl.fcntl(fd, fcntl.F_DUPFD, 200) for fd, _ in given]
    out = os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    child = os.fork()
    if child == 0:
        os.dup2(os.open("/dev/null", os.O_RDWR), 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        for number, fd in enumerate(copies):
            os.dup2(fd, 3 + number)
        os.closerange(3 + len(copies), 400)
        pid = str(os.getpid())
        own = {"PATH": os.environ["PATH"], "NOTIFY_SOCKET": os.path.abspath("notify"), "SYSTEMD_EXEC_PID": pid}
        flags = [item for item in more if item.startswith("--")]
        own |= dict(item.split("=", 1) for item in more if item not in flags)
        if given:
            own |= {"LISTEN_PID": pid, "LISTEN_FDS": str(len(given)), "LISTEN_FDNAMES": ":".join(name for _, name in given)}
        os.execve(lrpns, [lrpns, "up", "-f", "stack.toml", *flags], own)
    for fd in [out, *copies]:
        os.close(fd)
    threading.Thread(target=watch, args=(os.pidfd_open(child), child), daemon=True).start()
    with heard:
        heard.wait_for(lambda: any("READY" in said or said.get("END") == child for said in told))
        if any("READY" in said for said in told):
            return "ready"
    return ended()

def watch(end, number):
    select.select([end], [], [])
    os.close(end)
    with heard:
        told.append({"END": number})
        heard.notify_all()

def ended():
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return json.dumps({"code": code, "said": open("said").read()})

def stop(number):
    os.kill(child, int(number))
    return ended()

def store():
    with heard:
        hung_up()
        return " ".join(sorted(stored))

for line in sys.stdin:
    words = line.split()
    print({"unit": unit, "start": start, "stop": stop, "ended": ended, "store": store}[words[0]](*words[1:]), flush=True)

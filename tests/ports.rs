//! What can be published and to whom, with real clients in a namespace of their own: ranges of ports, UDP, `allow` and
//! `rate`; each by DNAT and by relay.
#![allow(clippy::unwrap_used)]

mod support;
use std::io::{BufRead, BufReader, Write};

use serde_json::Value;
use support::lab::{LAB, Lab, describe};
use support::look::{self, PYTHON};

/// A server that answers on many ports: by TCP with a line, by UDP with whom it sees, the port and what it was sent.
const MANY: &str = r#"
import os, selectors, socket, sys
token = os.environ["TOKEN"]
ready = selectors.DefaultSelector()
for argument in sys.argv[1:]:
    protocol, first, last = argument.split(",")
    for port in range(int(first), int(last) + 1):
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        s = socket.socket(socket.AF_INET, kind)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        s.bind(("0.0.0.0", port))
        if protocol == "tcp":
            s.listen(1024)
        ready.register(s, selectors.EVENT_READ, (protocol, port))
while True:
    for key, _ in ready.select():
        protocol, port = key.data
        if protocol == "tcp":
            client, peer = key.fileobj.accept()
            client.sendall(f"{token} {peer[0]} {port}".encode())
            client.close()
        else:
            sent, peer = key.fileobj.recvfrom(65536)
            key.fileobj.sendto(f"{token} {peer[0]} {port} ".encode() + sent[64:] if len(sent) > 60000 else
                               f"{token} {peer[0]} {port} ".encode() + sent, peer)
"#;

/// A stack whose app is [`MANY`] on `ports`, published as `publish`, with `more` lines for the app.
fn many(token: &str, ports: &[&str], publish: &[&str], more: &str) -> String {
    let command = [&[PYTHON, "-c", MANY], ports].concat();
    format!(
        "name = \"web\"\n[network]\nsubnet = \"172.18.0.0/24\"\n[sidecar]\naddress = \"172.18.0.33\"\n\
         [app]\naddress = \"172.18.0.23\"\nrootfs = \"host\"\ncommand = {}\nenv = {{ TOKEN = \"{token}\" }}\n\
         publish = {}\n{more}\n",
        look::toml_list(&command),
        look::toml_list(publish)
    )
}

/// Both ways a port is published, each in a lab of its own that forwards.
fn both_ways(
    token: &str,
    ports: &[&str],
    publish: &[&str],
    more: &str,
) -> Vec<(Lab, &'static str, String)> {
    ["relay", "dnat"]
        .into_iter()
        .map(|via| {
            let lab = Lab::forwarding();
            let more = format!("via = \"{via}\"\n{more}");
            let said = look::up(&lab, &many(token, ports, publish, &more));
            let status = lab.status("web");
            assert_eq!(look::planned(&status, "/apps/0/publish/0/via"), via);
            look::settle(&lab, &status);
            opened(&lab, &status, ports);
            (lab, via, said)
        })
        .collect()
}

/// Waits until [`MANY`] has opened the last of its ports: `up` does not wait for those of a range.
fn opened(lab: &Lab, status: &Value, ports: &[&str]) {
    let pid = look::pid(status, "app");
    for argument in ports {
        let mut fields = argument.split(',');
        let table = format!("net/{}", fields.next().unwrap());
        let last: u16 = fields.next_back().unwrap().parse().unwrap();
        support::lab::until("the app has opened its ports", || {
            let listed = lab.proc(pid, &table).contains(&format!(":{last:04X} "));
            listed.then_some(())
        });
    }
}

/// Runs Python in the client's namespace, or in the lab; it must succeed.
fn python(lab: &Lab, from_client: bool, script: &str, arguments: &[&str]) -> String {
    let command = [&[PYTHON, "-c", script], arguments].concat();
    let output = if from_client {
        lab.client(&command)
    } else {
        lab.run(&command)
    };
    assert!(output.status.success(), "{}", describe(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Asks every port of a range by TCP, and prints who answered.
const ASK_TCP: &str = r#"
import socket, sys
host, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for port in range(first, last + 1):
    with socket.create_connection((host, port), timeout=10) as s:
        print(s.makefile().read())
"#;

#[test]
fn a_range_of_ports_is_published_port_by_port() {
    if !look::machine() {
        return;
    }
    let token = look::token();
    let ways = both_ways(
        &token,
        &["tcp,9000,9199"],
        &["0.0.0.0:8000-8199:9000-9199/tcp"],
        "",
    );
    for (lab, via, said) in ways {
        assert!(
            said.contains(&format!("0.0.0.0:8000-8199 -> app port 9000-9199 by {via}")),
            "{said}"
        );
        for (from_client, host) in [(true, LAB), (false, LAB), (false, "127.0.0.1")] {
            let answers = python(&lab, from_client, ASK_TCP, &[host, "8000", "8199"]);
            let ports: Vec<_> = answers
                .lines()
                .map(|line| line.strip_prefix(&format!("{token} 172.18.0.33 ")).unwrap())
                .collect();
            let expected: Vec<_> = (9000..9200).map(|port| port.to_string()).collect();
            assert_eq!(ports, expected, "{via} {host}");
        }
        for port in [7999, 8200, 9000] {
            let refused = lab.client_get(&format!("http://{LAB}:{port}/"));
            assert_eq!(refused, Err(7), "{via} {port}");
        }
        let status = lab.lrpns_ok(&["status", "-v", "web"]);
        assert_eq!(status.matches("publish ").count(), 1, "{status}");
        assert!(status.contains("publish 0.0.0.0:8000-8199/tcp -> app 172.18.0.23:9000-9199"));
        let plans = lab.lrpns_ok(&["ps", "--json"]);
        let plans: Value = serde_json::from_str(&plans).unwrap();
        assert_eq!(plans[0]["published"][0], "0.0.0.0:8000-8199");
    }
}

/// Sends datagrams of the sizes given as arguments, from one socket, and prints each answer's source, head and length.
const ASK_UDP: &str = r#"
import socket, sys
host, port = sys.argv[1], int(sys.argv[2])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(10)
for size in map(int, sys.argv[3:]):
    sent = bytes(i % 251 for i in range(size))
    s.sendto(sent, (host, port))
    got, source = s.recvfrom(65536)
    token, peer, served, rest = got.split(b" ", 3)
    expected = sent[64:] if size > 60000 else sent
    print(source[0], source[1], token.decode(), peer.decode(), served.decode(), rest == expected)
"#;

#[test]
fn datagrams_of_any_size_are_answered_from_the_address_that_they_were_sent_to() {
    if !look::machine() {
        return;
    }
    let token = look::token();
    for (lab, via, _) in both_ways(&token, &["udp,5300,5300"], &["0.0.0.0:53:5300/udp"], "") {
        // A second address, which no route prefers.
        lab.ok(&["ip", "address", "add", "10.99.0.7/24", "dev", "ext0"]);
        for (from_client, host) in [
            (true, LAB),
            (true, "10.99.0.7"),
            (false, LAB),
            (false, "10.99.0.7"),
            (false, "127.0.0.1"),
            (false, "127.8.8.8"),
        ] {
            let sizes = ["0", "1", "512", "1472", "1473", "9000", "65507"];
            let answers = python(
                &lab,
                from_client,
                ASK_UDP,
                &[&[host, "53"], &sizes[..]].concat(),
            );
            let expected = format!("{host} 53 {token} 172.18.0.33 5300 True\n").repeat(sizes.len());
            assert_eq!(answers, expected, "{via} {host}");
        }
        let status = lab.lrpns_ok(&["status", "-v", "web"]);
        assert!(
            status.contains(&format!(
                "publish 0.0.0.0:53/udp -> app 172.18.0.23:5300 by {via}"
            )),
            "{status}"
        );
    }
}

/// A server that answers each datagram with its own, and one that begins with `G` with ten at once.
const ECHO_UDP: &str = r#"
import socket, struct
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
s.bind(("0.0.0.0", 5300))
while True:
    got, peer = s.recvfrom(65536)
    if got[:1] == b"G":
        s.sendmsg([bytes([i // 1200 % 251 for i in range(11500)])], [(17, 103, struct.pack("H", 1200))], 0, peer)
    else:
        s.sendto(got, peer)
"#;

/// Sends a burst from two sockets in turn, some of it as one packet of many datagrams, says so, and looks at what comes back
/// when it is told to.
const BURST_UDP: &str = r#"
import socket, struct, sys
host = sys.argv[1]
sizes = [1200] * 40 + [300] + [1200] * 3 + [0] + [1] * 5 + [9000, 1473, 1472, 1472, 1471] + [1400] * 20 + [20000, 3]
clients = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
for number, s in enumerate(clients):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    s.connect((host, 53))
    s.settimeout(10)
def datagram(number, i, size):
    return (b"%d %d " % (number, i) + bytes(size))[:size]
# Runs of one flow, broken by the other one.
turn = [0, 0, 0, 0, 0, 0, 1, 1, 0, 1]
sent = [[], []]
for i, size in enumerate(sizes):
    number = turn[i % len(turn)]
    data = datagram(number, i, size)
    clients[number].send(data)
    # What a rule drops.
    if size != 1 or len(sys.argv) < 3:
        sent[number].append(data)
whole = b"".join(b"%d" % i + bytes(998) for i in range(9)) + b"end"
clients[0].sendmsg([whole], [(17, 103, struct.pack("H", 999))])
sent[0] += [whole[at:at + 999] for at in range(0, len(whole), 999)]
clients[1].send(b"GO")
many = bytes([i // 1200 % 251 for i in range(11500)])
sent[1] += [many[at:at + 1200] for at in range(0, len(many), 1200)]
print("sent", flush=True)
sys.stdin.readline()
for number, s in enumerate(clients):
    got = [s.recv(65536) for _ in sent[number]]
    assert got == sent[number], (number, [len(x) for x in got], [len(x) for x in sent[number]])
print("all", sum(map(len, sent)), flush=True)
"#;

#[test]
fn a_burst_of_datagrams_arrives_as_it_was_sent_and_in_order() {
    if !look::machine() {
        return;
    }
    // Rules of the user's see each datagram: those of one byte are dropped, also where two of a flow come together.
    let rules = "chain before {\n  udp length 9 drop\n}\n";
    for (more, dropped) in [("", false), ("rules = \"extra.nft\"", true)] {
        let lab = Lab::new();
        lab.write("extra.nft", rules);
        let command = look::toml_list(&[PYTHON, "-c", ECHO_UDP]);
        let file = format!(
            "name = \"web\"\n[sidecar]\n{more}\n[app]\nrootfs = \"host\"\ncommand = {command}\npublish = [\"0.0.0.0:53:5300/udp\"]\n"
        );
        look::up(&lab, &file);
        let relay = look::pid(&lab.status("web"), "relay");
        for from_client in [true, false] {
            // So that all of it waits for the relay together.
            lab.kill("STOP", &relay.into());
            let mut command = vec![PYTHON, "-c", BURST_UDP, LAB];
            command.extend(dropped.then_some("dropped"));
            if from_client {
                command.splice(..0, ["ip", "netns", "exec", "client"]);
            }
            let mut burst = lab.spawn(&command);
            let mut said = BufReader::new(burst.stdout.take().unwrap()).lines();
            let sent = said.next().map(Result::unwrap);
            lab.kill("CONT", &relay.into());
            assert_eq!(sent.as_deref(), Some("sent"));
            burst.stdin.take().unwrap().write_all(b"\n").unwrap();
            let all = said.next().map(Result::unwrap);
            let output = burst.wait_with_output().unwrap();
            let expected = if dropped { "all 92" } else { "all 97" };
            assert_eq!(all.as_deref(), Some(expected), "{}", describe(&output));
        }
    }
}

#[test]
fn a_port_may_be_published_by_both_protocols_to_different_ports() {
    if !look::machine() {
        return;
    }
    let token = look::token();
    let publish = ["0.0.0.0:53:5301/tcp", "0.0.0.0:53:5302/udp"];
    for (lab, via, _) in both_ways(&token, &["tcp,5301,5301", "udp,5302,5302"], &publish, "") {
        let tcp = python(&lab, true, ASK_TCP, &[LAB, "53", "53"]);
        assert_eq!(tcp.trim(), format!("{token} 172.18.0.33 5301"), "{via}");
        let udp = python(&lab, true, ASK_UDP, &[LAB, "53", "5"]);
        assert_eq!(
            udp.trim(),
            format!("{LAB} 53 {token} 172.18.0.33 5302 True"),
            "{via}"
        );
    }
}

/// Asks a DNS server from many sockets for names that differ, a question at a time on each, none twice; then, for every
/// line on standard input, the same from the same sockets. Prints how many right answers there were.
const ASK_DNS: &str = r#"
import selectors, socket, struct, sys
host, port, sockets, each = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
address = socket.inet_aton("192.0.2.7")
ready = selectors.DefaultSelector()
def ask(s, number):
    name = b"".join(bytes([len(l)]) + l for l in (b"q%d" % number, b"test")) + b"\0"
    s.send(struct.pack(">6H", number & 0xffff, 0x100, 1, 0, 0, 0) + name + struct.pack(">2H", 1, 1))
    return name
all = []
for i in range(sockets):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.connect((host, port))
    all.append(s)
def round():
    right = 0
    for i, s in enumerate(all):
        ready.register(s, selectors.EVENT_READ, [0, i * each, ask(s, i * each)])
    while ready.get_map():
        events = ready.select(timeout=10)
        if not events:
            break
        for key, _ in events:
            state, s = key.data, key.fileobj
            got = s.recv(4096)
            right += (got[:2] == struct.pack(">H", state[1] & 0xffff) and state[2] in got and got.endswith(address))
            state[0] += 1
            if state[0] == each:
                ready.unregister(s)
            else:
                state[1] += 1
                state[2] = ask(s, state[1])
    for key in list(ready.get_map().values()):
        ready.unregister(key.fileobj)
    print(right, flush=True)
round()
for line in sys.stdin:
    round()
"#;

/// Knows all names of one domain by itself, and asks nobody.
const UNBOUND: &str = r#"
server:
  interface-automatic: yes
  port: 5300
  do-ip6: no
  username: ""
  chroot: ""
  directory: ""
  pidfile: ""
  use-syslog: no
  do-daemonize: no
  do-not-query-localhost: yes
  module-config: "iterator"
  access-control: 0.0.0.0/0 allow
  so-rcvbuf: 0
  local-zone: "test." redirect
  local-data: "test. 60 IN A 192.0.2.7"
remote-control:
  control-enable: no
"#;

#[test]
fn a_dns_server_answers_ten_thousand_queries_and_the_same_sockets_again_after_its_restart() {
    if !look::machine_with(&["unbound"]) {
        return;
    }
    // It binds TCP's port as well, and ends if it can't, published or not.
    let both = r#""0.0.0.0:53:5300/udp", "0.0.0.0:53:5300/tcp""#;
    for (via, publish) in [("dnat", both), ("relay", r#""0.0.0.0:53:5300/udp""#)] {
        let lab = Lab::forwarding();
        let config = lab.write("unbound.conf", UNBOUND);
        let command = look::toml_list(&["unbound", "-d", "-c", "/srv/unbound.conf"]);
        look::up(
            &lab,
            &format!(
                "name = \"dns\"\n[app]\nrootfs = \"host\"\ncommand = {command}\nvia = \"{via}\"\n\
                 publish = [{publish}]\nvolumes = [\"{}:/srv/unbound.conf\"]\n",
                config.display()
            ),
        );
        // As many at a time as the server's own socket has room for: net.core.rmem_default.
        let mut asking = lab.spawn(&[
            "ip", "netns", "exec", "client", PYTHON, "-c", ASK_DNS, LAB, "53", "50", "200",
        ]);
        let mut told = std::io::BufReader::new(asking.stdout.take().unwrap());
        let mut answers = || {
            let mut line = String::new();
            std::io::BufRead::read_line(&mut told, &mut line).unwrap();
            line
        };
        assert_eq!(answers(), "10000\n", "{via}");
        for part in ["app", "relay", "sidecar"] {
            lab.lrpns_ok(&["restart", "dns", part]);
            std::io::Write::write_all(asking.stdin.as_mut().unwrap(), b"again\n").unwrap();
            assert_eq!(answers(), "10000\n", "{via}, {part} was restarted");
        }
        drop(asking.stdin.take());
        assert!(asking.wait().unwrap().success());
    }
}

/// Asks by TCP and UDP from a source address of one's own, and prints what came of each.
const ASK_AS: &str = r#"
import socket, sys
source, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
def tell(kind, ask):
    with socket.socket(socket.AF_INET, kind) as s:
        s.bind((source, 0))
        s.settimeout(float(sys.argv[4]))
        try:
            s.connect((host, port))
            print(ask(s))
        except OSError as e:
            print(type(e).__name__)
tell(socket.SOCK_STREAM, lambda s: "served" if s.recv(100) else "end")
tell(socket.SOCK_DGRAM, lambda s: (s.send(b"x"), s.recv(100)) and "served")
"#;

#[test]
fn only_clients_of_the_ranges_allowed_are_served_and_of_the_others_the_app_hears_nothing() {
    if !look::machine() {
        return;
    }
    let token = look::token();
    let publish = ["0.0.0.0:8000:9000/tcp", "0.0.0.0:8000:9000/udp"];
    let allow = "allow = [\"10.99.0.3\", \"10.99.0.128/25\"]";
    for (lab, via, _) in both_ways(&token, &["tcp,9000,9000", "udp,9000,9000"], &publish, allow) {
        for address in ["10.99.0.3", "10.99.0.4", "10.99.0.127", "10.99.0.128"] {
            let address = format!("{address}/24");
            let add = ["ip", "address", "add", &address, "dev", "eth0"];
            assert!(lab.client(&add).status.success());
        }
        let ask = |from_client, source, host| {
            // Only who is refused waits for so long.
            python(&lab, from_client, ASK_AS, &[source, host, "8000", "1"])
        };
        for served in ["10.99.0.3", "10.99.0.128"] {
            assert_eq!(ask(true, served, LAB), "served\nserved\n", "{via} {served}");
        }
        let status = lab.status("web");
        let sidecar = Some(look::init(&status, "sidecar"));
        let before = look::counters(&lab, sidecar, "lrpns");
        // The relay resets what it has accepted, the rules drop.
        let refused = match via {
            "relay" => "ConnectionResetError\nTimeoutError\n",
            _ => "TimeoutError\nTimeoutError\n",
        };
        for other in ["10.99.0.2", "10.99.0.4", "10.99.0.127"] {
            assert_eq!(ask(true, other, LAB), refused, "{via} {other}");
        }
        // The host itself is a client as any other, and not in the list; its connections are relayed.
        let refused = "ConnectionResetError\nTimeoutError\n";
        for (source, host) in [("127.0.0.1", "127.0.0.1"), (LAB, LAB)] {
            assert_eq!(ask(false, source, host), refused, "{via} {host}");
        }
        let counted = look::since(&before, &look::counters(&lab, sidecar, "lrpns"));
        let dropped = counted.get("forward/drop-not-allowed").copied();
        // Three datagrams, and a SYN or more from each.
        assert!(
            if via == "dnat" {
                dropped >= Some(6)
            } else {
                dropped.is_none()
            },
            "{counted:?}"
        );
        assert!(
            !counted.contains_key("forward/accept-published"),
            "{counted:?}"
        );
        assert!(
            !counted.contains_key("forward/accept-published-udp"),
            "{counted:?}"
        );
    }
}

#[test]
fn a_live_change_of_allow_counts_for_the_next_connection() {
    if !look::machine() {
        return;
    }
    let token = look::token();
    let publish = ["0.0.0.0:8000:9000/tcp", "0.0.0.0:8000:9000/udp"];
    let ports = ["tcp,9000,9000", "udp,9000,9000"];
    for (lab, via, _) in both_ways(&token, &ports, &publish, "allow = [\"10.99.0.3\"]") {
        let ask = || python(&lab, true, ASK_AS, &["10.99.0.2", LAB, "8000", "1"]);
        assert!(!ask().contains("served"), "{via}");
        let more = format!("via = \"{via}\"\nallow = [\"10.99.0.2\", \"192.0.2.0/24\"]");
        let file = lab.write("changed.toml", &many(&token, &ports, &publish, &more));
        lab.lrpns_ok(&["apply", "-f", file.to_str().unwrap()]);
        assert_eq!(ask(), "served\nserved\n", "{via}");
    }
}

/// Begins connections, then flows, one after another, and prints how many were served of each; then asks once more by the
/// first flow.
const BEGIN: &str = r#"
import socket, sys
source, host, port, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
def begin(kind):
    s = socket.socket(socket.AF_INET, kind)
    s.bind((source, 0))
    s.settimeout(1)
    try:
        s.connect((host, port))
    except OSError:
        pass
    return s
def served(s, kind):
    try:
        if kind == socket.SOCK_DGRAM:
            s.send(b"x")
        return len(s.recv(100)) > 0
    except OSError:
        return False
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    all = [begin(kind) for _ in range(count)]
    print(sum(served(s, kind) for s in all))
print(served(all[0], socket.SOCK_DGRAM))
"#;

#[test]
fn of_more_new_connections_than_the_rate_the_rest_are_refused_for_each_client_or_for_all() {
    if !look::machine() {
        return;
    }
    // The number of connections served, of flows, and whether the first flow goes on; of the first client and the next.
    for (rate, first, second) in [
        ("5/hour per client", "4\n1\nTrue\n", "4\n1\nTrue\n"),
        ("5/hour", "4\n1\nTrue\n", "0\n0\nFalse\n"),
    ] {
        let token = look::token();
        let publish = ["0.0.0.0:8000:9000/tcp", "0.0.0.0:8000:9000/udp"];
        let rate = format!("rate = \"{rate}\"");
        let ports = ["tcp,9000,9000", "udp,9000,9000"];
        for (lab, via, _) in both_ways(&token, &ports, &publish, &rate) {
            let add = ["ip", "address", "add", "10.99.0.3/24", "dev", "eth0"];
            assert!(lab.client(&add).status.success());
            let status = lab.status("web");
            let sidecar = Some(look::init(&status, "sidecar"));
            let before = look::counters(&lab, sidecar, "lrpns");
            for (source, expected) in [("10.99.0.2", first), ("10.99.0.3", second)] {
                let answer = python(&lab, true, BEGIN, &[source, LAB, "8000", "4"]);
                assert_eq!(answer, expected, "{via} {rate} {source}");
            }
            let counted = look::since(&before, &look::counters(&lab, sidecar, "lrpns"));
            let refused = counted.contains_key("forward/drop-rate-app");
            assert_eq!(refused, via == "dnat", "{counted:?}");
            assert!(
                !counted.contains_key("forward/drop-crowd-app"),
                "{counted:?}"
            );
        }
    }
}

/// The relay's own connections come from one address, and are not counted again.
#[test]
fn what_the_relay_has_let_in_no_rule_counts_again() {
    if !look::machine() {
        return;
    }
    let token = look::token();
    let lab = Lab::forwarding();
    let publish = ["0.0.0.0:8000:9000/tcp"];
    let more = "via = \"dnat\"\nrate = \"5/hour per client\"";
    look::up(&lab, &many(&token, &["tcp,9000,9000"], &publish, more));
    // The host's own addresses are clients of the relay, one by one.
    for source in ["127.0.0.1", "127.0.0.2", "127.0.0.3"] {
        let answer = python(&lab, false, BEGIN, &[source, "127.0.0.1", "8000", "9"]);
        assert!(answer.starts_with("5\n"), "{source}: {answer}");
    }
}

#[test]
fn clients_that_there_is_no_room_to_count_are_counted_together_and_the_others_as_before() {
    if !look::machine() {
        return;
    }
    let token = look::token();
    let lab = Lab::forwarding();
    let publish = ["0.0.0.0:8000:9000/tcp"];
    let more = "via = \"dnat\"\nrate = \"5/hour per client\"";
    look::up(&lab, &many(&token, &["tcp,9000,9000"], &publish, more));
    for address in ["10.99.0.3/24", "10.99.0.4/24"] {
        let add = ["ip", "address", "add", address, "dev", "eth0"];
        assert!(lab.client(&add).status.success());
    }
    let begin = |source: &str, count: &str| -> u32 {
        let answer = python(&lab, true, BEGIN, &[source, LAB, "8000", count]);
        answer.lines().next().unwrap().parse().unwrap()
    };
    assert_eq!(begin("10.99.0.2", "3"), 3);
    let status = lab.status("web");
    let sidecar = look::init(&status, "sidecar");
    let others: Vec<_> = (0..65_535)
        .map(|other| std::net::Ipv4Addr::from(0x0a00_0000 + other).to_string())
        .collect();
    let fill = format!(
        "add element inet lrpns rate-5-hour-app {{ {} }}\n",
        others.join(", ")
    );
    let fill = lab.write("fill.nft", &fill);
    look::beside(&lab, sidecar, &["nft", "-f", fill.to_str().unwrap()]);
    let before = look::counters(&lab, Some(sidecar), "lrpns");
    assert_eq!(begin("10.99.0.3", "3") + begin("10.99.0.4", "4"), 5);
    assert_eq!(
        begin("10.99.0.2", "3"),
        2,
        "who was known has his own count"
    );
    let counted = look::since(&before, &look::counters(&lab, Some(sidecar), "lrpns"));
    assert!(
        counted.contains_key("forward/drop-crowd-app"),
        "{counted:?}"
    );
    assert!(counted.contains_key("forward/drop-rate-app"), "{counted:?}");
}

#[test]
fn the_audit_finds_nothing_in_a_stack_with_ranges_udp_and_an_allow() {
    if !look::machine() {
        return;
    }
    let token = look::token();
    let publish = [
        "0.0.0.0:8000-8019:9000-9019/tcp",
        "0.0.0.0:8000-8009:9000-9009/udp",
    ];
    let ports = ["tcp,9000,9019", "udp,9000,9009"];
    let allow = "allow = [\"10.99.0.0/25\"]";
    for (lab, via, _) in both_ways(&token, &ports, &publish, allow) {
        let output = lab.lrpns(&["audit", "web", "--json"]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let probes: Vec<&Value> = report["groups"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|group| group["probes"].as_array().unwrap())
            .collect();
        for asked in ["in-control", "in-unpublished-udp", "in-not-allowed"] {
            let passed = |probe: &&&Value| probe["id"] == asked && probe["result"] == "pass";
            assert!(probes.iter().any(|probe| passed(&probe)), "{via}: {asked}");
        }
        let bad: Vec<_> = probes
            .iter()
            .filter(|probe| matches!(probe["result"].as_str(), Some("fail" | "unknown")))
            .map(|probe| format!("{} {}: {}", probe["id"], probe["result"], probe["happened"]))
            .collect();
        assert!(bad.is_empty() && output.status.success(), "{via}: {bad:#?}");
    }
}

/// Milliseconds of `work`.
fn milliseconds(work: impl FnOnce()) -> f64 {
    let begun = std::time::Instant::now();
    work();
    begun.elapsed().as_secs_f64() * 1e3
}

#[test]
#[ignore = "measures"]
fn time_of_up_by_number_of_ports_and_rate_of_queries_by_way() {
    let token = look::token();
    for (ports, app, publish) in [
        (1, "tcp,9000,9000", "0.0.0.0:8000:9000/tcp"),
        (1000, "tcp,9000,9999", "0.0.0.0:8000-8999:9000-9999/tcp"),
    ] {
        for via in ["dnat", "relay"] {
            let mut times: Vec<f64> = (0..5)
                .map(|_| {
                    let lab = Lab::forwarding();
                    let file = many(&token, &[app], &[publish], &format!("via = \"{via}\""));
                    milliseconds(|| drop(look::up(&lab, &file)))
                })
                .collect();
            times.sort_by(f64::total_cmp);
            println!("up -d, {ports} ports by {via}: median {:.0} ms", times[2]);
        }
    }
    let each = 2000;
    let config = UNBOUND;
    for way in ["direct", "dnat", "relay"] {
        let lab = Lab::forwarding();
        let path = lab.write("unbound.conf", config);
        let port = if way == "direct" {
            let path = path.to_str().unwrap();
            drop(lab.spawn(&["unbound", "-d", "-c", path]));
            support::lab::until("unbound is bound", || {
                lab.ok(&["cat", "/proc/net/udp"])
                    .contains(":14B4 ")
                    .then_some(())
            });
            "5300"
        } else {
            let command = look::toml_list(&["unbound", "-d", "-c", "/srv/unbound.conf"]);
            look::up(
                &lab,
                &format!(
                    "name = \"dns\"\n[app]\nrootfs = \"host\"\ncommand = {command}\nvia = \"{way}\"\n\
                     publish = [\"0.0.0.0:53:5300/udp\", \"0.0.0.0:53:5300/tcp\"]\n\
                     volumes = [\"{}:/srv/unbound.conf\"]\n",
                    path.display()
                ),
            );
            "53"
        };
        let each_text = each.to_string();
        let mut rates: Vec<f64> = (0..5)
            .map(|_| {
                let time = milliseconds(|| {
                    let script = ASK_DNS;
                    let asked = python(&lab, true, script, &[LAB, port, "50", &each_text]);
                    assert_eq!(asked.trim(), (50 * each).to_string());
                });
                f64::from(50 * each) / time * 1e3
            })
            .collect();
        rates.sort_by(f64::total_cmp);
        println!("{way}: median {:.0} queries per second", rates[2]);
    }
}

#[test]
fn an_allow_is_not_gone_around_by_who_has_an_account_on_the_host() {
    if !look::machine() {
        return;
    }
    let token = look::token();
    let publish = ["0.0.0.0:8000:9000/tcp", "0.0.0.0:8000:9000/udp"];
    let ports = ["tcp,9000,9000", "udp,9000,9000"];
    for (lab, via, _) in both_ways(&token, &ports, &publish, "allow = [\"10.99.0.2\"]") {
        let status = lab.status("web");
        if via == "relay" {
            // The host has no way to the sidecar.
            assert_eq!(look::planned(&status, "/uplink/ends_at"), "relay");
            continue;
        }
        let sidecar = look::planned(&status, "/uplink/sidecar_address");
        let entry = |at: usize| &status["plan"]["apps"][0]["publish"][at]["entry_port"];
        let (tcp, udp) = (entry(0), entry(1));
        let as_user = |uid| {
            look::attack_from_host(
                &lab,
                &format!(
                    "os.setuid({uid})\nsay([knock('{sidecar}', {tcp}), throw('{sidecar}', {udp})])"
                ),
            )
        };
        let before = look::counters(&lab, None, "lrpns-web");
        assert_eq!(
            as_user(0),
            serde_json::json!(["EINPROGRESS", "OK"]),
            "{via}"
        );
        let none = look::since(&before, &look::counters(&lab, None, "lrpns-web"));
        assert_eq!(none.get("output/drop-local-user"), None, "{via}");
        let tried = as_user(4321);
        assert_eq!(tried, serde_json::json!(["EINPROGRESS", "EPERM"]), "{via}");
        let counted = look::since(&before, &look::counters(&lab, None, "lrpns-web"));
        // A datagram, and a SYN or more.
        assert!(counted["output/drop-local-user"] >= 2, "{via}: {counted:?}");
        // Whom it is for gets in.
        let ask = ["10.99.0.2", LAB, "8000", "10"];
        assert_eq!(
            python(&lab, true, ASK_AS, &ask),
            "served\nserved\n",
            "{via}"
        );
    }
}

#[test]
fn a_range_need_not_listen_and_a_single_port_is_waited_for_unless_the_file_says_otherwise() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    // As a server of FTP: one port for control, and a range of which it opens ports when they are needed.
    let token = look::token();
    let publish = [
        "0.0.0.0:8000-8099:9000-9099",
        "0.0.0.0:8000-8099:9000-9099/udp",
        "0.0.0.0:8100:9100",
    ];
    look::up(
        &lab,
        &many(&token, &["tcp,9050,9050", "tcp,9100,9100"], &publish, ""),
    );
    let answer = python(&lab, true, ASK_TCP, &[LAB, "8050", "8050"]);
    assert!(answer.contains(&token), "{answer}");
    assert!(lab.client_get(&format!("http://{LAB}:8051/")).is_err());
    lab.lrpns_ok(&["down", "web"]);
    // Nothing at all.
    let silent = |more: &str| many(&token, &[], &["0.0.0.0:8100:9100"], more);
    look::up(&lab, &silent("wait = false"));
    lab.lrpns_ok(&["down", "web"]);
    let path = lab.write("silent.toml", &silent("start_timeout = \"1s\""));
    let (code, said) = lab.lrpns_err(&["up", "-d", "-f", path.to_str().unwrap()]);
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("app does not listen on port 9100 after 1 s"),
        "{said}"
    );
}

#[test]
fn what_has_a_port_already_is_named_for_what_it_is() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    // Says where it listens, then waits; each mode leaves another thing at the port.
    let hold = r#"
import signal, socket, sys
what, port = sys.argv[1], int(sys.argv[2])
udp = what == "udp"
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if udp else socket.SOCK_STREAM)
if what in ("listens", "udp"):
    s.bind(("127.0.0.1", port))
    if not udp: s.listen()
else:
    server = socket.create_server(("127.0.0.1", port + 1000))
    s.bind(("127.0.0.1", port))
    s.connect(server.getsockname())
    other = server.accept()[0]
    if what == "wait":
        s.close()
        other.recv(1)
        other.close()
print("ready", flush=True)
signal.pause()
"#;
    for (port, what, protocol, expected, hint) in [
        (
            50051,
            "listens",
            "",
            "python3 (pid N) listens on 127.0.0.1:50051",
            "end it, or publish another port than 50051",
        ),
        (
            50052,
            "udp",
            "/udp",
            "python3 (pid N) has bound 127.0.0.1:50052",
            "end it, or publish another port than 50052",
        ),
        (
            50053,
            "connected",
            "",
            "python3 (pid N) has a connection from 127.0.0.1:50053 to 127.0.0.1:51053",
            "net.ipv4.ip_local_reserved_ports",
        ),
        (
            50054,
            "wait",
            "",
            "a connection from 127.0.0.1:50054 to 127.0.0.1:51054 that has ended has the port for up to a minute more (TIME-WAIT)",
            "net.ipv4.ip_local_reserved_ports",
        ),
    ] {
        let _holder = lab.start(&[PYTHON, "-c", hold, what, &port.to_string()]);
        let publish = format!("127.0.0.1:{port}:5000{protocol}");
        let (code, said) = lab.lrpns_err(&[
            "run",
            "-p",
            &publish,
            "--rootfs",
            "builtin:webapp",
            "--",
            "/webapp",
        ]);
        assert_eq!(code, 125, "{said}");
        let numbers = said.find("(pid ").map(|at| {
            let digits = said[at + 5..].find(')').unwrap();
            said[at + 5..at + 5 + digits].to_owned()
        });
        let said = match numbers {
            Some(pid) if pid.parse::<u32>().is_ok() => {
                said.replace(&format!("(pid {pid})"), "(pid N)")
            }
            _ => said,
        };
        assert!(
            said.contains("Address already in use (os error 98): ")
                && said.contains(expected)
                && said.contains(hint),
            "{what}: {said}"
        );
    }
}

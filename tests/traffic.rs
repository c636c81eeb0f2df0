//! The traffic log: what is said of connections and of refused packets, and that no flood makes it lie.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use serde_json::{Value, json};
use support::lab::{CLIENT, LAB, Lab, until};
use support::look::{self, PYTHON};

/// A lab with a telling app that is published by DNAT; `log` as the file has it.
fn stack(log: &str) -> (Lab, Value) {
    let lab = Lab::forwarding();
    let file = look::telling("web", "x", "0.0.0.0:5000:5000", "via = \"dnat\"");
    let file = file.replace("[sidecar]\n", &format!("[sidecar]\nlog = \"{log}\"\n"));
    look::up(&lab, &file);
    let status = lab.status("web");
    (lab, status)
}

/// All lines of the traffic log: their typed fields.
fn lines(lab: &Lab, stack: &str) -> Vec<Value> {
    let text = lab.lrpns_ok(&["logs", stack, "--part", "traffic", "--json"]);
    text.lines()
        .filter_map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            assert_eq!(line["part"], "traffic");
            if line["stream"] == "event" {
                // Of what memory has no more, not every line is on disk.
                assert!(
                    line["text"].as_str().unwrap().contains("left out"),
                    "{line}"
                );
                return None;
            }
            assert_eq!(line["stream"], "traffic", "{line}");
            Some(line["traffic"].clone())
        })
        .collect()
}

/// The lines of one kind that are about the client, once there are `count` of them.
fn lines_of(lab: &Lab, event: &str, count: usize) -> Vec<Value> {
    let mine = |line: &Value| {
        let who = line["client"].as_str().or(line["source"].as_str());
        line["event"] == event && who.is_some_and(|who| who.starts_with(CLIENT))
    };
    until(&format!("{count} lines of {event}"), || {
        let found: Vec<_> = lines(lab, "web").into_iter().filter(mine).collect();
        (found.len() >= count).then_some(found)
    })
}

/// How many connections the rules have let begin, those of the supervisor that tries its ports among them.
fn began(lab: &Lab, status: &Value) -> u64 {
    look::counters(lab, Some(look::init(status, "sidecar")), "lrpns")["forward/accept-published"]
}

/// Runs Python in the client's namespace.
fn client(lab: &Lab, code: &str) {
    let code = format!("import socket, struct, time\nW = ('{LAB}', 5000)\n{code}");
    let output = lab.client(&[PYTHON, "-c", &code]);
    assert!(
        output.status.success(),
        "{}",
        support::lab::describe(&output)
    );
}

#[test]
fn a_connection_is_told_of_at_its_start_and_its_end_with_the_bytes_of_both_ways() {
    if !look::machine() {
        return;
    }
    let (lab, _) = stack("connections");
    let body = lab.client_get(&format!("http://{LAB}:5000/")).unwrap();
    let open = &lines_of(&lab, "open", 1)[0];
    let end = &lines_of(&lab, "end", 1)[0];
    assert_eq!(open["client"], end["client"]);
    for line in [open, end] {
        assert_eq!(line["server"], "172.18.0.23:5000");
        assert_eq!(
            (&line["app"], &line["protocol"]),
            (&json!("app"), &json!("tcp"))
        );
        assert_eq!(line["via"], Value::Null);
    }
    // curl's request and the answer's head are not known to the byte here; the next test's are.
    assert!(end["bytes_from_client"].as_u64().unwrap() > 50, "{end}");
    assert!(
        end["bytes_to_client"].as_u64().unwrap() > body.len() as u64,
        "{end}"
    );
    // Which of the two is first is theirs to decide.
    let how = end["how"].as_str().unwrap();
    assert!(how.starts_with("closed-by-"), "{end}");
}

#[test]
fn each_way_for_a_connection_to_end_is_told_apart() {
    if !look::machine() {
        return;
    }
    let (lab, status) = stack("connections");
    client(
        &lab,
        "
def connect():
    return socket.create_connection(W)
s = connect(); s.close()
s = connect(); s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')
n = 0
while True:
    got = s.recv(65536)
    if not got: break
    n += len(got)
s.close()
s = connect(); s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); s.close()
s = connect(); s.sendall(b'x' * 12345); s.shutdown(socket.SHUT_WR)
while s.recv(65536): pass
s.close()",
    );
    let ends = lines_of(&lab, "end", 4);
    let how: Vec<_> = ends
        .iter()
        .map(|end| end["how"].as_str().unwrap())
        .collect();
    assert_eq!(
        how[..3],
        ["closed-by-client", "closed-by-app", "reset-by-client"]
    );
    assert_eq!(ends[0]["bytes_from_client"], 0);
    assert_eq!(ends[0]["bytes_to_client"], 0);
    assert_eq!(ends[1]["bytes_from_client"], "GET / HTTP/1.0\r\n\r\n".len());
    assert!(
        ends[1]["bytes_to_client"].as_u64().unwrap() > 100,
        "{}",
        ends[1]
    );
    assert_eq!(ends[3]["bytes_from_client"], 12345, "{}", ends[3]);
    let sums = until("nothing is open", || {
        let traffic = lab.status("web")["traffic"].clone();
        (traffic["open"] == 0).then_some(traffic)
    });
    assert_eq!(sums["accepted"], began(&lab, &status));
    assert_eq!(sums["lost"], json!({"kernel": 0, "sidecar": 0, "table": 0}));
    let sent: u64 = ends
        .iter()
        .map(|end| end["bytes_from_client"].as_u64().unwrap())
        .sum();
    assert_eq!(sums["bytes_from_clients"], sent);
    assert_eq!(sums["apps"][0]["bytes_from_clients"], sent);
}

#[test]
fn bytes_are_right_when_both_close_at_the_same_moment() {
    if !look::machine() {
        return;
    }
    let (lab, _) = stack("connections");
    // The app's FIN is kept from the client until the client has sent its own.
    let code = "
import subprocess
def nft(text):
    subprocess.run(['nft', '-f', '-'], input=text, text=True, check=True)
nft('table ip hold { chain c { type filter hook input priority 0; tcp flags fin counter drop; }; }')
s = socket.create_connection(W); s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')
while 'packets 0' in subprocess.check_output(['nft', 'list', 'table', 'ip', 'hold'], text=True): pass
got = len(s.recv(65536))
s.shutdown(socket.SHUT_WR)
print(got)
nft('delete table ip hold')
while s.recv(65536): pass
s.close()";
    let code = format!("import socket\nW = ('{LAB}', 5000)\n{code}");
    let output = lab.client(&[PYTHON, "-c", &code]);
    assert!(
        output.status.success(),
        "{}",
        support::lab::describe(&output)
    );
    let got: u64 = String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .unwrap();
    let end = &lines_of(&lab, "end", 1)[0];
    assert_eq!(end["how"], "closed-by-app", "{end}");
    assert_eq!(end["bytes_from_client"], "GET / HTTP/1.0\r\n\r\n".len());
    assert_eq!(end["bytes_to_client"], got, "{end}");
}

#[test]
fn a_client_that_is_gone_when_the_app_closes_has_not_closed_and_not_sent_gigabytes() {
    if !look::machine() {
        return;
    }
    let (lab, _) = stack("connections");
    // It has said what it wants, and then nothing of it arrives any more: the app's FIN comes again and again.
    client(
        &lab,
        "
import subprocess
s = socket.create_connection(W)
rules = 'add table inet t; add chain inet t o { type filter hook output priority 0; }; add rule inet t o tcp flags & psh == 0 drop'
subprocess.run(['nft', rules], check=True)
s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')
while s.recv(65536): pass",
    );
    let end = &lines_of(&lab, "end", 1)[0];
    assert_eq!(end["how"], "closed-by-app", "{end}");
    assert_eq!(end["bytes_from_client"], "GET / HTTP/1.0\r\n\r\n".len());
    let answered = end["bytes_to_client"].as_u64().unwrap();
    assert!((100..100_000).contains(&answered), "{end}");
}

#[test]
fn marks_that_the_users_rules_may_set_are_left_to_them() {
    if !look::machine() {
        return;
    }
    let lab = Lab::forwarding();
    let file = look::telling("web", "x", "0.0.0.0:5000:5000", "via = \"dnat\"");
    let file = file.replace("[sidecar]\n", "[sidecar]\nrules = \"extra.nft\"\n");
    lab.write("extra.nft", "chain before { ct mark set 7; }\n");
    look::up(&lab, &file);
    let status = lab.status("web");
    client(
        &lab,
        "s = socket.create_connection(W); s.sendall(b'x' * 12345); s.shutdown(socket.SHUT_WR)
while s.recv(65536): pass",
    );
    let end = &lines_of(&lab, "end", 1)[0];
    assert_eq!(end["bytes_from_client"], 12345, "{end}");
    let sidecar = format!("--target={}", look::init(&status, "sidecar"));
    let rules = lab.ok(&["nsenter", &sidecar, "--net", "nft", "list", "ruleset"]);
    let marks: Vec<_> = rules
        .lines()
        .filter(|line| line.contains("mark set"))
        .collect();
    assert_eq!(marks.len(), 1, "{marks:?}");
    assert!(rules.contains("note-end"), "{rules}");
}

#[test]
fn a_port_on_which_the_app_does_not_listen_any_more_is_refused_by_the_app() {
    if !look::machine() {
        return;
    }
    let (lab, status) = stack("connections");
    // What was the app's port is nobody's from here on.
    lab.ok(&["kill", "-STOP", &status["supervisor"].to_string()]);
    lab.ok(&["kill", "-9", &look::pid(&status, "app").to_string()]);
    look::eventually("the app's sockets are gone", &Err(7), || {
        lab.client_get(&format!("http://{LAB}:5000/")).map(|_| ())
    });
    lab.ok(&["kill", "-CONT", &status["supervisor"].to_string()]);
    let ends = lines_of(&lab, "end", 1);
    let last = ends.last().unwrap();
    assert_eq!(last["how"], "refused-by-app", "{ends:?}");
}

#[test]
fn a_refused_packet_is_told_of_with_the_rule_that_refused_it() {
    if !look::machine() {
        return;
    }
    let (lab, status) = stack("connections");
    let entry = look::planned(&status, "/uplink/sidecar_address").to_owned();
    look::attack_from_host(
        &lab,
        &format!("say([knock('{entry}', 22), throw('{entry}', 5000)])"),
    );
    look::attack_beside(
        &lab,
        look::pid(&status, "app"),
        "say([throw('172.18.0.33', 53), knock('172.18.0.33', 80)])",
    );
    let refused = until("four refused packets", || {
        let all = lines(&lab, "web").into_iter();
        let all: Vec<_> = all.filter(|line| line["event"] == "refused").collect();
        (all.len() >= 4).then_some(all)
    });
    let seen: Vec<_> = refused
        .iter()
        .map(|line| {
            (
                line["rule"].as_str().unwrap(),
                line["protocol"].as_str().unwrap(),
                line["target_port"].as_u64().unwrap(),
                line["link"].as_str().unwrap(),
            )
        })
        .collect();
    for line in [
        ("input/drop-unpublished", "tcp", 22, "uplink"),
        ("input/drop-unpublished", "udp", 5000, "uplink"),
        ("guard/drop-app-egress", "udp", 53, "web"),
        ("guard/drop-app-egress", "tcp", 80, "web"),
    ] {
        assert!(seen.contains(&line), "{line:?} is not in {seen:?}");
    }
    let syn = refused
        .iter()
        .find(|line| line["target_port"] == 22)
        .unwrap();
    assert_eq!(
        (&syn["tcp_flags"], &syn["length"]),
        (&json!("syn"), &json!(60))
    );
    let egress = refused
        .iter()
        .find(|line| line["target_port"] == 53)
        .unwrap();
    assert_eq!(
        (&egress["app"], &egress["source"]),
        (&json!("app"), &json!("172.18.0.23"))
    );
    // The kernel's counters say the same.
    let counted = look::counters(&lab, Some(look::init(&status, "sidecar")), "lrpns");
    let dropped: u64 = counted
        .iter()
        .filter(|(rule, _)| rule.contains("/drop-"))
        .map(|(_, packets)| packets)
        .sum();
    look::eventually("refused in status", &json!(dropped), || {
        lab.status("web")["traffic"]["refused"].clone()
    });
}

#[test]
fn without_the_log_nothing_is_said_and_nothing_listens() {
    if !look::machine() {
        return;
    }
    let (lab, status) = stack("off");
    lab.client_get(&format!("http://{LAB}:5000/")).unwrap();
    assert_eq!(status["traffic"], Value::Null);
    assert_eq!(lines(&lab, "web"), Vec::<Value>::new());
    let sidecar = look::init(&status, "sidecar");
    let logs = look::beside(&lab, sidecar, &["cat", "/proc/net/netfilter/nfnetlink_log"]);
    assert_eq!(logs, "");
}

#[test]
fn with_packets_every_packet_that_is_let_through_is_told_of_once() {
    if !look::machine() {
        return;
    }
    let (lab, status) = stack("packets");
    look::settle(&lab, &status);
    let sidecar = Some(look::init(&status, "sidecar"));
    let accepted = || -> u64 {
        look::counters(&lab, sidecar, "lrpns")
            .iter()
            .filter(|(rule, _)| rule.starts_with("forward/accept-"))
            .map(|(_, packets)| packets)
            .sum()
    };
    lab.client_get(&format!("http://{LAB}:5000/")).unwrap();
    look::settle(&lab, &status);
    until("as many lines as packets", || {
        let told = lines(&lab, "web")
            .into_iter()
            .filter(|line| line["event"] == "accepted");
        (told.count() as u64 == accepted()).then_some(())
    });
}

#[test]
fn the_log_goes_on_when_the_sidecar_is_started_again() {
    if !look::machine() {
        return;
    }
    let (lab, status) = stack("connections");
    let url = format!("http://{LAB}:5000/");
    lab.client_get(&url).unwrap();
    lines_of(&lab, "end", 1);
    // One that is open meanwhile is not forgotten.
    let mut held = lab
        .command(&[
            "ip", "netns", "exec", "client", PYTHON, "-c",
            &format!("import socket, sys\ns = socket.create_connection(('{LAB}', 5000))\nprint(flush=True)\nsys.stdin.read()"),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut opened = String::new();
    BufReader::new(held.stdout.take().unwrap())
        .read_line(&mut opened)
        .unwrap();
    lines_of(&lab, "open", 2);
    let before = began(&lab, &status);
    lab.lrpns_ok(&["restart", "web", "sidecar"]);
    look::eventually("open connections", &json!(1), || {
        lab.status("web")["traffic"]["open"].clone()
    });
    drop(held.stdin.take());
    held.wait().unwrap();
    let end = lines_of(&lab, "end", 2).pop().unwrap();
    assert_eq!(
        (&end["how"], &end["duration_us"]),
        (&json!("closed-by-client"), &Value::Null)
    );
    lab.client_get(&url).unwrap();
    lines_of(&lab, "end", 3);
    // What was counted before counts still.
    assert!(before >= 2);
    look::eventually(
        "connections in status",
        &json!(before + began(&lab, &lab.status("web"))),
        || lab.status("web")["traffic"]["accepted"].clone(),
    );
}

#[test]
fn a_sidecar_that_holds_nothing_tells_all_the_same() {
    if !look::machine() {
        return;
    }
    let (lab, status) = stack("connections\"\nseal = true #\"");
    let sidecar = look::init(&status, "sidecar");
    assert_eq!(look::capabilities(&lab, sidecar), ["0000000000000000"; 5]);
    lab.client_get(&format!("http://{LAB}:5000/")).unwrap();
    let entry = look::planned(&status, "/uplink/sidecar_address");
    look::attack_from_host(&lab, &format!("say(knock('{entry}', 22))"));
    lines_of(&lab, "end", 1);
    until("a refused packet", || {
        let mut all = lines(&lab, "web").into_iter();
        all.find(|line| line["rule"] == "input/drop-unpublished")
    });
}

#[test]
fn a_followed_traffic_log_goes_on() {
    if !look::machine() {
        return;
    }
    let (lab, _) = stack("connections");
    let mut logs = lab
        .command(&[
            support::lab::lrpns(),
            "logs",
            "web",
            "-f",
            "--part",
            "traffic",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    lab.client_get(&format!("http://{LAB}:5000/")).unwrap();
    let mut reader = BufReader::new(logs.stdout.take().unwrap());
    let mut said = String::new();
    while !said.contains(&format!("tcp {CLIENT}")) || !said.contains("closed by the client") {
        assert_ne!(reader.read_line(&mut said).unwrap(), 0, "{said}");
    }
    logs.kill().unwrap();
    logs.wait().unwrap();
}

#[test]
fn a_flood_from_one_source_gets_few_lines_and_a_count_and_hides_nobody_else() {
    if !look::machine() {
        return;
    }
    let (lab, status) = stack("connections");
    let entry = look::planned(&status, "/uplink/sidecar_address").to_owned();
    look::attack_from_host(
        &lab,
        &format!(
            "
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for i in range(20000):
    s.sendto(b'x', ('{entry}', 9))
say('sent')"
        ),
    );
    lab.client_get(&format!("http://{LAB}:5000/")).unwrap();
    lines_of(&lab, "end", 1);
    look::eventually("every packet is counted", &json!(20000), || {
        lab.status("web")["traffic"]["refused"].clone()
    });
    let all = lines(&lab, "web");
    let listed = all.iter().filter(|line| line["event"] == "refused").count();
    assert!((1..200).contains(&listed), "{listed} lines");
    // What has no line is told of as a number, and it all adds up.
    until("every packet is told of", || {
        let all = lines(&lab, "web");
        let listed = all.iter().filter(|line| line["event"] == "refused").count() as u64;
        let count = |event: &str| -> u64 {
            all.iter()
                .filter(|line| line["event"] == event)
                .map(|line| line["count"].as_u64().unwrap())
                .sum()
        };
        (listed + count("suppressed") + count("lost") == 20000).then_some(())
    });
}

#[test]
fn sources_that_nobody_has_take_no_memory_and_no_lines() {
    if !look::machine() {
        return;
    }
    let (lab, status) = stack("connections");
    let entry = look::planned(&status, "/uplink/sidecar_address").to_owned();
    let (link, to, from) = (
        look::planned(&status, "/uplink/host_link"),
        look::planned(&status, "/uplink/sidecar_mac"),
        look::planned(&status, "/uplink/host_mac"),
    );
    look::attack_from_host(
        &lab,
        &format!(
            "
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
    s.bind(('{link}', 0))
    head = mac('{to}') + mac('{from}') + struct.pack('!H', 0x0800)
    for i in range(30000):
        s.send(head + udp('9.%d.%d.%d' % (i >> 16, i >> 8 & 255, i & 255), '{entry}', 7, 7))
say('sent')"
        ),
    );
    lab.client_get(&format!("http://{LAB}:5000/")).unwrap();
    lines_of(&lab, "end", 1);
    look::eventually("every packet is counted", &json!(30000), || {
        lab.status("web")["traffic"]["refused"].clone()
    });
    let refused = lines(&lab, "web")
        .into_iter()
        .filter(|line| line["event"] == "refused");
    let refused = refused.count();
    assert!(refused < 2000, "{refused} lines");
    let memory = look::status_line(&lab, look::init(&status, "sidecar"), "VmRSS");
    let kilobytes: u64 = memory.split(' ').next().unwrap().parse().unwrap();
    assert!(kilobytes < 32 << 10, "{memory}");
}

#[test]
fn a_supervisor_that_is_stopped_stops_no_connection_and_what_it_missed_is_told() {
    if !look::machine() {
        return;
    }
    let lab = Lab::forwarding();
    lab.lrpns_ok(&["up", "-d", "--demo"]);
    let status = lab.status("customerA");
    let supervisor = status["supervisor"].to_string();
    // Those by which `up` has seen that it answers.
    let before = began(&lab, &status);
    look::eventually("connections in status", &json!(before), || {
        lab.status("customerA")["traffic"]["accepted"].clone()
    });
    lab.ok(&["kill", "-STOP", &supervisor]);
    client(
        &lab,
        "
for i in range(12000):
    socket.create_connection(W).close()",
    );
    let sidecar = look::init(&status, "sidecar");
    let memory = look::status_line(&lab, sidecar, "VmRSS");
    let kilobytes: u64 = memory.split(' ').next().unwrap().parse().unwrap();
    assert!(kilobytes < 32 << 10, "{memory}");
    lab.ok(&["kill", "-CONT", &supervisor]);
    // The client's own count: a rule's counts a SYN that is sent again, since the app's backlog was full, once more.
    look::eventually("connections in status", &json!(before + 12000), || {
        lab.status("customerA")["traffic"]["accepted"].clone()
    });
    let traffic = until("nothing is open", || {
        let traffic = lab.status("customerA")["traffic"].clone();
        (traffic["open"] == 0).then_some(traffic)
    });
    let told = until("what is missing is told", || {
        let all = lines(&lab, "customerA");
        let lost: u64 = all
            .iter()
            .filter(|line| line["event"] == "lost")
            .map(|line| line["count"].as_u64().unwrap())
            .sum();
        (lost == traffic["lost"]["sidecar"].as_u64().unwrap()).then_some(lost)
    });
    assert!(told > 0, "{traffic}");
}

/// Answers datagrams on port 5300 with what they say, twice.
const TWICE: &str = r#"
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", 5300))
while True:
    said, who = s.recvfrom(65536)
    s.sendto(said * 2, who)
"#;

/// For each line on its standard input, sends 100 bytes until it gets an answer; prints how often it had to.
const ASKS: &str = r#"
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(1)
for line in sys.stdin:
    for tries in range(1, 60):
        s.sendto(b"q" * 100, (sys.argv[1], 53))
        try:
            s.recv(65536)
        except OSError:
            continue
        break
    print(tries, flush=True)
"#;

#[test]
fn a_flow_of_udp_begins_once_and_ends_with_its_bytes_though_the_app_is_started_again_meanwhile() {
    if !look::machine() {
        return;
    }
    let lab = Lab::forwarding();
    let file = look::telling("web", "x", "0.0.0.0:53:5300/udp", "via = \"dnat\"");
    let file = look::with_program(&file.replace("listen = [6000]\n", ""), TWICE);
    look::up(&lab, &file);
    let status = lab.status("web");
    let mut asks = lab
        .command(&["ip", "netns", "exec", "client", PYTHON, "-c", ASKS, LAB])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut orders = asks.stdin.take().unwrap();
    let mut answers = BufReader::new(asks.stdout.take().unwrap());
    let mut ask = || {
        orders.write_all(b"\n").unwrap();
        let mut tries = String::new();
        answers.read_line(&mut tries).unwrap();
        tries.trim().parse::<u64>().unwrap()
    };
    let mut sent = ask();
    let open = lines_of(&lab, "open", 1).remove(0);
    assert_eq!(open["protocol"], "udp", "{open}");
    assert_eq!(open["server"], "172.18.0.23:5300");
    lab.lrpns_ok(&["restart", "web", "app"]);
    sent += ask();
    // From the next datagram on, the kernel forgets the flow after a second of silence.
    let sidecar = look::init(&status, "sidecar");
    for timeout in ["udp_timeout", "udp_timeout_stream"] {
        let set = format!("echo 1 >/proc/sys/net/netfilter/nf_conntrack_{timeout}");
        look::beside(&lab, sidecar, &["sh", "-c", &set]);
    }
    assert!(lines(&lab, "web").iter().all(|line| line["event"] != "end"));
    sent += ask();
    let end = until("the end of the flow", || {
        // Who looks at the table has what is over thrown out of it; by itself the kernel takes its time.
        look::beside(&lab, sidecar, &["cat", "/proc/net/nf_conntrack"]);
        let mut all = lines(&lab, "web").into_iter();
        all.find(|line| line["event"] == "end")
    });
    drop(orders);
    asks.wait().unwrap();
    assert_eq!(
        (&end["client"], &end["how"]),
        (&open["client"], &json!("timed-out"))
    );
    assert_eq!(end["bytes_from_client"], 100 * sent, "{end}");
    assert_eq!(end["bytes_to_client"], 200 * 3, "{end}");
    assert!(end["duration_us"].is_u64(), "{end}");
    assert_eq!(lines_of(&lab, "open", 1).len(), 1);
}

/// One that neither side closes, and one that the app doesn't answer.
#[test]
fn connections_that_end_without_a_word_are_told_of() {
    if !look::machine() {
        return;
    }
    let (lab, status) = stack("connections");
    let sidecar = look::init(&status, "sidecar");
    let set = |name: &str, seconds: u32| {
        let set =
            format!("echo {seconds} >/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_{name}");
        look::beside(&lab, sidecar, &["sh", "-c", &set]);
    };
    set("established", 1);
    let mut silent = lab
        .command(&["ip", "netns", "exec", "client", PYTHON, "-c", SILENT, LAB])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(silent.stdout.take().unwrap());
    let mut connected = String::new();
    said.read_line(&mut connected).unwrap();
    let port = |line: &Value| {
        let client = line["client"].as_str().unwrap();
        client.rsplit_once(':').unwrap().1.to_owned()
    };
    let ends = || {
        // As in the test of UDP.
        look::beside(&lab, sidecar, &["cat", "/proc/net/nf_conntrack"]);
        let all = lines(&lab, "web").into_iter();
        all.filter(|line| line["event"] == "end" && line["how"] != "closed-by-client")
            .collect::<Vec<_>>()
    };
    let end = until("the end of the silent one", || ends().pop());
    assert_eq!(end["how"], "timed-out");
    assert_eq!(port(&end), connected.trim());
    // A SYN has more options than other packets, up to 20 bytes more.
    let near = |key: &str| end[key].as_u64().unwrap() / 30;
    assert_eq!(
        (near("bytes_from_client"), near("bytes_to_client")),
        (0, 0),
        "{end}"
    );
    assert!(end["bytes_from_client"].as_u64() >= Some(10), "{end}");
    assert!(end["duration_us"].is_u64(), "{end}");

    set("syn_sent", 1);
    let app = look::init(&status, "app");
    let deaf = "add table inet deaf; add chain inet deaf in { type filter hook input priority 0; policy drop; }";
    look::beside(&lab, app, &["nft", deaf]);
    drop(silent.stdin.take());
    let mut connecting = String::new();
    said.read_line(&mut connecting).unwrap();
    let end = until("the end of the one without an answer", || {
        let mut all = ends().into_iter();
        all.find(|line| port(line) == connecting.trim())
    });
    assert_eq!(end["how"], "unanswered");
    assert_eq!(end["bytes_to_client"], 0, "{end}");
    silent.kill().unwrap();
    silent.wait().unwrap();
}

/// Connects, sends ten bytes and says its port; when its input ends it connects again and says that port.
const SILENT: &str = r#"
import socket, sys
one = socket.create_connection((sys.argv[1], 5000))
one.sendall(b'0123456789')
print(one.getsockname()[1], flush=True)
sys.stdin.read()
two = socket.socket()
two.bind(('', 0))
print(two.getsockname()[1], flush=True)
two.connect((sys.argv[1], 5000))
"#;

/// The lines of one event for which `is` holds, once there is one.
fn line_when(lab: &Lab, event: &str, is: impl Fn(&Value) -> bool) -> Value {
    until(&format!("a line of {event}"), || {
        let mut all = lines(lab, "web").into_iter();
        all.find(|line| line["event"] == event && is(line))
    })
}

#[test]
fn by_relay_the_sidecar_names_the_client_and_the_relay_whom_it_refuses() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    for address in ["10.99.0.3", "10.99.0.4"] {
        let address = format!("{address}/24");
        let add = [
            "ip", "-n", "client", "address", "add", &address, "dev", "eth0",
        ];
        lab.ok(&add);
    }
    let more =
        "allow = [\"10.99.0.2\", \"10.99.0.4\", \"127.0.0.1\"]\nrate = \"20/minute per client\"";
    look::up(&lab, &look::telling("web", "t", "0.0.0.0:5000:5000", more));
    let status = lab.status("web");
    lab.client_get(&format!("http://{LAB}:5000/")).unwrap();
    let opened = &lines_of(&lab, "open", 1)[0];
    assert_eq!(opened["via"], Value::Null, "{opened}");
    assert_eq!(opened["app"], "app");
    // One of the machine itself has no address that could be shown.
    lab.get("http://127.0.0.1:5000/").unwrap();
    let own = format!("{}:", look::planned(&status, "/uplink/host_address"));
    let relayed = |line: &Value| {
        line["via"] == "relay"
            && line["client"]
                .as_str()
                .is_some_and(|who| who.starts_with(&own))
    };
    line_when(&lab, "open", relayed);

    // Who is refused is reset, which may be before it knows that it was connected.
    let connect = |from: &str, times: u64| {
        let code = format!(
            "for _ in range({times}):\n    s = socket.socket()\n    s.bind(('{from}', 0))\n    \
             s.settimeout(9)\n    try: s.connect(W); s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n'); s.recv(1)\n    except OSError: pass\n    s.close()"
        );
        client(&lab, &code);
    };
    connect("10.99.0.3", 1);
    let refused = line_when(&lab, "refused", |line| line["source"] == "10.99.0.3");
    assert_eq!(refused["rule"], "relay/drop-not-allowed");
    assert_eq!(
        (&refused["target"], &refused["target_port"]),
        (&json!(LAB), &json!(5000))
    );
    assert_eq!(
        (&refused["app"], &refused["protocol"], &refused["length"]),
        (&json!("app"), &json!("tcp"), &Value::Null)
    );
    connect("10.99.0.4", 25);
    let refused = line_when(&lab, "refused", |line| line["source"] == "10.99.0.4");
    assert_eq!(refused["rule"], "relay/drop-rate");
    // A flood has few lines, and is counted to the last.
    connect("10.99.0.3", 1000);
    let counted = || lab.status("web")["refused_by_relay"].clone();
    let expected = json!({ "not_allowed": 1001, "rate": 5, "share": 0, "apps": { "app": 1006 } });
    look::eventually("refused", &expected, counted);
    let all = lines(&lab, "web").into_iter();
    let of_flood = all.filter(|line| line["source"] == "10.99.0.3" && line["event"] == "refused");
    let count = of_flood.count();
    assert!((10..500).contains(&count), "{count}");
    // Also when another relay counts on.
    lab.lrpns_ok(&["restart", "web", "relay"]);
    connect("10.99.0.3", 1);
    let expected = json!({ "not_allowed": 1002, "rate": 5, "share": 0, "apps": { "app": 1007 } });
    look::eventually("refused", &expected, counted);
    let told = lab.lrpns_ok(&["status", "web"]);
    assert!(
        told.contains("1002 refused that `allow` does not name, 5 by `rate`"),
        "{told}"
    );
    let tables = lab.lrpns_ok(&["rules", "web", "--counters", "--json"]);
    let tables: Value = serde_json::from_str(&tables).unwrap();
    assert_eq!(tables[2]["table"], "relay");
    let rules = tables[2]["rules"].as_array().unwrap().iter();
    let rules: Vec<_> = rules
        .map(|rule| (rule["name"].as_str().unwrap(), rule["packets"].as_u64()))
        .collect();
    assert_eq!(
        rules,
        [
            ("drop-not-allowed", Some(1002)),
            ("drop-rate", Some(5)),
            ("drop-share", Some(0))
        ]
    );
}

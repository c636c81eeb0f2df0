//! `lrpns capture`: exactly the packets that were sent are in the file, with their link, their way and their rule.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};

use serde_json::Value;
use support::lab::{CLIENT, LAB, Lab, lrpns};
use support::look;

/// Whether there is something to read captures with.
fn machine() -> bool {
    look::machine_with(&["tcpdump", "tshark"])
}

/// A lab with a telling app that is published by DNAT; nothing is logged that a capture doesn't ask for.
fn stack() -> (Lab, Value) {
    let lab = Lab::forwarding();
    let file = look::telling("web", "x", "0.0.0.0:5000:5000", "via = \"dnat\"");
    look::up(
        &lab,
        &file.replace("[sidecar]\n", "[sidecar]\nlog = \"off\"\n"),
    );
    let status = lab.status("web");
    look::settle(&lab, &status);
    (lab, status)
}

/// A capture that goes on.
struct Capture(Child);

impl Capture {
    /// Begins one; from now on, everything is captured.
    fn begin(lab: &Lab, words: &[&str]) -> Self {
        let mut child = lab
            .command(&[&[lrpns(), "capture", "web"], words].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let stderr = child.stderr.as_mut().unwrap();
        BufReader::new(stderr).read_line(&mut said).unwrap();
        assert!(said.starts_with("capturing"), "{said}");
        Self(child)
    }

    /// Waits for its end; what it has written.
    fn end(mut self) -> Vec<u8> {
        let mut out = vec![];
        let mut stdout = self.0.stdout.take().unwrap();
        stdout.read_to_end(&mut out).unwrap();
        assert!(self.0.wait().unwrap().success());
        out
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The fields of each packet, as tshark reads the file.
fn tshark(lab: &Lab, file: &str, fields: &[&str]) -> Vec<Vec<String>> {
    let mut args = vec!["tshark", "-n", "-r", file, "-T", "fields"];
    fields.iter().for_each(|field| args.extend(["-e", field]));
    lab.ok(&args)
        .lines()
        .map(|line| line.split('\t').map(str::to_owned).collect())
        .collect()
}

/// 500 datagrams with a number and a length of their own: refused ones, as the host sends them.
const NUMBERED: &str = "
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for i in range(500):
    s.sendto(struct.pack('!I', i) + b'x' * (i * 2), (ENTRY, 9000))
say('sent')";

#[test]
fn the_file_holds_exactly_the_packets_that_were_sent_and_their_rule() {
    if !machine() {
        return;
    }
    let (lab, status) = stack();
    let entry = look::planned(&status, "/uplink/sidecar_address").to_owned();
    let file = lab.dir.path().join("all.pcapng");
    let file = file.to_str().unwrap();
    let capture = Capture::begin(&lab, &["-w", file, "-c", "500", "port", "9000"]);
    look::attack_from_host(&lab, &NUMBERED.replace("ENTRY", &format!("'{entry}'")));
    capture.end();
    let fields = [
        "udp.payload",
        "frame.comment",
        "frame.interface_name",
        "frame.packet_flags_direction",
    ];
    let packets = tshark(&lab, file, &fields);
    assert_eq!(packets.len(), 500);
    for (number, packet) in packets.iter().enumerate() {
        let sent = format!("{number:08x}{}", "78".repeat(number * 2));
        assert_eq!(
            packet[..],
            [
                &sent,
                "refused by input/drop-unpublished",
                "uplink",
                "0x00000001"
            ]
        );
    }
    let lines = lab.ok(&["tcpdump", "-n", "-r", file]);
    assert_eq!(lines.lines().count(), 500, "{lines}");
}

#[test]
fn a_connection_is_captured_both_ways_and_as_the_kernel_counts() {
    if !machine() {
        return;
    }
    let (lab, status) = stack();
    let sidecar = Some(look::init(&status, "sidecar"));
    let file = lab.dir.path().join("connection.pcapng");
    let file = file.to_str().unwrap();
    let before = look::counters(&lab, sidecar, "lrpns");
    let capture = Capture::begin(&lab, &["-w", file, "client", CLIENT]);
    for _ in 0..20 {
        lab.client_get(&format!("http://{LAB}:5000/")).unwrap();
    }
    look::settle(&lab, &status);
    let counted = look::since(&before, &look::counters(&lab, sidecar, "lrpns"));
    let forwarded: u64 = counted
        .iter()
        .filter(|(rule, _)| rule.starts_with("forward/accept-"))
        .map(|(_, packets)| packets)
        .sum();
    lab.ok(&["kill", "-INT", &process(&lab, &capture)]);
    capture.end();
    let packets = tshark(&lab, file, &["frame.interface_name", "ip.src"]);
    assert_eq!(packets.len() as u64, forwarded);
    for packet in &packets {
        let from = match packet[1].as_str() {
            CLIENT => "uplink",
            "172.18.0.23" => "port0",
            other => panic!("a packet of {other}"),
        };
        assert_eq!(packet[0], from);
    }
    let lines = lab.ok(&["tcpdump", "-n", "-r", file]);
    assert_eq!(lines.lines().count(), packets.len());
}

#[test]
fn packets_are_seen_as_they_come_and_refused_alone_if_asked() {
    if !machine() {
        return;
    }
    let (lab, status) = stack();
    let entry = look::planned(&status, "/uplink/sidecar_address").to_owned();
    let command = format!(
        "{} capture web -w - refused 2>/dev/null | tcpdump -l -n -r - 2>/dev/null",
        lrpns()
    );
    let mut live = lab
        .command(&["sh", "-c", &command])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let sidecar = look::init(&status, "sidecar");
    look::eventually("the capture listens", &true, || {
        let groups = look::beside(&lab, sidecar, &["cat", "/proc/net/netfilter/nfnetlink_log"]);
        !groups.trim().is_empty()
    });
    lab.client_get(&format!("http://{LAB}:5000/")).unwrap();
    look::attack_from_host(&lab, &format!("say(knock('{entry}', 4321))"));
    // The capture goes on: this line has come while it does.
    let mut line = String::new();
    let mut out = BufReader::new(live.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    assert!(line.contains(&format!("{entry}.4321: Flags [S]")), "{line}");
    assert_eq!(live.try_wait().unwrap(), None);
    // With the stack it ends.
    lab.lrpns_ok(&["down", "web"]);
    assert!(live.wait().unwrap().success());
}

#[test]
fn a_capture_that_is_killed_leaves_nothing_behind() {
    if !machine() {
        return;
    }
    let (lab, status) = stack();
    let sidecar = look::init(&status, "sidecar");
    let tables = || look::beside(&lab, sidecar, &["nft", "list", "tables"]);
    let before = tables();
    let file = lab.dir.path().join("killed.pcapng");
    let file = file.to_str().unwrap();
    let capture = Capture::begin(&lab, &["-w", file]);
    assert_ne!(tables(), before);
    // A second one is told of the first.
    let second = lab.lrpns(&["capture", "web", "-w", "/dev/null"]);
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(
        said.contains("another capture of this stack goes on"),
        "{said}"
    );
    // It holds nothing.
    let pid: i64 = process(&lab, &capture).parse().unwrap();
    let held = look::capabilities(&lab, pid);
    assert!(held.iter().all(|set| set == "0000000000000000"), "{held:?}");
    lab.client_get(&format!("http://{LAB}:5000/")).unwrap();
    look::eventually("packets are in the file", &true, || {
        !tshark(&lab, file, &["ip.src"]).is_empty()
    });
    lab.ok(&["kill", "-9", &pid.to_string()]);
    // Its table and its group go with two sockets, which the kernel closes one
    // after the other as the process ends.
    look::eventually("tables", &before, tables);
    look::eventually("groups of NFLOG", &String::new(), || {
        look::beside(&lab, sidecar, &["cat", "/proc/net/netfilter/nfnetlink_log"])
    });
    drop(capture);
}

/// The number, in the lab, of the process that captures.
fn process(lab: &Lab, _capture: &Capture) -> String {
    let found = lab.ok(&["pgrep", "-f", "^[^ ]*lrpns capture web"]);
    found.trim().to_owned()
}

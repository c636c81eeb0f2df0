//! Everything that reads what others wrote, given right input that was spoilt: whatever comes, it answers and does not panic.
//!
//! A case is one of a decoder's seeds with up to eight changes, such as a fuzzer makes. `scripts/test` makes some hundred of
//! each; `PROPTEST_CASES=1000000 cargo test --release --lib spoilt` as many as that. What was found by it is a seed here.

use std::path::{Path, PathBuf};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::Config as Settings;

use crate::config::{self, Vars};
use crate::confine::seccomp::docker::{self, Kernel};
use crate::control;
use crate::firewall::pieces::Pieces;
use crate::netlink::{self, Attributes};
use crate::protocol::{FromStage, ToStage};
use crate::relay::egress::{Answer, Request};
use crate::traffic::kernel::{Forgotten, Logged};
use crate::traffic::packet::Packet;
use crate::traffic::track::{Now, Tracker};
use crate::traffic::{self, wire};
use crate::{log, names, text};

/// One change.
#[derive(Debug, Clone)]
enum Change {
    Set(Index, u8),
    Flip(Index, u8),
    Cut(Index),
    Remove(Index, u8),
    Insert(Index, Vec<u8>),
    Repeat(Index, u8, u8),
    /// What one seed has from here on becomes what another one has.
    Splice(Index, Index),
}

fn change(words: &'static [&'static str]) -> impl Strategy<Value = Change> {
    let at = any::<Index>;
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, to)| Change::Set(at, to)),
        (
            at(),
            select(vec![
                0, 0xff, 0x7f, 0x80, b'"', b'\\', b'$', b'{', b'}', b'[', b'\n', b'9'
            ])
        )
            .prop_map(|(at, to)| Change::Set(at, to)),
        (at(), 0..8u8).prop_map(|(at, bit)| Change::Flip(at, bit)),
        at().prop_map(Change::Cut),
        (at(), 1..64u8).prop_map(|(at, count)| Change::Remove(at, count)),
        (at(), vec(any::<u8>(), 1..8)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        (at(), select(words)).prop_map(|(at, word)| Change::Insert(at, word.into())),
        (at(), 1..64u8, 1..16u8).prop_map(|(at, count, times)| Change::Repeat(at, count, times)),
        (at(), at()).prop_map(|(at, from)| Change::Splice(at, from)),
    ]
}

/// Texts that readers of text look for, or had better.
const WORDS: &[&str] = &[
    "${A}",
    "${A:-",
    "$$",
    "\\\"",
    "'''",
    "\"\"\"",
    "é",
    "\u{feff}",
    "\u{202e}",
    "-1",
    "0",
    "65536",
    "4294967296",
    "18446744073709551616",
    "1e999",
    "::ffff:1.2.3.4",
    "/0",
    "/129",
    "-",
    ":",
    "[[",
    "]]",
    "null",
    "true",
    "../",
    "\0",
];
const NO_WORDS: &[&str] = &["\0", "\u{ff}"];

fn spoilt(seeds: Vec<Vec<u8>>, words: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    (
        select(seeds.clone()),
        vec((change(words), select(seeds)), 0..8),
    )
        .prop_map(|(mut bytes, changes)| {
            for (change, other) in changes {
                let length = bytes.len();
                let place = |at: Index| if length == 0 { 0 } else { at.index(length) };
                match change {
                    Change::Set(at, to) if length > 0 => bytes[place(at)] = to,
                    Change::Flip(at, bit) if length > 0 => bytes[place(at)] ^= 1 << bit,
                    Change::Set(..) | Change::Flip(..) => {}
                    Change::Cut(at) => bytes.truncate(place(at)),
                    Change::Remove(at, count) => {
                        let first = place(at);
                        bytes.drain(first..length.min(first + usize::from(count)));
                    }
                    Change::Insert(at, more) => {
                        bytes.splice(place(at)..place(at), more);
                    }
                    Change::Repeat(at, count, times) => {
                        let first = place(at);
                        let piece = bytes[first..length.min(first + usize::from(count))].to_vec();
                        bytes.splice(first..first, piece.repeat(usize::from(times)));
                    }
                    Change::Splice(at, from) => {
                        bytes.truncate(place(at));
                        if !other.is_empty() {
                            bytes.extend(&other[from.index(other.len())..]);
                        }
                    }
                }
            }
            bytes
        })
}

fn spoilt_text(seeds: &[&str]) -> impl Strategy<Value = String> {
    let seeds = seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect();
    spoilt(seeds, WORDS).prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// No file beside the source for what fails: it becomes a seed.
fn settings() -> Settings {
    Settings {
        failure_persistence: None,
        ..Settings::default()
    }
}

/// A configuration with every kind of value.
const FULL: &str = r#"
name = "shop"
[network]
subnet = "172.18.0.0/24"
ipv6 = "fd00:18::/64"
[vars]
TOKEN = "x"
A = { default = "${B:-b}", secret = true }
[sidecar]
address = "172.18.0.33"
rules = "rules.nft"
[app.web]
address = "172.18.0.23"
rootfs = "dir:/srv/root"
command = ["/server", "--token=${TOKEN}", "$$"]
env = { PATH = "/bin", NAME = "${A}" }
publish = ["0.0.0.0:8000-8010:9000-9010/udp", "[::1]:5000:5000"]
allow = ["192.0.2.0/24", "2001:db8::/64"]
rate = "200/second"
egress = ["tcp 192.0.2.1:443", "udp [2001:db8::1]:53", "tcp 10.0.0.0/8:1-1024"]
connect = ["db:5432"]
volumes = ["/srv/data:/data:rw", "./conf:/etc/x:exec"]
tmpfs = ["/run:1M", "/dev/shm:64M"]
limits = { memory = "256M", pids = 64, cpu = 1.5, files = 1024 }
stop_signal = "INT"
stop_timeout = "10s"
replace = "rolling"
restart = "on-failure"
seccomp = "default"
[app.db]
command = ["/db"]
listen = [5432]
wait = false
"#;

const ENV: &str = "\u{feff}# comment\nexport A=1\nB = 'single $A' # after\nC=\"two\nlines \\\" ${A:-x} $$ \\$\"\nD=${C}\nE=a#b #c\nF\n";

const RULES: &str = "table inet user {\n  set bad { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.0.2.1 } }\n  \
    chain forward { type filter hook forward priority 5; policy accept;\n    ip saddr @bad drop # one\n    \
    tcp dport { 80, 443 } log prefix \"a { b\" accept; udp dport 53 \\\n      counter\n  }\n}\n";

const PROFILE: &str = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"archMap":[{"architecture":"SCMP_ARCH_X86_64",
"subArchitectures":["SCMP_ARCH_X86"]}],"syscalls":[{"names":["read","write","socket"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,
"value":2,"valueTwo":0,"op":"SCMP_CMP_EQ"}],"includes":{"caps":["CAP_SYS_ADMIN"],"minKernel":"4.8"},"excludes":{}},{"name":"clone",
"action":"SCMP_ACT_ERRNO","errnoRet":1,"args":[{"index":0,"value":2114060288,"op":"SCMP_CMP_MASKED_EQ"}]}]}"#;

/// As the kernel writes a connection's end (`NFULNL_MSG_PACKET`, `IPCTNL_MSG_CT_DELETE`).
fn kernel_messages() -> Vec<Vec<u8>> {
    let packet = {
        let mut bytes = vec![
            0x45, 0, 0, 60, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 9, 172, 18, 0, 23,
        ];
        bytes.extend([
            0x9c, 0x40, 0x13, 0x88, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x11, 0, 0, 0, 0, 0, 0,
        ]);
        bytes
    };
    let mut logged = vec![];
    netlink::message(
        &mut logged,
        (libc::NFNL_SUBSYS_ULOG << 8, 0, 0),
        (libc::AF_INET, 0),
        |out| {
            out.text(10, "guard/drop-rest");
            out.number(2, 0x0102_0304);
            out.number(4, 7);
            out.number(12, 41);
            out.bytes(3, &[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2]);
            out.bytes(9, &packet);
        },
    );
    let mut gone = vec![];
    netlink::message(
        &mut gone,
        (libc::NFNL_SUBSYS_CTNETLINK << 8 | 2, 0, 0),
        (libc::AF_INET, 0),
        |out| {
            for (tuple, address, port) in
                [(1, [10, 0, 0, 9], 40_000u16), (2, [172, 18, 0, 23], 5000)]
            {
                out.nest(tuple, |out: &mut Attributes<'_>| {
                    out.nest(1, |out| out.bytes(1, &address));
                    out.nest(2, |out| {
                        out.bytes(1, &[6]);
                        out.bytes(2, &port.to_be_bytes());
                    });
                });
            }
            for counters in [9, 10] {
                out.nest(counters, |out| {
                    out.bytes(1, &3u64.to_be_bytes());
                    out.bytes(2, &u64::MAX.to_be_bytes());
                });
            }
            out.nest(4, |out| out.nest(1, |out| out.bytes(1, &[7])));
        },
    );
    vec![[&logged[..], &gone].concat(), logged, gone]
}

fn packets() -> Vec<Vec<u8>> {
    let tail = [
        0x9c, 0x40, 0x13, 0x88, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x02, 0, 0, 0, 0, 0, 0,
    ];
    let four = |protocol: u8| {
        let mut packet = vec![
            0x45, 0, 0, 40, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 9, 172, 18, 0, 23,
        ];
        packet.extend(tail);
        packet
    };
    let six = |next: u8, headers: &[u8]| {
        let mut packet = vec![0x60, 0, 0, 0, 0, (20 + headers.len()) as u8, next, 64];
        packet.extend([0xfd; 16]);
        packet.extend([0xfe; 16]);
        packet.extend(headers);
        packet.extend(tail);
        packet
    };
    vec![
        four(6),
        four(17),
        four(1),
        six(6, &[]),
        six(
            0,
            &[
                43, 0, 0, 0, 0, 0, 0, 0, 44, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 1, 0, 0, 0, 0,
            ],
        ),
        six(
            51,
            &[
                58, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ],
        ),
    ]
}

/// What the relay sends: what it has refused, of whose clients, and a line of one.
fn refusals_message() -> Vec<u8> {
    let mut bytes = vec![];
    let refusals = traffic::Refusals {
        not_allowed: 3,
        rate: 2,
        share: 1,
    };
    wire::put_refusals(&mut bytes, &refusals, &[4, 2]);
    let refused = wire::samples().into_iter().find(|record| {
        matches!(
            record.event,
            traffic::Event::Packet {
                accepted: false,
                ..
            }
        )
    });
    if let Some(traffic::Record {
        time,
        event: traffic::Event::Packet { link, packet, .. },
    }) = refused
    {
        let rule = traffic::Name::new(b"relay/drop-rate");
        let event = traffic::Event::Packet {
            rule,
            link,
            accepted: false,
            packet,
        };
        wire::put_record(&mut bytes, &traffic::Record { time, event });
    }
    bytes
}

/// What the sidecar sends: totals of two apps, and a record of each kind.
fn wire_message() -> Vec<u8> {
    let mut bytes = vec![];
    let totals = traffic::Totals {
        refused: 7,
        apps: vec![traffic::AppTotals::default(); 2],
        ..traffic::Totals::default()
    };
    wire::put_totals(&mut bytes, &totals);
    for record in wire::samples() {
        wire::put_record(&mut bytes, &record);
    }
    bytes
}

proptest! {
    #![proptest_config(settings())]

    #[test]
    fn a_configuration(text in spoilt_text(&[config::EXAMPLE, FULL])) {
        let said = config::parse(Path::new("/spoilt/lrpns.toml"), &text, &Vars::default());
        if let Err(errors) = said {
            let told = errors.to_string();
            prop_assert!(!told.is_empty());
            // What is quoted of a line is bounded, whatever the line.
            prop_assert!(told.len() < 64 * 1024, "{} bytes of mistakes in {}", told.len(), text.len());
        }
    }

    #[test]
    fn an_env_file(text in spoilt_text(&[ENV])) {
        let vars = Vars { env_file: Some((PathBuf::from("/spoilt/.env"), text)), ..Vars::default() };
        let _ = config::parse(Path::new("/spoilt/lrpns.toml"), FULL, &vars);
    }

    #[test]
    fn words_of_a_configuration(text in spoilt_text(&[
        "0.0.0.0:8000-8010:9000-9010/udp", "[fd00::1]:1:1", "tcp 192.0.2.0/24:1-1024", "udp [::1]:53", "db:5432-5433/udp",
        "2001:db8::/64", "200/second", "1h", "10s",
    ])) {
        let _ = text.parse::<config::Publish>();
        let _ = text.parse::<config::Tmpfs>();
        let _ = names::StackName::new(&text);
        let _ = names::PartName::new(&text);
        let _ = names::IfName::new(&text);
        let shown = text::harmless(&text, 40);
        prop_assert!(shown.len() <= 43 && !shown.chars().any(text::is_hostile), "{shown:?}");
    }

    #[test]
    fn rules_in_pieces(text in spoilt_text(&[RULES])) {
        let pieces = Pieces::of(&text);
        let all = pieces.split();
        // Every rule is in one piece, and a piece has as many lines as the whole.
        let mut next = 0;
        for piece in all {
            prop_assert_eq!(piece.start, next);
            next = piece.end;
            prop_assert_eq!(pieces.piece(piece).matches('\n').count(), text.matches('\n').count());
        }
    }

    #[test]
    fn a_seccomp_profile(text in spoilt_text(&[PROFILE])) {
        let _ = docker::parse("spoilt", &text, Kernel::running());
    }

    #[test]
    fn messages_between_processes_of_a_stack(text in spoilt_text(&[
        r#"{"Ready":{"privileges":{},"notes":["a"]}}"#,
        r#"{"Failed":{"step":"s","cause":"c","errno":1}}"#,
        r#""Started""#, r#"{"Ended":{"Code":3}}"#, r#""Status""#, r#"{"Restart":{"part":"app"}}"#,
        r#"{"Logs":{"filter":{"parts":["app"]},"follow":true}}"#, r#"{"Enter":{"part":"app"}}"#, r#"{"Load":{"rules":"00ffé"}}"#,
    ])) {
        let _ = serde_json::from_str::<FromStage>(&text);
        let _ = serde_json::from_str::<ToStage>(&text);
        let _ = serde_json::from_str::<control::Request>(&text);
        let _ = serde_json::from_str::<control::Reply>(&text);
        let _ = serde_json::from_str::<log::LogLine>(&text);
    }

    #[test]
    fn messages_of_the_kernel(bytes in spoilt(kernel_messages(), NO_WORDS)) {
        for message in netlink::messages(&bytes) {
            let _ = (message.error(), message.words());
            let _ = Logged::parse(message.body);
            let _ = Forgotten::parse(message.body);
        }
    }

    #[test]
    fn a_packet(bytes in spoilt(packets(), NO_WORDS)) {
        if let Some(packet) = Packet::parse(&bytes) {
            prop_assert!(packet.length <= 40 + 65_535);
            prop_assert!(packet.tcp.is_none_or(|tcp| tcp.payload <= packet.length));
        }
    }

    #[test]
    fn packets_that_a_rule_logged(all in vec((spoilt(packets(), NO_WORDS), any::<u32>(), 0..3u64), 0..12)) {
        let mut tracker = Tracker::new(&traffic::Settings {
            apps: vec![vec![[172, 18, 0, 23].into()]],
            ..traffic::Settings::default()
        });
        let mut ticks = 0;
        for (payload, mark, seconds) in &all {
            ticks += seconds * 1_000_000_000;
            let now = Now { wall: ticks as i64, ticks };
            let logged = Logged { payload, mark: *mark, ..Logged::default() };
            tracker.edge(now, &logged);
            tracker.refused(now, &logged, traffic::Name::new(payload));
            tracker.tick(now);
        }
        // Each packet says two things at most: a beginning and an end.
        prop_assert!(tracker.records.len() <= 4 * all.len() + 4, "{} of {}", tracker.records.len(), all.len());
    }

    #[test]
    fn refusals_of_a_relay(bytes in spoilt(vec![refusals_message()], NO_WORDS)) {
        if let Some((_, apps, records)) = wire::read_refusals(&bytes) {
            prop_assert!(apps.len() <= wire::MOST_APPS);
            prop_assert!(records.len() <= bytes.len());
        }
    }

    #[test]
    fn records_of_the_sidecar(bytes in spoilt(vec![wire_message()], NO_WORDS)) {
        if let Some((_, records)) = wire::read(&bytes) {
            let read = wire::records(records).count();
            prop_assert!(read <= records.len());
        }
    }

    #[test]
    fn requests_of_the_carrier(bytes in spoilt(vec![vec![0; 26], vec![0xff; 12]], NO_WORDS)) {
        if let Some(request) = Request::of(&bytes) {
            prop_assert_eq!(Request::of(&request.bytes()), Some(request));
        }
        if let Some(answer) = Answer::of(&bytes) {
            prop_assert_eq!(Answer::of(&answer.bytes()), Some(answer));
        }
    }
}

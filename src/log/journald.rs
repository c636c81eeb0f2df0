//! The log in systemd's journal, by its native protocol (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>): a datagram for each
//! line, with fields that `journalctl LRPNS_STACK=shop LRPNS_PART=web` chooses by.
//!
//! # Theory of operation
//!
//! journald limits what one unit may say, and all parts of a stack are one unit: so each part has a budget of lines here, and
//! what exceeds it is counted. A journald that is slow, or not there, is not waited for: lines are counted as missing until
//! it takes one again.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::Value;

use super::budget::Bucket;
use super::{LogLine, Stream};
use crate::confine::privileges::HOST_IDS;
use crate::traffic::line::{Fields, Kind};

/// Where journald listens.
pub const SOCKET: &str = "/run/systemd/journal/socket";
/// How many lines of a part go there each second…
const LINES_A_SECOND: u64 = 200;
/// …and at once.
const LINES_AT_ONCE: u64 = 5_000;
/// How often a journald that is not there is looked for.
const TRY_EVERY: Duration = Duration::from_secs(1);

/// A conversation with journald, which says nothing.
#[derive(Debug)]
pub struct Journald {
    path: PathBuf,
    /// The fields that every line has.
    fixed: Vec<u8>,
    socket: Option<UnixDatagram>,
    tried: Instant,
    parts: BTreeMap<String, Part>,
}

#[derive(Debug)]
struct Part {
    budget: Bucket,
    /// How many lines the budget had no room for, and how many journald had none for.
    left_out: u64,
    missing: u64,
}

impl Journald {
    /// Connects to whoever listens there.
    ///
    /// # Errors
    /// What the kernel says, with what was tried.
    pub fn connect(path: &Path, stack: &str, run: &str) -> Result<Self, String> {
        let mut fixed = vec![];
        field(&mut fixed, "SYSLOG_IDENTIFIER", "lrpns");
        field(&mut fixed, "LRPNS_STACK", stack);
        field(&mut fixed, "LRPNS_RUN", run);
        let socket = connect(path).map_err(|e| format!("connect to {}: {e}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            fixed,
            socket: Some(socket),
            tried: Instant::now(),
            parts: BTreeMap::new(),
        })
    }

    /// Sends a line, unless its part has sent too many.
    pub fn write(&mut self, line: &LogLine, now: Instant) {
        let new = || Part {
            budget: Bucket::new(LINES_A_SECOND, LINES_AT_ONCE, now),
            left_out: 0,
            missing: 0,
        };
        let part = self.parts.entry(line.part.clone()).or_insert_with(new);
        // What happens to a part is seldom, and ours.
        if line.stream != Stream::Event && part.budget.take(1, now) == 0 {
            part.left_out += 1;
            return;
        }
        let (left_out, missing) = (part.left_out, part.missing);
        let mut sent = Ok(());
        if left_out > 0 {
            let text = format!(
                "{left_out} lines are left out here: more than {LINES_A_SECOND} a second don't go to the journal"
            );
            sent = self.send(&of_ours(line, text), now);
        }
        if sent.is_ok() && missing > 0 {
            let text = format!("{missing} lines are missing here: journald did not take them");
            sent = self.send(&of_ours(line, text), now);
        }
        let sent = sent.and_then(|()| self.send(line, now));
        if let Some(part) = self.parts.get_mut(&line.part) {
            match sent {
                Ok(()) => (part.left_out, part.missing) = (0, 0),
                Err(_) => part.missing += 1,
            }
        }
    }

    fn send(&mut self, line: &LogLine, now: Instant) -> io::Result<()> {
        let mut message = self.fixed.clone();
        fields(&mut message, line);
        if self.socket.is_none() && now.saturating_duration_since(self.tried) >= TRY_EVERY {
            self.tried = now;
            self.socket = connect(&self.path).ok();
        }
        let Some(socket) = &self.socket else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        match socket.send(&message) {
            Ok(_) => Ok(()),
            Err(e) => {
                // One that is slow stays connected; one that was started anew has another socket.
                if e.kind() != io::ErrorKind::WouldBlock {
                    self.socket = None;
                    self.tried = now;
                }
                Err(e)
            }
        }
    }
}

fn connect(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect(path)?;
    Ok(socket)
}

fn of_ours(line: &LogLine, text: String) -> LogLine {
    LogLine {
        time: line.time,
        part: line.part.clone(),
        stream: Stream::Event,
        text,
        continues: false,
        traffic: None,
    }
}

/// Adds a field, of whatever bytes.
fn field(message: &mut Vec<u8>, name: &str, value: &str) {
    message.extend_from_slice(name.as_bytes());
    match value.contains('\n') {
        false => message.push(b'='),
        true => {
            message.push(b'\n');
            message.extend_from_slice(&(value.len() as u64).to_le_bytes());
        }
    }
    message.extend_from_slice(value.as_bytes());
    message.push(b'\n');
}

/// The fields of one line.
fn fields(message: &mut Vec<u8>, line: &LogLine) {
    field(message, "MESSAGE", &line.text);
    let kind = line.traffic.as_deref().map(|traffic| traffic.event);
    // Of syslog(3): error, warning, notice, informational.
    let priority = match (line.stream, kind) {
        (Stream::Err, _) => "3",
        (_, Some(Kind::Refused)) => "4",
        (Stream::Event, _) | (_, Some(Kind::Suppressed | Kind::Lost)) => "5",
        _ => "6",
    };
    field(message, "PRIORITY", priority);
    field(message, "LRPNS_PART", &line.part);
    field(message, "LRPNS_STREAM", line.stream.as_str());
    // Writing to a Vec can't fail.
    let _ = writeln!(message, "LRPNS_TIME={}", line.time);
    if line.continues {
        field(message, "LRPNS_CONTINUES", "1");
    }
    if let Some(traffic) = &line.traffic {
        traffic_fields(message, traffic);
    }
}

fn traffic_fields(message: &mut Vec<u8>, traffic: &Fields) {
    let address = |address: std::net::SocketAddr| address.ip().to_string();
    let client = traffic.client.map(address);
    let client = client.or_else(|| traffic.source.map(|source| source.to_string()));
    let own = [
        ("LRPNS_RULE", traffic.rule.clone()),
        ("LRPNS_CLIENT", client),
        ("LRPNS_CLIENT_APP", traffic.client_app.clone()),
        ("LRPNS_APP", traffic.app.clone()),
        // The rest, for programs.
        ("LRPNS_TRAFFIC", serde_json::to_string(traffic).ok()),
    ];
    for (name, value) in own {
        if let Some(value) = value {
            field(message, name, &value);
        }
    }
}

/// The lines of a stack in the journal that `wants` lets through, in the order of time, as journalctl(1) prints them; of one
/// run of it only, if that is named.
///
/// # Errors
/// What the kernel says of it, or it itself.
pub fn read(
    stack: &str,
    run: Option<&str>,
    since: Option<Timestamp>,
    mut wants: impl FnMut(&LogLine) -> bool,
) -> io::Result<Vec<LogLine>> {
    let uid = rustix::process::geteuid().as_raw();
    let mut command = Command::new("journalctl");
    command.args(["--quiet", "--no-pager", "--all", "--output=json"]);
    if let Some(since) = since {
        command.arg(format!("--since=@{}", since.as_second()));
    }
    // Anybody may write a field; who has, only journald says. Of root's it was root, or an id that nobody but a stack of root's has.
    if uid != 0 {
        command.arg(format!("_UID={uid}"));
    }
    let is_ours = |entry: &Value| {
        let of = entry.get("_UID").and_then(Value::as_str);
        let of = of.and_then(|of| of.parse::<u32>().ok());
        of.is_some_and(|of| of == uid || (uid == 0 && HOST_IDS.contains(&of)))
    };
    command.arg(format!("LRPNS_STACK={stack}"));
    command.args(run.map(|run| format!("LRPNS_RUN={run}")));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = vec![];
    if let Some(said) = child.stdout.take() {
        for entry in BufReader::new(said).lines() {
            let line = serde_json::from_str(&entry?)
                .ok()
                .filter(is_ours)
                .and_then(|entry| line(&entry));
            lines.extend(line.filter(|line| wants(line)));
        }
    }
    let ended = child.wait()?;
    if !ended.success() && lines.is_empty() {
        return Err(io::Error::other(format!("journalctl: {ended}")));
    }
    lines.sort_by_key(|line: &LogLine| line.time);
    Ok(lines)
}

/// An entry as the line that it was.
fn line(entry: &Value) -> Option<LogLine> {
    let text = |name: &str| -> Option<String> {
        match entry.get(name)? {
            Value::String(text) => Some(text.clone()),
            // What isn't printable.
            Value::Array(bytes) => {
                let bytes = bytes.iter().map(|byte| u8::try_from(byte.as_u64()?).ok());
                let bytes: Option<Vec<u8>> = bytes.collect();
                Some(String::from_utf8_lossy(&bytes?).into_owned())
            }
            _ => None,
        }
    };
    Some(LogLine {
        time: text("LRPNS_TIME")?.parse().ok()?,
        part: text("LRPNS_PART")?,
        stream: Stream::named(&text("LRPNS_STREAM")?)?,
        text: text("MESSAGE")?,
        continues: text("LRPNS_CONTINUES").is_some(),
        traffic: text("LRPNS_TRAFFIC").and_then(|traffic| serde_json::from_str(&traffic).ok()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> LogLine {
        LogLine {
            time: Timestamp::UNIX_EPOCH,
            part: "web".to_owned(),
            stream: Stream::Err,
            text: text.to_owned(),
            continues: false,
            traffic: None,
        }
    }

    struct Listener {
        _dir: tempfile::TempDir,
        path: PathBuf,
        socket: UnixDatagram,
    }

    impl Listener {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("socket");
            let socket = UnixDatagram::bind(&path).unwrap();
            socket.set_nonblocking(true).unwrap();
            Self {
                _dir: dir,
                path,
                socket,
            }
        }

        fn next(&self) -> Option<String> {
            let mut message = vec![0; 64 << 10];
            let got = self.socket.recv(&mut message).ok()?;
            Some(String::from_utf8_lossy(&message[..got]).into_owned())
        }
    }

    #[test]
    fn a_line_is_one_datagram_of_fields_and_can_not_forge_another() {
        let listener = Listener::new();
        let mut journald = Journald::connect(&listener.path, "shop", "0123abcd").unwrap();
        let now = Instant::now();
        journald.write(&line("FATAL"), now);
        assert_eq!(
            listener.next().unwrap(),
            "SYSLOG_IDENTIFIER=lrpns\nLRPNS_STACK=shop\nLRPNS_RUN=0123abcd\nMESSAGE=FATAL\nPRIORITY=3\n\
             LRPNS_PART=web\nLRPNS_STREAM=err\nLRPNS_TIME=1970-01-01T00:00:00Z\n"
        );
        journald.write(&line("a\nLRPNS_PART=db"), now);
        let said = listener.next().unwrap();
        assert!(
            said.contains("MESSAGE\n\u{f}\0\0\0\0\0\0\0a\nLRPNS_PART=db\nPRIORITY"),
            "{said:?}"
        );
        let refused = Fields {
            event: Kind::Refused,
            rule: Some("input/drop-unpublished".to_owned()),
            source: Some([192, 0, 2, 7].into()),
            ..Fields::default()
        };
        journald.write(
            &LogLine {
                stream: Stream::Traffic,
                traffic: Some(Box::new(refused)),
                ..line("refused")
            },
            now,
        );
        let said = listener.next().unwrap();
        for field in [
            "PRIORITY=4",
            "LRPNS_RULE=input/drop-unpublished",
            "LRPNS_CLIENT=192.0.2.7",
        ] {
            assert!(said.contains(&format!("\n{field}\n")), "{said}");
        }
    }

    #[test]
    fn what_journald_does_not_take_is_not_waited_for_and_counted() {
        let listener = Listener::new();
        let mut journald = Journald::connect(&listener.path, "shop", "0123abcd").unwrap();
        let now = Instant::now();
        // Nobody reads: the kernel keeps a few.
        for _ in 0..1000 {
            journald.write(&line("x"), now);
        }
        let taken = std::iter::from_fn(|| listener.next()).count();
        assert!((1..1000).contains(&taken), "{taken}");
        journald.write(&line("again"), now);
        let said = listener.next().unwrap();
        let missing = format!("MESSAGE={} lines are missing here", 1000 - taken);
        assert!(said.contains(&missing), "{said}");
        assert!(listener.next().unwrap().contains("MESSAGE=again"));
        // And one that was started anew is found.
        let Listener { path, socket, .. } = &listener;
        std::fs::remove_file(path).unwrap();
        let before = socket.try_clone().unwrap();
        drop(listener.socket);
        drop(before);
        journald.write(&line("lost"), now);
        let socket = UnixDatagram::bind(&listener.path).unwrap();
        journald.write(&line("too early"), now);
        journald.write(&line("found"), now + TRY_EVERY);
        let mut message = vec![0; 64 << 10];
        let got = socket.recv(&mut message).unwrap();
        let said = String::from_utf8_lossy(&message[..got]);
        assert!(said.contains("MESSAGE=2 lines are missing here"), "{said}");
    }

    #[test]
    fn a_flood_of_one_part_leaves_the_others_theirs() {
        let listener = Listener::new();
        let mut journald = Journald::connect(&listener.path, "shop", "0123abcd").unwrap();
        let now = Instant::now();
        let mut sent = 0;
        for _ in 0..LINES_AT_ONCE + 100 {
            journald.write(&line("flood"), now);
            sent += u64::from(listener.next().is_some());
        }
        assert_eq!(sent, LINES_AT_ONCE);
        journald.write(
            &LogLine {
                part: "db".to_owned(),
                ..line("quiet")
            },
            now,
        );
        assert!(listener.next().unwrap().contains("MESSAGE=quiet"));
        journald.write(&line("again"), now + Duration::from_secs(1));
        let said = listener.next().unwrap();
        assert!(
            said.contains("MESSAGE=100 lines are left out here"),
            "{said}"
        );
    }
}

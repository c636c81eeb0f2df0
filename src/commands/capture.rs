//! `lrpns capture`: the packets that the sidecar lets through and refuses, as pcapng or as lines.
//!
//! # Theory of operation
//!
//! A child opens two sockets in the sidecar's namespaces (`opener`): one reads the NFLOG group of captures, to which every
//! rule that drops logs anyway; the other owns a table whose one rule logs to it what has been let through
//! (`NFT_TABLE_F_OWNER`). Reading needs no privilege, so this process gives up what it has. When it ends, however it ends,
//! the kernel takes the table away with its socket.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use caps::Capability;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags};

use super::opener::{open_inside, part_of};
use super::{ask, reply, status_of};
use crate::commands::failure::{Failure, chain};
use crate::config::Source;
use crate::confine::privileges;
use crate::control::{Client, Reply, Request};
use crate::firewall::{self, logging};
use crate::log::{Filter as LogFilter, Stream};
use crate::names::StackName;
use crate::plan::{AppPlan, Plan, PublishPlan, Transport};
use crate::traffic::kernel::{Group, Logged, Reader};
use crate::traffic::line::Names;
use crate::traffic::pcapng::{Way, Writer};
use crate::traffic::{Event, Name, Packet, Record};

/// Which packets are wanted: all that each word of the command line wants.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Filter {
    client: Option<IpAddr>,
    port: Option<u16>,
    refused: bool,
}

impl Filter {
    /// Reads the words of the command line.
    ///
    /// # Errors
    /// What is wrong with them, with an example.
    pub fn parse(words: &[String]) -> Result<Self, Failure> {
        let wrong = |what: String| {
            Failure::usage(what).hint(
                "a filter is made of `client ADDRESS`, `port PORT` and `refused`: lrpns capture -w - port 5000 refused",
            )
        };
        let mut filter = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "refused" => filter.refused = true,
                "client" => {
                    let address = words.next().map(|word| word.parse::<IpAddr>());
                    let Some(Ok(address)) = address else {
                        return Err(wrong("`client` wants an address".to_owned()));
                    };
                    // No packet has an IPv4 address written as IPv6.
                    if filter.client.replace(address.to_canonical()).is_some() {
                        return Err(wrong("there can be one `client`".to_owned()));
                    }
                }
                "port" => {
                    let port = words.next().map(|word| word.parse::<NonZeroU16>());
                    let Some(Ok(port)) = port else {
                        return Err(wrong("`port` wants a number from 1 to 65535".to_owned()));
                    };
                    if filter.port.replace(port.get()).is_some() {
                        return Err(wrong("there can be one `port`".to_owned()));
                    }
                }
                other => return Err(wrong(format!("`{other}` is no filter"))),
            }
        }
        Ok(filter)
    }

    fn wants(&self, packet: &Packet, refused: bool) -> bool {
        let of = |address| packet.source == address || packet.target == address;
        let with = |port| {
            packet
                .ports
                .is_some_and(|(from, to)| from == port || to == port)
        };
        self.client.is_none_or(of) && self.port.is_none_or(with) && (refused || !self.refused)
    }
}

/// Whether packets of this client are the relay's where they are captured.
fn goes_by_relay(client: IpAddr, plan: &Plan) -> bool {
    let of_family = |publish: &&PublishPlan| publish.listen.is_ipv4() == client.is_ipv4();
    let mut apps = plan.apps.iter().filter(|app| app.source != Source::Client);
    client != relays_address(client, plan)
        && apps.any(|app| {
            let mut published = app.publish.iter().filter(of_family);
            published.any(|publish| publish.via == Transport::Relay)
        })
}

/// Where the relay dials from, in the client's family if the stack has it.
fn relays_address(client: IpAddr, plan: &Plan) -> IpAddr {
    let ipv4 = IpAddr::from(plan.uplink.host_address);
    match plan.uplink.host_address6 {
        Some(ipv6) if client.is_ipv6() => ipv6.into(),
        _ => ipv4,
    }
}

/// The stack, if the first word is its name, and the filter.
///
/// # Errors
/// The first word is neither.
pub fn split(words: &[String]) -> (Option<&str>, &[String]) {
    match words.split_first() {
        Some((first, rest)) if !matches!(first.as_str(), "client" | "port" | "refused") => {
            (Some(first), rest)
        }
        _ => (None, words),
    }
}

/// Captures until it is interrupted, has `count` packets, or the stack ends.
pub fn capture(
    stack: &StackName,
    file: Option<&Path>,
    count: Option<u64>,
    filter: &Filter,
) -> Result<ExitCode, Failure> {
    let unable =
        |what: &str, e: &dyn std::fmt::Display| Failure::unable(format!("{stack}: {what}: {e}"));
    if file == Some(Path::new("-")) && io::stdout().is_terminal() {
        return Err(
            Failure::usage("pcapng is nothing for a terminal".to_owned())
                .hint("into a program: lrpns capture -w - | tcpdump -r -"),
        );
    }
    let status = status_of(stack)?;
    let (sidecar, _) = part_of(stack, "sidecar")?;
    let ends = Ends {
        stack: end_of(stack, &unable)?,
        signals: signals(&unable)?,
    };
    let out: Option<Box<dyn Write>> = match file {
        None => None,
        Some(path) if path == Path::new("-") => Some(Box::new(io::stdout())),
        Some(path) => {
            Some(Box::new(File::create(path).map_err(|e| {
                unable(&format!("write {}", path.display()), &e)
            })?))
        }
    };
    let (mut reader, _table) =
        sockets(&sidecar, filter.refused).map_err(|e| unable("capture in its sidecar", &e))?;
    drop(sidecar);
    privileges::keep_nothing().map_err(|e| unable("give up privileges", &e))?;

    let sink = match out {
        Some(out) => Writer::new(out).map(Sink::File),
        None => Ok(Sink::Lines(Names::of(&status.plan))),
    };
    let mut capture = Capture {
        plan: &status.plan,
        filter,
        left: count.unwrap_or(u64::MAX),
        links: HashMap::new(),
        interfaces: vec![],
        sink: match sink {
            Ok(sink) => sink,
            Err(e) => return ended(e, &unable),
        },
    };
    if file.is_some() {
        eprintln!("capturing, until Ctrl-C");
    }
    if let Some(client) = filter
        .client
        .filter(|client| goes_by_relay(*client, &status.plan))
    {
        eprintln!(
            "note: who comes by relay has the relay's address in the sidecar, so `client {}` is what to ask for; \
             source = \"client\" shows who it is",
            relays_address(client, &status.plan)
        );
    }
    loop {
        let (read, over) = ends
            .or_packets(&reader)
            .map_err(|e| unable("wait for packets", &e))?;
        if read || over {
            let links = reader.names();
            // To the end of what there is, if it is the last time.
            while reader
                .packets(|logged| capture.packet(&logged, &links))
                .map_err(|e| unable("read packets", &e))?
                && (over || capture.left > 0)
            {}
        }
        let over = over || capture.left == 0;
        if over {
            capture.finish(reader.lost);
        }
        if let Err(e) = capture.flush() {
            return ended(e, &unable);
        }
        if over {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// What to say of what could not be done.
type Unable<'u> = &'u dyn Fn(&str, &dyn std::fmt::Display) -> Failure;

/// What ends a capture, beside its count.
struct Ends {
    /// Ends when the stack does.
    stack: Client,
    signals: SignalFd,
}

impl Ends {
    /// Waits until something happens: whether there are packets, and whether it is over.
    fn or_packets(&self, reader: &Reader) -> Result<(bool, bool), rustix::io::Errno> {
        let mut ready = [
            PollFd::from_borrowed_fd(reader.fd(), PollFlags::IN),
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.stack, PollFlags::IN),
        ];
        match rustix::event::poll(&mut ready, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e),
        }
        let [read, stop, over] = ready.map(|fd| !fd.revents().is_empty());
        Ok((read, stop || over))
    }
}

/// A conversation that ends when the stack does: a log that nothing is ever written to.
fn end_of(stack: &StackName, unable: Unable<'_>) -> Result<Client, Failure> {
    let nothing = LogFilter {
        parts: vec!["sidecar".to_owned()],
        stream: Some(Stream::Out),
        from: u64::MAX,
    };
    let lives = ask(
        stack,
        &Request::Logs {
            filter: nothing,
            follow: true,
        },
    )?;
    match reply(&lives, stack)? {
        (Reply::UpToDate, _) => Ok(lives),
        _ => Err(unable(
            "follow its log",
            &"its supervisor gave another answer",
        )),
    }
}

/// What Ctrl-C and other signals to end are heard by.
fn signals(unable: Unable<'_>) -> Result<SignalFd, Failure> {
    let mut end = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        end.add(signal);
    }
    end.thread_block()
        .map_err(|e| unable("block signals", &e))?;
    SignalFd::with_flags(&end, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(|e| unable("watch signals", &e))
}

/// A reader that has gone away is an end like any other.
fn ended(e: io::Error, unable: Unable<'_>) -> Result<ExitCode, Failure> {
    match e.kind() {
        io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        _ => Err(unable("write packets", &e)),
    }
}

/// The two sockets, opened in the sidecar's namespaces; the second one's table lives as long as it does.
fn sockets(sidecar: &OwnedFd, refused_only: bool) -> Result<(Reader, Option<OwnedFd>), String> {
    let give_up = || privileges::keep_only(&[Capability::CAP_NET_ADMIN]);
    let fds = open_inside(Some(sidecar), give_up, || {
        let group = Group {
            number: logging::CAPTURE,
            // As much as an attribute holds.
            snaplen: 0xffff - 4,
            patience: 1,
        };
        let reader = Reader::nflog(&group).map_err(|e| match e.raw_os_error() {
            // Of a group that another socket reads (nfulnl_recv_config()); NET_ADMIN is held, that was read back.
            Some(libc::EPERM | libc::EBUSY) => "another capture of this stack goes on".to_owned(),
            _ => format!("listen: {e}"),
        })?;
        let table = (!refused_only).then(own_table).transpose()?;
        let fds = [Some(reader.fd()), table.as_ref().map(AsFd::as_fd)];
        let fds = fds.into_iter().flatten().map(|fd| fd.try_clone_to_owned());
        let fds: io::Result<Vec<_>> = fds.collect();
        fds.map_err(|e| format!("copy a descriptor: {e}"))
    })?;
    let mut fds = fds.into_iter();
    let reader = fds.next().ok_or("no descriptor came")?;
    let reader = Reader::from_fd(reader).map_err(|e| format!("take its socket: {e}"))?;
    Ok((reader, fds.next()))
}

/// A socket with a table of its own, which logs what has been let through.
fn own_table() -> Result<firewall::Socket, String> {
    let rules = firewall::encode_owned(&firewall::capture_rules());
    let rules = rules.map_err(|e| format!("make the rules: {e}"))?;
    let socket = firewall::Socket::open().map_err(|e| chain(&e))?;
    firewall::transact(&socket, &rules).map_err(|e| chain(&e))?;
    Ok(socket)
}

/// Where packets go.
enum Sink {
    File(Writer<Box<dyn Write>>),
    Lines(Names),
}

struct Capture<'a> {
    plan: &'a Plan,
    filter: &'a Filter,
    /// How many packets are still wanted.
    left: u64,
    links: HashMap<u32, String>,
    /// By number in the file.
    interfaces: Vec<String>,
    sink: Sink,
}

impl Capture<'_> {
    fn packet(&mut self, logged: &Logged<'_>, names: &dyn Fn(u32) -> String) {
        let refused = logged.rule != firewall::CAPTURED;
        let Some(packet) = Packet::parse(logged.payload) else {
            return;
        };
        if self.left == 0 || !self.filter.wants(&packet, refused) {
            return;
        }
        self.left -= 1;
        let time = logged.time.unwrap_or_else(now);
        let (number, way) = match (logged.from_link, logged.to_link) {
            (0, to) => (to, Way::Out),
            (from, _) => (from, Way::In),
        };
        let link = self.links.entry(number);
        let link = link.or_insert_with(|| names(number)).clone();
        match &mut self.sink {
            Sink::Lines(lines) => {
                let record = Record {
                    time,
                    event: Event::Packet {
                        rule: Name::new(logged.rule.as_bytes()),
                        link: Name::new(link.as_bytes()),
                        accepted: !refused,
                        packet,
                    },
                };
                let (time, text, _) = lines.line(&record);
                // A reader that has gone away is seen when the next batch is flushed.
                let _ = writeln!(io::stdout(), "{time:.6} {text}");
            }
            Sink::File(writer) => {
                let (name, description) = describe(self.plan, &link, &packet);
                let known = self.interfaces.iter().position(|known| *known == name);
                let interface = match known {
                    Some(at) => at as u32,
                    None => {
                        let number = writer.interface(&name, &description);
                        self.interfaces.push(name);
                        number
                    }
                };
                let comment = refused.then(|| format!("refused by {}", logged.rule));
                let at = (interface, way);
                writer.packet(time, at, packet.length, logged.payload, comment.as_deref());
            }
        }
    }

    fn finish(&mut self, lost: u64) {
        if let Sink::File(writer) = &mut self.sink
            && !self.interfaces.is_empty()
        {
            writer.lost(now(), 0, lost);
        }
        if lost > 0 {
            eprintln!("{lost} packets are missing: they came faster than they were written");
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.sink {
            Sink::File(writer) => writer.flush(),
            Sink::Lines(_) => io::stdout().flush(),
        }
    }
}

/// A link's name in the file, and what it is. What comes by the bridge came by the port of the app whose address it has.
fn describe(plan: &Plan, link: &str, packet: &Packet) -> (String, String) {
    // What leaves by the uplink is of a socket that an app was handed.
    let sends =
        |app: &&AppPlan| app.via_socket && app.addresses().any(|address| address == packet.source);
    if let Some(app) = plan.apps.iter().find(sends) {
        return ("socket".to_owned(), format!("app {}", app.name));
    }
    if link == plan.uplink.sidecar_link.as_str() {
        return (link.to_owned(), "uplink, the way to the host".to_owned());
    }
    if link == plan.bridge.name.as_str() {
        let app = plan
            .apps
            .iter()
            .find(|app| app.addresses().any(|address| address == packet.source));
        return match app {
            Some(app) => (app.port_link.to_string(), format!("app {}", app.name)),
            None => (link.to_owned(), "bridge, from no app's address".to_owned()),
        };
    }
    (link.to_owned(), String::new())
}

fn now() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |now| now.as_nanos() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_read_word_by_word() {
        let words = |text: &str| {
            text.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let filter = Filter::parse(&words("client 10.0.0.1 refused port 53")).unwrap();
        assert_eq!(
            filter,
            Filter {
                client: Some([10, 0, 0, 1].into()),
                port: Some(53),
                refused: true
            }
        );
        let mapped = Filter::parse(&words("client ::ffff:10.0.0.1")).unwrap();
        assert_eq!(mapped.client, filter.client);
        for wrong in [
            "port",
            "port x",
            "port 0",
            "port 1 port 2",
            "client 300.0.0.1",
            "client 10.0.0.1 client 10.0.0.2",
            "udp",
        ] {
            assert!(Filter::parse(&words(wrong)).is_err(), "{wrong}");
        }
    }
}

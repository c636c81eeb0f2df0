//! One network namespace, what is marked there, and what came of it.
//!
//! A child (`opener`) makes the table that marks, takes down how the rules are called, and hands up the sockets. The table
//! lives as long as the last descriptor of the socket that owns it.

use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::{AsFd, OwnedFd};

use caps::Capability;
use nix::sys::socket::SockProtocol;
use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};

use super::super::opener::open_inside;
use super::seen::{Names, Sight, Site};
use crate::commands::failure::chain;
use crate::confine::privileges;
use crate::firewall::trace::{Packets, RuleName, Tracer, rule_names};
use crate::firewall::{self, Fill};
use crate::net::{Listening, Routes};
use crate::stack::rules;

/// One network namespace.
pub(super) struct Place {
    pub(super) sight: Sight,
    pub(super) tracer: Tracer,
    pub(super) routes: Routes,
}

/// What the child tells about the rules that there are, and of connections.
#[derive(Serialize, Deserialize)]
struct Rules {
    connections: Option<Fill>,
    comments: Vec<RuleName>,
    texts: Vec<RuleName>,
}

impl Place {
    /// Opens one; `part` is the pidfd of the process whose namespaces they are, `None` for our own.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub(super) fn open(
        site: Site,
        part: Option<&OwnedFd>,
        packets: &[Packets],
    ) -> Result<Self, String> {
        let number = std::process::id();
        // nft, which tells of the rules, is executed.
        let give_up = || privileges::keep_only_and_pass_on(&[Capability::CAP_NET_ADMIN]);
        let open = || -> Result<Vec<OwnedFd>, String> {
            let tracer = Tracer::start(packets, number).map_err(|e| chain(&e))?;
            let routes = Routes::open().map_err(|e| format!("open an rtnetlink socket: {e}"))?;
            let socket = firewall::Socket::open().map_err(|e| chain(&e))?;
            let rules = Rules {
                connections: Fill::ask(&socket).ok(),
                comments: rule_names(&socket)
                    .map_err(|e| format!("ask how the rules are called: {e}"))?,
                texts: rule_texts().unwrap_or_default(),
            };
            let told = in_memory(&rules).map_err(|e| format!("tell how rules are called: {e}"))?;
            let [table, events] = tracer.sockets();
            let fds =
                [table, events, routes.as_fd(), told.as_fd()].map(|fd| fd.try_clone_to_owned());
            let fds: io::Result<Vec<_>> = fds.into_iter().collect();
            fds.map_err(|e| format!("copy a descriptor: {e}"))
        };
        let fds = open_inside(part, give_up, open)?;
        let [table, events, routes, told]: [OwnedFd; 4] = fds
            .try_into()
            .map_err(|_| "the opener handed up something else".to_owned())?;
        let rules: Rules = serde_json::from_reader(io::BufReader::new(File::from(told)))
            .map_err(|e| format!("read how the rules are called: {e}"))?;
        let by_place = |rules: Vec<RuleName>| -> Names {
            let pairs = rules.into_iter();
            pairs
                .map(|rule| ((rule.family, rule.table, rule.handle), rule.name))
                .collect()
        };
        Ok(Self {
            sight: Sight {
                site,
                connections: rules.connections,
                comments: by_place(rules.comments),
                texts: by_place(rules.texts),
                seen: vec![],
            },
            tracer: Tracer::made_of([table, events], number).map_err(|e| chain(&e))?,
            routes: Routes::from_fd(routes).map_err(|e| format!("take its socket: {e}"))?,
        })
    }

    /// Takes what has come; `order` counts the packets of all places.
    pub(super) fn take(&mut self, order: &mut usize) -> Result<(), firewall::LoadError> {
        for step in self.tracer.steps()? {
            let hop = self.tracer.hop(&step);
            self.sight.take(step, hop, order);
        }
        Ok(())
    }
}

/// Who listens in a part's network namespace, to be asked at any time.
///
/// # Errors
/// What went wrong, in words.
pub(super) fn listening(part: Option<&OwnedFd>) -> Result<Listening, String> {
    let fds = open_inside(
        part,
        || privileges::keep_only(&[]),
        || {
            let socket = crate::sys::netlink::open(SockProtocol::NetlinkSockDiag);
            let socket = socket.map_err(|e| format!("open a socket: {e}"))?;
            Ok(vec![socket])
        },
    )?;
    let fd = fds.into_iter().next().ok_or("no descriptor came")?;
    Listening::from_fd(fd).map_err(|e| chain(&e))
}

/// A file in memory, read from its beginning: how rules are called may be more than a message holds.
fn in_memory(rules: &Rules) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("rules", MemfdFlags::CLOEXEC)?;
    let mut file = File::from(fd);
    let mut writer = io::BufWriter::new(&mut file);
    serde_json::to_writer(&mut writer, rules)?;
    writer
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?;
    file.rewind()?;
    Ok(file.into())
}

/// Every rule's text, as nft lists it in this network namespace; `None` without an nft that does.
fn rule_texts() -> Option<Vec<RuleName>> {
    let output = std::process::Command::new(rules::nft()?)
        .args(["-a", "list", "ruleset"])
        .env_clear()
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .output()
        .ok()?;
    Some(parse_texts(&String::from_utf8_lossy(&output.stdout)))
}

fn parse_texts(listing: &str) -> Vec<RuleName> {
    let mut table = None;
    let mut texts = vec![];
    for line in listing.lines() {
        if let Some(rest) = line.strip_prefix("table ") {
            let mut words = rest.split_whitespace();
            table = words.next().zip(words.next());
            continue;
        }
        let (Some((family, name)), Some((text, handle))) = (table, line.rsplit_once(" # handle "))
        else {
            continue;
        };
        if text.ends_with('{') {
            continue;
        }
        if let Ok(handle) = handle.trim().parse() {
            texts.push(RuleName {
                family: family.to_owned(),
                table: name.to_owned(),
                handle,
                name: text.trim().to_owned(),
            });
        }
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_of_a_listing_are_found_by_family_table_and_handle() {
        let listing = "table inet mine { # handle 3\n\tset s { # handle 7\n\t\ttype ipv4_addr\n\t}\n\n\tchain in { # handle 1\n\t\t\
            type filter hook input priority 5; policy accept;\n\t\ttcp dport 5000 drop comment \"a # handle 9\" # handle 2\n\t}\n}\n\
            table ip6 other { # progname x # handle 4\n\tchain c { # handle 1\n\t\tdrop # handle 2\n\t}\n}\n";
        let found: Vec<_> = parse_texts(listing)
            .into_iter()
            .map(|rule| (rule.family, rule.table, rule.handle, rule.name))
            .collect();
        let rule = |family: &str, table: &str, text: &str| {
            (family.to_owned(), table.to_owned(), 2, text.to_owned())
        };
        assert_eq!(
            found,
            [
                rule(
                    "inet",
                    "mine",
                    "tcp dport 5000 drop comment \"a # handle 9\""
                ),
                rule("ip6", "other", "drop"),
            ]
        );
    }
}

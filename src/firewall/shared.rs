//! The one table in the host's network namespace that all stacks share whose uplinks end there.
//!
//! # Theory of operation
//!
//! A base chain is met by every packet of the host, whoever's it is. With a table for each stack a host of a hundred stacks
//! asked each packet four hundred times. So there is one table, `lrpns.host`, with a base chain for each hook, whose rules
//! look a packet up in *verdict maps*: by the link that it comes or goes by, by the addresses of the uplinks, by the published
//! port. What they find is a chain of the stack that the packet has to do with; for all others it is over. A lookup costs the
//! same for one stack and for 500.
//!
//! What a stack's chains say is what [`super::host_rules`] says, which still makes a whole table for one stack: its base
//! chain `input` is written as the chain `input.STACK` and its set `entries` as `entries.STACK` ([`Scope`]). Two things
//! differ. An `accept` in the table of one stack left it to the table of the next to object, so here it is a `return`. And a
//! packet that comes by a link of ours is looked up by that link alone, since the rules at the link itself know its addresses
//! ([`super::uplink_rules`]); by address what has come by another's, which may have taken ours over.
//!
//! # Whose it is
//! The table belongs to a socket (`NFT_TABLE_F_OWNER`): nobody else can change it, and `nft flush ruleset` passes over it.
//! A stack's supervisor hands that socket to whoever asks it on its control socket, and so every supervisor that has a part in
//! the table holds it. The kernel removes the table when the last of them has ended, however that was.
//!
//! A supervisor that ends while others live leaves its part: chains to which no packet comes, since neither the link nor the
//! address is anybody's any more, and in the map of published ports its own. By that nothing is translated unless somebody
//! listens at the published port (`socket`), of TCP one who has set `IP_TRANSPARENT`, as every published port's relay does: it
//! goes with its stack, or is kept by a service manager ([`crate::net::handed`]). Whoever changes the table next ([`Shared::sweep`]) removes what belongs to no stack that lives.
//!
//! Several processes send on one socket, and its answers come to whoever reads first. So who changes the table holds a lock,
//! that of the directory in which all stacks have theirs (flock(2)). It takes opening that, which a supervisor that has dropped
//! can't: a lock on the socket itself every one of them could take, and keep for good.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nftables::schema::{NfListObject, NfObject, Nftables};
use nix::fcntl::{Flock, FlockArg};

use super::counters::{attributes_of, dump};
use super::encode::{Encoder, VerdictMap};
use super::load::{LoadError, Socket, transact};
use super::ruleset;
use super::update::{self, UpdateError, Updated};
use super::{Batch, EncodeError};
use crate::names::StackName;
use crate::netlink::*;
use crate::plan::Plan;
use crate::sys::attempt::netns_cookie;

/// What it is called. No stack's table can be: a stack's name has no dot.
pub const TABLE: &str = "lrpns.host";

/// How long the lock is waited for: a transaction takes milliseconds.
const LOCK_WITHIN: Duration = Duration::from_secs(10);
/// flock(2) waits without a limit, so it is tried this often instead.
const TRIED_EVERY: rustix::event::Timespec = rustix::event::Timespec {
    tv_sec: 0,
    tv_nsec: 1_000_000,
};

/// One stack's part of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope(StackName);

impl Scope {
    /// That of a stack.
    #[must_use]
    pub fn of(stack: &StackName) -> Self {
        Self(stack.clone())
    }

    /// What a chain or set of the stack's own table is called here.
    #[must_use]
    pub fn name(&self, name: &str) -> String {
        format!("{name}.{}", self.0)
    }

    /// What the table at its link is called.
    pub(super) fn netdev(&self) -> String {
        super::host_table(&self.0)
    }

    /// What it is called in the stack's own table; `None` if it isn't the stack's.
    #[must_use]
    pub fn own<'n>(&self, name: &'n str) -> Option<&'n str> {
        stack_of(name)
            .filter(|(_, stack)| *stack == self.0.as_str())
            .map(|(own, _)| own)
    }
}

/// Splits what belongs to a stack: its own name for it, and the stack. A stack's name has no dot, nor has a set's of ours.
fn stack_of(name: &str) -> Option<(&str, &str)> {
    name.rsplit_once('.')
}

/// Whether a chain or a set is some stack's.
pub(super) fn is_of_stack(name: &str) -> bool {
    stack_of(name).is_some()
}

/// Splits `TABLE/STACK`, by which [`super::host_table`] names a stack's part of the table.
pub(super) fn part(name: &str) -> Option<(&str, Scope)> {
    let (table, stack) = name.split_once('/')?;
    Some((table, Scope(StackName::new(stack).ok()?)))
}

/// Why the table could not be had or changed.
#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    /// The kernel refused.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// What is in it couldn't be read.
    #[error("read table inet {TABLE}: {0}")]
    Read(#[source] io::Error),
    /// Something could not be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// A part could not be changed.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// There is one, and nobody who can be asked has it.
    #[error("table inet {TABLE} belongs to a process that does not hand it over")]
    NotHandedOver,
    /// The kernel refused, and whoever has the socket could keep its answers from all others.
    #[error("lock the filter of the socket that is to own table inet {TABLE}: {0}")]
    Filter(#[source] io::Error),
    /// Somebody changes it for too long.
    #[error("wait for the lock of table inet {TABLE}: {0}")]
    Lock(#[source] io::Error),
}

/// The socket that owns the table. Dropped by the last process that has it, the table vanishes.
pub struct Shared {
    socket: Socket,
    /// The directory whose lock is the table's.
    stacks: PathBuf,
}

impl AsFd for Shared {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Shared {
    /// Makes the table, in the calling thread's network namespace; `None` if there is one that belongs to others. All who have it
    /// have their stacks' directories in `stacks`.
    ///
    /// # Errors
    /// [`SharedError`].
    pub fn make(stacks: &Path) -> Result<Option<Self>, SharedError> {
        if Self::is_there()? {
            return Ok(None);
        }
        let socket = Socket::open()?;
        // Every supervisor of a stack that is in the table has it.
        crate::sys::socket::lock_filter(socket.as_fd()).map_err(SharedError::Filter)?;
        match transact(&socket, &frame()?) {
            Ok(()) => Ok(Some(Self {
                socket,
                stacks: stacks.to_owned(),
            })),
            // Of two that make it at once the kernel takes one.
            Err(e) if e.is_denied() && Self::is_there()? => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether there is one in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`SharedError`].
    pub fn is_there() -> Result<bool, SharedError> {
        let there = tables(&Socket::open()?).map_err(SharedError::Read)?;
        Ok(there.iter().any(|(name, _)| name == TABLE))
    }

    /// The same socket, from another process; `None` if it owns no such table in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`SharedError`].
    pub fn from_fd(fd: OwnedFd, stacks: &Path) -> Result<Option<Self>, SharedError> {
        let (socket, here) = (Socket::taken(fd)?, Socket::open()?);
        // An address is one of each network namespace: who is root in another has any there, and a table of that name.
        let namespace = |socket: &Socket| match netns_cookie(socket.as_fd()) {
            Err(e) if e.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(None),
            cookie => cookie.map(Some).map_err(SharedError::Read),
        };
        if namespace(&socket)? != namespace(&here)? {
            return Ok(None);
        }
        let owner = socket.address().map_err(SharedError::Read)?;
        let there = tables(&here).map_err(SharedError::Read)?;
        let ours = there
            .iter()
            .any(|(name, of)| name == TABLE && *of == Some(owner));
        Ok(ours.then(|| Self {
            socket,
            stacks: stacks.to_owned(),
        }))
    }

    fn lock(&self) -> Result<Flock<File>, SharedError> {
        let begun = Instant::now();
        let mut stacks = File::open(&self.stacks).map_err(SharedError::Lock)?;
        let held = loop {
            stacks = match Flock::lock(stacks, FlockArg::LockExclusiveNonblock) {
                Ok(held) => break held,
                Err((stacks, nix::Error::EWOULDBLOCK | nix::Error::EINTR))
                    if begun.elapsed() < LOCK_WITHIN =>
                {
                    stacks
                }
                Err((_, e)) => return Err(SharedError::Lock(e.into())),
            };
            // EINTR only makes it the shorter.
            let _ = rustix::event::poll(&mut [], Some(&TRIED_EVERY));
        };
        self.socket.drain();
        Ok(held)
    }

    /// The lock, or `None` where the last stack has gone with its directory: nobody has a part in the table then, and who comes next
    /// makes one of its own.
    fn lock_if_any(&self) -> Result<Option<Flock<File>>, SharedError> {
        match self.lock() {
            Err(SharedError::Lock(e)) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            held => held.map(Some),
        }
    }

    /// Adds a stack's part, which `rules` say ([`super::host_rules`]); what there is of an earlier run of it goes.
    ///
    /// # Errors
    /// [`SharedError`]; then nothing has changed.
    pub fn enter(&self, plan: &Plan, rules: &Nftables<'static>) -> Result<(), SharedError> {
        let _held = self.lock()?;
        let mut out = Encoder::begin(0);
        self.encode_leave(&mut out, |stack| stack == plan.stack.as_str())?;
        out.enter_scope(Scope::of(&plan.stack));
        encode_part(&mut out, plan, rules)?;
        Ok(transact(&self.socket, &out.finish())?)
    }

    /// Changes a stack's part from what `old` says to what `new` says.
    ///
    /// # Errors
    /// [`SharedError`]; then nothing has changed.
    pub fn change(
        &self,
        plan: &Plan,
        old: &Nftables<'static>,
        new: &Nftables<'static>,
    ) -> Result<Updated, SharedError> {
        let _held = self.lock()?;
        let leads = [entries(plan, old)?, entries(plan, new)?];
        let scope = Scope::of(&plan.stack);
        Ok(update::update_part(
            &self.socket,
            &scope,
            [old, new],
            leads,
        )?)
    }

    /// Removes the parts of all stacks but those that live; tells how many there were.
    ///
    /// A part is only added by who holds its stack's lock, and under the lock of this table: so a stack that doesn't live
    /// when that is held has no part that anybody wants.
    ///
    /// # Errors
    /// [`SharedError`]; then nothing has changed.
    pub fn sweep(&self, lives: impl Fn(&str) -> bool) -> Result<usize, SharedError> {
        let held = self.lock_if_any()?;
        if held.is_none() || !self.owns()? {
            return Ok(0);
        }
        let mut out = Encoder::begin(0);
        let gone = self.encode_leave(&mut out, |stack| !lives(stack))?;
        if gone > 0 {
            transact(&self.socket, &out.finish())?;
        }
        Ok(gone)
    }

    /// Whether the table is still this socket's: who takes stacks down may have removed it, and somebody made another. Under the lock.
    fn owns(&self) -> Result<bool, SharedError> {
        let owner = self.socket.address().map_err(SharedError::Read)?;
        let there = tables(&self.socket).map_err(SharedError::Read)?;
        Ok(there.contains(&(TABLE.to_owned(), Some(owner))))
    }

    /// Removes the whole table. No stack may have the socket, nor be about to get it from somebody who has.
    ///
    /// The kernel would do it when the socket is closed, and have who closes it wait for every processor.
    ///
    /// # Errors
    /// [`SharedError`]; then nothing has changed.
    pub fn remove(self) -> Result<Socket, SharedError> {
        let held = self.lock_if_any()?;
        if self.owns()? {
            let mut out = Encoder::begin(0);
            out.no_table(libc::NFPROTO_INET, TABLE);
            transact(&self.socket, &out.finish())?;
        }
        drop(held);
        Ok(self.socket)
    }

    /// The socket alone.
    #[must_use]
    pub fn into_socket(self) -> Socket {
        self.socket
    }

    /// Writes the end of the parts of some stacks; how many they are.
    fn encode_leave(
        &self,
        out: &mut Encoder,
        goes: impl Fn(&str) -> bool,
    ) -> Result<usize, SharedError> {
        let read = SharedError::Read;
        let mut asked: BTreeMap<String, bool> = BTreeMap::new();
        let mut goes = |name: &str| match stack_of(name) {
            Some((_, stack)) => *asked.entry(stack.to_owned()).or_insert_with(|| goes(stack)),
            None => false,
        };
        let mut chains = vec![];
        for body in dump(
            &self.socket,
            libc::NFT_MSG_GETCHAIN,
            libc::NFPROTO_INET,
            |_| {},
        )
        .map_err(read)?
        {
            let chain = attributes_of(&body);
            let name = text(chain, NFTA_CHAIN_NAME).unwrap_or_default();
            if text(chain, NFTA_CHAIN_TABLE).as_deref() == Some(TABLE) && goes(&name) {
                chains.push(name);
            }
        }
        if chains.is_empty() {
            return Ok(0);
        }
        for map in &MAPS {
            let mut keys = vec![];
            elements(&self.socket, map.name, |key, chain| {
                if goes(chain) {
                    keys.push((key.to_vec(), chain.to_owned()));
                }
            })
            .map_err(read)?;
            out.verdicts(libc::NFT_MSG_DELSETELEM, TABLE, map, &keys);
        }
        for chain in &chains {
            update::delete_rules(out, TABLE, chain, None);
        }
        for chain in &chains {
            out.message(libc::NFT_MSG_DELCHAIN, 0, format!("chain {chain}"), |a| {
                a.text(NFTA_CHAIN_TABLE, TABLE);
                a.text(NFTA_CHAIN_NAME, chain);
            });
        }
        let of_table = |a: &mut Attributes<'_>| a.text(NFTA_SET_TABLE, TABLE);
        for body in dump(
            &self.socket,
            libc::NFT_MSG_GETSET,
            libc::NFPROTO_INET,
            of_table,
        )
        .map_err(read)?
        {
            let name = text(attributes_of(&body), NFTA_SET_NAME).unwrap_or_default();
            if goes(&name) {
                out.message(libc::NFT_MSG_DELSET, 0, format!("set {name}"), |a| {
                    a.text(NFTA_SET_TABLE, TABLE);
                    a.text(NFTA_SET_NAME, &name);
                });
            }
        }
        Ok(asked.values().filter(|goes| **goes).count())
    }
}

/// The socket that owns the rules at a stack's own link, from its supervisor.
pub struct AtLink(Socket);

impl AtLink {
    /// # Errors
    /// [`LoadError::Open`] if the descriptor is not a netlink socket of netfilter.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, LoadError> {
        Ok(Self(Socket::taken(fd)?))
    }

    /// Removes those rules, if they are there and this socket owns them, and gives the socket back. As with [`Shared::remove`],
    /// the kernel would when it is closed.
    pub fn remove(self, stack: &StackName) -> Socket {
        let mut out = Encoder::begin(0);
        out.no_table(libc::NFPROTO_NETDEV, &super::host_table(stack));
        // To the kernel, whomever a supervisor that was taken over has connected it to. What can't be removed goes with the socket.
        let kernel = netlink_sys::SocketAddr::new(0, 0);
        let _ = self
            .0
            .0
            .send_to(&out.finish().bytes, &kernel, libc::MSG_DONTWAIT);
        self.0
    }
}

/// The tables of family inet, each with the address of the socket that owns it, if one does.
fn tables(socket: &Socket) -> io::Result<Vec<(String, Option<u32>)>> {
    let all = dump(socket, libc::NFT_MSG_GETTABLE, libc::NFPROTO_INET, |_| {})?;
    let tables = all.iter().map(|body| {
        let table = attributes_of(body);
        (
            text(table, NFTA_TABLE_NAME).unwrap_or_default(),
            number(table, NFTA_TABLE_OWNER),
        )
    });
    Ok(tables.collect())
}

/// Every element of a verdict map of the table: its key, and the chain that it leads to.
fn elements(socket: &Socket, map: &str, mut each: impl FnMut(&[u8], &str)) -> io::Result<()> {
    super::counters::for_each_element(socket, TABLE, map, |element| {
        if let Some((key, chain)) = verdict(element) {
            each(key, &chain);
        }
    })
}

/// An element's key, and the chain that it leads to.
pub(super) fn verdict(element: &[u8]) -> Option<(&[u8], String)> {
    let key = attribute(attribute(element, NFTA_SET_ELEM_KEY)?, NFTA_DATA_VALUE)?;
    let data = attribute(element, NFTA_SET_ELEM_DATA)?;
    let chain = text(attribute(data, NFTA_DATA_VERDICT)?, NFTA_VERDICT_CHAIN)?;
    Some((key, chain))
}

/// The verdict maps.
static MAPS: [VerdictMap; 19] = [
    map("input_link", &["ifname"]),
    map("input_source", &["ipv4_addr"]),
    map("input_source6", &["ipv6_addr"]),
    map("forward_in", &["ifname"]),
    map("forward_source", &["ipv4_addr"]),
    map("forward_source6", &["ipv6_addr"]),
    map("forward_out", &["ifname"]),
    map("forward_target", &["ipv4_addr"]),
    map("forward_target6", &["ipv6_addr"]),
    map("output_link", &["ifname"]),
    map("output_target", &["ipv4_addr"]),
    map("output_target6", &["ipv6_addr"]),
    map("output_user", &["uid"]),
    map("published", &["ipv4_addr", "inet_proto", "inet_service"]),
    map("published6", &["ipv6_addr", "inet_proto", "inet_service"]),
    map("published_any", &["inet_proto", "inet_service"]),
    map("published_any6", &["inet_proto", "inet_service"]),
    map("masqueraded", &["ipv4_addr"]),
    map("masqueraded6", &["ipv6_addr"]),
];

const fn map(name: &'static str, key: &'static [&'static str]) -> VerdictMap {
    let goes = matches!(key[0].as_bytes(), b"ifname");
    VerdictMap { name, key, goes }
}

/// Base chains, verdict maps, and the rules that look packets up: the same for all stacks.
pub(super) fn frame() -> Result<Batch, EncodeError> {
    let mut out = Encoder::begin(NFT_TABLE_F_OWNER);
    encode_frame(&mut out)?;
    Ok(out.finish())
}

fn encode_frame(out: &mut Encoder) -> Result<(), EncodeError> {
    let rules = ruleset::frame(TABLE);
    let (first, rest): (Vec<_>, Vec<_>) = rules.objects.iter().partition(|object| {
        matches!(
            object,
            NfObject::ListObject(NfListObject::Table(_) | NfListObject::Chain(_))
        )
    });
    for (number, object) in first.into_iter().chain(rest).enumerate() {
        // After the table.
        if number == 1 {
            for map in &MAPS {
                out.verdict_map(TABLE, map)?;
            }
        }
        match object {
            NfObject::ListObject(object) => out.object(object)?,
            NfObject::CmdObject(command) => {
                return Err(super::encode::unsupported("ruleset", command));
            }
        }
    }
    Ok(())
}

/// The whole table as it would be if a stack were alone, and the one at its link: what is in force is compared with it.
///
/// # Errors
/// [`EncodeError`].
pub fn alone(
    plan: &Plan,
    rules: &Nftables<'static>,
    at_link: &Nftables<'static>,
) -> Result<Batch, EncodeError> {
    let mut out = Encoder::begin(0);
    for object in at_link.objects.iter() {
        if let NfObject::ListObject(object) = object {
            out.object(object)?;
        }
    }
    encode_frame(&mut out)?;
    out.enter_scope(Scope::of(&plan.stack));
    encode_part(&mut out, plan, rules)?;
    Ok(out.finish())
}

/// A stack's chains, sets and rules, then what leads to them.
fn encode_part(
    out: &mut Encoder,
    plan: &Plan,
    rules: &Nftables<'static>,
) -> Result<(), EncodeError> {
    for object in rules.objects.iter() {
        if let NfObject::ListObject(object) = object {
            out.object(object)?;
        }
    }
    let scope = Scope::of(&plan.stack);
    let mut leads: BTreeMap<&str, Vec<(Vec<u8>, String)>> = BTreeMap::new();
    for (map, key, chain) in entries(plan, rules)? {
        leads.entry(map).or_default().push((key, scope.name(chain)));
    }
    for (map, keys) in leads {
        out.verdicts(libc::NFT_MSG_NEWSETELEM, TABLE, named(map), &keys);
    }
    Ok(())
}

/// The verdict map of that name.
pub(super) fn named(name: &str) -> &'static VerdictMap {
    let map = MAPS.iter().find(|map| map.name == name);
    map.expect("whoever leads somewhere names a map that there is")
}

/// An element of a verdict map: the map, the key, and the stack's chain by its own name.
pub(super) type Lead = (&'static str, Vec<u8>, &'static str);

/// All of a stack's elements.
fn entries(plan: &Plan, rules: &Nftables<'static>) -> Result<BTreeSet<Lead>, EncodeError> {
    let has = |name: &str| {
        rules.objects.iter().any(|object| {
            matches!(object, NfObject::ListObject(NfListObject::Chain(chain)) if chain.name == name)
        })
    };
    let link = link(plan.uplink.host_link.as_str());
    let mut found = BTreeSet::new();
    let mut lead = |map, key: &[u8], chain| {
        if has(chain) {
            found.insert((map, key.to_vec(), chain));
        }
    };
    lead("input_link", &link, "input");
    lead("forward_in", &link, "forward");
    lead("forward_out", &link, "forward");
    lead("output_link", &link, "output");
    lead("output_user", &plan.relay.host_id.to_ne_bytes(), "output");
    for family in plan.families() {
        let six = family.host.is_ipv6();
        let of = |four, named6| if six { named6 } else { four };
        let address = match family.sidecar {
            std::net::IpAddr::V4(address) => address.octets().to_vec(),
            std::net::IpAddr::V6(address) => address.octets().to_vec(),
        };
        lead(of("input_source", "input_source6"), &address, "input");
        lead(of("forward_source", "forward_source6"), &address, "forward");
        lead(of("forward_target", "forward_target6"), &address, "forward");
        lead(of("output_target", "output_target6"), &address, "output");
        lead(of("masqueraded", "masqueraded6"), &address, "postrouting");
    }
    found.extend(published(rules)?);
    Ok(found)
}

/// Those of published ports: they follow from the maps by which the stack translates.
fn published(rules: &Nftables<'_>) -> Result<BTreeSet<Lead>, EncodeError> {
    let mut found = BTreeSet::new();
    for object in rules.objects.iter() {
        let NfObject::ListObject(NfListObject::Map(map)) = object else {
            continue;
        };
        let (name, six) = match map.name.strip_suffix('6') {
            Some(name) => (name, true),
            None => (&*map.name, false),
        };
        let (to, protocol) = match (name, six) {
            ("publish", false) => ("published", libc::IPPROTO_TCP),
            ("publish", true) => ("published6", libc::IPPROTO_TCP),
            ("publish_udp", false) => ("published", libc::IPPROTO_UDP),
            ("publish_udp", true) => ("published6", libc::IPPROTO_UDP),
            ("publish_any", false) => ("published_any", libc::IPPROTO_TCP),
            ("publish_any", true) => ("published_any6", libc::IPPROTO_TCP),
            ("publish_any_udp", false) => ("published_any", libc::IPPROTO_UDP),
            ("publish_any_udp", true) => ("published_any6", libc::IPPROTO_UDP),
            _ => continue,
        };
        for key in super::encode::map_keys(map)? {
            // The port is last, padded to four bytes in a concatenation.
            let port = if key.len() > 2 { key.len() - 4 } else { 0 };
            let (address, port) = key.split_at(port);
            let mut whole = address.to_vec();
            whole.extend([protocol as u8, 0, 0, 0]);
            whole.extend(&port[..2]);
            whole.extend([0, 0]);
            found.insert((to, whole, "prerouting"));
        }
    }
    Ok(found)
}

fn link(name: &str) -> Vec<u8> {
    let mut key = name.as_bytes().to_vec();
    key.resize(libc::IFNAMSIZ, 0);
    key
}

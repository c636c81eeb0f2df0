//! nftables: what the rules are, and how they get into the kernel without a program `nft`.
//!
//! # Theory of operation
//! 1. [`sidecar_rules`] and [`host_rules`] turn a [`Plan`](crate::plan::Plan) into one whole table each, as values of
//!    the `nftables` crate: the same value is printed ([`to_text`], `serde_json`), compared and loaded. It is in the
//!    form and order of `nft -j list table`, so what `lrpns rules` prints is what the kernel lists.
//! 2. [`encode()`] (or [`encode_owned`]) turns a table into one nfnetlink batch that **replaces** the table: add, delete,
//!    add with all its content, in one transaction. So loading twice is loading once, and a ruleset that the kernel
//!    refuses changes nothing.
//! 3. [`update()`] changes a table that is loaded into another with the least change, so that no packet and no count is
//!    lost.
//! 4. In the host's namespace all stacks share a table ([`Shared`]): there a stack's is written as its part of that.
//! 5. [`transact`] sends it on a [`Socket`] and says which object was refused, if one was.
//!
//! [`forwarding()`] reads whether the host forwards and whether somebody else's rules stand in the way.
//!
//! # Why an encoder, and why our own
//! The sidecar's root is empty, so there is no `nft` to run in it; and running it takes 2.5 ms of which the kernel needs
//! 0.2. `netlink-bindings` 0.3.5 was tried: pleasant, without dependencies, generated from the kernel's specification
//! (Documentation/netlink/specs/nftables.yaml); but that differs from the header that the kernel is built with, in the
//! numbers of a lookup's attributes, of fib's results, and of everything that follows a padding attribute in rules and set
//! elements. `netlink-packet-netfilter` 0.4 lacks nat, ct, fib and counter; `nlink` 0.33 has them, and tokio and 67,000
//! lines with them; `rustables` is GPL; `nftnl` wants C libraries. What is needed of attributes is thirty lines; the rest
//! would be ours anyway. Each expression is tested against what `nft` makes of the same rule, to the instruction.
#![forbid(unsafe_code)]

mod conntrack;
mod counters;
mod encode;
mod extra;
mod forwarding;
mod json;
mod load;
pub mod logging;
pub(crate) mod pieces;
mod ruleset;
mod shared;
mod text;
pub mod trace;
mod update;

pub use conntrack::{Fill, Grants, forget_udp, forget_ungranted, grants, host_grants};
pub use counters::{Listing, Object, counted, counters, list, tables};
pub use encode::{
    Batch, EncodeError, an_empty_table, encode, encode_owned, encode_together, encode_without,
    sidecar_batch,
};
pub use extra::{ExtraChange, Snapshot, added, snapshot};
pub use forwarding::{
    ForeignChain, Forwarding, ForwardingError, Hook, IpFamily, foreign_chains, forwarding,
};
pub use json::to_json;
pub use load::{LoadError, Socket, transact};
pub use pieces::Pieces;
pub use ruleset::{
    APP_TABLE, CAPTURE_TABLE, CAPTURED, SIDECAR_TABLE, UPLINK_OUT, app_rules, capture_rules,
    closed_host_rules, end_table, host_rules, host_table, is_of, is_ours, sidecar_rules,
    uplink_rules, without_chain,
};
pub use shared::{AtLink, Shared, SharedError, TABLE as SHARED_TABLE, alone};
pub use text::{TextError, to_text};
pub use update::{UpdateError, Updated, common, update, update_sidecar};

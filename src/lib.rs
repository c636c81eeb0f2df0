#![doc = include_str!("ARCHITECTURE.md")]
#![deny(unsafe_code)]
// The documentation is for who works on this: scripts/check makes it with the private items.
#![allow(rustdoc::private_intra_doc_links)]
// Tests wrap threads of their own; see .clippy.toml.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

// The reading order, which is the one of the table in ARCHITECTURE.md: imports point down. rustfmt sorts within a
// group only, hence the empty lines.

// All that reads what others wrote, tried with what is not right.
#[cfg(test)]
mod spoilt;

// Say it: the command line, and what is answered.
pub mod commands;

pub mod cli;

pub mod manual;

pub mod preflight;

// Watch it, and prove it.
pub mod supervise;

pub mod audit;

// Build it.
pub mod stack;

pub mod control;

// Become it: what a part's process does before it is the part; and the parts that are compiled in.
pub mod stage;

pub mod check;
pub mod part;
pub mod relay;
pub mod webapp;

pub mod rootfs;

pub mod protocol;

// Look at it.
pub mod log;
pub mod traffic;

pub mod host;

pub mod state;

pub mod net;

pub mod firewall;

pub mod netlink;

// Decide it.
pub mod plan;

pub mod config;

// Give up what is not needed.
pub mod confine;

pub mod accounts;

pub mod names;
pub mod text;

// The only unsafe code.
pub mod sys;

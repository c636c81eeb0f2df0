#![doc = include_str!("ARCHITECTURE.md")]
#![deny(unsafe_code)]
// The documentation is for who works on this: scripts/check makes it with the private items.
#![allow(rustdoc::private_intra_doc_links)]
// Tests wrap threads of their own; see .clippy.toml.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

// The reading order, which is the one of the table in ARCHITECTURE.md: imports point down. rustfmt sorts within a
// group only, hence the empty lines.

// What the user says, and what is answered.
pub mod commands;

pub mod cli;

pub mod preflight;

pub mod error;

// The supervisor: brings a stack up, watches it, takes it down.
pub mod supervise;

pub mod admission;
pub mod audit;

pub mod stack;

pub mod extra;

pub mod container;

pub mod volumes;

pub mod namespaces;

pub mod rootless;

// The stage: what a part's process does before it is the part; and the parts that are compiled in.
pub mod init;

pub mod relay;

pub mod webapp;

pub mod rootfs;

// What they say to each other, and what they hold.
pub mod control;

pub mod protocol;

pub mod privileges;
pub mod processes;

pub mod change;

pub mod confine;

pub mod stdio;

pub mod logbuf;
pub mod screen;

pub mod traffic;

pub mod publish;

// From a configuration and a machine to a plan, and from a plan to links and rules.
pub mod resolve;

pub mod host;

pub mod state;

pub mod net;

pub mod firewall;

pub mod plan;

pub mod cgroup;

pub mod config;

pub mod seccomp;

pub mod names;

pub mod text;

// The only unsafe code.
pub mod sys;

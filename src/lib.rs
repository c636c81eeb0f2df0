//! lrpns: least required privilege, in namespaces.
#![deny(unsafe_code)]
// Tests wrap threads of their own; see .clippy.toml.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod audit;
pub mod cli;
pub mod commands;
pub mod config;
pub mod container;
pub mod control;
pub mod error;
pub mod firewall;
pub mod host;
pub mod init;
pub mod logbuf;
pub mod names;
pub mod namespaces;
pub mod net;
pub mod plan;
pub mod preflight;
pub mod protocol;
pub mod publish;
pub mod relay;
pub mod rootfs;
pub mod rootless;
pub mod sidecar;
pub mod stack;
pub mod state;
pub mod supervise;
pub mod sys;
pub mod webapp;

//! lrpns: least required privilege, in namespaces.
#![deny(unsafe_code)]
// Tests wrap threads of their own; see .clippy.toml.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod config;
pub mod firewall;
pub mod names;
pub mod net;
pub mod plan;
pub mod relay;
pub mod sys;
pub mod webapp;

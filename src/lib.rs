//! lrpns: least required privilege, in namespaces.
#![deny(unsafe_code)]

pub mod config;
pub mod firewall;
pub mod logbuf;
pub mod names;
pub mod net;
pub mod plan;
pub mod relay;
pub mod sys;
pub mod webapp;

//! A part held from outside, by descriptors: its namespaces, its process and the conversation with it, its cgroup, its
//! volumes.

pub mod cgroup;
pub mod container;
pub mod namespaces;
pub mod refused;
pub mod rootless;
pub mod secrets;
pub mod volumes;

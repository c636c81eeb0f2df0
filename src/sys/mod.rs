//! Thin system calls: the only module with unsafe.

pub mod netlink;

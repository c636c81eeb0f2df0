//! Thin system calls that no crate of ours wraps: the only module with `unsafe`.
//!
//! No policy, no log lines, no names: each function is one system call (or one conversion of a descriptor) with its
//! safety reason. Index:
//!
//! - [`attempt`]: calls that the audit hopes to be refused
//! - [`process`]: `clone3(2)` of a single-threaded process, `close_range(2)`
//! - [`mount`]: `mount_setattr(2)`
//! - [`netlink`]: a netlink socket from a descriptor
//! - [`watch`]: descriptors in the runtime's epoll set

pub mod attempt;
pub mod mount;
pub mod netlink;
pub mod process;
pub mod watch;

//! Thin system calls that no crate of ours wraps, or that need a contract: the only module with `unsafe`.
//!
//! No policy, no log lines, no names: each function is one system call (or one conversion of a descriptor) with its
//! safety reason. Index:
//!
//! - [`attempt`][]: calls that the audit hopes to be refused
//! - [`process`][]: `clone3(2)` of a single-threaded process, as `fork(2)` and as `vfork(2)`, `close_range(2)`, `_exit(2)`,
//!   `signal(2)`, `keyctl(2)`
//! - [`namespace`][]: `unshare(2)` and `setns(2)` of a single-threaded process; safe, and banned elsewhere by
//!   `.clippy.toml`
//! - [`manager`][]: the socket of `sd_notify(3)`; safe
//! - [`memory`][]: `malloc_trim(3)`
//! - [`mount`][]: `mount_setattr(2)`
//! - [`netlink`][]: a netlink socket, and one from a descriptor
//! - [`path`][]: paths opened without following a symbolic link; safe
//! - [`runtime`][]: tokio's runtime for this thread, if there are descriptors for it
//! - [`seccomp`][]: `seccomp(2)`
//! - [`socket`][]: socket options that no crate has
//! - [`watch`][]: descriptors in the runtime's epoll set

pub mod attempt;
pub mod manager;
pub mod memory;
pub mod mount;
pub mod namespace;
pub mod netlink;
pub mod path;
pub mod process;
pub mod runtime;
pub mod seccomp;
pub mod socket;
pub mod watch;

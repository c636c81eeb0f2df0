//! tokio's runtime for this one thread.
#![forbid(unsafe_code)]

use std::io;

use rustix::event::EventfdFlags;
use tokio::runtime::{Builder, LocalOptions, LocalRuntime, Runtime};

/// A runtime that waits for I/O and time.
///
/// # Errors
/// What `epoll_create(2)`, `eventfd(2)` or `socketpair(2)` says, such as that there is no descriptor left.
pub fn of_this_thread() -> io::Result<Runtime> {
    have_room_for(DESCRIPTORS)?;
    Builder::new_current_thread().enable_all().build()
}

/// The same for tasks that never leave this thread: a `LocalSet`'s are woken by a write to an eventfd each time.
///
/// # Errors
/// As [`of_this_thread`].
pub fn local() -> io::Result<LocalRuntime> {
    have_room_for(DESCRIPTORS)?;
    Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
}

/// How many descriptors a runtime opens: an epoll set and a copy of it, an eventfd, a pair of sockets for signals and a copy
/// of one. tokio panics if its first runtime has none left for that pair.
const DESCRIPTORS: usize = 6;

/// Whether there is room for so many descriptors at once. Nobody else opens one meanwhile, since there is one thread.
///
/// # Errors
/// What `eventfd(2)` says: `EMFILE`, `ENFILE`.
pub fn have_room_for(descriptors: usize) -> io::Result<()> {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let mut held = Vec::with_capacity(descriptors);
    for _ in 0..descriptors {
        held.push(rustix::event::eventfd(0, flags)?);
    }
    Ok(())
}

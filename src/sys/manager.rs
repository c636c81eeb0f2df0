//! The way to a service manager: the socket that `$NOTIFY_SOCKET` names (sd_notify(3)), taken when this process might still go
//! wherever that is.
#![forbid(unsafe_code)]

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use sd_notify::NotifyState;

/// It is the process's, as the variable is.
static MANAGER: OnceLock<Option<OwnedFd>> = OnceLock::new();

/// Takes the way to the manager, if there is one. Should be called before anything is dropped.
pub fn connect() {
    MANAGER.get_or_init(|| connected().ok().flatten());
}

fn connected() -> io::Result<Option<OwnedFd>> {
    let Some(at) = std::env::var_os("NOTIFY_SOCKET") else {
        return Ok(None);
    };
    let address = match at.as_encoded_bytes() {
        [b'@', name @ ..] => SocketAddrUnix::new_abstract_name(name)?,
        path => SocketAddrUnix::new(path)?,
    };
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    rustix::net::connect(&socket, &address)?;
    Ok(Some(socket))
}

/// Says something, with descriptors. Where there is no manager nobody hears it, and one that is too old for a word passes over it: so
/// no error is one.
pub fn say(what: &[NotifyState<'_>], fds: &[BorrowedFd<'_>], how: MsgFlags) {
    connect();
    let Some(Some(manager)) = MANAGER.get() else {
        return;
    };
    let text: String = what.iter().map(|state| format!("{state}\n")).collect();
    let fds: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights = if fds.is_empty() { &[][..] } else { &rights };
    let text = [IoSlice::new(text.as_bytes())];
    let how = how | MsgFlags::MSG_NOSIGNAL;
    let _ = sendmsg::<()>(manager.as_raw_fd(), &text, rights, how, None);
}

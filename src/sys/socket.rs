//! Socket options that no crate has.

use nix::{setsockopt_impl, sockopt_impl};

sockopt_impl!(
    /// Whether descriptors may come by this socket (`SO_PASSRIGHTS`, Linux 6.16): without, whoever sends one is refused
    /// (`unix_stream_sendmsg()` of net/unix/af_unix.c). ENOPROTOOPT from a kernel that has it not.
    PassRights,
    SetOnly,
    libc::SOL_SOCKET,
    SO_PASSRIGHTS,
    bool
);

/// Of include/uapi/asm-generic/socket.h; x86-64 and ARM64 both have that list.
const SO_PASSRIGHTS: libc::c_int = 83;

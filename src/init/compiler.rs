//! The compiler: lets nft add the user's rules to ours in a network namespace that is its own and empty, and tells what
//! came of it. What that is good for is said by [`crate::extra`].
//!
//! nft gets a root with the host's programs and libraries and the one file, NET_ADMIN over that network namespace, and no
//! socket but netfilter's.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use caps::Capability;

use super::app::{Command, Launch};
use super::{StageError, step};
use crate::firewall::{self, Batch};
use crate::privileges;
use crate::protocol::{self, Compiled, FromStage, RootfsStart};
use crate::rootfs;
use crate::seccomp;

/// What nft may say, in bytes.
const LONGEST: u64 = 64 << 10;

/// Loads `ours`, runs `command`, which adds to that, and tells the difference.
///
/// # Errors
/// [`StageError`] with the step that did not work; that nft or the kernel refuses the user's rules is an answer.
pub fn run(
    supervisor: &OwnedFd,
    ours: &Batch,
    root: &RootfsStart,
    command: &[String],
    fds: Vec<OwnedFd>,
) -> Result<(), StageError> {
    rootfs::enter(root, fds, &[], &[]).map_err(step("make the root"))?;
    let filters = seccomp::visitor(&seccomp::sidecar()).map_err(step("make the seccomp filter"))?;
    privileges::drop_to_and_pass_on(&[Capability::CAP_NET_ADMIN], 0, &filters.stage)
        .map_err(step("drop privileges"))?;
    let socket = firewall::Socket::open().map_err(step("open a netfilter socket"))?;
    firewall::transact(&socket, ours).map_err(step("load our own rules"))?;
    let before = firewall::snapshot(&socket).map_err(step("list our own rules"))?;

    let (said, say) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(step("make a pipe"))?;
    let nft = Command::new(command, &BTreeMap::new()).map_err(step("read the command"))?;
    let (pid, _) = nft.start(&Launch {
        stdin: None,
        out: say.as_fd(),
        err: say.as_fd(),
        program: None,
        terminal: false,
        apart: false,
        filter: &filters.command,
    })?;
    drop(say);
    let mut words = vec![];
    std::fs::File::from(said)
        .take(LONGEST)
        .read_to_end(&mut words)
        .map_err(step("hear what nft says"))?;
    let status = nix::sys::wait::waitpid(pid, None).map_err(step("wait for nft"))?;
    let compiled = if status == nix::sys::wait::WaitStatus::Exited(pid, 0) {
        let now = firewall::snapshot(&socket).map_err(step("list the rules"))?;
        match firewall::added(&before, &now) {
            Ok(objects) => Compiled::Objects(objects),
            Err(why) => Compiled::NotAllowed(why),
        }
    } else {
        Compiled::NftSays(String::from_utf8_lossy(&words).into_owned())
    };
    protocol::send(supervisor, &FromStage::Compiled(compiled), &[]).map_err(step("say how it went"))
}

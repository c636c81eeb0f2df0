//! The compiler: lets nft add the user's rules to ours in a network namespace that is its own and empty, and tells what
//! came of it. What that is good for is said by [`crate::stack::rules`].
//!
//! nft gets a root with the host's programs and libraries and the one file, in pieces if it has to, NET_ADMIN over that network namespace, and no
//! socket but netfilter's.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io::Read;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

use caps::Capability;

use super::app::{Command, Launch};
use super::{StageError, step};
use crate::config::{Limits, Rootfs, Tmpfs};
use crate::confine::privileges;
use crate::confine::privileges::Ids;
use crate::confine::seccomp::{self, Filters};
use crate::firewall::{self, Batch, Pieces};
use crate::protocol::{self, Compiled, FromStage};
use crate::rootfs;

/// What nft may say, in bytes.
const LONGEST: u64 = 64 << 10;

/// Where nft's file is: a tmpfs of its own.
const DIRECTORY: &str = "/tmp";
/// There is room for the largest file that is read, and some.
const ROOM: u64 = 16 << 20;

/// Loads `ours`, runs `command` on a file with `text` (its last argument), which adds to that, and tells the difference.
///
/// # Errors
/// [`StageError`] with the step that did not work; that nft or the kernel refuses the user's rules is an answer.
pub fn run(
    supervisor: &OwnedFd,
    ours: &Batch,
    (text, command): (&str, &[String]),
) -> Result<(), StageError> {
    let writable = Tmpfs {
        path: DIRECTORY.into(),
        size: ROOM,
    };
    // What `tcp dport https` is nft has from /etc/services, which is in that root; a machine without that has numbers.
    let hosts = rootfs::hosts(&[], true);
    let start = rootfs::start(&Rootfs::Host, ("compiler", Ids::ROOT), &[], &hosts);
    rootfs::enter(
        &start,
        vec![],
        rootfs::Own {
            tmpfs: &[writable],
            volumes: &[],
            secrets: &[],
            owner: Ids::ROOT,
        },
        &Limits::default(),
        "",
    )
    .map_err(step("make the root"))?;
    let filters = seccomp::visitor(&seccomp::sidecar()).map_err(step("make the seccomp filter"))?;
    privileges::drop_to_and_pass_on(
        &[Capability::CAP_NET_ADMIN],
        privileges::Ids::ROOT,
        &filters.stage,
    )
    .map_err(step("drop privileges"))?;
    let socket = firewall::Socket::open().map_err(step("open a netfilter socket"))?;
    firewall::transact(&socket, ours).map_err(step("load our own rules"))?;
    let before = firewall::snapshot(&socket).map_err(step("list our own rules"))?;

    let pieces = Pieces::of(text);
    let run = |piece: Range<usize>| run_nft(command, &pieces.piece(piece), &filters);
    let mut refused = None;
    for piece in pieces.split() {
        refused = load(&run, piece)?;
        if refused.is_some() {
            break;
        }
    }
    let compiled = match refused {
        None => {
            let now = firewall::snapshot(&socket).map_err(step("list the rules"))?;
            match firewall::added(&before, &now) {
                Ok(objects) => Compiled::Objects(objects),
                Err(why) => Compiled::NotAllowed(why),
            }
        }
        Some(words) => Compiled::NftSays(words),
    };
    protocol::send(supervisor, &FromStage::Compiled(compiled), &[]).map_err(step("say how it went"))
}

/// Loads those rules and elements, in halves if they are too large for one message; what nft says if it refuses them.
fn load(
    run: &impl Fn(Range<usize>) -> Result<Option<String>, StageError>,
    all: Range<usize>,
) -> Result<Option<String>, StageError> {
    let refused = run(all.clone())?;
    let too_long = |words: &String| words.contains("Message too long");
    if all.len() < 2 || !refused.as_ref().is_some_and(too_long) {
        return Ok(refused);
    }
    let middle = all.start + all.len() / 2;
    match load(run, all.start..middle)? {
        None => load(run, middle..all.end),
        refused => Ok(refused),
    }
}

/// Runs nft on `text`; what it says if it refuses it.
fn run_nft(
    command: &[String],
    text: &str,
    filters: &Filters,
) -> Result<Option<String>, StageError> {
    let file = command.last().map_or("", String::as_str);
    std::fs::write(file, text).map_err(step("write the file for nft"))?;
    let (said, say) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(step("make a pipe"))?;
    let nft = Command::new(command, &BTreeMap::new()).map_err(step("read the command"))?;
    let (pid, _) = nft.start(&Launch {
        stdin: None,
        out: say.as_fd(),
        err: say.as_fd(),
        program: None,
        within: None,
        terminal: false,
        apart: false,
        filter: &filters.command,
        asks: None,
        handed: (&[], &[]),
    })?;
    drop(say);
    let mut words = vec![];
    std::fs::File::from(said)
        .take(LONGEST)
        .read_to_end(&mut words)
        .map_err(step("hear what nft says"))?;
    let status = nix::sys::wait::waitpid(pid, None).map_err(step("wait for nft"))?;
    let done = status == nix::sys::wait::WaitStatus::Exited(pid, 0);
    Ok((!done).then(|| String::from_utf8_lossy(&words).into_owned()))
}

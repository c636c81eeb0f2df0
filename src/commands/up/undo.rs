//! What a stack leaves on the host when it ends, taken away by a process that has nothing else to do.
//!
//! # Theory of operation
//!
//! Root's supervisor is nobody on the host once its stack is up, and could not remove what root has made for it: the stack's
//! directory and its cgroup. So a process stays beside it that is still uid 0, without a capability and with a filter that leaves it
//! files alone. It is made before the stack is, has no descriptor but the lock and one end of two sockets, and waits for one word:
//! the document about the end, which it does not look into. Where to write and what to remove it has known from its beginning.
//!
//! Of a supervisor that ends without the word, killed, it removes the cgroup. The directory stays: it says that something has
//! crashed, and what, and the next command writes down what is known of it (`ended::note_crash`). That would take reading the log, which
//! who has taken a supervisor over has written; this process, whose uid may write root's files, reads nothing of his. What there is in
//! the host's table of such a stack leads nowhere, and to remove it takes a privilege that nothing of a stack has.
//!
//! A word is the supervisor's only as long as that lives: somebody whom it has made may say it later, when the directory is another
//! stack's of that name. And whoever says it, a directory is removed only if the plan in it is of this run.
//!
//! Meanwhile it puts children of the supervisor's into the parts' cgroups, where they start parts again: whoever might do that by
//! himself, as root, might have any process of the host there.
//!
//! It holds the stack's lock as the supervisor does: nobody can have the directory before it has ended.
#![forbid(unsafe_code)]

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use crate::commands::failure::{Failure, chain};
use crate::confine::{privileges, seccomp};
use crate::control::processes::UNDOER;
use crate::names::StackName;
use crate::part::cgroup::{self, Door};
use crate::state::{ENDED_BYTES, StackDir, StateRoot};
use crate::sys::process::{beside, null_standard_descriptors};

/// What is to be taken away.
#[derive(Clone)]
pub(super) struct Undo {
    pub(super) state: StateRoot,
    pub(super) stack: StackName,
    pub(super) cgroup: Option<PathBuf>,
    pub(super) root: bool,
    /// The run of the stack that this is.
    pub(super) run: String,
}

impl Undo {
    /// Keeps the document, if there is one, and takes everything away.
    fn now(&self, document: Option<&[u8]>) -> Result<(), String> {
        let global = self.state.lock().map_err(|e| chain(&e))?;
        if !self.state.is_of(&self.stack, &self.run) {
            // Of a stack of that name since, or of none: all that there is of ours is the cgroup.
            drop(global);
            return self.remove_cgroup();
        }
        if let Some(document) = document {
            // What can't be written is missed by nobody as much as the end of the stack.
            let _ = self.state.leave(&self.stack, document, &global);
        }
        self.remove_cgroup()?;
        let removed = self.state.remove(&self.stack, global);
        removed.map_err(|e| chain(&e))
    }

    /// The run is part of its name, so it is never another stack's.
    fn remove_cgroup(&self) -> Result<(), String> {
        if let Some(path) = &self.cgroup {
            cgroup::remove(path).map_err(|e| chain(&e))?;
            if self.root {
                cgroup::tidy(true);
            }
        }
        Ok(())
    }
}

/// Who will do it.
pub(super) enum Undoer {
    /// This process.
    Ourselves(Undo),
    /// A process beside it, which has the other end.
    Beside(Undo, UnixStream),
}

impl Undoer {
    /// Root's is a process of its own. Should be called before there is anything that it must not have, by a process with one thread.
    ///
    /// # Errors
    /// What `clone3(2)` and `socketpair(2)` say.
    pub(super) fn begin(undo: Undo, claimed: &StackDir) -> io::Result<(Self, Option<Door>)> {
        if !undo.root {
            return Ok((Self::Ourselves(undo), None));
        }
        let (ours, theirs) = UnixStream::pair()?;
        let (door, its_side) = Door::pair()?;
        let kept: [OwnedFd; 3] = [theirs.into(), its_side, claimed.lock()?];
        let its = undo.clone();
        beside(kept, |[word, door, _lock]| wait(&its, word.into(), &door))?;
        Ok((Self::Beside(undo, ours), Some(door)))
    }

    /// Takes everything away, and keeps the document if there is one.
    ///
    /// # Errors
    /// [`Failure`].
    pub(super) fn end(self, document: Option<&[u8]>) -> Result<(), Failure> {
        let (undo, word) = match self {
            Self::Ourselves(undo) => return undo.now(document).map_err(Failure::unable),
            Self::Beside(undo, word) => (undo, word),
        };
        match say(word, document) {
            Ok(said) if said == DONE => Ok(()),
            Ok(said) if !said.is_empty() => Err(Failure::unable(said)),
            // It was killed. Who hasn't dropped yet can do it.
            _ => undo.now(document).map_err(|why| {
                let hint = format!("lrpns gc removes what is left of {}", undo.stack);
                Failure::unable(why).hint(hint)
            }),
        }
    }
}

/// What is heard of one that has done it.
const DONE: &str = "done";
/// The most that is heard of one that has not.
const SENTENCE: u64 = 4096;
/// In the place of a document's length.
const NO_DOCUMENT: u64 = u64::MAX;

fn say(mut word: UnixStream, document: Option<&[u8]>) -> io::Result<String> {
    let length = document.map_or(NO_DOCUMENT, |document| document.len() as u64);
    word.write_all(&length.to_ne_bytes())?;
    word.write_all(document.unwrap_or_default())?;
    word.shutdown(Shutdown::Write)?;
    let mut said = String::new();
    word.take(SENTENCE).read_to_string(&mut said)?;
    Ok(said)
}

/// The document, if there is one; an error is the end of who should have said it.
fn hear(word: &mut UnixStream) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 8];
    word.read_exact(&mut length)?;
    let length = u64::from_ne_bytes(length);
    let mut document = vec![];
    if length == NO_DOCUMENT {
        return Ok(None);
    }
    if length > ENDED_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    word.take(length).read_to_end(&mut document)?;
    match document.len() as u64 == length {
        true => Ok(Some(document)),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// How a wait for the word has ended.
#[derive(Debug, PartialEq, Eq)]
enum Waited {
    /// There is one, or the beginning of one.
    HasWord,
    /// Who should have said it has ended.
    Ended,
}

/// Lets children of the supervisor's into the parts' cgroups, until there is a word, or nobody any more who could say it.
fn until_a_word(
    word: &UnixStream,
    door: &OwnedFd,
    stack: Option<&Path>,
    (supervisor, pidfd): (i32, &OwnedFd),
) -> io::Result<Waited> {
    let mut door = stack.map(|stack| (stack, door));
    loop {
        let mut heard = vec![
            PollFd::new(pidfd, PollFlags::IN),
            PollFd::new(word, PollFlags::IN),
        ];
        heard.extend(door.map(|(_, door)| PollFd::new(door, PollFlags::IN)));
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut heard, None))?;
        let has = |at: usize| heard.get(at).is_some_and(|fd| !fd.revents().is_empty());
        // The number of one that has ended may be another's, while somebody whom it has made still asks.
        if has(0) {
            return Ok(Waited::Ended);
        }
        if has(1) {
            return Ok(Waited::HasWord);
        }
        if let Some((stack, at)) = door
            && !cgroup::usher(at, stack, supervisor)?
        {
            door = None;
        }
    }
}

/// The process' whole life.
fn wait(undo: &Undo, mut word: UnixStream, door: &OwnedFd) -> i32 {
    let parent = || std::os::unix::process::parent_id().cast_signed();
    let supervisor = parent();
    let number = Pid::from_raw(supervisor).ok_or(Errno::SRCH);
    let its = number.and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()));
    // What ends the supervisor's group is not meant for it.
    let begun = rustix::process::setpgid(None, None).map_err(io::Error::from);
    let begun = begun.and_then(|()| null_standard_descriptors());
    let begun = begun.and_then(|()| Ok(rustix::process::chdir("/")?));
    // It has the supervisor's command line.
    let begun = begun.and_then(|()| Ok(rustix::thread::set_name(UNDOER)?));
    let dropped = begun.map_err(|e| e.to_string()).and_then(|()| {
        let filter = seccomp::undoer().compile().map_err(|e| chain(&e))?;
        // One that was stopped would keep the lock of a stack whose supervisor was killed. To root, from another, goes this one signal
        // alone, within a session (kill(2)).
        let goes_on = Some(rustix::process::Signal::CONT);
        rustix::process::set_parent_process_death_signal(goes_on).map_err(|e| e.to_string())?;
        let given_up = privileges::give_up(None, &[], Some(&filter));
        given_up.map(drop).map_err(|e| chain(&e))
    });
    let waited = its.map_err(io::Error::from).and_then(|pidfd| {
        let cgroup = undo.cgroup.as_deref().filter(|_| dropped.is_ok());
        until_a_word(&word, door, cgroup, (supervisor, &pidfd))
    });
    let heard = match waited {
        Ok(Waited::Ended) => Err(io::ErrorKind::UnexpectedEof.into()),
        // What is wrong with the door is told by who has asked there.
        Ok(Waited::HasWord) | Err(_) => hear(&mut word),
    };
    let said = match (dropped, heard) {
        (Ok(()), heard) if heard.is_err() || parent() != supervisor => {
            return i32::from(undo.remove_cgroup().is_err());
        }
        (Err(_), Err(_)) => return 1,
        // It does nothing with what it may not have.
        (Err(why), _) => Err(why),
        (Ok(()), document) => undo.now(document.ok().flatten().as_deref()),
    };
    let said = said.map_or_else(|why| why, |()| DONE.to_owned());
    i32::from(word.write_all(said.as_bytes()).is_err())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// What is heard of somebody who writes this and ends.
    fn heard(words: &[&[u8]]) -> io::Result<Option<Vec<u8>>> {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        for word in words {
            theirs.write_all(word).unwrap();
        }
        drop(theirs);
        hear(&mut ours)
    }

    #[test]
    fn nothing_is_undone_but_at_a_whole_word() {
        let length = |length: u64| length.to_ne_bytes();
        assert_eq!(heard(&[&length(3), b"end"]).unwrap(), Some(b"end".to_vec()));
        assert_eq!(heard(&[&length(0)]).unwrap(), Some(vec![]));
        assert_eq!(heard(&[&length(NO_DOCUMENT)]).unwrap(), None);
        // Of one that was killed before, in the length, in the document; and one that would have it take all memory.
        for words in [
            &[][..],
            &[&length(3)[..7]],
            &[&length(3), b"en"],
            &[&length(ENDED_BYTES + 1), b"end"],
        ] {
            assert!(heard(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn who_says_nothing_or_is_not_there_is_told_from_who_has_done_it() {
        for (answer, told) in [("done", "done"), ("", ""), ("no", "no")] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(answer.as_bytes()).unwrap();
            theirs.shutdown(Shutdown::Write).unwrap();
            assert_eq!(say(ours, Some(b"document")).unwrap(), told);
            assert_eq!(hear(&mut theirs).unwrap().unwrap(), b"document");
        }
    }
}

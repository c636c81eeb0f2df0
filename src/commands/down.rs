//! `lrpns down` and `lrpns gc`.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;
use std::time::Duration;

use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::host_rules::HostRules;
use super::interrupt::{Heard, Interrupts, tell};
use super::{end_whoever_is, ended, ghosts, root};
use crate::commands::failure::{Failure, chain};
use crate::confine::privileges::Ids;
use crate::control::{Client, Reply, Request, is_gone, is_silent};
use crate::host::Host;
use crate::log::files;
use crate::names::StackName;
use crate::net;
use crate::part::cgroup;
use crate::plan::Mode;
use crate::state::{Liveness, StateRoot};
use crate::supervise;
use crate::text::harmless_lines;

/// Takes one stack down.
pub fn one(stack: &StackName) -> Result<ExitCode, Failure> {
    let state = Host::state_root();
    let mut rules = HostRules::of(&state, std::slice::from_ref(stack));
    let went = take_down(&state, stack, &mut rules)?;
    // It looks at every process of the machine. Those of a stack that was there have ended with it.
    if !went {
        end_ghosts(&state)?;
    }
    rules.sweep(&state)?;
    rules.close();
    cgroup::tidy(root());
    state.tidy();
    let said = if went {
        "is down"
    } else {
        "does not run: nothing to take down"
    };
    eprintln!("{stack} {said}");
    Ok(ExitCode::SUCCESS)
}

/// Takes every stack of this user down; goes on after a failure.
pub fn all() -> Result<ExitCode, Failure> {
    let state = Host::state_root();
    let (mut failures, mut rules) = (vec![], HostRules::default());
    for some in state.stacks()?.chunks(AT_ONCE) {
        rules.and(HostRules::of(&state, some));
        // They end beside each other; what came of it is heard below, stack by stack.
        let ask = |stack| {
            let client = Client::connect(&state.control(stack)).ok()?;
            client.ask(&Request::Down).ok().map(|()| client)
        };
        let asked: Vec<Option<Client>> = some.iter().map(ask).collect();
        for (stack, asked) in some.iter().zip(asked) {
            match take_down(&state, stack, &mut rules) {
                Ok(went) if went || asked.is_some() => eprintln!("{stack} is down"),
                Ok(_) => {}
                Err(e) => failures.push(format!("{stack}: {}", e.message)),
            }
        }
    }
    for tidied in [end_ghosts(&state), rules.sweep(&state)] {
        if let Err(e) = tidied {
            failures.push(e.message);
        }
    }
    rules.close();
    cgroup::tidy(root());
    if failures.is_empty() {
        state.tidy();
        Ok(ExitCode::SUCCESS)
    } else {
        Err(Failure::unable(failures.join("\n")))
    }
}

/// How many stacks end at once: each is a conversation, and this process may have 1,024 descriptors as a rule.
const AT_ONCE: usize = 100;

/// Removes what crashes left: directories whose supervisor is gone, links of ours that belong to no living stack.
pub fn gc(all: bool) -> Result<ExitCode, Failure> {
    let state = Host::state_root();
    let mut removed = 0;
    let mut alive = vec![];
    for stack in state.stacks()? {
        let global = state.lock()?;
        match state.settle(&stack, &global) {
            Ok(Liveness::Alive) => alive.push(stack),
            // Whoever has its lock is another command's to end: `down` does.
            Err(e) => {
                eprintln!("{stack} is left as it is: {}", chain(&e));
                alive.push(stack);
            }
            Ok(_) => {
                // Who was taken over may have left somebody in a part's user namespace, which he owns.
                end_whom_it_left(&state, &stack)?;
                remove_cgroup(&state, &stack)?;
                state.remove(&stack, global)?;
                eprintln!("removed what {stack} had left");
                removed += 1;
            }
        }
    }
    sweep_cgroups(&state)?;
    cgroup::tidy(root());
    if root() {
        removed += end_ghosts(&state)?;
        removed += in_runtime(net::remove_leftover_links(&alive))?;
        removed += HostRules::default().sweep(&state)?;
    }
    files::tidy(&Host::logs());
    if all {
        removed += ended::remove_all(&state)?;
    }
    state.tidy();
    if removed == 0 {
        eprintln!("nothing to remove");
    }
    Ok(ExitCode::SUCCESS)
}

/// Removes cgroups of stacks that there are no more.
fn sweep_cgroups(state: &StateRoot) -> Result<(), Failure> {
    let stacks = state.stacks()?;
    let plans: Option<Vec<_>> = stacks.iter().map(|stack| state.plan(stack)).collect();
    // Of one whose plan can't be read it may be any.
    if let Some(plans) = plans {
        let known = plans.into_iter().filter_map(|plan| plan.cgroup.path);
        cgroup::sweep(root(), &known.collect::<Vec<_>>());
    }
    Ok(())
}

/// Ends processes that are supervisors without a stack; how many there were.
fn end_ghosts(state: &StateRoot) -> Result<usize, Failure> {
    if !root() {
        return Ok(0);
    }
    let ended = ghosts::end(state)?;
    if ended > 0 {
        eprintln!(
            "ended {ended} processes that a supervisor had left, which should have ended with its stack"
        );
    }
    Ok(ended)
}

/// Who the supervisor of a stack is, if that is nobody else.
fn supervisor(state: &StateRoot, stack: &StackName) -> Option<Ids> {
    state.plan(stack).and_then(|plan| plan.supervisor())
}

/// Ends whoever has the id of a stack's supervisor, or is in a user namespace of that one's, unless another stack has it too.
fn end_whom_it_left(state: &StateRoot, stack: &StackName) -> Result<(), Failure> {
    let Some(owner) = supervisor(state, stack) else {
        return Ok(());
    };
    let mut others = state.stacks()?.into_iter().filter(|other| other != stack);
    match others.any(|other| supervisor(state, &other) == Some(owner)) {
        true => Ok(()),
        false => end_whoever_is(owner),
    }
}

/// Takes a stack down, whether its supervisor lives or not; `false` when there was nothing.
fn take_down(state: &StateRoot, stack: &StackName, rules: &mut HostRules) -> Result<bool, Failure> {
    let (owner, beside) = (supervisor(state, stack), state.directories()?);
    let was_there = take_down_what_is_there(state, stack)?;
    rules.remove_at_link(stack);
    if let Some(owner) = owner {
        let _global = state.lock()?;
        // Beside it nobody had its ids; who was brought up since may.
        let now = state.directories()?;
        let mut since = now.difference(&beside);
        if !since.any(|(other, _)| supervisor(state, other) == Some(owner)) {
            end_whoever_is(owner)?;
        }
    }
    Ok(was_there)
}

fn take_down_what_is_there(state: &StateRoot, stack: &StackName) -> Result<bool, Failure> {
    let directory = || std::fs::metadata(state.stack(stack)).map(|it| it.ino());
    loop {
        let its = directory().ok();
        let talked = match Client::connect(&state.control(stack)) {
            Ok(client) => {
                match client.ask(&Request::Down) {
                    Ok(()) => {}
                    // It is ending already, and its end is what we wait for.
                    Err(e) if is_gone(&e) => {}
                    // What it has not read it can't obey; silence ends the wait.
                    Err(e) if is_silent(&e) => {}
                    Err(e) => {
                        return Err(Failure::unable(format!(
                            "ask the supervisor of {stack} to end: {e}"
                        )));
                    }
                }
                wait_for_the_end(state, stack, client)?;
                true
            }
            Err(e) if is_gone(&e) => false,
            Err(e) if is_silent(&e) => {
                return Err(Failure::unable(format!(
                    "the supervisor of {stack} takes no more requests"
                ))
                .hint("it was stopped (SIGSTOP), or hangs, and has too many waiting: kill -KILL its process, then lrpns down"));
            }
            Err(e) => {
                return Err(Failure::unable(format!(
                    "connect to the supervisor of {stack}: {e}"
                )));
            }
        };
        // A lock file is made by who asks for it, and nothing may be left where nothing was.
        if !state.stack(stack).exists() {
            return Ok(talked);
        }
        let global = state.lock()?;
        let owner = supervisor(state, stack);
        let mut liveness = match state.settle(stack, &global) {
            // Somebody holds the lock who takes no requests.
            Err(_) if owner.is_some() => {
                end_whom_it_left(state, stack)?;
                state.settle(stack, &global)?
            }
            settled => settled?,
        };
        if liveness == Liveness::Alive && talked && directory().ok() == its {
            // It was killed, and has closed our connection, but not yet what it listens at, nor its lock: the kernel closes
            // one after the other.
            liveness = match (state.ends(stack, &global), owner) {
                // It has left what it has to somebody it has made.
                (Err(_), Some(owner)) => {
                    end_whoever_is(owner)?;
                    state.ends(stack, &global)?
                }
                (ends, _) => ends?,
            };
        }
        match liveness {
            Liveness::Absent => return Ok(talked),
            // The one that we asked has ended; this is another, which was brought up since.
            Liveness::Alive if talked => return Ok(true),
            // It was brought up since we looked: now it can be asked.
            Liveness::Alive => {}
            Liveness::Crashed => {
                // Whom a supervisor that was taken over has left in its parts, which are his, holds their links up.
                end_whom_it_left(state, stack)?;
                // The kernel has killed every part with the supervisor; that its link is gone shows that it is done.
                if let Some(plan) = state.plan(stack)
                    && plan.mode == Mode::Root
                {
                    in_runtime(net::wait_until_gone(plan.uplink.host_link))?;
                }
                remove_cgroup(state, stack)?;
                ended::note_crash(state, stack, &global);
                state.remove(stack, global)?;
                return Ok(true);
            }
        }
    }
}

/// Waits until the supervisor has ended, which it does when nothing of the stack is left, and shows what it waits for. A
/// second Ctrl-C has it kill what still runs.
fn wait_for_the_end(state: &StateRoot, stack: &StackName, client: Client) -> Result<(), Failure> {
    let unable = |e: std::io::Error| Failure::unable(format!("hear from the supervisor: {e}"));
    let socket = client.as_fd().try_clone_to_owned().map_err(unable)?;
    let interrupts = Interrupts::watch().map_err(unable)?;
    let mut asked = 0;
    // What takes long it reports every ten seconds. A signal stops it when it runs next, which may be later.
    let (mut silent, mut stopped) = (Duration::ZERO, client.is_stopped());
    let ended = loop {
        let heard = interrupts.or_message_within(&socket, Some(STOPPED_FOR));
        let Some(heard) = heard.map_err(unable)? else {
            silent += STOPPED_FOR;
            let is_stopped = client.is_stopped();
            if stopped && is_stopped {
                break force(stack, &client, STOPPED_FOR);
            }
            if silent >= SILENT_FOR {
                break force(stack, &client, silent);
            }
            stopped = is_stopped;
            continue;
        };
        silent = Duration::ZERO;
        match heard {
            Heard::Message => match client.reply() {
                Ok(Some((Reply::Waits(what), _))) => {
                    tell(&format!("{stack}: {}", harmless_lines(&what)));
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break Ok(()),
            },
            Heard::Interrupt(Signal::SIGINT) => {
                asked += 1;
                if asked == 1 {
                    tell(&format!(
                        "{stack} is ending, and goes on whether this command waits or not; Ctrl-C again kills it at once"
                    ));
                } else if let Ok(other) = Client::connect(&state.control(stack)) {
                    // Its answer is the end, which is waited for already.
                    let _ = other.ask(&Request::Kill);
                }
            }
            Heard::Interrupt(signal) => {
                break Err(Failure::failed(format!(
                    "interrupted by {signal}: {stack} is ending still"
                )));
            }
        }
    };
    supervise::the_end()
        .thread_unblock()
        .map_err(|e| unable(e.into()))?;
    ended
}

/// How long a supervisor that was stopped may stay so.
const STOPPED_FOR: Duration = Duration::from_secs(2);
/// How long one may be silent: three times what it promises.
const SILENT_FOR: Duration = Duration::from_secs(30);

/// Ends a supervisor that doesn't answer. The kernel ends every part with it, and what is left is removed as after a crash.
fn force(stack: &StackName, client: &Client, silent: Duration) -> Result<(), Failure> {
    let unable = |e: std::io::Error| {
        Failure::unable(format!(
            "end the supervisor of {stack}, which does not answer: {e}"
        ))
    };
    let (pid, pidfd) = match client.supervisor() {
        Ok(found) => found,
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
        Err(e) => return Err(unable(e)),
    };
    tell(&format!(
        "{stack}: its supervisor (process {pid}) has not answered for {} s: killing it",
        silent.as_secs()
    ));
    match rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(e) => return Err(unable(e.into())),
    }
    let limit = Timespec::try_from(SILENT_FOR).map_err(Failure::unable)?;
    let mut ended = [PollFd::new(&pidfd, PollFlags::IN)];
    match rustix::io::retry_on_intr(|| rustix::event::poll(&mut ended, Some(&limit))) {
        Ok(0) => Err(unable(std::io::ErrorKind::TimedOut.into())),
        Ok(_) => Ok(()),
        Err(e) => Err(unable(e.into())),
    }
}

/// Removes the cgroup of a stack that has crashed.
fn remove_cgroup(state: &StateRoot, stack: &StackName) -> Result<(), Failure> {
    match state.plan(stack).and_then(|plan| plan.cgroup.path) {
        Some(path) => cgroup::remove(&path).map_err(Failure::unable),
        None => Ok(()),
    }
}

/// Runs one question to the kernel.
fn in_runtime<T>(work: impl Future<Output = Result<T, net::Error>>) -> Result<T, Failure> {
    crate::sys::runtime::of_this_thread()
        .map_err(|e| Failure::unable(format!("make a runtime: {e}")))?
        .block_on(work)
        .map_err(|e| Failure::unable(chain(&e)))
}

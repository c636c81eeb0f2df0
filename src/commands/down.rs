//! `lrpns down` and `lrpns gc`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use crate::control::{Client, Request, is_gone};
use crate::error::Failure;
use crate::host::Host;
use crate::names::StackName;
use crate::net;
use crate::plan::Mode;
use crate::state::{Liveness, StateRoot};

/// Takes one stack down.
pub fn one(stack: &StackName) -> Result<ExitCode, Failure> {
    let said = if take_down(&Host::state_root(), stack)? {
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
    let mut failures = vec![];
    for stack in state.stacks()? {
        match take_down(&state, &stack) {
            Ok(true) => eprintln!("{stack} is down"),
            Ok(false) => {}
            Err(e) => failures.push(format!("{stack}: {}", e.message)),
        }
    }
    if failures.is_empty() {
        Ok(ExitCode::SUCCESS)
    } else {
        Err(Failure::unable(failures.join("\n")))
    }
}

/// Removes what crashes left: directories whose supervisor is gone, links of ours that belong to no living stack.
pub fn gc() -> Result<ExitCode, Failure> {
    let state = Host::state_root();
    let mut removed = 0;
    let mut alive = vec![];
    for stack in state.stacks()? {
        let global = state.lock()?;
        match state.settle(&stack, &global)? {
            Liveness::Alive => alive.push(stack),
            _ => {
                state.remove(&stack, global)?;
                eprintln!("removed what {stack} had left");
                removed += 1;
            }
        }
    }
    if nix::unistd::geteuid().is_root() {
        removed += in_runtime(net::remove_leftover_links(&alive))?;
    }
    if removed == 0 {
        eprintln!("nothing to remove");
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes a stack down, whether its supervisor lives or not; `false` when there was nothing.
fn take_down(state: &StateRoot, stack: &StackName) -> Result<bool, Failure> {
    let run = || state.plan(stack).map(|plan| plan.run);
    let before = run();
    match Client::connect(&state.control(stack)) {
        Ok(client) => {
            match client.ask(&Request::Down) {
                Err(e) if !is_gone(&e) => {
                    return Err(Failure::unable(format!(
                        "ask the supervisor of {stack} to end: {e}"
                    )));
                }
                _ => {}
            }
            // It answers by ending, when nothing of the stack is left but its directory and its lock.
            while let Ok(Some(_)) = client.reply() {}
            if !state.stack(stack).exists() {
                return Ok(true);
            }
        }
        Err(e) if is_gone(&e) => {
            if !state.stack(stack).exists() {
                return Ok(false);
            }
        }
        Err(e) => {
            return Err(Failure::unable(format!(
                "connect to the supervisor of {stack}: {e}"
            )));
        }
    }
    let global = state.lock()?;
    match state.settle(stack, &global)? {
        // The supervisor has removed it; its lock is with it.
        Liveness::Absent => Ok(true),
        // Somebody has brought it up again meanwhile: what we were to take down is down.
        Liveness::Alive if run() != before => Ok(true),
        Liveness::Alive => Err(Failure::unable(format!(
            "the supervisor of {stack} ended the conversation, and not the stack"
        ))),
        Liveness::Crashed => {
            // The kernel has killed every part with the supervisor; that its link is gone shows that it is done.
            if let Some(plan) = state.plan(stack)
                && plan.mode == Mode::Root
            {
                in_runtime(net::wait_until_gone(plan.uplink.host_link))?;
            }
            state.remove(stack, global)?;
            Ok(true)
        }
    }
}

/// Runs one question to the kernel.
fn in_runtime<T>(work: impl Future<Output = Result<T, net::Error>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::unable(format!("make a runtime: {e}")))?
        .block_on(work)
        .map_err(Failure::unable)
}

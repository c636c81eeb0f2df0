//! `lrpns up` and `lrpns run`: config -> plan -> preflight -> bring up -> supervise -> take down.
//!
//! Everything here happens on one thread: with `-d`, the fork comes first; then what must be done before there is a
//! runtime (locks, ports, and rootless our own namespaces); then the runtime.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write};
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::control::{Client, Reply, Request, Status, is_gone};
use crate::error::Failure;
use crate::host::Host;
use crate::logbuf::LogLine;
use crate::namespaces;
use crate::plan::{self, Mode, Plan};
use crate::protocol::Exit;
use crate::stack::StackError;
use crate::supervise::{self, Outcome, Tee};
use crate::sys::process::{Cloned, clone3, exit_now};
use crate::{preflight, protocol, rootless};

/// Creates the stack; in the foreground until Ctrl-C, else until the published ports answer.
pub fn up(config: Config, detach: bool) -> Result<ExitCode, Failure> {
    if detach {
        return detached(config);
    }
    match supervise_here(config, Voice::terminal())? {
        End::Already(message) => {
            eprintln!("{message}");
            Ok(ExitCode::SUCCESS)
        }
        End::Over(Outcome::Stopped) => Ok(ExitCode::SUCCESS),
        End::Over(Outcome::AppEnded(exit)) => Ok(ExitCode::from(u8::from(exit.code() != 0))),
        End::Early(_, failure) => Err(failure),
    }
}

/// A stack around one command; its output is the command's, its end too.
pub fn run(config: Config) -> Result<ExitCode, Failure> {
    match supervise_here(config, Voice::command())? {
        End::Already(message) => Err(Failure::unable(message)),
        End::Over(Outcome::Stopped) => Ok(ExitCode::SUCCESS),
        End::Over(Outcome::AppEnded(exit)) => Ok(ExitCode::from(exit.code())),
        End::Early(exit, failure) => {
            let _ = failure.print();
            Ok(ExitCode::from(exit.code()))
        }
    }
}

/// How it ended.
enum End {
    /// The stack lives already; what to say about it.
    Already(String),
    /// It was brought up and has ended.
    Over(Outcome),
    /// Its app ended before it listened.
    Early(Exit, Failure),
}

/// Whom the supervisor tells.
struct Voice {
    progress: Box<dyn FnMut(&'static str)>,
    ready: Box<dyn FnOnce(&Status)>,
    tee: Tee,
}

impl Voice {
    /// A foreground `up`: progress on standard error, the log on standard output.
    fn terminal() -> Self {
        let colour = std::io::stdout().is_terminal();
        let begun = std::time::Instant::now();
        let mut out = anstream::stdout();
        Self {
            progress: Box::new(move |step| {
                eprintln!(
                    "{:>8.1} ms  {}",
                    begun.elapsed().as_secs_f64() * 1e3,
                    done(step)
                )
            }),
            ready: Box::new(|status| eprintln!("{}\nCtrl-C takes it down", is_up(status))),
            tee: Tee::Lines(Box::new(move |line| {
                // A reader that has gone away doesn't end the stack.
                let _ = writeln!(out, "{}", line.human(colour)).and_then(|()| out.flush());
            })),
        }
    }

    /// `run`: the command's own output and nothing else, but for what goes wrong.
    fn command() -> Self {
        Self {
            progress: Box::new(|_| {}),
            ready: Box::new(|_| {}),
            tee: Tee::Bytes,
        }
    }
}

/// What a detached supervisor tells the command that started it.
#[derive(Serialize, Deserialize)]
enum Told {
    Step(String),
    Line(LogLine),
    Ready(String),
    Already(String),
    Failed(Failure),
}

/// Supervises in a child of a session of its own; returns when that child says how it went.
fn detached(config: Config) -> Result<ExitCode, Failure> {
    let unable = |what: &str, e: std::io::Error| Failure::unable(format!("{what}: {e}"));
    let (ours, theirs) = namespaces::socketpair().map_err(|e| unable("make a socket pair", e))?;
    // The child supervises; what this process learns of it comes over the socket, and its end with the socket's.
    if let Cloned::Child = clone3(0).map_err(|e| unable("clone", e))? {
        drop(ours);
        exit_now(background(config, theirs))
    }
    drop(theirs);
    let verbose = std::io::stderr().is_terminal();
    loop {
        match protocol::receive::<Told>(&ours).map_err(|e| unable("hear from the supervisor", e))? {
            Some((Told::Step(step), _)) if verbose => eprintln!("  {}", done(&step)),
            Some((Told::Step(_), _)) => {}
            Some((Told::Line(line), _)) => eprintln!("{}", line.human(verbose)),
            Some((Told::Ready(message) | Told::Already(message), _)) => {
                eprintln!("{message}");
                return Ok(ExitCode::SUCCESS);
            }
            Some((Told::Failed(failure), _)) => return Err(failure),
            None => return Err(Failure::unable("the supervisor ended without a word")),
        }
    }
}

/// The detached supervisor's whole life.
fn background(config: Config, teller: OwnedFd) -> i32 {
    let teller = std::rc::Rc::new(teller);
    let tell = |message: &Told| {
        // The command that started us may have been interrupted; the stack goes on.
        let _ = protocol::send(&*teller, message, &[]);
    };
    if let Err(e) = leave_terminal() {
        tell(&Told::Failed(Failure::unable(format!(
            "leave the terminal: {e}"
        ))));
        return 1;
    }
    let (steps, lines, ready) = (teller.clone(), teller.clone(), teller.clone());
    let voice = Voice {
        progress: Box::new(move |step| {
            let _ = protocol::send(&*steps, &Told::Step(step.to_owned()), &[]);
        }),
        ready: Box::new(move |status| {
            let _ = protocol::send(&*ready, &Told::Ready(is_up(status)), &[]);
            // From now on there is nobody to hear; a full socket would only hold us up.
            let _ = rustix::net::shutdown(&*ready, rustix::net::Shutdown::Both);
        }),
        tee: Tee::Lines(Box::new(move |line| {
            let _ = protocol::send(&*lines, &Told::Line(line.clone()), &[]);
        })),
    };
    match supervise_here(config, voice) {
        Ok(End::Already(message)) => tell(&Told::Already(message)),
        Ok(End::Over(_)) => {}
        Ok(End::Early(_, failure)) | Err(failure) => tell(&Told::Failed(failure)),
    }
    0
}

/// A session of our own, and the null device on the three standard descriptors.
fn leave_terminal() -> std::io::Result<()> {
    rustix::process::setsid()?;
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// Claims the stack, brings it up and supervises it until its end.
fn supervise_here(config: Config, voice: Voice) -> Result<End, Failure> {
    // Whatever is made from here on (sockets, files) is ours alone.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let state = Host::state_root();
    let (global, host, plan, claimed) = loop {
        let global = state.lock()?;
        state.settle(&config.name, &global)?;
        let host = Host::look(&config.name)?;
        let plan = plan::resolve(&config, &host)?;
        if let Some(claimed) = state.claim(&config.name, &global)? {
            break (global, host, plan, claimed);
        }
        drop(global);
        if let Some(message) = already(&plan, &host)? {
            return Ok(End::Already(message));
        }
    };
    let prepared = preflight::check(&plan, &host)
        .map_err(|problems| preflight::describe(plan.stack.as_str(), &problems))
        .and_then(|listeners| {
            claimed.save(&plan)?;
            let control = claimed.listen()?;
            if plan.mode == Mode::Rootless {
                rootless::become_root_of_own_namespaces()
                    .map_err(|e| Failure::unable(&e).hint(rootless::HINT))?;
            }
            Ok((listeners, control))
        });
    let (listeners, control) = match prepared {
        Ok(prepared) => prepared,
        Err(failure) => {
            state.remove(&config.name, global)?;
            return Err(failure);
        }
    };
    drop(global);

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::unable(format!("make a runtime: {e}")))?;
    let Voice {
        mut progress,
        ready,
        tee,
    } = voice;
    let ready = |status: &Status| {
        ready(status);
        let text = is_up(status);
        // Not under systemd, or too old a one: nobody waits for it.
        let _ = sd_notify::notify(&[
            sd_notify::NotifyState::Ready,
            sd_notify::NotifyState::Status(&text),
        ]);
    };
    let ended = runtime.block_on(supervise::run(
        plan,
        listeners,
        control,
        tee,
        &mut *progress,
        ready,
    ));
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    let removed = state
        .lock()
        .and_then(|global| state.remove(&config.name, global));
    // Clients of the control socket learn of the end by the end of this process, when really nothing is left: so the
    // runtime, which holds their sockets, must live as long.
    std::mem::forget(runtime);
    let end = match ended {
        Ok(outcome) => End::Over(outcome),
        Err(e) => match e {
            StackError::AppEnded { exit, .. } => End::Early(exit, e.into()),
            e => return Err(e.into()),
        },
    };
    removed?;
    Ok(end)
}

/// The stack lives: waits until it is up, says whether it is what was asked for; `None` when it has ended meanwhile, or
/// did not come up, and now it is our turn.
fn already(wanted: &Plan, host: &Host) -> Result<Option<String>, Failure> {
    let stack = &wanted.stack;
    let ask = || -> std::io::Result<_> {
        let client = Client::connect(&host.state.control(stack))?;
        client.ask(&Request::Status)?;
        client.reply()
    };
    match ask() {
        Ok(Some((Reply::Status(status), _))) if status.plan.asks_for_the_same_as(wanted) => {
            Ok(Some(format!(
                "{}, as before; nothing was changed",
                is_up(&status)
            )))
        }
        Ok(Some((Reply::Status(_), _))) => Err(Failure::failed(format!(
            "{stack} is up with another configuration; nothing was changed"
        ))
        .hint(format!("lrpns down {stack}, then up again"))),
        Ok(Some(_)) => Err(Failure::unable(format!(
            "the supervisor of {stack} answered something else"
        ))),
        Ok(None) => Ok(None),
        Err(e) if is_gone(&e) => Ok(None),
        Err(e) => Err(Failure::unable(format!(
            "ask the supervisor of {stack}: {e}"
        ))),
    }
}

/// A step in words.
fn done(step: &str) -> &str {
    match step {
        "namespaces" => "namespaces are made",
        "parts" => "parts have dropped their privileges, the sidecar's rules are in force",
        "rules" => "the host's table is in force",
        "links" => "links are up",
        "commands" => "commands run",
        "listening" => "apps listen",
        "path" => "apps answer through the sidecar",
        "published" => "ports are published",
        other => other,
    }
}

/// One line about a stack that is up.
fn is_up(status: &Status) -> String {
    let ports: Vec<String> = status
        .plan
        .published()
        .map(|(app, publish)| {
            let via = match publish.via {
                plan::Transport::Dnat => "dnat",
                plan::Transport::Relay => "relay",
            };
            format!(
                "{} -> {} port {} by {via}, {}",
                publish.listen, app.name, publish.app_port, publish.why
            )
        })
        .collect();
    if ports.is_empty() {
        return format!("{} is up, nothing is published", status.plan.stack);
    }
    format!("{} is up: {}", status.plan.stack, ports.join("; "))
}

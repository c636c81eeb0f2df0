//! One file per verb, each a short straight line.
#![forbid(unsafe_code)]

mod advice;
mod apply;
mod audit;
mod capture;
mod cause;
pub mod complete;
mod doctor;
mod down;
mod ended;
mod exec;
mod explain;
pub mod failure;
mod gate;
mod ghosts;
mod graph;
mod help;
mod host_rules;
mod init;
mod installed;
mod interrupt;
mod kill;
mod logs;
mod metrics;
mod opener;
mod options;
mod picture;
mod plan;
mod recipes;
mod restart;
mod rules;
pub mod scratch;
mod stats;
mod status;
mod target;
mod top;
mod trace;
mod up;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::cli::{AuditFormat, Command, Source, Target};
use crate::commands::failure::Failure;
use crate::config::{self, Config, Demo, Origin, Protocol, Vars};
use crate::confine::privileges::Ids;
use crate::control::{ANSWERS_WITHIN, Client, Reply, Request, Status, is_gone, is_silent};
use crate::host::Host;
use crate::names::StackName;
use crate::plan::Plan;
use crate::state::{Liveness, StateRoot};
use crate::sys::process::end_all_of;

/// Does what the command line says: a table, with a row for each verb.
///
/// # Errors
/// [`Failure`] has the exit code and what to print.
pub fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Up {
            source,
            detach,
            strict_limits,
            gate,
            explain,
            timings,
            more,
        } => {
            let begun = std::time::Instant::now();
            target::one_stack_only(&source, &more)?;
            let wishes = up::Wishes {
                strict_limits,
                gate,
                explain,
                timings: timings.then_some(begun),
            };
            let config = configuration(&source, Named::No)?;
            if let Some(line) = up::demo(&config) {
                eprintln!("{line}");
            }
            up::up(config, detach, wishes)
        }
        Command::Run {
            tty,
            interactive,
            publish,
            rootfs,
            env,
            tmpfs,
            volume,
            socket,
            secret,
            user,
            workdir,
            memory,
            cpus,
            pids_limit,
            via,
            name,
            explain,
            command,
        } => {
            let name = name.map_or_else(|| format!("run-{}", std::process::id()), String::from);
            let options = config::RunOptions {
                name,
                publish,
                rootfs,
                env,
                tmpfs,
                volumes: volume,
                sockets: socket,
                secrets: secret,
                user,
                workdir,
                memory,
                cpus,
                pids: pids_limit,
                via,
                term: std::env::var("TERM").ok().filter(|_| tty),
                command,
            };
            let here = std::env::current_dir()
                .map_err(|e| Failure::unable(format!("find the current directory: {e}")))?;
            let wishes = up::Wishes {
                explain,
                ..up::Wishes::default()
            };
            up::run(config::run(&options, &here)?, tty, interactive, wishes)
        }
        Command::Start { target } => start(&target),
        Command::Down { all: true, .. } => down::all(),
        Command::Down { target, .. } => down::one(&whole(&target, "down", Some("restart"))?),
        Command::Ps { all, quiet, json } => status::ps(all, quiet, json),
        Command::Status {
            target,
            previous,
            json,
            verbose,
        } => {
            let meant = target::one(target.stack.as_deref(), target.file.as_deref())?;
            let how = match (json, verbose) {
                (true, _) => status::How::Json,
                (_, true) => status::How::Full,
                _ => status::How::Brief,
            };
            status::status(&meant, previous, how)
        }
        Command::Inspect { target } => {
            let meant = target::one(target.stack.as_deref(), target.file.as_deref())?;
            status::status(&meant, false, status::How::Json)
        }
        Command::Top { target } => top::top(&target::one(
            target.stack.as_deref(),
            target.file.as_deref(),
        )?),
        Command::Graph { target, svg } => {
            let stack = whole(&target, "graph", Some("status"))?;
            let named = target.stack.is_some();
            graph::graph(&stack, target.file.as_deref(), named, svg.as_deref())
        }
        Command::Stats {
            stack,
            file,
            follow,
            json,
        } => {
            let meant = target::one(stack.as_deref(), file.as_deref())?;
            stats::stats(&meant, follow, json)
        }
        Command::Metrics {
            all: true, listen, ..
        } => metrics::metrics(None, listen.as_deref()),
        Command::Metrics { target, listen, .. } => metrics::metrics(
            Some(whole(&target, "metrics", Some("stats"))?),
            listen.as_deref(),
        ),
        Command::Kill { target, signal } => {
            let meant = target::one(target.stack.as_deref(), target.file.as_deref())?;
            kill::kill(meant, signal)
        }
        Command::Restart {
            rolling,
            words,
            file,
        } => {
            let (stack, parts) = target::several(&words, file.as_deref())?;
            match rolling {
                true => restart::replace(&stack, parts),
                false => restart::restart(&stack, parts),
            }
        }
        Command::Apply {
            source,
            confirm,
            dry_run,
            json,
        } => apply::apply(
            &source,
            &apply::Options {
                confirm,
                dry_run,
                json,
            },
        ),
        Command::Logs {
            words,
            file,
            follow,
            part,
            lines,
            since,
            until,
            grep,
            previous,
            json,
        } => {
            let (stack, parts) = target::several(&words, file.as_deref())?;
            let wanted = logs::Wanted {
                parts: [parts, part].concat(),
                stream: None,
                first: vec![],
                lines,
                sieve: logs::Sieve { since, until, grep },
                follow,
                previous,
                json,
            };
            logs::logs(&stack, wanted)
        }
        Command::Events {
            words,
            file,
            follow,
            since,
            previous,
            json,
        } => {
            let (stack, parts) = target::several(&words, file.as_deref())?;
            let sieve = logs::Sieve {
                since,
                ..logs::Sieve::default()
            };
            let wanted = logs::Wanted {
                parts,
                stream: None,
                first: vec![],
                lines: None,
                sieve,
                follow,
                previous,
                json,
            };
            logs::events(&stack, wanted)
        }
        Command::Capture {
            file,
            write,
            count,
            words,
        } => {
            let (stack, words) = capture::split(&words);
            let filter = capture::Filter::parse(words)?;
            let stack = target::whole(stack, file.as_deref(), "capture", None)?;
            capture::capture(&stack, write.as_deref(), count, &filter)
        }
        Command::Trace {
            client,
            port,
            stack,
            file,
            udp,
            within,
            json,
        } => {
            let question = trace::Question {
                // No packet has an IPv4 address written as IPv6.
                client: client.to_canonical(),
                port,
                protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
                within: std::time::Duration::from_secs(within),
            };
            let stack = target::whole(stack.as_deref(), file.as_deref(), "trace", None)?;
            trace::trace(&stack, &question, json)
        }
        Command::Exec {
            target,
            part,
            command,
            ..
        } => {
            let meant = target::one(target.stack.as_deref(), target.file.as_deref())?;
            exec::exec(&meant.stack, part.or(meant.part), &command)
        }
        Command::Audit {
            target,
            json,
            sarif,
            verbose,
        } => {
            let format = match (json, sarif) {
                (true, _) => AuditFormat::Json,
                (_, true) => AuditFormat::Sarif,
                _ => AuditFormat::Human,
            };
            audit::audit(&whole(&target, "audit", None)?, format, verbose)
        }
        Command::Rules {
            source,
            counters: true,
            json,
            ..
        } => {
            let stack = source.stack.as_ref().map(StackName::as_str);
            let stack = target::whole(stack, source.file.as_deref(), "rules", None)?;
            rules::counters(&stack, json)
        }
        Command::Rules { source, format, .. } => rules::rules(&source, format),
        Command::Plan {
            source,
            json,
            verbose,
        } => plan::plan(&source, json, verbose),
        Command::Init { list: true, .. } => init::list(),
        Command::Init { output, recipe, .. } => init::init(&output, recipe.as_deref()),
        Command::Doctor { json } => doctor::doctor(json),
        Command::Gc { all } => down::gc(all),
        Command::Rm { stack, file, force } => {
            let stack = target::whole(stack.as_deref(), file.as_deref(), "rm", None)?;
            if force {
                down::one(&stack)?;
            }
            ended::remove(&stack)
        }
        Command::Completions { shell } => {
            complete::register(shell)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { dir } => help::man(dir.as_deref()),
        Command::Help { topic } => help::help(topic.as_deref()),
    }
}

/// Starts what has ended: a stack as `up -d` does, or an app as `restart` does.
fn start(target: &Target) -> Result<ExitCode, Failure> {
    let meant = target::one(target.stack.as_deref(), target.file.as_deref())?;
    if let Some(part) = meant.part {
        return restart::restart(&meant.stack, vec![part]);
    }
    let source = Source {
        stack: target.stack.as_ref().map(|_| meant.stack),
        file: target.file.clone(),
        demo: false,
        set: vec![],
        env_file: None,
    };
    let config = configuration(&source, Named::No)?;
    if let Some(line) = up::demo(&config) {
        eprintln!("{line}");
    }
    up::up(config, true, up::Wishes::default())
}

/// Prints to standard output; a reader that has gone away is no failure of ours.
fn print(text: &str) -> Result<(), Failure> {
    written(anstream::stdout(), text).map(|_| ())
}

/// Writes it to standard output at once; `false` when nobody reads any more.
fn written(mut out: impl std::io::Write, text: &str) -> Result<bool, Failure> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(cannot_print(e)),
    }
}

fn cannot_print(e: std::io::Error) -> Failure {
    Failure::unable(format!("write to standard output: {e}"))
}

/// Prints a document as JSON.
fn print_json(document: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(document).map_err(Failure::unable)?;
    print(&(text + "\n"))
}

/// For which names the built-in example stands in where there is no file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    /// For none: a STACK that is named is one of the user's, and a file that is missing is a mistake.
    No,
    /// For its own too, which may be that of a stack that runs.
    Too,
}

/// What stands in for a file that isn't there.
enum Instead {
    /// The file that the running stack was made from.
    File(PathBuf),
    /// The built-in example.
    Builtin(Demo),
}

impl Instead {
    /// What a running stack was made from.
    fn of(running: &Plan) -> Self {
        match (&running.config, running.origins.get("app.publish")) {
            (Some(file), _) => Self::File(file.clone()),
            (None, Some(Origin::Builtin)) => Self::Builtin(Demo::Everywhere),
            (None, _) => Self::Builtin(Demo::Loopback),
        }
    }
}

/// The configuration that a command line means: `-f`, else /etc/lrpns/STACK.toml where a STACK is named, else ./lrpns.toml,
/// else the built-in example. The directory that a command happens to stand in does not go before what root has installed.
fn configuration(source: &Source, named: Named) -> Result<Config, Failure> {
    configuration_or(source, named, |_| Ok(Instead::Builtin(Demo::Loopback)))
}

/// The same, but that `instead` is asked what stands in for a file that isn't there.
fn configuration_or(
    source: &Source,
    named: Named,
    instead: impl FnOnce(&StackName) -> Result<Instead, Failure>,
) -> Result<Config, Failure> {
    let vars = Vars::from_process(&source.set, source.env_file.as_deref())?;
    if source.demo {
        let config = config::builtin(&vars, Demo::Everywhere)?;
        return match &source.stack {
            Some(stack) if *stack != config.name => Err(Failure::usage(format!(
                "--demo is the stack {}, not {stack}",
                config.name
            ))
            .hint("--demo alone is enough")),
            _ => Ok(config),
        };
    }
    if let Some(file) = &source.file {
        let config = config::load(file, &vars)?;
        return match &source.stack {
            Some(stack) if *stack != config.name => Err(Failure::usage(format!(
                "{} is for the stack {}, not for {stack}",
                file.display(),
                config.name
            ))
            .hint(format!("-f {} alone is enough", file.display()))),
            _ => Ok(config),
        };
    }
    if let Some(stack) = &source.stack {
        let installed = installed(stack);
        if installed.exists() {
            return Ok(config::load(&installed, &vars)?);
        }
    }
    let here = Path::new("lrpns.toml");
    let mut passed_over = None;
    if here.exists() {
        let config = config::load(here, &vars)?;
        match &source.stack {
            Some(stack) if *stack != config.name => {
                if config
                    .apps
                    .iter()
                    .any(|app| app.name.as_str() == stack.as_str())
                {
                    return Err(Failure::usage(format!(
                        "{stack} is an app of {}, and this command takes a whole stack; nothing was done",
                        config.name
                    ))
                    .hint(format!(
                        "a stack's apps start together: name {}, or nothing; lrpns restart {}/{stack} starts that one again",
                        config.name, config.name
                    )));
                }
                passed_over = Some(config.name);
            }
            _ => return Ok(config),
        }
    }
    let builtin = config::builtin(&vars, Demo::Loopback)?;
    let stack = source.stack.as_ref().unwrap_or(&builtin.name);
    match instead(stack)? {
        Instead::File(file) => {
            let config = config::load(&file, &vars)?;
            if config.name != *stack {
                return Err(Failure::usage(format!(
                    "{}, which {stack} was made from, is for the stack {} now",
                    file.display(),
                    config.name
                )));
            }
            return Ok(config);
        }
        Instead::Builtin(Demo::Everywhere) => {
            return Ok(config::builtin(&vars, Demo::Everywhere)?);
        }
        Instead::Builtin(Demo::Loopback) => {}
    }
    match &source.stack {
        Some(stack) if *stack != builtin.name || named == Named::No => {
            let here = match passed_over {
                Some(name) => format!("./lrpns.toml is for {name}"),
                None => "there is no ./lrpns.toml".to_owned(),
            };
            let failure = Failure::usage(format!(
                "there is no configuration for {stack}: {here}, and /etc/lrpns/{stack}.toml does not exist"
            ));
            Err(match *stack == builtin.name {
                true => failure.hint("the built-in example of that name is started by `lrpns up` without a name, and by `lrpns up --demo`"),
                false => failure.hint(format!("-f FILE names another file; lrpns init -o {stack}.toml writes one to begin with")),
            })
        }
        _ => Ok(builtin),
    }
}

/// Where the file of an installed stack is.
fn installed(stack: &StackName) -> PathBuf {
    Path::new("/etc/lrpns").join(format!("{stack}.toml"))
}

/// The stack that a command line means, for a verb that takes no parts.
fn whole(target: &Target, verb: &str, for_a_part: Option<&str>) -> Result<StackName, Failure> {
    target::whole(
        target.stack.as_deref(),
        target.file.as_deref(),
        verb,
        for_a_part,
    )
}

/// Connects to a running stack and asks.
fn ask(stack: &StackName, request: &Request) -> Result<Client, Failure> {
    ask_with(stack, request, &[])
}

/// The same, with descriptors.
fn ask_with(
    stack: &StackName,
    request: &Request,
    fds: &[std::os::fd::BorrowedFd<'_>],
) -> Result<Client, Failure> {
    let client = connect(stack)?;
    match client.ask_with(request, fds) {
        Ok(()) => Ok(client),
        Err(e) if is_gone(&e) => Err(ended(stack)),
        Err(e) if is_silent(&e) => Err(silent(stack)),
        Err(e) => Err(Failure::unable(format!(
            "ask the supervisor of {stack}: {e}"
        ))),
    }
}

/// A conversation with the supervisor of `stack` in which nothing has been asked yet.
fn connect(stack: &StackName) -> Result<Client, Failure> {
    let state = Host::state_root();
    let client = Client::connect(&state.control(stack)).map_err(|e| match is_silent(&e) {
        true => silent(stack),
        false => not_running(&state, stack, &e),
    })?;
    match client.is_stopped() {
        true => Err(silent(stack)),
        false => Ok(client),
    }
}

/// A supervisor that lives and does not answer.
fn silent(stack: &StackName) -> Failure {
    Failure::unable(format!("the supervisor of {stack} does not answer")).hint(format!(
        "it was stopped (SIGSTOP), or hangs: kill -CONT lets it go on; lrpns down {stack} ends it by force"
    ))
}

/// The status of a running stack; of one that starts, when it has started.
fn status_of(stack: &StackName) -> Result<Box<Status>, Failure> {
    status_by(stack, &Request::Status)
}

/// The status of a stack as it is now, also while it starts.
fn status_now(stack: &StackName) -> Result<Box<Status>, Failure> {
    status_by(stack, &Request::Look { processes: true })
}

fn status_by(stack: &StackName, request: &Request) -> Result<Box<Status>, Failure> {
    let client = ask(stack, request)?;
    // As long as the stack starts there is no answer.
    match reply(&client, stack)?.0 {
        Reply::Status(status) => Ok(believed(stack, status)),
        _ => Err(answered_something_else(stack)),
    }
}

/// A status without cgroups that are not the stack's by its saved plan, below which files would be read.
fn believed(stack: &StackName, mut status: Box<Status>) -> Box<Status> {
    let saved = Host::state_root().plan(stack);
    status.only_cgroups_of(saved.as_ref());
    status
}

/// The plan that a supervisor says it has, as it was saved by whoever brought the stack up or changed it: what follows from a plan
/// for the host is never done by the word of a supervisor alone.
fn as_saved(stack: &StackName, said: &Plan) -> Result<Plan, Failure> {
    let state = Host::state_root();
    let saved = state.plan(stack).and_then(|saved| saved.seated(said));
    saved.ok_or_else(|| match state.is_changing(stack) {
        true => Failure::failed(format!(
            "{stack}: another live change is under way; nothing was changed"
        )),
        false => Failure::failed(format!(
            "{stack}: its supervisor says that it has another plan than the one in {}; nothing was changed",
            state.stack(stack).join("plan.json").display()
        ))
        .hint(format!(
            "the command of a live change was killed before it was saved (lrpns events {stack}): lrpns down {stack} && lrpns up {stack}"
        )),
    })
}

fn root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Ends every process that has this supervisor's id, which no stack must have at the moment: one that was taken over may have left
/// some, and they would own the namespaces of the next stack with that id.
fn end_whoever_is(owner: Ids) -> Result<(), Failure> {
    let Ids { uid, .. } = owner;
    // The id after it is nobody's.
    let ended = end_all_of(uid, uid + 1);
    ended.map_err(|e| Failure::unable(format!("end whoever is uid {uid}: {e}")))
}

fn answered_something_else(stack: &StackName) -> Failure {
    Failure::unable(format!("the supervisor of {stack} answered something else"))
}

fn ended(stack: &StackName) -> Failure {
    Failure::failed(format!("{stack} ended meanwhile"))
}

/// Waits as long as it takes until there is a reply, or the end; but for no supervisor that was stopped meanwhile, or that answers
/// nothing at all.
fn hear(client: &Client, stack: &StackName) -> Result<(), Failure> {
    while !client
        .has_answered_by(tokio::time::Instant::now() + ASKED_AGAIN)
        .map_err(|e| Failure::unable(format!("hear from the supervisor of {stack}: {e}")))?
    {
        if client.is_stopped() || !answers(stack) {
            return Err(silent(stack));
        }
    }
    Ok(())
}

/// After how long it is asked whether a supervisor still answers that is busy with what was asked for.
const ASKED_AGAIN: Duration = Duration::from_secs(5);

/// Whether a supervisor answers what it always answers at once, whatever else it is busy with.
fn answers(stack: &StackName) -> bool {
    let until = tokio::time::Instant::now() + ANSWERS_WITHIN;
    let ask = || {
        let client = Client::connect(&Host::state_root().control(stack))?;
        client.ask(&Request::Brief)?;
        client.has_answered_by(until)
    };
    // One that is gone is told by the end of the conversation that it is asked for.
    ask().unwrap_or_else(|e| is_gone(&e))
}

/// The next reply of a conversation that must have one.
fn reply(
    client: &Client,
    stack: &StackName,
) -> Result<(Reply, Vec<std::os::fd::OwnedFd>), Failure> {
    reply_or_end(client, stack)?.ok_or_else(|| ended(stack))
}

/// As [`next_reply`], but it waits for no supervisor that is stopped.
fn reply_or_end(
    client: &Client,
    stack: &StackName,
) -> Result<Option<(Reply, Vec<std::os::fd::OwnedFd>)>, Failure> {
    hear(client, stack)?;
    next_reply(client, stack)
}

/// The next reply; `None` when the supervisor has ended the conversation, or itself.
fn next_reply(
    client: &Client,
    stack: &StackName,
) -> Result<Option<(Reply, Vec<std::os::fd::OwnedFd>)>, Failure> {
    match client.reply() {
        Ok(Some((
            Reply::Refused {
                why,
                hint,
                configuration,
            },
            _,
        ))) => {
            let failure = match configuration {
                true => Failure::usage(why),
                false => Failure::failed(why),
            };
            Err(match hint {
                Some(hint) => failure.hint(hint),
                None => failure,
            })
        }
        Ok(reply) => Ok(reply),
        Err(e) if is_gone(&e) => Ok(None),
        Err(e) => Err(Failure::unable(format!(
            "hear from the supervisor of {stack}: {e}"
        ))),
    }
}

/// Why nothing can be had of a stack that doesn't run, as a connection to it would tell.
fn no_connection(state: &StateRoot, stack: &StackName) -> Failure {
    not_running(state, stack, &std::io::ErrorKind::ConnectionRefused.into())
}

fn not_running(state: &StateRoot, stack: &StackName, e: &std::io::Error) -> Failure {
    let settled = state.lock().and_then(|held| {
        let settled = state.settle(stack, &held)?;
        if settled == Liveness::Crashed {
            ended::note_crash(state, stack, &held);
        }
        Ok(settled)
    });
    match settled {
        Ok(Liveness::Alive) => {
            Failure::unable(format!("connect to the supervisor of {stack}: {e}"))
        }
        Ok(Liveness::Crashed) => {
            Failure::failed(format!("{stack} does not run: its supervisor has crashed"))
                .hint(format!("lrpns down {stack}"))
        }
        Ok(Liveness::Absent) => match ended::of(state, stack) {
            Some(ended) => Failure::failed(format!(
                "{stack} does not run: it ended at {:.0}: {}",
                ended.ended, ended.why
            ))
            .hint(format!(
                "lrpns status {stack} and lrpns logs {stack} show how"
            )),
            None => Failure::failed(format!("{stack} does not run"))
                .hint("lrpns ps shows what does, lrpns ps -a also what has ended"),
        },
        Err(e) => e.into(),
    }
}

//! lrpns: least required privilege, in namespaces. The story begins in the crate's documentation.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;

use clap::FromArgMatches;

fn main() -> ExitCode {
    lrpns::sys::process::default_sigchld();
    // Which part of a stack this process is, is decided before anything else exists: no runtime, no thread, no parser.
    let mut args = std::env::args_os();
    let program = args.next().unwrap_or_default();
    if Path::new(&program).file_name() == Some("webapp".as_ref()) {
        return lrpns::webapp::run();
    }
    match args.next() {
        Some(role) if role == "init" && lrpns::stage::was_started_by_us() => {
            return lrpns::stage::run();
        }
        Some(role) if role == "probe" && lrpns::audit::agent::was_started_by_us() => {
            return lrpns::audit::agent::prober();
        }
        Some(role) if role == lrpns::check::ROLE => {
            return lrpns::check::run(args);
        }
        Some(role)
            if role == lrpns::audit::target::SCRATCH
                && lrpns::commands::scratch::was_started_by_us() =>
        {
            return lrpns::commands::scratch::run(args);
        }
        _ => {}
    }
    clap_complete::CompleteEnv::with_factory(lrpns::commands::complete::command)
        .var(lrpns::commands::complete::VARIABLE)
        .complete();
    let args = lrpns::cli::rewritten(std::env::args_os().collect());
    let matches = match lrpns::cli::read(args) {
        Ok(matches) => matches,
        Err(e) => match lrpns::cli::answer(&e) {
            Some(answer) => return lrpns::commands::failure::Failure::usage(answer).print(),
            None => e.exit(),
        },
    };
    // They were made by these very types.
    let cli = lrpns::cli::Cli::from_arg_matches(&matches).unwrap_or_else(|e| e.exit());
    // What can't be hidden stays where whoever typed it has put it.
    let _ = lrpns::cli::hide::values();
    if cli.trust_file {
        lrpns::config::trust_everybody();
    }
    match lrpns::commands::run(cli.command) {
        Ok(code) => code,
        Err(failure) => failure.print(),
    }
}

//! The command `lrpns`, and the built-in app under the name of `webapp`.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let name = std::env::args_os().next();
    if name.is_some_and(|n| Path::new(&n).file_name().is_some_and(|f| f == "webapp")) {
        return lrpns::webapp::run();
    }
    ExitCode::SUCCESS
}

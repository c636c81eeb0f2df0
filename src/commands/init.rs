//! `lrpns init`.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use super::print;
use crate::commands::failure::Failure;
use crate::config;

/// Writes the commented example; never over something.
pub fn init(output: &Path) -> Result<ExitCode, Failure> {
    if output == Path::new("-") {
        print(config::EXAMPLE)?;
        return Ok(ExitCode::SUCCESS);
    }
    let unable = |e: std::io::Error| Failure::unable(format!("write {}: {e}", output.display()));
    let mut file = std::fs::File::create_new(output).map_err(|e| match e.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Failure::failed(format!("{} exists already", output.display()))
                .hint("another name: lrpns init -o FILE")
        }
        _ => unable(e),
    })?;
    file.write_all(config::EXAMPLE.as_bytes()).map_err(unable)?;
    eprintln!("wrote {}; now: lrpns up -f {0}", output.display());
    Ok(ExitCode::SUCCESS)
}

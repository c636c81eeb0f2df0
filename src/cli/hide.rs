//! Values of variables on the command line, out of sight of other users of the host.
//!
//! Every user can read `/proc/PID/cmdline`, and a supervisor stays for months. So the values of `--set` and `--env` are
//! overwritten where the kernel reads them, as soon as they have been parsed. Until then, and in a shell's history, they
//! are there to be read: a secret belongs into a file (`--env-file`) or the environment.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// What takes `NAME=VALUE`.
const FLAGS: [&[u8]; 2] = [b"--set", b"--env"];
/// The same in short, with or without the value in one argument.
const SHORT: &[u8] = b"-e";

/// Overwrites the values in this process's command line by asterisks.
///
/// # Errors
/// What reading or writing `/proc/self` says.
pub fn values() -> io::Result<()> {
    let place = arguments(&std::fs::read_to_string("/proc/self/stat")?)
        .ok_or_else(|| io::Error::other("/proc/self/stat says nothing of the arguments"))?;
    let memory = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/proc/self/mem")?;
    let text = read(&memory, &place)?;
    for range in values_in(&text) {
        let at = place.start + range.start as u64;
        memory.write_all_at(&vec![b'*'; range.len()], at)?;
    }
    Ok(())
}

fn read(memory: &File, place: &Range<u64>) -> io::Result<Vec<u8>> {
    let length = usize::try_from(place.end - place.start).map_err(io::Error::other)?;
    let mut text = vec![0; length];
    memory.read_exact_at(&mut text, place.start)?;
    Ok(text)
}

/// Where the arguments are (proc_pid_stat(5), fields 48 and 49). The second field may have blanks and parentheses in it.
fn arguments(stat: &str) -> Option<Range<u64>> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(45).map(str::parse);
    let place = fields.next()?.ok()?..fields.next()?.ok()?;
    (place.start < place.end).then_some(place)
}

/// The values in a command line as `/proc/PID/cmdline` has it; what is behind `--` is another program's.
fn values_in(arguments: &[u8]) -> Vec<Range<usize>> {
    let mut found = vec![];
    let (mut at, mut is_value) = (0, false);
    for argument in arguments.split(|byte| *byte == 0) {
        let pair = if is_value {
            Some(0)
        } else if argument == b"--" {
            break;
        } else {
            let long = FLAGS.iter().find_map(|flag| {
                let behind = argument.strip_prefix(*flag)?;
                behind.starts_with(b"=").then_some(flag.len() + 1)
            });
            let short = argument.starts_with(SHORT) && argument.len() > SHORT.len();
            long.or(short.then_some(SHORT.len()))
        };
        if let Some(pair) = pair {
            let equals = argument[pair..].iter().position(|byte| *byte == b'=');
            let value = equals.map_or(argument.len(), |equals| pair + equals + 1);
            found.push(at + value..at + argument.len());
        }
        is_value = !is_value && (FLAGS.contains(&argument) || argument == SHORT);
        at += argument.len() + 1;
    }
    found.retain(|range| !range.is_empty());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_however_they_are_given_and_nothing_else_is() {
        for (line, hidden) in [
            ("lrpns up -d", &[][..]),
            ("lrpns up --set A=b -d --set C=d=e", &["b", "d=e"]),
            ("lrpns up --set=A=b", &["b"]),
            (
                "lrpns run -e A=b -eC=d --env E=f --env=G=h -- sh -e x --set y=z",
                &["b", "d", "f", "h"],
            ),
            ("lrpns up --set --set=x", &["x"]),
            ("lrpns up --env-file A=b", &[]),
            ("lrpns up --set A= --set B", &[]),
            ("lrpns up --set", &[]),
        ] {
            let bytes: Vec<u8> = line
                .bytes()
                .map(|b| if b == b' ' { 0 } else { b })
                .chain([0])
                .collect();
            let found: Vec<String> = values_in(&bytes)
                .into_iter()
                .map(|range| String::from_utf8(bytes[range].to_vec()).unwrap())
                .collect();
            assert_eq!(found, hidden, "{line}");
        }
    }

    #[test]
    fn the_place_of_the_arguments_is_read_whatever_the_program_is_called() {
        let fields: Vec<String> = (3..=52).map(|n| n.to_string()).collect();
        let stat = format!("7 (a) b ( c) {}", fields.join(" "));
        assert_eq!(arguments(&stat), Some(48..49));
        assert_eq!(arguments("7 (x) R 1"), None);
        assert!(arguments(&std::fs::read_to_string("/proc/self/stat").unwrap()).is_some());
    }
}

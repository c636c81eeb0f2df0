//! Which of a server's options may say where it listens: by what its own program prints as its usage, which is in the file.
//! Nothing is run for that.
#![forbid(unsafe_code)]

use std::io::Read;
use std::path::{Path, PathBuf};

use super::installed::PLACES;

/// No more of a program is looked at, in bytes.
const LARGEST: u64 = 64 << 20;
/// No longer lines, and no more of them.
const LONGEST: usize = 160;
const MOST: usize = 3;

/// What takes an address, and what it is for.
const ADDRESS: &[&str] = &["addr", "interface", "host", "<ip", " ip", "=ip"];
const LISTENS: &[&str] = &["listen", "bind"];
/// What is of something else, by such a line.
const OTHER: &[&str] = &[
    "backlog",
    "unix",
    "connect",
    "client",
    "allow",
    "deny",
    "outgoing",
    "upstream",
    "remote",
    "unsupported",
    "invalid",
    "cannot",
];

/// Where a program of the host's is.
pub(super) fn program(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(PathBuf::from(name));
    }
    let places = PLACES.into_iter().chain(["/usr/local/bin"]);
    let mut all = places.map(|place| Path::new(place).join(name));
    all.find(|path| path.is_file())
}

/// The lines of its usage, or the names, of options by which this program may be told its address.
pub(super) fn of_the_address(program: &Path) -> Vec<String> {
    let mut content = vec![];
    let read =
        std::fs::File::open(program).and_then(|file| file.take(LARGEST).read_to_end(&mut content));
    if read.is_err() {
        return vec![];
    }
    let own = in_text(&content);
    match own.is_empty() {
        true => of_its_modules(&content, Path::new(MODULES)),
        false => own,
    }
}

/// Where Debian's packages have their modules of Python.
const MODULES: &str = "/usr/lib/python3/dist-packages";

/// The same of the modules that a script of Python names, which is mostly no more than that.
fn of_its_modules(script: &[u8], modules: &Path) -> Vec<String> {
    const FILES: usize = 200;
    let text = String::from_utf8_lossy(script);
    if !text.starts_with("#!")
        || !text
            .lines()
            .next()
            .is_some_and(|line| line.contains("python"))
    {
        return vec![];
    }
    let names = text.lines().filter_map(|line| {
        let rest = line.trim_start();
        let rest = rest
            .strip_prefix("from ")
            .or_else(|| rest.strip_prefix("import "))?;
        let ends = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
        rest.split(ends).next().filter(|name| !name.is_empty())
    });
    for name in names {
        let entries = std::fs::read_dir(modules.join(name)).into_iter().flatten();
        let files = entries.flatten().map(|entry| entry.path());
        let mut files: Vec<PathBuf> = files
            .filter(|path| path.extension().is_some_and(|kind| kind == "py"))
            .take(FILES)
            .collect();
        files.sort();
        let texts = files.iter().filter_map(|path| std::fs::read(path).ok());
        let found = texts.map(|text| in_text(&text)).find(|all| !all.is_empty());
        if let Some(found) = found {
            return found;
        }
    }
    vec![]
}

fn in_text(content: &[u8]) -> Vec<String> {
    let is_text = |byte: &u8| *byte == b'\t' || (b' '..=b'~').contains(byte);
    let has = |line: &str, words: &[&str]| words.iter().any(|word| line.contains(word));
    // Whole lines of a usage, then names alone, as a script or getopt_long(3) has them.
    let (mut whole, mut names) = (vec![], vec![]);
    let keep = |all: &mut Vec<String>, one: String| {
        if all.len() < MOST && !all.contains(&one) {
            all.push(one);
        }
    };
    for run in content.split(|byte| !is_text(byte)) {
        if run.len() < 4 || run.len() > LONGEST {
            continue;
        }
        let line = String::from_utf8_lossy(run);
        let line = line.trim();
        let lower = line.to_lowercase();
        if !has(&lower, LISTENS) && !lower.contains("--host") || has(&lower, OTHER) {
            continue;
        }
        let is_option = line.strip_prefix('-').is_some_and(|rest| {
            let rest = rest.strip_prefix('-').unwrap_or(rest);
            rest.starts_with(|c: char| c.is_ascii_alphanumeric())
        });
        if is_option && line.contains(' ') && has(&lower, ADDRESS) {
            let words: Vec<&str> = line.split_whitespace().collect();
            keep(&mut whole, words.join(" "));
            continue;
        }
        let ends = |c: char| !(c.is_ascii_lowercase() || c == '-');
        for word in line.split(ends) {
            let bare = word.trim_start_matches('-');
            let whole_run = bare == line && bare.contains('-');
            let named = word.starts_with("--") || whole_run;
            let says = ["host", "bind", "listen"].contains(&bare)
                || has(bare, LISTENS) && has(bare, &["addr", "host", "interface", "-ip"]);
            if named && says {
                keep(&mut names, format!("--{bare}"));
            }
        }
    }
    match whole.is_empty() {
        true => names,
        false => whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_for_the_address_is_found_as_programs_have_it() {
        for (content, found) in [
            (
                &b"\x7fELF\0-p, --port=<num>  TCP port to listen on (default: %d)\n-l, --listen=<addr>       interface to listen on\n\0listen\0"[..],
                &["-l, --listen=<addr> interface to listen on"][..],
            ),
            (
                b"\0-b, --listen-backlog=<num> of the address\0address\0listen-address\0bind\0",
                &["--listen-address"],
            ),
            (
                b"#!/usr/bin/python3\np.add_argument('-H', '--host', default='localhost')\n",
                &["--host"],
            ),
            (b"# listens on localhost\nbind(address)\nlisten\n", &[]),
        ] {
            assert_eq!(in_text(content), found);
        }
    }

    #[test]
    fn a_short_script_of_python_has_its_options_in_its_modules() {
        let modules = tempfile::tempdir().unwrap();
        std::fs::create_dir(modules.path().join("dav")).unwrap();
        let web = modules.path().join("dav/web.py");
        std::fs::write(web, "add_argument(\"--listen-address\")").unwrap();
        for (script, found) in [
            (
                "#!/usr/bin/python3\nimport sys\nfrom dav.web import main\n",
                &["--listen-address"][..],
            ),
            ("#!/usr/bin/perl\nfrom dav.web import main\n", &[]),
            ("#!/usr/bin/python3\nfrom ../dav import main\n", &[]),
        ] {
            assert_eq!(of_its_modules(script.as_bytes(), modules.path()), found);
        }
    }
}

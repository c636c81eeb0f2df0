//! `lrpns healthcheck`: what a health check by HTTP or TCP runs in an app, as the app's command was started.
//!
//! The supervisor reads no byte of a server's answer, which the app may have made to harm who reads it: this process does,
//! with what the app itself holds. It says in a line how it went, and by its exit status whether that is well.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The first argument of a process that does this.
pub const ROLE: &str = "healthcheck";

/// How much of an answer is read.
const MOST: usize = 4096;

/// Arguments: `tcp ADDRESS MILLISECONDS`, or `http ADDRESS MILLISECONDS HOST PATH`.
#[must_use]
pub fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args: Vec<String> = args.filter_map(|arg| arg.into_string().ok()).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (healthy, said) = match args.as_slice() {
        ["tcp", address, time] => tcp(address, time),
        ["http", address, time, host, path] => http(address, time, host, path),
        _ => (false, "the supervisor starts this".to_owned()),
    };
    // Whoever reads this may be gone.
    let _ = writeln!(io::stdout(), "{said}");
    ExitCode::from(u8::from(!healthy))
}

/// A connection, and until when it has to be done.
fn connect(address: &str, time: &str) -> Result<(TcpStream, Instant), String> {
    let to: SocketAddr = address.parse().map_err(|_| "no address".to_owned())?;
    let time = time.parse().map_err(|_| "no time".to_owned())?;
    let time = Duration::from_millis(time);
    let until = Instant::now() + time;
    let stream = TcpStream::connect_timeout(&to, time);
    let stream = stream.map_err(|e| format!("connect to {to}: {e}"))?;
    Ok((stream, until))
}

fn tcp(address: &str, time: &str) -> (bool, String) {
    match connect(address, time) {
        Ok(_) => (true, format!("connected to {address}")),
        Err(why) => (false, why),
    }
}

fn http(address: &str, time: &str, host: &str, path: &str) -> (bool, String) {
    let asked = connect(address, time).and_then(|(mut stream, until)| {
        ask(&mut stream, until, host, path).map_err(|e| format!("GET http://{address}{path}: {e}"))
    });
    match asked.as_deref().map(judge) {
        Ok(judged) => judged,
        Err(why) => (false, why.clone()),
    }
}

/// The beginning of what a server answers to a request.
fn ask(stream: &mut TcpStream, until: Instant, host: &str, path: &str) -> io::Result<Vec<u8>> {
    let left = || {
        let left = until.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(io::Error::from(io::ErrorKind::TimedOut)),
            false => Ok(left),
        }
    };
    stream.set_write_timeout(Some(left()?))?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: lrpns\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = vec![];
    let mut chunk = [0; MOST];
    while answer.len() < MOST {
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(got) => answer.extend_from_slice(&chunk[..got]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // What has come may be enough.
            Err(_) if status_line(&answer).is_some() => break,
            Err(e) => return Err(e),
        }
    }
    Ok(answer)
}

fn status_line(answer: &[u8]) -> Option<&str> {
    let line = answer.split(|byte| *byte == b'\n').next()?;
    if line.len() == answer.len() {
        return None;
    }
    std::str::from_utf8(line).ok().map(str::trim_end)
}

/// Whether an answer is well: its status is from 200 to 399; and what to tell of it.
fn judge(answer: &[u8]) -> (bool, String) {
    let Some(line) = status_line(answer) else {
        return (false, "the answer is not HTTP".to_owned());
    };
    let mut words = line.splitn(2, ' ');
    let (version, rest) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    let status = rest.get(..3).and_then(|digits| digits.parse::<u16>().ok());
    match status {
        Some(status) if version.starts_with("HTTP/1.") => {
            ((200..400).contains(&status), format!("HTTP {rest}"))
        }
        _ => (false, "the answer is not HTTP".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_judged_by_its_status() {
        let cases: [(&str, bool, &str); 9] = [
            ("HTTP/1.1 200 OK\r\nx: y\r\n\r\n", true, "HTTP 200 OK"),
            ("HTTP/1.0 204\r\n", true, "HTTP 204"),
            ("HTTP/1.1 301 Moved\r\n", true, "HTTP 301 Moved"),
            ("HTTP/1.1 404 Not Found\r\n", false, "HTTP 404 Not Found"),
            ("HTTP/1.1 503 no database\n", false, "HTTP 503 no database"),
            ("HTTP/1.1 200 OK", false, "the answer is not HTTP"),
            ("SSH-2.0-OpenSSH\r\n", false, "the answer is not HTTP"),
            ("HTTP/1.1 2\u{e9}\r\n", false, "the answer is not HTTP"),
            ("", false, "the answer is not HTTP"),
        ];
        for (answer, healthy, said) in cases {
            assert_eq!(
                judge(answer.as_bytes()),
                (healthy, said.to_owned()),
                "{answer:?}"
            );
        }
    }
}

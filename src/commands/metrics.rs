//! `lrpns metrics`: what `stats` and `rules --counters` show, in Prometheus' text format (version 0.0.4), printed or served
//! on a socket.
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::fmt::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use super::rules::{self, CountedTable};
use super::stats::Stats;
use super::{print, status_now};
use crate::commands::failure::Failure;
use crate::control::Status;
use crate::host::Host;
use crate::names::StackName;
use crate::protocol::Health;

/// How long who scrapes may take to ask, and to take the answer.
const WITHIN: Duration = Duration::from_secs(10);
/// How many may do so at once: who is slow keeps nobody waiting, and takes no more descriptors than these.
const CLIENTS: usize = 64;
/// How soon it is tried again where there was no descriptor left for one.
const ACCEPTS_AGAIN: Duration = Duration::from_millis(100);

/// Prints them, or serves them; of every stack if none is named.
pub(super) fn metrics(
    stack: Option<StackName>,
    listen: Option<&Path>,
) -> Result<ExitCode, Failure> {
    match listen {
        Some(path) => serve(path, stack.as_ref())?,
        None => {
            let text = match &stack {
                Some(stack) => text(&[(stack.clone(), Some(look(stack)?))]),
                None => of_all()?,
            };
            print(&text)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What is known of a stack.
struct Seen {
    status: Box<Status>,
    stats: Stats,
    tables: Vec<CountedTable>,
}

fn look(stack: &StackName) -> Result<Seen, Failure> {
    let status = status_now(stack)?;
    Ok(Seen {
        stats: Stats::of(&status),
        // Of one that starts there is nothing to count yet.
        tables: match status.starting {
            true => vec![],
            false => rules::count(stack)?,
        },
        status,
    })
}

fn of_all() -> Result<String, Failure> {
    let stacks = Host::state_root().stacks()?.into_iter();
    let all: Vec<_> = stacks
        .map(|stack| {
            let seen = look(&stack).ok();
            (stack, seen)
        })
        .collect();
    Ok(text(&all))
}

/// One value with its labels.
type Sample = (Vec<(&'static str, String)>, f64);

/// A metric: all of its samples come together.
struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    samples: Vec<Sample>,
}

/// All metrics, in the order in which they are written.
#[derive(Default)]
struct Exposition(Vec<Family>);

impl Exposition {
    fn add(
        &mut self,
        (name, kind, help): (&'static str, &'static str, &'static str),
        labels: &[(&'static str, &str)],
        value: f64,
    ) {
        let labels = labels
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()));
        let sample = (labels.collect(), value);
        match self.0.iter_mut().find(|family| family.name == name) {
            Some(family) => family.samples.push(sample),
            None => self.0.push(Family {
                name,
                kind,
                help,
                samples: vec![sample],
            }),
        }
    }

    fn write(&self) -> String {
        let mut out = String::new();
        for Family {
            name,
            kind,
            help,
            samples,
        } in &self.0
        {
            // Writing to a String can't fail.
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in samples {
                let labels: Vec<String> = labels
                    .iter()
                    .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
                    .collect();
                let _ = writeln!(out, "{name}{{{}}} {value}", labels.join(","));
            }
        }
        out
    }
}

fn escaped(value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"");
    value.replace('\n', "\\n")
}

type Kind = (&'static str, &'static str, &'static str);

const UP: Kind = (
    "lrpns_up",
    "gauge",
    "Whether the stack is up: 0 if it starts, or does not answer.",
);
const SINCE: Kind = (
    "lrpns_start_time_seconds",
    "gauge",
    "When the stack was up, in seconds since 1970.",
);
const RUNNING: Kind = ("lrpns_part_running", "gauge", "Whether the part runs.");
const HEALTHY: Kind = (
    "lrpns_part_healthy",
    "gauge",
    "Whether the app's health checks pass, of apps that have any.",
);
const RESTARTS: Kind = (
    "lrpns_part_restarts_total",
    "counter",
    "How often the part was started again.",
);
const CPU: Kind = (
    "lrpns_part_cpu_seconds_total",
    "counter",
    "Processor time that the part has used.",
);
const MEMORY: Kind = (
    "lrpns_part_memory_bytes",
    "gauge",
    "Memory that the part uses.",
);
const LIMIT: Kind = (
    "lrpns_part_memory_limit_bytes",
    "gauge",
    "Memory that the part may use.",
);
const PROCESSES: Kind = ("lrpns_part_processes", "gauge", "Processes of the part.");
const RECEIVED: Kind = (
    "lrpns_part_receive_bytes_total",
    "counter",
    "Bytes that the part has received by its link to the stack.",
);
const SENT: Kind = (
    "lrpns_part_transmit_bytes_total",
    "counter",
    "Bytes that the part has sent by its link to the stack.",
);
const OPEN: Kind = (
    "lrpns_connections",
    "gauge",
    "Connections to the app that are open.",
);
const ACCEPTED: Kind = (
    "lrpns_connections_accepted_total",
    "counter",
    "Connections to the app that were let through.",
);
const REFUSED: Kind = (
    "lrpns_refused_packets_total",
    "counter",
    "Packets that the sidecar has refused.",
);
const PACKETS: Kind = (
    "lrpns_rule_packets_total",
    "counter",
    "Packets that the rule has met; for the relay's own, connections.",
);
const BYTES: Kind = (
    "lrpns_rule_bytes_total",
    "counter",
    "Bytes that the rule has met.",
);

/// As Prometheus reads it.
fn text(all: &[(StackName, Option<Seen>)]) -> String {
    let mut out = Exposition::default();
    for (stack, seen) in all {
        let stack = ("stack", stack.as_str());
        let up = seen.as_ref().is_some_and(|seen| !seen.status.starting);
        out.add(UP, &[stack], f64::from(u8::from(up)));
        let Some(Seen {
            status,
            stats,
            tables,
        }) = seen
        else {
            continue;
        };
        out.add(SINCE, &[stack], status.since.as_millisecond() as f64 / 1e3);
        for (part, of) in status.parts.iter().zip(&stats.parts) {
            let labels = [stack, ("part", part.name.as_str())];
            let runs = part.state == crate::control::PartState::Running;
            out.add(RUNNING, &labels, f64::from(u8::from(runs)));
            if let Some(health) = &part.health {
                let healthy = health.state == Health::Healthy;
                out.add(HEALTHY, &labels, f64::from(u8::from(healthy)));
            }
            out.add(RESTARTS, &labels, f64::from(part.restarts));
            let usage = &of.usage;
            out.add(PROCESSES, &labels, usage.processes as f64);
            let known = [
                (CPU, usage.cpu_seconds),
                (MEMORY, usage.memory.map(|bytes| bytes as f64)),
                (LIMIT, of.memory_limit.map(|bytes| bytes as f64)),
                (RECEIVED, usage.received.map(|bytes| bytes as f64)),
                (SENT, usage.sent.map(|bytes| bytes as f64)),
                (OPEN, of.connections.map(|open| open as f64)),
                (ACCEPTED, of.accepted.map(|accepted| accepted as f64)),
            ];
            for (kind, value) in known {
                if let Some(value) = value {
                    out.add(kind, &labels, value);
                }
            }
        }
        if let Some(traffic) = &status.traffic {
            out.add(REFUSED, &[stack], traffic.refused as f64);
        }
        for table in tables {
            for rule in &table.rules {
                let labels = [
                    stack,
                    ("namespace", table.namespace),
                    ("table", table.table.as_str()),
                    ("chain", rule.chain.as_str()),
                    ("rule", rule.name.as_str()),
                ];
                out.add(PACKETS, &labels, rule.packets as f64);
                out.add(BYTES, &labels, rule.bytes as f64);
            }
        }
    }
    out.write()
}

/// Serves them until SIGINT or SIGTERM.
fn serve(path: &Path, stack: Option<&StackName>) -> Result<(), Failure> {
    let at = |what: &str, e: &dyn std::fmt::Display| {
        Failure::unable(format!("{what} unix:{}: {e}", path.display()))
    };
    // What an earlier one has left, and nothing else.
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    if is_socket {
        match UnixStream::connect(path) {
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(|e| at("replace", &e))?;
            }
            _ => {
                return Err(at("listen on", &"somebody listens there")
                    .hint("another `lrpns metrics` serves already, or name another path"));
            }
        }
    }
    let runtime = crate::sys::runtime::of_this_thread().map_err(|e| at("serve", &e))?;
    let own = runtime.block_on(async {
        let catch = |kind| signal(kind).map_err(|e| at("serve", &e));
        let mut interrupt = catch(SignalKind::interrupt())?;
        let mut terminate = catch(SignalKind::terminate())?;
        let listener = UnixListener::bind(path).map_err(|e| at("listen on", &e))?;
        let own = identity(path);
        let mut clients = JoinSet::new();
        loop {
            tokio::select! {
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
                Some(_) = clients.join_next() => {}
                accepted = listener.accept(), if clients.len() < CLIENTS => match accepted {
                    // A look costs a process that joins a namespace; it blocks this thread, so there is one at a time.
                    Ok((client, _)) => {
                        clients.spawn(answer(client, stack.cloned()));
                    }
                    // It passes when a descriptor is free again: one of ours, or, without any, somebody else's.
                    Err(_) => {
                        if clients.join_next().await.is_none() {
                            tokio::time::sleep(ACCEPTS_AGAIN).await;
                        }
                    }
                },
            }
        }
        Ok::<_, Failure>(own)
    })?;
    // What has its name by now may be another's.
    match own.is_some() && own == identity(path) {
        true => std::fs::remove_file(path).map_err(|e| at("remove", &e)),
        false => Ok(()),
    }
}

/// Which file a path names itself.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let seen = std::fs::symlink_metadata(path).ok()?;
    Some((seen.dev(), seen.ino()))
}

/// Answers one client: `GET /metrics`.
async fn answer(client: tokio::net::UnixStream, stack: Option<StackName>) {
    let service = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
        let (code, body) = match (request.method(), request.uri().path()) {
            (&Method::GET, "/metrics" | "/") => match now(stack.as_ref()) {
                Ok(text) => (StatusCode::OK, text),
                Err(failure) => (
                    StatusCode::SERVICE_UNAVAILABLE,
                    format!("{}\n", failure.message),
                ),
            },
            _ => (StatusCode::NOT_FOUND, "GET /metrics\n".to_owned()),
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = code;
        let kind =
            hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .serve_connection(TokioIo::new(client), service);
    // Who goes away, or takes no answer, goes without.
    let _ = tokio::time::timeout(WITHIN, connection).await;
}

fn now(stack: Option<&StackName>) -> Result<String, Failure> {
    match stack {
        Some(stack) => Ok(text(&[(stack.clone(), look(stack).ok())])),
        None => of_all(),
    }
}

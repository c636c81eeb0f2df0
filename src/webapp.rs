//! The built-in example app: what `training/webapp` of the original set-up answers, without its image.
//!
//! It is the program of the root file system `builtin:webapp`, which is empty otherwise: it needs no file, no /proc, no
//! thread and no capability. From the environment it takes
//!
//! - `PROVIDER`, the name it greets (default `world`), and
//! - `PORT`, the TCP port it listens on (default 5000): at `[::]`, which takes IPv4 too, where there is IPv6, else at
//!   0.0.0.0.
//!
//! `GET /` and `HEAD /` are answered by `Hello PROVIDER!` as text/plain, any other path by 404, any other method by 405.
//! Each request is one line on standard output: method, path, status. SIGTERM and SIGINT end it at once.
//!
//! It stays small whoever talks to it: at most [`MAX_CONNECTIONS`], each with a head of at most [`MAX_HEAD`] bytes that has
//! to arrive within [`HEAD_TIMEOUT`], and no body is ever read.
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::env::{self, VarError};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;

/// Connections at once; the others wait in the kernel's backlog.
pub const MAX_CONNECTIONS: usize = 512;

/// The longest request head, in bytes.
const MAX_HEAD: usize = 8192;

/// How long a request's head may take, the wait for it on a kept connection included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may leave an answer unacknowledged or its window closed (`TCP_USER_TIMEOUT`, tcp(7)).
const ANSWER_TIMEOUT_MS: u32 = 30_000;

/// How long accepting rests when it fails: there is no event that says that descriptors or memory are back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the app can't run.
#[derive(Debug, thiserror::Error)]
enum WebappError {
    #[error("`{value}` in PORT is no TCP port, such as 5000")]
    Port { value: String },
    #[error("the variable {name} is not UTF-8")]
    Text { name: &'static str },
    #[error("start the event loop")]
    Runtime {
        #[source]
        source: io::Error,
    },
    #[error("listen on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("catch SIGTERM and SIGINT")]
    Signals {
        #[source]
        source: io::Error,
    },
}

/// Serves until SIGTERM or SIGINT, then returns success. Exit code 2 means that a variable makes no sense, 1 that the
/// port can't be listened on; standard error says more.
#[must_use]
pub fn run() -> ExitCode {
    let Err(error) = serve() else {
        return ExitCode::SUCCESS;
    };
    let mut line = format!("webapp: {error}");
    if let Some(cause) = std::error::Error::source(&error) {
        line += &format!(": {cause}");
    }
    say(io::stderr(), &line);
    match error {
        WebappError::Port { .. } | WebappError::Text { .. } => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    }
}

/// Whether this network namespace has IPv6: only then has loopback the address.
fn has_ipv6() -> bool {
    std::net::UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

fn serve() -> Result<(), WebappError> {
    let greeting = Bytes::from(format!("Hello {}!", variable("PROVIDER", "world")?));
    let port = variable("PORT", "5000")?;
    let port = match port.parse() {
        Ok(port) if port != 0 => port,
        _ => return Err(WebappError::Port { value: port }),
    };
    let any = if has_ipv6() {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        IpAddr::from(Ipv4Addr::UNSPECIFIED)
    };
    let address = SocketAddr::new(any, port);
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| WebappError::Runtime { source })?
        .block_on(async {
            // before anything can connect: PID 1 of a namespace without handlers would ignore both (pid_namespaces(7))
            let catch = |kind| signal(kind).map_err(|source| WebappError::Signals { source });
            let mut terminate = catch(SignalKind::terminate())?;
            let mut interrupt = catch(SignalKind::interrupt())?;
            let listener =
                listen(address).map_err(|source| WebappError::Listen { address, source })?;
            say(io::stdout(), &format!("listening on {address}"));
            tokio::select! {
                _ = terminate.recv() => Ok(()),
                _ = interrupt.recv() => Ok(()),
                never = accept_all(listener, greeting) => match never {},
            }
        })
}

fn variable(name: &'static str, default: &str) -> Result<String, WebappError> {
    match env::var(name) {
        Ok(value) => Ok(value),
        Err(VarError::NotPresent) => Ok(default.to_owned()),
        Err(VarError::NotUnicode(_)) => Err(WebappError::Text { name }),
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // a restart must not wait for the last run's connections to leave TIME-WAIT
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(1024)
}

async fn accept_all(listener: TcpListener, greeting: Bytes) -> Infallible {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let place = Arc::clone(&places)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            // the client's own affair
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(_) => {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let greeting = greeting.clone();
        tokio::spawn(async move {
            answer_all(client, greeting).await;
            drop(place);
        });
    }
}

async fn answer_all(client: TcpStream, greeting: Bytes) {
    // an answer is one write, so there is nothing for Nagle's algorithm to gather
    let _ = client.set_nodelay(true);
    let _ = sockopt::set_tcp_user_timeout(&client, ANSWER_TIMEOUT_MS);
    let service = service_fn(|request| {
        let response = answer(&request, &greeting);
        async move { Ok::<_, Infallible>(response) }
    });
    // an error is the client's: a head that is none, too long or too late, or a connection that broke
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(client), service)
        .await;
}

fn answer(request: &Request<Incoming>, greeting: &Bytes) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let method = request.method();
    let (status, text) = match (path, method) {
        // hyper sends the length and leaves the body out for HEAD
        ("/", &Method::GET | &Method::HEAD) => (StatusCode::OK, greeting.clone()),
        ("/", _) => (
            StatusCode::METHOD_NOT_ALLOWED,
            Bytes::from_static(b"method not allowed\n"),
        ),
        _ => (StatusCode::NOT_FOUND, Bytes::from_static(b"not found\n")),
    };
    say(
        io::stdout(),
        &format!("{method} {path} {}", status.as_u16()),
    );
    let mut response = Response::new(Full::new(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

/// Writes a line, in one piece. Nobody may be there to read it: that must not end the app.
fn say(mut to: impl Write, line: &str) {
    let _ = to.write_all(format!("{line}\n").as_bytes());
}

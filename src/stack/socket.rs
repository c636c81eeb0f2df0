//! The listening sockets that an app is handed (`via = "socket"`): in the sidecar's network namespace, where its rules judge
//! who comes to them, and held here, so that they outlive the app.
//!
//! # Theory of operation
//!
//! They are made before any link is up, at the app's address, which is one of the sidecar's own then, on the uplink. Who
//! connects while the app starts again waits in the backlog, and the next one accepts.
//!
//! A socket is one thing, whoever has a descriptor of it. An app that has been taken over can end its socket (shutdown(2),
//! connect(2) with `AF_UNSPEC`); no other gets one from it: each time that the app starts, a socket that doesn't listen any more is
//! replaced by a new one. What else it is set to is the app's own affair; the options by which it would stay bound to a link
//! its filter refuses ([`crate::confine::seccomp::Profile::without_links`]).
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrAny, SocketFlags, SocketType, sockopt};
use tokio::net::TcpStream;

use super::error::StackError;
use super::ground::Ground;
use super::listening::{ASK_EVERY, patience};
use super::{Wait, order};
use crate::part::container::Container;
use crate::part::namespaces::Namespaces;
use crate::plan::{AppPlan, PublishPlan};

/// How many connections may wait to be accepted (listen(2)); the kernel makes it `net.core.somaxconn` if that is less.
const WAITING: i32 = 4096;

/// An app's.
#[derive(Default)]
pub(super) struct Handed(Mutex<Vec<(SocketAddr, Arc<OwnedFd>)>>);

impl Handed {
    /// All of the plan's, in its order, each of which listens in the sidecar's network namespace: those that don't, or are not
    /// there yet, are made.
    pub(super) async fn sound(
        &self,
        app: &AppPlan,
        sidecar: &Namespaces,
    ) -> Result<Vec<Arc<OwnedFd>>, StackError> {
        let wanted = app.handed();
        let missing: Vec<SocketAddr> = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // One that listens no more still has its port.
            all.retain(|(at, socket)| {
                wanted.contains(at) && sockopt::socket_acceptconn(socket).unwrap_or(false)
            });
            let is_there = |at: &&SocketAddr| all.iter().any(|(its, _)| its == *at);
            wanted.iter().filter(|at| !is_there(at)).copied().collect()
        };
        if !missing.is_empty() {
            let open = || missing.iter().map(|at| listening(*at)).collect();
            let made = sidecar.open_inside(open).await;
            let made = made.map_err(|source| StackError::Handed {
                app: app.name.to_string(),
                at: missing[0],
                source,
            })?;
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let made = made.into_iter().map(Arc::new);
            all.extend(missing.iter().copied().zip(made));
        }
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |at: &SocketAddr| all.iter().find(|(its, _)| its == at);
        let sockets: Vec<_> = wanted.iter().filter_map(of).collect();
        debug_assert_eq!(sockets.len(), wanted.len());
        Ok(sockets
            .into_iter()
            .map(|(_, socket)| Arc::clone(socket))
            .collect())
    }
}

/// A socket that listens at an address which its network namespace may not have yet.
fn listening(at: SocketAddr) -> io::Result<OwnedFd> {
    let family = SocketAddrAny::from(at).address_family();
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // What an earlier one has accepted may linger.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if family == AddressFamily::INET6 {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    freebind(&socket, family, true)?;
    rustix::net::bind(&socket, &at)?;
    freebind(&socket, family, false)?;
    rustix::net::listen(&socket, WAITING)?;
    Ok(socket)
}

fn freebind(socket: &OwnedFd, family: AddressFamily, may: bool) -> io::Result<()> {
    match family {
        AddressFamily::INET6 => sockopt::set_ipv6_freebind(socket, may)?,
        _ => sockopt::set_ip_freebind(socket, may)?,
    }
    Ok(())
}

impl Ground {
    /// Waits until an app that was handed its sockets has accepted a connection at each port that is waited for, which comes
    /// to it as its clients' do. That they listen says nothing: they do from the beginning.
    pub(super) async fn wait_until_accepting(
        &self,
        index: usize,
        container: &mut Container,
        mut waits: impl FnMut(&str),
    ) -> Result<(), StackError> {
        let app = &self.plan.apps[index];
        let begun = tokio::time::Instant::now();
        let mut wait = Wait::begin();
        for publish in first_of_each(app) {
            let port = publish.app_port;
            let accepted = self.until_accepted(app, publish);
            tokio::pin!(accepted);
            loop {
                tokio::select! {
                    done = &mut accepted => {
                        done?;
                        break;
                    }
                    exit = order::ended(container) => {
                        return Err(StackError::EndedUnaccepting {
                            app: app.name.to_string(),
                            exit: exit?,
                            port,
                        });
                    }
                    () = tokio::time::sleep_until(begun + patience(app)) => {
                        return Err(StackError::NotAccepting {
                            app: app.name.to_string(),
                            seconds: app.start_timeout.as_secs(),
                            port,
                        });
                    }
                    () = tokio::time::sleep_until(wait.next()) => {
                        if let Some(since) = wait.due() {
                            waits(&not_yet(app, port, since));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Connects to a port, and waits until the app has accepted that.
    async fn until_accepted(&self, app: &AppPlan, publish: &PublishPlan) -> Result<(), StackError> {
        let failed = |source| StackError::Path {
            app: app.name.to_string(),
            port: publish.app_port,
            source,
        };
        let stream = self.connected(self.plan.uplink.entry(publish)).await;
        let stream = stream.map_err(failed)?;
        let peer = stream.local_addr().map_err(failed)?;
        while self.sidecar_listening.waits(app.service(publish), peer)? {
            // The kernel tells nobody that a connection was accepted; that it is over, it tells.
            let _ = tokio::time::timeout(ASK_EVERY, over(&stream)).await;
        }
        Ok(())
    }
}

/// Waits until a connection has something to read, its end perhaps.
async fn over(stream: &TcpStream) {
    if stream.readable().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Of the ports that are waited for, one for each socket.
fn first_of_each(app: &AppPlan) -> impl Iterator<Item = &PublishPlan> {
    let handed = app.handed().into_iter();
    handed.filter_map(|at| {
        let mut ports = app.publish.iter();
        ports.find(|publish| publish.waited && app.service(publish) == at)
    })
}

fn not_yet(app: &AppPlan, port: u16, since: Duration) -> String {
    let (name, seconds, most) = (&app.name, since.as_secs(), app.start_timeout.as_secs());
    format!(
        "waiting for {name} to accept a connection at its socket for port {port}, for {seconds} s of at most {most}"
    )
}

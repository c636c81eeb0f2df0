//! Whether apps listen where the sidecar can reach them, and whether the way to them works.
#![forbid(unsafe_code)]

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::net::SocketAddrAny;

use super::error::{AppPort, StackError};
use super::ground::{Ground, PartId};
use super::{Wait, order};
use crate::config::Protocol;
use crate::net::ListeningSocket;
use crate::part::container::{Container, Event};
use crate::plan::{AppPlan, Plan, PublishPlan, UplinkEnd};
use crate::protocol::Exit;
use crate::sys::process::state;

/// How often an app that has just been started is asked whether it listens.
pub(super) const ASK_EVERY: Duration = Duration::from_millis(1);
/// How long an app that listens may go on running until it waits for somebody.
const SETTLES_WITHIN: Duration = Duration::from_millis(100);

/// How many of an app's published ports are tried at a start, and the last one: see `Ground::try_the_path`.
const PORTS_TRIED: usize = 16;

/// How long an app is waited for; a debug build can be told to have less patience.
pub(super) fn patience(app: &AppPlan) -> Duration {
    let asked = cfg!(debug_assertions)
        .then(|| std::env::var("LRPNS_TEST_PATIENCE").ok()?.parse().ok())
        .flatten();
    asked.map_or(app.start_timeout, Duration::from_millis)
}

impl Ground {
    /// Where an app that runs should listen and doesn't, in words; `None` when all is well.
    ///
    /// # Errors
    /// [`StackError::Net`].
    pub fn deaf(&self, index: usize) -> Result<Option<String>, StackError> {
        let app = &self.plan.apps[index].name;
        Ok(self
            .deaf_port(index)?
            .map(|Deaf { port, found, .. }| format!("{app} does not listen on {port}; {found}")))
    }

    /// The first published port of an app that the sidecar would find nobody at, and where it listens instead, in words.
    /// The same of an app that is being started, for who waits.
    #[must_use]
    pub fn not_yet(&self, id: PartId, since: Duration) -> Option<String> {
        let PartId::App(number) = id else { return None };
        let index = self.place(number)?;
        let app = &self.plan.apps[index];
        if app.job {
            return Some(order::goes_on(app, since));
        }
        let Deaf { port, found, .. } = self.deaf_port(index).ok()??;
        Some(not_yet(app, port, &found, since))
    }

    fn deaf_port(&self, index: usize) -> Result<Option<Deaf>, StackError> {
        let wanted = self.plan.has_to_listen(&self.plan.apps[index]);
        let mut found = BTreeMap::new();
        for (protocol, _) in &wanted {
            if let Entry::Vacant(unknown) = found.entry(*protocol) {
                unknown.insert(self.apps[index].listening.of(*protocol)?);
            }
        }
        let mut open = HashMap::<(Protocol, u16), Vec<ListeningSocket>>::new();
        for (protocol, sockets) in &found {
            for socket in sockets {
                let port = (*protocol, socket.address.port());
                open.entry(port).or_default().push(*socket);
            }
        }
        let is_open = |(protocol, target): &(Protocol, SocketAddr)| {
            let sockets = open.get(&(*protocol, target.port()));
            sockets.is_some_and(|sockets| sockets.iter().any(|socket| socket.takes(*target)))
        };
        let missing = wanted.into_iter().find(|at| !is_open(at));
        Ok(missing.map(|(protocol, target)| {
            let port = target.port();
            let listening = &found[&protocol];
            Deaf {
                port: AppPort { protocol, port },
                found: describe(listening, target),
                listening: listening.iter().map(|socket| socket.address).collect(),
            }
        }))
    }

    /// Whether somebody answers at an entry port of the sidecar's, the way the relay asks.
    pub async fn answers(&self, target: SocketAddr, within: Duration) -> bool {
        let connect = tokio::time::timeout(within, self.connect(target));
        matches!(connect.await, Ok(Ok(_)))
    }

    /// Waits until the app listens on every published port that is waited for, where the sidecar can reach it.
    ///
    /// The kernel tells nobody when a socket begins to listen, so this asks: every millisecond at first, less often for
    /// an app that takes its time. The app's end is heard of at once.
    pub(super) async fn wait_until_listening(
        &self,
        index: usize,
        container: &mut Container,
        mut waits: impl FnMut(&str),
    ) -> Result<(), StackError> {
        let app = &self.plan.apps[index];
        if app.via_socket {
            return self.wait_until_accepting(index, container, waits).await;
        }
        let begun = tokio::time::Instant::now();
        let mut wait = Wait::begin();
        loop {
            let Some(deaf) = self.deaf_port(index)? else {
                return Ok(());
            };
            let missing = deaf.port;
            if let Some(since) = wait.due() {
                waits(&not_yet(app, missing, &deaf.found, since));
            }
            let waited = begun.elapsed();
            if waited >= patience(app) {
                container.tell().await;
                return Err(StackError::NotListening {
                    app: app.name.to_string(),
                    seconds: app.start_timeout.as_secs(),
                    port: missing,
                    found: deaf.found,
                    listening: deaf.listening,
                });
            }
            tokio::select! {
                event = container.next() => match event? {
                    Event::Started { .. } | Event::HandedOver => {}
                    Event::Exited(exit) => {
                        return Err(StackError::AppEnded { app: app.name.to_string(), exit, port: missing });
                    }
                    Event::Gone => {
                        return Err(StackError::AppEnded {
                            app: app.name.to_string(),
                            exit: Exit::Signal(libc::SIGKILL),
                            port: missing,
                        });
                    }
                },
                () = tokio::time::sleep((waited / 20).clamp(ASK_EVERY, 50 * ASK_EVERY)) => {}
            }
        }
    }

    /// Looks whether an app that listens is there still, before anybody is let in. Who goes to the background ends as soon as what
    /// it leaves there has the socket: so an app that runs, and doesn't wait for anything yet, is given a while until it does.
    pub(super) async fn stays(
        &self,
        index: usize,
        container: &mut Container,
    ) -> Result<(), StackError> {
        let app = &self.plan.apps[index];
        if app.job || app.via_socket || !app.publish.iter().any(|publish| publish.waited) {
            return Ok(());
        }
        let begun = tokio::time::Instant::now();
        while begun.elapsed() < SETTLES_WITHIN {
            let state = container.command().map(|pid| state(pid.cast_unsigned()));
            let wait = match state {
                Some(Some('R')) => ASK_EVERY,
                // Its end is on its way here.
                Some(None | Some('Z' | 'X')) => SETTLES_WITHIN,
                _ => return Ok(()),
            };
            let exit = match tokio::time::timeout(wait, container.next()).await {
                Ok(event) => match event? {
                    Event::Started { .. } | Event::HandedOver => continue,
                    Event::Exited(exit) => exit,
                    Event::Gone => Exit::Signal(libc::SIGKILL),
                },
                Err(_) => continue,
            };
            return Err(StackError::EndedListening {
                app: app.name.to_string(),
                exit,
            });
        }
        Ok(())
    }

    /// Connects the way the relay does: what is published has been seen to answer.
    ///
    /// Of many ports, to some: they share links, chains and rules, and each by itself is an element of the maps that were
    /// loaded with these in one transaction, to a port that the app has been seen to listen on. Not by UDP: what is sent
    /// there the app would have to answer.
    ///
    /// # Errors
    /// [`StackError::Path`].
    pub async fn try_the_path(&self) -> Result<(), StackError> {
        self.try_ways(self.ways_to_try().into_iter()).await
    }

    /// The same, to one app, by those of its ports that `known` has too: the others lead nowhere yet.
    ///
    /// # Errors
    /// [`StackError::Path`].
    pub async fn try_the_path_to(&self, id: PartId, known: &Plan) -> Result<(), StackError> {
        let name = &self.app_plan(id).name;
        let known: Vec<_> = known.published().map(|(_, port)| port.outside()).collect();
        let ways = self.ways_to_try().into_iter();
        let its = ways.filter(|(app, port)| app.name == *name && known.contains(&port.outside()));
        self.try_ways(its).await
    }

    async fn try_ways<'a>(
        &self,
        ways: impl Iterator<Item = (&'a AppPlan, &'a PublishPlan)>,
    ) -> Result<(), StackError> {
        for (app, publish) in ways {
            let target = self.plan.uplink.entry(publish);
            tokio::time::timeout(Duration::from_secs(5), self.connect(target))
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
                .map_err(|source| StackError::Path {
                    app: app.name.to_string(),
                    port: publish.app_port,
                    source,
                })?;
        }
        Ok(())
    }

    fn ways_to_try(&self) -> Vec<(&AppPlan, &PublishPlan)> {
        let mut ways = vec![];
        let closed = self.closed();
        for app in self
            .plan
            .apps
            .iter()
            .filter(|app| app.turn.serves() && !closed.contains(&app.name))
        {
            for ipv6 in [false, true] {
                let by_tcp = |publish: &&PublishPlan| {
                    publish.waited
                        && publish.protocol == Protocol::Tcp
                        && publish.listen.is_ipv6() == ipv6
                };
                let ports: Vec<&PublishPlan> = app.publish.iter().filter(by_tcp).collect();
                let step = ports.len().div_ceil(PORTS_TRIED).max(1);
                let count = ports.len();
                let some = ports.into_iter().enumerate();
                let some = some.filter(|(at, _)| at % step == 0 || at + 1 == count);
                ways.extend(some.map(|(_, publish)| (app, publish)));
            }
        }
        ways
    }

    /// Connects from where the uplink ends.
    pub(super) async fn connect(&self, target: SocketAddr) -> io::Result<()> {
        self.connected(target).await.map(drop)
    }

    pub(super) async fn connected(&self, target: SocketAddr) -> io::Result<tokio::net::TcpStream> {
        if self.plan.uplink.ends_at == UplinkEnd::Host {
            return tokio::net::TcpStream::connect(target).await;
        }
        let family = SocketAddrAny::from(target).address_family();
        let socket = self.relay.tcp_socket(family).await?;
        let socket = tokio::net::TcpSocket::from_std_stream(socket.into());
        socket.connect(target).await
    }
}

/// A port on which an app does not listen, and where it does, in words and by addresses.
struct Deaf {
    pub(super) port: AppPort,
    pub(super) found: String,
    pub(super) listening: Vec<SocketAddr>,
}

/// What to tell who waits for a port.
fn not_yet(app: &AppPlan, port: AppPort, found: &str, since: Duration) -> String {
    let (name, seconds, most) = (&app.name, since.as_secs(), app.start_timeout.as_secs());
    format!(
        "waiting for {name} to listen on {port}, for {seconds} s of at most {most}; {found} so far"
    )
}

fn describe(listening: &[ListeningSocket], target: SocketAddr) -> String {
    if listening.is_empty() {
        return "it listens on nothing".to_owned();
    }
    let list: Vec<String> = listening.iter().map(ToString::to_string).collect();
    let same_port = |l: &ListeningSocket| l.address.port() == target.port();
    let hint = match listening.iter().any(same_port) {
        true if target.ip().is_loopback() => {
            "; let it bind 127.0.0.1, at which its clients come to it"
        }
        true if target.is_ipv6() => "; let it bind [::], since it is published at an IPv6 address",
        true => "; let it bind 0.0.0.0 instead",
        false => "",
    };
    format!("it listens on {}{hint}", list.join(", "))
}

//! The start of each part: its process, what it is told, and what it says when it is ready.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::sync::oneshot;

use super::error::StackError;
use super::ground::{AppGround, Ground};
use super::health;
use crate::config::clients::Admission;
use crate::config::{Source, TrafficLog};
use crate::confine::privileges::Privileges;
use crate::confine::seccomp::Filters;
use crate::log::streams::{PIPES, Pipe, Streams};
use crate::names::PartName;
use crate::net::publish::Listener;
use crate::part::container::Container;
use crate::part::namespaces::Namespaces;
use crate::part::refused::Explains;
use crate::part::secrets::Copies;
use crate::plan::UplinkEnd;
use crate::protocol::{AppStart, Carried, MAX_FDS, Role, Start, ToStage};
use crate::{net, rootfs, traffic};

/// A part that is ready.
pub struct Launched {
    /// Its process.
    pub container: Container,
    /// What the kernel says it holds.
    pub privileges: Privileges,
    /// What had to be left out.
    pub notes: Vec<String>,
    /// Sidecar and relay: where they tell of the traffic.
    pub traffic: Option<OwnedFd>,
    /// App: what its health checks have come to so far.
    pub health: Option<health::Watch>,
}

/// What has become of a part at a start.
#[expect(
    clippy::large_enum_variant,
    reason = "there is one for each start of a part, and it is taken apart at once"
)]
pub enum Begun {
    /// It runs.
    Runs(Launched),
    /// It was a job, and has ended with 0.
    Done(Done),
}

/// A job that has ended with 0.
pub struct Done {
    /// What it held.
    pub privileges: Privileges,
    /// What had to be left out.
    pub notes: Vec<String>,
}

/// Makes the streams of an app, given its place in the plan and pipes that belong to it.
pub type MakeStreams<'m> = &'m (dyn Fn(usize, Vec<Pipe>) -> io::Result<Streams> + Sync);

/// What a test wants to be left undone, in debug builds ([`crate::audit`] must notice).
pub fn weaken() -> Option<String> {
    cfg!(debug_assertions)
        .then(|| std::env::var("LRPNS_TEST_WEAKEN").ok())
        .flatten()
}

/// An app's environment: the plan's, and one variable more if a test wants that.
fn app_env(app: &crate::plan::AppPlan) -> std::collections::BTreeMap<String, String> {
    let mut env = app.env.clone();
    if weaken().as_deref() == Some("leak-environment") {
        env.insert("SECRET".to_owned(), "of the host".to_owned());
    }
    env
}

/// For what a part tells of the traffic: messages, so that none is ever half there.
pub(super) fn pair() -> Result<(OwnedFd, OwnedFd), StackError> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    rustix::net::socketpair(family, kind, SocketFlags::CLOEXEC, None).map_err(|e| StackError::Io {
        what: "make a socket pair for the traffic log",
        source: e.into(),
    })
}

impl Ground {
    /// Starts the sidecar, or starts it again; when this returns, its rules are in force.
    ///
    /// # Errors
    /// [`StackError`].
    pub async fn sidecar(&self, again: bool) -> Result<Launched, StackError> {
        let rules = self.whole_rules()?;
        let traffic = (self.plan.log > TrafficLog::Off).then(|| traffic::Settings {
            packets: self.plan.log == TrafficLog::Packets,
            again,
            apps: self
                .plan
                .apps
                .iter()
                .filter(|app| app.turn.serves())
                .map(|app| app.everywhere().collect())
                .collect(),
        });
        let (ours, theirs) = traffic.as_ref().map(|_| pair()).transpose()?.unzip();
        let start = Start {
            hostname: format!("{}-sidecar", self.plan.stack),
            nproc: self.plan.cgroup.nproc(&self.plan.sidecar_limits),
            role: Role::Sidecar {
                rules,
                seal: self.plan.seal,
                traffic,
            },
            weaken: weaken(),
        };
        let container = self.spawn("sidecar", &self.sidecar).await?;
        let fds: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
        container
            .send(&ToStage::Start(Box::new(start)), &fds)
            .await?;
        let launched = Launched::ready(container).await?;
        Ok(Launched {
            traffic: ours,
            ..launched
        })
    }

    /// Starts the relay's process, which then waits to be told what to carry; `None` without one.
    pub(super) async fn spawn_relay(&self) -> Result<Option<Container>, StackError> {
        if !self.plan.has_relay() {
            return Ok(None);
        }
        self.spawn("relay", &self.relay).await.map(Some)
    }

    fn dials_as_clients(&self) -> bool {
        self.plan.uplink.ends_at == UplinkEnd::Relay
    }

    /// Tells the relay what to carry.
    pub(super) async fn start_relay(
        &self,
        container: Container,
        wait: bool,
    ) -> Result<Launched, StackError> {
        let apps: HashMap<_, usize> = self
            .plan
            .apps
            .iter()
            .enumerate()
            .flat_map(|(index, app)| app.publish.iter().map(move |p| (p.outside(), index)))
            .collect();
        let app = |listener: &Listener| apps.get(&listener.outside()).copied();
        let start = Start {
            hostname: format!("{}-relay", self.plan.stack),
            nproc: self.plan.cgroup.nproc(&self.plan.relay_limits),
            role: Role::Relay {
                carried: self
                    .listeners
                    .iter()
                    .map(|listener| Carried {
                        protocol: listener.protocol,
                        target: listener.target,
                        // One that is nobody's any more has no clients.
                        admission: app(listener).unwrap_or(usize::MAX),
                        shows_client: app(listener)
                            .is_some_and(|index| self.plan.apps[index].source == Source::Client),
                        early: listener.early,
                    })
                    .collect(),
                admissions: self
                    .plan
                    .apps
                    .iter()
                    .map(|app| Admission::of(&app.allow, app.rate))
                    .collect(),
                as_clients: self.dials_as_clients().then(|| net::foreign(&self.plan)),
                joined: self.plan.joins_datagrams(),
                wait,
            },
            weaken: None,
        };
        let (ours, theirs) = pair()?;
        let sockets = self.listeners.iter();
        let sockets = sockets.map(|listener| listener.socket.as_fd());
        let fds: Vec<_> = [theirs.as_fd()].into_iter().chain(sockets).collect();
        let mut batches = fds.chunks(MAX_FDS);
        container
            .send(
                &ToStage::Start(Box::new(start)),
                batches.next().unwrap_or_default(),
            )
            .await?;
        for batch in batches {
            container.send(&ToStage::More, batch).await?;
        }
        drop(theirs);
        Ok(Launched {
            traffic: Some(ours),
            ..Launched::ready(container).await?
        })
    }

    /// Starts the relay.
    ///
    /// # Errors
    /// [`StackError`].
    pub async fn relay(&self) -> Result<Launched, StackError> {
        let container = self.spawn("relay", &self.relay).await?;
        self.start_relay(container, false).await
    }

    /// Starts an app's process up to the point where only its command is missing.
    pub(super) async fn app(
        &self,
        index: usize,
        streams: MakeStreams<'_>,
    ) -> Result<Launched, StackError> {
        self.load_own_rules(index).await?;
        let app = &self.plan.apps[index];
        let failed = |source| StackError::Io {
            what: "make the app's standard streams",
            source,
        };
        let pipes = self.apps[index].namespaces.pipes(app.ids.inside(), PIPES);
        let streams = streams(index, pipes.map_err(failed)?).map_err(failed)?;
        let hosts = rootfs::hosts(&self.plan.hosts(app), self.plan.has_ipv6());
        let AppGround {
            kept, namespaces, ..
        } = &self.apps[index];
        let mounts = kept.mounts(app, namespaces)?;
        let rootfs = rootfs::start(
            &app.rootfs,
            (app.name.as_str(), app.ids.inside()),
            &app.resolvers().collect::<Vec<_>>(),
            &hosts,
        );
        let start = Start {
            hostname: app.name.to_string(),
            nproc: self.plan.cgroup.nproc(&app.limits),
            role: Role::App(Box::new(AppStart {
                user: app.ids.inside(),
                range: app.ids.is_range(),
                workdir: app.workdir.clone(),
                command: app.command.clone(),
                env: app_env(app),
                tmpfs: app.tmpfs.clone(),
                rootfs,
                hosts,
                volumes: app.mounted(),
                sockets: app.sockets.iter().map(|s| s.path.clone()).collect(),
                secrets: app.secrets.iter().map(|s| s.name.clone()).collect(),
                limits: app.limits,
                stdin: streams.stdin.is_some(),
                terminal: streams.terminal,
                confined: crate::confine::landlock::App::of(app),
                seccomp: Box::new(match &self.refusals {
                    None => app.seccomp.filters()?,
                    Some(_) => Filters::asking(&app.seccomp)?,
                }),
                explain: self.refusals.is_some(),
                handed: app
                    .handed()
                    .iter()
                    .map(|at| at.port().to_string())
                    .collect(),
                forks: app.forks,
            })),
            weaken: weaken(),
        };
        let handed = self.apps[index].handed.sound(app, &self.sidecar).await?;
        let mut fds = vec![
            streams.out.as_fd(),
            streams.err.as_fd(),
            streams.syslog.as_fd(),
            self.program.as_fd(),
        ];
        fds.extend(handed.iter().map(AsFd::as_fd));
        fds.extend(streams.stdin.as_ref().map(AsFd::as_fd));
        let secrets = kept.secrets(app)?;
        fds.extend(mounts.iter().map(AsFd::as_fd));
        fds.extend(secrets.iter().map(AsFd::as_fd));
        let mut container = self.spawn(&app.own_name(), namespaces).await?;
        if let Some(refusals) = &self.refusals {
            let explains = Explains {
                app: app.name.to_string(),
                profile: app.seccomp.clone(),
                confined: crate::confine::landlock::App::of(app),
            };
            container.explain(refusals.clone(), explains);
        }
        if app.forks {
            container.forks();
        }
        container
            .send(&ToStage::Start(Box::new(start)), &fds)
            .await?;
        Launched::ready(container).await
    }

    /// What starts of an app from now on has this in its secrets.
    ///
    /// # Errors
    /// In words: the app has no such secret, or there is no such app.
    pub fn renew(&self, name: &PartName, copies: &Copies) -> Result<(), String> {
        let app = self.plan.app(name);
        let app = app.ok_or_else(|| format!("{} has no app {name}", self.plan.stack))?;
        let has = |secret: &String| app.secrets.iter().any(|own| own.name == *secret);
        if let Some(strange) = copies.keys().find(|secret| !has(secret)) {
            return Err(format!("{name} has no secret {strange}"));
        }
        let places = self.plan.apps.iter().zip(&self.apps);
        for (_, ground) in places.filter(|(app, _)| app.name == *name) {
            ground.kept.renew(copies);
        }
        Ok(())
    }

    /// Starts an app again in its namespaces and waits until it listens, or until `given_up` ends; an app that doesn't come
    /// to listen has ended when this returns.
    ///
    /// # Errors
    /// [`StackError`].
    ///
    /// # Panics
    /// There is no app of that number.
    pub async fn relaunch_app(
        &self,
        number: usize,
        streams: MakeStreams<'_>,
        given_up: oneshot::Receiver<()>,
    ) -> Result<Launched, StackError> {
        let index = self
            .place(number)
            .expect("a part leaves before its app does");
        let mut launched = self.app(index, streams).await?;
        launched.proceed().await?;
        if self.plan.apps[index].via_socket {
            // Nobody is refused meanwhile, and who is let in just now is for others to say.
            return Ok(launched);
        }
        let listens = tokio::select! {
            listens = self.wait_until_listening(index, &mut launched.container, |_| {}) => listens,
            _ = given_up => Err(StackError::GivenUp { app: self.plan.apps[index].name.to_string() }),
        };
        match listens {
            Ok(()) => Ok(launched),
            Err(e) => {
                launched.container.kill().await;
                Err(e)
            }
        }
    }

    pub(super) async fn spawn(
        &self,
        part: &str,
        namespaces: &Namespaces,
    ) -> Result<Container, StackError> {
        let (program, cgroup) = (self.program.as_fd(), self.cgroups.entrance(part));
        Ok(Container::spawn(&self.title(part), namespaces, program, cgroup).await?)
    }
}

impl Launched {
    pub(super) async fn ready(mut container: Container) -> Result<Self, StackError> {
        let (privileges, notes) = container.ready().await?;
        Ok(Self {
            container,
            privileges,
            notes,
            traffic: None,
            health: None,
        })
    }

    /// Lets an app's command start, and waits until it runs.
    pub(super) async fn proceed(&mut self) -> Result<(), StackError> {
        self.container.send(&ToStage::Proceed, &[]).await?;
        self.container.next().await?;
        Ok(())
    }
}

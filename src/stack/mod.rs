//! A stack on this machine: the only writer. Walks the plan once, in order, and takes everything back.
//!
//! # Theory of operation
//!
//! [`Stack::bring_up`] is the straight line: namespaces; then, at the same time, the parts' processes and the links;
//! then the rules, both in the sidecar and on the host, before any link is up; then the links; then the apps' commands;
//! and the published ports last, when what is behind them answers.
//!
//! There is one undo, for a failed `bring_up`, a normal end and a signal: drop what there is, which kills the parts and
//! closes the descriptors. The kernel does the rest: links, rules, connections and mounts go with the namespaces, and
//! the rules in the host's namespace go with the sockets that own them. When this process is killed the kernel does all of it, since
//! every part dies with its parent (`PR_SET_PDEATHSIG(2const)`).
#![forbid(unsafe_code)]

mod egress;
mod entries;
mod error;
mod ground;
mod grow;
pub mod health;
mod launch;
mod listening;
mod load;
mod localhost;
mod mounts;
mod order;
mod replace;
pub mod rules;
mod socket;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use nftables::schema::Nftables;

pub use self::entries::close;
pub use self::error::{AppPort, StackError};
use self::ground::{AppGround, FarEnd};
pub use self::ground::{EndTable, Ground, PartId};
pub use self::launch::{Begun, Done, Launched, MakeStreams, weaken};
use self::listening::patience;
use self::load::load_host_rules;
pub use self::mounts::{Open, Opened};
use crate::firewall::{self, Shared};
use crate::net::publish::Listener;
use crate::net::{self, Endpoint, Listening, Rtnl};
use crate::part::cgroup::Cgroups;
use crate::part::refused::Refusals;
use crate::plan::Plan;
use crate::rootfs;

/// How long the kernel may take for everything but the app. Milliseconds, but for the first stack after a boot: then it
/// loads its modules for nftables and links, behind those of everything else that starts.
const OURS: Duration = Duration::from_secs(60);
/// A wait is told of after this…
const WAIT_TOLD_AFTER: Duration = Duration::from_secs(2);
/// …and then as often as this.
const WAIT_TOLD_EVERY: Duration = Duration::from_secs(10);

/// What a stack is made of.
pub struct Makings {
    /// What it is to be.
    pub plan: Plan,
    /// Its cgroups, which its parts are put into.
    pub cgroups: Cgroups,
    /// The published ports, bound.
    pub listeners: Vec<Listener>,
    /// Where what the apps' filters refuse is noted, if it is.
    pub explain: Option<Refusals>,
}

/// Everything that a stack consists of at this moment.
pub struct Stack {
    /// What never changes.
    pub ground: Arc<Ground>,
    /// The rules where the uplink ends.
    pub host_table: EndTable,
    /// What it holds.
    pub host_rules: Nftables<'static>,
    /// The parts, in the order of the plan, the relay last.
    pub parts: Vec<(PartId, Begun)>,
}

/// What has become of a part at a start.
#[derive(Clone, Copy)]
pub enum PartNow<'p> {
    /// Its process is ready; an app's command waits for its turn.
    Ready(&'p Launched),
    /// An app's command runs, as this process.
    Begun(Option<i32>),
    /// It takes its time: what is waited for.
    Waits(&'p str),
    /// It does what it is there for.
    Runs,
    /// A job: it has ended with 0.
    Done,
}

/// How a start goes.
#[derive(Clone, Copy)]
pub enum Progress<'p> {
    /// A part, by its name, has come further.
    Part(&'p str, PartNow<'p>),
    /// One of [`STEPS`] is done.
    Done(&'static str),
    /// An app has come to a point that others may wait for, in words.
    App(&'p str),
    /// Something takes its time: what, and how long by now.
    Waits(&'p str),
}

/// When it is told that something takes its time: after two seconds, then every ten.
pub struct Wait {
    begun: tokio::time::Instant,
    told: u32,
}

impl Wait {
    /// Begins now.
    #[must_use]
    pub fn begin() -> Self {
        Self {
            begun: tokio::time::Instant::now(),
            told: 0,
        }
    }

    /// When it is to be told next.
    #[must_use]
    pub fn next(&self) -> tokio::time::Instant {
        self.begun + WAIT_TOLD_AFTER + self.told * WAIT_TOLD_EVERY
    }

    /// How long it has taken, if that is to be told now.
    pub fn due(&mut self) -> Option<Duration> {
        let now = tokio::time::Instant::now();
        (now >= self.next()).then(|| {
            self.told += 1;
            now - self.begun
        })
    }
}

/// Every step of [`Stack::bring_up`], in order; a debug build can be told to fail, or die, at each.
pub const STEPS: [&str; 8] = [
    "namespaces",
    "parts",
    "rules",
    "links",
    "commands",
    "listening",
    "path",
    "published",
];

/// The end of a step: says it, and, in debug builds, fails or dies there if a test has asked for it.
fn done(step: &'static str, progress: &mut dyn FnMut(Progress<'_>)) -> Result<(), StackError> {
    debug_assert!(STEPS.contains(&step));
    progress(Progress::Done(step));
    if cfg!(debug_assertions) {
        if std::env::var("LRPNS_TEST_FAIL_AT").as_deref() == Ok(step) {
            return Err(StackError::OnRequest(step));
        }
        if std::env::var("LRPNS_TEST_DIE_AT").as_deref() == Ok(step) {
            let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
        }
    }
    Ok(())
}

async fn within<T>(
    step: &'static str,
    work: impl Future<Output = Result<T, StackError>>,
) -> Result<T, StackError> {
    within_limit(OURS, step, work).await
}

async fn within_limit<T>(
    limit: Duration,
    step: &'static str,
    work: impl Future<Output = Result<T, StackError>>,
) -> Result<T, StackError> {
    // On the heap: else each caller's future, and the stack that it is polled on, has room for all that it awaits.
    tokio::time::timeout(limit, Box::pin(work))
        .await
        .unwrap_or(Err(StackError::TimedOut { step, limit }))
}

impl Stack {
    /// Brings the stack up; with `gated`, all but for the published ports, which [`Ground::publish`] opens. `streams`
    /// makes each app's. An error leaves nothing behind.
    ///
    /// # Errors
    /// [`StackError`] names the part, the step and what the kernel said.
    pub async fn bring_up(
        makings: Makings,
        shared: Option<Arc<Shared>>,
        gated: bool,
        streams: MakeStreams<'_>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Self, StackError> {
        let Makings {
            plan,
            cgroups,
            listeners,
            explain,
        } = makings;
        let program = rootfs::own_program()?;
        let (mut ground, far) = within(
            "namespaces",
            Ground::make(plan, program, cgroups, listeners, shared),
        )
        .await?;
        let FarEnd {
            rtnl: host,
            rules: host_table,
        } = far;
        done("namespaces", progress)?;
        ground.refusals = explain;
        ground.compile(&ground.plan, None).await?;

        let plan = &ground.plan;
        let sidecar_end = ground.sidecar_end();
        let app_ends: Vec<Endpoint<'_>> = ground.apps.iter().map(AppGround::end).collect();
        // The images load and drop on the other cores while this thread waits for the kernel to make links.
        let parts = async {
            tokio::try_join!(
                ground.sidecar(false),
                try_join_all((0..ground.apps.len()).map(|app| ground.app(app, streams))),
                ground.spawn_relay(),
                ground.start_egress(),
                async { Ok(net::create(plan, &host, sidecar_end, &app_ends).await?) },
            )
        };
        let (mut sidecar, apps, relay, egress, links) = within("parts", parts).await?;
        let ready = [("sidecar", &sidecar)].into_iter();
        let ready = ready.chain(egress.iter().map(|egress| ("egress", egress)));
        let names = plan.apps.iter().map(|app| app.name.as_str());
        for (name, launched) in ready.chain(names.zip(&apps)) {
            progress(Progress::Part(name, PartNow::Ready(launched)));
        }
        for name in ["sidecar", "egress"] {
            progress(Progress::Part(name, PartNow::Runs));
        }
        done("parts", progress)?;

        let host_rules = match gated {
            true => firewall::closed_host_rules(plan),
            false => firewall::host_rules(plan),
        };
        sidecar
            .notes
            .extend(load_host_rules(plan, &host_table, &host_rules)?);
        done("rules", progress)?;

        within("links", async {
            Ok(net::configure_and_up(plan, &host, sidecar_end, &app_ends, &links).await?)
        })
        .await?;
        done("links", progress)?;

        let mut parts = vec![(PartId::Sidecar, Begun::Runs(sidecar))];
        parts.extend(egress.map(|egress| (PartId::Egress, Begun::Runs(egress))));
        let apps = ground.start_apps(apps, progress).await?;
        let apps = apps.into_iter().enumerate();
        parts.extend(apps.map(|(index, app)| (PartId::App(index), app)));
        done("listening", progress)?;
        ground.try_the_path().await?;
        for (id, begun) in &mut parts {
            if let (PartId::App(index), Begun::Runs(app)) = (*id, begun) {
                ground.stays(index, &mut app.container).await?;
            }
        }
        done("path", progress)?;
        if !gated {
            ground.listen()?;
        }
        if let Some(relay) = relay {
            let relay = ground.start_relay(relay, gated).await?;
            parts.push((PartId::Relay, Begun::Runs(relay)));
        }
        if !gated {
            done("published", progress)?;
        }
        ground.links = links;
        Ok(Self {
            ground: Arc::new(ground),
            host_table,
            host_rules,
            parts,
        })
    }
}

//! What outlives the parts' processes: namespaces, links, sockets, volumes; and which parts there are.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use futures_util::future::{TryFutureExt, try_join_all};

use super::egress;
use super::error::StackError;
use super::localhost::OwnRules;
use super::mounts::{Kept, Open};
use super::rules::CompiledRules;
use super::socket::Handed;
use crate::config::{Limits, Rootfs};
use crate::firewall::{self, Shared};
use crate::names::PartName;
use crate::net::publish::Listener;
use crate::net::{Endpoint, Links, Listening, Rtnl};
use crate::part::cgroup::Cgroups;
use crate::part::namespaces::{Itself, Namespaces, Network};
use crate::part::refused::Refusals;
use crate::plan::{AppPlan, Plan, UplinkEnd};
use crate::rootfs;

/// What who starts or restarts a part needs, and nothing else. It never changes: a live change makes another one, on the
/// same namespaces.
#[derive(Clone)]
pub struct Ground {
    /// The plan.
    pub plan: Plan,
    /// Our own program, read-only.
    pub(super) program: Arc<OwnedFd>,
    /// Where the parts are put.
    pub cgroups: Arc<Cgroups>,
    pub(super) sidecar: Arc<Namespaces>,
    /// A way to change the links of the sidecar's namespace.
    sidecar_route: Arc<Rtnl>,
    /// What the sockets there do, which apps are handed.
    pub(super) sidecar_listening: Arc<Listening>,
    pub(super) relay: Arc<Namespaces>,
    /// Where egress is by relay.
    pub(super) egress: Option<Arc<egress::Way>>,
    /// In the plan's order.
    pub(super) apps: Vec<AppGround>,
    /// The number of the next app that joins.
    pub(super) next_number: usize,
    /// The links; none before they are made.
    pub(super) links: Links,
    /// The bound sockets of the published ports, in the order of [`Plan::published`].
    pub(super) listeners: Vec<Listener>,
    /// The apps to which nobody new is let in, since they are not healthy; the same for all that are made of this.
    pub(super) closed: Arc<Mutex<BTreeSet<PartName>>>,
    /// What nft has made of the user's own rules.
    pub(super) compiled: CompiledRules,
    /// Where it is noted what the apps' filters refuse, if that is asked for.
    pub(super) refusals: Option<Refusals>,
}

/// What an app needs beside its plan.
#[derive(Clone)]
pub(super) struct AppGround {
    /// Of its [`PartId`]; who joins has a higher one than all before.
    pub(super) number: usize,
    pub(super) namespaces: Arc<Namespaces>,
    /// A way to change the links of its namespace.
    pub(super) route: Arc<Rtnl>,
    /// Where its sockets listen.
    pub(super) listening: Arc<Listening>,
    /// What its root is made of.
    pub(super) kept: Arc<Kept>,
    /// The sockets that it is handed.
    pub(super) handed: Arc<Handed>,
    /// The rules in its network namespace.
    pub(super) rules: Arc<OwnRules>,
}

/// The directory that is an app's root, held open.
pub(super) fn directory(
    app: &AppPlan,
    plan: &Plan,
) -> Result<Option<rootfs::Directory>, StackError> {
    let Rootfs::Dir(path) = &app.rootfs else {
        return Ok(None);
    };
    let opened = rootfs::Directory::open(path, plan.stacks_dir());
    let opened = opened.map_err(|source| StackError::Directory {
        app: app.name.to_string(),
        source,
    })?;
    Ok(Some(opened))
}

impl AppGround {
    pub(super) async fn make(
        number: usize,
        index: usize,
        plan: &Plan,
        open: &mut impl Open,
    ) -> Result<Self, StackError> {
        let app = &plan.apps[index];
        let ipv6 = plan.has_ipv6() && !app.via_socket;
        let (name, network) = (app.name.as_str(), Network::App { ipv6 });
        let (namespaces, sockets) = Namespaces::make_by(
            name,
            (app.ids, plan.cgroup.nproc(&app.limits)),
            plan.supervisor(),
            network,
            open,
        )
        .await?;
        let kept = Kept::of(open.open(plan, index).await?);
        let sockets = sockets.ok_or_else(missing)?;
        Ok(Self {
            number,
            namespaces: Arc::new(namespaces),
            route: Arc::new(Rtnl::from_fd(sockets.route)?),
            listening: Arc::new(Listening::from_fd(sockets.second)?),
            kept: Arc::new(kept),
            handed: Arc::default(),
            rules: Arc::default(),
        })
    }

    pub(super) fn end(&self) -> Endpoint<'_> {
        Endpoint {
            rtnl: &self.route,
            netns: net_of(&self.namespaces),
        }
    }
}

/// Ways to change the network namespace in which the uplink ends.
pub(super) struct FarEnd {
    pub(super) rtnl: Rtnl,
    pub(super) rules: EndTable,
}

/// The rules where the uplink ends. Dropping it takes those in the host's namespace away; of the table that stacks share, with
/// the last that has it.
pub enum EndTable {
    /// In a namespace in which there is no other stack, and with which they go: a table that no socket owns. Nobody there could
    /// change it, and a table that goes with its socket has who closes that wait for every processor (`nft_rcv_nl_event()`,
    /// net/netfilter/nf_tables_api.c), most of what the end of a stack took.
    Own(firewall::Socket),
    /// In the host's.
    Host {
        /// The table of which this stack has a part.
        shared: Arc<Shared>,
        /// What owns the rules at the link itself.
        at_link: Arc<firewall::Socket>,
    },
}

impl AsFd for EndTable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(socket) => socket.as_fd(),
            Self::Host { shared, .. } => shared.as_fd(),
        }
    }
}

/// Which part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartId {
    /// The sidecar.
    Sidecar,
    /// The relay.
    Relay,
    /// Carrier and dialer of what apps connect to, where that is by relay.
    Egress,
    /// An app: a number that it keeps as long as it is there, whatever its place in the plan comes to be
    /// ([`Ground::place`]).
    App(usize),
}

pub(super) fn missing() -> StackError {
    StackError::Io {
        what: "take a namespace's sockets",
        source: io::ErrorKind::InvalidData.into(),
    }
}

fn net_of(namespaces: &Namespaces) -> BorrowedFd<'_> {
    namespaces
        .net
        .as_ref()
        .expect("sidecar and apps are made with a network namespace")
        .as_fd()
}

impl Ground {
    /// Makes every part's namespaces, all at once.
    pub(super) async fn make(
        plan: Plan,
        program: OwnedFd,
        cgroups: Cgroups,
        listeners: Vec<Listener>,
        shared: Option<Arc<Shared>>,
    ) -> Result<(Self, FarEnd), StackError> {
        let ipv6 = plan.has_ipv6();
        let relay_network = match plan.uplink.ends_at {
            UplinkEnd::Host => Network::Shared,
            UplinkEnd::Relay => Network::Relay { ipv6 },
        };
        let owner = plan.supervisor();
        let app = async |number| AppGround::make(number, number, &plan, &mut Itself).await;
        let (sidecar, relay, apps) = tokio::try_join!(
            Namespaces::make(
                "the sidecar",
                plan.sidecar,
                owner,
                Network::Sidecar { ipv6 }
            )
            .err_into(),
            Namespaces::make("the relay", plan.relay, owner, relay_network).err_into(),
            try_join_all((0..plan.apps.len()).map(app)),
        )?;
        for (app, ground) in plan.apps.iter().zip(&apps) {
            ground.handed.sound(app, &sidecar.0).await?;
        }
        let sockets = sidecar.1.ok_or_else(missing)?;
        let sidecar_route = Rtnl::from_fd(sockets.route)?;
        let sidecar_listening = Listening::from_fd(sockets.second)?;
        let far = match (relay.1, shared) {
            (Some(sockets), _) => FarEnd {
                rtnl: Rtnl::from_fd(sockets.route)?,
                rules: EndTable::Own(firewall::Socket::made_inside(sockets.second)?),
            },
            (None, Some(shared)) => FarEnd {
                rtnl: Rtnl::open()?,
                rules: EndTable::Host {
                    shared,
                    at_link: Arc::new(firewall::Socket::open()?),
                },
            },
            (None, None) => return Err(missing()),
        };
        let egress = egress::Way::make(&plan, &relay.0).await?;
        let ground = Self {
            plan,
            program: Arc::new(program),
            cgroups: Arc::new(cgroups),
            sidecar: Arc::new(sidecar.0),
            sidecar_route: Arc::new(sidecar_route),
            sidecar_listening: Arc::new(sidecar_listening),
            egress,
            relay: Arc::new(relay.0),
            next_number: apps.len(),
            apps,
            links: Links::default(),
            listeners,
            closed: Arc::default(),
            compiled: CompiledRules::default(),
            refusals: None,
        };
        Ok((ground, far))
    }

    pub(super) fn sidecar_end(&self) -> Endpoint<'_> {
        Endpoint {
            rtnl: &self.sidecar_route,
            netns: net_of(&self.sidecar),
        }
    }

    /// Every app, in the plan's order.
    pub fn apps(&self) -> impl Iterator<Item = PartId> {
        self.apps.iter().map(|app| PartId::App(app.number))
    }

    /// An app's place in the plan; that of a number which no app has is none.
    #[must_use]
    pub fn place(&self, number: usize) -> Option<usize> {
        self.apps.iter().position(|app| app.number == number)
    }

    /// What the plan has of an app.
    ///
    /// # Panics
    /// It is no app of this plan.
    #[must_use]
    pub fn app_plan(&self, id: PartId) -> &AppPlan {
        let place = match id {
            PartId::App(number) => self.place(number),
            PartId::Sidecar | PartId::Relay | PartId::Egress => None,
        };
        let place = place.expect("a part leaves before its app does");
        &self.plan.apps[place]
    }

    /// The listening sockets of the published ports, in the plan's order.
    #[must_use]
    pub fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    pub(super) fn title(&self, part: &str) -> String {
        format!("{}/{part}", self.plan.stack)
    }

    /// A part's name as the user knows it.
    #[must_use]
    pub fn name(&self, id: PartId) -> &str {
        match id {
            PartId::Sidecar => "sidecar",
            PartId::Relay => "relay",
            PartId::Egress => "egress",
            PartId::App(_) => self.app_plan(id).name.as_str(),
        }
    }

    /// What a part is called in the cgroups.
    #[must_use]
    pub fn cgroup_name(&self, id: PartId) -> String {
        match id {
            PartId::App(_) => self.app_plan(id).own_name(),
            PartId::Sidecar | PartId::Relay | PartId::Egress => self.name(id).to_owned(),
        }
    }

    /// What a part may use.
    #[must_use]
    pub fn limits(&self, id: PartId) -> &Limits {
        match id {
            PartId::Sidecar => &self.plan.sidecar_limits,
            PartId::Relay => &self.plan.relay_limits,
            PartId::Egress => &crate::plan::limits::EGRESS,
            PartId::App(_) => &self.app_plan(id).limits,
        }
    }

    /// Our own program, for a prober in an app: a mount of its own for each, read-only.
    ///
    /// # Errors
    /// What `dup(2)` says.
    pub fn own_program(&self) -> io::Result<OwnedFd> {
        self.program.try_clone()
    }
}

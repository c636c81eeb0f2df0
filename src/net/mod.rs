//! Links, addresses, neighbours and routes of a stack, by rtnetlink(7).
//!
//! # Theory of operation
//!
//! ```text
//! host's netns          sidecar's netns                                   an app's netns
//! host_link ==(veth)== sidecar_link      bridge --- port_link ==(veth)== eth0
//! ```
//!
//! 1. [`create`] makes every link, down. Nothing passes yet, so the sidecar's rules can be loaded by link name.
//!    The host's end carries an alias that says whose it is.
//! 2. The sidecar loads its rules.
//! 3. [`configure_and_up`] adds addresses, neighbours and routes, sets the links up and waits until the kernel has
//!    them up. It **mustn't** be called before 2: the sidecar forwards from then on.
//!
//! Who may talk to whom is decided here a first time, before any rule:
//! - No link asks for or answers to link-layer addresses (`IFF_NOARP`): each end knows its peers from the start, as
//!   permanent neighbours. So nobody can claim another's address, an app that tries every address of its subnet
//!   leaves no entry in the neighbour table, which all namespaces of the machine share, and nothing needs to be flooded.
//! - No link has a route to its prefix. The app has one route, to the sidecar, and by it those of its `egress`, or a
//!   default one if it sees its clients' own addresses; the sidecar has one to the host, which is also
//!   its default, and one to each app; the rest of the subnet is unreachable. The host has one, to the sidecar's end of the
//!   uplink, and none to the subnet.
//! - Bridge ports are isolated from each other, learn nothing and take no foreign source address.
//!
//! There is no teardown: when the namespaces go, the kernel takes the links with them, some 40 ms later, whereas deleting
//! a link takes as long while we wait.
#![forbid(unsafe_code)]

mod choose;
mod facts;
pub mod handed;
mod leftovers;
pub mod listening;
mod lookup;
mod message;
pub mod publish;
mod rtnl;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_packet_route::link::LinkAttribute;
use nix::errno::Errno;
use tokio::time::Instant;

pub(crate) use self::choose::fnv1a;
pub use self::choose::{NoUplink, UPLINK_POOL, choose_uplink, mac, uplink6};
pub use self::facts::{Facts, facts};
pub use self::leftovers::{remove_leftover_links, wait_until_gone};
pub use self::listening::{Listening, ListeningSocket};
pub use self::lookup::{Route, Routes};
use self::message::VethEnd;
use self::rtnl::Step;
pub use self::rtnl::{Error, Refusal, Rtnl};
use crate::config::Source;
use crate::names::{IfName, StackName};
use crate::plan::{AppPlan, FamilyPlan, Mac, Plan, UplinkEnd};

/// What the alias of every link of ours in the host's namespace begins with.
pub const ALIAS_PREFIX: &str = "lrpns:";

/// The app's link in its own namespace.
pub const APP_LINK: &str = "eth0";

/// How long [`configure_and_up`] and [`up_app`] wait for the links.
pub const UP_WITHIN: Duration = Duration::from_secs(5);

/// Loopback's index in every network namespace (`LOOPBACK_IFINDEX`, include/net/flow.h).
const LOOPBACK: u32 = 1;

/// RFC 3927.
const LINK_LOCAL: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16);

/// RFC 4291, 2.5.6.
const LINK_LOCAL6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);

/// The alias of `stack`'s link in the host's namespace.
#[must_use]
pub fn alias(stack: &StackName) -> String {
    format!("{ALIAS_PREFIX}{stack}")
}

/// A namespace that is not the host's.
#[derive(Debug, Clone, Copy)]
pub struct Endpoint<'a> {
    /// A connection by a socket that was made inside it.
    pub rtnl: &'a Rtnl,
    /// The namespace itself, for links to be born in.
    pub netns: BorrowedFd<'a>,
}

/// The indices of a stack's links, made by [`create`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Links {
    /// The uplink's end in the host's namespace.
    pub host: u32,
    /// The uplink's end in the sidecar's namespace.
    pub uplink: u32,
    /// The bridge in the sidecar's namespace.
    pub bridge: u32,
    /// Each app's links, by its bridge port: an app may be there twice.
    pub apps: BTreeMap<IfName, AppLinks>,
}

/// The indices of one app's links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppLinks {
    /// The bridge's port, in the sidecar's namespace.
    pub port: u32,
    /// `eth0`, in the app's namespace.
    pub eth0: u32,
}

/// Makes every link of the stack, down. `apps` are the namespaces of `plan.apps`, in the same order.
///
/// # Errors
/// [`Error`] names the step. What was made until then goes with the namespaces.
///
/// # Panics
/// `apps` has another length than `plan.apps`.
pub async fn create(
    plan: &Plan,
    host: &Rtnl,
    sidecar: Endpoint<'_>,
    apps: &[Endpoint<'_>],
) -> Result<Links, Error> {
    assert_eq!(apps.len(), plan.apps.len(), "one namespace for each app");
    let bridge = create_bridge(plan, sidecar).await?;
    let (host_link, uplink) = create_uplink(plan, host, sidecar).await?;
    let mut links = Links {
        host: host_link,
        uplink,
        bridge,
        apps: BTreeMap::new(),
    };
    for (app, end) in plan.apps.iter().zip(apps) {
        create_app(app, sidecar, *end, &mut links).await?;
    }
    Ok(links)
}

async fn create_bridge(plan: &Plan, sidecar: Endpoint<'_>) -> Result<u32, Error> {
    let name = plan.bridge.name.as_str();
    let create = Step::create(
        format!("create bridge {name}"),
        message::new_bridge(name, plan.bridge.mac),
    );
    let [index] = sidecar
        .rtnl
        .create_links("sidecar", vec![create], [name])
        .await?;
    sidecar
        .rtnl
        .run("sidecar", vec![no_ipv6(index, name)])
        .await?;
    Ok(index)
}

async fn create_uplink(
    plan: &Plan,
    host: &Rtnl,
    sidecar: Endpoint<'_>,
) -> Result<(u32, u32), Error> {
    let near = VethEnd {
        name: plan.uplink.host_link.as_str(),
        mac: plan.uplink.host_mac,
    };
    let far = VethEnd {
        name: plan.uplink.sidecar_link.as_str(),
        mac: plan.uplink.sidecar_mac,
    };
    let create = Step::create(
        format!(
            "create link {} with its peer {} in the sidecar's namespace",
            near.name, far.name
        ),
        message::new_veth(&near, None, &far, sidecar.netns),
    );
    let [host_link] = host.create_links("host", vec![create], [near.name]).await?;
    let alias = alias(&plan.stack);
    let mut steps = vec![
        Step::on(
            format!("set the alias of link {} to {alias}", near.name),
            message::alias(host_link, &alias),
        ),
        no_ipv6(host_link, near.name),
    ];
    if plan.uplink.ends_at == UplinkEnd::Host {
        steps.push(Step::on(
            format!("set what link {} believes of IPv4", near.name),
            message::ipv4_settings(host_link, AT_HOST.map(|(_, index, value)| (index, value))),
        ));
    }
    host.run("host", steps).await?;
    // The relay's namespace is set so as a whole.
    if plan.has_ipv6() && plan.uplink.ends_at == UplinkEnd::Host {
        ipv6_as_planned(near.name)?;
    }
    let [uplink] = sidecar
        .rtnl
        .create_links("sidecar", vec![], [far.name])
        .await?;
    sidecar
        .rtnl
        .run("sidecar", vec![no_ipv6(uplink, far.name)])
        .await?;
    Ok((host_link, uplink))
}

/// Makes one app's links, down, if it is to have any, and notes them in `links`; `app` is the app's namespace.
///
/// # Errors
/// [`Error`] names the step.
pub async fn create_app(
    plan: &AppPlan,
    sidecar: Endpoint<'_>,
    app: Endpoint<'_>,
    links: &mut Links,
) -> Result<(), Error> {
    if plan.via_socket {
        return Ok(());
    }
    let namespace = in_app(plan);
    let port = VethEnd {
        name: plan.port_link.as_str(),
        mac: port_mac(plan),
    };
    let eth0 = VethEnd {
        name: APP_LINK,
        mac: plan.mac,
    };
    let create = Step::create(
        format!(
            "create bridge port {} with its peer {APP_LINK} in the namespace of {namespace}",
            port.name
        ),
        message::new_veth(&port, Some(links.bridge), &eth0, app.netns),
    );
    let [port_index] = sidecar
        .rtnl
        .create_links("sidecar", vec![create], [port.name])
        .await?;
    sidecar
        .rtnl
        .run(
            "sidecar",
            vec![
                Step::on(
                    format!("isolate bridge port {}", port.name),
                    message::port_flags(port_index),
                ),
                Step::replace(
                    format!("bind {} to bridge port {}", plan.mac, port.name),
                    message::new_fdb_entry(port_index, plan.mac),
                ),
                no_ipv6(port_index, port.name),
            ],
        )
        .await?;
    let [eth0_index] = app
        .rtnl
        .create_links(&namespace, vec![], [APP_LINK])
        .await?;
    app.rtnl
        .run(&namespace, vec![no_ipv6(eth0_index, APP_LINK)])
        .await?;
    links.apps.insert(
        plan.port_link.clone(),
        AppLinks {
            port: port_index,
            eth0: eth0_index,
        },
    );
    Ok(())
}

/// Gives every link its addresses, neighbours and routes, sets it up and waits until it is. Only for a sidecar whose rules
/// are loaded. `apps` are the namespaces of `plan.apps`, in the same order.
///
/// # Errors
/// [`Error::NotUp`] when a link isn't up within [`UP_WITHIN`]; any other [`Error`] names the step.
///
/// # Panics
/// `apps` has another length than `plan.apps`, or `links` were made for another plan.
pub async fn configure_and_up(
    plan: &Plan,
    host: &Rtnl,
    sidecar: Endpoint<'_>,
    apps: &[Endpoint<'_>],
    links: &Links,
) -> Result<(), Error> {
    assert_eq!(apps.len(), plan.apps.len(), "one namespace for each app");
    configure_sidecar(plan, sidecar, links).await?;
    configure_host(plan, host, links).await?;
    for (app, end) in plan.apps.iter().zip(apps) {
        configure_app(plan, app, sidecar, *end, links).await?;
    }

    let deadline = Instant::now() + UP_WITHIN;
    let host_link = [(links.host, plan.uplink.host_link.as_str())];
    host.wait_up("host", &host_link, deadline, UP_WITHIN)
        .await?;
    let ends = plan.apps.iter().zip(apps);
    for (app, end) in ends.filter(|(app, _)| !app.via_socket) {
        let eth0 = [(links.apps[&app.port_link].eth0, APP_LINK)];
        end.rtnl
            .wait_up(&in_app(app), &eth0, deadline, UP_WITHIN)
            .await?;
    }
    let mut inside = vec![(links.uplink, plan.uplink.sidecar_link.as_str())];
    for app in plan.linked_apps() {
        inside.push((links.apps[&app.port_link].port, app.port_link.as_str()));
    }
    // The bridge comes last: it has a carrier once a port has, and without a port none.
    if plan.linked_apps().next().is_some() {
        inside.push((links.bridge, plan.bridge.name.as_str()));
    }
    sidecar
        .rtnl
        .wait_up("sidecar", &inside, deadline, UP_WITHIN)
        .await
}

/// As [`configure_and_up`], for one app that joins a stack which is up: after [`create_app`] and after the sidecar's
/// rules know of it.
///
/// # Errors
/// As [`configure_and_up`].
///
/// # Panics
/// `links` has no such app.
pub async fn up_app(
    plan: &Plan,
    app: &AppPlan,
    sidecar: Endpoint<'_>,
    end: Endpoint<'_>,
    links: &Links,
) -> Result<(), Error> {
    configure_app(plan, app, sidecar, end, links).await?;
    if app.via_socket {
        return Ok(());
    }
    let deadline = Instant::now() + UP_WITHIN;
    let ours = links.apps[&app.port_link];
    end.rtnl
        .wait_up(&in_app(app), &[(ours.eth0, APP_LINK)], deadline, UP_WITHIN)
        .await?;
    let inside = [
        (ours.port, app.port_link.as_str()),
        (links.bridge, plan.bridge.name.as_str()),
    ];
    sidecar
        .rtnl
        .wait_up("sidecar", &inside, deadline, UP_WITHIN)
        .await
}

async fn configure_sidecar(plan: &Plan, sidecar: Endpoint<'_>, links: &Links) -> Result<(), Error> {
    let (bridge, uplink) = (&plan.bridge, &plan.uplink);
    let uplink_name = uplink.sidecar_link.as_str();
    let mut steps = vec![
        loopback(),
        set_up(links.bridge, bridge.name.as_str()),
        set_up(links.uplink, uplink_name),
    ];
    for family in plan.families() {
        let FamilyPlan {
            bridge: address,
            subnet,
            host,
            sidecar,
        } = family;
        steps.extend(give(
            links.bridge,
            bridge.name.as_str(),
            address,
            subnet.prefix_len(),
        ));
        steps.extend(give(links.uplink, uplink_name, sidecar, family.bits() - 1));
        steps.extend(peer(links.uplink, host, uplink.host_mac));
        steps.push(Step::create(
            format!("route everything else to {host}"),
            message::new_default_route(links.uplink, host),
        ));
        steps.push(Step::create(
            format!("make the rest of {subnet} unreachable"),
            message::new_unreachable_route(subnet),
        ));
    }
    sidecar.rtnl.run("sidecar", steps).await?;
    Ok(())
}

async fn configure_host(plan: &Plan, host: &Rtnl, links: &Links) -> Result<(), Error> {
    let uplink = &plan.uplink;
    let name = uplink.host_link.as_str();
    let mut steps = vec![set_up(links.host, name)];
    for family in plan.families() {
        steps.extend(give(links.host, name, family.host, family.bits() - 1));
        steps.extend(peer(links.host, family.sidecar, uplink.sidecar_mac));
    }
    if uplink.ends_at == UplinkEnd::Relay {
        steps.insert(0, loopback());
        steps.extend(own_every_address(plan));
    }
    host.run("host", steps).await?;
    Ok(())
}

/// In the relay's namespace every address is local but the sidecar's end of the uplink: so the relay may dial as any
/// client, without a capability, the answers come back to it, and it reaches nothing but the sidecar. What is local there
/// is also an IPv4 source that no packet from outside may have.
///
/// Two ranges of each family are left out, as clients that no app is to see: the stack's own, and link-local addresses.
///
/// The first rule makes the kernel look into the table of local addresses by itself, before any other: without one it
/// has merged that table with the main one (`fib_unmerge`, net/ipv4/fib_trie.c).
///
/// IPv6 takes no address for its own that only a route makes local (`ipv6_chk_addr`, net/ipv6/addrconf.c), so there
/// `net.ipv6.ip_nonlocal_bind` lets the relay bind any (`crate::part::namespaces`); what is left out is refused by rules to
/// whoever dials with it, at once.
fn own_every_address(plan: &Plan) -> Vec<Step> {
    let mut steps = vec![];
    for family in plan.families() {
        let sidecar = IpNet::from(family.sidecar);
        steps.push(Step::create(
            format!("look for {sidecar} in the main table"),
            message::new_rule_to_main(sidecar, 2),
        ));
    }
    for net in refused_to_relay(plan) {
        steps.push(Step::create(
            format!("refuse what has a source of {net}"),
            message::new_rule_unreachable_from(net, 1),
        ));
    }
    steps.extend(local_to_relay(plan).into_iter().map(|route| match route {
        LocalRoute::Throw(net) => Step::create(
            format!("take {net} out of the local addresses"),
            message::new_throw_from_local(net),
        ),
        LocalRoute::Local(net) => Step::create(
            format!("make {net} local"),
            message::new_local_route(net, LOOPBACK),
        ),
    }));
    steps
}

/// A route of the relay's table of local addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalRoute {
    /// All of this is an address of its own.
    Local(IpNet),
    /// Nothing of this is.
    Throw(IpNet),
}

/// What the relay's namespace has in its table of local addresses beside the kernel's own.
#[must_use]
pub fn local_to_relay(plan: &Plan) -> Vec<LocalRoute> {
    let mut routes = vec![];
    for family in plan.families() {
        let (sidecar, foreign) = (IpNet::from(family.sidecar), foreign_to(&family));
        let [_, link_local] = foreign;
        let everywhere = match sidecar {
            IpNet::V4(_) => IpNet::V4(Default::default()),
            IpNet::V6(_) => IpNet::V6(Default::default()),
        };
        routes.extend([sidecar].into_iter().chain(foreign).map(LocalRoute::Throw));
        // A link-local destination is one that was listed by itself.
        let granted = egress_nets(plan).filter(|net| link_local.contains(net));
        routes.extend(granted.chain([everywhere]).map(LocalRoute::Local));
    }
    routes
}

/// The sources that nobody may have in the relay's namespace: of IPv6, where no route keeps anybody from binding them.
#[must_use]
pub fn refused_to_relay(plan: &Plan) -> Vec<IpNet> {
    let families = plan.families().into_iter();
    let six = families.filter(|family| family.sidecar.is_ipv6());
    six.flat_map(|family| foreign_to(&family)).collect()
}

/// Whose addresses the relay can't dial from, where it dials as its clients: they are not local in its namespace.
#[must_use]
pub fn foreign(plan: &Plan) -> Vec<IpNet> {
    let families = plan.families().into_iter();
    families
        .flat_map(|family| {
            let sidecar = IpNet::from(family.sidecar);
            [sidecar].into_iter().chain(foreign_to(&family))
        })
        .collect()
}

/// The stack's own, and link-local ones.
fn foreign_to(family: &FamilyPlan) -> [IpNet; 2] {
    let link_local = match family.bridge {
        IpAddr::V4(_) => LINK_LOCAL.into(),
        IpAddr::V6(_) => LINK_LOCAL6.into(),
    };
    [family.subnet, link_local]
}

/// The destinations of egress by relay, each once.
fn egress_nets(plan: &Plan) -> impl Iterator<Item = IpNet> {
    let by_relay = plan.egress_relay().is_some();
    let nets = plan
        .granted()
        .filter(move |_| by_relay)
        .map(|egress| egress.to);
    nets.collect::<BTreeSet<IpNet>>().into_iter()
}

async fn configure_app(
    plan: &Plan,
    app: &AppPlan,
    sidecar: Endpoint<'_>,
    end: Endpoint<'_>,
    links: &Links,
) -> Result<(), Error> {
    if app.via_socket {
        let uplink = plan.uplink.sidecar_link.as_str();
        let given = app.addresses();
        let given = given.flat_map(|address| give(links.uplink, uplink, address, whole(address)));
        sidecar.rtnl.run("sidecar", given.collect()).await?;
        end.rtnl.run(&in_app(app), vec![loopback()]).await?;
        return Ok(());
    }
    let ours = links.apps[&app.port_link];
    let bridge = &plan.bridge;

    let mut steps = vec![set_up(ours.port, app.port_link.as_str())];
    for address in app.addresses() {
        steps.extend(peer(links.bridge, address, app.mac));
    }
    sidecar.rtnl.run("sidecar", steps).await?;

    let mut steps = vec![loopback(), set_up(ours.eth0, APP_LINK)];
    for family in plan.families() {
        if let Some(address) = family.app(app) {
            let length = family.subnet.prefix_len();
            steps.extend(give(ours.eth0, APP_LINK, address, length));
            steps.extend(peer(ours.eth0, family.bridge, bridge.mac));
        }
    }
    let mine = routes(plan, app);
    steps.extend(mine.iter().map(|route| route.add(ours.eth0)));
    end.rtnl.run(&in_app(app), steps).await?;
    Ok(())
}

/// A route of an app's, by the sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AppRoute {
    net: IpNet,
    gateway: IpAddr,
}

impl AppRoute {
    /// Where it leads.
    #[must_use]
    pub fn net(&self) -> IpNet {
        self.net
    }

    /// By whom.
    #[must_use]
    pub fn gateway(&self) -> IpAddr {
        self.gateway
    }

    fn add(self, link: u32) -> Step {
        Step::create(
            format!("route {} to {}", self.net, self.gateway),
            message::new_route_by(link, self.net, self.gateway),
        )
    }

    fn delete(self, link: u32) -> Step {
        Step::on(
            format!("remove the route of {} to {}", self.net, self.gateway),
            message::delete_route_by(link, self.net, self.gateway),
        )
    }
}

/// Where an app has a route to, by the sidecar.
#[must_use]
pub fn routes(plan: &Plan, app: &AppPlan) -> BTreeSet<AppRoute> {
    let mut found = BTreeSet::new();
    if app.via_socket {
        return found;
    }
    for family in plan.families() {
        let linked = plan.linked(app).flat_map(AppPlan::known_at);
        let nets = app.routes().into_iter().chain(linked.map(IpNet::from));
        let mut nets: Vec<IpNet> = nets.filter(|net| family.has(net.addr())).collect();
        if family.bridge.is_ipv6() && app.source == Source::Client {
            nets.push(IpNet::V6(Default::default()));
        }
        let gateway = family.bridge;
        found.extend(nets.into_iter().map(|net| AppRoute { net, gateway }));
    }
    found
}

/// Gives an app that is up the routes of `new` in place of those of `old`; what is so already is no error. New ones come
/// before others go.
///
/// # Errors
/// [`Error`] names the step.
///
/// # Panics
/// `links` has no such app.
pub async fn change_routes(
    app: &AppPlan,
    end: Endpoint<'_>,
    links: &Links,
    old: &BTreeSet<AppRoute>,
    new: &BTreeSet<AppRoute>,
) -> Result<(), Error> {
    let link = links.apps[&app.port_link].eth0;
    let add = new.difference(old);
    let mut steps: Vec<Step> = add.map(|r| r.add(link).or(Errno::EEXIST)).collect();
    let delete = old.difference(new);
    steps.extend(delete.map(|r| r.delete(link).or(Errno::ESRCH)));
    end.rtnl.run(&in_app(app), steps).await?;
    Ok(())
}

/// Takes one app out of a stack that stays: afterwards its port, its route and its neighbour entry are gone from the
/// sidecar's namespace and `eth0` from its own, so the same names can come back at once. What is gone already is no error.
///
/// # Errors
/// [`Error`] names the step.
pub async fn remove_app(
    app: &AppPlan,
    sidecar: Endpoint<'_>,
    links: &mut Links,
) -> Result<(), Error> {
    let mut steps = Vec::new();
    for address in app.addresses().filter(|_| app.via_socket) {
        let what = format!("take the address {address} off the uplink");
        let delete = message::delete_address(links.uplink, address, whole(address));
        steps.push(Step::on(what, delete).or(Errno::EADDRNOTAVAIL));
    }
    for address in app.addresses().filter(|_| !app.via_socket) {
        steps.push(
            Step::on(
                format!("remove the route to {address}"),
                message::delete_host_route(links.bridge, address),
            )
            .or(Errno::ESRCH),
        );
        steps.push(
            Step::on(
                format!("forget neighbour {address}"),
                message::delete_neighbour(links.bridge, address),
            )
            .or(Errno::ENOENT),
        );
    }
    // By index, and from then on unknown: an index comes back as little as a pid does, but it may.
    if let Some(ours) = links.apps.remove(&app.port_link) {
        steps.push(
            Step::on(
                format!("remove bridge port {}", app.port_link),
                message::delete_link(ours.port),
            )
            .or(Errno::ENODEV),
        );
    }
    sidecar.rtnl.run("sidecar", steps).await?;
    Ok(())
}

/// Removes a link of ours that a crash left in the host's namespace. That it is not there is success.
///
/// # Errors
/// [`Error::NotOurs`] when the link's alias doesn't begin with [`ALIAS_PREFIX`]; any other [`Error`] names the step.
pub async fn remove_link(host: &Rtnl, name: &str) -> Result<(), Error> {
    let Some(link) = host.link("host", name).await? else {
        return Ok(());
    };
    let alias = link
        .attributes
        .into_iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfAlias(alias) => Some(alias),
            _ => None,
        });
    if !alias
        .as_deref()
        .is_some_and(|a| a.starts_with(ALIAS_PREFIX))
    {
        return Err(Error::NotOurs {
            link: name.to_owned(),
            alias,
        });
    }
    // By the index of the link that was looked at, which its kernel may be about to remove by itself.
    let remove = Step::on(
        format!("remove link {name}"),
        message::delete_link(link.header.index),
    )
    .or(Errno::ENODEV);
    host.run("host", vec![remove]).await?;
    Ok(())
}

/// The bits of an address.
fn whole(address: IpAddr) -> u8 {
    IpNet::from(address).max_prefix_len()
}

fn in_app(app: &AppPlan) -> String {
    format!("app {}", app.name)
}

/// The port's own link-layer address: not the app's, which the bridge would take for its own then, and different from
/// every one that [`mac`] makes.
#[must_use]
pub fn port_mac(app: &AppPlan) -> Mac {
    let mut mac = app.mac;
    mac.0[0] ^= 0b100;
    mac
}

fn loopback() -> Step {
    Step::on("set link lo up", message::up(LOOPBACK, true))
}

fn set_up(index: u32, name: &str) -> Step {
    Step::on(format!("set link {name} up"), message::up(index, false))
}

/// After the link is up. That packets to an IPv6 address are for us the kernel learns from a worker
/// (`addrconf_dad_work`, net/ipv6/addrconf.c), also where there is nothing to detect; a connection that comes before
/// that loses its first segment. So it is said here as well.
fn give(index: u32, name: &str, address: IpAddr, prefix: u8) -> Vec<Step> {
    let mut steps = vec![Step::create(
        format!("give link {name} the address {address}/{prefix}"),
        message::new_address(index, address, prefix),
    )];
    if address.is_ipv6() {
        steps.push(Step::create(
            format!("take what comes to {address}"),
            message::new_local_route(address.into(), index),
        ));
    }
    steps
}

/// After the link is up: a change of `IFF_NOARP` forgets the link's neighbours (`arp_netdev_event`), and a link that is
/// down takes no route.
fn peer(index: u32, address: IpAddr, mac: Mac) -> [Step; 2] {
    [
        Step::replace(
            format!("bind {address} to {mac}"),
            message::new_neighbour(index, address, mac),
        ),
        Step::create(
            format!("route {address} to its link"),
            message::new_host_route(index, address),
        ),
    ]
}

/// Our link in the host's namespace was born with the host's defaults for IPv4, which may be a router's, or trusting. What
/// comes by it has one source and goes nowhere by itself: name, number (`IPV4_DEVCONF_*` of linux/ip.h) and value.
const AT_HOST: [(&str, u16, u32); 10] = [
    ("proxy_arp", 3, 0),
    ("accept_redirects", 4, 0),
    ("secure_redirects", 5, 0),
    ("send_redirects", 6, 0),
    // The stricter of this and `all` counts, and 2 is the looser one.
    ("rp_filter", 8, 1),
    ("accept_source_route", 9, 0),
    ("accept_local", 23, 0),
    ("proxy_arp_pvlan", 25, 0),
    ("route_localnet", 26, 0),
    ("bc_forwarding", 32, 0),
];

/// Settings of one link, by name.
pub type Settings = Vec<(&'static str, String)>;

/// What our link in the host's namespace is set to by IPv4 and by IPv6, where it is there.
#[must_use]
pub fn settings_at_host(plan: &Plan) -> (Settings, Settings) {
    let four = AT_HOST.map(|(name, _, value)| (name, value.to_string()));
    let six = AT_HOST6
        .iter()
        .filter(|(name, _)| plan.has_ipv6() && !OF_ALL_LINKS.contains(name));
    let six = six.map(|(name, value)| (*name, (*value).to_owned()));
    (four.into(), six.collect())
}

/// Our link in the host's namespace was born with the host's defaults for IPv6. It alone is set otherwise: it has IPv6 even
/// where links have none by default; believes no router; and joins no group of routers, since that sends packets, even
/// where the host is one. What is forwarded over it is decided by `conf/all` only (`ip6_forward`, net/ipv6/ip6_output.c).
const AT_HOST6: [(&str, &str); 8] = [
    ("disable_ipv6", "0"),
    // The second version also reports that a group was left, which the next setting may do.
    ("force_mld_version", "1"),
    ("forwarding", "0"),
    ("accept_ra", "0"),
    ("autoconf", "0"),
    ("accept_redirects", "0"),
    ("accept_dad", "0"),
    ("proxy_ndp", "0"),
];

/// What the host sets on all links at once when it is to forward.
const OF_ALL_LINKS: [&str; 1] = ["forwarding"];

fn ipv6_as_planned(link: &str) -> Result<(), Error> {
    for (name, value) in AT_HOST6 {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{link}/{name}"), value).map_err(
            |source| Error::Setting {
                name,
                link: link.to_owned(),
                value,
                source,
            },
        )?;
    }
    Ok(())
}

/// A kernel that was started without IPv6 has nothing to switch off and says `EAFNOSUPPORT`.
fn no_ipv6(index: u32, name: &str) -> Step {
    Step::on(
        format!("switch IPv6 address generation of link {name} off"),
        message::no_ipv6_addresses(index),
    )
    .or(Errno::EAFNOSUPPORT)
}

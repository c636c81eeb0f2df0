//! What the kernel tells anybody who asks: who listens, the ways that packets go, settings.
#![forbid(unsafe_code)]

use std::io;
use std::net::{IpAddr, SocketAddr};

use super::place::Place;
use super::seen::Site;
use crate::config::Protocol;
use crate::net::{Listening, Route, Routes};

/// What [`Case`](super::judge::Case) asks beside what was seen.
pub(super) trait Asked {
    /// Whether somebody in the host takes what comes there; `None` if nobody tells.
    fn host_listens(&self, protocol: Protocol, at: SocketAddr) -> Option<bool>;
    /// Whether this app takes what comes there; `None` if nobody tells.
    fn app_listens(&self, app: &str, protocol: Protocol, at: SocketAddr) -> Option<bool>;
    /// How a link of this namespace is called.
    fn link_name(&self, site: Site, link: u32) -> Option<String>;
    /// The way of what comes from the first address by that link, to the second.
    fn route(&self, site: Site, way: (IpAddr, IpAddr), link: u32) -> io::Result<Route>;
    /// The host's own way to an address.
    fn way_back(&self, to: IpAddr) -> io::Result<Route>;
    /// A number below /proc/sys/net, the host's.
    fn setting(&self, name: &str) -> Option<u64>;
}

/// Who listens, to be asked at any time.
#[derive(Default)]
pub(super) struct Listeners {
    /// In the host; nobody tells without root.
    pub(super) host: Option<Listening>,
    /// In each app that runs, by its name.
    pub(super) apps: Vec<(String, Listening)>,
}

/// The kernel itself.
pub(super) struct Kernel<'a> {
    pub(super) places: &'a [Place],
    pub(super) listeners: &'a Listeners,
}

impl Kernel<'_> {
    fn routes(&self, site: Site) -> io::Result<&Routes> {
        let mut places = self.places.iter();
        let place = places.find(|place| place.sight.site == site);
        let place = place.ok_or(io::ErrorKind::NotFound)?;
        Ok(&place.routes)
    }
}

/// Whether one of its sockets takes what comes there.
fn takes(listening: &Listening, protocol: Protocol, at: SocketAddr) -> Option<bool> {
    let sockets = listening.of(protocol).ok()?;
    Some(sockets.iter().any(|socket| socket.takes(at)))
}

impl Asked for Kernel<'_> {
    fn host_listens(&self, protocol: Protocol, at: SocketAddr) -> Option<bool> {
        takes(self.listeners.host.as_ref()?, protocol, at)
    }

    fn app_listens(&self, app: &str, protocol: Protocol, at: SocketAddr) -> Option<bool> {
        let mut all = self.listeners.apps.iter();
        let (_, listening) = all.find(|(name, _)| name == app)?;
        takes(listening, protocol, at)
    }

    fn link_name(&self, site: Site, link: u32) -> Option<String> {
        // Of the namespace in which the socket was made.
        let routes = self.routes(site).ok()?;
        rustix::net::netdevice::index_to_name(routes, link).ok()
    }

    fn route(&self, site: Site, (from, to): (IpAddr, IpAddr), link: u32) -> io::Result<Route> {
        self.routes(site)?.of(from, to, link)
    }

    fn way_back(&self, to: IpAddr) -> io::Result<Route> {
        self.routes(Site::Host)?.to(to)
    }

    fn setting(&self, name: &str) -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/sys/net/{name}")).ok()?;
        text.trim().parse().ok()
    }
}

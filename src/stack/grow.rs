//! Another plan on the same namespaces: apps that join and leave, and routes to what is granted or granted no more.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::SocketAddrAny;

use super::error::StackError;
use super::ground::{AppGround, Ground};
use super::mounts::{Kept, Open};
use super::within;
use crate::firewall;
use crate::net;
use crate::net::publish::{self, Listener};
use crate::part::cgroup::Entrance;
use crate::plan::{AppPlan, Plan};
use crate::protocol::Role;

impl Ground {
    /// The same namespaces for another plan of the same stack, and more for the apps that are new, whose links are down.
    /// `new` are the listeners of its new ports; `open` does what takes power over the host.
    ///
    /// # Errors
    /// [`StackError`] when a volume that is new can't be had, or something of a new app's; then nothing is left of it.
    pub async fn changed(
        &self,
        plan: Plan,
        new: &[Listener],
        open: &mut impl Open,
    ) -> Result<Self, StackError> {
        let mut next = self.clone();
        self.compile(&plan, Some(&self.plan)).await?;
        let apps = plan.apps.iter().zip(&self.plan.apps).zip(&mut next.apps);
        for (index, ((app, before), ground)) in apps.enumerate() {
            if !app.is_given_as(before) {
                let opened = open.open(&plan, index).await?;
                ground.kept = Arc::new(Kept::of(opened));
            }
        }
        next.listeners = plan
            .published()
            .filter_map(|(_, publish)| {
                let mut known = self.listeners.iter().chain(new);
                let mut listener = known
                    .find(|listener| listener.outside() == publish.outside())?
                    .clone();
                listener.target = publish::target(&plan, publish);
                Some(listener)
            })
            .collect();
        for (index, app) in plan.apps.iter().enumerate().skip(self.apps.len()) {
            let ground = AppGround::make(next.next_number, index, &plan, open).await?;
            ground.handed.sound(app, &self.sidecar).await?;
            next.next_number += 1;
            next.apps.push(ground);
        }
        next.plan = plan;
        let joining = self.plan.apps.len()..next.plan.apps.len();
        let made = async {
            for index in joining.clone() {
                let name = next.plan.apps[index].own_name();
                let room = open.room(&next.plan, index, &name).await?;
                next.make_room(index, room).await?;
            }
            Ok(())
        };
        let made = made.await;
        if made.is_err() {
            for index in joining.clone() {
                let name = next.plan.apps[index].own_name();
                let _ = open.vacate(&next.plan, &name).await;
            }
            let _ = next.remove(joining).await;
        }
        made.map(|()| next)
    }

    /// What an app needs beside its namespaces.
    pub(super) async fn make_room(
        &mut self,
        index: usize,
        room: Option<Entrance>,
    ) -> Result<(), StackError> {
        let app = &self.plan.apps[index];
        if let Some(room) = room {
            let cgroups = self.cgroups.with(&self.plan.cgroup, &app.own_name(), room);
            self.cgroups = Arc::new(cgroups);
        }
        let mut links = self.links.clone();
        let made = within("make the links", async {
            let (sidecar, end) = (self.sidecar_end(), self.apps[index].end());
            Ok(net::create_app(app, sidecar, end, &mut links).await?)
        });
        made.await?;
        self.links = links;
        Ok(())
    }

    /// Lets packets through the links of an app that joins; the rules must be in force.
    ///
    /// # Errors
    /// [`StackError::Net`].
    pub async fn join(&self, index: usize) -> Result<(), StackError> {
        let app = &self.plan.apps[index];
        let (sidecar, end) = (self.sidecar_end(), self.apps[index].end());
        within("links", async {
            Ok(net::up_app(&self.plan, app, sidecar, end, &self.links).await?)
        })
        .await
    }

    /// Gives every app that `other` has too, in the same place, the routes of both; what is there already is no error.
    ///
    /// # Errors
    /// [`StackError::Net`].
    pub async fn add_routes(&self, other: &Ground) -> Result<(), StackError> {
        for (index, app, (own, its)) in self.routes_beside(other) {
            let (end, all) = (self.apps[index].end(), &own | &its);
            within("routes", async {
                Ok(net::change_routes(app, end, &self.links, &its, &all).await?)
            })
            .await?;
        }
        Ok(())
    }

    /// The end of [`Ground::add_routes`]: of the routes of both, ours are left.
    ///
    /// # Errors
    /// [`StackError::Net`].
    pub async fn only_own_routes(&self, other: &Ground) -> Result<(), StackError> {
        for (index, app, (own, its)) in self.routes_beside(other) {
            let (end, all) = (self.apps[index].end(), &own | &its);
            within("routes", async {
                Ok(net::change_routes(app, end, &self.links, &all, &own).await?)
            })
            .await?;
        }
        Ok(())
    }

    /// The apps whose routes differ, each with ours and the other's.
    fn routes_beside<'g>(
        &'g self,
        other: &'g Ground,
    ) -> impl Iterator<
        Item = (
            usize,
            &'g AppPlan,
            (BTreeSet<net::AppRoute>, BTreeSet<net::AppRoute>),
        ),
    > {
        let pairs = self.plan.apps.iter().zip(&other.plan.apps).enumerate();
        pairs
            .map(|(index, (app, its))| {
                let routes = (net::routes(&self.plan, app), net::routes(&other.plan, its));
                (index, app, routes)
            })
            .filter(|(_, _, (own, its))| own != its)
    }

    /// Forgets the connections that apps have made and by this plan may make no more; its rules must be in force.
    ///
    /// # Errors
    /// [`StackError`].
    pub async fn forget_ungranted(&self) -> Result<(), StackError> {
        let grants = firewall::grants(&self.plan);
        self.load(Role::Forgetter { grants }).await
    }

    /// The first address and port of these that somebody in an app's network namespace can connect to by TCP.
    ///
    /// # Errors
    /// [`StackError::Io`] when no socket is to be had.
    pub async fn reached(
        &self,
        index: usize,
        targets: &[SocketAddr],
        within: Duration,
    ) -> Result<Option<SocketAddr>, StackError> {
        for target in targets {
            let family = SocketAddrAny::from(*target).address_family();
            let socket = self.apps[index].namespaces.tcp_socket(family).await;
            let socket = socket.map_err(|source| StackError::Io {
                what: "make a socket in an app's network namespace",
                source,
            })?;
            let socket = tokio::net::TcpSocket::from_std_stream(socket.into());
            let connected = tokio::time::timeout(within, socket.connect(*target)).await;
            if matches!(connected, Ok(Ok(_))) {
                return Ok(Some(*target));
            }
        }
        Ok(None)
    }

    /// The same without apps, which have ended for good; then [`Ground::remove`] takes away what they had.
    #[must_use]
    pub fn without(&self, apps: &[usize]) -> Self {
        fn others<T: Clone>(all: &[T], apps: &[usize]) -> Vec<T> {
            let all = all.iter().enumerate();
            let others = all.filter(|(index, _)| !apps.contains(index));
            others.map(|(_, one)| one.clone()).collect()
        }
        let mut next = self.clone();
        for index in apps {
            let app = &self.plan.apps[*index];
            next.links.apps.remove(&app.port_link);
        }
        next.plan.apps = others(&self.plan.apps, apps);
        for index in apps {
            let app = &self.plan.apps[*index];
            // Of one that was replaced the next one may have it again.
            if next.plan.app(&app.name).is_none() {
                let cgroups = next.cgroups.without(&app.own_name());
                next.cgroups = Arc::new(cgroups.without(&app.others_name()));
            }
        }
        next.apps = others(&self.apps, apps);
        next
    }

    /// Takes away the links of apps that have ended for good; what is gone is no error. All is tried, and the first error told.
    /// Their cgroups are taken away by who has made them ([`Open::vacate`]).
    ///
    /// # Errors
    /// [`StackError::Net`].
    pub async fn remove(&self, apps: impl IntoIterator<Item = usize>) -> Result<(), StackError> {
        let mut first = Ok(());
        for index in apps {
            let app = &self.plan.apps[index];
            let mut links = self.links.clone();
            let removed = net::remove_app(app, self.sidecar_end(), &mut links).await;
            first = first.and(removed.map_err(StackError::from));
        }
        first
    }
}

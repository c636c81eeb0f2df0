//! Another of an app beside it: what both are in, while one takes the other's place ([`crate::plan::Turn`]).
//!
//! # Theory of operation
//!
//! The new one has processes, mounts, a network namespace, an address, a bridge port and a cgroup of its own. The user
//! namespace is the old one's: who is supervisor has dropped what mapping ids takes, and both are the same app, with the
//! same ids, in namespaces of processes in which neither sees the other. Its cgroup is made, and removed, by who asks for
//! the replacement ([`crate::part::cgroup::add`]): the supervisor has dropped what that takes.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use super::{AppGround, Ground, Listening, PartId, Rtnl, StackError};
use crate::config::Source;
use crate::names::PartName;
use crate::part::cgroup::Entrance;
use crate::part::namespaces::Network;
use crate::plan::{AppPlan, Plan, Turn};

/// For what the sidecar had let through when the rules changed, and which is still on its way: it passes two links of this
/// machine, and nobody tells when it is there.
const ARRIVES_WITHIN: Duration = Duration::from_millis(50);

impl AppGround {
    async fn another(&self, number: usize, app: &AppPlan, plan: &Plan) -> Result<Self, StackError> {
        let ipv6 = plan.has_ipv6();
        let (name, network) = (app.name.as_str(), Network::App { ipv6 });
        let (namespaces, sockets) = self.namespaces.another(name, network).await?;
        Ok(Self {
            number,
            namespaces: Arc::new(namespaces),
            route: Arc::new(Rtnl::from_fd(sockets.route)?),
            listening: Arc::new(Listening::from_fd(sockets.second)?),
            kept: Arc::clone(&self.kept),
            handed: Arc::clone(&self.handed),
            rules: Arc::default(),
        })
    }
}

impl Ground {
    /// The one of that name whose turn it is.
    #[must_use]
    pub fn in_turn(&self, name: &PartName, turn: Turn) -> Option<PartId> {
        let place = self.plan.place_of(name, turn)?;
        self.apps().nth(place)
    }

    /// The same with another of an app, whose links are down; `None` when the plan has no place for it. `room` is the way into
    /// its cgroup; without one it is in that of one before it.
    ///
    /// # Errors
    /// [`StackError`]; then nothing is left of it.
    pub async fn with_another(
        &self,
        name: &PartName,
        room: Option<Entrance>,
    ) -> Result<Option<Self>, StackError> {
        let mut next = self.clone();
        let Some(serves) = self.plan.place_of(name, Turn::Serves) else {
            return Ok(None);
        };
        let new = self.plan.apps[serves].clone();
        let Some(place) = next.plan.begin(&new) else {
            return Ok(None);
        };
        let app = &next.plan.apps[place];
        let other = &self.apps[serves];
        let another = other.another(next.next_number, app, &next.plan).await?;
        next.apps.push(another);
        next.next_number += 1;
        if let Err(e) = next.make_room(place, room).await {
            let _ = next.remove([place]).await;
            return Err(e);
        }
        Ok(Some(next))
    }

    /// The same once who is new is taken to the other one.
    #[must_use]
    pub fn handed_over(&self, name: &PartName) -> Self {
        let mut next = self.clone();
        next.plan.hand_over(name);
        next
    }

    /// The same with the new one in the place of the old one, which has ended.
    #[must_use]
    pub fn finished(&self, name: &PartName) -> Self {
        let mut plan = self.plan.clone();
        let Some((goes, serves)) = plan.finish(name) else {
            return self.clone();
        };
        let mut next = self.without(&[goes]);
        next.plan = plan;
        next.apps.clone_from(&self.apps);
        next.apps.swap(goes, serves);
        next.apps.remove(serves);
        next
    }

    /// What of an app that is to go is left: its links.
    ///
    /// # Errors
    /// As [`Ground::remove`].
    pub async fn remove_turn(&self, name: &PartName, turn: Turn) -> Result<(), StackError> {
        self.remove(self.plan.place_of(name, turn)).await
    }

    /// The same without the one that comes.
    #[must_use]
    pub fn abandoned(&self, name: &PartName) -> Self {
        match self.plan.place_of(name, Turn::Comes) {
            Some(comes) => self.without(&[comes]),
            None => self.clone(),
        }
    }

    /// The same, where an app is as it is in `other`, which was replaced since.
    #[must_use]
    pub fn seated_as(&self, other: &Ground) -> Self {
        let mut next = self.clone();
        next.plan.seat_as(&other.plan);
        next.links.clone_from(&other.links);
        next.cgroups = Arc::clone(&other.cgroups);
        next.next_number = other.next_number;
        for (app, ground) in next.plan.apps.iter().zip(&mut next.apps) {
            let place = other.plan.apps.iter().position(|its| its.name == app.name);
            if let Some(place) = place {
                let its = &other.apps[place];
                ground.number = its.number;
                ground.namespaces = Arc::clone(&its.namespaces);
                ground.route = Arc::clone(&its.route);
                ground.listening = Arc::clone(&its.listening);
                ground.rules = Arc::clone(&its.rules);
            }
        }
        next
    }

    /// Lets packets through the links of the one that comes, and gives those it is linked with a route to it; the rules
    /// must be in force.
    ///
    /// # Errors
    /// [`StackError::Net`].
    pub async fn join_another(&self, name: &PartName, before: &Ground) -> Result<(), StackError> {
        if let Some(place) = self.plan.place_of(name, Turn::Comes) {
            self.join(place).await?;
        }
        self.add_routes(before).await
    }

    /// Waits until an app has no connection left of those that came to it by TCP.
    ///
    /// # Errors
    /// [`StackError::Net`].
    pub async fn drained(&self, id: PartId) -> Result<(), StackError> {
        let PartId::App(number) = id else {
            return Ok(());
        };
        let Some(place) = self.place(number) else {
            return Ok(());
        };
        let by_loopback = self.plan.apps[place].source == Source::Localhost;
        let has_clients = |its: &Listening| its.has_clients(by_loopback);
        let its = &self.apps[place].listening;
        its.until_none(has_clients).await?;
        tokio::time::sleep(ARRIVES_WITHIN).await;
        Ok(its.until_none(has_clients).await?)
    }
}

//! What a stack has to know of the others on the machine: what is theirs already. It is read of their plans, and no more than
//! that, since there may be hundreds.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;

use serde::Deserialize;

use super::{EgressPlan, EgressVia, IdMap, Plan, PublishPlan};
use crate::config::Egress;
use crate::names::{IfName, PartName, StackName};

/// Another stack, as far as it matters to who wants to be beside it; its fields are those of a [`Plan`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Neighbour {
    /// Its name.
    pub stack: StackName,
    /// Its uplink.
    pub uplink: Uplink,
    /// Its sidecar's ids.
    pub sidecar: IdMap,
    /// How what is granted leaves.
    #[serde(default)]
    pub egress: Option<EgressPlan>,
    /// Its apps.
    pub apps: Vec<App>,
}

/// Its uplink.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Uplink {
    /// The host's address.
    pub host_address: Ipv4Addr,
    /// Its end in the namespace where it ends.
    pub host_link: IfName,
}

/// One of its apps.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct App {
    /// Its name.
    pub name: PartName,
    /// Its ids.
    pub ids: IdMap,
    /// What it publishes.
    pub publish: Vec<PublishPlan>,
    /// What it may reach.
    pub egress: Vec<Egress>,
}

impl From<&Plan> for Neighbour {
    fn from(plan: &Plan) -> Self {
        let app = |app: &super::AppPlan| App {
            name: app.name.clone(),
            ids: app.ids,
            publish: app.publish.clone(),
            egress: app.egress.clone(),
        };
        Self {
            stack: plan.stack.clone(),
            uplink: Uplink {
                host_address: plan.uplink.host_address,
                host_link: plan.uplink.host_link.clone(),
            },
            sidecar: plan.sidecar,
            egress: plan.egress.clone(),
            apps: plan.apps.iter().map(app).collect(),
        }
    }
}

impl Neighbour {
    /// Every published port, with the app it belongs to.
    pub fn published(&self) -> impl Iterator<Item = (&App, &PublishPlan)> {
        let apps = self.apps.iter();
        apps.flat_map(|app| app.publish.iter().map(move |publish| (app, publish)))
    }

    /// Whether what is granted leaves by the host's forwarding.
    #[must_use]
    pub fn leaves_by_nat(&self) -> bool {
        let egress = self.egress.as_ref();
        egress.is_some_and(|egress| egress.via == EgressVia::Nat)
    }
}

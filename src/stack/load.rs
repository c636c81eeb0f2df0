//! Rules, from a plan to the kernel: in the sidecar's network namespace and where the uplink ends.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use nftables::schema::Nftables;

use super::error::StackError;
use super::ground::{EndTable, Ground};
use super::{rules, within, within_limit};
use crate::config::{Protocol, Source};
use crate::firewall::{self, ExtraChange};
use crate::part::container::Container;
use crate::plan::{ExtraObject, Plan};
use crate::protocol::{Role, Start, ToStage};

/// How long nft may take for the user's rules, of which there may be tens of thousands.
const COMPILING: Duration = Duration::from_secs(120);

/// Loads the rules at our link, then the host's. Gives back what this kernel lacks of them.
pub(super) fn load_host_rules(
    plan: &Plan,
    table: &EndTable,
    rules: &Nftables<'static>,
) -> Result<Option<String>, StackError> {
    let (shared, socket) = match table {
        EndTable::Own(socket) => {
            firewall::transact(socket, &firewall::encode(rules)?)?;
            return Ok(None);
        }
        EndTable::Host { shared, at_link } => (shared, at_link),
    };
    let lacks = match firewall::uplink_rules(plan) {
        Some(at_link) => load_uplink_rules(plan, socket, at_link)?,
        None => None,
    };
    shared.enter(plan, rules)?;
    Ok(lacks)
}

fn load_uplink_rules(
    plan: &Plan,
    socket: &firewall::Socket,
    mut at_link: Nftables<'static>,
) -> Result<Option<String>, StackError> {
    match firewall::transact(socket, &firewall::encode_owned(&at_link)?) {
        Err(e) if e.is_unknown_to_the_kernel(firewall::UPLINK_OUT) => {
            firewall::without_chain(&mut at_link, firewall::UPLINK_OUT);
            firewall::transact(socket, &firewall::encode_owned(&at_link)?)?;
            let link = &plan.uplink.host_link;
            Ok(Some(format!(
                "this kernel filters nothing that is sent by a link (Linux 5.16): what shares a bridge with {link} can write \
                 to the sidecar, whose own rules decide alone"
            )))
        }
        loaded => Ok(loaded.map(|()| None)?),
    }
}

impl Ground {
    /// Makes objects of a plan's user's own rules; of what is known already, nothing again.
    pub(super) async fn compile(
        &self,
        plan: &Plan,
        current: Option<&Plan>,
    ) -> Result<(), StackError> {
        if self.compiled.of(plan).is_ok() {
            return Ok(());
        }
        let objects = within_limit(COMPILING, "compile the rules", async {
            Ok(rules::compile(plan, self.program.as_fd(), &self.sidecar).await?)
        });
        self.compiled.keep(plan, objects.await?, current);
        Ok(())
    }

    /// What nft has made of the user's own rules that are in force.
    #[must_use]
    pub fn compiled(&self) -> Arc<[ExtraObject]> {
        self.compiled.of(&self.plan).unwrap_or_default()
    }

    /// Changes the rules in the sidecar's network namespace by one transaction, in a process of its own that is confined
    /// as the sidecar is and ends with it. When this returns the new rules are in force, or the old ones are.
    ///
    /// # Errors
    /// [`StackError::Rules`] names the object that the kernel has refused; the others what kept it from being asked.
    pub async fn load_rules(&self, rules: firewall::Batch) -> Result<(), StackError> {
        self.load(Role::Loader { rules }).await
    }

    /// The rules of the whole plan as they are to be in force now, in one transaction.
    ///
    /// # Errors
    /// [`StackError::Encode`].
    pub fn whole_rules(&self) -> Result<firewall::Batch, StackError> {
        self.batch(&self.plan.in_force(&self.closed()))
    }

    pub(super) fn batch(&self, plan: &Plan) -> Result<firewall::Batch, StackError> {
        let theirs = self.compiled.of(plan)?;
        Ok(firewall::sidecar_batch(plan, &theirs)?)
    }

    /// Puts the rules of a plan in the place of whatever there is.
    ///
    /// # Errors
    /// As [`Ground::load_rules`].
    pub async fn load_plan(&self, plan: &Plan) -> Result<(), StackError> {
        let plan = plan.in_force(&self.closed());
        self.load_rules(self.batch(&plan)?).await
    }

    /// As [`Ground::load_rules`], from the rules of one plan to those of another with the least change; in either without a
    /// way in to apps that are not healthy.
    ///
    /// # Errors
    /// As [`Ground::load_rules`].
    pub async fn update_rules(&self, old: &Plan, new: &Plan) -> Result<(), StackError> {
        let closed = self.closed();
        let (old, new) = (old.in_force(&closed), new.in_force(&closed));
        self.update_exactly(&old, &new).await
    }

    pub(super) async fn update_exactly(&self, old: &Plan, new: &Plan) -> Result<(), StackError> {
        let forget = udp_that_moves(old, new);
        let theirs = ExtraChange::between(&self.compiled.of(old)?, &self.compiled.of(new)?);
        let (old, new) = (firewall::sidecar_rules(old), firewall::sidecar_rules(new));
        if old == new && theirs.is_none() && forget.is_empty() {
            return Ok(());
        }
        self.load(Role::Updater {
            old: Box::new(old),
            new: Box::new(new),
            theirs,
            forget,
        })
        .await
    }

    pub(super) async fn load(&self, role: Role) -> Result<(), StackError> {
        let limits = &self.plan.sidecar_limits;
        let start = Start {
            hostname: format!("{}-loader", self.plan.stack),
            // Beside the sidecar and whoever else loads.
            nproc: self.plan.cgroup.nproc(limits),
            role,
            weaken: None,
        };
        let cgroup = self.cgroups.entrance("sidecar");
        let (title, program) = (self.title("loader"), self.program.as_fd());
        within("load rules", async {
            let loader = Container::spawn(&title, &self.sidecar, program, cgroup).await?;
            loader.send(&ToStage::Start(Box::new(start)), &[]).await?;
            loader.loaded().await?.map_err(StackError::Rules)
        })
        .await
    }
}

/// The entry ports of UDP that lead elsewhere, or nowhere, in the new plan, or to an app that is to see others there.
fn udp_that_moves(old: &Plan, new: &Plan) -> Vec<u16> {
    let ways = |plan: &Plan| -> HashSet<(u16, SocketAddr, bool)> {
        plan.published()
            .filter(|(_, publish)| publish.protocol == Protocol::Udp)
            .map(|(app, publish)| {
                let sees_clients = app.source == Source::Client;
                (publish.entry_port, app.service(publish), sees_clients)
            })
            .collect()
    };
    let gone: HashSet<u16> = ways(old)
        .difference(&ways(new))
        .map(|(entry, _, _)| *entry)
        .collect();
    gone.into_iter().collect()
}

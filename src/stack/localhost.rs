//! The rules in an app's own network namespace, by which its clients come to its loopback and from there
//! (`source = "localhost"`, [`firewall::app_rules`]).
#![forbid(unsafe_code)]

use std::io;
use std::sync::{Mutex, PoisonError};

use super::error::StackError;
use super::ground::Ground;
use crate::firewall::{self, Batch};
use crate::part::namespaces::{self, LOCALNET, NO_LOCALNET, TRACKING};

/// Those that are in force there, with the settings that go with them.
#[derive(Default)]
pub(super) struct OwnRules(Mutex<Option<Batch>>);

impl Ground {
    /// Has those of the plan in force, before an app's process is made: its links are down, or nobody is let in to it. Loading and
    /// setting is done by a child that ends with it, as the first of the app's ids.
    pub(super) async fn load_own_rules(&self, index: usize) -> Result<(), StackError> {
        let (app, ground) = (&self.plan.apps[index], &self.apps[index]);
        let wanted = firewall::app_rules(app);
        let wanted = wanted.map(|rules| firewall::encode(&rules)).transpose()?;
        let known = || {
            ground
                .rules
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        if *known() == wanted {
            return Ok(());
        }
        let inside = || {
            let socket = firewall::Socket::open().map_err(io::Error::other)?;
            let load = |batch| firewall::transact(&socket, batch).map_err(io::Error::other);
            match &wanted {
                Some(batch) => {
                    load(batch)?;
                    // It is there by now, if it is a module.
                    namespaces::set(&TRACKING)?;
                    namespaces::set(&[LOCALNET])?;
                }
                None => {
                    namespaces::set(&[NO_LOCALNET])?;
                    load(&firewall::encode_without(firewall::APP_TABLE))?;
                }
            }
            Ok(vec![])
        };
        let loaded = ground.namespaces.open_inside(inside).await;
        loaded.map_err(|source| StackError::OwnRules {
            app: app.name.to_string(),
            source,
        })?;
        *known() = wanted;
        Ok(())
    }
}

//! What an app's root is made of: opened once, by who may, and kept for every start.
//!
//! # Theory of operation
//!
//! Whoever brings a stack up, or changes it, opens the directories and files of the host's that an app is given, as detached
//! mounts with their attributes and id maps ([`Open`]). To open them takes power over the host, which a supervisor is not to
//! have for as long as its stack lives. So they are kept, and no path of the host is looked up after that: what an app is given
//! doesn't change with what a path comes to mean. A root made of the host's programs is none of this: everybody may read it, and the
//! stage opens it.
//!
//! A detached mount can be attached once, and copied only since Linux 6.15. The first start has mounts of its own. For the others
//! there is a mount namespace that belongs to the app's own user namespace, with nothing else in it ([`rootfs::store`]): a child
//! copies them from there. It is made when the app first starts again, since to let go of what was mounted there before waits for
//! every processor (`namespace_unlock()`, fs/namespace.c).
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use super::StackError;
use super::ground::directory;
use crate::part::cgroup::{self, Entrance};
use crate::part::namespaces::{Itself, Mapper, Namespaces};
use crate::part::secrets::{self, Copies};
use crate::part::volumes;
use crate::plan::{AppPlan, Plan};
use crate::rootfs;

/// What an app's root is made of, as detached mounts: first those of the root itself, then its volumes.
#[derive(Debug)]
pub struct Opened {
    /// The mounts that are kept.
    pub mounts: Vec<OwnedFd>,
    /// The same for the first start, if it is about to come.
    pub first: Option<Vec<OwnedFd>>,
    /// What is in its secrets.
    pub secrets: Copies,
}

/// Who does for an app what takes power over the host.
pub trait Open: Mapper {
    /// Opens what the app of that number in the plan has of the host's.
    ///
    /// # Errors
    /// [`StackError`].
    fn open(
        &mut self,
        plan: &Plan,
        app: usize,
    ) -> impl Future<Output = Result<Opened, StackError>> + Send;

    /// Makes an app's cgroup of that name, with its limits; `None` where the stack has none.
    ///
    /// # Errors
    /// [`StackError`].
    fn room(
        &mut self,
        plan: &Plan,
        app: usize,
        cgroup: &str,
    ) -> impl Future<Output = Result<Option<Entrance>, StackError>> + Send;

    /// Removes the cgroup of that name, of an app that has ended for good.
    ///
    /// # Errors
    /// [`StackError`].
    fn vacate(
        &mut self,
        plan: &Plan,
        cgroup: &str,
    ) -> impl Future<Output = Result<(), StackError>> + Send;
}

impl Open for Itself {
    async fn open(&mut self, plan: &Plan, app: usize) -> Result<Opened, StackError> {
        let app = &plan.apps[app];
        let root = directory(app, plan)?;
        let mut mounts = rootfs::open(&app.rootfs, root.as_ref())?;
        let mut first = rootfs::open(&app.rootfs, root.as_ref())?;
        // The id after the supervisor's is nobody's.
        let nobody = plan.supervisor().map(|ids| ids.uid + 1);
        let [volumes, volumes_first] = volumes::open(app, plan.mode, nobody, self).await?;
        mounts.extend(volumes);
        first.extend(volumes_first);
        Ok(Opened {
            mounts,
            first: Some(first),
            secrets: secrets::read(app, plan)?,
        })
    }

    async fn room(
        &mut self,
        plan: &Plan,
        app: usize,
        cgroup: &str,
    ) -> Result<Option<Entrance>, StackError> {
        Ok(cgroup::add(&plan.cgroup, cgroup, &plan.apps[app].limits)?)
    }

    async fn vacate(&mut self, plan: &Plan, cgroup: &str) -> Result<(), StackError> {
        Ok(cgroup::take(&plan.cgroup, cgroup)?)
    }
}

/// The same where every start finds it.
#[derive(Debug)]
pub(super) struct Kept {
    /// What was in its secrets when somebody last could read them.
    secrets: Mutex<Copies>,
    mounts: Vec<OwnedFd>,
    used: Mutex<Used>,
}

/// What has become of the mounts.
#[derive(Debug)]
struct Used {
    /// Those of the first start, until it has come.
    first: Option<Vec<OwnedFd>>,
    /// Where those that are kept are attached, once they are.
    namespace: Option<OwnedFd>,
}

impl Kept {
    pub(super) fn of(opened: Opened) -> Self {
        Self {
            secrets: Mutex::new(opened.secrets),
            mounts: opened.mounts,
            used: Mutex::new(Used {
                first: opened.first,
                namespace: None,
            }),
        }
    }

    /// What is in the secrets of an app, in its plan's order.
    pub(super) fn secrets(&self, app: &AppPlan) -> Result<Vec<Arc<OwnedFd>>, secrets::SecretError> {
        let secrets = self.secrets.lock();
        let secrets = secrets.unwrap_or_else(PoisonError::into_inner);
        let all = app.secrets.iter().map(|secret| {
            let copy = secrets.get(&secret.name).cloned();
            copy.ok_or_else(|| secrets::SecretError::Missing {
                app: app.name.to_string(),
                name: secret.name.clone(),
            })
        });
        all.collect()
    }

    /// What starts from now on has these.
    pub(super) fn renew(&self, copies: &Copies) {
        let secrets = self.secrets.lock();
        let mut secrets = secrets.unwrap_or_else(PoisonError::into_inner);
        secrets.extend(copies.clone());
    }

    /// Mounts for one start of an app in these namespaces.
    pub(super) fn mounts(
        &self,
        app: &AppPlan,
        namespaces: &Namespaces,
    ) -> Result<Vec<OwnedFd>, StackError> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = used.first.take() {
            return Ok(first);
        }
        if self.mounts.is_empty() {
            return Ok(vec![]);
        }
        let name = app.name.as_str();
        let namespace = match &mut used.namespace {
            Some(namespace) => namespace,
            none => {
                let fill = || rootfs::store(&self.mounts).map_err(io::Error::other);
                none.insert(namespaces.mounts(name, fill)?)
            }
        };
        let copy = || rootfs::stored(self.mounts.len()).map_err(io::Error::other);
        Ok(namespaces.made_in(name, namespace, copy)?)
    }
}

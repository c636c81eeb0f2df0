//! What an app's root is made of: opened once, by who may, and kept for every start.
//!
//! # Theory of operation
//!
//! Whoever brings a stack up, or changes it, opens the directories and files of the host's that an app is given, as detached
//! mounts with their attributes and id maps ([`Open`]). To open them takes power over the host, which a supervisor is not to
//! have for as long as its stack lives. So they are kept in a mount namespace that belongs to the app's own user namespace, with
//! nothing else in it ([`rootfs::store`]): each start begins in a copy of that, and copies them from there. No path of the host
//! is looked up after the first start, and what an app is given doesn't change with what a path comes to mean.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::StackError;
use super::ground::directory;
use crate::part::namespaces::{Itself, Mapper, Namespaces};
use crate::part::secrets::{self, Copies};
use crate::part::volumes;
use crate::plan::{AppPlan, Plan};
use crate::protocol::RootfsStart;
use crate::rootfs;

/// What an app's root is made of, as detached mounts: first those of the root itself, then its volumes.
#[derive(Debug)]
pub struct Opened {
    /// How they come together.
    pub start: RootfsStart,
    /// The mounts.
    pub mounts: Vec<OwnedFd>,
    /// Secrets that can't be read again.
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
}

impl Open for Itself {
    async fn open(&mut self, plan: &Plan, app: usize) -> Result<Opened, StackError> {
        let app = &plan.apps[app];
        let root = directory(app, plan)?;
        let (start, mut mounts) = rootfs::open(&app.rootfs, root.as_ref())?;
        mounts.extend(volumes::open(app, plan.mode, self).await?);
        let secrets = secrets::not_roots(app, plan)?;
        Ok(Opened {
            start,
            mounts,
            secrets,
        })
    }
}

/// The same where every start finds it.
#[derive(Debug)]
pub(super) struct Kept {
    namespace: OwnedFd,
    /// How they come together.
    pub(super) start: RootfsStart,
    /// How many there are.
    pub(super) count: usize,
    /// Secrets that can't be read again.
    pub(super) secrets: Copies,
}

impl Kept {
    pub(super) async fn keep(
        app: &AppPlan,
        opened: Opened,
        namespaces: &Namespaces,
    ) -> Result<Self, StackError> {
        let Opened {
            start,
            mounts,
            secrets,
        } = opened;
        let fill = || rootfs::store(&mounts).map_err(std::io::Error::other);
        let namespace = namespaces.mounts(app.name.as_str(), fill).await?;
        Ok(Self {
            namespace,
            start,
            count: mounts.len(),
            secrets,
        })
    }

    /// The mount namespace that a start begins in.
    pub(super) fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

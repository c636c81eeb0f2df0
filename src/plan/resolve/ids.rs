//! Who is who: the names of a configuration in an app's root, and the ids of the host that parts are mapped to.
#![forbid(unsafe_code)]

use crate::accounts::{Accounts, LAST_SYSTEM_ID, User};
use crate::config::{self, Account, IdCount, Rootfs, Volume, nearest};
use crate::confine::privileges::{HOST_IDS, Ids};
use crate::host::Host;
use crate::names::StackName;
use crate::net;
use crate::plan::neighbour::Neighbour;
use crate::plan::{APP_ID, APP_NAME, IdMap, Mode, RANGE};

use super::PlanError;

/// Host ids of stacks run by root.
const FIRST_ID: u32 = HOST_IDS.start;

pub(super) const IDS_PER_STACK: u32 = RANGE;

const ID_SLOTS: u32 = (HOST_IDS.end - HOST_IDS.start) / IDS_PER_STACK;

/// What names in a configuration mean in its app's root.
pub(super) struct Names<'a> {
    app: &'a config::App,
    accounts: Option<&'a Accounts>,
}

impl<'a> Names<'a> {
    pub(super) fn of(app: &'a config::App, host: &'a Host) -> Self {
        let accounts = host.accounts.iter().find(|(root, _)| *root == app.rootfs);
        Self {
            app,
            accounts: accounts.map(|(_, accounts)| accounts),
        }
    }

    fn unknown<'n>(
        &self,
        key: &'static str,
        name: &str,
        known: impl Iterator<Item = &'n String>,
    ) -> PlanError {
        PlanError::Account {
            app: self.app.name.to_string(),
            key,
            name: name.to_owned(),
            root: self.app.rootfs.clone(),
            nearest: nearest(name, known.map(String::as_str)).map(str::to_owned),
        }
    }

    /// Every root that is made from the host's has it.
    fn is_app(&self, name: &str) -> bool {
        name == APP_NAME && self.app.rootfs == Rootfs::Host
    }

    /// A user, and its own group.
    fn user(&self, account: &Account) -> Result<Ids, PlanError> {
        let none = Accounts::default();
        let accounts = self.accounts.unwrap_or(&none);
        let (uid, gid) = match account {
            Account::Id(uid) => match accounts.user(*uid) {
                Some((_, user)) => (*uid, user.gid),
                None => (*uid, *uid),
            },
            Account::Name(name) => match accounts.users.get(name) {
                Some(user) => (user.uid, user.gid),
                None if self.is_app(name) => (APP_ID, APP_ID),
                None => return Err(self.unknown("user", name, accounts.users.keys())),
            },
        };
        Ok(Ids { uid, gid })
    }

    /// Where the user that it is told to run as is at home, as systemd and docker have it. A person of the host's is at home
    /// nowhere in it.
    pub(super) fn home(&self) -> &'a str {
        const NONE: &str = "/";
        let Some(Account::Name(name)) = &self.app.user else {
            return NONE;
        };
        let user = self.accounts.and_then(|all| all.users.get(name));
        let is_own = |user: &&User| self.app.rootfs != Rootfs::Host || user.uid <= LAST_SYSTEM_ID;
        let is_path = |home: &&str| {
            home.starts_with('/') && *home != "/nonexistent" && !home.contains(char::is_control)
        };
        let home = user.filter(is_own).map(|user| user.home.as_str());
        home.filter(is_path).unwrap_or(NONE)
    }

    fn group(&self, account: &Account) -> Result<u32, PlanError> {
        let none = Accounts::default();
        let accounts = self.accounts.unwrap_or(&none);
        Ok(match account {
            Account::Id(gid) => *gid,
            Account::Name(name) => match accounts.groups.get(name) {
                Some(group) => group.gid,
                None if self.is_app(name) => APP_ID,
                None => return Err(self.unknown("group", name, accounts.groups.keys())),
            },
        })
    }
}

/// An app's volumes, with their owners' numbers.
pub(super) fn volumes(app: &config::App, host: &Host) -> Result<Vec<Volume>, PlanError> {
    let names = Names::of(app, host);
    let mut volumes = app.volumes.clone();
    for volume in &mut volumes {
        let (app_name, path) = (app.name.to_string(), volume.path.clone());
        let option = match &volume.owner_name {
            Some(Account::Id(id)) => format!("owner={id}"),
            Some(Account::Name(name)) => format!("owner={name}"),
            None if volume.owners => "owners".to_owned(),
            None => continue,
        };
        if app.ids == IdCount::One {
            return Err(PlanError::OwnerOfOne {
                app: app_name,
                path,
                option,
            });
        }
        if host.mode == Mode::Rootless {
            return Err(PlanError::OwnersOfUser {
                app: app_name,
                path,
                option,
            });
        }
        let Some(name) = volume.owner_name.take() else {
            continue;
        };
        let Ids { uid, gid } = names.user(&name)?;
        if uid >= RANGE || gid >= RANGE {
            return Err(PlanError::OwnerBeyond {
                app: app_name,
                path,
                owner: uid.max(gid),
            });
        }
        volume.owner = Some((uid, gid));
    }
    Ok(volumes)
}

/// Who an app runs as, within.
pub(super) fn inside(app: &config::App, host: &Host) -> Result<Ids, PlanError> {
    let names = Names::of(app, host);
    let Ids { uid, gid: own } = match &app.user {
        None if app.ids == IdCount::Range => Ids::ROOT,
        None => Ids {
            uid: APP_ID,
            gid: APP_ID,
        },
        Some(account) => names.user(account)?,
    };
    let gid = match &app.group {
        None => own,
        Some(account) => names.group(account)?,
    };
    let is_root = (uid, gid) == (0, 0);
    if app.ids == IdCount::Range && !is_root {
        return Err(PlanError::RangeWithUser {
            app: app.name.to_string(),
        });
    }
    if app.ids == IdCount::Range && host.mode == Mode::Rootless {
        let nothing = || ("an ordinary user has one id".to_owned(), String::new());
        if let Err((why, hint)) = host
            .subordinate
            .clone()
            .ok_or_else(nothing)
            .and_then(|found| found)
        {
            return Err(PlanError::NoRange {
                app: app.name.to_string(),
                why,
                hint,
            });
        }
    }
    Ok(Ids { uid, gid })
}

pub(super) fn slot_of(ids: &IdMap) -> u32 {
    ids.host_id / IDS_PER_STACK
}

/// The ranges of host ids that a stack has: one for all its parts, and one for each app with a range of its own.
pub(super) fn slots(plan: &Neighbour) -> Vec<u32> {
    let ranges = plan.apps.iter().map(|app| &app.ids);
    let ranges = ranges.filter(|ids| ids.is_range());
    std::iter::once(&plan.sidecar)
        .chain(ranges)
        .map(slot_of)
        .collect()
}

/// The first id of a range that nobody has: the same each time, as long as nobody does.
pub(super) fn free_slot(stack: &StackName, taken: &[u32]) -> Option<u32> {
    let start = (net::fnv1a(&[stack.as_str()]) % u64::from(ID_SLOTS)) as u32;
    (0..ID_SLOTS)
        .map(|offset| FIRST_ID / IDS_PER_STACK + (start + offset) % ID_SLOTS)
        .find(|slot| !taken.contains(slot))
        .map(|slot| slot * IDS_PER_STACK)
}

/// A source of id maps for this stack: each call is for a part that runs as these inside.
pub(super) fn id_maps(
    stack: &StackName,
    host: &Host,
) -> Result<impl FnMut(Ids, IdCount) -> Result<IdMap, PlanError>, PlanError> {
    let mut taken: Vec<u32> = host.others.iter().flat_map(slots).collect();
    let mut slot = move || {
        let first = free_slot(stack, &taken).ok_or(PlanError::Ids { slots: ID_SLOTS })?;
        taken.push(first / IDS_PER_STACK);
        Ok(first)
    };
    let mut next = match host.mode {
        // One id is mapped, and every part is it.
        Mode::Rootless => None,
        Mode::Root => Some(slot()?),
    };
    Ok(move |inside: Ids, ids| {
        let (host_id, count) = match (&mut next, ids) {
            // Its 0 is the user.
            (None, IdCount::Range) => (0, RANGE),
            (None, IdCount::One) => (0, 1),
            (Some(_), IdCount::Range) => (slot()?, RANGE),
            (Some(next), IdCount::One) => {
                let (host_id, count) = (*next, if inside == Ids::ROOT { 1 } else { 2 });
                *next += count;
                (host_id, count)
            }
        };
        Ok(IdMap {
            host_id,
            count,
            uid: inside.uid,
            gid: inside.gid,
        })
    })
}

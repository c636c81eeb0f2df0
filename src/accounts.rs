//! Users and groups by name, as passwd(5) and group(5) have them.
#![forbid(unsafe_code)]

pub mod subordinate;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};

use crate::sys::path::in_root;

/// The last id of a user that is a server's and not a person's (`SYS_UID_MAX` of login.defs(5)), and of its group.
pub const LAST_SYSTEM_ID: u32 = 999;

/// No longer file is read: far above any real one.
const LARGEST: u64 = 4 << 20;

/// A line of passwd(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its number.
    pub uid: u32,
    /// Its first group.
    pub gid: u32,
    /// Where it is at home.
    pub home: String,
    /// Its shell.
    pub shell: String,
}

/// A line of group(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its number.
    pub gid: u32,
    /// Who else is in it, by name.
    pub members: Vec<String>,
}

/// Both files of one root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accounts {
    /// The users by name.
    pub users: BTreeMap<String, User>,
    /// The groups by name.
    pub groups: BTreeMap<String, Group>,
}

impl Accounts {
    /// Those of the root at `root`. A file that is not there has no names.
    ///
    /// # Errors
    /// Which file, and what the kernel says.
    pub fn of(root: &Path) -> Result<Self, (PathBuf, io::Error)> {
        let read = |name: &str| {
            let path = root.join("etc").join(name);
            match read(root, name) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(String::new()),
                read => read.map_err(|e| (path, e)),
            }
        };
        Ok(Self::parse(&read("passwd")?, &read("group")?))
    }

    /// What these texts say; lines that are none are passed over, and of two of one name the first counts.
    #[must_use]
    pub fn parse(passwd: &str, group: &str) -> Self {
        let mut accounts = Self::default();
        for line in passwd.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            let &[name, _, uid, gid, _, home, shell] = fields.as_slice() else {
                continue;
            };
            let (Ok(uid), Ok(gid)) = (uid.parse(), gid.parse()) else {
                continue;
            };
            let user = User {
                uid,
                gid,
                home: home.to_owned(),
                shell: shell.to_owned(),
            };
            accounts.users.entry(name.to_owned()).or_insert(user);
        }
        for line in group.lines() {
            let fields: Vec<&str> = line.split(':').collect();
            let &[name, _, gid, members] = fields.as_slice() else {
                continue;
            };
            let Ok(gid) = gid.parse() else { continue };
            let members = members.split(',').filter(|member| !member.is_empty());
            let group = Group {
                gid,
                members: members.map(str::to_owned).collect(),
            };
            accounts.groups.entry(name.to_owned()).or_insert(group);
        }
        accounts
    }

    /// The user of that number; of several the first by name.
    #[must_use]
    pub fn user(&self, uid: u32) -> Option<(&str, &User)> {
        let found = self.users.iter().find(|(_, user)| user.uid == uid);
        found.map(|(name, user)| (name.as_str(), user))
    }
}

/// A file of `root`'s /etc: whatever links are on the way, they lead nowhere else.
fn read(root: &Path, name: &str) -> io::Result<String> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, root, flags, Mode::empty())?;
    let place = in_root(root, &Path::new("etc").join(name))?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode);
    if kind != FileType::RegularFile {
        return Err(io::Error::other("it is not a regular file"));
    }
    let file = File::open(format!("/proc/self/fd/{}", place.as_raw_fd()))?;
    let mut bytes = vec![];
    file.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(io::Error::other(format!(
            "it has more than {LARGEST} bytes"
        )));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_are_read_and_what_is_no_line_is_passed_over() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nno\nwww-data:x:33:34:w:/var/www:/no\n:::\n\
                      www-data:x:1:1::/:/\nbad:x:many:0::/:/\n+nis::::::\n";
        let group = "www-data:x:34:nginx,,app\nempty:x:7:\nbad:x::\n";
        let accounts = Accounts::parse(passwd, group);
        let names: Vec<&str> = accounts.users.keys().map(String::as_str).collect();
        assert_eq!(names, ["root", "www-data"]);
        let (name, user) = accounts.user(33).unwrap();
        assert_eq!(
            (name, user.gid, user.shell.as_str()),
            ("www-data", 34, "/no")
        );
        assert_eq!(accounts.groups["www-data"].members, ["nginx", "app"]);
        assert_eq!(accounts.groups.len(), 2);
    }
}

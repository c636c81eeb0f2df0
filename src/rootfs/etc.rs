//! What of the host's /etc is in a root made of the host's programs: what they look up wherever they run, and what links below
//! /usr lead to. All of it is public: of a directory only what everybody may read is given, and nothing at all that is a key,
//! a password, or a service's own configuration.

use std::fs::{DirEntry, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Files and directories, where they exist. One that ends in `*` is all whose names begin so.
const NAMES: [&str; 45] = [
    // The loader, and the programs behind general names.
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "alternatives",
    // Time, language, names of numbers.
    "localtime",
    "timezone",
    "default/locale",
    "locale.conf",
    "locale.alias",
    "mime.types",
    "mailcap",
    "magic",
    "services",
    "protocols",
    "rpc",
    "shells",
    "terminfo",
    "inputrc",
    "fonts",
    "X11/rgb.txt",
    // Which system it is.
    "os-release",
    "lsb-release",
    "debian_version",
    "redhat-release",
    "system-release",
    // How libraries resolve, and whom they trust.
    "host.conf",
    "gai.conf",
    "netconfig",
    "bindresvport.blacklist",
    "ssl/certs",
    "ssl/openssl.cnf",
    "pki/tls/certs",
    "pki/tls/cert.pem",
    "pki/tls/openssl.cnf",
    "pki/ca-trust/extracted",
    "pki/java",
    "ca-certificates/extracted",
    "crypto-policies",
    // How one changes to another user: of passwords there are none.
    "login.defs",
    "pam.conf",
    "pam.d",
    "security",
    // What languages need to start.
    "java*",
    "python3*",
    "perl",
];
/// What packages have moved to /etc of what is theirs below /usr, and nothing looks for otherwise.
const MOVED: [&str; 3] = ["groff", "maven", "wireshark/init.lua"];

/// A file up to this size is copied: a mount would take more.
const SMALL: u64 = 16 << 10;
/// How many names are looked at, so that a strange /etc keeps nobody from starting.
const MOST: usize = 4096;
/// How many mounts it makes at most; there is one message for all of an app's.
const MOST_MOUNTS: usize = 60;

/// What to make, all paths relative to the root.
#[derive(Debug, Default)]
pub struct Public {
    /// To be mounted: where, and what of the host's.
    pub mounts: Vec<(PathBuf, PathBuf)>,
    /// Links: where, and to what.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// Small files.
    pub files: Vec<(PathBuf, String)>,
    seen: usize,
}

/// What of `/etc`, which is at `etc`, an app gets.
#[must_use]
pub fn public(etc: &Path) -> Public {
    let mut all = Public::default();
    for name in NAMES.iter().chain(&MOVED) {
        match name.strip_suffix('*') {
            None => all.add(etc, Path::new(name)),
            Some(begin) => {
                let entries = std::fs::read_dir(etc).into_iter().flatten().flatten();
                for entry in entries {
                    let name = entry.file_name();
                    if name.as_bytes().starts_with(begin.as_bytes()) {
                        all.add(etc, Path::new(&name));
                    }
                }
            }
        }
    }
    all
}

impl Public {
    fn add(&mut self, etc: &Path, name: &Path) {
        let host = etc.join(name);
        let inside = Path::new("etc").join(name);
        self.seen += 1;
        if self.seen > MOST {
            return;
        }
        let Ok(meta) = std::fs::symlink_metadata(&host) else {
            return;
        };
        if meta.is_symlink() {
            self.link(etc, name, &host);
            return;
        }
        if !is_public(&meta) {
            return;
        }
        if meta.is_file() {
            self.file(inside, &host, &meta);
        } else if meta.is_dir() {
            if self.is_public_throughout(&host) {
                self.mount(inside, host);
                return;
            }
            for entry in entries(&host) {
                self.add(etc, &name.join(entry.file_name()));
            }
        }
    }

    /// A link to a program's own file, which is there; another's target is looked at as what it is.
    fn link(&mut self, etc: &Path, name: &Path, host: &Path) {
        let inside = Path::new("etc").join(name);
        let (Ok(target), Ok(real)) = (std::fs::read_link(host), std::fs::canonicalize(host)) else {
            return;
        };
        let Ok(meta) = std::fs::metadata(&real) else {
            return;
        };
        if real.starts_with("/usr") || real.starts_with(etc) && self.has(etc, &real) {
            self.links.push((inside, target));
        } else if is_public(&meta) && meta.is_file() {
            self.file(inside, &real, &meta);
        }
    }

    /// Whether what is at `real` is given already.
    fn has(&self, etc: &Path, real: &Path) -> bool {
        let Ok(within) = real.strip_prefix(etc) else {
            return false;
        };
        let inside = Path::new("etc").join(within);
        let mut mounts = self.mounts.iter();
        mounts.any(|(at, _)| inside.starts_with(at))
            || self.files.iter().any(|(at, _)| *at == inside)
    }

    fn file(&mut self, inside: PathBuf, host: &Path, meta: &Metadata) {
        let text = (meta.len() <= SMALL)
            .then(|| std::fs::read_to_string(host).ok())
            .flatten();
        match text {
            Some(text) => self.files.push((inside, text)),
            None => self.mount(inside, host.to_owned()),
        }
    }

    fn mount(&mut self, inside: PathBuf, host: PathBuf) {
        if self.mounts.len() < MOST_MOUNTS {
            self.mounts.push((inside, host));
        }
    }

    fn is_public_throughout(&mut self, directory: &Path) -> bool {
        entries(directory).all(|entry| {
            self.seen += 1;
            let Ok(meta) = std::fs::symlink_metadata(entry.path()) else {
                return false;
            };
            self.seen <= MOST
                && (meta.is_symlink()
                    || is_public(&meta)
                        && (meta.is_file() || self.is_public_throughout(&entry.path())))
        })
    }
}

fn entries(directory: &Path) -> impl Iterator<Item = DirEntry> {
    std::fs::read_dir(directory).into_iter().flatten().flatten()
}

/// Whether everybody may read a file, or what is in a directory.
fn is_public(meta: &Metadata) -> bool {
    let mode = meta.permissions().mode();
    match meta.is_dir() {
        true => mode & 0o005 == 0o005,
        false => meta.is_file() && mode & 0o004 != 0,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_not_everybody_may_read_is_left_out_with_what_is_in_it() {
        let etc = tempfile::tempdir().unwrap();
        let etc = etc.path();
        let put = |name: &str, mode: u32| {
            let path = etc.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, name).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        for public in [
            "services",
            "pam.d/su",
            "security/limits.conf",
            "java-9/a/b",
            "ssl/certs/ca",
        ] {
            put(public, 0o644);
        }
        for private in [
            "shadow",
            "ssl/private/key",
            "security/opasswd",
            "java-9/a/password",
            "protocols",
        ] {
            put(private, 0o600);
        }
        put("nginx/nginx.conf", 0o644);
        std::os::unix::fs::symlink("../shadow", etc.join("ssl/certs/link")).unwrap();
        std::os::unix::fs::symlink("shadow", etc.join("timezone")).unwrap();
        std::os::unix::fs::symlink("/usr/bin/env", etc.join("localtime")).unwrap();
        let all = public(etc);
        let mounts: Vec<String> = all
            .mounts
            .iter()
            .map(|(at, _)| at.display().to_string())
            .collect();
        assert_eq!(mounts, ["etc/ssl/certs", "etc/pam.d"]);
        let mut files: Vec<&str> = all
            .files
            .iter()
            .map(|(at, _)| at.to_str().unwrap())
            .collect();
        files.sort_unstable();
        assert_eq!(
            files,
            ["etc/java-9/a/b", "etc/security/limits.conf", "etc/services"]
        );
        assert_eq!(all.links, [("etc/localtime".into(), "/usr/bin/env".into())]);
    }
}

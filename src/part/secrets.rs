//! Secrets: files of the host's that only an app reads.
//!
//! # Theory of operation
//!
//! Whoever brings a stack up reads them, and whoever has an app started again (`lrpns restart`, `apply`): so a certificate that was
//! renewed comes with the next of these. The supervisor can't: it has dropped what that takes, and keeps what it was handed last,
//! for starts that nobody has asked for. It never says which files are read: that is the plan's, as root has written it.
//!
//! Root reads them on the terms on which it reads a configuration ([`crate::config::Trust`]): who could put a link in the place of
//! one would have root hand out any file. The content goes from file to file in the kernel, by an anonymous one that is sealed, so
//! that neither the plan nor a message nor the memory of the supervisor ever has it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};

use crate::config::{OpenError, SECRETS, Secret, SecretFrom, Trust};
use crate::plan::{AppPlan, Mode, Plan};

/// The most bytes that a secret has: keys, certificates with their chains, passwords.
pub const MOST: u64 = 256 << 10;

/// Why a secret can't be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It could not be opened.
    #[error("secret {name} of {app}: {}: {source}", path.display())]
    Open {
        /// Whose.
        app: String,
        /// Which.
        name: String,
        /// Its file.
        path: PathBuf,
        /// Why.
        source: OpenError,
    },
    /// It could not be read, or not handed over.
    #[error("secret {name} of {app}: read {}: {source}", path.display())]
    Read {
        /// Whose.
        app: String,
        /// Which.
        name: String,
        /// Its file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is longer than [`MOST`].
    #[error("secret {name} of {app}: {} has more than {MOST} bytes", path.display())]
    Long {
        /// Whose.
        app: String,
        /// Which.
        name: String,
        /// Its file.
        path: PathBuf,
    },
    /// There are no credentials here.
    #[error("secret {name} of {app}: there is no $CREDENTIALS_DIRECTORY")]
    NoCredentials {
        /// Whose.
        app: String,
        /// Which.
        name: String,
        /// Of which credential.
        credential: String,
    },
    /// It was never handed over.
    #[error("secret {name} of {app}: nobody has handed over what is in it")]
    Missing {
        /// Whose.
        app: String,
        /// Which.
        name: String,
    },
}

impl SecretError {
    /// What to do about it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Open { path, source, .. } => match source.remedy() {
                Some((expected, example)) => Some(format!("{example} (it takes {expected})")),
                None => match source {
                    OpenError::Io(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                        Some(format!(
                            "who runs lrpns up has to be allowed to read {}",
                            path.display()
                        ))
                    }
                    _ => None,
                },
            },
            Self::Long { .. } => Some("a file of that size is a volume".to_owned()),
            Self::NoCredentials {
                name, credential, ..
            } => Some(format!(
                "systemd gives one to a service whose unit has LoadCredential={credential}:PATH; without, name the file: \
                 secrets = [\"{name}=PATH\"]"
            )),
            Self::Read { .. } | Self::Missing { .. } => None,
        }
    }
}

/// What was in secrets, by their names: anonymous files that can't change.
pub type Copies = BTreeMap<String, Arc<OwnedFd>>;

/// What is in each of an app's secrets.
///
/// # Errors
/// [`SecretError`].
pub fn read(app: &AppPlan, plan: &Plan) -> Result<Copies, SecretError> {
    let all = app.secrets.iter().map(|secret| copy(app, secret, plan));
    all.collect()
}

/// The same for an app that has what was in them; of a file that root takes from nobody but who brought the stack up, that stays:
/// why, comes second.
///
/// # Errors
/// [`SecretError`].
pub fn read_again(app: &AppPlan, plan: &Plan) -> Result<(Copies, Vec<SecretError>), SecretError> {
    let (mut copies, mut stay) = (Copies::new(), vec![]);
    for secret in &app.secrets {
        match copy(app, secret, plan) {
            Ok((name, copy)) => {
                copies.insert(name, copy);
            }
            Err(
                e @ SecretError::Open {
                    source: OpenError::NotTrusted { .. },
                    ..
                },
            ) => stay.push(e),
            Err(e) => return Err(e),
        }
    }
    Ok((copies, stay))
}

/// What somebody else has read, if it is what [`read`] makes.
///
/// # Errors
/// In words, what is wrong with it.
pub fn taken(names: Vec<String>, files: Vec<OwnedFd>) -> Result<Copies, String> {
    if names.len() != files.len() {
        return Err(format!(
            "{} secrets came for {} names",
            files.len(),
            names.len()
        ));
    }
    for (name, file) in names.iter().zip(&files) {
        let sealed =
            rustix::fs::fcntl_get_seals(file).is_ok_and(|seals| seals.contains(seals_of_ours()));
        if !sealed {
            return Err(format!("what came as secret {name} can change"));
        }
        let length = rustix::fs::fstat(file).map(|stat| u64::try_from(stat.st_size));
        if !matches!(length, Ok(Ok(length)) if length <= MOST) {
            return Err(format!(
                "what came as secret {name} has more than {MOST} bytes"
            ));
        }
    }
    let files = files.into_iter().map(Arc::new);
    Ok(names.into_iter().zip(files).collect())
}

fn trust(plan: &Plan) -> Trust {
    match plan.mode {
        Mode::Root => Trust::of_this_process(),
        // It is root in a user namespace of its own, and reads what its user may.
        Mode::Rootless => Trust::default(),
    }
}

/// What is in a secret, with its name.
fn copy(
    app: &AppPlan,
    secret: &Secret,
    plan: &Plan,
) -> Result<(String, Arc<OwnedFd>), SecretError> {
    let (app, name) = (app.name.to_string(), secret.name.clone());
    let path = match (&secret.from, plan.credentials.as_deref()) {
        (SecretFrom::File(path), _) => path.clone(),
        (SecretFrom::Credential(credential), Some(directory)) => directory.join(credential),
        (SecretFrom::Credential(credential), None) => {
            return Err(SecretError::NoCredentials {
                app,
                name,
                credential: credential.clone(),
            });
        }
    };
    let opened = match trust(plan).open(&path) {
        Ok(opened) => opened.file,
        Err(source) => {
            return Err(SecretError::Open {
                app,
                name,
                path,
                source,
            });
        }
    };
    match sealed(opened) {
        Ok(Some(copy)) => Ok((name, Arc::new(copy))),
        Ok(None) => Err(SecretError::Long { app, name, path }),
        Err(source) => Err(SecretError::Read {
            app,
            name,
            path,
            source,
        }),
    }
}

fn seals_of_ours() -> SealFlags {
    SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL
}

/// `None` if it is longer than [`MOST`].
fn sealed(file: File) -> io::Result<Option<OwnedFd>> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = File::from(rustix::fs::memfd_create("secret", flags)?);
    let length = io::copy(&mut file.take(MOST + 1), &mut copy)?;
    if length > MOST {
        return Ok(None);
    }
    rustix::fs::fcntl_add_seals(&copy, seals_of_ours())?;
    Ok(Some(copy.into()))
}

/// Where the app has one.
#[must_use]
pub fn path(secret: &Secret) -> PathBuf {
    Path::new(SECRETS).join(&secret.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_taken_that_can_change_or_is_too_long() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let file = |text: &str| {
            let mut file = tempfile::tempfile().unwrap();
            io::Write::write_all(&mut file, text.as_bytes()).unwrap();
            io::Seek::rewind(&mut file).unwrap();
            file
        };
        let copy = sealed(file("x")).unwrap().unwrap();
        let taken_copies = taken(names(&["a"]), vec![copy]).unwrap();
        assert!(taken_copies.contains_key("a"));
        let e = taken(names(&["a"]), vec![file("x").into()]).unwrap_err();
        assert!(e.contains("can change"), "{e}");
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        for seals in seals_of_ours().iter() {
            let memory = rustix::fs::memfd_create("some", flags).unwrap();
            rustix::fs::fcntl_add_seals(&memory, seals_of_ours() - seals).unwrap();
            let e = taken(names(&["a"]), vec![memory]).unwrap_err();
            assert!(e.contains("can change"), "{seals:?}: {e}");
        }
        let long = rustix::fs::memfd_create("long", flags).unwrap();
        rustix::fs::ftruncate(&long, MOST + 1).unwrap();
        rustix::fs::fcntl_add_seals(&long, seals_of_ours()).unwrap();
        let e = taken(names(&["a"]), vec![long]).unwrap_err();
        assert!(e.contains("more than"), "{e}");
        let one = sealed(file("x")).unwrap().unwrap();
        assert!(taken(names(&["a", "b"]), vec![one]).is_err());
    }
}

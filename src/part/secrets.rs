//! Secrets: files of the host's that only an app reads.
//!
//! # Theory of operation
//!
//! Whoever brings a stack up reads them, whenever the app is started: a certificate that was renewed comes with the next
//! `lrpns restart`, and nothing of it is kept in between, but for a file that is not root's: once the stack is up, root's
//! supervisor could not read that any more, and has what was in it when the stack came up ([`not_roots`]). Root reads them on the
//! terms on which it reads a configuration ([`crate::config::Trust`]): who could put a link in the place of one would have root hand
//! out any file. The content goes from file to file in the kernel, by an anonymous one that is sealed, so that neither the plan nor
//! a message nor the memory of the supervisor ever has it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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
}

impl SecretError {
    /// Whether somebody who may not read the file has tried.
    fn is_refused(&self) -> bool {
        matches!(self, Self::Open { source: OpenError::Io(e), .. } if e.kind() == io::ErrorKind::PermissionDenied)
    }

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
            Self::Read { .. } => None,
        }
    }
}

/// What was in secrets, by their names.
pub type Copies = BTreeMap<String, OwnedFd>;

/// What is in each of an app's secrets, as anonymous files that can't change; of one that may not be read what is in `kept`.
///
/// # Errors
/// [`SecretError`].
pub fn open(app: &AppPlan, plan: &Plan, kept: &Copies) -> Result<Vec<OwnedFd>, SecretError> {
    let copies = app.secrets.iter().map(|secret| {
        let copied = copy(app, secret, &trust(plan), plan.credentials.as_deref());
        match (copied, kept.get(&secret.name)) {
            (Err(e), Some(kept)) if e.is_refused() => {
                let copy = kept.try_clone();
                copy.map_err(|source| SecretError::Read {
                    app: app.name.to_string(),
                    name: secret.name.clone(),
                    path: path(secret),
                    source,
                })
            }
            (copied, _) => copied.map(|(copy, _)| copy),
        }
    });
    copies.collect()
}

/// What is in those secrets of an app that root's supervisor can't read once it has dropped: those of files that are not root's.
///
/// # Errors
/// [`SecretError`].
pub fn not_roots(app: &AppPlan, plan: &Plan) -> Result<Copies, SecretError> {
    let mut copies = Copies::new();
    if plan.mode == Mode::Root {
        for secret in &app.secrets {
            let (copied, roots) = copy(app, secret, &trust(plan), plan.credentials.as_deref())?;
            if !roots {
                copies.insert(secret.name.clone(), copied);
            }
        }
    }
    Ok(copies)
}

fn trust(plan: &Plan) -> Trust {
    match plan.mode {
        Mode::Root => Trust::of_this_process(),
        // It is root in a user namespace of its own, and reads what its user may.
        Mode::Rootless => Trust::default(),
    }
}

/// What is in a secret, and whether its file and all that leads there is root's.
fn copy(
    app: &AppPlan,
    secret: &Secret,
    trust: &Trust,
    credentials: Option<&Path>,
) -> Result<(OwnedFd, bool), SecretError> {
    let (app, name) = (app.name.to_string(), secret.name.clone());
    let path = match (&secret.from, credentials) {
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
    let opened = match trust.open(&path) {
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
    let roots = is_roots(&opened, &path);
    match sealed(opened) {
        Ok(Some(copy)) => Ok((copy, roots)),
        Ok(None) => Err(SecretError::Long { app, name, path }),
        Err(source) => Err(SecretError::Read {
            app,
            name,
            path,
            source,
        }),
    }
}

/// Whether root reads it without any capability.
fn is_roots(file: &File, path: &Path) -> bool {
    let of_root = |meta: io::Result<std::fs::Metadata>| meta.is_ok_and(|meta| meta.uid() == 0);
    let real = std::fs::canonicalize(path).unwrap_or_default();
    let above = [path, &real]
        .into_iter()
        .flat_map(|path| path.ancestors().skip(1));
    of_root(file.metadata())
        && above
            .into_iter()
            .all(|above| of_root(std::fs::metadata(above)))
}

/// `None` if it is longer than [`MOST`].
fn sealed(file: File) -> io::Result<Option<OwnedFd>> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = File::from(rustix::fs::memfd_create("secret", flags)?);
    let length = io::copy(&mut file.take(MOST + 1), &mut copy)?;
    if length > MOST {
        return Ok(None);
    }
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&copy, seals)?;
    Ok(Some(copy.into()))
}

/// Where the app has one.
#[must_use]
pub fn path(secret: &Secret) -> PathBuf {
    Path::new(SECRETS).join(&secret.name)
}

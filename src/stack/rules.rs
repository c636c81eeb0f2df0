//! The user's own rules: from a file in nft's language to the objects that become part of the sidecar's batch.
//!
//! # Theory of operation
//!
//! A process of its own, in the sidecar's user namespace and a network namespace that is made for it and empty, loads
//! our rules, runs the real `nft` on the file as the content of our table, and hands up what has come to be
//! (`crate::stage`'s compiler and [`crate::firewall::added`]). nft holds NET_ADMIN over that namespace, sees the host's
//! programs and libraries and one file, and is gone before anything is made that a client could reach.
//!
//! nft is needed by who uses the key, and by nobody else; not even by them at a restart of the sidecar, which loads what
//! was compiled at the start.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fmt::Write as _;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::firewall;
use crate::part::container::{Container, ContainerError};
use crate::part::namespaces::{NamespaceError, Namespaces};
#[cfg(test)]
use crate::plan::Quoting;
use crate::plan::{ExtraObject, ExtraRules, Plan};
use crate::protocol::{Compiled, Role, Start, ToStage};
use crate::rootfs;

/// Where nft is, on whatever distribution: a path of the root that the compiler gets as well.
const PLACES: [&str; 6] = [
    "/usr/sbin/nft",
    "/usr/bin/nft",
    "/sbin/nft",
    "/bin/nft",
    "/usr/local/sbin/nft",
    "/usr/local/bin/nft",
];
/// What is said of a line that the user who runs sudo may not read.
const PRIVATE: &str = "a mistake, not shown, since the user who runs sudo may not read this file; as root itself (sudo -i), lrpns shows it";
/// The file, in the compiler's root.
const FILE: &str = "/tmp/rules.nft";

/// What nft has made of the user's rules, by what they say: of the plan that is in force, and of one that may follow. All
/// grounds of a stack share it, so that a live change can be taken back without nft.
#[derive(Clone, Default)]
pub(super) struct CompiledRules(Arc<Mutex<Vec<OneCompiled>>>);

/// A file, and what nft has made of it.
type OneCompiled = (ExtraRules, Arc<[ExtraObject]>);

impl CompiledRules {
    /// What nft has made of a plan's; nothing of a plan that has none.
    ///
    /// # Errors
    /// [`ExtraError::NotCompiled`].
    pub(super) fn of(&self, plan: &Plan) -> Result<Arc<[ExtraObject]>, ExtraError> {
        let Some(rules) = &plan.rules else {
            return Ok(Arc::default());
        };
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let its = known
            .iter()
            .find(|(known, _)| known.says_the_same_as(rules));
        its.map(|(_, objects)| Arc::clone(objects))
            .ok_or_else(|| ExtraError::NotCompiled {
                file: rules.file.clone(),
            })
    }

    /// Keeps that of one plan more, and beside it no other's than that of `current`.
    pub(super) fn keep(&self, plan: &Plan, objects: Vec<ExtraObject>, current: Option<&Plan>) {
        let current = current.and_then(|plan| plan.rules.as_ref());
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(known, _)| current.is_some_and(|rules| known.says_the_same_as(rules)));
        if let Some(rules) = &plan.rules {
            known.push((rules.clone(), objects.into()));
        }
    }
}

/// Why the user's rules can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ExtraError {
    /// There is no nft.
    #[error("compile {}: there is no nft in {}", file.display(), PLACES.join(", "))]
    NoNft {
        /// The file.
        file: PathBuf,
    },
    /// nft, or the kernel, refuses them; `problems` has a paragraph for each, with file, line and column.
    #[error("{problems}")]
    Refused {
        /// What is wrong, for people.
        problems: String,
    },
    /// nft has not been asked: a mistake of ours, and better told than loaded without them.
    #[error("{}: not compiled", file.display())]
    NotCompiled {
        /// The file.
        file: PathBuf,
    },
    /// They do what a user's rules must not do.
    #[error("{}: {why}", file.display())]
    NotAllowed {
        /// The file.
        file: PathBuf,
        /// What it does, and what was expected.
        why: String,
    },
    /// Together with ours they are more than one message to the kernel may be.
    #[error(
        "{}: rules of {size} bytes in the kernel's form, and a message to it has at most {most}",
        file.display()
    )]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// The size of the message, in bytes.
        size: usize,
        /// The most that it may be, in bytes: twice `net.core.wmem_max`.
        most: usize,
    },
    /// Our own part of the work.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// The namespaces for it.
    #[error(transparent)]
    Namespaces(#[from] NamespaceError),
    /// The root for it.
    #[error("root file system: {0}")]
    Rootfs(#[from] rootfs::RootfsError),
    /// Our own rules.
    #[error("rules: {0}")]
    Encode(#[from] firewall::EncodeError),
}

impl ExtraError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<Cow<'static, str>> {
        let hint = match self {
            Self::TooLarge { size, .. } => {
                let enough = (size + SLACK).div_ceil(2);
                return Some(
                    format!(
                        "a named set with one rule takes less than a rule for each address, and a range less than its \
                         addresses; or `sysctl -w net.core.wmem_max={enough}`"
                    )
                    .into(),
                );
            }
            Self::NoNft { .. } => Some("apt install nftables, or leave sidecar.rules out"),
            Self::Refused { problems } if problems.contains("Message too long") => Some(
                "one rule goes to the kernel in one message, of about 200 kB: some 10,000 addresses in braces; a named set \
                 may have any number",
            ),
            Self::Refused { problems } if problems.contains("include") => Some(
                "nft sees this file and no other of yours, so `include` has nothing to include",
            ),
            // What the line says can't be done, wherever it stands.
            Self::Refused { problems }
                if problems.contains("Could not process rule")
                    || problems.contains("o such file") =>
            {
                None
            }
            Self::Refused { .. } => Some(
                "the file is the inside of a table: `chain before { ... }`, `chain after { ... }`, `chain nat { ... }`, and sets and chains that these use",
            ),
            _ => None,
        };
        hint.map(Cow::Borrowed)
    }
}

/// What a live change has besides, in bytes: what it deletes.
const SLACK: usize = 64 << 10;

/// How large a message of ours to the kernel may be, in bytes, in a user namespace (socket(7), `netlink_sendmsg()`).
fn largest_message() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/sys/net/core/wmem_max").ok()?;
    Some(most_with(text.trim().parse().ok()?))
}

/// The same with that `net.core.wmem_max`.
fn most_with(wmem_max: usize) -> usize {
    (2 * wmem_max).saturating_sub(SLACK)
}

/// Where nft is.
#[must_use]
pub fn nft() -> Option<&'static Path> {
    PLACES.iter().map(Path::new).find(|path| path.is_file())
}

/// Compiles the user's rules of `plan`; nothing, if it has none. `program` is our own, read-only;
/// `sidecar` has the user namespace in which it is done.
///
/// Needs what a restart of a part needs, and changes nothing.
///
/// # Errors
/// [`ExtraError`].
pub async fn compile(
    plan: &Plan,
    program: BorrowedFd<'_>,
    sidecar: &Namespaces,
) -> Result<Vec<ExtraObject>, ExtraError> {
    let Some(rules) = &plan.rules else {
        return Ok(vec![]);
    };
    let nft = nft().ok_or_else(|| ExtraError::NoNft {
        file: rules.file.clone(),
    })?;
    let source = Source::of(rules);
    let role = Role::Compiler {
        ours: firewall::sidecar_batch(plan, &[])?,
        text: source.text.clone(),
        command: vec![
            nft.display().to_string(),
            "--file".to_owned(),
            FILE.to_owned(),
        ],
    };
    let title = format!("{}/compiler", plan.stack);
    let namespaces = sidecar.with_empty_network("the compiler").await?;
    let container = Container::spawn(&title, &namespaces, program, None).await?;
    let start = Start {
        hostname: "compiler".to_owned(),
        nproc: None,
        role,
        weaken: None,
    };
    container
        .send(&ToStage::Start(Box::new(start)), &[])
        .await?;
    match container.compiled().await? {
        Compiled::Objects(objects) => {
            let file = rules.file.clone();
            let size = firewall::sidecar_batch(plan, &objects)?.size();
            match largest_message() {
                Some(most) if size > most => Err(ExtraError::TooLarge { file, size, most }),
                _ => Ok(objects),
            }
        }
        Compiled::NotAllowed(why) => Err(ExtraError::NotAllowed {
            file: rules.file.clone(),
            why,
        }),
        Compiled::NftSays(words) => Err(ExtraError::Refused {
            problems: source.explain(rules, &words),
        }),
    }
}

/// What nft gets: the definitions, a line each, then the table with the file in it.
struct Source<'a> {
    text: String,
    /// Whose definition is on which line; the file begins two lines after the last.
    defines: Vec<&'a str>,
}

impl<'a> Source<'a> {
    fn of(rules: &'a ExtraRules) -> Self {
        let mut text = String::new();
        for (name, value) in &rules.defines {
            let _ = writeln!(text, "define {name} = {value}");
        }
        let _ = write!(
            text,
            "table inet {} {{\n{}\n}}\n",
            firewall::SIDECAR_TABLE,
            rules.text
        );
        Self {
            text,
            defines: rules.defines.keys().map(String::as_str).collect(),
        }
    }

    /// nft's complaints, in the user's lines.
    fn explain(&self, rules: &ExtraRules, words: &str) -> String {
        let file = rules.file.display();
        let mut problems: Vec<String> = vec![];
        let private = !rules.quoting.is_allowed();
        for line in words.lines() {
            let Some((place, message)) = place_of(line) else {
                continue;
            };
            let message = message.trim_start_matches("Error: ");
            let (number, column) = place;
            let first = self.defines.len() + 2;
            let problem = match number.checked_sub(first) {
                None => {
                    let name = self.defines.get(number.saturating_sub(1)).unwrap_or(&"");
                    format!("{file}: the value of `${name}`: {message}")
                }
                Some(index) if private => format!("{file}:{}:{column}: {PRIVATE}", index + 1),
                Some(index) => match rules.text.lines().nth(index) {
                    Some(text) => {
                        // The caret below what nft means; a tab is as wide as a tab.
                        let before: String = text
                            .chars()
                            .take(column.saturating_sub(1))
                            .map(|c| if c == '\t' { '\t' } else { ' ' })
                            .collect();
                        format!(
                            "{file}:{}:{column}: {message}\n  {text}\n  {before}^",
                            index + 1
                        )
                    }
                    None => format!(
                        "{file}:{}: {message}: at the end of the file; a `}}` too few, or one too many",
                        rules.text.lines().count()
                    ),
                },
            };
            problems.push(problem);
        }
        if problems.is_empty() && private {
            return format!("{file}: {PRIVATE}");
        }
        if problems.is_empty() {
            return format!("{file}: nft says: {}", words.trim());
        }
        problems.truncate(5);
        problems.join("\n")
    }
}

/// Takes `/tmp/rules.nft:4:22-27: Error: ...` apart: line, column, message.
fn place_of(line: &str) -> Option<((usize, usize), &str)> {
    let rest = line.strip_prefix(FILE)?.strip_prefix(':')?;
    let (number, rest) = rest.split_once(':')?;
    let (columns, message) = rest.split_once(": ")?;
    let column = columns.split('-').next()?;
    Some(((number.parse().ok()?, column.parse().ok()?), message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_too_many_rules_hears_which_setting_would_do() {
        let error = ExtraError::TooLarge {
            file: "extra.nft".into(),
            size: 1_000_000,
            most: 360_416,
        };
        assert_eq!(
            error.to_string(),
            "extra.nft: rules of 1000000 bytes in the kernel's form, and a message to it has at most 360416"
        );
        let hint = error.hint().unwrap();
        let (_, value) = hint.rsplit_once("net.core.wmem_max=").unwrap();
        let value: usize = value.trim_end_matches('`').parse().unwrap();
        assert_eq!(most_with(value), 1_000_000);
        assert!(most_with(212_992) < 1_000_000);
    }

    #[test]
    fn what_nft_says_of_its_lines_is_said_of_the_users() {
        let rules = ExtraRules {
            file: "extra.nft".into(),
            text: "chain before {\n\tip sddr 1.2.3.4 drop\n}".to_owned(),
            defines: [("app".to_owned(), "x y".to_owned())].into(),
            quoting: Quoting::Allowed,
        };
        let source = Source::of(&rules);
        let said = "/tmp/rules.nft:4:5-8: Error: syntax error, unexpected string\n\tip sddr 1.2.3.4 drop\n    ^^^^\n";
        assert_eq!(source.text.lines().nth(3), Some("\tip sddr 1.2.3.4 drop"));
        assert_eq!(
            source.explain(&rules, said),
            "extra.nft:2:5: syntax error, unexpected string\n  \tip sddr 1.2.3.4 drop\n  \t   ^"
        );
        let private = ExtraRules {
            quoting: Quoting::Private,
            ..rules.clone()
        };
        let hidden = source.explain(&private, said);
        assert!(hidden.starts_with("extra.nft:2:5: "), "{hidden}");
        assert!(!hidden.contains("1.2.3.4") && !hidden.contains("string"));
        assert!(!source.explain(&private, "what 1.2.3.4").contains("1.2.3.4"));
        let said = "/tmp/rules.nft:1:16-16: Error: syntax error, unexpected string\n";
        let explained = source.explain(&rules, said);
        assert!(explained.contains("the value of `$app`"), "{explained}");
    }
}

//! What a command says when it can't do what it was asked: one line, a hint when the cure is known, an exit code.
#![forbid(unsafe_code)]

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

use nix::sys::signal::Signal;

use crate::config::{ConfigErrors, Protocol, Rootfs};
use crate::host::{HostError, holder};
use crate::part::container::ContainerError;
use crate::plan::resolve::PlanError;
use crate::protocol::Exit;
use crate::stack::StackError;
use crate::state::StateError;
use crate::text::harmless_lines;

/// The stack or a check failed.
pub const FAILED: u8 = 1;
/// Usage or configuration.
pub const USAGE: u8 = 2;
/// lrpns could not do it.
pub const UNABLE: u8 = 125;

/// The exit code of a command that a signal has kept from its work, as a shell would show it.
#[must_use]
pub fn interrupted_by(signal: Signal) -> u8 {
    Exit::Signal(signal as i32).code()
}

/// Why a command ends with another code than 0.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// What was tried, on what, what the kernel said; whole lines are kept.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Failure {
    /// lrpns could not do it.
    #[must_use]
    pub fn unable(message: impl Display) -> Self {
        let message = message.to_string();
        Self {
            code: UNABLE,
            hint: shortage(&message).map(str::to_owned),
            message,
        }
    }

    /// The stack or a check failed.
    #[must_use]
    pub fn failed(message: impl Display) -> Self {
        Self {
            code: FAILED,
            ..Self::unable(message)
        }
    }

    /// Usage or configuration.
    #[must_use]
    pub fn usage(message: impl Display) -> Self {
        Self {
            code: USAGE,
            ..Self::unable(message)
        }
    }

    /// The same of a command other than `run` and `exec`: a program that can't be executed is a failure of the stack.
    #[must_use]
    pub fn of_the_stack(self) -> Self {
        match self.code {
            126 | 127 => Self {
                code: FAILED,
                ..self
            },
            _ => self,
        }
    }

    /// The same with a hint; a shortage of descriptors has its own, whatever it came in the way of.
    #[must_use]
    pub fn hint(mut self, hint: impl Display) -> Self {
        if shortage(&self.message).is_none() {
            self.hint = Some(hint.to_string());
        }
        self
    }

    /// Says it on standard error.
    #[must_use]
    pub fn print(&self) -> ExitCode {
        let (bad, good, plain) = (
            anstyle::AnsiColor::Red.on_default().bold(),
            anstyle::AnsiColor::Cyan.on_default().bold(),
            anstyle::Reset,
        );
        let mut err = anstream::stderr();
        // Nobody to tell if standard error is closed; the exit code still does. It may be what a supervisor has said.
        let _ = writeln!(err, "{bad}lrpns:{plain} {}", harmless_lines(&self.message));
        if let Some(hint) = &self.hint {
            let _ = writeln!(err, "{good}hint:{plain} {}", harmless_lines(hint));
        }
        ExitCode::from(self.code)
    }
}

/// What to do about a call that failed because there is no descriptor left (EMFILE, ENFILE of open(2)). It is found by the words
/// of the message: any call that opens something may fail so, its error may be of any type, and a child or the supervisor
/// sends no more than the words.
fn shortage(message: &str) -> Option<&'static str> {
    let says = |errno: i32| message.contains(&format!("(os error {errno})"));
    if says(libc::EMFILE) {
        Some(
            "the limit of open files (RLIMIT_NOFILE) is too low: raise it where this command is started or, if it is the stack that \
             has none left, where lrpns up is: ulimit -n 1024, LimitNOFILE= of a unit",
        )
    } else if says(libc::ENFILE) {
        Some(
            "all programs of this machine together have as many files open as it may have: sysctl fs.file-nr counts them, \
             fs.file-max is the limit",
        )
    } else {
        None
    }
}

/// An error and what led to it, on one line.
pub(crate) fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // An enum that shows its source in its own line has said it already.
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

impl From<ConfigErrors> for Failure {
    fn from(e: ConfigErrors) -> Self {
        use std::io::IsTerminal;
        let colour = std::io::stderr().is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        let count = e.problems().len();
        let plural = if count == 1 { "problem" } else { "problems" };
        Self::usage(format!(
            "{count} {plural} in the configuration\n{}",
            e.render(colour).trim_end()
        ))
    }
}

impl From<StateError> for Failure {
    fn from(e: StateError) -> Self {
        let failure = Self::unable(chain(&e));
        match e {
            StateError::Held {
                holder: Some(pid),
                stopped: true,
                ..
            } => failure.hint(format!(
                "kill -CONT {pid} lets it go on; kill -KILL {pid} ends it, and with it what it had begun"
            )),
            _ => failure,
        }
    }
}

impl From<HostError> for Failure {
    fn from(e: HostError) -> Self {
        Self::unable(chain(&e))
    }
}

impl From<PlanError> for Failure {
    fn from(e: PlanError) -> Self {
        match e {
            PlanError::Uplink(_) | PlanError::Ids { .. } => Self::unable(chain(&e)),
            PlanError::EgressWithin {
                ref app,
                ref instead,
                ..
            } => {
                let hint = match instead {
                    Some(connect) => format!(
                        "apps of a stack reach each other by connect = [\"{connect}\"] of {app}, without a published port"
                    ),
                    None => "apps of a stack reach each other by `connect`, which names an app and a port of it: connect = [\"db:5432\"]".to_owned(),
                };
                Self::usage(chain(&e)).hint(hint)
            }
            PlanError::Account { ref root, key, .. } => {
                let hint = match root {
                    Rootfs::BuiltinWebapp => format!("it has no names: {key} = \"1000\""),
                    Rootfs::Host => format!(
                        "names are those of /etc/passwd and /etc/group; any number will do: {key} = \"1000\""
                    ),
                    Rootfs::Dir(path) => format!(
                        "names are those of {0}/etc/passwd and {0}/etc/group; any number will do: {key} = \"1000\"",
                        path.display()
                    ),
                };
                Self::usage(chain(&e)).hint(hint)
            }
            PlanError::OwnerOfOne { .. } => Self::usage(chain(&e)).hint(
                "an app with one id is a volume's owner itself: leave the option out, or add ids = \"range\"",
            ),
            PlanError::OwnerBeyond { .. } => Self::usage(chain(&e)).hint(
                "owner is whom of the app's ids the volume's files belong to within, whoever has them on the disk: leave it out for root",
            ),
            PlanError::OwnersOfUser { .. } => Self::unable(chain(&e)).hint(
                "leave the option out: your own files are those of the app's root, and others' are to be read as far as everybody may",
            ),
            PlanError::RangeWithUser { .. } => Self::usage(chain(&e)).hint(
                "it begins as root over its own ids and changes to a user of its own configuration: leave user and group out; an app that is one user from its start needs no range",
            ),
            PlanError::NoRange { ref hint, .. } => {
                let other = "run it as root, or let it be one user from its start: user = \"www-data\", say, without ids";
                let hint = match hint.as_str() {
                    "" => other.to_owned(),
                    hint => format!("{hint}; or {other}"),
                };
                Self::unable(chain(&e)).hint(hint)
            }
            PlanError::SubnetFull { .. }
            | PlanError::RulesVariable { .. }
            | PlanError::RulesValue { .. } => Self::usage(chain(&e)),
        }
    }
}

impl From<StackError> for Failure {
    fn from(e: StackError) -> Self {
        let failure = match &e {
            StackError::AppEnded { .. }
            | StackError::EndedBefore { .. }
            | StackError::EndedListening { .. }
            | StackError::EndedUnhealthy { .. }
            | StackError::Unhealthy { .. }
            | StackError::JobFailed { .. }
            | StackError::JobGoesOn { .. }
            | StackError::NotListening { .. }
            | StackError::NotAccepting { .. }
            | StackError::EndedUnaccepting { .. }
            | StackError::Path { .. }
            | StackError::Gate { .. }
            | StackError::Interrupted { by: None } => Self::failed(chain(&e)),
            StackError::Interrupted { by: Some(signal) } => Self {
                code: interrupted_by(*signal),
                ..Self::failed(chain(&e))
            },
            StackError::Container(ContainerError::Stage {
                errno: Some(errno), ..
            }) => Self {
                // As a shell: not found, or found and not executable.
                code: if *errno == libc::ENOENT { 127 } else { 126 },
                ..Self::unable(chain(&e))
            },
            e if e.is_of_the_configuration() => Self::usage(chain(e)),
            _ => Self::unable(chain(&e)),
        };
        if let StackError::Extra(extra) = &e
            && let Some(hint) = extra.hint()
        {
            return failure.hint(hint);
        }
        if let StackError::Volume(volume) = &e
            && let Some(hint) = volume.hint()
        {
            return failure.hint(hint);
        }
        if let StackError::Secret(secret) = &e {
            return match secret.hint() {
                Some(hint) => failure.hint(hint),
                None => failure,
            };
        }
        if let StackError::Directory { source, .. } = &e {
            return failure.hint(source.hint());
        }
        // Of TCP: a port of UDP is not listened on.
        if let StackError::Listen(listen) = &e
            && let Some((who, hint)) = holder::who_has(listen.address, Protocol::Tcp)
        {
            return failure.hint(format!("{who}: {hint}"));
        }
        match hint(&e, &failure.message) {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

/// The cure, where it is known.
fn hint(e: &StackError, text: &str) -> Option<&'static str> {
    match e {
        StackError::Namespaces(_) if text.contains("unshare") => Some(
            "user namespaces must be allowed: sysctl user.max_user_namespaces and user.max_net_namespaces, on Debian \
             kernel.unprivileged_userns_clone=1, on Ubuntu kernel.apparmor_restrict_unprivileged_userns=0 or a profile",
        ),
        StackError::Container(ContainerError::Stage { step, .. }) if step == "execute lrpns" => {
            Some("the lrpns binary must be readable and executable by everybody: chmod 755")
        }
        StackError::Container(ContainerError::Stage {
            errno: Some(libc::ENOENT),
            ..
        }) => Some("a program is looked for in the app's rootfs, with the PATH of its env"),
        StackError::Container(ContainerError::Stage {
            step,
            errno: Some(libc::EACCES),
            ..
        }) if step == "execute the command" => Some(
            "the program must be executable by everybody (chmod 755); in a volume it needs the option exec, such as \
             volumes = [\"./server:/srv/server:exec\"], and in a tmpfs nothing can be executed",
        ),
        StackError::Container(ContainerError::Stage { step, .. })
            if step == "enter the working directory" =>
        {
            Some(
                "workdir is a directory of the app's root, of a volume or of a tmpfs, which the app's user may enter",
            )
        }
        e if e.is_for_want_of_the_table() => Some(
            "lrpns ps lists the stacks: a supervisor that was stopped (SIGSTOP) goes on by kill -CONT, or is ended by lrpns \
             down; if no stack has it, another table has that name: nft delete table inet lrpns.host",
        ),
        StackError::HostTable(_) | StackError::SharedTable(_) => Some(
            "the kernel needs nftables: CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET, CONFIG_NFT_NAT, CONFIG_NFT_SOCKET; and no other table may have \
             that name: nft delete table inet NAME",
        ),
        StackError::NotAccepting { .. } => Some(
            "a server takes what it is handed from descriptor 3 on (sd_listen_fds(3)), see `lrpns help \
             publishing`; one that is not to be waited for has `wait = false`",
        ),
        StackError::AppEnded { .. }
        | StackError::EndedBefore { .. }
        | StackError::EndedListening { .. }
        | StackError::EndedUnaccepting { .. }
        | StackError::EndedUnhealthy { .. }
        | StackError::JobFailed { .. }
        | StackError::NotListening { .. } => Some(
            "what the app wrote is above; its command, env and rootfs are in `lrpns plan`. A TCP port that it uses without \
                 publishing it (Permission denied by bind or connect) goes into [app]: listen = [6379]. It, and a system call \
                 that is refused (Operation not permitted), is named by `lrpns up --explain`",
        ),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of a call that failed with this, and was told by whoever was asked to.
    fn hint_of(errno: i32) -> Option<String> {
        let e = std::io::Error::from_raw_os_error(errno);
        let by_caller = "look at the file";
        Failure::unable(format!("open /etc/web.toml: {e}"))
            .hint(by_caller)
            .hint
            .filter(|hint| hint != by_caller)
    }

    #[test]
    fn a_want_of_descriptors_has_its_own_hint_whoever_has_none_left() {
        let process = hint_of(libc::EMFILE).unwrap();
        assert!(process.contains("RLIMIT_NOFILE"), "{process}");
        let machine = hint_of(libc::ENFILE).unwrap();
        for word in ["fs.file-nr", "fs.file-max", "this machine"] {
            assert!(machine.contains(word), "{word}: {machine}");
        }
        assert_eq!(hint_of(libc::ENOENT), None);
        // A number that begins with theirs.
        assert_eq!(shortage("open: (os error 230)"), None);
    }
}

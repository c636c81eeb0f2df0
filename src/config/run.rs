//! `lrpns run`: a stack around one command, written down in flags instead of a file.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::Ipv6Net;

use super::errors::{ConfigErrors, Place, Problem, quoted};
use super::values::ValueError;
use super::vars::parse_set;
use super::{
    Account, App, Config, Limits, Network, Origin, Processors, Publish, Record, RecordTo, Restart,
    Rootfs, Secret, Sidecar, Tmpfs, UnixGrant, Via, Volume, check, keys, reader, values,
};
use crate::names::{PartName, StackName};

/// The IPv6 prefix of a stack that publishes at an IPv6 address: a ULA (RFC 4193) whose global ID is `lrrun` in ASCII, the
/// same for all, since two stacks of one prefix never meet.
const PREFIX: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd6c, 0x7272, 0x756e, 0, 0, 0, 0, 0), 64);

/// The flags of `lrpns run` as they were given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunOptions {
    /// `--name`, the stack's name.
    pub name: String,
    /// Every `--publish`.
    pub publish: Vec<String>,
    /// `--rootfs`; a relative path in it is taken from `base`.
    pub rootfs: String,
    /// Every `--env NAME=VALUE`.
    pub env: Vec<String>,
    /// Every `--tmpfs`; none is the default, a `/tmp`.
    pub tmpfs: Vec<String>,
    /// Every `--volume`; a relative host's path is taken from `base`.
    pub volumes: Vec<String>,
    /// Every `--socket`; as with `--volume`.
    pub sockets: Vec<String>,
    /// Every `--secret`; as with `--volume`.
    pub secrets: Vec<String>,
    /// `--memory`.
    pub memory: Option<String>,
    /// `--cpus`.
    pub cpus: Option<String>,
    /// `--pids-limit`.
    pub pids: Option<String>,
    /// `--user`: `USER[:GROUP]`.
    pub user: Option<String>,
    /// `--workdir`.
    pub workdir: Option<String>,
    /// `--via`; `None` is `auto`.
    pub via: Option<String>,
    /// With `--tty`, the caller's `TERM`.
    pub term: Option<String>,
    /// What stands after `--`.
    pub command: Vec<String>,
}

/// Makes a stack of one app, `app`, from the flags of `lrpns run`. `base` is the current directory.
///
/// # Errors
/// [`ConfigErrors`] has every flag that is wrong.
pub fn run(options: &RunOptions, base: &Path) -> Result<Config, ConfigErrors> {
    let mut flags = Flags::default();
    let name = flags.take(
        "name",
        "--name",
        StackName::new(&options.name).map_err(|error| reader::name_error(&error)),
    );
    let rootfs = values::rootfs(&options.rootfs, base)
        .map_err(|error| error.saying("host, builtin:webapp or dir:PATH", "--rootfs host"));
    let rootfs = flags.take("app.rootfs", "--rootfs", rootfs);
    let publish = flags.publish(&options.publish);
    let mut env = flags.env(&options.env, options.term.as_deref());
    if rootfs == Some(Rootfs::BuiltinWebapp) {
        reader::default_env(&mut env);
    }
    let tmpfs = match options.tmpfs.as_slice() {
        [] => reader::default_tmpfs(),
        given => flags.all::<Tmpfs>("app.tmpfs", "--tmpfs", given),
    };
    let volumes = flags.volumes(&options.volumes, base, &tmpfs);
    let sockets = flags.sockets(&options.sockets, base, &volumes, &tmpfs);
    let secrets = flags.secrets(&options.secrets, base, &volumes, &tmpfs);
    let limits = flags.limits(options);
    let (user, group) = flags.user(options.user.as_deref());
    let workdir = flags.workdir(options.workdir.as_deref());
    let via = flags.via(options.via.as_deref(), &publish);
    let command = flags.command(&options.command, rootfs.as_ref());
    match (name, rootfs) {
        (Some(name), Some(rootfs)) if flags.problems.is_empty() => Ok(Config {
            path: None,
            name,
            network: Network {
                ipv6: publish
                    .iter()
                    .any(|publish| publish.address.is_ipv6())
                    .then_some(PREFIX),
                ..Network::default()
            },
            sidecar: Sidecar::default(),
            // Its user is given everything.
            record: Record {
                to: RecordTo::Off,
                ..Record::default()
            },
            apps: vec![App {
                name: PartName::new("app").expect("`app` is a name"),
                address: None,
                rootfs,
                command,
                user,
                group,
                ids: super::IdCount::One,
                workdir,
                env,
                publish,
                wait: true,
                start_timeout: reader::default_start_timeout(false),
                listen: vec![],
                via,
                source: via.source(),
                egress: vec![],
                allow: crate::config::clients::everybody(),
                rate: None,
                tmpfs,
                volumes,
                sockets,
                secrets,
                after: vec![],
                job: false,
                forks: false,
                health: None,
                restart: Restart::No,
                restart_limit: None,
                stop: super::Stop::default(),
                replace: None,
                connect: vec![],
                limits,
                seccomp: crate::confine::seccomp::default(),
            }],
            origins: flags.origins,
        }),
        _ => Err(ConfigErrors::new(flags.problems)),
    }
}

const VOLUME_EXAMPLE: &str = "--volume /srv/data:/data:ro";

fn out_of_range(text: &str, expected: &'static str, example: &'static str) -> ValueError {
    ValueError::form(
        format!("{} is out of range", quoted(text)),
        expected,
        example,
    )
}

#[derive(Default)]
struct Flags {
    problems: Vec<Problem>,
    origins: BTreeMap<String, Origin>,
}

impl Flags {
    fn take<T>(&mut self, key: &str, flag: &str, parsed: Result<T, ValueError>) -> Option<T> {
        let name = flag.to_owned();
        match parsed {
            Ok(value) => {
                self.origins.insert(key.to_owned(), Origin::Flag { name });
                Some(value)
            }
            Err(ValueError::Later { value, now }) => {
                let value = format!("{flag} {value}");
                let error = ValueError::Later { value, now };
                let mut problem = error.problem(Place::Flag { name });
                problem.example = match flag {
                    "--rootfs" => "--rootfs host".to_owned(),
                    "--via" => "--via auto".to_owned(),
                    _ => format!("{flag} {}", values::PUBLISH_EXAMPLE),
                };
                self.problems.push(problem);
                None
            }
            Err(error) => {
                self.problems.push(error.problem(Place::Flag { name }));
                None
            }
        }
    }

    fn all<T: FromStr<Err = ValueError>>(
        &mut self,
        key: &str,
        flag: &str,
        given: &[String],
    ) -> Vec<T> {
        let parsed = given.iter().map(|text| text.parse::<T>());
        parsed
            .filter_map(|parsed| self.take(key, flag, parsed))
            .collect()
    }

    fn publish(&mut self, given: &[String]) -> Vec<Publish> {
        const FLAG: &str = "--publish";
        let all = self.all::<Publish>("app.publish", FLAG, given);
        if let Err(error) = check::ports(all.iter().copied()) {
            self.take::<()>("", FLAG, Err(error));
        }
        for (i, later) in all.iter().enumerate() {
            let earlier = all[..i]
                .iter()
                .find(|earlier| check::collide(**earlier, *later));
            if let Some(earlier) = earlier {
                let error = check::collision(*earlier, *later, "of another --publish");
                self.take::<()>("", FLAG, Err(error));
            }
        }
        if all.iter().any(|publish| publish.address.is_ipv6()) {
            let how = "a port is published at an IPv6 address".to_owned();
            self.origins
                .insert("network.ipv6".to_owned(), Origin::Chosen { how });
        }
        all
    }

    /// With a terminal, `TERM` is the caller's if nothing else is given.
    fn env(&mut self, given: &[String], term: Option<&str>) -> BTreeMap<String, String> {
        let mut env = BTreeMap::new();
        for text in given {
            let pair = parse_set(text).map_err(|error| match error {
                ValueError::Form {
                    message, expected, ..
                } => ValueError::form(message, expected, "--env PROVIDER=lrpns"),
                later @ ValueError::Later { .. } => later,
            });
            let key = match &pair {
                Ok((name, _)) => format!("app.env.{name}"),
                Err(_) => String::new(),
            };
            env.extend(self.take(&key, "--env", pair));
        }
        if let Some(term) = term
            && !env.contains_key("TERM")
        {
            let term = Ok(("TERM".to_owned(), term.to_owned()));
            env.extend(self.take("app.env.TERM", "--tty", term));
        }
        env
    }

    fn workdir(&mut self, given: Option<&str>) -> PathBuf {
        let workdir = given.and_then(|text| {
            let workdir = values::workdir(text);
            let workdir =
                workdir.map_err(|e| e.saying(keys::WORKDIR.expected, "--workdir /srv/app"));
            self.take("app.workdir", "--workdir", workdir)
        });
        workdir.unwrap_or_else(|| "/".into())
    }

    /// How what is published comes to the app; as sockets, if it can.
    fn via(&mut self, given: Option<&str>, publish: &[Publish]) -> Via {
        let via = given.and_then(|text| {
            let via = values::via(text);
            let via = via.map_err(|error| error.saying(keys::VIA.expected, "--via auto"));
            self.take("app.via", "--via", via)
        });
        let via = via.unwrap_or_default();
        if via == Via::Socket {
            let handed = match publish {
                [] => {
                    Err(check::no_socket().saying("a port of TCP", "--publish 127.0.0.1:8080:8080"))
                }
                all => (0..all.len()).try_for_each(|at| check::handed(all[at], &all[..at])),
            };
            self.take("app.publish", "--publish", handed);
        }
        via
    }

    fn volumes(&mut self, given: &[String], base: &Path, tmpfs: &[Tmpfs]) -> Vec<Volume> {
        const FLAG: &str = "--volume";
        let base = std::fs::canonicalize(base).unwrap_or_else(|_| base.to_owned());
        let mut volumes: Vec<Volume> = vec![];
        for text in given {
            let volume = values::volume(text, &base).and_then(|volume| {
                check::volume(&volume, &volumes, tmpfs)?;
                Ok(volume)
            });
            let volume = volume.map_err(|error| error.saying(values::VOLUME, VOLUME_EXAMPLE));
            volumes.extend(self.take("app.volumes", FLAG, volume));
        }
        volumes
    }

    fn sockets(
        &mut self,
        given: &[String],
        base: &Path,
        volumes: &[Volume],
        tmpfs: &[Tmpfs],
    ) -> Vec<UnixGrant> {
        let base = std::fs::canonicalize(base).unwrap_or_else(|_| base.to_owned());
        let mut sockets: Vec<UnixGrant> = vec![];
        for text in given {
            let socket = values::socket(text, &base).and_then(|socket| {
                check::socket(&socket, &sockets, volumes, tmpfs)?;
                Ok(socket)
            });
            let example = "--socket /run/postgresql:/run/postgresql";
            let socket = socket.map_err(|error| error.saying(values::SOCKET, example));
            sockets.extend(self.take("app.sockets", "--socket", socket));
        }
        sockets
    }

    fn secrets(
        &mut self,
        given: &[String],
        base: &Path,
        volumes: &[Volume],
        tmpfs: &[Tmpfs],
    ) -> Vec<Secret> {
        let mut secrets: Vec<Secret> = vec![];
        for text in given {
            let secret = values::secret(text, base).and_then(|secret| {
                check::secret(&secret, &secrets, volumes, tmpfs)?;
                Ok(secret)
            });
            let example = "--secret tls.key=/etc/ssl/private/tls.key";
            let secret = secret.map_err(|error| error.saying(values::SECRET, example));
            secrets.extend(self.take("app.secrets", "--secret", secret));
        }
        secrets
    }

    /// Docker's and Podman's form, `USER[:GROUP]`.
    fn user(&mut self, given: Option<&str>) -> (Option<Account>, Option<Account>) {
        let Some(text) = given else {
            return (None, None);
        };
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let mut take = |key: &str, text: &str| {
            let account = values::account(text).map_err(|error| {
                error.saying(
                    "`USER[:GROUP]`, names of the root's or numbers",
                    "--user www-data",
                )
            });
            self.take(key, "--user", account)
        };
        let user = take("app.user", user);
        (user, group.and_then(|group| take("app.group", group)))
    }

    /// Docker's and Podman's forms: a small letter is a unit too.
    fn limits(&mut self, options: &RunOptions) -> Limits {
        let memory = options.memory.as_deref().and_then(|text| {
            let upper = text.to_uppercase();
            let size = values::memory(upper.strip_suffix('B').unwrap_or(&upper));
            let size = size.map_err(|error| error.saying(keys::MEMORY.expected, "--memory 256m"));
            self.take("app.limits.memory", "--memory", size)
        });
        let cpu = options.cpus.as_deref().and_then(|text| {
            let cpu = text.parse().ok().and_then(Processors::new);
            let cpu = cpu.ok_or_else(|| out_of_range(text, keys::CPU.expected, "--cpus 1.5"));
            self.take("app.limits.cpu", "--cpus", cpu)
        });
        let pids = options.pids.as_deref().and_then(|text| {
            let pids = text.parse().ok().filter(|pids| *pids >= 2);
            let pids =
                pids.ok_or_else(|| out_of_range(text, keys::PIDS.expected, "--pids-limit 64"));
            self.take("app.limits.pids", "--pids-limit", pids)
        });
        Limits { memory, pids, cpu }
    }

    fn command(&mut self, given: &[String], rootfs: Option<&Rootfs>) -> Vec<String> {
        const FLAG: &str = "COMMAND";
        let bad = |message: &str| {
            let expected = keys::COMMAND.expected;
            Err(ValueError::form(
                message.to_owned(),
                expected,
                "lrpns run -p 8000:8000 -- python3 -m http.server",
            ))
        };
        let checked = match given.first() {
            None if rootfs == Some(&Rootfs::BuiltinWebapp) => return reader::default_command(),
            None => bad("the command is missing"),
            Some(_) if given.iter().any(|word| word.contains('\0')) => {
                bad("the command has a NUL character")
            }
            Some(program) => check::program(program, rootfs)
                .map_err(|error| error.saying(keys::COMMAND.expected, "lrpns run -- /bin/sh")),
        };
        self.take("app.command", FLAG, checked);
        given.to_vec()
    }
}

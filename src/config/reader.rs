//! Walks the parsed file table by table, so that every key and value keeps its place, and collects every problem.

mod life;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::check::{self, Placed};
use super::errors::{ConfigErrors, Place, Problem, Source, escaped, nearest, quoted};
use super::foreign;
use super::keys::{self, Key};
use super::values::{self, ValueError};
use super::vars::{Lookup, Vars, is_name, used_names};
use super::{
    Account, After, App, Check, Config, Connect, Egress, Health, Limits, Network, Origin,
    Processors, Publish, Record, Replace, Rootfs, RulesFile, Secret, Sidecar, Source as Sees, Stop,
    Tmpfs, TrafficLog, UnixGrant, Via, Volume,
};
use crate::confine::seccomp;
use crate::names::{NameError, PartName, StackName};

/// Where the text came from; the built-in example differs in what it calls its values and in its one plain variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Builtin,
}

/// How many apps a stack may have: each is a port of its bridge, which has room for 1,023 (`BR_PORT_BITS`,
/// net/bridge/br_private.h), and starting that many takes a minute.
const MOST_APPS: usize = 256;

/// Names that an app can't have, because lrpns has parts, logs or users of that name.
const RESERVED: [&str; 6] = ["sidecar", "relay", "egress", "host", "traffic", "lrpns"];

/// Files in this directory are named after their stack.
const SYSTEM_DIR: &str = "/etc/lrpns";

/// The whole way from text to [`Config`].
pub(super) fn read(source: Source<'_>, vars: &Vars, kind: Kind) -> Result<Config, ConfigErrors> {
    let mut early = Vec::new();
    let plain: &[&str] = match kind {
        Kind::File => &[],
        Kind::Builtin => &["PROVIDER"],
    };
    let lookup = Lookup::new(vars, plain, &mut early);
    let text = source.text;
    let mut reader = Reader {
        kind,
        base: base_of(source.path),
        source,
        lookup,
        problems: Vec::new(),
        origins: BTreeMap::new(),
    };
    let (table, mut syntax) = DeTable::parse_recoverable(text);
    syntax.sort_by_key(|error| error.span().map_or(0, |span| span.start));
    let mut config = None;
    let doubled = |error: &toml::de::Error| error.message().contains("duplicate key");
    // After any other mistake of syntax the parser guesses, and what follows from a guess is no help.
    if syntax.iter().all(doubled) {
        reader.unused_sets(vars, table.get_ref(), &mut early);
        config = reader.config(table.get_ref());
    }
    for error in &syntax {
        reader.syntax(error);
    }
    reader.problems.sort_by_key(|problem| match &problem.place {
        Place::Text { line, column, .. } => (*line, *column),
        _ => (0, 0),
    });
    early.append(&mut reader.problems);
    match config {
        Some(config) if early.is_empty() => Ok(Config {
            origins: reader.origins,
            ..config
        }),
        _ => Err(vars.hidden(ConfigErrors::new(early))),
    }
}

/// The directory that relative paths of the file are taken from.
fn base_of(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute.parent().map(Path::to_owned).unwrap_or(absolute)
}

type Value<'i> = Spanned<DeValue<'i>>;

/// A table of the file.
struct Section<'t, 'i> {
    /// Its keys joined by dots, empty for the file itself.
    path: String,
    /// Where its name stands.
    head: Range<usize>,
    table: &'t DeTable<'i>,
}

impl<'t, 'i> Section<'t, 'i> {
    fn get(&self, key: &str) -> Option<(Range<usize>, &'t Value<'i>)> {
        let (key, value) = self.table.get_key_value(key)?;
        Some((key.span(), value))
    }

    fn has(&self, key: Key) -> bool {
        self.table.contains_key(key.name)
    }

    fn key_path(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    fn title(&self) -> String {
        match self.path.as_str() {
            "" => "the file".to_owned(),
            path => format!("`[{path}]`"),
        }
    }
}

struct Reader<'t> {
    source: Source<'t>,
    kind: Kind,
    base: PathBuf,
    lookup: Lookup,
    problems: Vec<Problem>,
    origins: BTreeMap<String, Origin>,
}

/// An app that has been read, with the places that the checks across apps need.
struct ReadApp {
    /// For messages.
    name: String,
    /// `None` when something without which there is no app is missing or wrong.
    app: Option<App>,
    address: Option<Placed<Ipv4Addr>>,
    publish: Vec<Placed<Publish>>,
    egress: Vec<Placed<Egress>>,
    connect: Vec<Placed<Connect>>,
    after: Vec<Placed<After>>,
    /// That of its health check, if it says so itself.
    health_port: Option<Placed<u16>>,
}

/// `[sidecar]`, with the place that the checks across addresses need.
#[derive(Default)]
struct ReadSidecar {
    address: Option<Placed<Ipv4Addr>>,
    seal: bool,
    log: TrafficLog,
    rules: Option<RulesFile>,
}

/// `None` is wrong, `Some(None)` is left out.
type MayBeLeftOut<T> = Option<Option<Placed<T>>>;

impl Reader<'_> {
    fn config(&mut self, table: &DeTable<'_>) -> Option<Config> {
        let root = Section {
            path: String::new(),
            head: 0..0,
            table,
        };
        self.vars(&root);
        self.unknown_keys(&root, keys::ROOT_KEYS);
        let name = self.name(&root);
        let (subnet, ipv6) = self.network(&root);
        let sidecar = self.sidecar(&root);
        let record = self.record(&root);
        let apps = self.apps(&root);
        let value = subnet.as_ref().and_then(Option::as_ref).map(|s| s.value);
        // A subnet that could not be read says nothing about the addresses.
        if let Some(subnet) = subnet {
            self.addresses(subnet, sidecar.address.as_ref(), &apps);
        }
        self.publish_twice(&apps);
        self.links(&apps);
        self.order(&apps);
        self.health_ports(&apps);
        // A prefix that could not be read is there all the same.
        if let Some(ipv6) = &ipv6 {
            self.prefix(ipv6.as_ref(), &apps);
        }
        Some(Config {
            path: (self.kind == Kind::File).then(|| {
                let path = self.source.path;
                std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
            }),
            name: name?,
            network: Network {
                subnet: value,
                ipv6: ipv6.flatten().map(|placed| placed.value),
            },
            sidecar: Sidecar {
                address: sidecar.address.map(|placed| placed.value),
                seal: sidecar.seal,
                log: sidecar.log,
                rules: sidecar.rules,
            },
            record,
            apps: apps.into_iter().filter_map(|read| read.app).collect(),
            origins: BTreeMap::new(),
        })
    }

    fn vars(&mut self, root: &Section<'_, '_>) {
        let Some(section) = self.section(root, keys::VARS) else {
            return;
        };
        // Values are added after all have been read: they can't use each other, so there is no order and no circle.
        let mut found = Vec::new();
        for (key, value) in section.table {
            let name: &str = key.get_ref();
            if !is_name(name) {
                self.problem(
                    key.span(),
                    format!("{} is no variable's name", quoted(name)),
                    "letters, digits and `_`, no digit first",
                    "PROVIDER = \"world\"",
                );
                continue;
            }
            let path = section.key_path(name);
            let text = self.text(&path, value, "a string", "PROVIDER = \"world\"");
            if let Some((text, from)) = text {
                self.origin(path.clone(), value.span(), from);
                found.push((name.to_owned(), text, self.origins[&path].clone()));
            }
        }
        for (name, text, origin) in found {
            self.lookup.add(name, text, origin);
        }
    }

    fn name(&mut self, root: &Section<'_, '_>) -> Option<StackName> {
        let path = std::path::absolute(self.source.path).ok();
        let of_file = path.as_deref().filter(|path| {
            path.parent() == Some(Path::new(SYSTEM_DIR))
                && path.extension().is_some_and(|e| e == "toml")
        });
        let of_file = of_file
            .and_then(Path::file_stem)
            .and_then(|stem| StackName::new(stem.to_str()?).ok());
        let parse = |text: &str| {
            let name = StackName::new(text).map_err(|error| name_error(&error))?;
            match &of_file {
                Some(of_file) if *of_file != name => Err(ValueError::form(
                    format!("the stack `{name}` in the file of the stack `{of_file}`"),
                    "the file's own name, or no name at all",
                    "leave `name` out",
                )),
                _ => Ok(name),
            }
        };
        match self.one(root, keys::NAME, parse) {
            Some(placed) => Some(placed.value),
            None if root.has(keys::NAME) => None,
            None if of_file.is_some() => of_file,
            None => {
                self.missing(root, keys::NAME);
                None
            }
        }
    }

    /// Subnet and IPv6 prefix.
    fn network(
        &mut self,
        root: &Section<'_, '_>,
    ) -> (MayBeLeftOut<Ipv4Net>, MayBeLeftOut<Ipv6Net>) {
        if !root.has(keys::NETWORK) {
            return (Some(None), Some(None));
        }
        let Some(section) = self.section(root, keys::NETWORK) else {
            return (None, None);
        };
        self.unknown_keys(&section, keys::NETWORK_KEYS);
        let ipv6 = self.one(&section, keys::IPV6, values::ipv6);
        let subnet = self.one(&section, keys::SUBNET, values::subnet);
        let on = |placed: Placed<Option<Ipv6Net>>| {
            placed.value.map(|value| Placed {
                value,
                span: placed.span,
            })
        };
        (
            (subnet.is_some() || !section.has(keys::SUBNET)).then_some(subnet),
            (ipv6.is_some() || !section.has(keys::IPV6)).then_some(ipv6.and_then(on)),
        )
    }

    fn sidecar(&mut self, root: &Section<'_, '_>) -> ReadSidecar {
        let Some(section) = self.section(root, keys::SIDECAR) else {
            return ReadSidecar::default();
        };
        self.unknown_keys(&section, keys::SIDECAR_KEYS);
        let log = self.one(&section, keys::LOG, values::log);
        let base = self.base.clone();
        let rules = self.one(&section, keys::RULES, |text| values::rules(text, &base));
        let rules = rules.and_then(|path| self.rules(path.value));
        ReadSidecar {
            seal: self.flag(&section, keys::SEAL) == Some(true),
            rules,
            address: self.one(&section, keys::SIDECAR_ADDRESS, values::address),
            log: log.map(|placed| placed.value).unwrap_or_default(),
        }
    }

    fn record(&mut self, root: &Section<'_, '_>) -> Record {
        let default = Record::default();
        let Some(section) = self.section(root, keys::RECORD) else {
            return default;
        };
        self.unknown_keys(&section, keys::RECORD_KEYS);
        let to = self.one(&section, keys::TO, values::record_to);
        let dir = self.one(&section, keys::DIR, values::directory);
        let size = self.one(&section, keys::SIZE, values::record_size);
        let age = self.one(&section, keys::AGE, values::age);
        Record {
            to: to.map_or(default.to, |placed| placed.value),
            dir: dir.map(|placed| placed.value),
            size: size.map_or(default.size, |placed| placed.value),
            age: age.map_or(default.age, |placed| placed.value),
        }
    }

    fn rules(&mut self, path: PathBuf) -> Option<RulesFile> {
        match super::read_text(&path, super::LARGEST_RULES) {
            Ok(super::Text { text, private }) => Some(RulesFile {
                path,
                text,
                private,
                vars: self.lookup.table(),
            }),
            Err(problem) if problem.is_of_trust() => {
                self.problems.push(*problem);
                None
            }
            Err(problem) => {
                self.problems.push(Problem {
                    expected: "a file in nft's language".to_owned(),
                    example: "chain before { ip saddr 192.0.2.0/24 drop; }".to_owned(),
                    ..*problem
                });
                None
            }
        }
    }

    /// `[app]`, or every `[app.NAME]`: a table whose name is no key of an app is an app.
    fn apps(&mut self, root: &Section<'_, '_>) -> Vec<ReadApp> {
        if !root.has(keys::APP) {
            self.missing(root, keys::APP);
            return Vec::new();
        }
        let Some(section) = self.section(root, keys::APP) else {
            return Vec::new();
        };
        let is_key = |name: &str| keys::APP_KEYS.iter().any(|key| key.name == name);
        let own_keys = section.table.iter().any(|(key, _)| is_key(key.get_ref()));
        // `environment = { A = "b" }` is a mistaken key, not an app of that name.
        let is_app = |name: &str, value: &DeValue<'_>| match value {
            DeValue::Table(table) if !is_key(name) => {
                let has_keys = table.iter().any(|(key, _)| is_key(key.get_ref()));
                has_keys || !(own_keys || foreign::is_foreign(name))
            }
            _ => false,
        };
        let (named, own): (Vec<_>, Vec<_>) = section
            .table
            .iter()
            .partition(|(key, value)| is_app(key.get_ref(), value.get_ref()));
        if named.is_empty() {
            self.unknown_keys(&section, keys::APP_KEYS);
            let name = PartName::new("app").expect("`app` is a name");
            return vec![self.app(&section, name)];
        }
        for (key, _) in own {
            let name: &str = key.get_ref();
            let first: &str = named[0].0.get_ref();
            self.problem(
                key.span(),
                format!(
                    "{} is a key of `[app]`, which can't stand beside `[app.NAME]` (here {})",
                    quoted(name),
                    quoted(&format!("[app.{first}]"))
                ),
                "either `[app]` or several `[app.NAME]`",
                "[app.web]",
            );
        }
        let mut apps = Vec::new();
        if let Some((key, _)) = named.get(MOST_APPS) {
            self.problem(
                key.span(),
                format!("{} apps in a stack", named.len()),
                &format!("at most {MOST_APPS}"),
                "several stacks",
            );
            return apps;
        }
        for (key, value) in named {
            let (text, DeValue::Table(table)) = (key.get_ref(), value.get_ref()) else {
                continue;
            };
            let name = PartName::new(text.as_ref()).map_err(|error| error.to_string());
            let name = name.and_then(|name| {
                if RESERVED.contains(&name.as_str()) {
                    return Err(format!("`{name}` is reserved for lrpns itself"));
                }
                Ok(name)
            });
            let section = Section {
                path: format!("app.{}", escaped(text)),
                head: key.span(),
                table,
            };
            self.unknown_keys(&section, keys::APP_KEYS);
            let name = name.unwrap_or_else(|message| {
                self.problem(
                    key.span(),
                    escaped(&message),
                    "a name of letters, digits, `-` and `_`, at most 32, and not `sidecar`, `relay`, `egress`, `host`, `traffic` or `lrpns`",
                    "[app.web]",
                );
                PartName::new("app").expect("`app` is a name")
            });
            apps.push(self.app(&section, name));
        }
        apps
    }

    fn app(&mut self, section: &Section<'_, '_>, name: PartName) -> ReadApp {
        let address = self.one(section, keys::APP_ADDRESS, values::address);
        let base = self.base.clone();
        let rootfs = self.one(section, keys::ROOTFS, |text| values::rootfs(text, &base));
        if !section.has(keys::ROOTFS) {
            self.missing(section, keys::ROOTFS);
        }
        let rootfs = rootfs.map(|placed| placed.value);
        let command = self.command(section, rootfs.as_ref());
        let user = self.account(section, keys::USER);
        let group = self.account(section, keys::GROUP);
        let ids = self.one(section, keys::IDS, values::ids);
        let workdir = self.one(section, keys::WORKDIR, values::workdir);
        let mut env = self.env(section);
        if rootfs == Some(Rootfs::BuiltinWebapp) {
            default_env(&mut env);
        }
        let publish = self.many(section, keys::PUBLISH, str::parse::<Publish>);
        let wait = self.flag(section, keys::WAIT);
        let start_timeout = self.one(section, keys::START_TIMEOUT, values::time);
        let start_timeout = start_timeout.map(|placed| placed.value);
        let listen = self.ports(section, keys::LISTEN);
        let via = self.one(section, keys::VIA, values::via);
        let source = self.one(section, keys::SOURCE, values::source);
        let egress = self.many(section, keys::EGRESS, values::egress);
        let egress = egress.unwrap_or_default();
        let connect = self.many(section, keys::CONNECT, values::connect);
        let connect = connect.unwrap_or_default();
        let after = self.after(section);
        let job = self.job(
            section,
            publish.as_ref().is_some_and(|list| !list.is_empty()),
        );
        let forks = self.forks(section, job);
        let allow = self.allow(section);
        let rate = self.one(section, keys::RATE, values::rate);
        let tmpfs = self.tmpfs(section);
        let volumes = self.volumes(section, &tmpfs);
        let sockets = self.sockets(section, &volumes, &tmpfs);
        let secrets = self.secrets(section, &volumes, &tmpfs);
        let (health, health_port) = self.health(section, (publish.as_deref(), &listen), job);
        let (restart, restart_limit) = self.restart(section, job);
        let stop = self.stop(section);
        let replace = self.replace(section);
        let limits = self.limits(section);
        let seccomp = self.seccomp(section);
        let via = via.map(|placed| placed.value).unwrap_or_default();
        let source = source.map(|placed| placed.value);
        if via == Via::Socket {
            self.without_network(
                section,
                publish.as_deref(),
                source,
                replace,
                health.as_ref(),
            );
        }
        if source == Some(Sees::Localhost) {
            for publish in publish.iter().flatten() {
                if publish.value.address.is_ipv6() {
                    self.refused(publish.span.clone(), check::no_localhost6());
                }
            }
        }
        let shown = name.to_string();
        let app = rootfs.zip(command).map(|(rootfs, command)| App {
            name,
            address: address.as_ref().map(|placed| placed.value),
            rootfs,
            command,
            user,
            group,
            ids: ids.map(|placed| placed.value).unwrap_or_default(),
            workdir: workdir.map_or_else(|| "/".into(), |placed| placed.value),
            env,
            publish: publish
                .iter()
                .flatten()
                .map(|placed| placed.value)
                .collect(),
            wait: wait.unwrap_or(true),
            start_timeout: start_timeout.unwrap_or(default_start_timeout(job)),
            listen,
            via,
            allow,
            rate: rate.and_then(|placed| placed.value),
            source: source.unwrap_or_else(|| via.source()),
            egress: egress.iter().map(|placed| placed.value).collect(),
            connect: connect.iter().map(|placed| placed.value.clone()).collect(),
            tmpfs,
            volumes,
            sockets,
            secrets,
            after: after.iter().map(|placed| placed.value.clone()).collect(),
            job,
            forks,
            health,
            restart,
            restart_limit,
            stop,
            replace,
            limits,
            seccomp,
        });
        ReadApp {
            name: shown,
            app,
            address,
            publish: publish.unwrap_or_default(),
            egress,
            connect,
            after,
            health_port,
        }
    }

    /// `via = "socket"`: what takes a network of the app's own is refused.
    fn without_network(
        &mut self,
        section: &Section<'_, '_>,
        publish: Option<&[Placed<Publish>]>,
        source: Option<Sees>,
        replace: Option<Replace>,
        health: Option<&Health>,
    ) {
        if publish.is_some_and(<[_]>::is_empty) || !section.has(keys::PUBLISH) {
            self.refused(self.place_of(section, keys::VIA), check::no_socket());
        }
        let all = publish.unwrap_or_default();
        let values: Vec<Publish> = all.iter().map(|placed| placed.value).collect();
        for (at, publish) in all.iter().enumerate() {
            if let Err(error) = check::handed(publish.value, &values[..at]) {
                self.refused(publish.span.clone(), error);
            }
        }
        for key in [keys::EGRESS, keys::CONNECT] {
            let listed = section.get(key.name);
            let listed = listed.filter(
                |(_, value)| !matches!(value.get_ref(), DeValue::Array(all) if all.is_empty()),
            );
            if let Some((span, _)) = listed {
                self.refused(span, check::no_network(key.name));
            }
        }
        if let Some(sees @ (Sees::Sidecar | Sees::Localhost)) = source {
            let span = self.place_of(section, keys::SOURCE);
            self.refused(span, check::sees_its_clients(sees));
        }
        if replace == Some(Replace::Rolling) {
            let span = self.place_of(section, keys::REPLACE);
            self.refused(span, check::waits_in_the_backlog());
        }
        if health.is_some_and(|health| !matches!(health.check, Check::Command { .. })) {
            let span = self.place_of(section, keys::HEALTH);
            self.refused(span, check::no_port_within());
        }
    }

    /// Where a key stands, or else its table.
    fn place_of(&self, section: &Section<'_, '_>, key: Key) -> Range<usize> {
        let found = section.get(key.name);
        found.map_or_else(|| section.head.clone(), |(span, _)| span)
    }

    fn allow(&mut self, section: &Section<'_, '_>) -> Vec<IpNet> {
        let Some(list) = self.many(section, keys::ALLOW, values::allow) else {
            return crate::config::clients::everybody();
        };
        if let (true, Some((span, _))) = (list.is_empty(), section.get(keys::ALLOW.name)) {
            let message = "`allow` is empty, so nobody could connect; an app without clients has no `publish`";
            self.key_problem(span, message.to_owned(), keys::ALLOW);
        }
        list.into_iter().map(|placed| placed.value).collect()
    }

    /// A name or a number; the number may be one of TOML's.
    fn account(&mut self, section: &Section<'_, '_>, key: Key) -> Option<Account> {
        if let Some((_, value)) = section.get(key.name)
            && let DeValue::Integer(_) = value.get_ref()
        {
            let id = |n: f64| {
                let whole = n.fract() == 0.0 && (0.0..f64::from(u32::MAX)).contains(&n);
                whole.then_some(Account::Id(n as u32))
            };
            return self.number(section, key, id);
        }
        let account = self.one(section, key, values::account);
        account.map(|placed| placed.value)
    }

    fn seccomp(&mut self, section: &Section<'_, '_>) -> seccomp::Profile {
        let base = self.base.clone();
        let choice = self.one(section, keys::SECCOMP, |text| values::seccomp(text, &base));
        match choice.map(|placed| placed.value) {
            None | Some(values::Seccomp::Default) => seccomp::default(),
            Some(values::Seccomp::Strict) => seccomp::strict(),
            Some(values::Seccomp::With(profile)) => *profile,
            Some(values::Seccomp::File(path)) => {
                super::read_seccomp(&path).unwrap_or_else(|problem| {
                    self.problems.push(*problem);
                    seccomp::default()
                })
            }
        }
    }

    fn command(
        &mut self,
        section: &Section<'_, '_>,
        rootfs: Option<&Rootfs>,
    ) -> Option<Vec<String>> {
        let Some((span, _)) = section.get(keys::COMMAND.name) else {
            return match rootfs {
                Some(Rootfs::BuiltinWebapp) => Some(default_command()),
                Some(_) => {
                    self.missing(section, keys::COMMAND);
                    None
                }
                // Whether it can be left out is not known.
                None => None,
            };
        };
        let words = self.many(section, keys::COMMAND, |text| Ok(text.to_owned()))?;
        let Some(program) = words.first() else {
            self.key_problem(span, "the command is empty".to_owned(), keys::COMMAND);
            return None;
        };
        if let Err(error) = check::program(&program.value, rootfs) {
            self.refused_key(program.span.clone(), error, keys::COMMAND, "");
        }
        Some(words.into_iter().map(|placed| placed.value).collect())
    }

    fn env(&mut self, section: &Section<'_, '_>) -> BTreeMap<String, String> {
        let mut env = BTreeMap::new();
        let Some(section) = self.section(section, keys::ENV) else {
            return env;
        };
        for (key, value) in section.table {
            let name: &str = key.get_ref();
            if !is_name(name) {
                self.problem(
                    key.span(),
                    format!("{} is no name of a variable", quoted(name)),
                    "letters, digits and `_`, no digit first",
                    keys::ENV.example,
                );
                continue;
            }
            let path = section.key_path(name);
            let text = self.text(&path, value, "a string", "PORT = \"5000\"");
            if let Some((text, from)) = text {
                self.origin(path, value.span(), from);
                env.insert(name.to_owned(), text);
            }
        }
        env
    }

    fn tmpfs(&mut self, section: &Section<'_, '_>) -> Vec<Tmpfs> {
        let Some(list) = self.many(section, keys::TMPFS, str::parse::<Tmpfs>) else {
            return default_tmpfs();
        };
        for (i, later) in list.iter().enumerate() {
            let same = list[..i]
                .iter()
                .any(|earlier| earlier.value.path == later.value.path);
            if same {
                let path = quoted(&later.value.path.to_string_lossy());
                let message = format!("two tmpfs are to be at {path}");
                self.key_problem(later.span.clone(), message, keys::TMPFS);
            }
        }
        list.into_iter().map(|placed| placed.value).collect()
    }

    fn stop(&mut self, section: &Section<'_, '_>) -> Stop {
        let signal = self.one(section, keys::STOP_SIGNAL, values::stop_signal);
        let timeout = self.one(section, keys::STOP_TIMEOUT, values::time);
        let default = Stop::default();
        Stop {
            signal: signal.map_or(default.signal, |placed| placed.value),
            timeout: timeout.map_or(default.timeout, |placed| placed.value),
        }
    }

    fn replace(&mut self, section: &Section<'_, '_>) -> Option<Replace> {
        let replace = self.one(section, keys::REPLACE, values::replace);
        replace.map(|placed| placed.value)
    }

    fn volumes(&mut self, section: &Section<'_, '_>, tmpfs: &[Tmpfs]) -> Vec<Volume> {
        // A volume is opened without following links, and those that lead to the file are its user's.
        let base = std::fs::canonicalize(&self.base).unwrap_or_else(|_| self.base.clone());
        let list = self.many(section, keys::VOLUMES, |text| values::volume(text, &base));
        let list = list.unwrap_or_default();
        let mut volumes = Vec::with_capacity(list.len());
        for placed in list {
            if let Err(error) = check::volume(&placed.value, &volumes, tmpfs) {
                self.refused_key(placed.span, error, keys::VOLUMES, "");
            }
            volumes.push(placed.value);
        }
        volumes
    }

    fn sockets(
        &mut self,
        section: &Section<'_, '_>,
        volumes: &[Volume],
        tmpfs: &[Tmpfs],
    ) -> Vec<UnixGrant> {
        let base = std::fs::canonicalize(&self.base).unwrap_or_else(|_| self.base.clone());
        let list = self.many(section, keys::SOCKETS, |text| values::socket(text, &base));
        let list = list.unwrap_or_default();
        let mut sockets = Vec::with_capacity(list.len());
        for placed in list {
            if let Err(error) = check::socket(&placed.value, &sockets, volumes, tmpfs) {
                self.refused_key(placed.span, error, keys::SOCKETS, "");
            }
            sockets.push(placed.value);
        }
        sockets
    }

    fn secrets(
        &mut self,
        section: &Section<'_, '_>,
        volumes: &[Volume],
        tmpfs: &[Tmpfs],
    ) -> Vec<Secret> {
        // Its path may have links in it: certbot's are links.
        let base = std::path::absolute(&self.base).unwrap_or_else(|_| self.base.clone());
        let list = self.many(section, keys::SECRETS, |text| values::secret(text, &base));
        let list = list.unwrap_or_default();
        let mut secrets = Vec::with_capacity(list.len());
        for placed in list {
            if let Err(error) = check::secret(&placed.value, &secrets, volumes, tmpfs) {
                self.refused_key(placed.span, error, keys::SECRETS, "");
            }
            secrets.push(placed.value);
        }
        secrets
    }

    fn limits(&mut self, section: &Section<'_, '_>) -> Limits {
        let Some(table) = self.section(section, keys::LIMITS) else {
            return Limits::default();
        };
        self.unknown_keys(&table, keys::LIMITS_KEYS);
        let memory = self.one(&table, keys::MEMORY, values::memory);
        Limits {
            memory: memory.map(|placed| placed.value),
            pids: self.number(&table, keys::PIDS, |n| {
                // The first process is ours, and the command needs one.
                (n.fract() == 0.0 && n >= 2.0 && n <= f64::from(u32::MAX)).then_some(n as u32)
            }),
            cpu: self.number(&table, keys::CPU, Processors::new),
        }
    }

    /// Addresses are in the subnet, are no one else's and can be used.
    fn addresses(
        &mut self,
        subnet: Option<Placed<Ipv4Net>>,
        sidecar: Option<&Placed<Ipv4Addr>>,
        apps: &[ReadApp],
    ) {
        let mut taken: Vec<(String, Placed<Ipv4Addr>)> = Vec::new();
        let mut all = Vec::new();
        if let Some(sidecar) = sidecar {
            all.push(("the sidecar".to_owned(), sidecar.clone()));
        }
        for read in apps {
            if let Some(address) = &read.address {
                all.push((format!("the app `{}`", read.name), address.clone()));
            }
        }
        let Some(subnet) = subnet else {
            for (_, address) in all {
                self.problem(
                    address.span,
                    format!("the address {} needs a subnet to be in", address.value),
                    "`subnet` in `[network]`, or no address",
                    keys::SUBNET.example,
                );
            }
            return;
        };
        if let Err(error) = check::room(subnet.value, apps.len()) {
            self.refused(subnet.span.clone(), error);
        }
        for (owner, address) in all {
            let others = taken
                .iter()
                .map(|(owner, other)| (owner.as_str(), other.value));
            let sidecar = sidecar.map(|placed| placed.value);
            if let Err(error) = check::address(address.value, &owner, subnet.value, sidecar, others)
            {
                self.refused(address.span.clone(), error);
            }
            taken.push((owner, address));
        }
    }

    /// The prefix has room for all, and without one nothing is published at an IPv6 address, nor connected to.
    fn prefix(&mut self, prefix: Option<&Placed<Ipv6Net>>, apps: &[ReadApp]) {
        if let Some(prefix) = prefix {
            if let Err(error) = check::room6(prefix.value, apps.len()) {
                self.refused(prefix.span.clone(), error);
            }
            return;
        }
        for publish in apps.iter().flat_map(|read| &read.publish) {
            if let IpAddr::V6(address) = publish.value.address {
                self.refused(publish.span.clone(), check::no_prefix(address));
            }
        }
        for egress in apps.iter().flat_map(|read| &read.egress) {
            if egress.value.to.addr().is_ipv6() {
                self.refused(egress.span.clone(), check::no_prefix_for(egress.value));
            }
        }
    }

    fn publish_twice(&mut self, apps: &[ReadApp]) {
        let all: Vec<&Placed<Publish>> = apps.iter().flat_map(|read| &read.publish).collect();
        if let (Some(last), Err(error)) = (
            all.last(),
            check::ports(all.iter().map(|placed| placed.value)),
        ) {
            self.refused(last.span.clone(), error);
        }
        for (i, later) in all.iter().enumerate() {
            let earlier = all[..i]
                .iter()
                .find(|earlier| check::collide(earlier.value, later.value));
            if let Some(earlier) = earlier {
                let line = self.source.line(earlier.span.start);
                self.refused(
                    later.span.clone(),
                    check::collision(earlier.value, later.value, &format!("on line {line}")),
                );
            }
        }
    }

    /// What an app connects to is another app of this file.
    fn links(&mut self, apps: &[ReadApp]) {
        let names: Vec<&str> = apps.iter().map(|app| app.name.as_str()).collect();
        for read in apps {
            for connect in &read.connect {
                let (to, own) = (connect.value.app.as_str(), read.name.as_str());
                let handed = apps.iter().any(|other| {
                    let its = other.app.as_ref().is_some_and(|app| app.via == Via::Socket);
                    its && other.name == to
                });
                if handed {
                    self.refused(connect.span.clone(), check::not_to_be_reached(to));
                } else if let Err(error) = check::other_app(to, own, &names) {
                    self.refused_key(connect.span.clone(), error, keys::CONNECT, "");
                }
            }
        }
    }

    /// `--set` of a name that nothing uses is a typo.
    fn unused_sets(&self, vars: &Vars, table: &DeTable<'_>, problems: &mut Vec<Problem>) {
        let mut used = BTreeSet::new();
        for (_, value) in table {
            collect_names(value.get_ref(), &mut used);
        }
        // The user's own rules say `$NAME` of whatever is in the table.
        let sidecar = table.get(keys::SIDECAR.name).map(Spanned::get_ref);
        if let Some(DeValue::Table(sidecar)) = sidecar
            && sidecar.contains_key(keys::RULES.name)
            && let Some(DeValue::Table(vars)) = table.get(keys::VARS.name).map(Spanned::get_ref)
        {
            used.extend(vars.keys().map(|name| name.get_ref().to_string()));
        }
        let mut seen = BTreeSet::new();
        for (name, _) in &vars.set {
            if used.contains(name) || !seen.insert(name) {
                continue;
            }
            let near = nearest(name, used.iter().map(String::as_str));
            problems.push(Problem {
                place: Place::Flag {
                    name: format!("--set {name}"),
                },
                message: format!(
                    "no string of {} says `${{{name}}}`{}",
                    self.source.path.display(),
                    near.map_or(String::new(), |near| format!(
                        "; the nearest name that is used is `{near}`"
                    ))
                ),
                label: String::new(),
                expected: "a name that the file uses".to_owned(),
                example: match near {
                    Some(near) => format!("--set {near}=VALUE"),
                    None => format!("env = {{ {name} = \"${{{name}}}\" }}"),
                },
            });
        }
    }

    fn syntax(&mut self, error: &toml::de::Error) {
        const NOT_TOML: &str = "not TOML: ";
        let span = error.span().unwrap_or(0..0);
        let start = span.start;
        let (message, expected) = match error.message().split_once(", expected ") {
            Some((message, expected)) => (message, expected),
            None => (error.message(), ""),
        };
        let problem = Problem {
            place: self.source.place(span),
            message: format!("{NOT_TOML}{message}"),
            label: String::new(),
            expected: match (expected, message) {
                ("", "duplicate key") => "every key once".to_owned(),
                _ if let Some(other) = foreign::looks_like(self.source.text) => other.to_owned(),
                ("", _) => "TOML 1.0, see toml.io".to_owned(),
                (expected, _) => expected.to_owned(),
            },
            example: keys::NAME.example.to_owned(),
        };
        // The parser stumbles over one mistake more than once; the first stumble of a line is the mistake.
        let line = self.source.line(start);
        let stumbled = |other: &Problem| {
            matches!(other.place, Place::Text { line: l, .. } if l == line)
                && other.message.starts_with(NOT_TOML)
        };
        if !self.problems.iter().any(stumbled) {
            self.problems.push(problem);
        }
    }
}

/// Reading single values.
impl Reader<'_> {
    /// A table within `parent`; `None` when it is absent or no table.
    fn section<'t, 'i>(&mut self, parent: &Section<'t, 'i>, key: Key) -> Option<Section<'t, 'i>> {
        let (head, value) = parent.get(key.name)?;
        let path = parent.key_path(key.name);
        let DeValue::Table(table) = value.get_ref() else {
            self.wrong_type(&path, value, "a table", key.example);
            return None;
        };
        Some(Section { path, head, table })
    }

    /// A string with its variables filled in, and where it came from if not from the file alone.
    fn text(
        &mut self,
        path: &str,
        value: &Value<'_>,
        expected: &str,
        example: &str,
    ) -> Option<(String, Option<Origin>)> {
        let DeValue::String(text) = value.get_ref() else {
            self.wrong_type(path, value, expected, example);
            return None;
        };
        match self.lookup.expand(text) {
            Ok((text, _)) if text.contains('\0') => {
                let message = format!("{} has a NUL character", quoted(path));
                self.problem(value.span(), message, "text without it", example);
                None
            }
            Ok(expanded) => Some(expanded),
            Err(unfilled) => {
                for wrong in unfilled {
                    let span = self.within(value, text, wrong.span);
                    self.problems.push(Problem {
                        place: self.source.place(span),
                        message: wrong.message,
                        label: String::new(),
                        expected: wrong.expected,
                        example: wrong.example,
                    });
                }
                None
            }
        }
    }

    /// Where bytes of a string stand in the file; the whole string if it has escapes, which move them.
    fn within(&self, value: &Value<'_>, text: &str, part: Range<usize>) -> Range<usize> {
        let span = value.span();
        let raw = self.source.text.get(span.clone()).unwrap_or_default();
        match raw.find(text) {
            Some(start) => span.start + start + part.start..span.start + start + part.end,
            None => span,
        }
    }

    fn one<T>(
        &mut self,
        section: &Section<'_, '_>,
        key: Key,
        parse: impl Fn(&str) -> Result<T, ValueError>,
    ) -> Option<Placed<T>> {
        let (_, value) = section.get(key.name)?;
        let path = section.key_path(key.name);
        let (text, from) = self.text(&path, value, "a string", key.example)?;
        match parse(&text) {
            Ok(parsed) => {
                self.origin(path, value.span(), from);
                Some(Placed {
                    value: parsed,
                    span: value.span(),
                })
            }
            Err(error) => {
                self.refused_key(value.span(), error, key, &path);
                None
            }
        }
    }

    /// A list of strings; `None` when it is absent or anything of it is wrong.
    fn many<T>(
        &mut self,
        section: &Section<'_, '_>,
        key: Key,
        parse: impl Fn(&str) -> Result<T, ValueError>,
    ) -> Option<Vec<Placed<T>>> {
        let (_, value) = section.get(key.name)?;
        let path = section.key_path(key.name);
        let DeValue::Array(array) = value.get_ref() else {
            self.wrong_type(&path, value, "a list of strings", key.example);
            return None;
        };
        let mut list = Vec::with_capacity(array.len());
        let mut origin = None;
        for value in array {
            let Some((text, from)) = self.text(&path, value, "a string", key.example) else {
                continue;
            };
            origin = origin.or(from);
            match parse(&text) {
                Ok(parsed) => list.push(Placed {
                    value: parsed,
                    span: value.span(),
                }),
                Err(error) => {
                    self.refused_key(value.span(), error, key, &path);
                }
            }
        }
        self.origin(path, value.span(), origin);
        (list.len() == array.len()).then_some(list)
    }

    fn flag(&mut self, section: &Section<'_, '_>, key: Key) -> Option<bool> {
        let (_, value) = section.get(key.name)?;
        let path = section.key_path(key.name);
        let DeValue::Boolean(flag) = value.get_ref() else {
            self.wrong_type(&path, value, "true or false", key.example);
            return None;
        };
        self.origin(path, value.span(), None);
        Some(*flag)
    }

    /// `pids` is a whole number, `cpu` may have a fraction; `take` says which are in range.
    fn number<T>(
        &mut self,
        section: &Section<'_, '_>,
        key: Key,
        take: impl Fn(f64) -> Option<T>,
    ) -> Option<T> {
        let (_, value) = section.get(key.name)?;
        let path = section.key_path(key.name);
        let number = match value.get_ref() {
            DeValue::Integer(n) => u32::from_str_radix(n.as_str(), n.radix())
                .ok()
                .map(f64::from),
            DeValue::Float(n) if key.name == keys::CPU.name => n.as_str().parse().ok(),
            _ => {
                self.wrong_type(&path, value, "a number", key.example);
                return None;
            }
        };
        let taken = number.and_then(take);
        match &taken {
            Some(_) => self.origin(path, value.span(), None),
            None => self.key_problem(value.span(), format!("`{path}` is out of range"), key),
        }
        taken
    }

    /// A list of ports, as numbers or as strings with variables.
    fn ports(&mut self, section: &Section<'_, '_>, key: Key) -> Vec<u16> {
        let Some((_, value)) = section.get(key.name) else {
            return vec![];
        };
        let path = section.key_path(key.name);
        let DeValue::Array(array) = value.get_ref() else {
            self.wrong_type(&path, value, "a list of ports", key.example);
            return vec![];
        };
        let (mut ports, mut origin) = (vec![], None);
        for value in array {
            let text = match value.get_ref() {
                DeValue::Integer(n) if n.radix() == 10 => n.as_str().to_owned(),
                DeValue::String(_) => {
                    let Some((text, from)) = self.text(&path, value, "a port", key.example) else {
                        continue;
                    };
                    origin = origin.or(from);
                    text
                }
                _ => {
                    self.wrong_type(&path, value, "a port", key.example);
                    continue;
                }
            };
            // Of a port that the kernel chooses.
            let free = text == "0" && key.name == keys::LISTEN.name;
            match values::port(&text) {
                _ if free => ports.push(0),
                Ok(port) => ports.push(port),
                Err(error) => {
                    self.refused_key(value.span(), error, key, &path);
                }
            }
        }
        self.origin(path, value.span(), origin);
        ports
    }

    fn origin(&mut self, path: String, span: Range<usize>, from: Option<Origin>) {
        let origin = from.unwrap_or_else(|| match self.kind {
            Kind::Builtin => Origin::Builtin,
            Kind::File => Origin::File {
                path: self.source.path.to_owned(),
                line: self.source.line(span.start),
            },
        });
        self.origins.insert(path, origin);
    }
}

/// Noting problems.
impl Reader<'_> {
    fn problem(&mut self, span: Range<usize>, message: String, expected: &str, example: &str) {
        self.problems.push(Problem {
            place: self.source.place(span),
            message,
            label: String::new(),
            expected: expected.to_owned(),
            example: example.to_owned(),
        });
    }

    fn key_problem(&mut self, span: Range<usize>, message: String, key: Key) {
        self.problem(span, message, key.expected, key.example);
    }

    fn refused(&mut self, span: Range<usize>, error: ValueError) {
        self.problems.push(error.problem(self.source.place(span)));
    }

    /// The same for the value of one key, which knows what was expected.
    fn refused_key(&mut self, span: Range<usize>, error: ValueError, key: Key, path: &str) {
        match error.saying(key.expected, key.example) {
            ValueError::Later { value, now } => {
                let message = format!("not supported yet: {path} = {value}");
                self.problem(span, message, now, key.example);
            }
            form @ ValueError::Form { .. } => self.refused(span, form),
        }
    }

    fn missing(&mut self, section: &Section<'_, '_>, key: Key) {
        let message = format!("{} has no `{}`", section.title(), key.name);
        self.key_problem(section.head.clone(), message, key);
    }

    fn wrong_type(&mut self, path: &str, value: &Value<'_>, expected: &str, example: &str) {
        let found = match value.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "an array",
            DeValue::Table(_) => "a table",
        };
        let message = format!("{} is {found}, not {expected}", quoted(path));
        self.problem(value.span(), message, expected, example);
    }

    fn unknown_keys(&mut self, section: &Section<'_, '_>, known: &[Key]) {
        for (key, value) in section.table {
            let name: &str = key.get_ref();
            if known.iter().any(|known| known.name == name) {
                continue;
            }
            let names: Vec<&str> = known.iter().map(|key| key.name).collect();
            let near = nearest(name, names.iter().copied());
            let home = keys::home(name);
            // What a limit is called elsewhere is what it is called here: its line tells more than its home.
            let of_limits = keys::LIMITS_KEYS.iter().any(|key| key.name == name);
            if (home.is_none() || of_limits)
                && let Some(said) = foreign::translate(name, value.get_ref())
            {
                self.problems.push(Problem {
                    place: self.source.place(key.span()),
                    message: format!(
                        "unknown key {} in {}: {}",
                        quoted(name),
                        section.title(),
                        said.hint
                    ),
                    label: String::new(),
                    expected: said.expected.to_owned(),
                    example: said.example,
                });
                continue;
            }
            let (hint, example) = match (home, near) {
                (Some((home, key)), _) => (format!(": it belongs to {home}"), Some(key)),
                (None, Some(near)) => (
                    format!(": the nearest known key is `{near}`"),
                    known.iter().find(|key| key.name == near).copied(),
                ),
                (None, None) => (String::new(), known.first().copied()),
            };
            self.problems.push(Problem {
                place: self.source.place(key.span()),
                message: format!("unknown key {} in {}{hint}", quoted(name), section.title()),
                label: String::new(),
                expected: format!("one of {}", names.join(", ")),
                example: example.map_or(String::new(), |key| key.example.to_owned()),
            });
        }
    }
}

fn collect_names(value: &DeValue<'_>, names: &mut BTreeSet<String>) {
    match value {
        DeValue::String(text) => names.extend(used_names(text).map(str::to_owned)),
        DeValue::Array(array) => {
            for value in array {
                collect_names(value.get_ref(), names);
            }
        }
        DeValue::Table(table) => {
            for (_, value) in table {
                collect_names(value.get_ref(), names);
            }
        }
        _ => {}
    }
}

/// What is wrong with the stack's name.
pub(super) fn name_error(error: &NameError) -> ValueError {
    let message = escaped(&error.to_string());
    ValueError::form(message, keys::NAME.expected, keys::NAME.example)
}

/// What the webapp is called in its root.
pub(super) fn default_command() -> Vec<String> {
    vec!["/webapp".to_owned()]
}

/// What is writable when nothing is said.
pub(super) fn default_tmpfs() -> Vec<Tmpfs> {
    vec![Tmpfs {
        path: "/tmp".into(),
        size: 16 << 20,
    }]
}

/// How long an app may take until it listens when nothing is said, and a job until it has ended.
pub(super) fn default_start_timeout(job: bool) -> Duration {
    const MINUTE: Duration = Duration::from_secs(60);
    if job { 60 * MINUTE } else { MINUTE }
}

/// The webapp's port when nothing is said.
pub(super) fn default_env(env: &mut BTreeMap<String, String>) {
    env.entry("PORT".to_owned())
        .or_insert_with(|| "5000".to_owned());
}

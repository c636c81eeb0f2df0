//! The keys of an app's life: what it comes up after, whether it is a job, when it is started again.

use std::time::Duration;

use toml::de::DeValue;

use super::{Key, Placed, ReadApp, Reader, Section, check, keys, quoted, values};
use crate::config::order;
use crate::config::{
    After, Check, Health, OnUnhealthy, Protocol, Publish, Restart, RestartLimit, Until,
};

/// What counts starts within a window keeps each.
const MOST_RESTARTS: f64 = 1000.0;

impl Reader<'_> {
    /// `after`: a list of names, or a table of names with how far each has to be.
    pub(super) fn after(&mut self, section: &Section<'_, '_>) -> Vec<Placed<After>> {
        let Some((_, value)) = section.get(keys::AFTER.name) else {
            return vec![];
        };
        let DeValue::Table(table) = value.get_ref() else {
            let started = |text: &str| {
                let until = Until::Started;
                values::app(text).map(|app| After { app, until })
            };
            return self.many(section, keys::AFTER, started).unwrap_or_default();
        };
        let path = section.key_path(keys::AFTER.name);
        let mut all = vec![];
        let mut origin = None;
        for (name, value) in table {
            let app = match values::app(name.get_ref()) {
                Ok(app) => app,
                Err(error) => {
                    self.refused_key(name.span(), error, keys::AFTER, &path);
                    continue;
                }
            };
            let key = format!("{path}.{app}");
            let text = self.text(&key, value, "a string", keys::AFTER.example);
            let Some((text, from)) = text else { continue };
            origin = origin.or(from);
            match values::until(&text) {
                Ok(until) => all.push(Placed {
                    value: After { app, until },
                    span: name.span(),
                }),
                Err(error) => self.refused_key(value.span(), error, keys::AFTER, &path),
            }
        }
        self.origin(path, value.span(), origin);
        all
    }

    /// `job`. Nobody comes to one: it is gone when the stack is up.
    pub(super) fn job(&mut self, section: &Section<'_, '_>, publishes: bool) -> bool {
        let message = "a job publishes nothing: it has ended when the stack is up";
        self.flag_alone(section, keys::JOB, (publishes, keys::PUBLISH), message)
    }

    /// `forks`. Whether what a job leaves has done its work nobody could tell: a job is done when its command is.
    pub(super) fn forks(&mut self, section: &Section<'_, '_>, job: bool) -> bool {
        let message = "a job ends with its command, and with what that has left";
        self.flag_alone(section, keys::FORKS, (job, keys::FORKS), message)
    }

    /// Whether a flag is set, which can't be beside something else; if that is there, `at` is where it is told.
    fn flag_alone(
        &mut self,
        section: &Section<'_, '_>,
        flag: Key,
        (other, at): (bool, Key),
        message: &str,
    ) -> bool {
        let set = self.flag(section, flag) == Some(true);
        if let (true, true, Some((span, _))) = (set, other, section.get(at.name)) {
            self.key_problem(span, message.to_owned(), flag);
        }
        set
    }

    /// `restart`, a word or a table; a job that has failed is not started again unless that is asked for.
    pub(super) fn restart(
        &mut self,
        section: &Section<'_, '_>,
        job: bool,
    ) -> (Restart, Option<RestartLimit>) {
        let default = if job { Restart::No } else { Restart::default() };
        let table = section.get(keys::RESTART.name);
        let (restart, limit) = match table.map(|(_, value)| value.get_ref()) {
            None => return (default, None),
            Some(DeValue::Table(_)) => match self.section(section, keys::RESTART) {
                Some(table) => self.restart_table(&table),
                None => (None, None),
            },
            Some(_) => (self.one(section, keys::RESTART, values::restart), None),
        };
        let Some(restart) = restart else {
            return (default, limit);
        };
        if job && restart.value == Restart::Always {
            let message = "a job that is always started again has no end";
            self.problem(
                restart.span,
                message.to_owned(),
                "\"no\" or \"on-failure\"",
                "restart = \"on-failure\"",
            );
        }
        (restart.value, limit)
    }

    fn restart_table(
        &mut self,
        table: &Section<'_, '_>,
    ) -> (Option<Placed<Restart>>, Option<RestartLimit>) {
        self.unknown_keys(table, keys::RESTART_KEYS);
        let policy = self.one(table, keys::POLICY, values::restart);
        let max = self.number(table, keys::MAX, |n| {
            (n.fract() == 0.0 && n <= MOST_RESTARTS).then_some(n as u32)
        });
        let window = self.one(table, keys::WINDOW, values::time);
        let policy = policy.or_else(|| {
            let value = Restart::default();
            let span = table.head.clone();
            (!table.has(keys::POLICY)).then_some(Placed { value, span })
        });
        if let (Some((span, _)), false) = (table.get(keys::WINDOW.name), table.has(keys::MAX)) {
            let message = "a `window` says nothing without `max`".to_owned();
            self.key_problem(span, message, keys::MAX);
        }
        let none = policy
            .as_ref()
            .is_some_and(|policy| policy.value == Restart::No);
        if let (Some((span, _)), true) = (table.get(keys::MAX.name), none) {
            let message = "what is never started again needs no `max`".to_owned();
            self.key_problem(span, message, keys::RESTART);
        }
        let window = window.map(|placed| placed.value);
        (policy, max.map(|max| RestartLimit { max, window }))
    }

    /// `health`, with its port if that is said; `ports` are what the app publishes, and its `listen`.
    pub(super) fn health(
        &mut self,
        section: &Section<'_, '_>,
        (publish, listen): (Option<&[Placed<Publish>]>, &[u16]),
        job: bool,
    ) -> (Option<Health>, Option<Placed<u16>>) {
        let Some(table) = self.section(section, keys::HEALTH) else {
            return (None, None);
        };
        self.unknown_keys(&table, keys::HEALTH_KEYS);
        let kinds = [keys::HTTP, keys::TCP, keys::CHECK];
        if kinds.iter().filter(|key| table.has(**key)).count() != 1 {
            let message = "`health` needs either `http`, `tcp` or `command`".to_owned();
            self.key_problem(table.head.clone(), message, keys::HEALTH);
            return (None, None);
        }
        if job {
            let message = "a job has no health: it ends, with 0 or not".to_owned();
            self.key_problem(table.head.clone(), message, keys::JOB);
        }
        let own = self.health_port(&table);
        let tcp = publish.unwrap_or_default().iter();
        let mut tcp = tcp.filter(|publish| publish.value.protocol == Protocol::Tcp);
        let first = tcp.next().map(|publish| publish.value.app_port);
        let port = own.as_ref().map(|port| port.value);
        let port = port.or(first).or(listen.first().copied());
        let check = self.check(&table, port);
        let time = |reader: &mut Self, key, default| {
            let time = reader.one(&table, key, values::time);
            time.map_or(default, |placed| placed.value)
        };
        const SECOND: Duration = Duration::from_secs(1);
        let retries = self.number(&table, keys::RETRIES, |n| {
            (n.fract() == 0.0 && (1.0..=MOST_RESTARTS).contains(&n)).then_some(n as u32)
        });
        let on_unhealthy = self.one(&table, keys::ON_UNHEALTHY, values::on_unhealthy);
        let health = check.map(|check| Health {
            check,
            interval: time(self, keys::INTERVAL, 5 * SECOND),
            timeout: time(self, keys::TIMEOUT, 5 * SECOND),
            retries: retries.unwrap_or(3),
            start_period: time(self, keys::START_PERIOD, 60 * SECOND),
            on_unhealthy: on_unhealthy.map_or_else(OnUnhealthy::default, |placed| placed.value),
        });
        (health, own)
    }

    fn health_port(&mut self, table: &Section<'_, '_>) -> Option<Placed<u16>> {
        let (_, value) = table.get(keys::PORT.name)?;
        let most = f64::from(u16::MAX);
        let port = self.number(table, keys::PORT, |n| {
            (n.fract() == 0.0 && (1.0..=most).contains(&n)).then_some(n as u16)
        })?;
        Some(Placed {
            value: port,
            span: value.span(),
        })
    }

    fn check(&mut self, table: &Section<'_, '_>, port: Option<u16>) -> Option<Check> {
        if table.has(keys::CHECK) {
            let words = self.many(table, keys::CHECK, |text| Ok(text.to_owned()))?;
            let command: Vec<String> = words.into_iter().map(|placed| placed.value).collect();
            if command.is_empty() {
                self.key_problem(
                    table.head.clone(),
                    "the command is empty".to_owned(),
                    keys::CHECK,
                );
                return None;
            }
            return Some(Check::Command { command });
        }
        let path = self.one(table, keys::HTTP, values::http_path);
        let flag = self.flag(table, keys::TCP);
        if table.has(keys::TCP) && flag.is_none() {
            return None;
        }
        if flag == Some(false) {
            let message = "`tcp` can be true, or left out".to_owned();
            self.key_problem(table.head.clone(), message, keys::TCP);
            return None;
        }
        let Some(port) = port else {
            let message = "`health` needs a port: the app publishes none by TCP".to_owned();
            self.key_problem(table.head.clone(), message, keys::PORT);
            return None;
        };
        match (table.has(keys::TCP), path) {
            (true, _) => Some(Check::Tcp { port }),
            (false, path) => path.map(|path| Check::Http {
                port,
                path: path.value,
            }),
        }
    }

    /// An app's health check connects within the app: to no other ports than those that the app may bind.
    pub(super) fn health_ports(&mut self, apps: &[ReadApp]) {
        for read in apps {
            let (Some(port), Some(app)) = (&read.health_port, &read.app) else {
                continue;
            };
            let own = |publish: &Publish| publish.ports().any(|(_, app)| app == port.value);
            let served = apps.iter().flat_map(|other| &other.connect).any(|connect| {
                let ports = connect.value.first_port..=connect.value.last_port;
                connect.value.app == app.name && ports.contains(&port.value)
            });
            if !served && !app.listen.contains(&port.value) && !app.publish.iter().any(own) {
                let message = format!("the app may not listen on port {}", port.value);
                let example = format!("listen = [{}]", port.value);
                self.problem(port.span.clone(), message, keys::PORT.expected, &example);
            }
        }
    }

    /// What an app comes up after is another app of this file, which can get as far as that, and there is no circle.
    pub(super) fn order(&mut self, apps: &[ReadApp]) {
        let names: Vec<&str> = apps.iter().map(|app| app.name.as_str()).collect();
        let mut after = vec![vec![]; apps.len()];
        for (place, read) in apps.iter().enumerate() {
            for entry in &read.after {
                let (to, own) = (entry.value.app.as_str(), read.name.as_str());
                if let Err(error) = check::other_app(to, own, &names) {
                    self.refused_key(entry.span.clone(), error, keys::AFTER, "");
                    continue;
                }
                let Some(at) = names.iter().position(|name| *name == to) else {
                    continue;
                };
                after[place].push(at);
                if let Some(other) = &apps[at].app
                    && let Err(error) = check::gets_there(other, entry.value.until)
                {
                    self.refused_key(entry.span.clone(), error, keys::AFTER, "");
                }
            }
        }
        let Some(circle) = order::circle(&after) else {
            return;
        };
        let round: Vec<String> = circle.iter().map(|app| quoted(names[*app])).collect();
        let message = format!(
            "no app of these can be the first: {}",
            round.join(" comes after ")
        );
        let next = names[circle[1]];
        let mut entries = apps[circle[0]].after.iter();
        if let Some(entry) = entries.find(|entry| entry.value.app.as_str() == next) {
            let expected = "an order without a circle";
            self.problem(entry.span.clone(), message, expected, "after = [\"db\"]");
        }
    }
}

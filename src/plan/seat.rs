//! Where an app is, and how another comes to be in its place.
//!
//! # Theory of operation
//!
//! An app has two addresses within the stack: the one that the configuration gives it, its home, and a spare one. It is at
//! one of them. Its replacement starts at the other, and from then on a plan has the app twice:
//!
//! ```text
//! web Serves          begin       web Serves, web Comes     the new one starts; nobody is taken to it
//!                     hand_over   web Goes,   web Serves    who is new is taken to the new one, who was in stays
//!                     finish      web Serves                the new one has the other's place
//!                     abandon     web Serves                it never was well: all is as it was
//! ```
//!
//! What others have in their /etc/hosts is the home; where the app is elsewhere, the sidecar's rules take them there.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::{AppPlan, Mac, Plan};
use crate::config::{Connect, Protocol, Replace, Source};
use crate::names::{IfName, PartName};

/// Which of two of the same name an app is, while one takes the other's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Turn {
    /// Who is new is taken to it; as a rule it is alone.
    #[default]
    Serves,
    /// It is started, and nobody is taken to it yet.
    Comes,
    /// Nobody is taken to it any more, and who was in stays.
    Goes,
}

impl Turn {
    /// Whether it is the one that others know.
    #[must_use]
    pub fn serves(&self) -> bool {
        *self == Self::Serves
    }
}

/// The addresses that an app is not at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spare {
    /// IPv4.
    pub address: Ipv4Addr,
    /// IPv6; `None` where the stack's IPv6 is off.
    pub address6: Option<Ipv6Addr>,
    /// The link-layer address that goes with them.
    pub mac: Mac,
}

/// Why an app can't be replaced while it runs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CannotRoll {
    /// It says so, or has something that two can't share.
    #[error("{0} is replaced stop-first")]
    StopFirst(PartName),
    /// A job has nobody to hand over.
    #[error("{0} is a job, which nobody connects to")]
    Job(PartName),
    /// There is no address.
    #[error("the stack's subnet has no address left for another {0}")]
    NoAddress(PartName),
    /// Rules of the user's mean its address.
    #[error("sidecar.rules names the address of {0}, and another one would have another")]
    Rules(PartName),
    /// A flow of UDP has no end that the old one could wait for.
    #[error("{from} reaches {app} by UDP, whose flows have no end to wait for")]
    Udp {
        /// The app.
        app: PartName,
        /// Who connects to it.
        from: PartName,
    },
}

impl CannotRoll {
    /// What can be done about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::StopFirst(_) => {
                "without --rolling it is restarted in place; `replace = \"rolling\"` lets two be at once, where they can"
            }
            Self::NoAddress(_) => "a wider network.subnet; or restart without --rolling",
            Self::Job(_) | Self::Rules(_) | Self::Udp { .. } => "restart without --rolling",
        }
    }
}

impl AppPlan {
    /// The addresses that others know it by: those of the configuration.
    pub fn home(&self) -> impl Iterator<Item = IpAddr> {
        let (four, six) = match self.spare {
            Some(spare) if self.away => (spare.address, spare.address6),
            _ => (self.address, self.address6),
        };
        // Whom its rules take to its loopback come by IPv4 ([`Source::Localhost`]).
        let six = six.filter(|_| self.source != Source::Localhost);
        std::iter::once(four.into()).chain(six.map(IpAddr::from))
    }

    /// Where others look for it, and where it is: the same twice, as a rule.
    pub fn known_at(&self) -> impl Iterator<Item = IpAddr> {
        let is_known = |at: &IpAddr| at.is_ipv4() || self.source != Source::Localhost;
        self.home().chain(self.addresses().filter(is_known))
    }

    /// The IPv4 one of them.
    #[must_use]
    pub fn home4(&self) -> Ipv4Addr {
        match self.spare {
            Some(spare) if self.away => spare.address,
            _ => self.address,
        }
    }

    /// The addresses that it is at, and those that another of it would be at.
    pub fn everywhere(&self) -> impl Iterator<Item = IpAddr> {
        let spare = self.spare.into_iter();
        let spare =
            spare.flat_map(|spare| [Some(spare.address.into()), spare.address6.map(IpAddr::from)]);
        self.addresses().chain(spare.flatten())
    }

    /// What tells it from another of the same name, in names of the kernel's: no app is called so.
    #[must_use]
    pub fn own_name(&self) -> String {
        match self.away {
            true => format!("{}.2", self.name),
            false => self.name.to_string(),
        }
    }

    /// What another of it is called there.
    #[must_use]
    pub fn others_name(&self) -> String {
        let other = Self {
            away: !self.away,
            ..self.clone()
        };
        other.own_name()
    }

    /// Puts it where `its` is.
    fn sit_as(&mut self, its: &Self) {
        self.address = its.address;
        self.address6 = its.address6;
        self.mac = its.mac;
        self.port_link.clone_from(&its.port_link);
        self.spare = its.spare;
        self.away = its.away;
    }

    /// Whether `its` is where it is, or where another of it would be.
    fn could_sit_as(&self, its: &Self) -> bool {
        let mut other = self.clone();
        let moves = || other.change_seats(its.port_link.clone()).map(|()| other);
        let is_at = |app: &Self| {
            (app.address, app.address6, app.mac, app.spare, app.away)
                == (its.address, its.address6, its.mac, its.spare, its.away)
        };
        let number = its.port_link.as_str().strip_prefix("port");
        number.is_some_and(|number| number.bytes().all(|digit| digit.is_ascii_digit()))
            && (is_at(self) || moves().is_some_and(|other| is_at(&other)))
    }

    /// Puts it at its other addresses, behind another port; `None` if it has no others.
    fn change_seats(&mut self, port_link: IfName) -> Option<()> {
        let spare = self.spare?;
        self.spare = Some(Spare {
            address: self.address,
            address6: self.address6,
            mac: self.mac,
        });
        self.address = spare.address;
        self.address6 = spare.address6;
        self.mac = spare.mac;
        self.port_link = port_link;
        self.away = !self.away;
        Some(())
    }
}

impl Plan {
    /// Whether another of an app can be beside it, and take its place.
    ///
    /// # Errors
    /// Why not.
    pub fn can_roll(&self, app: &AppPlan) -> Result<(), CannotRoll> {
        let name = app.name.clone();
        if app.job {
            return Err(CannotRoll::Job(name));
        }
        if app.replace == Replace::StopFirst {
            return Err(CannotRoll::StopFirst(name));
        }
        let by_udp = |from: &&Connect| from.protocol == Protocol::Udp;
        if let Some(from) = app.serves.iter().find(by_udp) {
            let from = from.app.clone();
            return Err(CannotRoll::Udp { app: name, from });
        }
        let defined = self.rules.as_ref().map(|rules| &rules.defines);
        if defined.is_some_and(|all| all.contains_key("app") || all.contains_key(name.as_str())) {
            return Err(CannotRoll::Rules(name));
        }
        match app.spare {
            Some(_) => Ok(()),
            None => Err(CannotRoll::NoAddress(name)),
        }
    }

    /// Where the app of that name is whose turn it is.
    #[must_use]
    pub fn place_of(&self, name: &PartName, turn: Turn) -> Option<usize> {
        let mut apps = self.apps.iter();
        apps.position(|app| app.name == *name && app.turn == turn)
    }

    /// Whether an app is there twice.
    #[must_use]
    pub fn replaces(&self) -> Option<&PartName> {
        let mut apps = self.apps.iter();
        apps.find(|app| !app.turn.serves()).map(|app| &app.name)
    }

    /// Puts another of an app behind all others, as `new` has it, at the addresses that it isn't at. Gives back its place;
    /// none when there is no such app, or another already.
    pub fn begin(&mut self, new: &AppPlan) -> Option<usize> {
        let serves = self.place_of(&new.name, Turn::Serves)?;
        if self.replaces().is_some() {
            return None;
        }
        let links: BTreeSet<&str> = self.apps.iter().map(|app| app.port_link.as_str()).collect();
        let mut names = (0..=links.len()).map(|number| format!("port{number}"));
        let free = names.find(|name| !links.contains(name.as_str()))?;
        // Where it is this plan knows; all else is the new one's.
        let mut another = new.clone();
        another.sit_as(&self.apps[serves]);
        another.change_seats(IfName::new(free).ok()?)?;
        another.turn = Turn::Comes;
        self.apps.push(another);
        Some(self.apps.len() - 1)
    }

    /// From now on who is new is taken to the other one.
    pub fn hand_over(&mut self, name: &PartName) {
        let (serves, comes) = (
            self.place_of(name, Turn::Serves),
            self.place_of(name, Turn::Comes),
        );
        if let (Some(serves), Some(comes)) = (serves, comes) {
            self.apps[serves].turn = Turn::Goes;
            self.apps[comes].turn = Turn::Serves;
        }
    }

    /// The one that goes has gone; the other has its place. Gives back both places as they were.
    pub fn finish(&mut self, name: &PartName) -> Option<(usize, usize)> {
        let goes = self.place_of(name, Turn::Goes)?;
        let serves = self.place_of(name, Turn::Serves)?;
        self.apps.swap(goes, serves);
        self.apps.remove(serves);
        Some((goes, serves))
    }

    /// The one that comes is not there any more. Gives back its place as it was.
    pub fn abandon(&mut self, name: &PartName) -> Option<usize> {
        let comes = self.place_of(name, Turn::Comes)?;
        self.apps.remove(comes);
        Some(comes)
    }

    /// Of another plan of the same apps, where they are: for one that was made before some were replaced.
    pub fn seat_as(&mut self, other: &Plan) {
        for app in &mut self.apps {
            let its = other.apps.iter().find(|its| its.name == app.name);
            let Some(its) = its.filter(|its| its.home4() == app.home4()) else {
                continue;
            };
            app.sit_as(its);
        }
    }

    /// This plan, with its apps where `said` has them; `None` unless that is all that they differ in, and each app is where
    /// this plan could have it: it is known of whoever says it that it runs the stack, and not that it can be trusted.
    #[must_use]
    pub fn seated(&self, said: &Plan) -> Option<Self> {
        let mut seated = self.clone();
        let pairs = self.apps.iter().zip(&said.apps);
        for ((app, its), seated) in pairs.zip(&mut seated.apps) {
            if !app.could_sit_as(its) {
                return None;
            }
            seated.sit_as(its);
        }
        let links: BTreeSet<&str> = seated
            .apps
            .iter()
            .map(|app| app.port_link.as_str())
            .collect();
        (links.len() == seated.apps.len() && seated == *said).then_some(seated)
    }

    /// The plan that the sidecar's rules are made of: without a way in to these apps, to one that comes, and to one that
    /// goes; who was in stays.
    #[must_use]
    pub fn in_force(&self, closed: &BTreeSet<PartName>) -> Cow<'_, Self> {
        let as_it_is = |app: &AppPlan| app.turn == Turn::Serves && !closed.contains(&app.name);
        if self.apps.iter().all(as_it_is) {
            return Cow::Borrowed(self);
        }
        let mut plan = self.clone();
        for app in &mut plan.apps {
            if app.turn == Turn::Comes {
                app.publish.clear();
                app.closing.clear();
            } else if app.turn == Turn::Goes || closed.contains(&app.name) {
                app.closing.append(&mut app.publish);
            }
        }
        Cow::Owned(plan)
    }

    /// The apps that are not at the address others know, each with that and where it is.
    pub fn moved(&self) -> impl Iterator<Item = (IpAddr, IpAddr)> {
        let away = self.apps.iter();
        let away = away.filter(|app| app.away && app.turn.serves() && !app.serves.is_empty());
        away.flat_map(|app| app.home().zip(app.addresses()))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::plan::PublishPlan;
    use crate::plan::neighbour::Neighbour;

    /// A stack of web, which publishes a port, and db, to which it connects; read from JSON, as from a running stack.
    pub(crate) fn plan() -> Plan {
        let app = |name: &str, number: u8| {
            serde_json::json!({
                "name": name, "address": format!("172.18.0.{}", 10 + number), "address6": null,
                "mac": format!("02:00:00:00:00:0{number}"), "port_link": format!("port{number}"),
                "ids": { "host_id": 5, "count": 1 }, "rootfs": { "kind": "host" }, "command": ["/x"], "env": {},
                "tmpfs": [], "volumes": [], "limits": { "memory": null, "pids": null, "cpu": null }, "publish": [],
                "start_timeout": 1000, "listen": [], "source": "sidecar", "egress": [], "allow": [], "rate": null,
                "restart": "no", "seccomp": crate::confine::seccomp::default(), "replace": "rolling",
                "spare": { "address": format!("172.18.0.{}", 250 + number), "address6": null,
                           "mac": format!("02:00:00:00:01:0{number}") },
            })
        };
        let mut plan: Plan = serde_json::from_value(serde_json::json!({
            "stack": "shop", "mode": "root", "owner": 0, "run": "00000000", "state_dir": "/run/lrpns/shop", "config": null,
            "bridge": { "name": "shop", "address": "172.18.0.1", "subnet": "172.18.0.0/24", "address6": null,
                        "prefix6": null, "mac": "02:00:00:00:02:00" },
            "uplink": { "ends_at": "relay", "host_link": "lrp0", "host_address": "198.19.0.0", "host_address6": null,
                        "host_mac": "02:00:00:00:02:01", "sidecar_link": "uplink", "sidecar_address": "198.19.0.1",
                        "sidecar_address6": null, "sidecar_mac": "02:00:00:00:02:02" },
            "log": "off", "sidecar": { "host_id": 1, "count": 1 }, "relay": { "host_id": 2, "count": 1 },
            "sidecar_limits": { "memory": null, "pids": null, "cpu": null },
            "relay_limits": { "memory": null, "pids": null, "cpu": null },
            "apps": [app("web", 0), app("db", 1)],
            "cgroup": crate::plan::limits::Placement::default(), "origins": {},
        }))
        .unwrap();
        plan.apps[0].publish.push(PublishPlan {
            listen: "0.0.0.0:80".parse().unwrap(),
            protocol: Protocol::Tcp,
            entry_port: 80,
            app_port: 8080,
            via: crate::plan::Transport::Relay,
            why: String::new(),
            waited: true,
        });
        plan.apps[0].connect.push(Connect {
            app: name("db"),
            protocol: Protocol::Tcp,
            first_port: 5432,
            last_port: 5432,
        });
        plan.derive_serves();
        plan
    }

    fn name(text: &str) -> PartName {
        PartName::new(text).unwrap()
    }

    /// Each app: its name, the last byte of its address, its turn, how many ports lead to it, and how many did.
    fn shown(plan: &Plan) -> String {
        let one = |app: &AppPlan| {
            let turn = match app.turn {
                Turn::Serves => "",
                Turn::Comes => "+",
                Turn::Goes => "-",
            };
            let (name, [.., last]) = (&app.name, app.address.octets());
            format!(
                "{name}{turn}@{last}:{}/{}",
                app.publish.len(),
                app.closing.len()
            )
        };
        let all: Vec<String> = plan.apps.iter().map(one).collect();
        all.join(" ")
    }

    #[test]
    fn who_runs_a_stack_is_believed_where_an_app_is_and_nothing_else() {
        let web = name("web");
        let plan = plan();
        let mut said = plan.clone();
        for _ in 0..3 {
            assert_eq!(plan.seated(&said).as_ref(), Some(&said));
            assert_eq!(said.seated(&plan).as_ref(), Some(&plan));
            let new = said.apps[0].clone();
            said.begin(&new).unwrap();
            assert_eq!(plan.seated(&said), None, "it is there twice");
            said.hand_over(&web);
            said.finish(&web).unwrap();
        }
        type Lie = fn(&mut Plan);
        let lies: [Lie; 9] = [
            |p| p.cgroup.path = Some("/sys/fs/cgroup/other".into()),
            |p| p.apps[0].address = Ipv4Addr::new(172, 18, 0, 99),
            |p| p.apps[0].spare = p.apps[1].spare,
            |p| p.apps[0].away = !p.apps[0].away,
            |p| p.apps[0].port_link = p.apps[1].port_link.clone(),
            |p| p.apps[0].port_link = IfName::new("uplink").unwrap(),
            |p| p.apps[0].command.push("more".into()),
            |p| p.apps[0].ids.host_id = 0,
            |p| drop(p.apps.pop()),
        ];
        for (number, lie) in lies.into_iter().enumerate() {
            let mut lied = said.clone();
            lie(&mut lied);
            assert_ne!(lied, said, "{number}");
            assert_eq!(plan.seated(&lied), None, "{number}");
        }
    }

    #[test]
    fn an_app_is_replaced_step_by_step_and_comes_to_its_other_address_and_back() {
        let web = name("web");
        type Step = (
            &'static str,
            fn(&mut Plan, &PartName),
            &'static str,
            &'static str,
        );
        let steps: [Step; 9] = [
            (
                "as it was",
                |_, _| {},
                "web@10:1/0 db@11:0/0",
                "web@10:1/0 db@11:0/0",
            ),
            (
                "hands over to nobody",
                |p, n| p.hand_over(n),
                "web@10:1/0 db@11:0/0",
                "web@10:1/0 db@11:0/0",
            ),
            (
                "begins",
                |p, n| assert_eq!(p.begin(&p.app(n).unwrap().clone()), Some(2)),
                "web@10:1/0 db@11:0/0 web+@250:1/0",
                "web@10:1/0 db@11:0/0 web+@250:0/0",
            ),
            (
                "begins once",
                |p, n| assert_eq!(p.begin(&p.app(n).unwrap().clone()), None),
                "web@10:1/0 db@11:0/0 web+@250:1/0",
                "web@10:1/0 db@11:0/0 web+@250:0/0",
            ),
            (
                "is abandoned",
                |p, n| assert_eq!(p.abandon(n), Some(2)),
                "web@10:1/0 db@11:0/0",
                "web@10:1/0 db@11:0/0",
            ),
            (
                "begins again, and has been handed over",
                |p, n| {
                    p.begin(&p.app(n).unwrap().clone());
                    p.hand_over(n);
                },
                "web-@10:1/0 db@11:0/0 web@250:1/0",
                "web-@10:0/1 db@11:0/0 web@250:1/0",
            ),
            (
                "is not abandoned any more",
                |p, n| assert_eq!(p.abandon(n), None),
                "web-@10:1/0 db@11:0/0 web@250:1/0",
                "web-@10:0/1 db@11:0/0 web@250:1/0",
            ),
            (
                "is finished",
                |p, n| assert_eq!(p.finish(n), Some((0, 2))),
                "web@250:1/0 db@11:0/0",
                "web@250:1/0 db@11:0/0",
            ),
            (
                "goes back",
                |p, n| {
                    p.begin(&p.app(n).unwrap().clone());
                    p.hand_over(n);
                    p.finish(n);
                },
                "web@10:1/0 db@11:0/0",
                "web@10:1/0 db@11:0/0",
            ),
        ];
        let mut plan = plan();
        let first = plan.clone();
        for (what, step, expected, in_force) in steps {
            step(&mut plan, &web);
            assert_eq!(shown(&plan), expected, "{what}");
            assert_eq!(shown(&plan.in_force(&BTreeSet::new())), in_force, "{what}");
            assert!(plan.asks_for_the_same_as(&plan), "{what}");
        }
        // But for the bridge port's name, which another has meanwhile.
        plan.apps[0].port_link.clone_from(&first.apps[0].port_link);
        assert_eq!(plan, first);
    }

    #[test]
    fn links_names_and_routes_lead_to_both_places() {
        let (web, db) = (name("web"), name("db"));
        let mut plan = plan();
        let text = |addresses: Vec<IpAddr>| {
            let all: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            all.join(" ")
        };
        let reach = |plan: &Plan| {
            let web = plan.app(&name("web")).unwrap();
            text(plan.links(web).map(|(_, link)| link.to.addr()).collect())
        };
        let hosts = |plan: &Plan| {
            let web = plan.app(&name("web")).unwrap();
            text(
                plan.hosts(web)
                    .into_iter()
                    .map(|(address, _)| address)
                    .collect(),
            )
        };
        let moved = |plan: &Plan| plan.moved().collect::<Vec<_>>().len();
        assert_eq!(
            (reach(&plan), hosts(&plan)),
            (
                "172.18.0.11".into(),
                "172.18.0.10 172.18.0.11 172.18.0.1".into()
            )
        );
        plan.begin(&plan.app(&db).unwrap().clone());
        assert_eq!(
            (reach(&plan).as_str(), moved(&plan)),
            ("172.18.0.11 172.18.0.251", 0)
        );
        plan.hand_over(&db);
        assert_eq!(
            (reach(&plan).as_str(), moved(&plan)),
            ("172.18.0.11 172.18.0.251", 1)
        );
        plan.finish(&db);
        // By the name that others have, which is where it was.
        assert_eq!(
            (reach(&plan).as_str(), moved(&plan)),
            ("172.18.0.11 172.18.0.251", 1)
        );
        assert_eq!(hosts(&plan), "172.18.0.10 172.18.0.11 172.18.0.1");
        plan.begin(&plan.app(&web).unwrap().clone());
        let both: Vec<_> = plan
            .linked(plan.app(&db).unwrap())
            .map(|app| app.address)
            .collect();
        assert_eq!(both.len(), 2, "{both:?}");
    }

    #[test]
    fn what_others_read_of_a_plan_is_what_it_has() {
        let mut plan = plan();
        plan.egress = Some(crate::plan::EgressPlan {
            via: crate::plan::EgressVia::Nat,
            why: String::new(),
            ids: plan.relay,
        });
        plan.apps[1].egress = vec![crate::config::Egress {
            protocol: Protocol::Tcp,
            to: "192.0.2.1/32".parse().unwrap(),
            first_port: 80,
            last_port: 80,
        }];
        let written = serde_json::to_string(&plan).unwrap();
        let read: Neighbour = serde_json::from_str(&written).unwrap();
        assert_eq!(read, Neighbour::from(&plan));
        assert!(read.leaves_by_nat() && read.published().count() == 1);
    }

    #[test]
    fn who_can_not_be_twice_is_not() {
        let plan = plan();
        type Case = (&'static str, fn(&mut Plan), Option<&'static str>);
        let cases: [Case; 6] = [
            ("as it is", |_| {}, None),
            (
                "stop-first",
                |p| p.apps[1].replace = Replace::StopFirst,
                Some("db is replaced stop-first"),
            ),
            ("a job", |p| p.apps[1].job = true, Some("db is a job")),
            (
                "no address",
                |p| p.apps[1].spare = None,
                Some("no address left"),
            ),
            (
                "by UDP",
                |p| p.apps[1].serves[0].protocol = Protocol::Udp,
                Some("web reaches db by UDP"),
            ),
            (
                "named in rules",
                |p| {
                    let defines = [("db".to_owned(), "172.18.0.11".to_owned())];
                    p.rules = Some(crate::plan::ExtraRules {
                        file: "/x.nft".into(),
                        text: String::new(),
                        quoting: crate::plan::Quoting::Allowed,
                        defines: defines.into(),
                    });
                },
                Some("sidecar.rules names the address of db"),
            ),
        ];
        for (what, change, expected) in cases {
            let mut plan = plan.clone();
            change(&mut plan);
            let can = plan.can_roll(&plan.apps[1]).map_err(|e| e.to_string());
            match expected {
                None => assert_eq!(can, Ok(()), "{what}"),
                Some(why) => assert!(can.clone().unwrap_err().contains(why), "{what}: {can:?}"),
            }
        }
    }
}

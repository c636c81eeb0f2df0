//! Why an app has ended, or does not listen: from what it said last, how it ended and what it may do, to the lines of the
//! configuration that would give it what it lacked. Nothing is granted by this: the lines are there to be pasted.
//!
//! An app's words are its own, and may be an attacker's. They choose among the hints that are written here, and what is
//! taken over from them is a path or a number, escaped and bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::installed::{Entry, Installed, is_plain};
use super::options;
use crate::accounts::Accounts;
use crate::config::{Protocol, Rootfs, SECRETS, Secret, Source, Tmpfs, Volume, joined};
use crate::plan::resolve::shared_memory;
use crate::plan::{APP_ID, AppPlan, PublishPlan};
use crate::protocol::Exit;
use crate::text;

/// No more files of its configuration are searched, and no larger ones.
const MOST_FILES: usize = 2000;
const LARGEST_FILE: u64 = 1 << 20;
/// What comes with `source = "localhost"`.
const TRUSTED: &str = "and as 127.0.0.1: whoever may reach the port is to it who is at its own machine, so let it ask for a password, or name in allow who may";
/// No more hints at once: the first is mostly the cause, and the rest its consequences.
const MOST: usize = 3;
/// A configuration that names more ports is not about those alone that its server binds.
const MOST_PORTS: usize = 8;
/// No more lines are looked at, from the last one on…
const LINES: usize = 40;
/// …and of each no more bytes.
const LONGEST: usize = 2000;

/// Programs that go to the background unless they are told not to, and how they are told.
const FOREGROUND: &[(&str, &str)] = &[
    ("nginx", "nginx -g 'daemon off;'"),
    ("apache2", "apache2 -DFOREGROUND"),
    ("apache2ctl", "apache2ctl -DFOREGROUND"),
    ("apachectl", "apachectl -DFOREGROUND"),
    ("httpd", "httpd -DFOREGROUND"),
    ("lighttpd", "lighttpd -D"),
    ("haproxy", "haproxy -db"),
    ("php-fpm", "php-fpm --nodaemonize"),
    ("redis-server", "redis-server --daemonize no"),
    ("memcached", "memcached without -d"),
    ("mosquitto", "mosquitto without -d"),
    ("dnsmasq", "dnsmasq --keep-in-foreground"),
    ("unbound", "unbound -d"),
    ("named", "named -f"),
    ("sshd", "sshd -D"),
    ("pg_ctl", "postgres -D DIRECTORY, which pg_ctl starts"),
    ("pg_ctlcluster", "pg_ctlcluster --foreground"),
    ("mariadbd-safe", "mariadbd"),
    ("mysqld_safe", "mysqld"),
    ("vsftpd", "background=NO in its configuration"),
    ("proftpd", "proftpd --nodaemon"),
    ("pure-ftpd", "pure-ftpd without -B"),
    ("squid", "squid -N"),
    ("varnishd", "varnishd -F"),
    ("slapd", "slapd -d 0"),
    ("dovecot", "dovecot -F"),
    ("exim4", "exim4 -bdf"),
    ("postfix", "postfix start-fg"),
    ("smbd", "smbd --foreground"),
    ("nmbd", "nmbd --foreground"),
    ("snmpd", "snmpd -f"),
    ("rsyslogd", "rsyslogd -n"),
    ("cron", "cron -f"),
    ("chronyd", "chronyd -d"),
    ("ntpd", "ntpd -n"),
    ("stunnel", "foreground = yes in its configuration"),
    ("stunnel4", "foreground = yes in its configuration"),
    ("tor", "tor --RunAsDaemon 0"),
    ("privoxy", "privoxy --no-daemon"),
    ("tinyproxy", "tinyproxy -d"),
    ("monit", "monit -I"),
    ("gunicorn", "gunicorn without --daemon"),
    ("uwsgi", "uwsgi without --daemonize"),
    ("in.tftpd", "in.tftpd --foreground"),
    ("pdns_server", "pdns_server --daemon=no"),
    ("knotd", "knotd without -d"),
    ("nsd", "nsd -d"),
    ("rbldnsd", "rbldnsd -n"),
    ("webfsd", "webfsd -F"),
    ("dictd", "dictd -d nodetach"),
    ("icecast2", "icecast2 without -b"),
    ("radiusd", "radiusd -f"),
    ("freeradius", "freeradius -f"),
    ("ngircd", "ngircd --nodaemon"),
    ("mini-httpd", "mini-httpd -D"),
    ("thttpd", "thttpd -D"),
];

/// What is known of an app that is not what it should be.
pub(super) struct Case<'a> {
    /// What it may do.
    pub(super) app: &'a AppPlan,
    /// How it ended; `None` while it runs.
    pub(super) exit: Option<Exit>,
    /// What it wrote, the last line last.
    pub(super) said: Vec<String>,
}

impl Case<'_> {
    /// The hints, the likeliest first; none where nothing is known.
    pub(super) fn hints(&self) -> Vec<String> {
        let mut hints: Vec<String> = vec![];
        let by_exit = self.by_exit();
        // One that ends without an error may have said why; but one that is known to go to the background does that.
        let says_why = self.exit == Some(Exit::Status(0)) && self.stays();
        if !says_why {
            hints.extend(by_exit.clone());
        }
        if (self.exit != Some(Exit::Status(0)) || self.stays())
            && let Some(hint) = self.installed()
        {
            hints.insert(0, hint);
            return hints;
        }
        let mut add = |hint: Option<String>| {
            if let Some(hint) = hint
                && hints.len() < LINES
                && !hints.contains(&hint)
            {
                hints.push(hint);
            }
        };
        let logged = self.logged();
        let first = self.said.len().saturating_sub(LINES);
        let in_files = logged.iter().flat_map(|(_, lines)| lines);
        for line in self.said[first..].iter().chain(in_files) {
            let end = line
                .char_indices()
                .map(|(i, _)| i)
                .take_while(|i| *i <= LONGEST)
                .last()
                .unwrap_or(0);
            let line = if line.len() <= LONGEST {
                line
            } else {
                &line[..end]
            };
            add(self.by_line(line));
        }
        // What can be pasted comes before what has to be thought about.
        let known = usize::from(!says_why && by_exit.is_some());
        hints[known..].sort_by_key(|hint| !can_be_pasted(hint));
        hints.truncate(if says_why { MOST - 1 } else { MOST });
        if says_why {
            hints.extend(by_exit);
        }
        let known = hints.len() > usize::from(self.exit == Some(Exit::Status(0)));
        let is_bad = |line: &String| {
            let lower = line.to_lowercase();
            let mut words = ["err", "fatal", "fail", "crit", "unable", "cannot"].iter();
            words.any(|word| lower.contains(word))
        };
        if !known
            && let Some((path, lines)) = logged
                .iter()
                .find(|(_, lines)| lines.iter().any(is_bad))
                .or(logged.first())
            && let Some(last) = lines
                .iter()
                .rev()
                .find(|line| is_bad(line))
                .or(lines.last())
        {
            hints.insert(
                0,
                format!(
                    "it says more in its own log, {}, which has at its end: {}",
                    shown(path),
                    text::harmless(last.trim(), 300)
                ),
            );
        }
        if hints.is_empty() && self.exit.is_some_and(|exit| exit != Exit::Status(0)) {
            // What it said of a file is not about one that it doesn't find.
            if self.said.iter().all(|line| path(line).is_none()) {
                hints.extend(self.by_files());
            }
            let wrote = self.said.iter().any(|line| !line.trim().is_empty());
            if hints.is_empty() && !wrote {
                let memory = self.app.tmpfs.iter().map(|tmpfs| &tmpfs.path);
                let own = memory.filter(|path| path.starts_with("/var/log"));
                let own: String = own
                    .map(|path| format!("; or keep what it writes to {0}: volumes = [\"./log:{0}:rw\"] (mkdir log, and chown it to the app's user)", shown(path)))
                    .collect();
                let range = match self.app.ids.is_range() {
                    true => "",
                    false => "; one that must begin as root and tells nobody takes ids = \"range\"",
                };
                hints.push(self.begins_as_root().unwrap_or_else(|| format!(
                    "{} wrote nothing, neither to its standard error nor to syslog: let it do either, or say more (-d, -v, --debug){own}{range}",
                    text::harmless(self.program(), 64)
                )));
            }
        }
        // A command that is to end, as most of `run`, has said it.
        let serves = !self.app.publish.is_empty();
        if serves && self.exit.is_some_and(|exit| exit != Exit::Status(0)) {
            hints.extend(explained(&hints));
        }
        hints
    }

    /// The hints for one that does not listen on `port`, but there.
    pub(super) fn elsewhere(&self, port: u16, listening: &[SocketAddr]) -> Vec<String> {
        let same: Vec<&SocketAddr> = listening.iter().filter(|at| at.port() == port).collect();
        let others: BTreeSet<u16> = listening.iter().map(SocketAddr::port).collect();
        let mut hints = vec![];
        if same.iter().any(|at| at.ip().is_loopback()) {
            hints.extend(self.told_the_loopback(port));
            hints.push(match self.loopback(port) {
                Some((path, number, line)) => format!(
                    "127.0.0.1 is the app's own within; its configuration has it here: {}:{number}: {}. A copy of the file beside the stack's, with 0.0.0.0 there{}, comes as volumes = [\"./{}:{}\"]",
                    shown(&path),
                    text::harmless(line.trim(), 200),
                    match settings(&line).next() {
                        Some(_) => "",
                        None => " and no comment before it",
                    },
                    shown(Path::new(path.file_name().unwrap_or_default())),
                    shown(&path)
                ),
                None => format!(
                    "127.0.0.1 is the app's own within: its command or its configuration has to say 0.0.0.0{}",
                    self.options()
                ),
            });
            // The command comes before a configuration.
            hints.truncate(1);
            let own = |at: &&SocketAddr| at.ip() == IpAddr::from(Ipv4Addr::LOCALHOST);
            if same.iter().any(own) && self.may_come_by_loopback() {
                hints.push(format!(
                    "or leave it there: source = \"localhost\" takes its clients to its own 127.0.0.1, {TRUSTED}"
                ));
            }
        } else if let Some(other) = others.first().filter(|_| same.is_empty()) {
            let publish = self
                .app
                .publish
                .iter()
                .find(|publish| publish.app_port == port);
            let (host, protocol) = publish.map_or((port, ""), |publish| {
                let udp = publish.protocol == Protocol::Udp;
                (publish.listen.port(), if udp { "/udp" } else { "" })
            });
            hints.push(format!(
                "it listens on {other} instead: publish = [\"{host}:{other}{protocol}\"], or tell it {port}"
            ));
        }
        hints.extend(self.hints());
        hints.truncate(MOST);
        hints.extend(explained(&hints));
        hints
    }

    /// Whether its clients could come to its loopback, and don't.
    fn may_come_by_loopback(&self) -> bool {
        let four = self.app.publish.iter().all(|at| at.listen.is_ipv4());
        four && !self.app.via_socket && self.app.source != Source::Localhost
    }

    /// The hints for one that listened, and then did not answer.
    pub(super) fn deaf(&self) -> Vec<String> {
        let mut hints = self.hints();
        if hints.is_empty() {
            hints.push(format!(
                "{} listened and then took no connection: it has ended or closed its socket. Let it log to its standard error or to syslog to see why; a TCP port more of its own (a control port, say) takes listen = [PORT]",
                text::harmless(self.program(), 64)
            ));
        }
        hints
    }

    /// The hints for one that runs and does not answer its clients, whom it sees at `seen`: by what it says of them, or, where
    /// `silent` says that none has got a byte from it, by its configuration.
    pub(super) fn turns_away(&self, seen: &[IpAddr], silent: bool) -> Option<String> {
        let first = self.said.len().saturating_sub(LINES);
        let logged = self.logged();
        let logged = logged.iter().flat_map(|(_, lines)| lines.iter().rev());
        let mut said = self.said[first..].iter().rev().chain(logged);
        let said = said.find_map(|line| {
            let lower = line.to_lowercase();
            let ends = |c: char| !(c.is_ascii_hexdigit() || c == '.' || c == ':');
            let mut words = lower.split(ends);
            let at = words.find_map(|word| {
                let word = word.trim_end_matches(['.', ':']);
                let word = word.strip_prefix("::ffff:").unwrap_or(word);
                let host = word.rsplit_once(':').map_or(word, |(host, _)| host);
                let mut all = [word, host].into_iter().filter_map(|at| at.parse().ok());
                all.find(|at| seen.contains(at))
            })?;
            turns_away(&lower).then_some(at)
        });
        let listed = self.admits();
        let address = match (said, &listed) {
            (Some(address), _) => address,
            (None, Some(_)) if silent => *seen.first()?,
            (None, None) if silent => return self.wants_root(),
            _ => return None,
        };
        let does = match said {
            Some(_) => "and it turns them away",
            None => "and none has got an answer yet",
        };
        let mut own = String::new();
        if self.may_come_by_loopback() {
            own += &format!(
                "; or source = \"localhost\": then each comes to it from 127.0.0.1, {TRUSTED}"
            );
        }
        if self.app.source == Source::Sidecar {
            own += "; or source = \"client\": then it sees each client's own address, of those on this machine another of the stack's";
        }
        let how = match listed {
            Some((path, number, line)) => format!(
                "who may connect it has here: {}:{number}: {}. A copy of the file beside the stack's, with {address} there, comes as volumes = [\"./{}:{}\"]",
                shown(&path),
                text::harmless(line.trim(), 200),
                shown(Path::new(path.file_name().unwrap_or_default())),
                shown(&path)
            ),
            None => format!("in its own list of who may connect, {address} is to be allowed"),
        };
        Some(format!(
            "its clients come to it from {address}, an address of the stack's, {does}: {how}{own}"
        ))
    }

    /// The logs that it writes itself, if they are in a volume: those that have changed just now, the latest first, with their
    /// last lines.
    ///
    /// The app may put there what it likes: so it is a plain file of one name, in the volume itself, that is opened.
    fn logged(&self) -> Vec<(PathBuf, Vec<String>)> {
        use rustix::fs::{CWD, OFlags};
        use std::os::unix::fs::FileExt;
        const JUST_NOW: Duration = Duration::from_secs(60);
        const TAIL: u64 = 8 << 10;
        const ENTRIES: usize = 200;
        const LOGS: usize = 8;
        const TOGETHER: Duration = Duration::from_secs(2);
        let writable = self.app.volumes.iter().filter(|volume| volume.writable);
        let logs = writable.filter(|volume| volume.path.starts_with("/var/log"));
        let mut all: Vec<_> = logs
            .flat_map(|volume| {
                let entries = std::fs::read_dir(&volume.host).into_iter().flatten();
                entries.take(ENTRIES).flatten()
            })
            .filter_map(|entry| {
                let path = entry.path();
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = rustix::fs::openat(CWD, &path, flags, rustix::fs::Mode::empty()).ok()?;
                let file = std::fs::File::from(file);
                let meta = file.metadata().ok()?;
                let changed = meta.modified().ok()?;
                let new = changed.elapsed().is_ok_and(|since| since < JUST_NOW);
                let plain = meta.is_file() && meta.nlink() == 1 && meta.len() > 0;
                (plain && new).then_some((changed, path, file, meta.len()))
            })
            .collect();
        all.sort_by_key(|(changed, ..)| std::cmp::Reverse(*changed));
        all.truncate(LOGS);
        // What an earlier try has left is none of this one's.
        if let Some(latest) = all.first().map(|(changed, ..)| *changed) {
            let together =
                |changed: SystemTime| latest.duration_since(changed).is_ok_and(|by| by < TOGETHER);
            all.retain(|(changed, ..)| together(*changed));
        }
        let read = |(_, path, file, length): (_, PathBuf, std::fs::File, u64)| {
            let mut tail = vec![0; usize::try_from(length.min(TAIL)).ok()?];
            let got = file.read_at(&mut tail, length.saturating_sub(TAIL)).ok()?;
            let tail = String::from_utf8_lossy(&tail[..got]);
            let lines: Vec<String> = tail
                .lines()
                .filter(|line| !line.trim().is_empty())
                .map(str::to_owned)
                .collect();
            let first = lines.len().saturating_sub(LINES);
            Some((path, lines[first..].to_vec()))
        };
        all.into_iter().filter_map(read).collect()
    }

    /// Where its command or its environment tells it to listen on the loopback, as the line that does not.
    fn told_the_loopback(&self, port: u16) -> Option<String> {
        let elsewhere = |text: &str| {
            let own = ["127.0.0.1", "localhost", "[::1]"].iter();
            let own = own.copied().find(|own| text.contains(own))?;
            Some(text.replacen(own, "0.0.0.0", 1))
        };
        let command = &self.app.command;
        let all: Vec<(usize, String)> = (1..command.len())
            .filter_map(|place| Some((place, elsewhere(&command[place])?)))
            .collect();
        // The one with the port, or else the first that is no URL: that may be where it is to connect to.
        let port = format!(":{port}");
        let own = all.iter().find(|(_, word)| word.ends_with(&port));
        let own = own.or_else(|| all.iter().find(|(_, word)| !word.contains("://")));
        let (place, new) = own.cloned()?;
        let plain = |word: &String| text::harmless(word, 300) == **word && !word.contains('"');
        let mut all = command.clone();
        all[place] = new;
        all.iter().all(plain).then(|| {
            format!(
                "127.0.0.1 is the app's own within, and its command has it: command = {}",
                list(&all)
            )
        })
    }

    /// Which of its options may be the one for its address.
    fn options(&self) -> String {
        if self.app.rootfs != Rootfs::Host {
            return String::new();
        }
        let program = self.app.command.first();
        let program = program.and_then(|name| options::program(name));
        // Nothing of what the app may have written itself.
        let of_the_host = |path: PathBuf| match self.in_a_volume(&path) {
            Some((host, volume)) => (!volume.writable).then_some(host),
            None => self.is_of_the_root(&path).then_some(path),
        };
        let all = program
            .and_then(of_the_host)
            .map(|path| options::of_the_address(&path));
        let all = all.unwrap_or_default();
        let shown: Vec<String> = all.iter().map(|one| text::harmless(one, 160)).collect();
        match shown.is_empty() {
            true => String::new(),
            false => format!(
                ". Of its options this may be the one for it: {}",
                shown.join("; ")
            ),
        }
    }

    /// Where its configuration says that it is to listen on the loopback.
    fn loopback(&self, port: u16) -> Option<(PathBuf, usize, String)> {
        let number = port.to_string();
        let listens = |line: &str| {
            // `root@localhost` is somebody's address, and no host to listen on.
            let line = line.to_lowercase().replace("@localhost", "");
            // What comes before the address says what it is for, and not a name behind it.
            let own = ["127.0.0.1", "localhost", "::1"].iter();
            let Some(at) = own.filter_map(|word| line.find(word)).min() else {
                return false;
            };
            let before = &line[..at];
            let key = before.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
            let words = ["listen", "bind", "addr", "interface", "host", "frontend"];
            words.iter().any(|word| before.contains(word)) || key.ends_with("ip")
        };
        let names_it = |line: &str| {
            line.split(|c: char| !c.is_ascii_digit())
                .any(|word| word == number)
        };
        // The line that names the port as well, or else one of a file that does, or else any.
        let find = |text: &str, and: &dyn Fn(&str) -> bool| {
            let mut all = settings(text);
            all.find(|(_, line)| listens(line) && and(line))
                .map(|(number, _)| number)
        };
        self.configured(|text| find(text, &names_it))
            .or_else(|| {
                self.configured(|text| {
                    let named = settings(text).any(|(_, line)| names_it(line));
                    find(text, &|_| named)
                })
            })
            .or_else(|| self.configured(|text| find(text, &|_| true)))
            // What is commented out is mostly what it does by itself.
            .or_else(|| {
                self.configured(|text| {
                    let mut all = text.lines();
                    all.position(|line| set_by_default(line).is_some_and(listens))
                })
            })
    }

    /// Where its configuration says who may connect, and means this machine alone: as it is, or as what is commented out has
    /// it, which is mostly what a server does by itself.
    fn admits(&self) -> Option<(PathBuf, usize, String)> {
        const SELF: [&str; 5] = [
            "127.0.0.1",
            "127\\.0\\.0\\.1",
            "127.0.0.0",
            "localhost",
            "::1",
        ];
        const ADMITS: [&str; 9] = [
            "allow",
            "permit",
            "trust",
            "acl",
            "access",
            "mynetworks",
            "accept",
            "require",
            "restrict",
        ];
        let admits = |line: &str| {
            let lower = line.to_lowercase();
            SELF.iter().any(|word| lower.contains(word))
                && ADMITS.iter().any(|word| lower.contains(word))
        };
        let by_default = |line: &str| set_by_default(line).is_some_and(admits);
        let as_it_is = |text: &str| {
            let mut all = settings(text);
            all.find(|(_, line)| admits(line)).map(|(number, _)| number)
        };
        self.configured(as_it_is)
            .or_else(|| self.configured(|text| text.lines().position(by_default)))
    }

    /// The first line of its configuration, read-only volumes of the host's, that `find` finds in a file, by its number from 0:
    /// the file as the app has it, the line's number from 1, the line.
    fn configured(&self, find: impl Fn(&str) -> Option<usize>) -> Option<(PathBuf, usize, String)> {
        let of_etc = self.app.volumes.iter().filter(|volume| !volume.writable);
        let mut places: Vec<(PathBuf, PathBuf)> = of_etc
            .map(|volume| (volume.host.clone(), volume.path.clone()))
            .collect();
        let mounted: Vec<(PathBuf, PathBuf)> = places.clone();
        let mut seen = 0;
        while let Some((host, path)) = places.pop() {
            seen += 1;
            if seen > MOST_FILES {
                break;
            }
            // What another volume is mounted on, the app does not see.
            if mounted.iter().any(|(of, at)| *at == path && *of != host) {
                continue;
            }
            let Ok(meta) = std::fs::symlink_metadata(&host) else {
                continue;
            };
            if meta.is_dir() {
                let entries = std::fs::read_dir(&host).into_iter().flatten().flatten();
                places.extend(entries.map(|entry| {
                    let name = entry.file_name();
                    (host.join(&name), path.join(&name))
                }));
                continue;
            }
            if !meta.is_file() || meta.len() > LARGEST_FILE {
                continue;
            }
            let Ok(content) = std::fs::read_to_string(&host) else {
                continue;
            };
            if let Some(number) = find(&content) {
                let line = content.lines().nth(number).unwrap_or_default();
                return Some((path, number + 1, line.to_owned()));
            }
        }
        None
    }

    /// What its command names of the host's data that the app's root has not. What is in /etc is asked for at once and missed
    /// with an error; a directory to serve may not be.
    pub(super) fn unseen(&self) -> Vec<PathBuf> {
        if self.app.rootfs != Rootfs::Host {
            return vec![];
        }
        let arguments = self.app.command.iter().skip(1);
        let paths = arguments.filter_map(|word| {
            let word = match word.starts_with('-') {
                true => word.split_once('=')?.1,
                false => word,
            };
            let path = Path::new(word);
            let plain = is_plain(path);
            (path.is_absolute() && plain && path.components().count() > 2).then(|| path.to_owned())
        });
        let mounts = || {
            let volumes = self.app.volumes.iter().map(|volume| &volume.path);
            volumes.chain(self.app.tmpfs.iter().map(|tmpfs| &tmpfs.path))
        };
        let own = ["/dev", "/proc", "/sys", "/run", "/tmp", "/etc"];
        paths
            .filter(|path| {
                path.exists()
                    && !own.iter().any(|place| path.starts_with(place))
                    && !self.is_of_the_root(path)
                    && !mounts().any(|at| path.starts_with(at))
            })
            .collect()
    }

    /// The same of one that has come up all the same, with the line that brings it.
    pub(super) fn incomplete(&self) -> Option<String> {
        let unseen = self.unseen();
        if unseen.is_empty() {
            return None;
        }
        let new = unseen.iter().map(|path| format!("{0}:{0}", shown(path)));
        let all: Vec<String> = self.app.volumes.iter().map(volume).chain(new).collect();
        let names: Vec<String> = unseen.iter().map(|path| shown(path)).collect();
        Some(format!(
            "the command of {} names what the host has and the app's root has not, {}: volumes = {}",
            self.app.name,
            names.join(", "),
            list(&all)
        ))
    }

    /// What it may have looked for and not found, where it says nothing that is understood: a path of its command, or the
    /// configuration that the host has for its program.
    fn by_files(&self) -> Option<String> {
        if self.app.rootfs != Rootfs::Host {
            return None;
        }
        let program = self.program();
        let bare = program.trim_end_matches('d');
        let arguments = self.app.command.iter().skip(1).map(PathBuf::from);
        let own = [
            program.to_owned(),
            format!("{program}.conf"),
            bare.to_owned(),
        ];
        let own = own
            .into_iter()
            .filter(|name| !name.is_empty() && !name.contains('/'))
            .map(|name| Path::new("/etc").join(name));
        let mut all = arguments
            .clone()
            .filter(|path| path.is_absolute())
            .chain(own);
        let found = all.find_map(|path| {
            let there = self.app.volumes.iter().any(|v| path.starts_with(&v.path));
            if there || !path.exists() || !path.starts_with("/etc") {
                return None;
            }
            self.missing(&path)
        });
        // A file that it is to make itself, in a directory that there is none of.
        let mut all = arguments;
        found.or_else(|| {
            all.find_map(|path| {
                let new = path.is_absolute() && is_plain(&path) && !path.exists();
                new.then(|| self.lacks(&path)).flatten()
            })
        })
    }

    /// All that the host's package of the server has for it, where the app has none of it yet.
    fn installed(&self) -> Option<String> {
        let installed = self.package()?;
        let has = |path: &PathBuf| {
            self.app
                .volumes
                .iter()
                .any(|v| v.path.starts_with(path) || path.starts_with(&v.path))
        };
        let begun = !installed.etc.is_empty() && installed.etc.iter().any(has);
        // Who is told to be somebody, as a package with no user of its own leaves it to do, has none of the rest by that.
        let uid = self.app.ids.uid;
        let user = installed.user.as_ref().map(|(_, ids)| ids.uid);
        let own = user.is_some_and(|user| ![0, APP_ID, user].contains(&uid));
        let (volumes, memory) = installed.mounts(Path::new("/"), false);
        let given = |new: &Entry| self.app.volumes.iter().any(|v| v.path == new.path);
        let in_memory = |path: &PathBuf| self.app.tmpfs.iter().any(|t| t.path == *path);
        let all = user.is_none_or(|user| user == uid) && self.commanded(&installed).is_none();
        let all_given = match volumes.is_empty() {
            false => volumes.iter().all(given),
            // Of one that has nothing but what is in memory, all of that: else the same would be said again.
            true => memory.len() > 1 && memory.iter().all(in_memory),
        };
        let begun = begun || all && all_given;
        if begun || own || installed.is_empty() || self.app.ids.is_range() {
            return None;
        }
        let mut said = self.last_said();
        let asks = said.any(|line| wants_root(&line.to_lowercase()));
        if installed.as_root
            && (asks || !installed.is_read_by_its_user())
            && let Some(hint) = self.begins_as_root()
        {
            return Some(hint);
        }
        Some(format!(
            "what the host's package {} has for {}, in place of these keys:{}",
            shown(Path::new(&installed.name)),
            text::harmless(self.program(), 64),
            self.lines(&installed, false)
        ))
    }

    /// The same for a server that has to begin as root.
    fn begins_as_root(&self) -> Option<String> {
        if self.app.ids.is_range() || self.is_rootless() {
            return None;
        }
        let installed = self.package()?;
        Some(format!(
            "{} has to begin as root and changes its user by itself: in place of user and these keys:{}",
            text::harmless(self.program(), 64),
            self.lines(&installed, true)
        ))
    }

    /// The same for one that says nothing, and that the host begins as root.
    fn wants_root(&self) -> Option<String> {
        if self.app.ids.is_range() || self.is_rootless() {
            return None;
        }
        let installed = self.package().filter(|installed| installed.as_root)?;
        Some(format!(
            "{} has answered nobody yet, and the host begins it as root: if it says no more (its own log may be in a tmpfs), in place of user and these keys:{}",
            text::harmless(self.program(), 64),
            self.lines(&installed, true)
        ))
    }

    fn package(&self) -> Option<Installed> {
        if self.app.rootfs != Rootfs::Host {
            return None;
        }
        Installed::of(Path::new("/"), self.app.command.first()?)
    }

    /// An ordinary user's app, who is that user.
    /// The last lines that it said, the last one first.
    fn last_said(&self) -> impl Iterator<Item = &String> {
        self.said.iter().rev().take(LINES)
    }

    fn is_rootless(&self) -> bool {
        self.app.ids.host_id == 0
    }

    fn lines(&self, installed: &Installed, range: bool) -> String {
        let (mut volumes, mut memory) = installed.mounts(Path::new("/"), range);
        if self.is_rootless() {
            let (state, own) = volumes
                .into_iter()
                .partition(|entry: &Entry| entry.options.contains("rw"));
            volumes = own;
            let state: Vec<Entry> = state;
            memory.extend(state.into_iter().map(|entry| entry.path));
        }
        let mut lines = String::new();
        let mut line = |key: &str, value: String| lines += &format!("\n  {key} = {value}");
        if let Some(command) = self.commanded(installed) {
            line("command", list(command));
        }
        match &installed.user {
            _ if range => line("ids", "\"range\"".to_owned()),
            Some((name, _)) if !self.is_rootless() => line("user", format!("\"{name}\"")),
            _ => {}
        }
        let again = |path: &Path| volumes.iter().any(|new| new.path == path);
        let kept = self.app.volumes.iter();
        let kept = kept.filter(|v| !installed.has(&v.path) && !again(&v.path));
        let kept = kept.map(volume);
        let new = volumes
            .iter()
            .map(|new| format!("{0}:{0}{1}", shown(&new.path), new.options));
        let named = self.unseen().into_iter();
        let named = named.filter(|path| {
            !installed.has(path) && !volumes.iter().any(|new| path.starts_with(&new.path))
        });
        let named = named.map(|path| format!("{0}:{0}", shown(&path)));
        // What it has complained of the owners of.
        let said = self.last_said().filter(|_| range);
        let owned = said.filter(|line| complains_of_an_owner(&line.to_lowercase()));
        let mut owned: BTreeMap<PathBuf, PathBuf> =
            owned.filter_map(|line| self.owned(line)).collect();
        // What it says that it could not read, which root reads.
        let logged = self.logged();
        let logged = logged.iter().flat_map(|(_, lines)| lines);
        let said = self.last_said().chain(logged);
        let said = said.filter(|_| range).flat_map(|line| paths(line));
        owned.extend(
            said.filter(|path| is_shut(path))
                .map(|path| (path.clone(), path)),
        );
        let owned = owned.into_iter().filter(|(at, _)| {
            let mut all = self.app.volumes.iter().map(|v| &v.path);
            !all.any(|path| path == at) && volumes.iter().all(|new| !at.starts_with(&new.path))
        });
        let owned = owned.map(|(at, host)| with_owners(&host, &at));
        let all: Vec<String> = kept.chain(new).chain(named).chain(owned).collect();
        if !all.is_empty() {
            line("volumes", list(&all));
        }
        let chosen = shared_memory(&self.app.limits);
        let mut all: Vec<String> = self
            .app
            .tmpfs
            .iter()
            .filter(|tmpfs| **tmpfs != chosen && !installed.has(&tmpfs.path))
            .map(entry)
            .collect();
        // Where it says that it failed, in what is made anew at each start of the machine.
        for path in self.last_said().flat_map(|line| paths(line)) {
            if let Some(path) = made_at_start(&path)
                && !memory
                    .iter()
                    .any(|new| path.starts_with(new) && new != Path::new("/run"))
                && !volumes.iter().any(|new| path.starts_with(&new.path))
            {
                memory.push(path);
            }
        }
        for path in memory {
            let given = |tmpfs: &Tmpfs| tmpfs.path == path && !installed.has(&path);
            if !self.app.tmpfs.iter().any(given) {
                // Of /run itself servers have a number or two, in a directory of their own databases that they map.
                let size = if path == Path::new("/run") {
                    "1M"
                } else {
                    "16M"
                };
                all.push(format!("{}:{size}", shown(&path)));
            }
        }
        line("tmpfs", list(&all));
        let published = |port: &u16| {
            let mut all = self.app.publish.iter();
            all.any(|one| one.app_port == *port)
        };
        let new = installed.ports.iter().copied();
        let new: BTreeSet<u16> = new.filter(|port| !published(port)).collect();
        if !new.is_empty() && new.len() <= MOST_PORTS {
            let all: BTreeSet<u16> = new.iter().chain(&self.app.listen).copied().collect();
            let all: Vec<String> = all.iter().map(u16::to_string).collect();
            line("listen", format!("[{}]", all.join(", ")));
        }
        if let Some(workdir) = installed
            .workdir
            .as_ref()
            .filter(|_| self.app.workdir == Path::new("/"))
        {
            line("workdir", format!("\"{workdir}\""));
        }
        // One that has ended so was told something else by what others stay by (`-D`).
        let gone = self.exit == Some(Exit::Status(0));
        let stays = self.told_to_stay() && !gone;
        if (installed.forks || gone) && !self.app.forks && self.foreground().is_none() && !stays {
            line("forks", "true".to_owned());
        }
        let own = ["PATH", "HOME", "HOSTNAME"];
        if !installed.env.is_empty() && self.app.env.keys().all(|name| own.contains(&name.as_str()))
        {
            // Its clients do not come by its own loopback.
            let all = installed.env.iter().map(|(name, value)| {
                let value = match value.strip_prefix("127.0.0.1:") {
                    Some(port) if self.publishes(port.parse().unwrap_or(0)) => {
                        format!("0.0.0.0:{port}")
                    }
                    _ => value.clone(),
                };
                format!("{name} = \"{value}\"")
            });
            let all: Vec<String> = all.collect();
            line("env", format!("{{ {} }}", all.join(", ")));
        }
        lines
    }

    /// What its unit starts it by, where its own command is the program alone.
    fn commanded<'i>(&self, installed: &'i Installed) -> Option<&'i [String]> {
        let bare = self.app.command.len() == 1;
        installed
            .command
            .as_deref()
            .filter(|_| bare && !installed.forks)
    }

    fn program(&self) -> &str {
        let program = self.app.command.first().map_or("", String::as_str);
        program.rsplit('/').next().unwrap_or(program)
    }

    /// How its program is told to stay in the foreground, if that is known.
    fn foreground(&self) -> Option<&'static str> {
        let program = self.program();
        let bare = program.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
        let mut all = FOREGROUND.iter();
        let known = all.find(|(name, _)| *name == program || *name == bare);
        known.map(|(_, how)| *how)
    }

    /// Whether it stays in the foreground, as far as can be known: it is none that goes to the background, or is told not to.
    fn stays(&self) -> bool {
        self.foreground().is_none() || self.told_to_stay()
    }

    fn told_to_stay(&self) -> bool {
        const STAY: [&str; 10] = [
            "-d",
            "-D",
            "-f",
            "-F",
            "-g",
            "-n",
            "-N",
            "--foreground",
            "--nodaemon",
            "--no-daemon",
        ];
        let mut arguments = self.app.command.iter();
        arguments.any(|argument| STAY.contains(&argument.as_str()))
    }

    fn by_exit(&self) -> Option<String> {
        match self.exit? {
            Exit::Status(0) => {
                let name = text::harmless(self.program(), 64);
                if self.app.forks {
                    return Some(format!(
                        "{name} ended without an error and left nothing running: what it would have left ended first, or `forks` is not for it"
                    ));
                }
                Some(match self.foreground() {
                    Some(how) => format!(
                        "{name} goes to the background, and what it leaves there ends with it. The command must stay: {how}; or: forks = true"
                    ),
                    None => format!(
                        "{name} ended without an error. If it goes to the background (a daemon): forks = true, and what it leaves running is the app; or an option such as --foreground, --nodaemon, -F or -f, by which it stays. A command that does its work and ends has nothing to publish"
                    ),
                })
            }
            Exit::Signal(libc::SIGSYS) => Some(
                "the seccomp profile has ended it at a call that it refuses: seccomp = \"default\", or the profile's own action SCMP_ACT_ERRNO".to_owned(),
            ),
            Exit::Signal(libc::SIGKILL) => {
                let memory = self.app.limits.memory? >> 20;
                Some(format!(
                    "if it needed more memory than it may have: limits = {{ memory = \"{}M\" }}",
                    memory.max(1) * 2
                ))
            }
            _ => None,
        }
    }

    fn by_line(&self, line: &str) -> Option<String> {
        let lower = line.to_lowercase();
        let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
        let refused = has(&["permission denied", "eacces", "errno 13"]);
        if let Some(port) = refused_port(&lower) {
            return Some(self.own_port(port));
        }
        if has(&[
            "read-only file system",
            "erofs",
            "errno 30",
            "is not writable",
            "isn't writable",
        ]) {
            // What stands before it may be the program's own file, which says where it was.
            let elsewhere = paths(line).find(|path| !self.is_of_the_root(path));
            return Some(match elsewhere.or_else(|| path(line)) {
                // With a slash at its end it is one, also where the host has none.
                Some(path) if has(&["directory", "folder"]) && has(&["writable"]) => {
                    self.writable(&path.join(""))
                }
                Some(path) => self.writable(&path),
                None if self.app.workdir == Path::new("/") && self.writable_place().is_some() => format!(
                    "it writes where nothing is writable: to its working directory, perhaps: workdir = \"{}\"",
                    shown(self.writable_place()?)
                ),
                None => "it writes where nothing is writable: the root is read-only. Name the directory in tmpfs, such as tmpfs = [\"/tmp:16M\", \"/run:1M\"], or, for what must last, in volumes with :rw".to_owned(),
            });
        }
        if has(&[
            "no such user",
            "unknown user",
            "bad user name",
            "invalid user",
            "getpwnam",
            "user name not found",
            "can't find user",
            "cannot find user",
            "user not found",
            "no such group",
            "bad group name",
            "getgrnam",
            "unknown group",
            "invalid group",
        ]) {
            return Some(match &self.app.rootfs {
                Rootfs::Host => "the app's root has root, app and the host's users below id 1000: install the server's package on the host, which makes its user, or leave user and group out of its configuration; it runs unprivileged already".to_owned(),
                _ => "the app's root has no such user or group in its /etc/passwd or /etc/group: leave both out of the server's configuration; it runs unprivileged already".to_owned(),
            });
        }
        if has(&["no space left", "enospc", "errno 28]"])
            || lower.starts_with(FULL) && lower.ends_with("is full")
        {
            return self.more_room(line);
        }
        if complains_of_an_owner(&lower) {
            let hint = self.owned_as_on_the_host(line);
            if hint.is_some() {
                return hint;
            }
        }
        if wants_root(&lower)
            && self.app.ids.uid != 0
            && let Some(hint) = self.begins_as_root()
        {
            return Some(hint);
        }
        // Some do not say that it was not permitted.
        let drops = has(&["drop privilege", "drop root", "dropping privilege"])
            || has(&["setuid", "setgid", "setgroups", "initgroups"])
                // The kernel says so of an id that the user namespace does not map.
                && has(&["fail", "error", "invalid argument", "einval"]);
        if has(&["operation not permitted", "eperm", "errno 1]"]) || drops && !refused {
            return Some(self.not_permitted(&lower));
        }
        if !refused
            && has(&[
                "no such file or directory",
                "enoent",
                "errno 2]",
                "failed to parse config",
                "non-existent",
                "does not exist",
                "unable to open",
                "failed to open",
                "cannot load certificate",
                "cannot load",
                "can't open",
                "cannot open",
                "could not open",
            ])
            && let Some(first) = path(line)
        {
            let on_the_host = paths(line).find(|path| path.exists());
            return self.missing(&on_the_host.unwrap_or(first));
        }
        if refused {
            let Some(path) = path(line) else {
                // What it is about may be in the line before.
                let said = self.last_said();
                let mut all = said.flat_map(|line| paths(line));
                let unreadable =
                    all.find_map(|path| self.owners(&path).or_else(|| self.secret(&path)));
                if unreadable.is_some() {
                    return unreadable;
                }
                // So may be the port that could not be had, as in `cannot open control interface ::1 8952`.
                let binds = has(&["bind", "listen"]);
                let near = self.last_said().find_map(|line| {
                    let lower = line.to_lowercase();
                    let mut fails = ["cannot", "can't", "could not", "unable", "fail"].iter();
                    let own = port(&lower).filter(|port| !self.publishes(*port));
                    own.filter(|_| fails.any(|word| lower.contains(word)))
                });
                if let Some(port) = near.filter(|_| binds) {
                    return Some(self.own_port(port));
                }
                // Its own name may be a service's, with a port that nobody has published.
                let program = self.program().to_lowercase();
                let bare = program.strip_suffix('d').unwrap_or(&program);
                let port = self.named_port(&format!("{program} {bare}"));
                if let Some(port) = port.filter(|port| binds && !self.publishes(*port)) {
                    return Some(self.own_port(port));
                }
                return Some("what it was refused it does not name: a TCP port that it binds or connects to (Landlock: listen = [PORT], or egress; `lrpns up --explain` names it), or a file that its user may not read or write".to_owned());
            };
            let mut all = paths(line);
            if let Some(hint) =
                all.find_map(|path| self.owners(&path).or_else(|| self.secret(&path)))
            {
                return Some(hint);
            }
            return Some(
                if std::fs::metadata(&path).is_ok_and(|meta| meta.is_file()) && has(&["exec"]) {
                    format!(
                        "{} can't be executed: chmod 755 on the host; in a volume it needs the option exec",
                        shown(&path)
                    )
                } else {
                    format!(
                        "{} can't be read or written by the app, whose user is none of the host's: give it a mode that others may read, or, to write there, {}",
                        shown(&path),
                        self.writable(&path)
                    )
                },
            );
        }
        if self.app.ids.is_range()
            && has(&[
                "value too large for defined data type",
                "eoverflow",
                "errno 75",
            ])
        {
            return Some("a volume has one owner within, and nobody else makes files there or is given any: the option owner=USER says who, such as volumes = [\"./data:/data:rw,owner=www-data\"]".to_owned());
        }
        if has(&[
            "cannot allocate memory",
            "out of memory",
            "outofmemoryerror",
            "enomem",
        ]) {
            let memory = self
                .app
                .limits
                .memory
                .map_or(512, |bytes| (bytes >> 20).max(1) * 2);
            return Some(format!(
                "it has no memory left: limits = {{ memory = \"{memory}M\" }}"
            ));
        }
        if has(&["resource temporarily unavailable", "eagain"])
            && has(&["fork", "thread", "clone", "spawn"])
        {
            let pids = self
                .app
                .limits
                .pids
                .map_or(512, |pids| pids.saturating_mul(2));
            return Some(format!(
                "it may start no more processes or threads: limits = {{ pids = {pids} }}"
            ));
        }
        if has(&["failed to map segment from shared object"]) {
            return Some(self.runs_its_own(line));
        }
        let binds = has(&[
            "bind(",
            "bind:",
            " bind ",
            "bind to",
            "bind failed",
            "to listen",
            "not listen",
            "listen error",
            "listen on",
            "listen()",
            "listen failed",
        ]) && has(&[
            "failed",
            "error",
            "could not",
            "couldn't",
            "cannot",
            "can't",
            "unable",
        ]);
        if binds && !has(&["in use", "eaddr", "cannot assign", "not supported"]) {
            let named = || {
                let by_setting = self.set_port(&lower);
                by_setting.or_else(|| self.named_port(&lower))
            };
            if let Some(port) = port(&lower).or_else(named) {
                return Some(self.own_port(port));
            }
            let own = self.app.listen.iter().filter(|port| **port != 0);
            let own: String = own.map(|port| format!("{port}, ")).collect();
            return Some(format!(
                "it binds a TCP port that is not published: listen = [{own}PORT], or listen = [{own}0] if it takes whichever is free"
            ));
        }
        if has(&["address already in use", "eaddrinuse"]) {
            return Some("something within the app listens there already: each port has one server; started twice, perhaps".to_owned());
        }
        if has(&["address family not supported", "eafnosupport"]) {
            return Some("the app has no IPv6: tell it to listen on 0.0.0.0, or add ipv6 = \"fd00:18::/64\" to [network]".to_owned());
        }
        if has(&["cannot assign requested address", "eaddrnotavail"]) {
            let mut near = self.last_said();
            if self.app.address6.is_none() && near.any(|line| line.contains("::1")) {
                return Some("the app has no IPv6, and so no ::1: ipv6 = \"fd00:18::/64\" in [network] gives it both, or leave ::1 out".to_owned());
            }
            return Some(format!(
                "the app's own address is {}: tell it to listen on 0.0.0.0",
                self.app.address
            ));
        }
        // A log that it names in its configuration alone.
        let log = has(&["log file", "logfile", "start log", "open log", "the log "]);
        let has_logs = || {
            let volumes = self.app.volumes.iter().map(|volume| &volume.path);
            let mut all = volumes.chain(self.app.tmpfs.iter().map(|tmpfs| &tmpfs.path));
            all.any(|path| path == Path::new("/var/log"))
        };
        if log
            && has(&["fail", "error", "could not", "cannot", "can't", "unable"])
            && self.app.rootfs == Rootfs::Host
            && paths(line).next().is_none()
            && !has_logs()
        {
            return Some(format!(
                "it can't open its log: {}",
                self.writable(Path::new("/var/log/"))
            ));
        }
        // It says only that it failed: what it names it may not read, or has not got.
        if !has(&[
            "fail",
            "unable",
            "could not",
            "couldn't",
            "cannot",
            "can't",
            "error",
        ]) {
            return None;
        }
        let mut unread = paths(line).filter(|path| self.in_a_volume(path).is_some());
        unread
            .find_map(|path| self.secret(&path))
            .or_else(|| paths(line).find_map(|path| self.lacks(&path)))
    }

    /// What to do about a path of which a line says no more than that something failed, if it is where servers have theirs, and
    /// the app's root has not even its directory.
    fn lacks(&self, path: &Path) -> Option<String> {
        const PLACES: [&str; 4] = ["/etc", "/run", "/srv", "/var"];
        let parent = path.parent()?;
        let memory = |at: &Path| self.app.tmpfs.iter().any(|tmpfs| tmpfs.path == at);
        let is_there = memory(path) || memory(parent);
        let may_be_its_own = PLACES
            .iter()
            .any(|place| path.starts_with(place) && parent != Path::new(place));
        // A line may name a file while what failed was the network.
        (may_be_its_own && !is_there && !crate::rootfs::is_of_the_host(path))
            .then(|| self.missing(path))
            .flatten()
    }

    /// What to do about one that maps what it has written itself as a program: the directory is the line's, or else the only
    /// one that can be meant.
    fn runs_its_own(&self, line: &str) -> String {
        let of_line = |path: &&Path| paths(line).any(|named| named.starts_with(path));
        let writable = self.app.volumes.iter().filter(|volume| volume.writable);
        let writable = writable.map(|volume| volume.path.as_path());
        let memory = self.app.tmpfs.iter().map(|tmpfs| tmpfs.path.as_path());
        let places: Vec<&Path> = writable.chain(memory).collect();
        let named = places.iter().copied().find(of_line);
        let lasting = || {
            places
                .iter()
                .copied()
                .find(|path| path.starts_with("/var/lib"))
        };
        let Some(place) = named.or_else(lasting) else {
            return "it runs what it has written itself, which no tmpfs lets it: a directory of the host's that is the app's, volumes = [\"./data:PATH:rw,exec\"]".to_owned();
        };
        let kept = self
            .app
            .volumes
            .iter()
            .filter(|volume| volume.path != place);
        let own = format!("./data:{}:rw,exec", shown(place));
        let all: Vec<String> = kept.map(volume).chain([own]).collect();
        let chosen = shared_memory(&self.app.limits);
        let left = self.app.tmpfs.iter();
        let left = left.filter(|tmpfs| **tmpfs != chosen && tmpfs.path != place);
        format!(
            "it runs what it has written itself, which no tmpfs lets it: a directory of the host's that is the app's (mkdir data; as root also chown), in place of these keys:\n  volumes = {}\n  tmpfs = {}",
            list(&all),
            list(&left.map(entry).collect::<Vec<_>>())
        )
    }

    /// What to do about a tmpfs that has no room left: which it is a line says, or else another does.
    fn more_room(&self, line: &str) -> Option<String> {
        const MORE: u64 = 4;
        const LEAST: u64 = 64 << 20;
        let around = |path: PathBuf| {
            let all = self.app.tmpfs.iter();
            let all = all.filter(|tmpfs| path.starts_with(&tmpfs.path));
            all.max_by_key(|tmpfs| tmpfs.path.components().count())
        };
        let full = paths(line).find_map(around)?;
        let chosen = shared_memory(&self.app.limits);
        let larger = |tmpfs: &Tmpfs| Tmpfs {
            size: tmpfs.size.saturating_mul(MORE).max(LEAST),
            ..tmpfs.clone()
        };
        let named = self.app.tmpfs.iter();
        let named = named.filter(|tmpfs| **tmpfs != chosen || *tmpfs == full);
        let all = named.map(|tmpfs| match tmpfs.path == full.path {
            true => entry(&larger(tmpfs)),
            false => entry(tmpfs),
        });
        Some(format!(
            "{} is full; what it takes counts as memory of the app's: in place of this key:\n  tmpfs = {}",
            shown(&full.path),
            list(&all.collect::<Vec<_>>())
        ))
    }

    /// What to do about what must be root's or its own to one that looks whose it is: what is root's on the host is nobody's
    /// within, unless a volume says otherwise.
    fn owned_as_on_the_host(&self, line: &str) -> Option<String> {
        if line.contains("dubious ownership in repository") {
            return Some("git takes no repository that is another's than its user's, unless it is told so: env = { GIT_CONFIG_COUNT = \"1\", GIT_CONFIG_KEY_0 = \"safe.directory\", GIT_CONFIG_VALUE_0 = \"*\" }".to_owned());
        }
        if self.is_rootless() {
            return None;
        }
        let (at, whole) = self.owned(line)?;
        if !self.app.ids.is_range()
            && let Some(hint) = self.begins_as_root()
        {
            return Some(hint);
        }
        let kept = self.app.volumes.iter().filter(|volume| volume.path != at);
        let own = with_owners(&whole, &at);
        let all: Vec<String> = kept.map(volume).chain([own]).collect();
        let ids = match self.app.ids.is_range() {
            true => "",
            false => "\n  ids = \"range\"",
        };
        Some(format!(
            "it checks who owns {}, and what is root's on the host is nobody's within, unless a volume keeps the owners: in place of these keys (with ids = \"range\" there is no user):{ids}\n  volumes = {}",
            shown(&at),
            list(&all)
        ))
    }

    /// What a line that complains of an owner is about, as a read-only volume: where, and what of the host's.
    fn owned(&self, line: &str) -> Option<(PathBuf, PathBuf)> {
        paths(line).find_map(|path| {
            if let Some((_, volume)) = self.in_a_volume(&path) {
                let shows = volume.writable || volume.owners;
                return (!shows).then(|| (volume.path.clone(), volume.host.clone()));
            }
            let top = path.components().count() < 4;
            let directory = match path.is_dir() {
                true => path.clone(),
                false => path.parent()?.to_owned(),
            };
            let there = is_plain(&path) && path.exists() && !top;
            (there && self.is_of_the_root(&path)).then(|| (directory.clone(), directory))
        })
    }

    /// Where what it writes may be, best where it lasts.
    fn writable_place(&self) -> Option<&Path> {
        let volumes = self.app.volumes.iter().filter(|volume| volume.writable);
        let volumes = volumes.map(|volume| volume.path.as_path());
        let tmpfs = self.app.tmpfs.iter().map(|tmpfs| tmpfs.path.as_path());
        let mut all = volumes.chain(tmpfs);
        all.find(|path| !path.starts_with("/run") && !path.starts_with("/dev"))
    }

    /// The TCP port that belongs to a name in a line, as the host's /etc/services has it: who can't bind may say no more than
    /// who it is.
    fn named_port(&self, lower: &str) -> Option<u16> {
        let services = std::fs::read_to_string("/etc/services").ok()?;
        let ends = |c: char| !c.is_ascii_alphanumeric() && c != '-';
        let words: BTreeSet<&str> = lower.split(ends).collect();
        services.lines().find_map(|line| {
            let mut fields = line.split_whitespace();
            let (name, port) = (fields.next()?, fields.next()?);
            let port: u16 = port.strip_suffix("/tcp")?.parse().ok()?;
            // Of the words of a sentence some are names of services.
            let is_one = name.len() > 3 && !["echo", "time", "daytime", "login"].contains(&name);
            (is_one && words.contains(name)).then_some(port)
        })
    }

    /// The port that its configuration has for a setting whose name is in a line: `# interactive_port 8652`.
    fn set_port(&self, lower: &str) -> Option<u16> {
        let ends = |c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-');
        let names: Vec<&str> = lower
            .split(ends)
            .filter(|word| word.len() > 4 && word.contains("port"))
            .collect();
        // What is commented out is what it does by itself.
        let of_line = |line: &str| {
            let line = line
                .trim_start_matches(['#', ';', '/', ' ', '\t'])
                .to_lowercase();
            let mut words = line.split(|c: char| ends(c) && c != '.');
            let is_it = names.contains(&words.next()?);
            let value = words.find(|word| !word.is_empty());
            let port = value.and_then(|value| value.parse().ok());
            port.filter(|port| is_it && *port > 0)
        };
        let (.., line) =
            self.configured(|text| text.lines().position(|line| of_line(line).is_some()))?;
        of_line(&line)
    }

    fn publishes(&self, port: u16) -> bool {
        let mut all = self.app.publish.iter();
        all.any(|publish: &PublishPlan| publish.app_port == port)
    }

    fn own_port(&self, port: u16) -> String {
        if self.publishes(port) {
            return format!(
                "port {port} is published, and it may listen there: what it was refused is a connection, which egress = [\"tcp ADDRESS:{port}\"] grants"
            );
        }
        // All that it was refused, at once.
        let said = self.last_said();
        let all: BTreeSet<u16> = said
            .filter_map(|line| refused_port(&line.to_lowercase()))
            .filter(|port| !self.publishes(*port))
            .chain(self.app.listen.iter().copied())
            .chain([port])
            .collect();
        let ports: Vec<String> = all.iter().map(u16::to_string).collect();
        format!(
            "a TCP port that it uses within itself is not published: listen = [{}]; for its clients: publish = [\"{port}:{port}\"]",
            ports.join(", ")
        )
    }

    /// The line with which a path is writable.
    fn writable(&self, path: &Path) -> String {
        if let Some(hint) = self.read_only(path) {
            return hint;
        }
        let is_directory = path.is_dir() || path.to_string_lossy().ends_with('/');
        let directory = match path.parent() {
            Some(parent) if !is_directory && parent != Path::new("/") => parent,
            _ => path,
        };
        // Without a slash at its end.
        let directory: &Path = &directory.components().collect::<PathBuf>();
        if self.is_of_the_root(directory) {
            return format!(
                "{} is part of the programs, which stay read-only: let the server write elsewhere, such as below /tmp",
                shown(directory)
            );
        }
        // What a file need not say is not suggested to it.
        let chosen = shared_memory(&self.app.limits);
        let named = self.app.tmpfs.iter().filter(|tmpfs| **tmpfs != chosen);
        let mut all: Vec<String> = named.map(entry).collect();
        let new = format!("{}:16M", shown(directory));
        if !all.contains(&new) {
            all.push(new);
        }
        format!(
            "tmpfs = [{}]; for what must last instead: volumes = [\"./data:{}:rw\"]",
            all.iter()
                .map(|one| format!("\"{one}\""))
                .collect::<Vec<_>>()
                .join(", "),
            shown(directory)
        )
    }

    /// The same of what is in a volume that is read-only.
    fn read_only(&self, path: &Path) -> Option<String> {
        let (_, within) = self.in_a_volume(path).filter(|(_, of)| !of.writable)?;
        let meta = std::fs::metadata(&within.host).ok()?;
        let roots = meta.uid() == 0 && (meta.gid() == 0 || meta.mode() & 0o020 == 0);
        let line = |host: String| {
            let all = self.app.volumes.iter().map(|one| match one {
                one if one.path == within.path => format!("{host}:{}:rw", shown(&one.path)),
                one => volume(one),
            });
            format!(
                "in place of this key:\n  volumes = {}",
                list(&all.collect::<Vec<_>>())
            )
        };
        let name = within.path.file_name().map(Path::new)?;
        let copy = shown(name);
        Some(match roots {
            false => format!(
                "{} is a volume that is read-only, and not root's: {}",
                shown(&within.path),
                line(shown(&within.host))
            ),
            true => format!(
                "{} is a volume that is read-only, and root's: a copy of it beside the stack's file, that is the app's (cp -a {} {copy}{}), {}",
                shown(&within.path),
                shown(&within.host),
                match self.is_rootless() {
                    true => String::new(),
                    false => format!(" && chown -R {0}:{0} {copy}", self.app.ids.host_user()),
                },
                line(format!("./{copy}")),
            ),
        })
    }

    fn is_of_the_root(&self, path: &Path) -> bool {
        self.app.rootfs == Rootfs::Host && crate::rootfs::is_of_the_host(path)
    }

    /// What to do about a path that the app does not find.
    fn missing(&self, path: &Path) -> Option<String> {
        // What the kernel has there is not given, and servers mostly do without.
        if ["/proc", "/sys", "/dev"]
            .iter()
            .any(|place| path.starts_with(place))
        {
            return None;
        }
        let mounted = self
            .app
            .volumes
            .iter()
            .any(|volume| path.starts_with(&volume.path));
        if self.app.rootfs != Rootfs::Host || self.is_of_the_root(path) {
            return None;
        }
        if mounted {
            return self.linked(path);
        }
        let parent = path.parent().filter(|parent| *parent != Path::new("/"))?;
        if let Some(hint) = self.secret(path) {
            return Some(hint);
        }
        if path.exists() {
            // A server's own directory holds what its file refers to.
            let whole = parent.starts_with("/etc") && parent != Path::new("/etc");
            let path = shown(if whole { parent } else { path });
            let kept = self.app.volumes.iter().map(volume);
            let all: Vec<String> = kept.chain([format!("{path}:{path}")]).collect();
            return Some(format!(
                "{path} is the host's and not in the app's root: volumes = {}",
                list(&all)
            ));
        }
        if path.starts_with("/etc") {
            let name = shown(Path::new(path.file_name()?));
            return Some(format!(
                "{0} is not there, nor on the host: write one beside the stack's file, and volumes = [\"./{name}:{0}\"]",
                shown(path)
            ));
        }
        Some(format!(
            "{} is not in the app's root; to write there: {}",
            shown(parent),
            self.writable(path)
        ))
    }

    /// What to do about a link in a volume that leads out of it.
    fn linked(&self, path: &Path) -> Option<String> {
        let (host, volume) = self.in_a_volume(path)?;
        let target = std::fs::canonicalize(&host).ok()?;
        if target.starts_with(&volume.host) || self.is_of_the_root(&target) {
            return None;
        }
        let owners = if volume.owners { ":ro,owners" } else { "" };
        Some(format!(
            "{} is a link to {1}, which is not in the app's root: one more, volumes = [\"{1}:{1}{owners}\"]",
            shown(path),
            shown(&target)
        ))
    }

    /// The host's path of what the app has at `path` in a volume, with the volume.
    fn in_a_volume(&self, path: &Path) -> Option<(PathBuf, &Volume)> {
        let volumes = self.app.volumes.iter();
        volumes
            .filter_map(|volume| {
                let within = path.strip_prefix(&volume.path).ok()?;
                Some((joined(&volume.host, within), volume))
            })
            .max_by_key(|(_, volume)| volume.path.components().count())
    }

    /// What to do about somebody's own files in a volume of root's: as a volume they are the app's.
    fn owners(&self, path: &Path) -> Option<String> {
        let (host, volume) = self.in_a_volume(path)?;
        let owner = |path: &Path| Some(std::fs::metadata(path).ok()?.uid());
        let whose = host.ancestors().find_map(owner)?;
        if whose == 0 || owner(&volume.host)? == whose {
            return None;
        }
        let own = |path: &&Path| path.starts_with(&volume.host) && owner(path) == Some(whose);
        let top = host.ancestors().filter(own).last()?;
        let inside = joined(&volume.path, top.strip_prefix(&volume.host).ok()?);
        Some(format!(
            "{0} is another user's than the volume that it is in, and an app is whom its volume belongs to: one more, by itself: volumes = [\"{0}:{1}\"]",
            shown(top),
            shown(&inside)
        ))
    }

    /// What to do about a file of root's that nobody else may read: as a volume it stays so.
    fn secret(&self, path: &Path) -> Option<String> {
        // A file that the server itself writes does not hold secrets of root's, nor does the kernel's own.
        if [
            "/run",
            "/tmp",
            "/var/cache",
            "/var/log",
            "/proc",
            "/sys",
            "/dev",
        ]
        .iter()
        .any(|place| path.starts_with(place))
        {
            return None;
        }
        let in_a_volume = self.in_a_volume(path).map(|(host, _)| host);
        let host = in_a_volume.unwrap_or_else(|| path.to_owned());
        let meta = std::fs::metadata(&host).ok()?;
        // The way to it counts, too: what everybody may read in a directory that nobody enters.
        let is_shut = |directory: &Path| {
            std::fs::metadata(directory)
                .is_ok_and(|meta| meta.uid() == 0 && meta.mode() & 0o001 == 0)
        };
        let shut = host.ancestors().skip(1).any(is_shut);
        if !meta.is_file() || !(shut || meta.uid() == 0 && meta.mode() & 0o004 == 0) {
            return None;
        }
        // A server that reads what is root's alone in its own directory does so before it changes its user.
        let own = |volume: &Volume| {
            !volume.writable && host.starts_with(&volume.host) && path.starts_with("/etc")
        };
        if (self.app.volumes.iter().any(own) || self.is_of_a_group(&meta))
            && let Some(hint) = self.begins_as_root()
        {
            return Some(hint);
        }
        if self.app.ids.is_range() && !self.is_rootless() {
            // Its root reads it, as on the host.
            let kept = self.app.volumes.iter().map(volume);
            let own = with_owners(&host, path);
            let all: Vec<String> = kept.chain([own]).collect();
            return Some(format!(
                "{} is root's alone, and the app begins as root of its own: volumes = {}",
                shown(&host),
                list(&all)
            ));
        }
        let name = host.file_name()?.to_str()?;
        let name = match Secret::may_be_called(name) {
            true => name,
            false => "NAME",
        };
        Some(format!(
            "{} is root's alone: secrets = [\"{name}={}\"] gives it to the app as {SECRETS}/{name}, which its configuration has to name",
            shown(&host),
            host.display()
        ))
    }

    /// Whether the host's user whom it runs as reads such a file by one more group that he is in: within he has one, or a range.
    fn is_of_a_group(&self, meta: &std::fs::Metadata) -> bool {
        let accounts = Accounts::of(Path::new("/")).unwrap_or_default();
        let Some((name, _)) = accounts.user(self.app.ids.uid) else {
            return false;
        };
        let mut groups = accounts.groups.values();
        meta.mode() & 0o040 != 0
            && groups
                .any(|group| group.gid == meta.gid() && group.members.contains(&name.to_owned()))
    }

    fn not_permitted(&self, line: &str) -> String {
        const CALLS: &[(&[&str], &str)] = &[
            (
                &[
                    "setgroups",
                    "initgroups",
                    "setuid",
                    "setgid",
                    "setresuid",
                    "setresgid",
                    "seteuid",
                    "setegid",
                    "set user",
                    "set group",
                    "change user",
                    "drop privilege",
                    "switch user",
                    "prctl",
                    "capset",
                    "capabilities",
                ],
                "it changes its user, which an app has no right to: it runs unprivileged already, so leave its own user and group out of its command and its configuration, or let it be that user from its start (user = \"www-data\", say); a server that has to begin as root takes ids = \"range\"",
            ),
            (
                &["chown", "change owner", "change ownership"],
                "it gives a file another owner, which an app has no right to: it runs unprivileged already, so leave its own user and group out of its command and its configuration, or let it be that user from its start (user = \"www-data\", say); a server that has to begin as root takes ids = \"range\"",
            ),
            (
                &["chroot"],
                "it takes another directory for its root (chroot), which an app has no right to: switch it off in its configuration; a server that has to begin as root takes ids = \"range\", which lets it",
            ),
            (
                &["rlimit_nproc", "rlimit_core", "rlimit_memlock"],
                "it raises a limit of its own (setrlimit), which an app may only lower: leave that out of its configuration, if it does not go on without",
            ),
            (
                &[
                    "setrlimit",
                    "rlimit",
                    "file descriptor",
                    "open files",
                    "nofile",
                ],
                "it raises its limit of open files, which is that of who runs lrpns: raise it there (ulimit -n, LimitNOFILE= of the unit), or ask for less",
            ),
            (
                &["mlock", "lock memory", "locked memory"],
                "it locks memory, which an app has no right to: switch it off in its configuration",
            ),
            (
                &["setpriority", "sched_", "nice"],
                "it changes its priority, which an app has no right to: switch it off in its configuration",
            ),
            (
                &["io_uring"],
                "it wants io_uring, which is kept from every app: switch it off in its configuration",
            ),
            (
                &["perf_event", "ptrace", "bpf(", "keyctl", "userfaultfd"],
                "it makes a system call that is kept from every app, whatever its profile says: switch it off in its configuration",
            ),
            (
                &["unshare", "clone", "namespace", "sandbox", "mount"],
                "it makes namespaces or mounts of its own (a sandbox), which an app has no right to: it is in one already, so switch its own off",
            ),
            (
                &["raw socket", "sock_raw", "packet socket", "icmp", "cap_net"],
                "it wants raw sockets, which an app never has",
            ),
        ];
        let changes_user = CALLS[..3]
            .iter()
            .any(|(words, _)| words.iter().any(|word| line.contains(word)));
        if changes_user && let Some(hint) = self.begins_as_root() {
            return hint;
        }
        let known = CALLS
            .iter()
            .find(|(words, _)| words.iter().any(|word| line.contains(word)));
        known.map_or_else(
            || "a system call was refused: `lrpns up --explain`, or `lrpns run --explain -- CMD`, says which, with the line that would allow it".to_owned(),
            |(_, hint)| (*hint).to_owned(),
        )
    }
}

/// The lines of a configuration that are not commented out, with their numbers from 0.
fn settings(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().filter(|(_, line)| {
        let line = line.trim_start();
        !(line.starts_with(['#', ';']) || line.starts_with("//"))
    })
}

/// The setting that a line has, commented out or not: `# DEFAULT: host = localhost`.
fn set_by_default(line: &str) -> Option<&str> {
    let line = line.trim_start_matches(['#', ';', '/', ' ', '\t']);
    let line = match line.split_once(": ") {
        Some((word, rest)) if word.eq_ignore_ascii_case("default") => rest,
        _ => line,
    };
    // A comment that is a sentence about the setting does not count, only one that is the setting itself.
    let (name, _) = line.split_once('=')?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    name.trim().chars().all(is_name).then_some(line)
}

/// A line of `volumes` that gives what is the host's with its owners.
fn with_owners(host: &Path, within: &Path) -> String {
    format!("{}:{}:ro,owners", shown(host), shown(within))
}

/// Whether it is a file of the host's configuration that not everybody reads.
fn is_shut(path: &Path) -> bool {
    let meta = std::fs::symlink_metadata(path);
    path.starts_with("/etc")
        && is_plain(path)
        && path.components().count() > 3
        && meta.is_ok_and(|meta| meta.is_file() && meta.mode() & 0o004 == 0)
}

/// The directory below /run that a path is in, or is, if it is a server's.
fn made_at_start(path: &Path) -> Option<PathBuf> {
    const OTHERS: [&str; 5] = ["systemd", "lock", "user", "dbus", "secrets"];
    let within = path
        .strip_prefix("/run")
        .or_else(|_| path.strip_prefix("/var/run"))
        .ok()?;
    let mut parts = within.components();
    let first = parts.next()?.as_os_str().to_str()?;
    // A file of /run itself has its place.
    let is_directory = parts.next().is_some();
    (is_directory && !OTHERS.contains(&first)).then(|| Path::new("/run").join(first))
}

/// Whether a line says that it has to be root, in small letters.
fn wants_root(lower: &str) -> bool {
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    let wants = has(&[
        "run as root",
        "running as root",
        "started as root",
        "must be root",
        "be root to",
        "need to be root",
        "not root",
        "requires root",
        "root privileges",
        "superuser",
        "super user",
        "super-user",
    ]);
    // Some refuse to be root, too.
    let refuses = has(&[
        "not be run as root",
        "not run as root",
        "do not run",
        "never run",
    ]);
    wants && !refuses
}

/// How the app's pid 1 says that a tmpfs is full ([`crate::stage`]).
const FULL: &str = "the tmpfs ";

/// Whether a line says that something is whose it must not be, in small letters.
fn complains_of_an_owner(lower: &str) -> bool {
    [
        "illegal owner",
        "wrong owner",
        "bad owner",
        "wrong file owner",
        "incorrect owner",
        "invalid owner",
        "insecure owner",
        "unsafe owner",
        "dubious owner",
        "owner must be",
        "must be owned by",
        "should be owned by",
        "not owned by",
        "isn't owned by",
        "owned by the wrong",
        "owned by uid",
        "owned by someone",
        "owned by another",
        "owned by other",
        "unexpected owner",
        "has owner",
    ]
    .iter()
    .any(|word| lower.contains(word))
}

/// Whether a line says that somebody may not connect, in small letters.
fn turns_away(lower: &str) -> bool {
    [
        "not allow",
        "disallow",
        "denied",
        "deny",
        "refus",
        "reject",
        "forbid",
        "not authori",
        "unauthori",
        "not permit",
        "not trusted",
        "not match",
        "ignoring",
        "dropping",
        "blocked",
        "no access",
        // As a web server's log has it.
        "\" 403 ",
    ]
    .iter()
    .any(|word| lower.contains(word))
}

/// Whether a hint has a line to paste as it is.
fn can_be_pasted(hint: &str) -> bool {
    hint.contains(" = ")
        && !["PORT]", "ADDRESS", "\"FILE\""]
            .iter()
            .any(|open| hint.contains(open))
}

/// What finds out more of one that nothing can be pasted for.
fn explained(hints: &[String]) -> Option<String> {
    let none = |hint: &String| !can_be_pasted(hint) && !hint.contains("--explain");
    (!hints.is_empty() && hints.iter().all(none)).then(|| {
        "`lrpns up --explain` says which system calls and ports of TCP it is refused, with the lines to paste".to_owned()
    })
}

/// The first absolute path of a line.
fn path(line: &str) -> Option<PathBuf> {
    paths(line).next()
}

/// All of them: a program may try several.
fn paths(line: &str) -> impl Iterator<Item = PathBuf> {
    let ends = |c: char| {
        c.is_whitespace()
            || matches!(
                c,
                '"' | '\'' | '`' | '(' | ')' | ',' | ';' | '<' | '>' | '[' | ']' | '{' | '}' | ':'
            )
    };
    line.split(ends).filter_map(|word| {
        // `key=/path`; a name may have one, too.
        let word = word.find("=/").map_or(word, |i| &word[i + 1..]);
        let word = word.trim_end_matches(['.', '!']);
        let whole = word.len() > 1 && word.starts_with('/') && !word.starts_with("//");
        let path = Path::new(word);
        let plain = !path.components().any(|c| c.as_os_str() == "..");
        (whole && plain && word.len() <= 255).then(|| path.to_owned())
    })
}

/// The port at which a line says, in small letters, that Landlock has refused something.
fn refused_port(lower: &str) -> Option<u16> {
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    let refused = has(&["permission denied", "eacces", "errno 13"]);
    let of_a_socket = has(&["bind", "listen", "connect", "socket"]);
    (refused && of_a_socket).then(|| port(lower)).flatten()
}

/// The port in `0.0.0.0:80`, `:::6379`, `[::]:80`, `(0.0.0.0, 80)` or `port 80`.
fn port(line: &str) -> Option<u16> {
    let after = |mark: &str| {
        line.match_indices(mark).find_map(|(i, _)| {
            let rest = &line[i + mark.len()..];
            let end = rest
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(rest.len());
            rest[..end].parse::<u16>().ok().filter(|port| *port > 0)
        })
    };
    let pair = || {
        let words = line.split([' ', ',', '(', ')', '"', '\'', '[', ']']);
        let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
        words.windows(2).find_map(|pair| {
            let is_address = pair[0] == "*" || pair[0].parse::<std::net::IpAddr>().is_ok();
            is_address.then(|| pair[1].parse::<u16>().ok()).flatten()
        })
    };
    after("port ")
        .or_else(pair)
        .filter(|port| *port > 0)
        .or_else(|| {
            let words = line.split([' ', ',', '(', ')', '"', '\'']);
            words
                .filter_map(|word| {
                    let (address, port) = word.trim_end_matches([':', '.']).rsplit_once(':')?;
                    let address = address.rsplit_once("://").map_or(address, |(_, at)| at);
                    // Go leaves out the address that is any.
                    let is_address = address == "*"
                        || address.is_empty() && line.contains("listen tcp")
                        || address.ends_with(':')
                        || address.ends_with(']')
                        || address.parse::<std::net::IpAddr>().is_ok()
                        || address == "localhost";
                    is_address.then(|| port.parse::<u16>().ok()).flatten()
                })
                .find(|port| *port > 0)
        })
}

/// A volume as the configuration has it.
fn volume(volume: &Volume) -> String {
    let mut options = vec![];
    if volume.writable {
        options.push("rw".to_owned());
    }
    if volume.exec {
        options.push("exec".to_owned());
    }
    if volume.owners {
        options.push("owners".to_owned());
    }
    options.extend(volume.owner.map(|(uid, _)| format!("owner={uid}")));
    let mut text = format!("{}:{}", shown(&volume.host), shown(&volume.path));
    if !options.is_empty() {
        text = format!("{text}:{}", options.join(","));
    }
    text
}

fn list(entries: &[String]) -> String {
    let quoted: Vec<String> = entries.iter().map(|one| format!("\"{one}\"")).collect();
    format!("[{}]", quoted.join(", "))
}

/// A tmpfs as the configuration has it.
fn entry(tmpfs: &Tmpfs) -> String {
    let size = match tmpfs.size {
        bytes if bytes % (1 << 20) == 0 => format!("{}M", bytes >> 20),
        bytes if bytes % (1 << 10) == 0 => format!("{}K", bytes >> 10),
        bytes => bytes.to_string(),
    };
    format!("{}:{size}", shown(&tmpfs.path))
}

fn shown(path: &Path) -> String {
    text::harmless(&path.to_string_lossy(), 300).replace(['"', '\\'], "?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_and_a_port_are_found_where_servers_write_them() {
        for (line, found) in [
            (
                "open() \"/var/log/nginx/error.log\" failed (2: No such file or directory)",
                "/var/log/nginx/error.log",
            ),
            (
                "OSError: [Errno 30] Read-only file system: '/srv/x'",
                "/srv/x",
            ),
            ("mkdir: cannot create directory ‘/x’: no /a/b: x", "/a/b"),
            (
                "Error: EROFS: read-only file system, open '/app/log.txt'",
                "/app/log.txt",
            ),
            ("at https://example.org/x /y.", "/y"),
            (
                "ldif_read_file: Permission denied for \"/etc/ldap/cn=config.ldif\"",
                "/etc/ldap/cn=config.ldif",
            ),
            ("/etc/x.conf:12: file=/a is missing", "/etc/x.conf"),
            ("cannot open file=/a", "/a"),
        ] {
            assert_eq!(path(line).as_deref(), Some(Path::new(found)), "{line}");
        }
        assert_eq!(
            paths("no configuration file(s): /etc/a.conf:/var/b").collect::<Vec<_>>(),
            [Path::new("/etc/a.conf"), Path::new("/var/b")]
        );
        for line in ["nothing", "// a comment", "/", "/a/../b"] {
            assert_eq!(path(line), None, "{line}");
        }
        for (line, found) in [
            (
                "bind() to 0.0.0.0:81 failed (13: permission denied)",
                Some(81),
            ),
            (
                "error: listen eacces: permission denied :::6379",
                Some(6379),
            ),
            (
                "could not bind tcp port 11211: permission denied",
                Some(11211),
            ),
            ("12:30:05 connect() to [::1]:9000 failed", Some(9000)),
            ("bind(0.0.0.0, 993) failed: permission denied", Some(993)),
            ("listen(*, 993) failed: permission denied", Some(993)),
            ("unable to bind to tcp://127.0.0.1:5563", Some(5563)),
            ("listen tcp :9847: bind: permission denied", Some(9847)),
            ("12:30:05 nothing", None),
            ("see :9847", None),
        ] {
            assert_eq!(port(line), found, "{line}");
        }
    }
}

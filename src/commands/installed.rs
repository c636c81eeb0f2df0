//! What the host's package of a server has brought: its configuration, its user, where it writes. From Debian's own record
//! of files, the unit or the script that starts it, and the names that such things have, to the lines of the configuration
//! that give an app all of it at once. Nothing is granted by this: the lines are there to be pasted.
//!
//! Read are only the host's own files, none of which an app writes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::accounts::Accounts;
use crate::confine::privileges::Ids;

/// Users below are the system's, and those that packages make.
const FIRST_PERSON: u32 = 1000;

/// Where servers write, below /var.
const STATE: [&str; 4] = ["lib", "cache", "log", "spool"];

/// What packages have in /etc that is not a server's configuration.
const NO_CONFIGURATION: &[&str] = &[
    "X11",
    "alternatives",
    "apparmor.d",
    "apt",
    "bash_completion.d",
    "binfmt.d",
    "ca-certificates",
    "cron.d",
    "cron.daily",
    "cron.hourly",
    "cron.monthly",
    "cron.weekly",
    "dbus-1",
    "default",
    "dhcp",
    "emacs",
    "environment.d",
    "init.d",
    "insserv.conf.d",
    "kernel",
    "ld.so.conf.d",
    "logcheck",
    "logrotate.d",
    "modprobe.d",
    "modules-load.d",
    "needrestart",
    "network",
    "pam.d",
    "ppp",
    "profile.d",
    "resolvconf",
    "rsyslog.d",
    "security",
    "skel",
    "ssl",
    "sudoers.d",
    "sysctl.d",
    "systemd",
    "tmpfiles.d",
    "udev",
    "ufw",
    "update-motd.d",
    "xdg",
    "xinetd.d",
];

/// Where Debian has what is a server's, if it is not called as its program.
const CALLED: &[(&str, &str)] = &[
    ("slapd", "ldap"),
    ("named", "bind"),
    ("smbd", "samba"),
    ("nmbd", "samba"),
    ("mysqld", "mysql"),
    ("mariadbd", "mysql"),
    ("clamd", "clamav"),
    ("in.tftpd", "default/tftpd-hpa"),
    ("snmpd", "snmp"),
];

/// No more directories of one in memory are made in it.
const MOST_WITHIN: usize = 4;

/// A directory below /var, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Directory {
    path: PathBuf,
    owner: Ids,
    mode: u32,
}

/// What there is of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Installed {
    /// The package, or the program where no package is known.
    pub(super) name: String,
    /// Whom it runs as.
    pub(super) user: Option<(String, Ids)>,
    /// Its files and directories in /etc.
    pub(super) etc: Vec<PathBuf>,
    /// Where it keeps things.
    state: Vec<Directory>,
    /// Files of others in /etc that its configuration names, and everybody may read.
    others: Vec<PathBuf>,
    /// What of the host's data its configuration names: what it serves.
    data: Vec<PathBuf>,
    /// Whether its configuration has it write a file to /var/log itself.
    logs: bool,
    /// Where its unit has it write, and nothing is yet.
    memory: Vec<PathBuf>,
    /// Whether whatever starts it does so as root.
    pub(super) as_root: bool,
    /// Where it expects to write below /run.
    run: Vec<PathBuf>,
    /// The ports that its configuration names: it is let bind them, whether anybody reaches them or not.
    pub(super) ports: BTreeSet<u16>,
    /// Where its unit starts it.
    pub(super) workdir: Option<String>,
    /// Whether its unit expects it in the background.
    pub(super) forks: bool,
    /// What its unit has in its environment.
    pub(super) env: Vec<(String, String)>,
    /// What its unit starts it by, where that has arguments and can be told from the unit and what that reads.
    pub(super) command: Option<Vec<String>>,
}

/// One line of `volumes`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The same path on the host and in the app.
    pub(super) path: PathBuf,
    /// What follows it, with its colon.
    pub(super) options: String,
}

impl Installed {
    /// What `root` has of the server that this program is; nothing, if it isn't one that a package starts.
    pub(super) fn of(root: &Path, program: &str) -> Option<Self> {
        let name = program.rsplit('/').next()?;
        let record = root.join("var/lib/dpkg");
        let own = owner(&record, name, program)?;
        let sources = sources(&record);
        let source = sources.get(&own).unwrap_or(&own);
        let siblings: Vec<&String> = sources
            .iter()
            .filter(|(_, of)| *of == source)
            .map(|(package, _)| package)
            .collect();
        let files: BTreeSet<PathBuf> = siblings
            .iter()
            .flat_map(|package| files(&record, package))
            .collect();
        // Of one that something else of its package starts, whatever that starts.
        let by_another = || started(root, &self::files(&record, &own));
        let starts = start(root, &files, name).or_else(by_another)?;

        let names = called(name, &own, source);
        let etc = configuration(root, &files, &names);
        let accounts = Accounts::of(root).unwrap_or_default();
        let mut state: Vec<Directory> = STATE
            .iter()
            .flat_map(|kind| places(root, Path::new("/var").join(kind), &files, &names))
            .collect();
        let user = user(root, &accounts, &starts, &etc, &state, &names);
        if let Some((name, _)) = &user {
            state.extend(home(root, &accounts, name, &state));
        }
        let says = texts(root, &etc);
        if let Some((_, ids)) = &user {
            add_written(root, *ids, &says, &mut state);
        }
        let memory = add_made(root, &starts, &mut state);
        let run = runtime(&files, root, &starts, &says);
        let env = environment(root, &starts);
        let values: Vec<String> = env.iter().map(|(_, value)| value.clone()).collect();
        let mut others = others(root, &etc, &says);
        others.extend(self::others(root, &etc, &values));
        let data: BTreeSet<PathBuf> = says.iter().flat_map(|text| served(text)).collect();
        let data = data.into_iter().filter(|path| below(root, path).is_dir());
        let logs = says.iter().any(|text| logs_to_a_file(root, text));
        let becomes = ["\nUser=", "--chuid"];
        let as_root = !starts
            .iter()
            .any(|text| becomes.iter().any(|word| text.contains(word)));
        Some(Self {
            name: own,
            user,
            etc,
            state,
            others,
            data: data.collect(),
            logs,
            memory,
            as_root,
            run,
            ports: says.iter().flat_map(|text| ports(text)).collect(),
            workdir: setting(&starts, "WorkingDirectory=").next(),
            forks: setting(&starts, "Type=").any(|kind| kind == "forking"),
            env,
            command: command(root, &starts, name),
        })
    }

    /// Whether there is nothing that an app would have to be given.
    pub(super) fn is_empty(&self) -> bool {
        let made = self.run.iter().any(|path| path != Path::new("/run"));
        let writes = made || !self.state.is_empty() || !self.memory.is_empty();
        self.etc.is_empty() && self.user.is_none() && !writes
    }

    /// Whether its user may read what of its configuration is a file: one that is root's alone is read before a server changes
    /// its user.
    pub(super) fn is_read_by_its_user(&self) -> bool {
        let ids = self.user.as_ref().map(|(_, ids)| *ids);
        let metas = self
            .etc
            .iter()
            .filter_map(|path| std::fs::metadata(path).ok());
        let mut files = metas.filter(|meta| meta.is_file());
        // Nor is what it keeps for itself, and finds again.
        let root = Path::new("/");
        let accounts = Accounts::of(root).unwrap_or_default();
        let kept = self.state.iter().filter(|directory| {
            lasts(root, &directory.path) && self.writable(directory, false, &accounts).is_none()
        });
        let mut kept = kept.filter_map(|directory| std::fs::metadata(&directory.path).ok());
        files.all(|meta| reads(ids, &meta)) && kept.all(|meta| reads(ids, &meta))
    }

    /// Whether this is where it keeps something, or its configuration is.
    pub(super) fn has(&self, path: &Path) -> bool {
        let state = self.state.iter().map(|directory| &directory.path);
        state.chain(&self.etc).any(|own| path.starts_with(own))
    }

    /// What of it are volumes, and which directories are rather in memory: as its user, or for one that begins as root over
    /// a range of ids, where root's own `owners` are shown.
    pub(super) fn mounts(&self, root: &Path, range: bool) -> (Vec<Entry>, Vec<PathBuf>) {
        let entry = |path: &Path, options: &str| Entry {
            path: path.to_owned(),
            options: options.to_owned(),
        };
        let readable = if range { ":ro,owners" } else { "" };
        let mut volumes: Vec<Entry> = self.etc.iter().map(|path| entry(path, readable)).collect();
        // What its configuration has elsewhere: keys and certificates.
        let linked = linked(root, &self.etc);
        let ids = self.user.as_ref().map(|(_, ids)| *ids);
        let linked = linked.iter().filter(|(_, meta)| range || reads(ids, meta));
        volumes.extend(linked.map(|(path, _)| entry(path, readable)));
        volumes.extend(self.others.iter().map(|path| entry(path, "")));
        volumes.extend(self.data.iter().map(|path| entry(path, "")));
        let mut memory = vec![];
        if self.logs {
            memory.push(PathBuf::from("/var/log"));
        }
        memory.extend(self.memory.iter().cloned());
        let accounts = Accounts::of(root).unwrap_or_default();
        for directory in &self.state {
            // Who begins as root writes its log as that and as its user, and a volume has one owner.
            if range && directory.path.starts_with("/var/log") {
                memory.push(directory.path.clone());
                continue;
            }
            let within = children(root, &directory.path);
            match self.writable(directory, range, &accounts) {
                Some(options) => volumes.push(entry(&directory.path, &options)),
                None => {
                    let own: Vec<Entry> = within
                        .iter()
                        .filter_map(|child| {
                            Some(entry(&child.path, &self.writable(child, range, &accounts)?))
                        })
                        .collect();
                    let lasts = lasts(root, &directory.path);
                    if lasts && own.is_empty() {
                        volumes.push(entry(&directory.path, readable));
                    } else if !lasts {
                        // With the directories that it has on the host, if those are few: to be written to, or to be a root.
                        let inner = within.iter().filter(|_| within.len() <= MOST_WITHIN);
                        memory.push(directory.path.clone());
                        memory.extend(inner.map(|child| child.path.clone()).filter(|path| {
                            volumes.iter().chain(&own).all(|one| one.path != *path)
                        }));
                    }
                    volumes.extend(own);
                }
            }
        }
        memory.extend(self.run.iter().cloned());
        (volumes, memory)
    }

    /// With what a directory is a writable volume, if it can be: what is root's alone can't.
    fn writable(&self, directory: &Directory, range: bool, accounts: &Accounts) -> Option<String> {
        let Ids { uid, gid } = directory.owner;
        if range {
            let (name, _) = accounts.user(uid).filter(|_| uid != 0 && gid != 0)?;
            return Some(format!(":rw,owner={name}"));
        }
        let (_, ids) = self.user.as_ref()?;
        let bit = match () {
            () if ids.uid == uid => 0o200,
            () if ids.gid == gid => 0o020,
            () => return None,
        };
        (directory.mode & bit != 0).then(|| ":rw".to_owned())
    }
}

/// Whether a server finds in a directory what its package or an earlier start has left there. A spool of nothing but files, as
/// of a seed, is none that fills and is emptied.
fn lasts(root: &Path, path: &Path) -> bool {
    if path.starts_with("/var/spool") {
        return children(root, path).is_empty() && has_files(root, path, 1);
    }
    path.starts_with("/var/lib") && has_files(root, path, 2)
}

/// What a server's files may be called: as its program, its package, or the source of that.
fn called(program: &str, package: &str, source: &str) -> BTreeSet<String> {
    let bare = program.strip_suffix('d').unwrap_or(program);
    let mut names: BTreeSet<String> = [program, bare, package, source]
        .iter()
        .flat_map(|name| {
            [
                (*name).to_owned(),
                format!("{name}.conf"),
                format!("{name}d.conf"),
            ]
        })
        .collect();
    let called = CALLED.iter().find(|(known, _)| *known == program);
    names.extend(called.map(|(_, called)| (*called).to_owned()));
    names.retain(|name| !name.is_empty() && !name.contains("..") && !name.starts_with('/'));
    names
}

/// The home of its user, if it is a server's and not among what is known.
fn home(root: &Path, accounts: &Accounts, user: &str, known: &[Directory]) -> Option<Directory> {
    let home = PathBuf::from(&accounts.users.get(user)?.home);
    let of_a_server = home.parent().and_then(Path::parent) == Some(Path::new("/var"));
    let is_known = known.iter().any(|known| known.path == home);
    match of_a_server && !is_known {
        true => directory(root, &home),
        false => None,
    }
}

/// Adds where its configuration has it write, if that is given to its user.
fn add_written(root: &Path, user: Ids, says: &[String], state: &mut Vec<Directory>) {
    let named: BTreeSet<PathBuf> = says.iter().flat_map(|text| named(text)).collect();
    let own = |directory: &Directory| {
        let Ids { uid, gid } = directory.owner;
        uid == user.uid || gid == user.gid && directory.mode & 0o020 != 0
    };
    for path in named {
        if state.iter().all(|known| !path.starts_with(&known.path)) {
            state.extend(descend(root, &path).find(own));
        }
    }
}

/// Adds what its unit has made for it at each start; gives back what of that is not there yet.
fn add_made(root: &Path, starts: &[String], state: &mut Vec<Directory>) -> Vec<PathBuf> {
    let mut missing = BTreeSet::new();
    for (key, kind) in [
        ("StateDirectory=", "lib"),
        ("CacheDirectory=", "cache"),
        ("LogsDirectory=", "log"),
    ] {
        for path in setting(starts, key).map(|name| Path::new("/var").join(kind).join(name)) {
            if is_plain(&path) && state.iter().all(|known| !path.starts_with(&known.path)) {
                match directory(root, &path) {
                    Some(directory) => state.push(directory),
                    None => missing.extend([path]),
                }
            }
        }
    }
    missing.into_iter().collect()
}

/// Where a server's program is, mostly.
pub(super) const PLACES: [&str; 5] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/sbin"];

/// The package that has brought a program, by Debian's record; it may know it by either of two paths (/usr merged).
fn owner(record: &Path, name: &str, program: &str) -> Option<String> {
    let mut paths: Vec<String> = match program.starts_with('/') {
        true => vec![program.to_owned()],
        false => PLACES
            .iter()
            .map(|place| format!("{place}/{name}"))
            .collect(),
    };
    if let Some(shorter) = program.strip_prefix("/usr") {
        paths.push(shorter.to_owned());
    }
    if program.starts_with("/bin/") || program.starts_with("/sbin/") {
        paths.push(format!("/usr{program}"));
    }
    let lists = std::fs::read_dir(record.join("info")).ok()?;
    let mut lists: Vec<PathBuf> = lists
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|kind| kind == "list"))
        .collect();
    lists.sort();
    lists.into_iter().find_map(|list| {
        let text = std::fs::read_to_string(&list).ok()?;
        let has = text
            .lines()
            .any(|line| paths.iter().any(|path| path == line));
        let package = list.file_stem()?.to_str()?;
        let package = package.split(':').next()?;
        has.then(|| package.to_owned())
    })
}

/// The source of each package that is installed.
fn sources(record: &Path) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(record.join("status")).unwrap_or_default();
    let mut all = BTreeMap::new();
    for stanza in text.split("\n\n") {
        let field = |name: &str| {
            let value = stanza.lines().find_map(|line| line.strip_prefix(name))?;
            value.split_whitespace().next()
        };
        let Some(package) = field("Package: ") else {
            continue;
        };
        let source = field("Source: ").unwrap_or(package);
        all.insert(package.to_owned(), source.to_owned());
    }
    all
}

fn files(record: &Path, package: &str) -> Vec<PathBuf> {
    let lists = [format!("{package}.list"), format!("{package}:amd64.list")];
    let lists = lists
        .iter()
        .chain(&[])
        .map(|list| record.join("info").join(list));
    lists
        .filter_map(|list| std::fs::read_to_string(list).ok())
        .flat_map(|text| text.lines().map(PathBuf::from).collect::<Vec<_>>())
        .collect()
}

/// The text of the units and scripts that start the program. `None` if there are none: it is not a server then.
fn start(root: &Path, files: &BTreeSet<PathBuf>, program: &str) -> Option<Vec<String>> {
    let mut all = vec![];
    for path in files {
        if !is_unit(path) && !path.starts_with("/etc/init.d/") {
            continue;
        }
        let Ok(text) = std::fs::read_to_string(below(root, path)) else {
            continue;
        };
        let of_it = |word: &str| {
            let word = word.trim_matches(|c: char| !c.is_ascii_alphanumeric() && c != '/');
            word.rsplit('/').next() == Some(program)
        };
        if is_unit(path) {
            // Of what is another's unit, that it comes after this one's.
            let own = text.lines().any(|line| {
                let command = line.strip_prefix("ExecStart=").unwrap_or_default();
                let first = command.split_whitespace().next().unwrap_or_default();
                first.rsplit('/').next() == Some(program)
            });
            if own {
                all.insert(0, text);
            }
            continue;
        }
        if text
            .split([' ', '\t', '\n', '=', '"', '\'', ';'])
            .any(of_it)
        {
            all.push(text);
        }
    }
    (!all.is_empty()).then_some(all)
}

fn is_unit(path: &Path) -> bool {
    let service = path.extension().is_some_and(|kind| kind == "service");
    service && path.components().any(|part| part.as_os_str() == "systemd")
}

/// The text of a package's units that start something of their own package: a script, which starts its programs. `None` if
/// there are none.
fn started(root: &Path, files: &[PathBuf]) -> Option<Vec<String>> {
    let own = |line: &str| {
        let command = line.strip_prefix("ExecStart=").unwrap_or_default();
        let first = command.split_whitespace().next().unwrap_or_default();
        let first = Path::new(first.trim_start_matches(['-', '+', '!', '@', ':']));
        files.iter().any(|path| path == first)
    };
    let units = files.iter().filter(|path| is_unit(path));
    let texts = units.filter_map(|path| std::fs::read_to_string(below(root, path)).ok());
    let all: Vec<String> = texts.filter(|text| text.lines().any(own)).collect();
    (!all.is_empty()).then_some(all)
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// The first part of `path` below `directory`, and `directory` before it.
fn first_below(directory: &Path, path: &Path) -> Option<PathBuf> {
    let first = path.strip_prefix(directory).ok()?.components().next()?;
    Some(directory.join(first))
}

/// What is the server's in /etc.
fn configuration(root: &Path, files: &BTreeSet<PathBuf>, names: &BTreeSet<String>) -> Vec<PathBuf> {
    let etc = Path::new("/etc");
    let packaged = files.iter().filter_map(|path| first_below(etc, path));
    let named = names.iter().map(|name| etc.join(name));
    // To whom it belongs it is none: `cron.d` to cron.
    let is_own = |noise: &str| {
        let mut all = names.iter();
        all.any(|name| noise == name || noise.strip_suffix(".d") == Some(name))
    };
    let is_noise = |path: &PathBuf| {
        let name = path.strip_prefix(etc).unwrap_or(path);
        let mut all = NO_CONFIGURATION.iter();
        all.any(|noise| Path::new(noise) == name && !is_own(noise))
    };
    let mut all: Vec<PathBuf> = packaged
        .chain(named)
        .filter(|path| !is_noise(path) && below(root, path).exists())
        // A volume must not be a symbolic link. What the link points to is proposed if it is the server's own.
        .filter(|path| !below(root, path).is_symlink())
        .collect();
    all.sort();
    all.dedup();
    all
}

/// What is the server's in such a directory.
fn places(
    root: &Path,
    place: PathBuf,
    files: &BTreeSet<PathBuf>,
    names: &BTreeSet<String>,
) -> Vec<Directory> {
    let packaged = files.iter().filter_map(|path| first_below(&place, path));
    let named = names.iter().map(|name| place.join(name));
    let mut all: Vec<PathBuf> = packaged.chain(named).collect();
    all.sort();
    all.dedup();
    all.iter()
        .filter_map(|path| directory(root, path))
        .collect()
}

fn directory(root: &Path, path: &Path) -> Option<Directory> {
    let meta = std::fs::symlink_metadata(below(root, path)).ok()?;
    meta.is_dir().then(|| Directory {
        path: path.to_owned(),
        owner: Ids {
            uid: meta.uid(),
            gid: meta.gid(),
        },
        mode: meta.mode(),
    })
}

/// Whether this user may read what has such an owner and mode; nobody's user reads what everybody may.
fn reads(ids: Option<Ids>, meta: &Metadata) -> bool {
    let bit = match ids {
        Some(ids) if ids.uid == meta.uid() => 0o400,
        Some(ids) if ids.gid == meta.gid() => 0o040,
        _ => 0o004,
    };
    meta.mode() & bit != 0
}

/// Tells `found` every file and link at these places and beneath them, by its path on this machine. So many are looked at, and
/// no more.
fn walk(root: &Path, places: &[PathBuf], most: usize, mut found: impl FnMut(&Path, &Metadata)) {
    let (mut places, mut seen) = (places.to_vec(), 0);
    while let Some(place) = places.pop() {
        seen += 1;
        let here = below(root, &place);
        let Ok(meta) = std::fs::symlink_metadata(&here) else {
            continue;
        };
        if seen > most {
            break;
        }
        if meta.is_dir() {
            let entries = std::fs::read_dir(&here).into_iter().flatten().flatten();
            places.extend(entries.map(|entry| place.join(entry.file_name())));
        } else {
            found(&here, &meta);
        }
    }
}

/// The text of these files, and of those in these directories, if it is text, and no longer than a person would write.
fn texts(root: &Path, etc: &[PathBuf]) -> Vec<String> {
    const MOST: usize = 200;
    const LARGEST: u64 = 256 << 10;
    let mut texts = vec![];
    walk(root, etc, MOST, |here, meta| {
        if meta.is_file() && meta.len() <= LARGEST {
            texts.extend(std::fs::read_to_string(here));
        }
    });
    texts
}

/// Whether a path goes down and never up.
pub(super) fn is_plain(path: &Path) -> bool {
    path.components().all(|part| part.as_os_str() != "..")
}

/// The words of a line that may be paths or ports.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !(c.is_ascii_alphanumeric() || "/._-".contains(c)))
}

/// The lines of a configuration that are not commented out.
fn settings(text: &str) -> impl Iterator<Item = &str> {
    let comment = |line: &str| {
        let mut marks = ["#", ";", "//", "<!--"].iter();
        marks.any(|mark| line.starts_with(mark))
    };
    text.lines().filter(move |line| !comment(line.trim_start()))
}

/// The ports that a configuration names: `listen 443`, `CACHE_QUERY_PORT = 7002`, `address = 0.0.0.0:80`.
fn ports(text: &str) -> impl Iterator<Item = u16> + '_ {
    let about = |line: &&str| {
        let lower = line.to_lowercase();
        let mut words = ["port", "listen", "bind"].iter();
        words.any(|word| lower.contains(word))
    };
    let words = settings(text).filter(about).flat_map(words);
    words.filter_map(|word| word.parse().ok().filter(|port| *port > 9))
}

/// The directories on the way to a path below /var/lib and its like, the uppermost first, as far as there are such and no
/// links.
fn descend(root: &Path, path: &Path) -> impl Iterator<Item = Directory> {
    let mut all: Vec<&Path> = path.ancestors().collect();
    // Without /, /var, and /var/lib.
    all.truncate(all.len().saturating_sub(3));
    let all = all.into_iter().rev().map(|path| directory(root, path));
    all.map_while(|one| one).collect::<Vec<_>>().into_iter()
}

/// The places of servers below /var that a configuration names.
fn named(text: &str) -> impl Iterator<Item = PathBuf> + '_ {
    settings(text).flat_map(words).filter_map(|word| {
        let path = Path::new(word);
        let plain = is_plain(path);
        let mut kinds = STATE.iter().map(|kind| Path::new("/var").join(kind));
        let below = kinds.any(|kind| first_below(&kind, path).is_some());
        (below && plain).then(|| path.components().collect())
    })
}

/// What a configuration names of /etc that is neither its own nor in every app's root: `/etc/aliases`.
fn others(root: &Path, etc: &[PathBuf], says: &[String]) -> Vec<PathBuf> {
    const MOST: usize = 4;
    const EVERYWHERE: &[&str] = &[
        "group",
        "hostname",
        "hosts",
        "localtime",
        "machine-id",
        "mime.types",
        "nsswitch.conf",
        "os-release",
        "passwd",
        "protocols",
        "resolv.conf",
        "services",
        "shells",
        "timezone",
    ];
    let words = says.iter().flat_map(|text| settings(text)).flat_map(words);
    let named: BTreeSet<PathBuf> = words
        .map(PathBuf::from)
        .filter(|path| {
            let Ok(name) = path.strip_prefix("/etc") else {
                return false;
            };
            let first = name.components().next();
            let first = first.and_then(|first| first.as_os_str().to_str());
            let own = etc.iter().any(|place| path.starts_with(place));
            let known = first.is_some_and(|first| {
                EVERYWHERE.contains(&first) || NO_CONFIGURATION.contains(&first)
            });
            let plain = is_plain(path);
            // Not a link: what it leads to may be more than what everybody reads.
            let meta = std::fs::symlink_metadata(below(root, path));
            let public = meta.is_ok_and(|meta| meta.is_file() && meta.mode() & 0o004 != 0);
            first.is_some() && plain && !own && !known && public
        })
        .collect();
    named.into_iter().take(MOST).collect()
}

/// What a configuration names of what hosts have for others to see: a site, a directory of files.
fn served(text: &str) -> impl Iterator<Item = PathBuf> + '_ {
    settings(text).flat_map(words).filter_map(|word| {
        let path = Path::new(word);
        let plain = is_plain(path);
        let data =
            path.starts_with("/var/www") || path.starts_with("/srv") && path != Path::new("/srv");
        (plain && data).then(|| path.components().collect())
    })
}

/// Whether a configuration names a file in /var/log.
fn logs_to_a_file(root: &Path, text: &str) -> bool {
    settings(text).flat_map(words).any(|word| {
        let path = Path::new(word);
        path.parent() == Some(Path::new("/var/log")) && !below(root, path).is_dir()
    })
}

/// The files elsewhere in /etc that links in these directories lead to, as far as an app does not have them anyway.
fn linked(root: &Path, etc: &[PathBuf]) -> Vec<(PathBuf, Metadata)> {
    const MOST: usize = 2000;
    let mut found = BTreeMap::new();
    walk(root, etc, MOST, |here, meta| {
        if meta.is_symlink()
            && let Ok(target) = std::fs::canonicalize(here)
            && let Ok(meta) = std::fs::metadata(&target)
        {
            let target = Path::new("/").join(target.strip_prefix(root).unwrap_or(&target));
            let own = etc.iter().any(|place| target.starts_with(place));
            let public = ["/etc/ssl/certs", "/etc/alternatives"];
            let public = public.iter().any(|place| target.starts_with(place));
            if meta.is_file() && target.starts_with("/etc") && !own && !public {
                found.insert(target, meta);
            }
        }
    });
    found.into_iter().collect()
}

/// Whether there is a file in it that is to be kept.
fn has_files(root: &Path, path: &Path, depth: u32) -> bool {
    let entries = std::fs::read_dir(below(root, path)).into_iter().flatten();
    entries.flatten().any(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => {
            depth > 1 && has_files(root, &path.join(entry.file_name()), depth - 1)
        }
        Ok(kind) => kind.is_file(),
        Err(_) => false,
    })
}

fn children(root: &Path, path: &Path) -> Vec<Directory> {
    let entries = std::fs::read_dir(below(root, path)).into_iter().flatten();
    let mut all: Vec<Directory> = entries
        .filter_map(|entry| directory(root, &path.join(entry.ok()?.file_name())))
        .collect();
    all.sort_by(|a, b| a.path.cmp(&b.path));
    all
}

/// Whom the server runs as: who is named where it is started, or else who has most of what is its own, or its name.
fn user(
    root: &Path,
    accounts: &Accounts,
    starts: &[String],
    etc: &[PathBuf],
    state: &[Directory],
    names: &BTreeSet<String>,
) -> Option<(String, Ids)> {
    let of = |name: &str| {
        let user = accounts.users.get(name)?;
        let ids = Ids {
            uid: user.uid,
            gid: user.gid,
        };
        let of_the_system = (1..FIRST_PERSON).contains(&user.uid) && user.gid != 0;
        of_the_system.then(|| (name.to_owned(), ids))
    };
    let settings = starts.iter().flat_map(|text| text.lines());
    let named = settings
        .clone()
        .find_map(|line| of(line.trim().strip_prefix("User=")?));
    let argument = || {
        settings.clone().find_map(|line| {
            let ends = |c: char| c.is_whitespace() || c == '=' || c == '"';
            let words: Vec<&str> = line.split(ends).collect();
            words.windows(2).find_map(|pair| {
                let asks = ["-u", "-U", "--user", "--chuid"].contains(&pair[0])
                    || pair[0].ends_with(",user");
                asks.then(|| of(pair[1].split(':').next()?)).flatten()
            })
        })
    };
    let by_files = || {
        let mut count: BTreeMap<u32, usize> = BTreeMap::new();
        let inner = etc.iter().flat_map(|path| {
            let entries = std::fs::read_dir(below(root, path)).into_iter().flatten();
            entries.filter_map(|entry| entry.ok()?.metadata().ok())
        });
        let outer = etc
            .iter()
            .chain(state.iter().map(|directory| &directory.path))
            .filter_map(|path| std::fs::symlink_metadata(below(root, path)).ok());
        for meta in outer.chain(inner) {
            let group = accounts
                .groups
                .iter()
                .find(|(_, group)| group.gid == meta.gid());
            let user = match meta.uid() {
                0 => group.and_then(|(name, _)| Some(of(name)?.1.uid)),
                uid => Some(uid),
            };
            if let Some(uid) = user {
                *count.entry(uid).or_default() += 1;
            }
        }
        let (uid, _) = count.into_iter().max_by_key(|(_, count)| *count)?;
        of(accounts.user(uid)?.0)
    };
    let by_name = || {
        let prefixes = ["", "_", "debian-", "Debian-"];
        names
            .iter()
            .flat_map(|name| prefixes.map(|prefix| format!("{prefix}{name}")))
            .find_map(|name| of(&name))
    };
    named.or_else(argument).or_else(by_files).or_else(by_name)
}

/// What units say by such a line, as far as it is plain.
fn setting<'s>(starts: &'s [String], key: &'s str) -> impl Iterator<Item = String> + 's {
    let lines = starts.iter().flat_map(|text| text.lines());
    lines.filter_map(move |line| {
        let value = line.strip_prefix(key)?.trim().trim_matches(['"', '\'']);
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:,=+@".contains(c);
        (!value.is_empty() && value.chars().all(plain)).then(|| value.to_owned())
    })
}

/// What its unit has in its environment, by itself or by a file that everybody may read, but for what is only put into its
/// command.
fn environment(root: &Path, starts: &[String]) -> Vec<(String, String)> {
    const MOST: usize = 16;
    let own = setting(starts, "Environment=").collect::<Vec<String>>();
    let files = setting(starts, "EnvironmentFile=");
    let texts = public_texts(root, files, "/etc/default");
    let of_files = texts.iter().flat_map(|text| settings(text)).filter(|line| {
        let name = line.split('=').next().unwrap_or_default();
        let is_put = |start: &String| {
            start.contains(&format!("${name}")) || start.contains(&format!("${{{name}}}"))
        };
        !starts.iter().any(is_put)
    });
    let all = own.iter().map(String::as_str).chain(of_files);
    let all = all.filter_map(|line| {
        let (name, value) = line.trim().split_once('=')?;
        let value = value.trim_matches(['"', '\'']);
        let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:,=+@".contains(c);
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let good = !name.is_empty() && name.chars().all(is_name) && value.chars().all(plain);
        (good && !value.is_empty()).then(|| (name.to_owned(), value.to_owned()))
    });
    all.take(MOST).collect()
}

/// What a unit starts this program by, with what it takes from its environment and from files that everybody may read.
fn command(root: &Path, starts: &[String], program: &str) -> Option<Vec<String>> {
    const MOST: usize = 32;
    let lines = starts.iter().flat_map(|text| text.lines());
    let line = lines
        .filter_map(|line| line.strip_prefix("ExecStart="))
        .find(|line| {
            let first = line.split_whitespace().next().unwrap_or_default();
            // A script in /etc is what starts it, and no app has it.
            first.rsplit('/').next() == Some(program) && !first.starts_with("/etc")
        })?;
    let values = variables(root, starts);
    let mut all: Vec<String> = vec![];
    for word in line.split_whitespace() {
        // A word that is a variable is as many as its value has; one within a word stays a part of it.
        match word.strip_prefix('$').filter(|name| !name.starts_with('{')) {
            Some(name) => {
                let value = values.get(name).map_or("", String::as_str);
                all.extend(value.split_whitespace().map(str::to_owned));
            }
            None => {
                let mut word = word.to_owned();
                while let Some((before, rest)) = word.split_once("${") {
                    let (name, after) = rest.split_once('}')?;
                    let value = values.get(name).map_or("", String::as_str);
                    word = format!("{before}{value}{after}");
                }
                all.push(word);
            }
        }
    }
    // An empty argument is one, quoted; else what is quoted may be more than one word here.
    for word in &mut all {
        if ["\"\"", "''"].contains(&word.as_str()) {
            word.clear();
        }
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:,=+@*".contains(c);
    let good = all.iter().all(|word| word.chars().all(plain));
    (good && all.len() > 1 && all.len() <= MOST).then_some(all)
}

/// What files say that a unit names (`-` before one: it need not be there), of those below that directory that everybody may read.
fn public_texts(
    root: &Path,
    files: impl Iterator<Item = impl AsRef<str>>,
    directory: &str,
) -> Vec<String> {
    let files = files.map(|path| PathBuf::from(path.as_ref().trim().trim_start_matches('-')));
    let files = files.filter(|path| {
        let public = std::fs::metadata(below(root, path)).is_ok_and(|meta| reads(None, &meta));
        path.starts_with(directory) && is_plain(path) && public
    });
    files
        .filter_map(|path| std::fs::read_to_string(below(root, &path)).ok())
        .collect()
}

/// What a unit has for its command to take: by itself, or by files in /etc that everybody may read.
fn variables(root: &Path, starts: &[String]) -> BTreeMap<String, String> {
    let lines = starts.iter().flat_map(|text| text.lines());
    let own = lines
        .clone()
        .filter_map(|line| line.strip_prefix("Environment="));
    let own: Vec<String> = own
        .map(|line| line.trim_matches(['"', '\'']).to_owned())
        .collect();
    let files = lines.filter_map(|line| line.strip_prefix("EnvironmentFile="));
    let texts = public_texts(root, files, "/etc");
    let of_files = texts.iter().flat_map(|text| settings(text));
    let all = own.iter().map(String::as_str).chain(of_files);
    let all = all.filter_map(|line| {
        let (name, value) = line.trim().split_once('=')?;
        let value = value.trim().trim_matches(['"', '\'']);
        Some((name.to_owned(), value.to_owned()))
    });
    all.collect()
}

/// The directories below /run that are made for it before it is started, by what starts it and by what systemd-tmpfiles reads.
/// Its configuration names files that it makes itself.
fn runtime(
    files: &BTreeSet<PathBuf>,
    root: &Path,
    starts: &[String],
    says: &[String],
) -> Vec<PathBuf> {
    let made: Vec<String> = files
        .iter()
        .filter(|path| {
            path.components()
                .any(|part| part.as_os_str() == "tmpfiles.d")
        })
        .filter_map(|path| std::fs::read_to_string(below(root, path)).ok())
        .collect();
    let run = Path::new("/run");
    let mut all: BTreeSet<PathBuf> = BTreeSet::from([run.to_owned()]);
    let started = starts.iter().chain(&made).map(|text| (text, false));
    for (text, names_files) in started.chain(says.iter().map(|text| (text, true))) {
        let lines = text
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'));
        for line in lines {
            if let Some(names) = line.strip_prefix("RuntimeDirectory=") {
                // `%i` is an instance's name.
                let names = names.split_whitespace().filter(|name| !name.contains('%'));
                all.extend(names.map(|name| run.join(name)));
            }
            for word in words(line) {
                let Some(within) = word
                    .strip_prefix("/var/run/")
                    .or(word.strip_prefix("/run/"))
                else {
                    continue;
                };
                let path = run.join(within.trim_end_matches('/'));
                let directory = match path.extension() {
                    None if !names_files => &path,
                    _ => path.parent().unwrap_or(run),
                };
                all.extend(first_below(run, directory).map(|_| directory.to_owned()));
            }
        }
    }
    let foreign = [
        "/run/systemd",
        "/run/lock",
        "/run/user",
        "/run/dbus",
        "/run/sendsigs.omit.d",
    ];
    all.retain(|path| {
        let plain = is_plain(path);
        plain && !foreign.iter().any(|other| path.starts_with(other))
    });
    all.into_iter().collect()
}

//! What the kernel tells, outside, of the real processes and of what is in force in each network namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use rustix::fs::FileType;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::agent::{Agent, Answer, Ask, Join};
use super::route::Route;
use super::target::{Findings, Target};
use super::{Outcome, Verdict};
use crate::config::Source;
use crate::control::{LimitStatus, PartStatus};
use crate::firewall::{self, SIDECAR_TABLE, end_table};
use crate::part::namespaces::{self, Network};
use crate::part::volumes::sockets;
use crate::plan::limits::{Controller, HeldBy};
use crate::plan::{AppPlan, IdMap, Plan};

/// The fields of `/proc/PID/status` (proc_pid_status(5)).
fn status(pid: i32) -> Result<BTreeMap<String, String>, String> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    Ok(text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect())
}

/// A process of the stack.
struct Who<'a> {
    part: &'a str,
    what: &'static str,
    pid: i32,
    uid: u32,
}

impl Who<'_> {
    fn field(&self, name: &str) -> Result<String, String> {
        status(self.pid)?
            .remove(name)
            .ok_or_else(|| format!("/proc/{}/status has no {name}", self.pid))
    }

    fn namespace(&self, kind: &str) -> Result<PathBuf, String> {
        let path = format!("/proc/{}/ns/{kind}", self.pid);
        std::fs::read_link(&path).map_err(|e| format!("{path}: {e}"))
    }

    fn mounts(&self) -> Result<Vec<Mount>, String> {
        let path = format!("/proc/{}/mountinfo", self.pid);
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
        Ok(text.lines().filter_map(Mount::parse).collect())
    }
}

/// A line of mountinfo (proc_pid_mountinfo(5)).
struct Mount {
    at: String,
    options: Vec<String>,
    propagation: Vec<String>,
    kind: String,
}

impl Mount {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(' ').skip(4);
        let at = fields.next()?.to_owned();
        let options = fields.next()?.split(',').map(str::to_owned).collect();
        let propagation = fields
            .by_ref()
            .take_while(|field| *field != "-")
            .map(str::to_owned)
            .collect();
        Some(Self {
            at,
            options,
            propagation,
            kind: fields.next()?.to_owned(),
        })
    }

    fn has(&self, option: &str) -> bool {
        self.options.iter().any(|have| have == option)
    }
}

/// Several values that must all be as wanted: the first that is not, or what the last one was.
fn all<T>(
    values: impl IntoIterator<Item = T>,
    look: impl Fn(T) -> Result<(bool, String), String>,
) -> Outcome {
    let mut last = None;
    for value in values {
        match look(value) {
            Ok((true, happened)) => last = Some(happened),
            Ok((false, happened)) => return Outcome::fail(happened),
            Err(e) => return Outcome::unknown(e),
        }
    }
    last.map_or_else(|| Outcome::unknown("no such process runs"), Outcome::pass)
}

/// The capability sets, as proc_pid_status(5) names them.
pub(super) const SETS: [&str; 5] = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];

fn sets(who: &Who<'_>, may_hold: u64) -> Result<(bool, String), String> {
    let status = status(who.pid)?;
    let mut words = vec![];
    let mut good = true;
    for name in SETS {
        let text = status
            .get(name)
            .ok_or_else(|| format!("/proc/{}/status has no {name}", who.pid))?;
        let held = u64::from_str_radix(text, 16).map_err(|e| e.to_string())?;
        let allowed = if matches!(name, "CapInh" | "CapAmb") {
            0
        } else {
            may_hold
        };
        good &= held & !allowed == 0;
        words.push(format!("{name} {held:x}"));
    }
    Ok((good, format!("{}: {}", who.what, words.join(", "))))
}

pub(super) fn mask(capabilities: &[caps::Capability]) -> u64 {
    capabilities.iter().fold(0, |all, one| all | one.bitmask())
}

/// CAP_NET_ADMIN.
const NET_ADMIN: u64 = 1 << 12;

/// Everything that `/proc` says about the stack's processes.
pub fn processes(target: &Target, findings: &mut Findings) {
    let plan = &target.status.plan;
    let mut everybody = vec![];
    for part in &target.status.parts {
        let mut add = |what, pid: Option<i32>| {
            if let Some(pid) = pid {
                everybody.push(Who {
                    part: &part.name,
                    what,
                    pid,
                    uid: part.host_uid,
                });
            }
        };
        add("pid 1", part.init);
        if part.pid != part.init {
            add("command", part.pid);
        }
    }
    let of =
        |name: &str| -> Vec<&Who<'_>> { everybody.iter().filter(|who| who.part == name).collect() };
    // Carrier and dialer are relays of the other direction.
    let relays = || [of("relay"), of("egress")].concat();
    let relay_runs = target.part("relay").is_some();
    let relay = |outcome: &dyn Fn() -> Outcome| {
        if relay_runs {
            outcome()
        } else {
            Outcome::not_applicable("nothing is published, so there is no relay")
        }
    };

    for app in target.apps() {
        let name = app.name.as_str();
        let own = of(name);
        findings.add(
            "app-cap-sets",
            name,
            all(&own, |who| sets(who, mask(app.ids.capabilities()))),
        );
        findings.add("app-seccomp", name, all(&own, |who| seccomp(who)));
        for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
            let id = format!("app-ns-{kind}");
            findings.add(&id, name, all(&own, |who| apart(who, kind)));
        }
        mounts(app, &own, findings);
        findings.add(
            "leak-stdin",
            name,
            all(own.iter().filter(|who| who.what == "command"), |who| {
                let path = format!("/proc/{}/fd/0", who.pid);
                let link = std::fs::read_link(&path).map_err(|e| format!("{path}: {e}"))?;
                let meta = std::fs::metadata(&path).map_err(|e| format!("{path}: {e}"))?;
                let number = std::os::unix::fs::MetadataExt::rdev(&meta);
                let is_null = (rustix::fs::major(number), rustix::fs::minor(number)) == (1, 3);
                Ok((is_null, link.display().to_string()))
            }),
        );
        limits(target, app, findings);
    }
    findings.add(
        "sidecar-cap-sets",
        "sidecar",
        all(of("sidecar"), |who| {
            sets(who, if plan.seal { 0 } else { NET_ADMIN })
        }),
    );
    findings.add("sidecar-seccomp", "sidecar", all(of("sidecar"), seccomp));
    findings.add(
        "relay-cap-sets",
        "relay",
        relay(&|| all(relays(), |who| sets(who, 0))),
    );
    findings.add("relay-seccomp", "relay", relay(&|| all(relays(), seccomp)));
    findings.add(
        "parts-no-new-privs",
        "all",
        all(&everybody, |who| {
            let flag = who.field("NoNewPrivs")?;
            Ok((flag == "1", format!("{} {}: {flag}", who.part, who.what)))
        }),
    );
    findings.add(
        "parts-uid",
        "all",
        all(&everybody, |who| {
            let uids = who.field("Uid")?;
            let range = plan.app_named(who.part);
            let range = range.map(|app| app.ids).filter(IdMap::is_range);
            let planned =
                |uid: u32| uid == who.uid || range.is_some_and(|ids| plan.is_of(ids, uid));
            let good = uids
                .split_whitespace()
                .all(|uid| uid.parse().is_ok_and(planned))
                && who.uid != 0;
            // Until it executes its command, an app's pid 1 may be another of the part's ids.
            Ok((
                good,
                format!(
                    "{} {}: {}, planned is {}",
                    who.part,
                    who.what,
                    uids.replace('\t', " "),
                    who.uid
                ),
            ))
        }),
    );
    findings.add(
        "sidecar-namespaces",
        "sidecar",
        all(
            ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"],
            |kind| {
                of("sidecar")
                    .first()
                    .map_or_else(|| Err("it does not run".into()), |who| apart(who, kind))
            },
        ),
    );
    findings.add(
        "relay-namespaces",
        "relay",
        relay(&|| {
            all(["user", "mnt", "pid", "ipc", "uts", "cgroup"], |kind| {
                let apart = |who| apart(who, kind);
                let mut looked = relays().into_iter().map(apart);
                let first = looked.next();
                let first = first.unwrap_or_else(|| Err("it does not run".into()))?;
                looked.try_fold(first, |(good, last), next| {
                    let (is_good, happened) = next?;
                    Ok((good && is_good, if good { happened } else { last }))
                })
            })
        }),
    );
    findings.add("parts-share-nothing", "all", shared(&everybody));
    findings.add(
        "id-maps",
        "all",
        all(everybody.iter().filter(|who| who.what == "pid 1"), |who| {
            id_map(who, plan)
        }),
    );
    let roots: Vec<&Who<'_>> = everybody
        .iter()
        .filter(|who| matches!(who.part, "sidecar" | "relay" | "egress"))
        .collect();
    findings.add(
        "empty-roots",
        "all",
        all(&roots, |who| {
            let mounts = who.mounts()?;
            let good = mounts.len() == 1
                && mounts.iter().all(|mount| {
                    ["ro", "nosuid", "nodev", "noexec"]
                        .iter()
                        .all(|flag| mount.has(flag))
                });
            let words: Vec<String> = mounts
                .iter()
                .map(|mount| format!("{} {}", mount.at, mount.options.join(",")))
                .collect();
            Ok((good, format!("{}: {}", who.part, words.join("; "))))
        }),
    );
    findings.add(
        "app-mounts-private",
        "all",
        all(&everybody, |who| {
            let mounts = who.mounts()?;
            let tied = mounts.iter().find(|mount| !mount.propagation.is_empty());
            Ok(match tied {
                Some(mount) => (
                    false,
                    format!("{} {}: {}", who.part, mount.at, mount.propagation.join(" ")),
                ),
                None => (true, format!("{} mounts, private", mounts.len())),
            })
        }),
    );
    findings.add(
        "leak-part-descriptors",
        "all",
        all(
            everybody.iter().filter(|who| who.what == "pid 1"),
            descriptors,
        ),
    );
    findings.add(
        "leak-part-environment",
        "all",
        all(&roots, |who| {
            let path = format!("/proc/{}/environ", who.pid);
            let environ = std::fs::read(&path).map_err(|e| format!("{path}: {e}"))?;
            Ok((
                environ.is_empty(),
                format!("{}: {} bytes", who.part, environ.len()),
            ))
        }),
    );
    listeners(target, findings);
}

fn seccomp(who: &Who<'_>) -> Result<(bool, String), String> {
    let mode = who.field("Seccomp")?;
    Ok((mode == "2", format!("{}: {mode}", who.what)))
}

fn apart(who: &Who<'_>, kind: &str) -> Result<(bool, String), String> {
    let own = std::fs::read_link(format!("/proc/self/ns/{kind}")).map_err(|e| e.to_string())?;
    let theirs = who.namespace(kind)?;
    Ok((
        own != theirs,
        format!("{}, the host's is {}", theirs.display(), own.display()),
    ))
}

fn shared(everybody: &[Who<'_>]) -> Outcome {
    let mut owners: BTreeMap<PathBuf, &str> = BTreeMap::new();
    for who in everybody {
        for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
            let namespace = match who.namespace(kind) {
                Ok(namespace) => namespace,
                Err(e) => return Outcome::unknown(e),
            };
            let owner = owners.entry(namespace).or_insert(who.part);
            if *owner != who.part {
                return Outcome::fail(format!(
                    "{owner} and {} share their {kind} namespace",
                    who.part
                ));
            }
        }
    }
    Outcome::pass(format!("{} namespaces, each of one part", owners.len()))
}

fn id_map(who: &Who<'_>, plan: &Plan) -> Result<(bool, String), String> {
    let path = format!("/proc/{}/uid_map", who.pid);
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    let mut found: Vec<Vec<u32>> = vec![];
    for line in text.lines() {
        found.push(
            line.split_whitespace()
                .filter_map(|number| number.parse().ok())
                .collect(),
        );
    }
    let words = found
        .iter()
        .map(|line| format!("{line:?}"))
        .collect::<Vec<_>>()
        .join(" ");
    let Some(ids) = plan.ids_of(who.part) else {
        return Err(format!("the plan has no {}", who.part));
    };
    // What is read is relative to this process's user namespace: the host's.
    let good = found == plan.host_lines(ids) && found.iter().all(|line| line.get(1) != Some(&0));
    Ok((good, format!("{}: {words}", who.part)))
}

/// Paths that the plan declares writable beside its tmpfs.
#[must_use]
pub fn volumes(app: &AppPlan) -> Vec<PathBuf> {
    let writable = app.volumes.iter().filter(|volume| volume.writable);
    writable.map(|volume| volume.path.clone()).collect()
}

/// Where the null device is.
const NULL: &str = "/dev/null";

/// The devices of an app, each a mount of the host's.
const DEVICES: [&str; 5] = [
    NULL,
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
];

fn mounts(app: &AppPlan, own: &[&Who<'_>], findings: &mut Findings) {
    let name = app.name.as_str();
    let mut declared: BTreeSet<String> = app
        .tmpfs
        .iter()
        .map(|tmpfs| tmpfs.path.display().to_string())
        .collect();
    declared.extend(volumes(app).iter().map(|path| path.display().to_string()));
    declared.insert("/proc".to_owned());
    let look = |bad: &dyn Fn(&Mount) -> bool| {
        all(own, |who| {
            let mounts = who.mounts()?;
            let wrong: Vec<&str> = mounts
                .iter()
                .filter(|mount| bad(mount))
                .map(|mount| mount.at.as_str())
                .collect();
            Ok(if wrong.is_empty() {
                (true, format!("none of {}", mounts.len()))
            } else {
                (false, wrong.join(", "))
            })
        })
    };
    // The root has a probe of its own, which tries it.
    findings.add(
        "app-mounts-writable",
        name,
        look(&|mount| mount.at != "/" && !mount.has("ro") && !declared.contains(&mount.at)),
    );
    findings.add(
        "app-mounts-nosuid",
        name,
        look(&|mount| !mount.has("nosuid")),
    );
    findings.add(
        "app-mounts-kernel",
        name,
        look(&|mount| {
            let own = mount.at.starts_with("/proc") || DEVICES.contains(&mount.at.as_str());
            sockets::is_kernels(&mount.kind) && !own
        }),
    );
    // What is in /dev is looked at one by one.
    findings.add(
        "app-mounts-nodev",
        name,
        look(&|mount| !mount.has("nodev") && !mount.at.starts_with("/dev/")),
    );
}

/// What the descriptors of a process are.
fn links(who: &Who<'_>) -> Result<Vec<PathBuf>, String> {
    let path = format!("/proc/{}/fd", who.pid);
    match std::fs::read_dir(&path) {
        Ok(list) => {
            let links = list.flatten().map(|entry| open_file(&entry.path()));
            Ok(links.filter_map(Result::ok).collect())
        }
        // What can't be looked into belongs there to its namespace's id 0, and where none is mapped to the host's
        // (task_dump_owner(), fs/proc/base.c). Who may trace it can have copies.
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => copies(who),
        Err(e) => Err(format!("{path}: {e}")),
    }
}

/// What a descriptor stands for, by its link in /proc. The null device is known by its numbers: from the mount that a part has it
/// of, which is attached nowhere any more, it has no name.
fn open_file(link: &Path) -> std::io::Result<PathBuf> {
    let null = rustix::fs::stat(link).is_ok_and(|stat| {
        let device = (
            rustix::fs::major(stat.st_rdev),
            rustix::fs::minor(stat.st_rdev),
        );
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && device == (1, 3)
    });
    match null {
        true => Ok(PathBuf::from(NULL)),
        false => std::fs::read_link(link),
    }
}

fn copies(who: &Who<'_>) -> Result<Vec<PathBuf>, String> {
    let pid = Pid::from_raw(who.pid).ok_or_else(|| format!("{} has no process", who.part))?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty());
    let pidfd = pidfd.map_err(|e| format!("pidfd_open of {}: {e}", who.pid))?;
    let most = who.field("FDSize")?;
    let most = most.parse().map_err(|e| format!("FDSize {most}: {e}"))?;
    let mut links = vec![];
    for number in 0..most {
        match pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()) {
            Ok(copy) => {
                let own = format!("/proc/self/fd/{}", copy.as_raw_fd());
                links.push(open_file(Path::new(&own)).map_err(|e| format!("{own}: {e}"))?);
            }
            Err(rustix::io::Errno::BADF) => {}
            Err(e) => return Err(format!("descriptor {number} of {}: {e}", who.pid)),
        }
    }
    Ok(links)
}

/// How often an app's pid 1 is looked at until it holds nothing strange: for a health check it is handed our own program, and
/// closes it once that runs.
const LOOKS: u32 = 50;

fn descriptors(who: &Who<'_>) -> Result<(bool, String), String> {
    let mut looks = (0..LOOKS).map(|_| descriptors_now(who));
    let mut last = looks.next().unwrap_or(Ok((true, String::new())));
    for look in looks {
        if !matches!(last, Ok((false, _))) {
            break;
        }
        last = look;
    }
    last
}

fn descriptors_now(who: &Who<'_>) -> Result<(bool, String), String> {
    let mut strange = vec![];
    let mut seen = 0;
    for link in links(who)? {
        let link = link.display().to_string();
        seen += 1;
        let harmless = ["socket:", "anon_inode:", "pipe:"]
            .iter()
            .any(|kind| link.starts_with(kind))
            || link == NULL;
        if !harmless {
            strange.push(link);
        }
    }
    Ok((
        strange.is_empty(),
        if strange.is_empty() {
            format!("{}: {seen}", who.part)
        } else {
            format!("{}: {}", who.part, strange.join(", "))
        },
    ))
}

/// Where the relay listens, by the sockets that it holds.
fn listeners(target: &Target, findings: &mut Findings) {
    const LISTEN: &str = "0A";
    let Some(relay) = target.part("relay").and_then(|part| part.init) else {
        findings.add(
            "in-listeners",
            "relay",
            Outcome::not_applicable("nothing is published"),
        );
        return;
    };
    let look = || -> Result<Outcome, String> {
        let sockets = |process: &str| -> Result<BTreeSet<String>, String> {
            let path = format!("/proc/{process}/fd");
            let all = std::fs::read_dir(&path).map_err(|e| format!("{path}: {e}"))?;
            let links = all.flatten();
            let links = links.filter_map(|entry| std::fs::read_link(entry.path()).ok());
            let inode = |link: PathBuf| {
                let link = link.to_str()?.strip_prefix("socket:[")?;
                Some(link.strip_suffix(']')?.to_owned())
            };
            Ok(links.filter_map(inode).collect())
        };
        let mut held = sockets(&relay.to_string())?;
        if target.status.gated {
            // The auditor of a gate has what was handed over at the start, too: of a service manager, with which clients wait
            // while nobody accepts.
            for early in sockets("self")? {
                held.remove(&early);
            }
        }
        let mut found = BTreeSet::new();
        for file in ["tcp", "tcp6", "udp", "udp6"] {
            // Rootless the listening sockets are of our own network namespace, and the relay is in another.
            for path in [
                format!("/proc/{relay}/net/{file}"),
                format!("/proc/self/net/{file}"),
            ] {
                let text = std::fs::read_to_string(path).unwrap_or_default();
                for line in text.lines().skip(1) {
                    let fields: Vec<&str> = line.split_whitespace().collect();
                    let (Some(local), Some(peer), Some(state), Some(inode)) =
                        (fields.get(1), fields.get(2), fields.get(3), fields.get(9))
                    else {
                        continue;
                    };
                    // One with a peer carries a client's datagrams to the app: it hears nobody else.
                    let hears = match file.starts_with("udp") {
                        true => peer.ends_with(":0000"),
                        false => *state == LISTEN,
                    };
                    if held.contains(*inode) && hears {
                        found.insert((file.to_owned(), (*local).to_owned()));
                    }
                }
            }
        }
        let wanted: BTreeSet<(String, String)> = target
            .status
            .plan
            .published()
            .map(|(_, publish)| {
                // As the kernel prints them: words of the machine's own order (net/ipv4/tcp_ipv4.c, tcp_ipv6.c).
                let (file, address) = match publish.listen.ip() {
                    IpAddr::V4(ip) => (
                        publish.protocol.to_string(),
                        format!("{:08X}", u32::from_ne_bytes(ip.octets())),
                    ),
                    IpAddr::V6(ip) => (
                        format!("{}6", publish.protocol),
                        ip.octets()
                            .chunks_exact(4)
                            .filter_map(|word| word.try_into().ok())
                            .map(|word| format!("{:08X}", u32::from_ne_bytes(word)))
                            .collect(),
                    ),
                };
                (file, format!("{address}:{:04X}", publish.listen.port()))
            })
            .collect();
        if target.status.gated {
            // A socket of UDP is open as soon as it is bound; what comes waits there for the relay, which waits too.
            found.retain(|(file, _): &(String, String)| file.starts_with("tcp"));
            return Ok(Outcome::check(
                found.is_empty(),
                format!(
                    "{} of {} while the gate is closed",
                    found.len(),
                    wanted.len()
                ),
            ));
        }
        Ok(Outcome::check(
            found == wanted,
            format!(
                "{} of {} as published",
                found.intersection(&wanted).count(),
                found.len()
            ),
        ))
    };
    findings.add(
        "in-listeners",
        "relay",
        look().unwrap_or_else(Outcome::unknown),
    );
}

/// A limit of the plan: of processes, of bytes, of processors (in thousandths).
#[must_use]
fn limit(app: &AppPlan, which: Controller) -> Option<i64> {
    let limits = &app.limits;
    match which {
        Controller::Memory => limits.memory.and_then(|bytes| i64::try_from(bytes).ok()),
        Controller::Pids => limits.pids.map(i64::from),
        Controller::Cpu => limits.cpu.map(|cpus| i64::from(cpus.thousandths())),
    }
}

/// The limit that is in force for a process, in the same unit: by cgroup, version 2 or 1 (cgroups(7)).
#[must_use]
fn in_force(pid: i32, which: &str) -> Option<i64> {
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let own = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    for line in cgroups.lines() {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        for mount in own.lines() {
            let (front, back) = mount.split_once(" - ")?;
            let at = front.split(' ').nth(4)?;
            let mut back = back.split(' ');
            let (kind, _, options) = (back.next()?, back.next()?, back.next().unwrap_or_default());
            let v2 = controllers.is_empty() && kind == "cgroup2";
            let v1 = kind == "cgroup"
                && controllers
                    .split(',')
                    .any(|c| !c.is_empty() && options.split(',').any(|o| o == c));
            if !v2 && !v1 {
                continue;
            }
            let read = |file: &str| std::fs::read_to_string(format!("{at}{path}/{file}")).ok();
            let number = |text: String| text.trim().parse::<i64>().ok();
            let found = match which {
                "pids" => read("pids.max").and_then(number),
                "memory" => read("memory.max")
                    .or_else(|| read("memory.limit_in_bytes"))
                    .and_then(number),
                _ => read("cpu.max")
                    .or_else(|| {
                        Some(format!(
                            "{} {}",
                            read("cpu.cfs_quota_us")?.trim(),
                            read("cpu.cfs_period_us")?.trim()
                        ))
                    })
                    .and_then(|text| {
                        let (quota, period) = text.trim().split_once(' ')?;
                        Some(quota.parse::<i64>().ok()? * 1000 / period.parse::<i64>().ok()?)
                    }),
            };
            if found.is_some() {
                return found;
            }
        }
    }
    None
}

fn limits(target: &Target, app: &AppPlan, findings: &mut Findings) {
    let name = app.name.as_str();
    let part = target.part(name);
    for (id, which, limit) in [
        ("limit-memory", "memory", Controller::Memory),
        ("limit-cpu", "cpu", Controller::Cpu),
    ] {
        let found = || {
            part.and_then(|part| part.pid)
                .and_then(|pid| in_force(pid, which))
        };
        let outcome = match held(part, limit) {
            Err(why) => Outcome::not_applicable(why),
            Ok(_) => match (self::limit(app, limit), found()) {
                (Some(wanted), Some(found)) => Outcome::check(
                    found > 0 && found <= wanted,
                    format!("{found}, declared is {wanted}"),
                ),
                (wanted, None) => Outcome::fail(format!("none, declared is {wanted:?}")),
                (None, Some(found)) => Outcome::unknown(format!("{found}, and no plan for it")),
            },
        };
        findings.add(id, name, outcome);
    }
}

/// What holds a part's limit; why nothing does, where `up` has said so.
///
/// # Errors
/// The reason, in words.
pub fn held(part: Option<&PartStatus>, limit: Controller) -> Result<HeldBy, String> {
    let part = part.ok_or("there is no such part")?;
    match part.limits.iter().find(|status| status.limit == limit) {
        None => Err("the stack asks for no limit".to_owned()),
        Some(LimitStatus { held_by, .. }) => held_by.ok_or_else(|| {
            let said = |note: &&String| note.starts_with("limits that can't be enforced");
            part.notes
                .iter()
                .find(said)
                .cloned()
                .unwrap_or_else(|| "nothing can hold it here".to_owned())
        }),
    }
}

/// Whether this table is the one that a capture under way has put there, and as it is put there.
fn is_captures(agent: &Agent, here: &Result<Agent, String>, table: &str) -> bool {
    let (Ok(here), Ok(meant)) = (here, firewall::encode(&firewall::capture_rules())) else {
        return false;
    };
    let name = table.to_owned();
    let (Ok(Answer::Listing(found)), Ok(Answer::Listing(meant))) = (
        agent.ask(&Ask::List(name.clone())),
        here.ask(&Ask::Meant {
            batch: meant,
            table: name,
            link: String::new(),
        }),
    ) else {
        return false;
    };
    // One of another family has the same name, and no rule of it was compared.
    let namesake = found.other_tables.iter().any(|other| other == table);
    table == firewall::CAPTURE_TABLE && !namesake && found.differences(&meant).is_empty()
}

/// What is to be in force where the uplink ends.
fn planned_for_host(target: &Target) -> Result<firewall::Batch, firewall::EncodeError> {
    let plan = &target.status.plan;
    let rules = if target.status.gated {
        firewall::closed_host_rules(plan)
    } else {
        firewall::host_rules(plan)
    };
    match firewall::uplink_rules(plan) {
        Some(at_link) => firewall::alone(plan, &rules, &at_link),
        None => firewall::encode(&rules),
    }
}

/// Why there are no rules in an app.
pub const NOT_BY_LOOPBACK: &str = "its clients don't come to its loopback";

/// The rules in force, the sidecar's network and the host's.
pub fn rules<'a>(
    target: &Target,
    sidecar: &Result<Agent, String>,
    host: &Result<Agent, String>,
    apps: impl Iterator<Item = (&'a AppPlan, &'a Result<Agent, String>)>,
    findings: &mut Findings,
) {
    let plan = &target.status.plan;
    // Who has joined another user namespace can't make one below it: its own id is not mapped there.
    let here = Agent::join(&Join::Stay).map_err(|e| format!("fork: {e}"));
    let here = &here;
    let compare = |agent: &Result<Agent, String>,
                   table: String,
                   batch: Result<firewall::Batch, firewall::EncodeError>,
                   alone: bool| {
        let work = || -> Result<Outcome, String> {
            let agent = agent.as_ref().map_err(Clone::clone)?;
            let batch = batch.map_err(|e| e.to_string())?;
            let (Answer::Listing(found), Answer::Listing(meant)) = (
                agent.ask(&Ask::List(table.clone()))?,
                here.as_ref().map_err(Clone::clone)?.ask(&Ask::Meant {
                    batch,
                    table,
                    link: plan.uplink.host_link.to_string(),
                })?,
            ) else {
                return Err("the process inside answered something else".to_owned());
            };
            let mut wrong = found.differences(&meant);
            if alone {
                let others = found.other_tables.iter();
                wrong.extend(
                    others
                        .filter(|other| !is_captures(agent, here, other))
                        .map(|other| format!("there is another table, {other}")),
                );
            }
            Ok(if wrong.is_empty() {
                Outcome::pass(format!("{} objects, as planned", found.objects.len()))
            } else {
                Outcome::fail(wrong.join("; "))
            })
        };
        work().unwrap_or_else(Outcome::unknown)
    };
    findings.add(
        "rules-sidecar",
        "sidecar",
        compare(
            sidecar,
            SIDECAR_TABLE.to_owned(),
            firewall::sidecar_batch(plan, &target.status.compiled),
            true,
        ),
    );
    findings.add(
        "rules-host",
        "host",
        compare(host, end_table(plan), planned_for_host(target), false),
    );
    for (app, net) in apps {
        let outcome = match firewall::app_rules(app) {
            Some(rules) => compare(
                net,
                firewall::APP_TABLE.to_owned(),
                firewall::encode(&rules),
                true,
            ),
            None => Outcome::not_applicable(NOT_BY_LOOPBACK),
        };
        findings.add("rules-app", app.name.as_str(), outcome);
    }

    let bridge = plan.bridge.name.as_str();
    findings.add(
        "sidecar-sysctls",
        "sidecar",
        sysctls(
            sidecar,
            &[
                namespaces::SIDECAR.as_slice(),
                namespaces::COMMON.as_slice(),
            ]
            .concat(),
        ),
    );
    let network = Network::Sidecar {
        ipv6: plan.has_ipv6(),
    };
    let own = plan
        .bridge
        .address6
        .into_iter()
        .chain(plan.uplink.sidecar_address6);
    // Those of the apps that are handed their sockets are its own.
    let own = own.chain(plan.handed_apps().filter_map(|app| app.address6));
    let ipv6 = ipv6_as_planned(sidecar, network, own.collect());
    findings.add("sidecar-ipv6-off", "sidecar", ipv6);
    findings.add(
        "arp-static",
        "sidecar",
        text(sidecar, "/proc/self/net/arp", |table| {
            let wanted = plan
                .linked_apps()
                .map(|app| (app.address, app.mac, bridge))
                .chain([(
                    plan.uplink.host_address,
                    plan.uplink.host_mac,
                    plan.uplink.sidecar_link.as_str(),
                )]);
            for (address, mac, link) in wanted {
                let line = table
                    .lines()
                    .map(|line| line.split_whitespace().collect::<Vec<_>>())
                    .find(|fields| {
                        fields.first() == Some(&address.to_string().as_str())
                            && fields.last() == Some(&link)
                    });
                let Some(line) = line else {
                    return Outcome::fail(format!("there is none for {address} on {link}"));
                };
                // ATF_COM and ATF_PERM (linux/if_arp.h).
                if line.get(2) != Some(&"0x6") || line.get(3) != Some(&mac.to_string().as_str()) {
                    return Outcome::fail(format!(
                        "{address} is {} with flags {}",
                        line.get(3).unwrap_or(&"?"),
                        line.get(2).unwrap_or(&"?")
                    ));
                }
            }
            Outcome::pass("permanent")
        }),
    );
    let ports = || -> Result<Outcome, String> {
        let Answer::Ports(ports) = sidecar.as_ref().map_err(Clone::clone)?.ask(&Ask::Ports)? else {
            return Err("the process inside answered something else".to_owned());
        };
        for app in plan.linked_apps() {
            let Some(port) = ports
                .iter()
                .find(|port| port.name == app.port_link.as_str())
            else {
                return Ok(Outcome::fail(format!(
                    "{} is no port of the bridge",
                    app.port_link
                )));
            };
            if !port.isolated || !port.locked || port.learning || port.flood {
                return Ok(Outcome::fail(format!("{port:?}")));
            }
        }
        Ok(Outcome::check(
            ports.len() == plan.linked_apps().count(),
            format!("{} ports", ports.len()),
        ))
    };
    findings.add(
        "bridge-ports",
        "sidecar",
        ports().unwrap_or_else(Outcome::unknown),
    );

    let routes = || -> Result<Outcome, String> {
        let Answer::Routes(routes) = host.as_ref().map_err(Clone::clone)?.ask(&Ask::Routes)? else {
            return Err("the process inside answered something else".to_owned());
        };
        let uplink = &plan.uplink;
        // The kernel's own for the address and its /31 are of the same link.
        let families = plan.families();
        let pair = |route: &Route| {
            families.iter().any(|of| {
                (route.to == of.host || route.to == of.sidecar) && route.prefix >= of.bits() - 1
            })
        };
        let strange: Vec<String> = routes
            .iter()
            .filter(|route| {
                route.name == uplink.host_link.as_str() && !pair(route) && !is_multicast(route)
            })
            .map(|route| format!("{}/{} in table {}", route.to, route.prefix, route.table))
            .collect();
        Ok(Outcome::check(
            strange.is_empty(),
            if strange.is_empty() {
                "none but to the sidecar's end".to_owned()
            } else {
                strange.join(", ")
            },
        ))
    };
    findings.add(
        "in-host-route",
        "host",
        routes().unwrap_or_else(Outcome::unknown),
    );
}

/// An app's network, from within it.
pub fn app_network(
    app: &AppPlan,
    plan: &Plan,
    net: &Result<Agent, String>,
    findings: &mut Findings,
) {
    let name = app.name.as_str();
    let routes = || -> Result<Outcome, String> {
        let Answer::Routes(routes) = net.as_ref().map_err(Clone::clone)?.ask(&Ask::Routes)? else {
            return Err("the process inside answered something else".to_owned());
        };
        let linked = plan.linked(app).flat_map(AppPlan::known_at);
        let granted: BTreeSet<(IpAddr, u8)> = app
            .routes()
            .into_iter()
            .chain(linked.map(IpNet::from))
            .map(|net: IpNet| (net.network(), net.prefix_len()))
            .collect();
        let strange: Vec<String> = routes
            .iter()
            .filter(|route| {
                let host = route.prefix == if route.to.is_ipv6() { 128 } else { 32 };
                // IPv6 has a route to ::1 in the main table as well.
                let own = route.name == "lo" && (route.table == 255 || route.to.is_loopback())
                    || app.addresses().any(|own| route.to == own) && host;
                let families = plan.families();
                let sidecar = families.iter().any(|of| route.to == of.bridge) && host;
                let everywhere =
                    route.to.is_ipv6() && route.prefix == 0 && app.source == Source::Client;
                let by_plan = granted.contains(&(route.to, route.prefix)) && route.table != 255;
                // The kernel's own broadcast routes of the local table lead nowhere else.
                let kernels = route.table == 255 && route.kind == 3 || is_multicast(route);
                !(own || sidecar || everywhere || by_plan || kernels)
            })
            .map(|route| format!("{}/{} over {}", route.to, route.prefix, route.name))
            .collect();
        Ok(Outcome::check(
            strange.is_empty(),
            if strange.is_empty() {
                match granted.len() {
                    0 => format!("{} only", plan.bridge.address),
                    more => format!(
                        "{}, and by it the {more} that are planned",
                        plan.bridge.address
                    ),
                }
            } else {
                strange.join(", ")
            },
        ))
    };
    findings.add(
        "app-routes",
        name,
        routes().unwrap_or_else(Outcome::unknown),
    );
    let network = Network::App {
        ipv6: plan.has_ipv6() && !app.via_socket,
    };
    let own = app.address6.filter(|_| !app.via_socket);
    let own = own.into_iter().collect();
    findings.add("app-ipv6-off", name, ipv6_as_planned(net, network, own));
    findings.add("app-forwarding", name, sysctls(net, &namespaces::APP));
    let settings = namespaces::of_an_app(app.source == Source::Localhost);
    findings.add("app-sysctls", name, sysctls(net, &settings));
}

/// The kernel's own for a link's multicast (ff00::/8), in the local table, which leads to that link only.
fn is_multicast(route: &Route) -> bool {
    route.table == 255 && route.kind == 5 && route.to.is_multicast()
}

fn text(agent: &Result<Agent, String>, path: &str, look: impl FnOnce(&str) -> Outcome) -> Outcome {
    match texts(agent, vec![path.to_owned()]) {
        Ok(texts) => match texts.into_iter().flatten().next() {
            Some(text) => look(&text),
            None => Outcome::unknown(format!("{path} can't be read")),
        },
        Err(e) => Outcome::unknown(e),
    }
}

/// The contents of files, read where the agent is; what can't be read there is `None`.
pub(super) fn texts(
    agent: &Result<Agent, String>,
    paths: Vec<String>,
) -> Result<Vec<Option<String>>, String> {
    match agent
        .as_ref()
        .map_err(Clone::clone)?
        .ask(&Ask::Read(paths))?
    {
        Answer::Texts(texts) => Ok(texts),
        _ => Err("the process inside answered something else".to_owned()),
    }
}

/// Settings below /proc/sys/net, without IPv6's, which have a probe of their own.
fn sysctls(agent: &Result<Agent, String>, wanted: &[(&str, &str)]) -> Outcome {
    let without: Vec<(&str, &str)> = wanted
        .iter()
        .filter(|(name, _)| !name.starts_with("ipv6/"))
        .copied()
        .collect();
    settings(agent, &without)
}

/// Settings below /proc/sys/net.
fn settings(agent: &Result<Agent, String>, wanted: &[(&str, &str)]) -> Outcome {
    let paths = wanted
        .iter()
        .map(|(name, _)| format!("/proc/sys/net/{name}"))
        .collect();
    match texts(agent, paths) {
        Err(e) => Outcome::unknown(e),
        Ok(found) => {
            let wrong: Vec<String> = wanted
                .iter()
                .zip(found)
                .filter_map(|((name, value), found)| match found {
                    Some(found) if found.trim() == *value => None,
                    Some(found) => Some(format!("{name} is {}", found.trim())),
                    // A kernel without br_netfilter.
                    None if !name.starts_with("ipv4/") => None,
                    None => Some(format!("{name} can't be read")),
                })
                .collect();
            let number = wanted.len();
            Outcome::check(
                wrong.is_empty(),
                if wrong.is_empty() {
                    format!("{number} as set")
                } else {
                    wrong.join(", ")
                },
            )
        }
    }
}

/// IPv6 is off as a whole; or, where the stack has a prefix, has the planned addresses, `own`, and every setting as
/// planned.
fn ipv6_as_planned(
    agent: &Result<Agent, String>,
    network: Network,
    own: BTreeSet<Ipv6Addr>,
) -> Outcome {
    if own.is_empty() {
        return ipv6_off(agent);
    }
    let addresses = text(agent, "/proc/self/net/if_inet6", |table| {
        // Thirty-two digits without colons, and much else (net/ipv6/addrconf.c, if6_seq_show).
        let found: Option<BTreeSet<Ipv6Addr>> = table
            .lines()
            .map(|line| {
                let digits = line.split_whitespace().next()?;
                u128::from_str_radix(digits, 16).ok().map(Ipv6Addr::from)
            })
            .collect();
        let Some(mut found) = found else {
            return Outcome::unknown("the addresses can't be read");
        };
        found.remove(&Ipv6Addr::LOCALHOST);
        Outcome::check(found == own, format!("the addresses {found:?}"))
    });
    if addresses.verdict != Verdict::Pass {
        return addresses;
    }
    let wanted = namespaces::sysctls(network).filter(|(name, _)| name.starts_with("ipv6/"));
    let settings = settings(agent, &wanted.collect::<Vec<_>>());
    if settings.verdict == Verdict::Pass {
        addresses
    } else {
        settings
    }
}

fn ipv6_off(agent: &Result<Agent, String>) -> Outcome {
    let paths = [
        "/proc/sys/net/ipv6/conf/all/disable_ipv6",
        "/proc/self/net/if_inet6",
    ];
    match texts(agent, paths.map(str::to_owned).to_vec()).as_deref() {
        Err(e) => Outcome::unknown(e.clone()),
        Ok([None, None]) => Outcome::not_applicable("this kernel has no IPv6"),
        Ok([Some(off), addresses]) => {
            let addresses = addresses.as_deref().unwrap_or_default().lines().count();
            Outcome::check(
                off.trim() == "1" && addresses == 0,
                format!("disable_ipv6 is {}, {addresses} addresses", off.trim()),
            )
        }
        Ok(_) => Outcome::unknown("disable_ipv6 can't be read"),
    }
}

//! What the kernel tells, outside, of the real processes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::Outcome;
use super::target::{Findings, Target};
use crate::control::{LimitStatus, PartStatus};
use crate::part::volumes::sockets;
use crate::plan::limits::{Controller, HeldBy};
use crate::plan::{AppPlan, IdMap, Plan, PublishPlan};

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
        app_processes(target, app, &of(app.name.as_str()), findings);
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
    of_each_part(plan, &everybody, findings);
    listeners(target, findings);
}

/// What is asked of the processes of one app.
fn app_processes(target: &Target, app: &AppPlan, own: &[&Who<'_>], findings: &mut Findings) {
    let name = app.name.as_str();
    findings.add(
        "app-cap-sets",
        name,
        all(own, |who| sets(who, mask(app.ids.capabilities()))),
    );
    findings.add("app-seccomp", name, all(own, |who| seccomp(who)));
    for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let id = format!("app-ns-{kind}");
        findings.add(&id, name, all(own, |who| apart(who, kind)));
    }
    mounts(app, own, findings);
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

/// What is asked of every process, whichever part's it is.
fn of_each_part(plan: &Plan, everybody: &[Who<'_>], findings: &mut Findings) {
    findings.add(
        "parts-no-new-privs",
        "all",
        all(everybody, |who| {
            let flag = who.field("NoNewPrivs")?;
            Ok((flag == "1", format!("{} {}: {flag}", who.part, who.what)))
        }),
    );
    findings.add(
        "parts-uid",
        "all",
        all(everybody, |who| {
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
    findings.add("parts-share-nothing", "all", shared(everybody));
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
        all(everybody, |who| {
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

/// The inodes of the sockets that a process holds (proc_pid_fd(5)).
fn sockets_of(process: &str) -> Result<BTreeSet<String>, String> {
    let path = format!("/proc/{process}/fd");
    let all = std::fs::read_dir(&path).map_err(|e| format!("{path}: {e}"))?;
    let links = all.flatten();
    let links = links.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let inode = |link: PathBuf| {
        let link = link.to_str()?.strip_prefix("socket:[")?;
        Some(link.strip_suffix(']')?.to_owned())
    };
    Ok(links.filter_map(inode).collect())
}

/// Those of the sockets held that hear of clients: the file of /proc/PID/net that has each, and its address there.
fn open_sockets(relay: i32, held: &BTreeSet<String>) -> BTreeSet<(String, String)> {
    const LISTEN: &str = "0A";
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
    found
}

/// A published address as [`open_sockets`] has it: words of the machine's own order (net/ipv4/tcp_ipv4.c, tcp_ipv6.c).
fn as_printed(publish: &PublishPlan) -> (String, String) {
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
}

/// Where the relay listens, by the sockets that it holds.
fn listeners(target: &Target, findings: &mut Findings) {
    let Some(relay) = target.part("relay").and_then(|part| part.init) else {
        findings.add(
            "in-listeners",
            "relay",
            Outcome::not_applicable("nothing is published"),
        );
        return;
    };
    let look = || -> Result<Outcome, String> {
        let mut held = sockets_of(&relay.to_string())?;
        if target.status.gated {
            // The auditor of a gate has what was handed over at the start, too: of a service manager, with which clients wait
            // while nobody accepts.
            for early in sockets_of("self")? {
                held.remove(&early);
            }
        }
        let mut found = open_sockets(relay, &held);
        let wanted: BTreeSet<(String, String)> = target
            .status
            .plan
            .published()
            .map(|(_, publish)| as_printed(publish))
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

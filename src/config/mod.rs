//! What the user wrote: `lrpns.toml`, with its variables filled in and every value checked.
//!
//! Made by [`load`] (a file), [`builtin`] (the example) or `lrpns run` (flags); consumed by [`crate::plan::resolve::plan`].
#![forbid(unsafe_code)]

mod check;
pub mod clients;
mod errors;
mod foreign;
mod keys;
pub mod order;
mod reader;
mod run;
#[cfg(test)]
mod tests;
mod trust;
mod values;
mod vars;

use std::collections::BTreeMap;
use std::fs::FileType;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

pub(crate) use self::errors::nearest;
pub use self::errors::{ConfigErrors, Place, Problem};
pub use self::run::{RunOptions, run};
pub use self::trust::{OpenError, Trust, trust_everybody};
pub use self::values::ValueError;
pub use self::vars::{Vars, parse_set};
use crate::config::clients::Rate;
use crate::names::{PartName, StackName};

/// The commented file that `lrpns init` writes; [`builtin`] is the same configuration.
pub const EXAMPLE: &str = include_str!("example.toml");

/// What the uplinks' IPv6 addresses are taken from: a ULA (RFC 4193) whose global ID is `lrpns` in ASCII. It is never
/// routed off its machine, so it needn't be unique among machines; what it must not meet is a stack's own prefix.
pub const UPLINK_POOL6: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd6c, 0x7270, 0x6e73, 0, 0, 0, 0, 0), 48);

/// Where clouds tell an instance its credentials by IPv6: Amazon's EC2 and EKS Pod Identity, Google's, Oracle's and
/// Scaleway's. By IPv4 it is 169.254.0.0/16.
pub const METADATA6: [Ipv6Addr; 5] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
    Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),
];

/// What takes the place of the path in messages about the built-in example.
const BUILTIN_PATH: &str = "<built-in example>";

/// The largest file that is read, in bytes: far above any real one, far below what hurts.
const LARGEST: u64 = 1 << 20;
/// The same of rules, which a program may have written.
const LARGEST_RULES: u64 = 4 << 20;

/// Reads the file at `path`.
///
/// # Errors
/// [`ConfigErrors`] has everything that is wrong: with reading the file, with the file, with its variables.
pub fn load(path: &Path, vars: &Vars) -> Result<Config, ConfigErrors> {
    let Text { text, private } =
        read_text(path, LARGEST).map_err(|problem| ConfigErrors::new(vec![*problem]))?;
    parse(path, &text, vars).map_err(|errors| match private {
        true => errors.without_lines_of(path),
        false => errors,
    })
}

/// Reads `text`, which messages call `source_name`. Relative paths in it are taken from that file's directory.
///
/// # Errors
/// [`ConfigErrors`] has everything that is wrong with the text and its variables.
pub fn parse(source_name: &Path, text: &str, vars: &Vars) -> Result<Config, ConfigErrors> {
    let source = errors::Source::new(source_name, text);
    reader::read(source, vars, reader::Kind::File)
}

/// Where the built-in example is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demo {
    /// On 127.0.0.1: nobody has asked for more, and a port that the network reaches is never opened unasked.
    Loopback,
    /// On 0.0.0.0, as the example says and its original did.
    Everywhere,
}

/// The built-in example. Here the environment's plain `PROVIDER` counts too, after every other source.
///
/// # Errors
/// [`ConfigErrors`] has everything that is wrong with the variables.
pub fn builtin(vars: &Vars, demo: Demo) -> Result<Config, ConfigErrors> {
    let source = errors::Source::new(Path::new(BUILTIN_PATH), EXAMPLE);
    let mut config = reader::read(source, vars, reader::Kind::Builtin)?;
    if demo == Demo::Loopback {
        for publish in config.apps.iter_mut().flat_map(|app| &mut app.publish) {
            publish.address = Ipv4Addr::LOCALHOST.into();
        }
        let how = "the built-in example on loopback, --demo publishes it on 0.0.0.0".to_owned();
        config
            .origins
            .insert("app.publish".to_owned(), Origin::Chosen { how });
    }
    Ok(config)
}

/// What is in a file.
#[derive(Debug)]
struct Text {
    text: String,
    /// Errors must not quote it: [`trust::Opened`].
    private: bool,
}

/// Reads a whole file of text, of at most so many bytes, if its word is taken ([`trust`]).
fn read_text(path: &Path, most: u64) -> Result<Text, Box<Problem>> {
    let problem = |message: String| {
        Box::new(Problem {
            place: Place::File {
                path: path.to_owned(),
            },
            message,
            label: String::new(),
            expected: "a readable file of text".to_owned(),
            example: "`lrpns init` writes an lrpns.toml".to_owned(),
        })
    };
    let unreadable = |error: io::Error| problem(format!("read the file: {error}"));
    let opened = trust::Trust::of_this_process().open(path);
    let opened = opened.map_err(|error| match error.remedy() {
        Some((expected, example)) => Box::new(Problem {
            expected,
            example,
            ..*problem(error.to_string())
        }),
        None => problem(format!("read the file: {error}")),
    })?;
    let mut bytes = Vec::new();
    let mut file = opened.file.take(most + 1);
    file.read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > most {
        return Err(problem(format!("the file has more than {most} bytes")));
    }
    let private = opened.private;
    let text = String::from_utf8(bytes).map_err(|error| {
        let start = error.utf8_error().valid_up_to();
        // What comes before the first bad byte is the same in the repaired text.
        let text = String::from_utf8_lossy(error.as_bytes());
        let source = errors::Source::new(path, &text);
        let problem = Problem {
            place: source.place(start..start + 3),
            message: "the file is not UTF-8".to_owned(),
            label: String::new(),
            expected: "text in UTF-8".to_owned(),
            example: "iconv -f latin1 -t utf-8".to_owned(),
        };
        Box::new(match private {
            true => problem.without_line(),
            false => problem,
        })
    })?;
    Ok(Text { text, private })
}

/// Opens a file that somebody has named, if it is one and no pipe, for whose writer `open(2)` waits, and no device, where
/// opening may do something.
///
/// # Errors
/// What it is instead, or what the kernel says.
pub fn open_regular(path: &Path) -> io::Result<std::fs::File> {
    let check = |kind: FileType| {
        let what = match () {
            () if kind.is_file() => return Ok(()),
            () if kind.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            () if kind.is_fifo() => "a pipe",
            () if kind.is_socket() => "a socket",
            () => "a device",
        };
        Err(io::Error::other(format!("it is {what}, no file")))
    };
    check(std::fs::metadata(path)?.file_type())?;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    // It may be another by now.
    check(file.metadata()?.file_type())?;
    Ok(file)
}

/// Reads a seccomp profile in Docker's format.
fn read_seccomp(path: &Path) -> Result<crate::confine::seccomp::Profile, Box<Problem>> {
    use crate::confine::seccomp::docker::{self, Kernel};
    use crate::confine::seccomp::floored;
    let problem = |place, message| {
        Problem {
        place,
        message,
        label: String::new(),
        expected: "a seccomp profile in Docker's, Podman's or the OCI's JSON format, under which a program can be executed"
            .to_owned(),
        example: r#"{ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [ { "names": ["execve", "read"], "action": "SCMP_ACT_ALLOW" } ] }"#.to_owned(),
    }
    };
    let read = read_text(path, LARGEST).map_err(|error| match error.is_of_trust() {
        true => error,
        false => Box::new(problem(error.place, error.message)),
    });
    let Text { text, private } = read?;
    let hidden = |problem: Problem| match private {
        true => problem.without_line(),
        false => problem,
    };
    let name = path.to_string_lossy();
    let parsed = docker::parse(&name, &text, Kernel::running());
    let profile = parsed.map(floored).map_err(|error| {
        let source = errors::Source::new(path, &text);
        let start: usize = text
            .split_inclusive('\n')
            .take(error.line - 1)
            .map(str::len)
            .sum();
        // The reader has read up to and with this byte.
        let at = start + error.column - 1;
        hidden(problem(source.place(at..at + 1), error.message))
    })?;
    let profile = profile.guarded();
    let whole = || Place::File {
        path: path.to_owned(),
    };
    if !profile.may_allow("execve") {
        return Err(Box::new(problem(
            whole(),
            "no program can be executed under this profile: `execve` is not allowed".to_owned(),
        )));
    }
    profile
        .compile()
        .map_err(|error| problem(whole(), error.to_string()))?;
    Ok(profile)
}

/// Where a value came from, shown by `lrpns plan`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "from")]
pub enum Origin {
    /// Nobody said anything: the default.
    Default,
    /// The built-in example.
    Builtin,
    /// A line of a file.
    File {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
    },
    /// A variable of the environment, such as `LRPNS_PROVIDER`.
    Environment {
        /// Its name, with `LRPNS_` if it has it.
        name: String,
    },
    /// A flag of the command line, such as `--set` or `--publish`.
    Flag {
        /// The flag's name with its dashes.
        name: String,
    },
    /// Chosen by lrpns because the file left it open.
    Chosen {
        /// How it was chosen, a few words.
        how: String,
    },
}

/// One stack as it was written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file, `None` for the built-in example and `lrpns run`.
    pub path: Option<PathBuf>,
    /// `name`.
    pub name: StackName,
    /// `[network]`.
    pub network: Network,
    /// `[sidecar]`.
    pub sidecar: Sidecar,
    /// `[log]`.
    pub record: Record,
    /// `[app]` (named `app`) or every `[app.NAME]`, in the file's order; never empty.
    pub apps: Vec<App>,
    /// Key path (`app.address`, `network.subnet`) to where the value came from; keys that kept their default are absent.
    pub origins: BTreeMap<String, Origin>,
}

/// `[log]`: where the log goes beside memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// `to`.
    pub to: RecordTo,
    /// `dir`; each stack has a directory of its name there.
    pub dir: Option<PathBuf>,
    /// `size`, in bytes, of one stack's files together.
    pub size: u64,
    /// `age`, of a line.
    pub age: Duration,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            to: RecordTo::default(),
            dir: None,
            size: 8 << 20,
            age: Duration::from_hours(7 * 24),
        }
    }
}

/// `log.to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecordTo {
    /// To the journal where systemd runs, else to files where they can be written.
    #[default]
    Auto,
    /// To files.
    File,
    /// To the journal.
    Journal,
    /// To both.
    Both,
    /// Nowhere: it is in memory only.
    Off,
}

/// `[network]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Network {
    /// `subnet`, between /8 and /30; `None` lets lrpns choose a /29 (or wider, if there are many apps).
    pub subnet: Option<Ipv4Net>,
    /// `ipv6`, between /8 and /126; `None` is `off`.
    pub ipv6: Option<Ipv6Net>,
}

/// `[sidecar]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sidecar {
    /// `address`; `None` for the subnet's first host address.
    pub address: Option<Ipv4Addr>,
    /// `log`.
    pub log: TrafficLog,
    /// `seal`.
    pub seal: bool,
    /// `rules`.
    pub rules: Option<RulesFile>,
}

/// The file of `sidecar.rules`, and the variables that it may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RulesFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it says.
    pub text: String,
    /// Errors must not quote it: the user that sudo names could not have read it.
    pub private: bool,
    /// `[vars]`, with the values that count.
    pub vars: BTreeMap<String, String>,
}

/// `log`: what the sidecar says of the traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrafficLog {
    /// Nothing.
    Off,
    /// Each connection at its start and its end, and each packet that was refused.
    #[default]
    Connections,
    /// That, and each packet that was let through.
    Packets,
}

/// `[app]` or `[app.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct App {
    /// `app`, or NAME of `[app.NAME]`.
    pub name: PartName,
    /// `address`; `None` for the next free one of the subnet.
    pub address: Option<Ipv4Addr>,
    /// `rootfs`.
    pub rootfs: Rootfs,
    /// `command`, the program first; never empty.
    pub command: Vec<String>,
    /// `user`: what it runs as, within; `None` is [`crate::plan::APP_ID`].
    pub user: Option<Account>,
    /// `group`; `None` is the user's own.
    pub group: Option<Account>,
    /// `ids`: how many ids it has within.
    pub ids: IdCount,
    /// `workdir`: where its command starts; absolute, without `..`.
    pub workdir: PathBuf,
    /// `env`; the app's whole environment but for PATH, HOME and HOSTNAME, which lrpns sets when they are absent.
    pub env: BTreeMap<String, String>,
    /// `publish`.
    pub publish: Vec<Publish>,
    /// `wait`: whether `up` waits for the app to listen on its published ports, each by itself; not on those of a range.
    pub wait: bool,
    /// `start_timeout`: how long.
    pub start_timeout: Duration,
    /// `listen`: TCP ports that the app may use within itself, beside the published ones.
    pub listen: Vec<u16>,
    /// `via`.
    pub via: Via,
    /// `source`.
    pub source: Source,
    /// `egress`.
    pub egress: Vec<Egress>,
    /// `connect`: what it may reach of other apps; each is an app of the same file.
    pub connect: Vec<Connect>,
    /// `allow`; never empty, [everybody](crate::config::clients::everybody) when it was left out.
    pub allow: Vec<IpNet>,
    /// `rate`; `None` is `off`.
    pub rate: Option<Rate>,
    /// `tmpfs`.
    pub tmpfs: Vec<Tmpfs>,
    /// `volumes`; none is where another one or a tmpfs is, but one may be in another.
    pub volumes: Vec<Volume>,
    /// `sockets`: Unix sockets of the host's, or directories of them, that it may connect to.
    pub sockets: Vec<UnixGrant>,
    /// `secrets`: files that only it reads.
    pub secrets: Vec<Secret>,
    /// `after`: what comes up before it; each is another app of the same file, and there is no circle.
    pub after: Vec<After>,
    /// `job`: it runs to its end, which must be 0.
    pub job: bool,
    /// `forks`: its command goes to the background by itself; the app is what it leaves running.
    pub forks: bool,
    /// `health`.
    pub health: Option<Health>,
    /// `restart`.
    pub restart: Restart,
    /// How often it is started again at most; `None` is no limit.
    pub restart_limit: Option<RestartLimit>,
    /// `stop_signal` and `stop_timeout`.
    pub stop: Stop,
    /// `replace`; left out, it depends on what the app is.
    pub replace: Option<Replace>,
    /// `limits`; what is absent is left to the default.
    pub limits: Limits,
    /// `seccomp`, read if it is a file.
    pub seccomp: crate::confine::seccomp::Profile,
}

/// `ids`: how many ids an app has within.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IdCount {
    /// The one that it runs as.
    #[default]
    One,
    /// A whole range, and it begins as root over that: for servers that change to a user of their own.
    Range,
}

/// `user` and `group`: of the app's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Account {
    /// A number.
    Id(u32),
    /// A name of its /etc/passwd or /etc/group.
    Name(String),
}

/// `rootfs`: where the app's root comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", content = "path")]
pub enum Rootfs {
    /// `builtin:webapp`: an empty root with `/webapp`, the server that is compiled in.
    BuiltinWebapp,
    /// `host`: the host's /usr, /bin and /lib*, read-only, and a minimal /etc.
    Host,
    /// `dir:PATH`: a directory; the path is absolute here (a relative one is taken from the file's directory).
    Dir(PathBuf),
}

/// A transport protocol of published ports.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// As the configuration, nft and /etc/protocols call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// One entry of `publish`: `[ADDRESS:]HOST_PORT:APP_PORT[/tcp]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Publish {
    /// The host's address to listen on; 0.0.0.0 for all of IPv4 and `::` for all of IPv6, 127.0.0.1 when it was left out.
    pub address: IpAddr,
    /// The host's port, the first one of a range.
    pub host_port: u16,
    /// The app's port, the first one of a range.
    pub app_port: u16,
    /// How many ports in a row, at least one.
    pub count: u16,
    /// Of which protocol.
    pub protocol: Protocol,
}

impl Publish {
    /// Each port by itself: the host's, and the app's.
    pub fn ports(self) -> impl Iterator<Item = (u16, u16)> {
        (0..self.count).map(move |index| (self.host_port + index, self.app_port + index))
    }
}

/// `via`: how a published port reaches the sidecar, and the app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Via {
    /// `dnat` where the host forwards already and nothing drops it, else `relay`.
    #[default]
    Auto,
    /// nftables DNAT in the host's namespace (loopback is relayed all the same).
    Dnat,
    /// An unprivileged process that carries the bytes.
    Relay,
    /// To the sidecar as `auto`, and there to a listening socket that the app is handed; it has no network.
    Socket,
}

impl Via {
    /// Whom the app sees when nothing is said: one that is handed its sockets can see nobody else.
    pub(super) fn source(self) -> Source {
        match self {
            Self::Socket => Source::Client,
            _ => Source::Sidecar,
        }
    }
}

/// One entry of `egress`: `PROTOCOL ADDRESS[/LENGTH]:PORT[-PORT]`, where an app may connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Egress {
    /// By which protocol.
    pub protocol: Protocol,
    /// One address, or all of a network; without host bits.
    pub to: IpNet,
    /// The first port.
    pub first_port: u16,
    /// The last one.
    pub last_port: u16,
}

impl Egress {
    /// Whether it is for one address.
    #[must_use]
    pub fn is_single(&self) -> bool {
        self.to.prefix_len() == self.to.max_prefix_len()
    }

    /// Whether it covers a connection. Where clouds tell credentials (169.254.0.0/16 and [`METADATA6`]) must have been
    /// listed by itself; IPv6's link-local and multicast addresses are covered by nothing.
    #[must_use]
    pub fn covers(&self, protocol: Protocol, address: IpAddr, port: u16) -> bool {
        let reaches = match address {
            IpAddr::V4(address) => !address.is_link_local() || self.is_single(),
            IpAddr::V6(address) => {
                let never = address.is_unicast_link_local() || address.is_multicast();
                !never && (!METADATA6.contains(&address) || self.is_single())
            }
        };
        self.protocol == protocol
            && self.to.contains(&address)
            && (self.first_port..=self.last_port).contains(&port)
            && reaches
    }
}

impl std::fmt::Display for Egress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ", self.protocol)?;
        match (self.is_single(), self.to) {
            (true, IpNet::V4(_)) => write!(f, "{}:", self.to.addr())?,
            (true, IpNet::V6(_)) => write!(f, "[{}]:", self.to.addr())?,
            (false, IpNet::V4(_)) => write!(f, "{}:", self.to)?,
            (false, IpNet::V6(_)) => write!(f, "[{}]:", self.to)?,
        }
        if self.first_port == self.last_port {
            write!(f, "{}", self.first_port)
        } else {
            write!(f, "{}-{}", self.first_port, self.last_port)
        }
    }
}

/// One entry of `connect`: `APP:PORT[-PORT][/tcp|/udp]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Connect {
    /// The other app; in [`crate::plan::AppPlan::serves`] the one that connects.
    pub app: PartName,
    /// By which protocol.
    pub protocol: Protocol,
    /// The first port.
    pub first_port: u16,
    /// The last one.
    pub last_port: u16,
}

impl std::fmt::Display for Connect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.app, self.first_port)?;
        if self.last_port > self.first_port {
            write!(f, "-{}", self.last_port)?;
        }
        match self.protocol {
            Protocol::Tcp => Ok(()),
            Protocol::Udp => f.write_str("/udp"),
        }
    }
}

/// One entry of `after`: an app that comes up before another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct After {
    /// Which app.
    pub app: PartName,
    /// How far it has to be.
    pub until: Until,
}

impl std::fmt::Display for After {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.until {
            Until::Started => write!(f, "{}", self.app),
            Until::Healthy => write!(f, "{} (healthy)", self.app),
            Until::Done => write!(f, "{} (done)", self.app),
        }
    }
}

/// How far an app has to be until those that come after it are started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Until {
    /// Its command runs, and it listens on its published ports and on those that others may connect to.
    Started,
    /// Its health check has passed.
    Healthy,
    /// A job: it has ended with 0.
    Done,
}

/// `source`: whose address the app sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The sidecar's, for every client.
    #[default]
    Sidecar,
    /// The client's own.
    Client,
    /// Its own loopback's, where it is reached as well.
    Localhost,
}

/// Where POSIX shared memory is (shm_overview(7)): every app has a tmpfs there, unless `tmpfs` gives it another size.
pub const SHARED_MEMORY: &str = "/dev/shm";

/// One entry of `tmpfs`: `PATH:SIZE`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tmpfs {
    /// Absolute, without `..`.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
}

/// One entry of `volumes`: `HOST_PATH:PATH[:OPTIONS]`, a directory or a single file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The host's path, absolute, without `..`.
    pub host: PathBuf,
    /// The app's path, absolute, without `..`.
    pub path: PathBuf,
    /// `rw`; without it, it is read-only.
    pub writable: bool,
    /// `exec`: programs of it may be executed.
    pub exec: bool,
    /// `owner`: whom of the app's ids its owner on the disk is within, where it isn't the one that the app runs as; uid and gid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<(u32, u32)>,
    /// `owners`: each of its files belongs within to the id that it has on the disk.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub owners: bool,
    /// `owner` as it was written; none in a plan.
    #[serde(skip)]
    pub owner_name: Option<Account>,
}

/// One entry of `sockets`: `HOST_PATH:PATH`, a Unix socket or a directory in which there are some.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixGrant {
    /// The host's path, absolute, without `..`.
    pub host: PathBuf,
    /// The app's path, absolute, without `..`.
    pub path: PathBuf,
}

impl UnixGrant {
    /// Whether one of these volumes brings it in already: then it is no mount of its own.
    #[must_use]
    pub fn is_in(&self, volumes: &[Volume]) -> bool {
        volumes.iter().any(|volume| {
            let within = self.path.strip_prefix(&volume.path);
            within.is_ok_and(|within| self.host == joined(&volume.host, within))
        })
    }

    /// As a volume: read-only, which keeps nobody from connecting.
    #[must_use]
    pub fn volume(&self) -> Volume {
        Volume {
            host: self.host.clone(),
            path: self.path.clone(),
            writable: false,
            exec: false,
            owner: None,
            owners: false,
            owner_name: None,
        }
    }
}

/// `path` and what is within it, without a slash at the end where that is nothing.
#[must_use]
pub fn joined(path: &std::path::Path, within: &std::path::Path) -> PathBuf {
    if within.as_os_str().is_empty() {
        path.to_owned()
    } else {
        path.join(within)
    }
}

/// Where an app's secrets are.
pub const SECRETS: &str = "/run/secrets";

/// One entry of `secrets`: `NAME=HOST_PATH`, `NAME=credential:CREDENTIAL` or `NAME`, which is the credential of that name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// The name of the file in [`SECRETS`].
    pub name: String,
    /// Where it comes from, whenever the app is started.
    pub from: SecretFrom,
}

impl Secret {
    /// Whether a name is harmless in a path, in a message and in a shell.
    #[must_use]
    pub fn may_be_called(name: &str) -> bool {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        !name.is_empty() && !name.starts_with(['.', '-']) && name.bytes().all(fits)
    }
}

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecretFrom {
    /// A file of the host's; the path is absolute here.
    File(PathBuf),
    /// A file of `$CREDENTIALS_DIRECTORY` (systemd.exec(5)).
    Credential(String),
}

/// `limits`, of one part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory, with what the kernel holds for the part (page cache, sockets); there is no swap on top.
    pub memory: Option<u64>,
    /// Processes and threads at a time, lrpns' own first process included.
    pub pids: Option<u32>,
    /// Processors at a time.
    pub cpu: Option<Processors>,
}

/// A number of processors, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "f64", try_from = "f64")]
pub struct Processors(u32);

impl Processors {
    /// Exactly one.
    pub const ONE: Self = Self(1000);

    /// `count` processors; `None` when it is less than a hundredth, or more than a machine can have.
    #[must_use]
    pub fn new(count: f64) -> Option<Self> {
        // The kernel's shortest quota is 1 ms of the usual 100 (kernel/sched/core.c, min_cfs_quota_period).
        ((0.01..=100_000.0).contains(&count)).then(|| Self((count * 1000.0).round() as u32))
    }

    /// In thousandths of one.
    #[must_use]
    pub fn thousandths(self) -> u32 {
        self.0
    }
}

impl From<Processors> for f64 {
    fn from(processors: Processors) -> f64 {
        f64::from(processors.0) / 1000.0
    }
}

impl TryFrom<f64> for Processors {
    type Error = String;
    fn try_from(count: f64) -> Result<Self, String> {
        Self::new(count).ok_or_else(|| format!("{count} is no number of processors"))
    }
}

/// `restart`: what happens when the app ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// The stack ends with it.
    No,
    /// It is started again unless it ended with status 0.
    #[default]
    OnFailure,
    /// It is started again.
    Always,
}

/// `health`: how it is found out whether an app is well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// What is done.
    pub check: Check,
    /// How long it is from the end of one check to the next; times are milliseconds in JSON.
    #[serde(with = "milliseconds")]
    pub interval: Duration,
    /// How long a check may take.
    #[serde(with = "milliseconds")]
    pub timeout: Duration,
    /// How many in a row have to fail for the app to be unhealthy.
    pub retries: u32,
    /// How long after its start, as long as none has passed, those that fail do not count.
    #[serde(with = "milliseconds")]
    pub start_period: Duration,
    /// What is done with an app that is unhealthy, beside taking its ports away.
    pub on_unhealthy: OnUnhealthy,
}

/// What a health check does, within the app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Check {
    /// Asks for a path by HTTP; a status from 200 to 399 is well.
    Http {
        /// Of the app's.
        port: u16,
        /// With its first slash.
        path: String,
    },
    /// Connects.
    Tcp {
        /// Of the app's.
        port: u16,
    },
    /// Runs a program, which has to end with 0.
    Command {
        /// The program first; never empty.
        command: Vec<String>,
    },
}

impl Check {
    /// The port that it connects to.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Http { port, .. } | Self::Tcp { port } => Some(*port),
            Self::Command { .. } => None,
        }
    }
}

impl std::fmt::Display for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Http { port, path } => write!(f, "GET {path} at port {port}"),
            Self::Tcp { port } => write!(f, "a connection to port {port}"),
            Self::Command { command } => write!(f, "`{}`", command.join(" ")),
        }
    }
}

/// `on_unhealthy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnUnhealthy {
    /// Nothing: it may come to be healthy again.
    #[default]
    Nothing,
    /// It is started again.
    Restart,
}

/// `max` and `window` of `restart`: how often an app that ends again and again is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartLimit {
    /// This often…
    pub max: u32,
    /// …in this time, in milliseconds in JSON; `None` is in a row, without running steadily in between.
    #[serde(with = "optional_milliseconds")]
    pub window: Option<Duration>,
}

impl std::fmt::Display for RestartLimit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.window {
            Some(window) => write!(f, "{} in {}", self.max, crate::text::duration(window)),
            None => write!(f, "{} in a row", self.max),
        }
    }
}

/// `stop_signal`: what asks an app to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct StopSignal(Signal);

impl StopSignal {
    /// Every signal that can be one: SIGSTOP and SIGCONT end nothing.
    pub fn all() -> impl Iterator<Item = Signal> {
        Signal::iterator().filter(|signal| !matches!(signal, Signal::SIGSTOP | Signal::SIGCONT))
    }

    /// By its name, with `SIG` or without.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let is = |signal: &Signal| signal.as_str() == name || &signal.as_str()[3..] == name;
        Self::all().find(is).map(Self)
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> i32 {
        self.0 as i32
    }
}

impl std::fmt::Display for StopSignal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl From<StopSignal> for String {
    fn from(signal: StopSignal) -> Self {
        signal.to_string()
    }
}

impl TryFrom<String> for StopSignal {
    type Error = String;
    fn try_from(name: String) -> Result<Self, String> {
        Self::named(&name).ok_or_else(|| format!("`{name}` is no signal that ends a program"))
    }
}

/// How an app is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// `stop_signal`.
    pub signal: StopSignal,
    /// `stop_timeout`, in milliseconds in JSON: how long its command has to end, and then what the command has left
    /// running.
    #[serde(with = "milliseconds")]
    pub timeout: Duration,
}

impl Default for Stop {
    fn default() -> Self {
        Self {
            signal: StopSignal(Signal::SIGTERM),
            timeout: Duration::from_secs(10),
        }
    }
}

/// `replace`: what happens to an app in whose place another is to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Replace {
    /// The new one starts beside it, and takes its connections when it is well.
    Rolling,
    /// It has ended before the new one starts: the two can't be at the same time.
    StopFirst,
}

/// As [`milliseconds`], or `null`.
pub(crate) mod optional_milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(time: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        let time = time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        time.serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(from)?.map(Duration::from_millis))
    }
}

/// A [`Duration`] as a number of milliseconds.
pub(crate) mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

//! Docker's JSON format for seccomp profiles, read as Docker means it.
//!
//! `defaultAction`, `defaultErrnoRet`, and `syscalls`: entries of `names`, an `action`, `args` that must hold, and
//! conditions on the machine (`includes`, `excludes`). No capability counts as held, whatever the container of Docker's
//! would have had. Names that this machine doesn't have are left out and listed in [`Profile::unknown`], as Docker
//! leaves them out. `architectures` and `archMap` are checked for their form only: calls of another architecture than
//! our own are never made.
//!
//! Several entries for one call are alternatives, the first that applies decides; one without `args` applies when none
//! with `args` does. Where one entry has two `args` of the same index, each of them is an alternative by itself, as
//! runc has it (`libcontainer/seccomp`).
//!
//! Podman's file (containers-common, `pkg/seccomp`) has error numbers by name as well, `defaultErrno` and `errno`, which go
//! before the numbers. A runtime's (the OCI's `config-linux.md`, seccomp) has `flags`: none of them lets a program do
//! more, so they are checked for their names, and a listener, which would, is refused.

use std::collections::BTreeSet;

use serde::de::{Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer};

use super::{Action, Comparison, Profile, Rule, Test, number};

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct DockerError {
    /// The line, from 1.
    pub line: usize,
    /// The byte of the line, from 1.
    pub column: usize,
    /// What is wrong, in one line.
    pub message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    default_action: Verdict,
    default_errno_ret: Option<ErrorNumber>,
    default_errno: Option<ErrorName>,
    #[serde(rename = "flags")]
    _flags: Option<Vec<Flag>>,
    #[serde(rename = "architectures")]
    _architectures: Option<Vec<String>>,
    #[serde(rename = "archMap")]
    _arch_map: Option<Vec<ArchMap>>,
    syscalls: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ArchMap {
    #[serde(rename = "architecture")]
    _architecture: String,
    #[serde(rename = "subArchitectures")]
    _sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    name: Option<String>,
    names: Option<Vec<String>>,
    action: Verdict,
    errno_ret: Option<ErrorNumber>,
    errno: Option<ErrorName>,
    args: Option<Vec<Arg>>,
    #[serde(rename = "comment")]
    _comment: Option<IgnoredAny>,
    #[serde(default)]
    includes: Filter,
    #[serde(default)]
    excludes: Filter,
}

#[derive(Deserialize)]
enum Verdict {
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    #[serde(rename = "SCMP_ACT_KILL", alias = "SCMP_ACT_KILL_THREAD")]
    KillThread,
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
}

/// What `seccomp(2)` may be given for a filter. What they ask for is so (TSYNC: there is one thread), or is less
/// than what a profile has without them (SPEC_ALLOW), or makes no difference to the program (LOG).
#[derive(Deserialize)]
enum Flag {
    #[serde(rename = "SECCOMP_FILTER_FLAG_TSYNC")]
    Tsync,
    #[serde(rename = "SECCOMP_FILTER_FLAG_LOG")]
    Log,
    #[serde(rename = "SECCOMP_FILTER_FLAG_SPEC_ALLOW")]
    SpecAllow,
    #[serde(rename = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV")]
    WaitKillableRecv,
}

impl Verdict {
    fn action(&self, name: Option<&ErrorName>, number: Option<&ErrorNumber>) -> Action {
        let number = name.map(|name| name.0).or(number.map(|number| number.0));
        match self {
            Verdict::Allow => Action::Allow,
            Verdict::Errno => Action::Errno(number.unwrap_or(libc::EPERM as u16)),
            Verdict::KillThread => Action::KillThread,
            Verdict::KillProcess => Action::KillProcess,
            Verdict::Trap => Action::Trap,
            Verdict::Log => Action::Log,
        }
    }
}

/// An error number that a system call can return.
struct ErrorNumber(u16);

impl<'de> Deserialize<'de> for ErrorNumber {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let number = u64::deserialize(from)?;
        match u16::try_from(number) {
            // MAX_ERRNO of linux/err.h.
            Ok(number @ 0..=4095) => Ok(Self(number)),
            _ => Err(D::Error::custom(format!(
                "{number} is no error number, which is at most 4095"
            ))),
        }
    }
}

/// One by its name, such as `ENOSYS`.
struct ErrorName(u16);

impl<'de> Deserialize<'de> for ErrorName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = String::deserialize(from)?;
        let number = ERRNOS.iter().find(|(other, _)| *other == name);
        number
            .map(|(_, number)| Self(*number))
            .ok_or_else(|| D::Error::custom(format!("`{name}` is no error's name, such as ENOSYS")))
    }
}

macro_rules! errnos {
    ($($name:ident)*) => { &[$((stringify!($name), libc::$name as u16)),*] };
}

/// Every name of errno(3).
const ERRNOS: &[(&str, u16)] = errnos![
    EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN EWOULDBLOCK ENOMEM EACCES EFAULT ENOTBLK
    EBUSY EEXIST EXDEV ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG ENOSPC ESPIPE EROFS EMLINK
    EPIPE EDOM ERANGE EDEADLK EDEADLOCK ENAMETOOLONG ENOLCK ENOSYS ENOTEMPTY ELOOP ENOMSG EIDRM ECHRNG EL2NSYNC
    EL3HLT EL3RST ELNRNG EUNATCH ENOCSI EL2HLT EBADE EBADR EXFULL ENOANO EBADRQC EBADSLT EBFONT ENOSTR ENODATA
    ETIME ENOSR ENONET ENOPKG EREMOTE ENOLINK EADV ESRMNT ECOMM EPROTO EMULTIHOP EDOTDOT EBADMSG EOVERFLOW ENOTUNIQ
    EBADFD EREMCHG ELIBACC ELIBBAD ELIBSCN ELIBMAX ELIBEXEC EILSEQ ERESTART ESTRPIPE EUSERS ENOTSOCK EDESTADDRREQ
    EMSGSIZE EPROTOTYPE ENOPROTOOPT EPROTONOSUPPORT ESOCKTNOSUPPORT EOPNOTSUPP ENOTSUP EPFNOSUPPORT EAFNOSUPPORT
    EADDRINUSE EADDRNOTAVAIL ENETDOWN ENETUNREACH ENETRESET ECONNABORTED ECONNRESET ENOBUFS EISCONN ENOTCONN
    ESHUTDOWN ETOOMANYREFS ETIMEDOUT ECONNREFUSED EHOSTDOWN EHOSTUNREACH EALREADY EINPROGRESS ESTALE EUCLEAN
    ENOTNAM ENAVAIL EISNAM EREMOTEIO EDQUOT ENOMEDIUM EMEDIUMTYPE ECANCELED ENOKEY EKEYEXPIRED EKEYREVOKED
    EKEYREJECTED EOWNERDEAD ENOTRECOVERABLE ERFKILL EHWPOISON
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Arg {
    index: Index,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: Operator,
}

struct Index(u8);

impl<'de> Deserialize<'de> for Index {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match u64::deserialize(from)? {
            index @ 0..=5 => Ok(Self(index as u8)),
            index => Err(D::Error::custom(format!(
                "{index} is no argument's index, which is from 0 to 5"
            ))),
        }
    }
}

#[derive(Deserialize)]
enum Operator {
    #[serde(rename = "SCMP_CMP_NE")]
    Ne,
    #[serde(rename = "SCMP_CMP_LT")]
    Lt,
    #[serde(rename = "SCMP_CMP_LE")]
    Le,
    #[serde(rename = "SCMP_CMP_EQ")]
    Eq,
    #[serde(rename = "SCMP_CMP_GE")]
    Ge,
    #[serde(rename = "SCMP_CMP_GT")]
    Gt,
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEq,
}

impl Arg {
    fn test(&self) -> Test {
        let plain = |is| Test {
            arg: self.index.0,
            mask: u64::MAX,
            is,
            value: self.value,
        };
        match self.op {
            Operator::Ne => plain(Comparison::Ne),
            Operator::Lt => plain(Comparison::Lt),
            Operator::Le => plain(Comparison::Le),
            Operator::Eq => plain(Comparison::Eq),
            Operator::Ge => plain(Comparison::Ge),
            Operator::Gt => plain(Comparison::Gt),
            Operator::MaskedEq => Test {
                mask: self.value,
                value: self.value_two,
                ..plain(Comparison::Eq)
            },
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Filter {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<Kernel>,
}

/// The first two numbers of a kernel's release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kernel(u32, u32);

impl Kernel {
    /// The one that runs.
    #[must_use]
    pub fn running() -> Self {
        let release = rustix::system::uname();
        let release = release.release().to_string_lossy();
        // A release that is no number would be a kernel of the far future.
        Self::parse(&release).unwrap_or(Self(u32::MAX, 0))
    }

    fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        let (major, minor) = (numbers.next()?, numbers.next()?);
        Some(Self(major.parse().ok()?, minor.parse().ok()?))
    }
}

impl<'de> Deserialize<'de> for Kernel {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Self::parse(&text)
            .ok_or_else(|| D::Error::custom(format!("`{text}` is no kernel version, such as 4.8")))
    }
}

/// Go's name of this architecture.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: &str = "amd64";
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: &str = "arm64";

impl Entry {
    /// Whether it is meant for this machine, and for a container without capabilities.
    fn applies(&self, kernel: Kernel) -> bool {
        let ours = |arches: &Vec<String>| arches.iter().any(|arch| arch == ARCHITECTURE);
        let (includes, excludes) = (&self.includes, &self.excludes);
        includes.caps.as_ref().is_none_or(Vec::is_empty)
            && includes
                .arches
                .as_ref()
                .is_none_or(|a| a.is_empty() || ours(a))
            && includes.min_kernel.is_none_or(|least| kernel >= least)
            && !excludes.arches.as_ref().is_some_and(ours)
            && excludes.min_kernel.is_none_or(|least| kernel < least)
    }

    /// Its conditions: one list per alternative.
    fn alternatives(&self) -> Vec<Vec<Test>> {
        let tests: Vec<Test> = self.args.iter().flatten().map(Arg::test).collect();
        let indices: BTreeSet<u8> = tests.iter().map(|test| test.arg).collect();
        if indices.len() == tests.len() {
            vec![tests]
        } else {
            tests.into_iter().map(|test| vec![test]).collect()
        }
    }
}

/// Reads a profile; `name` is what it will be called.
///
/// # Errors
/// [`DockerError`]: the text is no JSON, or has a field, an action or a value that is not known.
pub fn parse(name: &str, text: &str, kernel: Kernel) -> Result<Profile, DockerError> {
    let file: File = serde_json::from_str(text).map_err(|error| {
        let message = error.to_string();
        let position = format!(" at line {} column {}", error.line(), error.column());
        DockerError {
            line: error.line().max(1),
            column: error.column().max(1),
            message: message
                .strip_suffix(&position)
                .unwrap_or(&message)
                .to_owned(),
        }
    })?;
    let mut profile = Profile {
        name: name.to_owned(),
        otherwise: file
            .default_action
            .action(file.default_errno.as_ref(), file.default_errno_ret.as_ref()),
        calls: Default::default(),
        unknown: vec![],
    };
    let mut unknown = BTreeSet::new();
    for entry in file.syscalls.iter().flatten() {
        if !entry.applies(kernel) {
            continue;
        }
        let action = entry
            .action
            .action(entry.errno.as_ref(), entry.errno_ret.as_ref());
        for call in entry.names.iter().flatten().chain(&entry.name) {
            let Some(number) = number(call) else {
                unknown.insert(call.clone());
                continue;
            };
            let rules = profile.calls.entry(number).or_default();
            rules.extend(
                entry
                    .alternatives()
                    .into_iter()
                    .map(|when| Rule { when, action }),
            );
        }
    }
    for rules in profile.calls.values_mut() {
        // A stable sort: what always applies last, and only the first of those.
        rules.sort_by_key(|rule| rule.when.is_empty());
        let with_conditions = rules.iter().filter(|rule| !rule.when.is_empty()).count();
        rules.truncate(with_conditions + 1);
        // Conditions that change nothing.
        if let Some(last) = rules.last().filter(|last| last.when.is_empty()).cloned()
            && rules.iter().all(|rule| rule.action == last.action)
        {
            *rules = vec![last];
        }
    }
    profile.unknown = unknown.into_iter().collect();
    Ok(profile)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Kernel = Kernel(6, 18);

    fn answer(profile: &Profile, call: &str, args: &[u64]) -> Action {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        profile.answer(number(call).unwrap(), all)
    }

    fn errno(number: i32) -> Action {
        Action::Errno(u16::try_from(number).unwrap())
    }

    /// In the shape of Moby's `profiles/seccomp/default.json`, one entry of each kind that it has.
    const LIKE_MOBY: &str = r#"{
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "archMap": [
            { "architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"] },
            { "architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"] }
        ],
        "syscalls": [
            { "names": ["read", "write", "execve", "_llseek", "arm_fadvise64_64"], "action": "SCMP_ACT_ALLOW" },
            { "names": ["process_vm_readv", "ptrace"], "action": "SCMP_ACT_ALLOW", "includes": { "minKernel": "4.8" } },
            { "names": ["socket"], "action": "SCMP_ACT_ALLOW",
              "args": [ { "index": 0, "value": 40, "op": "SCMP_CMP_NE" } ] },
            { "names": ["personality"], "action": "SCMP_ACT_ALLOW",
              "args": [ { "index": 0, "value": 0, "op": "SCMP_CMP_EQ" } ] },
            { "names": ["personality"], "action": "SCMP_ACT_ALLOW",
              "args": [ { "index": 0, "value": 4294967295, "op": "SCMP_CMP_EQ" } ] },
            { "names": ["sync_file_range2"], "action": "SCMP_ACT_ALLOW", "includes": { "arches": ["ppc64le"] } },
            { "names": ["getcwd"], "action": "SCMP_ACT_ALLOW", "includes": { "arches": ["amd64", "x32", "arm64"] } },
            { "names": ["bpf", "mount", "unshare"], "action": "SCMP_ACT_ALLOW", "includes": { "caps": ["CAP_SYS_ADMIN"] } },
            { "names": ["clone"], "action": "SCMP_ACT_ALLOW",
              "args": [ { "index": 0, "value": 2114060288, "op": "SCMP_CMP_MASKED_EQ" } ],
              "excludes": { "caps": ["CAP_SYS_ADMIN"], "arches": ["s390", "s390x"] } },
            { "names": ["clone"], "action": "SCMP_ACT_ALLOW", "comment": "s390 parameter ordering for clone is different",
              "args": [ { "index": 1, "value": 2114060288, "op": "SCMP_CMP_MASKED_EQ" } ],
              "includes": { "arches": ["s390", "s390x"] }, "excludes": { "caps": ["CAP_SYS_ADMIN"] } },
            { "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "excludes": { "caps": ["CAP_SYS_ADMIN"] } }
        ]
    }"#;

    #[test]
    fn a_profile_like_mobys_means_what_docker_means() {
        let profile = parse("moby", LIKE_MOBY, NOW).unwrap();
        let allowed = Action::Allow;
        for (call, args, wanted) in [
            ("read", &[][..], allowed),
            ("execve", &[], allowed),
            ("ptrace", &[], allowed),
            ("getcwd", &[], allowed),
            ("mount", &[], errno(libc::EPERM)),
            ("bpf", &[], errno(libc::EPERM)),
            ("unshare", &[0], errno(libc::EPERM)),
            ("socket", &[16], allowed),
            ("socket", &[40], errno(libc::EPERM)),
            ("personality", &[0], allowed),
            ("personality", &[0xffff_ffff], allowed),
            ("personality", &[0x0004_0000], errno(libc::EPERM)),
            ("clone", &[0x11], allowed),
            ("clone", &[0x1000_0011], errno(libc::EPERM)),
            // s390's entry is not for here
            ("clone", &[0x1000_0000, 0], errno(libc::EPERM)),
            ("clone3", &[], errno(libc::ENOSYS)),
        ] {
            assert_eq!(answer(&profile, call, args), wanted, "{call} {args:x?}");
        }
        assert_eq!(profile.unknown, ["_llseek", "arm_fadvise64_64"]);
        let before = parse("moby", LIKE_MOBY, Kernel(4, 7)).unwrap();
        assert_eq!(answer(&before, "ptrace", &[]), errno(libc::EPERM));
        profile.compile().unwrap();
    }

    #[test]
    fn entries_of_one_call_are_alternatives_and_the_one_without_conditions_comes_last() {
        let text = r#"{"defaultAction": "SCMP_ACT_KILL_PROCESS", "syscalls": [
            {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": []},
            {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 97, "args": [
                {"index": 0, "value": 16, "valueTwo": 0, "op": "SCMP_CMP_EQ"}]},
            {"names": ["socket"], "action": "SCMP_ACT_TRAP"},
            {"name": "personality", "action": "SCMP_ACT_ALLOW", "args": [
                {"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
            {"names": ["kill"], "action": "SCMP_ACT_ALLOW", "args": [
                {"index": 0, "value": 5, "op": "SCMP_CMP_GT"}, {"index": 1, "value": 9, "op": "SCMP_CMP_LT"}]}
        ]}"#;
        let profile = parse("p", text, NOW).unwrap();
        assert_eq!(answer(&profile, "socket", &[2]), Action::Allow);
        assert_eq!(answer(&profile, "socket", &[16]), errno(97));
        assert_eq!(answer(&profile, "personality", &[8]), Action::Allow);
        assert_eq!(answer(&profile, "personality", &[1]), Action::KillProcess);
        assert_eq!(answer(&profile, "kill", &[6, 8]), Action::Allow);
        assert_eq!(answer(&profile, "kill", &[6, 9]), Action::KillProcess);
        assert_eq!(answer(&profile, "kill", &[5, 8]), Action::KillProcess);
    }

    /// In the shape of containers-common's `seccomp.json`, which Debian installs in /usr/share/containers.
    const LIKE_PODMAN: &str = r#"{
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "defaultErrno": "ENOSYS",
        "archMap": [ { "architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"] } ],
        "syscalls": [
            { "names": ["bdflush", "io_pgetevents"], "action": "SCMP_ACT_ERRNO", "args": [], "comment": "",
              "includes": {}, "excludes": {}, "errnoRet": 1, "errno": "EPERM" },
            { "names": ["execve", "read"], "action": "SCMP_ACT_ALLOW", "args": null, "comment": "", "includes": {}, "excludes": {} },
            { "names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 22, "errno": "EINVAL", "comment": "",
              "args": [ { "index": 0, "value": 16, "valueTwo": 0, "op": "SCMP_CMP_EQ" },
                        { "index": 2, "value": 9, "valueTwo": 0, "op": "SCMP_CMP_EQ" } ],
              "includes": {}, "excludes": { "caps": ["CAP_AUDIT_WRITE"] } },
            { "names": ["socket"], "action": "SCMP_ACT_ALLOW",
              "args": [ { "index": 2, "value": 9, "valueTwo": 0, "op": "SCMP_CMP_NE" } ], "comment": "",
              "includes": {}, "excludes": { "caps": ["CAP_AUDIT_WRITE"] } },
            { "names": ["mount"], "action": "SCMP_ACT_ERRNO", "errno": "ENOTSUP" }
        ]
    }"#;

    #[test]
    fn a_profile_like_podmans_names_its_errors() {
        let profile = parse("podman", LIKE_PODMAN, NOW).unwrap();
        for (call, args, wanted) in [
            ("read", &[][..], Action::Allow),
            ("ptrace", &[], errno(libc::ENOSYS)),
            ("io_pgetevents", &[], errno(libc::EPERM)),
            ("socket", &[2, 1, 0], Action::Allow),
            ("socket", &[16, 3, 9], errno(libc::EINVAL)),
            ("mount", &[], errno(libc::EOPNOTSUPP)),
        ] {
            assert_eq!(answer(&profile, call, args), wanted, "{call} {args:x?}");
        }
        profile.compile().unwrap();
        let nowhere = LIKE_PODMAN.replace("ENOTSUP", "ENOTHING");
        let error = parse("p", &nowhere, NOW).unwrap_err();
        assert!(
            error.message.starts_with("`ENOTHING` is no error's name"),
            "{error}"
        );
        assert_eq!(error.line, 17);
    }

    #[test]
    fn a_runtimes_form_may_have_flags_and_no_listener() {
        let text = r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "architectures": ["SCMP_ARCH_X86_64"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"],
            "syscalls": [{"names": ["execve"], "action": "SCMP_ACT_ALLOW"}]}"#;
        let profile = parse("oci", text, NOW).unwrap();
        assert_eq!(answer(&profile, "mount", &[]), errno(libc::ENOSYS));
        assert_eq!(answer(&profile, "execve", &[]), Action::Allow);
        for bad in [
            text.replace("FLAG_LOG", "FLAG_LGO"),
            text.replace("\"flags\"", "\"listenerPath\": \"/run/x\", \"flags\""),
        ] {
            parse("oci", &bad, NOW).unwrap_err();
        }
    }

    #[test]
    fn what_is_not_known_is_an_error_with_its_place() {
        for (text, line, message) in [
            ("", 1, "EOF while parsing a value"),
            ("{\n\"defaultAction\": 7}", 2, "expected value"),
            (
                "{\n\"defaultAction\": \"SCMP_ACT_NOTIFY\"}",
                2,
                "unknown variant `SCMP_ACT_NOTIFY`, expected one of `SCMP_ACT_ALLOW`",
            ),
            (
                "{\"defaultAction\": \"SCMP_ACT_ALLOW\",\n\n\"syscals\": []}",
                3,
                "unknown field `syscals`, expected one of `defaultAction`",
            ),
            (
                "{\"defaultAction\": \"SCMP_ACT_ALLOW\", \"defaultErrnoRet\":\n4096}",
                2,
                "4096 is no error number",
            ),
            (
                "{\"defaultAction\": \"SCMP_ACT_ERRNO\", \"syscalls\": [{\"names\": [],\n\"action\": \"SCMP_ACT_ALLOW\",\n\"args\": [{\"index\": 6, \"value\": 0, \"op\": \"SCMP_CMP_EQ\"}]}]}",
                3,
                "6 is no argument's index",
            ),
            (
                "{\"defaultAction\": \"SCMP_ACT_ERRNO\", \"syscalls\": [{\"names\": [], \"action\": \"SCMP_ACT_ALLOW\",\n\"includes\": {\"minKernel\": \"new\"}}]}",
                2,
                "`new` is no kernel version",
            ),
        ] {
            let error = parse("p", text, NOW).unwrap_err();
            assert_eq!(error.line, line, "{text}: {error}");
            assert!(error.message.starts_with(message), "{text}: {error}");
        }
    }
}

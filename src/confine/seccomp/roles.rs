//! What each role may call, with the reasons.
//!
//! Not in any list, so EPERM: mounts and roots (`mount`, `umount2`, `move_mount`, `open_tree`, `fsopen` and so on,
//! `pivot_root`, `chroot`, `mount_setattr`), namespaces (`setns`, `unshare`, `clone` with a `CLONE_NEW` flag), other
//! processes' memory and descriptors (`ptrace`, `process_vm_*`, `process_madvise`, `kcmp`, `pidfd_getfd`), what had the
//! most holes in the kernel (`bpf`, `io_uring_*`, `perf_event_open`, `userfaultfd`, `keyctl`, `add_key`,
//! `request_key`), paths past every mount (`open_by_handle_at`, `name_to_handle_at`), and the machine as a whole
//! (clock, modules, `kexec_*`, `reboot`, swap, quota, accounting, `syslog`, I/O ports, `fanotify_*`, NUMA policy).
//! Beside Docker's default that leaves out, too: message queues, `memfd_secret`, `modify_ldt`, `remap_file_pages`.
//!
//! [`supervisor`] is the widest: everything that is started later is below it. What it leaves out no process of a stack
//! makes from then on, and no app from its first start on ([`floored`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use libc::{
    AF_INET, AF_INET6, AF_NETLINK, AF_UNIX, CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET,
    CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWUSER, CLONE_NEWUTS, CLONE_THREAD, IPPROTO_TCP, IPPROTO_UDP,
    NETLINK_NETFILTER, PROT_EXEC, S_IFIFO, S_IFMT, S_IFREG, S_IFSOCK, S_ISGID, S_ISUID, SOCK_DGRAM,
    SOCK_STREAM,
};
use syscalls::Sysno;

use super::{Action, Comparison, Profile, Rule, Test, always};

macro_rules! calls {
    ($($name:ident)*) => { &[$(Sysno::$name),*] };
}

/// Files: everything but mounts, device nodes and handles. What may be written is up to the mounts.
const FILES: &[Sysno] = calls![
    cachestat chdir close close_range copy_file_range dup dup3 faccessat faccessat2 fadvise64 fallocate fchdir fchmod
    fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fstat fstatfs fsync ftruncate getcwd
    getdents64 getxattr getxattrat lgetxattr linkat listxattr listxattrat llistxattr lseek mkdirat openat
    openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlinkat readv renameat renameat2 sendfile
    splice statfs statx symlinkat sync sync_file_range syncfs tee truncate umask unlinkat utimensat write writev
];
#[cfg(target_arch = "x86_64")]
const OLD_FILES: &[Sysno] = calls![
    access chmod chown creat dup2 futimesat getdents lchown link lstat mkdir newfstatat open readlink rename rmdir stat
    symlink unlink utime utimes
];

/// A process's own memory. `memfd_create` makes anonymous files, which JVM and Node map code from.
const MEMORY: &[Sysno] = calls![
    brk madvise map_shadow_stack membarrier memfd_create mincore mlock mlock2 mlockall mmap mprotect mremap mseal msync
    munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect
];

/// Processes and threads; whom they may signal is up to the pid namespace.
const PROCESSES: &[Sysno] = calls![
    execve execveat exit exit_group get_robust_list getcpu getegid geteuid getgid getgroups getpgid getpid getppid
    getpriority getresgid getresuid getrlimit getrusage getsid gettid getuid kill pidfd_open pidfd_send_signal
    rseq sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
    sched_getscheduler sched_rr_get_interval sched_setaffinity sched_yield set_robust_list set_tid_address setpgid
    setsid sysinfo tgkill tkill uname wait4 waitid
];
#[cfg(target_arch = "x86_64")]
const OLD_PROCESSES: &[Sysno] = calls![arch_prctl getpgrp pause];

/// Signals and time. Clocks are read, never set.
const SIGNALS_AND_TIME: &[Sysno] = calls![
    clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep restart_syscall rt_sigaction
    rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo setitimer
    sigaltstack signalfd4 timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create
    timerfd_gettime timerfd_settime times
];
#[cfg(target_arch = "x86_64")]
const OLD_SIGNALS_AND_TIME: &[Sysno] = calls![alarm signalfd time];

/// Waiting.
const WAITING: &[Sysno] = calls![
    epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 eventfd2 futex futex_requeue futex_wait futex_waitv futex_wake
    pipe2 ppoll pselect6
];
#[cfg(target_arch = "x86_64")]
const OLD_WAITING: &[Sysno] = calls![epoll_create epoll_wait eventfd pipe poll select];

/// Sockets, once there is one.
const SOCKETS: &[Sysno] = calls![
    accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg setsockopt shutdown
];

/// Randomness, and a process's ways to confine itself further, which no_new_privs makes harmless.
const SELF: &[Sysno] =
    calls![getrandom landlock_add_rule landlock_create_ruleset landlock_restrict_self];

/// What only `default` has. Ids and capabilities may be "set": nothing is held that could be gained, and servers
/// that are used to start as root call them (nginx, PostgreSQL, gosu). Shared memory is PostgreSQL's, semaphores are
/// Apache's and PHP's.
const MORE: &[Sysno] = calls![
    capget capset fremovexattr fsetxattr inotify_add_watch inotify_init1 inotify_rm_watch ioprio_get ioprio_set lremovexattr lsetxattr removexattr
    removexattrat sched_setattr sched_setparam sched_setscheduler semctl semget semop semtimedop setfsgid setfsuid
    setgid setgroups setpriority setregid setresgid setresuid setreuid setuid setxattr setxattrat shmat shmctl shmdt
    shmget vmsplice
];
#[cfg(target_arch = "x86_64")]
const OLD_MORE: &[Sysno] = calls![fork inotify_init vfork];

/// Native AIO: the machine has `fs.aio-max-nr` requests for all, one call of `io_setup` takes what is left of them, and
/// then no database starts. So there is none, as on a kernel without CONFIG_AIO: nginx, MySQL and MariaDB go on without.
const AIO: &[Sysno] = calls![io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit];

/// What the supervisor, and what it starts, call on the way to a part that is none of the part's any more: namespaces, mounts,
/// a root, a name.
const MAKING_PARTS: &[Sysno] = calls![
    chroot clone clone3 fsconfig fsmount fsopen fspick mount mount_setattr move_mount mknodat open_tree open_tree_attr
    personality pivot_root prctl prlimit64 seccomp setdomainname sethostname setns setrlimit socketpair
    umount2 unshare
];
#[cfg(target_arch = "x86_64")]
const OLD_MAKING_PARTS: &[Sysno] = calls![mknod];

/// What a profile of the user's may have beside: calls that reach nothing but the process's own memory, its ipc namespace and
/// what it can see of files anyway. Databases set NUMA policies, Wine has a local descriptor table.
const BY_A_FILE: &[Sysno] = calls![
    fanotify_mark get_mempolicy listmount lsm_get_self_attr lsm_list_modules mbind memfd_secret migrate_pages
    move_pages mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink name_to_handle_at process_mrelease
    remap_file_pages set_mempolicy set_mempolicy_home_node statmount
];
#[cfg(target_arch = "x86_64")]
const OLD_BY_A_FILE: &[Sysno] = calls![get_thread_area modify_ldt set_thread_area];

/// What an ordinary program calls, whatever it does.
const EVERYBODYS: [&[Sysno]; 11] = [
    FILES,
    OLD_FILES,
    MEMORY,
    PROCESSES,
    OLD_PROCESSES,
    SIGNALS_AND_TIME,
    OLD_SIGNALS_AND_TIME,
    WAITING,
    OLD_WAITING,
    SOCKETS,
    SELF,
];

/// What other architectures have instead.
#[cfg(target_arch = "aarch64")]
mod old {
    use syscalls::Sysno;
    /// The crate's name of `newfstatat`.
    pub(super) const FILES: &[Sysno] = calls![fstatat];
    pub(super) const NONE: &[Sysno] = &[];
}
#[cfg(target_arch = "aarch64")]
use old::{
    FILES as OLD_FILES, NONE as OLD_PROCESSES, NONE as OLD_SIGNALS_AND_TIME, NONE as OLD_WAITING,
    NONE as OLD_MORE, NONE as OLD_MAKING_PARTS, NONE as OLD_BY_A_FILE,
};

/// What our own stage calls to read back what it holds, to talk to the supervisor and to end; and what Rust's runtime
/// calls between and at its end. Memory is never executable. (sysconf(3) of `getgroups` would read
/// /proc/sys/kernel/ngroups_max, and does without.)
const STAGE: &[Sysno] = calls![
    brk capget clock_gettime close exit exit_group futex getgroups getrandom getresgid getresuid madvise mremap munmap
    read recvmsg restart_syscall rt_sigaction rt_sigprocmask rt_sigreturn sendto sigaltstack write
];

/// prctl(2) options: names, the calling process's own flags and limits, and what narrows it further. Not among them:
/// `PR_SET_MM` (moves /proc/self/exe), `PR_SET_PTRACER`, `PR_SET_SPECULATION_CTRL` (gives mitigations up),
/// `PR_MCE_KILL`, `PR_SET_IO_FLUSHER`.
const PRCTL: &[i32] = &[
    libc::PR_SET_PDEATHSIG,
    libc::PR_GET_PDEATHSIG,
    libc::PR_GET_DUMPABLE,
    // nginx's workers set it. It opens a process to others of its uid only, which have its privileges already.
    libc::PR_SET_DUMPABLE,
    libc::PR_GET_KEEPCAPS,
    libc::PR_SET_KEEPCAPS,
    libc::PR_SET_NAME,
    libc::PR_GET_NAME,
    libc::PR_GET_SECCOMP,
    libc::PR_SET_SECCOMP,
    libc::PR_CAPBSET_READ,
    libc::PR_CAPBSET_DROP,
    libc::PR_GET_TSC,
    libc::PR_GET_SECUREBITS,
    libc::PR_SET_TIMERSLACK,
    libc::PR_GET_TIMERSLACK,
    libc::PR_SET_CHILD_SUBREAPER,
    libc::PR_GET_CHILD_SUBREAPER,
    libc::PR_SET_NO_NEW_PRIVS,
    libc::PR_GET_NO_NEW_PRIVS,
    libc::PR_SET_THP_DISABLE,
    libc::PR_GET_THP_DISABLE,
    libc::PR_CAP_AMBIENT,
    // PR_GET_SPECULATION_CTRL, which is the same everywhere; the libc crate has it for x86_64 only.
    52,
    // Names mappings (PR_SET_VMA_ANON_NAME); JVM, Node and glibc do.
    libc::PR_SET_VMA,
    libc::PR_SET_MDWE,
    libc::PR_GET_MDWE,
];
/// Vector lengths, pointer authentication and tags.
#[cfg(target_arch = "aarch64")]
const PRCTL_OF_THE_ARCHITECTURE: &[i32] = &[50, 51, 54, 55, 56, 60, 61, 63, 64];
#[cfg(not(target_arch = "aarch64"))]
const PRCTL_OF_THE_ARCHITECTURE: &[i32] = &[];

/// What the stage asks prctl(2).
const PRCTL_READ_BACK: &[i32] = &[
    libc::PR_CAPBSET_READ,
    libc::PR_CAP_AMBIENT,
    libc::PR_GET_SECUREBITS,
    libc::PR_GET_NO_NEW_PRIVS,
    libc::PR_GET_SECCOMP,
    libc::PR_GET_DUMPABLE,
    libc::PR_GET_PDEATHSIG,
];

/// `CLONE_NEWTIME` is a signal number to clone(2).
const NEW_NAMESPACES: i32 = CLONE_NEWNS
    | CLONE_NEWCGROUP
    | CLONE_NEWUTS
    | CLONE_NEWIPC
    | CLONE_NEWUSER
    | CLONE_NEWPID
    | CLONE_NEWNET;

/// Landlock asks about TCP where connect(2) and bind(2) are called on its sockets, and takes every other protocol for none
/// of its business: also those that speak TCP below (MPTCP, SMC), or go past it and the sidecar's rules in other ways (RDS,
/// TIPC, VSOCK). So what a socket may be is a list of what is known, not of what is refused
/// (`current_check_access_socket()` of security/landlock/net.c). Programs that prefer MPTCP (Go's listeners do) are told
/// what a kernel without it says, and go on by TCP.
const PROTOCOLS: [i32; 3] = [0, IPPROTO_TCP, IPPROTO_UDP];
/// Families of any profile, also of one from a file.
const FAMILIES: [i32; 4] = [AF_UNIX, AF_INET, AF_INET6, AF_NETLINK];
/// Protocols of netlink of any profile: links and routes, who listens, rules and the traffic log.
const NETLINKS: [i32; 3] = [
    libc::NETLINK_ROUTE,
    libc::NETLINK_SOCK_DIAG,
    NETLINK_NETFILTER,
];
/// The second way past it: send(2) with this flag connects, and no hook is asked about that (`tcp_sendmsg_fastopen()` of
/// net/ipv4/tcp.c). The answer is the one of a kernel whose `net.ipv4.tcp_fastopen` says no.
const FASTOPEN: i32 = libc::MSG_FASTOPEN;
/// The third: an upper layer protocol takes a TCP socket over, and "smc" makes it a socket that is none of TCP's
/// (`smc_ulp_init()` of net/smc/af_smc.c). "tls" goes with it, which every library does without.
const ULP: (i32, i32) = (IPPROTO_TCP, libc::TCP_ULP);
/// setsockopt(2) options of SOL_SOCKET that hand the kernel a program to compile. The memory for that is counted for the
/// whole machine (`net.core.bpf_jit_limit`): without it nobody who lacks CAP_BPF gets a filter any more, not even a
/// seccomp filter where the kernel has no interpreter (CONFIG_BPF_JIT_ALWAYS_ON), and sshd lets nobody in.
const FILTERS: [i32; 2] = [libc::SO_ATTACH_FILTER, libc::SO_ATTACH_REUSEPORT_CBPF];
/// Those that take a socket's filter away, or put another in its place: a relay's listening sockets are of the host's network
/// namespace, and their filter is what keeps them from connecting there ([`crate::sys::socket::Dropped::Answers`]).
const SWAPS: [i32; 3] = [
    libc::SO_ATTACH_FILTER,
    libc::SO_DETACH_FILTER,
    libc::SO_ATTACH_BPF,
];
/// Huge pages are set aside by the host's administrator, for a database perhaps, and counted for the whole machine. The
/// answer is the one when there are none left.
const HUGE: [(Sysno, u8, i32); 2] = [
    (Sysno::mmap, 3, libc::MAP_HUGETLB),
    (Sysno::memfd_create, 1, libc::MFD_HUGETLB as i32),
];
/// Which argument of a call are the flags that [`FASTOPEN`] is one of.
const SENDING: [(Sysno, u8); 3] = [
    (Sysno::sendto, 3),
    (Sysno::sendmsg, 2),
    (Sysno::sendmmsg, 3),
];

/// ioctl(2) requests that type into a terminal (CVE-2017-5226), or load line disciplines (CVE-2017-2636).
const BAD_IOCTLS: &[u64] = &[libc::TIOCSTI, libc::TIOCLINUX, libc::TIOCSETD];

const EPERM: Action = Action::Errno(libc::EPERM as u16);
const ENOSYS: Action = Action::Errno(libc::ENOSYS as u16);
const EPROTONOSUPPORT: Action = Action::Errno(libc::EPROTONOSUPPORT as u16);
const EOPNOTSUPP: Action = Action::Errno(libc::EOPNOTSUPP as u16);

fn low(arg: u8, mask: u32, is: Comparison, value: u32) -> Test {
    Test {
        arg,
        mask: mask.into(),
        is,
        value: value.into(),
    }
}

fn equal(arg: u8, value: impl TryInto<u32>) -> Test {
    let value = value
        .try_into()
        .ok()
        .expect("every constant here is positive and fits 32 bits");
    low(arg, u32::MAX, Comparison::Eq, value)
}

fn without(arg: u8, bits: i32) -> Test {
    low(arg, bits.cast_unsigned(), Comparison::Eq, 0)
}

fn allow(when: impl Into<Vec<Test>>) -> Rule {
    Rule {
        when: when.into(),
        action: Action::Allow,
    }
}

/// Allowed when one argument is one of these.
fn one_of<T: TryInto<u32> + Copy>(arg: u8, values: &[T]) -> Vec<Rule> {
    values
        .iter()
        .map(|value| allow([equal(arg, *value)]))
        .collect()
}

fn not_equal(arg: u8, value: i32) -> Test {
    Test {
        is: Comparison::Ne,
        ..equal(arg, value)
    }
}

/// What no socket may be, whatever a profile says: see [`PROTOCOLS`].
fn past_landlock() -> Vec<Rule> {
    let family = FAMILIES.map(|family| not_equal(0, family)).to_vec();
    let mut rules = vec![Rule {
        when: family,
        action: EPERM,
    }];
    // They differ in one bit: one test for both keeps the program small.
    const DIFFER: i32 = AF_INET ^ AF_INET6;
    let internet = low(
        0,
        !DIFFER.cast_unsigned(),
        Comparison::Eq,
        (AF_INET & !DIFFER).cast_unsigned(),
    );
    // A raw socket takes a capability that nobody has; one of packets in order is SCTP's.
    let kind =
        [SOCK_STREAM, SOCK_DGRAM].map(|kind| low(1, 0xf, Comparison::Ne, kind.cast_unsigned()));
    rules.push(Rule {
        when: [internet].into_iter().chain(kind).collect(),
        action: EPERM,
    });
    let protocol = PROTOCOLS.map(|protocol| not_equal(2, protocol));
    rules.push(Rule {
        when: [internet].into_iter().chain(protocol).collect(),
        action: EPROTONOSUPPORT,
    });
    rules
}

/// What no socket of netlink may be in any process of a stack: kernel code that none of them needs, by other protocols.
fn other_netlinks() -> [Rule; 2] {
    let others = NETLINKS.iter().chain(&[libc::NETLINK_AUDIT]);
    let others = others.map(|protocol| not_equal(2, *protocol));
    let others = Rule {
        when: [equal(0, AF_NETLINK)].into_iter().chain(others).collect(),
        action: EPERM,
    };
    // Who is root takes EPERM for a failure here, and PAM lets nobody through; of a kernel without it nobody asks more.
    let audit = Rule {
        when: vec![equal(0, AF_NETLINK), equal(2, libc::NETLINK_AUDIT)],
        action: EPROTONOSUPPORT,
    };
    [audit, others]
}

/// What is asked of no terminal.
fn bad_requests() -> Vec<Rule> {
    let refused = |bad: &u64| Rule {
        when: vec![equal(1, *bad)],
        action: EPERM,
    };
    BAD_IOCTLS.iter().map(refused).collect()
}

/// Sockets of these families.
fn sockets(families: &[i32]) -> Vec<Rule> {
    let mut rules = past_landlock();
    rules.extend(one_of(0, families));
    rules
}

/// No such option of SOL_SOCKET.
fn no_option(option: i32) -> Rule {
    Rule {
        when: vec![equal(1, libc::SOL_SOCKET), equal(2, option)],
        action: EPERM,
    }
}

/// Which options of a socket nobody may set, whatever a profile says.
fn no_takeover() -> Rule {
    Rule {
        when: vec![equal(1, ULP.0), equal(2, ULP.1)],
        action: Action::Errno(libc::ENOENT as u16),
    }
}

/// What is refused of each call in every profile, before its own rules: the ways past Landlock.
pub(super) fn guards() -> Vec<(Sysno, Vec<Rule>)> {
    let mut guards = vec![
        (Sysno::socket, past_landlock()),
        (Sysno::setsockopt, vec![no_takeover()]),
    ];
    guards.extend(SENDING.map(|(call, flags)| (call, vec![connects(flags)])));
    guards
}

/// For who is handed sockets of another network namespace: requests there are about its links and addresses, and options that
/// stay with a socket beyond who has set them bind it to a link. To change a link takes a capability there; to ask for its
/// name and addresses takes none (net/core/dev_ioctl.c). All of them are from `SIOCGIFNAME` to the last of linux/sockios.h;
/// those of a socket itself (`FIONREAD`, `SIOCATMARK`, `SIOCOUTQ`) have other numbers.
pub(super) fn links() -> Vec<(Sysno, Vec<Rule>)> {
    const FIRST: u32 = 0x8910;
    const LAST: u32 = 0x89ff;
    let request = Rule {
        when: vec![
            low(1, u32::MAX, Comparison::Ge, FIRST),
            low(1, u32::MAX, Comparison::Le, LAST),
        ],
        action: EPERM,
    };
    let options = [
        libc::SO_BINDTODEVICE,
        libc::SO_BINDTOIFINDEX,
        libc::SO_LOCK_FILTER,
    ];
    vec![
        (Sysno::ioctl, vec![request]),
        (Sysno::setsockopt, options.map(no_option).into()),
    ]
}

fn connects(flags: u8) -> Rule {
    Rule {
        when: vec![low(flags, FASTOPEN.cast_unsigned(), Comparison::Ne, 0)],
        action: EOPNOTSUPP,
    }
}

/// Anything but huge pages: see [`HUGE`].
fn not_huge(flags: u8, huge: i32) -> Vec<Rule> {
    let refused = Rule {
        when: vec![low(flags, huge.cast_unsigned(), Comparison::Ne, 0)],
        action: Action::Errno(libc::ENOMEM as u16),
    };
    vec![refused, always(Action::Allow)]
}

/// Sending, but not as a way to connect.
fn sending(calls: &mut Calls) {
    for (call, flags) in SENDING {
        set(calls, call, vec![connects(flags), always(Action::Allow)]);
    }
}

/// Sending descriptors: carrier and dialer do, to each other.
fn hands_over() -> Vec<Rule> {
    vec![allow([without(2, FASTOPEN)])]
}

type Calls = BTreeMap<u32, Vec<Rule>>;

fn number(call: Sysno) -> u32 {
    call.id().cast_unsigned()
}

fn plain(lists: &[&[Sysno]]) -> Calls {
    lists
        .iter()
        .flat_map(|list| list.iter())
        .map(|call| (number(*call), vec![always(Action::Allow)]))
        .collect()
}

fn profile(name: &str, calls: Calls) -> Profile {
    Profile {
        name: name.to_owned(),
        otherwise: EPERM,
        calls,
        unknown: vec![],
    }
}

fn set(calls: &mut Calls, call: Sysno, rules: Vec<Rule>) {
    calls.insert(number(call), rules);
}

/// The name of [`default`].
const DEFAULT: &str = "default";

/// What servers call.
#[must_use]
pub fn default() -> Profile {
    let mut calls = common();
    calls.extend(plain(&[MORE, OLD_MORE]));
    for call in AIO {
        set(&mut calls, *call, vec![always(ENOSYS)]);
    }
    set(&mut calls, Sysno::shmget, not_huge(2, libc::SHM_HUGETLB));
    set(
        &mut calls,
        Sysno::clone,
        vec![allow([without(0, NEW_NAMESPACES)])],
    );
    let mut families = sockets(&[AF_UNIX, AF_INET, AF_INET6]);
    // getifaddrs(3): a program lists its own links, addresses and routes. The kernel changes none of them without
    // CAP_NET_ADMIN (rtnetlink_rcv_msg(), net/core/rtnetlink.c), and a filter sees nothing of the messages.
    families.push(allow([equal(0, AF_NETLINK), equal(2, libc::NETLINK_ROUTE)]));
    set(&mut calls, Sysno::socket, families);
    // Without CAP_MKNOD the kernel makes no device; this keeps it so whatever the kernel thinks.
    let nodes = |arg| {
        [0, S_IFREG, S_IFIFO, S_IFSOCK]
            .map(|kind| allow([low(arg, S_IFMT, Comparison::Eq, kind)]))
            .to_vec()
    };
    #[cfg(target_arch = "x86_64")]
    set(&mut calls, Sysno::mknod, nodes(1));
    set(&mut calls, Sysno::mknodat, nodes(2));
    // PER_LINUX, and "what is it now?". Others turn address randomization or mmap's minimum off.
    set(&mut calls, Sysno::personality, one_of(0, &[0, u32::MAX]));
    floored(profile(DEFAULT, calls))
}

/// `profile` for an app that has a range of ids: `default`, also with calls more, has chroot(2), too. A server that begins as
/// root shuts itself, or the worker that talks with strangers, into a directory. The kernel asks for CAP_SYS_CHROOT
/// ([`crate::confine::privileges::OVER_A_RANGE`]), which is lost with the change of user.
#[must_use]
pub fn over_a_range(mut profile: Profile) -> Profile {
    let name = &profile.name;
    if name == DEFAULT || name.starts_with(&format!("{DEFAULT}+")) {
        set(
            &mut profile.calls,
            Sysno::chroot,
            vec![always(Action::Allow)],
        );
    }
    profile
}

/// One process, with any number of threads: what it becomes is decided by its `execve(2)`, which comes after this
/// filter, and it starts no other. Sockets of the Internet only; no ids, capabilities or scheduling classes to set, no
/// shared memory, native AIO or inotify.
#[must_use]
pub fn strict() -> Profile {
    let mut calls = common();
    let thread = vec![allow([low(
        0,
        (NEW_NAMESPACES | CLONE_THREAD).cast_unsigned(),
        Comparison::Eq,
        CLONE_THREAD.cast_unsigned(),
    )])];
    set(&mut calls, Sysno::clone, thread);
    set(&mut calls, Sysno::socket, sockets(&[AF_INET, AF_INET6]));
    floored(profile("strict", calls))
}

/// The supervisor, once it has dropped its privileges, and so all that it starts from then on: what it calls itself, and what
/// parts, their commands and the way to them take. It leaves out what had the most holes in the kernel, other processes'
/// memory, keys (but to leave those of who started it), raw sockets, and the machine as a whole.
///
/// Most calls have no condition, and it is no accident: what both filters always allow the kernel looks up in a bitmap, however
/// many filters there are (`seccomp_cache_check_allow()` of kernel/seccomp.c).
#[must_use]
pub fn supervisor() -> Profile {
    let mut calls = plain(&EVERYBODYS);
    calls.extend(plain(&[
        MORE,
        OLD_MORE,
        AIO,
        MAKING_PARTS,
        OLD_MAKING_PARTS,
        BY_A_FILE,
        OLD_BY_A_FILE,
    ]));
    calls.extend(SENDING.map(|(call, _)| (number(call), vec![always(Action::Allow)])));
    let mut kinds = past_landlock();
    kinds.extend(other_netlinks());
    kinds.push(always(Action::Allow));
    set(&mut calls, Sysno::socket, kinds);
    let mut requests = bad_requests();
    requests.push(always(Action::Allow));
    set(&mut calls, Sysno::ioctl, requests);
    // A new keyring of nobody's: who is started leaves that of who started the stack by it.
    let unnamed = Test {
        arg: 1,
        mask: u64::MAX,
        is: Comparison::Eq,
        value: 0,
    };
    let leave = allow([equal(0, libc::KEYCTL_JOIN_SESSION_KEYRING), unnamed]);
    set(&mut calls, Sysno::keyctl, vec![leave]);
    set(&mut calls, Sysno::io_uring_setup, vec![always(ENOSYS)]);
    // It owns the parts' user namespaces, in which it is whoever owns a volume.
    for (call, mut denials) in of_files() {
        denials.push(always(Action::Allow));
        set(&mut calls, call, denials);
    }
    profile("supervisor", calls)
}

/// Whether a call is no app's, with whatever arguments and whatever its profile says.
#[must_use]
pub fn is_kept_from_apps(call: u32) -> bool {
    kept_from_apps().contains(&call)
}

fn kept_from_apps() -> &'static BTreeSet<u32> {
    static KEPT: OnceLock<BTreeSet<u32>> = OnceLock::new();
    KEPT.get_or_init(|| {
        let supervisor = supervisor();
        let allowed = |call: &u32| {
            let rules = supervisor.calls.get(call);
            rules.is_some_and(|rules| rules.iter().any(|rule| rule.action.allows()))
        };
        // The one request of it that is allowed below the supervisor is made before the command.
        let kept = |call: &u32| *call == number(Sysno::keyctl) || !allowed(call);
        Sysno::iter().map(number).filter(kept).collect()
    })
}

/// `profile` without what no app may do, whoever wrote the profile, since it would be done to others:
///
/// - Call what [`supervisor`] leaves out: an app that is started again is below it, and is to be as it was at its first start.
/// - Make a set-user-ID or set-group-ID file. In a volume it would be a program of the volume's owner, run by any user
///   of the host, by way of a path or a descriptor that is the host's. The kernel clears the bits when the file is written
///   to, and chown(2) does, so refusing the calls that set them is enough. Security attributes (file capabilities) take a
///   capability over the file system, which no part has.
/// - Hold a lease on a file ([`of_files`]).
/// - Set another process's resource limits: the kernel asks for nothing but the same uid, and so the app's pid 1, and what
///   `lrpns exec` and the audit run beside it, would lose theirs. Landlock has no word for that.
#[must_use]
pub fn floored(mut profile: Profile) -> Profile {
    let otherwise = profile.otherwise.allows();
    for call in kept_from_apps() {
        match profile.calls.get_mut(call) {
            Some(rules) if rules.iter().any(|rule| rule.action.allows()) || otherwise => {
                *rules = vec![always(EPERM)];
            }
            None if otherwise => drop(profile.calls.insert(*call, vec![always(EPERM)])),
            _ => {}
        }
    }
    for (call, denials) in floor() {
        let number = number(call);
        let rules = match profile.calls.remove(&number) {
            Some(rules) => rules,
            None if profile.otherwise.allows() => vec![always(profile.otherwise)],
            None => continue,
        };
        let denied = denials.into_iter().chain(rules).collect();
        profile.calls.insert(number, denied);
    }
    profile
}

/// What would make a set-user-ID or set-group-ID file, by call.
fn special_files() -> Vec<(Sysno, Vec<Rule>)> {
    const SPECIAL: u32 = S_ISUID | S_ISGID;
    /// `O_TMPFILE` of libc is this and `O_DIRECTORY`; it makes a file all the same (open(2)).
    const TMPFILE: i32 = libc::O_TMPFILE & !libc::O_DIRECTORY;
    let refuse = |when: Vec<Test>| Rule {
        when,
        action: EPERM,
    };
    let mode = |arg| vec![refuse(vec![low(arg, SPECIAL, Comparison::Ne, 0)])];
    // Without these flags the mode is whatever the register holds.
    let opened = |flags: u8| {
        [libc::O_CREAT, TMPFILE]
            .map(|makes| {
                refuse(vec![
                    low(flags, makes.cast_unsigned(), Comparison::Ne, 0),
                    low(flags + 1, SPECIAL, Comparison::Ne, 0),
                ])
            })
            .to_vec()
    };
    // Its mode is in memory, where no filter can look. Programs fall back to openat(2), as on Linux before 5.6.
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
    let mut calls = vec![
        (Sysno::fchmod, mode(1)),
        (Sysno::fchmodat, mode(2)),
        (Sysno::fchmodat2, mode(2)),
        (Sysno::mkdirat, mode(2)),
        (Sysno::mknodat, mode(2)),
        (Sysno::openat, opened(2)),
        (Sysno::openat2, vec![always(ENOSYS)]),
        // A message queue is a file, too: overlayfs copies its mode into a volume that is above it.
        (Sysno::mq_open, opened(1)),
    ];
    #[cfg(target_arch = "x86_64")]
    calls.extend([
        (Sysno::chmod, mode(1)),
        (Sysno::creat, mode(1)),
        (Sysno::mkdir, mode(1)),
        (Sysno::mknod, mode(1)),
        (Sysno::open, opened(1)),
    ]);
    calls
}

/// What nobody below the supervisor does with files: [`special_files`], and leases. Who has one on a file, be it in a volume that is
/// read-only to him, holds up for 45 seconds, again and again, whoever opens it on the host (`lease-break-time`,
/// proc_sys_fs(5)). The kernel asks for nothing but the owner's uid.
fn of_files() -> Vec<(Sysno, Vec<Rule>)> {
    /// The same of a directory; the libc crate has it not yet.
    const F_SETDELEG: i32 = 1024 + 16;
    let refused = |command| Rule {
        when: vec![equal(1, command)],
        action: EPERM,
    };
    let mut calls = special_files();
    calls.push((
        Sysno::fcntl,
        [libc::F_SETLEASE, F_SETDELEG].map(refused).into(),
    ));
    calls
}

/// What [`floored`] refuses, by call.
fn floor() -> Vec<(Sysno, Vec<Rule>)> {
    let others_limits = vec![Rule {
        when: vec![
            low(0, u32::MAX, Comparison::Ne, 0),
            Test {
                arg: 2,
                mask: u64::MAX,
                is: Comparison::Ne,
                value: 0,
            },
        ],
        action: EPERM,
    }];
    let mut floor = of_files();
    floor.extend([
        // It opens files as well, by requests that are in memory.
        (Sysno::io_uring_setup, vec![always(ENOSYS)]),
        (Sysno::prlimit64, others_limits),
        (Sysno::socket, other_netlinks().into()),
        (Sysno::ioctl, bad_requests()),
    ]);
    floor
}

/// It is not made, and returns as if it were.
const DONE: Action = Action::Errno(0);

/// What `default` and `strict` share.
fn common() -> Calls {
    let mut calls = plain(&EVERYBODYS);
    sending(&mut calls);
    let mut options = vec![no_takeover()];
    options.extend(FILTERS.map(no_option));
    options.push(always(Action::Allow));
    set(&mut calls, Sysno::setsockopt, options);
    for (call, flags, huge) in HUGE {
        set(&mut calls, call, not_huge(flags, huge));
    }
    // The one limit that must not be lowered: see `crate::confine::ceilings`. Who wants to leave no core is told that it is
    // so, since it is: some servers end otherwise (zabbix_agentd).
    let but_of_cores = |arg| allow([low(arg, u32::MAX, Comparison::Ne, libc::RLIMIT_CORE)]);
    set(
        &mut calls,
        Sysno::setrlimit,
        vec![but_of_cores(0), always(DONE)],
    );
    let limits = vec![but_of_cores(1), reading_limits(), always(DONE)];
    set(&mut calls, Sysno::prlimit64, limits);
    // Its flags are in memory, where no filter can look: glibc falls back to clone(2) when told that there is none.
    set(&mut calls, Sysno::clone3, vec![always(ENOSYS)]);
    set(&mut calls, Sysno::socketpair, one_of(0, &[AF_UNIX]));
    set(
        &mut calls,
        Sysno::prctl,
        one_of(0, &[PRCTL, PRCTL_OF_THE_ARCHITECTURE].concat()),
    );
    // Less what no app asks: see `floor`.
    calls.extend(plain(&[calls![ioctl]]));
    // More filters may come on top, but none that hands calls to another process to answer.
    const MODE_FILTER: u32 = libc::SECCOMP_SET_MODE_FILTER;
    const LISTENER: i32 = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as i32;
    set(
        &mut calls,
        Sysno::seccomp,
        vec![
            allow([equal(0, MODE_FILTER), without(1, LISTENER)]),
            allow([equal(0, libc::SECCOMP_SET_MODE_STRICT)]),
            allow([equal(0, libc::SECCOMP_GET_ACTION_AVAIL)]),
        ],
    );
    calls
}

/// What every part of ours calls once it has dropped its privileges.
fn stage() -> Calls {
    let mut calls = plain(&[STAGE]);
    for call in [Sysno::mmap, Sysno::mprotect] {
        set(&mut calls, call, vec![allow([without(2, PROT_EXEC)])]);
    }
    set(&mut calls, Sysno::prctl, one_of(0, PRCTL_READ_BACK));
    // A debug build looks at what it is about to close.
    set(&mut calls, Sysno::fcntl, one_of(1, &[libc::F_GETFD]));
    calls
}

/// The sidecar: opens its netfilter sockets, loads its rules, reads and tells of the traffic until the end.
#[must_use]
pub fn sidecar() -> Profile {
    let mut calls = stage();
    calls.extend(plain(&[calls![
        bind getsockname getsockopt ppoll recvfrom setsockopt
    ]]));
    #[cfg(target_arch = "x86_64")]
    calls.extend(plain(&[calls![poll]]));
    // The name of a link by its number.
    const SIOCGIFNAME: u32 = 0x8910;
    set(&mut calls, Sysno::ioctl, one_of(1, &[SIOCGIFNAME]));
    let netfilter = [equal(0, AF_NETLINK), equal(2, NETLINK_NETFILTER)];
    set(&mut calls, Sysno::socket, vec![allow(netfilter)]);
    profile("sidecar", calls)
}

/// The sidecar that gives its capability up when its rules are loaded. The call can't get anything back.
#[must_use]
pub fn sealing_sidecar() -> Profile {
    let mut sidecar = sidecar();
    sidecar.calls.extend(plain(&[calls![capset]]));
    sidecar
}

/// What a relay carries beside TCP of IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Carries {
    /// UDP.
    pub udp: bool,
    /// IPv6.
    pub ipv6: bool,
    /// Whether it dials from its clients' addresses.
    pub as_clients: bool,
}

#[cfg(test)]
impl Carries {
    pub(super) const ALL: Self = Self {
        udp: true,
        ipv6: true,
        as_clients: true,
    };
}

/// `prlimit64` that sets nothing.
fn reading_limits() -> Rule {
    allow([Test {
        arg: 2,
        mask: u64::MAX,
        is: Comparison::Eq,
        value: 0,
    }])
}

/// The relay: as the documentation of [`crate::relay`] lists it; with sockets of UDP and of IPv6 only if it has to carry
/// that, and it binds only if it dials as its clients.
#[must_use]
pub fn relay(carries: Carries) -> Profile {
    let mut calls = stage();
    calls.extend(plain(&[calls![
        accept4 connect epoll_create1 epoll_ctl epoll_pwait eventfd2 fcntl getpeername getsockname getsockopt pipe2
        recvfrom shutdown splice
    ]]));
    for (call, mut rules) in of_files() {
        if call == Sysno::fcntl {
            rules.push(always(Action::Allow));
            set(&mut calls, call, rules);
        }
    }
    let mut options = SWAPS.map(no_option).to_vec();
    options.push(always(Action::Allow));
    set(&mut calls, Sysno::setsockopt, options);
    #[cfg(target_arch = "x86_64")]
    calls.extend(plain(&[calls![epoll_wait poll]]));
    if carries.as_clients {
        calls.extend(plain(&[calls![bind]]));
    }
    let mut sockets = vec![];
    let families = [AF_INET, AF_INET6];
    for family in &families[..if carries.ipv6 { 2 } else { 1 }] {
        let kinds = [(SOCK_STREAM, IPPROTO_TCP), (SOCK_DGRAM, IPPROTO_UDP)];
        for (kind, own) in &kinds[..if carries.udp { 2 } else { 1 }] {
            // Neither MPTCP, for which see above, nor UDP-Lite, which the host's rules don't take for UDP.
            for protocol in [0, *own] {
                sockets.push(allow([
                    equal(0, *family),
                    low(1, 0xf, Comparison::Eq, *kind as u32),
                    equal(2, protocol),
                ]));
            }
        }
    }
    set(&mut calls, Sysno::socket, sockets);
    sending(&mut calls);
    calls.remove(&number(Sysno::sendmmsg));
    // By which descriptors go as well, to the supervisor, which would have to close them (`crate::protocol`).
    if !carries.udp {
        calls.remove(&number(Sysno::sendmsg));
    }
    set(&mut calls, Sysno::socketpair, one_of(0, &[AF_UNIX]));
    set(&mut calls, Sysno::ioctl, one_of(1, &[libc::FIONBIO]));
    set(&mut calls, Sysno::prlimit64, vec![reading_limits()]);
    profile("relay", calls)
}

/// The carrier of what apps connect to: a relay that has its sockets from another process. It makes none of the Internet,
/// connects none, and sends to no address, so the other end of a socket stays what it was when the socket was handed over.
#[must_use]
pub fn carrier() -> Profile {
    let mut carrier = relay(Carries::default());
    for call in [Sysno::socket, Sysno::connect] {
        carrier.calls.remove(&number(call));
    }
    // connect(2) is not the only call that connects.
    let nowhere = Test {
        arg: 4,
        mask: u64::MAX,
        is: Comparison::Eq,
        value: 0,
    };
    let already = vec![allow([without(3, libc::MSG_FASTOPEN), nowhere])];
    set(&mut carrier.calls, Sysno::sendto, already);
    set(&mut carrier.calls, Sysno::sendmsg, hands_over());
    Profile {
        name: "carrier".to_owned(),
        ..carrier
    }
}

/// The dialer of what apps connect to: as [`crate::relay::egress::dialer`] lists it.
#[must_use]
pub fn dialer(udp: bool, ipv6: bool) -> Profile {
    let mut dialer = relay(Carries {
        udp,
        ipv6,
        as_clients: false,
    });
    for call in [Sysno::accept4, Sysno::splice, Sysno::pipe2] {
        dialer.calls.remove(&number(call));
    }
    set(&mut dialer.calls, Sysno::sendmsg, hands_over());
    // To few ports, by Landlock; nothing that it binds can listen (`crate::relay::egress::ports`).
    dialer.calls.extend(plain(&[calls![bind]]));
    Profile {
        name: "dialer".to_owned(),
        ..dialer
    }
}

/// What the app's pid 1 does while its command runs: waits, reaps, passes signals on. It stays under the wider filter of
/// [`on_the_way_to`], since it starts the audit's prober by the way that the command took.
#[must_use]
pub fn init() -> Profile {
    let mut calls = stage();
    // It has descriptors to send, which the others have not.
    calls.extend(plain(&[calls![kill ppoll sendmsg wait4]]));
    #[cfg(target_arch = "x86_64")]
    calls.extend(plain(&[calls![poll]]));
    profile("init", calls)
}

/// What the process does that takes away what a stack has left: waits for a word, removes files and directories, writes one.
#[must_use]
pub fn undoer() -> Profile {
    let mut calls = stage();
    calls.extend(plain(&[calls![
        clock_nanosleep faccessat faccessat2 fcntl flock fstat fstatfs getdents64 geteuid getpid getppid lseek mkdirat mmap mprotect nanosleep openat
        pidfd_open ppoll recvfrom renameat renameat2 statfs statx unlinkat
    ]]));
    #[cfg(target_arch = "x86_64")]
    calls.extend(plain(&[calls![
        access lstat mkdir newfstatat open poll rename rmdir stat unlink
    ]]));
    #[cfg(target_arch = "aarch64")]
    calls.extend(plain(&[OLD_FILES]));
    profile("undoer", calls)
}

/// What `command` allows, and what it takes to get from dropped privileges to the `execve(2)` of a command that is to
/// run under it, whatever `command` says of that.
pub(super) fn on_the_way_to(command: &Profile) -> Profile {
    let mut way = init().calls;
    way.extend(plain(&[calls![
        clone3 close_range dup3 execve execveat fcntl getpid landlock_add_rule landlock_create_ruleset landlock_restrict_self
        openat pipe2 setsid signalfd4 waitid
    ]]));
    // Of one that has failed, its own log (`stage::ownlog`).
    way.extend(plain(&[calls![fstat fstatfs getdents64 pread64]]));
    #[cfg(target_arch = "x86_64")]
    way.extend(plain(&[calls![dup2]]));
    for (call, mut rules) in of_files() {
        if way.contains_key(&number(call)) {
            rules.push(always(Action::Allow));
            set(&mut way, call, rules);
        }
    }
    set(&mut way, Sysno::ioctl, one_of(1, &[libc::TIOCSCTTY]));
    set(&mut way, Sysno::unshare, one_of(0, &[CLONE_THREAD]));
    set(
        &mut way,
        Sysno::seccomp,
        one_of(0, &[libc::SECCOMP_SET_MODE_FILTER]),
    );
    Profile {
        name: format!("on the way to {}", command.name),
        ..either(way, command)
    }
}

/// `part`'s own, and what a program needs that reaches nothing outside its process: no socket but the part's, no
/// request to a device or a link but those to a terminal.
pub(super) fn visitor(part: &Profile) -> Profile {
    let mut program = default();
    // Nor does it fall back from native AIO to something else.
    for call in [Sysno::socket, Sysno::socketpair].iter().chain(AIO) {
        program.calls.remove(&number(*call));
    }
    // No server ends over its limit of cores in a part of ours.
    for rules in program.calls.values_mut() {
        rules.retain(|rule| rule.action != DONE);
    }
    let mut terminal = vec![low(1, 0xffff_ff00, Comparison::Eq, 0x5400)];
    terminal.extend(BAD_IOCTLS.iter().map(|bad| Test {
        is: Comparison::Ne,
        ..equal(1, *bad)
    }));
    set(&mut program.calls, Sysno::ioctl, vec![allow(terminal)]);
    Profile {
        name: format!("visitor of {}", part.name),
        ..either(part.calls.clone(), &program)
    }
}

/// Allows what either allows. `more` must have rules that allow only.
fn either(more: Calls, profile: &Profile) -> Profile {
    let mut both = profile.clone();
    for (number, mut rules) in more {
        let theirs = both.calls.entry(number).or_default();
        // First things first: what decides always needs no rule after it.
        if rules.iter().all(|rule| !rule.when.is_empty()) {
            rules.append(theirs);
        }
        *theirs = rules;
    }
    both
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_a_command_allows_all_that_the_command_may() {
        for command in [default(), strict()] {
            let way = on_the_way_to(&command);
            for (number, rules) in &command.calls {
                let mut tried = vec![[0; 6], [u64::MAX; 6]];
                for test in rules.iter().flat_map(|rule| &rule.when) {
                    for value in [test.value, test.value + 1, test.value | test.mask] {
                        tried.push([value; 6]);
                    }
                }
                for args in tried {
                    let (outer, inner) = (way.answer(*number, args), command.answer(*number, args));
                    assert!(
                        outer.allows() || !inner.allows(),
                        "{} {number} {args:x?}",
                        command.name
                    );
                }
            }
        }
    }

    /// Makes a set-user-ID or set-group-ID file, each in a way of its own.
    fn special_files() -> Vec<(Sysno, [u64; 6])> {
        let (create, tmpfile) = (libc::O_CREAT as u64, libc::O_TMPFILE as u64);
        let mut calls = vec![];
        // A stray bit in the other half of the register changes nothing for the kernel.
        for mode in [0o4755, 0o2755, 0o6000, 0o104_755, 1 << 32 | 0o4000] {
            calls.extend([
                (Sysno::fchmod, [3, mode, 0, 0, 0, 0]),
                (Sysno::fchmodat, [3, 4096, mode, 0, 0, 0]),
                (Sysno::fchmodat2, [3, 4096, mode, 0, 0, 0]),
                (Sysno::mkdirat, [3, 4096, mode, 0, 0, 0]),
                (Sysno::mknodat, [3, 4096, mode, 0, 0, 0]),
                (Sysno::openat, [3, 4096, create | 1, mode, 0, 0]),
                (Sysno::openat, [3, 4096, tmpfile | 1, mode, 0, 0]),
                (Sysno::openat2, [3, 4096, 4096, 24, 0, 0]),
                (Sysno::mq_open, [4096, create, mode, 0, 0, 0]),
                (Sysno::io_uring_setup, [1, 4096, 0, 0, 0, 0]),
            ]);
            #[cfg(target_arch = "x86_64")]
            calls.extend([
                (Sysno::chmod, [4096, mode, 0, 0, 0, 0]),
                (Sysno::creat, [4096, mode, 0, 0, 0, 0]),
                (Sysno::mkdir, [4096, mode, 0, 0, 0, 0]),
                (Sysno::mknod, [4096, mode, 0, 0, 0, 0]),
                (Sysno::open, [4096, create, mode, 0, 0, 0]),
                (Sysno::open, [4096, tmpfile, mode, 0, 0, 0]),
            ]);
        }
        calls
    }

    #[test]
    fn no_profile_lets_an_app_make_a_set_user_id_file_or_set_anothers_limits() {
        let open = Profile {
            name: "all".to_owned(),
            otherwise: Action::Allow,
            calls: Calls::new(),
            unknown: vec![],
        };
        let listed = Profile {
            otherwise: EPERM,
            calls: Sysno::iter()
                .map(|call| (number(call), vec![always(Action::Allow)]))
                .collect(),
            ..open.clone()
        };
        for (call, args) in special_files() {
            let answer = supervisor().answer(number(call), args);
            assert!(!answer.allows(), "the supervisor: {call} {args:x?}");
        }
        for profile in [default(), strict(), floored(open), floored(listed)] {
            for (call, args) in special_files() {
                let answer = profile.answer(number(call), args);
                assert!(!answer.allows(), "{}: {call} {args:x?}", profile.name);
            }
            let limits = |pid: u64, new| {
                let args = [pid, libc::RLIMIT_NOFILE.into(), new, 0, 0, 0];
                profile.answer(number(Sysno::prlimit64), args).allows()
            };
            assert!(!limits(1, 4096) && !limits(7, 4096) && !limits(u64::MAX, 4096));
            assert!(limits(0, 4096) && limits(0, 0) && limits(1, 0));
            for (call, args) in [
                (Sysno::fchmod, [3, 0o1777, 0, 0, 0, 0]),
                (Sysno::fchmodat, [3, 4096, 0o755, 0, 0, 0]),
                (Sysno::openat, [3, 4096, libc::O_CREAT as u64, 0o644, 0, 0]),
                // What is no mode, where no file is made.
                (Sysno::openat, [3, 4096, 0, u64::MAX, 0, 0]),
                (
                    Sysno::openat,
                    [3, 4096, libc::O_DIRECTORY as u64, 0o7777, 0, 0],
                ),
                (Sysno::mkdirat, [3, 4096, 0o1777, 0, 0, 0]),
            ] {
                let answer = profile.answer(number(call), args);
                assert!(answer.allows(), "{}: {call} {args:x?}", profile.name);
            }
        }
    }

    #[test]
    fn the_floor_makes_no_call_that_a_profile_has_not() {
        let none = Profile {
            otherwise: EPERM,
            ..profile("none", Calls::new())
        };
        assert_eq!(floored(none.clone()), none);
    }

    /// Arguments that its rules and the supervisor's speak of, their neighbours, and extremes.
    fn arguments(call: u32, profiles: [&Profile; 2]) -> Vec<[u64; 6]> {
        let rules = profiles
            .iter()
            .filter_map(|profile| profile.calls.get(&call));
        let tests = rules.flatten().flat_map(|rule| &rule.when);
        let values: BTreeSet<u64> = tests
            .flat_map(|test| [test.value, test.value ^ 1, test.value | test.mask])
            .chain([0, u64::MAX])
            .collect();
        let mut all = vec![];
        for a in &values {
            for b in &values {
                for c in &values {
                    all.push([*a, *b, *c, *c, *b, *a]);
                }
            }
        }
        all
    }

    #[test]
    fn nothing_below_the_supervisor_has_a_call_that_it_has_not() {
        let open = Profile {
            otherwise: Action::Allow,
            ..profile("open", Calls::new())
        };
        let named = Profile {
            calls: Sysno::iter()
                .map(|call| (number(call), vec![always(Action::Allow)]))
                .collect(),
            ..profile("named", Calls::new())
        };
        let file = |profile: Profile| floored(profile).guarded();
        let supervisor = supervisor();
        for below in [
            default(),
            strict(),
            over_a_range(default()),
            super::super::with(default(), &["set_mempolicy"]).unwrap(),
            file(open.clone()),
            file(named),
            on_the_way_to(&file(open)),
            sidecar(),
            sealing_sidecar(),
            relay(Carries::ALL),
            carrier(),
            dialer(true, true),
            init(),
            visitor(&sidecar()),
            on_the_way_to(&visitor(&sidecar())),
            on_the_way_to(&strict()),
        ] {
            for call in Sysno::iter().map(number) {
                for args in arguments(call, [&below, &supervisor]) {
                    let (outer, inner) = (supervisor.answer(call, args), below.answer(call, args));
                    let name = super::super::name(call);
                    assert!(
                        outer.allows() || !inner.allows(),
                        "{} {name:?} {args:x?}",
                        below.name
                    );
                }
            }
        }
    }

    #[test]
    fn what_no_process_of_a_stack_ever_calls_is_not_in_the_supervisors_filter() {
        let supervisor = supervisor();
        for never in [
            "acct",
            "add_key",
            "adjtimex",
            "bpf",
            "clock_adjtime",
            "clock_settime",
            "delete_module",
            "fanotify_init",
            "finit_module",
            "init_module",
            "io_uring_enter",
            "io_uring_register",
            "io_uring_setup",
            "kcmp",
            "kexec_file_load",
            "kexec_load",
            "open_by_handle_at",
            "perf_event_open",
            "pidfd_getfd",
            "process_madvise",
            "process_vm_readv",
            "process_vm_writev",
            "ptrace",
            "quotactl",
            "quotactl_fd",
            "reboot",
            "request_key",
            "settimeofday",
            "swapoff",
            "swapon",
            "syslog",
            "userfaultfd",
            "vhangup",
        ] {
            assert!(!supervisor.may_allow(never), "{never}");
            let number = super::super::number(never).unwrap();
            assert!(is_kept_from_apps(number), "{never}");
        }
        let answer = |call, args| supervisor.answer(number(call), args).allows();
        // KEYCTL_JOIN_SESSION_KEYRING by a name, and KEYCTL_GET_KEYRING_ID.
        assert!(answer(Sysno::keyctl, [1, 0, 0, 0, 0, 0]));
        assert!(!answer(Sysno::keyctl, [1, 4096, 0, 0, 0, 0]));
        assert!(!answer(Sysno::keyctl, [0, 0, 0, 0, 0, 0]));
        for (may, family, kind, protocol) in [
            (true, AF_INET, SOCK_STREAM, 0),
            (true, AF_NETLINK, libc::SOCK_RAW, NETLINK_NETFILTER),
            (true, AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_SOCK_DIAG),
            (false, AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_AUDIT),
            (false, AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_GENERIC),
            (false, AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP),
            (false, AF_INET6, libc::SOCK_RAW, libc::IPPROTO_RAW),
            (false, libc::AF_PACKET, libc::SOCK_RAW, 0),
            (false, libc::AF_VSOCK, SOCK_STREAM, 0),
        ] {
            let args = [family, kind, protocol, 0, 0, 0].map(|arg| arg as u64);
            assert_eq!(
                answer(Sysno::socket, args),
                may,
                "{family} {kind} {protocol}"
            );
        }
        let commands = [libc::F_SETLEASE, libc::F_SETLEASE + 16, libc::F_SETLK];
        let commands =
            commands.map(|command| answer(Sysno::fcntl, [3, command as u64, 0, 0, 0, 0]));
        assert_eq!(commands, [false, false, true]);
        for bad in BAD_IOCTLS {
            assert!(!answer(Sysno::ioctl, [0, bad | 1 << 32, 0, 0, 0, 0]));
        }
    }

    #[test]
    fn strict_allows_nothing_that_default_does_not() {
        let (default, strict) = (default(), strict());
        let names = strict.names();
        for name in names.iter().flatten() {
            assert!(!strict.may_allow(name) || default.may_allow(name), "{name}");
        }
        assert!(names[0].len() < default.names()[0].len());
    }

    #[test]
    fn our_own_parts_can_neither_execute_nor_map_code_nor_start_processes() {
        for part in [
            sidecar(),
            relay(Carries::ALL),
            init(),
            carrier(),
            dialer(true, true),
        ] {
            for never in [
                "execve", "execveat", "clone", "clone3", "openat", "ptrace", "setns",
            ] {
                assert!(!part.may_allow(never), "{} {never}", part.name);
            }
            let executable = [0, 4096, 7, 0x22, 0, 0];
            for call in [Sysno::mmap, Sysno::mprotect] {
                assert_eq!(
                    part.answer(number(call), executable),
                    EPERM,
                    "{}",
                    part.name
                );
                assert!(part.answer(number(call), [0, 4096, 3, 0x22, 0, 0]).allows());
            }
        }
    }

    #[test]
    fn nobody_speaks_tcp_by_a_way_that_landlock_is_not_asked_about() {
        let mptcp = |domain: i32| [domain as u64, 1, libc::IPPROTO_MPTCP as u64, 0, 0, 0];
        for profile in [
            default(),
            strict(),
            relay(Carries::ALL),
            visitor(&relay(Carries::ALL)),
            sidecar(),
        ] {
            for domain in [AF_INET, AF_INET6] {
                let answer = profile.answer(number(Sysno::socket), mptcp(domain));
                assert!(!answer.allows(), "{}", profile.name);
            }
            if profile.name == "sidecar" {
                // It has no socket of TCP.
                continue;
            }
            for (call, flags) in SENDING {
                let mut args = [0; 6];
                args[usize::from(flags)] = FASTOPEN as u64 | 0x4000;
                let answer = profile.answer(number(call), args);
                assert!(!answer.allows(), "{} {call:?}", profile.name);
            }
        }
    }

    #[test]
    fn a_socket_is_of_a_protocol_that_is_known_in_every_profile() {
        // As a file may have it: everything, by one rule, or by none.
        let file = |calls: &[Sysno]| Profile {
            name: "file".to_owned(),
            otherwise: Action::Allow,
            calls: plain(&[calls]),
            unknown: vec![],
        };
        let (all, named) = (
            file(&[]),
            file(&[Sysno::socket, Sysno::setsockopt, Sysno::sendto]),
        );
        for profile in [default(), strict(), all.guarded(), named.guarded()] {
            let socket = |family: i32, kind: i32, protocol: i32| {
                let args = [family, kind, protocol, 0, 0, 0].map(|arg| arg as u64);
                profile.answer(number(Sysno::socket), args).allows()
            };
            for family in [AF_INET, AF_INET6] {
                for flags in [0, libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK] {
                    for (kind, protocol) in [(1, 0), (1, 6), (2, 0), (2, 17)] {
                        assert!(socket(family, kind | flags, protocol), "{}", profile.name);
                    }
                    // SMC, MPTCP, SCTP, DCCP, L2TP, UDP-Lite, ICMP; SOCK_SEQPACKET, SOCK_RAW, SOCK_DCCP.
                    for protocol in [256, 262, 132, 33, 115, 136, 1, 58] {
                        assert!(!socket(family, 1 | flags, protocol), "{protocol}");
                        assert!(!socket(family, 2 | flags, protocol), "{protocol}");
                    }
                    for kind in [3, 4, 5, 6, 10] {
                        assert!(!socket(family, kind | flags, 0), "{kind}");
                    }
                }
            }
            // PACKET, RDS, TIPC, ALG, VSOCK, KCM, QIPCRTR, SMC, XDP, MCTP.
            for family in [17, 21, 30, 38, 40, 41, 42, 43, 44, 45] {
                assert!(!socket(family, 1, 0) && !socket(family, 2, 0), "{family}");
            }
            let option = |level: i32, name: i32| {
                let args = [3, level, name, 0, 0, 0].map(|arg| arg as u64);
                profile.answer(number(Sysno::setsockopt), args).allows()
            };
            assert!(option(libc::SOL_SOCKET, libc::SO_REUSEADDR) && option(6, libc::TCP_NODELAY));
            assert!(!option(6, libc::TCP_ULP));
            let fast = [3, 0, 0, FASTOPEN as u64, 0, 0];
            assert!(!profile.answer(number(Sysno::sendto), fast).allows());
        }
        let none = Profile {
            otherwise: EPERM,
            ..file(&[])
        };
        assert_eq!(none.clone().guarded(), none);
    }

    #[test]
    fn who_only_talks_sends_no_descriptor() {
        let sends =
            |profile: Profile| profile.may_allow("sendmsg") || profile.may_allow("sendmmsg");
        assert!(!sends(sidecar()) && !sends(relay(Carries::default())));
        // The addresses of datagrams come and go with that call.
        assert!(sends(relay(Carries::ALL)));
    }

    #[test]
    fn a_carrier_reaches_nothing_but_what_it_was_handed() {
        let carrier = carrier();
        for never in ["socket", "connect", "bind", "listen", "sendmmsg"] {
            assert!(!carrier.may_allow(never), "{never}");
        }
        let fast = libc::MSG_FASTOPEN as u64;
        let answer = |call, args| carrier.answer(number(call), args).allows();
        for (flags, address, may) in [(0, 0, true), (fast, 0, false), (0, 4096, false)] {
            assert_eq!(answer(Sysno::sendto, [3, 4096, 1, flags, address, 16]), may);
        }
        assert!(answer(Sysno::sendmsg, [3, 4096, 0, 0, 0, 0]));
        for part in [carrier.clone(), dialer(true, true), relay(Carries::ALL)] {
            let fast_open = part.answer(number(Sysno::sendmsg), [3, 4096, fast, 0, 0, 0]);
            assert!(!fast_open.allows(), "{}", part.name);
        }
        assert!(!dialer(true, true).may_allow("accept4"));
        assert!(!dialer(true, true).may_allow("listen"));
    }

    #[test]
    fn a_relay_keeps_the_filters_of_its_listening_sockets() {
        for carries in [Carries::default(), Carries::ALL] {
            let relay = relay(carries);
            for (option, may) in [
                (libc::SO_ATTACH_FILTER, false),
                (libc::SO_DETACH_FILTER, false),
                (libc::SO_ATTACH_BPF, false),
                (libc::SO_LINGER, true),
            ] {
                let args = [3, libc::SOL_SOCKET, option, 0, 0, 0].map(|arg| arg as u64);
                let answer = relay.answer(number(Sysno::setsockopt), args);
                assert_eq!(answer.allows(), may, "{option}");
            }
        }
    }

    #[test]
    fn a_visitor_gets_no_socket_that_the_part_has_not() {
        let sockets = |domain: i32, protocol: i32| [domain as u64, 1, protocol as u64, 0, 0, 0];
        for (part, netfilter) in [
            (sidecar(), true),
            (relay(Carries::default()), false),
            (relay(Carries::ALL), false),
        ] {
            let visitor = visitor(&part);
            assert!(visitor.may_allow("execve"));
            for domain in 0..46 {
                for protocol in [0, 6, 12, 17] {
                    let args = sockets(domain, protocol);
                    assert_eq!(
                        visitor.answer(number(Sysno::socket), args),
                        part.answer(number(Sysno::socket), args)
                    );
                }
            }
            let args = sockets(AF_NETLINK, NETLINK_NETFILTER);
            assert_eq!(
                visitor.answer(number(Sysno::socket), args).allows(),
                netfilter
            );
            // SIOCSIFFLAGS, which works on a socket of any family
            assert_eq!(
                visitor.answer(number(Sysno::ioctl), [3, 0x8914, 0, 0, 0, 0]),
                EPERM
            );
        }
    }

    #[test]
    fn a_profile_survives_json() {
        for profile in [default(), strict(), sidecar()] {
            let json = serde_json::to_string(&profile).unwrap();
            assert_eq!(serde_json::from_str::<Profile>(&json).unwrap(), profile);
        }
    }
}

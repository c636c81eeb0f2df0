//! Every key of `lrpns.toml`: its name, what it takes and an example. The readers take their words from here, so a key
//! is known exactly when it is in one of these tables.

/// One key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) expected: &'static str,
    pub(super) example: &'static str,
}

macro_rules! keys {
    ($($const:ident = $name:literal: $expected:expr, $example:expr;)*) => {
        $(pub(super) const $const: Key = Key { name: $name, expected: $expected, example: $example };)*
    };
}

keys! {
    NAME = "name": "a name of letters, digits, `-` and `_`, at most 48", r#"name = "customerA""#;
    NETWORK = "network": "a table", r#"[network]"#;
    SIDECAR = "sidecar": "a table", r#"[sidecar]"#;
    RECORD = "log": "a table with `to`, `dir`, `size` and `age`", r#"[log]"#;
    APP = "app": "a table, or several tables `[app.NAME]`", r#"[app]"#;
    VARS = "vars": "a table of strings", r#"[vars]"#;

    SUBNET = "subnet": "an IPv4 network with a prefix length from 8 to 30", r#"subnet = "172.18.0.0/24""#;
    IPV6 = "ipv6": r#""off" or an IPv6 prefix with a length from 8 to 126"#, r#"ipv6 = "fd00:18::/64""#;

    SIDECAR_ADDRESS = "address": "an IPv4 address of the subnet", r#"address = "172.18.0.33""#;
    LOG = "log": r#""off", "connections" or "packets""#, r#"log = "connections""#;
    SEAL = "seal": "true or false", "seal = false";
    RULES = "rules": "the path of a file in nft's syntax", r#"rules = "extra.nft""#;

    TO = "to": r#""auto", "file", "journal", "both" or "off""#, r#"to = "file""#;
    DIR = "dir": "the absolute path of a directory", r#"dir = "/var/log/lrpns""#;
    SIZE = "size": "a size in bytes or with K, M or G, at least 64K", r#"size = "8M""#;
    AGE = "age": "a time in m, h or d, at most 3650d", r#"age = "7d""#;

    APP_ADDRESS = "address": "an IPv4 address of the subnet", r#"address = "172.18.0.23""#;
    ROOTFS = "rootfs":
        "builtin:webapp, host, dir:PATH, oci:LAYOUT[:TAG], oci-archive:FILE, docker-archive:FILE or image:FILE",
        r#"rootfs = "host""#;
    COMMAND = "command": "the program (absolute, or a bare name) and its arguments", r#"command = ["/webapp"]"#;
    USER = "user": "a name of the root's /etc/passwd, or a number", r#"user = "www-data""#;
    GROUP = "group": "a name of the root's /etc/group, or a number", r#"group = "www-data""#;
    IDS = "ids": r#""one" or "range""#, r#"ids = "one""#;
    WORKDIR = "workdir": "an absolute path", r#"workdir = "/srv/app""#;
    ENV = "env": "a table of names and strings", r#"env = { PROVIDER = "world" }"#;
    PUBLISH = "publish": super::values::PUBLISH, r#"publish = ["0.0.0.0:5000:5000/tcp"]"#;
    WAIT = "wait": "true or false", "wait = false";
    START_TIMEOUT = "start_timeout": "a time in ms, s or m, at most 60m", r#"start_timeout = "60s""#;
    LISTEN = "listen": "a list of TCP ports from 1 to 65535, or 0 for whichever is free", r#"listen = [6379]"#;
    VIA = "via": r#""auto", "dnat", "relay" or "socket""#, r#"via = "auto""#;
    SOURCE = "source": r#""sidecar", "client" or "localhost""#, r#"source = "sidecar""#;
    EGRESS = "egress": "a list of `PROTOCOL ADDRESS[/LENGTH]:PORT[-PORT]`, the address of IPv6 in brackets", r#"egress = ["tcp 192.0.2.10:5432"]"#;
    CONNECT = "connect": "a list of `APP:PORT[-PORT][/tcp|/udp]`, apps of this file", r#"connect = ["db:5432"]"#;
    AFTER = "after": r#"a list of apps of this file, or a table of them with "started", "healthy" or "done" for each"#, r#"after = { db = "started", migrate = "done" }"#;
    JOB = "job": "true or false", "job = true";
    FORKS = "forks": "true or false", "forks = true";
    ALLOW = "allow": "a list of addresses, or ranges of them, of clients", r#"allow = ["192.0.2.0/24", "2001:db8::/64", "127.0.0.1"]"#;
    RATE = "rate": r#""off" or NUMBER/second, /minute or /hour, with " per client" or without"#, r#"rate = "off""#;
    TMPFS = "tmpfs": super::values::TMPFS, r#"tmpfs = ["/tmp:16M"]"#;
    VOLUMES = "volumes": super::values::VOLUME, r#"volumes = ["/srv/data:/data:ro"]"#;
    SOCKETS = "sockets": super::values::SOCKET, r#"sockets = ["/run/postgresql:/run/postgresql"]"#;
    SECRETS = "secrets": super::values::SECRET, r#"secrets = ["tls.key=/etc/letsencrypt/live/example.org/privkey.pem"]"#;
    HEALTH = "health": "a table with `http`, `tcp` or `command`", r#"health = { http = "/", interval = "5s" }"#;
    RESTART = "restart": r#""no", "on-failure" or "always", or a table with `policy`, `max` and `window`"#, r#"restart = { policy = "on-failure", max = 5, window = "1m" }"#;
    STOP_SIGNAL = "stop_signal": "the name of a signal", r#"stop_signal = "SIGQUIT""#;
    STOP_TIMEOUT = "stop_timeout": "a time in ms, s or m, at most 60m", r#"stop_timeout = "30s""#;
    REPLACE = "replace": r#""rolling" or "stop-first""#, r#"replace = "rolling""#;
    SECCOMP = "seccomp": r#""default", "strict", either with calls more ("default+CALL+CALL"), or the path of a profile in Docker's, Podman's or the OCI's JSON format"#, r#"seccomp = "default""#;
    LIMITS = "limits": "a table with `memory`, `pids` and `cpu`", r#"limits = { memory = "256M", pids = 64, cpu = 1.0 }"#;

    HTTP = "http": "the path of an URL", r#"http = "/""#;
    TCP = "tcp": "true or false", "tcp = true";
    CHECK = "command": "the program (absolute, or a bare name) and its arguments", r#"command = ["pg_isready"]"#;
    PORT = "port": "a TCP port of the app's: one that it publishes, one of `listen`, or one that others connect to", "port = 8080";
    INTERVAL = "interval": "a time in ms, s or m, at most 60m", r#"interval = "5s""#;
    TIMEOUT = "timeout": "a time in ms, s or m, at most 60m", r#"timeout = "5s""#;
    RETRIES = "retries": "a number from 1 to 1000", "retries = 3";
    START_PERIOD = "start_period": "a time in ms, s or m, at most 60m", r#"start_period = "60s""#;
    ON_UNHEALTHY = "on_unhealthy": r#""nothing" or "restart""#, r#"on_unhealthy = "restart""#;

    POLICY = "policy": r#""no", "on-failure" or "always""#, r#"policy = "on-failure""#;
    MAX = "max": "a number from 0 to 1000", "max = 5";
    WINDOW = "window": "a time in ms, s or m, at most 60m", r#"window = "1m""#;

    MEMORY = "memory": "a size in bytes or with K, M or G, at least 4M", r#"memory = "256M""#;
    PIDS = "pids": "a number from 2: lrpns' own first process is one", "pids = 64";
    CPU = "cpu": "a number of processors from 0.01", "cpu = 1.0";
}

/// The keys of the file itself.
pub(super) const ROOT_KEYS: &[Key] = &[NAME, NETWORK, SIDECAR, RECORD, APP, VARS];
/// The keys of `[network]`.
pub(super) const NETWORK_KEYS: &[Key] = &[SUBNET, IPV6];
/// The keys of `[sidecar]`.
pub(super) const SIDECAR_KEYS: &[Key] = &[SIDECAR_ADDRESS, LOG, SEAL, RULES];
/// The keys of `[log]`.
pub(super) const RECORD_KEYS: &[Key] = &[TO, DIR, SIZE, AGE];
/// The keys of `[app]` and `[app.NAME]`.
pub(super) const APP_KEYS: &[Key] = &[
    APP_ADDRESS,
    ROOTFS,
    COMMAND,
    USER,
    GROUP,
    IDS,
    WORKDIR,
    ENV,
    PUBLISH,
    WAIT,
    START_TIMEOUT,
    LISTEN,
    VIA,
    SOURCE,
    EGRESS,
    CONNECT,
    AFTER,
    JOB,
    FORKS,
    ALLOW,
    RATE,
    TMPFS,
    VOLUMES,
    SOCKETS,
    SECRETS,
    HEALTH,
    RESTART,
    STOP_SIGNAL,
    STOP_TIMEOUT,
    REPLACE,
    LIMITS,
    SECCOMP,
];
/// The keys of `health`.
pub(super) const HEALTH_KEYS: &[Key] = &[
    HTTP,
    TCP,
    CHECK,
    PORT,
    INTERVAL,
    TIMEOUT,
    RETRIES,
    START_PERIOD,
    ON_UNHEALTHY,
];
/// The keys of `restart`.
pub(super) const RESTART_KEYS: &[Key] = &[POLICY, MAX, WINDOW];
/// The keys of `limits`.
pub(super) const LIMITS_KEYS: &[Key] = &[MEMORY, PIDS, CPU];

/// Where a key belongs that was found elsewhere, and the key.
pub(super) fn home(name: &str) -> Option<(&'static str, Key)> {
    let homes = [
        // `log` is a key there, and a table at the top of the file.
        ("`[sidecar]`", SIDECAR_KEYS),
        ("the top of the file, before the first table", ROOT_KEYS),
        ("`[network]`", NETWORK_KEYS),
        ("`[log]`", RECORD_KEYS),
        ("`[app]`", APP_KEYS),
        ("`health`", HEALTH_KEYS),
        ("`restart`", RESTART_KEYS),
        ("`limits`", LIMITS_KEYS),
    ];
    homes.into_iter().find_map(|(home, keys)| {
        let key = keys.iter().find(|key| key.name == name)?;
        Some((home, *key))
    })
}

//! `lrpns audit` finds nothing in the built-in example, and finds each weakness that is made on purpose: the right
//! probes fail, and no other.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod support;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;

use nix::sched::CloneFlags;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rustix::fs::CWD;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};
use serde_json::Value;
use support::lab::{Lab, describe};
use support::look;

/// Runs the audit; the probes that failed or are unknown, as `id` or `id?`.
fn audit(lab: &Lab, stack: &str) -> BTreeSet<String> {
    let output = lab.lrpns(&["audit", stack, "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", describe(&output)));
    let mut bad = BTreeSet::new();
    for group in report["groups"].as_array().unwrap() {
        for probe in group["probes"].as_array().unwrap() {
            let id = probe["id"].as_str().unwrap();
            match probe["result"].as_str().unwrap() {
                "fail" => {
                    bad.insert(id.to_owned());
                }
                "unknown" => {
                    bad.insert(format!("{id}?"));
                }
                _ => {}
            }
            if probe["result"] == "unknown" {
                eprintln!("unknown: {id}: {}", probe["happened"]);
            }
        }
    }
    let wanted = i32::from(!bad.is_empty());
    assert_eq!(output.status.code(), Some(wanted), "{}", describe(&output));
    bad
}

/// A stack that is up, and what its audit said before anything was weakened.
struct Up {
    lab: Lab,
    before: BTreeSet<String>,
}

/// The built-in example.
fn up() -> Up {
    up_with(None)
}

fn up_with(config: Option<&str>) -> Up {
    let lab = Lab::new();
    match config {
        Some(text) => {
            std::fs::create_dir(lab.dir.path().join("data")).unwrap();
            let file = lab.write("lrpns.toml", text);
            lab.lrpns_ok(&["up", "-d", "-f", file.to_str().unwrap()]);
        }
        None => drop(lab.lrpns_ok(&["up", "-d", "--demo"])),
    }
    let before = audit(&lab, "customerA");
    Up { lab, before }
}

impl Up {
    fn pid(&self, part: &str, which: &str) -> i64 {
        let status = self.lab.status("customerA");
        let parts = status["parts"].as_array().unwrap();
        let part = parts.iter().find(|p| p["name"] == part).unwrap();
        part[which].as_i64().unwrap()
    }

    /// Runs a program in the network namespace of a part, with the lab's files.
    fn in_network(&self, part: &str, command: &[&str]) {
        let pid = self.pid(part, "init").to_string();
        self.lab
            .ok(&[&["nsenter", "-t", &pid, "-n", "--"], command].concat());
    }

    /// Exactly these fail now that did not before.
    #[track_caller]
    fn caught(&self, expected: &[&str]) {
        let after = audit(&self.lab, "customerA");
        let new: Vec<&str> = after.difference(&self.before).map(String::as_str).collect();
        assert_eq!(new, expected);
    }

    /// Does `work` in the mount namespace of an app, as the host's root.
    fn in_mounts(&self, app: &str, work: impl FnOnce() + Send + 'static) {
        let pid = self.pid(app, "pid");
        let path = self.lab.root().join(format!("proc/{pid}/ns/mnt"));
        let namespace = std::fs::File::open(path).unwrap();
        let done = std::thread::spawn(move || {
            // A thread that shares its root directory with others can't change its mount namespace (setns(2)).
            nix::sched::unshare(CloneFlags::CLONE_FS).unwrap();
            nix::sched::setns(&namespace, CloneFlags::CLONE_NEWNS).unwrap();
            work();
        });
        done.join().unwrap();
    }
}

/// What nothing but the seccomp filter keeps from an app; some kernels keep some of it back by settings of their own.
const OPEN_TO_AN_UNFILTERED_APP: [&str; 2] = ["app-personality", "app-socket-netlink"];

/// A stack that is weakened from its start, by the hook that debug builds have.
#[track_caller]
fn weakened(what: &str, expected: &[&str]) {
    assert_eq!(weakened_by(what), expected);
}

/// What is found of it that is not found of a sound one.
#[track_caller]
fn weakened_by(what: &str) -> Vec<String> {
    let sound = up();
    let lab = Lab::new();
    let variable = format!("LRPNS_TEST_WEAKEN={what}");
    lab.ok(&[
        "env",
        &variable,
        support::lab::lrpns(),
        "up",
        "-d",
        "--demo",
    ]);
    let after = audit(&lab, "customerA");
    after.difference(&sound.before).cloned().collect()
}

/// Everything that is claimed of this stack is proved, in time.
#[track_caller]
fn passes(lab: &Lab, stack: &str) {
    let output = lab.lrpns(&["audit", stack, "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", describe(&output)));
    let probes = report["groups"].as_array().unwrap().iter();
    let probes = probes.flat_map(|group| group["probes"].as_array().unwrap());
    let bad: Vec<&Value> = probes
        .filter(|probe| probe["result"] != "pass" && probe["result"] != "not-applicable")
        .collect();
    assert!(bad.is_empty(), "{bad:#?}");
    assert_eq!(report["verdict"], "pass");
    assert_eq!(output.status.code(), Some(0), "{}", describe(&output));
    eprintln!("{stack}: {} ms", report["milliseconds"]);
}

#[test]
fn the_builtin_example_passes() {
    let lab = Lab::new();
    lab.lrpns_ok(&["up", "-d", "--demo"]);
    passes(&lab, "customerA");
}

#[test]
fn nginx_in_a_root_made_from_the_hosts_passes() {
    if support::program("nginx").is_none() {
        return support::skip("servers", "nginx is not installed");
    }
    let lab = Lab::new();
    let conf = "daemon off; pid /tmp/nginx.pid; events {} http { access_log off; client_body_temp_path /tmp/b; \
                proxy_temp_path /tmp/p; fastcgi_temp_path /tmp/f; uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s; \
                server { listen 8001; root /tmp; } }";
    let script = format!("echo '{conf}' >/tmp/nginx.conf; exec nginx -e stderr -c /tmp/nginx.conf");
    let text = format!(
        "name = \"web\"\n[app]\nrootfs = \"host\"\ncommand = {}\npublish = [\"0.0.0.0:8001:8001\"]\n",
        support::look::toml_list(&["sh", "-c", &script])
    );
    support::look::up(&lab, &text);
    passes(&lab, "web");
}

/// gunicorn with Flask in the root that `scripts/rootfs webapp` builds.
#[test]
fn the_flask_root_passes() {
    let root = std::env::var_os("LRPNS_TEST_WEBAPP").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/rootfs/webapp"),
        PathBuf::from,
    );
    if !root.join("opt/webapp/app.py").is_file() {
        return support::skip("rootfs", &format!("there is no {}", root.display()));
    }
    let lab = Lab::new();
    let command = [
        "/usr/bin/python3",
        "-m",
        "gunicorn",
        "--config",
        "/opt/webapp/gunicorn.conf.py",
        "app:app",
    ];
    let text = format!(
        "name = \"flask\"\n[app]\nrootfs = \"dir:{}\"\ncommand = {}\nenv = {{ PORT = \"5000\" }}\n\
         publish = [\"0.0.0.0:5000:5000\"]\n",
        root.display(),
        support::look::toml_list(&command)
    );
    support::look::up(&lab, &text);
    passes(&lab, "flask");
}

#[test]
fn a_root_in_a_directory_passes() {
    let lab = Lab::new();
    let root = lab.dir.path().join("root");
    lab.ok(&[
        "sh",
        "-ec",
        "mkdir -p $0/usr $0/etc $0/proc $0/dev $0/tmp; ln -s usr/bin usr/lib usr/lib64 $0/; mount -o bind,ro /usr $0/usr",
        root.to_str().unwrap(),
    ]);
    let text = format!(
        "name = \"web\"\n[app]\nrootfs = \"dir:{}\"\ncommand = {}\npublish = [\"0.0.0.0:5000:5000\"]\nlisten = [6000]\n",
        root.display(),
        support::look::toml_list(&[support::look::PYTHON, "-c", support::look::TELLING])
    );
    support::look::up(&lab, &text);
    passes(&lab, "web");
}

#[test]
fn an_extra_capability_in_the_app_is_found() {
    weakened(
        "app-capability",
        &["app-cap-inside", "app-cap-sets", "members"],
    );
}

#[test]
fn an_extra_capability_in_the_sidecar_is_found() {
    // Its use is not: the seccomp filter has no raw and no packet socket.
    weakened("sidecar-capability", &["members", "sidecar-cap-sets"]);
}

#[test]
fn an_app_whose_filter_lets_everything_pass_is_found() {
    let sound = up();
    let lab = Lab::new();
    let open = lab.write("open.json", r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#);
    let text = format!(
        r#"name = "customerA"
[network]
subnet = "172.18.0.0/24"
[sidecar]
address = "172.18.0.33"
[app]
address = "172.18.0.23"
rootfs = "builtin:webapp"
publish = ["0.0.0.0:5000:5000"]
seccomp = "{}"
"#,
        open.display()
    );
    let file = lab.write("lrpns.toml", &text);
    lab.lrpns_ok(&["up", "-d", "-f", file.to_str().unwrap()]);
    let after = audit(&lab, "customerA");
    let new: Vec<&str> = after
        .difference(&sound.before)
        .map(String::as_str)
        .collect();
    for probe in ["app-personality", "app-socket-netlink"] {
        assert!(new.contains(&probe), "{probe} is missed: {new:?}");
    }
    for probe in &new {
        assert!(OPEN_TO_AN_UNFILTERED_APP.contains(probe), "{new:?}");
    }
}

#[test]
fn a_supervisor_with_power_over_the_host_is_found() {
    weakened(
        "supervisor-capability",
        &["host-capabilities", "host-mount", "host-name"],
    );
}

#[test]
fn a_supervisor_that_is_still_the_hosts_root_is_found() {
    let new = weakened_by("supervisor-id");
    assert_eq!(
        new,
        [
            "host-secrets",
            "host-settings",
            "host-signal",
            "host-stacks"
        ]
    );
}

#[test]
fn a_supervisor_that_stays_in_the_hosts_network_is_found() {
    weakened("supervisor-network", &["host-connect"]);
}

#[test]
fn a_supervisor_without_its_filter_is_found() {
    let new = weakened_by("supervisor-filter");
    // What this kernel refuses to everybody is refused all the same.
    for probe in [
        "host-filter",
        "host-ptrace",
        "host-add-key",
        "host-keyctl",
        "host-set-user-id",
        "host-sockets",
    ] {
        assert!(
            new.iter().any(|found| found == probe),
            "{probe} is missed: {new:?}"
        );
    }
    let of_the_host = new.iter().all(|probe| probe.starts_with("host-"));
    assert!(
        of_the_host && !new.iter().any(|probe| probe == "host-capabilities"),
        "{new:?}"
    );
}

#[test]
fn a_leaked_descriptor_is_found() {
    weakened("leak-descriptor", &["leak-descriptors"]);
    weakened("log-descriptors", &["sockets-log"]);
}

#[test]
fn a_leaked_variable_is_found() {
    weakened("leak-environment", &["leak-environment"]);
}

#[test]
fn a_pid_1_that_can_be_looked_into_is_found() {
    // Tracing it and taking its descriptors stay refused, by the seccomp filter.
    weakened(
        "dumpable",
        &["app-init-root", "process-init-memory", "process-see"],
    );
}

#[test]
fn an_app_without_landlock_is_found() {
    // And by nothing else: what it kept back, something else keeps back as well.
    weakened(
        "landlock",
        &[
            "landlock-abstract",
            "landlock-bind",
            "landlock-connect",
            "landlock-files",
            "landlock-signal",
        ],
    );
}

#[test]
fn an_app_without_a_part_of_landlock_is_found() {
    weakened("landlock-tcp", &["landlock-bind", "landlock-connect"]);
    weakened("landlock-files", &["landlock-files"]);
    weakened("landlock-scopes", &["landlock-abstract", "landlock-signal"]);
}

#[test]
fn a_read_only_volume_that_can_be_written_to_is_found() {
    let data = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .tempdir()
        .unwrap();
    let text = format!(
        r#"name = "customerA"
[app]
rootfs = "builtin:webapp"
publish = ["0.0.0.0:5000:5000"]
volumes = ["{}:/data:ro"]
"#,
        data.path().display()
    );
    let up = up_with(Some(&text));
    // The flags of the volume's own mount are locked, for root as well.
    let flags = rustix::mount::OpenTreeFlags::OPEN_TREE_CLONE
        | rustix::mount::OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = rustix::mount::open_tree(rustix::fs::CWD, data.path(), flags).unwrap();
    up.in_mounts("app", move || {
        rustix::mount::move_mount(
            &mount,
            "",
            rustix::fs::CWD,
            "/data",
            rustix::mount::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .unwrap();
        rustix::mount::mount_remount(
            "/data",
            rustix::mount::MountFlags::BIND
                | rustix::mount::MountFlags::NOSUID
                | rustix::mount::MountFlags::NODEV
                | rustix::mount::MountFlags::NOEXEC,
            "",
        )
        .unwrap();
    });
    up.caught(&["app-mounts-writable"]);
}

#[test]
fn a_writable_root_is_found() {
    let up = up();
    up.in_mounts("app", || {
        rustix::mount::mount_remount(
            "/",
            rustix::mount::MountFlags::BIND
                | rustix::mount::MountFlags::NOSUID
                | rustix::mount::MountFlags::NODEV
                | rustix::mount::MountFlags::NOEXEC,
            "",
        )
        .unwrap();
    });
    up.caught(&["app-root-read-only"]);
}

#[test]
fn a_tmpfs_that_executes_is_found() {
    let up = up();
    up.in_mounts("app", || {
        let flags = rustix::mount::MountFlags::BIND
            | rustix::mount::MountFlags::NOSUID
            | rustix::mount::MountFlags::NODEV;
        rustix::mount::mount_remount("/tmp", flags, "").unwrap();
    });
    up.caught(&["files-noexec"]);
}

#[test]
fn a_device_too_many_is_found() {
    let up = up();
    up.in_mounts("app", || {
        mount_new(
            "devtmpfs",
            "/dev/shm",
            MountAttrFlags::MOUNT_ATTR_RDONLY
                | MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NOEXEC,
            &[],
        );
    });
    // What is declared there can't be made full: it is not to be written to.
    up.caught(&["app-mounts-kernel", "files-devices", "files-tmpfs-size?"]);
}

#[test]
fn a_writable_mount_too_many_is_found() {
    // A root with a directory that is no mount point.
    let up = up_with(Some(
        "name = \"customerA\"\n[app]\nrootfs = \"host\"\ncommand = [\"sleep\", \"infinity\"]\n",
    ));
    up.in_mounts("app", || {
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        mount_new("tmpfs", "/etc", flags, &[("mode", "1777")]);
    });
    up.caught(&["app-mounts-writable", "files-writable"]);
}

#[test]
fn a_mount_that_honours_set_user_id_files_is_found() {
    let up = up();
    up.in_mounts("app", || {
        let flags = rustix::mount::MountFlags::BIND
            | rustix::mount::MountFlags::NOEXEC
            | rustix::mount::MountFlags::NODEV;
        rustix::mount::mount_remount("/tmp", flags, "").unwrap();
    });
    up.caught(&["app-mounts-nosuid"]);
}

#[test]
fn a_socket_that_is_made_in_a_volume_later_is_found() {
    if !support::look::machine() {
        return;
    }
    let up = up_with(Some(
        "name = \"customerA\"\n[app]\nrootfs = \"host\"\ncommand = [\"sleep\", \"infinity\"]\n\
         volumes = [\"./data:/d\"]\n",
    ));
    let path = up.lab.dir.path().join("data/later.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
    up.caught(&["sockets-host"]);
}

#[test]
fn a_file_system_of_the_kernels_is_found() {
    let up = up_with(Some(
        "name = \"customerA\"\n[app]\nrootfs = \"host\"\ncommand = [\"sleep\", \"infinity\"]\n",
    ));
    up.in_mounts("app", || {
        let flags = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        mount_new("tracefs", "/etc", flags, &[]);
    });
    up.caught(&["app-mounts-kernel"]);
}

#[test]
fn a_whole_proc_is_found() {
    let up = up();
    up.in_mounts("app", || {
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        // Of the namespace of who mounts it: the test's.
        mount_new("proc", "/proc", flags, &[]);
    });
    up.caught(&["files-proc", "files-proc-sys", "process-see"]);
}

#[test]
fn a_default_route_in_the_app_is_found() {
    let up = up();
    look::route_everywhere(&up.lab, up.pid("app", "init"));
    up.caught(&["app-routes", "net-routes"]);
}

#[test]
fn an_app_that_forwards_is_found() {
    let up = up();
    up.in_network("app", &["sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/eth0/forwarding; echo 1 > /proc/sys/net/ipv4/ip_forward"]);
    let after = audit(&up.lab, "customerA");
    // Setting it resets others (Documentation/networking/ip-sysctl.rst).
    assert!(after.contains("app-forwarding"), "{after:?}");
    up.in_network(
        "app",
        &[
            "sh",
            "-c",
            "echo 0 > /proc/sys/net/ipv4/conf/all/accept_redirects",
        ],
    );
    up.caught(&["app-forwarding"]);
}

#[test]
fn ipv6_in_the_app_is_found() {
    let up = up();
    up.in_network(
        "app",
        &[
            "sh",
            "-c",
            "echo 0 > /proc/sys/net/ipv6/conf/all/disable_ipv6",
        ],
    );
    up.caught(&["app-ipv6-off"]);
}

#[test]
fn an_accept_rule_too_many_is_found() {
    let up = up();
    up.in_network(
        "sidecar",
        &[
            "nft", "insert", "rule", "inet", "lrpns", "forward", "accept",
        ],
    );
    up.caught(&["rules-sidecar"]);
}

/// The built-in example with an uplink that ends at the relay, where nothing but the sidecar's rules refuses a packet to it.
fn up_beside_a_relay(network: &str, publish: &str) -> Up {
    up_with(Some(&format!(
        "name = \"customerA\"\n[network]\nsubnet = \"172.18.0.0/24\"\n{network}\n[app]\naddress = \"172.18.0.23\"\n\
         rootfs = \"builtin:webapp\"\npublish = [\"{publish}\"]\nvia = \"relay\"\nsource = \"client\"\n"
    )))
}

#[test]
fn rules_that_let_the_uplink_reach_an_app_are_found_by_the_packet_too() {
    let up = up_beside_a_relay("", "0.0.0.0:5000:5000");
    up.in_network(
        "sidecar",
        &[
            "nft", "insert", "rule", "inet", "lrpns", "forward", "counter", "accept",
        ],
    );
    up.in_network(
        "sidecar",
        &[
            "nft",
            "insert",
            "rule",
            "inet",
            "lrpns",
            "guard",
            "iifname",
            "uplink",
            "ip",
            "daddr",
            "172.18.0.23",
            "counter",
            "accept",
        ],
    );
    up.caught(&["in-bypass-app", "rules-sidecar"]);
}

#[test]
fn rules_that_are_gone_are_found() {
    let up = up();
    up.in_network(
        "sidecar",
        &["nft", "flush", "chain", "inet", "lrpns", "guard"],
    );
    // The chain's policy drops what no rule takes, clients included, and it has no counter that could prove it.
    up.caught(&[
        "in-control",
        "out-sidecar-published?",
        "out-sidecar-tcp?",
        "out-sidecar-udp?",
        "rules-sidecar",
    ]);
}

#[test]
fn another_element_of_a_set_is_found() {
    let up = up();
    up.in_network(
        "sidecar",
        &[
            "nft",
            "add",
            "element",
            "inet",
            "lrpns",
            "services",
            "{",
            "172.18.0.23",
            ".",
            "22",
            "}",
        ],
    );
    up.caught(&["rules-sidecar"]);
}

#[test]
fn another_table_in_the_sidecar_is_found() {
    let up = up();
    up.in_network("sidecar", &["nft", "add", "table", "ip", "other"]);
    up.caught(&["net-policies", "rules-sidecar"]);
}

/// Joins namespaces of a process, of the kinds that are named, and stays there: by itself, or as a child where the pid
/// namespace is among them; or, for `thread`, with one thread of its own only.
const JOIN: &str = r#"
import ctypes, os, signal, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
pid, how, kinds = sys.argv[1], sys.argv[2], sys.argv[3:]
fds = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY) for kind in kinds]
def join():
    for fd in fds:
        if libc.setns(fd, 0):
            raise OSError(ctypes.get_errno(), "setns")
def stay():
    libc.prctl(1, signal.SIGKILL)
    os.write(1, b"ready\n")
    os.close(1)
    signal.pause()
libc.prctl(1, signal.SIGKILL)
if how == "thread":
    def inside():
        join()
        os.write(1, b"ready\n")
        os.close(1)
        threading.Event().wait()
    threading.Thread(target=inside, daemon=True).start()
    signal.pause()
join()
if "pid" in kinds and os.fork():
    libc.prctl(1, signal.SIGKILL)
    signal.pause()
stay()
"#;

/// The kinds in the order in which they can be joined.
const EVERY_KIND: [&str; 7] = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"];

impl Up {
    /// What the audit says of processes while somebody is in some namespaces of a part.
    #[track_caller]
    fn joined(&self, part: &str, how: &str, kinds: &[&str], also: &[&str]) {
        let pid = self.pid(part, "init").to_string();
        let join = [&[look::PYTHON, "-c", JOIN, &pid, how], kinds].concat();
        let running = self.lab.start(&join);
        self.caught(&[also, &["members"]].concat());
        drop(running);
        // Whoever was there is gone, and so is the finding.
        support::lab::until("it is alone again", || {
            (audit(&self.lab, "customerA") == self.before).then_some(())
        });
    }
}

#[test]
fn somebody_in_namespaces_of_a_part_who_is_not_of_it_is_found() {
    let up = up();
    // With every capability over the app's user namespace.
    let also = ["leak-app-descriptors", "limit-process"];
    up.joined("app", "process", &EVERY_KIND, &also);
    // The host's root, where it sees the app's processes and files.
    up.joined("app", "process", &["mnt", "pid"], &[]);
    up.joined("app", "thread", &["net"], &[]);
    up.joined("sidecar", "process", &["net"], &[]);
    up.joined("sidecar", "process", &["user"], &[]);
    up.joined("app", "process", &["uts"], &[]);
}

#[test]
fn limits_of_a_user_namespace_that_were_raised_are_found() {
    let up = up();
    for (part, limit, planned, value) in [
        ("app", "max_user_namespaces", "0", "100"),
        ("relay", "max_inotify_instances", "0", "128"),
        ("sidecar", "max_net_namespaces", "64", "1000"),
    ] {
        let pid = up.pid(part, "init").to_string();
        let set = |value: &str| {
            let script = format!("echo {value} > /proc/sys/user/{limit}");
            up.lab.ok(&[
                "nsenter", "--user", "--target", &pid, "--", "sh", "-c", &script,
            ]);
        };
        set(value);
        up.caught(&["limit-user-namespace"]);
        set(planned);
        up.caught(&[]);
    }
}

#[test]
fn an_app_without_resource_limits_is_found() {
    // And the fork bomb with it, where a cgroup does not hold the number of processes.
    let sound = up();
    let lab = Lab::new();
    let variable = "LRPNS_TEST_WEAKEN=limits";
    lab.ok(&["env", variable, support::lab::lrpns(), "up", "-d", "--demo"]);
    let after = audit(&lab, "customerA");
    let new: Vec<&String> = after.difference(&sound.before).collect();
    assert!(new.iter().any(|probe| *probe == "limit-process"), "{new:?}");
    let known = ["limit-process", "limit-pids", "limit-pids?"];
    assert!(
        new.iter().all(|probe| known.contains(&probe.as_str())),
        "{new:?}"
    );
}

#[test]
fn a_leaked_socket_of_the_host_and_a_file_of_another_mount_are_found_in_the_app_itself() {
    let found = [
        "leak-app-descriptors",
        "leak-descriptors",
        "leak-part-descriptors",
    ];
    weakened("leak-everything", &found);
}

#[test]
fn files_of_the_stack_that_others_may_use_are_found() {
    let up = up();
    let state = "/run/lrpns/customerA";
    for (change, back) in [
        ("chmod 755 S", "chmod 700 S"),
        ("chmod 666 S/control.sock", "chmod 600 S/control.sock"),
        ("touch S/sock", "rm S/sock"),
        ("chown 1000 S/lock", "chown 0 S/lock"),
        (
            "mv S/plan.json /run/p; ln -s /run/p S/plan.json",
            "mv /run/p S/plan.json",
        ),
    ] {
        let run = |script: &str| up.lab.ok(&["sh", "-ec", &script.replace('S', state)]);
        run(change);
        up.caught(&["leak-state"]);
        run(back);
        up.caught(&[]);
    }
}

/// Where a mutation is made: in the network namespace of a part, or on the host.
#[derive(Clone, Copy)]
enum At {
    Part(&'static str),
    Host,
}

impl Up {
    fn shell(&self, at: At, script: &str) {
        let status = self.lab.status("customerA");
        let uplink = &status["plan"]["uplink"];
        let set = format!(
            "LINK={}; NEAR={}; FAR={}; {script}",
            uplink["host_link"].as_str().unwrap(),
            uplink["host_address"].as_str().unwrap(),
            uplink["sidecar_address"].as_str().unwrap(),
        );
        match at {
            At::Part(part) => self.in_network(part, &["sh", "-ec", &set]),
            At::Host => drop(self.lab.ok(&["sh", "-ec", &set])),
        }
    }

    /// Each change is noticed by exactly these, and gone with what takes it back.
    #[track_caller]
    fn each_is_caught(&self, mutations: &[(At, &str, &str, &[&str])]) {
        for (at, change, back, expected) in mutations {
            eprintln!("{change}");
            self.shell(*at, change);
            self.caught(expected);
            self.shell(*at, back);
        }
        self.caught(&[]);
    }
}

/// A program that may start no other is attacked by one process for each probe.
#[test]
fn a_part_that_may_start_no_process_is_proved_all_the_same() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let file = "name = \"one\"\n[app]\nrootfs = \"builtin:webapp\"\ncommand = [\"/webapp\"]\npublish = [\"127.0.0.1:5000:5000\"]\nseccomp = \"strict\"\n";
    look::up(&lab, file);
    let report = lab.lrpns(&["audit", "one", "--json"]);
    assert_eq!(look::findings(&report.stdout), [""; 0]);
}

#[test]
fn two_audits_of_a_stack_wait_for_each_other() {
    if !look::machine() {
        return;
    }
    let up = up();
    let program = env!("CARGO_BIN_EXE_lrpns");
    let audits = format!(
        "for i in 1 2 3; do {program} audit customerA --json >report$i & done; wait; cat report1 report2 report3"
    );
    let said = up
        .lab
        .ok(&["sh", "-c", &format!("cd $(mktemp -d); {audits}")]);
    let reports = serde_json::Deserializer::from_str(&said).into_iter::<serde_json::Value>();
    let verdicts: Vec<_> = reports
        .map(|report| report.unwrap()["verdict"].clone())
        .collect();
    assert_eq!(verdicts, ["pass", "pass", "pass"]);
    // One that was stopped is named, and not waited for long.
    let hold = "import fcntl, os, signal\n\
                fcntl.flock(os.open('/run/lrpns/customerA', os.O_RDONLY), fcntl.LOCK_EX)\n\
                os.write(1, b'ready\\n')\n\
                os.close(1)\n\
                os.kill(os.getpid(), signal.SIGSTOP)";
    let stopped = up.lab.start(&[look::PYTHON, "-c", hold]);
    // It says so before it stops: by then the audit waits, and looks again.
    let said = up.lab.lrpns(&["audit", "customerA"]);
    let said = String::from_utf8_lossy(&said.stderr);
    assert!(said.contains("was stopped (SIGSTOP)"), "{said}");
    drop(stopped);
}

#[test]
fn a_link_an_address_a_neighbour_and_a_route_too_many_are_found() {
    let (app, sidecar, relay) = (At::Part("app"), At::Part("sidecar"), At::Part("relay"));
    up().each_is_caught(&[
        (
            sidecar,
            "ip link add extra type veth",
            "ip link del extra",
            &["net-links", "net-settings"],
        ),
        (
            sidecar,
            "ip link add link uplink name over0 type macvlan",
            "ip link del over0",
            &["net-links", "net-settings"],
        ),
        (
            sidecar,
            "ip link property add dev uplink altname other",
            "ip link property del dev uplink altname other",
            &["net-links"],
        ),
        (
            relay,
            "ip link set $LINK promisc on",
            "ip link set $LINK promisc off",
            &["net-links"],
        ),
        (
            sidecar,
            "ip addr add 172.18.0.99/32 dev customerA",
            "ip addr del 172.18.0.99/32 dev customerA",
            &["net-addresses", "net-routes"],
        ),
        (
            app,
            "ip neigh add 172.18.0.99 lladdr 02:00:00:00:00:99 nud permanent dev eth0",
            "ip neigh del 172.18.0.99 dev eth0",
            &["net-neighbours"],
        ),
        (
            app,
            "ip neigh add 172.18.0.98 lladdr 02:00:00:00:00:98 nud noarp dev eth0",
            "ip neigh del 172.18.0.98 dev eth0",
            &["net-neighbours"],
        ),
        (
            sidecar,
            "ip neigh add proxy 172.18.0.99 dev customerA",
            "ip neigh del proxy 172.18.0.99 dev customerA",
            &["net-neighbours"],
        ),
        (
            sidecar,
            "bridge fdb add 02:00:00:00:00:99 dev port0 master static",
            "bridge fdb del 02:00:00:00:00:99 dev port0 master",
            &["net-neighbours"],
        ),
        (
            sidecar,
            "ip route add 203.0.113.0/24 via $NEAR dev uplink table 77",
            "ip route del 203.0.113.0/24 table 77",
            &["net-routes"],
        ),
        (
            relay,
            "ip route add 203.0.113.0/24 via $FAR dev $LINK",
            "ip route del 203.0.113.0/24",
            &["in-host-route", "net-routes"],
        ),
        (
            sidecar,
            "ip rule add from 172.18.0.23 lookup 77",
            "ip rule del from 172.18.0.23 lookup 77",
            &["net-rules"],
        ),
        (
            relay,
            "ip rule add pref 1 fwmark 7 lookup main",
            "ip rule del pref 1",
            &["net-rules"],
        ),
    ]);
}

#[test]
fn what_decides_about_packets_elsewhere_than_in_the_rules_is_found() {
    let (app, sidecar) = (At::Part("app"), At::Part("sidecar"));
    up().each_is_caught(&[
        (
            sidecar,
            "tc qdisc add dev uplink clsact",
            "tc qdisc del dev uplink clsact",
            &["net-filters"],
        ),
        (
            app,
            "tc qdisc add dev eth0 root pfifo",
            "tc qdisc del dev eth0 root",
            &["net-filters"],
        ),
        (
            app,
            "nft add table inet mine",
            "nft delete table inet mine",
            &["net-policies"],
        ),
        (
            sidecar,
            "ip xfrm policy add src 0.0.0.0/0 dst 203.0.113.0/24 dir out action allow",
            "ip xfrm policy flush",
            &["net-policies"],
        ),
        (
            sidecar,
            "ip nexthop add id 7 blackhole",
            "ip nexthop del id 7",
            &["net-policies"],
        ),
        (
            sidecar,
            "nft 'add table netdev lrpns'",
            "nft 'delete table netdev lrpns'",
            &["net-policies", "rules-sidecar"],
        ),
    ]);
}

#[test]
fn a_setting_of_one_link_is_found() {
    let (app, sidecar, relay) = (At::Part("app"), At::Part("sidecar"), At::Part("relay"));
    let set = |link: &str, name: &str, value: &str| {
        format!("echo {value} > /proc/sys/net/ipv4/conf/{link}/{name}")
    };
    let up = up();
    for (at, link, name, value, planned) in [
        (app, "eth0", "route_localnet", "1", "0"),
        (app, "lo", "route_localnet", "1", "0"),
        (sidecar, "uplink", "accept_redirects", "1", "0"),
        (sidecar, "customerA", "proxy_arp", "1", "0"),
        (sidecar, "port0", "rp_filter", "0", "1"),
        (relay, "$LINK", "accept_local", "1", "0"),
    ] {
        let (change, back) = (set(link, name, value), set(link, name, planned));
        up.each_is_caught(&[(at, &change, &back, &["net-settings"])]);
    }
}

/// A socket that hears what passes, or listens, in a network namespace in which its process is not any more.
const SOCKET: &str = r#"
import ctypes, os, signal, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(1, signal.SIGKILL)
home = os.open("/proc/self/ns/net", os.O_RDONLY)
there = os.open(f"/proc/{sys.argv[1]}/ns/net", os.O_RDONLY)
assert libc.setns(there, 0) == 0
if sys.argv[2] == "packet":
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
elif sys.argv[2] == "raw":
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
else:
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM if sys.argv[2] == "tcp" else socket.SOCK_DGRAM)
    s.bind(("0.0.0.0", 4444))
    if sys.argv[2] == "tcp":
        s.listen()
assert libc.setns(home, 0) == 0
os.write(1, b"ready\n")
os.close(1)
signal.pause()
"#;

#[test]
fn a_socket_of_somebody_else_in_a_parts_network_is_found() {
    let up = up();
    for (part, kind) in [
        ("app", "tcp"),
        ("app", "udp"),
        ("sidecar", "packet"),
        ("app", "raw"),
        ("sidecar", "udp"),
    ] {
        let pid = up.pid(part, "init").to_string();
        let holder = up.lab.start(&[look::PYTHON, "-c", SOCKET, &pid, kind]);
        up.caught(&["net-sockets"]);
        drop(holder);
        support::lab::until("it is gone", || {
            (audit(&up.lab, "customerA") == up.before).then_some(())
        });
    }
}

/// The built-in example where the host forwards: the uplink ends there.
fn up_forwarding() -> Up {
    let lab = Lab::forwarding();
    lab.lrpns_ok(&["up", "-d", "--demo"]);
    let before = audit(&lab, "customerA");
    Up { lab, before }
}

#[test]
fn what_takes_the_uplinks_end_on_the_host_over_is_found() {
    let up = up_forwarding();
    let conf = "/proc/sys/net/ipv4/conf/$LINK";
    up.each_is_caught(&[
        (
            At::Host,
            "ip link add link $LINK name over0 type macvlan",
            "ip link del over0",
            &["net-links"],
        ),
        (
            At::Host,
            "ip addr add 203.0.113.7/32 dev $LINK",
            "ip addr del 203.0.113.7/32 dev $LINK",
            &["in-host-route", "net-addresses"],
        ),
        (
            At::Host,
            "tc qdisc add dev $LINK clsact",
            "tc qdisc del dev $LINK clsact",
            &["net-filters"],
        ),
        (
            At::Host,
            &format!("echo 1 > {conf}/route_localnet"),
            &format!("echo 0 > {conf}/route_localnet"),
            &["net-settings"],
        ),
        (
            At::Host,
            &format!("echo 1 > {conf}/proxy_arp"),
            &format!("echo 0 > {conf}/proxy_arp"),
            &["net-settings"],
        ),
    ]);
    // Nothing gets through any more, and the audit says why.
    up.shell(
        At::Host,
        "ip link add br0 type bridge; ip link set br0 up; ip link set $LINK master br0",
    );
    let after = audit(&up.lab, "customerA");
    assert!(
        after.contains("net-links") && after.contains("in-control"),
        "{after:?}"
    );
    up.shell(At::Host, "ip link set $LINK nomaster");
    up.caught(&[]);
    // Under another name no rule by name knows it.
    up.shell(
        At::Host,
        "ip link set $LINK down; ip link set $LINK name eth7; ip link set eth7 up",
    );
    let after = audit(&up.lab, "customerA");
    assert!(after.contains("net-links"), "{after:?}");
}

#[test]
fn a_bridge_port_that_is_not_isolated_is_found() {
    let up = up();
    up.in_network(
        "sidecar",
        &[
            "ip",
            "link",
            "set",
            "port0",
            "type",
            "bridge_slave",
            "isolated",
            "off",
        ],
    );
    up.caught(&["bridge-ports"]);
}

#[test]
fn a_neighbour_entry_that_can_be_changed_is_found() {
    let up = up();
    // The right address, but one that ARP may change.
    let status = up.lab.status("customerA");
    let mac = status["plan"]["apps"][0]["mac"].as_str().unwrap();
    up.in_network(
        "sidecar",
        &[
            "ip",
            "neigh",
            "replace",
            "172.18.0.23",
            "dev",
            "customerA",
            "lladdr",
            mac,
            "nud",
            "reachable",
        ],
    );
    up.caught(&["arp-static", "net-neighbours"]);
}

#[test]
fn a_route_to_the_subnet_where_the_uplink_ends_is_found() {
    let up = up();
    let status = up.lab.status("customerA");
    let uplink = &status["plan"]["uplink"];
    let (link, via) = (
        uplink["host_link"].as_str().unwrap(),
        uplink["sidecar_address"].as_str().unwrap(),
    );
    let route = ["ip", "route", "add", "172.18.0.0/24", "via", via];
    up.in_network("relay", &[&route[..], &["dev", link, "onlink"]].concat());
    up.caught(&["in-host-route", "net-routes"]);
}

#[test]
fn an_app_that_does_not_answer_is_no_proof_of_anything() {
    let up = up();
    let pid = up.pid("app", "pid").to_string();
    up.in_network("app", &["ip", "link", "set", "eth0", "down"]);
    let after = audit(&up.lab, "customerA");
    assert!(after.contains("in-control"), "{after:?}, pid {pid}");
}

#[test]
fn two_apps_have_no_way_to_each_other() {
    let up = up_with(Some(TWO_APPS));
    let report = up.lab.lrpns(&["audit", "customerA", "--json"]);
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    let found: Vec<&str> = report["groups"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|group| group["probes"].as_array().unwrap())
        .filter(|probe| probe["id"] == "out-other-app")
        .map(|probe| probe["result"].as_str().unwrap())
        .collect();
    assert_eq!(found, ["pass", "pass"]);
}

const TWO_APPS: &str = r#"
name = "customerA"
[app.one]
rootfs = "builtin:webapp"
command = ["/webapp"]
env = { PORT = "5000" }
publish = ["127.0.0.1:5001:5000"]
[app.two]
rootfs = "builtin:webapp"
command = ["/webapp"]
env = { PORT = "5000" }
publish = ["127.0.0.1:5002:5000"]
"#;

#[test]
fn the_reports_have_the_shape_that_is_documented() {
    let up = up();
    let schema = |name: &str| -> Value {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("src/audit")
            .join(name);
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    };
    for (flag, name) in [("--json", "schema.json"), ("--sarif", "sarif-parts.json")] {
        let output = up.lab.lrpns(&["audit", "customerA", flag]);
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        let problems = check(&document, &schema(name), "$");
        assert!(problems.is_empty(), "{flag}: {problems:?}");
    }
}

#[test]
fn a_scratch_stack_is_taken_down_again() {
    let up = up();
    let stacks: Value = serde_json::from_str(&up.lab.lrpns_ok(&["ps", "--json"])).unwrap();
    assert_eq!(stacks.as_array().unwrap().len(), 1, "{stacks}");
}

#[test]
fn an_audit_of_a_stack_that_does_not_run_is_refused() {
    let lab = Lab::new();
    let output = lab.lrpns(&["audit", "customerA"]);
    assert_eq!(output.status.code(), Some(1), "{}", describe(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains("does not run"));
}

/// A JSON schema's `type`, `const`, `enum`, `required`, `properties`, `items`, `minimum` and `additionalProperties: false`.
fn check(value: &Value, schema: &Value, at: &str) -> Vec<String> {
    let mut problems = vec![];
    if let Some(kind) = schema["type"].as_str() {
        let is = match kind {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "integer" => value.is_i64() || value.is_u64(),
            "boolean" => value.is_boolean(),
            other => panic!("the schema has the type {other}"),
        };
        if !is {
            return vec![format!("{at} is no {kind}")];
        }
    }
    if !schema["const"].is_null() && schema["const"] != *value {
        problems.push(format!("{at} is {value}"));
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        problems.push(format!("{at} is {value}"));
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        if value.get(name.as_str().unwrap()).is_none() {
            problems.push(format!("{at} has no {name}"));
        }
    }
    for (name, member) in value.as_object().into_iter().flatten() {
        match schema["properties"].get(name) {
            Some(schema) => problems.extend(check(member, schema, &format!("{at}.{name}"))),
            None if schema["additionalProperties"] == false => {
                problems.push(format!("{at} has {name}"))
            }
            None => {}
        }
    }
    for (i, item) in value.as_array().into_iter().flatten().enumerate() {
        problems.extend(check(item, &schema["items"], &format!("{at}[{i}]")));
    }
    problems
}

/// Mounts a new file system at `path` of the calling thread's mount namespace.
fn mount_new(kind: &str, path: &str, flags: MountAttrFlags, options: &[(&str, &str)]) {
    let fs = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    for (name, value) in options {
        rustix::mount::fsconfig_set_string(&fs, *name, *value).unwrap();
    }
    rustix::mount::fsconfig_create(&fs).unwrap();
    let mount = rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, flags).unwrap();
    rustix::mount::move_mount(
        mount.as_fd(),
        "",
        CWD,
        path,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .unwrap();
}

/// The built-in example with a prefix, and published by both families.
fn up_with_ipv6() -> Up {
    up_with(Some(
        "name = \"customerA\"\n[network]\nipv6 = \"fd00:18::/64\"\n[app]\nrootfs = \"builtin:webapp\"\n\
         publish = [\"[::]:5000:5000\", \"0.0.0.0:5000:5000\"]\n",
    ))
}

#[test]
fn a_stack_with_ipv6_passes() {
    let up = up_with_ipv6();
    passes(&up.lab, "customerA");
}

#[test]
fn a_rule_that_lets_ipv6_reach_an_app_is_found_by_the_packet_too() {
    let up = up_beside_a_relay("ipv6 = \"fd00:18::/64\"", "[::]:5000:5000");
    for rule in [
        "forward counter accept",
        "guard iifname uplink ip6 daddr fd00:18::2 counter accept",
    ] {
        let words = format!("nft insert rule inet lrpns {rule}");
        up.in_network("sidecar", &words.split(' ').collect::<Vec<_>>());
    }
    up.caught(&["in-ipv6", "rules-sidecar"]);
}

#[test]
fn a_client_of_either_family_that_is_let_in_without_allow_is_found() {
    for (rule, family) in [
        ("ip saddr 192.0.2.0/24", "[::]:5000:5000"),
        ("ip6 saddr 2001:db8::/48", "0.0.0.0:5000:5000"),
    ] {
        let file = |publish: &str| {
            format!(
                "name = \"customerA\"\n[network]\nipv6 = \"fd00:18::/64\"\n[app]\nrootfs = \"builtin:webapp\"\n\
                 publish = [{publish}]\nallow = [\"10.99.0.0/24\", \"2001:db8:1::/48\"]\n"
            )
        };
        let up = up_with(Some(&file("\"[::]:5000:5000\", \"0.0.0.0:5000:5000\"")));
        assert_eq!(up.before, BTreeSet::new());
        let words = format!("nft insert rule inet lrpns forward {rule} counter accept");
        up.in_network("sidecar", &words.split(' ').collect::<Vec<_>>());
        up.caught(&["in-not-allowed", "rules-sidecar"]);
        // Where nothing of that family is published there is nobody to be let in.
        let up = up_with(Some(&file(&format!("\"{family}\""))));
        up.in_network("sidecar", &words.split(' ').collect::<Vec<_>>());
        up.caught(&["rules-sidecar"]);
    }
}

#[test]
fn an_address_of_ipv6_too_many_in_the_app_is_found() {
    let up = up_with_ipv6();
    let words = "ip -6 address add fd00:18::99/128 dev eth0 nodad";
    up.in_network("app", &words.split(' ').collect::<Vec<_>>());
    up.caught(&["app-ipv6-off", "app-routes", "net-addresses", "net-routes"]);
}

#[test]
fn an_audit_during_a_capture_takes_its_table_for_what_it_is_and_no_other() {
    let up = up();
    let mut capture = up
        .lab
        .command(&[
            support::lab::lrpns(),
            "capture",
            "customerA",
            "-w",
            "/dev/null",
        ])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(capture.stderr.take().unwrap())
        .read_line(&mut said)
        .unwrap();
    assert!(said.starts_with("capturing"), "{said}");
    up.caught(&[]);
    up.in_network("sidecar", &["nft", "add", "table", "ip", "lrpns-capture"]);
    up.caught(&["net-policies", "rules-sidecar"]);
    capture.kill().unwrap();
    capture.wait().unwrap();
}

#[test]
fn an_audit_that_is_interrupted_or_killed_leaves_no_scratch_stack() {
    let lab = Lab::new();
    lab.lrpns_ok(&["up", "-d", "--demo"]);
    let stacks = || {
        let ps: Value = serde_json::from_str(&lab.lrpns_ok(&["ps", "--json"])).unwrap();
        ps.as_array().unwrap().len()
    };
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let mut audit = audit_of_its_own_group(&lab);
        support::lab::until("the scratch stack", || (stacks() == 2).then_some(()));
        killpg(Pid::from_raw(i32::try_from(audit.id()).unwrap()), signal).unwrap();
        audit.wait().unwrap();
        support::lab::until("its end", || (stacks() == 1).then_some(()));
    }
    // At whatever moment: the time until the kill is the steps of a walk through a whole audit, and what must hold does not
    // depend on where it lands.
    for (step, all) in (0..24).flat_map(|step| [(step, false), (step, true)]) {
        let mut audit = audit_of_its_own_group(&lab);
        let wait = std::time::Duration::from_millis(step * 25);
        rustix::event::poll(&mut [], Some(&wait.try_into().unwrap())).unwrap();
        // nsenter(1) waits for the audit, or is not so far yet.
        let mut killed = children(audit.id().cast_signed());
        if all {
            // With every process that it has started itself, first of all the one that brings the scratch stack up.
            killed.extend(killed.clone().into_iter().flat_map(children));
        }
        killed.push(audit.id().cast_signed());
        for pid in killed {
            let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        audit.wait().unwrap();
        support::lab::until("the end of all but the stack", || {
            let gc = lab.lrpns(&["gc"]);
            assert!(gc.status.success(), "{}", describe(&gc));
            (stacks() == 1).then_some(())
        });
    }
    lab.lrpns_ok(&["down", "--all"]);
    support::lab::until("the last process", || {
        (!lab.run(&["ps", "-C", "lrpns"]).status.success()).then_some(())
    });
}

/// The children of a process.
fn children(pid: i32) -> Vec<i32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    children.split_whitespace().flat_map(str::parse).collect()
}

fn audit_of_its_own_group(lab: &Lab) -> std::process::Child {
    let mut audit = lab.command(&[support::lab::lrpns(), "audit", "customerA"]);
    let audit = audit.process_group(0).stdout(Stdio::null());
    audit.stderr(Stdio::null()).spawn().unwrap()
}

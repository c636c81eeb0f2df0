//! The app's root: what is in it, and that nothing in it, nor in what it was made from, leads out.
#![allow(clippy::unwrap_used)]

mod support;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::lab::{Lab, describe};
use support::look::{self, PYTHON};

/// What makes a directory a root in which the host's Python runs: its /usr, and mount points. In the lab's own mount
/// namespace, so nothing of it is left.
const MAKE_ROOT: &str = r#"
set -e
mkdir -p "$1"/usr "$1"/proc "$1"/dev "$1"/tmp "$1"/etc "$1"/opt
mount -o bind,ro /usr "$1"/usr
for name in bin sbin lib lib32 lib64 libx32; do
    [ ! -L /$name ] || cp -P /$name "$1"/
    [ -L /$name ] || [ ! -d /$name ] || { mkdir "$1"/$name; mount -o bind,ro /$name "$1"/$name; }
done
[ ! -e /etc/ld.so.cache ] || cp /etc/ld.so.cache "$1"/etc
"#;

/// A root of one's own; its path.
fn make_root(lab: &Lab) -> PathBuf {
    let root = lab.dir.path().join("root");
    lab.ok(&["sh", "-c", MAKE_ROOT, "sh", root.to_str().unwrap()]);
    root
}

/// A stack in that root whose app waits; `more` are lines of the app's.
fn file(root: &Path, more: &str) -> String {
    format!(
        "name = \"web\"\n[app]\nrootfs = \"dir:{}\"\ncommand = {}\n{more}\n",
        root.display(),
        look::toml_list(&[PYTHON, "-c", "import signal\nsignal.pause()"])
    )
}

/// `up` of what can't be brought up; what it said.
fn refused(lab: &Lab, file: &str) -> String {
    refused_with(125, lab, file)
}

fn refused_with(code: i32, lab: &Lab, file: &str) -> String {
    let mounts = lab.ok(&["cat", "/proc/self/mountinfo"]);
    let path = lab.write("refused.toml", file);
    let output = lab.lrpns(&["up", "-d", "-f", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(code), "{}", describe(&output));
    assert_eq!(lab.ok(&["cat", "/proc/self/mountinfo"]), mounts);
    assert_eq!(lab.lrpns_ok(&["ps", "--json"]).trim(), "[]");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The paths below the root of the app's process, without what the given ones hold.
fn tree(lab: &Lab, status: &Value, prune: &[&str]) -> Vec<String> {
    let root = format!("/proc/{}/root/", look::pid(status, "app"));
    let mut args = vec!["find".to_owned(), root.clone()];
    args.extend(["-mindepth", "1", "-printf", "%P\n"].map(str::to_owned));
    for path in prune {
        args.extend(["-path", &format!("{root}{path}/*"), "-prune", "-o"].map(str::to_owned));
    }
    // find wants what to look for first and what to do last.
    let printf = args.drain(4..6).collect::<Vec<_>>();
    args.extend(printf);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let mut paths: Vec<_> = lab.ok(&args).lines().map(str::to_owned).collect();
    paths.sort();
    paths
}

#[test]
fn the_builtin_root_holds_one_program_and_mount_points() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    lab.lrpns_ok(&["up", "-d", "--demo"]);
    let paths = tree(&lab, &lab.status("customerA"), &["dev", "proc"]);
    assert_eq!(paths, ["dev", "proc", "tmp", "webapp"]);
}

#[test]
fn the_host_root_holds_programs_and_an_etc_that_tells_nothing() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    look::up(&lab, &look::telling("web", "t", "5000:5000", ""));
    let found = look::attack(
        &lab,
        "web",
        "app",
        r#"
expected = {"bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin", "sys", "tmp", "usr", "var"}
never = {"shadow", "gshadow", "sudoers", "ssh", "machine-id", "fstab", "environment", "nginx", "postgresql", "cron.d", "ssl/private"}
say({
    "more in /": sorted(set(os.listdir("/")) - expected),
    "more in /etc": [name for name in sorted(never) if os.path.lexists("/etc/" + name)],
    "more in /var": os.listdir("/var"),
    "run": [os.readlink("/var/run"), os.listdir("/run"), os.listdir("/sys"), os.readlink("/etc/mtab")],
    "passwd": [line.split(":")[0] for line in open("/etc/passwd")][:2],
    "group": [line.split(":")[0] for line in open("/etc/group")][:2],
    "persons": [line for name in ("passwd", "group") for line in open("/etc/" + name) if int(line.split(":")[2]) >= 1000][:5],
    "words": [line for line in open("/etc/passwd") if line.split(":")[4] not in ("", "root")],
    "hostname": open("/etc/hostname").read(),
    "resolv.conf": open("/etc/resolv.conf").read(),
    "up": sorted(os.listdir("/..")) == sorted(os.listdir("/")),
})
"#,
    );
    assert_eq!(
        found,
        json!({
            "more in /": [], "more in /etc": [], "more in /var": ["run"], "run": ["/run", [], [], "/proc/mounts"], "passwd": ["root", "app"], "group": ["root", "app"], "words": [],
            "persons": ["app:*:1000:1000::/:/usr/sbin/nologin\n", "nobody:*:65534:65534::/nonexistent:/usr/sbin/nologin\n",
                        "app:x:1000:\n", "nogroup:x:65534:\n"],
            "hostname": "app\n", "resolv.conf": "", "up": true,
        })
    );
}

#[test]
fn no_link_of_the_hosts_programs_leads_nowhere_and_nothing_that_is_not_public_is_there() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    lab.own_etc();
    // Something private beside what is public.
    lab.ok(&[
        "sh",
        "-ec",
        "mkdir -p /etc/ssl/private /etc/pam.d
         for f in pam.d/secret ssl/private/key shadow security/opasswd; do echo private >/etc/$f; chmod 600 /etc/$f; done
         echo Europe/Berlin >/etc/timezone; ln -sf /usr/share/zoneinfo/Europe/Berlin /etc/localtime",
    ]);
    // What may hold passwords, and what a link leads to that the host has not either.
    const LEFT: &str = "/etc/environment /etc/ssl/private";
    look::up(&lab, &look::telling("web", "t", "5000:5000", ""));
    let found = look::attack(
        &lab,
        "web",
        "app",
        &r#"
left = "LEFT".split()
leading, dangling, private = set(), set(), []
for base, dirs, files in os.walk("/usr"):
    for name in dirs + files:
        path = os.path.join(base, name)
        if os.path.islink(path):
            to = os.path.normpath(os.path.join(os.path.dirname(os.path.realpath(base) + "/x"), os.readlink(path)))
            if to.startswith(("/etc/", "/var/")):
                leading.add(to)
                if not os.path.exists(path):
                    dangling.add(to)
for base, dirs, files in os.walk("/etc"):
    for name in dirs + files:
        path = os.path.join(base, name)
        if not os.path.islink(path) and not os.stat(path).st_mode & 0o004:
            private.append(path)
import ssl, socket, time
say({"leading": sorted(leading), "dangling": sorted(dangling), "private": private,
     "cas": len(ssl.create_default_context().get_ca_certs()) > 50 or not os.path.exists("/etc/ssl/certs/ca-certificates.crt"),
     "service": socket.getservbyname("https"), "protocol": socket.getprotobyname("tcp"),
     "zone": [open("/etc/timezone").read(), os.readlink("/etc/localtime"), time.tzname[0]]})
"#
        .replace("LEFT", LEFT),
    );
    let dangling: Vec<&str> = found["dangling"]
        .as_array()
        .unwrap()
        .iter()
        .map(|path| path.as_str().unwrap())
        .filter(|path| !LEFT.split(' ').any(|left| left == *path))
        // What leads nowhere on the host leads nowhere here.
        .filter(|path| lab.run(&["test", "-e", path]).status.success())
        .collect();
    assert!(dangling.is_empty(), "{dangling:?}");
    assert!(found["leading"].as_array().unwrap().len() > 5, "{found}");
    assert_eq!(found["private"], json!([]));
    assert_eq!(found["cas"], true);
    assert_eq!(
        (&found["service"], &found["protocol"]),
        (&json!(443), &json!(6))
    );
    assert_eq!(
        found["zone"],
        json!([
            "Europe/Berlin\n",
            "/usr/share/zoneinfo/Europe/Berlin",
            "CET"
        ])
    );
}

#[test]
fn what_an_app_mounts_below_var_run_is_there_and_not_in_run() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let said = lab.lrpns_ok(&[
        "run",
        "--tmpfs",
        "/var/run/x:1M",
        "--tmpfs",
        "/tmp:1M",
        "--",
        "sh",
        "-c",
        "echo a >/var/run/x/a && cat /var/run/x/a; test ! -e /run/x && echo not",
    ]);
    assert_eq!(said, "a\nnot\n");
    let said = lab.lrpns_ok(&[
        "run",
        "--tmpfs",
        "/run:1M",
        "--",
        "sh",
        "-c",
        "echo a >/var/run/a && cat /run/a",
    ]);
    assert_eq!(said, "a\n");
}

#[test]
fn a_directory_is_the_whole_root_and_read_only_whoever_owns_it() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let root = make_root(&lab);
    let text = file(&root, "");
    let path = lab.write("plan.toml", &text);
    let plan = lab.lrpns_ok(&["plan", "--json", "-f", path.to_str().unwrap()]);
    let plan: Value = serde_json::from_str(&plan).unwrap();
    let app = plan["apps"][0]["ids"]["host_id"].as_u64().unwrap() + 1;
    let token = look::token();
    // As open as can be: the app's own, writable by all, a mount of its own that is writable, a device.
    lab.ok(&[
        "sh",
        "-ec",
        &format!(
            "cd {}; mkdir open mounted; echo {token} >open/file; chmod -R a+rwX open; chown -R {app}:{app} open; chown {app}:{app} .\n\
             mount -t tmpfs -o mode=777 tmpfs mounted; touch mounted/file; chmod 666 mounted/file\n\
             mknod memory c 1 1; chmod 666 memory; ln -s /etc/shadow out; ln -s ../../../../etc/shadow up",
            root.display()
        ),
    ]);
    look::up(&lab, &text);
    let found = look::attack(
        &lab,
        "web",
        "app",
        r#"
say({
    "token": open("/open/file").read().strip(),
    "owner": os.stat("/open/file").st_uid == os.getuid(),
    "write": [tried(lambda: open(path, "w")) for path in ("/open/file", "/open/new", "/mounted/file", "/mounted/new", "/new")],
    "mode": tried(lambda: os.chmod("/open/file", 0o600)),
    "device": tried(lambda: open("/memory", "rb")),
    "out": [tried(lambda: open(path)) for path in ("/out", "/up", "/../../etc/shadow")],
})
"#,
    );
    assert_eq!(
        found,
        json!({
            "token": token, "owner": true, "write": ["EROFS", "EROFS", "EROFS", "EROFS", "EROFS"], "mode": "EROFS",
            "device": "EACCES", "out": ["ENOENT", "ENOENT", "ENOENT"],
        })
    );
    let inside: Vec<_> = look::mounts(&lab, look::pid(&lab.status("web"), "app"))
        .into_iter()
        .filter(|mount| ["/", "/mounted"].contains(&mount.point.as_str()))
        .collect();
    assert_eq!(inside.len(), 2);
    for mount in inside {
        let flags = ["ro", "nosuid", "nodev"];
        assert!(flags.iter().all(|flag| mount.has(flag)), "{mount:?}");
    }
    // What is read-only for the app is not so for whoever owns the directory.
    lab.ok(&["touch", root.join("open/file").to_str().unwrap()]);
}

#[test]
fn set_user_id_programs_and_file_capabilities_give_nothing() {
    if !look::machine_with(&["setpriv"]) {
        return;
    }
    let lab = Lab::new();
    let root = make_root(&lab);
    let text = file(&root, "");
    let path = lab.write("plan.toml", &text);
    let plan = lab.lrpns_ok(&["plan", "--json", "-f", path.to_str().unwrap()]);
    let plan: Value = serde_json::from_str(&plan).unwrap();
    let stage = plan["apps"][0]["ids"]["host_id"].as_u64().unwrap();
    // Worse than any image: owned by id 0 of the very namespace, and a capability for that namespace (vfs_ns_cap_data).
    let make = format!(
        r#"
import os, shutil, struct
os.chdir("{}/opt")
for name, owner in ("root", 0), ("stage", {stage}), ("capable", 0), ("capable-inside", 0):
    shutil.copy("{PYTHON}", name)
    os.chown(name, owner, owner)
    os.chmod(name, 0o755 if name.startswith("capable") else 0o6755)
os.setxattr("capable", "security.capability", struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0))
os.setxattr("capable-inside", "security.capability", struct.pack("<IIIIII", 0x03000001, 1 << 13, 0, 0, 0, {stage}))
"#,
        root.display()
    );
    lab.ok(&[PYTHON, "-c", &make]);
    let show = "import os\nprint(os.geteuid(), [line.split()[1] for line in open('/proc/self/status') if line.startswith('CapEff')][0])";
    // Outside, for an ordinary user, they do give something.
    let outside = |name: &str| {
        let program = root.join("opt").join(name);
        lab.ok(&[
            "setpriv",
            "--reuid=4321",
            "--regid=4321",
            "--clear-groups",
            program.to_str().unwrap(),
            "-S",
            "-c",
            show,
        ])
    };
    assert!(outside("root").starts_with("0 "));
    assert!(outside("stage").starts_with(&format!("{stage} ")));
    assert_eq!(outside("capable"), "4321 0000000000002000\n");

    look::up(&lab, &text);
    for name in ["root", "stage", "capable", "capable-inside"] {
        let program = format!("/opt/{name}");
        let inside = lab.lrpns_ok(&["exec", "web", "--", &program, "-S", "-c", show]);
        assert_eq!(inside, "1000 0000000000000000\n", "{name}");
    }
}

#[test]
fn a_mount_point_that_is_a_link_is_refused_and_nothing_is_mounted_elsewhere() {
    if !look::machine() {
        return;
    }
    for (point, more) in [
        ("tmp", ""),
        ("proc", ""),
        ("dev", ""),
        ("data", "tmpfs = [\"/data:1M\"]"),
    ] {
        let lab = Lab::new();
        let root = make_root(&lab);
        let target = lab.dir.path().join("target");
        std::fs::create_dir(&target).unwrap();
        let link = root.join(point);
        if link.exists() {
            std::fs::remove_dir(&link).unwrap();
        }
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let said = refused(&lab, &file(&root, more));
        assert!(
            said.contains(&format!("has no directory /{point}")),
            "{said}"
        );
        assert!(said.contains("hint: "), "{said}");
        assert_eq!(std::fs::read_dir(&target).unwrap().count(), 0);
    }
}

#[test]
fn a_mount_point_behind_a_link_is_refused_and_nothing_is_mounted_elsewhere() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let root = make_root(&lab);
    let target = lab.dir.path().join("target");
    std::fs::create_dir_all(target.join("cache")).unwrap();
    // Absolute and relative, to the host's and to the root's own.
    for link in [target.to_str().unwrap(), "../target", "etc"] {
        let var = root.join("var");
        let _ = std::fs::remove_file(&var);
        std::os::unix::fs::symlink(link, &var).unwrap();
        std::fs::create_dir_all(root.join("etc/cache")).unwrap();
        let said = refused(&lab, &file(&root, "tmpfs = [\"/var/cache:1M\"]"));
        assert!(said.contains("/var/cache"), "{link}: {said}");
    }
}

#[test]
fn every_missing_mount_point_is_told_at_once() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let root = lab.dir.path().join("empty");
    std::fs::create_dir(&root).unwrap();
    let said = refused(&lab, &file(&root, "tmpfs = [\"/tmp:1M\", \"/data:1M\"]"));
    for point in ["/proc", "/dev", "/tmp", "/data"] {
        assert!(
            said.contains(&format!("has no directory {point} ")),
            "{point}: {said}"
        );
    }
    let said = refused(&lab, &file(&root.join("none"), ""));
    assert!(said.contains("is not a directory"), "{said}");
    assert_eq!(
        std::fs::read_dir(&root).unwrap().count(),
        0,
        "nothing was made there"
    );
}

#[test]
fn declared_tmpfs_are_writable_up_to_their_size_and_nothing_else_is() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    look::up(
        &lab,
        &look::telling(
            "web",
            "t",
            "5000:5000",
            "tmpfs = [\"/data:1M\", \"/var/lib/deep:2M\"]",
        ),
    );
    let fill = r#"
def fill(directory):
    written = 0
    with open(directory + "/big", "wb", buffering=0) as big:
        try:
            while True:
                written += big.write(bytes(65536))
        except OSError as e:
            return [written, errno.errorcode[e.errno]]
def many(directory):
    # A file that is empty takes the kernel's memory, too.
    for count in range(1 << 20):
        made = tried(lambda: open("%s/%d" % (directory, count), "x").close())
        if made != "OK":
            return [count <= 1024 * (1 + (directory != "/data")), made]
    return count
say([fill("/data"), fill("/var/lib/deep"), many("/data"), many("/var/lib/deep"), tried(lambda: open("/var/lib/x", "w")), os.path.exists("/tmp")])
"#;
    assert_eq!(
        look::attack(&lab, "web", "app", fill),
        json!([
            [1 << 20, "ENOSPC"],
            [2 << 20, "ENOSPC"],
            [true, "ENOSPC"],
            [true, "ENOSPC"],
            "EROFS",
            false
        ])
    );
    // A restart begins with empty ones.
    lab.lrpns_ok(&["restart", "web"]);
    assert_eq!(
        look::attack(&lab, "web", "app", "say(os.listdir('/data'))"),
        json!([])
    );
}

#[test]
fn a_program_that_is_not_in_the_root_is_named() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let root = make_root(&lab);
    // By a process of its own: what a child that another test clones meanwhile has open for writing can't be executed.
    lab.ok(&[
        "sh",
        "-ec",
        "cd \"$1\"; echo '#!/opt/interpreter' >script; chmod 755 script; echo x >plain",
        "sh",
        root.join("opt").to_str().unwrap(),
    ]);
    for (program, why) in [
        ("/opt/none", "/opt/none: No such file or directory"),
        ("none", "none (looked up in PATH)"),
        (
            "/opt/script",
            "its interpreter or loader is not in this root",
        ),
        ("/opt/plain", "/opt/plain: Permission denied"),
    ] {
        let text = format!(
            "name = \"web\"\n[app]\nrootfs = \"dir:{}\"\ncommand = [\"{program}\"]\n",
            root.display()
        );
        let said = refused_with(1, &lab, &text);
        assert!(said.contains(why), "{program}: {said}");
    }
}

#[test]
fn an_app_with_the_hosts_programs_starts_again_after_a_library_was_installed() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    lab.own_etc();
    look::up(&lab, &look::telling("web", "t", "5000:5000", ""));
    // ldconfig(8) puts another file in the place of the loader's cache; the one that was there has no name any more.
    let installed = "cp /etc/ld.so.cache /etc/new && mv /etc/new /etc/ld.so.cache && echo newer > /etc/mime.types";
    for _ in 0..2 {
        lab.ok(&["sh", "-c", installed]);
        lab.lrpns_ok(&["restart", "web", "app"]);
        let read = "say(open('/etc/mime.types').read())";
        assert_eq!(look::attack(&lab, "web", "app", read), "newer\n");
    }
}

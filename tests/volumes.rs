//! Volumes: the host's directories and files in an app, as narrow as they were asked for.
#![allow(clippy::unwrap_used)]

mod support;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::lab::{Lab, describe, until};
use support::look::{self, PYTHON};
use support::user::User;

/// Who owns the writable volumes of these tests, on the disk.
const OWNER: u32 = 4321;

/// A directory of the lab's that belongs to `owner`, with a file in it.
fn directory(lab: &Lab, name: &str, owner: u32) -> PathBuf {
    let path = lab.dir.path().join(name);
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("before"), "before").unwrap();
    // Nothing but the mount keeps anybody from writing to it.
    everybodys(&path.join("before"), 0o666);
    for path in [path.join("before"), path.clone()] {
        chown(path, Some(owner), Some(owner)).unwrap();
    }
    path
}

fn everybodys(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// The file of a stack with one app that waits, and these volumes.
fn file(volumes: &[String], more: &str) -> String {
    let volumes: Vec<_> = volumes.iter().map(String::as_str).collect();
    format!(
        "name = \"web\"\n[app]\nrootfs = \"host\"\ncommand = {}\nvolumes = {}\n{more}\n",
        look::toml_list(&["/bin/sleep", "infinity"]),
        look::toml_list(&volumes)
    )
}

/// What `up` says to a file that it must refuse.
fn refused(lab: &Lab, file: &str) -> String {
    let before = lab.traces();
    let path = lab.write("refused.toml", file);
    let (code, said) = lab.lrpns_err(&["up", "-d", "-f", path.to_str().unwrap()]);
    assert!(matches!(code, 1 | 2 | 125), "{code}: {said}");
    lab.assert_as(&before);
    said
}

#[test]
fn a_volume_is_read_only_nosuid_nodev_and_noexec() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let data = directory(&lab, "data", 0);
    let run = directory(&lab, "run", 0);
    let script = "#!/bin/sh\nexit 7\n";
    for path in [&data, &run] {
        std::fs::write(path.join("script"), script).unwrap();
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(path.join("script"), mode).unwrap();
    }
    look::up(
        &lab,
        &file(
            &[
                format!("{}:/data", data.display()),
                format!("{}:/srv/deep/run:ro,exec", run.display()),
            ],
            "",
        ),
    );
    let mounts = look::mounts(&lab, look::pid(&lab.status("web"), "app"));
    for (point, noexec) in [("/data", true), ("/srv/deep/run", false)] {
        let mount = mounts.iter().find(|mount| mount.point == point).unwrap();
        for option in ["ro", "nosuid", "nodev"] {
            assert!(mount.has(option), "{mount:?}");
        }
        assert_eq!(mount.has("noexec"), noexec, "{mount:?}");
    }
    let seen = look::attack(
        &lab,
        "web",
        "app",
        "import subprocess\n\
         say([open('/data/before').read(),\n\
              tried(open, '/data/new', 'w'), tried(open, '/data/before', 'a'),\n\
              tried(os.unlink, '/data/before'), tried(os.chmod, '/data/before', 0o777),\n\
              tried(os.execv, '/data/script', ['script']),\n\
              subprocess.call(['/srv/deep/run/script'])])",
    );
    assert_eq!(
        seen,
        json!(["before", "EROFS", "EROFS", "EROFS", "EROFS", "EACCES", 7])
    );
}

/// Joins the user and the mount namespace of the process whose number is the first argument.
const JOIN: &str = r#"
spaces = [os.open("/proc/%s/ns/%s" % (sys.argv[1], kind), os.O_RDONLY) for kind in ("user", "mnt")]
for space in spaces:
    call(libc.setns(space, 0))
"#;

/// Tries to take flags from mounts at these paths, as who has joined the app's namespaces and has every capability there.
const CLEAR: &str = r#"
REMOUNT, BIND = 32, 4096
AT_EMPTY_PATH, RECURSIVE, CLONE = 0x1000, 0x8000, 1
RDONLY, NOSUID, NODEV, NOEXEC = 1, 2, 4, 8
def remount(path):
    call(libc.mount(b"none", path.encode(), None, REMOUNT | BIND, None))
def clear(path, flags, clone):
    fd = call(libc.syscall(428, -100, path.encode(), CLONE if clone else 0))
    attributes = struct.pack("QQQQ", 0, flags, 0, 0)
    call(libc.syscall(442, fd, b"", AT_EMPTY_PATH, attributes, len(attributes)))
for path in sys.argv[2:]:
    for flags in (RDONLY, NOSUID, NODEV, NOEXEC):
        for clone in (False, True):
            kept.append(tried(clear, path, flags, clone))
    kept.append(tried(remount, path))
say(kept)
"#;

#[test]
fn no_flag_of_a_volumes_mount_is_taken_away_by_who_has_joined_the_app() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let data = directory(&lab, "data", OWNER);
    let volumes = [
        format!("{}:/data", data.display()),
        format!("{}:/file", data.join("before").display()),
    ];
    let path = lab.write("web.toml", &file(&volumes, ""));
    lab.lrpns_ok(&["up", "-d", "-f", path.to_str().unwrap()]);
    let clear = || {
        let init = look::init(&lab.status("web"), "app").to_string();
        let code = format!("{}{JOIN}{CLEAR}", look::ATTACKS);
        let said = lab.ok(&[PYTHON, "-c", &code, &init, "/data", "/file"]);
        serde_json::from_str::<Vec<String>>(&said).unwrap()
    };
    assert_eq!(clear(), ["EPERM"; 18]);
    lab.lrpns_ok(&["restart", "web"]);
    assert_eq!(clear(), ["EPERM"; 18]);
}

#[test]
fn what_an_app_writes_belongs_to_the_volumes_owner_on_the_disk() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let data = directory(&lab, "data", OWNER);
    // Somebody else's, in the same directory.
    let other = data.join("other");
    std::fs::write(&other, "other").unwrap();
    chown(&other, Some(OWNER + 1), Some(OWNER + 1)).unwrap();
    std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o600)).unwrap();
    look::up(&lab, &file(&[format!("{}:/data:rw", data.display())], ""));
    let code = "open('/data/new', 'w').write('new')\n\
         open('/data/before', 'a').write(' and after')\n\
         os.mkdir('/data/directory')\n\
         def owner(name): s = os.stat('/data/' + name); return [s.st_uid, s.st_gid]\n\
         say([owner('.'), owner('new'), owner('before'), owner('other'),\n\
              tried(open, '/data/other'), tried(os.chown, '/data/new', 0, 0)])";
    let code = code.replace("def owner(name): s", "def owner(name):\n s");
    let code = code.replace("; return", "\n return");
    let seen = look::attack(&lab, "web", "app", &code);
    assert_eq!(
        seen,
        json!([
            [1000, 1000],
            [1000, 1000],
            [1000, 1000],
            [65534, 65534],
            "EACCES",
            "EOVERFLOW"
        ])
    );
    for name in ["new", "before", "directory"] {
        let meta = std::fs::metadata(data.join(name)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (OWNER, OWNER), "{name}");
    }
    let text = std::fs::read_to_string(data.join("before")).unwrap();
    assert_eq!(text, "before and after");
    // A new process of the app is who the old one was.
    lab.lrpns_ok(&["restart", "web", "app"]);
    let seen = look::attack(&lab, "web", "app", "say(open('/data/new').read())");
    assert_eq!(seen, "new");
}

#[test]
fn a_single_file_is_a_volume_too() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let conf = lab.write("app.conf", "answer = 42\n");
    let hosts = lab.write("hosts", "192.0.2.1 example\n");
    everybodys(&hosts, 0o666);
    let log = lab.write("log", "");
    chown(&log, Some(OWNER), Some(OWNER)).unwrap();
    look::up(
        &lab,
        &file(
            &[
                format!("{}:/etc/app/app.conf", conf.display()),
                // Over a file that lrpns has put there.
                format!("{}:/etc/hosts:ro", hosts.display()),
                format!("{}:/var/log/app.log:rw", log.display()),
            ],
            "",
        ),
    );
    let seen = look::attack(
        &lab,
        "web",
        "app",
        "open('/var/log/app.log', 'a').write('a line')\n\
         say([open('/etc/app/app.conf').read(), open('/etc/hosts').read(),\n\
              tried(open, '/etc/hosts', 'a'), tried(open, '/var/log/new', 'w'),\n\
              tried(os.unlink, '/var/log/app.log')])",
    );
    assert_eq!(
        seen,
        json!([
            "answer = 42\n",
            "192.0.2.1 example\n",
            "EROFS",
            "EROFS",
            "EROFS"
        ])
    );
    assert_eq!(std::fs::read_to_string(log).unwrap(), "a line");
}

#[test]
fn a_link_on_the_way_is_refused_also_when_it_comes_later() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let real = directory(&lab, "real", OWNER);
    let link = lab.dir.path().join("link");
    symlink(&real, &link).unwrap();
    let said = refused(&lab, &file(&[format!("{}:/data", link.display())], ""));
    assert!(said.contains("symbolic link"), "{said}");
    assert!(
        said.contains(&format!("it stands for {}", real.display())),
        "{said}"
    );
    let said = refused(
        &lab,
        &file(&[format!("{}/before:/data", link.display())], ""),
    );
    assert!(said.contains("symbolic link"), "{said}");

    // What is swapped while the stack runs is not looked at again: what was opened stays what it is.
    look::up(&lab, &file(&[format!("{}:/data", real.display())], ""));
    std::fs::rename(&real, lab.dir.path().join("moved")).unwrap();
    symlink("/etc", &real).unwrap();
    lab.lrpns_ok(&["restart", "web", "app"]);
    let seen = look::attack(&lab, "web", "app", "say(sorted(os.listdir('/data')))");
    assert_eq!(seen, json!(["before"]));
}

#[test]
fn a_writable_volume_of_roots_is_refused_since_it_could_leave_a_set_user_id_program() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let roots = directory(&lab, "roots", 0);
    let said = refused(&lab, &file(&[format!("{}:/data:rw", roots.display())], ""));
    assert!(said.contains("belongs to user 0 and group 0"), "{said}");
    assert!(
        said.contains("hint: ") && said.contains("chown -R"),
        "{said}"
    );
    chown(&roots, Some(OWNER), Some(0)).unwrap();
    let said = refused(&lab, &file(&[format!("{}:/data:rw", roots.display())], ""));
    assert!(said.contains("belongs to user 4321 and group 0"), "{said}");
}

#[test]
fn what_is_not_there_is_said_before_anything_is_made() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let missing = lab.dir.path().join("missing");
    let data = directory(&lab, "data", 0);
    let said = refused(
        &lab,
        &file(
            &[
                format!("{}:/a", missing.display()),
                "/dev/null:/b".to_owned(),
                format!("{}:/usr/no/such/place", data.display()),
                format!("{}:/usr/bin/env", data.display()),
            ],
            "",
        ),
    );
    for words in [
        format!(
            "volume {}: open: No such file or directory",
            missing.display()
        ),
        format!("mkdir -p {}", missing.display()),
        "volume /dev/null: it is neither a directory nor a regular file".to_owned(),
        "has no directory /usr/no/such/place to mount it on".to_owned(),
        "has no directory /usr/bin/env to mount it on".to_owned(),
    ] {
        assert!(said.contains(&words), "{words}\n{said}");
    }
}

#[test]
fn a_root_of_ones_own_has_the_mount_point() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let data = directory(&lab, "data", 0);
    let root = lab.dir.path().join("root");
    for name in ["proc", "dev", "tmp", "etc"] {
        std::fs::create_dir_all(root.join(name)).unwrap();
    }
    let text = |path: &str| {
        format!(
            "name = \"web\"\n[app]\nrootfs = \"dir:{}\"\ncommand = [\"/x\"]\nvolumes = [\"{}:{path}\"]\n",
            root.display(),
            data.display()
        )
    };
    let said = refused(&lab, &text("/data"));
    assert!(said.contains("has no directory /data"), "{said}");
    let hint = format!("mkdir -p {}", root.join("data").display());
    assert!(said.contains(&hint), "{said}");
    // A link in the image could lead the mount elsewhere: it is no mount point.
    symlink("/etc", root.join("data")).unwrap();
    let said = refused(&lab, &text("/data"));
    assert!(said.contains("or has a symbolic link there"), "{said}");
    std::fs::remove_file(root.join("data")).unwrap();
    std::fs::create_dir(root.join("data")).unwrap();
    // Now it is the command that isn't there.
    let said = refused(&lab, &text("/data"));
    assert!(said.contains("/x: "), "{said}");
}

#[test]
fn what_is_mounted_below_a_volume_comes_with_it_and_is_as_narrow() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let data = directory(&lab, "data", 0);
    let below = data.join("below");
    std::fs::create_dir(&below).unwrap();
    lab.ok(&[
        "mount",
        "-t",
        "tmpfs",
        "-o",
        "mode=777",
        "tmpfs",
        below.to_str().unwrap(),
    ]);
    lab.ok(&["touch", &format!("{}/there", below.display())]);
    look::up(&lab, &file(&[format!("{}:/data", data.display())], ""));
    let seen = look::attack(
        &lab,
        "web",
        "app",
        "say([os.listdir('/data/below'), tried(open, '/data/below/new', 'w')])",
    );
    assert_eq!(seen, json!([["there"], "EROFS"]));
    let mounts = look::mounts(&lab, look::pid(&lab.status("web"), "app"));
    let mount = mounts.iter().find(|m| m.point == "/data/below").unwrap();
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(mount.has(option), "{mount:?}");
    }
}

#[test]
fn a_users_volume_is_his_own() {
    if !look::machine_with(&["setpriv"]) {
        return;
    }
    let lab = Lab::new();
    let user = User::new(&lab, OWNER);
    let own = directory(&lab, "own", OWNER);
    let others = directory(&lab, "others", OWNER + 1);
    let path = lab.write(
        "bad.toml",
        &file(&[format!("{}:/data:rw", others.display())], ""),
    );
    let output = user.lrpns(&["up", "-d", "-f", path.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("you may not write to it"), "{said}");
    let volumes = [
        format!("{}:/data:rw", own.display()),
        format!("{}:/others", others.display()),
    ];
    let path = lab.write("good.toml", &file(&volumes, ""));
    let output = user.lrpns(&["up", "-d", "-f", path.to_str().unwrap()]);
    assert!(output.status.success(), "{}", describe(&output));
    let code = "open('/data/new', 'w').write('x')\nprint(open('/others/before').read())";
    let output = user.lrpns(&["exec", "web", "--", PYTHON, "-c", code]);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "before\n",
        "{}",
        describe(&output)
    );
    assert_eq!(std::fs::metadata(own.join("new")).unwrap().uid(), OWNER);
    assert!(user.lrpns(&["down", "web"]).status.success());
}

#[test]
fn the_plan_shows_each_volume_and_where_it_came_from() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let data = directory(&lab, "data", OWNER);
    let path = lab.write(
        "lrpns.toml",
        &file(&[format!("{}:/data:rw", data.display())], ""),
    );
    let path = path.to_str().unwrap();
    let text = lab.lrpns_ok(&["plan", "-v", "-f", path]);
    let line = text
        .lines()
        .find(|line| line.contains("volume /data"))
        .unwrap();
    for words in ["writable", "noexec", "nosuid", "lrpns.toml:5"] {
        assert!(line.contains(words), "{line}");
    }
    let plan: Value = serde_json::from_str(&lab.lrpns_ok(&["plan", "-f", path, "--json"])).unwrap();
    assert_eq!(
        plan["apps"][0]["volumes"],
        json!([{ "host": data, "path": "/data", "writable": true, "exec": false }])
    );
}

/// What a command prints that must work.
fn tells(lab: &Lab, args: &[&str]) -> String {
    let output = lab.lrpns(args);
    assert!(output.status.success(), "{args:?}: {}", describe(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_mount_may_be_in_another_whatever_their_order() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let data = directory(&lab, "data", OWNER);
    let other = directory(&lab, "other", OWNER);
    std::fs::create_dir(data.join("point")).unwrap();
    chown(data.join("point"), Some(OWNER), Some(OWNER)).unwrap();
    look::up(
        &lab,
        &file(
            &[
                format!("{}:/run/one", other.join("before").display()),
                format!("{}:/run/a/data:rw", data.display()),
                format!("{}:/run/deep/down/file", data.join("before").display()),
                format!("{}:/etc/other", other.display()),
            ],
            "tmpfs = [\"/run/php/x:1M\", \"/run/a/data/point:1M\", \"/run:1M\", \"/run/php:2M\"]",
        ),
    );
    let seen = look::attack(
        &lab,
        "web",
        "app",
        "say([open(p).read() for p in ('/run/one', '/run/deep/down/file', '/run/a/data/before', '/etc/other/before')]\n\
         + [tried(open, d + '/new', 'w') for d in ('/run', '/run/php', '/run/php/x', '/run/a', '/run/a/data', '/run/a/data/point', '/run/deep/down', '/etc/other')])",
    );
    assert_eq!(
        seen,
        json!([
            "before", "before", "before", "before", "OK", "OK", "OK", "OK", "OK", "OK", "OK",
            "EROFS"
        ])
    );
    // What is mounted in a volume has changed nothing on the disk.
    let names = |path: &Path| std::fs::read_dir(path).unwrap().count();
    assert_eq!((names(&data), names(&data.join("point"))), (3, 0));
    tells(&lab, &["audit", "web"]);
}

#[test]
fn a_mount_point_that_a_volume_lacks_is_refused_before_anything_is_made_and_not_made_on_the_disk() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let data = directory(&lab, "data", OWNER);
    symlink("/etc", data.join("link")).unwrap();
    for (tmpfs, words) in [
        (
            "/data/point",
            "the volume at /data of app has no directory /data/point",
        ),
        (
            "/data/link/x",
            "the volume at /data of app has no directory /data/link/x",
        ),
        (
            "/data/before",
            "the volume at /data of app has no directory /data/before",
        ),
        (
            "/usr/nowhere",
            "the root of app has no directory /usr/nowhere",
        ),
    ] {
        let volume = format!("{}:/data:rw", data.display());
        let said = refused(&lab, &file(&[volume], &format!("tmpfs = [\"{tmpfs}:1M\"]")));
        assert!(said.contains(words), "{said}");
        assert!(said.contains("hint: "), "{said}");
    }
    assert!(!data.join("point").exists());
}

#[test]
fn a_relative_host_path_is_taken_from_the_directory_of_the_file_or_of_run() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    directory(&lab, "data", OWNER);
    look::up(&lab, &file(&["./data:/data".to_owned()], ""));
    let here = lab.dir.path().join("data");
    let seen = look::attack(&lab, "web", "app", "say(open('/data/before').read())");
    assert_eq!(seen, json!("before"));
    let out = tells(
        &lab,
        &[
            "run",
            "-v",
            &format!("{}:/data", here.display()),
            "-m",
            "64m",
            "--cpus",
            "1",
            "--",
            "cat",
            "/data/before",
        ],
    );
    assert!(out.contains("before"), "{out}");
}

/// What an app comes to that connects to the socket at `path`.
fn connects(lab: &Lab, path: &str) -> Value {
    let code = format!(
        "import socket\nsay(tried(socket.socket(socket.AF_UNIX).connect, {}))",
        json!(path)
    );
    look::attack(lab, "web", "app", &code)
}

/// A socket below `path` that everybody may connect to, on which the test listens.
fn listen(path: &Path) -> std::os::unix::net::UnixListener {
    let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
    everybodys(path, 0o777);
    listener
}

#[test]
fn a_unix_socket_in_a_volume_is_refused_until_it_is_declared() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let data = directory(&lab, "data", 0);
    std::fs::create_dir(data.join("deep")).unwrap();
    let _listener = listen(&data.join("deep/s.sock"));
    // Nobody comes back to one that was left.
    drop(listen(&data.join("left.sock")));
    let volume = format!("{}:/d", data.display());
    let said = refused(&lab, &file(std::slice::from_ref(&volume), ""));
    let line = format!("sockets = [\"{}/deep:/d/deep\"]", data.display());
    assert!(
        said.contains("somebody listens on the Unix socket"),
        "{said}"
    );
    assert!(said.contains(&line), "{said}");
    assert!(!said.contains("left.sock"), "{said}");
    // The plan names it, whether it is declared or not.
    for (more, words) in [("", "up refuses that without"), (line.as_str(), "declared")] {
        let path = lab.write("plan.toml", &file(std::slice::from_ref(&volume), more));
        let plan = tells(&lab, &["plan", "-f", path.to_str().unwrap()]);
        // It wraps its lines.
        let plan = plan.split_whitespace().collect::<Vec<_>>().join(" ");
        let found = plan.split_once("somebody listens on");
        let found = found.unwrap_or_else(|| panic!("{plan}")).1;
        assert!(
            found.contains("/d/deep/s.sock") && found.contains(words),
            "{found}"
        );
        assert!(plan.contains("before Linux 7.1"), "{plan}");
    }
    look::up(&lab, &file(&[volume], &line));
    assert_eq!(connects(&lab, "/d/deep/s.sock"), "OK");
    assert_eq!(connects(&lab, "/d/left.sock"), "ECONNREFUSED");
    tells(&lab, &["audit", "web"]);
}

#[test]
fn declared_sockets_need_no_volume_and_bring_a_directory_or_one_socket() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let data = directory(&lab, "data", OWNER);
    let other = directory(&lab, "other", 0);
    let _one = listen(&data.join("s.sock"));
    let _two = listen(&other.join("t.sock"));
    let sockets = format!(
        "sockets = [\"{}:/run/data\", \"{}:/run/t.sock\"]",
        data.display(),
        other.join("t.sock").display()
    );
    look::up(&lab, &file(&[], &sockets));
    assert_eq!(connects(&lab, "/run/data/s.sock"), "OK");
    assert_eq!(connects(&lab, "/run/t.sock"), "OK");
    let seen = look::attack(&lab, "web", "app", "say(tried(open, '/run/data/new', 'w'))");
    assert_eq!(seen, "EROFS");
    tells(&lab, &["audit", "web"]);
    // As a volume it is none.
    let volume = format!("{}:/run/t.sock", other.join("t.sock").display());
    let said = refused(&lab, &file(&[volume], "").replace("\"web\"", "\"web2\""));
    assert!(said.contains("it is a Unix socket"), "{said}");
    assert!(
        said.contains("in place of the volume: sockets = ["),
        "{said}"
    );
}

#[test]
fn an_apps_own_socket_in_its_volume_is_no_way_out() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let data = directory(&lab, "data", OWNER);
    let script = "import socket, time\n\
         s = socket.socket(socket.AF_UNIX); s.bind('/d/own.sock'); s.listen()\n\
         d = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); d.bind('/d/own.dgram')\n\
         time.sleep(1e6)";
    let own = format!(
        "name = \"web\"\n[app]\nrootfs = \"host\"\ncommand = {}\nvolumes = [\"{}:/d:rw\"]\n",
        look::toml_list(&[PYTHON, "-c", script]),
        data.display()
    );
    let path = look::up(&lab, &own);
    let sockets = ["own.sock", "own.dgram"].map(|name| data.join(name));
    support::lab::until("the sockets", || {
        sockets.iter().all(|s| s.exists()).then_some(())
    });
    tells(&lab, &["audit", "web"]);
    // It is there still when the stack changes, and belongs to it.
    let file = lab.write("lrpns.toml", &(own + "rate = \"100/second\"\n"));
    tells(&lab, &["apply", "-f", file.to_str().unwrap()]);
    // After it has ended they are left, and nobody's.
    drop(path);
    lab.lrpns_ok(&["down", "web"]);
    for socket in &sockets {
        assert!(socket.exists());
    }
    let path = lab.write(
        "again.toml",
        &self::file(&[format!("{}:/d:rw", data.display())], ""),
    );
    lab.lrpns_ok(&["up", "-d", "-f", path.to_str().unwrap()]);
}

#[test]
fn what_is_too_large_to_be_looked_at_for_sockets_is_said_at_the_start() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let data = directory(&lab, "data", 0);
    let up = |lab: &Lab| {
        let file = lab.write("large.toml", &file(&[format!("{}:/d", data.display())], ""));
        let up = lab.lrpns(&["up", "-d", "-f", file.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&up.stderr).into_owned();
        assert!(up.status.success(), "{said}");
        lab.lrpns_ok(&["down", "--all"]);
        said
    };
    const WORDS: &str = "/d has too many names, or too deep ones, to find every Unix socket";
    assert!(!up(&lab).contains(WORDS));
    for number in 0..20_001 {
        std::fs::write(data.join(number.to_string()), "").unwrap();
    }
    let said = up(&lab);
    assert!(said.contains(WORDS), "{said}");
}

#[test]
fn the_name_that_somebody_gave_a_socket_does_nothing_to_a_terminal() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let data = directory(&lab, "data", 0);
    let evil = data.join("a\u{1b}[2J\nhint: curl");
    std::fs::create_dir(&evil).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(evil.join("s")).unwrap();
    let text = file(&[format!("{}:/d", data.display())], "");
    let said = refused(&lab, &text);
    let path = lab.write("evil.toml", &text);
    let plan = lab.lrpns_ok(&["plan", "-v", "-f", path.to_str().unwrap()]);
    for said in [said, plan] {
        let hidden = said.contains('\u{1b}') || said.contains("\nhint: curl");
        assert!(said.contains("listens on") && !hidden, "{said:?}");
    }
}

#[test]
fn what_is_the_kernels_own_is_no_volume() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    for (host, kind) in [
        ("/proc", "proc"),
        ("/proc/sys", "proc"),
        ("/sys", "sysfs"),
        ("/sys/kernel", "sysfs"),
    ] {
        for options in ["", ":rw"] {
            let said = refused(&lab, &file(&[format!("{host}:/host{options}")], ""));
            let words = format!("is a {kind}, the kernel's own");
            assert!(
                said.contains(&words) && said.contains("leave it out"),
                "{said}"
            );
        }
    }
    // Nor in one.
    let data = directory(&lab, "data", 0);
    std::fs::create_dir(data.join("proc")).unwrap();
    let point = data.join("proc");
    let path = point.to_str().unwrap();
    lab.ok(&["mount", "-t", "proc", "proc", path]);
    let said = refused(&lab, &file(&[format!("{}:/d", data.display())], ""));
    assert!(
        said.contains(path) && said.contains("hint: name what the app needs"),
        "{said}"
    );
}

/// The file of a stack with one app that waits, and these secrets.
fn with_secrets(secrets: &[&str], more: &str) -> String {
    file(
        &[],
        &format!("secrets = {}\n{more}", look::toml_list(secrets)),
    )
}

/// What nobody but root may read.
fn key(lab: &Lab, name: &str, text: &str) -> PathBuf {
    let path = lab.write(name, text);
    everybodys(&path, 0o600);
    path
}

#[test]
fn a_secret_of_roots_is_a_file_of_the_apps_alone_and_stands_nowhere_else() {
    if !look::machine() {
        return;
    }
    const CONTENT: &str = "tOp-SeCrEt-1";
    let lab = Lab::new();
    let path = key(&lab, "privkey.pem", CONTENT);
    // certbot's are links.
    symlink("privkey.pem", lab.dir.path().join("live.pem")).unwrap();
    look::up(&lab, &with_secrets(&["tls.key=./live.pem"], ""));
    let code = "s = os.stat('/run/secrets/tls.key')\n\
         say([open('/run/secrets/tls.key').read(), oct(s.st_mode & 0o7777), s.st_uid, s.st_gid, os.listdir('/run/secrets'),\n\
         tried(os.chmod, '/run/secrets/tls.key', 0o444), tried(open, '/run/secrets/new', 'w'), tried(os.unlink, '/run/secrets/tls.key')])";
    let seen = look::attack(&lab, "web", "app", code);
    assert_eq!(
        seen,
        json!([
            CONTENT,
            "0o400",
            1000,
            1000,
            ["tls.key"],
            "EROFS",
            "EROFS",
            "EROFS"
        ])
    );
    let config = lab.write("plan.toml", &with_secrets(&["tls.key=./live.pem"], ""));
    for args in [
        &["status", "web"][..],
        &["status", "web", "--json"],
        &["logs", "web"],
        &["plan", "-f", config.to_str().unwrap(), "--json"],
        &["audit", "web"],
    ] {
        let said = tells(&lab, args);
        assert!(!said.contains(CONTENT), "{args:?}: {said}");
    }
    let state = lab.root().join("run/lrpns");
    let found = lab.run(&["grep", "-r", CONTENT, "/run/lrpns"]);
    assert!(
        state.exists() && found.stdout.is_empty(),
        "{}",
        describe(&found)
    );
    // One that was renewed comes when the app is started again.
    std::fs::write(&path, "tOp-SeCrEt-2").unwrap();
    let read = "say(open('/run/secrets/tls.key').read())";
    assert_eq!(look::attack(&lab, "web", "app", read), CONTENT);
    lab.lrpns_ok(&["restart", "web", "app"]);
    assert_eq!(look::attack(&lab, "web", "app", read), "tOp-SeCrEt-2");
    // Who can't begin again is not ended.
    let before = look::pid(&lab.status("web"), "app");
    std::fs::remove_file(&path).unwrap();
    for args in [&["restart", "web", "app"][..], &["restart", "web"]] {
        let refused = lab.lrpns(args);
        assert!(!refused.status.success());
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains("secret tls.key of app"), "{said}");
    }
    assert_eq!(look::pid(&lab.status("web"), "app"), before);
    // Who ends by itself has what was read last: its supervisor need not read the file.
    lab.kill("KILL", &json!(before));
    until("it runs again", || {
        let status = lab.status("web");
        let app = look::part(&status, "app");
        (app["state"] == "running" && app["pid"] != before).then_some(())
    });
    assert_eq!(look::attack(&lab, "web", "app", read), "tOp-SeCrEt-2");
}

#[test]
fn a_mount_called_secrets_is_as_any_other_and_has_no_secret_in_it() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    key(&lab, "key", "s3cret");
    let data = directory(&lab, "data", OWNER);
    let volume = format!("{}:/secrets:rw", data.display());
    for (path, volumes, more) in [
        (
            "/secrets",
            vec![volume.clone()],
            "secrets = [\"key=./key\"]",
        ),
        ("/secrets", vec![volume], ""),
        ("/secrets", vec![], "tmpfs = [\"/secrets:1M\"]"),
        ("/run/secrets", vec![], "tmpfs = [\"/run/secrets:1M\"]"),
    ] {
        look::up(&lab, &file(&volumes, more));
        let code = format!(
            "def write():\n    open('{path}/mine', 'w').close()\n\
             say([tried(write), sorted(os.listdir('{path}'))])"
        );
        let there = match volumes.is_empty() {
            true => json!(["mine"]),
            false => json!(["before", "mine"]),
        };
        let seen = look::attack(&lab, "web", "app", &code);
        assert_eq!(seen, json!(["OK", there]), "{volumes:?} {more}");
        lab.lrpns_ok(&["down", "web"]);
    }
    assert!(!data.join("key").exists());
}

#[test]
fn a_secret_may_come_from_systemd_and_lie_in_a_tmpfs_of_the_apps() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let credentials = lab.dir.path().join("credentials");
    std::fs::create_dir(&credentials).unwrap();
    std::fs::write(credentials.join("tls.key"), "one").unwrap();
    std::fs::write(credentials.join("other"), "two").unwrap();
    let text = with_secrets(
        &["tls.key", "mine=credential:other"],
        "tmpfs = [\"/run:1M\"]\nids = \"range\"",
    );
    let said = refused(&lab, &text);
    assert!(said.contains("no $CREDENTIALS_DIRECTORY"), "{said}");
    assert!(said.contains("LoadCredential=tls.key:PATH"), "{said}");
    let path = lab.write("lrpns.toml", &text);
    // Nor is a file of the directory where somebody stands one of them.
    for none in ["", "."] {
        let env = [("CREDENTIALS_DIRECTORY", none)];
        let said = describe(&lab.lrpns_with(&env, &["up", "-d", "-f", path.to_str().unwrap()]));
        assert!(said.contains("no $CREDENTIALS_DIRECTORY"), "{said}");
    }
    let env = [("CREDENTIALS_DIRECTORY", credentials.to_str().unwrap())];
    let args = ["up", "-d", "-f", path.to_str().unwrap()];
    let output = lab.lrpns_with(&env, &args);
    assert!(output.status.success(), "{}", describe(&output));
    let code = "say([open('/run/secrets/' + n).read() for n in ('tls.key', 'mine')])";
    assert_eq!(
        look::attack(&lab, "web", "app", code),
        json!(["one", "two"])
    );
    // From a shell, which has none, it can be changed all the same.
    std::fs::write(credentials.join("other"), "three").unwrap();
    let more = lab.write("more.toml", &(text + "\nenv = { A = \"b\" }\n"));
    lab.lrpns_ok(&["apply", "-f", more.to_str().unwrap()]);
    assert_eq!(
        look::attack(&lab, "web", "app", code),
        json!(["one", "three"])
    );
}

#[test]
fn a_secret_of_the_user_who_runs_sudo_is_had_again_by_a_supervisor_that_may_not_read_it() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let file = |name: &str| {
        let path = key(&lab, name, name);
        chown(&path, Some(OWNER), Some(OWNER)).unwrap();
        format!("{name}={}", path.display())
    };
    let (first, second) = (file("first"), file("second"));
    let sudo = OWNER.to_string();
    let by_sudo = |args: &[&str]| {
        let output = lab.lrpns_with(&[("SUDO_UID", &sudo)], args);
        assert!(output.status.success(), "{}", describe(&output));
    };
    let config = lab.write("own.toml", &with_secrets(&[&first], ""));
    let config = config.to_str().unwrap();
    by_sudo(&["up", "-d", "-f", config]);
    let read = |name: &str| {
        let code = format!("say(open('/run/secrets/{name}').read())");
        look::attack(&lab, "web", "app", &code)
    };
    std::fs::write(lab.dir.path().join("first"), "first-2").unwrap();
    // Root alone takes no word of that user's, and the app has what it had.
    let output = lab.lrpns(&["restart", "web", "app"]);
    assert!(output.status.success(), "{}", describe(&output));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("it has what was in it before"), "{said}");
    assert_eq!(read("first"), "first");
    by_sudo(&["restart", "web", "app"]);
    assert_eq!(read("first"), "first-2");
    // One that comes later its client reads.
    std::fs::write(config, with_secrets(&[&first, &second], "")).unwrap();
    by_sudo(&["apply", "-f", config]);
    lab.lrpns_ok(&["restart", "web", "app"]);
    assert_eq!(
        (read("first"), read("second")),
        (json!("first-2"), json!("second"))
    );
}

#[test]
fn a_secret_that_another_could_have_chosen_or_that_is_too_long_is_refused() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let others = key(&lab, "others.pem", "x");
    chown(&others, Some(OWNER), Some(OWNER)).unwrap();
    let long = key(&lab, "long.pem", &"x".repeat(300_000));
    for (secret, words, hint) in [
        (others.as_path(), "root does not read it", "chown root: "),
        (long.as_path(), "has more than 262144 bytes", "is a volume"),
        (Path::new("/nowhere"), "No such file", ""),
        (Path::new("/etc"), "/etc: ", ""),
    ] {
        let said = refused(
            &lab,
            &with_secrets(&[&format!("k={}", secret.display())], ""),
        );
        assert!(
            said.contains("secret k of app") && said.contains(words),
            "{said}"
        );
        assert!(said.contains(hint), "{said}");
    }
    let said = refused(&lab, &with_secrets(&["a/b=/etc/hostname"], ""));
    assert!(
        said.contains("is no name of a file in /run/secrets"),
        "{said}"
    );
}

#[test]
fn without_root_a_secret_is_the_users_own() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let user = User::new(&lab, 4400);
    if !user.may() {
        return;
    }
    let path = key(&lab, "password", "hers");
    chown(&path, Some(4400), Some(4400)).unwrap();
    user.up(&with_secrets(
        &[&format!("password={}", path.display())],
        "",
    ));
    let said = user.lrpns_ok(&["exec", "web", "--", "cat", "/run/secrets/password"]);
    assert_eq!(said, "hers");
    std::fs::write(&path, "hers, renewed").unwrap();
    user.lrpns_ok(&["restart", "web"]);
    let said = user.lrpns_ok(&["exec", "web", "--", "cat", "/run/secrets/password"]);
    assert_eq!(said, "hers, renewed");
    let root = key(&lab, "root", "his");
    let file = lab.write(
        "other.toml",
        &with_secrets(&[&format!("x={}", root.display())], "").replace("web", "web2"),
    );
    let output = user.lrpns(&["up", "-d", "-f", file.to_str().unwrap()]);
    let said = describe(&output);
    assert!(
        !output.status.success() && said.contains("Permission denied"),
        "{said}"
    );
}

#[test]
fn the_owners_files_of_a_read_only_volume_are_the_apps_to_read_and_roots_are_a_secret() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let data = directory(&lab, "data", OWNER);
    everybodys(&data.join("before"), 0o600);
    std::fs::write(data.join("root.key"), "root's").unwrap();
    everybodys(&data.join("root.key"), 0o600);
    let volume = format!("{}:/d", data.display());
    look::up(&lab, &file(std::slice::from_ref(&volume), ""));
    let seen = look::attack(
        &lab,
        "web",
        "app",
        "say([open('/d/before').read(), os.stat('/d/before').st_uid, tried(open, '/d/root.key'), tried(open, '/d/before', 'a')])",
    );
    assert_eq!(seen, json!(["before", 1000, "EACCES", "EROFS"]));
    tells(&lab, &["audit", "web"]);
    // A server that wants root's key hears what gives it.
    let said = {
        let text = file(&[volume], "publish = [\"80:80\"]\nrestart = \"no\"").replace(
            &look::toml_list(&["/bin/sleep", "infinity"]),
            &look::toml_list(&["cat", "/d/root.key"]),
        );
        let path = lab.write("cat.toml", &text.replace("\"web\"", "\"web2\""));
        lab.lrpns_err(&["up", "-d", "-f", path.to_str().unwrap()]).1
    };
    let line = format!(
        "secrets = [\"root.key={}\"]",
        data.join("root.key").display()
    );
    assert!(said.contains(&line), "{said}");
}

/// A directory of root's with a file for each of these owners, which nobody else may read.
fn of_several(lab: &Lab, name: &str, owners: &[(u32, u32)]) -> PathBuf {
    let path = directory(lab, name, 0);
    everybodys(&path, 0o755);
    for (uid, gid) in owners {
        let file = path.join(format!("{uid}-{gid}"));
        std::fs::write(&file, "private").unwrap();
        chown(&file, Some(*uid), Some(*gid)).unwrap();
        everybodys(&file, 0o640);
    }
    path
}

/// User and group www-data, which every Debian has.
const WWW_DATA: u32 = 33;

#[test]
fn a_server_that_begins_as_root_finds_the_owners_of_its_configuration_as_on_the_host() {
    if !look::machine_with(&["setpriv"]) {
        return;
    }
    let lab = Lab::new();
    let etc = of_several(
        &lab,
        "etc",
        &[(0, 0), (0, WWW_DATA), (WWW_DATA, 8), (70_000, 8)],
    );
    let line = |options: &str| [format!("{}:/etc/server:{options}", etc.display())];
    let range = file(&line("ro,owners"), "ids = \"range\"");
    let path = lab.write("range.toml", &range);
    let plan = lab.lrpns_ok(&["plan", "-v", "-f", path.to_str().unwrap()]);
    assert!(
        plan.contains("read-only, each file its owner's: what is root's alone on the host, this app reads, too"),
        "{plan}"
    );
    look::up(&lab, &range);
    let script = "cd /etc/server; stat -c %n:%u:%g *; cat 0-0; \
        as() { setpriv --reuid $1 --regid $1 --clear-groups sh -c \"$2\" 2>&1; }; \
        as www-data 'cat 0-33 33-8'; as www-data 'cat 0-0'; as 34 'cat 33-8'; \
        cat 70000-8; touch new; chmod 600 0-0; exec 2>&1; touch new";
    let output = lab.lrpns(&["exec", "web", "--", "sh", "-c", script]);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "0-0:0:0\n0-33:0:33\n33-8:33:8\n70000-8:65534:8\nbefore:0:0\n\
         privateprivateprivate\
         cat: 0-0: Permission denied\ncat: 33-8: Permission denied\n\
         touch: cannot touch 'new': Read-only file system\n",
        "{}",
        describe(&output)
    );
    lab.lrpns_ok(&["audit", "web"]);
    lab.lrpns_ok(&["down", "web"]);

    // Where there is no range, where something could be written, where the file system can't.
    for (name, more, words) in [
        ("owners", "", "owners, and the app has ids = \"one\""),
        (
            "rw,owners",
            "ids = \"range\"",
            "rw and owners: what an app's root writes would be root's",
        ),
        (
            "owners,owner=www-data",
            "ids = \"range\"",
            "owner and owners: its files are one user's",
        ),
    ] {
        let said = refused(&lab, &file(&line(name), more));
        assert!(said.contains(words), "{said}");
    }
    lab.ok(&[
        "sh",
        "-ec",
        "mkdir -p /run/o/l /run/o/u /run/o/w /run/o/m; mount -t overlay -o lowerdir=/run/o/l,upperdir=/run/o/u,workdir=/run/o/w o /run/o/m",
    ]);
    let over = ["/run/o/m:/etc/server:owners".to_owned()];
    let said = refused(&lab, &file(&over, "ids = \"range\""));
    assert!(
        said.contains("its file system can't map the ids") && said.contains("leave owners out"),
        "{said}"
    );
}

#[test]
fn a_user_of_the_hosts_is_itself_in_a_volume_of_roots() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let etc = of_several(
        &lab,
        "etc",
        &[(0, 0), (0, WWW_DATA), (WWW_DATA, 0), (1000, 1000)],
    );
    let data = directory(&lab, "data", 0);
    chown(&data, Some(0), Some(WWW_DATA)).unwrap();
    everybodys(&data, 0o2775);
    let volumes = [
        format!("{}:/etc/server", etc.display()),
        format!("{}:/data:rw", data.display()),
    ];
    look::up(&lab, &file(&volumes, "user = \"www-data\""));
    let code = "os.chdir('/etc/server')\n\
         open('/data/new', 'w').write('new')\n\
         say([os.stat('0-33').st_uid, os.stat('0-33').st_gid] +\n\
             [tried(open, name) for name in ['0-0', '0-33', '33-0', '1000-1000']] +\n\
             [tried(open, '/data/before', 'a'), tried(os.chown, '/data/new', 0, 33), tried(os.chmod, '/data', 0o777)])";
    let seen = look::attack(&lab, "web", "app", code);
    // Root is nobody there: not even who has become the app's user namespace's 0 is root.
    assert_eq!(seen[0], 65534, "{seen}");
    assert_eq!(seen[1], WWW_DATA, "{seen}");
    let tried: Vec<&str> = (2..9).map(|i| seen[i].as_str().unwrap()).collect();
    assert_eq!(
        tried,
        ["EACCES", "OK", "OK", "EACCES", "OK", "EOVERFLOW", "EPERM"],
        "{seen}"
    );
    let joined = r#"
os.setgroups([])
os.setresgid(0, 0, 0)
os.setresuid(0, 0, 0)
say([tried(open, "/etc/server/0-0"), tried(open, "/data/made", "w"), tried(os.chmod, "/data", 0o777)])
"#;
    let init = look::init(&lab.status("web"), "app").to_string();
    let code = format!("{}{JOIN}{joined}", look::ATTACKS);
    let joined: Value = serde_json::from_str(&lab.ok(&[PYTHON, "-c", &code, &init])).unwrap();
    assert_eq!(joined, json!(["EACCES", "EOVERFLOW", "EPERM"]));
    let made = std::fs::metadata(data.join("new")).unwrap();
    assert_eq!((made.uid(), made.gid()), (WWW_DATA, WWW_DATA));
    lab.lrpns_ok(&["down", "web"]);

    // Who was not named is nobody of the host's, and where such a user may not write, nothing is writable.
    look::up(&lab, &file(&volumes[..1], ""));
    let code =
        "say([tried(open, '/etc/server/' + name) for name in ['0-33', '33-0', '1000-1000']])";
    let seen = look::attack(&lab, "web", "app", code);
    assert_eq!(seen, json!(["EACCES", "EACCES", "EACCES"]));
    lab.lrpns_ok(&["down", "web"]);
    everybodys(&data, 0o2755);
    let said = refused(&lab, &file(&volumes[1..], "user = \"www-data\""));
    assert!(said.contains("it belongs to user 0 and group 33"), "{said}");
}

//! Whom an app runs as within, and what names it knows.
#![allow(clippy::unwrap_used)]

mod support;
use std::os::unix::fs::symlink;

use support::lab::{Lab, describe};
use support::look;
use support::user::User;

fn machine() -> bool {
    look::machine_with(&["setpriv", "ps"])
}

/// The numbers of a user that every Debian has.
fn www_data() -> (u32, u32) {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd.lines().find(|line| line.starts_with("www-data:"));
    let fields: Vec<&str> = line.unwrap().split(':').collect();
    (fields[2].parse().unwrap(), fields[3].parse().unwrap())
}

#[test]
fn an_app_runs_as_whom_it_is_told_and_starts_where_it_is_told() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    let user = User::new(&lab, 4321);
    if !user.may() {
        return;
    }
    let (uid, gid) = www_data();
    let look = "id -u; id -g; id -un; id -gn; id -G; pwd; sed -n 's/^CapBnd:.//p' /proc/self/status; echo x > /tmp/x && stat -c %u:%g /tmp/x";
    for (who, place, expected) in [
        (
            "www-data",
            "/usr/share",
            format!("{uid}\n{gid}\nwww-data\nwww-data\n{gid}\n/usr/share"),
        ),
        ("7:100", "/tmp", "7\n100\nlp\nusers\n100\n/tmp".to_owned()),
        ("5000", "/", "5000\n5000\napp\napp\n5000\n/".to_owned()),
        (
            "app:www-data",
            "/",
            format!("1000\n{gid}\napp\nwww-data\n{gid}\n/"),
        ),
        ("root", "/", "0\n0\nroot\nroot\n0\n/".to_owned()),
        ("0:1000", "/", "0\n1000\nroot\napp\n1000\n/".to_owned()),
        ("1000:0", "/", "1000\n0\napp\nroot\n0\n/".to_owned()),
    ] {
        let run = ["run", "-u", who, "-w", place, "--", "sh", "-c", look];
        let ids: Vec<&str> = expected.lines().collect();
        let owner = format!("{}:{}", ids[0], ids[1]);
        let expected = format!("{expected}\n0000000000000000\n{owner}\n");
        assert_eq!(lab.lrpns_ok(&run), expected, "root: {who}");
        assert_eq!(user.lrpns_ok(&run), expected, "rootless: {who}");
    }
}

#[test]
fn a_user_of_any_number_stands_the_audit_and_its_files_belong_to_the_volumes_owner() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    let user = User::new(&lab, 4321);
    if !user.may() {
        return;
    }
    for (name, key) in [
        ("a", "user = \"www-data\""),
        ("b", "user = 0"),
        ("c", "group = 0"),
    ] {
        let data = lab.dir.path().join(format!("data-{name}"));
        std::fs::create_dir(&data).unwrap();
        std::os::unix::fs::chown(&data, Some(4321), Some(4321)).unwrap();
        let file = look::telling(
            name,
            "x",
            "0.0.0.0:5000:5000",
            &format!(
                "{key}\nvolumes = [\"{}:/data:rw\"]\nworkdir = \"/data\"",
                data.display()
            ),
        );
        let path = lab.write(&format!("{name}.toml"), &file);
        let path = path.to_str().unwrap();
        for root in [true, false] {
            let lrpns = |args: &[&str]| match root {
                true => lab.lrpns(args),
                false => user.lrpns(args),
            };
            let ok = |args: &[&str]| {
                let output = lrpns(args);
                assert!(
                    output.status.success(),
                    "{key}, {root}: {}",
                    describe(&output)
                );
            };
            ok(&["up", "-d", "-f", path]);
            ok(&["audit", name]);
            let write = format!("echo > by-{root}; cat by-{root}");
            ok(&["exec", name, "--", "sh", "-c", &write]);
            ok(&["down", name]);
            let made = std::fs::metadata(data.join(format!("by-{root}"))).unwrap();
            assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 4321);
        }
    }
}

#[test]
fn names_are_those_of_the_apps_own_root_and_persons_are_not_among_the_hosts() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    // The lab's /etc is its own from here on.
    let etc = "printf 'root:x:0:0:root:/root:/bin/sh\\nsrv:x:42:43:Mr Server,room 7:/var/lib/srv:/bin/false\\n\
               jane:x:1042:1042:Jane Doe,,555:/home/jane:/bin/bash\\nnobody:x:65534:65534::/:/no\\n' > /run/lab/passwd; \
               printf 'srv:x:43:jane,srv\\njane:x:1042:\\nnogroup:x:65534:\\n' > /run/lab/group; \
               mount --bind /run/lab/passwd /etc/passwd; mount --bind /run/lab/group /etc/group";
    lab.ok(&["sh", "-c", etc]);
    let cat = ["cat", "/etc/passwd", "/etc/group"];
    let told = lab.lrpns_ok(&[&["run", "-u", "srv", "--"][..], &cat].concat());
    assert_eq!(
        told,
        "root:*:0:0:root:/:/usr/sbin/nologin\nnobody:*:65534:65534::/:/no\nsrv:*:42:43::/var/lib/srv:/bin/false\n\
         root:x:0:\nnogroup:x:65534:\nsrv:x:43:srv\n"
    );
    let told = lab.lrpns_ok(&[&["run", "-u", "jane", "--"][..], &cat].concat());
    assert!(
        told.contains("\njane:*:1042:1042::/:/usr/sbin/nologin\n")
            && told.contains("\njane:x:1042:\n"),
        "{told}"
    );

    // At home is who is named; a person nowhere.
    for (user, home) in [("srv", "/var/lib/srv\n"), ("jane", "/\n"), ("42", "/\n")] {
        let told = lab.lrpns_ok(&["run", "-u", user, "--", "printenv", "HOME"]);
        assert_eq!(told, home, "{user}");
    }

    // A root's own, whatever the host has, and whatever its links lead to.
    let root = lab.dir.path().join("root");
    let busybox = support::program("busybox").unwrap();
    for dir in ["bin", "etc", "proc", "dev", "tmp"] {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
    std::fs::copy(busybox, root.join("bin/busybox")).unwrap();
    std::fs::write(root.join("etc/mine"), "srv:x:77:78::/:/bin/sh\n").unwrap();
    symlink("/etc/mine", root.join("etc/passwd")).unwrap();
    symlink("/run/lab/group", root.join("etc/group")).unwrap();
    let rootfs = format!("dir:{}", root.display());
    let run = |who: &str| {
        lab.lrpns(&[
            "run",
            "--rootfs",
            &rootfs,
            "-u",
            who,
            "--",
            "/bin/busybox",
            "id",
        ])
    };
    let output = run("srv");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        said.starts_with("uid=77(srv) gid=78"),
        "{}",
        describe(&output)
    );
    for (who, words) in [
        ("jane", "has no such user"),
        ("srv:srv", "has no such group"),
        ("srw", "the nearest is `srv`"),
    ] {
        let output = run(who);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.code() == Some(2)
                && said.contains(words)
                && said.contains("hint: names are those of"),
            "{}",
            describe(&output)
        );
    }
}

#[test]
fn what_can_t_be_a_user_or_a_place_to_start_is_refused_with_a_hint() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    for (flags, code, words) in [
        (["-u", "www-dta"], 2, "the nearest is `www-data`"),
        (["-u", "a b"], 2, "neither a name nor a number"),
        (["-u", "4294967295"], 2, "larger than any id"),
        (["-w", "srv"], 2, "expected: an absolute path"),
        (
            ["-w", "/no/such"],
            125,
            "enter the working directory: /no/such: No such file",
        ),
    ] {
        let run = [&["run"], &flags[..], &["--", "true"]].concat();
        let (got, said) = lab.lrpns_err(&run);
        assert!(
            got == code && said.contains(words),
            "{flags:?}: {got}: {said}"
        );
    }
    let (_, said) = lab.lrpns_err(&["run", "-w", "/no/such", "--", "true"]);
    assert!(said.contains("hint: workdir is a directory"), "{said}");
}

#[test]
fn another_user_takes_another_app_and_another_place_to_start_a_restart() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    let file = |more: &str| look::telling("web", "x", "0.0.0.0:5000:5000", more);
    look::up(&lab, &file("user = 7"));
    let path = lab.write("changed.toml", &file("user = 7\nworkdir = \"/tmp\""));
    lab.lrpns_ok(&["apply", "-f", path.to_str().unwrap()]);
    let exec = ["exec", "web", "--", "sh", "-c", "pwd; id -u"];
    assert_eq!(lab.lrpns_ok(&exec), "/tmp\n7\n");
    for (key, changed) in [("user", "user = 8"), ("group", "user = 7\ngroup = 8")] {
        let path = lab.write("changed.toml", &file(changed));
        let (code, said) = lab.lrpns_err(&["apply", "-f", path.to_str().unwrap()]);
        assert!(
            code == 1 && said.contains(&format!("app.{key} can't be changed while the stack runs")),
            "{code}: {said}"
        );
        assert!(said.contains("give the app another name too"), "{said}");
    }
    assert_eq!(lab.lrpns_ok(&exec), "/tmp\n7\n");
    let plan = lab.lrpns_ok(&[
        "plan",
        "-v",
        "-f",
        lab.write("plan.toml", &file("user = 7\ngroup = 8"))
            .to_str()
            .unwrap(),
    ]);
    assert!(plan.contains("runs as 7, group 8, inside"), "{plan}");
}

/// An app of a running stack's plan.
fn planned<'s>(status: &'s serde_json::Value, app: &str) -> &'s serde_json::Value {
    let mut apps = status["plan"]["apps"].as_array().unwrap().iter();
    apps.find(|found| found["name"] == app).unwrap()
}

/// A stack whose app has a range of ids.
fn over_a_range(command: &[&str], more: &str) -> String {
    format!(
        "name = \"web\"\n[app]\nrootfs = \"host\"\nids = \"range\"\nrestart = \"no\"\ncommand = {}\n{more}\n",
        look::toml_list(command)
    )
}

#[test]
fn a_server_that_begins_as_root_has_workers_that_hold_nothing() {
    if !look::machine_with(&["nginx"]) {
        return;
    }
    let lab = Lab::forwarding();
    let nginx = look::NGINX
        .replace("/tmp/nginx.pid", "/run/nginx.pid")
        .replace("daemon off;", "daemon off;\nuser www-data;")
        .replace("listen [::]:5000;", "");
    let conf = lab.write("nginx.conf", &nginx);
    let (www_data, _) = www_data();
    for via in ["dnat", "relay"] {
        let more = format!(
            "publish = [\"0.0.0.0:5000:5000\"]\nvia = \"{via}\"\ntmpfs = [\"/run:1M\", \"/tmp:1M\", \"/var/log/nginx:1M\"]\n\
             volumes = [\"{}:/srv/nginx.conf\"]\nstop_signal = \"SIGQUIT\"",
            conf.display()
        );
        look::up(
            &lab,
            &over_a_range(&["nginx", "-c", "/srv/nginx.conf"], &more),
        );
        let url = format!("http://{}:5000/", support::lab::LAB);
        assert_eq!(lab.client_get(&url).unwrap(), "from nginx\n");
        let status = lab.status("web");
        let ids = &planned(&status, "app")["ids"];
        let first = ids["host_id"].as_u64().unwrap();
        assert!(first >= 0x7000_0000 && ids["count"] == 65536, "{ids}");
        let master = look::pid(&status, "app");
        let workers = lab.ok(&["pgrep", "-P", &master.to_string()]);
        for (pid, uid, held) in
            [(master, 0, "00000000000400eb")]
                .into_iter()
                .chain(workers.lines().map(|pid| {
                    (
                        pid.parse().unwrap(),
                        u64::from(www_data),
                        "0000000000000000",
                    )
                }))
        {
            let uids = look::status_line(&lab, pid, "Uid");
            let uids: Vec<&str> = uids.split_whitespace().collect();
            assert_eq!(uids, vec![(first + uid).to_string(); 4]);
            let sets = look::capabilities(&lab, pid);
            let [_, permitted, effective, bounding, ambient] = &sets[..] else {
                panic!("{sets:?}");
            };
            assert_eq!(
                (permitted.as_str(), effective.as_str()),
                (held, held),
                "{via} {pid}"
            );
            assert_eq!(
                (bounding.as_str(), ambient.as_str()),
                ("00000000000400eb", "0000000000000000")
            );
            assert_eq!(look::status_line(&lab, pid, "NoNewPrivs"), "1");
            assert_eq!(look::status_line(&lab, pid, "Seccomp"), "2");
        }
        assert_eq!(workers.lines().count(), 1);
        let report = lab.lrpns(&["audit", "web", "--json"]);
        let found = look::findings(&report.stdout);
        assert!(
            found.is_empty() && report.status.success(),
            "{via}: {found:#?}"
        );
        lab.lrpns_ok(&["restart", "web", "app"]);
        assert_eq!(lab.client_get(&url).unwrap(), "from nginx\n");
        lab.lrpns_ok(&["down", "web"]);
    }
}

/// What it takes to shut a worker in, and what it does not give: the classic way out ends where the app's root does.
#[test]
fn chroot_is_for_root_over_a_range_alone_and_leads_nowhere() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let attack = r#"
os.makedirs('/tmp/cell', exist_ok=True)
found = []
root = os.open('/', os.O_PATH)
same = lambda: os.path.samestat(os.stat('.'), os.fstat(root))
for leave in (lambda: None, lambda: (os.setgid(33), os.setuid(33))):
    read, write = os.pipe()
    if os.fork() == 0:
        leave()
        done = tried(os.chroot, '/tmp/cell')
        inside = os.listdir('/') == []
        os.fchdir(root)
        for _ in range(64): os.chdir('..')
        os.write(write, json.dumps([done, inside, same(), tried(os.chroot, '.')]).encode())
        os._exit(0)
    os.close(write)
    found.append(json.loads(os.read(read, 1000)))
    os.wait()
say(found)
"#;
    for more in ["", "seccomp = \"default+set_mempolicy\""] {
        look::up(&lab, &over_a_range(&["sleep", "infinity"], more));
        let found = look::attack(&lab, "web", "app", attack);
        let expected =
            serde_json::json!([["OK", true, true, "OK"], ["EPERM", false, true, "EPERM"]]);
        assert_eq!(found, expected, "{more}");
        let report = describe(&lab.lrpns(&["audit", "web", "--json"]));
        assert!(
            report.contains("from outside /dev as its root, .. ends at"),
            "{report}"
        );
        lab.lrpns_ok(&["down", "web"]);
    }
    let code = "import os; os.chroot('/tmp')";
    let file = over_a_range(&[look::PYTHON, "-c", code], "seccomp = \"strict\"");
    let path = lab.write("strict.toml", &file);
    let said = describe(&lab.lrpns(&["up", "-d", "-f", path.to_str().unwrap()]));
    assert!(said.contains("Operation not permitted"), "{said}");
}

#[test]
fn su_and_runuser_change_to_a_user_over_a_range_without_a_password() {
    if !machine() || !std::path::Path::new("/etc/pam.d/su").exists() {
        return;
    }
    let lab = Lab::new();
    for command in [
        &["su", "-s", "/bin/sh", "-c", "id -u", "nobody"][..],
        &["runuser", "-u", "nobody", "--", "id", "-u"],
    ] {
        let file = over_a_range(command, "");
        let path = lab.write("su.toml", &file);
        let output = lab.lrpns(&["up", "-f", path.to_str().unwrap()]);
        let said = describe(&output);
        assert!(said.contains("| 65534"), "{command:?}: {said}");
    }
}

#[test]
fn what_all_ids_of_a_range_have_together_is_bounded_as_for_one() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    look::up(
        &lab,
        &over_a_range(&["sleep", "infinity"], "limits = { pids = 24 }"),
    );
    let found = look::attack(
        &lab,
        "web",
        "app",
        r#"
import signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
told, tell = os.pipe()
forked = instances = 0
pids = []
for uid in range(2000, 2100):
    try:
        pid = os.fork()
    except OSError:
        break
    forked += 1
    pids.append(pid)
    if pid == 0:
        os.setgid(uid)
        os.setuid(uid)
        made = 0
        for _ in range(20):
            made += libc.inotify_init() >= 0
        os.write(tell, bytes([made]))
        signal.pause()
    instances += os.read(told, 1)[0]
say([forked, instances])
for pid in pids:
    os.kill(pid, signal.SIGKILL)
"#,
    );
    let [forked, instances] = [&found[0], &found[1]].map(|n| n.as_u64().unwrap());
    assert!((8..24).contains(&forked), "{found}");
    assert_eq!(instances, 16, "{found}");
}

#[test]
fn a_volume_of_a_range_is_whose_the_option_says_and_nobody_elses() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let (www_data, _) = www_data();
    let mut volumes = vec![];
    for (name, option) in [("a", ""), ("b", ",owner=www-data")] {
        let data = lab.dir.path().join(name);
        std::fs::create_dir(&data).unwrap();
        std::os::unix::fs::chown(&data, Some(4321), Some(4322)).unwrap();
        volumes.push(format!("{}:/{name}:rw{option}", data.display()));
    }
    let volumes: Vec<&str> = volumes.iter().map(String::as_str).collect();
    let more = format!("volumes = {}", look::toml_list(&volumes));
    let file = over_a_range(&["sleep", "infinity"], &more);
    let path = lab.write("range.toml", &file);
    let plan = lab.lrpns_ok(&["plan", "-v", "-f", path.to_str().unwrap()]);
    for words in [
        "holds what root has over files and processes of its own ids",
        "ids 0 to 65535 inside, ",
        "price: who breaks in",
        &format!("writable, {www_data} is its owner on the disk"),
    ] {
        assert!(plan.contains(words), "{words}: {plan}");
    }
    look::up(&lab, &file);
    // Who is not the owner makes nothing there, nor is anything given to another.
    let script = "stat -c %u /a /b; touch /a/mine; setpriv --reuid www-data --regid www-data --clear-groups touch /b/theirs; \
                  touch /b/roots; chown 7 /b/theirs; chown 7 /a/mine; chmod 4755 /a/mine; stat -c %A /a/mine; ls /b";
    let output = lab.lrpns(&["exec", "web", "--", "sh", "-c", script]);
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(
        out,
        format!("0\n{www_data}\n-rw-r--r--\ntheirs\n"),
        "{}",
        describe(&output)
    );
    for name in ["a/mine", "b/theirs"] {
        let made = std::fs::metadata(lab.dir.path().join(name));
        let made = made.unwrap_or_else(|e| panic!("{name}: {e}: {}", describe(&output)));
        assert_eq!(
            std::os::unix::fs::MetadataExt::uid(&made),
            4321,
            "{name}: {}",
            describe(&output)
        );
    }
}

#[test]
fn a_range_joins_live_and_what_can_t_be_one_is_refused() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    let user = User::new(&lab, 4321);
    let app = |name: &str, more: &str| {
        format!("[app.{name}]\nrootfs = \"host\"\ncommand = [\"sleep\", \"infinity\"]\n{more}\n")
    };
    let one = format!("name = \"web\"\n{}", app("one", "ids = \"range\""));
    look::up(&lab, &one);
    let path = lab.write("more.toml", &(one.clone() + &app("two", "ids = \"range\"")));
    lab.lrpns_ok(&["apply", "-f", path.to_str().unwrap()]);
    let status = lab.status("web");
    let first = |name: &str| planned(&status, name)["ids"]["host_id"].as_u64().unwrap();
    let mut slots = vec![first("one") >> 16, first("two") >> 16];
    slots.push(status["plan"]["sidecar"]["host_id"].as_u64().unwrap() >> 16);
    slots.dedup();
    assert_eq!(slots.len(), 3, "{slots:?}");
    assert_eq!(
        lab.lrpns_ok(&["exec", "web", "--part", "two", "--", "id", "-u"]),
        "0\n"
    );

    let changed = format!(
        "name = \"web\"\n{}{}",
        app("one", ""),
        app("two", "ids = \"range\"")
    );
    let path = lab.write("changed.toml", &changed);
    let (code, said) = lab.lrpns_err(&["apply", "-f", path.to_str().unwrap()]);
    assert!(
        code == 1 && said.contains("app.one.ids can't be changed"),
        "{code}: {said}"
    );

    for (more, words) in [
        (
            "ids = \"range\"\nuser = \"www-data\"",
            "a user or group that is not root's",
        ),
        (
            "volumes = [\"/srv:/srv:owner=www-data\"]",
            "owner=www-data, and the app has ids = \"one\"",
        ),
        (
            "ids = \"range\"\nvolumes = [\"/srv:/srv:owner=70000\"]",
            "owner=70000",
        ),
    ] {
        let path = lab.write(
            "wrong.toml",
            &format!("name = \"wrong\"\n{}", app("x", more)),
        );
        let (code, said) = lab.lrpns_err(&["up", "-d", "-f", path.to_str().unwrap()]);
        assert!(
            code == 2 && said.contains(words) && said.contains("hint: "),
            "{code}: {said}"
        );
    }
    let output = user.lrpns(&[
        "up",
        "-d",
        "-f",
        lab.write("one.toml", &one).to_str().unwrap(),
    ]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        (said.contains("has no 65535 ids in /etc/subuid")
            || said.contains("there is no newuidmap"))
            && said.contains("hint: "),
        "{said}"
    );
}

#[test]
fn a_tmpfs_is_the_apps_but_for_what_is_everybodys() {
    if !machine() {
        return;
    }
    let lab = Lab::new();
    let look = ["stat", "-c", "%n %a %u %g", "/tmp", "/srv/x", "/dev/shm"];
    let tmpfs = ["--tmpfs", "/tmp:1M", "--tmpfs", "/srv/x:1M"];
    let run = [&["run", "-u", "33:7"], &tmpfs[..], &["--"], &look].concat();
    assert_eq!(
        lab.lrpns_ok(&run),
        "/tmp 1777 0 0\n/srv/x 755 33 7\n/dev/shm 1777 0 0\n"
    );
    let user = User::new(&lab, 4321);
    if user.may() {
        let said = user.lrpns_ok(&run);
        assert!(said.contains("/srv/x 755 33 7"), "{said}");
    }
    let file = over_a_range(
        &["sleep", "infinity"],
        "tmpfs = [\"/tmp:1M\", \"/srv/x:1M\"]",
    );
    look::up(&lab, &file);
    let output = lab.lrpns(&[&["exec", "web", "--"], &look[..]].concat());
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "/tmp 1777 0 0\n/srv/x 1777 0 0\n/dev/shm 1777 0 0\n",
        "{}",
        describe(&output)
    );
}

#[test]
fn an_ordinary_user_has_a_range_by_the_helpers_of_the_host() {
    if !machine() {
        return;
    }
    if support::program("newuidmap").is_none() {
        support::skip("uidmap", "there is no newuidmap");
        return;
    }
    let lab = Lab::new();
    let user = User::new(&lab, 4321);
    if !user.may() {
        return;
    }
    lab.own_etc();
    // Set-user-ID, whatever this machine has made of them.
    lab.ok(&[
        "sh",
        "-ec",
        "for name in newuidmap newgidmap; do
            install -o root -g root -m 4755 /usr/bin/$name /run/lab/$name; mount --bind /run/lab/$name /usr/bin/$name
         done
         echo user:x:4321:4321::/:/bin/sh >>/etc/passwd; : >/etc/subuid; : >/etc/subgid",
    ]);
    let data = lab.dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::os::unix::fs::chown(&data, Some(4321), Some(4321)).unwrap();
    let volumes = format!("volumes = [\"{}:/data:rw\"]", data.display());
    let file = over_a_range(&["sleep", "infinity"], &volumes);
    let path = lab.write("range.toml", &file);
    let path = path.to_str().unwrap();
    let refused = |words: &str| {
        let output = user.lrpns(&["up", "-d", "-f", path]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && said.contains(words),
            "{words}: {said}"
        );
    };
    refused(
        "and user has no 65535 ids in /etc/subuid\nhint: as root: usermod --add-subuids 100000-165535 user",
    );
    lab.ok(&["sh", "-c", "echo user:300000:65536 >/etc/subuid"]);
    refused("and user has no 65535 ids in /etc/subgid\nhint: as root: usermod --add-subgids");
    lab.ok(&["sh", "-c", "echo 4321:400000:65536 >/etc/subgid"]);
    user.lrpns_ok(&["up", "-d", "-f", path]);
    let script = "id -u; tr -s ' ' </proc/self/uid_map; touch /data/mine; touch /tmp/x; chown www-data:www-data /tmp/x; \
                  setpriv --reuid www-data --regid www-data --clear-groups sh -c 'id -u; touch /tmp/x; touch /data/theirs'; chown 7 /data/mine; stat -c %u:%g /data/mine";
    let output = user.lrpns(&["exec", "web", "--", "sh", "-c", script]);
    let (www_data, _) = www_data();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim_start_matches(' '),
        format!("0\n 0 0 1\n 1 1 65535\n{www_data}\n7:0\n"),
        "{}",
        describe(&output)
    );
    let made = std::fs::metadata(data.join("mine")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 300_006);
    assert!(!data.join("theirs").exists());
    user.lrpns_ok(&["audit", "web"]);
    user.lrpns_ok(&["restart", "web", "app"]);
    user.lrpns_ok(&["down", "web"]);

    // Whose files are whose is for root to say.
    let file = over_a_range(&["true"], "volumes = [\"/etc/ssl:/x:owners\"]");
    let path = lab.write("owners.toml", &file);
    let output = user.lrpns(&["up", "-d", "-f", path.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("owners, which takes root"), "{said}");
}

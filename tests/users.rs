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
        "root:x:0:0:root:/:/usr/sbin/nologin\nnobody:x:65534:65534::/:/no\nsrv:x:42:43::/var/lib/srv:/bin/false\n\
         root:x:0:\nnogroup:x:65534:\nsrv:x:43:srv\n"
    );
    let told = lab.lrpns_ok(&[&["run", "-u", "jane", "--"][..], &cat].concat());
    assert!(
        told.contains("\njane:x:1042:1042::/:/usr/sbin/nologin\n")
            && told.contains("\njane:x:1042:\n"),
        "{told}"
    );

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
        "-f",
        lab.write("plan.toml", &file("user = 7\ngroup = 8"))
            .to_str()
            .unwrap(),
    ]);
    assert!(plan.contains("runs as 7, group 8, inside"), "{plan}");
}

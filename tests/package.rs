//! The Debian package's scripts (`scripts/debian`), run by a real dpkg: installed, upgraded under a stack that runs,
//! removed, purged. The package here has the program that was just built and those scripts; what else `scripts/package`
//! puts in, and systemd, is looked at by `scripts/vm`.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use support::lab::{Lab, describe, lrpns};

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/debian");
const URL: &str = "http://localhost:5000/";
const STACK: &str = "/etc/lrpns/kept.toml";

/// A lab whose /usr and /etc can be written to, each over the machine's, with a dpkg that knows of no package, whatever
/// the machine's is at, and with an `apparmor_parser` that takes what has a rule in the file `understood`; `None` if there
/// is no dpkg here.
fn machine() -> Option<Lab> {
    if support::program("dpkg-deb").is_none() {
        support::skip("dpkg", "there is no dpkg-deb");
        return None;
    }
    let lab = Lab::new();
    // What is written goes into memory, over the machine's own, which stays as it is.
    lab.ok(&[
        "sh",
        "-ec",
        "mount -t tmpfs tmpfs /mnt
         for d in usr etc; do
             mkdir /mnt/$d /mnt/$d.work
             mount -t overlay overlay -o lowerdir=/$d,upperdir=/mnt/$d,workdir=/mnt/$d.work /$d
         done
         mount -t tmpfs tmpfs /var/lib/dpkg
         mkdir /var/lib/dpkg/info /var/lib/dpkg/updates /var/lib/dpkg/triggers
         touch /var/lib/dpkg/status
         rm -rf /usr/local/bin/lrpns /etc/lrpns /etc/systemd/system/lrpns@.service
         mkdir -p /etc/apparmor.d /etc/systemd/system/multi-user.target.wants
         cat >/usr/sbin/apparmor_parser <<'SH'
#!/bin/sh
for last; do :; done
exec grep -qf /run/lab/understood \"$last\"
SH
         chmod 755 /usr/sbin/apparmor_parser
         echo userns >/run/lab/understood",
    ]);
    Some(lab)
}

/// Makes the package in this version; the file's name.
fn package(lab: &Lab, version: &str) -> String {
    let root = lab.dir.path().join(version);
    let control = root.join("DEBIAN");
    for dir in ["DEBIAN", "usr/bin", "usr/share/lrpns"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(&root, 0o755);
    let architecture = lab.ok(&["dpkg", "--print-architecture"]);
    fs::write(
        control.join("control"),
        format!(
            "Package: lrpns\nVersion: {version}\nArchitecture: {architecture}Maintainer: nobody <nobody@example.org>\n\
             Description: lrpns\n"
        ),
    )
    .unwrap();
    for script in ["postinst", "prerm", "postrm", "triggers"] {
        fs::copy(Path::new(SCRIPTS).join(script), control.join(script)).unwrap();
    }
    fs::copy(lrpns(), root.join("usr/bin/lrpns")).unwrap();
    fs::copy(
        Path::new(SCRIPTS).join("apparmor"),
        root.join("usr/share/lrpns/apparmor"),
    )
    .unwrap();
    let file = format!("{version}.deb");
    // Uncompressed: it is read once.
    lab.ok(&["dpkg-deb", "-Znone", "--build", version, &file]);
    file
}

fn dpkg(lab: &Lab, args: &[&str]) -> String {
    let done = lab.run(&[&["dpkg"], args].concat());
    assert!(done.status.success(), "dpkg {args:?}: {}", describe(&done));
    describe(&done)
}

fn is_there(lab: &Lab, path: &str) -> bool {
    fs::symlink_metadata(lab.root().join(path.trim_start_matches('/'))).is_ok()
}

#[test]
fn a_stack_lives_through_an_upgrade_and_ends_with_the_removal() {
    let Some(lab) = machine() else { return };
    let (first, second) = (package(&lab, "0.0.1"), package(&lab, "0.0.2"));
    dpkg(&lab, &["-i", &first]);
    // A root of its own: the built-in app is the program itself, and starts no more once that is replaced (tests/cli.rs).
    lab.ok(&[
        "sh",
        "-ec",
        "mkdir -p root/proc root/dev root/tmp; cp \"$0\" root/webapp",
        lrpns(),
    ]);
    let before = lab.traces();
    let file = |ports: &str| {
        let root = lab.dir.path().join("root");
        format!(
            "name = \"kept\"\n[app]\nrootfs = \"dir:{}\"\ncommand = [\"/webapp\"]\npublish = [{ports}]\n",
            root.display()
        )
    };
    let stack = lab.root().join(STACK.trim_start_matches('/'));
    // The folder is there: nobody has made it but the package.
    fs::write(&stack, file("\"5000:5000\"")).unwrap();
    let program = "/usr/bin/lrpns";
    lab.ok(&[program, "up", "kept", "-d"]);
    assert_eq!(lab.get(URL).unwrap(), "Hello world!");
    let status = || -> serde_json::Value {
        serde_json::from_str(&lab.ok(&[program, "status", "kept", "--json"])).unwrap()
    };
    let old = status();

    dpkg(&lab, &["-i", &second]);
    let supervisor = old["supervisor"].as_i64().unwrap();
    assert_eq!(status()["parts"], old["parts"], "the stack was touched");
    assert_eq!(status()["supervisor"], supervisor);
    let runs = lab.ok(&["readlink", &format!("/proc/{supervisor}/exe")]);
    assert!(runs.trim().ends_with("(deleted)"), "not replaced: {runs}");
    assert_eq!(lab.get(URL).unwrap(), "Hello world!");
    // The new program with the old supervisor, which still starts parts.
    for part in ["app", "sidecar", "relay"] {
        lab.ok(&[program, "restart", "kept", part]);
        assert_eq!(lab.get(URL).unwrap(), "Hello world!");
    }
    fs::write(&stack, file("\"5000:5000\", \"5001:5000\"")).unwrap();
    lab.ok(&[program, "apply", "kept", "-f", STACK]);
    assert_eq!(lab.get("http://localhost:5001/").unwrap(), "Hello world!");
    lab.ok(&[program, "audit", "kept"]);
    assert_eq!(status()["supervisor"], supervisor);

    dpkg(&lab, &["--remove", "lrpns"]);
    lab.assert_as(&before);
    assert!(lab.get(URL).is_err(), "it is still published");
    assert!(is_there(&lab, STACK), "the stack's file is gone");
    assert!(is_there(&lab, "/var/log/lrpns/kept"), "its log is gone");

    dpkg(&lab, &["--purge", "lrpns"]);
    assert!(is_there(&lab, STACK), "the stack's file is gone");
    assert!(!is_there(&lab, "/var/log/lrpns"), "its log is still there");
}

#[test]
fn a_purge_leaves_nothing_that_the_package_or_systemctl_enable_has_made() {
    let Some(lab) = machine() else { return };
    let file = package(&lab, "0.0.1");
    dpkg(&lab, &["-i", &file]);
    let enabled = "/etc/systemd/system/multi-user.target.wants/lrpns@one.service";
    let another = "/etc/systemd/system/multi-user.target.wants/other@one.service";
    for link in [enabled, another] {
        let link = lab.root().join(link.trim_start_matches('/'));
        symlink("/usr/lib/systemd/system/x@.service", link).unwrap();
    }
    dpkg(&lab, &["--remove", "lrpns"]);
    assert!(
        is_there(&lab, enabled),
        "a new installation would not start it"
    );
    dpkg(&lab, &["--purge", "lrpns"]);
    assert!(!is_there(&lab, enabled));
    assert!(is_there(&lab, another), "another's unit was disabled");
    assert!(!is_there(&lab, "/etc/lrpns"));
    assert!(!is_there(&lab, "/run/lrpns"));
}

#[test]
fn the_apparmor_profile_is_there_where_it_is_understood_and_as_soon_as_it_is() {
    let Some(lab) = machine() else { return };
    let profile = "/etc/apparmor.d/lrpns";
    let file = package(&lab, "0.0.1");
    lab.ok(&["sh", "-c", "echo 'no such rule' >/run/lab/understood"]);
    dpkg(&lab, &["-i", &file]);
    assert!(!is_there(&lab, profile), "apparmor.service would fail");
    // As an upgrade of apparmor does.
    lab.ok(&["sh", "-c", "echo userns >/run/lab/understood"]);
    lab.ok(&[
        "dpkg-trigger",
        "--by-package=apparmor",
        "/etc/apparmor.d/abi/4.0",
    ]);
    dpkg(&lab, &["--configure", "--pending"]);
    assert!(is_there(&lab, profile), "the trigger has done nothing");
    dpkg(&lab, &["--remove", "lrpns"]);
    assert!(!is_there(&lab, profile), "it is for a program that is gone");
}

//! Confused deputies: what an app, or another user of the host, could have done by somebody who may do more.
#![allow(clippy::unwrap_used)]

mod support;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use support::lab::{Lab, describe};
use support::look::{self, PYTHON};
use support::user::User;

/// An app that does to every other process of its namespace what it can, all the time, and says what it could.
const HINDERS: &str = r#"
import os, resource, signal
done = set()
def attempt(what, call):
    try:
        call()
    except OSError:
        return
    if what not in done:
        done.add(what)
        print("could", what, flush=True)
def pidfd(pid, number):
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, number)
    finally:
        os.close(fd)
print("ready", flush=True)
while True:
    for pid in range(1, 300):
        if pid == os.getpid():
            continue
        attempt("look", lambda: os.listdir(f"/proc/{pid}/fd"))
        attempt("limit", lambda: resource.prlimit(pid, resource.RLIMIT_NOFILE, (0, 0)))
        for number in (signal.SIGSTOP, signal.SIGKILL):
            # Pid 1 can be sent these, and ignores them (pid_namespaces(7)).
            if pid > 1:
                attempt("signal", lambda: os.kill(pid, number))
                attempt("signal by pidfd", lambda: pidfd(pid, number))
                attempt("signal a group", lambda: os.killpg(pid, number))
"#;

fn hindering(lab: &Lab) -> String {
    let text = format!(
        "name = \"x\"\n[app]\nrootfs = \"host\"\ncommand = [\"{PYTHON}\", \"-S\", \"-c\", '''{HINDERS}''']\n"
    );
    lab.write("x.toml", &text).to_str().unwrap().to_owned()
}

/// What the app says that it could do.
fn could(lab: &Lab) -> Vec<String> {
    let log = lab.lrpns_ok(&["logs", "x", "--part", "app"]);
    let said = log.lines().filter_map(|line| line.split_once("could "));
    said.map(|(_, what)| what.to_owned()).collect()
}

#[test]
fn an_app_can_neither_end_nor_stop_nor_starve_what_exec_and_audit_start_in_it() {
    if !look::machine() {
        return;
    }
    if !look::landlock_knows_signals() {
        return support::skip("landlock", "this kernel's Landlock does not scope signals");
    }
    let lab = Lab::new();
    let file = hindering(&lab);
    lab.lrpns_ok(&["up", "-d", "-f", &file]);
    let long = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; ulimit -n; echo done";
    for _ in 0..3 {
        let exec = lab.lrpns(&["exec", "x", "--", "sh", "-c", long]);
        let said = String::from_utf8_lossy(&exec.stdout).into_owned();
        assert!(exec.status.success(), "{}", describe(&exec));
        let limit: u64 = said.lines().next().unwrap().parse().unwrap();
        assert!(limit > 3 && said.ends_with("done\n"), "{said}");
    }
    let audit = lab.lrpns(&["audit", "x"]);
    assert!(audit.status.success(), "{}", describe(&audit));
    assert_eq!(could(&lab), Vec::<String>::new());
    lab.lrpns_ok(&["down", "x"]);
    lab.lrpns_ok(&["up", "-d", "--gate", "-f", &file]);
    lab.lrpns_ok(&["down", "x"]);
}

#[test]
fn an_audit_that_an_app_hinders_is_a_failed_one_soon() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let file = hindering(&lab);
    // As on a kernel without Landlock.
    let weak = [("LRPNS_TEST_WEAKEN", "landlock")];
    let up = lab.lrpns_with(&weak, &["up", "-d", "-f", &file]);
    assert!(up.status.success(), "{}", describe(&up));
    let begun = Instant::now();
    let audit = lab.lrpns(&["audit", "x"]);
    let took = begun.elapsed();
    let said = String::from_utf8_lossy(&audit.stdout).into_owned();
    assert_eq!(audit.status.code(), Some(1), "{}", describe(&audit));
    assert!(said.contains("the part hinders the audit"), "{said}");
    assert!(took < Duration::from_secs(60), "{took:?}");
    assert!(could(&lab).iter().any(|what| what == "signal"));
    lab.lrpns_ok(&["down", "x"]);
    let begun = Instant::now();
    let gated = lab.lrpns_with(&weak, &["up", "-d", "--gate", "-f", &file]);
    let took = begun.elapsed();
    assert_eq!(gated.status.code(), Some(1), "{}", describe(&gated));
    assert!(took < Duration::from_secs(90), "{took:?}");
}

/// Tries each way to make a set-user-ID or set-group-ID file or directory, and what must go on working beside it.
const SPECIAL: &str = r#"
import ctypes, errno, json, os, shutil, stat, subprocess
libc = ctypes.CDLL(None, use_errno=True)
os.umask(0)
told = {}
def attempt(name, call):
    try:
        call()
        told[name] = "done"
    except OSError as e:
        told[name] = errno.errorcode[e.errno]
def raw(number, *args):
    if libc.syscall(number, *args) < 0:
        raise OSError(ctypes.get_errno(), "")
CWD = -100
os.chdir(PLACE)
for name in ("a", "b", "c", "d"):
    open(name, "w").close()
for bits in (0o4000, 0o2000, 0o6000):
    mode = 0o755 | bits
    n = f"{bits:o}"
    attempt("chmod " + n, lambda: os.chmod("a", mode))
    attempt("fchmod " + n, lambda: os.fchmod(os.open("b", os.O_RDONLY), mode))
    attempt("fchmodat " + n, lambda: os.chmod("c", mode, dir_fd=os.open(".", os.O_RDONLY)))
    attempt("fchmodat2 " + n, lambda: raw(452, CWD, b"d", mode, 0))
    attempt("open " + n, lambda: os.open("open" + n, os.O_CREAT | os.O_WRONLY, mode))
    attempt("tmpfile " + n, lambda: os.open(".", os.O_TMPFILE | os.O_WRONLY, mode))
    attempt("mknod " + n, lambda: os.mknod("mknod" + n, stat.S_IFREG | mode))
    attempt("fifo " + n, lambda: os.mkfifo("fifo" + n, mode))
    attempt("mkdir " + n, lambda: os.mkdir("mkdir" + n, mode))
    attempt("chmod directory " + n, lambda: (os.makedirs("directory", exist_ok=True), os.chmod("directory", mode)))
    if os.uname().machine == "x86_64":
        attempt("old chmod " + n, lambda: raw(90, b"a", mode))
        attempt("old open " + n, lambda: raw(2, b"old" + n.encode(), os.O_CREAT | os.O_WRONLY, mode))
        attempt("creat " + n, lambda: raw(85, b"creat" + n.encode(), mode))
        attempt("old mknod " + n, lambda: raw(133, b"oldnod" + n.encode(), stat.S_IFREG | mode, 0))
        attempt("old mkdir " + n, lambda: raw(83, b"olddir" + n.encode(), mode))
    how = (ctypes.c_uint64 * 3)(os.O_CREAT | os.O_WRONLY, mode, 0)
    attempt("openat2 " + n, lambda: raw(437, CWD, b"openat2" + n.encode(), how, 24))
attempt("io_uring", lambda: raw(425, 1, (ctypes.c_char * 120)()))
# VFS_CAP_REVISION_2 and 3 with all capabilities permitted and effective.
caps2 = bytes.fromhex("01000002" + "ffffffff00000000" * 2)
caps3 = bytes.fromhex("01000003" + "ffffffff00000000" * 2 + "00000000")
attempt("capabilities", lambda: os.setxattr("a", "security.capability", caps2))
attempt("capabilities of a namespace", lambda: os.setxattr("a", "security.capability", caps3))
works = {}
os.chmod("a", 0o1700)
works["cp -p"] = subprocess.run(["cp", "-p", "a", "copy"], stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True)
works["cp -p of a set-user-ID program"] = subprocess.run(["cp", "-p", SUID, "copy-of-su"], stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True)
works["cp -a"] = subprocess.run(["cp", "-a", "copy", "copy2"], stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True)
works["mkdir -p"] = subprocess.run(["mkdir", "-p", "-m", "1777", "some/where"], stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True)
works["tar"] = subprocess.run("tar c copy copy2 | tar x -C some", shell=True, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True)
print(json.dumps([told, {name: [it.returncode, it.stdout] for name, it in works.items()}]))
"#;

#[test]
fn an_app_leaves_no_set_user_id_program_in_a_volume() {
    if !look::machine() {
        return;
    }
    const OWNER: u32 = 4321;
    let lab = Lab::new();
    let data = lab.dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    chown(&data, Some(OWNER), Some(OWNER)).unwrap();
    // A profile of the user's allows it as little: this one allows everything.
    lab.write("all.json", r#"{ "defaultAction": "SCMP_ACT_ALLOW" }"#);
    // One that was there before, of somebody else, and readable.
    let tools = lab.dir.path().join("tools");
    std::fs::create_dir(&tools).unwrap();
    let suid = tools.join("su");
    std::fs::copy("/bin/true", &suid).unwrap();
    std::fs::set_permissions(&suid, std::fs::Permissions::from_mode(0o4755)).unwrap();
    for seccomp in ["default", "strict", "./all.json"] {
        let text = format!(
            "name = \"x\"\n[app]\nrootfs = \"host\"\ncommand = [\"sleep\", \"infinity\"]\nseccomp = \"{seccomp}\"\nvolumes = [\"{}:/data:rw\", \"{}:/tools\"]\n",
            data.display(),
            tools.display()
        );
        let file = lab.write("x.toml", &text);
        lab.lrpns_ok(&["up", "-d", "-f", file.to_str().unwrap()]);
        let mut code = format!("PLACE, SUID = '/data', '/tools/su'\n{SPECIAL}");
        if seccomp == "strict" {
            // Which starts no programs.
            let works = code.find("works = {}").unwrap();
            code.truncate(works);
            code.push_str("print(json.dumps([told, {}]))\n");
        }
        let exec = lab.lrpns(&["exec", "x", "--", PYTHON, "-S", "-c", &code]);
        assert!(exec.status.success(), "{seccomp}: {}", describe(&exec));
        let told: serde_json::Value = serde_json::from_slice(&exec.stdout).unwrap();
        for (what, came) in told[0].as_object().unwrap() {
            let wanted = match what.as_str() {
                // The programs that call it fall back.
                what if what.starts_with("openat2") => &["ENOSYS"][..],
                "io_uring" => &["ENOSYS", "EPERM"],
                _ => &["EPERM"],
            };
            assert!(
                wanted.iter().any(|wanted| came == wanted),
                "{seccomp}: {what}: {came}"
            );
        }
        for (what, came) in told[1].as_object().unwrap() {
            assert_eq!(came[0], 0, "{seccomp}: {what}: {came}");
        }
        lab.lrpns_ok(&["down", "x"]);
        // What the host sees.
        let found = lab.ok(&["find", data.to_str().unwrap(), "-perm", "/6000"]);
        assert_eq!(found, "", "{seccomp}");
        if seccomp == "default" {
            let copy = std::fs::metadata(data.join("copy")).unwrap();
            assert_eq!(copy.mode() & 0o7777, 0o1700);
            assert_eq!(
                std::fs::metadata(data.join("copy-of-su")).unwrap().mode() & 0o7777,
                0o755
            );
        }
        for entry in std::fs::read_dir(&data).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                std::fs::remove_dir_all(path).unwrap();
            } else {
                std::fs::remove_file(path).unwrap();
            }
        }
    }
}

/// Another user of the host.
const OTHER: u32 = 4321;

/// Gives a file or directory away.
fn give(path: &Path, uid: u32) {
    chown(path, Some(uid), Some(uid)).unwrap();
}

const WAITS: &str = "[app]\nrootfs = \"host\"\ncommand = [\"sleep\", \"infinity\"]\n";

#[test]
fn root_takes_nobody_elses_word_for_a_stack() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let dir = lab.dir.path().join("theirs");
    std::fs::create_dir(&dir).unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        give(&path, OTHER);
        path.to_str().unwrap().to_owned()
    };
    give(&dir, OTHER);
    let theirs = write("lrpns.toml", &format!("name = \"x\"\n{WAITS}"));
    let in_there = |args: &[&str], sudo: Option<&str>| {
        let mut all = vec!["env", "-C", dir.to_str().unwrap()];
        let sudo = sudo.map(|uid| format!("SUDO_UID={uid}"));
        all.extend(sudo.as_deref());
        all.push(support::lab::lrpns());
        all.extend(args);
        lab.run(&all)
    };
    let refused = |args: &[&str], sudo, path: &str| {
        let output = in_there(args, sudo);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(
            output.status.code(),
            Some(2),
            "{args:?}: {}",
            describe(&output)
        );
        assert!(
            said.contains(path) && said.contains("--trust-file"),
            "{args:?}: {said}"
        );
    };
    let other = OTHER.to_string();
    let where_it_is = format!("{} belongs to uid {OTHER}", dir.display());
    for verb in ["up", "plan", "rules", "apply", "status", "down"] {
        refused(&[verb], None, &where_it_is);
        refused(&[verb], Some("1234"), &where_it_is);
    }
    refused(&["plan", "-f", &theirs], None, &where_it_is);
    // A link of root's own to it is no better.
    let link = lab.dir.path().join("link.toml");
    symlink(&theirs, &link).unwrap();
    refused(&["plan", "-f", link.to_str().unwrap()], None, &where_it_is);
    for (args, sudo) in [
        (&["plan"][..], Some(other.as_str())),
        (&["plan", "--trust-file"], None),
        (&["--trust-file", "plan", "-f", &theirs], None),
    ] {
        let output = in_there(args, sudo);
        assert!(output.status.success(), "{args:?}: {}", describe(&output));
    }
    // A name alone reads no file.
    let output = in_there(&["down", "x"], None);
    assert!(output.status.success(), "{}", describe(&output));

    // Every other file that is read on root's word.
    let rules = write("x.nft", "chain before { }\n");
    let profile = write("x.json", r#"{ "defaultAction": "SCMP_ACT_ALLOW" }"#);
    let env = write("x.env", "A=1\n");
    let own = |name: &str, text: String| lab.write(name, &text).to_str().unwrap().to_owned();
    let file = own("env.toml", format!("name = \"x\"\n{WAITS}"));
    refused(
        &["plan", "-f", &file, "--env-file", &env],
        None,
        &where_it_is,
    );
    let file = own(
        "rules.toml",
        format!("name = \"x\"\n[sidecar]\nrules = \"{rules}\"\n{WAITS}"),
    );
    refused(&["plan", "-f", &file], None, &where_it_is);
    let file = own(
        "profile.toml",
        format!("name = \"x\"\n{WAITS}seccomp = \"{profile}\"\n"),
    );
    refused(&["plan", "-f", &file], None, &where_it_is);

    // What everybody may write to is nobody's word.
    let open = lab.write("open.toml", &format!("name = \"x\"\n{WAITS}"));
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o666)).unwrap();
    refused(&["plan", "-f", open.to_str().unwrap()], None, "mode 0666");
    // An ordinary user reads what the kernel lets them read.
    let user = support::user::User::new(&lab, 1234);
    let plan = user.lrpns(&["plan", "-f", open.to_str().unwrap()]);
    assert!(plan.status.success(), "{}", describe(&plan));
}

#[test]
fn a_stack_that_is_named_is_the_installed_one() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let [upper, work] = ["upper", "work"].map(|name| {
        let path = lab.dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path.to_str().unwrap().to_owned()
    });
    let options = format!("lowerdir=/etc,upperdir={upper},workdir={work}");
    lab.ok(&["mount", "-t", "overlay", "overlay", "-o", &options, "/etc"]);
    lab.ok(&["mkdir", "-p", "/etc/lrpns"]);
    let installed = lab.write(
        "installed",
        &format!("[vars]\nWHERE = \"installed\"\n{WAITS}env = {{ WHERE = \"${{WHERE}}\" }}\n"),
    );
    lab.ok(&["cp", installed.to_str().unwrap(), "/etc/lrpns/prod.toml"]);
    lab.write(
        "lrpns.toml",
        &format!("name = \"prod\"\n{WAITS}env = {{ WHERE = \"here\" }}\n"),
    );
    let whence = |args: &[&str]| {
        let plan: serde_json::Value = serde_json::from_str(&lab.lrpns_ok(args)).unwrap();
        plan["apps"][0]["env"]["WHERE"].as_str().unwrap().to_owned()
    };
    assert_eq!(whence(&["plan", "--json", "prod"]), "installed");
    assert_eq!(whence(&["plan", "--json"]), "here");
    assert_eq!(
        whence(&["plan", "--json", "prod", "-f", "lrpns.toml"]),
        "here"
    );
    lab.ok(&["rm", "/etc/lrpns/prod.toml"]);
    assert_eq!(whence(&["plan", "--json", "prod"]), "here");
}

#[test]
fn errors_quote_no_file_that_the_user_who_runs_sudo_could_not_read() {
    if !look::machine() {
        return;
    }
    const SECRET: &str = "hunter2";
    let lab = Lab::new();
    let secret = lab.write("secret", &format!("=root:{SECRET}:\"\n"));
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let secret = secret.to_str().unwrap();
    let own = |name: &str, text: String| lab.write(name, &text).to_str().unwrap().to_owned();
    let plain = own("plain.toml", format!("name = \"x\"\n{WAITS}"));
    let rules = own(
        "rules.toml",
        format!("name = \"x\"\n[sidecar]\nrules = \"{secret}\"\n{WAITS}"),
    );
    let profile = own(
        "profile.toml",
        format!("name = \"x\"\n{WAITS}seccomp = \"{secret}\"\n"),
    );
    for (sudo, quotes) in [(Some("1234"), false), (None, true)] {
        for args in [
            &["plan", "-f", secret][..],
            &["plan", "-f", &plain, "--env-file", secret],
            &["plan", "-f", &profile],
            &["up", "-d", "-f", &rules],
        ] {
            let env: Vec<_> = sudo.iter().map(|uid| ("SUDO_UID", *uid)).collect();
            let output = lab.lrpns_with(&env, args);
            assert!(!output.status.success(), "{args:?}: {}", describe(&output));
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(said.contains("secret"), "{args:?}: {said}");
            if quotes {
                // serde names the place of a mistake in JSON, and the line comes from us.
                assert!(said.contains(SECRET), "{args:?}: {said}");
            } else {
                assert!(!said.contains(SECRET), "{args:?}: {said}");
            }
        }
    }
}

#[test]
fn a_root_is_the_directory_that_it_was_at_the_start_and_nothing_of_the_hosts() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let theirs = lab.dir.path().join("theirs");
    let root = theirs.join("root");
    for name in ["proc", "dev", "tmp"] {
        std::fs::create_dir_all(root.join(name)).unwrap();
    }
    std::fs::write(root.join("mine"), "mine").unwrap();
    lab.ok(&[
        "cp",
        support::lab::lrpns(),
        root.join("webapp").to_str().unwrap(),
    ]);
    let busybox = support::program("busybox");
    let Some(busybox) = busybox else {
        return support::skip("busybox", "it is not installed");
    };
    std::fs::copy(busybox, root.join("busybox")).unwrap();
    lab.ok(&["chown", "-R", &OTHER.to_string(), theirs.to_str().unwrap()]);
    let file = |root: &str| {
        let text = format!(
            "name = \"x\"\n[app]\nrootfs = \"dir:{root}\"\ncommand = [\"/webapp\"]\nlisten = [5000]\n"
        );
        let path = lab.write("x.toml", &text);
        path.to_str().unwrap().to_owned()
    };
    let up = file(root.to_str().unwrap());
    lab.lrpns_ok(&["up", "-d", "-f", &up]);
    // Its owner puts a link to the host's root in its place.
    let aside = theirs.join("aside");
    std::fs::rename(&root, &aside).unwrap();
    symlink("/", &root).unwrap();
    lab.lrpns_ok(&["restart", "x"]);
    let seen = lab.lrpns(&["exec", "x", "--", "/busybox", "ls", "/"]);
    let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert!(seen.contains("mine") && !seen.contains("etc"), "{seen}");
    lab.lrpns_ok(&["down", "x"]);
    std::fs::remove_file(&root).unwrap();
    std::fs::rename(&aside, &root).unwrap();

    // A stack whose state nobody else's app is to see.
    lab.lrpns_ok(&["up", "-d"]);
    let refused = |root: &str, why: &str| {
        let (code, said) = lab.lrpns_err(&["up", "-d", "-f", &file(root)]);
        assert!(matches!(code, 1 | 2 | 125), "{root}: {code}");
        assert!(said.contains(why), "{root}: {said}");
    };
    let link = lab.dir.path().join("link");
    symlink(&root, &link).unwrap();
    refused(link.to_str().unwrap(), "goes through a symbolic link");
    refused("/proc/self/root", "goes through a symbolic link");
    refused("/", "the host's whole root");
    refused(
        &format!("{}/../../../../../..", root.display()),
        "is the host's root",
    );
    refused("/run", "contains the directory of all stacks");
    refused(
        "/usr/../run/lrpns/..",
        "contains the directory of all stacks",
    );
    refused("/run/lrpns", "is the directory of all stacks");
    refused("/run/lrpns/customerA", "is part of a stack's state");
    lab.ok(&["mkdir", "-p", "/run/mounted"]);
    lab.ok(&["mount", "--bind", "/", "/run/mounted"]);
    refused("/run/mounted", "is the host's root");
    refused("/run/mounted/../mounted", "is the host's root");
    lab.ok(&["umount", "/run/mounted"]);
    let inside = root.join("a b\\c");
    std::fs::create_dir(&inside).unwrap();
    lab.ok(&["mount", "--bind", "/", inside.to_str().unwrap()]);
    refused(root.to_str().unwrap(), "which is the host's root");
    lab.ok(&["umount", inside.to_str().unwrap()]);
    lab.lrpns_ok(&["up", "-d", "-f", &file(root.to_str().unwrap())]);
    lab.lrpns_ok(&["down", "--all"]);
}

#[test]
fn a_change_that_can_not_be_saved_is_not_made() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    lab.ok(&["mount", "-o", "remount,size=2M", "/run"]);
    let file = |seconds: u32| {
        let text = format!(
            "name = \"x\"\n{WAITS}allow = [\"192.0.2.{seconds}\"]\npublish = [\"0.0.0.0:8000:8000\"]\n"
        );
        let text = text.replace(
            "\"sleep\", \"infinity\"",
            &format!("\"{PYTHON}\", \"-m\", \"http.server\", \"8000\""),
        );
        lab.write("x.toml", &text).to_str().unwrap().to_owned()
    };
    lab.lrpns_ok(&["up", "-d", "-f", &file(1)]);
    let saved = || {
        let plan = lab.ok(&["cat", "/run/lrpns/x/plan.json"]);
        let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
        plan["apps"][0]["allow"].to_string()
    };
    let before = (
        saved(),
        lab.status("x")["plan"]["apps"][0]["allow"].to_string(),
    );
    assert!(before.0.contains("192.0.2.1"), "{}", before.0);
    let full = lab.run(&["dd", "if=/dev/zero", "of=/run/filler", "bs=4k"]);
    assert!(!full.status.success());
    let (code, said) = lab.lrpns_err(&["apply", "x", "-f", &file(2)]);
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("No space left") && said.contains("nothing was changed"),
        "{said}"
    );
    assert_eq!(
        (
            saved(),
            lab.status("x")["plan"]["apps"][0]["allow"].to_string()
        ),
        before
    );
    let left = lab.ok(&["ls", "/run/lrpns/x"]);
    assert!(!left.contains("new"), "{left}");
    lab.ok(&["rm", "/run/filler"]);
    lab.lrpns_ok(&["apply", "x", "-f", &file(2)]);
    assert!(saved().contains("192.0.2.2"), "{}", saved());
    // A start that could not be saved leaves nothing either.
    lab.lrpns_ok(&["down", "x"]);
    assert!(
        !lab.run(&["dd", "if=/dev/zero", "of=/run/filler", "bs=4k"])
            .status
            .success()
    );
    let (_, said) = lab.lrpns_err(&["up", "-d", "-f", &file(1)]);
    assert!(said.contains("No space left"), "{said}");
    assert!(!lab.root().join("run/lrpns/x").exists());
}

#[test]
fn no_other_user_reads_the_value_of_a_variable_in_a_command_line() {
    if !look::machine() {
        return;
    }
    const SECRET: &str = "hunter2";
    let lab = Lab::new();
    let text = format!("name = \"x\"\n{WAITS}env = {{ TOKEN = \"${{TOKEN}}\" }}\n");
    let file = lab.write("x.toml", &text).to_str().unwrap().to_owned();
    let set = format!("TOKEN={SECRET}");
    lab.lrpns_ok(&["up", "-d", "-f", &file, "--set", &set]);
    // It has come to where it is meant for.
    let env = lab.lrpns_ok(&["exec", "x", "--", "printenv", "TOKEN"]);
    assert_eq!(env.trim(), SECRET);
    let user = support::user::User::new(&lab, OTHER);
    let seen = user.run(&["ps", "-e", "-ww", "-o", "args="]);
    let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert!(!seen.contains(SECRET), "{seen}");
    assert!(
        seen.contains(&format!("--set TOKEN={}", "*".repeat(SECRET.len()))),
        "{seen}"
    );
}

/// Asks a stack's supervisor how the stack is, and prints how much it answers.
const ASKS: &str = r#"
import socket, struct
s = socket.socket(socket.AF_UNIX)
s.connect("/run/lrpns/customerA/control.sock")
try:
    s.sendall(struct.pack("<I", 8) + b'"Status"')
    print(len(s.recv(1000)))
except OSError as e:
    print(e)
"#;

#[test]
fn a_supervisor_answers_nobody_else_whoever_opens_the_way_to_its_socket() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    lab.lrpns_ok(&["up", "-d"]);
    let directory = "/run/lrpns/customerA";
    lab.ok(&["chmod", "755", "/run/lrpns", directory]);
    lab.ok(&["chmod", "666", &format!("{directory}/control.sock")]);
    let stranger = User {
        lab: &lab,
        uid: 4321,
        runtime: None,
    };
    let stranger = stranger.run(&[PYTHON, "-c", ASKS]);
    assert!(stranger.status.success(), "{}", describe(&stranger));
    let stranger = String::from_utf8(stranger.stdout).unwrap();
    // Closed with the question in it.
    assert!(
        [
            "0\n",
            "[Errno 104] Connection reset by peer\n",
            "[Errno 32] Broken pipe\n"
        ]
        .contains(&stranger.as_str()),
        "{stranger}"
    );
    assert_eq!(lab.ok(&[PYTHON, "-c", ASKS]), "1000\n");
    lab.lrpns_ok(&["down", "customerA"]);
}

/// As who has taken a supervisor over: of what joins a part it says, with a process of that part, that it may do everything.
const LIES: &str = r#"
import array, json, os, socket, struct
os.chdir("/run/lrpns/customerA")
os.umask(0o177)
os.rename("control.sock", "real.sock")
listener = socket.socket(socket.AF_UNIX)
listener.bind("control.sock")
listener.listen()
print("ready", flush=True)
def hear(s):
    length, control, _, _ = s.recvmsg(4, socket.CMSG_SPACE(4))
    text = b""
    while len(text) < struct.unpack("<I", length)[0]:
        text += s.recv(65536)
    return text, [fd for _, _, data in control for fd in array.array("i", data)]
def say(s, text, fds):
    data = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    s.sendmsg([struct.pack("<I", len(text))], data)
    s.sendall(text)
every = (1 << 41) - 1
allow = [0x6 << 48 | 0x7fff0000]
lie = {"user": {"uid": 0, "gid": 0}, "env": {}, "cgroup": None, "nproc": None, "confined": None,
       "seccomp": {"stage": allow, "command": allow},
       "privileges": {"inheritable": every, "permitted": every, "effective": every, "bounding": every,
                      "ambient": every, "securebits": 0, "no_new_privs": True, "uids": [0, 0, 0],
                      "gids": [0, 0, 0], "seccomp": 2, "groups": 0}}
while True:
    client, _ = listener.accept()
    real = socket.socket(socket.AF_UNIX)
    real.connect("real.sock")
    try:
        asked, fds = hear(client)
    except struct.error:
        # Who looks whether somebody listens.
        continue
    say(real, asked, fds)
    answer, fds = hear(real)
    if b'"Enter"' in asked:
        answer = json.dumps({"Enter": lie}).encode()
    say(client, answer, fds)
    for each in [client, real]:
        each.close()
"#;

#[test]
fn what_root_runs_in_a_part_holds_what_the_plan_says_whatever_the_supervisor_says() {
    if !look::machine_with(&["busybox"]) {
        return;
    }
    let lab = Lab::new();
    lab.lrpns_ok(&["up", "-d"]);
    let _lies = lab.start(&[PYTHON, "-c", LIES]);
    let refused = |part: &str, command: &[&str], why: &str| {
        let args = [&["exec", "--part", part, "--", "busybox"], command].concat();
        let output = lab.lrpns(&args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            said.contains(why),
            "{part} {command:?}: {}",
            describe(&output)
        );
    };
    // A capability and a call; a socket; a port.
    refused("sidecar", &["hostname", "x"], "not permitted");
    refused(
        "sidecar",
        &["ip", "link", "set", "dev", "lo", "mtu", "60000"],
        "not permitted",
    );
    if look::landlock_knows_tcp() {
        refused(
            "relay",
            &["nc", "-w", "2", "127.0.0.1", "22"],
            "Permission denied",
        );
    }
    // What root runs in a part is what root's plan says, so it is to be root's.
    let plan = "/run/lrpns/customerA/plan.json";
    lab.ok(&["chown", "1234", plan]);
    let (_, said) = lab.lrpns_err(&["exec", "--part", "sidecar", "--", "busybox", "true"]);
    assert!(
        said.contains(&format!("{plan} belongs to uid 1234")),
        "{said}"
    );
    lab.ok(&["chown", "0", plan]);
    lab.lrpns_ok(&["exec", "--part", "sidecar", "--", "busybox", "true"]);
}

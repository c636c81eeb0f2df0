//! Every command as a person or a script meets it: what it prints where, and the code that it ends with.
#![allow(clippy::unwrap_used)]

mod support;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Output, Stdio};

use clap::{CommandFactory, Parser};
use lrpns::cli::Cli;
use lrpns::manual::TOPICS;
use serde_json::{Value, json};
use support::lab::{LAB, Lab, assert_unchanged, describe, lrpns, until};

/// An app of the host's programs that says a line on each stream and serves.
const HOST: &str = r#"name = "web"
[app]
rootfs = "host"
command = ["/bin/sh", "-c", "echo to out; echo to err >&2; exec busybox httpd -f -p 8000"]
env = { FLAVOUR = "plain" }
publish = ["0.0.0.0:5000:8000"]
"#;

fn host_app() -> Lab {
    let lab = Lab::new();
    lab.write("lrpns.toml", HOST);
    lab.lrpns_ok(&["up", "-d"]);
    lab
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn assert_code(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}", describe(output));
}

/// The names of an object's members, in the order of the alphabet.
fn keys(value: &Value) -> Vec<&str> {
    let members = value.as_object().unwrap().keys();
    let mut names: Vec<&str> = members.map(String::as_str).collect();
    names.sort_unstable();
    names
}

/// The lines of /proc/PID/status that say what a process holds.
fn held(status: &str) -> Vec<(&str, &str)> {
    let wanted = [
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
    ];
    let fields = status.lines().filter_map(|line| line.split_once(':'));
    fields
        .filter(|(name, _)| wanted.contains(name))
        .map(|(name, value)| (name, value.trim()))
        .collect()
}

// exec

#[test]
fn exec_in_the_app_holds_no_capability_whoever_looks() {
    let lab = host_app();
    let seen = lab.lrpns_ok(&["exec", "--", "capsh", "--print"]);
    let lines: Vec<&str> = seen.lines().map(str::trim).collect();
    for line in ["Current: =", "Bounding set =", "Ambient set ="] {
        assert!(lines.contains(&line), "{line}: {seen}");
    }
    let status = lab.lrpns_ok(&["exec", "--", "cat", "/proc/self/status"]);
    let none = "0000000000000000";
    let wanted = [
        ("CapInh", none),
        ("CapPrm", none),
        ("CapEff", none),
        ("CapBnd", none),
        ("CapAmb", none),
        ("NoNewPrivs", "1"),
    ];
    assert_eq!(held(&status), wanted);
    let id = lab.lrpns_ok(&["exec", "--", "id"]);
    assert!(id.contains("uid=1000(app) gid=1000(app)"), "{id}");
}

#[test]
fn exec_in_the_app_has_the_apps_environment_and_namespaces_and_no_other_descriptor() {
    let lab = host_app();
    let flavour = lab.lrpns_ok(&["exec", "--", "sh", "-c", "echo $FLAVOUR"]);
    assert_eq!(flavour, "plain\n");
    let env = lab.lrpns_with(&[("SECRET", "of the host")], &["exec", "--", "env"]);
    assert!(!out(&env).contains("SECRET"), "{}", describe(&env));
    let fds = lab.lrpns_ok(&["exec", "--", "sh", "-c", "echo /proc/self/fd/*"]);
    // The shell's own glob has a descriptor open while it reads the directory.
    assert_eq!(fds.split_whitespace().count(), 4, "{fds}");
    let app = &lab.status("web")["parts"][1];
    for namespace in ["user", "mnt", "net", "ipc", "uts", "cgroup"] {
        let link = format!("ns/{namespace}");
        let inside = lab.lrpns_ok(&["exec", "--", "readlink", &format!("/proc/self/{link}")]);
        let apps = lab.ok(&["readlink", &format!("/proc/{}/{link}", app["pid"])]);
        assert_eq!(inside, apps);
    }
}

#[test]
fn exec_in_the_sidecar_holds_net_admin_and_nothing_else() {
    let lab = host_app();
    for (part, capabilities) in [
        ("sidecar", "0000000000001000"),
        ("relay", "0000000000000000"),
    ] {
        let args = ["exec", "--part", part, "--", "busybox", "sleep", "600"];
        let exec = lab.spawn_lrpns(&args);
        // Its root is empty and has no /proc: the lab looks.
        let pid = until("the command runs", || {
            let found = lab.run(&["pgrep", "-f", "^busybox sleep 600"]);
            found
                .status
                .success()
                .then(|| out(&found).trim().to_owned())
        });
        let status = lab.ok(&["cat", &format!("/proc/{pid}/status")]);
        for (name, value) in held(&status) {
            match name {
                "NoNewPrivs" => assert_eq!(value, "1"),
                // An execve(2) passes on what is in these two, and nothing else.
                "CapInh" | "CapAmb" | "CapPrm" | "CapEff" | "CapBnd" => {
                    assert_eq!(value, capabilities, "{name} of {part}");
                }
                other => panic!("{other} was not asked for"),
            }
        }
        let root = lab.ok(&["ls", "-A", &format!("/proc/{pid}/root/")]);
        assert_eq!(root, "", "its root is empty");
        lab.ok(&["kill", &pid]);
        // 128 and SIGTERM.
        assert_code(&exec.wait_with_output().unwrap(), 143);
    }
}

#[test]
fn exec_in_the_sidecar_has_the_sidecars_sockets_and_no_other() {
    let lab = host_app();
    let sidecar = |args: &[&str]| {
        lab.lrpns(&[&["exec", "--part", "sidecar", "--", "busybox"], args].concat())
    };
    // The sidecar's filter has netfilter's netlink only, so links can't be changed, whatever capability is held.
    let links = sidecar(&["ip", "link", "set", "dev", "lo", "mtu", "65535"]);
    assert!(!links.status.success(), "{}", describe(&links));
    assert!(err(&links).contains("Operation not permitted"));
    let raw = sidecar(&["ping", "-c", "1", "-W", "1", "127.0.0.1"]);
    assert!(!raw.status.success(), "{}", describe(&raw));
    assert_code(&sidecar(&["true"]), 0);
}

#[test]
fn exec_ends_with_the_commands_exit_code() {
    let lab = host_app();
    for (args, code) in [
        (&["sh", "-c", "exit 42"][..], 42),
        (&["sh", "-c", "kill -9 $$"], 137),
        (&["true"], 0),
        (&["/no/such/program"], 127),
        (&["nosuchprogram"], 127),
        (&["/etc/passwd"], 126),
        (&["/tmp"], 126),
    ] {
        let exec = lab.lrpns(&[&["exec", "web", "--"], args].concat());
        assert_code(&exec, code);
        // What lrpns has to say names the program; what the command does is its own matter.
        assert_eq!(err(&exec).contains(args[0]), code == 126 || code == 127);
    }
    for (program, code) in [("nosuchprogram", 127), ("/etc/passwd", 126)] {
        let exec = lab.lrpns(&["exec", "--part", "sidecar", "--", program]);
        assert_code(&exec, code);
    }
}

#[test]
fn exec_passes_the_three_streams_through() {
    let lab = host_app();
    for args in [
        &["exec", "--", "sh", "-c", "cat; echo bad >&2"][..],
        &[
            "exec",
            "--part",
            "sidecar",
            "--",
            "busybox",
            "sh",
            "-c",
            "while read -r l; do echo $l; done; echo bad >&2",
        ],
    ] {
        let mut exec = lab.spawn_lrpns(args);
        exec.stdin.take().unwrap().write_all(b"good\n").unwrap();
        let exec = exec.wait_with_output().unwrap();
        assert_code(&exec, 0);
        assert_eq!((out(&exec), err(&exec)), ("good\n".into(), "bad\n".into()));
    }
}

#[test]
fn a_command_ends_with_the_exec_that_started_it() {
    let lab = host_app();
    for part in ["app", "sidecar"] {
        // Not SIGINT: what a shell starts in the background ignores it, tests included.
        for signal in ["KILL", "TERM"] {
            let args = ["exec", "--part", part, "--", "busybox", "sleep", "600"];
            let mut exec = lab.spawn_lrpns(&args);
            until("the command runs", || {
                let found = lab.run(&["pgrep", "-f", "^busybox sleep 600"]);
                found.status.success().then_some(())
            });
            let own = format!("^{} exec", lrpns());
            // The first is the one that a person started; the others are its children.
            let all = lab.ok(&["pgrep", "-f", &own]);
            lab.ok(&["kill", "-s", signal, all.lines().next().unwrap()]);
            exec.wait().unwrap();
            until("the command has ended", || {
                let found = lab.run(&["pgrep", "-f", "busybox sleep 600"]);
                (!found.status.success()).then_some(())
            });
        }
    }
}

#[test]
fn exec_in_what_is_not_there_is_refused() {
    let lab = host_app();
    let (code, said) = lab.lrpns_err(&["exec", "--part", "nobody", "--", "true"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("sidecar, app, relay"), "{said}");
    let (code, said) = lab.lrpns_err(&["exec", "other", "--", "true"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("other does not run"), "{said}");
}

#[test]
fn restart_says_what_it_took_one_word_for_and_what_became_of_the_program() {
    let lab = Lab::new();
    let (code, said) = lab.lrpns_err(&["restart", "nobody"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("nobody does not run"), "{said}");

    let copy = lab.dir.path().join("copy of lrpns");
    std::fs::copy(lrpns(), &copy).unwrap();
    lab.ok(&[copy.to_str().unwrap(), "up", "-d", "--demo"]);
    std::fs::remove_file(copy).unwrap();
    lab.lrpns_ok(&["restart", "customerA", "sidecar"]);
    let (_, said) = lab.lrpns_err(&["restart", "app"]);
    assert!(said.contains("removed or replaced"), "{said}");
    lab.lrpns_ok(&["down"]);
}

// run

#[test]
fn run_ends_with_the_commands_exit_code_and_leaves_nothing() {
    let lab = Lab::new();
    let before = lab.traces();
    for (args, code) in [
        (&["--", "sh", "-c", "exit 7"][..], 7),
        (&["--", "true"], 0),
        (&["--", "sh", "-c", "kill -9 $$"], 137),
        (&["--", "/no/such/program"], 127),
        (&["--", "nosuchprogram"], 127),
        (&["--", "/etc/passwd"], 126),
        // It publishes a port and ends before anybody listens there: the code is the command's all the same.
        (&["-p", "8080:8000", "--", "sh", "-c", "exit 7"], 7),
        (&["-p", "8080:8000", "--", "true"], 0),
        (&["--rootfs", "dir:/nowhere", "--", "true"], 125),
        (&["--rootfs", "nowhere", "--", "true"], 2),
        (&["-p", "x:y", "--", "true"], 2),
    ] {
        let run = lab.lrpns(&[&["run"], args].concat());
        assert_code(&run, code);
        lab.assert_as(&before);
    }
}

#[test]
fn run_passes_output_on_byte_by_byte_each_on_its_own_stream() {
    let lab = Lab::new();
    let run = lab.lrpns(&[
        "run",
        "--env",
        "A=b",
        "-e",
        "C=d e",
        "--",
        "sh",
        "-c",
        r"echo $A$C; printf 'no end \377\r\n\000x'; printf 'err' >&2",
    ]);
    assert_code(&run, 0);
    assert_eq!(run.stdout, b"bd e\nno end \xff\r\n\0x");
    assert_eq!(run.stderr, b"err");
    let much = lab.lrpns(&["run", "--", "head", "-c", "3000000", "/dev/zero"]);
    assert_eq!(much.stdout.len(), 3_000_000);
}

#[test]
fn run_ends_when_nobody_reads_its_output_any_more() {
    let lab = Lab::new();
    let mut run = lab.spawn_lrpns(&["run", "--", "yes"]);
    let mut line = String::new();
    BufReader::new(run.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "y\n");
    let run = run.wait_with_output().unwrap();
    // As in a shell: 128 and SIGPIPE.
    assert_code(&run, 141);
}

#[test]
fn run_passes_standard_input_on_and_its_end_whatever_it_is() {
    let lab = Lab::new();
    let much: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(lab.dir.path().join("much"), &much).unwrap();
    for shell in [
        "cat much | lrpns run -- cat",
        "lrpns run -- cat <much",
        // By a named pipe, which is open for writing as well.
        "mkfifo fifo; cat much >fifo & lrpns run -- cat <fifo",
    ] {
        let shell = shell.replace("lrpns", lrpns());
        let run = lab.run(&["sh", "-c", &shell]);
        assert!(run.stdout == much, "{shell}: {} bytes", run.stdout.len());
        assert_eq!(err(&run), "", "{shell}");
    }
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut run = lab.command(&[lrpns(), "run", "--", "cat"]);
    let run = run.stdin(OwnedFd::from(theirs)).stdout(Stdio::piped());
    let run = run.spawn().unwrap();
    (&ours).write_all(b"by a socket\n").unwrap();
    ours.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(out(&run.wait_with_output().unwrap()), "by a socket\n");
    // Who reads a line alone ends when it has that, not at the end of what there is.
    let mut run = lab.spawn_lrpns(&["run", "--", "head", "-n", "1"]);
    run.stdin.as_mut().unwrap().write_all(b"1\n2\n").unwrap();
    let mut first = String::new();
    let mut said = BufReader::new(run.stdout.take().unwrap());
    said.read_to_string(&mut first).unwrap();
    assert_eq!(first, "1\n");
    assert_eq!(run.wait().unwrap().code(), Some(0));
    let none = lab.lrpns(&["run", "--", "cat"]);
    assert_eq!((out(&none), none.status.code()), (String::new(), Some(0)));
}

#[test]
fn run_hands_no_descriptor_of_its_users_in() {
    let lab = Lab::new();
    let seen = "readlink /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2; ls /proc/self/fd/0/ 2>&1";
    let shell = format!("{} run -- sh -c '{seen}' </", lrpns());
    let run = lab.run(&["sh", "-c", &shell]);
    let text = out(&run);
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[..3].iter().all(|line| line.starts_with("pipe:")),
        "{text}"
    );
    assert!(!text.contains("etc"), "{text}");
    assert!(
        err(&run).contains("read standard input: Is a directory"),
        "{}",
        describe(&run)
    );
    // Nor is what the user has open changed for others who have it.
    let (ours, _theirs) = std::io::pipe().unwrap();
    let theirs = OwnedFd::from(ours.try_clone().unwrap());
    let mut run = lab.command(&[lrpns(), "run", "--", "true"]);
    assert!(run.stdin(theirs).status().unwrap().success());
    let flags = rustix::fs::fcntl_getfl(&ours).unwrap();
    assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
}

/// A terminal, and what is shown on it.
struct Screen {
    ours: std::fs::File,
    theirs: OwnedFd,
    shown: String,
}

impl Screen {
    fn new() -> Self {
        let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
        let ours = rustix::pty::openpt(flags).unwrap();
        rustix::pty::grantpt(&ours).unwrap();
        rustix::pty::unlockpt(&ours).unwrap();
        let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
        let theirs = rustix::pty::ioctl_tiocgptpeer(&ours, flags).unwrap();
        let size = rustix::termios::Winsize {
            ws_row: 33,
            ws_col: 77,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&ours, size).unwrap();
        Self {
            ours: ours.into(),
            theirs,
            shown: String::new(),
        }
    }

    fn fd(&self) -> Stdio {
        self.theirs.try_clone().unwrap().into()
    }

    /// Starts lrpns in a session of its own, with this as its terminal.
    fn start(&self, lab: &Lab, args: &[&str]) -> Child {
        let args = [&["setsid", "--ctty", "--wait", lrpns()], args].concat();
        let mut command = lab.command(&args);
        command.env("TERM", "xterm-lab").stdin(self.fd());
        command.stdout(self.fd()).stderr(self.fd()).spawn().unwrap()
    }

    fn types(&mut self, text: &str) {
        self.ours.write_all(text.as_bytes()).unwrap();
    }

    /// Reads what is shown until these words have come.
    fn waits_for(&mut self, words: &str) {
        let mut chunk = [0; 4096];
        while !self.shown.contains(words) {
            let got = self.ours.read(&mut chunk).unwrap();
            self.shown += &String::from_utf8_lossy(&chunk[..got]);
        }
    }

    fn modes(&self) -> String {
        format!("{:?}", rustix::termios::tcgetattr(&self.theirs).unwrap())
    }
}

#[test]
fn run_at_a_terminal_gets_one_of_its_own_only_if_asked_for() {
    let lab = Lab::new();
    let mut screen = Screen::new();
    let modes = screen.modes();
    let device = rustix::fs::fstat(&screen.theirs).unwrap().st_rdev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let host = format!("<{major:x}:{minor:x}>");
    let look = "for i in 0 1 2; do test -t $i && echo yes; readlink /proc/$$/fd/$i; done";
    // Without a flag the terminal is left alone.
    let mut run = screen.start(
        &lab,
        &["run", "--", "sh", "-c", &format!("{look}; cat; echo over")],
    );
    screen.waits_for("over");
    assert!(screen.shown.contains("/null\r\n"), "{}", screen.shown);
    assert_eq!(screen.shown.matches("pipe:").count(), 2, "{}", screen.shown);
    assert!(run.wait().unwrap().success());
    // With -i what is typed is passed on, a line at a time, up to Ctrl-D.
    screen.shown.clear();
    let mut run = screen.start(
        &lab,
        &[
            "run",
            "-i",
            "--",
            "sh",
            "-c",
            &format!("{look}; cat; echo over"),
        ],
    );
    screen.waits_for("pipe:");
    screen.types("typed\n\u{4}");
    screen.waits_for("over");
    assert_eq!(screen.shown.matches("typed").count(), 2, "{}", screen.shown);
    assert!(!screen.shown.contains("yes"), "{}", screen.shown);
    assert!(run.wait().unwrap().success());
    // With -t there is a terminal, and it is not the host's.
    screen.shown.clear();
    let mut run = screen.start(&lab, &["run", "-it", "--", "sh"]);
    until("keys are handed on", || {
        (screen.modes() != modes).then_some(())
    });
    screen.types(&format!(
        "{look}; stat -L -c '<%t:%T>' /proc/$$/fd/0; stty size; echo $TERM; echo o''ver\n"
    ));
    screen.waits_for("over");
    assert_eq!(
        screen.shown.matches("yes\r\n").count(),
        3,
        "{}",
        screen.shown
    );
    let of_its_own =
        screen.shown.contains(&format!("<{major:x}:")) && !screen.shown.contains(&host);
    assert!(of_its_own, "{host}: {}", screen.shown);
    assert!(screen.shown.contains("33 77"), "{}", screen.shown);
    assert!(screen.shown.contains("xterm-lab"), "{}", screen.shown);
    assert_ne!(screen.modes(), modes);
    // Ctrl-C is the command's to hear, and job control works.
    screen.shown.clear();
    screen.types("sleep 600; echo gone $?\n");
    until("it sleeps", || {
        lab.run(&["pgrep", "-x", "sleep"])
            .status
            .success()
            .then_some(())
    });
    screen.types("\u{3}");
    screen.types("echo o''ver\nexit 7\n");
    screen.waits_for("over");
    assert_eq!(run.wait().unwrap().code(), Some(7));
    assert_eq!(screen.modes(), modes);
}

#[test]
fn a_terminal_is_given_back_as_it_was_however_a_run_ends() {
    let lab = Lab::new();
    let mut screen = Screen::new();
    let modes = screen.modes();
    for signal in ["INT", "TERM", "HUP"] {
        screen.shown.clear();
        let mut run = screen.start(
            &lab,
            &[
                "run",
                "--name",
                "job",
                "-t",
                "--",
                "sh",
                "-c",
                "echo up; exec sleep 600",
            ],
        );
        screen.waits_for("up");
        assert_ne!(screen.modes(), modes);
        lab.kill(signal, &lab.status("job")["supervisor"]);
        run.wait().unwrap();
        assert_eq!(screen.modes(), modes);
    }
    screen.shown.clear();
    let mut run = screen.start(&lab, &["run", "-t", "--", "/no/such/program"]);
    screen.waits_for("/no/such/program: No such file");
    assert_eq!(run.wait().unwrap().code(), Some(127));
    assert_eq!(screen.modes(), modes);
}

#[test]
fn what_a_terminal_echoes_gets_into_no_file() {
    let lab = host_app();
    for verb in [&["exec", "--"][..], &["run", "-t", "--"]] {
        let mut screen = Screen::new();
        let modes = screen.modes();
        let mut command =
            lab.command(&[&["setsid", "--ctty", "--wait", lrpns()], verb, &["cat"]].concat());
        let file = std::fs::File::create(lab.dir.path().join("file")).unwrap();
        let mut child = command
            .stdin(screen.fd())
            .stdout(file)
            .stderr(screen.fd())
            .spawn()
            .unwrap();
        // Before, Ctrl-D would be the end of a line that it is no part of.
        until("keys are handed on as they are", || {
            (screen.modes() != modes).then_some(())
        });
        screen.types("typed\n\u{4}");
        screen.waits_for("typed");
        assert!(child.wait().unwrap().success());
        let text = std::fs::read_to_string(lab.dir.path().join("file")).unwrap();
        assert_eq!(text, "typed\n", "{verb:?}");
    }
}

#[test]
fn a_run_whose_output_nobody_reads_answers_and_can_be_taken_down() {
    let lab = Lab::new();
    let before = lab.traces();
    let mut run = lab.spawn_lrpns(&["run", "--name", "job", "--", "yes"]);
    let pid = until("it runs", || {
        let status = lab.lrpns(&["status", "job", "--json"]);
        let status: Value = serde_json::from_slice(&status.stdout).ok()?;
        status["parts"][1]["pid"].as_i64()
    });
    // It has filled its pipe and ours, and waits.
    until("it waits for a reader", || {
        let waits = lab.proc(pid, "wchan");
        (waits.contains("pipe_write")).then_some(())
    });
    assert_eq!(lab.status("job")["parts"][1]["state"], "running");
    lab.lrpns_ok(&["down", "job"]);
    assert_eq!(run.wait().unwrap().code(), Some(0));
    lab.assert_as(&before);
}

#[test]
fn a_slow_reader_gets_all_that_a_run_has_said() {
    let lab = Lab::new();
    let script = "head -c 100000 /dev/zero; echo ended >&2";
    let mut run = lab.spawn_lrpns(&["run", "--", "sh", "-c", script]);
    // When nobody has read anything yet: it is in pipes, or on its way.
    let mut line = String::new();
    let mut errors = BufReader::new(run.stderr.take().unwrap());
    errors.read_line(&mut line).unwrap();
    assert_eq!(line, "ended\n");
    let mut all = vec![];
    run.stdout.take().unwrap().read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), 100_000);
    assert_eq!(run.wait().unwrap().code(), Some(0));
}

#[test]
fn run_publishes_at_ipv6_addresses_as_up_does() {
    let client = |lab: &Lab, host: &str| {
        let url = format!("http://{host}:8080/");
        lab.client(&["curl", "-sS", "--max-time", "5", &url])
    };
    for lab in [Lab::new().with_ipv6(), Lab::forwarding().with_ipv6()] {
        let run = lab.spawn_lrpns(&[
            "run",
            "--name",
            "job",
            "-p",
            "[::]:8080:8000",
            "--",
            "sh",
            "-c",
            "cd /tmp && echo job >index.html && exec busybox httpd -f -p [::]:8000",
        ]);
        until("the port answers", || lab.get("http://[::1]:8080/").ok());
        let six = client(&lab, &format!("[{}]", support::lab::LAB6));
        assert_eq!(String::from_utf8_lossy(&six.stdout), "job\n");
        assert!(!client(&lab, support::lab::LAB).status.success());
        let status = lab.status("job");
        assert!(status["plan"]["bridge"]["prefix6"].is_string());
        assert_eq!(status["plan"]["origins"]["network.ipv6"]["from"], "chosen");
        lab.lrpns_ok(&["down", "job"]);
        drop(run.wait_with_output().unwrap());
    }
}

#[test]
fn run_publishes_a_port_and_ends_with_a_signal() {
    let lab = Lab::new();
    let before = lab.traces();
    let run = lab.spawn_lrpns(&[
        "run",
        "--name",
        "job",
        "-p",
        "0.0.0.0:8080:8000",
        "--tmpfs",
        "/tmp:1M",
        "--",
        "sh",
        "-c",
        "echo job >/tmp/index.html; exec busybox httpd -f -p 8000 -h /tmp",
    ]);
    until("the port answers", || {
        lab.get("http://localhost:8080/")
            .ok()
            .filter(|a| a == "job\n")
    });
    let from_outside = lab.client_get(&format!("http://{LAB}:8080/"));
    assert_eq!(from_outside.unwrap(), "job\n");
    let (code, said) = lab.lrpns_err(&["run", "--name", "job", "--", "true"]);
    assert_eq!(code, 1, "{said}");
    lab.kill("INT", &lab.status("job")["supervisor"]);
    let run = run.wait_with_output().unwrap();
    assert_code(&run, 0);
    lab.assert_as(&before);
}

#[test]
fn runs_get_a_name_of_their_own_each() {
    let lab = Lab::new();
    let runs: Vec<Child> = (0..3)
        .map(|_| lab.spawn_lrpns(&["run", "--", "sh", "-c", "hostname; sleep 0.1"]))
        .collect();
    for run in runs {
        let run = run.wait_with_output().unwrap();
        assert_code(&run, 0);
        assert_eq!(out(&run), "app\n");
    }
}

// ps, status, logs

#[test]
fn ps_lists_stacks_as_text_and_as_json() {
    let lab = Lab::new();
    assert_eq!(lab.lrpns_ok(&["ps", "--json"]).trim(), "[]");
    lab.lrpns_ok(&["up", "-d", "--demo"]);
    let table = lab.lrpns_ok(&["ps"]);
    let words: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(words, ["customerA", "up", "0.0.0.0:5000", "app", "-"]);
    let rows: Value = serde_json::from_str(&lab.lrpns_ok(&["ps", "--json"])).unwrap();
    let wanted = json!([{
        "stack": "customerA", "state": "up", "mode": "root", "published": ["0.0.0.0:5000"], "apps": ["app"],
        "app_states": ["running"], "config": null,
    }]);
    assert_eq!(rows, wanted);
    lab.kill("KILL", &lab.status("customerA")["supervisor"]);
    until("the supervisor is gone", || {
        let rows: Value = serde_json::from_str(&lab.lrpns_ok(&["ps", "--json"])).unwrap();
        (rows[0]["state"] == "crashed").then_some(())
    });
}

#[test]
fn status_lists_every_process_of_ours_as_proc_has_it() {
    let lab = Lab::new();
    lab.lrpns_ok(&["up", "-d", "--demo"]);
    let status = lab.status("customerA");
    let processes = status["processes"].as_array().unwrap();
    let who: Vec<[&str; 2]> = processes
        .iter()
        .map(|process| ["part", "role"].map(|key| process[key].as_str().unwrap()))
        .collect();
    assert_eq!(
        who,
        [
            ["supervisor", "supervisor"],
            ["supervisor", "undoer"],
            ["sidecar", "init"],
            ["app", "init"],
            ["app", "command"],
            ["relay", "init"],
        ]
    );
    // And there are no others.
    let ours = lab.ok(&["ps", "-eo", "pid=,args="]);
    let ours = ours
        .lines()
        .filter(|line| line.contains("lrpns") || line.contains("webapp"));
    assert_eq!(ours.count(), processes.len());
    for process in processes {
        let pid = process["pid"].as_i64().unwrap();
        let text = lab.proc(pid, "status");
        let field = |name: &str| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap();
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        for (name, key) in [
            ("CapInh:", "inheritable"),
            ("CapPrm:", "permitted"),
            ("CapEff:", "effective"),
            ("CapBnd:", "bounding"),
            ("CapAmb:", "ambient"),
        ] {
            let said = process[key].as_u64().unwrap();
            assert_eq!(format!("{said:016x}"), field(name), "{key} of {process}");
        }
        for (name, key) in [("Uid:", "uids"), ("Gid:", "gids")] {
            let ids: Vec<String> = process[key]
                .as_array()
                .unwrap()
                .iter()
                .map(Value::to_string)
                .collect();
            assert_eq!(ids.join(" "), field(name), "{key} of {process}");
        }
        for (name, key) in [
            ("Seccomp:", "seccomp"),
            ("Seccomp_filters:", "seccomp_filters"),
        ] {
            assert_eq!(process[key].to_string(), field(name), "{key} of {process}");
        }
        assert_eq!(process["effective_on_host"], 0, "{process}");
        let no_new_privs = u8::from(process["no_new_privs"].as_bool().unwrap());
        assert_eq!(no_new_privs.to_string(), field("NoNewPrivs:"));
        // NOROOT, NO_SETUID_FIXUP and NO_CAP_AMBIENT_RAISE, and every lock.
        assert_eq!(process["securebits"], 0xcf, "{process}");
        let namespaces = process["namespaces"].as_object().unwrap();
        // Into another's of the host's, as it is, the supervisor may not look.
        let seen = if process["role"] == "undoer" { 0 } else { 8 };
        assert_eq!(namespaces.len(), seen, "{process}");
        for (kind, inode) in namespaces {
            let link = lab.ok(&["readlink", &format!("/proc/{pid}/ns/{kind}")]);
            assert_eq!(link.trim(), format!("{kind}:[{inode}]"));
        }
    }
}

#[test]
fn status_has_the_documented_keys_and_agrees_with_proc() {
    let lab = Lab::new();
    lab.lrpns_ok(&["up", "-d", "--demo"]);
    let status = lab.status("customerA");
    assert_eq!(
        keys(&status),
        [
            "closed",
            "gated",
            "parts",
            "plan",
            "processes",
            "refused_by_relay",
            "since",
            "starting",
            "stopping",
            "supervisor",
            "supervisor_privileges",
            "traffic"
        ]
    );
    let supervisor = status["supervisor"].as_i64().unwrap();
    assert!(lab.proc(supervisor, "cmdline").contains("up\0-d"));
    let parts = status["parts"].as_array().unwrap();
    let names: Vec<&Value> = parts.iter().map(|part| &part["name"]).collect();
    assert_eq!(names, ["sidecar", "app", "relay"]);
    for part in parts {
        let wanted = [
            "cgroup",
            "gave_up",
            "health",
            "host_uid",
            "in_a_row",
            "init",
            "last_exit",
            "limits",
            "name",
            "next_start",
            "notes",
            "pid",
            "privileges",
            "restarts",
            "since",
            "state",
        ];
        assert_eq!(keys(part), wanted);
        assert_eq!(part["state"], "running");
        assert_eq!(part["restarts"], 0);
        assert_eq!(part["last_exit"], Value::Null);
        for key in ["pid", "init"] {
            let seen = lab.proc(part[key].as_i64().unwrap(), "status");
            let said = &part["privileges"];
            for (field, key) in [
                ("CapInh", "inheritable"),
                ("CapPrm", "permitted"),
                ("CapEff", "effective"),
                ("CapBnd", "bounding"),
                ("CapAmb", "ambient"),
            ] {
                let said = format!("{:016x}", said[key].as_u64().unwrap());
                assert!(
                    held(&seen).contains(&(field, &said)),
                    "{field} {said}: {seen}"
                );
            }
            let uid = seen
                .lines()
                .find_map(|line| line.strip_prefix("Uid:"))
                .unwrap();
            let uid = uid.split_whitespace().next().unwrap();
            assert_eq!(uid, part["host_uid"].to_string());
        }
    }
    let text = lab.lrpns_ok(&["status"]);
    for word in [
        "customerA is up",
        "172.18.0.33",
        "0.0.0.0:5000",
        "NET_ADMIN",
        "none",
    ] {
        assert!(text.contains(word), "{text}");
    }
    let full = lab.lrpns_ok(&["status", "-v"]);
    for word in ["172.18.0.33/24", "publish 0.0.0.0:5000/tcp -> app "] {
        assert!(full.contains(word), "{full}");
    }
}

#[test]
fn logs_show_each_stream_and_part_as_text_and_as_json() {
    let lab = host_app();
    lab.lrpns_ok(&["restart", "web", "sidecar"]);
    let text = lab.lrpns_ok(&["logs"]);
    for line in ["app | to out", "app | to err", "sidecar | started again"] {
        assert!(text.contains(line), "{text}");
    }
    let app = lab.lrpns_ok(&["logs", "--part", "app"]);
    assert!(app.contains("to out") && !app.contains("sidecar"), "{app}");
    let lines: Vec<Value> = lab
        .lrpns_ok(&["logs", "web", "--json"])
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for (stream, text) in [("out", "to out"), ("err", "to err")] {
        let line = lines.iter().find(|line| line["text"] == text).unwrap();
        assert_eq!(keys(line), ["part", "stream", "text", "time"]);
        assert_eq!(
            (&line["stream"], &line["part"]),
            (&json!(stream), &json!("app"))
        );
    }
    let event = lines.iter().find(|line| line["part"] == "sidecar").unwrap();
    assert_eq!(event["stream"], "event");
    let (code, said) = lab.lrpns_err(&["logs", "--part", "nobody"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("sidecar, app, relay"), "{said}");
}

const URL: &str = "http://localhost:5000/";

/// An app that says this much, and then serves.
fn talkative(lab: &Lab, says: &str) -> i64 {
    let file = HOST.replace("echo to out; echo to err >&2", says);
    lab.write("lrpns.toml", &file);
    lab.lrpns_ok(&["up", "-d"]);
    lab.status("web")["supervisor"].as_i64().unwrap()
}

#[test]
fn a_full_log_is_shown_whole_and_in_order_and_costs_the_supervisor_no_memory() {
    let lab = Lab::new();
    let supervisor = talkative(&lab, "seq 1 100000");
    for _ in 0..50 {
        lab.get(URL).unwrap();
    }
    until("the connections are told of", || {
        let told = lab.lrpns_ok(&["logs", "--part", "traffic"]);
        (told.matches(" opened\n").count() >= 50).then_some(())
    });
    let memory = |key: &str| -> u64 {
        let status = lab.proc(supervisor, "status");
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    // Resets the highest that it was (proc_pid_clear_refs(5)).
    lab.ok(&[
        "sh",
        "-c",
        &format!("echo 5 >/proc/{supervisor}/clear_refs"),
    ]);
    let before = memory("VmRSS");
    let text = lab.lrpns_ok(&["logs"]);
    let grown = memory("VmHWM") - before;
    assert!(grown < 2048, "{grown} KiB for {} bytes", text.len());
    let numbers: Vec<u64> = text
        .lines()
        .filter_map(|line| line.split(" app | ").nth(1)?.parse().ok())
        .collect();
    assert!(numbers.len() > 10_000, "{}", numbers.len());
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]));
    assert_eq!(numbers.last(), Some(&100_000));
    assert!(text.matches(" opened\n").count() >= 50);
    let times: Vec<&str> = text.lines().map(|line| &line[..24]).collect();
    assert!(times.is_sorted());
    let json = lab.lrpns_ok(&["logs", "--json"]);
    assert!(json.lines().count() >= text.lines().count());
    for line in json.lines() {
        serde_json::from_str::<Value>(line).unwrap();
    }
}

#[test]
fn a_log_ends_where_it_ended_when_it_was_asked_for_and_with_its_reader() {
    let lab = Lab::new();
    talkative(&lab, "(while :; do echo more; done) & true");
    lab.lrpns_ok(&["logs"]);
    lab.lrpns_ok(&["down"]);
    let lab = host_app();
    for args in ["", "-f", "--json -f", "-f --part traffic"] {
        // Of the last there is no line, and who reads it closes at once.
        let read = if args.ends_with("traffic") {
            "exec <&-"
        } else {
            "head -n 1"
        };
        let pipe = format!("set -o pipefail; {} logs {args} | {read}", lrpns());
        let output = lab.run(&["bash", "-c", &pipe]);
        assert_code(&output, 0);
        assert_eq!(err(&output), "", "{args}");
    }
}

#[test]
fn a_followed_log_goes_on_and_ends_when_the_stack_does() {
    let lab = Lab::new();
    lab.lrpns_ok(&["up", "-d", "--demo"]);
    let mut logs = lab.spawn_lrpns(&["logs", "-f"]);
    let mut lines = BufReader::new(logs.stdout.take().unwrap());
    let mut said = String::new();
    for _ in 0..3 {
        lab.get("http://localhost:5000/").unwrap();
    }
    while said.matches("GET /").count() < 3 {
        assert_ne!(lines.read_line(&mut said).unwrap(), 0, "{said}");
    }
    lab.lrpns_ok(&["down"]);
    lines.read_to_string(&mut said).unwrap();
    assert_eq!(logs.wait().unwrap().code(), Some(0));
}

// rules, plan

/// A listing or a model, without what differs by nature: versions, handles, counts, and the order of a set's elements.
fn normal(text: &str) -> Value {
    fn walk(value: &mut Value) {
        match value {
            Value::Object(members) => {
                members.remove("handle");
                if let Some(counter) = members.get_mut("counter") {
                    *counter = json!("counted");
                }
                if let Some(Value::Array(elements)) = members.get_mut("elem") {
                    elements.sort_by_key(ToString::to_string);
                }
                members.values_mut().for_each(walk);
            }
            Value::Array(items) => items.iter_mut().for_each(walk),
            _ => {}
        }
    }
    let mut document: Value = serde_json::from_str(text).unwrap();
    let objects = document["nftables"].as_array_mut().unwrap();
    objects.retain(|object| object.get("metainfo").is_none());
    walk(&mut document);
    document
}

#[test]
fn rules_are_what_the_kernel_holds_in_the_sidecar_before_and_after_up() {
    for lab in [Lab::new(), Lab::forwarding()] {
        let planned = lab.lrpns_ok(&["rules", "--demo", "--format", "json"]);
        lab.lrpns_ok(&["up", "-d", "--demo"]);
        let listed = || {
            let sidecar = lab.status("customerA")["parts"][0]["pid"].to_string();
            let netns = format!("--net=/proc/{sidecar}/ns/net");
            normal(&lab.ok(&["nsenter", &netns, "nft", "-j", "list", "ruleset"]))
        };
        let running = lab.lrpns_ok(&["rules", "--demo", "--format", "json"]);
        assert_eq!(listed(), normal(&running));
        assert_eq!(
            listed(),
            normal(&planned),
            "the uplink is a function of the name"
        );
        let rules = normal(&running)["nftables"].as_array().unwrap().len();
        assert!(rules > 20, "{rules} objects can't be all");
        lab.lrpns_ok(&["restart", "customerA", "sidecar"]);
        assert_eq!(listed(), normal(&running));
    }
}

#[test]
fn rules_are_valid_input_for_nft_in_both_formats() {
    let lab = Lab::new();
    for (format, flags) in [("nft", "-c"), ("json", "-cj")] {
        let rules = lab.lrpns_ok(&["rules", "--format", format]);
        let mut nft = lab.spawn(&["unshare", "--net", "nft", flags, "-f", "-"]);
        nft.stdin
            .take()
            .unwrap()
            .write_all(rules.as_bytes())
            .unwrap();
        assert_code(&nft.wait_with_output().unwrap(), 0);
    }
    // What is checked can be refused.
    let mut nft = lab.spawn(&["unshare", "--net", "nft", "-c", "-f", "-"]);
    nft.stdin
        .take()
        .unwrap()
        .write_all(b"add rule inet none none drop")
        .unwrap();
    assert_code(&nft.wait_with_output().unwrap(), 1);
}

#[test]
fn plan_prints_every_decision_and_changes_nothing() {
    let lab = Lab::new();
    let before = lab.traces();
    let plan = lab.lrpns_ok(&["plan", "-v", "--demo", "--set", "PROVIDER=lrpns"]);
    for word in [
        "stack customerA as root",
        "172.18.0.0/24",
        "bridge customerA",
        "172.18.0.33",
        "172.18.0.23",
        "builtin:webapp",
        "publish 0.0.0.0:5000 by relay",
        "built-in example",
        "chain forward",
    ] {
        assert!(plan.contains(word), "{word}: {plan}");
    }
    let json: Value = serde_json::from_str(&lab.lrpns_ok(&["plan", "--json"])).unwrap();
    assert_eq!(json["apps"][0]["address"], "172.18.0.23");
    assert_unchanged(&before, &lab.traces());
    assert!(!lab.run(&["test", "-e", "/run/lrpns"]).status.success());
}

#[test]
fn plan_and_status_agree() {
    let lab = Lab::forwarding();
    let mut plan: Value =
        serde_json::from_str(&lab.lrpns_ok(&["plan", "--demo", "--json"])).unwrap();
    lab.lrpns_ok(&["up", "-d", "--demo"]);
    let mut status = lab.status("customerA")["plan"].clone();
    assert_eq!(status["apps"][0]["publish"][0]["via"], "dnat");
    // Each run has a name of its own.
    for document in [&mut plan, &mut status] {
        document["run"] = Value::Null;
        document["uplink"]["host_link"] = Value::Null;
        document["cgroup"]["path"] = Value::Null;
    }
    assert_eq!(plan, status);
}

// init, completions, man, help

#[test]
fn init_writes_a_file_that_up_takes_and_never_writes_over_one() {
    let lab = Lab::new();
    lab.lrpns_ok(&["init"]);
    let file = lab.dir.path().join("lrpns.toml");
    let written = std::fs::read_to_string(&file).unwrap();
    assert!(written.contains("name = \"customerA\"") && written.contains("# "));
    lab.lrpns_ok(&["up", "-d", "-f", "lrpns.toml"]);
    let body = lab.get("http://localhost:5000/");
    assert_eq!(body.unwrap(), "Hello world!");
    // The example and what is built in are the same.
    let config = lab.status("customerA")["plan"]["config"].clone();
    assert!(config.as_str().unwrap().ends_with("lrpns.toml"), "{config}");
    lab.write("lrpns.toml", "mine");
    let (code, said) = lab.lrpns_err(&["init"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("lrpns.toml exists already"), "{said}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    lab.lrpns_ok(&["init", "-o", "other.toml"]);
    let other = std::fs::read_to_string(lab.dir.path().join("other.toml")).unwrap();
    assert_eq!(other, written);
}

fn bare(args: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    Command::new(lrpns())
        .args(args)
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn every_command_has_help_and_an_example() {
    let commands = Cli::command();
    let names: Vec<&str> = commands.get_subcommands().map(|c| c.get_name()).collect();
    for name in [
        "up",
        "down",
        "ps",
        "status",
        "restart",
        "logs",
        "exec",
        "rules",
        "plan",
        "run",
        "init",
        "gc",
        "completions",
        "man",
    ] {
        assert!(names.contains(&name), "{name} is missing");
    }
    for name in names {
        for flag in ["--help", "-h"] {
            let help = bare(&[name, flag]);
            assert_code(&help, 0);
            assert!(out(&help).contains("Usage:"), "{name}: {}", describe(&help));
            assert!(
                out(&help).contains("Example: lrpns"),
                "{name}: {}",
                describe(&help)
            );
        }
    }
    for args in [&["--help"][..], &["-h"], &["help"], &["--version"]] {
        assert_code(&bare(args), 0);
    }
    assert!(out(&bare(&["--version"])).contains(env!("CARGO_PKG_VERSION")));
}

/// The lrpns commands of a shell line, as words.
fn commands(line: &str) -> Vec<Vec<String>> {
    let mut found = vec![];
    let line = line.split(" #").next().unwrap_or_default();
    for command in line
        .split(['|', ';', '>'])
        .flat_map(|part| part.split("&&"))
    {
        let command = command.trim().trim_matches('`');
        let command = command.strip_prefix("sudo ").unwrap_or(command);
        if command.starts_with("lrpns ") {
            let quoted = |word: &str| word.trim_matches(['\'', '"']).to_owned();
            found.push(command.split_whitespace().map(quoted).collect());
        }
    }
    found
}

#[test]
fn every_example_of_the_help_is_a_command_that_is_taken() {
    let mut count = 0;
    let all = Cli::command();
    for command in all.get_subcommands().chain([&all]) {
        let after = command.get_after_help().map(ToString::to_string);
        let Some(line) = after.as_ref().and_then(|text| text.lines().next()) else {
            continue;
        };
        for words in commands(line.strip_prefix("Example: ").unwrap_or(line)) {
            Cli::try_parse_from(&words).unwrap_or_else(|e| panic!("{words:?}: {e}"));
            count += 1;
        }
    }
    assert!(count > 14, "{count} examples can't be all");
}

#[test]
fn completions_and_the_man_page_are_printed_and_a_closed_pipe_is_no_failure() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = bare(&["completions", shell]);
        assert_code(&script, 0);
        assert!(out(&script).contains("lrpns"));
    }
    assert_code(&bare(&["completions", "cmd"]), 2);
    let page = bare(&["man"]);
    assert_code(&page, 0);
    assert!(out(&page).contains(".TH \"LRPNS\" \"1\""));
    for command in ["man", "completions bash", "rules", "plan", "plan --json"] {
        let script = format!("{} {command} | true; exit ${{PIPESTATUS[0]}}", lrpns());
        let ended = Command::new("bash").args(["-c", &script]).output().unwrap();
        assert_code(&ended, 0);
        assert_eq!(err(&ended), "");
    }
}

#[test]
fn help_shows_topics_and_commands_and_names_the_nearest_of_what_it_lacks() {
    let all = bare(&["help"]);
    assert_code(&all, 0);
    for topic in TOPICS {
        let line = format!("\n  {} ", topic.name);
        assert!(out(&all).contains(&line), "{}", describe(&all));
        let page = bare(&["help", topic.name]);
        assert_code(&page, 0);
        let file = format!(
            "{}/src/manual/{}.md",
            env!("CARGO_MANIFEST_DIR"),
            topic.name
        );
        let text = std::fs::read_to_string(file).unwrap();
        let title = text.lines().next().unwrap();
        assert_eq!(out(&page).lines().next(), title.strip_prefix("# "));
        // Nobody has asked for colours in a pipe.
        assert!(!out(&page).contains('\x1b'), "{}", topic.name);
        for command in topic.commands {
            let help = bare(&[command, "--help"]);
            let named = format!("Manual: lrpns help {}", topic.name);
            assert!(
                out(&help).contains(&named),
                "{command}: {}",
                describe(&help)
            );
        }
    }
    let up = bare(&["help", "up"]);
    assert_code(&up, 0);
    assert_eq!(out(&up), out(&bare(&["up", "--help"])));
    let near = bare(&["help", "pubishing"]);
    assert_code(&near, 2);
    assert!(
        err(&near).contains("`lrpns help publishing`"),
        "{}",
        describe(&near)
    );
}

#[test]
fn no_topic_has_the_name_of_a_command() {
    let commands = Cli::command();
    for topic in TOPICS {
        assert!(
            commands.find_subcommand(topic.name).is_none(),
            "{}",
            topic.name
        );
        for name in topic.commands {
            assert!(commands.find_subcommand(name).is_some(), "{name}");
        }
    }
}

#[test]
fn man_pages_of_all_commands_keys_and_topics_are_without_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let written = bare(&["man", "--dir", dir.path().to_str().unwrap()]);
    assert_code(&written, 0);
    let page = |name: &str| std::fs::read_to_string(dir.path().join(name));
    for command in Cli::command()
        .get_subcommands()
        .filter(|it| !it.is_hide_set())
    {
        let name = format!("lrpns-{}.1", command.get_name());
        assert!(page(&name).is_ok(), "there is no {name}");
    }
    // What is special to roff stands as it is: a line that begins with a dot or a quote, a backslash, a hyphen.
    assert!(page("lrpns.1").unwrap().contains("up \\-d"));
    let keys = page("lrpns.toml.5").unwrap();
    for key in ["app.publish", "app.egress", "network.subnet", "sidecar.log"] {
        assert!(
            keys.contains(&format!("\\fB{key}\\fR")),
            "{key} is not in lrpns.toml(5)"
        );
    }
    assert!(page("lrpns-publishing.7").is_ok());
    let installed = Command::new("man").arg("--version").output();
    if !installed.is_ok_and(|output| output.status.success()) {
        support::skip("man", "man(1) is not installed");
        return;
    }
    let warned = Command::new("sh")
        .args(["-c", "for page in \"$0\"/*; do LC_ALL=C.UTF-8 MANWIDTH=80 man --warnings -E UTF-8 -l \"$page\" 2>&1 >/dev/null; done"])
        .arg(dir.path())
        .output()
        .unwrap();
    assert_eq!(out(&warned), "");
}

#[test]
fn a_broken_file_ends_every_command_that_reads_it_with_2() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("lrpns.toml");
    std::fs::write(&file, "name = \"web\"\n[app]\npublsh = []\n").unwrap();
    let file = file.to_str().unwrap();
    let mut read = 0;
    for verb in Cli::command().get_subcommands() {
        if !verb
            .get_arguments()
            .any(|arg| arg.get_long() == Some("file"))
        {
            continue;
        }
        let more: &[&str] = match verb.get_name() {
            "trace" => &["192.0.2.7", "5000"],
            "exec" => &["--", "true"],
            _ => &[],
        };
        let args = [&[verb.get_name(), "--file", file], more].concat();
        let output = bare(&args);
        assert_code(&output, 2);
        let said = err(&output);
        let line = format!("{file}:3:1");
        for words in [
            "`publsh`",
            "nearest known key is `publish`",
            &line,
            "example:",
        ] {
            assert!(said.contains(words), "{args:?}: {said}");
        }
        assert!(out(&output).is_empty(), "{args:?}");
        read += 1;
    }
    assert!(read >= 12, "{read} commands read a file");
}

#[test]
fn what_is_not_understood_ends_with_2_and_says_what_would_be() {
    for args in [
        &["nosuchcommand"][..],
        &["up", "--nosuchflag"],
        &["up", "bad/name"],
        &["run"],
        &["exec"],
        &["up", "-f", "/no/such/file.toml"],
        &["up", "--set", "NOVALUE"],
        &["plan", "nosuchstack"],
        &["capture", "--count", "0"],
        &["capture", "port", "0"],
        &["trace", "192.0.2.7", "0"],
        &["trace", "192.0.2.7", "5000", "--within", "0"],
    ] {
        let output = bare(args);
        assert_code(&output, 2);
        assert!(
            out(&output).is_empty() && !err(&output).is_empty(),
            "{args:?}"
        );
    }
}

#[test]
fn messages_have_no_colour_where_there_is_no_terminal() {
    let lab = Lab::new();
    lab.lrpns_ok(&["up", "-d", "--demo"]);
    for args in [
        &["ps"][..],
        &["status"],
        &["logs"],
        &["plan"],
        &["up", "--nosuch"],
        &["exec", "nobody", "--", "x"],
    ] {
        let output = lab.lrpns(args);
        let said = [output.stdout, output.stderr].concat();
        assert!(!said.contains(&0x1b), "{args:?}");
    }
}

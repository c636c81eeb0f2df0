//! What is said of an app that fails: the cause, by what really happened, with the line to paste.
#![allow(clippy::unwrap_used)]

mod support;
use support::lab::{Lab, until};
use support::look::{self, PYTHON};

/// What `up -d` says and the code it ends with.
fn told(lab: &Lab, command: &[&str], more: &str) -> (i32, String) {
    let path = lab.write(
        "app.toml",
        &format!(
            "name = \"web\"\n[app]\nrootfs = \"host\"\ncommand = {}\n{more}\n",
            look::toml_list(command)
        ),
    );
    let output = lab.lrpns(&["up", "-d", "-f", path.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().unwrap(), said)
}

#[test]
fn a_cause_has_its_own_hint_with_the_line_to_paste() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    std::fs::create_dir_all("/srv").unwrap();
    let file = lab.write("settings", "x");
    let file = file.to_str().unwrap();
    lab.ok(&[
        "sh",
        "-ec",
        "mount -t tmpfs tmpfs /mnt; echo x >/mnt/key; chmod 600 /mnt/key",
    ]);
    let python = |code: &str| [PYTHON, "-c", code].map(str::to_owned);
    let listen = "import socket\ns = socket.socket()\ns.bind(('0.0.0.0', 6379))";
    for (command, hint) in [
        (
            python("open('/srv/new/log', 'w')"),
            "tmpfs = [\"/tmp:16M\", \"/srv/new:16M\"]".to_owned(),
        ),
        (
            // What the program's own file is called says nothing.
            python("raise SystemExit('/usr/lib/x.rb:1: mkdir: Read-only file system - /log')"),
            "tmpfs = [\"/tmp:16M\", \"/log:16M\"]".to_owned(),
        ),
        (
            python("import os; os.mkdir('/opt')"),
            "tmpfs = [\"/tmp:16M\", \"/opt:16M\"]".to_owned(),
        ),
        (
            python(&format!("open({file:?})")),
            format!("volumes = [\"{file}:{file}\"]"),
        ),
        (
            python("import os; os.setgroups([])"),
            "a system call was refused".to_owned(),
        ),
        (
            python("raise SystemExit('setgid(33) failed (1: Operation not permitted)')"),
            "it changes its user".to_owned(),
        ),
        (
            python("raise SystemExit('getpwnam(www-data) failed')"),
            "install the server's package on the host, which makes its user".to_owned(),
        ),
        (
            python("raise SystemExit('bind() to 0.0.0.0:6379 failed (13: Permission denied)')"),
            "listen = [6379]".to_owned(),
        ),
        (
            // What can be pasted is first, whatever was said before it.
            python(
                "raise SystemExit('x: Permission denied\\nsetrlimit: Operation not permitted\\nbind() to [::]:443 failed (13: Permission denied)')",
            ),
            "\nhint: a TCP port that it uses within itself is not published: listen = [443]"
                .to_owned(),
        ),
        (
            // What ends without an error may have said why; the port is that of the name in /etc/services.
            python("print('epmd: failed to bind on ipaddr 0.0.0.0')"),
            "\nhint: a TCP port that it uses within itself is not published: listen = [4369]"
                .to_owned(),
        ),
        (
            python(
                "raise SystemExit('x: can\\'t bind tcp socket: Permission denied\\nx: cannot open control interface ::1 8952\\nx: no control')",
            ),
            "\nhint: a TCP port that it uses within itself is not published: listen = [8952]"
                .to_owned(),
        ),
        (
            python(
                "raise SystemExit('x: bind: Cannot assign requested address\\nx: cannot open control interface ::1 8952')",
            ),
            "no ::1: ipv6 = \"fd00:18::/64\" in [network]".to_owned(),
        ),
        (
            python("raise SystemExit('error for cert file: /mnt/key\\nPermission denied')"),
            "secrets = [\"key=/mnt/key\"]".to_owned(),
        ),
        (
            python("pass"),
            "python3 ended without an error. If it goes to the background".to_owned(),
        ),
    ] {
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let (code, said) = told(
            &lab,
            &command,
            "publish = [\"8000:8000\"]\nrestart = \"no\"",
        );
        assert_eq!(code, 1, "{command:?}: {said}");
        let hints = &said[said.find("\nhint: ").expect("no hint")..];
        assert!(hints.contains(&hint), "{command:?}: {said}");
    }
    // Who follows what is said comes up.
    let (code, said) = told(
        &lab,
        &[
            PYTHON,
            "-c",
            &format!("{listen}\nimport signal\nsignal.pause()"),
        ],
        "listen = [6379]",
    );
    assert_eq!(code, 0, "{said}");
}

#[test]
fn an_app_that_publishes_nothing_and_fails_is_told_of_by_up_with_its_last_lines() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let fails = [PYTHON, "-c", "raise SystemExit('no such user: www-data')"];
    let (code, said) = told(&lab, &fails, "restart = \"no\"");
    assert_eq!(code, 1, "{said}");
    for words in [
        "no such user: www-data",
        "web has ended: its app ended with exit status 1 right after its start",
        "hint: the app's root has root, app and the host's users below id 1000",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    // One that is started again lives on, and is told of.
    let (code, said) = told(&lab, &fails, "restart = \"always\"");
    assert_eq!(code, 0, "{said}");
    for words in [
        "web is up, nothing is published",
        "but app has ended with exit status 1 and ",
        "no such user",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    lab.lrpns_ok(&["down", "web"]);
    // What has done its work is no failure, and what goes on says nothing.
    let (code, said) = told(&lab, &["/bin/true"], "restart = \"no\"");
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("ended with exit status 0"), "{said}");
    let (code, said) = told(
        &lab,
        &["/bin/sh", "-c", "echo hello; exec sleep infinity"],
        "",
    );
    assert_eq!((code, said.contains("hello")), (0, false), "{said}");
}

#[test]
fn a_program_that_may_not_be_executed_is_told_which_option_it_needs() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    lab.ok(&["cp", "/bin/true", "server"]);
    let (code, said) = told(
        &lab,
        &["/srv/server"],
        "volumes = [\"./server:/srv/server\"]",
    );
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("Permission denied"), "{said}");
    assert!(said.contains("hint: the program must be executable by everybody (chmod 755); in a volume it needs the option exec"), "{said}");
    let (code, said) = told(
        &lab,
        &["/srv/server"],
        "volumes = [\"./server:/srv/server:exec\"]\nrestart = \"no\"",
    );
    assert_eq!(code, 0, "{said}");
}

#[test]
fn files_that_a_server_does_not_find_or_may_not_read_have_the_line_that_brings_them() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    lab.own_etc();
    lab.ok(&[
        "sh",
        "-ec",
        "mkdir /etc/quiet /etc/quiet/own; echo x >/etc/quiet.conf; echo x >/etc/quiet/own/key; echo x >/etc/quiet/shut; chmod 600 /etc/quiet/own/key /etc/quiet/shut
         chown -R 4321:4321 /etc/quiet/own; printf '#!/bin/sh\\nexit 3\\n' >/run/lab/quiet; chmod 755 /run/lab/quiet",
    ]);
    let quiet = "volumes = [\"/run/lab/quiet:/srv/quiet:exec\"]";
    let shell = |said: &str| {
        let line = format!("echo {said:?} >&2; exit 1");
        ["sh".to_owned(), "-c".to_owned(), line]
    };
    let program = |argument: &str| {
        [
            "/srv/quiet".to_owned(),
            "-c".to_owned(),
            argument.to_owned(),
        ]
    };
    for (command, more, hint) in [
        // It says nothing: its argument, or the configuration of its name.
        (
            program("/etc/quiet.conf"),
            quiet,
            "volumes = [\"/run/lab/quiet:/srv/quiet:exec\", \"/etc/quiet.conf:/etc/quiet.conf\"]",
        ),
        (
            program("x"),
            quiet,
            "volumes = [\"/run/lab/quiet:/srv/quiet:exec\", \"/etc/quiet:/etc/quiet\"]",
        ),
        // One of several, and one that the host has not either.
        (
            shell("non-existent configuration file(s): /etc/nowhere:/etc/quiet.conf"),
            "",
            "volumes = [\"/etc/quiet.conf:/etc/quiet.conf\"]",
        ),
        (
            shell("Failed to parse config file: /etc/nowhere.conf"),
            "",
            "volumes = [\"./nowhere.conf:/etc/nowhere.conf\"]",
        ),
        (
            shell("directory '/var/cache/quiet' is not writable"),
            "",
            "tmpfs = [\"/tmp:16M\", \"/var/cache/quiet:16M\"]",
        ),
        (
            shell("dlopen() = x/vgc.so: failed to map segment from shared object"),
            "tmpfs = [\"/tmp:1M\", \"/var/lib/quiet:1M\"]",
            "volumes = [\"./data:/var/lib/quiet:rw,exec\"]\n  tmpfs = [\"/tmp:1M\"]",
        ),
        (
            shell("setrlimit(RLIMIT_NPROC, 919): Operation not permitted"),
            "",
            "it raises a limit of its own (setrlimit)",
        ),
        (
            shell("error opening log file [The log is not properly started]. quitting."),
            "",
            "it can't open its log: tmpfs = [\"/tmp:16M\", \"/var/log:16M\"]",
        ),
        (
            shell("fatal: cannot drop privileges"),
            "",
            "a server that has to begin as root takes ids = \"range\"",
        ),
        (
            shell("quiet: setgid: Invalid argument"),
            "",
            "a server that has to begin as root takes ids = \"range\"",
        ),
        // In a volume that is read-only: whose it is says whether it can be writable.
        (
            shell("open /etc/quiet/own/new: Read-only file system"),
            "volumes = [\"/etc/quiet.conf:/etc/quiet.conf\", \"/etc/quiet/own:/etc/quiet/own\"]",
            "/etc/quiet/own is a volume that is read-only, and not root's: in place of this key:\n  volumes = [\"/etc/quiet.conf:/etc/quiet.conf\", \"/etc/quiet/own:/etc/quiet/own:rw\"]",
        ),
        (
            shell("open /etc/quiet/new: Read-only file system"),
            "volumes = [\"/etc/quiet:/etc/quiet\"]",
            "a copy of it beside the stack's file, that is the app's (cp -a /etc/quiet quiet && chown -R ",
        ),
        // It names what it failed at, and not why: a directory that is not there, also where it ends without an error.
        (
            shell("Unable to create /var/cache/nowhere/.x."),
            "",
            "/var/cache/nowhere is not in the app's root; to write there: tmpfs = [\"/tmp:16M\", \"/var/cache/nowhere:16M\"]",
        ),
        (
            [
                "sh".to_owned(),
                "-c".to_owned(),
                "echo Unable to create /run/nowhere/.x.".to_owned(),
            ],
            "tmpfs = [\"/run:1M\"]",
            "/run/nowhere is not in the app's root; to write there: tmpfs = [\"/run:1M\", \"/run/nowhere:16M\"]",
        ),
        (
            shell("Error opening /etc/quiet/own/key, exiting"),
            "",
            "volumes = [\"/etc/quiet/own:/etc/quiet/own\"]",
        ),
        (
            shell("Failed loading /etc/quiet/shut"),
            "volumes = [\"/etc/quiet:/etc/quiet\"]",
            "secrets = [\"shut=/etc/quiet/shut\"]",
        ),
        // What is root's alone, to one that begins as root.
        (
            shell("Failed loading /etc/quiet/shut"),
            "ids = \"range\"\nvolumes = [\"/etc/quiet:/etc/quiet\"]",
            "volumes = [\"/etc/quiet:/etc/quiet\", \"/etc/quiet/shut:/etc/quiet/shut:ro,owners\"]",
        ),
        // One that looks whose its files are, which are root's.
        (
            shell("/etc/quiet/conf must be owned by root"),
            "volumes = [\"/etc/quiet:/etc/quiet\"]",
            "  ids = \"range\"\n  volumes = [\"/etc/quiet:/etc/quiet:ro,owners\"]",
        ),
        (
            shell("illegal owner: /usr/share/doc"),
            "ids = \"range\"\nvolumes = [\"/etc/quiet:/etc/quiet\"]",
            "  volumes = [\"/etc/quiet:/etc/quiet\", \"/usr/share/doc:/usr/share/doc:ro,owners\"]",
        ),
        (
            shell("/etc/quiet/own/key: Permission denied"),
            "volumes = [\"/etc/quiet:/etc/quiet\"]",
            "volumes = [\"/etc/quiet/own:/etc/quiet/own\"]",
        ),
    ] {
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let more = format!("publish = [\"8000:8000\"]\nrestart = \"no\"\n{more}");
        let (code, said) = told(&lab, &command, &more);
        assert_eq!(code, 1, "{command:?}: {said}");
        let hints = &said[said.find("hint: ").expect("no hint")..];
        assert!(hints.contains(hint), "{command:?}: {said}");
    }
    let more = "publish = [\"8000:8000\"]\nrestart = \"no\"";
    // What has failed for another reason: at a client's path, in a directory that it has, or at a file that is there.
    for said in [
        "GET /index/of.html failed",
        "error while reading /tmp/x",
        "error in /etc/hosts, line 3",
    ] {
        let line = format!("echo {said:?} >&2; exit 1");
        let (_, said) = told(&lab, &["sh", "-c", &line], more);
        assert!(said.contains("hint: what the app wrote is above"), "{said}");
    }
    let (_, said) = told(&lab, &["sh", "-c", "exit 3"], more);
    assert!(said.contains("hint: sh wrote nothing"), "{said}");
}

/// The lines to paste that a hint has.
fn lines_of(said: &str) -> String {
    let lines: Vec<&str> = said
        .lines()
        .filter_map(|line| line.strip_prefix("  "))
        .collect();
    lines.join("\n")
}

#[test]
fn a_server_of_a_package_comes_up_with_the_lines_that_are_printed() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    lab.own_etc();
    // A package with a configuration of root's that its user reads, a directory that is its user's, and what starts it.
    lab.ok(&[
        "sh",
        "-ec",
        "mount -t tmpfs -o mode=755 tmpfs /var/lib; mount -t tmpfs -o mode=755 tmpfs /srv; mkdir -p /srv/site; echo x >/etc/quietly; mkdir -p /var/lib/dpkg/info /var/lib/quiet /etc/quiet /etc/init.d /etc/elsewhere
         cd /var/lib/dpkg; printf 'Package: quiet-server\\nSource: quiet (1)\\n\\nPackage: quiet-common\\nSource: quiet\\n' >status
         printf '/srv/quiet\\n/etc/init.d/quiet\\n' >info/quiet-server.list; printf '/etc/quiet\\n/etc/quietlink\\n/etc/quiet/conf\\n' >info/quiet-common.list
         printf 'DAEMON=/srv/quiet\\nPIDFILE=/var/run/quiet/quiet.pid\\n' >/etc/init.d/quiet
         mkdir -p /var/log/shared /var/log/others /var/lib/deep/down/own/db; chown www-data:www-data /var/log/shared /var/lib/deep/down/own; ln -s /var/lib/quiet /etc/quietlink
         printf 'log = /var/log/shared/quiet.log\\n # /var/lib/dpkg/x\\ndb = /var/lib/deep/down/own/db/x\\nother = \"/var/log/others/x\"\\nQUERY_PORT = 7002\\n#port 7003\\nlisten [::]:8443 1\\nsupports 1.2\\nsocket = /run/quiet/sock\\nroot = /srv/site/\\nusers /etc/passwd /etc/shadow /etc/quietly /etc/elsewhere/key\\n# root = /srv/quiet\\naccess = /var/log/quiet.log\\n' >/etc/quiet/conf; chmod 640 /etc/quiet/conf; chgrp www-data /etc/quiet/conf; chown www-data:www-data /var/lib/quiet
         echo x >/etc/elsewhere/key; chmod 600 /etc/elsewhere/key; ln -s /etc/elsewhere/key /etc/quiet/key
         printf '#!/bin/sh\\n[ \"$1\" != deaf ] || exec python3 -c \"import socket, signal; s = socket.socket(); s.bind((str(), 8000)); s.listen(); signal.pause()\"
         [ \"$1\" != daemon ] || { (sleep 1; exec $0 deaf) & exit 0; }
         [ -z \"$1\" -o $(id -u) = 0 ] || { echo \"must be run as root\" >&2; exit 1; }
         cat /etc/quiet/conf >&2 || exit 3\\n[ -z \"$1\" ] || cat /etc/quiet/key || exit 5
         echo >/run/quiet/quiet.pid || exit 4\\n[ -n \"$1\" ] || echo >/var/lib/quiet/new || exit 4\\nexec sleep infinity\\n' >/run/lab/quiet
         chmod 755 /run/lab/quiet",
    ]);
    let with = |command: &[&str], lines: &str| {
        let own = "\"/run/lab/quiet:/srv/quiet:exec\"";
        let lines = match lines.contains("volumes = [") {
            true if lines.contains("/srv/quiet") => lines.to_owned(),
            true => lines.replace("volumes = [", &format!("volumes = [{own}, ")),
            false => format!("volumes = [{own}]\n{lines}"),
        };
        told(&lab, command, &format!("{lines}\nrestart = \"no\""))
    };
    let (code, said) = with(&["/srv/quiet"], "");
    assert_eq!(code, 1, "{said}");
    let lines = lines_of(&said);
    assert!(
        said.contains("what the host's package quiet-server has for quiet"),
        "{said}"
    );
    assert_eq!(
        lines,
        "user = \"www-data\"\n\
         volumes = [\"/run/lab/quiet:/srv/quiet:exec\", \"/etc/quiet:/etc/quiet\", \"/etc/quietly:/etc/quietly\", \"/srv/site:/srv/site\", \"/var/lib/quiet:/var/lib/quiet:rw\", \"/var/lib/deep/down/own:/var/lib/deep/down/own:rw\", \"/var/log/shared:/var/log/shared:rw\"]\n\
         tmpfs = [\"/tmp:16M\", \"/var/log:16M\", \"/run:1M\", \"/run/quiet:16M\"]\nlisten = [7002, 8443]"
    );
    // Who already says whom it runs as has none of the rest by that.
    let (code, said) = with(&["/srv/quiet"], "user = \"www-data\"");
    assert_eq!((code, lines_of(&said)), (1, lines.clone()), "{said}");
    let (code, said) = with(&["/srv/quiet"], &lines);
    assert_eq!(code, 0, "{said}");
    lab.ok(&["stat", "/var/lib/quiet/new"]);
    lab.lrpns_ok(&["down", "web"]);

    // One that goes to the background.
    let publish = "publish = [\"9000:8000\"]";
    let (code, said) = with(&["/srv/quiet", "daemon"], publish);
    assert_eq!(code, 1, "{said}");
    let daemon = lines_of(&said);
    assert_eq!(daemon, format!("{lines}\nforks = true"));
    let (code, said) = with(&["/srv/quiet", "daemon"], &format!("{daemon}\n{publish}"));
    assert_eq!(code, 0, "{said}");
    lab.lrpns_ok(&["down", "web"]);

    // One that comes up as its user and takes no connection: the host begins it as root.
    let published = format!("{lines}\npublish = [\"9000:8000\"]");
    let (code, said) = with(&["/srv/quiet", "deaf"], &published);
    assert_eq!(code, 0, "{said}");
    let client = lab.connect("127.0.0.1:9000").unwrap();
    let hints = until("its hint", || {
        let [logs, status] = advised(&lab);
        (!logs.is_empty() && !status.is_empty()).then_some([logs, status])
    });
    for said in hints {
        assert!(
            said.starts_with("hint: quiet has answered nobody yet")
                && lines_of(&said).starts_with("ids = \"range\"\nvolumes = ["),
            "{said}"
        );
    }
    drop(client);
    lab.lrpns_ok(&["down", "web"]);

    // One that insists on root, with a key elsewhere that is root's alone.
    let (code, said) = with(&["/srv/quiet", "root"], &lines);
    assert_eq!(code, 1, "{said}");
    let lines = lines_of(&said);
    assert_eq!(
        lines,
        "ids = \"range\"\n\
         volumes = [\"/run/lab/quiet:/srv/quiet:exec\", \"/etc/quiet:/etc/quiet:ro,owners\", \
         \"/etc/elsewhere/key:/etc/elsewhere/key:ro,owners\", \"/etc/quietly:/etc/quietly\", \"/srv/site:/srv/site\", \"/var/lib/quiet:/var/lib/quiet:rw,owner=www-data\", \"/var/lib/deep/down/own:/var/lib/deep/down/own:rw,owner=www-data\"]\n\
         tmpfs = [\"/tmp:16M\", \"/var/log:16M\", \"/run:1M\", \"/run/quiet:16M\", \"/var/log/shared:16M\"]\nlisten = [7002, 8443]"
    );
    let (code, said) = with(&["/srv/quiet", "root"], &lines);
    assert_eq!(code, 0, "{said}");
}

#[test]
fn what_a_unit_has_made_for_its_server_is_given_to_one_that_has_nothing_else() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    lab.own_etc();
    // Neither a configuration nor a user: a unit alone, one of whose directories is there, and what is xinetd's.
    lab.ok(&[
        "sh",
        "-ec",
        "mount -t tmpfs -o mode=755 tmpfs /var/lib; mount -t tmpfs -o mode=755 tmpfs /srv; mkdir -p /var/lib/dpkg/info /var/lib/plain /srv/systemd /etc/xinetd.d; echo port = 99 >/etc/xinetd.d/plain
         printf 'Package: plain\\n' >/var/lib/dpkg/status; printf '/srv/plain\\n/srv/within\\n/srv/systemd/plain.service\\n/etc/xinetd.d\\n' >/var/lib/dpkg/info/plain.list
         printf '[Service]\\nType=forking\\nExecStart=/srv/plain start $OPTIONS\\nEnvironmentFile=-/etc/default/plain\\nRuntimeDirectory=plain\\nStateDirectory=plain\\nLogsDirectory=plainly\\nCacheDirectory=../x\\n' >/srv/systemd/plain.service
         printf '# A=b\\nPLAIN_ADDRESS=127.0.0.1:3000\\nOPTIONS=-x\\n' >/etc/default/plain
         printf '#!/bin/sh\\n[ \"$1\" != fail ] || exit 7\\ntouch /run/plain/pid /var/lib/plain/new /var/log/plainly/log || exit 1\\nexec sleep infinity\\n' >/run/lab/plain; chmod 755 /run/lab/plain",
    ]);
    let volume = "volumes = [\"/run/lab/plain:/srv/plain:exec\"]\nrestart = \"no\"";
    let (code, said) = told(&lab, &["/srv/plain"], volume);
    assert_eq!(code, 1, "{said}");
    let lines = lines_of(&said);
    assert_eq!(
        lines,
        "volumes = [\"/run/lab/plain:/srv/plain:exec\"]\n\
         tmpfs = [\"/tmp:16M\", \"/var/log/plainly:16M\", \"/var/lib/plain:16M\", \"/run:1M\", \"/run/plain:16M\"]\nforks = true\nenv = { PLAIN_ADDRESS = \"127.0.0.1:3000\" }",
        "{said}"
    );
    // Its clients would not find it there.
    let publishes = format!("{volume}\npublish = [\"9000:3000\"]");
    let (code, said) = told(&lab, &["/srv/plain"], &publishes);
    let words = "env = { PLAIN_ADDRESS = \"0.0.0.0:3000\" }";
    assert!(code == 1 && said.contains(words), "{said}");
    // Its user is anybody's choice.
    let (code, said) = told(
        &lab,
        &["/srv/plain"],
        &format!("user = \"www-data\"\n{volume}"),
    );
    assert_eq!((code, lines_of(&said)), (1, lines.clone()), "{said}");
    // The same for another program of its package, which that starts; but not for what is none of it.
    for (program, has) in [("within", true), ("none", false)] {
        let command = format!("/srv/{program}");
        let more = volume.replace("/srv/plain:", &format!("{command}:"));
        let (code, said) = told(&lab, &[&command], &more);
        let same = lines_of(&said) == lines.replace("/srv/plain:", &format!("{command}:"));
        assert!(code == 1 && same == has, "{program}: {said}");
    }
    let lines = lines.replace("forks = true", "restart = \"no\"");
    let (code, said) = told(&lab, &["/srv/plain"], &lines);
    assert_eq!(code, 0, "{said}");
    lab.lrpns_ok(&["down", "web"]);
    // Who has pasted all of it, in whatever order, and fails, is not told the same again.
    let (code, said) = told(&lab, &["/srv/plain", "fail"], &lines);
    assert!(code == 1 && !said.contains("has for plain"), "{said}");
    // What it finds again, and root alone may read, is shown to root of its own: a spool of nothing but files.
    lab.ok(&[
        "sh",
        "-ec",
        "mount -t tmpfs -o mode=755 tmpfs /var/spool; mkdir -m 700 /var/spool/plain",
    ]);
    let (_, said) = told(&lab, &["/srv/plain"], volume);
    assert!(said.contains("\"/var/spool/plain:16M\""), "{said}");
    lab.ok(&["sh", "-ec", "umask 077; echo x >/var/spool/plain/seed"]);
    let (code, said) = told(&lab, &["/srv/plain"], volume);
    assert!(
        code == 1
            && said.contains("plain has to begin as root")
            && said.contains("\"/var/spool/plain:/var/spool/plain:ro,owners\""),
        "{said}"
    );
    lab.ok(&["umount", "/var/spool"]);
    // Whose configuration is root's alone reads it before it changes its user.
    lab.ok(&[
        "sh",
        "-ec",
        "echo x >/etc/plain.conf; chmod 600 /etc/plain.conf",
    ]);
    let (code, said) = told(&lab, &["/srv/plain"], volume);
    let words = "plain has to begin as root and changes its user by itself";
    assert!(code == 1 && said.contains(words), "{said}");
    assert!(
        said.contains("\"/etc/plain.conf:/etc/plain.conf:ro,owners\""),
        "{said}"
    );
}

#[test]
fn one_that_listens_elsewhere_is_told_where_and_what_says_so() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    lab.own_etc();
    lab.ok(&[
        "sh",
        "-ec",
        "mkdir /etc/quiet; printf '# listen 127.0.0.1\\nmail = root@localhost of host\\nbind_other = 127.0.0.1:1\\nbind_to = 127.0.0.1:8000\\n' >/etc/quiet/conf
         mkdir /etc/apart; echo 'SHOW 127.0.0.1 \"Local Host\"' >/etc/apart/shown; printf 'listen 127.0.0.1\\nport 18000\\n' >/etc/apart/other
         printf 'MYIP 127.0.0.1\\nMYPORT 8000\\n' >/etc/apart/own",
    ]);
    let listens_by = |at: &str, volumes: &str| {
        let code = format!(
            "import socket, signal\ns = socket.socket()\ns.bind({at})\ns.listen()\nsignal.pause()"
        );
        let command = [PYTHON, "-c", &code];
        told(
            &lab,
            &command,
            &format!(
                "publish = [\"9000:8000\"]\nstart_timeout = \"1s\"\nlisten = [8002]\nvolumes = [{volumes}]"
            ),
        )
    };
    let listens = |at: &str| listens_by(at, "\"/etc/quiet:/etc/quiet\"");
    // The address in a line of its own, in the file that has the port, and not in what only mentions a host.
    let (code, said) = listens_by("('127.0.0.1', 8000)", "\"/etc/apart:/etc/apart\"");
    let words = "its configuration has it here: /etc/apart/own:1: MYIP 127.0.0.1.";
    assert!(code == 1 && said.contains(words), "{said}");
    // What it does by itself, as a comment has it.
    lab.ok(&[
        "sh",
        "-ec",
        "printf '# the host = localhost, mostly\\n# DEFAULT: host = localhost\\n' >/etc/apart.conf",
    ]);
    let (code, said) = listens_by("('127.0.0.1', 8000)", "\"/etc/apart.conf:/etc/apart.conf\"");
    let words = "/etc/apart.conf:2: # DEFAULT: host = localhost. A copy of the file beside the stack's, with 0.0.0.0 there and no comment before it,";
    assert!(code == 1 && said.contains(words), "{said}");
    let (code, said) = listens("('127.0.0.1', 8000)");
    assert_eq!(code, 1, "{said}");
    // Or as it is; what is bound to another loopback is not reached so either.
    let leave = "or leave it there: source = \"localhost\" takes its clients to its own 127.0.0.1,";
    let (_, other) = listens("('127.0.0.2', 8000)");
    assert!(!other.contains(leave), "{other}");
    for words in [
        leave,
        "its configuration has it here: /etc/quiet/conf:4: bind_to = 127.0.0.1:8000.",
        "volumes = [\"./conf:/etc/quiet/conf\"]",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    // What its command has, and else the options of its program that may be for it.
    lab.ok(&[
        "sh",
        "-ec",
        "echo '#!/usr/bin/python3
# --listen-address ADDRESS
import signal, socket
s = socket.socket()
s.bind((\"127.0.0.%d\" % 1, 8000))
s.listen()
signal.pause()' >/run/lab/lone
         printf '#!/bin/sh\necho bind: Permission denied >&2; exit 1\n' >/run/lab/epmd; chmod 755 /run/lab/lone /run/lab/epmd",
    ]);
    let own = |command: &[&str]| {
        told(
            &lab,
            command,
            "publish = [\"9000:8000\"]\nstart_timeout = \"1s\"\nrestart = \"no\"\nvolumes = [\"/run/lab/lone:/opt/lone:exec\", \"/run/lab/epmd:/opt/epmd:exec\"]",
        )
    };
    let (code, said) = own(&["/opt/lone", "--to=http://127.0.0.1:1", "-l", "localhost"]);
    let words = "its command has it: command = [\"/opt/lone\", \"--to=http://127.0.0.1:1\", \"-l\", \"0.0.0.0\"]";
    assert!(code == 1 && said.contains(words), "{said}");
    let (code, said) = own(&["/opt/lone"]);
    let words = "has to say 0.0.0.0. Of its options this may be the one for it: --listen-address";
    assert!(code == 1 && said.contains(words), "{said}");
    // A file of its command that it would make, and a setting whose port its configuration has as a comment.
    let (code, said) = told(
        &lab,
        &[
            "sh",
            "-c",
            "echo cannot open database >&2; exit 1",
            "/var/lib/none/site.db",
        ],
        "publish = [\"9000:8000\"]\nrestart = \"no\"",
    );
    let words = "/var/lib/none is not in the app's root; to write there: tmpfs = [\"/tmp:16M\", \"/var/lib/none:16M\"]";
    assert!(code == 1 && said.contains(words), "{said}");
    lab.ok(&[
        "sh",
        "-ec",
        "printf 'xml_port 1\n# default: 2\n# more_port: 8652\n' >/etc/more.conf",
    ]);
    let (code, said) = told(
        &lab,
        &[
            "sh",
            "-c",
            "echo 'tcp_listen() on more_port failed' >&2; exit 1",
        ],
        "publish = [\"9000:8000\"]\nrestart = \"no\"\nvolumes = [\"/etc/more.conf:/etc/more.conf\"]",
    );
    assert!(code == 1 && said.contains("listen = [8652]"), "{said}");
    // Of one that does not say which, the port that its own name has in /etc/services.
    let (code, said) = own(&["/opt/epmd"]);
    assert!(code == 1 && said.contains("listen = [4369]"), "{said}");
    let (code, said) = listens("('0.0.0.0', 8000 + 1)");
    assert!(
        code == 1 && said.contains("what it was refused it does not name: a TCP port"),
        "{code}: {said}"
    );
    let (code, said) = listens("('0.0.0.0', 8002)");
    assert!(
        code == 1 && said.contains("hint: it listens on 8002 instead: publish = [\"9000:8002\"]"),
        "{code}: {said}"
    );
}

#[test]
fn what_a_server_says_in_a_log_of_its_own_is_looked_at_and_nothing_behind_it() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let logs = lab.volume("logs");
    lab.write("secret", "a secret of root's\n");
    let says = |code: &str| {
        let volumes = format!("volumes = [\"{}:/var/log/quiet:rw\"]", logs.display());
        let more = format!("publish = [\"8000:8000\"]\nrestart = \"no\"\n{volumes}");
        let code = format!("import os\nos.chdir('/var/log/quiet')\n{code}\nraise SystemExit(1)");
        let (status, said) = told(&lab, &[PYTHON, "-c", &code], &more);
        assert_eq!(status, 1, "{said}");
        said
    };
    let said = says(
        "open('a', 'w').write('all is well\\nbind() to [::]:6380 failed (13: Permission denied)\\n')",
    );
    assert!(said.contains("listen = [6380]"), "{said}");
    let said = says("os.remove('a'); open('b', 'w').write('first\\nI am \\x1b[2J out of luck\\n')");
    let words = format!(
        "it says more in its own log, {}/b, which has at its end: I am ",
        logs.display()
    );
    assert!(
        said.contains(&words) && said.contains("out of luck") && !said.contains('\u{1b}'),
        "{said}"
    );
    // One of several, and what in it is bad.
    let said = says(
        "os.remove('b'); open('e', 'w').write('[ERR] unable to bind to tcp://127.0.0.1:5563\\nbye\\n'); open('f', 'w').write('stopped\\n')",
    );
    assert!(said.contains("listen = [5563]"), "{said}");
    let said =
        says("open('e', 'w').write('[ERR] no moon\\nbye\\n'); open('f', 'w').write('stopped\\n')");
    assert!(
        said.contains("/e, which has at its end: [ERR] no moon"),
        "{said}"
    );
    // Neither a link nor what waits for somebody is opened.
    let secret = lab.dir.path().join("secret");
    let said = says(&format!(
        "[os.remove(name) for name in os.listdir('.')]; os.symlink({:?}, 'c'); os.mkfifo('d')",
        secret.display().to_string()
    ));
    assert!(
        !said.contains("secret") && !said.contains("its own log"),
        "{said}"
    );
}

#[test]
fn what_the_filter_refuses_is_said_with_the_least_that_would_allow_it() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let code = "import ctypes, os, socket\n\
                libc = ctypes.CDLL(None, use_errno=True)\n\
                def errno(*args): return ctypes.get_errno() if libc.syscall(*args) == -1 else 0\n\
                def tried(f, *args):\n\
                \x20try: f(*args); return 0\n\
                \x20except OSError as e: return e.errno\n\
                open('/tmp/x', 'w')\n\
                print([errno(250, 0, 0, 0, 0, 0), errno(238, 0, 0, 0), errno(1000), errno(272, 0x10000000), tried(os.chroot, '/'),\n\
                tried(os.setuid, 1000), tried(os.setuid, 33), tried(os.setgroups, []), tried(os.chmod, '/tmp/x', 0o4755),\n\
                tried(socket.socket, 16, 3, 15)])\n\
                raise SystemExit(3)";
    // keyctl, set_mempolicy and unshare by their numbers on x86_64.
    if std::env::consts::ARCH != "x86_64" {
        return;
    }
    // The same answers, whether it is explained or not.
    let plain = lab.lrpns(&["run", "--", PYTHON, "-c", code]);
    let output = lab.lrpns(&["run", "--explain", "--", PYTHON, "-c", code]);
    assert_eq!(
        output.status.code(),
        Some(3),
        "{}",
        support::lab::describe(&output)
    );
    assert_eq!(output.stdout, plain.stdout);
    let answers = String::from_utf8_lossy(&plain.stdout);
    assert_eq!(answers, "[1, 1, 38, 1, 1, 0, 22, 1, 1, 1]\n");
    let said = String::from_utf8_lossy(&output.stderr);
    for words in [
        "app was refused, the latest last:",
        "  keyctl(0) by python3: EPERM\n",
        "  unshare(0x10000000) by python3: EPERM\n",
        "  setuid(33) by python3: what the kernel says to who has one user\n",
        "  socket(AF_NETLINK, SOCK_RAW, NETLINK_KOBJECT_UEVENT) by python3: EPERM\n",
        "hint: 1000: answered as by a kernel that does not have it",
        "hint: if it does not go on without: seccomp = \"default+set_mempolicy\"\n",
        "keyctl, unshare, chmod, socket: no key gives an app that",
        "hint: chroot: it takes another directory for its root",
        "hint: setuid, setgroups: it becomes another user",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(!said.contains("setuid(1000)"), "{said}");
    let plain = String::from_utf8_lossy(&plain.stderr).into_owned();
    assert!(!plain.contains("was refused, the latest last"), "{plain}");

    // What is pasted is what is allowed: a policy that there is none of is no EPERM any more, chroot still is.
    let (code, said) = told(
        &lab,
        &[
            PYTHON,
            "-c",
            "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nlibc.syscall(238, 99, 0, 0)\n\
             assert ctypes.get_errno() == 22, ctypes.get_errno()\ntry: os.chroot('/')\nexcept PermissionError: raise SystemExit(0)\nraise SystemExit(1)",
        ],
        "seccomp = \"default+set_mempolicy\"\nrestart = \"no\"",
    );
    assert!(
        code == 0 && said.contains("ended with exit status 0"),
        "{code}: {said}"
    );
    for (seccomp, words) in [
        (
            "default+no_such_call",
            "this machine has no system call `no_such_call`",
        ),
        (
            "default+socket",
            "`socket` is allowed by default as far as it is safe",
        ),
        (
            "default+keyctl",
            "`keyctl` is kept from every app, whatever its profile says",
        ),
        ("wide+set_mempolicy", "wide"),
    ] {
        let (code, said) = told(&lab, &["true"], &format!("seccomp = \"{seccomp}\""));
        assert!(code == 2 && said.contains(words), "{code}: {said}");
    }
}

#[test]
fn ports_that_no_key_names_are_said_with_the_line_to_paste() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    // Says nothing of what it was refused, as many do not; of UDP, of its own port and of the kernel's choice nothing is.
    let code = "import socket\n\
                def tried(f, family, kind, at):\n\
                \x20with socket.socket(family, kind) as s:\n\
                \x20\x20try: getattr(s, f)(at)\n\
                \x20\x20except OSError as e: return e.errno\n\
                tcp, udp = socket.SOCK_STREAM, socket.SOCK_DGRAM\n\
                four, six = socket.AF_INET, socket.AF_INET6\n\
                print([tried('bind', four, tcp, ('0.0.0.0', 4369)), tried('bind', six, tcp, ('::', 25672)), tried('bind', four, udp, ('0.0.0.0', 5353)),\n\
                tried('connect', four, tcp, ('127.0.0.1', 4369)), tried('connect', four, tcp, ('127.0.0.1', 5432)), tried('connect', four, tcp, ('192.0.2.9', 443)),\n\
                tried('bind', four, tcp, ('0.0.0.0', 8000)), tried('connect', four, tcp, ('127.0.0.1', 8000)), tried('bind', socket.AF_UNIX, tcp, '/tmp/s')])\n\
                raise SystemExit(3)";
    let file = |more: &str| {
        let command = look::toml_list(&[PYTHON, "-c", code]);
        let app =
            format!("name = \"web\"\n[app]\nrootfs = \"host\"\ncommand = {command}\n{more}\n");
        let path = lab.write("app.toml", &app);
        let output = lab.lrpns(&["up", "--explain", "-f", path.to_str().unwrap()]);
        assert_eq!(
            output.status.code(),
            Some(1),
            "{}",
            support::lab::describe(&output)
        );
        (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (out, said) = file("publish = [\"9000:8000\"]\ntmpfs = [\"/tmp:1M\"]\nrestart = \"no\"");
    assert!(
        out.contains("[13, 13, None, 13, 13, 13, None, 111, None]"),
        "{out}: {said}"
    );
    for words in [
        "  bind(0.0.0.0:4369) by TCP by python3: EACCES\n",
        "  bind([::]:25672) by TCP by python3: EACCES\n",
        "  connect(127.0.0.1:4369) by TCP by python3: EACCES\n",
        "hint: it listens on ports of TCP that no key names: listen = [4369, 25672]; what its clients are to reach is published instead: publish = [\"4369:4369\"]\n",
        "its own loopback: listen = [4369, 5432, 25672], if another process",
        "hint: it connects to others by TCP: egress = [\"tcp 192.0.2.9:443\"]\n",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    for words in ["5353", "8000) by TCP", "/tmp/s"] {
        assert!(!said.contains(words), "{words}: {said}");
    }
    // Whoever does not ask is told where to.
    let (_, plain) = told(
        &lab,
        &[
            PYTHON,
            "-c",
            "print('Fatal: Permission denied'); raise SystemExit(3)",
        ],
        "publish = [\"9000:8000\"]",
    );
    assert!(plain.contains("`lrpns up --explain`"), "{plain}");
    // What is pasted is what it takes.
    let (out, said) = file(
        "publish = [\"9000:8000\"]\ntmpfs = [\"/tmp:1M\"]\nrestart = \"no\"\nlisten = [4369, 5432, 25672]",
    );
    assert!(
        out.contains("[None, None, None, 111, 111, 13, None, 111, None]"),
        "{out}: {said}"
    );
    assert!(!said.contains("listen = ["), "{said}");
}

#[test]
fn an_app_that_asks_without_end_keeps_nobody_waiting() {
    if !look::machine() || std::env::consts::ARCH != "x86_64" {
        return;
    }
    let lab = Lab::new();
    // Four ask all the time; killed while they wait for an answer, too; a hundred different calls are kept as 64.
    let code = "import ctypes, os, signal, time\n\
                libc = ctypes.CDLL(None)\n\
                for n in range(100): libc.syscall(250, n, 0, 0, 0, 0)\n\
                children = []\n\
                for _ in range(4):\n\
                \x20pid = os.fork()\n\
                \x20while pid == 0: libc.syscall(250, 0, 0, 0, 0, 0)\n\
                \x20children.append(pid)\n\
                print('begun', flush=True)\n\
                time.sleep(1)\n\
                for pid in children: os.kill(pid, signal.SIGKILL)\n\
                for pid in children: os.waitpid(pid, 0)";
    let begun = std::time::Instant::now();
    let output = lab.lrpns(&["run", "--explain", "--", PYTHON, "-c", code]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("  keyctl(0) by python3: EPERM, "), "{said}");
    assert!(
        said.contains(" calls more, of which no list was kept"),
        "{said}"
    );
    assert_eq!(said.matches("  keyctl(").count(), 64, "{said}");
    assert!(begun.elapsed().as_secs() < 30, "{:?}", begun.elapsed());
}

#[test]
fn one_that_listens_and_takes_no_connection_is_told_where_to_look() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    // At any address, as far as the kernel tells, but of the loopback alone.
    let code = "import socket, time\ns = socket.socket()\ns.setsockopt(socket.SOL_SOCKET, 25, b'lo')\n\
                s.bind(('0.0.0.0', 8000))\ns.listen()\ntime.sleep(99)";
    let (code, said) = told(&lab, &[PYTHON, "-c", code], "publish = [\"9000:8000\"]");
    assert_eq!(code, 1, "{said}");
    for words in [
        "connect through the sidecar to app port 8000: Connection refused",
        "hint: python3 listened and then took no connection",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
}

/// What `lrpns logs` says beside the log, and `lrpns status` at its end.
fn advised(lab: &Lab) -> [String; 2] {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    // What lives says it on standard error, beside the log.
    let logs = text(&lab.lrpns(&["logs", "web"]).stderr);
    let status = text(&lab.lrpns(&["status", "web"]).stdout);
    let hints = status
        .find("hint: ")
        .map_or("", |i| &status[i..])
        .to_owned();
    [logs, hints]
}

/// Waits for a line of the log.
fn logged(lab: &Lab, words: &str) {
    until(words, || {
        let log = lab.lrpns(&["logs", "web"]).stdout;
        String::from_utf8_lossy(&log).contains(words).then_some(())
    });
}

#[test]
fn one_that_comes_up_and_ends_a_moment_later_is_told_why_by_status_and_logs() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let volume = lab.volume("state");
    // Once it has been up, it does not come so far again.
    let code = "import os, socket, sys\ns = socket.socket()\n\
                if not os.path.exists('/state/up'):\n\
                \x20s.bind(('0.0.0.0', 8000)); s.listen(); s.accept(); s.accept(); open('/state/up', 'w')\n\
                sys.exit('bind() to [::]:6380 failed (13: Permission denied)')";
    let more = format!(
        "publish = [\"9000:8000\"]\nvolumes = [\"{}:/state:rw\"]",
        volume.display()
    );
    let (code, said) = told(&lab, &[PYTHON, "-c", code], &more);
    assert_eq!(code, 0, "{said}");
    // Its first one was whoever looked whether it answers.
    drop(lab.connect("127.0.0.1:9000").unwrap());
    logged(&lab, "is started again");
    for said in advised(&lab) {
        assert!(
            said.starts_with("hint: a TCP port") && said.contains("listen = [6380]"),
            "{said}"
        );
    }
    // What is asked for as data, or in part, is that alone.
    for args in [["logs", "--json"], ["logs", "--grep=bind"]] {
        let output = lab.lrpns(&[args[0], "web", args[1]]);
        assert!(
            output.stderr.is_empty(),
            "{}",
            support::lab::describe(&output)
        );
    }
}

#[test]
fn one_that_turns_its_clients_away_is_told_where_it_sees_them() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let code = |say: &str| {
        format!(
            "import socket, sys\ns = socket.socket()\ns.bind(('0.0.0.0', 8000))\ns.listen()\n\
             while True:\n c, at = s.accept(); at = at[0]; print({say}, flush=True); c.close()"
        )
    };
    let list = "# a list, allowed_from = 127.0.0.1 say\nallowed_hosts=127.0.0.1,::1\n";
    let commented =
        "# who may ask, 127.0.0.1 is allowed, say\n# allow-from=127.0.0.0/8, 10.0.0.0/8\n";
    let net = "[network]\nsubnet = \"172.18.0.0/24\"\n[sidecar]\naddress = \"172.18.0.1\"";
    for (say, file, words) in [
        (
            "'Host', at, 'is not allowed to talk to us!'",
            list,
            Some((
                "172.18.0.1",
                "it turns them away: who may connect it has here: /etc/quiet/conf:2: allowed_hosts=127.0.0.1,::1.",
            )),
        ),
        (
            "f'refused ::ffff:{at}:{1}: not in the list'",
            "nothing\n",
            Some((
                "172.18.0.1",
                "in its own list of who may connect, 172.18.0.1 is to be allowed; or source = \"localhost\": then each comes to it from 127.0.0.1",
            )),
        ),
        (
            "'go away'",
            commented,
            Some((
                "172.18.0.1",
                "none has got an answer yet: who may connect it has here: /etc/quiet/conf:2: # allow-from=127.0.0.0/8",
            )),
        ),
        (
            "f'{at} - - [30/Nov/2026:17:00:00 +0000] \"GET / HTTP/1.1\" 403 199'",
            "nothing\n",
            Some(("172.18.0.1", "it turns them away: in its own list")),
        ),
        ("f'{at} - - \"GET / HTTP/1.1\" 200 403'", "nothing\n", None),
        ("'denied, 192.0.2.1'", "allowed = everybody\n", None),
        ("'welcome,', at", "nothing\n", None),
    ] {
        let conf = lab.write("conf", file);
        let more = format!(
            "publish = [\"9000:8000\"]\nvolumes = [\"{}:/etc/quiet/conf\"]\n{net}",
            conf.display()
        );
        let (status, said) = told(&lab, &[PYTHON, "-c", &code(say)], &more);
        assert_eq!(status, 0, "{said}");
        let before = lab.lrpns(&["logs", "web"]).stdout.len();
        let _ = lab.get("http://127.0.0.1:9000/");
        until("its word of the client", || {
            (lab.lrpns(&["logs", "web"]).stdout.len() > before).then_some(())
        });
        until("the connection's end", || {
            let traffic = &lab.status("web")["traffic"];
            (traffic["open"] == 0 && traffic["accepted"] == 2).then_some(())
        });
        for said in advised(&lab) {
            match words {
                Some((address, words)) => assert!(
                    said.starts_with(&format!("hint: its clients come to it from {address},"))
                        && said.contains(words),
                    "{words}: {said}: {}",
                    lab.status("web")["traffic"]
                ),
                None => assert_eq!(said, ""),
            }
        }
        lab.lrpns_ok(&["down", "web"]);
    }
}

#[test]
fn a_server_that_has_ended_for_good_is_told_why_afterwards() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    for (ends, hint) in [
        (
            "sys.exit('bind() to [::]:6380 failed (13: Permission denied)')",
            "listen = [6380]",
        ),
        (
            "sys.exit(0)",
            "python3 ended without an error. If it goes to the background",
        ),
    ] {
        let code = format!(
            "import socket, sys\ns = socket.socket()\ns.bind(('0.0.0.0', 8000)); s.listen(); s.accept(); s.accept()\n{ends}"
        );
        let (code, said) = told(
            &lab,
            &[PYTHON, "-c", &code],
            "publish = [\"9000:8000\"]\nrestart = \"no\"",
        );
        assert_eq!(code, 0, "{said}");
        drop(lab.connect("127.0.0.1:9000").unwrap());
        until("its end", || {
            let status = lab.lrpns(&["status", "web", "--json"]).stdout;
            let status: serde_json::Value = serde_json::from_slice(&status).ok()?;
            (status["state"] == "ended").then_some(())
        });
        for said in advised(&lab) {
            assert!(
                said.starts_with("hint: ") && said.contains(hint),
                "{hint}: {said}"
            );
        }
    }
}

#[test]
fn what_a_command_names_of_the_hosts_data_is_said_where_the_root_has_not_got_it() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    for at in ["/srv", "/mnt"] {
        lab.ok(&["mount", "-t", "tmpfs", "tmpfs", at]);
    }
    lab.ok(&["mkdir", "/srv/site", "/mnt/more"]);
    let code = "import socket, signal; s = socket.socket(); s.bind(('0.0.0.0', 8000)); s.listen(); signal.pause()";
    let named = [
        "/srv/site",
        "--data=/mnt/more",
        "/mnt/nothing",
        "-r",
        "/usr/lib",
        "/etc/passwd",
    ];
    let command = [&[PYTHON, "-c", code][..], &named].concat();
    let (status, said) = told(&lab, &command, "publish = [\"9000:8000\"]");
    let line = "volumes = [\"/srv/site:/srv/site\", \"/mnt/more:/mnt/more\"]";
    let hint = format!(
        "hint: the command of app names what the host has and the app's root has not, /srv/site, /mnt/more: {line}"
    );
    assert!(status == 0 && said.contains(&hint), "{said}");
    lab.lrpns_ok(&["down", "web"]);
    let (status, said) = told(
        &lab,
        &command,
        &format!("publish = [\"9000:8000\"]\n{line}"),
    );
    assert!(status == 0 && !said.contains("hint: "), "{said}");
}

#[test]
fn what_a_server_wrote_to_its_log_in_memory_is_said_when_it_fails_and_only_then() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let log = "tmpfs = [\"/var/log/web:1M\", \"/run/web:1M\"]\nrestart = \"no\"";
    let more = format!("publish = [\"8000:8000\"]\n{log}");
    let write = "mkdir /var/log/web/deep; echo of: /srv/no/thing: Read-only file system >/var/log/web/deep/error; echo key >/run/web/key";
    let elsewhere = "ln -s /run/web/key /var/log/web/link; ln -s /run/web /var/log/web/way; mkfifo /var/log/web/pipe; ln /run/web/key /run/web/own.pid";
    let ends = format!("{write}; {elsewhere}; exit 3");
    let (code, said) = told(&lab, &["sh", "-c", &ends], &more);
    assert_eq!(code, 1, "{said}");
    for words in ["app | error: of: /srv/no/thing", "\"/srv/no:16M\""] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert!(!said.contains("key"), "{said}");
    // One that is given up on.
    let stays = format!("{write}; exec sleep infinity");
    let (code, said) = told(
        &lab,
        &["sh", "-c", &stays],
        &format!("{more}\nstart_timeout = \"1s\""),
    );
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("\"/srv/no:16M\""), "{said}");
    // What has no room left, and was not told so.
    let fills = "head -c 3M /dev/zero >/run/web/data 2>/dev/null; kill -BUS $$";
    let (code, said) = told(&lab, &["sh", "-c", fills], &more);
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("/run/web is full")
            && said.contains("  tmpfs = [\"/var/log/web:1M\", \"/run/web:64M\"]"),
        "{said}"
    );
    // One that is told to end has nothing to explain.
    let told_to = format!("{write}; trap 'exit 3' TERM; while :; do sleep 0.1; done");
    let (code, said) = told(&lab, &["sh", "-c", &told_to], log);
    assert_eq!(code, 0, "{said}");
    lab.lrpns_ok(&["down", "web"]);
    let said = lab.lrpns(&["logs", "web"]);
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(!said.contains("/srv/no/thing"), "{said}");
}

#[test]
fn one_that_goes_to_the_background_once_it_listens_is_not_said_to_be_up() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    // What it leaves has the socket; it itself is busy for a moment and ends.
    let code = "import os, signal, socket, time
s = socket.socket(); s.bind(('0.0.0.0', 8000)); s.listen()
if os.fork() == 0: signal.pause()
end = time.monotonic() + 0.05
while time.monotonic() < end: pass
os._exit(0)";
    let more = "publish = [\"9000:8000\"]\nrestart = \"no\"";
    let (code_of, said) = told(&lab, &[PYTHON, "-c", code], more);
    assert_eq!(code_of, 1, "{said}");
    assert!(
        said.contains("app listened, and then ended with exit status 0")
            && said.contains("forks = true"),
        "{said}"
    );
    let (code_of, said) = told(
        &lab,
        &[PYTHON, "-c", code],
        &format!("{more}\nforks = true"),
    );
    assert_eq!(code_of, 0, "{said}");
    lab.lrpns_ok(&["down", "web"]);
    // One that is only busy is up.
    let busy = code
        .replace("os._exit(0)", "signal.pause()")
        .replace("0.05", "1");
    let (code_of, said) = told(&lab, &[PYTHON, "-c", &busy], more);
    assert_eq!(code_of, 0, "{said}");
    lab.lrpns_ok(&["down", "web"]);
}

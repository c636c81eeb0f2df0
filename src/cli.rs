//! The command line, as types only.
#![forbid(unsafe_code)]

mod habits;
mod help;
pub mod hide;
mod time;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::names::StackName;
pub use habits::{answer, rewritten};
pub use help::{command, read};

/// Run a web app behind a firewall sidecar, with the least privilege that works. No Docker, no daemon.
#[derive(Debug, Parser)]
#[command(
    name = "lrpns",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = "Example: `sudo lrpns up -d && curl http://localhost:5000/ && sudo lrpns down`\n\n\
                  Without -f, the file is /etc/lrpns/STACK.toml, if a STACK is named that has one, else ./lrpns.toml; if\n\
                  there is none and no STACK is named, the built-in example, customerA, on 127.0.0.1:5000. Root reads\n\
                  files of its own and of the user who runs sudo that nobody else may write to; --trust-file overrides.\n\
                  Exit codes: 0; 1 the stack or a check failed; 2 usage or configuration; 125 lrpns could not do it;\n\
                  for `run` and `exec` the command's own; 130 interrupted by Ctrl-C."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// As root, read files that somebody else owns or may write to
    #[arg(long, global = true)]
    pub trust_file: bool,
}

/// Where the configuration comes from.
#[derive(Debug, Args)]
pub struct Source {
    /// The stack's name; left out, it is the file's, or the built-in example's
    #[arg(value_parser = habits::stack)]
    pub stack: Option<StackName>,
    /// The configuration
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The built-in example, whatever file is here, published on 0.0.0.0:5000
    #[arg(long, conflicts_with = "file")]
    pub demo: bool,
    /// Set a variable for ${NAME} in the file; goes before the environment's LRPNS_NAME. Not for secrets: other users can
    /// read a command line
    #[arg(long, value_name = "NAME=VALUE")]
    pub set: Vec<String>,
    /// A file of NAME=VALUE lines for ${NAME}; comes after the environment
    #[arg(long, value_name = "FILE")]
    pub env_file: Option<PathBuf>,
}

/// Which running stack.
#[derive(Debug, Args)]
pub struct Target {
    /// The stack's name; left out, it is the file's, or the built-in example's. Where one part is meant: STACK/PART, or
    /// PART alone if one stack only has it
    pub stack: Option<String>,
    /// The configuration that names the stack
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// One verb each.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a stack and run it; in the foreground it shows the log until Ctrl-C, then takes all down
    #[command(
        after_help = "Example: lrpns up -d --set PROVIDER=lrpns\n\nCtrl-C undoes a start, also with -d."
    )]
    Up {
        /// Where the configuration comes from.
        #[command(flatten)]
        source: Source,
        /// Return when the published ports answer
        #[arg(short, long)]
        detach: bool,
        /// Refuse, before anything is made, when a limit can't be enforced here
        #[arg(long)]
        strict_limits: bool,
        /// Publish only after `lrpns audit` has passed; else take the stack down, say what it found and exit with 1
        #[arg(long)]
        gate: bool,
        /// Say at its end which system calls and ports of TCP the apps were refused, with the lines that would allow them; grants nothing
        #[arg(long, conflicts_with_all = ["detach", "gate"])]
        explain: bool,
        /// Say of each step when it was done and what it has taken, in milliseconds
        #[arg(long)]
        timings: bool,
        /// What one stack more would be, or its apps: refused, with what to do instead.
        #[arg(hide = true)]
        more: Vec<String>,
    },
    /// Start a stack that has ended, or an app of a running one that has
    #[command(hide = true, after_help = "Example: lrpns start customerA")]
    Start {
        /// Which.
        #[command(flatten)]
        target: Target,
    },
    /// Take a stack down; nothing to take down is success
    #[command(alias = "stop", after_help = "Example: lrpns down --all")]
    Down {
        /// Which stack.
        #[command(flatten)]
        target: Target,
        /// Every stack of this user
        #[arg(long, conflicts_with_all = ["stack", "file"])]
        all: bool,
    },
    /// List the stacks of this user
    #[command(alias = "ls", alias = "list", after_help = "Example: lrpns ps --json")]
    Ps {
        /// Also stacks that have ended
        #[arg(short, long)]
        all: bool,
        /// Names only
        #[arg(short, long, conflicts_with = "json")]
        quiet: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one stack in full: parts, processes, what each holds
    #[command(
        after_help = "Example: lrpns status customerA --json\n\nOf a stack that has ended: how, and what was said last; exit code 1."
    )]
    Status {
        /// Which stack.
        #[command(flatten)]
        target: Target,
        /// How the stack of that name ended that came before
        #[arg(long)]
        previous: bool,
        /// As JSON
        #[arg(long, conflicts_with = "verbose")]
        json: bool,
        /// Also links and addresses, and why a port is published as it is
        #[arg(short, long)]
        verbose: bool,
    },
    /// Print what `status --json` does
    #[command(hide = true, after_help = "Example: lrpns inspect customerA")]
    Inspect {
        /// Which stack.
        #[command(flatten)]
        target: Target,
    },
    /// List the processes of each part
    #[command(after_help = "Example: lrpns top customerA")]
    Top {
        /// Which stack.
        #[command(flatten)]
        target: Target,
    },
    /// Draw a stack: who may reach whom, and what was counted and refused if it runs
    #[command(
        after_help = "Example: lrpns graph customerA\n         lrpns graph --svg customerA.svg"
    )]
    Graph {
        /// Which stack.
        #[command(flatten)]
        target: Target,
        /// Write it as SVG there, for a browser; `-` is standard output
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
    },
    /// Show what each part uses: processors, memory, connections, bytes
    #[command(
        after_help = "Example: lrpns stats -f customerA\n         lrpns stats customerA/app --json"
    )]
    Stats {
        /// The stack's name; left out, it is the file's, or the built-in example's. STACK/PART, or PART alone if one stack
        /// only has it, is for that part
        stack: Option<String>,
        /// The configuration that names the stack
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Go on every second, until Ctrl-C or the stack's end
        #[arg(short, long)]
        follow: bool,
        /// As JSON; with --follow one document a line
        #[arg(long)]
        json: bool,
    },
    /// Print the same, and what each rule has counted, for Prometheus
    #[command(
        after_help = "Example: lrpns metrics customerA\n         lrpns metrics --all --listen unix:/run/lrpns-metrics.sock\n\n\
                      The socket answers HTTP; who may connect is decided by its directory, and by the umask of this command."
    )]
    Metrics {
        /// Which stack.
        #[command(flatten)]
        target: Target,
        /// Every stack of this user
        #[arg(long, conflicts_with_all = ["stack", "file"])]
        all: bool,
        /// Serve them on a socket, until Ctrl-C: unix:PATH
        #[arg(long, value_name = "unix:PATH", value_parser = habits::unix_socket)]
        listen: Option<PathBuf>,
    },
    /// Send a signal to an app's command, or to every app's
    #[command(
        after_help = "Example: lrpns kill -s HUP customerA/app\n\nAn app that ends by it is started again if `restart` says so."
    )]
    Kill {
        /// Which stack.
        #[command(flatten)]
        target: Target,
        /// Its name, with SIG or without, or its number
        #[arg(short, long, value_name = "SIGNAL", default_value = "KILL", value_parser = habits::signal)]
        signal: nix::sys::signal::Signal,
    },
    /// Start a part again; addresses, rules and the other parts stay
    #[command(
        after_help = "Example: lrpns restart --rolling customerA/app\n\nWith --rolling, exit code 1 if the new one did not come to be well: it is gone then, \
                      and the old one stays."
    )]
    Restart {
        /// Start another of the app beside it, and let the old one end when the new one is well and has its clients: no
        /// connection is refused. Without a part, every app that allows it, one after the other
        #[arg(long)]
        rolling: bool,
        /// The stack, then parts: `sidecar`, `relay` or an app's name; left out, every app. STACK/PART too, or PART alone
        /// if one stack only has it
        #[arg(value_name = "STACK|PART")]
        words: Vec<String>,
        /// The configuration that names the stack
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Bring a running stack to the changed file with the least change; connections live on
    #[command(
        after_help = "Example: lrpns apply customerA --confirm 30\n\nWhat doesn't work is taken back, and so is all upon Ctrl-C. With --confirm, so is what \
                      isn't confirmed: by Enter, or without a terminal by a line on standard input; its end, a hangup, \
                      Ctrl-C and the end of this command mean no. Exit code 1, 130 upon Ctrl-C: nothing has changed."
    )]
    Apply {
        /// Where the configuration comes from.
        #[command(flatten)]
        source: Source,
        /// Take everything back unless it is confirmed within so many seconds
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
        confirm: Option<u64>,
        /// Show what would change, as rules and as parts that would start again, and change nothing
        #[arg(long, conflicts_with = "confirm")]
        dry_run: bool,
        /// What has changed, as JSON on standard output
        #[arg(long)]
        json: bool,
    },
    /// Show the log
    #[command(
        after_help = "Example: lrpns logs -f -n 50 customerA app\n         lrpns logs customerA --since 10m --grep 'error|denied'\n\n\
                      TIME is how long ago (90s, 10m, 2h, 1d), or a date and time in UTC as the log has it; RE is a \
                      regular expression."
    )]
    Logs {
        /// The stack, then parts; left out, it is the file's, or the built-in example's. STACK/PART too, or PART alone if
        /// one stack only has it
        #[arg(value_name = "STACK|PART")]
        words: Vec<String>,
        /// The configuration that names the stack
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Go on with what comes, until Ctrl-C
        #[arg(short, long)]
        follow: bool,
        /// Only this part's lines, may be given several times; `traffic` for connections and refused packets
        #[arg(long)]
        part: Vec<String>,
        /// Only the last N lines, and with -f what comes
        #[arg(short = 'n', long, visible_alias = "tail", value_name = "N")]
        lines: Option<usize>,
        /// Only lines since then
        #[arg(long, value_name = "TIME", value_parser = time::parse)]
        since: Option<jiff::Timestamp>,
        /// Only lines until then
        #[arg(long, value_name = "TIME", value_parser = time::parse, conflicts_with = "follow")]
        until: Option<jiff::Timestamp>,
        /// Only lines whose text matches this regular expression
        #[arg(short, long, value_name = "RE")]
        grep: Option<regex_lite::Regex>,
        /// What the stack of that name said last that came before
        #[arg(short, long)]
        previous: bool,
        /// One JSON document a line: time, part, stream, text, traffic
        #[arg(long)]
        json: bool,
    },
    /// Show what has become of the parts: started, ended, healthy or not, changed
    #[command(
        after_help = "Example: lrpns events -f --json customerA\n\nThe same lines are in the log, between those of the parts. TIME is as \
                      `lrpns logs` has it."
    )]
    Events {
        /// The stack, then parts, as `lrpns logs` has them
        #[arg(value_name = "STACK|PART")]
        words: Vec<String>,
        /// The configuration that names the stack
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Go on with what comes, until Ctrl-C
        #[arg(short, long)]
        follow: bool,
        /// Only those since then
        #[arg(long, value_name = "TIME", value_parser = time::parse)]
        since: Option<jiff::Timestamp>,
        /// Those of the stack of that name that came before
        #[arg(short, long)]
        previous: bool,
        /// One JSON document a line, with the keys that lines of the log have
        #[arg(long)]
        json: bool,
    },
    /// Capture the packets that the sidecar lets through and refuses, with the rule's name
    #[command(
        after_help = "Example: lrpns capture customerA -w - port 5000 | tcpdump -n -r -\n\nFILTER is made of `client ADDRESS`, \
                      `port PORT` and `refused`; without -w there is a line for each packet. A first word that is \
                      none of these is the stack's name."
    )]
    Capture {
        /// The configuration that names the stack
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Write pcapng there; `-` is standard output
        #[arg(short, long, value_name = "FILE")]
        write: Option<PathBuf>,
        /// End after so many packets
        #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        count: Option<u64>,
        /// The stack's name; left out, it is the file's, or the built-in example's. Then which packets
        #[arg(value_name = "STACK|FILTER")]
        words: Vec<String>,
    },
    /// Say why a client's packets don't arrive: waits for one, and tells every rule that it meets
    #[command(
        after_help = "Example: lrpns trace 192.0.2.7 5000\n\nExit code 1 unless the packet arrives."
    )]
    Trace {
        /// The client's address
        client: std::net::IpAddr,
        /// The port of this host that it wants
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
        /// The stack's name; left out, it is the file's, or the built-in example's
        stack: Option<String>,
        /// The configuration that names the stack
        #[arg(short, long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// UDP instead of TCP
        #[arg(long)]
        udp: bool,
        /// How long to wait for a packet
        #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
        within: u64,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Run a command with exactly the privileges of a part, never more
    #[command(
        after_help = "Example: lrpns exec customerA/app -- /bin/sh\n\nWhere one of the three standard streams is a terminal, the command has a pseudo-terminal in \
                      its place; -i and -t are taken and change nothing."
    )]
    Exec {
        /// Which stack.
        #[command(flatten)]
        target: Target,
        /// `sidecar`, `relay` or an app's name; left out, the first app
        #[arg(long)]
        part: Option<String>,
        /// As it is in any case.
        #[arg(short, long, hide = true)]
        interactive: bool,
        /// As it is in any case.
        #[arg(short, long, hide = true)]
        tty: bool,
        /// The command. In the sidecar and the relay, whose roots are empty, it is a static program of the host's
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// Attack a running stack from inside and outside, and say what was refused
    #[command(
        after_help = "Example: lrpns audit customerA --json\n\nExit code 1 when a probe failed, or could not be run: what is \
                      not proved is no pass."
    )]
    Audit {
        /// Which stack.
        #[command(flatten)]
        target: Target,
        /// As JSON
        #[arg(long, conflicts_with = "sarif")]
        json: bool,
        /// As SARIF 2.1.0, for code scanning
        #[arg(long)]
        sarif: bool,
        /// A line for every probe, also for those that passed
        #[arg(short, long)]
        verbose: bool,
    },
    /// Print the sidecar's ruleset, also without a running stack; or what each rule of a running one has counted
    #[command(
        after_help = "Example: lrpns rules --format json | nft -j -c -f -\n         lrpns rules customerA --counters"
    )]
    Rules {
        /// Where the configuration comes from.
        #[command(flatten)]
        source: Source,
        /// How
        #[arg(long, value_enum, default_value_t = RulesFormat::Nft)]
        format: RulesFormat,
        /// Packets and bytes by rule, of the sidecar's table and the host's; nothing is reset
        #[arg(long, conflicts_with_all = ["format", "set", "env_file", "demo"])]
        counters: bool,
        /// The counters as JSON
        #[arg(long, requires = "counters")]
        json: bool,
    },
    /// Print what `up` would do, as a picture and in a few words; change nothing
    #[command(
        alias = "config",
        after_help = "Example: lrpns plan -f lrpns.toml\n         lrpns plan -v"
    )]
    Plan {
        /// Where the configuration comes from.
        #[command(flatten)]
        source: Source,
        /// As JSON
        #[arg(long, conflicts_with = "verbose")]
        json: bool,
        /// Every decision, and where each value comes from; also system calls, links and rules
        #[arg(short, long)]
        verbose: bool,
    },
    /// Run a stack around one command, no file needed; ends with the command's exit code
    #[command(
        after_help = "Example: lrpns run -p 8080:8000 -- python3 -m http.server 8000\n         lrpns run -t -- sh\n\n\
                      Standard input is read ahead and passed on, unless it is a terminal; `< /dev/null` leaves it alone."
    )]
    Run {
        /// A pseudo-terminal in the place of each standard stream that is a terminal
        #[arg(short, long)]
        tty: bool,
        /// Pass standard input on although it is a terminal; with --tty it is in any case
        #[arg(short, long)]
        interactive: bool,
        /// A port to publish: `[ADDRESS:]HOST_PORT:APP_PORT[/tcp|udp]`, an IPv6 address in brackets
        #[arg(short, long, value_name = "PUBLISH")]
        publish: Vec<String>,
        /// host, builtin:webapp or dir:PATH
        #[arg(long, value_name = "R", default_value = "host")]
        rootfs: String,
        /// A variable of the command's environment
        #[arg(short, long, value_name = "K=V")]
        env: Vec<String>,
        /// A writable place: PATH:SIZE
        #[arg(long, value_name = "PATH:SIZE")]
        tmpfs: Vec<String>,
        /// A directory or file of the host: `HOST_PATH:PATH[:OPTIONS]`, read-only unless it says `rw`
        #[arg(short, long, value_name = "HOST_PATH:PATH[:OPTIONS]")]
        volume: Vec<String>,
        /// A Unix socket of the host, or a directory of them, that it may connect to: `HOST_PATH:PATH`
        #[arg(long, value_name = "HOST_PATH:PATH")]
        socket: Vec<String>,
        /// A file that only the app reads, at /run/secrets/NAME: `NAME=HOST_PATH`
        #[arg(long, value_name = "NAME=HOST_PATH")]
        secret: Vec<String>,
        /// Whom it runs as, within: a name of the root's /etc/passwd, or a number
        #[arg(short, long, value_name = "USER[:GROUP]")]
        user: Option<String>,
        /// Where it starts
        #[arg(short, long, value_name = "PATH")]
        workdir: Option<String>,
        /// How much memory it may have: bytes, or with k, m or g
        #[arg(short, long, value_name = "SIZE")]
        memory: Option<String>,
        /// How many processors it may use
        #[arg(long, value_name = "NUMBER")]
        cpus: Option<String>,
        /// How many processes and threads it may have
        #[arg(long, value_name = "NUMBER")]
        pids_limit: Option<String>,
        /// auto, dnat or relay
        #[arg(long)]
        via: Option<String>,
        /// Say at its end which system calls it was refused, with the lines that would allow them; grants nothing
        #[arg(long)]
        explain: bool,
        /// The stack's name; left out, it is `run-` and the number of this process
        #[arg(long)]
        name: Option<StackName>,
        /// The command
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<String>,
    },
    /// Write a commented lrpns.toml: the built-in example, or a recipe for a server
    #[command(
        after_help = "Example: lrpns init && lrpns up\n         lrpns init --list\n         lrpns init --recipe nginx"
    )]
    Init {
        /// Where to; `-` is standard output. The other files of a recipe are written beside it
        #[arg(short, long, value_name = "FILE", default_value = "lrpns.toml")]
        output: PathBuf,
        /// A recipe: the least that a server needs, each key with its reason, and the server's own configuration
        #[arg(short, long, value_name = "NAME")]
        recipe: Option<String>,
        /// List the recipes
        #[arg(long, conflicts_with_all = ["output", "recipe"])]
        list: bool,
    },
    /// Find out, by doing it, whether this machine can run stacks; each finding with its remedy
    #[command(after_help = "Example: lrpns doctor --json")]
    Doctor {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove what a crash left
    #[command(after_help = "Example: lrpns gc")]
    Gc {
        /// Also what stacks that have ended left to be read
        #[arg(long)]
        all: bool,
    },
    /// Forget a stack that has ended
    #[command(after_help = "Example: lrpns rm customerA")]
    Rm {
        /// The stack's name; left out, it is the file's, or the built-in example's
        stack: Option<String>,
        /// The configuration that names the stack
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Take it down first if it runs
        #[arg(short, long)]
        force: bool,
    },
    /// Print a shell's completions
    #[command(after_help = "Example: lrpns completions bash > /etc/bash_completion.d/lrpns")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the man page, or write those of every command and topic
    #[command(after_help = "Example: lrpns man --dir man && man -l man/lrpns-publishing.7")]
    Man {
        /// Write lrpns(1), a page for each command, lrpns.toml(5) and a page for each topic here
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Show a page of the manual, or what a command does
    #[command(after_help = "Example: lrpns help publishing")]
    Help {
        /// A topic or a command; left out, what there is
        topic: Option<String>,
    },
}

/// How `audit` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditFormat {
    /// A table, and what did not pass in full
    Human,
    /// JSON
    Json,
    /// SARIF 2.1.0
    Sarif,
}

/// How `rules` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RulesFormat {
    /// nft's own language, for `nft -f -`
    Nft,
    /// nft's JSON, for `nft -j -f -`
    Json,
}

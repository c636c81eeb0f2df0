//! Whole topologies in network namespaces of the tests' own, looked at by `ip` and `bridge`.
//!
//! Each test plays the host in a namespace of its own, on a thread of its own; a namespace goes with its last descriptor.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket,
};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use std::mem::MaybeUninit;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::SockProtocol;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde_json::Value;

use super::*;
use crate::config::{Restart, Rootfs};
use crate::names::PartName;
use crate::plan::{BridgePlan, IdMap, Mode, UplinkPlan};

/// A network namespace and a netlink socket that was made inside.
struct Netns {
    fd: OwnedFd,
    socket: Option<OwnedFd>,
}

impl Netns {
    /// Unshares the calling thread.
    fn enter_new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let socket = rtnetlink_socket();
        let fd = std::fs::File::open("/proc/thread-self/ns/net")
            .unwrap()
            .into();
        Self {
            fd,
            socket: Some(socket),
        }
    }

    fn new() -> Self {
        thread::spawn(Self::enter_new).join().unwrap()
    }

    /// As the makers of the real namespaces set them, before any link is there.
    fn with_settings(forwarding: &str) -> Self {
        let netns = Self::new();
        let set = |name: &str, value| {
            let path = std::path::Path::new("/proc/sys/net").join(name);
            std::fs::write(&path, value).unwrap_or_else(|e| panic!("{name}: {e}"));
        };
        netns.within(|| {
            // First: it resets some of the others.
            set("ipv4/ip_forward", forwarding);
            for scope in ["all", "default"] {
                for (name, value) in [
                    ("rp_filter", "1"),
                    ("accept_redirects", "0"),
                    ("secure_redirects", "0"),
                    ("send_redirects", "0"),
                    ("accept_source_route", "0"),
                    ("accept_local", "0"),
                    ("route_localnet", "0"),
                    ("proxy_arp", "0"),
                    ("log_martians", "0"),
                ] {
                    set(&format!("ipv4/conf/{scope}/{name}"), value);
                }
                set(&format!("ipv6/conf/{scope}/disable_ipv6"), "1");
            }
            for table in ["iptables", "ip6tables", "arptables"] {
                let name = format!("bridge/bridge-nf-call-{table}");
                if std::path::Path::new("/proc/sys/net").join(&name).exists() {
                    set(&name, "0");
                }
            }
        });
        netns
    }

    /// The same for a stack with a prefix.
    fn with_settings_and_ipv6(forwarding: &str) -> Self {
        let netns = Self::with_settings(forwarding);
        netns.within(|| {
            for (name, value) in [
                ("all/disable_ipv6", "0"),
                ("default/disable_ipv6", "0"),
                ("all/forwarding", forwarding),
                ("default/forwarding", "0"),
                ("default/accept_ra", "0"),
            ] {
                std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}"), value).unwrap();
            }
        });
        netns
    }

    /// One that a user namespace of its own owns, with a socket made by its root: what the stack has in the end.
    fn of_a_user_namespace() -> Self {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let status = Command::new("unshare")
            .args(["--user", "--map-root-user", "--net"])
            .arg(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "net::tests::hand_over_a_socket"])
            .stdin(OwnedFd::from(theirs))
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let mut data = [std::io::IoSliceMut::new(&mut byte)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        rustix::net::recvmsg(&ours, &mut data, &mut control, flags).unwrap();
        let mut fds = control.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
            _ => Vec::new(),
        });
        Self {
            fd: fds.next().unwrap(),
            socket: fds.next(),
        }
    }

    /// Runs `f` on a thread inside.
    fn within<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&self.fd, CloneFlags::CLONE_NEWNET).unwrap();
                    f()
                })
                .join()
                .unwrap()
        })
    }

    fn json(&self, command: &str) -> Vec<Value> {
        self.within(|| json(command))
    }

    /// Accepts connections for ever, in the background; each is told `word`. The thread ends with the test's process and
    /// holds only its socket, which keeps the namespace: shut it down to let go.
    fn serve(&self, address: impl Into<IpAddr>, word: &'static str) -> Server {
        let address = SocketAddr::new(address.into(), 5000);
        let listener = self.within(|| TcpListener::bind(address).unwrap());
        let copy = listener.try_clone().unwrap();
        let thread = thread::spawn(move || {
            while let Ok((mut client, _)) = listener.accept() {
                client.write_all(word.as_bytes()).unwrap();
            }
        });
        Server {
            listener: copy,
            thread: Some(thread),
        }
    }
}

/// The inside of [`Netns::of_a_user_namespace`]: a threaded process can't enter a user namespace.
#[test]
#[ignore = "run by other tests in a namespace they made"]
fn hand_over_a_socket() {
    let stdin = std::io::stdin();
    let netns = std::fs::File::open("/proc/thread-self/ns/net").unwrap();
    let socket = rtnetlink_socket();
    let fds = [netns.as_fd(), socket.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let data = [std::io::IoSlice::new(b"x")];
    rustix::net::sendmsg(stdin, &data, &mut control, SendFlags::empty()).unwrap();
}

fn rtnetlink_socket() -> OwnedFd {
    crate::sys::netlink::open(SockProtocol::NetlinkRoute).unwrap()
}

struct Server {
    listener: TcpListener,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

/// In the calling thread's namespace.
fn json(command: &str) -> Vec<Value> {
    let output = output(command);
    serde_json::from_str(&output).unwrap_or_else(|e| panic!("{command}: {e}: {output}"))
}

fn output(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap();
    assert!(output.status.success(), "{command}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn find<'a>(list: &'a [Value], key: &str, value: &str) -> &'a Value {
    list.iter()
        .find(|item| item[key] == value)
        .unwrap_or_else(|| panic!("no {key} {value} in {list:#?}"))
}

/// Runs `f` as the host, in a namespace and a runtime of its own.
fn as_host(f: impl AsyncFnOnce(&Netns) + Send) {
    thread::scope(|scope| {
        scope
            .spawn(|| {
                let netns = Netns::enter_new();
                runtime().block_on(f(&netns));
            })
            .join()
            .unwrap();
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn plan(stack: &str, uplink: &str, apps: &[&str]) -> Plan {
    let stack = StackName::new(stack).unwrap();
    let uplink: ipnet::Ipv4Net = uplink.parse().unwrap();
    Plan {
        mode: Mode::Root,
        owner: 0,
        subordinate: None,
        run: "0123abcd".to_owned(),
        credentials: None,
        state_dir: PathBuf::new(),
        config: None,
        bridge: BridgePlan {
            name: IfName::new(stack.as_str()).unwrap(),
            address: Ipv4Addr::new(172, 18, 0, 33),
            subnet: "172.18.0.0/24".parse().unwrap(),
            address6: None,
            prefix6: None,
            mac: mac(&stack, "bridge"),
        },
        uplink: UplinkPlan {
            ends_at: Default::default(),
            host_link: IfName::new(format!("lr-{stack}")).unwrap(),
            host_address: uplink.network(),
            host_address6: None,
            host_mac: mac(&stack, "uplink host"),
            sidecar_link: IfName::new("uplink").unwrap(),
            sidecar_address: uplink.broadcast(),
            sidecar_address6: None,
            sidecar_mac: mac(&stack, "uplink sidecar"),
        },
        log: crate::config::TrafficLog::Off,
        sidecar: IDS,
        relay: IDS,
        egress: None,
        seal: false,
        rules: None,
        record: Default::default(),
        sidecar_limits: Default::default(),
        relay_limits: Default::default(),
        cgroup: Default::default(),
        apps: (23..)
            .zip(apps)
            .map(|(last, name)| app(&stack, name, last))
            .collect(),
        origins: BTreeMap::new(),
        stack,
    }
}

/// The same plan with the prefix fd00:18::/64.
fn with_ipv6(mut plan: Plan) -> Plan {
    let prefix: ipnet::Ipv6Net = "fd00:18::/64".parse().unwrap();
    let number = |n: u128| Some(Ipv6Addr::from_bits(prefix.network().to_bits() + n));
    plan.bridge.prefix6 = Some(prefix);
    plan.bridge.address6 = number(1);
    plan.uplink.host_address6 = Some(uplink6(plan.uplink.host_address));
    plan.uplink.sidecar_address6 = Some(uplink6(plan.uplink.sidecar_address));
    for (app, n) in plan.apps.iter_mut().zip(2..) {
        app.address6 = number(n);
    }
    plan
}

const IDS: IdMap = IdMap {
    host_id: 100_000,
    count: 2,
    uid: 1000,
    gid: 1000,
};

fn app(stack: &StackName, name: &str, last: u8) -> AppPlan {
    AppPlan {
        name: PartName::new(name).unwrap(),
        address: Ipv4Addr::new(172, 18, 0, last),
        address6: None,
        mac: mac(stack, &format!("app {name}")),
        seccomp: crate::confine::seccomp::default(),
        port_link: IfName::new(format!("p-{name}")).unwrap(),
        ids: IDS,
        rootfs: Rootfs::BuiltinWebapp,
        workdir: "/".into(),
        command: vec!["/webapp".to_owned()],
        env: BTreeMap::new(),
        tmpfs: Vec::new(),
        volumes: Vec::new(),
        sockets: Vec::new(),
        secrets: Vec::new(),
        limits: Default::default(),
        start_timeout: std::time::Duration::from_secs(60),
        publish: Vec::new(),
        listen: Vec::new(),
        source: Default::default(),
        egress: vec![],
        allow: vec![ipnet::IpNet::default()],
        rate: None,
        closing: vec![],
        after: vec![],
        job: false,
        forks: false,
        health: None,
        restart: Restart::No,
        restart_limit: None,
        replace: crate::config::Replace::StopFirst,
        via_socket: false,
        spare: None,
        away: false,
        turn: crate::plan::Turn::Serves,
        stop: Default::default(),
        connect: vec![],
        serves: vec![],
    }
}

/// A stack's namespaces and connections.
struct Stack {
    plan: Plan,
    sidecar: (Netns, Rtnl),
    apps: Vec<(Netns, Rtnl)>,
}

impl Stack {
    fn new(plan: Plan) -> Self {
        if plan.has_ipv6() {
            return Self::of(plan, Netns::with_settings_and_ipv6);
        }
        Self::of(plan, Netns::with_settings)
    }

    fn of(plan: Plan, make: impl Fn(&str) -> Netns) -> Self {
        let connect = |mut netns: Netns| {
            let rtnl = Rtnl::from_fd(netns.socket.take().unwrap()).unwrap();
            (netns, rtnl)
        };
        Self {
            sidecar: connect(make("1")),
            apps: (plan.apps.iter()).map(|_| connect(make("0"))).collect(),
            plan,
        }
    }

    fn endpoint((netns, rtnl): &(Netns, Rtnl)) -> Endpoint<'_> {
        Endpoint {
            rtnl,
            netns: netns.fd.as_fd(),
        }
    }

    fn sidecar(&self) -> Endpoint<'_> {
        Self::endpoint(&self.sidecar)
    }

    fn apps(&self) -> Vec<Endpoint<'_>> {
        self.apps.iter().map(Self::endpoint).collect()
    }

    async fn create(&self, host: &Rtnl) -> Links {
        create(&self.plan, host, self.sidecar(), &self.apps())
            .await
            .unwrap()
    }

    async fn up(&self, host: &Rtnl) -> Links {
        let links = self.create(host).await;
        configure_and_up(&self.plan, host, self.sidecar(), &self.apps(), &links)
            .await
            .unwrap();
        links
    }
}

/// What the other end says.
fn hear(address: impl Into<IpAddr>) -> String {
    let address = SocketAddr::new(address.into(), 5000);
    let mut stream = TcpStream::connect(address).unwrap();
    let mut word = String::new();
    stream.read_to_string(&mut word).unwrap();
    word
}

#[test]
fn created_links_are_down_and_have_every_property() {
    as_host(async |_| {
        let host = Rtnl::open().unwrap();
        let stack = Stack::new(plan("customerA", "198.19.0.8/31", &["a", "b"]));
        let links = stack.create(&host).await;
        let plan = &stack.plan;
        let (sidecar, app) = (&stack.sidecar.0, &stack.apps[1].0);

        let here = json("ip -d -j link");
        let inside = sidecar.json("ip -d -j link");
        let in_app = app.json("ip -d -j link");
        let up: Vec<&Value> = here
            .iter()
            .chain(&inside)
            .chain(&in_app)
            .filter(|link| link["flags"].as_array().unwrap().contains(&"UP".into()))
            .collect();
        assert!(up.is_empty(), "{up:#?}");

        let uplink = find(&here, "ifname", "lr-customerA");
        assert_eq!(uplink["ifalias"], "lrpns:customerA");
        assert_eq!(uplink["address"], plan.uplink.host_mac.to_string());
        assert_eq!(uplink["ifindex"], links.host);
        let uplink = find(&inside, "ifname", "uplink");
        assert_eq!(uplink["address"], plan.uplink.sidecar_mac.to_string());
        assert_eq!(uplink["ifindex"], links.uplink);
        assert_eq!(uplink.get("master"), None);
        let bridge = find(&inside, "ifname", "customerA");
        assert_eq!(bridge["address"], plan.bridge.mac.to_string());
        assert_eq!(bridge["ifindex"], links.bridge);
        let data = &bridge["linkinfo"]["info_data"];
        assert_eq!(data["stp_state"], 0);
        assert_eq!(data["mcast_snooping"], 0);
        let eth0 = find(&in_app, "ifname", "eth0");
        assert_eq!(eth0["address"], plan.apps[1].mac.to_string());
        assert_eq!(eth0["ifindex"], links.apps[&plan.apps[1].port_link].eth0);

        for link in here.iter().chain(&inside).chain(&in_app) {
            if link["ifname"] != "lo" {
                assert_eq!(link["inet6_addr_gen_mode"], "none", "{link:#}");
                assert_eq!(link["num_tx_queues"], 1, "{link:#}");
                assert_eq!(link["num_rx_queues"], 1, "{link:#}");
            }
        }
        let fdb = sidecar.json("bridge -j fdb");
        for app in &plan.apps {
            let name = app.port_link.as_str();
            let port = find(&inside, "ifname", name);
            assert_eq!(port["master"], "customerA");
            assert_eq!(port["ifindex"], links.apps[&app.port_link].port);
            let flags = &port["linkinfo"]["info_slave_data"];
            for (flag, value) in [
                ("isolated", true),
                ("locked", true),
                ("learning", false),
                ("flood", false),
                ("mcast_flood", false),
                ("bcast_flood", false),
                ("hairpin", false),
            ] {
                assert_eq!(flags[flag], value, "{flag} of {port:#}");
            }
            let entry = find(&fdb, "mac", &app.mac.to_string());
            assert_eq!(entry["ifname"], name);
            assert_eq!(entry["state"], "static");
        }
    });
}

#[test]
fn configured_links_are_up_and_know_their_peers_and_nothing_else() {
    as_host(async |_| {
        let host = Rtnl::open().unwrap();
        let stack = Stack::new(plan("customerA", "198.19.0.8/31", &["a", "b"]));
        stack.up(&host).await;
        let (sidecar, app) = (&stack.sidecar.0, &stack.apps[0].0);

        let of_host = json("ip -j addr");
        let of_sidecar = sidecar.json("ip -j addr");
        let of_app = app.json("ip -j addr");
        for (list, link, address) in [
            (&of_host, "lr-customerA", "198.19.0.8/31"),
            (&of_sidecar, "uplink", "198.19.0.9/31"),
            (&of_sidecar, "customerA", "172.18.0.33/24"),
            (&of_app, "eth0", "172.18.0.23/24"),
        ] {
            let link = find(list, "ifname", link);
            assert_eq!(link["operstate"], "UP", "{link:#}");
            let flags = link["flags"].as_array().unwrap();
            assert!(flags.contains(&"NOARP".into()), "{link:#}");
            let addresses = link["addr_info"].as_array().unwrap();
            let texts: Vec<String> = addresses
                .iter()
                .map(|a| format!("{}/{}", a["local"].as_str().unwrap(), a["prefixlen"]))
                .collect();
            assert_eq!(texts, [address], "{link:#}");
        }
        assert_eq!(find(&of_sidecar, "ifname", "p-a")["operstate"], "UP");
        for list in [&of_sidecar, &of_app] {
            let lo = find(list, "ifname", "lo");
            assert!(lo["flags"].as_array().unwrap().contains(&"UP".into()));
        }

        let neighbours = |list: Vec<Value>| -> Vec<String> {
            let mut known: Vec<String> = list
                .iter()
                .filter(|n| n["dst"].as_str().unwrap().contains('.'))
                .map(|n| {
                    assert_eq!(n["state"], serde_json::json!(["PERMANENT"]), "{n:#}");
                    let text = |key: &str| n[key].as_str().unwrap().to_owned();
                    format!("{} {} {}", text("dst"), text("dev"), text("lladdr"))
                })
                .collect();
            known.sort();
            known
        };
        let plan = &stack.plan;
        assert_eq!(
            neighbours(json("ip -j neigh show nud all")),
            [format!(
                "198.19.0.9 lr-customerA {}",
                plan.uplink.sidecar_mac
            )]
        );
        assert_eq!(
            neighbours(sidecar.json("ip -j neigh show nud all")),
            [
                format!("172.18.0.23 customerA {}", plan.apps[0].mac),
                format!("172.18.0.24 customerA {}", plan.apps[1].mac),
                format!("198.19.0.8 uplink {}", plan.uplink.host_mac),
            ]
        );
        assert_eq!(
            neighbours(app.json("ip -j neigh show nud all")),
            [format!("172.18.0.33 eth0 {}", plan.bridge.mac)]
        );

        let routes = |list: Vec<Value>| -> Vec<String> {
            list.iter()
                .map(|r| {
                    let text = |key: &str| r[key].as_str().unwrap_or("-").to_owned();
                    [text("type"), text("dst"), text("gateway"), text("dev")].join(" ")
                })
                .collect()
        };
        assert_eq!(
            routes(json("ip -j -4 route")),
            ["- 198.19.0.9 - lr-customerA"]
        );
        assert_eq!(
            routes(sidecar.json("ip -j -4 route")),
            [
                "- default 198.19.0.8 uplink",
                "unreachable 172.18.0.0/24 - -",
                "- 172.18.0.23 - customerA",
                "- 172.18.0.24 - customerA",
                "- 198.19.0.8 - uplink",
            ]
        );
        assert_eq!(routes(app.json("ip -j -4 route")), ["- 172.18.0.33 - eth0"]);
    });
}

/// What a link says of its own accord: announcements, solicitations and memberships of ICMPv6 (RFC 4861, RFC 3810) would
/// be packets that no rule of the stack is for.
#[test]
fn links_with_ipv6_have_the_planned_addresses_and_say_nothing_by_themselves() {
    as_host(async |_| {
        // The worst that a host may have as defaults.
        for (name, value) in [
            ("all/forwarding", "1"),
            ("default/accept_ra", "2"),
            ("default/disable_ipv6", "1"),
        ] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}"), value).unwrap();
        }
        let host = Rtnl::open().unwrap();
        let stack = Stack::new(with_ipv6(plan("customerA", "198.19.0.8/31", &["a", "b"])));
        let links = stack.up(&host).await;
        let (sidecar, app) = (&stack.sidecar.0, &stack.apps[0].0);

        let list = |at: &dyn Fn(&str) -> Vec<Value>| {
            let mut all = vec![];
            for link in at("ip -j -6 addr") {
                for address in link["addr_info"].as_array().unwrap() {
                    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
                    all.push(format!(
                        "{} {}/{}{}",
                        text(&link["ifname"]),
                        text(&address["local"]),
                        address["prefixlen"],
                        if address["tentative"] == true {
                            " tentative"
                        } else {
                            ""
                        }
                    ));
                }
            }
            for neighbour in at("ip -j -6 neigh show nud all") {
                if neighbour["state"] != serde_json::json!(["NOARP"]) {
                    all.push(format!("{} {}", neighbour["dst"], neighbour["state"]));
                }
            }
            for route in at("ip -j -6 route") {
                all.push(format!(
                    "{} {}",
                    route["type"].as_str().unwrap_or("to"),
                    route["dst"].as_str().unwrap()
                ));
            }
            all.retain(|line| line != "lo ::1/128");
            all.sort();
            all
        };
        let own = |prefix: &str, last: &str| format!("{prefix}fd6c:7270:6e73::c613:{last}");
        let sorted = |mut lines: Vec<String>| {
            lines.sort();
            lines
        };
        assert_eq!(
            list(&|command| json(command)),
            sorted(vec![
                own("lr-customerA ", "8/127"),
                format!("{:?} [\"PERMANENT\"]", own("", "9")),
                own("to ", "9"),
            ])
        );
        assert_eq!(
            list(&|command| sidecar.json(command)),
            sorted(vec![
                "customerA fd00:18::1/64".to_owned(),
                own("uplink ", "9/127"),
                "\"fd00:18::3\" [\"PERMANENT\"]".to_owned(),
                "\"fd00:18::2\" [\"PERMANENT\"]".to_owned(),
                format!("{:?} [\"PERMANENT\"]", own("", "8")),
                "to fd00:18::2".to_owned(),
                "to fd00:18::3".to_owned(),
                "unreachable fd00:18::/64".to_owned(),
                own("to ", "8"),
                "to default".to_owned(),
            ])
        );
        assert_eq!(
            list(&|command| app.json(command)),
            [
                "\"fd00:18::1\" [\"PERMANENT\"]",
                "eth0 fd00:18::2/64",
                "to fd00:18::1",
            ]
        );

        // A connection over every link, and then what each has sent: segments, and nothing that is not one.
        let route = |index, gateway| {
            let route = message::new_default_route(index, gateway);
            vec![Step::replace("route as the test needs it", route)]
        };
        let six = stack.plan.families()[1];
        let eth0 = links.apps[&stack.plan.apps[0].port_link].eth0;
        stack.apps[0]
            .1
            .run("app", route(eth0, six.bridge))
            .await
            .unwrap();
        host.run("host", route(links.host, six.sidecar))
            .await
            .unwrap();
        let _server = app.serve(Ipv6Addr::UNSPECIFIED, "a");
        assert_eq!(hear(stack.plan.apps[0].address6.unwrap()), "a");
        let sent = || {
            let text = std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap();
            let count = |name: &str| -> u64 {
                let mut lines = text.lines().map(|line| line.split_whitespace());
                let mut line = lines
                    .find(|line| line.clone().next() == Some(name))
                    .unwrap();
                line.nth(1).unwrap().parse().unwrap()
            };
            (count("Icmp6OutMsgs"), count("Ip6OutMcastPkts"))
        };
        assert_eq!(sent(), (0, 0), "the host");
        assert_eq!(sidecar.within(sent), (0, 0), "the sidecar");
        assert_eq!(app.within(sent), (0, 0), "the app");
    });
}

/// Loss would show as a second's wait and, without a clock, as a segment sent twice.
#[test]
fn the_first_connection_loses_nothing_in_a_hundred_builds() {
    the_first_connection_loses_nothing(|plan| plan, |app| app.address.into());
}

/// The same as with IPv4: an address can be used as soon as its link is up, and nobody is asked for a link-layer address.
#[test]
fn the_first_ipv6_connection_loses_nothing_in_a_hundred_builds() {
    the_first_connection_loses_nothing(with_ipv6, |app| app.address6.unwrap().into());
}

fn the_first_connection_loses_nothing(
    of: fn(Plan) -> Plan,
    address: impl Fn(&AppPlan) -> IpAddr + Send + Sync,
) {
    as_host(async |_| {
        let host = Rtnl::open().unwrap();
        for round in 0..100 {
            // A veth lingers after its namespace, so its name must not come back at once.
            let mut plan = of(plan("customerA", "198.19.0.8/31", &["a"]));
            plan.uplink.host_link = IfName::new(format!("lr-{round}")).unwrap();
            let stack = Stack::new(plan);
            let address = address(&stack.plan.apps[0]);
            let mut family = stack.plan.families().into_iter();
            let family = family.find(|family| family.has(address)).unwrap();
            let any: IpAddr = match address {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let _server = stack.apps[0].0.serve(any, "a");
            let links = stack.up(&host).await;
            // In production the host translates the destination and the sidecar the source. Not by `ip`, whose start would
            // give late links the time they need.
            let route = |index, gateway| {
                let route = message::new_default_route(index, gateway);
                vec![Step::replace("route as the test needs it", route)]
            };
            let eth0 = links.apps[&stack.plan.apps[0].port_link].eth0;
            let to_sidecar = route(eth0, family.bridge);
            stack.apps[0].1.run("app", to_sidecar).await.unwrap();
            let to_sidecar = route(links.host, family.sidecar);
            host.run("host", to_sidecar).await.unwrap();
            assert_eq!(hear(address), "a", "round {round}");
            assert_eq!(resent(), 0, "round {round}");
            let app = &stack.apps[0].0;
            app.within(|| assert_eq!(resent(), 0, "round {round}"));
            // The old uplink's address and route must not meet the next one's.
            output(&format!("ip link set lr-{round} down"));
        }
    });
}

/// How many TCP segments the calling thread's namespace sent again (proc_net(5), RFC 4022).
fn resent() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("Tcp: "));
    let names = lines.next().unwrap().split(' ');
    let values = lines.next().unwrap().split(' ');
    let (_, value) = names
        .zip(values)
        .find(|(name, _)| *name == "RetransSegs")
        .unwrap();
    value.parse().unwrap()
}

#[test]
fn two_stacks_may_use_the_same_subnet() {
    as_host(async |_| {
        let host = Rtnl::open().unwrap();
        let one = Stack::new(plan("one", "198.19.0.8/31", &["a"]));
        let two = Stack::new(plan("two", "198.19.0.10/31", &["a"]));
        one.up(&host).await;
        two.up(&host).await;
        let app = Ipv4Addr::new(172, 18, 0, 23);
        let _servers = [
            one.apps[0].0.serve(app, "one"),
            two.apps[0].0.serve(app, "two"),
        ];
        for (stack, word) in [(&one, "one"), (&two, "two"), (&one, "one")] {
            stack.sidecar.0.within(|| assert_eq!(hear(app), word));
        }
    });
}

#[test]
fn each_namespace_may_be_of_another_user_namespace() {
    as_host(async |_| {
        let host = Rtnl::open().unwrap();
        let plan = plan("customerA", "198.19.0.8/31", &["a", "b"]);
        let stack = Stack::of(plan, |_| Netns::of_a_user_namespace());
        let mut links = stack.up(&host).await;
        let app = &stack.plan.apps[0];
        {
            let _server = stack.apps[0].0.serve(Ipv4Addr::UNSPECIFIED, "a");
            let sidecar = &stack.sidecar.0;
            sidecar.within(|| assert_eq!(hear(app.address), "a"));
        }
        remove_app(app, stack.sidecar(), &mut links).await.unwrap();
    });
}

/// Sends one datagram from `app` to `address`, which is told apart by its text.
fn send(app: &Netns, address: Ipv4Addr, text: &str) {
    app.within(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.send_to(text.as_bytes(), (address, 9)).unwrap();
    });
}

fn receiver(netns: &Netns) -> UdpSocket {
    netns.within(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 9)).unwrap())
}

fn receive(socket: &UdpSocket) -> (String, SocketAddr) {
    let mut buffer = [0; 64];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    (
        String::from_utf8_lossy(&buffer[..length]).into_owned(),
        from,
    )
}

#[test]
fn an_app_reaches_no_other_app_on_the_bridge() {
    as_host(async |_| {
        let host = Rtnl::open().unwrap();
        let stack = Stack::new(plan("customerA", "198.19.0.8/31", &["a", "b"]));
        stack.up(&host).await;
        let (a, b) = (&stack.apps[0].0, &stack.apps[1].0);
        let to = stack.plan.apps[1].address;
        // Even an app that could configure its own namespace: give it the route and the neighbour it hasn't.
        a.within(|| {
            output("ip route add 172.18.0.24 dev eth0");
            output(&format!(
                "ip neigh add 172.18.0.24 lladdr {} dev eth0",
                stack.plan.apps[1].mac
            ));
        });
        b.within(|| output("ip route add 172.18.0.23 dev eth0"));
        let socket = receiver(b);
        send(a, to, "while isolated");
        // The control: the same datagram arrives once isolation is off, and it is the first that does.
        stack.sidecar.0.within(|| {
            for port in ["p-a", "p-b"] {
                output(&format!("bridge link set dev {port} isolated off"));
            }
        });
        send(a, to, "not isolated");
        assert_eq!(receive(&socket).0, "not isolated");
    });
}

#[test]
fn an_app_has_no_route_to_another() {
    as_host(async |_| {
        let host = Rtnl::open().unwrap();
        let stack = Stack::new(plan("customerA", "198.19.0.8/31", &["a", "b"]));
        stack.up(&host).await;
        let error = stack.apps[0].0.within(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            let to = SocketAddrV4::new(stack.plan.apps[1].address, 9);
            socket.send_to(b"x", to).unwrap_err()
        });
        assert_eq!(error.raw_os_error(), Some(Errno::ENETUNREACH as i32));
    });
}

#[test]
fn a_port_takes_no_foreign_source_address() {
    as_host(async |_| {
        let host = Rtnl::open().unwrap();
        let stack = Stack::new(plan("customerA", "198.19.0.8/31", &["a"]));
        stack.up(&host).await;
        let app = &stack.apps[0].0;
        let (to, mac) = (stack.plan.bridge.address, stack.plan.apps[0].mac);
        let socket = receiver(&stack.sidecar.0);
        let claim = |mac: &str| {
            app.within(|| {
                output(&format!("ip link set eth0 address {mac}"));
                output(&format!(
                    "ip neigh replace 172.18.0.33 lladdr {} dev eth0",
                    stack.plan.bridge.mac
                ));
            });
        };
        claim("02:11:22:33:44:55");
        send(app, to, "with a foreign address");
        claim(&mac.to_string());
        send(app, to, "with its own");
        assert_eq!(receive(&socket).0, "with its own");
    });
}

#[test]
fn the_hosts_link_goes_with_the_namespaces() {
    as_host(async |_| {
        let host = Rtnl::open().unwrap();
        let stack = Stack::new(plan("customerA", "198.19.0.8/31", &["a"]));
        stack.up(&host).await;
        let mut monitor = Command::new("ip")
            .args(["monitor", "link"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufReader::new(monitor.stdout.take().unwrap());
        // `ip monitor` doesn't say when it listens: let it show a change of ours first.
        let (name, toggling) = ("lr-customerA", std::sync::atomic::AtomicBool::new(true));
        let mut lines = std::io::BufRead::lines(lines);
        thread::scope(|scope| {
            scope.spawn(|| {
                while toggling.load(std::sync::atomic::Ordering::Relaxed) {
                    output("ip link set lr-customerA txqueuelen 1001");
                    output("ip link set lr-customerA txqueuelen 1000");
                }
            });
            assert!(lines.next().unwrap().is_ok());
            toggling.store(false, std::sync::atomic::Ordering::Relaxed);
        });
        drop(stack);
        // The connections' tasks hold the sockets, and the sockets the namespaces.
        tokio::task::yield_now().await;
        let gone = lines
            .map(Result::unwrap)
            .find(|line| line.starts_with("Deleted") && line.contains(name));
        assert!(gone.is_some());
        monitor.kill().unwrap();
        monitor.wait().unwrap();
        assert_eq!(json("ip -j link").len(), 1, "only lo is left");
    });
}

#[test]
fn a_leftover_link_is_removed_once_and_a_foreign_one_never() {
    as_host(async |_| {
        let host = Rtnl::open().unwrap();
        let stack = Stack::new(plan("customerA", "198.19.0.8/31", &["a"]));
        stack.create(&host).await;
        remove_link(&host, "lr-customerA").await.unwrap();
        remove_link(&host, "lr-customerA").await.unwrap();
        output("ip link add foreign type bridge");
        let error = remove_link(&host, "foreign").await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "host: remove link foreign: it is not ours, its alias is empty"
        );
        output("ip link set foreign alias lrpn");
        assert!(matches!(
            remove_link(&host, "foreign").await,
            Err(Error::NotOurs { alias: Some(alias), .. }) if alias == "lrpn"
        ));
        let left = json("ip -j link");
        let names: Vec<&Value> = left.iter().map(|link| &link["ifname"]).collect();
        assert_eq!(names, ["lo", "foreign"]);
    });
}

#[test]
fn a_foreign_link_of_the_same_name_is_left_as_it_is() {
    as_host(async |_| {
        let host = Rtnl::open().unwrap();
        output("ip link add lr-customerA type bridge");
        let before = output("ip -d link show lr-customerA");
        let stack = Stack::new(plan("customerA", "198.19.0.8/31", &["a"]));
        let error = create(&stack.plan, &host, stack.sidecar(), &stack.apps())
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "host: create link lr-customerA with its peer uplink in the sidecar's namespace"
        );
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.starts_with("File exists"), "{source}");
        assert_eq!(output("ip -d link show lr-customerA"), before);
    });
}

#[test]
fn an_app_leaves_and_comes_back_while_another_stays() {
    as_host(async |_| {
        let host = Rtnl::open().unwrap();
        let stack = Stack::new(plan("customerA", "198.19.0.8/31", &["a", "b"]));
        let mut links = stack.up(&host).await;
        let sidecar = &stack.sidecar.0;
        let a = &stack.plan.apps[0];
        let before = (sidecar.json("ip -j route"), sidecar.json("ip -j neigh"));

        remove_app(a, stack.sidecar(), &mut links).await.unwrap();
        remove_app(a, stack.sidecar(), &mut links).await.unwrap();
        assert!(!links.apps.contains_key(&a.port_link));
        for what in ["link", "route", "neigh"] {
            let left = sidecar.within(|| output(&format!("ip {what}")));
            assert!(
                !left.contains("p-a") && !left.contains("172.18.0.23"),
                "{left}"
            );
        }
        assert!(
            !stack.apps[0]
                .0
                .within(|| output("ip link"))
                .contains("eth0")
        );
        let _b = stack.apps[1].0.serve(Ipv4Addr::UNSPECIFIED, "b");
        sidecar.within(|| assert_eq!(hear(Ipv4Addr::new(172, 18, 0, 24)), "b"));

        let mut netns = Netns::new();
        let rtnl = Rtnl::from_fd(netns.socket.take().unwrap()).unwrap();
        let end = Endpoint {
            rtnl: &rtnl,
            netns: netns.fd.as_fd(),
        };
        create_app(a, stack.sidecar(), end, &mut links)
            .await
            .unwrap();
        up_app(&stack.plan, a, stack.sidecar(), end, &links)
            .await
            .unwrap();
        let _a = netns.serve(Ipv4Addr::UNSPECIFIED, "a again");
        sidecar.within(|| assert_eq!(hear(Ipv4Addr::new(172, 18, 0, 23)), "a again"));
        let sorted = |(routes, neighbours): (Vec<Value>, Vec<Value>)| {
            let mut all: Vec<String> = routes
                .iter()
                .chain(&neighbours)
                .map(Value::to_string)
                .collect();
            all.sort();
            all
        };
        let after = (sidecar.json("ip -j route"), sidecar.json("ip -j neigh"));
        assert_eq!(sorted(after), sorted(before));
    });
}

#[test]
fn a_link_that_comes_up_late_is_waited_for() {
    as_host(async |_| {
        let host = Rtnl::open().unwrap();
        let stack = Stack::new(plan("customerA", "198.19.0.8/31", &["a"]));
        let links = stack.create(&host).await;
        output("ip link set lr-customerA up");
        let link = [(links.host, "lr-customerA")];
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut waiting = std::pin::pin!(host.wait_up("host", &link, deadline, UP_WITHIN));
        // It waits: the peer is down. Polled until it listens, then nothing of its own can end it.
        for _ in 0..100 {
            tokio::select! {
                biased;
                _ = &mut waiting => panic!("up without its peer"),
                () = tokio::task::yield_now() => {}
            }
        }
        stack.sidecar.0.within(|| output("ip link set uplink up"));
        waiting.await.unwrap();
        assert_eq!(json("ip -j link show lr-customerA")[0]["operstate"], "UP");
    });
}

#[test]
fn a_link_that_stays_down_is_named_with_its_namespace_and_state() {
    as_host(async |_| {
        let host = Rtnl::open().unwrap();
        let stack = Stack::new(plan("customerA", "198.19.0.8/31", &["a"]));
        let links = stack.create(&host).await;
        let wait = async || {
            host.wait_up(
                "host",
                &[(links.host, "lr-customerA")],
                Instant::now(),
                UP_WITHIN,
            )
            .await
            .unwrap_err()
            .to_string()
        };
        assert_eq!(
            wait().await,
            "host: link lr-customerA is down (it was not set up), not up, after 5 s"
        );
        output("ip link set lr-customerA up");
        // Which of the two depends on the peer's index (`default_operstate`, net/core/link_watch.c).
        let states = ["down", "lowerlayerdown"];
        let expected = states.map(|s| format!("host: link lr-customerA is {s}, not up, after 5 s"));
        let error = wait().await;
        assert!(expected.contains(&error), "{error}");
    });
}

#[test]
fn a_refusal_says_what_where_and_in_the_kernels_words() {
    as_host(async |_| {
        let stack = Stack::new(plan("customerA", "198.19.0.8/31", &["a"]));
        let steps = give(999, "customerA", stack.plan.bridge.address.into(), 24);
        let error = stack.sidecar.1.run("sidecar", steps).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "sidecar: give link customerA the address 172.18.0.33/24"
        );
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(
            source,
            "No such device (os error 19): ipv4: Device not found"
        );
    });
}

#[test]
fn a_lost_connection_is_an_error_and_no_success() {
    let (ended, _netns) = thread::spawn(|| {
        let netns = Netns::enter_new();
        let runtime = runtime();
        (runtime.block_on(async { Rtnl::open().unwrap() }), netns)
    })
    .join()
    .unwrap();
    let error = runtime().block_on(facts(&ended)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "host: list the links: the rtnetlink connection ended before the kernel's answer"
    );
}

#[test]
fn only_a_netlink_socket_is_taken() {
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let taken = runtime().block_on(async { Rtnl::from_fd(socket.into()) });
    assert!(matches!(taken, Err(Error::Socket(_))), "{taken:?}");
}

#[test]
fn facts_are_addresses_links_and_routes_of_every_table() {
    as_host(async |_| {
        for command in [
            "ip link set lo up",
            "ip link add d0 type bridge",
            "ip link set d0 up",
            "ip addr add 192.0.2.5/24 dev d0",
            "ip addr add 203.0.113.1 peer 203.0.113.2/32 dev d0",
            "ip route add default via 192.0.2.1",
            "ip route add 198.51.100.0/24 via 192.0.2.1",
            "ip route add 10.1.0.0/16 via 192.0.2.1 table 1000",
            "ip route add default via 192.0.2.1 table 1000",
            "ip route add unreachable 10.2.0.0/16",
        ] {
            output(command);
        }
        let found = facts(&Rtnl::open().unwrap()).await.unwrap();
        assert_eq!(found.links, ["lo", "d0"]);
        let net = |text: &str| text.parse::<ipnet::Ipv4Net>().unwrap();
        let on = |link: &str, text: &str| (link.to_owned(), net(text));
        assert_eq!(
            found.addresses,
            [
                on("lo", "127.0.0.1/8"),
                on("d0", "192.0.2.5/24"),
                on("d0", "203.0.113.1/32"),
                on("d0", "203.0.113.2/32"),
            ]
        );
        let mut routes = found.routes;
        routes.sort();
        assert_eq!(
            routes,
            [
                net("10.1.0.0/16"),
                net("192.0.2.0/24"),
                net("198.51.100.0/24"),
                net("203.0.113.2/32"),
            ]
        );
    });
}

/// The kernel drops answers that the socket has no room for, and an acknowledgement among them.
#[test]
fn a_stack_of_a_hundred_apps_comes_up() {
    as_host(async |_| {
        let host = Rtnl::open().unwrap();
        let names: Vec<String> = (0..100).map(|number| format!("n{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut plan = plan("customerA", "198.19.0.8/31", &names);
        for (last, app) in (101..).zip(&mut plan.apps) {
            app.address = Ipv4Addr::new(172, 18, 0, last);
        }
        let stack = Stack::new(plan);
        stack.up(&host).await;
        let links = stack.sidecar.0.json("ip -j link show master customerA");
        assert_eq!(links.len(), 100);
        assert!(links.iter().all(|link| link["operstate"] == "UP"));
    });
}

#[test]
fn what_libraries_log_is_not_in_the_program() {
    // Nobody would hear it, and it keeps a Debug of every netlink attribute.
    assert_eq!(log::STATIC_MAX_LEVEL, log::LevelFilter::Off);
}

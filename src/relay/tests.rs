//! Each test has a network namespace of its own, on its own thread, so that addresses and ports are fixed.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread::{self, JoinHandle};

use super::*;

const RELAY: &str = "127.0.0.1:5000";
const APP: &str = "127.0.0.2:6000";

const HANDED_OVER: &[u8] = b"handed over\n";

/// When a test gives up: nothing here takes that long unless it is stuck.
const DEADLINE: Duration = Duration::from_secs(20);

/// Runs `test` on this thread, in a new network namespace with loopback up. Threads it starts are in there as well.
fn in_netns() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    let up = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status()
        .unwrap();
    assert!(up.success());
}

/// A listening socket as a published port has it.
fn listening(address: &str) -> TcpListener {
    let listener = TcpListener::bind(address).unwrap();
    carried(&listener).unwrap();
    listener
}

/// The way to `target` for whoever comes.
fn everybody(target: SocketAddr) -> Way {
    let all = "0.0.0.0/0".parse().unwrap();
    Way {
        target,
        gate: Rc::new(Gate::new(crate::config::clients::Admission::of(
            &[all],
            None,
        ))),
        shows_client: false,
        app: 0,
        joined: true,
        early: 0,
    }
}

/// A relay on a thread. Dropped, it is told to stop, and must.
struct Running {
    control: Option<BufReader<UnixStream>>,
    thread: Option<JoinHandle<Result<(), RelayError>>>,
    tid: i32,
}

impl Running {
    fn start() -> Self {
        Self::start_tuned(Tuning::default())
    }

    fn start_tuned(tuning: Tuning) -> Self {
        Self::start_with(Places::share_out(1, 0).unwrap(), tuning)
    }

    fn start_with(places: Places, tuning: Tuning) -> Self {
        Self::start_on(listening(RELAY), places, tuning)
    }

    fn start_on(listener: TcpListener, places: Places, tuning: Tuning) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(DEADLINE)).unwrap();
        let target: SocketAddr = APP.parse().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            tell.send(nix::unistd::gettid().as_raw()).unwrap();
            run_with(
                vec![(listener, everybody(target))],
                vec![],
                Dials::Itself { as_clients: None },
                (OwnedFd::from(theirs), HANDED_OVER, None),
                places,
                tuning,
            )
        });
        Self {
            control: Some(BufReader::new(ours)),
            thread: Some(thread),
            tid: told.recv().unwrap(),
        }
    }

    /// Wall time and the relay's CPU time for `work`, in seconds.
    fn timed(&self, work: impl FnOnce()) -> (f64, f64) {
        let cpu = || {
            let path = format!("/proc/self/task/{}/schedstat", self.tid);
            let text = std::fs::read_to_string(path).unwrap();
            text.split(' ').next().unwrap().parse::<f64>().unwrap() * 1e-9
        };
        let (wall, before) = (std::time::Instant::now(), cpu());
        work();
        (wall.elapsed().as_secs_f64(), cpu() - before)
    }

    fn stats(&mut self) -> Stats {
        stats(self.control.as_mut().unwrap())
    }

    /// The statistics, once they are as they should be: what ends a connection is seen by the peer before it is counted.
    fn stats_when(&mut self, fine: impl Fn(&Stats) -> bool) -> Stats {
        loop {
            let stats = self.stats();
            if fine(&stats) {
                return stats;
            }
        }
    }

    fn stop(&mut self) {
        drop(self.control.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.stop();
        }
    }
}

fn stats(control: &mut BufReader<UnixStream>) -> Stats {
    control.get_mut().write_all(&[STATS_REQUEST]).unwrap();
    let mut line = String::new();
    control.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

/// Bytes that do not repeat and differ by seed (xorshift64).
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_ne_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// One connection through the relay: the client's end and the app's. A byte has come through, so the relay knows that
/// its connection to the app stands.
fn connect(app: &TcpListener) -> (TcpStream, TcpStream) {
    let mut client = TcpStream::connect(RELAY).unwrap();
    let (mut server, _) = app.accept().unwrap();
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    server.set_read_timeout(Some(DEADLINE)).unwrap();
    client.write_all(b"!").unwrap();
    server.read_exact(&mut [0]).unwrap();
    (client, server)
}

fn is_reset(read: std::io::Result<usize>) -> bool {
    read.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset)
}

/// Sends `there` and `back` at once, each to its end, and compares.
fn exchange(client: &TcpStream, server: &TcpStream, there: &[u8], back: &[u8]) {
    thread::scope(|scope| {
        for (mut from, mut to, bytes) in [(client, server, there), (server, client, back)] {
            scope.spawn(move || {
                from.write_all(bytes).unwrap();
                from.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || {
                let mut got = Vec::new();
                to.read_to_end(&mut got).unwrap();
                // assert_eq would print 50 MB
                assert!(
                    got == bytes,
                    "{} bytes sent, {} got",
                    bytes.len(),
                    got.len()
                );
            });
        }
    });
}

#[test]
fn every_byte_arrives_in_both_directions_at_once() {
    in_netns();
    let app = TcpListener::bind(APP).unwrap();
    let mut relay = Running::start();
    let (mut total_in, mut total_out) = (0, 0);
    for (there, back) in [
        (0, 0),
        (0, 1),
        (1, 0),
        (64 * 1024, 64 * 1024 + 1),
        (128 * 1024, 64 * 1024 - 1),
        (50_000_000, 50_000_000),
        (1, 3_000_000),
    ] {
        let (client, server) = connect(&app);
        exchange(&client, &server, &noise(there, 1), &noise(back, 2));
        total_in += there as u64 + 1;
        total_out += back as u64;
    }
    let stats = relay.stats_when(|s| s.open == 0);
    assert_eq!(
        (
            stats.bytes_in,
            stats.bytes_out,
            stats.accepted,
            stats.reset,
            stats.refused
        ),
        (total_in, total_out, 7, 0, 0)
    );
}

#[test]
fn every_byte_arrives_without_pipes_too() {
    in_netns();
    let app = TcpListener::bind(APP).unwrap();
    let _relay = Running::start_tuned(Tuning {
        pipe: 0,
        ..Tuning::default()
    });
    let (client, server) = connect(&app);
    exchange(&client, &server, &noise(5_000_000, 1), &noise(5_000_000, 2));
}

#[test]
fn urgent_data_neither_stalls_nor_is_lost() {
    in_netns();
    let app = TcpListener::bind(APP).unwrap();
    let _relay = Running::start();
    let (client, mut server) = connect(&app);
    let bytes = noise(300_000, 1);
    let sent = bytes.clone();
    // the client does not end its stream: only the bytes themselves can wake the relay
    let writing = thread::spawn(move || {
        let mut at = 0;
        while at < sent.len() {
            let part = &sent[at..sent.len().min(at + 30_000)];
            at += rustix::net::send(&client, part, rustix::net::SendFlags::OOB).unwrap();
        }
        client
    });
    let mut got = vec![0; bytes.len()];
    sockopt::set_socket_oobinline(&server, true).unwrap();
    server.read_exact(&mut got).unwrap();
    assert!(got == bytes);
    drop(writing.join().unwrap());
}

#[test]
fn a_side_that_has_ended_its_stream_still_gets_the_answer() {
    in_netns();
    let app = TcpListener::bind(APP).unwrap();
    let _relay = Running::start();
    let (mut client, mut server) = connect(&app);
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut question = String::new();
    server.read_to_string(&mut question).unwrap();
    assert_eq!(question, "question");
    // read_to_string has seen the end of the stream, and only now is the answer sent
    let answer = noise(1_000_000, 3);
    thread::scope(|scope| {
        scope.spawn(|| {
            server.write_all(&answer).unwrap();
            drop(server);
        });
        let mut got = Vec::new();
        client.read_to_end(&mut got).unwrap();
        assert!(got == answer);
    });
}

#[test]
fn a_reset_of_either_side_reaches_the_other() {
    in_netns();
    let app = TcpListener::bind(APP).unwrap();
    let mut relay = Running::start();

    let (client, mut server) = connect(&app);
    sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
    drop(client);
    assert!(is_reset(server.read(&mut [0])));

    let (mut client, server) = connect(&app);
    sockopt::set_socket_linger(&server, Some(Duration::ZERO)).unwrap();
    drop(server);
    assert!(is_reset(client.read(&mut [0])));

    let stats = relay.stats_when(|s| s.open == 0);
    assert_eq!(stats.reset, 2);
}

#[test]
fn a_reset_after_the_end_of_the_stream_reaches_the_other_side() {
    in_netns();
    let app = TcpListener::bind(APP).unwrap();
    let _relay = Running::start();
    let (client, mut server) = connect(&app);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    // unread bytes make close(2) a reset; seeing them in the client's queue shows that they are there
    server.write_all(b"unread").unwrap();
    assert_eq!(client.peek(&mut [0; 6]).unwrap(), 6);
    drop(client);
    // neither side sends anything any more: the relay has to hear of it from the socket itself
    let mut polled = [rustix::event::PollFd::new(
        &server,
        rustix::event::PollFlags::empty(),
    )];
    let deadline = DEADLINE.try_into().unwrap();
    rustix::event::poll(&mut polled, Some(&deadline)).unwrap();
    assert!(polled[0].revents().contains(rustix::event::PollFlags::ERR));
}

#[test]
fn what_was_sent_before_a_reset_arrives() {
    in_netns();
    let app = TcpListener::bind(APP).unwrap();
    let _relay = Running::start();
    for _ in 0..50 {
        let (mut client, mut server) = connect(&app);
        client.write_all(b"a request that is not read").unwrap();
        assert_eq!(server.peek(&mut [0; 26]).unwrap(), 26);
        server.write_all(b"413").unwrap();
        // with unread bytes, close(2) sends a reset behind the answer
        drop(server);
        let mut answer = [0; 3];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"413");
        assert!(is_reset(client.read(&mut [0])));
    }
}

#[test]
fn a_target_that_refuses_resets_the_client() {
    in_netns();
    let mut relay = Running::start();
    let mut client = TcpStream::connect(RELAY).unwrap();
    assert!(is_reset(client.read(&mut [0])));
    let stats = relay.stats_when(|s| s.open == 0);
    assert_eq!((stats.accepted, stats.refused), (1, 1));

    // and the relay is none the worse for it
    let app = TcpListener::bind(APP).unwrap();
    let (client, server) = connect(&app);
    exchange(&client, &server, b"there", b"back");
}

#[test]
fn two_hundred_connections_are_carried_at_once() {
    in_netns();
    let app = TcpListener::bind(APP).unwrap();
    let mut relay = Running::start();
    let open: Vec<_> = (0..200).map(|_| connect(&app)).collect();
    assert_eq!(relay.stats().open, 200);
    thread::scope(|scope| {
        for (i, (client, server)) in (0..).zip(&open) {
            scope.spawn(move || {
                exchange(
                    client,
                    server,
                    &noise(100_000, i),
                    &noise(100_000, i + 1000),
                )
            });
        }
    });
    drop(open);
    assert_eq!(relay.stats_when(|s| s.open == 0).accepted, 200);
}

/// Sends until only a reader at the other end can move things on; says how many bytes that took.
fn send_until_stalled(relay: &mut Running, mut client: &TcpStream) -> u64 {
    client.set_nonblocking(true).unwrap();
    let chunk = noise(1 << 16, 5);
    let mut sent = 0;
    // The client's kernel takes no more, and the relay has moved nothing between two looks.
    let mut seen = relay.stats().bytes_in;
    loop {
        match client.write(&chunk) {
            Ok(n) => sent += n as u64,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                let now = relay.stats().bytes_in;
                if now == seen {
                    break;
                }
                seen = now;
            }
        }
        // the kernel's buffers at both ends and ours, together, are nowhere near this
        assert!(sent < 200_000_000, "the relay takes whatever it is sent");
    }
    client.set_nonblocking(false).unwrap();
    sent
}

#[test]
fn a_receiver_that_does_not_read_stops_the_sender() {
    in_netns();
    let app = TcpListener::bind(APP).unwrap();
    let mut relay = Running::start();
    let (client, mut server) = connect(&app);
    let sent = send_until_stalled(&mut relay, &client);
    // another connection is not held up
    let (client2, server2) = connect(&app);
    exchange(&client2, &server2, b"there", b"back");

    client.shutdown(Shutdown::Write).unwrap();
    let read = std::io::copy(&mut server, &mut std::io::sink()).unwrap();
    assert_eq!(read, sent);
}

#[test]
fn bytes_of_a_dead_connection_never_reach_another() {
    in_netns();
    let app = TcpListener::bind(APP).unwrap();
    // one pipe, so that the second connection would get the first one's
    let places = Places {
        connections: 4,
        pipes: 1,
        flows: 0,
    };
    let mut relay = Running::start_with(places, Tuning::default());
    for _ in 0..3 {
        let (client, server) = connect(&app);
        send_until_stalled(&mut relay, &client);
        drop((client, server));
        relay.stats_when(|s| s.open == 0);
        let (client, server) = connect(&app);
        exchange(&client, &server, &noise(5_000_000, 1), &noise(5_000_000, 2));
    }
}

#[test]
fn stopping_resets_both_sides_and_frees_the_port() {
    in_netns();
    let app = TcpListener::bind(APP).unwrap();
    let mut relay = Running::start();
    let (mut client, mut server) = connect(&app);
    relay.stop();
    assert!(is_reset(client.read(&mut [0])));
    assert!(is_reset(server.read(&mut [0])));
    let refused = TcpStream::connect(RELAY).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn any_byte_but_a_request_stops_it() {
    in_netns();
    let mut relay = Running::start();
    relay
        .control
        .as_mut()
        .unwrap()
        .get_mut()
        .write_all(b"x")
        .unwrap();
    relay.thread.take().unwrap().join().unwrap().unwrap();
}

#[test]
fn both_sides_probe_a_silent_peer() {
    in_netns();
    let app = TcpListener::bind(APP).unwrap();
    let _relay = Running::start();
    let _open = connect(&app);
    let ss = Command::new("ss")
        .args(["-Htno", "state", "established"])
        .output()
        .unwrap();
    let text = String::from_utf8(ss.stdout).unwrap();
    let probing = text
        .lines()
        .filter(|l| l.contains("timer:(keepalive,"))
        .count();
    // of four sockets, the two that are the relay's
    assert_eq!(probing, 2, "{text}");
}

/// Set for the child process that [`running_out_of_descriptors_does_not_spin`] starts.
const CHILD: &str = "LRPNS_TEST_RELAY_CHILD";

/// Limits of descriptors are the whole process's, so this one runs in a process of its own.
fn in_child(test: &str, nofile: u32) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let this = std::env::current_exe().unwrap();
    let output = Command::new("prlimit")
        .arg(format!("--nofile={nofile}"))
        .arg(this)
        .args(["--exact", "--nocapture", test])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(text.contains("1 passed"), "{text}");
    false
}

#[test]
fn running_out_of_descriptors_does_not_spin() {
    if !in_child(
        "relay::tests::running_out_of_descriptors_does_not_spin",
        256,
    ) {
        return;
    }
    in_netns();
    let app = TcpListener::bind(APP).unwrap();
    let mut relay = Running::start();
    let first = connect(&app);
    let second = Socket::made_now();
    let hoard: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    assert!(!hoard.is_empty());
    let second = second.connect();
    let exhausted = relay.stats_when(|s| s.exhausted > 0).exhausted;
    // a loop that spins would count one more for nearly every request here; one that rests, one a second
    for _ in 0..1000 {
        relay.stats();
    }
    let now = relay.stats().exhausted;
    assert!(now - exhausted < 100, "{exhausted} -> {now}");

    // the end of a connection is what it waits for
    drop(hoard);
    drop(first);
    let (server, _) = app.accept().unwrap();
    exchange(&second, &server, b"there", b"back");
}

/// A socket whose descriptor was taken while there were some.
struct Socket(OwnedFd);

impl Socket {
    fn made_now() -> Self {
        use rustix::net::{AddressFamily, SocketType, socket};
        Self(socket(AddressFamily::INET, SocketType::STREAM, None).unwrap())
    }

    fn connect(self) -> TcpStream {
        let relay: SocketAddr = RELAY.parse().unwrap();
        rustix::net::connect(&self.0, &relay).unwrap();
        TcpStream::from(self.0)
    }
}

/// A client at another loopback address.
fn connect_from(last: u8) -> TcpStream {
    let family = rustix::net::AddressFamily::INET;
    let socket = rustix::net::socket(family, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, last], 0))).unwrap();
    let relay: SocketAddr = RELAY.parse().unwrap();
    rustix::net::connect(&socket, &relay).unwrap();
    let client = TcpStream::from(socket);
    client.set_read_timeout(Some(DEADLINE)).unwrap();
    client
}

#[test]
fn connections_past_the_limit_wait_their_turn() {
    in_netns();
    let app = TcpListener::bind(APP).unwrap();
    let few = Places {
        connections: 3,
        pipes: 1,
        flows: 0,
    };
    let mut relay = Running::start_with(few, Tuning::default());
    let connect = |last: u8| {
        let client = connect_from(last);
        let (server, _) = app.accept().unwrap();
        (client, server)
    };
    let mut open = vec![connect(10), connect(11)];
    // The last place is not for a client that has one already…
    let greedy = connect_from(10);
    assert!(is_reset((&greedy).read(&mut [0])));
    assert_eq!((relay.stats().open, relay.stats().over_share), (2, 1));
    // …but for another one. The next has to wait.
    open.push(connect(12));
    let late = connect_from(13);
    assert_eq!((relay.stats().open, relay.stats().limit), (3, 3));
    drop(open.pop());
    let (server, _) = app.accept().unwrap();
    exchange(&late, &server, b"there", b"back");
    assert_eq!(relay.stats().accepted, 4);
}

#[test]
fn descriptors_are_shared_out_within_the_limit() {
    if !in_child(
        "relay::tests::descriptors_are_shared_out_within_the_limit",
        256,
    ) {
        return;
    }
    let places = Places::share_out(2, 0).unwrap();
    assert_eq!((places.connections, places.pipes), (98, 13));
    let used = 2 * (places.connections + places.pipes) + 2;
    assert!(used as u64 + OTHER_DESCRIPTORS <= 256);
    let error = Places::share_out(200, 0).unwrap_err();
    assert!(matches!(
        error,
        RelayError::Descriptors {
            limit: 256,
            listeners: 200
        }
    ));
}

#[test]
fn reads_become_small_while_much_is_put_aside() {
    let buffers = flow::Buffers::new(1, Tuning::default());
    let large = buffers.read_size();
    let held: Vec<_> = (0..256).map(|_| buffers.put_aside(&[0; 1 << 16])).collect();
    assert!(buffers.read_size() < large);
    drop(held);
    assert_eq!(buffers.read_size(), large);
}

/// CPU time and wall time of the relay for each size of buffer and pipe:
/// `cargo test --release relay::tests::measure -- --ignored --nocapture`.
#[test]
#[ignore = "measures, does not check"]
fn measure() {
    in_netns();
    let app = TcpListener::bind(APP).unwrap();
    println!("scratch KiB, pipe KiB: answer bytes: answers/s, relay CPU us per answer, Gbit/s");
    for (scratch, pipe) in [(64, 0), (256, 0), (64, 64), (64, 256)] {
        let relay = Running::start_tuned(Tuning {
            scratch: scratch * 1024,
            pipe: pipe * 1024,
        });
        for (size, count) in [
            (100, 40_000),
            (12_000, 30_000),
            (50_000, 20_000),
            (500_000, 5_000),
            (3_000_000_000, 1),
        ] {
            let (wall, cpu) = relay.timed(|| answers(&app, size, count));
            let count = f64::from(count);
            println!(
                "{scratch:4} {pipe:4}: {size:10}: {:8.0}/s {:10.2} us {:6.2} Gbit/s",
                count / wall,
                cpu * 1e6 / count,
                size as f64 * count * 8e-9 / wall
            );
        }
        let count = 10_000;
        let (wall, cpu) = relay.timed(|| (0..count).for_each(|_| answers(&app, 100, 1)));
        let count = f64::from(count);
        println!(
            "{scratch:4} {pipe:4}: connections: {:.0}/s {:.2} us",
            count / wall,
            cpu * 1e6 / count
        );
    }
}

/// `count` requests, each answered by `size` bytes, on one connection that the app closes.
fn answers(app: &TcpListener, size: usize, count: u32) {
    let (mut client, mut server) = connect(app);
    let chunk = vec![7; size.min(1 << 18)];
    thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..count {
                server.read_exact(&mut [0; 100]).unwrap();
                let mut left = size;
                while left > 0 {
                    let part = left.min(chunk.len());
                    server.write_all(&chunk[..part]).unwrap();
                    left -= part;
                }
            }
        });
        let mut buffer = vec![0; 1 << 18];
        for _ in 0..count {
            client.write_all(&[1; 100]).unwrap();
            let mut left = size;
            while left > 0 {
                left -= client.read(&mut buffer).unwrap();
            }
        }
        assert_eq!(client.read(&mut buffer).unwrap(), 0);
    });
}

#[test]
fn after_last_orders_another_relay_accepts_and_the_end_comes_with_the_last_connection() {
    in_netns();
    let app = TcpListener::bind(APP).unwrap();
    let listener = listening(RELAY);
    let again = || {
        let listener = listener.try_clone().unwrap();
        Running::start_on(
            listener,
            Places::share_out(1, 0).unwrap(),
            Tuning::default(),
        )
    };
    let mut first = again();
    let (client, server) = connect(&app);
    let mut second = again();
    let control = first.control.as_mut().unwrap();
    control.get_mut().write_all(&[LAST_ORDERS]).unwrap();
    let mut word = String::new();
    control.read_line(&mut word).unwrap();
    assert_eq!(word.as_bytes(), HANDED_OVER);
    assert_eq!(first.stats().open, 1);
    for _ in 0..20 {
        drop(connect(&app));
    }
    assert_eq!(second.stats_when(|s| s.accepted == 20).refused, 0);
    assert_eq!(first.stats().accepted, 1);
    exchange(&client, &server, &noise(100_000, 1), &noise(100_000, 2));
    drop((client, server));
    first.thread.take().unwrap().join().unwrap().unwrap();
}

#[test]
fn who_was_accepted_is_handed_over_before_a_relay_says_so() {
    in_netns();
    // Room for one who is not accepted: the next one is not answered.
    let app = TcpListener::bind(APP).unwrap();
    rustix::net::listen(&app, 0).unwrap();
    let _first = TcpStream::connect(APP).unwrap();
    let mut relay = Running::start_on(
        listening(RELAY),
        Places::share_out(1, 0).unwrap(),
        Tuning::default(),
    );
    let mut client = TcpStream::connect(RELAY).unwrap();
    relay.stats_when(|s| s.accepted == 1);
    let control = relay.control.as_mut().unwrap();
    control.get_mut().write_all(&[LAST_ORDERS]).unwrap();
    // This is said and not the word, which would have come before.
    assert_eq!(relay.stats().open, 1);
    drop(app.accept().unwrap());
    let (mut server, _) = app.accept().unwrap();
    let mut word = String::new();
    let control = relay.control.as_mut().unwrap();
    control.read_line(&mut word).unwrap();
    assert_eq!(word.as_bytes(), HANDED_OVER);
    client.write_all(b"x").unwrap();
    assert_eq!(server.read(&mut [0]).unwrap(), 1);
    server.write_all(b"y").unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 1);
}

#[test]
fn a_listener_that_is_shut_down_ends_no_connection() {
    in_netns();
    let app = TcpListener::bind(APP).unwrap();
    let listener = listening(RELAY);
    let shared = listener.try_clone().unwrap();
    let mut relay = Running::start_on(shared, Places::share_out(1, 0).unwrap(), Tuning::default());
    let (client, server) = connect(&app);
    rustix::net::shutdown(&listener, rustix::net::Shutdown::Read).unwrap();
    assert_eq!(
        TcpStream::connect(RELAY).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
    exchange(&client, &server, &noise(100_000, 1), &noise(100_000, 2));
    assert_eq!(relay.stats().accepted, 1);
    // It opens again.
    rustix::net::listen(&listener, 10).unwrap();
    TcpStream::connect(RELAY).unwrap();
}

#[test]
fn what_waits_in_a_socket_is_forgotten_and_what_comes_later_is_not() {
    let published = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = published.local_addr().unwrap();
    for early in 0..3 {
        client.send_to(&[early; 100], address).unwrap();
    }
    super::forget_what_waits(&published);
    client.send_to(b"late", address).unwrap();
    let mut heard = [0; 100];
    let length = published.recv(&mut heard).unwrap();
    assert_eq!(&heard[..length], b"late");
}

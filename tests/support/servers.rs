//! Somebody else's servers, which an app may be let to reach, and how it asks them.

use super::lab::{Lab, Running};
use super::look::PYTHON;

/// Each reads to the end of what it is told, by UDP one datagram, and says from whom it was and how much: `10.99.0.1 1`.
const SERVERS: &str = r#"
import selectors, socket, sys, threading
def serve(c, peer):
    with c:
        heard = 0
        while part := c.recv(1 << 16):
            heard += len(part)
        c.sendall(f"{peer[0]} {heard}".encode())
chosen = selectors.DefaultSelector()
for where in sys.argv[1:]:
    kind, address, port = where.split()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    s = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((address, int(port)))
    if kind == "tcp":
        s.listen()
    chosen.register(s, selectors.EVENT_READ, kind)
print("ready", flush=True)
while True:
    for key, _ in chosen.select():
        if key.data == "tcp":
            threading.Thread(target=serve, args=key.fileobj.accept(), daemon=True).start()
        else:
            said, peer = key.fileobj.recvfrom(1 << 16)
            key.fileobj.sendto(f"{peer[0]} {len(said)}".encode(), peer)
"#;

/// What an app says to one: so many bytes, from the port `source` if that is not 0. The answer, or the errno's name.
pub const ASK: &str = r#"
def ask(kind, address, port, size=1, source=0):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as s:
        s.settimeout(20)
        try:
            if source:
                s.bind(("", source))
            s.connect((address, port))
            s.sendall(b"?" * size)
            if kind == "udp":
                return s.recv(99).decode()
            s.shutdown(socket.SHUT_WR)
            answer = b""
            while part := s.recv(99):
                answer += part
            return answer.decode()
        except OSError as e:
            return errno.errorcode.get(e.errno, str(e))
"#;

/// Starts them in a namespace of `ip netns`, or, as a user of their own, in the lab's own. Each place is a protocol, an
/// address and a port.
pub fn servers(lab: &Lab, namespace: Option<&str>, places: &[&str]) -> Running {
    let prefix = match namespace {
        Some(name) => vec!["ip", "netns", "exec", name],
        None => vec![
            "setpriv",
            "--reuid",
            "4322",
            "--clear-groups",
            "--inh-caps",
            "+net_bind_service",
            "--ambient-caps",
            "+net_bind_service",
        ],
    };
    lab.start(&[&prefix[..], &[PYTHON, "-c", SERVERS], places].concat())
}

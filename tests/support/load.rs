//! A client of HTTP that asks as fast as it can, and counts what went wrong.

use std::io::{BufRead, BufReader, Read};
use std::process::Child;

use serde_json::Value;

use super::lab::Lab;
use super::look::PYTHON;

/// Asks as fast as it can, until its input ends, by connections of one request and by one that is kept: then says how many
/// answers it had, the words, and what went wrong.
const LOAD: &str = r#"
import http.client, json, sys, threading
host, port = sys.argv[1], int(sys.argv[2])
over = threading.Event()
lock, words, wrong, count = threading.Lock(), set(), [], [0]
def ask(kept):
    connection = None
    while not over.is_set():
        try:
            if connection is None:
                connection = http.client.HTTPConnection(host, port, timeout=10)
            connection.request("GET", "/", headers={} if kept else {"connection": "close"})
            answer = connection.getresponse()
            word = answer.read().decode()
            if answer.status != 200:
                raise OSError(f"status {answer.status}")
            with lock:
                words.add(word)
                count[0] += 1
            if not kept or answer.will_close:
                connection.close()
                connection = None
        except Exception as e:
            with lock:
                wrong.append(f"{'kept' if kept else 'new'}: {e!r}")
            connection = None
threads = [threading.Thread(target=ask, args=(kept,)) for kept in (False, False, False, True)]
[thread.start() for thread in threads]
print("ready", flush=True)
sys.stdin.read()
over.set()
[thread.join() for thread in threads]
print(json.dumps({"count": count[0], "words": len(words), "wrong": wrong}))
"#;

/// A client that asks as fast as it can.
pub struct Load(Child, BufReader<std::process::ChildStdout>);

impl Load {
    /// From the client, or from the host itself.
    pub fn begin(lab: &Lab, from_client: bool, host: &str, port: &str) -> Self {
        let args = [PYTHON, "-c", LOAD, host, port];
        let mut child = match from_client {
            true => lab.spawn(&[&["ip", "netns", "exec", "client"], args.as_slice()].concat()),
            false => lab.spawn(&args),
        };
        let mut said = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child, said)
    }

    /// What came of it: `count`, `words`, how many different ones, and `wrong`, a list.
    pub fn end(mut self) -> Value {
        drop(self.0.stdin.take());
        let mut said = String::new();
        self.1.read_to_string(&mut said).unwrap();
        let _ = self.0.wait();
        serde_json::from_str(&said).unwrap()
    }
}

//! While `up` waits for an app: `status`, `ps`, `logs -f` and `exec` answer with what there is, and a foreground `up` prints
//! what the apps say from their first line on.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Child;

use serde_json::Value;
use support::lab::{Lab, describe, until};
use support::look::{self, PYTHON, part, toml_list};

/// Says that it runs, waits until somebody writes to a pipe, then serves.
const WAITS: &str = r#"
import socket
print("this is my first line", flush=True)
open("/data/go").read()
print("now I go on", flush=True)
s = socket.create_server(("0.0.0.0", 5000))
while True:
    c = s.accept()[0]
    c.recv(9999)
    c.sendall(b"HTTP/1.0 200 OK\r\n\r\nhere I am")
    c.close()
"#;

/// A stack whose web waits, and whose last app waits for web.
fn shop(data: &Path) -> String {
    format!(
        "name = \"shop\"\n\
         [app.web]\nrootfs = \"host\"\ncommand = {}\nvolumes = [\"{}:/data:rw\"]\npublish = [\"0.0.0.0:5000:5000\"]\n\
         [app.last]\nrootfs = \"host\"\ncommand = [\"sleep\", \"1000\"]\nafter = [\"web\"]\n",
        toml_list(&[PYTHON, "-c", WAITS]),
        data.display()
    )
}

/// A lab, the file of the stack, and the pipe that its web waits for.
fn prepared() -> (Lab, String, String) {
    let lab = Lab::new();
    let data = lab.volume("data");
    let go = data.join("go").display().to_string();
    lab.ok(&["mkfifo", "-m", "666", &go]);
    let file = lab.write("shop.toml", &shop(&data));
    let file = file.display().to_string();
    (lab, file, go)
}

/// What comes out of a program, line by line.
fn lines(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap)
}

#[test]
fn what_there_is_of_a_stack_that_starts_is_shown_and_can_be_worked_with() {
    if !look::machine() {
        return;
    }
    let (lab, file, go) = prepared();
    let mut up = lab.spawn_lrpns(&["up", "-f", &file]);
    // The screen shows it at once: the app has not come to listen, and won't before it is let.
    let mut screen = lines(&mut up);
    let first = screen.next().unwrap();
    assert!(first.ends_with("web | this is my first line"), "{first}");

    let status = lab.status("shop");
    assert_eq!(status["starting"], true);
    assert_eq!(part(&status, "web")["state"], "starting");
    assert!(part(&status, "web")["pid"].is_number());
    assert_eq!(part(&status, "sidecar")["state"], "running");
    assert!(part(&status, "sidecar")["privileges"].is_object());
    let notes = part(&status, "last")["notes"].to_string();
    assert!(notes.contains("comes up after web"), "{notes}");
    let text = lab.lrpns_ok(&["status", "shop"]);
    assert!(text.starts_with("shop is starting since "), "{text}");
    assert!(text.contains("closed-X"), "{text}");
    let list: Value = serde_json::from_str(&lab.lrpns_ok(&["ps", "--json"])).unwrap();
    assert_eq!(list[0]["state"], "starting");
    assert_eq!(
        list[0]["app_states"],
        serde_json::json!(["starting", "starting"])
    );
    until("it is told what is waited for", || {
        let status = lab.status("shop");
        let notes = part(&status, "web")["notes"].to_string();
        notes.contains("port 5000").then_some(())
    });

    // In the app whose command runs, and in no other.
    let here = lab.lrpns_ok(&["exec", "shop/web", "--", "sh", "-c", "echo $$ here"]);
    assert!(here.ends_with(" here\n"), "{here}");
    let (code, said) = lab.lrpns_err(&["exec", "shop/last", "--", "true"]);
    assert!(
        code == 1 && said.contains("last does not run yet"),
        "{said}"
    );

    let mut follow = lab.spawn_lrpns(&["logs", "-f", "shop", "web"]);
    let mut log = lines(&mut follow);
    assert_eq!(log.next().unwrap(), first);
    assert!(lab.lrpns_ok(&["logs", "shop"]).contains("my first line"));

    lab.ok(&["sh", "-c", &format!("echo > {go}")]);
    assert!(log.next().unwrap().ends_with("web | now I go on"));
    until("it is up", || {
        (lab.status("shop")["starting"] == false).then_some(())
    });
    assert_eq!(lab.get("http://127.0.0.1:5000/").unwrap(), "here I am");
    assert_eq!(part(&lab.status("shop"), "last")["state"], "running");
    lab.lrpns_ok(&["down", "shop"]);
    assert!(follow.wait().unwrap().success());
    let rest: Vec<String> = screen.collect();
    let again = rest.iter().filter(|line| line.contains("my first line"));
    assert_eq!(again.count(), 0, "{rest:?}");
    assert!(up.wait().unwrap().success());
}

#[test]
fn who_only_looks_at_a_start_does_not_hold_it_up_and_down_ends_it() {
    if !look::machine() {
        return;
    }
    let (lab, file, _) = prepared();
    let up = lab.spawn_lrpns(&["up", "-d", "-f", &file]);
    until("web runs", || {
        let output = lab.lrpns(&["status", "shop", "--json"]);
        let status: Value = serde_json::from_slice(&output.stdout).ok()?;
        (status["parts"].as_array()?.len() == 4 && part(&status, "web")["pid"].is_number())
            .then_some(())
    });
    let mut follow = lab.spawn_lrpns(&["logs", "-f", "shop"]);
    let mut log = lines(&mut follow);
    assert!(log.next().unwrap().contains("my first line"));
    lab.lrpns_ok(&["down", "shop"]);
    assert!(follow.wait().unwrap().success());
    let output = up.wait_with_output().unwrap();
    assert!(!output.status.success(), "{}", describe(&output));
}

//! `lrpns events`: what has become of the parts, and nothing of what they say.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader};

use serde_json::Value;
use support::lab::{Lab, lrpns};
use support::look::{self, PYTHON, toml_list};

/// Healthy as long as a file says so.
const SERVER: &str = r#"
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        well = open("/data/well").read().strip() == "yes"
        self.send_response(200 if well else 503)
        self.end_headers()
print("this is no event", flush=True)
http.server.HTTPServer(("0.0.0.0", 5000), Handler).serve_forever()
"#;

#[test]
fn starts_health_restarts_and_ends_are_told_as_they_come() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let data = lab.volume("data");
    let well = |is: &str| std::fs::write(data.join("well"), is).unwrap();
    well("yes");
    look::up(
        &lab,
        &format!(
            "name = \"shop\"\n[app.web]\nrootfs = \"host\"\ncommand = {}\npublish = [\"0.0.0.0:5000:5000\"]\n\
             volumes = [\"{}:/data:ro\"]\nhealth = {{ http = \"/\", interval = \"100ms\", retries = 2 }}\n",
            toml_list(&[PYTHON, "-c", SERVER]),
            data.display()
        ),
    );
    let text = lab.lrpns_ok(&["events", "shop"]);
    for part in ["sidecar", "web", "relay"] {
        let line = format!("{part} | started\n");
        assert!(text.contains(&line), "{text}");
    }
    assert!(!text.contains("this is no event"), "{text}");

    let mut follow = lab.spawn(&[
        "timeout",
        "20",
        lrpns(),
        "events",
        "-f",
        "--json",
        "shop",
        "web",
    ]);
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let mut seen = vec![];
    let mut next = |words: &str| loop {
        let line = lines
            .next()
            .unwrap_or_else(|| panic!("no {words} in {seen:?}"))
            .unwrap();
        seen.push(line.clone());
        let event: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(event["stream"], "event");
        assert_eq!(event["part"], "web");
        if event["text"].as_str().unwrap().contains(words) {
            return;
        }
    };
    next("started");
    well("no");
    next("is unhealthy: 2 checks in a row failed: HTTP 503");
    next("its ports are taken away");
    well("yes");
    next("is healthy");
    lab.lrpns_ok(&["restart", "shop/web"]);
    next("restart asked for");
    next("started again");
    lab.lrpns_ok(&["kill", "shop/web"]);
    next("ended with signal SIGKILL");
    next("is started again in 100ms");
    next("started again");
    lab.lrpns_ok(&["down", "shop"]);
    assert!(follow.wait().unwrap().success());
    // And afterwards, also of one that has ended.
    let text = lab.lrpns_ok(&["events", "shop", "web"]);
    assert!(text.contains("web | started again\n"), "{text}");
    assert!(!text.contains("this is no event"), "{text}");
}

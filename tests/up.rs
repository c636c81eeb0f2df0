//! The main job: `lrpns up` serves the webapp, with the least privilege that works, and `lrpns down` leaves nothing.
#![allow(clippy::unwrap_used)]

mod support;
use support::lab::{LAB, Lab, describe};

#[test]
fn up_detached_returns_when_the_published_port_answers() {
    let lab = Lab::new();
    let up = lab.lrpns(&["up", "-d"]);
    assert!(up.status.success(), "{}", describe(&up));
    assert_eq!(lab.get("http://localhost:5000/").unwrap(), "Hello world!");
    assert_eq!(
        lab.client_get(&format!("http://{LAB}:5000/")).unwrap(),
        "Hello world!"
    );
    lab.lrpns_ok(&["down"]);
    assert!(lab.get("http://localhost:5000/").is_err());
}

//! `plan` and `status` for people: short, narrow, the picture first.
#![allow(clippy::unwrap_used)]

mod support;

use support::lab::{Lab, describe};
use support::look;
use support::user::User;

/// What a screen shows without being scrolled…
const LINES: usize = 40;
/// …and how wide it is at least.
const COLUMNS: usize = 80;

/// Two apps, one of which reaches the other.
const PAIR: &str = r#"
name = "pair"
[app.web]
rootfs = "builtin:webapp"
publish = ["0.0.0.0:8080:8000"]
connect = ["db:5432"]
env = { PORT = "8000" }
[app.db]
rootfs = "builtin:webapp"
limits = { memory = "64M" }
env = { PORT = "5432" }
"#;

fn fits(text: &str) {
    assert!(text.lines().count() <= LINES, "{text}");
    for line in text.lines() {
        assert!(line.chars().count() <= COLUMNS, "{line}\n{text}");
    }
    // The picture comes first: after a line that says what it is of.
    let first: Vec<&str> = text.lines().take(4).collect();
    assert_eq!(first[1], "", "{text}");
    assert!(first[2].contains("+---"), "{text}");
    assert!(first[3].contains("| sidecar"), "{text}");
    // Behind -v.
    assert!(!text.contains("epoll_wait"), "{text}");
    let octets = |word: &str| word.split(':').filter(|two| two.len() == 2).count();
    let mac = text.split_whitespace().find(|word| octets(word) == 6);
    assert_eq!(mac, None, "{text}");
    assert!(!text.contains("67108864"), "{text}");
}

#[test]
fn the_example_is_a_screen_by_dnat_and_by_relay() {
    for (lab, via) in [(Lab::forwarding(), "dnat"), (Lab::new(), "relay")] {
        let plan = lab.lrpns_ok(&["plan", "--demo"]);
        fits(&plan);
        let way = plan.lines().nth(3).unwrap();
        for word in ["anyone -", " 0.0.0.0:5000 ", via, "- 5000 -", "172.18.0.23"] {
            assert!(way.contains(word), "{word}: {plan}");
        }
        lab.lrpns_ok(&["up", "-d", "--demo"]);
        let status = lab.lrpns_ok(&["status"]);
        fits(&status);
        assert_eq!(status.lines().nth(3).unwrap(), way, "{status}");
        assert!(status.contains("| running "), "{status}");
    }
}

#[test]
fn the_example_is_a_screen_without_root() {
    let lab = Lab::new();
    let user = User::new(&lab, 1000);
    if !user.may() {
        return;
    }
    fits(&user.lrpns_ok(&["plan"]));
    user.lrpns_ok(&["up", "-d"]);
    fits(&user.lrpns_ok(&["status"]));
}

#[test]
fn two_apps_that_reach_each_other_are_a_screen() {
    if !look::machine() {
        return;
    }
    let lab = Lab::forwarding();
    let file = lab.write("pair.toml", PAIR);
    let file = file.to_str().unwrap();
    let plan = lab.lrpns_ok(&["plan", "-f", file]);
    fits(&plan);
    let row = |text: &str, words: &[&str]| {
        let found = text
            .lines()
            .any(|line| words.iter().all(|word| line.contains(word)));
        assert!(found, "{words:?}: {text}");
    };
    row(&plan, &["anyone ", " 0.0.0.0:8080 ", "- 8000 ->| "]);
    row(&plan, &[" web --", "->|", "- 5432 ->| "]);
    row(&plan, &["limits", "memory 64M, 512 processes"]);
    // What is true of both is said once.
    assert_eq!(plan.matches("seccomp ").count(), 1, "{plan}");
    lab.lrpns_ok(&["up", "-d", "-f", file]);
    let status = lab.lrpns_ok(&["status", "pair"]);
    fits(&status);
    row(&status, &[" web --", "->|", "- 5432 ->| "]);
}

#[test]
fn the_locale_has_the_characters_of_the_picture_or_it_is_drawn_without() {
    let lab = Lab::new();
    let plan = |locale: &str| {
        let output = lab.lrpns_with(&[("LANG", locale)], &["plan", "--demo"]);
        assert!(output.status.success(), "{}", describe(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(plan("C").is_ascii());
    assert!(plan("de_DE.UTF-8").contains("│ sidecar"));
}

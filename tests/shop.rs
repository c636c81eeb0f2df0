//! The recipe of a whole service, `shop`: web, PostgreSQL, Redis and a job, from its start in order to its end without loss.
#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::chown;

use serde_json::{Value, json};
use support::lab::{LAB, Lab, describe, until};
use support::load::Load;
use support::look::{self, part};
use support::user::User;

const USER: u32 = 4321;
const PORT: &str = "8123";

/// A shop, by root or by an ordinary user.
struct Shop<'a> {
    lab: &'a Lab,
    user: Option<User<'a>>,
    file: String,
    via: &'static str,
}

impl<'a> Shop<'a> {
    fn new(lab: &'a Lab, via: &'static str, rootless: bool) -> Option<Self> {
        let user = rootless.then(|| User::new(lab, USER));
        if user.as_ref().is_some_and(|user| !user.may()) {
            return None;
        }
        let here = lab.dir.path().join("recipe");
        std::fs::create_dir(&here).unwrap();
        // As root the data is another user's: what root owns no app may write.
        let (owner, data) = if rootless { (USER, USER) } else { (0, 1000) };
        chown(&here, Some(owner), Some(owner)).unwrap();
        let file = here.join("lrpns.toml").to_str().unwrap().to_owned();
        let shop = Self {
            lab,
            user,
            file,
            via,
        };
        shop.ok(&["init", "--recipe", "shop", "-o", &shop.file]);
        let here = here.display();
        let owner = format!("{data}:{data}");
        lab.ok(&[
            "sh",
            "-c",
            &format!("cd {here} && mkdir -m 700 db && mkdir cache && chown {owner} db cache"),
        ]);
        Some(shop)
    }

    fn ok(&self, args: &[&str]) -> String {
        match &self.user {
            Some(user) => user.lrpns_ok(args),
            None => self.lab.lrpns_ok(args),
        }
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.ok(&["status", "shop", "--json"])).unwrap()
    }

    /// Brings it up; what that said.
    fn up(&self) -> String {
        let (port, via) = (format!("PORT={PORT}"), format!("VIA={}", self.via));
        let sets = ["PASSWORD=secret", "LISTEN=0.0.0.0", &port, &via];
        let sets = sets.iter().flat_map(|set| ["--set", *set]);
        let args: Vec<&str> = ["up", "-d", "-f", &self.file]
            .into_iter()
            .chain(sets)
            .collect();
        let output = match &self.user {
            Some(user) => user.lrpns(&args),
            None => self.lab.lrpns(&args),
        };
        assert!(output.status.success(), "{}", describe(&output));
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn get(&self) -> Option<String> {
        let answer = self.lab.client_get(&format!("http://{LAB}:{PORT}/")).ok()?;
        answer
            .starts_with("apple|3\npear|4\nvisitor ")
            .then_some(answer)
    }
}

/// Where each of these is said, which must be in this order.
fn assert_in_order(said: &str, words: &[&str]) {
    let places: Vec<Option<usize>> = words.iter().map(|word| said.find(word)).collect();
    assert!(
        places.iter().all(Option::is_some) && places.is_sorted(),
        "{words:?}: {said}"
    );
}

fn lives(via: &'static str, rootless: bool) {
    if !look::machine_with(&["psql", "redis-server"]) {
        return;
    }
    let lab = Lab::forwarding();
    let Some(shop) = Shop::new(&lab, via, rootless) else {
        return;
    };
    // Up in order, with one command.
    let said = shop.up();
    assert_in_order(
        &said,
        &[
            "db is healthy",
            "migrate is done",
            "web is started",
            "shop is up",
        ],
    );
    assert!(shop.get().is_some());

    // Nobody reaches what is not granted, of all pairs.
    let report = match &shop.user {
        Some(user) => user.lrpns(&["audit", "shop", "--json"]),
        None => lab.lrpns(&["audit", "shop", "--json"]),
    };
    let found = look::findings(&report.stdout);
    assert!(
        found.is_empty() && report.status.success(),
        "{via}: {found:#?}"
    );

    // Replaced under load.
    let load = Load::begin(&lab, true, LAB, PORT);
    for _ in 0..2 {
        shop.ok(&["restart", "--rolling", "shop/web"]);
    }
    let came = load.end();
    assert_eq!(came["wrong"], json!([]), "{via}: {came}");
    let status = shop.status();
    assert_eq!(part(&status, "web")["restarts"], 2);
    assert_eq!(part(&status, "db")["restarts"], 0);

    // A kill of each part.
    for name in ["web", "cache", "db", "sidecar", "relay"] {
        let before = part(&shop.status(), name).clone();
        lab.kill("KILL", &before["pid"]);
        until(name, || {
            let now = part(&shop.status(), name).clone();
            let again = now["restarts"].as_u64() > before["restarts"].as_u64();
            (again && now["state"] == "running").then_some(())
        });
        until("it serves again", || shop.get());
        // The page may be of a connection from before: a database that is taken down while it recovers has to recover again.
        until("db is healthy again", || {
            let db = part(&shop.status(), "db").clone();
            (db["health"]["state"] == "healthy").then_some(())
        });
    }

    // Down, and nothing has to be recovered.
    shop.ok(&["down", "shop"]);
    shop.up();
    assert!(shop.get().is_some());
    let log = shop.ok(&["logs", "shop", "--part", "db"]).to_lowercase();
    assert!(log.contains("ready to accept connections"), "{log}");
    for words in [
        "recovery in progress",
        "not properly shut down",
        "crash recovery",
    ] {
        assert!(!log.contains(words), "{via}: {log}");
    }
    shop.ok(&["down", "shop"]);
}

#[test]
fn a_shop_lives_by_dnat() {
    lives("dnat", false);
}

#[test]
fn a_shop_lives_by_relay() {
    lives("relay", false);
}

#[test]
fn a_shop_of_an_ordinary_user_lives() {
    lives("relay", true);
}

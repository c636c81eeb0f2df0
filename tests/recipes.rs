//! Each recipe that `lrpns init` writes: the real server from Debian, used by its real client, attacked by `audit`, stopped,
//! and its data whole afterwards. As root by DNAT and by relay, and as an ordinary user.
#![allow(clippy::unwrap_used)]

mod support;
use std::os::unix::fs::chown;
use std::path::PathBuf;

use support::lab::{LAB, Lab, describe};
use support::look;
use support::user::User;

/// What there is to know of a recipe to use it.
struct Recipe {
    name: &'static str,
    /// The program without which it can't be tried.
    program: &'static str,
    /// A script that makes what the recipe asks for before the first start, in its directory.
    prepare: &'static str,
    /// More flags for `up`.
    sets: &'static [&'static str],
    /// A script that uses it, at `$HOST` and `$PORT`, and what it must print.
    uses: &'static str,
    prints: &'static str,
    /// The same after a stop and another start; empty where nothing is kept.
    finds: &'static str,
}

const PLAIN: Recipe = Recipe {
    name: "",
    program: "",
    prepare: "",
    sets: &[],
    uses: "curl -sS --max-time 9 http://$HOST:$PORT/",
    prints: "",
    finds: "",
};

#[derive(Clone, Copy, PartialEq, Debug)]
enum Way {
    Dnat,
    Relay,
    Rootless,
}

const USER: u32 = 4321;
const PORT: &str = "8123";

/// Uses a recipe in one way.
fn try_one(recipe: &Recipe, way: Way) {
    let lab = Lab::forwarding();
    // The numbers of processes in the lab are then none that an app of many processes has within.
    lab.ok(&["sh", "-c", "echo 20000 > /proc/sys/kernel/ns_last_pid"]);
    let user = (way == Way::Rootless).then(|| User::new(&lab, USER));
    let here = lab.dir.path().join("recipe");
    std::fs::create_dir(&here).unwrap();
    if user.is_some() {
        chown(&here, Some(USER), Some(USER)).unwrap();
    }
    let lrpns = |args: &[&str]| match &user {
        Some(user) => user.lrpns_ok(args),
        None => lab.lrpns_ok(args),
    };
    let file = here.join("lrpns.toml");
    let file = file.to_str().unwrap();
    lrpns(&["init", "--recipe", recipe.name, "-o", file]);
    let program = user
        .as_ref()
        .map_or(support::lab::lrpns().to_owned(), User::program);
    // As root the data is another user's: what root owns no app may write.
    let give = if user.is_some() {
        ""
    } else {
        "[ ! -d data ] || chown 1000:1000 data\n"
    };
    let prepare = format!(
        "set -e; cd {}; LRPNS={program}; HOME={}; export HOME\n{}\n{give}",
        here.display(),
        here.display(),
        recipe.prepare.replace("@GIVE", give.trim_end())
    );
    let run = |script: &str| match &user {
        Some(user) => user.run(&["sh", "-c", script]),
        None => lab.run(&["sh", "-c", script]),
    };
    // Makes keys for the client, for which ssh-keygen wants a user that has a name.
    let by_root = recipe.prepare.contains("ssh-keygen");
    let prepared = if by_root {
        lab.run(&["sh", "-c", &prepare])
    } else {
        run(&prepare)
    };
    if user.is_some() && by_root {
        lab.ok(&["chown", "-R", "4321:4321", here.to_str().unwrap()]);
    }
    assert!(prepared.status.success(), "{}", describe(&prepared));

    let port = format!("PORT={PORT}");
    let via = match way {
        Way::Dnat => "VIA=dnat",
        Way::Relay | Way::Rootless => "VIA=relay",
    };
    let mut up = vec![
        "up",
        "-d",
        "-f",
        file,
        "--set",
        "LISTEN=0.0.0.0",
        "--set",
        &port,
        "--set",
        via,
    ];
    for set in recipe.sets {
        up.extend(["--set", set]);
    }
    let client = |script: &str| {
        let script = format!("cd {}; HOST={LAB}; PORT={PORT}; {script}", here.display());
        let output = lab.client(&["sh", "-c", &script]);
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success() && out.contains(recipe.prints),
            "{} {way:?}: {}",
            recipe.name,
            describe(&output)
        );
    };
    lrpns(&up);
    let report = match &user {
        Some(user) => user.lrpns(&["audit", recipe.name, "--json"]),
        None => lab.lrpns(&["audit", recipe.name, "--json"]),
    };
    let found = look::findings(&report.stdout);
    assert!(
        found.is_empty() && report.status.success(),
        "{} {way:?}: {found:#?}",
        recipe.name
    );
    client(recipe.uses);
    lrpns(&["down", recipe.name]);
    if !recipe.finds.is_empty() {
        lrpns(&up);
        client(recipe.finds);
        let log = lrpns(&["logs", recipe.name, "--part", "app"]).to_lowercase();
        for words in [
            "recovery in progress",
            "not properly shut down",
            "crash recovery",
            "bad file format",
        ] {
            assert!(!log.contains(words), "{} {way:?}: {log}", recipe.name);
        }
        lrpns(&["down", recipe.name]);
    }
}

fn try_it(recipe: &Recipe, ways: &[Way]) {
    if !look::machine_with(&[recipe.program]) {
        return;
    }
    for way in ways {
        try_one(recipe, *way);
    }
}

/// Every way.
const ALL: &[Way] = &[Way::Dnat, Way::Relay, Way::Rootless];

#[test]
fn every_recipe_is_tried_here() {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let tests = std::fs::read_to_string(here.join("tests/recipes.rs")).unwrap();
    for folder in std::fs::read_dir(here.join("rootfs/recipes")).unwrap() {
        let name = folder.unwrap().file_name().into_string().unwrap();
        let own = here.join(format!("tests/{name}.rs")).exists();
        assert!(
            own || tests.contains(&format!("name: \"{name}\"")),
            "nothing tries {name}"
        );
    }
}

macro_rules! recipes {
    ($($test:ident $ways:expr => { $($field:ident: $value:expr),* $(,)? })*) => {
        // One of them gives every field.
        $(#[test]
        #[allow(clippy::needless_update)]
        fn $test() {
            try_it(&Recipe { $($field: $value,)* ..PLAIN }, $ways);
        })*
    };
}

const WWW: &str = "mkdir www; echo 'hello www' > www/index.html; chmod -R a+rX www";

recipes! {
    nginx ALL => { name: "nginx", program: "nginx", prepare: WWW, prints: "hello www" }
    apache ALL => { name: "apache", program: "apache2", prepare: WWW, prints: "hello www" }
    caddy ALL => { name: "caddy", program: "caddy", prepare: WWW, prints: "hello www" }
    haproxy ALL => {
        name: "haproxy", program: "haproxy", prints: "ok",
        uses: "curl -sS --max-time 9 http://$HOST:$PORT/haproxy-alive",
    }
    php_fpm ALL => {
        name: "php-fpm", program: "php-fpm8.2", prints: "php 42",
        prepare: "mkdir www; echo '<?php echo \"php \", 6*7;' > www/index.php; chmod -R a+rX www",
    }
    gunicorn ALL => { name: "gunicorn", program: "gunicorn", prints: "Hello from gunicorn" }
    uvicorn ALL => { name: "uvicorn", program: "uvicorn", prints: "Hello from uvicorn" }
    node ALL => { name: "node", program: "node", prints: "Hello from Node" }
    node_cluster ALL => { name: "node-cluster", program: "node", prints: "Hello from worker" }
    java ALL => {
        name: "java", program: "javac", prints: "Hello from Java",
        prepare: "javac -J-XX:-UsePerfData Server.java",
    }
    go ALL => {
        name: "go", program: "go", prints: "Hello from Go",
        prepare: "CGO_ENABLED=0 GOCACHE=$HOME/.cache go build -o server server.go",
    }
    puma ALL => { name: "puma", program: "puma", prints: "Hello from puma" }
    postgresql ALL => {
        name: "postgresql", program: "psql", sets: &["PASSWORD=secret"],
        prepare: "mkdir -m 700 data",
        uses: "PGPASSWORD=secret psql -h $HOST -p $PORT -U postgres -Atc 'create table t as select 6*7 as kept' -c 'select kept from t'",
        finds: "PGPASSWORD=secret psql -h $HOST -p $PORT -U postgres -Atc 'select kept from t'",
        prints: "42",
    }
    mariadb ALL => {
        name: "mariadb", program: "mariadbd",
        prepare: "mkdir data\n@GIVE\n$LRPNS run -v ./data:/data:rw --rootfs host -- mariadb-install-db --no-defaults --datadir=/data --auth-root-authentication-method=normal --skip-test-db >&2",
        uses: "mariadb -h$HOST -P$PORT -uapp -pchange-me -e 'create database d; create table d.t as select 6*7 as kept; select kept from d.t'",
        finds: "mariadb -h$HOST -P$PORT -uapp -pchange-me -e 'select kept from d.t'",
        prints: "42",
    }
    redis ALL => {
        name: "redis", program: "redis-server", prepare: "mkdir data",
        uses: "redis-cli -h $HOST -p $PORT set a kept; redis-cli -h $HOST -p $PORT get a",
        finds: "redis-cli -h $HOST -p $PORT get a",
        prints: "kept",
    }
    memcached ALL => {
        name: "memcached", program: "memcached", prints: "VALUE a 0 4",
        uses: "printf 'set a 0 0 4\\r\\nkept\\r\\nget a\\r\\nquit\\r\\n' | busybox nc $HOST $PORT",
    }
    mosquitto ALL => {
        name: "mosquitto", program: "mosquitto", prepare: "mkdir data",
        uses: "mosquitto_pub -h $HOST -p $PORT -q 1 -t t -m kept -r; mosquitto_sub -h $HOST -p $PORT -t t -C 1 -W 9",
        finds: "mosquitto_sub -h $HOST -p $PORT -t t -C 1 -W 9",
        prints: "kept",
    }
    dnsmasq ALL => {
        name: "dnsmasq", program: "dnsmasq", prints: "192.0.2.1",
        uses: "dig +short @$HOST -p $PORT alive.lrpns.test; dig +tcp +short @$HOST -p $PORT alive.lrpns.test",
    }
    unbound ALL => {
        name: "unbound", program: "unbound", prints: "192.0.2.1",
        uses: "dig +short @$HOST -p $PORT alive.lrpns.test; dig +tcp +short @$HOST -p $PORT alive.lrpns.test",
    }
    sshd ALL => {
        name: "sshd", program: "sshd",
        prepare: "mkdir data; ssh-keygen -q -t ed25519 -N '' -f key; cat key.pub > authorized_keys; chmod a+r authorized_keys",
        uses: "printf 'put key.pub kept\\nls\\n' | sftp -q -oBatchMode=no -oStrictHostKeyChecking=no -oUserKnownHostsFile=/dev/null -i key -P $PORT app@$HOST",
        finds: "printf 'ls\\n' | sftp -q -oBatchMode=no -oStrictHostKeyChecking=no -oUserKnownHostsFile=/dev/null -i key -P $PORT app@$HOST",
        prints: "kept",
    }
}

#[test]
fn init_lists_recipes_and_writes_all_of_one_or_nothing() {
    if !look::machine() {
        return;
    }
    let lab = Lab::new();
    let listed = lab.lrpns_ok(&["init", "--list"]);
    for name in ["nginx", "postgresql", "redis"] {
        let line = listed.lines().find(|line| line.starts_with(name));
        assert!(line.is_some_and(|line| line.len() > 20), "{listed}");
    }
    let (code, said) = lab.lrpns_err(&["init", "--recipe", "ngnix"]);
    assert_eq!(code, 2, "{said}");
    assert!(
        said.contains("no recipe `ngnix`") && said.contains("hint: one of nginx, "),
        "{said}"
    );
    // Something is in the way of the second file.
    lab.write("nginx.conf", "mine");
    let (code, said) = lab.lrpns_err(&["init", "--recipe", "nginx"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("nginx.conf exists already"), "{said}");
    assert!(!lab.dir.path().join("lrpns.toml").exists());
    let mine = std::fs::read_to_string(lab.dir.path().join("nginx.conf")).unwrap();
    assert_eq!(mine, "mine");
    lab.lrpns_ok(&["init", "-r", "redis"]);
    assert!(lab.dir.path().join("redis.conf").exists());
    assert!(
        lab.lrpns_ok(&["init", "-r", "redis", "-o", "-"])
            .contains("name = \"redis\"")
    );
}

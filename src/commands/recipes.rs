//! The recipes that are compiled in: for each server the least that it needs, with its reason (`rootfs/recipes`).
#![forbid(unsafe_code)]

/// One server.
pub(super) struct Recipe {
    /// What it is asked for by.
    pub(super) name: &'static str,
    /// `lrpns.toml`.
    pub(super) config: &'static str,
    /// What it refers to, beside it: the server's own configuration, or a program to begin with.
    pub(super) files: &'static [(&'static str, &'static str)],
}

impl Recipe {
    /// What it is, in one line: the file's first one.
    pub(super) fn about(&self) -> &'static str {
        let first = self.config.lines().next().unwrap_or_default();
        let text = first.trim_start_matches(['#', ' ']);
        text.split(". ").next().unwrap_or(text)
    }
}

macro_rules! recipes {
    ($($name:literal: $($file:literal)*;)*) => {
        &[$(Recipe {
            name: $name,
            config: include_str!(concat!("../../rootfs/recipes/", $name, "/lrpns.toml")),
            files: &[$(($file, include_str!(concat!("../../rootfs/recipes/", $name, "/", $file)))),*],
        }),*]
    };
}

/// All of them.
pub(super) static RECIPES: &[Recipe] = recipes! {
    "nginx": "nginx.conf";
    "apache": "apache.conf";
    "caddy": "Caddyfile";
    "haproxy": "haproxy.cfg";
    "php-fpm": "nginx.conf" "php-fpm.conf" "start";
    "gunicorn": "app.py";
    "uvicorn": "app.py";
    "node": "server.js";
    "node-cluster": "server.js";
    "java": "Server.java";
    "go": "server.go";
    "puma": "config.ru";
    "postgresql": "start";
    "mariadb": "my.cnf" "users.sql";
    "redis": "redis.conf";
    "memcached":;
    "mosquitto": "mosquitto.conf";
    "dnsmasq": "dnsmasq.conf";
    "unbound": "unbound.conf";
    "shop": "web.py" "start" "redis.conf" "schema.sql";
    "sshd": "authorized_keys" "sshd_config" "start";
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Vars, parse};

    #[test]
    fn every_recipe_is_taken_and_gives_each_key_its_reason() {
        for recipe in RECIPES {
            let vars = Vars {
                set: match recipe.config.contains("${PASSWORD}") {
                    true => vec![("PASSWORD".to_owned(), "x".to_owned())],
                    false => vec![],
                },
                ..Vars::default()
            };
            let config = parse(
                std::path::Path::new("/srv/x/lrpns.toml"),
                recipe.config,
                &vars,
            );
            let config = config.unwrap_or_else(|errors| panic!("{}: {errors}", recipe.name));
            assert_eq!(config.name.as_str(), recipe.name);
            // Published for the host itself unless somebody asks for more, and bounded.
            let app = &config.apps[0];
            assert!(
                app.publish
                    .iter()
                    .all(|publish| publish.address.is_loopback()),
                "{}",
                recipe.name
            );
            let bounded =
                |app: &crate::config::App| app.limits.memory.is_some() && app.limits.pids.is_some();
            assert!(config.apps.iter().all(bounded), "{}", recipe.name);
            let own = |path: &std::path::Path| {
                path.strip_prefix("/srv/x")
                    .ok()
                    .map(std::path::Path::to_owned)
            };
            for (file, _) in recipe.files {
                let source = [".go", ".java"].iter().any(|end| file.ends_with(end));
                let mut volumes = config.apps.iter().flat_map(|app| &app.volumes);
                let mounted =
                    volumes.any(|volume| own(&volume.host).is_some_and(|p| p.as_os_str() == *file));
                assert!(source || mounted, "{}: nothing mounts {file}", recipe.name);
            }
            assert!(
                recipe.about().len() > 10 && recipe.config.starts_with("# "),
                "{}",
                recipe.name
            );
        }
    }

    #[test]
    fn every_folder_is_compiled_in() {
        let folders = concat!(env!("CARGO_MANIFEST_DIR"), "/rootfs/recipes");
        let mut found: Vec<String> = std::fs::read_dir(folders)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        let mut names: Vec<&str> = RECIPES.iter().map(|recipe| recipe.name).collect();
        names.sort_unstable();
        assert_eq!(found, names);
    }
}

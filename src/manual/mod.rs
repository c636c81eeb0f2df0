//! The manual: a page for each topic, in Markdown, compiled in.
//!
//! `markdown` reads a page when lrpns is built, into what [`page`] has; [`screen`] lays it out for a terminal or a pipe,
//! [`man`] writes it as a man page. The same files are what a reader of the repository sees, and `tests/readme.rs` runs what
//! they show.
#![forbid(unsafe_code)]

pub mod man;
#[cfg(test)]
mod markdown;
pub mod page;
pub mod screen;

/// A page of the manual.
#[derive(Debug, Clone, Copy)]
pub struct Topic {
    /// What `lrpns help NAME` takes; no command has this name.
    pub name: &'static str,
    /// What the page is about, in a few words.
    pub about: &'static str,
    /// The page, as the build script left it.
    read: &'static str,
    /// The commands that the page is about: `--help` of each names it.
    pub commands: &'static [&'static str],
}

impl Topic {
    /// What the page says.
    ///
    /// # Errors
    /// What the build script wrote is no page: a mistake there.
    pub fn page(&self) -> Result<Vec<page::Block>, serde_json::Error> {
        serde_json::from_str(self.read)
    }
}

macro_rules! topics {
    ($($name:literal: $about:literal, $commands:expr;)*) => {
        [$(Topic { name: $name, about: $about, read: include_str!(concat!(env!("OUT_DIR"), "/", $name, ".json")), commands: &$commands }),*]
    };
}

/// Every page, in the order in which `lrpns help` lists them.
pub static TOPICS: &[Topic] = &topics! {
    "configuration": "the file lrpns.toml and its keys", ["up", "init", "plan", "run"];
    "commands": "every command, and exit codes", ["ps", "status", "exec", "doctor", "gc", "completions", "man"];
    "publishing": "ports, clients, rates, floods, IPv6", [];
    "egress": "what an app may connect to", [];
    "connect": "apps of a stack that reach each other", [];
    "surroundings": "what an app finds around it, and what that is worth to an attacker", [];
    "own-rules": "nft rules of your own", ["rules"];
    "sealing": "a sidecar without any capability", [];
    "life": "the life of an app: order of start, jobs, health, restarts", [];
    "changes": "changing a stack that runs", ["apply", "restart"];
    "history": "what a stack said, and how it ended", ["logs", "events", "rm"];
    "figures": "what a stack uses and counts, also for Prometheus", ["stats", "metrics", "graph"];
    "traffic": "the traffic log, and captures", ["capture"];
    "diagnosis": "why a client does not get through", ["trace"];
    "service": "as a systemd service", [];
    "rootless": "without root", [];
    "json": "the documents that --json prints", ["audit"];
    "limits": "what lrpns does not do, and what each kernel lacks", [];
    "promises": "every promise, with its tests", [];
};

/// The page with this name.
#[must_use]
pub fn topic(name: &str) -> Option<&'static Topic> {
    TOPICS.iter().find(|topic| topic.name == name)
}

/// The page that is about a command.
#[must_use]
pub fn topic_of(command: &str) -> Option<&'static Topic> {
    TOPICS
        .iter()
        .find(|topic| topic.commands.contains(&command))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_compiled_in_is_what_the_files_say() {
        let names: Vec<String> = TOPICS.iter().map(|topic| topic.name.to_owned()).collect();
        for topic in TOPICS {
            let file = format!(
                "{}/src/manual/{}.md",
                env!("CARGO_MANIFEST_DIR"),
                topic.name
            );
            let text = std::fs::read_to_string(file).unwrap();
            assert_eq!(
                topic.page().unwrap(),
                markdown::parse(&text, &names),
                "{}",
                topic.name
            );
        }
    }

    #[test]
    fn every_page_is_a_topic() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/manual");
        let mut pages: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .filter_map(|entry| {
                let name = entry.unwrap().file_name().into_string().unwrap();
                name.strip_suffix(".md").map(str::to_owned)
            })
            .collect();
        let mut topics: Vec<&str> = TOPICS.iter().map(|topic| topic.name).collect();
        pages.sort();
        topics.sort_unstable();
        assert_eq!(topics, pages);
    }
}

//! An ordinary user in a lab, who runs lrpns without root.

use std::process::{Command, Output};

use serde_json::Value;

use super::lab::{Lab, describe, lrpns};
use super::skip;

/// An ordinary user in a lab.
pub struct User<'a> {
    pub lab: &'a Lab,
    pub uid: u32,
    /// `$XDG_RUNTIME_DIR`.
    pub runtime: Option<String>,
}

impl<'a> User<'a> {
    /// One with a runtime directory, as after a login.
    pub fn new(lab: &'a Lab, uid: u32) -> Self {
        let runtime = format!("/run/lab/{uid}");
        lab.ok(&[
            "install",
            "-d",
            "-m",
            "700",
            "-o",
            &uid.to_string(),
            &runtime,
        ]);
        Self {
            lab,
            uid,
            runtime: Some(runtime),
        }
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let id = self.uid.to_string();
        let runtime = self
            .runtime
            .as_ref()
            .map(|runtime| format!("XDG_RUNTIME_DIR={runtime}"));
        let mut all = vec![
            "setpriv",
            "--reuid",
            &id,
            "--regid",
            &id,
            "--clear-groups",
            "env",
        ];
        all.extend(runtime.as_deref());
        all.extend(args);
        self.lab.command(&all)
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs lrpns, from where this user may execute it.
    pub fn lrpns(&self, args: &[&str]) -> Output {
        self.run(&[&[self.program().as_str()], args].concat())
    }

    pub fn lrpns_ok(&self, args: &[&str]) -> String {
        let output = self.lrpns(args);
        assert!(output.status.success(), "{args:?}: {}", describe(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The target directory may be below a home that nobody else may enter.
    pub fn program(&self) -> String {
        let copy = self.lab.dir.path().join("lrpns");
        if !copy.exists() {
            // Not by this process: a child that another test clones meanwhile would have it open for writing, and then
            // it can't be executed.
            self.lab.ok(&["cp", lrpns(), copy.to_str().unwrap()]);
        }
        copy.to_str().unwrap().to_owned()
    }

    pub fn up(&self, file: &str) {
        let path = self.lab.write("rootless.toml", file);
        self.lrpns_ok(&["up", "-d", "-f", path.to_str().unwrap()]);
    }

    pub fn status(&self, stack: &str) -> Value {
        serde_json::from_str(&self.lrpns_ok(&["status", stack, "--json"])).unwrap()
    }

    /// The user's processes.
    pub fn processes(&self) -> Vec<String> {
        let list = self
            .lab
            .run(&["ps", "-u", &self.uid.to_string(), "-o", "args="]);
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        list.lines()
            // What has ended, and the lab's first process has not got round to.
            .filter(|line| !line.contains("<defunct>"))
            .map(str::to_owned)
            .collect()
    }

    /// Whether one may have user namespaces here at all; if not, the test is skipped.
    pub fn may(&self) -> bool {
        let made = self.run(&["unshare", "--user", "--net", "true"]);
        if !made.status.success() {
            skip("userns", "an ordinary user can't make a user namespace");
        }
        made.status.success()
    }
}

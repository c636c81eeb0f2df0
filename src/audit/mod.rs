//! `lrpns audit`: attacks a running stack from inside and from outside, and says what was refused.
//!
//! # Theory of operation
//!
//! A [`Probe`] is one claim of the design, tried out: the [`catalogue`] has them all, with what each tries, why it
//! matters and what is expected. What happened is a [`Finding`]; a probe of which nothing was heard is `unknown`, so
//! nothing passes by being forgotten. A stack passes when every probe passed or has no object here.
//!
//! - From inside the app: the app's pid 1 starts our own program as `lrpns probe` by the very function that started
//!   the command ([`crate::stage::app`]): same clone, same privileges, same filters, same descriptors. What it answers
//!   is what the app could do. Each probe runs in a child of the prober that is thrown away ([`agent`]).
//! - Beside it: a child of ours joins all of the app's namespaces and drops as the app did, but is not in its Landlock
//!   domain. By it the rules are asked, which a connection from the domain never meets; and it is the control of what
//!   Landlock refuses ([`domain`]).
//! - From inside the sidecar: a child of ours joins all of its namespaces and drops by the same function as the
//!   sidecar did, to what the sidecar was read back to hold.
//! - From outside ([`outside`]): what the kernel tells of the real processes in `/proc`, what is in force in each
//!   network namespace, compared with what the kernel makes of the plan in an empty one ([`crate::firewall::list`]).
//! - Compared as a whole ([`probes`]): processes, descriptors, limits, files of the stack, all that there is in a network
//!   namespace. What the plan does not have is unexpected, and fails.
//! - Over the network ([`network`]): from the app, from the sidecar, from the host's end of the uplink and from the app
//!   of a scratch stack. Who waits for an answer that must not come waits long; so the counters of the rules are read
//!   before and after each packet: the one that has grown has eaten it.
//!
//! No packet leaves the machine: addresses that would be foreign are those of documentation (RFC 5737), every packet
//! has a time to live of 2 at most, and forged ones are sent on the stack's own uplink only, by index.
//!
//! # The grade of a group
//!
//! By the share of its probes, without those that have no object, that did not pass: none is A, or B when something is
//! unknown; one fail makes it C, more than a quarter D, more than half E, all F.
//!
//! # `--json`
//!
//! One object; fields may be added, none changes its meaning. See `schema.json` next to this file.
//!
//! `--sarif` is SARIF 2.1.0: a rule for each probe, a result for each that failed (`error`) or is unknown (`warning`).
#![forbid(unsafe_code)]

pub mod agent;
pub mod catalogue;
pub mod domain;
mod dump;
pub mod inside;
mod links;
pub mod network;
pub mod outside;
pub mod planned;
pub mod probes;
pub mod report;
pub mod route;
pub mod sarif;
mod survey;
pub mod target;

use serde::{Deserialize, Serialize};

pub use catalogue::{CATALOGUE, Probe};

/// What a probe attacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// What the processes hold.
    Capabilities,
    /// What they share with nobody.
    Namespaces,
    /// Mounts, and the ways out of a root.
    Mounts,
    /// System calls that no server needs.
    Syscalls,
    /// What an app or the sidecar can reach.
    NetworkOut,
    /// What reaches them.
    NetworkIn,
    /// What can be written, executed, seen.
    Files,
    /// Other processes.
    Process,
    /// How much of the machine.
    Resources,
    /// What gets in that should not.
    Leaks,
    /// What the stack's processes are on the host, and what who takes the supervisor over reaches there.
    Host,
}

impl Group {
    /// All of them, in the order of the report.
    pub const ALL: [Self; 11] = [
        Self::Capabilities,
        Self::Namespaces,
        Self::Mounts,
        Self::Syscalls,
        Self::NetworkOut,
        Self::NetworkIn,
        Self::Files,
        Self::Process,
        Self::Resources,
        Self::Leaks,
        Self::Host,
    ];

    /// Its name, as in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Capabilities => "capabilities",
            Self::Namespaces => "namespaces",
            Self::Mounts => "mounts",
            Self::Syscalls => "syscalls",
            Self::NetworkOut => "network-out",
            Self::NetworkIn => "network-in",
            Self::Files => "files",
            Self::Process => "process",
            Self::Resources => "resources",
            Self::Leaks => "leaks",
            Self::Host => "host",
        }
    }
}

/// How a probe ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// What was tried was refused, or what was looked at is as it must be.
    Pass,
    /// It was not.
    Fail,
    /// It could not be tried, or there is no telling how it went.
    Unknown,
    /// What it is about is not there.
    NotApplicable,
}

/// A verdict with its evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// How it ended.
    pub verdict: Verdict,
    /// What happened: an errno, a counter, a value.
    pub happened: String,
}

impl Outcome {
    /// It passed.
    pub fn pass(happened: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Pass,
            happened: happened.into(),
        }
    }

    /// It failed.
    pub fn fail(happened: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Fail,
            happened: happened.into(),
        }
    }

    /// It could not be found out.
    pub fn unknown(why: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Unknown,
            happened: why.into(),
        }
    }

    /// It has no object.
    pub fn not_applicable(why: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::NotApplicable,
            happened: why.into(),
        }
    }

    /// Pass when `good`, with the same evidence either way.
    pub fn check(good: bool, happened: impl Into<String>) -> Self {
        if good {
            Self::pass(happened)
        } else {
            Self::fail(happened)
        }
    }
}

/// One probe's outcome for one part.
#[derive(Debug, Clone)]
pub struct Finding {
    /// The probe.
    pub probe: &'static Probe,
    /// Whose: a part's name, or `host`.
    pub part: String,
    /// How it went.
    pub outcome: Outcome,
}

/// Every finding about one stack.
#[derive(Debug)]
pub struct Report {
    /// The stack.
    pub stack: String,
    /// In the catalogue's order.
    pub findings: Vec<Finding>,
    /// How long it took, in milliseconds.
    pub milliseconds: u64,
}

/// How many findings are of each verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub struct Counts {
    /// Passed.
    pub pass: usize,
    /// Failed.
    pub fail: usize,
    /// Unknown.
    pub unknown: usize,
    /// Without an object.
    pub not_applicable: usize,
}

impl Counts {
    /// Counts.
    pub fn of<'a>(findings: impl IntoIterator<Item = &'a Finding>) -> Self {
        let mut counts = Self::default();
        for finding in findings {
            match finding.outcome.verdict {
                Verdict::Pass => counts.pass += 1,
                Verdict::Fail => counts.fail += 1,
                Verdict::Unknown => counts.unknown += 1,
                Verdict::NotApplicable => counts.not_applicable += 1,
            }
        }
        counts
    }

    /// The grade; `-` when nothing was applicable. The rule is in the module's documentation.
    #[must_use]
    pub fn grade(self) -> char {
        let all = self.pass + self.fail + self.unknown;
        match self.fail {
            0 if all == 0 => '-',
            0 if self.unknown == 0 => 'A',
            0 => 'B',
            fail if fail == all => 'F',
            fail if fail * 2 > all => 'E',
            fail if fail * 4 > all => 'D',
            _ => 'C',
        }
    }
}

impl Report {
    /// Completes `findings`: what was not heard of is unknown; the catalogue's order.
    #[must_use]
    pub fn new(stack: String, mut findings: Vec<Finding>, milliseconds: u64) -> Self {
        for probe in CATALOGUE {
            if !findings.iter().any(|finding| finding.probe.id == probe.id) {
                findings.push(Finding {
                    probe,
                    part: stack.clone(),
                    outcome: Outcome::unknown("it was not run"),
                });
            }
        }
        let place = |finding: &Finding| CATALOGUE.iter().position(|p| p.id == finding.probe.id);
        findings.sort_by_key(place);
        Self {
            stack,
            findings,
            milliseconds,
        }
    }

    /// The counts over all groups.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts::of(&self.findings)
    }

    /// The findings of one group.
    pub fn group(&self, group: Group) -> impl Iterator<Item = &Finding> {
        self.findings
            .iter()
            .filter(move |finding| finding.probe.group == group)
    }

    /// Whether everything that was claimed has been proved.
    #[must_use]
    pub fn passed(&self) -> bool {
        let counts = self.counts();
        counts.fail == 0 && counts.unknown == 0
    }

    /// The verdict in one word: a claim that is not proved is not a pass.
    #[must_use]
    pub fn verdict(&self) -> &'static str {
        let counts = self.counts();
        match (counts.fail, counts.unknown) {
            (0, 0) => "pass",
            (0, _) => "not proved",
            _ => "fail",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(index: usize, verdict: Verdict) -> Finding {
        Finding {
            probe: &CATALOGUE[index],
            part: "app".into(),
            outcome: Outcome {
                verdict,
                happened: String::new(),
            },
        }
    }

    #[test]
    fn every_probe_has_an_id_of_its_own_and_all_its_words() {
        for (i, probe) in CATALOGUE.iter().enumerate() {
            assert!(
                CATALOGUE[..i].iter().all(|other| other.id != probe.id),
                "{}",
                probe.id
            );
            assert!(
                probe
                    .id
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            );
            for text in [probe.title, probe.why, probe.expected] {
                assert!(!text.is_empty(), "{}", probe.id);
            }
        }
        assert!(CATALOGUE.len() >= 75, "{}", CATALOGUE.len());
        for group in Group::ALL {
            assert!(
                CATALOGUE.iter().any(|probe| probe.group == group),
                "{group:?}"
            );
        }
    }

    #[test]
    fn what_was_not_heard_of_is_unknown_and_no_pass() {
        let report = Report::new("web".into(), vec![finding(0, Verdict::Pass)], 1);
        assert_eq!(report.counts().pass, 1);
        assert_eq!(report.counts().unknown, CATALOGUE.len() - 1);
        assert_eq!(report.verdict(), "not proved");
        assert!(!report.passed());
    }

    #[test]
    fn a_grade_falls_with_the_share_of_fails_and_unknown_is_no_a() {
        let grade = |pass, fail, unknown| {
            Counts {
                pass,
                fail,
                unknown,
                not_applicable: 3,
            }
            .grade()
        };
        assert_eq!(grade(9, 0, 0), 'A');
        assert_eq!(grade(9, 0, 1), 'B');
        assert_eq!(grade(9, 1, 0), 'C');
        assert_eq!(grade(2, 1, 0), 'D');
        assert_eq!(grade(1, 2, 0), 'E');
        assert_eq!(grade(0, 2, 0), 'F');
        assert_eq!(grade(0, 0, 0), '-');
    }
}

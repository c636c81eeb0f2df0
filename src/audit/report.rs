//! The report for people, and as JSON.

use std::fmt::Write;

use serde::Serialize;

use super::{Counts, Group, Report, Verdict};

/// The version of the JSON form.
const VERSION: u32 = 1;

#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    stack: &'a str,
    verdict: &'a str,
    milliseconds: u64,
    counts: Counts,
    groups: Vec<GroupDocument<'a>>,
}

#[derive(Serialize)]
struct GroupDocument<'a> {
    name: &'a str,
    grade: String,
    counts: Counts,
    probes: Vec<ProbeDocument<'a>>,
}

#[derive(Serialize)]
struct ProbeDocument<'a> {
    id: &'a str,
    part: &'a str,
    title: &'a str,
    why: &'a str,
    expected: &'a str,
    result: Verdict,
    happened: &'a str,
}

/// The report as one JSON object; `schema.json` next to this file describes it.
#[must_use]
pub fn json(report: &Report) -> impl Serialize + '_ {
    Document {
        version: VERSION,
        stack: &report.stack,
        verdict: report.verdict(),
        milliseconds: report.milliseconds,
        counts: report.counts(),
        groups: Group::ALL
            .into_iter()
            .map(|group| {
                let counts = Counts::of(report.group(group));
                GroupDocument {
                    name: group.name(),
                    grade: counts.grade().to_string(),
                    counts,
                    probes: report
                        .group(group)
                        .map(|finding| ProbeDocument {
                            id: finding.probe.id,
                            part: &finding.part,
                            title: finding.probe.title,
                            why: finding.probe.why,
                            expected: finding.probe.expected,
                            result: finding.outcome.verdict,
                            happened: &finding.outcome.happened,
                        })
                        .collect(),
                }
            })
            .collect(),
    }
}

/// The report for people: a line per group, every probe that did not pass in full, the verdict last. With `all`, a line
/// for each probe.
#[must_use]
pub fn human(report: &Report, all: bool) -> String {
    let good = anstyle::AnsiColor::Green.on_default();
    let bad = anstyle::AnsiColor::Red.on_default().bold();
    let unsure = anstyle::AnsiColor::Yellow.on_default();
    let dim = anstyle::Style::new().dimmed();
    let style = |verdict| match verdict {
        Verdict::Pass => good,
        Verdict::Fail => bad,
        Verdict::Unknown => unsure,
        Verdict::NotApplicable => dim,
    };
    let word = |verdict| match verdict {
        Verdict::Pass => "pass",
        Verdict::Fail => "FAIL",
        Verdict::Unknown => "unknown",
        Verdict::NotApplicable => "n/a",
    };
    // Writing to a String can't fail.
    let mut text = String::new();
    let _ = writeln!(text, "  GROUP         GRADE  PASS  FAIL  UNKNOWN  N/A");
    for group in Group::ALL {
        let counts = Counts::of(report.group(group));
        let style = style(match (counts.fail, counts.unknown) {
            (0, 0) => Verdict::Pass,
            (0, _) => Verdict::Unknown,
            _ => Verdict::Fail,
        });
        let _ = writeln!(
            text,
            "  {:<13} {style}{:<5}{style:#}  {:>4}  {:>4}  {:>7}  {:>3}",
            group.name(),
            counts.grade(),
            counts.pass,
            counts.fail,
            counts.unknown,
            counts.not_applicable
        );
    }
    for finding in &report.findings {
        let (probe, outcome) = (finding.probe, &finding.outcome);
        let style = style(outcome.verdict);
        match outcome.verdict {
            Verdict::Fail | Verdict::Unknown => {
                let _ = writeln!(
                    text,
                    "\n{style}{}{style:#} {} ({}): {}\n  why       {}\n  expected  {}\n  happened  {}",
                    word(outcome.verdict),
                    probe.id,
                    finding.part,
                    probe.title,
                    probe.why,
                    probe.expected,
                    printable(&outcome.happened)
                );
            }
            _ if all => {
                let _ = writeln!(
                    text,
                    "{style}{:<7}{style:#} {} ({}): {}",
                    word(outcome.verdict),
                    probe.id,
                    finding.part,
                    printable(&outcome.happened)
                );
            }
            Verdict::NotApplicable => {
                let _ = writeln!(
                    text,
                    "{dim}not applicable: {} ({}): {}{dim:#}",
                    probe.id,
                    finding.part,
                    printable(&outcome.happened)
                );
            }
            Verdict::Pass => {}
        }
    }
    let counts = report.counts();
    let verdict = match report.verdict() {
        "pass" => Verdict::Pass,
        "fail" => Verdict::Fail,
        _ => Verdict::Unknown,
    };
    let style = style(verdict);
    let _ = writeln!(
        text,
        "\n{}: {style}{}{style:#}: {} passed, {} failed, {} unknown, {} not applicable, in {} ms",
        report.stack,
        report.verdict(),
        counts.pass,
        counts.fail,
        counts.unknown,
        counts.not_applicable,
        report.milliseconds
    );
    text
}

/// What a part has said may reach a terminal as text only.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

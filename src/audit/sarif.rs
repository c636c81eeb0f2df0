//! SARIF 2.1.0 (OASIS): a rule for each probe, a result for each that failed or is unknown.

use serde_json::{Value, json};

use super::{CATALOGUE, Report, Verdict};

/// The report as a SARIF log of one run.
#[must_use]
pub fn sarif(report: &Report) -> Value {
    let rules: Vec<Value> = CATALOGUE
        .iter()
        .map(|probe| {
            json!({
                "id": probe.id,
                "shortDescription": { "text": probe.title },
                "fullDescription": { "text": format!("{}. Expected: {}.", probe.why, probe.expected) },
                "defaultConfiguration": { "level": "error" },
                "properties": { "tags": ["security", probe.group.name()] },
            })
        })
        .collect();
    let results: Vec<Value> = report
        .findings
        .iter()
        .filter_map(|finding| {
            let level = match finding.outcome.verdict {
                Verdict::Fail => "error",
                Verdict::Unknown => "warning",
                Verdict::Pass | Verdict::NotApplicable => return None,
            };
            let probe = finding.probe;
            Some(json!({
                "ruleId": probe.id,
                "ruleIndex": CATALOGUE.iter().position(|other| other.id == probe.id),
                "level": level,
                "message": {
                    "text": format!("{} ({}): {}. Expected: {}.", probe.title, finding.part, finding.outcome.happened, probe.expected),
                },
                "locations": [{
                    "logicalLocations": [{
                        "name": finding.part,
                        "fullyQualifiedName": format!("{}/{}", report.stack, finding.part),
                        "kind": "module",
                    }],
                }],
                "partialFingerprints": { "probe/v1": format!("{}/{}/{}", report.stack, finding.part, probe.id) },
            }))
        })
        .collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {
                "driver": {
                    "name": "lrpns audit",
                    "semanticVersion": env!("CARGO_PKG_VERSION"),
                    "rules": rules,
                },
            },
            "invocations": [{ "executionSuccessful": true }],
            "results": results,
            "columnKind": "unicodeCodePoints",
        }],
    })
}

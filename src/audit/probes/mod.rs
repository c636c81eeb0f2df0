//! Probes that list everything of a kind and compare the whole with the plan: what the plan does not have is unexpected, and
//! fails. Each is a value with its attack ([`super::catalogue::Side::Look`]).

pub mod ceilings;
pub mod descriptors;
pub mod host;
pub mod members;
pub mod network;
pub mod state;

use super::Outcome;
use super::agent::Agent;
use super::target::Target;
use crate::plan::{AppPlan, Plan};

/// What such a probe looks at.
pub struct Scene<'a> {
    /// The stack.
    pub target: &'a Target,
    /// Every process of the machine, as far as the audit may look.
    pub processes: members::Processes,
    /// In the user namespace of each part, by the part's name.
    pub inside: Vec<(&'a str, &'a Result<Agent, String>)>,
    /// What there is in each network namespace.
    pub networks: Vec<network::Surveyed<'a>>,
}

/// What it found: of which part, and how it went.
pub type Found = Vec<(String, Outcome)>;

impl Scene<'_> {
    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.target.status.plan
    }

    /// The app of that name.
    fn app(&self, name: &str) -> Option<&AppPlan> {
        self.plan().app_named(name)
    }
}

/// Fails with all that is wrong, of which the first few are said.
fn nothing_of(wrong: &[String], otherwise: impl Into<String>) -> Outcome {
    const SAID: usize = 8;
    match wrong {
        [] => Outcome::pass(otherwise),
        _ => {
            let more = match wrong.len().saturating_sub(SAID) {
                0 => String::new(),
                more => format!("; and {more} more"),
            };
            let said = &wrong[..wrong.len().min(SAID)];
            Outcome::fail(format!("{}{more}", said.join("; ")))
        }
    }
}

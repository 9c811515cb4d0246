//! An independent check of assignments and plans: the oracle of tests, scenarios and fuzzing.
//!
//! Shares no code with the planner but the types: what gateways and policies mean, what a selector matches, what a range
//! contains is written here a second time, as slowly and plainly as can be.

mod assignment;
mod plan;
mod world;

pub use assignment::verify_assignment;
pub use plan::verify_node_plan;

use alloc::string::String;
use core::fmt;

/// Something a plan must not be, with the requirement it breaks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// The requirement, `E12`.
    pub rule: &'static str,
    /// What was found.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.message)
    }
}

fn violation(rule: &'static str, message: String) -> Violation {
    Violation { rule, message }
}

#[cfg(test)]
mod tests;

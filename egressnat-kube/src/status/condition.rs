//! Conditions: what is true of an object, since when, and as of which generation of it.

use serde_json::{Value, json};

/// A condition that should be there, without the time since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    /// One of the types of [`reason`](super::reason).
    pub(crate) kind: &'static str,
    pub(crate) is_true: bool,
    /// One of the reasons of [`reason`](super::reason), or a finding's.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// The API's limit, in bytes as in characters.
const MESSAGE_AT_MOST: usize = 4096;

impl Condition {
    pub(crate) fn new(
        kind: &'static str,
        is_true: bool,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        let mut message = message.into();
        if message.len() > MESSAGE_AT_MOST {
            let mut end = MESSAGE_AT_MOST;
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
        }
        Self {
            kind,
            is_true,
            reason,
            message,
        }
    }

    fn status(&self) -> &'static str {
        if self.is_true { "True" } else { "False" }
    }

    /// Whether `told` says this of the object's generation, since whenever.
    fn is_told_by(&self, told: &Value, generation: i64) -> bool {
        told["status"] == self.status()
            && told["reason"] == self.reason
            && told["message"] == self.message
            && told["observedGeneration"] == generation
            && told["lastTransitionTime"].is_string()
    }
}

fn told<'a>(known: &'a Value, kind: &str) -> Option<&'a Value> {
    known
        .as_array()?
        .iter()
        .find(|condition| condition["type"] == kind)
}

/// Whether the conditions that an object has say what they should. `ours` are all types that we ever write: one of those that
/// should not be there is wrong; those of others are not ours to judge.
pub(crate) fn conditions_are(
    known: &Value,
    wanted: &[Condition],
    ours: &[&str],
    generation: i64,
) -> bool {
    ours.iter().all(|kind| {
        let want = wanted.iter().find(|condition| condition.kind == *kind);
        match (want, told(known, kind)) {
            (None, None) => true,
            (Some(want), Some(told)) => want.is_told_by(told, generation),
            _ => false,
        }
    })
}

/// The conditions as they are written. Each keeps the time at which its status became what it is; `now` is for those that
/// change.
pub(crate) fn merged(known: &Value, wanted: &[Condition], generation: i64, now: &str) -> Value {
    let document = |condition: &Condition| {
        let since = told(known, condition.kind)
            .filter(|told| told["status"] == condition.status())
            .and_then(|told| told["lastTransitionTime"].as_str())
            .unwrap_or(now);
        json!({
            "type": condition.kind,
            "status": condition.status(),
            "reason": condition.reason,
            "message": condition.message,
            "observedGeneration": generation,
            "lastTransitionTime": since,
        })
    };
    wanted.iter().map(document).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: [&str; 2] = ["Accepted", "Overlapped"];

    fn accepted(is_true: bool, message: &str) -> Condition {
        Condition::new("Accepted", is_true, "Accepted", message)
    }

    #[test]
    fn a_condition_keeps_its_time_until_its_status_changes() {
        let first = merged(&Value::Null, &[accepted(true, "a")], 1, "10:00");
        assert_eq!(first[0]["lastTransitionTime"], "10:00");
        let second = merged(&first, &[accepted(true, "b")], 2, "11:00");
        assert_eq!(second[0]["lastTransitionTime"], "10:00", "another message");
        assert_eq!(second[0]["observedGeneration"], 2);
        let third = merged(&second, &[accepted(false, "b")], 2, "12:00");
        assert_eq!(third[0]["lastTransitionTime"], "12:00");
    }

    #[test]
    fn what_is_told_is_compared_by_all_but_the_time() {
        let known = merged(&Value::Null, &[accepted(true, "a")], 1, "10:00");
        let is = |known: &Value, wanted: &[Condition], generation| {
            conditions_are(known, wanted, &OURS, generation)
        };
        assert!(is(&known, &[accepted(true, "a")], 1));
        assert!(!is(&known, &[accepted(true, "a")], 2), "generation");
        assert!(!is(&known, &[accepted(true, "b")], 1), "message");
        assert!(!is(&known, &[accepted(false, "a")], 1), "status");
        assert!(!is(&known, &[], 1), "one too many");
        assert!(!is(&Value::Null, &[accepted(true, "a")], 1), "one too few");
        let mut forged = known.clone();
        forged[0]["reason"] = json!("Forged");
        assert!(!is(&forged, &[accepted(true, "a")], 1), "reason");
    }

    #[test]
    fn conditions_of_others_are_left_alone() {
        let mut known = merged(&Value::Null, &[accepted(true, "a")], 1, "10:00");
        let theirs = json!({"type": "example.com/Audited", "status": "True"});
        known.as_array_mut().unwrap().push(theirs);
        assert!(conditions_are(&known, &[accepted(true, "a")], &OURS, 1));
    }

    #[test]
    fn a_message_is_cut_where_the_api_would_refuse_it() {
        let long = accepted(true, &"é".repeat(4000)).message;
        assert!(long.len() <= MESSAGE_AT_MOST && long.len() > MESSAGE_AT_MOST - 4);
    }
}

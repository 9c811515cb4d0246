//! What is refused, and what the user is told: the field, and what to write instead.

mod gateway;
mod policy;
mod selector;

use egressnat_kube::{Object, validate};
use serde_json::Value;

use crate::server::shared;

/// Who refuses a manifest.
#[derive(Clone, Copy, PartialEq)]
enum Door {
    /// The API server, and `validate` for those who have none.
    Both,
    /// The API server alone: the object would mean something, but hardly what was meant.
    ApiServer,
}

/// A good manifest, what is done to it, and a line of the answer: this field, this fix.
struct Case {
    good: fn() -> Value,
    change: fn(&mut Value),
    field: &'static str,
    fix: &'static str,
    door: Door,
}

const fn both(
    good: fn() -> Value,
    change: fn(&mut Value),
    field: &'static str,
    fix: &'static str,
) -> Case {
    Case {
        good,
        change,
        field,
        fix,
        door: Door::Both,
    }
}

const fn api_server(
    good: fn() -> Value,
    change: fn(&mut Value),
    field: &'static str,
    fix: &'static str,
) -> Case {
    Case {
        door: Door::ApiServer,
        ..both(good, change, field, fix)
    }
}

/// Tries all cases and tells every one that is answered otherwise.
fn assert_refused(cases: &[Case]) {
    let mut wrong = Vec::new();
    for case in cases {
        let mut object = (case.good)();
        assert!(is_valid(&object), "{object}");
        (case.change)(&mut object);
        if is_valid(&object) != (case.door == Door::ApiServer) {
            wrong.push(format!("validate judges it otherwise: {object}"));
        }
        let told = shared().apply(&object.to_string());
        let names_field = |line: &str| {
            line.contains(&format!("{}: ", case.field))
                || line.contains(&format!("unknown field \"{}\"", case.field))
        };
        let is_told = told
            .stderr
            .lines()
            .any(|line| names_field(line) && line.contains(case.fix));
        if told.is_success || !is_told {
            let answer = format!("{}{}", told.stdout, told.stderr);
            let want = (case.field, case.fix);
            wrong.push(format!("{object}\n  want {want:?}\n  told {answer}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn is_valid(object: &Value) -> bool {
    Object::from_value(object.clone()).is_ok_and(|object| validate(&object).is_ok())
}

/// Removes a field.
fn remove(value: &mut Value, field: &str) {
    assert!(value.as_object_mut().unwrap().remove(field).is_some());
}

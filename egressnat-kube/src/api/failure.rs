//! What went wrong, in the port's words.

use std::error::Error;

use crate::object::ObjectKey;
use crate::store::StoreError;

/// No answer, or none that says anything about the request.
pub(super) fn unreachable(
    operation: String,
    source: impl Into<Box<dyn Error + Send + Sync>>,
) -> StoreError {
    StoreError::Unreachable {
        operation,
        source: source.into(),
    }
}

/// An answer that will be the same the next time.
pub(super) fn refused(operation: String, message: &dyn std::fmt::Display) -> StoreError {
    StoreError::Refused {
        operation,
        message: message.to_string(),
    }
}

/// What a failed request for one object means.
pub(super) fn of_key(operation: String, key: &ObjectKey, error: kube::Error) -> StoreError {
    let kube::Error::Api(status) = error else {
        return unreachable(operation, error);
    };
    match (status.code, status.reason.as_str()) {
        (409, "AlreadyExists") => StoreError::Exists(key.clone()),
        (409, _) => StoreError::Conflict(key.clone()),
        (404, _) => StoreError::NotFound(key.clone()),
        // The credentials may be renewed meanwhile, as those of a pod are.
        (401 | 429 | 500.., _) => unreachable(operation, status.message),
        _ => refused(operation, &status.message),
    }
}

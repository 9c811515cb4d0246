use std::future::Future;

use super::Pulse;
use crate::store::{Asked, Layer, ObjectStore, StoreError};

/// A store by whose answers a loop is seen to go on: a turn of many slow writes is no loop that hangs.
#[derive(Clone)]
pub(crate) struct Observed<S> {
    pub(crate) store: S,
    pub(crate) pulse: Pulse,
}

impl<S: ObjectStore> Layer for Observed<S> {
    type Inner = S;

    fn inner(&self) -> &S {
        &self.store
    }

    async fn around<T: Send>(
        &self,
        _: Asked<'_>,
        answer: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        let answer = answer.await;
        self.pulse.turned();
        answer
    }
}

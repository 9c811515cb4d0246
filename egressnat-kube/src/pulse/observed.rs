use super::Pulse;
use crate::field_manager::{FieldManager, StatusApplied};
use crate::object::{Object, ObjectKey};
use crate::store::{ObjectStore, StoreError, Watch, WatchRequest};

/// A store by whose answers a loop is seen to go on: a turn of many slow writes is no loop that hangs.
#[derive(Clone)]
pub(crate) struct Observed<S> {
    pub(crate) store: S,
    pub(crate) pulse: Pulse,
}

impl<S: ObjectStore> ObjectStore for Observed<S> {
    fn watch(&self, request: &WatchRequest) -> Result<Watch, StoreError> {
        self.store.watch(request)
    }

    async fn read(&self, key: &ObjectKey) -> Result<Option<Object>, StoreError> {
        let answer = self.store.read(key).await;
        self.pulse.turned();
        answer
    }

    async fn create(&self, object: Object) -> Result<Object, StoreError> {
        let answer = self.store.create(object).await;
        self.pulse.turned();
        answer
    }

    async fn update(&self, object: Object) -> Result<Object, StoreError> {
        let answer = self.store.update(object).await;
        self.pulse.turned();
        answer
    }

    async fn update_status(&self, object: Object) -> Result<Object, StoreError> {
        let answer = self.store.update_status(object).await;
        self.pulse.turned();
        answer
    }

    async fn apply_status(
        &self,
        object: Object,
        manager: FieldManager,
    ) -> Result<StatusApplied, StoreError> {
        let answer = self.store.apply_status(object, manager).await;
        self.pulse.turned();
        answer
    }

    async fn remove(&self, key: &ObjectKey) -> Result<bool, StoreError> {
        let answer = self.store.remove(key).await;
        self.pulse.turned();
        answer
    }
}

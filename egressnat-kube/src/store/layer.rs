//! A store around another one: it does something at each request, and leaves the rest to the inner one.

use std::future::Future;

use super::{ObjectStore, StoreError, Watch, WatchRequest};
use crate::field_manager::{FieldManager, StatusApplied};
use crate::object::{Object, ObjectKey};

/// What is asked of a store.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Asked<'a> {
    /// An object.
    Read,
    /// That this object is made, changed or removed.
    Write(&'a ObjectKey),
}

/// A store that is another one, but for what it does around requests. It is an [`ObjectStore`] by that.
pub(crate) trait Layer: Clone + Send + Sync + 'static {
    type Inner: ObjectStore;

    fn inner(&self) -> &Self::Inner;

    /// A watch: the inner one's.
    fn start_watch(&self, request: &WatchRequest) -> Result<Watch, StoreError> {
        self.inner().watch(request)
    }

    /// What is done around a request, which is `answer` if it is awaited.
    fn around<T: Send>(
        &self,
        asked: Asked<'_>,
        answer: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> impl Future<Output = Result<T, StoreError>> + Send {
        let _ = asked;
        answer
    }
}

impl<L: Layer> ObjectStore for L {
    fn watch(&self, request: &WatchRequest) -> Result<Watch, StoreError> {
        self.start_watch(request)
    }

    async fn read(&self, key: &ObjectKey) -> Result<Option<Object>, StoreError> {
        self.around(Asked::Read, self.inner().read(key)).await
    }

    async fn create(&self, object: Object) -> Result<Object, StoreError> {
        let key = object.key().clone();
        let answer = self.inner().create(object);
        self.around(Asked::Write(&key), answer).await
    }

    async fn update(&self, object: Object) -> Result<Object, StoreError> {
        let key = object.key().clone();
        let answer = self.inner().update(object);
        self.around(Asked::Write(&key), answer).await
    }

    async fn update_status(&self, object: Object) -> Result<Object, StoreError> {
        let key = object.key().clone();
        let answer = self.inner().update_status(object);
        self.around(Asked::Write(&key), answer).await
    }

    async fn apply_status(
        &self,
        object: Object,
        manager: FieldManager,
    ) -> Result<StatusApplied, StoreError> {
        let key = object.key().clone();
        let answer = self.inner().apply_status(object, manager);
        self.around(Asked::Write(&key), answer).await
    }

    async fn remove(&self, key: &ObjectKey) -> Result<bool, StoreError> {
        let answer = self.inner().remove(key);
        self.around(Asked::Write(key), answer).await
    }
}

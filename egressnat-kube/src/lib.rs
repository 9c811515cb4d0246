//! x
mod directory;
mod kind;
mod manifest;
mod object;
mod resource;
mod store;
pub use directory::{Applied, DirectoryStore};
pub use kind::{Kind, UnknownKind};
pub use manifest::{ManifestError, Manifests, read_manifests};
pub use object::{InvalidObject, Object, ObjectKey};
pub use resource::validate;
pub use store::{ObjectStore, StoreError, Watch, WatchEvent};

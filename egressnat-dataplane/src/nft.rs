//! nftables over netlink: the few messages that the packet path needs.
//!
//! Everything goes into one batch, which the kernel takes whole or not at all.

mod batch;
mod chain;
mod counter;
mod events;
mod expr;
mod fence;
mod forgotten;
mod inventory;
mod margin;
mod masquerade;
mod owner;
mod query;
mod ruleset;
mod set;
mod table;

pub use batch::NftError;
pub(crate) use batch::all_but_refused;
pub(crate) use counter::Counter;
pub(crate) use events::Events;
pub(crate) use fence::Fence;
pub(crate) use forgotten::Forgotten;
pub(crate) use owner::{Owner, SharedOwner};
pub(crate) use ruleset::Ruleset;
pub(crate) use set::{Answer, Elements, SetName};

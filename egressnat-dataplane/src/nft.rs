//! nftables over netlink: the few messages that the packet path needs.
//!
//! Everything goes into one batch, which the kernel takes whole or not at all.

mod batch;
mod counter;
mod expr;
mod fence;
mod masquerade;
mod query;
mod ruleset;
mod set;

pub use batch::NftError;
pub(crate) use counter::Counter;
pub(crate) use fence::Fence;
pub(crate) use ruleset::Ruleset;
pub(crate) use set::{Elements, SetName};

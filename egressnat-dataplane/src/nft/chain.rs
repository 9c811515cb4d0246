//! Chains that say what they are for to whoever lists them.

use std::ffi::{CStr, c_void};

use nftnl::{Batch, Chain, ChainType, Hook, MsgType, NlMsg, Policy, Table};
use nftnl_sys as sys;

use super::query::comment_userdata;

/// Adds a chain that others lead to.
pub(super) fn plain_chain<'a>(
    name: &CStr,
    comment: &CStr,
    table: &'a Table,
    batch: &mut Batch,
) -> Chain<'a> {
    let chain = Chain::new(name, table);
    add(&chain, comment, batch);
    chain
}

/// Adds a chain at a hook, which lets pass what no rule of it drops.
pub(super) fn base_chain<'a>(
    (name, comment): (&CStr, &CStr),
    table: &'a Table,
    kind: ChainType,
    hook: Hook,
    priority: i32,
    batch: &mut Batch,
) -> Chain<'a> {
    let mut chain = Chain::new(name, table);
    chain.set_type(kind);
    chain.set_hook(hook, priority);
    chain.set_policy(Policy::Accept);
    add(&chain, comment, batch);
    chain
}

fn add(chain: &Chain<'_>, comment: &CStr, batch: &mut Batch) {
    let chain = Commented { chain, comment };
    batch.add(&chain, MsgType::Add);
}

/// A chain with a comment, which `nftnl::Chain` cannot carry.
struct Commented<'a> {
    chain: &'a Chain<'a>,
    comment: &'a CStr,
}

// SAFETY: writes one message into a buffer that nftnl made large enough for one.
unsafe impl NlMsg for Commented<'_> {
    unsafe fn write(&self, buffer: *mut c_void, sequence: u32, message: MsgType) {
        let userdata = comment_userdata(self.comment);
        // SAFETY: `write` leaves a whole message, to which the payload of a second chain is added: its comment and nothing else, freed
        // after it was copied.
        unsafe {
            self.chain.write(buffer, sequence, message);
            let comment = sys::nftnl_chain_alloc();
            sys::nftnl_chain_set_data(
                comment,
                sys::NFTNL_CHAIN_USERDATA as u16,
                userdata.as_ptr().cast(),
                userdata.len() as u32,
            );
            sys::nftnl_chain_nlmsg_build_payload(buffer.cast(), comment);
            sys::nftnl_chain_free(comment);
        }
    }
}

//! Tables as messages of a batch.

use std::ffi::c_void;

use nftnl::{MsgType, NlMsg, ProtoFamily};
use nftnl_sys as sys;

use super::batch::header;
use super::ruleset::TABLE;

/// A table of ours with userdata and flags, which `nftnl::Table` cannot carry.
pub(super) struct Named<'a> {
    pub(super) family: ProtoFamily,
    pub(super) userdata: &'a [u8],
    pub(super) flags: u32,
}

// SAFETY: writes one message into a buffer that nftnl made large enough for one.
unsafe impl NlMsg for Named<'_> {
    unsafe fn write(&self, buffer: *mut c_void, sequence: u32, message: MsgType) {
        let (kind, flags) = match message {
            MsgType::Add => (libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE),
            MsgType::Del => (libc::NFT_MSG_DELTABLE, 0),
        };
        // SAFETY: the table is freed after the message was written; the setters copy.
        unsafe {
            let table = sys::nftnl_table_alloc();
            sys::nftnl_table_set_u32(table, sys::NFTNL_TABLE_FAMILY as u16, self.family as u32);
            sys::nftnl_table_set_str(table, sys::NFTNL_TABLE_NAME as u16, TABLE.as_ptr());
            sys::nftnl_table_set_u32(table, sys::NFTNL_TABLE_FLAGS as u16, self.flags);
            if !self.userdata.is_empty() {
                sys::nftnl_table_set_data(
                    table,
                    sys::NFTNL_TABLE_USERDATA as u16,
                    self.userdata.as_ptr().cast(),
                    self.userdata.len() as u32,
                );
            }
            let header = header(buffer, self.family, kind, flags, sequence);
            sys::nftnl_table_nlmsg_build_payload(header, table);
            sys::nftnl_table_free(table);
        }
    }
}

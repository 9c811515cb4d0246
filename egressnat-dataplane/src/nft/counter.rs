//! Named counters: what the table counts, for people and for us.

use std::ffi::{CStr, c_void};
use std::ptr::NonNull;

use nftnl::{MsgType, NlMsg, ProtoFamily};
use nftnl_sys as sys;

use super::batch::{NftError, header, request};
use super::ruleset::TABLE;
use crate::family::Family;
use crate::netfilter::ask;

/// The type of counters among the objects of nftables (`NFT_OBJECT_COUNTER` in `linux/netfilter/nf_tables.h`).
pub(super) const OBJECT_COUNTER: u32 = 1;

/// The named counters of our table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counter {
    /// What the guard dropped.
    Undecided,
    /// What a Service led to a strict destination.
    Redirected,
    /// What should go into a tunnel that is not there.
    NoTunnel,
    /// What has an egress IP that is elsewhere.
    NotHeld,
    /// What came to a floating IP unasked.
    Inbound,
    /// What had a floating IP whose deadline had come.
    Expired,
}

impl Counter {
    pub(super) const ALL: [Counter; 6] = [
        Counter::Undecided,
        Counter::Redirected,
        Counter::NoTunnel,
        Counter::NotHeld,
        Counter::Inbound,
        Counter::Expired,
    ];

    pub(super) fn as_cstr(self) -> &'static CStr {
        match self {
            Counter::Undecided => c"undecided",
            Counter::Redirected => c"redirected",
            Counter::NoTunnel => c"no_tunnel",
            Counter::NotHeld => c"not_held",
            Counter::Inbound => c"inbound",
            Counter::Expired => c"expired",
        }
    }

    fn comment(self) -> &'static CStr {
        match self {
            Counter::Undecided => c"dropped by the guard: no decision, to a strict destination",
            Counter::Redirected => c"dropped by the guard: a Service leads to a strict destination",
            Counter::NoTunnel => c"dropped: steered, and there is no tunnel",
            Counter::NotHeld => c"dropped: the egress IP is not on this node",
            Counter::Inbound => c"dropped: to a floating IP, of no known connection",
            Counter::Expired => c"dropped: the deadline of the floating IP has come",
        }
    }

    /// The counter of one table.
    pub(super) fn of(self, family: Family) -> FamilyCounter {
        FamilyCounter {
            family,
            counter: self,
        }
    }
}

/// A counter of the table of one family.
pub(super) struct FamilyCounter {
    family: Family,
    counter: Counter,
}

impl FamilyCounter {
    /// How many packets were counted since the table was made.
    pub(super) fn packets(&self) -> Result<u64, NftError> {
        let object = Object::new(self);
        let mut packets = 0;
        for message in ask(&request(
            self.family.into(),
            libc::NFT_MSG_GETOBJ,
            libc::NLM_F_ACK,
            |header| {
                // SAFETY: the request has room for two names, and the object lives.
                unsafe { sys::nftnl_obj_nlmsg_build_payload(header, object.0.as_ptr()) }
            },
        ))? {
            let answer = Object::empty();
            // SAFETY: `message` is one whole netlink message, and the object that it is parsed into lives.
            unsafe {
                if sys::nftnl_obj_nlmsg_parse(message.as_ptr(), answer.0.as_ptr()) >= 0 {
                    packets =
                        sys::nftnl_obj_get_u64(answer.0.as_ptr(), sys::NFTNL_OBJ_CTR_PKTS as u16);
                }
            }
        }
        Ok(packets)
    }
}

/// An object of libnftnl, freed when dropped.
struct Object(NonNull<sys::nftnl_obj>);

impl Object {
    fn empty() -> Self {
        // SAFETY: an allocation without arguments.
        let object = unsafe { sys::nftnl_obj_alloc() };
        Self(NonNull::new(object).expect("allocation of a few hundred bytes"))
    }

    fn new(FamilyCounter { family, counter }: &FamilyCounter) -> Self {
        let family = ProtoFamily::from(*family);
        let object = Self::empty();
        let raw = object.0.as_ptr();
        // SAFETY: a fresh object; every setter copies; the userdata buffer is freed after it was copied.
        unsafe {
            sys::nftnl_obj_set_u32(raw, sys::NFTNL_OBJ_FAMILY as u16, family as u32);
            sys::nftnl_obj_set_str(raw, sys::NFTNL_OBJ_TABLE as u16, TABLE.as_ptr());
            sys::nftnl_obj_set_str(raw, sys::NFTNL_OBJ_NAME as u16, counter.as_cstr().as_ptr());
            sys::nftnl_obj_set_u32(raw, sys::NFTNL_OBJ_TYPE as u16, OBJECT_COUNTER);
            let userdata = sys::nftnl_udata_buf_alloc(256);
            sys::nftnl_udata_put_strz(
                userdata,
                sys::NFTNL_UDATA_OBJ_COMMENT as u8,
                counter.comment().as_ptr(),
            );
            sys::nftnl_obj_set_data(
                raw,
                sys::NFTNL_OBJ_USERDATA as u16,
                sys::nftnl_udata_buf_data(userdata),
                sys::nftnl_udata_buf_len(userdata),
            );
            sys::nftnl_udata_buf_free(userdata);
        }
        object
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: we own the object, and it is freed once.
        unsafe { sys::nftnl_obj_free(self.0.as_ptr()) }
    }
}

// SAFETY: writes one message into a buffer that nftnl made large enough for one.
unsafe impl NlMsg for FamilyCounter {
    unsafe fn write(&self, buffer: *mut c_void, sequence: u32, message: MsgType) {
        let (kind, flags) = match message {
            MsgType::Add => (libc::NFT_MSG_NEWOBJ, libc::NLM_F_CREATE),
            MsgType::Del => (libc::NFT_MSG_DELOBJ, 0),
        };
        let object = Object::new(self);
        // SAFETY: the object outlives the message's making.
        unsafe {
            let header = header(buffer, self.family.into(), kind, flags, sequence);
            sys::nftnl_obj_nlmsg_build_payload(header, object.0.as_ptr());
        }
    }
}

//! Sets and maps: their declaration, and elements as messages of a batch.

use std::cell::Cell;
use std::ffi::{CStr, c_void};
use std::net::IpAddr;
use std::ptr::NonNull;
use std::time::Duration;

use egressnat_core::model::Protocol;
use ipnet::IpNet;
use nftnl::{Batch, MsgType, NlMsg, ProtoFamily};
use nftnl_sys as sys;

use super::batch::header;
use super::ruleset::TABLE;
use crate::family::{Family, octets};

/// Types as nft numbers them (nft's `datatype.h`): what `nft list` prints elements by.
const TYPE_IPV4_ADDR: u32 = 7;
const TYPE_IPV6_ADDR: u32 = 8;
const TYPE_INET_PROTO: u32 = 12;
const TYPE_INET_SERVICE: u32 = 13;
const TYPE_MARK: u32 = 19;

/// A key of several types has each in so many bits, the first in the highest, and each of its parts in as many whole words as it takes.
const TYPE_BITS: u32 = 6;
pub(super) const WORD: u32 = 4;

/// Byte order of keys and data, for `nft list` to print numbers the right way round.
const HOST_ORDER: u32 = 1;
const NETWORK_ORDER: u32 = 2;

/// The sets of our tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SetName {
    /// Ranges of this node's pods.
    PodRanges,
    /// Ranges inside the cluster.
    InternalRanges,
    /// Destinations of strict policies.
    GuardRanges,
    /// Floating IPs that this node holds.
    FloatingIps,
    /// Mark → egress IP.
    EgressIps,
    /// Mark and egress IP of what leaves.
    Translated,
    /// Addresses that this node may use until a deadline only.
    Fenced,
    /// Those whose deadline has not come.
    Held,
    /// Answers to flows that were forgotten and have not begun again.
    Forgotten,
    /// Those of them whose flow has begun again.
    Begun,
    /// Pods that policies decided about until a while ago.
    Silenced,
}

impl SetName {
    /// Those of the tables ip and ip6.
    pub(super) const ALL: [SetName; 11] = [
        SetName::PodRanges,
        SetName::InternalRanges,
        SetName::GuardRanges,
        SetName::FloatingIps,
        SetName::EgressIps,
        SetName::Translated,
        SetName::Fenced,
        SetName::Held,
        SetName::Forgotten,
        SetName::Begun,
        SetName::Silenced,
    ];

    /// Those of the table arp.
    pub(super) const ARP: [SetName; 2] = [SetName::Fenced, SetName::Held];

    pub(super) fn as_cstr(self) -> &'static CStr {
        match self {
            SetName::PodRanges => c"pod_ranges",
            SetName::InternalRanges => c"internal_ranges",
            SetName::GuardRanges => c"guard_ranges",
            SetName::FloatingIps => c"floating_ips",
            SetName::EgressIps => c"egress_ips",
            SetName::Translated => c"translated",
            SetName::Fenced => c"fenced",
            SetName::Held => c"held",
            SetName::Forgotten => c"forgotten",
            SetName::Begun => c"begun",
            SetName::Silenced => c"silenced",
        }
    }

    fn comment(self) -> &'static CStr {
        match self {
            SetName::PodRanges => c"pods of this node: masqueraded unless decided otherwise",
            SetName::InternalRanges => c"pod, service and node addresses: never masqueraded",
            SetName::GuardRanges => c"destinations of strict policies: for decided packets only",
            SetName::FloatingIps => c"floating IPs on this node: no new inbound connections",
            SetName::EgressIps => c"mark to egress IP, for floating IPs on this node",
            SetName::Translated => c"with which address what has a mark may leave",
            SetName::Fenced => c"floating IPs that are used until a deadline only",
            SetName::Held => c"fenced floating IPs whose deadline has not come",
            SetName::Forgotten => {
                c"answers to flows that are decided anew with the pod's next packet"
            }
            SetName::Begun => c"answers to flows that were forgotten and have begun anew",
            SetName::Silenced => c"pods that a policy decided about, and none does since an edit",
        }
    }

    fn flags(self) -> u32 {
        match self {
            SetName::PodRanges | SetName::InternalRanges | SetName::GuardRanges => {
                libc::NFT_SET_INTERVAL as u32
            }
            SetName::FloatingIps | SetName::Translated | SetName::Fenced => 0,
            SetName::Held | SetName::Silenced => libc::NFT_SET_TIMEOUT as u32,
            SetName::Forgotten | SetName::Begun => {
                (libc::NFT_SET_TIMEOUT | libc::NFT_SET_EVAL) as u32
            }
            SetName::EgressIps => libc::NFT_SET_MAP as u32,
        }
    }
}

/// What comes back to a pod: each of who sends and who gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) addresses: [IpAddr; 2],
    pub(crate) protocol: Protocol,
    pub(crate) ports: [u16; 2],
}

/// The type of a key of several parts.
fn types(parts: &[u32]) -> u32 {
    parts.iter().fold(0, |all, one| (all << TYPE_BITS) | one)
}

pub(super) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A set with some elements: in a batch it stands for its declaration or, by [`Elements::add_to`], for the elements.
pub(crate) struct Elements {
    set: NonNull<sys::nftnl_set>,
    family: ProtoFamily,
}

impl Elements {
    /// No elements yet, of a set in our table of a family.
    pub(crate) fn of(family: impl Into<ProtoFamily>, name: SetName) -> Self {
        let family = family.into();
        let is_map = name == SetName::EgressIps;
        let (address_type, address_length) = match family {
            ProtoFamily::Ipv6 => (TYPE_IPV6_ADDR, 16),
            _ => (TYPE_IPV4_ADDR, 4),
        };
        let (key_type, key_length) = match name {
            SetName::EgressIps => (TYPE_MARK, WORD),
            SetName::Translated => (types(&[TYPE_MARK, address_type]), WORD + address_length),
            SetName::Forgotten | SetName::Begun => {
                let parts = [TYPE_INET_PROTO, TYPE_INET_SERVICE, TYPE_INET_SERVICE];
                let key = [&[address_type; 2][..], &parts].concat();
                (types(&key), 2 * address_length + parts.len() as u32 * WORD)
            }
            _ => (address_type, address_length),
        };
        // SAFETY: a fresh set; every setter copies what it is given; the userdata buffer is freed after it was copied.
        unsafe {
            let set =
                NonNull::new(sys::nftnl_set_alloc()).expect("allocation of a few hundred bytes");
            let raw = set.as_ptr();
            sys::nftnl_set_set_u32(raw, sys::NFTNL_SET_FAMILY as u16, family as u32);
            sys::nftnl_set_set_str(raw, sys::NFTNL_SET_TABLE as u16, TABLE.as_ptr());
            sys::nftnl_set_set_str(raw, sys::NFTNL_SET_NAME as u16, name.as_cstr().as_ptr());
            sys::nftnl_set_set_u32(raw, sys::NFTNL_SET_ID as u16, name as u32 + 1);
            sys::nftnl_set_set_u32(raw, sys::NFTNL_SET_FLAGS as u16, name.flags());
            sys::nftnl_set_set_u32(raw, sys::NFTNL_SET_KEY_TYPE as u16, key_type);
            sys::nftnl_set_set_u32(raw, sys::NFTNL_SET_KEY_LEN as u16, key_length);
            let userdata = sys::nftnl_udata_buf_alloc(256);
            let begins_with_mark = is_map || name == SetName::Translated;
            let order = if begins_with_mark {
                HOST_ORDER
            } else {
                NETWORK_ORDER
            };
            sys::nftnl_udata_put_u32(userdata, sys::NFTNL_UDATA_SET_KEYBYTEORDER as u8, order);
            if is_map {
                sys::nftnl_set_set_u32(raw, sys::NFTNL_SET_DATA_TYPE as u16, address_type);
                sys::nftnl_set_set_u32(raw, sys::NFTNL_SET_DATA_LEN as u16, address_length);
                sys::nftnl_udata_put_u32(
                    userdata,
                    sys::NFTNL_UDATA_SET_DATABYTEORDER as u8,
                    NETWORK_ORDER,
                );
            }
            if is_map {
                // Each look-up of an element is a new connection: the kernel gives each a counter of its own.
                let counter = NonNull::new(sys::nftnl_expr_alloc(c"counter".as_ptr()))
                    .expect("libnftnl knows counters");
                sys::nftnl_set_add_expr(raw, counter.as_ptr());
            }
            sys::nftnl_udata_put_strz(
                userdata,
                sys::NFTNL_UDATA_SET_COMMENT as u8,
                name.comment().as_ptr(),
            );
            sys::nftnl_set_set_data(
                raw,
                sys::NFTNL_SET_USERDATA as u16,
                sys::nftnl_udata_buf_data(userdata),
                sys::nftnl_udata_buf_len(userdata),
            );
            sys::nftnl_udata_buf_free(userdata);
            Self { set, family }
        }
    }

    /// Marks and the egress IPs they stand for, in the map.
    pub(crate) fn mapped(
        family: Family,
        mappings: impl IntoIterator<Item = (u32, IpAddr)>,
    ) -> Self {
        let none = Self::of(family, SetName::EgressIps);
        mappings
            .into_iter()
            .fold(none, |elements, (mark, address)| {
                elements.element(&mark.to_ne_bytes(), 0, Some(&octets(address)))
            })
    }

    /// Marks and the addresses that what has them may leave with, in the set.
    pub(crate) fn translated(
        family: Family,
        mappings: impl IntoIterator<Item = (u32, IpAddr)>,
    ) -> Self {
        let none = Self::of(family, SetName::Translated);
        mappings
            .into_iter()
            .fold(none, |elements, (mark, address)| {
                let key = [&mark.to_ne_bytes()[..], &octets(address)].concat();
                elements.element(&key, 0, None)
            })
    }

    /// An address of the set's family.
    pub(crate) fn address(self, address: IpAddr) -> Self {
        self.element(&octets(address), 0, None)
    }

    /// A range of the set's family, as its first address and the one after its last.
    pub(crate) fn range(self, range: IpNet) -> Self {
        let with_start = self.element(&octets(range.network()), 0, None);
        let end = match range {
            IpNet::V4(range) => u32::from(range.broadcast())
                .checked_add(1)
                .map(|end| end.to_be_bytes().to_vec()),
            IpNet::V6(range) => u128::from(range.broadcast())
                .checked_add(1)
                .map(|end| end.to_be_bytes().to_vec()),
        };
        match end {
            Some(end) => with_start.element(&end, libc::NFT_SET_ELEM_INTERVAL_END as u32, None),
            // A range that reaches the last address is open at the end.
            None => with_start,
        }
    }

    /// An address that goes by itself after some time.
    pub(crate) fn address_for(self, address: IpAddr, time: Duration) -> Self {
        self.timed_element(&octets(address), 0, None, Some(milliseconds(time)))
    }

    /// An answer that is expected for so long.
    pub(crate) fn answer_for(self, answer: &Answer, time: Duration) -> Self {
        let word = |bytes: &[u8]| {
            let mut word = [0; WORD as usize];
            word[..bytes.len()].copy_from_slice(bytes);
            word
        };
        let parts = [
            word(&[answer.protocol.0]),
            word(&answer.ports[0].to_be_bytes()),
            word(&answer.ports[1].to_be_bytes()),
        ];
        let addresses = answer.addresses.map(octets).concat();
        let key = [addresses, parts.concat()].concat();
        self.timed_element(&key, 0, None, Some(milliseconds(time)))
    }

    /// Keys that go by themselves after some time, as the kernel tells them. One of another length, of a set that had other keys, is left
    /// out.
    pub(super) fn keys_for(self, keys: &[(Vec<u8>, Duration)]) -> Self {
        // SAFETY: the set lives.
        let length = unsafe {
            sys::nftnl_set_get_u32(self.set.as_ptr(), sys::NFTNL_SET_KEY_LEN as u16) as usize
        };
        let keys = keys.iter().filter(|(key, _)| key.len() == length);
        keys.fold(self, |elements, (key, time)| {
            // No time at all would be for ever.
            let time = milliseconds(*time).max(1);
            elements.timed_element(key, 0, None, Some(time))
        })
    }

    fn element(self, key: &[u8], flags: u32, data: Option<&[u8]>) -> Self {
        self.timed_element(key, flags, data, None)
    }

    fn timed_element(
        self,
        key: &[u8],
        flags: u32,
        data: Option<&[u8]>,
        milliseconds: Option<u64>,
    ) -> Self {
        // SAFETY: a fresh element; the setters copy; the set owns the element once added.
        unsafe {
            let element = NonNull::new(sys::nftnl_set_elem_alloc())
                .expect("allocation of a few hundred bytes")
                .as_ptr();
            let set = |attribute: u32, bytes: &[u8]| {
                sys::nftnl_set_elem_set(
                    element,
                    attribute as u16,
                    bytes.as_ptr().cast(),
                    bytes.len() as u32,
                );
            };
            set(sys::NFTNL_SET_ELEM_KEY, key);
            if let Some(data) = data {
                set(sys::NFTNL_SET_ELEM_DATA, data);
            }
            if flags != 0 {
                sys::nftnl_set_elem_set_u32(element, sys::NFTNL_SET_ELEM_FLAGS as u16, flags);
            }
            if let Some(milliseconds) = milliseconds {
                let timeout = sys::NFTNL_SET_ELEM_TIMEOUT as u16;
                sys::nftnl_set_elem_set_u64(element, timeout, milliseconds);
            }
            sys::nftnl_set_elem_add(self.set.as_ptr(), element);
        }
        self
    }

    /// Adds these elements to the set, or takes them out, in as many messages as it takes.
    pub(super) fn add_to(&self, batch: &mut Batch, change: Change) {
        match change {
            Change::Add => self.write_all(batch, libc::NFT_MSG_NEWSETELEM),
            Change::Remove => self.write_all(batch, libc::NFT_MSG_DELSETELEM),
            // The one message that says so (`NFT_MSG_DESTROYSETELEM`) is of Linux 6.3. What is there once more is not there twice.
            Change::RemoveIfThere => {
                self.write_all(batch, libc::NFT_MSG_NEWSETELEM);
                self.write_all(batch, libc::NFT_MSG_DELSETELEM);
            }
        }
    }

    fn write_all(&self, batch: &mut Batch, kind: i32) {
        // SAFETY: the iterator lives until it is destroyed below, and the set longer.
        unsafe {
            let iterator = sys::nftnl_set_elems_iter_create(self.set.as_ptr());
            let more = Cell::new(1);
            while more.get() > 0 && !sys::nftnl_set_elems_iter_cur(iterator).is_null() {
                batch.add(
                    &Page {
                        iterator,
                        more: &more,
                        family: self.family,
                        kind,
                    },
                    // Ours says more than theirs.
                    MsgType::Add,
                );
            }
            sys::nftnl_set_elems_iter_destroy(iterator);
        }
    }

    pub(super) fn as_ptr(&self) -> *mut sys::nftnl_set {
        self.set.as_ptr()
    }
}

impl Drop for Elements {
    fn drop(&mut self) {
        // SAFETY: we own the set, and it is freed once.
        unsafe { sys::nftnl_set_free(self.set.as_ptr()) }
    }
}

/// What a batch does with elements.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change {
    /// Puts them in.
    Add,
    /// Takes them out: they must be there.
    Remove,
    /// Takes out those that are there: elements without a timeout, whatever those that are there have.
    RemoveIfThere,
}

// SAFETY: writes one message into a buffer that nftnl made large enough for one.
unsafe impl NlMsg for Elements {
    unsafe fn write(&self, buffer: *mut c_void, sequence: u32, message: MsgType) {
        let (kind, flags) = match message {
            MsgType::Add => (libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE),
            MsgType::Del => (libc::NFT_MSG_DELSET, 0),
        };
        // SAFETY: see above; the set outlives the call.
        unsafe {
            let header = header(buffer, self.family, kind, flags, sequence);
            sys::nftnl_set_nlmsg_build_payload(header, self.set.as_ptr());
        }
    }
}

/// As many elements of a set as fit one message.
struct Page<'a> {
    iterator: *mut sys::nftnl_set_elems_iter,
    more: &'a Cell<i32>,
    family: ProtoFamily,
    kind: i32,
}

// SAFETY: as above; the iterator is advanced by what was written.
unsafe impl NlMsg for Page<'_> {
    unsafe fn write(&self, buffer: *mut c_void, sequence: u32, _: MsgType) {
        let (kind, flags) = match self.kind {
            libc::NFT_MSG_NEWSETELEM => (self.kind, libc::NLM_F_CREATE),
            kind => (kind, 0),
        };
        // SAFETY: see above.
        unsafe {
            let header = header(buffer, self.family, kind, flags, sequence);
            self.more.set(sys::nftnl_set_elems_nlmsg_build_payload_iter(
                header,
                self.iterator,
            ));
        }
    }
}

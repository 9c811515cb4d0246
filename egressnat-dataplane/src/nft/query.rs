//! Reading back what the kernel has.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, c_void};
use std::net::IpAddr;
use std::ops::Bound;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use nftnl::ProtoFamily;
use nftnl_sys as sys;

use super::batch::{NftError, request};
use super::ruleset::TABLE;
use super::set::{Elements, SetName};
use crate::family::{Family, from_octets};
use crate::netfilter::{AskError, ask};

/// One element as the kernel tells it.
struct Element {
    key: Vec<u8>,
    data: Option<Vec<u8>>,
    is_end: bool,
    /// When it will go by itself.
    expires_in: Option<Duration>,
    /// How often it was looked up, if it counts.
    packets: u64,
}

/// Whether a set has any element.
pub(super) fn is_filled(family: Family, name: SetName) -> Result<bool, NftError> {
    Ok(!elements(family.into(), name)?.is_empty())
}

/// Whether our table of a family has a chain.
pub(super) fn has_chain(family: Family, name: &CStr) -> Result<bool, NftError> {
    let request = request(
        family.into(),
        libc::NFT_MSG_GETCHAIN,
        libc::NLM_F_ACK,
        |header| {
            // SAFETY: the request has room for two names; the chain is freed after they were copied.
            unsafe {
                let chain = sys::nftnl_chain_alloc();
                sys::nftnl_chain_set_str(chain, sys::NFTNL_CHAIN_TABLE as u16, TABLE.as_ptr());
                sys::nftnl_chain_set_str(chain, sys::NFTNL_CHAIN_NAME as u16, name.as_ptr());
                sys::nftnl_chain_nlmsg_build_payload(header, chain);
                sys::nftnl_chain_free(chain);
            }
        },
    );
    match ask(&request) {
        Ok(_) => Ok(true),
        Err(AskError::Refused(error)) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The addresses of a plain set.
pub(super) fn addresses(
    family: impl Into<ProtoFamily>,
    name: SetName,
) -> Result<BTreeSet<IpAddr>, NftError> {
    let elements = elements(family.into(), name)?.into_iter();
    Ok(elements
        .filter_map(|element| from_octets(&element.key))
        .collect())
}

/// The addresses of a set that go by themselves, and when.
pub(super) fn expiring(
    family: Family,
    name: SetName,
) -> Result<BTreeMap<IpAddr, Duration>, NftError> {
    let expiring = |element: Element| Some((from_octets(&element.key)?, element.expires_in?));
    let elements = elements(family.into(), name)?.into_iter();
    Ok(elements.filter_map(expiring).collect())
}

/// The keys of a set that go by themselves, and when.
pub(super) fn expiring_keys(
    family: Family,
    name: SetName,
) -> Result<Vec<(Vec<u8>, Duration)>, NftError> {
    let expiring = |element: Element| Some((element.key, element.expires_in?));
    let elements = elements(family.into(), name)?.into_iter();
    Ok(elements.filter_map(expiring).collect())
}

/// The mappings of a map: mark and address.
pub(super) fn mappings(family: Family, name: SetName) -> Result<BTreeSet<(u32, IpAddr)>, NftError> {
    let mapping = |element: Element| {
        let mark = u32::from_ne_bytes(element.key.try_into().ok()?);
        Some((mark, from_octets(&element.data?)?))
    };
    let elements = elements(family.into(), name)?.into_iter();
    Ok(elements.filter_map(mapping).collect())
}

/// Marks, each with the address that what has it may leave with.
pub(super) fn translated(family: Family) -> Result<BTreeSet<(u32, IpAddr)>, NftError> {
    let translated = |element: Element| {
        let (mark, address) = element.key.split_first_chunk()?;
        Some((u32::from_ne_bytes(*mark), from_octets(address)?))
    };
    let elements = elements(family.into(), SetName::Translated)?.into_iter();
    Ok(elements.filter_map(translated).collect())
}

/// How many connections were translated to each address of a map.
pub(super) fn connections(
    family: Family,
    name: SetName,
) -> Result<BTreeMap<IpAddr, u64>, NftError> {
    let counted = |element: Element| Some((from_octets(&element.data?)?, element.packets));
    let elements = elements(family.into(), name)?.into_iter();
    Ok(elements.filter_map(counted).collect())
}

/// The ranges of an interval set.
pub(super) fn ranges(family: Family, name: SetName) -> Result<BTreeSet<IpNet>, NftError> {
    let (mut starts, mut ends) = (BTreeSet::new(), BTreeSet::new());
    for element in elements(family.into(), name)? {
        let side = if element.is_end {
            &mut ends
        } else {
            &mut starts
        };
        side.extend(from_octets(&element.key));
    }
    let mut ranges = BTreeSet::new();
    for start in starts {
        let end = ends
            .range((Bound::Excluded(start), Bound::Unbounded))
            .next();
        match (start, end) {
            (IpAddr::V4(start), end) => {
                let last = match end {
                    Some(IpAddr::V4(end)) => u32::from(*end) - 1,
                    _ => u32::MAX,
                };
                let subnets = Ipv4Subnets::new(start, last.into(), 0);
                ranges.extend(subnets.map(IpNet::V4));
            }
            (IpAddr::V6(start), end) => {
                let last = match end {
                    Some(IpAddr::V6(end)) => u128::from(*end) - 1,
                    _ => u128::MAX,
                };
                let subnets = Ipv6Subnets::new(start, last.into(), 0);
                ranges.extend(subnets.map(IpNet::V6));
            }
        }
    }
    Ok(ranges)
}

fn elements(family: ProtoFamily, name: SetName) -> Result<Vec<Element>, NftError> {
    let set = Elements::of(family, name);
    let mut elements = Vec::new();
    for message in ask(&request(
        family,
        libc::NFT_MSG_GETSETELEM,
        libc::NLM_F_DUMP,
        |header| {
            // SAFETY: the request has room for two names, and the set lives.
            unsafe { sys::nftnl_set_elems_nlmsg_build_payload(header, set.as_ptr()) }
        },
    ))? {
        // SAFETY: `message` is one whole netlink message; the set it is parsed into is freed below.
        unsafe {
            let parsed = sys::nftnl_set_alloc();
            if sys::nftnl_set_elems_nlmsg_parse(message.as_ptr(), parsed) >= 0 {
                sys::nftnl_set_elem_foreach(parsed, Some(collect), (&raw mut elements).cast());
            }
            sys::nftnl_set_free(parsed);
        }
    }
    Ok(elements)
}

/// Copies one element into the `Vec<Element>` behind `into`.
unsafe extern "C" fn collect(element: *mut sys::nftnl_set_elem, into: *mut c_void) -> i32 {
    // SAFETY: libnftnl hands out a valid element and our own pointer; a value is as long as it says.
    unsafe {
        let elements = &mut *into.cast::<Vec<Element>>();
        let value = |attribute: u32| {
            let mut length = 0u32;
            let bytes =
                sys::nftnl_set_elem_get(element, attribute as u16, &raw mut length).cast::<u8>();
            (!bytes.is_null()).then(|| std::slice::from_raw_parts(bytes, length as usize).to_vec())
        };
        let flags = match sys::nftnl_set_elem_is_set(element, sys::NFTNL_SET_ELEM_FLAGS as u16) {
            true => sys::nftnl_set_elem_get_u32(element, sys::NFTNL_SET_ELEM_FLAGS as u16),
            false => 0,
        };
        let expiration = sys::NFTNL_SET_ELEM_EXPIRATION as u16;
        let expires_in = sys::nftnl_set_elem_is_set(element, expiration)
            .then(|| Duration::from_millis(sys::nftnl_set_elem_get_u64(element, expiration)));
        let mut packets = 0u64;
        sys::nftnl_set_elem_expr_foreach(element, Some(count), (&raw mut packets).cast());
        if let Some(key) = value(sys::NFTNL_SET_ELEM_KEY) {
            elements.push(Element {
                expires_in,
                key,
                data: value(sys::NFTNL_SET_ELEM_DATA),
                is_end: flags & libc::NFT_SET_ELEM_INTERVAL_END as u32 != 0,
                packets,
            });
        }
    }
    0
}

/// Adds the packets of a counter to the number behind `into`.
unsafe extern "C" fn count(expr: *mut sys::nftnl_expr, into: *mut c_void) -> i32 {
    // SAFETY: libnftnl hands out a valid expression and our own pointer; ours count and do nothing else.
    unsafe {
        let packets = sys::NFTNL_EXPR_CTR_PACKETS as u16;
        if sys::nftnl_expr_is_set(expr, packets) {
            *into.cast::<u64>() += sys::nftnl_expr_get_u64(expr, packets);
        }
    }
    0
}

/// Our table of a family as the kernel has it.
pub(super) struct PresentTable {
    /// It names the layout.
    pub(super) userdata: Vec<u8>,
    pub(super) flags: u32,
    /// The socket that owns it.
    pub(super) owner: Option<u32>,
}

/// Our table of a family, if there is one.
pub(super) fn table(family: impl Into<ProtoFamily>) -> Result<Option<PresentTable>, NftError> {
    let request = request(
        family.into(),
        libc::NFT_MSG_GETTABLE,
        libc::NLM_F_ACK,
        |header| {
            // SAFETY: the request has room for a name; the table is freed after it was copied.
            unsafe {
                let table = sys::nftnl_table_alloc();
                sys::nftnl_table_set_str(table, sys::NFTNL_TABLE_NAME as u16, TABLE.as_ptr());
                sys::nftnl_table_nlmsg_build_payload(header, table);
                sys::nftnl_table_free(table);
            }
        },
    );
    let answer = match ask(&request) {
        Err(AskError::Refused(error)) if error.raw_os_error() == Some(libc::ENOENT) => {
            return Ok(None);
        }
        // What nobody is there to answer is invalid.
        Err(AskError::Refused(source)) => {
            let what = "a table".to_owned();
            return Err(NftError::Refused { what, source }.of_table());
        }
        answer => answer?,
    };
    let mut present = None;
    for message in answer {
        // SAFETY: as in `elements`; userdata is as long as it says.
        unsafe {
            let table = sys::nftnl_table_alloc();
            if sys::nftnl_table_nlmsg_parse(message.as_ptr(), table) >= 0 {
                let mut length = 0u32;
                let userdata = sys::NFTNL_TABLE_USERDATA as u16;
                let bytes = sys::nftnl_table_get_data(table, userdata, &raw mut length);
                let userdata = match bytes.is_null() {
                    true => Vec::new(),
                    false => {
                        std::slice::from_raw_parts(bytes.cast::<u8>(), length as usize).to_vec()
                    }
                };
                let owner = sys::NFTNL_TABLE_OWNER as u16;
                present = Some(PresentTable {
                    userdata,
                    flags: sys::nftnl_table_get_u32(table, sys::NFTNL_TABLE_FLAGS as u16),
                    owner: sys::nftnl_table_is_set(table, owner)
                        .then(|| sys::nftnl_table_get_u32(table, owner)),
                });
            }
            sys::nftnl_table_free(table);
        }
    }
    Ok(present)
}

/// The comment of a table or a chain as userdata.
pub(super) fn comment_userdata(comment: &CStr) -> Vec<u8> {
    // SAFETY: the buffer is freed after its content was copied.
    unsafe {
        let userdata = sys::nftnl_udata_buf_alloc(256);
        sys::nftnl_udata_put_strz(
            userdata,
            sys::NFTNL_UDATA_TABLE_COMMENT as u8,
            comment.as_ptr(),
        );
        let bytes = sys::nftnl_udata_buf_data(userdata).cast::<u8>();
        let copy =
            std::slice::from_raw_parts(bytes, sys::nftnl_udata_buf_len(userdata) as usize).to_vec();
        sys::nftnl_udata_buf_free(userdata);
        copy
    }
}

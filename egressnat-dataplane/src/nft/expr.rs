//! Rules as lists of expressions. Only what our rules need, each by the name and attributes that libnftnl knows.

use std::ffi::{CStr, CString};
use std::ptr::NonNull;
use std::time::Duration;

use nftnl::expr::Expression;
use nftnl::{Chain, ProtoFamily, Rule};
use nftnl_sys as sys;

use super::counter::{Counter, OBJECT_COUNTER};
use super::set::{WORD, milliseconds};
use crate::family::Family;

enum Value {
    U32(u32),
    U64(u64),
    Data(Vec<u8>),
    Text(CString),
}

/// One expression.
pub(super) struct Expr {
    name: &'static CStr,
    attributes: Vec<(u16, Value)>,
}

impl Expression for Expr {
    fn to_expr(&self, _rule: &Rule<'_>) -> NonNull<sys::nftnl_expr> {
        // SAFETY: the name is a C string; every setter copies what it is given; the rule takes ownership of the result.
        unsafe {
            let expr = NonNull::new(sys::nftnl_expr_alloc(self.name.as_ptr()))
                .expect("libnftnl knows every expression named here");
            for (attribute, value) in &self.attributes {
                match value {
                    Value::U32(number) => {
                        sys::nftnl_expr_set_u32(expr.as_ptr(), *attribute, *number)
                    }
                    Value::U64(number) => {
                        sys::nftnl_expr_set_u64(expr.as_ptr(), *attribute, *number)
                    }
                    Value::Data(data) => {
                        sys::nftnl_expr_set(
                            expr.as_ptr(),
                            *attribute,
                            data.as_ptr().cast(),
                            data.len() as u32,
                        );
                    }
                    Value::Text(text) => {
                        sys::nftnl_expr_set_str(expr.as_ptr(), *attribute, text.as_ptr());
                    }
                }
            }
            expr
        }
    }
}

/// The register that our rules work in: 128 bits wide, so that one is enough, but for keys of several parts.
const REGISTER: u32 = libc::NFT_REG_1 as u32;
/// The first word of that register.
const FIRST_WORD: u32 = libc::NFT_REG32_00 as u32;

impl Expr {
    /// Loads into another register.
    fn into_register(mut self, register: u32) -> Self {
        let destination = match self.name.to_bytes() {
            b"payload" => sys::NFTNL_EXPR_PAYLOAD_DREG,
            b"meta" => sys::NFTNL_EXPR_META_DREG,
            _ => sys::NFTNL_EXPR_CT_DREG,
        };
        for (attribute, value) in &mut self.attributes {
            if u32::from(*attribute) == destination {
                *value = Value::U32(register);
            }
        }
        self
    }
}

/// `. ip saddr`, `. ip6 saddr`: behind a word that is loaded already.
pub(super) fn source_behind(family: Family) -> Expr {
    source(family).into_register(FIRST_WORD + 1)
}

/// `.`: loads one behind the other, each in as many whole words as it takes.
pub(super) fn concatenated(parts: Vec<(Expr, u32)>) -> impl Iterator<Item = Expr> {
    let mut register = FIRST_WORD;
    parts.into_iter().map(move |(part, length)| {
        let part = part.into_register(register);
        register += length.div_ceil(WORD);
        part
    })
}

fn expr(name: &'static CStr, attributes: Vec<(u32, Value)>) -> Expr {
    let attributes = attributes
        .into_iter()
        .map(|(attribute, value)| (attribute as u16, value))
        .collect();
    Expr { name, attributes }
}

fn load_payload(base: i32, offset: u32, length: u32) -> Expr {
    expr(
        c"payload",
        vec![
            (sys::NFTNL_EXPR_PAYLOAD_DREG, Value::U32(REGISTER)),
            (sys::NFTNL_EXPR_PAYLOAD_BASE, Value::U32(base as u32)),
            (sys::NFTNL_EXPR_PAYLOAD_OFFSET, Value::U32(offset)),
            (sys::NFTNL_EXPR_PAYLOAD_LEN, Value::U32(length)),
        ],
    )
}

/// `ip saddr`, `ip6 saddr`
pub(super) fn source(family: Family) -> Expr {
    let (offset, length) = source_field(family);
    load_payload(libc::NFT_PAYLOAD_NETWORK_HEADER, offset, length)
}

/// Offset and length of the source in the header.
fn source_field(family: Family) -> (u32, u32) {
    match family {
        Family::Ipv4 => (12, 4),
        Family::Ipv6 => (8, 16),
    }
}

/// `ip daddr`, `ip6 daddr`
pub(super) fn destination(family: Family) -> Expr {
    let (offset, length) = match family {
        Family::Ipv4 => (16, 4),
        Family::Ipv6 => (24, 16),
    };
    load_payload(libc::NFT_PAYLOAD_NETWORK_HEADER, offset, length)
}

/// `ip saddr set`, `ip6 saddr set`: with the checksums of the header, where there is one, and of what is inside.
pub(super) fn set_source(family: Family) -> Expr {
    let (offset, length) = source_field(family);
    let (kind, checksum) = match family {
        Family::Ipv4 => (libc::NFT_PAYLOAD_CSUM_INET, 10),
        Family::Ipv6 => (libc::NFT_PAYLOAD_CSUM_NONE, 0),
    };
    let base = libc::NFT_PAYLOAD_NETWORK_HEADER;
    expr(
        c"payload",
        vec![
            (sys::NFTNL_EXPR_PAYLOAD_SREG, Value::U32(REGISTER)),
            (sys::NFTNL_EXPR_PAYLOAD_BASE, Value::U32(base as u32)),
            (sys::NFTNL_EXPR_PAYLOAD_OFFSET, Value::U32(offset)),
            (sys::NFTNL_EXPR_PAYLOAD_LEN, Value::U32(length)),
            (sys::NFTNL_EXPR_PAYLOAD_CSUM_TYPE, Value::U32(kind as u32)),
            (sys::NFTNL_EXPR_PAYLOAD_CSUM_OFFSET, Value::U32(checksum)),
            (sys::NFTNL_EXPR_PAYLOAD_FLAGS, Value::U32(PSEUDO_HEADER)),
        ],
    )
}

/// `NFT_PAYLOAD_L4CSUM_PSEUDOHDR` (`linux/netfilter/nf_tables.h`).
const PSEUDO_HEADER: u32 = 1;

/// `icmp type`, `icmpv6 type`
pub(super) fn icmp_type() -> Expr {
    load_payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1)
}

/// `icmpv6 taddr`: whom a neighbor solicitation is about.
pub(super) fn neighbor() -> Expr {
    load_payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, 8, 16)
}

/// `arp saddr ip`
pub(super) fn arp_sender() -> Expr {
    load_payload(libc::NFT_PAYLOAD_NETWORK_HEADER, 14, 4)
}

/// `arp daddr ip`
pub(super) fn arp_target() -> Expr {
    load_payload(libc::NFT_PAYLOAD_NETWORK_HEADER, 24, 4)
}

/// `th sport`
pub(super) fn source_port() -> Expr {
    load_payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, 0, 2)
}

/// `th dport`
pub(super) fn destination_port() -> Expr {
    load_payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2)
}

/// `tcp flags`
pub(super) fn tcp_flags() -> Expr {
    load_payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, 13, 1)
}

fn load_meta(key: i32) -> Expr {
    expr(
        c"meta",
        vec![
            (sys::NFTNL_EXPR_META_KEY, Value::U32(key as u32)),
            (sys::NFTNL_EXPR_META_DREG, Value::U32(REGISTER)),
        ],
    )
}

/// `meta mark`
pub(super) fn mark() -> Expr {
    load_meta(libc::NFT_META_MARK)
}

/// `meta l4proto`
pub(super) fn protocol() -> Expr {
    load_meta(libc::NFT_META_L4PROTO)
}

/// `oifname`, as the name of an interface fills its field
pub(super) fn out_interface() -> Expr {
    load_meta(libc::NFT_META_OIFNAME)
}

/// `iifname`, as the name of an interface fills its field
pub(super) fn in_interface() -> Expr {
    load_meta(libc::NFT_META_IIFNAME)
}

/// `meta mark set`
pub(super) fn set_mark() -> Expr {
    expr(
        c"meta",
        vec![
            (
                sys::NFTNL_EXPR_META_KEY,
                Value::U32(libc::NFT_META_MARK as u32),
            ),
            (sys::NFTNL_EXPR_META_SREG, Value::U32(REGISTER)),
        ],
    )
}

/// `IP_CT_DIR_ORIGINAL`
const CT_DIRECTION_ORIGINAL: u8 = 0;
/// `IP_CT_DIR_REPLY`
pub(super) const CT_DIRECTION_REPLY: u8 = 1;

fn load_ct(key: i32) -> Expr {
    expr(
        c"ct",
        vec![
            (sys::NFTNL_EXPR_CT_KEY, Value::U32(key as u32)),
            (sys::NFTNL_EXPR_CT_DREG, Value::U32(REGISTER)),
        ],
    )
}

/// `ct reply ip daddr`, `ct reply ip6 daddr`: what a flow is translated to.
pub(super) fn ct_reply_destination(family: Family) -> Expr {
    let key = match family {
        Family::Ipv4 => libc::NFT_CT_DST_IP,
        Family::Ipv6 => libc::NFT_CT_DST_IP6,
    };
    load_ct_of(key, CT_DIRECTION_REPLY)
}

/// `ct reply ip saddr`, `ct reply ip6 saddr`: who answers.
pub(super) fn ct_reply_source(family: Family) -> Expr {
    load_ct_of(ct_source_key(family), CT_DIRECTION_REPLY)
}

/// `ct reply proto-src`: the port of who answers.
pub(super) fn ct_reply_source_port() -> Expr {
    load_ct_of(libc::NFT_CT_PROTO_SRC, CT_DIRECTION_REPLY)
}

/// `ct reply proto-dst`: the port that is answered.
pub(super) fn ct_reply_destination_port() -> Expr {
    load_ct_of(libc::NFT_CT_PROTO_DST, CT_DIRECTION_REPLY)
}

fn ct_source_key(family: Family) -> i32 {
    match family {
        Family::Ipv4 => libc::NFT_CT_SRC_IP,
        Family::Ipv6 => libc::NFT_CT_SRC_IP6,
    }
}

/// `ct original ip saddr`, `ct original ip6 saddr`: whom a flow is from.
pub(super) fn ct_original_source(family: Family) -> Expr {
    load_ct_of(ct_source_key(family), CT_DIRECTION_ORIGINAL)
}

fn load_ct_of(key: i32, direction: u8) -> Expr {
    let mut loaded = load_ct(key);
    let direction = Value::Data(vec![direction]);
    loaded
        .attributes
        .push((sys::NFTNL_EXPR_CT_DIR as u16, direction));
    loaded
}

/// `ct original zone set`: flows of this direction are told apart by it, and answers find them without.
pub(super) fn set_ct_original_zone() -> Expr {
    let direction = Value::Data(vec![CT_DIRECTION_ORIGINAL]);
    expr(
        c"ct",
        vec![
            (sys::NFTNL_EXPR_CT_KEY, Value::U32(libc::NFT_CT_ZONE as u32)),
            (sys::NFTNL_EXPR_CT_DIR, direction),
            (sys::NFTNL_EXPR_CT_SREG, Value::U32(REGISTER)),
        ],
    )
}

/// `ct direction`
pub(super) fn ct_direction() -> Expr {
    load_ct(libc::NFT_CT_DIRECTION)
}

/// `ct state`
pub(super) fn ct_state() -> Expr {
    load_ct(libc::NFT_CT_STATE)
}

/// `ct status`
pub(super) fn ct_status() -> Expr {
    load_ct(libc::NFT_CT_STATUS)
}

/// `& mask`, of a number in host byte order.
pub(super) fn and(mask: u32) -> Expr {
    and_octets(&mask.to_ne_bytes())
}

/// `& mask | bits`, of a number in host byte order.
pub(super) fn and_or(mask: u32, bits: u32) -> Expr {
    bitwise(&(mask & !bits).to_ne_bytes(), &bits.to_ne_bytes())
}

/// `& mask`, byte by byte.
pub(super) fn and_octets(mask: &[u8]) -> Expr {
    bitwise(mask, &vec![0; mask.len()])
}

fn bitwise(mask: &[u8], bits: &[u8]) -> Expr {
    expr(
        c"bitwise",
        vec![
            (sys::NFTNL_EXPR_BITWISE_SREG, Value::U32(REGISTER)),
            (sys::NFTNL_EXPR_BITWISE_DREG, Value::U32(REGISTER)),
            (sys::NFTNL_EXPR_BITWISE_LEN, Value::U32(mask.len() as u32)),
            (sys::NFTNL_EXPR_BITWISE_MASK, Value::Data(mask.into())),
            (sys::NFTNL_EXPR_BITWISE_XOR, Value::Data(bits.into())),
        ],
    )
}

/// `NFT_BITWISE_RSHIFT` (`linux/netfilter/nf_tables.h`, since 5.6).
const RIGHT_SHIFT: u32 = 2;

/// `>> bits`, of a number in host byte order.
pub(super) fn shift_right(bits: u32) -> Expr {
    expr(
        c"bitwise",
        vec![
            (sys::NFTNL_EXPR_BITWISE_SREG, Value::U32(REGISTER)),
            (sys::NFTNL_EXPR_BITWISE_DREG, Value::U32(REGISTER)),
            (sys::NFTNL_EXPR_BITWISE_OP, Value::U32(RIGHT_SHIFT)),
            (
                sys::NFTNL_EXPR_BITWISE_LEN,
                Value::U32(size_of::<u32>() as u32),
            ),
            (
                sys::NFTNL_EXPR_BITWISE_DATA,
                Value::Data(bits.to_ne_bytes().into()),
            ),
        ],
    )
}

fn compare(operator: i32, data: &[u8]) -> Expr {
    expr(
        c"cmp",
        vec![
            (sys::NFTNL_EXPR_CMP_SREG, Value::U32(REGISTER)),
            (sys::NFTNL_EXPR_CMP_OP, Value::U32(operator as u32)),
            (sys::NFTNL_EXPR_CMP_DATA, Value::Data(data.into())),
        ],
    )
}

/// `== data`
pub(super) fn is(data: &[u8]) -> Expr {
    compare(libc::NFT_CMP_EQ, data)
}

/// `!= data`
pub(super) fn is_not(data: &[u8]) -> Expr {
    compare(libc::NFT_CMP_NEQ, data)
}

/// The kernel tells flags even where there are none, so that we do.
fn lookup(set: &CStr, flags: u32, destination: Option<u32>) -> Expr {
    let mut attributes = vec![
        (sys::NFTNL_EXPR_LOOKUP_SREG, Value::U32(REGISTER)),
        (sys::NFTNL_EXPR_LOOKUP_SET, Value::Text(set.into())),
        (sys::NFTNL_EXPR_LOOKUP_FLAGS, Value::U32(flags)),
    ];
    attributes
        .extend(destination.map(|register| (sys::NFTNL_EXPR_LOOKUP_DREG, Value::U32(register))));
    expr(c"lookup", attributes)
}

/// `@set`
pub(super) fn is_in(set: &CStr) -> Expr {
    lookup(set, 0, None)
}

/// `!= @set`
pub(super) fn is_not_in(set: &CStr) -> Expr {
    lookup(set, libc::NFT_LOOKUP_F_INV as u32, None)
}

/// `map @set`
pub(super) fn map(set: &CStr) -> Expr {
    lookup(set, 0, Some(REGISTER))
}

/// `NFT_DYNSET_OP_DELETE` (`linux/netfilter/nf_tables.h`, since 5.4).
const DELETE_ELEMENT: u32 = 2;

/// `update @set`: what is loaded stays in the set for so long from now.
pub(super) fn update(set: &CStr, time: Duration) -> Expr {
    let mut update = change_set(set, libc::NFT_DYNSET_OP_UPDATE as u32);
    let timeout = Value::U64(milliseconds(time));
    update
        .attributes
        .push((sys::NFTNL_EXPR_DYNSET_TIMEOUT as u16, timeout));
    update
}

/// `delete @set`: what is loaded is in the set no more.
pub(super) fn delete(set: &CStr) -> Expr {
    change_set(set, DELETE_ELEMENT)
}

fn change_set(set: &CStr, operation: u32) -> Expr {
    expr(
        c"dynset",
        vec![
            (sys::NFTNL_EXPR_DYNSET_SREG_KEY, Value::U32(REGISTER)),
            (sys::NFTNL_EXPR_DYNSET_OP, Value::U32(operation)),
            (sys::NFTNL_EXPR_DYNSET_SET_NAME, Value::Text(set.into())),
        ],
    )
}

/// `NF_NAT_RANGE_MAP_IPS` (`linux/netfilter/nf_nat.h`).
const MAP_ADDRESSES: u32 = 1;

/// `snat to` the loaded address: with the packet's own it is translated to what it is, so that nobody behind us does otherwise
pub(super) fn snat(family: Family) -> Expr {
    expr(
        c"nat",
        vec![
            (
                sys::NFTNL_EXPR_NAT_TYPE,
                Value::U32(libc::NFT_NAT_SNAT as u32),
            ),
            (
                sys::NFTNL_EXPR_NAT_FAMILY,
                Value::U32(ProtoFamily::from(family) as u32),
            ),
            (sys::NFTNL_EXPR_NAT_REG_ADDR_MIN, Value::U32(REGISTER)),
            // The kernel would say so by itself.
            (sys::NFTNL_EXPR_NAT_REG_ADDR_MAX, Value::U32(REGISTER)),
            (sys::NFTNL_EXPR_NAT_FLAGS, Value::U32(MAP_ADDRESSES)),
        ],
    )
}

/// `masquerade`
pub(super) fn masquerade() -> Expr {
    expr(c"masq", vec![])
}

/// `notrack`
pub(super) fn notrack() -> Expr {
    expr(c"notrack", vec![])
}

/// `counter`
pub(super) fn counter() -> Expr {
    expr(c"counter", vec![])
}

/// `counter name`
pub(super) fn named_counter(counter: Counter) -> Expr {
    expr(
        c"objref",
        vec![
            (sys::NFTNL_EXPR_OBJREF_IMM_TYPE, Value::U32(OBJECT_COUNTER)),
            (
                sys::NFTNL_EXPR_OBJREF_IMM_NAME,
                Value::Text(counter.as_cstr().into()),
            ),
        ],
    )
}

/// `goto chain`
pub(super) fn goto(chain: &CStr) -> Expr {
    let mut goto = verdict(libc::NFT_GOTO);
    goto.attributes
        .push((sys::NFTNL_EXPR_IMM_CHAIN as u16, Value::Text(chain.into())));
    goto
}

fn verdict(code: i32) -> Expr {
    expr(
        c"immediate",
        vec![
            (
                sys::NFTNL_EXPR_IMM_DREG,
                Value::U32(libc::NFT_REG_VERDICT as u32),
            ),
            (sys::NFTNL_EXPR_IMM_VERDICT, Value::U32(code as u32)),
        ],
    )
}

/// `accept`
pub(super) fn accept() -> Expr {
    verdict(libc::NF_ACCEPT)
}

/// `drop`
pub(super) fn drop_packet() -> Expr {
    verdict(libc::NF_DROP)
}

/// A rule with its comment.
pub(super) fn rule<'a>(chain: &'a Chain<'_>, comment: &CStr, exprs: &[Expr]) -> Rule<'a> {
    let mut rule = Rule::new(chain);
    for expr in exprs {
        rule.add_expr(expr);
    }
    rule.set_comment(comment)
        .expect("our comments are shorter than the limit of 256 bytes");
    rule
}

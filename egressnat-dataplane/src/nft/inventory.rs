//! What a table is made of, in words: to see whether the kernel has what we wrote.
//!
//! Chains that come and go with what they are for are no part of it: see [`forgotten`](super::forgotten).
//!
//! Both sides are read by the same functions of libnftnl, from the messages that we would send and from those that the
//! kernel answers with. Elements are not a part of it, nor what counters have counted.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};

use nftnl::{Batch, FinalizedBatch, ProtoFamily};
use nftnl_sys as sys;

use super::batch::{NftError, request};
use super::counter::Counter;
use super::forgotten;
use super::ruleset::TABLE;
use crate::netfilter::{Header, Message, ask};

/// Chains, sets and named counters by name, the rules of each chain in their order.
#[derive(Debug, Default, PartialEq, Eq)]
struct Inventory {
    objects: BTreeMap<String, String>,
    rules: BTreeMap<String, Vec<String>>,
}

/// The first object of our table of a family that is not as it was declared: a chain, a set, a counter or the rules of a chain.
pub(super) fn altered(
    family: ProtoFamily,
    declare: impl FnOnce(&mut Batch),
) -> Result<Option<String>, NftError> {
    let mut batch = Batch::new();
    declare(&mut batch);
    let declared = Inventory::of(&batch.finalize());
    let difference = declared.difference(&Inventory::present(family)?);
    if let Some(object) = &difference {
        tracing::warn!(object, "a table of ours was altered by somebody else");
    }
    Ok(difference)
}

impl Inventory {
    /// What a batch makes.
    fn of(batch: &FinalizedBatch) -> Self {
        let mut inventory = Self::default();
        for mut page in batch.iter() {
            while let Some(header) = Header::of(page) {
                inventory.take(header.kind, &Message::new(header.message(page)));
                page = header.after(page);
            }
        }
        inventory
    }

    /// What the kernel has in our table of a family.
    fn present(family: ProtoFamily) -> Result<Self, NftError> {
        let mut inventory = Self::default();
        for kind in [
            libc::NFT_MSG_GETCHAIN,
            libc::NFT_MSG_GETSET,
            libc::NFT_MSG_GETOBJ,
            libc::NFT_MSG_GETRULE,
        ] {
            let request = request(family, kind, libc::NLM_F_DUMP, |header| {
                // SAFETY: the request has room for a name; the table is freed after it was copied. The attribute that names the
                // table has the same number in all of these.
                unsafe {
                    let table = sys::nftnl_table_alloc();
                    sys::nftnl_table_set_str(table, sys::NFTNL_TABLE_NAME as u16, TABLE.as_ptr());
                    sys::nftnl_table_nlmsg_build_payload(header, table);
                    sys::nftnl_table_free(table);
                }
            });
            for message in ask(&request)? {
                inventory.take((SUBSYSTEM << 8) | (kind - 1) as u16, &message);
            }
        }
        Ok(inventory)
    }

    /// The first thing that is not the same in both.
    fn difference(&self, other: &Self) -> Option<String> {
        let objects = first_difference(&self.objects, &other.objects);
        let rules = || first_difference(&self.rules, &other.rules);
        objects.or_else(rules)
    }

    fn take(&mut self, kind: u16, message: &Message) {
        if kind >> 8 != SUBSYSTEM {
            return;
        }
        match i32::from(kind & 0xff) {
            libc::NFT_MSG_NEWCHAIN => self.objects.extend(chain(message)),
            libc::NFT_MSG_NEWSET => self.objects.extend(set(message)),
            libc::NFT_MSG_NEWOBJ => self.objects.extend(object(message)),
            libc::NFT_MSG_NEWRULE => {
                if let Some((chain, rule)) = rule(message) {
                    self.rules.entry(chain).or_default().push(rule);
                }
            }
            _ => {}
        }
    }
}

fn first_difference<T: PartialEq>(
    one: &BTreeMap<String, T>,
    other: &BTreeMap<String, T>,
) -> Option<String> {
    let mut names = one.keys().chain(other.keys());
    names
        .find(|name| one.get(*name) != other.get(*name))
        .cloned()
}

/// `NFNL_SUBSYS_NFTABLES` (`linux/netfilter/nfnetlink.h`).
const SUBSYSTEM: u16 = 10;

/// A name that libnftnl handed out.
///
/// # Safety
///
/// `text` is null or a C string.
unsafe fn owned(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(text) };
    Some(text.to_string_lossy().into_owned())
}

fn chain(message: &Message) -> Option<(String, String)> {
    // SAFETY: one whole message, parsed into a chain that is freed below; getters hand out what lives as long as that.
    unsafe {
        let chain = sys::nftnl_chain_alloc();
        let parsed = sys::nftnl_chain_nlmsg_parse(message.as_ptr(), chain) >= 0;
        let is_ours = parsed
            && is_named(sys::nftnl_chain_get_str(
                chain,
                sys::NFTNL_CHAIN_TABLE as u16,
            ));
        let text = is_ours.then(|| {
            let name = owned(sys::nftnl_chain_get_str(
                chain,
                sys::NFTNL_CHAIN_NAME as u16,
            ))?;
            if is_passing(&name) {
                return None;
            }
            let number = |attribute: u32| {
                let is_set = sys::nftnl_chain_is_set(chain, attribute as u16);
                is_set.then(|| sys::nftnl_chain_get_u32(chain, attribute as u16))
            };
            let hook = number(sys::NFTNL_CHAIN_HOOKNUM);
            // The rest means something for those chains only that are at a hook.
            let kind = hook.and_then(|_| {
                owned(sys::nftnl_chain_get_str(
                    chain,
                    sys::NFTNL_CHAIN_TYPE as u16,
                ))
            });
            let priority = hook
                .and_then(|_| number(sys::NFTNL_CHAIN_PRIO))
                .map(u32::cast_signed);
            let policy = hook.and_then(|_| number(sys::NFTNL_CHAIN_POLICY));
            Some((
                format!("chain {name}"),
                format!("{hook:?} {kind:?} {priority:?} {policy:?}"),
            ))
        });
        sys::nftnl_chain_free(chain);
        text.flatten()
    }
}

fn set(message: &Message) -> Option<(String, String)> {
    // SAFETY: as in `chain`.
    unsafe {
        let set = sys::nftnl_set_alloc();
        let parsed = sys::nftnl_set_nlmsg_parse(message.as_ptr(), set) >= 0;
        let is_ours = parsed && is_named(sys::nftnl_set_get_str(set, sys::NFTNL_SET_TABLE as u16));
        let text = is_ours.then(|| {
            let name = owned(sys::nftnl_set_get_str(set, sys::NFTNL_SET_NAME as u16))?;
            let number = |attribute: u32| sys::nftnl_set_get_u32(set, attribute as u16);
            let numbers = [
                sys::NFTNL_SET_FLAGS,
                sys::NFTNL_SET_KEY_TYPE,
                sys::NFTNL_SET_KEY_LEN,
                sys::NFTNL_SET_DATA_TYPE,
                sys::NFTNL_SET_DATA_LEN,
            ];
            Some((format!("set {name}"), format!("{:?}", numbers.map(number))))
        });
        sys::nftnl_set_free(set);
        text.flatten()
    }
}

fn object(message: &Message) -> Option<(String, String)> {
    // SAFETY: as in `chain`.
    unsafe {
        let object = sys::nftnl_obj_alloc();
        let parsed = sys::nftnl_obj_nlmsg_parse(message.as_ptr(), object) >= 0;
        let is_ours =
            parsed && is_named(sys::nftnl_obj_get_str(object, sys::NFTNL_OBJ_TABLE as u16));
        let text = is_ours.then(|| {
            let name = owned(sys::nftnl_obj_get_str(object, sys::NFTNL_OBJ_NAME as u16))?;
            let kind = sys::nftnl_obj_get_u32(object, sys::NFTNL_OBJ_TYPE as u16);
            Some((format!("object {name}"), kind.to_string()))
        });
        sys::nftnl_obj_free(object);
        text.flatten()
    }
}

fn rule(message: &Message) -> Option<(String, String)> {
    // SAFETY: as in `chain`; the expressions live as long as their rule, and the callback's pointer as long as the call.
    unsafe {
        let rule = sys::nftnl_rule_alloc();
        let parsed = sys::nftnl_rule_nlmsg_parse(message.as_ptr(), rule) >= 0;
        let is_ours =
            parsed && is_named(sys::nftnl_rule_get_str(rule, sys::NFTNL_RULE_TABLE as u16));
        let text = is_ours.then(|| {
            let chain = owned(sys::nftnl_rule_get_str(rule, sys::NFTNL_RULE_CHAIN as u16))?;
            if is_passing(&chain) {
                return None;
            }
            let mut text = String::new();
            sys::nftnl_expr_foreach(rule, Some(add_expression), (&raw mut text).cast());
            Some((format!("rules of chain {chain}"), text))
        });
        sys::nftnl_rule_free(rule);
        text.flatten()
    }
}

/// Adds the text of an expression to the `String` behind `into`.
unsafe extern "C" fn add_expression(expr: *mut sys::nftnl_expr, into: *mut c_void) -> i32 {
    // SAFETY: libnftnl hands out a valid expression and our own pointer; it writes no more than the buffer takes.
    unsafe {
        let text = &mut *into.cast::<String>();
        let name =
            owned(sys::nftnl_expr_get_str(expr, sys::NFTNL_EXPR_NAME as u16)).unwrap_or_default();
        let mut buffer = [0 as c_char; 512];
        // What a counter says changes by itself.
        if name != "counter" {
            sys::nftnl_expr_snprintf(buffer.as_mut_ptr(), buffer.len(), expr, 0, 0);
        }
        let rest = CStr::from_ptr(buffer.as_ptr()).to_string_lossy();
        text.push_str(&format!("[{name} {}]", without_rubbish(&name, rest.trim())));
    }
    0
}

/// libnftnl writes the name of a counter without its end, and reads back what follows it.
fn without_rubbish<'a>(expr: &str, text: &'a str) -> &'a str {
    let end = |counter: &Counter| {
        let name = counter.as_cstr().to_str().ok()?;
        Some(text.find(name)? + name.len())
    };
    match expr {
        "objref" => Counter::ALL
            .iter()
            .find_map(end)
            .map_or(text, |end| &text[..end]),
        _ => text,
    }
}

/// Whether a chain comes and goes.
fn is_passing(chain: &str) -> bool {
    let mut names = forgotten::CHAINS.iter();
    names.any(|name| name.to_bytes() == chain.as_bytes())
}

/// Whether a table has the name of ours.
///
/// # Safety
///
/// `name` is null or a C string.
unsafe fn is_named(name: *const c_char) -> bool {
    // SAFETY: the caller's promise.
    !name.is_null() && unsafe { CStr::from_ptr(name) } == TABLE
}

#[cfg(test)]
impl Inventory {
    /// An object as text, for a test that fails.
    fn describe(&self, name: &str) -> String {
        format!("{:?} {:?}", self.objects.get(name), self.rules.get(name))
    }
}

#[cfg(test)]
pub(super) fn assert_unaltered(family: ProtoFamily, declare: impl FnOnce(&mut Batch)) {
    let mut batch = Batch::new();
    declare(&mut batch);
    let declared = Inventory::of(&batch.finalize());
    let present = Inventory::present(family).unwrap();
    assert!(declared.rules.len() + declared.objects.len() > 4);
    if let Some(name) = declared.difference(&present) {
        let [declared, present] = [declared, present].map(|side| side.describe(&name));
        panic!("{name}: declared {declared}, present {present}");
    }
}

//! Masquerade rules as rules of one chain, the most specific first: the first that matches decides.
//!
//! A chain, not a set: which rule decides is a matter of destination, then source, then protocol, which no kind of set looks
//! up. It is asked about the first packet of a connection only. Rules come and go one by one, each at its place.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ffi::CString;

use egressnat_core::model::{MasqueradeAction, MasqueradeMatch, MasqueradeRules, Protocol};
use ipnet::IpNet;
use nftnl::{Batch, Chain, MsgType, Rule, Table};
use nftnl_sys as sys;

use super::batch::{NftError, request};
use super::expr::{self, Expr, rule};
use super::owner::Owner;
use super::ruleset::{MASQUERADE, TABLE};
use crate::family::{Family, octets};
use crate::netfilter::ask;

/// The precedence of a rule: of two that match a packet the greater decides.
type Precedence = (u8, Option<u8>, Option<Protocol>);

fn precedence(rule: &MasqueradeMatch) -> Precedence {
    let source = rule.source.map(|range| range.prefix_len());
    (rule.destination.prefix_len(), source, rule.protocol)
}

/// A rule in the kernel.
struct Present {
    handle: u64,
    comment: String,
}

impl Present {
    fn parsed(&self) -> Option<(MasqueradeMatch, MasqueradeAction)> {
        parse(&self.comment)
    }
}

/// The rules in the chain now.
pub(super) fn read(family: Family) -> Result<MasqueradeRules, NftError> {
    let rules = present(family)?
        .iter()
        .filter_map(Present::parsed)
        .collect();
    Ok(MasqueradeRules { rules })
}

/// Sets and removes rules in one batch: no packet sees a part of them.
pub(super) fn change(
    owner: &Owner,
    family: Family,
    set: &BTreeMap<MasqueradeMatch, MasqueradeAction>,
    removed: &[MasqueradeMatch],
) -> Result<(), NftError> {
    if set.is_empty() && removed.is_empty() {
        return Ok(());
    }
    let table = Table::new(TABLE, family.into());
    let chain = Chain::new(MASQUERADE, &table);
    let mut batch = Batch::new();
    let present = present(family)?;
    let goes = |rule: &MasqueradeMatch| set.contains_key(rule) || removed.contains(rule);
    let staying: Vec<(u64, Option<MasqueradeMatch>)> = present
        .iter()
        .map(|rule| (rule.handle, rule.parsed().map(|(rule, _)| rule)))
        .filter(|(_, rule)| !rule.is_some_and(|rule| goes(&rule)))
        .collect();
    // The least specific first: of those that come behind the same rule, the one that was added last is next to it.
    let mut coming: Vec<_> = set.iter().collect();
    coming.sort_by_key(|(rule, _)| precedence(rule));
    for (matched, action) in coming {
        let before = staying
            .iter()
            .take_while(|(_, other)| {
                // The chain begins with the rule for traffic inside the cluster.
                other.is_none_or(|other| precedence(&other) > precedence(matched))
            })
            .enumerate();
        // Its last rule, which masquerades all else, is no rule of the plan either and stays behind all.
        let anchor = before
            .filter(|(index, (_, other))| *index == 0 || other.is_some())
            .last();
        let mut new = rule_of(&chain, matched, *action);
        if let Some((_, (handle, _))) = anchor {
            new.set_position(*handle);
        }
        batch.add(&new, MsgType::Add);
    }
    for rule in &present {
        if rule.parsed().is_some_and(|(rule, _)| goes(&rule)) {
            let mut old = Rule::new(&chain);
            old.set_handle(rule.handle);
            batch.add(&old, MsgType::Del);
        }
    }
    owner.commit(&batch.finalize(), "masquerade rules")
}

/// Adds all rules at the end of a new chain.
pub(super) fn add_all(chain: &Chain<'_>, rules: &MasqueradeRules, batch: &mut Batch) {
    let mut rules: Vec<_> = rules.rules.iter().collect();
    rules.sort_by_key(|(rule, _)| Reverse(precedence(rule)));
    for (matched, action) in rules {
        batch.add(&rule_of(chain, matched, *action), MsgType::Add);
    }
}

fn rule_of<'a>(
    chain: &'a Chain<'_>,
    matched: &MasqueradeMatch,
    action: MasqueradeAction,
) -> Rule<'a> {
    rule(chain, &comment(matched, action), &exprs(matched, action))
}

fn exprs(matched: &MasqueradeMatch, action: MasqueradeAction) -> Vec<Expr> {
    let mut exprs = Vec::new();
    let mut add_range = |load: fn(Family) -> Expr, range: &IpNet| {
        let family = Family::of_range(range);
        if range.prefix_len() > 0 {
            exprs.push(load(family));
            if range.prefix_len() < family.width() {
                exprs.push(expr::and_octets(&octets(range.netmask())));
            }
            exprs.push(expr::is(&octets(range.network())));
        }
    };
    add_range(expr::destination, &matched.destination);
    if let Some(source) = &matched.source {
        add_range(expr::source, source);
    }
    if let Some(Protocol(number)) = matched.protocol {
        exprs.extend([expr::protocol(), expr::is(&[number])]);
    }
    exprs.push(expr::counter());
    exprs.push(match action {
        MasqueradeAction::Keep => expr::accept(),
        MasqueradeAction::Masquerade => expr::masquerade(),
    });
    exprs
}

/// The comment of a rule, by which we know it again.
fn comment(matched: &MasqueradeMatch, action: MasqueradeAction) -> CString {
    CString::new(format!("{action} {matched}")).expect("no NUL in it")
}

fn parse(comment: &str) -> Option<(MasqueradeMatch, MasqueradeAction)> {
    let mut words = comment.split(' ').peekable();
    let action = match words.next()? {
        "keep" => MasqueradeAction::Keep,
        "masquerade" => MasqueradeAction::Masquerade,
        _ => return None,
    };
    let mut range = |word: &str| {
        words.next_if_eq(&word)?;
        words.next()?.parse::<IpNet>().ok()
    };
    let mut matched = MasqueradeMatch::to(range("to")?);
    matched.source = range("from");
    matched.protocol = match words.next() {
        None => None,
        Some("protocol") => Some(Protocol(words.next()?.parse().ok()?)),
        Some(name) => {
            let named = (0..=u8::MAX).map(Protocol);
            Some(
                named
                    .into_iter()
                    .find(|protocol| protocol.to_string() == name)?,
            )
        }
    };
    Some((matched, action))
}

/// Everything in the chain, in its order.
fn present(family: Family) -> Result<Vec<Present>, NftError> {
    let table = Table::new(TABLE, family.into());
    let chain = Chain::new(MASQUERADE, &table);
    let answer = ask(&request(
        family.into(),
        libc::NFT_MSG_GETRULE,
        libc::NLM_F_DUMP,
        |header| {
            // SAFETY: the request has room for two names; the rule is freed after they were copied.
            unsafe {
                let rule = sys::nftnl_rule_alloc();
                let set = |attribute: u32, name: &std::ffi::CStr| {
                    sys::nftnl_rule_set_str(rule, attribute as u16, name.as_ptr());
                };
                set(sys::NFTNL_RULE_TABLE, TABLE);
                set(sys::NFTNL_RULE_CHAIN, chain.get_name());
                sys::nftnl_rule_nlmsg_build_payload(header, rule);
                sys::nftnl_rule_free(rule);
            }
        },
    ))?;
    let mut rules = Vec::new();
    for message in answer {
        // SAFETY: `message` is one whole netlink message; the rule that it is parsed into is freed after its use; userdata
        // is as long as it says.
        unsafe {
            let rule = sys::nftnl_rule_alloc();
            if sys::nftnl_rule_nlmsg_parse(message.as_ptr(), rule) >= 0 {
                let mut length = 0u32;
                let bytes = sys::nftnl_rule_get_data(
                    rule,
                    sys::NFTNL_RULE_USERDATA as u16,
                    &raw mut length,
                )
                .cast::<u8>();
                let userdata: &[u8] = match bytes.is_null() {
                    true => &[],
                    false => std::slice::from_raw_parts(bytes, length as usize),
                };
                rules.push(Present {
                    handle: sys::nftnl_rule_get_u64(rule, sys::NFTNL_RULE_HANDLE as u16),
                    comment: text_of(userdata),
                });
            }
            sys::nftnl_rule_free(rule);
        }
    }
    Ok(rules)
}

/// The comment in a rule's userdata: kind, length, text and NUL.
fn text_of(userdata: &[u8]) -> String {
    match userdata {
        [kind, length, text @ ..] if u32::from(*kind) == sys::NFTNL_UDATA_RULE_COMMENT => {
            let text = text.get(..usize::from(*length)).unwrap_or_default();
            let text = text.strip_suffix(&[0]).unwrap_or(text);
            String::from_utf8_lossy(text).into_owned()
        }
        _ => String::new(),
    }
}

/// Whether the rules stand between the two that are always there, the most specific first.
#[cfg(test)]
pub(super) fn is_ordered(family: Family) -> Result<bool, NftError> {
    let present = present(family)?;
    let own: Vec<_> = present.iter().map(Present::parsed).collect();
    Ok(match own.as_slice() {
        [None, rules @ .., None] => {
            let precedences: Option<Vec<_>> = rules
                .iter()
                .map(|rule| rule.map(|(rule, _)| Reverse(precedence(&rule))))
                .collect();
            precedences.is_some_and(|precedences| precedences.is_sorted())
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_known_again_by_its_comment() {
        let destination = "10.0.0.0/8".parse().unwrap();
        for source in [None, Some("10.10.1.0/24".parse().unwrap())] {
            for protocol in [
                None,
                Some(Protocol::TCP),
                Some(Protocol::ICMPV6),
                Some(Protocol(99)),
            ] {
                for action in [MasqueradeAction::Keep, MasqueradeAction::Masquerade] {
                    let matched = MasqueradeMatch {
                        destination,
                        source,
                        protocol,
                    };
                    let text = comment(&matched, action).into_string().unwrap();
                    assert_eq!(parse(&text), Some((matched, action)), "{text}");
                }
            }
        }
        for foreign in [
            "",
            "keep",
            "keep to",
            "keep to x",
            "drop to 10.0.0.0/8",
            "keep to 10.0.0.0/8 x",
        ] {
            assert_eq!(parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_comment_is_read_from_userdata() {
        assert_eq!(text_of(&[0, 3, b'h', b'i', 0]), "hi");
        for bytes in [&[][..], &[0], &[1, 1, 0], &[0, 9, b'x']] {
            assert_eq!(text_of(bytes), "", "{bytes:?}");
        }
    }
}

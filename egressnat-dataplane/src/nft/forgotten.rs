//! Answers to flows that were forgotten, to be decided anew with the pod's next packet.
//!
//! Would an answer come before that packet and be tracked, it would begin a connection from outside, and all that the pod sends in it would
//! pass for answers: neither steered nor translated (E14). So it is not tracked, and stays expected for as long as answers come.
//!
//! Where the pod is seen by another address from now on, these are no answers to what it sends then. A server that goes on with them is
//! listened to as before, beside the new flow.
//!
//! What the pod refuses of that, or ends, begins no flow either: conntrack calls it invalid, and source NAT is not asked about it. It goes
//! nowhere. Of a pod that no policy decides about any more nothing of that kind leaves (set `silenced`): a flow may have ended before the
//! edit, by a reset that the pod did not take.
//!
//! A new flow that has ended, by a reset of the server above all, expects no answers any more. What a server still sends in the old one would
//! begin a connection from outside then: it goes nowhere (set `begun`).
//!
//! The same holds for an answer that is on one processor while the pod's next packet is on another: between the end of the note and the moment
//! when the kernel knows the new flow, it would begin one from outside, and the pod's packet would be dropped for it.
//!
//! Three chains do that. They are there only while answers are expected, as each packet of the node has to pass them.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::net::IpAddr;
use std::time::Duration;

use nftnl::{Batch, Chain, ChainType, Hook, MsgType, Table};

use super::batch::NftError;
use super::chain::base_chain;
use super::expr::{self, Expr, rule};
use super::owner::Owner;
use super::query;
use super::ruleset::{AFTER_SRCNAT, RAW, Ruleset, TABLE, begins_no_connection};
use super::set::{Answer, Change, Elements, SetName, WORD};
use crate::family::Family;

const ANSWERS: &CStr = c"answers";
const ASTRAY: &CStr = c"astray";
const BEGUN_ANEW: &CStr = c"begun_anew";

/// How long an answer is expected after the one before: longer than a stream of UDP is tracked without a packet (2 minutes).
const EXPECTED: Duration = Duration::from_secs(180);

/// `ct status confirmed`: not the first packet of a flow.
const CT_STATUS_CONFIRMED: u32 = 1 << 3;
/// `ct state invalid`: of no flow, and the first packet of none.
const CT_INVALID: u32 = 1;
/// `ct state new`: of a flow that has no answer yet.
const CT_NEW: u32 = 8;

/// What tables have besides the chains that are declared for them.
pub(super) const CHAINS: [&CStr; 3] = [ANSWERS, ASTRAY, BEGUN_ANEW];

/// The sets that the chains look into.
const NOTES: [SetName; 3] = [SetName::Forgotten, SetName::Begun, SetName::Silenced];

/// The set `forgotten` with its chains.
pub(crate) struct Forgotten;

impl Forgotten {
    /// Leaves answers of the table's family untracked from now on, each until its flow has begun anew.
    pub(crate) fn expect(
        owner: &Owner,
        ruleset: &Ruleset,
        answers: &[Answer],
    ) -> Result<(), NftError> {
        let none = Elements::of(ruleset.family(), SetName::Forgotten);
        let expected = |elements: Elements, answer| elements.answer_for(answer, EXPECTED);
        let answers = answers.iter().fold(none, expected);
        Self::note(owner, ruleset, answers)
    }

    /// Lets go nowhere what pods of the table's family say that belongs to no flow, as long as answers are expected.
    pub(crate) fn silence(
        owner: &Owner,
        ruleset: &Ruleset,
        pods: &BTreeSet<IpAddr>,
    ) -> Result<(), NftError> {
        let family = ruleset.family();
        let none = Elements::of(family, SetName::Silenced);
        let of_family = pods.iter().filter(|pod| Family::of(**pod) == family);
        let silenced = |elements: Elements, pod: &IpAddr| elements.address_for(*pod, EXPECTED);
        let pods = of_family.fold(none, silenced);
        Self::note(owner, ruleset, pods)
    }

    /// Puts elements in, and the chains that look for them.
    fn note(owner: &Owner, ruleset: &Ruleset, elements: Elements) -> Result<(), NftError> {
        let mut batch = Batch::new();
        if !Self::is_expecting(ruleset.family())? {
            add_chains(ruleset, &mut batch);
        }
        elements.add_to(&mut batch, Change::Add);
        owner.commit(&batch.finalize(), "answers to flows that are forgotten")
    }

    /// What a table has noted that is about to be replaced, each for as long as it was to stay: to be put into the new one, with
    /// [`declare`](Self::declare).
    pub(super) fn carried(family: Family) -> Vec<Elements> {
        let carried = NOTES.into_iter().filter_map(|name| {
            // A set that the old layout has not is empty.
            let keys = query::expiring_keys(family, name).unwrap_or_default();
            let elements = || Elements::of(family, name).keys_for(&keys);
            (!keys.is_empty()).then(elements)
        });
        carried.collect()
    }

    /// Puts the chains into a new table.
    pub(super) fn declare(ruleset: &Ruleset, batch: &mut Batch) {
        add_chains(ruleset, batch);
    }

    /// Whether the chains of a family are there.
    fn is_expecting(family: Family) -> Result<bool, NftError> {
        query::has_chain(family, ANSWERS)
    }

    /// Takes the chains of a family away, unless an answer is expected, or a pod is silenced.
    pub(crate) fn end(owner: &Owner, family: Family) -> Result<(), NftError> {
        if !Self::is_expecting(family)? {
            return Ok(());
        }
        for name in NOTES {
            if query::is_filled(family, name)? {
                return Ok(());
            }
        }
        let table = Table::new(TABLE, family.into());
        let mut batch = Batch::new();
        for name in CHAINS {
            batch.add(&Chain::new(name, &table), MsgType::Del);
        }
        owner.commit(
            &batch.finalize(),
            "the end of answers to flows that are forgotten",
        )
    }
}

fn add_chains(ruleset: &Ruleset, batch: &mut Batch) {
    let family = ruleset.family();
    let [forgotten, begun] = [SetName::Forgotten, SetName::Begun].map(SetName::as_cstr);
    let table = Table::new(TABLE, family.into());
    let base = |named, hook, priority, batch: &mut Batch| {
        base_chain(named, &table, ChainType::Filter, hook, priority, batch)
    };
    let answers = base(
        (ANSWERS, c"after an edit: answers to flows that it ended"),
        Hook::PreRouting,
        RAW,
        batch,
    );
    let of_answer = || {
        let addresses = [expr::source(family), expr::destination(family)];
        let ports = [expr::source_port(), expr::destination_port()];
        key(family, addresses, ports)
    };
    let mut exprs = of_answer();
    exprs.extend([
        expr::is_in(forgotten),
        expr::update(forgotten, EXPECTED),
        expr::notrack(),
    ]);
    let comment = c"the flow was forgotten, and the pod has sent nothing since";
    batch.add(&rule(&answers, comment, &exprs), MsgType::Add);

    // While there is a mark.
    let astray = base(
        (
            ASTRAY,
            c"after an edit: what belongs to no flow, and nobody translates",
        ),
        Hook::PostRouting,
        AFTER_SRCNAT - 1,
        batch,
    );
    for (exprs, comment) in [
        (
            of_forgotten(family),
            c"of a flow that was forgotten, and begins none",
        ),
        (
            silenced(family),
            c"of a pod that a policy decided about until an edit: of a flow that has ended",
        ),
        (
            refusal(family),
            c"an error about what belongs to no flow: nobody translates it",
        ),
    ] {
        let mut all = Vec::from(ruleset.is_left_to_node());
        all.extend([
            expr::ct_state(),
            expr::and(CT_INVALID),
            expr::is_not(&0u32.to_ne_bytes()),
        ]);
        all.extend(exprs);
        all.extend([expr::counter(), expr::drop_packet()]);
        batch.add(&rule(&astray, comment, &all), MsgType::Add);
    }

    let mut early = of_answer();
    early.push(expr::is_in(begun));
    for (exprs, comment) in [
        (
            begins_no_connection(family),
            c"of a connection that has begun anew and ended",
        ),
        (
            early,
            c"an answer to a flow that is beginning anew, or was before it ended",
        ),
    ] {
        let mut all = vec![
            expr::ct_state(),
            expr::and(CT_NEW),
            expr::is_not(&0u32.to_ne_bytes()),
        ];
        all.extend(exprs);
        all.extend([expr::counter(), expr::drop_packet()]);
        batch.add(&rule(&astray, comment, &all), MsgType::Add);
    }

    let begun_anew = base(
        (BEGUN_ANEW, c"after an edit: flows that begin anew"),
        Hook::PostRouting,
        AFTER_SRCNAT + 1,
        batch,
    );
    // Not of a flow that is about to be forgotten.
    let mut exprs = vec![
        expr::ct_status(),
        expr::and(CT_STATUS_CONFIRMED),
        expr::is(&0u32.to_ne_bytes()),
    ];
    let addresses = [
        expr::ct_reply_source(family),
        expr::ct_reply_destination(family),
    ];
    let ports = [
        expr::ct_reply_source_port(),
        expr::ct_reply_destination_port(),
    ];
    exprs.extend(key(family, addresses, ports));
    // In this order: an answer finds one or the other.
    exprs.extend([
        expr::is_in(forgotten),
        expr::update(begun, EXPECTED),
        expr::delete(forgotten),
    ]);
    let comment = c"the pod has sent: answers belong to the new flow";
    batch.add(&rule(&begun_anew, comment, &exprs), MsgType::Add);
}

/// Loads what the set has: who answers whom, over what, from which port to which.
fn key(family: Family, [from, to]: [Expr; 2], [from_port, to_port]: [Expr; 2]) -> Vec<Expr> {
    let address = u32::from(family.width()) / 8;
    let parts = vec![
        (from, address),
        (to, address),
        (expr::protocol(), WORD),
        (from_port, WORD),
        (to_port, WORD),
    ];
    expr::concatenated(parts).collect()
}

/// Matches what a pod sends to who is expected to answer.
fn of_forgotten(family: Family) -> Vec<Expr> {
    let (from, to) = (expr::destination(family), expr::source(family));
    let ports = [expr::destination_port(), expr::source_port()];
    let mut exprs = key(family, [from, to], ports);
    exprs.push(expr::is_in(SetName::Forgotten.as_cstr()));
    exprs
}

/// Matches what a silenced pod sends to outside of the cluster.
fn silenced(family: Family) -> Vec<Expr> {
    let mut exprs = vec![
        expr::source(family),
        expr::is_in(SetName::Silenced.as_cstr()),
    ];
    exprs.extend(to_outside(family));
    exprs
}

/// Matches errors of a pod that nothing listens there, to outside of the cluster.
fn refusal(family: Family) -> Vec<Expr> {
    let (protocol, unreachable) = match family {
        Family::Ipv4 => (libc::IPPROTO_ICMP, 3),
        Family::Ipv6 => (libc::IPPROTO_ICMPV6, 1),
    };
    let mut exprs = vec![
        expr::protocol(),
        expr::is(&[protocol as u8]),
        expr::icmp_type(),
        expr::is(&[unreachable]),
    ];
    exprs.extend(to_outside(family));
    exprs
}

fn to_outside(family: Family) -> [Expr; 2] {
    [
        expr::destination(family),
        expr::is_not_in(SetName::InternalRanges.as_cstr()),
    ]
}

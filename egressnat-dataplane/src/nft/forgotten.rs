//! Answers to flows that were forgotten, to be decided anew with the pod's next packet.
//!
//! Would an answer come before that packet and be tracked, it would begin a connection from outside, and all that the pod sends in it would
//! pass for answers: neither steered nor translated (E14). So it is not tracked, and stays expected for as long as answers come.
//!
//! Two chains do that. They are there only while answers are expected, as each packet of the node has to pass them.

use std::ffi::CStr;
use std::time::Duration;

use nftnl::{Batch, Chain, ChainType, Hook, MsgType, Table};

use super::batch::NftError;
use super::expr::{self, Expr, rule};
use super::owner::Owner;
use super::query;
use super::ruleset::{AFTER_SRCNAT, RAW, TABLE, base_chain};
use super::set::{Answer, Change, Elements, SetName, WORD};
use crate::family::Family;

const ANSWERS: &CStr = c"answers";
const BEGUN_ANEW: &CStr = c"begun_anew";

/// How long an answer is expected after the one before: longer than a stream of UDP is tracked without a packet (2 minutes).
const EXPECTED: Duration = Duration::from_secs(180);

/// `ct status confirmed`: not the first packet of a flow.
const CT_STATUS_CONFIRMED: u32 = 1 << 3;

/// What tables have besides the chains that are declared for them.
pub(super) const CHAINS: [&CStr; 2] = [ANSWERS, BEGUN_ANEW];

/// The set `forgotten` with its chains.
pub(crate) struct Forgotten;

impl Forgotten {
    /// Leaves answers of a family untracked from now on, each until its flow has begun anew.
    pub(crate) fn expect(
        owner: &Owner,
        family: Family,
        answers: &[Answer],
    ) -> Result<(), NftError> {
        let mut batch = Batch::new();
        if !Self::is_expecting(family)? {
            add_chains(family, &mut batch);
        }
        let none = Elements::of(family, SetName::Forgotten);
        let expected = |elements: Elements, answer| elements.answer_for(answer, EXPECTED);
        answers
            .iter()
            .fold(none, expected)
            .add_to(&mut batch, Change::Add);
        owner.commit(&batch.finalize(), "answers to flows that are forgotten")
    }

    /// Whether the chains of a family are there.
    fn is_expecting(family: Family) -> Result<bool, NftError> {
        query::has_chain(family, ANSWERS)
    }

    /// Takes the chains of a family away, unless an answer is expected.
    pub(crate) fn end(owner: &Owner, family: Family) -> Result<(), NftError> {
        if !Self::is_expecting(family)? || query::is_filled(family, SetName::Forgotten)? {
            return Ok(());
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

fn add_chains(family: Family, batch: &mut Batch) {
    let forgotten = SetName::Forgotten.as_cstr();
    let address = match family {
        Family::Ipv4 => 4,
        Family::Ipv6 => 16,
    };
    let key = |fields: [Expr; 5]| {
        let lengths = [address, address, WORD, WORD, WORD];
        expr::concatenated(fields.into_iter().zip(lengths).collect())
    };
    let table = Table::new(TABLE, family.into());
    let base = |name, hook, priority, batch: &mut Batch| {
        base_chain(name, &table, ChainType::Filter, hook, priority, batch)
    };
    let answers = base(ANSWERS, Hook::PreRouting, RAW, batch);
    let mut exprs: Vec<Expr> = key([
        expr::source(family),
        expr::destination(family),
        expr::protocol(),
        expr::source_port(),
        expr::destination_port(),
    ])
    .collect();
    exprs.extend([
        expr::is_in(forgotten),
        expr::update(forgotten, EXPECTED),
        expr::notrack(),
    ]);
    let comment = c"the flow was forgotten, and the pod has sent nothing since";
    batch.add(&rule(&answers, comment, &exprs), MsgType::Add);

    let begun = base(BEGUN_ANEW, Hook::PostRouting, AFTER_SRCNAT + 1, batch);
    // Not of a flow that is about to be forgotten.
    let mut exprs = vec![
        expr::ct_status(),
        expr::and(CT_STATUS_CONFIRMED),
        expr::is(&0u32.to_ne_bytes()),
    ];
    exprs.extend(key([
        expr::ct_reply_source(family),
        expr::ct_original_source(family),
        expr::protocol(),
        expr::ct_reply_port(),
        expr::ct_original_port(),
    ]));
    exprs.push(expr::delete(forgotten));
    let comment = c"the pod has sent: answers belong to the new flow";
    batch.add(&rule(&begun, comment, &exprs), MsgType::Add);
}

//! Deadlines in the kernel: a floating IP that this node may use for a while only (E33).
//!
//! A fenced address is one of the set `fenced`, and is usable while it is one of the set `held` too, from which the kernel
//! takes it by itself. It then answers no ARP, sends nothing and takes nothing, whether its agent runs or not.
//!
//! Not a timeout in the map that `snat` looks up: a flow has its binding for as long as it lasts and does not ask the map
//! again. So packets are dropped by the address that they leave with, behind all source NAT.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::net::Ipv4Addr;
use std::time::Duration;

use nftnl::{Batch, Chain, ChainType, Hook, MsgType, ProtoFamily, Table};

use super::batch::{NftError, commit};
use super::expr::{self, Expr, rule};
use super::query;
use super::ruleset::{Named, TABLE, base_chain};
use super::set::{Change, Elements, SetName};

/// Counts up with every change of the table for ARP.
const COMMENT: &CStr = c"egressnat layout 1: egress NAT gateway, written by egressnat-agent";

/// Where `NF_ARP_IN` and `NF_ARP_OUT` are among the hooks of IP.
const ARP_IN: Hook = Hook::PreRouting;
const ARP_OUT: Hook = Hook::In;

/// Less than a tick of a slow kernel (HZ=100) would be rounded to 0, which is no deadline at all. So that is none left.
const SHORTEST: Duration = Duration::from_millis(20);

/// The fence: the table for ARP, and two sets of the table ip.
pub(crate) struct Fence;

impl Fence {
    /// Fences an address, and lets it be used for so long from now.
    pub(crate) fn hold(address: Ipv4Addr, time: Duration) -> Result<(), NftError> {
        Self::ensure()?;
        let mut batch = Batch::new();
        for (fenced, held) in [
            (SetName::Fenced, SetName::Held),
            (SetName::ArpFenced, SetName::ArpHeld),
        ] {
            Elements::of(fenced)
                .address(address)
                .add_to(&mut batch, Change::Add);
            // An element that is there keeps its time, whatever comes.
            Elements::of(held)
                .address(address)
                .add_to(&mut batch, Change::RemoveIfThere);
            if time >= SHORTEST {
                Elements::of(held)
                    .address_for(address, time)
                    .add_to(&mut batch, Change::Add);
            }
        }
        commit(&batch.finalize(), &format!("the deadline of {address}"))
    }

    /// Takes the fence from an address.
    pub(crate) fn release(address: Ipv4Addr) -> Result<(), NftError> {
        let mut names = vec![SetName::Held, SetName::Fenced];
        if query::table_userdata(ProtoFamily::Arp)?.is_some() {
            names.extend(SetName::ARP);
        }
        let mut batch = Batch::new();
        for name in names {
            let elements = Elements::of(name).address(address);
            elements.add_to(&mut batch, Change::RemoveIfThere);
        }
        commit(
            &batch.finalize(),
            &format!("the end of the fence of {address}"),
        )
    }

    /// The addresses whose deadline has come.
    pub(crate) fn expired() -> Result<BTreeSet<Ipv4Addr>, NftError> {
        let fenced = query::addresses(SetName::Fenced)?;
        let held = query::addresses(SetName::Held)?;
        Ok(fenced.difference(&held).copied().collect())
    }

    /// Makes the table for ARP, unless it is there.
    fn ensure() -> Result<(), NftError> {
        let comment = query::comment_userdata(&COMMENT.into());
        if query::table_userdata(ProtoFamily::Arp)?.as_ref() == Some(&comment) {
            return Ok(());
        }
        let named = |userdata| Named {
            family: ProtoFamily::Arp,
            userdata,
        };
        let mut batch = Batch::new();
        batch.add(&named(&[]), MsgType::Add);
        batch.add(&named(&[]), MsgType::Del);
        batch.add(&named(&comment), MsgType::Add);
        for name in SetName::ARP {
            batch.add(&Elements::of(name), MsgType::Add);
        }
        let table = Table::new(TABLE, ProtoFamily::Arp);
        for (name, hook, address, comment) in [
            (
                c"input",
                ARP_IN,
                expr::arp_target(),
                c"its deadline has come: not asked",
            ),
            (
                c"output",
                ARP_OUT,
                expr::arp_sender(),
                c"its deadline has come: not told",
            ),
        ] {
            let chain = base_chain(name, &table, ChainType::Filter, hook, 0, &mut batch);
            let exprs = expired(address, SetName::ArpFenced, SetName::ArpHeld);
            batch.add(&rule(&chain, comment, &exprs), MsgType::Add);
        }
        for address in query::addresses(SetName::Fenced)? {
            let elements = Elements::of(SetName::ArpFenced).address(address);
            elements.add_to(&mut batch, Change::Add);
        }
        commit(&batch.finalize(), "table arp egressnat")
    }

    /// Removes the table for ARP. Returns whether there was one.
    pub(crate) fn remove() -> Result<bool, NftError> {
        // A kernel that knows no such tables has none.
        if !query::table_userdata(ProtoFamily::Arp).is_ok_and(|userdata| userdata.is_some()) {
            return Ok(false);
        }
        let mut batch = Batch::new();
        let table = Named {
            family: ProtoFamily::Arp,
            userdata: &[],
        };
        batch.add(&table, MsgType::Del);
        commit(&batch.finalize(), "the removal of table arp egressnat")?;
        Ok(true)
    }
}

/// Drops packets for a fenced address, on their way in.
pub(super) fn add_inbound(chain: &Chain<'_>, batch: &mut Batch) {
    let exprs = expired(expr::destination(), SetName::Fenced, SetName::Held);
    let comment = c"the deadline of the floating IP has come: nothing comes in";
    batch.add(&rule(chain, comment, &exprs), MsgType::Add);
}

/// Drops packets from a fenced address, behind all source NAT: a flow keeps its binding as long as it lasts.
pub(super) fn add_outbound(chain: &Chain<'_>, batch: &mut Batch) {
    let exprs = expired(expr::source(), SetName::Fenced, SetName::Held);
    let comment = c"the deadline of the floating IP has come: nothing goes out";
    batch.add(&rule(chain, comment, &exprs), MsgType::Add);
}

fn expired(address: Expr, fenced: SetName, held: SetName) -> [Expr; 5] {
    [
        address,
        expr::is_in(fenced.as_cstr()),
        expr::is_not_in(held.as_cstr()),
        expr::counter(),
        expr::drop_packet(),
    ]
}

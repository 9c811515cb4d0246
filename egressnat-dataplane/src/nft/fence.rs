//! Deadlines in the kernel: a floating IP that this node may use for a while only (E33).
//!
//! A fenced address is one of the set `fenced`, and is usable while it is one of the set `held` too, from which the kernel
//! takes it by itself. It then answers no ARP or neighbor solicitation, sends nothing and takes nothing, whether its agent
//! runs or not. For ARP that takes a table of its own; neighbor discovery is IPv6 like all else.
//!
//! Not a timeout in the map that `snat` looks up: a flow has its binding for as long as it lasts and does not ask the map
//! again. So packets are dropped by the address that they leave with, behind all source NAT.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use nftnl::{Batch, Chain, ChainType, Hook, MsgType, ProtoFamily, Table};

use super::batch::NftError;
use super::chain::base_chain;
use super::counter::Counter;
use super::expr::{self, Expr, rule};
use super::inventory::altered;
use super::margin::write_ahead;
use super::owner::{Owner, Standing};
use super::query;
use super::ruleset::TABLE;
use super::set::{Change, Elements, SetName};
use crate::family::Family;

/// Counts up with every change of the table for ARP.
const COMMENT: &CStr = c"egressnat layout 2: egress NAT gateway, written by egressnat-agent";

/// Where `NF_ARP_IN` and `NF_ARP_OUT` are among the hooks of IP.
const ARP_IN: Hook = Hook::PreRouting;
const ARP_OUT: Hook = Hook::In;

/// Less than a tick of a slow kernel (HZ=100) would be rounded to 0, which is no deadline at all. So that is none left.
const SHORTEST: Duration = Duration::from_millis(20);

/// The ICMPv6 type of a neighbor solicitation (RFC 4861, section 4.3).
const SOLICITATION: u8 = 135;

/// By how much deadlines come earlier in a table that takes the place of another: reading and writing takes time.
pub(super) const CARRY_MARGIN: Duration = Duration::from_millis(300);

/// Addresses of a family with the time that is left to them, for a table that takes the place of another.
pub(super) fn carried(
    family: impl Into<ProtoFamily>,
    deadlines: BTreeMap<IpAddr, Duration>,
) -> Elements {
    let left =
        |(address, time): (IpAddr, Duration)| Some((address, time.checked_sub(CARRY_MARGIN)?));
    let usable = deadlines.into_iter().filter_map(left);
    let none = Elements::of(family, SetName::Held);
    usable
        .filter(|(_, time)| *time >= SHORTEST)
        .fold(none, |elements, (address, time)| {
            elements.address_for(address, time)
        })
}

/// Ends the use of all fenced addresses of a family until their next deadline is told.
pub(super) fn let_go(owner: &Owner, family: impl Into<ProtoFamily>) -> Result<(), NftError> {
    let family = family.into();
    let held = query::addresses(family, SetName::Held)?.into_iter();
    let mut batch = Batch::new();
    held.fold(Elements::of(family, SetName::Held), Elements::address)
        .add_to(&mut batch, Change::RemoveIfThere);
    owner.commit(&batch.finalize(), "the end of deadlines that are too late")
}

/// Whether there is a table for ARP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arp {
    Present,
    Missing,
}

/// The tables that have a say about addresses, each with the addresses that it is about.
fn by_table(addresses: &[IpAddr], arp: Arp) -> Vec<(ProtoFamily, Vec<IpAddr>)> {
    let of = |family| {
        let of_family = |address: &&IpAddr| Family::of(**address) == family;
        addresses.iter().filter(of_family).copied().collect()
    };
    let ipv4: Vec<IpAddr> = of(Family::Ipv4);
    let mut tables = vec![(ProtoFamily::Ipv6, of(Family::Ipv6))];
    if arp == Arp::Present {
        tables.push((ProtoFamily::Arp, ipv4.clone()));
    }
    tables.push((ProtoFamily::Ipv4, ipv4));
    tables.retain(|(_, addresses)| !addresses.is_empty());
    tables
}

/// Addresses in an error: one, or how many.
fn list(addresses: &[IpAddr]) -> String {
    match addresses {
        [address] => address.to_string(),
        addresses => format!("{} floating IPs", addresses.len()),
    }
}

/// The fence: two sets of the tables ip and ip6 each, and the table for ARP.
pub(crate) struct Fence;

impl Fence {
    /// Fences addresses, and lets them be used until a deadline, by the kernel's count never later. All in one batch.
    ///
    /// For a packet the new deadline takes the place of the old at once: what a batch takes out and puts in changes together. Kernels
    /// before 6.17 may miss both where a processor is kept from going on amid a look-up, and drop that packet: one of a million.
    pub(crate) fn hold(
        owner: &mut Owner,
        addresses: &[IpAddr],
        deadline: Instant,
    ) -> Result<(), NftError> {
        if addresses.iter().any(IpAddr::is_ipv4) {
            Self::ensure_arp(owner)?;
        }
        // From here on it is counted how long it takes.
        let until = write_ahead(deadline, |time| Self::write(owner, addresses, time))?;
        owner
            .fenced
            .extend(addresses.iter().map(|address| (*address, until)));
        Ok(())
    }

    fn write(owner: &Owner, addresses: &[IpAddr], time: Duration) -> Result<(), NftError> {
        let mut batch = Batch::new();
        for (table, addresses) in by_table(addresses, Arp::Present) {
            let of = |name| Elements::of(table, name);
            let plain = |name| addresses.iter().copied().fold(of(name), Elements::address);
            plain(SetName::Fenced).add_to(&mut batch, Change::Add);
            // An element that is there keeps its time, whatever comes.
            plain(SetName::Held).add_to(&mut batch, Change::RemoveIfThere);
            if time >= SHORTEST {
                let timed = addresses.iter().fold(of(SetName::Held), |held, address| {
                    held.address_for(*address, time)
                });
                timed.add_to(&mut batch, Change::Add);
            }
        }
        let what = format!("the deadline of {}", list(addresses));
        owner.commit(&batch.finalize(), &what)
    }

    /// Takes the fence from addresses, all in one batch.
    pub(crate) fn release(owner: &mut Owner, addresses: &[IpAddr]) -> Result<(), NftError> {
        let fenced = |address: &IpAddr| owner.fenced.contains_key(address);
        let fenced: Vec<IpAddr> = addresses.iter().copied().filter(fenced).collect();
        if fenced.is_empty() {
            return Ok(());
        }
        let arp = match query::table(ProtoFamily::Arp)? {
            Some(_) => Arp::Present,
            None => Arp::Missing,
        };
        let mut batch = Batch::new();
        for (table, addresses) in by_table(&fenced, arp) {
            for name in [SetName::Held, SetName::Fenced] {
                let none = Elements::of(table, name);
                let elements = addresses.iter().copied().fold(none, Elements::address);
                elements.add_to(&mut batch, Change::RemoveIfThere);
            }
        }
        let what = format!("the end of the fence of {}", list(&fenced));
        owner.commit(&batch.finalize(), &what)?;
        for address in &fenced {
            owner.fenced.remove(address);
        }
        Ok(())
    }

    /// When the deadline of each address of a family comes.
    pub(crate) fn deadlines(family: Family) -> Result<BTreeMap<IpAddr, Duration>, NftError> {
        query::expiring(family, SetName::Held)
    }

    /// Reads from the kernel which addresses are fenced, and until when each may be used.
    pub(crate) fn read(owner: &mut Owner, families: &BTreeSet<Family>) -> Result<(), NftError> {
        let mut all = BTreeMap::new();
        for family in families {
            let now = Instant::now();
            let left = Self::deadlines(*family)?;
            let until = |address: &IpAddr| now + left.get(address).copied().unwrap_or_default();
            let fenced = query::addresses(*family, SetName::Fenced)?;
            all.extend(fenced.iter().map(|address| (*address, until(address))));
        }
        owner.fenced = all;
        Ok(())
    }

    /// Whether an address has a deadline, which may have come.
    pub(crate) fn is_fenced(owner: &Owner, address: IpAddr) -> bool {
        owner.fenced.contains_key(&address)
    }

    /// Whether the deadline of an address has come.
    pub(crate) fn is_silent(owner: &Owner, address: IpAddr) -> bool {
        let until = owner.fenced.get(&address);
        until.is_some_and(|until| *until <= Instant::now())
    }

    /// The addresses whose deadline has come.
    pub(crate) fn expired(owner: &Owner) -> BTreeSet<IpAddr> {
        let now = Instant::now();
        let expired = owner.fenced.iter().filter(|(_, until)| **until <= now);
        expired.map(|(address, _)| *address).collect()
    }

    /// Makes the table for ARP anew if others took it away or altered it, while there is something to fence. Returns whether it
    /// did.
    pub(crate) fn repair(owner: &mut Owner) -> Result<bool, NftError> {
        if query::addresses(Family::Ipv4, SetName::Fenced)?.is_empty() {
            return Ok(false);
        }
        Self::ensure_arp(owner)
    }

    /// Makes the table for ARP, unless it is there, with the deadlines that the one of IPv4 has. Returns whether it was made.
    fn ensure_arp(owner: &mut Owner) -> Result<bool, NftError> {
        let layout = query::comment_userdata(COMMENT);
        let present = match owner.look(ProtoFamily::Arp, &layout)? {
            Standing::Owned => return Ok(false),
            Standing::Open(table) => match altered(ProtoFamily::Arp, declare_arp)? {
                None => return Ok(false),
                Some(_) => Some(table),
            },
            Standing::Other(present) => present,
        };
        let fenced = query::addresses(Family::Ipv4, SetName::Fenced)?.into_iter();
        let none = Elements::of(ProtoFamily::Arp, SetName::Fenced);
        let fenced = fenced.fold(none, Elements::address);
        let start = Instant::now();
        let held = carried(ProtoFamily::Arp, Self::deadlines(Family::Ipv4)?);
        let what = "table arp egressnat";
        let made = owner.make(present.as_ref(), &layout, what, |owner| {
            let mut batch = Batch::new();
            if present.is_some() {
                batch.add(&owner.named(ProtoFamily::Arp, &[]), MsgType::Del);
            }
            batch.add(&owner.named(ProtoFamily::Arp, &layout), MsgType::Add);
            declare_arp(&mut batch);
            fenced.add_to(&mut batch, Change::Add);
            held.add_to(&mut batch, Change::Add);
            batch.finalize()
        })?;
        // As of a table of IPv4: had we been frozen on the way, a deadline would be too late.
        if start.elapsed() > CARRY_MARGIN {
            let_go(owner, ProtoFamily::Arp)?;
        }
        Ok(made)
    }

    /// Removes the table for ARP. Returns whether there was one.
    pub(crate) fn remove(owner: &Owner) -> Result<bool, NftError> {
        // A kernel that knows no such tables has none.
        if !query::table(ProtoFamily::Arp).is_ok_and(|table| table.is_some()) {
            return Ok(false);
        }
        let mut batch = Batch::new();
        batch.add(&owner.named(ProtoFamily::Arp, &[]), MsgType::Del);
        owner.commit(&batch.finalize(), "the removal of table arp egressnat")?;
        Ok(true)
    }
}

/// Sets, chains and rules of the table for ARP.
fn declare_arp(batch: &mut Batch) {
    for name in SetName::ARP {
        batch.add(&Elements::of(ProtoFamily::Arp, name), MsgType::Add);
    }
    let table = Table::new(TABLE, ProtoFamily::Arp);
    for (named, hook, address, comment) in [
        (
            (c"input", c"ARP that comes in, about whom"),
            ARP_IN,
            expr::arp_target(),
            c"its deadline has come: not asked",
        ),
        (
            (c"output", c"ARP that goes out, from whom"),
            ARP_OUT,
            expr::arp_sender(),
            c"its deadline has come: not told",
        ),
    ] {
        let chain = base_chain(named, &table, ChainType::Filter, hook, 0, batch);
        let exprs = expired(address, expr::counter());
        batch.add(&rule(&chain, comment, &exprs), MsgType::Add);
    }
}

/// Drops what is for a fenced address itself, and questions of neighbors who has it.
pub(super) fn add_inbound(family: Family, chain: &Chain<'_>, batch: &mut Batch) {
    let counter = || expr::named_counter(Counter::Expired);
    let exprs = expired(expr::destination(family), counter());
    let comment = c"the deadline of the floating IP has come: nothing comes in";
    batch.add(&rule(chain, comment, &exprs), MsgType::Add);
    if family == Family::Ipv6 {
        // Who asks asks a group, about an address. The answer would have the address as its source, as all else that goes out.
        let mut exprs = vec![
            expr::protocol(),
            expr::is(&[libc::IPPROTO_ICMPV6 as u8]),
            expr::icmp_type(),
            expr::is(&[SOLICITATION]),
        ];
        exprs.extend(expired(expr::neighbor(), counter()));
        let comment = c"the deadline of the floating IP has come: nobody asks who has it";
        batch.add(&rule(chain, comment, &exprs), MsgType::Add);
    }
}

/// Drops packets of flows that have a fenced address, in both directions, behind all source NAT: a flow keeps its binding as
/// long as it lasts.
pub(super) fn add_forwarded(family: Family, chain: &Chain<'_>, batch: &mut Batch) {
    let counter = || expr::named_counter(Counter::Expired);
    // Where the answers of a flow are for is what it is translated to, whichever way a packet of it goes.
    let exprs = expired(expr::ct_reply_destination(family), counter());
    let comment = c"the deadline of the floating IP has come: its flows stand still";
    batch.add(&rule(chain, comment, &exprs), MsgType::Add);
    if family == Family::Ipv6 {
        // Neighbor discovery is of no flow.
        let mut exprs = vec![expr::protocol(), expr::is(&[libc::IPPROTO_ICMPV6 as u8])];
        exprs.extend(expired(expr::source(family), counter()));
        let comment = c"the deadline of the floating IP has come: nobody is told who has it";
        batch.add(&rule(chain, comment, &exprs), MsgType::Add);
    }
}

/// Drops what has an address that is fenced and not held.
fn expired(address: Expr, counter: Expr) -> [Expr; 5] {
    [
        address,
        expr::is_in(SetName::Fenced.as_cstr()),
        expr::is_not_in(SetName::Held.as_cstr()),
        counter,
        expr::drop_packet(),
    ]
}

//! Our table: made whole once per layout; afterwards only elements change.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::net::IpAddr;
use std::time::Instant;

use egressnat_core::model::{MasqueradeAction, MasqueradeMatch, MasqueradeRules};
use ipnet::IpNet;
use nftnl::{Batch, Chain, ChainType, Hook, MsgType, Policy, Table};

use super::batch::NftError;
use super::counter::Counter;
use super::expr::{self, rule};
use super::fence;
use super::inventory::altered;
use super::masquerade;
use super::owner::{Owner, Standing};
use super::query;
use super::set::{Change, Elements, SetName};
use crate::config::Config;
use crate::family::Family;
use crate::mark::MarkMask;

/// What our tables are called: one of family ip, one of family ip6 where a plan has something of IPv6, one of family arp
/// where deadlines are used.
pub(crate) const TABLE: &CStr = c"egressnat";

/// The chain of what no policy decides. `masquerade` alone is a word of the language of nft, which could not list it.
pub(super) const MASQUERADE: &CStr = c"masquerade_rules";

/// Counts up with every change of chains, rules or sets: a table of another layout is replaced in one batch.
const LAYOUT: u32 = 3;

/// Priorities at the hooks (netfilter's `nf_ip_hook_priorities`).
const RAW: i32 = -300;
/// After connection tracking (-200), where `ct` can be read; before filters (0).
const MANGLE: i32 = -150;
/// The first that the kernel takes for source NAT, which is behind connection tracking (-200): who translates first decides, and
/// all source NAT happens at one point (100), in the order of these numbers.
const FIRST_SRCNAT: i32 = -199;
/// Before other source NAT (100), behind what others put there on purpose.
const BEFORE_SRCNAT: i32 = 95;
/// Behind destination NAT (-100), before routing.
const AFTER_DSTNAT: i32 = -90;
/// After all source NAT.
const AFTER_SRCNAT: i32 = 110;

/// `ct state` bits.
const CT_INVALID_OR_NEW: u32 = 1 | 8;
const CT_DIRECTION_REPLY: u8 = 1;
/// `ct status dnat`
const CT_STATUS_DNAT: u32 = 1 << 5;

/// The table of a family as it should be: which bits and which port its rules name.
#[derive(Debug, Clone)]
pub(crate) struct Ruleset {
    family: Family,
    mark: MarkMask,
    tunnel_port: u16,
    tunnel_device: String,
}

impl Ruleset {
    pub(crate) fn new(family: Family, config: &Config) -> Self {
        Self {
            family,
            mark: config.mark,
            tunnel_port: config.tunnel_port,
            tunnel_device: config.tunnel_device.clone(),
        }
    }

    /// What the table of a family is called in nftables' own words.
    pub(crate) fn name(family: Family) -> &'static str {
        match family {
            Family::Ipv4 => "table ip egressnat",
            Family::Ipv6 => "table ip6 egressnat",
        }
    }

    /// Whether there is a table of a family, of whatever layout.
    pub(crate) fn is_present(family: Family) -> Result<bool, NftError> {
        Ok(query::table(family)?.is_some())
    }

    fn comment(&self) -> CString {
        let text = format!(
            "egressnat layout {LAYOUT}, mark {}, port {}, device {}: egress NAT gateway, written by egressnat-agent",
            self.mark, self.tunnel_port, self.tunnel_device
        );
        CString::new(text).expect("no NUL in it")
    }

    /// Makes the table unless it is there in this very layout. Returns whether it was made.
    pub(crate) fn ensure(&self, owner: &mut Owner) -> Result<bool, NftError> {
        let layout = query::comment_userdata(&self.comment());
        let present = match owner.look(self.family.into(), &layout)? {
            Standing::Owned => return Ok(false),
            Standing::Open(table) => {
                let rules = masquerade::read(self.family).unwrap_or_default();
                match altered(self.family.into(), |batch| self.declare(&rules, batch))? {
                    None => return Ok(false),
                    Some(_) => Some(table),
                }
            }
            Standing::Other(present) => present,
        };
        let (kept, rules) = match &present {
            Some(table) => (
                self.kept_elements(&table.userdata),
                masquerade::read(self.family).unwrap_or_default(),
            ),
            None => Default::default(),
        };
        let what = Self::name(self.family);
        let start = Instant::now();
        let made = owner.make(present.as_ref(), &layout, what, |owner| {
            let mut batch = Batch::new();
            if present.is_some() {
                batch.add(&owner.named(self.family, &[]), MsgType::Del);
            }
            batch.add(&owner.named(self.family, &layout), MsgType::Add);
            self.declare(&rules, &mut batch);
            for elements in &kept {
                elements.add_to(&mut batch, Change::Add);
            }
            batch.finalize()
        })?;
        // The kernel counts from when it got the table: had we been frozen on the way, a deadline would be too late.
        if start.elapsed() > fence::CARRY_MARGIN {
            fence::let_go(owner, self.family)?;
        }
        Ok(made)
    }

    /// Sets, counters, chains and rules.
    fn declare(&self, rules: &MasqueradeRules, batch: &mut Batch) {
        for name in SetName::ALL {
            batch.add(&Elements::of(self.family, name), MsgType::Add);
        }
        for counter in Counter::ALL {
            batch.add(&counter.of(self.family), MsgType::Add);
        }
        let table = Table::new(TABLE, self.family.into());
        self.raw_chains(&table, batch);
        self.prerouting_chain(&table, batch);
        self.redirected_chain(&table, batch);
        self.guard_chain(&table, batch);
        self.masquerade_chain(&table, rules, batch);
        self.decided_chain(&table, batch);
        self.postrouting_chain(&table, batch);
        self.last_chain(&table, batch);
    }

    fn raw_chains(&self, table: &Table, batch: &mut Batch) {
        let prerouting = base_chain(
            c"raw_prerouting",
            table,
            ChainType::Filter,
            Hook::PreRouting,
            RAW,
            batch,
        );
        let output = base_chain(
            c"raw_output",
            table,
            ChainType::Filter,
            Hook::Out,
            RAW,
            batch,
        );
        for chain in [&prerouting, &output] {
            let exprs = [
                expr::protocol(),
                expr::is(&[libc::IPPROTO_UDP as u8]),
                expr::destination_port(),
                expr::is(&self.tunnel_port.to_be_bytes()),
                expr::notrack(),
            ];
            batch.add(
                &rule(chain, c"tunnel packets need no connection tracking", &exprs),
                MsgType::Add,
            );
        }
    }

    fn prerouting_chain(&self, table: &Table, batch: &mut Batch) {
        let chain = base_chain(
            c"prerouting",
            table,
            ChainType::Filter,
            Hook::PreRouting,
            MANGLE,
            batch,
        );
        fence::add_inbound(self.family, &chain, batch);
        let replies = [
            expr::ct_direction(),
            expr::is(&[CT_DIRECTION_REPLY]),
            expr::mark(),
            expr::and(!self.mark.mask()),
            expr::set_mark(),
        ];
        let comment = c"replies of connections that came in from outside are not egress";
        batch.add(&rule(&chain, comment, &replies), MsgType::Add);
        let inbound = [
            expr::destination(self.family),
            expr::is_in(SetName::FloatingIps.as_cstr()),
            expr::ct_state(),
            expr::and(CT_INVALID_OR_NEW),
            expr::is_not(&0u32.to_ne_bytes()),
            expr::named_counter(Counter::Inbound),
            expr::drop_packet(),
        ];
        let comment = c"floating IPs take no new connections and answer no unknown flow";
        batch.add(&rule(&chain, comment, &inbound), MsgType::Add);
    }

    /// A Service may lead a packet elsewhere than where it was steered by. To inside of the cluster nothing is egress (E12).
    fn redirected_chain(&self, table: &Table, batch: &mut Batch) {
        let chain = base_chain(
            c"redirected",
            table,
            ChainType::Filter,
            Hook::PreRouting,
            AFTER_DSTNAT,
            batch,
        );
        let inside = [
            expr::ct_status(),
            expr::and(CT_STATUS_DNAT),
            expr::is_not(&0u32.to_ne_bytes()),
            expr::ct_direction(),
            expr::is_not(&[CT_DIRECTION_REPLY]),
            expr::mark(),
            expr::and(self.mark.mask()),
            expr::is_not(&0u32.to_ne_bytes()),
            expr::destination(self.family),
            expr::is_in(SetName::InternalRanges.as_cstr()),
            expr::mark(),
            expr::and_or(!self.mark.mask(), self.mark.passed()),
            expr::set_mark(),
        ];
        let comment = c"a Service leads into the cluster: not egress";
        batch.add(&rule(&chain, comment, &inside), MsgType::Add);
    }

    /// What is decided is decided: every packet here gets its translation, if only to the address that it has, and nobody behind
    /// translates it otherwise.
    fn decided_chain(&self, table: &Table, batch: &mut Batch) {
        let chain = base_chain(
            c"decided",
            table,
            ChainType::Nat,
            Hook::PostRouting,
            FIRST_SRCNAT,
            batch,
        );
        let mut add = |comment: &CStr, exprs: &[expr::Expr]| {
            batch.add(&rule(&chain, comment, exprs), MsgType::Add)
        };
        let ours = self.mark.mask();
        add(
            c"on the way to the gateway node: translated there",
            &[
                expr::mark(),
                expr::and(self.mark.tunnel()),
                expr::is_not(&0u32.to_ne_bytes()),
                expr::counter(),
                expr::source(self.family),
                expr::snat(self.family),
            ],
        );
        add(
            c"a policy keeps the pod's address",
            &[
                expr::mark(),
                expr::and(ours),
                expr::is(&self.mark.keep().to_ne_bytes()),
                expr::counter(),
                expr::source(self.family),
                expr::snat(self.family),
            ],
        );
        add(
            c"leaves with its egress IP",
            &[
                expr::mark(),
                expr::and(ours),
                expr::map(SetName::EgressIps.as_cstr()),
                expr::counter(),
                expr::snat(self.family),
            ],
        );
        let left_to_node = self.mark.left_to_node();
        add(
            c"its egress IP is not on this node (any more): never leaves with another address",
            &[
                expr::mark(),
                expr::and(ours),
                expr::is_not(&0u32.to_ne_bytes()),
                expr::and(left_to_node),
                expr::is_not(&(self.mark.forward() & left_to_node).to_ne_bytes()),
                expr::named_counter(Counter::NotHeld),
                expr::drop_packet(),
            ],
        );
    }

    fn postrouting_chain(&self, table: &Table, batch: &mut Batch) {
        let chain = base_chain(
            c"postrouting",
            table,
            ChainType::Nat,
            Hook::PostRouting,
            BEFORE_SRCNAT,
            batch,
        );
        let mut known: Vec<expr::Expr> = self.left_to_node().into();
        known.push(expr::goto(MASQUERADE));
        let comment = c"known pods: no policy decides";
        batch.add(&rule(&chain, comment, &known), MsgType::Add);
        let unknown = [
            expr::source(self.family),
            expr::is_in(SetName::PodRanges.as_cstr()),
            expr::goto(MASQUERADE),
        ];
        let comment = c"pods that are not known yet";
        batch.add(&rule(&chain, comment, &unknown), MsgType::Add);
    }

    /// Matches packets of known pods that no policy decides.
    fn left_to_node(&self) -> [expr::Expr; 3] {
        let bits = self.mark.left_to_node();
        [
            expr::mark(),
            expr::and(bits),
            expr::is(&(self.mark.forward() & bits).to_ne_bytes()),
        ]
    }

    /// Every packet of a known pod is decided, and carries the decision as its mark. What comes from a pod's address and
    /// carries none is of a pod that is not known (E43). Here the destination is the one that the packet leaves to.
    fn guard_chain(&self, table: &Table, batch: &mut Batch) {
        let chain = base_chain(
            c"guard",
            table,
            ChainType::Filter,
            Hook::Forward,
            MANGLE,
            batch,
        );
        let replies = [
            expr::ct_direction(),
            expr::is(&[CT_DIRECTION_REPLY]),
            expr::accept(),
        ];
        let comment = c"replies of connections that came in from outside are not egress";
        batch.add(&rule(&chain, comment, &replies), MsgType::Add);
        let undecided = [
            expr::mark(),
            expr::and(self.mark.mask()),
            expr::is(&0u32.to_ne_bytes()),
            expr::source(self.family),
            expr::is_in(SetName::PodRanges.as_cstr()),
            expr::destination(self.family),
            expr::is_in(SetName::GuardRanges.as_cstr()),
            expr::is_not_in(SetName::InternalRanges.as_cstr()),
            expr::named_counter(Counter::Undecided),
            expr::drop_packet(),
        ];
        let comment = c"to a strict destination, and nobody has decided about it";
        batch.add(&rule(&chain, comment, &undecided), MsgType::Add);
        let redirected = [
            expr::mark(),
            expr::and(self.mark.mask()),
            expr::is(&self.mark.passed().to_ne_bytes()),
            expr::ct_status(),
            expr::and(CT_STATUS_DNAT),
            expr::is_not(&0u32.to_ne_bytes()),
            expr::destination(self.family),
            expr::is_in(SetName::GuardRanges.as_cstr()),
            expr::is_not_in(SetName::InternalRanges.as_cstr()),
            expr::named_counter(Counter::Redirected),
            expr::drop_packet(),
        ];
        let comment = c"of a selected pod, and a Service leads to a strict destination";
        batch.add(&rule(&chain, comment, &redirected), MsgType::Add);
    }

    /// Source NAT is not asked about a flow that has a binding already, nor about packets that conntrack calls invalid.
    fn last_chain(&self, table: &Table, batch: &mut Batch) {
        let chain = base_chain(
            c"after_nat",
            table,
            ChainType::Filter,
            Hook::PostRouting,
            AFTER_SRCNAT,
            batch,
        );
        fence::add_outbound(self.family, &chain, batch);
        let mut name = [0; libc::IFNAMSIZ];
        for (to, from) in name.iter_mut().zip(self.tunnel_device.bytes()) {
            *to = from;
        }
        let stray = [
            expr::mark(),
            expr::and(self.mark.tunnel()),
            expr::is_not(&0u32.to_ne_bytes()),
            expr::out_interface(),
            expr::is_not(&name),
            expr::named_counter(Counter::NoTunnel),
            expr::drop_packet(),
        ];
        let comment = c"steered, and its way does not lead into the tunnel";
        batch.add(&rule(&chain, comment, &stray), MsgType::Add);
        let mut decided_to_forward: Vec<expr::Expr> = self.left_to_node().into();
        decided_to_forward.extend([
            expr::mark(),
            expr::and(!self.mark.mask()),
            expr::set_mark(),
            expr::accept(),
        ]);
        let comment = c"known pods, no policy decides: the mark has done its work";
        batch.add(&rule(&chain, comment, &decided_to_forward), MsgType::Add);
        let exprs = [
            expr::mark(),
            expr::and(self.mark.tunnel()),
            expr::is(&0u32.to_ne_bytes()),
            expr::mark(),
            expr::and(self.mark.mask()),
            expr::is_not(&0u32.to_ne_bytes()),
            expr::is_not(&self.mark.keep().to_ne_bytes()),
            expr::source(self.family),
            expr::is_in(SetName::InternalRanges.as_cstr()),
            expr::counter(),
            expr::drop_packet(),
        ];
        let comment = c"should leave with an egress IP and still has a pod's address";
        batch.add(&rule(&chain, comment, &exprs), MsgType::Add);
    }

    /// What a table of another layout has in the sets of this one: it goes into the new table in the same batch, so that the
    /// guard holds and translation goes on while the layout changes.
    fn kept_elements(&self, userdata: &[u8]) -> Vec<Elements> {
        let family = self.family;
        let ranges = [
            SetName::PodRanges,
            SetName::InternalRanges,
            SetName::GuardRanges,
        ];
        // A set that the old layout has not is empty.
        let mut kept: Vec<Elements> = ranges
            .into_iter()
            .map(|name| {
                let ranges = query::ranges(family, name).unwrap_or_default();
                let ranges = ranges.into_iter();
                ranges.fold(Elements::of(family, name), Elements::range)
            })
            .collect();
        let deadlines = query::expiring(family, SetName::Held).unwrap_or_default();
        kept.push(fence::carried(family, deadlines));
        for name in [SetName::FloatingIps, SetName::Fenced] {
            let addresses = query::addresses(family, name).unwrap_or_default();
            let addresses = addresses.into_iter();
            kept.push(addresses.fold(Elements::of(family, name), Elements::address));
        }
        // Marks mean the same as long as the mask is the same.
        let mask = format!("mark {},", self.mark);
        if String::from_utf8_lossy(userdata).contains(&mask) {
            let mapped = query::mappings(family, SetName::EgressIps).unwrap_or_default();
            let none = Elements::of(family, SetName::EgressIps);
            kept.push(
                mapped
                    .into_iter()
                    .fold(none, |elements, (mark, ip)| elements.mapping(mark, ip)),
            );
        }
        kept
    }

    /// Removes the table of a family. Returns whether there was one.
    pub(crate) fn remove(owner: &Owner, family: Family) -> Result<bool, NftError> {
        if !Self::is_present(family)? {
            return Ok(false);
        }
        let mut batch = Batch::new();
        batch.add(&owner.named(family, &[]), MsgType::Del);
        let what = format!("the removal of {}", Self::name(family));
        owner.commit(&batch.finalize(), &what)?;
        Ok(true)
    }

    /// Changes elements, removals first, all in one batch.
    pub(crate) fn change(
        owner: &Owner,
        removed: &[Elements],
        added: &[Elements],
        what: &str,
    ) -> Result<(), NftError> {
        let mut batch = Batch::new();
        for elements in removed {
            elements.add_to(&mut batch, Change::Remove);
        }
        for elements in added {
            elements.add_to(&mut batch, Change::Add);
        }
        owner.commit(&batch.finalize(), what)
    }

    /// Sets and removes masquerade rules of a family, all in one batch.
    pub(crate) fn change_masquerade(
        owner: &Owner,
        family: Family,
        set: &BTreeMap<MasqueradeMatch, MasqueradeAction>,
        removed: &[MasqueradeMatch],
    ) -> Result<(), NftError> {
        masquerade::change(owner, family, set, removed)
    }

    /// The masquerade rules now.
    pub(crate) fn masquerade(family: Family) -> Result<MasqueradeRules, NftError> {
        masquerade::read(family)
    }

    /// How many connections were translated to each egress IP.
    pub(crate) fn connections(family: Family) -> Result<BTreeMap<IpAddr, u64>, NftError> {
        query::connections(family, SetName::EgressIps)
    }

    /// How many packets a counter has.
    pub(crate) fn packets(family: Family, counter: Counter) -> Result<u64, NftError> {
        counter.of(family).packets()
    }

    /// The ranges in an interval set now.
    pub(crate) fn ranges(family: Family, name: SetName) -> Result<BTreeSet<IpNet>, NftError> {
        query::ranges(family, name)
    }

    /// The addresses in a set now.
    pub(crate) fn addresses(family: Family, name: SetName) -> Result<BTreeSet<IpAddr>, NftError> {
        query::addresses(family, name)
    }

    /// The mappings in a map now.
    pub(crate) fn mappings(
        family: Family,
        name: SetName,
    ) -> Result<BTreeSet<(u32, IpAddr)>, NftError> {
        query::mappings(family, name)
    }

    /// What no policy decides: not inside the cluster, then by the masquerade rules, which stand between these two.
    fn masquerade_chain(&self, table: &Table, rules: &MasqueradeRules, batch: &mut Batch) {
        let chain = Chain::new(MASQUERADE, table);
        batch.add(&chain, MsgType::Add);
        let internal = [
            expr::destination(self.family),
            expr::is_in(SetName::InternalRanges.as_cstr()),
            expr::accept(),
        ];
        let comment = c"inside the cluster";
        batch.add(&rule(&chain, comment, &internal), MsgType::Add);
        masquerade::add_all(&chain, rules, batch);
        let comment = c"all else of this node's pods leaves with the node's address";
        let all_else = [expr::counter(), expr::masquerade()];
        batch.add(&rule(&chain, comment, &all_else), MsgType::Add);
    }
}

pub(super) fn base_chain<'a>(
    name: &CStr,
    table: &'a Table,
    kind: ChainType,
    hook: Hook,
    priority: i32,
    batch: &mut Batch,
) -> Chain<'a> {
    let mut chain = Chain::new(name, table);
    chain.set_type(kind);
    chain.set_hook(hook, priority);
    chain.set_policy(Policy::Accept);
    batch.add(&chain, MsgType::Add);
    chain
}

#[cfg(test)]
mod tests;

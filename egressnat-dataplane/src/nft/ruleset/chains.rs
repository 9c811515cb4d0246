//! The chains of our table and their rules.
//!
//! Each packet of a node comes by three of them: `prerouting`, `guard` and `after_nat`. So they ask first what most packets
//! answer with no, or what ends the way of most, and what only few have to pass is a chain of its own. Chains of type nat see
//! the first packet of a flow only.

use std::ffi::CStr;

use egressnat_core::model::MasqueradeRules;
use nftnl::{Batch, Chain, ChainType, Hook, MsgType, Rule, Table};

use super::{Ruleset, TABLE};
use crate::family::Family;
use crate::nft::batch::NftError;
use crate::nft::chain::{base_chain, plain_chain};
use crate::nft::counter::Counter;
use crate::nft::expr::{self, Expr, rule};
use crate::nft::owner::Owner;
use crate::nft::set::{Elements, SetName};
use crate::nft::{fence, masquerade};

/// The chain of what no policy decides. `masquerade` alone is a word of the language of nft, which could not list it.
pub(in crate::nft) const MASQUERADE: &CStr = c"masquerade_rules";

const RAW_PREROUTING: &CStr = c"raw_prerouting";

/// Priorities at the hooks (netfilter's `nf_ip_hook_priorities`).
pub(in crate::nft) const RAW: i32 = -300;
/// After connection tracking (-200), where `ct` can be read; before filters (0).
const MANGLE: i32 = -150;
/// The first that the kernel takes for NAT, which is behind connection tracking (-200): who translates first decides, and all
/// source NAT happens at one point (100), all destination NAT at another (-100), in the order of these numbers.
const FIRST_NAT: i32 = -199;
/// Before other source NAT (100), behind what others put there on purpose.
const BEFORE_SRCNAT: i32 = 95;
/// Behind destination NAT (-100), before routing.
const AFTER_DSTNAT: i32 = -90;
/// After all source NAT.
pub(in crate::nft) const AFTER_SRCNAT: i32 = 110;

/// `ct state` bits.
const CT_INVALID_OR_NEW: u32 = 1 | 8;
/// `ct status snat` and `ct status dnat`
const CT_STATUS_SNAT: u32 = 1 << 4;
const CT_STATUS_DNAT: u32 = 1 << 5;

const REPLIES: &CStr = c"replies of connections that came in from outside are not egress";

impl Ruleset {
    /// Sets, counters, chains and rules.
    pub(super) fn declare(&self, rules: &MasqueradeRules, batch: &mut Batch) {
        for name in SetName::ALL {
            batch.add(&Elements::of(self.family, name), MsgType::Add);
        }
        for counter in Counter::ALL {
            batch.add(&counter.of(self.family), MsgType::Add);
        }
        let table = Table::new(TABLE, self.family.into());
        self.raw_chains(&table, batch);
        self.prerouting_chains(&table, batch);
        self.floating_chains(&table, batch);
        self.guard_chains(&table, batch);
        self.masquerade_chain(&table, rules, batch);
        self.decided_chain(&table, batch);
        self.postrouting_chain(&table, batch);
        self.last_chains(&table, batch);
    }

    /// Has connection tracking know nothing of steered packets with one of these marks, until it is called with others. So their flows can
    /// be forgotten and not begin again before they are decided anew.
    pub(crate) fn leave_untracked(&self, owner: &Owner, marks: &[u32]) -> Result<(), NftError> {
        let table = Table::new(TABLE, self.family.into());
        let chain = Chain::new(RAW_PREROUTING, &table);
        let mut batch = Batch::new();
        // Without a handle: all that are there.
        batch.add(&Rule::new(&chain), MsgType::Del);
        for mark in marks {
            let exprs = [
                expr::mark(),
                expr::and(self.mark.mask()),
                expr::is(&(mark | self.mark.tunnel()).to_ne_bytes()),
                expr::notrack(),
            ];
            let comment = c"its floating IP comes to this node: the flow begins anew";
            batch.add(&rule(&chain, comment, &exprs), MsgType::Add);
        }
        self.add_raw_prerouting_rules(&chain, &mut batch);
        owner.commit(&batch.finalize(), "connection tracking of what moves")
    }

    fn raw_chains(&self, table: &Table, batch: &mut Batch) {
        let base = |named, hook, batch: &mut Batch| {
            base_chain(named, table, ChainType::Filter, hook, RAW, batch)
        };
        let comment = c"before connection tracking: which flows there are, and what is tracked";
        let prerouting = base((RAW_PREROUTING, comment), Hook::PreRouting, batch);
        self.add_raw_prerouting_rules(&prerouting, batch);
        let comment = c"before connection tracking: what this node sends itself";
        let output = base((c"raw_output", comment), Hook::Out, batch);
        self.add_tunnel_rule(&output, batch);
    }

    fn add_raw_prerouting_rules(&self, chain: &Chain<'_>, batch: &mut Batch) {
        // A binding stays for as long as its flow. Whose policy has another egress IP now begins anew by this. The node's own pods are
        // steered without the tunnel, and their flows go on where they come through it.
        let exprs = [
            expr::in_interface(),
            expr::is(&self.device_name()),
            expr::source(self.family),
            expr::is_not_in(SetName::PodRanges.as_cstr()),
            expr::mark(),
            expr::and(self.mark.mask()),
            expr::shift_right(self.mark.shift()),
            expr::set_ct_original_zone(),
        ];
        let comment = c"out of the tunnel: each egress IP has flows of its own";
        batch.add(&rule(chain, comment, &exprs), MsgType::Add);
        self.add_tunnel_rule(chain, batch);
    }

    fn add_tunnel_rule(&self, chain: &Chain<'_>, batch: &mut Batch) {
        let exprs = [
            expr::protocol(),
            expr::is(&[libc::IPPROTO_UDP as u8]),
            expr::destination_port(),
            expr::is(&self.tunnel_port.to_be_bytes()),
            expr::notrack(),
        ];
        let comment = c"tunnel packets need no connection tracking";
        batch.add(&rule(chain, comment, &exprs), MsgType::Add);
    }

    /// Where a decision is taken back before the packet is routed by it.
    fn prerouting_chains(&self, table: &Table, batch: &mut Batch) {
        let comment = c"decisions that are taken back";
        let marked = plain_chain(c"marked", comment, table, batch);
        // Not of what comes out of the tunnel: that is from a pod which was asked by nobody.
        let replies = [
            expr::ct_direction(),
            expr::is(&[expr::CT_DIRECTION_REPLY]),
            expr::in_interface(),
            expr::is_not(&self.device_name()),
            expr::mark(),
            expr::and(!self.mark.mask()),
            expr::set_mark(),
            expr::accept(),
        ];
        batch.add(&rule(&marked, REPLIES, &replies), MsgType::Add);
        // A Service may lead a packet elsewhere than where it was steered by. To inside of the cluster nothing is egress (E12).
        let inside = [
            expr::ct_status(),
            expr::and(CT_STATUS_DNAT),
            expr::is_not(&0u32.to_ne_bytes()),
            expr::destination(self.family),
            expr::is_in(SetName::InternalRanges.as_cstr()),
            expr::mark(),
            expr::and_or(!self.mark.mask(), self.mark.passed()),
            expr::set_mark(),
        ];
        let comment = c"a Service leads into the cluster: not egress";
        batch.add(&rule(&marked, comment, &inside), MsgType::Add);

        let chain = base_chain(
            (
                c"prerouting",
                c"before routing: what is decided, and whether it still holds",
            ),
            table,
            ChainType::Filter,
            Hook::PreRouting,
            AFTER_DSTNAT,
            batch,
        );
        let mut decided: Vec<Expr> = self.is_decided().into();
        decided.push(expr::goto(c"marked"));
        let comment = c"of this node's pods";
        batch.add(&rule(&chain, comment, &decided), MsgType::Add);
    }

    /// What is for a floating IP itself.
    fn floating_chains(&self, table: &Table, batch: &mut Batch) {
        let new = base_chain(
            (
                c"inbound",
                c"what would begin a connection to a floating IP",
            ),
            table,
            ChainType::Nat,
            Hook::PreRouting,
            FIRST_NAT,
            batch,
        );
        let named = (c"input", c"what is for this node: floating IPs say nothing");
        let input = base_chain(named, table, ChainType::Filter, Hook::In, MANGLE, batch);
        fence::add_inbound(self.family, &input, batch);
        for (chain, comment) in [
            (&new, c"floating IPs take no new connections"),
            (&input, c"floating IPs answer no unknown flow"),
        ] {
            let exprs = [
                expr::destination(self.family),
                expr::is_in(SetName::FloatingIps.as_cstr()),
                expr::ct_state(),
                expr::and(CT_INVALID_OR_NEW),
                expr::is_not(&0u32.to_ne_bytes()),
                expr::named_counter(Counter::Inbound),
                expr::drop_packet(),
            ];
            batch.add(&rule(chain, comment, &exprs), MsgType::Add);
        }
        let mut unasked = vec![
            expr::source(self.family),
            expr::is_in(SetName::GuardRanges.as_cstr()),
        ];
        unasked.extend(begins_no_connection(self.family));
        unasked.extend([expr::counter(), expr::drop_packet()]);
        let comment = c"of no connection, and what a pod says to it would pass for a reply";
        batch.add(&rule(&new, comment, &unasked), MsgType::Add);
    }

    /// What is decided is decided: every packet here gets its translation, if only to the address that it has, and nobody behind
    /// translates it otherwise.
    fn decided_chain(&self, table: &Table, batch: &mut Batch) {
        let chain = base_chain(
            (
                c"decided",
                c"first packets of flows, before all other source NAT: what is decided is decided",
            ),
            table,
            ChainType::Nat,
            Hook::PostRouting,
            FIRST_NAT,
            batch,
        );
        let mut add =
            |comment: &CStr, exprs: &[Expr]| batch.add(&rule(&chain, comment, exprs), MsgType::Add);
        let ours = self.mark.mask();
        let mut steered: Vec<Expr> = self.is_steered().into();
        steered.extend([
            expr::counter(),
            expr::source(self.family),
            expr::snat(self.family),
        ]);
        add(
            c"on the way to the gateway node: translated there",
            &steered,
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
        let mut not_held: Vec<Expr> = self.is_decided().into();
        not_held.extend([
            expr::and(left_to_node),
            expr::is_not(&(self.mark.forward() & left_to_node).to_ne_bytes()),
            expr::named_counter(Counter::NotHeld),
            expr::drop_packet(),
        ]);
        add(
            c"its egress IP is not on this node (any more): never leaves with another address",
            &not_held,
        );
    }

    fn postrouting_chain(&self, table: &Table, batch: &mut Batch) {
        let chain = base_chain(
            (
                c"postrouting",
                c"first packets of flows that nobody decides: by the masquerade rules",
            ),
            table,
            ChainType::Nat,
            Hook::PostRouting,
            BEFORE_SRCNAT,
            batch,
        );
        let mut known: Vec<Expr> = self.is_left_to_node().into();
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

    /// The tunnel device as expressions have its name.
    fn device_name(&self) -> [u8; libc::IFNAMSIZ] {
        let mut name = [0; libc::IFNAMSIZ];
        for (to, from) in name.iter_mut().zip(self.tunnel_device.bytes()) {
            *to = from;
        }
        name
    }

    /// Matches packets that carry a decision.
    fn is_decided(&self) -> [Expr; 3] {
        [
            expr::mark(),
            expr::and(self.mark.mask()),
            expr::is_not(&0u32.to_ne_bytes()),
        ]
    }

    /// Matches packets of known pods that no policy decides.
    pub(in crate::nft) fn is_left_to_node(&self) -> [Expr; 3] {
        let bits = self.mark.left_to_node();
        [
            expr::mark(),
            expr::and(bits),
            expr::is(&(self.mark.forward() & bits).to_ne_bytes()),
        ]
    }

    /// Matches packets on their way into the tunnel.
    fn is_steered(&self) -> [Expr; 3] {
        [
            expr::mark(),
            expr::and(self.mark.tunnel()),
            expr::is_not(&0u32.to_ne_bytes()),
        ]
    }

    /// Every packet of a known pod is decided, and carries the decision as its mark. What comes from a pod's address and
    /// carries none is of a pod that is not known (E43). Here the destination is the one that the packet leaves to.
    fn guard_chains(&self, table: &Table, batch: &mut Batch) {
        let [undecided, passed] = [
            (c"undecided", c"the guard: nobody has decided yet"),
            (
                c"passed",
                c"the guard: a Service may lead to a strict destination",
            ),
        ]
        .map(|(name, comment)| plain_chain(name, comment, table, batch));
        let to_strict_destination = || {
            [
                expr::destination(self.family),
                expr::is_in(SetName::GuardRanges.as_cstr()),
                expr::is_not_in(SetName::InternalRanges.as_cstr()),
            ]
        };
        let replies = [
            expr::ct_direction(),
            expr::is(&[expr::CT_DIRECTION_REPLY]),
            expr::accept(),
        ];
        batch.add(&rule(&undecided, REPLIES, &replies), MsgType::Add);
        let mut unknown = vec![
            expr::source(self.family),
            expr::is_in(SetName::PodRanges.as_cstr()),
        ];
        unknown.extend(to_strict_destination());
        unknown.extend([expr::named_counter(Counter::Undecided), expr::drop_packet()]);
        let comment = c"to a strict destination, and nobody has decided about it";
        batch.add(&rule(&undecided, comment, &unknown), MsgType::Add);
        // To connection tracking a flow is addresses and ports, whoever sends with them. Where a policy is strict this is dropped already.
        let claimed = [
            expr::ct_reply_destination(self.family),
            expr::is_in(SetName::FloatingIps.as_cstr()),
            expr::named_counter(Counter::Undecided),
            expr::drop_packet(),
        ];
        let comment = c"in a flow with an egress IP, and not from where its pod is";
        batch.add(&rule(&undecided, comment, &claimed), MsgType::Add);
        let mut redirected = vec![
            expr::ct_status(),
            expr::and(CT_STATUS_DNAT),
            expr::is_not(&0u32.to_ne_bytes()),
        ];
        redirected.extend(to_strict_destination());
        redirected.extend([
            expr::named_counter(Counter::Redirected),
            expr::drop_packet(),
        ]);
        let comment = c"of a selected pod, and a Service leads to a strict destination";
        batch.add(&rule(&passed, comment, &redirected), MsgType::Add);

        let chain = base_chain(
            (
                c"guard",
                c"nothing reaches a strict destination without a decision",
            ),
            table,
            ChainType::Filter,
            Hook::Forward,
            MANGLE,
            batch,
        );
        for (mark, then, comment) in [
            (0, c"undecided", c"replies, and pods that are not known"),
            (
                self.mark.passed(),
                c"passed",
                c"selected pods: no policy decides",
            ),
        ] {
            let exprs = [
                expr::mark(),
                expr::and(self.mark.mask()),
                expr::is(&mark.to_ne_bytes()),
                expr::goto(then),
            ];
            batch.add(&rule(&chain, comment, &exprs), MsgType::Add);
        }
    }

    /// Source NAT is not asked about a flow that has a binding already, nor about packets that conntrack calls invalid.
    fn last_chains(&self, table: &Table, batch: &mut Batch) {
        let comment = c"what has to go into the tunnel";
        let steered = plain_chain(c"steered", comment, table, batch);
        let stray = [
            expr::out_interface(),
            expr::is_not(&self.device_name()),
            expr::named_counter(Counter::NoTunnel),
            expr::drop_packet(),
        ];
        let comment = c"steered, and its way does not lead into the tunnel";
        batch.add(&rule(&steered, comment, &stray), MsgType::Add);
        // The next holder knows the pod by its own address.
        let translated = [
            expr::ct_status(),
            expr::and(CT_STATUS_SNAT),
            expr::is_not(&0u32.to_ne_bytes()),
            expr::ct_original_source(self.family),
            expr::set_source(self.family),
        ];
        let comment = c"translated here before its floating IP moved: as the pod sent it";
        batch.add(&rule(&steered, comment, &translated), MsgType::Add);

        let chain = base_chain(
            (
                c"after_nat",
                c"behind all source NAT: nothing leaves with another address than was decided",
            ),
            table,
            ChainType::Filter,
            Hook::PostRouting,
            AFTER_SRCNAT,
            batch,
        );
        let mut done: Vec<Expr> = self.is_left_to_node().into();
        done.extend([
            expr::mark(),
            expr::and(!self.mark.mask()),
            expr::set_mark(),
            expr::accept(),
        ]);
        let comment = c"known pods, no policy decides: the mark has done its work";
        batch.add(&rule(&chain, comment, &done), MsgType::Add);
        let mut to_tunnel: Vec<Expr> = self.is_steered().into();
        to_tunnel.push(expr::goto(c"steered"));
        let comment = c"on the way to the gateway node";
        batch.add(&rule(&chain, comment, &to_tunnel), MsgType::Add);
        fence::add_forwarded(self.family, &chain, batch);
        // A flow has the address of its first packet, whatever is decided later.
        let mut untranslated: Vec<Expr> = self.is_decided().into();
        untranslated.extend([
            expr::is_not(&self.mark.keep().to_ne_bytes()),
            expr::source_behind(self.family),
            expr::is_not_in(SetName::Translated.as_cstr()),
            expr::counter(),
            expr::drop_packet(),
        ]);
        let comment = c"should leave with its egress IP and has another address";
        batch.add(&rule(&chain, comment, &untranslated), MsgType::Add);
    }

    /// What no policy decides: not inside the cluster, then by the masquerade rules, which stand between these two.
    fn masquerade_chain(&self, table: &Table, rules: &MasqueradeRules, batch: &mut Batch) {
        let comment = c"what no policy decides: inside of the cluster, then masquerade rules, then the node's address";
        let chain = plain_chain(MASQUERADE, comment, table, batch);
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

/// Matches a TCP segment from outside of the cluster to a pod of this node that belongs to a connection, where it is the first packet of a
/// flow. Connection tracking takes such a flow for one that was opened outside.
pub(in crate::nft) fn begins_no_connection(family: Family) -> Vec<Expr> {
    const SYN: u8 = 2;
    vec![
        expr::source(family),
        expr::is_not_in(SetName::InternalRanges.as_cstr()),
        expr::destination(family),
        expr::is_in(SetName::PodRanges.as_cstr()),
        expr::protocol(),
        expr::is(&[libc::IPPROTO_TCP as u8]),
        expr::tcp_flags(),
        expr::and_octets(&[SYN]),
        expr::is(&[0]),
    ]
}

//! What has to be read from the kernel again before a plan is compared with it.

use super::Dataplane;
use crate::network::Event;

/// What the kernel may have otherwise than it is kept in memory: read once at the start, and again only where others may have
/// written, or where a write of ours failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Doubts {
    /// Tables with their sets and deadlines.
    pub(super) tables: bool,
    /// The eBPF maps.
    pub(super) maps: bool,
    /// The floating IPs on the uplink.
    pub(super) addresses: bool,
    /// Links, routes, rules, and the programs on interfaces.
    pub(super) links: bool,
}

impl Doubts {
    pub(super) const NONE: Self = Self {
        tables: false,
        maps: false,
        addresses: false,
        links: false,
    };
    pub(super) const ALL: Self = Self {
        tables: true,
        maps: true,
        addresses: true,
        links: true,
    };

    /// Whether there is one.
    pub(super) fn exist(self) -> bool {
        self != Self::NONE
    }
}

impl Dataplane {
    /// Takes what the kernel has told until now, and looks at what it tells nobody.
    pub(super) fn notice(&mut self) {
        let events = self.network.take_events();
        self.take(events);
        if let Some(events) = &mut self.table_events {
            self.doubts.tables |= events.have_come();
        }
        self.audit();
    }

    /// Doubts everything if what nobody tells about is not as it was put, or was not read for long.
    pub(super) fn audit(&mut self) {
        if !self.is_in_place() || self.restoration.is_reading_due() {
            self.doubts = Doubts::ALL;
        }
    }

    /// Takes what rtnetlink has told. Returns whether there is a doubt now.
    pub(super) fn take(&mut self, events: Vec<Event>) -> bool {
        for event in events {
            match event {
                Event::Address {
                    ifindex,
                    address,
                    is_floating,
                    is_there,
                } if ifindex == self.uplink.index => {
                    // What we write is told us too: then it is as we keep it.
                    let is_kept = self.kept.is_here(address);
                    match is_floating {
                        true => self.doubts.addresses |= is_there != is_kept,
                        false if is_kept => self.doubts.addresses = true,
                        false => self.doubts.links = true,
                    }
                }
                Event::Address { .. } | Event::Other => self.doubts.links = true,
            }
        }
        self.doubts.exist()
    }
}

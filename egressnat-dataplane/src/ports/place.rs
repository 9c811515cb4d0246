//! Who may claim an address at a bridge.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// A port of a bridge.
#[derive(Debug, Clone)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) bridge: u32,
    /// The interface at its other end, in another namespace.
    pub(super) peer: Option<Peer>,
    /// The addresses of that interface; none if it cannot be looked at.
    pub(super) addresses: Option<BTreeSet<IpAddr>>,
}

/// The other end of a veth pair.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    /// What the namespace it is in is called in ours.
    pub(super) namespace: i32,
    /// Its index there.
    pub(super) ifindex: u32,
}

/// Where an address is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    At(u32),
    /// More than one claims it, or one that cannot be it.
    Contested {
        keeps: Option<u32>,
        text: String,
    },
    Unknown,
}

/// Decides which port an address is at.
///
/// # Guarantees
///
/// * An address that a namespace has is at that namespace's port, whatever anybody sends.
/// * A claim never moves an address away from a port that still has it.
/// * A port whose namespace has addresses gets no other by answering for it.
pub(super) fn place(
    before: Option<u32>,
    owners: &[u32],
    neighbor: Option<u32>,
    ports: &BTreeMap<u32, Port>,
) -> Place {
    let name = |port: &u32| ports.get(port).map_or("?", |port| port.name.as_str());
    let has_addresses = |port: &u32| {
        let addresses = ports.get(port).and_then(|port| port.addresses.as_ref());
        addresses.is_some_and(|addresses| !addresses.is_empty())
    };
    // Also a port whose namespace shows no address at all: a virtual machine has it, or a sandbox that hides it.
    let still_has =
        |port: &u32| owners.contains(port) || (ports.contains_key(port) && !has_addresses(port));
    let keeps = before.filter(still_has);
    let claimants: Vec<u32> = match owners {
        [] => neighbor.into_iter().collect(),
        _ => owners.to_vec(),
    };
    let others: Vec<u32> = claimants
        .into_iter()
        .filter(|port| Some(*port) != keeps)
        .collect();
    let names: Vec<&str> = others.iter().map(name).collect();
    let names = names.join(", ");
    match (keeps, others.as_slice()) {
        (None, []) => Place::Unknown,
        (Some(port), []) => Place::At(port),
        (keeps, [claimant]) if owners.is_empty() && has_addresses(claimant) => Place::Contested {
            keeps,
            text: format!(
                "the pod behind {names} answers for it and has another address: it is not believed"
            ),
        },
        (None, [claimant]) => Place::At(*claimant),
        (None, _) => Place::Contested {
            keeps: None,
            text: format!(
                "the pods behind {names} all have it: none gets its decisions until only one is left"
            ),
        },
        (Some(port), _) => Place::Contested {
            keeps: Some(port),
            text: format!(
                "it is claimed behind {names} too: {} had it first and keeps it",
                name(&port)
            ),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: u32 = 1;
    const OTHER: u32 = 2;
    const MACHINE: u32 = 3;
    const OTHER_MACHINE: u32 = 4;
    const GONE: u32 = 9;

    fn ports() -> BTreeMap<u32, Port> {
        let port = |name: &str, address: Option<&str>| Port {
            name: name.to_owned(),
            bridge: 100,
            peer: None,
            addresses: address.map(|address| BTreeSet::from([address.parse().unwrap()])),
        };
        BTreeMap::from([
            (POD, port("pod", Some("10.1.1.2"))),
            (OTHER, port("other", Some("10.1.1.3"))),
            (MACHINE, port("machine", None)),
            (OTHER_MACHINE, port("machine2", None)),
        ])
    }

    #[test]
    fn an_address_is_where_it_is_configured_and_no_claim_takes_it_away() {
        struct Case {
            name: &'static str,
            before: Option<u32>,
            owners: &'static [u32],
            neighbor: Option<u32>,
            at: Option<u32>,
            told: bool,
        }
        let case = |name, before, owners, neighbor, at, told| Case {
            name,
            before,
            owners,
            neighbor,
            at,
            told,
        };
        for Case {
            name,
            before,
            owners,
            neighbor,
            at,
            told,
        } in [
            case("nobody has it", None, &[], None, None, false),
            case("one has it", None, &[POD], None, Some(POD), false),
            case(
                "one has it, another answers",
                None,
                &[POD],
                Some(OTHER),
                Some(POD),
                false,
            ),
            case("it moved", Some(OTHER), &[POD], None, Some(POD), false),
            case(
                "a pod takes a machine's",
                Some(MACHINE),
                &[POD],
                None,
                Some(MACHINE),
                true,
            ),
            case(
                "two have it from the start",
                None,
                &[POD, OTHER],
                Some(POD),
                None,
                true,
            ),
            case(
                "a second one takes it",
                Some(POD),
                &[POD, OTHER],
                None,
                Some(POD),
                true,
            ),
            case(
                "two have it, and neither before",
                Some(GONE),
                &[POD, OTHER],
                None,
                None,
                true,
            ),
            case(
                "a machine answers",
                None,
                &[],
                Some(MACHINE),
                Some(MACHINE),
                false,
            ),
            case(
                "a pod with another address answers",
                None,
                &[],
                Some(OTHER),
                None,
                true,
            ),
            case(
                "a pod answers for a machine",
                Some(MACHINE),
                &[],
                Some(OTHER),
                Some(MACHINE),
                true,
            ),
            case(
                "a machine answers for a machine",
                Some(MACHINE),
                &[],
                Some(OTHER_MACHINE),
                Some(MACHINE),
                true,
            ),
            case(
                "the machine is gone",
                Some(GONE),
                &[],
                Some(OTHER_MACHINE),
                Some(OTHER_MACHINE),
                false,
            ),
            case(
                "a silent machine",
                Some(MACHINE),
                &[],
                None,
                Some(MACHINE),
                false,
            ),
            case(
                "a pod changed its address",
                Some(POD),
                &[],
                None,
                None,
                false,
            ),
        ] {
            let (got, text) = match place(before, owners, neighbor, &ports()) {
                Place::At(port) => (Some(port), None),
                Place::Contested { keeps, text } => (keeps, Some(text)),
                Place::Unknown => (None, None),
            };
            assert_eq!((got, text.is_some()), (at, told), "{name}: {text:?}");
        }
    }
}

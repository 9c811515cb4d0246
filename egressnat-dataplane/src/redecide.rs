//! Running connections after a change: which of them would leave with the wrong address.

use std::collections::BTreeSet;
use std::net::IpAddr;

use egressnat_core::{Change, Decision, NodePlan, PolicySetId, Steering};

use crate::conntrack::{Connection, ConntrackError, connections, forget};
use crate::family::Family;
use crate::nft::Answer;

/// The pods whose connections may be decided otherwise after `changes`. All others' are left alone (E44).
pub(crate) fn affected_pods(
    changes: &[Change],
    observed: &NodePlan,
    desired: &NodePlan,
) -> BTreeSet<IpAddr> {
    let mut pods = BTreeSet::new();
    let mut sets: BTreeSet<PolicySetId> = BTreeSet::new();
    let mut moved = BTreeSet::new();
    for change in changes {
        match change {
            // Nothing was steered before, and nothing is now.
            Change::SetPod(pod, PolicySetId::EMPTY) if !observed.pods.contains_key(pod) => {}
            Change::RemovePod(pod) if observed.pods.get(pod) == Some(&PolicySetId::EMPTY) => {}
            Change::SetPod(pod, _) | Change::RemovePod(pod) => {
                pods.insert(*pod);
            }
            // The same, by another policy.
            Change::SetDestination(set, prefix, steering)
                if observed.destinations.get(&(*set, *prefix)) == Some(steering) => {}
            Change::SetDestination(set, _, _) | Change::RemoveDestination(set, _) => {
                sets.insert(*set);
            }
            Change::AddAddress(address) | Change::RemoveAddress(address) => {
                moved.insert(*address);
            }
            _ => {}
        }
    }
    if !moved.is_empty() {
        let uses = |(_, steering): &(_, &Steering)| match steering {
            Steering::Snat(address) => moved.contains(address),
            Steering::Forward | Steering::Keep | Steering::Drop => false,
        };
        let using = desired.destinations.iter().filter(uses);
        sets.extend(using.map(|((set, _), _)| *set));
    }
    let of_sets = observed.pods.iter().chain(&desired.pods);
    let of_sets = of_sets.filter(|(_, set)| sets.contains(set));
    pods.extend(of_sets.map(|(pod, _)| *pod));
    pods
}

/// The pods that policies select by any of these plans.
pub(crate) fn selected_pods(plans: &[&NodePlan]) -> BTreeSet<IpAddr> {
    let pods = plans.iter().flat_map(|plan| &plan.pods);
    let selected = pods.filter(|(_, set)| **set != PolicySetId::EMPTY);
    selected.map(|(pod, _)| *pod).collect()
}

/// Makes the kernel forget connections of `pods` that were decided otherwise than `plan` does. Returns how many there were.
///
/// Before, `expect` is called with the answers to them.
pub(crate) fn forget_stale<E: From<ConntrackError>>(
    pods: &BTreeSet<IpAddr>,
    plan: &NodePlan,
    mut expect: impl FnMut(Family, &[Answer]) -> Result<(), E>,
) -> Result<usize, E> {
    let mut forgotten = 0;
    for family in Family::of_all(pods) {
        let mut stale = connections(family)?;
        stale.retain(|connection| pods.contains(&connection.source) && is_stale(connection, plan));
        forgotten += forget_expecting(&stale, &mut expect)?;
    }
    Ok(forgotten)
}

/// Calls `expect` with the answers to those connections of `pods` that are translated here and steered by `plan`, before it is made.
///
/// The kernel ends a connection by itself that is masqueraded, with its first packet that leaves by another device
/// (`nf_nat_oif_changed`): [`forget_stale`] would not find it any more. What this finds does not spare that function its own look: a
/// connection that begins between the two, before the decision is made, is decided as before, and is stale.
pub(crate) fn expect_ends<E: From<ConntrackError>>(
    pods: &BTreeSet<IpAddr>,
    plan: &NodePlan,
    mut expect: impl FnMut(Family, &[Answer]) -> Result<(), E>,
) -> Result<(), E> {
    for family in Family::of_all(pods) {
        let mut ending = connections(family)?;
        ending.retain(|connection| {
            let Connection {
                source,
                destination,
                protocol,
                ..
            } = connection;
            let is_steered = || match plan.decide(*source, *destination, *protocol) {
                Decision::Snat(address) => !plan.floating_ips.contains(&address),
                Decision::Keep | Decision::Masquerade | Decision::Drop => false,
            };
            pods.contains(source) && connection.seen_as != *source && is_steered()
        });
        expect_answers(&ending, &mut expect)?;
    }
    Ok(())
}

/// Makes the kernel forget connections of this node's pods. Returns how many there were.
///
/// Before, `expect` is called with the answers to them.
pub(crate) fn forget_expecting<E: From<ConntrackError>>(
    stale: &[Connection],
    mut expect: impl FnMut(Family, &[Answer]) -> Result<(), E>,
) -> Result<usize, E> {
    expect_answers(stale, &mut expect)?;
    stale.iter().try_for_each(forget)?;
    Ok(stale.len())
}

/// Calls `expect` with the answers to connections, of each family that there are some of.
fn expect_answers<E>(
    connections: &[Connection],
    expect: &mut impl FnMut(Family, &[Answer]) -> Result<(), E>,
) -> Result<(), E> {
    for family in Family::ALL {
        let of_family = |one: &&Connection| Family::of(one.source) == family;
        let of_family = connections.iter().filter(of_family);
        let answers: Vec<Answer> = of_family.filter_map(answer).collect();
        if !answers.is_empty() {
            expect(family, &answers)?;
        }
    }
    Ok(())
}

/// The answers to a connection that are for the pod's address, if they can be told from others. Where this node translates the address,
/// a gateway node may know the flow from before.
fn answer(connection: &Connection) -> Option<Answer> {
    let port = match connection.seen_as == connection.source {
        true => connection.seen_port,
        false => connection.port,
    };
    let ports = [connection.answering_port, port];
    (ports != [0, 0]).then_some(Answer {
        addresses: [connection.answered_by, connection.source],
        protocol: connection.protocol?,
        ports,
    })
}

fn is_stale(connection: &Connection, plan: &NodePlan) -> bool {
    let Connection {
        source,
        destination,
        answered_by,
        seen_as,
        protocol,
        ..
    } = connection;
    let is_internal = || {
        plan.internal_ranges
            .iter()
            .any(|range| range.contains(destination))
    };
    match plan.decide(*source, *destination, *protocol) {
        // Who translates inside the cluster is not we.
        Decision::Keep => seen_as != source && !is_internal(),
        // Translated here if we hold the address, else on the gateway node and not here.
        Decision::Snat(address) if plan.floating_ips.contains(&address) => *seen_as != address,
        Decision::Snat(_) => seen_as != source,
        // Steered before; now it would leave with the pod's address. One that was translated goes on as it is.
        Decision::Masquerade => seen_as == source && answered_by == destination,
        Decision::Drop => true,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const SET: PolicySetId = PolicySetId(1);

    fn plan(steering: Steering, floating_ips: &[&str]) -> NodePlan {
        NodePlan {
            pods: BTreeMap::from([("10.10.1.2".parse().unwrap(), SET)]),
            destinations: BTreeMap::from([((SET, "8.8.8.0/24".parse().unwrap()), steering)]),
            floating_ips: floating_ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            pod_ranges: BTreeSet::from(["10.10.1.0/24".parse().unwrap()]),
            internal_ranges: BTreeSet::from(["10.0.0.0/8".parse().unwrap()]),
            ..NodePlan::default()
        }
    }

    #[test]
    fn a_connection_is_stale_if_it_would_leave_with_another_address() {
        let floating = "192.168.1.100";
        let snat = Steering::Snat(floating.parse().unwrap());
        struct Case {
            name: &'static str,
            plan: NodePlan,
            destination: &'static str,
            seen_as: &'static str,
            want: bool,
        }
        let case = |name, plan, destination, seen_as, want| Case {
            name,
            plan,
            destination,
            seen_as,
            want,
        };
        for Case {
            name,
            plan,
            destination,
            seen_as,
            want,
        } in [
            case(
                "tunneled, still remote",
                plan(snat, &[]),
                "8.8.8.8",
                "10.10.1.2",
                false,
            ),
            case(
                "tunneled, now held here",
                plan(snat, &[floating]),
                "8.8.8.8",
                "10.10.1.2",
                true,
            ),
            case(
                "translated here, still held",
                plan(snat, &[floating]),
                "8.8.8.8",
                floating,
                false,
            ),
            case(
                "translated here, moved away",
                plan(snat, &[]),
                "8.8.8.8",
                floating,
                true,
            ),
            case(
                "masqueraded before selection",
                plan(snat, &[]),
                "8.8.8.8",
                "192.168.1.1",
                true,
            ),
            case(
                "kept",
                plan(Steering::Keep, &[]),
                "8.8.8.8",
                "10.10.1.2",
                false,
            ),
            case(
                "masqueraded, now kept",
                plan(Steering::Keep, &[]),
                "8.8.8.8",
                "192.168.1.1",
                true,
            ),
            case(
                "masqueraded, elsewhere",
                plan(snat, &[]),
                "9.9.9.9",
                "192.168.1.1",
                false,
            ),
            case(
                "tunneled, selected no more",
                plan(snat, &[]),
                "9.9.9.9",
                "10.10.1.2",
                true,
            ),
            case(
                "pod to pod",
                plan(snat, &[]),
                "10.10.2.2",
                "10.10.1.2",
                false,
            ),
        ] {
            let connection = Connection {
                source: "10.10.1.2".parse().unwrap(),
                destination: destination.parse().unwrap(),
                answered_by: destination.parse().unwrap(),
                answering_port: 0,
                port: 0,
                seen_port: 0,
                seen_as: seen_as.parse().unwrap(),
                protocol: None,
                identity: Vec::new(),
            };
            assert_eq!(is_stale(&connection, &plan), want, "{name}");
        }
    }

    #[test]
    fn only_pods_that_a_change_concerns_are_affected() {
        let floating: IpAddr = "192.168.1.100".parse().unwrap();
        let mut desired = plan(Steering::Snat(floating), &[]);
        desired
            .pods
            .insert("10.10.1.3".parse().unwrap(), PolicySetId(2));
        let affected = |change| affected_pods(&[change], &NodePlan::default(), &desired);
        let first = BTreeSet::from([IpAddr::from([10, 10, 1, 2])]);
        assert_eq!(affected(Change::AddAddress(floating)), first);
        assert_eq!(
            affected(Change::RemoveDestination(SET, "1.0.0.0/8".parse().unwrap())),
            first
        );
        assert_eq!(affected(Change::AddPeer(floating)), BTreeSet::new());
        let (key, same) = desired.destinations.first_key_value().unwrap();
        let same = Change::SetDestination(key.0, key.1, *same);
        assert_eq!(affected(same), first, "it was not there");
        let by_another = affected_pods(&[same], &desired, &desired);
        assert_eq!(by_another, BTreeSet::new());
        let other = "10.10.1.3".parse().unwrap();
        assert_eq!(
            affected(Change::RemovePod(other)),
            BTreeSet::from([IpAddr::from([10, 10, 1, 3])])
        );
        let unselected = Change::SetPod(other, PolicySetId::EMPTY);
        assert_eq!(affected(unselected), BTreeSet::new(), "it was not there");
        let selected_no_more = affected_pods(&[unselected], &desired, &desired);
        assert_eq!(selected_no_more.len(), 1);
    }
}

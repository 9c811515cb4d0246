use super::*;
use crate::gateway::effective_gateways;
use crate::model::{Source, Timestamp};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn name(text: &str) -> PolicyName {
    text.parse().unwrap()
}

fn group(name: &str) -> GatewayKey {
    GatewayKey::group("kube-system".parse().unwrap(), name.parse().unwrap())
}

/// Group `default` with .100 and .101, group `empty`, AnthosNetworkGateway `old` with .110.
fn gateways() -> Snapshot {
    let mut snapshot = Snapshot::default();
    let default = Gateway::new([ip("192.168.1.100"), ip("192.168.1.101")]);
    snapshot.gateways.insert(group("default"), default);
    snapshot.gateways.insert(group("empty"), Gateway::default());
    let old = GatewayKey::anthos("kube-system".parse().unwrap(), "old".parse().unwrap());
    snapshot
        .gateways
        .insert(old, Gateway::new([ip("192.168.1.110")]));
    snapshot
}

fn policy(source: EgressSource) -> Policy {
    Policy::snat(
        [Source::everything()],
        ["8.8.8.0/24".parse().unwrap()],
        source,
    )
}

fn resolved(snapshot: &Snapshot) -> ResolvedPolicies {
    resolve_policies(snapshot, &effective_gateways(snapshot))
}

#[test]
fn a_policy_resolves_to_one_address_or_says_why_not() {
    struct Case {
        name: &'static str,
        policy: Policy,
        want: Result<ResolvedPolicy, Reason>,
    }
    let by_ref = |name| policy(EgressSource::from(&group(name)));
    let by_address = |address| policy(EgressSource::Address(ip(address)));
    let cases = [
        Case {
            name: "E20: v1 uses the first address of the group",
            policy: by_ref("default"),
            want: Ok(ResolvedPolicy::Snat(ip("192.168.1.100").into())),
        },
        Case {
            name: "E1: either kind of gateway can be named",
            policy: by_ref("old"),
            want: Ok(ResolvedPolicy::Snat(ip("192.168.1.110").into())),
        },
        Case {
            name: "E20: v1alpha1 may use any floating IP",
            policy: by_address("192.168.1.101"),
            want: Ok(ResolvedPolicy::Snat(ip("192.168.1.101").into())),
        },
        Case {
            name: "E21: an address that no gateway has",
            policy: by_address("192.168.1.99"),
            want: Err(Reason::UnknownEgressIp),
        },
        Case {
            name: "E22: a group that is not there",
            policy: by_ref("nowhere"),
            want: Err(Reason::InvalidGatewayRef),
        },
        Case {
            name: "E22: a group without addresses",
            policy: by_ref("empty"),
            want: Err(Reason::InvalidGatewayRef),
        },
        Case {
            name: "E3: no sources",
            policy: Policy {
                sources: vec![],
                ..by_ref("default")
            },
            want: Err(Reason::IncompletePolicy),
        },
        Case {
            name: "E3: no destinations",
            policy: Policy {
                destinations: Default::default(),
                ..by_ref("default")
            },
            want: Err(Reason::IncompletePolicy),
        },
        Case {
            name: "E5: NoSNAT needs only destinations",
            policy: Policy {
                sources: vec![],
                action: Action::NoSnat,
                ..by_ref("default")
            },
            want: Ok(ResolvedPolicy::Keep),
        },
    ];
    for case in cases {
        let mut snapshot = gateways();
        snapshot.policies.insert(name("egress"), case.policy);
        // A valid neighbor is never affected.
        snapshot
            .policies
            .insert(name("neighbor"), by_ref("default"));
        let resolved = resolved(&snapshot);
        assert!(
            resolved.policies.contains_key(&name("neighbor")),
            "{}",
            case.name
        );
        match case.want {
            Ok(want) => {
                assert_eq!(
                    resolved.policies.get(&name("egress")),
                    Some(&want),
                    "{}",
                    case.name
                );
                assert_eq!(resolved.findings, [], "{}", case.name);
            }
            Err(reason) => {
                assert_eq!(
                    resolved.policies.get(&name("egress")),
                    None,
                    "{}",
                    case.name
                );
                assert_eq!(resolved.findings.len(), 1, "{}", case.name);
                assert_eq!(resolved.findings[0].reason, reason, "{}", case.name);
                assert_eq!(
                    resolved.findings[0].subject,
                    Subject::Policy(name("egress"))
                );
            }
        }
    }
}

#[test]
fn an_egress_source_ip_belongs_to_the_older_policy_e20() {
    let mut snapshot = gateways();
    let at = |created| Policy {
        created: Timestamp(created),
        ..policy(EgressSource::Address(ip("192.168.1.100")))
    };
    snapshot.policies.insert(name("a"), at(2));
    snapshot.policies.insert(name("b"), at(1));
    let resolved = resolved(&snapshot);
    assert_eq!(resolved.policies.keys().collect::<Vec<_>>(), [&name("b")]);
    assert_eq!(resolved.findings[0].reason, Reason::DuplicateEgressSourceIp);
    assert_eq!(resolved.findings[0].subject, Subject::Policy(name("a")));
}

#[test]
fn a_policy_never_uses_an_address_that_its_gateway_was_refused_e23() {
    let mut snapshot = gateways();
    let later = Gateway {
        created: Timestamp(9),
        ..Gateway::new([ip("192.168.1.100"), ip("192.168.1.120")])
    };
    snapshot.gateways.insert(group("later"), later);
    snapshot
        .policies
        .insert(name("egress"), policy(EgressSource::from(&group("later"))));
    let resolved = resolved(&snapshot);
    assert!(resolved.policies.is_empty());
    assert_eq!(resolved.findings[0].reason, Reason::InvalidGatewayRef);
}

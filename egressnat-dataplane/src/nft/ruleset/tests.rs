//! The table in a namespace of its own. Needs root.

use std::time::Duration;

use egressnat_core::model::Protocol;

use super::*;
use crate::config::TableOwnership;
use crate::nft::inventory::assert_unaltered;
use crate::nft::set::Answer;

const A_MINUTE: Duration = Duration::from_secs(60);

/// Runs on a thread with a network namespace of its own, which ends with it.
fn in_new_namespace(work: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .expect("run the tests as root ('make test')");
        work();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn ruleset(family: Family, mark: MarkMask, tunnel_port: u16) -> Ruleset {
    let config = Config {
        mark,
        tunnel_port,
        ..Config::default()
    };
    Ruleset::new(family, &config)
}

fn matched(text: &str) -> MasqueradeMatch {
    let (destination, source) = text.split_once(" from ").unwrap_or((text, ""));
    MasqueradeMatch {
        source: source.parse().ok(),
        ..MasqueradeMatch::to(destination.parse().unwrap())
    }
}

#[test]
fn a_table_of_another_layout_is_replaced_with_what_it_holds() {
    in_new_namespace(|| {
        replace_table(
            Family::Ipv4,
            ["10.10.1.0/24", "0.0.0.0/0"],
            "192.168.1.100",
            "10.0.0.0/8",
        );
        replace_table(
            Family::Ipv6,
            ["fd00:10:10:1::/64", "::/0"],
            "fd00:192:168:1::100",
            "fd00:10::/32",
        );
    });
}

fn replace_table(family: Family, ranges: [&str; 2], floating: &str, inside: &str) {
    let mut owner = Owner::open(TableOwnership::default()).unwrap();
    let mark = MarkMask::DEFAULT;
    assert!(ruleset(family, mark, 1).ensure(&mut owner).unwrap());
    assert!(!ruleset(family, mark, 1).ensure(&mut owner).unwrap());
    let [pods, guarded] = ranges.map(|range| range.parse::<IpNet>().unwrap());
    let floating: IpAddr = floating.parse().unwrap();
    Ruleset::change(
        &owner,
        &[],
        &[
            Elements::of(family, SetName::PodRanges).range(pods),
            Elements::of(family, SetName::GuardRanges).range(guarded),
            Elements::of(family, SetName::FloatingIps).address(floating),
            Elements::mapped(family, [(mark.of_index(2), floating)]),
        ],
        "elements",
    )
    .unwrap();
    let rules = BTreeMap::from([(matched(inside), MasqueradeAction::Keep)]);
    Ruleset::change_masquerade(&owner, family, &rules, &[]).unwrap();
    // An edit was just made: answers to flows that it ended are on their way.
    let answer = Answer {
        addresses: [floating; 2],
        protocol: Protocol::TCP,
        ports: [443, 50_000],
    };
    Forgotten::expect(&owner, &ruleset(family, mark, 1), &[answer]).unwrap();
    let begun = Elements::of(family, SetName::Begun).answer_for(&answer, A_MINUTE);
    let silenced = Elements::of(family, SetName::Silenced).address_for(floating, A_MINUTE);
    Ruleset::change(&owner, &[], &[begun, silenced], "notes").unwrap();
    let notes = [SetName::Forgotten, SetName::Begun, SetName::Silenced];
    let noted = || notes.map(|name| query::expiring_keys(family, name).unwrap());
    let before = noted();

    assert!(ruleset(family, mark, 2).ensure(&mut owner).unwrap());
    assert_eq!(
        Ruleset::ranges(family, SetName::PodRanges).unwrap(),
        [pods].into()
    );
    assert_eq!(
        Ruleset::ranges(family, SetName::GuardRanges).unwrap(),
        [guarded].into()
    );
    let mapped = || Ruleset::mappings(family, SetName::EgressIps).unwrap();
    assert_eq!(mapped(), [(mark.of_index(2), floating)].into());
    assert_eq!(Ruleset::masquerade(family).unwrap().rules, rules);
    for (before, now) in before.iter().zip(noted()) {
        let [(key, time)] = &now[..] else {
            panic!("{now:?}")
        };
        assert_eq!(*key, before[0].0);
        assert!(!time.is_zero() && *time <= before[0].1, "{time:?}");
    }
    assert!(query::has_chain(family, c"answers").unwrap());

    // With another mask the marks mean something else.
    let other = MarkMask::new(0x00ff_0000).unwrap();
    assert!(ruleset(family, other, 2).ensure(&mut owner).unwrap());
    assert_eq!(mapped(), BTreeSet::new());
    assert_eq!(
        Ruleset::addresses(family, SetName::FloatingIps).unwrap(),
        [floating].into()
    );
    assert!(Ruleset::remove(&owner, family).unwrap());
    assert!(!Ruleset::remove(&owner, family).unwrap());
}

#[test]
fn the_kernel_tells_a_table_as_it_was_declared() {
    in_new_namespace(|| {
        let mut owner = Owner::open(TableOwnership::Never).unwrap();
        for (family, inside) in [(Family::Ipv4, "10.0.0.0/8"), (Family::Ipv6, "fd00:10::/32")] {
            let ruleset = ruleset(family, MarkMask::DEFAULT, 1);
            assert!(ruleset.ensure(&mut owner).unwrap());
            let rules = BTreeMap::from([(matched(inside), MasqueradeAction::Keep)]);
            Ruleset::change_masquerade(&owner, family, &rules, &[]).unwrap();
            let rules = Ruleset::masquerade(family).unwrap();
            assert_unaltered(family.into(), |batch| ruleset.declare(&rules, batch));
            // What is left in the memory that messages are made in is no difference.
            for _ in 0..20 {
                assert!(!ruleset.ensure(&mut owner).unwrap());
            }
        }
    });
}

#[test]
fn masquerade_rules_stand_in_the_order_of_precedence_whenever_they_came() {
    in_new_namespace(|| {
        let ipv4 = [
            "10.0.0.0/8",
            "10.0.0.0/8 from 10.10.0.0/16",
            "10.0.0.0/8 from 10.10.1.0/24",
            "10.1.0.0/16",
            "10.2.0.0/16",
            "10.1.2.0/24",
            "0.0.0.0/0",
            "0.0.0.0/0 from 10.10.1.0/24",
        ];
        change_rules(Family::Ipv4, ipv4.map(matched));
        let ipv6 = [
            "fd00::/8",
            "fd00::/8 from fd00:10:10::/48",
            "fd00::/8 from fd00:10:10:1::/64",
            "fd01::/16",
            "fd02::/16",
            "fd01:2::/32",
            "::/0",
            "::/0 from fd00:10:10:1::2/128",
        ];
        change_rules(Family::Ipv6, ipv6.map(matched));
    });
}

fn change_rules(family: Family, all: [MasqueradeMatch; 8]) {
    let mut owner = Owner::open(TableOwnership::default()).unwrap();
    assert!(
        ruleset(family, MarkMask::DEFAULT, 1)
            .ensure(&mut owner)
            .unwrap()
    );
    let mut state = 1u32;
    let mut wanted: BTreeMap<MasqueradeMatch, MasqueradeAction> = BTreeMap::new();
    for round in 0..60 {
        let (mut set, mut removed) = (BTreeMap::new(), Vec::new());
        for rule in all {
            // Any sequence that visits all cases does.
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            match state >> 30 {
                0 => drop(set.insert(rule, MasqueradeAction::Keep)),
                1 => drop(set.insert(rule, MasqueradeAction::Masquerade)),
                2 if wanted.contains_key(&rule) => removed.push(rule),
                _ => {}
            }
        }
        set.retain(|rule, action| wanted.get(rule) != Some(action));
        Ruleset::change_masquerade(&owner, family, &set, &removed).unwrap();
        wanted.retain(|rule, _| !removed.contains(rule));
        wanted.extend(set);
        assert_eq!(
            Ruleset::masquerade(family).unwrap().rules,
            wanted,
            "{round}"
        );
        assert!(masquerade::is_ordered(family).unwrap(), "{round}");
    }
}

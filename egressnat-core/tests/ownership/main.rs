//! Never two owners of a floating IP, and progress when the faults end (E33): shown over random schedules in virtual time.

mod controller;
mod message;
mod node;
#[expect(unreachable_pub, reason = "the fuzz targets have this module too")]
mod schedule;
#[expect(unreachable_pub, reason = "the fuzz targets have this module too")]
mod simulator;

use std::time::Duration;

use egressnat_core::Assignment;
use egressnat_core::ownership::{
    Generation, Grant, GrantRecord, Granter, GranterStep, Holder, LeaseRecord, Probe, Source, Term,
    Time, Version,
};
use schedule::{Bytes, CountedFrom, Dice, Faults, SOUND, Segment, Setting, TIMING};
use simulator::{Outcome, run};

/// How many schedules: `EGRESSNAT_SCHEDULES`, or this.
const SCHEDULES: u64 = 100_000;

fn schedules() -> u64 {
    match std::env::var("EGRESSNAT_SCHEDULES") {
        Ok(text) => text.parse().expect("EGRESSNAT_SCHEDULES is a number"),
        Err(_) => SCHEDULES,
    }
}

/// Runs so many schedules from `first` on, each second. Returns how often addresses moved, or the first schedule that went wrong.
fn run_half(setting: Setting, first: u64, count: u64) -> Result<usize, (u64, Outcome)> {
    let mut moved = 0;
    for seed in (first..count).step_by(2) {
        match run(Dice::new(seed), setting) {
            Outcome::Good { moves } => moved += moves,
            bad => return Err((seed, bad)),
        }
    }
    Ok(moved)
}

#[test]
fn never_two_owners_and_progress_when_the_faults_end_e33() {
    let count = schedules();
    let halves = [0, 1].map(|first| std::thread::spawn(move || run_half(SOUND, first, count)));
    let moved: usize = halves
        .map(|half| {
            half.join()
                .expect("a half ends")
                .unwrap_or_else(|bad| panic!("schedule {}: {:?}", bad.0, bad.1))
        })
        .iter()
        .sum();
    eprintln!("{} schedules, {moved} changes of a holder", schedules());
    // Each schedule has two addresses to place; more means that faults moved them.
    assert!(moved as u64 > 3 * schedules(), "{moved}");
}

/// The store is out of reach for some nodes, and their segment is not.
#[test]
fn never_two_owners_where_nodes_hold_by_the_word_of_their_segment_e33() {
    let answering = Setting {
        segment: Segment::Answers,
        ..SOUND
    };
    // Each takes three times as long, as there is more to be said.
    let count = schedules() / 5;
    let halves = [0, 1].map(|first| std::thread::spawn(move || run_half(answering, first, count)));
    for half in halves {
        let moved = half.join().expect("a half ends");
        moved.unwrap_or_else(|bad| panic!("schedule {}: {:?}", bad.0, bad.1));
    }
}

#[test]
fn without_faults_every_address_is_placed_once_e33() {
    let calm = Setting {
        faults: Faults::None,
        ..SOUND
    };
    for seed in 0..200 {
        assert_eq!(
            run(Dice::new(seed), calm),
            Outcome::Good { moves: 2 },
            "schedule {seed}"
        );
    }
}

#[test]
fn a_schedule_that_ends_early_is_calm_from_there_on_e33() {
    for bytes in [&[][..], &[7; 40], b"any bytes will do as a schedule"] {
        let outcome = run(Bytes(bytes), SOUND);
        assert!(matches!(outcome, Outcome::Good { .. }), "{outcome:?}");
    }
}

/// The simulator finds two owners when an assumption does not hold: else the first test would show nothing.
#[test]
fn two_owners_are_found_when_an_assumption_does_not_hold() {
    let clocks_are_worse = Setting {
        rate_error: 450_000,
        ..SOUND
    };
    let granter_does_not_wait = Setting {
        told: Duration::from_millis(300),
        ..SOUND
    };
    let nodes_count_from_the_answer = Setting {
        counted_from: CountedFrom::Answered,
        ..SOUND
    };
    for (what, setting) in [
        ("clocks", clocks_are_worse),
        ("waiting", granter_does_not_wait),
        ("counting", nodes_count_from_the_answer),
    ] {
        let found = (0..20_000)
            .find(|seed| matches!(run(Dice::new(*seed), setting), Outcome::TwoOwners(_)));
        eprintln!("{what}: schedule {found:?}");
        assert!(found.is_some(), "{what}: no schedule shows it");
    }
}

#[test]
fn who_gives_back_what_it_never_used_hands_nothing_over_e33() {
    struct Case {
        name: &'static str,
        was_handed_over: bool,
        found: Probe,
        want: bool,
    }
    let case = |name, was_handed_over, found, want| Case {
        name,
        was_handed_over,
        found,
        want,
    };
    let (node, next) = (simulator::name(0), simulator::name(1));
    let (address, now) = (simulator::address(0), Time::default());
    for Case {
        name,
        was_handed_over,
        found,
        want,
    } in [
        case("used", false, Probe::Free, true),
        case("somebody answers for it", false, Probe::Conflict, false),
        case("given back by the one before", true, Probe::Conflict, true),
    ] {
        let mut holder = Holder::new(node.clone(), TIMING);
        let mut granter = Granter::new(TIMING.rate_error);
        granter.lead(now, now.after(Duration::from_secs(10)));
        let mut lease = LeaseRecord {
            version: Version(1),
            duration: TIMING.duration,
            ..LeaseRecord::default()
        };
        granter.saw_lease(&next, lease.clone(), now);
        holder.renewed(Source::Store, lease.term, now);
        let granted = |is_withdrawn| GrantRecord {
            version: Version(1),
            generation: Generation(1),
            grant: Some(Grant {
                node: node.clone(),
                term: Term::default(),
                is_withdrawn,
                is_handed_over: was_handed_over,
            }),
        };
        holder.saw(address, granted(false));
        holder.step(now);
        holder.probed(address, Generation(1), found, now);
        holder.step(now);
        holder.saw(address, granted(true));
        holder.step(now);
        lease = holder.renewal(&lease);
        granter.saw_lease(&node, lease, now);
        granter.saw_grant(address, granted(true));
        let mut wanted = Assignment::default();
        wanted.nodes.insert(address, next.clone());
        let steps = granter.step(&wanted, now);
        let [GranterStep::Write { record, .. }] = &steps[..] else {
            panic!("{name}: {steps:?}")
        };
        let grant = record.grant.as_ref().map(|grant| grant.is_handed_over);
        assert_eq!(grant, Some(want), "{name}");
    }
}

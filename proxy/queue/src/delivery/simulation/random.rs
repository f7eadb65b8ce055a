//! Whatever fails: random plans, a thousand simulated hours of them. A failing one is shrunk, and its seed printed.

use proptest::{
    collection::vec,
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{RngAlgorithm, TestRng, TestRunner},
};

use super::*;

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![
        3 => Just(Mode::Up),
        2 => Just(Mode::Refusing),
        1 => Just(Mode::Breaking),
        1 => Just(Mode::Erroring),
        1 => Just(Mode::Busy),
        1 => Just(Mode::Missing),
        1 => Just(Mode::Hanging),
        1 => Just(Mode::Denied),
    ]
}

const LANES: usize = 3;
/// From here on everything is well.
const WELL: i64 = 20 * MINUTE;

/// Until when everything has ended: a wait lasts an hour at most, whatever the wall clock does meanwhile.
const OVER: i64 = WELL + 80 * MINUTE;

fn any_plan() -> impl Strategy<Value = Plan> {
    let odd = || prop_oneof![19 => Just(false), 1 => Just(true)];
    let key = proptest::option::of(0..3_u16);
    let flags = (any::<bool>(), odd(), odd(), any::<bool>());
    let delay = prop_oneof![4 => Just(0), 1 => 0..MINUTE];
    let request = (0..WELL, 0..LANES, key, 0..10_u8, delay, 1..1_u64 << 20, flags);
    let request = request.prop_map(|(at, lane, key, brief, delay, size, flags)| {
        let (repeat_safe, unsendable, lost, pausing) = flags;
        // Of one lane, for somebody has to resume its keys.
        let pausing = pausing && lane == 0;
        // One in ten expires during the trouble.
        let expiry = if brief == 0 { 2 * MINUTE } else { 24 * 60 * MINUTE };
        Request { at, lane, key, pausing, repeat_safe, expiry, delay, size, unsendable, lost }
    });
    let modes = vec((0..WELL, mode()), 0..12).prop_map(|mut modes| {
        modes.sort_by_key(|(at, _)| *at);
        modes.push((WELL, Mode::Up));
        modes
    });
    let spell = || (0..WELL, 1..2 * MINUTE).prop_map(|(from, len)| from..(from + len).min(WELL));
    // Six hours either way, three times: less than any retention.
    let jumps = prop_oneof![3 => Just(vec![]), 2 => vec((0..WELL, -360 * MINUTE..360 * MINUTE), 1..4)];
    let slow = (prop_oneof![Just(0), Just(300_u64)], prop_oneof![Just(0), Just(50_u64)]);
    let of_the_log = (vec(spell(), 0..3), vec(spell(), 0..3), slow);
    let of_the_owner = (
        vec(0..WELL, 0..4),
        vec((any::<prop::sample::Index>(), 0..300_i64), 0..6),
        vec((0..WELL, 0..LANES), 0..6),
        prop_oneof![Just(2_usize), Just(64)],
        vec((0..WELL, proptest::option::of(1..20_u32)), 0..3),
    );
    (
        any::<u64>(),
        prop_oneof![vec(request.clone(), 1..8), vec(request, 1..120)],
        vec(modes, LANES),
        proptest::option::of((0..3_u16, 0..WELL)),
        jumps,
        of_the_owner,
        of_the_log,
    )
        .prop_map(|(seed, requests, modes, bad_key, jumps, owner, log)| {
            let (crashes, rescans, nudges, max_in_flight, mut rates) = owner;
            rates.push((WELL, None));
            let (broken, unreadable, slow) = log;
            let bad_keys = bad_key.map(|(key, until)| (key..key + 1, until));
            // Reads are most likely to be out of date soon after a record came.
            // Somebody looks once during the trouble, and each minute after it: each record may pause its key.
            let looks = || (WELL..OVER - MINUTE).step_by(60_000).chain([WELL / 2]);
            let resumes = (0..3).flat_map(|key| looks().map(move |at| (at, key)));
            let rescans = rescans.iter().map(|(near, after)| near.get(&requests).at + after).collect();
            Plan {
                seed,
                requests,
                modes,
                bad_keys,
                crashes,
                rescans,
                jumps,
                resumes: resumes.collect(),
                rates,
                nudges,
                broken,
                unreadable,
                max_in_flight,
                slow,
            }
        })
}

/// Plans from one number.
fn plans(cases: u32, seed: u64) -> TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

/// Runs a plan to its end. The invariants of order, marks, caps, probes, expiry and repetition are asserted at each step.
fn every_record_ends_for_a_reason(plan: &Plan) -> Result<(), TestCaseError> {
    let simulation = run(plan.clone(), OVER);
    let crashed = !plan.crashes.is_empty();
    for (n, state) in simulation.end_states().into_iter().enumerate() {
        let request = &plan.requests[n];
        let modes = &plan.modes[lane_number(&lane(request.lane))];
        let broke = modes.iter().any(|(_, m)| matches!(m, Mode::Breaking | Mode::Erroring | Mode::Hanging));
        match state {
            State::Delivered { .. } => prop_assert!(simulation.fates[n].delivered_at.is_some()),
            State::Dead { reason: DeadReason::Expired } => prop_assert!(request.expiry == 2 * MINUTE),
            State::Dead { reason: DeadReason::Exhausted } => prop_assert!(request.key.is_some()),
            State::Dead { reason: DeadReason::Rejected } => prop_assert!(request.unsendable),
            State::Dead { reason: DeadReason::Indeterminate } => {
                let maybe_taken = !request.repeat_safe && (crashed || broke || plan.bad_keys.is_some());
                prop_assert!(maybe_taken || request.lost);
            }
            other => prop_assert!(false, "record {} ended as {}: {:?}", n, other, simulation.fates[n]),
        }
    }
    prop_assert_eq!(simulation.machine.in_flight(), 0);
    prop_assert_eq!(simulation.machine.waiting(), 0);
    Ok(())
}

/// Two thousand hours of them: a number of plans, each of which ends.
#[test]
fn whatever_fails_every_record_is_delivered_or_dead_for_a_reason() {
    const HOURS: i64 = 2000;
    let clock =
        || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64 % 1_000_000_007);
    let seed = std::env::var("BEAMLINE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(clock);
    let cases = (HOURS * 60 * MINUTE / OVER + 1) as u32;
    if let Err(failed) = plans(cases, seed).run(&any_plan(), |plan| every_record_ends_for_a_reason(&plan)) {
        panic!("seed {seed} (BEAMLINE_SEED={seed} repeats this run): {failed}");
    }
}

#[test]
fn a_plan_leads_to_the_same_deliveries_again() {
    let mut plans = plans(1, 11);
    for _ in 0..40 {
        let plan = any_plan().new_tree(&mut plans).unwrap().current();
        let told = || format!("{:?}", run(plan.clone(), OVER).fates);
        assert_eq!(told(), told());
    }
}

#[test]
fn one_number_gives_the_same_plans_again() {
    let first = |seed| format!("{:?}", any_plan().new_tree(&mut plans(1, seed)).unwrap().current());
    assert_eq!(first(7), first(7));
    assert_ne!(first(7), first(8));
}

//! Mixed faults from seeds: an origin that goes, hangs, resets and answers ill, a disk whose fsyncs fail, kills and power
//! cuts. The checker finds nothing.
//!
//! `BEAMLINE_RUNS` says how many seeds (`make faults`: 300); `BEAMLINE_SEED` which one is the first.

use beamline_tests::{checker, faults, heavy::heavy, seed::Seed};

#[test]
fn nothing_accepted_is_lost_whatever_goes_wrong() {
    let _alone = heavy().unwrap();
    let runs = std::env::var("BEAMLINE_RUNS").ok().map_or(4, |n| n.parse::<u64>().unwrap());
    let first = Seed::from_env("faults").bits() % 1_000_000_000;
    let (mut acknowledged, mut delivered, mut repeated, mut dead, mut indeterminate) = (0, 0, 0, 0, 0);
    for seed in first..first + runs {
        let ran = faults::run(seed, None).unwrap();
        let n = ran.judged.numbers;
        println!("seed {seed}: {}\n  {n}", ran.schedule);
        assert!(
            ran.judged.violations.is_empty(),
            "seed {seed}: {}\n{}\n{n}",
            ran.schedule,
            checker::summary(&ran.judged.violations)
        );
        assert_eq!(ran.left, 0, "seed {seed}: with its origin up the queue drains; {}\n{n}", ran.schedule);
        acknowledged += n.acknowledged;
        delivered += n.delivered;
        repeated += n.repeated;
        dead += n.rejected;
        indeterminate += n.indeterminate;
    }
    println!(
        "{runs} runs: {acknowledged} acknowledged, {delivered} delivered, {repeated} repeated, {dead} dead (rejected), {indeterminate} dead (indeterminate), 0 violations"
    );
    assert!(acknowledged > 10 * runs as usize, "a run that had nothing to lose shows nothing");
}

#[test]
fn one_seed_is_one_schedule_and_one_set_of_requests() {
    let _alone = heavy().unwrap();
    let (one, again) = (faults::run(4711, None).unwrap(), faults::run(4711, None).unwrap());
    assert_eq!(one.schedule, again.schedule);
    assert_eq!(one.requests, again.requests);
}

//! Mixed faults from seeds: an origin that goes, hangs, resets and answers ill, a disk whose fsyncs fail, kills and power
//! cuts, quotas that are soon full and response time-outs that are run into. The checker finds nothing.
//!
//! `BEAMLINE_RUNS` says how many seeds (`make faults`: 300); `BEAMLINE_FIRST` is the first of them, as they are printed.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use beamline_tests::{checker, environment, faults, heavy::heavy, seed::Seed};

/// From so many seeds on, what only some of them bring must have come.
const MANY: u64 = 40;
/// Runs at once, where there are many: most of a run is waiting.
const AT_ONCE: usize = 4;

#[derive(Default)]
struct Sums {
    acknowledged: usize,
    delivered: usize,
    repeated: usize,
    rejected: usize,
    indeterminate: usize,
    unconfirmed: usize,
    unseen_commits: usize,
    full: usize,
    timed_out: usize,
    hung_clients: usize,
    hung_deliveries: usize,
}

/// One seed's run; panics where the judge finds anything.
fn judged(seed: u64, sums: &Mutex<Sums>) {
    let ran = faults::run(seed, None).unwrap();
    let n = ran.judged.numbers;
    let (live, delivery) = ran.outlasted;
    println!(
        "seed {seed}: {}\n  {n}; the origin outlasted {live} clients and {delivery} deliveries",
        ran.schedule
    );
    assert!(
        ran.judged.violations.is_empty(),
        "seed {seed}: {}\n{}\n{n}",
        ran.schedule,
        checker::summary(&ran.judged.violations)
    );
    assert_eq!(ran.left, 0, "seed {seed}: with its origin up the queue drains; {}\n{n}", ran.schedule);
    let mut sums = sums.lock().unwrap();
    sums.acknowledged += n.acknowledged;
    sums.delivered += n.delivered;
    sums.repeated += n.repeated;
    sums.rejected += n.rejected;
    sums.indeterminate += n.indeterminate;
    sums.unconfirmed += n.unconfirmed;
    sums.unseen_commits += n.unseen_commits;
    sums.full += n.full;
    sums.timed_out += n.timed_out;
    sums.hung_clients += live;
    sums.hung_deliveries += delivery;
}

#[test]
fn nothing_accepted_is_lost_whatever_goes_wrong() {
    let _alone = heavy().unwrap();
    let runs = environment::number("BEAMLINE_RUNS").unwrap_or(4);
    let first = environment::number("BEAMLINE_FIRST");
    let first = first.unwrap_or_else(|| Seed::from_env("faults").bits() % 1_000_000_000);
    let (sums, next, began) = (Mutex::default(), AtomicU64::new(first), Instant::now());
    thread::scope(|threads| {
        for _ in 0..if runs > 2 * AT_ONCE as u64 { AT_ONCE } else { 1 } {
            threads.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + runs {
                        return;
                    }
                    judged(seed, &sums);
                }
            });
        }
    });
    let sums = sums.into_inner().unwrap();
    let Sums { acknowledged, delivered, repeated, rejected, indeterminate, .. } = sums;
    let Sums { unconfirmed, unseen_commits, full, timed_out, hung_clients, hung_deliveries, .. } = sums;
    println!(
        "{runs} runs in {:.0?}: {acknowledged} acknowledged, {delivered} delivered, {repeated} repeated, {rejected} dead (rejected), \
         {indeterminate} dead (indeterminate), {unconfirmed} told that nobody knows, {unseen_commits} stored and delivered though \
         their answer was lost, {full} refused for want of room, {hung_clients} requests and {hung_deliveries} deliveries \
         that the origin kept waiting beyond the time-out ({timed_out} answered upstream-timeout), 0 violations",
        began.elapsed()
    );
    assert!(acknowledged > 10 * runs as usize, "a run that had nothing to lose shows nothing");
    if runs >= MANY {
        assert!(full > 0, "no seed's quota was ever full");
        assert!(hung_clients > 0 && hung_deliveries > 0, "no seed ran into a response time-out");
    }
}

/// What is done, when, and what clients begin: all of it comes from the seed. What the node makes of it is the course that the
/// machine takes, another one each time, and is not compared.
#[test]
fn one_seed_is_one_schedule_and_one_set_of_requests() {
    let _alone = heavy().unwrap();
    let (one, again) = (faults::run(4711, None).unwrap(), faults::run(4711, None).unwrap());
    assert_eq!(one.schedule, again.schedule);
    assert_eq!(one.requests, again.requests);
}

//! `kill -9` at seeded points under enqueues, deliveries and control-plane writes: what was answered is there, and
//! nothing is there that nobody asked for.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::time::{Duration, Instant};

use beamline_tests::{
    beamline::{Beamline, Options},
    checker, environment,
    heavy::heavy,
    origin::Origin,
    seed::Seed,
    workload::{Crowd, PATIENT, Told, Weather, Workload},
};

/// How often the node is killed: `BEAMLINE_KILLS`, or 100.
fn kills() -> u64 {
    environment::number("BEAMLINE_KILLS").unwrap_or(100)
}

fn kill(node: &mut Beamline, told: &Told) {
    told.ledger.crash_begins();
    node.kill_nine().unwrap();
    told.ledger.crash_ends();
}

#[test]
fn what_was_answered_survives_kill_nine_at_any_moment() {
    let _alone = heavy().unwrap();
    let mut seed = Seed::from_env("durability");
    let kills = kills();
    let began = Instant::now();
    let origin = Origin::start("acme").unwrap();
    let mut node = Beamline::start(Options { log: false, ..Options::default() }).unwrap();
    let crowd = Crowd {
        keyed: 4,
        unkeyed: 4,
        changers: 2,
        pause: Duration::from_millis(18),
        response_timeout: PATIENT,
    };
    let mut workload = Workload::new(&node, origin.address(), crowd, &mut seed).unwrap();
    let told = workload.told().clone();
    workload.start();
    let weather = Weather::changes(origin, seed.fork(), Duration::from_millis(600));

    let mut killed = 0;
    while killed < kills {
        std::thread::sleep(Duration::from_millis(seed.within(20..450)));
        kill(&mut node, &told);
        killed += 1;
        // Now and then it is killed again while it starts: in the middle of its recovery.
        while killed < kills && seed.one_in(6) {
            node.spawn().unwrap();
            std::thread::sleep(Duration::from_millis(seed.within(0..120)));
            kill(&mut node, &told);
            killed += 1;
        }
        node.launch().unwrap();
    }

    let killing = began.elapsed();
    workload.stop();
    let origin = weather.clears().unwrap();
    let admin = node.admin().unwrap();
    let open = workload.drained(&admin, Duration::from_secs(60)).unwrap();
    workload.look().unwrap();
    let judged = workload.judged(&origin).unwrap();
    let (done, refused, unknown) = judged.changes;
    eprintln!(
        "durability: {killed} kills in {killing:.0?}, {:.0?} in all; {}; \
         changes: {done} answered 2xx, {refused} refused, {unknown} of which nobody knew",
        began.elapsed(),
        judged.numbers
    );
    assert!(judged.violations.is_empty(), "{}", checker::summary(&judged.violations));
    assert_eq!(open, 0, "with its origin up the queue drains; {}", judged.numbers);
    // A run that had nothing to lose shows nothing.
    let n = judged.numbers;
    assert!(n.acknowledged > kills as usize && n.delivered > 0 && n.cut > 0 && done > kills as usize);

    // What crashes left behind is collected: a dead record keeps its body, and nobody else does.
    node.kill_nine().unwrap();
    node.launch().unwrap();
    let files = std::fs::read_dir(node.data_dir().join("queue/bodies")).unwrap().count();
    let dead = n.rejected + n.indeterminate + n.unseen_commits;
    assert!(files <= dead, "expected body files of at most {dead} dead records; found {files}");
}

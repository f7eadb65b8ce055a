//! Power cuts under load: what was answered is there after everything is taken away that was not fsynced. And the
//! other way round: a node that leaves its fsyncs out, of the queue's log, of its body files or of the store, is caught.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::time::{Duration, Instant};

use beamline_tests::{
    beamline::{Beamline, Options},
    checker::{self, Kind, Violation},
    heavy::heavy,
    origin::Origin,
    powercut::{Entries, Lost, PowerCut},
    seed::Seed,
    workload::{Crowd, Judged, PATIENT, Weather, Workload},
};

const CROWD: Crowd =
    Crowd { keyed: 3, unkeyed: 4, changers: 2, pause: Duration::from_millis(12), response_timeout: PATIENT };

/// A node whose machine can lose power, and its clients.
struct Scene {
    /// Before the node: its directory goes last.
    workload: Workload,
    node: Beamline,
    power: PowerCut,
    seed: Seed,
}

impl Scene {
    /// `skip` names what is never fsynced, once the node was set up.
    fn new(origin: &Origin, entries: Entries, skip: Option<&str>, mut seed: Seed) -> Self {
        let mut node = Beamline::start(Options { log: false, ..Options::default() }).unwrap();
        let workload = Workload::new(&node, origin.address(), CROWD, &mut seed).unwrap();
        node.kill_nine().unwrap();
        let power = PowerCut::over(&node.data_dir(), entries).unwrap();
        let power = match skip {
            Some(part) => power.skip_fsync(part),
            None => power,
        };
        node.options_mut().environment = power.environment();
        node.launch().unwrap();
        Self { workload, node, power, seed }
    }

    /// Cuts the power at a seeded moment, and starts the node again.
    fn strike(&mut self) -> Lost {
        std::thread::sleep(Duration::from_millis(self.seed.within(100..700)));
        let told = self.workload.told().clone();
        told.ledger.crash_begins();
        self.node.kill_nine().unwrap();
        told.ledger.crash_ends();
        let lost = self.power.strike().unwrap();
        self.node.launch().unwrap();
        lost
    }

    /// With its origin up: delivers what it can, and judges.
    fn judged(&mut self, origin: &Origin, within: Duration) -> (u64, Judged) {
        let drained = self.node.admin().and_then(|admin| self.workload.drained(&admin, within));
        // A node that lost its store may know no operator any more; its clients see that, too.
        let open = drained.unwrap_or(u64::MAX);
        self.workload.look().unwrap();
        (open, self.workload.judged(origin).unwrap())
    }
}

#[test]
fn what_was_answered_survives_power_cuts() {
    let _alone = heavy().unwrap();
    let mut seed = Seed::from_env("power cuts");
    let began = Instant::now();
    // Half of them where only an fsync of its directory makes an entry durable, half as ext4 has it.
    for entries in [Entries::ByDirectory, Entries::ByFileToo] {
        let origin = Origin::start("acme").unwrap();
        let mut scene = Scene::new(&origin, entries, None, seed.fork());
        scene.workload.start();
        let weather = Weather::changes(origin, seed.fork(), Duration::from_millis(600));
        // On a fast disk a strike may find all that was written fsynced: that is a node that does well, and no proof that
        // the strikes are any good. The test below has that proof.
        let mut reverted = 0;
        for _ in 0..3 {
            let lost = scene.strike();
            reverted += lost.gone.len() + lost.reverted.len() + lost.back.len();
        }
        scene.workload.stop();
        let origin = weather.clears().unwrap();
        let (open, judged) = scene.judged(&origin, Duration::from_secs(60));
        eprintln!(
            "power cuts, {entries:?}: 3 strikes took or brought back {reverted} files, {:.0?}; {}; changes: {:?}",
            began.elapsed(),
            judged.numbers,
            judged.changes
        );
        assert!(judged.violations.is_empty(), "{}", checker::summary(&judged.violations));
        assert_eq!(open, 0, "with its origin up the queue drains; {}", judged.numbers);
        assert!(judged.numbers.acknowledged > 50 && judged.changes.0 > 10, "{judged:?}");
    }
}

/// Strikes until the checker finds what a node breaks that never fsyncs `part`, five times at most.
fn broken_promises_without_fsync_of(part: &str, seed: Seed) -> Vec<Violation> {
    let mut origin = Origin::start("acme").unwrap();
    let mut scene = Scene::new(&origin, Entries::ByDirectory, Some(part), seed);
    for strike in 1..=5 {
        origin.stop();
        scene.workload.start();
        scene.strike();
        scene.workload.stop();
        origin.start_again().unwrap();
        let (_, judged) = scene.judged(&origin, Duration::from_secs(10));
        if !judged.violations.is_empty() {
            eprintln!("without fsync of {part}: strike {strike}: {}", checker::summary(&judged.violations));
            return judged.violations;
        }
    }
    Vec::new()
}

#[test]
fn a_node_that_skips_an_fsync_is_caught() {
    let _alone = heavy().unwrap();
    let mut seed = Seed::from_env("skipped fsyncs");
    for (part, kinds) in [
        ("queue.db", [Kind::Lost].as_slice()),
        // Files and their folder, then the files alone.
        ("/bodies", &[Kind::ContentLost, Kind::Altered]),
        ("/bodies/", &[Kind::ContentLost, Kind::Altered]),
        ("store.db", &[Kind::ChangeLost, Kind::RevisionReused]),
    ] {
        let found = broken_promises_without_fsync_of(part, seed.fork());
        assert!(
            found.iter().any(|violation| kinds.contains(&violation.kind)),
            "without fsync of {part}, five power cuts broke no promise of {kinds:?}: {}",
            checker::summary(&found)
        );
    }
}

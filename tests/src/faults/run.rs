//! One run: a node, its clients, and what goes wrong.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{Bound, Fault, Schedule};
use crate::{
    beamline::{Beamline, Options},
    checker::Quota,
    origin::Origin,
    powercut::{Entries, PowerCut},
    seed::Seed,
    workload::{Crowd, Judged, PATIENT, Workload},
};

const CROWD: Crowd =
    Crowd { keyed: 4, unkeyed: 4, changers: 1, pause: Duration::from_millis(10), response_timeout: PATIENT };
/// Requests of each client.
const REQUESTS: u64 = 25;
/// How long the next step may be waited for, and the end.
const PATIENCE: Duration = Duration::from_secs(90);

/// What a run came to.
pub struct Ran {
    /// What went wrong in it.
    pub schedule: Schedule,
    /// The judge's word.
    pub judged: Judged,
    /// Records that were still queued when the queue should have been empty.
    pub left: u64,
    /// Every request that clients began, sorted: the same for the same seed.
    pub requests: Vec<String>,
    /// Requests of clients, and deliveries from the queue, that the origin kept waiting for longer than the response time-out.
    pub outlasted: (usize, usize),
}

/// Runs one seed. `broken` names a promise that the node, a build with debug assertions, is told to break.
///
/// # Errors
/// Where the harness itself fails, or the node does not start again.
pub fn run(seed: u64, broken: Option<&str>) -> Result<Ran> {
    let mut seed = Seed::new(seed);
    let schedule = Schedule::new(REQUESTS * (CROWD.keyed + CROWD.unkeyed) as u64, &mut seed);
    let mut origin = Origin::start("acme")?;
    let configuration = schedule.bound.map(Bound::configuration);
    let mut node = Beamline::start(Options { log: false, configuration, ..Options::default() })?;
    // Where a time-out is to be run into, there is more time between two crashes.
    let pause = if schedule.is_impatient() { 8 * CROWD.pause } else { CROWD.pause };
    let crowd = Crowd { pause, response_timeout: schedule.response_timeout, ..CROWD };
    let mut workload = Workload::new(&node, origin.address(), crowd, &mut seed)?;
    workload.is_held_to(schedule.bound.map_or(Quota::NONE, Bound::quota));
    node.kill_nine()?;
    let entries = if seed.one_in(2) { Entries::ByDirectory } else { Entries::ByFileToo };
    let power = PowerCut::over(&node.data_dir(), entries)?;
    let mut environment = power.environment();
    environment.extend(broken.map(|name| ("BEAMLINE_FAULT".into(), name.into())));
    node.options_mut().environment = environment;
    node.launch()?;

    origin.misbehaves(schedule.mischief.clone());
    let told = workload.told().clone();
    workload.start_with(REQUESTS);
    for step in &schedule.steps {
        let until = Instant::now() + PATIENCE;
        while told.ledger.begun() < step.at && !workload.has_sent() {
            ensure!(Instant::now() < until, "the clients came to no {} requests: {schedule}", step.at);
            std::thread::sleep(Duration::from_micros(200));
        }
        match step.fault {
            Fault::OriginDown => origin.stop(),
            Fault::OriginUp => origin.start_again()?,
            Fault::DiskFails => {
                told.ledger.disk_fails();
                power.failing(true)?;
            }
            Fault::DiskWorks => {
                power.failing(false)?;
                told.ledger.disk_works();
            }
            Fault::Clock(ahead) => power.clock(ahead)?,
            Fault::Kill | Fault::KillTwice | Fault::PowerCut => {
                told.ledger.crash_begins();
                node.kill_nine()?;
                told.ledger.crash_ends();
                if step.fault == Fault::PowerCut {
                    power.strike()?;
                }
                if step.fault == Fault::KillTwice {
                    node.spawn()?;
                    std::thread::sleep(Duration::from_millis(seed.within(0..120)));
                    told.ledger.crash_begins();
                    node.kill_nine()?;
                    told.ledger.crash_ends();
                }
                node.launch().with_context(|| format!("after {:?}: {schedule}", step.fault))?;
            }
        }
    }

    // Everything is well again. What was accepted ends.
    power.failing(false)?;
    told.ledger.disk_works();
    if !origin.runs() {
        origin.start_again()?;
    }
    let until = Instant::now() + PATIENCE;
    while !workload.has_sent() {
        ensure!(Instant::now() < until, "the clients did not come to an end: {schedule}");
        std::thread::sleep(Duration::from_millis(2));
    }
    workload.stop();
    // A delivery runs into its time-out best where nothing crashes any more.
    if !schedule.is_impatient() {
        origin.misbehaves(BTreeMap::new());
    }
    let admin = node.admin()?;
    let left = workload.drained(&admin, PATIENCE)?;
    workload.look()?;
    let judged = workload.judged(&origin)?;
    let mut requests: Vec<_> = told
        .ledger
        .exchanges()
        .iter()
        .map(|e| format!("{} {} {} bytes", e.intent.id, e.intent.method, e.intent.body.len()))
        .collect();
    requests.sort();
    let (mut live, mut delivery) = (0, 0);
    for request in origin.requests().iter().filter(|r| schedule.outlasts(r.mischief)) {
        match request.headers.get("beamline-attempt") {
            None => live += 1,
            Some(_) => delivery += 1,
        }
    }
    Ok(Ran { schedule, judged, left, requests, outlasted: (live, delivery) })
}

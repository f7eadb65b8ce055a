//! Nothing is left behind: modules replaced under load, again and again. `make soak` does it ten thousand times.

use std::time::Duration;

use beamline_tests::{
    beamline::Options,
    guests::{self, variant},
    heavy::heavy,
    load::{self, Plan, QuickOrigin},
    process,
    scene::{HOST, PATIENCE, Scene, TENANT},
};
use serde_json::json;

/// Modules that take turns: each is let go, and loaded anew when its turn comes again.
const MODULES: usize = 40;
/// Connections that are open meanwhile.
const CONNECTIONS: usize = 100;
/// How much more the node may hold at the end than after the first fifth: what an allocator keeps back differs by that.
const MORE: u64 = 16 << 20;

#[test]
fn modules_that_are_replaced_under_load_leave_nothing_behind() {
    let _heavy = heavy();
    let replacements = std::env::var("BEAMLINE_REPLACEMENTS").map_or(200, |n| n.parse().unwrap());
    let scene = Scene::with(Options { workers: 1, ..Options::default() }).unwrap();
    let origin = QuickOrigin::start(64).unwrap();
    let probe = guests::module("probe").unwrap();
    let push = |n: usize| scene.admin.push(TENANT, &variant(&probe, &format!("soak{n}"))).unwrap().digest;
    let digests: Vec<_> = (0..MODULES).map(push).collect();
    let replace = |n: usize| {
        scene
            .apply(|m| {
                m["upstreams"]["origin"]["endpoints"] = json!([origin.address().to_string()]);
                m["filters"] = json!([{ "name": "probe", "module": digests[n % MODULES] }]);
            })
            .unwrap();
    };
    replace(0);
    let plan = Plan::new(scene.node.address(), load::get("/", HOST));
    let load =
        load::start(plan.connections(CONNECTIONS).rate(400.0).lasting(Duration::from_secs(3600))).unwrap();
    load.wait_for_more(CONNECTIONS as u64, PATIENCE).unwrap();

    let resident = || process::memory(scene.node.pid().unwrap()).unwrap().resident;
    let (mut settled, mut samples) = (0, Vec::new());
    for n in 1..=replacements {
        replace(n);
        if n == replacements / 5 {
            settled = resident();
        }
        if n % (replacements / 10).max(1) == 0 {
            samples.push(resident() >> 20);
        }
    }
    let (more, report) = (resident().saturating_sub(settled), load.stop().unwrap());
    println!("{replacements} replacements, {} requests: {samples:?} MiB", report.good());
    assert_eq!(report.failed(), 0, "{report}");
    assert!(more <= MORE, "{} KiB more than after the first fifth: {samples:?} MiB", more >> 10);
}

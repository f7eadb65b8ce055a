//! Nothing is left behind: modules replaced under load, again and again. `make soak` does it ten thousand times.
//!
//! Memory is compared from when each module was loaded once, for what is kept of all of them is not what is left behind. Of
//! modules that are never let go it would show nothing, for each is loaded once and stays: so machine code is counted, too,
//! of which there is never more than that of a few. The last tenth of the replacements are modules that were never there before.

use std::time::Duration;

use beamline_tests::{
    beamline::Options,
    environment,
    guests::{self, variant},
    heavy::heavy,
    load::{self, Plan, QuickOrigin},
    process,
    scene::{HOST, PATIENCE, Scene, TENANT},
    wait::wait,
};
use serde_json::json;

/// Modules that take turns: each is let go, and loaded anew when its turn comes again.
const MODULES: usize = 40;
/// Connections that are open meanwhile.
const CONNECTIONS: usize = 100;
/// New modules at the end, at most: each is compiled.
const NEW: usize = 200;
/// How much more the node may hold at the end than when each module had been loaded twice: what an allocator keeps back
/// differs by that.
const MORE: u64 = 16 << 20;
/// Modules whose code the node may have at once: the active one, and those that a worker or a request still holds.
const HELD: u64 = 5;

#[test]
fn modules_that_are_replaced_under_load_leave_nothing_behind() {
    let _alone = heavy().unwrap();
    let replacements = environment::number("BEAMLINE_REPLACEMENTS").unwrap_or(400) as usize;
    let scene = Scene::with(Options { workers: 1, ..Options::default() }).unwrap();
    let origin = QuickOrigin::start(64).unwrap();
    let probe = guests::module("probe").unwrap();
    let push = |n: usize| scene.admin.push(TENANT, &variant(&probe, &format!("soak{n}"))).unwrap().digest;
    let digests: Vec<_> = (0..MODULES).map(push).collect();
    let replace_by = |digest: &str| {
        scene
            .apply(|m| {
                m["upstreams"]["origin"]["endpoints"] = json!([origin.address().to_string()]);
                m["filters"] = json!([{ "name": "probe", "module": digest }]);
            })
            .unwrap();
    };
    let replace = |n: usize| replace_by(&digests[n % MODULES]);
    replace(0);
    let plan = Plan::new(scene.node.address(), load::get("/", HOST));
    let load =
        load::start(plan.connections(CONNECTIONS).rate(400.0).lasting(Duration::from_secs(3600))).unwrap();
    load.wait_for_more(CONNECTIONS as u64, PATIENCE).unwrap();

    let pid = scene.node.pid().unwrap();
    let resident = || process::memory(pid).unwrap().resident;
    let code = || process::loaded_code(pid).unwrap();
    let of_one = wait(PATIENCE, code, |bytes| *bytes > 0);
    let is_let_go = || wait(PATIENCE, code, |bytes| *bytes <= of_one * HELD);
    (1..=2 * MODULES).for_each(&replace);
    is_let_go();
    let (settled, mut samples) = (resident(), Vec::new());
    for n in 1..=replacements {
        replace(n);
        if n % (replacements / 10).max(1) == 0 {
            samples.push(resident() >> 20);
        }
    }
    let new = (replacements / 10).min(NEW);
    (MODULES..MODULES + new).for_each(|n| replace_by(&push(n)));
    samples.push(resident() >> 20);
    let at_the_end = is_let_go();
    println!("the code of one module takes {} KiB, at the end there are {}", of_one >> 10, at_the_end >> 10);
    let (more, report) = (resident().saturating_sub(settled), load.stop().unwrap());
    println!(
        "{replacements} replacements and {new} by new modules, {} requests: {samples:?} MiB",
        report.good()
    );
    assert_eq!(report.failed(), 0, "{report}");
    assert!(more <= MORE, "{} KiB more than before: {samples:?} MiB", more >> 10);
}

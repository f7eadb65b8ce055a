//! A module is replaced while traffic flows.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use toml::toml;

use super::Chapter;
use crate::{
    demo::{
        Told,
        stage::{ACME, Ask, Stage, revision_in, shown},
    },
    load::{self, Plan},
};

pub(super) const CHAPTER: Chapter = Chapter {
    title: "A module is replaced while traffic flows",
    shows: "Another module takes the place of `router` and is rolled back, over and over, under load. A change is one\n\
            swap of a pointer: requests under way end with the filters they began with.",
    tell,
};

/// `router` sends it to the second origin, the other module to the first.
const PATH: &str = "/static/logo.svg";
/// Requests per second.
const RATE: f64 = 400.0;
const CONNECTIONS: usize = 8;
const ROUNDS: usize = 5;
/// How much traffic flows between two changes at least.
const BETWEEN: u64 = 60;

fn tell(stage: &mut Stage) -> Told {
    let other = stage.example(&ACME)?.with_replaced(
        &stage.settings,
        "router",
        "probe.wasm",
        toml! { do = "route" upstream = "api" },
    )?;
    let file = other.to_apply(stage.node.folder(), "acme-replaced.toml")?;
    let apply = ["apply", shown(&file)?, "--tenant", ACME.name];
    let back = ["rollback", "--tenant", ACME.name];

    let plan = Plan::new(stage.node.address(), load::get(PATH, ACME.host))
        .connections(CONNECTIONS)
        .rate(RATE)
        .lasting(Duration::from_secs(60));
    let load = load::start(plan)?;
    stage.print.scene(&format!("{RATE} requests a second flow to {}", ACME.host));
    let began = Instant::now();
    let mut waiting = None;
    for round in 0..ROUNDS {
        for (change, origin) in [(&apply[..], stage.settings.origin_1), (&back[..], stage.settings.origin_2)]
        {
            load.wait_for_more(BETWEEN, Duration::from_secs(10))?;
            if round == 0 {
                stage.print.detail(revision_in(&stage.beamline(change)?));
            } else {
                waiting.get_or_insert_with(|| stage.print.waiting("and again")).tick();
                stage.interrupt.check()?;
                stage.quietly(change)?;
            }
            answered_by(stage, origin)?;
        }
    }
    load.wait_for_more(BETWEEN, Duration::from_secs(10))?;
    drop(waiting);
    let report = load.stop()?;
    stage.print.detail(&format!(
        "{} changes in {:.1} s, {} requests meanwhile, {} of them not 2xx; p99 {:.1?}",
        2 * ROUNDS,
        began.elapsed().as_secs_f64(),
        report.total(),
        report.failed(),
        report.latency.percentile(99.0),
    ));
    stage.claim(
        "each change decided the very next request, and no request failed",
        report.failed() == 0,
        "0 non-2xx",
        format!("{report}\n{}", stage.logged_errors(&ACME)),
    )
}

/// The change is there when the command returns: the next request shows it.
fn answered_by(stage: &Stage, port: u16) -> Result<()> {
    let response = stage.send(&Ask::get(&ACME, PATH))?.expect(200)?;
    let (expected, found) = (format!("origin {port}"), response.header("x-origin").unwrap_or("nobody"));
    ensure!(found == expected, "expected the next request to be answered by {expected}; it was by {found}");
    Ok(())
}

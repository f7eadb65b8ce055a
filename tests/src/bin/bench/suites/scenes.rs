//! The scenes of the core suite: what one tenant's loops, bombs and changes do to another's latency.
//!
//! The node has one worker, on the proxy's processor. Each pair of turns takes the same load at the same rate, alone
//! and beside what disturbs it. Two bars each: the median of the differences, and the difference over all turns together, which a few
//! long turns show in. Latency counts from when a request was due.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use beamline_tests::{
    admin::manifest,
    beamline::Options,
    guests::{self, variant},
    histogram::Histogram,
    load::{self, Plan, QuickOrigin, Report},
    scene::{HOST, PATIENCE, Scene, TENANT},
};
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::{
    cpu::Usage,
    proxies::PROXY_CPU,
    report::{Bar, Bound, median},
};

/// How much a tenant's p99 may rise beside another's loops or bombs, in ms.
const BAR_BESIDE: f64 = 3.0;
/// How much p99.9 may rise in a run with changes, in ms.
const BAR_CHANGES: f64 = 5.0;

const NOISY: &str = "noisy";
/// Calls of the noisy tenant at once.
const CALLS: usize = 64;
/// Tenants of which each has a call in a loop.
const TENANTS: usize = 100;
/// Many short pairs: a machine that stands still for some ms now and then spoils few of them.
const PAIRS: usize = 31;
const TURN: Duration = Duration::from_millis(500);
/// Pairs of the scene with changes, and how long its load is alone: as long as the changes take, about.
const CHANGE_PAIRS: usize = 5;
const CHANGE_TURN: Duration = Duration::from_secs(2);
/// Requests per second that a noisy tenant's connections send at most, and all those of the tenants in loops. What is sent is
/// to be noise, not a load that no worker could serve.
const NOISE_RATE: f64 = 500.0;
/// The noise is at it for so long before what it does is measured.
const SETTLED: Duration = Duration::from_millis(500);
/// What shows that a turn was disturbed: calls that a limit ended in it, at least, or a share of it that the slow lane ran.
/// Loops take turns in the lane: many of them end together, every few seconds; and beside a hundred tenants the calls of one get a
/// hundredth of it, so that of those that are under way in each turn few are ended.
const ENDED: u64 = 3;
const LANE: f64 = 0.3;
/// Pairs of the scene with everything, which waits for a compile bomb in each.
const AT_ONCE_PAIRS: usize = 15;
/// Beyond so much of all turns alone together, in ms, the machine stood still too often for them to be a measure.
const MOST_ALONE: f64 = 10.0;
const CHANGES: usize = 500;

/// One of the scenes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Which {
    /// Loops of another tenant.
    Spinners,
    /// Memory bombs of another tenant.
    Bombs,
    /// Loops, bombs, a hundred tenants in loops and compile bombs, at once.
    AtOnce,
    /// Applies, rollbacks and replaced modules.
    Changes,
}

/// Runs the scenes that are wanted, or all; gives their bars and figures.
pub(crate) fn run(wanted: &[Which]) -> Result<(Vec<Bar>, Value)> {
    let wanted = if wanted.is_empty() { Which::value_variants() } else { wanted };
    let scenes = wanted.iter().map(|which| match which {
        Which::Spinners => beside("spin", "64 spinners of another tenant on the same worker, p99"),
        Which::Bombs => beside("bomb", "64 memory bombs of another tenant on the same worker, p99"),
        Which::AtOnce => at_once(),
        Which::Changes => changes(),
    });
    let (bars, figures): (Vec<_>, Vec<_>) = scenes.collect::<Result<Vec<_>>>()?.into_iter().unzip();
    Ok((bars.into_iter().flatten().collect(), Value::Array(figures)))
}

fn millis(report: &Report, percent: f64) -> f64 {
    report.latency.percentile(percent).as_secs_f64() * 1e3
}

/// One scene's bars and figures from pairs of turns, alone and disturbed: the median of the differences, and the difference over
/// all turns together.
fn judged(what: &str, at_most: f64, percent: f64, pairs: &[(Report, Report)]) -> (Vec<Bar>, Value) {
    let alone: Vec<_> = pairs.iter().map(|(alone, _)| millis(alone, percent)).collect();
    let beside: Vec<_> = pairs.iter().map(|(_, beside)| millis(beside, percent)).collect();
    let more: Vec<_> = beside.iter().zip(&alone).map(|(b, a)| b - a).collect();
    let worst = more.iter().copied().fold(f64::MIN, f64::max);
    let found = median(more);
    let all = |of: fn(&(Report, Report)) -> &Report| {
        let mut all = Histogram::default();
        pairs.iter().for_each(|pair| all.merge(&of(pair).latency));
        all.percentile(percent).as_secs_f64() * 1e3
    };
    let pooled = [all(|pair| &pair.0), all(|pair| &pair.1)];
    let failed: u64 = pairs.iter().map(|(a, b)| a.failed() + b.failed()).sum();
    println!(
        "  {what}: alone {alone:.2?} ms, beside {beside:.2?} ms, at worst {worst:.2} ms more, {failed} requests failed"
    );
    println!("    over all turns together: alone {:.2} ms, beside {:.2} ms", pooled[0], pooled[1]);
    let failure = (failed > 0).then(|| format!("{failed} requests failed"));
    let still =
        (pooled[0] > MOST_ALONE).then(|| format!("the machine stood still: {:.1} ms alone", pooled[0]));
    let bar =
        |what: String, found, void| Bar { what, found, bound: Bound::AtMost(at_most), unit: "ms more", void };
    (
        vec![
            bar(what.into(), found, failure.clone()),
            bar(format!("{what}, over all turns together"), pooled[1] - pooled[0], failure.or(still)),
        ],
        json!({
            "name": what,
            "alone_ms": alone,
            "beside_ms": beside,
            "worst_ms": worst,
            "pooled_ms": pooled,
            "failed": failed,
        }),
    )
}

/// Gives a tenant that is there the probe as its filter, in front of the origin. A `round` of its own is a fresh chance for a module
/// that failed before.
fn probed(scene: &Scene, tenant: &str, origin: SocketAddr, cpu: &str, round: usize) -> Result<()> {
    let module = scene.admin.push(tenant, &guests::module("probe")?)?;
    let mut wanted = manifest(&host_of(tenant), origin);
    let path = format!("/round-{round}");
    wanted["filters"] = json!([
        { "name": "probe", "module": module.digest, "config": { "paths": { path: { "do": "next" } } } }
    ]);
    wanted["limits"] = json!({ "cpu": cpu });
    scene.admin.apply(tenant, &wanted)?;
    Ok(())
}

/// What some tenants send beside the one that is measured: calls that have to be ended.
struct Noise {
    plan: Plan,
    /// CPU time that each call may take.
    cpu: &'static str,
    tenants: Vec<String>,
}

impl Noise {
    /// `connections` of one tenant, whose filter does `step`.
    fn of(to: SocketAddr, tenant: &str, step: &str) -> Self {
        let plan = Plan::noise(to, &host_of(tenant), step).connections(CALLS);
        Self { plan, cpu: "50ms", tenants: vec![tenant.into()] }.paced()
    }

    /// A connection of each of `tenants`, whose filters loop. Short ones: a call of which each of a hundred tenants has its turn.
    fn of_many(to: SocketAddr, tenants: Vec<String>) -> Self {
        let each: Vec<_> = tenants.iter().map(|t| Plan::noise(to, &host_of(t), "spin").requests).collect();
        let mut plan = Plan::noise(to, "", "spin").connections(tenants.len());
        // Each tenant begins elsewhere in its turn, so that some loop at any time.
        let turns = each[0].len();
        plan.requests = (0..turns)
            .flat_map(|n| each.iter().enumerate().map(move |(i, requests)| requests[(n + i) % turns].clone()))
            .collect();
        Self { plan, cpu: "5ms", tenants }.paced()
    }

    fn paced(mut self) -> Self {
        self.plan = self.plan.at_most(NOISE_RATE).lasting(2 * PATIENCE).timeout(PATIENCE);
        self
    }

    fn is_ready(&self, scene: &Scene, origin: SocketAddr, round: usize) -> Result<()> {
        let ready = |tenant: &String| probed(scene, tenant, origin, self.cpu, round);
        self.tenants.iter().try_for_each(ready)
    }

    /// Calls that a limit has ended so far.
    fn ended(&self, scene: &Scene) -> Result<u64> {
        let of_these = |line: &&String| {
            self.tenants.iter().any(|tenant| line.contains(&format!("tenant=\"{tenant}\"")))
                && ["cpu", "memory"].iter().any(|limit| line.contains(&format!("limit=\"{limit}\"")))
        };
        let count = |line: &String| line.rsplit(' ').next().and_then(|n| n.parse::<f64>().ok());
        let lines = scene.metrics_of("beamline_limits_crossed_total")?;
        Ok(lines.iter().filter(of_these).filter_map(count).sum::<f64>() as u64)
    }
}

fn host_of(tenant: &str) -> String {
    if tenant == TENANT { HOST.into() } else { format!("{tenant}.test") }
}

/// How a turn was disturbed.
struct Disturbance {
    /// Calls of each noise that a limit ended.
    ended: Vec<u64>,
    /// The share of the turn that the slow lane ran.
    lane: f64,
}

/// Prints how all turns of a scene were disturbed, and adds it to its figures.
fn show(turns: &[Disturbance], figures: &mut Value) {
    let ended: Vec<_> = turns.iter().map(|turn| &turn.ended).collect();
    let lane: Vec<_> = turns.iter().map(|turn| turn.lane).collect();
    println!(
        "    calls of each noise that were ended in each turn {ended:?}; the slow lane's share of it {lane:.2?}"
    );
    (figures["ended"], figures["lane"]) = (json!(ended), json!(lane));
}

/// The load beside all of this noise: its calls are under way before it begins and when it ends, and are at it meanwhile.
fn disturbed(scene: &Scene, acme: &Plan, noises: &[Noise]) -> Result<(Report, Disturbance)> {
    let loads = noises.iter().map(|noise| load::start(noise.plan.clone())).collect::<Result<Vec<_>>>()?;
    let at_it = |when: &str, within| {
        noises.iter().zip(&loads).try_for_each(|(noise, load)| {
            let some = noise.plan.connections as u64 / 4;
            load.wait_under_way(some, within)
                .with_context(|| format!("the noise of {:?} {when} the turn", noise.tenants.first()))
        })
    };
    at_it("before", PATIENCE)?;
    thread::sleep(SETTLED);
    let ended = || noises.iter().map(|noise| noise.ended(scene)).collect::<Result<Vec<_>>>();
    let pid = scene.node.pid()?;
    let (before, began, used) = (ended()?, Instant::now(), Usage::of(pid));
    let report = load::run(acme)?;
    let (used, took) = (Usage::of(pid).since(&used), began.elapsed());
    at_it("after", Duration::ZERO)?;
    let ended: Vec<_> = ended()?.iter().zip(before).map(|(now, before)| now - before).collect();
    let all: u64 = ended.iter().sum();
    let lanes = used.by_thread.iter().filter(|(name, _)| name.starts_with("slow-lane"));
    let lane = lanes.map(|(_, ns)| *ns as f64 / 1e9).sum::<f64>() / took.as_secs_f64();
    ensure!(
        all >= ENDED || lane >= LANE,
        "{all} calls of the noise were ended during the turn, fewer than {ENDED}, and the slow lane ran {lane:.2} of it, less \
         than {LANE}"
    );
    for load in loads {
        let noise = load.stop()?;
        let of = |status| noise.statuses.get(&status).copied().unwrap_or(0);
        ensure!(of(200) + of(503) == noise.total(), "each call is ended: {noise}");
    }
    Ok((report, Disturbance { ended, lane }))
}

/// `acme`, with a short filter, beside `CALLS` calls of `noisy`, whose filter does `step`.
fn beside(step: &str, what: &str) -> Result<(Vec<Bar>, Value)> {
    let (scene, origin, acme) = quiet()?;
    let noises = [Noise::of(scene.node.address(), NOISY, step)];
    let (mut pairs, mut turns) = (Vec::new(), Vec::new());
    scene.admin.create_tenant(NOISY, &[&host_of(NOISY)], &["127.0.0.0/8"])?;
    for round in 0..PAIRS {
        noises[0].is_ready(&scene, origin.address(), round)?;
        let alone = load::run(&acme)?;
        let (beside, turn) = disturbed(&scene, &acme, &noises)?;
        pairs.push((alone, beside));
        turns.push(turn);
    }
    let (bars, mut figures) = judged(what, BAR_BESIDE, 99.0, &pairs);
    show(&turns, &mut figures);
    Ok((bars, figures))
}

/// A node with one worker, `acme` on it with its filter, and its load.
fn quiet() -> Result<(Scene, QuickOrigin, Plan)> {
    let origin = QuickOrigin::start(128)?;
    let scene = Scene::with(Options { workers: 1, cpu: Some(PROXY_CPU), ..Options::default() })?;
    probed(&scene, TENANT, origin.address(), "50ms", 0)?;
    let request = load::request("GET", "/", HOST, &[("x-probe", "headers")], b"");
    let plan = Plan::new(scene.node.address(), request).connections(16).rate(2000.0);
    Ok((scene, origin, plan.lasting(TURN).timeout(PATIENCE)))
}

/// `acme` beside all of it: loops and bombs of one tenant each, a loop of each of `TENANTS` tenants, and modules that are
/// bombs for their compiler.
fn at_once() -> Result<(Vec<Bar>, Value)> {
    const BOMBS: &str = "bombs";
    const LIMIT: &str = "took more than the node gives it";
    let (scene, origin, acme) = quiet()?;
    let to = scene.node.address();
    let many = (0..TENANTS).map(|n| format!("loops-{n}")).collect();
    let noises = [Noise::of(to, NOISY, "spin"), Noise::of(to, BOMBS, "bomb"), Noise::of_many(to, many)];
    for tenant in noises.iter().flat_map(|noise| &noise.tenants) {
        scene.admin.create_tenant(tenant, &[&host_of(tenant)], &["127.0.0.0/8"])?;
    }
    let bomb = guests::bomb(&guests::module("probe")?)?;
    let bomber = scene.node.admin()?;
    let (mut pairs, mut turns, mut pushed) = (Vec::new(), Vec::new(), 0_u32);
    for round in 0..AT_ONCE_PAIRS {
        noises.iter().try_for_each(|noise| noise.is_ready(&scene, origin.address(), round))?;
        let alone = load::run(&acme)?;
        let over = AtomicBool::new(false);
        let (beside, bombs) = thread::scope(|scope| {
            let bombing = scope.spawn(|| {
                let mut bombs = 0;
                while !over.load(Ordering::Relaxed) {
                    let module = variant(&bomb, &format!("{round}-{bombs}"));
                    match bomber.push(NOISY, &module) {
                        Err(error) if error.kind() == "module-rejected" && error.detail().contains(LIMIT) => {
                            bombs += 1
                        }
                        other => bail!("a compile bomb is refused for what it is: {other:?}"),
                    }
                }
                Ok(bombs)
            });
            let beside = disturbed(&scene, &acme, &noises);
            over.store(true, Ordering::Relaxed);
            let bombs = bombing.join().map_err(|_| anyhow!("the bomber panicked"))?;
            Ok::<_, anyhow::Error>((beside?, bombs?))
        })?;
        pairs.push((alone, beside.0));
        turns.push(beside.1);
        pushed += bombs;
    }
    let what =
        format!("{CALLS} spinners, {CALLS} bombs, {TENANTS} tenants in loops, compile bombs at once, p99");
    let (bars, mut figures) = judged(&what, BAR_BESIDE, 99.0, &pairs);
    println!("    {pushed} compile bombs, one after the other");
    figures["compile_bombs"] = json!(pushed);
    show(&turns, &mut figures);
    Ok((bars, figures))
}

/// Half of the full load, alone and in a run with `CHANGES` changes: applies, rollbacks, replaced modules.
fn changes() -> Result<(Vec<Bar>, Value)> {
    let origin = QuickOrigin::start(128)?;
    let scene = Scene::with(Options { workers: 1, cpu: Some(PROXY_CPU), ..Options::default() })?;
    let probe = guests::module("probe")?;
    let digests = ["a", "b", "c"]
        .iter()
        .map(|mark| Ok(scene.admin.push(TENANT, &variant(&probe, mark))?.digest))
        .collect::<Result<Vec<_>>>()?;
    let manifest = |n: usize| {
        let effect = json!({ "do": "respond", "headers": { "x-effect": n.to_string() } });
        json!({
            "version": 1,
            "hosts": [HOST],
            "default_upstream": "origin",
            "upstreams": { "origin": { "endpoints": [origin.address().to_string()] } },
            "filters": [{ "name": "probe", "module": digests[n % digests.len()], "config": { "paths": { "/effect": effect } } }],
        })
    };
    scene.admin.apply(TENANT, &manifest(0))?;
    let plan = Plan::new(scene.node.address(), load::get("/", HOST)).connections(16).timeout(PATIENCE);
    let full = load::run(&plan.clone().lasting(Duration::from_secs(1)))?;
    ensure!(full.failed() == 0, "every request at full load is answered well: {full}");
    let half = plan.rate(full.rate() / 2.0);

    let mut pairs = Vec::new();
    for pair in 0..CHANGE_PAIRS {
        let alone = load::run(&half.clone().lasting(CHANGE_TURN))?;
        let load = load::start(half.clone().lasting(4 * PATIENCE))?;
        for n in 1..=CHANGES {
            if n % 5 == 0 {
                scene.admin.rollback(TENANT, None)?;
            } else {
                let applied = scene.admin.apply(TENANT, &manifest(pair * CHANGES + n))?;
                ensure!(applied.changed, "each manifest differs from the one before it");
            }
        }
        pairs.push((alone, load.stop()?));
    }
    Ok(judged("500 changes in a run at half load, p99.9", BAR_CHANGES, 99.9, &pairs))
}

//! The scenes of the core suite: what one tenant's loops, bombs and changes do to another's latency.
//!
//! The node has one worker, on the proxy's processor. Each pair of turns takes the same load at the same rate, alone
//! and beside what disturbs it; what counts is the median of the differences. Latency counts from when a request was due.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use beamline_tests::{
    admin::{AdminError, manifest},
    beamline::Options,
    guests::{self, variant},
    histogram::Histogram,
    load::{self, Plan, QuickOrigin, Report},
    scene::{HOST, PATIENCE, Scene, TENANT},
};
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::{
    proxies::PROXY_CPU,
    report::{Bar, Bound, median},
};

/// How much a tenant's p99 may rise beside another's loops or bombs, in ms.
const BAR_BESIDE: f64 = 3.0;
/// How much p99.9 may rise in a run with changes, in ms.
const BAR_CHANGES: f64 = 5.0;

const NOISY: &str = "noisy.test";
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
        Which::Spinners => {
            beside("spin", &["filter-timeout"], "64 spinners of another tenant on the same worker, p99")
        }
        // Clearing 16 MiB may take more than 50 ms of CPU time: a bomb meets the one limit or the other.
        Which::Bombs => beside(
            "bomb",
            &["filter-memory", "filter-timeout"],
            "64 memory bombs of another tenant on the same worker, p99",
        ),
        Which::AtOnce => at_once(),
        Which::Changes => changes(),
    });
    let (bars, figures): (Vec<_>, Vec<_>) = scenes.collect::<Result<Vec<_>>>()?.into_iter().unzip();
    Ok((bars, Value::Array(figures)))
}

fn millis(report: &Report, percent: f64) -> f64 {
    report.latency.percentile(percent).as_secs_f64() * 1e3
}

/// One scene's bar and figures from pairs of turns, alone and disturbed.
fn judged(what: &str, at_most: f64, percent: f64, pairs: &[(Report, Report)]) -> (Bar, Value) {
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
    let bar = Bar {
        what: what.into(),
        found,
        bound: Bound::AtMost(at_most),
        unit: "ms more",
        void: (failed > 0).then(|| format!("{failed} requests failed")),
    };
    (
        bar,
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

/// Gives a tenant that is there the probe as its filter, in front of the origin.
fn probed(scene: &Scene, tenant: &str, host: &str, origin: SocketAddr) -> Result<()> {
    let module = scene.admin.push(tenant, &guests::module("probe")?)?;
    let mut wanted = manifest(host, origin);
    wanted["filters"] = json!([{ "name": "probe", "module": module.digest }]);
    scene.admin.apply(tenant, &wanted)?;
    Ok(())
}

/// `acme`, with a short filter, beside `CALLS` calls of `noisy`, whose filter does `step` and is ended as `expected`.
fn beside(step: &str, expected: &[&str], what: &str) -> Result<(Bar, Value)> {
    let origin = QuickOrigin::start(128)?;
    let scene = Scene::with(Options { workers: 1, cpu: Some(PROXY_CPU), ..Options::default() })?;
    probed(&scene, TENANT, HOST, origin.address())?;
    scene.admin.create_tenant("noisy", &[NOISY], &["127.0.0.0/8"])?;
    probed(&scene, "noisy", NOISY, origin.address())?;

    let to = scene.node.address();
    let acme = load::request("GET", "/", HOST, &[("x-probe", "headers")], b"");
    let acme = Plan::new(to, acme).connections(16).rate(2000.0).lasting(TURN).timeout(PATIENCE);
    let noise = Plan::noise(to, NOISY, step).connections(CALLS).at_most(NOISE_RATE);
    let noise = noise.lasting(PATIENCE).timeout(PATIENCE);
    let (mut pairs, mut calls) = (Vec::new(), Vec::new());
    for _ in 0..PAIRS {
        let alone = load::run(&acme)?;
        let noise = load::start(noise.clone())?;
        noise.wait_for_more(1, PATIENCE)?;
        let disturbed = load::run(&acme)?;
        let noise = noise.stop()?;
        let of = |status| noise.statuses.get(&status).copied().unwrap_or(0);
        ensure!(of(200) + of(503) == noise.total(), "every call of the noisy tenant is ended: {noise}");
        calls.push(of(503));
        pairs.push((alone, disturbed));
    }
    // A call that was refused is answered 503, too, and disturbs nobody: the breaker leaves a module out for a moment now and then.
    let of_noisy = |r: &&Value| {
        r["kind"] == "access" && r["tenant.id"] == "noisy" && r["http.response.status_code"] == 503
    };
    let total: u64 = calls.iter().sum();
    let log = scene.node.wait_log(PATIENCE, |log| log.iter().filter(of_noisy).count() as u64 >= total)?;
    let as_expected = |r: &&Value| r["error.type"].as_str().is_some_and(|kind| expected.contains(&kind));
    let (ended, expected) =
        (log.iter().filter(of_noisy).filter(as_expected).count() as u64, expected.join(" or "));
    let enough = (PAIRS * 5) as u64;
    ensure!(
        ended >= enough,
        "of {total} calls of the noisy tenant {ended} ended as {expected}, fewer than {enough}"
    );
    let (bar, mut figures) = judged(what, BAR_BESIDE, 99.0, &pairs);
    println!("    {total} calls of the noisy tenant failed, {ended} of them as {expected}");
    figures["noisy_calls"] = json!({ "failed": total, "as_expected": ended });
    Ok((bar, figures))
}

/// `acme` beside all of it: loops and bombs of one tenant each, a loop of each of `TENANTS` tenants, and modules that are
/// bombs for their compiler.
fn at_once() -> Result<(Bar, Value)> {
    const LOOPS: &str = "spin";
    const BOMBS: &str = "bombs.test";
    let origin = QuickOrigin::start(128)?;
    let scene = Scene::with(Options { workers: 1, cpu: Some(PROXY_CPU), ..Options::default() })?;
    let probe = guests::module("probe")?;
    probed(&scene, TENANT, HOST, origin.address())?;
    let mut hosts: Vec<String> = (0..TENANTS).map(|n| format!("loops-{n}.test")).collect();
    hosts.extend([NOISY.to_owned(), BOMBS.to_owned()]);
    for host in &hosts {
        let tenant = host.trim_end_matches(".test");
        scene.admin.create_tenant(tenant, &[host], &["127.0.0.0/8"])?;
        probed(&scene, tenant, host, origin.address())?;
    }

    let to = scene.node.address();
    let acme = load::request("GET", "/", HOST, &[("x-probe", "headers")], b"");
    let acme = Plan::new(to, acme).connections(16).rate(2000.0).lasting(TURN).timeout(PATIENCE);
    let noise = |host: &str, step: &str| {
        Plan::noise(to, host, step).at_most(NOISE_RATE).lasting(2 * PATIENCE).timeout(PATIENCE)
    };
    let mut of_all = Plan { requests: Vec::new(), ..noise(NOISY, LOOPS) };
    let each: Vec<_> = hosts[..TENANTS].iter().map(|host| noise(host, LOOPS).requests).collect();
    for n in 0..each[0].len() {
        of_all.requests.extend(each.iter().map(|requests| requests[n].clone()));
    }
    let noises = [
        noise(NOISY, LOOPS).connections(CALLS),
        noise(BOMBS, "bomb").connections(CALLS),
        of_all.connections(TENANTS),
    ];
    let (bomb, done) = (guests::bomb(&probe)?, AtomicBool::new(false));
    let bomber = scene.node.admin()?;
    let (pairs, pushed) = thread::scope(|scope| {
        let disturbed = || -> Result<Vec<(Report, Report)>> {
            let mut pairs = Vec::new();
            for _ in 0..PAIRS {
                let alone = load::run(&acme)?;
                let noises = noises.iter().cloned().map(load::start).collect::<Result<Vec<_>>>()?;
                noises.iter().try_for_each(|noise| noise.wait_for_more(1, PATIENCE))?;
                let beside = load::run(&acme)?;
                for noise in noises {
                    let noise = noise.stop()?;
                    let of = |status| noise.statuses.get(&status).copied().unwrap_or(0);
                    ensure!(of(200) + of(503) == noise.total() && of(503) > 0, "each call is ended: {noise}");
                }
                pairs.push((alone, beside));
            }
            Ok(pairs)
        };
        let bombing = scope.spawn(|| {
            let mut pushed = 0_u32;
            while !done.load(Ordering::Relaxed) {
                let refused = bomber.push("noisy", &variant(&bomb, &pushed.to_string()));
                ensure!(
                    matches!(refused, Err(AdminError::Refused { status: 422 | 503, .. })),
                    "a compile bomb is refused: {refused:?}"
                );
                pushed += 1;
            }
            Ok(pushed)
        });
        let pairs = disturbed();
        done.store(true, Ordering::Relaxed);
        let pushed = bombing.join().map_err(|_| anyhow::anyhow!("the bomber panicked"))?;
        Ok::<_, anyhow::Error>((pairs?, pushed?))
    })?;
    let what =
        format!("{CALLS} spinners, {CALLS} bombs, {TENANTS} tenants in loops, compile bombs at once, p99");
    let (bar, mut figures) = judged(&what, BAR_BESIDE, 99.0, &pairs);
    println!("    {pushed} compile bombs, one after the other");
    figures["compile_bombs"] = json!(pushed);
    Ok((bar, figures))
}

/// Half of the full load, alone and in a run with `CHANGES` changes: applies, rollbacks, replaced modules.
fn changes() -> Result<(Bar, Value)> {
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

//! The density suite: what many tenants on one node cost, most of them idle.
//!
//! A node gets its tenants over the admin API, each with a filter, whose modules they share in turn; then it is started anew
//! on what it has stored. What counts: how long that takes, what an idle tenant takes of memory, what the first request to a
//! tenant waits for, and what a request costs where all tenants take turns, beside a node with one.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use beamline_tests::{
    admin::{Admin, manifest},
    beamline::{Beamline, Options},
    guests,
    load::{Plan, Stage},
    ports::Port,
    process,
};
use serde_json::json;

use super::core::{ANSWER, Case, figures, print, turns, twelve_headers};
use crate::{
    Settings, cpu,
    proxies::{Node, PROXY_CPU, Proxy, host},
    report::{self, Bar, Bound},
};

/// From start to ready with what is stored: at most so many seconds.
const BAR_START: f64 = 5.0;
/// What an idle tenant takes of memory, its part of the modules included: at most so many KiB.
const BAR_TENANT: f64 = 64.0;
/// The first request to a tenant: at most so many ms, the slowest of [`COLD`].
const BAR_COLD: f64 = 10.0;
/// A request where all tenants take turns: at most so many µs of CPU more than on a node with one tenant.
const BAR_REQUEST: f64 = 10.0;
/// Tenants that get their first request one after the other.
const COLD: usize = 1000;
/// Connections that bring the tenants to the node.
const LOADERS: usize = 8;

/// Runs the suite; gives how many bars were missed.
pub(crate) fn run(settings: &Settings) -> Result<usize> {
    process::pin_to(PROXY_CPU + 1)?;
    let filter = settings.filter_module()?;
    let port = Port::reserve()?;
    let origin = port.address();
    let mut stage = Stage::with_origin(&port, ANSWER)?;
    let tenants = settings.tenants;

    let mut crowded = node()?;
    let empty = cpu::resident_mib(crowded.pid()?);
    let began = Instant::now();
    fill(&crowded, origin, tenants, settings.modules, &filter)?;
    let filled = began.elapsed();
    let (start, idle) = start_anew(&mut crowded)?;
    let kib = (idle - empty) * 1024.0 / tenants as f64;
    let mut cold = first_requests(&crowded, &mut stage, tenants)?;
    cold.sort_by(f64::total_cmp);
    let percentile = |p: usize| cold[(cold.len() * p / 100).min(cold.len() - 1)];
    println!(
        "{tenants} tenants, {} modules: brought in {:.0} s, ready {start:.2} s after a start, {idle:.0} MiB, {kib:.1} KiB a tenant; first requests {:.2} ms, p99 {:.2}, slowest {:.2}",
        settings.modules,
        filled.as_secs_f64(),
        percentile(50),
        percentile(99),
        percentile(100),
    );

    let proxies: Vec<Box<dyn Proxy>> =
        vec![Box::new(Node::start(origin, 1, Some(&filter), None)?), Box::new(Node::of(crowded))];
    let mut cases = vec![
        Case::new("1 tenant", 0, 0, vec![twelve_headers(0)]),
        Case::new(&format!("{tenants} tenants in turn"), 1, 0, (0..tenants).map(twelve_headers).collect()),
    ];
    let memory = turns(&mut cases, &proxies, &mut stage, settings)?;
    print(&cases, &memory, settings);

    let failed = cases.iter().map(Case::failed).sum::<u64>();
    let bar = |what: &str, found, most, unit| Bar {
        what: what.into(),
        found,
        bound: Bound::AtMost(most),
        unit,
        void: None,
    };
    let bars = vec![
        bar("from start to ready", start, BAR_START, "s"),
        bar("memory of an idle tenant, modules included", kib, BAR_TENANT, "KiB"),
        bar("the slowest first request to a tenant", percentile(100), BAR_COLD, "ms"),
        Bar {
            void: (failed > 0).then(|| format!("{failed} requests failed")),
            ..bar(
                "CPU per request, all tenants in turn, beside one tenant",
                cases[1].paired(&cases[0], |a, b| a - b),
                BAR_REQUEST,
                "µs more",
            )
        },
    ];
    let missed = report::print_bars(&bars);
    let mut all = figures(&cases, &memory, settings);
    all["density"] = json!({
        "tenants": tenants,
        "modules": settings.modules,
        "brought_in_s": filled.as_secs_f64(),
        "ready_s": start,
        "idle_mib": idle,
        "first_request_ms": { "p50": percentile(50), "p99": percentile(99), "slowest": percentile(100) },
    });
    report::write_json(&settings.out, "density", &bars, all)?;
    Ok(missed)
}

fn node() -> Result<Beamline> {
    Beamline::start(Options {
        workers: 1,
        cpu: Some(PROXY_CPU),
        ready_within: Duration::from_secs(300),
        ..Options::default()
    })
}

/// Brings the tenants to the node, each with its manifest and one of `modules` modules.
fn fill(node: &Beamline, origin: SocketAddr, tenants: usize, modules: usize, filter: &[u8]) -> Result<()> {
    let (next, range) = (AtomicUsize::new(0), format!("{}/32:{}", origin.ip(), origin.port()));
    let bring = |admin: &Admin, n: usize| -> Result<()> {
        let (tenant, host) = (format!("t{n}"), host(n));
        admin.create_tenant(&tenant, &[&host], &[&range])?;
        let module = admin.push(&tenant, &guests::variant(filter, &format!("bench{}", n % modules)))?;
        let mut wanted = manifest(&host, origin);
        wanted["filters"] = json!([{ "name": "bench", "module": module.digest }]);
        admin.apply(&tenant, &wanted)?;
        Ok(())
    };
    thread::scope(|scope| {
        let loader = || -> Result<()> {
            let admin = node.admin()?;
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= tenants {
                    return Ok(());
                }
                bring(&admin, n)?;
                if (n + 1) % (tenants / 10).max(1) == 0 {
                    println!("  {} of {tenants} tenants", n + 1);
                }
            }
        };
        let loaders: Vec<_> = (0..LOADERS).map(|_| scope.spawn(loader)).collect();
        loaders.into_iter().try_for_each(|loader| match loader.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

/// Ends the node and starts it on what it has stored: seconds until it is ready, and the memory that it has then, in MiB.
fn start_anew(node: &mut Beamline) -> Result<(f64, f64)> {
    node.kill_nine()?;
    let began = Instant::now();
    node.launch()?;
    let took = began.elapsed().as_secs_f64();
    // Its threads that were busy with the start have come to rest.
    thread::sleep(Duration::from_secs(3));
    Ok((took, cpu::resident_mib(node.pid()?)))
}

/// One request to each of some tenants, which had none before: how long each took, in ms.
fn first_requests(node: &Beamline, stage: &mut Stage, tenants: usize) -> Result<Vec<f64>> {
    let asked = COLD.min(tenants);
    (0..asked)
        .map(|n| {
            let tenant = n * (tenants / asked);
            let plan = Plan::new(node.address(), twelve_headers(tenant)).connections(1).limit(1);
            let report = stage.run(&plan.lasting(Duration::from_secs(10)))?;
            ensure!(report.good() == 1, "{}: {report}", host(tenant));
            Ok(report.latency.percentile(100.0).as_secs_f64() * 1e3)
        })
        .collect()
}

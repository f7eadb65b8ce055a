//! The core suite: what a request costs, beside nginx.
//!
//! CPU per request of the proxy's processes, not requests per second: with two processors the load generator, not the
//! proxy, limits those. The proxy has one processor, the load generator and the origin share a thread on another. The
//! systems take short turns, so that a machine that drifts hits them alike; what counts is the median of the ratios (or
//! differences) within each round. nginx runs twice under two names: how far that ratio is from 1 is the noise.

use std::time::Duration;

use anyhow::{Result, ensure};
use beamline_tests::{
    load::{self, Plan, Report, Stage},
    ports::Port,
    process,
};
use serde_json::{Value, json};

use super::scenes;
use crate::{
    Scenes, Settings,
    cpu::{self, Usage},
    proxies::{Nginx, Node, PROXY_CPU, Proxy, host},
    report::{self, Bar, Bound, Table, median},
};

/// Rounds where nothing else is asked for.
const ROUNDS: usize = 15;
/// Bytes of each answer's body.
pub(super) const ANSWER: usize = 128;
/// What runs before each measurement, for caches and connection pools.
const WARM_UP: Duration = Duration::from_millis(150);

/// Without a filter: at most so many times what nginx costs.
const BAR_NO_FILTER: f64 = 1.25;
/// A filter that reads 12 headers in a fresh sandbox: at most so many µs more. The filter suite has bars for each tier.
const BAR_FILTER: f64 = 14.0;

/// One line of the table: a proxy and what is asked of it.
pub(super) struct Case {
    name: String,
    pub(super) proxy: usize,
    /// The case that it is held against: with nginx, the same requests there.
    base: usize,
    requests: Vec<Vec<u8>>,
    rounds: Vec<Round>,
    usage: Usage,
}

/// One measurement.
struct Round {
    /// CPU per request, in µs.
    cpu_us: f64,
    report: Report,
}

impl Case {
    pub(super) fn new(name: &str, proxy: usize, base: usize, requests: Vec<Vec<u8>>) -> Self {
        Self { name: name.into(), proxy, base, requests, rounds: Vec::new(), usage: Usage::default() }
    }

    /// The same requests, held against the same case, not measured yet.
    fn again(&self) -> Self {
        Self {
            name: self.name.clone(),
            proxy: self.proxy,
            base: self.base,
            requests: self.requests.clone(),
            rounds: Vec::new(),
            usage: Usage::default(),
        }
    }

    fn plan(&self, proxy: &dyn Proxy, settings: &Settings) -> Plan {
        let mut plan = Plan::new(proxy.address(), Vec::new()).connections(settings.connections);
        plan.requests.clone_from(&self.requests);
        plan
    }

    fn cpu_us(&self) -> f64 {
        median(self.rounds.iter().map(|r| r.cpu_us).collect())
    }

    /// Against another case in the same round.
    pub(super) fn paired(&self, base: &Self, how: impl Fn(f64, f64) -> f64) -> f64 {
        median(self.rounds.iter().zip(&base.rounds).map(|(a, b)| how(a.cpu_us, b.cpu_us)).collect())
    }

    /// Of requests a second, against another case in the same round.
    pub(super) fn paired_rate(&self, base: &Self, how: impl Fn(f64, f64) -> f64) -> f64 {
        median(
            self.rounds
                .iter()
                .zip(&base.rounds)
                .map(|(a, b)| how(a.report.rate(), b.report.rate()))
                .collect(),
        )
    }

    pub(super) fn failed(&self) -> u64 {
        self.rounds.iter().map(|r| r.report.failed()).sum()
    }

    fn latency(&self, percent: f64) -> f64 {
        median(self.rounds.iter().map(|r| r.report.latency.percentile(percent).as_secs_f64() * 1e6).collect())
    }

    fn rate(&self) -> f64 {
        median(self.rounds.iter().map(|r| r.report.rate()).collect())
    }
}

/// Runs the suite; gives how many bars were missed.
pub(crate) fn run(settings: &Settings) -> Result<usize> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    ensure!(
        processors >= 2,
        "expected two processors, one for the proxy, one for the load; found {processors}"
    );
    process::pin_to(PROXY_CPU + 1)?;
    let (mut bars, mut figures) = match settings.scenes() {
        Scenes::Only => (Vec::new(), json!({})),
        Scenes::None | Scenes::All => costs(settings)?,
    };
    if settings.scenes() != Scenes::None {
        println!("\nscenes");
        let (scene_bars, scenes) = scenes::run(&settings.scene)?;
        bars.extend(scene_bars);
        figures["scenes"] = scenes;
    }
    let missed = report::print_bars(&bars);
    // A part of the suite leaves the figures of the whole in place.
    let name = match settings.scenes() {
        Scenes::All => "core",
        Scenes::None => "core-costs",
        Scenes::Only if !settings.scene.is_empty() => "core-part",
        Scenes::Only => "core-scenes",
    };
    report::write_json(&settings.out, name, &bars, figures)?;
    Ok(missed)
}

/// Measures and prints what a request costs; gives the bars and figures of that.
fn costs(settings: &Settings) -> Result<(Vec<Bar>, Value)> {
    let filter = settings.filter_module()?;
    let port = Port::reserve()?;
    let origin = port.address();
    let mut stage = Stage::with_origin(&port, ANSWER)?;

    println!(
        "starting nginx twice, BeamLine for 1 tenant and for {}, each without a filter and with a module a tenant",
        settings.modules
    );
    let mut proxies: Vec<Box<dyn Proxy>> = vec![
        Box::new(Nginx::start(origin)?),
        Box::new(Nginx::start(origin)?),
        Box::new(Node::start(origin, 1, None, None)?),
        Box::new(Node::start(origin, 1, Some(&filter), None)?),
        Box::new(Node::start(origin, settings.modules, Some(&filter), None)?),
        Box::new(Node::start(origin, settings.modules, None, None)?),
    ];
    let mut cases = cases(settings.modules);
    for build in &settings.against {
        let nodes = proxies.len();
        for (tenants, filter) in
            [(1, None), (1, Some(&*filter)), (settings.modules, Some(&*filter)), (settings.modules, None)]
        {
            proxies.push(Box::new(Node::start(origin, tenants, filter, Some(build))?));
        }
        let ours = cases[PLAIN..=FILTER_MANY].iter().filter(|case| case.proxy >= FIRST_NODE);
        let theirs: Vec<_> = ours
            .map(|case| Case {
                name: format!("{}: {}", build.display(), case.name),
                proxy: case.proxy - FIRST_NODE + nodes,
                ..case.again()
            })
            .collect();
        cases.extend(theirs);
    }
    let memory = turns(&mut cases, &proxies, &mut stage, settings)?;
    print(&cases, &memory, settings);
    let mut figures = figures(&cases, &memory, settings);
    figures["noise"] = json!(cases[NGINX_AGAIN].paired(&cases[NGINX], |a, b| a / b));
    Ok((bars(&cases, settings.modules), figures))
}

/// Of the proxies, the first that is BeamLine.
const FIRST_NODE: usize = 2;
// The cases by their place.
const NGINX: usize = 0;
const NGINX_AGAIN: usize = 1;
const PLAIN: usize = 2;
const NGINX_12: usize = 3;
const PLAIN_12: usize = 4;
const FILTER_ONE: usize = 5;
const PLAIN_MANY: usize = 6;
const FILTER_MANY: usize = 7;

/// A request to the n-th tenant with the 12 headers that the filter reads.
pub(crate) fn twelve_headers(n: usize) -> Vec<u8> {
    let twelve: Vec<_> = (1..=12).map(|i| (format!("x-h{i}"), format!("{i:0>64}"))).collect();
    let twelve: Vec<_> = twelve.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    load::request("GET", "/", &host(n), &twelve, b"")
}

fn cases(modules: usize) -> Vec<Case> {
    let small = vec![load::get("/", &host(0))];
    let case = Case::new;
    vec![
        case("nginx", 0, NGINX, small.clone()),
        case("nginx again (noise)", 1, NGINX, small.clone()),
        case("beamline, no filter", 2, NGINX, small),
        case("nginx, 12 headers", 0, NGINX_12, vec![twelve_headers(0)]),
        case("beamline, 12 headers, no filter", 2, NGINX_12, vec![twelve_headers(0)]),
        case("beamline, 12-header filter, 1 module", 3, NGINX_12, vec![twelve_headers(0)]),
        // As many tenants without filters: each has its own connections to the origin, which cost what they cost.
        case(
            &format!("beamline, 12 headers, no filter, {modules} tenants"),
            5,
            NGINX_12,
            (0..modules).map(twelve_headers).collect(),
        ),
        case(
            &format!("beamline, 12-header filter, {modules} modules"),
            4,
            NGINX_12,
            (0..modules).map(twelve_headers).collect(),
        ),
    ]
}

/// Gives each case its turn in each round, the other proxies frozen; then the memory that each proxy takes, in MiB.
pub(super) fn turns(
    cases: &mut [Case],
    proxies: &[Box<dyn Proxy>],
    stage: &mut Stage,
    settings: &Settings,
) -> Result<Vec<f64>> {
    proxies.iter().try_for_each(|p| p.freeze(true))?;
    for case in &*cases {
        let proxy = &proxies[case.proxy];
        proxy.freeze(false)?;
        touch_all(case, proxy.as_ref(), stage, settings)?;
        proxy.freeze(true)?;
    }
    for round in 1..=settings.rounds(ROUNDS) {
        for case in &mut *cases {
            let proxy = &proxies[case.proxy];
            proxy.freeze(false)?;
            measure(case, proxy.as_ref(), stage, settings)?;
            proxy.freeze(true)?;
        }
        println!("round {round} of {}", settings.rounds(ROUNDS));
    }
    let memory = proxies.iter().map(|p| p.pid().map(cpu::resident_mib)).collect::<Result<_>>()?;
    proxies.iter().try_for_each(|p| p.freeze(false))?;
    Ok(memory)
}

/// Sends each request a few times: no round is the first that a module sees.
fn touch_all(case: &Case, proxy: &dyn Proxy, stage: &mut Stage, settings: &Settings) -> Result<()> {
    let plan =
        case.plan(proxy, settings).lasting(Duration::from_secs(30)).limit(3 * case.requests.len() as u64);
    let report = stage.run(&plan)?;
    ensure!(report.failed() == 0, "{}: not every request succeeded: {report}", case.name);
    Ok(())
}

fn measure(case: &mut Case, proxy: &dyn Proxy, stage: &mut Stage, settings: &Settings) -> Result<()> {
    let mut plan = case.plan(proxy, settings).lasting(WARM_UP);
    stage.run(&plan)?;
    plan.duration = Duration::from_millis(settings.round_ms);
    let before = Usage::of(proxy.pid()?);
    let report = stage.run(&plan)?;
    let used = Usage::of(proxy.pid()?).since(&before);
    ensure!(report.good() > 0, "{}: no request succeeded: {report}", case.name);
    case.usage.add(&used);
    case.rounds.push(Round { cpu_us: used.total as f64 / 1000.0 / report.good() as f64, report });
    Ok(())
}

pub(super) fn print(cases: &[Case], memory: &[f64], settings: &Settings) {
    println!(
        "\nCPU per request of the proxy's processes: medians of {} rounds of {} ms, {} kept connections, GET, {ANSWER}-byte answers, access log on and buffered\n",
        settings.rounds(ROUNDS),
        settings.round_ms,
        settings.connections
    );
    let mut table = Table::new(&[
        "",
        "µs/request",
        "× base",
        "user µs",
        "kernel µs",
        "p50 µs",
        "p99 µs",
        "requests/s",
        "MiB",
        "failed",
    ]);
    for case in cases {
        let kernel = case.usage.kernel_share();
        table.row(vec![
            case.name.clone(),
            format!("{:.2}", case.cpu_us()),
            format!("{:.3}", case.paired(&cases[case.base], |a, b| a / b)),
            format!("{:.2}", case.cpu_us() * (1.0 - kernel)),
            format!("{:.2}", case.cpu_us() * kernel),
            format!("{:.0}", case.latency(50.0)),
            format!("{:.0}", case.latency(99.0)),
            format!("{:.0}", case.rate()),
            format!("{:.0}", memory[case.proxy]),
            case.failed().to_string(),
        ]);
    }
    table.print();
    println!("\nwhere the time goes, by thread");
    for case in cases {
        let parts: Vec<_> = case
            .usage
            .threads_by_share()
            .into_iter()
            .filter(|(_, share)| *share >= 0.001)
            .map(|(name, share)| format!("{name} {:.1}% ({:.2} µs)", share * 100.0, share * case.cpu_us()))
            .collect();
        println!("  {}: {}", case.name, parts.join(", "));
    }
}

fn bars(cases: &[Case], modules: usize) -> Vec<Bar> {
    let void = |of: &[usize]| {
        let failed: u64 = of.iter().map(|i| cases[*i].failed()).sum();
        (failed > 0).then(|| format!("{failed} requests failed"))
    };
    let more = |i: usize, base: usize| cases[i].paired(&cases[base], |a, b| a - b);
    vec![
        Bar {
            what: "no filter, CPU per request".into(),
            found: cases[PLAIN].paired(&cases[NGINX], |a, b| a / b),
            bound: Bound::AtMost(BAR_NO_FILTER),
            unit: "× nginx",
            void: void(&[NGINX, PLAIN]),
        },
        Bar {
            what: "a filter that reads 12 headers in a fresh instance, 1 module".into(),
            found: more(FILTER_ONE, PLAIN_12),
            bound: Bound::AtMost(BAR_FILTER),
            unit: "µs more",
            void: void(&[PLAIN_12, FILTER_ONE]),
        },
        Bar {
            what: format!("the same with {modules} modules in turn, against as many tenants without"),
            found: more(FILTER_MANY, PLAIN_MANY),
            bound: Bound::AtMost(BAR_FILTER),
            unit: "µs more",
            void: void(&[PLAIN_MANY, FILTER_MANY]),
        },
    ]
}

pub(super) fn figures(cases: &[Case], memory: &[f64], settings: &Settings) -> Value {
    let systems: Vec<_> = cases
        .iter()
        .map(|case| {
            json!({
                "name": case.name,
                "cpu_us": case.cpu_us(),
                "cpu_us_rounds": case.rounds.iter().map(|r| r.cpu_us).collect::<Vec<_>>(),
                "times_base": case.paired(&cases[case.base], |a, b| a / b),
                "kernel_share": case.usage.kernel_share(),
                "threads": case.usage.threads_by_share(),
                "p50_us": case.latency(50.0),
                "p99_us": case.latency(99.0),
                "requests_per_second": case.rate(),
                "resident_mib": memory[case.proxy],
                "failed": case.failed(),
            })
        })
        .collect();
    json!({
        "rounds": settings.rounds(ROUNDS),
        "round_ms": settings.round_ms,
        "connections": settings.connections,
        "modules": settings.modules,
        "systems": systems,
    })
}

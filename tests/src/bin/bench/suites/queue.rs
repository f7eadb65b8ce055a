//! The queue suite: what a durable queue takes in and gives out, held against the disk and the origin below it.
//!
//! The node has one processor, the load another. What it is held against takes its turn in the same round: SQLite itself on
//! the same disk, with the same groups; the same origin without a queue; the same tenant while nothing is queued.

use std::{
    fmt,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use beamline_tests::{
    admin::{Admin, manifest},
    beamline::{Beamline, Options},
    load::{self, Plan, QuickOrigin, Report},
    ports::Port,
    process,
    scene::{HOST, PATIENCE, TENANT},
    wait::wait,
};
use clap::ValueEnum;
use rusqlite::{Connection, params};
use serde_json::{Value, json};

use crate::{
    Settings,
    cpu::Usage,
    proxies::PROXY_CPU,
    report::{self, Bar, Bound, median},
};

/// Of what SQLite alone takes, what the queue must take.
const BAR_ACCEPTED: f64 = 0.5;
/// Of the live rate to the origin, what ordered deliveries must reach.
const BAR_DELIVERED: f64 = 0.7;
/// How many times its p99 without a queue another tenant's may be beside one.
const BAR_NEIGHBOUR: f64 = 1.3;

/// Of the rate with every key well, what the others must reach where one in ten fails.
const BAR_FAILING: f64 = 0.9;
/// With a million records: from start to ready in seconds, memory in MiB, and of the rates beside a small backlog.
const BAR_START: f64 = 5.0;
const BAR_MEMORY: f64 = 200.0;
const BAR_RATES: f64 = 0.8;

const MILLION: u64 = 1_000_000;
/// How many of them are delivered.
const MILLION_DRAINED: u64 = 20_000;
/// One key in so many fails.
const FAILING: usize = 10;
const FILLED_WITHIN: Duration = Duration::from_secs(300);
/// Where nothing else is asked for.
const ROUNDS: usize = 5;
const TURN: Duration = Duration::from_millis(1500);
const KEYS: usize = 1000;
/// So many are drained beside a neighbour, at least: more than are delivered in a turn.
const TO_DRAIN: u64 = 60_000;
/// Records a second that fill a queue beside a neighbour.
const FILL_RATE: f64 = 2000.0;
const NEIGHBOUR: &str = "neighbour.test";
/// As the node commits: so many records, or so many bytes.
const GROUP: (usize, usize) = (64, 1 << 20);

/// What the suite measures, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// `202`s a second.
    Accepted,
    /// Ordered deliveries a second.
    Delivered,
    /// Another tenant's latency.
    Neighbour,
    /// A backlog of a million.
    Million,
}

/// Runs the suite; gives how many bars were missed.
pub(crate) fn run(settings: &Settings) -> Result<usize> {
    process::pin_to(PROXY_CPU + 1)?;
    let (mut bars, mut figures) = (Vec::new(), json!({}));
    let rounds = settings.rounds(ROUNDS);
    let parts = if settings.part.is_empty() { Part::value_variants() } else { &settings.part };
    for part in parts {
        let (more, figure) = match part {
            Part::Accepted => accepted(rounds)?,
            Part::Delivered => delivered(rounds)?,
            Part::Neighbour => neighbour(rounds)?,
            Part::Million => million()?,
        };
        bars.extend(more);
        figures[format!("{part:?}").to_lowercase()] = figure;
    }
    let missed = report::print_bars(&bars);
    // A part of the suite leaves the figures of the whole in place.
    let name = if settings.part.is_empty() { "queue" } else { "queue-part" };
    report::write_json(&settings.out, name, &bars, figures)?;
    Ok(missed)
}

/// A node with room for what a suite puts into it, and a tenant whose requests to `origin` are queued on failure.
fn node(origin: std::net::SocketAddr) -> Result<(Beamline, Admin)> {
    let node = Beamline::start(Options {
        workers: 1,
        cpu: Some(PROXY_CPU),
        configuration: Some("[queue]\nmax_bytes = \"16GiB\"\nmax_records = 4000000\n".into()),
        ready_within: Duration::from_secs(60),
        ..Options::default()
    })?;
    let admin = node.admin()?;
    admin.create_tenant(TENANT, &[HOST], &["127.0.0.0/8"])?;
    let mut wanted = manifest(HOST, origin);
    wanted["upstreams"]["origin"]["queue"] =
        json!({ "mode": "on-failure", "ordering_key": { "header": "x-key" }, "max_in_flight": 256 });
    admin.apply(TENANT, &wanted)?;
    Ok((node, admin))
}

fn post(key: Option<usize>, body: usize) -> Vec<u8> {
    let key = key.map(|n| format!("k{n}"));
    let fields: Vec<_> = key.iter().map(|key| ("x-key", key.as_str())).collect();
    load::request("POST", "/in", HOST, &fields, &vec![b'x'; body])
}

fn all_are(report: &Report, status: u16) -> Result<()> {
    ensure!(
        report.failed() == 0 && report.statuses.get(&status) == Some(&report.total()),
        "expected {status} for each request; found {report}"
    );
    Ok(())
}

/// `202`s a second while the origin is down, and rows a second into SQLite alone.
fn accepted(rounds: usize) -> Result<(Vec<Bar>, Value)> {
    let (mut bars, mut figures) = (Vec::new(), json!({}));
    for (name, body) in [("1 KiB", 1 << 10), ("200 KiB", 200 << 10)] {
        let (mut queue, mut sqlite, mut costs) = (Vec::new(), Vec::new(), Costs::default());
        for _ in 0..rounds {
            let down = Port::reserve()?;
            let (node, _admin) = node(down.address())?;
            sqlite.push(sqlite_alone(node.folder(), body)?);
            let plan = Plan::new(node.address(), post(None, body)).connections(64).timeout(PATIENCE);
            let before = Usage::of(node.pid()?);
            let report = load::run(&plan.lasting(TURN))?;
            all_are(&report, 202)?;
            queue.push(report.rate());
            costs = Costs::of(&Usage::of(node.pid()?).since(&before), report.total());
        }
        println!("accepted, {name}: {queue:.0?} a second, SQLite alone {sqlite:.0?}; µs CPU each: {costs}");
        bars.push(Bar {
            what: format!("202s a second with bodies of {name}, of what SQLite alone takes"),
            found: median(queue.iter().zip(&sqlite).map(|(q, s)| q / s).collect()),
            bound: Bound::AtLeast(BAR_ACCEPTED),
            unit: "× SQLite",
            void: None,
        });
        figures[name] = json!({ "queue": queue, "sqlite": sqlite });
    }
    Ok((bars, figures))
}

/// Rows a second, in groups as the node makes them, each with an fsync.
fn sqlite_alone(folder: &Path, body: usize) -> Result<f64> {
    let path = folder.join("alone.db");
    let own = rustix::thread::sched_getaffinity(None)?;
    process::pin_to(PROXY_CPU)?;
    let mut db = Connection::open(&path)?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.execute_batch("CREATE TABLE record (seq INTEGER PRIMARY KEY, head BLOB, body BLOB)")?;
    let (head, body) = (vec![b'h'; 300], vec![b'x'; body]);
    let group = GROUP.0.min(GROUP.1 / body.len()).max(1);
    let (began, mut rows) = (Instant::now(), 0);
    while began.elapsed() < TURN {
        let transaction = db.transaction()?;
        for _ in 0..group {
            transaction
                .prepare_cached("INSERT INTO record (head, body) VALUES (?1, ?2)")?
                .execute(params![head, body])?;
        }
        transaction.commit()?;
        rows += group;
    }
    let rate = rows as f64 / began.elapsed().as_secs_f64();
    drop(db);
    rustix::thread::sched_setaffinity(None, &own)?;
    for end in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(folder.join(format!("alone.db{end}")));
    }
    Ok(rate)
}

fn open(admin: &Admin) -> Result<u64> {
    figure(admin, "open")
}

fn figure(admin: &Admin, name: &str) -> Result<u64> {
    admin.get("/v1/status")?["queue"][name].as_u64().with_context(|| format!("the node tells queue.{name}"))
}

/// Fills the queue with so many records over the keys, the origin being down. Where some fail, the origin will refuse those
/// of one key in ten, for now.
fn fill(node: &Beamline, records: u64, some_fail: bool) -> Result<()> {
    let mut plan = Plan::new(node.address(), Vec::new()).connections(64).timeout(FILLED_WITHIN);
    plan.requests = (0..KEYS)
        .map(|key| match some_fail && key % FAILING == 0 {
            false => post(Some(key), 256),
            true => load::request("PUT", "/status/500", HOST, &[("x-key", &format!("k{key}"))], &[b'x'; 256]),
        })
        .collect();
    all_are(&load::run(&plan.lasting(FILLED_WITHIN).limit(records))?, 202)
}

/// Waits until no more than `rest` of `records` are queued, and gives how many were delivered a second, and what each cost.
///
/// From when half of the first tenth is through: the probe's pause and the ramp are not the rate. Until `enough` are.
fn drained(node: &Beamline, admin: &Admin, records: u64, rest: u64, enough: u64) -> Result<(f64, Costs)> {
    let until = Instant::now() + PATIENCE;
    let (pid, mut first) = (node.pid()?, None);
    loop {
        let (left, now) = (open(admin)?, Instant::now());
        match &first {
            None if left < records - enough / 20 => {
                first = Some((now, left, (Usage::of(pid), figure(admin, "commits")?)))
            }
            Some((since, then, (before, commits))) if left <= rest.max(records - enough) => {
                let delivered = then - left;
                let rate = delivered as f64 / now.duration_since(*since).as_secs_f64();
                let commits = figure(admin, "commits")? - commits;
                println!("{:.1} deliveries a commit", delivered as f64 / commits as f64);
                return Ok((rate, Costs::of(&Usage::of(pid).since(before), delivered)));
            }
            _ => {}
        }
        ensure!(now < until, "{left} records are still queued");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What one of many cost: µs of CPU, by thread.
#[derive(Clone, Debug, Default)]
struct Costs(Vec<(String, f64)>);

impl Costs {
    fn of(usage: &Usage, count: u64) -> Self {
        let each = usage.total as f64 / count.max(1) as f64 / 1e3;
        let mut costs = vec![("all".to_owned(), each)];
        costs.extend(usage.threads_by_share().iter().map(|(name, share)| ((*name).to_owned(), share * each)));
        Self(costs)
    }
}

impl fmt::Display for Costs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.0.iter().filter(|(_, us)| *us >= 0.5);
        write!(f, "{}", shown.map(|(name, us)| format!("{name} {us:.1}")).collect::<Vec<_>>().join(", "))
    }
}

/// Ordered deliveries a second over many keys, with every key well and with one in ten failing, and the live rate to the
/// same origin.
fn delivered(rounds: usize) -> Result<(Vec<Bar>, Value)> {
    let (mut well, mut failing, mut live) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let origin = QuickOrigin::start(64)?;
        let (node, _admin) = node(origin.address())?;
        let plan = Plan::new(node.address(), post(None, 256)).connections(64).timeout(PATIENCE);
        let before = Usage::of(node.pid()?);
        let report = load::run(&plan.lasting(TURN))?;
        all_are(&report, 200)?;
        live.push(report.rate());
        println!(
            "µs CPU a live request: {}",
            Costs::of(&Usage::of(node.pid()?).since(&before), report.total())
        );
        drop((origin, node));

        for (some_fail, rates) in [(false, &mut well), (true, &mut failing)] {
            let port = Port::reserve()?;
            let (node, admin) = self::node(port.address())?;
            let records = 30_000;
            fill(&node, records, some_fail)?;
            let _origin = QuickOrigin::start_on(port, 64)?;
            let rest = if some_fail { records / FAILING as u64 } else { 0 };
            let (rate, each) = drained(&node, &admin, records, rest, records)?;
            rates.push(rate);
            let which = if some_fail { ", one key in ten failing" } else { "" };
            println!("µs CPU a delivery{which}: {each}");
        }
    }
    println!(
        "delivered in order over {KEYS} keys: {well:.0?} a second, one key in {FAILING} failing {failing:.0?}, live {live:.0?}"
    );
    let of = |what: &str, found: &[f64], beside: &[f64], at_least: f64, unit: &'static str| Bar {
        what: format!("ordered deliveries a second over {KEYS} keys, one in {FAILING} failing, {what}"),
        found: median(found.iter().zip(beside).map(|(a, b)| a / b).collect()),
        bound: Bound::AtLeast(at_least),
        unit,
        void: None,
    };
    let bars = vec![
        of("of the live rate", &failing, &live, BAR_DELIVERED, "× live"),
        of("of those with none failing", &failing, &well, BAR_FAILING, "× all well"),
    ];
    Ok((bars, json!({ "delivered": well, "one_in_ten_failing": failing, "live": live })))
}

/// What a backlog of a million costs: the start, memory, and the rates beside a backlog of a thousand.
fn million() -> Result<(Vec<Bar>, Value)> {
    let measured = |records: u64| -> Result<Backlog> {
        let port = Port::reserve()?;
        let (mut node, admin) = node(port.address())?;
        fill(&node, records, false)?;
        let plan = Plan::new(node.address(), post(None, 256)).connections(64).timeout(PATIENCE);
        let report = load::run(&plan.lasting(TURN))?;
        all_are(&report, 202)?;
        node.kill_nine()?;
        let began = Instant::now();
        node.launch()?;
        let start = began.elapsed().as_secs_f64();
        let all = open(&admin)?;
        ensure!(all >= records, "expected {records} records after the restart; found {all}");
        let _origin = QuickOrigin::start_on(port, 64)?;
        let (delivered, _) = drained(&node, &admin, all, 0, MILLION_DRAINED.min(all))?;
        let memory = process::memory(node.pid()?)?.peak as f64 / f64::from(1 << 20);
        Ok(Backlog { start, memory, accepted: report.rate(), delivered })
    };
    let (few, many) = (measured(1_000 + MILLION_DRAINED)?, measured(MILLION)?);
    println!("a backlog of {MILLION}: {many:.2?}; of {}: {few:.2?}", 1_000 + MILLION_DRAINED);
    let bar = |what: &str, found: f64, bound: Bound, unit: &'static str| Bar {
        what: format!("a backlog of {MILLION}: {what}"),
        found,
        bound,
        unit,
        void: None,
    };
    let bars = vec![
        bar("from start to ready", many.start, Bound::AtMost(BAR_START), "s"),
        bar("memory at its highest, start and drain", many.memory, Bound::AtMost(BAR_MEMORY), "MiB"),
        bar(
            "202s a second, of those beside a small one",
            many.accepted / few.accepted,
            Bound::AtLeast(BAR_RATES),
            "×",
        ),
        bar(
            "deliveries a second, of those from a small one",
            many.delivered / few.delivered,
            Bound::AtLeast(BAR_RATES),
            "×",
        ),
    ];
    let figures = |b: &Backlog| json!({ "start_s": b.start, "memory_mib": b.memory, "accepted": b.accepted, "delivered": b.delivered });
    Ok((bars, json!({ "few": figures(&few), "many": figures(&many) })))
}

/// What was measured beside one backlog.
#[derive(Debug)]
struct Backlog {
    start: f64,
    memory: f64,
    accepted: f64,
    delivered: f64,
}

/// Runs `start` so that the threads that it starts step back behind the others of the load's processor: what is measured
/// there is not to wait for what only makes the node busy.
fn behind<T: Send>(start: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let niced = || {
        rustix::process::nice(19)?;
        start()
    };
    std::thread::scope(|scope| scope.spawn(niced).join()).expect("starting does not panic")
}

/// Another tenant's p99, idle beside it, while a queue fills, and while it drains.
fn neighbour(rounds: usize) -> Result<(Vec<Bar>, Value)> {
    let own = QuickOrigin::start(64)?;
    let (mut idle, mut filling, mut draining) = (Vec::new(), Vec::new(), Vec::new());
    let p99 = |report: &Report| report.latency.percentile(99.0).as_secs_f64() * 1e3;
    for _ in 0..rounds {
        let port = Port::reserve()?;
        let (node, admin) = node(port.address())?;
        admin.create_tenant("neighbour", &[NEIGHBOUR], &["127.0.0.0/8"])?;
        admin.apply("neighbour", &manifest(NEIGHBOUR, own.address()))?;
        let quiet = Plan::new(node.address(), load::get("/", NEIGHBOUR));
        // Long enough that some thirty requests are beyond the p99.
        let quiet = quiet.connections(8).rate(1000.0).lasting(2 * TURN).timeout(PATIENCE);
        let mut fill =
            Plan::new(node.address(), Vec::new()).connections(16).rate(FILL_RATE).timeout(PATIENCE);
        fill.requests = (0..KEYS).map(|key| post(Some(key), 256)).collect();

        let alone = load::run(&quiet)?;
        let filler = behind(|| load::start(fill.lasting(PATIENCE)))?;
        let beside = load::run(&quiet)?;
        let filled = filler.stop()?;
        all_are(&filled, 202)?;
        ensure!(filled.rate() >= 0.9 * FILL_RATE, "the queue was to fill at {FILL_RATE} a second: {filled}");
        self::fill(&node, TO_DRAIN, false)?;
        let queued = open(&admin)?;
        let _origin = behind(|| QuickOrigin::start_on(port, 64))?;
        // The probe's pause is none of it, nor is what comes after the last delivery.
        wait(
            PATIENCE,
            || open(&admin).map_err(|e| e.to_string()),
            |left| left.as_ref().map_or(true, |left| *left < queued - TO_DRAIN / 20),
        )
        .map_err(anyhow::Error::msg)?;
        let after = load::run(&quiet)?;
        let left = open(&admin)?;
        ensure!(left > 0, "the queue was drained before the turn was over: {queued} records were too few");
        ensure!(
            left <= queued - TO_DRAIN / 4,
            "of {queued} records {left} were left after a turn: it hardly drained"
        );
        for report in [&alone, &beside, &after] {
            all_are(report, 200)?;
        }
        idle.push(p99(&alone));
        filling.push(p99(&beside));
        draining.push(p99(&after));
    }
    println!("another tenant's p99 in ms: idle {idle:.2?}, filling {filling:.2?}, draining {draining:.2?}");
    let bar = |what: &str, of: &[f64]| Bar {
        what: format!("another tenant's p99 while a queue {what}"),
        found: median(of.iter().zip(&idle).map(|(a, b)| a / b).collect()),
        bound: Bound::AtMost(BAR_NEIGHBOUR),
        unit: "× idle",
        void: None,
    };
    let bars = vec![bar("fills", &filling), bar("drains", &draining)];
    Ok((bars, json!({ "idle_ms": idle, "filling_ms": filling, "draining_ms": draining })))
}

//! Changes under load drop and delay nothing, and what is answered is in effect.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use beamline_tests::{
    admin::Admin,
    beamline::{Beamline, Options},
    client::{Connection, Request},
    guests::{self, variant},
    heavy::heavy,
    load::{self, Plan, QuickOrigin},
    scene::{HOST, PATIENCE, TENANT},
    tools,
};
use serde_json::{Value, json};

const CHANGES: usize = 500;

/// What change number `n` is.
#[derive(Clone, Copy)]
enum Change {
    /// Another configuration, in turn with another module or another upstream.
    Apply,
    /// What was active before.
    Rollback,
}

fn change(n: usize) -> Change {
    if n % 5 == 4 { Change::Rollback } else { Change::Apply }
}

/// What requests for `/effect` are answered while change number `n` is the last: the number of an applied manifest.
fn effects() -> Vec<usize> {
    (0..=CHANGES).fold(Vec::new(), |mut seen, n| {
        seen.push(match change(n) {
            Change::Apply => n,
            // An apply went before: it is undone.
            Change::Rollback => seen[n - 2],
        });
        seen
    })
}

/// The manifest that shows `effect`: each has another configuration; modules and time-outs take turns.
fn manifest(effect: usize, digests: &[String], origin: &QuickOrigin) -> Value {
    let shown = json!({ "do": "respond", "headers": { "x-effect": effect.to_string() } });
    json!({
        "version": 1,
        "hosts": [HOST],
        "default_upstream": "origin",
        // Another time-out is another cluster, with connections of its own.
        "upstreams": { "origin": {
            "endpoints": [origin.address().to_string()],
            "response_timeout": if effect % 10 < 5 { "30s" } else { "40s" },
        } },
        "filters": [{
            "name": "probe",
            "module": digests[effect % digests.len()],
            "config": { "paths": { "/effect": shown } },
        }],
    })
}

/// The effect that a request meets over this connection.
fn effect(connection: &mut Connection) -> usize {
    let answer = connection.exchange(&Request::get("/effect").host(HOST)).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.header("x-effect").unwrap().parse().unwrap()
}

/// Says that it is over, also where the test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

struct Stage {
    node: Beamline,
    admin: Admin,
    origin: QuickOrigin,
    digests: Vec<String>,
}

/// A node of two workers with the first manifest active and four modules to choose from.
fn stage() -> Stage {
    let node = Beamline::start(Options { log: false, ..Options::default() }).unwrap();
    let (admin, origin) = (node.admin().unwrap(), QuickOrigin::start(64).unwrap());
    admin.create_tenant(TENANT, &[HOST], &["127.0.0.0/8"]).unwrap();
    let probe = guests::module("probe").unwrap();
    let digests: Vec<_> = ["a", "b", "c"]
        .iter()
        .map(|mark| admin.push(TENANT, &variant(&probe, mark)).unwrap().digest)
        .collect();
    admin.apply(TENANT, &manifest(0, &digests, &origin)).unwrap();
    Stage { node, admin, origin, digests }
}

#[test]
fn five_hundred_changes_under_half_load_drop_nothing_and_each_is_in_effect_when_answered() {
    let _heavy = heavy().unwrap();
    let Stage { node, admin, origin, digests } = stage();
    let to = node.address();
    let plan = Plan::new(to, load::get("/", HOST)).connections(16).timeout(PATIENCE);
    let full = load::run(&plan.clone().lasting(Duration::from_millis(700))).unwrap();
    assert_eq!(full.failed(), 0, "{full}");
    let half = plan.clone().rate(full.rate() / 2.0).lasting(Duration::from_secs(120));

    let effects = effects();
    // The change that was begun last, and the one that was answered last.
    let (begun, answered, over) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let load = load::start(half).unwrap();
    let (mut seen, mut took) = (Vec::new(), Duration::ZERO);
    std::thread::scope(|scope| {
        let watchers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut connection = Connection::open(to, PATIENCE).unwrap();
                    let mut requests = 0;
                    while !over.load(Ordering::SeqCst) {
                        let from = answered.load(Ordering::SeqCst);
                        let found = effect(&mut connection);
                        let until = begun.load(Ordering::SeqCst);
                        let active = &effects[from..=until];
                        assert!(active.contains(&found), "found {found}, while {active:?} were active");
                        requests += 1;
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    requests
                })
            })
            .collect();

        let at_the_end = Over(&over);
        // Enough connections that both workers are asked.
        let mut connections: Vec<_> = (0..6).map(|_| Connection::open(to, PATIENCE).unwrap()).collect();
        let began = Instant::now();
        for (n, expected) in effects.iter().enumerate().skip(1) {
            begun.store(n, Ordering::SeqCst);
            let applied = match change(n) {
                Change::Apply => admin.apply(TENANT, &manifest(n, &digests, &origin)),
                Change::Rollback => admin.rollback(TENANT, None),
            };
            let applied = applied.unwrap_or_else(|error| panic!("change {n}: {error}"));
            answered.store(n, Ordering::SeqCst);
            let found: Vec<_> = connections.iter_mut().map(effect).collect();
            assert!(
                applied.changed && found.iter().all(|found| found == expected),
                "change {n} was answered, {expected} should be in effect, found {found:?}"
            );
        }
        took = began.elapsed();
        drop(at_the_end);
        seen = watchers.into_iter().map(|watcher| watcher.join().unwrap()).collect();
    });
    let report = load.stop().unwrap();
    println!(
        "{CHANGES} changes in {took:.1?}; watched by {seen:?} requests; full load: {full}\nbeside the changes: {report}"
    );
    assert_eq!(report.failed(), 0, "every request beside the changes was answered well: {report}");
    assert!(report.good() > 1000 && seen.iter().all(|n| *n > 100), "{report}, {seen:?}");
    let last = admin.show(TENANT).unwrap();
    assert_eq!(last["revision"], admin.manifest(TENANT).unwrap()["revision"]);
}

#[test]
fn wrk_meets_no_error_while_modules_are_replaced() {
    let _heavy = heavy().unwrap();
    let Stage { node, admin, origin, digests } = stage();
    let seen = std::thread::scope(|scope| {
        let wrk =
            scope.spawn(|| tools::wrk(node.address(), "/", &[&format!("Host: {HOST}")], 16, 3).unwrap());
        let mut n = 0;
        while !wrk.is_finished() {
            n += 1;
            admin.apply(TENANT, &manifest(n, &digests, &origin)).unwrap();
        }
        assert!(n > 10, "{n} changes in 3 s");
        wrk.join().unwrap()
    });
    println!("{seen:?}");
    assert_eq!(seen.errors(), 0, "{seen:?}");
    assert!(seen.requests > 1000, "{seen:?}");
}

#[test]
fn a_change_of_one_tenant_is_none_of_anothers() {
    let _heavy = heavy().unwrap();
    let Stage { node, admin, origin, digests } = stage();
    let others = 40;
    let quiet = |n: usize| (format!("tenant-{n}"), format!("tenant-{n}.test"));
    let requests: Vec<_> = (0..others)
        .map(|n| {
            let (name, host) = quiet(n);
            admin.create_tenant(&name, &[&host], &["127.0.0.0/8"]).unwrap();
            admin.apply(&name, &beamline_tests::admin::manifest(&host, origin.address())).unwrap();
            load::get("/", &host)
        })
        .collect();
    let mut plan = Plan::new(node.address(), Vec::new()).rate(500.0).lasting(PATIENCE).timeout(PATIENCE);
    plan.requests = requests;
    let load = load::start(plan).unwrap();
    load.wait_for_more(others as u64, PATIENCE).unwrap();
    for n in 1..=50 {
        admin.apply(TENANT, &manifest(n, &digests, &origin)).unwrap();
    }
    let report = load.stop().unwrap();
    assert_eq!(report.failed(), 0, "{report}");
    for n in 0..others {
        assert_eq!(admin.show(&quiet(n).0).unwrap()["revision"], 1);
    }
}

#[test]
fn changes_that_many_tenants_make_at_once_are_all_made() {
    let node = Beamline::start(Options { log: false, ..Options::default() }).unwrap();
    let (admin, origin) = (node.admin().unwrap(), QuickOrigin::start(64).unwrap());
    let address = node.address();
    std::thread::scope(|scope| {
        for n in 0..16 {
            let (admin, origin) = (&admin, &origin);
            scope.spawn(move || {
                let (name, host) = (format!("tenant-{n}"), format!("tenant-{n}.test"));
                admin.create_tenant(&name, &[&host], &["127.0.0.0/8"]).unwrap();
                for round in 0..5 {
                    let mut manifest = beamline_tests::admin::manifest(&host, origin.address());
                    // The even ones lead nowhere: each answer tells which revision it is of.
                    if round % 2 == 0 {
                        manifest["default_upstream"] = Value::Null;
                    }
                    let applied = admin.apply(&name, &manifest).unwrap();
                    let answer = Request::get("/").host(&host).send(address).unwrap();
                    let expected = if round % 2 == 0 { 404 } else { 200 };
                    assert_eq!((answer.status, applied.changed), (expected, true), "{name}, round {round}");
                }
            });
        }
    });
    assert_eq!(admin.get("/v1/tenants").unwrap()["tenants"].as_array().unwrap().len(), 16);
}

//! The harness on the real binary: what every other suite relies on.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::time::Duration;

use beamline_tests::{
    admin::{Admin, manifest},
    beamline::{Beamline, Options},
    client::Request,
    origin::Origin,
    powercut::{Entries, PowerCut},
};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);

fn granted(admin: &Admin, origin: &Origin) -> Value {
    admin.create_tenant("acme", &["acme.test"], &[&format!("{}", origin.address())]).unwrap();
    manifest("acme.test", origin.address())
}

fn status(node: &Beamline, target: &str) -> u16 {
    Request::get(target).host("acme.test").send(node.address()).unwrap().status
}

#[test]
fn a_node_serves_is_killed_comes_back_as_it_was_and_drains() {
    let origin = Origin::start("acme").unwrap();
    let mut node = Beamline::start(Options::default()).unwrap();
    let wanted = granted(&node.admin().unwrap(), &origin);
    assert_eq!(node.admin().unwrap().apply("acme", &wanted).unwrap().revision, Some(1));
    assert_eq!(status(&node, "/echo"), 200);
    let refused = node.admin().unwrap().with_token("blt_nonsense").show("acme").unwrap_err();
    assert_eq!(refused.status(), Some(401), "{refused}");

    node.kill_nine().unwrap();
    assert!(Request::get("/").send(node.address()).is_err());
    node.launch().unwrap();
    assert_eq!(status(&node, "/echo"), 200);
    assert_eq!(origin.count(), 2);

    let is_access = |r: &&Value| r["kind"] == "access";
    let log = node.wait_log(PATIENCE, |log| log.iter().filter(is_access).count() >= 1).unwrap();
    assert_eq!(log.iter().find(is_access).unwrap()["tenant.id"], "acme");
    node.sigterm().unwrap();
    assert_eq!(node.wait_exit(PATIENCE).unwrap().code(), Some(0));
}

#[test]
fn a_node_under_the_power_cut_shim_keeps_what_it_answered_and_loses_it_without_fsync() {
    for skip in [None, Some("/")] {
        let mut origin = Origin::start("acme").unwrap();
        let mut node = Beamline::prepare(Options::default()).unwrap();
        let power = PowerCut::over(&node.data_dir(), Entries::ByDirectory).unwrap();
        let power = if let Some(part) = skip { power.skip_fsync(part) } else { power };
        node.options_mut().environment = power.environment();
        node.launch().unwrap();
        let mut wanted = granted(&node.admin().unwrap(), &origin);
        wanted["upstreams"]["origin"]["queue"] = json!({ "mode": "on-failure" });
        node.admin().unwrap().apply("acme", &wanted).unwrap();
        origin.stop();
        let orders: Vec<_> = (0..5).map(|n| vec![b'a' + n; 40_000]).collect();
        for order in &orders {
            let answer =
                Request::post("/echo", order.clone()).host("acme.test").send(node.address()).unwrap();
            assert_eq!(answer.status, 202, "{}", answer.text());
        }

        node.kill_nine().unwrap();
        let lost = power.strike().unwrap();
        node.launch().unwrap();
        origin.start_again().unwrap();
        if skip.is_some() {
            assert!(!lost.nothing());
            assert_eq!(node.admin().unwrap().show("acme").unwrap_err().status(), Some(404));
            continue;
        }
        let log = origin.wait_for_count(orders.len(), PATIENCE).unwrap_or_else(|e| panic!("{e:#}; {lost:?}"));
        for order in &orders {
            assert!(log.iter().any(|r| r.body == *order));
        }
    }
}

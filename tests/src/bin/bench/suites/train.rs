//! No measurement: the mix of work that a release build is trained with (`scripts/release.sh`).
//!
//! Most of it what most requests are, and a little of all else that is done for each: bodies, many tenants, filters, the
//! queue while its origin is down.

use std::time::Duration;

use anyhow::{Result, ensure};
use beamline_tests::{
    beamline::{Beamline, Options},
    load::{self, Plan, QuickOrigin},
    ports::Port,
    scene::{HOST, PATIENCE, TENANT},
    wait::wait,
};
use serde_json::json;

use super::core::twelve_headers;
use crate::{
    Settings,
    proxies::{Node, Proxy, host},
};

const TENANTS: usize = 50;
const TURN: Duration = Duration::from_secs(2);
const BODY: [u8; 4096] = [b'x'; 4096];

/// Drives nodes of the binary that is to be trained, and ends them in order, so that they write their profiles.
pub(crate) fn run(settings: &Settings) -> Result<()> {
    let filter = settings.filter_module()?;
    let origin = QuickOrigin::start(128)?;
    for filter in [None, Some(&*filter)] {
        let node = Node::start(origin.address(), TENANTS, filter, None)?;
        let small = vec![load::get("/", &host(0))];
        let many = (0..TENANTS).map(twelve_headers).collect();
        let bodies = vec![load::request("POST", "/orders?a=b", &host(0), &[], &BODY)];
        for (name, requests) in [("small", small), ("12 headers", many), ("bodies", bodies)] {
            drive(name, Plan { requests, ..Plan::new(node.address(), Vec::new()) })?;
        }
    }
    queued()?;
    println!("trained");
    Ok(())
}

fn drive(name: &str, plan: Plan) -> Result<()> {
    let report = load::run(&plan.connections(64).lasting(TURN).timeout(PATIENCE))?;
    ensure!(report.failed() == 0 && report.good() > 0, "{name}: not every request succeeded: {report}");
    println!("  {name}: {} requests", report.good());
    Ok(())
}

/// Requests that are queued while their origin is down, and delivered when it is there.
fn queued() -> Result<()> {
    let port = Port::reserve()?;
    let mut node = Beamline::start(Options { workers: 1, ..Options::default() })?;
    let admin = node.admin()?;
    admin.create_tenant(TENANT, &[HOST], &["127.0.0.0/8"])?;
    let upstream = json!({ "endpoints": [port.address().to_string()], "queue": { "mode": "on-failure", "methods": ["POST"] } });
    let manifest = json!({ "version": 1, "hosts": [HOST], "default_upstream": "origin", "upstreams": { "origin": upstream } });
    admin.apply(TENANT, &manifest)?;
    let post = load::request("POST", "/orders", HOST, &[], &BODY[..1024]);
    drive("queued", Plan::new(node.address(), post))?;
    let _origin = QuickOrigin::start_on(port, 128)?;
    let open = || admin.get("/v1/status").map(|status| status["queue"]["open"].as_u64()).ok().flatten();
    wait(PATIENCE, open, |open| *open == Some(0));
    println!("  and delivered");
    node.sigterm()?;
    node.wait_exit(PATIENCE)?;
    Ok(())
}

//! The filter suite: what a filter adds to a request, in each tier, with one module and with many.
//!
//! Beside Envoy, whose filter is one instance for all requests.
//!
//! By the core suite's means: CPU per request of the proxy, systems in turn, medians within the rounds. The sandbox
//! alone, without a proxy around it, is measured by `cargo bench --bench sandbox`.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use beamline_tests::{client::Request, load::Stage, ports::Port, process};
use serde_json::json;

use super::core::{ANSWER, Case, figures, print, turns, twelve_headers};
use crate::{
    Settings,
    envoy::Envoy,
    proxies::{Node, PROXY_CPU, Proxy, host},
    report::{self, Bar, Bound},
};

/// A filter in the reset tier that reads 12 headers: at most so many µs more than without.
const BAR_RESET: f64 = 3.0;
/// The same where as many modules as are asked for take turns.
const BAR_RESET_MANY: f64 = 4.0;
/// The same filter in the component tier, with one module and with many.
const BAR_COMPONENT: f64 = 14.0;
/// Requests a second with the filter in the reset tier: at least so many times Envoy's with its like.
const BAR_ENVOY: f64 = 4.0;

// The cases by their place.
const PLAIN: usize = 0;
const RESET: usize = 1;
const COMPONENT: usize = 2;
const PLAIN_MANY: usize = 3;
const RESET_MANY: usize = 4;
const COMPONENT_MANY: usize = 5;
const REUSED: usize = 6;
const CHAIN: usize = 7;
const BODY: usize = 8;
const TWO_WORKERS: usize = 9;
const ENVOY: usize = 10;
const ENVOY_WASM: usize = 11;
const ENVOY_CHAIN: usize = 12;

/// How many filters are in the chain.
const LINKS: usize = 5;

/// Runs the suite; gives how many bars were missed.
pub(crate) fn run(settings: &Settings) -> Result<usize> {
    process::pin_to(PROXY_CPU + 1)?;
    let filter = settings.filter_module()?;
    let port = Port::reserve()?;
    let origin = port.address();
    let mut stage = Stage::with_origin(&port, ANSWER)?;
    let many = settings.modules;
    println!(
        "starting BeamLine for 1 tenant and for {many}, each without a filter, in the reset and in the component tier"
    );
    // Something in each of the origin's answers, a few times.
    let replacing =
        json!({ "module": "replace", "config": { "rules": [{ "find": "abc", "replace": "ABC" }] } });
    let proxies: Vec<Box<dyn Proxy>> = vec![
        Box::new(Node::start(origin, 1, None, None)?),
        Box::new(Node::in_tier(true, origin, 1, &filter)?),
        Box::new(Node::in_tier(false, origin, 1, &filter)?),
        Box::new(Node::start(origin, many, None, None)?),
        Box::new(Node::in_tier(true, origin, many, &filter)?),
        Box::new(Node::in_tier(false, origin, many, &filter)?),
        Box::new(Node::of_filters(origin, 1, &[json!({ "module": "tiny", "reuse": 10_000 })])?),
        Box::new(chain(origin)?),
        Box::new(Node::of_filters(origin, 1, &[replacing])?),
        Box::new(Node::of_filters(origin, 2, &[json!({ "module": "tiny" })])?),
        Box::new(Envoy::start(origin, 0)?),
        Box::new(Envoy::start(origin, 1)?),
        Box::new(Envoy::start(origin, LINKS)?),
    ];
    let one = || vec![twelve_headers(0)];
    let all = || (0..many).map(twelve_headers).collect();
    let mut cases = vec![
        Case::new("no filter", PLAIN, PLAIN, one()),
        Case::new("reset tier, 1 module", RESET, PLAIN, one()),
        Case::new("component tier, 1 module", COMPONENT, PLAIN, one()),
        Case::new(&format!("no filter, {many} tenants"), PLAIN_MANY, PLAIN_MANY, all()),
        Case::new(&format!("reset tier, {many} modules"), RESET_MANY, PLAIN_MANY, all()),
        Case::new(&format!("component tier, {many} modules"), COMPONENT_MANY, PLAIN_MANY, all()),
        Case::new("component tier, one instance for 10,000 requests", REUSED, PLAIN, one()),
        Case::new(&format!("reset tier, a chain of {LINKS}"), CHAIN, PLAIN, one()),
        Case::new("component tier, a response's body rewritten", BODY, PLAIN, one()),
        Case::new("reset tier, 2 workers on the one processor", TWO_WORKERS, PLAIN, one()),
        Case::new("Envoy, no filter", ENVOY, PLAIN, one()),
        Case::new("Envoy, Wasm filter of all requests", ENVOY_WASM, PLAIN, one()),
        Case::new(&format!("Envoy, a chain of {LINKS} such filters"), ENVOY_CHAIN, PLAIN, one()),
    ];
    let memory = turns(&mut cases, &proxies, &mut stage, settings)?;
    print(&cases, &memory, settings);
    let bars = bars(&cases, many);
    let missed = report::print_bars(&bars);
    report::write_json(&settings.out, "filter", &bars, figures(&cases, &memory, settings))?;
    Ok(missed)
}

/// A node whose chain has so many filters, each of which runs.
fn chain(origin: SocketAddr) -> Result<Node> {
    let mut links = vec![json!({ "module": "tiny-next" }); LINKS - 1];
    links.push(json!({ "module": "tiny" }));
    let node = Node::of_filters(origin, 1, &links)?;
    // What the last routes to is not there: then all before it have left the request to it.
    let answer = Request::get("/").host(&host(0)).header("x-h12", "other").send(node.address())?;
    ensure!(
        answer.status == 503 && answer.problem() == "filter-verdict",
        "the last of {LINKS} filters was to run; found {} {}",
        answer.status,
        answer.text()
    );
    Ok(node)
}

fn bars(cases: &[Case], many: usize) -> Vec<Bar> {
    let bar = |what: String, case: usize, base: usize, bound| {
        let failed = cases[case].failed() + cases[base].failed();
        Bar {
            what,
            found: cases[case].paired(&cases[base], |a, b| a - b),
            bound: Bound::AtMost(bound),
            unit: "µs more",
            void: (failed > 0).then(|| format!("{failed} requests failed")),
        }
    };
    vec![
        bar("reset tier, 12 headers read, 1 module".into(), RESET, PLAIN, BAR_RESET),
        bar(format!("reset tier, {many} modules in turn"), RESET_MANY, PLAIN_MANY, BAR_RESET_MANY),
        bar("component tier, 12 headers read, 1 module".into(), COMPONENT, PLAIN, BAR_COMPONENT),
        bar(format!("component tier, {many} modules in turn"), COMPONENT_MANY, PLAIN_MANY, BAR_COMPONENT),
        Bar {
            what: "reset tier, 1 module, requests a second beside Envoy with a Wasm filter".into(),
            found: cases[RESET].paired_rate(&cases[ENVOY_WASM], |a, b| a / b),
            bound: Bound::AtLeast(BAR_ENVOY),
            unit: "× Envoy",
            void: (cases[RESET].failed() + cases[ENVOY_WASM].failed() > 0).then(|| "requests failed".into()),
        },
    ]
}

//! An origin dies, the proxy is killed, and nothing that was accepted is lost.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Chapter;
use crate::{
    demo::{
        Told,
        stage::{ACME, Ask, GLOBEX, Stage, Traced},
    },
    otlp::{Kind, Span},
    seed::Seed,
};

pub(super) const CHAPTER: Chapter = Chapter {
    title: "An origin dies, then the proxy: nothing accepted is lost",
    shows: "acme lets its orders wait where their origin is down. The client gets `202` and a receipt once the order\n\
            is on disk, not before. So even `kill -9` of the proxy loses none.",
    tell,
};

const ORDERS: usize = 20;
/// Every so many orders there is a large one, whose body is a file beside the queue's database.
const LARGE_EVERY: usize = 5;
const LARGE: usize = 96 << 10;

/// An order that the proxy answered for.
struct Accepted {
    key: String,
    body: Vec<u8>,
    /// Where its receipt is.
    receipt: String,
    request_id: String,
}

fn tell(stage: &mut Stage) -> Told {
    let port = stage.settings.origin_1;
    stage.origins[0].stop();
    stage.print.scene(&format!("origin {port} is stopped: its port refuses"));
    let read = stage.ask(&Ask::get(&ACME, "/orders/1"))?;
    let accepted = order(stage)?;
    let other = stage.ask(&Ask::get(&GLOBEX, "/"))?;
    stage.claim(
        format!("{ORDERS} orders were accepted with a receipt each; a GET is never queued; globex goes on"),
        accepted.len() == ORDERS && read.status == 503 && other.status == 200,
        format!("{ORDERS} × 202, 503, 200"),
        format!("{} × 202, {}, {}", accepted.len(), read.status, other.status),
    )?;
    let status = stage.beamline(&["status"])?;
    stage.print.detail(&status);

    let trace_id = trace_of(stage, accepted.last().context("there are orders")?)?;
    stage.print.command(&format!("kill -9 {}", stage.node.pid()?));
    stage.node.kill_nine()?;
    let killed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
    let gone = stage.send(&Ask::get(&GLOBEX, "/")).is_err();
    stage.print.scene("the proxy is gone, and starts again on the same folder");
    let began = Instant::now();
    stage.node.launch()?;
    stage.print.detail(&format!("ready after {} ms", began.elapsed().as_millis()));
    let known = states(stage, &accepted)?;
    let open = known.get("queued").unwrap_or(&0) + known.get("delivering").unwrap_or(&0);
    stage.claim(
        "the new process knows every receipt",
        gone && open == ORDERS,
        format!("{ORDERS} queued"),
        in_words(&known),
    )?;

    stage.origins[0].start_again()?;
    let began = Instant::now();
    stage.print.scene(&format!("origin {port} is back"));
    arrived(stage, &accepted, began)?;
    let last = stage.wait("the receipts to say so", Duration::from_secs(20), || {
        let found = states(stage, &accepted)?;
        Ok(if found.get("delivered") == Some(&ORDERS) { Ok(found) } else { Err(in_words(&found)) })
    })?;
    let shown = stage.send(&Ask::get(&ACME, &accepted[0].receipt))?.json()?;
    stage.print.exchange(&format!("GET {}", shortened(&accepted[0].receipt)), &shown["state"].to_string());
    stage.claim(
        "every receipt says delivered",
        last.len() == 1,
        format!("{ORDERS} delivered"),
        in_words(&last),
    )?;
    stage.traced = Some(Traced { trace_id, killed });
    Ok(())
}

/// Posts the orders; gives those that were answered `202` with a receipt.
fn order(stage: &Stage) -> Result<Vec<Accepted>> {
    let mut seed = Seed::new(7);
    let mut accepted = Vec::new();
    let mut slowest = Duration::ZERO;
    for n in 1..=ORDERS {
        let key = format!("order-{n}-{:016x}", seed.bits());
        let filling = if n % LARGE_EVERY == 0 { LARGE } else { 40 };
        let note: String = (0..filling / 16).map(|_| format!("{:016x}", seed.bits())).collect();
        let body = format!(r#"{{"order":{n},"note":"{note}"}}"#).into_bytes();
        let ask = Ask::new("POST", &ACME, "/orders")
            .quiet_header("content-type", "application/json")
            .quiet_header("idempotency-key", &key)
            .body(body.clone());
        let began = Instant::now();
        let response = stage.send(&ask)?;
        slowest = slowest.max(began.elapsed());
        let field = |name: &str| response.header(name).map(str::to_owned);
        if n == 1 {
            let receipt = field("location").unwrap_or_else(|| "no receipt".into());
            stage.print.exchange(
                &format!("{ORDERS} × POST http://{}/orders", ACME.host),
                &format!("{} {}", response.status, shortened(&receipt)),
            );
        }
        if let (202, Some(receipt), Some(request_id)) =
            (response.status, field("location"), field("x-request-id"))
        {
            accepted.push(Accepted { key, body, receipt, request_id });
        }
    }
    stage.print.detail(&format!("{} accepted, the slowest after {slowest:.1?}", accepted.len()));
    Ok(accepted)
}

/// A receipt's address without most of its secret.
fn shortened(receipt: &str) -> String {
    match receipt.char_indices().nth(48) {
        Some((end, _)) => format!("{}…", &receipt[..end]),
        None => receipt.to_owned(),
    }
}

/// The trace of an order, once the spans of its acceptance have been received: the node is about to be killed.
fn trace_of(stage: &Stage, order: &Accepted) -> Result<String> {
    let trace_id = stage.wait("the log's record of the last order", Duration::from_secs(10), || {
        let log = stage.node.log()?;
        let record = log.iter().find(|r| r["kind"] == "access" && r["request.id"] == order.request_id.as_str());
        let trace_id = record.and_then(|r| r["trace_id"].as_str());
        Ok(trace_id.map(str::to_owned).ok_or_else(|| format!("{} records without it", log.len())))
    })?;
    stage.wait("its spans at the receiver", Duration::from_secs(10), || {
        let spans = stage.traces.trace(&trace_id);
        let has = |kind| spans.iter().any(|span: &Span| span.kind == kind);
        let whole = has(Kind::Server) && has(Kind::Internal) && has(Kind::Producer);
        Ok(if whole { Ok(()) } else { Err(format!("{} spans of trace {trace_id}", spans.len())) })
    })?;
    Ok(trace_id)
}

/// How many receipts are in each state.
fn states(stage: &Stage, accepted: &[Accepted]) -> Result<BTreeMap<String, usize>> {
    let mut states = BTreeMap::new();
    for order in accepted {
        let response = stage.send(&Ask::get(&ACME, &order.receipt))?;
        let state = match response.json() {
            Ok(Value::Object(receipt)) if response.status == 200 => {
                let reason = receipt.get("reason").and_then(Value::as_str);
                let state = receipt.get("state").and_then(Value::as_str).unwrap_or("without a state");
                reason.map_or_else(|| state.to_owned(), |reason| format!("{state} ({reason})"))
            }
            _ => format!("answered {}", response.status),
        };
        *states.entry(state).or_default() += 1;
    }
    Ok(states)
}

fn in_words(states: &BTreeMap<String, usize>) -> String {
    states.iter().map(|(state, n)| format!("{n} {state}")).collect::<Vec<_>>().join(", ")
}

/// Waits until every order is at the origin, and compares what came with what was sent.
fn arrived(stage: &mut Stage, accepted: &[Accepted], began: Instant) -> Told {
    let came = |stage: &Stage| {
        let mut bodies: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
        for request in stage.origins[0].requests() {
            if request.whole && request.method == "POST" && request.target == "/orders" {
                let key = request.headers.get("idempotency-key").unwrap_or_default();
                bodies.entry(key.to_owned()).or_default().push(request.body.clone());
            }
        }
        bodies
    };
    let bodies = stage.wait("the orders to arrive", Duration::from_secs(30), || {
        let bodies = came(stage);
        let here = accepted.iter().filter(|order| bodies.contains_key(&order.key)).count();
        Ok(if here == ORDERS { Ok(bodies) } else { Err(format!("{here} of {ORDERS}")) })
    })?;
    let took = began.elapsed();
    let same = |order: &&Accepted| bodies[&order.key].iter().all(|body| *body == order.body);
    let (whole, deliveries) = (accepted.iter().filter(same).count(), bodies.values().map(Vec::len).sum::<usize>());
    let size: usize = accepted.iter().map(|order| order.body.len()).sum();
    stage.print.detail(&format!(
        "{ORDERS} orders, {} KiB, in {deliveries} deliveries, {:.1} s after the origin came back",
        size >> 10,
        took.as_secs_f64()
    ));
    stage.claim(
        "every accepted order arrived, byte for byte",
        whole == ORDERS,
        format!("{ORDERS} orders with the body that was sent"),
        format!("{whole} of them, {deliveries} deliveries"),
    )
}

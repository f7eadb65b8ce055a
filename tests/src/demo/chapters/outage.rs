//! An origin dies, the proxy is killed, and nothing that was accepted is lost.

use std::{
    collections::BTreeMap,
    sync::Arc,
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
    origin::{Origin, Recorded},
    otlp::{Kind, Span},
    seed::Seed,
};

pub(super) const CHAPTER: Chapter = Chapter {
    title: "An origin dies, then the proxy: nothing accepted is lost",
    shows: "acme lets orders wait where their origin is down. The client gets `202` and a receipt once the order is on\n\
            disk, not before: even `kill -9` of the proxy loses none.",
    tell,
};

const ORDERS: usize = 20;
/// The orders of an account arrive in the order in which they were accepted.
const ACCOUNTS: usize = 4;
/// Every so many orders there is a large one, whose body is a file beside the queue's database.
const LARGE_EVERY: usize = 5;
const LARGE: usize = 96 << 10;

/// An order that the proxy answered for.
struct Accepted {
    key: String,
    account: String,
    body: Vec<u8>,
    /// Where its receipt is.
    receipt: String,
    request_id: String,
}

fn tell(stage: &mut Stage) -> Told {
    let port = stage.settings.origin_1;
    stage.origins[0].stop();
    stage.print.scene(&format!("origin {port} is stopped: its port refuses"));
    let read = stage.ask(&Ask::get(&ACME, "/api/orders/1"))?;
    let accepted = order(stage)?;
    let other = stage.ask(&Ask::get(&GLOBEX, "/health"))?;
    stage.claim(
        format!("{ORDERS} orders were accepted with a receipt each; a GET is never queued; globex goes on"),
        accepted.len() == ORDERS && read.status == 503 && other.status == 200,
        format!("{ORDERS} × 202, 503, 200"),
        format!("{} × 202, {}, {}", accepted.len(), read.status, other.status),
    )?;
    let status = stage.beamline(&["status"])?;
    stage.print.detail(&status);

    let first = accepted.first().context("orders were accepted")?;
    show_receipt(stage, first)?;
    let trace_id = trace_of(stage, first)?;
    stage.print.command(&format!("kill -9 {}", stage.node.pid()?));
    stage.node.kill_nine()?;
    let killed = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
    let gone = stage.send(&Ask::get(&GLOBEX, "/health")).is_err();
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
    show_receipt(stage, first)?;
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
        let account = (n % ACCOUNTS).to_string();
        let filling = if n % LARGE_EVERY == 0 { LARGE } else { 40 };
        let note: String = (0..filling / 16).map(|_| format!("{:016x}", seed.bits())).collect();
        let body = format!(r#"{{"order":{n},"note":"{note}"}}"#).into_bytes();
        let ask = Ask::new("POST", &ACME, "/orders")
            .quiet_header("content-type", "application/json")
            .quiet_header("idempotency-key", &key)
            .quiet_header("x-account", &account)
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
            accepted.push(Accepted { key, account, body, receipt, request_id });
        }
    }
    stage.print.detail(&format!("{} accepted, the slowest after {slowest:.1?}", accepted.len()));
    Ok(accepted)
}

/// Asks what became of an order, and shows it.
fn show_receipt(stage: &Stage, order: &Accepted) -> Result<()> {
    let receipt = stage.send(&Ask::get(&ACME, &order.receipt))?.json()?;
    let attempts = receipt["attempts"].as_u64().unwrap_or(0);
    let state = receipt["state"].as_str().unwrap_or("without a state");
    stage
        .print
        .exchange(&format!("GET {}", shortened(&order.receipt)), &format!("{state}, attempts: {attempts}"));
    Ok(())
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
    let trace_id = stage.wait("the log's record of the first order", Duration::from_secs(10), || {
        let log = stage.node.log()?;
        let record =
            log.iter().find(|r| r["kind"] == "access" && r["request.id"] == order.request_id.as_str());
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
    let orders = stage.wait("the orders to arrive", Duration::from_secs(30), || {
        let orders = orders_at(&stage.origins[0]);
        let here = accepted.iter().filter(|order| orders.iter().any(|o| key(o) == order.key)).count();
        Ok(if here == ORDERS { Ok(orders) } else { Err(format!("{here} of {ORDERS}")) })
    })?;
    let size: usize = accepted.iter().map(|order| order.body.len()).sum();
    stage.print.detail(&format!(
        "{ORDERS} orders, {} KiB, in {} deliveries, all there {:.1} s after the origin came back",
        size >> 10,
        orders.len(),
        began.elapsed().as_secs_f64()
    ));
    let is_same =
        |order: &&Accepted| orders.iter().filter(|o| key(o) == order.key).all(|o| o.body == order.body);
    let whole = accepted.iter().filter(is_same).count();
    stage.claim(
        "every accepted order arrived, byte for byte",
        whole == ORDERS,
        format!("{ORDERS} orders with the body that was sent"),
        format!("{whole} of them"),
    )?;
    let sent = |account: &str| -> Vec<&str> {
        accepted.iter().filter(|o| o.account == account).map(|o| o.key.as_str()).collect()
    };
    let came = |account: &str| {
        let mut keys: Vec<&str> = Vec::new();
        for order in orders.iter().filter(|o| o.headers.get("x-account") == Some(account)) {
            // A delivery that was repeated counts where it came first.
            if !keys.contains(&key(order)) {
                keys.push(key(order));
            }
        }
        keys
    };
    let wrong = (0..ACCOUNTS).map(|n| n.to_string()).find(|account| came(account) != sent(account));
    stage.claim(
        format!("the orders of each of {ACCOUNTS} accounts arrived in the order in which they were accepted"),
        wrong.is_none(),
        "the order of acceptance for each account",
        wrong.map_or_else(String::new, |account| format!("account {account}: {:?}", came(&account))),
    )
}

/// The orders that came whole, in the order in which they came.
fn orders_at(origin: &Origin) -> Vec<Arc<Recorded>> {
    let mut requests = origin.requests();
    requests.retain(|r| r.whole && r.method == "POST" && r.target == "/orders");
    requests
}

fn key(order: &Recorded) -> &str {
    order.headers.get("idempotency-key").unwrap_or_default()
}

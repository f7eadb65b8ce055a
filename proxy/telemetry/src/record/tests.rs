//! Holds the serialiser, the table of fields and the reference page against each other.

use std::time::{Duration, UNIX_EPOCH};

use http::{Method, Version, uri::PathAndQuery};
use serde_json::json;

use super::*;
use crate::{
    Attempt, FieldRow, FilterRun, Level, RequestId, Sampler, Verdict,
    transaction::tests::{attempt, bare_transaction, full_delivery, full_transaction},
};

fn parsed(line: &[u8]) -> Value {
    assert_eq!(line.iter().position(|b| *b == b'\n'), Some(line.len() - 1), "one record is one line");
    serde_json::from_slice(line).unwrap()
}

fn written(write: impl FnOnce(&mut Records, &mut Vec<u8>)) -> Value {
    let mut line = vec![];
    write(&mut Records::new(), &mut line);
    parsed(&line)
}

fn access(tx: &Transaction) -> Value {
    written(|records, out| records.access(out, tx))
}

fn guest(trace: &TraceContext, message: &str, cut_bytes: u64) -> Value {
    let guest = GuestLog {
        at: UNIX_EPOCH,
        tenant: "acme",
        revision: 3,
        trace,
        request_id: RequestId::at(UNIX_EPOCH),
        filter: "router",
        level: Level::Warn,
        message,
        cut_bytes,
    };
    written(|records, out| records.guest(out, &guest))
}

fn event(fields: Value) -> Value {
    written(|records, out| records.event(out, UNIX_EPOCH, "node.degraded", fields))
}

/// Records of each kind with everything that they can have, and with nothing that they need not have.
fn examples() -> Vec<(RecordKind, Vec<Value>, Value)> {
    let trace = TraceContext::start(None, false, &Sampler::ALWAYS);
    // A run that decided and one that failed: no single record has both.
    let decided = full_transaction();
    let mut failed = full_transaction();
    failed.filters.push(FilterRun { outcome: "filter-timeout", verdict: None, ..decided.filters[0].clone() });
    let mut bare_delivery = full_delivery();
    (bare_delivery.status, bare_delivery.error) = (None, None);
    bare_delivery.attempts.clear();
    let delivery = |d: &DeliverySpan| written(|records, out| records.delivery(out, d));
    let about_all = json!({
        "tenant.id": "acme", "beamline.revision": 3, "upstream": "orders", "error.type": "connect-refused", "more": [1]
    });
    vec![
        (RecordKind::Access, vec![access(&decided), access(&failed)], access(&bare_transaction())),
        (RecordKind::Delivery, vec![delivery(&full_delivery())], delivery(&bare_delivery)),
        (RecordKind::Event, vec![event(about_all)], event(Value::Null)),
        (RecordKind::Guest, vec![guest(&trace, "hello", 7)], guest(&trace, "hello", 0)),
    ]
}

fn keys(record: &Value) -> Vec<&str> {
    record.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn every_field_that_is_written_stands_in_the_table_with_its_type() {
    for (kind, full, bare) in examples() {
        for record in full.iter().chain([&bare]) {
            assert_eq!(record["kind"], kind.as_str());
            for (name, value) in record.as_object().unwrap() {
                let row = FIELDS.iter().find(|row| row.name == name && row.is_in(kind));
                let row = row.unwrap_or_else(|| panic!("{name} of {kind:?} is not in FIELDS"));
                assert!(row.ty.holds(value), "{name} of {kind:?} is {value}, not a {:?}", row.ty);
            }
        }
    }
}

#[test]
fn every_field_of_the_table_is_written_when_it_says() {
    for (kind, full, bare) in examples() {
        for row in FIELDS.iter().filter(|row| row.is_in(kind)) {
            assert!(
                full.iter().any(|record| record.get(row.name).is_some()),
                "{kind:?} never has {}",
                row.name
            );
        }
        let always: Vec<_> =
            FIELDS.iter().filter(|row| row.always.contains(&kind)).map(|row| row.name).collect();
        let mut expected = always.clone();
        expected.sort_unstable();
        assert_eq!(keys(&bare), expected, "{kind:?} without what it need not have");
    }
}

#[test]
fn the_table_is_consistent_in_itself() {
    for (i, row) in FIELDS.iter().enumerate() {
        assert!(FIELDS[..i].iter().all(|before| before.name != row.name), "{} stands twice", row.name);
        assert!(row.always.iter().all(|kind| !row.sometimes.contains(kind)), "{}", row.name);
        assert_eq!(row.when.is_empty(), row.sometimes.is_empty(), "{}", row.name);
        assert!(row.meaning.ends_with('.') && !row.meaning.contains('|'), "{}", row.name);
    }
}

#[test]
fn fields_stand_in_the_order_of_the_table() {
    let mut line = vec![];
    Records::new().access(&mut line, &full_transaction());
    let text = String::from_utf8(line).unwrap();
    let places: Vec<_> = FIELDS.iter().filter_map(|row| text.find(&format!("\"{}\":", row.name))).collect();
    assert!(places.is_sorted(), "{text}");
}

#[test]
fn an_access_record_says_what_happened() {
    let mut tx = full_transaction();
    tx.started.wall = UNIX_EPOCH + Duration::from_micros(1_767_225_599_123_456);
    tx.version = Version::HTTP_2;
    let record = access(&tx);
    for (name, expected) in [
        ("timestamp", json!("2025-12-31T23:59:59.123456Z")),
        ("tenant.id", json!("acme")),
        ("trace_id", json!(tx.trace.trace_id.to_string())),
        ("span_id", json!(tx.trace.span_id.to_string())),
        ("trace_flags", json!("03")),
        ("request.id", json!(tx.request_id.to_string())),
        ("http.request.method", json!("POST")),
        ("http.route", json!("orders")),
        ("url.path", json!("/orders/7")),
        ("server.address", json!("acme.test")),
        ("client.address", json!("192.0.2.7")),
        ("network.protocol.version", json!("2")),
        ("http.response.status_code", json!(202)),
        ("http.request.body.size", json!(120)),
        ("http.response.body.size", json!(17)),
        ("duration_ms", json!(12.345)),
        ("verdict", json!("route")),
        ("beamline.revision", json!(3)),
        ("upstream", json!("orders")),
        ("error.type", json!("upstream-unavailable")),
        ("beamline.filter.name", json!("router")),
        ("beamline.filters.duration_ms", json!(0.25)),
        ("beamline.upstream.peer", json!("[2001:db8::1]:9001")),
        ("beamline.upstream.attempts", json!(2)),
        ("beamline.upstream.duration_ms", json!(4.0)),
        ("beamline.queue.record_id", json!("record-1")),
    ] {
        assert_eq!(record[name], expected, "{name}");
    }
}

#[test]
fn a_filter_that_let_the_request_pass_is_not_named() {
    let mut tx = full_transaction();
    tx.filters[0].verdict = Some(Verdict::Next);
    assert!(access(&tx).get("beamline.filter.name").is_none());
}

#[test]
fn a_filter_that_failed_is_named_with_how() {
    let mut tx = full_transaction();
    tx.filters[0] = FilterRun { outcome: "filter-trap", verdict: None, ..tx.filters[0].clone() };
    let record = access(&tx);
    assert_eq!(record["beamline.filter.name"], "router");
    assert_eq!(record["beamline.filter.outcome"], "filter-trap");
}

#[test]
fn hostile_text_stays_inside_its_field() {
    let hostile = "a\"},{\"kind\":\"event\"\r\n\u{1b}[31m\\\u{7f}\u{2028}";
    let mut tx = full_transaction();
    tx.host = hostile.to_owned();
    tx.tenant = Some(hostile.into());
    let mut line = vec![];
    Records::new().access(&mut line, &tx);
    assert!(line[..line.len() - 1].iter().all(|b| *b >= 0x20 && *b != 0x7f));
    let record = parsed(&line);
    assert_eq!((&record["server.address"], &record["tenant.id"]), (&json!(hostile), &json!(hostile)));
    assert_eq!(record["kind"], "access");
    assert_eq!(guest(&tx.trace, hostile, 0)["body"], hostile);
    assert_eq!(event(json!({hostile: hostile}))["attributes"][hostile], hostile);
}

#[test]
fn no_record_tells_a_query_or_the_secret_of_a_receipt() {
    let secret = "/.well-known/beamline/requests/rid.SECRET?also=SECRET";
    let mut tx = full_transaction();
    tx.path = PathAndQuery::from_static(secret);
    let delivery = DeliverySpan { target: "/pay?card=SECRET".to_owned(), ..full_delivery() };
    for record in [
        access(&tx),
        written(|records, out| records.delivery(out, &delivery)),
        guest(&tx.trace, &format!("asked for {secret}"), 0),
        event(json!({"path": secret, "note": secret, "token": "SECRET"})),
    ] {
        assert!(!record.to_string().contains("SECRET"), "{record}");
    }
    assert_eq!(access(&tx)["url.path"], "/.well-known/beamline/requests/rid.…");
}

#[test]
fn what_a_client_can_make_long_is_cut() {
    let mut tx = full_transaction();
    tx.path = format!("/{}", "p".repeat(60_000)).parse().unwrap();
    tx.host = "h".repeat(60_000);
    tx.method = Method::from_bytes(&[b'M'; 60_000]).unwrap();
    let mut line = vec![];
    Records::new().access(&mut line, &tx);
    assert!(line.len() < 4096, "{} bytes", line.len());
    assert!(parsed(&line)["url.path"].as_str().unwrap().ends_with("p…"));
}

#[test]
fn an_event_has_known_fields_at_the_top_and_others_below() {
    let record = event(json!({"tenant.id": "acme", "upstream": 7, "reasons": ["disk"]}));
    assert_eq!(record["tenant.id"], "acme");
    assert_eq!(
        record["attributes"],
        json!({"upstream": 7, "reasons": ["disk"]}),
        "a field of a wrong type stays below"
    );
    assert_eq!(event(json!("text"))["attributes"], json!({"value": "text"}));
}

#[test]
fn an_event_that_is_too_large_says_what_it_left_out() {
    let record = event(json!({"diff": "x".repeat(bounds::EVENT_ATTRIBUTES)}));
    assert_eq!(record["attributes"], json!({"left_out_bytes": bounds::EVENT_ATTRIBUTES + 11}));
}

#[test]
fn a_client_that_speaks_ipv4_over_an_ipv6_socket_is_told_by_its_ipv4_address() {
    let mut tx = bare_transaction();
    tx.client = "[::ffff:192.0.2.7]:5".parse().unwrap();
    tx.attempts = vec![Attempt { peer: "[::ffff:192.0.2.8]:80".parse().unwrap(), ..attempt(None) }];
    let record = access(&tx);
    assert_eq!(
        (&record["client.address"], &record["beamline.upstream.peer"]),
        (&json!("192.0.2.7"), &json!("192.0.2.8:80"))
    );
}

#[test]
fn the_reference_page_is_the_table() {
    let kinds = |kinds: &[RecordKind]| kinds.iter().map(|k| k.as_str()).collect::<Vec<_>>().join(", ");
    let table: String = FIELDS
        .iter()
        .map(|row| {
            let FieldRow { name, ty, always, sometimes, when, meaning } = row;
            format!(
                "| `{name}` | {} | {} | {} | {when} | {meaning} |\n",
                ty.as_str(),
                kinds(always),
                kinds(sometimes)
            )
        })
        .collect();
    crate::reference::assert_page_has("logs.md", "fields", &table);
}

//! Holds the spans, the table of attributes and the reference page against each other.

use std::collections::BTreeSet;

use super::*;
use crate::{
    Messaging, RemoteContext, Sampler, SpanId, TraceId,
    transaction::tests::{attempt, bare_transaction, full_delivery, full_transaction},
};

fn built(source: SpanSource) -> Vec<Span> {
    let count = source.count();
    let mut spans = vec![];
    source.build(&mut spans);
    assert_eq!(spans.len(), count, "the bound counts what is built");
    spans
}

fn of_kind(spans: &[Span], kind: SpanKind) -> Vec<&Span> {
    spans.iter().filter(|s| s.kind() == kind).collect()
}

fn attribute_of<'a>(span: &'a Span, name: &str) -> Option<&'a Value> {
    span.attributes.iter().find(|a| a.key == name)?.value.as_ref()?.value.as_ref()
}

fn string_of<'a>(span: &'a Span, name: &str) -> &'a str {
    match attribute_of(span, name) {
        Some(Value::StringValue(text)) => text,
        other => panic!("{name} is {other:?}"),
    }
}

fn failed(span: &Span) -> bool {
    span.status.as_ref().unwrap().code() == StatusCode::Error
}

/// The kind in [`SPANS`]: each row has another, so a span's kind tells its row.
fn row_of(span: &Span) -> &'static SpanRow {
    let kind = span.kind().as_str_name().strip_prefix("SPAN_KIND_").unwrap();
    SPANS.iter().find(|row| row.kind == kind).unwrap_or_else(|| panic!("no row for {kind}"))
}

/// An attempt that was a message to `acme.orders`.
fn message() -> Attempt {
    let messaging = Messaging { operation: "publish", destination: "acme.orders".into() };
    Attempt { messaging: Some(messaging), ..attempt(Some(202)) }
}

fn every_span() -> Vec<Span> {
    let mut failing = full_transaction();
    failing.filters[0].outcome = "filter-trap";
    failing.attempts.push(message());
    let mut spans = built(SpanSource::request(full_transaction()));
    spans.extend(built(SpanSource::request(failing)));
    spans.extend(built(SpanSource::request(bare_transaction())));
    spans.extend(built(SpanSource::delivery(full_delivery())));
    spans
}

#[test]
fn every_attribute_stands_in_the_table_with_its_type() {
    for span in every_span() {
        let row = row_of(&span);
        for attribute in &span.attributes {
            let known = row.attributes.iter().find(|a| a.name == attribute.key);
            let known =
                known.unwrap_or_else(|| panic!("{} of a {} span is not in SPANS", attribute.key, row.role));
            let ty = match attribute.value.as_ref().unwrap().value.as_ref().unwrap() {
                Value::StringValue(_) => "string",
                Value::IntValue(_) => "int",
                Value::DoubleValue(_) => "double",
                other => panic!("{other:?}"),
            };
            assert_eq!(known.ty, ty, "{}", attribute.key);
        }
    }
}

#[test]
fn every_attribute_of_the_table_is_written() {
    let spans = every_span();
    for row in SPANS {
        let of_row: Vec<_> = spans.iter().filter(|s| row_of(s).role == row.role).collect();
        for attribute in row.attributes {
            let has = |span: &&&Span| attribute_of(span, attribute.name).is_some();
            let with = of_row.iter().filter(has).count();
            assert!(with > 0, "no {} span has {}", row.role, attribute.name);
            assert!(
                !attribute.when.is_empty() || with == of_row.len(),
                "not every {} span has {}",
                row.role,
                attribute.name
            );
        }
    }
}

#[test]
fn a_message_is_a_client_span_named_by_what_it_does_and_its_subject() {
    let mut tx = full_transaction();
    tx.attempts = vec![message()];
    let spans = built(SpanSource::request(tx));
    let client = of_kind(&spans, SpanKind::Client)[0];
    assert_eq!(client.name, "publish acme.orders");
    assert_eq!(string_of(client, "messaging.system"), "nats");
    assert_eq!(string_of(client, "messaging.destination.name"), "acme.orders");
}

#[test]
fn a_request_is_one_tree_below_its_server_span() {
    let tx = full_transaction();
    let (trace, producer) = (tx.trace, tx.queued.as_ref().unwrap().producer_span);
    let attempts: Vec<_> = tx.attempts.iter().map(|a| a.span_id.as_bytes().to_vec()).collect();
    let spans = built(SpanSource::request(tx));
    let server = of_kind(&spans, SpanKind::Server)[0];
    assert_eq!(server.span_id, trace.span_id.as_bytes());
    assert_eq!(server.name, "POST orders");
    assert!(server.parent_span_id.is_empty() && server.links.is_empty());
    for span in &spans {
        assert_eq!(span.trace_id, trace.trace_id.as_bytes());
        assert!(span.span_id == server.span_id || span.parent_span_id == server.span_id, "{}", span.name);
        assert!(span.start_time_unix_nano >= server.start_time_unix_nano);
        assert!(span.end_time_unix_nano <= server.end_time_unix_nano, "{}", span.name);
    }
    assert_eq!(spans.iter().map(|s| &s.span_id).collect::<BTreeSet<_>>().len(), spans.len());
    let client: Vec<_> = of_kind(&spans, SpanKind::Client).iter().map(|s| s.span_id.clone()).collect();
    assert_eq!(client, attempts, "the ids that upstreams were told");
    let enqueue = of_kind(&spans, SpanKind::Producer)[0];
    assert_eq!(
        (enqueue.name.as_str(), &enqueue.span_id[..]),
        ("enqueue acme/orders", &producer.as_bytes()[..])
    );
    assert_eq!(of_kind(&spans, SpanKind::Internal)[0].name, "filter router");
}

#[test]
fn a_delivery_hangs_below_its_producer_and_links_to_it() {
    let delivery = full_delivery();
    let (trace, producer) = (delivery.trace, delivery.trace.parent.unwrap());
    let spans = built(SpanSource::delivery(delivery));
    let consumer = of_kind(&spans, SpanKind::Consumer)[0];
    assert_eq!(consumer.name, "deliver acme/orders");
    assert_eq!(
        (&consumer.trace_id[..], &consumer.parent_span_id[..]),
        (&trace.trace_id.as_bytes()[..], &producer.as_bytes()[..])
    );
    assert_eq!(
        (&consumer.links[0].trace_id[..], &consumer.links[0].span_id[..]),
        (&trace.trace_id.as_bytes()[..], &producer.as_bytes()[..])
    );
    assert_eq!(of_kind(&spans, SpanKind::Client)[0].parent_span_id, consumer.span_id);
    assert!(failed(consumer), "it is to be tried again");
    let taken =
        DeliverySpan { outcome: DeliverySpan::DELIVERED, error: None, status: Some(200), ..full_delivery() };
    let spans = built(SpanSource::delivery(taken));
    let consumer = of_kind(&spans, SpanKind::Consumer)[0];
    assert!(!failed(consumer) && attribute_of(consumer, "error.type").is_none());
}

#[test]
fn a_remote_sender_is_a_parent_or_a_link_and_known_as_remote() {
    let remote = RemoteContext {
        trace_id: TraceId::random(),
        span_id: SpanId::random(),
        sampled: true,
        random: false,
    };
    let mut tx = bare_transaction();
    tx.trace.link = Some(remote);
    let linked = &built(SpanSource::request(tx))[0];
    assert_eq!(linked.links[0].span_id, remote.span_id.as_bytes());
    assert_eq!(linked.links[0].flags, 0x301);
    assert_eq!(linked.flags, 0x103);

    let mut tx = bare_transaction();
    tx.trace =
        TraceContext { parent: Some(remote.span_id), ..TraceContext::start(None, false, &Sampler::ALWAYS) };
    let child = &built(SpanSource::request(tx))[0];
    assert_eq!(child.parent_span_id, remote.span_id.as_bytes());
    assert_eq!(child.flags, 0x303);
}

#[test]
fn a_server_span_fails_with_5xx_or_no_answer_and_a_client_span_with_4xx_too() {
    for (status, server_fails, client_fails) in
        [(Some(200), false, false), (Some(404), false, true), (Some(503), true, true), (None, true, true)]
    {
        let mut tx = bare_transaction();
        tx.status = status;
        tx.attempts = vec![attempt(status)];
        let spans = built(SpanSource::request(tx));
        let (server, client) = (&spans[0], of_kind(&spans, SpanKind::Client)[0]);
        assert_eq!((failed(server), failed(client)), (server_fails, client_fails), "{status:?}");
    }
    let mut tx = bare_transaction();
    tx.status = Some(502);
    assert_eq!(string_of(&built(SpanSource::request(tx))[0], "error.type"), "502");
}

#[test]
fn what_a_client_can_make_many_or_long_does_not_name_spans_nor_fill_memory() {
    let mut tx = bare_transaction();
    tx.method = Method::from_bytes(&[b'M'; 9_000]).unwrap();
    tx.path = format!("/{}?{}", "p".repeat(60_000), "q".repeat(1000)).parse().unwrap();
    tx.host = "h".repeat(60_000);
    let span = &built(SpanSource::request(tx))[0];
    assert_eq!((span.name.as_str(), string_of(span, "http.request.method")), ("HTTP", "_OTHER"));
    assert!(string_of(span, "url.path").len() <= bounds::PATH + "…".len());
    assert!(string_of(span, "server.address").len() <= bounds::HOST);
    let delivery = DeliverySpan { method: "M".repeat(9_000), ..full_delivery() };
    assert_eq!(string_of(&built(SpanSource::delivery(delivery))[0], "http.request.method"), "_OTHER");
}

#[test]
fn no_span_tells_a_query_or_the_secret_of_a_receipt() {
    let mut tx = full_transaction();
    tx.path = "/.well-known/beamline/requests/rid.SECRET?SECRET".parse().unwrap();
    let delivery = DeliverySpan { target: "/pay?card=SECRET".to_owned(), ..full_delivery() };
    for source in [SpanSource::request(tx), SpanSource::delivery(delivery)] {
        let spans = built(source);
        assert!(!format!("{spans:?}").contains("SECRET"));
    }
}

#[test]
fn the_reference_page_is_the_tables() {
    let rows = |attributes: &[AttributeRow]| -> String {
        let row = |a: &AttributeRow| format!("| `{}` | {} | {} | {} |\n", a.name, a.ty, a.when, a.meaning);
        attributes.iter().map(row).collect()
    };
    let spans: String = SPANS
        .iter()
        .map(|s| {
            let SpanRow { role, kind, name, parent, links, error, attributes: _ } = s;
            format!("| {role} | `{kind}` | {name} | {parent} | {links} | {error} |\n")
        })
        .collect();
    crate::reference::assert_page_has("traces.md", "spans", &spans);
    crate::reference::assert_page_has("traces.md", "resource", &rows(RESOURCE));
    for span in SPANS {
        crate::reference::assert_page_has("traces.md", span.role, &rows(span.attributes));
    }
}

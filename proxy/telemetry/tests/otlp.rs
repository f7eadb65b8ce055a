//! Telemetry as the node uses it, with collectors on real sockets: there, absent, slow, refusing.

#![allow(clippy::unwrap_used, reason = "in tests, a panic is the report")]

mod collector;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use beamline_telemetry::{
    Attempt, DeliverySpan, Drops, ExportTuning, FilterRun, LogTarget, QueuedRef, Sampler, Settings, SpanId,
    Started, Telemetry, TraceContext, Transaction, Verdict, bounds,
};
use collector::{Answer, Collector};
use http::{Method, uri::PathAndQuery};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Handle;

/// Longer than anything here takes: only what hangs reaches it.
const PATIENCE: Duration = Duration::from_secs(20);

struct Node {
    telemetry: Telemetry,
    folder: TempDir,
}

impl Node {
    /// A node that exports to `collector`, with times short enough for a test.
    fn open(collector: SocketAddr, change: impl FnOnce(&mut Settings)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = Settings {
            log: LogTarget::File(folder.path().join("log.jsonl")),
            otlp_endpoint: Some(format!("http://{collector}").parse().unwrap()),
            node_id: "node-a".to_owned(),
            export: ExportTuning {
                batch_delay: Duration::from_millis(20),
                timeout: Duration::from_secs(10),
                attempts: 3,
                backoff: Duration::from_millis(5),
                backoff_max: Duration::from_millis(20),
            },
            ..Settings::default()
        };
        change(&mut settings);
        Self { telemetry: Telemetry::open(settings, &Handle::current()).unwrap(), folder }
    }

    fn transaction(&self) -> Transaction {
        let trace = TraceContext::start(None, false, &self.telemetry.sampler());
        let path = PathAndQuery::from_static("/orders?card=4111");
        let client = "192.0.2.7:4000".parse().unwrap();
        let mut tx =
            Transaction::new(Started::now(), trace, Method::POST, "acme.test".to_owned(), path, client);
        (tx.tenant, tx.status) = (Some("acme".into()), Some(200));
        tx
    }

    /// Finishes `n` bare requests on a worker of their own: one span each.
    fn finish(&self, n: usize) {
        let worker = self.telemetry.worker();
        for _ in 0..n {
            worker.finish(self.transaction());
        }
    }

    fn log(&self) -> Vec<Value> {
        let path: PathBuf = self.folder.path().join("log.jsonl");
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn events(&self) -> Vec<Value> {
        self.log().into_iter().filter(|r| r["kind"] == "event").collect()
    }
}

#[tokio::test]
async fn a_request_and_its_delivery_arrive_as_one_tree() {
    let mut collector = Collector::start(&[]);
    let node = Node::open(collector.address, |_| {});
    let (name, producer): (Arc<str>, _) = ("orders".into(), SpanId::random());
    let ms = Duration::from_millis;
    let attempt = |status, error| Attempt {
        span_id: SpanId::random(),
        peer: "127.0.0.1:9001".parse().unwrap(),
        started: ms(1),
        duration: ms(2),
        status,
        error,
        resend_count: 0,
        messaging: None,
    };
    let mut tx = node.transaction();
    tx.route = Some(Arc::clone(&name));
    tx.upstream = Some(Arc::clone(&name));
    tx.filters = vec![FilterRun {
        name: "router".into(),
        phase: FilterRun::REQUEST,
        module: "sha256:00".into(),
        started: ms(0),
        duration: ms(1),
        cpu: ms(1),
        outcome: FilterRun::OK,
        verdict: Some(Verdict::Route),
    }];
    tx.attempts = vec![attempt(None, Some("connect-refused"))];
    tx.queued = Some(QueuedRef {
        record_id: "r1".to_owned(),
        producer_span: producer,
        started: ms(3),
        duration: ms(1),
    });
    let (trace, request_id) = (tx.trace, tx.request_id.to_string());
    let worker = node.telemetry.worker();
    worker.finish(tx);
    worker.flush();
    collector.until(|posts| !posts.is_empty()).await;

    node.telemetry.worker().delivery(DeliverySpan {
        started: Started::now(),
        duration: ms(4),
        trace: TraceContext::resume(trace.trace_id, producer, trace.sampled),
        tenant: "acme".into(),
        upstream: name,
        record_id: "r1".to_owned(),
        request_id,
        method: "POST".to_owned(),
        target: "/orders?card=4111".to_owned(),
        attempt: 1,
        accepted: SystemTime::now(),
        outcome: DeliverySpan::DELIVERED,
        status: Some(201),
        error: None,
        attempts: vec![attempt(Some(201), None)],
    });
    assert!(node.telemetry.flush(PATIENCE).await);

    let spans = collector.spans();
    let id_of = |kind: SpanKind| spans.iter().find(|s| s.kind() == kind).unwrap().span_id.clone();
    let tree: BTreeSet<_> = spans.iter().map(|s| (s.name.as_str(), s.parent_span_id.clone())).collect();
    let (server, producer, consumer) =
        (id_of(SpanKind::Server), id_of(SpanKind::Producer), id_of(SpanKind::Consumer));
    let expected = BTreeSet::from([
        ("POST orders", vec![]),
        ("filter router", server.clone()),
        ("POST", server.clone()),
        ("enqueue acme/orders", server),
        ("deliver acme/orders", producer),
        ("POST", consumer),
    ]);
    assert_eq!(tree, expected);
    assert!(spans.iter().all(|s| s.trace_id == trace.trace_id.as_bytes()), "all in one trace");

    let post = &collector.posts()[0];
    assert_eq!((post.path.as_str(), post.content_type.as_str()), ("/v1/traces", "application/x-protobuf"));
    assert_eq!(post.resource_attribute("service.name"), Some("beamline"));
    assert_eq!(post.resource_attribute("service.instance.id"), Some("node-a"));
    assert!(!format!("{:?}", collector.posts()).contains("4111"), "a query left the node");
    let kinds: Vec<_> = node.log().iter().map(|r| r["kind"].clone()).collect();
    assert_eq!(kinds, ["access", "delivery"]);
    assert!(node.log().iter().all(|r| r["trace_id"] == trace.trace_id.to_string()));
}

#[tokio::test]
async fn what_the_sampler_leaves_is_logged_and_not_exported() {
    let collector = Collector::start(&[]);
    let node = Node::open(collector.address, |s| s.sampler = Sampler::NEVER);
    node.finish(10);
    assert!(node.telemetry.flush(PATIENCE).await);
    assert_eq!((node.log().len(), collector.posts().len()), (10, 0));
}

#[tokio::test]
async fn batches_are_bounded_and_lose_nothing() {
    let collector = Collector::start(&[]);
    let node = Node::open(collector.address, |_| {});
    node.finish(3_000);
    assert!(node.telemetry.flush(PATIENCE).await);
    let sizes: Vec<_> = collector.posts().iter().map(|p| p.spans().len()).collect();
    assert!(sizes.iter().all(|n| *n <= bounds::SPAN_BATCH), "{sizes:?}");
    let ids: BTreeSet<_> = collector.spans().into_iter().map(|s| s.span_id).collect();
    assert_eq!(ids.len(), 3_000);
    assert_eq!(node.telemetry.dropped(), Drops::default());
}

#[tokio::test]
async fn a_batch_that_is_not_full_goes_out_by_itself_and_so_does_what_a_full_one_left() {
    let mut collector = Collector::start(&[]);
    let node = Node::open(collector.address, |_| {});
    node.finish(bounds::SPAN_BATCH + 1);
    let count = |posts: &Vec<collector::Post>| posts.iter().map(|p| p.spans().len()).sum::<usize>();
    collector.until(|posts| count(posts) == bounds::SPAN_BATCH + 1).await;
}

#[tokio::test]
async fn a_collector_that_asks_to_try_again_gets_the_same_batch_again() {
    let collector = Collector::start(&[Answer::TryAgain, Answer::Status(429)]);
    let node = Node::open(collector.address, |_| {});
    node.finish(5);
    assert!(node.telemetry.flush(PATIENCE).await);
    let posts = collector.posts();
    assert_eq!(posts.iter().map(|p| p.taken).collect::<Vec<_>>(), [false, false, true]);
    assert!(posts.iter().all(|p| p.request == posts[0].request));
    assert_eq!((node.telemetry.dropped(), node.events().len()), (Drops::default(), 0));
}

#[tokio::test]
async fn a_collector_that_refuses_for_good_is_not_asked_again() {
    let collector = Collector::start(&[Answer::Status(400)]);
    let node = Node::open(collector.address, |_| {});
    node.finish(5);
    assert!(node.telemetry.flush(PATIENCE).await);
    assert_eq!(collector.posts().len(), 1);
    assert_eq!(node.telemetry.dropped(), Drops { records: 0, spans: 5 });
    let events = node.events();
    let event = events.iter().find(|e| e["event.name"] == "telemetry.export.failing").unwrap();
    assert_eq!(event["attributes"]["reason"], "status 400 Bad Request");
}

#[tokio::test]
async fn spans_that_the_collector_rejects_are_counted() {
    let collector = Collector::start(&[Answer::Rejects(2)]);
    let node = Node::open(collector.address, |_| {});
    node.finish(5);
    assert!(node.telemetry.flush(PATIENCE).await);
    assert_eq!(node.telemetry.dropped(), Drops { records: 0, spans: 2 });
}

#[tokio::test]
async fn a_collector_that_is_not_there_is_told_once_and_so_is_its_return() {
    let (socket, address) = Collector::absent();
    let node = Node::open(address, |_| {});
    for _ in 0..2 {
        node.finish(5);
        assert!(node.telemetry.flush(PATIENCE).await);
    }
    assert_eq!(node.telemetry.dropped(), Drops { records: 0, spans: 10 });
    assert!(node.telemetry.export_failing());
    let collector = Collector::start_at(socket, &[]);
    node.finish(5);
    assert!(node.telemetry.flush(PATIENCE).await);
    assert_eq!(collector.spans().len(), 5);
    assert!(!node.telemetry.export_failing());
    assert_eq!(node.telemetry.dropped(), Drops { records: 0, spans: 10 });

    let events = node.events();
    let changes: Vec<_> = events
        .iter()
        .map(|e| e["event.name"].as_str().unwrap())
        .filter(|n| n.starts_with("telemetry.export"))
        .collect();
    assert_eq!(changes, ["telemetry.export.failing", "telemetry.export.recovered"]);
    let told: u64 = events.iter().filter_map(|e| e["attributes"]["spans"].as_u64()).sum();
    assert_eq!(told, 10, "dropped spans are told: {events:?}");
    assert_eq!(node.log().iter().filter(|r| r["kind"] == "access").count(), 15, "the log lacks nothing");
}

#[tokio::test]
async fn a_collector_that_hangs_delays_nobody_and_fills_no_memory() {
    let mut collector = Collector::start(&[Answer::Hang; 64]);
    let node = Node::open(collector.address, |s| s.export.timeout = Duration::from_secs(3600));
    node.finish(1);
    collector.until(|posts| posts.len() == 1).await;

    // Four times what may wait: `finish` is not async, it returns though the exporter is stuck.
    let offered = 4 * bounds::SPAN_QUEUE;
    let begun = Instant::now();
    node.finish(offered);
    let took = begun.elapsed();
    assert!(took < PATIENCE, "{took:?}");
    let lost = node.telemetry.dropped().spans;
    let kept = offered as u64 + 1 - lost;
    assert!(kept <= bounds::SPAN_QUEUE as u64, "{kept} spans wait");
    assert!(kept > bounds::SPAN_QUEUE as u64 / 2, "only {kept} spans wait");
    // The exporter's side of the flush does not come; the deadline holds, and the log has what it did not count.
    assert!(!node.telemetry.flush(Duration::from_secs(1)).await);
    let logged = node.log().iter().filter(|r| r["kind"] == "access").count() as u64;
    assert_eq!(logged + node.telemetry.dropped().records, offered as u64 + 1);
}

#[tokio::test]
async fn a_collector_that_hung_for_a_time_gets_what_waited() {
    let collector = Collector::start(&[Answer::Hang]);
    let node = Node::open(collector.address, |s| s.export.timeout = Duration::from_millis(50));
    node.finish(600);
    assert!(node.telemetry.flush(PATIENCE).await);
    assert_eq!((collector.spans().len(), node.telemetry.dropped()), (600, Drops::default()));
}

#[tokio::test]
async fn when_all_parts_are_gone_what_they_had_is_still_exported() {
    let mut collector = Collector::start(&[]);
    let node = Node::open(collector.address, |_| {});
    node.finish(3);
    let Node { telemetry, folder: _folder } = node;
    drop(telemetry);
    collector.until(|posts| posts.iter().map(|p| p.spans().len()).sum::<usize>() == 3).await;
}

#[test]
fn workers_on_threads_of_their_own_share_one_log_and_one_exporter() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let collector = Collector::start(&[]);
        let node = Node::open(collector.address, |_| {});
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| node.finish(1_000));
            }
        });
        assert!(node.telemetry.flush(PATIENCE).await);
        let requests: BTreeSet<_> = node.log().iter().map(|r| r["request.id"].to_string()).collect();
        assert_eq!((requests.len(), collector.spans().len()), (3_000, 3_000));
    });
}

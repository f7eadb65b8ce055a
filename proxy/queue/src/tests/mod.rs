//! The queue as a whole: real threads, real SQLite, real files. Each invariant of the crate has a test of its name.

mod accepting;
mod company;
mod crash;
mod delivering;
mod failing_disk;
mod faults;
mod hands;
mod keys;
mod responses;

use std::{
    cell::RefCell,
    collections::HashMap,
    future::{Future, ready},
    path::Path,
    pin::Pin,
    rc::Rc,
    time::Duration,
};

use beamline_model::{OnDead, RevisionId, TenantName, UpstreamName};
use bytes::Bytes;
use tempfile::TempDir;

use crate::*;

fn tenant() -> TenantName {
    "acme".parse().unwrap()
}

fn upstream() -> UpstreamName {
    "api".parse().unwrap()
}

/// Settings that mind no real disk's fullness.
fn settings(dir: &Path) -> Settings {
    Settings { min_free_disk: 0, ballast: 0, ..Settings::new(dir) }
}

fn open(dir: &TempDir) -> (Queue, Delivery) {
    Queue::open(settings(dir.path())).unwrap()
}

/// A request to `/n`, safe to repeat, with this body.
async fn record(queue: &Queue, n: usize, body: &[u8]) -> NewRecord {
    let mut buffer = queue.body(16 << 20);
    for piece in body.chunks(48 << 10) {
        buffer.push(Bytes::copy_from_slice(piece)).await.unwrap();
    }
    NewRecord {
        tenant: tenant(),
        upstream: upstream(),
        revision: RevisionId(7),
        method: "PUT".into(),
        target: format!("/{n}"),
        host: "acme.test".into(),
        headers: vec![("content-type".into(), b"text/plain".to_vec())],
        sealed: None,
        body: buffer,
        ordering_key: None,
        on_dead: OnDead::Continue,
        repeat_safe: true,
        delay: Duration::ZERO,
        expiry: Duration::from_secs(3600),
        claim: None,
        trace: TraceRef { trace_id: [1; 16], span_id: [2; 8], sampled: true },
        request_id: "r".into(),
    }
}

async fn accept(queue: &Queue, record: NewRecord) -> Accepted {
    let room = queue.reserve(&record.tenant, record.body.len(), Demand::Asked).unwrap();
    queue.enqueue(record, room).await.unwrap()
}

async fn try_accept(queue: &Queue, record: NewRecord) -> Result<Accepted, EnqueueError> {
    let room = queue.reserve(&record.tenant, record.body.len(), Demand::Asked)?;
    queue.enqueue(record, room).await
}

async fn state(queue: &Queue, accepted: &Accepted) -> State {
    view(queue, accepted).await.state
}

async fn view(queue: &Queue, accepted: &Accepted) -> ReceiptView {
    queue.receipt(&tenant(), &accepted.receipt.to_string()).await.unwrap().expect("the receipt is known")
}

fn ok() -> Outcome {
    Outcome::Answered { status: 200, retry_after: None, complete: true, keep: None }
}

fn body_files(dir: &TempDir) -> usize {
    std::fs::read_dir(dir.path().join("bodies")).unwrap().count()
}

type Answer = Pin<Box<dyn Future<Output = Outcome>>>;

/// An upstream that answers as a closure says, and notes what it got.
struct Origin<F> {
    answer: F,
    got: Rc<RefCell<Vec<Attempt>>>,
}

impl<F: Fn(&Attempt) -> Answer + 'static> Deliver for Origin<F> {
    fn deliver(&self, attempt: Attempt) -> impl Future<Output = Outcome> {
        let answer = (self.answer)(&attempt);
        self.got.borrow_mut().push(attempt);
        answer
    }

    fn in_flight_cap(&self, _: &TenantName, _: &UpstreamName) -> u32 {
        8
    }

    fn rules(&self, _: &TenantName, _: &UpstreamName) -> Rules {
        Rules::default()
    }
}

/// Delivers to an origin that answers as `answer` says, until `done`; returns the attempts in the order of their coming.
async fn deliver_until(
    delivery: Delivery,
    answer: impl Fn(&Attempt) -> Answer + 'static,
    done: impl Future<Output = ()>,
) -> Vec<Attempt> {
    let got = Rc::new(RefCell::new(Vec::new()));
    let origin = Origin { answer, got: Rc::clone(&got) };
    delivery.run(origin, done, Duration::from_secs(10)).await.unwrap();
    Rc::try_unwrap(got).expect("delivery has ended").into_inner()
}

fn now(outcome: Outcome) -> Answer {
    Box::pin(ready(outcome))
}

/// Waits until the queue's totals are as `wanted`, without a timer in the way of anything.
async fn until(queue: &Queue, wanted: impl Fn(Totals) -> bool) {
    while !wanted(queue.totals()) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn read(body: &AttemptBody) -> Vec<u8> {
    let mut reader = body.reader();
    let mut all = Vec::new();
    while let Some(piece) = reader.next_piece().unwrap() {
        all.extend_from_slice(&piece);
    }
    assert_eq!((reader.remaining(), all.len() as u64), (0, body.len()));
    all
}

fn by_target(attempts: &[Attempt]) -> HashMap<&str, usize> {
    attempts.iter().fold(HashMap::new(), |mut counts, attempt| {
        *counts.entry(&attempt.target[..]).or_default() += 1;
        counts
    })
}

//! The OTLP exporter: one task that turns what was sampled into spans and posts them in batches.
//!
//! Invariants:
//! - at most [`bounds::SPAN_QUEUE`] spans wait or are on their way; what comes on top is dropped and counted;
//! - nobody waits for the collector: whoever hands spans over does so without blocking;
//! - each span that is not acknowledged by the collector is counted as dropped, once.

use std::{
    fmt::Write as _,
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    trace::v1::Span,
};
use prost::Message as _;
use serde_json::json;
use thiserror::Error;
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot},
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    OtlpEndpoint, bounds,
    id::random_u64,
    log::Counters,
    spans::{self, SpanSource},
    telemetry::Events,
};

/// The exporter's times. The defaults suit a collector on this machine or in this network.
#[derive(Clone, Debug)]
pub struct ExportTuning {
    /// How long spans are gathered for a batch that is not full. 1 s by default.
    pub batch_delay: Duration,
    /// How long one post may take, from the connection to the answer's last byte. 10 s by default.
    pub timeout: Duration,
    /// How often a batch is posted before it is dropped. 4 by default.
    pub attempts: u32,
    /// The longest wait before the second post, doubled for each one after; the wait itself is a random part of it.
    /// 500 ms by default.
    pub backoff: Duration,
    /// The longest wait between two posts, whatever the collector's `Retry-After` asks for. 5 s by default.
    pub backoff_max: Duration,
}

impl Default for ExportTuning {
    fn default() -> Self {
        Self {
            batch_delay: Duration::from_secs(1),
            timeout: Duration::from_secs(10),
            attempts: 4,
            backoff: Duration::from_millis(500),
            backoff_max: Duration::from_secs(5),
        }
    }
}

/// Why a batch was not taken.
#[derive(Debug, Error)]
enum ExportError {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("no connection or a broken one: {0}")]
    Transport(String),
    #[error("status {status}")]
    Status { status: StatusCode, retry_after: Option<Duration> },
}

impl ExportError {
    /// Whether another post may be taken (OTLP/HTTP: 429, 502, 503 and 504, and what broke on the way).
    fn is_passing(&self) -> bool {
        match self {
            Self::Timeout(_) | Self::Transport(_) => true,
            Self::Status { status, .. } => matches!(status.as_u16(), 429 | 502..=504),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            Self::Timeout(_) | Self::Transport(_) => None,
        }
    }
}

enum Message {
    Spans(Vec<SpanSource>),
    Flush(oneshot::Sender<()>),
}

/// The sending side. Cheap to clone; the exporter ends when the last one is gone and its last batch is settled.
#[derive(Clone)]
pub(crate) struct SpanQueue {
    sender: mpsc::UnboundedSender<Message>,
    /// Spans that wait or are on their way. This, not the channel, is the bound.
    held: Arc<AtomicUsize>,
    counters: Arc<Counters>,
    failing: Arc<AtomicBool>,
}

impl SpanQueue {
    /// Starts the exporter on `runtime`, which needs its time and I/O drivers.
    pub(crate) fn start(
        endpoint: OtlpEndpoint,
        service_name: String,
        node_id: String,
        tuning: ExportTuning,
        events: Events,
        counters: Arc<Counters>,
        runtime: &Handle,
    ) -> Self {
        let (sender, inbox) = mpsc::unbounded_channel();
        let held = Arc::new(AtomicUsize::new(0));
        let failing = Arc::new(AtomicBool::new(false));
        let exporter = Exporter {
            endpoint,
            service_name,
            node_id,
            tuning,
            events,
            inbox,
            ready: Vec::new(),
            flushes: Vec::new(),
            held: Arc::clone(&held),
            counters: Arc::clone(&counters),
            failing: Arc::clone(&failing),
        };
        runtime.spawn(exporter.run());
        Self { sender, held, counters, failing }
    }

    /// Hands over what was sampled, or counts its spans as dropped where too many wait.
    pub(crate) fn push(&self, sources: Vec<SpanSource>) {
        let count: usize = sources.iter().map(SpanSource::count).sum();
        let fits = self.held.fetch_add(count, Ordering::Relaxed) + count <= bounds::SPAN_QUEUE;
        if !fits || self.sender.send(Message::Spans(sources)).is_err() {
            self.held.fetch_sub(count, Ordering::Relaxed);
            self.counters.spans.fetch_add(count as u64, Ordering::Relaxed);
        }
    }

    /// Whether the last batch was dropped.
    pub(crate) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// Returns when everything that was handed over before is exported or dropped. Cancel safe.
    pub(crate) async fn flush(&self) {
        let (ack, done) = oneshot::channel();
        if self.sender.send(Message::Flush(ack)).is_ok() {
            // An error means that the exporter is gone with its runtime: nothing is left to wait for.
            _ = done.await;
        }
    }
}

struct Exporter {
    endpoint: OtlpEndpoint,
    service_name: String,
    node_id: String,
    tuning: ExportTuning,
    events: Events,
    inbox: mpsc::UnboundedReceiver<Message>,
    /// Spans that are built and wait for a batch.
    ready: Vec<Span>,
    /// Who waits until all that was handed over before is settled.
    flushes: Vec<oneshot::Sender<()>>,
    held: Arc<AtomicUsize>,
    counters: Arc<Counters>,
    /// The last batch was dropped. Written here alone.
    failing: Arc<AtomicBool>,
}

type HttpClient = Client<HttpConnector, Full<Bytes>>;

impl Exporter {
    async fn run(mut self) {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(self.tuning.timeout));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(1).build(connector);
        loop {
            if self.ready.is_empty() {
                let Some(message) = self.inbox.recv().await else { return };
                self.take(message);
            }
            self.gather().await;
            // One batch; what is left goes with the next, unless somebody waits for all of it.
            loop {
                let rest = self.ready.split_off(self.ready.len().min(bounds::SPAN_BATCH));
                let batch = mem::replace(&mut self.ready, rest);
                if !batch.is_empty() {
                    self.export(&client, batch).await;
                }
                if self.ready.is_empty() || self.flushes.is_empty() {
                    break;
                }
            }
            for ack in self.flushes.drain(..) {
                // The one who asked may have given up.
                _ = ack.send(());
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Spans(sources) => sources.into_iter().for_each(|source| source.build(&mut self.ready)),
            Message::Flush(ack) => self.flushes.push(ack),
        }
    }

    /// Takes what comes until a batch is full, its time is over, somebody waits or no more can come.
    async fn gather(&mut self) {
        let end = Instant::now() + self.tuning.batch_delay;
        while self.ready.len() < bounds::SPAN_BATCH && self.flushes.is_empty() {
            tokio::select! {
                message = self.inbox.recv() => match message {
                    Some(message) => self.take(message),
                    None => return,
                },
                () = sleep_until(end) => return,
            }
        }
    }

    /// Posts one batch until it is taken, refused for good or tried often enough.
    async fn export(&mut self, client: &HttpClient, batch: Vec<Span>) {
        let count = batch.len();
        debug_assert!(count <= bounds::SPAN_BATCH);
        let message = ExportTraceServiceRequest {
            resource_spans: vec![spans::envelope(&self.service_name, &self.node_id, batch)],
        };
        let body = Bytes::from(message.encode_to_vec());
        drop(message);
        let mut tried = 0;
        let lost = loop {
            tried += 1;
            match self.post(client, body.clone()).await {
                Ok(rejected) => {
                    self.recovered();
                    break rejected.min(count as u64);
                }
                Err(error) if error.is_passing() && tried < self.tuning.attempts => {
                    sleep(self.pause(tried, error.retry_after())).await;
                }
                Err(error) => {
                    self.failed(&error);
                    break count as u64;
                }
            }
        };
        self.counters.spans.fetch_add(lost, Ordering::Relaxed);
        self.held.fetch_sub(count, Ordering::Relaxed);
    }

    /// Posts once; says how many spans of it the collector rejected.
    async fn post(&self, client: &HttpClient, body: Bytes) -> Result<u64, ExportError> {
        let request = Request::post(self.endpoint.traces().clone())
            .header(header::CONTENT_TYPE, "application/x-protobuf")
            .header(header::USER_AGENT, concat!("beamline/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(body))
            .expect("a checked URL and constant fields make a request");
        let exchange = async {
            let response = client.request(request).await.map_err(|e| ExportError::Transport(chain(&e)))?;
            let (head, body) = response.into_parts();
            let answer = Limited::new(body, bounds::EXPORT_ANSWER).collect().await;
            if !head.status.is_success() {
                let retry_after = retry_after(&head.headers);
                return Err(ExportError::Status { status: head.status, retry_after });
            }
            // An answer that cannot be read or decoded says nothing of rejected spans: they were taken.
            let answer = answer.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            let answer = ExportTraceServiceResponse::decode(answer).unwrap_or_default();
            let rejected = answer.partial_success.map_or(0, |partial| partial.rejected_spans);
            Ok(u64::try_from(rejected).unwrap_or(0))
        };
        timeout(self.tuning.timeout, exchange).await.unwrap_or(Err(ExportError::Timeout(self.tuning.timeout)))
    }

    /// How long to wait after the failed post number `tried`.
    fn pause(&self, tried: u32, asked: Option<Duration>) -> Duration {
        asked.map_or_else(|| backoff(&self.tuning, tried, random_u64()), |d| d.min(self.tuning.backoff_max))
    }

    fn failed(&mut self, error: &ExportError) {
        if !self.failing.swap(true, Ordering::Relaxed) {
            let endpoint = self.endpoint.to_string();
            self.events.write(
                "telemetry.export.failing",
                json!({"endpoint": endpoint, "reason": error.to_string()}),
            );
        }
    }

    fn recovered(&mut self) {
        if self.failing.swap(false, Ordering::Relaxed) {
            let dropped = self.counters.spans.load(Ordering::Relaxed);
            self.events.write(
                "telemetry.export.recovered",
                json!({"endpoint": self.endpoint.to_string(), "spans_total": dropped}),
            );
        }
    }
}

/// A wait with full jitter: `random` chooses a part of the doubled and bounded base.
fn backoff(tuning: &ExportTuning, tried: u32, random: u64) -> Duration {
    let longest = tuning.backoff.saturating_mul(1 << tried.saturating_sub(1).min(16)).min(tuning.backoff_max);
    let millis = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(random % millis.saturating_add(1).max(1))
}

/// The seconds of `Retry-After`; a date is not read, the back-off stands in for it.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// An error with its causes: hyper's own text names only the layer.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a String cannot fail.
        _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_back_off_doubles_up_to_its_bound_and_is_jittered_down_to_nothing() {
        let tuning = ExportTuning::default();
        let longest = |tried| (0..=5000).map(|r| backoff(&tuning, tried, r)).max().unwrap();
        assert_eq!(
            [1, 2, 3, 4, 5, 90].map(longest),
            [500, 1000, 2000, 4000, 5000, 5000].map(Duration::from_millis)
        );
        assert_eq!(backoff(&tuning, 1, 0), Duration::ZERO);
        assert_eq!(
            backoff(&ExportTuning { backoff_max: Duration::MAX, backoff: Duration::MAX, ..tuning }, 9, 7),
            Duration::from_millis(7)
        );
    }
}

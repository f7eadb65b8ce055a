//! The way in: what the binary opens, the workers fill and everybody else sends events to.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    io,
    path::PathBuf,
    str::FromStr,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Deserializer};
use serde_json::Value;
use thiserror::Error;
use tokio::runtime::Handle;

use crate::{
    DeliverySpan, ExportTuning, GuestLog, Metrics, OtlpEndpoint, Sampler, Transaction, bounds,
    export::SpanQueue,
    log::{self, Counters, LogBuffer, LogQueue},
    record::Records,
    spans::SpanSource,
};

/// Where log records go. As text: `stdout`, `off`, or a path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LogTarget {
    /// The process's standard output: the default.
    #[default]
    Stdout,
    /// A file, appended to; made (0640) where there is none.
    File(PathBuf),
    /// Nowhere.
    Off,
}

impl FromStr for LogTarget {
    type Err = Infallible;

    fn from_str(s: &str) -> Result<Self, Infallible> {
        Ok(match s {
            "stdout" => Self::Stdout,
            "off" => Self::Off,
            path => Self::File(path.into()),
        })
    }
}

impl<'de> Deserialize<'de> for LogTarget {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let Ok(target) = String::deserialize(d)?.parse();
        Ok(target)
    }
}

/// What telemetry is opened with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where log records go. Standard output by default.
    pub log: LogTarget,
    /// The collector that spans are sent to. Without one, the default, nothing is sampled.
    pub otlp_endpoint: Option<OtlpEndpoint>,
    /// The resource attribute `service.name`. `beamline` by default.
    pub service_name: String,
    /// The resource attribute `service.instance.id`; left out where empty, the default.
    pub node_id: String,
    /// Which traces are recorded. Every one by default.
    pub sampler: Sampler,
    /// The exporter's times.
    pub export: ExportTuning,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            log: LogTarget::default(),
            otlp_endpoint: None,
            service_name: "beamline".to_owned(),
            node_id: String::new(),
            sampler: Sampler::ALWAYS,
            export: ExportTuning::default(),
        }
    }
}

/// Why telemetry could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The log's target cannot be written to.
    #[error(
        "log {target} cannot be opened for appending: {source}; name a file in a folder that this process may write to, \"stdout\" or \"off\""
    )]
    Log {
        /// The file's path, or `stdout`.
        target: String,
        /// What the operating system says.
        source: io::Error,
    },
    /// The operating system gives no thread for the log's writer.
    #[error("the log's writer thread cannot be started: {0}; raise the limit on threads")]
    Thread(io::Error),
}

/// What was lost since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// Log records.
    pub records: u64,
    /// Spans.
    pub spans: u64,
}

/// Writes events; a part of [`Telemetry`] that does not keep the exporter alive.
#[derive(Clone, Default)]
pub(crate) struct Events(Option<LogQueue>);

impl Events {
    pub(crate) fn write(&self, name: &str, fields: Value) {
        self.record(|records, out| records.event(out, SystemTime::now(), name, fields));
    }

    fn record(&self, write: impl FnOnce(&mut Records, &mut Vec<u8>)) {
        if let Some(queue) = &self.0 {
            let mut line = Vec::with_capacity(512);
            write(&mut Records::new(), &mut line);
            queue.push(line);
        }
    }
}

/// The node's telemetry: one for the process, cheap to clone.
///
/// Nothing here blocks or takes a lock that others hold. When the last clone and the last worker's part are gone, the
/// writer thread and the exporter finish what they have and end; [`Telemetry::flush`] waits for that.
#[derive(Clone)]
pub struct Telemetry {
    events: Events,
    spans: Option<SpanQueue>,
    sampler: Sampler,
    counters: Arc<Counters>,
    metrics: Metrics,
}

impl Telemetry {
    /// Opens the log, starts its writer thread, and with an endpoint the exporter on `runtime` (time and I/O enabled).
    ///
    /// A collector that is not there is no error: its absence is told as an event and the spans are counted.
    pub fn open(settings: Settings, runtime: &Handle) -> Result<Self, OpenError> {
        let target = match &settings.log {
            LogTarget::Stdout => Some(log::stdout().map_err(|e| (String::from("stdout"), e))),
            LogTarget::File(path) => Some(log::open_file(path).map_err(|e| (path.display().to_string(), e))),
            LogTarget::Off => None,
        };
        let target = target.transpose().map_err(|(target, source)| OpenError::Log { target, source })?;
        Self::with_target(target.map(|file| Box::new(file) as _), settings, runtime)
    }

    fn with_target(
        target: Option<Box<dyn io::Write + Send>>,
        settings: Settings,
        runtime: &Handle,
    ) -> Result<Self, OpenError> {
        let Settings { log: _, otlp_endpoint, service_name, node_id, sampler, export } = settings;
        let counters = Arc::<Counters>::default();
        let queue = target
            .map(|target| LogQueue::start(target, Arc::clone(&counters)))
            .transpose()
            .map_err(OpenError::Thread)?;
        let events = Events(queue);
        // What is not exported is not sampled: upstreams would record children of spans that nobody has.
        let sampler = if otlp_endpoint.is_some() { sampler } else { Sampler::NEVER };
        let spans = otlp_endpoint.map(|endpoint| {
            let (events, counters) = (events.clone(), Arc::clone(&counters));
            SpanQueue::start(endpoint, service_name, node_id, export, events, counters, runtime)
        });
        let metrics = Metrics::telling(events.clone());
        Ok(Self { events, spans, sampler, counters, metrics })
    }

    /// Telemetry that tells nobody anything: for tests and tools.
    pub fn off() -> Self {
        Self {
            events: Events(None),
            spans: None,
            sampler: Sampler::NEVER,
            counters: Arc::default(),
            metrics: Metrics::default(),
        }
    }

    /// The sampler for [`TraceContext::start`](crate::TraceContext::start): the one set, or none where nothing is exported.
    pub fn sampler(&self) -> Sampler {
        self.sampler
    }

    /// The own part of a worker, or of the deliveries' thread, to be used on one thread at a time.
    pub fn worker(&self) -> WorkerTelemetry {
        WorkerTelemetry {
            log: RefCell::new(self.events.0.clone().map(LogBuffer::new)),
            spans: RefCell::new(Vec::new()),
            gathered: Cell::new(0),
            telemetry: self.clone(),
        }
    }

    /// Tells a change of state as one record of kind `event`.
    ///
    /// `name` is dotted and in lower case, such as `node.degraded`. `fields` is an object (or null for none): what
    /// [`FIELDS`](crate::FIELDS) knows for events stands at the record's top, everything else under `attributes`. Values of
    /// fields whose names end in words such as `token` or `secret` are not told.
    pub fn event(&self, name: &str, fields: Value) {
        self.events.write(name, fields);
    }

    /// Whether the exporter is failing: its last batch was dropped, and none was taken since. False without an endpoint.
    pub fn export_failing(&self) -> bool {
        self.spans.as_ref().is_some_and(SpanQueue::is_failing)
    }

    /// What tenants' filters count.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// What was lost since the start.
    pub fn dropped(&self) -> Drops {
        Drops {
            records: self.counters.records.load(Ordering::Relaxed),
            spans: self.counters.spans.load(Ordering::Relaxed),
        }
    }

    /// Waits until everything that was handed over before is written and exported, or for `within` at most; says whether
    /// it was all done. What workers still hold goes first by [`WorkerTelemetry::flush`] or their drop.
    ///
    /// Needs a runtime with time enabled. Cancel safe.
    pub async fn flush(&self, within: Duration) -> bool {
        let log = async || {
            if let Some(log) = &self.events.0 {
                log.flush().await;
            }
        };
        let exported = async {
            if let Some(spans) = &self.spans {
                spans.flush().await;
            }
        };
        // Side by side, so that a collector that hangs does not keep the log from having its time; then the log again,
        // for what the exporter may have told at its end.
        let all = async {
            tokio::join!(log(), exported);
            log().await;
        };
        tokio::time::timeout(within, all).await.is_ok()
    }
}

/// One thread's part of [`Telemetry`]: a buffer of its own, so that finishing a request touches nothing shared.
///
/// Used by one thread at a time, shared there by `Rc`. Its owner calls [`flush`](Self::flush) every 100 ms or so, that
/// records of a quiet node appear; dropping it flushes too.
pub struct WorkerTelemetry {
    log: RefCell<Option<LogBuffer>>,
    spans: RefCell<Vec<SpanSource>>,
    /// Spans that the sources in `spans` make.
    gathered: Cell<usize>,
    telemetry: Telemetry,
}

impl WorkerTelemetry {
    /// Ends a transaction: writes its access record and, where it is sampled, passes it on to the exporter.
    pub fn finish(&self, transaction: Transaction) {
        if let Some(log) = self.log.borrow_mut().as_mut() {
            log.append(|records, out| records.access(out, &transaction));
        }
        if transaction.trace.sampled && self.telemetry.spans.is_some() {
            self.gather(SpanSource::request(transaction));
        }
    }

    /// Tells one delivery: a record of kind `delivery` and, where its trace is sampled, its spans.
    pub fn delivery(&self, delivery: DeliverySpan) {
        if let Some(log) = self.log.borrow_mut().as_mut() {
            log.append(|records, out| records.delivery(out, &delivery));
        }
        if delivery.trace.sampled && self.telemetry.spans.is_some() {
            self.gather(SpanSource::delivery(delivery));
        }
    }

    fn gather(&self, source: SpanSource) {
        self.gathered.set(self.gathered.get() + source.count());
        self.spans.borrow_mut().push(source);
        if self.gathered.get() >= bounds::SPAN_BUFFER {
            self.hand_over_spans();
        }
    }

    /// Writes one message of a filter.
    pub fn guest_log(&self, message: &GuestLog<'_>) {
        if let Some(log) = self.log.borrow_mut().as_mut() {
            log.append(|records, out| records.guest(out, message));
        }
    }

    /// Hands over what the buffers hold. Costs next to nothing where they are empty.
    pub fn flush(&self) {
        if let Some(log) = self.log.borrow_mut().as_mut() {
            log.hand_over();
        }
        self.hand_over_spans();
    }

    /// The node's telemetry that this is a part of, for events.
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    fn hand_over_spans(&self) {
        let sources = self.spans.take();
        self.gathered.set(0);
        if let Some(spans) = &self.telemetry.spans
            && !sources.is_empty()
        {
            spans.push(sources);
        }
    }
}

impl Drop for WorkerTelemetry {
    fn drop(&mut self) {
        // The log's buffer hands itself over.
        self.hand_over_spans();
    }
}

#[cfg(test)]
mod tests;

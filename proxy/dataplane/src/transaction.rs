//! One request's record, from its head to the last byte of its response, however it ends.

use std::{cell::Cell, net::SocketAddr, rc::Rc};

use beamline_control::{TenantRuntime, UpstreamRuntime};
use beamline_filter_host::{Failure, FilterRun, LogLevel};
use beamline_http::ErrorKind;
use beamline_model::NatsKind;
use beamline_telemetry::{
    Attempt, FilterRun as FilterRecord, GuestLog, Level, Messaging, SpanId, Started, TraceContext,
    Transaction, Verdict,
};
use beamline_upstream::{AttemptInfo, Attempts};
use http::{HeaderName, HeaderValue, Version, request::Parts, uri::PathAndQuery};

use crate::{
    failures,
    phases::{Endings, Later, wants_the_end},
    worker::Shared,
};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A transaction under way. Whoever drops it ends it: the response's body at its last byte, or the pipeline where
/// the client goes away before that.
pub(crate) struct Finishing {
    worker: Rc<Shared>,
    /// Taken by the drop alone.
    record: Option<Transaction>,
    request_bytes: Option<Rc<Cell<u64>>>,
    id_field: Option<HeaderValue>,
    /// What the later phases of its filters need, where they have any.
    later: Option<Rc<Later>>,
}

impl Finishing {
    /// A transaction that begins now.
    pub(crate) fn begin(worker: &Rc<Shared>, client: SocketAddr, parts: &Parts) -> Box<Self> {
        // No sender is trusted yet: a remote context becomes a link.
        let trace = TraceContext::start(parts.headers.get(TRACEPARENT), false, &worker.sampler);
        let path = parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let mut record =
            Transaction::new(Started::now(), trace, parts.method.clone(), String::new(), path, client);
        record.version = parts.version;
        Box::new(Self {
            worker: Rc::clone(worker),
            record: Some(record),
            request_bytes: None,
            id_field: None,
            later: None,
        })
    }

    /// The record, to be filled.
    ///
    /// # Panics
    /// Never: only the drop takes the record.
    pub(crate) fn record(&mut self) -> &mut Transaction {
        self.record.as_mut().expect("only the drop takes the record")
    }

    pub(crate) fn trace(&self) -> TraceContext {
        self.record.as_ref().expect("only the drop takes the record").trace
    }

    pub(crate) fn request_id(&self) -> String {
        self.record.as_ref().expect("only the drop takes the record").request_id.to_string()
    }

    /// The request's id as a field value: written once, cloned for either side.
    ///
    /// # Panics
    /// Never: an id is hexadecimal digits and hyphens.
    pub(crate) fn id_field(&mut self) -> HeaderValue {
        if let Some(field) = &self.id_field {
            return field.clone();
        }
        let field =
            HeaderValue::try_from(self.request_id()).expect("an id is hexadecimal digits and hyphens");
        self.id_field.insert(field).clone()
    }

    pub(crate) fn version(&self) -> Version {
        self.record.as_ref().expect("only the drop takes the record").version
    }

    /// A counter for the request's body.
    pub(crate) fn count_request(&mut self) -> Rc<Cell<u64>> {
        Rc::clone(self.request_bytes.get_or_insert_default())
    }

    /// Takes down what the filters did, and passes on what they logged.
    pub(crate) fn filters(&mut self, tenant: &TenantRuntime, runs: Vec<FilterRun>) {
        let worker = Rc::clone(&self.worker);
        filter_records(&worker, tenant, self.record(), runs);
    }

    /// Its filters have later phases.
    pub(crate) fn goes_on(&mut self, later: Rc<Later>) {
        self.later = Some(later);
    }

    /// What the later phases need.
    pub(crate) fn later(&self) -> Option<&Rc<Later>> {
        self.later.as_ref()
    }

    /// Takes down what was tried at the upstream. The last attempt is the one whose span `span` went out.
    pub(crate) fn attempts(&mut self, attempts: &Attempts, upstream: &UpstreamRuntime, span: SpanId) {
        let record = self.record();
        record.attempts = attempt_records(attempts, &record.started, span, messaging(upstream));
    }

    /// So many bytes of the response's body went to the connection.
    pub(crate) fn sent(&mut self, bytes: usize) {
        self.record().response_bytes += bytes as u64;
    }

    /// The response broke in its body, by its upstream or by a filter, whose error's token this is: the client's is cut too.
    pub(crate) fn broken(&mut self, by_filter: Option<&'static str>) {
        self.record().error = Some(by_filter.unwrap_or(ErrorKind::UpstreamReset.token()));
    }

    /// The response's body is gone: sent whole, or given up because the client went away.
    pub(crate) fn end(mut self: Box<Self>, whole: bool) {
        if !whole {
            self.record().error.get_or_insert(ErrorKind::ClientGone.token());
        }
    }
}

impl Drop for Finishing {
    fn drop(&mut self) {
        let Some(mut record) = self.record.take() else { return };
        record.duration = record.started.at.elapsed();
        if let Some(bytes) = &self.request_bytes {
            record.request_bytes = bytes.get();
        }
        if record.status.is_none() {
            record.error.get_or_insert(ErrorKind::ClientGone.token());
        }
        if let Some(later) = self.later.take() {
            filter_records(&self.worker, &later.tenant, &mut record, later.told.take_runs());
            if wants_the_end(&later) {
                return Endings::add(&self.worker, later, record);
            }
            later.passage.over();
        }
        self.worker.telemetry.finish(record);
    }
}

/// Takes down in a record what filters did, and passes on what they logged.
pub(crate) fn filter_records(
    worker: &Shared,
    tenant: &TenantRuntime,
    record: &mut Transaction,
    runs: Vec<FilterRun>,
) {
    for run in runs {
        for (level, message) in &run.log.lines {
            let level = match level {
                LogLevel::Debug => Level::Debug,
                LogLevel::Info => Level::Info,
                LogLevel::Warn => Level::Warn,
                LogLevel::Error => Level::Error,
            };
            worker.telemetry.guest_log(&GuestLog {
                at: record.started.wall + record.started.offset_of(run.started),
                tenant: &tenant.label,
                revision: tenant.revision.0,
                trace: &record.trace,
                request_id: record.request_id,
                filter: &run.filter,
                level,
                message,
                cut_bytes: run.log.cut,
            });
        }
        failures::count(tenant, record, &run);
        failures::tell(worker.telemetry.telemetry(), tenant, record, &run);
        record.filters.push(FilterRecord {
            name: run.filter,
            module: run.module.unwrap_or_else(|| "".into()),
            phase: run.phase.as_str(),
            started: record.started.offset_of(run.started),
            duration: run.duration,
            cpu: run.cpu,
            outcome: run.failure.as_ref().map_or(FilterRecord::OK, |f| failure_kind(f).token()),
            verdict: verdict_named(run.verdict),
        });
    }
}

/// Upstream attempts as spans want them. The last attempt is the one whose span `span` went out.
pub(crate) fn attempt_records(
    attempts: &Attempts,
    started: &Started,
    span: SpanId,
    messaging: Option<Messaging>,
) -> Vec<Attempt> {
    let record = |(resend, attempt): (usize, &AttemptInfo)| {
        Some(Attempt {
            span_id: if resend + 1 == attempts.len() { span } else { SpanId::random() },
            peer: attempt.peer?,
            started: started.offset_of(attempt.started),
            duration: attempt.duration,
            status: attempt.status.map(|s| s.as_u16()),
            error: attempt.error.as_ref().map(beamline_upstream::ErrorKind::token),
            resend_count: u32::try_from(resend).unwrap_or(u32::MAX),
            messaging: messaging.clone(),
        })
    };
    attempts.iter().enumerate().filter_map(record).collect()
}

/// What an upstream's attempts are as messages, where it is a NATS subject.
pub(crate) fn messaging(upstream: &UpstreamRuntime) -> Option<Messaging> {
    let target = upstream.cluster.spec().nats()?;
    let operation = match target.kind {
        NatsKind::Request => "request",
        NatsKind::Jetstream => "publish",
    };
    Some(Messaging { operation, destination: target.subject.shared() })
}

fn verdict_named(name: &str) -> Option<Verdict> {
    [Verdict::Next, Verdict::Route, Verdict::Respond, Verdict::Enqueue]
        .into_iter()
        .find(|v| v.as_str() == name)
}

/// How a filter's failure is answered and told.
pub(crate) fn failure_kind(failure: &Failure) -> ErrorKind {
    match failure {
        Failure::Trap(_) => ErrorKind::FilterTrap,
        Failure::CpuTime(_) | Failure::WallTime(_) => ErrorKind::FilterTimeout,
        Failure::Memory(_) => ErrorKind::FilterMemory,
        Failure::HostCalls(_) => ErrorKind::FilterHostCalls,
        Failure::Capacity | Failure::Room | Failure::Pinned(_) | Failure::PinRoom => {
            ErrorKind::FilterCapacity
        }
        Failure::Body { response: false, .. } => ErrorKind::FilterRequestBody,
        Failure::Body { response: true, .. } => ErrorKind::FilterResponseBody,
        Failure::Verdict(_) => ErrorKind::FilterVerdict,
        Failure::Host => ErrorKind::Internal,
        Failure::Unavailable => ErrorKind::FilterUnavailable,
        Failure::LeftOut(_) => ErrorKind::FilterSuspended,
    }
}

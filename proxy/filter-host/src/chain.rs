//! A tenant's filters, run one after the other over a request head until one decides.

use std::{
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use beamline_model::{FilterLimits, FilterName, HostName, OnError, TenantName};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, uri::PathAndQuery};
use tokio::time::timeout_at;

use crate::{
    bindings::beamline::edge::verdicts::Verdict,
    call::{Failure, Finished, begin_inline_slice, is_waiting, on_request},
    engine::Engine,
    head::RequestHead,
    host::{CallState, FilterConfig, GuestLog, HostView},
    load::{LongCall, TenantLoad, Waiting},
    module::Module,
    shared::TenantState,
    slow_lane::Call,
};

/// How long after its beginning a call must have ended, whatever it waited for: a starved slow lane answers, too.
pub const LONGEST_CALL: Duration = Duration::from_secs(5);

/// One filter of a chain, ready to run.
#[derive(Clone, Debug)]
pub struct FilterSetup {
    /// Its name in the manifest.
    pub name: FilterName,
    /// Its module; none where this node could not load it: each call then fails as [`Failure::Unavailable`].
    pub module: Option<Arc<Module>>,
    /// What of its manifest it may see.
    pub config: Arc<FilterConfig>,
    /// What a failure leads to.
    pub on_error: OnError,
}

/// A tenant's filter chain.
#[derive(Debug)]
pub struct Chain {
    tenant: TenantName,
    limits: FilterLimits,
    filters: Vec<(Arc<str>, FilterSetup)>,
    load: Arc<TenantLoad>,
    state: Arc<TenantState>,
}

/// What the chain decided.
#[derive(Debug)]
pub enum Decision {
    /// No filter decided: the manifest's default upstream is taken.
    Next,
    /// Send the request.
    Route {
        /// The upstream's name, as the guest wrote it.
        upstream: String,
        /// The path and query to ask for, where the guest changed it.
        path: Option<PathAndQuery>,
        /// The host to name, where the guest changed it.
        host: Option<HostName>,
        /// The response time-out, where the guest shortened it.
        timeout: Option<Duration>,
    },
    /// Answer without an upstream.
    Respond {
        /// 200 to 599.
        status: StatusCode,
        /// Its fields, by the rules of `beamline_http::checked_field`.
        headers: HeaderMap,
        /// Its body.
        body: Bytes,
    },
    /// Queue the request.
    Enqueue {
        /// The upstream's name, as the guest wrote it.
        upstream: String,
        /// How.
        options: EnqueueOptions,
    },
    /// A filter failed and its `on_error` is `fail-closed`.
    Failed {
        /// The filter.
        filter: Arc<str>,
        /// Why.
        failure: Failure,
    },
}

/// How a filter wants a request to be queued, where it says more than to which upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnqueueOptions {
    /// The ordering key, 1 to 256 bytes.
    pub ordering_key: Option<String>,
    /// How long after its acceptance it is delivered at the earliest.
    pub delay: Option<Duration>,
    /// How long after its acceptance it expires.
    pub expiry: Option<Duration>,
}

/// One filter's part in a request.
#[derive(Debug)]
pub struct FilterRun {
    /// The filter's name.
    pub filter: Arc<str>,
    /// Its module's digest.
    pub module: Option<Arc<str>>,
    /// When it began.
    pub started: Instant,
    /// Wall time.
    pub duration: Duration,
    /// CPU time.
    pub cpu: Duration,
    /// `next`, `route`, `respond`, `enqueue`, or `failed`.
    pub verdict: &'static str,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// What it logged.
    pub log: GuestLog,
}

/// What a chain's run leaves.
#[derive(Debug)]
pub struct ChainOutcome {
    /// The request head with the filters' changes.
    pub head: RequestHead,
    /// What was decided.
    pub decision: Decision,
    /// What each filter did.
    pub runs: Vec<FilterRun>,
}

impl Chain {
    /// A chain of `filters` in their order; `limits` hold for each call of each of them.
    pub fn new(tenant: TenantName, limits: FilterLimits, filters: Vec<FilterSetup>) -> Self {
        let filters = filters.into_iter().map(|f| (Arc::from(f.name.as_str()), f)).collect();
        Self { tenant, limits, filters, load: TenantLoad::new(), state: Arc::new(TenantState::new()) }
    }

    /// Goes on counting the long calls of an earlier chain of the same tenant, so that a swap gives it no second limit; and
    /// has what its filters kept.
    pub fn succeed(&mut self, earlier: &Self) {
        self.load = Arc::clone(&earlier.load);
        self.state = Arc::clone(&earlier.state);
    }

    /// What the tenant's filters share.
    pub fn state(&self) -> &TenantState {
        &self.state
    }

    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.filters.is_empty()
    }

    /// The filters and their modules.
    pub fn filters(&self) -> impl Iterator<Item = &FilterSetup> {
        self.filters.iter().map(|(_, f)| f)
    }

    /// Runs the request phase. Always answers, within the limits of its filters and their number.
    ///
    /// Must be polled on a thread that gives each poll back promptly; a long call moves to the slow lane by itself.
    /// Cancel safe: dropping the future ends the guest at its next slice.
    pub async fn on_request(
        &self,
        engine: &Engine,
        view: &Arc<dyn HostView>,
        mut head: RequestHead,
    ) -> ChainOutcome {
        let mut runs = Vec::with_capacity(self.filters.len());
        for (label, filter) in &self.filters {
            let started = Instant::now();
            let (returned, verdict, cpu, log) = self.call(engine, filter, view, head, started).await;
            head = returned;
            let outcome = verdict.and_then(carried_out);
            let failed = outcome.is_err();
            head.settle(!failed);
            let mut run = FilterRun {
                filter: Arc::clone(label),
                module: filter.module.as_ref().map(|m| Arc::clone(m.label())),
                started,
                duration: started.elapsed(),
                cpu,
                verdict: "failed",
                failure: None,
                log,
            };
            match outcome {
                Ok(decision) => {
                    run.verdict = name_of(&decision);
                    runs.push(run);
                    if !matches!(decision, Decision::Next) {
                        return ChainOutcome { head, decision, runs };
                    }
                }
                Err(failure) => {
                    run.failure = Some(failure.clone());
                    runs.push(run);
                    if filter.on_error == OnError::FailClosed {
                        let decision = Decision::Failed { filter: Arc::clone(label), failure };
                        return ChainOutcome { head, decision, runs };
                    }
                }
            }
        }
        ChainOutcome { head, decision: Decision::Next, runs }
    }

    async fn call(
        &self,
        engine: &Engine,
        filter: &FilterSetup,
        view: &Arc<dyn HostView>,
        head: RequestHead,
        started: Instant,
    ) -> (RequestHead, Result<Verdict, Failure>, Duration, GuestLog) {
        let refused = |head, failure| (head, Err(failure), Duration::ZERO, GuestLog::default());
        let Some(module) = &filter.module else { return refused(head, Failure::Unavailable) };
        let long_calls = self.load.long_calls();
        if self.load.under_way(long_calls) >= self.limits.concurrency {
            return refused(head, Failure::Capacity);
        }
        // A call that is refused or lost in the lane has the head with it. The request ends there, unless its filter
        // may fail.
        let spare = (filter.on_error == OnError::FailOpen).then(|| head.clone());
        let state = CallState::new(head, Arc::clone(&filter.config), Arc::clone(view), &self.limits, started);
        let mut call: Call = Box::pin(on_request(Arc::clone(module), state));
        if self.load.may_begin_inline(long_calls, started) {
            engine.about_to_run();
            begin_inline_slice(started);
            let first = std::future::poll_fn(|cx| Poll::Ready(Pin::as_mut(&mut call).poll(cx))).await;
            if let Poll::Ready(finished) = first {
                return taken_apart(finished);
            }
            if is_waiting() {
                let waited = self.wait_on_worker(engine, &mut call);
                match timeout_at((started + engine.longest_call).into(), waited).await {
                    Ok(Ok(Some(finished))) => return taken_apart(finished),
                    Ok(Ok(None)) => {}
                    Ok(Err(failure)) => return refused(spare.unwrap_or_else(RequestHead::gone), failure),
                    Err(_) => {
                        let failure = Failure::WallTime(engine.longest_call);
                        return refused(spare.unwrap_or_else(RequestHead::gone), failure);
                    }
                }
            }
            self.load.used_up_a_slice(started);
        }
        let failure = match engine.lane.take(self.tenant.clone(), call, LongCall::of(&self.load)) {
            None => Failure::Capacity,
            // The receiver goes with the time-out: the lane drops the call at what would be its next slice.
            Some(verdict) => match timeout_at((started + engine.longest_call).into(), verdict).await {
                Ok(Ok(finished)) => return taken_apart(finished),
                Ok(Err(_)) => Failure::Trap("the host's side of the call failed".into()),
                Err(_) => Failure::WallTime(engine.longest_call),
            },
        };
        refused(spare.unwrap_or_else(RequestHead::gone), failure)
    }
}

impl Chain {
    /// Goes on with a call that waits for an answer from outside, on this thread, which serves others meanwhile. None where the
    /// call has used up a slice since: it is one for the lane then.
    async fn wait_on_worker(&self, engine: &Engine, call: &mut Call) -> Result<Option<Finished>, Failure> {
        let _waiting =
            Waiting::begin(&self.load, &engine.waiting, engine.most_waiting).ok_or(Failure::Capacity)?;
        std::future::poll_fn(|cx| {
            engine.about_to_run();
            begin_inline_slice(Instant::now());
            match Pin::as_mut(call).poll(cx) {
                Poll::Ready(finished) => Poll::Ready(Ok(Some(finished))),
                Poll::Pending if is_waiting() => Poll::Pending,
                Poll::Pending => Poll::Ready(Ok(None)),
            }
        })
        .await
    }
}

fn taken_apart(finished: Finished) -> (RequestHead, Result<Verdict, Failure>, Duration, GuestLog) {
    let Finished { state, verdict, cpu } = finished;
    (state.head, verdict, cpu, state.log)
}

fn name_of(decision: &Decision) -> &'static str {
    match decision {
        Decision::Next => "next",
        Decision::Route { .. } => "route",
        Decision::Respond { .. } => "respond",
        Decision::Enqueue { .. } => "enqueue",
        Decision::Failed { .. } => "failed",
    }
}

/// Turns a verdict into a decision whose parts are valid, or says which part is not.
fn carried_out(verdict: Verdict) -> Result<Decision, Failure> {
    let wrong = |what: String| Failure::Verdict(what);
    Ok(match verdict {
        Verdict::Next => Decision::Next,
        Verdict::Route(route) => Decision::Route {
            upstream: route.upstream,
            path: route
                .path
                .map(|path| match path.parse::<PathAndQuery>() {
                    Ok(parsed) if path.starts_with('/') => Ok(parsed),
                    _ => Err(wrong(format!(
                        "route.path: expected a path that starts with \"/\"; found {path:?}"
                    ))),
                })
                .transpose()?,
            host: route
                .host
                .map(|host| host.parse())
                .transpose()
                .map_err(|e| wrong(format!("route.host: {e}")))?,
            timeout: route.timeout_ms.map(|ms| Duration::from_millis(ms.into())),
        },
        Verdict::Respond(response) => {
            let status = StatusCode::from_u16(response.status)
                .ok()
                .filter(|s| (200..600).contains(&s.as_u16()))
                .ok_or_else(|| {
                    wrong(format!("respond.status: expected 200 to 599; found {}", response.status))
                })?;
            let mut headers = HeaderMap::with_capacity(response.headers.len());
            for field in &response.headers {
                beamline_http::append(&mut headers, &field.name, &field.value)
                    .map_err(|e| wrong(format!("respond.headers: {:?}: {e}", field.name)))?;
            }
            Decision::Respond { status, headers, body: response.body.into() }
        }
        Verdict::Enqueue(enqueue) => {
            if enqueue.ordering_key.as_ref().is_some_and(|k| k.is_empty() || k.len() > 256) {
                return Err(wrong("enqueue.ordering-key: expected 1 to 256 bytes".into()));
            }
            let options = EnqueueOptions {
                ordering_key: enqueue.ordering_key,
                delay: enqueue.delay_ms.map(Duration::from_millis),
                expiry: enqueue.expiry_ms.map(Duration::from_millis),
            };
            Decision::Enqueue { upstream: enqueue.upstream, options }
        }
    })
}

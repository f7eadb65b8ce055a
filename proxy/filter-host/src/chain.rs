//! A tenant's filters, run one after the other over a request head until one decides.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use beamline_model::{FilterLimits, FilterName, HostName, OnError, TenantName};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Uri, uri::PathAndQuery};

use crate::{
    bindings::beamline::edge::verdicts::Verdict,
    call::{Failure, Finished, begin_inline_slice, on_request},
    engine::Engine,
    head::RequestHead,
    host::{CallState, GuestLog, HostView},
    module::Module,
    slow_lane::Call,
};

/// Long calls of one tenant under way beyond which its further calls do not begin on a data worker at all.
const LONG_CALLS_BEFORE_LANE: u32 = 4;
/// Slices that one tenant may use up on data workers in a second; beyond it its calls begin in the lane.
const LONG_SLICES_PER_SECOND: u32 = 16;

/// One filter of a chain, ready to run.
#[derive(Clone, Debug)]
pub struct FilterSetup {
    /// Its name in the manifest.
    pub name: FilterName,
    /// Its module; none where this node could not load it: each call then fails as [`Failure::Unavailable`].
    pub module: Option<Arc<Module>>,
    /// Its configuration as JSON text.
    pub config: Arc<str>,
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
}

/// What one tenant's calls cost lately, over all its chains.
#[derive(Debug)]
struct TenantLoad {
    since: Instant,
    /// Its calls in the slow lane.
    long_calls: AtomicU32,
    /// The second (since `since`) in the upper half, and in the lower the slices that were used up in it.
    long_slices: AtomicU64,
}

impl TenantLoad {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            since: Instant::now(),
            long_calls: AtomicU32::new(0),
            long_slices: AtomicU64::new(0),
        })
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.since).as_secs() << 32
    }

    /// Whether a call may begin on a data worker.
    fn may_begin_inline(&self, long_calls: u32, now: Instant) -> bool {
        let slices = self.long_slices.load(Ordering::Relaxed);
        // No call was long in this second: the rule, told without a clock's arithmetic.
        slices == 0
            || long_calls < LONG_CALLS_BEFORE_LANE
                && (slices & !0xffff_ffff != self.second(now)
                    || slices & 0xffff_ffff < u64::from(LONG_SLICES_PER_SECOND))
    }

    fn used_up_a_slice(&self, now: Instant) {
        let second = self.second(now);
        // Two workers that count at once may lose one: this is a budget, not a balance.
        let slices = self.long_slices.load(Ordering::Relaxed);
        let count = if slices & !0xffff_ffff == second { slices & 0xffff_ffff } else { 0 };
        self.long_slices.store(second | (count + 1), Ordering::Relaxed);
    }
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
        /// The ordering key.
        ordering_key: Option<String>,
    },
    /// A filter failed and its `on_error` is `fail-closed`.
    Failed {
        /// The filter.
        filter: Arc<str>,
        /// Why.
        failure: Failure,
    },
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

/// The mark that a call is in the slow lane.
struct LongCall(Arc<TenantLoad>);

impl Drop for LongCall {
    fn drop(&mut self) {
        self.0.long_calls.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Chain {
    /// A chain of `filters` in their order; `limits` hold for each call of each of them.
    pub fn new(tenant: TenantName, limits: FilterLimits, filters: Vec<FilterSetup>) -> Self {
        let filters = filters.into_iter().map(|f| (Arc::from(f.name.as_str()), f)).collect();
        Self { tenant, limits, filters, load: TenantLoad::new() }
    }

    /// Goes on counting the long calls of an earlier chain of the same tenant, so that a swap gives it no second limit.
    pub fn succeed(&mut self, earlier: &Self) {
        self.load = Arc::clone(&earlier.load);
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
        let long_calls = self.load.long_calls.load(Ordering::Acquire);
        if long_calls >= self.limits.concurrency {
            return refused(head, Failure::Capacity);
        }
        let state = CallState::new(head, Arc::clone(&filter.config), Arc::clone(view), &self.limits);
        let mut call: Call = Box::pin(on_request(Arc::clone(module), state));
        if self.load.may_begin_inline(long_calls, started) {
            engine.about_to_run();
            begin_inline_slice(started);
            let first = std::future::poll_fn(|cx| Poll::Ready(Pin::as_mut(&mut call).poll(cx))).await;
            if let Poll::Ready(finished) = first {
                return taken_apart(finished);
            }
            self.load.used_up_a_slice(started);
        }
        self.load.long_calls.fetch_add(1, Ordering::AcqRel);
        let _mark = LongCall(Arc::clone(&self.load));
        // What is refused or lost here has the head with it: the request ends, so nobody asks for it again.
        let lost = |failure| {
            refused(RequestHead::new(Method::GET, Uri::default(), "".into(), HeaderMap::new()), failure)
        };
        match engine.lane.take(self.tenant.clone(), call) {
            None => lost(Failure::Capacity),
            Some(verdict) => match verdict.await {
                Ok(finished) => taken_apart(finished),
                Err(_) => lost(Failure::Trap("the host's side of the call failed".into())),
            },
        }
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
            Decision::Enqueue { upstream: enqueue.upstream, ordering_key: enqueue.ordering_key }
        }
    })
}

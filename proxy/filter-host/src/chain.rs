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
    breaker::{self, Breaker, BreakerChange, BreakerState, Leave},
    call::{Failure, Finished, begin_inline_slice, on_request},
    engine::Engine,
    head::RequestHead,
    host::{CallState, GuestLog, HostView},
    load::TenantLoad,
    module::Module,
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
    /// Its configuration as JSON text.
    pub config: Arc<str>,
    /// What a failure leads to.
    pub on_error: OnError,
}

/// One filter in its place.
#[derive(Debug)]
struct Link {
    label: Arc<str>,
    setup: FilterSetup,
    breaker: Arc<Breaker>,
}

/// A tenant's filter chain.
#[derive(Debug)]
pub struct Chain {
    tenant: TenantName,
    limits: FilterLimits,
    filters: Vec<Link>,
    load: Arc<TenantLoad>,
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
    /// The functions that were running where it trapped, innermost first, a line each: for logs, not for clients.
    pub backtrace: Option<Box<str>>,
    /// Whether the failure is to be told by itself: where a module fails often, only the first are.
    pub told: bool,
    /// What it changed for the calls that come.
    pub breaker: Option<BreakerChange>,
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
        let link = |setup: FilterSetup| Link {
            label: setup.name.as_str().into(),
            setup,
            breaker: Arc::new(Breaker::new(breaker::SETTINGS)),
        };
        let filters = filters.into_iter().map(link).collect();
        Self { tenant, limits, filters, load: TenantLoad::new() }
    }

    /// Goes on counting the long calls of an earlier chain of the same tenant, so that a swap gives it no second limit.
    /// Filters that did not change keep their breakers; what was changed gets a fresh chance.
    pub fn succeed(&mut self, earlier: &Self) {
        self.load = Arc::clone(&earlier.load);
        for link in &mut self.filters {
            let digest = |setup: &FilterSetup| setup.module.as_ref().map(|m| m.digest());
            let same = earlier.filters.iter().find(|before| {
                before.label == link.label
                    && digest(&before.setup) == digest(&link.setup)
                    && before.setup.config == link.setup.config
            });
            if let Some(before) = same.filter(|_| earlier.limits == self.limits) {
                link.breaker = Arc::clone(&before.breaker);
            }
        }
    }

    /// Where each filter's breaker stands.
    pub fn breakers(&self) -> impl Iterator<Item = (&FilterName, BreakerState)> {
        self.filters.iter().map(|link| (&link.setup.name, link.breaker.state()))
    }

    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.filters.is_empty()
    }

    /// The filters and their modules.
    pub fn filters(&self) -> impl Iterator<Item = &FilterSetup> {
        self.filters.iter().map(|link| &link.setup)
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
        for Link { label, setup: filter, breaker } in &self.filters {
            let started = Instant::now();
            let leave = breaker.admit();
            let Called { head: returned, verdict, cpu, log, backtrace } = match &leave {
                Ok(_) => self.call(engine, filter, view, head, started).await,
                Err(left) => Called::refused(head, Failure::LeftOut(*left)),
            };
            head = returned;
            let outcome = verdict.and_then(carried_out);
            let (told, change) = leave.map_or((false, None), |leave| counted(leave, outcome.as_ref().err()));
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
                backtrace,
                told,
                breaker: change,
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
    ) -> Called {
        let Some(module) = &filter.module else { return Called::refused(head, Failure::Unavailable) };
        let long_calls = self.load.long_calls();
        let a_seat = || engine.seats.take(&self.tenant, self.limits.concurrency, &self.load.long_calls);
        // A tenant that has all of its seats: no instance is made before one of them is free.
        let mut seat = None;
        if long_calls >= self.limits.concurrency {
            seat = a_seat().await;
            if seat.is_none() {
                return Called::refused(head, Failure::Capacity);
            }
        }
        // A call that is refused or lost in the lane has the head with it. The request ends there, unless its filter
        // may fail.
        let spare = (filter.on_error == OnError::FailOpen).then(|| head.clone());
        let state = CallState::new(head, Arc::clone(&filter.config), Arc::clone(view), &self.limits);
        let mut call: Call = Box::pin(on_request(Arc::clone(module), state));
        if seat.is_none() && self.load.may_begin_inline(long_calls, started) {
            engine.about_to_run();
            begin_inline_slice(started);
            let first = std::future::poll_fn(|cx| Poll::Ready(Pin::as_mut(&mut call).poll(cx))).await;
            if let Poll::Ready(finished) = first {
                return finished.into();
            }
            self.load.used_up_a_slice(started);
        }
        if seat.is_none() {
            seat = a_seat().await;
        }
        let failure = if let Some(seat) = seat {
            let verdict = engine.lane.take(self.tenant.clone(), call, seat);
            // The receiver goes with the time-out: the lane drops the call at what would be its next slice.
            match timeout_at((started + engine.longest_call).into(), verdict).await {
                Ok(Ok(finished)) => return finished.into(),
                Ok(Err(_)) => Failure::Trap("the host's side of the call failed".into()),
                Err(_) => Failure::WallTime(engine.longest_call),
            }
        } else {
            Failure::Capacity
        };
        Called::refused(spare.unwrap_or_else(RequestHead::gone), failure)
    }
}

/// What a call left.
struct Called {
    head: RequestHead,
    verdict: Result<Verdict, Failure>,
    cpu: Duration,
    log: GuestLog,
    backtrace: Option<Box<str>>,
}

impl Called {
    /// A call that gave nothing.
    fn refused(head: RequestHead, failure: Failure) -> Self {
        let (cpu, log) = (Duration::ZERO, GuestLog::default());
        Self { head, verdict: Err(failure), cpu, log, backtrace: None }
    }
}

impl From<Finished> for Called {
    fn from(Finished { state, verdict, cpu, backtrace }: Finished) -> Self {
        Self { head: state.head, verdict, cpu, log: state.log, backtrace }
    }
}

/// Tells the breaker how a call ended: whether its failure is to be told, and what changed.
fn counted(leave: Leave<'_>, failure: Option<&Failure>) -> (bool, Option<BreakerChange>) {
    match failure {
        None => (false, leave.succeeded()),
        Some(failure) if failure.is_the_modules() => {
            let counted = leave.failed();
            (counted.told, counted.change)
        }
        // Neither for nor against the module: the leave is dropped undecided.
        Some(_) => (false, None),
    }
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
            // However many there are: beyond what a head may hold the loop ends.
            let mut headers = HeaderMap::with_capacity(response.headers.len().min(beamline_http::MAX_FIELDS));
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

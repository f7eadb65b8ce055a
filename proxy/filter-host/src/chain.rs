//! A tenant's filters: run one after the other over a request head until one decides, and backward over its response.
//!
//! The filters that a request reached, up to the one that decided, are those that its response goes back through, the last
//! first: each wraps what comes after it. An answer that a filter gives itself goes back through the filters before it.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use beamline_model::{FilterLimits, FilterName, HostName, InstanceLifetime, OnError, TenantName};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, uri::PathAndQuery};
use tokio::time::timeout_at;

use crate::{
    admission::Seat,
    bindings::beamline::edge::verdicts::{self, Verdict},
    breaker::{self, Breaker, BreakerChange, BreakerState, Leave},
    call::{Failure, Finished, Given, Input, begin_inline_slice, is_waiting, on_request},
    engine::Engine,
    head::{RequestHead, Seen},
    host::{CallState, FilterConfig, GuestLog, HostView, Subject, final_status},
    instances::{After, Keeping},
    load::{CameTo, TenantLoad},
    module::Module,
    passage::{Contexts, Passage},
    phases::{Phase, PhaseSet},
    shared::TenantState,
    slow_lane::{Call, poll_call},
    ticker::TICK,
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
    /// How long its instances live.
    pub lifetime: InstanceLifetime,
}

impl FilterSetup {
    /// The phases that it takes part in. Of a module that is not loaded nothing else is known than that it fails in the first.
    pub(crate) fn has(&self, phase: Phase) -> bool {
        self.module.as_ref().map_or(phase == Phase::Request, |module| module.phases().has(phase))
    }
}

/// One filter in its place.
#[derive(Debug)]
pub(crate) struct Link {
    label: Arc<str>,
    pub(crate) setup: FilterSetup,
    breaker: Arc<Breaker>,
    /// How its instances are kept, where they are.
    pub(crate) keeping: Option<Keeping>,
}

/// A tenant's filter chain.
#[derive(Debug)]
pub struct Chain {
    tenant: TenantName,
    pub(crate) limits: FilterLimits,
    filters: Vec<Link>,
    /// The phases that any of them takes part in.
    phases: PhaseSet,
    /// Whether any of them keeps instances.
    keeps_instances: bool,
    pub(crate) load: Arc<TenantLoad>,
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
    Respond(Answer),
    /// Queue the request.
    Enqueue {
        /// The upstream's name, as the guest wrote it.
        upstream: String,
        /// How.
        options: EnqueueOptions,
    },
    /// Read the request's whole body, and go on with [`Chain::on_whole_request`].
    ReadBody,
    /// A filter failed and its `on_error` is `fail-closed`.
    Failed {
        /// The filter.
        filter: Arc<str>,
        /// Why.
        failure: Failure,
    },
}

/// A filter's own answer.
#[derive(Debug)]
pub struct Answer {
    /// 200 to 599.
    pub status: StatusCode,
    /// Its fields, by the rules of `beamline_http::checked_field`.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
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
    /// Its phase.
    pub phase: Phase,
    /// When it began.
    pub started: Instant,
    /// Wall time.
    pub duration: Duration,
    /// CPU time.
    pub cpu: Duration,
    /// `next`, `route`, `respond`, `enqueue`, `read-body`, `failed`; empty in phases that decide nothing.
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
    pub head: Box<RequestHead>,
    /// What was decided.
    pub decision: Decision,
    /// What each filter did, since it was last taken from here.
    pub runs: Vec<FilterRun>,
    /// The body to send in place of the one that came, where a filter that saw it whole gave one.
    pub body: Option<Bytes>,
    /// How many filters the request has reached.
    pub reached: usize,
    pub(crate) contexts: Contexts,
}

impl ChainOutcome {
    /// What the later phases are to know of the request, as it is now.
    pub fn passage(&self, view: Arc<dyn HostView>) -> Passage {
        Passage::new(self, view)
    }
}

impl Chain {
    /// A chain of `filters` in their order; `limits` hold for each call of each of them.
    pub fn new(tenant: TenantName, limits: FilterLimits, filters: Vec<FilterSetup>) -> Self {
        let link = |setup: FilterSetup| Link {
            label: setup.name.as_str().into(),
            keeping: Keeping::of(&setup, &limits),
            setup,
            breaker: Arc::new(Breaker::new(breaker::SETTINGS)),
        };
        let filters: Vec<_> = filters.into_iter().map(link).collect();
        let phases = filters
            .iter()
            .filter_map(|link: &Link| link.setup.module.as_ref())
            .fold(PhaseSet::default(), |all, module| all.and(module.phases()));
        Self {
            tenant,
            limits,
            keeps_instances: filters.iter().any(|link| link.keeping.is_some()),
            filters,
            phases,
            load: TenantLoad::new(),
            state: Arc::new(TenantState::new()),
        }
    }

    /// What the tenant's filters share.
    pub fn state(&self) -> &TenantState {
        &self.state
    }

    /// Goes on counting the long calls of an earlier chain of the same tenant, so that a swap gives it no second limit; and
    /// has what its filters kept.
    /// Filters that did not change keep their breakers; what was changed gets a fresh chance.
    pub fn succeed(&mut self, earlier: &Self) {
        self.load = Arc::clone(&earlier.load);
        self.state = Arc::clone(&earlier.state);
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

    /// Whether anything is to run after a request's head was decided on. Where not, nothing needs to be kept of it.
    pub fn has_later_phases(&self) -> bool {
        self.phases.has_later()
    }

    /// Whether the filter at this place takes part in `phase`.
    pub fn has(&self, filter: usize, phase: Phase) -> bool {
        self.filters.get(filter).is_some_and(|link| link.setup.has(phase))
    }

    /// The name of the filter at this place; empty where there is none.
    pub fn name(&self, filter: usize) -> &str {
        self.filters.get(filter).map_or("", |link| &link.label)
    }

    /// As much of a text that one of its filters gave as is told: its beginning, without secrets.
    pub fn told(&self, text: &str) -> String {
        self.filters.first().map_or_else(String::new, |link| link.setup.config.told(text))
    }

    /// The filter at this place.
    pub(crate) fn link(&self, filter: usize) -> &Link {
        &self.filters[filter]
    }

    /// The configuration of the filter at this place.
    pub(crate) fn config(&self, filter: usize) -> &FilterConfig {
        &self.filters[filter].setup.config
    }

    /// The most bytes of a body that are kept for a filter.
    pub fn body_limit(&self) -> u64 {
        self.limits.body.get()
    }

    /// Runs the request phase. Always answers, within the limits of its filters and their number.
    ///
    /// Must be polled on a thread that gives each poll back promptly; a long call moves to the slow lane by itself.
    /// Cancel safe: dropping the future ends the guest at its next slice.
    pub async fn on_request(
        &self,
        engine: &Engine,
        view: &Arc<dyn HostView>,
        head: Box<RequestHead>,
    ) -> ChainOutcome {
        let outcome = ChainOutcome {
            head,
            decision: Decision::Next,
            runs: Vec::with_capacity(self.filters.len()),
            body: None,
            reached: 0,
            contexts: Contexts::of(self.filters.len(), self.has_later_phases(), self.keeps_instances),
        };
        self.go_on(engine, view, outcome).await
    }

    /// Goes on where a filter wanted the whole body: it decides, and where it says `next`, so do those after it.
    ///
    /// `body` is what came, or why it is not here.
    pub async fn on_whole_request(
        &self,
        engine: &Engine,
        view: &Arc<dyn HostView>,
        mut outcome: ChainOutcome,
        body: Result<Bytes, Failure>,
    ) -> ChainOutcome {
        let at = outcome.reached.saturating_sub(1);
        let subject = self.subject(Seen::Open(outcome.head), outcome.contexts.get(at));
        let turn = Turn { engine, view, contexts: &outcome.contexts, at };
        let (ended, replaced) = self.whole_request(turn, subject, body).await;
        (outcome.head, outcome.decision) = self.decided(at, ended, &mut outcome.contexts, &mut outcome.runs);
        outcome.body = replaced.or(outcome.body);
        match outcome.decision {
            Decision::Next => self.go_on(engine, view, outcome).await,
            _ => outcome,
        }
    }

    /// Asks the filters that were not reached yet.
    async fn go_on(
        &self,
        engine: &Engine,
        view: &Arc<dyn HostView>,
        mut outcome: ChainOutcome,
    ) -> ChainOutcome {
        while let Some(Link { setup: filter, .. }) = self.filters.get(outcome.reached) {
            let at = outcome.reached;
            outcome.reached += 1;
            if filter.has(Phase::Request) {
                let subject = self.subject(Seen::Open(outcome.head), outcome.contexts.get(at));
                let turn = Turn { engine, view, contexts: &outcome.contexts, at };
                let ended = if self.keeps_instance(at, Phase::Request) {
                    // Boxed: every chain's future is as large as the largest of what it may come to.
                    Box::pin(self.call_kept(turn, subject, Input::Request)).await
                } else {
                    self.call(turn, Told::of(Phase::Request), subject, on_request).await
                };
                let ended = ended.checked(|given| match given {
                    Given::Request(verdict) => {
                        let may_read = filter.has(Phase::WholeRequest);
                        carried_out(verdict, may_read, self.body_limit(), &filter.config)
                    }
                    _ => Err(Failure::Host),
                });
                (outcome.head, outcome.decision) =
                    self.decided(at, ended, &mut outcome.contexts, &mut outcome.runs);
            } else if filter.has(Phase::WholeRequest) {
                outcome.decision = Decision::ReadBody;
            }
            if !matches!(outcome.decision, Decision::Next) {
                return outcome;
            }
        }
        outcome.decision = Decision::Next;
        outcome
    }

    /// Takes a filter's call down; gives what it leaves of the head, and what the request's way goes on with.
    fn decided(
        &self,
        at: usize,
        ended: Ended<'_, Decision>,
        contexts: &mut Contexts,
        runs: &mut Vec<FilterRun>,
    ) -> (Box<RequestHead>, Decision) {
        let Ended { mut subject, given, told } = ended;
        let failed = given.is_err();
        self.settle_instance(contexts, at, told.phase, After::of_request(&given));
        subject.request.settle(!failed);
        if !failed {
            contexts.set(at, subject.context);
        }
        let verdict = given.as_ref().map_or("failed", name_of);
        let failure = given.as_ref().err().cloned();
        runs.push(self.run(at, told, verdict, failure, subject.log));
        let decision = given.unwrap_or_else(|failure| {
            self.failed(at, failure)
                .map_or(Decision::Next, |(filter, failure)| Decision::Failed { filter, failure })
        });
        (subject.request.into_open(), decision)
    }

    /// What a failure of the filter at this place leads to: nothing where it may fail open.
    pub(crate) fn failed(&self, at: usize, failure: Failure) -> Option<(Arc<str>, Failure)> {
        let Link { label, setup, .. } = &self.filters[at];
        (setup.on_error == OnError::FailClosed).then(|| (Arc::clone(label), failure))
    }

    /// Takes a call down, and tells the filter's breaker how it ended.
    pub(crate) fn run(
        &self,
        at: usize,
        told: Told<'_>,
        verdict: &'static str,
        failure: Option<Failure>,
        log: GuestLog,
    ) -> FilterRun {
        let Link { label, setup, .. } = &self.filters[at];
        let Told { phase, started, ended, cpu, backtrace, leave, .. } = told;
        let (told, breaker) = leave.map_or((false, None), |leave| counted(leave, failure.as_ref()));
        FilterRun {
            filter: Arc::clone(label),
            module: setup.module.as_ref().map(|m| Arc::clone(m.label())),
            phase,
            started,
            duration: ended.unwrap_or_else(Instant::now) - started,
            cpu,
            verdict,
            failure,
            log,
            backtrace,
            told,
            breaker,
        }
    }

    /// What a call that begins now is about.
    pub(crate) fn subject(&self, request: Seen<RequestHead>, context: Option<Bytes>) -> Subject {
        let log = GuestLog::with_limit(self.limits.log.get());
        Subject { request, response: Seen::default(), context, log }
    }

    /// One call of the filter whose turn it is. `begin` makes the call's future: in a fresh instance, or in one that is kept.
    pub(crate) async fn call<'c>(
        &'c self,
        Turn { engine, view, at, .. }: Turn<'_>,
        mut told: Told<'c>,
        subject: Subject,
        begin: impl FnOnce(Arc<Module>, Box<CallState>) -> Call,
    ) -> Ended<'c, Given> {
        let Link { setup: filter, breaker, .. } = &self.filters[at];
        let (ends, started) = (told.ends(engine.longest_call), told.began);
        match breaker.admit() {
            Ok(leave) => told.leave = Some(leave),
            Err(left) => return Ended::refused(told, subject, Failure::LeftOut(left)),
        }
        let Some(module) = &filter.module else { return Ended::refused(told, subject, Failure::Unavailable) };
        // A tenant that has all of its seats: no instance is made before one of them is free.
        let mut seat = None;
        if self.load.long_calls() >= self.limits.concurrency {
            // Boxed, as all that is rare here: each request is as large as the largest of what it may come to.
            seat = Box::pin(self.a_seat(engine)).await;
            if seat.is_none() {
                return Ended::refused(told, subject, Failure::Capacity);
            }
        }
        // A call that is refused or lost in the lane has the heads with it. They are missed where its filter may fail, or
        // where others see them later.
        let spare = (filter.on_error == OnError::FailOpen || self.has_later_phases())
            .then(|| (subject.request.clone(), subject.response.clone()));
        let config = Arc::clone(&filter.config);
        let state = CallState::new(subject, config, Arc::clone(view), &self.limits, (started, ends));
        let mut call = begin(Arc::clone(module), state);
        let first = if seat.is_none() && self.load.may_begin_inline(started) {
            let here =
                std::future::poll_fn(|cx| Poll::Ready(self.poll_here(engine, &mut call, cx, started, false)));
            Some(here.await)
        } else {
            None
        };
        let finished = match first {
            Some(Poll::Ready(finished)) => finished.ok_or(Failure::Host),
            Some(Poll::Pending) => Box::pin(self.after_a_slice(engine, call, ends)).await,
            None => Box::pin(self.in_lane(engine, call, seat, ends)).await,
        };
        match finished {
            Ok(Finished { state, given, ended, cpu, backtrace }) => {
                let told = Told { ended: Some(ended), cpu, backtrace, ..told };
                Ended { subject: state.into_subject(), given, told }
            }
            Err(failure) => {
                let (request, response) = spare.unwrap_or_default();
                Ended::refused(told, Subject { request, response, ..Subject::default() }, failure)
            }
        }
    }

    /// Polls a call that has a seat or not on this data worker, and takes down what that took.
    fn poll_here(
        &self,
        engine: &Engine,
        call: &mut Call,
        cx: &mut Context<'_>,
        began: Instant,
        seated: bool,
    ) -> Poll<Option<Finished>> {
        engine.about_to_run();
        let stint = self.load.begins(began);
        begin_inline_slice(began, seated);
        let polled = poll_call(call, cx);
        match &polled {
            Poll::Ready(Some(finished)) => stint.over(finished.ended, CameTo::ItsEnd),
            Poll::Pending if !is_waiting() => stint.over(Instant::now(), CameTo::TheLane),
            Poll::Ready(None) | Poll::Pending => stint.over(Instant::now(), CameTo::Waiting),
        }
        polled
    }

    async fn a_seat(&self, engine: &Engine) -> Option<Seat> {
        engine.seats.take(&self.tenant, self.limits.concurrency, &self.load.long_calls).await
    }

    /// Goes on with a call whose first slice, on this thread, was not enough, or that waits for an answer from outside.
    async fn after_a_slice(
        &self,
        engine: &Engine,
        mut call: Call,
        ends: Instant,
    ) -> Result<Finished, Failure> {
        if !is_waiting() {
            return self.in_lane(engine, call, None, ends).await;
        }
        let unseated = self.load.wants_a_seat(&engine.unseated).ok_or(Failure::Capacity)?;
        let seat = self.a_seat(engine).await.ok_or(Failure::Capacity)?;
        drop(unseated);
        match timeout_at(ends.into(), self.wait_on_worker(engine, &mut call)).await {
            Ok(Ok(Some(finished))) => Ok(finished),
            Ok(Ok(None)) => self.in_lane(engine, call, Some(seat), ends).await,
            Ok(Err(failure)) => Err(failure),
            Err(_) => Err(Failure::WallTime(engine.longest_call)),
        }
    }

    /// Hands a call over to the slow lane, and waits for its end there.
    async fn in_lane(
        &self,
        engine: &Engine,
        call: Call,
        seat: Option<Seat>,
        ends: Instant,
    ) -> Result<Finished, Failure> {
        let seat = match seat {
            Some(seat) => seat,
            None => self.a_seat(engine).await.ok_or(Failure::Capacity)?,
        };
        let given = engine.lane.take(self.tenant.clone(), call, seat);
        // The receiver goes with the time-out: the lane drops the call at what would be its next slice.
        match timeout_at(ends.into(), given).await {
            Ok(Ok(finished)) => {
                // A call that begins there makes its instance, too.
                if finished.cpu < TICK {
                    self.load.was_short();
                }
                Ok(finished)
            }
            Ok(Err(_)) => Err(Failure::Host),
            Err(_) => Err(Failure::WallTime(engine.longest_call)),
        }
    }

    /// Goes on with a call that has a seat and waits for an answer from outside, on this thread, which serves others meanwhile.
    /// None where it is one for the lane: it has used up a slice since, or its tenant has used up too many.
    async fn wait_on_worker(&self, engine: &Engine, call: &mut Call) -> Result<Option<Finished>, Failure> {
        let _waits = self.load.waits();
        std::future::poll_fn(|cx| {
            let began = Instant::now();
            if !self.load.may_begin_inline(began) {
                return Poll::Ready(Ok(None));
            }
            match self.poll_here(engine, call, cx, began, true) {
                Poll::Ready(Some(finished)) => Poll::Ready(Ok(Some(finished))),
                Poll::Ready(None) => Poll::Ready(Err(Failure::Host)),
                Poll::Pending if is_waiting() => Poll::Pending,
                Poll::Pending => Poll::Ready(Ok(None)),
            }
        })
        .await
    }
}

/// A call that has ended, and what it gave.
pub(crate) struct Ended<'c, T> {
    pub(crate) subject: Subject,
    pub(crate) given: Result<T, Failure>,
    pub(crate) told: Told<'c>,
}

impl<'c, T> Ended<'c, T> {
    /// One that was not made.
    pub(crate) fn refused(told: Told<'c>, subject: Subject, failure: Failure) -> Self {
        Self { subject, given: Err(failure), told }
    }
}

/// Which filter is called, for which request.
#[derive(Clone, Copy)]
pub(crate) struct Turn<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) view: &'a Arc<dyn HostView>,
    pub(crate) contexts: &'a Contexts,
    /// The filter's place.
    pub(crate) at: usize,
}

/// What is to be told of a call beside what it gave.
pub(crate) struct Told<'c> {
    phase: Phase,
    started: Instant,
    /// When it could begin: later than that where it waited for its instance.
    began: Instant,
    /// When the guest was done; none where it was not called, or was given up.
    ended: Option<Instant>,
    cpu: Duration,
    backtrace: Option<Box<str>>,
    /// The breaker's leave to make it; none where it was not made.
    leave: Option<Leave<'c>>,
}

impl Told<'_> {
    /// A call that begins now.
    pub(crate) fn of(phase: Phase) -> Self {
        let now = Instant::now();
        Self {
            phase,
            started: now,
            began: now,
            ended: None,
            cpu: Duration::ZERO,
            backtrace: None,
            leave: None,
        }
    }

    /// It has waited for what it needs to begin.
    pub(crate) fn waited(&mut self) {
        self.began = Instant::now();
    }

    /// When it has ended at the latest, where it may take so long.
    pub(crate) fn ends(&self, longest: Duration) -> Instant {
        self.started + longest
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }
}

impl<'c, T> Ended<'c, T> {
    /// Makes of what was given what can be carried out.
    pub(crate) fn checked<U>(self, check: impl FnOnce(T) -> Result<U, Failure>) -> Ended<'c, U> {
        let Self { subject, given, told } = self;
        Ended { subject, given: given.and_then(check), told }
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
        Decision::Respond(_) => "respond",
        Decision::Enqueue { .. } => "enqueue",
        Decision::ReadBody => "read-body",
        Decision::Failed { .. } => "failed",
    }
}

fn wrong(what: String) -> Failure {
    Failure::Verdict(what)
}

/// Turns a verdict into a decision whose parts are valid, or says which part is not.
///
/// `may_read`: the filter has a phase that the whole body could be shown to, and has not seen it. `limit`: of a body that it
/// gives. `config`: the filter's, which knows what may be told of its texts.
pub(crate) fn carried_out(
    verdict: Verdict,
    may_read: bool,
    limit: u64,
    config: &FilterConfig,
) -> Result<Decision, Failure> {
    Ok(match verdict {
        Verdict::Next => Decision::Next,
        Verdict::ReadBody if may_read => Decision::ReadBody,
        Verdict::ReadBody => return Err(cannot_read("request")),
        Verdict::Route(route) => Decision::Route {
            upstream: route.upstream,
            path: route
                .path
                .map(|path| match path.parse::<PathAndQuery>() {
                    Ok(parsed) if path.starts_with('/') => Ok(parsed),
                    _ => Err(wrong(format!(
                        "route.path: expected a path that starts with \"/\"; found {:?}",
                        config.told(&path)
                    ))),
                })
                .transpose()?,
            host: route
                .host
                .map(|host| {
                    host.parse().map_err(|_| {
                        wrong(format!(
                            "route.host: expected a DNS name or an IP address, without port or path; found {:?}",
                            config.told(&host)
                        ))
                    })
                })
                .transpose()?,
            timeout: route.timeout_ms.map(|ms| Duration::from_millis(ms.into())),
        },
        Verdict::Respond(response) => Decision::Respond(answer(response, limit, config)?),
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

/// `read-body` where nothing could come of it.
pub(crate) fn cannot_read(which: &str) -> Failure {
    wrong(format!(
        "read-body: expected of a module that exports whole-{which}-handler, and not of that phase itself"
    ))
}

/// Bytes that a filter gave to be sent as the part of a verdict that `what` names.
pub(crate) fn given_body(what: &str, body: Vec<u8>, limit: u64) -> Result<Bytes, Failure> {
    if body.len() as u64 > limit {
        return Err(wrong(format!(
            "{what}: expected at most the {limit} bytes of limits.body; found {}",
            body.len()
        )));
    }
    Ok(body.into())
}

/// A filter's own answer, its parts checked.
pub(crate) fn answer(
    response: verdicts::Response,
    limit: u64,
    config: &FilterConfig,
) -> Result<Answer, Failure> {
    let status = final_status(response.status)
        .ok_or_else(|| wrong(format!("respond.status: expected 200 to 599; found {}", response.status)))?;
    let mut headers = HeaderMap::with_capacity(response.headers.len().min(beamline_http::MAX_FIELDS));
    for field in &response.headers {
        beamline_http::append(&mut headers, &field.name, &field.value)
            .map_err(|e| wrong(format!("respond.headers: {:?}: {e}", config.told(&field.name))))?;
    }
    Ok(Answer { status, headers, body: given_body("respond.body", response.body, limit)? })
}

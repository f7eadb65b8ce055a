//! The phases around the request's head: whole bodies, the response's way back through the filters, and the end.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use beamline_control::TenantRuntime;
use beamline_filter_host::{
    BodyStage, ChainOutcome, Decision, Failure, FilterRun, FinishOutcome, HostView, Passage, Phase,
    ResponseDecision, ResponseHead,
};
use beamline_telemetry::Transaction;
use beamline_upstream::BoxError;
use http::{HeaderMap, Method, Response, StatusCode, header};
use http_body::Body as _;
use tokio::{sync::Notify, task::spawn_local};

use crate::{
    body::{ClientBody, Counted},
    enqueue::{Accepted, client_gone},
    failures,
    filtered::{BrokenOff, NEXT_PIECE, Passed, Whole},
    respond::{self, Refusal},
    room::Kept,
    transaction::{Finishing, failure_kind, filter_records},
    worker::Shared,
};

/// What the phases after the request's head know of a request. Made only for chains that have such phases.
pub(crate) struct Later {
    pub(crate) tenant: Arc<TenantRuntime>,
    pub(crate) passage: Passage,
    /// The response goes back through so many filters.
    back: usize,
    pub(crate) told: Told,
}

/// What filters did while bodies streamed, until it is taken down.
#[derive(Clone, Default)]
pub(crate) struct Told(Rc<RefCell<Telling>>);

#[derive(Default)]
struct Telling {
    runs: Vec<FilterRun>,
    /// The first that broke a body off.
    broken: Option<Refusal>,
}

impl Told {
    pub(crate) fn ran(&self, run: Option<FilterRun>) {
        self.0.borrow_mut().runs.extend(run);
    }

    pub(crate) fn break_off(&self, broken: &BrokenOff) {
        let refusal = Refusal::new(failure_kind(&broken.failure), broken.to_string());
        self.0.borrow_mut().broken.get_or_insert(refusal);
    }

    pub(crate) fn take_runs(&self) -> Vec<FilterRun> {
        std::mem::take(&mut self.0.borrow_mut().runs)
    }

    /// Why a body was broken off by a filter, where one was. To be told once.
    pub(crate) fn take_broken(&self) -> Option<Refusal> {
        self.0.borrow_mut().broken.take()
    }
}

/// Shows whole bodies to the filters that want them before they decide, and the streaming one to those that want that;
/// leaves with the exchange what its later phases need. Gives how the chain ended.
pub(crate) async fn of_request(
    worker: &Rc<Shared>,
    exchange: &mut Finishing,
    tenant: &Arc<TenantRuntime>,
    view: &Arc<dyn HostView>,
    mut outcome: ChainOutcome,
    body: &mut Passed<Counted>,
) -> Result<ChainOutcome, Refusal> {
    let (chain, told) = (&tenant.chain, Told::default());
    let later = |outcome: &ChainOutcome, back| {
        let passage = outcome.passage(Arc::clone(view));
        Rc::new(Later { tenant: Arc::clone(tenant), passage, back, told: told.clone() })
    };
    // The filters before this one have their part in the body.
    let mut passed = 0;
    while matches!(outcome.decision, Decision::ReadBody) {
        let at = outcome.reached - 1;
        // However the reading ends, also where the client goes away: what filters did until here is told.
        exchange.filters(tenant, std::mem::take(&mut outcome.runs));
        let reading = later(&outcome, at);
        exchange.goes_on(Rc::clone(&reading));
        stream(worker, &reading, passed..at, &mut outcome, body);
        passed = outcome.reached;
        let room = Kept::nothing(&worker.room, &tenant.label);
        let whole = match body.read_whole(chain.body_limit(), room, NEXT_PIECE).await {
            Ok(Whole::Read(data)) => Ok(data),
            Ok(Whole::TooLong) => Err(Failure::Body { limit: chain.body_limit(), response: false }),
            Ok(Whole::NoRoom) => Err(Failure::Room),
            Ok(Whole::Stalled) => return Err(stalled_client()),
            // By a filter before this one, or by the client.
            Err(_) => return Err(told.take_broken().unwrap_or_else(client_gone)),
        };
        outcome = chain.on_whole_request(&worker.engine, view, outcome, whole).await;
        if let Some(data) = outcome.body.take() {
            body.replace(data);
            state_length(&mut outcome.head.headers, body.stated_length());
        }
    }
    let (back, sent) = match &outcome.decision {
        // What takes the place of the upstream's answer goes back through the filters before the one that gave it.
        Decision::Respond(_) | Decision::Failed { .. } => (outcome.reached - 1, false),
        _ => (outcome.reached, true),
    };
    let later = later(&outcome, back);
    if sent {
        let streaming = passed..outcome.reached;
        stream(worker, &later, streaming, &mut outcome, body);
    }
    exchange.goes_on(later);
    Ok(outcome)
}

/// Lets those of these filters that want to see a request's body as it streams.
fn stream(
    worker: &Rc<Shared>,
    later: &Rc<Later>,
    filters: std::ops::Range<usize>,
    outcome: &mut ChainOutcome,
    body: &mut Passed<Counted>,
) {
    for at in filters {
        if later.tenant.chain.has(at, Phase::RequestBody) && !body.is_end_stream() {
            let plain = std::mem::replace(body, Passed::whole(bytes::Bytes::new(), None));
            *body = plain.through(worker, later, BodyStage::new(at, None));
            outcome.head.headers.remove(header::CONTENT_LENGTH);
        }
    }
}

/// Takes a response back through the filters, the last first.
pub(crate) async fn of_response(
    worker: &Rc<Shared>,
    exchange: &mut Finishing,
    later: &Rc<Later>,
    mut response: Response<ClientBody>,
) -> Response<ClientBody> {
    let chain = &later.tenant.chain;
    for at in (0..later.back).rev() {
        let reads = chain.has(at, Phase::WholeResponse);
        let mut decision = ResponseDecision::Next;
        if chain.has(at, Phase::Response) {
            let head = head_of(&mut response);
            let step = chain.on_response(&worker.engine, &later.passage, at, head).await;
            put_back(&mut response, step.head);
            exchange.filters(&later.tenant, vec![step.run]);
            decision = step.decision;
        } else if reads {
            decision = ResponseDecision::ReadBody;
        }
        let mut seen_whole = false;
        if matches!(decision, ResponseDecision::ReadBody) {
            seen_whole = true;
            decision = whole_response(worker, exchange, later, at, &mut response).await;
        }
        match decision {
            ResponseDecision::Respond(answer) => {
                let accepted = response.extensions().get::<Accepted>().copied();
                response = respond::from_filter(answer);
                // Whatever is answered, the request stays accepted.
                if let Some(accepted) = accepted {
                    response.extensions_mut().insert(accepted);
                }
            }
            // What was accepted is accepted: an error would be a lie.
            ResponseDecision::Failed { filter, failure }
                if response.extensions().get::<Accepted>().is_none() =>
            {
                let refusal = Refusal::new(failure_kind(&failure), failures::detail(&filter, &failure));
                response = respond::problem(worker, exchange, refusal);
            }
            _ if chain.has(at, Phase::ResponseBody) && !seen_whole => {
                stream_response(worker, exchange, later, at, &mut response).await;
            }
            _ => {}
        }
    }
    bodiless(&mut response);
    response
}

async fn whole_response(
    worker: &Rc<Shared>,
    exchange: &mut Finishing,
    later: &Rc<Later>,
    at: usize,
    response: &mut Response<ClientBody>,
) -> ResponseDecision {
    let chain = &later.tenant.chain;
    let not_sent = has_no_body(exchange, response);
    let room = Kept::nothing(&worker.room, &later.tenant.label);
    let whole = match response.body_mut().content().read_whole(chain.body_limit(), room, NEXT_PIECE).await {
        Ok(Whole::Read(data)) => Ok(data),
        Ok(Whole::TooLong) => Err(Failure::Body { limit: chain.body_limit(), response: true }),
        Ok(Whole::NoRoom) => Err(Failure::Room),
        // Nothing was sent yet: the client is told.
        Ok(Whole::Stalled) => {
            *response = respond::problem(worker, exchange, stalled_upstream());
            return ResponseDecision::Next;
        }
        Err(error) => {
            let refusal = later.told.take_broken().unwrap_or_else(|| broken_upstream(&error));
            *response = respond::problem(worker, exchange, refusal);
            return ResponseDecision::Next;
        }
    };
    let head = head_of(response);
    let step = chain.on_whole_response(&worker.engine, &later.passage, at, head, whole).await;
    put_back(response, step.head);
    exchange.filters(&later.tenant, vec![step.run]);
    if not_sent {
        // What its length would be with a body only the filter knows.
        response.headers_mut().remove(header::CONTENT_LENGTH);
        *response.body_mut() = ClientBody::full(bytes::Bytes::new());
    } else if let Some(data) = step.body {
        let body = response.body_mut().content();
        body.replace(data);
        let length = body.stated_length();
        state_length(response.headers_mut(), length);
    }
    step.decision
}

/// The length of a body that took another's place, where it is to be stated.
fn state_length(headers: &mut HeaderMap, length: Option<usize>) {
    headers.remove(header::CONTENT_LENGTH);
    if let Some(length) = length {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
}

fn stalled_client() -> Refusal {
    let detail =
        format!("nothing more of the request's body came within {} s: send it again", NEXT_PIECE.as_secs());
    Refusal::new(beamline_http::ErrorKind::RequestTimeout, detail)
}

fn stalled_upstream() -> Refusal {
    let detail = format!(
        "nothing more of its body came within {} s, before anything of it was sent",
        NEXT_PIECE.as_secs()
    );
    Refusal::new(beamline_http::ErrorKind::UpstreamTimeout, detail)
}

fn broken_upstream(error: &BoxError) -> Refusal {
    Refusal::new(
        beamline_http::ErrorKind::UpstreamReset,
        format!("its body broke off before anything of it was sent: {error}"),
    )
}

async fn stream_response(
    worker: &Rc<Shared>,
    exchange: &mut Finishing,
    later: &Rc<Later>,
    at: usize,
    response: &mut Response<ClientBody>,
) {
    let not_sent = has_no_body(exchange, response);
    let ends = response.body().is_end_stream();
    if not_sent || !ends {
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    if !not_sent && !ends {
        let head = Arc::new(ResponseHead::new(response.status(), response.headers().clone()));
        let accepted = response.extensions().get::<Accepted>().is_some();
        let stage = BodyStage::new(at, Some(head)).unbroken(accepted);
        response.body_mut().pass_through(worker, later, stage);
        // What fails at once can still be told honestly: nothing was sent yet.
        if let Err(error) = response.body_mut().content().look().await {
            let refusal = later.told.take_broken().unwrap_or_else(|| broken_upstream(&error));
            *response = respond::problem(worker, exchange, refusal);
        }
    }
}

/// Whether no body is sent with it: the stated length is then that of the body that a `GET` would get.
fn has_no_body(exchange: &mut Finishing, response: &Response<ClientBody>) -> bool {
    exchange.record().method == Method::HEAD || response.status() == StatusCode::NOT_MODIFIED
}

fn head_of(response: &mut Response<ClientBody>) -> ResponseHead {
    ResponseHead::new(response.status(), std::mem::take(response.headers_mut()))
}

fn put_back(response: &mut Response<ClientBody>, head: ResponseHead) {
    // A length is stated for a body of this status: with another one, hyper states it anew.
    if response.status() != head.status {
        response.extensions_mut().insert(StatusChanged);
    }
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
}

/// A filter changed the status.
#[derive(Clone, Copy)]
struct StatusChanged;

/// A status that allows no body has none, whatever a filter made it from (RFC 9110, section 6.4.1).
fn bodiless(response: &mut Response<ClientBody>) {
    if response.extensions_mut().remove::<StatusChanged>().is_none() {
        return;
    }
    if !respond::allows_body(response.status()) {
        *response.body_mut() = ClientBody::full(bytes::Bytes::new());
        response.headers_mut().remove(header::CONTENT_LENGTH);
    } else if response.body().is_end_stream() {
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
}

/// Requests that have ended and whose filters want to hear of it. What their clients got is out of the door already.
#[derive(Default)]
pub(crate) struct Endings {
    waiting: RefCell<VecDeque<Ending>>,
    came: Notify,
    under_way: Cell<usize>,
    /// Nobody takes them up any more.
    closed: Cell<bool>,
}

/// One of them. Its record is told when it is dropped, at the latest.
struct Ending {
    worker: Rc<Shared>,
    later: Rc<Later>,
    record: Option<Transaction>,
}

/// Endings of one worker whose filters are being asked; of further ones the filters do not hear, which their records say.
const MOST_AT_ONCE: usize = 1024;

/// One ending that is under way, until this is dropped.
struct UnderWay(Rc<Shared>);

impl UnderWay {
    /// None where there are too many.
    fn begin(worker: &Rc<Shared>) -> Option<Self> {
        let count = &worker.endings.under_way;
        (count.get() < MOST_AT_ONCE).then(|| {
            count.set(count.get() + 1);
            Self(Rc::clone(worker))
        })
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let count = &self.0.endings.under_way;
        count.set(count.get() - 1);
        self.0.something_ended();
    }
}

impl Endings {
    /// Whether any is not over.
    pub(crate) fn any(&self) -> bool {
        self.under_way.get() > 0 || !self.waiting.borrow().is_empty()
    }

    /// Nobody takes them up any more: those that wait, and those to come, are over without their filters being told.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        drop(waiting);
    }

    /// The last of a request. Its filters are told, then its record is.
    pub(crate) fn add(worker: &Rc<Shared>, later: Rc<Later>, record: Transaction) {
        // One that waits here holds the worker's state, and so its log's buffer, which would never be dropped.
        if worker.endings.closed.get() {
            later.passage.over();
            return worker.telemetry.finish(record);
        }
        let ending = Ending { worker: Rc::clone(worker), later, record: Some(record) };
        worker.endings.waiting.borrow_mut().push_back(ending);
        worker.endings.came.notify_one();
    }

    /// Runs for as long as the worker does.
    pub(crate) async fn run(worker: Rc<Shared>) {
        loop {
            worker.endings.came.notified().await;
            loop {
                let next = worker.endings.waiting.borrow_mut().pop_front();
                let Some(mut ending) = next else { break };
                match UnderWay::begin(&worker) {
                    Some(under_way) => {
                        // Boxed: spawning moves the future several times.
                        spawn_local(Box::pin(async move {
                            ending.tell().await;
                            // Its record is told before a drain hears that it is over.
                            drop(ending);
                            drop(under_way);
                        }));
                    }
                    None => ending.pass_over(),
                }
            }
        }
    }
}

impl Ending {
    async fn tell(&mut self) {
        let Some(record) = &self.record else { return };
        let outcome = FinishOutcome {
            status: record.status,
            upstream: record.upstream.as_deref().map(str::to_owned),
            request_bytes: record.request_bytes,
            response_bytes: record.response_bytes,
            duration_us: micros(record.duration),
            upstream_us: micros(record.attempts.iter().map(|a| a.duration).sum()),
            error: record.error.map(str::to_owned),
        };
        let (chain, passage) = (&self.later.tenant.chain, &self.later.passage);
        for at in who_hears(&self.later) {
            let run = chain.on_finish(&self.worker.engine, passage, at, outcome.clone()).await;
            if let Some(record) = &mut self.record {
                filter_records(&self.worker, &self.later.tenant, record, vec![run]);
            }
        }
    }

    /// Its filters are not told: too many are being told already.
    fn pass_over(&mut self) {
        let Some(record) = &mut self.record else { return };
        let chain = &self.later.tenant.chain;
        let runs = who_hears(&self.later).map(|at| chain.not_finished(at, Failure::Room)).collect();
        filter_records(&self.worker, &self.later.tenant, record, runs);
    }
}

/// The filters that the request reached and that want to hear of its end, the last first.
fn who_hears(later: &Later) -> impl Iterator<Item = usize> {
    let chain = &later.tenant.chain;
    (0..later.passage.reached()).rev().filter(|at| chain.has(*at, Phase::Finish))
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.later.passage.over();
        if let Some(record) = self.record.take() {
            self.worker.telemetry.finish(record);
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Whether any filter that the request reached wants to hear of its end.
pub(crate) fn wants_the_end(later: &Later) -> bool {
    who_hears(later).next().is_some()
}

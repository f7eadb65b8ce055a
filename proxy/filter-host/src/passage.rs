//! The phases after a request's head was decided on: what they know of the request, and each of their calls.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
};

use bytes::{Bytes, BytesMut};

use crate::{
    bindings::beamline::edge::{bodies::ChunkVerdict, verdicts::ResponseVerdict},
    call::{Failure, Given, Input, on_later},
    chain::{
        Answer, Chain, ChainOutcome, Decision, Ended, FilterRun, Told, Turn, answer, cannot_read,
        carried_out, given_body,
    },
    engine::Engine,
    head::{RequestHead, ResponseHead, Seen},
    host::{FilterConfig, GuestLog, HostView, Subject},
    instances::{After, Slot, Slots},
    phases::Phase,
    slow_lane::Call,
};

pub use crate::bindings::exports::beamline::edge::finish_handler::Outcome as FinishOutcome;

/// What is kept of a body from which a filter is shown the beginning again; beyond it the host gathers a quarter more before
/// it does, so that a client that sends byte by byte does not have all of it copied for each.
const SHOWN_AGAIN_AT_ONCE: usize = 16 << 10;

/// What the later phases of a chain know of one request.
pub struct Passage {
    request: Arc<RequestHead>,
    view: Arc<dyn HostView>,
    contexts: Contexts,
    reached: usize,
}

/// What each filter of a chain remembers of one request, and the instance that it has of it. Calls of one filter may overlap:
/// what ends last counts. None where nothing is to be remembered: no filter has a later phase, and none keeps an instance.
#[derive(Clone, Debug)]
pub(crate) struct Contexts(Option<Rc<Remembered>>);

#[derive(Debug)]
struct Remembered {
    contexts: RefCell<Vec<Option<Bytes>>>,
    slots: Slots,
    /// The request has ended: what of its body may still pass has fresh instances.
    over: Cell<bool>,
}

impl Contexts {
    pub(crate) fn of(filters: usize, needed: bool, keeps_instances: bool) -> Self {
        Self((needed || keeps_instances).then(|| {
            let slots = Slots::of(if keeps_instances { filters } else { 0 });
            let contexts = RefCell::new(vec![None; filters]);
            Rc::new(Remembered { contexts, slots, over: Cell::new(false) })
        }))
    }

    pub(crate) fn get(&self, at: usize) -> Option<Bytes> {
        self.0.as_ref()?.contexts.borrow().get(at).cloned().flatten()
    }

    pub(crate) fn set(&self, at: usize, context: Option<Bytes>) {
        if let Some(remembered) = &self.0
            && let Some(before) = remembered.contexts.borrow_mut().get_mut(at)
        {
            *before = context;
        }
    }

    /// Where a filter's instance is between two of its calls. None of a chain that keeps none.
    pub(crate) fn slot(&self, at: usize) -> Option<&Slot> {
        self.0.as_ref()?.slots.get(at)
    }

    /// Lets go of every instance, and keeps none from now on.
    fn end(&self) {
        if let Some(remembered) = &self.0 {
            remembered.over.set(true);
            remembered.slots.clear();
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.0.as_ref().is_some_and(|remembered| remembered.over.get())
    }
}

/// What a filter decided on a response.
#[derive(Debug)]
pub enum ResponseDecision {
    /// It goes on.
    Next,
    /// This takes its place.
    Respond(Answer),
    /// Read its whole body, and go on with [`Chain::on_whole_response`].
    ReadBody,
    /// The filter failed and its `on_error` is `fail-closed`.
    Failed {
        /// The filter.
        filter: Arc<str>,
        /// Why.
        failure: Failure,
    },
}

/// One filter's part in a response head.
#[derive(Debug)]
pub struct ResponseStep {
    /// The head with the filter's changes.
    pub head: ResponseHead,
    /// What was decided.
    pub decision: ResponseDecision,
    /// The body to send in place of the one that came, where the filter saw it whole and gave one.
    pub body: Option<Bytes>,
    /// What the filter did.
    pub run: FilterRun,
}

/// One filter's part in a body that streams.
#[derive(Debug)]
pub struct BodyStage {
    filter: usize,
    response: Option<Arc<ResponseHead>>,
    /// Kept, to be shown again with what follows.
    held: BytesMut,
    /// So much must there be before it is.
    wanted: usize,
    /// There is room for what is kept beside it.
    may_hold: bool,
    /// Its failing does not break the body off, whatever its `on_error` says.
    unbroken: bool,
    /// The filter failed and may fail open: what is left of the body goes on as it is.
    gave_up: bool,
    /// What it did so far; none before its first call.
    run: Option<FilterRun>,
}

impl Passage {
    pub(crate) fn new(outcome: &ChainOutcome, view: Arc<dyn HostView>) -> Self {
        Self {
            request: Arc::new(RequestHead::clone(&outcome.head)),
            view,
            contexts: outcome.contexts.clone(),
            reached: outcome.reached,
        }
    }

    /// How many filters the request reached.
    pub fn reached(&self) -> usize {
        self.reached
    }

    /// The request has ended. Its upstream may still read of its body; no instance is held for that.
    pub fn over(&self) {
        self.contexts.end();
    }
}

impl std::fmt::Debug for Passage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Passage").field("reached", &self.reached).finish_non_exhaustive()
    }
}

impl BodyStage {
    /// Of the filter at this place in a request's body, or in the body of the response that has this head.
    pub fn new(filter: usize, response: Option<Arc<ResponseHead>>) -> Self {
        Self {
            filter,
            response,
            held: BytesMut::new(),
            wanted: 0,
            may_hold: true,
            unbroken: false,
            gave_up: false,
            run: None,
        }
    }

    /// Where `on`, its failing does not break the body off, whatever its `on_error` says.
    pub fn unbroken(self, on: bool) -> Self {
        Self { unbroken: on, ..self }
    }

    /// So many bytes are held back.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Whether there is room to hold back what is shown next: where not, doing so fails as [`Failure::Room`].
    pub fn may_hold(&mut self, may: bool) {
        self.may_hold = may;
    }

    /// The filter's place in the chain.
    pub fn filter(&self) -> usize {
        self.filter
    }

    /// What the filter did so far, to be told once: its calls together.
    pub fn take_run(&mut self) -> Option<FilterRun> {
        self.run.take()
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
        let more = if bytes.len() < SHOWN_AGAIN_AT_ONCE { 1 } else { bytes.len() / 4 };
        self.wanted = bytes.len() + more;
    }

    /// Adds what a call did.
    fn add(&mut self, run: FilterRun) {
        match &mut self.run {
            None => self.run = Some(run),
            Some(so_far) => {
                so_far.duration += run.duration;
                so_far.cpu += run.cpu;
                so_far.log = run.log;
                so_far.told |= run.told;
                so_far.backtrace = run.backtrace.or(so_far.backtrace.take());
                so_far.breaker = run.breaker.or(so_far.breaker);
                (so_far.failure, so_far.verdict) = (run.failure, run.verdict);
            }
        }
    }
}

impl Chain {
    /// A request's whole body, for [`Chain::on_whole_request`]: what the filter decided, and the body that it gave.
    pub(crate) async fn whole_request(
        &self,
        turn: Turn<'_>,
        subject: Subject,
        body: Result<Bytes, Failure>,
    ) -> (Ended<'_, Decision>, Option<Bytes>) {
        let body = match body {
            Ok(body) => body,
            Err(failure) => return (Ended::refused(Told::of(Phase::WholeRequest), subject, failure), None),
        };
        let (mut replaced, limit) = (None, self.body_limit());
        let ended = self.call_later(turn, subject, Input::WholeRequest(body)).await.checked(|given| {
            let Given::WholeRequest(given) = given else { return Err(Failure::Host) };
            let body = given.body.map(|body| given_body("decision.body", body, limit)).transpose()?;
            let decision = carried_out(given.verdict, false, limit, self.config(turn.at))?;
            replaced = body;
            Ok(decision)
        });
        (ended, replaced)
    }

    /// Runs the response phase of the filter at this place, which must have it.
    pub async fn on_response(
        &self,
        engine: &Engine,
        passage: &Passage,
        at: usize,
        head: ResponseHead,
    ) -> ResponseStep {
        let (may_read, limit) = (self.has(at, Phase::WholeResponse), self.body_limit());
        let ended = self.later(engine, passage, at, Seen::Open(Box::new(head)), None, Input::Response).await;
        let ended = ended.checked(|given| match given {
            Given::Response(verdict) => {
                Ok((response_decision(verdict, may_read, limit, self.config(at))?, None))
            }
            _ => Err(Failure::Host),
        });
        self.step(passage, at, ended)
    }

    /// Runs the phase of the whole response of the filter at this place, which must have it. `body` is what came, or why it
    /// is not here.
    pub async fn on_whole_response(
        &self,
        engine: &Engine,
        passage: &Passage,
        at: usize,
        head: ResponseHead,
        body: Result<Bytes, Failure>,
    ) -> ResponseStep {
        let limit = self.body_limit();
        let ended = match body {
            Ok(body) => {
                let input = Input::WholeResponse(body);
                self.later(engine, passage, at, Seen::Open(Box::new(head)), None, input).await
            }
            Err(failure) => {
                let mut subject = self.subject(Seen::Sent(Arc::clone(&passage.request)), None);
                subject.response = Seen::Open(Box::new(head));
                Ended::refused(Told::of(Phase::WholeResponse), subject, failure)
            }
        };
        let ended = ended.checked(|given| match given {
            Given::WholeResponse(given) => {
                let body = given.body.map(|body| given_body("decision.body", body, limit)).transpose()?;
                Ok((response_decision(given.verdict, false, limit, self.config(at))?, body))
            }
            _ => Err(Failure::Host),
        });
        self.step(passage, at, ended)
    }

    /// Shows a filter one chunk of a body that streams; gives what goes on in its place.
    ///
    /// # Errors
    /// The filter failed and its `on_error` is `fail-closed`: the body must be broken off.
    pub async fn on_chunk(
        &self,
        engine: &Engine,
        passage: &Passage,
        stage: &mut BodyStage,
        chunk: Bytes,
        last: bool,
    ) -> Result<Bytes, Failure> {
        if stage.gave_up {
            return Ok(chunk);
        }
        let shown = if stage.held.is_empty() {
            chunk
        } else {
            stage.held.extend_from_slice(&chunk);
            if !last && stage.held.len() < stage.wanted {
                return Ok(Bytes::new());
            }
            stage.held.split().freeze()
        };
        let at = stage.filter;
        let (response, input) = match &stage.response {
            Some(head) => (Seen::Sent(Arc::clone(head)), Input::ResponseBody(shown.clone(), last)),
            None => (Seen::default(), Input::RequestBody(shown.clone(), last)),
        };
        let log = stage.run.as_mut().map(|run| std::mem::take(&mut run.log));
        let Ended { subject, given, told } = self.later(engine, passage, at, response, log, input).await;
        let (limit, is_response) = (self.body_limit(), stage.response.is_some());
        let may_hold = stage.may_hold;
        let held = |bytes: usize| match () {
            () if bytes as u64 > limit => Err(Failure::Body { limit, response: is_response }),
            () if !may_hold => Err(Failure::Room),
            () => Ok(()),
        };
        let given = given.and_then(|given| match given {
            Given::Chunk(ChunkVerdict::Pass) => Ok(shown.clone()),
            Given::Chunk(ChunkVerdict::Hold) if last => Ok(shown.clone()),
            Given::Chunk(ChunkVerdict::Hold) => {
                held(shown.len())?;
                stage.keep(&shown);
                Ok(Bytes::new())
            }
            Given::Chunk(ChunkVerdict::Replace(with)) => {
                let from = usize::try_from(with.again).ok().and_then(|again| shown.len().checked_sub(again));
                let Some(from) = from else {
                    return Err(Failure::Verdict(format!(
                        "replace.again: expected at most the {} bytes of the chunk; found {}",
                        shown.len(),
                        with.again
                    )));
                };
                // Beside what it was shown, so that it can make something of any chunk.
                let data = given_body("replace.data", with.data, limit.saturating_add(shown.len() as u64))?;
                if !last && with.again > 0 {
                    held(shown.len() - from)?;
                    stage.keep(&shown[from..]);
                }
                Ok(data)
            }
            _ => Err(Failure::Host),
        });
        self.settle_instance(&passage.contexts, at, told.phase(), After::of_chunk(&given, last));
        if given.is_ok() {
            passage.contexts.set(at, subject.context);
        }
        let verdict = if given.is_ok() { "" } else { "failed" };
        stage.add(self.run(at, told, verdict, given.as_ref().err().cloned(), subject.log));
        given.or_else(|failure| match self.failed(at, failure) {
            Some((_, failure)) if !stage.unbroken => Err(failure),
            _ => {
                stage.gave_up = true;
                Ok(shown)
            }
        })
    }

    /// Tells the filter at this place, which must have the phase, how the exchange ended.
    pub async fn on_finish(
        &self,
        engine: &Engine,
        passage: &Passage,
        at: usize,
        outcome: FinishOutcome,
    ) -> FilterRun {
        let ended = self.later(engine, passage, at, Seen::default(), None, Input::Finish(outcome)).await;
        self.settle_instance(&passage.contexts, at, Phase::Finish, After::Decided);
        let verdict = if ended.given.is_ok() { "" } else { "failed" };
        let failure = ended.given.err();
        self.run(at, ended.told, verdict, failure, ended.subject.log)
    }

    /// The same where the filter is not told, for this reason.
    pub fn not_finished(&self, at: usize, why: Failure) -> FilterRun {
        self.run(at, Told::of(Phase::Finish), "failed", Some(why), GuestLog::default())
    }

    /// One call of a later phase. `log`: what is left of the log of an earlier call of this phase.
    async fn later(
        &self,
        engine: &Engine,
        passage: &Passage,
        at: usize,
        response: Seen<ResponseHead>,
        log: Option<GuestLog>,
        input: Input,
    ) -> Ended<'_, Given> {
        let mut subject = self.subject(Seen::Sent(Arc::clone(&passage.request)), passage.contexts.get(at));
        subject.response = response;
        if let Some(log) = log {
            subject.log = log;
        }
        let turn = Turn { engine, view: &passage.view, contexts: &passage.contexts, at };
        self.call_later(turn, subject, input).await
    }

    /// One call of a phase after the request's head, in the instance that is the filter's.
    async fn call_later(&self, turn: Turn<'_>, subject: Subject, input: Input) -> Ended<'_, Given> {
        let phase = input.phase();
        if self.keeps_instance(turn.at, phase) && !turn.contexts.is_over() {
            return Box::pin(self.call_kept(turn, subject, input)).await;
        }
        let begin = |module, state| -> Call { Box::pin(on_later(module, input, state)) };
        self.call(turn, Told::of(phase), subject, begin).await
    }

    fn step(
        &self,
        passage: &Passage,
        at: usize,
        ended: Ended<'_, (ResponseDecision, Option<Bytes>)>,
    ) -> ResponseStep {
        let Ended { mut subject, given, told } = ended;
        self.settle_instance(&passage.contexts, at, told.phase(), After::of_response(&given));
        subject.response.settle(given.is_ok());
        if given.is_ok() {
            passage.contexts.set(at, subject.context);
        }
        let head = *subject.response.into_open();
        let verdict = given.as_ref().map_or("failed", |(decision, _)| decision.name());
        let run = self.run(at, told, verdict, given.as_ref().err().cloned(), subject.log);
        let (decision, body) = given.unwrap_or_else(|failure| {
            let failed = self.failed(at, failure);
            let decision = failed.map_or(ResponseDecision::Next, |(filter, failure)| {
                ResponseDecision::Failed { filter, failure }
            });
            (decision, None)
        });
        ResponseStep { head, decision, body, run }
    }
}

impl ResponseDecision {
    fn name(&self) -> &'static str {
        match self {
            Self::Next => "next",
            Self::Respond(_) => "respond",
            Self::ReadBody => "read-body",
            Self::Failed { .. } => "failed",
        }
    }
}

fn response_decision(
    verdict: ResponseVerdict,
    may_read: bool,
    limit: u64,
    config: &FilterConfig,
) -> Result<ResponseDecision, Failure> {
    Ok(match verdict {
        ResponseVerdict::Next => ResponseDecision::Next,
        ResponseVerdict::Respond(response) => ResponseDecision::Respond(answer(response, limit, config)?),
        ResponseVerdict::ReadBody if may_read => ResponseDecision::ReadBody,
        ResponseVerdict::ReadBody => return Err(cannot_read("response")),
    })
}

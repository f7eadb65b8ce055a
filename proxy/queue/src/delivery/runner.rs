//! Runs the machine: reads, marks and delivers as it says, and tells it what came of that.

use std::{
    cell::Cell,
    collections::HashMap,
    future::Future,
    io,
    path::PathBuf,
    pin::pin,
    rc::Rc,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use beamline_model::RevisionId;
use thiserror::Error;
use tokio::{
    task::{Id, JoinError, JoinSet, LocalSet},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};

use super::{
    Attempt, Deliver, Outcome, Rules,
    clock::Now,
    machine::{Action, Event, Landing, Machine, Policy, Upstreams},
};
use crate::{
    books::Books,
    fault::Fault,
    log::{Candidate, Content, Effect, LogError},
    notices::NoticeReceiver,
    owner::LOOK_EVERY,
    rate::Rate,
    reader::Reader,
    record::{Lane, Seq},
    settings::WallClock,
    standing::Standing,
    step_back,
    writer::Writer,
};

/// How long the end of delivery waits for a log that does not commit.
const FLUSH: Duration = Duration::from_secs(5);
/// How often the lock of another process's queue is tried.
const TAKE_OVER_EVERY: Duration = Duration::from_millis(100);
/// How often an owner in company looks for what others accepted and did.
const LOOK_AGAIN_EVERY: Duration = Duration::from_secs(1);

/// How many events are handled before anything else is looked at.
const AT_ONCE: usize = 64;

/// Why delivery ended before it was told to.
#[derive(Debug, Error)]
pub enum DeliveryError {
    /// The queue was shut down while its records were still being delivered.
    #[error("the queue was closed before its delivery was stopped: stop delivery first, then the queue")]
    Closed,
}

/// The half of a queue that delivers. Give it to a thread with [`Delivery::spawn`], or [`Delivery::run`] it in a runtime.
///
/// A queue whose `Delivery` is dropped still accepts records; they wait for the next owner.
pub struct Delivery {
    pub(crate) standing: Arc<Standing>,
    /// Of epoch 0 where this process does not own the queue yet.
    pub(crate) policy: Policy,
    /// Of the lanes that have one.
    pub(crate) rates: Vec<(Lane, Rate)>,
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
    pub(crate) notices: NoticeReceiver,
    pub(crate) books: Arc<Books>,
    pub(crate) bodies: PathBuf,
    pub(crate) wall_clock: WallClock,
    pub(crate) attempt_timeout: Duration,
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delivery").field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl Delivery {
    /// Runs on a thread of its own, named `queue-delivery`, with a current-thread runtime. `make` is called there, within
    /// a [`LocalSet`].
    ///
    /// # Errors
    /// Where the thread cannot be started. The thread ends with what [`Delivery::run`] returns, or with the error that kept
    /// its runtime from starting.
    pub fn spawn<D: Deliver>(
        self,
        make: impl FnOnce() -> D + Send + 'static,
        shutdown: impl Future<Output = ()> + Send + 'static,
        grace: Duration,
    ) -> io::Result<JoinHandle<io::Result<()>>> {
        thread::Builder::new().name("queue-delivery".into()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let delivered = async { self.run(make(), shutdown, grace).await };
            runtime.block_on(LocalSet::new().run_until(delivered)).map_err(io::Error::other)
        })
    }

    /// Delivers, where another process owns the queue from when it lets go, until `shutdown` is ready; then begins no more, lets those in flight land for at most `grace`, puts back
    /// or ends the rest, and returns when all that is on disk.
    ///
    /// Needs a current-thread runtime with time enabled; brings its own [`LocalSet`], in which `deliver`'s futures run.
    ///
    /// # Errors
    /// [`DeliveryError::Closed`] where the queue was shut down first.
    pub async fn run<D: Deliver>(
        self,
        deliver: D,
        shutdown: impl Future<Output = ()>,
        grace: Duration,
    ) -> Result<(), DeliveryError> {
        LocalSet::new().run_until(self.serve(Rc::new(deliver), shutdown, grace)).await
    }

    async fn serve<D: Deliver>(
        self,
        deliver: Rc<D>,
        shutdown: impl Future<Output = ()>,
        grace: Duration,
    ) -> Result<(), DeliveryError> {
        let mut shutdown = pin!(shutdown);
        let Self {
            standing,
            mut policy,
            rates,
            reader,
            writer,
            mut notices,
            books,
            bodies,
            wall_clock,
            attempt_timeout,
        } = self;
        if policy.epoch == 0 {
            tokio::select! {
                () = &mut shutdown => return Ok(()),
                taken = taken_over(&standing, &writer, &mut notices) => policy.epoch = taken?,
            }
        }
        let clock = Clock { start: Instant::now(), wall: wall_clock };
        let mut machine = Machine::new(policy, rates, clock.now());
        let mut tasks = Tasks {
            set: JoinSet::new(),
            attempts: HashMap::new(),
            shared: Rc::new(Shared {
                deliver: Rc::clone(&deliver),
                reader,
                writer: writer.clone(),
                bodies,
                attempt_timeout,
                epoch: machine.epoch(),
                stopping: Cell::new(false),
            }),
        };
        let upstreams = Declared(Rc::clone(&deliver));
        let mut stop_at = None;
        let mut event = Some(Event::Tick);
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut scanned = Instant::now();
        loop {
            // What has come together is handled together: one group's commit tells of many records.
            for n in 0..AT_ONCE {
                let come = || notices.try_recv().map(Event::Notice).or_else(|| tasks.try_next());
                let Some(event) = event.take().or_else(come) else { break };
                step_back(n);
                for action in machine.handle(clock.now(), event, &upstreams) {
                    match action {
                        Action::Commit(change) => writer.change(change),
                        action => tasks.start(action),
                    }
                }
            }
            books.set_in_flight(machine.in_flight());
            if stop_at.is_some() && machine.in_flight() == 0 {
                break;
            }
            let wake = match stop_at {
                Some(at) => Some(at),
                None => machine.wake_at(clock.now()).map(|at| clock.instant(at)),
            };
            event = tokio::select! {
                () = &mut shutdown, if stop_at.is_none() => {
                    machine.stop();
                    tasks.shared.stopping.set(true);
                    stop_at = Some(Instant::now() + grace);
                    None
                }
                notice = notices.recv() => match notice {
                    Some(notice) => Some(Event::Notice(notice)),
                    None => return Err(DeliveryError::Closed),
                },
                Some(event) = tasks.next() => event,
                _ = looks.tick() => {
                    standing.look(&writer);
                    // What others accept is told here by nobody.
                    if !books.is_alone() && scanned.elapsed() >= LOOK_AGAIN_EVERY {
                        scanned = Instant::now();
                        writer.look_again();
                    }
                    None
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                    if stop_at.is_some() {
                        // What lands from here on has been cut off.
                        tasks.set.abort_all();
                        stop_at = Some(Instant::now() + Duration::from_secs(3600));
                        None
                    } else {
                        Some(Event::Tick)
                    }
                }
            };
        }
        if timeout(FLUSH, writer.flush()).await.is_err() {
            tracing::warn!("the last deliveries could not be recorded in time; the next start recovers them");
        }
        Ok(())
    }
}

/// Waits until the owner's lock is free and takes the queue over; returns the epoch.
async fn taken_over(
    standing: &Standing,
    writer: &Writer,
    notices: &mut NoticeReceiver,
) -> Result<u64, DeliveryError> {
    let mut tries = interval(TAKE_OVER_EVERY);
    tries.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            // What is in the log is looked at when it is ours.
            notice = notices.recv() => {
                notice.ok_or(DeliveryError::Closed)?;
                continue;
            }
            _ = tries.tick() => {}
        }
        let Some(lock) = standing.try_lock() else { continue };
        match writer.take_over(lock).await.ok_or(DeliveryError::Closed)? {
            Ok(epoch) => {
                tracing::info!(epoch, "the queue was taken over from another process");
                return Ok(epoch);
            }
            Err(error) => {
                tracing::error!(%error, "the queue could not be taken over and will be tried again")
            }
        }
    }
}

/// What [`Deliver`] says of upstreams.
struct Declared<D>(Rc<D>);

impl<D: Deliver> Upstreams for Declared<D> {
    fn cap(&self, lane: &Lane) -> u32 {
        self.0.in_flight_cap(&lane.tenant, &lane.upstream)
    }

    fn rules(&self, lane: &Lane) -> Rules {
        self.0.rules(&lane.tenant, &lane.upstream)
    }
}

struct Clock {
    start: Instant,
    wall: WallClock,
}

impl Clock {
    fn now(&self) -> Now {
        let mono = i64::try_from(self.start.elapsed().as_millis()).unwrap_or(i64::MAX);
        Now { mono, wall: (self.wall)() }
    }

    fn instant(&self, mono: i64) -> Instant {
        self.start + Duration::from_millis(u64::try_from(mono).unwrap_or(0))
    }
}

/// What is under way: attempts and reads. As many as the machine asks for, which bounds them.
struct Tasks<D> {
    set: JoinSet<Event>,
    /// Which attempt a task is, for when it panics or is cut off.
    attempts: HashMap<Id, Flight>,
    shared: Rc<Shared<D>>,
}

struct Flight {
    lane: Lane,
    seq: Seq,
    /// Whether it was handed to [`Deliver`], so that bytes may have left.
    sent: Rc<Cell<bool>>,
}

struct Shared<D> {
    deliver: Rc<D>,
    reader: Reader,
    writer: Writer,
    bodies: PathBuf,
    attempt_timeout: Duration,
    epoch: u64,
    stopping: Cell<bool>,
}

impl<D: Deliver> Tasks<D> {
    fn start(&mut self, action: Action) {
        let shared = Rc::clone(&self.shared);
        match action {
            Action::Scan => {
                self.set.spawn_local(async move {
                    let scan = shared.reader.scan().await.inspect_err(read_failed);
                    Event::Scanned(scan.ok())
                });
            }
            Action::Load { lane, limit } => {
                self.set.spawn_local(async move {
                    let rows = shared.reader.window(lane.clone(), limit).await.inspect_err(read_failed);
                    Event::Loaded { lane, limit, rows: rows.ok() }
                });
            }
            Action::Attempt(candidate) => {
                let (lane, seq, sent) = (candidate.lane.clone(), candidate.seq, Rc::default());
                let flight = Flight { lane: lane.clone(), seq, sent: Rc::clone(&sent) };
                let task = self.set.spawn_local(async move {
                    Event::Landed { lane, seq, landing: shared.attempt(candidate, &sent).await }
                });
                self.attempts.insert(task.id(), flight);
            }
            Action::Commit(_) => unreachable!("changes are written by the loop, in order"),
        }
    }

    /// The next event of a task, or none when there is no task. Cancel safe.
    async fn next(&mut self) -> Option<Option<Event>> {
        let ended = self.set.join_next_with_id().await?;
        Some(self.event_of(ended))
    }

    /// The next event of a task that has ended.
    fn try_next(&mut self) -> Option<Event> {
        let ended = self.set.try_join_next_with_id()?;
        self.event_of(ended)
    }

    fn event_of(&mut self, ended: Result<(Id, Event), JoinError>) -> Option<Event> {
        match ended {
            Ok((id, event)) => {
                self.attempts.remove(&id);
                Some(event)
            }
            Err(error) => self.cut_off(&error),
        }
    }

    fn cut_off(&mut self, error: &JoinError) -> Option<Event> {
        let Flight { lane, seq, sent } = self.attempts.remove(&error.id())?;
        let reason = if error.is_panic() {
            tracing::error!(%error, "a delivery panicked; it counts as broken");
            "internal-error".into()
        } else {
            "shutdown".into()
        };
        // One that was not sent may be marked all the same, or be about to: it is put back in either case.
        let outcome = if sent.get() { Outcome::Broken { reason } } else { Outcome::NotSent { reason } };
        Some(Event::Landed { lane, seq, landing: Landing::Made(outcome) })
    }
}

fn read_failed(error: &LogError) {
    tracing::warn!(%error, "delivery could not read the queue's log and will try again");
}

impl<D: Deliver> Shared<D> {
    /// One attempt: see that it could be sent, mark it, and only then send it.
    async fn attempt(&self, candidate: Candidate, sent: &Cell<bool>) -> Landing {
        if !candidate.repeat_safe {
            let Lane { tenant, upstream } = &candidate.lane;
            if !self.deliver.is_reachable(tenant, upstream)
                && let Err(landing) = self.reach(&candidate).await
            {
                return landing;
            }
        }
        if self.stopping.get() {
            return Landing::NotBegun;
        }
        let seq = candidate.seq;
        let late = Fault::MarkAfterDelivery.is_on().then(|| candidate.clone());
        let content = if late.is_some() {
            self.reader.content(seq).await.ok().flatten().map(Box::new)
        } else {
            match self.writer.begin(&candidate, self.epoch).await {
                Some(Effect::Begun(content)) => content,
                Some(_) => return Landing::Stale,
                None => return Landing::NotBegun,
            }
        };
        let attempt = match self.attempt_of(candidate, content.map(|content| *content)) {
            Ok(Some(attempt)) => attempt,
            Ok(None) => {
                tracing::error!(
                    seq = seq.0,
                    "the content of a queued record is lost; it is dead (indeterminate)"
                );
                return Landing::ContentLost;
            }
            Err(withheld) => return Landing::Made(withheld),
        };
        if self.stopping.get() {
            return Landing::Made(Outcome::NotSent { reason: "shutdown".into() });
        }
        sent.set(true);
        thread::yield_now();
        // Boxed: it is large, and is moved a few times on its way to where it runs.
        let outcome = timeout(self.attempt_timeout, Box::pin(self.deliver.deliver(attempt))).await;
        if let Some(candidate) = late {
            self.writer.begin(&candidate, self.epoch).await;
        }
        match outcome {
            Ok(outcome) => Landing::Made(outcome),
            Err(_) => Landing::Made(Outcome::Broken { reason: "attempt-timeout".into() }),
        }
    }

    /// Sees that a record which is not marked yet could be sent, where nobody knows of a connection.
    async fn reach(&self, candidate: &Candidate) -> Result<(), Landing> {
        let content = match self.reader.content(candidate.seq).await {
            // What makes no sense is lost, which its mark will tell.
            Err(LogError::Corrupt(_)) => None,
            Err(error) => {
                read_failed(&error);
                return Err(Landing::NotBegun);
            }
            Ok(content) => content,
        };
        let attempt = self.attempt_of(candidate.clone(), content).map_err(Landing::Unreached)?;
        // What is lost needs no connection.
        let Some(attempt) = attempt else { return Ok(()) };
        match timeout(self.attempt_timeout, self.deliver.reach(&attempt)).await {
            Ok(reached) => reached.map_err(Landing::Unreached),
            Err(_) => Err(Landing::Unreached(Outcome::NotSent { reason: "attempt-timeout".into() })),
        }
    }

    /// None where its content is lost, of which a body file is part.
    fn attempt_of(&self, candidate: Candidate, content: Option<Content>) -> Result<Option<Attempt>, Outcome> {
        let Some(content) = content else { return Ok(None) };
        let body = content.body.open(&self.bodies).map_err(|error| {
            tracing::warn!(%error, "a queued body could not be opened and will be tried again");
            Outcome::Withheld { reason: "request-body".into() }
        })?;
        let Some(body) = body else { return Ok(None) };
        Ok(Some(Attempt {
            id: content.id,
            tenant: candidate.lane.tenant,
            upstream: candidate.lane.upstream,
            revision: RevisionId(content.revision),
            method: content.method,
            target: content.target,
            host: content.host,
            headers: content.headers,
            sealed: content.sealed,
            body,
            number: candidate.attempts.saturating_add(1),
            accepted_ms: content.accepted_ms,
            trace: content.trace,
            repeat_safe: candidate.repeat_safe,
            request_id: content.request_id,
        }))
    }
}

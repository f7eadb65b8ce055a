//! The writer: one thread that owns the log and commits what waits, group by group.
//!
//! A group is whatever waits when the commit before it is done: up to 256 changes, of which an append ends one that has 64,
//! 1 MiB, or 2 ms of gathering. A lone record is committed at once; under load the fsync that is under way is what
//! gathers the next group, and where that was little, a moment of waiting: each commit costs an fsync and the pages that it
//! wrote, however many changes share them.
//!
//! When a commit fails, its appends may be in the log or not. They are answered when it was reopened and those of them
//! that it has were disowned: then no is the truth. Where that takes too long they are told that nobody knows. What comes
//! meanwhile is refused, and what delivery wants recorded is kept and committed first after that.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    io,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::{
    body::{SettledBody, StoredBody},
    books::{Books, Refusal, Reservation},
    claims::KeyClaim,
    disk::Disk,
    fault::Fault,
    health::HealthCell,
    idempotency::Holder,
    keys::PendingKey,
    log::{Act, Append, Candidate, Change, Effect, Ended, Intervened, Intervention, Log, LogError, Unpaused},
    notices::{Notice, NoticeSender},
    owner::OwnerLock,
    queue::recover,
    record::{Lane, RecordId},
    settings::{
        WallClock,
        bounds::{BODY_MEMORY, GROUP_BYTES, GROUP_CHANGES, GROUP_RECORDS, GROUP_TIME, PAGE},
    },
    spool::Spool,
};

const REOPEN_FIRST: Duration = Duration::from_millis(100);
const REOPEN_LAST: Duration = Duration::from_secs(10);
/// A group of so many shows that more are about to come.
const GROUP_BUSY: usize = 4;
/// How long more are waited for: once where there is an append, else for as long as as many come, up to [`GROUP_TIME`].
const GATHERING: Duration = Duration::from_micros(500);
/// How long an append of a failed commit waits for the log to tell whether it is there.
const UNCONFIRMED_AFTER: Duration = Duration::from_secs(5);

/// An append with all that is settled or given back with it.
pub(crate) struct PendingAppend {
    pub(crate) append: Box<Append>,
    pub(crate) rest: AppendRest,
}

/// What belongs to an append beside its row.
pub(crate) struct AppendRest {
    pub(crate) body: SettledBody,
    pub(crate) reservation: Reservation,
    pub(crate) key: Option<PendingKey>,
    pub(crate) claim: Option<KeyClaim>,
    pub(crate) reply: AppendReply,
    /// Its place among the appends that may wait.
    pub(crate) place: OwnedSemaphorePermit,
}

/// Whom to tell what became of an append.
pub(crate) type AppendReply = oneshot::Sender<Result<Stored, Refusal>>;

/// What is in the log for a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stored {
    /// Its record.
    New,
    /// An earlier record that has its client's key.
    Earlier(Holder),
}

/// A change that delivery asked for.
struct PendingChange {
    change: Change,
    /// Whom to tell.
    reply: Option<oneshot::Sender<Effect>>,
    /// Room for the answer that it keeps.
    room: Option<Reservation>,
    /// Bytes that it has the log read, as far as they count for its group.
    reads: u64,
}

impl PendingChange {
    fn new(change: Change, reply: Option<oneshot::Sender<Effect>>) -> Self {
        Self { change, reply, room: None, reads: 0 }
    }

    fn reading(self, reads: u64) -> Self {
        Self { reads, ..self }
    }

    /// Takes room for the answer that it keeps, unless it has. Without room the answer is not kept.
    fn make_room(&mut self, books: &Arc<Books>) {
        let Change::Finish { response, .. } = &mut self.change else { return };
        if let (Some(new), None) = (&response, &self.room) {
            match books.reserve_response(&new.lane.tenant, new.kept.bytes()) {
                Ok(room) => self.room = Some(room),
                Err(refusal) => {
                    tracing::debug!(lane = ?new.lane, %refusal, "an origin's answer is not kept");
                    *response = None;
                }
            }
        }
    }
}

enum Command {
    Append(Box<PendingAppend>),
    Change(Box<PendingChange>),
    /// A disk error was seen elsewhere: nothing is accepted until the log is verified.
    Suspect(String),
    LookAtDisk,
    Nudge(Lane),
    /// Makes this process the owner; answers with its epoch.
    TakeOver(OwnerLock, oneshot::Sender<Result<u64, LogError>>),
    /// Makes it the owner no more.
    LetGo(oneshot::Sender<()>),
    /// This company has gone: what it left is counted.
    AloneAfter(u64),
    /// Others may have changed what delivery cannot know of.
    LookAgain,
    /// Answers when all that came before is committed.
    Flush(oneshot::Sender<()>),
    /// Ends the thread; answers when the log is closed and the lock released.
    Stop(oneshot::Sender<()>),
}

/// The way to the writer thread, which ends when the last of these is dropped.
///
/// Unbounded as a channel; appends hold a permit each, and delivery has no more changes under way than deliveries.
#[derive(Clone)]
pub(crate) struct Writer {
    commands: Sender<Command>,
}

/// What the writer thread works with.
pub(crate) struct Tools {
    pub(crate) log: Box<dyn Log>,
    pub(crate) lock: Option<OwnerLock>,
    pub(crate) books: Arc<Books>,
    pub(crate) health: Arc<HealthCell>,
    pub(crate) disk: Arc<Disk>,
    pub(crate) spool: Spool,
    pub(crate) notices: NoticeSender,
    pub(crate) wall_clock: WallClock,
    pub(crate) max_receipts: u64,
    /// The lanes that are paused.
    pub(crate) paused: HashSet<Lane>,
}

impl Writer {
    pub(crate) fn start(tools: Tools) -> io::Result<Self> {
        let (commands, inbox) = channel();
        let worker = Worker {
            tools,
            inbox,
            first: VecDeque::new(),
            disowned: Vec::new(),
            flushes: Vec::new(),
            leaving: None,
            gone: None,
            busy: false,
            relapse: None,
        };
        thread::Builder::new().name("queue-writer".into()).spawn(move || worker.run())?;
        Ok(Self { commands })
    }

    /// Hands an append over; its reply channel tells the rest. Where the thread has ended, that channel closes.
    pub(crate) fn append(&self, append: PendingAppend) {
        let _ = self.commands.send(Command::Append(Box::new(append)));
    }

    /// Hands a change over. It is committed in the order of handing over, or never if the process ends before.
    pub(crate) fn change(&self, change: Change) {
        let _ = self.commands.send(Command::Change(Box::new(PendingChange::new(change, None))));
    }

    /// Hands a change over and waits for its commit. None where the thread has ended.
    pub(crate) async fn committed(&self, change: Change) -> Option<Effect> {
        self.ask(change, 0).await
    }

    /// Has a record marked `delivering`, and waits for its commit and what is to be sent. None where the thread has ended.
    pub(crate) async fn begin(&self, candidate: &Candidate, epoch: u64) -> Option<Effect> {
        let (seq, attempts) = (candidate.seq, candidate.attempts);
        // Beyond that it is a file, which the log does not read, or a head of a length that hardly any has.
        let reads = candidate.size.min(BODY_MEMORY as u64);
        self.ask(Change::Begin { seq, attempts, epoch }, reads).await
    }

    async fn ask(&self, change: Change, reads: u64) -> Option<Effect> {
        let (reply, effect) = oneshot::channel();
        let change = PendingChange::new(change, Some(reply)).reading(reads);
        self.commands.send(Command::Change(Box::new(change))).ok()?;
        effect.await.ok()
    }

    pub(crate) fn suspect(&self, reason: String) {
        let _ = self.commands.send(Command::Suspect(reason));
    }

    pub(crate) fn look_at_disk(&self) {
        let _ = self.commands.send(Command::LookAtDisk);
    }

    pub(crate) fn nudge(&self, lane: Lane) {
        let _ = self.commands.send(Command::Nudge(lane));
    }

    /// Makes this process the owner of the log and recovers what the one before it was delivering. Returns the epoch;
    /// None where the thread has ended.
    pub(crate) async fn take_over(&self, lock: OwnerLock) -> Option<Result<u64, LogError>> {
        let (reply, taken) = oneshot::channel();
        self.commands.send(Command::TakeOver(lock, reply)).ok()?;
        taken.await.ok()
    }

    /// Gives the ownership up, after what was handed over before is committed.
    pub(crate) async fn let_go(&self) {
        let (reply, done) = oneshot::channel();
        if self.commands.send(Command::LetGo(reply)).is_ok() {
            let _ = done.await;
        }
    }

    pub(crate) fn alone_after(&self, company: u64) {
        let _ = self.commands.send(Command::AloneAfter(company));
    }

    pub(crate) fn look_again(&self) {
        let _ = self.commands.send(Command::LookAgain);
    }

    pub(crate) async fn flush(&self) {
        let (reply, done) = oneshot::channel();
        if self.commands.send(Command::Flush(reply)).is_ok() {
            let _ = done.await;
        }
    }

    pub(crate) async fn stop(&self) {
        let (reply, done) = oneshot::channel();
        if self.commands.send(Command::Stop(reply)).is_ok() {
            let _ = done.await;
        }
    }
}

/// What is done about a change when it is committed, or was not.
enum Then {
    Append(AppendRest),
    Change { reply: Option<oneshot::Sender<Effect>>, room: Option<Reservation>, reads: u64 },
}

/// An append whose commit failed: it may be in the log, and is not to be.
struct Disowned {
    id: RecordId,
    body: SettledBody,
    since: Instant,
    /// Until it is answered.
    reply: Option<AppendReply>,
    /// Nobody else is to use its key while it may be there.
    claim: Option<KeyClaim>,
    /// Nor is anybody to go past it.
    _backlog: Option<PendingKey>,
}

impl Disowned {
    fn answer(&mut self, refusal: Refusal) {
        if let Some(reply) = self.reply.take() {
            let _ = reply.send(Err(refusal));
        }
    }
}

struct Worker {
    tools: Tools,
    inbox: Receiver<Command>,
    /// Changes to commit before anything from the inbox: what a failed group left, and the writer's own chores.
    first: VecDeque<PendingChange>,
    disowned: Vec<Disowned>,
    /// Those who wait until all that came before is committed.
    flushes: Vec<oneshot::Sender<()>>,
    /// Whoever waits until the ownership is given up.
    leaving: Option<oneshot::Sender<()>>,
    /// A company that has gone, until what it left is counted.
    gone: Option<u64>,
    /// Whether the last group was of several: more are about to come.
    busy: bool,
    /// How long to wait before the log is opened anew, where nothing was committed since it last was.
    relapse: Option<Duration>,
}

/// Why the loop ends.
struct Stopped(Option<oneshot::Sender<()>>);

impl Worker {
    fn run(mut self) {
        let ended = EndsAccepting(Arc::clone(&self.tools.health));
        let Stopped(reply) = self.serve();
        // The log is closed before the lock goes, and both before anyone is told so.
        let lock = self.tools.lock.take();
        drop(self);
        drop(lock);
        drop(ended);
        if let Some(reply) = reply {
            let _ = reply.send(());
        }
    }

    fn serve(&mut self) -> Stopped {
        loop {
            let mut group = Group::default();
            while group.has_room()
                && let Some(mut change) = self.first.pop_front()
            {
                change.make_room(&self.tools.books);
                group.add_change(change);
            }
            if group.changes.is_empty() {
                self.tools.notices.flush();
                match self.inbox.recv() {
                    Ok(command) => {
                        if let Some(stopped) = self.take(command, &mut group) {
                            return stopped;
                        }
                    }
                    Err(_) => return Stopped(None),
                }
            }
            let started = Instant::now();
            // How many there were before more were waited for.
            let (mut stopped, mut before) = (None, None);
            while stopped.is_none() && group.has_room() && started.elapsed() < GROUP_TIME {
                match self.inbox.try_recv() {
                    Ok(command) => stopped = self.take(command, &mut group),
                    Err(_) => {
                        let goes_on = match before {
                            None => self.busy,
                            // A client waits for an append: once is enough. And what does not come quickly is not waited for,
                            // be it under way as it may.
                            Some(before) => group.appends == 0 && group.changes.len() >= before + GROUP_BUSY,
                        };
                        if !goes_on || group.is_worth_its_commit() {
                            break;
                        }
                        before = Some(group.changes.len());
                        thread::sleep(GATHERING);
                    }
                }
            }
            self.busy = group.changes.len() >= GROUP_BUSY;
            let committed = self.commit(group);
            if stopped.is_none()
                && let Err(error) = committed
            {
                stopped = self.restore(&error);
            }
            if self.first.is_empty() {
                for flush in self.flushes.drain(..) {
                    let _ = flush.send(());
                }
                if let Some(reply) = self.leaving.take() {
                    self.tools.log.let_go();
                    self.tools.lock = None;
                    let _ = reply.send(());
                }
            }
            if let Some(stopped) = stopped {
                return stopped;
            }
        }
    }

    fn take(&mut self, command: Command, group: &mut Group) -> Option<Stopped> {
        match command {
            Command::Append(append) => group.add_append(*append),
            Command::Change(mut change) => {
                change.make_room(&self.tools.books);
                group.add_change(*change);
            }
            Command::Suspect(reason) => group.suspect = Some(reason),
            Command::LookAtDisk => self.tools.disk.look(),
            Command::Nudge(lane) => self.tools.notices.add(Notice::Nudge(lane)),
            Command::Flush(reply) => self.flushes.push(reply),
            Command::TakeOver(lock, reply) => {
                let taken = self.take_over(lock);
                if let Err(error) = &taken {
                    group.suspect = Some(error.to_string());
                }
                self.tools.notices.flush();
                let _ = reply.send(taken);
            }
            Command::LetGo(reply) => self.leaving = Some(reply),
            Command::AloneAfter(company) => {
                self.gone = Some(company);
                if let Err(error) = self.recount() {
                    group.suspect = Some(error.to_string());
                }
            }
            Command::LookAgain => {
                if let Err(error) = self.look_again() {
                    group.suspect = Some(error.to_string());
                }
            }
            Command::Stop(reply) => return Some(Stopped(Some(reply))),
        }
        None
    }

    fn take_over(&mut self, lock: OwnerLock) -> Result<u64, LogError> {
        self.tools.log.take_over()?;
        if let Err(error) = self.recover() {
            self.tools.log.let_go();
            return Err(error);
        }
        self.tools.lock = Some(lock);
        Ok(self.tools.log.epoch())
    }

    fn recover(&mut self) -> Result<(), LogError> {
        recover(&mut *self.tools.log, (self.tools.wall_clock)())?;
        self.recount()
    }

    /// Counts everything anew; what a company that has gone left is known then.
    fn recount(&mut self) -> Result<(), LogError> {
        self.tools.books.recount(&mut *self.tools.log.reader()?)?;
        self.look_again()?;
        if let Some(company) = self.gone.take() {
            self.tools.books.alone_after(company);
        }
        Ok(())
    }

    /// What others may have done by hand, and what they accepted, is read from the log.
    fn look_again(&mut self) -> Result<(), LogError> {
        let mut reader = self.tools.log.reader()?;
        self.tools.paused = reader.paused()?.into_iter().collect();
        let rates: HashMap<_, _> = reader.rates()?.into_iter().collect();
        let known = self.tools.books.lanes(None).into_iter().map(|(lane, _)| lane);
        for lane in known.filter(|lane| !rates.contains_key(lane)) {
            self.tools.notices.add(Notice::Rate(lane, None));
        }
        for (lane, rate) in rates {
            self.tools.notices.add(Notice::Rate(lane, Some(rate)));
        }
        self.tools.notices.add(Notice::Rescan);
        Ok(())
    }

    fn commit(&mut self, mut group: Group) -> Result<(), LogError> {
        if let Some(reason) = group.suspect.take() {
            let error = LogError::Failed(reason);
            self.give_up(group, &error, false);
            return Err(error);
        }
        if group.changes.is_empty() {
            return Ok(());
        }
        match self.tools.log.commit(&group.changes) {
            Ok(effects) => {
                debug_assert_eq!(effects.len(), group.changes.len(), "each change has its effect");
                self.relapse = None;
                self.tools.books.committed();
                for ((change, then), effect) in group.changes.into_iter().zip(group.thens).zip(effects) {
                    match then {
                        Then::Append(rest) => self.appended(&change, rest, &effect),
                        Then::Change { reply, room, .. } => {
                            if let (Some(room), Effect::Ended(ended)) = (room, &effect) {
                                self.tools.books.responded(ended, room);
                            }
                            self.announce(&change, &effect);
                            if let Some(reply) = reply {
                                // Who did it by hand is told when delivery knows.
                                if matches!(change, Change::Intervene(_)) {
                                    self.tools.notices.flush();
                                }
                                let _ = reply.send(effect);
                            }
                        }
                    }
                }
                self.tools.notices.flush();
                self.tools.disk.look();
                self.trim_receipts();
                self.tools.log.maintain()
            }
            Err(error) => {
                self.give_up(group, &error, true);
                Err(error)
            }
        }
    }

    fn appended(&mut self, change: &Change, rest: AppendRest, effect: &Effect) {
        let (append, seq, front) = match (change, effect) {
            (Change::Append(append), Effect::Appended { seq, front }) => (append, seq, front),
            (_, Effect::KeyTaken(holder)) => {
                // All that was kept ready for it is given back before its client is told.
                let AppendRest { body, reservation, key, claim, reply, place } = rest;
                drop((body, reservation, key, claim, place));
                let _ = reply.send(Ok(Stored::Earlier(*holder)));
                return;
            }
            _ => unreachable!("an append's effect is Appended or KeyTaken"),
        };
        self.tools.books.appended(append, rest.reservation);
        if let Some(key) = rest.key {
            key.committed();
        }
        if let Some(claim) = rest.claim {
            claim.committed();
        }
        if let SettledBody::File(file, _) = rest.body {
            file.keep();
        }
        self.queued(append.candidate(*seq), *front);
        let _ = rest.reply.send(Ok(Stored::New));
        drop(rest.place);
    }

    /// Says that a record is queued. Of a paused lane delivery need not know more than when it expires: the log would
    /// not let it begin, and when the lane is resumed it is read.
    fn queued(&mut self, candidate: Candidate, front: bool) {
        let may_go = front && !self.tools.paused.contains(&candidate.lane);
        self.tools.notices.add(if may_go {
            Notice::Ready(candidate)
        } else {
            Notice::Behind { expires_ms: candidate.expires_ms }
        });
    }

    fn intervened(&mut self, what: &Intervention, done: &Intervened) {
        done.ended.iter().for_each(|ended| self.ended(ended));
        for erased in &done.erased {
            self.tools.books.erased(erased);
            if let Some(body) = erased.freed {
                self.tools.spool.remove(body);
            }
            erased.unpaused.iter().for_each(|unpaused| self.unpaused(unpaused));
        }
        done.unpaused.iter().for_each(|unpaused| self.unpaused(unpaused));
        if !(done.ended.is_empty() && done.erased.is_empty()) {
            self.tools.notices.add(Notice::Ended { at_ms: what.at_ms });
        }
        if let Some(requeued) = &done.requeued {
            self.tools.books.requeued(requeued);
            self.queued(requeued.candidate.clone(), requeued.front);
        }
        if let Act::Rate { upstream, rate } = &what.act {
            let lane = Lane { tenant: what.tenant.clone(), upstream: upstream.clone() };
            self.tools.notices.add(Notice::Rate(lane, *rate));
        }
        if let Act::Pause { upstream, paused } = &what.act {
            let lane = Lane { tenant: what.tenant.clone(), upstream: upstream.clone() };
            if *paused {
                self.tools.paused.insert(lane);
            } else {
                self.tools.paused.remove(&lane);
                self.tools.notices.add(Notice::Released(lane));
            }
        }
    }

    fn announce(&mut self, change: &Change, effect: &Effect) {
        match (change, effect) {
            (_, Effect::Ended(ended)) => self.ended(ended),
            (Change::Expire { limit, .. }, Effect::Expired { ended, next_ms }) => {
                ended.iter().for_each(|ended| self.ended(ended));
                self.tools.notices.add(Notice::Swept { next_ms: *next_ms, full: ended.len() >= *limit });
            }
            (
                Change::Prune { limit, .. } | Change::Trim { limit, .. } | Change::Clear { limit, .. },
                Effect::Pruned { pruned, oldest_delivered_ms, oldest_dead_ms },
            ) => {
                for pruned in pruned {
                    self.tools.books.pruned(pruned);
                    if let Some(body) = pruned.freed {
                        self.tools.spool.remove(body);
                    }
                    pruned.unpaused.iter().for_each(|unpaused| self.unpaused(unpaused));
                }
                if matches!(change, Change::Prune { .. }) {
                    self.tools.notices.add(Notice::Pruned {
                        oldest_delivered_ms: *oldest_delivered_ms,
                        oldest_dead_ms: *oldest_dead_ms,
                        full: pruned.len() >= *limit,
                    });
                }
            }
            (Change::Forget { limit, .. }, Effect::Forgotten { freed, next_ms }) => {
                freed.iter().for_each(|(lane, bytes)| self.tools.books.forgotten(lane, *bytes));
                self.tools.notices.add(Notice::Forgot { next_ms: *next_ms, full: freed.len() >= *limit });
            }
            (Change::Retry { again, .. } | Change::Miss { again, .. }, Effect::Stale) => {
                let (lane, seq) = (again.lane.clone(), again.seq);
                self.tools.notices.add(Notice::Changed { lane, seq });
            }
            (Change::Retry { again, .. } | Change::Miss { again, .. }, Effect::Done) => {
                self.tools.notices.add(Notice::Ready(again.clone()))
            }
            (Change::Intervene(what), Effect::Intervened(done)) => self.intervened(what, done),
            (Change::Release { lane }, _) => self.tools.notices.add(Notice::Released(lane.clone())),
            _ => {}
        }
    }

    fn ended(&mut self, ended: &Ended) {
        self.tools.books.ended(ended);
        if let Some(body) = ended.freed {
            self.tools.spool.remove(body);
        }
        if let Some(next) = &ended.promoted {
            self.queued(next.clone(), true);
        }
    }

    fn unpaused(&mut self, unpaused: &Unpaused) {
        self.tools.books.unpaused(unpaused);
        if let Some(next) = &unpaused.promoted {
            self.queued(next.clone(), true);
        }
    }

    fn trim_receipts(&mut self) {
        if self.tools.log.epoch() == 0 {
            return;
        }
        let too_many = self.tools.books.receipts().saturating_sub(self.tools.max_receipts);
        if too_many > 0 && self.first.is_empty() {
            let limit = usize::try_from(too_many).unwrap_or(PAGE).min(PAGE);
            let now_ms = (self.tools.wall_clock)();
            self.first.push_back(PendingChange::new(Change::Trim { now_ms, limit }, None));
        }
    }

    /// Refuses a group's appends, and keeps its other changes in front of all that comes later.
    fn give_up(&mut self, group: Group, error: &LogError, may_be_there: bool) {
        // Before anyone is told no, so that nobody who was is told yes in the next moment.
        self.tools.health.failed(error.to_string());
        let mut kept = Vec::new();
        for (change, then) in group.changes.into_iter().zip(group.thens) {
            match (change, then) {
                (Change::Append(append), Then::Append(rest)) => self.refuse(append.id, rest, may_be_there),
                (change, Then::Change { reply, room, reads }) => {
                    kept.push(PendingChange { change, reply, room, reads });
                }
                (_, Then::Append(_)) => unreachable!("only an append has what belongs to one"),
            }
        }
        kept.into_iter().rev().for_each(|change| self.first.push_front(change));
    }

    fn refuse(&mut self, id: RecordId, rest: AppendRest, may_be_there: bool) {
        self.tools.books.refused();
        if may_be_there {
            // Its body stays until the log says that no row names it.
            let AppendRest { body, reply, claim, key, .. } = rest;
            let (since, reply) = (Instant::now(), Some(reply));
            self.disowned.push(Disowned { id, body, since, reply, claim, _backlog: key });
        } else {
            let _ = rest.reply.send(Err(Refusal::unavailable()));
        }
    }

    /// Refuses what comes until the log is reopened and verified.
    fn restore(&mut self, error: &LogError) -> Option<Stopped> {
        self.tools.health.failed(error.to_string());
        tracing::error!(%error, "the queue's log failed: nothing is accepted until it is reopened and verified");
        if matches!(error, LogError::Full(_)) {
            self.tools.disk.free_ballast();
        }
        let mut relapse = self.relapse;
        self.relapse = Some(relapse.map_or(REOPEN_FIRST, |pause| (pause * 2).min(REOPEN_LAST)));
        let mut retry = REOPEN_FIRST;
        loop {
            let pause = match self.reopen() {
                // That the log is sound, and yet what is kept can't be committed, may take somebody to mend.
                Ok(()) => match relapse.take() {
                    Some(pause) => pause,
                    None => break,
                },
                Err(error) => {
                    tracing::error!(%error, retry_ms = retry.as_millis(), "the queue's log could not be reopened");
                    self.tools.health.failed(error.to_string());
                    if matches!(error, LogError::Full(_)) {
                        self.tools.disk.free_ballast();
                    }
                    let pause = retry;
                    retry = (retry * 2).min(REOPEN_LAST);
                    pause
                }
            };
            if let Some(stopped) = self.refuse_for(pause) {
                return Some(stopped);
            }
        }
        tracing::info!("the queue's log was reopened and verified: records are accepted again");
        self.tools.health.restored();
        self.tools.notices.add(Notice::Rescan);
        self.tools.notices.flush();
        None
    }

    fn reopen(&mut self) -> Result<(), LogError> {
        self.tools.log.reopen()?;
        let at_ms = (self.tools.wall_clock)();
        let disown: Vec<_> =
            self.disowned.iter().map(|refused| Change::Disown { id: refused.id, at_ms }).collect();
        for page in disown.chunks(PAGE) {
            // Before anything is taken out: where this fails, they are disowned the next time.
            let effects = self.tools.log.commit(page)?;
            for (mut refused, effect) in self.disowned.drain(..page.len()).zip(effects) {
                // Whoever is told no may use the key again.
                refused.claim = None;
                refused.answer(Refusal::unavailable());
                if let (Effect::Ended(_), SettledBody::File(file, _)) = (&effect, refused.body) {
                    file.keep();
                }
            }
        }
        self.recount()
    }

    fn refuse_for(&mut self, pause: Duration) -> Option<Stopped> {
        let until = Instant::now() + pause;
        loop {
            let waiting = self.disowned.iter_mut().filter(|refused| refused.reply.is_some());
            let mut wake = until;
            for refused in waiting {
                let latest = refused.since + UNCONFIRMED_AFTER;
                if latest <= Instant::now() {
                    refused.answer(Refusal::Unconfirmed);
                } else {
                    wake = wake.min(latest);
                }
            }
            self.tools.notices.flush();
            match self.inbox.recv_timeout(wake.saturating_duration_since(Instant::now())) {
                Ok(Command::Append(pending)) => self.refuse(pending.append.id, pending.rest, false),
                Ok(Command::Change(change)) => self.first.push_back(*change),
                Ok(Command::Suspect(_)) => {}
                Ok(Command::LookAtDisk) => self.tools.disk.look(),
                Ok(Command::Nudge(lane)) => self.tools.notices.add(Notice::Nudge(lane)),
                Ok(Command::Flush(reply)) => self.flushes.push(reply),
                Ok(Command::TakeOver(lock, reply)) => {
                    drop(lock);
                    let _ = reply.send(Err(LogError::Failed("it is being reopened after an error".into())));
                }
                Ok(Command::LetGo(reply)) => self.leaving = Some(reply),
                // Everything is counted anew when the log is open again.
                Ok(Command::AloneAfter(company)) => self.gone = Some(company),
                Ok(Command::LookAgain) => {}
                Ok(Command::Stop(reply)) => return Some(Stopped(Some(reply))),
                Err(RecvTimeoutError::Timeout) if wake < until => {}
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => return Some(Stopped(None)),
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Whether rows name these files, only the next start can say: it collects those that none names.
        for mut refused in self.disowned.drain(..) {
            refused.answer(Refusal::Unconfirmed);
            if let SettledBody::File(file, _) = refused.body {
                file.keep();
            }
        }
    }
}

/// However the thread ends, nothing is accepted after it.
struct EndsAccepting(Arc<HealthCell>);

impl Drop for EndsAccepting {
    fn drop(&mut self) {
        self.0.failed("the queue is closed");
    }
}

#[derive(Default)]
struct Group {
    changes: Vec<Change>,
    /// One for each change.
    thens: Vec<Then>,
    appends: usize,
    bytes: u64,
    suspect: Option<String>,
}

impl Group {
    fn add_append(&mut self, mut pending: PendingAppend) {
        if Fault::AnswerBeforeCommit.is_on() {
            let reply = std::mem::replace(&mut pending.rest.reply, oneshot::channel().0);
            let _ = reply.send(Ok(Stored::New));
            thread::sleep(Duration::from_millis(20));
        }
        // A body in a file is not part of the transaction.
        self.bytes += match &pending.append.content.body {
            StoredBody::Inline(_) => pending.append.size,
            StoredBody::File { len, .. } => pending.append.size.saturating_sub(*len),
        };
        self.appends += 1;
        self.changes.push(Change::Append(pending.append));
        self.thens.push(Then::Append(pending.rest));
    }

    fn add_change(&mut self, PendingChange { change, reply, room, reads }: PendingChange) {
        self.bytes += room.as_ref().map_or(0, Reservation::bytes) + reads;
        self.changes.push(change);
        self.thens.push(Then::Change { reply, room, reads });
    }

    fn most(&self) -> usize {
        if self.appends > 0 { GROUP_RECORDS } else { GROUP_CHANGES }
    }

    fn has_room(&self) -> bool {
        self.changes.len() < self.most() && self.bytes < GROUP_BYTES
    }

    /// Whether it is not to wait for more.
    fn is_worth_its_commit(&self) -> bool {
        self.changes.len() >= self.most() / 2
    }
}

//! The scheduler: a state machine that takes events and says what to do. It reads no clock and does no I/O.
//!
//! What it holds is a view of the log and may be behind it. Nothing goes wrong by that: a record is tried only when
//! the log marked it `delivering`, which it does only if the record is as the machine believes.

use std::collections::{BTreeSet, HashMap};

use super::{
    Outcome, Rules,
    backoff::{Jitter, RECORD_CEILING, RETRY_AFTER},
    clock::{JumpGuard, Now},
    decide::{Decision, bearing, decide, note},
    lane::{Health, LaneState, Turn},
    pace::Pace,
    ring::Ring,
};
use crate::{
    log::{AttemptRef, Blame, Candidate, Change, End, Note},
    notices::Notice,
    rate::Rate,
    reader::Scan,
    record::{DeadReason, Lane, Seq},
    response::{KeptResponse, NewResponse},
    settings::{bounds::PAGE, millis},
};

/// Records in the windows of all lanes together; each lane has its share, within the bounds below.
const WINDOWS: usize = 65_536;
const WINDOW_MAX: usize = 256;
const WINDOW_MIN: usize = 16;
/// After a failure to read the log, in milliseconds.
const READ_AGAIN: i64 = 1000;
/// Between two sweeps of expired records, and two rounds of deletion, in milliseconds.
const SWEEP_AGAIN: i64 = 1000;
const PRUNE_AGAIN: i64 = 60_000;
/// The longest sleep while a wall-clock time is waited for, in milliseconds: a jump of that clock is noticed so soon.
const LOOK_AT_CLOCK: i64 = 60_000;

/// What the machine goes by.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) epoch: u64,
    pub(crate) seed: u64,
    pub(crate) max_in_flight: usize,
    pub(crate) receipt_retention_ms: u64,
    pub(crate) dead_retention_ms: u64,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// The beginning, or time passed.
    Tick,
    Notice(Notice),
    /// The answer to [`Action::Scan`]; none where the log could not be read.
    Scanned(Option<Scan>),
    /// The answer to [`Action::Load`]; none where the log could not be read.
    Loaded {
        lane: Lane,
        limit: usize,
        rows: Option<Vec<Candidate>>,
    },
    /// The end of [`Action::Attempt`].
    Landed {
        lane: Lane,
        seq: Seq,
        landing: Landing,
    },
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Landing {
    /// It was made.
    Made(Outcome),
    /// The record was not as the machine believed, and was left alone.
    Stale,
    /// It was not marked `delivering`, for a reason that may pass.
    NotBegun,
    /// It was not marked either: no connection is to be had, so that not a byte could leave.
    Unreached(Outcome),
    /// It was marked, and then its content could not be found.
    ContentLost,
}

/// What to do.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// Read which lanes have open records.
    Scan,
    /// Read the first `limit` queued records of a lane.
    Load { lane: Lane, limit: usize },
    /// Mark the record `delivering`, then deliver it.
    Attempt(Candidate),
    /// Write this to the log, in the order given.
    Commit(Change),
}

/// What tenants' active revisions say of their upstreams.
pub(crate) trait Upstreams {
    /// How many deliveries may fly to it at once; 0 is taken as 1.
    fn cap(&self, lane: &Lane) -> u32;

    /// What becomes of its records.
    fn rules(&self, lane: &Lane) -> Rules;
}

#[derive(Debug)]
pub(crate) struct Machine {
    policy: Policy,
    /// By the monotonic clock.
    started: i64,
    jitter: Jitter,
    guard: JumpGuard,
    lanes: HashMap<Lane, LaneState>,
    /// Of the lanes that have a rate, idle ones among them: what they had before they were idle counts.
    paces: HashMap<Lane, Pace>,
    ring: Ring,
    timers: BTreeSet<(i64, Lane)>,
    in_flight: usize,
    stopping: bool,
    scan: ScanState,
    sweep: Chore,
    prune: Chore,
    forget: Chore,
    actions: Vec<Action>,
}

#[derive(Debug, PartialEq, Eq)]
enum ScanState {
    At(i64),
    Running { again: bool },
    Done,
}

/// Where a candidate comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    /// A load: there is none before it on disk that is not in the window too.
    Disk,
    /// A commit just now: there may be others before it on disk.
    Commit,
}

/// Something to do at a wall-clock time, one at a time and not too often.
#[derive(Debug, Default)]
struct Chore {
    due_wall: Option<u64>,
    running: bool,
    not_before: i64,
}

impl Chore {
    fn wish(&mut self, wall_ms: u64) {
        self.due_wall = Some(self.due_wall.map_or(wall_ms, |due| due.min(wall_ms)));
    }

    fn start(&mut self, now: Now, guard: &JumpGuard) -> bool {
        let starts = !self.running
            && now.mono >= self.not_before
            && self.due_wall.is_some_and(|due| guard.is_past(due, now));
        if starts {
            self.running = true;
            self.due_wall = None;
        }
        starts
    }

    fn done(&mut self, not_before: i64) {
        self.running = false;
        self.not_before = not_before;
    }

    fn wake_at(&self, now: Now, guard: &JumpGuard) -> Option<i64> {
        let due = self.due_wall.filter(|_| !self.running)?;
        let earliest = self.not_before.max(guard.damped_until().unwrap_or(i64::MIN));
        Some(now.mono_at(due).min(now.mono + LOOK_AT_CLOCK).max(earliest))
    }
}

impl Machine {
    /// A machine that knows nothing yet: its first [`Event::Tick`] asks for a scan.
    pub(crate) fn new(policy: Policy, rates: Vec<(Lane, Rate)>, now: Now) -> Self {
        Self {
            jitter: Jitter::new(policy.seed),
            policy,
            started: now.mono,
            guard: JumpGuard::default(),
            lanes: HashMap::new(),
            paces: rates.into_iter().map(|(lane, rate)| (lane, Pace::new(rate, now.mono))).collect(),
            ring: Ring::default(),
            timers: BTreeSet::new(),
            in_flight: 0,
            stopping: false,
            scan: ScanState::At(now.mono),
            sweep: Chore::default(),
            prune: Chore::default(),
            forget: Chore::default(),
            actions: Vec::new(),
        }
    }

    /// No attempt begins from here on.
    pub(crate) fn stop(&mut self) {
        self.stopping = true;
    }

    /// The owner's epoch.
    pub(crate) fn epoch(&self) -> u64 {
        self.policy.epoch
    }

    /// Attempts that have not landed.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Records in all windows together.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.lanes.values().map(|state| state.window.len()).sum()
    }

    /// Takes an event and returns what to do, in order.
    pub(crate) fn handle(&mut self, now: Now, event: Event, upstreams: &dyn Upstreams) -> Vec<Action> {
        self.guard.observe(now);
        match event {
            Event::Tick => {}
            Event::Notice(notice) => self.noticed(now, notice, upstreams),
            Event::Scanned(scan) => self.scanned(now, scan, upstreams),
            Event::Loaded { lane, limit, rows } => self.loaded(now, lane, limit, rows, upstreams),
            Event::Landed { lane, seq, landing } => self.landed(now, &lane, seq, landing, upstreams),
        }
        self.ring_timers(now);
        self.launch(now, upstreams);
        self.do_chores(now);
        std::mem::take(&mut self.actions)
    }

    /// When to send the next [`Event::Tick`], in monotonic time. None: nothing will happen by itself.
    pub(crate) fn wake_at(&self, now: Now) -> Option<i64> {
        if self.stopping {
            return None;
        }
        let scan = match self.scan {
            ScanState::At(at) => Some(at),
            ScanState::Running { .. } | ScanState::Done => None,
        };
        [
            self.timers.first().map(|(at, _)| *at),
            scan,
            self.sweep.wake_at(now, &self.guard),
            self.prune.wake_at(now, &self.guard),
            self.forget.wake_at(now, &self.guard),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn window_size(&self) -> usize {
        (WINDOWS / self.lanes.len().max(1)).clamp(WINDOW_MIN, WINDOW_MAX)
    }

    /// The lane's state, made where it is missing.
    fn lane(&mut self, lane: &Lane) -> &mut LaneState {
        if !self.lanes.contains_key(lane) {
            self.lanes.insert(lane.clone(), LaneState::new());
        }
        self.lanes.get_mut(lane).expect("it was made where it was missing")
    }

    fn noticed(&mut self, now: Now, notice: Notice, upstreams: &dyn Upstreams) {
        match notice {
            Notice::Ready(candidate) => {
                self.sweep.wish(candidate.expires_ms);
                let lane = candidate.lane.clone();
                match self.lane(&lane).returning.remove(&candidate.seq) {
                    Some(due) => self.wait_until(due, candidate, From::Commit),
                    None => self.wait(now, candidate, From::Commit),
                }
                self.plan(now, &lane, upstreams);
            }
            Notice::Changed { lane, seq } => {
                let state = self.lane(&lane);
                state.returning.remove(&seq);
                state.disk.more = true;
                self.plan(now, &lane, upstreams);
            }
            Notice::Behind { expires_ms } => self.sweep.wish(expires_ms),
            Notice::Ended { at_ms } => self.wish_to_prune(Some(at_ms), None),
            Notice::Released(lane) => {
                self.lane(&lane).disk.stale = true;
                self.plan(now, &lane, upstreams);
            }
            Notice::Rate(lane, rate) => {
                match (rate, self.paces.get_mut(&lane)) {
                    (Some(rate), Some(pace)) => pace.change(rate, now.mono),
                    (Some(rate), None) => drop(self.paces.insert(lane.clone(), Pace::new(rate, now.mono))),
                    (None, _) => drop(self.paces.remove(&lane)),
                }
                self.plan(now, &lane, upstreams);
            }
            Notice::Swept { next_ms, full } => {
                self.sweep.done(if full { now.mono } else { now.mono + SWEEP_AGAIN });
                next_ms.into_iter().for_each(|at| self.sweep.wish(at));
                self.prune.wish(now.wall_in(self.policy.dead_retention_ms + 1));
            }
            Notice::Pruned { oldest_delivered_ms, oldest_dead_ms, full } => {
                self.prune.done(if full { now.mono } else { now.mono + PRUNE_AGAIN });
                self.wish_to_prune(oldest_delivered_ms, oldest_dead_ms);
            }
            Notice::Forgot { next_ms, full } => {
                self.forget.done(if full { now.mono } else { now.mono + SWEEP_AGAIN });
                next_ms.into_iter().for_each(|at| self.forget.wish(at));
            }
            Notice::Nudge(lane) => {
                if self.lanes.get_mut(&lane).is_some_and(|state| state.nudge(now.mono)) {
                    self.plan(now, &lane, upstreams);
                }
            }
            Notice::Rescan => {
                self.scan = match self.scan {
                    ScanState::Running { .. } => ScanState::Running { again: true },
                    ScanState::At(_) | ScanState::Done => ScanState::At(now.mono),
                };
            }
        }
    }

    fn wish_to_prune(&mut self, delivered_ms: Option<u64>, dead_ms: Option<u64>) {
        for (oldest, retention) in
            [(delivered_ms, self.policy.receipt_retention_ms), (dead_ms, self.policy.dead_retention_ms)]
        {
            if let Some(oldest) = oldest {
                self.prune.wish(oldest.saturating_add(retention).saturating_add(1));
            }
        }
    }

    fn scanned(&mut self, now: Now, scan: Option<Scan>, upstreams: &dyn Upstreams) {
        let again = self.scan == ScanState::Running { again: true };
        let Some(scan) = scan else {
            self.scan = ScanState::At(now.mono + READ_AGAIN);
            return;
        };
        self.scan = if again { ScanState::At(now.mono) } else { ScanState::Done };
        // What has come back in the meantime was read, or will be: the lanes are read anew.
        self.lanes.values_mut().for_each(|state| state.returning.clear());
        scan.expires_ms.into_iter().for_each(|at| self.sweep.wish(at));
        scan.response_ms.into_iter().for_each(|at| self.forget.wish(at));
        self.wish_to_prune(scan.delivered_ms, scan.dead_ms);
        for lane in scan.lanes {
            self.lane(&lane).disk.stale = true;
        }
        // In an order of their own, not the map's: the same events lead to the same deliveries.
        let mut lanes: Vec<_> = self.lanes.keys().cloned().collect();
        lanes.sort_unstable();
        for lane in lanes {
            self.plan(now, &lane, upstreams);
        }
    }

    fn loaded(
        &mut self,
        now: Now,
        lane: Lane,
        limit: usize,
        rows: Option<Vec<Candidate>>,
        upstreams: &dyn Upstreams,
    ) {
        let disk = &mut self.lane(&lane).disk;
        disk.loading = false;
        match rows {
            None => {
                disk.stale = true;
                disk.not_before = now.mono + READ_AGAIN;
            }
            Some(rows) => {
                disk.more |= rows.len() >= limit;
                rows.into_iter().for_each(|candidate| self.wait(now, candidate, From::Disk));
            }
        }
        self.plan(now, &lane, upstreams);
    }

    /// Puts a candidate in its lane's window, unless it is flying, or must wait on disk for others that are due before it.
    fn wait(&mut self, now: Now, candidate: Candidate, from: From) {
        // Whatever the wall clock did since: none waits longer than it was to wait. And one that was tried does not wait at all
        // where that clock went back, of which nobody knows who was not there: it was accepted, or its wait began, later than
        // now.
        let due = if candidate.attempts == 0 {
            self.guard.mono_at(candidate.due_ms, candidate.accepted_ms, now)
        } else {
            let began = candidate.due_ms.saturating_sub(candidate.delay_ms);
            let went_back = candidate.accepted_ms.max(began) > now.wall;
            if went_back { now.mono } else { now.mono_at(candidate.due_ms) }
        };
        let longest = now.mono.saturating_add_unsigned(candidate.delay_ms);
        self.wait_until(due.min(longest), candidate, from);
    }

    /// The same for one that is due at a time of the monotonic clock.
    fn wait_until(&mut self, due: i64, candidate: Candidate, from: From) {
        let capacity = self.window_size();
        let state = self.lane(&candidate.lane.clone());
        if state.flying.contains_key(&candidate.seq) {
            return;
        }
        // Otherwise a steady stream of new records would keep the window full, and those on disk would never come.
        let waits_on_disk = from == From::Commit
            && state.disk.may_hold_more()
            && state.window.last_due().is_none_or(|last| last < due);
        if waits_on_disk || state.window.insert(candidate, due, capacity) {
            state.disk.more = true;
        }
    }

    fn landed(&mut self, now: Now, lane: &Lane, seq: Seq, landing: Landing, upstreams: &dyn Upstreams) {
        let cap = upstreams.cap(lane).max(1);
        let Some((candidate, was_probe)) = self.lanes.get_mut(lane).and_then(|state| state.land(seq)) else {
            debug_assert!(false, "{seq:?} landed and was not flying");
            return;
        };
        self.in_flight -= 1;
        self.ring.landed(&lane.tenant);
        match landing {
            // Whatever the log has of it now is read again.
            Landing::Stale => self.lane(lane).disk.more = true,
            Landing::NotBegun => {
                let capacity = self.window_size();
                let state = self.lane(lane);
                if state.window.insert(candidate, now.mono + READ_AGAIN, capacity) {
                    state.disk.more = true;
                }
            }
            Landing::ContentLost => {
                let attempt = self.attempt_of(&candidate);
                let note = Note { status: None, error: Some("content-lost".into()) };
                self.finish(now, attempt, End::Dead(DeadReason::Indeterminate), note, None);
            }
            Landing::Made(_) | Landing::Unreached(_) => {
                let (outcome, was_marked) = match landing {
                    Landing::Unreached(outcome) => (outcome, false),
                    Landing::Made(outcome) => (outcome, true),
                    _ => unreachable!("matched above"),
                };
                let rules = upstreams.rules(lane);
                let Self { lanes, jitter, .. } = self;
                if let Some(state) = lanes.get_mut(lane) {
                    let first = candidate.blame.is_none();
                    state.learn(
                        bearing(&outcome, &rules.on_status),
                        (was_probe, first),
                        now.mono,
                        cap,
                        jitter,
                    );
                }
                self.resolve(now, candidate, (outcome, was_marked), &rules);
            }
        }
        self.plan(now, lane, upstreams);
    }

    fn attempt_of(&self, candidate: &Candidate) -> AttemptRef {
        AttemptRef { seq: candidate.seq, attempts: candidate.attempts + 1, epoch: self.policy.epoch }
    }

    fn finish(
        &mut self,
        now: Now,
        attempt: AttemptRef,
        end: End,
        note: Note,
        response: Option<Box<NewResponse>>,
    ) {
        response.iter().for_each(|response| self.forget.wish(response.kept.until_ms));
        let retention = match end {
            End::Delivered { .. } => self.policy.receipt_retention_ms,
            End::Dead(_) => self.policy.dead_retention_ms,
        };
        self.prune.wish(now.wall_in(retention.saturating_add(1)));
        self.actions.push(Action::Commit(Change::Finish { attempt, end, at_ms: now.wall, note, response }));
    }

    /// Records what an attempt led to.
    fn resolve(
        &mut self,
        now: Now,
        mut candidate: Candidate,
        (outcome, was_marked): (Outcome, bool),
        rules: &Rules,
    ) {
        let attempt = self.attempt_of(&candidate);
        let note = note(&outcome);
        let decision = decide(&outcome, candidate.repeat_safe, &rules.on_status);
        let response = kept(outcome, &candidate.lane, now);
        if !was_marked && !matches!(decision, Decision::AgainWithUpstream | Decision::AgainUnblamed) {
            let AttemptRef { seq, epoch, .. } = attempt;
            self.actions.push(Action::Commit(Change::Begin { seq, attempts: candidate.attempts, epoch }));
        }
        // By the monotonic clock: whatever the other one does until it is committed.
        let mut due = now.mono;
        let wait = match decision {
            Decision::Delivered { response_complete } => {
                return self.finish(now, attempt, End::Delivered { response_complete }, note, response);
            }
            Decision::Dead(reason) => return self.finish(now, attempt, End::Dead(reason), note, response),
            Decision::Hold => {
                self.actions.push(Action::Commit(Change::Hold { attempt }));
                self.sweep.wish(candidate.expires_ms);
                return;
            }
            Decision::AgainWithUpstream => None,
            Decision::AgainUnblamed => {
                let wait = millis(self.jitter.backoff(attempt.attempts, RECORD_CEILING));
                (candidate.due_ms, candidate.delay_ms) = (now.wall_in(wait), wait);
                due = due.saturating_add_unsigned(wait);
                None
            }
            Decision::AgainAfterBackoff => {
                let failures = candidate.blame.map_or(0, |b| b.failures).saturating_add(1);
                Some(self.jitter.backoff(failures, RECORD_CEILING))
            }
            Decision::AgainAfter(asked) => Some(asked.clamp(RETRY_AFTER.0, RETRY_AFTER.1)),
        };
        if let Some(wait) = wait {
            let blame = candidate.blame.get_or_insert(Blame { failures: 0, since_ms: now.wall });
            blame.failures = blame.failures.saturating_add(1);
            let longest = millis(rules.key_block_max);
            let blocked_until = blame.since_ms.saturating_add(longest);
            // Nobody knows what the clock did while nobody was there: from a start on a key has its time anew.
            let there = now.mono.saturating_sub(self.started);
            if candidate.keyed
                && self.guard.is_past(blocked_until, now)
                && there >= i64::try_from(longest).unwrap_or(i64::MAX)
            {
                return self.finish(now, attempt, End::Dead(DeadReason::Exhausted), note, response);
            }
            (candidate.due_ms, candidate.delay_ms) = (now.wall_in(millis(wait)), millis(wait));
            due = due.saturating_add_unsigned(millis(wait));
        }
        candidate.attempts = attempt.attempts;
        // It comes back as a notice when it is committed: until then a read of the log could not find it, and it would be
        // lost to us if it had to wait on disk.
        self.lane(&candidate.lane.clone()).returning.insert(candidate.seq, due);
        self.actions.push(Action::Commit(match was_marked {
            true => Change::Retry { attempt, again: candidate, note },
            false => Change::Miss { attempt, again: candidate, note },
        }));
    }

    fn do_chores(&mut self, now: Now) {
        if self.stopping {
            return;
        }
        if matches!(self.scan, ScanState::At(at) if at <= now.mono) {
            self.scan = ScanState::Running { again: false };
            self.actions.push(Action::Scan);
        }
        if self.sweep.start(now, &self.guard) {
            self.actions.push(Action::Commit(Change::Expire { now_ms: now.wall, limit: PAGE }));
        }
        if self.forget.start(now, &self.guard) {
            self.actions.push(Action::Commit(Change::Forget { now_ms: now.wall, limit: PAGE }));
        }
        if self.prune.start(now, &self.guard) {
            self.actions.push(Action::Commit(Change::Prune {
                now_ms: now.wall,
                delivered_before_ms: now.wall.saturating_sub(self.policy.receipt_retention_ms),
                dead_before_ms: now.wall.saturating_sub(self.policy.dead_retention_ms),
                limit: PAGE,
            }));
        }
    }

    /// Puts lanes whose time has come in the ring.
    fn ring_timers(&mut self, now: Now) {
        while let Some((at, _)) = self.timers.first()
            && *at <= now.mono
            && let Some((_, lane)) = self.timers.pop_first()
        {
            if let Some(state) = self.lanes.get_mut(&lane) {
                state.turn = Turn::Ready;
                self.ring.push(lane);
            }
        }
    }

    /// Begins attempts while lanes are ready and there is room for more in flight.
    fn launch(&mut self, now: Now, upstreams: &dyn Upstreams) {
        while !self.stopping && self.in_flight < self.policy.max_in_flight {
            let Some(lane) = self.ring.pop(self.policy.max_in_flight - self.in_flight) else { return };
            let cap = upstreams.cap(&lane).max(1);
            let Some(state) = self.lanes.get_mut(&lane) else {
                self.ring.turned(&lane.tenant, None);
                continue;
            };
            state.turn = Turn::None;
            if let Health::Missing { until } = state.health
                && until <= now.mono
            {
                // Whether the upstream is there again is found by trying one.
                state.health = Health::Failing { failures: 0, until: now.mono, answered: false };
                self.actions.push(Action::Commit(Change::Release { lane: lane.clone() }));
            }
            let mut bytes = None;
            let pace = self.paces.get_mut(&lane);
            let open_at = pace.as_ref().map_or(i64::MIN, |pace| pace.open_at());
            match state.launch(now.mono, (cap, open_at), &mut self.jitter) {
                // The sweep will end it; here it is only not tried.
                Some(expired) if self.guard.is_past(expired.expires_ms, now) => {
                    self.sweep.wish(expired.expires_ms);
                    state.land(expired.seq);
                }
                Some(candidate) => {
                    self.in_flight += 1;
                    pace.into_iter().for_each(|pace| pace.take(now.mono));
                    bytes = Some(candidate.size);
                    self.actions.push(Action::Attempt(candidate));
                }
                None => {}
            }
            self.ring.turned(&lane.tenant, bytes);
            self.plan(now, &lane, upstreams);
        }
    }

    /// Looks at a lane after anything changed: loads what it is short of, and says when its next turn is.
    fn plan(&mut self, now: Now, lane: &Lane, upstreams: &dyn Upstreams) {
        let capacity = self.window_size();
        let cap = upstreams.cap(lane).max(1);
        let Some(state) = self.lanes.get_mut(lane) else { return };
        if !self.stopping && state.wants_load(now.mono, capacity) {
            state.disk.loading = true;
            state.disk.stale = false;
            state.disk.more = false;
            // Those that fly may still be queued on disk, and are passed over when they come.
            let limit = capacity + state.flying.len();
            self.actions.push(Action::Load { lane: lane.clone(), limit });
        }
        if state.turn == Turn::Ready {
            return;
        }
        if let Turn::At(at) = std::mem::take(&mut state.turn) {
            self.timers.remove(&(at, lane.clone()));
        }
        let open_at = self.paces.get(lane).map_or(i64::MIN, Pace::open_at);
        match state.next_turn(now.mono, (cap, open_at)) {
            Some(at) if at <= now.mono => {
                state.turn = Turn::Ready;
                self.ring.push(lane.clone());
            }
            Some(at) => {
                state.turn = Turn::At(at);
                self.timers.insert((at, lane.clone()));
            }
            None if state.is_idle() => {
                self.lanes.remove(lane);
            }
            None => {}
        }
    }
}

/// What is kept of an answer, should its record end with it.
fn kept(outcome: Outcome, lane: &Lane, now: Now) -> Option<Box<NewResponse>> {
    let Outcome::Answered { status, keep: Some(keep), .. } = outcome else { return None };
    let kept = KeptResponse { status, until_ms: now.wall_in(millis(keep.period)), whole: keep.whole };
    Some(Box::new(NewResponse { lane: lane.clone(), kept }))
}

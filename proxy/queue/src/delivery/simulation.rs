//! The scheduler on a log in memory, under simulated time: upstreams that fail in every way, stale reads, slow commits,
//! crashes. What must hold is asserted at each step; a run is its seed.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet, VecDeque},
    ops::Range,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    Outcome, Rules,
    backoff::Jitter,
    clock::Now,
    machine::{Action, Event, Landing, Machine, Policy, Upstreams},
};
use crate::{
    body::StoredBody,
    log::{
        Act, Append, Candidate, CensusRow, Change, Content, Effect, Ended, Intervention, Log,
        memory::{MemoryDisk, MemoryLog},
    },
    notices::Notice,
    reader::Scan,
    receipt::SecretHash,
    record::{DeadReason, Lane, RecordId, Seq, State, TraceRef},
};
use beamline_model::OnDead;
use bytes::Bytes;

mod claims;
mod random;

const CAP: u32 = 4;
const WALL_START: u64 = 1_700_000_000_000;
const MINUTE: i64 = 60_000;

/// Every upstream has the same cap and a manifest's default rules.
struct Same;

impl Upstreams for Same {
    fn cap(&self, _: &Lane) -> u32 {
        CAP
    }

    fn rules(&self, _: &Lane) -> Rules {
        Rules::default()
    }
}

/// How an upstream behaves from some time on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Up,
    /// Connections are refused: nothing is sent.
    Refusing,
    /// Connections break after bytes left.
    Breaking,
    Erroring,
    /// 503 with `Retry-After: 2`.
    Busy,
    Missing,
    /// Takes what is sent and never answers: the attempt is given up after 5 min.
    Hanging,
    /// Its address is not granted: nothing is sent.
    Denied,
}

#[derive(Clone, Debug)]
struct Request {
    at: i64,
    lane: usize,
    key: Option<u16>,
    /// Its death pauses its key.
    pausing: bool,
    repeat_safe: bool,
    expiry: i64,
    delay: i64,
    size: u64,
    /// No request can be made of it.
    unsendable: bool,
    /// Its content is not found when it is to be sent.
    lost: bool,
}

#[derive(Clone, Debug, Default)]
struct Plan {
    seed: u64,
    requests: Vec<Request>,
    /// For each lane, what it becomes at which times.
    modes: Vec<Vec<(i64, Mode)>>,
    /// Records of these keys are answered 500 until then.
    bad_keys: Option<(Range<u16>, i64)>,
    crashes: Vec<i64>,
    /// When delivery is told that it missed something, and reads all anew.
    rescans: Vec<i64>,
    /// When the wall clock jumps, and by how much.
    jumps: Vec<(i64, i64)>,
    /// When the first lane is given a rate.
    rates: Vec<(i64, Option<u32>)>,
    /// When somebody resumes this key of the first lane.
    resumes: Vec<(i64, u16)>,
    /// When someone says that a lane may be well again.
    nudges: Vec<(i64, usize)>,
    /// From when until when the log takes no commit. Of those that fail, some are there all the same.
    broken: Vec<Range<i64>>,
    /// From when until when it cannot be read.
    unreadable: Vec<Range<i64>>,
    max_in_flight: usize,
    /// The longest that a commit takes beyond 5 ms, and a read beyond 1 ms.
    slow: (u64, u64),
}

enum Happens {
    Append(usize),
    /// Somebody does this to the records by hand.
    ByHand(Act),
    /// The writer applies what is first in its inbox.
    Write,
    Machine(Event),
    /// A read sees the log now, and answers later.
    Load {
        lane: Lane,
        limit: usize,
    },
    Scan,
    /// A candidate's content was read.
    MarkIt(Candidate),
    Deliver(Candidate),
    Answered {
        candidate: Candidate,
        outcome: Outcome,
    },
    Tick,
    Crash,
}

enum Inbox {
    Change(Change),
    Begin(Candidate),
    Append(usize),
}

#[derive(Clone, Debug, Default)]
struct Fate {
    seq: Option<Seq>,
    appended_at: i64,
    starts: Vec<i64>,
    delivered_at: Option<i64>,
    /// An attempt after which an unsafe record must not be sent again.
    may_be_taken: bool,
}

struct Simulation {
    plan: Plan,
    now: i64,
    /// By time; then in the order in which they were scheduled.
    agenda: BinaryHeap<Reverse<(i64, u64)>>,
    what: HashMap<u64, Happens>,
    count: u64,
    /// Things of this owner's life; those of a dead one never happen.
    life: HashSet<u64>,
    inbox: VecDeque<Inbox>,
    dice: Jitter,
    disk: MemoryDisk,
    log: MemoryLog,
    machine: Machine,
    tick: Option<i64>,
    fates: Vec<Fate>,
    by_seq: HashMap<Seq, usize>,
    in_flight: HashMap<Seq, Lane>,
    /// Lanes whose last landing was a refusal: how many flights began since.
    probing: HashMap<Lane, u32>,
    most_in_windows: usize,
    handled: u64,
}

fn lane(n: usize) -> Lane {
    // Two upstreams for each tenant.
    Lane { tenant: format!("t{}", n / 2).parse().unwrap(), upstream: format!("u{}", n % 2).parse().unwrap() }
}

fn lane_number(lane: &Lane) -> usize {
    (0..).find(|n| self::lane(*n) == *lane).unwrap()
}

fn policy(seed: u64, epoch: u64, max_in_flight: usize) -> Policy {
    Policy {
        epoch,
        seed,
        max_in_flight,
        receipt_retention_ms: 24 * 3_600_000,
        dead_retention_ms: 24 * 3_600_000,
    }
}

impl Simulation {
    fn new(plan: Plan) -> Self {
        let disk = MemoryDisk::default();
        let log = disk.open();
        let now = Now { mono: 0, wall: WALL_START };
        let machine = Machine::new(policy(plan.seed, log.epoch(), plan.max_in_flight), vec![], now);
        let mut simulation = Self {
            now: 0,
            agenda: BinaryHeap::new(),
            what: HashMap::new(),
            count: 0,
            life: HashSet::new(),
            inbox: VecDeque::new(),
            dice: Jitter::new(plan.seed ^ 1),
            disk,
            log,
            machine,
            tick: None,
            fates: vec![Fate::default(); plan.requests.len()],
            by_seq: HashMap::new(),
            in_flight: HashMap::new(),
            probing: HashMap::new(),
            most_in_windows: 0,
            handled: 0,
            plan,
        };
        for (n, request) in simulation.plan.requests.clone().iter().enumerate() {
            simulation.at(request.at, Happens::Append(n), false);
        }
        for at in simulation.plan.crashes.clone() {
            simulation.at(at, Happens::Crash, false);
        }
        // After the log was reopened, too, everything is read anew.
        let reopened = simulation.plan.broken.iter().map(|broken| broken.end + 1);
        for at in simulation.plan.rescans.iter().copied().chain(reopened).collect::<Vec<_>>() {
            simulation.at(at, Happens::Machine(Event::Notice(Notice::Rescan)), false);
        }
        for (at, rate) in simulation.plan.rates.clone() {
            let (upstream, rate) = (lane(0).upstream, rate.map(|rate| rate.try_into().unwrap()));
            simulation.at(at, Happens::ByHand(Act::Rate { upstream, rate }), false);
        }
        for (at, key) in simulation.plan.resumes.clone() {
            let (upstream, key) = (lane(0).upstream, key.to_string());
            simulation.at(at, Happens::ByHand(Act::ResumeKey { upstream, key, limit: 9 }), false);
        }
        for (at, of) in simulation.plan.nudges.clone() {
            simulation.at(at, Happens::Machine(Event::Notice(Notice::Nudge(lane(of)))), false);
        }
        simulation.at(0, Happens::Tick, true);
        simulation
    }

    fn at(&mut self, at: i64, happens: Happens, of_this_life: bool) {
        self.count += 1;
        self.agenda.push(Reverse((at, self.count)));
        self.what.insert(self.count, happens);
        if of_this_life {
            self.life.insert(self.count);
        }
    }

    /// In up to `most` milliseconds.
    fn soon(&mut self, most: u64, happens: Happens) {
        let in_ms = self.dice.backoff(1, Duration::from_millis(100 + most)).as_millis() as i64 - 100;
        self.at(self.now + in_ms, happens, true);
    }

    fn both(&self) -> Now {
        let jumped: i64 = self.plan.jumps.iter().filter(|(at, _)| *at <= self.now).map(|(_, by)| by).sum();
        Now { mono: self.now, wall: (WALL_START as i64 + self.now + jumped) as u64 }
    }

    fn is_unreadable(&self) -> bool {
        self.plan.unreadable.iter().any(|range| range.contains(&self.now))
    }

    fn mode(&self, lane: usize) -> Mode {
        let changes = self.plan.modes.get(lane).map_or(&[][..], |m| m);
        changes.iter().rfind(|(at, _)| *at <= self.now).map_or(Mode::Up, |(_, mode)| *mode)
    }

    /// Runs until nothing happens any more, or `until`.
    fn run(&mut self, until: i64) {
        while let Some(Reverse((at, id))) = self.agenda.peek().copied() {
            if at > until {
                break;
            }
            self.agenda.pop();
            self.now = at;
            if let Some(happens) = self.what.remove(&id) {
                self.happen(happens);
            }
        }
        self.now = until;
    }

    fn happen(&mut self, happens: Happens) {
        match happens {
            Happens::Append(n) => self.write(Inbox::Append(n)),
            Happens::ByHand(act) => {
                let (tenant, actor, at_ms) = (lane(0).tenant, "operator".into(), self.both().wall);
                let what = Intervention { tenant, actor, at_ms, act };
                self.write(Inbox::Change(Change::Intervene(Box::new(what))));
            }
            Happens::Write => {
                let entry = self.inbox.pop_front().expect("a write for each entry");
                self.apply(entry);
            }
            Happens::Machine(event) => self.tell(event),
            Happens::Load { lane, limit } if self.is_unreadable() => {
                self.soon(1, Happens::Machine(Event::Loaded { lane, limit, rows: None }));
            }
            Happens::Load { lane, limit } => {
                let rows = self.log.reader().unwrap().window(&lane, limit).unwrap();
                // Some answers take long enough to be out of date.
                self.soon(
                    1 + self.plan.slow.1,
                    Happens::Machine(Event::Loaded { lane, limit, rows: Some(rows) }),
                );
            }
            Happens::Scan if self.is_unreadable() => {
                self.soon(1, Happens::Machine(Event::Scanned(None)));
            }
            Happens::Scan => {
                let mut scan = Scan::default();
                let mut visit = |row| match row {
                    CensusRow::Lane { lane, open: 1.., .. } => scan.lanes.push(lane),
                    CensusRow::Earliest { expires_ms, delivered_ms, dead_ms } => {
                        (scan.expires_ms, scan.delivered_ms, scan.dead_ms) =
                            (expires_ms, delivered_ms, dead_ms);
                    }
                    _ => {}
                };
                self.log.reader().unwrap().census(&mut visit).unwrap();
                self.soon(1 + self.plan.slow.1, Happens::Machine(Event::Scanned(Some(scan))));
            }
            Happens::MarkIt(candidate) if self.is_unreadable() => {
                self.land(&candidate, Landing::NotBegun);
            }
            // No connection for one that must not be marked in vain.
            Happens::MarkIt(candidate) if !candidate.repeat_safe && self.is_refusing(&candidate) => {
                self.probing.insert(candidate.lane.clone(), 0);
                let outcome = Outcome::NotSent { reason: "connect-refused".into() };
                self.land(&candidate, Landing::Unreached(outcome));
            }
            Happens::MarkIt(candidate) => self.write(Inbox::Begin(candidate)),
            Happens::Deliver(candidate) => self.deliver(candidate),
            Happens::Answered { candidate, outcome } => self.answered(candidate, outcome),
            Happens::Tick => {
                self.tick = None;
                self.tell(Event::Tick);
            }
            Happens::Crash => self.crash(),
        }
    }

    fn is_refusing(&self, candidate: &Candidate) -> bool {
        let request = &self.plan.requests[self.by_seq[&candidate.seq]];
        self.mode(request.lane) == Mode::Refusing
    }

    fn write(&mut self, entry: Inbox) {
        self.inbox.push_back(entry);
        self.soon(5 + self.plan.slow.0, Happens::Write);
    }

    fn begin(&self, candidate: &Candidate) -> Change {
        Change::Begin { seq: candidate.seq, attempts: candidate.attempts, epoch: self.log.epoch() }
    }

    fn apply(&mut self, entry: Inbox) {
        if let Some(until) = self.plan.broken.iter().find(|range| range.contains(&self.now)).map(|r| r.end) {
            // What failed is kept and comes first when the log is back, though it may be there already.
            if self.dice.below(2) == 0 {
                match &entry {
                    Inbox::Change(change) => drop(self.commit(change.clone())),
                    Inbox::Begin(candidate) => drop(self.commit(self.begin(candidate))),
                    Inbox::Append(_) => {}
                }
            }
            self.inbox.push_front(entry);
            return self.at(until, Happens::Write, true);
        }
        match entry {
            Inbox::Append(n) => self.append(n),
            Inbox::Change(change) => {
                let effect = self.commit(change.clone());
                self.announce(change, effect);
            }
            Inbox::Begin(candidate) => {
                let lost = self.plan.requests[self.by_seq[&candidate.seq]].lost;
                match self.commit(self.begin(&candidate)) {
                    Effect::Begun(_) if lost => self.land(&candidate, Landing::ContentLost),
                    Effect::Begun(_) => self.soon(1, Happens::Deliver(candidate)),
                    Effect::Stale => self.land(&candidate, Landing::Stale),
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    fn commit(&mut self, change: Change) -> Effect {
        self.log.commit(&[change]).unwrap().remove(0)
    }

    fn append(&mut self, n: usize) {
        let request = self.plan.requests[n].clone();
        let wall = self.both().wall;
        let id = RecordId::from_bytes((n as u128).to_be_bytes());
        let append = Append {
            id,
            secret: SecretHash([0; 32]),
            lane: lane(request.lane),
            ordering_key: request.key.map(|k| k.to_string()),
            on_dead: if request.pausing { OnDead::PauseKey } else { OnDead::Continue },
            repeat_safe: request.repeat_safe,
            accepted_ms: wall,
            delay_ms: request.delay as u64,
            expires_ms: wall + request.expiry as u64,
            size: request.size,
            key_use: None,
            content: Content {
                id,
                revision: 1,
                method: "POST".into(),
                target: "/".into(),
                host: "h".into(),
                headers: vec![],
                sealed: None,
                body: StoredBody::Inline(Bytes::new()),
                accepted_ms: wall,
                trace: TraceRef::default(),
                request_id: String::new(),
            },
        };
        let Effect::Appended { seq, front } = self.commit(Change::Append(Box::new(append.clone()))) else {
            panic!()
        };
        self.fates[n].seq = Some(seq);
        self.fates[n].appended_at = self.now;
        self.by_seq.insert(seq, n);
        let notice = if front {
            Notice::Ready(append.candidate(seq))
        } else {
            Notice::Behind { expires_ms: append.expires_ms }
        };
        self.soon(1, Happens::Machine(Event::Notice(notice)));
    }

    fn announce(&mut self, change: Change, effect: Effect) {
        let mut notices = vec![];
        let mut ended = |ended: Ended| notices.extend(ended.promoted.map(Notice::Ready));
        match (change, effect) {
            (_, Effect::Ended(one)) => ended(*one),
            (Change::Expire { limit, .. }, Effect::Expired { ended: all, next_ms }) => {
                let full = all.len() >= limit;
                all.into_iter().for_each(ended);
                notices.push(Notice::Swept { next_ms, full });
            }
            (Change::Forget { limit, .. }, Effect::Forgotten { freed, next_ms }) => {
                notices.push(Notice::Forgot { next_ms, full: freed.len() >= limit });
            }
            (Change::Prune { limit, .. }, Effect::Pruned { pruned, oldest_delivered_ms, oldest_dead_ms }) => {
                notices.push(Notice::Pruned {
                    oldest_delivered_ms,
                    oldest_dead_ms,
                    full: pruned.len() >= limit,
                });
            }
            (Change::Intervene(what), Effect::Intervened(done)) => {
                done.ended.into_iter().for_each(ended);
                notices.extend(done.unpaused.and_then(|key| key.promoted).map(Notice::Ready));
                notices.extend(
                    done.requeued.filter(|again| again.front).map(|again| Notice::Ready(again.candidate)),
                );
                if let Act::Rate { upstream, rate } = what.act {
                    notices.push(Notice::Rate(Lane { tenant: what.tenant, upstream }, rate));
                }
            }
            (Change::Retry { again, .. } | Change::Miss { again, .. }, Effect::Done) => {
                notices.push(Notice::Ready(again));
            }
            (Change::Miss { again, .. }, Effect::Stale) => {
                notices.push(Notice::Changed { lane: again.lane, seq: again.seq });
            }
            (Change::Release { lane }, _) => notices.push(Notice::Released(lane)),
            _ => {}
        }
        for notice in notices {
            self.soon(1, Happens::Machine(Event::Notice(notice)));
        }
    }

    fn tell(&mut self, event: Event) {
        let now = self.both();
        self.handled += 1;
        for action in self.machine.handle(now, event, &Same) {
            match action {
                Action::Scan => self.soon(1, Happens::Scan),
                Action::Load { lane, limit } => self.soon(1, Happens::Load { lane, limit }),
                Action::Attempt(candidate) => {
                    // Those that began before the first refusal was known may still be on their way to their marks.
                    if let Some(began) = self.probing.get_mut(&candidate.lane) {
                        *began += 1;
                        assert!(*began <= 1, "more than one probe flies to {:?}", candidate.lane);
                    }
                    self.soon(5, Happens::MarkIt(candidate));
                }
                Action::Commit(change) => self.write(Inbox::Change(change)),
            }
        }
        self.most_in_windows = self.most_in_windows.max(self.machine.waiting());
        assert!(self.machine.in_flight() <= self.plan.max_in_flight, "too many in flight");
        let wake = self.machine.wake_at(now);
        assert!(wake.is_none_or(|at| at > self.now), "it would wake at once, again and again");
        if let Some(at) = wake
            && wake != self.tick
        {
            self.tick = wake;
            self.at(at, Happens::Tick, true);
        }
    }

    fn land(&mut self, candidate: &Candidate, landing: Landing) {
        if !matches!(landing, Landing::Made(_)) {
            // A probe that never was: the next may fly.
            self.probing.get_mut(&candidate.lane).into_iter().for_each(|began| *began = 0);
        }
        let event = Event::Landed { lane: candidate.lane.clone(), seq: candidate.seq, landing };
        self.tell(event);
    }

    fn state_of(&self, seq: Seq) -> State {
        self.disk.states().into_iter().find(|(s, _)| *s == seq).expect("no record is lost").1
    }

    fn deliver(&mut self, candidate: Candidate) {
        let n = self.by_seq[&candidate.seq];
        let request = self.plan.requests[n].clone();
        assert_eq!(
            self.state_of(candidate.seq),
            State::Delivering,
            "it is marked on disk before a byte leaves"
        );
        assert!(!self.fates[n].may_be_taken, "record {n} may have been taken, is unsafe, and is sent again");
        // The mark itself takes a moment, or as long as the log is broken. By a clock that jumps, expiry is when it says.
        let broken: i64 = self.plan.broken.iter().map(|range| range.end - range.start).sum();
        let by = self.fates[n].appended_at + request.expiry + 30 + self.plan.slow.0 as i64 + broken;
        assert!(self.now <= by || !self.plan.jumps.is_empty(), "record {n} is sent after its expiry");
        let due = self.fates[n].appended_at + request.delay;
        assert!(
            self.now >= due || !self.plan.jumps.is_empty(),
            "record {n} is sent before its delay is over"
        );
        let of_lane = self.in_flight.values().filter(|l| **l == candidate.lane).count();
        assert!(of_lane < CAP as usize, "more than the cap fly to {:?}", candidate.lane);
        if let Some(key) = request.key {
            for (other, fate) in self.fates.iter().enumerate() {
                let same = self.plan.requests[other].lane == request.lane
                    && self.plan.requests[other].key == Some(key);
                let Some(seq) = fate.seq.filter(|seq| same && *seq != candidate.seq) else { continue };
                assert!(!self.in_flight.contains_key(&seq), "two of key {key} are in flight");
                if seq < candidate.seq {
                    assert!(!self.state_of(seq).is_open(), "record {n} overtakes {other} of its key");
                    assert!(
                        !self.disk.pausing().contains(&seq),
                        "record {n} passes {other}, which pauses its key"
                    );
                }
            }
        }
        self.fates[n].starts.push(self.now);
        self.in_flight.insert(candidate.seq, candidate.lane.clone());

        let status = |status, retry_after: Option<u64>| Outcome::Answered {
            status,
            retry_after: retry_after.map(Duration::from_secs),
            complete: true,
            keep: None,
        };
        let mut outcome = match self.mode(request.lane) {
            Mode::Up => status(200, None),
            Mode::Refusing => Outcome::NotSent { reason: "connect-refused".into() },
            Mode::Breaking => Outcome::Broken { reason: "reset".into() },
            Mode::Erroring => status(500, None),
            Mode::Busy => status(503, Some(2)),
            Mode::Missing => Outcome::UpstreamMissing,
            Mode::Hanging => Outcome::Broken { reason: "attempt-timeout".into() },
            Mode::Denied => Outcome::Withheld { reason: "denied".into() },
        };
        let is_bad = |(keys, until): &(Range<u16>, i64)| {
            request.key.is_some_and(|key| keys.contains(&key)) && self.now < *until
        };
        if outcome == status(200, None) && self.plan.bad_keys.as_ref().is_some_and(is_bad) {
            outcome = status(500, None);
        }
        if request.unsendable && outcome != Outcome::UpstreamMissing {
            outcome = Outcome::Unsendable { reason: "no request".into() };
        }
        let sent = matches!(outcome, Outcome::Broken { .. } | Outcome::Answered { status: 200 | 500, .. });
        self.fates[n].may_be_taken = sent && !request.repeat_safe;
        if self.mode(request.lane) == Mode::Hanging && !request.unsendable {
            self.at(self.now + 5 * MINUTE, Happens::Answered { candidate, outcome }, true);
        } else {
            self.soon(200, Happens::Answered { candidate, outcome });
        }
    }

    fn answered(&mut self, candidate: Candidate, outcome: Outcome) {
        let n = self.by_seq[&candidate.seq];
        self.in_flight.remove(&candidate.seq);
        match outcome {
            Outcome::NotSent { .. } => {
                self.probing.insert(candidate.lane.clone(), 0);
            }
            Outcome::Answered { status, .. } if status < 500 => {
                self.probing.remove(&candidate.lane);
                self.fates[n].delivered_at.get_or_insert(self.now);
            }
            // A probe that failed in another way: the next may fly.
            _ => {
                self.probing.get_mut(&candidate.lane).into_iter().for_each(|began| *began = 0);
            }
        }
        self.land(&candidate, Landing::Made(outcome));
    }

    fn crash(&mut self) {
        for id in std::mem::take(&mut self.life) {
            self.what.remove(&id);
        }
        // Appends in the inbox are lost with it: nobody was told that they are there. Send them again.
        let lost: Vec<_> = self
            .inbox
            .drain(..)
            .filter_map(|e| if let Inbox::Append(n) = e { Some(n) } else { None })
            .collect();
        self.in_flight.clear();
        self.probing.clear();
        self.tick = None;
        self.log = self.disk.open();
        let (epoch, now_ms) = (self.log.epoch(), self.both().wall);
        let recovered = self.commit(Change::Recover { epoch, now_ms, limit: 10_000 });
        assert!(matches!(recovered, Effect::Recovered { .. }));
        let policy = policy(self.plan.seed.wrapping_add(epoch), epoch, self.plan.max_in_flight);
        let rates = self.log.reader().unwrap().rates().unwrap();
        self.machine = Machine::new(policy, rates, self.both());
        for n in lost {
            self.write(Inbox::Append(n));
        }
        self.at(self.now, Happens::Tick, true);
    }

    /// What each record has come to.
    fn end_states(&self) -> Vec<State> {
        let states: HashMap<_, _> = self.disk.states().into_iter().collect();
        self.fates.iter().map(|fate| states[&fate.seq.expect("every request was appended")]).collect()
    }

    fn delivered_at(&self, n: usize) -> i64 {
        self.fates[n]
            .delivered_at
            .unwrap_or_else(|| panic!("record {n} was not delivered: {:?}", self.fates[n]))
    }
}

fn request(at: i64, lane: usize) -> Request {
    Request {
        at,
        lane,
        key: None,
        pausing: false,
        repeat_safe: true,
        expiry: 24 * 60 * MINUTE,
        delay: 0,
        size: 1,
        unsendable: false,
        lost: false,
    }
}

fn plan(requests: Vec<Request>, modes: Vec<Vec<(i64, Mode)>>) -> Plan {
    Plan { seed: 42, requests, modes, max_in_flight: 64, ..Plan::default() }
}

fn run(plan: Plan, until: i64) -> Simulation {
    let mut simulation = Simulation::new(plan);
    simulation.run(until);
    simulation
}

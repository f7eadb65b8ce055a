//! The scheduler on a log in memory, under simulated time: upstreams that fail in every way, stale reads, slow commits,
//! crashes. What must hold is asserted at each step; a run is its seed.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, HashSet, VecDeque},
    ops::Range,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use proptest::{
    collection::vec,
    prelude::*,
    strategy::ValueTree as _,
    test_runner::{RngAlgorithm, TestRng, TestRunner},
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
        Append, Candidate, CensusRow, Change, Content, Effect, Ended, Log,
        memory::{MemoryDisk, MemoryLog},
    },
    notices::Notice,
    reader::Scan,
    receipt::SecretHash,
    record::{DeadReason, Lane, RecordId, Seq, State, TraceRef},
};

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
    repeat_safe: bool,
    expiry: i64,
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
        let machine = Machine::new(policy(plan.seed, log.epoch(), plan.max_in_flight), now);
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
                    Effect::Done if lost => self.land(&candidate, Landing::ContentLost),
                    Effect::Done => self.soon(1, Happens::Deliver(candidate)),
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
            repeat_safe: request.repeat_safe,
            accepted_ms: wall,
            expires_ms: wall + request.expiry as u64,
            size: request.size,
            content: Content {
                id,
                revision: 1,
                method: "POST".into(),
                target: "/".into(),
                host: "h".into(),
                headers: vec![],
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
            (Change::Prune { limit, .. }, Effect::Pruned { pruned, oldest_delivered_ms, oldest_dead_ms }) => {
                notices.push(Notice::Pruned {
                    oldest_delivered_ms,
                    oldest_dead_ms,
                    full: pruned.len() >= limit,
                });
            }
            (Change::Retry { again, .. }, Effect::Done) => notices.push(Notice::Ready(again)),
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
                }
            }
        }
        self.fates[n].starts.push(self.now);
        self.in_flight.insert(candidate.seq, candidate.lane.clone());

        let status = |status, retry_after: Option<u64>| Outcome::Answered {
            status,
            retry_after: retry_after.map(Duration::from_secs),
            complete: true,
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
        self.machine = Machine::new(policy, self.both());
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
        repeat_safe: true,
        expiry: 24 * 60 * MINUTE,
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

#[test]
fn a_healthy_upstream_gets_a_record_at_once() {
    let simulation = run(plan(vec![request(10_000, 0)], vec![]), MINUTE);
    assert!(simulation.delivered_at(0) < 10_300);
}

#[test]
fn recovery_is_noticed_within_seconds_however_long_the_outage_was() {
    let outage = vec![(0, Mode::Refusing), (120 * MINUTE, Mode::Up)];
    let requests = (0..500).map(|n| request(n * 100, 0)).collect();
    let simulation = run(plan(requests, vec![outage]), 130 * MINUTE);
    let first = (0..500).map(|n| simulation.delivered_at(n)).min().unwrap();
    let last = (0..500).map(|n| simulation.delivered_at(n)).max().unwrap();
    assert!(first < 120 * MINUTE + 5500, "{first}");
    assert!(last < first + MINUTE, "and the backlog follows: {last}");
    let attempts: usize = simulation.fates.iter().map(|f| f.starts.len()).sum();
    assert!(attempts < 500 + 2 * 120 * 60, "probes come one at a time: {attempts}");
}

#[test]
fn a_failing_key_blocks_only_itself() {
    let mut requests: Vec<_> = (0..20).map(|n| Request { key: Some(1), ..request(n * 10, 0) }).collect();
    requests.extend((0..400).map(|n| Request { key: (n % 2 == 0).then_some(2), ..request(n * 500, 0) }));
    let bad_keys = Some((1..2, 10 * MINUTE));
    let simulation = run(Plan { bad_keys, ..plan(requests, vec![]) }, 60 * MINUTE);
    for n in 20..420 {
        let took = simulation.delivered_at(n) - simulation.fates[n].appended_at;
        assert!(took < 2000, "record {n} waited {took} ms for a key that is not its own");
    }
    assert!((0..20).all(|n| simulation.delivered_at(n) >= 10 * MINUTE), "it failed all that time");
}

#[test]
fn a_hundred_failing_keys_block_only_themselves() {
    // They come first, all at once, and stay bad for ten minutes, with nobody else there to show that the upstream is well.
    let mut requests: Vec<_> = (0..100).map(|n| Request { key: Some(n), ..request(0, 0) }).collect();
    requests.extend((100..1000).map(|n| Request { key: Some(n), ..request(5000 + i64::from(n), 0) }));
    requests.extend((0..500).map(|n| request(MINUTE + n * 1000, 0)));
    let well = run(plan(requests.clone(), vec![]), 60 * MINUTE);
    let bad_keys = Some((0..100, 10 * MINUTE));
    let simulation = run(Plan { bad_keys, ..plan(requests, vec![]) }, 60 * MINUTE);
    let took = |n: usize| simulation.delivered_at(n) - simulation.fates[n].appended_at;
    let last = |simulation: &Simulation| (100..1000).map(|n| simulation.delivered_at(n)).max().unwrap();
    let lost = last(&simulation) - last(&well);
    assert!(lost < 20_000, "900 records lost {lost} ms to a hundred that are not their own");
    for n in 1050..1500 {
        assert!(took(n) < 2000, "record {n} waited {} ms for keys that are not its own", took(n));
    }
    assert!(
        (0..100).all(|n| simulation.delivered_at(n) >= 10 * MINUTE || simulation.fates[n].starts.len() < 2)
    );
}

#[test]
fn a_record_of_which_no_request_can_be_made_is_dead_and_in_nobodys_way() {
    let mut requests: Vec<_> = (0..50).map(|n| Request { unsendable: true, ..request(n * 10, 0) }).collect();
    requests.extend((0..100).map(|n| request(n * 20, 0)));
    let simulation = run(plan(requests, vec![]), MINUTE);
    let states = simulation.end_states();
    assert!(states[..50].iter().all(|s| *s == State::Dead { reason: DeadReason::Rejected }), "{states:?}");
    assert!((50..150).all(|n| simulation.delivered_at(n) - simulation.fates[n].appended_at < 10_000));
}

#[test]
fn what_is_denied_waits_without_blame_and_goes_when_it_is_granted() {
    let modes = vec![(0, Mode::Denied), (60 * MINUTE, Mode::Up)];
    let requests = (0..40).map(|n| Request { key: Some(n % 4), ..request(0, 0) }).collect();
    let simulation = run(plan(requests, vec![modes]), 70 * MINUTE);
    assert!((0..40).all(|n| simulation.delivered_at(n) >= 60 * MINUTE));
    let attempts: usize = simulation.fates.iter().map(|f| f.starts.len()).sum();
    assert!(attempts < 2000, "it is not busy about it: {attempts}");
}

#[test]
fn a_hanging_tenant_blocks_only_itself() {
    // Two upstreams of one tenant hang; four lanes could take all eight places.
    let hanging = vec![(0, Mode::Hanging), (30 * MINUTE, Mode::Up)];
    let mut requests: Vec<_> = (0..400).map(|n| request(0, n % 2)).collect();
    requests.extend((0..200).map(|n| request(MINUTE + n * 500, 2)));
    let modes = vec![hanging.clone(), hanging, vec![]];
    let simulation = run(Plan { max_in_flight: 8, ..plan(requests, modes) }, 60 * MINUTE);
    for n in 400..600 {
        let took = simulation.delivered_at(n) - simulation.fates[n].appended_at;
        assert!(took < 2000, "record {n} waited {took} ms for another tenant's upstream");
    }
    assert!((0..400).all(|n| simulation.delivered_at(n) > 0));
}

#[test]
fn tenants_get_the_same_bytes_however_large_their_records_are() {
    // Two tenants have more than can go; one place is all there is.
    let large = |n| Request { size: 1 << 20, ..request(n, 0) };
    let small = |n| Request { size: 1 << 14, ..request(n, 2) };
    let mut requests: Vec<_> = (0..200).map(large).collect();
    requests.extend((0..5000).map(small));
    let simulation = run(Plan { max_in_flight: 1, ..plan(requests, vec![]) }, 5 * MINUTE);
    let given = |range: Range<usize>| -> u64 {
        range
            .filter(|n| simulation.fates[*n].delivered_at.is_some())
            .map(|n| simulation.plan.requests[n].size)
            .sum()
    };
    let (large, small) = (given(0..200), given(200..5200));
    assert!(large.abs_diff(small) <= 3 << 20, "{large} bytes of large records, {small} of small ones");
    assert!(small > 20 << 20, "{small}");
}

#[test]
fn a_key_that_is_blocked_too_long_is_unblocked_by_its_records_death() {
    let requests = (0..2).map(|n| Request { key: Some(1), ..request(n, 0) }).collect();
    let bad_keys = Some((1..2, 20 * MINUTE));
    let simulation = run(Plan { bad_keys, ..plan(requests, vec![]) }, 60 * MINUTE);
    assert_eq!(simulation.end_states()[0], State::Dead { reason: DeadReason::Exhausted });
    assert!(simulation.delivered_at(1) >= 20 * MINUTE);
}

#[test]
fn an_outage_does_not_exhaust_a_key() {
    let requests = vec![Request { key: Some(1), ..request(0, 0) }];
    let outage = vec![(0, Mode::Refusing), (100 * MINUTE, Mode::Up)];
    let simulation = run(plan(requests, vec![outage]), 110 * MINUTE);
    assert!(simulation.delivered_at(0) >= 100 * MINUTE);
}

#[test]
fn a_small_tenant_does_not_wait_for_a_big_ones_backlog() {
    let mut requests: Vec<_> = (0..2000).map(|_| request(0, 0)).collect();
    requests.extend((0..2000).map(|_| request(0, 1)));
    requests.extend((0..5).map(|n| request(5000 + n, 2)));
    let simulation = run(Plan { max_in_flight: 2, ..plan(requests, vec![]) }, 60 * MINUTE);
    for n in 4000..4005 {
        assert!(simulation.delivered_at(n) < 8000, "{:?}", simulation.fates[n]);
    }
}

#[test]
fn memory_is_bounded_by_windows_not_by_the_backlog() {
    let requests = (0..5000).map(|n| request(n / 10, 0)).collect();
    let outage = vec![(0, Mode::Refusing), (MINUTE, Mode::Up)];
    let simulation = run(plan(requests, vec![outage]), 60 * MINUTE);
    assert!(simulation.most_in_windows <= 256, "{}", simulation.most_in_windows);
    assert!(simulation.end_states().iter().all(|s| matches!(s, State::Delivered { .. })));
}

#[test]
fn a_steady_stream_does_not_starve_what_waits_on_disk() {
    // As many come as can go: the backlog of the outage must go first.
    let mut requests: Vec<_> = (0..1000).map(|_| request(0, 0)).collect();
    requests.extend((0..6000).map(|n| request(MINUTE + n * 30, 0)));
    let outage = vec![(0, Mode::Refusing), (MINUTE, Mode::Up)];
    let simulation = run(plan(requests, vec![outage]), 30 * MINUTE);
    let last = (0..1000).map(|n| simulation.delivered_at(n)).max().unwrap();
    assert!(last < 3 * MINUTE, "the backlog took until {last}");
}

#[test]
fn a_missing_upstream_holds_its_records_and_is_looked_for() {
    let gone = vec![(0, Mode::Missing), (10 * MINUTE, Mode::Up)];
    let mut simulation = Simulation::new(plan((0..50).map(|n| request(n, 0)).collect(), vec![gone]));
    simulation.run(5 * MINUTE);
    assert!(simulation.end_states().contains(&State::Held));
    assert!(simulation.handled < 500, "without being busy about it: {}", simulation.handled);
    simulation.run(60 * MINUTE);
    assert!((0..50).all(|n| simulation.delivered_at(n) < 10 * MINUTE + 40_000));
}

#[test]
fn a_nudge_ends_the_wait() {
    let gone = vec![(0, Mode::Missing), (MINUTE, Mode::Up)];
    let mut simulation = Simulation::new(plan(vec![request(0, 0)], vec![gone]));
    simulation.run(MINUTE + 5000);
    simulation.tell(Event::Notice(Notice::Nudge(lane(0))));
    simulation.run(MINUTE + 6000);
    assert!(simulation.delivered_at(0) < MINUTE + 5500);
}

#[test]
fn an_idle_queue_does_nothing() {
    let mut simulation = Simulation::new(plan(vec![], vec![]));
    simulation.run(24 * 60 * MINUTE);
    assert_eq!(simulation.machine.wake_at(simulation.both()), None);
    assert!(simulation.handled <= 2, "the first tick and its scan: {}", simulation.handled);
}

#[test]
fn a_clock_that_jumps_ahead_expires_nothing_for_a_while() {
    let requests = vec![Request { expiry: 60 * MINUTE, ..request(0, 0) }];
    let mut simulation = Simulation::new(plan(requests, vec![vec![(0, Mode::Refusing)]]));
    simulation.run(MINUTE);
    let jumped = Now { mono: simulation.now, wall: WALL_START + 100 * 60 * 60_000 };
    for later in [0, 5 * MINUTE] {
        let now = Now { mono: jumped.mono + later, wall: jumped.wall + later as u64 };
        let actions = simulation.machine.handle(now, Event::Tick, &Same);
        assert!(!actions.iter().any(|a| matches!(a, Action::Commit(Change::Expire { .. }))), "{actions:?}");
    }
    let now = Now { mono: jumped.mono + 11 * MINUTE, wall: jumped.wall + 11 * 60_000 };
    let actions = simulation.machine.handle(now, Event::Tick, &Same);
    assert!(actions.iter().any(|a| matches!(a, Action::Commit(Change::Expire { .. }))), "{actions:?}");
}

#[test]
fn after_a_restart_on_a_clock_that_went_back_everything_is_still_delivered() {
    let mut simulation =
        Simulation::new(plan((0..20).map(|n| request(n, 0)).collect(), vec![vec![(0, Mode::Erroring)]]));
    simulation.run(MINUTE);
    // All are in back-off, by a wall clock that is then set back by ten hours.
    let log = simulation.disk.open();
    let now = Now { mono: 0, wall: WALL_START - 10 * 3_600_000 };
    let mut machine = Machine::new(policy(1, log.epoch(), 64), now);
    machine.handle(now, Event::Tick, &Same);
    machine.handle(now, Event::Scanned(Some(Scan { lanes: vec![lane(0)], ..Scan::default() })), &Same);
    let rows = log.reader().unwrap().window(&lane(0), 256).unwrap();
    assert!(!rows.is_empty());
    machine.handle(now, Event::Loaded { lane: lane(0), limit: 256, rows: Some(rows) }, &Same);
    assert!(machine.wake_at(now).unwrap() <= 3_600_000, "no one waits longer than the longest back-off");
}

#[test]
fn finished_records_are_deleted_when_their_retention_is_over() {
    let mut simulation = Simulation::new(plan((0..600).map(|n| request(n, 0)).collect(), vec![]));
    simulation.run(23 * 60 * MINUTE);
    assert_eq!(simulation.disk.states().len(), 600);
    simulation.run(25 * 60 * MINUTE);
    assert_eq!(simulation.disk.states().len(), 0);
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![
        3 => Just(Mode::Up),
        2 => Just(Mode::Refusing),
        1 => Just(Mode::Breaking),
        1 => Just(Mode::Erroring),
        1 => Just(Mode::Busy),
        1 => Just(Mode::Missing),
        1 => Just(Mode::Hanging),
        1 => Just(Mode::Denied),
    ]
}

const LANES: usize = 3;
/// From here on everything is well.
const WELL: i64 = 20 * MINUTE;

/// Until when everything has ended: a wait that began by a wall clock that then went back lasts an hour at most.
const OVER: i64 = WELL + 80 * MINUTE;

fn any_plan() -> impl Strategy<Value = Plan> {
    let odd = || prop_oneof![19 => Just(false), 1 => Just(true)];
    let key = proptest::option::of(0..3_u16);
    let request = (0..WELL, 0..LANES, key, any::<bool>(), 0..10_u8, 1..1_u64 << 20, odd(), odd());
    let request = request.prop_map(|(at, lane, key, repeat_safe, brief, size, unsendable, lost)| {
        // One in ten expires during the trouble.
        let expiry = if brief == 0 { 2 * MINUTE } else { 24 * 60 * MINUTE };
        Request { at, lane, key, repeat_safe, expiry, size, unsendable, lost }
    });
    let modes = vec((0..WELL, mode()), 0..12).prop_map(|mut modes| {
        modes.sort_by_key(|(at, _)| *at);
        modes.push((WELL, Mode::Up));
        modes
    });
    let spell = || (0..WELL, 1..2 * MINUTE).prop_map(|(from, len)| from..(from + len).min(WELL));
    // Six hours either way, three times: less than any retention.
    let jumps = prop_oneof![3 => Just(vec![]), 2 => vec((0..WELL, -360 * MINUTE..360 * MINUTE), 1..4)];
    let slow = (prop_oneof![Just(0), Just(300_u64)], prop_oneof![Just(0), Just(50_u64)]);
    let of_the_log = (vec(spell(), 0..3), vec(spell(), 0..3), slow);
    let of_the_owner = (
        vec(0..WELL, 0..4),
        vec((any::<prop::sample::Index>(), 0..300_i64), 0..6),
        vec((0..WELL, 0..LANES), 0..6),
        prop_oneof![Just(2_usize), Just(64)],
    );
    (
        any::<u64>(),
        prop_oneof![vec(request.clone(), 1..8), vec(request, 1..120)],
        vec(modes, LANES),
        proptest::option::of((0..3_u16, 0..WELL)),
        jumps,
        of_the_owner,
        of_the_log,
    )
        .prop_map(|(seed, requests, modes, bad_key, jumps, owner, log)| {
            let (crashes, rescans, nudges, max_in_flight) = owner;
            let (broken, unreadable, slow) = log;
            let bad_keys = bad_key.map(|(key, until)| (key..key + 1, until));
            // Reads are most likely to be out of date soon after a record came.
            let rescans = rescans.iter().map(|(near, after)| near.get(&requests).at + after).collect();
            Plan {
                seed,
                requests,
                modes,
                bad_keys,
                crashes,
                rescans,
                jumps,
                nudges,
                broken,
                unreadable,
                max_in_flight,
                slow,
            }
        })
}

/// Plans from one number.
fn plans(cases: u32, seed: u64) -> TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
}

/// Runs a plan to its end. The invariants of order, marks, caps, probes, expiry and repetition are asserted at each step.
fn every_record_ends_for_a_reason(plan: &Plan) -> Result<(), TestCaseError> {
    let simulation = run(plan.clone(), OVER);
    let crashed = !plan.crashes.is_empty();
    for (n, state) in simulation.end_states().into_iter().enumerate() {
        let request = &plan.requests[n];
        let modes = &plan.modes[lane_number(&lane(request.lane))];
        let broke = modes.iter().any(|(_, m)| matches!(m, Mode::Breaking | Mode::Erroring | Mode::Hanging));
        match state {
            State::Delivered { .. } => prop_assert!(simulation.fates[n].delivered_at.is_some()),
            State::Dead { reason: DeadReason::Expired } => prop_assert!(request.expiry == 2 * MINUTE),
            State::Dead { reason: DeadReason::Exhausted } => prop_assert!(request.key.is_some()),
            State::Dead { reason: DeadReason::Rejected } => prop_assert!(request.unsendable),
            State::Dead { reason: DeadReason::Indeterminate } => {
                let maybe_taken = !request.repeat_safe && (crashed || broke || plan.bad_keys.is_some());
                prop_assert!(maybe_taken || request.lost);
            }
            other => prop_assert!(false, "record {} ended as {}: {:?}", n, other, simulation.fates[n]),
        }
    }
    prop_assert_eq!(simulation.machine.in_flight(), 0);
    prop_assert_eq!(simulation.machine.waiting(), 0);
    Ok(())
}

/// A thousand hours of them: a number of plans, each of which ends.
#[test]
fn whatever_fails_every_record_is_delivered_or_dead_for_a_reason() {
    const HOURS: i64 = 1000;
    let clock =
        || SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64 % 1_000_000_007);
    let seed = std::env::var("BEAMLINE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(clock);
    let cases = (HOURS * 60 * MINUTE / OVER + 1) as u32;
    if let Err(failed) = plans(cases, seed).run(&any_plan(), |plan| every_record_ends_for_a_reason(&plan)) {
        panic!("seed {seed} (BEAMLINE_SEED={seed} repeats this run): {failed}");
    }
}

#[test]
fn one_number_gives_the_same_plans_again() {
    let first = |seed| format!("{:?}", any_plan().new_tree(&mut plans(1, seed)).unwrap().current());
    assert_eq!(first(7), first(7));
    assert_ne!(first(7), first(8));
}

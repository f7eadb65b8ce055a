//! The event loop of a load: epoll, level-triggered, one read and one write per exchange.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::{
    buffer::spare_capacity,
    event::epoll::{self, EventData, EventFlags},
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    Control, LABEL, LABEL_DIGITS, Mode, Plan,
    quick::{Quick, TOKEN as ORIGIN},
    report::{Failure, MAX_FAILURES, Outcome, Report},
    wire::{Scanner, Seen, Side},
};

/// How long a connection rests after a failure to connect.
const REST: Duration = Duration::from_millis(5);
/// How often time-outs are looked for; also the longest wait for an event.
const SWEEP: Duration = Duration::from_millis(50);
/// The token of the timer that paces a rate.
const TIMER: u64 = 1 << 61;

/// What a thread needs to wait: outlives the loads that run on it.
pub(super) struct Reactor {
    epoll: OwnedFd,
    timer: OwnedFd,
    events: Vec<epoll::Event>,
    buffer: Vec<u8>,
    origin: Option<Quick>,
}

impl Reactor {
    pub(super) fn new() -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN)?;
        let (events, buffer) = (Vec::with_capacity(256), vec![0; 64 << 10]);
        Ok(Self { epoll, timer, events, buffer, origin: None })
    }

    pub(super) fn add_origin(&mut self, listener: TcpListener, body_bytes: usize) -> Result<()> {
        self.origin = Some(Quick::new(listener, body_bytes, &self.epoll)?);
        Ok(())
    }

    pub(super) fn answered(&self) -> u64 {
        self.origin.as_ref().map_or(0, Quick::answered)
    }

    /// Waits for events and answers those of the origin; for a thread that has nothing else.
    pub(super) fn serve_origin(&mut self) -> Result<()> {
        self.wait(SWEEP)?;
        for i in 0..self.events.len() {
            self.on_origin(self.events[i].data.u64());
        }
        Ok(())
    }

    fn on_origin(&mut self, token: u64) {
        if let Some(origin) = &mut self.origin {
            origin.on_event(token, &self.epoll, &mut self.buffer);
        }
    }

    fn wait(&mut self, at_most: Duration) -> Result<()> {
        let timeout =
            Timespec { tv_sec: at_most.as_secs() as i64, tv_nsec: i64::from(at_most.subsec_nanos()) };
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("cannot wait for events"),
        }
    }

    /// Wakes the next wait after `after`.
    fn wake(&self, after: Duration) -> Result<()> {
        let value = Timespec {
            tv_sec: after.as_secs() as i64,
            // Zero would disarm it.
            tv_nsec: i64::from(after.subsec_nanos().max(1)),
        };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No connection, no request.
    Closed,
    /// A request waits for its connection.
    Connecting,
    /// A connection without a request.
    Idle,
    /// A request is under way.
    Busy,
}

/// One connection, over time many sockets.
struct Slot {
    phase: Phase,
    stream: Option<TcpStream>,
    scanner: Scanner,
    /// Responses over the present socket.
    served: u64,
    /// How reading failed.
    error: Option<ErrorKind>,
    /// When the current request was due, and when it was begun.
    due: Instant,
    begun: Instant,
    label: u64,
    /// Which request of the plan, and how much of it is written.
    request: usize,
    written: usize,
}

struct Engine<'a> {
    plan: &'a Plan,
    reactor: &'a mut Reactor,
    control: &'a Control,
    requests: Vec<Vec<u8>>,
    /// Where the label's digits are in each request.
    labels: Vec<Option<usize>>,
    slots: Vec<Slot>,
    /// Slots without a request, the last used last.
    free: Vec<usize>,
    /// Slots that could not connect, and until when they rest.
    resting: VecDeque<(Instant, usize)>,
    started: u64,
    under_way: usize,
    begin: Instant,
    report: Report,
}

/// Runs a plan to its end.
pub(super) fn run(reactor: &mut Reactor, plan: &Plan, control: &Control) -> Result<Report> {
    ensure!(!plan.requests.is_empty() && plan.connections > 0, "a plan has requests and connections");
    ensure!(plan.rate.is_none_or(|r| r > 0.0), "a rate is above zero");
    let begin = Instant::now();
    let slot = || Slot {
        phase: Phase::Closed,
        stream: None,
        scanner: Scanner::new(Side::Responses),
        served: 0,
        error: None,
        due: begin,
        begun: begin,
        label: 0,
        request: 0,
        written: 0,
    };
    let digits =
        |request: &Vec<u8>| memchr::memmem::find(request, LABEL.as_bytes()).map(|at| at + LABEL.len());
    let mut engine = Engine {
        plan,
        reactor,
        control,
        labels: plan.requests.iter().map(digits).collect(),
        requests: plan.requests.clone(),
        slots: (0..plan.connections).map(|_| slot()).collect(),
        free: (0..plan.connections).rev().collect(),
        resting: VecDeque::new(),
        started: 0,
        under_way: 0,
        begin,
        report: Report::default(),
    };
    engine.run()?;
    Ok(engine.report)
}

impl Engine<'_> {
    fn run(&mut self) -> Result<()> {
        let end = self.begin + self.plan.duration;
        let interval = self.plan.rate.map(|rate| Duration::from_secs_f64(1.0 / rate));
        let mut next_due = self.begin;
        let mut next_sweep = self.begin + SWEEP;
        loop {
            let now = Instant::now();
            let stopping = now >= end
                || self.control.stop.load(Ordering::Relaxed)
                || self.plan.limit.is_some_and(|limit| self.started >= limit);
            if stopping && self.under_way == 0 {
                break;
            }
            while self.resting.front().is_some_and(|(until, _)| *until <= now) {
                self.free.extend(self.resting.pop_front().map(|(_, slot)| slot));
            }
            let mut pause = next_sweep.saturating_duration_since(now);
            if !stopping {
                match interval {
                    None => self.begin_all(now),
                    Some(interval) => {
                        while next_due <= now && self.below_limit() {
                            let Some(slot) = self.free.pop() else { break };
                            self.begin_request(slot, next_due, now);
                            next_due += interval;
                        }
                        if self.plan.lapses && next_due <= now {
                            next_due = now + interval;
                        }
                        if let Some(left) = next_due.checked_duration_since(now)
                            && !self.free.is_empty()
                            && left < pause
                        {
                            self.reactor.wake(left)?;
                        }
                    }
                }
                // A failure to connect may have come at once.
                if let Some((until, _)) = self.resting.front() {
                    pause = pause.min(until.saturating_duration_since(now));
                }
            }
            self.reactor.wait(pause)?;
            for i in 0..self.reactor.events.len() {
                let event = self.reactor.events[i];
                self.on_event(event.data.u64(), event.flags)?;
            }
            if now >= next_sweep {
                next_sweep = now + SWEEP;
                self.time_out(now);
            }
            self.control.ended.store(self.started - self.under_way as u64, Ordering::Relaxed);
            self.control.good.store(self.report.good(), Ordering::Relaxed);
            self.control.under_way.store(self.under_way as u64, Ordering::Relaxed);
        }
        self.report.elapsed = self.begin.elapsed();
        Ok(())
    }

    fn below_limit(&self) -> bool {
        self.plan.limit.is_none_or(|limit| self.started < limit)
    }

    /// Without a rate: every free connection sends its next request.
    fn begin_all(&mut self, now: Instant) {
        // Once through: what fails at once goes to `resting` or back to the end of `free`.
        for _ in 0..self.free.len() {
            if !self.below_limit() {
                return;
            }
            if let Some(slot) = self.free.pop() {
                self.begin_request(slot, now, now);
            }
        }
    }

    fn begin_request(&mut self, index: usize, due: Instant, now: Instant) {
        let slot = &mut self.slots[index];
        slot.due = due;
        slot.begun = now;
        slot.label = self.started;
        slot.request = (self.started % self.requests.len() as u64) as usize;
        slot.written = 0;
        slot.error = None;
        self.started += 1;
        self.under_way += 1;
        if slot.stream.is_some() {
            slot.phase = Phase::Busy;
            self.write(index);
            return;
        }
        match connect(self.plan.target) {
            Ok(stream) => {
                let data = EventData::new_u64(index as u64);
                if epoll::add(&self.reactor.epoll, &stream, data, EventFlags::OUT).is_err() {
                    return self.end(index, Outcome::ConnectFailed, 0);
                }
                slot.stream = Some(stream);
                slot.served = 0;
                slot.scanner.reset();
                slot.phase = Phase::Connecting;
            }
            Err(error) => self.end(index, connect_outcome(&error), 0),
        }
    }

    fn on_event(&mut self, token: u64, flags: EventFlags) -> Result<()> {
        if token & ORIGIN != 0 {
            self.reactor.on_origin(token);
            return Ok(());
        }
        if token == TIMER {
            let _ = rustix::io::read(&self.reactor.timer, &mut [0u8; 8][..]);
            return Ok(());
        }
        let index = token as usize;
        match self.slots[index].phase {
            Phase::Closed => {}
            Phase::Connecting => self.connected(index),
            Phase::Idle => self.ended_idle(index),
            Phase::Busy => {
                if flags.contains(EventFlags::OUT) && self.slots[index].written < self.request_of(index).len()
                {
                    self.write(index);
                }
                if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR)
                    && self.slots[index].phase == Phase::Busy
                {
                    self.read(index);
                }
            }
        }
        Ok(())
    }

    fn request_of(&self, index: usize) -> &[u8] {
        &self.requests[self.slots[index].request]
    }

    fn connected(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        let Some(stream) = &slot.stream else { return };
        match stream.take_error() {
            Ok(None) => {
                slot.phase = Phase::Busy;
                self.report.connections += 1;
                self.watch(index, EventFlags::IN);
                self.write(index);
            }
            Ok(Some(error)) | Err(error) => self.end(index, connect_outcome(&error), 0),
        }
    }

    fn watch(&self, index: usize, flags: EventFlags) {
        if let Some(stream) = &self.slots[index].stream {
            // Fails for a closed descriptor only, and this one is open.
            let _ = epoll::modify(&self.reactor.epoll, stream, EventData::new_u64(index as u64), flags);
        }
    }

    fn write(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        let request = &mut self.requests[slot.request];
        if let Some(at) = self.labels[slot.request] {
            write_digits(&mut request[at..at + LABEL_DIGITS], slot.label);
        }
        let Some(stream) = &mut slot.stream else { return };
        let blocked_before = slot.written > 0;
        loop {
            match stream.write(&request[slot.written..]) {
                Ok(n) => slot.written += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.watch(index, EventFlags::IN | EventFlags::OUT);
                    return;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // A server may have answered before it closed: only reading tells.
                Err(_) => return self.read(index),
            }
            if slot.written == request.len() {
                if blocked_before {
                    self.watch(index, EventFlags::IN);
                }
                return;
            }
        }
    }

    fn read(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        let Some(stream) = &mut slot.stream else { return };
        match stream.read(&mut self.reactor.buffer) {
            Ok(0) => self.broken(index, None),
            Ok(n) => {
                let mut bytes = &self.reactor.buffer[..n];
                match slot.scanner.feed(&mut bytes) {
                    // A response that comes before the request was written whole ends the connection.
                    Ok(Some(seen)) if slot.written < self.requests[slot.request].len() => {
                        self.answered(index, Seen { close: true, ..seen });
                    }
                    Ok(Some(seen)) if bytes.is_empty() => self.answered(index, seen),
                    Ok(Some(_)) | Err(_) => self.end(index, Outcome::Malformed, 0),
                    Ok(None) => {}
                }
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => self.broken(index, Some(e)),
        }
    }

    /// The connection ended while a request was under way.
    fn broken(&mut self, index: usize, error: Option<io::Error>) {
        let slot = &mut self.slots[index];
        slot.error = error.as_ref().map(io::Error::kind);
        if let Some(seen) = slot.scanner.end() {
            return self.answered(index, seen);
        }
        let outcome = match (slot.scanner.started(), slot.served) {
            // A connection that was made is reset. This one was taken for made too early.
            (false, 0) if slot.error == Some(ErrorKind::ConnectionRefused) => Outcome::Refused,
            (true, _) => Outcome::Cut,
            (false, 0) => Outcome::FreshReset,
            (false, _) => Outcome::IdleReset,
        };
        self.end(index, outcome, 0);
    }

    fn answered(&mut self, index: usize, seen: Seen) {
        let slot = &mut self.slots[index];
        slot.served += 1;
        *self.report.statuses.entry(seen.status).or_default() += 1;
        let good = seen.status / 100 == 2 || self.plan.good.contains(&seen.status);
        if good {
            self.report.latency.record(slot.due.elapsed());
        }
        if !seen.close && self.plan.mode == Mode::KeepAlive {
            slot.phase = Phase::Idle;
        }
        self.end(index, if good { Outcome::Good } else { Outcome::BadStatus }, seen.status);
    }

    /// The request has ended; the connection, too, unless its phase says `Idle`.
    fn end(&mut self, index: usize, outcome: Outcome, status: u16) {
        *self.report.outcomes.entry(outcome).or_default() += 1;
        self.under_way -= 1;
        let slot = &mut self.slots[index];
        if outcome != Outcome::Good && self.report.failures.len() < MAX_FAILURES {
            self.report.failures.push(Failure {
                label: slot.label,
                outcome,
                status,
                at: self.begin.elapsed(),
                after: slot.begun.elapsed(),
                error: slot.error,
            });
        }
        if slot.phase != Phase::Idle {
            slot.phase = Phase::Closed;
            slot.stream = None;
        }
        match outcome {
            Outcome::Refused | Outcome::ConnectFailed | Outcome::FreshReset => {
                self.resting.push_back((Instant::now() + REST, index));
            }
            _ => self.free.push(index),
        }
    }

    /// The peer closed a connection without a request, or sent what nobody asked for.
    fn ended_idle(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        slot.phase = Phase::Closed;
        slot.stream = None;
        self.report.idle_closes += 1;
    }

    fn time_out(&mut self, now: Instant) {
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            if matches!(slot.phase, Phase::Busy | Phase::Connecting)
                && now.saturating_duration_since(slot.begun) > self.plan.timeout
            {
                self.end(index, Outcome::TimedOut, 0);
            }
        }
    }
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&to.into()) {
        Err(e) if e.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => Err(e),
        _ => Ok(socket.into()),
    }
}

fn connect_outcome(error: &io::Error) -> Outcome {
    if error.kind() == ErrorKind::ConnectionRefused { Outcome::Refused } else { Outcome::ConnectFailed }
}

fn write_digits(into: &mut [u8], mut number: u64) {
    for digit in into.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

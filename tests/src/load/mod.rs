//! A load generator in one thread: many connections, each request's end classified, latencies kept.
//!
//! It costs a few microseconds per request, most of them the kernel's, so that a second core is enough for it and for
//! the origin behind the proxy ([`Stage::with_origin`]). With a [rate](Plan::rate) a request's latency counts from the
//! moment it was due: a proxy that stalls cannot hide the requests that were not sent meanwhile.

mod engine;
mod quick;
mod report;
mod wire;

use std::{
    fmt::Write as _,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, bail, ensure};
use engine::Reactor;
pub use report::{Failure, Outcome, Report};

use crate::ports::Port;

/// What becomes of a connection after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It is kept for the next request.
    KeepAlive,
    /// It is closed: every request makes its own.
    NewConnection,
}

/// What is to be sent.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where to.
    pub target: SocketAddr,
    /// Whole requests with head and body, sent in turn. Any method but HEAD and CONNECT.
    pub requests: Vec<Vec<u8>>,
    /// Connections at once.
    pub connections: usize,
    /// What becomes of them.
    pub mode: Mode,
    /// For how long requests are started; those under way then finish.
    pub duration: Duration,
    /// The number of requests after which none is started.
    pub limit: Option<u64>,
    /// Requests per second over all connections; without it, each connection sends the next one at once.
    pub rate: Option<f64>,
    /// Whether a request that no connection was free for when it was due is left out.
    pub lapses: bool,
    /// How long one request may take.
    pub timeout: Duration,
    /// What counts as good, apart from 2xx.
    pub good: Vec<u16>,
}

/// The field that carries a labelled request's number.
const LABEL: &str = "x-load: ";
/// Digits of a label.
const LABEL_DIGITS: usize = 12;

impl Plan {
    /// One kind of request over 16 kept connections for a second.
    pub fn new(target: SocketAddr, request: Vec<u8>) -> Self {
        Self {
            target,
            requests: vec![request],
            connections: 16,
            mode: Mode::KeepAlive,
            duration: Duration::from_secs(1),
            limit: None,
            rate: None,
            lapses: false,
            timeout: Duration::from_secs(10),
            good: Vec::new(),
        }
    }

    /// What a tenant sends whose filter, the guest `probe`, does `step` and is ended for it, which is answered 503. Three of
    /// four requests do no harm: a module that only ever fails would be left out.
    pub fn noise(target: SocketAddr, host: &str, step: &str) -> Self {
        let does = |step: &str| request("GET", "/", host, &[("x-probe", step)], b"");
        let mut plan = Self::new(target, does("next"));
        plan.requests.extend([does("next"), does("next"), does(step)]);
        plan.also_good(503)
    }

    /// Sets [`connections`](Self::connections).
    pub fn connections(mut self, n: usize) -> Self {
        self.connections = n;
        self
    }

    /// Sets [`mode`](Self::mode).
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets [`duration`](Self::duration).
    pub fn lasting(mut self, duration: Duration) -> Self {
        self.duration = duration;
        self
    }

    /// Sets [`limit`](Self::limit).
    pub fn limit(mut self, requests: u64) -> Self {
        self.limit = Some(requests);
        self
    }

    /// Sets [`rate`](Self::rate).
    pub fn rate(mut self, per_second: f64) -> Self {
        self.rate = Some(per_second);
        self
    }

    /// As [`rate`](Self::rate), but what no connection was free for in time is not sent later.
    pub fn at_most(mut self, per_second: f64) -> Self {
        self.lapses = true;
        self.rate(per_second)
    }

    /// Sets [`timeout`](Self::timeout).
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Counts this status as good, too.
    pub fn also_good(mut self, status: u16) -> Self {
        self.good.push(status);
        self
    }

    /// Numbers the requests: each carries `x-load: 000000000042`, and a [`Failure`] has that number, so that a test can
    /// ask the origin whether it saw the request.
    ///
    /// # Panics
    /// Where a request has no head.
    pub fn labelled(mut self) -> Self {
        for request in &mut self.requests {
            let end = memchr::memmem::find(request, b"\r\n\r\n").expect("a request has a head") + 2;
            let line = format!("{LABEL}{:0>LABEL_DIGITS$}\r\n", 0);
            request.splice(end..end, line.into_bytes());
        }
        self
    }
}

/// The bytes of a request, with `Content-Length` where it has a body.
pub fn request(method: &str, target: &str, host: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\n");
    for (name, value) in headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    if !body.is_empty() {
        let _ = write!(head, "content-length: {}\r\n", body.len());
    }
    head.push_str("\r\n");
    [head.as_bytes(), body].concat()
}

/// The bytes of a GET.
pub fn get(target: &str, host: &str) -> Vec<u8> {
    request("GET", target, host, &[], b"")
}

/// Runs a plan to its end on this thread.
///
/// # Errors
/// Where the kernel refuses epoll or timers; a peer that fails is no error but in the report.
pub fn run(plan: &Plan) -> Result<Report> {
    Stage::new()?.run(plan)
}

/// A thread's place for loads that come one after the other, with an origin beside them or none.
pub struct Stage {
    reactor: Reactor,
}

impl Stage {
    /// Without an origin.
    ///
    /// # Errors
    /// Where the kernel refuses epoll or timers.
    pub fn new() -> Result<Self> {
        Ok(Self { reactor: Reactor::new()? })
    }

    /// With an origin that answers every request with `body_bytes` bytes. It answers while a plan runs.
    ///
    /// # Errors
    /// Where the port is taken.
    pub fn with_origin(port: &Port, body_bytes: usize) -> Result<Self> {
        let mut stage = Self::new()?;
        stage.reactor.add_origin(TcpListener::bind(port.address())?, body_bytes)?;
        Ok(stage)
    }

    /// Runs a plan to its end.
    ///
    /// # Errors
    /// Where the kernel refuses epoll or timers, or the plan cannot be run.
    pub fn run(&mut self, plan: &Plan) -> Result<Report> {
        engine::run(&mut self.reactor, plan, &Control::default())
    }

    /// How many requests the origin has answered.
    pub fn origin_answered(&self) -> u64 {
        self.reactor.answered()
    }
}

/// How a running load is talked to from other threads.
#[derive(Clone, Default)]
struct Control {
    stop: Arc<AtomicBool>,
    ended: Arc<AtomicU64>,
    good: Arc<AtomicU64>,
    under_way: Arc<AtomicU64>,
}

/// A load that runs on a thread of its own. Dropping it stops it.
pub struct Load {
    control: Control,
    thread: Option<JoinHandle<Result<Report>>>,
}

/// Starts a plan on a thread of its own.
///
/// # Errors
/// Where the kernel refuses a thread.
pub fn start(plan: Plan) -> Result<Load> {
    ensure!(!plan.requests.is_empty() && plan.connections > 0, "a plan has requests and connections");
    let control = Control::default();
    let for_thread = control.clone();
    let thread = std::thread::Builder::new()
        .name("load".into())
        .spawn(move || engine::run(&mut Reactor::new()?, &plan, &for_thread))?;
    Ok(Load { control, thread: Some(thread) })
}

impl Load {
    /// The good responses so far.
    pub fn good(&self) -> u64 {
        self.control.good.load(Ordering::SeqCst)
    }

    /// The requests that wait for their response now.
    pub fn under_way(&self) -> u64 {
        self.control.under_way.load(Ordering::SeqCst)
    }

    /// Waits until so many requests wait for their response.
    ///
    /// # Errors
    /// Where they don't by then.
    pub fn wait_under_way(&self, requests: u64, within: Duration) -> Result<()> {
        let until = Instant::now() + within;
        while self.under_way() < requests {
            if Instant::now() >= until {
                bail!("expected {requests} requests under way within {within:?}; found {}", self.under_way());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Waits until so many more responses have been good.
    ///
    /// # Errors
    /// Where they haven't by then, or the load ends before.
    pub fn wait_for_more(&self, responses: u64, within: Duration) -> Result<()> {
        let (goal, until) = (self.good() + responses, Instant::now() + within);
        while self.good() < goal {
            let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            if ended || Instant::now() >= until {
                bail!(
                    "expected {responses} more good responses within {within:?}; {} are missing, {} requests have ended",
                    goal - self.good(),
                    self.control.ended.load(Ordering::SeqCst)
                );
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Starts no further requests, waits for those under way, and reports.
    ///
    /// # Errors
    /// As [`run`].
    pub fn stop(mut self) -> Result<Report> {
        self.control.stop.store(true, Ordering::SeqCst);
        self.join()
    }

    /// Waits for the plan's end, and reports.
    ///
    /// # Errors
    /// As [`run`].
    pub fn finish(mut self) -> Result<Report> {
        self.join()
    }

    fn join(&mut self) -> Result<Report> {
        let thread = self.thread.take().ok_or_else(|| anyhow!("a load ends once"))?;
        thread.join().map_err(|_| anyhow!("the load generator panicked"))?
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.control.stop.store(true, Ordering::SeqCst);
        let _ = self.join();
    }
}

/// An origin that costs little, on a thread of its own: it answers everything alike, but for a target such as `/status/500`
/// with that status, and remembers nothing.
pub struct QuickOrigin {
    port: Port,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl QuickOrigin {
    /// Answers every request with `body_bytes` bytes.
    ///
    /// # Errors
    /// Where no port is free.
    pub fn start(body_bytes: usize) -> Result<Self> {
        Self::start_on(Port::reserve()?, body_bytes)
    }

    /// The same on this port.
    ///
    /// # Errors
    /// Where something listens on it.
    pub fn start_on(port: Port, body_bytes: usize) -> Result<Self> {
        let listener = TcpListener::bind(port.address())?;
        let stop = Arc::new(AtomicBool::new(false));
        let for_thread = stop.clone();
        let thread = std::thread::Builder::new().name("quick-origin".into()).spawn(move || {
            // Where this fails the listener goes, and connecting is refused.
            let Ok(mut reactor) = Reactor::new() else { return };
            if reactor.add_origin(listener, body_bytes).is_err() {
                return;
            }
            while !for_thread.load(Ordering::SeqCst) && reactor.serve_origin().is_ok() {}
        })?;
        Ok(Self { port, stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }
}

impl Drop for QuickOrigin {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;

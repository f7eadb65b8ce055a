//! Clients under faults: they send requests and change the control plane without a pause, whatever becomes of the
//! node, and tell the [checker](crate::checker) of every step.
//!
//! Some of their bodies are small and some longer than what a node keeps in memory; some requests are safe to repeat and
//! some are not; some have an ordering key; some are refused by the origin; some clients go away in mid-body; some send a
//! request again under its `Idempotency-Key` until they know what became of it.

mod changers;
mod senders;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use self::{changers::Changer, senders::Sender};
use crate::{
    admin::Admin,
    beamline::Beamline,
    checker::{self, Arrival, Change, Changes, Ledger, Numbers, Outcome, Quota, Receipt, Violation},
    client::{Connection, Request},
    origin::Origin,
    scene::{HOST, TENANT},
    seed::Seed,
};

/// How many clients there are.
#[derive(Clone, Copy, Debug)]
pub struct Crowd {
    /// Those who send one request after the other under an ordering key of their own.
    pub keyed: usize,
    /// Those who send without.
    pub unkeyed: usize,
    /// Those who create tenants, apply manifests and roll back.
    pub changers: usize,
    /// The longest that each pauses between two steps.
    pub pause: Duration,
    /// How long the origin may take to answer, as every manifest says.
    pub response_timeout: Duration,
}

/// A response time-out that nothing runs into.
pub const PATIENT: Duration = Duration::from_secs(20);

/// What clients tell, shared by all of them.
#[derive(Debug, Default)]
pub struct Told {
    /// Of requests.
    pub ledger: Ledger,
    /// Of changes.
    pub changes: Changes,
    /// The clients are to end: nobody waits any more for a node that is down.
    going_home: AtomicBool,
}

impl Told {
    fn gone_home(&self) -> bool {
        self.going_home.load(Ordering::Relaxed)
    }
}

/// Clients at work, or between two stretches of it.
pub struct Workload {
    told: Arc<Told>,
    node: SocketAddr,
    origin: SocketAddr,
    senders: Vec<Sender>,
    changers: Vec<Changer>,
    quota: Quota,
    running: Option<Running>,
}

struct Running {
    stop: Arc<AtomicBool>,
    senders: Vec<JoinHandle<Sender>>,
    changers: Vec<JoinHandle<Changer>>,
}

/// The manifest with this mark: the smallest that queues, on failure and in order.
fn manifest(host: &str, origin: SocketAddr, response_timeout: Duration, mark: u64) -> Value {
    let mut manifest = crate::admin::manifest(host, origin);
    manifest["upstreams"]["origin"]["response_timeout"] =
        json!(format!("{}ms", response_timeout.as_millis()));
    // Never whole seconds, so that it is always written in milliseconds. On one machine it makes no difference.
    manifest["upstreams"]["origin"]["connect_timeout"] = json!(format!("{}ms", 5_001 + 10 * mark));
    manifest["upstreams"]["origin"]["queue"] = json!({
        "mode": "on-failure",
        "origin_honours_idempotency_key": true,
        "ordering_key": { "header": "x-key" },
        "max_in_flight": 64,
    });
    manifest
}

/// The mark of a manifest that came back.
fn mark_of(manifest: &Value) -> Option<u64> {
    let text = manifest["upstreams"]["origin"]["connect_timeout"].as_str()?;
    let ms: u64 = text.strip_suffix("ms")?.parse().ok()?;
    Some(ms.checked_sub(5_001)? / 10)
}

impl Workload {
    /// Clients of a node that is ready: their tenant is created, nothing is sent yet.
    ///
    /// # Errors
    /// Where the node refuses the tenant.
    pub fn new(node: &Beamline, origin: SocketAddr, crowd: Crowd, seed: &mut Seed) -> Result<Self> {
        let told = Arc::<Told>::default();
        let admin = node.admin()?;
        let range = format!("127.0.0.1/32:{}", origin.port());
        admin.create_tenant(TENANT, &[HOST], &[&range])?;
        told.changes.changed(TENANT, Change::Create, Outcome::Done(None));
        let applied = admin.apply(TENANT, &manifest(HOST, origin, crowd.response_timeout, 0))?;
        told.changes.changed(TENANT, Change::Apply(0), Outcome::Done(applied.revision));

        let keyed = (0..crowd.keyed).map(|n| (format!("k{n}"), true));
        let unkeyed = (0..crowd.unkeyed).map(|n| (format!("u{n}"), false));
        let senders = keyed
            .chain(unkeyed)
            .map(|(name, keyed)| Sender::new(name, keyed, node.address(), crowd.pause, seed.fork(), &told))
            .collect();
        let changers = (0..crowd.changers)
            .map(|n| {
                let mut changer = Changer::new(n, admin.clone(), origin, crowd, seed.fork(), &told);
                if n == 0 {
                    changer.takes_over(TENANT, HOST, applied.revision);
                }
                changer
            })
            .collect();
        Ok(Self { told, node: node.address(), origin, senders, changers, quota: Quota::NONE, running: None })
    }

    /// Says what the node may queue at most, and is judged by.
    pub fn is_held_to(&mut self, quota: Quota) {
        self.quota = quota;
    }

    /// What the clients tell.
    pub fn told(&self) -> &Arc<Told> {
        &self.told
    }

    /// The clients go to work.
    ///
    /// # Panics
    /// Where they are at work.
    pub fn start(&mut self) {
        self.start_with(u64::MAX);
    }

    /// The clients go to work; each that sends requests sends so many, and then waits for the others.
    ///
    /// # Panics
    /// Where they are at work.
    pub fn start_with(&mut self, requests_each: u64) {
        self.told.going_home.store(false, Ordering::Relaxed);
        assert!(self.running.is_none(), "the clients are at work");
        let stop = Arc::<AtomicBool>::default();
        let senders = self.senders.drain(..).map(|mut sender| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut left = requests_each;
                while left > 0 && !stop.load(Ordering::Relaxed) {
                    sender.step();
                    left -= 1;
                }
                sender
            })
        });
        let changers = self.changers.drain(..).map(|mut changer| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    changer.step();
                }
                changer
            })
        });
        let (senders, changers) = (senders.collect(), changers.collect());
        self.running = Some(Running { stop, senders, changers });
    }

    /// Whether all clients that send have sent what they had to.
    pub fn has_sent(&self) -> bool {
        self.running.as_ref().is_none_or(|running| running.senders.iter().all(JoinHandle::is_finished))
    }

    /// The clients end what they are doing, and go home. The node may be down.
    ///
    /// # Panics
    /// Where one of them panicked.
    pub fn stop(&mut self) {
        let Some(running) = self.running.take() else { return };
        running.stop.store(true, Ordering::Relaxed);
        self.told.going_home.store(true, Ordering::Relaxed);
        self.senders = running.senders.into_iter().map(joined).collect();
        self.changers = running.changers.into_iter().map(joined).collect();
    }

    /// Looks at everything that was changed, on a node that is up.
    ///
    /// # Errors
    /// Where the node doesn't answer.
    pub fn look(&mut self) -> Result<()> {
        self.changers.iter_mut().try_for_each(Changer::look_at_all)
    }

    /// Waits until nothing is queued any more, or for at most `within`; returns how many records still are.
    ///
    /// # Errors
    /// Where the node doesn't tell.
    pub fn drained(&self, admin: &Admin, within: Duration) -> Result<u64> {
        let until = Instant::now() + within;
        loop {
            let open = admin.get("/v1/status")?["queue"]["open"].as_u64().unwrap_or(u64::MAX);
            if open == 0 || Instant::now() > until {
                return Ok(open);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asks for every receipt and judges what everybody told. The clients are not at work.
    ///
    /// # Errors
    /// Where the node can't be asked.
    pub fn judged(&self, origin: &Origin) -> Result<Judged> {
        ensure!(origin.address() == self.origin, "this is another origin");
        let exchanges = self.told.ledger.exchanges();
        let arrivals: Vec<_> = origin.requests().iter().filter_map(|r| Arrival::of(r)).collect();
        let mut receipts = HashMap::new();
        let mut connection = Connection::open(self.node, Duration::from_secs(30))?;
        for exchange in &exchanges {
            if let Some(location) = &exchange.receipt {
                let asked = Request::get(location).host(HOST).timeout(Duration::from_secs(30));
                let answer = connection.exchange(&asked)?;
                ensure!(matches!(answer.status, 200 | 404), "a receipt was answered {}", answer.status);
                let receipt = if answer.status == 200 { Some(Receipt::of(&answer.json()?)) } else { None };
                receipts.insert(exchange.intent.id.clone(), receipt);
            }
        }
        let verdict = checker::judge(&exchanges, &arrivals, &receipts, self.quota);
        let mut violations = verdict.violations;
        violations.extend(self.told.changes.violations());
        Ok(Judged { violations, numbers: verdict.numbers, changes: self.told.changes.numbers() })
    }
}

/// What a run of a workload came to.
#[derive(Clone, Debug)]
pub struct Judged {
    /// Every promise that was broken.
    pub violations: Vec<Violation>,
    /// Of requests.
    pub numbers: Numbers,
    /// Changes that were answered 2xx, that were refused, and of which nobody knows.
    pub changes: (usize, usize, usize),
}

fn joined<T>(thread: JoinHandle<T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// An origin that comes and goes, on a thread of its own.
pub struct Weather {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Origin>>,
}

impl Weather {
    /// From now on it is up or down, quick or slow, for `spell` at most each.
    pub fn changes(mut origin: Origin, mut seed: Seed, spell: Duration) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let stopping = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let spell = (spell.as_millis() as u64).max(40);
            while !stopping.load(Ordering::Relaxed) {
                origin.stop();
                std::thread::sleep(Duration::from_millis(seed.within(20..spell)));
                origin.delay_all(Duration::from_millis(*seed.pick(&[0, 0, 3, 30])));
                origin.start_again()?;
                std::thread::sleep(Duration::from_millis(seed.within(20..spell)));
            }
            origin.delay_all(Duration::ZERO);
            Ok(origin)
        });
        Self { stop, thread }
    }

    /// It is up and quick again, and stays so.
    ///
    /// # Errors
    /// Where its port was taken by another process meanwhile.
    pub fn clears(self) -> Result<Origin> {
        self.stop.store(true, Ordering::Relaxed);
        joined(self.thread)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_back_from_a_manifest() {
        let origin = SocketAddr::from(([127, 0, 0, 1], 9001));
        for mark in [0, 1, 99, 100, 4711] {
            assert_eq!(mark_of(&manifest(HOST, origin, PATIENT, mark)), Some(mark));
        }
        assert_eq!(mark_of(&crate::admin::manifest(HOST, origin)), None);
    }
}

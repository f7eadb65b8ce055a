//! A data worker: a thread with a current-thread runtime that shares nothing mutable with its fellows.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::Poll,
    thread,
    time::Duration,
};

use arc_swap::{ArcSwap, Cache};
use beamline_control::{Snapshot, TenantRuntime};
use beamline_filter_host::Engine;
use beamline_nats::Connections;
use beamline_node_state::{NodeState, Phase};
use beamline_queue::Queue;
use beamline_seal::SealKeys;
use beamline_telemetry::{Sampler, Telemetry, WorkerTelemetry};
use beamline_upstream::{ClusterKey, Pools};
use tokio::{
    net::TcpListener,
    runtime::{Builder, LocalOptions},
    sync::{Notify, watch},
    task::unconstrained,
    time::{Instant, MissedTickBehavior},
};

use crate::{
    Heartbeats, Listener, connection,
    listener::refuse_new,
    phases::Endings,
    room::{Room, WORKER_BODIES},
};

/// How often a worker shows that it turns, and hands over its telemetry.
pub(crate) const TICK: Duration = Duration::from_millis(100);
/// After an accept that failed, as where descriptors are out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What handshakes that had begun need to end, once no new ones begin: a round trip to a client that is far away, or one on
/// a machine that is busy.
const HANDSHAKES: Duration = Duration::from_millis(250);

/// What a worker is set to.
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    /// From the first wait for a request's head until it is whole; also how long a kept connection may be idle. Default 60 s.
    pub header_read_timeout: Duration,
    /// Connections that one worker serves at once; further ones wait in the accept queue. Default 16,384.
    pub max_connections: usize,
    /// How it drains.
    pub drain: DrainSettings,
}

/// How a node stops.
#[derive(Clone, Debug)]
pub struct DrainSettings {
    /// Not ready any more, still accepting; each response closes its connection. Default 5 s.
    pub lame_duck: Duration,
    /// How long a connection without a request must be quiet before it is closed. Default 1 s.
    pub idle_grace: Duration,
    /// From the end of the lame duck until what is still under way is cut off. Default 30 s.
    pub deadline: Duration,
}

impl Default for WorkerSettings {
    fn default() -> Self {
        Self {
            header_read_timeout: Duration::from_secs(60),
            max_connections: 16_384,
            drain: DrainSettings {
                lame_duck: Duration::from_secs(5),
                idle_grace: Duration::from_secs(1),
                deadline: Duration::from_secs(30),
            },
        }
    }
}

/// Where a node is in its life, as its workers are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Serve,
    LameDuck,
    Close,
}

/// What all workers are made of.
#[derive(Clone)]
pub struct WorkerParts {
    /// Where the current snapshot is.
    pub snapshots: Arc<ArcSwap<Snapshot>>,
    /// The Wasm engine.
    pub engine: Arc<Engine>,
    /// The durable queue.
    pub queue: Queue,
    /// The operator's NATS connections.
    pub nats: Connections,
    /// What credentials of queued requests are sealed by. None: none are sealed.
    pub seal_keys: Option<Arc<SealKeys>>,
    /// The node's telemetry.
    pub telemetry: Telemetry,
    /// The node's state.
    pub node: NodeState,
    /// Signs of life.
    pub heartbeats: Heartbeats,
    /// Settings.
    pub settings: WorkerSettings,
}

/// What one worker's requests share. Never leaves its thread.
pub(crate) struct Shared {
    snapshots: RefCell<Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>>,
    pub(crate) engine: Arc<Engine>,
    pub(crate) pools: Pools,
    pub(crate) queue: Queue,
    pub(crate) seal_keys: Option<Arc<SealKeys>>,
    pub(crate) telemetry: WorkerTelemetry,
    pub(crate) node: NodeState,
    pub(crate) sampler: Sampler,
    pub(crate) settings: WorkerSettings,
    pub(crate) in_flight: Cell<u64>,
    pub(crate) endings: Endings,
    pub(crate) room: Rc<Room>,
    draining: Cell<bool>,
    drain_begins: Notify,
    connections: Cell<usize>,
    connection_ended: Notify,
}

impl Shared {
    fn new(parts: &WorkerParts) -> Self {
        Self {
            snapshots: RefCell::new(Cache::new(Arc::clone(&parts.snapshots))),
            engine: Arc::clone(&parts.engine),
            pools: Pools::with_nats(&parts.nats),
            queue: parts.queue.clone(),
            seal_keys: parts.seal_keys.clone(),
            telemetry: parts.telemetry.worker(),
            node: parts.node.clone(),
            sampler: parts.telemetry.sampler(),
            settings: parts.settings.clone(),
            in_flight: Cell::new(0),
            endings: Endings::default(),
            room: Room::of(WORKER_BODIES),
            draining: Cell::new(false),
            drain_begins: Notify::new(),
            connections: Cell::new(0),
            connection_ended: Notify::new(),
        }
    }

    /// The tenant that holds `host` (lower case) in the newest snapshot.
    pub(crate) fn tenant(&self, host: &str) -> Option<Arc<TenantRuntime>> {
        self.snapshots.borrow_mut().load().by_host(host).cloned()
    }

    /// Lets go of a snapshot that was replaced: without requests a worker would keep what a deleted tenant had.
    fn let_go(&self) {
        self.snapshots.borrow_mut().load();
    }

    /// Whether the newest snapshot still takes requests for this upstream into the queue: a request may have begun before its
    /// tenant or upstream was deleted.
    pub(crate) fn still_has(&self, key: &ClusterKey) -> bool {
        let mut snapshots = self.snapshots.borrow_mut();
        let tenant = snapshots.load().by_name(&key.tenant);
        tenant.is_some_and(|tenant| !tenant.leaving && tenant.upstreams.contains_key(&key.upstream))
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Returns when the node drains. For what waits of its own will.
    pub(crate) async fn drain_begins(&self) {
        let begins = self.drain_begins.notified();
        if !self.is_draining() {
            begins.await;
        }
    }

    /// Tells a drain that waits for it.
    pub(crate) fn something_ended(&self) {
        self.connection_ended.notify_waiters();
    }

    pub(crate) fn phase(&self) -> Phase {
        self.node.current().phase
    }

    /// A client that did not speak HTTP, or not in time; hyper has answered it.
    pub(crate) fn protocol_error(&self, client: SocketAddr, error: &hyper::Error) {
        let fields = serde_json::json!({ "client.address": client.ip().to_string(), "error.message": error.to_string() });
        self.telemetry.telemetry().event("connection.protocol_error", fields);
    }
}

/// What a drain left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrainOutcome {
    /// Requests that were cut off at the deadline.
    pub cut: u64,
}

/// The data workers of a node, running.
pub struct Workers {
    threads: Vec<thread::JoinHandle<DrainOutcome>>,
    listeners: Vec<Listener>,
    stage: watch::Sender<Stage>,
    drain: DrainSettings,
    node: NodeState,
}

impl Workers {
    /// Starts `count` workers that all accept on `listeners`.
    ///
    /// # Errors
    /// Where the operating system gives no thread, runtime or descriptor.
    pub fn start(count: usize, listeners: Vec<Listener>, parts: &WorkerParts) -> io::Result<Self> {
        let (stage, watch) = watch::channel(Stage::Serve);
        let mut threads = Vec::with_capacity(count);
        for index in 0..count.max(1) {
            let handles = listeners.iter().map(Listener::handle).collect::<io::Result<Vec<_>>>()?;
            let (parts, watch) = (parts.clone(), watch.clone());
            let runtime = move || {
                Builder::new_current_thread()
                    .enable_all()
                    // I/O is looked at every 31 polls. Long guest calls leave the worker after their first slice, so
                    // that a shorter interval gains nothing and costs up to a system call for each request.
                    .event_interval(31)
                    .build_local(LocalOptions::default())
            };
            let body = move || match runtime() {
                Ok(runtime) => runtime.block_on(run(index, &parts, handles, watch)),
                Err(error) => {
                    tracing::error!(%error, index, "a worker's runtime could not be made");
                    DrainOutcome::default()
                }
            };
            threads.push(thread::Builder::new().name(format!("worker-{index}")).spawn(body)?);
        }
        Ok(Self { threads, listeners, stage, drain: parts.settings.drain.clone(), node: parts.node.clone() })
    }

    /// Drains and ends the workers: lame duck, then no new connections, then what is under way until the deadline.
    pub async fn drain(self) -> DrainOutcome {
        self.node.draining();
        self.stage.send_replace(Stage::LameDuck);
        tokio::time::sleep(self.drain.lame_duck).await;
        for listener in &self.listeners {
            // A socket that came from outside outlives this process, and must go on letting others in.
            if !listener.is_inherited()
                && let Err(error) = listener.handle().and_then(|socket| refuse_new(&socket))
            {
                tracing::warn!(%error, "new connections cannot be kept out before closing; a few may be reset");
            }
        }
        tokio::time::sleep(HANDSHAKES).await;
        self.stage.send_replace(Stage::Close);
        // The workers hold handles of their own. The last one to let go closes the socket, and newcomers are refused.
        drop(self.listeners);
        let threads = self.threads;
        let ended = tokio::task::spawn_blocking(move || {
            let outcomes = threads.into_iter().map(|t| t.join().unwrap_or_default());
            DrainOutcome { cut: outcomes.map(|o| o.cut).sum() }
        });
        ended.await.unwrap_or_default()
    }
}

async fn run(
    index: usize,
    parts: &WorkerParts,
    listeners: Vec<std::net::TcpListener>,
    mut stage: watch::Receiver<Stage>,
) -> DrainOutcome {
    let shared = Rc::new(Shared::new(parts));
    let ticking = tokio::task::spawn_local(tick(Rc::clone(&shared), parts.heartbeats.clone(), index));
    let ending = tokio::task::spawn_local(Endings::run(Rc::clone(&shared)));
    let mut accepting = Vec::new();
    for listener in listeners {
        match TcpListener::from_std(listener) {
            Ok(listener) => {
                accepting.push(tokio::task::spawn_local(accept(Rc::clone(&shared), listener, stage.clone())))
            }
            Err(error) => tracing::error!(%error, "a worker cannot accept on a listener"),
        }
    }
    if stage.wait_for(|s| *s != Stage::Serve).await.is_ok() {
        shared.draining.set(true);
        shared.drain_begins.notify_waiters();
    }
    // An accept loop ends once the stage says close and nobody waits in its queue.
    for accepting in accepting {
        let _ = accepting.await;
    }
    let deadline = Instant::now() + shared.settings.drain.deadline;
    while shared.connections.get() > 0 || shared.endings.any() {
        if tokio::time::timeout_at(deadline, shared.connection_ended.notified()).await.is_err() {
            break;
        }
    }
    ticking.abort();
    ending.abort();
    // What is cut off now ends when the runtime is dropped: nobody would take its ending up any more.
    shared.endings.close();
    parts.heartbeats.ended(index);
    shared.telemetry.flush();
    DrainOutcome { cut: shared.in_flight.get() }
}

async fn tick(shared: Rc<Shared>, heartbeats: Heartbeats, index: usize) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        heartbeats.beat(index);
        shared.telemetry.flush();
        shared.let_go();
    }
}

/// Accepts until the stage says close, then until nobody waits any more.
async fn accept(shared: Rc<Shared>, listener: TcpListener, mut stage: watch::Receiver<Stage>) {
    loop {
        while shared.connections.get() >= shared.settings.max_connections {
            shared.connection_ended.notified().await;
        }
        let accepted = tokio::select! {
            biased;
            closing = stage.wait_for(|s| *s == Stage::Close) => {
                drop(closing);
                break;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, client)) => begin(&shared, stream, client, &stage),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // One poll each: ready while somebody waits. Outside tokio's budget, which would say pending for a full queue.
    let next = || unconstrained(poll_fn(|cx| Poll::Ready(listener.poll_accept(cx))));
    while let Poll::Ready(Ok((stream, client))) = next().await {
        begin(&shared, stream, client, &stage);
    }
}

/// A connection that counts for as long as its task lives.
struct Counted(Rc<Shared>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.set(self.0.connections.get() - 1);
        // One of those that may wait: an accept loop at its limit, or the drain.
        self.0.connection_ended.notify_waiters();
    }
}

fn begin(
    shared: &Rc<Shared>,
    stream: tokio::net::TcpStream,
    client: SocketAddr,
    stage: &watch::Receiver<Stage>,
) {
    shared.connections.set(shared.connections.get() + 1);
    let counted = Counted(Rc::clone(shared));
    let (worker, stage) = (Rc::clone(shared), stage.clone());
    tokio::task::spawn_local(async move {
        let _counted = counted;
        connection::serve(worker, stream, client, stage).await;
    });
}

//! The whole node, put together in one place and taken apart in reverse.

use std::{
    fs, io,
    io::Write as _,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use beamline_admin::{AdminState, router};
use beamline_control::{Control, ControlSettings};
use beamline_dataplane::{
    Deliverer, DrainSettings, Heartbeats, Listener, WorkerParts, WorkerSettings, Workers,
};
use beamline_filter_host::{Compiler, CompilerSettings, Engine, EngineSettings};
use beamline_node_state::NodeState;
use beamline_queue::Queue;
use beamline_store::SqliteStore;
use beamline_telemetry::Telemetry;
use beamline_upstream::EgressNode;
use serde_json::json;
use tokio::{runtime, sync::watch};

use crate::{
    config::{Config, ServeArgs},
    housekeeping, inherit, lifecycle, seal_keys,
};

/// Threads of the control runtime: admin API, control plane, exporters, timers.
const CONTROL_THREADS: usize = 2;
/// How much lower than the data workers' the priority is of deliveries and of filters' own requests.
const NICENESS: i32 = 5;
/// The same of the control runtime: with less, changes under way take a third of a data worker's processor from it when it is
/// busy. It gets a tenth then, of which its exporters live.
const CONTROL_NICENESS: i32 = 10;
/// How long the end waits for telemetry and the queue.
const FLUSH: Duration = Duration::from_secs(5);
/// How often a node that drains looks for a successor.
const LOOK_FOR_SUCCESSOR: Duration = Duration::from_millis(100);
/// Requests were cut off at the drain's deadline.
const EXIT_CUT: u8 = 4;

pub(crate) fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    // First of all: descriptors that came from outside must be ours before we open others.
    let inherited = inherit::sockets()?;
    let config = Config::resolve(args)?;
    housekeeping::log_to_stderr();
    no_huge_pages();
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .on_thread_start(|| give_way(CONTROL_NICENESS))
        .enable_all()
        .build()
        .context("the control runtime cannot be made")?;
    let code = runtime.block_on(node(config, inherited));
    // Whatever still blocks a thread (a store call, a resolver) does not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}

/// Memory comes in small pages. The kernel clears a huge one when it is touched first, for milliseconds, in which a data worker
/// serves nobody; and counts them as the call's that ran into it.
fn no_huge_pages() {
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::warn!(%error, "transparent huge pages could not be switched off: some requests may take milliseconds more");
    }
}

/// Lets data workers go first on this thread's processor.
fn give_way(niceness: i32) {
    // Without the right to do so, the thread competes as an equal.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), niceness);
}

async fn node(config: Config, inherited: inherit::Inherited) -> anyhow::Result<ExitCode> {
    let mut signals = lifecycle::Signals::catch()?;
    make_private_dir(&config.data_dir)?;
    let node = NodeState::new();
    let telemetry = telemetry(&config)?;
    let nats = housekeeping::telling(config.nats.clone(), telemetry.clone());
    let seal_keys = seal_keys::load(
        config.seal_key_file.as_deref(),
        seal_keys::credentials_dir().as_deref(),
        &config.data_dir,
    )?
    .map(Arc::new);

    // Sockets first: an address that is taken should be known before anything is opened.
    let listeners = if inherited.data.is_empty() {
        config
            .listen
            .iter()
            .map(|addr| Listener::bind(*addr))
            .collect::<Result<Vec<_>, _>>()
            .context("choose another address with --listen, or stop what holds this one")?
    } else {
        inherited.data
    };
    let admin = match inherited.admin {
        Some(listener) => listener,
        None => Listener::bind(config.admin)
            .context("choose another address for the admin API with --admin, or stop what holds this one")?,
    };
    let addresses: Vec<SocketAddr> = listeners.iter().map(Listener::local_addr).collect();

    let engine = Engine::new(EngineSettings {
        pool_instances: config.pool_instances,
        slow_lane_threads: config.slow_lane_threads,
        reset_tier: config.reset_tier,
        ..EngineSettings::default()
    })?;
    let compiler =
        Compiler::new(Arc::clone(&engine), CompilerSettings::new(config.data_dir.join("artifacts")))?;
    let store = SqliteStore::open(&config.data_dir.join("store"))
        .context("the control-plane store cannot be opened")?;
    let (queue, delivery) = Queue::open(config.queue.clone()).context("the queue cannot be opened")?;
    let settings = ControlSettings {
        admin_addresses: vec![admin.local_addr()],
        limits: config.limits.clone(),
        nats: nats.clone(),
        seal_keys: seal_keys.clone(),
        egress: Some(EgressNode::start(|| give_way(NICENESS)).context("no thread for requests of filters")?),
        ..ControlSettings::default()
    };
    let control = Control::open(Arc::new(store), queue.clone(), settings, compiler, telemetry.clone())
        .await
        .context("the control plane cannot be started")?;
    let token_file = config.data_dir.join("operator-token");
    if control.operator_token_if_first_start(|token| write_private(&token_file, token.reveal())).await? {
        eprintln!("beamline: first start: the operator's token is in {}", token_file.display());
    }

    let (stop_delivery, mut stopping) = watch::channel(false);
    let deliverer = Deliverer::new(control.snapshots(), seal_keys.clone(), telemetry.clone(), nats.clone());
    let on_its_thread = move || {
        give_way(NICENESS);
        deliverer.on_this_thread()
    };
    let stopped = async move {
        // Where nobody is left to say stop, it is time to.
        let _ = stopping.wait_for(|stop| *stop).await;
    };
    let delivering =
        delivery.spawn(on_its_thread, stopped, config.drain_timeout).context("no thread for deliveries")?;

    let heartbeats = Heartbeats::new(config.workers);
    let parts = WorkerParts {
        snapshots: control.snapshots(),
        engine,
        queue: queue.clone(),
        nats,
        seal_keys,
        telemetry: telemetry.clone(),
        node: node.clone(),
        heartbeats: heartbeats.clone(),
        settings: WorkerSettings {
            drain: DrainSettings {
                lame_duck: config.lame_duck,
                idle_grace: config.drain_idle_grace,
                deadline: config.drain_timeout,
            },
            ..WorkerSettings::default()
        },
    };
    let workers =
        Workers::start(config.workers, listeners, &parts).context("a data worker cannot be started")?;
    let admin_addr = admin.local_addr();
    let state = AdminState {
        control: control.clone(),
        queue: queue.clone(),
        telemetry: telemetry.clone(),
        node: node.clone(),
        liveness: Arc::new(move || heartbeats.check()),
    };
    let admin = tokio::spawn(serve_admin(admin, state)?);
    let watching = housekeeping::start(node.clone(), control.clone(), queue.clone(), telemetry.clone());
    node.started();
    telemetry.event(
        "node.started",
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "listen": addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "admin": admin_addr.to_string(),
            "workers": config.workers,
        }),
    );
    let shown = addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    eprintln!("beamline: serving on {shown}, admin API on {admin_addr}");

    // Until a signal; a second one ends the process wherever it is.
    let signal = signals.next().await;
    signals.exit_at_the_next();
    telemetry.event("node.draining", json!({ "signal": signal }));
    let (is_drained, mut drained) = watch::channel(false);
    let requests = async {
        let outcome = workers.drain().await;
        is_drained.send_replace(true);
        outcome
    };
    // Delivers until nobody hands us requests any more, or a successor is there to do it.
    let deliveries = async {
        let grace = tokio::select! {
            () = successor(&queue) => config.drain_timeout + FLUSH,
            _ = drained.wait_for(|drained| *drained) => FLUSH,
        };
        stop_delivery.send_replace(true);
        let delivered = tokio::task::spawn_blocking(move || delivering.join());
        if tokio::time::timeout(grace, delivered).await.is_err() {
            tracing::warn!("a delivery did not end in time; it will be repeated or marked indeterminate");
        } else {
            queue.let_go(FLUSH).await;
        }
    };
    let (outcome, ()) = tokio::join!(requests, deliveries);
    queue.shutdown(FLUSH).await;
    if !control.store_keys(FLUSH).await {
        tracing::error!("what filters stored durably was not all stored before the end");
    }
    watching.abort();
    telemetry.event("node.stopped", json!({ "requests_cut": outcome.cut }));
    if !telemetry.flush(FLUSH).await {
        tracing::warn!("telemetry was not all written or exported before the end");
    }
    admin.abort();
    if outcome.cut > 0 {
        tracing::error!(requests = outcome.cut, "requests were cut off at drain.timeout");
        return Ok(ExitCode::from(EXIT_CUT));
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns when another process has the queue open, too.
async fn successor(queue: &Queue) {
    while queue.is_alone() {
        tokio::time::sleep(LOOK_FOR_SUCCESSOR).await;
    }
}

fn telemetry(config: &Config) -> anyhow::Result<Telemetry> {
    let settings = beamline_telemetry::Settings {
        log: config.log.clone(),
        otlp_endpoint: config.otlp_endpoint.clone(),
        sampler: config.sampler,
        node_id: node_id(&config.data_dir)?,
        ..Default::default()
    };
    Ok(Telemetry::open(settings, &runtime::Handle::current())?)
}

/// This node's own name for itself, made at the first start and kept.
fn node_id(data_dir: &Path) -> anyhow::Result<String> {
    let path = data_dir.join("node-id");
    match fs::read_to_string(&path) {
        Ok(id) => Ok(id.trim().to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = beamline_telemetry::TraceId::random().to_string();
            write_private(&path, &id).with_context(|| format!("{} cannot be written", path.display()))?;
            Ok(id)
        }
        Err(error) => Err(error).with_context(|| format!("{} cannot be read", path.display())),
    }
}

fn serve_admin(
    listener: Listener,
    state: AdminState,
) -> io::Result<impl Future<Output = ()> + Send + 'static> {
    let listener = tokio::net::TcpListener::from_std(listener.into_std())?;
    let service = router(state);
    Ok(async move {
        if let Err(error) = axum::serve(listener, service).await {
            tracing::error!(%error, "the admin API ended");
        }
    })
}

fn make_private_dir(dir: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(|| {
        format!("data folder {} cannot be made: choose another with --data-dir", dir.display())
    })
}

/// Writes a secret that must be there after a crash, readable by its owner alone.
fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let partial = path.with_extension("partial");
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    fs::rename(&partial, path)?;
    fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

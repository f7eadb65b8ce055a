//! What runs once a second beside everything: reports that feed the node's state, and the events it makes.

use std::{io::IsTerminal as _, time::Duration};

use beamline_control::{Control, Lacking, Snapshot};
use beamline_nats::{Change, Connections};
use beamline_node_state::{NodeState, Reason};
use beamline_queue::{Health, Queue};
use beamline_telemetry::Telemetry;
use beamline_upstream::UpstreamState;
use serde_json::json;
use tokio::{task::JoinHandle, time::MissedTickBehavior};
use tracing_subscriber::EnvFilter;

const PERIOD: Duration = Duration::from_secs(1);

/// The node's own messages (warnings and errors, not requests) go to standard error: text for people, JSON for machines.
pub(crate) fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("BEAMLINE_STDERR").unwrap_or_else(|_| EnvFilter::new("warn"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() { builder.init() } else { builder.json().init() }
}

/// Starts the once-a-second reports and the events of the node's state.
pub(crate) fn start(node: NodeState, control: Control, queue: Queue, telemetry: Telemetry) -> JoinHandle<()> {
    let (mut states, mut health) = (node.watch(), queue.health());
    let snapshots = control.snapshots();
    tokio::spawn(async move {
        let mut every = tokio::time::interval(PERIOD);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = every.tick() => {
                    report_upstreams(&node, &snapshots.load(), &queue);
                    report_tenants(&node, &snapshots.load());
                    report_queue(&node, &health.borrow_and_update());
                    report_store(&node, &control);
                    report_telemetry(&node, &telemetry);
                    node.tick();
                }
                changed = states.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let state = states.borrow_and_update().clone();
                    telemetry.event("node.state", json!({ "phase": state.phase, "reasons": state.reasons }));
                }
            }
        }
    })
}

/// Has the coming and going of each thread's NATS connections told as events.
pub(crate) fn telling(connections: Connections, telemetry: Telemetry) -> Connections {
    connections.telling(move |name, change| {
        let thread = std::thread::current().name().unwrap_or_default().to_owned();
        let (event, fields) = match change {
            Change::Connected { server, tls } => (
                "nats.connected",
                json!({ "connection": name, "server": server.to_string(), "tls": tls, "thread": thread }),
            ),
            Change::Lost { server, why } => (
                "nats.disconnected",
                json!({ "connection": name, "server": server.to_string(), "thread": thread, "reason": why }),
            ),
            Change::Unreachable { why } => {
                ("nats.disconnected", json!({ "connection": name, "thread": thread, "reason": why }))
            }
        };
        telemetry.event(event, fields);
    })
}

fn report_upstreams(node: &NodeState, snapshot: &Snapshot, queue: &Queue) {
    for upstream in snapshot.tenants().flat_map(|t| t.upstreams.values()) {
        let key = upstream.cluster.key();
        let reason = Reason::UpstreamDown(key.to_string());
        match upstream.cluster.state() {
            UpstreamState::Down => node.failed(reason),
            UpstreamState::Ready => {
                node.worked(&reason);
                // It may be there again since a revision ago, or be known to be well from live requests.
                if queue.depth(&key.tenant, &key.upstream) > 0 {
                    queue.nudge(&key.tenant, &key.upstream);
                }
            }
            UpstreamState::Degraded => {}
        }
    }
}

/// Reports what tenants lack on this node, and ends what concerned a tenant, an upstream or a filter that is gone or whole again.
fn report_tenants(node: &NodeState, snapshot: &Snapshot) {
    let upstreams = || snapshot.tenants().flat_map(|tenant| tenant.upstreams.values());
    let modules = snapshot.tenants().flat_map(|tenant| {
        tenant.unloaded.iter().map(|unloaded| format!("{}/{}", tenant.name, unloaded.filter))
    });
    let modules = modules.map(Reason::ModuleUnavailable);
    let secrets = snapshot.tenants().flat_map(|tenant| {
        tenant.without_secrets().map(|(lacking, _)| match lacking {
            Lacking::Upstream(name) => format!("{}/{name}", tenant.name),
            Lacking::Filter(name) => format!("{}/filters.{name}", tenant.name),
        })
    });
    let lacking: Vec<_> = modules.chain(secrets.map(Reason::SecretUnavailable)).collect();
    for reason in node.current().reasons {
        let is_over = match &reason {
            // Whether one that is there is well again, its own breaker tells.
            Reason::UpstreamDown(key) => !upstreams().any(|u| u.cluster.key().to_string() == *key),
            Reason::ModuleUnavailable(_) | Reason::SecretUnavailable(_) => !lacking.contains(&reason),
            _ => false,
        };
        if is_over {
            node.worked(&reason);
        }
    }
    lacking.into_iter().for_each(|reason| node.failed(reason));
}

fn report_queue(node: &NodeState, health: &Health) {
    match health {
        Health::Available => node.worked(&Reason::QueueUnavailable),
        Health::Unavailable { .. } => node.failed(Reason::QueueUnavailable),
    }
}

fn report_store(node: &NodeState, control: &Control) {
    if control.can_store_keys() {
        node.worked(&Reason::StoreUnavailable);
    } else {
        node.failed(Reason::StoreUnavailable);
    }
}

fn report_telemetry(node: &NodeState, telemetry: &Telemetry) {
    if telemetry.export_failing() {
        node.failed(Reason::TelemetryExport);
    } else {
        node.worked(&Reason::TelemetryExport);
    }
}

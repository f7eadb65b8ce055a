//! `beamline status`: how a node fares.

use clap::Args;
use serde::Deserialize;

use super::{
    client::Node,
    failure::Failure,
    node_args::NodeArgs,
    report::{Report, Table, size},
};

/// Show how the node fares
///
/// Whether it is healthy or of what it is degraded, whom it serves, and what waits in its durable queue. Takes the
/// operator's token.
#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

#[derive(Deserialize)]
struct Status {
    version: String,
    node: State,
    tenants: u64,
    #[serde(default)]
    unloaded: Vec<String>,
    queue: Queue,
}

#[derive(Deserialize)]
struct State {
    phase: String,
    reasons: Vec<Reason>,
}

#[derive(Deserialize)]
struct Reason {
    reason: String,
    of: Option<String>,
}

#[derive(Deserialize)]
struct Queue {
    open: u64,
    in_flight: u64,
    kept_bytes: u64,
    accepted: u64,
    delivered: u64,
    dead: u64,
}

pub(crate) fn run(args: &StatusArgs) -> Result<Report, Failure> {
    let answer = Node::of(&args.node)?.get("/v1/status")?;
    let status: Status = answer.as_a()?;
    let mut table = Table::plain();
    table.row(["node".into(), status.node.phase]);
    for Reason { reason, of } in status.node.reasons {
        table.row(["".into(), of.map_or_else(|| reason.clone(), |of| format!("{reason}: {of}"))]);
    }
    table.row(["version".into(), status.version]);
    table.row(["tenants".into(), format!("{} serving", status.tenants)]);
    for tenant in status.unloaded {
        table.row([
            "".into(),
            format!("{tenant} has a module that cannot be loaded: see `beamline show {tenant}`"),
        ]);
    }
    let queue = status.queue;
    table.row([
        "queue".into(),
        format!("{} waiting ({} in flight), {} kept", queue.open, queue.in_flight, size(queue.kept_bytes)),
    ]);
    table.row([
        "".into(),
        format!(
            "since the start {} accepted, {} delivered, {} dead",
            queue.accepted, queue.delivered, queue.dead
        ),
    ]);
    Ok(Report { json: answer.0, text: table.rendered() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::cli::testing::{FakeNode, ask};

    #[test]
    fn a_degraded_node_says_of_what() {
        let status = json!({
            "version": "0.1.0",
            "node": { "phase": "degraded", "reasons": [{ "reason": "queue-full" }, { "reason": "upstream-down", "of": "acme/api" }] },
            "tenants": 2,
            "generation": 7,
            "unloaded": ["globex"],
            "queue": { "open": 3, "in_flight": 1, "kept_bytes": 2048, "accepted": 10, "delivered": 6, "dead": 1, "refused": 0 },
        });
        let report = ask(&FakeNode::answering([(200, status)]), "status").unwrap();
        assert_eq!(
            report.text,
            "node     degraded\n         \
                      queue-full\n         \
                      upstream-down: acme/api\n\
             version  0.1.0\n\
             tenants  2 serving\n         \
                      globex has a module that cannot be loaded: see `beamline show globex`\n\
             queue    3 waiting (1 in flight), 2.0 KiB kept\n         \
                      since the start 10 accepted, 6 delivered, 1 dead\n"
        );
    }
}

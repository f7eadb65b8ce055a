//! `beamline rollback`: an earlier revision becomes the active one again.

use beamline_model::TenantName;
use clap::{Args, value_parser};
use serde_json::json;

use super::{apply::Applied, client::Node, failure::Failure, node_args::NodeArgs, report::Report};

/// Make an earlier revision the active one again
///
/// Without --to it is the revision that was active before the present one, so that a second rollback undoes the first.
/// The revision is held against the tenant's grant as it is now.
#[derive(Args, Debug)]
pub(crate) struct RollbackArgs {
    /// The tenant
    #[arg(long, short, value_name = "NAME")]
    tenant: TenantName,

    /// The revision to go back to
    #[arg(long, value_name = "REVISION", value_parser = value_parser!(u64).range(1..))]
    to: Option<u64>,

    /// Give up the queued requests of upstreams that the revision does not have
    #[arg(long)]
    discard_queue: bool,

    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

pub(crate) fn run(args: &RollbackArgs) -> Result<Report, Failure> {
    let mut to = args.to.map_or_else(|| json!({}), |revision| json!({ "revision": revision }));
    if args.discard_queue {
        to["discard_queue"] = true.into();
    }
    let answer = Node::of(&args.node)?.post(&format!("/v1/tenants/{}/rollback", args.tenant), &to)?;
    let applied: Applied = answer.as_a()?;
    let revision = applied.revision.map_or_else(|| "no revision".to_owned(), |r| format!("revision {r}"));
    let mut text = if applied.changed {
        format!("{revision} is active again")
    } else {
        format!("nothing changed: {revision} is active")
    };
    text.push_str(&applied.difference());
    text.push_str(&applied.given_up());
    Ok(Report { json: answer.0, text })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::{FakeNode, ask};

    #[test]
    fn a_rollback_goes_to_the_one_before_or_to_the_one_that_is_named() {
        let to = |revision: u64, changed: bool| {
            (200, json!({ "revision": revision, "changed": changed, "diff": [] }))
        };
        let node = FakeNode::answering([to(3, true), to(1, true), to(1, false)]);
        assert_eq!(ask(&node, "rollback --tenant acme").unwrap().text, "revision 3 is active again");
        assert_eq!(ask(&node, "rollback --tenant acme --to 1").unwrap().text, "revision 1 is active again");
        assert_eq!(
            ask(&node, "rollback --tenant acme --to 1").unwrap().text,
            "nothing changed: revision 1 is active"
        );
        let requests = node.requests();
        assert!(requests.iter().all(|r| r.line == "POST /v1/tenants/acme/rollback"));
        let answer = json!({ "revision": 1, "changed": true, "diff": [], "discarded": 2 });
        let node = FakeNode::answering([(200, answer)]);
        let report = ask(&node, "rollback --tenant acme --to 1 --discard-queue").unwrap();
        assert!(report.text.ends_with("discarded: 2"), "{}", report.text);
        assert_eq!(node.requests()[0].json(), json!({ "revision": 1, "discard_queue": true }));
        assert_eq!((requests[0].json(), requests[1].json()), (json!({}), json!({ "revision": 1 })));
    }
}

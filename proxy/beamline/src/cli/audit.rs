//! `beamline audit`: what was done by whom.

use beamline_model::TenantName;
use clap::{Args, value_parser};
use serde::Deserialize;
use serde_json::Value;

use super::{
    client::Node,
    failure::Failure,
    node_args::NodeArgs,
    report::{Report, Table, time},
};

/// Show what was done by whom, oldest first
///
/// Changes of tenants, manifests and modules, everything that was done to the queue by hand, and what the node expired or
/// deleted in it, hour by hour. With the operator's
/// token of all tenants, with a tenant's token of that tenant.
#[derive(Args, Debug)]
pub(crate) struct AuditArgs {
    /// Only what concerns this tenant
    #[arg(long, short, value_name = "NAME")]
    tenant: Option<TenantName>,

    /// Only what comes after this position, as an earlier page named it
    #[arg(long, value_name = "POSITION")]
    after: Option<String>,

    /// The most lines
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = value_parser!(u64).range(1..=1000))]
    limit: u64,

    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

#[derive(Deserialize)]
struct Page {
    entries: Vec<Entry>,
    next: String,
}

#[derive(Deserialize)]
struct Entry {
    at_ms: u64,
    actor: String,
    action: String,
    tenant: Option<String>,
    detail: Value,
}

pub(crate) fn run(args: &AuditArgs) -> Result<Report, Failure> {
    let mut path = format!("/v1/audit?limit={}", args.limit);
    if let Some(tenant) = &args.tenant {
        path.push_str(&format!("&tenant={tenant}"));
    }
    if let Some(after) = &args.after {
        path.push_str(&format!("&after={}", super::queue::encoded(after)));
    }
    let answer = Node::of(&args.node)?.get(&path)?;
    let page: Page = answer.as_a()?;
    let mut table = Table::headed(["TIME", "ACTOR", "ACTION", "TENANT", "DETAIL"]);
    let full = page.entries.len() as u64 == args.limit;
    if page.entries.is_empty() {
        return Ok(Report { json: answer.0, text: "nothing was done".into() });
    }
    for Entry { at_ms, actor, action, tenant, detail } in page.entries {
        table.row([time(at_ms), actor, action, tenant.unwrap_or_else(|| "-".into()), told(&detail)]);
    }
    let mut text = table.rendered();
    if full {
        text.push_str(&format!("there may be more: --after {}", page.next));
    }
    Ok(Report { json: answer.0, text })
}

/// A detail as `name=value` pairs, without those that say nothing.
fn told(detail: &Value) -> String {
    let Some(fields) = detail.as_object() else { return detail.to_string() };
    let pair = |(name, value): (&String, &Value)| match value {
        Value::Null => None,
        Value::String(text) if text.is_empty() => None,
        Value::String(text) => Some(format!("{name}={}", super::queue::printable(text))),
        other => Some(match (name.strip_suffix("_ms"), other.as_u64()) {
            (Some(name), Some(ms)) => format!("{name}={}", time(ms)),
            _ => format!("{name}={other}"),
        }),
    };
    fields.iter().filter_map(pair).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::cli::testing::{FakeNode, ask};

    #[test]
    fn what_was_done_is_a_line_each() {
        let entries = json!({ "next": "3.1", "entries": [
            { "at_ms": 0, "actor": "operator", "action": "tenant.create", "tenant": "acme", "detail": { "hosts": ["a.test"] } },
            { "at_ms": 1000, "actor": "tenant/acme", "action": "queue.discard", "tenant": "acme",
              "detail": { "upstream": "api", "record": "AAA", "count": 1, "of": "was dead(rejected)",
                          "from_ms": null, "until_ms": null } },
            { "at_ms": 2000, "actor": "node", "action": "queue.retention", "tenant": "acme",
              "detail": { "upstream": "api", "record": null, "count": 7, "of": "receipts", "from_ms": 0, "until_ms": 1000 } },
        ] });
        let node = FakeNode::answering([(200, entries), (200, json!({ "next": "0.0", "entries": [] }))]);
        let report = ask(&node, "audit --tenant acme --limit 3 --after 1.0").unwrap();
        assert_eq!(
            report.text,
            "TIME                  ACTOR        ACTION           TENANT  DETAIL\n\
             1970-01-01T00:00:00Z  operator     tenant.create    acme    hosts=[\"a.test\"]\n\
             1970-01-01T00:00:01Z  tenant/acme  queue.discard    acme    count=1 of=was dead(rejected) record=AAA upstream=api\n\
             1970-01-01T00:00:02Z  node         queue.retention  acme    count=7 from=1970-01-01T00:00:00Z of=receipts \
             until=1970-01-01T00:00:01Z upstream=api\n\
             there may be more: --after 3.1"
        );
        assert_eq!(node.requests()[0].line, "GET /v1/audit?limit=3&tenant=acme&after=1.0");
        assert_eq!(ask(&node, "audit").unwrap().text, "nothing was done");
    }
}

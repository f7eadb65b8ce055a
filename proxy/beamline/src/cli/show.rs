//! `beamline show`: a tenant, its manifest, its revisions, its modules.

use std::collections::BTreeMap;

use beamline_model::{Digest, LimitClass, Manifest, RevisionId, TenantName};
use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    client::Node,
    failure::Failure,
    node_args::NodeArgs,
    report::{Report, Table, size, time},
    tenant::List,
};

/// Revisions that are asked for at once.
const PAGE: usize = 1000;

/// Show a tenant, or all of them
///
/// Without NAME: the tenants that the token may see, or where that is just one, that one.
#[derive(Args, Debug)]
pub(crate) struct ShowArgs {
    /// The tenant
    #[arg(value_name = "NAME")]
    tenant: Option<TenantName>,

    #[command(flatten)]
    what: What,

    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

#[derive(Args, Debug)]
#[group(multiple = false)]
struct What {
    /// List its revisions, newest first
    #[arg(long)]
    revisions: bool,

    /// Print the active manifest in the form that `beamline apply` takes
    #[arg(long)]
    manifest: bool,

    /// List its modules, oldest first
    #[arg(long)]
    modules: bool,
}

#[derive(Deserialize)]
struct Tenant {
    name: TenantName,
    hosts: Vec<String>,
    upstream_ranges: Vec<String>,
    #[serde(default)]
    nats_subjects: Vec<String>,
    #[serde(default)]
    limit_class: LimitClass,
    created_ms: u64,
    revision: Option<RevisionId>,
    previous: Option<RevisionId>,
    #[serde(default)]
    deletion: Option<String>,
    #[serde(default)]
    upstreams: BTreeMap<String, Upstream>,
    #[serde(default)]
    unloaded: Vec<Unloaded>,
    #[serde(default)]
    suspended: Vec<Suspended>,
}

#[derive(Deserialize)]
struct Suspended {
    filter: String,
    retry_ms: u64,
}

#[derive(Deserialize)]
struct Upstream {
    state: String,
    queue_depth: u64,
    #[serde(default)]
    problem: Option<String>,
}

#[derive(Deserialize)]
struct Unloaded {
    filter: String,
    problem: String,
}

#[derive(Deserialize)]
struct Revision {
    revision: RevisionId,
    created_ms: u64,
    active: bool,
}

#[derive(Deserialize)]
struct Module {
    digest: Digest,
    kind: String,
    tier: String,
    size: u64,
    pushed_ms: u64,
}

pub(crate) fn run(args: &ShowArgs) -> Result<Report, Failure> {
    let node = Node::of(&args.node)?;
    let What { revisions: of_revisions, manifest: of_manifest, modules: of_modules } = args.what;
    let tenant = match &args.tenant {
        Some(name) => name.clone(),
        None => {
            let answer = node.get("/v1/tenants")?;
            let list: List = answer.as_a()?;
            match &list.tenants[..] {
                [only] => only.name.clone(),
                _ if of_revisions || of_manifest || of_modules => {
                    return Err(Failure::Local(format!(
                        "which tenant? There are {}: name one, as in `beamline show NAME`",
                        list.tenants.len()
                    )));
                }
                _ => return Ok(Report { text: list.rendered(), json: answer.0 }),
            }
        }
    };
    if of_revisions {
        revisions(&node, &tenant)
    } else if of_manifest {
        manifest(&node, &tenant)
    } else if of_modules {
        modules(&node, &tenant)
    } else {
        whole(&node, &tenant)
    }
}

fn whole(node: &Node, tenant: &TenantName) -> Result<Report, Failure> {
    let answer = node.get(&format!("/v1/tenants/{tenant}"))?;
    let tenant: Tenant = answer.as_a()?;
    let mut table = Table::plain();
    table.row(["tenant".into(), tenant.name.to_string()]);
    table.row(["created".into(), time(tenant.created_ms)]);
    let revision = match (tenant.revision, tenant.previous) {
        (None, _) => format!("none yet: `beamline apply FILE --tenant {}` makes the first", tenant.name),
        (Some(active), None) => format!("{active}"),
        (Some(active), Some(previous)) => format!("{active}, a rollback leads to {previous}"),
    };
    table.row(["revision".into(), revision]);
    match tenant.deletion.as_deref() {
        None => {}
        Some("discard") => {
            table.row(["deletion".into(), "it is being deleted, its queued requests are given up".into()])
        }
        Some(_) => table
            .row(["deletion".into(), "it is being deleted, when its queued requests are delivered".into()]),
    }
    let mut lines = |label: &str, values: &mut dyn Iterator<Item = String>| {
        for (i, value) in values.enumerate() {
            table.row([if i == 0 { label.to_owned() } else { String::new() }, value]);
        }
    };
    lines("hosts", &mut tenant.hosts.into_iter());
    lines("ranges", &mut tenant.upstream_ranges.into_iter());
    lines("nats", &mut tenant.nats_subjects.into_iter());
    lines("class", &mut std::iter::once(tenant.limit_class.to_string()));
    lines(
        "upstreams",
        &mut tenant.upstreams.iter().map(|(name, u)| {
            let problem = u.problem.iter().map(|problem| format!(", {problem}")).collect::<String>();
            format!("{name}: {}, {} queued{problem}", u.state, u.queue_depth)
        }),
    );
    lines("unloaded", &mut tenant.unloaded.iter().map(|u| format!("filter {}: {}", u.filter, u.problem)));
    lines(
        "suspended",
        &mut tenant.suspended.iter().map(|s| {
            let again = match s.retry_ms.div_ceil(1000) {
                0 => "is being tried again".to_owned(),
                seconds => format!("is tried again within {seconds} s"),
            };
            format!("filter {}: it failed too often, and {again}", s.filter)
        }),
    );
    Ok(Report { json: answer.0, text: table.rendered() })
}

fn manifest(node: &Node, tenant: &TenantName) -> Result<Report, Failure> {
    let answer = node.get(&format!("/v1/tenants/{tenant}/manifest"))?;
    let manifest = &answer.0["manifest"];
    // A manifest that TOML cannot hold (a null in a filter's config), or that this build cannot read, is shown as it came.
    let text = Manifest::from_json(manifest.to_string().as_bytes())
        .ok()
        .and_then(|manifest| toml::to_string_pretty(&manifest).ok())
        .unwrap_or_else(|| format!("{manifest:#}"));
    Ok(Report { text, json: answer.0 })
}

fn revisions(node: &Node, tenant: &TenantName) -> Result<Report, Failure> {
    let mut all: Vec<Value> = Vec::new();
    let mut table = Table::headed(["REVISION", "CREATED", ""]);
    let mut before = String::new();
    loop {
        let answer = node.get(&format!("/v1/tenants/{tenant}/revisions?limit={PAGE}{before}"))?;
        let page = answer.0["revisions"].as_array().cloned().unwrap_or_default();
        let mut last = None;
        for document in &page {
            let Revision { revision, created_ms, active } = super::client::Answer(document.clone()).as_a()?;
            table.row([
                revision.to_string(),
                time(created_ms),
                if active { "active".into() } else { String::new() },
            ]);
            last = Some(revision);
        }
        let full = page.len() == PAGE;
        all.extend(page);
        match last {
            Some(last) if full => before = format!("&before={last}"),
            _ => break,
        }
    }
    let text = if all.is_empty() {
        format!("no revisions yet: `beamline apply FILE --tenant {tenant}` makes the first")
    } else {
        table.rendered()
    };
    Ok(Report { json: json!({ "revisions": all }), text })
}

fn modules(node: &Node, tenant: &TenantName) -> Result<Report, Failure> {
    #[derive(Deserialize)]
    struct Modules {
        modules: Vec<Module>,
    }
    let answer = node.get(&format!("/v1/tenants/{tenant}/modules"))?;
    let Modules { modules } = answer.as_a()?;
    let mut table = Table::headed(["DIGEST", "SIZE", "KIND", "TIER", "PUSHED"]);
    let none = modules.is_empty();
    for module in modules {
        let pushed = time(module.pushed_ms);
        table.row([module.digest.to_string(), size(module.size), module.kind, module.tier, pushed]);
    }
    let text = if none { "no modules yet: `beamline push` uploads one".into() } else { table.rendered() };
    Ok(Report { json: answer.0, text })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::{DIGEST, FakeNode, ask, module};

    fn acme() -> Value {
        json!({
            "name": "acme",
            "hosts": ["acme.test", "www.acme.test"],
            "upstream_ranges": ["127.0.0.1/32:9001"],
            "nats_subjects": ["main=acme.orders"],
            "limit_class": "large",
            "created_ms": 951_782_400_000_u64,
            "revision": 4,
            "previous": 3,
            "upstreams": { "api": { "state": "down", "queue_depth": 12, "problem": "secret token is not set" } },
            "deletion": "drain",
            "unloaded": [{ "filter": "router", "problem": "it is gone" }],
            "suspended": [{ "filter": "canary", "retry_ms": 1200 }],
        })
    }

    #[test]
    fn a_tenant_is_shown_with_what_it_may_and_how_it_fares() {
        let report = ask(&FakeNode::answering([(200, acme())]), "show acme").unwrap();
        assert_eq!(
            report.text,
            "tenant     acme\n\
             created    2000-02-29T00:00:00Z\n\
             revision   4, a rollback leads to 3\n\
             deletion   it is being deleted, when its queued requests are delivered\n\
             hosts      acme.test\n           www.acme.test\n\
             ranges     127.0.0.1/32:9001\n\
             nats       main=acme.orders\n\
             class      large\n\
             upstreams  api: down, 12 queued, secret token is not set\n\
             unloaded   filter router: it is gone\n\
             suspended  filter canary: it failed too often, and is tried again within 2 s\n"
        );
    }

    #[test]
    fn without_a_name_the_only_tenant_is_meant_and_several_are_listed() {
        let node = FakeNode::answering([(200, json!({ "tenants": [acme()] })), (200, acme())]);
        assert!(ask(&node, "show").unwrap().text.starts_with("tenant     acme"));
        assert_eq!(node.requests()[1].line, "GET /v1/tenants/acme");

        let two = json!({ "tenants": [acme(), acme()] });
        let node = FakeNode::answering([(200, two.clone()), (200, two)]);
        assert!(ask(&node, "show").unwrap().text.starts_with("TENANT"));
        let failure = ask(&node, "show --manifest").unwrap_err();
        assert!(matches!(failure, Failure::Local(_)), "{failure}");
    }

    #[test]
    fn the_manifest_that_is_shown_can_be_applied_again() {
        let manifest = Manifest::from_toml(
            "version = 1\nhosts = [\"acme.test\"]\ndefault_upstream = \"api\"\n\
             [upstreams.api]\nendpoints = [\"127.0.0.1:9001\"]\nqueue = { mode = \"prefer\" }\n\
             [[filters]]\nname = \"router\"\nmodule = \"/router.wasm\"\nconfig = { rules = [{ prefix = \"/\" }] }\n",
            "acme.toml",
        )
        .unwrap();
        let answer = json!({ "revision": 4, "created_ms": 0, "active": true, "manifest": manifest });
        let report = ask(&FakeNode::answering([(200, answer)]), "show acme --manifest").unwrap();
        assert_eq!(Manifest::from_toml(&report.text, "shown").unwrap(), manifest);
    }

    #[test]
    fn a_manifest_that_toml_cannot_hold_is_shown_as_json() {
        let answer = json!({ "revision": 4, "manifest": {
            "version": 1,
            "hosts": ["acme.test"],
            "filters": [{ "name": "router", "module": DIGEST, "config": { "rule": null } }],
        } });
        let report = ask(&FakeNode::answering([(200, answer.clone())]), "show acme --manifest").unwrap();
        assert_eq!(serde_json::from_str::<Value>(&report.text).unwrap(), answer["manifest"]);
    }

    #[test]
    fn revisions_are_read_to_the_last_page() {
        let revision = |n: usize| json!({ "revision": n, "created_ms": 0, "active": n == 1001 });
        let page = |from: usize, to: usize| json!({ "revisions": (to..=from).rev().map(revision).collect::<Vec<_>>() });
        let node = FakeNode::answering([(200, page(1001, 2)), (200, page(1, 1))]);
        let report = ask(&node, "show acme --revisions").unwrap();
        assert_eq!(node.requests()[1].line, "GET /v1/tenants/acme/revisions?limit=1000&before=2");
        assert_eq!(report.json["revisions"].as_array().unwrap().len(), 1001);
        let lines: Vec<_> = report.text.lines().collect();
        assert_eq!(lines[1], "1001      1970-01-01T00:00:00Z  active");
        assert_eq!((lines.len(), lines[1001]), (1002, "1         1970-01-01T00:00:00Z"));
    }

    #[test]
    fn modules_are_listed_by_digest() {
        let mut listed = module(false);
        listed["pushed_ms"] = 0.into();
        let node = FakeNode::answering([(200, json!({ "modules": [listed] }))]);
        let report = ask(&node, "show acme --modules").unwrap();
        assert!(
            report.text.contains(&format!("{DIGEST}  48.2 KiB  core-module  reset  1970-01-01T00:00:00Z")),
            "{}",
            report.text
        );
    }
}

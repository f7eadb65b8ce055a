//! `beamline tenant`: what the operator does with tenants.

use std::path::PathBuf;

use beamline_model::{HostName, LimitClass, RevisionId, SubjectGrant, TenantName, UpstreamRange};
use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::json;

use super::{
    client::Node,
    failure::Failure,
    node_args::NodeArgs,
    report::{Report, Table},
    token::TokenFile,
};

/// Create, list and delete tenants
#[derive(Args, Debug)]
pub(crate) struct TenantArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,

    #[command(subcommand)]
    command: TenantCommand,
}

#[derive(Debug, Subcommand)]
enum TenantCommand {
    /// Create a tenant with its grant, and get its token
    ///
    /// The grant says which hosts the tenant's manifests may name, and which addresses and NATS subjects its upstreams may
    /// have. The tenant's token is shown this one time: the node keeps only its hash. Takes the operator's token.
    #[command(
        after_help = "Example:\n  beamline tenant create acme --host acme.example --upstream-range 10.1.0.0/16 \\\n      --save-token acme.token"
    )]
    Create(Box<CreateArgs>),
    /// List the tenants
    List,
    /// Delete a tenant
    ///
    /// With everything that is its own: grant, hosts, tokens, revisions, modules, secrets. Its audit stays. One that has
    /// requests in the queue is refused unless --drain or --discard-queue says what becomes of them. From then on it takes no
    /// requests and no changes; receipts are answered until it is gone, and deleted then, kept responses too. Its name can then
    /// be given again: whoever gets it sees the audit of who had it before. Takes the operator's token.
    #[command(
        after_help = "Example:\n  beamline tenant delete acme --drain\n  beamline queue status        # what it still waits for"
    )]
    Delete(DeleteArgs),
}

#[derive(Args, Debug)]
struct DeleteArgs {
    /// The tenant
    name: TenantName,

    /// Deliver what waits in its queue first; the node goes on with that when the command has returned, and after a restart
    ///
    /// Dead letters, and what is paused, stand in its way until they are retried, discarded or resumed.
    #[arg(long, conflicts_with = "discard_queue")]
    drain: bool,

    /// Give up what waits in its queue and its dead letters
    #[arg(long)]
    discard_queue: bool,
}

#[derive(Deserialize)]
struct Deleted {
    deleted: bool,
    discarded: u64,
    waiting: u64,
    dead: u64,
}

#[derive(Args, Debug)]
struct CreateArgs {
    /// The tenant's name: 1 to 63 lower-case letters, digits and inner hyphens
    name: TenantName,

    /// A host that the tenant may serve, exactly; give it again, or a list with commas, for more
    #[arg(long = "host", value_name = "HOST", required = true, value_delimiter = ',')]
    hosts: Vec<HostName>,

    /// Addresses that its upstreams, and its filters' own requests, may reach, such as 10.1.0.0/16, 127.0.0.1:9001 or [fd00::/8]:8000-8999; may be given again
    ///
    /// Loopback, private and link-local addresses are open only to a range that lies within their block.
    #[arg(long = "upstream-range", value_name = "RANGE", value_delimiter = ',')]
    upstream_ranges: Vec<UpstreamRange>,

    /// NATS subjects that its upstreams may send to, as the name of a connection in the node's configuration and whole leading
    /// tokens, such as main=acme.orders; may be given again
    #[arg(long = "nats-subject", value_name = "CONNECTION=PREFIX", value_delimiter = ',')]
    nats_subjects: Vec<SubjectGrant>,

    /// What its manifests and modules may ask for at most: small, or large for modules that bring a language's engine along
    #[arg(long, value_name = "CLASS", default_value_t)]
    limit_class: LimitClass,

    /// Write the new token to this file, which must not exist yet, in place of showing it
    #[arg(long, value_name = "FILE")]
    save_token: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Created {
    tenant: TenantName,
    token: String,
}

/// What this command knows of a tenant in an answer.
#[derive(Deserialize)]
pub(crate) struct Listed {
    pub(crate) name: TenantName,
    pub(crate) hosts: Vec<String>,
    pub(crate) revision: Option<RevisionId>,
}

/// An answer that holds tenants.
#[derive(Deserialize)]
pub(crate) struct List {
    pub(crate) tenants: Vec<Listed>,
}

impl List {
    /// As lines for a person.
    pub(crate) fn rendered(&self) -> String {
        if self.tenants.is_empty() {
            return "no tenants yet: `beamline tenant create` makes one".into();
        }
        let mut table = Table::headed(["TENANT", "REVISION", "HOSTS"]);
        for tenant in &self.tenants {
            let revision = tenant.revision.map_or_else(|| "-".to_owned(), |r| r.to_string());
            table.row([tenant.name.to_string(), revision, tenant.hosts.join(", ")]);
        }
        table.rendered()
    }
}

pub(crate) fn run(args: &TenantArgs) -> Result<Report, Failure> {
    let node = Node::of(&args.node)?;
    match &args.command {
        TenantCommand::Create(args) => create(&node, args),
        TenantCommand::Delete(args) => delete(&node, args),
        TenantCommand::List => {
            let answer = node.get("/v1/tenants")?;
            Ok(Report { text: answer.as_a::<List>()?.rendered(), json: answer.0 })
        }
    }
}

fn delete(node: &Node, args: &DeleteArgs) -> Result<Report, Failure> {
    let queued = match (args.drain, args.discard_queue) {
        (true, _) => "?queued=drain",
        (_, true) => "?queued=discard",
        _ => "",
    };
    let name = &args.name;
    let answer = node.delete(&format!("/v1/tenants/{name}{queued}"))?;
    let Deleted { deleted, discarded, waiting, dead } = answer.as_a()?;
    let mut text = if deleted {
        format!("tenant {name} is deleted")
    } else {
        format!(
            "tenant {name} takes no more requests, and is deleted when the queue keeps nothing of it: {waiting} waiting, {dead} dead"
        )
    };
    if discarded > 0 {
        text.push_str(&format!("\nqueued requests discarded: {discarded}"));
    }
    if !deleted && dead > 0 && args.drain {
        text.push_str(
            "\nits dead letters stand in the way: `beamline queue retry`, `discard` or `purge` them",
        );
    }
    Ok(Report { json: answer.0, text })
}

fn create(node: &Node, args: &CreateArgs) -> Result<Report, Failure> {
    let file = args.save_token.as_deref().map(TokenFile::create).transpose()?;
    let new = json!({
        "name": args.name,
        "hosts": args.hosts,
        "upstream_ranges": args.upstream_ranges,
        "nats_subjects": args.nats_subjects,
        "limit_class": args.limit_class,
    });
    let answer = node.post("/v1/tenants", &new)?;
    let Created { tenant, token } = answer.as_a()?;
    let Some((file, path)) = file.zip(args.save_token.as_ref()) else {
        let text = format!(
            "tenant {tenant} created\ntoken {token}\nKeep the token now: it is not shown again, and the node has only its hash."
        );
        return Ok(Report { json: answer.0, text });
    };
    // The token must not be lost with the file: there is no second one.
    file.keep(&token).map_err(|error| {
        Failure::Local(format!(
            "tenant {tenant} is created, but {} could not be written ({error}): its token, shown this one time, is {token}",
            path.display()
        ))
    })?;
    Ok(Report {
        json: json!({ "tenant": tenant, "token_file": path }),
        text: format!("tenant {tenant} created\nits token is in {}", path.display()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::{FakeNode, ask, problem};

    #[test]
    fn a_grant_is_sent_as_it_was_given_and_the_token_shown() {
        let node = FakeNode::answering([(201, json!({ "tenant": "acme", "token": "blt_1" }))]);
        let report = ask(
            &node,
            "tenant create acme --host acme.test,www.acme.test --host API.acme.test --upstream-range 127.0.0.1:9001 --nats-subject main=acme.orders --limit-class large",
        )
        .unwrap();
        assert_eq!(
            node.requests()[0].json(),
            json!({
                "name": "acme",
                "hosts": ["acme.test", "www.acme.test", "api.acme.test"],
                "upstream_ranges": ["127.0.0.1/32:9001"],
                "nats_subjects": ["main=acme.orders"],
                "limit_class": "large",
            })
        );
        assert!(report.text.starts_with("tenant acme created\ntoken blt_1\n"), "{}", report.text);
    }

    #[test]
    fn a_saved_token_is_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acme.token");
        let node = FakeNode::answering([(201, json!({ "tenant": "acme", "token": "blt_1" }))]);
        let report =
            ask(&node, &format!("tenant create acme --host acme.test --save-token {}", path.display()))
                .unwrap();
        assert!(!report.rendered(false).contains("blt_1") && !report.rendered(true).contains("blt_1"));
        assert_eq!(std::fs::read_to_string(path).unwrap(), "blt_1\n");
    }

    #[test]
    fn a_file_that_exists_stops_the_command_before_the_node_is_asked() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let node = FakeNode::answering([]);
        let failure = ask(
            &node,
            &format!("tenant create acme --host acme.test --save-token {}", file.path().display()),
        )
        .unwrap_err();
        assert!(matches!(failure, Failure::Local(_)), "{failure}");
        assert!(node.requests().is_empty());
    }

    #[test]
    fn a_refused_tenant_leaves_no_token_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("acme.token");
        let node = FakeNode::answering([(409, problem("tenant-exists"))]);
        let failure =
            ask(&node, &format!("tenant create acme --host acme.test --save-token {}", path.display()))
                .unwrap_err();
        assert!(failure.to_string().contains("(409 tenant-exists)"), "{failure}");
        assert!(!path.exists());
    }

    #[test]
    fn a_deletion_says_how_far_it_is_and_what_stands_in_its_way() {
        let told = |deleted: bool, discarded: u64, waiting: u64, dead: u64| {
            let told = json!({ "tenant": "acme", "deleted": deleted, "discarded": discarded, "waiting": waiting, "dead": dead });
            (200, told)
        };
        let node = FakeNode::answering([
            (409, problem("backlog")),
            told(false, 0, 3, 1),
            told(true, 4, 0, 0),
            told(true, 0, 0, 0),
        ]);
        assert!(ask(&node, "tenant delete acme").is_err());
        let drained = ask(&node, "tenant delete acme --drain").unwrap().text;
        assert!(
            drained.contains("3 waiting, 1 dead") && drained.contains("its dead letters stand in the way"),
            "{drained}"
        );
        let discarded = ask(&node, "tenant delete acme --discard-queue").unwrap().text;
        assert_eq!(discarded, "tenant acme is deleted\nqueued requests discarded: 4");
        assert_eq!(ask(&node, "tenant delete acme").unwrap().text, "tenant acme is deleted");
        let lines: Vec<_> = node.requests().iter().map(|request| request.line.clone()).collect();
        assert_eq!(
            lines,
            ["", "?queued=drain", "?queued=discard", ""]
                .map(|query| format!("DELETE /v1/tenants/acme{query}"))
        );
    }

    #[test]
    fn tenants_are_listed_one_a_line() {
        let tenants = json!({ "tenants": [
            { "name": "acme", "hosts": ["acme.test", "www.acme.test"], "revision": 3 },
            { "name": "globex", "hosts": ["globex.test"], "revision": null },
        ] });
        let node = FakeNode::answering([(200, tenants), (200, json!({ "tenants": [] }))]);
        let report = ask(&node, "tenant list").unwrap();
        assert_eq!(
            report.text,
            "TENANT  REVISION  HOSTS\nacme    3         acme.test, www.acme.test\nglobex  -         globex.test\n"
        );
        assert!(ask(&node, "tenant list").unwrap().text.starts_with("no tenants yet"));
    }
}

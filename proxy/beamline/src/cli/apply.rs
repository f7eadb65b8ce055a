//! `beamline apply`: a manifest file becomes what a tenant serves by.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
};

use beamline_model::{Digest, Manifest, RevisionId, TenantName};
use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::{
    client::Node,
    failure::Failure,
    node_args::NodeArgs,
    push::{Pushed, push},
    report::Report,
};

/// Make a manifest file what a tenant serves by
///
/// Modules that the manifest names by a path (relative to its own folder) are pushed first and then named by their
/// digest. The manifest becomes the tenant's next revision, which is active when the command returns; traffic is
/// neither dropped nor delayed. Applying what is active already changes nothing.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  beamline apply acme/beamline.toml --tenant acme --dry-run")]
pub(crate) struct ApplyArgs {
    /// The manifest's file (TOML)
    file: PathBuf,

    /// The tenant whose manifest it is
    #[arg(long, short, value_name = "NAME")]
    tenant: TenantName,

    /// Check everything and print what would change, without a new revision
    ///
    /// The modules are pushed all the same, since the node checks the manifest against them; by itself that changes nothing
    /// that serves.
    #[arg(long)]
    dry_run: bool,

    /// Give up the queued requests of upstreams that the manifest removes
    ///
    /// Without it, a manifest that removes an upstream for which requests wait, or lie as dead letters, is refused.
    #[arg(long)]
    discard_queue: bool,

    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

/// What an apply or a rollback did.
#[derive(Deserialize)]
pub(crate) struct Applied {
    pub(crate) revision: Option<RevisionId>,
    pub(crate) changed: bool,
    pub(crate) diff: Vec<String>,
    #[serde(default)]
    pub(crate) discarded: u64,
}

impl Applied {
    /// What was given up of the queue, if anything was, as a line of its own.
    pub(crate) fn given_up(&self) -> String {
        match self.discarded {
            0 => String::new(),
            n => format!("\nqueued requests of removed upstreams discarded: {n}"),
        }
    }

    /// The difference, a line each, set in.
    pub(crate) fn difference(&self) -> String {
        self.diff.iter().fold(String::new(), |mut text, line| {
            let _ = write!(text, "\n  {line}");
            text
        })
    }
}

pub(crate) fn run(args: &ApplyArgs) -> Result<Report, Failure> {
    let manifest = read(&args.file)?;
    let node = Node::of(&args.node)?;
    let (manifest, pushed) = push_modules(&node, &args.tenant, &args.file, manifest)?;
    let asked = [("dry_run=true", args.dry_run), ("discard_queue=true", args.discard_queue)];
    let query: Vec<_> = asked.iter().filter(|(_, asked)| *asked).map(|(pair, _)| *pair).collect();
    let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
    let answer = node.put(&format!("/v1/tenants/{}/manifest{query}", args.tenant), &manifest.to_json())?;
    let applied: Applied = answer.as_a()?;

    let mut text = String::new();
    for (path, (module, _)) in &pushed {
        let _ = writeln!(text, "pushed {path}: sha256:{}…, {}", module.digest.short(), module.effort());
    }
    let revision = applied.revision.map_or_else(|| "no revision".to_owned(), |r| format!("revision {r}"));
    let _ = match (args.dry_run, applied.changed) {
        (false, true) => write!(text, "{revision} is active"),
        (false, false) => write!(text, "nothing changed: {revision} is active"),
        (true, true) => write!(text, "dry run: this would change from {revision}"),
        (true, false) => write!(text, "dry run: nothing would change from {revision}"),
    };
    text.push_str(&applied.difference());
    text.push_str(&applied.given_up());

    let mut json = answer.0;
    json["dry_run"] = args.dry_run.into();
    json["modules"] = pushed.into_iter().map(|(path, (_, document))| (path, document)).collect();
    Ok(Report { json, text })
}

fn read(file: &Path) -> Result<Manifest, Failure> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        Failure::Local(format!("the manifest {} cannot be read ({error})", file.display()))
    })?;
    Manifest::from_toml(&text, &file.display().to_string()).map_err(|error| {
        let error = error.to_string();
        let name = file.display().to_string();
        // Some errors name the file and line, others a key.
        Failure::Local(if error.starts_with(&name) { error } else { format!("{name}: {error}") })
    })
}

/// What was pushed, by the path that the manifest names it by.
type PushedModules = BTreeMap<String, (Pushed, Value)>;

/// Pushes each module that the manifest names by a path, once, and names it by its digest.
fn push_modules(
    node: &Node,
    tenant: &TenantName,
    file: &Path,
    manifest: Manifest,
) -> Result<(Manifest, PushedModules), Failure> {
    let folder = file.parent().unwrap_or(Path::new("."));
    let mut pushed = PushedModules::new();
    let manifest = manifest.with_modules(|path| -> Result<Digest, Failure> {
        if let Some((module, _)) = pushed.get(path) {
            return Ok(module.digest);
        }
        let answer = push(node, tenant, &folder.join(path))?;
        let module: Pushed = answer.as_a()?;
        let digest = module.digest;
        pushed.insert(path.to_owned(), (module, answer.0));
        Ok(digest)
    })?;
    Ok((manifest, pushed))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::testing::{DIGEST, FakeNode, ask, module, problem};

    const MANIFEST: &str = r#"
version = 1
hosts = ["acme.test"]

[[filters]]
name = "router"
module = "./filters/router.wasm"

[[filters]]
name = "second"
module = "./filters/router.wasm"
"#;

    /// A folder with a manifest and the module that it names.
    fn folder(manifest: &str) -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("filters")).unwrap();
        std::fs::write(dir.path().join("filters/router.wasm"), b"\0asm").unwrap();
        let file = dir.path().join("acme.toml");
        std::fs::write(&file, manifest).unwrap();
        (dir, file.display().to_string())
    }

    fn applied(changed: bool) -> Value {
        json!({ "revision": 4, "changed": changed, "diff": if changed { json!(["+ hosts: \"acme.test\""]) } else { json!([]) } })
    }

    #[test]
    fn modules_named_by_path_are_pushed_once_and_named_by_digest() {
        let (_dir, file) = folder(MANIFEST);
        let node = FakeNode::answering([(200, module(false)), (200, applied(true))]);
        let report = ask(&node, &format!("apply {file} --tenant acme")).unwrap();
        let [push, put] = &node.requests()[..] else { panic!("one push and one put") };
        assert_eq!(push.line, "POST /v1/tenants/acme/modules");
        assert_eq!(put.line, "PUT /v1/tenants/acme/manifest");
        let sent = Manifest::from_json(&put.body).unwrap();
        assert!(sent.filters.iter().all(|f| f.module.to_string() == DIGEST));
        assert_eq!(
            report.text,
            "pushed ./filters/router.wasm: sha256:111111111111…, compiled in 212 ms\n\
             revision 4 is active\n  + hosts: \"acme.test\""
        );
        assert_eq!(report.json["modules"]["./filters/router.wasm"]["digest"], DIGEST);
    }

    #[test]
    fn applying_what_is_active_says_that_nothing_changed() {
        let (_dir, file) = folder("version = 1\nhosts = [\"acme.test\"]");
        let node = FakeNode::answering([(200, applied(false))]);
        let report = ask(&node, &format!("apply {file} --tenant acme")).unwrap();
        assert_eq!(report.text, "nothing changed: revision 4 is active");
    }

    #[test]
    fn a_dry_run_asks_for_one_and_says_so() {
        let (_dir, file) = folder("version = 1\nhosts = [\"acme.test\"]");
        let first = json!({ "revision": null, "changed": true, "diff": ["+ version: 1"] });
        let node = FakeNode::answering([(200, first), (200, applied(false))]);
        let line = format!("apply {file} --tenant acme --dry-run");
        assert_eq!(
            ask(&node, &line).unwrap().text,
            "dry run: this would change from no revision\n  + version: 1"
        );
        assert_eq!(node.requests()[0].line, "PUT /v1/tenants/acme/manifest?dry_run=true");
        assert_eq!(ask(&node, &line).unwrap().text, "dry run: nothing would change from revision 4");
    }

    #[test]
    fn what_an_apply_gave_up_of_the_queue_is_told() {
        let (_dir, file) = folder("version = 1\nhosts = [\"acme.test\"]");
        let answer =
            json!({ "revision": 4, "changed": true, "diff": ["- upstreams.api: {}"], "discarded": 3 });
        let node = FakeNode::answering([(200, answer)]);
        let report = ask(&node, &format!("apply {file} --tenant acme --discard-queue")).unwrap();
        assert_eq!(node.requests()[0].line, "PUT /v1/tenants/acme/manifest?discard_queue=true");
        assert!(
            report.text.ends_with("\nqueued requests of removed upstreams discarded: 3"),
            "{}",
            report.text
        );
    }

    #[test]
    fn a_manifest_that_is_wrong_never_reaches_the_node() {
        let node = FakeNode::answering([]);
        for (manifest, expected) in [
            ("version = 1\nhosts = [\"acme test\"]", "acme.toml:2: host \"acme test\" is not valid"),
            ("version = 1\nhosts = []", "acme.toml: hosts: expected at least one host"),
        ] {
            let (_dir, file) = folder(manifest);
            let failure = ask(&node, &format!("apply {file} --tenant acme")).unwrap_err();
            assert!(matches!(failure, Failure::Local(_)), "{failure}");
            assert!(failure.to_string().contains(expected), "{failure}");
        }
        assert!(node.requests().is_empty());
    }

    #[test]
    fn a_refused_module_ends_the_command_before_the_manifest_is_sent() {
        let (_dir, file) = folder(MANIFEST);
        let node = FakeNode::answering([(422, problem("module-rejected"))]);
        let failure = ask(&node, &format!("apply {file} --tenant acme")).unwrap_err();
        assert!(matches!(failure, Failure::Refused(_)), "{failure}");
        assert_eq!(node.requests().len(), 1);
    }
}

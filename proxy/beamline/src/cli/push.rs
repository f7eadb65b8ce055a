//! `beamline push`: a module to the node.

use std::path::{Path, PathBuf};

use beamline_model::TenantName;
use clap::Args;
use serde::Deserialize;

use super::{
    client::{Answer, Node},
    failure::Failure,
    node_args::NodeArgs,
    report::{Report, Table, size},
};

/// Upload a filter module, for the node to check and compile
///
/// FILE is a core module built with the SDK (or with wit-bindgen over beamline:edge), or a component. The answer
/// says what the module is and its digest, by which a manifest can name it; nothing that serves changes. Pushing the
/// same content again is no error. `beamline apply` pushes by itself what a manifest names by path.
#[derive(Args, Debug)]
pub(crate) struct PushArgs {
    /// The module's file
    file: PathBuf,

    /// The tenant that gets it
    #[arg(long, short, value_name = "NAME")]
    tenant: TenantName,

    #[command(flatten)]
    pub(crate) node: NodeArgs,
}

/// What this command knows of a module in an answer.
#[derive(Deserialize)]
pub(crate) struct Pushed {
    pub(crate) digest: beamline_model::Digest,
    pub(crate) kind: String,
    pub(crate) tier: String,
    pub(crate) tier_reason: Option<String>,
    pub(crate) phases: Vec<String>,
    pub(crate) imports: Vec<String>,
    pub(crate) size: u64,
    pub(crate) compile_ms: u64,
    pub(crate) cached: bool,
}

impl Pushed {
    /// What compiling it took, in words.
    pub(crate) fn effort(&self) -> String {
        if self.cached { "compiled before".into() } else { format!("compiled in {} ms", self.compile_ms) }
    }
}

pub(crate) fn run(args: &PushArgs) -> Result<Report, Failure> {
    let answer = push(&Node::of(&args.node)?, &args.tenant, &args.file)?;
    let module: Pushed = answer.as_a()?;
    let mut table = Table::plain();
    table.row(["digest".into(), module.digest.to_string()]);
    table.row(["size".into(), format!("{}, {}", size(module.size), module.effort())]);
    table.row(["kind".into(), module.kind]);
    table.row([
        "tier".into(),
        match module.tier_reason {
            Some(reason) => format!("{}: {reason}", module.tier),
            None => module.tier,
        },
    ]);
    for (label, names) in [("phases", module.phases), ("imports", module.imports)] {
        for (i, name) in names.into_iter().enumerate() {
            table.row([if i == 0 { label.to_owned() } else { String::new() }, name]);
        }
    }
    Ok(Report { json: answer.0, text: table.rendered() })
}

/// Sends the module in `file` to the node.
pub(crate) fn push(node: &Node, tenant: &TenantName, file: &Path) -> Result<Answer, Failure> {
    let module = std::fs::read(file)
        .map_err(|error| Failure::Local(format!("the module {} cannot be read ({error})", file.display())))?;
    node.post_module(&format!("/v1/tenants/{tenant}/modules"), &module)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::testing::{DIGEST, FakeNode, ask, module, problem};

    #[test]
    fn a_modules_bytes_go_as_they_are_and_what_it_is_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("router.wasm");
        std::fs::write(&file, b"\0asm\x01\0\0\0").unwrap();
        let node = FakeNode::answering([(200, module(false)), (200, module(true))]);
        let line = format!("push {} --tenant acme", file.display());
        let report = ask(&node, &line).unwrap();
        assert_eq!(node.requests()[0].line, "POST /v1/tenants/acme/modules");
        assert_eq!(node.requests()[0].body, b"\0asm\x01\0\0\0");
        assert_eq!(
            report.text,
            format!(
                "digest   {DIGEST}\n\
                 size     48.2 KiB, compiled in 212 ms\n\
                 kind     core-module\n\
                 tier     reset\n\
                 phases   beamline:edge/request-handler@0.1.0\n\
                 imports  beamline:edge/http@0.1.0\n         beamline:edge/verdicts@0.1.0\n"
            )
        );
        assert!(ask(&node, &line).unwrap().text.contains("compiled before"));
        let mut component = module(false);
        component["tier"] = "component".into();
        component["tier_reason"] = "it was uploaded as a component".into();
        let node = FakeNode::answering([(200, component)]);
        let text = ask(&node, &line).unwrap().text;
        assert!(text.contains("tier     component: it was uploaded as a component\n"), "{text}");
    }

    #[test]
    fn a_file_that_is_not_there_is_a_local_error() {
        let failure = ask(&FakeNode::answering([]), "push ./no-such.wasm --tenant acme").unwrap_err();
        assert!(matches!(failure, Failure::Local(_)));
        assert!(failure.to_string().starts_with("the module ./no-such.wasm cannot be read (No such file"));
    }

    #[test]
    fn a_module_that_is_refused_is_refused_in_the_nodes_words() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let node = FakeNode::answering([(422, problem("module-rejected")), (200, json!({}))]);
        let failure = ask(&node, &format!("push {} --tenant acme", file.path().display())).unwrap_err();
        assert!(matches!(failure, Failure::Refused(_)));
        assert!(failure.to_string().contains("the detail of module-rejected"), "{failure}");
    }
}

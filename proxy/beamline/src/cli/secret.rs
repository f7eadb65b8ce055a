//! `beamline secret`: what a tenant's manifest names by `secret://name`.

use std::{
    fs::File,
    io::{self, Read},
    path::PathBuf,
};

use beamline_model::{SecretName, SecretValue, TenantName};
use clap::{Args, Subcommand};
use serde::Deserialize;

use super::{
    client::Node,
    failure::Failure,
    node_args::NodeArgs,
    report::{Report, Table, time},
};

/// Set, list and remove a tenant's secrets
///
/// A manifest names them by `secret://NAME`. They are stored sealed, and no command shows a value.
#[derive(Args, Debug)]
pub(crate) struct SecretArgs {
    #[command(flatten)]
    pub(crate) node: NodeArgs,

    #[command(subcommand)]
    command: SecretCommand,
}

#[derive(Debug, Subcommand)]
enum SecretCommand {
    /// Set a secret, in place of what it was
    ///
    /// The value is read from standard input, or from a file: never from an argument, which other users of the machine can
    /// see. One line end at its end is cut off. It counts at once, without a new revision.
    #[command(
        after_help = "Example:\n  printf 'Bearer %s' \"$TOKEN\" | beamline secret set acme origin-token"
    )]
    Set(SetArgs),
    /// List a tenant's secrets: names, when they were set, and by which keys they are sealed
    List(ListArgs),
    /// Remove a secret
    ///
    /// Refused while the active revision names it.
    Remove(RemoveArgs),
}

#[derive(Args, Debug)]
struct SetArgs {
    /// The tenant
    tenant: TenantName,

    /// The secret's name: 1 to 63 lower-case letters, digits and inner hyphens
    name: SecretName,

    /// Read the value from this file in place of standard input
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct ListArgs {
    /// The tenant
    tenant: TenantName,
}

#[derive(Args, Debug)]
struct RemoveArgs {
    /// The tenant
    tenant: TenantName,

    /// The secret's name
    name: SecretName,
}

#[derive(Deserialize)]
struct Set {
    new: bool,
    key: String,
}

#[derive(Deserialize)]
struct List {
    secrets: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    name: String,
    set_ms: u64,
    key: Option<String>,
    used_by: Vec<String>,
}

pub(crate) fn run(args: &SecretArgs) -> Result<Report, Failure> {
    match &args.command {
        SecretCommand::Set(set) => {
            let value = value(set)?;
            let SetArgs { tenant, name, .. } = set;
            let path = format!("/v1/tenants/{tenant}/secrets/{name}");
            let answer = Node::of(&args.node)?.put_bytes(&path, value.reveal())?;
            let Set { new, key } = answer.as_a()?;
            let what = if new { "set" } else { "set anew" };
            let text = format!("secret {name} of tenant {tenant} is {what}, sealed by key {key}");
            Ok(Report { json: answer.0, text })
        }
        SecretCommand::List(ListArgs { tenant }) => {
            let answer = Node::of(&args.node)?.get(&format!("/v1/tenants/{tenant}/secrets"))?;
            Ok(Report { text: answer.as_a::<List>()?.rendered(), json: answer.0 })
        }
        SecretCommand::Remove(RemoveArgs { tenant, name }) => {
            let answer = Node::of(&args.node)?.delete(&format!("/v1/tenants/{tenant}/secrets/{name}"))?;
            Ok(Report { json: answer.0, text: format!("secret {name} of tenant {tenant} is removed") })
        }
    }
}

impl List {
    fn rendered(&self) -> String {
        if self.secrets.is_empty() {
            return "no secrets yet: `beamline secret set` makes one".into();
        }
        let mut table = Table::headed(["SECRET", "SET", "KEY", "USED BY"]);
        for secret in &self.secrets {
            let used = if secret.used_by.is_empty() { "-".to_owned() } else { secret.used_by.join(", ") };
            let key = secret.key.clone().unwrap_or_else(|| "?".into());
            table.row([secret.name.clone(), time(secret.set_ms), key, used]);
        }
        table.rendered()
    }
}

fn value(args: &SetArgs) -> Result<SecretValue, Failure> {
    let (from, read) = match &args.file {
        Some(path) => (path.display().to_string(), File::open(path).and_then(bounded)),
        None => ("standard input".to_owned(), bounded(io::stdin())),
    };
    let bytes =
        read.map_err(|error| Failure::Local(format!("the secret cannot be read from {from} ({error})")))?;
    let line = bytes.strip_suffix(b"\n").map_or(&*bytes, |line| line.strip_suffix(b"\r").unwrap_or(line));
    SecretValue::new(line).map_err(|error| Failure::Local(format!("the secret from {from}: {error}")))
}

/// Everything, but no more than could be a value with its line end, and one byte that says that it is too long.
fn bounded(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(SecretValue::MAX as u64 + 3).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::testing::{FakeNode, ask, problem};

    fn file(content: &[u8]) -> (tempfile::NamedTempFile, String) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        let line = format!("secret set acme origin-token --file {}", file.path().display());
        (file, line)
    }

    #[test]
    fn a_value_is_sent_without_its_line_end_and_never_shown() {
        let done = |new: bool| (200, json!({ "name": "origin-token", "new": new, "set_ms": 0, "key": "k1" }));
        let node = FakeNode::answering([done(true), done(false), done(false)]);
        for (content, told) in [
            (&b"Bearer s3cret\n"[..], "is set,"),
            (b"Bearer s3cret\r\n", "is set anew"),
            (b"Bearer s3cret", "set anew"),
        ] {
            let (_file, line) = file(content);
            let report = ask(&node, &line).unwrap();
            assert!(report.text.contains(told), "{}", report.text);
            assert!(!report.rendered(true).contains("s3cret") && !report.rendered(false).contains("s3cret"));
        }
        for request in node.requests() {
            assert_eq!(request.line, "PUT /v1/tenants/acme/secrets/origin-token");
            assert_eq!(request.body, b"Bearer s3cret");
        }
    }

    #[test]
    fn what_no_header_field_carries_never_reaches_the_node() {
        let node = FakeNode::answering([]);
        for (content, expected) in [
            (&b""[..], "expected a value of 1 to 8192 bytes; found 0"),
            (b"\n", "found 0"),
            (b"s3cret\n\n", "control character at byte 6"),
            (&[b'x'; 9000], "found 8195"),
        ] {
            let (_file, line) = file(content);
            let failure = ask(&node, &line).unwrap_err();
            assert!(
                matches!(failure, Failure::Local(_)) && failure.to_string().contains(expected),
                "{failure}"
            );
        }
        assert!(node.requests().is_empty());
    }

    #[test]
    fn secrets_are_listed_with_what_uses_them_and_removed() {
        let list = json!({ "secrets": [
            { "name": "old", "set_ms": 0, "key": null, "used_by": [] },
            { "name": "origin-token", "set_ms": 1000, "key": "k1", "used_by": ["upstreams.api.headers.authorization"] },
        ] });
        let none = json!({ "secrets": [] });
        let node = FakeNode::answering([
            (200, list),
            (200, none),
            (200, json!({ "removed": "old" })),
            (409, problem("secret-in-use")),
        ]);
        assert_eq!(
            ask(&node, "secret list acme").unwrap().text,
            "SECRET        SET                   KEY  USED BY\n\
             old           1970-01-01T00:00:00Z  ?    -\n\
             origin-token  1970-01-01T00:00:01Z  k1   upstreams.api.headers.authorization\n"
        );
        assert!(ask(&node, "secret list acme").unwrap().text.starts_with("no secrets yet"));
        assert_eq!(
            ask(&node, "secret remove acme old").unwrap().text,
            "secret old of tenant acme is removed"
        );
        assert!(ask(&node, "secret remove acme origin-token").is_err());
        assert_eq!(node.requests()[2].line, "DELETE /v1/tenants/acme/secrets/old");
    }
}

//! How commands fail, as sentences and exit codes.

use std::{fmt::Write as _, process::ExitCode};

use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;

/// Why a command did not do what it was asked for.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    /// The node said no.
    #[error("{}", .0.sentence())]
    Refused(Problem),
    /// Something on this side is wrong; the node was not asked, or not for all of it.
    #[error("{0}")]
    Local(String),
    /// There is no node there, or it went away.
    #[error("{0}")]
    Unreachable(String),
}

/// A problem document (RFC 9457) as the node sent it.
#[derive(Debug)]
pub(crate) struct Problem {
    document: Value,
    fields: Fields,
}

#[derive(Debug, Deserialize)]
struct Fields {
    #[serde(rename = "type")]
    kind: String,
    title: String,
    status: u16,
    detail: Option<String>,
}

impl Failure {
    /// 1, 2 or 3: what scripts tell failures apart by.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }

    fn code(&self) -> u8 {
        match self {
            Self::Refused(_) => 1,
            Self::Local(_) => 2,
            Self::Unreachable(_) => 3,
        }
    }

    /// What is printed on standard error.
    pub(crate) fn rendered(&self, as_json: bool) -> String {
        match self {
            Self::Refused(problem) if as_json => format!("{}\n", problem.document),
            Self::Local(detail) | Self::Unreachable(detail) if as_json => {
                format!("{}\n", json!({ "detail": detail }))
            }
            _ => format!("error: {self}\n"),
        }
    }
}

impl Problem {
    /// The problem in an answer's body; none where the body is something else.
    pub(crate) fn read(body: &[u8]) -> Option<Self> {
        let document: Value = serde_json::from_slice(body).ok()?;
        let fields = Fields::deserialize(&document).ok()?;
        Some(Self { document, fields })
    }

    /// The last part of its type.
    pub(crate) fn token(&self) -> &str {
        self.fields.kind.rsplit(':').next().unwrap_or_default()
    }

    /// Title, detail, and what to do at this command line.
    fn sentence(&self) -> String {
        let mut text = format!("{} ({} {})", self.fields.title, self.fields.status, self.token());
        if let Some(detail) = &self.fields.detail {
            let _ = write!(text, "\n  {detail}");
        }
        if let Some(hint) = self.hint() {
            let _ = write!(text, "\n  {hint}");
        }
        text
    }

    /// What helps at the command line, where the node cannot know it.
    fn hint(&self) -> Option<&'static str> {
        Some(match self.token() {
            "token-missing" | "token-unknown" => {
                "A token is taken from --token-file, --token, BEAMLINE_TOKEN or the data folder (--data-dir)."
            }
            "other-tenant" | "operator-only" => "Choose another token with --token-file.",
            "unknown-tenant" => "`beamline tenant list` shows the tenants there are.",
            "no-revision" => "`beamline apply FILE --tenant NAME` makes the first one.",
            "unknown-revision" | "no-previous-revision" => "`beamline show NAME --revisions` shows them.",
            "unknown-upstream" => "`beamline queue status` shows the upstreams for which something is kept.",
            "unknown-record" => "`beamline queue list --tenant NAME` shows the records there are.",
            "may-repeat" => "With --may-repeat it is sent again all the same.",
            "changed-meanwhile" => "`beamline show NAME --manifest` shows what is active now.",
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(token: &str) -> Problem {
        let document = json!({
            "type": format!("urn:beamline:problem:{token}"),
            "title": "There is no such tenant",
            "status": 404,
            "detail": "tenant acme does not exist: create it first",
        });
        Problem::read(document.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_refusal_reads_as_title_detail_and_what_to_do() {
        assert_eq!(
            Failure::Refused(problem("unknown-tenant")).rendered(false),
            "error: There is no such tenant (404 unknown-tenant)\n  \
             tenant acme does not exist: create it first\n  \
             `beamline tenant list` shows the tenants there are.\n"
        );
    }

    #[test]
    fn failures_for_programs_are_json_with_a_detail() {
        for failure in [
            Failure::Refused(problem("unknown-tenant")),
            Failure::Local("no".into()),
            Failure::Unreachable("no".into()),
        ] {
            let document: Value = serde_json::from_str(&failure.rendered(true)).unwrap();
            assert!(document["detail"].is_string());
        }
    }

    #[test]
    fn what_is_no_problem_document_is_not_taken_for_one() {
        for body in ["", "<html>", "{}", r#"{"title": "x"}"#] {
            assert!(Problem::read(body.as_bytes()).is_none(), "{body}");
        }
    }
}

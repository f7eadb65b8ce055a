//! One rule: which paths it is for, and what becomes of them.

use beamline_sdk::path;
use serde::Deserialize;

use crate::{
    query,
    template::{Pattern, Template},
};

/// A rule whose parts fit each other.
#[derive(Deserialize)]
#[serde(try_from = "Written")]
pub(crate) struct Rule {
    from: From,
    to: Template,
    /// What every target starts with, which no client can change: a scheme and a host, or nothing.
    base: String,
    keep_query: bool,
    action: Action,
}

/// What becomes of a request.
pub(crate) enum Action {
    Upstream(String),
    Redirect(u16),
}

/// The paths that a rule is for.
enum From {
    /// Whole segments; what follows the prefix is captured.
    Prefix(String),
    Pattern(Pattern),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    prefix: Option<String>,
    pattern: Option<String>,
    to: String,
    upstream: Option<String>,
    redirect: Option<u16>,
    #[serde(default = "yes")]
    keep_query: bool,
}

fn yes() -> bool {
    true
}

impl Rule {
    /// What the rule captures of a path that it is for.
    pub(crate) fn matches<'a>(&self, path: &'a str) -> Option<Vec<&'a str>> {
        match &self.from {
            From::Prefix(prefix) if path::is_below(path, prefix) => {
                Some(vec![path.strip_prefix(prefix.as_str())?])
            }
            From::Prefix(_) => None,
            From::Pattern(pattern) => pattern.captures(path),
        }
    }

    /// Where a request goes, with the client's query where the rule keeps it, but for parameters that the rule sets itself.
    pub(crate) fn target(&self, captured: &[&str], query: Option<&str>) -> String {
        let filled = self.to.fill(captured);
        // `//evil.test` and `/\evil.test` are other hosts to a browser.
        let path = filled[self.base.len()..].trim_start_matches(['/', '\\']);
        let mut target = [&self.base, "/", path].concat();
        if let (true, Some(query)) = (self.keep_query, query) {
            match target.split_once('?') {
                None => target.extend(["?", query]),
                Some((_, own)) => {
                    let kept = query::without(query, own);
                    target.extend(kept.into_iter().flat_map(|parameter| ["&", parameter]));
                }
            }
        }
        target
    }

    pub(crate) fn action(&self) -> &Action {
        &self.action
    }
}

impl TryFrom<Written> for Rule {
    type Error = &'static str;

    fn try_from(rule: Written) -> Result<Self, Self::Error> {
        let action = match (&rule.upstream, rule.redirect) {
            (Some(upstream), None) => Action::Upstream(upstream.clone()),
            (None, Some(status @ (301 | 302 | 303 | 307 | 308))) => Action::Redirect(status),
            (None, Some(_)) => return Err("redirect: expected 301, 302, 303, 307 or 308"),
            _ => return Err("expected upstream or redirect, one of them"),
        };
        // What follows a prefix has no name: it is put after `to`.
        let (from, to) = match (&rule.prefix, &rule.pattern) {
            (Some(prefix), None) if prefix.starts_with('/') && !prefix.contains(['?', '#']) => {
                if rule.to.contains(['?', '{', '}']) {
                    return Err("to: expected no query and no {}: what follows the prefix comes after it");
                }
                // One slash between them, whichever of them has it.
                let slash = if prefix.ends_with('/') { "/" } else { "" };
                let to = [rule.to.trim_end_matches('/'), slash, "{rest}"].concat();
                let to = Template::parse(&to, &["rest".to_owned()])?;
                (From::Prefix(prefix.clone()), to)
            }
            (Some(_), None) => {
                return Err("prefix: expected a path that starts with /, without a query");
            }
            (None, Some(pattern)) => {
                let pattern = Pattern::parse(pattern)?;
                let to = Template::parse(&rule.to, &pattern.names)?;
                (From::Pattern(pattern), to)
            }
            _ => return Err("expected prefix or pattern, one of them"),
        };
        if !rule.to.bytes().all(|byte| byte.is_ascii_graphic()) || rule.to.contains('#') {
            return Err("to: expected visible ASCII without #: encode what is not");
        }
        let base = base(rule.to.split('{').next().unwrap_or_default());
        match (&action, base) {
            (_, Some("")) | (Action::Redirect(_), Some(_)) => {}
            _ => {
                return Err(
                    "to: expected to start with /; of a redirect also with http:// or https://, a host and /",
                );
            }
        }
        let base = base.unwrap_or_default().to_owned();
        Ok(Self { from, to, base, keep_query: rule.keep_query, action })
    }
}

/// The scheme and host of a target, nothing where it starts with a path; none where it is neither.
fn base(head: &str) -> Option<&str> {
    if head.starts_with('/') {
        return Some("");
    }
    let host = head.strip_prefix("https://").or_else(|| head.strip_prefix("http://"))?;
    let length = host.find('/').filter(|length| *length > 0)?;
    host[..length]
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-.:[]".contains(&byte))
        .then(|| &head[..head.len() - host.len() + length])
}

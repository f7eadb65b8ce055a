//! Cases in a file: a request, a configuration, and what a filter should make of them.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::Call;
use crate::{
    Filter, Response, ResponseFilter, ResponseVerdict, Verdict, WholeRequestFilter, config,
    raw::beamline::edge::http::Field, upstream::State,
};

/// One case.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// What the case claims, as a sentence.
    name: String,
    /// The phase that is called.
    #[serde(default)]
    phase: Phase,
    #[serde(default)]
    config: Value,
    #[serde(default)]
    request: CaseRequest,
    #[serde(default)]
    response: CaseResponse,
    /// The whole body, where the phase has it.
    #[serde(default)]
    body: String,
    /// The upstreams' states by name: `ready`, `degraded` or `down`.
    #[serde(default)]
    upstreams: BTreeMap<String, CaseState>,
    #[serde(default)]
    random: u64,
    #[serde(default)]
    now_ms: u64,
    /// The peer's address.
    client: Option<String>,
    #[serde(default)]
    secrets: BTreeMap<String, String>,
    /// What an earlier phase remembered.
    context: Option<String>,
    expect: Expected,
    /// Fields of the head after the call, several lines as one list; `null` for one that must not be there.
    #[serde(default)]
    expect_headers: BTreeMap<String, Option<String>>,
    /// What is remembered after the call.
    expect_context: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Phase {
    #[default]
    Request,
    WholeRequest,
    Response,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CaseRequest {
    method: String,
    target: String,
    host: String,
    headers: BTreeMap<String, String>,
}

impl Default for CaseRequest {
    fn default() -> Self {
        Self {
            method: "GET".into(),
            target: "/".into(),
            host: "example.test".into(),
            headers: BTreeMap::new(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CaseResponse {
    status: u16,
    headers: BTreeMap<String, String>,
}

impl Default for CaseResponse {
    fn default() -> Self {
        Self { status: 200, headers: BTreeMap::new() }
    }
}

/// What a case led to, whatever its phase.
struct Found {
    verdict: Verdict,
    fields: Vec<Field>,
    context: Option<Vec<u8>>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum CaseState {
    Ready,
    Degraded,
    Down,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
enum Expected {
    Next,
    Route(ExpectedRoute),
    Respond(ExpectedResponse),
    /// As [`Verdict::refuse`] makes it.
    Refuse(ExpectedRefusal),
    Enqueue(ExpectedEnqueue),
    ReadBody,
    /// The configuration is refused, with a message that contains this.
    ConfigError(String),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectedRoute {
    upstream: String,
    path: Option<String>,
    host: Option<String>,
    timeout_ms: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectedResponse {
    status: u16,
    /// Exactly these fields.
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default)]
    body: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectedRefusal {
    status: u16,
    detail: String,
    /// Exactly these fields, beside those of every refusal.
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectedEnqueue {
    upstream: String,
    ordering_key: Option<String>,
    delay_ms: Option<u64>,
    expiry_ms: Option<u64>,
}

/// Runs a filter's request phase over a file of cases, a JSON array, and says which of them failed.
///
/// A case has `name`, `config`, `request` (`method`, `target`, `host`, `headers`; by default `GET /` to
/// `example.test`), `upstreams` (name to `ready`, `degraded` or `down`), `random`, `now_ms`, `client` (the peer's address),
/// `secrets`, `context`, and what is expected: `expect` (`"next"`, `"read-body"`, or one of `route`, `respond`, `refuse`,
/// `enqueue`, `config-error`), `expect_headers` and `expect_context`. One with another `phase` than `request` is left to
/// [`run_whole_request_cases`] (`whole-request`, with `body`) or [`run_response_cases`] (`response`, with `response`:
/// `status` and `headers`).
///
/// # Panics
/// Where a case does not come out as it says, or the file is not one of cases.
#[track_caller]
pub fn run_cases<F: Filter>(json: &str) {
    run::<F::Config>(json, Phase::Request, |call| {
        let outcome = call.run::<F>();
        Found { verdict: outcome.verdict, fields: outcome.head.snapshot().fields, context: outcome.context }
    });
}

/// As [`run_cases`], the cases whose `phase` is `whole-request`.
///
/// # Panics
/// As [`run_cases`].
#[track_caller]
pub fn run_whole_request_cases<F: WholeRequestFilter>(json: &str) {
    run::<F::Config>(json, Phase::WholeRequest, |call| {
        let outcome = call.run_whole_request::<F>();
        Found { verdict: outcome.verdict, fields: outcome.head.snapshot().fields, context: outcome.context }
    });
}

/// As [`run_cases`], the cases whose `phase` is `response`. The head that they expect is the response's.
///
/// # Panics
/// As [`run_cases`].
#[track_caller]
pub fn run_response_cases<F: ResponseFilter>(json: &str) {
    run::<F::Config>(json, Phase::Response, |call| {
        let outcome = call.run_response::<F>();
        let verdict = match outcome.verdict {
            ResponseVerdict::Next => Verdict::Next,
            ResponseVerdict::Respond(response) => Verdict::Respond(response),
            ResponseVerdict::ReadBody => Verdict::ReadBody,
        };
        Found { verdict, fields: outcome.head.snapshot().fields, context: outcome.context }
    });
}

#[track_caller]
fn run<C: DeserializeOwned>(json: &str, phase: Phase, call: impl Fn(Call) -> Found) {
    let mut cases: Vec<Case> = serde_json::from_str(json).unwrap_or_else(|error| panic!("cases: {error}"));
    cases.retain(|case| case.phase == phase);
    assert!(!cases.is_empty(), "cases: expected at least one of phase {phase:?}, found none");
    let failures: Vec<_> = cases
        .iter()
        .filter_map(|case| {
            let checked = catch_unwind(AssertUnwindSafe(|| case.check::<C>(&call)))
                .unwrap_or_else(|_| Err("the filter panicked".into()));
            Some(format!("\n  {}: {}", case.name, checked.err()?))
        })
        .collect();
    assert!(failures.is_empty(), "{} of {} cases failed:{}", failures.len(), cases.len(), failures.concat());
}

impl Case {
    fn check<C: DeserializeOwned>(&self, call: impl Fn(Call) -> Found) -> Result<(), String> {
        match (config::read::<C>(&self.config.to_string()), &self.expect) {
            (Err(found), Expected::ConfigError(expected)) if found.contains(expected) => return Ok(()),
            (Err(found), expected) => return Err(format!("expected {expected:?}, found {found:?}")),
            (Ok(_), _) => {}
        }
        let found = call(self.call());
        if !self.expect.is(&found.verdict) {
            return Err(format!("expected {:?}, found {:?}", self.expect, found.verdict));
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let context = found.context.as_deref().map(text);
        if self.expect_context.is_some() && self.expect_context != context {
            return Err(format!("context: expected {:?}, found {context:?}", self.expect_context));
        }
        for (name, expected) in &self.expect_headers {
            let lines = found.fields.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
            let lines: Vec<_> = lines.map(|field| text(&field.value)).collect();
            let value = (!lines.is_empty()).then(|| lines.join(", "));
            if value != *expected {
                return Err(format!("header {name}: expected {expected:?}, found {value:?}"));
            }
        }
        Ok(())
    }

    fn call(&self) -> Call {
        let mut call = Call::new(&self.request.method, &self.request.target)
            .host(&self.request.host)
            .config(self.config.clone())
            .response(self.response.status)
            .body(self.body.as_str())
            .random(self.random)
            .now_ms(self.now_ms);
        for (name, value) in &self.request.headers {
            call = call.header(name, value);
        }
        for (name, value) in &self.response.headers {
            call = call.response_header(name, value);
        }
        for (name, value) in &self.secrets {
            call = call.secret(name, value);
        }
        if let Some(client) = &self.client {
            call = call.properties(|known| known.client_address.clone_from(client));
        }
        if let Some(context) = &self.context {
            call = call.context(context.as_bytes());
        }
        for (name, state) in &self.upstreams {
            call = call.upstream(
                name,
                match state {
                    CaseState::Ready => State::Ready,
                    CaseState::Degraded => State::Degraded,
                    CaseState::Down => State::Down,
                },
            );
        }
        call
    }
}

impl Expected {
    fn is(&self, found: &Verdict) -> bool {
        match (self, found) {
            (Self::Next, Verdict::Next) | (Self::ReadBody, Verdict::ReadBody) => true,
            (Self::Route(expected), Verdict::Route(found)) => {
                let found = found.as_raw();
                (&expected.upstream, &expected.path, &expected.host, expected.timeout_ms)
                    == (&found.upstream, &found.path, &found.host, found.timeout_ms)
            }
            (Self::Respond(expected), Verdict::Respond(found)) => {
                let found = found.as_raw();
                let value = |name: &str| found.headers.iter().find(|f| f.name == name).map(|f| &*f.value);
                expected.status == found.status
                    && expected.headers.len() == found.headers.len()
                    && expected.headers.iter().all(|(name, v)| value(name) == Some(v.as_bytes()))
                    && expected.body.as_bytes() == found.body
            }
            (Self::Refuse(expected), Verdict::Respond(found)) => {
                let refused = Verdict::refuse(expected.status, &expected.detail);
                let wanted = expected
                    .headers
                    .iter()
                    .fold(refused, |wanted, (name, v)| wanted.header(name, v.as_str()));
                let sorted = |response: &Response| {
                    let mut raw = response.as_raw().clone();
                    raw.headers.sort_by(|a, b| a.name.cmp(&b.name));
                    raw
                };
                sorted(found) == sorted(&wanted)
            }
            (Self::Enqueue(expected), Verdict::Enqueue(found)) => {
                let found = found.as_raw();
                (&expected.upstream, &expected.ordering_key, expected.delay_ms, expected.expiry_ms)
                    == (&found.upstream, &found.ordering_key, found.delay_ms, found.expiry_ms)
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Request, log, upstream};

    /// Says what its configuration says, or traps.
    struct Told;

    impl Filter for Told {
        type Config = String;

        fn on_request(told: &String, request: &mut Request) -> Verdict {
            log::info!("told {told}");
            match told.as_str() {
                "next" => Verdict::next(),
                "route" => Verdict::route("api").path("/x").into(),
                "respond" => Verdict::respond(204).header("x-a", "1").into(),
                "refuse" => Verdict::refuse(429, "later").header("retry-after", "1").into(),
                "enqueue" => Verdict::enqueue("api").ordering_key("k").into(),
                "delay" => Verdict::enqueue("api")
                    .delay(Duration::from_secs(1))
                    .expiry(Duration::from_millis(2500))
                    .into(),
                "set" => {
                    request.set_header("x-a", "1").unwrap();
                    Verdict::next()
                }
                "by-state" if upstream::is_up("api") => Verdict::route("api").into(),
                "by-state" => Verdict::next(),
                other => panic!("told {other}"),
            }
        }
    }

    #[test]
    fn cases_that_come_out_pass() {
        run_cases::<Told>(
            r#"[
                {"name": "1", "config": "next", "expect": "next"},
                {"name": "2", "config": "route", "expect": {"route": {"upstream": "api", "path": "/x"}}},
                {"name": "3", "config": "respond", "expect": {"respond": {"status": 204, "headers": {"x-a": "1"}}}},
                {"name": "refusal", "config": "refuse",
                 "expect": {"refuse": {"status": 429, "detail": "later", "headers": {"retry-after": "1"}}}},
                {"name": "4", "config": "enqueue", "expect": {"enqueue": {"upstream": "api", "ordering_key": "k"}}},
                {"name": "5", "config": "set", "expect": "next", "expect_headers": {"x-a": "1", "x-b": null}},
                {"name": "6", "config": "by-state", "upstreams": {"api": "degraded"}, "expect": {"route": {"upstream": "api"}}},
                {"name": "7", "config": "by-state", "upstreams": {"api": "down"}, "expect": "next"},
                {"name": "delay", "config": "delay",
                 "expect": {"enqueue": {"upstream": "api", "delay_ms": 1000, "expiry_ms": 2500}}},
                {"name": "8", "config": 1, "expect": {"config-error": "expected a string"}}
            ]"#,
        );
    }

    #[test]
    fn a_case_that_does_not_come_out_fails() {
        for case in [
            r#"{"name": "", "config": "next", "expect": {"route": {"upstream": "api"}}}"#,
            r#"{"name": "", "config": "route", "expect": {"route": {"upstream": "api"}}}"#,
            r#"{"name": "", "config": "respond", "expect": {"respond": {"status": 204}}}"#,
            r#"{"name": "", "config": "refuse", "expect": {"refuse": {"status": 429, "detail": "later"}}}"#,
            r#"{"name": "", "config": "next", "expect": {"refuse": {"status": 429, "detail": "later"}}}"#,
            r#"{"name": "", "config": "enqueue", "expect": {"enqueue": {"upstream": "api"}}}"#,
            r#"{"name": "", "config": "delay", "expect": {"enqueue": {"upstream": "api", "delay_ms": 1000}}}"#,
            r#"{"name": "", "config": "set", "expect": "next", "expect_headers": {"x-a": null}}"#,
            r#"{"name": "", "config": "next", "expect": {"config-error": ""}}"#,
            r#"{"name": "", "config": 1, "expect": "next"}"#,
            r#"{"name": "", "config": "trap", "expect": "next"}"#,
        ] {
            let cases = format!("[{case}]");
            assert!(catch_unwind(|| run_cases::<Told>(&cases)).is_err(), "{case}");
        }
    }

    #[test]
    fn an_outcome_has_what_was_logged() {
        let outcome = Call::get("/").config("next".into()).run::<Told>();
        assert_eq!(outcome.log, [(log::Level::Info, "told next".to_owned())]);
    }
}

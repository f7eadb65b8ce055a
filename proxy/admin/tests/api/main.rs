//! The admin API against a whole node, and the reference page against the admin API.
//!
//! One program without the standard harness, because it is its node's compile worker too: each claim below is a
//! function, run in turn on one node; an argument picks the claims whose name contains it.

#![expect(
    clippy::unwrap_used,
    reason = "the whole program is a test, which clippy cannot see without the standard harness"
)]

mod node;
mod page;

use std::{
    pin::Pin,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use axum::body::{Body, Bytes, HttpBody};
use beamline_admin::{PROBLEMS, ROUTES, RouteRow, Who};
use beamline_node_state::Reason;
use beamline_telemetry::METRICS;
use http_body::Frame;
use node::Node;
use page::{Page, same_shape};
use serde_json::{Value, json};

/// The smallest filter, as a component.
const FILTER: &str = include_str!("filter.wat");

fn main() -> ExitCode {
    let argument = std::env::args().nth(1).filter(|a| !a.starts_with('-'));
    if argument.as_deref() == Some("compile-worker") {
        return ExitCode::from(
            u8::try_from(beamline_filter_host::compile_worker(std::env::args().skip(2))).unwrap_or(1),
        );
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let wanted = |name: &str| argument.as_deref().is_none_or(|a| name.contains(a));
    let mut ran = 0;
    macro_rules! claims {
        ($($claim:ident),* $(,)?) => {$(
            if wanted(stringify!($claim)) {
                runtime.block_on(async {
                    let page = Page::read();
                    let node = Node::start(page.request("POST /v1/tenants")).await;
                    $claim(&node, &page).await;
                });
                println!("test {} ... ok", stringify!($claim));
                ran += 1;
            }
        )*};
    }
    claims![
        the_page_has_every_route_and_every_problem_and_no_other,
        the_pages_examples_are_what_the_api_takes_and_answers,
        a_token_reaches_what_its_routes_are_for_and_nothing_else,
        no_body_is_read_before_its_sender_is_known,
        no_body_beyond_its_routes_limit_is_taken,
        every_answer_is_json_and_kept_by_no_cache,
        a_manifest_beyond_the_grant_is_refused_by_name,
        what_does_not_exist_is_named,
        two_tenants_cannot_have_one_name_or_one_host,
        a_module_that_is_none_is_refused_with_what_was_found,
        a_dry_run_changes_nothing,
        probes_need_no_token_and_tell_nothing_of_tenants,
        what_is_done_to_the_queue_is_refused_by_name_or_told_in_the_audit,
        a_secret_goes_in_and_never_out,
        metrics_are_those_of_their_page_and_for_the_operator,
    ];
    println!("test result: ok. {ran} passed");
    ExitCode::SUCCESS
}

fn line(row: &RouteRow) -> String {
    format!("{} {}", row.method, row.path)
}

/// A row's line for tenant `acme` and its first revision.
fn for_acme(row: &RouteRow) -> String {
    if row.method == "DELETE" && row.path == "/v1/tenants/{tenant}" {
        // It is to be there for the next row.
        return "DELETE /v1/tenants/acme?queued=perhaps".into();
    }
    line(row)
        .replace("{tenant}", "acme")
        .replace("{revision}", "1")
        .replace("{upstream}", "api")
        .replace("{secret}", "origin-token")
        .replace("{record}", "AAAAAAAAAAAAAAAAAAAAAA")
}

async fn push(node: &Node) -> Value {
    let filter = wat::parse_str(FILTER).unwrap();
    node.ask("POST /v1/tenants/acme/modules", &node.acme, filter).await.ok()
}

/// The page's example of a manifest, with the digest of the module that is there.
fn manifest(page: &Page, module: &Value) -> Value {
    let mut manifest = page.request("PUT /v1/tenants/{tenant}/manifest").clone();
    manifest["filters"][0]["module"] = module["digest"].clone();
    manifest
}

async fn apply(node: &Node, manifest: &Value) -> node::Answer {
    node.ask("PUT /v1/tenants/acme/manifest", &node.acme, manifest.to_string()).await
}

async fn the_page_has_every_route_and_every_problem_and_no_other(_: &Node, page: &Page) {
    let lacks = |what: &str| panic!("docs/reference/admin-api.md lacks: {what}");
    for row in ROUTES {
        let route = line(row);
        let entry = format!("| `{}` | `{}` | {} | {} |", row.method, row.path, row.who.as_str(), row.does);
        if !page.text.contains(&entry) {
            lacks(&entry);
        }
        let Some(section) = page.sections.get(&route) else { panic!("no section ### `{route}`") };
        let size = match row.max_body {
            0 => "none".to_owned(),
            bytes if bytes % (1 << 20) == 0 => format!("at most {} MiB", bytes >> 20),
            bytes => format!("at most {} KiB", bytes >> 10),
        };
        let problems = row.problems.iter().map(|p| format!("`{p}`")).collect::<Vec<_>>().join(", ");
        for expected in [
            format!("For {}. Body: {size}.", row.who.as_str()),
            format!("Answer, `{}`:", row.success),
            format!("Problems: {problems}."),
        ] {
            if !section.lines.contains(&expected) {
                lacks(&format!("in ### `{route}`: {expected}"));
            }
        }
    }
    for row in PROBLEMS {
        let entry = format!("| `{}` | {} | {} |", row.token, row.status, row.title);
        if !page.text.contains(&entry) {
            lacks(&entry);
        }
    }
    let rows = page.text.lines().filter(|l| l.starts_with("| `")).count();
    assert_eq!(rows, ROUTES.len() + PROBLEMS.len(), "rows that the code does not know");
    assert_eq!(page.sections.len(), ROUTES.len(), "sections that the code does not know");
}

async fn the_pages_examples_are_what_the_api_takes_and_answers(node: &Node, page: &Page) {
    let module = push(node).await;
    let first = apply(node, &manifest(page, &module)).await.ok();
    assert_eq!((&first["revision"], &first["changed"]), (&json!(1), &json!(true)));
    let mut second = manifest(page, &module);
    second["limits"] = json!({ "cpu": "20ms" });
    assert_eq!(apply(node, &second).await.ok()["diff"], json!(["~ limits.cpu: \"50ms\" -> \"20ms\""]));

    let created = json!({ "name": "initech", "hosts": ["initech.test"], "upstream_ranges": [] });
    for row in ROUTES {
        let route = line(row);
        let example =
            page.sections[&route].answer.as_ref().unwrap_or_else(|| panic!("{route} has an example"));
        let answer = match &*route {
            "POST /v1/tenants" => node.ask(&route, &node.operator, created.to_string()).await,
            "DELETE /v1/tenants/{tenant}" => {
                node.ask("DELETE /v1/tenants/initech", &node.operator, Body::empty()).await
            }
            "POST /v1/tenants/{tenant}/modules" => {
                node.ask(&for_acme(row), &node.acme, wat::parse_str(FILTER).unwrap()).await
            }
            "PUT /v1/tenants/{tenant}/manifest" => apply(node, &manifest(page, &module)).await,
            "POST /v1/tenants/{tenant}/rollback" => {
                node.ask(&for_acme(row), &node.acme, page.request(&route).to_string()).await
            }
            path if path.starts_with("PUT /v1/tenants/{tenant}/secrets/") => {
                node.ask(&for_acme(row), &node.acme, "Bearer s3cret").await
            }
            // Deliveries are paused meanwhile, so that what is queued again stays so.
            "POST /v1/tenants/{tenant}/queue/records/{record}/retry" => {
                let path = route.replace("{tenant}", "acme").replace("{record}", &node.dead_letter().await);
                node.acme("POST /v1/tenants/acme/queue/upstreams/api/pause").await.ok();
                let answer = node.ask(&path, &node.acme, page.request(&route).to_string()).await;
                node.acme("POST /v1/tenants/acme/queue/upstreams/api/resume").await.ok();
                answer
            }
            path if path.contains("{record}") => {
                let path = route.replace("{tenant}", "acme").replace("{record}", &node.dead_letter().await);
                node.acme(&path).await
            }
            "POST /v1/tenants/{tenant}/queue/upstreams/{upstream}/resume-key"
            | "POST /v1/tenants/{tenant}/queue/upstreams/{upstream}/rate" => {
                node.ask(&for_acme(row), &node.acme, page.request(&route).to_string()).await
            }
            // The queue's rows alone: all others have details of their own.
            "GET /v1/audit" => node.acme("GET /v1/audit?after=999999.0").await,
            "GET /v1/tenants/{tenant}/queue/records" | "GET /v1/tenants/{tenant}/queue/export" => {
                node.dead_letter().await;
                node.acme(&format!("{}?state=dead", for_acme(row))).await
            }
            _ => node.ask(&for_acme(row), &node.operator, Body::empty()).await,
        };
        assert_eq!(answer.status, row.success, "{route}: {}", answer.document);
        same_shape(&route, example, &answer.document)
            .unwrap_or_else(|e| panic!("the page and the answer differ: {e}"));
    }
    let acme = node.acme("GET /v1/tenants/acme").await.ok();
    assert_eq!((&acme["revision"], &acme["upstreams"]["api"]["queue_depth"]), (&json!(1), &json!(0)));
}

async fn a_token_reaches_what_its_routes_are_for_and_nothing_else(node: &Node, _: &Page) {
    for row in ROUTES.iter().filter(|row| row.who != Who::Anyone) {
        let line = for_acme(row);
        for (token, problem) in [("", "token-missing"), ("blo_0000", "token-unknown")] {
            let answer = node.ask(&line, token, Body::empty()).await;
            assert_eq!((answer.status.as_u16(), answer.problem()), (401, problem), "{line}");
            assert!(answer.headers["www-authenticate"].to_str().unwrap().starts_with("Bearer realm="));
        }
        let others = node.ask(&line, &node.globex, Body::empty()).await;
        let own = node.acme(&line).await;
        let refused = |answer: &node::Answer| answer.status == 403 || answer.status == 401;
        match row.who {
            Who::Tenant => {
                assert_eq!((others.status.as_u16(), others.problem()), (403, "other-tenant"), "{line}");
                assert!(!refused(&own), "{line}: {}", own.document);
            }
            Who::Operator => {
                assert_eq!((own.status.as_u16(), own.problem()), (403, "operator-only"), "{line}");
            }
            Who::Token | Who::Anyone => assert!(!refused(&own) && !refused(&others), "{line}"),
        }
        let operator = node.ask(&line, &node.operator, Body::empty()).await;
        assert!(!refused(&operator), "{line}: {}", operator.document);
    }
    let seen = node.ask("GET /v1/tenants", &node.globex, Body::empty()).await.ok();
    assert_eq!(seen["tenants"].as_array().unwrap().len(), 1, "a tenant sees itself alone: {seen}");
    assert_eq!(seen["tenants"][0]["name"], "globex");
    let all = node.ask("GET /v1/tenants", &node.operator, Body::empty()).await.ok();
    assert_eq!(all["tenants"].as_array().unwrap().len(), 2);
}

/// A body that knows whether anybody wanted it.
struct Watched(Arc<AtomicBool>);

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        self.0.store(true, Ordering::Relaxed);
        Poll::Ready(None)
    }
}

async fn no_body_is_read_before_its_sender_is_known(node: &Node, _: &Page) {
    for row in ROUTES.iter().filter(|row| row.max_body > 0) {
        for token in ["", "blo_0000", &node.globex] {
            let read = Arc::new(AtomicBool::new(false));
            let answer = node.ask(&for_acme(row), token, Body::new(Watched(Arc::clone(&read)))).await;
            assert!(matches!(answer.status.as_u16(), 401 | 403), "{}: {}", line(row), answer.document);
            assert!(!read.load(Ordering::Relaxed), "{}: the body was read", line(row));
        }
    }
}

async fn no_body_beyond_its_routes_limit_is_taken(node: &Node, _: &Page) {
    for row in ROUTES.iter().filter(|row| row.max_body > 0) {
        let answer = node.ask(&for_acme(row), &node.operator, vec![b' '; row.max_body + 1]).await;
        assert_eq!((answer.status.as_u16(), answer.problem()), (413, "body-too-large"), "{}", line(row));
        // Of modules a tenant's limit class takes less than the route does.
        let limit = if row.path.ends_with("/modules") { 4 << 20 } else { row.max_body };
        assert!(answer.detail().contains(&limit.to_string()), "{}", answer.detail());
    }
}

async fn every_answer_is_json_and_kept_by_no_cache(node: &Node, _: &Page) {
    let paths = [
        "/",
        "/v1",
        "/v1/tenants/",
        "/v2/tenants",
        "/v1/tenants/acme/manifest/x",
        "/readyz/",
        "/v1/tenants/%ff",
    ];
    for path in paths {
        let answer = node.ask(&format!("GET {path}"), &node.operator, Body::empty()).await;
        assert_eq!(answer.status, 404, "{path}");
        assert_eq!(answer.headers["content-type"], "application/problem+json");
        assert!(
            ["unknown-path", "unknown-tenant"].contains(&answer.problem()),
            "{path}: {}",
            answer.document
        );
    }
    for row in ROUTES {
        let answer =
            node.ask(&for_acme(row).replacen(row.method.as_str(), "PATCH", 1), "", Body::empty()).await;
        assert_eq!((answer.status.as_u16(), answer.problem()), (405, "method-not-allowed"), "{}", row.path);
        let allowed = answer.headers["allow"].to_str().unwrap();
        assert!(allowed.contains(row.method.as_str()), "{}: {allowed}", row.path);
        assert!(answer.detail().contains(row.method.as_str()) && answer.detail().contains("found PATCH"));

        let answer = node.ask(&for_acme(row), &node.operator, Body::empty()).await;
        let expected = match row.path {
            _ if !answer.status.is_success() => "application/problem+json",
            "/metrics" => "text/plain; version=0.0.4; charset=utf-8",
            "/v1/tenants/{tenant}/queue/bodies" => "application/x-ndjson",
            _ => "application/json",
        };
        assert_eq!(answer.headers["content-type"], expected, "{}", line(row));
        assert_eq!(answer.headers["cache-control"], "no-store", "{}", line(row));
        assert_eq!(answer.headers["x-content-type-options"], "nosniff", "{}", line(row));
    }
    assert_eq!(node.ask("HEAD /readyz", "", Body::empty()).await.status, 200);
}

async fn a_manifest_beyond_the_grant_is_refused_by_name(node: &Node, _: &Page) {
    let beyond = json!({
        "version": 1,
        "hosts": ["acme.test", "globex.test"],
        "upstreams": { "metadata": { "endpoints": ["169.254.169.254:80"] } },
    });
    let answer = apply(node, &beyond).await;
    assert_eq!((answer.status.as_u16(), answer.problem()), (422, "outside-grant"));
    for named in
        ["hosts[1]: host globex.test", "upstreams.metadata.endpoints[0]: upstream address 169.254.169.254:80"]
    {
        assert!(answer.detail().contains(named), "{}", answer.detail());
    }
}

async fn what_does_not_exist_is_named(node: &Node, page: &Page) {
    let ask = async |line: &str, body: Value| node.ask(line, &node.operator, body.to_string()).await;
    let nobody = node.ask("GET /v1/tenants/nobody", &node.operator, Body::empty()).await;
    assert_eq!((nobody.status.as_u16(), nobody.problem()), (404, "unknown-tenant"));
    for (line, body, status, problem, named) in [
        ("GET /v1/tenants/Nobody!", Value::Null, 404, "unknown-tenant", "expected 1 to 63"),
        ("GET /v1/tenants/acme/manifest", Value::Null, 404, "no-revision", "acme has no active revision"),
        ("GET /v1/tenants/acme/revisions/7", Value::Null, 404, "unknown-revision", "no revision 7"),
        ("GET /v1/tenants/acme/revisions/x", Value::Null, 404, "unknown-revision", "found \"x\""),
        (
            "GET /v1/tenants/acme/revisions?since=1",
            Value::Null,
            422,
            "invalid-request",
            "unknown field `since`",
        ),
        ("POST /v1/tenants/acme/rollback", json!({}), 404, "no-revision", "apply a manifest first"),
        ("POST /v1/tenants/acme/rollback", json!({ "to": 1 }), 422, "invalid-request", "unknown field `to`"),
        (
            "PUT /v1/tenants/acme/manifest?dry_run=perhaps",
            json!({}),
            422,
            "invalid-request",
            "the query: dry_run: ",
        ),
        (
            "PUT /v1/tenants/acme/manifest",
            json!({ "version": 1 }),
            422,
            "invalid-manifest",
            "missing field `hosts`",
        ),
        (
            "POST /v1/tenants",
            json!({ "name": "x", "host": "x.test" }),
            422,
            "invalid-request",
            "unknown field `host`",
        ),
        (
            "POST /v1/tenants",
            json!({ "name": "X", "hosts": [] }),
            422,
            "invalid-request",
            "tenant name \"X\"",
        ),
    ] {
        let answer = ask(line, body).await;
        assert_eq!(
            (answer.status.as_u16(), answer.problem()),
            (status, problem),
            "{line}: {}",
            answer.document
        );
        assert!(answer.detail().contains(named), "{line}: {}", answer.detail());
    }

    let unknown = apply(node, page.request("PUT /v1/tenants/{tenant}/manifest")).await;
    assert_eq!((unknown.status.as_u16(), unknown.problem()), (422, "unknown-module"), "{}", unknown.document);
    let mut local = page.request("PUT /v1/tenants/{tenant}/manifest").clone();
    local["filters"][0]["module"] = "./router.wasm".into();
    let local = apply(node, &local).await;
    assert_eq!((local.status.as_u16(), local.problem()), (422, "module-path"), "{}", local.document);

    let mut plain = page.request("PUT /v1/tenants/{tenant}/manifest").clone();
    plain["filters"] = json!([]);
    apply(node, &plain).await.ok();
    let first = ask("POST /v1/tenants/acme/rollback", json!({})).await;
    assert_eq!((first.status.as_u16(), first.problem()), (409, "no-previous-revision"), "{}", first.document);
}

async fn two_tenants_cannot_have_one_name_or_one_host(node: &Node, _: &Page) {
    for (name, host, problem) in [("acme", "new.test", "tenant-exists"), ("new", "acme.test", "host-taken")] {
        let new = json!({ "name": name, "hosts": [host] }).to_string();
        let answer = node.ask("POST /v1/tenants", &node.operator, new).await;
        assert_eq!((answer.status.as_u16(), answer.problem()), (409, problem), "{}", answer.document);
    }
}

async fn a_module_that_is_none_is_refused_with_what_was_found(node: &Node, _: &Page) {
    let modules = "POST /v1/tenants/acme/modules";
    for (bytes, found) in [
        (b"#!/bin/sh".to_vec(), "expected it to begin with \\0asm"),
        (wat::parse_str("(component)").unwrap(), "exports no phase"),
        (
            wat::parse_str("(component (import \"evil:host/door@1.0.0\" (instance)))").unwrap(),
            "evil:host/door@1.0.0",
        ),
    ] {
        let answer = node.ask(modules, &node.acme, bytes).await;
        assert_eq!(
            (answer.status.as_u16(), answer.problem()),
            (422, "module-rejected"),
            "{}",
            answer.document
        );
        assert!(answer.detail().contains(found), "{}", answer.detail());
    }
    let listed = node.acme("GET /v1/tenants/acme/modules").await.ok();
    assert_eq!(listed["modules"], json!([]), "nothing of it is kept");
}

async fn a_dry_run_changes_nothing(node: &Node, page: &Page) {
    let manifest = manifest(page, &push(node).await).to_string();
    let dry = "PUT /v1/tenants/acme/manifest?dry_run=true";
    let would = node.ask(dry, &node.acme, manifest.clone()).await.ok();
    assert_eq!((&would["revision"], &would["changed"]), (&Value::Null, &json!(true)));
    assert_eq!(node.acme("GET /v1/tenants/acme/revisions").await.ok()["revisions"], json!([]));
    let did =
        node.ask("PUT /v1/tenants/acme/manifest?dry_run=false", &node.acme, manifest.clone()).await.ok();
    assert_eq!((&did["revision"], &did["changed"], &did["diff"]), (&json!(1), &json!(true), &would["diff"]));
    let again = node.ask(dry, &node.acme, manifest).await.ok();
    assert_eq!(again, json!({ "revision": 1, "changed": false, "diff": [], "discarded": 0 }));
}

async fn metrics_are_those_of_their_page_and_for_the_operator(node: &Node, page: &Page) {
    let mut plain = page.request("PUT /v1/tenants/{tenant}/manifest").clone();
    plain["filters"] = json!([]);
    apply(node, &plain).await.ok();
    node.dead_letter().await;
    node.state.failed(Reason::UpstreamDown("acme/api".into()));
    let refused = node.acme("GET /metrics").await;
    assert_eq!((refused.status.as_u16(), refused.problem()), (403, "operator-only"));
    let text = node.ask("GET /metrics", &node.operator, Body::empty()).await.ok();
    let text = text.as_str().unwrap();
    for line in [
        "beamline_node_ready 1",
        "beamline_queue_readable 1",
        "beamline_queue_records{tenant=\"acme\",upstream=\"api\"} 0",
        "beamline_queue_dead_letters{tenant=\"acme\",upstream=\"api\"} 1",
        "beamline_queue_accepted_total{tenant=\"acme\",upstream=\"api\"} 1",
        "beamline_queue_delivered_total{tenant=\"acme\",upstream=\"api\"} 0",
        "beamline_queue_died_total{tenant=\"acme\",upstream=\"api\"} 1",
        "beamline_queue_in_flight 0",
        "beamline_guest_series{tenant=\"acme\"} 0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    let mut shown: Vec<_> =
        text.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let mut known: Vec<_> = METRICS.iter().map(|row| row.name).collect();
    shown.sort_unstable();
    known.sort_unstable();
    assert_eq!(shown, known, "what is exported is what the page has");
}

async fn probes_need_no_token_and_tell_nothing_of_tenants(node: &Node, _: &Page) {
    let ready = async || node.ask("GET /readyz", "", Body::empty()).await;
    assert_eq!(ready().await.ok(), json!({ "phase": "healthy", "reasons": [] }));
    for _ in 0..3 {
        node.state.failed(Reason::UpstreamDown("acme/api".into()));
        node.state.failed(Reason::UpstreamDown("globex/api".into()));
    }
    assert_eq!(ready().await.ok(), json!({ "phase": "degraded", "reasons": ["upstream-down"] }));
    let status = node.ask("GET /v1/status", &node.operator, Body::empty()).await.ok();
    assert_eq!(
        status["node"]["reasons"],
        json!([
            { "reason": "upstream-down", "of": "acme/api" },
            { "reason": "upstream-down", "of": "globex/api" },
        ]),
        "the operator sees which"
    );
    node.state.draining();
    let draining = ready().await;
    assert_eq!((draining.status.as_u16(), draining.problem()), (503, "not-ready"));
    assert!(draining.detail().contains("draining") && draining.headers.contains_key("retry-after"));

    let live = async || node.ask("GET /livez", "", Body::empty()).await;
    assert_eq!(live().await.ok(), json!({ "live": true }));
    node.alive.store(false, Ordering::Relaxed);
    let stalled = live().await;
    assert_eq!((stalled.status.as_u16(), stalled.problem()), (503, "not-live"));
    assert_eq!(stalled.detail(), "worker 1 has made no progress for 3 s");
}

async fn what_is_done_to_the_queue_is_refused_by_name_or_told_in_the_audit(node: &Node, page: &Page) {
    let mut plain = page.request("PUT /v1/tenants/{tenant}/manifest").clone();
    plain["filters"] = json!([]);
    apply(node, &plain).await.ok();
    let id = node.dead_letter().await;
    let of_it = |then: &str| format!("/v1/tenants/acme/queue/records/{id}{then}");
    let ask = async |line: String, body: Value| node.ask(&line, &node.acme, body.to_string()).await;
    let upstreams = "/v1/tenants/acme/queue/upstreams";
    for (line, body, status, problem, named) in [
        (format!("GET {}x", of_it("")), Value::Null, 404, "unknown-record", "22 characters of base64url"),
        (
            "GET /v1/tenants/acme/queue/records/AAAAAAAAAAAAAAAAAAAAAA".into(),
            Value::Null,
            404,
            "unknown-record",
            "its retention is over",
        ),
        (format!("POST {upstreams}/other/pause"), Value::Null, 404, "unknown-upstream", "one of [api]"),
        (format!("POST {upstreams}/O!/pause"), Value::Null, 404, "unknown-upstream", "O!"),
        (
            format!("POST {upstreams}/api/purge"),
            json!({ "states": ["delivered"] }),
            422,
            "invalid-request",
            "cannot be discarded",
        ),
        (
            format!("POST {upstreams}/api/resume-key"),
            json!({ "key": "k" }),
            422,
            "invalid-request",
            "expected `ordering_key`",
        ),
        (
            format!("POST {upstreams}/api/rate"),
            json!({}),
            422,
            "invalid-request",
            "missing field `per_second`",
        ),
        (
            format!("POST {upstreams}/api/rate"),
            json!({ "per_second": 0 }),
            422,
            "invalid-request",
            "expected 1 to 10000 deliveries a second",
        ),
        (
            "GET /v1/tenants/acme/queue/records?state=lost".into(),
            Value::Null,
            422,
            "invalid-request",
            "unknown variant `lost`",
        ),
        ("GET /v1/audit?after=7".into(), Value::Null, 422, "invalid-request", "`next` of an earlier answer"),
        ("GET /v1/audit?tenant=globex".into(), Value::Null, 403, "other-tenant", "not for tenant globex"),
    ] {
        let answer = ask(line.clone(), body).await;
        assert_eq!((answer.status.as_u16(), answer.problem()), (status, problem), "{line}");
        assert!(answer.detail().contains(named), "{line}: {}", answer.detail());
    }
    let foreign = format!("GET /v1/tenants/globex/queue/records/{id}");
    let foreign = node.ask(&foreign, &node.globex, Body::empty()).await;
    assert_eq!((foreign.status.as_u16(), foreign.problem()), (404, "unknown-record"), "it is another's");

    let shown = node.acme(&format!("GET {}", of_it(""))).await.ok();
    assert!(!shown.to_string().contains("s3cret"), "{shown}");
    ask(format!("POST {}", of_it("/discard")), Value::Null).await.ok();
    let again = ask(format!("POST {}", of_it("/retry")), json!({ "may_repeat": true })).await;
    assert_eq!((again.status.as_u16(), again.problem()), (409, "record-state"));
    assert!(again.detail().contains("dead(discarded)"), "{}", again.detail());

    // Page by page, or at once: the same rows.
    let all = node.ask("GET /v1/audit", &node.operator, Body::empty()).await.ok();
    let (mut paged, mut next) = (Vec::new(), "0.0".to_owned());
    loop {
        let page = format!("GET /v1/audit?limit=2&after={next}");
        let page = node.ask(&page, &node.operator, Body::empty()).await.ok();
        let Some([_, ..]) = page["entries"].as_array().map(Vec::as_slice) else { break };
        paged.extend(page["entries"].as_array().unwrap().clone());
        next = page["next"].as_str().unwrap().to_owned();
    }
    assert_eq!(all["entries"], Value::Array(paged));
    let own = node.acme("GET /v1/audit").await.ok();
    let last = own["entries"].as_array().unwrap().last().unwrap();
    assert_eq!((&last["action"], &last["actor"]), (&json!("queue.discard"), &json!("tenant/acme")));
    assert_eq!(last["detail"]["record"], json!(id));
    let theirs = node.ask("GET /v1/audit", &node.globex, Body::empty()).await.ok();
    let only = theirs["entries"].as_array().unwrap().iter().all(|entry| entry["tenant"] == "globex");
    assert!(only, "{theirs}");
}

async fn a_secret_goes_in_and_never_out(node: &Node, page: &Page) {
    let secret = "/v1/tenants/acme/secrets/origin-token";
    let ask = async |line: String, body: &str| node.ask(&line, &node.acme, body.to_owned()).await;
    let mut told = String::new();
    let mut named = page.request("PUT /v1/tenants/{tenant}/manifest").clone();
    named["filters"] = json!([]);
    named["upstreams"]["api"]["headers"] = json!({ "authorization": "secret://origin-token" });
    let apply = async || ask("PUT /v1/tenants/acme/manifest".into(), &named.to_string()).await;

    let early = apply().await;
    assert_eq!((early.status.as_u16(), early.problem()), (422, "secret-not-set"), "{}", early.document);
    let at = "upstreams.api.headers.authorization: tenant acme has no secret origin-token";
    assert!(early.detail().starts_with(at), "{}", early.detail());
    for (value, found) in
        [("", "found 0"), ("s3cret\r\nhost: x", "control character at byte 6"), (" s3cret", "space")]
    {
        let answer = ask(format!("PUT {secret}"), value).await;
        assert_eq!((answer.status.as_u16(), answer.problem()), (422, "invalid-secret"), "{value:?}");
        assert!(answer.detail().contains(found), "{}", answer.detail());
        told += &answer.document.to_string();
    }
    let set = ask(format!("PUT {secret}"), "Bearer s3cret").await.ok();
    assert_eq!((&set["new"], &set["key"]), (&json!(true), &json!("k1")));
    apply().await.ok();
    let in_use = ask(format!("DELETE {secret}"), "").await;
    assert_eq!((in_use.status.as_u16(), in_use.problem()), (409, "secret-in-use"), "{}", in_use.document);
    let again = ask(format!("PUT {secret}"), "Bearer s3cret-2").await.ok();
    assert_eq!(again["new"], json!(false));
    let listed = node.acme("GET /v1/tenants/acme/secrets").await.ok();
    assert_eq!(listed["secrets"][0]["used_by"], json!(["upstreams.api.headers.authorization"]));

    named["upstreams"]["api"]["headers"] = json!({});
    ask("PUT /v1/tenants/acme/manifest".into(), &named.to_string()).await.ok();
    ask(format!("DELETE {secret}"), "").await.ok();
    for (line, status, problem) in [
        (format!("DELETE {secret}"), 404, "unknown-secret"),
        ("PUT /v1/tenants/acme/secrets/Origin!".into(), 404, "unknown-secret"),
        ("POST /v1/tenants/acme/rollback".into(), 422, "secret-not-set"),
    ] {
        let answer = ask(line.clone(), "").await;
        assert_eq!(
            (answer.status.as_u16(), answer.problem()),
            (status, problem),
            "{line}: {}",
            answer.document
        );
    }
    for n in 0..64 {
        ask(format!("PUT /v1/tenants/acme/secrets/s{n}"), "s3cret").await.ok();
    }
    let full = ask(format!("PUT {secret}"), "s3cret").await;
    assert_eq!((full.status.as_u16(), full.problem()), (413, "secret-quota"));
    ask("PUT /v1/tenants/acme/secrets/s0".into(), "s3cret-3").await.ok();

    for path in ["/secrets", "/revisions", "/revisions/1", "/manifest", ""] {
        told += &node.acme(&format!("GET /v1/tenants/acme{path}")).await.document.to_string();
    }
    let audit = node.acme("GET /v1/audit").await.ok();
    let entries = audit["entries"].as_array().unwrap();
    let set = entries.iter().filter(|entry| entry["action"] == "secret.set").count();
    assert!(set > 64 && entries.iter().any(|entry| entry["action"] == "secret.remove"));
    told += &(audit.to_string() + &listed.to_string() + &again.to_string() + &in_use.document.to_string());
    assert!(!told.contains("s3cret"), "a value was told");
}

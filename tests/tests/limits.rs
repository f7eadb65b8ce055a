//! Each limit of the reference page, crossed: whoever is answered learns of it by its name, so do the log and the metrics.
//!
//! [`CROSSINGS`] has a row for each name of `docs/reference/limits.md`; a test holds the page against it.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

#[expect(dead_code, reason = "the suite of hostile modules uses all of it")]
#[path = "hostile/guest.rs"]
mod guest;

use std::{io::Write as _, net::TcpStream, thread};

use beamline_tests::{
    admin::{AdminError, Module, manifest},
    beamline::Options,
    client::{Request, Response},
    guests,
    scene::{PATIENCE, Scene},
    wait::wait,
};
use serde_json::{Value, json};

use crate::guest::{Guest, LATER_PHASES, NEXT, bomb, handles_of_its_own, in_phase};

/// Crosses a limit, and looks at what tells of it.
type Cross = fn(&Crossing<'_>);

/// How each limit is crossed, by its name: as often as the page has a row for it.
const CROSSINGS: [(&str, Cross); 28] = [
    ("cpu", cpu),
    ("memory", memory),
    ("log", log),
    ("body", body),
    ("concurrency", concurrency),
    ("pinned_instances", pinned_instances),
    ("host_calls", host_calls),
    ("outbound_calls", outbound_calls),
    ("kv_bytes", kv_bytes),
    ("kv_entries", kv_entries),
    ("bucket_keys", bucket_keys),
    ("module_size", module_size),
    ("compile", compile),
    ("module_needs", memories_and_tables),
    ("module_needs", parts_of_a_component),
    ("call_time", call_time),
    ("table_elements", table_elements),
    ("stack", stack),
    ("handed_over", handed_over),
    ("get_many", get_many),
    ("random", random),
    ("handles", handles),
    ("outbound_requests", outbound_requests),
    ("outbound_size", outbound_size),
    ("kv_size", kv_size),
    ("bucket_size", bucket_size),
    ("series", series),
    ("head", head),
];

/// Limits that take a gibibyte, or 64 requests of a mebibyte at once, to be crossed: crossed in miniature beside the code,
/// by the test of this name in this file. The second row of `compile`, its address space, is looked up where Linux holds a
/// compile worker to it.
const IN_MINIATURE: [(&str, &str, &str); 3] = [
    (
        "compile",
        "a_bomb_kills_its_compile_worker_alone_and_others_are_answered_meanwhile",
        include_str!("hostile/loading.rs"),
    ),
    (
        "outbound_bytes",
        "what_a_revisions_requests_hold_counts_for_the_next",
        include_str!("../../proxy/upstream/src/egress.rs"),
    ),
    (
        "kept",
        "all_tenants_together_keep_no_more_than_the_node_has_room_for",
        include_str!("../../proxy/filter-host/src/shared/kv.rs"),
    ),
];

/// The filter that crosses them.
const FILTER: &str = "crosses";

/// A limit about to be crossed, by a tenant of its own.
struct Crossing<'s> {
    scene: &'s Scene,
    limit: &'static str,
    tenant: String,
    host: String,
}

impl<'s> Crossing<'s> {
    /// By the tenant of this number.
    fn new(scene: &'s Scene, limit: &'static str, number: usize) -> Self {
        let tenant = format!("{}-{number}", limit.replace('_', "-"));
        let host = format!("{tenant}.test");
        // The class that this node gives little to compile.
        let class = if limit == "compile" { "large" } else { "small" };
        let grant = json!({
            "name": tenant, "hosts": [host], "upstream_ranges": ["127.0.0.0/8"], "limit_class": class,
        });
        scene.admin.create_tenant_with(&grant).unwrap();
        Self { scene, limit, tenant, host }
    }

    fn push(&self, module: &[u8]) -> Result<Module, AdminError> {
        self.scene.admin.push(&self.tenant, module)
    }

    /// Applies the smallest manifest with these filters and limits; requests to the origin are allowed.
    fn apply(&self, filters: &Value, limits: &Value) {
        let mut manifest = manifest(&self.host, self.scene.origin.address());
        (manifest["filters"], manifest["limits"]) = (filters.clone(), limits.clone());
        manifest["egress"] = json!({ "allow": [self.url("")] });
        self.scene.admin.apply(&self.tenant, &manifest).unwrap();
    }

    /// Has the tenant's only filter be this module.
    fn filtered(&self, module: &[u8], limits: &Value) {
        let module = self.push(module).unwrap();
        self.apply(&json!([{ "name": FILTER, "module": module.digest }]), limits);
    }

    /// The same, with the probe.
    fn probed(&self, limits: &Value) {
        self.filtered(&guests::module("probe").unwrap(), limits);
    }

    /// The same, with a guest whose `handle` does this first.
    fn does(&self, what: &str, items: &str) {
        let guest = Guest::new(&format!("{what} {NEXT}")).items(items);
        self.filtered(&guest.build(), &json!({}));
    }

    /// An URL of the origin.
    fn url(&self, target: &str) -> String {
        format!("http://{}{target}", self.scene.origin.address())
    }

    fn send(&self, request: Request) -> Response {
        request.host(&self.host).timeout(PATIENCE).send(self.scene.node.address()).unwrap()
    }

    /// Has the probe do something.
    fn ask(&self, step: impl ToString) -> Response {
        self.send(Request::get("/").header("x-probe", &step.to_string()))
    }

    /// What the probe is told, and answers with.
    #[track_caller]
    fn is_told(&self, step: &Value, expected: &str) {
        assert_eq!(self.ask(step).json().unwrap(), expected, "{}: {step}", self.limit);
    }

    /// The request goes through whatever its filter was refused.
    #[track_caller]
    fn goes_through(&self, answer: &Response) {
        assert_eq!(answer.status, 200, "{}: {}", self.limit, answer.text());
        self.is_shown(FILTER);
    }

    /// The answer is this problem, which names the limit; its failure is counted, too.
    #[track_caller]
    fn is_refused(&self, answer: &Response, status: u16, problem: &str) {
        assert_eq!(answer.refusal(), (status, problem.to_owned()), "{}: {}", self.limit, answer.text());
        let detail = answer.json().unwrap()["detail"].as_str().unwrap().to_owned();
        assert!(detail.ends_with(&format!("(limit: {})", self.limit)), "{detail}");
        self.is_told_to_have_failed(problem);
    }

    /// The log and the metrics say that the filter crossed the limit, and failed for it.
    #[track_caller]
    fn is_told_to_have_failed(&self, problem: &str) {
        self.is_shown(FILTER);
        let labels = format!("tenant=\"{}\",filter=\"{FILTER}\",reason=\"{problem}\"", self.tenant);
        self.is_counted("beamline_filter_failures_total", &labels);
    }

    /// An upload is refused with this problem, which names the limit.
    #[track_caller]
    fn is_not_taken(&self, module: &[u8], status: u16, kind: &str) {
        let refused = self.push(module).unwrap_err();
        assert_eq!((refused.status(), refused.kind()), (Some(status), kind), "{}: {refused}", self.limit);
        assert!(refused.detail().ends_with(&format!("(limit: {})", self.limit)), "{refused}");
        self.wait_event(|about| about["filter"].is_null());
        self.is_counted("beamline_modules_refused_total", &format!("limit=\"{}\"", self.limit));
    }

    /// The log and the metrics say that this filter crossed the limit.
    #[track_caller]
    fn is_shown(&self, filter: &str) {
        self.wait_event(|about| about["filter"] == filter && about["request.id"].is_string());
        let labels = format!("tenant=\"{}\",filter=\"{filter}\",limit=\"{}\"", self.tenant, self.limit);
        self.is_counted("beamline_limits_crossed_total", &labels);
    }

    #[track_caller]
    fn wait_event(&self, about: impl Fn(&Value) -> bool) {
        let is_it = |record: &Value| {
            let more = &record["attributes"];
            record["event.name"] == "limit.crossed"
                && record["tenant.id"] == self.tenant
                && more["limit"] == self.limit
                && more["times"].as_u64().is_some_and(|times| times > 0)
                && about(more)
        };
        self.scene.node.wait_log(PATIENCE, |log| log.iter().any(is_it)).unwrap();
    }

    #[track_caller]
    fn is_counted(&self, family: &str, labels: &str) {
        let sample = format!("{family}{{{labels}}} ");
        wait(
            PATIENCE,
            || self.scene.metrics_of(family).unwrap(),
            |lines| lines.iter().any(|line| line.starts_with(&sample)),
        );
    }
}

fn cpu(crossing: &Crossing<'_>) {
    crossing.probed(&json!({ "cpu": "20ms" }));
    crossing.is_refused(&crossing.ask("spin"), 503, "filter-timeout");
}

fn memory(crossing: &Crossing<'_>) {
    crossing.probed(&json!({ "memory": "4MiB" }));
    crossing.is_refused(&crossing.ask("alloc=8"), 503, "filter-memory");
}

fn log(crossing: &Crossing<'_>) {
    crossing.probed(&json!({ "log": "1KiB" }));
    let answer = crossing.ask("log=3000");
    crossing.goes_through(&answer);
    let is_it = |record: &Value| record["kind"] == "guest" && record["tenant.id"] == crossing.tenant;
    let log = crossing.scene.node.wait_log(PATIENCE, |log| log.iter().any(is_it)).unwrap();
    let message = log.iter().find(|record| is_it(record)).unwrap();
    let kept = message["body"].as_str().unwrap().len() as u64;
    assert_eq!((kept, message["beamline.log.cut_bytes"].as_u64()), (1024 - 32, Some(3000 - (1024 - 32))));
}

fn body(crossing: &Crossing<'_>) {
    crossing.filtered(&guests::module("phases").unwrap(), &json!({ "body": "64KiB" }));
    let holds = json!({ "request_body": { "hold": true } }).to_string();
    let send = |bytes| crossing.send(Request::post("/echo", vec![b'a'; bytes]).header("x-act", &holds));
    assert_eq!(send(30_000).status, 200);
    crossing.is_refused(&send(500_000), 413, "filter-request-body");
}

fn concurrency(crossing: &Crossing<'_>) {
    crossing.probed(&json!({ "cpu": "1s", "concurrency": 1 }));
    thread::scope(|scope| {
        let long = scope.spawn(|| crossing.ask("spin"));
        // While the only place is taken, further calls are refused; soon after, they are not.
        let refused = loop {
            let answer = crossing.ask("next");
            if answer.status != 200 {
                break answer;
            }
            assert!(!long.is_finished(), "the long call never held its place");
        };
        crossing.is_refused(&refused, 503, "filter-capacity");
        assert_eq!(long.join().unwrap().problem(), "filter-timeout");
    });
    wait(PATIENCE, || crossing.ask("next").status, |status| *status == 200);
}

fn pinned_instances(crossing: &Crossing<'_>) {
    let module = crossing.push(&guests::module("counter").unwrap()).unwrap();
    let filter = json!({ "name": FILTER, "module": module.digest, "pin_instance": true });
    crossing.apply(&json!([filter]), &json!({ "pinned_instances": 1 }));
    // One request holds the only one for as long as its origin lets it wait.
    let mut held = TcpStream::connect(crossing.scene.node.address()).unwrap();
    held.write_all(&Request::get("/hang?pinned").host(&crossing.host).to_bytes()).unwrap();
    crossing.scene.origin.wait_for(PATIENCE, |log| log.iter().any(|r| r.target == "/hang?pinned")).unwrap();
    crossing.is_refused(&crossing.send(Request::get("/")), 503, "filter-capacity");
    drop(held);
    wait(PATIENCE, || crossing.send(Request::get("/")).status, |status| *status == 200);
}

fn host_calls(crossing: &Crossing<'_>) {
    crossing.probed(&json!({ "host_calls": 100 }));
    assert_eq!(crossing.ask("calls=90").status, 200);
    crossing.is_refused(&crossing.ask("calls=100"), 503, "filter-host-calls");
}

fn outbound_calls(crossing: &Crossing<'_>) {
    crossing.probed(&json!({}));
    crossing.is_told(&json!({ "do": "send", "url": crossing.url("/"), "n": 5 }), "too-many");
    crossing.is_shown(FILTER);
}

fn kv_bytes(crossing: &Crossing<'_>) {
    crossing.probed(&json!({ "kv_bytes": "4KiB" }));
    crossing.is_told(&json!({ "do": "kv", "call": "set", "key": "a", "n": 2000 }), "ok");
    crossing.is_told(&json!({ "do": "kv", "call": "set", "key": "b", "n": 2000 }), "quota-exceeded");
    crossing.is_shown(FILTER);
}

fn kv_entries(crossing: &Crossing<'_>) {
    crossing.probed(&json!({ "kv_entries": 1 }));
    crossing.is_told(&json!({ "do": "kv", "call": "set", "key": "a" }), "ok");
    crossing.is_told(&json!({ "do": "kv", "call": "set", "key": "b" }), "quota-exceeded");
    crossing.is_shown(FILTER);
}

fn bucket_keys(crossing: &Crossing<'_>) {
    crossing.probed(&json!({ "bucket_keys": 1 }));
    let take = |key: &str| json!({ "do": "take", "key": key, "n": 1, "rate": [1, 3_600_000, 9] });
    assert_eq!(crossing.ask(take("a")).json().unwrap(), json!({ "allowed": 8 }));
    crossing.is_told(&take("b"), "too-many-keys");
    crossing.is_shown(FILTER);
}

fn module_size(crossing: &Crossing<'_>) {
    let module = guests::longer(&guests::module("tiny").unwrap(), 256 << 10);
    crossing.is_not_taken(&module, 413, "body-too-large");
}

fn compile(crossing: &Crossing<'_>) {
    crossing.is_not_taken(&bomb(), 422, "module-rejected");
}

fn memories_and_tables(crossing: &Crossing<'_>) {
    for module in [
        Guest::next().memory(r#"(memory (export "memory") 65536)"#),
        Guest::next().memory(r#"(memory (export "memory") 1) (memory 1)"#),
        Guest::next().items("(table 20001 funcref)"),
        Guest::next().items("(table 1 funcref) (table 1 funcref)"),
    ] {
        crossing.is_not_taken(&module.build(), 422, "module-rejected");
    }
}

fn parts_of_a_component(crossing: &Crossing<'_>) {
    let empty = Guest::next().and_instances("(module)", 17);
    crossing.is_not_taken(&empty, 422, "module-rejected");
    let with_a_table = Guest::next().and_instances("(module (table 1 funcref))", 9);
    crossing.is_not_taken(&with_a_table, 422, "module-rejected");
}

fn call_time(crossing: &Crossing<'_>) {
    crossing.probed(&json!({ "cpu": "1s" }));
    // Its request ends when the call does. Where the filter sees that first, it goes on until the call has ended, too.
    let url = crossing.url("/hang");
    let hang = json!({ "do": "send", "url": url, "timeout_ms": u32::MAX, "then": "spin" });
    crossing.is_refused(&crossing.ask(&hang), 503, "filter-timeout");
}

fn table_elements(crossing: &Crossing<'_>) {
    crossing.does(
        "(if (i32.ne (table.grow (ref.null func) (i32.const 20001)) (i32.const -1)) (then unreachable))",
        "(table 0 funcref)",
    );
    crossing.goes_through(&crossing.ask(""));
}

fn stack(crossing: &Crossing<'_>) {
    crossing.does("(call $deeper)", "(func $deeper (call $deeper) (call $deeper))");
    crossing.is_refused(&crossing.ask(""), 503, "filter-trap");
}

fn handed_over(crossing: &Crossing<'_>) {
    // Twenty names of 900,000 bytes each, all of them the same ones.
    let names = r"(drop (memory.grow (i32.const 17)))
        (loop $l
          (i32.store (i32.add (i32.const 1000000) (local.get $i)) (i32.const 0))
          (i32.store (i32.add (i32.const 1000004) (local.get $i)) (i32.const 900000))
          (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 8))) (i32.const 160))))
        (call $get-many (local.get $head) (i32.const 1000000) (i32.const 20) (i32.const 2048))";
    crossing.does(names, "");
    crossing.is_refused(&crossing.ask(""), 503, "filter-trap");
}

fn get_many(crossing: &Crossing<'_>) {
    // A hundred thousand empty names.
    let names = r"(drop (memory.grow (i32.const 16)))
        (call $get-many (local.get $head) (i32.const 65536) (i32.const 100000) (i32.const 2048))";
    crossing.does(names, "");
    crossing.is_refused(&crossing.ask(""), 503, "filter-trap");
}

fn random(crossing: &Crossing<'_>) {
    crossing.filtered(&guests::module("wasi").unwrap(), &json!({}));
    assert_eq!(crossing.send(Request::get("/random/65536")).status, 200);
    crossing.is_refused(&crossing.send(Request::get("/random/65537")), 503, "filter-trap");
}

fn handles(crossing: &Crossing<'_>) {
    crossing.filtered(&handles_of_its_own(990), &json!({}));
    assert_eq!(crossing.ask("").status, 200);
    crossing.filtered(&handles_of_its_own(1001), &json!({}));
    crossing.is_refused(&crossing.ask(""), 503, "filter-trap");
}

fn outbound_requests(crossing: &Crossing<'_>) {
    let module = crossing.push(&guests::module("probe").unwrap()).unwrap();
    let many = json!({ "do": "send", "url": crossing.url("/"), "n": 32, "then": "next" });
    let filter =
        |name: &str, config: Value| json!({ "name": name, "module": module.digest, "config": config });
    let last = json!({ "do": "send", "url": crossing.url("/") });
    let filters = json!([filter("first", many.clone()), filter("second", many), filter(FILTER, last)]);
    crossing.apply(&filters, &json!({ "outbound_calls": 32, "cpu": "1s" }));
    assert_eq!(crossing.send(Request::get("/")).json().unwrap(), "too-many");
    crossing.is_shown(FILTER);
}

fn outbound_size(crossing: &Crossing<'_>) {
    crossing.probed(&json!({ "cpu": "1s" }));
    let url = crossing.url("/bytes?n=1048577&chunked");
    crossing.is_told(&json!({ "do": "send", "url": url }), "too-large");
    crossing.is_shown(FILTER);
}

fn kv_size(crossing: &Crossing<'_>) {
    crossing.probed(&json!({}));
    crossing.is_told(&json!({ "do": "kv", "call": "set", "key": "a", "n": 65_537 }), "value-too-large");
    crossing.is_shown(FILTER);
}

fn bucket_size(crossing: &Crossing<'_>) {
    crossing.probed(&json!({}));
    let take = json!({ "do": "take", "key": "a".repeat(257), "n": 1, "rate": [1, 1000, 1] });
    crossing.is_told(&take, "invalid-key");
    crossing.is_shown(FILTER);
}

fn series(crossing: &Crossing<'_>) {
    crossing.probed(&json!({}));
    let count = |name: u32| json!({ "do": "metric", "key": format!("n{name}"), "by": 1 });
    (0..64).for_each(|name| crossing.is_told(&count(name), "ok"));
    crossing.is_told(&count(64), "too-many-names");
    crossing.is_shown(FILTER);
}

fn head(crossing: &Crossing<'_>) {
    crossing.probed(&json!({}));
    let many = vec!["x"; 101];
    let step = json!({ "do": "set-headers", "headers": { "x-many": many }, "reply": true });
    assert_eq!(crossing.ask(&step).json().unwrap()["x-many"], "too-large");
    crossing.is_shown(FILTER);
}

#[test]
fn a_limit_that_is_crossed_is_told_by_its_name() {
    let limits = "[limits.small]\nmodule_size = \"256KiB\"\n[limits.large]\ncompile_cpu = \"1s\"\n";
    let options = Options { configuration: Some(limits.into()), ..Options::default() };
    let scene = Scene::with(options).unwrap();
    let mut not_told = Vec::new();
    for (number, (limit, cross)) in CROSSINGS.into_iter().enumerate() {
        let crossed =
            thread::scope(|scope| scope.spawn(|| cross(&Crossing::new(&scene, limit, number))).join());
        println!("{limit}: {}", if crossed.is_ok() { "told" } else { "NOT TOLD" });
        if crossed.is_err() {
            not_told.push(limit);
        }
    }
    assert!(not_told.is_empty(), "{not_told:?}");
}

/// What crosses a limit of a call in any phase: its name, the guest's code, and the problem that it is answered with.
const OF_A_CALL: [(&str, &str, &str); 4] = [
    ("cpu", "(loop $l (br $l)) unreachable", "filter-timeout"),
    (
        "memory",
        "(loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable",
        "filter-memory",
    ),
    ("host_calls", "(loop $l (drop (call $random)) (br $l)) unreachable", "filter-host-calls"),
    ("stack", "(call $deeper) unreachable", "filter-trap"),
];

#[test]
fn the_limits_of_a_call_hold_in_each_later_phase() {
    let scene = Scene::start().unwrap();
    let mut number = 0;
    for (limit, does, problem) in OF_A_CALL {
        for (phase, of_type) in LATER_PHASES {
            number += 1;
            let crossing = Crossing::new(&scene, limit, number);
            let deeper = "(func $deeper (call $deeper) (call $deeper))";
            let limits = json!({ "cpu": "50ms", "memory": "4MiB", "host_calls": 1000 });
            crossing.filtered(&in_phase(phase, of_type, does, deeper), &limits);
            let request = Request::post("/echo", "a body").host(&crossing.host).timeout(PATIENCE);
            match request.send(scene.node.address()) {
                // The client has its answer by then.
                Ok(answer) if phase == "finish" => crossing.goes_through(&answer),
                Ok(answer) => crossing.is_refused(&answer, 503, problem),
                // What fails later than at once has sent the head: a call that goes to the slow lane does.
                Err(error) => {
                    assert_eq!(phase, "response-body", "{error:#}");
                    assert!(["cpu", "memory"].contains(&limit), "{limit}: {error:#}");
                    let text = format!("{error:#}");
                    assert!(text.contains("the 200 response was cut: the connection ended"), "{text}");
                    crossing.is_told_to_have_failed(problem);
                }
            }
        }
    }
}

#[test]
fn every_limit_of_the_reference_page_is_crossed() {
    let page = include_str!("../../docs/reference/limits.md");
    let mut tables = page.split("\n| name |").skip(1).peekable();
    assert!(tables.peek().is_some());
    let rows = tables.flat_map(|table| table.split("\n\n").next().unwrap().lines().skip(2));
    let mut named: Vec<&str> = rows
        .map(|row| {
            let name = row.strip_prefix("| `").and_then(|row| row.split_once("` |"));
            name.unwrap_or_else(|| panic!("a limit without a name: {row}")).0
        })
        .collect();
    named.sort_unstable();
    for (_, test, file) in IN_MINIATURE {
        assert!(file.contains(&format!("fn {test}()")), "{test} is gone");
    }
    let mut crossed: Vec<_> = CROSSINGS.iter().map(|(limit, _)| *limit).collect();
    crossed.extend(IN_MINIATURE.map(|(limit, ..)| limit));
    crossed.sort_unstable();
    assert_eq!(named, crossed);
}

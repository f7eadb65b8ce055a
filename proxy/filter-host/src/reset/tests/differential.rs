//! The same requests through both tiers: the same verdicts, failures, logs and heads.

use beamline_model::{ByteSize, FilterLimits};
use http::{HeaderMap, HeaderValue, Method};
use serde_json::Value;

use super::Both;
use crate::{
    RequestHead, Tier, UpstreamState,
    tests::{View, guest, head, taken},
};

pub(super) fn limits() -> FilterLimits {
    FilterLimits { cpu: beamline_model::Duration::millis(20), memory: ByteSize::mib(4), ..Default::default() }
}

fn rich_head() -> Box<RequestHead> {
    let mut headers = HeaderMap::new();
    for (name, value) in [("x-a", "1"), ("x-b", ""), ("cookie", "a=b; c=d"), ("x-h12", "other")] {
        headers.append(name, HeaderValue::from_static(value));
    }
    headers.append("x-a", HeaderValue::from_static("2"));
    headers.append("x-raw", HeaderValue::from_bytes(b"\xff\xfe raw").unwrap());
    headers.append("x-long", HeaderValue::from_str(&"long ".repeat(2000)).unwrap());
    RequestHead::new(Method::PUT, "/a%20b/c?d=%C3%A9&e".parse().unwrap(), "acme.test".into(), headers)
}

#[test]
fn the_probe_does_the_same_in_both() {
    let probe = Both::of(&guest("probe.wasm"));
    let steps = [
        r#"{"do":"next"}"#,
        r#"{"do":"route","upstream":"api","path":"/x?y","host":"other.test","timeout_ms":5}"#,
        r#"{"do":"route","path":"no-slash"}"#,
        r#"{"do":"respond","status":418,"headers":{"x-a":["1","2"],"x-b":"é"},"body":"tea"}"#,
        r#"{"do":"respond","bytes":300000}"#,
        r#"{"do":"respond","status":99}"#,
        r#"{"do":"respond","headers":{"bad name":"1"}}"#,
        r#"{"do":"enqueue","upstream":"api","ordering_key":"k","delay_ms":7,"expiry_ms":18446744073709551615}"#,
        r#"{"do":"enqueue"}"#,
        r#"{"do":"alloc","mib":1}"#,
        r#"{"do":"alloc","mib":3,"then":"count"}"#,
        r#"{"do":"alloc","mib":5}"#,
        r#"{"do":"bomb"}"#,
        r#"{"do":"trap"}"#,
        r#"{"do":"unreachable"}"#,
        r#"{"do":"recurse"}"#,
        r#"{"do":"spin"}"#,
        r#"{"do":"headers"}"#,
        r#"{"do":"headers-many"}"#,
        r#"{"do":"head"}"#,
        r#"{"do":"set-headers","reply":true,"headers":{"x-a":["3","4"],"x-b":null,"host":"x","bad name":"1","x-c":"a\r\nb","x-d":"d"}}"#,
        r#"{"do":"set-headers","headers":{"x-new":"1"},"then":"trap"}"#,
        r#"{"do":"log","bytes":100}"#,
        r#"{"do":"log","bytes":100000}"#,
        r#"{"do":"log","body":"éé"}"#,
        r#"{"do":"calls","n":100}"#,
        r#"{"do":"count"}"#,
        r#"{"do":"upstream","upstream":"api"}"#,
        r#"{"do":"upstream","upstream":"none"}"#,
        r#"{"do":"dance"}"#,
        "null",
    ];
    // Twice, and in another order: what one request leaves, another would find.
    let mut failed = 0;
    for step in steps.iter().chain(steps.iter().rev()) {
        failed += u32::from(probe.same(step, &limits(), &rich_head()).failed());
    }
    // In small steps to the usual limit, within the usual CPU time.
    let bomb = probe.same(r#"{"do":"bomb"}"#, &FilterLimits::default(), &rich_head());
    assert!(bomb.decision.contains("Memory(16777216)"), "{bomb:?}");
    // Those that grew by much are not.
    probe.assert_kept(75);
    assert!(failed > 10, "only {failed} requests failed: the failures are not tried");
}

#[test]
fn what_the_host_offers_is_the_same_in_both() {
    let probe = Both::of(&guest("probe.wasm"));
    let steps = [
        r#"{"do":"properties"}"#,
        r#"{"do":"kv","call":"get","key":"none"}"#,
        r#"{"do":"kv","call":"set","key":"a","body":"b"}"#,
        r#"{"do":"kv","call":"set","key":"a","body":"b","ttl_ms":18446744073709551615}"#,
        r#"{"do":"kv","call":"set","key":"","body":"b"}"#,
        r#"{"do":"kv","call":"set","key":"a","n":65537}"#,
        r#"{"do":"kv","call":"delete","key":"a"}"#,
        r#"{"do":"kv","call":"increment","key":"n","by":-9223372036854775808,"ttl_ms":9}"#,
        r#"{"do":"kv","call":"increment","key":"","by":1}"#,
        r#"{"do":"kv","call":"compare-and-set","key":"a","body":"b"}"#,
        r#"{"do":"kv","call":"compare-and-set","key":"a","expected":"c","body":"b","ttl_ms":5}"#,
        r#"{"do":"kv","call":"compare-and-set","key":"","body":"b"}"#,
        r#"{"do":"kv","call":"nothing","key":"a"}"#,
        r#"{"do":"take","bucket":"b","key":"k","n":1,"rate":[1,1000,5]}"#,
        r#"{"do":"take","bucket":"b","key":"k","n":9,"rate":[1,1000,5]}"#,
        r#"{"do":"take","bucket":"b","key":"k","n":5,"rate":[1,1000,5],"then":"next"}"#,
        r#"{"do":"take","bucket":"b","key":"k","n":1,"rate":[0,0,0]}"#,
        r#"{"do":"metric","key":"seen_total","by":18,"headers":{"kind":"x"}}"#,
        r#"{"do":"metric","key":"seconds","value":0.25,"headers":{}}"#,
        r#"{"do":"metric","key":"not a name","by":1}"#,
        r#"{"do":"secret","key":"none"}"#,
        r#"{"do":"secret","key":"key"}"#,
        r#"{"do":"send","url":"http://nobody.test/"}"#,
        r#"{"do":"send","url":"no url"}"#,
        r#"{"do":"send","call":"GET POST","url":"http://nobody.test/"}"#,
        r#"{"do":"send","url":"http://wait.test/20","headers":{"x-a":["1","2"]},"body":"hello","timeout_ms":1000}"#,
        r#"{"do":"send","n":9,"url":"http://nobody.test/"}"#,
    ];
    let mut answers = 0;
    for step in steps.iter().chain(steps.iter().rev()) {
        let seen = probe.same(step, &limits(), &rich_head());
        answers += u32::from(seen.decision.starts_with("Respond"));
    }
    assert!(answers >= 48, "{answers} answers: the host functions are not tried");
    // As a client is seen that came by TLS.
    let secure = || {
        let mut view = View::new(limits());
        view.tls_server_name = Some("acme.test".into());
        view
    };
    let (component, seen) = probe.pair_seeing(r#"{"do":"properties"}"#, &limits(), &rich_head(), &secure);
    assert_eq!(component, seen);
    assert!(seen.decision.contains("https"), "{seen:?}");
    // The clock gives no two calls the same.
    probe.reset(r#"{"do":"clock"}"#, &limits(), &rich_head());
    let few = FilterLimits { host_calls: 20, ..limits() };
    assert!(probe.same(r#"{"do":"calls","n":100}"#, &few, &rich_head()).decision.contains("HostCalls(20)"));
    probe.assert_kept(75);
}

/// The request of one of a stock filter's cases.
fn request_of(case: &Value) -> Box<RequestHead> {
    let request = &case["request"];
    let text = |key: &str, default: &str| request[key].as_str().unwrap_or(default).to_owned();
    let mut headers = HeaderMap::new();
    let fields = request["headers"].as_object().into_iter().flatten();
    for (name, values) in fields {
        for value in values.as_array().into_iter().flatten().chain(values.is_string().then_some(values)) {
            let value = HeaderValue::from_str(value.as_str().unwrap()).unwrap();
            headers.append(name.parse::<http::HeaderName>().unwrap(), value);
        }
    }
    let method = text("method", "GET").parse::<Method>().unwrap();
    RequestHead::new(method, text("target", "/").parse().unwrap(), text("host", "acme.test").into(), headers)
}

/// What the host shows in one of them.
fn view_of(case: &Value, limits: &FilterLimits) -> View {
    let mut view = View::new(limits.clone());
    let client = case["client"].as_str().unwrap_or("203.0.113.7").parse().unwrap();
    view.client = std::net::SocketAddr::new(client, 4000);
    for (name, state) in case["upstreams"].as_object().into_iter().flatten() {
        let state = match state.as_str().unwrap() {
            "ready" => UpstreamState::Ready,
            "degraded" => UpstreamState::Degraded,
            "down" => UpstreamState::Down,
            other => panic!("no state of an upstream: {other}"),
        };
        view.upstreams.insert(name.clone(), state);
    }
    view
}

/// How what is expected of a case begins where it is a decision of the host's.
fn expected_of(case: &Value) -> &'static str {
    let expected = &case["expect"];
    let kind = expected.as_str().or_else(|| expected.as_object()?.keys().next().map(String::as_str));
    match kind.unwrap() {
        "next" => "Next",
        "route" => "Route",
        "respond" | "refuse" => "Respond",
        "enqueue" => "Enqueue",
        "read-body" => "ReadBody",
        "config-error" => "Failed",
        other => panic!("nothing is known of {other}"),
    }
}

#[test]
fn the_stock_filters_do_the_same_in_both() {
    let limits = FilterLimits { cpu: beamline_model::Duration::millis(1_000), ..Default::default() };
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../wasm-filters");
    let (mut filters, mut elsewhere) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let Ok(cases) = std::fs::read_to_string(path.join("cases.json")) else { continue };
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let bytes = guest(&format!("{name}.wasm"));
        if taken(&bytes).0.tier == Tier::Component {
            elsewhere.push(name);
            continue;
        }
        let cases: Vec<Value> = serde_json::from_str(&cases).unwrap();
        let cases: Vec<_> =
            cases.iter().filter(|case| case["phase"].is_null() || case["phase"] == "request").collect();
        let filter = Both::of(&bytes);
        let mut decided = std::collections::BTreeSet::new();
        for case in cases.iter().chain(cases.iter().rev()) {
            let (config, head) = (case["config"].to_string(), request_of(case));
            let view = || view_of(case, &limits);
            if case["random"].is_null() {
                let (component, seen) = filter.pair_seeing(&config, &limits, &head, &view);
                assert_eq!(component, seen, "{name}: {}", case["name"]);
                let expected = expected_of(case);
                assert!(seen.decision.starts_with(expected), "{name}: {}: {seen:?}", case["name"]);
                decided.insert(expected);
            } else {
                // It draws lots.
                filter.reset_seeing(&config, &limits, &head, view());
            }
        }
        for config in ["{}", r#"{"what":1}"#, "["] {
            filter.same(config, &limits, &rich_head());
        }
        // It did its work, and more than that it found its configuration wrong.
        assert!(decided.len() > 1, "{name}: {decided:?}");
        filter.assert_kept(80);
        filters.push(name);
    }
    assert_eq!(elsewhere, ["security-headers"], "it has no request phase");
    assert!(filters.len() >= 13, "{filters:?}");
}

#[test]
fn signatures_are_checked_with_the_same_outcome_in_both() {
    let limits = FilterLimits { cpu: beamline_model::Duration::millis(1_000), ..Default::default() };
    let text = include_str!("../../../../../wasm-filters/jwt/tokens.json");
    let tokens: Value = serde_json::from_str(text).unwrap();
    let keys = tokens["jwks"]["keys"].as_array().unwrap().iter().filter(|key| key["kty"] != "oct");
    let config = serde_json::json!({
        "issuer": "https://issuer.test", "audiences": ["shop"], "keys": keys.collect::<Vec<_>>(),
    });
    let jwt = Both::of(&guest("jwt.wasm"));
    let (mut passed, mut refused) = (0, 0);
    for _ in 0..2 {
        for token in tokens["tokens"].as_object().unwrap().values() {
            let bearer = format!("Bearer {}", token.as_str().unwrap()).leak();
            let seen = jwt.same(&config.to_string(), &limits, &head(&[("authorization", bearer)]));
            assert!(!seen.failed(), "{seen:?}");
            *if seen.decision == "Next" { &mut passed } else { &mut refused } += 1;
        }
    }
    assert!(passed >= 8 && refused >= 8, "{passed} passed, {refused} did not");
    // A signature by RSA takes longer than a slice: such a call is set aside, and its instance is not kept.
    jwt.assert_kept(30);
}

#[test]
fn the_smallest_filter_and_a_rich_head_do_the_same_in_both() {
    let tiny = Both::of(&guest("tiny.wasm"));
    for fields in [vec![], vec![("x-h12", "other")], vec![("x-h12", "a"), ("x-h13", "b")]] {
        for _ in 0..3 {
            tiny.same("{}", &limits(), &head(&fields));
            tiny.same("{}", &limits(), &rich_head());
        }
    }
    tiny.assert_kept(80);
}

/// A module with every phase: its request phase is in the reset tier, and what it remembers there the other phases find.
#[test]
fn a_module_with_other_phases_does_the_same_in_both() {
    let phases = Both::of(&guest("phases.wasm"));
    let acts = [
        r#"{"request":{"remember":"a"}}"#,
        r#"{"request":{"remember":"b","recall":"x-context","set":{"x-a":"1","x-b":null}}}"#,
        r#"{"request":{"remember_bytes":4096}}"#,
        r#"{"request":{"remember_bytes":4097}}"#,
        r#"{"request":{"remember":"a","trap":true}}"#,
        r#"{"request":{"read_body":true}}"#,
        "{}",
    ];
    let mut remembered = 0;
    for act in acts.iter().chain(acts.iter().rev()) {
        let seen = phases.same(act, &limits(), &rich_head());
        assert_eq!(seen.decision == "ReadBody", act.contains("read_body"), "{act}: {seen:?}");
        assert_eq!(seen.failed(), act.contains("trap"), "{act}: {seen:?}");
        remembered += u32::from(seen.context.is_some());
    }
    assert_eq!(remembered, 6);
    phases.assert_kept(75);
}

/// The same words, but for where the code stands.
#[test]
fn a_trap_is_told_with_the_functions_that_were_running() {
    let text = r#"(module $evil
        (import "beamline:edge/http@0.1.0" "[resource-drop]request-head" (func $drop (param i32)))
        (memory (export "memory") 1)
        (func $outer (param i32) (result i32) (call 3 (local.get 0)))
        (func (param i32) (result i32) (call $inner (local.get 0)))
        (func (param i32) (result i32) (call 2 (local.get 0)))
        (func $inner (param i32) (result i32) (i32.load (i32.const -1)))
        (export "beamline:edge/request-handler@0.1.0#handle" (func $outer)))"#;
    let both = Both::wat(text);
    let functions = |outcome: &crate::ChainOutcome| -> Vec<String> {
        let text = outcome.runs[0].backtrace.as_deref().expect("a backtrace");
        text.lines().map(|line| line.rsplit(" - ").next().unwrap().to_owned()).collect()
    };
    let ask = |engine, module| functions(&super::ask(engine, module, "null", &limits(), &head(&[])));
    let component = ask(&super::tiers().component, &both.component);
    let reset = ask(&super::tiers().reset, &both.reset);
    assert!(component.len() >= 3 && component[0].contains("inner"), "{component:?}");
    // The glue code's comes last.
    assert_eq!(reset[..component.len()], component[..], "{reset:?}");
    assert!(reset.last().unwrap().contains("request-handler"), "{reset:?}");
}

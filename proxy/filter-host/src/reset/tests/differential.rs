//! The same requests through both tiers: the same verdicts, failures, logs and heads.

use beamline_model::{ByteSize, FilterLimits};
use http::{HeaderMap, HeaderValue, Method};

use super::{Both, with_type};
use crate::{
    RequestHead,
    tests::{guest, head},
};

fn limits() -> FilterLimits {
    FilterLimits { cpu: beamline_model::Duration::millis(20), memory: ByteSize::mib(4), ..Default::default() }
}

fn rich_head() -> RequestHead {
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
    assert!(failed > 10, "only {failed} requests failed: the failures are not tried");
}

#[test]
fn the_stock_filters_do_the_same_in_both() {
    for name in ["tiny", "router", "canary", "maintenance"] {
        let filter = Both::of(&guest(&format!("{name}.wasm")));
        for config in ["null", "{}", r#"{"what":1}"#, "["] {
            for head in [rich_head(), head(&[]), head(&[("x-h12", "other"), ("cookie", "canary=1")])] {
                let seen = filter.reset(config, &limits(), &head);
                // The canary draws lots.
                if name != "canary" || seen.failed() {
                    assert_eq!(seen, filter.same(config, &limits(), &head), "{name} {config}");
                }
            }
        }
    }
}

/// Modules that wasm-smith generated from seeds (the files' names), finished by hand: the phase calls a generated
/// function twice, logs a sum of what it returned and of all memory after it, and says `next`. They call the host as
/// they like; a trap that follows from a bad call is as good as any.
const GENERATED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/reset/tests/generated");

#[test]
fn generated_modules_do_the_same_in_both() {
    let (mut modules, mut ended_well, mut failed) = (0, 0, 0);
    for entry in std::fs::read_dir(GENERATED).unwrap() {
        let bytes = with_type(std::fs::read(entry.unwrap().path()).unwrap());
        let both = Both::of(&bytes);
        modules += 1;
        for _ in 0..3 {
            let seen = both.same("null", &limits(), &rich_head());
            *if seen.failed() { &mut failed } else { &mut ended_well } += 1;
        }
    }
    println!("{modules} modules; {ended_well} requests ended well, {failed} failed");
    assert!(modules >= 60 && ended_well >= 60 && failed >= 60, "{ended_well} ended well, {failed} failed");
}

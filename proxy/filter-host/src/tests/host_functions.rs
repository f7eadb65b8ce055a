//! What the host does for a call: clock, properties, keys and values, buckets, metrics, secrets.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use beamline_model::{FilterLimits, InstanceLifetime, Limit, OnError};
use serde_json::json;

use super::{PATIENCE, View, answer, chain, engine, failure, head, probe, run, run_default};
use crate::{Chain, Decision, Failure, FilterConfig, FilterSetup, HostView, Redaction};

#[tokio::test]
async fn a_call_that_calls_the_host_too_often_ends() {
    let limits = FilterLimits { host_calls: 100, ..Default::default() };
    // Two calls before the loop: the configuration and the header `x-probe`.
    let within = chain(r#"{"do":"calls","n":98}"#, limits.clone(), OnError::FailClosed);
    assert!(matches!(run(&within, head(&[])).await.decision, Decision::Next));
    let beyond = chain(r#"{"do":"calls","n":99}"#, limits, OnError::FailClosed);
    assert_eq!(*failure(&run(&beyond, head(&[])).await), Failure::HostCalls(100));
}

#[tokio::test]
async fn a_call_has_a_clock() {
    let now_ms = || u64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap();
    let before = now_ms();
    let answer = answer(&run_default(r#"{"do":"clock","n":1}"#).await);
    let of = |name: &str| answer[name].as_u64().unwrap();
    assert!((before..=now_ms()).contains(&of("now_ms")), "{answer}");
    assert!(of("after_us") > of("before_us"), "{answer}");
}

#[tokio::test]
async fn a_guest_learns_what_is_known_of_its_request() {
    let answer = answer(&run_default(r#"{"do":"properties"}"#).await);
    let expected = json!({
        "client_address": "192.0.2.7", "client_port": 4000, "request_id": "id", "trace_id": "trace",
        "tenant": "acme", "revision": 3, "scheme": "http", "tls_server_name": null,
    });
    assert_eq!(answer, expected);
}

#[tokio::test]
async fn keys_and_values_last_from_call_to_call_within_their_quota() {
    let crossing = Arc::new(View::new(FilterLimits { kv_entries: 2, ..Default::default() }));
    let view: Arc<dyn HostView> = crossing.clone();
    let told = async |config: &str| {
        let chain = chain(config, FilterLimits::default(), OnError::FailClosed);
        answer(&chain.on_request(engine(), &view, head(&[])).await)
    };
    assert_eq!(told(r#"{"do":"kv","call":"get","key":"a"}"#).await, json!(null));
    assert_eq!(told(r#"{"do":"kv","call":"set","key":"a","body":"1"}"#).await, json!("ok"));
    assert_eq!(told(r#"{"do":"kv","call":"get","key":"a"}"#).await, json!("1"));
    assert_eq!(told(r#"{"do":"kv","call":"increment","key":"a","by":41}"#).await, json!(42));
    let set = r#"{"do":"kv","call":"compare-and-set","key":"a","expected":"42","body":"x"}"#;
    assert_eq!(told(set).await, json!(true));
    assert_eq!(told(set).await, json!(false));
    assert_eq!(told(r#"{"do":"kv","call":"increment","key":"a","by":1}"#).await, json!("not-a-number"));
    assert_eq!(
        told(r#"{"do":"kv","call":"increment","key":"b","by":9223372036854775807}"#).await,
        json!(i64::MAX)
    );
    assert_eq!(told(r#"{"do":"kv","call":"increment","key":"b","by":1}"#).await, json!("overflow"));
    assert_eq!(told(r#"{"do":"kv","call":"set","key":"c"}"#).await, json!("quota-exceeded"));
    assert_eq!(told(r#"{"do":"kv","call":"set","key":""}"#).await, json!("invalid-key"));
    assert_eq!(told(r#"{"do":"kv","call":"set","key":"a","bytes":65537}"#).await, json!("value-too-large"));
    assert_eq!(told(r#"{"do":"kv","call":"delete","key":"a"}"#).await, json!(true));
    assert_eq!(told(r#"{"do":"kv","call":"delete","key":"a"}"#).await, json!(false));
    assert_eq!(told(r#"{"do":"kv","call":"set","key":"c","ttl_ms":1}"#).await, json!("ok"));
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert_eq!(told(r#"{"do":"kv","call":"get","key":"c"}"#).await, json!(null));
    let expected = [Limit::KvEntries, Limit::KvSize, Limit::KvSize];
    assert_eq!(*crossing.crossed.lock().unwrap(), expected);
}

#[tokio::test]
async fn a_token_bucket_is_shared_by_calls() {
    let view = View::shared(FilterLimits { bucket_keys: 1, ..Default::default() });
    let told = async |config: serde_json::Value| {
        let chain = chain(&config.to_string(), FilterLimits::default(), OnError::FailClosed);
        answer(&chain.on_request(engine(), &view, head(&[])).await)
    };
    let take = |key: &str, n: u32| json!({ "do": "take", "key": key, "n": n, "rate": [1, 3_600_000, 2] });
    assert_eq!(told(take("a", 1)).await, json!({ "allowed": 1 }));
    assert_eq!(told(take("a", 1)).await, json!({ "allowed": 0 }));
    let wait = told(take("a", 1)).await["retry_after_ms"].as_u64().unwrap();
    assert!((3_500_000..=3_600_000).contains(&wait), "{wait}");
    assert_eq!(told(take("b", 1)).await, json!("too-many-keys"));
    assert_eq!(told(take("a", 3)).await, json!("invalid-rate"));
    assert_eq!(told(take(&"a".repeat(257), 1)).await, json!("invalid-key"));
}

#[tokio::test]
async fn what_filters_keep_outlives_a_change_of_the_chain() {
    let first = chain("null", FilterLimits::default(), OnError::FailClosed);
    let quota = crate::shared::Quota { bytes: 1000, entries: 1 };
    first.state().kv().set("k", b"v".to_vec(), None, Duration::ZERO, quota).unwrap();
    let mut second = chain("null", FilterLimits::default(), OnError::FailClosed);
    assert_eq!(second.state().kv().get("k", Duration::ZERO), None);
    second.succeed(&first);
    assert_eq!(second.state().kv().get("k", Duration::ZERO).unwrap(), "v");
}

#[tokio::test]
async fn what_a_filter_counts_is_told_with_its_name() {
    let told = Arc::new(View::new(FilterLimits::default()));
    let view: Arc<dyn HostView> = told.clone();
    let counted = async |step: serde_json::Value| {
        let chain = chain(&step.to_string(), FilterLimits::default(), OnError::FailClosed);
        answer(&chain.on_request(engine(), &view, head(&[])).await)
    };
    let count = json!({ "do": "metric", "key": "hits", "by": 2, "headers": { "plan": "pro" } });
    assert_eq!(counted(count).await, json!("ok"));
    assert_eq!(counted(json!({ "do": "metric", "key": "size", "value": 2.5 })).await, json!("ok"));
    assert_eq!(counted(json!({ "do": "metric", "key": "refused" })).await, json!("too-many-names"));
    let expected = [r#"probe hits +2 [("plan", "pro")]"#, "probe size 2.5 []", "probe refused +0 []"];
    assert_eq!(*told.counted.lock().unwrap(), expected);
}

#[tokio::test]
async fn a_host_function_that_panics_ends_its_call_alone() {
    for step in [
        json!({ "do": "metric", "key": "panics" }),
        json!({ "do": "send", "url": "http://panics.test/" }),
        json!({ "do": "spin-ms", "n": 100, "then": { "do": "send", "url": "http://panics.test/" } }),
    ] {
        let limits = FilterLimits { cpu: beamline_model::Duration::secs(1), ..Default::default() };
        let chain = chain(&step.to_string(), limits, OnError::FailClosed);
        let outcome = run(&chain, head(&[])).await;
        let expected = Failure::Host;
        assert_eq!(*failure(&outcome), expected, "{step}");
    }
}

#[tokio::test]
async fn who_calls_the_host_too_often_again_and_again_is_left_out() {
    let limits = FilterLimits { host_calls: 10, ..Default::default() };
    let chain = chain(r#"{"do":"calls","n":50}"#, limits, OnError::FailClosed);
    let began = Instant::now();
    loop {
        match failure(&run(&chain, head(&[])).await) {
            Failure::LeftOut(_) => break,
            other => assert_eq!(*other, Failure::HostCalls(10)),
        }
        assert!(began.elapsed() < PATIENCE, "it was never left out");
    }
}

#[tokio::test]
async fn what_a_verdict_repeats_of_a_secret_is_not_told() {
    let name: beamline_model::FilterName = "probe".parse().unwrap();
    let secret = beamline_model::SecretValue::new(b"s3cret").unwrap();
    let redaction = Redaction::of([&secret]);
    for (config, shown) in [
        (json!({ "do": "route", "path": "no-path-s3cret" }), "no-path-[redacted]"),
        (json!({ "do": "route", "host": "no host s3cret" }), "no host [redacted]"),
        // Cut where a part of the secret would be shown, were it cut first.
        (json!({ "do": "route", "path": format!("{}s3cret", "-".repeat(252)) }), "---"),
        (json!({ "do": "route", "host": format!("{}s3cret", "-".repeat(77)) }), "-[redacted]"),
        (json!({ "do": "route", "path": "-".repeat(1 << 20) }), "---"),
    ] {
        let secrets = vec![("key".parse().unwrap(), Ok(secret.clone()))];
        let filter = FilterSetup {
            config: FilterConfig::with_secrets(&name, &config.to_string(), secrets, &redaction),
            name: name.clone(),
            module: Some(probe()),
            on_error: OnError::FailClosed,
            lifetime: InstanceLifetime::Call,
        };
        let chain = Chain::new("acme".parse().unwrap(), FilterLimits::default(), vec![filter]);
        let outcome = run(&chain, head(&[])).await;
        for told in [failure(&outcome), outcome.runs[0].failure.as_ref().unwrap()] {
            let told = told.to_string();
            assert!(told.contains(shown) && !told.contains("s3") && told.len() < 600, "{told}");
        }
    }
    let named = format!("{}s3cret", "-".repeat(62));
    let filter = FilterSetup {
        config: FilterConfig::with_secrets(&name, "null", Vec::new(), &redaction),
        name,
        module: Some(probe()),
        on_error: OnError::FailClosed,
        lifetime: InstanceLifetime::Call,
    };
    let chain = Chain::new("acme".parse().unwrap(), FilterLimits::default(), vec![filter]);
    assert!(chain.told(&named).ends_with("-[redacted]"), "of any filter of the chain");
}

use beamline_sdk::{
    Verdict,
    testing::{Call, Kept},
};
use serde_json::{Value, json};

use super::*;

const CASES: &str = include_str!("../cases.json");

#[test]
fn cases_come_out_as_they_say() {
    beamline_sdk::testing::run_cases::<RateLimit>(CASES);
    beamline_sdk::testing::run_response_cases::<RateLimit>(CASES);
}

/// The key that a request is counted by, as a configuration says.
fn key(key: Value, call: Call, trusted: &[&str]) -> Option<String> {
    thread_local! {
        static KEY: std::cell::RefCell<Option<String>> = const { std::cell::RefCell::new(None) };
    }

    struct Told;

    impl Filter for Told {
        type Config = Config;

        fn on_request(config: &Config, request: &mut Request) -> Verdict {
            KEY.replace(key::of(&config.limits[0].key, &config.address, request).unwrap());
            Verdict::next()
        }
    }

    let limits = json!([{ "name": "a", "key": key, "requests": 1, "per_seconds": 1 }]);
    call.config(json!({ "limits": limits, "address": { "trusted_proxies": trusted } })).run::<Told>();
    KEY.take()
}

fn from(address: &str) -> Call {
    Call::get("/").properties(|known| known.client_address = address.into())
}

fn is_refused(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Respond(_))
}

#[test]
fn each_key_has_its_bucket_which_fills_again() {
    let kept = Kept::new();
    let config = json!({ "limits": [{ "name": "api", "key": { "header": "x-key" }, "requests": 2, "per_seconds": 60 }] });
    let ask = |key: &str, at: u64| {
        Call::get("/").config(config.clone()).kept(&kept).header("x-key", key).now_ms(at).run::<RateLimit>()
    };
    let told: Vec<_> = (0..3).map(|_| is_refused(&ask("a", 0).verdict)).collect();
    assert_eq!(told, [false, false, true]);
    let refused = Verdict::refuse(429, "Too many requests. Please come back later.")
        .header("retry-after", "25")
        .header("ratelimit-policy", "\"api\";q=2;w=60")
        .header("ratelimit", "\"api\";r=0;t=25");
    assert_eq!(ask("a", 5500).verdict, refused.into());
    assert!(!is_refused(&ask("b", 5500).verdict), "another key");
    assert!(!is_refused(&ask("a", 30_000).verdict), "half a minute, one token");
    assert!(is_refused(&ask("a", 30_000).verdict));
}

#[test]
fn what_is_left_of_the_tightest_limit_is_told_with_the_response() {
    let kept = Kept::new();
    let config = json!({ "limits": [
        { "name": "all", "key": "tenant", "requests": 1000, "per_seconds": 1 },
        { "name": "each", "key": "address", "requests": 10, "per_seconds": 3600, "burst": 20 },
        { "name": "wide", "key": "tenant", "requests": 1000, "per_seconds": 1 },
    ]});
    let request = Call::get("/").config(config.clone()).kept(&kept).run::<RateLimit>();
    let response =
        Call::get("/").config(config).context(request.context.unwrap()).run_response::<RateLimit>();
    let told = |name: &str| String::from_utf8(response.head.get(name).unwrap()).unwrap();
    assert_eq!(told("ratelimit"), "\"each\";r=19");
    assert_eq!(told("ratelimit-policy"), "\"all\";q=1000;w=1, \"each\";q=20;w=7200, \"wide\";q=1000;w=1");
}

#[test]
fn nothing_is_told_where_the_configuration_says_so() {
    let kept = Kept::new();
    let config = json!({ "limits": [{ "name": "all", "key": "tenant", "requests": 1, "per_seconds": 1 }], "tell": false });
    let ask = || Call::get("/").config(config.clone()).kept(&kept).run::<RateLimit>();
    assert_eq!(ask().context, None);
    let refused = ask();
    let told =
        ["retry-after", "ratelimit", "ratelimit-policy"].map(|name| refused.answer().header(name).is_some());
    assert_eq!(told, [true, false, false]);
}

#[test]
fn a_request_with_two_keys_is_refused() {
    let config = json!({ "limits": [{ "name": "keys", "key": { "header": "x-key" }, "requests": 1, "per_seconds": 1 }] });
    let call = Call::get("/").config(config).header("x-key", "own").header("x-key", "another's");
    assert_eq!(call.run::<RateLimit>().answer().status(), 400);
}

#[test]
fn without_a_bucket_requests_are_refused_unless_they_should_pass() {
    for (on_trouble, refused) in [
        (json!({ "on_trouble": "pass" }), false),
        (json!({ "on_trouble": "refuse" }), true),
        (json!({}), true),
    ] {
        let mut config = on_trouble.clone();
        config["limits"] = json!([{ "name": "all", "key": "tenant", "requests": 1, "per_seconds": 1 }]);
        let outcome = Call::get("/").config(config).kept(&Kept::new().full()).run::<RateLimit>();
        assert_eq!((is_refused(&outcome.verdict), outcome.log.len()), (refused, 1), "{on_trouble}");
    }
}

#[test]
fn a_head_that_takes_nothing_more_is_told_in_the_log() {
    let config = json!({ "limits": [{ "name": "all", "key": "tenant", "requests": 1, "per_seconds": 1 }] });
    let full =
        (0..100).fold(Call::get("/").config(config), |call, n| call.response_header(&format!("x-{n}"), "1"));
    assert_eq!(full.context(b"\"all\";r=1").run_response::<RateLimit>().log.len(), 1);
}

#[test]
fn a_client_is_the_peer_or_whom_trusted_proxies_name() {
    let of = |call: Call, trusted: &[&str]| key(json!("address"), call, trusted).unwrap();
    let named = |peer: &str, lines: &[&str]| {
        lines.iter().fold(from(peer), |call, line| call.header("x-forwarded-for", line))
    };
    let proxies = ["10.0.0.0/8", "fd00::/8"];
    for (call, client) in [
        (named("203.0.113.7", &["192.0.2.1"]), "a203.0.113.7"),
        (named("10.0.0.1", &["192.0.2.1"]), "a192.0.2.1"),
        (named("10.0.0.1", &["198.51.100.9, 192.0.2.1, 10.2.2.2"]), "a192.0.2.1"),
        (named("10.0.0.1", &["198.51.100.9", "192.0.2.1"]), "a192.0.2.1"),
        (named("10.0.0.1", &["192.0.2.1, unknown, 10.9.9.9"]), "a10.9.9.9"),
        (named("10.0.0.1", &["10.3.3.3"]), "a10.3.3.3"),
        (named("10.0.0.1", &[]), "a10.0.0.1"),
        (named("fd00::1", &["2001:db8:1:2:aaaa::1"]), "a2001:db8:1:2::"),
        (named("::ffff:203.0.113.7", &[]), "a203.0.113.7"),
        (named("unix:", &["192.0.2.1"]), "aunix:"),
    ] {
        assert_eq!(of(call, &proxies), client);
    }
    assert_eq!(of(named("10.0.0.1", &["192.0.2.1"]), &[]), "a10.0.0.1", "nobody is trusted by default");
    let long = format!("192.0.2.1{}", ", 10.5.5.5".repeat(5000));
    assert_eq!(of(named("10.0.0.1", &[&long]), &proxies), "a10.5.5.5", "a list has an end");
}

#[test]
fn a_request_without_the_header_is_not_counted_by_it() {
    assert_eq!(key(json!({ "header": "x-key" }), Call::get("/"), &[]), None);
    assert_eq!(key(json!("tenant"), Call::get("/"), &[]).unwrap(), "t");
}

proptest::proptest! {
    #[test]
    fn a_key_is_short_whatever_a_client_sends(value in proptest::collection::vec(0_u8.., 0..300)) {
        let key = key(json!({ "header": "x-key" }), Call::get("/").header("x-key", &value), &[]).unwrap();
        proptest::prop_assert!(key.len() + 32 <= 256, "{}", key);
        let call = from("10.0.0.1").header("x-forwarded-for", &value);
        let client = super::tests::key(json!("address"), call, &["0.0.0.0/0", "::/0"]).unwrap();
        proptest::prop_assert!(client.len() < 50, "{}", client);
    }

    #[test]
    fn values_that_differ_have_keys_that_differ(a in "[ -~]{0,80}", b in "[ -~]{0,80}") {
        let of = |value: &str| key(json!({ "header": "x-key" }), Call::get("/").header("x-key", value), &[]);
        proptest::prop_assert_eq!(of(&a) == of(&b), a == b);
    }
}

use beamline_sdk::testing::Call;
use serde_json::json;

use super::Cors;
use crate::origin::OriginPattern;

const CASES: &str = include_str!("../cases.json");

#[test]
fn cases_come_out_as_they_say() {
    beamline_sdk::testing::run_cases::<Cors>(CASES);
    beamline_sdk::testing::run_response_cases::<Cors>(CASES);
}

#[test]
fn a_pattern_holds_hosts_below_it_and_nothing_like_them() {
    for (pattern, origin, holds) in [
        ("https://app.test", "https://app.test", true),
        ("https://app.test", "http://app.test", false),
        ("https://app.test", "https://app.test.evil.test", false),
        ("https://app.test", "https://evilapp.test", false),
        ("https://app.test", "https://app.test:8443", false),
        ("https://app.test:8443", "https://app.test:8443", true),
        ("https://*.app.test", "https://a.b.app.test", true),
        ("https://*.app.test", "https://app.test", false),
        ("https://*.app.test", "https://.app.test", false),
        ("https://*.app.test", "https://evilapp.test", false),
        ("https://*.app.test", "https://evil.test/.app.test", false),
        ("https://*.app.test", "https://evil.test#.app.test", false),
        ("https://*.app.test", "https://evil@a.app.test", false),
        ("https://*.app.test", "https://A.app.test", false),
        ("http://[::1]:3000", "http://[::1]:3000", true),
        ("https://app.test", "null", false),
        ("https://app.test", "https://", false),
    ] {
        let found = OriginPattern::parse(pattern).unwrap().holds(origin.as_bytes());
        assert_eq!(found, holds, "{origin} by {pattern}");
    }
}

#[test]
fn what_is_no_origin_is_not_allowed_one() {
    for text in [
        "",
        "app.test",
        "https://",
        "https://App.test",
        "https://app.test/",
        "https://*.test",
        "https://*",
        "null",
        "https://*.*.app.test",
        "https://*..app.test",
        "https://.app.test",
    ] {
        assert!(OriginPattern::parse(text).is_err(), "{text}");
    }
}

#[test]
fn a_head_that_takes_nothing_more_is_told_in_the_log() {
    let config = json!({ "origins": ["https://app.test"] });
    let full =
        (0..100).fold(Call::get("/").config(config), |call, n| call.response_header(&format!("x-{n}"), "1"));
    assert_eq!(full.run_response::<Cors>().log.len(), 1);
}

proptest::proptest! {
    #[test]
    fn nothing_but_an_allowed_origin_is_repeated(origin in "(https?://)?[ -~]{0,12}(app\\.test)?") {
        let config = json!({ "origins": ["https://*.app.test", "http://app.test"] });
        let outcome = Call::get("/").config(config).header("origin", &origin).run_response::<Cors>();
        let told = outcome.head.get("access-control-allow-origin");
        let host = origin.strip_prefix("https://").and_then(|host| host.strip_suffix(".app.test"));
        let plain = |host: &str| {
            !host.is_empty() && host.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._:[]".contains(&b))
        };
        let allowed = host.is_some_and(plain) || origin == "http://app.test";
        proptest::prop_assert_eq!(told, allowed.then(|| origin.into_bytes()));
    }
}

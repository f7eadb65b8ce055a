use beamline_sdk::{Verdict, testing::Call};
use serde_json::json;

use super::AbSplit;
use crate::config::Config;

const CASES: &str = include_str!("../cases.json");

#[test]
fn cases_come_out_as_they_say() {
    beamline_sdk::testing::run_cases::<AbSplit>(CASES);
    beamline_sdk::testing::run_response_cases::<AbSplit>(CASES);
}

#[test]
fn shares_are_as_the_weights_say() {
    let config: Config = serde_json::from_value(json!({
        "variants": [{ "name": "a", "weight": 3 }, { "name": "none", "weight": 0 }, { "name": "b" }]
    }))
    .unwrap();
    let dealt: Vec<_> =
        (0..config.variants.sum()).map(|point| config.variants.at(point).name.as_str()).collect();
    assert_eq!(dealt, ["a", "a", "a", "b"]);
}

#[test]
fn a_client_that_was_dealt_a_variant_keeps_it() {
    let config =
        json!({ "variants": [{ "name": "a", "upstream": "one" }, { "name": "b", "upstream": "two" }] });
    let first = Call::get("/").config(config.clone()).random(u64::MAX).run::<AbSplit>();
    assert_eq!(first.verdict, Verdict::route("two").into());
    let response =
        Call::get("/").config(config.clone()).context(first.context.unwrap()).run_response::<AbSplit>();
    let set = String::from_utf8(response.head.get("set-cookie").unwrap()).unwrap();
    let (pair, attributes) = set.split_once(';').unwrap();
    assert_eq!((pair, attributes), ("ab=b", " Path=/; Max-Age=2592000; HttpOnly; SameSite=Lax; Secure"));
    let again = Call::get("/").config(config).header("cookie", pair).random(0).run::<AbSplit>();
    assert_eq!((again.verdict, again.context), (Verdict::route("two").into(), None));
}

#[test]
fn a_head_that_takes_nothing_more_is_told_in_the_log() {
    let config = json!({ "variants": [{ "name": "a" }], "header": "x-variant" });
    let full =
        (0..100).fold(Call::get("/").config(config.clone()), |call, n| call.header(&format!("x-{n}"), "1"));
    let request = full.run::<AbSplit>();
    assert_eq!((request.verdict, request.log.len()), (Verdict::next(), 1));
    let full =
        (0..100).fold(Call::get("/").config(config), |call, n| call.response_header(&format!("x-{n}"), "1"));
    assert_eq!(full.run_response::<AbSplit>().log.len(), 1);
}

#[test]
fn what_a_client_says_of_its_variant_goes_even_where_a_head_is_full() {
    let config = json!({ "variants": [{ "name": "a" }], "header": "x-variant" });
    let full = (0..99).fold(Call::get("/").config(config), |call, n| call.header(&format!("x-{n}"), "1"));
    let outcome = full.header("x-variant", "forged").run::<AbSplit>();
    assert_eq!((outcome.head.get("x-variant").as_deref(), outcome.log.len()), (Some(&b"a"[..]), 0));
}

proptest::proptest! {
    #[test]
    fn no_cookie_of_a_client_reaches_the_response(cookie in "[ -~]{0,40}", name in "(ab=|ab=x)?[a-z;= ]{0,9}") {
        let config = json!({ "variants": [{ "name": "a" }, { "name": "b" }] });
        let call = Call::get("/").config(config.clone()).header("cookie", &cookie).header("cookie", &name);
        let dealt = call.run::<AbSplit>().context;
        proptest::prop_assert!(dealt.as_deref().is_none_or(|name| name == b"a" || name == b"b"));
        let response = Call::get("/").config(config).context(name.into_bytes()).run_response::<AbSplit>();
        let set = response.head.get("set-cookie");
        proptest::prop_assert!(set.is_none_or(|set| set.starts_with(b"ab=a; ") || set.starts_with(b"ab=b; ")));
    }
}

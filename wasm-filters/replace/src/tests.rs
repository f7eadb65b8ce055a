use beamline_sdk::testing::Call;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const CASES: &str = include_str!("../cases.json");

#[test]
fn cases_come_out_as_they_say() {
    beamline_sdk::testing::run_cases::<Replace>(CASES);
    beamline_sdk::testing::run_response_cases::<Replace>(CASES);
}

/// What goes on of a body that comes in these chunks.
fn streamed(rules: &Value, chunks: &[&[u8]]) -> Vec<u8> {
    let call = Call::get("/").config(json!({ "rules": rules })).context(YES);
    call.run_response_body::<Replace>(chunks).body
}

fn rules(pairs: &[(&str, &str)]) -> Value {
    pairs.iter().map(|(find, replace)| json!({ "find": find, "replace": replace })).collect()
}

#[test]
fn a_text_is_replaced_wherever_a_body_is_cut() {
    let rules = rules(&[("http://old.test", "https://new.test"), ("old", "new")]);
    let body = b"<a href='http://old.test/old'>old http://old.tes</a>htthttp://old.test";
    let expected = b"<a href='https://new.test/new'>new http://new.tes</a>htthttps://new.test";
    for cut in 0..=body.len() {
        let (one, two) = body.split_at(cut);
        assert_eq!(streamed(&rules, &[one, two]), expected, "cut at {cut}");
    }
    let bytes: Vec<_> = body.chunks(1).chain([&b""[..]]).collect();
    assert_eq!(streamed(&rules, &bytes), expected);
}

#[test]
fn at_each_place_the_first_rule_that_fits_counts() {
    for (pairs, body, expected) in [
        (&[("ab", "1"), ("abc", "2")][..], "abcab", "1c1"),
        (&[("abc", "2"), ("ab", "1")], "abcab", "21"),
        (&[("a", "aa")], "aaa", "aaaaaa"),
        (&[("aa", "b")], "aaa", "ba"),
        (&[("ab", ""), ("b", "c")], "aabb", "ac"),
        (&[("xyz", "1")], "xy", "xy"),
    ] {
        for cut in 0..=body.len() {
            let (one, two) = body.as_bytes().split_at(cut);
            let found = String::from_utf8(streamed(&rules(pairs), &[one, two])).unwrap();
            assert_eq!(found, expected, "{body} cut at {cut}");
        }
    }
}

#[test]
fn what_has_nothing_to_replace_goes_on_as_it_is() {
    let config = json!({ "rules": rules(&[("old", "new")]) });
    for context in [&b""[..], b"n"] {
        let call = Call::get("/").config(config.clone()).context(context);
        assert_eq!(call.run_response_body::<Replace>(&[b"old"]).body, b"old");
    }
}

#[test]
fn heads_that_take_nothing_are_told_in_the_log() {
    let config = json!({ "rules": rules(&[("old", "new")]) });
    let full =
        (0..100).fold(Call::get("/").config(config.clone()), |call, n| call.header(&format!("x-{n}"), "1"));
    assert_eq!(full.run::<Replace>().log.len(), 1);
    let etag = Call::get("/")
        .config(config)
        .response_header("content-type", "text/html")
        .response_header("etag", b"\"\x01\"");
    let outcome = etag.run_response::<Replace>();
    assert_eq!((outcome.log.len(), outcome.context), (1, None));
}

/// The same, the plain way: the whole body at once, byte by byte.
fn whole(pairs: &[(String, String)], body: &[u8]) -> Vec<u8> {
    let (mut on, mut at) = (Vec::new(), 0);
    while at < body.len() {
        match pairs.iter().find(|(find, _)| body[at..].starts_with(find.as_bytes())) {
            Some((find, replace)) => {
                on.extend_from_slice(replace.as_bytes());
                at += find.len();
            }
            None => {
                on.push(body[at]);
                at += 1;
            }
        }
    }
    on
}

proptest! {
    #[test]
    fn however_a_body_is_cut_it_comes_out_as_if_it_were_whole(
        pairs in prop::collection::vec(("[ab]{1,4}", "[abc]{0,6}"), 1..4),
        body in "[abc]{0,40}",
        cuts in prop::collection::vec(0_usize..41, 0..8),
    ) {
        let mut cuts: Vec<_> = cuts.into_iter().filter(|cut| *cut <= body.len()).collect();
        cuts.sort_unstable();
        let (mut chunks, mut from) = (Vec::new(), 0);
        for cut in cuts {
            chunks.push(&body.as_bytes()[from..cut]);
            from = cut;
        }
        chunks.push(&body.as_bytes()[from..]);
        let rules: Value = pairs.iter().map(|(find, replace)| json!({ "find": find, "replace": replace })).collect();
        prop_assert_eq!(streamed(&rules, &chunks), whole(&pairs, body.as_bytes()));
    }
}

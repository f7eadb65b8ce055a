use serde_json::Value;

use super::*;
use crate::{
    find::{Found, NotJson, find},
    pointer::Pointer,
    scalar::Scalar,
};

const CASES: &str = include_str!("../cases.json");

#[test]
fn cases_come_out_as_they_say() {
    beamline_sdk::testing::run_cases::<JsonRouter>(CASES);
    beamline_sdk::testing::run_whole_request_cases::<JsonRouter>(CASES);
}

fn at(pointer: &str, json: &str) -> Result<Found, NotJson> {
    find(json.as_bytes(), &Pointer::try_from(pointer.to_owned()).unwrap())
}

#[test]
fn the_examples_of_the_rfc_come_out() {
    // RFC 6901, section 5.
    let json = r#"{"foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4, "i\\j": 5, "k\"l": 6, " ": 7, "m~n": 8}"#;
    for (pointer, found) in [
        ("/foo", Found::Other),
        ("/foo/0", Found::Scalar(Scalar::Text("bar".into()))),
        ("/", Found::Scalar(Scalar::Whole(0))),
        ("/a~1b", Found::Scalar(Scalar::Whole(1))),
        ("/c%d", Found::Scalar(Scalar::Whole(2))),
        ("/e^f", Found::Scalar(Scalar::Whole(3))),
        ("/g|h", Found::Scalar(Scalar::Whole(4))),
        ("/i\\j", Found::Scalar(Scalar::Whole(5))),
        ("/k\"l", Found::Scalar(Scalar::Whole(6))),
        ("/ ", Found::Scalar(Scalar::Whole(7))),
        ("/m~0n", Found::Scalar(Scalar::Whole(8))),
        ("/foo/-", Found::Nothing),
        ("/foo/00", Found::Nothing),
        ("/foo/+1", Found::Nothing),
        ("/foo/2", Found::Nothing),
        ("/foo/0/x", Found::Nothing),
    ] {
        assert_eq!(at(pointer, json), Ok(found), "{pointer}");
    }
}

#[test]
fn every_kind_of_value_is_found_where_the_pointer_ends_and_nowhere_else() {
    for (json, found) in [
        ("1", Found::Scalar(Scalar::Whole(1))),
        ("-1", Found::Scalar(Scalar::Whole(-1))),
        ("1.5", Found::Scalar(Scalar::Fraction(1.5))),
        ("true", Found::Scalar(Scalar::Boolean(true))),
        ("null", Found::Other),
        ("{\"x\": [{}]}", Found::Other),
        ("[[], 1]", Found::Other),
    ] {
        assert_eq!(at("/a", &format!("{{\"a\": {json}}}")), Ok(found), "{json}");
        assert_eq!(at("/a/b", &format!("{{\"a\": {json}}}")), Ok(Found::Nothing), "{json}");
        assert_eq!(at("/a", json), Ok(Found::Nothing), "{json}");
    }
}

#[test]
fn numbers_are_compared_by_value() {
    let (one, large) = (Scalar::Whole(1), Scalar::Whole(9_007_199_254_740_993));
    assert_eq!(one, Scalar::Fraction(1.0));
    assert_eq!(Scalar::Fraction(1.0), one);
    assert_eq!(Scalar::Fraction(0.5), Scalar::Fraction(0.5));
    assert_ne!(large, Scalar::Whole(9_007_199_254_740_992));
    assert_ne!(one, Scalar::Text("1".into()));
    assert_ne!(Scalar::Boolean(true), one);
}

#[test]
fn a_body_may_be_deep() {
    let deep = format!("{{\"x\": {}{}, \"kind\": \"a\"}}", "[".repeat(400_000), "]".repeat(400_000));
    assert_eq!(at("/kind", &deep), Ok(Found::Scalar(Scalar::Text("a".into()))));
}

#[test]
fn what_two_readers_may_read_differently_is_no_json() {
    for json in [
        "",
        "{",
        "{\"kind\": \"a\"",
        "{\"kind\": \"a\"} x",
        "{\"kind\": \"a\", \"kind\": \"b\"}",
        "{\"kind\": \"a\", \"\\u006bind\": \"b\"}",
        "{\"x\": 01, \"kind\": \"a\"}",
        "{'kind': 'a'}",
        "\u{feff}{\"kind\": \"a\"}",
        "{\"kind\": \"a\",}",
        "{\"kind\": \"\\ud800\"}",
        "NaN",
    ] {
        assert_eq!(at("/kind", json), Err(NotJson), "{json}");
    }
    assert_eq!(at("/kind/x", "{\"kind\": {\"x\": 1, \"x\": 2}}"), Err(NotJson));
    assert_eq!(
        at("/kind", "{\"x\": 1, \"x\": 2}"),
        Ok(Found::Nothing),
        "what does not decide is the upstream's affair"
    );
}

proptest::proptest! {
    #[test]
    fn it_finds_what_serde_json_finds(
        json in "(\\{\"a\": ?)?(\\[|\\{\"b\": ?)?(1|-2|0\\.5|\"x\"|null|true|[ -~]{0,5})(, ?\"c\": ?3)?[\\]\\}]{0,3}",
        pointer in "(/[abc01~]){1,3}",
    ) {
        let Ok(read) = Pointer::try_from(pointer.clone()) else {
            return Ok(());
        };
        match (find(json.as_bytes(), &read), serde_json::from_str::<Value>(&json)) {
            (Ok(found), Ok(value)) => {
                let there = value.pointer(&pointer);
                proptest::prop_assert_eq!(found == Found::Nothing, there.is_none());
                if let Found::Scalar(scalar) = found {
                    proptest::prop_assert_eq!(scalar, serde_json::from_value(there.unwrap().clone()).unwrap());
                }
            }
            (found, value) => proptest::prop_assert_eq!(found.is_err(), value.is_err()),
        }
    }
}

use beamline_sdk::{Verdict, testing::Call};
use serde_json::json;

use super::Rewrite;

#[test]
fn cases_come_out_as_they_say() {
    beamline_sdk::testing::run_cases::<Rewrite>(include_str!("../cases.json"));
}

/// Where a path leads by a rule with this `to`, as a redirect.
fn location(to: &str, path: &str) -> Option<String> {
    let config = json!({ "rules": [{ "pattern": "/go/{a}/{b}", "to": to, "redirect": 302 }] });
    let outcome = Call::get(path).config(config).run::<Rewrite>();
    if outcome.verdict == Verdict::Next {
        return None;
    }
    Some(outcome.answer().header("location")?.to_str().unwrap().to_owned())
}

#[test]
fn a_redirect_names_what_was_captured() {
    assert_eq!(location("/to/{b}/{a}", "/go/1/2?q").unwrap(), "/to/2/1?q");
    assert_eq!(location("/to/{b}/{a}", "/go/1"), None);
}

#[test]
fn a_client_sets_no_parameter_that_the_rule_sets() {
    let asked = |query: &str| location("/x?user={a}&a_b=1", &format!("/go/me/2?{query}")).unwrap();
    for query in [
        "user=victim",
        "user",
        "us%65r=victim",
        "%55ser=victim",
        "USER=victim",
        "user[]=victim",
        "user%5B%5D=victim",
        "user%00=victim",
        "+user=victim",
        "x=1;user=victim",
        "a.b=2",
        "a+b=2",
        "user=1&user=2",
        "",
        "&",
    ] {
        assert_eq!(asked(query), "/x?user=me&a_b=1", "{query}");
    }
    for query in [
        "page=2",
        "users=1",
        "xuser=1",
        "us%65=1",
        "user%=1",
        "user%zz=1",
        "a=user",
        "[user]=1",
        "p=%5B%5D&q",
    ] {
        assert_eq!(asked(query), format!("/x?user=me&a_b=1&{query}"));
        assert_eq!(asked(&format!("user=a&{query}&user=b")), format!("/x?user=me&a_b=1&{query}"));
    }
    assert_eq!(
        location("/x", "/go/1/2?a&&b=;").unwrap(),
        "/x?a&&b=;",
        "a query beside none is left as it is"
    );
    let named = json!({ "rules": [{ "pattern": "/go/{a}", "to": "/x?{a}=1", "redirect": 302 }] });
    let named = Call::get("/go/user?user=2").config(named).run::<Rewrite>();
    assert_eq!(named.answer().header("location").unwrap(), "/x?user=1");
}

proptest::proptest! {
    #[test]
    fn no_path_of_a_client_names_another_host(a in "[!-.0-~]{1,12}", b in "[!-.0-~]{1,12}") {
        let path = format!("/go/{a}/{b}").replace(['?', '#'], "");
        for to in ["/{a}/{b}", "/{a}{b}", "//{a}"] {
            if let Some(location) = location(to, &path) {
                proptest::prop_assert!(location.starts_with('/'), "{}", location);
                proptest::prop_assert!(!location[1..].starts_with(['/', '\\']), "{}", location);
            }
        }
        if let Some(location) = location("https://new.test/{a}/{b}", &path) {
            proptest::prop_assert!(location.starts_with("https://new.test/"), "{}", location);
        }
    }

    #[test]
    fn no_path_of_a_client_adds_a_parameter(a in "[!-.0-~]{1,12}", b in "[!-.0-~]{1,12}") {
        let path = format!("/go/{a}/{b}").replace(['?', '#'], "");
        if let Some(location) = location("/x?a={a}&b={b}", &path) {
            let query = location.split_once('?').unwrap().1;
            proptest::prop_assert_eq!(query.split(['&', ';']).count(), 2, "{}", location);
            proptest::prop_assert_eq!(query.matches('=').count(), 2, "{}", location);
        }
    }
}

use base64ct::{Base64, Encoding};
use beamline_sdk::testing::{Call, Head, Outcome};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use super::*;

const CASES: &str = include_str!("../cases.json");
const KEY: &str = "sixteen bytes are the least";

#[test]
fn cases_come_out_as_they_say() {
    beamline_sdk::testing::run_cases::<Sign>(CASES);
    beamline_sdk::testing::run_whole_request_cases::<Sign>(CASES);
}

fn call(target: &str, more: Value) -> Call {
    let mut config = json!({ "secret": "key", "key_id": "k1" });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Call::new("POST", target).config(config).secret("key", KEY).now_ms(784_111_777_000)
}

fn field(head: &Head, name: &str) -> Option<String> {
    head.get(name).map(|value| String::from_utf8(value).unwrap())
}

/// Whether a request's signature is that of these lines, as an origin would see it: written on its own, by RFC 9421.
fn holds(outcome: &Outcome, lines: &[(&str, &str)], label: &str) -> bool {
    let input = field(&outcome.head, "signature-input").unwrap();
    let parameters = input.strip_prefix(&format!("{label}=")).unwrap();
    let names: Vec<_> = lines.iter().map(|(name, _)| format!("\"{name}\"")).collect();
    assert!(parameters.starts_with(&format!("({})", names.join(" "))), "{parameters}");
    let mut base: String = lines.iter().map(|(name, value)| format!("\"{name}\": {value}\n")).collect();
    base.push_str(&format!("\"@signature-params\": {parameters}"));
    let signature = field(&outcome.head, "signature").unwrap();
    let signature =
        signature.strip_prefix(&format!("{label}=:")).unwrap().strip_suffix(':').unwrap().to_owned();
    let mut mac = Hmac::<Sha256>::new_from_slice(KEY.as_bytes()).unwrap();
    mac.update(base.as_bytes());
    mac.verify_slice(&Base64::decode_vec(&signature).unwrap()).is_ok()
}

#[test]
fn a_signature_is_over_all_that_it_names() {
    let call = call("/orders?page=2", json!({ "fields": ["Content-Type", "x-none", "x-two"], "date": true }))
        .header("content-type", " application/json ")
        .header("x-two", "1")
        .header("x-two", "2")
        .header("host", "EXAMPLE.test:80")
        .header("signature", "evil=:AAAA:")
        .header("content-digest", "sha-256=:AAAA:")
        .header("date", "yesterday")
        .body("{\"hello\": \"world\"}");
    let outcome = call.run_whole_request::<Sign>();
    // RFC 9530, appendix D: the digest of this body.
    let digest = "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:";
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    let lines = [
        ("@method", "POST"),
        ("@authority", "example.test"),
        ("@path", "/orders"),
        ("@query", "?page=2"),
        ("content-digest", digest),
        ("date", date),
        ("content-type", "application/json"),
        ("x-two", "1, 2"),
    ];
    assert!(holds(&outcome, &lines, "beamline"));
    assert_eq!(field(&outcome.head, "content-digest").unwrap(), digest);
    assert_eq!(field(&outcome.head, "date").unwrap(), date);
    let input = field(&outcome.head, "signature-input").unwrap();
    let parameters = ";created=784111777;nonce=\"0\";keyid=\"k1\";alg=\"hmac-sha256\"";
    assert!(input.ends_with(parameters), "{input}");
    for changed in 0..lines.len() {
        let mut lines = lines;
        lines[changed].1 = "changed";
        assert!(!holds(&outcome, &lines, "beamline"), "line {changed}");
    }
}

#[test]
fn the_example_of_the_rfc_comes_out() {
    // RFC 9421, appendix B.2.5: the base and the key, and the signature that they make.
    let key = "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ==";
    let base = "\"date\": Tue, 20 Apr 2021 02:07:55 GMT\n\"@authority\": example.com\n\"content-type\": application/json\n\
                \"@signature-params\": (\"date\" \"@authority\" \"content-type\");created=1618884473;keyid=\"test-shared-secret\"";
    let base = Base::from_lines(base);
    assert_eq!(
        base.signed_by(&Base64::decode_vec(key).unwrap()),
        "pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8="
    );
}

#[test]
fn without_a_digest_the_body_is_not_read() {
    let call = call("/", json!({ "digest": false, "nonce": false, "label": "sig1" }));
    let outcome = call.header("content-digest", "sha-256=:AAAA:").run::<Sign>();
    assert_eq!(outcome.verdict, Verdict::next());
    let lines = [("@method", "POST"), ("@authority", "example.test"), ("@path", "/"), ("@query", "?")];
    assert!(holds(&outcome, &lines, "sig1"));
    assert_eq!(field(&outcome.head, "content-digest"), None, "a client's own would pass for a signed one");
}

#[test]
fn what_the_proxy_changes_later_is_not_signed() {
    for name in [
        "x-request-id",
        "x-forwarded-host",
        "x-forwarded-proto",
        "tracestate",
        "baggage",
        "te",
        "expect",
        "upgrade",
        "keep-alive",
        "proxy",
        "proxy-connection",
        "proxy-authorization",
        "prefer",
        "trailer",
        "beamline-attempt",
        "Nats-Msg-Id",
        "x_request_id",
    ] {
        let config = json!({ "secret": "key", "key_id": "k1", "fields": [name] });
        let problem = serde_json::from_value::<Config>(config).err().expect(name).to_string();
        assert!(problem.contains("the proxy sets or removes"), "{problem}");
    }
}

#[test]
fn without_a_key_nothing_is_sent() {
    for key in ["", "fifteen bytes !"] {
        let outcome = call("/", json!({})).secret("key", key).run_whole_request::<Sign>();
        assert!(matches!(&outcome.verdict, Verdict::Respond(_)), "{key}");
        assert_eq!((field(&outcome.head, "signature"), outcome.log.len()), (None, 1));
    }
}

#[test]
fn a_field_that_cannot_be_signed_is_the_clients_mistake() {
    let outcome =
        call("/", json!({ "fields": ["x-a"] })).header("x-a", b"caf\xe9").run_whole_request::<Sign>();
    assert_eq!(outcome.answer().status(), 400);
    let text = call("/", json!({ "fields": ["x-a"] })).header("x-a", "caf\u{e9}").run_whole_request::<Sign>();
    assert_eq!(text.answer().status(), 400);
}

#[test]
fn a_head_that_takes_nothing_more_is_refused() {
    for digest in [false, true] {
        let full = (0..100)
            .fold(call("/", json!({ "digest": digest })), |call, n| call.header(&format!("x-{n}"), "1"));
        let outcome = if digest { full.run_whole_request::<Sign>() } else { full.run::<Sign>() };
        assert_eq!(outcome.answer().status(), 503);
    }
}

#[test]
fn dates_are_those_of_the_calendar() {
    for (seconds, date) in [
        (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
        (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
        (951_868_799, "Tue, 29 Feb 2000 23:59:59 GMT"),
        (951_868_800, "Wed, 01 Mar 2000 00:00:00 GMT"),
        (1_735_689_599, "Tue, 31 Dec 2024 23:59:59 GMT"),
        (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
    ] {
        assert_eq!(date::imf_fixdate(seconds), date);
    }
}

proptest::proptest! {
    #[test]
    fn the_base_has_one_line_for_each_field_whatever_stands_in_it(a in "[ -~]{0,12}", b in "[ -~]{0,12}") {
        let outcome = call("/", json!({ "fields": ["x-a", "x-b"], "digest": false }))
            .header("x-a", &a)
            .header("x-b", &b)
            .run::<Sign>();
        let lines = [
            ("@method", "POST"), ("@authority", "example.test"), ("@path", "/"), ("@query", "?"),
            ("x-a", a.trim()), ("x-b", b.trim()),
        ];
        proptest::prop_assert!(holds(&outcome, &lines, "beamline"));
    }
}

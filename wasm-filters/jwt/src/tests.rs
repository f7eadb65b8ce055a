use beamline_sdk::{
    Verdict,
    outbound::OutboundError,
    testing::{Call, Kept, Outcome},
};
use ed25519_dalek::{Signer, SigningKey};
use serde_json::{Value, json};

use super::*;

const URL: &str = "http://issuer.test/keys";
/// In 2025.
const NOW: u64 = 1_750_000_000;

#[test]
fn cases_come_out_as_they_say() {
    beamline_sdk::testing::run_cases::<Jwt>(include_str!("../cases.json"));
}

/// Keys and tokens that were made by another implementation.
fn made(name: &str) -> Value {
    serde_json::from_str::<Value>(include_str!("../tokens.json")).unwrap()[name].take()
}

fn made_token(name: &str) -> String {
    made("tokens")[name].as_str().unwrap_or_else(|| panic!("no token {name}")).to_owned()
}

fn base64url(bytes: impl AsRef<[u8]>) -> String {
    use base64ct::{Base64UrlUnpadded, Encoding};
    Base64UrlUnpadded::encode_string(bytes.as_ref())
}

fn own_key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn own_jwk() -> Value {
    json!({ "kty": "OKP", "crv": "Ed25519", "kid": "own", "x": base64url(own_key().verifying_key()) })
}

/// A token with this header and these claims, as they are, signed by our own key.
fn signed(header: impl AsRef<[u8]>, claims: impl AsRef<[u8]>) -> String {
    let signed = [base64url(header), base64url(claims)].join(".");
    let signature = own_key().sign(signed.as_bytes());
    [signed, base64url(signature.to_bytes())].join(".")
}

fn with_claims(claims: &Value) -> String {
    signed(r#"{"alg":"EdDSA","kid":"own"}"#, claims.to_string())
}

fn claims() -> Value {
    json!({ "iss": "https://issuer.test", "aud": "shop", "sub": "alice", "exp": NOW + 600 })
}

/// A configuration with our own key, changed by these members.
fn config(more: Value) -> Value {
    let mut config = json!({ "issuer": "https://issuer.test", "audiences": ["shop"], "keys": [own_jwk()] });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

fn with_token(token: &str, config: Value) -> Call {
    Call::get("/").header("authorization", format!("Bearer {token}")).config(config).now_ms(NOW * 1000)
}

/// Why a call was refused, or nothing.
fn refused(outcome: &Outcome) -> Option<Refusal> {
    use Refusal::*;
    let all = [
        NoToken, Malformed, Algorithm, Critical, UnknownKey, Signature, Issuer, Audience, NoExpiry, Expired,
        NotYet, Field, NoKeys, Type,
    ];
    match &outcome.verdict {
        Verdict::Next => None,
        verdict => {
            Some(*all.iter().find(|refusal| &refusal.into_verdict() == verdict).expect("one of the refusals"))
        }
    }
}

#[track_caller]
fn assert_refused(token: &str, config: Value, expected: Option<Refusal>) {
    assert_eq!(refused(&with_token(token, config).run::<Jwt>()), expected, "{token}");
}

#[test]
fn tokens_of_another_implementation_pass_with_each_algorithm() {
    let keys = json!({ "keys": made("jwks")["keys"].as_array().unwrap()[..4] });
    for token in ["RS256", "RS256-4096", "ES256", "EdDSA", "without-kid"] {
        assert_refused(&made_token(token), config(keys.clone()), None);
    }
}

#[test]
fn forged_tokens_do_not_pass() {
    use Refusal::*;
    let keys = json!({ "keys": made("jwks")["keys"].as_array().unwrap()[..4] });
    for (token, why) in [
        ("none", Algorithm),
        ("HS256-with-the-public-key", Algorithm),
        ("RS256-by-another", Signature),
        ("ES256-says-RS256", UnknownKey),
        ("unknown-kid", UnknownKey),
        ("own-key", UnknownKey),
        ("crit", Critical),
        ("expired", Expired),
    ] {
        assert_refused(&made_token(token), config(keys.clone()), Some(why));
    }
    let mut es256 = keys.clone();
    es256["algorithms"] = json!(["ES256"]);
    assert_refused(&made_token("RS256"), config(es256.clone()), Some(Algorithm));
    assert_refused(&made_token("ES256"), config(es256), None);
}

#[test]
fn the_examples_of_the_rfcs_verify() {
    // RFC 7515, appendix A.3; RFC 8037, appendix A.4.
    let ec = json!({ "kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0" });
    let ed = json!({ "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" });
    for (key, token) in [
        (
            ec,
            "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.\
              DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
        ),
        (
            ed,
            "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.\
              hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
        ),
    ] {
        let key: jwk::Jwk = serde_json::from_value(key).unwrap();
        let token = Token::parse(token).unwrap();
        assert!(key.fits(&token) && key.has_signed(&token));
    }
}

#[test]
fn a_change_of_any_byte_is_found() {
    for name in ["RS256", "ES256", "EdDSA"] {
        let keys: jwk::JwkSet = serde_json::from_value(made("jwks")).unwrap();
        let token = made_token(name);
        for place in (0..token.len()).step_by(7) {
            let mut bytes = token.clone().into_bytes();
            bytes[place] = if bytes[place] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            let passes = Token::parse(&changed)
                .is_ok_and(|token| keys.keys.iter().any(|key| key.fits(&token) && key.has_signed(&token)));
            assert!(!passes, "{name}: byte {place}");
        }
    }
}

#[test]
fn claims_say_for_whom_and_when() {
    use Refusal::*;
    let with = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        with_claims(&claims)
    };
    let without = |name: &str| {
        let mut claims = claims();
        claims.as_object_mut().unwrap().remove(name);
        with_claims(&claims)
    };
    for (token, expected) in [
        (with("iss", json!("https://evil.test")), Some(Issuer)),
        (with("iss", json!(["https://issuer.test"])), Some(Issuer)),
        (without("iss"), Some(Issuer)),
        (with("aud", json!("other")), Some(Audience)),
        (with("aud", json!(["other", "shop"])), None),
        (with("aud", json!([["shop"], 1])), Some(Audience)),
        (with("aud", json!({ "shop": "shop" })), Some(Audience)),
        (without("aud"), Some(Audience)),
        (without("exp"), Some(NoExpiry)),
        (with("exp", json!("never")), Some(Malformed)),
        (with("exp", json!(NOW - 59)), None),
        (with("exp", json!(NOW - 60)), Some(Expired)),
        (with("exp", json!(NOW as f64 - 59.5)), None),
        (with("exp", json!(-1)), Some(Expired)),
        (with("nbf", json!(NOW + 60)), None),
        (with("nbf", json!(NOW + 61)), Some(NotYet)),
        (with("nbf", json!(null)), Some(Malformed)),
    ] {
        assert_refused(&token, config(json!({})), expected);
    }
    assert_refused(&without("exp"), config(json!({ "require_expiry": false })), None);
    assert_refused(&without("aud"), config(json!({ "audiences": [] })), None);
    assert_refused(&with("exp", json!(NOW)), config(json!({ "leeway_seconds": 0 })), Some(Expired));
    for payload in ["[]", "1", "", "{\"iss\":", "\u{feff}{}"] {
        assert_refused(&signed(r#"{"alg":"EdDSA"}"#, payload), config(json!({})), Some(Malformed));
    }
}

#[test]
fn what_is_no_token_is_refused() {
    let good = with_claims(&claims());
    let [header, payload, signature]: [&str; 3] = good.split('.').collect::<Vec<_>>().try_into().unwrap();
    for token in [
        "",
        "x",
        "a.b",
        &format!("{header}.{payload}"),
        &format!("{header}.{payload}.{signature}.x"),
        &format!("{header}.{payload}.{signature}="),
        &format!("{header}.{payload} .{signature}"),
        &format!("{header}.{payload}\n.{signature}"),
        &"a".repeat(9000),
        &signed("[]", "{}"),
        &signed(r#"{"kid":"own"}"#, "{}"),
        &signed(r#"{"alg":"EdDSA","alg":"EdDSA"}"#, "{}"),
        &signed(r#"{"alg":["EdDSA"]}"#, "{}"),
        &signed(r#"{"alg":"EdDSA","typ":1}"#, "{}"),
    ] {
        assert_refused(token, config(json!({})), Some(Refusal::Malformed));
    }
    let call = || Call::get("/").config(config(json!({}))).now_ms(NOW * 1000);
    assert_refused(
        &signed(r#"{"alg":"EdDSA","crit":null}"#, "{}"),
        config(json!({})),
        Some(Refusal::Critical),
    );
    let bearer = format!("bEaReR  {good}");
    for bearer in [&bearer, &format!(" Bearer\t{good} ")] {
        assert_eq!(refused(&call().header("authorization", bearer).run::<Jwt>()), None, "{bearer}");
    }
    let twice = call().header("authorization", &bearer).header("authorization", &bearer);
    assert_eq!(refused(&twice.run::<Jwt>()), Some(Refusal::Malformed));
    assert_eq!(
        refused(&call().header("authorization", b"Bearer \xff").run::<Jwt>()),
        Some(Refusal::Malformed)
    );
    for other in ["Basic YTpi", "Bearer", ""] {
        let found = refused(&call().header("authorization", other).run::<Jwt>());
        assert_eq!(
            found,
            Some(if other == "Bearer" { Refusal::Malformed } else { Refusal::NoToken }),
            "{other}"
        );
    }
}

#[test]
fn headers_that_are_deep_are_read_without_depth() {
    let deep = format!(r#"{{"alg":"EdDSA","x":{}{}}}"#, "[".repeat(2000), "]".repeat(2000));
    assert_refused(&signed(deep, claims().to_string()), config(json!({})), None);
}

#[test]
fn a_token_comes_in_a_cookie_where_the_configuration_says_so() {
    let call = |config| {
        Call::get("/")
            .header("cookie", format!("a=b; token={}", with_claims(&claims())))
            .config(config)
            .now_ms(NOW * 1000)
    };
    assert_eq!(refused(&call(config(json!({ "cookie": "token" }))).run::<Jwt>()), None);
    assert_eq!(refused(&call(config(json!({}))).run::<Jwt>()), Some(Refusal::NoToken));
    let none = Call::get("/").config(config(json!({ "cookie": "token" }))).run::<Jwt>();
    assert_eq!(refused(&none), Some(Refusal::NoToken));
}

#[test]
fn no_token_passes_unverified_where_requests_may_have_none() {
    let good = with_claims(&claims());
    let ask = |authorization: &str, cookies: &[&str]| {
        let mut call = Call::get("/").config(config(json!({ "cookie": "token", "optional": true })));
        if !authorization.is_empty() {
            call = call.header("authorization", authorization);
        }
        let call = cookies.iter().fold(call, |call, line| call.header("cookie", line));
        refused(&call.now_ms(NOW * 1000).run::<Jwt>())
    };
    let cookie = format!("token={good}");
    for (authorization, cookies) in [
        ("", &[][..]),
        ("Basic YTpi", &[]),
        ("Basic YTpi", &[&*cookie]),
        (&*format!("Bearer {good}"), &[&*cookie]),
        ("", &["atoken=forged; token", &cookie]),
        ("", &[&*cookie, &cookie]),
    ] {
        assert_eq!(ask(authorization, cookies), None, "{authorization} {cookies:?}");
    }
    for (authorization, cookies) in [
        ("Bearer\tforged", &[][..]),
        ("Bearer\u{b}forged", &[]),
        ("Basic YTpi", &["token=forged"]),
        (&*format!("Bearer {good}"), &["token=forged"]),
        ("Bearer forged", &[&*cookie]),
        ("", &[&*format!("{cookie}; token=forged")]),
        ("", &[&*cookie, "token=forged"]),
        ("", &[&*cookie, "token = forged"]),
        ("", &["token=\"forged\""]),
    ] {
        assert_eq!(ask(authorization, cookies), Some(Refusal::Malformed), "{authorization} {cookies:?}");
    }
    let bytes = Call::get("/").header("cookie", b"token=\xff").config(config(json!({ "cookie": "token" })));
    assert_eq!(refused(&bytes.run::<Jwt>()), Some(Refusal::Malformed));
}

#[test]
fn a_token_is_of_a_type_that_the_configuration_names() {
    let types = || config(json!({ "types": ["application/AT+jwt"] }));
    for (typ, expected) in [
        (r#","typ":"at+jwt""#, None),
        (r#","typ":"application/at+JWT""#, None),
        (r#","typ":"JWT""#, Some(Refusal::Type)),
        ("", Some(Refusal::Type)),
    ] {
        let token = signed(format!(r#"{{"alg":"EdDSA"{typ}}}"#), claims().to_string());
        assert_refused(&token, types(), expected);
        assert_refused(&token, config(json!({})), None);
    }
}

#[test]
fn claims_are_handed_on_in_fields_that_a_client_cannot_write() {
    let forward = json!({ "forward": [
        { "claim": "sub", "header": "x-user" }, { "claim": "scope", "header": "x-scope" }, { "claim": "age", "header": "x-age" },
        { "claim": "admin", "header": "x-admin" }, { "claim": "none", "header": "x-none" }, { "claim": "map", "header": "x-map" },
        { "claim": "odd", "header": "x_odd" },
    ], "strip": true });
    let mut claims = claims();
    claims.as_object_mut().unwrap().extend(
        json!({ "scope": ["read", "write"], "age": 7, "admin": false, "map": {}, "odd": [1] })
            .as_object()
            .unwrap()
            .clone(),
    );
    let mut call = with_token(&with_claims(&claims), config(forward.clone()));
    let aliases = ["X_User", "x-odd", "X_odd"];
    for name in ["x-user", "x-none", "x-map", "x-admin"].into_iter().chain(aliases) {
        call = call.header(name, "forged");
    }
    let outcome = call.run::<Jwt>();
    assert_eq!(refused(&outcome), None);
    let field = |name: &str| outcome.head.get(name).map(|value| String::from_utf8(value).unwrap());
    assert_eq!((field("x-user"), field("x-scope")), (Some("alice".into()), Some("read write".into())));
    assert_eq!((field("x-age"), field("x-admin")), (Some("7".into()), Some("false".into())));
    assert_eq!(
        (field("x-none"), field("x-map"), field("authorization"), aliases.map(field)),
        (None, None, None, [None, None, None])
    );

    let mut optional = forward;
    optional["optional"] = json!(true);
    let call = Call::get("/").header("x-user", "forged").header("authorization", "Basic YTpi");
    let passes = call.config(config(optional.clone())).run::<Jwt>();
    assert_eq!(refused(&passes), None);
    assert_eq!((passes.head.get("x-user"), passes.head.get("authorization")), (None, None));
    assert_refused("forged", config(optional), Some(Refusal::Malformed));
}

#[test]
fn a_claim_that_splits_a_field_is_refused() {
    let mut claims = claims();
    claims["sub"] = json!("alice\r\nx-admin: true");
    let forward = json!({ "forward": [{ "claim": "sub", "header": "x-user" }] });
    assert_refused(&with_claims(&claims), config(forward), Some(Refusal::Field));
}

#[test]
fn a_claim_that_its_reader_would_take_for_another_is_refused() {
    for (value, expected) in [
        (json!("a b"), None),
        (json!(["a", "b"]), None),
        (json!([]), None),
        (json!(" admin"), Some(Refusal::Field)),
        (json!("admin\t"), Some(Refusal::Field)),
        (json!("admin\u{a0}"), Some(Refusal::Field)),
        (json!(["user admin"]), Some(Refusal::Field)),
        (json!(["user", "\tadmin"]), Some(Refusal::Field)),
        (json!([""]), Some(Refusal::Field)),
    ] {
        let mut claims = claims();
        claims["role"] = value;
        let forward = json!({ "forward": [{ "claim": "role", "header": "x-role" }] });
        assert_refused(&with_claims(&claims), config(forward), expected);
    }
}

#[test]
fn keys_that_are_no_use_are_passed_over_in_a_set_and_refused_in_a_configuration() {
    let own = own_jwk();
    let changed = |name: &str, value: Value| {
        let mut key = own.clone();
        key[name] = value;
        key
    };
    let mut rsa = made("jwks")["keys"][0].clone();
    rsa["e"] = json!(base64url([1; 9]));
    for (key, problem) in [
        (changed("kty", json!("oct")), "expected kty RSA"),
        (changed("crv", json!("Ed448")), "expected kty RSA"),
        (changed("use", json!("enc")), "see its use, key_ops and alg"),
        (changed("alg", json!("ES256")), "see its use, key_ops and alg"),
        (changed("alg", json!("HS256")), "see its use, key_ops and alg"),
        (changed("key_ops", json!(["sign"])), "see its use, key_ops and alg"),
        (changed("x", json!("!")), "expected base64url"),
        (changed("x", json!("AAAA")), "expected x and y of 32 octets"),
        (changed("x", json!(null)), "expected n and e"),
        (made("small_key"), "expected an RSA key of 2048 to 4096 bits"),
        (rsa, "expected an RSA key of 2048 to 4096 bits"),
        (changed("kid", json!(7)), "expected a string"),
        (changed("key_ops", json!("verify")), "expected a sequence"),
        (json!("key"), "expected struct"),
    ] {
        let refused = serde_json::from_value::<jwk::Jwk>(key.clone()).unwrap_err().to_string();
        assert!(refused.contains(problem), "{key}: {refused}");
        let set: jwk::JwkSet = serde_json::from_value(json!({ "keys": [key, own] })).unwrap();
        assert_eq!(set.keys.len(), 1);
    }
    for more in
        [json!({ "use": "sig" }), json!({ "alg": "EdDSA" }), json!({ "key_ops": ["verify"], "x5c": [] })]
    {
        let mut key = own.clone();
        key.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value::<jwk::Jwk>(key).unwrap();
    }
}

#[test]
fn keys_that_are_no_points_verify_nothing() {
    for key in [
        json!({ "kty": "EC", "crv": "P-256", "x": base64url([1; 32]), "y": base64url([1; 32]) }),
        json!({ "kty": "RSA", "n": base64url([2; 256]), "e": "AQAB" }),
        json!({ "kty": "OKP", "crv": "Ed25519", "x": base64url([2; 32]) }),
        // The neutral element, by which a signature of zeros fits every message that is not checked strictly.
        json!({ "kty": "OKP", "crv": "Ed25519", "x": base64url([&[1_u8][..], &[0; 31]].concat()) }),
    ] {
        let key: jwk::Jwk = serde_json::from_value(key).unwrap();
        for name in ["RS256", "ES256", "EdDSA"] {
            let token = made_token(name);
            assert!(!key.has_signed(&Token::parse(&token).unwrap()));
            let zeros = format!(
                "{}.{}",
                token.rsplit_once('.').unwrap().0,
                base64url([&[1_u8][..], &[0; 63]].concat())
            );
            assert!(!key.has_signed(&Token::parse(&zeros).unwrap()));
        }
    }
}

fn fetching(more: Value) -> Value {
    let mut jwks = json!({ "url": URL });
    jwks.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config(json!({ "keys": [], "jwks": jwks }))
}

fn set(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}

#[test]
fn keys_are_fetched_once_and_kept() {
    let kept = Kept::new();
    let token = with_claims(&claims());
    let ask = |at: u64| with_token(&token, fetching(json!({}))).kept(&kept).now_ms((NOW + at) * 1000);
    let first = ask(0).answer(URL, 200, set(&[own_jwk()])).run::<Jwt>();
    assert_eq!((refused(&first), first.sent.len()), (None, 1));
    let second = ask(299).run::<Jwt>();
    assert_eq!((refused(&second), second.sent.len()), (None, 0));
    let renewed = ask(300).answer(URL, 200, set(&[own_jwk()])).run::<Jwt>();
    assert_eq!((refused(&renewed), renewed.sent.len()), (None, 1));
    let after = ask(599).run::<Jwt>();
    assert_eq!((refused(&after), after.sent.len()), (None, 0));
}

#[test]
fn old_keys_count_while_new_ones_cannot_be_had() {
    let kept = Kept::new();
    let token = with_claims(&json!({ "iss": "https://issuer.test", "aud": "shop", "exp": NOW + 1_000_000 }));
    let ask = |at: u64| with_token(&token, fetching(json!({}))).kept(&kept).now_ms((NOW + at) * 1000);
    assert_eq!(refused(&ask(0).answer(URL, 200, set(&[own_jwk()])).run::<Jwt>()), None);
    let down = ask(1000).no_answer(URL, OutboundError::Connect).run::<Jwt>();
    assert_eq!((refused(&down), down.sent.len(), down.log.len()), (None, 1, 1));
    let next = ask(1001).run::<Jwt>();
    assert_eq!((refused(&next), next.sent.len()), (None, 0), "nobody else tries for 10 s");
    let odd = ask(1011).answer(URL, 500, "").run::<Jwt>();
    assert_eq!((refused(&odd), odd.sent.len()), (None, 1));
    let gone = ask(300 + 86_400).no_answer(URL, OutboundError::Timeout).run::<Jwt>();
    assert_eq!(refused(&gone), Some(Refusal::NoKeys), "a day and five minutes are the most");
}

#[test]
fn without_keys_nobody_passes_and_few_try() {
    let large = vec![b' '; 65_536];
    for (status, body) in [(200, &b"{}"[..]), (200, b"{\"keys\":1}"), (404, b""), (200, &large)] {
        let kept = Kept::new();
        let ask = |at: u64| {
            let call =
                with_token(&with_claims(&claims()), fetching(json!({}))).kept(&kept).now_ms(NOW * 1000 + at);
            call.answer(URL, status, body).run::<Jwt>()
        };
        let told: Vec<_> =
            [0, 1999, 2000, 2001].map(ask).iter().map(|o| (refused(o), o.sent.len())).collect();
        let none = Some(Refusal::NoKeys);
        assert_eq!(told, [(none, 1), (none, 0), (none, 1), (none, 0)]);
    }
}

#[test]
fn keys_of_the_configuration_count_while_others_cannot_be_had() {
    let kept = Kept::new();
    let mut both = fetching(json!({}));
    both["keys"] = json!([own_jwk()]);
    let ask = |token: &str, at: u64| {
        let call = with_token(token, both.clone()).kept(&kept).now_ms(NOW * 1000 + at);
        let outcome = call.no_answer(URL, OutboundError::Connect).run::<Jwt>();
        (refused(&outcome), outcome.sent.len())
    };
    let own = with_claims(&claims());
    assert_eq!([0, 1, 1999].map(|at| ask(&own, at)), [(None, 1), (None, 0), (None, 0)]);
    let other = made_token("ES256");
    assert_eq!(ask(&other, 1999), (Some(Refusal::NoKeys), 0), "its key may be in the set");
}

#[test]
fn one_call_fetches_a_set_while_others_wait_for_it() {
    // Another call has begun to at NOW, and its answer has not come.
    let kept = Kept::new().with(&format!("jwt-fetch {URL}"), (NOW * 1000).to_le_bytes());
    let ask = |at: u64| {
        let call = with_token(&with_claims(&claims()), fetching(json!({}))).kept(&kept).now_ms(at);
        let outcome = call.answer(URL, 200, set(&[own_jwk()])).run::<Jwt>();
        (refused(&outcome), outcome.sent.len())
    };
    assert_eq!(ask(NOW * 1000 + 1999), (Some(Refusal::NoKeys), 0));
    assert_eq!(ask(NOW * 1000 - 1), (None, 1), "the clock was set back");
}

#[test]
fn the_key_that_a_token_names_is_the_first_to_be_tried() {
    let without_id = || {
        let mut key = own_jwk();
        key.as_object_mut().unwrap().remove("kid");
        key["x"] = json!("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo");
        key
    };
    let keys = [without_id(), without_id(), without_id(), without_id(), own_jwk()];
    assert_refused(&with_claims(&claims()), config(json!({ "keys": keys })), None);
    let mut fetching = fetching(json!({}));
    fetching["keys"] = json!(keys[..4]);
    let kept = Kept::new();
    let ask = |at: u64, keys: &[Value]| {
        let call =
            with_token(&with_claims(&claims()), fetching.clone()).kept(&kept).now_ms((NOW + at) * 1000);
        refused(&call.answer(URL, 200, set(keys)).run::<Jwt>())
    };
    assert_eq!(ask(0, &[]), Some(Refusal::Signature));
    assert_eq!(ask(10, &[own_jwk()]), None, "the issuer has made one since");
}

#[test]
fn a_new_key_is_asked_for_when_a_token_names_it_and_not_for_each() {
    let kept = Kept::new();
    let other = made("jwks")["keys"][2].clone();
    let ask = |token: &str, at: u64, keys: &[Value]| {
        let call = with_token(token, fetching(json!({}))).kept(&kept).now_ms((NOW + at) * 1000);
        call.answer(URL, 200, set(keys)).run::<Jwt>()
    };
    let own = with_claims(&claims());
    let told = |outcome: Outcome| (refused(&outcome), outcome.sent.len());
    assert_eq!(told(ask(&made_token("ES256"), 0, std::slice::from_ref(&other))), (None, 1));
    assert_eq!(
        told(ask(&own, 9, &[own_jwk(), other.clone()])),
        (Some(Refusal::UnknownKey), 0),
        "not so soon again"
    );
    assert_eq!(
        told(ask(&own, 10, std::slice::from_ref(&other))),
        (Some(Refusal::UnknownKey), 1),
        "not there yet"
    );
    assert_eq!(told(ask(&own, 20, &[own_jwk(), other.clone()])), (None, 1));
    assert_eq!(told(ask(&own, 21, &[])), (None, 0));
    let mut call =
        with_token(&made_token("unknown-kid"), fetching(json!({}))).kept(&kept).now_ms((NOW + 30) * 1000);
    call = call.no_answer(URL, OutboundError::Broken);
    assert_eq!(told(call.run::<Jwt>()), (Some(Refusal::UnknownKey), 1));
}

#[test]
fn a_full_store_is_told_in_the_log_and_makes_no_flood_of_fetches() {
    let lease = format!("jwt-fetch {URL}");
    let ask = |kept: &Kept, at: u64| {
        let call =
            with_token(&with_claims(&claims()), fetching(json!({}))).kept(kept).now_ms((NOW + at) * 1000);
        let outcome = call.answer(URL, 200, set(&[own_jwk()])).run::<Jwt>();
        (refused(&outcome), outcome.sent.len(), outcome.log.len())
    };
    assert_eq!(ask(&Kept::new().full(), 0), (Some(Refusal::NoKeys), 0, 2), "no lease, no fetch");
    let kept = Kept::new().with(&lease, b"").full();
    assert_eq!(ask(&kept, 0), (None, 1, 1), "a lease that was taken once can be again");
    assert_eq!(ask(&kept, 1), (Some(Refusal::NoKeys), 0, 1), "the store does not matter, the time does");
}

#[test]
fn what_is_kept_and_no_set_is_fetched_again() {
    for kept in [&b"short"[..], b"12345678{}"] {
        let kept = Kept::new().with(&format!("jwt-jwks {URL}"), kept);
        let call = with_token(&with_claims(&claims()), fetching(json!({}))).kept(&kept);
        assert_eq!(refused(&call.answer(URL, 200, set(&[own_jwk()])).run::<Jwt>()), None);
    }
}

proptest::proptest! {
    #[test]
    fn no_text_passes_for_a_token(token in "[ -~]{0,60}|([A-Za-z0-9_-]{0,30}\\.){0,4}[A-Za-z0-9_-]{0,20}") {
        let refusal = refused(&with_token(&token, config(json!({}))).run::<Jwt>());
        proptest::prop_assert!(refusal.is_some());
    }
}

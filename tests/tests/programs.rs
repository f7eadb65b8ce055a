//! The stock filters at work: each on a node, with what it is for.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use beamline_tests::{
    client::{Request, Response},
    guests,
    origin::{Origin, Recorded},
    scene::{PATIENCE, Scene, TENANT},
    seal_keys::SealKeys,
};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// A node whose chain is these filters with their configurations, and whose manifest is changed.
fn chain(filters: &[(&str, Value)], change: impl FnOnce(&mut Value)) -> Scene {
    let scene = Scene::start().unwrap();
    apply(&scene, filters, change);
    scene
}

fn apply(scene: &Scene, filters: &[(&str, Value)], change: impl FnOnce(&mut Value)) {
    let filters: Vec<_> = filters
        .iter()
        .map(|(name, config)| {
            let mut filter = scene.filter(name).unwrap();
            filter["config"] = config.clone();
            filter
        })
        .collect();
    scene
        .apply(|manifest| {
            manifest["filters"] = json!(filters);
            change(manifest);
        })
        .unwrap();
}

/// An upstream of this origin.
fn upstream(origin: &Origin) -> Value {
    json!({ "endpoints": [origin.address().to_string()] })
}

/// Who answered: the origin's name.
fn by(answer: &Response) -> &str {
    answer.header("x-origin").unwrap_or_default()
}

/// Every stock filter.
const STOCK: [&str; 14] = [
    "ab-split",
    "canary",
    "cors",
    "fallback",
    "geo",
    "json-router",
    "jwt",
    "maintenance",
    "rate-limit",
    "replace",
    "rewrite",
    "router",
    "security-headers",
    "sign",
];

#[test]
fn every_stock_filter_is_small_and_is_taken() {
    let scene = Scene::start().unwrap();
    for name in STOCK {
        let module = guests::module(name).unwrap();
        // The names of its functions, a sixth of it, included.
        let most = if name == "jwt" { 400 << 10 } else { 144 << 10 };
        assert!(module.len() < most, "{name} has {} bytes", module.len());
        scene.admin.push(TENANT, &module).unwrap();
    }
}

#[test]
fn the_readme_tells_how_large_each_module_is() {
    let rows = include_str!("../../wasm-filters/README.md").lines().filter_map(|line| {
        let mut cells = line.split('|').map(str::trim);
        let name = cells.nth(1)?.strip_prefix("[`")?.split('`').next()?;
        Some((name, cells.nth(2)?.parse::<usize>().ok()?))
    });
    let told: BTreeMap<_, _> = rows.collect();
    assert_eq!(told.keys().copied().collect::<Vec<_>>(), STOCK);
    for (name, told) in told {
        let found = guests::module(name).unwrap().len().div_ceil(1 << 10);
        // Compilers differ a little.
        assert!(
            found.abs_diff(told) <= told / 10,
            "{name}: wasm-filters/README.md says {told} KiB, found {found}"
        );
    }
}

/// The upstreams that a configuration names.
fn upstreams_of(config: &Value) -> Vec<&str> {
    match config {
        Value::Object(members) => members
            .iter()
            .flat_map(|(key, value)| match (key.as_str(), value) {
                ("upstream", Value::String(name)) => vec![name.as_str()],
                ("upstreams", Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
                _ => upstreams_of(value),
            })
            .collect(),
        Value::Array(items) => items.iter().flat_map(upstreams_of).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn the_example_of_each_readme_works() {
    let (scene, _folder) = sealing();
    scene.admin.set_secret(TENANT, "signing-key", KEY).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wasm-filters");
    for name in STOCK {
        let readme = fs::read_to_string(folder.join(name).join("README.md")).unwrap();
        let example = readme.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let written: Value = toml::from_str(example).unwrap();
        let mut filter = written["filters"][0].clone();
        filter["module"] = scene.filter(name).unwrap()["module"].clone();
        scene
            .apply(|manifest| {
                for name in upstreams_of(&filter["config"]) {
                    manifest["upstreams"][name] = upstream(&scene.origin);
                    if let Some(queue) = written["upstreams"][name].get("queue") {
                        manifest["upstreams"][name]["queue"] = queue.clone();
                    }
                }
                if let Some(egress) = written.get("egress") {
                    manifest["egress"] = egress.clone();
                }
                manifest["filters"] = json!([filter]);
            })
            .unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let answer = scene.send(Request::get("/orders").header("x-api-key", "k1")).unwrap();
        let expected = match name {
            "jwt" => 401,
            "maintenance" => 503,
            _ => 200,
        };
        assert_eq!(answer.status, expected, "{name}: {}", answer.text());
        assert!(!answer.text().contains("urn:beamline:problem:"), "{name}: {}", answer.text());
    }
}

#[test]
fn router_goes_by_headers() {
    let pro = Origin::start("pro").unwrap();
    let rules = json!([
        { "headers": { "x-plan": "pro", "x-blocked": false }, "upstream": "pro" },
        { "upstream": "origin" },
    ]);
    let scene = chain(&[("router", json!({ "rules": rules }))], |m| m["upstreams"]["pro"] = upstream(&pro));
    let ask = |request: Request| scene.send(request).unwrap();
    assert_eq!(by(&ask(Request::get("/").header("X-Plan", "pro"))), "pro");
    assert_eq!(by(&ask(Request::get("/").header("x-plan", "free"))), "acme");
    assert_eq!(by(&ask(Request::get("/").header("x-plan", "pro").header("x-blocked", "1"))), "acme");
}

#[test]
fn ab_split_deals_clients_and_keeps_them() {
    let next = Origin::start("next").unwrap();
    let variants = json!([{ "name": "old", "upstream": "origin" }, { "name": "new", "upstream": "next" }]);
    let config = json!({ "variants": variants, "header": "x-variant" });
    let scene = chain(&[("ab-split", config)], |m| m["upstreams"]["next"] = upstream(&next));
    let mut dealt = BTreeMap::<String, u32>::new();
    for _ in 0..40 {
        let first = scene.send(Request::get("/")).unwrap();
        let cookie = first.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
        assert_eq!(
            (first.header("vary"), cookie.as_str()),
            (Some("cookie"), if by(&first) == "acme" { "ab=old" } else { "ab=new" })
        );
        for _ in 0..3 {
            let again = scene.send(Request::get("/").header("cookie", &cookie)).unwrap();
            assert_eq!((by(&again), again.header("set-cookie")), (by(&first), None));
        }
        *dealt.entry(cookie).or_default() += 1;
    }
    assert_eq!(next.last().headers.get("x-variant"), Some("new"));
    // Each side gets none of 40 by chance once in a million million.
    assert!(dealt.len() == 2 && dealt.values().sum::<u32>() == 40, "{dealt:?}");
}

#[test]
fn geo_believes_its_cdn_alone() {
    let eu = Origin::start("eu").unwrap();
    let config = |trusted: &str| {
        json!({
            "header": "cf-ipcountry", "trusted_peers": [trusted],
            "rules": [
                { "countries": ["DE"], "upstream": "eu" },
                { "countries": ["XX"], "respond": { "status": 451, "body": "no\n" } },
            ],
        })
    };
    let scene = chain(&[("geo", config("127.0.0.0/8"))], |m| m["upstreams"]["eu"] = upstream(&eu));
    let from = |country: &str| scene.send(Request::get("/").header("CF-IPCountry", country)).unwrap();
    assert_eq!((by(&from("DE")), by(&from("FR")), from("xx").status), ("eu", "acme", 451));
    apply(&scene, &[("geo", config("192.0.2.0/24"))], |m| m["upstreams"]["eu"] = upstream(&eu));
    assert_eq!((by(&from("DE")), from("XX").status), ("acme", 200));
}

#[test]
fn rewrite_asks_for_other_paths_and_redirects() {
    let rules = json!([
        { "pattern": "/users/{user}/orders/{order}", "to": "/inspect?order={order}&user={user}", "upstream": "origin" },
        { "prefix": "/blog", "to": "https://blog.acme.test/en", "redirect": 301 },
    ]);
    let scene = chain(&[("rewrite", json!({ "rules": rules }))], |_| ());
    let seen = scene.send(Request::get("/users/7&x/orders/3?q=1")).unwrap().json().unwrap();
    assert_eq!(seen["target"], "/inspect?order=3&user=7%26x&q=1");
    let moved = scene.send(Request::get("/blog/2026?x=1")).unwrap();
    assert_eq!((moved.status, moved.header("location")), (301, Some("https://blog.acme.test/en/2026?x=1")));
    assert_eq!(scene.send(Request::get("/users/7")).unwrap().text(), "ok\n");
}

/// Keys and tokens that were made by another implementation.
fn made() -> Value {
    serde_json::from_str(include_str!("../../wasm-filters/jwt/tokens.json")).unwrap()
}

#[test]
fn jwt_passes_signed_tokens_by_fetched_keys_and_no_others() {
    let mut issuer = Origin::start("issuer").unwrap();
    issuer.page("/keys", "application/jwk-set+json", made()["jwks"].to_string());
    let at = format!("http://{}", issuer.address());
    let config = json!({
        "issuer": "https://issuer.test", "audiences": ["shop"], "jwks": { "url": format!("{at}/keys") },
        "forward": [{ "claim": "sub", "header": "x-user" }, { "claim": "scope", "header": "x-scope" }], "strip": true,
    });
    let scene = chain(&[("jwt", config)], |m| m["egress"] = json!({ "allow": [at] }));
    let ask = |name: &str| {
        let token = made()["tokens"][name].as_str().unwrap().to_owned();
        scene
            .send(
                Request::get("/inspect")
                    .header("authorization", &format!("Bearer {token}"))
                    .header("x-user", "root")
                    .header("X_User", "root"),
            )
            .unwrap()
    };
    for name in ["RS256", "RS256-4096", "ES256", "EdDSA", "without-kid"] {
        for _ in 0..5 {
            assert_eq!(ask(name).status, 200, "{name}");
        }
        let seen = scene.origin.last();
        assert_eq!(
            ["x-user", "x_user", "x-scope", "authorization"].map(|name| seen.values(name)),
            [vec!["alice"], vec![], vec!["read write"], vec![]]
        );
    }
    assert_eq!(issuer.count(), 1, "the keys are fetched once");
    let before = scene.origin.count();
    for name in [
        "none",
        "HS256-with-the-public-key",
        "RS256-by-another",
        "ES256-says-RS256",
        "own-key",
        "crit",
        "expired",
    ] {
        let refused = ask(name);
        assert_eq!(refused.status, 401, "{name}: {}", refused.text());
        assert!(
            refused.header("www-authenticate").unwrap().starts_with("Bearer error=\"invalid_token\""),
            "{name}"
        );
    }
    assert_eq!(
        scene.send(Request::get("/")).unwrap().header("www-authenticate"),
        Some("Bearer realm=\"jwt\"")
    );
    for _ in 0..5 {
        assert_eq!(ask("unknown-kid").status, 401);
    }
    assert_eq!(scene.origin.count(), before, "none of them reached the origin");
    assert!(issuer.count() <= 2, "keys nobody has are asked for once, not {} times", issuer.count() - 1);
    issuer.stop();
    assert_eq!(ask("ES256").status, 200, "known keys are enough");
}

#[test]
fn jwt_lets_nobody_pass_while_there_are_no_keys() {
    let mut issuer = Origin::start("issuer").unwrap();
    issuer.page("/keys", "application/json", made()["jwks"].to_string());
    issuer.stop();
    let at = format!("http://{}", issuer.address());
    let config = json!({ "issuer": "https://issuer.test", "audiences": ["shop"], "jwks": { "url": format!("{at}/keys") } });
    let scene = chain(&[("jwt", config)], |m| m["egress"] = json!({ "allow": [at] }));
    let token = format!("Bearer {}", made()["tokens"]["ES256"].as_str().unwrap());
    let ask = || scene.send(Request::get("/").header("authorization", &token)).unwrap();
    let refused = ask();
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("2")));
    assert_eq!(scene.origin.count(), 0);
    issuer.start_again().unwrap();
    let until = Instant::now() + PATIENCE;
    while ask().status != 200 {
        assert!(Instant::now() < until, "the issuer is back");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn rate_limit_lets_exactly_its_burst_through() {
    let limits = json!([
        { "name": "keys", "key": { "header": "x-key" }, "requests": 1, "per_seconds": 3600, "burst": 5 },
        { "name": "each", "key": "address", "requests": 1, "per_seconds": 3600, "burst": 18 },
    ]);
    let scene = chain(&[("rate-limit", json!({ "limits": limits }))], |_| ());
    let ask = |key: &str, claimed: &str| {
        scene.send(Request::get("/").header("x-key", key).header("x-forwarded-for", claimed)).unwrap()
    };
    let first = ask("first", "192.0.2.1");
    assert_eq!(first.header("ratelimit"), Some("\"keys\";r=4"));
    assert_eq!(first.header("ratelimit-policy"), Some("\"keys\";q=5;w=18000, \"each\";q=18;w=64800"));
    let statuses: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = ["a", "b", "c", "d"]
            .map(|key| {
                scope.spawn(move || {
                    (0..10).map(|n| ask(key, &format!("192.0.2.{n}")).status).collect::<Vec<_>>()
                })
            })
            .into_iter()
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    // 5 of each key pass its own limit, of which the first request has left 17 by the address.
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 17);
    assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 23);
    assert_eq!(scene.origin.count(), 18);
    let refused = ask("new", "198.51.100.7");
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=3600).contains(&wait), "{wait}");
    assert_eq!(refused.header("ratelimit"), Some(format!("\"each\";r=0;t={wait}").as_str()));
}

#[test]
fn cors_stands_on_refusals_of_later_filters_too() {
    let cors = json!({ "origins": ["https://*.acme.test"], "methods": ["PUT"], "credentials": true });
    let scene = chain(&[("cors", cors), ("maintenance", json!({ "except_prefixes": ["/open"] }))], |_| ());
    let preflight = |origin: &str| {
        let request = Request::new("OPTIONS", "/orders").header("access-control-request-method", "PUT");
        scene.send(request.header("origin", origin)).unwrap()
    };
    let allowed = preflight("https://app.acme.test");
    assert_eq!((allowed.status, allowed.header("access-control-allow-methods")), (204, Some("PUT")));
    assert_eq!(preflight("https://acme.test.evil.test").header("access-control-allow-origin"), None);
    assert_eq!(scene.origin.count(), 0, "a preflight goes no further");
    for (path, status) in [("/closed", 503), ("/open", 200)] {
        let answer = scene.send(Request::get(path).header("origin", "https://app.acme.test")).unwrap();
        assert_eq!((answer.status, answer.header("vary")), (status, Some("origin")));
        assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.acme.test"));
        assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
    }
}

#[test]
fn security_headers_stand_on_every_answer() {
    let config = json!({ "hsts": { "max_age_seconds": 60 }, "content_security_policy": "default-src 'self'", "remove": ["x-origin"] });
    let mut scene = chain(&[("security-headers", config)], |_| ());
    let check = |scene: &Scene, path: &str, status: u16| {
        let answer = scene.send(Request::get(path)).unwrap();
        assert_eq!((answer.status, answer.header("x-origin")), (status, None), "{path}");
        assert_eq!(answer.header("strict-transport-security"), Some("max-age=60"));
        assert_eq!(answer.header("content-security-policy"), Some("default-src 'self'"));
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("x-frame-options"), Some("DENY"));
    };
    check(&scene, "/", 200);
    check(&scene, "/status/500", 500);
    scene.origin.stop();
    let until = Instant::now() + PATIENCE;
    while scene.send(Request::get("/")).unwrap().status == 200 {
        assert!(Instant::now() < until, "nobody is there any more");
    }
    check(&scene, "/", scene.send(Request::get("/")).unwrap().status);
}

/// A node that can keep secrets.
fn sealing() -> (Scene, SealKeys) {
    let keys = SealKeys::with(&["one"]).unwrap();
    (Scene::with(keys.options()).unwrap(), keys)
}

const KEY: &str = "a key that only the origin knows";

/// What an origin does with a signed request: makes the signature base of what it got, by RFC 9421, and compares.
fn is_signed(request: &Recorded) -> bool {
    let all = |name: &str| request.headers.all(name).map(str::trim).collect::<Vec<_>>().join(", ");
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let input = all("signature-input");
    let parameters = input.strip_prefix("beamline=").unwrap();
    let mut base = String::new();
    for name in parameters[1..parameters.find(')').unwrap()].split(' ').map(|name| name.trim_matches('"')) {
        let value = match name {
            "@method" => request.method.clone(),
            "@authority" => all("host").to_lowercase(),
            "@path" => path.to_owned(),
            "@query" => format!("?{query}"),
            field => all(field),
        };
        base.push_str(&format!("\"{name}\": {value}\n"));
    }
    base.push_str(&format!("\"@signature-params\": {parameters}"));
    let digest = format!("sha-256=:{}:", STANDARD.encode(Sha256::digest(&request.body)));
    let signature = all("signature");
    let signature = signature.strip_prefix("beamline=:").unwrap().strip_suffix(':').unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(KEY.as_bytes()).unwrap();
    mac.update(base.as_bytes());
    all("content-digest") == digest && mac.verify_slice(&STANDARD.decode(signature).unwrap()).is_ok()
}

#[test]
fn sign_makes_signatures_that_the_origin_can_check() {
    let (scene, _folder) = sealing();
    scene.admin.set_secret(TENANT, "signing-key", KEY).unwrap();
    let config = json!({ "secret": "signing-key", "key_id": "k1", "fields": ["content-type", "x-account"], "date": true });
    apply(&scene, &[("sign", config)], |m| m["filters"][0]["secrets"] = json!(["signing-key"]));
    let mut signed = 0;
    for request in [
        Request::get("/orders?page=2"),
        Request::get("/"),
        Request::post("/orders", "{\"id\": 7}")
            .header("content-type", "application/json")
            .header("x-account", "7"),
        Request::post("/orders?x", vec![b'x'; 200_000])
            .chunked()
            .header("x-account", "1")
            .header("x-account", "2"),
        Request::post("/orders", "")
            .header("signature", "beamline=:AAAA:")
            .header("signature-input", "beamline=();alg=\"none\""),
    ] {
        assert_eq!(scene.send(request).unwrap().status, 200);
        let seen = scene.origin.last();
        assert!(is_signed(&seen), "{} {}", seen.method, seen.target);
        let mut changed = Recorded { target: format!("{}x", seen.target), ..(*seen).clone() };
        assert!(!is_signed(&changed));
        changed.target.clone_from(&seen.target);
        changed.body.push(b'x');
        assert!(!is_signed(&changed));
        signed += 1;
    }
    assert_eq!((signed, scene.origin.count()), (5, 5));
}

#[test]
fn json_router_goes_by_a_field_of_the_body() {
    let express = Origin::start("express").unwrap();
    let config =
        json!({ "pointer": "/order/kind", "rules": [{ "equals": "express", "upstream": "express" }] });
    let scene = chain(&[("json-router", config)], |m| m["upstreams"]["express"] = upstream(&express));
    let send = |body: &str| {
        scene.send(Request::post("/echo", body).header("content-type", "application/json")).unwrap()
    };
    let large = format!("{{\"pad\": \"{}\", \"order\": {{\"kind\": \"express\"}}}}", "x".repeat(500_000));
    let deep = format!(
        "{{\"pad\": {}{}, \"order\": {{\"kind\": \"express\"}}}}",
        "[".repeat(200_000),
        "]".repeat(200_000)
    );
    for body in [r#"{"order": {"kind": "express"}}"#, &large, &deep] {
        let answer = send(body);
        assert_eq!(
            (by(&answer), answer.text() == body),
            ("express", true),
            "the body arrives as it was sent"
        );
    }
    assert_eq!(by(&send(r#"{"order": {"kind": "normal"}}"#)), "acme");
    for odd in [r#"{"order": {"kind": "normal", "kind": "express"}}"#, "{", ""] {
        assert_eq!(send(odd).status, 400, "{odd}");
    }
    assert_eq!((express.count(), scene.origin.count()), (3, 1));
}

#[test]
fn replace_finds_texts_across_chunks_and_leaves_other_bodies() {
    let rules = json!([{ "find": "http://old.test", "replace": "https://new.test" }]);
    let scene = chain(&[("replace", json!({ "rules": rules }))], |_| ());
    // Pieces of 16 KiB with the text across each border, at every offset.
    let mut page = Vec::new();
    for n in 1..=14 {
        page.resize(n * (16 << 10) - n, b'.');
        page.extend_from_slice(b"http://old.test");
    }
    scene.origin.page("/page", "text/html", page.clone());
    scene.origin.page("/image", "image/png", page.clone());
    let expected = String::from_utf8(page.clone()).unwrap().replace("http://old.test", "https://new.test");
    let answer = scene
        .send(Request::get("/page").header("accept-encoding", "gzip").header("range", "bytes=0-9"))
        .unwrap();
    assert_eq!((answer.status, answer.header("etag")), (200, Some("W/\"1\"")));
    assert_eq!((answer.text().matches("https://new.test").count(), answer.text() == expected), (14, true));
    let seen = scene.origin.last();
    assert_eq!((seen.headers.get("accept-encoding"), seen.headers.get("range")), (Some("identity"), None));
    let image = scene.send(Request::get("/image")).unwrap();
    assert_eq!((image.body == page, image.header("etag")), (true, Some("\"1\"")));
}

#[test]
fn fallback_goes_from_primary_to_secondary_to_the_queue_and_back() {
    let (mut primary, mut secondary) =
        (Origin::start("primary").unwrap(), Origin::start("secondary").unwrap());
    let config = json!({ "upstreams": ["primary", "secondary"], "enqueue": { "upstream": "primary" }, "retry_after_seconds": 7 });
    let scene = chain(&[("fallback", config)], |m| {
        m["upstreams"]["primary"] = upstream(&primary);
        m["upstreams"]["primary"]["queue"] = json!({ "mode": "prefer" });
        m["upstreams"]["secondary"] = upstream(&secondary);
    });
    let get = || scene.send(Request::get("/")).unwrap();
    let until = |what: &str, is_so: &dyn Fn(&Response) -> bool| {
        let end = Instant::now() + PATIENCE;
        loop {
            let answer = get();
            if is_so(&answer) {
                break answer;
            }
            assert!(Instant::now() < end, "{what}: {} {}", answer.status, answer.text());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    assert_eq!(by(&get()), "primary");
    primary.stop();
    until("the secondary takes over", &|answer| by(answer) == "secondary");
    secondary.stop();
    let refused = until("nobody is there", &|answer| answer.header("retry-after") == Some("7"));
    assert_eq!(refused.status, 503);
    // Each breaker lets a probe through now and then, whose request fails.
    let mut queued = 0;
    let end = Instant::now() + PATIENCE;
    while queued < 3 {
        queued += u32::from(scene.send(Request::post("/orders", "kept")).unwrap().status == 202);
        assert!(Instant::now() < end, "{queued} of 3 were queued");
    }
    primary.start_again().unwrap();
    let delivered = |log: &[std::sync::Arc<Recorded>]| {
        log.iter()
            .filter(|r| {
                r.target == "/orders" && r.body == b"kept" && r.headers.get("beamline-attempt").is_some()
            })
            .count()
    };
    primary.wait_for(PATIENCE, |log| delivered(log) == 3).unwrap();
    until("the primary has its traffic back", &|answer| by(answer) == "primary");
    assert_eq!(delivered(&primary.requests()), 3);
}

//! The `202` and the receipt that it names.

use std::time::{Duration, Instant};

use beamline_tests::{
    client::{Request, Response},
    scene::{HOST, PATIENCE},
    tools,
};
use serde_json::{Value, json};

use crate::{configured, count, files_with, location, outage, queue, receipt, wait, wait_state};

const PATH: &str = "/.well-known/beamline/requests/";

#[test]
fn a_202_is_as_the_guide_shows_it() {
    let scene = outage();
    let answer = scene.send(Request::post("/in", "body").header("Prefer", "respond-async")).unwrap();
    let secret = location(&answer).strip_prefix(PATH).unwrap().to_owned();
    assert!(secret.len() > 40 && !secret.contains('/'), "{secret}");
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(answer.header("preference-applied"), Some("respond-async"));
    assert_eq!(answer.header("proxy-status"), Some("beamline; details=\"queued\""));
    assert_eq!(answer.header("cache-control"), Some("no-store"), "the secret is for one client");
    // A real client is satisfied, too.
    let curled = scene.curl("/in", &["-i", "-d", "body"]).unwrap();
    assert_eq!((curled.status, curled.exit), (202, 0));
}

#[test]
fn a_202_says_queued_also_when_the_node_is_degraded() {
    let scene = outage();
    let ready = || tools::curl(&[&format!("http://{}/readyz", scene.node.admin_address())]).unwrap();
    wait(
        PATIENCE,
        || {
            queue(&scene, Request::post("/in", "body"));
            String::from_utf8(ready().body).unwrap()
        },
        |state| state.contains("degraded"),
    );
    let answer = scene.send(Request::post("/in", "body")).unwrap();
    let said = answer.header("proxy-status").unwrap();
    assert!(answer.status == 202 && said.contains("queued"), "expected it to say queued; found {said}");
}

#[test]
fn a_receipt_tells_the_whole_life() {
    let mut scene = outage();
    let location = queue(&scene, Request::post("/in", "body"));
    let answer = scene.send(Request::get(&location)).unwrap();
    assert_eq!((answer.status, answer.header("cache-control")), (200, Some("no-store")));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert!(answer.header("retry-after").is_some(), "it is worth asking again");
    let told = answer.json().unwrap();
    assert!(told["state"] == "queued" || told["state"] == "delivering", "{told}");
    assert!(told["expires_ms"].as_u64() > told["accepted_ms"].as_u64(), "{told}");
    // Once tried, it tells why it still waits.
    let told = wait(PATIENCE, || receipt(&scene, &location), |told| told["last_error"].is_string());
    assert!(told["attempts"].as_u64() >= Some(1), "{told}");

    scene.origin.delay_all(PATIENCE);
    scene.origin.start_again().unwrap();
    wait_state(&scene, &location, "delivering");
    scene.origin.wait_for_count(1, PATIENCE).unwrap();
    assert_eq!(receipt(&scene, &location)["state"], "delivering", "as long as the origin thinks");
    // The first exchange is cut off: it is not safe to repeat.
    scene.origin.stop();
    let told = wait_state(&scene, &location, "dead");
    assert_eq!(told["reason"], "indeterminate");
    let location = queue(&scene, Request::post("/in", "the next"));
    scene.origin.delay_all(Duration::ZERO);
    scene.origin.start_again().unwrap();
    wait_state(&scene, &location, "delivered");
    let answer = scene.send(Request::get(&location)).unwrap();
    assert_eq!(answer.header("retry-after"), None, "nothing more will happen");
    assert_eq!(answer.json().unwrap()["last_status"], 200);
}

/// An answer without what differs from one request to the next.
fn essence(answer: &Response) -> (u16, Value, Vec<(String, String)>) {
    let mut body = answer.json().unwrap_or_default();
    if let Some(document) = body.as_object_mut() {
        document.remove("request_id");
    }
    let own = ["x-request-id", "date"];
    let headers = answer.headers.iter().filter(|(name, _)| !own.contains(name));
    (answer.status, body, headers.map(|(n, v)| (n.to_owned(), v.to_owned())).collect())
}

#[test]
fn unknown_malformed_and_foreign_receipts_are_the_same_404() {
    let scene = outage();
    scene.admin.create_tenant("globex", &["globex.test"], &["127.0.0.0/8"]).unwrap();
    let other = beamline_tests::admin::manifest("globex.test", scene.origin.address());
    scene.admin.apply("globex", &other).unwrap();
    let location = queue(&scene, Request::post("/in", "body"));
    let of_another = queue(&scene, Request::post("/in", "body"));

    let ask = |method: &str, path: &str, host: &str| {
        Request::new(method, path).host(host).send(scene.node.address()).unwrap()
    };
    let foreign = ask("GET", &location, "globex.test");
    assert_eq!((foreign.status, foreign.problem().as_str()), (404, "unknown-receipt"));
    assert_eq!(foreign.header("cache-control"), Some("no-store"));
    let (id, secret) = location.rsplit_once('.').unwrap();
    let their_secret = of_another.rsplit_once('.').unwrap().1;
    let flipped = if secret.starts_with('A') { "B" } else { "A" };
    for path in [
        format!("{id}.{their_secret}"),
        format!("{id}.{flipped}{}", &secret[1..]),
        format!("{PATH}AAAAAAAAAAAAAAAAAAAAAA.{secret}"),
        id.to_owned(),
        format!("{location}A"),
        format!("{location}/"),
        format!("{}%00", &location),
        location[..location.len() - 1].to_owned(),
        PATH.to_owned(),
        format!("{PATH}nonsense"),
        "/.well-known/beamline/nothing".to_owned(),
    ] {
        assert_eq!(essence(&ask("GET", &path, "acme.test")), essence(&foreign), "{path}");
    }
    for path in [format!("{id}.{their_secret}"), format!("{PATH}nonsense"), PATH.to_owned()] {
        assert_eq!(essence(&ask("DELETE", &path, "acme.test")), essence(&foreign), "{path}");
    }
    assert_eq!(
        essence(&ask("DELETE", &location, "globex.test")),
        essence(&foreign),
        "nor can it be cancelled"
    );
    assert_eq!(ask("GET", &location, "nobody.test").problem(), "unknown-host");
    assert_eq!(ask("GET", &location, "acme.test").status, 200, "the receipt itself is good");
    assert_eq!(ask("GET", &format!("{location}?x=1"), "acme.test").status, 200, "a query changes nothing");
}

#[test]
fn a_receipt_takes_get_head_and_delete_and_nothing_else() {
    let scene = outage();
    let location = queue(&scene, Request::post("/in", "body"));
    let ask = |method: &str, path: &str| scene.send(Request::new(method, path)).unwrap();
    let (get, head) = (ask("GET", &location), ask("HEAD", &location));
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("cache-control"), Some("no-store"));
    assert_eq!(head.header("content-type"), get.header("content-type"));
    assert_eq!(ask("HEAD", &format!("{PATH}nonsense")).status, 404);
    for method in ["POST", "PUT", "PATCH"] {
        let answer = ask(method, &location);
        assert_eq!((answer.status, answer.problem().as_str()), (405, "method-not-allowed"));
        assert_eq!(answer.header("allow"), Some("GET, HEAD, DELETE"), "RFC 9110, section 15.5.6");
    }
    assert_eq!(count(&scene, "kept"), 1, "nothing of that is queued");
}

#[test]
fn the_secret_of_a_receipt_is_nowhere_on_the_disk() {
    let mut scene = outage();
    let location = queue(&scene, Request::post("/in", vec![b'x'; 40_000]));
    let secret = location.rsplit_once('.').unwrap().1.to_owned();
    receipt(&scene, &location);
    scene.origin.start_again().unwrap();
    wait_state(&scene, &location, "delivered");
    let is_receipt = |r: &Value| r["url.path"].as_str().is_some_and(|path| path.starts_with(PATH));
    scene.access(is_receipt).unwrap();
    scene.node.sigterm().unwrap();
    scene.node.wait_exit(PATIENCE).unwrap();
    assert_eq!(files_with(scene.node.folder(), &secret), [] as [String; 0]);
}

#[test]
fn a_receipt_is_kept_for_its_retention_and_then_unknown() {
    let mut scene = configured("[queue]\nreceipt_retention = \"2s\"\n", json!({ "mode": "on-failure" }));
    scene.origin.stop();
    let location = queue(&scene, Request::post("/in", "body"));
    scene.origin.start_again().unwrap();
    let told = wait_state(&scene, &location, "delivered");
    let asked = || scene.send(Request::get(&location)).unwrap();
    let gone = wait(PATIENCE, asked, |answer| answer.status != 200);
    assert_eq!((gone.status, gone.problem().as_str()), (404, "unknown-receipt"));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
    assert!(now >= told["finished_ms"].as_u64().unwrap() + 2000, "not before its time");
    let audit = scene.admin.get("/v1/audit?tenant=acme").unwrap();
    let rows = audit["entries"].as_array().unwrap().iter().filter(|row| row["actor"] == "node");
    let [row] = &rows.collect::<Vec<_>>()[..] else { panic!("{audit}") };
    let detail = &row["detail"];
    assert_eq!((&row["action"], &detail["count"]), (&json!("queue.retention"), &json!(1)));
    assert_eq!((&detail["of"], &detail["from_ms"]), (&json!("receipts"), &told["accepted_ms"]));
}

#[test]
fn beyond_as_many_receipts_as_are_kept_the_oldest_go_before_their_time() {
    let mut scene = configured("[queue]\nmax_receipts = 2\n", json!({ "mode": "on-failure" }));
    scene.origin.stop();
    let locations: Vec<String> =
        (0..4).map(|n| queue(&scene, Request::post("/in", format!("{n}")))).collect();
    scene.origin.start_again().unwrap();
    let kept = || scene.admin.get("/v1/status").unwrap()["queue"]["receipts"].clone();
    let open = || scene.admin.get("/v1/status").unwrap()["queue"]["open"].clone();
    wait(PATIENCE, || (open(), kept()), |told| *told == (json!(0), json!(2)));
    let answers = locations.iter().map(|location| scene.send(Request::get(location)).unwrap().status);
    assert_eq!(answers.filter(|status| *status == 200).count(), 2, "and the others are 404");
    let audit = scene.admin.get("/v1/audit?tenant=acme").unwrap();
    let rows = audit["entries"].as_array().unwrap().iter().filter(|row| row["actor"] == "node");
    let gone: u64 = rows.map(|row| row["detail"]["count"].as_u64().unwrap()).sum();
    assert_eq!(gone, 2, "{audit}");
}

#[test]
fn who_prefers_to_wait_is_told_when_it_ends() {
    let mut scene = outage();
    let location = queue(&scene, Request::post("/in", "a"));
    let waits = |seconds: u32| {
        let prefer = format!("respond-async, wait={seconds}");
        scene.send(Request::get(&location).header("Prefer", &prefer).timeout(PATIENCE)).unwrap()
    };
    let began = Instant::now();
    let still_open = waits(1);
    assert!(began.elapsed() >= Duration::from_secs(1), "it waited for {:?}", began.elapsed());
    assert_eq!(still_open.json().unwrap()["state"], "queued");
    assert_eq!(still_open.header("preference-applied"), Some("wait=1"));
    assert_eq!(still_open.header("retry-after"), Some("1"));

    let (address, host, path) = (scene.node.address(), HOST, location.clone());
    let waiting = std::thread::spawn(move || {
        let began = Instant::now();
        let request = Request::get(&path).host(host).header("Prefer", "wait=60").timeout(2 * PATIENCE);
        (request.send(address).unwrap(), began.elapsed())
    });
    std::thread::sleep(Duration::from_millis(300));
    assert!(!waiting.is_finished());
    scene.origin.start_again().unwrap();
    let (told, after) = waiting.join().unwrap();
    assert_eq!(told.json().unwrap()["state"], "delivered", "{}", told.text());
    assert_eq!((told.header("preference-applied"), told.header("retry-after")), (Some("wait=60"), None));
    assert!(after < Duration::from_secs(40), "it was told after {after:?}");

    // What has ended, and what is nobody's, is not waited for.
    let began = Instant::now();
    let ended = Request::get(&location).header("Prefer", "wait=60");
    assert_eq!(scene.send(ended).unwrap().json().unwrap()["state"], "delivered");
    let unknown = Request::get("/.well-known/beamline/requests/nobodys").header("Prefer", "wait=60");
    assert_eq!(scene.send(unknown).unwrap().status, 404);
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[test]
fn who_waits_is_answered_when_the_node_drains() {
    let mut scene = outage();
    let location = queue(&scene, Request::post("/in", "a"));
    let address = scene.node.address();
    let waiting = std::thread::spawn(move || {
        let began = Instant::now();
        let request = Request::get(&location).host(HOST).header("Prefer", "wait=60").timeout(2 * PATIENCE);
        (request.send(address).unwrap(), began.elapsed())
    });
    std::thread::sleep(Duration::from_millis(500));
    scene.node.sigterm().unwrap();
    let (told, after) = waiting.join().unwrap();
    assert_eq!((told.status, told.json().unwrap()["state"].as_str()), (200, Some("queued")));
    assert!(after < Duration::from_secs(30), "it was told after {after:?}");
    assert!(scene.node.wait_exit(PATIENCE).unwrap().success());
}

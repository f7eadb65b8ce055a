//! The origin's answer, kept for the holder of the receipt.

use std::time::Duration;

use beamline_tests::{
    client::Request,
    scene::{PATIENCE, Scene},
};
use serde_json::{Value, json};

use crate::{count, files_with, queue, queueing, receipt, wait, wait_state};

/// A scene whose origin is down and whose answers are kept so.
fn keeping(keep_response: Value) -> Scene {
    let mut scene = queueing(json!({ "mode": "on-failure", "keep_response": keep_response }));
    scene.origin.stop();
    scene
}

fn response_of(location: &str) -> String {
    format!("{location}/response")
}

#[track_caller]
fn is_not_kept(scene: &Scene, location: &str) {
    let answer = scene.send(Request::get(&response_of(location))).unwrap();
    assert_eq!((answer.status, answer.problem().as_str()), (404, "response-not-kept"), "{}", answer.text());
    assert_eq!(answer.header("cache-control"), Some("no-store"));
}

#[test]
fn the_origins_answer_is_there_for_who_has_the_receipt() {
    let mut scene = keeping(json!({}));
    let location = queue(&scene, Request::post("/created", "an order"));
    is_not_kept(&scene, &location);
    scene.origin.start_again().unwrap();
    let told = wait_state(&scene, &location, "delivered");
    let response = &told["response"];
    assert_eq!(
        (&response["status"], &response["size"], &response["complete"]),
        (&json!(201), &json!(8), &json!(true))
    );
    let hour = response["until_ms"].as_u64().unwrap() - told["finished_ms"].as_u64().unwrap();
    assert!((3_599_000..3_601_000).contains(&hour), "{told}");

    let answer = scene.send(Request::get(&response_of(&location))).unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (201, "an order"));
    assert_eq!((answer.header("location"), answer.header("x-origin")), (Some("/orders/7"), Some("acme")));
    for gone in ["set-cookie", "x-hop", "keep-alive"] {
        assert_eq!(answer.header(gone), None, "{gone}");
    }
    assert_eq!(answer.headers.all("cache-control").collect::<Vec<_>>(), ["no-store"]);
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(answer.header("referrer-policy"), Some("no-referrer"), "the receipt is in its address");
    assert_eq!(answer.header("via"), Some("1.1 beamline"));
    assert_eq!(answer.header("proxy-status"), Some("beamline; details=\"kept response of the origin\""));
    assert_eq!(files_with(&scene.node.data_dir(), "s3cret-cookie"), [] as [String; 0]);

    let head = scene.send(Request::new("HEAD", &response_of(&location))).unwrap();
    assert_eq!((head.status, head.body.len(), head.header("location")), (201, 0, Some("/orders/7")));
    for method in ["POST", "DELETE"] {
        let refused = scene.send(Request::new(method, &response_of(&location))).unwrap();
        assert_eq!((refused.status, refused.header("allow")), (405, Some("GET, HEAD")));
    }
    // And after a crash.
    scene.node.kill_nine().unwrap();
    scene.node.launch().unwrap();
    let again = scene.send(Request::get(&response_of(&location))).unwrap();
    assert_eq!((again.status, again.text().as_str()), (201, "an order"));
}

#[test]
fn a_refusal_is_kept_too_and_what_came_before_it_is_not() {
    let mut scene = keeping(json!({ "max_size": "1KiB" }));
    scene.origin.answer_all(Some(429));
    let location = queue(&scene, Request::post("/status/409", "body"));
    scene.origin.start_again().unwrap();
    wait(PATIENCE, || receipt(&scene, &location), |told| told["last_status"] == 429);
    assert_eq!(receipt(&scene, &location)["response"], Value::Null);
    scene.origin.answer_all(None);
    let told = wait_state(&scene, &location, "dead");
    assert_eq!((&told["reason"], &told["response"]["status"]), (&json!("rejected"), &json!(409)));
    let answer = scene.send(Request::get(&response_of(&location))).unwrap();
    assert_eq!((answer.status, answer.problem().as_str()), (409, ""), "it is the origin's own");
}

#[test]
fn only_whole_answers_are_kept_and_only_up_to_the_size() {
    let mut scene = keeping(json!({ "max_size": "1KiB" }));
    let paths = ["/bytes?n=1024", "/bytes?n=1025", "/bytes?n=100000&chunked", "/cut?after=10"];
    let locations = paths.map(|path| queue(&scene, Request::post(path, "body")));
    scene.origin.start_again().unwrap();
    for (path, location) in paths.iter().zip(&locations) {
        let response = &wait_state(&scene, location, "delivered")["response"];
        let whole = *path == paths[0];
        let size = if whole { json!(1024) } else { Value::Null };
        assert_eq!((&response["status"], &response["complete"]), (&json!(200), &json!(whole)), "{path}");
        assert_eq!(response["size"], size, "{path}");
        if whole {
            let answer = scene.send(Request::get(&response_of(location))).unwrap();
            assert_eq!((answer.status, answer.body.len()), (200, 1024));
        } else {
            is_not_kept(&scene, location);
        }
    }
}

#[test]
fn an_answer_is_kept_for_its_time_and_only_where_the_manifest_says_so() {
    let mut scene = keeping(json!({ "for": "2s" }));
    let kept = queue(&scene, Request::post("/created", "body"));
    scene.origin.start_again().unwrap();
    wait_state(&scene, &kept, "delivered");
    let ask = || scene.send(Request::get(&response_of(&kept))).unwrap().status;
    assert_eq!(ask(), 201);
    wait(PATIENCE, ask, |status| *status == 404);
    is_not_kept(&scene, &kept);
    let told = receipt(&scene, &kept);
    assert_eq!((&told["state"], &told["response"]), (&json!("delivered"), &Value::Null));
    wait(PATIENCE, || count(&scene, "kept_bytes"), |bytes| *bytes == 0);

    scene.apply(|manifest| manifest["upstreams"]["origin"]["queue"] = json!({ "mode": "always" })).unwrap();
    let location = queue(&scene, Request::post("/created", "body"));
    assert_eq!(wait_state(&scene, &location, "delivered")["response"], Value::Null);
    is_not_kept(&scene, &location);
}

#[test]
fn the_answer_to_a_foreign_or_unknown_receipt_is_as_unknown() {
    let mut scene = keeping(json!({}));
    scene.admin.create_tenant("globex", &["globex.test"], &["127.0.0.0/8"]).unwrap();
    let other = beamline_tests::admin::manifest("globex.test", scene.origin.address());
    scene.admin.apply("globex", &other).unwrap();
    let location = queue(&scene, Request::post("/created", "body"));
    scene.origin.start_again().unwrap();
    wait_state(&scene, &location, "delivered");
    let ask = |path: &str, host: &str| Request::get(path).host(host).send(scene.node.address()).unwrap();
    let flipped = format!("{}A", &location[..location.len() - 1]);
    let flipped = if flipped == location { format!("{}B", &location[..location.len() - 1]) } else { flipped };
    for (path, host) in [
        (response_of(&location), "globex.test"),
        (response_of(&flipped), "acme.test"),
        (format!("{location}/response/"), "acme.test"),
        (format!("{location}/responses"), "acme.test"),
        (format!("{location}//response"), "acme.test"),
    ] {
        let answer = ask(&path, host);
        assert_eq!((answer.status, answer.problem().as_str()), (404, "unknown-receipt"), "{path} of {host}");
    }
    assert_eq!(ask(&response_of(&location), "acme.test").status, 201);
    // What was logged of it does not tell the secret.
    let secret = location.rsplit_once('.').unwrap().1.to_owned();
    scene.access(|record| record["http.response.status_code"] == 201).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(files_with(scene.node.folder(), &secret), [] as [String; 0]);
}

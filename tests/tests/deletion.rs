//! Deleting what requests wait for: a tenant or an upstream with a backlog goes only as somebody says, and nothing that was
//! accepted is lost unsaid.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use beamline_tests::{
    admin::{AdminError, manifest},
    client::{Request, Response},
    origin::{Mischief, Origin},
    scene::{HOST, PATIENCE, Scene, TENANT, command},
};
use serde_json::{Value, json};

/// Runs a command on the operator's authority; gives its exit code and all that it printed.
fn cli(scene: &Scene, line: &str) -> (i32, String) {
    let folder = tempfile::tempdir().unwrap();
    let output = command(&scene.node, folder.path(), &line.split(' ').collect::<Vec<_>>()).unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.code().unwrap(), text)
}

/// A scene that queues on failure.
fn queueing() -> Scene {
    let scene = Scene::start().unwrap();
    scene
        .apply(|manifest| manifest["upstreams"]["origin"]["queue"] = json!({ "mode": "on-failure" }))
        .unwrap();
    scene
}

/// Queues this many requests while the origin is down; gives where their receipts are. They are safe to repeat, so that no
/// crash leaves one undecided.
fn queue(scene: &Scene, count: usize) -> Vec<String> {
    let send = |n| scene.send(Request::new("PUT", "/in").body(format!("body {n}"))).unwrap();
    (0..count).map(|n| location(&send(n))).collect()
}

#[track_caller]
fn location(answer: &Response) -> String {
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer.header("location").unwrap().to_owned()
}

#[track_caller]
fn wait<T: std::fmt::Debug>(mut look: impl FnMut() -> T, so: impl Fn(&T) -> bool) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        let seen = look();
        if so(&seen) {
            return seen;
        }
        assert!(Instant::now() < until, "last seen: {seen:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn state(scene: &Scene, location: &str) -> Value {
    scene.send(Request::get(location)).unwrap().json().unwrap()["state"].clone()
}

/// The status and kind of a refusal.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, AdminError>) -> (u16, String) {
    let error = result.unwrap_err();
    (error.status().unwrap(), error.kind().to_owned())
}

#[track_caller]
fn wait_gone(scene: &Scene) {
    let answer = wait(|| scene.admin.show(TENANT), Result::is_err);
    assert_eq!(refused(answer), (404, "unknown-tenant".into()));
}

/// The tenant's audit: action and count, or action and what becomes of the queue.
fn audit(scene: &Scene) -> Vec<String> {
    let told = scene.admin.get("/v1/audit?tenant=acme&limit=1000").unwrap();
    let word = |row: &Value| {
        let (action, detail) = (row["action"].as_str().unwrap(), &row["detail"]);
        let what = [&detail["count"], &detail["queued"]].into_iter().find(|v| !v.is_null());
        what.map_or_else(|| action.to_owned(), |what| format!("{action} {what}"))
    };
    told["entries"].as_array().unwrap().iter().map(word).collect()
}

fn kept(scene: &Scene) -> u64 {
    scene.admin.get("/v1/status").unwrap()["queue"]["kept"].as_u64().unwrap()
}

// ---- a tenant ----

#[test]
fn a_tenant_without_a_backlog_is_deleted_with_all_that_was_its_own() {
    let scene = queueing();
    let (code, text) = cli(&scene, "tenant delete acme");
    assert_eq!((code, text.as_str()), (0, "tenant acme is deleted\n"));
    assert_eq!(refused(scene.admin.show(TENANT)), (404, "unknown-tenant".into()));
    assert_eq!(
        refused(scene.admin.with_token(&scene.token).get("/v1/tenants")),
        (401, "token-unknown".into())
    );
    let answer = scene.send(Request::get("/")).unwrap();
    assert_eq!((answer.status, answer.problem().as_str()), (404, "unknown-host"));
    assert_eq!(cli(&scene, "tenant delete acme").0, 1, "there is none any more");

    // Host and name are free, and nothing of the tenant before is there.
    scene.admin.create_tenant("globex", &[HOST], &["127.0.0.0/8"]).unwrap();
    scene.admin.apply("globex", &manifest(HOST, scene.origin.address())).unwrap();
    assert_eq!(scene.send(Request::get("/")).unwrap().status, 200);
    scene.admin.create_tenant(TENANT, &["new.test"], &[]).unwrap();
    assert_eq!(scene.admin.show(TENANT).unwrap()["revision"], Value::Null);
    assert_eq!(audit(&scene).last().unwrap(), "tenant.create");
}

#[test]
fn a_tenant_with_a_backlog_is_refused_with_its_numbers_and_serves_on() {
    let mut scene = queueing();
    scene.origin.answer_all(Some(404));
    let dead = {
        scene.origin.stop();
        let location = queue(&scene, 1).remove(0);
        scene.origin.start_again().unwrap();
        location
    };
    wait(|| state(&scene, &dead), |state| state == "dead");
    scene.origin.stop();
    let waiting = queue(&scene, 2);
    let (code, text) = cli(&scene, "tenant delete acme");
    assert_eq!(code, 1, "{text}");
    for words in ["upstream origin: 2 waiting, 1 dead", "--drain", "--discard-queue", "409 backlog"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    scene.origin.answer_all(None);
    scene.origin.start_again().unwrap();
    for location in &waiting {
        wait(|| state(&scene, location), |state| state == "delivered");
    }
    assert_eq!(scene.send(Request::get("/")).unwrap().status, 200);
    assert!(!audit(&scene).iter().any(|row| row.starts_with("tenant.begin")), "a refusal is no beginning");
}

#[test]
fn a_drain_delivers_what_waits_over_a_crash_and_then_the_tenant_is_gone() {
    let mut scene = queueing();
    scene.origin.stop();
    let locations = queue(&scene, 3);
    let (code, text) = cli(&scene, "tenant delete acme --drain");
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("takes no more requests") && text.contains("3 waiting, 0 dead"), "{text}");

    for _ in 0..2 {
        let answer = scene.send(Request::post("/in", "late")).unwrap();
        assert_eq!((answer.status, answer.problem().as_str()), (404, "unknown-host"), "{}", answer.text());
        assert!(locations.iter().all(|location| state(&scene, location) != "dead"), "receipts are answered");
        assert_eq!(refused(scene.apply(|_| ())), (409, "being-deleted".into()));
        assert_eq!(refused(scene.admin.rollback(TENANT, None)), (409, "being-deleted".into()));
        assert_eq!(scene.admin.show(TENANT).unwrap()["deletion"], "drain");
        scene.node.kill_nine().unwrap();
        scene.node.launch().unwrap();
    }
    scene.origin.start_again().unwrap();
    wait_gone(&scene);
    let log = scene.origin.requests();
    let mut bodies: Vec<_> = log.iter().map(|r| String::from_utf8(r.body.clone()).unwrap()).collect();
    bodies.sort_unstable();
    assert_eq!(bodies, ["body 0", "body 1", "body 2"], "each once");
    assert_eq!(kept(&scene), 0);
    let told = audit(&scene);
    let last = ["tenant.begin-deletion \"drain\"", "queue.retention 3", "tenant.delete"];
    assert_eq!(told[told.len() - 3..], last, "its receipts went with it");
}

#[test]
fn a_discard_gives_up_what_waits_and_what_is_dead_and_counts_it() {
    let mut scene = queueing();
    scene.origin.answer_all(Some(404));
    scene.origin.stop();
    let dead = queue(&scene, 2);
    scene.origin.start_again().unwrap();
    for location in &dead {
        wait(|| state(&scene, location), |state| state == "dead");
    }
    scene.origin.stop();
    scene.origin.forget();
    // With a body in a file.
    location(&scene.send(Request::post("/in", vec![b'x'; 60_000])).unwrap());
    queue(&scene, 2);
    let (code, text) = cli(&scene, "tenant delete acme --discard-queue");
    assert_eq!(code, 0, "{text}");
    // One of them may be tried at this very moment; it ends, and goes with the rest.
    wait_gone(&scene);
    assert_eq!(kept(&scene), 0);
    let bodies = || std::fs::read_dir(scene.node.data_dir().join("queue/bodies")).unwrap().count();
    wait(bodies, |files| *files == 0);
    let purged: u64 = audit(&scene)
        .iter()
        .filter_map(|row| row.strip_prefix("queue.purge "))
        .map(|count| count.parse::<u64>().unwrap())
        .sum();
    assert_eq!(purged, 5);
    scene.origin.start_again().unwrap();
    scene.node.kill_nine().unwrap();
    scene.node.launch().unwrap();
    assert_eq!(scene.origin.count(), 0, "none of it is delivered");
}

#[test]
fn dead_letters_hold_up_a_drain_until_somebody_has_dealt_with_them() {
    let mut scene = queueing();
    scene.origin.answer_all(Some(404));
    scene.origin.stop();
    let location = queue(&scene, 1).remove(0);
    scene.origin.start_again().unwrap();
    wait(|| state(&scene, &location), |state| state == "dead");
    let (code, text) = cli(&scene, "tenant delete acme --drain");
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("0 waiting, 1 dead") && text.contains("stand in the way"), "{text}");
    assert_eq!(state(&scene, &location), "dead", "it is still there");
    let (code, text) = cli(&scene, "queue purge --tenant acme origin --state dead");
    assert_eq!(code, 0, "{text}");
    wait_gone(&scene);
}

#[test]
fn whoever_gets_the_name_next_has_neither_receipts_nor_pause_nor_rate_of_the_tenant_before() {
    let mut scene = queueing();
    scene.origin.stop();
    let locations = queue(&scene, 2);
    scene.origin.start_again().unwrap();
    for location in &locations {
        wait(|| state(&scene, location), |state| state == "delivered");
    }
    for line in ["queue pause --tenant acme origin", "queue rate --tenant acme origin 5/s"] {
        assert_eq!(cli(&scene, line).0, 0, "{line}");
    }
    assert_eq!(cli(&scene, "tenant delete acme").0, 0);
    wait_gone(&scene);

    scene.admin.create_tenant(TENANT, &[HOST], &["127.0.0.0/8"]).unwrap();
    scene.admin.apply(TENANT, &manifest(HOST, scene.origin.address())).unwrap();
    for location in &locations {
        assert_eq!(scene.send(Request::get(location)).unwrap().status, 404, "{location}");
    }
    let (code, listed) = cli(&scene, "queue list --tenant acme --json");
    assert!(code == 0 && !listed.contains("delivered"), "{listed}");
    let lanes = scene.admin.get("/v1/queue").unwrap();
    for lane in lanes["upstreams"].as_array().unwrap() {
        assert_eq!((&lane["paused"], &lane["per_second"]), (&json!(false), &Value::Null), "{lane}");
    }
    assert!(audit(&scene).contains(&"queue.retention 2".to_owned()), "{:?}", audit(&scene));
}

#[test]
fn a_request_in_flight_ends_and_is_not_queued_for_a_tenant_that_is_being_deleted() {
    let scene = queueing();
    // The first is answered late, the second breaks off late: safe to repeat, it would be queued.
    let late = Duration::from_secs(4);
    let ms = u64::try_from(late.as_millis()).unwrap();
    let plan = BTreeMap::from([(1, Mischief::Slow(ms)), (2, Mischief::Hang(ms))]);
    scene.origin.misbehaves(plan);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| scene.send(Request::new("PUT", "/in").body("one")).unwrap());
        scene.origin.wait_for_count(1, PATIENCE).unwrap();
        let second = scope.spawn(|| scene.send(Request::new("PUT", "/in").body("two")).unwrap());
        scene.origin.wait_for_count(2, PATIENCE).unwrap();
        let (code, text) = cli(&scene, "tenant delete acme");
        assert_eq!(code, 0, "{text}");
        assert_eq!(first.join().unwrap().status, 200);
        let second = second.join().unwrap();
        assert_eq!((second.status, second.problem().as_str()), (503, "not-queueable"), "{}", second.text());
    });
    wait_gone(&scene);
    assert_eq!(kept(&scene), 0);
}

// ---- an upstream ----

#[test]
fn an_upstream_with_a_backlog_is_removed_only_when_nothing_waits_or_all_of_it_is_given_up() {
    let mut scene = queueing();
    let other = Origin::start("other").unwrap();
    let both = |manifest: &mut Value| {
        manifest["upstreams"]["origin"]["queue"] = json!({ "mode": "on-failure" });
        manifest["upstreams"]["other"] = json!({ "endpoints": [other.address().to_string()] });
    };
    let without = |manifest: &mut Value| {
        manifest["upstreams"] = json!({ "other": { "endpoints": [other.address().to_string()] } });
        manifest["default_upstream"] = json!("other");
    };
    scene.apply(without).unwrap();
    scene.apply(both).unwrap();
    scene.origin.stop();
    let waiting = queue(&scene, 2);

    let error = scene.apply(without).unwrap_err();
    assert_eq!(error.status(), Some(409));
    assert!(error.detail().contains("upstream origin: 2 waiting, 0 dead"), "{error}");
    assert!(error.detail().contains("--discard-queue"), "{error}");
    assert_eq!(refused(scene.admin.rollback(TENANT, None)), (409, "backlog".into()));
    assert!(waiting.iter().all(|location| state(&scene, location) != "held"), "nothing lost its upstream");

    // To lose nothing: nothing more comes, what waits goes, and then the upstream can go.
    scene
        .apply(|manifest| {
            both(manifest);
            manifest["upstreams"]["origin"]["queue"] = json!({ "mode": "never" });
        })
        .unwrap();
    scene.origin.start_again().unwrap();
    for location in &waiting {
        wait(|| state(&scene, location), |state| state == "delivered");
    }
    assert_eq!(scene.apply(without).unwrap().diff.len(), 2);

    // Or to give it up.
    scene.apply(both).unwrap();
    scene.origin.stop();
    queue(&scene, 2);
    let folder = tempfile::tempdir().unwrap();
    let mut wanted = scene.manifest();
    without(&mut wanted);
    let file = folder.path().join("acme.toml");
    std::fs::write(&file, toml::to_string(&wanted).unwrap()).unwrap();
    let line = format!("apply {} --tenant acme", file.display());
    assert_eq!(cli(&scene, &line).0, 1);
    let (code, text) = cli(&scene, &format!("{line} --discard-queue"));
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("queued requests of removed upstreams discarded: 2"), "{text}");
    assert_eq!(kept(&scene), 0);
    assert!(audit(&scene).iter().any(|row| row.starts_with("queue.purge")), "{:?}", audit(&scene));
    assert_eq!(scene.send(Request::get("/")).unwrap().header("x-origin"), Some("other"));
}

#[test]
fn an_upstream_that_was_down_when_it_went_is_no_trouble_any_more() {
    let mut scene = queueing();
    scene.origin.stop();
    queue(&scene, 1);
    let phase = || scene.admin.get("/v1/status").unwrap()["node"]["phase"].clone();
    wait(phase, |phase| phase == "degraded");
    let (code, text) = cli(&scene, "tenant delete acme --discard-queue");
    assert_eq!(code, 0, "{text}");
    wait_gone(&scene);
    wait(phase, |phase| phase == "healthy");
}

//! When the queue has no room.

use std::{
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use beamline_tests::{
    admin::manifest,
    client::Request,
    scene::{HOST, PATIENCE, Scene, TENANT},
};
use serde_json::json;

use crate::{asking, configured, count, queue, wait, wait_state};

/// A node that holds ten records at most, eight of them for requests that did not ask to be queued.
fn small() -> Scene {
    let policy = json!({ "mode": "on-failure", "ordering_key": { "header": "x-key" } });
    configured("[queue]\nmax_records = 10\ntenant_max_records = 10\n", policy)
}

#[test]
fn a_full_queue_refuses_with_a_word_on_when_to_come_back_and_evicts_nothing() {
    let mut scene = small();
    scene.origin.stop();
    let mut locations: Vec<_> = (0..8).map(|n| queue(&scene, Request::post("/in", format!("{n}")))).collect();
    let unasked = scene.send(Request::post("/in", "one too many")).unwrap();
    locations.extend((8..10).map(|n| queue(&scene, asking(Request::post("/in", format!("{n}"))))));
    let asked = scene.send(asking(Request::new("PUT", "/in").body("one too many"))).unwrap();
    for refused in [unasked, asked] {
        assert_eq!(refused.status, 503);
        assert!(refused.header("retry-after").is_some());
        assert_eq!(refused.problem(), "queue-full", "{}", refused.text());
    }
    assert_eq!(count(&scene, "kept"), 10);

    scene.origin.start_again().unwrap();
    locations.iter().for_each(|location| drop(wait_state(&scene, location, "delivered")));
    let mut bodies: Vec<_> = scene.origin.requests().iter().map(|r| r.body[0] - b'0').collect();
    bodies.sort_unstable();
    assert_eq!(bodies, (0..10).collect::<Vec<_>>());
}

#[test]
fn a_full_queue_is_only_told_to_whom_it_would_have_taken() {
    let mut scene = small();
    scene.origin.stop();
    (0..10).for_each(|n| drop(queue(&scene, asking(Request::post("/status/429", format!("{n}"))))));
    scene.origin.start_again().unwrap();
    let state = || scene.admin.show(TENANT).unwrap()["upstreams"]["origin"]["state"].clone();
    wait(PATIENCE, state, |state| state == "ready");
    let told = |request| {
        let answer = scene.send(request).unwrap();
        (answer.status, answer.problem(), answer.header("retry-after").is_some())
    };
    assert_eq!(told(Request::new("PUT", "/reset").body("twice")), (503, "queue-full".into(), true));
    assert_eq!(told(Request::post("/reset", "not twice")), (502, "upstream-reset".into(), false));
    assert_eq!(told(Request::get("/reset")), (502, "upstream-reset".into(), false));
    assert_eq!(told(Request::post("/in", "live")).0, 200, "who needs no room is served");
}

#[test]
fn where_there_is_room_again_requests_are_queued_again() {
    let mut scene = small();
    scene.origin.stop();
    let locations: Vec<_> = (0..8).map(|n| queue(&scene, Request::post("/in", format!("{n}")))).collect();
    assert_eq!(scene.send(Request::post("/in", "full")).unwrap().status, 503);
    scene.origin.start_again().unwrap();
    locations.iter().for_each(|location| drop(wait_state(&scene, location, "delivered")));
    scene.origin.stop();
    queue(&scene, Request::post("/in", "again"));
}

#[test]
fn a_full_queue_is_no_way_past_the_backlog_of_a_key() {
    let scene = small();
    // The first of its key fails of itself; the others wait behind it. The origin is up all the time.
    scene.apply(|manifest| {
        manifest["upstreams"]["origin"]["queue"] = json!({
            "mode": "on-failure", "ordering_key": { "header": "x-key" }, "origin_honours_idempotency_key": true,
        });
    })
    .unwrap();
    let keyed = |request: Request| asking(request.header("X-Key", "k"));
    queue(&scene, keyed(Request::new("PUT", "/reset").body("0")));
    (1..10).for_each(|n| drop(queue(&scene, keyed(Request::post("/in", format!("{n}"))))));
    let late = scene.send(keyed(Request::post("/in", "overtakes"))).unwrap();
    assert!(scene.origin.requests().iter().all(|r| r.body != b"overtakes"), "it must not pass them");
    assert_eq!((late.status, late.problem().as_str()), (503, "queue-full"));
    assert!(late.header("retry-after").is_some());
    let other = scene.send(Request::post("/in", "no key").header("X-Key", "other")).unwrap();
    assert_eq!(other.status, 200, "who waits for nobody needs no room");
}

/// A second tenant of the same origin.
const OTHER: &str = "other.test";
const CLIENTS: usize = 64;

/// What was answered `202`, and what the node told of its queue meanwhile at most.
struct Storm {
    accepted: AtomicU64,
    most_kept: AtomicU64,
    most_kept_bytes: AtomicU64,
}

impl Storm {
    /// Sends requests with bodies of this size one after the other, until `enough` are accepted or one is refused.
    fn fill(&self, scene: &Scene, host: &str, size: usize, enough: u64) {
        while self.accepted.load(Ordering::SeqCst) < enough && self.send(scene, host, size) {}
    }

    /// Whether one more was accepted.
    fn send(&self, scene: &Scene, host: &str, size: usize) -> bool {
        let request = asking(Request::post("/in", vec![b'x'; size])).host(host);
        let answer = request.send(scene.node.address()).unwrap();
        if answer.status == 202 {
            self.accepted.fetch_add(1, Ordering::SeqCst);
        } else {
            assert_eq!((answer.status, answer.problem().as_str()), (503, "queue-full"), "{}", answer.text());
            assert!(answer.header("retry-after").is_some());
        }
        answer.status == 202
    }

    /// Several requests of each of many clients at once, of sizes up to this, while the node's own figures are read.
    fn blow(&self, scene: &Scene, hosts: &[&str], largest: usize) {
        let (all, over) = (Barrier::new(CLIENTS), AtomicBool::new(false));
        let storm = || {
            thread::scope(|scope| {
                for client in 0..CLIENTS {
                    let all = &all;
                    scope.spawn(move || {
                        all.wait();
                        for n in 1..=4 {
                            self.send(scene, hosts[client % hosts.len()], largest * n / 4);
                        }
                    });
                }
            });
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    self.most_kept.fetch_max(count(scene, "kept"), Ordering::SeqCst);
                    self.most_kept_bytes.fetch_max(count(scene, "kept_bytes"), Ordering::SeqCst);
                }
            });
            storm();
            over.store(true, Ordering::SeqCst);
        });
    }
}

/// Fills a queue with `nearly` records of this size, 99 % of a quota, has 64 clients at it, then fills it up.
fn storm(settings: &str, hosts: &[&str], size: usize, nearly: u64) -> (Scene, Storm) {
    let mut scene = configured(&format!("[queue]\n{settings}\n"), json!({ "mode": "on-failure" }));
    scene.admin.create_tenant("other", &[OTHER], &["127.0.0.0/8"]).unwrap();
    let mut second = manifest(OTHER, scene.origin.address());
    second["upstreams"]["origin"]["queue"] = json!({ "mode": "on-failure" });
    scene.admin.apply("other", &second).unwrap();
    scene.origin.stop();
    let storm = Storm {
        accepted: AtomicU64::new(0),
        most_kept: AtomicU64::new(0),
        most_kept_bytes: AtomicU64::new(0),
    };
    let each = nearly / hosts.len() as u64;
    for (n, host) in hosts.iter().enumerate() {
        storm.fill(&scene, host, size, each * (n as u64 + 1));
    }
    assert_eq!(storm.accepted.load(Ordering::SeqCst), nearly, "up to 99 % everything is accepted");
    storm.blow(&scene, hosts, size);
    // Two that come at once may refuse each other near the end; one after the other, all room is used.
    hosts.iter().for_each(|host| storm.fill(&scene, host, 0, u64::MAX));
    assert_eq!(
        count(&scene, "kept"),
        storm.accepted.load(Ordering::SeqCst),
        "each 202 is a record, no other is"
    );
    assert_eq!(count(&scene, "reserved_bytes"), 0);
    (scene, storm)
}

#[test]
fn at_99_percent_64_clients_do_not_go_beyond_the_records_of_a_tenant() {
    let (scene, storm) = storm("max_records = 800", &[HOST], 100, 396);
    assert_eq!(storm.accepted.into_inner(), 400, "half of the node's");
    assert!(storm.most_kept.into_inner() <= 400);
    let other = asking(Request::post("/in", "body")).host(OTHER).send(scene.node.address()).unwrap();
    assert_eq!(other.status, 202, "another tenant's room is its own: {}", other.text());
}

#[test]
fn at_99_percent_64_clients_do_not_go_beyond_the_records_of_the_node() {
    let settings = "max_records = 400\ntenant_max_records = 400";
    let (_scene, storm) = storm(settings, &[HOST, OTHER], 100, 396);
    assert_eq!(storm.accepted.into_inner(), 400);
    assert!(storm.most_kept.into_inner() <= 400);
}

/// Some 20,600 bytes a record: 194 of them are 99 % of 4,000,000.
const LARGE: usize = 20_000;
const QUOTA: u64 = 4_000_000;

#[test]
fn at_99_percent_64_clients_do_not_go_beyond_the_bytes_of_a_tenant() {
    let settings = format!("max_bytes = \"64MiB\"\ntenant_max_bytes = \"{QUOTA}B\"");
    let (scene, storm) = storm(&settings, &[HOST], LARGE, 192);
    bytes_are_used_up(&scene, &storm);
    let other = asking(Request::post("/in", vec![b'x'; LARGE])).host(OTHER);
    assert_eq!(other.send(scene.node.address()).unwrap().status, 202, "another tenant's room is its own");
}

#[test]
fn at_99_percent_64_clients_do_not_go_beyond_the_bytes_of_the_node() {
    let settings = format!("max_bytes = \"{QUOTA}B\"\ntenant_max_bytes = \"{QUOTA}B\"");
    let (scene, storm) = storm(&settings, &[HOST, OTHER], LARGE, 192);
    bytes_are_used_up(&scene, &storm);
}

fn bytes_are_used_up(scene: &Scene, storm: &Storm) {
    let kept = count(scene, "kept_bytes");
    assert!(kept <= QUOTA && kept > QUOTA - 1000, "all of it and no more: {kept}");
    let most = storm.most_kept_bytes.load(Ordering::SeqCst);
    assert!(most > QUOTA / 100 * 98 && most <= QUOTA, "{most}");
}

#[test]
fn a_disk_short_of_its_reserve_takes_nothing() {
    let mut scene = configured("[queue]\ndisk_reserve = \"1000000GiB\"\n", json!({ "mode": "on-failure" }));
    scene.origin.stop();
    let refused = scene.send(asking(Request::post("/in", "body"))).unwrap();
    assert_eq!((refused.status, refused.problem().as_str()), (503, "queue-full"));
}

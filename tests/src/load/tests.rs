use std::{io::Read as _, io::Write as _, net::TcpListener};

use super::*;
use crate::origin::Origin;

fn plan(to: SocketAddr, target: &str) -> Plan {
    Plan::new(to, get(target, "acme.test")).connections(4).limit(200).lasting(Duration::from_secs(20))
}

#[test]
fn kept_connections_carry_all_requests_and_new_ones_one_each() {
    let origin = Origin::start("acme").unwrap();
    let kept = run(&plan(origin.address(), "/")).unwrap();
    assert_eq!((kept.good(), kept.failed(), kept.connections), (200, 0, 4), "{kept}");
    let new = run(&plan(origin.address(), "/").mode(Mode::NewConnection)).unwrap();
    assert_eq!((new.good(), new.failed(), new.connections), (200, 0, 200), "{new}");
    assert_eq!((origin.count(), new.latency.count()), (400, 200));
}

#[test]
fn requests_go_in_turn_and_carry_their_numbers() {
    let origin = Origin::start("acme").unwrap();
    let mut plan = plan(origin.address(), "/a").labelled().connections(1).limit(4);
    plan.requests.push(request("POST", "/b", "b.test", &[("x-load", "000000000000")], b"body"));
    run(&plan).unwrap();
    let log = origin.requests();
    let seen: Vec<_> = log.iter().map(|r| (r.target.as_str(), r.headers.get("x-load").unwrap())).collect();
    assert_eq!(
        seen,
        [("/a", "000000000000"), ("/b", "000000000001"), ("/a", "000000000002"), ("/b", "000000000003")]
    );
    assert_eq!(log[1].body, b"body");
}

#[test]
fn a_rate_is_kept() {
    let origin = Origin::start("acme").unwrap();
    let plan = plan(origin.address(), "/").rate(500.0).limit(u64::MAX).lasting(Duration::from_millis(600));
    let report = run(&plan).unwrap();
    assert!((250..=301).contains(&report.good()), "{report}");
}

#[test]
fn every_way_to_fail_has_its_own_count() {
    let mut origin = Origin::start("acme").unwrap();
    let one = |target: &str| {
        let plan = plan(origin.address(), target).limit(4).timeout(Duration::from_millis(200));
        let report = run(&plan).unwrap();
        assert_eq!(report.total(), 4, "{report}");
        *report.outcomes.iter().next_back().unwrap().0
    };
    assert_eq!(one("/status/503"), Outcome::BadStatus);
    assert_eq!(one("/cut?after=5"), Outcome::Cut);
    assert_eq!(one("/reset"), Outcome::FreshReset);
    assert_eq!(one("/hang"), Outcome::TimedOut);
    assert_eq!(one("/garbage"), Outcome::Malformed);
    let busy = run(&plan(origin.address(), "/status/503").also_good(503)).unwrap();
    assert_eq!((busy.good(), busy.statuses[&503]), (200, 200));
    origin.stop();
    let refused = run(&plan(origin.address(), "/").limit(8)).unwrap();
    assert_eq!(refused.count(Outcome::Refused), 8, "{refused}");
    assert_eq!(refused.failures[7].outcome, Outcome::Refused);
}

#[test]
fn a_reset_on_a_kept_connection_is_told_from_one_on_a_new_one() {
    // Reads a request and answers; reads the next one and closes.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
        let _ = stream.read(&mut [0; 4096]).unwrap();
    });
    let report = run(&plan(to, "/").connections(1).limit(2)).unwrap();
    server.join().unwrap();
    assert_eq!((report.good(), report.count(Outcome::IdleReset)), (1, 1), "{report}");
    assert_eq!(report.failures[0].label, 1);
}

#[test]
fn silent_closes_cost_nothing_where_the_connection_was_idle() {
    let origin = Origin::start("acme").unwrap();
    origin.close_silently(true);
    let report = run(&plan(origin.address(), "/").connections(2).rate(200.0).limit(20)).unwrap();
    // On a busy machine the origin may be held up between its answer and its close: then the next request meets it.
    assert_eq!(report.good() + report.count(Outcome::IdleReset), 20, "{report}");
    assert!(report.good() >= 10 && report.idle_closes >= 10, "{report}");
}

#[test]
fn a_load_runs_beside_the_test_and_stops_without_cutting_anything() {
    let origin = Origin::start("acme").unwrap();
    let load = start(plan(origin.address(), "/slow?ms=20").limit(u64::MAX)).unwrap();
    load.wait_for_more(8, Duration::from_secs(10)).unwrap();
    let report = load.stop().unwrap();
    assert_eq!((report.failed(), report.good()), (0, origin.count()), "{report}");
}

#[test]
fn what_no_connection_was_free_for_is_sent_later_or_not_at_all() {
    let origin = Origin::start("acme").unwrap();
    let slow = plan(origin.address(), "/slow?ms=50").limit(u64::MAX).connections(1);
    let slow = slow.lasting(Duration::from_millis(500));
    let owed = run(&slow.clone().rate(500.0)).unwrap();
    let lapsed = run(&slow.at_most(500.0)).unwrap();
    assert!(owed.total() <= 11 && lapsed.total() <= 11, "{owed} {lapsed}");
    // The last of those that wait for their turn is late by most of the time.
    assert!(owed.latency.percentile(99.0) > Duration::from_millis(300), "{owed}");
    assert!(lapsed.latency.percentile(50.0) < Duration::from_millis(300), "{lapsed}");
}

#[test]
fn the_quick_origin_answers_in_the_same_thread_and_in_its_own() {
    let port = Port::reserve().unwrap();
    let mut stage = Stage::with_origin(&port, 128).unwrap();
    for round in 1..=3 {
        let report = stage.run(&plan(port.address(), "/").limit(1000)).unwrap();
        assert_eq!((report.good(), report.failed()), (1000, 0), "{report}");
        assert_eq!(stage.origin_answered(), round * 1000);
    }
    let origin = QuickOrigin::start(10).unwrap();
    let report = run(&plan(origin.address(), "/")).unwrap();
    assert_eq!((report.good(), report.failed()), (200, 0), "{report}");
}

#[test]
#[ignore = "a figure, not a claim: cargo test --release -p beamline-tests --lib load -- --ignored --nocapture"]
fn what_it_costs() {
    let port = Port::reserve().unwrap();
    let mut stage = Stage::with_origin(&port, 128).unwrap();
    let plan = plan(port.address(), "/").connections(64).limit(u64::MAX).lasting(Duration::from_secs(2));
    let report = stage.run(&plan).unwrap();
    println!("{:.2} µs per request, generator and origin\n{report}", 1e6 / report.rate());
}

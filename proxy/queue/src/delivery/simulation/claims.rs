//! One scenario for each claim.

use super::*;

#[test]
fn a_healthy_upstream_gets_a_record_at_once() {
    let simulation = run(plan(vec![request(10_000, 0)], vec![]), MINUTE);
    assert!(simulation.delivered_at(0) < 10_300);
}

#[test]
fn recovery_is_noticed_within_seconds_however_long_the_outage_was() {
    let outage = vec![(0, Mode::Refusing), (120 * MINUTE, Mode::Up)];
    let requests = (0..500).map(|n| request(n * 100, 0)).collect();
    let simulation = run(plan(requests, vec![outage]), 130 * MINUTE);
    let first = (0..500).map(|n| simulation.delivered_at(n)).min().unwrap();
    let last = (0..500).map(|n| simulation.delivered_at(n)).max().unwrap();
    assert!(first < 120 * MINUTE + 5500, "{first}");
    assert!(last < first + MINUTE, "and the backlog follows: {last}");
    let attempts: usize = simulation.fates.iter().map(|f| f.starts.len()).sum();
    assert!(attempts < 500 + 2 * 120 * 60, "probes come one at a time: {attempts}");
}

#[test]
fn a_failing_key_blocks_only_itself() {
    let mut requests: Vec<_> = (0..20).map(|n| Request { key: Some(1), ..request(n * 10, 0) }).collect();
    requests.extend((0..400).map(|n| Request { key: (n % 2 == 0).then_some(2), ..request(n * 500, 0) }));
    let bad_keys = Some((1..2, 10 * MINUTE));
    let simulation = run(Plan { bad_keys, ..plan(requests, vec![]) }, 60 * MINUTE);
    for n in 20..420 {
        let took = simulation.delivered_at(n) - simulation.fates[n].appended_at;
        assert!(took < 2000, "record {n} waited {took} ms for a key that is not its own");
    }
    assert!((0..20).all(|n| simulation.delivered_at(n) >= 10 * MINUTE), "it failed all that time");
}

#[test]
fn a_hundred_failing_keys_block_only_themselves() {
    // They come first, all at once, and stay bad for ten minutes, with nobody else there to show that the upstream is well.
    let mut requests: Vec<_> = (0..100).map(|n| Request { key: Some(n), ..request(0, 0) }).collect();
    requests.extend((100..1000).map(|n| Request { key: Some(n), ..request(5000 + i64::from(n), 0) }));
    requests.extend((0..500).map(|n| request(MINUTE + n * 1000, 0)));
    let well = run(plan(requests.clone(), vec![]), 60 * MINUTE);
    let bad_keys = Some((0..100, 10 * MINUTE));
    let simulation = run(Plan { bad_keys, ..plan(requests, vec![]) }, 60 * MINUTE);
    let took = |n: usize| simulation.delivered_at(n) - simulation.fates[n].appended_at;
    let last = |simulation: &Simulation| (100..1000).map(|n| simulation.delivered_at(n)).max().unwrap();
    let lost = last(&simulation) - last(&well);
    assert!(lost < 20_000, "900 records lost {lost} ms to a hundred that are not their own");
    for n in 1050..1500 {
        assert!(took(n) < 2000, "record {n} waited {} ms for keys that are not its own", took(n));
    }
    assert!(
        (0..100).all(|n| simulation.delivered_at(n) >= 10 * MINUTE || simulation.fates[n].starts.len() < 2)
    );
}

#[test]
fn a_record_of_which_no_request_can_be_made_is_dead_and_in_nobodys_way() {
    let mut requests: Vec<_> = (0..50).map(|n| Request { unsendable: true, ..request(n * 10, 0) }).collect();
    requests.extend((0..100).map(|n| request(n * 20, 0)));
    let simulation = run(plan(requests, vec![]), MINUTE);
    let states = simulation.end_states();
    assert!(states[..50].iter().all(|s| *s == State::Dead { reason: DeadReason::Rejected }), "{states:?}");
    assert!((50..150).all(|n| simulation.delivered_at(n) - simulation.fates[n].appended_at < 10_000));
}

#[test]
fn what_is_denied_waits_without_blame_and_goes_when_it_is_granted() {
    let modes = vec![(0, Mode::Denied), (60 * MINUTE, Mode::Up)];
    let requests = (0..40).map(|n| Request { key: Some(n % 4), ..request(0, 0) }).collect();
    let simulation = run(plan(requests, vec![modes]), 70 * MINUTE);
    assert!((0..40).all(|n| simulation.delivered_at(n) >= 60 * MINUTE));
    let attempts: usize = simulation.fates.iter().map(|f| f.starts.len()).sum();
    assert!(attempts < 2000, "it is not busy about it: {attempts}");
}

#[test]
fn a_hanging_tenant_blocks_only_itself() {
    // Two upstreams of one tenant hang; four lanes could take all eight places.
    let hanging = vec![(0, Mode::Hanging), (30 * MINUTE, Mode::Up)];
    let mut requests: Vec<_> = (0..400).map(|n| request(0, n % 2)).collect();
    requests.extend((0..200).map(|n| request(MINUTE + n * 500, 2)));
    let modes = vec![hanging.clone(), hanging, vec![]];
    let simulation = run(Plan { max_in_flight: 8, ..plan(requests, modes) }, 60 * MINUTE);
    for n in 400..600 {
        let took = simulation.delivered_at(n) - simulation.fates[n].appended_at;
        assert!(took < 2000, "record {n} waited {took} ms for another tenant's upstream");
    }
    assert!((0..400).all(|n| simulation.delivered_at(n) > 0));
}

#[test]
fn tenants_get_the_same_bytes_however_large_their_records_are() {
    // Two tenants have more than can go; one place is all there is.
    let large = |n| Request { size: 1 << 20, ..request(n, 0) };
    let small = |n| Request { size: 1 << 14, ..request(n, 2) };
    let mut requests: Vec<_> = (0..200).map(large).collect();
    requests.extend((0..5000).map(small));
    let simulation = run(Plan { max_in_flight: 1, ..plan(requests, vec![]) }, 5 * MINUTE);
    let given = |range: Range<usize>| -> u64 {
        range
            .filter(|n| simulation.fates[*n].delivered_at.is_some())
            .map(|n| simulation.plan.requests[n].size)
            .sum()
    };
    let (large, small) = (given(0..200), given(200..5200));
    assert!(large.abs_diff(small) <= 3 << 20, "{large} bytes of large records, {small} of small ones");
    assert!(small > 20 << 20, "{small}");
}

#[test]
fn a_key_that_is_blocked_too_long_is_unblocked_by_its_records_death() {
    let requests = (0..2).map(|n| Request { key: Some(1), ..request(n, 0) }).collect();
    let bad_keys = Some((1..2, 20 * MINUTE));
    let simulation = run(Plan { bad_keys, ..plan(requests, vec![]) }, 60 * MINUTE);
    assert_eq!(simulation.end_states()[0], State::Dead { reason: DeadReason::Exhausted });
    assert!(simulation.delivered_at(1) >= 20 * MINUTE);
}

#[test]
fn a_key_that_a_dead_record_paused_waits_and_blocks_only_itself() {
    let keyed = |at, key| Request { key: Some(key), pausing: true, ..request(at, 0) };
    let mut requests = vec![Request { unsendable: true, ..keyed(0, 1) }];
    requests.extend((1..20).map(|n| keyed(n * 100, 1)));
    requests.extend((20..100).map(|n| keyed(n * 100, 2)));
    let mut simulation = Simulation::new(Plan { crashes: vec![5 * MINUTE], ..plan(requests, vec![]) });
    simulation.run(10 * MINUTE);
    let states = simulation.end_states();
    assert_eq!(states[0], State::Dead { reason: DeadReason::Rejected });
    assert!(states[1..20].iter().all(|state| *state == State::Queued), "{states:?}");
    assert!((20..100).all(|n| simulation.delivered_at(n) - simulation.fates[n].appended_at < 2000));
    assert!(simulation.fates[1..20].iter().all(|fate| fate.starts.is_empty()), "none is even tried");
    // Tried again it goes first, and when it is dead once more the others still wait.
    let id = RecordId::from_bytes(0_u128.to_be_bytes());
    simulation.at(simulation.now + 1, Happens::ByHand(Act::Requeue { id, may_repeat: false }), false);
    simulation.run(20 * MINUTE);
    assert_eq!(simulation.fates[0].starts.len(), 2);
    assert!(simulation.end_states()[1..20].iter().all(|state| *state == State::Queued));
    let resume = Act::ResumeKey { upstream: lane(0).upstream, key: "1".into(), limit: 9 };
    simulation.at(simulation.now + 1, Happens::ByHand(resume), false);
    simulation.run(30 * MINUTE);
    assert!((1..20).all(|n| simulation.delivered_at(n) < 21 * MINUTE));
}

#[test]
fn an_outage_does_not_exhaust_a_key() {
    let requests = vec![Request { key: Some(1), ..request(0, 0) }];
    let outage = vec![(0, Mode::Refusing), (100 * MINUTE, Mode::Up)];
    let simulation = run(plan(requests, vec![outage]), 110 * MINUTE);
    assert!(simulation.delivered_at(0) >= 100 * MINUTE);
}

#[test]
fn a_small_tenant_does_not_wait_for_a_big_ones_backlog() {
    let mut requests: Vec<_> = (0..2000).map(|_| request(0, 0)).collect();
    requests.extend((0..2000).map(|_| request(0, 1)));
    requests.extend((0..5).map(|n| request(5000 + n, 2)));
    let simulation = run(Plan { max_in_flight: 2, ..plan(requests, vec![]) }, 60 * MINUTE);
    for n in 4000..4005 {
        assert!(simulation.delivered_at(n) < 8000, "{:?}", simulation.fates[n]);
    }
}

#[test]
fn memory_is_bounded_by_windows_not_by_the_backlog() {
    let requests = (0..5000).map(|n| request(n / 10, 0)).collect();
    let outage = vec![(0, Mode::Refusing), (MINUTE, Mode::Up)];
    let simulation = run(plan(requests, vec![outage]), 60 * MINUTE);
    assert!(simulation.most_in_windows <= 256, "{}", simulation.most_in_windows);
    assert!(simulation.end_states().iter().all(|s| matches!(s, State::Delivered { .. })));
}

#[test]
fn a_steady_stream_does_not_starve_what_waits_on_disk() {
    // As many come as can go: the backlog of the outage must go first.
    let mut requests: Vec<_> = (0..1000).map(|_| request(0, 0)).collect();
    requests.extend((0..6000).map(|n| request(MINUTE + n * 30, 0)));
    let outage = vec![(0, Mode::Refusing), (MINUTE, Mode::Up)];
    let simulation = run(plan(requests, vec![outage]), 30 * MINUTE);
    let last = (0..1000).map(|n| simulation.delivered_at(n)).max().unwrap();
    assert!(last < 3 * MINUTE, "the backlog took until {last}");
}

#[test]
fn a_missing_upstream_holds_its_records_and_is_looked_for() {
    let gone = vec![(0, Mode::Missing), (10 * MINUTE, Mode::Up)];
    let mut simulation = Simulation::new(plan((0..50).map(|n| request(n, 0)).collect(), vec![gone]));
    simulation.run(5 * MINUTE);
    assert!(simulation.end_states().contains(&State::Held));
    assert!(simulation.handled < 500, "without being busy about it: {}", simulation.handled);
    simulation.run(60 * MINUTE);
    assert!((0..50).all(|n| simulation.delivered_at(n) < 10 * MINUTE + 40_000));
}

#[test]
fn a_nudge_ends_the_wait() {
    let gone = vec![(0, Mode::Missing), (MINUTE, Mode::Up)];
    let mut simulation = Simulation::new(plan(vec![request(0, 0)], vec![gone]));
    simulation.run(MINUTE + 5000);
    simulation.tell(Event::Notice(Notice::Nudge(lane(0))));
    simulation.run(MINUTE + 6000);
    assert!(simulation.delivered_at(0) < MINUTE + 5500);
}

#[test]
fn an_idle_queue_does_nothing() {
    let mut simulation = Simulation::new(plan(vec![], vec![]));
    simulation.run(24 * 60 * MINUTE);
    assert_eq!(simulation.machine.wake_at(simulation.both()), None);
    assert!(simulation.handled <= 2, "the first tick and its scan: {}", simulation.handled);
}

#[test]
fn a_clock_that_jumps_ahead_expires_nothing_for_a_while() {
    let requests = vec![Request { expiry: 60 * MINUTE, ..request(0, 0) }];
    let mut simulation = Simulation::new(plan(requests, vec![vec![(0, Mode::Refusing)]]));
    simulation.run(MINUTE);
    let jumped = Now { mono: simulation.now, wall: WALL_START + 100 * 60 * 60_000 };
    for later in [0, 5 * MINUTE] {
        let now = Now { mono: jumped.mono + later, wall: jumped.wall + later as u64 };
        let actions = simulation.machine.handle(now, Event::Tick, &Same);
        assert!(!actions.iter().any(|a| matches!(a, Action::Commit(Change::Expire { .. }))), "{actions:?}");
    }
    let now = Now { mono: jumped.mono + 11 * MINUTE, wall: jumped.wall + 11 * 60_000 };
    let actions = simulation.machine.handle(now, Event::Tick, &Same);
    assert!(actions.iter().any(|a| matches!(a, Action::Commit(Change::Expire { .. }))), "{actions:?}");
}

#[test]
fn after_a_restart_on_a_clock_that_went_back_everything_is_still_delivered() {
    let mut simulation =
        Simulation::new(plan((0..20).map(|n| request(n, 0)).collect(), vec![vec![(0, Mode::Erroring)]]));
    simulation.run(MINUTE);
    // All are in back-off, by a wall clock that is then set back by ten hours, or by little more than the back-off.
    for back in [10 * 3_600_000, 70_000] {
        let log = simulation.disk.open();
        let now = Now { mono: 0, wall: WALL_START + 60_000 - back };
        let mut machine = Machine::new(policy(1, log.epoch(), 64), vec![], now);
        machine.handle(now, Event::Tick, &Same);
        machine.handle(now, Event::Scanned(Some(Scan { lanes: vec![lane(0)], ..Scan::default() })), &Same);
        let rows = log.reader().unwrap().window(&lane(0), 256).unwrap();
        assert!(!rows.is_empty());
        let actions =
            machine.handle(now, Event::Loaded { lane: lane(0), limit: 256, rows: Some(rows) }, &Same);
        assert!(
            actions.iter().any(|action| matches!(action, Action::Attempt(_))),
            "a wait that began later than now is over"
        );
    }
}

#[test]
fn from_a_start_on_a_key_has_its_time_anew() {
    let requests = vec![Request { key: Some(1), ..request(0, 0) }];
    let mut simulation = Simulation::new(plan(requests, vec![vec![(0, Mode::Erroring)]]));
    simulation.run(MINUTE);
    // It has failed for a minute, by a wall clock that is three hours on at the next start.
    let log = simulation.disk.open();
    let at = |mono: i64| Now { mono, wall: WALL_START + 3 * 3_600_000 + mono.unsigned_abs() };
    let mut machine = Machine::new(policy(1, log.epoch(), 64), vec![], at(0));
    machine.handle(at(0), Event::Scanned(Some(Scan { lanes: vec![lane(0)], ..Scan::default() })), &Same);
    let mut rows = log.reader().unwrap().window(&lane(0), 256).unwrap();
    // It fails by itself: the upstream is well.
    let mut fails = |now: Now, candidate: Candidate| {
        let event = Event::Loaded { lane: lane(0), limit: 256, rows: Some(vec![candidate]) };
        let mut actions = machine.handle(now, event, &Same);
        let seq = actions
            .iter()
            .find_map(|action| match action {
                Action::Attempt(candidate) => Some(candidate.seq),
                _ => None,
            })
            .expect("it is tried");
        let outcome = Outcome::Answered { status: 500, retry_after: None, complete: true, keep: None };
        let landing = Landing::Made(outcome);
        actions = machine.handle(now, Event::Landed { lane: lane(0), seq, landing }, &Same);
        actions
            .into_iter()
            .find_map(|action| match action {
                Action::Commit(Change::Retry { again, .. }) => Some(Ok(again)),
                Action::Commit(Change::Finish { end, .. }) => Some(Err(end)),
                _ => None,
            })
            .expect("it is tried again, or dead")
    };
    let again = fails(at(0), rows.remove(0)).expect("it has not been tried for long since the start");
    let end = fails(at(16 * MINUTE), again).expect_err("it has been blocked for its time");
    assert_eq!(end, crate::log::End::Dead(DeadReason::Exhausted));
}

#[test]
fn a_rate_bounds_what_begins_and_holds_nobody_else() {
    let mut requests: Vec<_> = (0..200).map(|_| request(MINUTE, 0)).collect();
    requests.extend((0..50).map(|n| request(MINUTE + n * 100, 1)));
    requests.extend((0..50).map(|n| request(3 * MINUTE + n, 0)));
    let rates = vec![(0, Some(5)), (2 * MINUTE, None)];
    for crashes in [vec![], vec![MINUTE + 10_000]] {
        let crashed = crashes.len();
        let simulation =
            run(Plan { rates: rates.clone(), crashes, ..plan(requests.clone(), vec![]) }, 5 * MINUTE);
        let mut begun: Vec<_> = (0..200).flat_map(|n| simulation.fates[n].starts.clone()).collect();
        begun.sort_unstable();
        let last = *begun.last().unwrap() - MINUTE;
        assert!((38_000..46_000).contains(&last), "two hundred take forty seconds: {last}");
        for (n, pair) in begun.windows(11).enumerate() {
            // Two seconds bring ten; a start has a full bucket. From the bucket to the first byte it is some milliseconds.
            let took = pair[10] - pair[0];
            assert!(took >= 1950 - 400 * crashed as i64, "eleven began within {took} ms, from the {n}th on");
        }
        let others = (200..250).map(|n| simulation.delivered_at(n) - simulation.fates[n].appended_at);
        assert!(others.max().unwrap() < 2000, "another upstream of the tenant is as fast as ever");
        assert!(
            (250..300).all(|n| simulation.delivered_at(n) < 3 * MINUTE + 8000),
            "without a rate it is as before"
        );
    }
}

#[test]
fn a_delayed_record_is_sent_when_its_delay_is_over_and_holds_its_key() {
    let mut requests = vec![Request { key: Some(1), delay: 10 * MINUTE, ..request(0, 0) }];
    requests.push(Request { key: Some(1), ..request(1000, 0) });
    requests.extend((0..600).map(|n| Request { delay: 20 * MINUTE, ..request(n, 0) }));
    requests.push(request(5 * MINUTE, 0));
    for crashes in [vec![], vec![7 * MINUTE]] {
        let simulation = run(Plan { crashes, ..plan(requests.clone(), vec![]) }, 60 * MINUTE);
        let taken = |n: usize| simulation.delivered_at(n);
        assert!((10 * MINUTE..10 * MINUTE + 1000).contains(&taken(0)), "{}", taken(0));
        assert!((taken(0)..taken(0) + 1000).contains(&taken(1)), "{}", taken(1));
        assert!((2..602).all(|n| (20 * MINUTE..21 * MINUTE).contains(&taken(n))));
        assert!(taken(602) < 5 * MINUTE + 1000, "those that wait are in nobody's way");
    }
}

#[test]
fn a_delay_is_what_it_was_to_be_though_the_wall_clock_jumps() {
    let requests: Vec<_> = (0..400).map(|n| Request { delay: 10 * MINUTE, ..request(n, 0) }).collect();
    for by in [-360 * MINUTE, 360 * MINUTE] {
        let jumps = vec![(2 * MINUTE, by)];
        let simulation = run(Plan { jumps: jumps.clone(), ..plan(requests.clone(), vec![]) }, 60 * MINUTE);
        for n in 0..400 {
            let at = simulation.delivered_at(n);
            assert!((10 * MINUTE..11 * MINUTE).contains(&at), "record {n}, a jump by {by}: {at}");
        }
        // A restart has nothing but the wall clock to go by: it waits no longer than from the start on.
        let crashes = vec![3 * MINUTE];
        let simulation = run(Plan { jumps, crashes, ..plan(requests.clone(), vec![]) }, 60 * MINUTE);
        assert!((0..400).all(|n| simulation.delivered_at(n) < 14 * MINUTE));
    }
}

#[test]
fn finished_records_are_deleted_when_their_retention_is_over() {
    let mut simulation = Simulation::new(plan((0..600).map(|n| request(n, 0)).collect(), vec![]));
    simulation.run(23 * 60 * MINUTE);
    assert_eq!(simulation.disk.states().len(), 600);
    simulation.run(25 * 60 * MINUTE);
    assert_eq!(simulation.disk.states().len(), 0);
}

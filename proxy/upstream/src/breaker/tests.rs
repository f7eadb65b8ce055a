use super::*;

const S: Duration = Duration::from_secs(1);
/// The randomness that adds and takes nothing: 750 + 250 of 1000.
const EVEN: u64 = 250;

fn breaker() -> Breaker {
    Breaker::new(BreakerSettings::default())
}

fn fail(breaker: &Breaker, now: Duration, times: u32) {
    for _ in 0..times {
        breaker.admit(|| now).expect("closed").failure(now, EVEN);
    }
}

#[test]
fn five_failures_in_a_row_open_it() {
    let b = breaker();
    fail(&b, S, 4);
    assert_eq!(b.state(|| S), BreakerState::Shaky);
    assert!(b.admit(|| S).expect("still closed").failure(S, EVEN), "the fifth says that it opened");
    assert_eq!(b.state(|| S), BreakerState::Open(S));
    assert!(b.admit(|| S).is_none());
}

#[test]
fn a_success_between_failures_starts_the_count_again() {
    let b = breaker();
    fail(&b, S, 4);
    assert!(!b.admit(|| S).unwrap().success(), "nothing was open");
    fail(&b, S, 4);
    assert_eq!(b.state(|| S), BreakerState::Shaky);
}

#[test]
fn one_probe_goes_when_the_back_off_ends_and_its_success_closes() {
    let b = breaker();
    fail(&b, S, 5);
    assert!(b.admit(|| 2 * S - Duration::from_nanos(1)).is_none());
    let probe = b.admit(|| 2 * S).expect("the probe");
    assert!(b.admit(|| 2 * S).is_none(), "one at a time");
    assert!(matches!(b.state(|| 2 * S), BreakerState::Open(_)), "others are still not sent");
    assert!(probe.success());
    assert_eq!(b.state(|| 2 * S), BreakerState::Closed);
    assert!(b.admit(|| 2 * S).is_some() && b.admit(|| 2 * S).is_some());
}

#[test]
fn each_failed_probe_doubles_the_back_off_to_its_ceiling() {
    let b = breaker();
    let mut now = S;
    fail(&b, now, 5);
    for expected in [1, 2, 4, 8, 16, 30, 30, 30] {
        assert_eq!(b.state(|| now), BreakerState::Open(expected * S));
        now += expected * S;
        assert_eq!(b.state(|| now), BreakerState::Shaky, "a probe is due, so it does not count as down");
        assert!(b.admit(|| now).expect("a probe").failure(now, EVEN));
    }
    now += 30 * S;
    assert!(b.admit(|| now).expect("a probe").success());
    fail(&b, now, 5);
    assert_eq!(b.state(|| now), BreakerState::Open(S), "closing starts the back-off again");
}

#[test]
fn jitter_stays_within_a_quarter() {
    for (random, expected) in
        [(0, 750), (EVEN, 1000), (500, 1250), (501, 750), (u64::MAX, 750 + u64::MAX % 501)]
    {
        let b = breaker();
        for _ in 0..5 {
            b.admit(|| S).unwrap().failure(S, random);
        }
        assert_eq!(b.state(|| S), BreakerState::Open(Duration::from_millis(expected)), "{random}");
    }
}

#[test]
fn a_probe_that_ends_undecided_makes_room_for_the_next() {
    let b = breaker();
    fail(&b, S, 5);
    drop(b.admit(|| 2 * S).expect("the probe"));
    assert!(b.admit(|| 2 * S).expect("the next probe").success());
}

#[test]
fn a_lost_probe_bars_the_next_only_for_its_lease() {
    let b = breaker();
    fail(&b, S, 5);
    std::mem::forget(b.admit(|| 2 * S).expect("the probe"));
    assert!(b.admit(|| 31 * S).is_none());
    assert!(b.admit(|| 32 * S).is_some());
}

#[test]
fn what_was_admitted_before_it_opened_decides_nothing_afterwards() {
    let b = breaker();
    let (early, late) = (b.admit(|| S).unwrap(), b.admit(|| S).unwrap());
    fail(&b, S, 5);
    assert!(!early.success());
    assert!(!late.failure(S + S / 2, EVEN));
    assert_eq!(b.state(|| S), BreakerState::Open(S), "neither closed nor prolonged");
}

#[test]
fn a_forced_request_goes_while_open_and_closes_by_its_success_alone() {
    let b = breaker();
    fail(&b, S, 5);
    assert!(!b.admit_forced(|| S).failure(S, EVEN));
    assert_eq!(b.state(|| S), BreakerState::Open(S), "a forced failure prolongs nothing");
    assert!(b.admit_forced(|| S).success());
    assert_eq!(b.state(|| S), BreakerState::Closed);
}

#[test]
fn a_forced_request_is_the_probe_where_one_is_due() {
    let b = breaker();
    fail(&b, S, 5);
    assert!(b.admit_forced(|| 2 * S).failure(2 * S, EVEN));
    assert_eq!(b.state(|| 2 * S), BreakerState::Open(2 * S));
}

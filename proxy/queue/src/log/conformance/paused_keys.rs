//! Ordering keys that a dead record pauses.

use super::*;

/// A record whose death pauses its key.
pub(super) fn put_pausing(log: &mut dyn Log, n: u64, key: &str) -> Seq {
    let mut append = append(n, Some(key));
    append.on_dead = OnDead::PauseKey;
    match one(log, Change::Append(append)) {
        Effect::Appended { seq, .. } => seq,
        other => panic!("{other:?}"),
    }
}

/// Which of the records 1 to `last` are shown as paused by, or behind, a dead one of their key.
pub(super) fn paused(log: &dyn Log, last: u64) -> Vec<u64> {
    let mut reader = log.reader().unwrap();
    let all = all();
    let listed: Vec<_> = reader.records(&all).unwrap().records.iter().map(|r| (r.id, r.key_paused)).collect();
    for (id, key_paused) in &listed {
        assert_eq!(
            reader.receipt(*id).unwrap().unwrap().view.key_paused,
            *key_paused,
            "its receipt says so too"
        );
    }
    (1..=last).filter(|n| listed.contains(&(id(*n), true))).collect()
}

pub(super) fn lines(log: &dyn Log) -> Vec<(String, u64)> {
    let mut lines = vec![];
    let mut visit = |row| {
        if let CensusRow::Key { key, line, .. } = row {
            lines.push((key, line));
        }
    };
    log.reader().unwrap().census(&mut visit).unwrap();
    lines
}

pub(super) fn a_record_that_dies_pauses_its_key_where_it_was_told_to(place: &dyn Place) {
    for (n, reason) in
        [DeadReason::Exhausted, DeadReason::Rejected, DeadReason::Indeterminate].iter().enumerate()
    {
        let mut log = place.open();
        let (first, key) = (10 * n as u64 + 1, format!("k{n}"));
        let seq = put_pausing(&mut *log, first, &key);
        let next = put_pausing(&mut *log, first + 1, &key);
        let (other, _) = put(&mut *log, first + 2, Some("other"));
        begin(&mut *log, seq, 0);
        let end = ended(finish(&mut *log, seq, 1, End::Dead(*reason)));
        assert_eq!((end.pauses, end.promoted), (true, None));
        drop(log);
        let mut log = place.open();
        assert_eq!(window(&*log), [other.0], "other keys go on, and a restart changes nothing");
        assert_eq!(begin(&mut *log, next, 0), Effect::Stale);
        let late = put_pausing(&mut *log, first + 3, &key);
        assert_eq!(begin(&mut *log, late, 0), Effect::Stale, "what comes later waits behind");
        assert_eq!(paused(&*log, first + 3)[3 * n..], [first, first + 1, first + 3]);
        assert!(lines(&*log).contains(&(key, 3)), "{:?}", lines(&*log));
        assert_eq!(log.reader().unwrap().paused_keys().unwrap(), [(lane("acme"), n as u64 + 1)]);
        begin(&mut *log, other, 0);
        finish(&mut *log, other, 1, WHOLE);
    }
    let mut log = place.open();
    for (n, end) in [(91, WHOLE), (92, End::Dead(DeadReason::Unconfirmed))] {
        let seq = put_pausing(&mut *log, n, "well");
        begin(&mut *log, seq, 0);
        assert!(!ended(finish(&mut *log, seq, 1, end)).pauses, "{end:?} is nobody's trouble");
    }
    let (unkeyed, _) = put(&mut *log, 93, None);
    kill(&mut *log, unkeyed, DeadReason::Rejected);
    put_pausing(&mut *log, 94, "well");
    intervened(by_hand(&mut *log, Act::Cancel { id: id(94) }));
    assert!(put(&mut *log, 95, Some("well")).1);
}

pub(super) fn what_expires_or_was_lost_in_a_crash_pauses_its_key_too(place: &dyn Place) {
    let mut log = place.open();
    let seqs = [1, 3, 2, 5].map(|n| put_pausing(&mut *log, n, if n == 5 { "other" } else { "k" }));
    // 1 and 5 are not safe to repeat, and were being delivered; 2 expires behind 3 while that is tried.
    begin(&mut *log, seqs[0], 0);
    begin(&mut *log, seqs[3], 0);
    drop(log);
    let mut log = place.open();
    let epoch = log.epoch();
    let Effect::Recovered { ended, .. } = one(&mut *log, Change::Recover { epoch, now_ms: 9000, limit: 10 })
    else {
        panic!()
    };
    assert!(ended.len() == 2 && ended.iter().all(|end| end.pauses && end.promoted.is_none()), "{ended:?}");
    assert_eq!(window(&*log), [] as [i64; 0]);
    let Effect::Expired { ended, .. } = one(&mut *log, Change::Expire { now_ms: 50_002, limit: 10 }) else {
        panic!()
    };
    assert_eq!(ended.iter().map(|end| (end.id, end.pauses)).collect::<Vec<_>>(), [(id(2), true)]);
    // The first is dealt with: the one before the expired one goes, what comes after does not.
    intervened(by_hand(&mut *log, Act::Discard { id: id(1) }));
    assert_eq!(window(&*log), [seqs[1].0]);
    let last = put_pausing(&mut *log, 7, "k");
    begin(&mut *log, seqs[1], 0);
    assert_eq!(ended_by(finish(&mut *log, seqs[1], 1, WHOLE)), None);
    let done = intervened(by_hand(&mut *log, Act::Discard { id: id(2) }));
    let unpaused = done.erased[0].unpaused.as_ref().unwrap();
    assert_eq!((unpaused.records, unpaused.promoted.as_ref().unwrap().seq), (1, last));
}

/// The record that the end of another brought to the front.
pub(super) fn ended_by(effect: Effect) -> Option<Seq> {
    ended(effect).promoted.map(|next| next.seq)
}

pub(super) fn a_paused_key_goes_on_when_it_is_resumed_or_its_dead_letter_is_dealt_with(place: &dyn Place) {
    let mut log = place.open();
    let unpaused = |records, next: Seq, promoted: Option<&Candidate>| {
        assert_eq!((records, promoted.map(|next| next.seq)), (1, Some(next)));
    };
    // Tried again by hand it goes before those that waited for it, at its old place.
    let seq = put_pausing(&mut *log, 1, "k");
    let next = put_pausing(&mut *log, 2, "k");
    kill(&mut *log, seq, DeadReason::Rejected);
    let again =
        intervened(by_hand(&mut *log, Act::Requeue { id: id(1), may_repeat: false })).requeued.unwrap();
    assert_eq!((again.candidate.seq, again.front, again.paused), (seq, true, true));
    assert_eq!((again.candidate.attempts, again.candidate.due_ms), (1, 9500));
    assert_eq!((window(&*log), paused(&*log, 2)), (vec![seq.0], vec![]));
    assert!(log.reader().unwrap().content(seq).unwrap().is_some());
    assert_eq!(log.reader().unwrap().oldest(&lane("acme")).unwrap(), Some(1001));
    begin(&mut *log, seq, 1);
    assert_eq!(ended_by(finish(&mut *log, seq, 2, WHOLE)), Some(next));
    // Resumed, it goes on with what comes next; the dead letter stays what it is, and behind if it is tried again.
    kill(&mut *log, next, DeadReason::Rejected);
    let third = put_pausing(&mut *log, 3, "k");
    let resume = |key: &str| Act::ResumeKey { upstream: "api".parse().unwrap(), key: key.into(), limit: 9 };
    assert_eq!(intervened(by_hand(&mut *log, resume("other"))), Intervened::default());
    let done = intervened(by_hand(&mut *log, resume("k"))).unpaused.unwrap();
    unpaused(done.records, third, done.promoted.as_ref());
    assert_eq!(
        intervened(by_hand(&mut *log, resume("k"))),
        Intervened::default(),
        "to resume twice is to resume"
    );
    assert_eq!((state(&*log, 2), window(&*log)), (dead(DeadReason::Rejected), vec![third.0]));
    let again =
        intervened(by_hand(&mut *log, Act::Requeue { id: id(2), may_repeat: false })).requeued.unwrap();
    assert!(!again.front && !again.paused && again.candidate.seq > third);
    // Its retention ends the pause as well: what is gone can be decided about no more.
    kill(&mut *log, third, DeadReason::Rejected);
    let prune = Change::Prune { now_ms: 9600, delivered_before_ms: 0, dead_before_ms: 9001, limit: 10 };
    let Effect::Pruned { pruned, .. } = one(&mut *log, prune) else { panic!() };
    let done = pruned[0].unpaused.as_ref().unwrap();
    unpaused(done.records, again.candidate.seq, done.promoted.as_ref());
    assert!(log.reader().unwrap().paused_keys().unwrap().is_empty());
    assert_eq!(
        audit(&*log),
        [
            "operator queue.retry 1 was dead(rejected)",
            "operator queue.resume-key 1 key k",
            "operator queue.retry 1 was dead(rejected)"
        ]
    );
}

//! The life of records: accepted, tried, held, recovered, ended, deleted.

use super::*;

pub(super) fn a_missed_attempt_counts_and_leaves_its_record_queued(place: &dyn Place) {
    let mut log = place.open();
    let (seq, _) = put(&mut *log, 1, None);
    let again = Candidate { due_ms: 7000, ..append(1, None).candidate(seq) };
    let miss = |log: &dyn Log, attempts| Change::Miss {
        attempt: attempt(log, seq, attempts),
        again: again.clone(),
        note: Note { status: None, error: Some("connect-refused".into()) },
    };
    let change = miss(&*log, 1);
    assert_eq!(one(&mut *log, change.clone()), Effect::Done);
    assert_eq!(one(&mut *log, change), Effect::Stale, "it was counted");
    let receipt = log.reader().unwrap().receipt(id(1)).unwrap().unwrap().view;
    assert_eq!((receipt.state, receipt.attempts), (State::Queued, 1));
    assert_eq!(receipt.last_error.as_deref(), Some("connect-refused"));
    let waiting = log.reader().unwrap().window(&lane("acme"), 10).unwrap();
    assert_eq!((waiting[0].due_ms, waiting[0].attempts), (7000, 1));

    // One that somebody discarded meanwhile stays what it is.
    intervened(by_hand(&mut *log, Act::Discard { id: id(1) }));
    let change = miss(&*log, 2);
    assert_eq!(one(&mut *log, change), Effect::Stale);
    assert_eq!(state(&*log, 1), State::Dead { reason: DeadReason::Discarded });
}

pub(super) fn what_is_committed_is_read_back_after_a_restart(place: &dyn Place) {
    let mut log = place.open();
    let group: Vec<_> = (1..=3).map(|n| Change::Append(append(n, None))).collect();
    let effects = log.commit(&group).unwrap();
    assert!(effects.iter().all(|e| matches!(e, Effect::Appended { front: true, .. })));
    let epoch = log.epoch();
    drop(log);
    let log = place.open();
    assert_eq!(log.epoch(), epoch + 1, "each owner has its epoch");
    let mut reader = log.reader().unwrap();
    assert_eq!(window(&*log), [1, 2, 3]);
    for n in 1..=3 {
        assert_eq!(reader.content(Seq(i64::try_from(n).unwrap())).unwrap().unwrap(), append(n, None).content);
        let receipt = reader.receipt(id(n)).unwrap().unwrap();
        assert_eq!((receipt.view.state, receipt.view.accepted_ms), (State::Queued, 1000 + n));
        assert!(receipt.secret.matches(&SecretHash([7; 32])));
    }
    assert!(reader.receipt(id(4)).unwrap().is_none());
    assert!(reader.window(&lane("other"), 100).unwrap().is_empty());
}

pub(super) fn a_record_is_begun_once(place: &dyn Place) {
    let mut log = place.open();
    let (seq, _) = put(&mut *log, 1, None);
    assert_eq!(begin(&mut *log, seq, 1), Effect::Stale, "it has had no attempt");
    assert_eq!(begin(&mut *log, seq, 0), Effect::Done);
    assert_eq!(begin(&mut *log, seq, 0), Effect::Done, "the same change again is the same");
    assert_eq!(begin(&mut *log, seq, 1), Effect::Stale);
    assert_eq!(state(&*log, 1), State::Delivering);
    assert!(window(&*log).is_empty());
}

pub(super) fn a_retry_is_due_when_it_says_and_remembers_why(place: &dyn Place) {
    let mut log = place.open();
    let (seq, _) = put(&mut *log, 1, None);
    put(&mut *log, 2, None);
    begin(&mut *log, seq, 0);
    let blame = Some(Blame { failures: 1, since_ms: 4000 });
    let note = Note { status: Some(503), error: Some("why".into()) };
    let again = Candidate { due_ms: 7000, blame, ..append(1, None).candidate(seq) };
    let retry = |log: &dyn Log, attempts| Change::Retry {
        attempt: attempt(log, seq, attempts),
        again: again.clone(),
        note: note.clone(),
    };
    let (wrong, right) = (retry(&*log, 2), retry(&*log, 1));
    assert_eq!(one(&mut *log, wrong), Effect::Stale);
    assert_eq!(one(&mut *log, right.clone()), Effect::Done);
    assert_eq!(one(&mut *log, right), Effect::Stale);
    let mut reader = log.reader().unwrap();
    let candidates = reader.window(&lane("acme"), 100).unwrap();
    assert_eq!(candidates.iter().map(|c| c.seq.0).collect::<Vec<_>>(), [2, 1], "by due time");
    assert_eq!(reader.window(&lane("acme"), 1).unwrap().len(), 1);
    let again = &candidates[1];
    assert_eq!((again.attempts, again.due_ms, again.blame), (1, 7000, blame));
    let view = reader.receipt(id(1)).unwrap().unwrap().view;
    assert_eq!((view.attempts, view.last_status, view.last_error.as_deref()), (1, Some(503), Some("why")));
}

pub(super) fn a_delayed_record_is_due_when_it_says_and_holds_its_key(place: &dyn Place) {
    let mut log = place.open();
    let put = |log: &mut dyn Log, n, key, delay_ms| {
        let mut append = append(n, key);
        append.delay_ms = delay_ms;
        one(log, Change::Append(append))
    };
    put(&mut *log, 2, Some("k"), 5000);
    put(&mut *log, 4, Some("k"), 0);
    put(&mut *log, 6, None, 200);
    drop(log);
    let mut log = place.open();
    let due = |log: &dyn Log| {
        let candidates = log.reader().unwrap().window(&lane("acme"), 100).unwrap();
        candidates.iter().map(|c| (c.seq.0, c.due_ms, c.delay_ms)).collect::<Vec<_>>()
    };
    assert_eq!(due(&*log), [(3, 1206, 200), (1, 6002, 5000)]);
    assert_eq!(log.reader().unwrap().records(&all()).unwrap().records[0].due_ms, Some(6002));
    begin(&mut *log, Seq(1), 0);
    let next = ended(finish(&mut *log, Seq(1), 1, WHOLE)).promoted.unwrap();
    assert_eq!((next.seq, next.due_ms, next.delay_ms), (Seq(2), 1004, 0));
    // Queued again by hand it is due at once.
    one(&mut *log, Change::Expire { now_ms: u64::MAX, limit: 10 });
    let again =
        intervened(by_hand(&mut *log, Act::Requeue { id: id(6), may_repeat: false })).requeued.unwrap();
    assert_eq!((again.candidate.due_ms, again.candidate.delay_ms), (9500, 0));
}

pub(super) fn a_delivered_record_gives_its_content_up_and_keeps_its_receipt(place: &dyn Place) {
    let mut log = place.open();
    let (seq, _) = put(&mut *log, 3, None);
    let body = format!("{:032x}", 3).parse().unwrap();
    assert!(log.reader().unwrap().names_body(body).unwrap());
    begin(&mut *log, seq, 0);
    let end = End::Delivered { response_complete: false };
    let done = ended(finish(&mut *log, seq, 1, end));
    assert_eq!((done.size, done.delivered, done.freed), (603, true, Some(body)));
    assert_eq!(finish(&mut *log, seq, 1, end), Effect::Stale);
    assert_eq!(state(&*log, 3), State::Delivered { response_complete: false });
    let mut reader = log.reader().unwrap();
    assert_eq!(reader.content(seq).unwrap(), None);
    assert!(!reader.names_body(body).unwrap());
}

pub(super) fn a_dead_record_keeps_its_content_until_it_is_pruned(place: &dyn Place) {
    let mut log = place.open();
    let (seq, _) = put(&mut *log, 3, None);
    begin(&mut *log, seq, 0);
    let done = ended(finish(&mut *log, seq, 1, End::Dead(DeadReason::Rejected)));
    assert_eq!((done.delivered, done.freed), (false, None));
    assert!(log.reader().unwrap().content(seq).unwrap().is_some());
    let prune = |dead_before_ms| Change::Prune {
        now_ms: 9600,
        delivered_before_ms: u64::MAX,
        dead_before_ms,
        limit: 10,
    };
    let kept = Effect::Pruned { pruned: vec![], oldest_delivered_ms: None, oldest_dead_ms: Some(9000) };
    assert_eq!(one(&mut *log, prune(9000)), kept);
    let Effect::Pruned { pruned, oldest_dead_ms: None, .. } = one(&mut *log, prune(9001)) else { panic!() };
    assert_eq!((pruned.len(), pruned[0].freed.is_some(), pruned[0].receipt), (1, true, false));
    assert!(log.reader().unwrap().receipt(id(3)).unwrap().is_none());
}

pub(super) fn of_a_key_only_the_first_is_at_the_front(place: &dyn Place) {
    let mut log = place.open();
    let (first, front) = put(&mut *log, 1, Some("k"));
    assert!(front);
    let (second, front) = put(&mut *log, 2, Some("k"));
    assert!(!front);
    let (third, _) = put(&mut *log, 3, Some("k"));
    let (other, front) = put(&mut *log, 4, Some("other"));
    assert!(front);
    assert_eq!(window(&*log), [first.0, other.0]);
    assert_eq!(begin(&mut *log, second, 0), Effect::Stale, "it is behind");
    begin(&mut *log, first, 0);
    assert_eq!(window(&*log), [other.0], "and stays so while the first is delivered");
    let promoted = ended(finish(&mut *log, first, 1, WHOLE)).promoted.unwrap();
    assert_eq!((promoted.seq, promoted.keyed, promoted.attempts), (second, true, 0));
    assert_eq!(window(&*log), [second.0, other.0]);
    begin(&mut *log, second, 0);
    assert_eq!(
        ended(finish(&mut *log, second, 1, End::Dead(DeadReason::Rejected))).promoted.unwrap().seq,
        third
    );
    begin(&mut *log, third, 0);
    assert_eq!(ended(finish(&mut *log, third, 1, WHOLE)).promoted, None);
    assert!(put(&mut *log, 5, Some("k")).1, "nothing open is before it");
}

pub(super) fn what_expires_behind_others_leaves_the_front_alone(place: &dyn Place) {
    let mut log = place.open();
    let (first, _) = put(&mut *log, 9, Some("k"));
    put(&mut *log, 1, Some("k"));
    let (last, _) = put(&mut *log, 8, Some("k"));
    let Effect::Expired { ended, next_ms } = one(&mut *log, Change::Expire { now_ms: 50_001, limit: 10 })
    else {
        panic!()
    };
    assert_eq!((ended.len(), &ended[0].promoted, next_ms), (1, &None, Some(50_008)));
    assert_eq!(window(&*log), [first.0]);
    begin(&mut *log, first, 0);
    let Effect::Expired { ended, next_ms } = one(&mut *log, Change::Expire { now_ms: 50_009, limit: 10 })
    else {
        panic!()
    };
    assert_eq!((ended.len(), next_ms), (1, None), "what is being delivered does not expire");
    assert_eq!(state(&*log, 8), State::Dead { reason: DeadReason::Expired });
    assert_eq!(begin(&mut *log, last, 0), Effect::Stale);
}

pub(super) fn expiry_goes_page_by_page_the_earliest_first(place: &dyn Place) {
    let mut log = place.open();
    for n in [5, 3, 1, 4, 2] {
        put(&mut *log, n, None);
    }
    for (states, next) in [([true, true, false], Some(50_003)), ([true, true, true], None)] {
        let limit = if next.is_some() { 2 } else { 100 };
        let Effect::Expired { next_ms, .. } = one(&mut *log, Change::Expire { now_ms: u64::MAX, limit })
        else {
            panic!()
        };
        assert_eq!(next_ms, next);
        assert_eq!([1, 2, 3].map(|n| !state(&*log, n).is_open()), states);
    }
}

pub(super) fn held_records_wait_until_their_lane_is_released(place: &dyn Place) {
    let mut log = place.open();
    let (seq, _) = put(&mut *log, 1, None);
    begin(&mut *log, seq, 0);
    let hold = Change::Hold { attempt: attempt(&*log, seq, 1) };
    assert_eq!(one(&mut *log, hold.clone()), Effect::Done);
    assert_eq!(one(&mut *log, hold), Effect::Stale);
    assert_eq!((state(&*log, 1), window(&*log)), (State::Held, vec![]));
    one(&mut *log, Change::Release { lane: lane("other") });
    assert_eq!(state(&*log, 1), State::Held);
    one(&mut *log, Change::Release { lane: lane("acme") });
    assert_eq!((state(&*log, 1), window(&*log)), (State::Queued, vec![seq.0]));
}

pub(super) fn recovery_puts_back_what_is_safe_and_ends_what_is_not(place: &dyn Place) {
    let mut log = place.open();
    let seqs: Vec<_> = (1..=6).map(|n| put(&mut *log, n, (n < 3).then_some("k")).0).collect();
    // 1 and 2 share a key; even numbers are safe to repeat; 5 waits, 6 is held.
    for seq in [seqs[0], seqs[2], seqs[3], seqs[5]] {
        assert_eq!(begin(&mut *log, seq, 0), Effect::Done);
    }
    let hold = Change::Hold { attempt: attempt(&*log, seqs[5], 1) };
    one(&mut *log, hold);
    let recover = |log: &mut dyn Log, limit| {
        let epoch = log.epoch();
        match one(log, Change::Recover { epoch, now_ms: 9000, limit }) {
            Effect::Recovered { requeued, ended } => (requeued, ended),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(recover(&mut *log, 10), (0, vec![]), "what this owner delivers is no business of recovery");
    let stale = attempt(&*log, seqs[3], 1);
    drop(log);
    let mut log = place.open();
    let (requeued, ended) = recover(&mut *log, 1);
    assert_eq!((requeued, ended.len()), (0, 1));
    assert_eq!(ended[0].promoted.as_ref().unwrap().seq, seqs[1], "the next of the key goes on");
    let (requeued, ended) = recover(&mut *log, 10);
    assert_eq!((requeued, ended.len()), (1, 1));
    let indeterminate = State::Dead { reason: DeadReason::Indeterminate };
    assert_eq!(
        [1, 2, 3, 4, 5, 6].map(|n| state(&*log, n)),
        [indeterminate, State::Queued, indeterminate, State::Queued, State::Queued, State::Queued]
    );
    let note = Note::default();
    let late = Change::Finish { attempt: stale, end: WHOLE, at_ms: 1, note, response: None };
    assert_eq!(one(&mut *log, late), Effect::Stale, "a dead owner's word counts no more");
    assert_eq!(begin(&mut *log, seqs[3], 1), Effect::Done, "its attempts are remembered");
}

pub(super) fn a_disowned_record_is_never_delivered(place: &dyn Place) {
    let mut log = place.open();
    let (seq, _) = put(&mut *log, 1, Some("k"));
    let (next, _) = put(&mut *log, 2, Some("k"));
    let effect = one(&mut *log, Change::Disown { id: id(1), at_ms: 5 });
    assert_eq!(ended(effect).promoted.unwrap().seq, next);
    assert_eq!(one(&mut *log, Change::Disown { id: id(77), at_ms: 5 }), Effect::Stale);
    assert_eq!(state(&*log, 1), State::Dead { reason: DeadReason::Unconfirmed });
    assert_eq!(begin(&mut *log, seq, 0), Effect::Stale);
}

pub(super) fn trimming_takes_the_oldest_receipts_and_no_dead_letters(place: &dyn Place) {
    let mut log = place.open();
    for n in 1..=4 {
        let (seq, _) = put(&mut *log, n, None);
        begin(&mut *log, seq, 0);
        let end = if n == 1 { End::Dead(DeadReason::Rejected) } else { WHOLE };
        finish(&mut *log, seq, 1, end);
    }
    let Effect::Pruned { pruned, .. } = one(&mut *log, Change::Trim { now_ms: 9700, limit: 2 }) else {
        panic!()
    };
    assert_eq!(pruned.len(), 2);
    let left = [1, 2, 3, 4].map(|n| log.reader().unwrap().receipt(id(n)).unwrap().is_some());
    assert_eq!(left.iter().filter(|l| **l).count(), 2);
    assert!(left[0]);
}

pub(super) fn the_census_counts_what_is_there(place: &dyn Place) {
    let mut log = place.open();
    for n in 1..=4 {
        put(&mut *log, n, (n < 3).then_some("k"));
    }
    begin(&mut *log, Seq(3), 0);
    finish(&mut *log, Seq(3), 1, WHOLE);
    begin(&mut *log, Seq(4), 0);
    finish(&mut *log, Seq(4), 1, End::Dead(DeadReason::Rejected));
    let mut rows = vec![];
    log.reader().unwrap().census(&mut |row| rows.push(row)).unwrap();
    assert_eq!(
        rows,
        [
            CensusRow::Lane {
                lane: lane("acme"),
                open: 2,
                kept: 3,
                kept_bytes: 601 + 602 + 604,
                delivered: 1
            },
            CensusRow::Key { lane: lane("acme"), key: "k".into(), line: 2 },
            CensusRow::Earliest { expires_ms: Some(50_001), delivered_ms: Some(9000), dead_ms: Some(9000) },
        ]
    );
}

pub(super) fn of_a_deleted_tenant_no_finished_record_is_left(place: &dyn Place) {
    let mut log = place.open();
    for n in 1..=4 {
        put(&mut *log, n, None);
    }
    let mut elsewhere = append(5, None);
    elsewhere.lane = lane("globex");
    one(&mut *log, Change::Append(elsewhere));
    begin(&mut *log, Seq(1), 0);
    finish(&mut *log, Seq(1), 1, WHOLE);
    kill(&mut *log, Seq(2), DeadReason::Rejected);
    by_hand(&mut *log, Act::Discard { id: id(3) });
    kill(&mut *log, Seq(5), DeadReason::Rejected);
    let mut clear = || {
        let tenant = "acme".parse().unwrap();
        match one(&mut *log, Change::Clear { tenant, now_ms: 9600, limit: 2 }) {
            Effect::Pruned { pruned, .. } => pruned,
            other => panic!("{other:?}"),
        }
    };
    let mut pages = [clear(), clear(), clear()];
    assert_eq!(pages.each_ref().map(Vec::len), [2, 1, 0]);
    let gone = pages.iter_mut().flatten();
    let mut gone: Vec<_> = gone.map(|p| (p.size, p.receipt, p.lane == lane("acme"))).collect();
    gone.sort_unstable();
    assert_eq!(gone, [(601, true, true), (602, false, true), (603, true, true)]);
    drop(log);
    let log = place.open();
    let left = [1, 2, 3, 4, 5].map(|n| log.reader().unwrap().receipt(id(n)).unwrap().is_some());
    assert_eq!(left, [false, false, false, true, true], "what waits, and what is another's, stays");
    let rows = log.reader().unwrap().audit(None, 0, 100).unwrap();
    let mut told: Vec<_> = rows
        .iter()
        .filter(|row| row.action == "queue.retention")
        .map(|row| format!("{} {} {} {}", row.actor, row.tenant, row.count, row.detail))
        .collect();
    told.sort();
    assert_eq!(
        told,
        ["node acme 1 dead letters of a deleted tenant", "node acme 2 receipts of a deleted tenant"]
    );
}

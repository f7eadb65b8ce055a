//! What is done by hand, what is told of it, and what is listed.

use super::*;

pub(super) fn by_hand(log: &mut dyn Log, act: Act) -> Effect {
    let (tenant, actor) = ("acme".parse().unwrap(), "operator".to_owned());
    one(log, Change::Intervene(Box::new(Intervention { tenant, actor, at_ms: 9500, act })))
}

pub(super) fn intervened(effect: Effect) -> Intervened {
    match effect {
        Effect::Intervened(done) => *done,
        other => panic!("{other:?}"),
    }
}

/// The audit of what people did, as lines.
pub(super) fn audit(log: &dyn Log) -> Vec<String> {
    let rows = log.reader().unwrap().audit(None, 0, 100).unwrap();
    let by_hand = rows.iter().filter(|row| row.actor != "node");
    by_hand.map(|r| format!("{} {} {} {}", r.actor, r.action, r.count, r.detail)).collect()
}

pub(super) fn dead(reason: DeadReason) -> State {
    State::Dead { reason }
}

pub(super) fn kill(log: &mut dyn Log, seq: Seq, reason: DeadReason) {
    begin(log, seq, 0);
    ended(finish(log, seq, 1, End::Dead(reason)));
}

pub(super) fn only_what_waits_can_be_cancelled(place: &dyn Place) {
    let mut log = place.open();
    let seqs: Vec<_> = [3, 1, 2].map(|n| put(&mut *log, n, (n > 1).then_some("k")).0).to_vec();
    let done = intervened(by_hand(&mut *log, Act::Cancel { id: id(3) }));
    let [end] = &done.ended[..] else { panic!("{done:?}") };
    assert_eq!((end.size, end.delivered, end.erased, end.freed.is_some()), (603, false, true, true));
    assert_eq!(end.promoted.as_ref().unwrap().seq, seqs[2], "the next of its key goes on");
    assert_eq!(state(&*log, 3), dead(DeadReason::Cancelled));
    assert_eq!(log.reader().unwrap().content(seqs[0]).unwrap(), None);
    assert_eq!(log.reader().unwrap().content_of(id(3)).unwrap(), None);
    assert_eq!(begin(&mut *log, seqs[0], 0), Effect::Stale);
    let refused = |state| Effect::Refused(Refused::State(state));
    assert_eq!(by_hand(&mut *log, Act::Cancel { id: id(3) }), refused(dead(DeadReason::Cancelled)));
    begin(&mut *log, seqs[1], 0);
    assert_eq!(by_hand(&mut *log, Act::Cancel { id: id(1) }), refused(State::Delivering));
    let hold = Change::Hold { attempt: attempt(&*log, seqs[1], 1) };
    one(&mut *log, hold);
    intervened(by_hand(&mut *log, Act::Cancel { id: id(1) }));
    kill(&mut *log, seqs[2], DeadReason::Rejected);
    assert_eq!(by_hand(&mut *log, Act::Cancel { id: id(2) }), refused(dead(DeadReason::Rejected)));
    assert_eq!(by_hand(&mut *log, Act::Cancel { id: id(9) }), Effect::Refused(Refused::Unknown));
    assert_eq!(audit(&*log), ["operator queue.cancel 1 was queued", "operator queue.cancel 1 was held"]);
}

pub(super) fn a_discarded_dead_letter_is_a_receipt_and_nothing_more(place: &dyn Place) {
    let mut log = place.open();
    let (seq, _) = put(&mut *log, 3, None);
    kill(&mut *log, seq, DeadReason::Unconfirmed);
    let done = intervened(by_hand(&mut *log, Act::Discard { id: id(3) }));
    let [erased] = &done.erased[..] else { panic!("{done:?}") };
    assert_eq!((erased.size, erased.freed.is_some(), done.ended.len()), (603, true, 0));
    assert_eq!(state(&*log, 3), dead(DeadReason::Discarded));
    let again = by_hand(&mut *log, Act::Discard { id: id(3) });
    assert_eq!(again, Effect::Refused(Refused::State(dead(DeadReason::Discarded))));
    let mut rows = vec![];
    log.reader().unwrap().census(&mut |row| rows.push(row)).unwrap();
    let counted = CensusRow::Lane { lane: lane("acme"), open: 0, kept: 0, kept_bytes: 0, delivered: 1 };
    assert_eq!(rows[0], counted);
    let view = log.reader().unwrap().record(&"acme".parse().unwrap(), id(3)).unwrap().unwrap();
    assert_eq!((view.request, view.listing.path), (None, None));
    // It goes with the receipts of delivered records.
    let prune = |ms| Change::Prune { now_ms: 9600, delivered_before_ms: ms, dead_before_ms: 0, limit: 10 };
    let kept = Effect::Pruned { pruned: vec![], oldest_delivered_ms: Some(9500), oldest_dead_ms: None };
    assert_eq!(one(&mut *log, prune(9500)), kept);
    let Effect::Pruned { pruned, .. } = one(&mut *log, prune(9501)) else { panic!() };
    assert!(pruned[0].receipt && pruned[0].freed.is_none());
    assert_eq!(audit(&*log), ["operator queue.discard 1 was dead(unconfirmed)"]);
}

pub(super) fn a_dead_letter_is_queued_again_behind_what_came_since(place: &dyn Place) {
    let mut log = place.open();
    let (first, _) = put(&mut *log, 3, Some("k"));
    kill(&mut *log, first, DeadReason::Rejected);
    let (since, _) = put(&mut *log, 2, Some("k"));
    let requeue = |log: &mut dyn Log, n, may_repeat| by_hand(log, Act::Requeue { id: id(n), may_repeat });
    let again = intervened(requeue(&mut *log, 3, false)).requeued.unwrap();
    assert_eq!((again.candidate.seq, again.front, again.key.as_deref()), (Seq(3), false, Some("k")));
    assert_eq!((again.candidate.attempts, again.candidate.due_ms, again.candidate.blame), (1, 9500, None));
    assert_eq!(again.candidate.expires_ms, 9500 + 49_000, "as long as at first");
    assert_eq!((state(&*log, 3), window(&*log)), (State::Queued, vec![since.0]));
    assert_eq!(log.reader().unwrap().content(Seq(3)).unwrap().unwrap().request_id, "request-3");
    assert_eq!(log.reader().unwrap().content_of(id(3)).unwrap().unwrap().request_id, "request-3");
    assert_eq!(put(&mut *log, 4, None).0, Seq(4), "no place is given twice");
    begin(&mut *log, since, 0);
    let next = ended(finish(&mut *log, since, 1, WHOLE)).promoted.unwrap();
    assert_eq!((next.seq, next.attempts), (Seq(3), 1));
    assert_eq!(begin(&mut *log, Seq(3), 1), Effect::Done);
    assert_eq!(
        requeue(&mut *log, 3, true),
        Effect::Refused(Refused::State(State::Delivering)),
        "only dead letters"
    );
}

pub(super) fn what_must_not_be_sent_again_is_not_queued_again(place: &dyn Place) {
    let mut log = place.open();
    let requeue = |log: &mut dyn Log, n, may_repeat| by_hand(log, Act::Requeue { id: id(n), may_repeat });
    let seqs = [1, 3, 5].map(|n| put(&mut *log, n, None).0);
    kill(&mut *log, seqs[0], DeadReason::Indeterminate);
    assert_eq!(requeue(&mut *log, 1, false), Effect::Refused(Refused::MayRepeat));
    assert!(intervened(requeue(&mut *log, 1, true)).requeued.is_some());
    one(&mut *log, Change::Disown { id: id(3), at_ms: 5 });
    intervened(by_hand(&mut *log, Act::Discard { id: id(5) }));
    for (n, reason) in [(3, DeadReason::Unconfirmed), (5, DeadReason::Discarded)] {
        let refused = Effect::Refused(Refused::State(dead(reason)));
        assert_eq!(requeue(&mut *log, n, true), refused);
    }
    assert_eq!(
        audit(&*log),
        ["operator queue.retry 1 was dead(indeterminate)", "operator queue.discard 1 was queued"]
    );
}

pub(super) fn a_purge_goes_page_by_page_and_not_beyond_where_it_began(place: &dyn Place) {
    let mut log = place.open();
    let seqs: Vec<_> = (1..=6).map(|n| put(&mut *log, n, None).0).collect();
    kill(&mut *log, seqs[1], DeadReason::Rejected);
    begin(&mut *log, seqs[2], 0);
    begin(&mut *log, seqs[3], 0);
    finish(&mut *log, seqs[3], 1, WHOLE);
    let states = vec![StateName::Queued, StateName::Held, StateName::Dead];
    let purge = |after, until| Act::Purge {
        upstream: "api".parse().unwrap(),
        states: states.clone(),
        after,
        until,
        limit: 3,
    };
    let page = intervened(by_hand(&mut *log, purge(Seq(0), None)));
    assert_eq!((page.ended.len(), page.erased.len(), page.next), (2, 1, Some((seqs[4], seqs[5]))));
    put(&mut *log, 7, None);
    let page = intervened(by_hand(&mut *log, purge(seqs[4], Some(seqs[5]))));
    assert_eq!((page.ended.len(), page.erased.len(), page.next), (1, 0, None));
    assert_eq!(
        [3, 4, 7].map(|n| state(&*log, n)),
        [State::Delivering, State::Delivered { response_complete: true }, State::Queued]
    );
    let other =
        Act::Purge { upstream: "other".parse().unwrap(), states, after: Seq(0), until: None, limit: 3 };
    assert_eq!(intervened(by_hand(&mut *log, other)), Intervened::default());
    let row = |n| format!("operator queue.purge {n} queued, held, dead");
    assert_eq!(audit(&*log), [row(3), row(1)]);
}

pub(super) fn of_a_paused_lane_nothing_is_begun(place: &dyn Place) {
    let mut log = place.open();
    let (seq, _) = put(&mut *log, 1, None);
    let pause = |paused| Act::Pause { upstream: "api".parse().unwrap(), paused };
    for _ in 0..2 {
        intervened(by_hand(&mut *log, pause(true)));
    }
    assert_eq!((window(&*log), begin(&mut *log, seq, 0)), (vec![], Effect::Stale));
    assert_eq!(state(&*log, 1), State::Queued);
    drop(log);
    let mut log = place.open();
    assert_eq!(log.reader().unwrap().paused().unwrap(), [lane("acme")], "after a restart too");
    assert_eq!(begin(&mut *log, seq, 0), Effect::Stale);
    intervened(by_hand(&mut *log, pause(false)));
    assert_eq!((window(&*log), begin(&mut *log, seq, 0)), (vec![seq.0], Effect::Done));
    assert_eq!(audit(&*log), ["operator queue.pause 0 ", "operator queue.resume 0 "]);
}

pub(super) fn a_lane_has_the_rate_that_it_was_last_given(place: &dyn Place) {
    let mut log = place.open();
    let rate = |rate: Option<u32>| Act::Rate {
        upstream: "api".parse().unwrap(),
        rate: rate.map(|rate| rate.try_into().unwrap()),
    };
    let rates = |log: &dyn Log| log.reader().unwrap().rates().unwrap();
    for per_second in [Some(7), Some(7), Some(9)] {
        intervened(by_hand(&mut *log, rate(per_second)));
    }
    drop(log);
    let mut log = place.open();
    assert_eq!(rates(&*log), [(lane("acme"), 9.try_into().unwrap())], "after a restart too");
    for _ in 0..2 {
        intervened(by_hand(&mut *log, rate(None)));
    }
    assert_eq!(rates(&*log), []);
    assert_eq!(audit(&*log), ["7/s", "9/s", "none"].map(|rate| format!("operator queue.rate 0 {rate}")));
}

pub(super) fn what_the_node_ends_and_deletes_is_in_the_audit(place: &dyn Place) {
    let mut log = place.open();
    let elsewhere = |n| {
        let mut append = append(n, None);
        append.lane = lane("globex");
        Change::Append(append)
    };
    for n in [2, 4, 6, 8] {
        put(&mut *log, n, None);
    }
    one(&mut *log, elsewhere(10));
    kill(&mut *log, Seq(1), DeadReason::Rejected);
    begin(&mut *log, Seq(2), 0);
    finish(&mut *log, Seq(2), 1, WHOLE);
    assert_eq!(audit(&*log), [] as [&str; 0], "what is delivered or refused is nobody's act");
    const HOUR: u64 = 3_600_000;
    for now_ms in [HOUR + 1, HOUR + 2] {
        one(&mut *log, Change::Expire { now_ms, limit: 2 });
    }
    let prune =
        |now_ms| Change::Prune { now_ms, delivered_before_ms: 9001, dead_before_ms: u64::MAX, limit: 2 };
    one(&mut *log, prune(HOUR + 3));
    drop(log);
    let mut log = place.open();
    one(&mut *log, prune(2 * HOUR - 1));
    one(&mut *log, prune(2 * HOUR));
    one(&mut *log, prune(2 * HOUR + 1));
    let rows = log.reader().unwrap().audit(None, 0, 100).unwrap();
    let told = |row: &AuditRow| {
        let at = (row.at_ms, row.tenant.to_string());
        (at, format!("{} {} {} {}", row.actor, row.action, row.count, row.detail), row.accepted_ms)
    };
    let expected = |at_ms, tenant: &str, text: &str, from, until| {
        ((at_ms, tenant.to_owned()), text.to_owned(), Some((from, until)))
    };
    assert_eq!(
        rows.iter().map(told).collect::<Vec<_>>(),
        [
            expected(HOUR + 1, "acme", "node queue.expire 2 records", 1006, 1008),
            expected(HOUR + 2, "globex", "node queue.expire 1 records", 1010, 1010),
            expected(HOUR + 3, "acme", "node queue.retention 3 dead letters", 1002, 1008),
            expected(HOUR + 3, "acme", "node queue.retention 1 receipts", 1004, 1004),
            expected(2 * HOUR, "globex", "node queue.retention 1 dead letters", 1010, 1010),
        ]
    );
    put(&mut *log, 12, None);
    begin(&mut *log, Seq(6), 0);
    finish(&mut *log, Seq(6), 1, WHOLE);
    one(&mut *log, Change::Trim { now_ms: 2 * HOUR, limit: 9 });
    let rows = log.reader().unwrap().audit(None, 5, 100).unwrap();
    assert_eq!(
        (rows.len(), rows[0].count, &rows[0].detail[..]),
        (1, 1, "receipts, of which there were too many")
    );
}

pub(super) fn all() -> RecordQuery {
    RecordQuery {
        tenant: "acme".parse().unwrap(),
        upstream: None,
        state: None,
        ordering_key: None,
        after: 0,
        limit: 100,
    }
}

pub(super) fn records_are_listed_page_by_page_and_only_to_their_tenant(place: &dyn Place) {
    let mut log = place.open();
    let elsewhere = |n, tenant: &str, upstream: &str| {
        let mut append = append(n, None);
        append.lane = Lane { tenant: tenant.parse().unwrap(), upstream: upstream.parse().unwrap() };
        Change::Append(append)
    };
    for n in 1..=5 {
        put(&mut *log, n, (n < 3).then_some("k"));
    }
    for change in [elsewhere(6, "acme", "b"), elsewhere(7, "globex", "api"), elsewhere(8, "acme", "api")] {
        one(&mut *log, change);
    }
    kill(&mut *log, Seq(4), DeadReason::Rejected);
    let mut reader = log.reader().unwrap();
    let all = all();
    let mut seqs = |query: RecordQuery| {
        let page = reader.records(&query).unwrap();
        (page.records.iter().map(|record| record.seq).collect::<Vec<_>>(), page.next)
    };
    assert_eq!(seqs(all.clone()), (vec![1, 2, 3, 4, 5, 6, 8], None));
    assert_eq!(seqs(RecordQuery { limit: 3, ..all.clone() }), (vec![1, 2, 3], Some(3)));
    assert_eq!(seqs(RecordQuery { limit: 3, after: 3, ..all.clone() }), (vec![4, 5, 6], Some(6)));
    assert_eq!(seqs(RecordQuery { limit: 3, after: 6, ..all.clone() }), (vec![8], None));
    let upstream = Some("b".parse().unwrap());
    assert_eq!(seqs(RecordQuery { upstream, ..all.clone() }), (vec![6], None));
    assert_eq!(seqs(RecordQuery { state: Some(StateName::Dead), ..all.clone() }), (vec![4], None));
    assert_eq!(seqs(RecordQuery { ordering_key: Some("k".into()), ..all.clone() }), (vec![1, 2], None));
    let [record] = &reader.records(&RecordQuery { after: 3, limit: 1, ..all.clone() }).unwrap().records[..]
    else {
        panic!()
    };
    assert_eq!((record.method.as_deref(), record.path.as_deref()), (Some("POST"), Some("/orders/4")));
    assert_eq!((record.attempts, record.finished_ms, record.due_ms), (1, Some(9000), None));
    let view = reader.record(&all.tenant, id(1)).unwrap().unwrap();
    assert_eq!((view.listing.seq, view.request.unwrap().body_bytes), (1, 6));
    assert_eq!(reader.record(&all.tenant, id(7)).unwrap(), None, "it is another tenant's");
    assert_eq!(reader.oldest(&lane("acme")).unwrap(), Some(1001));
    assert_eq!(reader.oldest(&lane("nobody")).unwrap(), None);
    begin(&mut *log, Seq(1), 0);
    finish(&mut *log, Seq(1), 1, WHOLE);
    assert_eq!(reader.oldest(&lane("acme")).unwrap(), Some(1002));
}

pub(super) fn who_reads_bodies_is_in_the_audit(place: &dyn Place) {
    let mut log = place.open();
    put(&mut *log, 1, None);
    let export = Act::Export { upstream: "api".parse().unwrap(), records: 7 };
    intervened(by_hand(&mut *log, export));
    drop(log);
    assert_eq!(audit(&*place.open()), ["operator queue.export 7 bodies"]);
}

//! What every log must do: one suite, run against each. Beside it, random changes on all of them must read alike.

use beamline_model::{OnDead, TenantName, UpstreamName};
use bytes::Bytes;
use proptest::prelude::*;

use super::{memory::MemoryDisk, *};
use crate::{WholeResponse, idempotency::Fingerprint, record::State};

/// A place where a log can be opened again and again: each opening is a new owner.
trait Place {
    fn open(&self) -> Box<dyn Log>;
}

impl Place for MemoryDisk {
    fn open(&self) -> Box<dyn Log> {
        Box::new(MemoryDisk::open(self))
    }
}

struct SqlitePlace(tempfile::TempDir);

impl SqlitePlace {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
}

impl Place for SqlitePlace {
    fn open(&self) -> Box<dyn Log> {
        let mut log = SqliteLog::open(&self.0.path().join("queue.db")).unwrap();
        log.take_over().unwrap();
        Box::new(log)
    }
}

pub(super) fn lane(tenant: &str) -> Lane {
    Lane { tenant: tenant.parse::<TenantName>().unwrap(), upstream: "api".parse::<UpstreamName>().unwrap() }
}

fn id(n: u64) -> RecordId {
    RecordId::from_bytes(u128::from(n).to_be_bytes())
}

pub(super) fn append(n: u64, key: Option<&str>) -> Box<Append> {
    let body = if n.is_multiple_of(3) {
        StoredBody::File { name: format!("{n:032x}").parse().unwrap(), len: 99_000 }
    } else {
        StoredBody::Inline(Bytes::from(format!("body {n}")))
    };
    Box::new(Append {
        id: id(n),
        secret: SecretHash([7; 32]),
        lane: lane("acme"),
        ordering_key: key.map(str::to_owned),
        on_dead: OnDead::Continue,
        repeat_safe: n.is_multiple_of(2),
        accepted_ms: 1000 + n,
        delay_ms: 0,
        expires_ms: 50_000 + n,
        size: 600 + n,
        key_use: None,
        content: Content {
            id: id(n),
            revision: 3,
            method: "POST".into(),
            target: format!("/orders/{n}?q=1"),
            host: "acme.test".into(),
            headers: vec![("content-type".into(), b"text/plain".to_vec()), ("x-raw".into(), vec![0xff, 0])],
            sealed: (!n.is_multiple_of(2)).then(|| Bytes::from(format!("sealed {n}\0"))),
            body,
            accepted_ms: 1000 + n,
            trace: TraceRef { trace_id: [1; 16], span_id: [2; 8], sampled: true },
            request_id: format!("request-{n}"),
        },
    })
}

fn one(log: &mut dyn Log, change: Change) -> Effect {
    let mut effects = log.commit(&[change]).unwrap();
    assert_eq!(effects.len(), 1);
    effects.remove(0)
}

fn put(log: &mut dyn Log, n: u64, key: Option<&str>) -> (Seq, bool) {
    match one(log, Change::Append(append(n, key))) {
        Effect::Appended { seq, front } => (seq, front),
        other => panic!("{other:?}"),
    }
}

fn begin(log: &mut dyn Log, seq: Seq, attempts: u32) -> Effect {
    let epoch = log.epoch();
    one(log, Change::Begin { seq, attempts, epoch })
}

fn attempt(log: &dyn Log, seq: Seq, attempts: u32) -> AttemptRef {
    AttemptRef { seq, attempts, epoch: log.epoch() }
}

fn finish(log: &mut dyn Log, seq: Seq, attempts: u32, end: End) -> Effect {
    let attempt = attempt(log, seq, attempts);
    let note = Note { status: Some(200), error: None };
    one(log, Change::Finish { attempt, end, at_ms: 9000, note, response: None })
}

const WHOLE: End = End::Delivered { response_complete: true };

fn ended(effect: Effect) -> Ended {
    match effect {
        Effect::Ended(ended) => *ended,
        other => panic!("{other:?}"),
    }
}

fn state(log: &dyn Log, n: u64) -> State {
    log.reader().unwrap().receipt(id(n)).unwrap().unwrap().view.state
}

fn window(log: &dyn Log) -> Vec<i64> {
    log.reader().unwrap().window(&lane("acme"), 100).unwrap().iter().map(|c| c.seq.0).collect()
}

fn a_missed_attempt_counts_and_leaves_its_record_queued(place: &dyn Place) {
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

fn what_is_committed_is_read_back_after_a_restart(place: &dyn Place) {
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

fn a_record_is_begun_once(place: &dyn Place) {
    let mut log = place.open();
    let (seq, _) = put(&mut *log, 1, None);
    assert_eq!(begin(&mut *log, seq, 1), Effect::Stale, "it has had no attempt");
    assert_eq!(begin(&mut *log, seq, 0), Effect::Done);
    assert_eq!(begin(&mut *log, seq, 0), Effect::Done, "the same change again is the same");
    assert_eq!(begin(&mut *log, seq, 1), Effect::Stale);
    assert_eq!(state(&*log, 1), State::Delivering);
    assert!(window(&*log).is_empty());
}

fn a_retry_is_due_when_it_says_and_remembers_why(place: &dyn Place) {
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

fn a_delayed_record_is_due_when_it_says_and_holds_its_key(place: &dyn Place) {
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

fn a_delivered_record_gives_its_content_up_and_keeps_its_receipt(place: &dyn Place) {
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

fn a_dead_record_keeps_its_content_until_it_is_pruned(place: &dyn Place) {
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

fn of_a_key_only_the_first_is_at_the_front(place: &dyn Place) {
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

fn what_expires_behind_others_leaves_the_front_alone(place: &dyn Place) {
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

fn expiry_goes_page_by_page_the_earliest_first(place: &dyn Place) {
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

fn held_records_wait_until_their_lane_is_released(place: &dyn Place) {
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

fn recovery_puts_back_what_is_safe_and_ends_what_is_not(place: &dyn Place) {
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

fn a_disowned_record_is_never_delivered(place: &dyn Place) {
    let mut log = place.open();
    let (seq, _) = put(&mut *log, 1, Some("k"));
    let (next, _) = put(&mut *log, 2, Some("k"));
    let effect = one(&mut *log, Change::Disown { id: id(1), at_ms: 5 });
    assert_eq!(ended(effect).promoted.unwrap().seq, next);
    assert_eq!(one(&mut *log, Change::Disown { id: id(77), at_ms: 5 }), Effect::Stale);
    assert_eq!(state(&*log, 1), State::Dead { reason: DeadReason::Unconfirmed });
    assert_eq!(begin(&mut *log, seq, 0), Effect::Stale);
}

fn trimming_takes_the_oldest_receipts_and_no_dead_letters(place: &dyn Place) {
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

fn the_census_counts_what_is_there(place: &dyn Place) {
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

fn by_hand(log: &mut dyn Log, act: Act) -> Effect {
    let (tenant, actor) = ("acme".parse().unwrap(), "operator".to_owned());
    one(log, Change::Intervene(Box::new(Intervention { tenant, actor, at_ms: 9500, act })))
}

fn intervened(effect: Effect) -> Intervened {
    match effect {
        Effect::Intervened(done) => *done,
        other => panic!("{other:?}"),
    }
}

/// The audit of what people did, as lines.
fn audit(log: &dyn Log) -> Vec<String> {
    let rows = log.reader().unwrap().audit(None, 0, 100).unwrap();
    let by_hand = rows.iter().filter(|row| row.actor != "node");
    by_hand.map(|r| format!("{} {} {} {}", r.actor, r.action, r.count, r.detail)).collect()
}

fn dead(reason: DeadReason) -> State {
    State::Dead { reason }
}

fn kill(log: &mut dyn Log, seq: Seq, reason: DeadReason) {
    begin(log, seq, 0);
    ended(finish(log, seq, 1, End::Dead(reason)));
}

fn only_what_waits_can_be_cancelled(place: &dyn Place) {
    let mut log = place.open();
    let seqs: Vec<_> = [3, 1, 2].map(|n| put(&mut *log, n, (n > 1).then_some("k")).0).to_vec();
    let done = intervened(by_hand(&mut *log, Act::Cancel { id: id(3) }));
    let [end] = &done.ended[..] else { panic!("{done:?}") };
    assert_eq!((end.size, end.delivered, end.erased, end.freed.is_some()), (603, false, true, true));
    assert_eq!(end.promoted.as_ref().unwrap().seq, seqs[2], "the next of its key goes on");
    assert_eq!(state(&*log, 3), dead(DeadReason::Cancelled));
    assert_eq!(log.reader().unwrap().content(seqs[0]).unwrap(), None);
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

fn a_discarded_dead_letter_is_a_receipt_and_nothing_more(place: &dyn Place) {
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

fn a_dead_letter_is_queued_again_behind_what_came_since(place: &dyn Place) {
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

fn what_must_not_be_sent_again_is_not_queued_again(place: &dyn Place) {
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

fn a_purge_goes_page_by_page_and_not_beyond_where_it_began(place: &dyn Place) {
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

fn of_a_paused_lane_nothing_is_begun(place: &dyn Place) {
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

fn a_lane_has_the_rate_that_it_was_last_given(place: &dyn Place) {
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

/// A record whose death pauses its key.
fn put_pausing(log: &mut dyn Log, n: u64, key: &str) -> Seq {
    let mut append = append(n, Some(key));
    append.on_dead = OnDead::PauseKey;
    match one(log, Change::Append(append)) {
        Effect::Appended { seq, .. } => seq,
        other => panic!("{other:?}"),
    }
}

/// Which of the records 1 to `last` are shown as paused by, or behind, a dead one of their key.
fn paused(log: &dyn Log, last: u64) -> Vec<u64> {
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

fn lines(log: &dyn Log) -> Vec<(String, u64)> {
    let mut lines = vec![];
    let mut visit = |row| {
        if let CensusRow::Key { key, line, .. } = row {
            lines.push((key, line));
        }
    };
    log.reader().unwrap().census(&mut visit).unwrap();
    lines
}

fn a_record_that_dies_pauses_its_key_where_it_was_told_to(place: &dyn Place) {
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

fn what_expires_or_was_lost_in_a_crash_pauses_its_key_too(place: &dyn Place) {
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
fn ended_by(effect: Effect) -> Option<Seq> {
    ended(effect).promoted.map(|next| next.seq)
}

fn a_paused_key_goes_on_when_it_is_resumed_or_its_dead_letter_is_dealt_with(place: &dyn Place) {
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

fn what_the_node_ends_and_deletes_is_in_the_audit(place: &dyn Place) {
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

fn of_a_deleted_tenant_no_finished_record_is_left(place: &dyn Place) {
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

fn all() -> RecordQuery {
    RecordQuery {
        tenant: "acme".parse().unwrap(),
        upstream: None,
        state: None,
        ordering_key: None,
        after: 0,
        limit: 100,
    }
}

fn records_are_listed_page_by_page_and_only_to_their_tenant(place: &dyn Place) {
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

fn used(n: u8) -> KeyUse {
    KeyUse { scope: KeyScope([n; 32]), fingerprint: Fingerprint([n; 32]) }
}

/// Appends a record whose client used a key.
fn put_used(log: &mut dyn Log, n: u64, key_use: KeyUse) -> Effect {
    let mut append = append(n, None);
    append.key_use = Some(key_use);
    one(log, Change::Append(append))
}

fn holder(log: &dyn Log, scope: u8) -> Option<Holder> {
    log.reader().unwrap().holder(&KeyScope([scope; 32])).unwrap()
}

fn scopes(log: &dyn Log) -> Vec<u8> {
    let mut scopes = vec![];
    let mut visit = |row| {
        if let CensusRow::Scope(scope) = row {
            scopes.push(scope.0[0])
        }
    };
    log.reader().unwrap().census(&mut visit).unwrap();
    scopes
}

fn one_key_makes_one_record(place: &dyn Place) {
    let mut log = place.open();
    let first = Holder { id: id(1), fingerprint: used(7).fingerprint };
    let group = [1, 2].map(|n| {
        let mut append = append(n, None);
        append.key_use = Some(used(7));
        Change::Append(append)
    });
    let effects = log.commit(&group).unwrap();
    assert_eq!(effects, [Effect::Appended { seq: Seq(1), front: true }, Effect::KeyTaken(first)]);
    assert!(log.reader().unwrap().receipt(id(2)).unwrap().is_none(), "nothing of the second is there");
    let other_request = KeyUse { fingerprint: Fingerprint([9; 32]), ..used(7) };
    assert_eq!(put_used(&mut *log, 3, other_request), Effect::KeyTaken(first), "whatever it is");
    assert!(matches!(put_used(&mut *log, 4, used(8)), Effect::Appended { .. }));
    drop(log);
    let mut log = place.open();
    assert_eq!((holder(&*log, 7), holder(&*log, 9)), (Some(first), None));
    assert_eq!(scopes(&*log), [7, 8]);
    // Delivered, it has the key until its receipt is deleted.
    begin(&mut *log, Seq(1), 0);
    assert_eq!(ended(finish(&mut *log, Seq(1), 1, WHOLE)).released, None);
    assert_eq!(put_used(&mut *log, 5, used(7)), Effect::KeyTaken(first));
    let prune = Change::Prune { delivered_before_ms: u64::MAX, dead_before_ms: 0, now_ms: 1, limit: 10 };
    let Effect::Pruned { pruned, .. } = one(&mut *log, prune) else { panic!() };
    assert_eq!(pruned[0].released, Some(used(7).scope));
    assert_eq!((holder(&*log, 7), scopes(&*log)), (None, vec![8]));
    assert!(matches!(put_used(&mut *log, 5, used(7)), Effect::Appended { .. }));
}

fn what_may_be_sent_again_gives_its_key_up(place: &dyn Place) {
    let mut log = place.open();
    for (n, reason) in (1..).zip(DeadReason::ALL) {
        let key = used(u8::try_from(n).unwrap());
        let Effect::Appended { seq, .. } = put_used(&mut *log, n, key) else { panic!() };
        let released = match reason {
            DeadReason::Cancelled => {
                intervened(by_hand(&mut *log, Act::Cancel { id: id(n) })).ended.remove(0).released
            }
            DeadReason::Discarded => {
                intervened(by_hand(&mut *log, Act::Discard { id: id(n) })).ended.remove(0).released
            }
            reason => {
                begin(&mut *log, seq, 0);
                ended(finish(&mut *log, seq, 1, End::Dead(reason))).released
            }
        };
        let keeps = reason == DeadReason::Indeterminate;
        assert_eq!(released, (!keeps).then_some(key.scope), "{reason:?}");
        let expected = keeps.then_some(Holder { id: id(n), fingerprint: key.fingerprint });
        assert_eq!(holder(&*log, key.scope.0[0]), expected, "{reason:?}");
    }
    // Given up for good, so is the one of which nobody knew.
    let erased = intervened(by_hand(&mut *log, Act::Discard { id: id(4) })).erased.remove(0);
    assert_eq!((erased.released, scopes(&*log)), (Some(used(4).scope), vec![]));
}

fn who_is_queued_again_has_its_key_again_unless_another_has_it(place: &dyn Place) {
    let mut log = place.open();
    for n in [1, 2, 3] {
        put_used(&mut *log, n, used(u8::try_from(n).unwrap()));
        let reason = if n == 3 { DeadReason::Indeterminate } else { DeadReason::Rejected };
        kill(&mut *log, Seq(i64::try_from(n).unwrap()), reason);
    }
    put_used(&mut *log, 4, used(2));
    let mut requeue =
        |n| intervened(by_hand(&mut *log, Act::Requeue { id: id(n), may_repeat: true })).requeued.unwrap();
    assert_eq!(requeue(1).retaken, Some(used(1).scope));
    assert_eq!(requeue(2).retaken, None, "it is the other's by now");
    assert_eq!(requeue(3).retaken, None, "it never gave it up");
    assert_eq!([1, 2, 3].map(|n| holder(&*log, n).unwrap().id), [id(1), id(4), id(3)]);
    let ended = intervened(by_hand(&mut *log, Act::Discard { id: id(2) })).ended.remove(0);
    assert_eq!((ended.released, holder(&*log, 2).unwrap().id), (None, id(4)), "nor does it take it along");
}

/// An answer that is kept until then.
fn response(until_ms: u64, whole: bool) -> Box<NewResponse> {
    let headers = vec![("content-type".to_owned(), b"text/plain".to_vec())];
    let whole = whole.then(|| WholeResponse { headers, body: Bytes::from_static(b"done") });
    Box::new(NewResponse { lane: lane("acme"), kept: KeptResponse { status: 201, until_ms, whole } })
}

/// A record that ends with an answer.
fn put_answered(log: &mut dyn Log, n: u64, end: End, response: Box<NewResponse>) -> Ended {
    let (seq, _) = put(log, n, None);
    begin(log, seq, 0);
    let (attempt, note) = (attempt(log, seq, 1), Note::default());
    ended(one(log, Change::Finish { attempt, end, at_ms: 9000, note, response: Some(response) }))
}

fn responses(log: &dyn Log) -> Option<(u64, u64)> {
    let mut found = None;
    let mut visit = |row| {
        if let CensusRow::Responses { bytes, until_ms, .. } = row {
            found = Some((bytes, until_ms));
        }
    };
    log.reader().unwrap().census(&mut visit).unwrap();
    found
}

fn an_answer_is_kept_until_its_time_is_over(place: &dyn Place) {
    let mut log = place.open();
    let (whole, cut) = (response(9500, true), response(9400, false));
    let (size, least) = (whole.kept.bytes(), cut.kept.bytes());
    assert_eq!(size - least, "content-typetext/plaindone".len() as u64);
    assert_eq!(put_answered(&mut *log, 1, WHOLE, whole.clone()).response, size);
    let rejected = End::Dead(DeadReason::Rejected);
    assert_eq!(put_answered(&mut *log, 2, rejected, cut.clone()).response, least);
    put(&mut *log, 3, None);
    drop(log);
    let mut log = place.open();
    let mut reader = log.reader().unwrap();
    assert_eq!(reader.response(id(1)).unwrap(), Some(whole.kept.clone()));
    assert_eq!(reader.response(id(2)).unwrap(), Some(cut.kept.clone()));
    assert_eq!(reader.response(id(3)).unwrap(), None);
    let mut told = |n| reader.receipt(id(n)).unwrap().unwrap().view.response;
    assert_eq!([1, 2, 3].map(&mut told), [Some(whole.kept.view()), Some(cut.kept.view()), None]);
    assert_eq!(responses(&*log), Some((size + least, 9400)));
    let forget = |now_ms, limit| Change::Forget { now_ms, limit };
    let none = Effect::Forgotten { freed: vec![], next_ms: Some(9400) };
    assert_eq!(one(&mut *log, forget(9399, 10)), none);
    let first = Effect::Forgotten { freed: vec![(lane("acme"), least)], next_ms: Some(9500) };
    assert_eq!(one(&mut *log, forget(10_000, 1)), first);
    let rest = Effect::Forgotten { freed: vec![(lane("acme"), size)], next_ms: None };
    assert_eq!(one(&mut *log, forget(10_000, 10)), rest);
    assert_eq!((log.reader().unwrap().response(id(1)).unwrap(), responses(&*log)), (None, None));
    assert_eq!(state(&*log, 1), State::Delivered { response_complete: true }, "the receipt stays");
}

fn an_answer_goes_with_its_record(place: &dyn Place) {
    let mut log = place.open();
    let size = response(0, true).kept.bytes();
    for (n, end) in [(1, WHOLE), (2, End::Dead(DeadReason::Rejected)), (4, End::Dead(DeadReason::Rejected))] {
        put_answered(&mut *log, n, end, response(u64::MAX, true));
    }
    let erased = intervened(by_hand(&mut *log, Act::Discard { id: id(2) })).erased.remove(0);
    assert_eq!(erased.response, size, "it is content");
    let requeue = Act::Requeue { id: id(4), may_repeat: false };
    assert_eq!(intervened(by_hand(&mut *log, requeue)).requeued.unwrap().response, size);
    let prune =
        Change::Prune { delivered_before_ms: u64::MAX, dead_before_ms: u64::MAX, now_ms: 1, limit: 10 };
    let Effect::Pruned { pruned, .. } = one(&mut *log, prune) else { panic!() };
    assert_eq!(pruned.iter().map(|pruned| pruned.response).collect::<Vec<_>>(), [size, 0]);
    assert_eq!(responses(&*log), None);
    begin(&mut *log, Seq(4), 1);
    let (attempt, note) = (attempt(&*log, Seq(4), 2), Note::default());
    let response = Some(response(u64::MAX, true));
    let again = Change::Finish { attempt, end: WHOLE, at_ms: 9000, note, response };
    assert_eq!(ended(one(&mut *log, again)).response, size, "there is another");
}

fn a_reopened_log_is_the_same_log(place: &dyn Place) {
    let mut log = place.open();
    let (seq, _) = put(&mut *log, 1, None);
    begin(&mut *log, seq, 0);
    let epoch = log.epoch();
    log.reopen().unwrap();
    log.maintain().unwrap();
    assert_eq!((log.epoch(), state(&*log, 1)), (epoch, State::Delivering));
    ended(finish(&mut *log, seq, 1, WHOLE));
}

macro_rules! suite {
    ($($claim:ident),* $(,)?) => {
        mod in_memory {
            $(#[test] fn $claim() { super::$claim(&super::MemoryDisk::default()); })*
        }
        mod in_sqlite {
            $(#[test] fn $claim() { super::$claim(&super::SqlitePlace::new()); })*
        }
    };
}
suite!(
    what_is_committed_is_read_back_after_a_restart,
    a_missed_attempt_counts_and_leaves_its_record_queued,
    a_record_is_begun_once,
    a_retry_is_due_when_it_says_and_remembers_why,
    a_delayed_record_is_due_when_it_says_and_holds_its_key,
    a_delivered_record_gives_its_content_up_and_keeps_its_receipt,
    a_dead_record_keeps_its_content_until_it_is_pruned,
    of_a_key_only_the_first_is_at_the_front,
    what_expires_behind_others_leaves_the_front_alone,
    expiry_goes_page_by_page_the_earliest_first,
    held_records_wait_until_their_lane_is_released,
    recovery_puts_back_what_is_safe_and_ends_what_is_not,
    a_disowned_record_is_never_delivered,
    trimming_takes_the_oldest_receipts_and_no_dead_letters,
    the_census_counts_what_is_there,
    a_reopened_log_is_the_same_log,
    an_answer_is_kept_until_its_time_is_over,
    an_answer_goes_with_its_record,
    one_key_makes_one_record,
    what_may_be_sent_again_gives_its_key_up,
    who_is_queued_again_has_its_key_again_unless_another_has_it,
    only_what_waits_can_be_cancelled,
    a_discarded_dead_letter_is_a_receipt_and_nothing_more,
    a_dead_letter_is_queued_again_behind_what_came_since,
    what_must_not_be_sent_again_is_not_queued_again,
    a_purge_goes_page_by_page_and_not_beyond_where_it_began,
    of_a_paused_lane_nothing_is_begun,
    a_lane_has_the_rate_that_it_was_last_given,
    a_record_that_dies_pauses_its_key_where_it_was_told_to,
    what_expires_or_was_lost_in_a_crash_pauses_its_key_too,
    a_paused_key_goes_on_when_it_is_resumed_or_its_dead_letter_is_dealt_with,
    what_the_node_ends_and_deletes_is_in_the_audit,
    of_a_deleted_tenant_no_finished_record_is_left,
    records_are_listed_page_by_page_and_only_to_their_tenant,
);

/// A step of the comparison. Records are named by their order of appending.
#[derive(Clone, Debug)]
enum Step {
    Append { key: Option<u8>, used: Option<u8>, pausing: bool, delay_ms: u64 },
    Begin { record: u8, attempts: u32 },
    Retry { record: u8, attempts: u32, due: u64 },
    Hold { record: u8, attempts: u32 },
    Release,
    Finish { record: u8, attempts: u32, dead: bool, keep: Option<u8> },
    Forget { now: u64, limit: usize },
    Expire { now: u64, limit: usize },
    Disown { record: u8 },
    Prune { before: u64, limit: usize },
    Trim,
    ByHand { record: u8, what: u8 },
    Purge { after: u8, limit: usize },
    Pause { paused: bool },
    ResumeKey { key: u8 },
    Restart,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let record = 1..12_u8;
    let attempts = 0..3_u32;
    prop_oneof![
        6 => (proptest::option::of(0..3_u8), proptest::option::of(0..3_u8), any::<bool>(), 0..3_u64)
            .prop_map(|(key, used, pausing, delay_ms)| Step::Append { key, used, pausing, delay_ms }),
        8 => (record.clone(), attempts.clone()).prop_map(|(record, attempts)| Step::Begin { record, attempts }),
        4 => (record.clone(), 1..4_u32, 0..100_000_u64)
            .prop_map(|(record, attempts, due)| Step::Retry { record, attempts, due }),
        1 => (record.clone(), 1..4_u32).prop_map(|(record, attempts)| Step::Hold { record, attempts }),
        1 => Just(Step::Release),
        6 => (record.clone(), 1..4_u32, any::<bool>(), proptest::option::of(0..20_u8))
            .prop_map(|(record, attempts, dead, keep)| Step::Finish { record, attempts, dead, keep }),
        1 => (0..60_u64, 1..4_usize).prop_map(|(now, limit)| Step::Forget { now, limit }),
        1 => (50_000..50_014_u64, 1..4_usize).prop_map(|(now, limit)| Step::Expire { now, limit }),
        1 => record.clone().prop_map(|record| Step::Disown { record }),
        4 => (record, 0..4_u8).prop_map(|(record, what)| Step::ByHand { record, what }),
        1 => (0..6_u8, 1..4_usize).prop_map(|(after, limit)| Step::Purge { after, limit }),
        1 => any::<bool>().prop_map(|paused| Step::Pause { paused }),
        1 => (0..3_u8).prop_map(|key| Step::ResumeKey { key }),
        1 => (0..60_u64, 1..4_usize).prop_map(|(before, limit)| Step::Prune { before, limit }),
        1 => Just(Step::Trim),
        1 => Just(Step::Restart),
        1 => Just(Step::Reopen),
    ]
}

const KEYS: [&str; 3] = ["a", "b", "c"];

fn manual(at_ms: u64, act: Act) -> Change {
    let tenant = "acme".parse().unwrap();
    Change::Intervene(Box::new(Intervention { tenant, actor: "tenant/acme".into(), at_ms, act }))
}

/// The same changes for either log: finishes are at distinct times, so that "the oldest" means one record.
fn change(step: &Step, appended: &mut u64, finishes: &mut u64, epoch: u64) -> Option<Change> {
    let attempt =
        |record: &u8, attempts: &u32| AttemptRef { seq: Seq(i64::from(*record)), attempts: *attempts, epoch };
    Some(match step {
        Step::Append { key, used: n, pausing, delay_ms } => {
            *appended += 1;
            let mut append = append(*appended, key.map(|k| KEYS[usize::from(k)]));
            append.key_use = n.map(used);
            append.on_dead = if *pausing { OnDead::PauseKey } else { OnDead::Continue };
            append.delay_ms = *delay_ms;
            Change::Append(append)
        }
        Step::Begin { record, attempts } => {
            Change::Begin { seq: Seq(i64::from(*record)), attempts: *attempts, epoch }
        }
        Step::Retry { record, attempts, due } => Change::Retry {
            attempt: attempt(record, attempts),
            again: Candidate {
                due_ms: *due,
                blame: due.is_multiple_of(2).then_some(Blame { failures: 2, since_ms: *due }),
                ..append(u64::from(*record), None).candidate(Seq(i64::from(*record)))
            },
            note: Note { status: None, error: Some("again".into()) },
        },
        Step::Hold { record, attempts } => Change::Hold { attempt: attempt(record, attempts) },
        Step::Release => Change::Release { lane: lane("acme") },
        Step::Finish { record, attempts, dead, keep } => {
            *finishes += 1;
            let end = if *dead { End::Dead(DeadReason::Rejected) } else { WHOLE };
            Change::Finish {
                attempt: attempt(record, attempts),
                end,
                at_ms: *finishes,
                note: Note::default(),
                response: keep.map(|n| response(*finishes + u64::from(n), n > 0)),
            }
        }
        Step::Forget { now, limit } => Change::Forget { now_ms: *now, limit: *limit },
        Step::Expire { now, limit } => {
            *finishes += 1;
            Change::Expire { now_ms: *now, limit: *limit }
        }
        Step::Disown { record } => {
            *finishes += 1;
            Change::Disown { id: id(u64::from(*record)), at_ms: *finishes }
        }
        Step::Prune { before, limit } => {
            // Some of them are in another hour.
            Change::Prune {
                now_ms: before * 100_000,
                delivered_before_ms: *before,
                dead_before_ms: before / 2,
                limit: *limit,
            }
        }
        Step::Trim => Change::Trim { now_ms: 9700, limit: 1 },
        Step::ByHand { record, what } => {
            *finishes += 1;
            let id = id(u64::from(*record));
            manual(
                *finishes,
                match what {
                    0 => Act::Cancel { id },
                    1 => Act::Discard { id },
                    what => Act::Requeue { id, may_repeat: *what == 2 },
                },
            )
        }
        Step::Purge { after, limit } => {
            *finishes += 1;
            let states = vec![StateName::Queued, StateName::Dead];
            let (upstream, after) = ("api".parse().unwrap(), Seq(i64::from(*after)));
            manual(*finishes, Act::Purge { upstream, states, after, until: None, limit: *limit })
        }
        Step::Pause { paused } => manual(5, Act::Pause { upstream: "api".parse().unwrap(), paused: *paused }),
        Step::ResumeKey { key } => {
            let key = KEYS[usize::from(*key)].to_owned();
            manual(5, Act::ResumeKey { upstream: "api".parse().unwrap(), key, limit: 2 })
        }
        Step::Restart | Step::Reopen => return None,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sqlite_does_what_the_model_does(steps in proptest::collection::vec(step(), 1..80)) {
        let places: [Box<dyn Place>; 2] = [Box::new(MemoryDisk::default()), Box::new(SqlitePlace::new())];
        let mut logs = places.each_ref().map(|place| place.open());
        let (mut appended, mut finishes) = (0, 0);
        for step in &steps {
            match step {
                Step::Restart => {
                    drop(logs);
                    logs = places.each_ref().map(|place| place.open());
                    let effects = logs.each_mut().map(|log| {
                        let epoch = log.epoch();
                        one(&mut **log, Change::Recover { epoch, now_ms: 70, limit: 2 })
                    });
                    prop_assert_eq!(&effects[0], &effects[1], "{:?}", step);
                }
                Step::Reopen => logs.iter_mut().for_each(|log| log.reopen().unwrap()),
                _ => {
                    let change = change(step, &mut appended, &mut finishes, logs[0].epoch()).unwrap();
                    let effects = logs.each_mut().map(|log| one(&mut **log, change.clone()));
                    prop_assert_eq!(&effects[0], &effects[1], "{:?}", step);
                }
            }
        }
        let views = logs.each_ref().map(|log| {
            let mut reader = log.reader().unwrap();
            let mut census = vec![];
            reader.census(&mut |row| census.push(row)).unwrap();
            let receipts: Vec<_> =
                (1..=appended).map(|n| reader.receipt(id(n)).unwrap().map(|r| (r.lane, r.view))).collect();
            let contents: Vec<_> =
                (1..=appended).map(|n| reader.content(Seq(i64::try_from(n).unwrap())).unwrap()).collect();
            let by_hand = (
                reader.records(&all()).unwrap(),
                reader.audit(None, 0, 100).unwrap(),
                reader.paused().unwrap(),
                reader.paused_keys().unwrap(),
                reader.oldest(&lane("acme")).unwrap(),
            );
            let holders: Vec<_> = (0..3).map(|n| holder(&**log, n)).collect();
            let responses: Vec<_> = (1..=appended).map(|n| reader.response(id(n)).unwrap()).collect();
            let by_hand = (by_hand, holders, responses);
            (reader.window(&lane("acme"), 100).unwrap(), census, receipts, contents, by_hand)
        });
        prop_assert_eq!(&views[0], &views[1]);
    }
}

//! Clients' `Idempotency-Key`s.

use super::*;

pub(super) fn used(n: u8) -> KeyUse {
    KeyUse { scope: KeyScope([n; 32]), fingerprint: Fingerprint([n; 32]) }
}

/// Appends a record whose client used a key.
pub(super) fn put_used(log: &mut dyn Log, n: u64, key_use: KeyUse) -> Effect {
    let mut append = append(n, None);
    append.key_use = Some(key_use);
    one(log, Change::Append(append))
}

pub(super) fn holder(log: &dyn Log, scope: u8) -> Option<Holder> {
    log.reader().unwrap().holder(&KeyScope([scope; 32])).unwrap()
}

pub(super) fn scopes(log: &dyn Log) -> Vec<u8> {
    let mut scopes = vec![];
    let mut visit = |row| {
        if let CensusRow::Scope(scope) = row {
            scopes.push(scope.0[0])
        }
    };
    log.reader().unwrap().census(&mut visit).unwrap();
    scopes
}

pub(super) fn one_key_makes_one_record(place: &dyn Place) {
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

pub(super) fn what_may_be_sent_again_gives_its_key_up(place: &dyn Place) {
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

pub(super) fn who_is_queued_again_has_its_key_again_unless_another_has_it(place: &dyn Place) {
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

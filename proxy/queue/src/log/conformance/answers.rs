//! Origins' answers that are kept.

use super::*;

/// An answer that is kept until then.
pub(super) fn response(until_ms: u64, whole: bool) -> Box<NewResponse> {
    let headers = vec![("content-type".to_owned(), b"text/plain".to_vec())];
    let whole = whole.then(|| WholeResponse { headers, body: Bytes::from_static(b"done") });
    Box::new(NewResponse { lane: lane("acme"), kept: KeptResponse { status: 201, until_ms, whole } })
}

/// A record that ends with an answer.
pub(super) fn put_answered(log: &mut dyn Log, n: u64, end: End, response: Box<NewResponse>) -> Ended {
    let (seq, _) = put(log, n, None);
    begin(log, seq, 0);
    let (attempt, note) = (attempt(log, seq, 1), Note::default());
    ended(one(log, Change::Finish { attempt, end, at_ms: 9000, note, response: Some(response) }))
}

pub(super) fn responses(log: &dyn Log) -> Option<(u64, u64)> {
    let mut found = None;
    let mut visit = |row| {
        if let CensusRow::Responses { bytes, until_ms, .. } = row {
            found = Some((bytes, until_ms));
        }
    };
    log.reader().unwrap().census(&mut visit).unwrap();
    found
}

pub(super) fn an_answer_is_kept_until_its_time_is_over(place: &dyn Place) {
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

pub(super) fn an_answer_goes_with_its_record(place: &dyn Place) {
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

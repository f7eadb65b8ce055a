//! A judge that finds nothing must be able to find everything: a good run first, then one thing wrong at a time.

use std::collections::BTreeMap;

use super::*;
use crate::checker::{Intent, Ledger};

/// Everything that a judge is shown.
struct Run {
    ledger: Ledger,
    arrivals: Vec<Arrival>,
    receipts: HashMap<String, Option<Receipt>>,
    quota: Quota,
}

fn intent(id: &str) -> Intent {
    Intent {
        id: id.into(),
        method: "POST".into(),
        body: format!("the body of {id}").into(),
        ordering_key: id.split_once('-').map(|(key, _)| key.into()),
        repeat_safe: false,
        origin_answers: 200,
    }
}

fn put(id: &str) -> Intent {
    Intent { method: "PUT".into(), repeat_safe: true, ..intent(id) }
}

fn receipt(state: &str, reason: Option<&str>, attempts: u64, last_status: Option<u16>) -> Receipt {
    Receipt {
        state: state.into(),
        reason: reason.map(Into::into),
        attempts,
        last_status,
        last_error: None,
        response_complete: (state == "delivered").then_some(true),
    }
}

fn delivered() -> Receipt {
    receipt("delivered", None, 1, Some(200))
}

impl Run {
    fn new() -> Self {
        Self { ledger: Ledger::default(), arrivals: Vec::new(), receipts: HashMap::new(), quota: Quota::NONE }
    }

    /// A client sends it whole and is answered.
    fn sent(&mut self, intent: Intent, status: u16) -> &mut Self {
        let id = intent.id.clone();
        self.ledger.begins(intent);
        self.ledger.sent_whole(&id);
        self.ledger.answered(&id, status, Some("/receipt"));
        self
    }

    /// It is in flight while the node crashes.
    fn crashed(&mut self, intent: Intent) -> &mut Self {
        let id = intent.id.clone();
        self.ledger.begins(intent);
        self.ledger.sent_whole(&id);
        self.ledger.crash_begins();
        self.ledger.crash_ends();
        self.ledger.unanswered(&id);
        self
    }

    fn arrives(&mut self, id: &str, attempt: Option<u64>) -> &mut Self {
        let exchanges = self.ledger.exchanges();
        let intent = &exchanges.iter().find(|e| e.intent.id == id).unwrap().intent;
        self.arrivals.push(Arrival {
            id: id.into(),
            whole: true,
            method: intent.method.clone(),
            body: intent.body.clone(),
            attempt,
            accepted: attempt.map(|_| "1.000".into()),
            mischief: None,
            came: Instant::now(),
        });
        self
    }

    fn tells(&mut self, id: &str, receipt: Receipt) -> &mut Self {
        self.receipts.insert(id.into(), Some(receipt));
        self
    }

    fn verdict(&self) -> Verdict {
        judge(&self.ledger.exchanges(), &self.arrivals, &self.receipts, self.quota)
    }

    /// The kinds of violations, each once.
    fn finds(&self) -> Vec<Kind> {
        kinds(&self.verdict().violations).into_keys().collect()
    }
}

/// A run with everything that may happen.
fn good() -> Run {
    let mut run = Run::new();
    run.sent(intent("a-1"), 202).sent(put("a-2"), 202).crashed(put("a-3")).sent(intent("live"), 200);
    run.sent(intent("refused"), 503)
        .sent(intent("waits"), 202)
        .crashed(intent("gone"))
        .sent(intent("b-1"), 202);
    run.sent(Intent { origin_answers: 404, ..intent("unwanted") }, 202);
    run.ledger.begins(intent("cut"));
    run.ledger.unanswered("cut");
    run.ledger.begins(intent("too-early"));
    run.ledger.never_left("too-early");
    run.arrives("live", None).arrives("a-1", Some(1)).arrives("a-2", Some(1)).arrives("a-2", Some(3));
    run.arrives("a-3", Some(1)).arrives("unwanted", Some(2)).arrives("b-1", Some(1));
    run.arrivals.push(Arrival {
        whole: false,
        body: b"the b".to_vec(),
        ..Arrival {
            id: "cut".into(),
            method: "POST".into(),
            body: vec![],
            whole: false,
            attempt: None,
            accepted: None,
            mischief: None,
            came: Instant::now(),
        }
    });
    run.tells("a-1", delivered()).tells("a-2", receipt("delivered", None, 3, Some(200)));
    run.tells("waits", receipt("queued", None, 4, None));
    run.tells("unwanted", receipt("dead", Some("rejected"), 2, Some(404)));
    run.tells("b-1", receipt("dead", Some("indeterminate"), 1, None));
    run
}

#[test]
fn a_good_run_has_no_violations_and_is_counted() {
    let verdict = good().verdict();
    assert_eq!(verdict.violations, []);
    let n = verdict.numbers;
    assert_eq!((n.begun, n.cut, n.live, n.refused), (11, 1, 1, 1));
    assert_eq!((n.acknowledged, n.delivered, n.rejected, n.indeterminate, n.open), (5, 2, 1, 1, 1));
    assert_eq!((n.full, n.timed_out, n.peak_records), (0, 0, 5));
    assert_eq!((n.unanswered, n.unseen_commits, n.in_flight_at_crashes, n.repeated), (2, 1, 2, 1));
}

#[test]
fn a_202_that_is_unknown_afterwards_is_lost() {
    let mut run = good();
    run.receipts.insert("waits".into(), None);
    assert_eq!(run.finds(), [Kind::Lost]);
    run.receipts.remove("waits");
    assert_eq!(run.finds(), [Kind::Lost], "a receipt that nobody asked for proves nothing");
}

#[test]
fn a_202_whose_body_is_gone_is_lost_too() {
    let dead = receipt("dead", Some("indeterminate"), 1, None);
    for (told, error) in [
        (&dead, "content-lost"),
        (&dead, "request-body"),
        (&receipt("queued", None, 4, None), "request-body"),
    ] {
        let mut run = good();
        run.tells("waits", Receipt { last_error: Some(error.into()), ..told.clone() });
        assert_eq!(run.finds(), [Kind::ContentLost], "{error}");
    }
}

#[test]
fn a_202_for_a_part_is_caught() {
    let mut run = good();
    run.ledger.begins(intent("part"));
    run.ledger.answered("part", 202, Some("/receipt"));
    run.tells("part", receipt("queued", None, 0, None));
    assert_eq!(run.finds(), [Kind::AcceptedInPart]);
}

#[test]
fn a_202_without_a_receipt_is_caught() {
    let mut run = good();
    run.ledger.begins(intent("bare"));
    run.ledger.sent_whole("bare");
    run.ledger.answered("bare", 202, None);
    run.tells("bare", receipt("queued", None, 0, None));
    assert_eq!(run.finds(), [Kind::FalseReceipt]);
}

#[test]
fn what_no_client_sent_whole_must_not_arrive() {
    let mut run = good();
    run.arrivals.push(Arrival { id: "nobody's".into(), ..run.arrivals[0].clone() });
    assert_eq!(run.finds(), [Kind::NeverSent]);
    let mut run = good();
    run.arrivals.pop();
    run.arrives("cut", None);
    assert_eq!(run.finds(), [Kind::NeverSent]);
    let mut run = good();
    run.arrives("too-early", None);
    assert_eq!(run.finds(), [Kind::NeverSent]);
}

#[test]
fn every_byte_of_a_body_counts_and_the_method_too() {
    let changes: [fn(&mut Arrival); 5] = [
        |a| a.body[3] ^= 1,
        |a| a.body.push(b'x'),
        |a| a.body.truncate(4),
        |a| a.body.clear(),
        |a| a.method = "PUT".into(),
    ];
    for change in changes {
        let mut run = good();
        change(&mut run.arrivals[0]);
        assert_eq!(run.finds(), [Kind::Altered]);
    }
    let mut run = good();
    run.arrivals.last_mut().unwrap().body = b"the B".to_vec();
    assert_eq!(run.finds(), [Kind::Altered], "of a part, too");
}

#[test]
fn what_is_not_safe_to_repeat_must_not_arrive_twice_from_wherever() {
    for attempt in [None, Some(2)] {
        let mut run = good();
        run.arrives("a-1", attempt).tells("a-1", receipt("delivered", None, 2, Some(200)));
        let finds = run.finds();
        assert!(finds.contains(&Kind::Repeated), "{finds:?}");
    }
    let mut run = good();
    let last = run.arrivals.last().unwrap().clone();
    run.arrivals.push(last);
    assert_eq!(run.finds(), [Kind::Repeated], "nor in part");
}

#[test]
fn what_arrived_and_is_not_safe_to_repeat_must_not_wait() {
    let mut run = good();
    run.arrives("waits", Some(4));
    assert_eq!(run.finds(), [Kind::WillRepeat]);
    run.tells("waits", receipt("delivering", None, 4, None));
    assert_eq!(run.finds(), [], "it may be under way");
}

#[test]
fn nothing_is_delivered_that_was_refused_or_answered() {
    for (id, expected) in [
        ("refused", vec![Kind::DeliveredThoughRefused]),
        ("live", vec![Kind::DeliveredThoughRefused, Kind::NotItsOrigins]),
    ] {
        let mut run = good();
        run.arrivals.retain(|a| a.id != id);
        run.arrives(id, Some(1));
        assert_eq!(run.finds(), expected, "{id}");
    }
}

#[test]
fn order_within_a_key_is_that_of_commits() {
    let mut run = good();
    let first = run.arrivals.iter().position(|a| a.id == "a-1").unwrap();
    let a1 = run.arrivals.remove(first);
    run.arrivals.insert(first + 1, a1);
    assert_eq!(run.finds(), [Kind::OutOfOrder], "a-2 before a-1");
    let mut run = good();
    let last = run.arrivals.iter().rposition(|a| a.id == "a-2").unwrap();
    let a2 = run.arrivals.remove(last);
    run.arrivals.push(a2);
    assert_eq!(run.finds(), [Kind::OutOfOrder], "a-2 again after a-3, whose commit nobody saw");
    let mut run = good();
    let b1 = run.arrivals.iter().position(|a| a.id == "b-1").unwrap();
    let b1 = run.arrivals.remove(b1);
    run.arrivals.insert(0, b1);
    assert_eq!(run.finds(), [], "other keys don't wait");
}

#[test]
fn a_live_request_must_not_pass_the_backlog_of_its_key() {
    let mut run = good();
    run.sent(intent("a-4"), 200).arrives("a-4", None);
    assert_eq!(run.finds(), []);
    let a4 = run.arrivals.pop().unwrap();
    run.arrivals.insert(0, a4);
    assert_eq!(run.finds(), [Kind::OutOfOrder]);
}

#[test]
fn receipts_that_cannot_be_true_are_caught() {
    for (id, told) in [
        ("waits", delivered()),
        ("unwanted", receipt("delivered", None, 2, Some(404))),
        ("a-1", receipt("delivered", None, 1, Some(204))),
        ("a-2", receipt("delivered", None, 2, Some(200))),
        ("a-1", receipt("dead", Some("rejected"), 1, Some(200))),
        ("waits", receipt("dead", Some("rejected"), 1, Some(404))),
        ("a-2", receipt("dead", Some("indeterminate"), 3, None)),
        ("waits", receipt("dead", Some("indeterminate"), 0, None)),
        ("waits", receipt("dead", Some("expired"), 1, None)),
        ("waits", receipt("dead", Some("exhausted"), 1, None)),
        ("waits", receipt("dead", Some("unconfirmed"), 1, None)),
        ("waits", receipt("dead", None, 1, None)),
        ("waits", receipt("lost in thought", None, 1, None)),
    ] {
        let mut run = good();
        run.tells(id, told.clone());
        assert_eq!(run.finds(), [Kind::FalseReceipt], "{id}: {told:?}");
    }
}

#[test]
fn attempts_are_numbered_upwards() {
    let mut run = good();
    run.arrivals.retain(|a| a.id != "a-2");
    run.arrivals.retain(|a| a.id != "a-3");
    run.arrives("a-2", Some(2)).arrives("a-2", Some(1));
    assert_eq!(run.finds(), [Kind::AttemptRepeated]);
}

#[test]
fn without_a_crash_every_whole_request_is_answered() {
    let run = good();
    run.ledger.begins(intent("ignored"));
    run.ledger.sent_whole("ignored");
    run.ledger.unanswered("ignored");
    run.ledger.begins(intent("forgotten"));
    assert_eq!(kinds(&run.verdict().violations), BTreeMap::from([(Kind::Unanswered, 2)]));
}

#[test]
fn it_sees_that_one_request_became_two_records() {
    let mut run = Run::new();
    run.sent(put("twice"), 202).arrives("twice", Some(1)).arrives("twice", Some(2));
    run.tells("twice", receipt("delivered", None, 2, Some(200)));
    assert_eq!(run.finds(), []);
    for (status, location, found) in [
        (202, "/receipt", &[][..]),
        (503, "", &[]),
        (202, "/another", &[Kind::StoredTwice]),
        (200, "", &[Kind::StoredTwice]),
    ] {
        run.ledger.answered_again("twice", status, Some(location));
        assert_eq!(run.finds(), found, "{status} {location}");
    }
    run.ledger.answered_again("twice", 202, Some("/receipt"));
    run.arrivals[1].accepted = Some("2.000".into());
    assert_eq!(run.finds(), [Kind::StoredTwice]);
}

#[test]
fn a_good_answer_is_given_by_the_origin_or_by_nobody() {
    let mut run = good();
    run.arrivals.retain(|a| a.id != "live");
    assert_eq!(run.finds(), [Kind::NotItsOrigins], "it never arrived");
    for (mischief, found) in [
        (Mischief::Slow(5), &[][..]),
        (Mischief::Cut, &[]),
        (Mischief::Status(500), &[Kind::NotItsOrigins]),
        (Mischief::Busy, &[Kind::NotItsOrigins]),
        (Mischief::Reset, &[Kind::NotItsOrigins]),
        (Mischief::Hang(5), &[Kind::NotItsOrigins]),
    ] {
        let mut run = good();
        run.arrivals[0].mischief = Some(mischief);
        assert_eq!(run.finds(), found, "{mischief:?}");
    }
    let mut run = good();
    run.arrivals[0].whole = false;
    assert_eq!(run.finds(), [Kind::NotItsOrigins], "it arrived in part");
    let mut run = good();
    run.sent(intent("otherwise"), 204).arrives("otherwise", None);
    assert_eq!(run.finds(), [Kind::NotItsOrigins], "it answers 200");
    run.ledger.answered("otherwise", 502, None);
    assert_eq!(run.finds(), []);
}

#[test]
fn nobody_knows_only_where_something_failed() {
    let mut run = good();
    run.ledger.disk_fails();
    run.ledger.begins(intent("under-it"));
    run.ledger.disk_works();
    run.ledger.unconfirmed("under-it");
    run.crashed(intent("killed"));
    run.ledger.unconfirmed("killed");
    assert_eq!(run.finds(), []);
    run.ledger.begins(intent("after-it"));
    run.ledger.unconfirmed("after-it");
    assert_eq!(run.finds(), [Kind::UnconfirmedWithoutFault]);
}

#[test]
fn a_receipt_tells_whether_the_answer_came_whole() {
    let (whole, cut) = (delivered(), Receipt { response_complete: Some(false), ..delivered() });
    let silent = Receipt { response_complete: None, ..delivered() };
    let lie = &[Kind::FalseReceipt][..];
    for (mischief, told, found) in [
        (None, &cut, lie),
        (None, &silent, lie),
        (Some(Mischief::Slow(5)), &whole, &[]),
        (Some(Mischief::Cut), &cut, &[]),
        (Some(Mischief::Cut), &whole, lie),
        (Some(Mischief::Status(500)), &whole, lie),
        (Some(Mischief::Hang(5)), &whole, lie),
    ] {
        let mut run = good();
        run.arrivals.iter_mut().filter(|a| a.id == "a-1").for_each(|a| a.mischief = mischief);
        run.tells("a-1", told.clone());
        assert_eq!(run.finds(), found, "{mischief:?}, {told:?}");
    }
}

/// Of four records one is delivered before the last comes, one is dead, one waits.
fn three_at_once() -> Run {
    let mut run = Run::new();
    run.sent(intent("delivered"), 202).sent(intent("dead"), 202);
    run.arrives("delivered", Some(1)).arrives("dead", Some(1));
    run.sent(intent("waits"), 202).sent(intent("more"), 202).arrives("more", Some(1));
    run.tells("delivered", delivered()).tells("dead", receipt("dead", Some("indeterminate"), 1, None));
    run.tells("waits", receipt("queued", None, 0, None)).tells("more", delivered());
    run
}

#[test]
fn it_sees_that_more_is_queued_than_a_quota_allows() {
    let mut run = three_at_once();
    assert_eq!(run.finds(), []);
    run.quota = Quota { records: 3, ..Quota::NONE };
    assert_eq!(run.finds(), []);
    run.quota = Quota { records: 2, ..Quota::NONE };
    assert_eq!(run.finds(), [Kind::QuotaExceeded]);
    // Each takes 512 bytes, and its body.
    let bytes = 3 * 512 + "the body of dead".len() + "the body of waits".len() + "the body of more".len();
    run.quota = Quota { bytes: bytes as u64, ..Quota::NONE };
    assert_eq!(run.finds(), []);
    run.quota.bytes -= 1;
    assert_eq!(run.finds(), [Kind::QuotaExceeded]);
}

#[test]
fn a_quota_is_not_exceeded_by_what_may_have_ended_or_may_not_have_been_there() {
    let mut run = three_at_once();
    run.quota = Quota { records: 3, ..Quota::NONE };
    // Delivered before its 202 was seen.
    run.ledger.begins(intent("quick"));
    run.ledger.sent_whole("quick");
    run.arrives("quick", Some(1));
    run.ledger.answered("quick", 202, Some("/receipt"));
    run.tells("quick", delivered());
    // Nobody saw its 202: it was there when it arrived, alone.
    run.crashed(intent("unseen")).arrives("unseen", Some(1));
    run.crashed(intent("gone"));
    run.sent(intent("refused"), 503).sent(intent("live"), 200).arrives("live", None);
    assert_eq!(run.finds(), []);
    assert_eq!(run.verdict().numbers.peak_records, 3);
    // It arrived twice from there, and so was there in between, with a third.
    run.crashed(put("again")).arrives("again", Some(1));
    run.sent(intent("beside"), 202).tells("beside", receipt("queued", None, 0, None));
    assert_eq!(run.finds(), []);
    run.arrives("again", Some(2));
    assert_eq!(run.finds(), [Kind::QuotaExceeded]);
}

#[test]
fn refusals_for_want_of_room_and_time_outs_are_counted() {
    let mut run = good();
    for (id, status, problem) in
        [("full", 503, "queue-full"), ("late", 504, "upstream-timeout"), ("other", 503, "queue-unavailable")]
    {
        run.sent(intent(id), status);
        run.ledger.explains(id, &format!("{{\"type\":\"urn:beamline:problem:{problem}\"}}"));
    }
    let n = run.verdict().numbers;
    assert_eq!((n.refused, n.full, n.timed_out), (4, 1, 1));
}

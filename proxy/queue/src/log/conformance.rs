//! What every log must do: one suite, run against each. Beside it, random changes on all of them must read alike.

mod answers;
mod client_keys;
mod hands;
mod paused_keys;
mod random;
mod records;

use beamline_model::{OnDead, TenantName, UpstreamName};
use bytes::Bytes;

use self::{answers::*, client_keys::*, hands::*, paused_keys::*, records::*};
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

/// What becomes of it but for the content, which is the one that a reader finds.
fn begin(log: &mut dyn Log, seq: Seq, attempts: u32) -> Effect {
    let epoch = log.epoch();
    match one(log, Change::Begin { seq, attempts, epoch }) {
        Effect::Begun(content) => {
            let read = log.reader().unwrap().content(seq).unwrap();
            assert_eq!(content.map(|content| *content), read);
            Effect::Done
        }
        effect => effect,
    }
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
    who_reads_bodies_is_in_the_audit,
    of_a_deleted_tenant_no_finished_record_is_left,
    records_are_listed_page_by_page_and_only_to_their_tenant,
);

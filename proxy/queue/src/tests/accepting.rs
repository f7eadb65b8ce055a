//! What is accepted, and what is not.

use std::sync::Arc;

use futures_util::FutureExt as _;

use super::{faults::open_faulty, *};
use crate::settings::bounds::{BODY_MEMORY, GROUP_BYTES, GROUP_RECORDS, HEAD_BYTES};

#[tokio::test]
async fn a_202_means_committed() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _delivery, control) = open_faulty(&dir, settings(dir.path()));
    control.hold_commits();
    let record = record(&queue, 1, b"hello").await;
    let room = queue.reserve(&tenant(), 5, Demand::Asked).unwrap();
    let mut enqueue = Box::pin(queue.enqueue(record, room));
    let too_early = tokio::time::timeout(Duration::from_millis(50), &mut enqueue).await;
    assert!(too_early.is_err(), "nothing is accepted while its commit is under way");
    control.let_commits_go();
    let accepted = enqueue.await.unwrap();
    assert_eq!(state(&queue, &accepted).await, State::Queued);
    assert_eq!(queue.totals().commits, 1);
}

#[tokio::test]
async fn a_lone_record_waits_for_no_company() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _delivery, control) = open_faulty(&dir, settings(dir.path()));
    for n in 0..5 {
        accept(&queue, record(&queue, n, b"").await).await;
    }
    let groups: Vec<_> = control.groups.lock().unwrap().iter().map(|(changes, _)| *changes).collect();
    assert_eq!(groups, [1; 5]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_concurrent_enqueues_commit_in_groups() {
    const RECORDS: usize = 1200;
    let dir = tempfile::tempdir().unwrap();
    let (queue, _delivery, control) = open_faulty(&dir, settings(dir.path()));
    let tasks: Vec<_> = (0..RECORDS)
        .map(|n| {
            let queue = queue.clone();
            tokio::spawn(async move { accept(&queue, record(&queue, n, b"x").await).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let totals = queue.totals();
    assert_eq!((totals.accepted, totals.open), (RECORDS as u64, RECORDS as u64));
    let groups = control.groups.lock().unwrap();
    assert_eq!(groups.iter().map(|(changes, _)| changes).sum::<usize>(), RECORDS);
    assert_eq!(groups.len() as u64, totals.commits);
    assert!(groups.len() <= RECORDS / 4, "{} commits for {RECORDS} records", groups.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_have_a_bound_in_records_and_in_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _delivery, control) = open_faulty(&dir, settings(dir.path()));
    control.hold_commits();
    let tasks: Vec<_> = (0..300)
        .map(|n| {
            let queue = queue.clone();
            let body = vec![0; if n < 200 { BODY_MEMORY } else { 0 }];
            tokio::spawn(async move { accept(&queue, record(&queue, n, &body).await).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    control.let_commits_go();
    for task in tasks {
        task.await.unwrap();
    }
    for (changes, bytes) in &*control.groups.lock().unwrap() {
        assert!(*changes <= GROUP_RECORDS);
        assert!(
            *bytes < GROUP_BYTES + BODY_MEMORY as u64 + 1024,
            "the record that crosses the bound is the last"
        );
    }
}

#[tokio::test]
async fn a_body_stays_in_memory_up_to_32_kib_and_then_is_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _delivery) = open(&dir);
    for (size, is_file) in [(0, false), (BODY_MEMORY, false), (BODY_MEMORY + 1, true), (1 << 20, true)] {
        let body: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        let record = record(&queue, size, &body).await;
        assert_eq!((record.body.is_file(), record.body.len()), (is_file, size as u64));
        accept(&queue, record).await;
    }
    assert_eq!(body_files(&dir), 2);
}

#[tokio::test]
async fn a_body_beyond_its_limit_stops_being_queueable() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _delivery) = open(&dir);
    let mut body = queue.body(100_000);
    body.push(vec![0; 99_999].into()).await.unwrap();
    let error = body.push(Bytes::from_static(b"ab")).await.unwrap_err();
    assert_eq!(error, BodyError::TooLarge { limit: 100_000 });
    assert_eq!(body.push(Bytes::new()).await.unwrap_err(), error, "and stays so");
    let mut record = record(&queue, 1, b"").await;
    record.body = body;
    let room = queue.reserve(&tenant(), 0, Demand::Asked).unwrap();
    assert!(matches!(queue.enqueue(record, room).await, Err(EnqueueError::Body(e)) if e == error));
    assert_eq!(queue.totals().open, 0);
}

#[tokio::test]
async fn a_body_that_is_not_queued_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _delivery) = open(&dir);
    let half = record(&queue, 1, &vec![0; 200_000]).await;
    // The file is there as soon as the next one is, which the thread writes after it.
    accept(&queue, record(&queue, 2, &vec![0; 200_000]).await).await;
    assert_eq!(body_files(&dir), 2);
    drop(half);
    accept(&queue, record(&queue, 3, &vec![0; 200_000]).await).await;
    assert_eq!(body_files(&dir), 2);
    assert_eq!(queue.totals().reserved_bytes, 0);
}

#[tokio::test]
async fn quotas_hold_at_every_moment() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Settings { max_records: 10, tenant_max_records: Some(6), ..settings(dir.path()) };
    let (queue, _delivery) = Queue::open(limits).unwrap();
    let other: TenantName = "other".parse().unwrap();
    let mut rooms: Vec<_> = (0..6).map(|_| queue.reserve(&tenant(), 0, Demand::Asked).unwrap()).collect();
    let full = queue.reserve(&tenant(), 0, Demand::Asked).unwrap_err();
    assert!(full.to_string().contains("records of this tenant"), "{full}");
    rooms.extend((0..4).map(|_| queue.reserve(&other, 0, Demand::Asked).unwrap()));
    let full = queue.reserve(&other, 0, Demand::Asked).unwrap_err();
    assert!(full.to_string().contains("records of this node"), "{full}");
    drop(rooms.remove(0));
    accept(&queue, record(&queue, 1, b"").await).await;
    assert!(queue.reserve(&tenant(), 0, Demand::Asked).is_err(), "what was reserved is now kept");
    drop(rooms);
    assert_eq!((queue.totals().kept, queue.totals().reserved_bytes, queue.totals().refused), (1, 0, 3));
    for _ in 0..3 {
        accept(&queue, record(&queue, 1, b"").await).await;
    }
    let unasked = queue.reserve(&tenant(), 0, Demand::Unasked);
    assert!(unasked.is_err(), "four of six are over 80% with the next");
    assert!(queue.reserve(&tenant(), 0, Demand::Asked).is_ok(), "and room is left for who asks");
}

#[test]
fn quotas_hold_among_threads() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Settings { tenant_max_bytes: Some(100_000), ..settings(dir.path()) };
    let (queue, _delivery) = Queue::open(limits).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut rooms = Vec::new();
                for _ in 0..2000 {
                    rooms.extend(queue.reserve(&tenant(), 9_488, Demand::Asked));
                    assert!(
                        queue.totals().reserved_bytes <= 100_000 + 4 * 10_000,
                        "with those about to be refused"
                    );
                    if rooms.len() > 2 {
                        rooms.clear();
                    }
                }
            });
        }
    });
    assert_eq!(queue.totals().reserved_bytes, 0);
    let rooms: Vec<_> = (0..20).filter_map(|_| queue.reserve(&tenant(), 9_488, Demand::Asked).ok()).collect();
    assert_eq!(rooms.len(), 10);
}

#[tokio::test]
async fn a_disk_that_is_short_of_its_reserve_accepts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Settings { min_free_disk: u64::MAX / 2, ..settings(dir.path()) };
    let (queue, _delivery) = Queue::open(limits).unwrap();
    let full = queue.reserve(&tenant(), 0, Demand::Asked).unwrap_err();
    assert!(full.to_string().contains("free disk space"), "{full}");
    assert_eq!(queue.totals().reserved_bytes, 0, "what is refused holds no room");
}

#[tokio::test]
async fn what_is_promised_is_taken_off_the_free_disk() {
    const HUGE: u64 = 1 << 62;
    let dir = tempfile::tempdir().unwrap();
    let free = {
        let stat = rustix::fs::statvfs(dir.path()).unwrap();
        stat.f_bavail * stat.f_frsize
    };
    let limits = Settings { max_bytes: HUGE, ..settings(dir.path()) };
    let (queue, _delivery) = Queue::open(limits).unwrap();
    // Each of them alone would fit.
    let room = queue.reserve(&tenant(), free / 5 * 3, Demand::Asked).unwrap();
    let full = queue.reserve(&tenant(), free / 5 * 3, Demand::Asked).unwrap_err();
    assert!(full.to_string().contains("free disk space"), "{full}");
    drop(room);
    assert!(queue.reserve(&tenant(), free / 5 * 3, Demand::Asked).is_ok());
}

#[tokio::test]
async fn a_tenants_quota_is_half_of_the_nodes_unless_it_is_set() {
    let dir = tempfile::tempdir().unwrap();
    for (max_records, tenant_max_records, expected) in [(9, None, 5), (1, None, 1), (9, Some(7), 7)] {
        let limits = Settings { max_records, tenant_max_records, ..settings(dir.path()) };
        let (queue, _delivery) = Queue::open(limits).unwrap();
        let rooms: Vec<_> = (0..20).filter_map(|_| queue.reserve(&tenant(), 0, Demand::Asked).ok()).collect();
        assert_eq!(rooms.len(), expected, "of {max_records}");
        drop(rooms);
        queue.shutdown(Duration::from_secs(10)).await;
    }
}

#[tokio::test]
async fn a_receipt_is_shown_only_to_who_has_its_secret() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _delivery) = open(&dir);
    let first = accept(&queue, record(&queue, 1, b"").await).await;
    let second = accept(&queue, record(&queue, 2, b"").await).await;
    let (first, second) = (first.receipt.to_string(), second.receipt.to_string());
    assert!(queue.receipt(&tenant(), &first).await.unwrap().is_some());
    let foreign: TenantName = "other".parse().unwrap();
    assert!(queue.receipt(&foreign, &first).await.unwrap().is_none());
    let mixed = format!("{}.{}", first.split_once('.').unwrap().0, second.split_once('.').unwrap().1);
    let unknown = Receipt::generate(RecordId::generate(1)).to_string();
    for bad in [&mixed, &unknown, "", "garbage"] {
        assert!(queue.receipt(&tenant(), bad).await.unwrap().is_none(), "{bad}");
    }
}

#[tokio::test]
async fn a_receipt_as_json_says_what_became_of_the_request() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _delivery) =
        Queue::open(Settings { wall_clock: Arc::new(|| 1_700_000_000_000), ..settings(dir.path()) }).unwrap();
    let accepted = accept(&queue, record(&queue, 1, b"").await).await;
    let json = serde_json::to_value(view(&queue, &accepted).await).unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "id": accepted.id.to_string(), "state": "queued", "attempts": 0,
            "accepted_ms": 1_700_000_000_000_u64, "expires_ms": 1_700_003_600_000_u64,
        })
    );
    let dead = State::Dead { reason: DeadReason::Indeterminate };
    assert_eq!(serde_json::to_string(&dead).unwrap(), r#"{"state":"dead","reason":"indeterminate"}"#);
    assert_eq!(dead.to_string(), "dead(indeterminate)");
}

#[tokio::test]
async fn a_record_out_of_bounds_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _delivery) = open(&dir);
    let mut big = record(&queue, 1, b"").await;
    big.headers.push(("x".into(), vec![b'a'; HEAD_BYTES]));
    let error = try_accept(&queue, big).await.unwrap_err();
    assert!(error.to_string().starts_with("a head of 262"), "{error}");
    let mut long_key = record(&queue, 1, b"").await;
    long_key.ordering_key = Some("k".repeat(2000));
    let error = try_accept(&queue, long_key).await.unwrap_err();
    assert!(error.to_string().contains("ordering key of 2000 bytes is more than the 1024"), "{error}");
    let foreign = queue.reserve(&"other".parse().unwrap(), 0, Demand::Asked).unwrap();
    let record = record(&queue, 1, b"").await;
    assert!(matches!(queue.enqueue(record, foreign).await, Err(EnqueueError::ForeignReservation { .. })));
    assert_eq!(queue.totals().reserved_bytes, 0);
}

#[tokio::test]
async fn a_key_has_a_backlog_from_enqueue_to_delivery() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery, control) = open_faulty(&dir, settings(dir.path()));
    let has = |key| queue.backlog(&tenant(), &upstream(), key) == Backlog::Known;
    assert!(!has("k"));
    control.hold_commits();
    let mut keyed = record(&queue, 1, b"").await;
    keyed.ordering_key = Some("k".into());
    let mut enqueue = Box::pin(try_accept(&queue, keyed));
    assert!(enqueue.as_mut().now_or_never().is_none());
    assert!(has("k") && !has("j"), "what is being committed is before what comes now");
    control.let_commits_go();
    enqueue.await.unwrap();
    assert!(has("k"));
    assert_eq!(queue.depth(&tenant(), &upstream()), 1);
    deliver_until(delivery, |_| now(ok()), until(&queue, |t| t.delivered == 1)).await;
    assert!(!has("k"));
    assert_eq!(queue.depth(&tenant(), &upstream()), 0);
}

#[tokio::test]
async fn after_shutdown_everything_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery) = open(&dir);
    let accepted = accept(&queue, record(&queue, 1, b"").await).await;
    let (late, room) = (record(&queue, 2, b"").await, queue.reserve(&tenant(), 0, Demand::Asked).unwrap());
    queue.shutdown(Duration::from_secs(10)).await;
    assert!(matches!(queue.reserve(&tenant(), 0, Demand::Asked), Err(Refusal::Unavailable { .. })));
    assert!(matches!(
        queue.enqueue(late, room).await,
        Err(EnqueueError::Refused(Refusal::Unavailable { .. }))
    ));
    assert!(queue.receipt(&tenant(), &accepted.receipt.to_string()).await.is_err());
    assert!(matches!(*queue.health().borrow(), Health::Unavailable { .. }));
    let closed = delivery
        .run(
            Origin { answer: |_: &Attempt| now(ok()), got: Rc::default() },
            std::future::pending(),
            Duration::ZERO,
        )
        .await;
    assert!(matches!(closed, Err(DeliveryError::Closed)));
}

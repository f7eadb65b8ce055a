//! Disk errors: what was answered stays true, what was refused is never delivered, and proxying would go on.

use std::sync::atomic::Ordering;

use super::{
    faults::{Fault, open_faulty},
    *,
};

async fn becomes(queue: &Queue, wanted: impl Fn(&Health) -> bool) {
    queue.health().wait_for(wanted).await.unwrap();
}

fn unavailable(refused: &Result<Accepted, EnqueueError>) -> bool {
    matches!(refused, Err(EnqueueError::Refused(Refusal::Unavailable { .. })))
}

#[tokio::test]
async fn after_a_disk_error_nothing_is_accepted_until_the_log_is_verified() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _delivery, control) = open_faulty(&dir, settings(dir.path()));
    accept(&queue, record(&queue, 0, b"").await).await;
    control.broken_reopenings.store(3, Ordering::SeqCst);
    control.fail_next(Fault::Before);
    // The one whose commit failed waits for the log to tell; whoever comes meanwhile is refused at once.
    let failed = record(&queue, 1, b"").await;
    let meanwhile = async {
        becomes(&queue, |h| matches!(h, Health::Unavailable { reason } if reason.contains("injected"))).await;
        assert!(unavailable(&try_accept(&queue, record(&queue, 2, b"").await).await));
        assert_ne!(control.reopenings.load(Ordering::SeqCst), 4);
    };
    let (refused, ()) = tokio::join!(try_accept(&queue, failed), meanwhile);
    assert!(unavailable(&refused));
    becomes(&queue, |h| *h == Health::Available).await;
    assert_eq!(control.reopenings.load(Ordering::SeqCst), 4);
    accept(&queue, record(&queue, 3, b"").await).await;
    let totals = queue.totals();
    assert_eq!((totals.open, totals.accepted, totals.reserved_bytes), (2, 2, 0));
}

#[tokio::test]
async fn a_refused_record_is_never_delivered_though_it_be_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery, control) = open_faulty(&dir, settings(dir.path()));
    let mut keyed = record(&queue, 0, &vec![0; 50_000]).await;
    keyed.ordering_key = Some("k".into());
    control.fail_next(Fault::After);
    assert!(unavailable(&try_accept(&queue, keyed).await));
    becomes(&queue, |h| *h == Health::Available).await;
    let totals = queue.totals();
    assert_eq!((totals.open, totals.kept), (0, 1), "it is there, as a dead letter");
    assert_eq!(body_files(&dir), 1, "with its body");
    assert!(queue.backlog(&tenant(), &upstream(), "k") == Backlog::Empty);
    accept(&queue, record(&queue, 1, b"").await).await;
    let got = deliver_until(delivery, |_| now(ok()), until(&queue, |t| t.delivered == 1)).await;
    assert_eq!(by_target(&got), HashMap::from([("/1", 1)]));
    let reason: i64 = rusqlite::Connection::open(dir.path().join("queue.db"))
        .unwrap()
        .query_row("SELECT reason FROM record WHERE state = 4", [], |row| row.get(0))
        .unwrap();
    assert_eq!(reason, 4, "unconfirmed");
}

#[tokio::test]
async fn a_refused_record_that_is_not_on_disk_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _delivery, control) = open_faulty(&dir, settings(dir.path()));
    control.fail_next(Fault::Before);
    assert!(unavailable(&try_accept(&queue, record(&queue, 0, &vec![0; 50_000]).await).await));
    becomes(&queue, |h| *h == Health::Available).await;
    accept(&queue, record(&queue, 1, &vec![0; 50_000]).await).await;
    assert_eq!(body_files(&dir), 1);
}

#[tokio::test]
async fn what_was_delivered_while_the_log_failed_is_recorded_when_it_is_back() {
    for fault in [Fault::Before, Fault::After] {
        let dir = tempfile::tempdir().unwrap();
        let (queue, delivery, control) = open_faulty(&dir, settings(dir.path()));
        let mut accepted = Vec::new();
        for n in 0..4 {
            let mut record = record(&queue, n, b"").await;
            record.repeat_safe = false;
            record.ordering_key = Some("k".into());
            accepted.push(accept(&queue, record).await);
        }
        let at_origin = std::sync::Arc::clone(&control);
        let answer = move |attempt: &Attempt| {
            if attempt.target == "/1" {
                at_origin.broken_reopenings.store(2, Ordering::SeqCst);
                at_origin.fail_next(fault);
            }
            now(ok())
        };
        let all = async {
            while queue.totals().open > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await
            }
        };
        let got = deliver_until(delivery, answer, all).await;
        assert_eq!(got.len(), 4, "{fault:?}: each was sent once");
        for accepted in &accepted {
            assert!(matches!(state(&queue, accepted).await, State::Delivered { .. }), "{fault:?}");
        }
        assert_eq!(control.reopenings.load(Ordering::SeqCst), 3);
        let totals = queue.totals();
        assert_eq!((totals.kept, totals.kept_bytes, totals.receipts), (0, 0, 4), "{fault:?}");
        assert!(queue.backlog(&tenant(), &upstream(), "k") == Backlog::Empty);
    }
}

#[tokio::test]
async fn what_is_done_by_hand_while_the_log_fails_is_done_once_and_audited_once() {
    for fault in [Fault::Before, Fault::After] {
        let dir = tempfile::tempdir().unwrap();
        let (queue, _delivery, control) = open_faulty(&dir, settings(dir.path()));
        let accepted = accept(&queue, record(&queue, 0, b"").await).await;
        control.fail_next(fault);
        queue.discard(&tenant(), accepted.id, "operator").await.unwrap();
        let discarded = State::Dead { reason: DeadReason::Discarded };
        assert_eq!(state(&queue, &accepted).await, discarded, "{fault:?}");
        assert_eq!(queue.audit(None, 0, 100).await.unwrap().len(), 1, "{fault:?}");
        let totals = queue.totals();
        assert_eq!((totals.open, totals.kept, totals.receipts), (0, 0, 1), "{fault:?}");
    }
}

#[tokio::test]
async fn a_log_that_opens_and_takes_nothing_is_tried_again_with_pauses() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _delivery, control) = open_faulty(&dir, settings(dir.path()));
    let accepted = accept(&queue, record(&queue, 0, b"").await).await;
    (0..3).for_each(|_| control.fail_next(Fault::Before));
    let began = std::time::Instant::now();
    queue.discard(&tenant(), accepted.id, "operator").await.unwrap();
    assert_eq!(state(&queue, &accepted).await, State::Dead { reason: DeadReason::Discarded });
    // At once the first time; then it was opened before each pause, so that clients are told, and verified after it.
    assert_eq!(control.reopenings.load(Ordering::SeqCst), 1 + 2 + 2);
    assert!(began.elapsed() >= Duration::from_millis(100 + 200), "{:?}", began.elapsed());
    accept(&queue, record(&queue, 1, b"").await).await;
}

/// Delivers more at once than a group holds: one to each of many upstreams, whose marks wait for the log together.
async fn many_at_once(control: &faults::Control, queue: &Queue, delivery: Delivery, failures: usize) {
    const RECORDS: u64 = 320;
    for n in 0..RECORDS {
        let mut record = record(queue, 0, b"").await;
        record.upstream = format!("api-{n}").parse().unwrap();
        accept(queue, record).await;
    }
    // While it cannot be reopened all of them are kept, more than one group holds.
    control.broken_reopenings.store(failures.min(1), Ordering::SeqCst);
    (0..failures).for_each(|_| control.fail_next(Fault::Before));
    control.hold_commits();
    let done = async {
        until(queue, |totals| totals.in_flight == RECORDS).await;
        control.let_commits_go();
        until(queue, |totals| totals.delivered == RECORDS).await;
    };
    let done =
        async { tokio::time::timeout(Duration::from_secs(30), done).await.expect("all are delivered") };
    let got = deliver_until(delivery, |_| now(ok()), done).await;
    assert_eq!(got.len() as u64, RECORDS);
}

#[tokio::test]
async fn changes_for_which_no_client_waits_share_a_commit_up_to_a_bound() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery, control) = open_faulty(&dir, settings(dir.path()));
    many_at_once(&control, &queue, delivery, 0).await;
    let most = control.groups.lock().unwrap().iter().map(|(changes, _)| *changes).max();
    assert!(most.is_some_and(|most| (65..=256).contains(&most)), "{most:?}");
}

#[tokio::test]
async fn what_a_failing_log_did_not_take_stays_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery, control) = open_faulty(&dir, settings(dir.path()));
    many_at_once(&control, &queue, delivery, 2).await;
    let marks = control.marks.lock().unwrap();
    assert_eq!((marks[1].len(), &marks[1]), (256, &marks[2]), "the same, in the same order");
    assert_eq!(marks[1][..marks[0].len()], marks[0]);
}

#[tokio::test]
async fn nothing_is_sent_whose_mark_is_not_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery, control) = open_faulty(&dir, settings(dir.path()));
    accept(&queue, record(&queue, 0, b"").await).await;
    control.broken_reopenings.store(3, Ordering::SeqCst);
    control.fail_next(Fault::Before);
    let at_origin = std::sync::Arc::clone(&control);
    let answer = move |_: &Attempt| {
        assert_eq!(at_origin.broken_reopenings.load(Ordering::SeqCst), 0, "only after the log is back");
        now(ok())
    };
    let got = deliver_until(delivery, answer, until(&queue, |t| t.delivered == 1)).await;
    assert_eq!((got.len(), got[0].number), (1, 1));
}

#[tokio::test]
async fn delivery_ends_though_the_log_is_broken_and_what_was_not_sent_is_put_back() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery, control) = open_faulty(&dir, settings(dir.path()));
    let mut fragile = record(&queue, 0, b"").await;
    fragile.repeat_safe = false;
    let accepted = accept(&queue, fragile).await;
    control.broken_reopenings.store(usize::MAX, Ordering::SeqCst);
    control.fail_next(Fault::After);
    // Its mark fails, and yet is on disk. Nothing is sent, and the wait for the mark is cut off.
    let origin = Origin { answer: |_: &Attempt| now(ok()), got: Rc::default() };
    let got = Rc::clone(&origin.got);
    let broken = async { becomes(&queue, |h| *h != Health::Available).await };
    let ended = delivery.run(origin, broken, Duration::from_millis(10));
    let (ended, ()) = tokio::join!(ended, async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        control.broken_reopenings.store(0, Ordering::SeqCst);
    });
    ended.unwrap();
    assert!(got.borrow().is_empty());
    assert_eq!(state(&queue, &accepted).await, State::Queued);
}

#[tokio::test]
async fn a_body_that_cannot_be_synced_is_refused_and_the_log_is_verified() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _delivery, control) = open_faulty(&dir, settings(dir.path()));
    std::fs::remove_dir_all(dir.path().join("bodies")).unwrap();
    let mut record = record(&queue, 0, b"").await;
    record.body = queue.body(1 << 20);
    // The error shows at one of the pushes, or at the sync.
    let pushed = record.body.push(vec![0; 60_000].into()).await;
    let refused = try_accept(&queue, record).await;
    assert!(matches!(refused, Err(EnqueueError::Body(BodyError::Disk(_)))), "{pushed:?} {refused:?}");
    while control.reopenings.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    becomes(&queue, |h| *h == Health::Available).await;
    assert_eq!(queue.totals().reserved_bytes, 0);
}

#[tokio::test]
async fn a_queue_that_ends_while_its_log_is_broken_keeps_every_file_that_a_row_may_name() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery, control) = open_faulty(&dir, settings(dir.path()));
    control.broken_reopenings.store(usize::MAX, Ordering::SeqCst);
    control.fail_next(Fault::After);
    // Its client is told so once the log stays broken: it may be there, and may be delivered.
    let told = try_accept(&queue, record(&queue, 0, &vec![5; 50_000]).await).await;
    assert!(matches!(told, Err(EnqueueError::Refused(Refusal::Unconfirmed))), "{told:?}");
    drop(delivery);
    queue.shutdown(Duration::from_secs(10)).await;
    drop(queue);
    // The row is there, and was not disowned. It is delivered, whole.
    let (queue, delivery) = open(&dir);
    let got = deliver_until(delivery, |_| now(ok()), until(&queue, |t| t.delivered == 1)).await;
    assert_eq!(read(&got[0].body), vec![5; 50_000]);
}

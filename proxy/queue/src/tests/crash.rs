//! A process that ends at any moment. A copy of the folder, taken while the queue runs, is what a kill leaves behind.

use std::fs;

use super::*;

/// The queue's files as they are now, as another folder.
fn as_killed_now(dir: &TempDir) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    fs::create_dir(copy.path().join("bodies")).unwrap();
    // The shared-memory index is rebuilt from the WAL, as after a power cut.
    for name in ["queue.db", "queue.db-wal"] {
        fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
    }
    for body in fs::read_dir(dir.path().join("bodies")).unwrap() {
        let body = body.unwrap();
        fs::copy(body.path(), copy.path().join("bodies").join(body.file_name())).unwrap();
    }
    copy
}

#[tokio::test]
async fn what_was_accepted_survives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _delivery) = open(&dir);
    let mut accepted = Vec::new();
    for n in 0..10 {
        accepted.push(accept(&queue, record(&queue, n, &vec![n as u8; n * 10_000]).await).await);
    }
    let after = as_killed_now(&dir);
    let (queue, delivery) = open(&after);
    assert_eq!(queue.totals().open, 10);
    assert_eq!(queue.depth(&tenant(), &upstream()), 10);
    let got = deliver_until(delivery, |_| now(ok()), until(&queue, |t| t.delivered == 10)).await;
    for attempt in &got {
        let n: usize = attempt.target[1..].parse().unwrap();
        assert_eq!(read(&attempt.body), vec![n as u8; n * 10_000]);
    }
    for accepted in &accepted {
        assert!(matches!(state(&queue, accepted).await, State::Delivered { .. }), "old receipts are good");
    }
}

#[tokio::test]
async fn what_was_being_delivered_at_a_kill_is_queued_again_or_indeterminate() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery) = open(&dir);
    let safe = accept(&queue, record(&queue, 0, b"").await).await;
    let mut fragile = record(&queue, 1, b"").await;
    (fragile.repeat_safe, fragile.upstream) = (false, "other".parse().unwrap());
    let fragile = accept(&queue, fragile).await;
    let killed = Rc::new(RefCell::new(None));
    let (left, count) = (Rc::clone(&killed), std::cell::Cell::new(0));
    let (source, both) = (dir.path().to_owned(), Rc::new(tokio::sync::Notify::new()));
    let answer = move |_: &Attempt| {
        count.set(count.get() + 1);
        if count.get() == 2 {
            let copy = tempfile::tempdir().unwrap();
            for name in ["queue.db", "queue.db-wal"] {
                fs::copy(source.join(name), copy.path().join(name)).unwrap();
            }
            left.replace(Some(copy));
            both.notify_waiters();
            return now(ok());
        }
        let both = Rc::clone(&both);
        Box::pin(async move {
            both.notified().await;
            ok()
        }) as Answer
    };
    deliver_until(delivery, answer, until(&queue, |t| t.delivered == 2)).await;

    let after = killed.take().expect("it was killed while both were being delivered");
    let (queue, delivery) = open(&after);
    let view = view(&queue, &fragile).await;
    assert_eq!(view.state, State::Dead { reason: DeadReason::Indeterminate });
    assert_eq!(view.last_error.as_deref(), Some("the node stopped during the delivery"));
    assert_eq!(state(&queue, &safe).await, State::Queued);
    let got = deliver_until(delivery, |_| now(ok()), until(&queue, |t| t.delivered == 1)).await;
    assert_eq!((got.len(), got[0].number), (1, 2), "its first attempt counts");
}

#[tokio::test]
async fn a_row_never_lacks_its_body() {
    // At any moment of a busy life: every row's file is there, whole; what no row names is collected at the start.
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery) = open(&dir);
    let busy = async {
        for n in 0..30 {
            accept(&queue, record(&queue, n, &vec![n as u8; 60_000]).await).await;
            let half = record(&queue, n, &vec![0; 60_000]).await;
            if n % 10 == 5 {
                let after = as_killed_now(&dir);
                fs::write(after.path().join("bodies/torn"), b"x").unwrap();
                let (queue, delivery) = open(&after);
                let open = queue.totals().open;
                assert_eq!(body_files(&after) as u64, open, "orphans are collected, and rows have theirs");
                let got =
                    deliver_until(delivery, |_| now(ok()), until(&queue, |t| t.delivered == open)).await;
                for attempt in got {
                    let n: usize = attempt.target[1..].parse().unwrap();
                    assert_eq!(read(&attempt.body), vec![n as u8; 60_000]);
                }
            }
            drop(half);
        }
        until(&queue, |t| t.delivered == 30).await;
    };
    deliver_until(delivery, |_| now(ok()), busy).await;
}

#[tokio::test]
async fn the_books_are_the_same_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery) = open(&dir);
    for n in 0..9 {
        let mut record = record(&queue, n, b"body").await;
        record.ordering_key = (n == 8).then(|| "k".into());
        accept(&queue, record).await;
    }
    let answer = |attempt: &Attempt| match attempt.target[1..].parse::<u8>().unwrap() {
        0..4 => now(ok()),
        4 => now(Outcome::Answered { status: 400, retry_after: None, complete: true, keep: None }),
        _ => now(Outcome::Answered {
            status: 429,
            retry_after: Some(Duration::from_secs(600)),
            complete: true,
            keep: None,
        }),
    };
    deliver_until(delivery, answer, until(&queue, |t| t.delivered == 4 && t.dead == 1)).await;
    let before = queue.totals();
    queue.shutdown(Duration::from_secs(10)).await;
    let (queue, _delivery) = open(&dir);
    let after = queue.totals();
    let counts = |t: Totals| (t.open, t.kept, t.kept_bytes, t.reserved_bytes, t.receipts);
    assert_eq!(counts(after), counts(before));
    assert_eq!((after.open, after.kept, after.receipts), (4, 5, 4));
    assert!(queue.backlog(&tenant(), &upstream(), "k") == Backlog::Known);
    assert_eq!(queue.depth(&tenant(), &upstream()), 4);
}

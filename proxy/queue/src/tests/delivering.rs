//! What is delivered, when, and what becomes of it.

use std::{cell::Cell, sync::Arc};

use tokio::sync::{Notify, oneshot};

use super::*;

#[tokio::test]
async fn a_record_arrives_as_it_was_stored() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery) = open(&dir);
    let large: Vec<u8> = (0..300_000).map(|i| (i % 253) as u8).collect();
    let small = accept(&queue, record(&queue, 1, b"small").await).await;
    accept(&queue, record(&queue, 2, &large).await).await;
    let mut got = deliver_until(delivery, |_| now(ok()), until(&queue, |t| t.delivered == 2)).await;
    got.sort_by(|a, b| a.target.cmp(&b.target));
    let first = &got[0];
    assert_eq!((first.id, first.number, first.revision), (small.id, 1, RevisionId(7)));
    assert_eq!((&first.method[..], &first.target[..], &first.host[..]), ("PUT", "/1", "acme.test"));
    assert_eq!(first.headers, [("content-type".to_owned(), b"text/plain".to_vec())]);
    assert_eq!((first.trace.trace_id, first.trace.span_id, first.trace.sampled), ([1; 16], [2; 8], true));
    assert_eq!(read(&first.body), b"small");
    // Its file is removed by now, and open all the same.
    assert_eq!(read(&got[1].body), large);
    let view = view(&queue, &small).await;
    assert_eq!(view.state, State::Delivered { response_complete: true });
    assert_eq!((view.attempts, view.last_status), (1, Some(200)));
    assert!(view.finished_ms.is_some());
}

#[tokio::test]
async fn delivering_is_on_disk_before_the_first_byte() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery) = open(&dir);
    for n in 0..20 {
        accept(&queue, record(&queue, n, b"").await).await;
    }
    let database = dir.path().join("queue.db");
    let seen = Rc::new(Cell::new(0));
    let seen_by_origin = Rc::clone(&seen);
    let look = move |attempt: &Attempt| {
        // Another process would see the same.
        let connection = rusqlite::Connection::open(&database).unwrap();
        let (state, epoch): (i64, i64) = connection
            .query_row("SELECT state, epoch FROM record WHERE id = ?1", [attempt.id.as_bytes()], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .unwrap();
        assert_eq!((state, epoch), (1, 1));
        seen_by_origin.set(seen_by_origin.get() + 1);
        now(ok())
    };
    deliver_until(delivery, look, until(&queue, |t| t.delivered == 20)).await;
    assert_eq!(seen.get(), 20);
}

#[tokio::test]
async fn records_of_one_key_go_out_in_commit_order_one_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery) = open(&dir);
    for n in 0..40 {
        let mut record = record(&queue, n, b"").await;
        record.ordering_key = Some(format!("key-{}", n % 3));
        accept(&queue, record).await;
    }
    let flying = Rc::new(RefCell::new(HashMap::<usize, usize>::new()));
    let answer = move |attempt: &Attempt| {
        let flying = Rc::clone(&flying);
        let key = attempt.target[1..].parse::<usize>().unwrap() % 3;
        Box::pin(async move {
            *flying.borrow_mut().entry(key).or_default() += 1;
            tokio::time::sleep(Duration::from_millis(2)).await;
            let together = flying.borrow_mut().insert(key, 0);
            assert_eq!(together, Some(1), "one at a time");
            ok()
        }) as Answer
    };
    let got = deliver_until(delivery, answer, until(&queue, |t| t.delivered == 40)).await;
    for key in 0..3 {
        let order: Vec<usize> =
            got.iter().map(|a| a.target[1..].parse().unwrap()).filter(|n| n % 3 == key).collect();
        assert_eq!(order, (0..40).filter(|n| n % 3 == key).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_delivered_body_is_erased_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery) = open(&dir);
    for n in 0..3 {
        accept(&queue, record(&queue, n, &vec![0; 100_000]).await).await;
    }
    assert_eq!((body_files(&dir), queue.totals().kept), (3, 3));
    deliver_until(delivery, |_| now(ok()), until(&queue, |t| t.delivered == 3)).await;
    let totals = queue.totals();
    assert_eq!((totals.kept, totals.kept_bytes, totals.open, totals.receipts), (0, 0, 0, 3));
    // Files go by the spool's hand, after what it was told before.
    accept(&queue, record(&queue, 4, &vec![0; 100_000]).await).await;
    assert_eq!(body_files(&dir), 1);
}

#[tokio::test]
async fn a_record_whose_upstream_fails_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery) = open(&dir);
    let accepted = accept(&queue, record(&queue, 1, b"").await).await;
    let answer = |attempt: &Attempt| {
        now(match attempt.number {
            1 => Outcome::NotSent { reason: "connect-refused".into() },
            2 => Outcome::Broken { reason: "reset".into() },
            _ => ok(),
        })
    };
    let got = deliver_until(delivery, answer, until(&queue, |t| t.delivered == 1)).await;
    assert_eq!(got.iter().map(|a| a.number).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(view(&queue, &accepted).await.attempts, 3);
}

#[tokio::test]
async fn an_unsafe_record_is_never_sent_again_after_bytes_may_have_left() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery) = open(&dir);
    let mut accepted = Vec::new();
    for n in 0..3 {
        let mut record = record(&queue, n, b"").await;
        record.repeat_safe = false;
        accepted.push(accept(&queue, record).await);
    }
    let answer = |attempt: &Attempt| match (&attempt.target[..], attempt.number) {
        ("/0", _) => now(Outcome::Broken { reason: "reset".into() }),
        ("/1", _) => now(Outcome::Answered { status: 500, retry_after: None, complete: true, keep: None }),
        ("/2", 1) => now(Outcome::NotSent { reason: "connect-refused".into() }),
        _ => now(ok()),
    };
    let got = deliver_until(delivery, answer, until(&queue, |t| t.delivered == 1 && t.dead == 2)).await;
    assert_eq!(by_target(&got), HashMap::from([("/0", 1), ("/1", 1), ("/2", 2)]));
    let indeterminate = State::Dead { reason: DeadReason::Indeterminate };
    assert_eq!(state(&queue, &accepted[0]).await, indeterminate);
    assert_eq!(state(&queue, &accepted[1]).await, indeterminate);
    assert_eq!(view(&queue, &accepted[0]).await.last_error.as_deref(), Some("reset"));
    assert_eq!(queue.totals().kept, 2, "dead letters are kept for a person to decide");
}

#[tokio::test]
async fn a_record_expires_while_its_upstream_is_down() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery) = open(&dir);
    let mut brief = record(&queue, 1, &vec![1; 50_000]).await;
    brief.expiry = Duration::from_millis(300);
    let accepted = accept(&queue, brief).await;
    let refuse = |_: &Attempt| now(Outcome::NotSent { reason: "connect-refused".into() });
    deliver_until(delivery, refuse, until(&queue, |t| t.dead == 1)).await;
    let view = view(&queue, &accepted).await;
    assert_eq!(view.state, State::Dead { reason: DeadReason::Expired });
    assert_eq!(view.last_error.as_deref(), Some("connect-refused"), "and the receipt says why");
    assert_eq!(queue.depth(&tenant(), &upstream()), 0);
}

#[tokio::test]
async fn a_delivery_that_panics_counts_as_broken_and_stops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery) = open(&dir);
    let mut fragile = record(&queue, 0, b"").await;
    fragile.repeat_safe = false;
    let fragile = accept(&queue, fragile).await;
    accept(&queue, record(&queue, 1, b"").await).await;
    let answer = |attempt: &Attempt| {
        let panics = attempt.target == "/0";
        Box::pin(async move {
            assert!(!panics, "a bug in the sender");
            ok()
        }) as Answer
    };
    deliver_until(delivery, answer, until(&queue, |t| t.delivered == 1 && t.dead == 1)).await;
    assert_eq!(view(&queue, &fragile).await.last_error.as_deref(), Some("internal-error"));
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_counts_as_broken() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { attempt_timeout: Duration::from_millis(20), ..settings(dir.path()) };
    let (queue, delivery) = Queue::open(settings).unwrap();
    let mut record = record(&queue, 0, b"").await;
    record.repeat_safe = false;
    let accepted = accept(&queue, record).await;
    let hang = |_: &Attempt| Box::pin(std::future::pending()) as Answer;
    deliver_until(delivery, hang, until(&queue, |t| t.dead == 1)).await;
    assert_eq!(view(&queue, &accepted).await.last_error.as_deref(), Some("attempt-timeout"));
}

#[tokio::test]
async fn a_queued_record_whose_file_is_lost_is_dead_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery) = open(&dir);
    let accepted = accept(&queue, record(&queue, 1, &vec![0; 100_000]).await).await;
    std::fs::remove_dir_all(dir.path().join("bodies")).unwrap();
    let got = deliver_until(delivery, |_| now(ok()), until(&queue, |t| t.dead == 1)).await;
    assert!(got.is_empty(), "half a request is never sent");
    assert_eq!(view(&queue, &accepted).await.last_error.as_deref(), Some("content-lost"));
}

#[tokio::test]
async fn at_shutdown_what_flies_lands_and_nothing_new_begins() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery) = open(&dir);
    for n in 0..5 {
        accept(&queue, record(&queue, n, b"").await).await;
    }
    let (begun, release) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
    let (tell, wait) = (Rc::clone(&begun), Rc::clone(&release));
    let answer = move |_: &Attempt| {
        let (tell, wait) = (Rc::clone(&tell), Rc::clone(&wait));
        Box::pin(async move {
            tell.notify_one();
            wait.notified().await;
            ok()
        }) as Answer
    };
    let got = deliver_until(delivery, answer, async {
        begun.notified().await;
        // The shutdown is seen first, then the one delivery under way is answered.
        release.notify_one();
    })
    .await;
    assert_eq!(got.len(), 1);
    let totals = queue.totals();
    assert_eq!((totals.delivered, totals.open, totals.in_flight), (1, 4, 0));
}

#[tokio::test]
async fn what_outlasts_the_grace_is_put_back_or_indeterminate() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery) = open(&dir);
    let safe = accept(&queue, record(&queue, 0, b"").await).await;
    let mut fragile = record(&queue, 1, b"").await;
    fragile.upstream = "other".parse().unwrap();
    fragile.repeat_safe = false;
    let fragile = accept(&queue, fragile).await;
    let (begun, both) = oneshot::channel();
    let begun = Cell::new(Some(begun));
    let count = Cell::new(0);
    let answer = move |_: &Attempt| {
        count.set(count.get() + 1);
        if count.get() == 2 {
            begun.take().unwrap().send(()).unwrap();
        }
        Box::pin(std::future::pending()) as Answer
    };
    let origin = Origin { answer, got: Rc::default() };
    let shutdown = async { both.await.unwrap() };
    delivery.run(origin, shutdown, Duration::from_millis(20)).await.unwrap();
    assert_eq!(state(&queue, &safe).await, State::Queued);
    assert_eq!(state(&queue, &fragile).await, State::Dead { reason: DeadReason::Indeterminate });
}

#[tokio::test]
async fn delivery_runs_on_a_thread_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery) = open(&dir);
    accept(&queue, record(&queue, 1, b"").await).await;
    let (stop, stopped) = oneshot::channel::<()>();
    let thread = delivery
        .spawn(
            // Rc and RefCell are not Send: it is made there.
            || Origin { answer: |_: &Attempt| now(ok()), got: Rc::default() },
            async { stopped.await.unwrap_or(()) },
            Duration::from_secs(5),
        )
        .unwrap();
    until(&queue, |t| t.delivered == 1).await;
    stop.send(()).unwrap();
    tokio::task::spawn_blocking(move || thread.join().unwrap()).await.unwrap().unwrap();
}

#[tokio::test]
async fn receipts_are_deleted_after_their_retention_and_beyond_their_number() {
    let dir = tempfile::tempdir().unwrap();
    let wall = Arc::new(std::sync::atomic::AtomicU64::new(1_700_000_000_000));
    let clock = Arc::clone(&wall);
    let settings = Settings {
        max_receipts: 3,
        wall_clock: Arc::new(move || clock.load(std::sync::atomic::Ordering::Relaxed)),
        ..settings(dir.path())
    };
    let (queue, delivery) = Queue::open(settings.clone()).unwrap();
    let mut accepted = Vec::new();
    for n in 0..6 {
        accepted.push(accept(&queue, record(&queue, n, b"").await).await);
    }
    deliver_until(delivery, |_| now(ok()), until(&queue, |t| t.delivered == 6 && t.receipts == 3)).await;
    queue.shutdown(Duration::from_secs(10)).await;

    wall.fetch_add(24 * 3_600_000 + 1000, std::sync::atomic::Ordering::Relaxed);
    let (queue, delivery) = Queue::open(settings).unwrap();
    deliver_until(delivery, |_| now(ok()), until(&queue, |t| t.receipts == 0)).await;
    let receipt = accepted[5].receipt.to_string();
    assert!(queue.receipt(&tenant(), &receipt).await.unwrap().is_none());
}

#[tokio::test]
async fn content_that_makes_no_sense_ends_its_record_and_stops_nobody_else() {
    let nonsense =
        ["target = CAST(x'ff' AS TEXT)", "headers = x'09'", "body_file = 'somewhere', body = NULL"];
    for (nonsense, repeat_safe) in nonsense.into_iter().flat_map(|n| [(n, true), (n, false)]) {
        let dir = tempfile::tempdir().unwrap();
        let (queue, delivery) = open(&dir);
        let mut lost = record(&queue, 1, b"lost").await;
        lost.repeat_safe = repeat_safe;
        let lost = accept(&queue, lost).await;
        accept(&queue, record(&queue, 2, b"well").await).await;
        rusqlite::Connection::open(dir.path().join("queue.db"))
            .unwrap()
            .execute(&format!("UPDATE content SET {nonsense} WHERE seq = 1"), [])
            .unwrap();
        let ended = until(&queue, |totals| totals.delivered == 1 && totals.dead == 1);
        let got = deliver_until(delivery, |_| now(ok()), ended).await;
        assert_eq!(by_target(&got), HashMap::from([("/2", 1)]), "{nonsense}");
        let told = view(&queue, &lost).await;
        assert_eq!(told.state, State::Dead { reason: DeadReason::Indeterminate });
        assert_eq!(told.last_error.as_deref(), Some("content-lost"));
        try_accept(&queue, record(&queue, 3, b"later").await).await.expect("the queue goes on");
    }
}

/// An upstream that a connection is kept to, or none is to be had to. Counts what it is asked.
struct Link {
    stands: bool,
    asked: Rc<Cell<usize>>,
}

impl Deliver for Link {
    async fn deliver(&self, _: Attempt) -> Outcome {
        assert!(self.stands, "nothing is sent where there is no connection");
        self.asked.set(self.asked.get() + 1);
        ok()
    }

    fn is_reachable(&self, _: &TenantName, _: &UpstreamName) -> bool {
        self.stands
    }

    async fn reach(&self, attempt: &Attempt) -> Result<(), Outcome> {
        assert!(!self.stands, "its connection is there");
        assert_eq!((&attempt.target[..], &read(&attempt.body)[..]), ("/1", &b"fragile"[..]));
        self.asked.set(self.asked.get() + 1);
        Err(Outcome::NotSent { reason: "connect-refused".into() })
    }

    fn in_flight_cap(&self, _: &TenantName, _: &UpstreamName) -> u32 {
        8
    }

    fn rules(&self, _: &TenantName, _: &UpstreamName) -> Rules {
        Rules::default()
    }
}

#[tokio::test]
async fn no_connection_is_looked_for_where_one_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery) = open(&dir);
    let mut fragile = record(&queue, 1, b"").await;
    fragile.repeat_safe = false;
    accept(&queue, fragile).await;
    let sent = Rc::new(Cell::new(0));
    let done = until(&queue, |totals| totals.open == 0);
    delivery
        .run(Link { stands: true, asked: Rc::clone(&sent) }, done, Duration::from_secs(10))
        .await
        .unwrap();
    assert_eq!((sent.get(), queue.totals().delivered), (1, 1));
}

#[tokio::test]
async fn what_is_not_safe_to_repeat_is_not_marked_while_its_upstream_cannot_be_reached() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery) = open(&dir);
    let mut fragile = record(&queue, 1, b"fragile").await;
    fragile.repeat_safe = false;
    let fragile = accept(&queue, fragile).await;
    let tried = Rc::new(Cell::new(0));
    let (tries, database) = (Rc::clone(&tried), dir.path().join("queue.db"));
    let often = async {
        let connection = rusqlite::Connection::open(&database).unwrap();
        while tries.get() < 3 {
            let marked: i64 = connection
                .query_row("SELECT count(*) FROM record WHERE state = 1", [], |row| row.get(0))
                .unwrap();
            assert_eq!(marked, 0);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    delivery
        .run(Link { stands: false, asked: Rc::clone(&tried) }, often, Duration::from_secs(10))
        .await
        .unwrap();
    let told = view(&queue, &fragile).await;
    assert_eq!((told.state, told.last_error.as_deref()), (State::Queued, Some("connect-refused")));
    assert!(told.attempts >= 2, "each of them counts: {}", told.attempts);
}

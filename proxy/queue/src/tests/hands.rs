//! What is done by hand, on the whole queue.

use super::*;

async fn keyed(queue: &Queue, n: usize, key: Option<&str>) -> Accepted {
    let mut record = record(queue, n, b"body").await;
    record.ordering_key = key.map(str::to_owned);
    accept(queue, record).await
}

fn query() -> RecordQuery {
    RecordQuery { tenant: tenant(), upstream: None, state: None, ordering_key: None, after: 0, limit: 100 }
}

/// Each record's state, in commit order.
async fn states(queue: &Queue) -> Vec<String> {
    let page = queue.records(query()).await.unwrap();
    page.records.iter().map(|record| record.state.to_string()).collect()
}

fn refused() -> Outcome {
    Outcome::Answered { status: 400, retry_after: None, complete: true, keep: None }
}

#[tokio::test]
async fn what_is_done_by_hand_is_in_the_audit() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery) = open(&dir);
    let mut all = Vec::new();
    for n in 0..5 {
        all.push(keyed(&queue, n, Some("k")).await);
    }
    let cancelled = queue.cancel(&tenant(), &all[0].receipt.to_string()).await.unwrap().unwrap();
    assert!(matches!(cancelled, Cancellation::Done(_)), "{cancelled:?}");
    let again = queue.cancel(&tenant(), &all[0].receipt.to_string()).await.unwrap().unwrap();
    assert_eq!(again, cancelled, "to cancel twice is to cancel");
    for _ in 0..2 {
        queue.discard(&tenant(), all[1].id, "operator").await.unwrap();
    }
    assert!(queue.backlog(&tenant(), &upstream(), "k") == Backlog::Known);
    let purged = queue.purge(&tenant(), &upstream(), &[StateName::Queued], "tenant/acme").await.unwrap();
    assert_eq!((purged.records, purged.more), (3, false));
    assert!(queue.backlog(&tenant(), &upstream(), "k") == Backlog::Empty, "the books know");
    let totals = queue.totals();
    assert_eq!((totals.open, totals.kept, totals.kept_bytes, totals.dead, totals.receipts), (0, 0, 0, 5, 5));
    let rows = queue.audit(Some(&tenant()), 0, 100).await.unwrap();
    let told: Vec<_> = rows.iter().map(|r| format!("{} {} {}", r.actor, r.action, r.count)).collect();
    assert_eq!(told, ["receipt queue.cancel 1", "operator queue.discard 1", "tenant/acme queue.purge 3"]);
    assert_eq!(rows[0].record, Some(all[0].id));
    assert!(queue.audit(Some(&"globex".parse().unwrap()), 0, 100).await.unwrap().is_empty());

    let got = deliver_until(delivery, |_| now(ok()), tokio::time::sleep(Duration::from_millis(50))).await;
    assert!(got.is_empty(), "nothing of that is delivered");
    queue.shutdown(Duration::from_secs(5)).await;
    drop(queue);
    let (queue, _delivery) = open(&dir);
    assert_eq!(queue.totals().receipts, 5);
    assert_eq!(queue.audit(None, 1, 1).await.unwrap(), rows[1..2]);
}

#[tokio::test]
async fn a_paused_upstream_gets_nothing_until_it_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery) = open(&dir);
    let before = keyed(&queue, 0, None).await;
    queue.set_paused(&tenant(), &upstream(), true, "operator").await.unwrap();
    let paused = queue.clone();
    let done = async move {
        keyed(&paused, 1, None).await;
        keyed(&paused, 2, Some("k")).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(states(&paused).await, ["queued", "queued", "queued"]);
        let [lane] = &paused.lanes(None).await.unwrap()[..] else { panic!() };
        assert_eq!((lane.depth, lane.dead, lane.paused), (3, 0, true));
        assert_eq!(lane.oldest_ms, Some(view(&paused, &before).await.accepted_ms));
        paused.set_paused(&tenant(), &upstream(), false, "operator").await.unwrap();
        until(&paused, |t| t.delivered == 3).await;
    };
    let got = deliver_until(delivery, |_| now(ok()), done).await;
    assert_eq!(by_target(&got), HashMap::from([("/0", 1), ("/1", 1), ("/2", 1)]));
}

#[tokio::test]
async fn a_rate_is_kept_from_the_start_on_and_until_it_is_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery) = open(&dir);
    queue.set_rate(&tenant(), &upstream(), Some("4/s".parse().unwrap()), "operator").await.unwrap();
    drop(delivery);
    queue.shutdown(Duration::from_secs(5)).await;
    drop(queue);
    let (queue, delivery) = open(&dir);
    for n in 0..5 {
        keyed(&queue, n, None).await;
    }
    let slow = queue.clone();
    let began = std::time::Instant::now();
    let done = async move {
        until(&slow, |t| t.delivered == 5).await;
        assert!(
            began.elapsed() >= Duration::from_millis(950),
            "four more than the first: {:?}",
            began.elapsed()
        );
        let [lane] = &slow.lanes(None).await.unwrap()[..] else { panic!() };
        assert_eq!(lane.per_second.unwrap().to_string(), "4/s");
        slow.set_rate(&tenant(), &upstream(), None, "operator").await.unwrap();
        assert_eq!(slow.lanes(None).await.unwrap()[0].per_second, None);
        for n in 5..30 {
            keyed(&slow, n, None).await;
        }
        tokio::time::timeout(Duration::from_secs(5), until(&slow, |t| t.delivered == 30)).await.unwrap();
    };
    deliver_until(delivery, |_| now(ok()), done).await;
}

#[tokio::test]
async fn a_dead_letter_that_is_tried_again_is_delivered_and_counted_once() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery) = open(&dir);
    let accepted = keyed(&queue, 0, Some("k")).await;
    let again = queue.clone();
    let id = accepted.id;
    let done = async move {
        until(&again, |t| t.dead == 1).await;
        let [lane] = &again.lanes(Some(&tenant())).await.unwrap()[..] else { panic!() };
        assert_eq!((lane.depth, lane.dead, lane.oldest_ms), (0, 1, None));
        assert!(again.backlog(&tenant(), &upstream(), "k") == Backlog::Empty);
        again.retry(&tenant(), id, false, "operator").await.unwrap();
        until(&again, |t| t.delivered == 1).await;
    };
    let answer = |attempt: &Attempt| now(if attempt.number == 1 { refused() } else { ok() });
    let got = deliver_until(delivery, answer, done).await;
    assert_eq!(got.iter().map(|attempt| attempt.number).collect::<Vec<_>>(), [1, 2]);
    let totals = queue.totals();
    assert_eq!((totals.open, totals.kept, totals.kept_bytes, totals.receipts), (0, 0, 0, 1));
    assert!(queue.backlog(&tenant(), &upstream(), "k") == Backlog::Empty);
    let late = queue.cancel(&tenant(), &accepted.receipt.to_string()).await.unwrap().unwrap();
    assert!(matches!(late, Cancellation::TooLate(_)), "{late:?}");
    let error = queue.retry(&tenant(), id, true, "operator").await.unwrap_err().to_string();
    assert!(error.contains("is delivered, so that it cannot be tried again: only a dead letter"), "{error}");
}

#[tokio::test]
async fn nobody_reaches_what_is_another_tenants() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _delivery) = open(&dir);
    let accepted = keyed(&queue, 0, None).await;
    let globex: TenantName = "globex".parse().unwrap();
    let receipt = accepted.receipt.to_string();
    assert_eq!(queue.cancel(&globex, &receipt).await.unwrap(), None);
    for presented in ["", "nonsense", &receipt.replace('.', "A")] {
        assert_eq!(queue.cancel(&tenant(), presented).await.unwrap(), None);
    }
    let unknown = |error: HandError| assert!(matches!(error, HandError::Unknown { .. }), "{error}");
    unknown(queue.discard(&globex, accepted.id, "tenant/globex").await.unwrap_err());
    unknown(queue.retry(&globex, accepted.id, true, "tenant/globex").await.unwrap_err());
    unknown(queue.record(&globex, accepted.id).await.unwrap_err());
    let states = [StateName::Queued, StateName::Held, StateName::Dead];
    assert_eq!(queue.purge(&globex, &upstream(), &states, "x").await.unwrap(), Purged::default());
    assert!(
        queue.records(RecordQuery { tenant: globex.clone(), ..query() }).await.unwrap().records.is_empty()
    );
    assert!(queue.lanes(Some(&globex)).await.unwrap().is_empty());
    assert_eq!(state(&queue, &accepted).await, State::Queued);
}

#[tokio::test]
async fn an_export_has_every_record_once_in_commit_order_page_by_page() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _delivery) = open(&dir);
    let mut ids = Vec::new();
    for n in 0..150 {
        let mut record = record(&queue, n, b"body").await;
        // Long heads end a page before it is full.
        record
            .headers
            .push((format!("x-{}", "n".repeat(if n < 20 { 100_000 } else { 1 })), b"s3cret".to_vec()));
        ids.push(accept(&queue, record).await.id);
    }
    let (mut exported, mut pages, mut after) = (Vec::new(), 0, 0);
    loop {
        let page = queue.export(RecordQuery { after, limit: 1000, ..query() }).await.unwrap();
        let text = serde_json::to_string(&page).unwrap();
        assert!(text.len() < 2 << 20 && !text.contains("s3cret"), "{} bytes", text.len());
        exported.extend(page.records.iter().map(|record| record.listing.id));
        pages += 1;
        let Some(next) = page.next else { break };
        after = next;
    }
    assert_eq!(exported, ids);
    assert_eq!(pages, 3, "the first of long heads, the others of a hundred records at most");
}

/// The body of a record that has one.
async fn whole(queue: &Queue, id: RecordId) -> RecordBody {
    match queue.record_body(id).await.unwrap() {
        ExportedBody::Whole(body) => body,
        ExportedBody::Erased => panic!("{id} is erased"),
        ExportedBody::Lost => panic!("{id} is lost"),
    }
}

#[tokio::test]
async fn bodies_are_read_in_pieces_where_they_lie_until_they_are_erased() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _delivery) = open(&dir);
    let large: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8).collect();
    for (n, body) in [(0, &b""[..]), (1, b"small"), (2, &large)] {
        let record = record(&queue, n, body).await;
        accept(&queue, record).await;
    }
    let page = queue.export(query()).await.unwrap();
    let mut read = Vec::new();
    for record in &page.records {
        let mut body = whole(&queue, record.listing.id).await;
        let mut read_so_far = Vec::new();
        loop {
            let piece = body.next(4096).await.unwrap();
            assert!(piece.len() <= 4096);
            if piece.is_empty() {
                break;
            }
            read_so_far.extend_from_slice(&piece);
        }
        assert_eq!(body.left(), 0);
        read.push(read_so_far);
    }
    assert_eq!(read, [b"".to_vec(), b"small".to_vec(), large]);

    let listing = &page.records[2].listing;
    let mut opened = whole(&queue, listing.id).await;
    assert!(queue.has_body(listing.id).await.unwrap());
    queue.discard(&tenant(), listing.id, "operator").await.unwrap();
    let erased = queue.record_body(listing.id).await.unwrap();
    assert!(matches!(erased, ExportedBody::Erased), "what is erased is not read");
    assert!(!queue.has_body(listing.id).await.unwrap(), "who holds it open can see that it is erased");
    assert_eq!(
        opened.next(10).await.unwrap(),
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9][..],
        "what was opened can be read on"
    );

    queue.note_bodies(&tenant(), &page.records, "operator").await.unwrap();
    let rows = queue.audit(Some(&tenant()), 0, 10).await.unwrap();
    let row = rows.last().unwrap();
    assert_eq!((row.actor.as_str(), row.action.as_str(), row.count), ("operator", "queue.export", 3));
}

#[tokio::test]
async fn a_body_that_the_disk_lost_is_not_taken_for_erased() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _delivery) = open(&dir);
    let record = record(&queue, 0, &[7; 100_000]).await;
    let id = accept(&queue, record).await.id;
    let bodies = dir.path().join("bodies");
    let file = std::fs::read_dir(bodies).unwrap().next().unwrap().unwrap().path();
    std::fs::write(&file, [7; 99_999]).unwrap();
    assert!(matches!(queue.record_body(id).await.unwrap(), ExportedBody::Lost), "of another length");
    std::fs::remove_file(file).unwrap();
    assert!(matches!(queue.record_body(id).await.unwrap(), ExportedBody::Lost), "no file");
}

#[tokio::test]
async fn a_record_that_is_queued_again_behind_its_page_has_its_body() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery) = open(&dir);
    let id = keyed(&queue, 0, None).await.id;
    let again = queue.clone();
    let done = async move {
        until(&again, |t| t.dead == 1).await;
        let before = again.export(query()).await.unwrap().records.remove(0).listing;
        again.retry(&tenant(), id, false, "operator").await.unwrap();
        assert!(again.record(&tenant(), id).await.unwrap().listing.seq > before.seq, "it has moved");
        let mut body = whole(&again, before.id).await;
        assert_eq!(body.next(100).await.unwrap(), &b"body"[..]);
    };
    deliver_until(delivery, |_| now(refused()), done).await;
}

#[tokio::test]
async fn what_is_shown_of_a_record_is_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _delivery) = open(&dir);
    let mut record = record(&queue, 0, b"s3cret body").await;
    record.target = "/a?token=s3cret".into();
    record.headers.push(("authorization".into(), b"Bearer s3cret".to_vec()));
    let accepted = accept(&queue, record).await;
    let secret = accepted.receipt.to_string().split_off(23);
    let shown = serde_json::to_string(&queue.record(&tenant(), accepted.id).await.unwrap()).unwrap();
    let listed = serde_json::to_string(&queue.records(query()).await.unwrap()).unwrap();
    for text in [&shown, &listed] {
        assert!(!text.contains("s3cret") && !text.contains(&secret) && text.contains("\"/a\""), "{text}");
    }
    assert!(shown.contains("\"body_bytes\":11"), "{shown}");
}

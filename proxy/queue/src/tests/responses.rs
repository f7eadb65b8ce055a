//! Origins' answers that are kept for receipts, on the whole queue.

use super::*;

/// An answer with a body of so many bytes, to be kept for so long.
fn answer(status: u16, bytes: usize, period: Duration) -> Outcome {
    let whole = Some(WholeResponse { headers: vec![], body: vec![b'x'; bytes].into() });
    let keep = Some(Keep { period, whole });
    Outcome::Answered { status, retry_after: None, complete: true, keep }
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn the_answer_that_ends_a_record_is_kept_and_counts_in_the_quota() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery) = open(&dir);
    let delivered = accept(&queue, record(&queue, 1, b"").await).await;
    let rejected = accept(&queue, record(&queue, 2, b"").await).await;
    let kept = |attempt: &Attempt| match (&attempt.target[..], attempt.number) {
        ("/1", 1) => now(answer(503, 7000, HOUR)),
        ("/1", _) => now(answer(200, 1000, HOUR)),
        _ => now(answer(422, 500, HOUR)),
    };
    deliver_until(delivery, kept, until(&queue, |t| t.delivered == 1 && t.dead == 1)).await;
    let told = view(&queue, &delivered).await.response.unwrap();
    assert_eq!((told.status, told.complete, told.size), (200, true, Some(1000)), "the last one");
    assert_eq!(queue.response(rejected.id).await.unwrap().unwrap().whole.unwrap().body.len(), 500);
    let bytes = queue.totals().kept_bytes;
    assert!((1500 + 512..1500 + 512 + 300).contains(&bytes), "answers, and the dead record: {bytes}");
    assert_eq!((queue.totals().kept, queue.totals().reserved_bytes), (1, 0));
    assert_eq!(queue.lanes(None).await.unwrap()[0].bytes, bytes);
    queue.shutdown(Duration::from_secs(5)).await;
    drop(queue);
    let (queue, delivery) = open(&dir);
    assert_eq!(queue.totals().kept_bytes, bytes, "counted anew");
    assert_eq!(view(&queue, &delivered).await.response, Some(told));
    // Content like any other: who gives the record up gives its answer up.
    queue.discard(&tenant(), rejected.id, "operator").await.unwrap();
    assert_eq!(queue.response(rejected.id).await.unwrap(), None);
    let left = queue.totals().kept_bytes;
    assert!((1000..1300).contains(&left), "{left}");
    drop(delivery);
}

#[tokio::test]
async fn an_answer_whose_time_is_over_is_not_told_and_soon_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery) = open(&dir);
    let accepted = accept(&queue, record(&queue, 1, b"").await).await;
    let outcome = |_: &Attempt| now(answer(200, 1000, Duration::ZERO));
    let forgotten = async {
        until(&queue, |totals| totals.delivered == 1).await;
        assert_eq!(view(&queue, &accepted).await.response, None);
        assert_eq!(queue.response(accepted.id).await.unwrap(), None);
        until(&queue, |totals| totals.kept_bytes == 0).await;
    };
    deliver_until(delivery, outcome, forgotten).await;
    let rows = rusqlite::Connection::open(dir.path().join("queue.db"))
        .unwrap()
        .query_row("SELECT count(*) FROM response", [], |row| row.get::<_, i64>(0))
        .unwrap();
    assert_eq!(rows, 0);
}

#[tokio::test]
async fn an_answer_for_which_there_is_no_room_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Settings { tenant_max_bytes: Some(5000), ..settings(dir.path()) };
    let (queue, delivery) = Queue::open(limits).unwrap();
    let [small, large, full] = {
        let mut accepted = vec![];
        for n in 1..=3 {
            accepted.push(accept(&queue, record(&queue, n, b"").await).await);
        }
        accepted.try_into().unwrap()
    };
    let outcome = |attempt: &Attempt| match &attempt.target[..] {
        "/1" => now(answer(200, 1000, HOUR)),
        "/2" => now(answer(200, 6000, HOUR)),
        _ => {
            // After the others.
            Box::pin(async {
                tokio::time::sleep(Duration::from_millis(200)).await;
                answer(200, 3990, HOUR)
            })
        }
    };
    deliver_until(delivery, outcome, until(&queue, |totals| totals.delivered == 3)).await;
    assert!(view(&queue, &small).await.response.is_some());
    for refused in [large, full] {
        let told = view(&queue, &refused).await;
        assert_eq!((told.last_status, told.response), (Some(200), None), "it is delivered all the same");
    }
    assert_eq!(queue.totals().reserved_bytes, 0);
}

//! Clients' `Idempotency-Key`s, on the whole queue.

use std::sync::atomic::Ordering;

use futures_util::FutureExt as _;

use super::{
    faults::{Fault, open_faulty},
    *,
};

async fn look(queue: &Queue, key: &str) -> KeyLook {
    let (tenant, upstream) = (tenant(), upstream());
    let what = KeyedUse {
        tenant: &tenant,
        upstream: &upstream,
        host: "acme.test",
        method: "PUT",
        path: "/1",
        key: key.as_bytes(),
        credentials: &[],
    };
    queue.look_up_key(&what, true).await.unwrap()
}

async fn claim(queue: &Queue, key: &str) -> KeyClaim {
    match look(queue, key).await {
        KeyLook::Free(Some(claim)) => claim,
        other => panic!("{other:?}"),
    }
}

/// A request under this claim.
async fn claiming(queue: &Queue, claim: KeyClaim, body: &[u8]) -> NewRecord {
    let mut buffer = queue.body(1 << 20).hashed();
    buffer.push(Bytes::copy_from_slice(body)).await.unwrap();
    NewRecord { claim: Some(claim), body: buffer, ..record(queue, 1, b"").await }
}

fn fingerprint(body: &[u8]) -> Fingerprint {
    let mut hasher = BodyHasher::default();
    hasher.update(body);
    Fingerprint::of("/1", Some(b"text/plain"), &hasher.digest())
}

/// The receipt that a request with this body is told.
async fn receipt_of(queue: &Queue, key: &str, body: &[u8]) -> Option<String> {
    match look(queue, key).await {
        KeyLook::Used(used) => used.receipt(&fingerprint(body)).map(ToString::to_string),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn one_key_makes_one_record() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery) = open(&dir);
    let first = claim(&queue, "k").await;
    assert!(matches!(look(&queue, "k").await, KeyLook::InUse), "while it is under way");
    drop(claim(&queue, "other").await);
    let accepted = accept(&queue, claiming(&queue, first, b"body").await).await;
    let receipt = accepted.receipt.to_string();
    assert_eq!(receipt_of(&queue, "k", b"body").await.as_ref(), Some(&receipt));
    assert_eq!(receipt_of(&queue, "k", b"another").await, None, "another request");
    assert!(queue.receipt(&tenant(), &receipt).await.unwrap().is_some());
    let got = deliver_until(delivery, |_| now(ok()), until(&queue, |t| t.delivered == 1)).await;
    assert_eq!(got.len(), 1);
    queue.shutdown(Duration::from_secs(5)).await;
    drop(queue);
    let (queue, _delivery) = open(&dir);
    assert_eq!(receipt_of(&queue, "k", b"body").await, Some(receipt), "delivered, and after a restart");
    drop(claim(&queue, "other").await);
}

#[tokio::test]
async fn a_key_is_in_use_until_its_commit_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _delivery, control) = open_faulty(&dir, settings(dir.path()));
    control.hold_commits();
    let first = claim(&queue, "k").await;
    let mut enqueue = Box::pin(try_accept(&queue, claiming(&queue, first, b"body").await));
    assert!(enqueue.as_mut().now_or_never().is_none());
    assert!(matches!(look(&queue, "k").await, KeyLook::InUse));
    // Its client goes away: the record may come to be all the same.
    drop(enqueue);
    assert!(matches!(look(&queue, "k").await, KeyLook::InUse));
    control.let_commits_go();
    until(&queue, |totals| totals.accepted == 1).await;
    assert!(receipt_of(&queue, "k", b"body").await.is_some());

    // One of which the log does not tell whether it is there.
    let second = claim(&queue, "l").await;
    control.broken_reopenings.store(1, Ordering::SeqCst);
    control.fail_next(Fault::After);
    let failed = claiming(&queue, second, b"body").await;
    let meanwhile = async {
        queue.health().wait_for(|health| *health != Health::Available).await.unwrap();
        assert!(matches!(look(&queue, "l").await, KeyLook::InUse));
    };
    let (refused, ()) = tokio::join!(try_accept(&queue, failed), meanwhile);
    assert!(refused.is_err());
    drop(claim(&queue, "l").await);
    assert!(receipt_of(&queue, "k", b"body").await.is_some(), "the recount knows");
}

#[tokio::test]
async fn the_commit_itself_lets_no_second_record_in() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, _delivery) = open(&dir);
    let first = accept(&queue, claiming(&queue, claim(&queue, "k").await, b"body").await).await;
    // As if the index had forgotten, which it must not matter to.
    let forgotten = async || {
        queue.lose_index();
        claim(&queue, "k").await
    };
    let again = accept(&queue, claiming(&queue, forgotten().await, b"body").await).await;
    assert_eq!((again.id, again.receipt), (first.id, first.receipt));
    let other = try_accept(&queue, claiming(&queue, forgotten().await, b"another").await).await;
    assert!(matches!(other, Err(EnqueueError::KeyReused)), "{other:?}");
    let totals = queue.totals();
    assert_eq!((totals.accepted, totals.kept, totals.reserved_bytes), (1, 1, 0));
}

#[tokio::test]
async fn a_key_is_free_again_when_its_request_may_be_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let (queue, delivery) = open(&dir);
    for (key, body) in [("rejected", b"a"), ("delivered", b"b")] {
        accept(&queue, claiming(&queue, claim(&queue, key).await, body).await).await;
    }
    let cancelled = accept(&queue, claiming(&queue, claim(&queue, "cancelled").await, b"c").await).await;
    queue.cancel(&tenant(), &cancelled.receipt.to_string()).await.unwrap();
    let answer = |attempt: &Attempt| {
        let status = if read(&attempt.body) == b"a" { 400 } else { 200 };
        now(Outcome::Answered { status, retry_after: None, complete: true, keep: None })
    };
    deliver_until(delivery, answer, until(&queue, |t| t.delivered == 1 && t.dead == 2)).await;
    drop(claim(&queue, "cancelled").await);
    drop(claim(&queue, "rejected").await);
    assert!(receipt_of(&queue, "delivered", b"b").await.is_some());
}

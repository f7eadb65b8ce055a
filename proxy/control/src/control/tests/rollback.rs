use std::sync::atomic::Ordering::SeqCst;

use beamline_model::RevisionId;
use serde_json::json;

use super::bench::{Bench, OPERATOR, filtered, manifest, variant};
use crate::{ControlError, ControlErrorKind};

#[tokio::test]
async fn a_rollback_goes_back_to_what_was_active_before_and_forth_again() {
    let bench = Bench::new().await;
    let acme = bench.tenant("acme").await;
    for n in 1..=3 {
        bench.apply(&acme, variant(&acme, n)).await.unwrap();
    }
    let back = bench.control.rollback(&acme, None, false, &OPERATOR).await.unwrap();
    assert_eq!((back.revision, back.changed), (Some(RevisionId(2)), true));
    assert_eq!(back.diff, [r#"~ upstreams.api.response_timeout: "1003ms" -> "1002ms""#]);
    assert_eq!(bench.seen(&acme).revision, RevisionId(2), "visible when it returns");

    let forth = bench.control.rollback(&acme, None, false, &OPERATOR).await.unwrap();
    assert_eq!(forth.revision, Some(RevisionId(3)), "the one active before this one");
    let far = bench.control.rollback(&acme, Some(RevisionId(1)), false, &OPERATOR).await.unwrap();
    assert_eq!(far.revision, Some(RevisionId(1)));
    let next = bench.apply(&acme, manifest(&acme, |m| m["limits"] = json!({ "cpu": "1ms" }))).await.unwrap();
    assert_eq!(next.revision, Some(RevisionId(4)), "numbers are never used again");
}

#[tokio::test]
async fn a_rollback_to_the_active_revision_changes_nothing() {
    let bench = Bench::new().await;
    let acme = bench.tenant("acme").await;
    bench.apply(&acme, variant(&acme, 1)).await.unwrap();
    let generation = bench.control.status().generation;
    let done = bench.control.rollback(&acme, Some(RevisionId(1)), false, &OPERATOR).await.unwrap();
    assert_eq!((done.revision, done.changed), (Some(RevisionId(1)), false));
    assert_eq!(bench.control.status().generation, generation);
}

#[tokio::test]
async fn a_rollback_without_anything_to_go_back_to_says_so() {
    let bench = Bench::new().await;
    let acme = bench.tenant("acme").await;
    let none = bench.control.rollback(&acme, None, false, &OPERATOR).await.unwrap_err();
    assert!(matches!(none, ControlError::NoRevision(_)), "{none}");
    bench.apply(&acme, variant(&acme, 1)).await.unwrap();
    let first = bench.control.rollback(&acme, None, false, &OPERATOR).await.unwrap_err();
    assert_eq!((first.kind(), first.token()), (ControlErrorKind::Conflict, "no-previous-revision"));
    let unknown = bench.control.rollback(&acme, Some(RevisionId(7)), false, &OPERATOR).await.unwrap_err();
    assert_eq!(
        unknown.to_string(),
        "tenant acme has no revision 7: list its revisions and choose one of them"
    );
}

#[tokio::test]
async fn a_rollback_brings_back_the_modules_of_its_revision() {
    let bench = Bench::new().await;
    let acme = bench.tenant("acme").await;
    let (one, two) = (bench.push(&acme, b"one").await, bench.push(&acme, b"two").await);
    bench.apply(&acme, filtered(&acme, one)).await.unwrap();
    bench.apply(&acme, filtered(&acme, two)).await.unwrap();
    let asked = bench.modules.asked.load(SeqCst);
    let back = bench.control.rollback(&acme, None, false, &OPERATOR).await.unwrap();
    assert_eq!(back.diff, [format!("~ filters[f].module: \"{two}\" -> \"{one}\"")]);
    assert_eq!(bench.modules.asked.load(SeqCst), asked + 1);
}

use std::sync::{Arc, atomic::Ordering::SeqCst};

use beamline_model::RevisionId;
use serde_json::json;

use super::bench::{Bench, DRY_RUN, OPERATOR, filtered, manifest, name, variant};
use crate::{ApplyOptions, ControlErrorKind};

#[tokio::test]
async fn an_applied_manifest_serves_when_apply_returns() {
    let bench = Bench::new().await;
    let acme = bench.tenant("acme").await;
    let digest = bench.push(&acme, b"module").await;
    let applied = bench.apply(&acme, filtered(&acme, digest)).await.unwrap();

    assert_eq!((applied.revision, applied.changed), (Some(RevisionId(1)), true));
    assert!(applied.diff.iter().any(|l| l == r#"+ hosts: ["acme.test"]"#), "{:?}", applied.diff);
    let snapshot = bench.control.snapshots().load_full();
    let tenant = snapshot.by_host("acme.test").unwrap();
    assert_eq!((tenant.name.as_str(), &*tenant.label, tenant.revision), ("acme", "acme", RevisionId(1)));
    assert_eq!(tenant.default_upstream().unwrap().label.as_ref(), "api");
    assert!(tenant.upstream("api").is_some() && tenant.upstream("other").is_none());
    let chain: Vec<_> = tenant.chain.filters().map(|f| (f.name.as_str(), f.config.json())).collect();
    assert_eq!(chain, [("f", "null")]);
    assert_eq!(
        bench.told("revision.activated"),
        [json!({ "tenant.id": "acme", "beamline.revision": 1, "replaced": null, "actor": "operator" })]
    );
}

#[tokio::test]
async fn the_same_manifest_again_changes_nothing() {
    let bench = Bench::new().await;
    let acme = bench.tenant("acme").await;
    bench.apply(&acme, manifest(&acme, |_| {})).await.unwrap();
    let before = bench.seen(&acme);
    let audit = bench.control.audit(None, 0, 100, &OPERATOR).await.unwrap();

    let written_otherwise = manifest(&acme, |m| m["limits"] = json!({ "cpu": "50ms" }));
    let applied = bench.apply(&acme, written_otherwise).await.unwrap();
    assert_eq!((applied.revision, applied.changed, applied.diff), (Some(RevisionId(1)), false, vec![]));
    assert!(Arc::ptr_eq(&before, &bench.seen(&acme)));
    assert_eq!(bench.control.audit(None, 0, 100, &OPERATOR).await.unwrap(), audit);
}

#[tokio::test]
async fn a_dry_run_says_what_would_change_and_changes_nothing() {
    let bench = Bench::new().await;
    let acme = bench.tenant("acme").await;
    let first = bench.control.apply(&acme, manifest(&acme, |_| {}), DRY_RUN, &OPERATOR).await.unwrap();
    assert_eq!((first.revision, first.changed), (None, true));
    assert!(bench.control.snapshots().load().by_name(&acme).is_none());

    bench.apply(&acme, manifest(&acme, |_| {})).await.unwrap();
    let changed = manifest(&acme, |m| m["limits"] = json!({ "cpu": "20ms" }));
    let dry = bench.control.apply(&acme, changed, DRY_RUN, &OPERATOR).await.unwrap();
    assert_eq!((dry.revision, dry.changed), (Some(RevisionId(1)), true));
    assert_eq!(dry.diff, [r#"~ limits.cpu: "50ms" -> "20ms""#]);
    let same = bench.control.apply(&acme, manifest(&acme, |_| {}), DRY_RUN, &OPERATOR).await.unwrap();
    assert!(!same.changed && same.diff.is_empty());
    assert_eq!(bench.control.revisions(&acme, None, 10, &OPERATOR).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_one_tenant_come_one_after_the_other() {
    let bench = Bench::new().await;
    let acme = bench.tenant("acme").await;
    let changes = (0..8).map(|n| {
        let (control, acme) = (bench.control.clone(), acme.clone());
        let wanted = variant(&acme, n);
        tokio::spawn(async move {
            control.apply(&acme, wanted, ApplyOptions::default(), &OPERATOR).await.unwrap().revision
        })
    });
    let mut revisions = Vec::new();
    for change in changes.collect::<Vec<_>>() {
        revisions.push(change.await.unwrap().unwrap().0);
    }
    revisions.sort_unstable();
    assert_eq!(revisions, [1, 2, 3, 4, 5, 6, 7, 8], "none lost, none refused");
    assert_eq!(bench.seen(&acme).revision, RevisionId(8));
}

#[tokio::test]
async fn a_change_runs_to_its_end_though_the_caller_goes_away() {
    let bench = Bench::new().await;
    let acme = bench.tenant("acme").await;
    let digest = bench.push(&acme, b"module").await;
    let shut = bench.modules.gate.forget_permits(usize::MAX);
    let wanted = filtered(&acme, digest);
    {
        let going_away = bench.control.apply(&acme, wanted.clone(), ApplyOptions::default(), &OPERATOR);
        let asked = bench.modules.asked.load(SeqCst);
        let begun = async {
            while bench.modules.asked.load(SeqCst) == asked {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            _ = going_away => panic!("the gate is shut"),
            () = begun => {}
        }
    }
    bench.modules.gate.add_permits(shut);
    // The next change waits for its turn, which the abandoned one has: when it returns, both are done.
    let next = bench.apply(&acme, wanted).await.unwrap();
    assert_eq!((next.revision, next.changed), (Some(RevisionId(1)), false));
}

#[tokio::test]
async fn a_cluster_outlives_a_change_that_dials_it_the_same_way() {
    let bench = Bench::new().await;
    let acme = bench.tenant("acme").await;
    bench.apply(&acme, manifest(&acme, |_| {})).await.unwrap();
    let first = bench.seen(&acme);
    bench
        .apply(&acme, manifest(&acme, |m| m["upstreams"]["api"]["queue"] = json!({ "mode": "on-failure" })))
        .await
        .unwrap();
    let second = bench.seen(&acme);
    bench
        .apply(&acme, manifest(&acme, |m| m["upstreams"]["api"]["endpoints"] = json!(["127.0.0.1:9002"])))
        .await
        .unwrap();
    let third = bench.seen(&acme);

    let cluster = |t: &crate::TenantRuntime| Arc::clone(&t.default_upstream().unwrap().cluster);
    assert!(Arc::ptr_eq(&cluster(&first), &cluster(&second)), "what is known of its health is kept");
    assert_ne!(first.default_upstream().unwrap().queue, second.default_upstream().unwrap().queue);
    assert!(!Arc::ptr_eq(&cluster(&second), &cluster(&third)));
}

#[tokio::test]
async fn an_unknown_tenant_is_named() {
    let bench = Bench::new().await;
    let nobody = name("nobody");
    let error = bench.apply(&nobody, manifest(&nobody, |_| {})).await.unwrap_err();
    assert_eq!((error.kind(), error.token()), (ControlErrorKind::NotFound, "unknown-tenant"));
    assert_eq!(error.to_string(), "tenant nobody does not exist: create it first");
}

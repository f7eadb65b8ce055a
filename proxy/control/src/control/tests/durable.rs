use beamline_model::RevisionId;
use serde_json::json;

use super::bench::{Bench, DRY_RUN, OPERATOR, filtered, manifest, settings, variant};

#[tokio::test]
async fn whatever_was_answered_is_there_after_a_kill() {
    let bench = Bench::new().await;
    let acme = bench.tenant("acme").await;
    assert_eq!(bench.after_a_kill().await.control.tenants(&OPERATOR).await.unwrap().len(), 1);
    let digest = bench.push(&acme, b"module").await;
    assert_eq!(bench.after_a_kill().await.control.modules(&acme, &OPERATOR).await.unwrap().len(), 1);
    bench.apply(&acme, filtered(&acme, digest)).await.unwrap();
    assert_eq!(bench.after_a_kill().await.seen(&acme).revision, RevisionId(1));
    bench.apply(&acme, variant(&acme, 2)).await.unwrap();
    assert_eq!(bench.after_a_kill().await.seen(&acme).revision, RevisionId(2));
    bench.control.rollback(&acme, None, false, &OPERATOR).await.unwrap();
    let after = bench.after_a_kill().await;
    assert_eq!(after.seen(&acme).revision, RevisionId(1));
    assert_eq!(
        after.control.audit(None, 0, 100, &OPERATOR).await.unwrap(),
        bench.control.audit(None, 0, 100, &OPERATOR).await.unwrap()
    );
}

#[tokio::test]
async fn a_restart_restores_the_same_snapshot() {
    let bench = Bench::new().await;
    let (acme, other, _idle) =
        (bench.tenant("acme").await, bench.tenant("other").await, bench.tenant("idle").await);
    let digest = bench.push(&acme, b"module").await;
    bench.apply(&acme, filtered(&acme, digest)).await.unwrap();
    bench.apply(&other, variant(&other, 1)).await.unwrap();
    bench.apply(&other, variant(&other, 2)).await.unwrap();
    bench.control.rollback(&other, None, false, &OPERATOR).await.unwrap();

    let restored = |bench: &Bench| {
        let snapshot = bench.control.snapshots().load_full();
        let mut tenants: Vec<_> = snapshot
            .tenants()
            .map(|t| {
                let upstreams: Vec<_> = t
                    .upstreams
                    .iter()
                    .map(|(n, u)| (n.clone(), u.cluster.spec().clone(), u.queue.clone()))
                    .collect();
                let filters: Vec<_> =
                    t.chain.filters().map(|f| (f.name.clone(), f.config.clone(), f.on_error)).collect();
                (
                    t.name.clone(),
                    t.revision,
                    t.hosts.clone(),
                    t.limits.clone(),
                    upstreams,
                    filters,
                    t.unloaded.clone(),
                )
            })
            .collect();
        tenants.sort_by(|a, b| a.0.cmp(&b.0));
        tenants
    };
    let before = restored(&bench);
    assert_eq!(before.len(), 2, "a tenant without a revision serves nothing");
    let bench = bench.restarted(settings()).await;
    assert_eq!(restored(&bench), before);
    assert!(bench.control.snapshots().load().by_host("idle.test").is_none());
    let views = bench.control.tenants(&OPERATOR).await.unwrap();
    assert_eq!(views.iter().map(|v| v.previous.map(|r| r.0)).collect::<Vec<_>>(), [None, None, Some(2)]);
}

#[tokio::test]
async fn every_change_is_in_the_audit_and_nothing_else() {
    let bench = Bench::new().await;
    bench.control.operator_token_if_first_start(|_| Ok(())).await.unwrap();
    let acme = bench.tenant("acme").await;
    let digest = bench.push(&acme, b"module").await;
    bench.apply(&acme, filtered(&acme, digest)).await.unwrap();
    bench.apply(&acme, variant(&acme, 2)).await.unwrap();
    bench.control.rollback(&acme, None, false, &OPERATOR).await.unwrap();
    // None of these changes anything:
    bench.apply(&acme, filtered(&acme, digest)).await.unwrap();
    bench.push(&acme, b"module").await;
    bench.control.apply(&acme, variant(&acme, 3), DRY_RUN, &OPERATOR).await.unwrap();
    bench.apply(&acme, manifest(&acme, |m| m["hosts"] = json!(["no.test"]))).await.unwrap_err();

    let rows = bench.control.audit(None, 0, 100, &OPERATOR).await.unwrap();
    let told: Vec<_> = rows.iter().map(|r| (r.action.as_str(), &r.detail["revision"])).collect();
    let null = json!(null);
    assert_eq!(
        told,
        [
            ("token.create", &null),
            ("tenant.create", &null),
            ("module.push", &null),
            ("revision.commit", &json!(1)),
            ("revision.commit", &json!(2)),
            ("revision.activate", &json!(1)),
        ]
    );
    assert!(rows.iter().all(|r| r.at_ms == 1234 && r.actor == "operator"));
}

#[tokio::test]
async fn revisions_are_listed_and_read_back() {
    let bench = Bench::new().await;
    let acme = bench.tenant("acme").await;
    let missing = bench.control.revision(&acme, None, &OPERATOR).await.unwrap_err();
    assert_eq!(missing.token(), "no-revision");
    bench.apply(&acme, variant(&acme, 1)).await.unwrap();
    bench.apply(&acme, variant(&acme, 2)).await.unwrap();
    let listed = bench.control.revisions(&acme, None, 10, &OPERATOR).await.unwrap();
    assert_eq!(listed.iter().map(|r| (r.revision.0, r.active)).collect::<Vec<_>>(), [(2, true), (1, false)]);
    let active = bench.control.revision(&acme, None, &OPERATOR).await.unwrap();
    assert_eq!((active.listing, active.manifest), (listed[0], variant(&acme, 2)));
    let first = bench.control.revision(&acme, Some(RevisionId(1)), &OPERATOR).await.unwrap();
    assert_eq!(first.manifest, variant(&acme, 1));
    let json = serde_json::to_value(&first).unwrap();
    assert_eq!((&json["revision"], &json["active"]), (&json!(1), &json!(false)));
}

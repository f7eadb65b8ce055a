use std::sync::Arc;

use beamline_model::RevisionId;
use beamline_store::{SqliteStore, Stamp, Store as _};
use serde_json::json;

use super::bench::{Bench, OPERATOR, filtered, manifest, settings};
use crate::ControlSettings;

async fn with_a_broken_module() -> Bench {
    let bench = Bench::new().await;
    let (acme, other) = (bench.tenant("acme").await, bench.tenant("other").await);
    let digest = bench.push(&acme, b"module").await;
    bench.apply(&acme, filtered(&acme, digest)).await.unwrap();
    bench.apply(&other, manifest(&other, |_| {})).await.unwrap();
    bench.modules.broken.lock().unwrap().insert(b"module".to_vec());
    bench
        .restarted(ControlSettings { reload_every: std::time::Duration::from_secs(3600), ..settings() })
        .await
}

#[tokio::test]
async fn a_module_that_cannot_be_loaded_at_start_costs_its_own_tenant_only() {
    let bench = with_a_broken_module().await;
    let snapshot = bench.control.snapshots().load_full();
    let acme = snapshot.by_host("acme.test").unwrap();
    assert_eq!(acme.chain.filters().count(), 1, "the filter is there, so that its on_error counts");
    assert_eq!(acme.unloaded.len(), 1);
    assert!(acme.unloaded[0].problem.contains("on fire"));
    assert!(acme.default_upstream().is_some(), "what waits in its queue is delivered all the same");
    assert!(snapshot.by_host("other.test").unwrap().unloaded.is_empty());
    assert_eq!(bench.control.status().unloaded, std::slice::from_ref(&acme.name));
    let told = bench.told("tenant.unavailable");
    assert_eq!(
        (told.len(), &told[0]["tenant.id"], &told[0]["unloaded"][0]["filter"]),
        (1, &json!("acme"), &json!("f"))
    );
    let view = bench.control.tenant(&acme.name, &OPERATOR).await.unwrap();
    assert_eq!(view.unloaded, acme.unloaded);
}

#[tokio::test]
async fn a_tenant_recovers_when_its_module_can_be_loaded_again() {
    let bench = with_a_broken_module().await;
    let acme = super::bench::name("acme");
    let before = bench.seen(&acme);
    bench.control.inner.reload_unloaded().await;
    assert!(Arc::ptr_eq(&before, &bench.seen(&acme)), "as broken as before: nothing to swap");

    bench.modules.broken.lock().unwrap().clear();
    bench.control.inner.reload_unloaded().await;
    let after = bench.seen(&acme);
    assert!(after.unloaded.is_empty());
    assert_eq!(after.revision, before.revision);
    assert_eq!(bench.told("tenant.recovered").len(), 1);
    assert!(bench.control.status().unloaded.is_empty());
}

#[tokio::test]
async fn the_same_manifest_again_loads_what_could_not_be_loaded() {
    let bench = with_a_broken_module().await;
    let acme = super::bench::name("acme");
    let wanted = bench.control.revision(&acme, None, &OPERATOR).await.unwrap().manifest;
    let error = bench.apply(&acme, wanted.clone()).await.unwrap_err();
    assert_eq!(error.token(), "module-unloadable");
    bench.modules.broken.lock().unwrap().clear();
    let applied = bench.apply(&acme, wanted).await.unwrap();
    assert_eq!((applied.revision, applied.changed), (Some(RevisionId(1)), false));
    assert!(bench.seen(&acme).unloaded.is_empty());
}

#[tokio::test]
async fn a_revision_that_cannot_be_read_answers_on_every_granted_host_and_can_be_replaced() {
    let bench = Bench::new().await;
    let acme = bench.tenant("acme").await;
    let store = SqliteStore::open(bench.path()).unwrap();
    store.commit_revision(&acme, None, r#"{"version":9}"#, Stamp { at_ms: 1, actor: "tomorrow" }).unwrap();
    let bench = bench.restarted(settings()).await;
    let tenant = bench.seen(&acme);
    assert_eq!(bench.control.snapshots().load().by_host("acme.test").unwrap().revision, RevisionId(1));
    assert!(tenant.unloaded[0].problem.starts_with("revision 1 cannot be read"), "{:?}", tenant.unloaded);
    assert!(tenant.chain.filters().all(|f| f.module.is_none()));

    let applied = bench.apply(&acme, manifest(&acme, |_| {})).await.unwrap();
    assert_eq!(applied.revision, Some(RevisionId(2)));
    assert!(applied.diff.contains(&"~ version: 9 -> 1".to_owned()), "{:?}", applied.diff);
    let back = bench.control.rollback(&acme, None, false, &OPERATOR).await.unwrap_err();
    assert_eq!(back.token(), "revision-unreadable");
}

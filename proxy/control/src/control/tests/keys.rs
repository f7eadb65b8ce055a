use std::{sync::Arc, time::Duration};

use beamline_filter_host::Keeper;
use beamline_model::{Manifest, RevisionId, TenantName};
use beamline_store::{KvBatch, KvRow, SqliteStore, Stamp, Store as _};
use serde_json::json;

use super::bench::{Bench, OPERATOR, manifest, settings};

const SOON: Duration = Duration::from_secs(20);

fn durable(tenant: &TenantName, durable: bool) -> Manifest {
    manifest(tenant, |m| m["kv"] = json!({ "durable": durable }))
}

/// Stores these keys as if the tenant's filters had.
fn store(bench: &Bench, tenant: &TenantName, keys: &[&str]) {
    let entries = keys.iter().map(|key| KvRow { key, value: b"1", expires_ms: None }).collect();
    let batch = KvBatch { tenant, all: false, entries, gone: vec![] };
    SqliteStore::open(bench.path()).unwrap().write_kv(&[batch]).unwrap();
}

async fn stored(bench: &Bench, tenant: &TenantName) -> Vec<String> {
    assert!(bench.control.store_keys(SOON).await);
    let rows = SqliteStore::open(bench.path()).unwrap().kv(tenant).unwrap();
    rows.into_iter().map(|row| row.key).collect()
}

struct Nobody;

impl Keeper for Nobody {
    fn changed(&self) {}
}

/// What the tenant's filters see, by somebody else who keeps it from now on.
fn in_memory(bench: &Bench, tenant: &TenantName) -> Vec<String> {
    let kv = bench.seen(tenant).chain.state().durable();
    kv.keep(Arc::new(Nobody));
    let mut keys: Vec<_> =
        kv.take_changes(usize::MAX, 0).unwrap().entries.iter().map(|e| e.key.to_string()).collect();
    kv.end();
    keys.sort_unstable();
    keys
}

#[tokio::test]
async fn what_is_stored_is_back_before_the_first_request_where_the_manifest_has_it_durable() {
    let bench = Bench::new().await;
    let (acme, other) = (bench.tenant("acme").await, bench.tenant("other").await);
    bench.apply(&acme, durable(&acme, true)).await.unwrap();
    bench.apply(&other, durable(&other, false)).await.unwrap();
    store(&bench, &acme, &["a", "b"]);
    store(&bench, &other, &["c"]);
    let bench = bench.restarted(settings()).await;
    assert!(bench.seen(&acme).chain.state().kept().is_some());
    assert_eq!(stored(&bench, &acme).await, ["a", "b"]);
    assert!(stored(&bench, &other).await.is_empty(), "what is durable no more is erased");
    assert_eq!(in_memory(&bench, &acme), ["a", "b"]);
    assert!(in_memory(&bench, &other).is_empty());
}

#[tokio::test]
async fn a_revision_without_it_erases_what_is_stored_and_one_with_it_stores_what_is_in_memory() {
    let bench = Bench::new().await;
    let acme = bench.tenant("acme").await;
    bench.apply(&acme, durable(&acme, true)).await.unwrap();
    store(&bench, &acme, &["a"]);
    let bench = bench.restarted(settings()).await;
    bench.apply(&acme, durable(&acme, false)).await.unwrap();
    assert!(stored(&bench, &acme).await.is_empty());
    assert!(bench.seen(&acme).chain.state().kept().is_none());
    bench.control.rollback(&acme, None, false, &OPERATOR).await.unwrap();
    assert_eq!(stored(&bench, &acme).await, ["a"], "it was in memory all the time");
    let one = manifest(&acme, |m| {
        m["kv"] = json!({ "durable": true });
        m["limits"] = json!({ "kv_entries": 1 });
    });
    store(&bench, &acme, &["b"]);
    bench.apply(&acme, one).await.unwrap();
    let bench = bench.restarted(settings()).await;
    assert_eq!(bench.told("kv.dropped"), [json!({ "tenant.id": "acme", "dropped": 1, "restored": 1 })]);
    assert_eq!(stored(&bench, &acme).await, ["a"], "what has no room does not come back later");
}

#[tokio::test]
async fn what_is_stored_goes_with_its_tenant() {
    let bench = Bench::new().await;
    let acme = bench.tenant("acme").await;
    bench.apply(&acme, durable(&acme, true)).await.unwrap();
    store(&bench, &acme, &["a"]);
    let bench = bench.restarted(settings()).await;
    let kv = bench.seen(&acme).chain.state().kept().unwrap();
    assert!(bench.control.delete_tenant(&acme, None, &OPERATOR).await.unwrap().deleted);
    assert!(!kv.is_kept(), "a request that is still under way stores nothing");
    bench.tenant("acme").await;
    bench.apply(&acme, durable(&acme, true)).await.unwrap();
    assert!(stored(&bench, &acme).await.is_empty() && in_memory(&bench, &acme).is_empty());
}

#[tokio::test]
async fn what_is_stored_stays_where_the_manifest_cannot_be_read() {
    let bench = Bench::new().await;
    let acme = bench.tenant("acme").await;
    bench.apply(&acme, durable(&acme, true)).await.unwrap();
    store(&bench, &acme, &["a"]);
    let stamp = Stamp { at_ms: 1, actor: "operator" };
    let elsewhere = SqliteStore::open(bench.path()).unwrap();
    elsewhere.commit_revision(&acme, Some(RevisionId(1)), "no manifest", stamp).unwrap();
    let bench = bench.restarted(settings()).await;
    assert_eq!(stored(&bench, &acme).await, ["a"]);
    bench.apply(&acme, durable(&acme, true)).await.unwrap();
    assert_eq!(stored(&bench, &acme).await, ["a"]);
    assert_eq!(in_memory(&bench, &acme), ["a"], "and is back with one that can");
}

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use beamline_model::{Manifest, RevisionId, SecretValue, TenantName};
use beamline_seal::{KeyLine, SealKeys};
use beamline_store::{SqliteStore, Stamp, Store as _};
use serde_json::json;
use tokio::sync::Semaphore;

use super::bench::{Bench, OPERATOR, manifest, settings};
use crate::ControlSettings;

const ELSEWHERE: Stamp<'_> = Stamp { at_ms: 1, actor: "operator" };

fn keyed() -> ControlSettings {
    let line = KeyLine::generate(&"k1".parse().unwrap());
    let keys = SealKeys::parse(line.reveal()).unwrap();
    // What lacks something is tried again only when a test says so.
    let reload_every = Duration::from_secs(3600);
    ControlSettings { seal_keys: Some(Arc::new(keys)), reload_every, ..settings() }
}

/// A manifest that names the secret `token`.
fn injecting(tenant: &TenantName, edit: impl FnOnce(&mut serde_json::Value)) -> Manifest {
    manifest(tenant, |m| {
        m["upstreams"]["api"]["headers"] = json!({ "authorization": "secret://token" });
        edit(m);
    })
}

fn problem(bench: &Bench, tenant: &TenantName) -> Option<String> {
    bench.seen(tenant).upstreams["api"].headers.problem().map(str::to_owned)
}

/// A tenant with that manifest and its secret; and the secret as it is stored.
async fn with_a_secret(settings: ControlSettings) -> (Bench, TenantName, Vec<u8>) {
    let bench = Bench::with(settings).await;
    let acme = bench.tenant("acme").await;
    let value = SecretValue::new(b"s3cret").unwrap();
    bench.control.set_secret(&acme, "token".parse().unwrap(), value, &OPERATOR).await.unwrap();
    bench.apply(&acme, injecting(&acme, |_| {})).await.unwrap();
    let sealed = SqliteStore::open(bench.path()).unwrap().secrets(&acme).unwrap().remove(0).sealed;
    (bench, acme, sealed)
}

#[tokio::test]
async fn an_upstream_that_lacks_its_secret_is_tried_again_until_it_has_it() {
    let settings = keyed();
    let (bench, acme, sealed) = with_a_secret(settings.clone()).await;
    let store = SqliteStore::open(bench.path()).unwrap();
    let token = "token".parse().unwrap();
    store.set_secret(&acme, &token, b"not sealed", ELSEWHERE).unwrap();
    let bench = bench.restarted(settings).await;
    let before = bench.seen(&acme);
    assert!(problem(&bench, &acme).is_some());
    bench.control.inner.reload_unloaded().await;
    assert!(Arc::ptr_eq(&before, &bench.seen(&acme)), "as it was before: nothing to swap");
    let same = bench.apply(&acme, injecting(&acme, |_| {})).await.unwrap_err();
    assert_eq!(same.token(), "secret-unavailable", "what does not serve whole is no success");

    store.set_secret(&acme, &token, &sealed, ELSEWHERE).unwrap();
    bench.control.inner.reload_unloaded().await;
    assert_eq!(problem(&bench, &acme), None);
    assert_eq!(bench.seen(&acme).revision, RevisionId(1));
    assert_eq!(bench.told("tenant.recovered").len(), 1);
}

#[tokio::test]
async fn a_secret_that_goes_while_a_revision_is_made_ready_fails_the_change() {
    let (bench, acme, _) = with_a_secret(keyed()).await;
    let digest = bench.push(&acme, b"module").await;
    let asked = bench.modules.asked.load(Ordering::SeqCst);
    bench.modules.gate.forget_permits(Semaphore::MAX_PERMITS);
    let with_filter = injecting(&acme, |m| m["filters"] = json!([{ "name": "f", "module": digest }]));
    let (control, of) = (bench.control.clone(), acme.clone());
    let applied = tokio::spawn(async move {
        control.apply(&of, with_filter, crate::ApplyOptions::default(), &OPERATOR).await
    });
    // It has looked at the secrets, and waits for the module.
    while bench.modules.asked.load(Ordering::SeqCst) == asked {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let store = SqliteStore::open(bench.path()).unwrap();
    store.remove_secret(&acme, &"token".parse().unwrap(), ELSEWHERE).unwrap();
    bench.modules.gate.add_permits(1);
    let refused = applied.await.unwrap().unwrap_err();
    assert_eq!(refused.token(), "secret-unavailable", "{refused}");
    assert!(refused.to_string().contains("upstreams.api.headers"), "{refused}");
    assert_eq!((bench.seen(&acme).revision, problem(&bench, &acme)), (RevisionId(1), None));
}

use std::{sync::Arc, time::Duration};

use beamline_model::{OnDead, RevisionId, TenantName, Token, TokenScope};
use beamline_queue::{Demand, NewRecord, Queue, TraceRef};
use beamline_store::{SqliteStore, Stamp, Store as _, StoreError};
use serde_json::json;

use super::bench::{Bench, DRY_RUN, OPERATOR, grant, manifest, name};
use crate::{ApplyOptions, ControlError, Deletion, UpstreamBacklog};

const DISCARDING: ApplyOptions = ApplyOptions { dry_run: false, discard_queue: true };

/// Queues a request for the tenant's upstream `api`.
async fn enqueue(queue: &Queue, tenant: &TenantName) {
    let record = NewRecord {
        tenant: tenant.clone(),
        upstream: "api".parse().unwrap(),
        revision: RevisionId(1),
        method: "POST".into(),
        target: "/".into(),
        host: "acme.test".into(),
        headers: Vec::new(),
        sealed: None,
        body: queue.body(0),
        ordering_key: None,
        on_dead: OnDead::Continue,
        repeat_safe: true,
        delay: Duration::ZERO,
        expiry: Duration::from_secs(3600),
        claim: None,
        trace: TraceRef::default(),
        request_id: "r".into(),
    };
    let reservation = queue.reserve(tenant, 10, Demand::Asked).unwrap();
    queue.enqueue(record, reservation).await.unwrap();
}

/// Whether a refusal says that one request waits for `api`.
fn says_what_waits(upstreams: &[UpstreamBacklog]) -> bool {
    upstreams == [UpstreamBacklog { upstream: "api".parse().unwrap(), waiting: 1, dead: 0 }]
}

#[tokio::test]
async fn a_tenant_with_a_backlog_is_deleted_only_as_somebody_says() {
    let bench = Bench::new().await;
    let (acme, other) = (bench.tenant("acme").await, bench.tenant("other").await);
    for tenant in [&acme, &other] {
        bench.apply(tenant, manifest(tenant, |_| {})).await.unwrap();
    }
    enqueue(&bench.queue, &acme).await;
    let refused = bench.control.delete_tenant(&acme, None, &OPERATOR).await.unwrap_err();
    assert!(
        matches!(&refused, ControlError::Backlog { upstreams, .. } if says_what_waits(upstreams)),
        "{refused}"
    );
    assert!(!bench.seen(&acme).leaving, "a refusal changes nothing");

    let done = bench.control.delete_tenant(&acme, Some(Deletion::Discard), &OPERATOR).await.unwrap();
    assert_eq!((done.deleted, done.discarded, done.waiting), (true, 1, 0));
    let unknown = bench.control.tenant(&acme, &OPERATOR).await.unwrap_err();
    assert!(matches!(unknown, ControlError::Store(StoreError::UnknownTenant(t)) if t == acme));
    let snapshot = bench.control.snapshots().load_full();
    assert!(snapshot.by_name(&acme).is_none() && snapshot.by_host("acme.test").is_none());
    assert!(snapshot.by_name(&other).is_some(), "it cost its tenant alone");
    assert_eq!(bench.told("tenant.deleted").len(), 1);
    let audit = bench.control.audit(Some(&acme), 0, 100, &OPERATOR).await.unwrap();
    let actions: Vec<_> = audit.iter().map(|row| row.action.as_str()).collect();
    assert_eq!(actions[2..], ["tenant.begin-deletion", "tenant.delete"]);

    let again = bench.control.create_tenant(name("acme"), grant(&["acme.test"]), &OPERATOR).await.unwrap();
    assert!(bench.control.authenticate(&again.hash()).is_some());
}

#[tokio::test]
async fn a_deleted_tenants_token_is_nobodys() {
    let bench = Bench::new().await;
    let token = bench.control.create_tenant(name("acme"), grant(&["acme.test"]), &OPERATOR).await.unwrap();
    let own = bench.control.authenticate(&token.hash()).unwrap();
    let refused = bench.control.delete_tenant(&name("acme"), None, &own).await.unwrap_err();
    assert!(matches!(refused, ControlError::OperatorOnly { .. }), "{refused}");
    let done = bench.control.delete_tenant(&name("acme"), None, &OPERATOR).await.unwrap();
    assert!(done.deleted, "one without a revision too");
    assert_eq!(bench.control.authenticate(&token.hash()), None);
}

/// A tenant that is being drained, which is not soon over; with its token and a second handle on the store.
async fn draining() -> (Bench, TenantName, Token, SqliteStore) {
    let bench = Bench::new().await;
    let acme = name("acme");
    let token = bench.control.create_tenant(acme.clone(), grant(&["acme.test"]), &OPERATOR).await.unwrap();
    bench.apply(&acme, manifest(&acme, |_| {})).await.unwrap();
    enqueue(&bench.queue, &acme).await;
    let begun = bench.control.delete_tenant(&acme, Some(Deletion::Drain), &OPERATOR).await.unwrap();
    assert!(!begun.deleted && bench.control.authenticate(&token.hash()).is_some());
    let elsewhere = SqliteStore::open(bench.path()).unwrap();
    (bench, acme, token, elsewhere)
}

const ELSEWHERE: Stamp<'_> = Stamp { at_ms: 1, actor: "operator" };

#[tokio::test]
async fn nothing_is_left_of_a_tenant_whose_deletion_another_process_ended() {
    let (bench, acme, token, elsewhere) = draining().await;
    elsewhere.delete_tenant(&acme, ELSEWHERE).unwrap();
    assert!(bench.control.inner.go_on(&acme, "operator").await.unwrap().deleted);
    assert_eq!(bench.control.authenticate(&token.hash()), None);
    assert!(bench.control.snapshots().load().by_name(&acme).is_none());
    assert!(bench.control.inner.deleting().is_empty());
    // One that was about to end it itself finds the same.
    let (bench, acme, token, elsewhere) = draining().await;
    elsewhere.delete_tenant(&acme, ELSEWHERE).unwrap();
    assert!(bench.control.inner.end(&acme, "operator").await.unwrap());
    assert_eq!(bench.control.authenticate(&token.hash()), None);
    assert!(bench.control.inner.deleting().is_empty());
    assert!(bench.told("tenant.deleted").is_empty(), "that is the other's to tell");
}

#[tokio::test]
async fn whoever_got_the_name_from_another_process_has_nothing_of_the_tenant_before() {
    let (bench, acme, token, elsewhere) = draining().await;
    let before = bench.seen(&acme);
    elsewhere.delete_tenant(&acme, ELSEWHERE).unwrap();
    let new = Token::generate(&TokenScope::Tenant(acme.clone()));
    elsewhere.create_tenant(&acme, &grant(&["acme.test"]), &new.hash(), ELSEWHERE).unwrap();
    elsewhere.commit_revision(&acme, None, &manifest(&acme, |_| {}).to_json(), ELSEWHERE).unwrap();
    assert!(bench.control.inner.go_on(&acme, "operator").await.unwrap().deleted);
    assert_eq!(bench.control.authenticate(&token.hash()), None);
    assert_eq!(bench.control.authenticate(&new.hash()), Some(TokenScope::Tenant(acme.clone())));
    let after = bench.seen(&acme);
    assert!(!after.leaving && bench.control.inner.deleting().is_empty());
    assert!(!Arc::ptr_eq(&before.upstreams["api"].cluster, &after.upstreams["api"].cluster));
}

#[tokio::test]
async fn a_name_is_given_again_only_when_the_tenant_before_is_forgotten() {
    let (bench, acme, _, elsewhere) = draining().await;
    let turn = bench.control.inner.turns.take(&acme).await;
    elsewhere.delete_tenant(&acme, ELSEWHERE).unwrap();
    let (control, of) = (bench.control.clone(), acme.clone());
    let created =
        tokio::spawn(async move { control.create_tenant(of, grant(&["acme.test"]), &OPERATOR).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    bench.control.inner.forget(&acme);
    drop(turn);
    let token = created.await.unwrap().unwrap();
    assert!(bench.control.authenticate(&token.hash()).is_some());
    // A refusal leaves no turn behind.
    let taken = bench.control.create_tenant(name("other"), grant(&["acme.test"]), &OPERATOR).await;
    assert!(matches!(taken, Err(ControlError::Store(StoreError::HostTaken { .. }))), "{taken:?}");
    assert!(!bench.control.inner.turns.has(&name("other")));
}

#[tokio::test]
async fn an_upstream_with_a_backlog_is_removed_only_with_it() {
    let bench = Bench::new().await;
    let acme = bench.tenant("acme").await;
    let without = || {
        manifest(&acme, |m| {
            m["upstreams"] = json!({ "new": { "endpoints": ["127.0.0.1:9002"] } });
            m["default_upstream"] = json!("new");
        })
    };
    bench.apply(&acme, without()).await.unwrap();
    bench.apply(&acme, manifest(&acme, |_| {})).await.unwrap();
    enqueue(&bench.queue, &acme).await;
    for refused in [
        bench.apply(&acme, without()).await.unwrap_err(),
        bench.control.apply(&acme, without(), DRY_RUN, &OPERATOR).await.unwrap_err(),
        bench.control.rollback(&acme, None, false, &OPERATOR).await.unwrap_err(),
    ] {
        let says =
            matches!(&refused, ControlError::RemovedBacklog { upstreams, .. } if says_what_waits(upstreams));
        assert!(says, "{refused}");
    }
    assert_eq!(bench.seen(&acme).revision, RevisionId(2));
    assert_eq!(bench.queue.depth(&acme, &"api".parse().unwrap()), 1);

    let done = bench.control.apply(&acme, without(), DISCARDING, &OPERATOR).await.unwrap();
    assert_eq!((done.revision, done.discarded), (Some(RevisionId(3)), 1));
    assert!(bench.queue.holds_nothing(&acme));
    let back = bench.control.rollback(&acme, None, false, &OPERATOR).await.unwrap();
    assert_eq!((back.revision, back.discarded), (Some(RevisionId(2)), 0));
}

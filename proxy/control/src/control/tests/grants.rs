use beamline_model::GrantRefusal;
use beamline_store::StoreError;
use serde_json::json;

use super::bench::{ADMIN, Bench, DRY_RUN, OPERATOR, addr, grant, manifest, name, settings};
use crate::{ControlError, ControlErrorKind};

#[tokio::test]
async fn a_manifest_outside_the_grant_is_refused_by_name_and_all_at_once() {
    let bench = Bench::new().await;
    let (acme, _other) = (bench.tenant("acme").await, bench.tenant("other").await);
    let asked = manifest(&acme, |m| {
        m["hosts"] = json!(["acme.test", "other.test"]);
        m["upstreams"] = json!({
            "api": { "endpoints": ["127.0.0.1:9001", "93.184.217.1:80"] },
            "meta": { "endpoints": ["169.254.169.254:80"] },
            "admin": { "endpoints": [ADMIN] },
        });
    });
    let error = bench.apply(&acme, asked).await.unwrap_err();
    assert_eq!((error.kind(), error.token()), (ControlErrorKind::Refused, "outside-grant"));
    let ControlError::Grant(uncovered) = &error else { panic!("{error}") };
    let found: Vec<_> = uncovered.iter().map(|u| (u.key.as_str(), u.refusal.clone())).collect();
    assert_eq!(
        found,
        [
            ("hosts[1]", GrantRefusal::Host("other.test".parse().unwrap())),
            ("upstreams.admin.endpoints[0]", GrantRefusal::Admin(addr(ADMIN))),
            ("upstreams.api.endpoints[1]", GrantRefusal::Address(addr("93.184.217.1:80"))),
            ("upstreams.meta.endpoints[0]", GrantRefusal::Special(addr("169.254.169.254:80"))),
        ]
    );
    let message = error.to_string();
    assert!(message.contains("hosts[1]: host other.test is not granted"), "{message}");
    assert!(
        message.contains("169.254.169.254:80 is loopback, link-local (cloud metadata among them)"),
        "{message}"
    );
    assert!(bench.control.snapshots().load().by_name(&acme).is_none());
    assert_eq!(bench.control.tenant(&acme, &OPERATOR).await.unwrap().revision, None);
}

#[tokio::test]
async fn a_dry_run_is_held_against_the_grant_too() {
    let bench = Bench::new().await;
    let acme = bench.tenant("acme").await;
    let asked = manifest(&acme, |m| m["hosts"] = json!(["elsewhere.test"]));
    let error = bench.control.apply(&acme, asked, DRY_RUN, &OPERATOR).await.unwrap_err();
    assert!(matches!(error, ControlError::Grant(_)), "{error}");
}

#[tokio::test]
async fn a_named_endpoint_is_taken_at_apply_and_asked_about_at_connect() {
    let bench = Bench::new().await;
    let acme = bench.tenant("acme").await;
    let named = manifest(&acme, |m| m["upstreams"]["api"]["endpoints"] = json!(["localhost:9090"]));
    bench.apply(&acme, named).await.unwrap();
    // What a connect asks is the policy that the cluster was made with: see `runtime::tests`.
}

#[tokio::test]
async fn two_tenants_cannot_hold_one_host() {
    let bench = Bench::new().await;
    bench.tenant("acme").await;
    let error = bench
        .control
        .create_tenant(name("other"), grant(&["other.test", "acme.test"]), &OPERATOR)
        .await
        .unwrap_err();
    assert_eq!((error.kind(), error.token()), (ControlErrorKind::Conflict, "host-taken"));
    assert_eq!(
        error.to_string(),
        "host acme.test is held by tenant acme: a host has one tenant, choose another host"
    );
    let again = bench.control.create_tenant(name("acme"), grant(&[]), &OPERATOR).await.unwrap_err();
    assert!(matches!(again, ControlError::Store(StoreError::NameTaken(_))), "{again}");
}

#[tokio::test]
async fn a_rollback_is_held_against_the_grant_as_it_is_now() {
    let bench = Bench::new().await;
    let acme = bench.tenant("acme").await;
    bench
        .apply(&acme, manifest(&acme, |m| m["upstreams"]["api"]["endpoints"] = json!(["127.0.0.1:9002"])))
        .await
        .unwrap();
    bench.apply(&acme, manifest(&acme, |_| {})).await.unwrap();

    let mut moved = settings();
    moved.admin_addresses = vec![addr("127.0.0.1:9002")];
    let bench = bench.restarted(moved).await;
    let error = bench.control.rollback(&acme, None, false, &OPERATOR).await.unwrap_err();
    assert!(error.to_string().contains("127.0.0.1:9002 is this node's admin API"), "{error}");
    assert_eq!(bench.seen(&acme).revision.0, 2);
}

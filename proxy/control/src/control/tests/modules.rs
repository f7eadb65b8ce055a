use std::time::Duration;

use beamline_model::{ByteSize, LimitClass};
use bytes::Bytes;
use serde_json::json;
use tokio::time::timeout;

use super::bench::{Bench, OPERATOR, filtered, manifest, settings};
use crate::{ControlError, ControlErrorKind};

#[tokio::test]
async fn a_pushed_module_is_listed_with_what_was_found_out() {
    let bench = Bench::new().await;
    let acme = bench.tenant("acme").await;
    let bytes = Bytes::from_static(b"module");
    let pushed = bench.control.push_module(&acme, bytes.clone(), &OPERATOR).await.unwrap();
    bench.control.push_module(&acme, bytes, &OPERATOR).await.unwrap();

    let listed = bench.control.modules(&acme, &OPERATOR).await.unwrap();
    assert_eq!(listed.len(), 1, "idempotent by content");
    assert_eq!((&listed[0].info, listed[0].pushed_ms), (&pushed.info, 1234));
    assert_eq!(bench.told("module.pushed").len(), 1);
    let json = serde_json::to_value(&pushed).unwrap();
    assert_eq!(
        (&json["digest"], &json["kind"], &json["size"], &json["compile_ms"], &json["cached"]),
        (&json!(pushed.info.digest), &json!("core-module"), &json!(6), &json!(7), &json!(false))
    );
}

#[tokio::test(start_paused = true)]
async fn a_tenant_has_one_upload_at_a_time_and_keeps_no_other_waiting() {
    let bench = Bench::new().await;
    let (acme, other) = (bench.tenant("acme").await, bench.tenant("other").await);
    let upload = |tenant| bench.control.upload(tenant, &OPERATOR);
    let first = upload(&acme).await.unwrap();
    assert_eq!((first.class, first.limit), (LimitClass::Small, ByteSize::mib(4)));
    let patience = Duration::from_secs(60);
    assert!(timeout(patience, upload(&acme)).await.is_err());
    timeout(patience, upload(&other)).await.unwrap().unwrap();
    drop(first);
    timeout(patience, upload(&acme)).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_bad_module_is_refused_by_what_is_wrong_and_not_kept() {
    let bench = Bench::new().await;
    let acme = bench.tenant("acme").await;
    let error = bench.control.push_module(&acme, Bytes::from_static(b"bad"), &OPERATOR).await.unwrap_err();
    assert_eq!((error.kind(), error.token()), (ControlErrorKind::Refused, "module-rejected"));
    assert!(error.to_string().contains("wasi:sockets/tcp@0.2.0"), "{error}");
    assert!(bench.control.modules(&acme, &OPERATOR).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_filter_names_a_module_that_its_tenant_uploaded() {
    let bench = Bench::new().await;
    let (acme, other) = (bench.tenant("acme").await, bench.tenant("other").await);
    let theirs = bench.push(&other, b"theirs").await;
    let error = bench.apply(&acme, filtered(&acme, theirs)).await.unwrap_err();
    assert_eq!((error.kind(), error.token()), (ControlErrorKind::Refused, "unknown-module"));
    assert!(error.to_string().starts_with(&format!("filters[f].module: tenant acme has no module {theirs}")));

    bench.push(&acme, b"theirs").await;
    bench.apply(&acme, filtered(&acme, theirs)).await.unwrap();
}

#[tokio::test]
async fn a_local_path_is_for_files_only() {
    let bench = Bench::new().await;
    let acme = bench.tenant("acme").await;
    let local = manifest(&acme, |m| m["filters"] = json!([{ "name": "f", "module": "./f.wasm" }]));
    let error = bench.apply(&acme, local).await.unwrap_err();
    assert_eq!(error.token(), "module-path");
    assert!(error.to_string().contains("found the local path \"./f.wasm\""), "{error}");
}

#[tokio::test]
async fn a_module_that_cannot_be_loaded_now_refuses_the_apply() {
    let bench = Bench::new().await;
    let acme = bench.tenant("acme").await;
    let digest = bench.push(&acme, b"module").await;
    bench.modules.broken.lock().unwrap().insert(b"module".to_vec());
    let error = bench.apply(&acme, filtered(&acme, digest)).await.unwrap_err();
    assert_eq!((error.kind(), error.token()), (ControlErrorKind::Unavailable, "module-unloadable"));
    assert!(
        error.to_string().contains("filters[f].module") && error.to_string().contains("on fire"),
        "{error}"
    );
    assert_eq!(bench.control.tenant(&acme, &OPERATOR).await.unwrap().revision, None, "nothing was stored");
}

#[tokio::test]
async fn a_tenants_modules_have_a_limit_in_number_and_bytes() {
    let mut small = settings();
    (small.tenant_modules, small.tenant_module_bytes) = (2, 10);
    let bench = Bench::with(small).await;
    let (acme, other) = (bench.tenant("acme").await, bench.tenant("other").await);
    let push = async |tenant, bytes: &'static [u8]| {
        bench.control.push_module(tenant, Bytes::from_static(bytes), &OPERATOR).await
    };
    push(&acme, b"12345678").await.unwrap();
    let error = push(&acme, b"123").await.unwrap_err();
    assert!(matches!(&error, ControlError::Quota { wanted: 11, limit: 10, unit: "bytes", .. }), "{error}");
    assert_eq!(error.kind(), ControlErrorKind::TooLarge);
    push(&acme, b"12").await.unwrap();
    let error = push(&acme, b"").await.unwrap_err();
    assert!(matches!(&error, ControlError::Quota { wanted: 3, limit: 2, unit: "files", .. }), "{error}");
    push(&acme, b"12").await.unwrap(); // known already
    push(&other, b"123").await.unwrap(); // each tenant has its own
}

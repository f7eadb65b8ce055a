use std::{cell::RefCell, io};

use beamline_model::{Grant, Token, TokenScope};
use bytes::Bytes;

use super::bench::{Bench, OPERATOR, grant, manifest, name, settings};
use crate::{ApplyOptions, ControlError, ControlErrorKind};

#[tokio::test]
async fn the_operators_token_is_made_once_and_valid_when_it_is_kept() {
    let bench = Bench::new().await;
    let kept: RefCell<Option<Token>> = RefCell::default();
    let keep = |token: &Token| {
        assert_eq!(bench.control.authenticate(&token.hash()), None, "not valid before it is kept");
        *kept.borrow_mut() = Some(token.clone());
        Ok(())
    };
    assert!(bench.control.operator_token_if_first_start(keep).await.unwrap());
    let token = kept.take().unwrap();
    assert_eq!(bench.control.authenticate(&token.hash()), Some(OPERATOR));

    let bench = bench.restarted(settings()).await;
    let never = |_: &Token| panic!("this is not the first start");
    assert!(!bench.control.operator_token_if_first_start(never).await.unwrap());
    assert_eq!(bench.control.authenticate(&token.hash()), Some(OPERATOR));
}

#[tokio::test]
async fn a_token_that_could_not_be_kept_is_made_anew_at_the_next_start() {
    let bench = Bench::new().await;
    let fails = |_: &Token| Err(io::Error::other("read-only"));
    let error = bench.control.operator_token_if_first_start(fails).await.unwrap_err();
    assert!(matches!(error, ControlError::Token(_)) && error.to_string().contains("read-only"), "{error}");
    let bench = bench.restarted(settings()).await;
    assert!(bench.control.operator_token_if_first_start(|_| Ok(())).await.unwrap());
}

#[tokio::test]
async fn a_tenants_token_is_known_at_once_and_after_a_restart() {
    let bench = Bench::new().await;
    let token = bench.control.create_tenant(name("acme"), grant(&[]), &OPERATOR).await.unwrap();
    let acme = Some(TokenScope::Tenant(name("acme")));
    assert_eq!(bench.control.authenticate(&token.hash()), acme);
    assert_eq!(bench.control.authenticate(&Token::presented("blt_0").hash()), None);
    assert_eq!(bench.control.authenticate(&Token::presented("").hash()), None);
    let bench = bench.restarted(settings()).await;
    assert_eq!(bench.control.authenticate(&token.hash()), acme);
    let file = std::fs::read(bench.path().join("store.db")).unwrap();
    let secret = token.reveal().as_bytes();
    assert!(!file.windows(secret.len()).any(|w| w == secret), "only hashes are stored");
}

#[tokio::test]
async fn a_tenants_token_reaches_that_tenant_alone() {
    let bench = Bench::new().await;
    let (acme, other) = (bench.tenant("acme").await, bench.tenant("other").await);
    let token = TokenScope::Tenant(acme.clone());
    let control = &bench.control;
    let refusals = [
        control.tenant(&other, &token).await.map(|_| ()),
        control.modules(&other, &token).await.map(|_| ()),
        control.push_module(&other, Bytes::new(), &token).await.map(|_| ()),
        control.apply(&other, manifest(&other, |_| {}), ApplyOptions::default(), &token).await.map(|_| ()),
        control.rollback(&other, None, false, &token).await.map(|_| ()),
        control.revisions(&other, None, 1, &token).await.map(|_| ()),
        control.revision(&other, None, &token).await.map(|_| ()),
        control.audit(Some(&other), 0, 1, &token).await.map(|_| ()),
        control.tenant(&name("nobody"), &token).await.map(|_| ()),
    ];
    for refusal in refusals {
        let error = refusal.unwrap_err();
        assert_eq!((error.kind(), error.token()), (ControlErrorKind::Forbidden, "other-tenant"), "{error}");
    }
    for refusal in [
        control.create_tenant(name("third"), Grant::default(), &token).await.map(|_| ()),
        control.audit(None, 0, 1, &token).await.map(|_| ()),
    ] {
        assert_eq!(refusal.unwrap_err().token(), "operator-only");
    }
    let names = |views: Vec<crate::TenantView>| views.into_iter().map(|t| t.name).collect::<Vec<_>>();
    assert_eq!(names(control.tenants(&token).await.unwrap()), std::slice::from_ref(&acme));
    assert_eq!(names(control.tenants(&OPERATOR).await.unwrap()), [acme.clone(), other]);
    control.apply(&acme, manifest(&acme, |_| {}), ApplyOptions::default(), &token).await.unwrap();
    let audit = control.audit(Some(&acme), 0, 10, &token).await.unwrap();
    assert_eq!(audit.last().unwrap().actor, "tenant/acme");
}

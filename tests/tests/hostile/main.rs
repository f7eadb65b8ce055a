//! Modules that mean harm: each is contained, and another tenant's requests in flight do not notice.
//!
//! A short form by itself; the long one, with many requests for each kind and then all kinds at once, with
//! `BEAMLINE_HOSTILE=long` (`make hostile`).

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

mod guest;
mod kinds;
mod limits;
mod loading;
mod repeated;
mod scene;
mod smith;

use std::collections::HashSet;

use beamline_tests::heavy::heavy;

use crate::{
    kinds::End,
    scene::{Stage, is_long},
};

#[test]
fn every_kind_of_hostile_module_is_contained_and_another_tenant_does_not_notice() {
    let _heavy = heavy().unwrap();
    let kinds = kinds::all();
    let names: HashSet<_> = kinds.iter().map(|k| k.name).collect();
    assert!(names.len() >= 30, "{} kinds", names.len());
    let stage = Stage::start();
    let mut wrong = Vec::new();
    for kind in &kinds {
        if let Err(problem) = stage.face(kind) {
            println!("WRONG {problem}");
            wrong.push(problem);
        }
    }
    stage.is_well();
    assert!(wrong.is_empty(), "{} of {} kinds:\n{}", wrong.len(), kinds.len(), wrong.join("\n"));
    println!("{} kinds of hostile module", names.len());
}

#[test]
fn all_kinds_at_once_are_contained() {
    if !is_long() {
        return;
    }
    let _heavy = heavy().unwrap();
    let kinds: Vec<_> = kinds::all().into_iter().filter(|k| !matches!(k.end, End::Refused)).collect();
    let stage = Stage::start();
    stage.face_all(&kinds);
    stage.is_well();
}

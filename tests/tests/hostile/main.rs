//! Modules that mean harm: each is contained, and another tenant's requests in flight do not notice.
//!
//! A short form by itself; the long one, with many requests for each kind and then all kinds at once, with
//! `BEAMLINE_HOSTILE=long` (`make hostile`).

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

mod guest;
mod kinds;
mod loading;
mod repeated;
mod scene;
mod smith;

use std::{collections::HashSet, time::Duration};

use beamline_tests::heavy::heavy;

use crate::{
    kinds::{End, Kind},
    scene::{Stage, is_long},
};

/// Runs every kind on a node whose modules run in this tier, where they can; gives how many are in the reset tier, and
/// of how many.
fn every_kind(tier: &str) -> (u32, u32) {
    let _heavy = heavy().unwrap();
    let stage = Stage::in_tier(tier);
    let kinds = kinds::all(stage.origin());
    let names: HashSet<_> = kinds.iter().map(|k| k.name.as_str()).collect();
    assert!(names.len() >= 30, "{} kinds", names.len());
    let mut wrong = Vec::new();
    for kind in &kinds {
        if let Err(problem) = stage.face(kind) {
            println!("WRONG {problem}");
            wrong.push(problem);
        }
    }
    stage.is_well();
    assert!(wrong.is_empty(), "{} of {} kinds:\n{}", wrong.len(), kinds.len(), wrong.join("\n"));
    let (reset, taken) = stage.in_the_reset_tier();
    println!(
        "{} kinds of hostile module; {reset} of {taken} that were taken ran in the reset tier",
        names.len()
    );
    (reset, taken)
}

#[test]
fn every_kind_of_hostile_module_is_contained_and_another_tenant_does_not_notice() {
    let (reset, taken) = every_kind("reset");
    assert!(reset * 2 > taken, "{reset} of {taken}");
}

#[test]
fn so_is_every_kind_in_the_component_tier() {
    assert_eq!(every_kind("component").0, 0);
}

/// Of those that can be compiled at all every sixth, for some seconds; in the long form all, for a minute.
#[test]
fn all_kinds_at_once_are_contained() {
    let _heavy = heavy().unwrap();
    let stage = Stage::start();
    let kinds = kinds::all(stage.origin()).into_iter();
    let (kinds, lasting): (Vec<_>, _) = if is_long() {
        (kinds.filter(|k| !matches!(k.end, End::Refused)).collect(), 60)
    } else {
        let runs = |k: &Kind| !matches!(k.end, End::Refused | End::Contained);
        (kinds.filter(runs).step_by(6).collect(), 6)
    };
    stage.face_all(&kinds, Duration::from_secs(lasting));
    stage.is_well();
}

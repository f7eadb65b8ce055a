//! A checker that finds nothing may be one that can find nothing: nodes that break one promise each are caught. What they
//! break is built in only where debug assertions are, as in the profile that tests are run with.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use beamline_tests::{
    checker::{self, Kind},
    faults,
    heavy::heavy,
    seed::Seed,
};

/// Seeds until the checker finds what such a node breaks.
const SEEDS: u64 = 30;

fn is_caught(broken: &str, kinds: &[Kind]) {
    let _alone = heavy().unwrap();
    let first = Seed::from_env(broken).bits() % 1_000_000_000;
    for seed in first..first + SEEDS {
        let found = faults::run(seed, Some(broken)).unwrap().judged.violations;
        if found.iter().any(|violation| kinds.contains(&violation.kind)) {
            println!("{broken}, seed {seed}: {}", checker::summary(&found));
            return;
        }
    }
    panic!("{SEEDS} runs of a node that breaks \"{broken}\" broke no promise of {kinds:?}");
}

#[test]
fn a_node_that_answers_before_it_commits_is_caught() {
    is_caught("answer-before-commit", &[Kind::Lost]);
}

#[test]
fn a_node_that_marks_a_delivery_when_it_is_over_is_caught() {
    is_caught("mark-after-delivery", &[Kind::Repeated]);
}

#[test]
fn a_node_that_ignores_the_order_of_keys_is_caught() {
    is_caught("ignore-order", &[Kind::OutOfOrder]);
}

#[test]
fn a_node_that_forgets_the_keys_of_its_clients_is_caught() {
    is_caught("ignore-keys", &[Kind::StoredTwice]);
}

#[test]
fn a_node_that_ignores_its_quotas_is_caught() {
    is_caught("ignore-quotas", &[Kind::QuotaExceeded]);
}

#[test]
fn a_node_that_skips_every_fsync_is_caught() {
    is_caught("skip-fsync", &[Kind::Lost, Kind::ContentLost, Kind::Altered]);
}

use std::{sync::Arc, time::Duration};

use arc_swap::Cache;

use super::bench::{Bench, OPERATOR, manifest, settings, variant};
use crate::{ApplyOptions, ControlSettings};

#[tokio::test]
async fn a_change_of_one_tenant_leaves_anothers_runtime_identical() {
    let bench = Bench::new().await;
    let (acme, other) = (bench.tenant("acme").await, bench.tenant("other").await);
    bench.apply(&acme, variant(&acme, 1)).await.unwrap();
    bench.apply(&other, variant(&other, 1)).await.unwrap();
    let before = bench.seen(&other);
    bench.apply(&acme, variant(&acme, 2)).await.unwrap();
    bench.control.rollback(&acme, None, false, &OPERATOR).await.unwrap();
    assert!(Arc::ptr_eq(&before, &bench.seen(&other)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_changes_shares_swaps_and_each_is_visible_when_it_returns() {
    const TENANTS: usize = 20;
    // A window so long that the whole burst falls into it, on any machine.
    let bench = Bench::with(ControlSettings { coalesce: Duration::from_millis(500), ..settings() }).await;
    let mut tenants = Vec::new();
    for i in 0..TENANTS {
        tenants.push(bench.tenant(&format!("t{i}")).await);
    }
    let before = bench.control.status().generation;
    let changes: Vec<_> = tenants
        .into_iter()
        .map(|tenant| {
            let control = bench.control.clone();
            tokio::spawn(async move {
                let mut worker = Cache::new(control.snapshots());
                control
                    .apply(&tenant, manifest(&tenant, |_| {}), ApplyOptions::default(), &OPERATOR)
                    .await
                    .unwrap();
                worker.load().by_host(&format!("{tenant}.test")).is_some_and(|t| t.name == tenant)
            })
        })
        .collect();
    for change in changes {
        assert!(change.await.unwrap(), "what was answered is what a worker sees");
    }
    let swaps = bench.control.status().generation - before;
    assert!((1..=5).contains(&swaps), "{TENANTS} changes took {swaps} swaps");
}

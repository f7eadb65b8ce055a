//! What the node counts, as `/metrics` shows it: text of Prometheus' exposition format 0.0.4.
//!
//! [`METRICS`] is the table of the node's own families; who has the figures writes them with [`Exposition`]. What tenants'
//! filters count is kept here, in [`GuestMetrics`], and bounded here: a module is free in what it names.

mod exposition;
mod guest;
mod tally;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak, atomic::AtomicU64},
    time::Instant,
};

use serde_json::json;

use self::tally::Tally;
pub use self::{
    exposition::{Exposition, METRICS, MetricKind, MetricRow},
    guest::{Counted, GuestMetrics, MetricRefusal, Update},
};
use crate::telemetry::Events;

/// The metrics of a node. Cheap to clone.
#[derive(Clone, Default)]
pub struct Metrics {
    /// By tenant, for as long as somebody holds them. A mutex: taken by changes of tenants and by `/metrics`, never by a request.
    guests: Arc<Mutex<Guests>>,
    /// Bytes that the series of all of them are shown as at most.
    bytes: Arc<AtomicU64>,
    /// Modules that were refused for a limit, by its name. A mutex: taken by such uploads and by `/metrics`.
    refused: Arc<Mutex<BTreeMap<&'static str, u64>>>,
    /// When that was told last, by tenant: who uploads in a loop does not fill the log.
    refusals_told: Arc<Tally>,
    events: Events,
}

/// By tenant; those that nobody holds any more go when there are twice as many as were held last, for a look at all at each new
/// one would make a start with a hundred thousand of them take a minute.
#[derive(Default)]
struct Guests {
    by_tenant: BTreeMap<Box<str>, Weak<GuestMetrics>>,
    sweep_at: usize,
}

impl Guests {
    fn insert(&mut self, name: &str, metrics: &Arc<GuestMetrics>) {
        if self.by_tenant.len() >= self.sweep_at {
            self.by_tenant.retain(|_, metrics| metrics.strong_count() > 0);
            self.sweep_at = 2 * self.by_tenant.len() + 64;
        }
        self.by_tenant.insert(name.into(), Arc::downgrade(metrics));
    }
}

impl Metrics {
    /// Nothing yet. That limits were crossed is told as events, too.
    pub(crate) fn telling(events: Events) -> Self {
        Self { events, ..Self::default() }
    }

    /// A module that a tenant uploaded was refused, for it crossed the limit of this name.
    pub fn module_refused(&self, tenant: &str, limit: &'static str) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(limit).or_default() += 1;
        if let Some(times) = self.refusals_told.add_to_tell(tenant, limit, Instant::now()) {
            self.events
                .write("limit.crossed", json!({ "tenant.id": tenant, "limit": limit, "times": times }));
        }
    }

    /// A tenant's metrics, new and empty, in place of what was of its name. They are shown until the last holder lets go.
    pub fn tenant(&self, name: &str) -> Arc<GuestMetrics> {
        let metrics = Arc::new(GuestMetrics::new(name, &self.bytes, self.events.clone()));
        self.guests.lock().unwrap_or_else(PoisonError::into_inner).insert(name, &metrics);
        metrics
    }

    /// Writes what the tenants' filters counted: up to 32 MiB, which take their time.
    pub fn write_guests(&self, out: &mut Exposition) {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone();
        out.family("beamline_modules_refused_total", refused.iter().map(|(limit, n)| (vec![*limit], *n)));
        guest::write(&self.guests(), out);
    }

    fn guests(&self) -> Vec<Arc<GuestMetrics>> {
        let guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        guests.by_tenant.values().filter_map(Weak::upgrade).collect()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenants_metrics_are_shown_until_nobody_holds_them() {
        let metrics = Metrics::default();
        let shown = || {
            let mut out = Exposition::new();
            metrics.write_guests(&mut out);
            out.finish()
        };
        let count = |of: &GuestMetrics, by| of.update("f", "hits", &[], Update::Count(by)).unwrap();
        let (acme, other) = (metrics.tenant("acme"), metrics.tenant("other"));
        count(&acme, 2);
        count(&other, 3);
        assert!(
            shown().contains("beamline_guest_hits_total{tenant=\"acme\",filter=\"f\"} 2\n"),
            "{}",
            shown()
        );
        drop(other);
        assert!(!shown().contains("other"), "{}", shown());
        let again = metrics.tenant("acme");
        count(&again, 1);
        assert!(
            shown().contains("{tenant=\"acme\",filter=\"f\"} 1\n"),
            "whoever gets the name begins at nothing"
        );
    }

    #[test]
    fn of_tenants_that_have_gone_no_more_are_kept_than_of_those_that_are_there() {
        let metrics = Metrics::default();
        let held: Vec<_> = (0..100).map(|n| metrics.tenant(&format!("held-{n}"))).collect();
        (0..10_000).for_each(|n| drop(metrics.tenant(&format!("gone-{n}"))));
        let known = metrics.guests.lock().unwrap().by_tenant.len();
        assert!((100..=2 * 100 + 64).contains(&known), "{known}");
        assert_eq!(metrics.guests().len(), held.len());
    }
}

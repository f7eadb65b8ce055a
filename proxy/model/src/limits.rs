//! Every limit on what a filter may use: its default, its ceiling, and the one table that documents them.

use std::{cmp::Ordering, fmt};

use serde::{Deserialize, Serialize};

use crate::{ByteSize, Duration};

/// What one filter call may use, and what a tenant's filters may keep together. Crossing a limit ends the call as the filter's `on_error` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FilterLimits {
    /// CPU time of one call, counted while it runs (not while it waits).
    pub cpu: Duration,
    /// Linear memory of one instance, all its memories together.
    pub memory: ByteSize,
    /// Log text of one call; what goes beyond is cut and counted.
    pub log: ByteSize,
    /// What is kept of one body for one filter: whole, or held back while it streams.
    pub body: ByteSize,
    /// Calls of the tenant on this node that outlived their first slice; further ones are answered `503`.
    pub concurrency: u32,
    /// Instances that the tenant's requests on this node may hold at once, of filters with `pin_instance`.
    pub pinned_instances: u32,
    /// Host functions that one call may call, all together.
    pub host_calls: u32,
    /// Requests that one call may send by itself.
    pub outbound_calls: u32,
    /// What the tenant's keys and values may take on a node, each entry with its key and 320 bytes more.
    pub kv_bytes: ByteSize,
    /// Keys that the tenant may have on a node.
    pub kv_entries: u32,
    /// Token buckets of the tenant on a node that are not full.
    pub bucket_keys: u32,
}

impl Default for FilterLimits {
    fn default() -> Self {
        Self {
            cpu: Duration::millis(50),
            memory: ByteSize::mib(16),
            log: ByteSize::kib(8),
            body: ByteSize::mib(1),
            concurrency: 256,
            pinned_instances: 16,
            host_calls: 10_000,
            outbound_calls: 4,
            kv_bytes: ByteSize::mib(4),
            kv_entries: 10_000,
            bucket_keys: 10_000,
        }
    }
}

/// One line of the limits table in `docs/reference/limits.md`.
pub struct LimitRow {
    /// The key in a manifest's `[limits]`.
    pub key: &'static str,
    /// The default, as written in a manifest.
    pub default: &'static str,
    /// The most that a manifest may ask for.
    pub ceiling: &'static str,
    /// What happens where it is crossed.
    pub crossed: &'static str,
}

/// The limits a manifest can set, in the order of the reference page.
pub const LIMITS: [LimitRow; 11] = [
    LimitRow { key: "cpu", default: "50ms", ceiling: "1s", crossed: "503 filter-timeout" },
    LimitRow {
        key: "memory",
        default: "16MiB",
        ceiling: "64MiB",
        crossed: "growth fails; a trap that follows is 503 filter-memory",
    },
    LimitRow { key: "log", default: "8KiB", ceiling: "64KiB", crossed: "the rest is cut and counted" },
    LimitRow {
        key: "body",
        default: "1MiB",
        ceiling: "16MiB",
        crossed: "413 filter-request-body, 502 filter-response-body",
    },
    LimitRow { key: "concurrency", default: "256", ceiling: "4096", crossed: "503 filter-capacity" },
    LimitRow { key: "pinned_instances", default: "16", ceiling: "256", crossed: "503 filter-capacity" },
    LimitRow { key: "host_calls", default: "10000", ceiling: "1000000", crossed: "503 filter-host-calls" },
    LimitRow { key: "outbound_calls", default: "4", ceiling: "32", crossed: "the request is refused" },
    LimitRow { key: "kv_bytes", default: "4MiB", ceiling: "64MiB", crossed: "the write is refused" },
    LimitRow { key: "kv_entries", default: "10000", ceiling: "1000000", crossed: "the write is refused" },
    LimitRow { key: "bucket_keys", default: "10000", ceiling: "100000", crossed: "the take is refused" },
];

/// How one limit stands to another of its kind.
struct Compared<'l> {
    key: &'static str,
    found: &'l dyn fmt::Display,
    other: &'l dyn fmt::Display,
    order: Option<Ordering>,
}

impl<'l> Compared<'l> {
    fn new<T: PartialOrd + fmt::Display>(key: &'static str, found: &'l T, other: &'l T) -> Self {
        Self { key, found, other, order: found.partial_cmp(other) }
    }

    fn is_beyond(&self) -> bool {
        self.order == Some(Ordering::Greater)
    }
}

impl FilterLimits {
    /// The most that any manifest may ask for, whatever its tenant's class.
    pub const CEILING: Self = Self {
        cpu: Duration::secs(1),
        memory: ByteSize::mib(64),
        log: ByteSize::kib(64),
        body: ByteSize::mib(16),
        concurrency: 4096,
        pinned_instances: 256,
        host_calls: 1_000_000,
        outbound_calls: 32,
        kv_bytes: ByteSize::mib(64),
        kv_entries: 1_000_000,
        bucket_keys: 100_000,
    };

    fn compared<'l>(&'l self, other: &'l Self) -> [Compared<'l>; LIMITS.len()] {
        // Taken apart, so that a limit that is added later must be thought of here.
        let Self {
            cpu,
            memory,
            log,
            body,
            concurrency,
            pinned_instances,
            host_calls,
            outbound_calls,
            kv_bytes,
            kv_entries,
            bucket_keys,
        } = self;
        [
            Compared::new("cpu", cpu, &other.cpu),
            Compared::new("memory", memory, &other.memory),
            Compared::new("log", log, &other.log),
            Compared::new("body", body, &other.body),
            Compared::new("concurrency", concurrency, &other.concurrency),
            Compared::new("pinned_instances", pinned_instances, &other.pinned_instances),
            Compared::new("host_calls", host_calls, &other.host_calls),
            Compared::new("outbound_calls", outbound_calls, &other.outbound_calls),
            Compared::new("kv_bytes", kv_bytes, &other.kv_bytes),
            Compared::new("kv_entries", kv_entries, &other.kv_entries),
            Compared::new("bucket_keys", bucket_keys, &other.bucket_keys),
        ]
    }

    /// The first limit beyond what any manifest may ask for, as a sentence.
    ///
    /// # Errors
    /// That sentence.
    pub fn check(&self) -> Result<(), String> {
        if self.concurrency == 0 {
            return Err("limits.concurrency: expected at least 1; found 0".into());
        }
        match self.compared(&Self::CEILING).iter().find(|limit| limit.is_beyond()) {
            None => Ok(()),
            Some(Compared { key, found, other, .. }) => {
                Err(format!("limits.{key} = {found} is beyond the ceiling of {other}: ask for less"))
            }
        }
    }

    /// The first limit that is beyond `ceiling`, and not merely a default that is: its key, what it is, what it may be.
    pub(crate) fn first_asked_beyond(&self, ceiling: &Self) -> Option<(&'static str, String, String)> {
        let defaults = Self::default();
        let asked = self.compared(ceiling).into_iter().zip(self.compared(&defaults));
        let mut beyond =
            asked.filter(|(limit, default)| limit.is_beyond() && default.order != Some(Ordering::Equal));
        beyond.next().map(|(limit, _)| (limit.key, limit.found.to_string(), limit.other.to_string()))
    }

    /// These limits, none beyond `ceiling`.
    #[must_use]
    pub fn within(&self, ceiling: &Self) -> Self {
        Self {
            cpu: self.cpu.min(ceiling.cpu),
            memory: self.memory.min(ceiling.memory),
            log: self.log.min(ceiling.log),
            body: self.body.min(ceiling.body),
            concurrency: self.concurrency.min(ceiling.concurrency),
            pinned_instances: self.pinned_instances.min(ceiling.pinned_instances),
            host_calls: self.host_calls.min(ceiling.host_calls),
            outbound_calls: self.outbound_calls.min(ceiling.outbound_calls),
            kv_bytes: self.kv_bytes.min(ceiling.kv_bytes),
            kv_entries: self.kv_entries.min(ceiling.kv_entries),
            bucket_keys: self.bucket_keys.min(ceiling.bucket_keys),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_the_code_does() {
        let defaults = serde_json::to_value(FilterLimits::default()).unwrap();
        let ceilings = serde_json::to_value(FilterLimits::CEILING).unwrap();
        let written =
            |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        for row in &LIMITS {
            assert_eq!(written(&defaults[row.key]), row.default, "{}", row.key);
            assert_eq!(written(&ceilings[row.key]), row.ceiling, "{}", row.key);
        }
        assert_eq!(defaults.as_object().unwrap().len(), LIMITS.len());
        let page = include_str!("../../../docs/reference/limits.md");
        for row in &LIMITS {
            let line = format!("| `{}` | `{}` | `{}` | {} |", row.key, row.default, row.ceiling, row.crossed);
            assert!(page.contains(&line), "docs/reference/limits.md lacks: {line}");
        }
        assert_eq!(FilterLimits::CEILING.check(), Ok(()));
        assert!(FilterLimits { cpu: Duration::secs(2), ..Default::default() }.check().is_err());
        assert!(FilterLimits { bucket_keys: 100_001, ..Default::default() }.check().is_err());
        assert!(FilterLimits { concurrency: 0, ..Default::default() }.check().is_err());
    }
}

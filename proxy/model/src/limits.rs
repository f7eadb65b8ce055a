//! Every limit on what a filter may use: its default, its ceiling, and the one table that documents them.

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
    /// Host functions that one call may call, all together.
    pub host_calls: u32,
    /// Requests that one call may send by itself.
    pub outbound_calls: u32,
    /// What the tenant's keys and values may take on a node, each entry with its key and 128 bytes more.
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
pub const LIMITS: [LimitRow; 10] = [
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
    LimitRow { key: "host_calls", default: "10000", ceiling: "1000000", crossed: "503 filter-host-calls" },
    LimitRow { key: "outbound_calls", default: "4", ceiling: "32", crossed: "the request is refused" },
    LimitRow { key: "kv_bytes", default: "4MiB", ceiling: "64MiB", crossed: "the write is refused" },
    LimitRow { key: "kv_entries", default: "10000", ceiling: "1000000", crossed: "the write is refused" },
    LimitRow { key: "bucket_keys", default: "10000", ceiling: "100000", crossed: "the take is refused" },
];

impl FilterLimits {
    /// The first limit beyond its ceiling, as a sentence.
    pub fn check(&self) -> Result<(), String> {
        let too_much = |key: &str, found: String, ceiling: &str| {
            Err(format!("limits.{key} = {found} is beyond the ceiling of {ceiling}: ask for less"))
        };
        if self.cpu > Duration::secs(1) {
            return too_much("cpu", self.cpu.to_string(), "1s");
        }
        if self.memory > ByteSize::mib(64) {
            return too_much("memory", self.memory.to_string(), "64MiB");
        }
        if self.log > ByteSize::kib(64) {
            return too_much("log", self.log.to_string(), "64KiB");
        }
        if self.body > ByteSize::mib(16) {
            return too_much("body", self.body.to_string(), "16MiB");
        }
        if self.concurrency > 4096 || self.concurrency == 0 {
            return too_much("concurrency", self.concurrency.to_string(), "4096 (and at least 1)");
        }
        if self.kv_bytes > ByteSize::mib(64) {
            return too_much("kv_bytes", self.kv_bytes.to_string(), "64MiB");
        }
        if self.outbound_calls > 32 {
            return too_much("outbound_calls", self.outbound_calls.to_string(), "32");
        }
        if self.bucket_keys > 100_000 {
            return too_much("bucket_keys", self.bucket_keys.to_string(), "100000");
        }
        for (key, found) in [("host_calls", self.host_calls), ("kv_entries", self.kv_entries)] {
            if found > 1_000_000 {
                return too_much(key, found.to_string(), "1000000");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_the_code_does() {
        let defaults = serde_json::to_value(FilterLimits::default()).unwrap();
        for row in &LIMITS {
            let value = &defaults[row.key];
            let written = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            assert_eq!(written, row.default, "{}", row.key);
        }
        assert_eq!(defaults.as_object().unwrap().len(), LIMITS.len());
        let page = include_str!("../../../docs/reference/limits.md");
        for row in &LIMITS {
            let line = format!("| `{}` | `{}` | `{}` | {} |", row.key, row.default, row.ceiling, row.crossed);
            assert!(page.contains(&line), "docs/reference/limits.md lacks: {line}");
        }
        assert!(FilterLimits { cpu: Duration::secs(2), ..Default::default() }.check().is_err());
        assert!(FilterLimits { bucket_keys: 100_001, ..Default::default() }.check().is_err());
    }
}

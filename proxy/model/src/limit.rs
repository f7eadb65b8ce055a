//! Limits by name: as problem documents, events and metrics tell which one was crossed.

use std::fmt;

/// A limit that a filter or a module can cross. `docs/reference/limits.md` has a row for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "each is a row of the reference page, which says what it means")]
pub enum Limit {
    Cpu,
    Memory,
    Log,
    Body,
    Concurrency,
    PinnedInstances,
    HostCalls,
    OutboundCalls,
    KvBytes,
    KvEntries,
    BucketKeys,
    ModuleSize,
    Compile,
    ModuleNeeds,
    CallTime,
    TableElements,
    Stack,
    HandedOver,
    GetMany,
    Random,
    Handles,
    OutboundRequests,
    OutboundSize,
    OutboundBytes,
    KvSize,
    BucketSize,
    Kept,
    Series,
    Head,
}

impl Limit {
    /// All of them, in the order of the reference page.
    pub const ALL: [Self; 29] = [
        Self::Cpu,
        Self::Memory,
        Self::Log,
        Self::Body,
        Self::Concurrency,
        Self::PinnedInstances,
        Self::HostCalls,
        Self::OutboundCalls,
        Self::KvBytes,
        Self::KvEntries,
        Self::BucketKeys,
        Self::ModuleSize,
        Self::Compile,
        Self::ModuleNeeds,
        Self::CallTime,
        Self::TableElements,
        Self::Stack,
        Self::HandedOver,
        Self::GetMany,
        Self::Random,
        Self::Handles,
        Self::OutboundRequests,
        Self::OutboundSize,
        Self::OutboundBytes,
        Self::KvSize,
        Self::BucketSize,
        Self::Kept,
        Self::Series,
        Self::Head,
    ];

    /// Its name: where a manifest can set it, its key in `[limits]`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Log => "log",
            Self::Body => "body",
            Self::Concurrency => "concurrency",
            Self::PinnedInstances => "pinned_instances",
            Self::HostCalls => "host_calls",
            Self::OutboundCalls => "outbound_calls",
            Self::KvBytes => "kv_bytes",
            Self::KvEntries => "kv_entries",
            Self::BucketKeys => "bucket_keys",
            Self::ModuleSize => "module_size",
            Self::Compile => "compile",
            Self::ModuleNeeds => "module_needs",
            Self::CallTime => "call_time",
            Self::TableElements => "table_elements",
            Self::Stack => "stack",
            Self::HandedOver => "handed_over",
            Self::GetMany => "get_many",
            Self::Random => "random",
            Self::Handles => "handles",
            Self::OutboundRequests => "outbound_requests",
            Self::OutboundSize => "outbound_size",
            Self::OutboundBytes => "outbound_bytes",
            Self::KvSize => "kv_size",
            Self::BucketSize => "bucket_size",
            Self::Kept => "kept",
            Self::Series => "series",
            Self::Head => "head",
        }
    }
}

const _: () = assert!(Limit::ALL.len() == Limit::Head as usize + 1, "a limit is missing in Limit::ALL");

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LIMITS;

    #[test]
    fn the_reference_page_names_every_limit_once_and_in_order() {
        let page = include_str!("../../../docs/reference/limits.md");
        // A row begins with its limit's name; rows that share one stand together.
        let mut named: Vec<_> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once('`').map(|(name, _)| name))
            .collect();
        named.dedup();
        assert_eq!(named, Limit::ALL.map(Limit::as_str));
    }

    #[test]
    fn what_a_manifest_can_set_is_named_as_there() {
        let keys = LIMITS.iter().map(|row| row.key);
        assert!(keys.eq(Limit::ALL.iter().map(|limit| limit.as_str()).take(LIMITS.len())));
    }
}

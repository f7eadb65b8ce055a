//! What data workers share: every tenant that serves, found by host, and never changed in place.

use std::{array, borrow::Borrow, collections::HashMap, hash::Hash, sync::Arc};

use beamline_model::{HostName, TenantName};

use crate::TenantRuntime;

/// Into how many parts each index is cut. A change copies the parts that it touches and shares all others, so
/// that it costs its tenant, not all of them.
const SHARDS: usize = 256;

/// One tenant's part in the next snapshot.
pub(crate) enum Change {
    /// It is new, or takes the place of what was of its name.
    Put(Arc<TenantRuntime>),
    /// It is gone.
    Remove(TenantName),
}

/// All tenants at one moment. Cheap to replace as a whole, impossible to change.
///
/// A tenant that did not change between two snapshots is the same `Arc` in both.
pub struct Snapshot {
    generation: u64,
    hosts: Index<HostName>,
    names: Index<TenantName>,
}

impl Snapshot {
    /// A snapshot of these tenants, of generation 0.
    pub(crate) fn new(tenants: impl IntoIterator<Item = Arc<TenantRuntime>>) -> Self {
        let mut snapshot = Self { generation: 0, hosts: Index::empty(), names: Index::empty() };
        for tenant in tenants {
            snapshot.put(tenant);
        }
        snapshot
    }

    /// This snapshot with some tenants new, replaced or gone; also the runtimes that went.
    pub(crate) fn with(&self, changes: impl IntoIterator<Item = Change>) -> (Self, Vec<Arc<TenantRuntime>>) {
        let mut next =
            Self { generation: self.generation + 1, hosts: self.hosts.clone(), names: self.names.clone() };
        let replaced = changes.into_iter().filter_map(|change| match change {
            Change::Put(tenant) => next.put(tenant),
            Change::Remove(name) => next.remove(&name),
        });
        let replaced = replaced.collect();
        (next, replaced)
    }

    fn remove(&mut self, name: &TenantName) -> Option<Arc<TenantRuntime>> {
        let before = self.names.remove(name);
        for host in before.iter().flat_map(|t| &t.hosts) {
            self.hosts.remove(host);
        }
        before
    }

    fn put(&mut self, tenant: Arc<TenantRuntime>) -> Option<Arc<TenantRuntime>> {
        let before = self.names.insert(tenant.name.clone(), tenant.clone());
        for host in before.iter().flat_map(|t| &t.hosts).filter(|h| !tenant.hosts.contains(h)) {
            self.hosts.remove(host);
        }
        for host in &tenant.hosts {
            let holder = self.hosts.insert(host.clone(), tenant.clone());
            debug_assert!(holder.is_none_or(|h| h.name == tenant.name), "host {host} has two tenants");
        }
        before
    }

    /// The tenant that holds a host, given in lower case and without port.
    pub fn by_host(&self, host: &str) -> Option<&Arc<TenantRuntime>> {
        self.hosts.get(host)
    }

    /// A tenant by name; none where it has no active revision.
    pub fn by_name(&self, name: &TenantName) -> Option<&Arc<TenantRuntime>> {
        self.names.get(name.as_str())
    }

    /// Every tenant, in no order.
    pub fn tenants(&self) -> impl Iterator<Item = &Arc<TenantRuntime>> {
        self.names.shards.iter().flat_map(|shard| shard.values())
    }

    /// How many swaps came before this snapshot since the node started.
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

/// One shard of an index.
type Shard<K> = HashMap<K, Arc<TenantRuntime>>;

/// A map cut into shards that successive versions share.
struct Index<K> {
    shards: Box<[Arc<Shard<K>>; SHARDS]>,
}

// By hand: `K: Clone` is not needed to share shards.
impl<K> Clone for Index<K> {
    fn clone(&self) -> Self {
        Self { shards: self.shards.clone() }
    }
}

impl<K: Borrow<str> + Clone + Eq + Hash> Index<K> {
    fn empty() -> Self {
        let shard = Arc::default();
        Self { shards: Box::new(array::from_fn(|_| Arc::clone(&shard))) }
    }

    fn get(&self, key: &str) -> Option<&Arc<TenantRuntime>> {
        self.shards[shard_of(key)].get(key)
    }

    fn insert(&mut self, key: K, tenant: Arc<TenantRuntime>) -> Option<Arc<TenantRuntime>> {
        Arc::make_mut(&mut self.shards[shard_of(key.borrow())]).insert(key, tenant)
    }

    fn remove(&mut self, key: &K) -> Option<Arc<TenantRuntime>> {
        let key: &str = key.borrow();
        Arc::make_mut(&mut self.shards[shard_of(key)]).remove(key)
    }
}

/// FNV-1a, folded to a shard: a few nanoseconds for a host. Names are the operator's choice, so nobody can aim at one
/// shard; the maps within keep the standard library's keyed hash.
fn shard_of(key: &str) -> usize {
    let hash =
        key.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    ((hash ^ (hash >> 16)) as usize) % SHARDS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::testing::runtime;

    #[test]
    fn a_change_of_one_tenant_leaves_every_other_identical() {
        let tenants: Vec<_> =
            (0..500).map(|i| runtime(&format!("t{i}"), 1, &[&format!("t{i}.test")])).collect();
        let before = Snapshot::new(tenants);
        let (after, replaced) = before.with([Change::Put(runtime("t7", 2, &["t7.test"]))]);

        assert_eq!(replaced.len(), 1);
        assert_eq!((before.generation(), after.generation()), (0, 1));
        assert_eq!(before.by_host("t7.test").unwrap().revision.0, 1, "the old snapshot stays as it was");
        assert_eq!(after.by_host("t7.test").unwrap().revision.0, 2);
        for i in (0..500).filter(|i| *i != 7) {
            let host = format!("t{i}.test");
            assert!(Arc::ptr_eq(before.by_host(&host).unwrap(), after.by_host(&host).unwrap()));
        }
        let copied = |a: &Index<HostName>, b: &Index<HostName>| {
            a.shards.iter().zip(b.shards.iter()).filter(|(a, b)| !Arc::ptr_eq(a, b)).count()
        };
        assert_eq!(copied(&before.hosts, &after.hosts), 1, "one host costs one shard");
    }

    #[test]
    fn hosts_follow_their_tenant() {
        let before = Snapshot::new([runtime("acme", 1, &["a.test", "b.test"])]);
        let (after, _) = before.with([Change::Put(runtime("acme", 2, &["b.test", "c.test"]))]);
        assert!(after.by_host("a.test").is_none(), "a host that the manifest gave up is nobody's");
        assert_eq!(after.by_host("b.test").unwrap().revision.0, 2);
        assert_eq!(after.by_host("c.test").unwrap().revision.0, 2);
        assert!(after.by_host("C.test").is_none(), "hosts are asked for in lower case");
        assert_eq!(after.tenants().count(), 1);
        let (gone, replaced) = after.with([Change::Remove("acme".parse().unwrap())]);
        assert!(gone.by_host("b.test").is_none() && gone.tenants().count() == 0);
        assert_eq!(replaced.len(), 1);
    }

    #[test]
    fn shards_are_used_evenly() {
        let mut counts = [0_u32; SHARDS];
        for i in 0..25_600 {
            counts[shard_of(&format!("tenant-{i}.example.com"))] += 1;
        }
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(*least > 50 && *most < 200, "about 100 each: {least} to {most}");
    }
}

//! What a node has for the requests of all its filters, and what of it one tenant may use.

use std::{fmt, io, sync::Arc};

use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::{OwnedSemaphorePermit, Semaphore},
};

/// Names that are looked up at once: of a node, and of one tenant. A name server that does not answer holds each for many
/// seconds.
const LOOKUPS: (usize, usize) = (16, 4);
/// Connections that may be kept when their exchange is over: of a node, and of one tenant. Further ones are closed then.
const KEPT: (usize, usize) = (1024, 128);
/// Bytes of bodies that are held at once, of requests and of answers: of a node, and of one tenant.
const HELD: (usize, usize) = (256 << 20, 64 << 20);

/// What a node has for the requests of all its filters: a thread, lookups, connections and memory of their own, so that they
/// use up nothing that serves the node's clients or its operator. Cheap to clone.
#[derive(Clone)]
pub struct EgressNode(Arc<Node>);

struct Node {
    /// Ended, without a wait, by whoever is the last to let go: see `Drop`.
    runtime: Option<Runtime>,
    handle: Handle,
    of_all: Bounds<Arc<Semaphore>>,
}

/// By what is bounded.
pub(super) struct Bounds<T> {
    pub(super) lookups: T,
    pub(super) kept: T,
    pub(super) held: T,
}

/// What one tenant may use, of what the node has.
#[derive(Clone)]
pub(super) struct Bound {
    node: Arc<Semaphore>,
    tenant: Arc<Semaphore>,
}

/// A part of a bound, given back when it is dropped.
pub(super) struct Part {
    node: OwnedSemaphorePermit,
    tenant: OwnedSemaphorePermit,
}

impl EgressNode {
    /// Starts its thread, on which `begin` runs first.
    ///
    /// # Errors
    /// Where the operating system gives none.
    pub fn start(begin: fn()) -> io::Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(LOOKUPS.0)
            .thread_name("egress")
            .on_thread_start(begin)
            .enable_io()
            .enable_time()
            .build()?;
        let of = |bound| Arc::new(Semaphore::new(bound));
        let of_all = Bounds { lookups: of(LOOKUPS.0), kept: of(KEPT.0), held: of(HELD.0) };
        Ok(Self(Arc::new(Node { handle: runtime.handle().clone(), runtime: Some(runtime), of_all })))
    }

    /// Where the requests run.
    pub(super) fn handle(&self) -> &Handle {
        &self.0.handle
    }

    /// What a tenant may use that uses nothing yet.
    pub(super) fn tenant(&self) -> Bounds<Bound> {
        let all = &self.0.of_all;
        let within = |node: &Arc<Semaphore>, most| Bound {
            node: Arc::clone(node),
            tenant: Arc::new(Semaphore::new(most)),
        };
        Bounds {
            lookups: within(&all.lookups, LOOKUPS.1),
            kept: within(&all.kept, KEPT.1),
            held: within(&all.held, HELD.1),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Bound {
    /// So much of it; none where there is not so much left.
    pub(super) fn take(&self, much: usize) -> Option<Part> {
        let much = u32::try_from(much).ok()?;
        let tenant = Arc::clone(&self.tenant).try_acquire_many_owned(much).ok()?;
        let node = Arc::clone(&self.node).try_acquire_many_owned(much).ok()?;
        Some(Part { node, tenant })
    }
}

impl Part {
    /// With another part of the same bound.
    pub(super) fn add(&mut self, more: Self) {
        self.node.merge(more.node);
        self.tenant.merge(more.tenant);
    }
}

impl fmt::Debug for EgressNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EgressNode")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_tenant_has_all_of_a_node_and_all_together_no_more_than_it() {
        let node = EgressNode::start(|| ()).unwrap();
        let tenants: Vec<_> = (0..5).map(|_| node.tenant()).collect();
        let lookups = tenants.iter().flat_map(|tenant| (0..5).filter_map(|_| tenant.lookups.take(1)));
        let lookups: Vec<_> = lookups.collect();
        assert_eq!(lookups.len(), LOOKUPS.0, "four of each of four");
        drop(lookups);
        assert!(tenants[4].lookups.take(1).is_some());

        let mut held = tenants[0].held.take(HELD.1 - 1).unwrap();
        held.add(tenants[0].held.take(1).unwrap());
        assert!(tenants[0].held.take(1).is_none() && tenants[1].held.take(HELD.1).is_some());
        drop(held);
        assert!(tenants[0].held.take(HELD.1).is_some());
    }

    #[test]
    fn the_reference_page_tells_the_bounds() {
        let page = include_str!("../../../../docs/reference/limits.md");
        let mib = |bytes: usize| format!("{} MiB", bytes >> 20);
        for (what, figures) in [
            (
                "names that filters' requests have looked up at once",
                [LOOKUPS.0.to_string(), LOOKUPS.1.to_string()],
            ),
            ("connections that are kept for filters' requests", ["1,024".to_owned(), KEPT.1.to_string()]),
            ("bodies of filters' requests and their answers", [mib(HELD.0), mib(HELD.1)]),
        ] {
            let row = page.lines().find(|line| line.contains(&format!("| {what}"))).unwrap();
            assert!(figures.iter().all(|figure| row.contains(figure)), "{row} lacks one of {figures:?}");
        }
        assert_eq!(KEPT.0, 1024);
    }
}

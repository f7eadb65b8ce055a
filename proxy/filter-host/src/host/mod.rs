//! The host's side of `beamline:edge`: what a guest can ask, and what it costs it. One interface is one file. And that of WASI
//! (`wasi`), by which it gets clocks, randomness and nothing of the node's.

mod buckets;
mod clock;
mod config;
mod context;
mod http;
mod kv;
mod log;
mod metrics;
mod outbound;
mod properties;
mod random;
mod secrets;
mod upstreams;
pub(crate) mod wasi;

use std::{future::poll_fn, sync::Arc, task::Poll, time::Instant};

use async_trait::async_trait;
use beamline_model::{FilterLimits, Limit};
use bytes::Bytes;
use thiserror::Error;
use wasmtime::ResourceLimiterAsync;

pub(crate) use self::http::{final_status, first, many};
pub use self::{
    config::FilterConfig,
    log::{GuestLog, LogLevel},
    metrics::{Metric, MetricRefusal, MetricUpdate},
    outbound::{Exchange, OutboundError, OutboundRequest, OutboundResponse},
    properties::Properties,
    secrets::Redaction,
    upstreams::{UpstreamState, UpstreamStatus},
};
use crate::{
    alarm,
    bindings::beamline::edge::{bodies, verdicts},
    call::{self, CpuClock},
    head::{RequestHead, ResponseHead, Seen},
    shared::TenantState,
};

/// What a guest may learn of its tenant's surroundings. Implemented above, by the data plane.
pub trait HostView: Send + Sync {
    /// The status of an upstream of this tenant, or none where the manifest has no such upstream.
    fn upstream(&self, name: &str) -> Option<UpstreamStatus>;

    /// What is known of the request beside its head.
    fn properties(&self) -> Properties;

    /// What the tenant's filters share.
    fn state(&self) -> &TenantState;

    /// What they may use and keep.
    fn limits(&self) -> &FilterLimits;

    /// Counts for a filter, or says why not.
    ///
    /// # Errors
    /// [`MetricRefusal`].
    fn count(&self, filter: &str, metric: Metric<'_>) -> Result<(), MetricRefusal>;

    /// A filter crossed a limit, and goes on: it was refused what it asked for.
    fn crossed(&self, filter: &str, limit: Limit);

    /// Sends a request of a filter, as far as its tenant and the filters of this request together may.
    fn send(&self, request: OutboundRequest) -> Exchange;
}

/// The call used up its host calls.
#[derive(Debug, Error)]
#[error("host calls exhausted")]
pub(crate) struct HostCallsExhausted;

/// What a call is about. It goes into the call, and comes back out of it as the guest left it.
#[derive(Debug, Default)]
pub(crate) struct Subject {
    pub(crate) request: Seen<RequestHead>,
    pub(crate) response: Seen<ResponseHead>,
    pub(crate) context: Option<Bytes>,
    pub(crate) log: GuestLog,
}

/// The state of one call: made for it, dropped with it.
pub(crate) struct CallState {
    pub(crate) head: Seen<RequestHead>,
    /// Nothing in the phases before there is a response.
    pub(crate) response: Seen<ResponseHead>,
    /// What the filter remembers of the request.
    pub(crate) context: Option<Bytes>,
    pub(crate) config: Arc<FilterConfig>,
    pub(crate) view: Arc<dyn HostView>,
    pub(crate) log: GuestLog,
    pub(crate) started: Instant,
    /// When the call has ended at the latest.
    ends: Instant,
    pub(crate) cpu: CpuClock,
    pub(crate) memory: MemoryMeter,
    pub(crate) calls: CallMeter,
    /// Requests that the call may still send.
    outbound_left: u32,
    /// What it has printed.
    printed: Option<Box<wasi::Printed>>,
}

/// What a component's store has: the call that runs in it, and nothing while the instance is kept between two.
pub(crate) struct Running(Option<Box<CallState>>);

impl Running {
    /// A call that begins in a new store.
    pub(crate) fn of(call: Box<CallState>) -> Self {
        Self(Some(call))
    }

    /// Begins a call.
    pub(crate) fn begin(&mut self, call: Box<CallState>) {
        self.0 = Some(call);
    }

    /// Ends the call: nothing of it is left here.
    ///
    /// # Panics
    /// Where none is under way.
    pub(crate) fn end(&mut self) -> Box<CallState> {
        self.0.take().expect("a call that began has its state until it ends")
    }

    /// The call that is under way.
    ///
    /// # Panics
    /// Where there is none.
    pub(crate) fn call(&mut self) -> &mut CallState {
        self.0.as_mut().expect("a guest runs in calls alone")
    }
}

/// Host functions that one call may still call, all together.
pub(crate) struct CallMeter {
    pub(crate) limit: u32,
    left: u32,
}

/// Linear memory of one instance, all its memories together, and tables.
pub(crate) struct MemoryMeter {
    pub(crate) limit: usize,
    pub(crate) used: usize,
    /// What the call began with; none before the instance is made, whose one memory is the first that is granted.
    first: Option<usize>,
    /// What was granted last, until the next is asked for: given back where nothing grew after all.
    last: usize,
    /// Whether growth was refused: what a following trap is put down to.
    pub(crate) refused: bool,
    /// Whether a table's growth was.
    table_refused: bool,
}

/// Bytes that a guest is given by one call of `get-many`: many times what a head may have.
pub(crate) const MAX_GIVEN: usize = 1 << 20;

/// Bytes by which a component's memories grow on a data worker.
pub(crate) const MAX_GROWN_ON_WORKER: usize = 1 << 20;

/// Elements of all tables of an instance.
pub(crate) const MAX_TABLE_ELEMENTS: usize = 20_000;

impl MemoryMeter {
    /// Whether a memory of `current` bytes may have `desired`.
    pub(crate) fn grant(&mut self, current: usize, desired: usize) -> bool {
        let more = desired.saturating_sub(current);
        if !self.has_room(more) {
            (self.refused, self.last) = (true, 0);
            return false;
        }
        let after = self.used + more;
        self.first.get_or_insert(after);
        (self.used, self.last) = (after, more);
        true
    }

    fn has_room(&self, more: usize) -> bool {
        self.used.saturating_add(more) <= self.limit
    }

    /// Bytes beyond those that there were in the beginning, with so many more.
    fn grown(&self, more: usize) -> usize {
        self.first.map_or(0, |first| self.used.saturating_add(more).saturating_sub(first))
    }

    /// Goes on with an instance that has so many already.
    pub(crate) fn go_on(&mut self, used: usize) {
        (self.used, self.first) = (used, Some(used));
    }

    /// What was granted last did not grow after all: beyond the memory's own maximum, for one.
    pub(crate) fn give_back(&mut self) {
        self.used -= std::mem::take(&mut self.last);
    }
}

/// What a component is granted. It may be a core instance's first memory or table, of `current` 0.
#[async_trait]
impl ResourceLimiterAsync for CallState {
    async fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _max: Option<usize>,
    ) -> wasmtime::Result<bool> {
        // One `memory.fill` may write all of it.
        let more = desired.saturating_sub(current);
        if self.memory.has_room(more) && self.memory.grown(more) > MAX_GROWN_ON_WORKER {
            call::go_to_the_lane(&mut self.cpu).await;
        }
        Ok(self.memory.grant(current, desired))
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.memory.give_back();
        Ok(())
    }

    async fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _max: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let fits = desired <= MAX_TABLE_ELEMENTS;
        self.memory.table_refused |= !fits;
        Ok(fits)
    }
}

impl CallState {
    pub(crate) fn new(
        subject: Subject,
        config: Arc<FilterConfig>,
        view: Arc<dyn HostView>,
        limits: &FilterLimits,
        (started, ends): (Instant, Instant),
    ) -> Box<Self> {
        let Subject { request, response, context, log } = subject;
        Box::new(Self {
            head: request,
            response,
            context,
            config,
            view,
            log,
            started,
            ends,
            cpu: CpuClock::start(limits.cpu.get()),
            memory: MemoryMeter {
                limit: usize::try_from(limits.memory.get()).unwrap_or(usize::MAX),
                used: 0,
                first: None,
                last: 0,
                refused: false,
                table_refused: false,
            },
            outbound_left: limits.outbound_calls,
            printed: None,
            calls: CallMeter { limit: limits.host_calls, left: limits.host_calls },
        })
    }

    /// What is left of a call when it has ended.
    pub(crate) fn into_subject(mut self) -> Subject {
        if let Some(printed) = self.printed.take() {
            printed.tell(&mut self.log, &self.config.redaction);
        }
        if self.memory.table_refused {
            self.crossed(Limit::TableElements);
        }
        Subject { request: self.head, response: self.response, context: self.context, log: self.log }
    }

    /// Begins every host function: the call ends where it has used up what it may call.
    pub(crate) fn count_call(&mut self) -> Result<(), HostCallsExhausted> {
        self.calls.left = self.calls.left.checked_sub(1).ok_or(HostCallsExhausted)?;
        Ok(())
    }

    /// Waits until then, in the slow lane: however often a guest waits, it keeps no data worker from what others want of it.
    async fn wait(&mut self, until: Instant) {
        poll_fn(|cx| {
            if Instant::now() >= until {
                return Poll::Ready(());
            }
            call::set_aside(&mut self.cpu);
            // A call that is over is dropped, whatever it waits for.
            if until < self.ends {
                alarm::set(until, cx.waker());
            }
            Poll::Pending
        })
        .await;
    }

    /// The guest is refused what it asked for, for it would cross a limit.
    fn crossed(&self, limit: Limit) {
        self.view.crossed(&self.config.name, limit);
    }
}

impl verdicts::Host for CallState {}

impl bodies::Host for CallState {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_memories_of_an_instance_count_together() {
        let mut meter =
            MemoryMeter { limit: 100, used: 0, first: None, last: 0, refused: false, table_refused: false };
        assert_eq!(meter.grown(50), 0, "it is not there yet");
        assert!(meter.grant(0, 50));
        assert!(meter.grant(0, 40));
        assert_eq!(meter.grown(5), 45);
        meter.give_back();
        assert!(meter.grant(50, 100));
        assert!(!meter.refused && !meter.grant(100, 101));
        assert!(meter.refused);
        meter.go_on(70);
        assert_eq!(meter.grown(5), 5);
    }
}

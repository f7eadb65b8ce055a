//! The host's side of `beamline:edge`: what a guest can ask, and what it costs it.

use std::{sync::Arc, time::Duration};

use wasmtime::{ResourceLimiter, component::Resource};

use crate::{
    bindings::beamline::edge::{config, http as wit_http, log, random, upstreams, verdicts},
    call::CpuClock,
    head::RequestHead,
};

/// How one upstream fares, as guests see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamStatus {
    /// Its state.
    pub state: UpstreamState,
    /// Requests that wait in its durable queue.
    pub queue_depth: u64,
}

/// The states of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamState {
    /// As it should be.
    Ready,
    /// Failures lately.
    Degraded,
    /// Its breaker is open.
    Down,
}

/// What a guest may learn of its tenant's surroundings. Implemented above, by the data plane.
pub trait HostView: Send + Sync {
    /// The status of an upstream of this tenant, or none where the manifest has no such upstream.
    fn upstream(&self, name: &str) -> Option<UpstreamStatus>;
}

/// The severity of a guest's message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the usual four")]
pub enum LogLevel {
    Debug,
    Info,
    Warn,
    Error,
}

/// What a guest logged in one call.
#[derive(Debug, Default)]
pub struct GuestLog {
    /// The messages, in order.
    pub lines: Vec<(LogLevel, String)>,
    /// Bytes cut because the call's limit was reached.
    pub cut: u64,
    left: u64,
}

impl GuestLog {
    pub(crate) fn with_limit(bytes: u64) -> Self {
        Self { lines: Vec::new(), cut: 0, left: bytes }
    }

    fn write(&mut self, level: LogLevel, mut message: String) {
        /// Empty messages would otherwise be free.
        const LINE_COST: u64 = 32;
        let room = usize::try_from(self.left.saturating_sub(LINE_COST)).unwrap_or(usize::MAX);
        if room == 0 {
            self.cut += message.len() as u64;
            return;
        }
        if message.len() > room {
            let end = (0..=room).rev().find(|i| message.is_char_boundary(*i)).unwrap_or(0);
            self.cut += (message.len() - end) as u64;
            message.truncate(end);
        }
        self.left = self.left.saturating_sub(message.len() as u64 + LINE_COST);
        self.lines.push((level, message));
    }
}

/// The state of one call: made for it, dropped with it.
pub(crate) struct CallState {
    pub(crate) head: RequestHead,
    pub(crate) config: Arc<str>,
    pub(crate) view: Arc<dyn HostView>,
    pub(crate) log: GuestLog,
    pub(crate) cpu: CpuClock,
    pub(crate) memory: MemoryMeter,
}

/// Linear memory of one instance, all its memories together, and tables.
pub(crate) struct MemoryMeter {
    pub(crate) limit: usize,
    pub(crate) used: usize,
    /// Whether growth was refused: what a following trap is put down to.
    pub(crate) refused: bool,
}

/// Elements of all tables of an instance.
const MAX_TABLE_ELEMENTS: usize = 20_000;

impl ResourceLimiter for MemoryMeter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _max: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let after = self.used.saturating_add(desired.saturating_sub(current));
        if after > self.limit {
            self.refused = true;
            return Ok(false);
        }
        self.used = after;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _max: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= MAX_TABLE_ELEMENTS)
    }
}

impl CallState {
    pub(crate) fn new(
        head: RequestHead,
        config: Arc<str>,
        view: Arc<dyn HostView>,
        limits: &beamline_model::FilterLimits,
    ) -> Self {
        Self {
            head,
            config,
            view,
            log: GuestLog::with_limit(limits.log.get()),
            cpu: CpuClock::start(limits.cpu.get()),
            memory: MemoryMeter {
                limit: usize::try_from(limits.memory.get()).unwrap_or(usize::MAX),
                used: 0,
                refused: false,
            },
        }
    }

    /// CPU time of the call until now.
    pub(crate) fn cpu_used(&self) -> Duration {
        self.cpu.used()
    }
}

fn refusal(error: beamline_http::HeadEditError) -> wit_http::HeaderError {
    use beamline_http::HeadEditError as E;
    match error {
        E::InvalidName => wit_http::HeaderError::InvalidName,
        E::InvalidValue => wit_http::HeaderError::InvalidValue,
        E::Forbidden => wit_http::HeaderError::Forbidden,
        E::TooLarge => wit_http::HeaderError::TooLarge,
    }
}

impl CallState {
    /// The first value of a field.
    pub(crate) fn first(&self, name: &str) -> Option<&[u8]> {
        self.head.headers.get(name).map(http::HeaderValue::as_bytes)
    }
}

// Every handle stands for the one head of the call, so its number carries no information.
impl wit_http::HostRequestHead for CallState {
    fn method(&mut self, _: Resource<RequestHead>) -> String {
        self.head.method.as_str().to_owned()
    }

    fn path(&mut self, _: Resource<RequestHead>) -> String {
        self.head.uri.path().to_owned()
    }

    fn query(&mut self, _: Resource<RequestHead>) -> Option<String> {
        self.head.uri.query().map(str::to_owned)
    }

    fn host(&mut self, _: Resource<RequestHead>) -> String {
        self.head.host.to_string()
    }

    fn get(&mut self, _: Resource<RequestHead>, name: String) -> Option<Vec<u8>> {
        self.first(&name).map(<[u8]>::to_vec)
    }

    fn get_all(&mut self, _: Resource<RequestHead>, name: String) -> Vec<Vec<u8>> {
        self.head.headers.get_all(name).iter().map(|v| v.as_bytes().to_vec()).collect()
    }

    fn get_many(&mut self, _: Resource<RequestHead>, names: Vec<String>) -> Vec<Option<Vec<u8>>> {
        names.iter().map(|name| self.first(name).map(<[u8]>::to_vec)).collect()
    }

    fn snapshot(&mut self, _: Resource<RequestHead>) -> wit_http::HeadSnapshot {
        let head = &self.head;
        let field = |(name, value): (&http::HeaderName, &http::HeaderValue)| wit_http::Field {
            name: name.as_str().to_owned(),
            value: value.as_bytes().to_vec(),
        };
        wit_http::HeadSnapshot {
            method: head.method.as_str().to_owned(),
            path: head.uri.path().to_owned(),
            query: head.uri.query().map(str::to_owned),
            host: head.host.to_string(),
            fields: head.headers.iter().map(field).collect(),
        }
    }

    fn set(
        &mut self,
        _: Resource<RequestHead>,
        name: String,
        value: Vec<u8>,
    ) -> Result<(), wit_http::HeaderError> {
        beamline_http::set(self.head.headers_mut(), &name, &value).map_err(refusal)
    }

    fn append(
        &mut self,
        _: Resource<RequestHead>,
        name: String,
        value: Vec<u8>,
    ) -> Result<(), wit_http::HeaderError> {
        beamline_http::append(self.head.headers_mut(), &name, &value).map_err(refusal)
    }

    fn remove(&mut self, _: Resource<RequestHead>, name: String) -> Result<(), wit_http::HeaderError> {
        beamline_http::remove(self.head.headers_mut(), &name).map_err(refusal)
    }

    fn drop(&mut self, _: Resource<RequestHead>) -> wasmtime::Result<()> {
        Ok(())
    }
}

impl wit_http::Host for CallState {}

impl verdicts::Host for CallState {}

impl config::Host for CallState {
    fn get(&mut self) -> String {
        self.config.to_string()
    }
}

impl log::Host for CallState {
    fn write(&mut self, level: log::Level, message: String) {
        let level = match level {
            log::Level::Debug => LogLevel::Debug,
            log::Level::Info => LogLevel::Info,
            log::Level::Warn => LogLevel::Warn,
            log::Level::Error => LogLevel::Error,
        };
        self.log.write(level, message);
    }
}

impl random::Host for CallState {
    fn get_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).expect("the operating system gives randomness");
        u64::from_le_bytes(bytes)
    }
}

impl upstreams::Host for CallState {
    fn get(&mut self, name: String) -> Option<upstreams::Status> {
        let status = self.view.upstream(&name)?;
        Some(upstreams::Status {
            state: match status.state {
                UpstreamState::Ready => upstreams::State::Ready,
                UpstreamState::Degraded => upstreams::State::Degraded,
                UpstreamState::Down => upstreams::State::Down,
            },
            queue_depth: status.queue_depth,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_cut_at_its_limit_and_between_characters() {
        let mut log = GuestLog::with_limit(100);
        log.write(LogLevel::Info, "é".repeat(100));
        log.write(LogLevel::Info, "more".into());
        assert_eq!(log.lines.len(), 1);
        assert_eq!(log.lines[0].1, "é".repeat(34));
        assert_eq!(log.cut, 132 + 4);
    }

    #[test]
    fn all_memories_of_an_instance_count_together() {
        let mut meter = MemoryMeter { limit: 100, used: 0, refused: false };
        assert!(meter.memory_growing(0, 60, None).unwrap());
        assert!(meter.memory_growing(0, 40, None).unwrap());
        assert!(!meter.memory_growing(40, 41, None).unwrap());
        assert!(meter.refused);
    }
}

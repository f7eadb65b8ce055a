//! The host's side of `beamline:edge`: what a guest can ask, and what it costs it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use wasmtime::{ResourceLimiter, component::Resource};

use crate::{
    bindings::beamline::edge::{bodies, config, context, http as wit_http, log, random, upstreams, verdicts},
    call::CpuClock,
    head::{RequestHead, ResponseHead, Seen},
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

/// What a call is about. It goes into the call, and comes back out of it as the guest left it.
#[derive(Debug, Default)]
pub(crate) struct Subject {
    pub(crate) request: Seen<RequestHead>,
    pub(crate) response: Seen<ResponseHead>,
    pub(crate) context: Option<Bytes>,
    pub(crate) log: GuestLog,
}

/// The most bytes that a filter may remember of a request.
pub const MAX_CONTEXT: usize = 4 << 10;

/// The state of one call: made for it, dropped with it.
pub(crate) struct CallState {
    pub(crate) head: Seen<RequestHead>,
    /// Nothing in the phases before there is a response.
    pub(crate) response: Seen<ResponseHead>,
    /// What the filter remembers of the request.
    pub(crate) context: Option<Bytes>,
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

/// Bytes that a guest is given by one call of `get-many`: many times what a head may have.
pub(crate) const MAX_GIVEN: usize = 1 << 20;

/// Elements of all tables of an instance.
pub(crate) const MAX_TABLE_ELEMENTS: usize = 20_000;

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
        subject: Subject,
        config: Arc<str>,
        view: Arc<dyn HostView>,
        limits: &beamline_model::FilterLimits,
    ) -> Self {
        let Subject { request, response, context, log } = subject;
        Self {
            head: request,
            response,
            context,
            config,
            view,
            log,
            cpu: CpuClock::start(limits.cpu.get()),
            memory: MemoryMeter {
                limit: usize::try_from(limits.memory.get()).unwrap_or(usize::MAX),
                used: 0,
                refused: false,
            },
        }
    }

    /// What is left of a call when it has ended.
    pub(crate) fn into_subject(self) -> Subject {
        Subject { request: self.head, response: self.response, context: self.context, log: self.log }
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

/// The first value of each of several fields. A guest may name one field many times over: what it is given is bounded
/// apart from what the head holds.
pub(crate) fn many(
    headers: &HeaderMap,
    names: impl IntoIterator<Item = impl AsRef<str>>,
) -> wasmtime::Result<Vec<Option<&[u8]>>> {
    let mut bytes = 0;
    let values = names.into_iter().map(|name| {
        let value = first(headers, name.as_ref());
        bytes += size_of::<Option<Vec<u8>>>() + value.map_or(0, <[u8]>::len);
        (bytes <= MAX_GIVEN).then_some(value)
    });
    let values: Option<Vec<_>> = values.collect();
    values.ok_or_else(|| {
        wasmtime::Error::msg(format!(
            "get-many was asked for more than {MAX_GIVEN} bytes of values: ask for fewer fields at once"
        ))
    })
}

/// The first value of a field.
pub(crate) fn first<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h [u8]> {
    headers.get(name).map(http::HeaderValue::as_bytes)
}

fn owned(value: Option<&[u8]>) -> Option<Vec<u8>> {
    value.map(<[u8]>::to_vec)
}

fn all(headers: &HeaderMap, name: &str) -> Vec<Vec<u8>> {
    headers.get_all(name).iter().map(|v| v.as_bytes().to_vec()).collect()
}

fn fields(headers: &HeaderMap) -> Vec<wit_http::Field> {
    let field = |(name, value): (&http::HeaderName, &http::HeaderValue)| wit_http::Field {
        name: name.as_str().to_owned(),
        value: value.as_bytes().to_vec(),
    };
    headers.iter().map(field).collect()
}

/// A status that ends an exchange: 200 to 599.
pub(crate) fn final_status(status: u16) -> Option<StatusCode> {
    StatusCode::from_u16(status).ok().filter(|s| (200..600).contains(&s.as_u16()))
}

// Every handle stands for the one head of its kind that the call has, so its number carries no information.
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
        owned(first(&self.head.headers, &name))
    }

    fn get_all(&mut self, _: Resource<RequestHead>, name: String) -> Vec<Vec<u8>> {
        all(&self.head.headers, &name)
    }

    fn get_many(
        &mut self,
        _: Resource<RequestHead>,
        names: Vec<String>,
    ) -> wasmtime::Result<Vec<Option<Vec<u8>>>> {
        Ok(many(&self.head.headers, names)?.into_iter().map(owned).collect())
    }

    fn snapshot(&mut self, _: Resource<RequestHead>) -> wit_http::HeadSnapshot {
        let head = &self.head;
        wit_http::HeadSnapshot {
            method: head.method.as_str().to_owned(),
            path: head.uri.path().to_owned(),
            query: head.uri.query().map(str::to_owned),
            host: head.host.to_string(),
            fields: fields(&head.headers),
        }
    }

    fn set(
        &mut self,
        _: Resource<RequestHead>,
        name: String,
        value: Vec<u8>,
    ) -> Result<(), wit_http::HeaderError> {
        self.head.fields_mut().and_then(|h| beamline_http::set(h, &name, &value)).map_err(refusal)
    }

    fn append(
        &mut self,
        _: Resource<RequestHead>,
        name: String,
        value: Vec<u8>,
    ) -> Result<(), wit_http::HeaderError> {
        self.head.fields_mut().and_then(|h| beamline_http::append(h, &name, &value)).map_err(refusal)
    }

    fn remove(&mut self, _: Resource<RequestHead>, name: String) -> Result<(), wit_http::HeaderError> {
        self.head.fields_mut().and_then(|h| beamline_http::remove(h, &name)).map_err(refusal)
    }

    fn drop(&mut self, _: Resource<RequestHead>) -> wasmtime::Result<()> {
        Ok(())
    }
}

impl wit_http::HostResponseHead for CallState {
    fn status(&mut self, _: Resource<ResponseHead>) -> u16 {
        self.response.status.as_u16()
    }

    fn get(&mut self, _: Resource<ResponseHead>, name: String) -> Option<Vec<u8>> {
        owned(first(&self.response.headers, &name))
    }

    fn get_all(&mut self, _: Resource<ResponseHead>, name: String) -> Vec<Vec<u8>> {
        all(&self.response.headers, &name)
    }

    fn get_many(
        &mut self,
        _: Resource<ResponseHead>,
        names: Vec<String>,
    ) -> wasmtime::Result<Vec<Option<Vec<u8>>>> {
        Ok(many(&self.response.headers, names)?.into_iter().map(owned).collect())
    }

    fn snapshot(&mut self, _: Resource<ResponseHead>) -> wit_http::ResponseSnapshot {
        wit_http::ResponseSnapshot {
            status: self.response.status.as_u16(),
            fields: fields(&self.response.headers),
        }
    }

    fn set_status(&mut self, _: Resource<ResponseHead>, status: u16) -> Result<(), wit_http::HeaderError> {
        let head = self.response.open().map_err(refusal)?;
        head.status = final_status(status).ok_or(wit_http::HeaderError::InvalidValue)?;
        Ok(())
    }

    fn set(
        &mut self,
        _: Resource<ResponseHead>,
        name: String,
        value: Vec<u8>,
    ) -> Result<(), wit_http::HeaderError> {
        self.response.fields_mut().and_then(|h| beamline_http::set(h, &name, &value)).map_err(refusal)
    }

    fn append(
        &mut self,
        _: Resource<ResponseHead>,
        name: String,
        value: Vec<u8>,
    ) -> Result<(), wit_http::HeaderError> {
        self.response.fields_mut().and_then(|h| beamline_http::append(h, &name, &value)).map_err(refusal)
    }

    fn remove(&mut self, _: Resource<ResponseHead>, name: String) -> Result<(), wit_http::HeaderError> {
        self.response.fields_mut().and_then(|h| beamline_http::remove(h, &name)).map_err(refusal)
    }

    fn drop(&mut self, _: Resource<ResponseHead>) -> wasmtime::Result<()> {
        Ok(())
    }
}

impl wit_http::Host for CallState {}

impl context::Host for CallState {
    fn get(&mut self) -> Option<Vec<u8>> {
        self.context.as_ref().map(|value| value.to_vec())
    }

    fn set(&mut self, value: Vec<u8>) -> Result<(), context::ContextError> {
        if value.len() > MAX_CONTEXT {
            return Err(context::ContextError::TooLarge);
        }
        self.context = Some(value.into());
        Ok(())
    }
}

impl verdicts::Host for CallState {}

impl bodies::Host for CallState {}

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
    fn what_a_guest_is_given_at_once_is_bounded_however_often_it_names_a_field() {
        let mut headers = HeaderMap::new();
        headers.insert("x-large", "x".repeat(60_000).parse().unwrap());
        let given = |times| many(&headers, vec!["x-large"; times]);
        assert_eq!(given(17).unwrap().len(), 17);
        assert!(given(18).unwrap_err().to_string().contains("get-many"));
        assert!(many(&headers, vec![""; 100_000]).is_err(), "what is not there counts too");
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

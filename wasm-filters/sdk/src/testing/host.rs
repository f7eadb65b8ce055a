//! What a module imports, for filters that run on the machine at hand.

use std::{cell::RefCell, collections::BTreeMap};

use serde_json::Value;

pub(crate) use super::{Head, ResponseHead};
use super::{Kept, Metric};
use crate::{
    buckets::{BucketError, Rate, Taken},
    context,
    kv::KvError,
    log::Level,
    metrics::MetricError,
    outbound::{IncomingResponse, OutboundError, OutgoingRequest},
    properties::Properties,
    upstream::Status,
};

/// What the host answers during a call.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub(crate) config: Value,
    pub(crate) upstreams: BTreeMap<String, Status>,
    pub(crate) random: u64,
    pub(crate) now_ms: u64,
    pub(crate) elapsed_ns: u64,
    pub(crate) properties: Properties,
    pub(crate) kept: Kept,
    pub(crate) secrets: BTreeMap<String, Vec<u8>>,
    pub(crate) answers: BTreeMap<String, Result<IncomingResponse, OutboundError>>,
    pub(crate) sent: Vec<OutgoingRequest>,
    pub(crate) context: Option<Vec<u8>>,
    pub(crate) log: Vec<(Level, String)>,
    pub(crate) metrics: Vec<Metric>,
}

thread_local! {
    // Host functions take no argument that could carry it: in a module the host is simply there.
    static HOST: RefCell<Host> = RefCell::default();
}

impl Default for Host {
    fn default() -> Self {
        Self {
            config: Value::Null,
            upstreams: BTreeMap::new(),
            random: 0,
            now_ms: 0,
            elapsed_ns: 0,
            properties: Properties {
                client_address: "203.0.113.7".into(),
                client_port: 40_000,
                request_id: "01900000-0000-7000-8000-000000000001".into(),
                trace_id: "0af7651916cd43dd8448eb211c80319c".into(),
                tenant: "example".into(),
                revision: 1,
                scheme: "http".into(),
                tls_server_name: None,
            },
            kept: Kept::new(),
            secrets: BTreeMap::new(),
            answers: BTreeMap::new(),
            sent: Vec::new(),
            context: None,
            log: Vec::new(),
            metrics: Vec::new(),
        }
    }
}

impl Host {
    /// Makes this the host of the calling thread while `call` runs; gives the host as it is afterwards.
    pub(crate) fn during<T>(self, call: impl FnOnce() -> T) -> (T, Self) {
        HOST.set(self);
        let result = call();
        (result, HOST.take())
    }
}

pub(crate) fn log(level: Level, message: &str) {
    HOST.with_borrow_mut(|host| host.log.push((level, message.to_owned())));
}

pub(crate) fn random() -> u64 {
    HOST.with_borrow(|host| host.random)
}

pub(crate) fn upstream(name: &str) -> Option<Status> {
    HOST.with_borrow(|host| host.upstreams.get(name).copied())
}

pub(crate) fn now_ms() -> u64 {
    HOST.with_borrow(|host| host.now_ms)
}

pub(crate) fn elapsed_ns() -> u64 {
    HOST.with_borrow(|host| host.elapsed_ns)
}

pub(crate) fn properties() -> Properties {
    HOST.with_borrow(|host| host.properties.clone())
}

/// What is kept, and the time of the call.
fn kept() -> (Kept, u64) {
    HOST.with_borrow(|host| (host.kept.clone(), host.now_ms))
}

pub(crate) fn kv_get(key: &str) -> Option<Vec<u8>> {
    let (kept, now_ms) = kept();
    kept.get(key, now_ms)
}

pub(crate) fn kv_set(key: &str, value: &[u8], ttl_ms: Option<u64>) -> Result<(), KvError> {
    let (kept, now_ms) = kept();
    kept.set(key, value, ttl_ms, now_ms)
}

pub(crate) fn kv_delete(key: &str) -> bool {
    let (kept, now_ms) = kept();
    kept.delete(key, now_ms)
}

pub(crate) fn kv_increment(key: &str, by: i64, ttl_ms: Option<u64>) -> Result<i64, KvError> {
    let (kept, now_ms) = kept();
    kept.increment(key, by, ttl_ms, now_ms)
}

pub(crate) fn kv_compare_and_set(
    key: &str,
    expected: Option<&[u8]>,
    value: &[u8],
    ttl_ms: Option<u64>,
) -> Result<bool, KvError> {
    let (kept, now_ms) = kept();
    kept.compare_and_set(key, expected, value, ttl_ms, now_ms)
}

pub(crate) fn take(bucket: &str, key: &str, tokens: u32, rate: Rate) -> Result<Taken, BucketError> {
    let (kept, now_ms) = kept();
    kept.take(bucket, key, tokens, rate, now_ms)
}

fn counted(name: &str, value: f64, labels: &[(&str, &str)]) -> Result<(), MetricError> {
    let labels = labels.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    HOST.with_borrow_mut(|host| host.metrics.push(Metric { name: name.to_owned(), value, labels }));
    Ok(())
}

pub(crate) fn count(name: &str, by: u64, labels: &[(&str, &str)]) -> Result<(), MetricError> {
    #[expect(clippy::cast_precision_loss, reason = "a test counts no further")]
    counted(name, by as f64, labels)
}

pub(crate) fn observe(name: &str, value: f64, labels: &[(&str, &str)]) -> Result<(), MetricError> {
    counted(name, value, labels)
}

pub(crate) fn secret(name: &str) -> Option<Vec<u8>> {
    HOST.with_borrow(|host| host.secrets.get(name).cloned())
}

pub(crate) fn send(request: OutgoingRequest) -> Result<IncomingResponse, OutboundError> {
    HOST.with_borrow_mut(|host| {
        let answer = host.answers.get(&request.url).cloned().unwrap_or(Err(OutboundError::NotAllowed));
        host.sent.push(request);
        answer
    })
}

pub(crate) fn context() -> Option<Vec<u8>> {
    HOST.with_borrow(|host| host.context.clone())
}

pub(crate) fn set_context(value: &[u8]) -> Result<(), context::TooLarge> {
    if value.len() > context::MAX {
        return Err(context::TooLarge);
    }
    HOST.with_borrow_mut(|host| host.context = Some(value.to_vec()));
    Ok(())
}

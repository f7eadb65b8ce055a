//! The host's functions: the real ones in a module, the ones of [`testing`](crate::testing) elsewhere.

#[cfg(target_family = "wasm")]
mod imported {
    use crate::raw::beamline::edge;
    pub(crate) use edge::http::{RequestHead as Head, ResponseHead};
    use edge::{metrics, outbound};

    use crate::outbound::OutgoingRequest;

    pub(crate) fn send(
        request: OutgoingRequest,
    ) -> Result<outbound::IncomingResponse, outbound::OutboundError> {
        let headers: Vec<_> = request.headers.iter().collect();
        outbound::send(outbound::OutgoingRequest {
            method: &request.method,
            url: &request.url,
            headers: &headers,
            body: &request.body,
            timeout_ms: request.timeout_ms,
        })
    }
    pub(crate) use edge::{
        buckets::take,
        clock::{elapsed_ns, now_ms},
        config::get as config,
        context::get as context,
        kv::{
            compare_and_set as kv_compare_and_set, delete as kv_delete, get as kv_get,
            increment as kv_increment, set as kv_set,
        },
        log::write as log,
        properties::snapshot as properties,
        random::get_u64 as random,
        secrets::get as secret,
        upstreams::get as upstream,
    };

    fn labels<'a>(labels: &[(&'a str, &'a str)]) -> Vec<metrics::Label<'a>> {
        labels.iter().map(|&(name, value)| metrics::Label { name, value }).collect()
    }

    pub(crate) fn count(name: &str, by: u64, with: &[(&str, &str)]) -> Result<(), metrics::MetricError> {
        metrics::count(name, by, &labels(with))
    }

    pub(crate) fn observe(name: &str, value: f64, with: &[(&str, &str)]) -> Result<(), metrics::MetricError> {
        metrics::observe(name, value, &labels(with))
    }

    pub(crate) fn set_context(value: &[u8]) -> Result<(), crate::context::TooLarge> {
        edge::context::set(value).map_err(|_| crate::context::TooLarge)
    }
}

#[cfg(target_family = "wasm")]
pub(crate) use imported::*;

#[cfg(not(target_family = "wasm"))]
pub(crate) use crate::testing::host::*;

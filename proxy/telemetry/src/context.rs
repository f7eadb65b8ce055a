//! Where a request stands in a trace.

use http::HeaderValue;

use crate::{
    RemoteContext, Sampler, SpanId, TraceId, parse_traceparent,
    traceparent::{self, RANDOM, SAMPLED},
};

/// The place of one request in a trace: what its spans are children of, and whether they are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace, in every log record of the request whether recorded or not.
    pub trace_id: TraceId,
    /// Our own span: the server span of a request, the consumer span of a delivery.
    pub span_id: SpanId,
    /// Whether its spans are exported; told to whoever comes next in `traceparent`.
    pub sampled: bool,
    /// Whether the trace id is known to be random (W3C Trace Context level 2); passed on as it is.
    pub random: bool,
    /// The span that caused ours: a trusted sender's, or the producer span of a delivery.
    pub parent: Option<SpanId>,
    /// What an untrusted sender said: linked to, never followed.
    pub link: Option<RemoteContext>,
}

impl TraceContext {
    /// The context of a new request, by the `traceparent` that came with it.
    ///
    /// A trusted sender's trace is continued, and its decision to record is ours too. An untrusted sender's becomes
    /// a link of a new trace, on which `sampler` decides; so it can neither fill the backend nor join others' traces.
    pub fn start(remote: Option<&HeaderValue>, trusted: bool, sampler: &Sampler) -> Self {
        let remote = remote.and_then(|value| parse_traceparent(value.as_bytes()));
        match remote {
            Some(remote) if trusted => Self {
                trace_id: remote.trace_id,
                span_id: SpanId::random(),
                sampled: remote.sampled,
                random: remote.random,
                parent: Some(remote.span_id),
                link: None,
            },
            link => {
                let trace_id = TraceId::random();
                Self {
                    trace_id,
                    span_id: SpanId::random(),
                    sampled: sampler.takes(trace_id),
                    random: true,
                    parent: None,
                    link,
                }
            }
        }
    }

    /// A new span in a trace that began earlier, as a child of `parent`: what a delivery from the queue has.
    pub fn resume(trace_id: TraceId, parent: SpanId, sampled: bool) -> Self {
        Self { trace_id, span_id: SpanId::random(), sampled, random: false, parent: Some(parent), link: None }
    }

    /// The `traceparent` for a message that `span` (one of ours, such as an upstream attempt's) sends.
    ///
    /// # Panics
    /// Never: its text is hexadecimal digits and hyphens.
    pub fn traceparent(&self, span: SpanId) -> HeaderValue {
        HeaderValue::from_bytes(&traceparent::write(self.trace_id, span, self.flags()))
            .expect("hexadecimal digits and hyphens are a field value")
    }

    /// The trace flags of W3C Trace Context.
    pub(crate) fn flags(&self) -> u8 {
        (u8::from(self.sampled) * SAMPLED) | (u8::from(self.random) * RANDOM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: HeaderValue =
        HeaderValue::from_static("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");

    #[test]
    fn an_untrusted_sender_becomes_a_link_and_our_sampler_decides() {
        let context = TraceContext::start(Some(&SENT), false, &Sampler::NEVER);
        let link = context.link.unwrap();
        assert_eq!(link.span_id.to_string(), "b7ad6b7169203331");
        assert_ne!(context.trace_id, link.trace_id);
        assert_eq!((context.parent, context.sampled), (None, false));
    }

    #[test]
    fn a_trusted_sender_is_the_parent_and_its_decision_is_ours() {
        let context = TraceContext::start(Some(&SENT), true, &Sampler::NEVER);
        assert_eq!(context.trace_id.to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(context.parent.unwrap().to_string(), "b7ad6b7169203331");
        assert!(context.sampled && context.link.is_none() && !context.random);
    }

    #[test]
    fn without_a_valid_sender_a_new_trace_starts() {
        for sent in [None, Some(&HeaderValue::from_static("00-garbage"))] {
            let context = TraceContext::start(sent, true, &Sampler::ALWAYS);
            assert!(context.sampled && context.random && context.parent.is_none() && context.link.is_none());
        }
    }

    #[test]
    fn what_goes_upstream_names_the_trace_the_span_and_the_decision() {
        let context = TraceContext::start(None, false, &Sampler::ALWAYS);
        let attempt = SpanId::random();
        let sent = parse_traceparent(context.traceparent(attempt).as_bytes()).unwrap();
        assert_eq!((sent.trace_id, sent.span_id, sent.sampled), (context.trace_id, attempt, true));
    }

    #[test]
    fn a_delivery_is_a_child_of_its_producer_in_the_same_trace() {
        let edge = TraceContext::start(None, false, &Sampler::ALWAYS);
        let producer = SpanId::random();
        let delivery = TraceContext::resume(edge.trace_id, producer, edge.sampled);
        assert_eq!((delivery.trace_id, delivery.parent), (edge.trace_id, Some(producer)));
        assert_ne!(delivery.span_id, producer);
    }
}

//! The trace of a queued request, from the edge to its delivery by another process.

use std::time::Duration;

use anyhow::Context as _;

use super::Chapter;
use crate::{
    demo::{Told, stage::Stage, trace_tree},
    otlp::{self, Kind, Span},
};

pub(super) const CHAPTER: Chapter = Chapter {
    title: "One trace, from the edge to the delivery",
    shows: "The first of those orders as the receiver of traces saw it, over OTLP: tried and accepted by the process\n\
            that was killed, delivered by the one after it.",
    tell,
};

fn tell(stage: &mut Stage) -> Told {
    let traced = stage.traced.take().context("the chapter before has queued a request")?;
    let spans = stage.wait("the delivery's spans", Duration::from_secs(15), || {
        let spans = stage.traces.trace(&traced.trace_id);
        Ok(if gaps(&spans).is_empty() { Ok(spans) } else { Err(otlp::tree(&spans)) })
    });
    // What is missing is told by the claim, which knows the parts by name.
    let spans = spans.unwrap_or_else(|_| stage.traces.trace(&traced.trace_id));
    stage.print.detail(&format!("trace {}", traced.trace_id));
    trace_tree::lines(&spans, traced.killed)
        .iter()
        .for_each(|line| stage.print.detail(&line.painted(stage.print)));
    let missing = gaps(&spans);
    stage.claim(
        "edge → filter → queue → delivery are one tree, across two processes",
        missing.is_empty(),
        "a server span, under it a filter and the queue's producer span, under that the delivery and its attempt",
        format!("no {}:\n{}", missing.join(", no "), otlp::tree(&spans)),
    )
}

/// The parts of the tree that are not there.
fn gaps(spans: &[Span]) -> Vec<&'static str> {
    let below = |parent: Option<&Span>, kind: Kind, wanted: &dyn Fn(&Span) -> bool| {
        let parent = parent.map(|span| span.span_id.as_str());
        spans.iter().find(|s| s.kind == kind && s.parent.as_deref() == parent && wanted(s))
    };
    let any = |_: &Span| true;
    let under = |parent: Option<&'_ Span>, kind, wanted: &dyn Fn(&Span) -> bool| {
        parent.and_then(|parent| below(Some(parent), kind, wanted)).is_some()
    };
    let edge = below(None, Kind::Server, &any);
    let queue = edge.and_then(|edge| below(Some(edge), Kind::Producer, &any));
    let delivered = |span: &Span| {
        span.attribute("beamline.queue.outcome") == Some("delivered")
            && queue.is_some_and(|q| span.links.iter().any(|(_, id)| *id == q.span_id))
    };
    let delivery = queue.and_then(|queue| below(Some(queue), Kind::Consumer, &delivered));
    let answered = |span: &Span| span.attribute("http.response.status_code") == Some("200");
    [
        (edge.is_some(), "edge"),
        (under(edge, Kind::Internal, &any), "filter"),
        (queue.is_some(), "queue"),
        (delivery.is_some(), "delivery"),
        (under(delivery, Kind::Client, &answered), "answer of the origin to the delivery"),
    ]
    .into_iter()
    .filter_map(|(there, part)| (!there).then_some(part))
    .collect()
}

//! A trace for people: what each span is to the request, where it hangs, when it was, how it ended.

use std::time::Duration;

use super::printer::{Printer, Style};
use crate::otlp::{Branch, Kind, Span, branches};

/// A line of the tree, its columns filled up.
#[derive(Debug)]
pub(super) enum Line {
    /// A span.
    Span { role: String, branch: String, times: String, end: String, failed: bool },
    /// The kill of the process, between what was before and what came after it.
    Kill(String),
}

impl Line {
    /// The line in colours, where there are some.
    pub(super) fn painted(&self, print: Printer) -> String {
        match self {
            Self::Span { role, branch, times, end, failed } => {
                let end = if *failed { print.paint(Style::Bad, end) } else { print.paint(Style::Good, end) };
                let (role, times) = (print.paint(Style::Mark, role), print.paint(Style::Faint, times));
                format!("{role}  {branch}  {times}  {end}")
            }
            Self::Kill(text) => print.paint(Style::Faint, text),
        }
    }
}

/// The lines of a trace, in which a process was killed at `killed` (nanoseconds since 1970).
pub(super) fn lines(spans: &[Span], killed: u64) -> Vec<Line> {
    let first = spans.iter().map(|span| span.start).min().unwrap_or(0);
    let tree = branches(spans);
    let labels: Vec<_> = tree.iter().map(label).collect();
    let width = labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
    let mut lines = Vec::new();
    let mut is_before = true;
    for (Branch { span, .. }, branch) in tree.iter().zip(labels) {
        if is_before && span.start > killed {
            is_before = false;
            let at = passed(killed.saturating_sub(first));
            lines.push(Line::Kill(format!("{:8}  ── kill -9, another process from here on ── +{at}", "")));
        }
        let (start, took) =
            (passed(span.start.saturating_sub(first)), passed(span.end.saturating_sub(span.start)));
        let (end, failed) = end(span);
        lines.push(Line::Span {
            role: format!("{:8}", role(span, spans)),
            branch: format!("{branch:width$}"),
            times: format!("{:>9} {took:>8}", format!("+{start}")),
            end,
            failed,
        });
    }
    lines
}

fn label(branch: &Branch<'_>) -> String {
    let orphan = if branch.is_orphan { " (its parent was not received)" } else { "" };
    format!("{}{}{orphan}", branch.lead, branch.span.name)
}

/// What a span is to the request.
fn role(span: &Span, spans: &[Span]) -> &'static str {
    match span.kind {
        Kind::Server => "edge",
        Kind::Internal => "filter",
        Kind::Producer => "queue",
        Kind::Consumer => "delivery",
        Kind::Client => {
            let parent = spans.iter().find(|s| Some(s.span_id.as_str()) == span.parent.as_deref());
            if parent.is_some_and(|p| p.kind == Kind::Consumer) { "origin" } else { "upstream" }
        }
        Kind::Unspecified => "",
    }
}

/// How it ended, and whether that is a failure.
fn end(span: &Span) -> (String, bool) {
    let attribute = |key| span.attribute(key);
    let failed = span.error.is_some() || attribute("error.type").is_some();
    let status = attribute("http.response.status_code");
    let text = match span.kind {
        Kind::Internal => {
            attribute("verdict").or(attribute("beamline.filter.outcome")).unwrap_or_default().into()
        }
        Kind::Producer => "committed".into(),
        Kind::Consumer => {
            let outcome = attribute("beamline.queue.outcome").unwrap_or_default();
            format!("{outcome}, attempt {}", attribute("beamline.queue.attempt").unwrap_or("?"))
        }
        _ => match (status, attribute("error.type")) {
            (Some(status), Some(error)) if error != status => format!("{status} {error}"),
            (Some(status), _) => status.into(),
            (None, error) => error.unwrap_or_default().into(),
        },
    };
    (text, failed)
}

/// A time in the unit that suits it, with at most three digits and a decimal.
fn passed(nanos: u64) -> String {
    let time = Duration::from_nanos(nanos);
    if time >= Duration::from_secs(1) {
        format!("{:.2} s", time.as_secs_f64())
    } else {
        format!("{:.1} ms", time.as_secs_f64() * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn span(
        id: &str,
        parent: Option<&str>,
        name: &str,
        kind: Kind,
        ms: u64,
        attributes: &[(&str, &str)],
    ) -> Span {
        Span {
            trace_id: "t".into(),
            span_id: id.into(),
            parent: parent.map(str::to_owned),
            name: name.into(),
            kind,
            start: ms * 1_000_000,
            end: (ms + 2) * 1_000_000,
            attributes: attributes
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect::<BTreeMap<_, _>>(),
            links: Vec::new(),
            error: None,
            service: "beamline".into(),
        }
    }

    #[test]
    fn a_trace_reads_as_the_way_of_its_request() {
        let status = ("http.response.status_code", "202");
        let spans = [
            span("1", None, "POST orders", Kind::Server, 0, &[status]),
            span("2", Some("1"), "filter router", Kind::Internal, 1, &[("verdict", "route")]),
            span("3", Some("1"), "POST", Kind::Client, 2, &[("error.type", "connect-refused")]),
            span("4", Some("1"), "enqueue acme/orders", Kind::Producer, 3, &[]),
            span(
                "5",
                Some("4"),
                "deliver acme/orders",
                Kind::Consumer,
                2500,
                &[("beamline.queue.outcome", "delivered"), ("beamline.queue.attempt", "1")],
            ),
            span("6", Some("5"), "POST", Kind::Client, 2501, &[("http.response.status_code", "200")]),
        ];
        let plain = Printer::plain();
        let text: Vec<_> = lines(&spans, 1_000_000_000).iter().map(|line| line.painted(plain)).collect();
        assert_eq!(
            text.join("\n"),
            "\
edge      POST orders                  +0.0 ms   2.0 ms  202
filter    ├─ filter router             +1.0 ms   2.0 ms  route
upstream  ├─ POST                      +2.0 ms   2.0 ms  connect-refused
queue     └─ enqueue acme/orders       +3.0 ms   2.0 ms  committed
          ── kill -9, another process from here on ── +1.00 s
delivery     └─ deliver acme/orders    +2.50 s   2.0 ms  delivered, attempt 1
origin          └─ POST                +2.50 s   2.0 ms  200"
        );
    }
}

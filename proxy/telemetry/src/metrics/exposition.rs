//! The text that `/metrics` answers with.

use std::fmt::{Display, Write as _};

/// What a family is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows, but for a restart.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by size.
    Histogram,
}

impl MetricKind {
    /// As the format and the reference page write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One line of the table of metrics, which `docs/reference/metrics.md` repeats.
#[derive(Clone, Copy, Debug)]
pub struct MetricRow {
    /// The family's name.
    pub name: &'static str,
    /// What it is.
    pub kind: MetricKind,
    /// Its labels, in order.
    pub labels: &'static [&'static str],
    /// What it says, as a sentence without its full stop.
    pub help: &'static str,
}

const fn row(
    name: &'static str,
    kind: MetricKind,
    labels: &'static [&'static str],
    help: &'static str,
) -> MetricRow {
    MetricRow { name, kind, labels, help }
}

const LANE: &[&str] = &["tenant", "upstream"];

/// The node's own families, in the order in which they are shown.
pub const METRICS: [MetricRow; 25] = {
    use MetricKind::{Counter, Gauge};
    [
        row("beamline_node_ready", Gauge, &[], "1 where new traffic should come here, as /readyz says"),
        row("beamline_node_phase", Gauge, &["phase"], "1 for the phase that the node is in"),
        row(
            "beamline_node_degraded",
            Gauge,
            &["reason"],
            "Reasons of this kind for which the node is degraded",
        ),
        row("beamline_telemetry_dropped_total", Counter, &["what"], "Log records and spans that were lost"),
        row(
            "beamline_queue_readable",
            Gauge,
            &[],
            "1 where the queue's log can be read; else the families by upstream are left out",
        ),
        row("beamline_queue_records", Gauge, LANE, "Queued requests that wait or are being delivered"),
        row("beamline_queue_dead_letters", Gauge, LANE, "Dead letters that are kept"),
        row("beamline_queue_bytes", Gauge, LANE, "Bytes of both, and of answers that are kept for receipts"),
        row(
            "beamline_queue_oldest_age_seconds",
            Gauge,
            LANE,
            "Since the first of the waiting requests was accepted; left out where none waits",
        ),
        row("beamline_queue_paused", Gauge, LANE, "1 where deliveries are paused"),
        row("beamline_queue_accepted_total", Counter, LANE, "Requests that were queued"),
        row("beamline_queue_delivered_total", Counter, LANE, "Queued requests that were delivered"),
        row(
            "beamline_queue_died_total",
            Counter,
            LANE,
            "Queued requests that became dead, or were discarded",
        ),
        row("beamline_queue_in_flight", Gauge, &[], "Deliveries in flight"),
        row("beamline_queue_reserved_bytes", Gauge, &[], "Bytes promised to requests that are being read"),
        row("beamline_queue_receipts", Gauge, &[], "Receipts of requests that ended"),
        row("beamline_queue_refused_total", Counter, &[], "Requests that the queue refused"),
        row(
            "beamline_queue_commits_total",
            Counter,
            &[],
            "Groups that the queue committed: each is one fsync",
        ),
        row(
            "beamline_modules_refused_total",
            Counter,
            &["limit"],
            "Uploaded modules that were refused for a limit",
        ),
        row(
            "beamline_filter_failures_total",
            Counter,
            &["tenant", "filter", "reason"],
            "Calls of filters that failed",
        ),
        row(
            "beamline_limits_crossed_total",
            Counter,
            &["tenant", "filter", "limit"],
            "How often filters crossed limits",
        ),
        row(
            "beamline_pinned_instances",
            Gauge,
            &["tenant"],
            "Instances that a tenant's requests hold, of filters with pin_instance",
        ),
        row(
            "beamline_pinned_refused_total",
            Counter,
            &["tenant"],
            "Calls of such filters that were refused because there was no room for an instance",
        ),
        row("beamline_guest_series", Gauge, &["tenant"], "Series that a tenant's filters made"),
        row(
            "beamline_guest_folded_total",
            Counter,
            &["tenant"],
            "Updates that a tenant's filters made beyond their bound of series or names",
        ),
    ]
};

/// Text under construction.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

impl Exposition {
    /// The media type of the text.
    pub const CONTENT_TYPE: &'static str = "text/plain; version=0.0.4; charset=utf-8";

    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes one of the node's own families: each sample has the values of the row's labels and its own.
    ///
    /// # Panics
    /// Where `name` is no row of [`METRICS`], or a sample has another number of labels than it.
    pub fn family<'a, V: Display>(
        &mut self,
        name: &str,
        samples: impl IntoIterator<Item = (Vec<&'a str>, V)>,
    ) {
        let row = METRICS.iter().find(|row| row.name == name).expect("a row of METRICS");
        self.head(row.name, row.kind, row.help);
        for (values, value) in samples {
            assert_eq!(values.len(), row.labels.len(), "{name} has the labels {:?}", row.labels);
            let labels = labels(row.labels.iter().copied().zip(values));
            self.sample(row.name, &labels, value);
        }
    }

    /// The lines before a family's samples.
    pub(super) fn head(&mut self, name: &str, kind: MetricKind, help: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}.\n# TYPE {name} {}", kind.as_str());
    }

    /// One sample. `labels` is written as it is.
    pub(super) fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = match labels {
            "" => writeln!(self.text, "{name} {value}"),
            labels => writeln!(self.text, "{name}{{{labels}}} {value}"),
        };
    }

    /// The text.
    pub fn finish(self) -> String {
        self.text
    }
}

/// Labels as the format writes them, without the braces.
pub(super) fn labels<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut out = String::new();
    for (name, value) in pairs {
        let separator = if out.is_empty() { "" } else { "," };
        let _ = write!(out, "{separator}{name}=\"");
        for c in value.chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                c => out.push(c),
            }
        }
        out.push('"');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_written_as_the_format_wants_it() {
        let mut out = Exposition::new();
        out.family("beamline_queue_records", [(vec!["acme", "a\"b\\c\nd"], 3)]);
        out.family("beamline_node_ready", [(vec![], 1)]);
        let expected = "\
            # HELP beamline_queue_records Queued requests that wait or are being delivered.\n\
            # TYPE beamline_queue_records gauge\n\
            beamline_queue_records{tenant=\"acme\",upstream=\"a\\\"b\\\\c\\nd\"} 3\n\
            # HELP beamline_node_ready 1 where new traffic should come here, as /readyz says.\n\
            # TYPE beamline_node_ready gauge\n\
            beamline_node_ready 1\n";
        assert_eq!(out.finish(), expected);
    }

    #[test]
    fn the_reference_page_has_every_family() {
        let page = include_str!("../../../../docs/reference/metrics.md");
        for row in &METRICS {
            let labels = row.labels.iter().map(|l| format!("`{l}`")).collect::<Vec<_>>().join(", ");
            let line = format!("| `{}` | {} | {labels} | {} |", row.name, row.kind.as_str(), row.help);
            assert!(page.contains(&line), "docs/reference/metrics.md lacks: {line}");
            let suffix = row.name.ends_with("_total");
            assert_eq!(suffix, row.kind == MetricKind::Counter, "{} by the format's conventions", row.name);
        }
        let shown = page.lines().filter(|line| line.starts_with("| `beamline_")).count();
        assert_eq!(shown, METRICS.len(), "docs/reference/metrics.md has a family that is not exported");
    }
}

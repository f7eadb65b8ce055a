//! What one tenant's filters count: families by name, series by labels, all bounded.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use serde_json::json;

use super::{
    exposition::{Exposition, MetricKind, labels},
    tally::Tally,
};
use crate::{RequestId, telemetry::Events};

/// Series of one tenant on a node. Updates of further ones go to one series for each name, with the label `overflow`.
const MAX_SERIES: u64 = 1000;
/// Bytes of `/metrics` that the series of one tenant are shown as, and those of all tenants of a node, so that no number of
/// them makes it too large to be read. What is beyond goes to the series `overflow`, for which there is room since its name
/// came up, or is refused with its name.
const MAX_BYTES: u64 = 4 << 20;
const MAX_BYTES_OF_ALL: u64 = 32 << 20;
/// A line without its name and labels: what the format has around them, the ends of names, `le`, a number of 64 bits.
const LINE_BYTES: u64 = 64;
/// What a sum may have beyond that: a number with as many digits as a float can be written with.
const SUM_BYTES: u64 = 330;
const HISTOGRAM_LINES: u64 = BOUNDS.len() as u64 + 3;
/// A family's head without its name.
const HEAD_BYTES: u64 = 128;
/// Names of one tenant. Updates of further ones are refused.
const MAX_NAMES: usize = 64;
const MAX_NAME: usize = 64;
const MAX_LABELS: usize = 4;
const MAX_LABEL_NAME: usize = 32;
const MAX_LABEL_VALUE: usize = 64;
/// Labels that the host sets, or that mean something in the format.
const RESERVED_LABELS: [&str; 5] = ["tenant", "filter", "overflow", "le", "quantile"];
/// Ends of names that the format gives a meaning.
const RESERVED_ENDS: [&str; 6] = ["_total", "_bucket", "_sum", "_count", "_created", "_info"];
/// Upper bounds of the buckets of every histogram, before the one without a bound.
const BOUNDS: [f64; 19] = [
    0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0,
    500.0, 1000.0,
];

/// What is done to a series.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Update {
    /// Adds to a counter.
    Count(u64),
    /// Adds a value to a histogram.
    Observe(f64),
}

/// Where an update went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// To its own series.
    Itself,
    /// To the series of what is beyond the bounds.
    Folded,
}

/// Why an update was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricRefusal {
    /// Not 1 to 64 lower-case letters, digits and underscores, a letter first, without an end that the format gives a meaning.
    InvalidName,
    /// More than 4 labels, one twice, one that is reserved, or one that is too long or has other characters.
    InvalidLabel,
    /// A value that is negative or no number.
    InvalidValue,
    /// The name is that of a metric of the other kind.
    OtherKind,
    /// The tenant has 64 names already, or there is no room to show one more.
    TooManyNames,
}

/// What one tenant's filters count on this node.
pub struct GuestMetrics {
    tenant: Box<str>,
    // Written when a name comes up first, at most 64 times.
    families: RwLock<BTreeMap<Box<str>, Arc<Family>>>,
    series: AtomicU64,
    folded: AtomicU64,
    failures: Tally,
    crossings: Tally,
    events: Events,
    /// Bytes that these series are shown as at most, and those of all tenants.
    bytes: AtomicU64,
    bytes_of_all: Arc<AtomicU64>,
}

struct Family {
    kind: MetricKind,
    /// By labels as they are shown. A mutex, held for one look-up, or for a copy of at most [`MAX_SERIES`] and one.
    series: Mutex<HashMap<Arc<str>, Series>>,
}

#[derive(Clone)]
enum Series {
    Counter(u64),
    Histogram(Box<Histogram>),
}

#[derive(Clone, Default)]
struct Histogram {
    /// By bucket, not cumulated; the last is without a bound.
    counts: [u64; BOUNDS.len() + 1],
    sum: f64,
}

impl GuestMetrics {
    pub(super) fn new(tenant: &str, bytes_of_all: &Arc<AtomicU64>, events: Events) -> Self {
        Self {
            tenant: tenant.into(),
            families: RwLock::default(),
            series: AtomicU64::new(0),
            folded: AtomicU64::new(0),
            failures: Tally::default(),
            crossings: Tally::default(),
            events,
            bytes: AtomicU64::new(0),
            bytes_of_all: Arc::clone(bytes_of_all),
        }
    }

    /// A call of a filter failed, for the reason of this token.
    pub fn failed(&self, filter: &str, reason: &'static str) {
        self.failures.add(filter, reason, Instant::now());
    }

    /// A filter crossed the limit of this name, in this revision and for this request: counted, and told as an event at most
    /// every 10 s.
    pub fn crossed(&self, filter: &str, limit: &'static str, revision: u64, request: RequestId) {
        let Some(times) = self.crossings.add(filter, limit, Instant::now()) else { return };
        let fields = json!({
            "tenant.id": &*self.tenant,
            "beamline.revision": revision,
            "filter": filter,
            "limit": limit,
            "times": times,
            "request.id": request.to_string(),
        });
        self.events.write("limit.crossed", fields);
    }

    /// Does what a filter asks for.
    ///
    /// # Errors
    /// [`MetricRefusal`]; nothing is counted then.
    pub fn update(
        &self,
        filter: &str,
        name: &str,
        more: &[(String, String)],
        update: Update,
    ) -> Result<Counted, MetricRefusal> {
        if !is_name(name) {
            return Err(MetricRefusal::InvalidName);
        }
        if !are_labels(more) {
            return Err(MetricRefusal::InvalidLabel);
        }
        if matches!(update, Update::Observe(value) if !value.is_finite() || value < 0.0) {
            return Err(MetricRefusal::InvalidValue);
        }
        let family = self.family(name, update)?;
        let own = [("tenant", &*self.tenant), ("filter", filter)];
        let key = labels(own.into_iter().chain(more.iter().map(|(n, v)| (n.as_str(), v.as_str()))));
        let mut series = family.lock();
        if let Some(series) = series.get_mut(&*key) {
            series.update(update);
            return Ok(Counted::Itself);
        }
        let (key, counted) = if self.takes_series(shown_bytes(name, &key, family.kind)) {
            (key, Counted::Itself)
        } else {
            self.folded.fetch_add(1, Ordering::Relaxed);
            (self.overflow(), Counted::Folded)
        };
        series.entry(key.into()).or_insert_with(|| Series::new(update)).update(update);
        Ok(counted)
    }

    /// The labels of the series of what is folded.
    fn overflow(&self) -> String {
        labels([("tenant", &*self.tenant), ("overflow", "true")])
    }

    /// Takes room for one series more, shown as so many bytes, where there is any.
    fn takes_series(&self, bytes: u64) -> bool {
        if !take(&self.series, 1, MAX_SERIES) {
            return false;
        }
        let takes = self.takes_bytes(bytes);
        if !takes {
            self.series.fetch_sub(1, Ordering::Relaxed);
        }
        takes
    }

    fn takes_bytes(&self, bytes: u64) -> bool {
        if !take(&self.bytes, bytes, MAX_BYTES) {
            return false;
        }
        let takes = take(&self.bytes_of_all, bytes, MAX_BYTES_OF_ALL);
        if !takes {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        takes
    }

    /// The family of this name, made where there is none.
    fn family(&self, name: &str, update: Update) -> Result<Arc<Family>, MetricRefusal> {
        let kind = match update {
            Update::Count(_) => MetricKind::Counter,
            Update::Observe(_) => MetricKind::Histogram,
        };
        let of_kind = |family: &Arc<Family>| {
            if family.kind == kind { Ok(Arc::clone(family)) } else { Err(MetricRefusal::OtherKind) }
        };
        if let Some(family) = self.families.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return of_kind(family);
        }
        let mut families = self.families.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(family) = families.get(name) {
            return of_kind(family);
        }
        let bytes = HEAD_BYTES + 2 * name.len() as u64 + shown_bytes(name, &self.overflow(), kind);
        if families.len() >= MAX_NAMES || !self.takes_bytes(bytes) {
            self.folded.fetch_add(1, Ordering::Relaxed);
            return Err(MetricRefusal::TooManyNames);
        }
        let family = Arc::new(Family { kind, series: Mutex::default() });
        families.insert(name.into(), Arc::clone(&family));
        Ok(family)
    }
}

impl Drop for GuestMetrics {
    fn drop(&mut self) {
        self.bytes_of_all.fetch_sub(*self.bytes.get_mut(), Ordering::Relaxed);
    }
}

/// The most bytes that a series is shown as.
fn shown_bytes(name: &str, labels: &str, kind: MetricKind) -> u64 {
    let line = (name.len() + labels.len()) as u64 + LINE_BYTES;
    match kind {
        MetricKind::Counter | MetricKind::Gauge => line,
        MetricKind::Histogram => line * HISTOGRAM_LINES + SUM_BYTES,
    }
}

/// Adds to a balance, unless it would grow beyond `most`.
fn take(balance: &AtomicU64, more: u64, most: u64) -> bool {
    let room = |held: u64| (held + more <= most).then_some(held + more);
    balance.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_ok()
}

impl Family {
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Series>> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The series as they are now, by their labels: what is made of them holds up no filter.
    fn copied(&self) -> Vec<(Arc<str>, Series)> {
        let copy = |(labels, series): (&Arc<str>, &Series)| (Arc::clone(labels), series.clone());
        let mut series: Vec<_> = self.lock().iter().map(copy).collect();
        series.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        series
    }
}

impl Series {
    fn new(update: Update) -> Self {
        match update {
            Update::Count(_) => Self::Counter(0),
            Update::Observe(_) => Self::Histogram(Box::default()),
        }
    }

    fn update(&mut self, update: Update) {
        match (self, update) {
            (Self::Counter(count), Update::Count(by)) => *count = count.saturating_add(by),
            (Self::Histogram(histogram), Update::Observe(value)) => {
                let bucket = BOUNDS.iter().position(|bound| value <= *bound).unwrap_or(BOUNDS.len());
                histogram.counts[bucket] += 1;
                histogram.sum += value;
            }
            (Self::Counter(_), Update::Observe(_)) | (Self::Histogram(_), Update::Count(_)) => {
                debug_assert!(false, "a family has one kind");
            }
        }
    }

    fn write(&self, name: &str, labels: &str, out: &mut Exposition) {
        match self {
            Self::Counter(count) => out.sample(name, labels, count),
            Self::Histogram(histogram) => {
                let mut total = 0;
                for (i, count) in histogram.counts.iter().enumerate() {
                    total += count;
                    let bound = BOUNDS.get(i).map_or_else(|| "+Inf".to_owned(), f64::to_string);
                    out.sample(&format!("{name}_bucket"), &format!("{labels},le=\"{bound}\""), total);
                }
                out.sample(&format!("{name}_sum"), labels, histogram.sum);
                out.sample(&format!("{name}_count"), labels, total);
            }
        }
    }
}

/// Writes a family of what was counted by filter.
fn by_filter(
    name: &str,
    guests: &[Arc<GuestMetrics>],
    tally: impl Fn(&GuestMetrics) -> &Tally,
    out: &mut Exposition,
) {
    let counts: Vec<_> = guests.iter().map(|guest| (&*guest.tenant, tally(guest).all())).collect();
    let samples = counts.iter().flat_map(|(tenant, counts)| {
        counts.iter().map(move |((filter, what), n)| (vec![*tenant, filter, *what], *n))
    });
    out.family(name, samples);
}

/// Writes the families of all tenants: each family once, by name and kind, as the format wants it.
pub(super) fn write(guests: &[Arc<GuestMetrics>], out: &mut Exposition) {
    let tenant = |guest: &'_ Arc<GuestMetrics>| guest.tenant.to_string();
    let by = |figure: fn(&GuestMetrics) -> &AtomicU64| {
        guests.iter().map(|g| (tenant(g), figure(g).load(Ordering::Relaxed))).collect::<Vec<_>>()
    };
    let (series, folded) = (by(|g| &g.series), by(|g| &g.folded));
    by_filter("beamline_filter_failures_total", guests, |guest| &guest.failures, out);
    by_filter("beamline_limits_crossed_total", guests, |guest| &guest.crossings, out);
    out.family("beamline_guest_series", series.iter().map(|(t, n)| (vec![t.as_str()], *n)));
    out.family("beamline_guest_folded_total", folded.iter().map(|(t, n)| (vec![t.as_str()], *n)));
    let mut families = BTreeMap::<(String, &'static str), Vec<Arc<Family>>>::new();
    for guest in guests {
        for (name, family) in guest.families.read().unwrap_or_else(PoisonError::into_inner).iter() {
            let name = match family.kind {
                MetricKind::Counter => format!("beamline_guest_{name}_total"),
                MetricKind::Gauge | MetricKind::Histogram => format!("beamline_guest_{name}"),
            };
            families.entry((name, family.kind.as_str())).or_default().push(Arc::clone(family));
        }
    }
    for ((name, _), families) in families {
        out.head(&name, families[0].kind, "Counted by filters");
        for family in families {
            for (labels, series) in family.copied() {
                series.write(&name, &labels, out);
            }
        }
    }
}

fn is_word(text: &str, max: usize) -> bool {
    text.len() <= max
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

fn is_name(name: &str) -> bool {
    is_word(name, MAX_NAME) && !RESERVED_ENDS.iter().any(|end| name.ends_with(end)) && !is_own(name)
}

/// Names that are the node's, once the prefix is before them.
fn is_own(name: &str) -> bool {
    ["series", "folded"].contains(&name)
}

fn are_labels(labels: &[(String, String)]) -> bool {
    labels.len() <= MAX_LABELS
        && labels.iter().enumerate().all(|(i, (name, value))| {
            is_word(name, MAX_LABEL_NAME)
                && value.len() <= MAX_LABEL_VALUE
                && !RESERVED_LABELS.contains(&name.as_str())
                && labels[..i].iter().all(|(other, _)| other != name)
        })
}

impl fmt::Debug for GuestMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestMetrics").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(metrics: GuestMetrics) -> String {
        let mut out = Exposition::new();
        write(&[Arc::new(metrics)], &mut out);
        out.finish()
    }

    fn metrics() -> GuestMetrics {
        GuestMetrics::new("acme", &Arc::default(), Events::default())
    }

    #[test]
    fn all_tenants_together_are_shown_in_a_bounded_number_of_bytes() {
        let all = Arc::new(AtomicU64::new(0));
        let [first, second] =
            ["first", "second"].map(|name| GuestMetrics::new(name, &all, Events::default()));
        second.update("f", "hits", &[], Update::Count(1)).unwrap();
        let held = all.load(Ordering::Relaxed);
        // Room for one name of one series, and its overflow.
        first.update("f", "hits", &[], Update::Count(1)).unwrap();
        let one = all.load(Ordering::Relaxed) - held;
        all.fetch_add(MAX_BYTES_OF_ALL - held - one, Ordering::Relaxed);
        let plan = [pair("plan", "a")];
        second.update("f", "hits", &plan, Update::Count(1)).unwrap();
        assert_eq!((second.series.load(Ordering::Relaxed), second.folded.load(Ordering::Relaxed)), (1, 1));
        assert_eq!(second.update("f", "more", &[], Update::Count(1)), Err(MetricRefusal::TooManyNames));
        assert_eq!(second.folded.load(Ordering::Relaxed), 2);
        assert_eq!(all.load(Ordering::Relaxed), MAX_BYTES_OF_ALL);
        drop(first);
        assert_eq!(all.load(Ordering::Relaxed), MAX_BYTES_OF_ALL - one, "given back with the tenant");
        second.update("f", "hits", &plan, Update::Count(1)).unwrap();
        assert_eq!(second.series.load(Ordering::Relaxed), 2);
        let text = shown(second);
        assert!(
            text.contains("beamline_guest_hits_total{tenant=\"second\",overflow=\"true\"} 1\n"),
            "{text}"
        );
    }

    #[test]
    fn a_tenant_is_shown_in_no_more_bytes_than_were_taken_for_it() {
        let metrics = metrics();
        let before = shown(GuestMetrics::new("acme", &Arc::default(), Events::default())).len() as u64;
        let name = |i| format!("{}_{i:02}", "n".repeat(61));
        'all: for i in 0..64 {
            for series in 0..1000 {
                // Each character is shown as two.
                let plan: Vec<_> =
                    (0..4).map(|l| pair(&format!("{}{l}", "l".repeat(31)), &"\"".repeat(64 - l))).collect();
                let plan = [&plan[..3], &[pair("series", &series.to_string())]].concat();
                let update =
                    if i % 2 == 0 { Update::Count(u64::MAX) } else { Update::Observe(f64::MAX / 1e3) };
                let done = metrics.update("f", &name(i), &plan, update);
                if metrics.folded.load(Ordering::Relaxed) > 100 {
                    break 'all;
                }
                done.unwrap();
            }
        }
        assert!(metrics.folded.load(Ordering::Relaxed) > 100);
        let (taken, own) = (metrics.bytes.load(Ordering::Relaxed), 64);
        let text = shown(metrics);
        assert!(text.len() as u64 - before <= taken + own && taken <= MAX_BYTES, "{} of {taken}", text.len());
    }

    #[test]
    fn the_reference_page_tells_the_bounds() {
        let page = include_str!("../../../../docs/reference/limits.md");
        let row = page.lines().find(|line| line.contains("| what filters count |")).unwrap();
        assert!(
            row.contains("1,000 series, 64 names and 4 MiB of `/metrics` of a tenant")
                && row.contains("32 MiB"),
            "{row}"
        );
        assert_eq!((MAX_SERIES, MAX_NAMES), (1000, 64));
        assert_eq!((MAX_BYTES, MAX_BYTES_OF_ALL), (4 << 20, 32 << 20));
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn counters_and_histograms_are_shown_with_the_hosts_labels_first() {
        let metrics = metrics();
        let plan = [pair("plan", "a\"b")];
        for _ in 0..2 {
            metrics.update("quota", "hits", &plan, Update::Count(2)).unwrap();
        }
        for value in [0.0005, 0.2, 0.25, 5000.0] {
            metrics.update("quota", "size", &[], Update::Observe(value)).unwrap();
        }
        let text = shown(metrics);
        for line in [
            "# TYPE beamline_guest_hits_total counter",
            "beamline_guest_hits_total{tenant=\"acme\",filter=\"quota\",plan=\"a\\\"b\"} 4",
            "# TYPE beamline_guest_size histogram",
            "beamline_guest_size_bucket{tenant=\"acme\",filter=\"quota\",le=\"0.001\"} 1",
            "beamline_guest_size_bucket{tenant=\"acme\",filter=\"quota\",le=\"0.1\"} 1",
            "beamline_guest_size_bucket{tenant=\"acme\",filter=\"quota\",le=\"0.25\"} 3",
            "beamline_guest_size_bucket{tenant=\"acme\",filter=\"quota\",le=\"1000\"} 3",
            "beamline_guest_size_bucket{tenant=\"acme\",filter=\"quota\",le=\"+Inf\"} 4",
            "beamline_guest_size_sum{tenant=\"acme\",filter=\"quota\"} 5000.4505",
            "beamline_guest_size_count{tenant=\"acme\",filter=\"quota\"} 4",
            "beamline_guest_series{tenant=\"acme\"} 2",
            "beamline_guest_folded_total{tenant=\"acme\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn what_the_format_or_the_host_has_a_meaning_for_is_refused() {
        let metrics = metrics();
        let count =
            |name: &str, labels: &[(String, String)]| metrics.update("f", name, labels, Update::Count(1));
        for name in
            ["", "Hits", "1st", "a-b", "a b", "é", "x_total", "x_count", "series", "folded", &"x".repeat(65)]
        {
            assert_eq!(count(name, &[]), Err(MetricRefusal::InvalidName), "{name}");
        }
        for labels in [
            vec![pair("tenant", "other")],
            vec![pair("filter", "other")],
            vec![pair("le", "1")],
            vec![pair("__x", "1")],
            vec![pair("", "1")],
            vec![pair("a", "1"), pair("a", "2")],
            vec![pair("a", &"x".repeat(65))],
            (0..5).map(|i| pair(&format!("l{i}"), "")).collect(),
        ] {
            assert_eq!(count("hits", &labels), Err(MetricRefusal::InvalidLabel), "{labels:?}");
        }
        for value in [f64::NAN, f64::INFINITY, -1.0] {
            let observed = metrics.update("f", "size", &[], Update::Observe(value));
            assert_eq!(observed, Err(MetricRefusal::InvalidValue));
        }
        count("hits", &[]).unwrap();
        assert_eq!(metrics.update("f", "hits", &[], Update::Observe(1.0)), Err(MetricRefusal::OtherKind));
    }

    #[test]
    fn beyond_the_bounds_updates_are_folded_and_counted() {
        let metrics = metrics();
        let count =
            |name: &str, id: u64| metrics.update("f", name, &[pair("id", &id.to_string())], Update::Count(1));
        for id in 0..MAX_SERIES + 5 {
            count("hits", id).unwrap();
        }
        count("hits", 0).unwrap();
        for name in 1..MAX_NAMES {
            count(&format!("more{name}"), 0).unwrap();
        }
        assert_eq!(count("one_too_many", 0), Err(MetricRefusal::TooManyNames));
        let text = shown(metrics);
        for line in [
            "beamline_guest_hits_total{tenant=\"acme\",overflow=\"true\"} 5",
            "beamline_guest_hits_total{tenant=\"acme\",filter=\"f\",id=\"0\"} 2",
            "beamline_guest_more1_total{tenant=\"acme\",overflow=\"true\"} 1",
            "beamline_guest_series{tenant=\"acme\"} 1000",
            "beamline_guest_folded_total{tenant=\"acme\"} 69",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}

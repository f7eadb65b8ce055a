//! Clients, origins and receipts held against each other.

use std::{collections::HashMap, fmt, time::Instant};

use serde_json::Value;

use super::{
    Kind, Violation,
    ledger::{End, Exchange},
    quota::{Quota, Stay, peak},
};
use crate::origin::{Mischief, Recorded};

/// How a receipt tells that the node could not read, to the end, what it had stored itself.
const OWN_COPY_GONE: [&str; 2] = ["content-lost", "request-body"];

/// What a record takes at least: this, and its body.
const RECORD_OVERHEAD: u64 = 512;

/// A request as an origin saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The id in its target.
    pub id: String,
    /// Whether its body came whole.
    pub whole: bool,
    /// The method.
    pub method: String,
    /// The body, or as much of it as came.
    pub body: Vec<u8>,
    /// Which delivery from the queue it is, from 1; none where it came from its client directly.
    pub attempt: Option<u64>,
    /// When the record of a delivery was accepted, as the delivery says: what tells its record from another.
    pub accepted: Option<String>,
    /// What the origin did to it, if it did not answer it well.
    pub mischief: Option<Mischief>,
    /// When its last byte came.
    pub came: Instant,
}

impl Arrival {
    /// Whether the origin said that it did not take it: then it may come again.
    fn was_declined(&self) -> bool {
        self.mischief == Some(Mischief::Busy)
    }

    /// A recorded request whose target has the id as its parameter `id`; none of any other.
    pub fn of(recorded: &Recorded) -> Option<Self> {
        let (_, query) = recorded.target.split_once('?')?;
        let id = query.split('&').find_map(|pair| pair.strip_prefix("id="))?;
        Some(Self {
            id: id.into(),
            whole: recorded.whole,
            method: recorded.method.clone(),
            body: recorded.body.clone(),
            attempt: recorded.headers.get("beamline-attempt").and_then(|n| n.parse().ok()),
            accepted: recorded.headers.get("beamline-accepted").map(Into::into),
            mischief: recorded.mischief,
            came: recorded.came,
        })
    }
}

/// What a receipt tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The state: `queued`, `delivering`, `held`, `delivered`, `dead`.
    pub state: String,
    /// Why it is dead.
    pub reason: Option<String>,
    /// Deliveries begun.
    pub attempts: u64,
    /// The origin's last answer.
    pub last_status: Option<u16>,
    /// Why the last delivery failed.
    pub last_error: Option<String>,
    /// Of a delivered request: whether the origin's answer came whole.
    pub response_complete: Option<bool>,
}

impl Receipt {
    /// From the node's answer.
    pub fn of(json: &Value) -> Self {
        let text = |name: &str| json[name].as_str().map(str::to_owned);
        Self {
            state: text("state").unwrap_or_else(|| format!("no state in {json}")),
            reason: text("reason"),
            attempts: json["attempts"].as_u64().unwrap_or(0),
            last_status: json["last_status"].as_u64().and_then(|status| status.try_into().ok()),
            last_error: text("last_error"),
            response_complete: json["response_complete"].as_bool(),
        }
    }

    /// Whether it will still be delivered.
    pub fn is_open(&self) -> bool {
        matches!(self.state.as_str(), "queued" | "delivering" | "held")
    }
}

/// What a run came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Requests that clients began.
    pub begun: usize,
    /// Of these, those that were cut off by their client.
    pub cut: usize,
    /// Answered `202`.
    pub acknowledged: usize,
    /// Answered by the origin while its client waited.
    pub live: usize,
    /// Answered with an error by the node.
    pub refused: usize,
    /// Of these, those for which there was no room in the queue.
    pub full: usize,
    /// Of these, those that the origin did not answer in time.
    pub timed_out: usize,
    /// Not answered, because of a crash.
    pub unanswered: usize,
    /// Answered that nobody knows whether they were stored.
    pub unconfirmed: usize,
    /// Of the unanswered, those that arrived from the queue all the same.
    pub unseen_commits: usize,
    /// Requests that were in flight at a crash: as many commits could have been unseen.
    pub in_flight_at_crashes: usize,
    /// Acknowledged and delivered.
    pub delivered: usize,
    /// Arrivals of what had arrived before.
    pub repeated: usize,
    /// Acknowledged and refused by the origin.
    pub rejected: usize,
    /// Acknowledged, and nobody knows whether they took effect.
    pub indeterminate: usize,
    /// Acknowledged and not yet delivered.
    pub open: usize,
    /// The most records that were queued at once for certain.
    pub peak_records: u64,
    /// The most bytes of them, for certain.
    pub peak_bytes: u64,
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { begun, cut, acknowledged, live, refused, unanswered, unseen_commits, .. } = self;
        let Self { in_flight_at_crashes, delivered, repeated, rejected, indeterminate, open, .. } = self;
        let Self { unconfirmed, full, timed_out, peak_records, peak_bytes, .. } = self;
        write!(
            f,
            "{begun} begun ({cut} cut off by their clients), {live} answered by the origin, {refused} refused \
             ({full} queue-full, {timed_out} upstream-timeout), \
             {unanswered} unanswered of {in_flight_at_crashes} in flight at crashes ({unseen_commits} unseen commits); \
             {acknowledged} acknowledged: {delivered} delivered, {rejected} dead (rejected), \
             {indeterminate} dead (indeterminate), {open} still queued; {repeated} repeated arrivals, {unconfirmed} unconfirmed; \
             at once at least {peak_records} records and {peak_bytes} bytes"
        )
    }
}

/// What the judge found.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Every promise that was broken.
    pub violations: Vec<Violation>,
    /// What the run came to.
    pub numbers: Numbers,
}

/// One request with everything that is known of it.
struct Case<'a> {
    exchange: &'a Exchange,
    /// Its arrivals and their places among all.
    arrivals: Vec<(usize, &'a Arrival)>,
    /// None where it has no receipt; an inner none where the node doesn't know it.
    receipt: Option<Option<&'a Receipt>>,
}

/// Judges requests. `arrivals` are in the order in which they ended at the origin; `receipts`, by the request's id, are what the
/// node tells of each request that was answered `202`: none where it doesn't know it. All of them are in a queue that has this
/// quota.
pub fn judge(
    exchanges: &[Exchange],
    arrivals: &[Arrival],
    receipts: &HashMap<String, Option<Receipt>>,
    quota: Quota,
) -> Verdict {
    let mut found = Found(Vec::new());
    let mut of_id = HashMap::<&str, Vec<(usize, &Arrival)>>::new();
    for (place, arrival) in arrivals.iter().enumerate() {
        of_id.entry(&arrival.id).or_default().push((place, arrival));
    }
    let cases: Vec<_> = exchanges
        .iter()
        .map(|exchange| {
            let id = exchange.intent.id.as_str();
            let receipt = receipts.get(id).map(Option::as_ref);
            Case { exchange, arrivals: of_id.remove(id).unwrap_or_default(), receipt }
        })
        .collect();
    for (id, arrivals) in of_id {
        found.add(
            Kind::NeverSent,
            id,
            format!("it arrived {} times, and no client began it", arrivals.len()),
        );
    }
    for case in &cases {
        case.arrivals_are_what_was_sent(&mut found);
        case.arrives_no_more_often_than_it_may(&mut found);
        case.is_one_record(&mut found);
        case.ended_as_it_may(&mut found);
        case.origin_answered_what_it_is_told_to_have(&mut found);
        case.receipt_is_true(&mut found);
    }
    order(&cases, &mut found);
    let numbers = count(&cases);
    holds(quota, &numbers, &mut found);
    Verdict { violations: found.0, numbers }
}

struct Found(Vec<Violation>);

impl Found {
    fn add(&mut self, kind: Kind, of: &str, how: impl Into<String>) {
        self.0.push(Violation { kind, of: of.into(), how: how.into() });
    }
}

impl Case<'_> {
    fn id(&self) -> &str {
        &self.exchange.intent.id
    }

    /// Its arrivals, and its receipt.
    fn story(&self) -> String {
        let arrivals: Vec<_> = self
            .arrivals
            .iter()
            .map(|(place, a)| {
                format!("{place}: attempt {:?}, whole {}, {:?}", a.attempt, a.whole, a.mischief)
            })
            .collect();
        let safe = if self.exchange.intent.repeat_safe { "safe" } else { "not safe" };
        format!(
            "{safe} to repeat; {}; {:?}; {:?}; {:?}",
            arrivals.join("; "),
            self.exchange.end,
            self.exchange.error,
            self.receipt
        )
    }

    fn accepted(&self) -> bool {
        self.exchange.end == End::Answered(202)
    }

    fn whole(&self) -> impl Iterator<Item = (usize, &Arrival)> {
        self.arrivals.iter().copied().filter(|(_, arrival)| arrival.whole)
    }

    fn deliveries(&self) -> impl Iterator<Item = &Arrival> {
        self.whole().map(|(_, arrival)| arrival).filter(|arrival| arrival.attempt.is_some())
    }

    /// Committed, though nobody saw its `202`.
    fn is_unseen_commit(&self) -> bool {
        matches!(self.exchange.end, End::Unanswered | End::Unconfirmed) && self.deliveries().next().is_some()
    }

    /// When it was queued for certain. It was stored before its `202` came, or before its first delivery arrived where nobody
    /// saw that; it ended after its last delivery arrived, and a dead letter stays.
    fn stay(&self) -> Option<Stay> {
        let deliveries = || self.arrivals.iter().filter_map(|(_, a)| Some((a.attempt?, a.came)));
        let from = self.exchange.acknowledged.or_else(|| deliveries().map(|(_, came)| came).min())?;
        let stays = self.receipt.flatten().is_some_and(|receipt| receipt.state != "delivered");
        // What never arrived ended, if it did, at any time. Of several arrivals of one delivery the first may be the one.
        let last = deliveries().map(|(attempt, came)| (std::cmp::Reverse(attempt), came)).min();
        let until = if stays { None } else { Some(last.map_or(from, |(_, came)| came)) };
        Some(Stay { from, until, bytes: RECORD_OVERHEAD + self.exchange.intent.body.len() as u64 })
    }

    fn arrivals_are_what_was_sent(&self, found: &mut Found) {
        let Exchange { intent, sent_whole, end, .. } = self.exchange;
        for (_, arrival) in &self.arrivals {
            if *end == End::NeverLeft {
                found.add(Kind::NeverSent, self.id(), "it arrived, and its client had no connection");
            } else if arrival.whole && !sent_whole {
                found.add(
                    Kind::NeverSent,
                    self.id(),
                    "it arrived whole, and its client was cut off in mid-body",
                );
            }
            if arrival.method != intent.method {
                let how = format!("expected the method {}; found {}", intent.method, arrival.method);
                found.add(Kind::Altered, self.id(), how);
            }
            let differs_at = arrival.body.iter().zip(&intent.body).position(|(found, sent)| found != sent);
            let (expected, came) = (intent.body.len(), arrival.body.len());
            if let Some(at) = differs_at {
                found.add(Kind::Altered, self.id(), format!("its body differs from byte {at} on"));
            } else if came > expected || arrival.whole && came < expected {
                found.add(
                    Kind::Altered,
                    self.id(),
                    format!("expected {expected} bytes of body; found {came}"),
                );
            }
        }
    }

    fn arrives_no_more_often_than_it_may(&self, found: &mut Found) {
        let times = self.arrivals.iter().filter(|(_, arrival)| !arrival.was_declined()).count();
        if times > 1 && !self.exchange.intent.repeat_safe {
            found.add(
                Kind::Repeated,
                self.id(),
                format!("it is not safe to repeat and arrived {times} times"),
            );
        }
        let (mut last, mut times) = (0, 0);
        for (_, arrival) in &self.arrivals {
            let Some(attempt) = arrival.attempt else { continue };
            times = if attempt == last { times + 1 } else { 1 };
            // Within one delivery, what is safe to repeat goes once more where a kept connection broke before an answer.
            let again = attempt == last && times <= 2 && self.exchange.intent.repeat_safe;
            if attempt <= last && !again {
                found.add(
                    Kind::AttemptRepeated,
                    self.id(),
                    format!("attempt {attempt} came after {last} ({})", self.story()),
                );
            }
            last = attempt;
        }
    }

    fn is_one_record(&self, found: &mut Found) {
        match &self.exchange.again {
            // The node may not know at the moment, and says so.
            None | Some((500.., _)) => {}
            Some((202, location)) if *location == self.exchange.receipt => {}
            Some((status, _)) => {
                let how = format!(
                    "sent again under its key it was answered {status} as another ({})",
                    self.story()
                );
                found.add(Kind::StoredTwice, self.id(), how);
            }
        }
        let mut records: Vec<_> = self.arrivals.iter().filter_map(|(_, a)| a.accepted.as_deref()).collect();
        records.sort_unstable();
        records.dedup();
        if records.len() > 1 {
            let how =
                format!("deliveries came of records accepted at {} ({})", records.join(", "), self.story());
            found.add(Kind::StoredTwice, self.id(), how);
        }
    }

    fn ended_as_it_may(&self, found: &mut Found) {
        let Exchange { sent_whole, end, crash, disk_failed, receipt, .. } = self.exchange;
        match end {
            End::Answered(202) => {
                if !sent_whole {
                    found.add(Kind::AcceptedInPart, self.id(), "it was answered 202 and was never whole");
                }
                if receipt.is_none() {
                    found.add(Kind::FalseReceipt, self.id(), "its 202 has no Location");
                }
            }
            End::Answered(status) => {
                if self.deliveries().next().is_some() {
                    let how =
                        format!("it was answered {status} and delivered from the queue ({})", self.story());
                    found.add(Kind::DeliveredThoughRefused, self.id(), how);
                }
            }
            // Who goes away in mid-body gets no answer.
            End::Unanswered if *sent_whole && crash.is_none() => {
                found.add(Kind::Unanswered, self.id(), "it got no answer while the node ran");
            }
            End::Open => found.add(Kind::Unanswered, self.id(), "its client never told how it ended"),
            End::Unconfirmed if !disk_failed && crash.is_none() => {
                let how = "it was told that nobody knows whether it was stored, while the node ran and its disk worked";
                found.add(Kind::UnconfirmedWithoutFault, self.id(), how);
            }
            End::Unanswered | End::NeverLeft | End::Unconfirmed => {}
        }
    }

    /// A good answer that is no `202` is the origin's, to a request that came to it from its client.
    fn origin_answered_what_it_is_told_to_have(&self, found: &mut Found) {
        let End::Answered(status @ (200 | 201 | 203..300)) = self.exchange.end else { return };
        let answers = self.exchange.intent.origin_answers;
        let gave = |a: &Arrival| {
            a.attempt.is_none() && matches!(a.mischief, None | Some(Mischief::Slow(_) | Mischief::Cut))
        };
        let how = if status != answers {
            format!("its origin answers {answers}; found {status}")
        } else if self.whole().any(|(_, arrival)| gave(arrival)) {
            return;
        } else {
            format!("it was answered {status}, and its origin did not answer it so ({})", self.story())
        };
        found.add(Kind::NotItsOrigins, self.id(), how);
    }

    /// Whether the origin gave the whole of its answer to the last delivery; none where it gave no good one.
    fn answer_was_whole(&self) -> Option<bool> {
        match self.deliveries().last()?.mischief {
            None | Some(Mischief::Slow(_)) => Some(true),
            Some(Mischief::Cut) => Some(false),
            Some(Mischief::Status(_) | Mischief::Busy | Mischief::Reset | Mischief::Hang(_)) => None,
        }
    }

    fn receipt_is_true(&self, found: &mut Found) {
        if !self.accepted() {
            return;
        }
        let Some(Some(receipt)) = self.receipt else {
            found.add(Kind::Lost, self.id(), "it was answered 202, and its receipt is unknown");
            return;
        };
        if receipt.last_error.as_deref().is_some_and(|error| OWN_COPY_GONE.contains(&error)) {
            found.add(Kind::ContentLost, self.id(), format!("its receipt tells so: {receipt:?}"));
            return;
        }
        let intent = &self.exchange.intent;
        let arrived = self.deliveries().count();
        let answers = intent.origin_answers;
        let taken = (200..300).contains(&answers);
        let lie = match (receipt.state.as_str(), receipt.reason.as_deref()) {
            _ if receipt.attempts
                < self.arrivals.iter().filter_map(|(_, a)| a.attempt).max().unwrap_or(0) =>
            {
                Some("more attempts arrived than it counts")
            }
            ("delivered", None) if arrived == 0 => Some("it never arrived from the queue"),
            ("delivered", None) if !taken => Some("its origin takes it never"),
            ("delivered", None) if receipt.last_status != Some(answers) => {
                Some("its origin answers otherwise")
            }
            ("delivered", None) if self.answer_was_whole().is_none() => {
                Some("its origin did not answer the last delivery well")
            }
            ("delivered", None) if receipt.response_complete != self.answer_was_whole() => {
                Some("its origin's answer was otherwise whole or cut off")
            }
            ("dead", Some("rejected")) if arrived == 0 => Some("it never arrived from the queue"),
            ("dead", Some("rejected")) if taken => Some("its origin takes it always"),
            ("dead", Some("indeterminate")) if intent.repeat_safe => Some("it is safe to repeat"),
            ("dead", Some("indeterminate")) if receipt.attempts == 0 => Some("it was never tried"),
            ("delivered", None) | ("dead", Some("rejected" | "indeterminate")) => None,
            ("queued" | "delivering" | "held", None) => None,
            _ => Some("no such end was to be expected"),
        };
        if let Some(but) = lie {
            found.add(Kind::FalseReceipt, self.id(), format!("{but}, but its receipt tells {receipt:?}"));
        }
        if receipt.state == "queued"
            && !intent.repeat_safe
            && self.arrivals.iter().any(|(_, a)| !a.was_declined())
        {
            found.add(Kind::WillRepeat, self.id(), "it arrived, is not safe to repeat, and is still queued");
        }
    }
}

/// Of one key, whatever was begun after something was accepted arrives after it.
fn order(cases: &[Case<'_>], found: &mut Found) {
    // Of each key, the latest arrival of what was accepted so far.
    let mut latest = HashMap::<&str, (usize, &Case<'_>)>::new();
    for case in cases {
        let Some(key) = case.exchange.intent.ordering_key.as_deref() else { continue };
        let places: Vec<_> = case.whole().map(|(place, _)| place).collect();
        let (Some(first), Some(last)) = (places.iter().min(), places.iter().max()) else { continue };
        if let Some((before, earlier)) = latest.get(key)
            && first < before
        {
            let how = format!(
                "{} arrived before {}, which was accepted before it was sent: {} and {}",
                case.id(),
                earlier.id(),
                case.story(),
                earlier.story()
            );
            found.add(Kind::OutOfOrder, key, how);
        }
        if case.accepted() || case.is_unseen_commit() {
            let entry = latest.entry(key).or_insert((*last, case));
            if *last > entry.0 {
                *entry = (*last, case);
            }
        }
    }
}

fn holds(quota: Quota, n: &Numbers, found: &mut Found) {
    for (what, most, found_at_once) in
        [("records", quota.records, n.peak_records), ("bytes", quota.bytes, n.peak_bytes)]
    {
        if found_at_once > most {
            let how =
                format!("expected at most {most} {what} at once; found at least {found_at_once} for certain");
            found.add(Kind::QuotaExceeded, "the queue", how);
        }
    }
}

fn count(cases: &[Case<'_>]) -> Numbers {
    let most = peak(&cases.iter().filter_map(Case::stay).collect::<Vec<_>>());
    let (peak_records, peak_bytes) = (most.records, most.bytes);
    let mut n = Numbers { begun: cases.len(), peak_records, peak_bytes, ..Numbers::default() };
    for case in cases {
        let exchange = case.exchange;
        let says = |problem: &str| {
            let error = exchange.error.as_deref().unwrap_or_default();
            usize::from(error.contains(&format!("urn:beamline:problem:{problem}\"")))
        };
        n.full += says("queue-full");
        n.timed_out += says("upstream-timeout");
        n.cut +=
            usize::from(!exchange.sent_whole && exchange.end != End::NeverLeft && exchange.crash.is_none());
        n.in_flight_at_crashes += usize::from(exchange.crash.is_some() && exchange.end != End::NeverLeft);
        n.repeated += case.whole().count().saturating_sub(1);
        match exchange.end {
            End::Answered(202) => n.acknowledged += 1,
            End::Answered(status) if status == exchange.intent.origin_answers => n.live += 1,
            End::Answered(_) => n.refused += 1,
            End::Unanswered if exchange.crash.is_some() => {
                n.unanswered += 1;
                n.unseen_commits += usize::from(case.is_unseen_commit());
            }
            End::Unconfirmed => n.unconfirmed += 1,
            End::Unanswered | End::NeverLeft | End::Open => {}
        }
        if let (true, Some(Some(receipt))) = (case.accepted(), case.receipt) {
            match (receipt.state.as_str(), receipt.reason.as_deref()) {
                ("delivered", _) => n.delivered += 1,
                ("dead", Some("rejected")) => n.rejected += 1,
                ("dead", Some("indeterminate")) => n.indeterminate += 1,
                _ => n.open += 1,
            }
        }
    }
    n
}

/// Violations by kind, for tests of the judge.
#[cfg(test)]
pub(super) fn kinds(violations: &[Violation]) -> std::collections::BTreeMap<Kind, usize> {
    let mut kinds = std::collections::BTreeMap::new();
    violations.iter().for_each(|v| *kinds.entry(v.kind).or_default() += 1);
    kinds
}

#[cfg(test)]
mod tests;

//! What an outcome means: for its record, and for the upstream as a whole. The table of record states, as code.

use std::time::Duration;

use super::Outcome;
use crate::{log::Note, record::DeadReason};

/// What becomes of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Delivered {
        response_complete: bool,
    },
    Dead(DeadReason),
    /// Tried again when the upstream can be reached; the record itself is not to blame.
    AgainWithUpstream,
    /// Tried again after a back-off of its own, though it is not to blame.
    AgainUnblamed,
    /// Tried again after its own back-off.
    AgainAfterBackoff,
    /// Tried again after what the origin asked for.
    AgainAfter(Duration),
    Hold,
}

/// What it says about the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bearing {
    /// It works.
    Well,
    /// It answered that it is in trouble, or broke off. A few of these in a row mean that it is down.
    Troubled {
        retry_after: Option<Duration>,
    },
    /// It cannot be reached.
    Down,
    /// Nothing: it was the record's own fault.
    Silent,
    Missing,
}

/// The state table: 2xx is delivered; 3xx, which is never followed, and other 4xx are dead; what may be repeated is.
pub(super) fn decide(outcome: &Outcome, repeat_safe: bool) -> Decision {
    let (status, retry_after) = match outcome {
        Outcome::UpstreamMissing => return Decision::Hold,
        Outcome::Unsendable { .. } => return Decision::Dead(DeadReason::Rejected),
        Outcome::NotSent { .. } => return Decision::AgainWithUpstream,
        Outcome::Withheld { .. } => return Decision::AgainUnblamed,
        Outcome::Broken { .. } if repeat_safe => return Decision::AgainAfterBackoff,
        Outcome::Broken { .. } => return Decision::Dead(DeadReason::Indeterminate),
        Outcome::Answered { status: 200..=299, complete, .. } => {
            return Decision::Delivered { response_complete: *complete };
        }
        Outcome::Answered { status, retry_after, .. } => (*status, *retry_after),
    };
    let again = retry_after.map_or(Decision::AgainAfterBackoff, Decision::AgainAfter);
    match status {
        // The origin did not take it, and says so.
        425 | 429 => again,
        503 if retry_after.is_some() => again,
        408 | 500.. | 0..=199 if repeat_safe => again,
        // 5xx: the origin may have taken it before it failed. 1xx and beyond 599: not an answer.
        500.. | 0..=199 => Decision::Dead(DeadReason::Indeterminate),
        _ => Decision::Dead(DeadReason::Rejected),
    }
}

pub(super) fn bearing(outcome: &Outcome) -> Bearing {
    match outcome {
        Outcome::UpstreamMissing => Bearing::Missing,
        Outcome::Unsendable { .. } => Bearing::Silent,
        Outcome::NotSent { .. } => Bearing::Down,
        Outcome::Withheld { .. } | Outcome::Broken { .. } => Bearing::Troubled { retry_after: None },
        // Of all that wait, 429 may mean this one's account only: it holds the record, not its neighbours.
        Outcome::Answered { status: 429, .. } => Bearing::Troubled { retry_after: None },
        Outcome::Answered { status: 500.., retry_after, .. } => {
            Bearing::Troubled { retry_after: *retry_after }
        }
        Outcome::Answered { .. } => Bearing::Well,
    }
}

/// What a receipt says of it.
pub(super) fn note(outcome: &Outcome) -> Note {
    match outcome {
        Outcome::Answered { status, complete: true, .. } => Note { status: Some(*status), error: None },
        Outcome::Answered { status, complete: false, .. } => {
            Note { status: Some(*status), error: Some("response-incomplete".into()) }
        }
        Outcome::NotSent { reason }
        | Outcome::Withheld { reason }
        | Outcome::Unsendable { reason }
        | Outcome::Broken { reason } => {
            Note { status: None, error: Some(reason.chars().take(200).collect()) }
        }
        Outcome::UpstreamMissing => Note { status: None, error: Some("upstream-missing".into()) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16, retry_after: Option<u64>) -> Outcome {
        Outcome::Answered { status, retry_after: retry_after.map(Duration::from_secs), complete: true }
    }

    #[test]
    fn the_table_of_states() {
        use DeadReason::{Indeterminate, Rejected};
        use Decision::*;
        let five = Duration::from_secs(5);
        let broken = Outcome::Broken { reason: "reset".into() };
        let not_sent = Outcome::NotSent { reason: "connect-refused".into() };
        let whole = Delivered { response_complete: true };
        for (outcome, when_safe, when_not) in [
            (answered(200, None), whole, whole),
            (answered(204, None), whole, whole),
            (answered(301, None), Dead(Rejected), Dead(Rejected)),
            (answered(400, None), Dead(Rejected), Dead(Rejected)),
            (answered(404, Some(5)), Dead(Rejected), Dead(Rejected)),
            (answered(408, None), AgainAfterBackoff, Dead(Rejected)),
            (answered(425, None), AgainAfterBackoff, AgainAfterBackoff),
            (answered(429, None), AgainAfterBackoff, AgainAfterBackoff),
            (answered(429, Some(5)), AgainAfter(five), AgainAfter(five)),
            (answered(500, None), AgainAfterBackoff, Dead(Indeterminate)),
            (answered(500, Some(5)), AgainAfter(five), Dead(Indeterminate)),
            (answered(503, None), AgainAfterBackoff, Dead(Indeterminate)),
            (answered(503, Some(5)), AgainAfter(five), AgainAfter(five)),
            (answered(599, None), AgainAfterBackoff, Dead(Indeterminate)),
            (broken, AgainAfterBackoff, Dead(Indeterminate)),
            (not_sent, AgainWithUpstream, AgainWithUpstream),
            (Outcome::Withheld { reason: "denied".into() }, AgainUnblamed, AgainUnblamed),
            (Outcome::Unsendable { reason: "no request".into() }, Dead(Rejected), Dead(Rejected)),
            (Outcome::UpstreamMissing, Hold, Hold),
        ] {
            assert_eq!(decide(&outcome, true), when_safe, "{outcome:?}, safe to repeat");
            assert_eq!(decide(&outcome, false), when_not, "{outcome:?}, not safe to repeat");
        }
    }

    #[test]
    fn a_truncated_answer_is_delivered_and_says_so() {
        let truncated = Outcome::Answered { status: 200, retry_after: None, complete: false };
        assert_eq!(decide(&truncated, false), Decision::Delivered { response_complete: false });
        assert_eq!(note(&truncated).error.as_deref(), Some("response-incomplete"));
    }

    #[test]
    fn only_an_upstream_in_trouble_slows_its_lane() {
        for (status, well) in
            [(200, true), (302, true), (404, true), (425, true), (429, false), (500, false), (503, false)]
        {
            assert_eq!(bearing(&answered(status, None)) == Bearing::Well, well, "{status}");
        }
        let reason = String::new;
        assert_eq!(bearing(&Outcome::NotSent { reason: reason() }), Bearing::Down);
        assert_eq!(bearing(&Outcome::Unsendable { reason: reason() }), Bearing::Silent);
        let passing = Bearing::Troubled { retry_after: None };
        assert_eq!(bearing(&Outcome::Withheld { reason: reason() }), passing);
        assert_eq!(bearing(&answered(429, Some(60))), passing, "it holds its record, not the lane");
    }
}

//! What an outcome means: for its record, and for the upstream as a whole. The table of record states, as code.

use std::time::Duration;

use beamline_model::{OnStatus, StatusMeans};

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

/// The table of `docs/guide/degraded-mode.md`: 2xx is delivered; 3xx, which is never followed, and other 4xx are dead;
/// what may be repeated is. What the manifest says of a status goes before it.
pub(super) fn decide(outcome: &Outcome, repeat_safe: bool, on_status: &OnStatus) -> Decision {
    let (status, retry_after) = match outcome {
        Outcome::UpstreamMissing => return Decision::Hold,
        Outcome::Unsendable { .. } => return Decision::Dead(DeadReason::Rejected),
        Outcome::NotSent { .. } => return Decision::AgainWithUpstream,
        Outcome::Withheld { .. } => return Decision::AgainUnblamed,
        Outcome::Broken { .. } if repeat_safe => return Decision::AgainAfterBackoff,
        Outcome::Broken { .. } => return Decision::Dead(DeadReason::Indeterminate),
        Outcome::Answered { status, retry_after, complete, .. } => {
            if matches!(status, 200..=299) || on_status.means(*status) == Some(StatusMeans::Delivered) {
                return Decision::Delivered { response_complete: *complete };
            }
            (*status, *retry_after)
        }
    };
    let again = retry_after.map_or(Decision::AgainAfterBackoff, Decision::AgainAfter);
    match on_status.means(status) {
        Some(StatusMeans::Retry) => return again,
        Some(StatusMeans::Dead) => return Decision::Dead(DeadReason::Rejected),
        Some(StatusMeans::Delivered) | None => {}
    }
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

pub(super) fn bearing(outcome: &Outcome, on_status: &OnStatus) -> Bearing {
    let means = match outcome {
        Outcome::Answered { status, .. } => on_status.means(*status),
        _ => None,
    };
    match outcome {
        Outcome::UpstreamMissing => Bearing::Missing,
        Outcome::Unsendable { .. } => Bearing::Silent,
        Outcome::NotSent { .. } => Bearing::Down,
        Outcome::Withheld { .. } | Outcome::Broken { .. } => Bearing::Troubled { retry_after: None },
        Outcome::Answered { .. } if means == Some(StatusMeans::Delivered) => Bearing::Well,
        // Of all that wait, 429 may mean this one's account only: it holds the record, not its neighbours.
        Outcome::Answered { status: 429, .. } => Bearing::Troubled { retry_after: None },
        Outcome::Answered { status: 500.., retry_after, .. } => {
            Bearing::Troubled { retry_after: *retry_after }
        }
        // An upstream that takes nothing is spared, whatever it says.
        Outcome::Answered { .. } if means == Some(StatusMeans::Retry) => {
            Bearing::Troubled { retry_after: None }
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
        Outcome::Answered {
            status,
            retry_after: retry_after.map(Duration::from_secs),
            complete: true,
            keep: None,
        }
    }

    fn none() -> OnStatus {
        OnStatus::default()
    }

    /// The rows of the first table on the guide's page whose head begins so, as cells.
    fn page_table(head: &str) -> Vec<Vec<&'static str>> {
        let page = include_str!("../../../../docs/guide/degraded-mode.md");
        let from = page.lines().position(|line| line.starts_with(head)).expect("the page has this table");
        page.lines()
            .skip(from + 2)
            .take_while(|line| line.starts_with('|'))
            .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
            .collect()
    }

    /// As the page has it.
    fn words(decision: Decision) -> String {
        match decision {
            Decision::Delivered { .. } => "delivered".into(),
            Decision::Dead(reason) => format!("dead ({})", reason.token()),
            Decision::AgainWithUpstream
            | Decision::AgainUnblamed
            | Decision::AgainAfterBackoff
            | Decision::AgainAfter(_) => "again".into(),
            Decision::Hold => "held".into(),
        }
    }

    /// How exactly what a row says of answers means this one; 0: not at all.
    fn means(row: &str, status: u16, retry_after: bool) -> u8 {
        let class = format!("{}xx", status / 100);
        let exactness = |answer: &str| match answer.strip_prefix("other ").unwrap_or(answer) {
            "anything else" => 1,
            answer if answer == class => 2,
            answer => match answer.strip_suffix(" with `Retry-After`") {
                Some(answer) if retry_after && answer == status.to_string() => 4,
                None if answer == status.to_string() => 3,
                _ => 0,
            },
        };
        row.split(", ").map(exactness).max().unwrap_or(0)
    }

    #[test]
    fn each_answer_leads_to_what_the_guides_page_says() {
        let table = page_table("| the origin answers |");
        let mut used = std::collections::HashSet::new();
        for status in 0..=1000 {
            for retry_after in [None, Some(5)] {
                let rank = |row: &&Vec<&str>| means(row[0], status, retry_after.is_some());
                let row = table.iter().filter(|row| rank(row) > 0).max_by_key(rank).expect("each has a row");
                used.insert(row[0]);
                for (repeat_safe, word) in [(true, row[1]), (false, row[2])] {
                    let decision = decide(&answered(status, retry_after), repeat_safe, &none());
                    assert_eq!(words(decision), word, "{status}, {retry_after:?}, safe: {repeat_safe}");
                    let waits = matches!(decision, Decision::AgainAfter(_));
                    assert!(!waits || retry_after.is_some());
                }
            }
        }
        assert_eq!(used.len(), table.len(), "each row is for something: {used:?}");
    }

    #[test]
    fn what_is_no_answer_leads_to_what_the_guides_page_says() {
        let table = page_table("| there is no answer:");
        let reason = String::new;
        let outcomes = [
            ("no connection", Outcome::NotSent { reason: reason() }),
            ("broken before a response head", Outcome::Broken { reason: reason() }),
            (
                "its address is not granted, a secret or seal key is not to be had, or the stored body cannot be read",
                Outcome::Withheld { reason: reason() },
            ),
            ("no request can be made of what is stored", Outcome::Unsendable { reason: reason() }),
            ("the active revision has no such upstream", Outcome::UpstreamMissing),
        ];
        assert_eq!(table.len(), outcomes.len());
        for (row, (what, outcome)) in table.iter().zip(outcomes) {
            assert_eq!(row[0], what);
            // Nothing was answered of which a manifest could say what it means.
            let said: OnStatus = serde_json::from_str(r#"{"3xx":"dead","4xx":"dead","5xx":"dead"}"#).unwrap();
            for on_status in [none(), said] {
                assert_eq!(words(decide(&outcome, true, &on_status)), row[1], "{what}");
                assert_eq!(words(decide(&outcome, false, &on_status)), row[2], "{what}");
            }
        }
    }

    #[test]
    fn the_guides_page_has_every_end() {
        let rows: Vec<_> = page_table("| end |").into_iter().map(|row| row[0].to_owned()).collect();
        let mut ends = vec!["delivered".to_owned()];
        ends.extend(DeadReason::ALL.map(|reason| format!("dead ({})", reason.token())));
        assert_eq!(rows, ends);
    }

    #[test]
    fn what_the_manifest_says_of_a_status_goes_before_the_table() {
        let on_status: OnStatus =
            serde_json::from_str(r#"{"409":"delivered","4xx":"retry","500":"dead","3xx":"dead"}"#).unwrap();
        let again = Decision::AgainAfterBackoff;
        let rejected = Decision::Dead(DeadReason::Rejected);
        let indeterminate = Decision::Dead(DeadReason::Indeterminate);
        for (status, retry_after, safe, unsafe_) in [
            (409, None, "delivered", "delivered"),
            (404, None, "again", "again"),
            (408, None, "again", "again"),
            (500, Some(5), "dead (rejected)", "dead (rejected)"),
            (301, None, "dead (rejected)", "dead (rejected)"),
            (502, None, "again", "dead (indeterminate)"),
            (200, None, "delivered", "delivered"),
        ] {
            let decided = |safe| words(decide(&answered(status, retry_after), safe, &on_status));
            assert_eq!((decided(true), decided(false)), (safe.to_owned(), unsafe_.to_owned()), "{status}");
        }
        assert_eq!(decide(&answered(404, None), false, &on_status), again);
        let asked = Decision::AgainAfter(Duration::from_secs(5));
        assert_eq!(decide(&answered(404, Some(5)), false, &on_status), asked);
        assert_eq!(decide(&answered(500, None), true, &on_status), rejected);
        assert_eq!(decide(&answered(502, None), false, &on_status), indeterminate);
        let troubled = Bearing::Troubled { retry_after: None };
        assert_eq!(bearing(&answered(409, None), &on_status), Bearing::Well);
        assert_eq!(bearing(&answered(404, None), &on_status), troubled, "who takes nothing is spared");
        assert_eq!(bearing(&answered(500, None), &on_status), troubled);
    }

    #[test]
    fn a_truncated_answer_is_delivered_and_says_so() {
        let truncated = Outcome::Answered { status: 200, retry_after: None, complete: false, keep: None };
        assert_eq!(decide(&truncated, false, &none()), Decision::Delivered { response_complete: false });
        assert_eq!(note(&truncated).error.as_deref(), Some("response-incomplete"));
    }

    #[test]
    fn only_an_upstream_in_trouble_slows_its_lane() {
        for (status, well) in
            [(200, true), (302, true), (404, true), (425, true), (429, false), (500, false), (503, false)]
        {
            assert_eq!(bearing(&answered(status, None), &none()) == Bearing::Well, well, "{status}");
        }
        let reason = String::new;
        assert_eq!(bearing(&Outcome::NotSent { reason: reason() }, &none()), Bearing::Down);
        assert_eq!(bearing(&Outcome::Unsendable { reason: reason() }, &none()), Bearing::Silent);
        let passing = Bearing::Troubled { retry_after: None };
        assert_eq!(bearing(&Outcome::Withheld { reason: reason() }, &none()), passing);
        assert_eq!(bearing(&answered(429, Some(60)), &none()), passing, "it holds its record, not the lane");
    }
}

//! Promises that a test build can be told to break, so that a test shows that its checker would notice.
//!
//! Named in `BEAMLINE_FAULT`, and heeded only where debug assertions are compiled in: a release knows nothing of them.

use std::sync::OnceLock;

/// A promise to break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// `skip-fsync`: nothing is put on stable storage.
    SkipFsync,
    /// `answer-before-commit`: a request is told that it is stored before it is.
    AnswerBeforeCommit,
    /// `mark-after-delivery`: `delivering` is written when the answer is there.
    MarkAfterDelivery,
    /// `ignore-order`: a record does not wait for those of its key before it.
    IgnoreOrder,
    /// `ignore-keys`: a record does not have the key that its client sent.
    IgnoreKeys,
    /// `ignore-quotas`: there is room for every record.
    IgnoreQuotas,
}

impl Fault {
    /// Whether this build was told so.
    pub(crate) fn is_on(self) -> bool {
        static TOLD: OnceLock<Option<Fault>> = OnceLock::new();
        cfg!(debug_assertions) && *TOLD.get_or_init(told) == Some(self)
    }
}

fn told() -> Option<Fault> {
    match std::env::var("BEAMLINE_FAULT").ok()?.as_str() {
        "skip-fsync" => Some(Fault::SkipFsync),
        "answer-before-commit" => Some(Fault::AnswerBeforeCommit),
        "mark-after-delivery" => Some(Fault::MarkAfterDelivery),
        "ignore-order" => Some(Fault::IgnoreOrder),
        "ignore-keys" => Some(Fault::IgnoreKeys),
        "ignore-quotas" => Some(Fault::IgnoreQuotas),
        other => panic!("BEAMLINE_FAULT: expected the name of a fault; found {other:?}"),
    }
}

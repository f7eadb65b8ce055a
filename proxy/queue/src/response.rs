//! Origins' answers that are kept for the holders of receipts: for a set time, and only whole ones.

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use crate::record::Lane;

/// What a kept answer takes beside its fields and its body, in bytes: its row.
const OVERHEAD: u64 = 128;

/// What is to be kept of an answer, should it be the last one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keep {
    /// From the record's end until it is deleted.
    pub period: Duration,
    /// Fields and body; none where they did not come whole, or are too long to be kept.
    pub whole: Option<WholeResponse>,
}

/// The fields and the body of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WholeResponse {
    /// The header fields, in order, without framing, hop-by-hop fields and cookies.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body.
    pub body: Bytes,
}

/// An answer that the holder of a receipt may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptResponse {
    /// The status.
    pub status: u16,
    /// Until when it is kept, in milliseconds since the Unix epoch.
    pub until_ms: u64,
    /// Fields and body; none where they did not come whole, or were too long to be kept.
    pub whole: Option<WholeResponse>,
}

/// What a receipt tells of the kept answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ResponseView {
    /// Its status.
    pub status: u16,
    /// Whether it was kept whole, so that it can be had.
    pub complete: bool,
    /// The length of its body, where it was kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Until when it is kept, in milliseconds since the Unix epoch.
    pub until_ms: u64,
}

/// An answer on its way into the log, with the lane in whose quotas it counts.
#[derive(Clone, Debug)]
pub(crate) struct NewResponse {
    pub(crate) lane: Lane,
    pub(crate) kept: KeptResponse,
}

impl KeptResponse {
    /// What it counts for in quotas, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        let whole = self.whole.as_ref().map_or(0, |whole| {
            let fields = whole.headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
            (fields + whole.body.len()) as u64
        });
        OVERHEAD + whole
    }

    /// What a receipt tells of it.
    #[cfg(test)]
    pub(crate) fn view(&self) -> ResponseView {
        let size = self.whole.as_ref().map(|whole| whole.body.len() as u64);
        ResponseView { status: self.status, complete: size.is_some(), size, until_ms: self.until_ms }
    }
}

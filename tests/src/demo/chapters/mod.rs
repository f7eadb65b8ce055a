//! The chapters in their order. Each is a scene that leaves the node as it found it, but for what the next one needs.

mod canary;
mod maintenance;
mod outage;
mod replacement;
mod routing;
mod setting;
mod spinner;
mod trace;

use super::{Told, stage::Stage};

/// A chapter.
pub(super) struct Chapter {
    pub(super) title: &'static str,
    /// What it shows, in a line or two.
    pub(super) shows: &'static str,
    pub(super) tell: fn(&mut Stage) -> Told,
}

/// The story.
pub(super) const CHAPTERS: [Chapter; 8] = [
    setting::CHAPTER,
    routing::CHAPTER,
    canary::CHAPTER,
    maintenance::CHAPTER,
    replacement::CHAPTER,
    spinner::CHAPTER,
    outage::CHAPTER,
    trace::CHAPTER,
];

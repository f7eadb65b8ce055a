//! One module for each suite that has bars; each runs, prints, writes its JSON and gives how many bars were missed.

pub(crate) mod core;
pub(crate) mod density;
pub(crate) mod filter;
pub(crate) mod queue;
pub(crate) mod scenes;
pub(crate) mod train;

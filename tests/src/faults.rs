//! Mixed faults under load, from one seed: what is done to a node, its disk and its origin, and when, by a count of
//! operations; and the run whose end the [checker](crate::checker) judges.
//!
//! The same seed gives the same schedule and the same requests. How they fall together in time is the machine's.

mod run;
mod schedule;

pub use self::{
    run::{Ran, run},
    schedule::{Bound, Fault, Schedule, Step},
};

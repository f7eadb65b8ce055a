//! `wasi:clocks`: the node's time. As fine as `beamline:edge/clock` tells it.

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

use wasmtime::component::{ComponentType, Lift, Linker, Lower, Resource};

use super::{
    super::clock::since_1970,
    Interface, Running,
    io::{Moment, Pollable},
};

#[derive(Clone, Copy, ComponentType, Lift, Lower)]
#[component(record)]
struct Datetime {
    #[component(name = "seconds")]
    seconds: u64,
    #[component(name = "nanoseconds")]
    nanoseconds: u32,
}

impl From<Duration> for Datetime {
    /// To the millisecond.
    fn from(time: Duration) -> Self {
        Self { seconds: time.as_secs(), nanoseconds: time.subsec_millis() * 1_000_000 }
    }
}

/// What the monotonic clock shows: the wall clock's time when it was asked first on this node, and what has passed since. It
/// goes on from one call of a kept instance to the next, and tells no more than both clocks of `beamline:edge` do.
pub(super) fn now() -> Duration {
    static FIRST: LazyLock<(Instant, Duration)> = LazyLock::new(|| (Instant::now(), since_1970()));
    let (instant, time) = *FIRST;
    time + instant.elapsed()
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn at(moment: Moment) -> (Resource<Pollable>,) {
    (moment.pollable(),)
}

pub(super) fn link(linker: &mut Linker<Running>) -> wasmtime::Result<()> {
    let mut wall = Interface::of(linker, "wasi:clocks/wall-clock")?;
    wall.function("now", |_, ()| Ok((Datetime::from(since_1970()),)))?;
    wall.function("resolution", |_, ()| Ok((Datetime::from(Duration::from_millis(1)),)))?;
    let mut monotonic = Interface::of(linker, "wasi:clocks/monotonic-clock")?;
    monotonic.function("now", |_, ()| Ok((nanoseconds(now()),)))?;
    monotonic.function("resolution", |_, ()| Ok((1_u64,)))?;
    monotonic.function("subscribe-duration", |_, (wait,): (u64,)| {
        Ok(at(Moment::after(now(), Duration::from_nanos(wait))))
    })?;
    monotonic.function("subscribe-instant", |_, (when,): (u64,)| {
        let now = now();
        Ok(at(Moment::after(now, Duration::from_nanos(when).saturating_sub(now))))
    })
}

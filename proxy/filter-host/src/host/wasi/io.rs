//! `wasi:io`: an input that is at its end, two outputs that lead into the log, and waiting for a time.

use std::time::{Duration, Instant};

use wasmtime::{
    StoreContextMut,
    component::{ComponentType, Lift, Linker, Lower, Resource},
};

use super::{CallState, Interface, Running, cli::Printed, clocks::now};

/// Standard input, and any other: nothing comes of it.
pub(super) enum Input {}

/// Standard output (0) or standard error (1).
pub(super) enum Output {}

/// Why a stream failed: none does.
pub(super) enum Failed {}

/// What a guest can wait for: a time. What else it could wait for is there at once.
pub(super) enum Pollable {}

#[derive(ComponentType, Lift, Lower)]
#[component(variant)]
enum StreamError {
    #[component(name = "last-operation-failed")]
    LastOperationFailed(Resource<Failed>),
    #[component(name = "closed")]
    Closed,
}

/// Bytes that an output says it takes at once. It takes more, for the log cuts what is too much.
const TAKES: u64 = 64 << 10;

/// When a pollable is ready: the millisecond by the monotonic clock, modulo 2^32. Its handle's number.
///
/// Whoever waits, waits for less than half of these: 24 days.
#[derive(Clone, Copy)]
pub(super) struct Moment(u32);

impl Moment {
    /// A time from now on.
    pub(super) fn after(now: Duration, wait: Duration) -> Self {
        /// Longer than any call.
        const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
        let milliseconds = match wait {
            Duration::ZERO => now.as_millis(),
            wait => (now + wait.min(LONGEST)).as_nanos().div_ceil(1_000_000),
        };
        Self(milliseconds as u32)
    }

    pub(super) fn pollable(self) -> Resource<Pollable> {
        Resource::new_own(self.0)
    }

    fn of(pollable: &Resource<Pollable>) -> Self {
        Self(pollable.rep())
    }

    /// How long it is until then.
    fn left(self, now: Duration) -> Duration {
        // Negative where it has passed.
        let ahead = self.0.wrapping_sub(now.as_millis() as u32).cast_signed();
        let ahead = Duration::from_millis(u64::try_from(ahead).unwrap_or(0));
        ahead.saturating_sub(Duration::from_nanos(u64::from(now.subsec_nanos() % 1_000_000)))
    }
}

/// Waits until one of them is ready, and tells which are.
async fn poll(call: &mut CallState, pollables: &[Resource<Pollable>]) -> wasmtime::Result<Vec<u32>> {
    call.count_call()?;
    let soonest = |now| pollables.iter().map(|pollable| Moment::of(pollable).left(now)).min();
    let Some(wait) = soonest(now()) else {
        wasmtime::bail!("poll was given no pollable, for which it would wait for ever");
    };
    if !wait.is_zero() {
        call.wait(Instant::now() + wait).await;
    }
    let now = now();
    let ready = pollables.iter().zip(0..).filter(|(pollable, _)| Moment::of(pollable).left(now).is_zero());
    Ok(ready.map(|(_, index)| index).collect())
}

fn ready_at_once() -> (Resource<Pollable>,) {
    (Moment::after(now(), Duration::ZERO).pollable(),)
}

/// What reading gives: there is no more.
fn at_its_end<T>() -> wasmtime::Result<(Result<T, StreamError>,)> {
    Ok((Err(StreamError::Closed),))
}

type Written = (Result<(), StreamError>,);

fn write(call: &mut CallState, (output, bytes): (Resource<Output>, Vec<u8>)) -> wasmtime::Result<Written> {
    Printed::write(call, output.rep(), &bytes);
    Ok((Ok(()),))
}

fn write_zeroes(call: &mut CallState, (_, length): (Resource<Output>, u64)) -> wasmtime::Result<Written> {
    // Nothing that could be read.
    call.log.cut = call.log.cut.saturating_add(length);
    Ok((Ok(()),))
}

fn flush(_: &mut CallState, _: (Resource<Output>,)) -> wasmtime::Result<Written> {
    Ok((Ok(()),))
}

pub(super) fn link(linker: &mut Linker<Running>) -> wasmtime::Result<()> {
    let mut error = Interface::of(linker, "wasi:io/error")?;
    error.resource::<Failed>("error")?;
    error.absent(&["[method]error.to-debug-string"])?;
    link_poll(linker)?;
    let mut streams = Interface::of(linker, "wasi:io/streams")?;
    link_input(&mut streams)?;
    link_output(&mut streams)
}

fn link_poll(linker: &mut Linker<Running>) -> wasmtime::Result<()> {
    let mut polling = Interface::of(linker, "wasi:io/poll")?;
    polling.resource::<Pollable>("pollable")?;
    polling.function("[method]pollable.ready", |_, (pollable,): (Resource<Pollable>,)| {
        Ok((Moment::of(&pollable).left(now()).is_zero(),))
    })?;
    polling.0.func_wrap_async(
        "[method]pollable.block",
        |mut cx: StoreContextMut<'_, Running>, (pollable,): (Resource<Pollable>,)| {
            Box::new(async move { poll(cx.data_mut().call(), &[pollable]).await.map(|_| ()) })
        },
    )?;
    polling.0.func_wrap_async(
        "poll",
        |mut cx: StoreContextMut<'_, Running>, (pollables,): (Vec<Resource<Pollable>>,)| {
            Box::new(async move { poll(cx.data_mut().call(), &pollables).await.map(|ready| (ready,)) })
        },
    )
}

fn link_input(streams: &mut Interface<'_>) -> wasmtime::Result<()> {
    type Asked = (Resource<Input>, u64);
    streams.resource::<Input>("input-stream")?;
    for read in ["[method]input-stream.read", "[method]input-stream.blocking-read"] {
        streams.function(read, |_, _: Asked| at_its_end::<Vec<u8>>())?;
    }
    for skip in ["[method]input-stream.skip", "[method]input-stream.blocking-skip"] {
        streams.function(skip, |_, _: Asked| at_its_end::<u64>())?;
    }
    streams.function("[method]input-stream.subscribe", |_, _: (Resource<Input>,)| Ok(ready_at_once()))
}

fn link_output(streams: &mut Interface<'_>) -> wasmtime::Result<()> {
    type Spliced = (Resource<Output>, Resource<Input>, u64);
    streams.resource::<Output>("output-stream")?;
    streams.function("[method]output-stream.check-write", |_, _: (Resource<Output>,)| {
        Ok((Ok::<_, StreamError>(TAKES),))
    })?;
    streams.function("[method]output-stream.write", write)?;
    streams.function("[method]output-stream.blocking-write-and-flush", write)?;
    streams.function("[method]output-stream.flush", flush)?;
    streams.function("[method]output-stream.blocking-flush", flush)?;
    streams.function("[method]output-stream.subscribe", |_, _: (Resource<Output>,)| Ok(ready_at_once()))?;
    streams.function("[method]output-stream.write-zeroes", write_zeroes)?;
    streams.function("[method]output-stream.blocking-write-zeroes-and-flush", write_zeroes)?;
    for splice in ["[method]output-stream.splice", "[method]output-stream.blocking-splice"] {
        streams.function(splice, |_, _: Spliced| at_its_end::<u64>())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_never_too_early_and_passes() {
        // Beside the place where the numbers begin anew.
        for begin in [1_700_000_000_000_u64, (1 << 32) - 3, 77 << 32] {
            for after in [0_u64, 1, 999_999] {
                let now = Duration::from_millis(begin) + Duration::from_nanos(after);
                assert!(Moment::after(now, Duration::ZERO).left(now).is_zero());
                for wait in [1, 1_000_000, 2_500_000, 5_000_000_000].map(Duration::from_nanos) {
                    let moment = Moment::after(now, wait);
                    let left = moment.left(now);
                    assert!(
                        left >= wait && left < wait + Duration::from_millis(1),
                        "{now:?} {wait:?}: {left:?}"
                    );
                    assert!(
                        moment.left(now + left).is_zero() && moment.left(now + wait * 2 + left).is_zero()
                    );
                }
            }
        }
        let now = Duration::from_secs(7);
        assert_eq!(Moment::after(now, Duration::MAX).left(now), Duration::from_secs(24 * 60 * 60));
    }
}

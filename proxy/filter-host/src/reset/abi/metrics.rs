//! `metrics`: what a filter counts.

use wasmparser::ValType::{F64, I32, I64};
use wasmtime::{Caller, Linker, Result};

use super::{Function, Interface, Lift, parts};
use crate::{
    bindings::beamline::edge::metrics::{Host as _, Label, MetricError},
    host::CallState,
    reset::guest::Guest,
};

const NAME: &str = "beamline:edge/metrics@0.1.0";
const COUNT: &str = "count";
const OBSERVE: &str = "observe";
/// Of `label`: its name stands at 0, its value at 8.
const LABEL: (usize, u32) = (16, 4);

pub(super) const INTERFACE: Interface = Interface {
    functions: &[
        Function {
            interface: NAME,
            name: COUNT,
            params: &[I32, I32, I64, I32, I32, I32],
            results: &[],
            allocates: false,
        },
        Function {
            interface: NAME,
            name: OBSERVE,
            params: &[I32, I32, F64, I32, I32, I32],
            results: &[],
            allocates: false,
        },
    ],
    link,
};

/// What was done to a metric.
type Counted = Result<(), MetricError>;

fn case(error: MetricError) -> u8 {
    match error {
        MetricError::InvalidName => 0,
        MetricError::InvalidLabel => 1,
        MetricError::InvalidValue => 2,
        MetricError::OtherKind => 3,
        MetricError::TooManyNames => 4,
    }
}

fn update(
    caller: &mut Caller<'_, Guest>,
    (name, name_len): (u32, u32),
    (labels, count): (u32, u32),
    ret: u32,
    counted: impl FnOnce(&mut CallState, String, Vec<Label>) -> Result<Counted>,
) -> Result<()> {
    let (memory, guest) = parts(caller)?;
    let call = guest.enter()?;
    let mut lift = Lift::new(memory);
    let name = lift.string(name, name_len)?.to_owned();
    let labels = lift
        .list(labels, count, LABEL, size_of::<Label>())?
        .map(|label| {
            let name = lift.string_at(label, 0)?.to_owned();
            Ok(Label { name, value: lift.string_at(label, 8)?.to_owned() })
        })
        .collect::<Result<Vec<_>>>()?;
    let result = counted(call, name, labels)?;
    guest.lower_outcome(memory, ret, result.map_err(case))
}

fn link(linker: &mut Linker<Guest>) -> Result<()> {
    linker.func_wrap(
        NAME,
        COUNT,
        |mut caller: Caller<'_, Guest>, name: u32, len: u32, by: u64, labels: u32, count: u32, ret: u32| {
            update(&mut caller, (name, len), (labels, count), ret, |call, name, labels| {
                call.count(name, by, labels)
            })
        },
    )?;
    linker.func_wrap(
        NAME,
        OBSERVE,
        |mut caller: Caller<'_, Guest>,
         name: u32,
         len: u32,
         value: f64,
         labels: u32,
         count: u32,
         ret: u32| {
            update(&mut caller, (name, len), (labels, count), ret, |call, name, labels| {
                call.observe(name, value, labels)
            })
        },
    )?;
    Ok(())
}

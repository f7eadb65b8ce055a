//! `kv`: the tenant's keys and values.

use wasmparser::ValType::{I32, I64};
use wasmtime::{Caller, Linker, Result};

use super::{
    Function, Interface, Lift, Lowering,
    lift::flat_option,
    lower::{OPTIONAL, RESULT},
    parts,
};
use crate::{
    bindings::beamline::edge::kv::{Host as _, KvError},
    reset::guest::Guest,
};

const NAME: &str = "beamline:edge/kv@0.1.0";
const GET: &str = "get";
const SET: &str = "set";
const DELETE: &str = "delete";
const INCREMENT: &str = "increment";
const COMPARE_AND_SET: &str = "compare-and-set";

/// Of `result<s64, kv-error>`: what is in it stands at 8.
const NUMBER: (usize, u32) = (16, 8);

pub(super) const INTERFACE: Interface = Interface {
    functions: &[
        Function { interface: NAME, name: GET, params: &[I32; 3], results: &[], allocates: true },
        Function {
            interface: NAME,
            name: SET,
            // Key, value, the optional time, and where the result goes.
            params: &[I32, I32, I32, I32, I32, I64, I32],
            results: &[],
            allocates: false,
        },
        Function { interface: NAME, name: DELETE, params: &[I32; 2], results: &[I32], allocates: false },
        Function {
            interface: NAME,
            name: INCREMENT,
            params: &[I32, I32, I64, I32, I64, I32],
            results: &[],
            allocates: false,
        },
        Function {
            interface: NAME,
            name: COMPARE_AND_SET,
            // Key, the optional value that is expected, value, the optional time, and where the result goes.
            params: &[I32, I32, I32, I32, I32, I32, I32, I32, I64, I32],
            results: &[],
            allocates: false,
        },
    ],
    link,
};

fn case(error: KvError) -> u8 {
    match error {
        KvError::InvalidKey => 0,
        KvError::ValueTooLarge => 1,
        KvError::QuotaExceeded => 2,
        KvError::NotANumber => 3,
        KvError::Overflow => 4,
    }
}

fn link(linker: &mut Linker<Guest>) -> Result<()> {
    linker.func_wrap(
        NAME,
        GET,
        |mut caller: Caller<'_, Guest>, key: u32, len: u32, ret: u32| -> Result<u64> {
            let (memory, guest) = parts(&mut caller)?;
            let call = guest.enter()?;
            let value = call.get(Lift::new(memory).string(key, len)?.to_owned())?;
            let at = guest.lowering.begin(memory, ret, OPTIONAL)?;
            guest.lowering.option(at, 4, value.as_deref(), Lowering::bytes);
            guest.lower(memory)
        },
    )?;
    linker.func_wrap(NAME, DELETE, |mut caller: Caller<'_, Guest>, key: u32, len: u32| -> Result<u32> {
        let (memory, guest) = parts(&mut caller)?;
        let call = guest.enter()?;
        Ok(call.delete(Lift::new(memory).string(key, len)?.to_owned())?.into())
    })?;
    link_set(linker)?;
    link_increment(linker)?;
    link_compare_and_set(linker)
}

fn link_set(linker: &mut Linker<Guest>) -> Result<()> {
    linker.func_wrap(
        NAME,
        SET,
        |mut caller: Caller<'_, Guest>,
         key: u32,
         key_len: u32,
         value: u32,
         value_len: u32,
         has_ttl: u32,
         ttl: u64,
         ret: u32|
         -> Result<()> {
            let (memory, guest) = parts(&mut caller)?;
            let call = guest.enter()?;
            let mut lift = Lift::new(memory);
            let key = lift.string(key, key_len)?.to_owned();
            let value = lift.bytes(value, value_len)?.to_owned();
            let result = call.set(key, value, flat_option(has_ttl, || Ok(ttl))?)?;
            guest.lower_outcome(memory, ret, result.map_err(case))
        },
    )?;
    Ok(())
}

fn link_increment(linker: &mut Linker<Guest>) -> Result<()> {
    linker.func_wrap(
        NAME,
        INCREMENT,
        |mut caller: Caller<'_, Guest>,
         key: u32,
         len: u32,
         by: i64,
         has_ttl: u32,
         ttl: u64,
         ret: u32|
         -> Result<()> {
            let (memory, guest) = parts(&mut caller)?;
            let call = guest.enter()?;
            let key = Lift::new(memory).string(key, len)?.to_owned();
            let result = call.increment(key, by, flat_option(has_ttl, || Ok(ttl))?)?;
            let at = guest.lowering.begin(memory, ret, NUMBER)?;
            guest.lowering.byte(at, result.is_err().into());
            match result {
                Ok(number) => guest.lowering.word(at.at(8), number.cast_unsigned()),
                Err(error) => guest.lowering.byte(at.at(8), case(error)),
            }
            guest.lower(memory)?;
            Ok(())
        },
    )?;
    Ok(())
}

fn link_compare_and_set(linker: &mut Linker<Guest>) -> Result<()> {
    linker.func_wrap(
        NAME,
        COMPARE_AND_SET,
        |mut caller: Caller<'_, Guest>,
         key: u32,
         key_len: u32,
         has_expected: u32,
         expected: u32,
         expected_len: u32,
         value: u32,
         value_len: u32,
         has_ttl: u32,
         ttl: u64,
         ret: u32|
         -> Result<()> {
            let (memory, guest) = parts(&mut caller)?;
            let call = guest.enter()?;
            let mut lift = Lift::new(memory);
            let key = lift.string(key, key_len)?.to_owned();
            let expected = flat_option(has_expected, || Ok(lift.bytes(expected, expected_len)?.to_owned()))?;
            let value = lift.bytes(value, value_len)?.to_owned();
            let result = call.compare_and_set(key, expected, value, flat_option(has_ttl, || Ok(ttl))?)?;
            let at = guest.lowering.begin(memory, ret, RESULT)?;
            guest.lowering.byte(at, result.is_err().into());
            guest.lowering.byte(at.at(1), result.map_or_else(case, u8::from));
            guest.lower(memory)?;
            Ok(())
        },
    )?;
    Ok(())
}

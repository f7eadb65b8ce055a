//! `http`: the request's head.

use wasmparser::ValType::I32;
use wasmtime::{Caller, Linker, Result, component::Resource};

use super::{Function, Interface, Lift, Lowering, Place, lower::OPTIONAL, parts};
use crate::{
    bindings::beamline::edge::http::{Field, HeaderError, HostRequestHead as _},
    head::RequestHead,
    host::{CallState, first, many},
    reset::guest::Guest,
};

const NAME: &str = "beamline:edge/http@0.1.0";

/// Size and alignment of a `string` or a list.
const PAIR: (usize, u32) = (8, 4);
/// Of `field`: name at 0, value at 8.
pub(super) const FIELD: (usize, u32) = (16, 4);
/// Of `head-snapshot`: method, path, query, host, fields.
const SNAPSHOT: (usize, u32) = (44, 4);

const fn getter(name: &'static str) -> Function {
    Function { interface: NAME, name, params: &[I32, I32], results: &[], allocates: true }
}

const fn lookup(name: &'static str) -> Function {
    Function { interface: NAME, name, params: &[I32; 4], results: &[], allocates: true }
}

const fn change(name: &'static str, params: &'static [wasmparser::ValType]) -> Function {
    Function { interface: NAME, name, params, results: &[], allocates: false }
}

const METHOD: &str = "[method]request-head.method";
const PATH: &str = "[method]request-head.path";
const QUERY: &str = "[method]request-head.query";
const HOST: &str = "[method]request-head.host";
const GET: &str = "[method]request-head.get";
const GET_ALL: &str = "[method]request-head.get-all";
const GET_MANY: &str = "[method]request-head.get-many";
const SNAP: &str = "[method]request-head.snapshot";
const SET: &str = "[method]request-head.set";
const APPEND: &str = "[method]request-head.append";
const REMOVE: &str = "[method]request-head.remove";
const DROP: &str = "[resource-drop]request-head";

pub(super) const INTERFACE: Interface = Interface {
    functions: &[
        getter(METHOD),
        getter(PATH),
        getter(QUERY),
        getter(HOST),
        getter(SNAP),
        lookup(GET),
        lookup(GET_ALL),
        lookup(GET_MANY),
        change(SET, &[I32; 6]),
        change(APPEND, &[I32; 6]),
        change(REMOVE, &[I32; 4]),
        change(DROP, &[I32]),
    ],
    link,
};

/// Every handle stands for the one head of the call.
fn head() -> Resource<RequestHead> {
    Resource::new_borrow(0)
}

/// A getter without an argument: what it reads, the layout of its result, and how that is lowered.
fn link_getter<T: 'static>(
    linker: &mut Linker<Guest>,
    name: &str,
    layout: (usize, u32),
    read: fn(&mut CallState) -> Result<T>,
    lower: fn(&mut Lowering, Place, T),
) -> Result<()> {
    linker.func_wrap(
        NAME,
        name,
        move |mut caller: Caller<'_, Guest>, handle: u32, ret: u32| -> Result<u64> {
            let (memory, guest) = parts(&mut caller)?;
            guest.use_handle(handle)?;
            let value = read(guest.enter()?)?;
            let at = guest.lowering.begin(memory, ret, layout)?;
            lower(&mut guest.lowering, at, value);
            guest.lower(memory)
        },
    )?;
    Ok(())
}

fn link_getters(linker: &mut Linker<Guest>) -> Result<()> {
    let string = |l: &mut Lowering, at: Place, value: String| l.bytes(at, value.as_bytes());
    link_getter(linker, METHOD, PAIR, |call| call.method(head()), string)?;
    link_getter(linker, PATH, PAIR, |call| call.path(head()), string)?;
    link_getter(linker, HOST, PAIR, |call| call.host(head()), string)?;
    let optional = |l: &mut Lowering, at: Place, value: Option<String>| {
        l.option(at, 4, value, |l, at, value| l.bytes(at, value.as_bytes()));
    };
    link_getter(linker, QUERY, OPTIONAL, |call| call.query(head()), optional)?;
    link_getter(
        linker,
        SNAP,
        SNAPSHOT,
        |call| call.snapshot(head()),
        |l, at, snapshot| {
            l.bytes(at, snapshot.method.as_bytes());
            l.bytes(at.at(8), snapshot.path.as_bytes());
            l.option(at.at(16), 4, snapshot.query, |l, at, query| l.bytes(at, query.as_bytes()));
            l.bytes(at.at(28), snapshot.host.as_bytes());
            l.list(at.at(36), FIELD, snapshot.fields.iter(), |l, at, field: &Field| {
                l.bytes(at, field.name.as_bytes());
                l.bytes(at.at(8), &field.value);
            });
        },
    )
}

fn link_lookups(linker: &mut Linker<Guest>) -> Result<()> {
    linker.func_wrap(
        NAME,
        GET,
        |mut caller: Caller<'_, Guest>, handle: u32, name: u32, len: u32, ret: u32| -> Result<u64> {
            let (memory, guest) = parts(&mut caller)?;
            guest.use_handle(handle)?;
            let (call, lowering) = guest.enter_lowering()?;
            let name = Lift::new(memory).string(name, len)?;
            call.count_call()?;
            let value = first(&call.head.headers, name);
            let at = lowering.begin(memory, ret, OPTIONAL)?;
            lowering.option(at, 4, value, Lowering::bytes);
            guest.lower(memory)
        },
    )?;
    linker.func_wrap(
        NAME,
        GET_ALL,
        |mut caller: Caller<'_, Guest>, handle: u32, name: u32, len: u32, ret: u32| -> Result<u64> {
            let (memory, guest) = parts(&mut caller)?;
            guest.use_handle(handle)?;
            let (call, lowering) = guest.enter_lowering()?;
            let name = Lift::new(memory).string(name, len)?.to_owned();
            let values = call.get_all(head(), name)?;
            let at = lowering.begin(memory, ret, PAIR)?;
            lowering.list(at, PAIR, values.iter(), |l, at, value: &Vec<u8>| l.bytes(at, value));
            guest.lower(memory)
        },
    )?;
    linker.func_wrap(
        NAME,
        GET_MANY,
        |mut caller: Caller<'_, Guest>, handle: u32, names: u32, count: u32, ret: u32| -> Result<u64> {
            let (memory, guest) = parts(&mut caller)?;
            guest.use_handle(handle)?;
            let (call, lowering) = guest.enter_lowering()?;
            let mut lift = Lift::new(memory);
            let names = lift
                .list(names, count, PAIR, size_of::<String>())?
                .map(|name| lift.string_at(name, 0))
                .collect::<Result<Vec<_>>>()?;
            call.count_call()?;
            let values = many(&call.head.headers, names)?;
            let at = lowering.begin(memory, ret, PAIR)?;
            lowering.list(at, OPTIONAL, values.into_iter(), |l, at, value| {
                l.option(at, 4, value, Lowering::bytes);
            });
            guest.lower(memory)
        },
    )?;
    Ok(())
}

fn case(error: HeaderError) -> u8 {
    match error {
        HeaderError::InvalidName => 0,
        HeaderError::InvalidValue => 1,
        HeaderError::Forbidden => 2,
        HeaderError::TooLarge => 3,
    }
}

/// What became of a change to a head.
type Edited = Result<(), HeaderError>;

/// `set` and `append`: a name and a value.
fn link_edit(
    linker: &mut Linker<Guest>,
    name: &str,
    edit: fn(&mut CallState, String, Vec<u8>) -> Result<Edited>,
) -> Result<()> {
    linker.func_wrap(
        NAME,
        name,
        move |mut caller: Caller<'_, Guest>,
              handle: u32,
              n: u32,
              n_len: u32,
              v: u32,
              v_len: u32,
              ret: u32| {
            let (memory, guest) = parts(&mut caller)?;
            guest.use_handle(handle)?;
            let call = guest.enter()?;
            let mut lift = Lift::new(memory);
            let name = lift.string(n, n_len)?.to_owned();
            let value = lift.bytes(v, v_len)?.to_owned();
            let result = edit(call, name, value)?;
            guest.lower_outcome(memory, ret, result.map_err(case))
        },
    )?;
    Ok(())
}

fn link(linker: &mut Linker<Guest>) -> Result<()> {
    link_getters(linker)?;
    link_lookups(linker)?;
    link_edit(linker, SET, |call, name, value| call.set(head(), name, value))?;
    link_edit(linker, APPEND, |call, name, value| call.append(head(), name, value))?;
    linker.func_wrap(
        NAME,
        REMOVE,
        |mut caller: Caller<'_, Guest>, handle: u32, name: u32, len: u32, ret: u32| {
            let (memory, guest) = parts(&mut caller)?;
            guest.use_handle(handle)?;
            let call = guest.enter()?;
            let name = Lift::new(memory).string(name, len)?.to_owned();
            let result = call.remove(head(), name)?;
            guest.lower_outcome(memory, ret, result.map_err(case))
        },
    )?;
    linker.func_wrap(NAME, DROP, |mut caller: Caller<'_, Guest>, handle: u32| {
        caller.data_mut().drop_handle(handle)
    })?;
    Ok(())
}

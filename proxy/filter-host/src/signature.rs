//! Whether a component's phases have this host's types, told before anything of it runs.
//!
//! wasmtime checks an export's type when an instance exists; a module that is taken should not fail then. Types are
//! written out as WIT-like text and compared, so that a refusal can show both.

use std::fmt::Write as _;

use wasmtime::component::{
    ResourceType,
    types::{self, ComponentItem, Type},
};

use crate::{
    head::{RequestHead, ResponseHead},
    host::wasi,
    inspect::{IMPORTS, Rejection},
    phases::Phase,
};

/// The parts of the phases' types, as [`write_type`] writes them.
macro_rules! field_list {
    () => {
        "list<record{name: string, value: list<u8>}>"
    };
}
macro_rules! response {
    () => {
        concat!("record{status: u16, headers: ", field_list!(), ", body: list<u8>}")
    };
}
macro_rules! verdict {
    () => {
        concat!(
            "variant{next, \
             route(record{upstream: string, path: option<string>, host: option<string>, timeout-ms: option<u32>}), \
             respond(",
            response!(),
            "), \
             enqueue(record{upstream: string, ordering-key: option<string>, delay-ms: option<u64>, expiry-ms: option<u64>}), \
             read-body}"
        )
    };
}
macro_rules! response_verdict {
    () => {
        concat!("variant{next, respond(", response!(), "), read-body}")
    };
}
macro_rules! chunk_verdict {
    () => {
        "variant{pass, replace(record{data: list<u8>, again: u32}), hold}"
    };
}

/// `handle` of a phase.
const fn handle(phase: Phase) -> &'static str {
    match phase {
        Phase::Request => concat!("func(borrow<request-head>) -> ", verdict!()),
        Phase::WholeRequest => concat!(
            "func(borrow<request-head>, list<u8>) -> record{verdict: ",
            verdict!(),
            ", body: option<list<u8>>}"
        ),
        Phase::RequestBody => concat!("func(borrow<request-head>, list<u8>, bool) -> ", chunk_verdict!()),
        Phase::Response => {
            concat!("func(borrow<request-head>, borrow<response-head>) -> ", response_verdict!())
        }
        Phase::WholeResponse => concat!(
            "func(borrow<request-head>, borrow<response-head>, list<u8>) -> record{verdict: ",
            response_verdict!(),
            ", body: option<list<u8>>}"
        ),
        Phase::ResponseBody => {
            concat!("func(borrow<request-head>, borrow<response-head>, list<u8>, bool) -> ", chunk_verdict!())
        }
        Phase::Finish => {
            "func(borrow<request-head>, record{status: option<u16>, upstream: option<string>, \
             request-bytes: u64, response-bytes: u64, duration-us: u64, upstream-us: u64, error: option<string>})"
        }
    }
}

/// All that a module is checked against, as text: what it may import, and each phase with its type.
pub(crate) fn interface() -> impl Iterator<Item = &'static str> {
    let phases = Phase::ALL.into_iter().flat_map(|phase| [phase.interface(), handle(phase)]);
    IMPORTS.iter().copied().chain(wasi::INTERFACES).chain(phases)
}

/// How deep a type is written out; deeper ones are none of ours.
const MAX_DEPTH: usize = 16;

/// Checks the function of each phase that `component` exports. `ty` is its type with this host's resources in it.
pub(crate) fn check(engine: &wasmtime::Engine, ty: &types::Component) -> Result<(), Rejection> {
    for phase in Phase::ALL {
        let (phase, function, expected) = (phase.interface(), "handle", handle(phase));
        let Some(export) = ty.get_export(engine, phase) else { continue };
        let found = match export.ty {
            ComponentItem::ComponentInstance(instance) => {
                match instance.get_export(engine, function).map(|e| e.ty) {
                    Some(ComponentItem::ComponentFunc(func)) => {
                        let mut text = String::from("func(");
                        for (i, (_, param)) in func.params().enumerate() {
                            text.push_str(if i > 0 { ", " } else { "" });
                            write_type(&mut text, &param, 0);
                        }
                        text.push(')');
                        for result in func.results() {
                            text.push_str(" -> ");
                            write_type(&mut text, &result, 0);
                        }
                        text
                    }
                    _ => "no such function".into(),
                }
            }
            _ => "no interface".into(),
        };
        if found != expected {
            let problem = format!("{phase}: {function}: expected {expected}; found {found}");
            return Err(Rejection::Mismatch { problem });
        }
    }
    Ok(())
}

fn name_of(resource: &ResourceType) -> &'static str {
    if *resource == ResourceType::host::<RequestHead>() {
        "request-head"
    } else if *resource == ResourceType::host::<ResponseHead>() {
        "response-head"
    } else {
        "resource"
    }
}

fn write_type(out: &mut String, ty: &Type, depth: usize) {
    if depth > MAX_DEPTH {
        out.push('…');
        return;
    }
    let one = |out: &mut String, name: &str, inner: &Type| {
        let _ = write!(out, "{name}<");
        write_type(out, inner, depth + 1);
        out.push('>');
    };
    match ty {
        Type::Bool => out.push_str("bool"),
        Type::U8 => out.push_str("u8"),
        Type::U16 => out.push_str("u16"),
        Type::U32 => out.push_str("u32"),
        Type::U64 => out.push_str("u64"),
        Type::String => out.push_str("string"),
        Type::Own(resource) => out.push_str(&format!("own<{}>", name_of(resource))),
        Type::Borrow(resource) => out.push_str(&format!("borrow<{}>", name_of(resource))),
        Type::List(list) => one(out, "list", &list.ty()),
        Type::Option(option) => one(out, "option", &option.ty()),
        Type::Record(record) => {
            out.push_str("record{");
            for (i, field) in record.fields().enumerate() {
                let _ = write!(out, "{}{}: ", if i > 0 { ", " } else { "" }, field.name);
                write_type(out, &field.ty, depth + 1);
            }
            out.push('}');
        }
        Type::Variant(variant) => {
            out.push_str("variant{");
            for (i, case) in variant.cases().enumerate() {
                let _ = write!(out, "{}{}", if i > 0 { ", " } else { "" }, case.name);
                if let Some(ty) = &case.ty {
                    out.push('(');
                    write_type(out, ty, depth + 1);
                    out.push(')');
                }
            }
            out.push('}');
        }
        // No part of this interface.
        _ => out.push_str("another type"),
    }
}

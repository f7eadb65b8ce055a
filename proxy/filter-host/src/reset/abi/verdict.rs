//! `verdicts`: what `request-handler.handle` returned.

use wasmtime::{Caller, Linker, Result, bail};

use super::{Lift, http::FIELD, lift::Record, parts};
use crate::{
    bindings::beamline::edge::{
        http::Field,
        verdicts::{Enqueue, Response, Route, Verdict},
    },
    reset::{guest::Guest, rewrite::names},
};

/// Of `verdict`: the record of its case stands at 8.
const VERDICT: (usize, u32) = (64, 8);

/// Links what the glue code calls with the address that the phase returned.
pub(super) fn link(linker: &mut Linker<Guest>) -> Result<()> {
    linker.func_wrap(names::HOST, names::VERDICT, |mut caller: Caller<'_, Guest>, address: u32| {
        let (memory, guest) = parts(&mut caller)?;
        guest.leave()?;
        guest.verdict = Some(lift(&mut Lift::new(memory), address)?);
        Ok(())
    })?;
    Ok(())
}

fn lift(lift: &mut Lift<'_>, address: u32) -> Result<Verdict> {
    let returned = lift.returned(address, VERDICT)?;
    let record = returned.from(8);
    Ok(match returned.u8(0) {
        0 => Verdict::Next,
        1 => Verdict::Route(route(lift, record)?),
        2 => Verdict::Respond(response(lift, record)?),
        3 => Verdict::Enqueue(enqueue(lift, record)?),
        4 => Verdict::ReadBody,
        other => bail!("unexpected discriminant: {other}"),
    })
}

/// `upstream` at 0, `path` at 8, `host` at 20, `timeout-ms` at 32.
fn route(lift: &mut Lift<'_>, record: Record<'_>) -> Result<Route> {
    Ok(Route {
        upstream: lift.string(record.u32(0), record.u32(4))?.to_owned(),
        path: optional_string(lift, record, 8)?,
        host: optional_string(lift, record, 20)?,
        timeout_ms: record.option(32, || Ok(record.u32(36)))?,
    })
}

/// `status` at 0, `headers` at 4, `body` at 12.
fn response(lift: &mut Lift<'_>, record: Record<'_>) -> Result<Response> {
    let fields = lift.list(record.u32(4), record.u32(8), FIELD, size_of::<Field>())?;
    let mut headers = Vec::with_capacity(fields.len());
    for field in fields {
        let name = lift.string_at(field, 0)?.to_owned();
        headers.push(Field { name, value: lift.bytes_at(field, 8)?.to_owned() });
    }
    let body = lift.bytes(record.u32(12), record.u32(16))?.to_owned();
    Ok(Response { status: record.u16(0), headers, body })
}

/// `upstream` at 0, `ordering-key` at 8, `delay-ms` at 24, `expiry-ms` at 40.
fn enqueue(lift: &mut Lift<'_>, record: Record<'_>) -> Result<Enqueue> {
    Ok(Enqueue {
        upstream: lift.string(record.u32(0), record.u32(4))?.to_owned(),
        ordering_key: optional_string(lift, record, 8)?,
        delay_ms: record.option(24, || Ok(record.u64(32)))?,
        expiry_ms: record.option(40, || Ok(record.u64(48)))?,
    })
}

fn optional_string(lift: &mut Lift<'_>, record: Record<'_>, at: usize) -> Result<Option<String>> {
    record.option(at, || Ok(lift.string(record.u32(at + 4), record.u32(at + 8))?.to_owned()))
}

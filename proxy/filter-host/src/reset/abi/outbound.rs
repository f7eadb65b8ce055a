//! `outbound`: requests of the filter itself, for whose answers the call waits.

use wasmparser::ValType::I32;
use wasmtime::{Caller, Linker, Result};

use super::{Function, Interface, Lift, http::FIELD, lift::flat_option, parts};
use crate::{
    bindings::beamline::edge::{
        http::Field,
        outbound::{Host as _, IncomingResponse, OutboundError, OutgoingRequest},
    },
    reset::guest::Guest,
};

const NAME: &str = "beamline:edge/outbound@0.1.0";
const SEND: &str = "send";
/// Of `result<incoming-response, outbound-error>`: what is in it stands at 4.
const ANSWER: (usize, u32) = (24, 4);

pub(super) const INTERFACE: Interface = Interface {
    functions: &[Function {
        interface: NAME,
        name: SEND,
        // Method, URL, headers, body, the optional time, and where the result goes.
        params: &[I32; 11],
        results: &[],
        allocates: true,
    }],
    link,
};

type Params = (u32, u32, u32, u32, u32, u32, u32, u32, u32, u32, u32);

fn link(linker: &mut Linker<Guest>) -> Result<()> {
    linker.func_wrap_async(NAME, SEND, |mut caller: Caller<'_, Guest>, params: Params| {
        Box::new(async move {
            let ret = params.10;
            let (memory, guest) = parts(&mut caller)?;
            let call = guest.enter()?;
            let request = lift(&mut Lift::new(memory), params)?;
            let answer = call.send(request).await?;
            // Nothing of the guest ran meanwhile; the borrow did not outlive the wait.
            let (memory, guest) = parts(&mut caller)?;
            lower(guest, memory, ret, answer)
        })
    })?;
    Ok(())
}

fn lift(lift: &mut Lift<'_>, params: Params) -> Result<OutgoingRequest> {
    let (method, method_len, url, url_len, headers, count, body, body_len, has_timeout, timeout, _) = params;
    let (method, url) = (lift.string(method, method_len)?.to_owned(), lift.string(url, url_len)?.to_owned());
    let headers = lift
        .list(headers, count, FIELD, size_of::<Field>())?
        .map(|field| {
            let name = lift.string_at(field, 0)?.to_owned();
            Ok(Field { name, value: lift.bytes_at(field, 8)?.to_owned() })
        })
        .collect::<Result<Vec<_>>>()?;
    let body = lift.bytes(body, body_len)?.to_owned();
    let timeout_ms = flat_option(has_timeout, || Ok(timeout))?;
    Ok(OutgoingRequest { method, url, headers, body, timeout_ms })
}

fn lower(
    guest: &mut Guest,
    memory: &mut [u8],
    ret: u32,
    answer: Result<IncomingResponse, OutboundError>,
) -> Result<u64> {
    let at = guest.lowering.begin(memory, ret, ANSWER)?;
    let l = &mut guest.lowering;
    l.byte(at, answer.is_err().into());
    let at = at.at(4);
    match answer {
        // `status` at 0, `headers` at 4, `body` at 12.
        Ok(response) => {
            l.half(at, response.status);
            l.list(at.at(4), FIELD, response.headers.iter(), |l, at, field: &Field| {
                l.bytes(at, field.name.as_bytes());
                l.bytes(at.at(8), &field.value);
            });
            l.bytes(at.at(12), &response.body);
        }
        // What a case holds stands at 4.
        Err(OutboundError::InvalidRequest(problem)) => {
            l.byte(at, 0);
            l.bytes(at.at(4), problem.as_bytes());
        }
        Err(OutboundError::NotAllowed) => l.byte(at, 1),
        Err(OutboundError::TooMany) => l.byte(at, 2),
        Err(OutboundError::Connect) => l.byte(at, 3),
        Err(OutboundError::Timeout) => l.byte(at, 4),
        Err(OutboundError::TooLarge) => l.byte(at, 5),
        Err(OutboundError::Broken) => l.byte(at, 6),
    }
    guest.lower(memory)
}

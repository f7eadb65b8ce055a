//! The kinds of hostile module, and what becomes of each.

mod boundary;
mod calls;
mod modules;
mod resources;

use std::net::SocketAddr;

pub(crate) use self::modules::huge_name;
use crate::guest::{Guest, NEXT};

/// What must come of a module.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// The node does not take it.
    Refused,
    /// Each request is answered by the tenant's origin, as if the filter had done nothing.
    Harmless,
    /// Each request is queued, as the filter wanted.
    Queued,
    /// Each request is answered `503` with one of these problems.
    Fails(&'static [&'static str]),
    /// The same, or the response is broken off, where its head was sent before the filter failed: by when the call had its turn.
    FailsLate(&'static [&'static str]),
    /// It may be taken or not; then each request is answered by the origin or `503`.
    Contained,
}

/// One kind of hostile module.
pub(crate) struct Kind {
    pub(crate) name: String,
    pub(crate) module: Vec<u8>,
    pub(crate) end: End,
}

const TRAP: End = End::Fails(&["filter-trap"]);
const SLOW: End = End::Fails(&["filter-timeout"]);
const MEMORY: End = End::Fails(&["filter-memory"]);
const VERDICT: End = End::Fails(&["filter-verdict"]);

/// Every kind. They may send requests to this origin.
pub(crate) fn all(origin: SocketAddr) -> Vec<Kind> {
    let groups = [
        resources::time(),
        resources::memory(),
        resources::start(),
        boundary::realloc(),
        boundary::handles(),
        boundary::strings(),
        boundary::heads(),
        boundary::verdicts(),
        resources::phases(),
        calls::host_functions(),
        calls::outbound(origin),
        modules::shapes(),
        modules::compile(),
    ];
    groups.into_iter().flatten().collect()
}

fn kind(name: &str, end: End, guest: &Guest) -> Kind {
    made(name, end, guest.build())
}

fn made(name: &str, end: End, module: Vec<u8>) -> Kind {
    Kind { name: name.to_owned(), module, end }
}

/// A guest whose `handle` does this first, then drops the head and says `next`.
fn first(what: &str) -> Guest {
    Guest::new(&format!("{what} {NEXT}"))
}

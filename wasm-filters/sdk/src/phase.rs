//! From the exported functions to a filter's own: the configuration is read, panics are made visible.

use serde::de::DeserializeOwned;

use crate::{Body, Chunk, ChunkVerdict, Outcome, Request, ResponseHead, ResponseVerdict, Verdict};

/// A filter of the request phase.
///
/// There is no `self`: an instance lives for one call, and what it should know comes with its configuration, or from an
/// earlier phase by way of [`context`](crate::context).
pub trait Filter {
    /// What the filter's `config` in the manifest is read into, for every call. `()` where it takes none.
    ///
    /// Without a `config` in the manifest this is read from `null`, or else from `{}`: a struct whose fields all have
    /// a default needs no configuration. One that cannot be read ends the call with a message in the log that says
    /// what was expected, and the request takes the filter's `on_error`.
    type Config: DeserializeOwned;

    /// Decides on one request, when its head has arrived and nothing was sent anywhere.
    ///
    /// May change the head through `request`. A panic ends the call: its message is logged and the request takes the
    /// filter's `on_error`.
    fn on_request(config: &Self::Config, request: &mut Request) -> Verdict;
}

/// A filter that decides on a request when its whole body was read.
///
/// Where the module has the phase `request` too, that one decides first, and this one only on requests of which it said
/// [`Verdict::read_body`]. A body beyond the limit `body` is answered `413`.
pub trait WholeRequestFilter {
    /// As [`Filter::Config`].
    type Config: DeserializeOwned;

    /// Decides on one request. Nothing of it was sent anywhere: its head may be changed, and its body replaced. The body of a
    /// request without one is empty.
    fn on_whole_request(config: &Self::Config, request: &mut Request, body: &mut Body) -> Verdict;
}

/// A filter that sees a request's body chunk by chunk, while it is on its way.
pub trait RequestBodyFilter {
    /// As [`Filter::Config`].
    type Config: DeserializeOwned;

    /// Says what happens to a chunk. Each gets a fresh instance, unless the manifest pins it: what is half done goes into
    /// [`context`](crate::context), or is held. Not called for requests without a body.
    fn on_request_chunk(config: &Self::Config, request: &Request, chunk: Chunk) -> ChunkVerdict;
}

/// A filter of response heads.
pub trait ResponseFilter {
    /// As [`Filter::Config`].
    type Config: DeserializeOwned;

    /// Decides on the response to one request, when nothing of it was sent to the client. May change its head.
    ///
    /// The request can be read as the filters left it.
    fn on_response(config: &Self::Config, request: &Request, response: &mut ResponseHead) -> ResponseVerdict;
}

/// A filter that decides on a response when its whole body was read.
///
/// Where the module has the phase `response` too, that one decides first, and this one only on responses of which it said
/// [`ResponseVerdict::read_body`]. A body beyond the limit `body` is answered `502`.
pub trait WholeResponseFilter {
    /// As [`Filter::Config`].
    type Config: DeserializeOwned;

    /// Decides on one response. Nothing of it was sent to the client: its head may be changed, and its body replaced.
    fn on_whole_response(
        config: &Self::Config,
        request: &Request,
        response: &mut ResponseHead,
        body: &mut Body,
    ) -> ResponseVerdict;
}

/// A filter that sees a response's body chunk by chunk, while it is on its way to the client.
pub trait ResponseBodyFilter {
    /// As [`Filter::Config`].
    type Config: DeserializeOwned;

    /// Says what happens to a chunk. Each gets a fresh instance, unless the manifest pins it: what is half done goes into
    /// [`context`](crate::context), or is held. Not called for responses without a body.
    fn on_response_chunk(
        config: &Self::Config,
        request: &Request,
        response: &ResponseHead,
        chunk: Chunk,
    ) -> ChunkVerdict;
}

/// A filter that hears how each exchange ended.
pub trait FinishFilter {
    /// As [`Filter::Config`].
    type Config: DeserializeOwned;

    /// Called after the last byte, or after what ended the exchange before it. Nothing can be changed any more.
    fn on_finish(config: &Self::Config, request: &Request, outcome: &Outcome);
}

/// Makes a type the filter that this module exports.
///
/// `export!(Type)` exports its request phase, a [`Filter`]. Other phases, or several, are named:
///
/// ```
/// # use beamline_sdk::{FinishFilter, Outcome, Request, ResponseFilter, ResponseHead, ResponseVerdict};
/// # struct Type;
/// # impl ResponseFilter for Type {
/// #     type Config = ();
/// #     fn on_response(_: &(), _: &Request, _: &mut ResponseHead) -> ResponseVerdict { ResponseVerdict::next() }
/// # }
/// # impl FinishFilter for Type {
/// #     type Config = ();
/// #     fn on_finish(_: &(), _: &Request, _: &Outcome) {}
/// # }
/// beamline_sdk::export!(Type: response, finish);
/// ```
///
/// | phase | trait |
/// |---|---|
/// | `request` | [`Filter`] |
/// | `whole_request` | [`WholeRequestFilter`] |
/// | `request_body` | [`RequestBodyFilter`] |
/// | `response` | [`ResponseFilter`] |
/// | `whole_response` | [`WholeResponseFilter`] |
/// | `response_body` | [`ResponseBodyFilter`] |
/// | `finish` | [`FinishFilter`] |
///
/// A phase that is not exported costs nothing: the host does not call it. Once per module, in a crate whose `crate-type` is
/// `["cdylib"]`. Built for another target than Wasm it only checks that the type has the traits.
#[macro_export]
macro_rules! export {
    ($filter:ty) => {
        $crate::export!($filter: request);
    };
    ($filter:ty: $($phase:ident),+ $(,)?) => {
        $($crate::__phase!($phase $filter);)+
    };
}

/// Exports one phase.
#[doc(hidden)]
#[macro_export]
macro_rules! __phase {
    (request $filter:ty) => {
        $crate::__phase!(@ $filter, Filter, on_request, $crate::raw, {
            fn handle(request: &$crate::internal::RequestHead) -> $crate::internal::Verdict {
                $crate::internal::request::<$filter>(request)
            }
        }, request_handler);
    };
    (whole_request $filter:ty) => {
        $crate::__phase!(@ $filter, WholeRequestFilter, on_whole_request, $crate::raw::whole_request, {
            fn handle(
                request: &$crate::internal::RequestHead,
                body: ::std::vec::Vec<u8>,
            ) -> $crate::internal::RequestDecision {
                $crate::internal::whole_request::<$filter>(request, body)
            }
        }, whole_request_handler);
    };
    (request_body $filter:ty) => {
        $crate::__phase!(@ $filter, RequestBodyFilter, on_request_chunk, $crate::raw::request_body, {
            fn handle(
                request: &$crate::internal::RequestHead,
                chunk: ::std::vec::Vec<u8>,
                last: bool,
            ) -> $crate::internal::RequestChunkVerdict {
                $crate::internal::request_body::<$filter>(request, &chunk, last)
            }
        }, request_body_handler);
    };
    (response $filter:ty) => {
        $crate::__phase!(@ $filter, ResponseFilter, on_response, $crate::raw::response, {
            fn handle(
                request: &$crate::internal::RequestHead,
                response: &$crate::internal::ResponseHead,
            ) -> $crate::internal::ResponseVerdict {
                $crate::internal::response::<$filter>(request, response)
            }
        }, response_handler);
    };
    (whole_response $filter:ty) => {
        $crate::__phase!(@ $filter, WholeResponseFilter, on_whole_response, $crate::raw::whole_response, {
            fn handle(
                request: &$crate::internal::RequestHead,
                response: &$crate::internal::ResponseHead,
                body: ::std::vec::Vec<u8>,
            ) -> $crate::internal::ResponseDecision {
                $crate::internal::whole_response::<$filter>(request, response, body)
            }
        }, whole_response_handler);
    };
    (response_body $filter:ty) => {
        $crate::__phase!(@ $filter, ResponseBodyFilter, on_response_chunk, $crate::raw::response_body, {
            fn handle(
                request: &$crate::internal::RequestHead,
                response: &$crate::internal::ResponseHead,
                chunk: ::std::vec::Vec<u8>,
                last: bool,
            ) -> $crate::internal::ResponseChunkVerdict {
                $crate::internal::response_body::<$filter>(request, response, &chunk, last)
            }
        }, response_body_handler);
    };
    (finish $filter:ty) => {
        $crate::__phase!(@ $filter, FinishFilter, on_finish, $crate::raw::finish, {
            fn handle(request: &$crate::internal::RequestHead, outcome: $crate::Outcome) {
                $crate::internal::finish::<$filter>(request, &outcome);
            }
        }, finish_handler);
    };
    (@ $filter:ty, $trait:ident, $call:ident, $raw:path, {$($handle:tt)+}, $interface:ident) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            use $raw as raw;

            struct Exported;

            impl raw::exports::beamline::edge::$interface::Guest for Exported {
                $($handle)+
            }

            raw::export!(Exported with_types_in raw);
        };

        // Compiles only for filters of this phase.
        #[cfg(not(target_family = "wasm"))]
        const _: () = {
            let _ = <$filter as $crate::$trait>::$call;
        };
    };
}

/// What [`export!`](crate::export) calls: one function for each phase.
#[cfg(target_family = "wasm")]
#[expect(missing_docs, unreachable_pub, reason = "no part of the interface")]
pub mod wasm {
    use serde::de::DeserializeOwned;

    pub use crate::raw::{
        beamline::edge::{
            http::{RequestHead, ResponseHead},
            verdicts::{ResponseVerdict, Verdict},
        },
        request_body::beamline::edge::bodies::ChunkVerdict as RequestChunkVerdict,
        response_body::beamline::edge::bodies::ChunkVerdict as ResponseChunkVerdict,
        whole_request::exports::beamline::edge::whole_request_handler::Decision as RequestDecision,
        whole_response::exports::beamline::edge::whole_response_handler::Decision as ResponseDecision,
    };
    use crate::{
        Body, Chunk, ChunkVerdict, Filter, FinishFilter, Outcome, Request, RequestBodyFilter,
        ResponseBodyFilter, ResponseFilter, WholeRequestFilter, WholeResponseFilter, config, log, raw,
    };

    /// The configuration of the call that begins. Not inlined: a module of several phases has it once.
    #[inline(never)]
    fn begin<C: DeserializeOwned>() -> C {
        // Without a hook a panic is a bare trap: Wasm has no stderr.
        std::panic::set_hook(Box::new(|panic| log::write(log::Level::Error, &panic.to_string())));
        match config::read(&crate::host::config()) {
            Ok(config) => config,
            Err(error) => {
                log::write(log::Level::Error, &error);
                core::arch::wasm32::unreachable()
            }
        }
    }

    pub fn request<F: Filter>(request: &RequestHead) -> Verdict {
        F::on_request(&begin(), &mut Request::new(request)).into_raw()
    }

    pub fn whole_request<F: WholeRequestFilter>(request: &RequestHead, body: Vec<u8>) -> RequestDecision {
        let mut body = Body::new(body);
        let verdict = F::on_whole_request(&begin(), &mut Request::new(request), &mut body).into_raw();
        RequestDecision { verdict, body: body.into_replaced() }
    }

    pub fn request_body<F: RequestBodyFilter>(
        request: &RequestHead,
        chunk: &[u8],
        last: bool,
    ) -> RequestChunkVerdict {
        use raw::request_body::beamline::edge::bodies::Replacement;
        let chunk = Chunk::new(chunk, last);
        match F::on_request_chunk(&begin(), &Request::new(request), chunk) {
            ChunkVerdict::Pass => RequestChunkVerdict::Pass,
            ChunkVerdict::Hold => RequestChunkVerdict::Hold,
            ChunkVerdict::Replace(replacement) => {
                let (data, again) = replacement.into_parts();
                RequestChunkVerdict::Replace(Replacement { data, again: again as u32 })
            }
        }
    }

    pub fn response<F: ResponseFilter>(request: &RequestHead, response: &ResponseHead) -> ResponseVerdict {
        let mut response = crate::ResponseHead::new(response);
        F::on_response(&begin(), &Request::new(request), &mut response).into_raw()
    }

    pub fn whole_response<F: WholeResponseFilter>(
        request: &RequestHead,
        response: &ResponseHead,
        body: Vec<u8>,
    ) -> ResponseDecision {
        let (mut response, mut body) = (crate::ResponseHead::new(response), Body::new(body));
        let request = Request::new(request);
        let verdict = F::on_whole_response(&begin(), &request, &mut response, &mut body).into_raw();
        ResponseDecision { verdict, body: body.into_replaced() }
    }

    pub fn response_body<F: ResponseBodyFilter>(
        request: &RequestHead,
        response: &ResponseHead,
        chunk: &[u8],
        last: bool,
    ) -> ResponseChunkVerdict {
        use raw::response_body::beamline::edge::bodies::Replacement;
        let (response, chunk) = (crate::ResponseHead::new(response), Chunk::new(chunk, last));
        match F::on_response_chunk(&begin(), &Request::new(request), &response, chunk) {
            ChunkVerdict::Pass => ResponseChunkVerdict::Pass,
            ChunkVerdict::Hold => ResponseChunkVerdict::Hold,
            ChunkVerdict::Replace(replacement) => {
                let (data, again) = replacement.into_parts();
                ResponseChunkVerdict::Replace(Replacement { data, again: again as u32 })
            }
        }
    }

    pub fn finish<F: FinishFilter>(request: &RequestHead, outcome: &Outcome) {
        F::on_finish(&begin(), &Request::new(request), outcome);
    }
}

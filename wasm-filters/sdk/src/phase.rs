//! From the exported function to a filter's own: the configuration is read, panics are made visible.

use serde::de::DeserializeOwned;

use crate::{Request, Verdict};

/// A filter of the request phase.
///
/// There is no `self`: an instance lives for one call, and what it should know comes with its configuration.
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

/// Makes a [`Filter`] the one that this module exports.
///
/// Once per module, in a crate whose `crate-type` is `["cdylib"]`. Built for another target than Wasm it only checks
/// that the type is a filter.
#[macro_export]
macro_rules! export {
    ($filter:ty) => {
        #[cfg(target_family = "wasm")]
        const _: () = {
            struct Exported;

            impl $crate::internal::Guest for Exported {
                fn handle(head: &$crate::internal::RequestHead) -> $crate::internal::RawVerdict {
                    $crate::internal::run::<$filter>(head)
                }
            }

    $crate::raw::export!(Exported with_types_in $crate::raw);
        };

        #[cfg(not(target_family = "wasm"))]
        const _: fn() = $crate::internal::is_a_filter::<$filter>;
    };
}

#[cfg(target_family = "wasm")]
mod wasm {
    pub use crate::raw::{
        beamline::edge::verdicts::Verdict as RawVerdict,
        exports::beamline::edge::request_handler::{Guest, RequestHead},
    };
    use crate::{Filter, Request, config, log};

    /// One call of the request phase.
    pub fn run<F: Filter>(head: &RequestHead) -> RawVerdict {
        // Without a hook a panic is a bare trap: Wasm has no stderr.
        std::panic::set_hook(Box::new(|panic| log::write(log::Level::Error, &panic.to_string())));
        match config::read::<F::Config>(&crate::host::config()) {
            Ok(config) => F::on_request(&config, &mut Request::new(head)).into_raw(),
            Err(error) => {
                log::write(log::Level::Error, &error);
                core::arch::wasm32::unreachable()
            }
        }
    }
}

#[cfg(target_family = "wasm")]
pub use wasm::*;

/// Compiles only for filters.
#[cfg(not(target_family = "wasm"))]
pub fn is_a_filter<F: Filter>() {
    let _: fn(&F::Config, &mut Request) -> Verdict = F::on_request;
}

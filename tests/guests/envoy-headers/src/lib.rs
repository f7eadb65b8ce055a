//! The bench's filter for Envoy: reads the same twelve headers as `tiny`, compares one, and has the request routed.
//!
//! Envoy keeps one instance of it for each worker and all requests.
#![cfg(target_family = "wasm")]

use proxy_wasm::{
    traits::{Context, HttpContext},
    types::{Action, LogLevel},
};

const NAMES: [&str; 12] =
    ["x-h1", "x-h2", "x-h3", "x-h4", "x-h5", "x-h6", "x-h7", "x-h8", "x-h9", "x-h10", "x-h11", "x-h12"];

/// The start, which the host calls once.
mod start {
    use super::{Headers, HttpContext, LogLevel};

    proxy_wasm::main! {{
        proxy_wasm::set_log_level(LogLevel::Warn);
        proxy_wasm::set_http_context(|_, _| -> Box<dyn HttpContext> { Box::new(Headers) });
    }}
}

struct Headers;

impl Context for Headers {}

impl HttpContext for Headers {
    fn on_http_request_headers(&mut self, _fields: usize, _end: bool) -> Action {
        let values = NAMES.map(|name| self.get_http_request_header_bytes(name));
        if values[11].as_deref() == Some(b"other") {
            self.set_http_request_header("x-route", Some("other"));
        }
        Action::Continue
    }
}

//! The bindings of the WIT package `beamline:edge` as they were generated: its world `request-filter`, and a module for each
//! other phase.
//!
//! The rest of this crate is built on them. They are public for filters that want nothing else: implement
//! [`exports::beamline::edge::request_handler::Guest`] and call `beamline_sdk::raw::export!(Type with_types_in
//! beamline_sdk::raw)`; for another phase the same of its module, such as [`response`]. A crate may do so for several: their
//! component types become one.
#![allow(unsafe_code, missing_docs, unreachable_pub, reason = "generated code")]
#![allow(
    clippy::allow_attributes_without_reason,
    clippy::undocumented_unsafe_blocks,
    reason = "generated code"
)]

wit_bindgen::generate!({
    path: "../../wit",
    world: "request-filter",
    // Parameters are borrowed: `get-many` takes `&[&str]`.
    ownership: Borrowing { duplicate_if_necessary: false },
    additional_derives: [PartialEq, Eq],
    pub_export_macro: true,
    default_bindings_module: "beamline_sdk::raw",
});

/// The bindings of one more phase, with the types of those above.
macro_rules! phase {
    ($module:ident, $world:literal, $path:literal $(, $verdicts:literal)?) => {
        pub mod $module {
            wit_bindgen::generate!({
                path: "../../wit",
                inline: $world,
                ownership: Borrowing { duplicate_if_necessary: false },
                additional_derives: [PartialEq, Eq],
                generate_all,
                pub_export_macro: true,
                default_bindings_module: $path,
                with: {
                    "beamline:edge/http@0.1.0": crate::raw::beamline::edge::http,
                    $($verdicts: crate::raw::beamline::edge::verdicts,)?
                },
            });
        }
    };
}

phase!(
    whole_request,
    "package beamline:sdk; world whole-request { export beamline:edge/whole-request-handler@0.1.0; }",
    "beamline_sdk::raw::whole_request",
    "beamline:edge/verdicts@0.1.0"
);
phase!(
    request_body,
    "package beamline:sdk; world request-body { export beamline:edge/request-body-handler@0.1.0; }",
    "beamline_sdk::raw::request_body"
);
phase!(
    response,
    "package beamline:sdk; world response { export beamline:edge/response-handler@0.1.0; }",
    "beamline_sdk::raw::response",
    "beamline:edge/verdicts@0.1.0"
);
phase!(
    whole_response,
    "package beamline:sdk; world whole-response { export beamline:edge/whole-response-handler@0.1.0; }",
    "beamline_sdk::raw::whole_response",
    "beamline:edge/verdicts@0.1.0"
);
phase!(
    response_body,
    "package beamline:sdk; world response-body { export beamline:edge/response-body-handler@0.1.0; }",
    "beamline_sdk::raw::response_body"
);
phase!(
    finish,
    "package beamline:sdk; world finish { export beamline:edge/finish-handler@0.1.0; }",
    "beamline_sdk::raw::finish"
);

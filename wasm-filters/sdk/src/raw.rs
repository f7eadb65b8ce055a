//! The bindings of the WIT package `beamline:edge`, world `request-filter`, as they were generated.
//!
//! The rest of this crate is built on them. They are public for filters that want nothing else: implement
//! [`exports::beamline::edge::request_handler::Guest`] and call `beamline_sdk::raw::export!(Type with_types_in
//! beamline_sdk::raw)`.
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

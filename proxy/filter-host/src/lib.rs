//! The Wasm host: validate, compile, instantiate, bindings, chain, limits.

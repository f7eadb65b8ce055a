//! What wasmtime makes of `wit/edge.wit`. Exports are called async, so that a long call can be set aside.

wasmtime::component::bindgen!({
    path: "../../wit",
    world: "request-filter",
    exports: { default: async },
    with: { "beamline:edge/http.request-head": crate::head::RequestHead },
});

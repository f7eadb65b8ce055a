//! What wasmtime makes of `wit/`. Exports are called async, so that a long call can be set aside; every import can end the
//! call, for each one counts against `limits.host_calls`.

wasmtime::component::bindgen!({
    path: "../../wit",
    world: "request-filter",
    imports: {
        "beamline:edge/outbound.send": async | trappable,
        default: trappable,
    },
    exports: { default: async },
    with: { "beamline:edge/http.request-head": crate::head::RequestHead },
});

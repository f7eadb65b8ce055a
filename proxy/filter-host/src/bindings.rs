//! What wasmtime makes of `wit/edge.wit`. Exports are called async, so that a long call can be set aside.
//!
//! The world has every phase, which no module needs to export: each is looked up by itself (see `phases.rs`).

wasmtime::component::bindgen!({
    path: "../../wit",
    inline: "
        package beamline:host;

        world every-phase {
            include beamline:edge/imports@0.1.0;
            export beamline:edge/request-handler@0.1.0;
            export beamline:edge/whole-request-handler@0.1.0;
            export beamline:edge/request-body-handler@0.1.0;
            export beamline:edge/response-handler@0.1.0;
            export beamline:edge/whole-response-handler@0.1.0;
            export beamline:edge/response-body-handler@0.1.0;
            export beamline:edge/finish-handler@0.1.0;
        }
    ",
    world: "beamline:host/every-phase",
    exports: { default: async },
    imports: {
        "beamline:edge/http.[method]request-head.get-many": trappable,
        "beamline:edge/http.[method]response-head.get-many": trappable,
    },
    with: {
        "beamline:edge/http.request-head": crate::head::RequestHead,
        "beamline:edge/http.response-head": crate::head::ResponseHead,
    },
});

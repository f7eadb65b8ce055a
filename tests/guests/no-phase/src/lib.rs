//! A module that carries a component type, imports nothing unknown, and exports no phase.

wit_bindgen::generate!({ inline: "package beamline-tests:guests; world no-phase {}" });

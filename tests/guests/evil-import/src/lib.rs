//! A filter that is right in all but one thing: it imports `env.evil`, which no host gives.

use beamline_sdk::{Filter, Request, Verdict};

struct Evil;

#[cfg(target_family = "wasm")]
#[link(wasm_import_module = "env")]
unsafe extern "C" {
    safe fn evil() -> i32;
}

#[cfg(not(target_family = "wasm"))]
fn evil() -> i32 {
    0
}

impl Filter for Evil {
    type Config = ();

    fn on_request(_: &(), _: &mut Request) -> Verdict {
        match evil() {
            0 => Verdict::next(),
            _ => Verdict::respond(500).into(),
        }
    }
}

beamline_sdk::export!(Evil);

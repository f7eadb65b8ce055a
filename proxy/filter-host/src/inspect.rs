//! What a module is and whether it can be taken: looked at before anything is compiled, in the compile worker only.

use beamline_model::Digest;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use wasmparser::{Encoding, Parser, Payload, Validator, WasmFeatures};

use crate::{host::wasi, phases::Phase};

const PACKAGE: &str = "beamline:edge/";

/// Begins the interfaces by which a filter would send requests past its tenant's grant.
const WASI_HTTP: &str = "wasi:http/";

/// Where the functions come from that core modules of WASI's first version import.
const PREVIEW1: &str = wasi_preview1_component_adapter_provider::WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME;

/// Makes of them functions of WASI 0.2: within the module, so that the host knows one version alone.
pub(crate) const ADAPTER: &[u8] =
    wasi_preview1_component_adapter_provider::WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER;

/// The interfaces that a module may import, beside those of WASI.
pub(crate) const IMPORTS: &[&str] = &[
    "beamline:edge/http@0.1.0",
    "beamline:edge/verdicts@0.1.0",
    "beamline:edge/config@0.1.0",
    "beamline:edge/log@0.1.0",
    "beamline:edge/random@0.1.0",
    "beamline:edge/upstreams@0.1.0",
    "beamline:edge/clock@0.1.0",
    "beamline:edge/properties@0.1.0",
    "beamline:edge/kv@0.1.0",
    "beamline:edge/buckets@0.1.0",
    "beamline:edge/metrics@0.1.0",
    "beamline:edge/secrets@0.1.0",
    "beamline:edge/outbound@0.1.0",
    "beamline:edge/bodies@0.1.0",
    "beamline:edge/context@0.1.0",
];

/// The interfaces that are phases when a module exports them.
const PHASES: [&str; Phase::ALL.len()] = {
    let mut names = [""; Phase::ALL.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = Phase::ALL[i].interface();
        i += 1;
    }
    names
};

/// How a module came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModuleKind {
    /// A core module with its component type embedded; made a component at upload.
    CoreModule,
    /// A component, taken as it is.
    Component,
}

/// How the sandbox of a module's request phase is made fresh for each request. Its other phases are always in the
/// component tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// A kept instance of its core module is put back to its first state after each request.
    Reset,
    /// A component instance is made for each request.
    Component,
}

fn component_tier() -> Tier {
    Tier::Component
}

/// What was found out about a module that can be taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleInfo {
    /// The digest of the bytes as they were uploaded.
    pub digest: Digest,
    /// How it came.
    pub kind: ModuleKind,
    /// The phases that it exports.
    pub phases: Vec<String>,
    /// The interfaces that it imports.
    pub imports: Vec<String>,
    /// The tier that its request phase runs in. Described before there were tiers: `component`.
    #[serde(default = "component_tier")]
    pub tier: Tier,
    /// Why it is not in the reset tier.
    #[serde(default)]
    pub tier_reason: Option<String>,
    /// Bytes as uploaded.
    pub size: u64,
    /// Bytes of machine code and metadata.
    pub artifact_size: u64,
    /// Milliseconds that compiling took, the worker's start included.
    pub compile_ms: u64,
}

/// Why a module cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "reason")]
pub enum Rejection {
    /// Not Wasm at all.
    #[error("this is not a WebAssembly module: expected it to begin with \\0asm, found {found}")]
    NotWasm {
        /// Its first bytes.
        found: String,
    },
    /// Malformed, or uses something that is switched off.
    #[error("the module is not valid WebAssembly: {problem}")]
    Invalid {
        /// The validator's words.
        problem: String,
    },
    /// Larger than its tenant's limit class takes.
    #[error(
        "the module has {size} bytes, more than the limit of {limit}: build it with opt-level = \"s\", lto and strip, or ask the operator for another limit class"
    )]
    TooLarge {
        /// Its bytes.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// An import that this host does not offer.
    #[error("the module imports {import}, which this host does not offer: it offers {}, and of WASI 0.2 {}", IMPORTS.join(", "), wasi::INTERFACES.join(", "))]
    UnknownImport {
        /// Its name.
        import: String,
    },
    /// An import of `wasi:http`, which no filter is granted.
    #[error(
        "the module imports {import}, which no filter is granted: send requests by beamline:edge/outbound@0.1.0, to what egress.allow of the manifest names, and build without wasi:http (in JavaScript: disableFeatures: ['http', 'fetch-event'])"
    )]
    WasiHttp {
        /// Its name.
        import: String,
    },
    /// An export of `beamline:edge` that is no phase of this host.
    #[error("the module exports {export}, which is no phase of this host: its phases are {}", PHASES.join(", "))]
    UnknownPhase {
        /// Its name.
        export: String,
    },
    /// No phase at all.
    #[error("the module exports no phase: expected {}, found {}", PHASES.join(" or "), if found.is_empty() { "no export" } else { found })]
    NoPhase {
        /// What it exports.
        found: String,
    },
    /// A core module that no binding generator has been over.
    #[error(
        "the core module carries no component type: build it with wit-bindgen (or the beamline-sdk crate) over the package beamline:edge, or upload a component"
    )]
    NoComponentType,
    /// An interface of the right name whose functions are not this host's.
    #[error(
        "the module does not fit this host's interfaces: {problem}: build it for beamline:edge@0.1.0 and, where it imports WASI, for {wasi} or an earlier 0.2",
        wasi = wasi::VERSION
    )]
    Mismatch {
        /// Which import or export, and how it differs.
        problem: String,
    },
    /// More memories, tables or instances than one instance may have, or larger ones.
    #[error("the module needs more than one instance may have: {problem}")]
    TooDemanding {
        /// What it needs and what it may have.
        problem: String,
    },
}

/// A module that passed: its component form, and what it is.
pub(crate) struct Inspected {
    pub(crate) component: Vec<u8>,
    pub(crate) kind: ModuleKind,
    pub(crate) phases: Vec<String>,
    pub(crate) imports: Vec<String>,
}

fn invalid(error: impl std::fmt::Display) -> Rejection {
    Rejection::Invalid { problem: error.to_string() }
}

/// Whether the host offers `interface`, of which a module imports `import`.
fn offered(interface: &str, import: String) -> Result<(), Rejection> {
    if IMPORTS.contains(&interface) || wasi::offers(interface) {
        Ok(())
    } else if interface.starts_with(WASI_HTTP) {
        Err(Rejection::WasiHttp { import })
    } else {
        Err(Rejection::UnknownImport { import })
    }
}

/// Checks a module and makes it a component.
pub(crate) fn inspect(bytes: &[u8]) -> Result<Inspected, Rejection> {
    if !bytes.starts_with(b"\0asm") {
        let found = bytes.iter().take(8).map(|b| b.escape_ascii().to_string()).collect::<String>();
        return Err(Rejection::NotWasm { found: format!("\"{found}\"") });
    }
    let features = WasmFeatures::default() | WasmFeatures::COMPONENT_MODEL;
    Validator::new_with_features(features).validate_all(bytes).map_err(invalid)?;
    let (component, kind) = if Parser::is_component(bytes) {
        (bytes.to_vec(), ModuleKind::Component)
    } else {
        (componentize(bytes)?, ModuleKind::CoreModule)
    };
    let (imports, exports) = interfaces(&component)?;
    imports.iter().try_for_each(|import| offered(import, import.clone()))?;
    let (phases, others): (Vec<_>, Vec<_>) = exports.into_iter().partition(|e| PHASES.contains(&e.as_str()));
    if let Some(export) = others.iter().find(|e| e.starts_with(PACKAGE)) {
        return Err(Rejection::UnknownPhase { export: export.clone() });
    }
    if phases.is_empty() {
        return Err(Rejection::NoPhase { found: others.join(", ") });
    }
    Ok(Inspected { component, kind, phases, imports })
}

/// A core module with its component type embedded becomes a component.
fn componentize(bytes: &[u8]) -> Result<Vec<u8>, Rejection> {
    let (mut typed, mut preview1) = (false, false);
    let mut exports = Vec::new();
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(invalid)? {
            Payload::CustomSection(section) => typed |= section.name().starts_with("component-type"),
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import.map_err(invalid)?;
                    match import.module {
                        PREVIEW1 => preview1 = true,
                        own if own.starts_with("[export]") => {}
                        interface => offered(interface, format!("{interface}.{}", import.name))?,
                    }
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    exports.push(export.map_err(invalid)?.name.to_owned());
                }
            }
            _ => {}
        }
    }
    if !typed {
        let phase = exports.iter().any(|e| e.starts_with(PACKAGE));
        return Err(if phase {
            Rejection::NoComponentType
        } else {
            Rejection::NoPhase { found: exports.join(", ") }
        });
    }
    let mut encoder = wit_component::ComponentEncoder::default();
    encoder
        .module(bytes)
        .and_then(|encoder| if preview1 { encoder.adapter(PREVIEW1, ADAPTER) } else { Ok(encoder) })
        .and_then(|encoder| encoder.encode())
        .map_err(|e| Rejection::Mismatch { problem: format!("{e:#}") })
}

/// The names that a component imports and exports at its outermost level.
pub(crate) fn interfaces(component: &[u8]) -> Result<(Vec<String>, Vec<String>), Rejection> {
    let (mut imports, mut exports, mut depth) = (Vec::new(), Vec::new(), 0usize);
    for payload in Parser::new(0).parse_all(component) {
        match payload.map_err(invalid)? {
            Payload::Version { encoding: Encoding::Component, .. } => depth += 1,
            Payload::Version { encoding: Encoding::Module, .. } => depth += 1,
            Payload::End(_) => depth -= 1,
            Payload::ComponentImportSection(section) if depth == 1 => {
                for import in section {
                    imports.push(import.map_err(invalid)?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if depth == 1 => {
                for export in section {
                    exports.push(export.map_err(invalid)?.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    Ok((imports, exports))
}

//! Whether a module can be put back to its first state: what it may be made of, and why one may not.
//!
//! Allowed is what is known, by proposal and by instruction; whatever is new stays out until somebody has thought
//! about where it keeps state.

use thiserror::Error;
use wasmparser::{
    CanonicalOption, CompositeInnerType, DataKind, Export, ExternalKind, FuncType, MemArg, Operator, Parser,
    Payload, TypeRef, ValType, Validator, WasmFeatures,
};

use super::{
    abi::{self, Function},
    image::MAX_IMAGES,
};
use crate::{inspect::ModuleKind, phases::Phase};

/// Bytes of a page of linear memory.
pub(super) const PAGE: u64 = 64 << 10;
/// Pages of the largest memory that a limit can grant.
const MAX_PAGES: u64 = 1024;
/// Bytes of a module: larger ones bring a language's engine along, which this tier would do no good.
const MAX_BYTES: usize = 4 << 20;
/// Pages that a memory may begin with: a kept instance takes them for as long as it is kept.
pub(super) const MAX_FIRST_PAGES: u64 = 32;
/// Bytes that a first state may take, without its long rows of zeros: kept for each module that is loaded.
pub(super) const MAX_IMAGE: usize = 1 << 20;
/// Elements of all tables together: as many as an instance of the component tier may have.
const MAX_TABLE_ELEMENTS: u64 = crate::host::MAX_TABLE_ELEMENTS as u64;
/// Functions that a module may define, and globals: wasmtime has a record of each in each instance, and mutable globals
/// are set back after each request.
const MAX_FUNCTIONS: usize = 10_000;
const MAX_GLOBALS: u32 = 500;

/// The proposals whose state is known: memory, globals, and tables that nothing changes.
const FEATURES: WasmFeatures = WasmFeatures::WASM2
    .union(WasmFeatures::BULK_MEMORY_OPT)
    .union(WasmFeatures::CALL_INDIRECT_OVERLONG)
    .union(WasmFeatures::TAIL_CALL);

const HANDLE: &str = "beamline:edge/request-handler@0.1.0#handle";
const POST_HANDLE: &str = "cabi_post_beamline:edge/request-handler@0.1.0#handle";
/// Exports that say that a module is to be called in another way than the usual one, or has code that runs beside its
/// phases: by their beginnings.
const OTHER_CONVENTIONS: [&str; 7] = [
    "cm32p2",
    "canonical_abi_realloc",
    "cabi_import_realloc",
    "cabi_export_realloc",
    "cabi_realloc_adapter",
    "[",
    "__wasm_",
];

/// Why a module stays in the component tier.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum Unqualified {
    #[error("it was uploaded as a component; only core modules can be put back to their first state")]
    Component,
    #[error("it has no request-handler, the one phase that the reset tier has")]
    Phase,
    #[error("it imports {0}, which the reset tier does not have")]
    Import(String),
    #[error("it uses what the reset tier does not know: {0}")]
    Feature(String),
    #[error("it uses the instruction {0}, whose effect cannot be taken back")]
    Instruction(&'static str),
    #[error("global {0} is mutable and holds a reference")]
    Global(u32),
    #[error("its memory: {0}")]
    Memory(String),
    #[error("its tables have {0} elements, more than {MAX_TABLE_ELEMENTS}")]
    Tables(u64),
    #[error("it has {0} bytes, more than {MAX_BYTES}")]
    Size(usize),
    #[error("it has {0} functions, more than {MAX_FUNCTIONS}")]
    Functions(usize),
    #[error("it has {0} globals, more than {MAX_GLOBALS}")]
    Globals(u32),
    #[error("data segment {0} does not lie at a fixed place within its first memory")]
    Segment(u32),
    #[error("it exports {0}, another way to be called than the usual one")]
    Convention(String),
    #[error("it does not export {0}")]
    Missing(&'static str),
    #[error("it has strings that are not UTF-8")]
    Encoding,
    #[error("it could not be rewritten: {0}")]
    Rewrite(String),
    #[error("compiling it took so long that it was not compiled a second time")]
    Slow,
    #[error("compiling it a second time, for the reset tier, took more than the node gives it")]
    OutOfBounds,
    #[error("its start has no fixed outcome: {0}")]
    Start(String),
    #[error("its first state has {0} bytes, more than {MAX_IMAGE}")]
    Image(usize),
    #[error(
        "its first state has {0} bytes, more than is left of the {MAX_IMAGES} that a node keeps for all its modules"
    )]
    Images(usize),
}

/// What went wrong while a module was started.
impl From<wasmtime::Error> for Unqualified {
    fn from(error: wasmtime::Error) -> Self {
        Self::Start(error.root_cause().to_string())
    }
}

/// A module that qualifies, and what rewriting needs to know of it.
pub(crate) struct Qualified<'a> {
    pub(super) bytes: &'a [u8],
    /// Its imports, in order; all are functions.
    pub(super) imports: Vec<&'static Function>,
    /// Parameters of each function that it defines.
    pub(super) params: Vec<u32>,
    pub(super) initial_pages: u64,
    pub(super) max_pages: u64,
    pub(super) globals: u32,
    pub(super) mutable_globals: Vec<u32>,
    pub(super) start: Option<u32>,
    pub(super) initialize: Option<u32>,
    pub(super) handle: u32,
    pub(super) post_handle: Option<u32>,
    pub(super) realloc: Option<u32>,
}

/// What an instruction does to linear memory.
pub(super) enum Access {
    None,
    /// Reads `1 << max_align` bytes; one operand, the address.
    Load(MemArg),
    /// Writes `1 << max_align` bytes; the address, then a value of this type.
    Store(MemArg, ValType),
}

fn has_memarg(op: &Operator<'_>) -> bool {
    macro_rules! operators {
        ($( @$proposal:ident $op:ident $({ $($arg:ident: $argty:ty),* })? => $visit:ident ($($ann:tt)*) )*) => {
            match op {
                $( Operator::$op $({ $($arg: _),* })? => {
                    false $( $( || stringify!($arg) == "memarg" )* )?
                } )*
                // An instruction that this build has no name for.
                _ => true,
            }
        };
    }
    wasmparser::for_each_operator!(operators)
}

/// Sorts an instruction. An error names one that disqualifies.
pub(super) fn access(op: &Operator<'_>) -> Result<Access, Unqualified> {
    use Operator as O;
    use ValType::{F32, F64, I32, I64, V128};
    Ok(match *op {
        O::I32Load { memarg }
        | O::I64Load { memarg }
        | O::F32Load { memarg }
        | O::F64Load { memarg }
        | O::I32Load8S { memarg }
        | O::I32Load8U { memarg }
        | O::I32Load16S { memarg }
        | O::I32Load16U { memarg }
        | O::I64Load8S { memarg }
        | O::I64Load8U { memarg }
        | O::I64Load16S { memarg }
        | O::I64Load16U { memarg }
        | O::I64Load32S { memarg }
        | O::I64Load32U { memarg }
        | O::V128Load { memarg }
        | O::V128Load8x8S { memarg }
        | O::V128Load8x8U { memarg }
        | O::V128Load16x4S { memarg }
        | O::V128Load16x4U { memarg }
        | O::V128Load32x2S { memarg }
        | O::V128Load32x2U { memarg }
        | O::V128Load8Splat { memarg }
        | O::V128Load16Splat { memarg }
        | O::V128Load32Splat { memarg }
        | O::V128Load64Splat { memarg }
        | O::V128Load32Zero { memarg }
        | O::V128Load64Zero { memarg } => Access::Load(memarg),
        O::I32Store { memarg } | O::I32Store8 { memarg } | O::I32Store16 { memarg } => {
            Access::Store(memarg, I32)
        }
        O::I64Store { memarg }
        | O::I64Store8 { memarg }
        | O::I64Store16 { memarg }
        | O::I64Store32 { memarg } => Access::Store(memarg, I64),
        O::F32Store { memarg } => Access::Store(memarg, F32),
        O::F64Store { memarg } => Access::Store(memarg, F64),
        O::V128Store { memarg } => Access::Store(memarg, V128),
        O::V128Load8Lane { .. }
        | O::V128Load16Lane { .. }
        | O::V128Load32Lane { .. }
        | O::V128Load64Lane { .. } => return Err(Unqualified::Instruction("v128.load_lane")),
        O::V128Store8Lane { .. }
        | O::V128Store16Lane { .. }
        | O::V128Store32Lane { .. }
        | O::V128Store64Lane { .. } => return Err(Unqualified::Instruction("v128.store_lane")),
        O::TableSet { .. } => return Err(Unqualified::Instruction("table.set")),
        O::TableGrow { .. } => return Err(Unqualified::Instruction("table.grow")),
        O::TableInit { .. } => return Err(Unqualified::Instruction("table.init")),
        O::TableCopy { .. } => return Err(Unqualified::Instruction("table.copy")),
        O::TableFill { .. } => return Err(Unqualified::Instruction("table.fill")),
        O::ElemDrop { .. } => return Err(Unqualified::Instruction("elem.drop")),
        O::DataDrop { .. } => return Err(Unqualified::Instruction("data.drop")),
        O::MemoryInit { .. } => return Err(Unqualified::Instruction("memory.init")),
        _ if has_memarg(op) => return Err(Unqualified::Instruction("of a memory access that is not known")),
        _ => Access::None,
    })
}

/// What the walk over the sections found so far.
#[derive(Default)]
struct Seen {
    types: Vec<FuncType>,
    imports: Vec<&'static Function>,
    params: Vec<u32>,
    memory: Option<(u64, u64)>,
    globals: u32,
    mutable_globals: Vec<u32>,
    start: Option<u32>,
    exports: Vec<(String, u32)>,
    memory_exported: bool,
    table_elements: u64,
}

impl Seen {
    fn type_of(&self, index: u32) -> Result<&FuncType, Unqualified> {
        self.types
            .get(index as usize)
            .ok_or_else(|| Unqualified::Feature("a function type that is not known".into()))
    }

    fn import(&mut self, module: &str, name: &str, ty: TypeRef) -> Result<(), Unqualified> {
        let full = || format!("{module} {name}");
        let TypeRef::Func(ty) = ty else { return Err(Unqualified::Import(full())) };
        let function = abi::find(module, name).ok_or_else(|| Unqualified::Import(full()))?;
        let ty = self.type_of(ty)?;
        if ty.params() != function.params || ty.results() != function.results {
            return Err(Unqualified::Import(full()));
        }
        self.imports.push(function);
        Ok(())
    }

    fn memory(&mut self, ty: &wasmparser::MemoryType) -> Result<(), Unqualified> {
        if self.memory.is_some() {
            return Err(Unqualified::Memory("there are several".into()));
        }
        if ty.shared || ty.memory64 || ty.page_size_log2.is_some() {
            return Err(Unqualified::Memory("it is not a plain one of 32 bits".into()));
        }
        if ty.initial > MAX_FIRST_PAGES {
            let problem = format!("it begins with {} pages, more than {MAX_FIRST_PAGES}", ty.initial);
            return Err(Unqualified::Memory(problem));
        }
        // No limit grants more than the cap, so that a larger maximum says nothing.
        self.memory = Some((ty.initial, ty.maximum.unwrap_or(MAX_PAGES).min(MAX_PAGES)));
        Ok(())
    }

    fn export(&mut self, export: &Export<'_>) -> Result<(), Unqualified> {
        match export.kind {
            ExternalKind::Memory => self.memory_exported |= export.name == "memory",
            ExternalKind::Func => {
                if OTHER_CONVENTIONS.iter().any(|beginning| export.name.starts_with(beginning)) {
                    return Err(Unqualified::Convention(export.name.into()));
                }
                self.exports.push((export.name.into(), export.index));
            }
            _ => {}
        }
        Ok(())
    }

    fn exported(&self, name: &str) -> Option<u32> {
        self.exports.iter().find(|(n, _)| n == name).map(|(_, index)| *index)
    }
}

fn feature(error: impl std::fmt::Display) -> Unqualified {
    Unqualified::Feature(error.to_string())
}

/// Whether a core module can run in the reset tier. `component` is what it was made into, `phases` what that exports.
pub(crate) fn qualify<'a>(
    bytes: &'a [u8],
    kind: ModuleKind,
    component: &[u8],
    phases: &[String],
) -> Result<Qualified<'a>, Unqualified> {
    if kind == ModuleKind::Component {
        return Err(Unqualified::Component);
    }
    if bytes.len() > MAX_BYTES {
        return Err(Unqualified::Size(bytes.len()));
    }
    if !phases.iter().any(|phase| phase == Phase::Request.interface()) {
        return Err(Unqualified::Phase);
    }
    plain_calls(component)?;
    let mut seen = Seen::default();
    for payload in Parser::new(0).parse_all(bytes) {
        walk(&mut seen, payload.map_err(feature)?)?;
    }
    // After the walk, which knows the better reasons.
    Validator::new_with_features(FEATURES).validate_all(bytes).map_err(feature)?;
    let (initial_pages, max_pages) = seen.memory.ok_or(Unqualified::Missing("a memory"))?;
    if !seen.memory_exported {
        return Err(Unqualified::Missing("its memory as \"memory\""));
    }
    if seen.table_elements > MAX_TABLE_ELEMENTS {
        return Err(Unqualified::Tables(seen.table_elements));
    }
    if seen.params.len() > MAX_FUNCTIONS {
        return Err(Unqualified::Functions(seen.params.len()));
    }
    if seen.globals > MAX_GLOBALS {
        return Err(Unqualified::Globals(seen.globals));
    }
    let realloc = seen.exported("cabi_realloc");
    if realloc.is_none() && seen.imports.iter().any(|f| f.allocates) {
        return Err(Unqualified::Missing("cabi_realloc"));
    }
    Ok(Qualified {
        bytes,
        initial_pages,
        max_pages,
        start: seen.start,
        initialize: seen.exported("_initialize"),
        handle: seen.exported(HANDLE).ok_or(Unqualified::Missing(HANDLE))?,
        post_handle: seen.exported(POST_HANDLE),
        realloc,
        imports: seen.imports,
        params: seen.params,
        globals: seen.globals,
        mutable_globals: seen.mutable_globals,
    })
}

fn walk(seen: &mut Seen, payload: Payload<'_>) -> Result<(), Unqualified> {
    match payload {
        Payload::TypeSection(section) => {
            for group in section {
                for ty in group.map_err(feature)?.into_types() {
                    let CompositeInnerType::Func(ty) = ty.composite_type.inner else {
                        return Err(Unqualified::Feature("a type that is no function's".into()));
                    };
                    seen.types.push(ty);
                }
            }
        }
        Payload::ImportSection(section) => {
            for import in section.into_imports() {
                let import = import.map_err(feature)?;
                seen.import(import.module, import.name, import.ty)?;
            }
        }
        Payload::FunctionSection(section) => {
            for ty in section {
                let params = seen.type_of(ty.map_err(feature)?)?.params().len();
                seen.params.push(u32::try_from(params).map_err(feature)?);
            }
        }
        Payload::TableSection(section) => {
            for table in section {
                let elements = table.map_err(feature)?.ty.initial;
                seen.table_elements = seen.table_elements.saturating_add(elements);
            }
        }
        Payload::MemorySection(section) => {
            for memory in section {
                seen.memory(&memory.map_err(feature)?)?;
            }
        }
        Payload::GlobalSection(section) => {
            for global in section {
                let ty = global.map_err(feature)?.ty;
                if ty.mutable {
                    if matches!(ty.content_type, ValType::Ref(_)) {
                        return Err(Unqualified::Global(seen.globals));
                    }
                    seen.mutable_globals.push(seen.globals);
                }
                seen.globals += 1;
            }
        }
        Payload::ExportSection(section) => {
            for export in section {
                seen.export(&export.map_err(feature)?)?;
            }
        }
        Payload::StartSection { func, .. } => seen.start = Some(func),
        Payload::DataSection(section) => {
            // Once rewritten, the memory may be larger than the module's own; a segment must not notice.
            let size = seen.memory.map_or(0, |(initial, _)| initial * PAGE);
            for (index, data) in (0u32..).zip(section) {
                let data = data.map_err(feature)?;
                if let DataKind::Active { offset_expr, .. } = data.kind {
                    let mut ops = offset_expr.get_operators_reader();
                    let fits = match (ops.read().map_err(feature)?, ops.read().map_err(feature)?) {
                        (Operator::I32Const { value }, Operator::End) => {
                            u64::from(value.cast_unsigned()) + data.data.len() as u64 <= size
                        }
                        _ => false,
                    };
                    if !fits {
                        return Err(Unqualified::Segment(index));
                    }
                }
            }
        }
        Payload::CodeSectionEntry(body) => {
            for op in body.get_operators_reader().map_err(feature)? {
                access(&op.map_err(feature)?)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Whether all that crosses the component's border does so in the one way that the reset tier knows.
fn plain_calls(component: &[u8]) -> Result<(), Unqualified> {
    for payload in Parser::new(0).parse_all(component) {
        let Payload::ComponentCanonicalSection(section) = payload.map_err(feature)? else { continue };
        for function in section {
            use wasmparser::CanonicalFunction as F;
            let (F::Lift { options, .. } | F::Lower { options, .. }) = function.map_err(feature)? else {
                continue;
            };
            for option in &options {
                match option {
                    CanonicalOption::UTF8
                    | CanonicalOption::Memory(_)
                    | CanonicalOption::Realloc(_)
                    | CanonicalOption::PostReturn(_) => {}
                    CanonicalOption::UTF16 | CanonicalOption::CompactUTF16 => {
                        return Err(Unqualified::Encoding);
                    }
                    other => return Err(Unqualified::Convention(format!("a function with {other:?}"))),
                }
            }
        }
    }
    Ok(())
}

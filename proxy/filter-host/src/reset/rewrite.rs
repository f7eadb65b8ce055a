//! Makes a module one that can be put back: every store marks what it writes, and growth is told by a number.
//!
//! What changes in a module's code:
//! * **Cards.** A second memory, which no instruction of the guest names, has one byte per [`CARD`] bytes of the
//!   first. Each store, `memory.copy` and `memory.fill` sets those that it touches (a store only that of its first
//!   byte: [`STRADDLE`] more may be written).
//! * **`memory.copy` and `memory.fill`** work in pieces, between which a call can be set aside.
//! * **Growth.** A global holds how many bytes the guest has; `memory.size` reads it, `memory.grow` asks the host and
//!   adds to it, and every access compares with it, so that the memory may be larger than the guest can know.
//! * **Imports that allocate** (whose results lie in memory that `cabi_realloc` gives) become a function that calls
//!   the host, then `cabi_realloc` for as long as the host asks for memory: the host itself never calls the guest.
//! * **Exports** are the host's alone: [`names`]. The start function is called by `init`, not by instantiation.

use std::collections::HashMap;

use wasm_encoder::{
    CodeSection, ConstExpr, DataSection, ElementSection, EntityType, ExportKind, ExportSection, Function,
    FunctionSection, GlobalSection, GlobalType, ImportSection, Instruction as I, MemArg, MemArgTarget,
    MemorySection, MemoryType, Module, NameMap, NameSection, TableSection, TypeSection, ValType,
    reencode::{self, Reencode},
};
use wasmparser::{
    FunctionBody, KnownCustom, Name, NameSectionReader, Operator, Parser, Payload, Validator, WasmFeatures,
};

use super::qualify::{Access, PAGE, Qualified, Unqualified, access};

/// Goes up with every change of what the rewriter makes of a module: an artifact of another version is made anew.
pub(crate) const REWRITE_VERSION: u32 = 3;
/// Bytes that a rewritten module may have for each byte of the original, and beside that.
const MAX_GROWTH: usize = 3;
const MAX_ADDED: usize = 64 << 10;
/// Bytes of memory that one card stands for, as a power of two.
pub(super) const CARD_SHIFT: u32 = 10;
/// Bytes of memory that one card stands for.
pub(super) const CARD: usize = 1 << CARD_SHIFT;
/// Bytes that a store may write beyond the card of its first byte.
pub(super) const STRADDLE: usize = 16;

/// What the host finds in a rewritten module, and what that imports besides `beamline:edge`.
pub(super) mod names {
    /// The module of the imports that glue code alone can call.
    pub(crate) const HOST: &str = "beamline:reset";
    /// `(old pages, more pages) -> 0 or 1`: whether the memory may grow.
    pub(crate) const GROW: &str = "grow";
    /// `(address) -> layout`: what `cabi_realloc` returned; the next layout to allocate, or 0.
    pub(crate) const GIVE: &str = "give";
    /// `(address)`: the verdict, while it still stands in memory.
    pub(crate) const VERDICT: &str = "verdict";
    /// Runs the module's start.
    pub(crate) const INIT: &str = "init";
    /// `(handle)`: runs the phase.
    pub(crate) const RUN: &str = "run";
    pub(crate) const MEMORY: &str = "memory";
    pub(crate) const CARDS: &str = "cards";
    /// Prefix of the mutable globals; `size` is one of them.
    pub(crate) const GLOBAL: &str = "g";
    /// Bytes that the guest has, a mutable global.
    pub(crate) const SIZE: &str = "size";
}

/// Rewrites a module that qualifies.
pub(crate) fn rewrite(module: &Qualified<'_>) -> Result<Vec<u8>, Unqualified> {
    let rewritten =
        Rewriter::new(module).module().map_err(|e: reencode::Error| Unqualified::Rewrite(e.to_string()))?;
    let limit = module.bytes.len() * MAX_GROWTH + MAX_ADDED;
    if rewritten.len() > limit {
        let problem = format!("it would have {} bytes, more than {limit}", rewritten.len());
        return Err(Unqualified::Rewrite(problem));
    }
    let features = WasmFeatures::WASM2
        | WasmFeatures::BULK_MEMORY_OPT
        | WasmFeatures::CALL_INDIRECT_OVERLONG
        | WasmFeatures::TAIL_CALL
        | WasmFeatures::MULTI_MEMORY;
    Validator::new_with_features(features)
        .validate_all(&rewritten)
        .map_err(|e| Unqualified::Rewrite(e.to_string()))?;
    Ok(rewritten)
}

/// Indices of what the rewriter adds.
struct Rewriter<'a> {
    module: &'a Qualified<'a>,
    /// The next function body.
    body: usize,
}

/// Bytes that `memory.copy` and `memory.fill` do at once.
const PIECE: i32 = 64 << 10;

/// Functions of [`names::HOST`], imported after the module's own imports.
const HOST_FUNCTIONS: u32 = 3;

type Result<T, E = reencode::Error> = std::result::Result<T, E>;

impl<'a> Rewriter<'a> {
    fn new(module: &'a Qualified<'a>) -> Self {
        Self { module, body: 0 }
    }

    fn imports(&self) -> u32 {
        u32::try_from(self.module.imports.len()).expect("a module of at most 4 MiB")
    }

    fn host_grow(&self) -> u32 {
        self.imports()
    }

    fn host_give(&self) -> u32 {
        self.imports() + 1
    }

    fn host_verdict(&self) -> u32 {
        self.imports() + 2
    }

    /// The first function of the rewriter's own, after the module's.
    fn own(&self) -> u32 {
        let defined = u32::try_from(self.module.params.len()).expect("a module of at most 4 MiB");
        self.imports() + HOST_FUNCTIONS + defined
    }

    fn grow(&self) -> u32 {
        self.own()
    }

    fn copy(&self) -> u32 {
        self.own() + 1
    }

    fn fill(&self) -> u32 {
        self.own() + 2
    }

    fn init(&self) -> u32 {
        self.own() + 3
    }

    fn run(&self) -> u32 {
        self.own() + 4
    }

    /// The function that stands for import `index`: the host's, or the one that allocates for it.
    fn import(&self, index: u32) -> u32 {
        let allocating = |i: &u32| self.module.imports[*i as usize].allocates;
        if !allocating(&index) {
            return index;
        }
        let before = (0..index).filter(allocating).count();
        self.own() + 5 + u32::try_from(before).expect("a module of at most 4 MiB")
    }

    /// The global that holds the guest's bytes.
    fn size(&self) -> u32 {
        self.module.globals
    }

    fn mapped(&self, function: u32) -> u32 {
        match function.checked_sub(self.imports()) {
            None => self.import(function),
            Some(defined) => self.imports() + HOST_FUNCTIONS + defined,
        }
    }

    fn module(mut self) -> Result<Vec<u8>> {
        let (mut types, mut functions) = (TypeSection::new(), FunctionSection::new());
        let (mut tables, mut globals) = (TableSection::new(), GlobalSection::new());
        let (mut elements, mut code, mut data) =
            (ElementSection::new(), CodeSection::new(), DataSection::new());
        let (mut called, mut named) = (None, HashMap::new());
        for payload in Parser::new(0).parse_all(self.module.bytes) {
            match payload? {
                Payload::CustomSection(section) => {
                    if let KnownCustom::Name(names) = section.as_known() {
                        read_names(names, &mut called, &mut named);
                    }
                }
                Payload::TypeSection(section) => self.parse_type_section(&mut types, section)?,
                Payload::FunctionSection(section) => self.parse_function_section(&mut functions, section)?,
                Payload::TableSection(section) => self.parse_table_section(&mut tables, section)?,
                Payload::GlobalSection(section) => self.parse_global_section(&mut globals, section)?,
                Payload::ElementSection(section) => self.parse_element_section(&mut elements, section)?,
                Payload::CodeSectionEntry(body) => self.parse_function_body(&mut code, body)?,
                Payload::DataSection(section) => self.parse_data_section(&mut data, section)?,
                _ => {}
            }
        }
        let imports = self.import_section(&mut types);
        self.own_functions(&mut types, &mut functions, &mut code);
        let size = i64::try_from(self.module.initial_pages * PAGE).expect("at most 64 MiB");
        let size_type = GlobalType { val_type: ValType::I64, mutable: true, shared: false };
        globals.global(size_type, &ConstExpr::i64_const(size));
        let mut module = Module::new();
        module
            .section(&types)
            .section(&imports)
            .section(&functions)
            .section(&tables)
            .section(&self.memory_section())
            .section(&globals)
            .section(&self.export_section())
            .section(&elements)
            .section(&code)
            .section(&data)
            .section(&self.names(called, &named));
        Ok(module.finish())
    }

    /// Names for backtraces: a function that has none keeps the number that it has in the original.
    fn names(&self, called: Option<&str>, named: &HashMap<u32, &str>) -> NameSection {
        let (mut section, mut map) = (NameSection::new(), NameMap::new());
        if let Some(name) = called {
            section.module(name);
        }
        let defined = u32::try_from(self.module.params.len()).expect("a module of at most 4 MiB");
        for index in self.imports()..self.imports() + defined {
            match named.get(&index) {
                Some(name) => map.append(self.mapped(index), name),
                None => map.append(self.mapped(index), &format!("<wasm function {index}>")),
            }
        }
        for (index, name) in
            [(self.grow(), "memory.grow"), (self.copy(), "memory.copy"), (self.fill(), "memory.fill")]
        {
            map.append(index, name);
        }
        map.append(self.init(), "start");
        map.append(self.run(), "request-handler");
        section.functions(&map);
        section
    }

    fn import_section(&self, types: &mut TypeSection) -> ImportSection {
        let mut section = ImportSection::new();
        let mut import = |module: &str, name: &str, params: &[ValType], results: &[ValType]| {
            let ty = function_type(types, params, results);
            section.import(module, name, EntityType::Function(ty));
        };
        for function in &self.module.imports {
            let params: Vec<_> = function.params.iter().map(|ty| numeric(*ty)).collect();
            let results: Vec<_> = if function.allocates {
                vec![ValType::I64]
            } else {
                function.results.iter().map(|ty| numeric(*ty)).collect()
            };
            import(function.interface, function.name, &params, &results);
        }
        import(names::HOST, names::GROW, &[ValType::I32; 2], &[ValType::I32]);
        import(names::HOST, names::GIVE, &[ValType::I32], &[ValType::I64]);
        import(names::HOST, names::VERDICT, &[ValType::I32], &[]);
        section
    }

    fn memory_section(&self) -> MemorySection {
        let mut section = MemorySection::new();
        let plain = MemoryType {
            minimum: self.module.initial_pages,
            maximum: Some(self.module.max_pages),
            memory64: false,
            shared: false,
            page_size_log2: None,
        };
        section.memory(plain);
        let cards = (self.module.max_pages * PAGE).div_ceil(CARD as u64).div_ceil(PAGE).max(1);
        section.memory(MemoryType { minimum: cards, maximum: Some(cards), ..plain });
        section
    }

    fn export_section(&self) -> ExportSection {
        let mut section = ExportSection::new();
        section
            .export(names::INIT, ExportKind::Func, self.init())
            .export(names::RUN, ExportKind::Func, self.run())
            .export(names::MEMORY, ExportKind::Memory, 0)
            .export(names::CARDS, ExportKind::Memory, 1)
            .export(names::SIZE, ExportKind::Global, self.size());
        for global in &self.module.mutable_globals {
            section.export(&format!("{}{global}", names::GLOBAL), ExportKind::Global, *global);
        }
        section
    }

    /// Adds the rewriter's own functions, in the order of their indices.
    fn own_functions(
        &self,
        types: &mut TypeSection,
        functions: &mut FunctionSection,
        code: &mut CodeSection,
    ) {
        let mut add = |params: &[ValType], results: &[ValType], body: Function| {
            functions.function(function_type(types, params, results));
            code.function(&body);
        };
        add(&[ValType::I32], &[ValType::I32], self.grow_body());
        add(&[ValType::I32; 3], &[], self.copy_body());
        add(&[ValType::I32; 3], &[], self.fill_body());
        add(&[], &[], self.init_body());
        add(&[ValType::I32], &[], self.run_body());
        for (index, function) in (0..).zip(&self.module.imports) {
            if function.allocates {
                let params: Vec<_> = function.params.iter().map(|ty| numeric(*ty)).collect();
                add(&params, &[], self.allocating_body(index, u32::try_from(params.len()).expect("a few")));
            }
        }
    }

    /// `(more pages) -> old pages or -1`
    fn grow_body(&self) -> Function {
        let (more, old) = (0, 1);
        let mut f = Function::new([(1, ValType::I32)]);
        self.pages(&mut f);
        f.instructions().local_set(old);
        f.instructions().local_get(more).i32_eqz().if_(wasm_encoder::BlockType::Empty);
        f.instructions().local_get(old).return_().end();
        f.instructions().local_get(old).local_get(more).call(self.host_grow()).i32_eqz();
        f.instructions().if_(wasm_encoder::BlockType::Empty).i32_const(-1).return_().end();
        f.instructions().global_get(self.size()).local_get(more).i64_extend_i32_u().i64_const(16).i64_shl();
        f.instructions().i64_add().global_set(self.size()).local_get(old).end();
        f
    }

    fn pages(&self, f: &mut Function) {
        f.instructions().global_get(self.size()).i64_const(16).i64_shr_u().i32_wrap_i64();
    }

    /// Traps as an access out of bounds does where `at + length` (two locals) is beyond the guest's bytes.
    fn check_range(&self, f: &mut Function, at: u32, length: u32) {
        f.instructions().local_get(at).i64_extend_i32_u().local_get(length).i64_extend_i32_u().i64_add();
        f.instructions().global_get(self.size()).i64_gt_u().if_(wasm_encoder::BlockType::Empty);
        let byte = MemArg { offset: 0, align: 0, target: MemArgTarget::Memory(0), ordering: None };
        f.instructions().i32_const(-1).i32_load8_u(byte).drop().unreachable().end();
    }

    /// Marks every card of `length` bytes at `at` (two locals, checked before).
    fn mark_range(f: &mut Function, at: u32, length: u32, card: u32, last: u32) {
        use wasm_encoder::BlockType::Empty;
        let shift = CARD_SHIFT.cast_signed();
        f.instructions().local_get(length).if_(Empty);
        f.instructions().local_get(at).i32_const(shift).i32_shr_u().local_set(card);
        f.instructions().local_get(at).local_get(length).i32_add().i32_const(1).i32_sub();
        f.instructions().i32_const(shift).i32_shr_u().local_set(last);
        f.instructions().loop_(Empty).local_get(card).i32_const(1).i32_store8(CARD_BYTE);
        f.instructions().local_get(card).i32_const(1).i32_add().local_tee(card);
        f.instructions().local_get(last).i32_le_u().br_if(0).end().end();
    }

    /// `(to, from, length)`. In pieces, the last first where the ranges may overlap that way.
    fn copy_body(&self) -> Function {
        use wasm_encoder::BlockType::Empty;
        let (to, from, length) = (0, 1, 2);
        let mut f = Function::new([(2, ValType::I32)]);
        self.check_range(&mut f, to, length);
        self.check_range(&mut f, from, length);
        Self::mark_range(&mut f, to, length, 3, 4);
        f.instructions().local_get(to).local_get(from).i32_gt_u().if_(Empty);
        Self::for_each_piece(&mut f, length, |f| {
            f.instructions().local_get(to).local_get(length).i32_add();
            f.instructions().local_get(from).local_get(length).i32_add().i32_const(PIECE).memory_copy(0, 0);
        });
        f.instructions().else_();
        Self::for_each_piece(&mut f, length, |f| {
            f.instructions().local_get(to).local_get(from).i32_const(PIECE).memory_copy(0, 0);
            Self::advance(f, to);
            Self::advance(f, from);
        });
        f.instructions().end();
        f.instructions().local_get(to).local_get(from).local_get(length).memory_copy(0, 0).end();
        f
    }

    /// `(to, byte, length)`
    fn fill_body(&self) -> Function {
        let (to, byte, length) = (0, 1, 2);
        let mut f = Function::new([(2, ValType::I32)]);
        self.check_range(&mut f, to, length);
        Self::mark_range(&mut f, to, length, 3, 4);
        Self::for_each_piece(&mut f, length, |f| {
            f.instructions().local_get(to).local_get(byte).i32_const(PIECE).memory_fill(0);
            Self::advance(f, to);
        });
        f.instructions().local_get(to).local_get(byte).local_get(length).memory_fill(0).end();
        f
    }

    /// Takes [`PIECE`] from `length` (a local) as often as it is more than that, and does `piece` each time. What is left is at most
    /// as much. The loop is where a call that has used up its slice is set aside: no instruction that it stands for is.
    fn for_each_piece(f: &mut Function, length: u32, piece: impl FnOnce(&mut Function)) {
        use wasm_encoder::BlockType::Empty;
        f.instructions().loop_(Empty).local_get(length).i32_const(PIECE).i32_gt_u().if_(Empty);
        f.instructions().local_get(length).i32_const(PIECE).i32_sub().local_set(length);
        piece(f);
        f.instructions().br(1).end().end();
    }

    fn advance(f: &mut Function, address: u32) {
        f.instructions().local_get(address).i32_const(PIECE).i32_add().local_set(address);
    }

    fn init_body(&self) -> Function {
        let mut f = Function::new([]);
        for function in [self.module.start, self.module.initialize].into_iter().flatten() {
            f.instruction(&I::Call(self.mapped(function)));
        }
        f.instruction(&I::End);
        f
    }

    /// `(handle)`: the phase, the verdict while it stands, the guest's own tidying up.
    fn run_body(&self) -> Function {
        let mut f = Function::new([(1, ValType::I32)]);
        f.instructions().local_get(0).call(self.mapped(self.module.handle)).local_tee(1);
        f.instructions().call(self.host_verdict());
        if let Some(post) = self.module.post_handle {
            f.instructions().local_get(1).call(self.mapped(post));
        }
        f.instruction(&I::End);
        f
    }

    /// Calls import `index`, then `cabi_realloc` for as long as the host has something to place.
    fn allocating_body(&self, index: u32, params: u32) -> Function {
        use wasm_encoder::BlockType::Empty;
        let layout = params;
        let realloc = self.mapped(self.module.realloc.expect("qualified: it has imports that allocate"));
        let mut f = Function::new([(1, ValType::I64)]);
        for param in 0..params {
            f.instruction(&I::LocalGet(param));
        }
        f.instructions().call(index).local_set(layout).block(Empty).loop_(Empty);
        f.instructions().local_get(layout).i64_eqz().br_if(1).i32_const(0).i32_const(0);
        f.instructions().local_get(layout).i64_const(32).i64_shr_u().i32_wrap_i64();
        f.instructions().local_get(layout).i32_wrap_i64().call(realloc);
        f.instructions().call(self.host_give()).local_set(layout).br(0).end().end().end();
        f
    }

    /// In place of the address in local `at`: one that traps if the access is beyond the guest's bytes.
    fn checked_address(&self, f: &mut Function, at: u32, memarg: &wasmparser::MemArg) {
        // An offset is of 32 bits here, so that the sum stays far below 64.
        let end = memarg.offset.saturating_add(1 << memarg.max_align).cast_signed();
        f.instructions().local_get(at).i32_const(-1).local_get(at).i64_extend_i32_u().i64_const(end);
        f.instructions().i64_add().global_get(self.size()).i64_le_u().select();
    }
}

/// Reads a module's names as far as they can be read: they are for people, and no reason to refuse it.
fn read_names<'a>(
    section: NameSectionReader<'a>,
    called: &mut Option<&'a str>,
    named: &mut HashMap<u32, &'a str>,
) {
    for names in section {
        match names {
            Ok(Name::Module { name, .. }) => *called = Some(name),
            Ok(Name::Function(map)) => {
                named.extend(map.into_iter().map_while(Result::ok).map(|n| (n.index, n.name)))
            }
            Ok(_) => {}
            Err(_) => return,
        }
    }
}

/// Where a card is set: its index is the address.
const CARD_BYTE: MemArg = MemArg { offset: 0, align: 0, target: MemArgTarget::Memory(1), ordering: None };

fn function_type(types: &mut TypeSection, params: &[ValType], results: &[ValType]) -> u32 {
    let index = types.len();
    types.ty().function(params.iter().copied(), results.iter().copied());
    index
}

/// The encoder's name of a type that the canonical ABI passes.
fn numeric(ty: wasmparser::ValType) -> ValType {
    match ty {
        wasmparser::ValType::I64 => ValType::I64,
        wasmparser::ValType::F32 => ValType::F32,
        wasmparser::ValType::F64 => ValType::F64,
        _ => ValType::I32,
    }
}

/// Locals that a rewritten store keeps its operands in.
struct Scratch {
    address: u32,
    values: Vec<(wasmparser::ValType, u32)>,
}

impl Scratch {
    fn value(&self, ty: wasmparser::ValType) -> u32 {
        self.values.iter().find(|(t, _)| *t == ty).expect("each stored type was looked for").1
    }
}

impl Reencode for Rewriter<'_> {
    type Error = std::convert::Infallible;

    fn function_index(&mut self, function: u32) -> Result<u32> {
        Ok(self.mapped(function))
    }

    fn parse_function_body(&mut self, code: &mut CodeSection, body: FunctionBody<'_>) -> Result<()> {
        let mut next = self.module.params[self.body];
        self.body += 1;
        let mut locals = Vec::new();
        for pair in body.get_locals_reader()? {
            let (count, ty) = pair?;
            locals.push((count, self.val_type(ty)?));
            next += count;
        }
        let mut scratch = Scratch { address: next, values: Vec::new() };
        locals.push((1, ValType::I32));
        for op in body.get_operators_reader()? {
            if let Ok(Access::Store(_, ty)) = access(&op?)
                && !scratch.values.iter().any(|(t, _)| *t == ty)
            {
                locals.push((1, self.val_type(ty)?));
                next += 1;
                scratch.values.push((ty, next));
            }
        }
        let mut f = Function::new(locals);
        let mut reader = body.get_operators_reader()?;
        while !reader.eof() {
            let op = reader.read()?;
            self.operator(&mut f, &scratch, op)?;
        }
        code.function(&f);
        Ok(())
    }
}

impl Rewriter<'_> {
    fn operator(&mut self, f: &mut Function, scratch: &Scratch, op: Operator<'_>) -> Result<()> {
        let address = scratch.address;
        match access(&op) {
            Ok(Access::Load(memarg)) => {
                f.instruction(&I::LocalSet(address));
                self.checked_address(f, address, &memarg);
            }
            Ok(Access::Store(memarg, ty)) => {
                let value = scratch.value(ty);
                f.instructions().local_set(value).local_set(address);
                self.checked_address(f, address, &memarg);
                f.instruction(&I::LocalTee(address));
                if memarg.offset != 0 {
                    // Where this wraps, the access itself is out of bounds: a card too many, and a trap.
                    let offset = u32::try_from(memarg.offset).expect("validated: a memory of 32 bits");
                    f.instructions().i32_const(offset.cast_signed()).i32_add();
                }
                f.instructions().i32_const(CARD_SHIFT.cast_signed()).i32_shr_u().i32_const(1);
                f.instructions().i32_store8(CARD_BYTE).local_get(address).local_get(value);
            }
            _ => match op {
                Operator::MemorySize { .. } => {
                    self.pages(f);
                    return Ok(());
                }
                Operator::MemoryGrow { .. } => {
                    f.instruction(&I::Call(self.grow()));
                    return Ok(());
                }
                Operator::MemoryCopy { .. } => {
                    f.instruction(&I::Call(self.copy()));
                    return Ok(());
                }
                Operator::MemoryFill { .. } => {
                    f.instruction(&I::Call(self.fill()));
                    return Ok(());
                }
                _ => {}
            },
        }
        f.instruction(&self.instruction(op)?);
        Ok(())
    }
}

//! The Wasm modules that `make guests` builds: the stock filters and the tests' own.

use std::{
    convert::Infallible,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use wasm_encoder::{
    BlockType, CodeSection, Function, FunctionSection,
    reencode::{self, Reencode},
};

/// Where a module is: in the folder that `BEAMLINE_GUESTS` names, or else in `target/guests` of this checkout.
pub fn path(name: &str) -> PathBuf {
    let folder = std::env::var_os("BEAMLINE_GUESTS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guests"), PathBuf::from);
    folder.join(format!("{name}.wasm"))
}

/// Where a module is, which must be there.
///
/// # Errors
/// Where it isn't; the message says how to build it.
pub fn existing(name: &str) -> Result<PathBuf> {
    module(name).map(|_| path(name))
}

/// A module's bytes.
///
/// # Errors
/// Where it isn't there; the message says how to build it.
pub fn module(name: &str) -> Result<Vec<u8>> {
    let path = path(name);
    fs::read(&path).with_context(|| format!("no module at {}: build it with `make guests`", path.display()))
}

/// The same module with another digest: what it holds more, nothing reads.
///
/// # Panics
/// Where `mark` is longer than 100 bytes.
pub fn variant(module: &[u8], mark: &str) -> Vec<u8> {
    assert!(mark.len() <= 100, "one byte tells the length");
    let name = mark.len() as u8;
    // A custom section (id 0): its length, its name's length, its name.
    [module, &[0, name + 1, name], mark.as_bytes()].concat()
}

/// The same module, made longer by so many bytes that nothing reads, and a few for their frame.
///
/// # Panics
/// Where it would be longer than a section can be.
pub fn longer(module: &[u8], by: usize) -> Vec<u8> {
    let length = u32::try_from(by + 1).expect("a section's length has 32 bits");
    // LEB128 in its longest form, of five bytes.
    let bytes = (0..5).map(|i| (length >> (7 * i) & 0x7f) as u8 | if i < 4 { 0x80 } else { 0 });
    // A custom section (id 0): its length, its empty name, its content.
    [module, &[0], &bytes.collect::<Vec<_>>(), &[0], &vec![0; by]].concat()
}

/// The same module with a function more that is small as it is written and takes a compiler very long: a compile bomb.
///
/// # Errors
/// Where the bytes are no core module with functions.
pub fn bomb(module: &[u8]) -> Result<Vec<u8>> {
    let (mut bombed, mut bomb) = (wasm_encoder::Module::new(), Bomb::default());
    bomb.parse_core_module(&mut bombed, wasmparser::Parser::new(0), module)?;
    ensure!(bomb.is_declared && bomb.is_there, "expected a core module with functions; found none in it");
    Ok(bombed.finish())
}

#[derive(Default)]
struct Bomb {
    is_declared: bool,
    is_there: bool,
}

impl Reencode for Bomb {
    type Error = Infallible;

    /// One more, of the first type.
    fn parse_function_section(
        &mut self,
        functions: &mut FunctionSection,
        section: wasmparser::FunctionSectionReader<'_>,
    ) -> Result<(), reencode::Error> {
        reencode::utils::parse_function_section(self, functions, section)?;
        functions.function(0);
        self.is_declared = true;
        Ok(())
    }

    /// A hundred thousand loops that ask for the memory's size; then `unreachable`, which fits any type.
    fn parse_code_section(
        &mut self,
        code: &mut CodeSection,
        section: wasmparser::CodeSectionReader<'_>,
    ) -> Result<(), reencode::Error> {
        reencode::utils::parse_code_section(self, code, section)?;
        let mut function = Function::new([]);
        let mut body = function.instructions();
        for _ in 0..100_000 {
            body.loop_(BlockType::Empty).memory_size(0).br_if(0).end();
        }
        body.unreachable().end();
        code.function(&function);
        self.is_there = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bomb_is_a_module_still() {
        let module = wat::parse_str("(module (func (result i32) i32.const 1) (memory 1))").unwrap();
        let bombed = bomb(&module).unwrap();
        assert!(bombed.len() > module.len() + 500_000);
        wasmparser::Validator::new().validate_all(&bombed).unwrap();
    }
}

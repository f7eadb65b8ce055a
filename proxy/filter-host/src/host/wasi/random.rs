//! `wasi:random`: numbers that nobody foresees, also where less would do.

use wasmtime::component::Linker;

use super::{super::random, CallState, Interface, Running};
use crate::limit::RANDOM;

/// Bytes that a guest is given at once.
const MAX_RANDOM: usize = 64 << 10;

fn bytes(_: &mut CallState, (length,): (u64,)) -> wasmtime::Result<(Vec<u8>,)> {
    let length = usize::try_from(length).ok().filter(|length| *length <= MAX_RANDOM);
    let length = length
        .ok_or_else(|| wasmtime::Error::msg(format!("{RANDOM} {MAX_RANDOM}: ask for fewer, more often")))?;
    let mut bytes = vec![0; length];
    random::fill(&mut bytes);
    Ok((bytes,))
}

fn number(_: &mut CallState, (): ()) -> wasmtime::Result<(u64,)> {
    Ok((random::number(),))
}

pub(super) fn link(linker: &mut Linker<Running>) -> wasmtime::Result<()> {
    let mut secure = Interface::of(linker, "wasi:random/random")?;
    secure.function("get-random-bytes", bytes)?;
    secure.function("get-random-u64", number)?;
    let mut insecure = Interface::of(linker, "wasi:random/insecure")?;
    insecure.function("get-insecure-random-bytes", bytes)?;
    insecure.function("get-insecure-random-u64", number)?;
    Interface::of(linker, "wasi:random/insecure-seed")?
        .function("insecure-seed", |_, ()| Ok(((random::number(), random::number()),)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_page_tells_how_much_a_guest_is_given_at_once() {
        let page = include_str!("../../../../../docs/reference/limits.md");
        let row = page.lines().find(|line| line.starts_with("| `random` |")).unwrap();
        assert!(row.contains(&format!("| {} KiB", MAX_RANDOM >> 10)), "{row}");
    }
}

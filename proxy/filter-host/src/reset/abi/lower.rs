//! From values to the guest's memory.
//!
//! The host never calls the guest. What a function gives back is written down as steps; they are carried out up to
//! the first one that needs memory, whose layout goes back to the glue code; that calls `cabi_realloc` and brings
//! the address, and so on. Steps are in the order in which wasmtime's own canonical ABI takes them.

use wasmtime::{Caller, Linker, Result, bail};

use super::parts;
use crate::reset::{
    guest::Guest,
    rewrite::{CARD_SHIFT, names},
};

/// Size and alignment of an `option` whose payload is a `string` or `list<u8>`: it stands at 4.
pub(crate) const OPTIONAL: (usize, u32) = (12, 4);
/// Of a `result` with at most one byte in each case, which stands at 1.
pub(crate) const RESULT: (usize, u32) = (2, 1);

/// Cards that the host touched in one call, as first and last.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    ranges: Vec<(usize, usize)>,
    /// So many that they are not told apart any more.
    all: bool,
}

/// Bytes that a kept instance's buffers hold each from one call to the next.
const MAX_BUFFER: usize = 16 << 10;
/// Ranges beyond which the whole memory counts as touched.
const MAX_RANGES: usize = 1024;

impl Marks {
    pub(crate) fn add(&mut self, at: usize, len: usize) {
        if len == 0 {
            return;
        }
        if self.ranges.len() == MAX_RANGES {
            self.all = true;
            return;
        }
        self.ranges.push((at >> CARD_SHIFT, (at + len - 1) >> CARD_SHIFT));
    }

    /// The ranges of cards that were touched; forgets them. Where there were too many, one range of all `cards`.
    pub(crate) fn drain(&mut self, cards: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        if std::mem::take(&mut self.all) {
            self.ranges.clear();
            self.ranges.push((0, cards.saturating_sub(1)));
        }
        self.ranges.drain(..)
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty() && !self.all
    }
}

/// Where something is written: so many bytes into one of the call's blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    block: usize,
    offset: usize,
}

impl Place {
    /// So many bytes further on in the same block.
    pub(crate) fn at(self, offset: usize) -> Self {
        Self { offset: self.offset + offset, ..self }
    }
}

#[derive(Debug)]
enum Step {
    /// The first `len` bytes of a number.
    Number { at: Place, value: u64, len: usize },
    /// Asks for a block; what stands in `data` from `start` on goes into it, or nothing.
    Allocate { align: u32, size: usize, start: Option<usize> },
    /// Address of a block, and a number of elements.
    Pair { at: Place, block: usize, count: u32 },
}

/// The result of one host function on its way into the guest's memory. Its buffers are kept from call to call.
#[derive(Debug, Default)]
pub(crate) struct Lowering {
    steps: Vec<Step>,
    next: usize,
    data: Vec<u8>,
    /// Addresses of the blocks: the return area, then what was allocated.
    blocks: Vec<usize>,
    /// How many blocks there will be.
    planned: usize,
}

impl Lowering {
    /// Whether the guest is to allocate before anything else may happen.
    pub(crate) fn is_under_way(&self) -> bool {
        !self.steps.is_empty()
    }

    /// Begins a result that stands at `ptr`, with its size and alignment.
    pub(crate) fn begin(&mut self, memory: &[u8], ptr: u32, (size, align): (usize, u32)) -> Result<Place> {
        if !ptr.is_multiple_of(align) {
            bail!("pointer not aligned")
        }
        if memory.get(ptr as usize..).is_none_or(|rest| rest.len() < size) {
            bail!("pointer out of bounds")
        }
        self.steps.clear();
        self.data.clear();
        self.blocks.clear();
        self.blocks.push(ptr as usize);
        (self.next, self.planned) = (0, 1);
        Ok(Place { block: 0, offset: 0 })
    }

    /// A discriminant.
    pub(crate) fn byte(&mut self, at: Place, value: u8) {
        self.steps.push(Step::Number { at, value: value.into(), len: 1 });
    }

    /// A `u16`.
    pub(crate) fn half(&mut self, at: Place, value: u16) {
        self.steps.push(Step::Number { at, value: value.into(), len: 2 });
    }

    /// A `u32`.
    pub(crate) fn quad(&mut self, at: Place, value: u32) {
        self.steps.push(Step::Number { at, value: value.into(), len: 4 });
    }

    /// A `u64`.
    pub(crate) fn word(&mut self, at: Place, value: u64) {
        self.steps.push(Step::Number { at, value, len: 8 });
    }

    fn block(&mut self, align: u32, size: usize, start: Option<usize>) -> usize {
        self.steps.push(Step::Allocate { align, size, start });
        self.planned += 1;
        self.planned - 1
    }

    fn pair(&mut self, at: Place, block: usize, count: usize) {
        let count = u32::try_from(count).expect("what is in a head is far below 4 GiB");
        self.steps.push(Step::Pair { at, block, count });
    }

    /// A `string` or `list<u8>`.
    pub(crate) fn bytes(&mut self, at: Place, bytes: &[u8]) {
        let start = self.data.len();
        self.data.extend_from_slice(bytes);
        let block = self.block(1, bytes.len(), Some(start));
        self.pair(at, block, bytes.len());
    }

    /// An `option`, whose payload stands so many bytes after its discriminant.
    pub(crate) fn option<T>(
        &mut self,
        at: Place,
        payload: usize,
        value: Option<T>,
        some: impl FnOnce(&mut Self, Place, T),
    ) {
        self.byte(at, value.is_some().into());
        if let Some(value) = value {
            some(self, at.at(payload), value);
        }
    }

    /// A list whose elements are records of `size` bytes, aligned to `align`.
    pub(crate) fn list<T>(
        &mut self,
        at: Place,
        (size, align): (usize, u32),
        elements: impl ExactSizeIterator<Item = T>,
        mut element: impl FnMut(&mut Self, Place, T),
    ) {
        let count = elements.len();
        let block = self.block(align, count * size, None);
        for (index, value) in elements.enumerate() {
            element(self, Place { block, offset: index * size }, value);
        }
        self.pair(at, block, count);
    }

    /// Carries out what can be; the layout of the next block (alignment above 32 bits of size), or 0 at the end.
    pub(crate) fn advance(&mut self, memory: &mut [u8], marks: &mut Marks) -> Result<u64> {
        while let Some(step) = self.steps.get(self.next) {
            match *step {
                Step::Number { at, value, len } => {
                    let (at, bytes) = (self.blocks[at.block] + at.offset, value.to_le_bytes());
                    // Stores of a known length are instructions; one of any length would be a call.
                    match len {
                        1 => write(memory, marks, at, &bytes[..1])?,
                        2 => write(memory, marks, at, &bytes[..2])?,
                        4 => write(memory, marks, at, &bytes[..4])?,
                        _ => write(memory, marks, at, &bytes)?,
                    }
                }
                Step::Pair { at, block, count } => {
                    let address = u32::try_from(self.blocks[block]).expect("an address of the guest");
                    let pair = u64::from(count) << 32 | u64::from(address);
                    write(memory, marks, self.blocks[at.block] + at.offset, &pair.to_le_bytes())?;
                }
                Step::Allocate { align, size, .. } => {
                    return Ok(u64::from(align) << 32 | size as u64);
                }
            }
            self.next += 1;
        }
        self.steps.clear();
        Ok(0)
    }

    /// What `cabi_realloc` returned for the layout that was asked for.
    fn give(&mut self, memory: &mut [u8], marks: &mut Marks, address: u32) -> Result<()> {
        let Some(&Step::Allocate { align, size, start }) = self.steps.get(self.next) else {
            bail!("memory was given that nobody asked for")
        };
        if !address.is_multiple_of(align) {
            bail!("realloc return: result not aligned")
        }
        let address = address as usize;
        if memory.get(address..).is_none_or(|rest| rest.len() < size) {
            bail!("realloc return: beyond end of memory")
        }
        if let Some(start) = start {
            write(memory, marks, address, &self.data[start..start + size])?;
        }
        self.blocks.push(address);
        self.next += 1;
        Ok(())
    }

    /// Ends a call: forgets a result that was not placed, and lets go of what a large one took.
    pub(crate) fn end(&mut self) {
        empty(&mut self.steps);
        empty(&mut self.data);
        empty(&mut self.blocks);
    }

    #[cfg(test)]
    pub(crate) fn is_at_rest(&self) -> bool {
        fn small<T>(buffer: &Vec<T>) -> bool {
            buffer.is_empty() && buffer.capacity() * size_of::<T>() <= MAX_BUFFER
        }
        small(&self.steps) && small(&self.data) && small(&self.blocks)
    }
}

/// Empties a buffer, which stays allocated for the next call only where it is small.
fn empty<T>(buffer: &mut Vec<T>) {
    buffer.clear();
    if buffer.capacity() * size_of::<T>() > MAX_BUFFER {
        *buffer = Vec::new();
    }
}

/// The one way in which the host writes into a guest's memory.
#[inline(always)]
fn write(memory: &mut [u8], marks: &mut Marks, at: usize, bytes: &[u8]) -> Result<()> {
    let Some(place) = memory.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len())) else {
        bail!("pointer out of bounds")
    };
    place.copy_from_slice(bytes);
    marks.add(at, bytes.len());
    Ok(())
}

/// Links what the glue code calls with an address.
pub(super) fn link(linker: &mut Linker<Guest>) -> Result<()> {
    linker.func_wrap(names::HOST, names::GIVE, |mut caller: Caller<'_, Guest>, address: u32| {
        let (memory, guest) = parts(&mut caller)?;
        let Guest { lowering, marks, .. } = guest;
        lowering.give(memory, marks, address)?;
        lowering.advance(memory, marks)
    })?;
    linker.func_wrap(
        names::HOST,
        names::GROW,
        |mut caller: Caller<'_, Guest>, old: u32, more: u32| -> Result<u32> {
            Ok(Guest::grow(&mut caller, old, more)?.into())
        },
    )?;
    Ok(())
}

//! Linear memory of the reset tier: from the allocator while it is small, and a mapping of its own beyond that.
//!
//! A small memory costs no system call and no page fault. A large one would: the allocator copies and clears it as it grows, in
//! one go of which no tick is met, and gives its pages back when it likes, on whichever thread is next. So a memory that becomes
//! large moves once, into address space for as much as it may ever have. The kernel gives it pages one by one as the guest
//! touches them, and takes them back when the instance is dropped, from whoever drops it.

use std::sync::{
    Arc,
    atomic::{AtomicPtr, Ordering},
};

use memmap2::{MmapOptions, MmapRaw};
use wasmtime::{LinearMemory, MemoryCreator, MemoryType, Result, bail};

use super::{
    guest::MAX_KEPT_GROWTH,
    qualify::{MAX_FIRST_PAGES, PAGE},
};

/// Bytes up to which a memory comes from the allocator: no instance is kept that has more.
const SMALL: usize = (MAX_FIRST_PAGES * PAGE) as usize + MAX_KEPT_GROWTH;

/// What the allocator gives at once: as much is aligned.
type Block = u128;

const BLOCK: usize = size_of::<Block>();

/// Makes the memories of an engine whose machine code checks each access against the memory's size.
pub(crate) fn creator() -> Arc<dyn MemoryCreator> {
    Arc::new(Creator)
}

struct Creator;

enum Pages {
    Small(Vec<Block>),
    Large(MmapRaw),
}

struct Pageable {
    pages: Pages,
    /// Where they begin.
    base: AtomicPtr<u8>,
    size: usize,
    maximum: usize,
}

impl Pageable {
    fn new(minimum: usize, maximum: usize) -> Result<Self> {
        let mut blocks = Vec::new();
        grow(&mut blocks, minimum)?;
        let base = AtomicPtr::new(blocks.as_mut_ptr().cast());
        Ok(Self { pages: Pages::Small(blocks), base, size: minimum, maximum })
    }
}

fn large(size: usize) -> Result<(Pages, AtomicPtr<u8>)> {
    // Raw: nothing here may borrow the bytes that a guest writes to.
    let map = MmapRaw::from(MmapOptions::new().len(size).no_reserve_swap().map_anon()?);
    let base = map.as_mut_ptr();
    Ok((Pages::Large(map), AtomicPtr::new(base)))
}

/// Makes of `blocks` so many bytes, what is new of them zero.
fn grow(blocks: &mut Vec<Block>, size: usize) -> Result<()> {
    let wanted = size.div_ceil(BLOCK);
    blocks.try_reserve_exact(wanted.saturating_sub(blocks.len()))?;
    blocks.resize(wanted, 0);
    Ok(())
}

#[expect(unsafe_code, reason = "wasmtime hands out what this gives it")]
// SAFETY: wasmtime asks that `as_ptr` points to `byte_size` bytes that nobody else uses, for as long as the memory lives or until it
// grows beyond `byte_capacity`. The allocation is this value's own, it is never shorter than `size`, and `grow_to` alone replaces
// it. `base` was taken by `as_mut_ptr` from the allocation that is there, which nothing here reads or writes otherwise until it is
// taken anew. There is no guard page: the engine is configured with none, so that machine code compares each address first.
unsafe impl LinearMemory for Pageable {
    fn byte_size(&self) -> usize {
        self.size
    }

    fn byte_capacity(&self) -> usize {
        match &self.pages {
            Pages::Small(blocks) => blocks.capacity() * BLOCK,
            Pages::Large(map) => map.len(),
        }
    }

    fn grow_to(&mut self, size: usize) -> Result<()> {
        if size > self.maximum {
            bail!("a memory of {} bytes was to grow to {size}", self.maximum)
        }
        match &mut self.pages {
            Pages::Small(blocks) if size <= SMALL => {
                grow(blocks, size)?;
                *self.base.get_mut() = blocks.as_mut_ptr().cast();
            }
            Pages::Small(_) => {
                let (pages, mut base) = large(self.maximum)?;
                let (from, to) = (*self.base.get_mut(), *base.get_mut());
                // SAFETY: the memory that is there has `self.size` bytes; the mapping has `self.maximum`, which is more, and
                // is new.
                unsafe { std::ptr::copy_nonoverlapping(from, to, self.size) };
                (self.pages, self.base) = (pages, base);
            }
            Pages::Large(_) => {}
        }
        self.size = size;
        Ok(())
    }

    fn as_ptr(&self) -> *mut u8 {
        self.base.load(Ordering::Relaxed)
    }
}

#[expect(unsafe_code, reason = "wasmtime hands out what this gives it")]
// SAFETY: each memory is an allocation of its own, zero in the beginning, that nothing outside of wasmtime writes to. One that should
// have reserved bytes or a guard is refused.
unsafe impl MemoryCreator for Creator {
    fn new_memory(
        &self,
        _ty: MemoryType,
        minimum: usize,
        maximum: Option<usize>,
        reserved: Option<usize>,
        guard: usize,
    ) -> Result<Box<dyn LinearMemory>, String> {
        let Some(maximum) = maximum else { return Err("a rewritten memory has a maximum".into()) };
        let reserved = reserved.unwrap_or(0);
        if reserved > 0 || guard > 0 {
            return Err(format!(
                "expected a memory without reservation and guard; found {reserved} and {guard} bytes of them"
            ));
        }
        let memory = Pageable::new(minimum, maximum).map_err(|e| format!("{e:#}"))?;
        Ok(Box::new(memory))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(unsafe_code, reason = "as wasmtime does")]
    fn bytes(memory: &mut Pageable) -> &mut [u8] {
        // SAFETY: what `as_ptr` gives is valid for `byte_size` bytes, and the memory is borrowed for as long.
        unsafe { std::slice::from_raw_parts_mut(memory.as_ptr(), memory.byte_size()) }
    }

    /// What was written stays, what is new is zero: within the allocator, into a mapping, and in it.
    #[test]
    fn a_memory_that_grows_keeps_what_it_has() {
        let page = 64 << 10;
        let mut memory = Pageable::new(page, 16 << 20).unwrap();
        for size in [page, 2 * page, SMALL, SMALL + page, SMALL + 2 * page, 16 << 20] {
            let before = memory.byte_size();
            memory.grow_to(size).unwrap();
            assert_eq!(memory.byte_size(), size);
            assert!(memory.byte_capacity() >= size);
            let bytes = bytes(&mut memory);
            assert!(size == page || bytes[..before].iter().all(|byte| *byte == 7), "to {size}");
            assert!(size == page || bytes[before..].iter().all(|byte| *byte == 0), "to {size}");
            bytes.fill(7);
        }
        assert!(memory.grow_to((16 << 20) + 1).is_err());
        assert_eq!(memory.byte_size(), 16 << 20);
    }

    #[test]
    fn a_large_memory_takes_pages_as_it_is_written_to() {
        let mut memory = Pageable::new(64 << 10, 64 << 20).unwrap();
        memory.grow_to(32 << 20).unwrap();
        assert_eq!(bytes(&mut memory)[31 << 20], 0);
        assert!(resident(&memory) < 1 << 20, "{}", resident(&memory));
        bytes(&mut memory)[..20 << 20].fill(1);
        let written = resident(&memory);
        assert!((20 << 20..24 << 20).contains(&written), "{written}");
    }

    /// Bytes of its mapping that the kernel has given it: of each page, the highest bit of its entry.
    fn resident(memory: &Pageable) -> usize {
        use std::os::unix::fs::FileExt as _;
        let page = rustix::param::page_size();
        let mut entries = vec![0; memory.byte_capacity() / page * 8];
        let map = std::fs::File::open("/proc/self/pagemap").unwrap();
        map.read_exact_at(&mut entries, (memory.as_ptr() as usize / page * 8) as u64).unwrap();
        entries.chunks_exact(8).filter(|entry| entry[7] & 0x80 != 0).count() * page
    }
}

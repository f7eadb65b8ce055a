//! The global allocator of a filter: takes the rest of the first memory page before it asks for another.
//!
//! A filter's instance is fresh for every request, and growing a memory costs its host two system calls; the
//! standard library's allocator grows it at the first allocation. With a stack of 16 KiB (see the linker flags in
//! `.cargo/config.toml`) stack, data and heap of a usual call fit one page of 64 KiB, and nothing grows.
//!
//! Turn the feature `heap` off to use another allocator.
#![expect(unsafe_code, reason = "an allocator hands out raw memory")]

use core::{alloc::Layout, arch::wasm32, ptr::NonNull};

use talc::{
    base::{Talc, binning::Binning},
    cell::TalcSyncCell,
    source::Source,
    wasm::WasmBinning,
};

#[global_allocator]
static HEAP: TalcSyncCell<Pages, WasmBinning> = TalcSyncCell::new_wasm(Pages { end: None });

const PAGE: usize = 64 * 1024;

unsafe extern "C" {
    /// Where the linker placed the end of stack and data. Only its address means something.
    static __heap_base: u8;
}

/// Memory for the heap: first what the linker left of the first pages, then new pages.
#[derive(Debug)]
struct Pages {
    /// Where the heap ends so far; none before the first allocation.
    end: Option<NonNull<u8>>,
}

// SAFETY: `acquire` allocates nothing, and reaches the heap through `heap` alone.
unsafe impl Source for Pages {
    fn acquire<B: Binning>(heap: &mut Talc<Self, B>, layout: Layout) -> Result<(), ()> {
        let Some(end) = heap.source.end else {
            let start = (&raw const __heap_base).cast_mut();
            let rest = wasm32::memory_size::<0>() * PAGE - start as usize;
            // SAFETY: nobody else owns a byte from `__heap_base` to the memory's end; this runs once.
            heap.source.end = unsafe { heap.claim(start, rest) };
            return heap.source.end.map(|_| ()).ok_or(());
        };
        // What is asked for, the alignment at worst, and the allocator's own words beside it.
        let pages = (layout.size() + layout.align() + 64).div_ceil(PAGE);
        if wasm32::memory_grow::<0>(pages) == usize::MAX {
            return Err(());
        }
        let memory_end = (wasm32::memory_size::<0>() * PAGE) as *mut u8;
        // SAFETY: the heap ends at `end`; the pages from there to the memory's end were just made, or are
        // a tail of the first claim that was too short to use.
        heap.source.end = Some(unsafe { heap.extend(end, memory_end) });
        Ok(())
    }
}

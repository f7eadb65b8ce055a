//! The global allocator of a filter: made for calls that are short, and whose memory is thrown away after them, unless a
//! manifest says `reuse` or `pin_instance`.
//!
//! Small blocks come from where the last one ended, and go to a list of their size when they are given back: a filter's
//! values are small, and a call that reads a dozen fields allocates as many times. The rest is left to talc.
//!
//! So a usual call begins with a memory as the module has it, and growing that costs the host two system calls; the
//! standard library's allocator grows it at the first allocation. With a stack of 16 KiB (see the linker flags in
//! `.cargo/config.toml`) stack, data and heap of a usual call fit one page of 64 KiB, and nothing grows.
//!
//! Turn the feature `heap` off to use another allocator.
#![expect(unsafe_code, reason = "an allocator hands out raw memory")]

use core::{
    alloc::{GlobalAlloc, Layout},
    arch::wasm32,
    cell::UnsafeCell,
    ptr::{self, NonNull},
};

use talc::{
    base::{Talc, binning::Binning},
    cell::TalcSyncCell,
    source::Source,
    wasm::WasmBinning,
};

#[global_allocator]
static HEAP: Heap = Heap {
    small: UnsafeCell::new(Small { free: [ptr::null_mut(); CLASSES], next: 0, end: 0 }),
    large: TalcSyncCell::new_wasm(Pages { begun: false, end: None }),
};

const PAGE: usize = 64 * 1024;
/// The smallest block, to which all are aligned.
const BLOCK: usize = 16;
/// Sizes of small blocks: 16 bytes, and twice as many from one to the next.
const CLASSES: usize = 6;
/// The largest of them.
const LARGEST: usize = BLOCK << (CLASSES - 1);
/// What small blocks are cut from.
const CHUNK: usize = 4 * 1024;
/// What talc wants beside an allocation: its own words, and the table that its first memory begins with.
const BESIDE: usize = 1024;

unsafe extern "C" {
    /// Where the linker placed the end of stack and data. Only its address means something.
    static __heap_base: u8;
    /// Likewise the end of the memory that a module begins with; 0 by a linker that does not know it, such as LLD 14.
    static __heap_end: u8;
}

struct Heap {
    small: UnsafeCell<Small>,
    large: TalcSyncCell<Pages, WasmBinning>,
}

// SAFETY: a module without threads, and this is for no other, is never on two of them.
unsafe impl Sync for Heap {}

/// The blocks up to [`LARGEST`].
struct Small {
    /// Of each size the block that was given back last; it begins with the address of the one before.
    free: [*mut *mut u8; CLASSES],
    /// What is left of the chunk that is being cut up. Both 0 before the first.
    next: usize,
    end: usize,
}

/// Which size of small block holds it, if any.
const fn class(layout: &Layout) -> Option<usize> {
    if layout.size() > LARGEST || layout.align() > BLOCK {
        return None;
    }
    // 1 to 16 bytes: 0; 17 to 32: 1.
    Some(((layout.size().saturating_sub(1) | (BLOCK - 1)).ilog2() - (BLOCK - 1).ilog2()) as usize)
}

impl Small {
    /// A block of this size; null where there is no memory left.
    fn take(&mut self, class: usize, large: &TalcSyncCell<Pages, WasmBinning>) -> *mut u8 {
        let free = self.free[class];
        if !free.is_null() {
            // SAFETY: whatever is in the list was given back, and its first word written by `give_back`.
            self.free[class] = unsafe { *free }.cast();
            return free.cast();
        }
        let size = BLOCK << class;
        if self.end - self.next < size && !self.cut_another(large) {
            return ptr::null_mut();
        }
        let block = self.next;
        self.next += size;
        block as *mut u8
    }

    fn give_back(&mut self, block: *mut u8, class: usize) {
        let block = block.cast::<*mut u8>();
        // SAFETY: the caller gives up a block, which is aligned and large enough for an address.
        unsafe { *block = self.free[class].cast() };
        self.free[class] = block;
    }

    /// Begins the next chunk; `false` where there is no memory left. The first lies before all other memory of the heap.
    #[cold]
    fn cut_another(&mut self, large: &TalcSyncCell<Pages, WasmBinning>) -> bool {
        if self.next == 0 {
            (self.next, self.end) = first_chunk();
            if self.end > self.next {
                return true;
            }
        }
        // SAFETY: the layout is not empty.
        let chunk = unsafe { large.alloc(Layout::from_size_align_unchecked(CHUNK, BLOCK)) } as usize;
        if chunk == 0 {
            return false;
        }
        (self.next, self.end) = (chunk, chunk + CHUNK);
        true
    }
}

/// The first chunk, from its beginning to its end: empty where the first pages have no room for it.
fn first_chunk() -> (usize, usize) {
    let start = (&raw const __heap_base as usize).next_multiple_of(BLOCK);
    let end = start + CHUNK;
    (start, if end <= first_end() { end } else { start })
}

/// Where the first pages end. Where the linker does not say it the memory does, as long as nobody else has made it grow, which a
/// module from such a linker must not.
fn first_end() -> usize {
    match &raw const __heap_end as usize {
        0 => wasm32::memory_size::<0>() * PAGE,
        end => end,
    }
}

// SAFETY: blocks of a size hold what their class was chosen for, and are in one hand or one list at a time; what is not
// small is talc's, all its life long, for a layout says which it is.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match class(&layout) {
            // SAFETY: nothing that is called from here allocates by this allocator, so the reference is the only one.
            Some(class) => unsafe { &mut *self.small.get() }.take(class, &self.large),
            // SAFETY: the caller's promises.
            None => unsafe { self.large.alloc(layout) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match class(&layout) {
            // SAFETY: as in `alloc`.
            Some(class) => unsafe { &mut *self.small.get() }.give_back(block, class),
            // SAFETY: the caller's promises.
            None => unsafe { self.large.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise, that the size is fit for a layout of this alignment.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (class(&layout), class(&wanted)) {
            (Some(is), Some(to)) if is == to => block,
            // SAFETY: the caller's promises.
            (None, None) => unsafe { self.large.realloc(block, layout, size) },
            _ => {
                // SAFETY: the caller's promises; the new block is another one than the old.
                unsafe {
                    let new = self.alloc(wanted);
                    if !new.is_null() {
                        ptr::copy_nonoverlapping(block, new, layout.size().min(size));
                        self.dealloc(block, layout);
                    }
                    new
                }
            }
        }
    }
}

/// Memory for what is not small: first what the linker and the first chunk left of the first pages, then new pages.
#[derive(Debug)]
struct Pages {
    /// What is left of the first pages was claimed, or is too little for that.
    begun: bool,
    /// Where the memory that was claimed last ends.
    end: Option<NonNull<u8>>,
}

// SAFETY: `acquire` allocates nothing, and reaches the heap through `heap` alone.
unsafe impl Source for Pages {
    fn acquire<B: Binning>(heap: &mut Talc<Self, B>, layout: Layout) -> Result<(), ()> {
        if !heap.source.begun {
            heap.source.begun = true;
            let (_, start) = first_chunk();
            let rest = first_end().saturating_sub(start);
            // SAFETY: nobody else owns a byte from the first chunk's end to that of the first pages; this runs once.
            heap.source.end = unsafe { heap.claim(start as *mut u8, rest) };
            if heap.source.end.is_some() {
                return Ok(());
            }
        }
        // What is asked for, the alignment at worst, and what talc wants beside it.
        let pages = (layout.size() + layout.align() + BESIDE).div_ceil(PAGE);
        let before = wasm32::memory_grow::<0>(pages);
        if before == usize::MAX {
            return Err(());
        }
        let (start, size) = ((before * PAGE) as *mut u8, pages * PAGE);
        // SAFETY: the pages were just made, and are nobody else's. What ends where they begin is ours, and goes on with them;
        // where others made the memory grow in between, or nothing was claimed yet, they stand alone.
        heap.source.end = unsafe {
            match heap.source.end {
                Some(end) if end.as_ptr() == start => Some(heap.extend(end, start.add(size))),
                _ => heap.claim(start, size),
            }
        };
        heap.source.end.map(|_| ()).ok_or(())
    }
}

//! First states: what a module's memory holds once it has started, and what those of all modules may take together.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use super::qualify::{MAX_IMAGE, Unqualified};

/// Bytes that the first states of all loaded modules may take together.
pub(crate) const MAX_IMAGES: usize = 256 << 20;
/// Bytes that are looked at together: where all are zero, none is kept.
const BLOCK: usize = 256;
/// Bytes that a run takes beside its own: where it lies, and the allocator's.
const RUN: usize = 64;

/// What a node may spend on first states.
#[derive(Debug)]
pub(super) struct Budget {
    max: usize,
    spent: AtomicUsize,
}

impl Budget {
    pub(super) fn of(max: usize) -> Arc<Self> {
        Arc::new(Self { max, spent: AtomicUsize::new(0) })
    }

    fn spend(self: &Arc<Self>, bytes: usize) -> Result<Share, Unqualified> {
        // Made first: its drop gives back what does not fit.
        let share = Share { budget: Arc::clone(self), bytes };
        if self.spent.fetch_add(bytes, Relaxed).saturating_add(bytes) > self.max {
            return Err(Unqualified::Images(bytes));
        }
        Ok(share)
    }
}

/// A first state's part of the budget.
#[derive(Debug)]
struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.spent.fetch_sub(self.bytes, Relaxed);
    }
}

/// Bytes from one block that is not all zeros to the last of those that follow it without a gap.
struct Run {
    start: usize,
    bytes: Box<[u8]>,
}

impl Run {
    fn end(&self) -> usize {
        self.start + self.bytes.len()
    }
}

/// Memory as it is at first: what lies between its zeros.
pub(super) struct Image {
    /// In order, none next to another.
    runs: Box<[Run]>,
    _share: Share,
}

impl Image {
    /// # Errors
    /// Where it takes more than [`MAX_IMAGE`], or than is left of the `budget`.
    pub(super) fn of(memory: &[u8], budget: &Arc<Budget>) -> Result<Self, Unqualified> {
        let ranges = ranges(memory.len(), BLOCK, |block| memory[block].iter().any(|byte| *byte != 0));
        let size = ranges.iter().map(|range| range.len() + RUN).sum();
        if size > MAX_IMAGE {
            return Err(Unqualified::Image(size));
        }
        let share = budget.spend(size)?;
        let run = |range: Range<usize>| Run { start: range.start, bytes: memory[range].into() };
        Ok(Self { runs: ranges.into_iter().map(run).collect(), _share: share })
    }

    /// Puts `from..to` of a memory (cut at its end) back.
    pub(super) fn restore(&self, memory: &mut [u8], from: usize, to: usize) {
        let to = to.min(memory.len());
        let mut at = from;
        let first = self.runs.partition_point(|run| run.end() <= from);
        for run in self.runs[first..].iter().take_while(|run| run.start < to) {
            let (start, end) = (run.start.max(from), run.end().min(to));
            memory[at..start].fill(0);
            memory[start..end].copy_from_slice(&run.bytes[start - run.start..end - run.start]);
            at = end;
        }
        memory[at..to].fill(0);
    }
}

/// What has a property, of `size` bytes that are looked at by blocks; blocks next to each other are one range.
pub(super) fn ranges(size: usize, block: usize, has: impl Fn(Range<usize>) -> bool) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for start in (0..size).step_by(block) {
        let end = size.min(start + block);
        match ranges.last_mut() {
            _ if !has(start..end) => {}
            Some(last) if last.end == start => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_next_to_each_other_are_one_range_and_the_last_may_be_short() {
        let of = |bytes: &[u8]| ranges(bytes.len(), 2, |block| bytes[block].iter().any(|byte| *byte != 0));
        assert_eq!(of(&[0, 1, 1, 0, 0, 0, 0, 0, 1]), [0..4, 8..9]);
        assert_eq!(of(&[1, 0, 0, 0, 0, 1, 1]), [0..2, 4..7]);
        assert!(of(&[0; 5]).is_empty() && of(&[]).is_empty());
    }

    #[test]
    fn an_image_puts_back_any_range() {
        let mut memory = vec![0; 4096];
        memory[1500..1510].fill(7);
        memory[2047] = 9;
        memory[3000] = 5;
        memory[4095] = 3;
        let image = Image::of(&memory, &Budget::of(10_000)).unwrap();
        let runs: Vec<_> = image.runs.iter().map(|run| run.start..run.end()).collect();
        assert_eq!(runs, [1280..1536, 1792..2048, 2816..3072, 3840..4096]);
        let ranges = [
            (0, 10),
            (0, 1280),
            (0, 1505),
            (1490, 1503),
            (1505, 3000),
            (1536, 1792),
            (2048, 9000),
            (0, 4096),
            (5, 5),
            (1500, 1500),
        ];
        for (from, to) in ranges {
            let mut changed = vec![1; 4096];
            image.restore(&mut changed, from, to);
            for (i, byte) in changed.iter().enumerate() {
                let expected = if (from..to).contains(&i) { memory[i] } else { 1 };
                assert_eq!(*byte, expected, "byte {i} of {from}..{to}");
            }
        }
        let zeros = Image::of(&[0; 64], &Budget::of(0)).unwrap();
        let mut changed = [1; 64];
        zeros.restore(&mut changed, 8, 64);
        assert_eq!(changed.iter().filter(|b| **b == 1).count(), 8);
    }

    #[test]
    fn what_lies_far_apart_is_kept_without_the_zeros_between() {
        let mut memory = vec![0; 2 << 20];
        (memory[0], memory[(2 << 20) - 1]) = (1, 1);
        let budget = Budget::of(10_000);
        let image = Image::of(&memory, &budget).unwrap();
        assert_eq!(budget.spent.load(Relaxed), 2 * (BLOCK + RUN));
        drop(image);
        assert_eq!(budget.spent.load(Relaxed), 0);
    }

    #[test]
    fn what_does_not_fit_the_budget_takes_nothing_of_it() {
        let budget = Budget::of(3 * (BLOCK + RUN));
        let (one, two) = ([1; BLOCK], [1; 2 * BLOCK]);
        let _first = Image::of(&one, &budget).unwrap();
        let second = Image::of(&two, &budget).unwrap();
        assert_eq!(Image::of(&one, &budget).err(), Some(Unqualified::Images(BLOCK + RUN)));
        assert_eq!(budget.spent.load(Relaxed), 3 * BLOCK + 2 * RUN);
        drop(second);
        assert!(Image::of(&one, &budget).is_ok());
    }
}

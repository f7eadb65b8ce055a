//! Seeded randomness: a run that failed is repeated from the one number that it printed.

use crate::environment;

/// A small generator (SplitMix64): the same seed gives the same numbers, on every machine.
#[derive(Clone, Debug)]
pub struct Seed(u64);

impl Seed {
    /// From a number.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// From the environment variable `BEAMLINE_SEED`, or else from the clock; says on standard error which it is.
    ///
    /// # Panics
    /// Where the variable is no number.
    pub fn from_env(test: &str) -> Self {
        let seed = environment::number("BEAMLINE_SEED").unwrap_or_else(|| {
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(1, |d| d.as_nanos() as u64 % 1_000_000_007)
        });
        eprintln!("{test}: seed {seed} (BEAMLINE_SEED={seed} repeats this run)");
        Self(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number of `range`, which must not be empty.
    pub fn within(&mut self, range: std::ops::Range<u64>) -> u64 {
        assert!(range.start < range.end, "the range {range:?} holds a number");
        range.start + self.bits() % (range.end - range.start)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.within(0..n.max(1)) == 0
    }

    /// One of `items`, which must not be empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.within(0..items.len() as u64) as usize]
    }

    /// `n` random bytes.
    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        let mut out: Vec<u8> = (0..n.div_ceil(8)).flat_map(|_| self.bits().to_le_bytes()).collect();
        out.truncate(n);
        out
    }

    /// Another generator, for another thread, that doesn't repeat this one.
    pub fn fork(&mut self) -> Self {
        Self(self.bits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_number_repeats_a_run() {
        let run = |seed| {
            let mut s = Seed::new(seed);
            (s.bits(), s.within(3..9), s.bytes(11), s.fork().bits())
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
        assert!((0..1000).map(|i| Seed::new(i).within(3..9)).all(|n| (3..9).contains(&n)));
    }
}

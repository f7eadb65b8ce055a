//! Randomness from the host: a sandbox has none of its own.

/// A number that nobody outside the node can foresee.
pub fn u64() -> u64 {
    crate::host::random()
}

/// A number from 0 up to, not including, `end`; 0 where `end` is 0. Biased by less than 1 in 2³².
pub fn below(end: u32) -> u32 {
    scale(u64(), end)
}

/// Maps `value`, evenly spread over all of `u64`, evenly onto `0..end`.
fn scale(value: u64, end: u32) -> u32 {
    let scaled = (u128::from(value) * u128::from(end)) >> 64;
    u32::try_from(scaled).expect("a fraction of `end` is below `end`")
}

#[cfg(test)]
mod tests {
    use super::scale;

    #[test]
    fn values_spread_over_the_whole_range() {
        assert_eq!(scale(0, 100), 0);
        assert_eq!(scale(u64::MAX / 2 + 1, 100), 50);
        assert_eq!(scale(u64::MAX, 100), 99);
        assert_eq!(scale(u64::MAX, 0), 0);
    }
}

//! A hash that is the same on every node and in every version.

/// FNV-1a over 64 bits. Good for spreading, no secret and no proof: who wants two inputs with one hash finds them.
///
/// ```
/// assert_eq!(beamline_sdk::hash::fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
/// ```
pub fn fnv1a<'a>(bytes: impl IntoIterator<Item = &'a u8>) -> u64 {
    bytes
        .into_iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

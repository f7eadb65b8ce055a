//! A client's place on the line of 10,000 points, the same on every node and in every version.

use beamline_sdk::{hash, random};

/// How many points there are: hundredths of a percent.
pub(crate) const POINTS: u32 = 10_000;

/// The point of a client by its key. Changing this moves clients from one upstream to another: never do.
pub(crate) fn of(salt: &[u8], key: &[u8]) -> u32 {
    // 0xff is in no UTF-8 text, so that salt and key cannot run into each other.
    let hash = hash::fnv1a(salt.iter().chain(&[0xff]).chain(key));
    // FNV's high bits differ little between short keys: MurmurHash3's finaliser spreads them.
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    let hash = hash ^ (hash >> 33);
    let scaled = ((hash >> 32) * u64::from(POINTS)) >> 32;
    u32::try_from(scaled).expect("32 bits times POINTS, without the low 32 bits, is below POINTS")
}

/// A point by chance.
pub(crate) fn random() -> u32 {
    random::below(POINTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_never_change() {
        for (salt, key, point) in [
            ("", "", 1_083),
            ("", "alice", 1_130),
            ("", "bob", 3_578),
            ("", "carol", 5_800),
            ("checkout", "alice", 8_307),
            ("checkout", "carol", 235),
        ] {
            assert_eq!(of(salt.as_bytes(), key.as_bytes()), point, "{salt} {key}");
        }
    }

    #[test]
    fn clients_spread_evenly_and_salts_spread_them_anew() {
        let below = |salt: &str, limit| {
            (0..100_000).filter(|n| of(salt.as_bytes(), format!("user-{n}").as_bytes()) < limit).count()
        };
        for limit in [100, 500, 5_000, 9_000] {
            let expected = limit as usize * 10;
            let found = below("", limit);
            assert!(found.abs_diff(expected) < 500, "{limit}: expected about {expected}, found {found}");
        }
        let both = (0..100_000)
            .map(|n| format!("user-{n}"))
            .filter(|key| of(b"a", key.as_bytes()) < 5_000 && of(b"b", key.as_bytes()) < 5_000)
            .count();
        assert!(both.abs_diff(25_000) < 500, "salts are not independent: {both}");
    }
}

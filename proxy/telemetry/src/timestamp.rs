//! RFC 3339 timestamps in UTC with microseconds, quick where one second has many of them.

use std::time::{SystemTime, UNIX_EPOCH};

/// The last second of year 9999, the last that four digits of year can tell.
const LAST: u64 = 253_402_300_799;

/// Writes timestamps; keeps the text of the second that it wrote last.
pub(crate) struct Timestamps {
    second: u64,
    /// `2026-01-31T23:59:59.`
    text: [u8; 20],
}

impl Timestamps {
    pub(crate) const fn new() -> Self {
        Self { second: 0, text: *b"1970-01-01T00:00:00." }
    }

    /// Appends `at`, such as `2026-01-31T23:59:59.000001Z`. A clock before 1970 is told as its first second.
    pub(crate) fn write(&mut self, out: &mut Vec<u8>, at: SystemTime) {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let second = since.as_secs().min(LAST);
        if second != self.second {
            self.second = second;
            self.text = civil(second);
        }
        let mut micros = since.subsec_micros();
        let mut tail = *b"000000Z";
        for digit in tail[..6].iter_mut().rev() {
            *digit = b'0' + u8::try_from(micros % 10).unwrap_or(0);
            micros /= 10;
        }
        out.extend_from_slice(&self.text);
        out.extend_from_slice(&tail);
    }
}

const fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

/// The calendar's text of a second since 1970: counted up year by year, which is plain and, once a second, cheap.
fn civil(second: u64) -> [u8; 20] {
    let (mut days, in_day) = (second / 86_400, second % 86_400);
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let mut text = *b"0000-00-00T00:00:00.";
    let mut put = |at: usize, value: u64| {
        text[at] = b'0' + u8::try_from(value / 10).unwrap_or(0);
        text[at + 1] = b'0' + u8::try_from(value % 10).unwrap_or(0);
    };
    put(0, year / 100);
    put(2, year % 100);
    put(5, month);
    put(8, days + 1);
    put(11, in_day / 3_600);
    put(14, in_day / 60 % 60);
    put(17, in_day % 60);
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn written(stamps: &mut Timestamps, at: SystemTime) -> String {
        let mut out = vec![];
        stamps.write(&mut out, at);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn known_moments_are_told_right() {
        let mut stamps = Timestamps::new();
        for (micros, expected) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399_999_999, "2000-02-28T23:59:59.999999Z"),
            (951_782_400_000_000, "2000-02-29T00:00:00.000000Z"),
            (1_709_251_199_000_001, "2024-02-29T23:59:59.000001Z"),
            (1_767_225_599_123_456, "2025-12-31T23:59:59.123456Z"),
            (1_767_225_600_000_000, "2026-01-01T00:00:00.000000Z"),
            (4_107_542_400_000_000, "2100-03-01T00:00:00.000000Z"),
            (253_402_300_799_999_999, "9999-12-31T23:59:59.999999Z"),
        ] {
            let at = UNIX_EPOCH + Duration::from_micros(micros);
            assert_eq!(written(&mut stamps, at), expected);
            assert_eq!(written(&mut stamps, at), expected, "the kept second tells the same");
        }
    }

    #[test]
    fn a_clock_out_of_range_is_told_as_the_nearest_second() {
        let mut stamps = Timestamps::new();
        assert!(
            written(&mut stamps, UNIX_EPOCH - Duration::from_secs(9)).starts_with("1970-01-01T00:00:00.")
        );
        assert!(
            written(&mut stamps, UNIX_EPOCH + Duration::from_secs(LAST + 9))
                .starts_with("9999-12-31T23:59:59.")
        );
    }

    #[test]
    fn every_day_of_four_centuries_follows_the_one_before() {
        let mut before = civil(0);
        for day in 1..146_097 {
            let now = civil(day * 86_400);
            assert!(
                now > before,
                "{} after {}",
                String::from_utf8_lossy(&now),
                String::from_utf8_lossy(&before)
            );
            before = now;
        }
        assert_eq!(civil(146_097 * 86_400), *b"2370-01-01T00:00:00.");
    }
}

//! What commands print, for people and for programs, and the few forms that both need.

use std::fmt::Write as _;

use serde_json::Value;

/// What a command has to say.
#[derive(Debug)]
pub(crate) struct Report {
    /// For programs. `null` where the command has written everything by itself.
    pub(crate) json: Value,
    /// For people, without the last line's end.
    pub(crate) text: String,
}

impl Report {
    /// What is printed on standard output.
    pub(crate) fn rendered(&self, as_json: bool) -> String {
        if self.json.is_null() {
            String::new()
        } else if as_json {
            format!("{:#}\n", self.json)
        } else {
            format!("{}\n", self.text.trim_end())
        }
    }
}

/// Lines of cells, each column as wide as its widest cell.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table whose first line is `head`.
    pub(crate) fn headed<const N: usize>(head: [&str; N]) -> Self {
        Self { rows: vec![head.map(str::to_owned).to_vec()] }
    }

    /// A table without a head, such as names and values.
    pub(crate) const fn plain() -> Self {
        Self { rows: Vec::new() }
    }

    /// Adds a line.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    /// The lines.
    pub(crate) fn rendered(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell:width$}  ");
            }
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text
    }
}

/// A number of bytes for people: `612 B`, `48.2 KiB`, `3.0 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.iter().find(|(factor, _)| bytes >= *factor) {
        // In tenths, so that no float rounds what a person compares.
        Some((factor, unit)) => format!("{}.{} {unit}", bytes / factor, bytes % factor * 10 / factor),
        None => format!("{bytes} B"),
    }
}

/// Milliseconds since the Unix epoch as UTC to the second: `2026-03-01T09:30:00Z` (RFC 3339).
pub(crate) fn time(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// The date (year, month, day) that is `days` after 1970-01-01.
///
/// Counts in years that begin on 1 March, so that a leap day is a year's last; 400 of them are 146,097 days.
const fn date(days: u64) -> (u64, u64, u64) {
    const DAYS_TO_EPOCH: u64 = 719_468; // from 0000-03-01
    let days = days + DAYS_TO_EPOCH;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153; // 0 is March; five months in turn have 153 days
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next_year, month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_on_a_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_709_164_800, "2024-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(time(seconds * 1000 + 999), expected);
        }
    }

    #[test]
    fn sizes_have_one_decimal_from_a_kibibyte_on() {
        for (bytes, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_572_864, "1.5 MiB"),
            (u64::MAX, "17179869183.9 GiB"),
        ] {
            assert_eq!(size(bytes), expected);
        }
    }

    #[test]
    fn columns_are_as_wide_as_they_must_be_and_lines_end_where_they_end() {
        let mut table = Table::headed(["NAME", "HOSTS"]);
        table.row(["acme-of-the-north".into(), "a.test".into()]);
        table.row(["b".into(), String::new()]);
        assert_eq!(table.rendered(), "NAME               HOSTS\nacme-of-the-north  a.test\nb\n");
    }
}

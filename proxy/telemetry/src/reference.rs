//! Holds pages of `docs/reference` against the tables of this crate: tests only.

use std::path::Path;

/// Asserts that `page` has `table` as the rows of the table between its marks `<!-- begin NAME -->` and
/// `<!-- end NAME -->`. With `BEAMLINE_WRITE_REFERENCE=1` in the environment it writes them there instead.
pub(crate) fn assert_page_has(page: &str, name: &str, table: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference").join(page);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("docs/reference/{page}: {e}"));
    let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->"));
    let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("{page} has no {begin:?}"));
    let (found, after) = rest.split_once(&end).unwrap_or_else(|| panic!("{page} has no {end:?}"));
    // The first two lines are the table's head.
    let at = found.match_indices('\n').nth(1).map_or(found.len(), |(at, _)| at + 1);
    let (head, rows) = found.split_at(at);
    if rows == table {
        return;
    }
    if std::env::var_os("BEAMLINE_WRITE_REFERENCE").is_some() {
        std::fs::write(&path, format!("{before}{begin}{head}{table}{end}{after}")).unwrap();
        return;
    }
    let differs = rows.lines().zip(table.lines()).find(|(a, b)| a != b);
    panic!(
        "docs/reference/{page}, table {name}, is not what the code writes; first difference (page, code): {differs:#?}; \
         run this test with BEAMLINE_WRITE_REFERENCE=1 to write it"
    );
}

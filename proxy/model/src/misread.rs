//! How it is told that a file could not be read: where, and never with a value, which may be a secret.

use std::{borrow::Cow, ops::Range};

/// The longest key that is shown.
const KEY_MAX: usize = 120;

/// A parser's complaint about a TOML file: `file:line: problem in key`. Of the line only its key is shown.
pub fn misread(text: &str, file: &str, at: Option<Range<usize>>, problem: &str) -> String {
    let line = at.map_or(1, |at| 1 + text[..at.start].matches('\n').count());
    let problem = without_text(problem);
    // The key is what the parser's words can leave out.
    match key(text.lines().nth(line - 1).unwrap_or_default()) {
        Some(key) => format!("{file}:{line}: {problem} in `{key}`"),
        None => format!("{file}:{line}: {problem}"),
    }
}

/// What comes before the first `=`, or a table's head; none where that may be something else, such as a value.
fn key(line: &str) -> Option<&str> {
    let bare = |part: &str, more: &str| {
        let is_bare = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c) || more.contains(c);
        (1..=KEY_MAX).contains(&part.len()) && part.chars().all(is_bare)
    };
    let line = line.trim();
    match line.split_once('=') {
        Some((key, _)) => Some(key.trim_end()).filter(|key| bare(key, "")),
        None => Some(line).filter(|line| line.starts_with('[') && bare(line, "[]")),
    }
}

/// A parser's words without the text that it found in place of something else.
pub(crate) fn without_text(problem: &str) -> Cow<'_, str> {
    const FOUND: &str = "string \"";
    let found = problem.find(FOUND).filter(|_| problem.starts_with("invalid "));
    let end = problem.rfind("\", expected ");
    match (found, end) {
        (Some(start), Some(end)) if end >= start + FOUND.len() => {
            Cow::Owned(format!("{}string{}", &problem[..start], &problem[end + 1..]))
        }
        _ => Cow::Borrowed(problem),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_line_only_a_bare_key_is_shown() {
        for (line, expected) in [
            ("  memory = \"1TiB\"", Some("memory")),
            ("a.b-c_1=2", Some("a.b-c_1")),
            ("[[filters]]", Some("[[filters]]")),
            ("headers = { Authorization = \"Bearer s3cret\" }", Some("headers")),
            ("\"hunter2\",", None),
            ("hunter2", None),
            ("password \"hunter2\" # = ", None),
            ("[\"hunter2\"]", None),
            ("", None),
        ] {
            assert_eq!(key(line), expected, "{line}");
        }
    }

    #[test]
    fn a_text_in_the_parsers_words_is_left_out() {
        for (problem, expected) in [
            ("invalid type: string \"hunter2\", expected a map", "invalid type: string, expected a map"),
            (
                "invalid type: string \"a\", expected b\", expected a map",
                "invalid type: string, expected a map",
            ),
            ("invalid type: integer `7`, expected a map", "invalid type: integer `7`, expected a map"),
            ("unknown field `memroy`, expected `memory`", "unknown field `memroy`, expected `memory`"),
        ] {
            assert_eq!(without_text(problem), expected);
        }
    }
}

//! Paths, compared so that what follows cannot be read in two ways.
//!
//! A filter sees a path as the client sent it, neither decoded nor normalised. An origin may resolve dot segments: to
//! it, `/public/../admin` is `/admin`. Comparing text alone would let such a path in by the rule for `/public`.

/// Whether `path` is `prefix` or lies below it, in whole segments: below `/v2` lies `/v2/x`, not `/v2x`. A prefix
/// with a final `/` holds what lies below it alone; below `/` lies every path.
///
/// A path with dot segments, however they are written (`..`, `%2E.`, `..;`, `..%2f`, `..\`), lies below `/` alone.
///
/// ```
/// use beamline_sdk::path::is_below;
///
/// assert!(is_below("/v2/orders", "/v2"));
/// assert!(!is_below("/v2x", "/v2"));
/// assert!(!is_below("/v2/../admin", "/v2"));
/// ```
pub fn is_below(path: &str, prefix: &str) -> bool {
    let Some(rest) = path.strip_prefix(prefix) else {
        return false;
    };
    prefix == "/"
        || (rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/')) && !has_dot_segments(path)
}

/// Whether some origin may take a segment of `path` for `.` or `..`.
pub fn has_dot_segments(path: &str) -> bool {
    let mut bytes = path.bytes();
    // The dots that the segment consists of so far, or none where it has something else.
    let mut dots = Some(0);
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'%' { decoded(&mut bytes) } else { byte };
        match byte {
            b'/' | b'\\' | b';' if matches!(dots, Some(1 | 2)) => return true,
            b'/' | b'\\' => dots = Some(0),
            b'.' => dots = dots.map(|n: u32| n + 1),
            _ => dots = None,
        }
    }
    matches!(dots, Some(1 | 2))
}

/// The byte that two hexadecimal digits stand for, where it matters here; else the `%` itself.
fn decoded(bytes: &mut std::str::Bytes<'_>) -> u8 {
    let mut ahead = bytes.clone();
    let byte = match (ahead.next(), ahead.next().map(|digit| digit.to_ascii_lowercase())) {
        (Some(b'2'), Some(b'e')) => b'.',
        (Some(b'2'), Some(b'f')) => b'/',
        (Some(b'5'), Some(b'c')) => b'\\',
        (Some(b'3'), Some(b'b')) => b';',
        _ => return b'%',
    };
    *bytes = ahead;
    byte
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_whole_segments() {
        for (path, prefix, below) in [
            ("/v2", "/v2", true),
            ("/v2/", "/v2", true),
            ("/v2/x", "/v2", true),
            ("/v2x", "/v2", false),
            ("/", "/v2", false),
            ("/v2", "/v2/", false),
            ("/v2/x", "/v2/", true),
            ("/a/../b", "/", true),
            ("*", "/", false),
        ] {
            assert_eq!(is_below(path, prefix), below, "{path} below {prefix}");
        }
    }

    #[test]
    fn a_path_with_dot_segments_is_below_no_prefix() {
        for path in [
            "/a/..",
            "/a/../b",
            "/a/./b",
            "/a/%2e%2E/b",
            "/a/.%2e",
            "/a/..;/b",
            "/a/..%3bx/b",
            "/a/..%2fb",
            "/a/..%2Fb",
            "/a/..\\b",
            "/a/x%5c..%5Cb",
        ] {
            assert!(has_dot_segments(path), "{path}");
            assert!(!is_below(path, "/a"), "{path}");
        }
    }

    #[test]
    fn dots_within_a_name_are_no_dot_segments() {
        for path in
            ["/a", "/a/x.y", "/a/..x", "/a/x..", "/a/...", "/a/.well-known", "/a/%2", "/a/%", "/a/.%41", "/"]
        {
            assert!(!has_dot_segments(path), "{path}");
        }
    }
}

//! Paths with places for segments: `/users/{id}`.

use percent_encoding::{AsciiSet, utf8_percent_encode};

/// A path with names in some of its places, to be matched or to be filled in.
pub(crate) struct Template(Vec<Piece>);

enum Piece {
    Text(String),
    /// Index into what was captured.
    Place(usize),
}

/// A path that is to be matched, in segments.
pub(crate) struct Pattern {
    segments: Vec<Segment>,
    pub(crate) names: Vec<String>,
}

enum Segment {
    Text(String),
    Place,
}

const MAX_PLACES: usize = 16;

impl Pattern {
    /// Reads a pattern: whole segments are places.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        let Some(rest) = text.strip_prefix('/') else {
            return Err("pattern: expected a path that starts with /");
        };
        let (mut segments, mut names) = (Vec::new(), Vec::<String>::new());
        for segment in rest.split('/') {
            if let Some(name) = segment.strip_prefix('{').and_then(|segment| segment.strip_suffix('}')) {
                if !is_name(name) || names.iter().any(|known| known == name) {
                    return Err("pattern: expected different names of letters, digits and _ in {}");
                }
                names.push(name.to_owned());
                segments.push(Segment::Place);
            } else if segment.contains(['{', '}', '?', '#']) {
                return Err("pattern: expected {name} to be a whole segment, and no query");
            } else {
                segments.push(Segment::Text(segment.to_owned()));
            }
        }
        if names.len() > MAX_PLACES {
            return Err("pattern: expected at most 16 names");
        }
        Ok(Self { segments, names })
    }

    /// What stands in its places, where a path fits: no segment that is captured is empty.
    pub(crate) fn captures<'a>(&self, path: &'a str) -> Option<Vec<&'a str>> {
        let (mut captured, mut found) =
            (Vec::with_capacity(self.names.len()), path.strip_prefix('/')?.split('/'));
        for segment in &self.segments {
            let text = found.next()?;
            match segment {
                Segment::Text(wanted) if text == wanted => {}
                Segment::Place if !text.is_empty() => captured.push(text),
                _ => return None,
            }
        }
        found.next().is_none().then_some(captured)
    }
}

impl Template {
    /// Reads a template whose places have names out of `names`.
    pub(crate) fn parse(text: &str, names: &[String]) -> Result<Self, &'static str> {
        let (mut pieces, mut rest) = (Vec::new(), text);
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) = after.split_once('}').ok_or("to: expected } after {")?;
            let place = names.iter().position(|known| known == name);
            pieces.push(Piece::Text(before.to_owned()));
            pieces.push(Piece::Place(place.ok_or("to: expected names that the pattern has")?));
            rest = after;
        }
        pieces.push(Piece::Text(rest.to_owned()));
        Ok(Self(pieces))
    }

    /// The template with what was captured in its places.
    pub(crate) fn fill(&self, captured: &[&str]) -> String {
        let mut filled = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => filled.push_str(text),
                Piece::Place(place) if filled.contains('?') => {
                    filled.extend(utf8_percent_encode(captured[*place], IN_QUERIES));
                }
                Piece::Place(place) => filled.push_str(captured[*place]),
            }
        }
        filled
    }
}

/// What a segment may hold and means something in a query.
const IN_QUERIES: &AsciiSet = &AsciiSet::EMPTY.add(b'&').add(b'=').add(b'+').add(b';');

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

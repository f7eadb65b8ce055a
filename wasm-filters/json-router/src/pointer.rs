//! JSON Pointers (RFC 6901).

use serde::Deserialize;

/// The way to a value: names of members, indices of items.
#[derive(Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Pointer(pub(crate) Vec<String>);

/// How deep a value may lie. What is deeper in a body is passed over without going in.
const MAX_DEPTH: usize = 16;

impl TryFrom<String> for Pointer {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let Some(tokens) = text.strip_prefix('/') else {
            return Err("expected a JSON Pointer that starts with /, such as /order/kind");
        };
        let tokens = tokens.split('/').map(unescaped).collect::<Option<Vec<_>>>();
        let tokens = tokens.ok_or("expected 0 or 1 after each ~")?;
        if tokens.len() > MAX_DEPTH {
            return Err("expected at most 16 parts");
        }
        Ok(Self(tokens))
    }
}

/// A token with `~1` read as `/` and `~0` as `~`.
fn unescaped(token: &str) -> Option<String> {
    let mut parts = token.split('~');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (escaped, rest) = match part.as_bytes().first() {
            Some(b'0') => ('~', &part[1..]),
            Some(b'1') => ('/', &part[1..]),
            _ => return None,
        };
        text.push(escaped);
        text.push_str(rest);
    }
    Some(text)
}

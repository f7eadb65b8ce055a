//! What never reaches a log or a trace: query strings, credentials, the secrets of receipts.

use std::borrow::Cow;

use serde_json::Value;

/// Where receipts are asked for. What follows is an id, a dot and a secret.
const RECEIPTS: [&str; 3] = [".well-known", "beamline", "requests"];
/// The same as a text, for messages that quote one.
const RECEIPTS_PATH: &str = "/.well-known/beamline/requests/";
/// What stands in place of what was cut out.
const CUT: &str = "…";

/// Ends of field names whose value is a secret. `token` covers `operator_token`, but not `token.scope`.
const SECRET_NAMES: [&str; 8] =
    ["authorization", "cookie", "credentials", "password", "query", "receipt", "secret", "token"];
/// Field names whose value is a path or a target.
const PATH_NAMES: [&str; 3] = ["path", "target", "uri"];

/// The first `max` bytes of `text`, or one to three less so that no character is cut.
pub(crate) fn cut(text: &str, max: usize) -> &str {
    if text.len() <= max { text } else { &text[..text.floor_char_boundary(max)] }
}

/// A request's path as it may be told: no query, no receipt's secret, at most `max` bytes and an ellipsis.
///
/// A receipt is seen in every spelling that leads to it: percent-encoded, with empty and dot segments.
pub(crate) fn path(target: &str, max: usize) -> Cow<'_, str> {
    // One pass over the bytes: where the path ends, and whether it could be a receipt's: that takes a segment that
    // begins with a dot, or an escape.
    let (mut end, mut suspect, mut before) = (target.len(), false, 0);
    for (at, byte) in target.bytes().enumerate() {
        match byte {
            b'?' | b'#' => {
                end = at;
                break;
            }
            b'%' => suspect = true,
            b'.' if before == b'/' => suspect = true,
            _ => {}
        }
        before = byte;
    }
    let path = &target[..end];
    if suspect && let Some(told) = receipt(path) {
        return Cow::Owned(told);
    }
    if path.len() <= max { Cow::Borrowed(path) } else { Cow::Owned(format!("{}{CUT}", cut(path, max))) }
}

/// How a receipt's path is told; none for any other path.
fn receipt(path: &str) -> Option<String> {
    let decoded = percent_decoded(path.as_bytes());
    let mut segments: Vec<&[u8]> = vec![];
    for segment in decoded.split(|b| matches!(b, b'/' | b'\\')) {
        match segment {
            b"" | b"." => {}
            b".." => _ = segments.pop(),
            other => segments.push(other),
        }
    }
    let [a, b, c, presented, ..] = segments[..] else { return None };
    let is_receipt = [a, b, c].iter().zip(RECEIPTS).all(|(s, r)| s.eq_ignore_ascii_case(r.as_bytes()));
    is_receipt.then(|| format!("{RECEIPTS_PATH}{}{CUT}", public_part(presented)))
}

/// A receipt's id and dot; empty where there is no such thing.
fn public_part(presented: &[u8]) -> &str {
    let Some(dot) = presented.iter().position(|b| *b == b'.') else { return "" };
    let id_like =
        dot <= 64 && presented[..dot].iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if id_like { str::from_utf8(&presented[..=dot]).unwrap_or("") } else { "" }
}

fn percent_decoded(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        let pair = (*first == b'%').then(|| tail.get(..2)).flatten();
        let byte = pair.and_then(|p| str::from_utf8(p).ok()).and_then(|p| u8::from_str_radix(p, 16).ok());
        out.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &tail[2..] } else { tail };
    }
    out
}

/// A message as it may be told: what follows the path of receipts in it is cut out.
pub(crate) fn text(message: &str) -> Cow<'_, str> {
    if !message.contains(RECEIPTS_PATH) {
        return Cow::Borrowed(message);
    }
    let mut out = String::with_capacity(message.len());
    let mut rest = message;
    while let Some(at) = rest.find(RECEIPTS_PATH) {
        let (before, after) = rest.split_at(at + RECEIPTS_PATH.len());
        let end = after
            .find(|c: char| {
                c.is_whitespace() || matches!(c, '"' | '\'' | '<' | '>' | ',' | ';' | ')' | ']' | '}')
            })
            .unwrap_or(after.len());
        out.push_str(before);
        out.push_str(public_part(&after.as_bytes()[..end]));
        out.push_str(CUT);
        rest = &after[end..];
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// An event's field as it may be told, by its name and by what is in it.
pub(crate) fn field(name: &str, value: &mut Value) {
    let last = name.rsplit(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or(name);
    let named = |names: &[&str]| names.iter().any(|n| last.eq_ignore_ascii_case(n));
    if named(&SECRET_NAMES) {
        *value = Value::from(CUT);
        return;
    }
    match value {
        Value::String(s) if named(&PATH_NAMES) => *s = path(s, crate::bounds::PATH).into_owned(),
        Value::String(s) => {
            if let Cow::Owned(told) = text(s) {
                *s = told;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| field(name, item)),
        Value::Object(fields) => fields.iter_mut().for_each(|(name, value)| field(name, value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_query_is_never_told() {
        assert_eq!(path("/a/b?token=1", 100), "/a/b");
        assert_eq!(path("/?", 100), "/");
        assert_eq!(path("/a#b?c", 100), "/a");
    }

    #[test]
    fn a_long_path_is_cut_between_characters() {
        assert_eq!(path("/abcdef", 4), "/abc…");
        assert_eq!(path("/aéé", 3), "/a…");
    }

    #[test]
    fn the_secret_of_a_receipt_is_cut_in_every_spelling() {
        for spelling in [
            "/.well-known/beamline/requests/rid.SECRET",
            "/.well-known/beamline/requests/rid.SECRET/",
            "/.well-known/beamline/requests/rid.SECRET?x=SECRET",
            "//.well-known//beamline/./requests/rid.SECRET",
            "/x/../.well-known/beamline/requests/rid.SECRET",
            "/%2ewell-known/beamline/requests/rid%2ESECRET",
            "/.Well-Known/Beamline/%72equests/rid.SECRET",
            "/.well-known\\beamline\\requests\\rid.SECRET",
            "/.well-known/beamline/requests/rid.SE%43RET/more/SECRET",
        ] {
            assert_eq!(path(spelling, 100), "/.well-known/beamline/requests/rid.…", "{spelling}");
        }
        assert_eq!(path("/.well-known/beamline/requests/SECRET", 100), "/.well-known/beamline/requests/…");
        assert_eq!(path("/.well-known/beamline/requests/é.SECRET", 100), "/.well-known/beamline/requests/…");
    }

    #[test]
    fn other_paths_stay_as_they_are() {
        for other in ["/", "/a.b/c", "/.well-known/acme-challenge/x.y", "/%zz%4", "/a/../b", "*"] {
            assert_eq!(path(other, 100), other);
        }
    }

    #[test]
    fn a_receipt_in_a_message_is_cut() {
        let message = "see https://a.test/.well-known/beamline/requests/rid.SECRET, or \"/.well-known/beamline/requests/SECRET\"";
        let told = text(message);
        assert!(!told.contains("SECRET"), "{told}");
        assert_eq!(
            told,
            "see https://a.test/.well-known/beamline/requests/rid.…, or \"/.well-known/beamline/requests/…\""
        );
        assert!(matches!(text("nothing here"), Cow::Borrowed("nothing here")));
    }

    #[test]
    fn secrets_of_events_are_known_by_their_names() {
        let mut fields = json!({
            "Authorization": "Bearer S", "request": {"set-cookie": ["S"], "path": "/a?S"}, "operator_token": "S",
            "token.scope": "operator", "note": "/.well-known/beamline/requests/i.S"
        });
        field("", &mut fields);
        assert_eq!(
            fields,
            json!({
                "Authorization": "…", "request": {"set-cookie": "…", "path": "/a"}, "operator_token": "…",
                "token.scope": "operator", "note": "/.well-known/beamline/requests/i.…"
            })
        );
    }

    proptest! {
        #[test]
        fn no_path_makes_it_panic_or_keeps_a_query(target in "(?s).{0,60}|[/.%?a-f0-9]{0,60}", max in 0usize..80) {
            let told = path(&target, max);
            prop_assert!(!told.contains('?'));
        }
    }
}

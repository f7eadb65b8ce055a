//! Queries of a client beside parameters that a rule sets.

use percent_encoding::percent_decode_str;

/// The parameters of a client's query, as they stand, without those whose names a rule's query has.
///
/// Of two parameters of one name some origins take the first, some the last, some both: what a rule says of somebody would be
/// the client's to say.
pub(crate) fn without<'a>(query: &'a str, own: &str) -> Vec<&'a str> {
    let own: Vec<_> = parameters(own).map(folded).collect();
    let is_clients = |part: &&str| parameters(part).all(|parameter| !own.contains(&folded(parameter)));
    query.split('&').filter(|part| !part.is_empty()).filter(is_clients).collect()
}

/// The parameters of a query, which some origins also split at `;`.
fn parameters(query: &str) -> impl Iterator<Item = &str> {
    query.split(['&', ';'])
}

/// A parameter's name in one form for all that some origin may take for the same: decoded, in lower case, without space before
/// it, without what is in brackets after it (`user[]`), and with `_` for what PHP writes so.
fn folded(parameter: &str) -> Vec<u8> {
    let name = parameter.split('=').next().unwrap_or_default().replace('+', " ");
    let decoded: Vec<_> = percent_decode_str(&name).collect();
    let name = decoded.trim_ascii_start();
    let end = name.iter().position(|byte| matches!(byte, b'[' | 0)).unwrap_or(name.len());
    let one = |byte: &u8| if matches!(byte, b' ' | b'.') { b'_' } else { byte.to_ascii_lowercase() };
    name[..end].iter().map(one).collect()
}

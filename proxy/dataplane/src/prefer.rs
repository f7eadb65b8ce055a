//! What a client prefers (`Prefer`, RFC 7240), and what is said of it.

use std::time::Duration;

use http::{HeaderMap, HeaderName};

pub(crate) const PREFER: HeaderName = HeaderName::from_static("prefer");
pub(crate) const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The preferences with their values, parameters left out.
fn preferences(headers: &HeaderMap) -> impl Iterator<Item = (&str, Option<&str>)> {
    let values = headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|preference| {
        let word = preference.split_once(';').map_or(preference, |(word, _)| word);
        match word.split_once('=') {
            Some((name, value)) => (name.trim(), Some(value.trim().trim_matches('"'))),
            None => (word.trim(), None),
        }
    })
}

/// Whether the client would rather have an answer soon than the result (section 4.1).
pub(crate) fn asks_for_async(headers: &HeaderMap) -> bool {
    preferences(headers).any(|(name, _)| name.eq_ignore_ascii_case("respond-async"))
}

/// How long the client would wait, 1 to 60 s (section 4.3).
pub(crate) fn wait(headers: &HeaderMap) -> Option<Duration> {
    let mut waits = preferences(headers).filter(|(name, _)| name.eq_ignore_ascii_case("wait"));
    let seconds = waits.find_map(|(_, value)| value?.parse::<u64>().ok())?;
    (seconds > 0).then(|| Duration::from_secs(seconds).min(LONGEST_WAIT))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn preferences_are_read_as_rfc_7240_writes_them() {
        for (value, asks, seconds) in [
            ("respond-async", true, None),
            ("Respond-Async; foo=bar", true, None),
            ("respond-asyncx", false, None),
            ("handling=lenient", false, None),
            ("wait=10, respond-async", true, Some(10)),
            ("respond-async, wait=10", true, Some(10)),
            ("WAIT = \"7\"", false, Some(7)),
            ("wait=3; x=y", false, Some(3)),
            ("wait=3600", false, Some(60)),
            ("wait=0", false, None),
            ("wait=soon", false, None),
            ("wait", false, None),
            ("await=10", false, None),
        ] {
            let headers = HeaderMap::from_iter([(PREFER, HeaderValue::from_static(value))]);
            assert_eq!(asks_for_async(&headers), asks, "{value}");
            assert_eq!(wait(&headers), seconds.map(Duration::from_secs), "{value}");
        }
        assert!(!asks_for_async(&HeaderMap::new()) && wait(&HeaderMap::new()).is_none());
    }
}

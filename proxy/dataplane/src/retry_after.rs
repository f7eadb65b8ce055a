//! `Retry-After` (RFC 9110, section 10.2.3): seconds, or a date.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, header};

/// How long a response asks to be left alone. A date counts from the response's own `Date` where it has one, so that an
/// origin whose clock is wrong is understood, and else from `now`; one that is past is no time at all. What is neither
/// seconds nor a date is no `Retry-After`.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: HeaderName| headers.get(name)?.to_str().ok().map(str::trim);
    let date = |text: &str| httpdate::parse_http_date(text).ok();
    let asked = text(header::RETRY_AFTER)?;
    if !asked.is_empty() && asked.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than fit are longer than anyone waits.
        return Some(Duration::from_secs(asked.parse().unwrap_or(u64::MAX)));
    }
    let from = text(header::DATE).and_then(date).unwrap_or(now);
    Some(date(asked)?.duration_since(from).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_all_three_forms_of_a_date_are_read_and_nothing_else() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:00 GMT").unwrap();
        let secs = |n| Some(Duration::from_secs(n));
        for (retry_after_field, date, expected) in [
            ("120", None, secs(120)),
            (" 0 ", None, secs(0)),
            ("99999999999999999999999", None, secs(u64::MAX)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", None, secs(37)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", None, secs(37)),
            ("Sun Nov  6 08:49:37 1994", None, secs(37)),
            ("Sun, 06 Nov 1994 08:48:00 GMT", None, secs(0)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some("Sun, 06 Nov 1994 08:49:30 GMT"), secs(7)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some("yesterday"), secs(37)),
            ("120", Some("Sun, 06 Nov 1994 08:49:30 GMT"), secs(120)),
            ("", None, None),
            ("soon", None, None),
            ("-5", None, None),
            ("1.5", None, None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, retry_after_field.parse().unwrap());
            date.into_iter().for_each(|date| drop(headers.insert(header::DATE, date.parse().unwrap())));
            assert_eq!(retry_after(&headers, now), expected, "{retry_after_field:?}, {date:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}

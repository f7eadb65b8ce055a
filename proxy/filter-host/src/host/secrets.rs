//! `secrets`: what the manifest lets the filter read, and that it is not logged.

use std::fmt;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};
use serde_json::json;

use super::CallState;
use crate::bindings::beamline::edge::secrets;

/// What stands in a message in place of a secret.
const REDACTED: &str = "[redacted]";

impl secrets::Host for CallState {
    fn get(&mut self, name: String) -> wasmtime::Result<Option<Vec<u8>>> {
        self.count_call()?;
        Ok(self.config.secret(&name).map(|secret| secret.reveal().to_vec()))
    }
}

/// Finds the secrets of one filter in its texts: as they are, and as JSON and Rust's `{:?}` quote them.
pub(super) struct Redaction {
    /// None where there is nothing to find.
    finder: Option<AhoCorasick>,
    /// Bytes of the longest.
    longest: usize,
}

impl Redaction {
    /// Of these secrets; one that is no text stands in none.
    pub(super) fn of(secrets: &[&[u8]]) -> Self {
        let texts = secrets.iter().filter_map(|secret| std::str::from_utf8(secret).ok());
        let written = |text: &str| {
            let (quoted, debug) = (json!(text).to_string(), format!("{text:?}"));
            [text.to_owned(), inner(&quoted).to_owned(), inner(&debug).to_owned()]
        };
        let mut patterns: Vec<_> = texts.flat_map(written).filter(|text| !text.is_empty()).collect();
        patterns.sort_unstable();
        patterns.dedup();
        let longest = patterns.iter().map(String::len).max().unwrap_or(0);
        let finder = (longest > 0).then(|| {
            AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                // A few bytes for each byte of a secret; the fastest kind takes a hundred times as many.
                .kind(Some(AhoCorasickKind::ContiguousNFA))
                .build(&patterns)
                .expect("the secrets of a filter have few bytes together")
        });
        Self { finder, longest }
    }

    /// Whether there is anything to find.
    pub(super) fn is_needed(&self) -> bool {
        self.finder.is_some()
    }

    /// A message without the secrets, as far as it is wanted: until it has `most` bytes. Also how many bytes of it were read.
    pub(super) fn redacted(&self, message: &str, most: usize) -> (String, usize) {
        let (mut out, mut read) = (String::new(), 0_usize);
        loop {
            let room = most - out.len();
            // Nothing beyond is looked at: a secret that begins within the room ends here at the latest.
            let seen = read.saturating_add(room).saturating_add(self.longest).min(message.len());
            let seen = &message[read..message.floor_char_boundary(seen)];
            let found = self.finder.as_ref().and_then(|finder| finder.find(seen));
            let plain = found.map_or(seen.len(), |found| found.start());
            let end = seen.floor_char_boundary(plain.min(room));
            out.push_str(&seen[..end]);
            read += end;
            match found {
                Some(found) if end == plain && out.len() + REDACTED.len() <= most => {
                    out.push_str(REDACTED);
                    read += found.len();
                }
                _ => return (out, read),
            }
        }
    }
}

/// What is between the quotation marks.
fn inner(quoted: &str) -> &str {
    quoted.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(quoted)
}

impl fmt::Debug for Redaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Redaction(…)")
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_secret_in_a_message_is_cut_out_wherever_it_stands() {
        let redaction = Redaction::of(&[b"s3cret", b"s3cret-long", "é".as_bytes(), b"\xff"]);
        let told = |message: &str| redaction.redacted(message, 1000).0;
        assert_eq!(told("the token is s3cret"), "the token is [redacted]");
        assert_eq!(told("s3crets3cret, s3cret-long!"), "[redacted][redacted], [redacted]!");
        assert_eq!(told("café s3cre"), "caf[redacted] s3cre");
        assert_eq!(told(""), "");
        assert_eq!(Redaction::of(&[]).redacted("plain", 3), ("pla".to_owned(), 3));
    }

    #[test]
    fn a_secret_is_found_as_it_is_quoted() {
        let redaction = Redaction::of(&[br#"pass"word\"#]);
        let told = |message: &str| redaction.redacted(message, 1000).0;
        assert_eq!(told(r#"{"key":"pass\"word\\"}"#), r#"{"key":"[redacted]"}"#);
        assert_eq!(told(&format!("{:?}", r#"pass"word\"#)), "\"[redacted]\"");
    }

    #[test]
    fn a_message_is_cut_without_showing_a_part_of_a_secret() {
        let redaction = Redaction::of(&[b"s3cret"]);
        for most in 0..30 {
            let (out, read) = redaction.redacted("12345s3cret6789", most);
            assert!(out.len() <= most && !out.contains("s3"), "{out}");
            assert!(read <= 15 && (most < 24 || read == 15));
        }
    }

    #[test]
    fn a_message_that_nearly_has_many_secrets_costs_no_more_than_its_length() {
        // 64 secrets that all begin alike, and a message that goes on doing so: 8 GiB of comparisons one by one.
        let secrets: Vec<_> = (0..64_u8).map(|i| [&[b'a'; 8_000][..], &[b'!' + i]].concat()).collect();
        let redaction = Redaction::of(&secrets.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let (message, began) = ("a".repeat(16 << 20), Instant::now());
        let (out, read) = redaction.redacted(&message, message.len());
        assert_eq!((out.len(), read), (message.len(), message.len()));
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    }
}

//! `secrets`: what the manifest lets the filter read, and that it is not logged.

use std::{borrow::Cow, fmt, sync::Arc};

use beamline_model::SecretValue;
use memchr::memmem::Finder;
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

/// Finds the secrets of a chain's filters in their texts: as they are, and as JSON and Rust's `{:?}` quote them.
///
/// Made once for all filters of a manifest: it takes as much memory as the secrets, however many filters read them.
pub struct Redaction {
    finders: Vec<Finder<'static>>,
    /// Bytes of the longest.
    longest: usize,
}

impl Redaction {
    /// Of these secrets; of one that is no text, what stands for it where a text is made of it.
    pub fn of<'s>(secrets: impl IntoIterator<Item = &'s SecretValue>) -> Arc<Self> {
        let texts = secrets.into_iter().map(|secret| String::from_utf8_lossy(secret.reveal()));
        let written = |text: Cow<'_, str>| {
            let (quoted, debug) = (json!(text).to_string(), format!("{text:?}"));
            [text.into_owned(), inner(&quoted).to_owned(), inner(&debug).to_owned()]
        };
        let mut patterns: Vec<_> = texts.flat_map(written).collect();
        patterns.sort_unstable();
        patterns.dedup();
        let longest = patterns.iter().map(String::len).max().unwrap_or(0);
        let finders = patterns.iter().map(|pattern| Finder::new(pattern).into_owned()).collect();
        Arc::new(Self { finders, longest })
    }

    /// Whether there is anything to find.
    pub(super) fn is_needed(&self) -> bool {
        !self.finders.is_empty()
    }

    /// Bytes of the longest text that is to be found.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }

    /// The first `most` bytes of a message without the secrets, in at most as many bytes. Also how many bytes of it were told.
    ///
    /// Takes time for `most` and the longest secret together, times the secrets, whatever the message.
    pub(super) fn redacted(&self, message: &str, most: usize) -> (String, usize) {
        let room = message.floor_char_boundary(most);
        // A secret that begins within the room ends here at the latest.
        let seen = &message[..message.floor_char_boundary(most.saturating_add(self.longest))];
        let secret = self.secret_bytes(seen);
        let next = |from: usize, is_secret: bool| {
            let found = secret[from..].iter().position(|byte| *byte == is_secret);
            found.map_or(secret.len(), |after| from + after)
        };
        let (mut out, mut read) = (String::new(), 0);
        loop {
            let plain = next(read, true).min(room).max(read);
            let end = message.floor_char_boundary(plain.min(read.saturating_add(most - out.len())));
            out.push_str(&message[read..end]);
            read = end;
            if end < plain || plain >= room || out.len() + REDACTED.len() > most {
                return (out, read);
            }
            out.push_str(REDACTED);
            read = next(read, false);
        }
    }

    /// Which bytes of a text belong to secrets, which may overlap each other.
    fn secret_bytes(&self, text: &str) -> Vec<bool> {
        let mut secret = vec![false; text.len()];
        for finder in &self.finders {
            for at in finder.find_iter(text.as_bytes()) {
                secret[at..at + finder.needle().len()].fill(true);
            }
        }
        secret
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
pub(super) mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    pub(in crate::host) fn redaction(secrets: &[&[u8]]) -> Arc<Redaction> {
        let secrets: Vec<_> = secrets.iter().map(|secret| SecretValue::new(secret).unwrap()).collect();
        Redaction::of(&secrets)
    }

    #[test]
    fn a_secret_in_a_message_is_cut_out_wherever_it_stands() {
        let redaction = redaction(&[b"s3cret", b"s3cret-long", "é".as_bytes(), b"\xff"]);
        let told = |message: &str| redaction.redacted(message, 1000).0;
        assert_eq!(told("the token is s3cret"), "the token is [redacted]");
        assert_eq!(told("s3crets3cret, s3cret-long!"), "[redacted], [redacted]!");
        assert_eq!(told("café s3cre"), "caf[redacted] s3cre");
        assert_eq!(told(""), "");
        assert_eq!(Redaction::of([]).redacted("plain", 3), ("pla".to_owned(), 3));
    }

    #[test]
    fn secrets_that_overlap_are_cut_out_whole() {
        let redaction = redaction(&[b"b", b"abc", b"cdef", b"def-long"]);
        let told = |message: &str| redaction.redacted(message, 1000).0;
        assert_eq!(told("xabcdef!"), "x[redacted]!");
        assert_eq!(told("ab cdef-long"), "a[redacted] [redacted]");
    }

    #[test]
    fn a_secret_is_found_as_it_is_quoted() {
        let redaction = redaction(&[br#"pass"word\"#]);
        let told = |message: &str| redaction.redacted(message, 1000).0;
        assert_eq!(told(r#"{"key":"pass\"word\\"}"#), r#"{"key":"[redacted]"}"#);
        assert_eq!(told(&format!("{:?}", r#"pass"word\"#)), "\"[redacted]\"");
    }

    #[test]
    fn a_message_is_cut_without_showing_a_part_of_a_secret() {
        let redaction = redaction(&[b"s3cret"]);
        for most in 0..30 {
            let (out, read) = redaction.redacted("12345s3cret6789", most);
            assert!(out.len() <= most && !out.contains("s3"), "{out}");
            assert!(read <= 15 && (most < 24 || read == 15));
        }
        // What is shorter without its secrets is told no further: what was not looked at may have a part of one.
        let long = format!("{}s3cret", "s3cret".repeat(100));
        assert_eq!(redaction.redacted(&long, 603), (REDACTED.to_owned(), 606));
    }

    #[test]
    fn a_message_costs_no_more_than_its_length_whatever_the_secrets() {
        // Secrets that all begin alike, and a message that goes on doing so: 8 GiB of comparisons one by one.
        let alike: Vec<_> = (0..64_u8).map(|i| [&[b'a'; 8_000][..], &[b'!' + i]].concat()).collect();
        // A short one that is everywhere, and a long one that nearly is.
        let nested = vec![b"a".to_vec(), [&[b'a'; 8_191][..], b"!"].concat()];
        for secrets in [alike, nested] {
            let redaction = redaction(&secrets.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let (message, began) = ("a".repeat(2 << 20), Instant::now());
            let (_, read) = redaction.redacted(&message, message.len());
            assert_eq!(read, message.len());
            assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        }
    }
}

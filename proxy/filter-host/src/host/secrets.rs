//! `secrets`: what the manifest lets the filter read, and that it is not logged.

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

/// A message without these secrets, as far as it is wanted: until it has `most` bytes. Also how many bytes of it were read.
pub(super) fn redacted(message: &str, secrets: &[&str], most: usize) -> (String, usize) {
    let (mut out, mut read) = (String::new(), 0);
    while let Some(next) = message[read..].chars().next() {
        // The longest, where one secret begins with another.
        let secret = secrets.iter().filter(|s| message[read..].starts_with(**s)).map(|s| s.len()).max();
        let size = secret.map_or(next.len_utf8(), |_| REDACTED.len());
        if out.len() + size > most {
            break;
        }
        match secret {
            Some(_) => out.push_str(REDACTED),
            None => out.push(next),
        }
        read += secret.unwrap_or(next.len_utf8());
    }
    (out, read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_in_a_message_is_cut_out_wherever_it_stands() {
        let told = |message: &str| redacted(message, &["s3cret", "s3cret-long", "é"], 1000).0;
        assert_eq!(told("the token is s3cret"), "the token is [redacted]");
        assert_eq!(told("s3crets3cret, s3cret-long!"), "[redacted][redacted], [redacted]!");
        assert_eq!(told("café s3cre"), "caf[redacted] s3cre");
        assert_eq!(told(""), "");
    }

    #[test]
    fn a_message_is_cut_without_showing_a_part_of_a_secret() {
        for most in 0..30 {
            let (out, read) = redacted("12345s3cret6789", &["s3cret"], most);
            assert!(out.len() <= most && !out.contains("s3"), "{out}");
            assert!(read <= 15 && (most < 24 || read == 15));
        }
    }
}

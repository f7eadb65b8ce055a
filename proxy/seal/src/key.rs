//! Keys, and the text that holds them.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use thiserror::Error;
use zeroize::Zeroizing;

/// The length of a key in bytes.
pub(crate) const KEY_BYTES: usize = 32;
/// The most characters of a key's id.
const ID_MAX: usize = 32;
/// The most keys that one text may hold.
const KEYS_MAX: usize = 64;

/// The name by which what is sealed says which key opens it: 1 to 32 letters, digits, `-`, `_` and `.`. No secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyId(String);

impl KeyId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if text.is_empty() || text.len() > ID_MAX || !text.bytes().all(fits) {
            // What was found is not repeated: it may be a key that stands in the wrong place.
            return Err(format!(
                "expected a key's id of 1 to {ID_MAX} letters, digits, \"-\", \"_\" and \".\""
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text holds no keys. Never repeats what stands there.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InvalidKeys {
    /// A line is no key.
    #[error(
        "line {line}: {problem}; expected ID:KEY, where KEY is 32 bytes in base64, as `beamline seal-key generate` prints it"
    )]
    Line {
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// Two lines have one id.
    #[error("line {line}: there is a key {id} above: give each key an id of its own")]
    Twice {
        /// The second of the two, from 1.
        line: usize,
        /// Their id.
        id: KeyId,
    },
    /// No line is a key.
    #[error("there is no key in it: `beamline seal-key generate` prints one")]
    None,
    /// There are too many.
    #[error("there are more than {KEYS_MAX} keys in it: remove those by which nothing is sealed any more")]
    TooMany,
}

pub(crate) struct Key {
    pub(crate) id: KeyId,
    pub(crate) bytes: Zeroizing<[u8; KEY_BYTES]>,
}

impl FromStr for Key {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let (id, key) = line.split_once(':').ok_or("there is no \":\"")?;
        let decoded = STANDARD.decode(key.trim()).map(Zeroizing::new);
        let decoded = decoded.map_err(|_| "what follows the \":\" is not base64".to_owned())?;
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        if decoded.len() != KEY_BYTES {
            return Err(format!("the key has {} bytes", decoded.len()));
        }
        bytes.copy_from_slice(&decoded);
        Ok(Self { id: id.trim().parse()?, bytes })
    }
}

/// A node's seal keys: the first one seals, all of them open.
pub struct SealKeys {
    current: Key,
    others: Vec<Key>,
}

impl SealKeys {
    /// From a text with one key a line, `ID:BASE64`. Empty lines, and lines that begin with `#`, are nothing.
    ///
    /// # Errors
    /// [`InvalidKeys`] names the line.
    pub fn parse(text: &str) -> Result<Self, InvalidKeys> {
        let mut keys = Vec::<Key>::new();
        for (line, text) in (1..).zip(text.lines().map(str::trim)) {
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let key: Key = text.parse().map_err(|problem| InvalidKeys::Line { line, problem })?;
            if keys.iter().any(|k| k.id == key.id) {
                return Err(InvalidKeys::Twice { line, id: key.id });
            }
            if keys.len() == KEYS_MAX {
                return Err(InvalidKeys::TooMany);
            }
            keys.push(key);
        }
        let mut keys = keys.into_iter();
        let current = keys.next().ok_or(InvalidKeys::None)?;
        Ok(Self { current, others: keys.collect() })
    }

    /// The id of the key that seals.
    pub fn current(&self) -> &KeyId {
        &self.current.id
    }

    /// The ids of all keys, the one that seals first.
    pub fn ids(&self) -> impl Iterator<Item = &KeyId> {
        self.all().map(|key| &key.id)
    }

    pub(crate) fn current_key(&self) -> &Key {
        &self.current
    }

    pub(crate) fn key(&self, id: &str) -> Option<&Key> {
        self.all().find(|key| key.id.as_str() == id)
    }

    fn all(&self) -> impl Iterator<Item = &Key> {
        std::iter::once(&self.current).chain(&self.others)
    }
}

impl fmt::Debug for SealKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ids().map(KeyId::as_str)).finish()
    }
}

/// A new key as a line of a key file. It is shown to whoever made it and to nobody else: `Debug` hides it.
pub struct KeyLine(Zeroizing<String>);

impl KeyLine {
    /// A new random key with this id.
    ///
    /// # Panics
    /// Where the operating system has no randomness to give.
    pub fn generate(id: &KeyId) -> Self {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        getrandom::fill(&mut *bytes).expect("the operating system gives randomness");
        let encoded = Zeroizing::new(STANDARD.encode(*bytes));
        Self(Zeroizing::new(format!("{id}:{}", *encoded)))
    }

    /// The line, without its end.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for KeyLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyLine(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(id: &str) -> String {
        KeyLine::generate(&id.parse().unwrap()).reveal().to_owned()
    }

    #[test]
    fn the_first_key_seals_and_comments_are_nothing() {
        let text = format!("# of march\n\n  {}  \n{}\n", line("k2"), line("k1"));
        let keys = SealKeys::parse(&text).unwrap();
        assert_eq!(keys.current().as_str(), "k2");
        assert_eq!(keys.ids().map(KeyId::as_str).collect::<Vec<_>>(), ["k2", "k1"]);
    }

    #[test]
    fn a_bad_line_is_named_and_not_repeated() {
        let good = line("k1");
        let secret = good.split_once(':').unwrap().1.to_owned();
        for (text, expected) in [
            (String::new(), "there is no key in it"),
            ("# nothing\n".into(), "there is no key in it"),
            (format!("\n{secret}"), "line 2: there is no \":\""),
            (format!("{secret}:k1"), "line 1: what follows the \":\" is not base64"),
            (format!("{secret}:{secret}"), "line 1: expected a key's id of 1 to 32 letters"),
            ("k1:AAAA".into(), "line 1: the key has 3 bytes"),
            (format!("{good}\n{good}"), "line 2: there is a key k1 above"),
            ((0..65).map(|i| line(&format!("k{i}")) + "\n").collect(), "more than 64 keys"),
        ] {
            let error = SealKeys::parse(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains(&secret), "{error}");
        }
    }

    #[test]
    fn a_key_is_never_printed() {
        let made = KeyLine::generate(&"k1".parse().unwrap());
        let secret = made.reveal().split_once(':').unwrap().1.to_owned();
        let keys = SealKeys::parse(made.reveal()).unwrap();
        let shown = format!("{made:?} {keys:?}");
        assert!(shown.contains("k1") && !shown.contains(&secret), "{shown}");
    }
}

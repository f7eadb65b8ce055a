//! Conditions on headers.

use std::fmt;

use beamline_sdk::{HeaderValue, field::FieldName};
use serde::{Deserialize, Deserializer, de};

/// What the first values of some headers must be, written as an object by name.
#[derive(Default)]
pub(crate) struct HeaderMatches(Vec<(FieldName, HeaderMatch)>);

/// What the first value of a header must be: `true` any, `false` none, a text that text, a list one of its texts.
enum HeaderMatch {
    Present,
    Absent,
    OneOf(Vec<String>),
}

impl HeaderMatches {
    /// Whether all hold; `value` gives the first value of a header.
    pub(crate) fn hold<'a>(&self, value: impl Fn(&str) -> Option<&'a HeaderValue>) -> bool {
        self.0.iter().all(|(name, wanted)| match (wanted, value(name)) {
            (HeaderMatch::Present, value) => value.is_some(),
            (HeaderMatch::Absent, value) => value.is_none(),
            (HeaderMatch::OneOf(wanted), value) => {
                value.is_some_and(|value| wanted.iter().any(|wanted| value == wanted.as_str()))
            }
        })
    }

    /// The headers' names, in lower case.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| &**name)
    }
}

// A list, not a map: a handful of conditions is looked through once, and a map would be a fifth of the module.
impl<'de> Deserialize<'de> for HeaderMatches {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = HeaderMatches;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of header names")
            }

            fn visit_map<M: de::MapAccess<'de>>(self, mut map: M) -> Result<HeaderMatches, M::Error> {
                let mut matches = Vec::new();
                while let Some((name, wanted)) = map.next_entry()? {
                    matches.push((name, wanted));
                }
                Ok(HeaderMatches(matches))
            }
        }

        deserializer.deserialize_map(Visitor)
    }
}

impl<'de> Deserialize<'de> for HeaderMatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> de::Visitor<'de> for Visitor {
            type Value = HeaderMatch;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true (present), false (absent), a text (the whole value) or a list of texts")
            }

            fn visit_bool<E: de::Error>(self, present: bool) -> Result<HeaderMatch, E> {
                Ok(if present { HeaderMatch::Present } else { HeaderMatch::Absent })
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<HeaderMatch, E> {
                Ok(HeaderMatch::OneOf(vec![value.to_owned()]))
            }

            fn visit_seq<S: de::SeqAccess<'de>>(self, values: S) -> Result<HeaderMatch, S::Error> {
                Vec::deserialize(de::value::SeqAccessDeserializer::new(values)).map(HeaderMatch::OneOf)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

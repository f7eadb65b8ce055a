//! Looks for one value in a JSON text, without keeping the rest of it, and going no deeper than the way to it.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::{pointer::Pointer, scalar::Scalar};

/// What stands where a pointer points.
#[derive(Debug, PartialEq)]
pub(crate) enum Found {
    Nothing,
    Scalar(Scalar),
    /// `null`, an object, a list.
    Other,
}

/// What is no JSON text, or one that two readers may read differently where it matters here: a member on the way to the value stands
/// twice, and some take the first, some the last.
#[derive(Debug, PartialEq)]
pub(crate) struct NotJson;

/// Looks for the value. The whole text is read, so that none passes that is broken after it.
pub(crate) fn find(json: &[u8], pointer: &Pointer) -> Result<Found, NotJson> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let found = Seek(&pointer.0).deserialize(&mut deserializer).map_err(|_| NotJson)?;
    deserializer.end().map_err(|_| NotJson)?;
    Ok(found)
}

/// The way that is left to the value.
struct Seek<'a>(&'a [String]);

impl Seek<'_> {
    fn scalar(&self, scalar: impl FnOnce() -> Scalar) -> Found {
        if self.0.is_empty() { Found::Scalar(scalar()) } else { Found::Nothing }
    }
}

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Found, E> {
        Ok(self.scalar(|| Scalar::Text(text.to_owned())))
    }

    fn visit_bool<E: de::Error>(self, boolean: bool) -> Result<Found, E> {
        Ok(self.scalar(|| Scalar::Boolean(boolean)))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Found, E> {
        Ok(self.scalar(|| Scalar::Whole(number.into())))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Found, E> {
        Ok(self.scalar(|| Scalar::Whole(number.into())))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Found, E> {
        Ok(self.scalar(|| Scalar::Fraction(number)))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Found, E> {
        Ok(if self.0.is_empty() { Found::Other } else { Found::Nothing })
    }

    fn visit_map<M: MapAccess<'de>>(self, mut members: M) -> Result<Found, M::Error> {
        let mut found = None;
        while let Some(name) = members.next_key::<String>()? {
            match self.0.split_first() {
                Some((wanted, _)) if *wanted == name && found.is_some() => {
                    return Err(de::Error::custom("a member stands twice"));
                }
                Some((wanted, rest)) if *wanted == name => found = Some(members.next_value_seed(Seek(rest))?),
                _ => _ = members.next_value::<IgnoredAny>()?,
            }
        }
        Ok(found.unwrap_or(if self.0.is_empty() { Found::Other } else { Found::Nothing }))
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut items: S) -> Result<Found, S::Error> {
        let wanted = self.0.split_first().map(|(token, rest)| (index(token), rest));
        let mut found = if self.0.is_empty() { Found::Other } else { Found::Nothing };
        for place in 0.. {
            let is_there = match wanted {
                Some((index, rest)) if index == Some(place) => {
                    items.next_element_seed(Seek(rest))?.map(|item| found = item)
                }
                _ => items.next_element::<IgnoredAny>()?.map(|_| ()),
            };
            if is_there.is_none() {
                break;
            }
        }
        Ok(found)
    }
}

/// The index that a token names: digits, without a zero in front (RFC 6901, section 4).
fn index(token: &str) -> Option<usize> {
    let is_one = token == "0" || !token.starts_with(['0', '+']);
    token.parse().ok().filter(|_| is_one)
}

#[cfg(test)]
mod tests {
    use serde::de::value::{BytesDeserializer, Error};

    use super::*;

    #[test]
    fn what_is_no_value_of_json_is_told() {
        let error = Seek(&[]).deserialize(BytesDeserializer::<Error>::new(b"x")).unwrap_err();
        assert!(error.to_string().contains("expected a JSON value"), "{error}");
    }
}

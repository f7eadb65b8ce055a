//! Values that can be compared: texts, numbers, true and false.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error, Visitor},
};

/// A value that can be compared.
#[derive(Debug)]
pub(crate) enum Scalar {
    Text(String),
    Boolean(bool),
    Whole(i128),
    Fraction(f64),
}

// By value, not by how it is written: 1 and 1.0 are one number. Whole ones are compared exactly.
impl PartialEq for Scalar {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Text(one), Self::Text(two)) => one == two,
            (Self::Boolean(one), Self::Boolean(two)) => one == two,
            (Self::Whole(one), Self::Whole(two)) => one == two,
            (Self::Fraction(one), Self::Fraction(two)) => one == two,
            #[expect(clippy::cast_precision_loss, reason = "the other number is no more exact")]
            (Self::Whole(whole), Self::Fraction(fraction))
            | (Self::Fraction(fraction), Self::Whole(whole)) => *whole as f64 == *fraction,
            _ => false,
        }
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ReadScalar;

        impl Visitor<'_> for ReadScalar {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a number, true or false")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar::Text(text.to_owned()))
            }

            fn visit_bool<E: Error>(self, boolean: bool) -> Result<Scalar, E> {
                Ok(Scalar::Boolean(boolean))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Scalar, E> {
                Ok(Scalar::Whole(number.into()))
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Scalar, E> {
                Ok(Scalar::Whole(number.into()))
            }

            fn visit_f64<E: Error>(self, number: f64) -> Result<Scalar, E> {
                Ok(Scalar::Fraction(number))
            }
        }

        deserializer.deserialize_any(ReadScalar)
    }
}

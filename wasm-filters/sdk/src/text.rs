//! Texts of a configuration that are checked when they are read.

/// Makes a type that is made of a text by [`FromStr`](std::str::FromStr) one that a configuration can hold and that is read as text.
macro_rules! checked_text {
    ($($text:ty),+) => {$(
        impl std::ops::Deref for $text {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl<'de> serde::Deserialize<'de> for $text {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}

pub(crate) use checked_text;

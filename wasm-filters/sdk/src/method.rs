//! Methods of requests, as a configuration names them.

use std::str::FromStr;

use crate::{field::is_token, text::checked_text};

/// A method (RFC 9110, section 9.1), such as `GET`. Case matters: `get` is another, which no client means, and is refused.
///
/// ```
/// use beamline_sdk::Method;
///
/// let read = |text: &str| serde_json::from_value::<Method>(text.into());
/// assert_eq!(&*read("PURGE").unwrap(), "PURGE");
/// assert!(read("get").unwrap_err().to_string().starts_with("expected a method such as GET"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Method(String);

impl FromStr for Method {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        const KNOWN: [&str; 9] =
            ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"];
        let is_miswritten = KNOWN.iter().any(|known| *known != name && known.eq_ignore_ascii_case(name));
        if !is_token(name) || name == "*" || is_miswritten {
            return Err("expected a method such as GET, as requests have it: case matters");
        }
        Ok(Self(name.to_owned()))
    }
}

checked_text!(Method);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_tokens_and_written_as_they_are_sent() {
        for name in ["GET", "PATCH", "CONNECT", "M-SEARCH", "purge"] {
            assert_eq!(&*name.parse::<Method>().unwrap(), name);
        }
        for name in ["", "*", "get", "Post", "connect", "GET ", "GET,POST"] {
            assert!(name.parse::<Method>().is_err(), "{name}");
        }
    }
}

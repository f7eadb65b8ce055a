//! The cookies of a request (RFC 6265).

use std::str::FromStr;

use crate::{HeaderValue, field::is_token, text::checked_text};

/// The cookies that came with a request, in their order. Asked for once, however many are looked for.
///
/// Names and values are what stands around the first `=` of each part, without space around it, as most readers take them. A part
/// without `=` is none. Quotes are part of a value.
#[derive(Clone, Debug, Default)]
pub struct Cookies(Vec<Vec<u8>>);

/// The name of a cookie: a token (RFC 6265, section 4.1.1). Case matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CookieName(String);

impl Cookies {
    pub(crate) fn new(lines: Vec<Vec<u8>>) -> Self {
        Self(lines)
    }

    /// The value of the first cookie of this name.
    pub fn get(&self, name: &str) -> Option<HeaderValue> {
        self.get_all(name).next()
    }

    /// The values of all cookies of this name. Clients send several where they have them for several paths or domains, and which
    /// of them comes first says nothing of who has set it.
    pub fn get_all(&self, name: &str) -> impl Iterator<Item = HeaderValue> {
        let is_meant = move |(found, value): (&[u8], &[u8])| {
            (found == name.as_bytes()).then(|| HeaderValue::from_bytes(value.to_vec()))
        };
        self.iter().filter_map(is_meant)
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().flat_map(|line| line.split(|byte| *byte == b';')).filter_map(|pair| {
            let equals = pair.iter().position(|byte| *byte == b'=')?;
            Some((pair[..equals].trim_ascii(), pair[equals + 1..].trim_ascii()))
        })
    }
}

impl FromStr for CookieName {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if !is_token(name) {
            return Err("expected the name of a cookie, of letters, digits and !#$%&'*+-.^_`|~");
        }
        Ok(Self(name.to_owned()))
    }
}

checked_text!(CookieName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cookie_is_found_by_its_whole_name() {
        let lines = ["sid2=no; xsid=no", "a=b;sid=yes=really ; c; sid = again;=x;;Sid=no;q=\"1\""];
        let cookies = Cookies::new(lines.map(|line| line.as_bytes().to_vec()).to_vec());
        let all = |name| cookies.get_all(name).collect::<Vec<_>>();
        assert_eq!(all("sid"), ["yes=really", "again"]);
        assert_eq!(cookies.get("sid").unwrap(), "yes=really");
        assert_eq!(cookies.get("q").unwrap(), "\"1\"");
        assert_eq!((cookies.get("c"), cookies.get("d")), (None, None));
        assert_eq!(cookies.iter().count(), 8);
    }

    #[test]
    fn names_are_tokens() {
        let read = |name: &str| serde_json::from_value::<CookieName>(name.into());
        assert_eq!(&*read("__Host-sid").unwrap(), "__Host-sid");
        for name in ["", "a b", "a;", "a=", "caf\u{e9}"] {
            assert!(
                read(name).unwrap_err().to_string().starts_with("expected the name of a cookie"),
                "{name}"
            );
        }
    }
}

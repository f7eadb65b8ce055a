//! The request's head, as a filter sees and changes it.

use std::fmt;

pub use crate::raw::beamline::edge::http::{HeadSnapshot as Snapshot, HeaderError};
use crate::{Cookies, host::Head};

/// The head of the request that a filter decides on.
///
/// The head stays with the host: every method is one call across the sandbox's border (about 0.15 µs). Where a filter
/// knows which fields it wants, [`headers`](Self::headers) brings all of them at once.
pub struct Request<'call> {
    head: &'call Head,
}

/// The value of a header field: bytes, for HTTP does not promise text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HeaderValue(Vec<u8>);

impl<'call> Request<'call> {
    pub(crate) fn new(head: &'call Head) -> Self {
        Self { head }
    }

    /// The method, such as `GET`. Case matters.
    pub fn method(&self) -> String {
        self.head.method()
    }

    /// The path as the client sent it, without the query. See [`path`](crate::path) before you compare it.
    pub fn path(&self) -> String {
        self.head.path()
    }

    /// What follows the `?`, or none.
    pub fn query(&self) -> Option<String> {
        self.head.query()
    }

    /// The host that the client named, in lower case, without port.
    pub fn host(&self) -> String {
        self.head.host()
    }

    /// The first value of a field, or none.
    pub fn header(&self, name: &str) -> Option<HeaderValue> {
        self.head.get(name).map(HeaderValue)
    }

    /// The first value of each of several fields, in one crossing.
    ///
    /// ```
    /// # use beamline_sdk::Request;
    /// # fn f(request: &Request) {
    /// let [plan, region] = request.headers(["x-plan", "x-region"]);
    /// # }
    /// ```
    pub fn headers<const N: usize>(&self, names: [&str; N]) -> [Option<HeaderValue>; N] {
        let mut values = self.head.get_many(&names).into_iter();
        std::array::from_fn(|_| values.next().flatten().map(HeaderValue))
    }

    /// As [`headers`](Self::headers), for names that are known only when the filter runs. The answer has an item for
    /// each name, in their order.
    pub fn headers_by_name(&self, names: &[&str]) -> Vec<Option<HeaderValue>> {
        self.head.get_many(names).into_iter().map(|value| value.map(HeaderValue)).collect()
    }

    /// Every value of a field, in order.
    pub fn header_all(&self, name: &str) -> Vec<HeaderValue> {
        self.head.get_all(name).into_iter().map(HeaderValue).collect()
    }

    /// The cookies that the client sent.
    pub fn cookies(&self) -> Cookies {
        Cookies::new(self.head.get_all("cookie"))
    }

    /// The value of a cookie, as the client sent it; the first where there are several. Of more than one name or value ask
    /// [`cookies`](Self::cookies).
    pub fn cookie(&self, name: &str) -> Option<HeaderValue> {
        self.cookies().get(name)
    }

    /// Everything in one crossing: cheaper than asking where a filter looks at most of the head.
    pub fn snapshot(&self) -> Snapshot {
        self.head.snapshot()
    }

    /// Replaces every value of a field by one.
    ///
    /// # Errors
    /// The head is as it was where the host refuses: see [`HeaderError`].
    pub fn set_header(&mut self, name: &str, value: impl AsRef<[u8]>) -> Result<(), HeaderError> {
        self.head.set(name, value.as_ref())
    }

    /// Adds a value to a field.
    ///
    /// # Errors
    /// The head is as it was where the host refuses: see [`HeaderError`].
    pub fn append_header(&mut self, name: &str, value: impl AsRef<[u8]>) -> Result<(), HeaderError> {
        self.head.append(name, value.as_ref())
    }

    /// Removes every value of a field. One that is not there is no error.
    ///
    /// # Errors
    /// The head is as it was where the host refuses: see [`HeaderError`].
    pub fn remove_header(&mut self, name: &str) -> Result<(), HeaderError> {
        self.head.remove(name)
    }
}

impl HeaderValue {
    pub(crate) fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The value as text, or none where it is not UTF-8.
    pub fn to_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// The bytes, without a copy.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

impl From<&str> for HeaderValue {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl AsRef<[u8]> for HeaderValue {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq<str> for HeaderValue {
    fn eq(&self, other: &str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl PartialEq<&str> for HeaderValue {
    fn eq(&self, other: &&str) -> bool {
        self == *other
    }
}

impl fmt::Debug for HeaderValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

#[cfg(all(test, not(target_family = "wasm")))]
mod tests {
    use super::*;
    use crate::testing::Call;

    fn with_request(call: Call, check: fn(&mut Request)) {
        thread_local! {
            static CHECK: std::cell::Cell<fn(&mut Request)> = const { std::cell::Cell::new(|_| ()) };
        }

        struct Checked;

        impl crate::Filter for Checked {
            type Config = ();

            fn on_request((): &(), request: &mut Request) -> crate::Verdict {
                (CHECK.get())(request);
                crate::Verdict::next()
            }
        }

        CHECK.set(check);
        call.run::<Checked>();
    }

    #[test]
    fn several_headers_come_in_the_order_of_their_names() {
        with_request(Call::get("/").header("x-b", "2").header("X-A", "1").header("x-a", "3"), |request| {
            let [a, none, b] = request.headers(["x-a", "x-none", "X-B"]);
            assert_eq!(
                (a.unwrap(), none, b.unwrap()),
                (HeaderValue(b"1".to_vec()), None, HeaderValue(b"2".to_vec()))
            );
            assert_eq!(request.header_all("x-a").len(), 2);
            assert_eq!(request.headers_by_name(&["x-b"])[0].as_ref().unwrap(), "2");
        });
    }

    #[test]
    fn cookies_may_come_in_several_lines() {
        let call = Call::get("/").header("cookie", "a=1; b=2").header("cookie", "a=3");
        with_request(call, |request| {
            assert_eq!(
                (request.cookie("a").unwrap(), request.cookie("b").unwrap()),
                ("1".into(), "2".into())
            );
            assert_eq!(request.cookies().get_all("a").count(), 2);
            assert_eq!(request.cookie("c"), None);
        });
    }

    #[test]
    fn a_target_is_path_and_query() {
        with_request(Call::new("PUT", "/a/../b?c=d?e").host("API.acme.test"), |request| {
            assert_eq!((request.method(), request.host()), ("PUT".into(), "api.acme.test".into()));
            assert_eq!((request.path(), request.query()), ("/a/../b".into(), Some("c=d?e".into())));
        });
    }

    #[test]
    fn values_are_bytes() {
        let value = HeaderValue(b"caf\xe9".to_vec());
        assert_eq!(value.to_str(), None);
        assert_eq!(format!("{value:?}"), r#""caf\xe9""#);
    }
}

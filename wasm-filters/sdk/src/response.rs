//! The response's head, as a filter sees and changes it.

pub use crate::raw::beamline::edge::http::ResponseSnapshot;
use crate::{HeaderError, HeaderValue, host::ResponseHead as Raw};

/// The head of the response to the request, on its way to the client.
///
/// It stays with the host, as the request's does. In the phase of the response's body it was sent already: it can be read, and
/// changes are refused as [`HeaderError::Forbidden`].
pub struct ResponseHead<'call> {
    head: &'call Raw,
}

impl<'call> ResponseHead<'call> {
    pub(crate) fn new(head: &'call Raw) -> Self {
        Self { head }
    }

    /// The status, such as 200.
    pub fn status(&self) -> u16 {
        self.head.status()
    }

    /// The first value of a field, or none.
    pub fn header(&self, name: &str) -> Option<HeaderValue> {
        self.head.get(name).map(HeaderValue::from_bytes)
    }

    /// The first value of each of several fields, in one crossing.
    pub fn headers<const N: usize>(&self, names: [&str; N]) -> [Option<HeaderValue>; N] {
        let mut values = self.head.get_many(&names).into_iter();
        std::array::from_fn(|_| values.next().flatten().map(HeaderValue::from_bytes))
    }

    /// Every value of a field, in order.
    pub fn header_all(&self, name: &str) -> Vec<HeaderValue> {
        self.head.get_all(name).into_iter().map(HeaderValue::from_bytes).collect()
    }

    /// Everything in one crossing.
    pub fn snapshot(&self) -> ResponseSnapshot {
        self.head.snapshot()
    }

    /// Changes the status, to one of 200 to 599. One that allows no body (204, 205, 304) takes it away.
    ///
    /// # Errors
    /// [`HeaderError::InvalidValue`] for another status.
    pub fn set_status(&mut self, status: u16) -> Result<(), HeaderError> {
        self.head.set_status(status)
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

    /// Says in `Vary` that the response differs by a field of the request, where that does not say so yet, or that it differs by
    /// everything: who keeps the response then hands it to no client with another value (RFC 9110, section 12.5.5).
    ///
    /// # Errors
    /// The head is as it was where the host refuses: see [`HeaderError`].
    pub fn vary(&mut self, field: &str) -> Result<(), HeaderError> {
        let lines = self.head.get_all("vary");
        let mut known =
            lines.iter().flat_map(|line| line.split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
        if known.any(|known| known == b"*" || known.eq_ignore_ascii_case(field.as_bytes())) {
            return Ok(());
        }
        self.append_header("vary", field)
    }

    /// Removes every value of a field. One that is not there is no error.
    ///
    /// # Errors
    /// The head is as it was where the host refuses: see [`HeaderError`].
    pub fn remove_header(&mut self, name: &str) -> Result<(), HeaderError> {
        self.head.remove(name)
    }
}

#[cfg(all(test, not(target_family = "wasm")))]
mod tests {
    use super::*;
    use crate::{Request, ResponseFilter, ResponseVerdict, testing::Call};

    struct Varies;

    impl ResponseFilter for Varies {
        type Config = ();

        fn on_response((): &(), _: &Request, response: &mut ResponseHead) -> ResponseVerdict {
            for field in ["cookie", "Origin", "cookie"] {
                response.vary(field).expect("there is room");
            }
            ResponseVerdict::next()
        }
    }

    #[test]
    fn vary_says_each_field_once() {
        for (lines, expected) in [
            (&[][..], &["cookie", "Origin"][..]),
            (&["Accept-Encoding , COOKIE", "x"], &["Accept-Encoding , COOKIE", "x", "Origin"]),
            (&["origin,x-cookie"], &["origin,x-cookie", "cookie"]),
            (&["x", " * "], &["x", " * "]),
        ] {
            let call = lines.iter().fold(Call::get("/"), |call, line| call.response_header("vary", line));
            let found = call.run_response::<Varies>().head.get_all("vary");
            assert_eq!(found, expected.iter().map(|line| line.as_bytes().to_vec()).collect::<Vec<_>>());
        }
    }
}

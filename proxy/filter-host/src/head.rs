//! The request head while guests look at it: owned by the call, handed back when it ends.

use http::{HeaderMap, Method, Uri};

/// A request head on its way through the filter chain.
///
/// The first change a guest makes keeps a copy of the fields as they were, so that a failing filter leaves no trace.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// The method.
    pub method: Method,
    /// The target; only path and query are shown to guests.
    pub uri: Uri,
    /// The host that the client named, lower case, without port.
    pub host: Box<str>,
    /// The fields.
    pub headers: HeaderMap,
    before: Option<HeaderMap>,
}

impl RequestHead {
    /// A head as the client sent it.
    pub fn new(method: Method, uri: Uri, host: Box<str>, headers: HeaderMap) -> Self {
        Self { method, uri, host, headers, before: None }
    }

    /// In the place of a head that nobody asks for any more.
    pub(crate) fn gone() -> Self {
        Self::new(Method::GET, Uri::default(), "".into(), HeaderMap::new())
    }

    /// The fields, to be changed by a guest.
    pub(crate) fn headers_mut(&mut self) -> &mut HeaderMap {
        if self.before.is_none() {
            self.before = Some(self.headers.clone());
        }
        &mut self.headers
    }

    /// Ends a filter's call: keeps its changes, or takes them back.
    pub(crate) fn settle(&mut self, keep: bool) {
        if let Some(before) = self.before.take()
            && !keep
        {
            self.headers = before;
        }
    }
}

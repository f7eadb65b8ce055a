//! The heads of a request and its response while guests look at them: owned by the call, handed back when it ends.

use std::{
    ops::Deref,
    sync::{Arc, LazyLock},
};

use beamline_http::HeadEditError;
use http::{HeaderMap, Method, StatusCode, Uri};

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

/// A response head on its way back through the filter chain. Keeps a copy likewise.
#[derive(Clone, Debug, Default)]
pub struct ResponseHead {
    /// The status.
    pub status: StatusCode,
    /// The fields.
    pub headers: HeaderMap,
    before: Option<(StatusCode, HeaderMap)>,
}

/// A head as one call has it: still open to changes, or sent already. Boxed, for it is handed on many times.
#[derive(Clone, Debug, Default)]
pub(crate) enum Seen<H> {
    /// There is none, or nobody asks for it any more.
    #[default]
    Gone,
    Open(Box<H>),
    Sent(Arc<H>),
}

impl RequestHead {
    /// A head as the client sent it.
    pub fn new(method: Method, uri: Uri, host: Box<str>, headers: HeaderMap) -> Box<Self> {
        Box::new(Self { method, uri, host, headers, before: None })
    }
}

impl ResponseHead {
    /// A head as it came, or as a filter left it.
    pub fn new(status: StatusCode, headers: HeaderMap) -> Self {
        Self { status, headers, before: None }
    }
}

static NO_REQUEST: LazyLock<RequestHead> =
    LazyLock::new(|| *RequestHead::new(Method::GET, Uri::default(), "".into(), HeaderMap::new()));
static NO_RESPONSE: LazyLock<ResponseHead> = LazyLock::new(ResponseHead::default);

/// What both heads can do.
pub(crate) trait Head: Clone + 'static {
    /// What is seen in the place of a head that is not there.
    fn gone() -> &'static Self;
    /// Keeps a copy, where there is none yet.
    fn remember(&mut self);
    fn fields(&mut self) -> &mut HeaderMap;
    /// Ends a filter's call: keeps its changes, or takes them back.
    fn settle(&mut self, keep: bool);
}

impl Head for RequestHead {
    fn gone() -> &'static Self {
        &NO_REQUEST
    }

    fn remember(&mut self) {
        self.before.get_or_insert_with(|| self.headers.clone());
    }

    fn fields(&mut self) -> &mut HeaderMap {
        &mut self.headers
    }

    fn settle(&mut self, keep: bool) {
        if let Some(before) = self.before.take()
            && !keep
        {
            self.headers = before;
        }
    }
}

impl Head for ResponseHead {
    fn gone() -> &'static Self {
        &NO_RESPONSE
    }

    fn remember(&mut self) {
        self.before.get_or_insert_with(|| (self.status, self.headers.clone()));
    }

    fn fields(&mut self) -> &mut HeaderMap {
        &mut self.headers
    }

    fn settle(&mut self, keep: bool) {
        if let Some(before) = self.before.take()
            && !keep
        {
            (self.status, self.headers) = before;
        }
    }
}

impl<H: Head> Seen<H> {
    /// The head, to be changed by a guest.
    pub(crate) fn open(&mut self) -> Result<&mut H, HeadEditError> {
        match self {
            Self::Open(head) => {
                head.remember();
                Ok(head)
            }
            Self::Gone | Self::Sent(_) => Err(HeadEditError::Forbidden),
        }
    }

    /// Its fields, to be changed by a guest.
    pub(crate) fn fields_mut(&mut self) -> Result<&mut HeaderMap, HeadEditError> {
        self.open().map(Head::fields)
    }

    pub(crate) fn settle(&mut self, keep: bool) {
        if let Self::Open(head) = self {
            head.settle(keep);
        }
    }

    /// The head that went in open. One that was lost is empty.
    ///
    /// # Panics
    /// Where it went in as sent: the caller knows which.
    pub(crate) fn into_open(self) -> Box<H> {
        match self {
            Self::Open(head) => head,
            Self::Gone => Box::new(H::gone().clone()),
            Self::Sent(_) => panic!("the head of a call that may change it is open"),
        }
    }
}

impl<H: Head> Deref for Seen<H> {
    type Target = H;

    fn deref(&self) -> &H {
        match self {
            Self::Gone => H::gone(),
            Self::Open(head) => head,
            Self::Sent(head) => head,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_not_changed() {
        let mut seen = Seen::Sent(Arc::new(ResponseHead::default()));
        assert_eq!(seen.fields_mut().unwrap_err(), HeadEditError::Forbidden);
        assert!(seen.open().is_err());
    }

    #[test]
    fn a_failing_filters_changes_are_taken_back_the_status_too() {
        for keep in [true, false] {
            let mut seen = Seen::Open(Box::<ResponseHead>::default());
            seen.open().unwrap().status = StatusCode::NOT_FOUND;
            seen.fields_mut().unwrap().insert("x-a", "1".parse().unwrap());
            seen.settle(keep);
            let head = seen.into_open();
            let expected = if keep { (StatusCode::NOT_FOUND, 1) } else { (StatusCode::OK, 0) };
            assert_eq!((head.status, head.headers.len()), expected);
        }
    }
}

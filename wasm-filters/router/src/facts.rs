//! What rules ask of a request, each fetched from the host at most once, and only when a rule wants it.

use std::cell::OnceCell;

use beamline_sdk::{HeaderValue, Request};

use crate::rule::Rule;

/// The request as rules see it.
pub(crate) struct Facts<'a> {
    request: &'a Request<'a>,
    rules: &'a [Rule],
    path: String,
    method: OnceCell<String>,
    host: OnceCell<String>,
    headers: OnceCell<Headers<'a>>,
}

/// Every header that some rule names, fetched in one crossing.
struct Headers<'a> {
    names: Vec<&'a str>,
    values: Vec<Option<HeaderValue>>,
}

impl<'a> Facts<'a> {
    pub(crate) fn of(request: &'a Request<'a>, rules: &'a [Rule]) -> Self {
        Self {
            path: request.path(),
            request,
            rules,
            method: OnceCell::new(),
            host: OnceCell::new(),
            headers: OnceCell::new(),
        }
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) fn query(&self) -> Option<String> {
        self.request.query()
    }

    pub(crate) fn method(&self) -> &str {
        self.method.get_or_init(|| self.request.method())
    }

    pub(crate) fn host(&self) -> &str {
        self.host.get_or_init(|| self.request.host())
    }

    /// The first value of a header that one of the rules names.
    pub(crate) fn header(&self, name: &str) -> Option<&HeaderValue> {
        let headers = self.headers.get_or_init(|| {
            let names: Vec<_> = self.rules.iter().flat_map(Rule::header_names).collect();
            let values = self.request.headers_by_name(&names);
            Headers { names, values }
        });
        let index = headers.names.iter().position(|known| *known == name)?;
        headers.values.get(index)?.as_ref()
    }
}

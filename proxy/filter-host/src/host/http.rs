//! `http`: the heads of the request and its response.

use ::http::{HeaderMap, StatusCode};
use beamline_http::HeadEditError;
use beamline_model::Limit;
use wasmtime::component::Resource;

use super::{CallState, MAX_GIVEN};
use crate::{
    bindings::beamline::edge::http as wit_http,
    head::{RequestHead, ResponseHead},
    limit::GET_MANY,
};

fn refusal(error: HeadEditError) -> wit_http::HeaderError {
    match error {
        HeadEditError::InvalidName => wit_http::HeaderError::InvalidName,
        HeadEditError::InvalidValue => wit_http::HeaderError::InvalidValue,
        HeadEditError::Forbidden => wit_http::HeaderError::Forbidden,
        HeadEditError::TooLarge => wit_http::HeaderError::TooLarge,
    }
}

impl CallState {
    /// What a guest is told of a change of a head.
    fn changed(&self, outcome: Result<(), HeadEditError>) -> Result<(), wit_http::HeaderError> {
        outcome.map_err(|error| {
            if error == HeadEditError::TooLarge {
                self.crossed(Limit::Head);
            }
            refusal(error)
        })
    }
}

/// The first value of each of several fields. A guest may name one field many times over: what it is given is bounded
/// apart from what the head holds.
pub(crate) fn many(
    headers: &HeaderMap,
    names: impl IntoIterator<Item = impl AsRef<str>>,
) -> wasmtime::Result<Vec<Option<&[u8]>>> {
    let mut bytes = 0;
    let values = names.into_iter().map(|name| {
        let value = first(headers, name.as_ref());
        bytes += size_of::<Option<Vec<u8>>>() + value.map_or(0, <[u8]>::len);
        (bytes <= MAX_GIVEN).then_some(value)
    });
    let values: Option<Vec<_>> = values.collect();
    values.ok_or_else(|| {
        wasmtime::Error::msg(format!("{GET_MANY} {MAX_GIVEN} bytes of values: ask for fewer fields at once"))
    })
}

/// The first value of a field.
pub(crate) fn first<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h [u8]> {
    headers.get(name).map(::http::HeaderValue::as_bytes)
}

fn owned(value: Option<&[u8]>) -> Option<Vec<u8>> {
    value.map(<[u8]>::to_vec)
}

fn all(headers: &HeaderMap, name: &str) -> Vec<Vec<u8>> {
    headers.get_all(name).iter().map(|v| v.as_bytes().to_vec()).collect()
}

pub(super) fn fields(headers: &HeaderMap) -> Vec<wit_http::Field> {
    let field = |(name, value): (&::http::HeaderName, &::http::HeaderValue)| wit_http::Field {
        name: name.as_str().to_owned(),
        value: value.as_bytes().to_vec(),
    };
    headers.iter().map(field).collect()
}

/// A status that ends an exchange: 200 to 599.
pub(crate) fn final_status(status: u16) -> Option<StatusCode> {
    StatusCode::from_u16(status).ok().filter(|s| (200..600).contains(&s.as_u16()))
}

// Every handle stands for the one head of its kind that the call has, so its number carries no information.
impl wit_http::HostRequestHead for CallState {
    fn method(&mut self, _: Resource<RequestHead>) -> wasmtime::Result<String> {
        self.count_call()?;
        Ok(self.head.method.as_str().to_owned())
    }

    fn path(&mut self, _: Resource<RequestHead>) -> wasmtime::Result<String> {
        self.count_call()?;
        Ok(self.head.uri.path().to_owned())
    }

    fn query(&mut self, _: Resource<RequestHead>) -> wasmtime::Result<Option<String>> {
        self.count_call()?;
        Ok(self.head.uri.query().map(str::to_owned))
    }

    fn host(&mut self, _: Resource<RequestHead>) -> wasmtime::Result<String> {
        self.count_call()?;
        Ok(self.head.host.to_string())
    }

    fn get(&mut self, _: Resource<RequestHead>, name: String) -> wasmtime::Result<Option<Vec<u8>>> {
        self.count_call()?;
        Ok(owned(first(&self.head.headers, &name)))
    }

    fn get_all(&mut self, _: Resource<RequestHead>, name: String) -> wasmtime::Result<Vec<Vec<u8>>> {
        self.count_call()?;
        Ok(all(&self.head.headers, &name))
    }

    fn get_many(
        &mut self,
        _: Resource<RequestHead>,
        names: Vec<String>,
    ) -> wasmtime::Result<Vec<Option<Vec<u8>>>> {
        self.count_call()?;
        Ok(many(&self.head.headers, names)?.into_iter().map(owned).collect())
    }

    fn snapshot(&mut self, _: Resource<RequestHead>) -> wasmtime::Result<wit_http::HeadSnapshot> {
        self.count_call()?;
        let head = &self.head;
        Ok(wit_http::HeadSnapshot {
            method: head.method.as_str().to_owned(),
            path: head.uri.path().to_owned(),
            query: head.uri.query().map(str::to_owned),
            host: head.host.to_string(),
            fields: fields(&head.headers),
        })
    }

    fn set(
        &mut self,
        _: Resource<RequestHead>,
        name: String,
        value: Vec<u8>,
    ) -> wasmtime::Result<Result<(), wit_http::HeaderError>> {
        self.count_call()?;
        let outcome = self.head.fields_mut().and_then(|h| beamline_http::set(h, &name, &value));
        Ok(self.changed(outcome))
    }

    fn append(
        &mut self,
        _: Resource<RequestHead>,
        name: String,
        value: Vec<u8>,
    ) -> wasmtime::Result<Result<(), wit_http::HeaderError>> {
        self.count_call()?;
        let outcome = self.head.fields_mut().and_then(|h| beamline_http::append(h, &name, &value));
        Ok(self.changed(outcome))
    }

    fn remove(
        &mut self,
        _: Resource<RequestHead>,
        name: String,
    ) -> wasmtime::Result<Result<(), wit_http::HeaderError>> {
        self.count_call()?;
        Ok(self.head.fields_mut().and_then(|h| beamline_http::remove(h, &name)).map_err(refusal))
    }

    fn drop(&mut self, _: Resource<RequestHead>) -> wasmtime::Result<()> {
        Ok(())
    }
}

impl wit_http::HostResponseHead for CallState {
    fn status(&mut self, _: Resource<ResponseHead>) -> wasmtime::Result<u16> {
        self.count_call()?;
        Ok(self.response.status.as_u16())
    }

    fn get(&mut self, _: Resource<ResponseHead>, name: String) -> wasmtime::Result<Option<Vec<u8>>> {
        self.count_call()?;
        Ok(owned(first(&self.response.headers, &name)))
    }

    fn get_all(&mut self, _: Resource<ResponseHead>, name: String) -> wasmtime::Result<Vec<Vec<u8>>> {
        self.count_call()?;
        Ok(all(&self.response.headers, &name))
    }

    fn get_many(
        &mut self,
        _: Resource<ResponseHead>,
        names: Vec<String>,
    ) -> wasmtime::Result<Vec<Option<Vec<u8>>>> {
        self.count_call()?;
        Ok(many(&self.response.headers, names)?.into_iter().map(owned).collect())
    }

    fn snapshot(&mut self, _: Resource<ResponseHead>) -> wasmtime::Result<wit_http::ResponseSnapshot> {
        self.count_call()?;
        Ok(wit_http::ResponseSnapshot {
            status: self.response.status.as_u16(),
            fields: fields(&self.response.headers),
        })
    }

    fn set_status(
        &mut self,
        _: Resource<ResponseHead>,
        status: u16,
    ) -> wasmtime::Result<Result<(), wit_http::HeaderError>> {
        self.count_call()?;
        let head = match self.response.open() {
            Ok(head) => head,
            Err(error) => return Ok(Err(refusal(error))),
        };
        let Some(status) = final_status(status) else { return Ok(Err(wit_http::HeaderError::InvalidValue)) };
        head.status = status;
        Ok(Ok(()))
    }

    fn set(
        &mut self,
        _: Resource<ResponseHead>,
        name: String,
        value: Vec<u8>,
    ) -> wasmtime::Result<Result<(), wit_http::HeaderError>> {
        self.count_call()?;
        let outcome = self.response.fields_mut().and_then(|h| beamline_http::set(h, &name, &value));
        Ok(self.changed(outcome))
    }

    fn append(
        &mut self,
        _: Resource<ResponseHead>,
        name: String,
        value: Vec<u8>,
    ) -> wasmtime::Result<Result<(), wit_http::HeaderError>> {
        self.count_call()?;
        let outcome = self.response.fields_mut().and_then(|h| beamline_http::append(h, &name, &value));
        Ok(self.changed(outcome))
    }

    fn remove(
        &mut self,
        _: Resource<ResponseHead>,
        name: String,
    ) -> wasmtime::Result<Result<(), wit_http::HeaderError>> {
        self.count_call()?;
        Ok(self.response.fields_mut().and_then(|h| beamline_http::remove(h, &name)).map_err(refusal))
    }

    fn drop(&mut self, _: Resource<ResponseHead>) -> wasmtime::Result<()> {
        Ok(())
    }
}

impl wit_http::Host for CallState {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_is_given_at_once_is_bounded_however_often_it_names_a_field() {
        let mut headers = HeaderMap::new();
        headers.insert("x-large", "x".repeat(60_000).parse().unwrap());
        let given = |times| many(&headers, vec!["x-large"; times]);
        assert_eq!(given(17).unwrap().len(), 17);
        assert!(given(18).unwrap_err().to_string().contains("get-many"));
        assert!(many(&headers, vec![""; 100_000]).is_err(), "what is not there counts too");
    }
}

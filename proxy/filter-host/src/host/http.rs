//! `http`: the head of the request.

use wasmtime::component::Resource;

use super::CallState;
use crate::{bindings::beamline::edge::http as wit_http, head::RequestHead};

fn refusal(error: beamline_http::HeadEditError) -> wit_http::HeaderError {
    use beamline_http::HeadEditError as E;
    match error {
        E::InvalidName => wit_http::HeaderError::InvalidName,
        E::InvalidValue => wit_http::HeaderError::InvalidValue,
        E::Forbidden => wit_http::HeaderError::Forbidden,
        E::TooLarge => wit_http::HeaderError::TooLarge,
    }
}

impl CallState {
    fn first(&self, name: &str) -> Option<Vec<u8>> {
        self.head.headers.get(name).map(|v| v.as_bytes().to_vec())
    }
}

// Every handle stands for the one head of the call, so its number carries no information.
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
        Ok(self.first(&name))
    }

    fn get_all(&mut self, _: Resource<RequestHead>, name: String) -> wasmtime::Result<Vec<Vec<u8>>> {
        self.count_call()?;
        Ok(self.head.headers.get_all(name).iter().map(|v| v.as_bytes().to_vec()).collect())
    }

    fn get_many(
        &mut self,
        _: Resource<RequestHead>,
        names: Vec<String>,
    ) -> wasmtime::Result<Vec<Option<Vec<u8>>>> {
        self.count_call()?;
        Ok(names.iter().map(|name| self.first(name)).collect())
    }

    fn snapshot(&mut self, _: Resource<RequestHead>) -> wasmtime::Result<wit_http::HeadSnapshot> {
        self.count_call()?;
        let head = &self.head;
        let field = |(name, value): (&::http::HeaderName, &::http::HeaderValue)| wit_http::Field {
            name: name.as_str().to_owned(),
            value: value.as_bytes().to_vec(),
        };
        Ok(wit_http::HeadSnapshot {
            method: head.method.as_str().to_owned(),
            path: head.uri.path().to_owned(),
            query: head.uri.query().map(str::to_owned),
            host: head.host.to_string(),
            fields: head.headers.iter().map(field).collect(),
        })
    }

    fn set(
        &mut self,
        _: Resource<RequestHead>,
        name: String,
        value: Vec<u8>,
    ) -> wasmtime::Result<Result<(), wit_http::HeaderError>> {
        self.count_call()?;
        Ok(beamline_http::set(self.head.headers_mut(), &name, &value).map_err(refusal))
    }

    fn append(
        &mut self,
        _: Resource<RequestHead>,
        name: String,
        value: Vec<u8>,
    ) -> wasmtime::Result<Result<(), wit_http::HeaderError>> {
        self.count_call()?;
        Ok(beamline_http::append(self.head.headers_mut(), &name, &value).map_err(refusal))
    }

    fn remove(
        &mut self,
        _: Resource<RequestHead>,
        name: String,
    ) -> wasmtime::Result<Result<(), wit_http::HeaderError>> {
        self.count_call()?;
        Ok(beamline_http::remove(self.head.headers_mut(), &name).map_err(refusal))
    }

    fn drop(&mut self, _: Resource<RequestHead>) -> wasmtime::Result<()> {
        Ok(())
    }
}

impl wit_http::Host for CallState {}

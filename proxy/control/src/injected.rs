//! The fields that a manifest sets on requests to an upstream, with their secrets put in.

use std::{collections::BTreeMap, fmt, sync::Arc};

use beamline_model::{InjectedHeader, SecretName, SecretRef, SecretValue};
use http::{HeaderMap, HeaderName, HeaderValue};

/// Fields to set on each request to an upstream. Where there are none, asking costs one comparison.
#[derive(Clone, Default)]
pub struct InjectedHeaders(Option<Arc<Fields>>);

struct Fields {
    names: Box<[HeaderName]>,
    /// In the order of `names`; or which secret is not to be had, and why.
    values: Result<Box<[HeaderValue]>, String>,
}

impl InjectedHeaders {
    /// From what the manifest says, and what each secret that it names is.
    pub(crate) fn new(
        declared: &BTreeMap<InjectedHeader, SecretRef>,
        secrets: impl Fn(&SecretName) -> Result<SecretValue, String>,
    ) -> Self {
        if declared.is_empty() {
            return Self(None);
        }
        let name = |header: &InjectedHeader| {
            HeaderName::from_bytes(header.as_str().as_bytes())
                .expect("a manifest's header names were checked")
        };
        let value = |reference: &SecretRef| {
            let secret = secrets(reference.name())?;
            let mut value = HeaderValue::from_bytes(secret.reveal())
                .expect("a secret's value was checked to be one of a header field");
            // So that it is not printed, nor kept in a table that compresses heads.
            value.set_sensitive(true);
            Ok(value)
        };
        let values = declared.values().map(value).collect();
        Self(Some(Arc::new(Fields { names: declared.keys().map(name).collect(), values })))
    }

    /// Whether this field is set here, so that what a client sends as such does not count.
    pub fn contains(&self, name: &HeaderName) -> bool {
        self.0.as_ref().is_some_and(|fields| fields.names.contains(name))
    }

    /// Sets them, in place of what is there.
    ///
    /// # Errors
    /// Where a secret is not to be had on this node: which, and why. Nothing is set then.
    pub fn set(&self, headers: &mut HeaderMap) -> Result<(), &str> {
        let Some(fields) = &self.0 else { return Ok(()) };
        let values = fields.values.as_ref().map_err(String::as_str)?;
        for (name, value) in fields.names.iter().zip(values) {
            headers.insert(name, value.clone());
        }
        Ok(())
    }

    /// Why they cannot be set, where they cannot.
    pub fn problem(&self) -> Option<&str> {
        self.0.as_ref()?.values.as_ref().err().map(String::as_str)
    }
}

impl fmt::Debug for InjectedHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().flat_map(|fields| &fields.names)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared() -> BTreeMap<InjectedHeader, SecretRef> {
        serde_json::from_str(r#"{ "authorization": "secret://token", "x-api-key": "secret://key" }"#).unwrap()
    }

    #[test]
    fn they_take_the_place_of_what_a_client_sent_and_are_never_printed() {
        let injected = InjectedHeaders::new(&declared(), |name| {
            SecretValue::new(format!("s3cret {}", name.as_str()).as_bytes()).map_err(|e| e.to_string())
        });
        let mut headers = HeaderMap::new();
        headers.append("authorization", HeaderValue::from_static("client's"));
        headers.append("authorization", HeaderValue::from_static("client's too"));
        headers.append("accept", HeaderValue::from_static("*/*"));
        injected.set(&mut headers).unwrap();
        let values: Vec<_> = headers.get_all("authorization").iter().collect();
        assert_eq!(values, ["s3cret token"]);
        assert_eq!(headers["x-api-key"], "s3cret key");
        assert!(injected.contains(&http::header::AUTHORIZATION) && !injected.contains(&http::header::COOKIE));
        assert!(!format!("{injected:?} {headers:?}").contains("s3cret"));
    }

    #[test]
    fn where_one_is_not_to_be_had_none_is_set() {
        let injected = InjectedHeaders::new(&declared(), |name| match name.as_str() {
            "key" => Err("secret key is sealed by another node's key".into()),
            _ => SecretValue::new(b"s3cret").map_err(|e| e.to_string()),
        });
        let mut headers = HeaderMap::new();
        assert_eq!(injected.set(&mut headers), Err("secret key is sealed by another node's key"));
        assert!(headers.is_empty() && injected.problem().is_some());
        assert!(injected.contains(&http::header::AUTHORIZATION), "a client's would not go through either");
        assert_eq!(InjectedHeaders::default().set(&mut headers), Ok(()));
    }
}

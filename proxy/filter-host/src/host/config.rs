//! `config`: the filter's own configuration.

use std::sync::Arc;

use beamline_model::{FilterName, SecretName, SecretValue};

use super::{CallState, secrets::Redaction};
use crate::bindings::beamline::edge::config;

/// What of its manifest one filter may see.
#[derive(Debug)]
pub struct FilterConfig {
    pub(super) name: Box<str>,
    json: Box<str>,
    /// The value of each secret that it may read, or why there is none.
    secrets: Vec<(SecretName, Result<SecretValue, String>)>,
    /// Keeps these values out of what is told of the filter.
    pub(super) redaction: Redaction,
}

impl PartialEq for FilterConfig {
    fn eq(&self, other: &Self) -> bool {
        // The same secrets make the same redaction.
        let Self { name, json, secrets, redaction: _ } = self;
        (name, json, secrets) == (&other.name, &other.json, &other.secrets)
    }
}

impl Eq for FilterConfig {}

impl FilterConfig {
    /// For the filter of this name: its configuration as JSON text, and no secrets.
    pub fn new(name: &FilterName, json: &str) -> Arc<Self> {
        Self::with_secrets(name, json, Vec::new())
    }

    /// As [`new`](Self::new), with the secrets that it may read.
    pub fn with_secrets(
        name: &FilterName,
        json: &str,
        secrets: Vec<(SecretName, Result<SecretValue, String>)>,
    ) -> Arc<Self> {
        let values = secrets.iter().filter_map(|(_, secret)| secret.as_ref().ok());
        let redaction = Redaction::of(&values.map(SecretValue::reveal).collect::<Vec<_>>());
        Arc::new(Self { name: name.as_str().into(), json: json.into(), secrets, redaction })
    }

    /// The configuration as JSON text; `null` where there is none.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// Why a secret that it may read is not to be had, where one is not.
    pub fn problem(&self) -> Option<&str> {
        self.secrets.iter().find_map(|(_, secret)| secret.as_ref().err().map(String::as_str))
    }

    pub(super) fn secret(&self, name: &str) -> Option<&SecretValue> {
        let (_, secret) = self.secrets.iter().find(|(known, _)| known.as_str() == name)?;
        secret.as_ref().ok()
    }

    /// A text of the filter's, without its secrets.
    pub(crate) fn without_secrets(&self, text: String) -> String {
        if self.redaction.is_needed() { self.redaction.redacted(&text, usize::MAX).0 } else { text }
    }
}

impl config::Host for CallState {
    fn get(&mut self) -> wasmtime::Result<String> {
        self.count_call()?;
        Ok(self.config.json.to_string())
    }
}

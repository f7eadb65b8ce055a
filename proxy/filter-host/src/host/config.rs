//! `config`: the filter's own configuration.

use std::sync::Arc;

use beamline_model::{FilterName, SecretName, SecretValue};

use super::{CallState, secrets::Redaction};
use crate::bindings::beamline::edge::config;

/// The most bytes that are told of a text of a guest's.
const MOST_TOLD: usize = 256;

/// What of its manifest one filter may see.
#[derive(Debug)]
pub struct FilterConfig {
    pub(super) name: Box<str>,
    json: Box<str>,
    /// The value of each secret that it may read, or why there is none.
    secrets: Vec<(SecretName, Result<SecretValue, String>)>,
    /// Keeps these values, and those of its chain's other filters, out of what is told of the filter.
    pub(super) redaction: Arc<Redaction>,
}

impl PartialEq for FilterConfig {
    fn eq(&self, other: &Self) -> bool {
        // What the others may read is nothing that this filter sees.
        let Self { name, json, secrets, redaction: _ } = self;
        (name, json, secrets) == (&other.name, &other.json, &other.secrets)
    }
}

impl Eq for FilterConfig {}

impl FilterConfig {
    /// For the filter of this name: its configuration as JSON text, and no secrets.
    pub fn new(name: &FilterName, json: &str) -> Arc<Self> {
        Self::with_secrets(name, json, Vec::new(), &Redaction::of([]))
    }

    /// As [`new`](Self::new), with the secrets that it may read, and the redaction of those that its chain's filters may.
    pub fn with_secrets(
        name: &FilterName,
        json: &str,
        secrets: Vec<(SecretName, Result<SecretValue, String>)>,
        redaction: &Arc<Redaction>,
    ) -> Arc<Self> {
        let redaction = Arc::clone(redaction);
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

    /// As much of a guest's text as is told: its beginning, without secrets.
    pub(crate) fn told(&self, text: &str) -> String {
        self.redaction.redacted(text, MOST_TOLD).0
    }
}

impl config::Host for CallState {
    fn get(&mut self) -> wasmtime::Result<String> {
        self.count_call()?;
        Ok(self.config.json.to_string())
    }
}

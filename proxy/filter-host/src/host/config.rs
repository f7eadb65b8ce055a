//! `config`: the filter's own configuration.

use std::sync::Arc;

use beamline_model::{FilterName, SecretName, SecretValue};

use super::CallState;
use crate::bindings::beamline::edge::config;

/// What of its manifest one filter may see.
#[derive(Debug, PartialEq, Eq)]
pub struct FilterConfig {
    pub(super) name: Box<str>,
    json: Box<str>,
    /// The value of each secret that it may read, or why there is none.
    secrets: Vec<(SecretName, Result<SecretValue, String>)>,
}

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
        Arc::new(Self { name: name.as_str().into(), json: json.into(), secrets })
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

    /// The secrets that could stand in a text.
    pub(super) fn secret_texts(&self) -> Vec<&str> {
        let values = self.secrets.iter().filter_map(|(_, secret)| secret.as_ref().ok());
        values.filter_map(|secret| std::str::from_utf8(secret.reveal()).ok()).collect()
    }
}

impl config::Host for CallState {
    fn get(&mut self) -> wasmtime::Result<String> {
        self.count_call()?;
        Ok(self.config.json.to_string())
    }
}

//! What a store hands out and takes.

use std::str::FromStr;

use beamline_model::{Digest, Grant, RevisionId, SecretName, TenantName};
use serde::{Deserialize, Serialize};

/// Who changes something, and when: part of every change, for the audit.
#[derive(Clone, Copy, Debug)]
pub struct Stamp<'a> {
    /// Wall time in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// On whose authority, such as `operator` or `tenant/acme`. Never a token.
    pub actor: &'a str,
}

/// A tenant as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantRecord {
    /// Its name.
    pub name: TenantName,
    /// What the operator granted it.
    pub grant: Grant,
    /// Milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// The revision that serves its traffic; none before the first one.
    pub active: Option<RevisionId>,
    /// The revision that was active before `active`; none before the second activation.
    pub previous: Option<RevisionId>,
    /// Where it is being deleted: what becomes of its queued requests.
    pub deletion: Option<Deletion>,
}

/// What becomes of the queued requests of a tenant that is being deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deletion {
    /// What waits is delivered first.
    Drain,
    /// They are given up.
    Discard,
}

impl Deletion {
    /// As it is stored and written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Discard => "discard",
        }
    }
}

impl FromStr for Deletion {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "drain" => Ok(Self::Drain),
            "discard" => Ok(Self::Discard),
            _ => Err("expected drain or discard"),
        }
    }
}

/// What an activation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activated {
    /// The revision that is active now.
    pub revision: RevisionId,
    /// The one that it replaced.
    pub replaced: Option<RevisionId>,
}

/// A module as one tenant has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleRecord {
    /// The content's digest.
    pub digest: Digest,
    /// The content's length in bytes.
    pub size: u64,
    /// What the caller said of it, as it came.
    pub info: String,
    /// When this tenant got it, in milliseconds since the Unix epoch.
    pub pushed_ms: u64,
}

/// A revision without its manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RevisionSummary {
    /// Its number.
    pub id: RevisionId,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_ms: u64,
}

/// A revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevisionRecord {
    /// Its number.
    pub id: RevisionId,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// The manifest's canonical JSON.
    pub manifest: String,
}

/// A secret as it is stored: sealed by the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretRecord {
    /// Its name.
    pub name: SecretName,
    /// Its value, sealed: bytes that the store hands back as they came.
    pub sealed: Vec<u8>,
    /// When it was set, in milliseconds since the Unix epoch.
    pub set_ms: u64,
}

/// A key that a tenant's filters have stored durably.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvRecord {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
    /// When it expires, in milliseconds since the Unix epoch; none: never.
    pub expires_ms: Option<u64>,
}

/// What is to be stored of one tenant's keys.
#[derive(Clone, Debug)]
pub struct KvBatch<'a> {
    /// The tenant.
    pub tenant: &'a TenantName,
    /// Whether what is stored and not among `entries` goes.
    pub all: bool,
    /// Keys that have these values now.
    pub entries: Vec<KvRow<'a>>,
    /// Keys that are gone.
    pub gone: Vec<&'a str>,
}

/// One key to be stored.
#[derive(Clone, Copy, Debug)]
pub struct KvRow<'a> {
    /// The key.
    pub key: &'a str,
    /// Its value.
    pub value: &'a [u8],
    /// When it expires, in milliseconds since the Unix epoch; none: never.
    pub expires_ms: Option<u64>,
}

/// One row of the audit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditRow {
    /// Its number: later rows have greater ones, not always the next.
    pub seq: u64,
    /// Wall time in milliseconds since the Unix epoch, as the change's [`Stamp`] had it.
    pub at_ms: u64,
    /// On whose authority, as the change's [`Stamp`] had it.
    pub actor: String,
    /// What was done: `token.create`, `tenant.create`, `tenant.begin-deletion`, `tenant.delete`, `module.push`,
    /// `revision.commit`, `revision.activate`, `secret.set`, `secret.reseal` or `secret.remove`.
    pub action: String,
    /// The tenant concerned.
    pub tenant: Option<TenantName>,
    /// What exactly, as a JSON object: a digest, a revision, a grant, a secret's name.
    pub detail: serde_json::Value,
}

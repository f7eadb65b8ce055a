//! What tenants, manifests, revisions, grants, limits and verdicts *are*: types that cannot hold a bad value.
//!
//! Outside data is parsed here once, with errors that say what was expected, what was found and what to do.
//! No I/O, no clocks, nothing async.

mod digest;
mod egress;
mod grant;
mod limit;
mod limit_class;
mod limits;
mod manifest;
mod misread;
mod name;
mod nats;
mod on_status;
mod secret;
mod text;
mod token;
mod units;

pub use digest::{Digest, InvalidDigest};
pub use egress::{Egress, EgressRule};
pub use grant::{Grant, GrantRefusal, UpstreamRange, is_special};
pub use limit::Limit;
pub use limit_class::{
    BeyondCeiling, Ceilings, InvalidLimitClass, LimitClass, LimitClasses, MAX_MODULE, ModuleLimits,
};
pub use limits::{FilterLimits, LIMITS, LimitRow};
pub use manifest::{
    Credentials, Endpoint, FilterSpec, InstanceLifetime, KeepResponse, KvSpec, Manifest, ManifestError,
    ModuleRef, OnDead, OnError, OrderingKey, QueueMode, QueuePolicy, UpstreamSpec, UpstreamTarget,
};
pub use misread::misread;
pub use name::{ConnectionName, FilterName, HostName, InvalidName, SecretName, TenantName, UpstreamName};
pub use nats::{InvalidSubject, NatsKind, NatsTarget, Subject, SubjectGrant, SubjectPrefix};
pub use on_status::{OnStatus, StatusMeans};
pub use secret::{InjectedHeader, InvalidSecret, SecretRef, SecretValue};
pub use token::{Token, TokenHash, TokenScope};
pub use units::{ByteSize, Duration, InvalidUnit};

/// The number of one immutable version of a tenant's manifest, from 1 upwards without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct RevisionId(pub u64);

impl std::fmt::Display for RevisionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

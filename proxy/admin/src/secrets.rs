//! Secrets: set and removed by name, listed without their values.

use axum::extract::State;
use beamline_control::{SecretListing, SecretSet};
use beamline_model::{SecretName, SecretValue};
use serde::Serialize;

use crate::{
    AdminState,
    answer::{Answer, ok},
    auth::Caller,
    problem::Refusal,
    request::{Raw, Secret, Tenant},
};

#[derive(Serialize)]
pub(crate) struct Secrets {
    secrets: Vec<SecretListing>,
}

#[derive(Serialize)]
pub(crate) struct Removed {
    removed: SecretName,
}

/// The body is the value as it is, so that no parser's message can repeat a part of it.
pub(crate) async fn set(
    State(state): State<AdminState>,
    Caller(actor): Caller,
    Tenant(tenant): Tenant,
    Secret(name): Secret,
    Raw(body): Raw,
) -> Result<Answer<SecretSet>, Refusal> {
    let value = SecretValue::new(&body).map_err(|error| Refusal::of("invalid-secret", error.to_string()))?;
    Ok(ok(state.control.set_secret(&tenant, name, value, &actor).await?))
}

pub(crate) async fn list(
    State(state): State<AdminState>,
    Caller(actor): Caller,
    Tenant(tenant): Tenant,
) -> Result<Answer<Secrets>, Refusal> {
    Ok(ok(Secrets { secrets: state.control.secrets(&tenant, &actor).await? }))
}

pub(crate) async fn remove(
    State(state): State<AdminState>,
    Caller(actor): Caller,
    Tenant(tenant): Tenant,
    Secret(name): Secret,
) -> Result<Answer<Removed>, Refusal> {
    state.control.remove_secret(&tenant, name.clone(), &actor).await?;
    Ok(ok(Removed { removed: name }))
}

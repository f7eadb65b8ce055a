//! Modules: uploaded as they are, named by their digest from then on.

use axum::extract::State;
use beamline_control::{ModuleListing, ModuleView};
use serde::Serialize;

use crate::{
    AdminState,
    answer::{Answer, ok},
    auth::Caller,
    problem::Refusal,
    request::{Raw, Tenant},
};

#[derive(Serialize)]
pub(crate) struct Modules {
    modules: Vec<ModuleListing>,
}

pub(crate) async fn push(
    State(state): State<AdminState>,
    Caller(actor): Caller,
    Tenant(tenant): Tenant,
    Raw(bytes): Raw,
) -> Result<Answer<ModuleView>, Refusal> {
    Ok(ok(state.control.push_module(&tenant, bytes, &actor).await?))
}

pub(crate) async fn list(
    State(state): State<AdminState>,
    Caller(actor): Caller,
    Tenant(tenant): Tenant,
) -> Result<Answer<Modules>, Refusal> {
    Ok(ok(Modules { modules: state.control.modules(&tenant, &actor).await? }))
}

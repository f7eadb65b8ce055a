//! Modules: uploaded as they are, named by their digest from then on.

use axum::extract::{Request, State};
use beamline_control::{ModuleListing, ModuleView};
use serde::Serialize;

use crate::{
    AdminState,
    answer::{Answer, ok},
    auth::Caller,
    problem::Refusal,
    request::{Tenant, read},
};

#[derive(Serialize)]
pub(crate) struct Modules {
    modules: Vec<ModuleListing>,
}

pub(crate) async fn push(
    State(state): State<AdminState>,
    Caller(actor): Caller,
    Tenant(tenant): Tenant,
    request: Request,
) -> Result<Answer<ModuleView>, Refusal> {
    let upload = state.control.upload(&tenant, &actor).await?;
    let limit = usize::try_from(upload.limit.get()).unwrap_or(usize::MAX);
    let too_large = || state.control.module_too_large(&tenant, &upload).into();
    let bytes = read(request.into_body(), limit, too_large).await?;
    Ok(ok(state.control.push_module(&tenant, bytes, &actor).await?))
}

pub(crate) async fn list(
    State(state): State<AdminState>,
    Caller(actor): Caller,
    Tenant(tenant): Tenant,
) -> Result<Answer<Modules>, Refusal> {
    Ok(ok(Modules { modules: state.control.modules(&tenant, &actor).await? }))
}

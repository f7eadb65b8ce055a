//! Modules: uploaded as they are, named by their digest from then on.

use axum::extract::{Request, State};
use beamline_control::{ModuleListing, ModuleView};
use beamline_model::Limit;
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
    let bytes = read(request.into_body(), limit, || {
        format!(
            "a module of the limit class {} has at most {limit} bytes: build it with opt-level = \"s\", lto and strip, or ask the operator for another class (limit: {})",
            upload.class,
            Limit::ModuleSize
        )
    })
    .await
    .inspect_err(|refusal| {
        if refusal.is("body-too-large") {
            state.control.module_too_large(&tenant);
        }
    })?;
    Ok(ok(state.control.push_module(&tenant, bytes, &actor).await?))
}

pub(crate) async fn list(
    State(state): State<AdminState>,
    Caller(actor): Caller,
    Tenant(tenant): Tenant,
) -> Result<Answer<Modules>, Refusal> {
    Ok(ok(Modules { modules: state.control.modules(&tenant, &actor).await? }))
}

//! The admin API: what operators, tenants and the CLI ask a node for, over HTTP and JSON.
//!
//! It authenticates and translates, and decides nothing: whether a caller may do something, and what it does, is `control`'s
//! and the queue's to say. One table, [`ROUTES`], is what the router is built from, what its tests walk, and what
//! `docs/reference/admin-api.md` is held against; every refusal is a row of [`PROBLEMS`].
//!
//! Invariants, each with a test of its name:
//!
//! - *No body is read before its sender is known*: a token comes first, then at most the route's number of bytes.
//! - *Every answer is JSON* (but for `/metrics`), *every error a problem document* (RFC 9457), unknown paths and methods included.
//! - *No answer is kept by a cache.*

mod answer;
mod audit;
mod auth;
mod bodies;
mod linger;
mod manifests;
mod metrics;
mod modules;
mod node;
mod problem;
mod queue;
mod request;
mod routes;
mod secrets;
mod tenants;

use std::{fmt, sync::Arc};

use axum::{Extension, Router, extract::DefaultBodyLimit, middleware};
use beamline_control::Control;
use beamline_node_state::NodeState;
use beamline_queue::Queue;
use beamline_telemetry::Telemetry;

pub use problem::{PROBLEMS, ProblemRow};
pub use request::BODY_TIME;
pub use routes::{ROUTES, RouteRow, Who};

/// Says whether every worker is alive, or which one is not: asked by `/livez`. Must not block.
pub type Liveness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What the API answers from. Cheap to clone.
#[derive(Clone)]
pub struct AdminState {
    /// Whom every change and every question about tenants goes to.
    pub control: Control,
    /// The durable queue: its depths, and what is done to it by hand.
    pub queue: Queue,
    /// What `/metrics` shows beside them.
    pub telemetry: Telemetry,
    /// What `/readyz` answers.
    pub node: NodeState,
    /// What `/livez` answers.
    pub liveness: Liveness,
}

impl fmt::Debug for AdminState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminState")
    }
}

/// The admin API as a service: every row of [`ROUTES`] and nothing else.
///
/// To be served on a runtime with timers, on a listener that only operators and tenants can reach.
pub fn router(state: AdminState) -> Router {
    ROUTES
        .iter()
        .fold(Router::new(), |router, row| {
            let guard = middleware::from_fn_with_state((state.control.clone(), row), auth::guard);
            let seen_out = middleware::from_fn(linger::see_out);
            // Inside out: what a caller still sends is seen to only behind the guard.
            router.route(row.path, routes::endpoint(row).route_layer(seen_out).route_layer(guard))
        })
        .fallback(problem::unknown_path)
        .method_not_allowed_fallback(problem::method_not_allowed)
        // Each route has a limit of its own, which `request` keeps.
        .layer(DefaultBodyLimit::disable())
        .layer(Extension(Arc::<bodies::Places>::default()))
        .layer(middleware::map_response(answer::finish))
        .with_state(state)
}

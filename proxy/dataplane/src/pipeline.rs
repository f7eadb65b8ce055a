//! The life of a request, in order: identify tenant → filter chain (request) → verdict → upstream, queue or local
//! response → filter chain (response, backward) → client.
//!
//! This file holds only the order of the phases and what each early return does. Each step is a module. What few requests
//! need is boxed: hyper copies a request's future, with room for all that it may come to.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use beamline_control::{TenantRuntime, UpstreamRuntime};
use beamline_filter_host::{Decision, Failure, HostView, RequestHead};
use beamline_http::{ErrorKind, RESERVED_PATH, authority_of, is_loop, without_connection_options};
use beamline_telemetry::Verdict;
use http::{HeaderValue, Request, Response, header, request::Parts};
use hyper::body::Incoming;

use crate::{
    body::{ClientBody, Counted},
    enqueue, failures,
    filtered::Passed,
    forward::{self, REQUEST_ID},
    idempotency::Caller,
    phases, receipts,
    respond::{self, Refusal},
    transaction::{Finishing, failure_kind},
    view::TenantView,
    worker::Shared,
};

/// One request, answered whatever happens.
pub(crate) async fn handle(
    worker: Rc<Shared>,
    client: SocketAddr,
    request: Request<Incoming>,
) -> Response<ClientBody> {
    let (parts, body) = request.into_parts();
    let mut exchange = Finishing::begin(&worker, client, &parts);
    let mut response = match answer(&worker, &mut exchange, client, parts, body).await {
        Ok(response) => response,
        Err(refusal) => respond::problem(&worker, &mut exchange, refusal),
    };
    // Filter chain, response phases: of chains that have any, and after whatever the request's way came to.
    if let Some(later) = exchange.later().cloned() {
        response = Box::pin(phases::of_response(&worker, &mut exchange, &later, response)).await;
    }
    response.headers_mut().insert(REQUEST_ID, exchange.id_field());
    if worker.is_draining() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    exchange.record().status = Some(response.status().as_u16());
    response.map(|body| body.finishing(exchange))
}

async fn answer(
    worker: &Rc<Shared>,
    exchange: &mut Finishing,
    client: SocketAddr,
    mut parts: Parts,
    body: Incoming,
) -> Result<Response<ClientBody>, Refusal> {
    // Identify the tenant.
    let tenant = identify(worker, exchange, &parts)?;
    if parts.uri.path().starts_with(RESERVED_PATH) {
        return Box::pin(receipts::answer(worker, &tenant, &parts)).await;
    }
    if tenant.leaving {
        let detail = "the tenant of this host is being deleted: it takes no more requests";
        return Err(Refusal::new(ErrorKind::UnknownHost, detail));
    }

    // Who sent it, before filters change what it shows; and what the client may take away again is gone before they do.
    let mut caller = None;
    if !tenant.chain.is_empty() {
        caller = Caller::of_keyed(&parts.headers);
        without_connection_options(&mut parts.headers);
    }

    // Filter chain, request phases.
    let mut body = Passed::Plain(Counted::new(body, exchange));
    let (parts, decision) = filter(worker, exchange, &tenant, parts, &mut body).await?;

    // Verdict.
    let outbound = forward::Outbound::new(client, parts, body, caller);
    let answered = carry_out(worker, exchange, &tenant, outbound, decision).await;
    // A body that a filter broke off is not the client's doing.
    answered.map_err(|refusal| match refusal.kind {
        ErrorKind::ClientGone => exchange.later().and_then(|l| l.told.take_broken()).unwrap_or(refusal),
        _ => refusal,
    })
}

/// Does what the filters decided.
async fn carry_out(
    worker: &Rc<Shared>,
    exchange: &mut Finishing,
    tenant: &TenantRuntime,
    mut outbound: forward::Outbound,
    decision: Decision,
) -> Result<Response<ClientBody>, Refusal> {
    match decision {
        Decision::Next => {
            exchange.record().verdict = Some(Verdict::Next);
            let upstream = tenant.default_upstream().ok_or_else(|| {
                Refusal::new(ErrorKind::NoRoute, "no filter chose an upstream: set default_upstream in the manifest, or have a filter route the request")
            })?;
            forward::send(worker, exchange, tenant, upstream, outbound).await
        }
        Decision::Route { upstream, path, host, timeout } => {
            exchange.record().verdict = Some(Verdict::Route);
            let upstream = named(tenant, &upstream)?;
            outbound.rewrite(path, host, timeout);
            forward::send(worker, exchange, tenant, upstream, outbound).await
        }
        Decision::Respond(answer) => {
            exchange.record().verdict = Some(Verdict::Respond);
            Ok(respond::from_filter(answer))
        }
        Decision::Enqueue { upstream, options } => {
            exchange.record().verdict = Some(Verdict::Enqueue);
            let upstream = named(tenant, &upstream)?;
            Box::pin(enqueue::by_verdict(worker, exchange, tenant, upstream, outbound, options)).await
        }
        // Read it was, before the chain came to its end.
        Decision::ReadBody => Err(Refusal::new(ErrorKind::Internal, "a body was to be read, and was not")),
        Decision::Failed { filter, failure } => {
            let refusal = Refusal::new(failure_kind(&failure), failures::detail(&filter, &failure));
            Err(match failure {
                Failure::LeftOut(left) => refusal.retry_after(left),
                _ => refusal,
            })
        }
    }
}

/// Whose request it is, or why nobody's.
fn identify(worker: &Shared, exchange: &mut Finishing, parts: &Parts) -> Result<Arc<TenantRuntime>, Refusal> {
    let authority = authority_of(parts).map_err(|e| Refusal::new(ErrorKind::BadRequest, e.to_string()))?;
    if is_loop(&parts.headers) {
        return Err(Refusal::new(
            ErrorKind::Loop,
            "Via names this proxy too often: an upstream, or a request of a filter, leads back to it",
        ));
    }
    let host = authority.host.to_ascii_lowercase();
    let tenant = worker.tenant(&host);
    exchange.record().host = host;
    let tenant = tenant.ok_or_else(|| {
        Refusal::new(ErrorKind::UnknownHost, "no tenant of this node holds the host that the request names")
    })?;
    exchange.record().tenant = Some(Arc::clone(&tenant.label));
    exchange.record().revision = Some(tenant.revision.0);
    Ok(tenant)
}

/// Runs the tenant's filters over the request's head, and its body where they want to see it.
async fn filter(
    worker: &Rc<Shared>,
    exchange: &mut Finishing,
    tenant: &Arc<TenantRuntime>,
    mut parts: Parts,
    body: &mut Passed<Counted>,
) -> Result<(Parts, Decision), Refusal> {
    if tenant.chain.is_empty() {
        return Ok((parts, Decision::Next));
    }
    let view: Arc<dyn HostView> = Arc::new(TenantView::new(worker, tenant, exchange.record()));
    let headers = std::mem::take(&mut parts.headers);
    let host = exchange.record().host.as_str().into();
    let head = RequestHead::new(parts.method.clone(), parts.uri.clone(), host, headers);
    let mut outcome = tenant.chain.on_request(&worker.engine, &view, head).await;
    if tenant.chain.has_later_phases() {
        outcome = Box::pin(phases::of_request(worker, exchange, tenant, &view, outcome, body)).await?;
    }
    parts.headers = outcome.head.headers;
    exchange.filters(tenant, outcome.runs);
    Ok((parts, outcome.decision))
}

/// The upstream that a filter named.
fn named<'t>(tenant: &'t TenantRuntime, name: &str) -> Result<&'t UpstreamRuntime, Refusal> {
    tenant.upstream(name).ok_or_else(|| {
        Refusal::new(
            ErrorKind::FilterVerdict,
            format!(
                "a filter chose the upstream {:?}, which the manifest does not define",
                tenant.chain.told(name)
            ),
        )
    })
}

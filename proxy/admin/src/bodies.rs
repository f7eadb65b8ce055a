//! Queued records with their bodies, as JSON Lines: written while they are read, so that no body is ever held whole.
//!
//! An export may go on for long after its caller was let in. So token and tenant are looked at again before each page and each
//! body goes out, and every few seconds while the caller is waited for, and so is what is just being sent: an export ends with
//! the right to it. Names are used again; an export is of the tenant that had the name when it began.

mod outlet;
mod places;

use std::{fmt::Write as _, mem, sync::Arc, time::Duration};

use axum::{
    BoxError, Extension,
    body::Body,
    extract::State,
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use beamline_control::actor_name;
use beamline_model::{TenantName, TokenScope, UpstreamName};
use beamline_queue::{
    EXPORT_VERSION, ExportPage, ExportedBody, PAGE_MAX, RecordBody, RecordId, RecordQuery, RecordView,
    StateName,
};
use http::header;
use serde::Deserialize;
use tokio::time::Instant;

use self::outlet::{Outlet, Wait};
pub(crate) use self::places::Places;
use crate::{
    AdminState,
    auth::{Caller, Credential, unknown_token},
    problem::Refusal,
    request::{Query, Tenant},
};

/// How often token, tenant and what is being sent are looked at while a caller is waited for.
const LOOK: Duration = Duration::from_secs(5);
/// Of a body that is read at once: without a rest in base64.
const PIECE: usize = 48 << 10;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wanted {
    upstream: Option<UpstreamName>,
    state: Option<StateName>,
    ordering_key: Option<String>,
    /// Only records after this place in commit order.
    #[serde(default)]
    after: u64,
}

/// One export under way.
struct Export {
    state: AdminState,
    query: RecordQuery,
    caller: TokenScope,
    credential: Credential,
    /// When the tenant was created: who gets its name after it was created later.
    created_ms: u64,
    /// When all is looked at again.
    look: Instant,
    to: Outlet,
}

pub(crate) async fn export(
    State(state): State<AdminState>,
    Extension(places): Extension<Arc<Places>>,
    Caller(caller): Caller,
    credential: Credential,
    Tenant(tenant): Tenant,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Refusal> {
    let created_ms = state.control.tenant(&tenant, &caller).await?.created_ms;
    let place = places.take(&caller).map_err(|taken| Refusal::of("exports-taken", taken.detail()))?;
    let (to, body) = outlet::open();
    let query = wanted.of(tenant);
    let look = Instant::now();
    let mut export = Export { state, query, caller, credential, created_ms, look, to };
    // So that what fails at once is an answer, and not one that breaks off.
    let first = export.page().await?;
    tokio::spawn(async move {
        let _place = place;
        if let Err(error) = export.write(first).await {
            tracing::warn!(tenant = %export.query.tenant, %error, "an export of bodies broke off");
        }
    });
    let media_type = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((media_type, Body::new(body)).into_response())
}

impl Wanted {
    fn of(self, tenant: TenantName) -> RecordQuery {
        let Self { upstream, state, ordering_key, after } = self;
        RecordQuery { tenant, upstream, state, ordering_key, after, limit: PAGE_MAX }
    }
}

impl Export {
    /// The next page, noted in the audit.
    async fn page(&mut self) -> Result<ExportPage, Refusal> {
        let page = self.state.queue.export(self.query.clone()).await?;
        // Behind the reading: what was read is then of the tenant that is still there.
        self.still_permitted().await?;
        let actor = actor_name(&self.caller);
        self.state.queue.note_bodies(&self.query.tenant, &page.records, &actor).await?;
        Ok(page)
    }

    /// Refuses where the token is not valid any more, or the tenant is gone, whoever has its name now.
    async fn still_permitted(&mut self) -> Result<(), Refusal> {
        let Self { state, query, caller, credential: Credential(token), .. } = &*self;
        if state.control.authenticate(token).as_ref() != Some(caller) {
            return Err(unknown_token());
        }
        if state.control.tenant(&query.tenant, caller).await?.created_ms != self.created_ms {
            let gone = format!("tenant {} was deleted, and another one has its name", self.query.tenant);
            return Err(Refusal::of("unknown-tenant", gone));
        }
        self.look = Instant::now() + LOOK;
        Ok(())
    }

    /// Writes this page and those after it.
    async fn write(&mut self, first: ExportPage) -> Result<(), BoxError> {
        let mut page = first;
        loop {
            for record in page.records {
                self.room(None).await?;
                self.record(&record).await?;
            }
            self.room(None).await?;
            let Some(next) = page.next else { return self.to.end().await };
            self.query.after = next;
            page = self.page().await?;
        }
    }

    /// Writes a record's line, for which there is room.
    async fn record(&mut self, record: &RecordView) -> Result<(), BoxError> {
        let mut line = serde_json::to_string(record)?;
        // Its last brace comes behind what is added.
        line.pop();
        write!(line, ",\"version\":{EXPORT_VERSION},\"body\":")?;
        let body = match record.request {
            Some(_) => {
                let body = self.state.queue.record_body(record.listing.id).await?;
                // Behind the reading, as for a page.
                self.still_permitted().await?;
                body
            }
            None => ExportedBody::Erased,
        };
        match body {
            ExportedBody::Whole(body) => self.body(record.listing.id, line, body).await,
            ExportedBody::Erased => self.to.send(line + "null}\n").await,
            ExportedBody::Lost => self.to.send(line + "null,\"error\":\"lost\"}\n").await,
        }
    }

    /// Writes a line to its end, body and all.
    async fn body(&mut self, id: RecordId, line: String, mut body: RecordBody) -> Result<(), BoxError> {
        let mut text = line + "\"";
        while body.left() > PIECE as u64 {
            STANDARD.encode_string(body.next(PIECE).await?, &mut text);
            self.to.send(mem::take(&mut text)).await?;
            self.room(Some(id)).await?;
        }
        STANDARD.encode_string(body.next(PIECE).await?, &mut text);
        self.to.send(text + "\"}\n").await
    }

    /// Waits until the caller takes more, for as long as it may have more: of the body of a record that is being sent, where there
    /// is one.
    async fn room(&mut self, sending: Option<RecordId>) -> Result<(), BoxError> {
        let since = Instant::now();
        while self.to.room(since, self.look).await? == Wait::Look {
            self.still_permitted().await?;
            if let Some(id) = sending
                && !self.state.queue.has_body(id).await?
            {
                return Err(format!("record {id} was erased while its body was being sent").into());
            }
        }
        Ok(())
    }
}

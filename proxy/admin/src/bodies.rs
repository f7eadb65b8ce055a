//! Queued records with their bodies, as JSON Lines: written while they are read, so that no body is ever held whole.

use std::{
    error::Error,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use beamline_control::actor_name;
use beamline_model::{TenantName, UpstreamName};
use beamline_queue::{ExportPage, PAGE_MAX, Queue, RecordQuery, StateName};
use bytes::Bytes;
use http::header;
use http_body::Frame;
use serde::Deserialize;
use tokio::{sync::Semaphore, sync::mpsc, time};

use crate::{
    AdminState,
    auth::Caller,
    problem::Refusal,
    queue::existing,
    request::{Query, Tenant},
};

/// Exports that may run at once, of all callers: each holds a page of heads, a piece of a body and a file.
const AT_ONCE: usize = 4;
static PLACES: Semaphore = Semaphore::const_new(AT_ONCE);
/// How long a caller may take nothing of what is there for it. Then its place is another's.
const STALL: Duration = Duration::from_secs(60);
/// Of a body that is read at once: without a rest in base64.
const PIECE: usize = 48 << 10;
/// Of the lines.
const VERSION: u64 = 1;

type BoxError = Box<dyn Error + Send + Sync>;

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
    queue: Queue,
    query: RecordQuery,
    actor: String,
    to: mpsc::Sender<Piece>,
}

/// Of an answer. One whose last piece is not its end breaks off.
enum Piece {
    Text(Bytes),
    End,
}

pub(crate) async fn export(
    State(state): State<AdminState>,
    Caller(actor): Caller,
    Tenant(tenant): Tenant,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Refusal> {
    existing(&state, &tenant, &actor).await?;
    let Ok(place) = PLACES.try_acquire() else {
        return Err(Refusal::of(
            "queue-unavailable",
            format!("{AT_ONCE} exports with bodies run already: try again when one of them is done"),
        ));
    };
    let (to, body) = mpsc::channel(1);
    let query = wanted.of(tenant);
    let mut export = Export { queue: state.queue.clone(), query, actor: actor_name(&actor), to };
    // So that what fails at once is an answer, and not one that breaks off.
    let first = export.page().await?;
    tokio::spawn(async move {
        let _place = place;
        if let Err(error) = export.write(first).await {
            tracing::warn!(tenant = %export.query.tenant, %error, "an export of bodies broke off");
        }
    });
    let media_type = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((media_type, Body::new(Pieces(body))).into_response())
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
        let page = self.queue.export(self.query.clone()).await?;
        self.queue.note_bodies(&self.query.tenant, &page.records, &self.actor).await?;
        Ok(page)
    }

    /// Writes this page and those after it.
    async fn write(&mut self, first: ExportPage) -> Result<(), BoxError> {
        let mut page = first;
        loop {
            for record in page.records {
                let mut line = serde_json::to_string(&record)?;
                // Its last brace comes behind what is added.
                line.pop();
                line.push_str(&format!(",\"version\":{VERSION},\"body\":"));
                let body = match record.request {
                    Some(_) => self.queue.record_body(&record.listing).await?,
                    None => None,
                };
                let Some(mut body) = body else {
                    self.text(line + "null}\n").await?;
                    continue;
                };
                self.text(line + "\"").await?;
                loop {
                    let piece = body.next(PIECE).await?;
                    if piece.is_empty() {
                        break;
                    }
                    self.text(STANDARD.encode(piece)).await?;
                }
                self.text("\"}\n".to_owned()).await?;
            }
            let Some(next) = page.next else { return self.send(Piece::End).await };
            self.query.after = next;
            page = self.page().await.map_err(|_| "the queue cannot be read, or its audit written")?;
        }
    }

    async fn text(&self, text: String) -> Result<(), BoxError> {
        self.send(Piece::Text(text.into())).await
    }

    async fn send(&self, piece: Piece) -> Result<(), BoxError> {
        match time::timeout(STALL, self.to.send(piece)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err("its caller went away".into()),
            Err(_) => Err(format!("its caller took nothing for {} s", STALL.as_secs()).into()),
        }
    }
}

/// The body of the answer.
struct Pieces(mpsc::Receiver<Piece>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0.poll_recv(cx).map(|piece| match piece {
            Some(Piece::Text(text)) => Some(Ok(Frame::data(text))),
            Some(Piece::End) => None,
            None => Some(Err("it broke off".into())),
        })
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn an_answer_without_its_end_breaks_off() {
        for whole in [true, false] {
            let (to, body) = mpsc::channel(3);
            to.send(Piece::Text("line\n".into())).await.unwrap();
            if whole {
                to.send(Piece::End).await.unwrap();
            }
            drop(to);
            let read = Pieces(body).collect().await;
            assert_eq!(read.map(|read| read.to_bytes()).ok(), whole.then(|| "line\n".into()));
        }
    }
}

//! What can be done in a phase.

use std::{collections::BTreeMap, hint::black_box};

use beamline_sdk::{
    Body, Chunk, ChunkVerdict, HeaderError, Request, ResponseHead, ResponseVerdict, Verdict, context, log,
    outbound,
};
use serde::Deserialize;

/// One phase's doing, in the order of its fields. What a phase has no use for is ignored.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Act {
    /// Adds this to the field `x-way` of the head.
    mark: Option<String>,
    /// Sets fields of the head, or removes them where `null`. What is refused is logged as `NAME: ERROR`.
    set: BTreeMap<String, Option<String>>,
    /// Appends fields to the head.
    append: BTreeMap<String, String>,
    /// Logs all values of this field of a response's head, as it is then.
    list: Option<String>,
    /// Sets the status of the response.
    status: Option<u16>,
    /// Adds this to what is remembered.
    remember: Option<String>,
    /// Remembers so many bytes.
    remember_bytes: usize,
    /// Sets this field of the head to what is remembered.
    recall: Option<String>,
    /// Sends a request to this URL, and sets `x-asked` of the head to the body of its answer, or to why there is none.
    ask: Option<String>,
    /// Logs this.
    log: Option<String>,
    /// Panics.
    trap: bool,
    /// Never ends.
    spin: bool,
    /// In `finish`: logs what it heard, as JSON.
    pub(crate) tell: bool,
    /// Replaces the body by this.
    body: Option<String>,
    /// Replaces the body by itself in upper case.
    upper: bool,
    /// Replaces this text by the other one, wherever a stream is cut.
    swap: Option<(String, String)>,
    /// Keeps every chunk until the last one.
    hold: bool,
    /// Lets no chunk pass.
    drop: bool,
    /// Panics at a chunk that has this in it.
    trap_at: Option<String>,
    /// Wants to see the whole body.
    read_body: bool,
    /// Answers with this status, and `answered` as the body.
    respond: Option<u16>,
    /// Routes to this upstream.
    route: Option<String>,
    /// Queues for this upstream.
    enqueue: Option<String>,
}

/// The head that a phase can change.
pub(crate) enum Head<'a, 'call> {
    Request(&'a mut Request<'call>),
    Response(&'a mut ResponseHead<'call>),
    None,
}

impl Head<'_, '_> {
    fn set(&mut self, name: &str, value: &[u8]) -> Result<(), HeaderError> {
        match self {
            Self::Request(head) => head.set_header(name, value),
            Self::Response(head) => head.set_header(name, value),
            Self::None => Ok(()),
        }
    }

    fn append(&mut self, name: &str, value: &str) -> Result<(), HeaderError> {
        match self {
            Self::Request(head) => head.append_header(name, value),
            Self::Response(head) => head.append_header(name, value),
            Self::None => Ok(()),
        }
    }

    fn remove(&mut self, name: &str) -> Result<(), HeaderError> {
        match self {
            Self::Request(head) => head.remove_header(name),
            Self::Response(head) => head.remove_header(name),
            Self::None => Ok(()),
        }
    }
}

impl Act {
    /// What is done before anything is decided.
    pub(crate) fn run(&self, head: &mut Head) {
        if let Some(mark) = &self.mark {
            head.append("x-way", mark).expect("a mark is short");
        }
        for (name, value) in &self.set {
            let changed = match value {
                Some(value) => head.set(name, value.as_bytes()),
                None => head.remove(name),
            };
            if let Err(error) = changed {
                log::info!("{name}: {error:?}");
            }
        }
        for (name, value) in &self.append {
            if let Err(error) = head.append(name, value) {
                log::info!("{name}: {error:?}");
            }
        }
        if let (Some(name), Head::Response(head)) = (&self.list, &mut *head) {
            let values = head.header_all(name);
            let values = values.iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
            log::info!("{}", values.collect::<Vec<_>>().join(" | "));
        }
        if let (Some(status), Head::Response(head)) = (self.status, &mut *head)
            && let Err(error) = head.set_status(status)
        {
            log::info!("status: {error:?}");
        }
        if let Some(more) = &self.remember {
            let remembered = [context::get().unwrap_or_default(), more.clone().into_bytes()].concat();
            context::set(remembered).expect("a test remembers little");
        }
        if self.remember_bytes > 0
            && let Err(error) = context::set(vec![b'x'; self.remember_bytes])
        {
            log::info!("{error}");
        }
        if let Some(name) = &self.recall {
            head.set(name, &context::get().unwrap_or_else(|| b"nothing".to_vec())).expect("it is a field");
        }
        if let Some(url) = &self.ask {
            let told = outbound::get(url).send();
            let told = told.map_or_else(|error| format!("{error:?}").into_bytes(), |answer| answer.body);
            head.set("x-asked", &told).expect("it is a field");
        }
        if let Some(message) = &self.log {
            log::write(log::Level::Info, message);
        }
        assert!(!self.trap, "the filter was told to trap");
        while self.spin {
            black_box(self);
        }
    }

    pub(crate) fn rewrite(&self, body: &mut Body) {
        if let Some(text) = &self.body {
            body.replace(text.as_str());
        }
        if self.upper {
            body.replace(body.bytes().to_ascii_uppercase());
        }
    }

    pub(crate) fn verdict(&self) -> Verdict {
        if self.read_body {
            Verdict::read_body()
        } else if let Some(status) = self.respond {
            Verdict::respond(status).body("answered").into()
        } else if let Some(upstream) = &self.route {
            Verdict::route(upstream).into()
        } else if let Some(upstream) = &self.enqueue {
            Verdict::enqueue(upstream).into()
        } else {
            Verdict::next()
        }
    }

    pub(crate) fn response_verdict(&self) -> ResponseVerdict {
        if self.read_body {
            ResponseVerdict::read_body()
        } else if let Some(status) = self.respond {
            ResponseVerdict::respond(status).body("answered").into()
        } else {
            ResponseVerdict::next()
        }
    }

    pub(crate) fn chunk(&self, chunk: Chunk) -> ChunkVerdict {
        if let Some(text) = &self.trap_at {
            assert!(find(chunk.bytes(), text.as_bytes()).is_none(), "the filter was told to trap");
        }
        if self.drop {
            return ChunkVerdict::drop();
        }
        if self.hold && !chunk.is_last() {
            return ChunkVerdict::hold();
        }
        if self.upper {
            return ChunkVerdict::replace(chunk.bytes().to_ascii_uppercase()).into();
        }
        match &self.swap {
            Some((from, to)) => swapped(chunk, from.as_bytes(), to.as_bytes()),
            None => ChunkVerdict::pass(),
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// What may be the beginning of `from` at the chunk's end is shown again.
fn swapped(chunk: Chunk, from: &[u8], to: &[u8]) -> ChunkVerdict {
    let (mut rest, mut on) = (chunk.bytes(), Vec::new());
    while let Some(at) = find(rest, from) {
        on.extend_from_slice(&rest[..at]);
        on.extend_from_slice(to);
        rest = &rest[at + from.len()..];
    }
    let again = (1..from.len()).rev().find(|n| rest.ends_with(&from[..*n])).unwrap_or(0);
    let again = if chunk.is_last() { 0 } else { again };
    on.extend_from_slice(&rest[..rest.len() - again]);
    ChunkVerdict::replace(on).again(again).into()
}

//! One connection, from the greeting to its end. It is not mended: when it ends, what waits on it is told so.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet, VecDeque},
    fmt::Write as _,
    io::{self, IoSlice},
    net::SocketAddr,
    rc::Rc,
    time::Duration,
};

use beamline_model::Subject;
use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;
use thiserror::Error;
use tokio::{
    sync::Notify,
    time::{self, Instant},
};

use crate::{
    ConnectionSettings, HeaderBlock, Message,
    connect::Greeted,
    protocol::{Decoder, ServerOp},
    wire::Wire,
};

/// Bytes that may wait to be taken by the kernel; who comes then waits for room.
const UNWRITTEN_MAX: usize = 4 << 20;
/// Frames that one system call writes.
const FRAMES_AT_ONCE: usize = 16;
/// What every inbox begins with. Not the `_INBOX` of other clients: whoever may listen to all of theirs would read the
/// replies of every tenant here.
const INBOX: &str = "_INBOX_BEAMLINE";
/// What is read at once.
const READ: usize = 16 << 10;
/// Reads until the thread's other tasks have their turn: its other tenants' requests, and what is to be written here.
const READS_AT_ONCE: u32 = 16;
/// Messages that nobody waits for, until the connection ends. Late replies are such, a service's mistakes, and floods.
const STRAYS_MAX: u32 = 16 << 10;
/// So many of them each request makes good: where several services answer one subject, all but one reply is nobody's.
const STRAYS_A_REQUEST: u32 = 8;

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Ended {
    /// Its server closed it.
    #[error("the server closed the connection")]
    Closed,
    /// The socket failed.
    #[error("the connection failed: {0}")]
    Io(String),
    /// Its server did not answer a ping.
    #[error("the server did not answer a ping within ping_interval")]
    Silent,
    /// Its server took not a byte of what was to be written.
    #[error("the server took not a byte within connect_timeout")]
    Stalled,
    /// Its server broke the protocol or said why it ends the connection.
    #[error("{0}")]
    Server(String),
    /// Services answer what was not asked, or again and again. The next connection's inbox is another.
    #[error(
        "more than {STRAYS_MAX} messages came that nobody waits for: a service answers its requests many times over"
    )]
    Strays,
    /// Its server is about to go. What waits for replies goes on waiting.
    #[error("the server is about to go")]
    Leaving,
    /// Nobody needs it any more.
    #[error("the connection is not needed any more")]
    Dropped,
}

/// Why a request has no reply.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FailureKind {
    /// The kernel took not a byte of it in time: its connection is busy or stalled.
    #[error("the connection took not a byte of the message in time")]
    NotBegun,
    /// The connection ended.
    #[error("{0}")]
    Lost(Ended),
    /// No reply came in time.
    #[error("no reply came in time")]
    TimedOut,
    /// Message and headers are larger than the server takes.
    #[error("message and headers are larger than the server's max_payload of {limit} bytes")]
    TooLarge {
        /// The server's `max_payload`.
        limit: u64,
    },
    /// The server refused it: the connection's user may not publish to the subject.
    #[error("the server does not let this connection publish to the subject: check its user's permissions")]
    Forbidden,
    /// A reply came that is too large, or whose headers cannot be read.
    #[error("a reply came that is too large or whose headers cannot be read")]
    BadReply,
}

/// A request without a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Why.
    pub kind: FailureKind,
    /// Whether anybody can have had it: the kernel took a byte of it, and the server did not refuse it.
    pub sent: bool,
}

/// What is published.
#[derive(Clone, Debug)]
pub struct Publish<'a> {
    /// To which subject.
    pub subject: &'a Subject,
    /// Its headers.
    pub headers: HeaderBlock,
    /// Its payload.
    pub payload: Bytes,
}

/// How long a request waits.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    /// Until the kernel takes its first byte. Then it is taken back.
    pub begin: Duration,
    /// From its last byte until the reply.
    pub reply: Duration,
}

/// A connection that stands, or stood. Clones are the same one.
#[derive(Clone)]
pub struct Connection(Rc<Shared>);

struct Shared {
    /// None when it has ended: closed there and then, whoever still holds the connection.
    wire: RefCell<Option<Rc<Wire>>>,
    peer: SocketAddr,
    max_payload: u64,
    /// `_INBOX_BEAMLINE.` and 128 random bits, with the dot before each request's own.
    inbox: String,
    stall_timeout: Duration,
    ping_interval: Duration,
    /// What is to be written, in order.
    frames: RefCell<VecDeque<Frame>>,
    unwritten: Cell<usize>,
    /// Bytes of the first frames that are in the TLS record which is being written.
    sealed: Cell<usize>,
    /// Requests that wait for a reply, by the end of their inbox.
    waiting: RefCell<HashMap<String, Rc<Exchange>>>,
    /// Subjects on which something came back: the server lets us publish to them, or did.
    answered: RefCell<HashSet<Subject>>,
    /// What the greeting read too much; taken when the connection is driven.
    rest: RefCell<Option<(Decoder, BytesMut)>>,
    heard: Cell<Instant>,
    /// Messages that nobody waited for, less what requests made good.
    strays: Cell<u32>,
    ended: RefCell<Option<Ended>>,
    /// A frame is there to be written.
    to_write: Notify,
    /// Frames were written: there may be room.
    room: Notify,
    ends: Notify,
    /// Its server said that it is about to go.
    leaves: Notify,
}

struct Frame {
    head: Bytes,
    payload: Bytes,
    /// Bytes of it that the kernel took.
    taken: usize,
    /// Whose it is; none for the connection's own.
    exchange: Option<Rc<Exchange>>,
}

/// One request on its way.
struct Exchange {
    subject: Subject,
    stage: Cell<Stage>,
    /// The reply, when it is there; none within for one that cannot be read.
    reply: RefCell<Option<Option<Message>>>,
    forbidden: Cell<bool>,
    changed: Notify,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Stage {
    Queued,
    /// In a TLS record of which the kernel took nothing yet: nobody can have it, but it can't be taken back.
    Sealed,
    Begun,
    Written,
}

impl Frame {
    const TAIL: Bytes = Bytes::from_static(b"\r\n");

    fn own(line: &'static [u8]) -> Self {
        Self { head: Bytes::from_static(line), payload: Bytes::new(), taken: 0, exchange: None }
    }

    /// Head, payload and the line's end after it; the connection's own have a head alone.
    fn parts(&self) -> [Bytes; 3] {
        let tail = if self.exchange.is_some() { Self::TAIL } else { Bytes::new() };
        [self.head.clone(), self.payload.clone(), tail]
    }

    fn len(&self) -> usize {
        self.head.len() + self.payload.len() + if self.exchange.is_some() { Self::TAIL.len() } else { 0 }
    }

    /// What is left of it.
    fn left(&self) -> impl Iterator<Item = Bytes> {
        let mut taken = self.taken;
        self.parts().into_iter().filter_map(move |mut part| {
            let past = taken.min(part.len());
            taken -= past;
            let left = part.split_off(past);
            (!left.is_empty()).then_some(left)
        })
    }
}

impl Exchange {
    fn advance(&self, stage: Stage) {
        if self.stage.get() < stage {
            self.stage.set(stage);
            self.changed.notify_one();
        }
    }
}

/// A request's place in its connection. However the request ends, the place is given up: what was not begun is
/// never written, and a late reply is nobody's.
struct Place<'a> {
    shared: &'a Shared,
    exchange: &'a Rc<Exchange>,
    token: &'a str,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.shared.waiting.borrow_mut().remove(self.token);
        if self.exchange.stage.get() == Stage::Queued {
            self.shared.withdraw(self.exchange);
        }
    }
}

impl Connection {
    pub(crate) fn new(greeted: Greeted, settings: &ConnectionSettings) -> Self {
        let Greeted { wire, peer, max_payload, decoder, buffer } = greeted;
        let shared = Shared {
            wire: RefCell::new(Some(Rc::new(wire))),
            peer,
            max_payload,
            inbox: format!("{INBOX}.{}.", random_token()),
            stall_timeout: settings.connect_timeout,
            ping_interval: settings.ping_interval,
            frames: RefCell::default(),
            unwritten: Cell::new(0),
            sealed: Cell::new(0),
            waiting: RefCell::default(),
            answered: RefCell::default(),
            rest: RefCell::new(Some((decoder, buffer))),
            heard: Cell::new(Instant::now()),
            strays: Cell::new(0),
            ended: RefCell::new(None),
            to_write: Notify::new(),
            room: Notify::new(),
            ends: Notify::new(),
            leaves: Notify::new(),
        };
        let subscribe = format!("SUB {}* 1\r\n", shared.inbox);
        shared.push(Frame { head: subscribe.into(), ..Frame::own(b"") });
        Self(Rc::new(shared))
    }

    /// Whether it is under TLS. Not, when it has ended.
    pub(crate) fn is_tls(&self) -> bool {
        self.0.wire.borrow().as_ref().is_some_and(|wire| wire.is_tls())
    }

    /// The server's address.
    pub fn peer(&self) -> SocketAddr {
        self.0.peer
    }

    /// Publishes a message with an inbox of its own and waits for the one reply.
    ///
    /// # Errors
    /// Where no reply came; [`Failure::sent`] says whether anybody can have had the message.
    ///
    /// # Cancellation
    /// Dropping the future takes the message back where not a byte of it was taken, nor sealed into the TLS record that is
    /// next; otherwise it is written whole, and its reply is nobody's.
    pub async fn request(&self, publish: Publish<'_>, waits: Waits) -> Result<Message, Failure> {
        let shared = &*self.0;
        let begun_until = Instant::now() + waits.begin;
        let token = random_token();
        let Publish { subject, headers, payload } = publish;
        let headers = headers.finish();
        let size = headers.len() + payload.len();
        if size as u64 > shared.max_payload {
            let kind = FailureKind::TooLarge { limit: shared.max_payload };
            return Err(Failure { kind, sent: false });
        }
        let exchange = Rc::new(Exchange {
            subject: subject.clone(),
            stage: Cell::new(Stage::Queued),
            reply: RefCell::new(None),
            forbidden: Cell::new(false),
            changed: Notify::new(),
        });
        let not_begun = || Failure { kind: FailureKind::NotBegun, sent: false };
        time::timeout_at(begun_until, shared.room_for(size)).await.map_err(|_| not_begun())?;
        let _place = Place { shared, exchange: &exchange, token: &token };
        if shared.ended.borrow().is_none() {
            shared.waiting.borrow_mut().insert(token.clone(), Rc::clone(&exchange));
            shared.strays.set(shared.strays.get().saturating_sub(STRAYS_A_REQUEST));
            shared.push(Frame {
                head: head(subject, &shared.inbox, &token, &headers, size),
                payload,
                taken: 0,
                exchange: Some(Rc::clone(&exchange)),
            });
        }

        let mut deadline = begun_until;
        let mut stage = Stage::Queued;
        loop {
            if let Some(reply) = exchange.reply.borrow_mut().take() {
                return reply.ok_or(Failure { kind: FailureKind::BadReply, sent: true });
            }
            if exchange.forbidden.get() {
                // Permissions may have changed while it was on its way: then nobody knows.
                let sent = shared.answered.borrow().contains(&exchange.subject);
                return Err(Failure { kind: FailureKind::Forbidden, sent });
            }
            let now = exchange.stage.get();
            let sent = now >= Stage::Begun;
            if let Some(ended) = &*shared.ended.borrow() {
                return Err(Failure { kind: FailureKind::Lost(ended.clone()), sent });
            }
            if now != stage {
                stage = now;
                deadline = Instant::now() + waits.reply;
            }
            let changed = exchange.changed.notified();
            if time::timeout_at(deadline, changed).await.is_err() {
                match exchange.stage.get() {
                    Stage::Queued => return Err(not_begun()),
                    // Half of it is out: the connection goes on writing, or ends as stalled, and tells.
                    Stage::Sealed | Stage::Begun => deadline += shared.stall_timeout,
                    Stage::Written if stage == Stage::Written => {
                        return Err(Failure { kind: FailureKind::TimedOut, sent: true });
                    }
                    Stage::Written => {}
                }
            }
        }
    }

    /// Reads and writes until the connection ends, and says why it did. To be called once.
    pub(crate) async fn drive(&self) -> Ended {
        let shared = &*self.0;
        let Some(wire) = shared.wire.borrow().clone() else { return Ended::Dropped };
        let ended = tokio::select! {
            biased;
            () = shared.ends.notified() => Ended::Dropped,
            ended = shared.read(&wire) => ended,
            ended = shared.write(&wire) => ended,
            ended = shared.ping() => ended,
        };
        shared.end(ended.clone());
        ended
    }

    /// Returns when the server says that it is about to go. One caller at a time.
    pub(crate) async fn leaves(&self) {
        self.0.leaves.notified().await;
    }

    /// Ends it: what was not begun is never sent.
    pub(crate) fn end(&self) {
        self.0.end(Ended::Dropped);
        self.0.ends.notify_one();
    }
}

impl Shared {
    /// Everybody who waits is told, and nothing is written any more.
    fn end(&self, why: Ended) {
        self.ended.borrow_mut().get_or_insert(why);
        self.wire.borrow_mut().take();
        self.frames.borrow_mut().clear();
        for exchange in self.waiting.borrow().values() {
            exchange.changed.notify_one();
        }
        self.room.notify_waiters();
    }

    fn has_ended(&self) -> bool {
        self.ended.borrow().is_some()
    }

    /// Returns when there is room for so many bytes, or the connection has ended.
    async fn room_for(&self, size: usize) {
        loop {
            let written = self.room.notified();
            let unwritten = self.unwritten.get();
            if unwritten == 0 || unwritten + size <= UNWRITTEN_MAX || self.has_ended() {
                return;
            }
            written.await;
        }
    }

    fn push(&self, frame: Frame) {
        self.unwritten.set(self.unwritten.get() + frame.len());
        let mut frames = self.frames.borrow_mut();
        frames.push_back(frame);
        let alone = frames.len() == 1;
        drop(frames);
        // With nothing before it, it need not wait for the writer's turn. What fails here fails there again.
        if !alone || !matches!(self.write_some(), Ok(true)) {
            self.to_write.notify_one();
        }
    }

    fn withdraw(&self, exchange: &Rc<Exchange>) {
        let mut frames = self.frames.borrow_mut();
        let of = |frame: &Frame| frame.exchange.as_ref().is_some_and(|e| Rc::ptr_eq(e, exchange));
        if let Some(frame) = frames.iter().position(of).and_then(|at| frames.remove(at)) {
            self.unwritten.set(self.unwritten.get() - frame.len());
            self.room.notify_waiters();
        }
    }

    /// Writes what the kernel takes at once. True where nothing is left.
    fn write_some(&self) -> io::Result<bool> {
        let Some(wire) = self.wire.borrow().clone() else { return Ok(true) };
        loop {
            let mut frames = self.frames.borrow_mut();
            let mut taken = match self.hand_over(&wire, &frames) {
                Ok(Some(taken)) => taken,
                Ok(None) => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            };
            self.unwritten.set(self.unwritten.get() - taken);
            while let Some(frame) = frames.front_mut().filter(|_| taken > 0) {
                let of_it = taken.min(frame.len() - frame.taken);
                frame.taken += of_it;
                taken -= of_it;
                let whole = frame.taken == frame.len();
                if let Some(exchange) = &frame.exchange {
                    exchange.advance(if whole { Stage::Written } else { Stage::Begun });
                }
                if whole {
                    frames.pop_front();
                }
            }
            self.room.notify_waiters();
        }
    }

    /// Hands the first of the frames to the kernel, under TLS one record at a time; says how many bytes of them it took,
    /// none where nothing is left.
    fn hand_over(&self, wire: &Wire, frames: &VecDeque<Frame>) -> io::Result<Option<usize>> {
        if !wire.has_sealed() {
            let left: SmallVec<[Bytes; 8]> =
                frames.iter().take(FRAMES_AT_ONCE).flat_map(Frame::left).collect();
            if left.is_empty() {
                return Ok(None);
            }
            let slices: SmallVec<[IoSlice<'_>; 8]> = left.iter().map(|part| IoSlice::new(part)).collect();
            if !wire.is_tls() {
                return wire.try_write_vectored(&slices).map(Some);
            }
            self.sealed.set(wire.seal(&slices)?);
            advance(frames, self.sealed.get(), Stage::Sealed);
        }
        let whole = wire.write_sealed()?;
        advance(frames, self.sealed.get(), Stage::Begun);
        Ok(Some(if whole { self.sealed.take() } else { 0 }))
    }

    async fn write(&self, wire: &Wire) -> Ended {
        loop {
            match self.write_some() {
                Ok(true) => self.to_write.notified().await,
                Ok(false) => match time::timeout(self.stall_timeout, wire.writable()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return Ended::Io(error.to_string()),
                    Err(_) => return Ended::Stalled,
                },
                Err(error) => return Ended::Io(error.to_string()),
            }
        }
    }

    async fn read(&self, wire: &Wire) -> Ended {
        let (mut decoder, mut buffer) = self.rest.borrow_mut().take().unwrap_or_default();
        let mut reads = 0;
        loop {
            loop {
                match decoder.next(&mut buffer) {
                    Ok(Some(op)) => self.heard(op),
                    Ok(None) => break,
                    Err(error) => return Ended::Server(error.to_string()),
                }
                if self.strays.get() > STRAYS_MAX {
                    return Ended::Strays;
                }
            }
            reads += 1;
            if reads == READS_AT_ONCE {
                // A socket that always has bytes would never let go of the thread.
                tokio::task::yield_now().await;
                reads = 0;
            }
            if let Err(error) = wire.readable().await {
                return Ended::Io(error.to_string());
            }
            buffer.reserve(READ);
            match wire.try_read(&mut buffer) {
                Ok(0) => return Ended::Closed,
                Ok(_) => self.heard.set(Instant::now()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Ended::Io(error.to_string()),
            }
            // TLS may have words of its own to send for what it read.
            if wire.has_sealed() {
                self.to_write.notify_one();
            }
        }
    }

    fn heard(&self, op: ServerOp) {
        match op {
            // One that asks and does not read is not answered beyond the bound.
            ServerOp::Ping if self.unwritten.get() > UNWRITTEN_MAX => {}
            ServerOp::Ping => self.push(Frame::own(b"PONG\r\n")),
            ServerOp::Message(subject, message) => {
                let exchange = subject
                    .strip_prefix(&self.inbox)
                    .and_then(|token| self.waiting.borrow_mut().remove(token));
                let Some(exchange) = exchange else {
                    self.strays.set(self.strays.get() + 1);
                    return;
                };
                let mut answered = self.answered.borrow_mut();
                if !answered.contains(&exchange.subject) {
                    answered.insert(exchange.subject.clone());
                }
                *exchange.reply.borrow_mut() = Some(message);
                exchange.changed.notify_one();
            }
            ServerOp::Err(text) => self.refused(&text),
            ServerOp::Info(info) if info.ldm => self.leaves.notify_one(),
            ServerOp::Info(_) | ServerOp::Pong | ServerOp::Ok => {}
        }
    }

    /// The server complains. Of a subject that may not be published to, those who tried are told; after most other
    /// complaints it closes the connection by itself.
    fn refused(&self, text: &str) {
        let subject =
            text.strip_prefix("Permissions Violation for Publish to \"").and_then(|t| t.split('"').next());
        let Some(subject) = subject else {
            tracing::warn!(server = %self.peer, error = %text, "a NATS server complained");
            return;
        };
        for exchange in self.waiting.borrow().values().filter(|e| e.subject.as_str() == subject) {
            exchange.forbidden.set(true);
            exchange.changed.notify_one();
        }
    }

    async fn ping(&self) -> Ended {
        loop {
            let asked = Instant::now();
            self.push(Frame::own(b"PING\r\n"));
            time::sleep(self.ping_interval).await;
            if self.heard.get() < asked {
                return Ended::Silent;
            }
        }
    }
}

/// Has those know whose frames are among the first `bytes` that are left.
fn advance(frames: &VecDeque<Frame>, bytes: usize, stage: Stage) {
    let mut before = 0;
    for frame in frames {
        if before >= bytes {
            return;
        }
        before += frame.len() - frame.taken;
        if let Some(exchange) = &frame.exchange {
            exchange.advance(stage);
        }
    }
}

/// `HPUB subject reply headers total`, and the headers.
fn head(subject: &Subject, inbox: &str, token: &str, headers: &[u8], total: usize) -> Bytes {
    let line = format!("HPUB {subject} {inbox}{token} {} {total}\r\n", headers.len());
    [line.as_bytes(), headers].concat().into()
}

/// 128 random bits: what makes an inbox that no other service can guess and answer to.
fn random_token() -> String {
    let mut bytes = [0; 16];
    // As for every secret of this process: without randomness there is none to be had.
    getrandom::fill(&mut bytes).expect("the operating system has randomness");
    bytes.iter().fold(String::with_capacity(32), |mut token, byte| {
        let _ = write!(token, "{byte:02x}");
        token
    })
}

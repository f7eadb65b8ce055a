//! The log's way out: buffers of whole records to one writer thread, over a bounded channel that nobody waits at.
//!
//! Invariants:
//! - what waits for the writer is at most [`bounds::LOG_QUEUE`] plus [`bounds::LOG_RESERVE`] bytes of buffers;
//! - a record is written whole or, where the target fails, counted as dropped; after a failure in the middle of a
//!   line the next record begins a new one;
//! - each dropped record is counted once, and told by an event as soon as the target takes one.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Write},
    os::{fd::AsFd as _, unix::fs::OpenOptionsExt as _},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use serde_json::json;
use tokio::sync::oneshot;

use crate::{bounds, record::Records};

/// How often drops are told at most, and how long they stay untold at most on a quiet node.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// How long the writer waits before it tries again at a target that is set to not block and is full.
const FULL_TARGET_PAUSE: Duration = Duration::from_millis(5);

/// What was lost since the start. Counted by whoever drops, read by the writer and by metrics.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) records: AtomicU64,
    pub(crate) spans: AtomicU64,
}

/// Records on their way to the writer.
struct Chunk {
    bytes: Vec<u8>,
    records: u64,
    /// Bytes of memory that count against the bound until written.
    held: usize,
    /// Where the buffer goes back to, when it is one of a worker's.
    home: Option<SyncSender<Vec<u8>>>,
}

enum Message {
    Chunk(Chunk),
    Flush(oneshot::Sender<()>),
}

/// The sending side. Cheap to clone; the writer thread ends when the last one is gone and all is written.
#[derive(Clone)]
pub(crate) struct LogQueue {
    sender: SyncSender<Message>,
    held: Arc<AtomicUsize>,
    counters: Arc<Counters>,
}

/// Opens a log file for appending: made where there is none, readable by owner and group.
pub(crate) fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

/// The process's standard output, without the buffer and the lock that `std::io::stdout` puts before it.
pub(crate) fn stdout() -> io::Result<File> {
    Ok(File::from(io::stdout().as_fd().try_clone_to_owned()?))
}

impl LogQueue {
    /// Starts the writer thread on `target`.
    pub(crate) fn start(target: Box<dyn Write + Send>, counters: Arc<Counters>) -> io::Result<Self> {
        let (sender, inbox) = mpsc::sync_channel(bounds::LOG_SLOTS);
        let held = Arc::new(AtomicUsize::new(0));
        let writer = Writer {
            target,
            torn: false,
            inbox,
            held: Arc::clone(&held),
            counters: Arc::clone(&counters),
            told: (0, 0),
            records: Records::new(),
        };
        thread::Builder::new().name("beamline-log".to_owned()).spawn(move || writer.run())?;
        Ok(Self { sender, held, counters })
    }

    /// Hands over one record that is not a worker's, such as an event.
    pub(crate) fn push(&self, bytes: Vec<u8>) {
        let held = bytes.capacity();
        let chunk = Chunk { bytes, records: 1, held, home: None };
        _ = self.offer(chunk, bounds::LOG_QUEUE + bounds::LOG_RESERVE);
    }

    /// Gives the chunk to the writer, or counts its records as dropped and gives its buffer back.
    fn offer(&self, chunk: Chunk, bound: usize) -> Result<(), Vec<u8>> {
        let held = chunk.held;
        let refused = if self.held.fetch_add(held, Ordering::Relaxed) + held > bound {
            chunk
        } else {
            match self.sender.try_send(Message::Chunk(chunk)) {
                Ok(()) => return Ok(()),
                Err(
                    TrySendError::Full(Message::Chunk(c)) | TrySendError::Disconnected(Message::Chunk(c)),
                ) => c,
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                    unreachable!("a chunk was sent")
                }
            }
        };
        self.held.fetch_sub(held, Ordering::Relaxed);
        self.counters.records.fetch_add(refused.records, Ordering::Relaxed);
        Err(refused.bytes)
    }

    /// Returns when everything that was handed over before is written (or dropped).
    ///
    /// Cancel safe: what was handed over is written all the same.
    pub(crate) async fn flush(&self) {
        let (ack, done) = oneshot::channel();
        let mut message = Message::Flush(ack);
        loop {
            match self.sender.try_send(message) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) => message = back,
                Err(TrySendError::Disconnected(_)) => return,
            }
            tokio::time::sleep(FULL_TARGET_PAUSE).await;
        }
        // An error means that the writer is gone, and everything before it with it.
        _ = done.await;
    }
}

/// A worker's own buffer, filled without touching anything shared.
pub(crate) struct LogBuffer {
    queue: LogQueue,
    bytes: Vec<u8>,
    records: u64,
    pub(crate) format: Records,
    /// Buffers that the writer is done with.
    returned: Receiver<Vec<u8>>,
    home: SyncSender<Vec<u8>>,
}

/// Buffers of one worker that are kept for reuse. More are freed: they were for a burst.
const KEPT_BUFFERS: usize = 4;
/// A record rarely has more bytes than this: so close to full, a buffer is handed over rather than grown.
const ROOM_FOR_ONE: usize = 4 << 10;

impl LogBuffer {
    pub(crate) fn new(queue: LogQueue) -> Self {
        let (home, returned) = mpsc::sync_channel(KEPT_BUFFERS);
        Self { queue, bytes: Vec::new(), records: 0, format: Records::new(), returned, home }
    }

    /// Appends one record by `write`; hands the buffer over where it is full by then.
    pub(crate) fn append(&mut self, write: impl FnOnce(&mut Records, &mut Vec<u8>)) {
        if self.bytes.capacity() == 0 {
            self.bytes = self.returned.try_recv().unwrap_or_else(|_| Vec::with_capacity(bounds::LOG_BUFFER));
        }
        write(&mut self.format, &mut self.bytes);
        self.records += 1;
        if self.bytes.len() > bounds::LOG_BUFFER - ROOM_FOR_ONE {
            self.hand_over();
        }
    }

    /// Hands over what there is.
    pub(crate) fn hand_over(&mut self) {
        if self.records == 0 {
            return;
        }
        let bytes = std::mem::take(&mut self.bytes);
        let held = bytes.capacity();
        let records = std::mem::take(&mut self.records);
        let chunk = Chunk { bytes, records, held, home: Some(self.home.clone()) };
        if let Err(mut bytes) = self.queue.offer(chunk, bounds::LOG_QUEUE) {
            bytes.clear();
            self.bytes = bytes;
        }
    }
}

impl Drop for LogBuffer {
    fn drop(&mut self) {
        self.hand_over();
    }
}

struct Writer {
    target: Box<dyn Write + Send>,
    /// The last thing written was the beginning of a line whose rest failed.
    torn: bool,
    inbox: Receiver<Message>,
    held: Arc<AtomicUsize>,
    counters: Arc<Counters>,
    /// The drops that events told of: records and spans.
    told: (u64, u64),
    records: Records,
}

impl Writer {
    fn run(mut self) {
        let mut next_telling = Instant::now();
        loop {
            let ended = match self.inbox.recv_timeout(TELL_EVERY) {
                Ok(Message::Chunk(chunk)) => {
                    self.take(chunk);
                    false
                }
                Ok(Message::Flush(ack)) => {
                    self.tell_drops();
                    // The one who asked may have given up.
                    _ = ack.send(());
                    false
                }
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => true,
            };
            let now = Instant::now();
            if ended || now >= next_telling {
                self.tell_drops();
                next_telling = now + TELL_EVERY;
            }
            if ended {
                return;
            }
        }
    }

    fn take(&mut self, chunk: Chunk) {
        let Chunk { mut bytes, records, held, home } = chunk;
        let whole = self.write(&bytes);
        self.counters.records.fetch_add(records.saturating_sub(whole), Ordering::Relaxed);
        self.held.fetch_sub(held, Ordering::Relaxed);
        if let Some(home) = home
            && bytes.capacity() <= 2 * bounds::LOG_BUFFER
        {
            bytes.clear();
            // Full or gone: the buffer is freed.
            _ = home.try_send(bytes);
        }
    }

    /// Writes whole lines; says how many of them were.
    fn write(&mut self, lines: &[u8]) -> u64 {
        let mut written = 0;
        if self.torn && self.write_some(b"\n").is_ok() {
            self.torn = false;
        }
        if !self.torn {
            while written < lines.len() {
                match self.write_some(&lines[written..]) {
                    Ok(n) => written += n,
                    Err(_) => break,
                }
            }
            self.torn = written > 0 && lines[written - 1] != b'\n';
        }
        lines[..written].iter().filter(|b| **b == b'\n').count() as u64
    }

    /// Writes at least one byte, over interruptions and over a target that would block.
    fn write_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.target.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(FULL_TARGET_PAUSE),
                other => return other,
            }
        }
    }

    /// Writes an event where something was dropped since the last one.
    fn tell_drops(&mut self) {
        let now =
            (self.counters.records.load(Ordering::Relaxed), self.counters.spans.load(Ordering::Relaxed));
        if now == self.told {
            return;
        }
        let fields = json!({
            "records": now.0 - self.told.0, "spans": now.1 - self.told.1,
            "records_total": now.0, "spans_total": now.1,
        });
        let mut line = vec![];
        self.records.event(&mut line, SystemTime::now(), "telemetry.dropped", fields);
        if self.write(&line) == 1 {
            self.told = now;
        }
    }
}

#[cfg(test)]
mod tests;

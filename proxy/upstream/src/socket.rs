//! A connection's socket as hyper sees it, with what only the socket knows: how many bytes left, what the head
//! looked like on the wire, whether the peer still listens.

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use rustix::{io::Errno, net::RecvFlags};
use tokio::net::TcpStream;

/// The longest request head that is kept for sending it again. A longer one is sent once.
const HEAD_KEPT: usize = 16 * 1024;

/// Shared between hyper's connection, which reads and writes, and the exchange, which asks.
pub(crate) struct Socket {
    stream: RefCell<TokioIo<TcpStream>>,
    /// Bytes that the operating system took, over the connection's life.
    written: Cell<u64>,
    /// What `written` was when the current request began.
    mark: Cell<u64>,
    /// Whether the next write is the first of a request, so begins with its head.
    head_next: Cell<bool>,
    /// The head of the last request as it was written. Copying it (3 ns) is what spares each request a clone of
    /// its header map (330 ns, measured with 12 fields) for the rare case that it must be sent again.
    head: RefCell<Vec<u8>>,
    /// Whether the last write found the peer's window full.
    blocked: Cell<bool>,
    /// Whether a write failed after the current request had begun to leave.
    deaf: Cell<bool>,
    /// Whether the exchange was given up: nothing more may leave.
    given_up: Cell<bool>,
}

impl Socket {
    pub(crate) fn new(stream: TcpStream) -> Rc<Self> {
        Rc::new(Self {
            stream: RefCell::new(TokioIo::new(stream)),
            written: Cell::new(0),
            mark: Cell::new(0),
            head_next: Cell::new(false),
            head: RefCell::default(),
            blocked: Cell::new(false),
            deaf: Cell::new(false),
            given_up: Cell::new(false),
        })
    }

    /// A request is about to be sent.
    pub(crate) fn begin(&self) {
        self.mark.set(self.written.get());
        self.head_next.set(true);
    }

    /// Whether a byte of the current request left.
    pub(crate) fn has_sent(&self) -> bool {
        self.written.get() != self.mark.get()
    }

    /// Bytes that left so far, to tell progress by.
    pub(crate) fn written(&self) -> u64 {
        self.written.get()
    }

    /// Whether the upstream does not take what there is to send.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked.get()
    }

    /// Whether the peer stopped reading for good. What is written then goes nowhere; what it wrote before can
    /// still be read.
    pub(crate) fn is_deaf(&self) -> bool {
        self.deaf.get()
    }

    /// Lets nothing leave any more.
    pub(crate) fn give_up(&self) {
        self.given_up.set(true);
    }

    pub(crate) fn is_given_up(&self) -> bool {
        self.given_up.get()
    }

    /// The current request's head as it was written, or none where none was written or it was too long to keep.
    pub(crate) fn take_head(&self) -> Option<Vec<u8>> {
        let head = self.head.take();
        (!self.head_next.get() && !head.is_empty()).then_some(head)
    }

    /// Asks the kernel whether an idle connection still stands: no end of stream, no stray bytes, no error.
    ///
    /// One system call, for requests that must not be sent twice.
    pub(crate) fn still_stands(&self) -> bool {
        let stream = self.stream.borrow();
        let mut byte = [0_u8; 1];
        let peeked = rustix::net::recv(stream.inner(), &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT);
        matches!(peeked, Err(Errno::AGAIN | Errno::INTR))
    }

    fn closed_to_writes(&self, wanted: usize) -> Option<io::Result<usize>> {
        if self.given_up.get() {
            Some(Err(io::ErrorKind::ConnectionAborted.into()))
        } else {
            self.is_deaf().then_some(Ok(wanted))
        }
    }

    fn keep_head(&self, first: &[u8]) {
        if !self.head_next.replace(false) {
            return;
        }
        let mut head = self.head.borrow_mut();
        head.clear();
        if first.len() <= HEAD_KEPT {
            head.extend_from_slice(first);
        }
    }

    /// Counts what was written, and hides that the peer stopped reading once the request had begun to leave: an
    /// upstream that answers early and closes has its answer in our receive buffer, which hyper would drop at the
    /// first failing write. Where there is no answer, reading says so at once.
    fn account(&self, wanted: usize, wrote: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.blocked.set(wrote.is_pending());
        match wrote {
            Poll::Ready(Ok(n)) => {
                self.written.set(self.written.get() + n as u64);
                Poll::Ready(Ok(n))
            }
            Poll::Ready(Err(error)) if self.has_sent() && is_gone(&error) => {
                self.deaf.set(true);
                Poll::Ready(Ok(wanted))
            }
            other => other,
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted
    )
}

/// The face that hyper reads from and writes to.
pub(crate) struct Io(pub(crate) Rc<Socket>);

impl Read for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_read(cx, buf)
    }
}

impl Write for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let socket = &*self.0;
        if let Some(answer) = socket.closed_to_writes(buf.len()) {
            return Poll::Ready(answer);
        }
        socket.keep_head(buf);
        socket.account(buf.len(), Pin::new(&mut *socket.stream.borrow_mut()).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // A head alone leaves by a plain write, which is cheaper than a vectored one of a single piece.
        if let [only] = bufs {
            return self.poll_write(cx, only);
        }
        let socket = &*self.0;
        let wanted = bufs.iter().map(|b| b.len()).sum();
        if let Some(answer) = socket.closed_to_writes(wanted) {
            return Poll::Ready(answer);
        }
        // hyper writes a head from one buffer, so the first holds all of it.
        socket.keep_head(bufs.first().map_or(&[], |b| &**b));
        socket.account(wanted, Pin::new(&mut *socket.stream.borrow_mut()).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.0.stream.borrow().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.stream.borrow_mut()).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, io::Read as _};

    use super::*;

    async fn connected() -> (Rc<Socket>, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Socket::new(stream), listener.accept().unwrap().0)
    }

    async fn write(socket: &Rc<Socket>, bytes: &[u8]) -> io::Result<usize> {
        let mut io = Io(Rc::clone(socket));
        poll_fn(|cx| Pin::new(&mut io).poll_write(cx, bytes)).await
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_left_is_counted_from_the_beginning_of_each_request() {
        let (socket, _peer) = connected().await;
        for n in 1..4 {
            socket.begin();
            assert!(!socket.has_sent());
            write(&socket, b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            assert!(socket.has_sent());
            assert_eq!(socket.written(), n * 18);
            assert_eq!(socket.take_head().as_deref(), Some(&b"GET / HTTP/1.1\r\n\r\n"[..]));
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn once_given_up_nothing_leaves() {
        let (socket, mut peer) = connected().await;
        socket.begin();
        socket.give_up();
        assert!(write(&socket, b"late").await.is_err());
        assert!(!socket.has_sent() && socket.take_head().is_none());
        drop(socket);
        let mut seen = Vec::new();
        peer.read_to_end(&mut seen).unwrap();
        assert!(seen.is_empty());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_head_too_long_to_keep_is_not_kept() {
        let (socket, _peer) = connected().await;
        socket.begin();
        write(&socket, &[b'x'; HEAD_KEPT + 1]).await.unwrap();
        assert!(socket.has_sent() && socket.take_head().is_none());
    }
}

//! One client connection: HTTP/1.1 on it, and its end when the node drains.

use std::{
    cell::Cell,
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::{
    rt::{Read, ReadBufCursor, Write},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpStream, sync::watch};

use crate::{
    pipeline,
    worker::{Shared, Stage},
};

/// The most bytes that hyper buffers of a connection's input; a head must fit.
const MAX_BUFFER: usize = 128 << 10;

/// What the drain must know of a connection.
#[derive(Default)]
struct Activity {
    /// Something was read since the drain last looked.
    read: Cell<bool>,
    /// Requests whose response has not been handed over whole.
    in_flight: Cell<u32>,
}

/// A request under way, for as long as this lives: held by its response's body.
pub(crate) struct InFlight(Rc<Activity>, Rc<Shared>);

impl InFlight {
    fn begin(activity: &Rc<Activity>, worker: &Rc<Shared>) -> Self {
        activity.in_flight.set(activity.in_flight.get() + 1);
        worker.in_flight.set(worker.in_flight.get() + 1);
        Self(Rc::clone(activity), Rc::clone(worker))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
        self.1.in_flight.set(self.1.in_flight.get() - 1);
    }
}

/// The socket, with a note of what was read.
struct Watched {
    io: TokioIo<TcpStream>,
    activity: Rc<Activity>,
}

impl Read for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if read.is_ready() {
            self.activity.read.set(true);
        }
        read
    }
}

impl Write for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Serves a connection to its end.
///
/// While the node drains, a response under way is finished and closes the connection; a connection without a
/// request is closed only after nothing has come in for `idle_grace`: hyper closes idle ones without reading what
/// may already be there (hyper#3808), which a client would see as a request cut off.
pub(crate) async fn serve(
    worker: Rc<Shared>,
    stream: TcpStream,
    client: SocketAddr,
    mut stage: watch::Receiver<Stage>,
) {
    // What is small goes out at once. Without the option it only goes out later.
    let _ = stream.set_nodelay(true);
    let activity = Rc::new(Activity::default());
    let io = Watched { io: TokioIo::new(stream), activity: Rc::clone(&activity) };
    let service = service_fn(|request| {
        let (worker, in_flight) = (Rc::clone(&worker), InFlight::begin(&activity, &worker));
        async move {
            let response = pipeline::handle(worker, client, request).await;
            Ok::<_, Infallible>(response.map(|body| body.during(in_flight)))
        }
    });
    let connection = http1::Builder::new()
        // A small head and body leave in one write this way; vectored writes measured slower.
        .writev(false)
        .timer(TokioTimer::new())
        .header_read_timeout(worker.settings.header_read_timeout)
        .max_buf_size(MAX_BUFFER)
        // At most 100 fields, hyper's default: saying so would move its parse buffer to the heap, for 5% of its time.
        .serve_connection(io, service);
    let mut connection = pin!(connection);

    let mut draining = pin!(async {
        // The sender lives as long as the workers; without it the node is ending anyway.
        let _ = stage.wait_for(|stage| *stage == Stage::Close).await;
    });
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => Some(ended),
        () = draining.as_mut() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            let quiet = worker.settings.drain.idle_grace;
            let ended = finish(connection.as_mut(), &activity, quiet).await;
            match ended {
                Some(ended) => ended,
                None => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
        }
    };
    if let Err(error) = ended
        && (error.is_parse() || error.is_timeout())
    {
        worker.protocol_error(client, &error);
    }
}

/// Runs the connection until it ends, has a request to finish, or has been quiet for `grace`.
async fn finish<C>(mut connection: Pin<&mut C>, activity: &Activity, grace: Duration) -> Option<C::Output>
where
    C: Future,
{
    loop {
        if activity.in_flight.get() > 0 {
            return None;
        }
        activity.read.set(false);
        tokio::select! {
            // The connection first: what has come in is read before it is judged quiet.
            biased;
            ended = connection.as_mut() => return Some(ended),
            () = tokio::time::sleep(grace) => {}
        }
        if !activity.read.get() && activity.in_flight.get() == 0 {
            return None;
        }
    }
}

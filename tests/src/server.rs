//! A TCP server on its own threads that can be stopped so that its port refuses, and started again on that port.
//! The origin and the OTLP receiver are built on it.

use std::{
    collections::HashMap,
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::ports::Port;

/// The most connections at once; further ones are closed as soon as they are accepted.
const MAX_CONNECTIONS: usize = 2048;

/// What is done with each connection, on a thread of its own. It should return once a read or write fails.
pub(crate) type Handler = Arc<dyn Fn(TcpStream, u64) + Send + Sync>;

pub(crate) struct Server {
    name: &'static str,
    port: Port,
    handler: Handler,
    live: Arc<Live>,
    running: Option<(TcpListener, JoinHandle<()>)>,
}

/// The connections that stand. Shared by the accepting thread and each connection's.
#[derive(Default)]
struct Live {
    streams: Mutex<HashMap<u64, TcpStream>>,
    one_ended: Condvar,
    next: AtomicU64,
}

impl Live {
    fn streams(&self) -> MutexGuard<'_, HashMap<u64, TcpStream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the connection out of `Live` whatever way its handler ends.
struct Ended(Arc<Live>, u64);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.streams().remove(&self.1);
        self.0.one_ended.notify_all();
    }
}

impl Server {
    pub(crate) fn start(name: &'static str, port: Port, handler: Handler) -> Result<Self> {
        let mut server = Self { name, port, handler, live: Arc::default(), running: None };
        server.start_again()?;
        Ok(server)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.port.address()
    }

    pub(crate) fn runs(&self) -> bool {
        self.running.is_some()
    }

    pub(crate) fn start_again(&mut self) -> Result<()> {
        ensure!(self.running.is_none(), "{} at {} runs already", self.name, self.address());
        // The standard library sets SO_REUSEADDR: connections in TIME_WAIT don't keep the port.
        let listener = TcpListener::bind(self.address())
            .with_context(|| format!("{} cannot listen on {}", self.name, self.address()))?;
        let accepting = listener.try_clone()?;
        let (live, handler) = (self.live.clone(), self.handler.clone());
        let thread = std::thread::Builder::new()
            .name(self.name.into())
            .spawn(move || accept(&accepting, &live, &handler))?;
        self.running = Some((listener, thread));
        Ok(())
    }

    /// Closes the listener and every connection. When this returns, connecting is refused.
    pub(crate) fn stop(&mut self) {
        let Some((listener, thread)) = self.running.take() else { return };
        // Wakes the accepting thread with an error; closing the descriptor alone would not.
        let _ = rustix::net::shutdown(&listener, rustix::net::Shutdown::Both);
        let _ = thread.join();
        drop(listener);
        let mut streams = self.live.streams();
        for stream in streams.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // A handler that sleeps ends when its sleep does; don't wait for it longer than this.
        let mut patience = 50;
        while !streams.is_empty() && patience > 0 {
            (streams, _) = self
                .live
                .one_ended
                .wait_timeout(streams, Duration::from_millis(100))
                .unwrap_or_else(PoisonError::into_inner);
            patience -= 1;
        }
    }

    /// Waits until no connection stands; gives how many do by then.
    pub(crate) fn wait_closed(&self, within: Duration) -> usize {
        let some = |streams: &mut HashMap<u64, TcpStream>| !streams.is_empty();
        let waited = self.live.one_ended.wait_timeout_while(self.live.streams(), within, some);
        waited.unwrap_or_else(PoisonError::into_inner).0.len()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn accept(listener: &TcpListener, live: &Arc<Live>, handler: &Handler) {
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {
                continue;
            }
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => return, // shut down by `stop`
            Err(_) => {
                // Out of descriptors, most likely: others will end.
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let id = live.next.fetch_add(1, Ordering::Relaxed);
        let Ok(kept) = stream.try_clone() else { continue };
        {
            let mut streams = live.streams();
            if streams.len() >= MAX_CONNECTIONS {
                continue;
            }
            streams.insert(id, kept);
        }
        let ended = Ended(live.clone(), id);
        let handler = handler.clone();
        let _ = std::thread::Builder::new().stack_size(256 << 10).spawn(move || {
            let _ended = ended;
            handler(stream, id);
        });
    }
}

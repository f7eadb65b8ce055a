//! An origin that costs as little as can be, in the load generator's own thread: it answers every request with the
//! same bytes, but those whose target is `/status/NNN`, which get that status. Two cores are enough for a measurement then: one for the proxy, one for everything else.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
};

use anyhow::Result;
use rustix::event::epoll;

use super::wire::{Scanner, Side};

/// The most connections at once.
const MAX_CONNECTIONS: usize = 18_000;

/// Marks the epoll tokens of this origin among others.
pub(super) const TOKEN: u64 = 1 << 63;
const LISTENER: u64 = TOKEN | (1 << 62);

pub(super) struct Quick {
    listener: TcpListener,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    answer: Vec<u8>,
    answered: u64,
}

struct Connection {
    stream: TcpStream,
    scanner: Scanner,
}

impl Quick {
    /// Answers with a body of `body_bytes` bytes; answers and connections belong to `poll`'s set.
    pub(super) fn new(
        listener: TcpListener,
        body_bytes: usize,
        poll: &impl std::os::fd::AsFd,
    ) -> Result<Self> {
        listener.set_nonblocking(true)?;
        epoll::add(poll, &listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)?;
        let mut answer =
            format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {body_bytes}\r\n\r\n")
                .into_bytes();
        answer.extend((0..body_bytes).map(|i| b"0123456789abcdef"[i % 16]));
        Ok(Self { listener, connections: Vec::new(), free: Vec::new(), answer, answered: 0 })
    }

    pub(super) fn answered(&self) -> u64 {
        self.answered
    }

    /// Handles one event of a token that has [`TOKEN`] set.
    pub(super) fn on_event(&mut self, token: u64, poll: &impl std::os::fd::AsFd, buffer: &mut [u8]) {
        if token == LISTENER {
            self.accept(poll);
            return;
        }
        let slot = (token & !TOKEN) as usize;
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        match connection.on_readable(&self.answer, buffer) {
            Ok(answered) => self.answered += answered,
            // Closing takes it out of the set.
            Err(_) => {
                self.connections[slot] = None;
                self.free.push(slot);
            }
        }
    }

    fn accept(&mut self, poll: &impl std::os::fd::AsFd) {
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_err() || stream.set_nodelay(true).is_err() {
                continue;
            }
            let slot = match self.free.pop() {
                Some(slot) => slot,
                None if self.connections.len() < MAX_CONNECTIONS => {
                    self.connections.push(None);
                    self.connections.len() - 1
                }
                None => continue,
            };
            let data = epoll::EventData::new_u64(TOKEN | slot as u64);
            if epoll::add(poll, &stream, data, epoll::EventFlags::IN).is_err() {
                self.free.push(slot);
                continue;
            }
            self.connections[slot] = Some(Connection { stream, scanner: Scanner::new(Side::Requests) });
        }
    }
}

impl Connection {
    /// Answers what came; an error ends the connection.
    fn on_readable(&mut self, answer: &[u8], buffer: &mut [u8]) -> io::Result<u64> {
        let n = match self.stream.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => n,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(0);
            }
            Err(e) => return Err(e),
        };
        let mut rest = &buffer[..n];
        let mut answered = 0;
        while !rest.is_empty() {
            let seen =
                self.scanner.feed(&mut rest).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
            if let Some(seen) = seen {
                // A socket that can't take a small answer belongs to a peer that has stopped reading.
                match seen.status {
                    0 => self.stream.write_all(answer)?,
                    status => write!(self.stream, "HTTP/1.1 {status} Asked\r\ncontent-length: 0\r\n\r\n")?,
                }
                answered += 1;
                if seen.close {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
            }
        }
        Ok(answered)
    }
}

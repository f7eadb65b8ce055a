//! Listening sockets: made once, shared by all workers, given to a successor or drained without cutting anybody.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
};

use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use thiserror::Error;

/// Connections that may wait to be accepted. The kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// A socket that could not be listened on.
#[derive(Debug, Error)]
pub enum ListenError {
    /// Binding failed.
    #[error("cannot listen on {addr}")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// The operating system's reason.
        source: io::Error,
    },
    /// What was inherited is no listening TCP socket.
    #[error("a descriptor of LISTEN_FDS cannot be listened on")]
    Inherited(#[source] io::Error),
}

/// One listening socket. One for all workers: an idle worker takes the next connection, and there is one accept
/// queue to drain.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    addr: SocketAddr,
    inherited: bool,
}

impl Listener {
    /// Binds and listens.
    ///
    /// # Errors
    /// [`ListenError::Bind`].
    pub fn bind(addr: SocketAddr) -> Result<Self, ListenError> {
        let listen = || {
            let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            socket.set_nonblocking(true)?;
            socket.bind(&addr.into())?;
            socket.listen(BACKLOG)?;
            let socket = TcpListener::from(socket);
            let addr = socket.local_addr()?;
            Ok(Self { socket, addr, inherited: false })
        };
        listen().map_err(|source| ListenError::Bind { addr, source })
    }

    /// Takes over a socket that a predecessor or a service manager made.
    ///
    /// # Errors
    /// [`ListenError::Inherited`].
    pub fn inherit(fd: OwnedFd) -> Result<Self, ListenError> {
        let take = || {
            let socket = socket2::SockRef::from(&fd);
            if socket.r#type()? != Type::STREAM || !socket.is_listener()? {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "expected a TCP socket that listens",
                ));
            }
            // Not for the compile worker, nor for any other child.
            rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
            let socket = TcpListener::from(fd);
            socket.set_nonblocking(true)?;
            let addr = socket.local_addr()?;
            Ok(Self { socket, addr, inherited: true })
        };
        take().map_err(ListenError::Inherited)
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Whether somebody outside this process made it, and may hold it still.
    pub fn is_inherited(&self) -> bool {
        self.inherited
    }

    /// The socket itself, for whoever serves it in another way.
    pub fn into_std(self) -> TcpListener {
        self.socket
    }

    /// Another handle on the same socket, for a worker.
    pub(crate) fn handle(&self) -> io::Result<TcpListener> {
        self.socket.try_clone()
    }
}

/// Keeps new connections out of a listening socket while those that have begun get in, so that what is then
/// accepted until nothing is left is everything, and closing the socket resets nobody.
///
/// A classic BPF filter that drops segments with SYN and without ACK. Those clients try again a second later and
/// then find the port closed (or a successor). Without the right to attach filters nothing changes.
pub(crate) fn refuse_new(socket: &TcpListener) -> io::Result<()> {
    const LOAD_BYTE: u16 = 0x30; // BPF_LD | BPF_B | BPF_ABS
    const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
    const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const TCP_FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    const SYN_OR_ACK: u32 = 0x12;
    let program = [
        SockFilter::new(LOAD_BYTE, 0, 0, TCP_FLAGS),
        SockFilter::new(AND, 0, 0, SYN_OR_ACK),
        SockFilter::new(JUMP_EQUAL, 0, 1, SYN),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ];
    socket2::SockRef::from(socket).attach_filter(&program)
}

#[cfg(test)]
mod tests {
    use std::{net::TcpStream, time::Duration};

    use super::*;

    #[test]
    fn a_filtered_listener_keeps_who_is_in_and_lets_nobody_else_in() {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let early = TcpStream::connect(listener.local_addr()).unwrap();
        refuse_new(&listener.socket).unwrap();
        let late = TcpStream::connect_timeout(&listener.local_addr(), Duration::from_millis(300));
        assert!(late.is_err());
        let (_, peer) = listener.socket.accept().unwrap();
        assert_eq!(peer, early.local_addr().unwrap());
        assert_eq!(listener.socket.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}

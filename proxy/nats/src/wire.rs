//! The way to a server: a socket, in the clear or under TLS. Nothing rests here but one TLS record that the kernel has not
//! taken whole: what is in it cannot be taken back, for the next one would not be accepted without it.

use std::{
    cell::RefCell,
    io::{self, IoSlice, Read as _, Write as _},
};

use bytes::BytesMut;
use rustls::ClientConnection;
use tokio::net::TcpStream;

/// Plaintext that one record takes, the most that TLS lets it.
const RECORD: usize = 16 << 10;

/// A socket, and its TLS session where it has one.
pub(crate) struct Wire {
    socket: TcpStream,
    tls: Option<RefCell<ClientConnection>>,
}

impl Wire {
    pub(crate) fn plain(socket: TcpStream) -> Self {
        Self { socket, tls: None }
    }

    /// Puts it under TLS, when both sides have agreed; what came with that goes into `buffer`. Bounded by who calls: a
    /// server may take its time. After an error it is of no use.
    pub(crate) async fn secure(
        &mut self,
        mut session: ClientConnection,
        buffer: &mut BytesMut,
    ) -> Result<(), Failed> {
        session.set_buffer_limit(Some(RECORD));
        while session.is_handshaking() || session.wants_write() {
            while session.wants_write() {
                match session.write_tls(&mut Direct(&self.socket)) {
                    Ok(0) => return Err(Failed::Io(io::ErrorKind::WriteZero.into())),
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.socket.writable().await.map_err(Failed::Io)?;
                    }
                    Err(error) => return Err(Failed::Io(error)),
                }
            }
            if !session.is_handshaking() {
                break;
            }
            self.socket.readable().await.map_err(Failed::Io)?;
            match session.read_tls(&mut Direct(&self.socket)) {
                Ok(0) => return Err(Failed::Io(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(Failed::Io(error)),
            }
            if let Err(error) = session.process_new_packets() {
                // The server is told why, if its socket takes that now: its log says more then.
                let _ = session.write_tls(&mut Direct(&self.socket));
                return Err(Failed::Tls(error));
            }
        }
        take_plaintext(&mut session, buffer).map_err(Failed::Io)?;
        self.tls = Some(RefCell::new(session));
        Ok(())
    }

    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    pub(crate) async fn writable(&self) -> io::Result<()> {
        self.socket.writable().await
    }

    /// Reads what is there, at most some 16 KiB at once; 0 at the end.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where nothing is, or nothing yet that makes a whole record.
    pub(crate) fn try_read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        let Some(tls) = &self.tls else { return self.socket.try_read_buf(buffer) };
        let mut session = tls.borrow_mut();
        if session.read_tls(&mut Direct(&self.socket))? == 0 {
            return Ok(0);
        }
        // A record that waits would leave before an alert does, and whoever made it was told, or will be, that it has not.
        let clear = !session.wants_write();
        if let Err(error) = session.process_new_packets() {
            if clear {
                let _ = session.write_tls(&mut Direct(&self.socket));
            }
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        match take_plaintext(&mut session, buffer)? {
            Some(0) => Err(io::ErrorKind::WouldBlock.into()),
            Some(read) => Ok(read),
            None => Ok(0),
        }
    }

    /// Reads what comes; 0 at the end.
    pub(crate) async fn read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        loop {
            self.readable().await?;
            match self.try_read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }

    /// Writes all of it.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() || self.has_sealed() {
            let slices = [IoSlice::new(bytes)];
            let written = match &self.tls {
                None => self.try_write_vectored(&slices),
                Some(_) if self.has_sealed() => self.write_sealed().map(|_| 0),
                Some(_) => self.seal(&slices),
            };
            match written {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable().await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether what is written goes through [`seal`](Self::seal), or straight to the kernel.
    pub(crate) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// What the kernel takes of these at once.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where it takes nothing.
    pub(crate) fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        debug_assert!(self.tls.is_none(), "what is written under TLS is sealed first");
        match self.socket.try_write_vectored(slices)? {
            0 => Err(io::ErrorKind::WriteZero.into()),
            taken => Ok(taken),
        }
    }

    /// Whether a record waits for the kernel to take the rest of it.
    pub(crate) fn has_sealed(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.borrow().wants_write())
    }

    /// Puts the beginning of these into one record; says how many bytes. Only where none waits.
    pub(crate) fn seal(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        debug_assert!(!self.has_sealed(), "one record at a time");
        let Some(tls) = &self.tls else { return Ok(0) };
        match tls.borrow_mut().writer().write_vectored(slices)? {
            0 => Err(io::ErrorKind::WriteZero.into()),
            sealed => Ok(sealed),
        }
    }

    /// Writes what the kernel takes of the record at once. True where it has taken all of it.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where it takes nothing.
    pub(crate) fn write_sealed(&self) -> io::Result<bool> {
        let Some(tls) = &self.tls else { return Ok(true) };
        let mut session = tls.borrow_mut();
        match session.write_tls(&mut Direct(&self.socket))? {
            0 => Err(io::ErrorKind::WriteZero.into()),
            _ => Ok(!session.wants_write()),
        }
    }
}

/// Moves all that a session has read into `buffer`: what it kept would lie there until more bytes come. None where the
/// other side said that it was all, and nothing was left.
fn take_plaintext(session: &mut ClientConnection, buffer: &mut BytesMut) -> io::Result<Option<usize>> {
    let (before, mut chunk) = (buffer.len(), [0; 4096]);
    loop {
        match session.reader().read(&mut chunk) {
            Ok(0) => return Ok(Some(buffer.len() - before).filter(|read| *read > 0)),
            Ok(read) => buffer.extend_from_slice(&chunk[..read]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Ok(Some(buffer.len() - before));
            }
            Err(error) => return Err(error),
        }
    }
}

/// Why there is no TLS.
#[derive(Debug)]
pub(crate) enum Failed {
    Io(io::Error),
    Tls(rustls::Error),
}

/// A socket as the session reads and writes it: what goes at once.
struct Direct<'a>(&'a TcpStream);

impl io::Read for Direct<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(into)
    }
}

impl io::Write for Direct<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write as _},
        net::{TcpListener, TcpStream as Peer},
        sync::Arc,
        time::Duration,
    };

    use rustls::{
        ClientConfig, RootCertStore, ServerConfig, ServerConnection,
        crypto::aws_lc_rs,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    };

    use super::*;

    /// Both ends of a session, for a name and an authority of their own.
    fn configs() -> (ClientConfig, ServerConfig) {
        let key = rcgen::KeyPair::generate().unwrap();
        let cert =
            rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider));
        let client = client.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
        let server =
            ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let server = server.with_no_client_auth().with_single_cert(vec![cert.der().clone()], key).unwrap();
        (client.with_no_client_auth(), server)
    }

    /// All that comes until nothing does for a while.
    fn drained(peer: &mut Peer) -> Vec<u8> {
        peer.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let (mut all, mut piece) = (Vec::new(), vec![0; 1 << 16]);
        while let Ok(read @ 1..) = peer.read(&mut piece) {
            all.extend_from_slice(&piece[..read]);
        }
        all
    }

    /// How much of what a session's bytes say can be read.
    fn readable(session: &mut ServerConnection, mut bytes: &[u8]) -> usize {
        let (mut read, mut piece) = (0, vec![0; 1 << 16]);
        while !bytes.is_empty() {
            session.read_tls(&mut bytes).unwrap();
            session.process_new_packets().unwrap();
            while let Ok(some @ 1..) = session.reader().read(&mut piece) {
                read += some;
            }
        }
        read
    }

    #[test]
    fn what_the_kernel_has_not_taken_never_leaves_whatever_comes() {
        let (client, server) = configs();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let peer = std::thread::spawn(move || {
            let mut peer = listener.accept().unwrap().0;
            let mut session = ServerConnection::new(Arc::new(server)).unwrap();
            while session.is_handshaking() {
                session.complete_io(&mut peer).unwrap();
            }
            (peer, session)
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut wire = Wire::plain(TcpStream::connect(address).await.unwrap());
            let session = ClientConnection::new(Arc::new(client), "localhost".try_into().unwrap()).unwrap();
            wire.secure(session, &mut BytesMut::new()).await.unwrap();
            let (mut peer, mut session) = peer.join().unwrap();

            // Until the peer, which does not read, and both kernels hold all that they can.
            let (message, mut taken) = ([b'x'; RECORD], 0);
            wire.writable().await.unwrap();
            let mut refused = 0;
            while refused < 3 {
                if !wire.has_sealed() {
                    assert_eq!(wire.seal(&[IoSlice::new(&message)]).unwrap(), RECORD);
                }
                match wire.write_sealed() {
                    Ok(true) => (taken, refused) = (taken + 1, 0),
                    Ok(false) => {}
                    Err(error) => {
                        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                        refused += 1;
                        let _ = tokio::time::timeout(Duration::from_millis(50), wire.writable()).await;
                    }
                }
            }
            assert!(taken > 0 && wire.has_sealed(), "a record waits behind {taken}");

            // Then there is room again, and with it comes what is no record of this session.
            let mut sent = drained(&mut peer);
            peer.write_all(&[&[0x17, 3, 3, 0, 32], &[7; 32][..]].concat()).unwrap();
            let mut buffer = BytesMut::new();
            let broken = loop {
                wire.readable().await.unwrap();
                match wire.try_read(&mut buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    other => break other,
                }
            };
            assert_eq!(broken.unwrap_err().kind(), io::ErrorKind::InvalidData);
            sent.extend(drained(&mut peer));
            assert_eq!(readable(&mut session, &sent), taken * RECORD, "what was taken, and nothing else");
        });
    }
}

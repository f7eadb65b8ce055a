//! NATS connections: a small client whose one concern is that what it says of a message is true.
//!
//! - *Nothing rests in a buffer.* A message waits in its caller's hands until the kernel takes its bytes. What was not
//!   begun can be taken back, and is, where its caller goes away or the connection ends.
//! - *A connection is not mended.* When it ends, everything about it is dropped, the kernel's unsent bytes included;
//!   [`Client`] makes another after a jittered back-off. No message outlives the connection that it was handed to.
//! - *Sent or not is known.* Each failure says whether the kernel took a byte of its message.
//! - *A peer that is gone is noticed in seconds*: by a ping, and by bytes that it does not take.
//! - *Replies cannot be forged by another's service*: each request has an inbox of 128 random bits of its own.
//!
//! - *TLS is never given up.* Where it was asked for, or the server asks for it, nothing but the server's INFO passes in
//!   the clear. Certificates and secrets are read from their files for each connection.
//!
//! Floor 1, for one thread: [`Client`] lives in a `LocalSet` or a local runtime.

mod client;
mod connect;
mod connection;
mod credentials;
mod files;
mod headers;
mod nkey;
mod protocol;
mod settings;
mod tls;
mod wire;

pub use client::{Client, NotConnected};
pub use connect::ConnectError;
pub use connection::{Connection, Ended, Failure, FailureKind, Publish, Waits};
pub use credentials::Auth;
pub use headers::{HeaderBlock, InvalidHeader};
pub use protocol::Message;
pub use settings::{Change, ConnectionSettings, Connections, InvalidServer, ServerAddress};
pub use tls::{ClientCertificate, TlsSettings};

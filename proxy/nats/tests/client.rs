//! The client against servers that do what a test tells them.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails, in its helpers too")]

use std::{
    io::{BufRead as _, Write as _},
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use beamline_model::{ConnectionName, Subject};
use beamline_nats::{
    Auth, Client, ConnectError, Connection, ConnectionSettings, Connections, Ended, Failure, FailureKind,
    HeaderBlock, Message, NotConnected, Publish, TlsSettings, Waits,
};
use bytes::Bytes;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::LocalSet,
};

/// More than any step of a test takes on a busy machine; nothing waits for it while all is well.
const PATIENCE: Duration = Duration::from_secs(20);

fn on_a_worker<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bounded = async { tokio::time::timeout(PATIENCE, test).await.expect("it takes milliseconds") };
    LocalSet::new().block_on(&runtime, bounded)
}

struct Server(TcpListener);

/// A connection as its server has it.
struct Peer {
    from: BufReader<OwnedReadHalf>,
    to: OwnedWriteHalf,
    /// What CONNECT said.
    hello: String,
}

/// A message as a server reads it.
struct Published {
    subject: String,
    inbox: String,
    payload: String,
}

impl Server {
    async fn start() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    /// The next connection, taken.
    async fn accept(&self) -> Peer {
        let mut peer = Peer::new(self.0.accept().await.unwrap().0);
        peer.greet("{\"max_payload\":1048576,\"headers\":true}").await;
        peer.to.write_all(b"PONG\r\n").await.unwrap();
        assert!(peer.line().await.starts_with("SUB _INBOX_BEAMLINE."));
        peer
    }
}

impl Peer {
    fn new(stream: TcpStream) -> Self {
        let (from, to) = stream.into_split();
        Self { from: BufReader::new(from), to, hello: String::new() }
    }

    async fn greet(&mut self, info: &str) {
        self.to.write_all(format!("INFO {info}\r\n").as_bytes()).await.unwrap();
        self.hello = self.line().await;
        assert_eq!(self.line().await, "PING");
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.from.read_line(&mut line).await.unwrap() > 0, "the client went away");
        line.trim_end().to_owned()
    }

    /// The next message; pings are answered.
    async fn published(&mut self) -> Published {
        loop {
            let line = self.line().await;
            if line == "PING" {
                self.to.write_all(b"PONG\r\n").await.unwrap();
                continue;
            }
            let parts: Vec<&str> = line.split(' ').collect();
            assert_eq!((parts[0], parts.len()), ("HPUB", 5), "{line}");
            let (head, total) = (parts[3].parse::<usize>().unwrap(), parts[4].parse::<usize>().unwrap());
            let mut bytes = vec![0; total + 2];
            self.from.read_exact(&mut bytes).await.unwrap();
            assert!(bytes.ends_with(b"\r\n"));
            let payload = String::from_utf8(bytes[head..total].to_vec()).unwrap();
            return Published { subject: parts[1].into(), inbox: parts[2].into(), payload };
        }
    }

    async fn reply(&mut self, inbox: &str, payload: &str) {
        let message = format!("MSG {inbox} 1 {}\r\n{payload}\r\n", payload.len());
        self.to.write_all(message.as_bytes()).await.unwrap();
    }
}

/// A client of this server.
fn client(server: SocketAddr, change: impl FnOnce(&mut ConnectionSettings)) -> Client {
    let mut settings = ConnectionSettings::new(vec![format!("nats://{server}").parse().unwrap()]);
    change(&mut settings);
    let name: ConnectionName = "main".parse().unwrap();
    Client::to(&Connections::new([(name.clone(), settings)]), &name).unwrap()
}

async fn connected(client: &Client) -> Connection {
    loop {
        if let Ok(connection) = client.connection(PATIENCE).await {
            return connection;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn ask(connection: &Connection, payload: &str, reply: Duration) -> Result<Message, Failure> {
    let subject: Subject = "acme.orders".parse().unwrap();
    let payload = Bytes::from(payload.to_owned());
    let publish = Publish { subject: &subject, headers: HeaderBlock::new(), payload };
    connection.request(publish, Waits { begin: Duration::from_millis(200), reply }).await
}

#[test]
fn each_reply_goes_to_who_asked_and_a_late_one_to_nobody() {
    on_a_worker(async {
        let server = Server::start().await;
        let client = client(server.address(), |_| ());
        let (connection, mut peer) = tokio::join!(connected(&client), server.accept());
        let late = ask(&connection, "late", Duration::from_millis(50));
        let (late, of_late) = tokio::join!(late, peer.published());
        assert_eq!(late, Err(Failure { kind: FailureKind::TimedOut, sent: true }));
        let answering = async {
            let (one, two) = (peer.published().await, peer.published().await);
            peer.reply(&of_late.inbox, "too late").await;
            peer.reply("_INBOX_BEAMLINE.of.another", "forged").await;
            peer.reply(&two.inbox, &two.payload).await;
            peer.reply(&one.inbox, &one.payload).await;
            peer.reply(&one.inbox, "twice").await;
            assert_eq!(one.subject, "acme.orders");
            assert_ne!(one.inbox, two.inbox);
        };
        let (one, two, ()) =
            tokio::join!(ask(&connection, "one", PATIENCE), ask(&connection, "two", PATIENCE), answering);
        assert_eq!((&one.unwrap().payload[..], &two.unwrap().payload[..]), (&b"one"[..], &b"two"[..]));
    });
}

#[test]
fn what_the_kernel_took_nothing_of_in_time_is_never_written() {
    on_a_worker(async {
        let server = Server::start().await;
        let client = client(server.address(), |settings| settings.connect_timeout = PATIENCE);
        let (connection, mut peer) = tokio::join!(connected(&client), server.accept());
        // More than the kernel's buffers and this side's take, while the server does not read.
        let asking: Vec<_> = (0..40)
            .map(|n| {
                let (connection, payload) = (connection.clone(), format!("{n:02}{}", "x".repeat(900_000)));
                tokio::task::spawn_local(async move {
                    let outcome = ask(&connection, &payload, Duration::from_millis(500)).await;
                    (payload[..2].to_owned(), outcome.unwrap_err())
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_secs(1)).await;
        // Now it reads; the last message comes behind all that was ever written.
        let reading = async {
            let mut read = Vec::new();
            loop {
                let Published { payload, inbox, .. } = peer.published().await;
                if payload == "last" {
                    peer.reply(&inbox, "done").await;
                    return read;
                }
                read.push(payload[..2].to_owned());
            }
        };
        let judging = async {
            let mut unsent = Vec::new();
            for asking in asking {
                let (number, failure) = asking.await.unwrap();
                let not_begun = failure.kind == FailureKind::NotBegun;
                assert_ne!(not_begun, failure.sent, "{failure:?}");
                unsent.extend(not_begun.then_some(number));
            }
            assert_eq!(&ask(&connection, "last", PATIENCE).await.unwrap().payload[..], b"done");
            unsent
        };
        let (read, unsent) = tokio::join!(reading, judging);
        assert!(!unsent.is_empty() && !read.is_empty(), "{read:?}, {unsent:?}");
        assert!(!unsent.iter().any(|number| read.contains(number)), "{read:?}, {unsent:?}");
        assert_eq!(read.len() + unsent.len(), 40);
    });
}

#[test]
fn a_request_whose_caller_goes_away_leaves_the_others_alone() {
    on_a_worker(async {
        let server = Server::start().await;
        let client = client(server.address(), |_| ());
        let (connection, mut peer) = tokio::join!(connected(&client), server.accept());
        let large = "x".repeat(900_000);
        // Begun, and dropped in the midst of being written.
        for _ in 0..20 {
            let dropped =
                tokio::time::timeout(Duration::from_millis(5), ask(&connection, &large, PATIENCE)).await;
            assert!(dropped.is_err());
        }
        let answering = async {
            loop {
                let Published { payload, inbox, .. } = peer.published().await;
                if payload == "whole" {
                    return peer.reply(&inbox, "heard").await;
                }
                assert_eq!(payload.len(), large.len(), "what was begun is written whole");
            }
        };
        let (reply, ()) = tokio::join!(ask(&connection, "whole", PATIENCE), answering);
        assert_eq!(&reply.unwrap().payload[..], b"heard");
    });
}

#[test]
fn a_lost_connection_is_told_as_it_is_and_the_next_one_comes_by_itself() {
    on_a_worker(async {
        let server = Server::start().await;
        let client = client(server.address(), |_| ());
        let (connection, mut peer) = tokio::join!(connected(&client), server.accept());
        let losing = async {
            assert_eq!(peer.published().await.payload, "asked");
            drop(peer);
        };
        let (asked, ()) = tokio::join!(ask(&connection, "asked", PATIENCE), losing);
        assert!(matches!(asked, Err(Failure { kind: FailureKind::Lost(_), sent: true })), "{asked:?}");
        let again = ask(&connection, "again", PATIENCE).await;
        assert!(matches!(again, Err(Failure { kind: FailureKind::Lost(_), sent: false })), "{again:?}");
        assert!(matches!(client.connection(PATIENCE).await, Err(NotConnected::Lost { .. })), "told at once");
        let (connection, mut peer) = tokio::join!(connected(&client), server.accept());
        let answering = async {
            let Published { inbox, .. } = peer.published().await;
            peer.reply(&inbox, "here").await;
        };
        let (reply, ()) = tokio::join!(ask(&connection, "there?", PATIENCE), answering);
        assert_eq!(&reply.unwrap().payload[..], b"here");
    });
}

#[test]
fn a_server_that_is_about_to_go_answers_what_it_has_and_gets_nothing_more() {
    on_a_worker(async {
        let server = Server::start().await;
        let client = client(server.address(), |_| ());
        let (connection, mut going) = tokio::join!(connected(&client), server.accept());
        let answering = async {
            let Published { inbox, .. } = going.published().await;
            going.to.write_all(b"INFO {\"headers\":true,\"ldm\":true}\r\n").await.unwrap();
            let mut coming = server.accept().await;
            let next = async {
                let connection = connected(&client).await;
                ask(&connection, "next", PATIENCE).await
            };
            let there = async {
                let Published { payload, inbox, .. } = coming.published().await;
                assert_eq!(payload, "next");
                coming.reply(&inbox, "from the next").await;
            };
            let (next, ()) = tokio::join!(next, there);
            assert_eq!(&next.unwrap().payload[..], b"from the next");
            going.reply(&inbox, "from the last").await;
        };
        let (last, ()) = tokio::join!(ask(&connection, "last", PATIENCE), answering);
        assert_eq!(&last.unwrap().payload[..], b"from the last");
    });
}

#[test]
fn a_server_that_says_nothing_or_takes_nothing_is_given_up() {
    on_a_worker(async {
        let server = Server::start().await;
        let quick = |settings: &mut ConnectionSettings| settings.ping_interval = Duration::from_millis(100);
        let silent = client(server.address(), quick);
        let (connection, _peer) = tokio::join!(connected(&silent), server.accept());
        let asked = ask(&connection, "asked", PATIENCE).await;
        assert_eq!(asked, Err(Failure { kind: FailureKind::Lost(Ended::Silent), sent: true }));
        drop(silent);

        let stalled =
            client(server.address(), |settings| settings.connect_timeout = Duration::from_millis(300));
        let (connection, mut peer) = tokio::join!(connected(&stalled), server.accept());
        let large = "x".repeat(1_000_000);
        let asking = (0..40).map(|_| {
            let (connection, large) = (connection.clone(), large.clone());
            tokio::task::spawn_local(async move { ask(&connection, &large, PATIENCE).await.unwrap_err() })
        });
        let mut kinds = Vec::new();
        for asking in asking.collect::<Vec<_>>() {
            kinds.push(asking.await.unwrap().kind);
        }
        assert!(kinds.contains(&FailureKind::Lost(Ended::Stalled)), "{kinds:?}");
        // It is closed though somebody still holds it, and what the kernel held is gone: a reset, not an end.
        let mut rest = Vec::new();
        let error = peer.from.read_to_end(&mut rest).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        drop(connection);
    });
}

#[test]
fn a_server_that_never_stops_sending_does_not_hold_the_thread() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (flooding, enough) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let server = thread::spawn({
        let (flooding, enough) = (Arc::clone(&flooding), Arc::clone(&enough));
        move || {
            let (mut to, _) = listener.accept().unwrap();
            to.write_all(b"INFO {\"max_payload\":1048576,\"headers\":true}\r\n").unwrap();
            let mut from = std::io::BufReader::new(to.try_clone().unwrap());
            for _ in ["CONNECT", "PING"] {
                from.read_line(&mut String::new()).unwrap();
            }
            to.write_all(b"PONG\r\n").unwrap();
            let (noise, until) = (b"+OK\r\n".repeat(20_000), Instant::now() + Duration::from_secs(5));
            flooding.store(true, Ordering::SeqCst);
            while !enough.load(Ordering::SeqCst) && Instant::now() < until {
                to.write_all(&noise).unwrap();
            }
            flooding.store(false, Ordering::SeqCst);
        }
    });
    on_a_worker(async {
        let client = client(address, |_| ());
        let _connection = connected(&client).await;
        // The thread's other tasks go on in the midst of the flood.
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert!(flooding.load(Ordering::SeqCst), "they had to wait until the flood was over");
        enough.store(true, Ordering::SeqCst);
        drop(client);
    });
    // Its last write may have found the connection gone.
    let _ = server.join();
}

#[test]
fn a_connection_on_which_a_service_answers_without_end_is_given_up_and_the_next_has_another_inbox() {
    on_a_worker(async {
        let server = Server::start().await;
        let client = client(server.address(), |_| ());
        let (connection, mut peer) = tokio::join!(connected(&client), server.accept());
        let flooding = async {
            let Published { inbox, .. } = peer.published().await;
            let stray = format!("MSG {inbox} 1 1\r\nx\r\n");
            // One is the reply; as many as are borne change nothing.
            peer.to.write_all(stray.repeat(1 + (16 << 10)).as_bytes()).await.unwrap();
            let Published { inbox: second, .. } = peer.published().await;
            peer.reply(&second, "still here").await;
            assert_eq!(peer.published().await.payload, "and now?");
            // Two requests made some good; this is one too many.
            peer.to.write_all(stray.repeat(2 * 8 + 1).as_bytes()).await.unwrap();
            inbox
        };
        let asking = async {
            assert_eq!(&ask(&connection, "asked", PATIENCE).await.unwrap().payload[..], b"x");
            assert_eq!(&ask(&connection, "still?", PATIENCE).await.unwrap().payload[..], b"still here");
            ask(&connection, "and now?", PATIENCE).await
        };
        let (asked, first) = tokio::join!(asking, flooding);
        assert_eq!(asked, Err(Failure { kind: FailureKind::Lost(Ended::Strays), sent: true }));
        let (connection, mut peer) = tokio::join!(connected(&client), server.accept());
        let answering = async {
            let Published { inbox, .. } = peer.published().await;
            peer.reply(&inbox, "here").await;
            inbox
        };
        let (reply, next) = tokio::join!(ask(&connection, "there?", PATIENCE), answering);
        assert_eq!(&reply.unwrap().payload[..], b"here");
        let of_connection = |inbox: &str| inbox.rsplit_once('.').unwrap().0.to_owned();
        assert_ne!(of_connection(&first), of_connection(&next));
    });
}

#[test]
fn a_subject_that_may_not_be_published_to_is_told_to_who_tried() {
    on_a_worker(async {
        let server = Server::start().await;
        let client = client(server.address(), |_| ());
        let (connection, mut peer) = tokio::join!(connected(&client), server.accept());
        let refusing = async {
            peer.published().await;
            let other = "-ERR 'Permissions Violation for Publish to \"acme.other\"'\r\n";
            peer.to.write_all(other.as_bytes()).await.unwrap();
            peer.to.write_all(other.replace("other", "orders").as_bytes()).await.unwrap();
        };
        let (asked, ()) = tokio::join!(ask(&connection, "asked", PATIENCE), refusing);
        assert_eq!(asked, Err(Failure { kind: FailureKind::Forbidden, sent: false }));
        // It was allowed once: what the complaint is about may be another's message.
        let taking_back = async {
            let Published { inbox, .. } = peer.published().await;
            peer.reply(&inbox, "allowed").await;
            peer.published().await;
            let denied = "-ERR 'Permissions Violation for Publish to \"acme.orders\"'\r\n";
            peer.to.write_all(denied.as_bytes()).await.unwrap();
        };
        let asking = async {
            ask(&connection, "allowed?", PATIENCE).await.unwrap();
            ask(&connection, "still?", PATIENCE).await
        };
        let (asked, ()) = tokio::join!(asking, taking_back);
        assert_eq!(asked, Err(Failure { kind: FailureKind::Forbidden, sent: true }));
    });
}

#[test]
fn what_is_larger_than_the_server_takes_is_not_sent() {
    on_a_worker(async {
        let server = Server::start().await;
        let client = client(server.address(), |_| ());
        let (connection, _peer) = tokio::join!(connected(&client), server.accept());
        let asked = ask(&connection, &"x".repeat(1 << 20), PATIENCE).await;
        assert_eq!(asked, Err(Failure { kind: FailureKind::TooLarge { limit: 1 << 20 }, sent: false }));
    });
}

#[test]
fn credentials_are_shown_and_their_refusal_is_told() {
    on_a_worker(async {
        let server = Server::start().await;
        let dir = tempfile::tempdir().unwrap();
        let password_file = dir.path().join("password");
        std::fs::write(&password_file, "sesame\n").unwrap();
        std::fs::set_permissions(&password_file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let user = |settings: &mut ConnectionSettings| {
            settings.auth = Auth::User { user: "edge".into(), password_file };
        };
        let asking = client(server.address(), user);
        let refusing = async {
            let mut peer = Peer::new(server.0.accept().await.unwrap().0);
            peer.greet("{\"headers\":true,\"auth_required\":true}").await;
            peer.to.write_all(b"-ERR 'Authorization Violation'\r\n").await.unwrap();
            peer
        };
        let (refused, peer) = tokio::join!(asking.connection(PATIENCE), refusing);
        assert!(matches!(refused, Err(NotConnected::Connect(ConnectError::Credentials(..)))));
        for part in ["\"user\":\"edge\"", "\"pass\":\"sesame\"", "\"no_responders\":true", "\"headers\":true"]
        {
            assert!(peer.hello.contains(part), "{part} in {}", peer.hello);
        }
        drop(asking);
        // What a connection cannot give is not tried.
        for (info, expected) in [
            ("{\"headers\":false}", "has no headers"),
            ("{\"headers\":true,\"auth_required\":true}", "asks for credentials"),
            ("{\"headers\":true,\"auth_required\":true,\"nonce\":\"x\"}", "nkey_seed_file or creds_file"),
        ] {
            let asking = client(server.address(), |_| ());
            let telling = async {
                let mut stream = server.0.accept().await.unwrap().0;
                stream.write_all(format!("INFO {info}\r\n").as_bytes()).await.unwrap();
                stream
            };
            match tokio::join!(asking.connection(PATIENCE), telling).0 {
                Err(NotConnected::Connect(error)) => assert!(error.to_string().contains(expected), "{error}"),
                other => panic!("{info}: {:?}", other.err()),
            }
        }
    });
}

/// Settings of TLS with an authority, in a folder of their own.
fn tls() -> (tempfile::TempDir, TlsSettings) {
    let (dir, key) = (tempfile::tempdir().unwrap(), rcgen::KeyPair::generate().unwrap());
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_file = dir.path().join("ca.pem");
    std::fs::write(&ca_file, params.self_signed(&key).unwrap().pem()).unwrap();
    (dir, TlsSettings { ca_file: Some(ca_file), ..TlsSettings::default() })
}

/// Connects to a server that says `first`, then `then` to the first bytes that come. Returns what the connection came
/// to, and what came of it.
async fn against(
    change: impl FnOnce(&mut ConnectionSettings),
    first: &[u8],
    then: &[u8],
) -> (String, Vec<u8>) {
    let server = Server::start().await;
    let asking = client(server.address(), change);
    let telling = async {
        let mut stream = server.0.accept().await.unwrap().0;
        stream.write_all(first).await.unwrap();
        let mut came = vec![0; 64 << 10];
        // One that is refused may be reset, before or after it said something.
        let read = stream.read(&mut came).await.unwrap_or(0);
        came.truncate(read);
        if read > 0 {
            let _ = stream.write_all(then).await;
        }
        (came, stream)
    };
    let (connection, (came, _stream)) = tokio::join!(asking.connection(PATIENCE), telling);
    match connection {
        Err(NotConnected::Connect(error)) => (error.to_string(), came),
        other => panic!("{:?}", other.err()),
    }
}

#[test]
fn not_a_byte_goes_to_a_server_that_offers_no_tls_or_has_said_too_much_before_it() {
    on_a_worker(async {
        let (_dir, settings) = tls();
        for (info, expected) in [
            ("INFO {\"headers\":true}\r\n", "the server offers none, and the connection asks for it"),
            (
                "INFO {\"headers\":true,\"tls_required\":true}\r\nPING\r\n",
                "sent more than its INFO before TLS",
            ),
            ("INFO {\"headers\":true,\"tls_available\":true}\r\nINFO", "sent more than its INFO before TLS"),
            ("PING\r\n", "does not begin with INFO"),
        ] {
            let with_tls = |to: &mut ConnectionSettings| to.tls = Some(settings.clone());
            let (error, came) = against(with_tls, info.as_bytes(), b"").await;
            assert!(error.contains(expected), "{info}: {error}");
            assert_eq!(came, b"", "{info}");
        }
        // A URL is enough to ask for it.
        let by_url = |to: &mut ConnectionSettings| {
            to.servers = to.servers.iter().map(|s| format!("tls://{s}").parse().unwrap()).collect();
        };
        let (error, came) = against(by_url, b"INFO {\"headers\":true}\r\n", b"").await;
        assert!(error.contains("the server offers none") && came.is_empty(), "{error}");
    });
}

#[test]
fn garbage_in_a_handshake_ends_it() {
    on_a_worker(async {
        let (_dir, settings) = tls();
        // A handshake message that says it has 16 MiB.
        let endless = [&[22, 3, 3, 0x40, 0, 2, 0xff, 0xff, 0xff][..], &vec![0; 20 << 10]].concat();
        let alert = [21, 3, 3, 0, 2, 2, 40];
        for garbage in
            [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], &[0xff; 64 << 10], &endless, &alert, &[22, 3, 3, 0, 0]]
        {
            for first in [true, false] {
                let mut settings = settings.clone();
                settings.handshake_first = first;
                let with_tls = |to: &mut ConnectionSettings| to.tls = Some(settings);
                let info = if first { "" } else { "INFO {\"headers\":true,\"tls_required\":true}\r\n" };
                let (error, came) = against(with_tls, info.as_bytes(), garbage).await;
                assert!(error.starts_with("no TLS with 127.0.0.1:"), "{error}");
                assert_eq!(came.first(), Some(&22), "a handshake began, and nothing before it");
            }
        }
    });
}

#[test]
fn a_server_that_never_ends_its_handshake_is_given_up_in_time() {
    on_a_worker(async {
        let (_dir, settings) = tls();
        let info = b"INFO {\"headers\":true,\"tls_required\":true}\r\n";
        for then in [&b""[..], &[22, 3, 3, 0x40, 0, 2, 0, 0, 100]] {
            let with_tls = |to: &mut ConnectionSettings| {
                to.tls = Some(settings.clone());
                to.connect_timeout = Duration::from_millis(300);
            };
            let (error, _) = against(with_tls, info, then).await;
            assert!(error.contains("within connect_timeout: it did not end the TLS handshake"), "{error}");
        }
    });
}

#[test]
fn what_is_no_nonce_is_not_signed() {
    on_a_worker(async {
        let dir = tempfile::tempdir().unwrap();
        let seed_file = dir.path().join("seed");
        std::fs::write(&seed_file, "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY\n").unwrap();
        std::fs::set_permissions(&seed_file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let by_nkey = |to: &mut ConnectionSettings| to.auth = Auth::Nkey { seed_file };
        let info = b"INFO {\"headers\":true,\"auth_required\":true,\"nonce\":\"eyJ0eXAi.eyJzdWIi\"}\r\n";
        let (error, came) = against(by_nkey, info, b"").await;
        assert!(error.contains("sent as its nonce what is none") && came.is_empty(), "{error}");
    });
}

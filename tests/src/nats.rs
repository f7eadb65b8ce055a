//! A real NATS server that can be killed, stopped and started again on what it had stored; services that answer behind
//! it; and a blocking client, written for tests and nothing else.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{BufRead as _, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{ports::Port, process};

/// How long a server may take to start or to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Finds the server: `BEAMLINE_NATS_SERVER`, what `scripts/install-tools.sh` installed, or one on the `PATH`.
///
/// # Errors
/// Where there is none; the message says how to get it.
pub fn binary() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("BEAMLINE_NATS_SERVER") {
        return Ok(named.into());
    }
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/nats/bin/nats-server");
    if installed.is_file() {
        return Ok(installed);
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&folders)
        .map(|folder| folder.join("nats-server"))
        .find(|path| path.is_file())
        .context("`nats-server` is not installed, and this needs it: make tools")
}

/// How the tests' own clients come in: where to, and what a server asks of them.
#[derive(Clone)]
pub struct Access {
    address: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
    handshake_first: bool,
    shows: Option<Shows>,
}

/// Fields of CONNECT, made from the server's nonce.
type Shows = Arc<dyn Fn(&str) -> Value + Send + Sync>;

impl From<SocketAddr> for Access {
    fn from(address: SocketAddr) -> Self {
        Self { address, tls: None, handshake_first: false, shows: None }
    }
}

impl Access {
    /// By TLS, with the authorities of `ca` and, where there is one, the certificate and key of `client`; all PEM files.
    ///
    /// # Errors
    /// Where they cannot be used.
    pub fn by_tls(self, ca: &Path, client: Option<(&Path, &Path)>) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(ca)? {
            roots.add(certificate?)?;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let config = match client {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = CertificateDer::pem_file_iter(cert)?.collect::<Result<Vec<_>, _>>()?;
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key)?)?
            }
        };
        Ok(Self { tls: Some(Arc::new(config)), ..self })
    }

    /// With TLS before the server's INFO.
    #[must_use]
    pub fn handshake_first(self) -> Self {
        Self { handshake_first: true, ..self }
    }

    /// Showing these fields in CONNECT, made from the server's nonce.
    #[must_use]
    pub fn showing(self, fields: impl Fn(&str) -> Value + Send + Sync + 'static) -> Self {
        Self { shows: Some(Arc::new(fields)), ..self }
    }
}

/// A NATS server. Dropping it kills it and removes what it stored.
pub struct NatsServer {
    port: Port,
    child: Option<Child>,
    settings: String,
    access: Access,
    store: PathBuf,
    folder: TempDir,
}

impl NatsServer {
    /// Starts one with JetStream.
    ///
    /// # Errors
    /// Where it isn't installed or doesn't start.
    pub fn start() -> Result<Self> {
        Self::with("")
    }

    /// Starts one with JetStream and further lines of its configuration.
    ///
    /// # Errors
    /// Where it isn't installed or doesn't start.
    pub fn with(settings: &str) -> Result<Self> {
        let mut server = Self::prepare(settings)?;
        server.start_again()?;
        Ok(server)
    }

    /// One that doesn't run yet: its port refuses.
    ///
    /// # Errors
    /// Where no port or folder is to be had.
    pub fn prepare(settings: &str) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("beamline-nats-").tempdir()?;
        let store = folder.path().join("store");
        let port = Port::reserve()?;
        let access = port.address().into();
        Ok(Self { port, child: None, settings: settings.into(), access, store, folder })
    }

    /// How the tests' own clients come in.
    pub fn access(&self) -> Access {
        self.access.clone()
    }

    /// Has them come in otherwise from now on.
    pub fn set_access(&mut self, access: Access) {
        self.access = access;
    }

    /// Has it start with further lines of its configuration from now on, in place of those that it had.
    pub fn set_settings(&mut self, settings: &str) {
        self.settings = settings.into();
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// The part of a node's configuration that names it as the connection `main`.
    pub fn node_config(&self) -> String {
        format!("[nats.main]\nservers = [\"nats://{}\"]\nping_interval = \"1s\"\n", self.address())
    }

    /// The folder of its streams.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// Has it keep its streams elsewhere from its next start on.
    pub fn store_in(&mut self, folder: PathBuf) {
        self.store = folder;
    }

    /// Starts it on its port and what it has stored, and waits until it answers.
    ///
    /// # Errors
    /// Where it runs already or doesn't answer in time.
    pub fn start_again(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "the NATS server runs already");
        let (config, log) = (self.folder.path().join("nats.conf"), self.folder.path().join("nats.log"));
        let jetstream =
            if self.settings.contains("jetstream") { "" } else { "jetstream { store_dir: STORE }\n" };
        let text = format!("listen: \"{}\"\n{jetstream}{}\n", self.address(), self.settings);
        fs::write(&config, text.replace("STORE", &format!("{:?}", self.store.display().to_string())))?;
        let printed = File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new(binary()?);
        command.arg("-c").arg(&config).stdin(Stdio::null());
        command.stdout(printed.try_clone()?).stderr(printed);
        self.child = Some(command.spawn().context("nats-server cannot be started")?);
        let until = Instant::now() + PATIENCE;
        loop {
            match Conn::open(&self.access) {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() >= until => {
                    let said = fs::read_to_string(&log).unwrap_or_default();
                    bail!("the NATS server did not answer within {PATIENCE:?} ({error:#}):\n{said}")
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    fn pid(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("the NATS server doesn't run")?.id())
    }

    /// Kills it as a crash would, and waits until it is gone.
    ///
    /// # Errors
    /// Where it doesn't run.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the NATS server doesn't run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Stops it where it is, and waits until each of its threads has stopped: connections stand, and nothing is read
    /// from them.
    ///
    /// # Errors
    /// Where it doesn't run, or goes on running.
    pub fn freeze(&self) -> Result<()> {
        let pid = self.pid()?;
        process::signal(pid, Signal::STOP)?;
        let until = Instant::now() + PATIENCE;
        while !is_stopped(pid)? {
            ensure!(Instant::now() < until, "the NATS server goes on running though it was told to stop");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// Where it doesn't run.
    pub fn thaw(&self) -> Result<()> {
        process::signal(self.pid()?, Signal::CONT)
    }

    /// Calls JetStream's own API.
    ///
    /// # Errors
    /// Where it answers with an error, or not in time.
    pub fn js(&self, call: &str, body: &Value) -> Result<Value> {
        let mut conn = Conn::open(&self.access)?;
        let payload = if body.is_null() { String::new() } else { body.to_string() };
        let answer = conn.request(&format!("$JS.API.{call}"), payload.as_bytes())?;
        let answer: Value = serde_json::from_slice(&answer.payload)?;
        ensure!(answer["error"].is_null(), "{call}: {answer}");
        Ok(answer)
    }

    /// Makes a stream, kept in files, that takes these subjects.
    ///
    /// # Errors
    /// As [`js`](Self::js).
    pub fn stream(&self, name: &str, subjects: &[&str], more: Value) -> Result<()> {
        let mut config =
            json!({ "name": name, "subjects": subjects, "storage": "file", "retention": "limits" });
        for (key, value) in more.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        self.js(&format!("STREAM.CREATE.{name}"), &config).map(drop)
    }

    /// Every message of a stream, in order: its headers as text and its payload.
    ///
    /// # Errors
    /// As [`js`](Self::js).
    pub fn messages(&self, stream: &str) -> Result<Vec<Received>> {
        use base64::Engine as _;
        let info = self.js(&format!("STREAM.INFO.{stream}"), &Value::Null)?;
        let of = |key: &str| info["state"][key].as_u64().context("a stream has a state");
        let decode = |text: &Value| -> Result<Vec<u8>> {
            let text = text.as_str().unwrap_or_default();
            Ok(base64::engine::general_purpose::STANDARD.decode(text)?)
        };
        let mut found = Vec::new();
        for seq in of("first_seq")?.max(1)..=of("last_seq")? {
            let answer = self.js(&format!("STREAM.MSG.GET.{stream}"), &json!({ "seq": seq }))?;
            let message = &answer["message"];
            found.push(Received {
                subject: message["subject"].as_str().unwrap_or_default().to_owned(),
                headers: read_headers(&decode(&message["hdrs"])?).1,
                payload: decode(&message["data"])?,
                ..Received::default()
            });
        }
        Ok(found)
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let said = fs::read_to_string(self.folder.path().join("nats.log")).unwrap_or_default();
            let from = said.len().saturating_sub(2000);
            eprintln!("--- the end of what the NATS server printed:\n{}---", &said[from..]);
        }
    }
}

/// A message as it came.
#[derive(Clone, Debug, Default)]
pub struct Received {
    /// Its subject.
    pub subject: String,
    /// Where a reply goes.
    pub reply: Option<String>,
    /// The status of its first line.
    pub status: Option<u16>,
    /// Its headers, names as they came.
    pub headers: Vec<(String, String)>,
    /// Its payload.
    pub payload: Vec<u8>,
}

impl Received {
    /// The first value of a header, its name exactly so.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The payload as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }
}

fn read_headers(block: &[u8]) -> (Option<u16>, Vec<(String, String)>) {
    let text = String::from_utf8_lossy(block);
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("NATS/1.0 ")?.get(..3)?.parse().ok());
    let headers = lines.filter_map(|line| line.split_once(':'));
    (status, headers.map(|(n, v)| (n.to_owned(), v.trim().to_owned())).collect())
}

trait Both: Read + Write + Send {}
impl<T: Read + Write + Send> Both for T {}

/// A blocking client.
pub struct Conn {
    io: BufReader<Box<dyn Both>>,
    /// The socket beneath.
    socket: TcpStream,
}

impl Conn {
    /// Connects, and waits until the server has taken it.
    ///
    /// # Errors
    /// Where it doesn't.
    pub fn open(access: &Access) -> Result<Self> {
        let mut socket = TcpStream::connect_timeout(&access.address, Duration::from_secs(2))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let mut conn =
            Self { io: BufReader::new(Box::new(socket.try_clone()?)), socket: socket.try_clone()? };
        let before = if access.handshake_first { None } else { Some(conn.line()?) };
        if let Some(config) = &access.tls {
            let name = ServerName::IpAddress(access.address.ip().into());
            let mut session = ClientConnection::new(Arc::clone(config), name)?;
            while session.is_handshaking() {
                session.complete_io(&mut socket)?;
            }
            conn.io = BufReader::new(Box::new(StreamOwned::new(session, socket)));
        }
        let info = before.map_or_else(|| conn.line(), Ok)?;
        let info: Value =
            serde_json::from_str(info.strip_prefix("INFO ").context("a server begins with INFO")?)?;
        let mut hello = json!({ "verbose": false, "headers": true, "no_responders": true, "protocol": 1 });
        if let Some(shows) = &access.shows {
            let shown = shows(info["nonce"].as_str().unwrap_or_default());
            shown.as_object().into_iter().flatten().for_each(|(key, value)| hello[key] = value.clone());
        }
        write!(conn.to(), "CONNECT {hello}\r\nPING\r\n")?;
        while conn.line()? != "PONG" {}
        Ok(conn)
    }

    fn to(&mut self) -> &mut dyn Both {
        &mut **self.io.get_mut()
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.io.read_line(&mut line)? > 0, "the NATS server closed the connection");
        if let Some(why) = line.strip_prefix("-ERR") {
            bail!("the NATS server complained:{why}");
        }
        Ok(line.trim_end().to_owned())
    }

    /// Subscribes, and waits until the server has taken it.
    ///
    /// # Errors
    /// Where it doesn't.
    pub fn subscribe(&mut self, subject: &str) -> Result<()> {
        write!(self.to(), "SUB {subject} 1\r\nPING\r\n")?;
        while self.line()? != "PONG" {}
        Ok(())
    }

    /// Publishes.
    ///
    /// # Errors
    /// Where the connection has ended.
    pub fn publish(
        &mut self,
        subject: &str,
        reply: Option<&str>,
        headers: &[(&str, &str)],
        payload: &[u8],
    ) -> Result<()> {
        let mut block = String::from("NATS/1.0\r\n");
        headers.iter().for_each(|(name, value)| block.push_str(&format!("{name}: {value}\r\n")));
        block.push_str("\r\n");
        let (reply, total) = (reply.unwrap_or_default(), block.len() + payload.len());
        let head = format!("HPUB {subject} {reply} {} {total}\r\n{block}", block.len());
        self.to().write_all(&[head.as_bytes(), payload, b"\r\n"].concat())?;
        Ok(())
    }

    /// Publishes and waits for the reply.
    ///
    /// # Errors
    /// Where none comes.
    pub fn request(&mut self, subject: &str, payload: &[u8]) -> Result<Received> {
        let inbox = format!("_INBOX.test.{}", std::process::id());
        self.subscribe(&inbox)?;
        self.publish(subject, Some(&inbox), &[], payload)?;
        self.receive()
    }

    /// The next message.
    ///
    /// # Errors
    /// Where none comes in time or the connection ends.
    pub fn receive(&mut self) -> Result<Received> {
        loop {
            let line = self.line()?;
            let parts: Vec<&str> = line.split_ascii_whitespace().collect();
            let (sizes, with_headers) = match parts.first() {
                Some(&"MSG") => (1, false),
                Some(&"HMSG") => (2, true),
                Some(&"PING") => {
                    self.to().write_all(b"PONG\r\n")?;
                    continue;
                }
                _ => continue,
            };
            let size = |at: usize| -> Result<usize> { Ok(parts[parts.len() - at].parse()?) };
            let head = if with_headers { size(2)? } else { 0 };
            let mut bytes = vec![0; size(1)? + 2];
            self.io.read_exact(&mut bytes)?;
            bytes.truncate(bytes.len() - 2);
            let payload = bytes.split_off(head);
            let (status, headers) = read_headers(&bytes);
            let reply = (parts.len() == 4 + sizes).then(|| parts[3].to_owned());
            return Ok(Received { subject: parts[1].to_owned(), reply, status, headers, payload });
        }
    }
}

/// A service's reply: headers and payload.
pub type Reply = (Vec<(&'static str, String)>, Vec<u8>);
type Answer = Arc<dyn Fn(&Received) -> Option<Reply> + Send + Sync>;

/// A service on a subject, on a thread of its own. It connects again when its server comes back.
pub struct Service {
    seen: Arc<Mutex<Vec<Received>>>,
    stop: Arc<AtomicBool>,
    ready: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Answers each message on `subject` with what `answer` makes of it, or not at all. Returns when it is subscribed.
    ///
    /// # Errors
    /// Where it isn't in time.
    pub fn start(
        server: impl Into<Access>,
        subject: &str,
        answer: impl Fn(&Received) -> Option<Reply> + Send + Sync + 'static,
    ) -> Result<Self> {
        let (seen, stop, ready) = (Arc::default(), Arc::default(), Arc::<AtomicBool>::default());
        let mut service = Self { seen, stop, ready, thread: None };
        let (seen, stop, ready) =
            (Arc::clone(&service.seen), Arc::clone(&service.stop), Arc::clone(&service.ready));
        let (subject, answer): (String, Answer) = (subject.to_owned(), Arc::new(answer));
        let server = server.into();
        service.thread = Some(std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                // It ends with its server, and is tried again.
                let _ = serve(&server, &subject, &answer, &seen, &stop, &ready);
                ready.store(false, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        }));
        service.wait_ready()?;
        Ok(service)
    }

    /// Answers with the payload that came.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn echo(server: impl Into<Access>, subject: &str) -> Result<Self> {
        Self::start(server, subject, |message| Some((Vec::new(), message.payload.clone())))
    }

    /// Waits until it is subscribed.
    ///
    /// # Errors
    /// Where it isn't in time.
    pub fn wait_ready(&self) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        while !self.ready.load(Ordering::Relaxed) {
            ensure!(Instant::now() < until, "the service did not come to be subscribed within {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn locked(&self) -> MutexGuard<'_, Vec<Received>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What came so far.
    pub fn seen(&self) -> Vec<Received> {
        self.locked().clone()
    }

    /// How often each payload came.
    pub fn counts(&self) -> HashMap<String, usize> {
        let mut counts = HashMap::new();
        self.locked().iter().for_each(|message| *counts.entry(message.text()).or_default() += 1);
        counts
    }
}

fn serve(
    server: &Access,
    subject: &str,
    answer: &Answer,
    seen: &Mutex<Vec<Received>>,
    stop: &AtomicBool,
    ready: &AtomicBool,
) -> Result<()> {
    let mut conn = Conn::open(server)?;
    conn.subscribe(subject)?;
    ready.store(true, Ordering::Relaxed);
    while !stop.load(Ordering::Relaxed) {
        // So that it sees that it is to stop.
        conn.socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let waiting = conn.io.fill_buf().map(<[u8]>::len);
        match waiting {
            Ok(0) => bail!("the NATS server closed the connection"),
            Ok(_) => {}
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        conn.socket.set_read_timeout(Some(PATIENCE))?;
        if conn.io.buffer().starts_with(b"PING") {
            conn.line()?;
            conn.to().write_all(b"PONG\r\n")?;
            continue;
        }
        let message = conn.receive()?;
        seen.lock().unwrap_or_else(PoisonError::into_inner).push(message.clone());
        if let (Some(reply), Some((headers, payload))) = (&message.reply, answer(&message)) {
            let headers: Vec<_> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
            conn.publish(reply, None, &headers, &payload)?;
        }
    }
    Ok(())
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Whether the kernel has stopped all threads of a process.
fn is_stopped(pid: u32) -> Result<bool> {
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = fs::read_to_string(thread?.path().join("stat"))?;
        // After the name, which is in parentheses and may have some itself.
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        if state != Some('T') {
            return Ok(false);
        }
    }
    Ok(true)
}

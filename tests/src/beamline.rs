//! The real binary as a child process: started, stopped, killed and restarted on the same data directory and ports.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::ErrorKind,
    net::SocketAddr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::{admin::Admin, client::Request, ports::Port, process};

/// How a node is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// The port on 127.0.0.1 that takes traffic, in place of one of its own.
    pub listen: Option<u16>,
    /// The port on 127.0.0.1 of its admin API, in place of one of its own.
    pub admin: Option<u16>,
    /// Data workers.
    pub workers: usize,
    /// Whether there is an access log (a file that [`Beamline::log`] reads).
    pub log: bool,
    /// Where spans go, as `http://127.0.0.1:4318`.
    pub otlp_endpoint: Option<String>,
    /// What its configuration file says; without it, it has none.
    pub configuration: Option<String>,
    /// Further arguments of `beamline serve`.
    pub arguments: Vec<String>,
    /// Further environment variables.
    pub environment: Vec<(OsString, OsString)>,
    /// The only processor it may run on.
    pub cpu: Option<usize>,
    /// The binary, in place of [`binary`].
    pub binary: Option<PathBuf>,
    /// Whether it gets a process group of its own, so that Ctrl-C at a terminal does not reach it.
    pub own_group: bool,
    /// How long it may take from start to ready.
    pub ready_within: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: None,
            admin: None,
            workers: 2,
            log: true,
            otlp_endpoint: None,
            configuration: None,
            arguments: Vec::new(),
            environment: Vec::new(),
            cpu: None,
            binary: None,
            own_group: false,
            ready_within: Duration::from_secs(30),
        }
    }
}

/// A node. Dropping it kills it and removes its directory; where a test panics, its last words are printed first.
pub struct Beamline {
    options: Options,
    listen: Port,
    admin: Port,
    child: Option<Child>,
    last_exit: Option<ExitStatus>,
    /// Last, so that it is removed when the process is gone.
    folder: TempDir,
}

/// Finds the binary: `BEAMLINE_BIN`, or `beamline` beside the running executable or one folder up, which is where
/// Cargo puts it for tests and programs of the same profile.
///
/// # Errors
/// Where it isn't there; the message says how to build it.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("BEAMLINE_BIN") {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "BEAMLINE_BIN names {}, which is no file", path.display());
        return Ok(path);
    }
    let exe = std::env::current_exe().context("the running executable has a path")?;
    let beside = exe.ancestors().skip(1).take(2).map(|folder| folder.join("beamline"));
    beside.clone().find(|path| path.is_file()).with_context(|| {
        let tried: Vec<_> = beside.map(|p| p.display().to_string()).collect();
        format!(
            "the binary `beamline` was not found at {}: build it with the same profile (cargo build -p beamline --profile …), or name it in BEAMLINE_BIN",
            tried.join(" or ")
        )
    })
}

impl Beamline {
    /// Starts a node on an empty data directory and waits until it is ready.
    ///
    /// # Errors
    /// Where it ends or isn't ready in time; the message has the end of its standard error.
    pub fn start(options: Options) -> Result<Self> {
        let mut node = Self::prepare(options)?;
        node.launch()?;
        Ok(node)
    }

    /// A node that is not yet started: its directory and ports are there. [`launch`](Self::launch) starts it.
    ///
    /// # Errors
    /// Where no directory or port is to be had.
    pub fn prepare(options: Options) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("beamline-").tempdir()?;
        fs::create_dir(folder.path().join("data"))?;
        let port = |named: Option<u16>| named.map_or_else(Port::reserve, Port::named);
        Ok(Self {
            listen: port(options.listen)?,
            admin: port(options.admin)?,
            options,
            child: None,
            last_exit: None,
            folder,
        })
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// Where it runs already, ends, or isn't ready in time.
    pub fn launch(&mut self) -> Result<()> {
        self.spawn()?;
        self.wait_ready()
    }

    /// Starts it without waiting.
    ///
    /// # Errors
    /// Where it runs already or can't be started.
    pub fn spawn(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "the node runs already");
        let binary = self.options.binary.clone().map_or_else(binary, Ok)?;
        let errors = File::options().create(true).append(true).open(self.errors())?;
        if let Some(configuration) = &self.options.configuration {
            fs::write(self.configuration(), configuration)?;
        }
        let mut command = Command::new(&binary);
        command
            .args(self.arguments())
            .envs(self.options.environment.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(Stdio::from(errors.try_clone()?))
            .stderr(Stdio::from(errors));
        if self.options.own_group {
            command.process_group(0);
        }
        let child = process::spawn_on(&mut command, self.options.cpu)
            .with_context(|| format!("cannot start {}", binary.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// What the binary is started with: `serve` and its options.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut out: Vec<OsString> = ["serve", "--listen"].map(Into::into).to_vec();
        out.extend(
            [self.address().to_string(), "--admin".into(), self.admin.address().to_string()].map(Into::into),
        );
        out.extend(["--data-dir".into(), self.data_dir().into()]);
        out.extend(["--workers".into(), self.options.workers.to_string().into(), "--log".into()]);
        out.push(if self.options.log { self.log_file().into() } else { "off".into() });
        if let Some(endpoint) = &self.options.otlp_endpoint {
            out.extend(["--otlp-endpoint", endpoint].map(Into::into));
        }
        if self.options.configuration.is_some() {
            out.extend(["--config".into(), self.configuration().into()]);
        }
        out.extend(self.options.arguments.iter().map(Into::into));
        out
    }

    /// Waits until `/readyz` of the admin address answers 200.
    ///
    /// # Errors
    /// Where the node ends meanwhile or isn't ready in time.
    pub fn wait_ready(&mut self) -> Result<()> {
        let until = Instant::now() + self.options.ready_within;
        let mut last = String::from("nothing was asked yet");
        while Instant::now() < until {
            let child = self.child.as_mut().context("the node was not started")?;
            if let Some(status) = child.try_wait()? {
                self.child = None;
                self.last_exit = Some(status);
                bail!("the node ended ({status}) before it was ready:\n{}", self.last_words());
            }
            match Request::get("/readyz").timeout(Duration::from_secs(1)).send(self.admin.address()) {
                Ok(response) if response.status == 200 => return Ok(()),
                Ok(response) => last = format!("{}: {}", response.status, response.text()),
                Err(error) => last = format!("{error:#}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!(
            "the node was not ready within {:?}; /readyz: {last}\n{}",
            self.options.ready_within,
            self.last_words()
        )
    }

    /// Kills it as a crash would, with SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// Where it doesn't run.
    pub fn kill_nine(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait_exit(Duration::from_secs(10)).map(drop)
    }

    /// Asks it to drain and end.
    ///
    /// # Errors
    /// Where it doesn't run.
    pub fn sigterm(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// Where it doesn't run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        process::signal(self.pid()?, signal)
    }

    /// Waits until it has ended by itself or by a signal.
    ///
    /// # Errors
    /// Where it hasn't by then, or doesn't run.
    pub fn wait_exit(&mut self, within: Duration) -> Result<ExitStatus> {
        let child = self.child.as_mut().context("the node doesn't run")?;
        let Some(status) = process::wait_exit(child, within)? else {
            bail!("the node did not end within {within:?}:\n{}", self.last_words())
        };
        self.child = None;
        self.last_exit = Some(status);
        Ok(status)
    }

    /// How it ended the last time.
    pub fn last_exit(&self) -> Option<ExitStatus> {
        self.last_exit
    }

    /// Whether it runs: it may be found to have ended.
    pub fn runs(&mut self) -> bool {
        match self.child.as_mut().map(Child::try_wait) {
            Some(Ok(Some(status))) => {
                self.child = None;
                self.last_exit = Some(status);
                false
            }
            Some(_) => true,
            None => false,
        }
    }

    /// How it is started the next time.
    pub fn options_mut(&mut self) -> &mut Options {
        &mut self.options
    }

    /// Its process id.
    ///
    /// # Errors
    /// Where it doesn't run.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("the node doesn't run")?.id())
    }

    /// Where it takes traffic.
    pub fn address(&self) -> SocketAddr {
        self.listen.address()
    }

    /// Where its admin API is.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin.address()
    }

    /// Its data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The directory that holds its data directory, its configuration file, its log and what it printed.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The admin API with the operator's token.
    ///
    /// # Errors
    /// Where the token's file isn't there.
    pub fn admin(&self) -> Result<Admin> {
        let path = self.data_dir().join("operator-token");
        let token =
            fs::read_to_string(&path).with_context(|| format!("no operator token in {}", path.display()))?;
        Ok(Admin::new(self.admin.address(), token.trim()))
    }

    /// The file of its access log.
    pub fn log_file(&self) -> PathBuf {
        self.folder.path().join("log.jsonl")
    }

    /// The records of its log so far, access records and others; a line that is still being written is left out.
    ///
    /// # Errors
    /// Where a whole line is not JSON.
    pub fn log(&self) -> Result<Vec<Value>> {
        let text = match fs::read_to_string(self.log_file()) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole
            .lines()
            .map(|line| {
                serde_json::from_str(line)
                    .with_context(|| format!("the log has a line that is no JSON: {line}"))
            })
            .collect()
    }

    /// Waits until the log's records satisfy `enough`, and returns them.
    ///
    /// # Errors
    /// Where they don't by then; the message has the last record.
    pub fn wait_log(&self, within: Duration, enough: impl Fn(&[Value]) -> bool) -> Result<Vec<Value>> {
        let until = Instant::now() + within;
        loop {
            let log = self.log()?;
            if enough(&log) {
                return Ok(log);
            }
            if Instant::now() >= until {
                bail!(
                    "what was awaited did not appear in the log within {within:?}; it has {} records, the last being {:?}",
                    log.len(),
                    log.last()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The last 4 KiB of what it printed.
    pub fn last_words(&self) -> String {
        let bytes = fs::read(self.errors()).unwrap_or_default();
        let from = bytes.len().saturating_sub(4096);
        format!("--- the end of what the node printed:\n{}---", String::from_utf8_lossy(&bytes[from..]))
    }

    fn configuration(&self) -> PathBuf {
        self.folder.path().join("beamline.toml")
    }

    fn errors(&self) -> PathBuf {
        self.folder.path().join("printed.txt")
    }
}

impl Drop for Beamline {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.last_words());
            if std::env::var_os("BEAMLINE_KEEP").is_some() {
                self.folder.disable_cleanup(true);
                eprintln!("kept: {}", self.folder.path().display());
            } else {
                eprintln!("BEAMLINE_KEEP=1 keeps its directory");
            }
        }
    }
}

//! The proxies that are measured, each on the one processor that is theirs and still while another one's turn is.

use std::{
    fmt::Write as _,
    fs,
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use beamline_tests::{
    admin::manifest,
    beamline::{Beamline, Options},
    guests,
    ports::Port,
    process::{self, Guarded},
    tools,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cpu;

/// The processor of the proxy under test. The load generator and the origin have the next one.
pub(crate) const PROXY_CPU: usize = 0;

/// A proxy under test.
pub(crate) trait Proxy {
    /// Where it takes requests.
    fn address(&self) -> SocketAddr;
    /// Its first process; all its others descend from it.
    fn pid(&self) -> Result<u32>;

    /// Stops or continues all its processes.
    fn freeze(&self, still: bool) -> Result<()> {
        let signal = if still { Signal::STOP } else { Signal::CONT };
        cpu::tree(self.pid()?).into_iter().try_for_each(|pid| process::signal(pid, signal))
    }
}

/// nginx with one worker process and a buffered access log.
pub(crate) struct Nginx {
    port: Port,
    child: Guarded,
    _folder: TempDir,
}

impl Nginx {
    pub(crate) fn start(origin: SocketAddr) -> Result<Self> {
        tools::require(&["nginx"])?;
        let (port, folder) = (Port::reserve()?, tempfile::Builder::new().prefix("bench-nginx-").tempdir()?);
        let conf = folder.path().join("nginx.conf");
        fs::write(&conf, configuration(folder.path(), port.address(), origin))?;
        let mut command =
            Command::new(if Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" });
        command
            .arg("-p")
            .arg(folder.path())
            .arg("-c")
            .arg(&conf)
            .arg("-e")
            .arg(folder.path().join("error.log"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = Guarded(process::spawn_on(&mut command, Some(PROXY_CPU)).context("cannot start nginx")?);
        let until = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(port.address()).is_err() {
            if Instant::now() > until {
                let log = fs::read_to_string(folder.path().join("error.log")).unwrap_or_default();
                bail!("nginx did not listen within 10 s:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Self { port, child, _folder: folder })
    }
}

/// The access log as BeamLine's: every request, written in 64 KiB pieces.
fn configuration(folder: &Path, listen: SocketAddr, origin: SocketAddr) -> String {
    let folder = folder.display();
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let mut temporary = String::new();
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        let _ = write!(temporary, "{kind}_temp_path {folder}/{kind}; ");
    }
    format!(
        "{user} daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log warn;\n\
         events {{ worker_connections 8192; multi_accept on; }}\n\
         http {{\n\
         access_log {folder}/access.log combined buffer=64k flush=1s;\n\
         keepalive_requests 1000000; keepalive_timeout 300; {temporary}\n\
         upstream origin {{ server {origin}; keepalive 256; keepalive_requests 1000000; }}\n\
         server {{ listen {listen} backlog=4096; location / {{\n\
         proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
         proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr; }} }} }}\n"
    )
}

impl Proxy for Nginx {
    fn address(&self) -> SocketAddr {
        self.port.address()
    }

    fn pid(&self) -> Result<u32> {
        Ok(self.child.0.id())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master's death would leave its worker.
        for pid in cpu::tree(self.child.0.id()) {
            let _ = process::signal(pid, Signal::KILL);
        }
    }
}

/// BeamLine with one data worker and its access log in a file.
pub(crate) struct Node(Beamline);

/// The host of a node's n-th tenant.
pub(crate) fn host(n: usize) -> String {
    format!("t{n}.bench.test")
}

impl Node {
    /// One that runs already.
    pub(crate) fn of(node: Beamline) -> Self {
        Self(node)
    }

    /// With so many tenants, each without a filter or with a module of its own: `filter` with another custom section
    /// each time, so that no two have the same digest. `binary` in place of the one that is measured.
    pub(crate) fn start(
        origin: SocketAddr,
        tenants: usize,
        filter: Option<&[u8]>,
        binary: Option<&Path>,
    ) -> Result<Self> {
        let options = Options { binary: binary.map(Path::to_owned), ..Options::default() };
        Self::with(options, origin, tenants, filter)
    }

    /// The same, with every filter in one tier.
    pub(crate) fn in_tier(reset: bool, origin: SocketAddr, tenants: usize, filter: &[u8]) -> Result<Self> {
        let arguments = vec!["--reset-tier".into(), reset.to_string()];
        Self::with(Options { arguments, ..Options::default() }, origin, tenants, Some(filter))
    }

    fn with(options: Options, origin: SocketAddr, tenants: usize, filter: Option<&[u8]>) -> Result<Self> {
        let node = Beamline::start(Options {
            workers: 1,
            cpu: Some(PROXY_CPU),
            ready_within: Duration::from_secs(60),
            ..options
        })?;
        let admin = node.admin()?;
        let range = format!("{}/32:{}", origin.ip(), origin.port());
        for n in 0..tenants {
            let (tenant, host) = (format!("t{n}"), host(n));
            admin.create_tenant(&tenant, &[&host], &[&range])?;
            let mut wanted = manifest(&host, origin);
            if let Some(filter) = filter {
                let module = admin.push(&tenant, &guests::variant(filter, &tenant))?;
                wanted["filters"] = json!([{ "name": "bench", "module": module.digest }]);
            }
            admin.apply(&tenant, &wanted)?;
            if (n + 1) % 100 == 0 {
                println!("  {} of {tenants} tenants", n + 1);
            }
        }
        Ok(Self(node))
    }

    /// One tenant with filters as its manifest has them, each with a module of its own; so many workers, all on the
    /// proxy's processor.
    pub(crate) fn of_filters(origin: SocketAddr, workers: usize, filters: &[Value]) -> Result<Self> {
        let node = Beamline::start(Options { workers, cpu: Some(PROXY_CPU), ..Options::default() })?;
        let (admin, host) = (node.admin()?, host(0));
        admin.create_tenant("t0", &[&host], &[&format!("{}/32:{}", origin.ip(), origin.port())])?;
        let mut wanted = manifest(&host, origin);
        let mut named = Vec::new();
        for (n, filter) in filters.iter().enumerate() {
            let module = guests::module(filter["module"].as_str().context("a filter names its module")?)?;
            let mut filter = filter.clone();
            filter["name"] = format!("bench-{n}").into();
            filter["module"] = admin.push("t0", &guests::variant(&module, &format!("{n}")))?.digest.into();
            named.push(filter);
        }
        wanted["filters"] = named.into();
        admin.apply("t0", &wanted)?;
        Ok(Self(node))
    }
}

impl Proxy for Node {
    fn address(&self) -> SocketAddr {
        self.0.address()
    }

    fn pid(&self) -> Result<u32> {
        self.0.pid()
    }
}

impl Drop for Node {
    /// Ends it in order, so that it writes what it writes at its end, such as a profile. What doesn't end is killed.
    fn drop(&mut self) {
        let _ = self.0.sigterm();
        let _ = self.0.wait_exit(Duration::from_secs(10));
    }
}

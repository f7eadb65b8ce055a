//! Envoy with one worker, with a Wasm filter or without: the peer of the filter suite.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use beamline_tests::{
    guests,
    ports::Port,
    process::{self, Guarded},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::proxies::{PROXY_CPU, Proxy};

/// The filter that does what `tiny` does.
const FILTER: &str = "envoy-headers";

/// A running Envoy.
pub(crate) struct Envoy {
    port: Port,
    child: Guarded,
    _folder: TempDir,
}

/// Where `scripts/install-tools.sh envoy` puts it.
fn program() -> Result<PathBuf> {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/envoy/envoy/_bin/envoy");
    if !installed.exists() {
        bail!("no Envoy at {}: `scripts/install-tools.sh envoy` installs it", installed.display());
    }
    Ok(installed)
}

impl Envoy {
    /// In front of `origin`, with so many filters one after the other, its access log written to a file in pieces, as those
    /// of the others are.
    pub(crate) fn start(origin: SocketAddr, filters: usize) -> Result<Self> {
        let (port, folder) = (Port::reserve()?, tempfile::Builder::new().prefix("bench-envoy-").tempdir()?);
        let filters = vec![guests::existing(FILTER)?; filters];
        let (file, log) = (folder.path().join("envoy.json"), folder.path().join("envoy.log"));
        let text = configuration(port.address(), origin, &folder.path().join("access.log"), &filters);
        fs::write(&file, text.to_string())?;
        let mut command = Command::new(program()?);
        command
            .arg("-c")
            .arg(&file)
            .args(["--concurrency", "1", "--disable-hot-restart", "-l", "error", "--log-path"])
            .arg(&log)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = Guarded(process::spawn_on(&mut command, Some(PROXY_CPU)).context("cannot start Envoy")?);
        let until = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(port.address()).is_err() {
            if Instant::now() > until {
                let log = fs::read_to_string(log).unwrap_or_default();
                bail!("Envoy did not listen within 30 s:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Self { port, child, _folder: folder })
    }
}

fn named(kind: &str) -> String {
    format!("type.googleapis.com/envoy.extensions.{kind}")
}

fn socket(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

/// A listener whose requests go to `origin`, by one of two names as the filter says.
fn configuration(listen: SocketAddr, origin: SocketAddr, access_log: &Path, modules: &[PathBuf]) -> Value {
    let cluster = |name: &str| {
        let endpoint = json!({ "endpoint": { "address": socket(origin) } });
        json!({
            "name": name,
            "connect_timeout": "5s",
            "type": "STATIC",
            "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [endpoint] }] },
        })
    };
    let mut filters = Vec::new();
    for (n, module) in modules.iter().enumerate() {
        let (name, code) = (format!("{FILTER}-{n}"), json!({ "local": { "filename": module } }));
        filters.push(json!({
            "name": "envoy.filters.http.wasm",
            "typed_config": {
                "@type": named("filters.http.wasm.v3.Wasm"),
                "config": {
                    "name": name,
                    "vm_config": { "vm_id": name, "runtime": "envoy.wasm.runtime.v8", "code": code },
                },
            },
        }));
    }
    filters.push(json!({
        "name": "envoy.filters.http.router",
        "typed_config": { "@type": named("filters.http.router.v3.Router") },
    }));
    let by_filter = json!({ "name": "x-route", "string_match": { "exact": "other" } });
    let manager = json!({
        "@type": named("filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "bench",
        "access_log": [{
            "name": "envoy.access_loggers.file",
            "typed_config": { "@type": named("access_loggers.file.v3.FileAccessLog"), "path": access_log },
        }],
        "route_config": { "virtual_hosts": [{
            "name": "all",
            "domains": ["*"],
            "routes": [
                { "match": { "prefix": "/", "headers": [by_filter] }, "route": { "cluster": "other" } },
                { "match": { "prefix": "/" }, "route": { "cluster": "origin" } },
            ],
        }] },
        "http_filters": filters,
    });
    let chain = json!({ "name": "envoy.filters.network.http_connection_manager", "typed_config": manager });
    json!({ "static_resources": {
        "listeners": [{
            "name": "bench",
            "address": socket(listen),
            "filter_chains": [{ "filters": [chain] }],
        }],
        "clusters": [cluster("origin"), cluster("other")],
    } })
}

impl Proxy for Envoy {
    fn address(&self) -> SocketAddr {
        self.port.address()
    }

    fn pid(&self) -> Result<u32> {
        Ok(self.child.0.id())
    }
}

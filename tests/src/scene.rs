//! The scene of most tests: a node with one tenant, `acme`, in front of one origin.

use std::{
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{
    admin::{Admin, AdminError, Applied, manifest},
    beamline::{self, Beamline, Options},
    client::{Request, Response},
    guests,
    origin::Origin,
    tools::{self, Curled},
};

/// The tenant.
pub const TENANT: &str = "acme";
/// Its host.
pub const HOST: &str = "acme.test";
/// How long what must happen may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A node, its first tenant, and the origin behind it.
pub struct Scene {
    /// The node.
    pub node: Beamline,
    /// The origin that the tenant's upstream `origin` leads to.
    pub origin: Origin,
    /// The admin API with the operator's token.
    pub admin: Admin,
    /// The tenant's token.
    pub token: String,
}

impl Scene {
    /// Two workers, an access log, no traces.
    ///
    /// # Errors
    /// Where the node doesn't start or refuses its tenant.
    pub fn start() -> Result<Self> {
        Self::with(Options::default())
    }

    /// A node with these options. The tenant may have upstreams anywhere on the loopback network, and proxies to the
    /// origin by its first revision.
    ///
    /// # Errors
    /// Where the node doesn't start or refuses its tenant.
    pub fn with(options: Options) -> Result<Self> {
        Self::on(Beamline::start(options)?)
    }

    /// On a node that runs already and has no tenants.
    ///
    /// # Errors
    /// Where it refuses the tenant.
    pub fn on(node: Beamline) -> Result<Self> {
        let (origin, admin) = (Origin::start(TENANT)?, node.admin()?);
        let token = admin.create_tenant(TENANT, &[HOST], &["127.0.0.0/8"])?;
        let scene = Self { node, origin, admin, token };
        scene.apply(|_| ())?;
        Ok(scene)
    }

    /// As [`with`](Self::with), with the filter `probe` in the chain: it does what the header `x-probe` says.
    ///
    /// # Errors
    /// As [`with`](Self::with), or where the module isn't built.
    pub fn probed(options: Options) -> Result<Self> {
        let scene = Self::with(options)?;
        let probe = scene.filter("probe")?;
        scene.apply(|manifest| manifest["filters"] = json!([probe]))?;
        Ok(scene)
    }

    /// The tenant's smallest manifest.
    pub fn manifest(&self) -> Value {
        manifest(HOST, self.origin.address())
    }

    /// Applies the smallest manifest with a change.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn apply(&self, change: impl FnOnce(&mut Value)) -> Result<Applied, AdminError> {
        let mut manifest = self.manifest();
        change(&mut manifest);
        self.admin.apply(TENANT, &manifest)
    }

    /// Uploads a module; gives a filter of its name for a manifest.
    ///
    /// # Errors
    /// Where it isn't built or is refused.
    pub fn filter(&self, guest: &str) -> Result<Value> {
        let module = self.admin.push(TENANT, &guests::module(guest)?)?;
        Ok(json!({ "name": guest, "module": module.digest }))
    }

    /// Sends a request to the tenant.
    ///
    /// # Errors
    /// Where no whole response comes back in time.
    pub fn send(&self, request: Request) -> Result<Response> {
        request.host(HOST).send(self.node.address())
    }

    /// Has the probe do something with a GET of `target`.
    ///
    /// # Errors
    /// Where no whole response comes back in time.
    pub fn probe(&self, target: &str, step: impl ToString) -> Result<Response> {
        self.send(Request::get(target).header("x-probe", &step.to_string()))
    }

    /// The lines of one metric in `/metrics`.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn metrics_of(&self, family: &str) -> Result<Vec<String>, AdminError> {
        self.admin.metrics_of(family)
    }

    /// Runs curl with these arguments for a path of the tenant, whose host it resolves to the node.
    ///
    /// # Errors
    /// Where curl isn't installed or doesn't end.
    pub fn curl(&self, path: &str, arguments: &[&str]) -> Result<Curled> {
        let to = self.node.address();
        let resolve = format!("{HOST}:{}:{}", to.port(), to.ip());
        let url = format!("http://{HOST}:{}{path}", to.port());
        tools::curl(&[&["--resolve", &resolve, &url], arguments].concat())
    }

    /// Waits for the access record of the request that this answers.
    ///
    /// # Errors
    /// Where it has no request id, or there is no record in time.
    pub fn record(&self, response: &Response) -> Result<Value> {
        let id = response.header("x-request-id").context("every answer has x-request-id")?;
        self.access(|record| record["request.id"] == id)
    }

    /// Waits for the first access record of this kind.
    ///
    /// # Errors
    /// Where there is none in time.
    pub fn access(&self, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let is_it = |record: &&Value| record["kind"] == "access" && wanted(record);
        let log = self.node.wait_log(PATIENCE, |log| log.iter().any(|record| is_it(&record)))?;
        match log.iter().find(is_it) {
            Some(record) => Ok(record.clone()),
            None => bail!("the log forgot a record"),
        }
    }
}

/// Runs `beamline` with these arguments against a node, on the authority of its data directory unless they say otherwise.
///
/// # Errors
/// Where it doesn't end within a minute. Its exit code is the caller's to judge.
pub fn command(node: &Beamline, folder: &Path, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(beamline::binary()?);
    command
        .args(arguments)
        .current_dir(folder)
        .env("BEAMLINE_ADMIN", format!("http://{}", node.admin_address()))
        .env("BEAMLINE_DATA_DIR", node.data_dir())
        .env_remove("BEAMLINE_TOKEN");
    tools::run(&mut command, Duration::from_secs(60))
}

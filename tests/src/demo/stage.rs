//! What the chapters share: the node, its origins, the receiver of traces, and the few ways to act on them.

use std::{
    collections::BTreeMap,
    fmt::Display,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    Told, interrupt::Interrupt, manifest::Manifest, outcome::Missed, printer::Printer, settings::Settings,
};
use crate::{
    beamline::{self, Beamline},
    client::{Request, Response},
    load::{self, Plan, Report},
    origin::Origin,
    otlp::Receiver,
    ports::Port,
};

/// How often a wait looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long the node may go on accepting when it is told to end: nobody is behind it that would have to notice.
const LAME_DUCK: &str = "500ms";

/// A tenant of the story.
pub(super) struct Tenant {
    pub(super) name: &'static str,
    pub(super) host: &'static str,
}

/// The tenant whose story is told.
pub(super) const ACME: Tenant = Tenant { name: "acme", host: "acme.test" };
/// Its neighbour on the same node.
pub(super) const GLOBEX: Tenant = Tenant { name: "globex", host: "globex.test" };

/// Everything that is on stage. Dropping it ends the node, the origins and the receiver, and removes the folder.
pub(super) struct Stage {
    pub(super) settings: Settings,
    pub(super) print: Printer,
    pub(super) interrupt: Interrupt,
    pub(super) node: Beamline,
    pub(super) origins: [Origin; 2],
    pub(super) traces: Receiver,
    /// The queued request whose trace the last chapter shows.
    pub(super) traced: Option<Traced>,
    binary: PathBuf,
    claims: usize,
}

/// A trace to be shown.
pub(super) struct Traced {
    pub(super) trace_id: String,
    /// When the node was killed, in nanoseconds since 1970.
    pub(super) killed: u64,
}

/// A request of the story.
pub(super) struct Ask {
    line: String,
    host: &'static str,
    request: Request,
}

impl Ask {
    pub(super) fn new(method: &str, tenant: &Tenant, path: &str) -> Self {
        Self {
            line: format!("{method} http://{}{path}", tenant.host),
            host: tenant.host,
            request: Request::new(method, path).timeout(Duration::from_secs(10)),
        }
    }

    pub(super) fn get(tenant: &Tenant, path: &str) -> Self {
        Self::new("GET", tenant, path)
    }

    /// With a field, which is shown.
    pub(super) fn header(mut self, name: &str, value: &str) -> Self {
        self.line.push_str(&format!("  {name}: {value}"));
        self.request = self.request.header(name, value);
        self
    }

    /// With a field that is not shown.
    pub(super) fn quiet_header(mut self, name: &str, value: &str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    pub(super) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.request = self.request.body(body);
        self
    }
}

impl Stage {
    /// Sets the stage: origins and receiver run, the node is ready to be started.
    pub(super) fn set(settings: Settings, print: Printer, interrupt: Interrupt) -> Result<Self> {
        settings.check()?;
        let binary = beamline::binary()?;
        let origin = |port: u16| Origin::start_on(&format!("origin {port}"), Port::named(port)?);
        let origins = [origin(settings.origin_1)?, origin(settings.origin_2)?];
        let traces = Receiver::start_on(Port::named(settings.otlp)?)?;
        let node = Beamline::prepare(beamline::Options {
            listen: Some(settings.listen),
            admin: Some(settings.admin),
            otlp_endpoint: Some(traces.endpoint()),
            arguments: ["--lame-duck", LAME_DUCK].map(str::to_owned).to_vec(),
            // Ctrl-C is for the demo, which then ends the node in an orderly way.
            own_group: true,
            ..beamline::Options::default()
        })?;
        Ok(Self { settings, print, interrupt, node, origins, traces, traced: None, binary, claims: 0 })
    }

    /// The node's program, which is its command line too.
    pub(super) fn binary(&self) -> &Path {
        &self.binary
    }

    /// How many claims held so far.
    pub(super) fn claims(&self) -> usize {
        self.claims
    }

    /// States what a chapter has shown.
    ///
    /// # Errors
    /// Where it did not.
    pub(super) fn claim(
        &mut self,
        claim: impl Into<String>,
        holds: bool,
        expected: impl Display,
        found: impl Display,
    ) -> Told {
        let claim = claim.into();
        if !holds {
            self.interrupt.check()?;
            return Err(Missed { claim, expected: expected.to_string(), found: found.to_string() }.into());
        }
        self.claims += 1;
        self.print.met(&claim);
        Ok(())
    }

    /// Runs a command of the binary against the node and shows its line; gives what it printed.
    ///
    /// # Errors
    /// Where it fails, with its own words.
    pub(super) fn beamline(&self, arguments: &[&str]) -> Result<String> {
        self.interrupt.check()?;
        let line = format!("beamline {}", arguments.join(" "));
        self.print.command(&line);
        self.quietly(arguments).with_context(|| format!("expected `{line}` to succeed"))
    }

    /// The same without showing it.
    pub(super) fn quietly(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(&self.binary)
            .args(arguments)
            .env("BEAMLINE_DATA_DIR", self.node.data_dir())
            .env("BEAMLINE_ADMIN", self.settings.admin_url())
            .env_remove("BEAMLINE_TOKEN")
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {}", self.binary.display()))?;
        if !output.status.success() {
            bail!("{} ({})", String::from_utf8_lossy(&output.stderr).trim(), output.status);
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// Applies a manifest and shows what the command says of the revision.
    ///
    /// # Errors
    /// Where it is refused.
    pub(super) fn apply(&self, tenant: &Tenant, manifest: &Manifest, file: &str) -> Result<()> {
        let file = manifest.to_apply(self.node.folder(), file)?;
        let said = self.beamline(&["apply", shown(&file)?, "--tenant", tenant.name])?;
        self.print.detail(revision_in(&said));
        Ok(())
    }

    /// Makes the revision before the active one active again, and shows what the command says of it.
    ///
    /// # Errors
    /// Where it is refused.
    pub(super) fn roll_back(&self, tenant: &Tenant) -> Result<()> {
        let said = self.beamline(&["rollback", "--tenant", tenant.name])?;
        self.print.detail(revision_in(&said));
        Ok(())
    }

    /// An example's manifest.
    ///
    /// # Errors
    /// Where it can't be read.
    pub(super) fn example(&self, tenant: &Tenant) -> Result<Manifest> {
        Manifest::example(&self.settings, tenant.name)
    }

    /// Sends a request to the proxy without showing it.
    ///
    /// # Errors
    /// Where no whole answer comes.
    pub(super) fn send(&self, ask: &Ask) -> Result<Response> {
        self.interrupt.check()?;
        ask.request.clone().host(ask.host).send(self.node.address())
    }

    /// Sends a request to the proxy and shows what becomes of it.
    ///
    /// # Errors
    /// Where no whole answer comes.
    pub(super) fn ask(&self, ask: &Ask) -> Result<Response> {
        let response = self.send(ask)?;
        self.print.exchange(&ask.line, &summary(&response));
        Ok(response)
    }

    /// What the node's log says of a tenant's requests that failed, for a claim that none did.
    pub(super) fn logged_errors(&self, tenant: &Tenant) -> String {
        let mut errors = BTreeMap::<String, usize>::new();
        for record in self.node.log().unwrap_or_default() {
            if record["kind"] == "access" && record["tenant.id"] == tenant.name {
                let error = record["error.type"].as_str();
                error.into_iter().for_each(|error| *errors.entry(error.to_owned()).or_default() += 1);
            }
        }
        format!("in the log of {}: {errors:?}", tenant.name)
    }

    /// Waits until `look` gives what is awaited. What it gives in its place says how far things are.
    ///
    /// # Errors
    /// Where it doesn't by then, or `look` fails.
    pub(super) fn wait<T>(
        &self,
        what: &str,
        within: Duration,
        mut look: impl FnMut() -> Result<Result<T, String>>,
    ) -> Result<T> {
        let until = Instant::now() + within;
        let mut waiting = self.print.waiting(&format!("waiting for {what}"));
        loop {
            self.interrupt.check()?;
            match look()? {
                Ok(found) => return Ok(found),
                Err(found) if Instant::now() >= until => {
                    let expected = format!("{what} within {within:?}");
                    return Err(Missed { claim: format!("waiting for {what}"), expected, found }.into());
                }
                Err(_) => {}
            }
            waiting.tick();
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Lets a time go by, shown as what happens in it.
    ///
    /// # Errors
    /// Where the story is interrupted.
    pub(super) fn pass(&self, what: &str, time: Duration) -> Told {
        let until = Instant::now() + time;
        let mut waiting = self.print.waiting(what);
        while Instant::now() < until {
            self.interrupt.check()?;
            waiting.tick();
            std::thread::sleep(LOOK_EVERY.min(until.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }

    /// Runs a load to its end, shown as `what`.
    ///
    /// # Errors
    /// Where it can't be run.
    pub(super) fn load(&self, what: &str, plan: Plan) -> Result<Report> {
        let time = plan.duration;
        let load = load::start(plan)?;
        self.pass(what, time)?;
        load.finish()
    }
}

/// The path as it can be given to a command.
pub(super) fn shown(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("expected a path in UTF-8; found {}", path.display()))
}

/// The line of what `apply` and `rollback` print that names the revision.
pub(super) fn revision_in(said: &str) -> &str {
    said.lines().find(|line| line.contains("revision ")).unwrap_or(said)
}

/// A response in a few words: the status, the problem, who answered.
fn summary(response: &Response) -> String {
    let mut out = response.status.to_string();
    let problem = response.json().ok();
    let kind = problem.as_ref().and_then(|p| p["type"].as_str()?.rsplit(':').next());
    if let Some(kind) = kind {
        out.push_str(&format!(" {kind}"));
    }
    if let Some(origin) = response.header("x-origin") {
        out.push_str(&format!(" from {origin}"));
    }
    if let Some(after) = response.header("retry-after") {
        out.push_str(&format!(", Retry-After: {after}"));
    }
    out
}

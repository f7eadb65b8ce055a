//! Bootstrap configuration: flags over environment over file over defaults.
//!
//! Only what must be known before the control plane is there. Everything about tenants is in their manifests.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use beamline_filter_host::EngineSettings;
use beamline_model::{
    ByteSize, Ceilings, ConnectionName, Duration as HumanDuration, FilterLimits, LimitClass, LimitClasses,
    MAX_MODULE, ModuleLimits, misread,
};
use beamline_nats::{Auth, ClientCertificate, ConnectionSettings, Connections, ServerAddress, TlsSettings};
use beamline_telemetry::{LogTarget, OtlpEndpoint, Sampler};
use serde::Deserialize;

use crate::bounded::Bounded;

/// Servers that one NATS connection may name.
const NATS_SERVERS: usize = 16;
/// The most that `nats.NAME.max_body` can be: NATS is not for larger messages than 8 MiB.
const NATS_MAX_BODY: ByteSize = ByteSize::kib(8 * 1024 - 64);
/// What compiling a module can be let take at most.
const COMPILE_CPU_MAX: HumanDuration = HumanDuration::secs(600);
/// Address space that compiling the smallest module takes.
const COMPILE_MEMORY_LEAST: ByteSize = ByteSize::mib(512);
const COMPILE_MEMORY_MAX: ByteSize = ByteSize::mib(16 << 10);

/// `beamline serve`: runs a node.
#[derive(clap::Args, Debug, Default)]
pub(crate) struct ServeArgs {
    /// Configuration file (TOML); flags and environment go before it
    #[arg(long, env = "BEAMLINE_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Address to serve tenants' traffic on; may be given more than once [default: 127.0.0.1:8080]
    #[arg(long, env = "BEAMLINE_LISTEN", value_name = "ADDR", value_delimiter = ',')]
    pub(crate) listen: Vec<SocketAddr>,

    /// Address of the admin API [default: 127.0.0.1:9090]
    #[arg(long, env = "BEAMLINE_ADMIN_LISTEN", value_name = "ADDR")]
    pub(crate) admin: Option<SocketAddr>,

    /// Folder for everything that must outlive the process; made (0700) where it is missing [default: beamline-data]
    #[arg(long, env = "BEAMLINE_DATA_DIR", value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,

    /// File with the keys by which secrets and credentials are sealed, one a line as `beamline seal-key generate` prints them
    ///
    /// Readable by its owner alone, and not in the data folder. Without it the systemd credential `beamline-seal-key` is used
    /// where there is one; without either no secret can be set.
    #[arg(long, env = "BEAMLINE_SEAL_KEY_FILE", value_name = "FILE")]
    pub(crate) seal_key_file: Option<PathBuf>,

    /// Data worker threads [default: one for each processor]
    #[arg(long, env = "BEAMLINE_WORKERS", value_name = "N")]
    pub(crate) workers: Option<Bounded<1, 1024>>,

    /// Whether filters that qualify run in the reset tier, where a sandbox is fresh for a microsecond [default: true]
    #[arg(long, env = "BEAMLINE_RESET_TIER", value_name = "true|false")]
    pub(crate) reset_tier: Option<bool>,

    /// Where access records and events go, as JSON Lines: "stdout", "off", or a file [default: stdout]
    #[arg(long, env = "BEAMLINE_LOG", value_name = "TARGET")]
    pub(crate) log: Option<String>,

    /// OTLP/HTTP collector that traces are sent to, such as http://127.0.0.1:4318; none are sent without it
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub(crate) otlp_endpoint: Option<OtlpEndpoint>,

    /// Share of traces that are recorded, from 0 to 1 [default: 1]
    #[arg(long, env = "BEAMLINE_SAMPLE_RATIO", value_name = "RATIO")]
    pub(crate) sample_ratio: Option<Sampler>,

    /// On SIGTERM: how long to go on accepting while not ready any more [default: 5s]
    #[arg(long, value_name = "DURATION")]
    pub(crate) lame_duck: Option<HumanDuration>,

    /// While draining: how long a connection without a request must be quiet before it is closed [default: 1s]
    #[arg(long, value_name = "DURATION")]
    pub(crate) drain_idle_grace: Option<HumanDuration>,

    /// While draining: when requests still under way are cut off [default: 30s]
    #[arg(long, value_name = "DURATION")]
    pub(crate) drain_timeout: Option<HumanDuration>,
}

/// The configuration file. Every key is optional; `docs/reference/configuration.md` has the table.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct FileConfig {
    listen: Vec<SocketAddr>,
    admin: Option<SocketAddr>,
    data_dir: Option<PathBuf>,
    seal_key_file: Option<PathBuf>,
    workers: Option<Bounded<1, 1024>>,
    log: Option<String>,
    otlp_endpoint: Option<OtlpEndpoint>,
    sample_ratio: Option<Sampler>,
    drain: DrainFile,
    queue: QueueFile,
    filters: FiltersFile,
    limits: LimitsFile,
    nats: BTreeMap<ConnectionName, NatsFile>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DrainFile {
    lame_duck: Option<HumanDuration>,
    idle_grace: Option<HumanDuration>,
    timeout: Option<HumanDuration>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct QueueFile {
    max_records: Option<u64>,
    max_bytes: Option<ByteSize>,
    tenant_max_records: Option<u64>,
    tenant_max_bytes: Option<ByteSize>,
    disk_reserve: Option<ByteSize>,
    max_in_flight: Option<Bounded<1, 65_536>>,
    receipt_retention: Option<HumanDuration>,
    max_receipts: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FiltersFile {
    pool_instances: Option<Bounded<16, 16_384>>,
    slow_lane_threads: Option<Bounded<1, 64>>,
    reset_tier: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LimitsFile {
    small: ClassFile,
    large: ClassFile,
}

/// The ceilings of one limit class.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ClassFile {
    cpu: Option<HumanDuration>,
    memory: Option<ByteSize>,
    log: Option<ByteSize>,
    body: Option<ByteSize>,
    concurrency: Option<u32>,
    pinned_instances: Option<u32>,
    host_calls: Option<u32>,
    outbound_calls: Option<u32>,
    kv_bytes: Option<ByteSize>,
    kv_entries: Option<u32>,
    bucket_keys: Option<u32>,
    module_size: Option<ByteSize>,
    compile_cpu: Option<HumanDuration>,
    compile_memory: Option<ByteSize>,
}

/// One NATS connection. Secrets are in files of their own.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NatsFile {
    servers: Vec<ServerAddress>,
    credentials: Option<CredentialsFile>,
    tls: Option<TlsFile>,
    connect_timeout: Option<HumanDuration>,
    ping_interval: Option<HumanDuration>,
    max_body: Option<ByteSize>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "expected { user = \"…\", password_file = \"…\" }, { token_file = \"…\" }, { nkey_seed_file = \"…\" } or { creds_file = \"…\" }"
)]
enum CredentialsFile {
    User { user: String, password_file: PathBuf },
    Token { token_file: PathBuf },
    Nkey { nkey_seed_file: PathBuf },
    Creds { creds_file: PathBuf },
}

/// TLS to the servers of one connection.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TlsFile {
    ca_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    handshake_first: Option<bool>,
}

/// The configuration as the node runs it.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) listen: Vec<SocketAddr>,
    pub(crate) admin: SocketAddr,
    pub(crate) data_dir: PathBuf,
    pub(crate) seal_key_file: Option<PathBuf>,
    pub(crate) workers: usize,
    pub(crate) log: LogTarget,
    pub(crate) otlp_endpoint: Option<OtlpEndpoint>,
    pub(crate) sampler: Sampler,
    pub(crate) lame_duck: Duration,
    pub(crate) drain_idle_grace: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) queue: beamline_queue::Settings,
    pub(crate) pool_instances: u32,
    pub(crate) slow_lane_threads: usize,
    pub(crate) reset_tier: bool,
    pub(crate) limits: LimitClasses,
    pub(crate) nats: Connections,
}

impl QueueFile {
    fn over_defaults(&self, dir: PathBuf) -> beamline_queue::Settings {
        let defaults = beamline_queue::Settings::new(dir);
        beamline_queue::Settings {
            max_records: self.max_records.unwrap_or(defaults.max_records),
            max_bytes: self.max_bytes.map_or(defaults.max_bytes, ByteSize::get),
            tenant_max_records: self.tenant_max_records,
            tenant_max_bytes: self.tenant_max_bytes.map(ByteSize::get),
            min_free_disk: self.disk_reserve.map_or(defaults.min_free_disk, ByteSize::get),
            max_in_flight: self.max_in_flight.map_or(defaults.max_in_flight, |n| n.get() as usize),
            receipt_retention: self.receipt_retention.map_or(defaults.receipt_retention, HumanDuration::get),
            max_receipts: self.max_receipts.unwrap_or(defaults.max_receipts),
            ..defaults
        }
    }
}

impl ClassFile {
    /// The ceilings of `class`, their bounds held.
    fn ceilings(&self, class: LimitClass) -> anyhow::Result<Ceilings> {
        let Ceilings { filter, module } = Ceilings::of(class);
        let filter = FilterLimits {
            cpu: self.cpu.unwrap_or(filter.cpu),
            memory: self.memory.unwrap_or(filter.memory),
            log: self.log.unwrap_or(filter.log),
            body: self.body.unwrap_or(filter.body),
            concurrency: self.concurrency.unwrap_or(filter.concurrency),
            pinned_instances: self.pinned_instances.unwrap_or(filter.pinned_instances),
            host_calls: self.host_calls.unwrap_or(filter.host_calls),
            outbound_calls: self.outbound_calls.unwrap_or(filter.outbound_calls),
            kv_bytes: self.kv_bytes.unwrap_or(filter.kv_bytes),
            kv_entries: self.kv_entries.unwrap_or(filter.kv_entries),
            bucket_keys: self.bucket_keys.unwrap_or(filter.bucket_keys),
        };
        // A ceiling is itself below what any manifest may ask for.
        filter.check().map_err(|problem| anyhow::anyhow!("limits.{class}: {problem}"))?;
        let module = ModuleLimits {
            size: self.module_size.unwrap_or(module.size),
            compile_cpu: self.compile_cpu.unwrap_or(module.compile_cpu),
            compile_memory: self.compile_memory.unwrap_or(module.compile_memory),
        };
        if module.size > MAX_MODULE {
            bail!("limits.{class}.module_size: expected at most {MAX_MODULE}; found {}", module.size);
        }
        if !(HumanDuration::secs(1)..=COMPILE_CPU_MAX).contains(&module.compile_cpu) {
            bail!(
                "limits.{class}.compile_cpu: expected 1s to {COMPILE_CPU_MAX}; found {}",
                module.compile_cpu
            );
        }
        if !(COMPILE_MEMORY_LEAST..=COMPILE_MEMORY_MAX).contains(&module.compile_memory) {
            bail!(
                "limits.{class}.compile_memory: expected {COMPILE_MEMORY_LEAST} to {COMPILE_MEMORY_MAX}; found {}",
                module.compile_memory
            );
        }
        Ok(Ceilings { filter, module })
    }
}

impl CredentialsFile {
    fn auth(&self) -> Auth {
        match self.clone() {
            Self::User { user, password_file } => Auth::User { user, password_file },
            Self::Token { token_file } => Auth::Token { file: token_file },
            Self::Nkey { nkey_seed_file } => Auth::Nkey { seed_file: nkey_seed_file },
            Self::Creds { creds_file } => Auth::Creds { file: creds_file },
        }
    }
}

impl TlsFile {
    fn settings(&self) -> anyhow::Result<TlsSettings> {
        let client = match (self.cert_file.clone(), self.key_file.clone()) {
            (Some(cert_file), Some(key_file)) => Some(ClientCertificate { cert_file, key_file }),
            (None, None) => None,
            (Some(_), None) => bail!("expected key_file beside cert_file; found cert_file alone"),
            (None, Some(_)) => bail!("expected cert_file beside key_file; found key_file alone"),
        };
        Ok(TlsSettings {
            ca_file: self.ca_file.clone(),
            client,
            handshake_first: self.handshake_first.unwrap_or_default(),
        })
    }
}

impl NatsFile {
    /// The connection `name`, its bounds held.
    fn settings(&self, name: &ConnectionName) -> anyhow::Result<ConnectionSettings> {
        if !(1..=NATS_SERVERS).contains(&self.servers.len()) {
            bail!("nats.{name}.servers: expected 1 to {NATS_SERVERS} servers; found {}", self.servers.len());
        }
        let by_tls = self.servers.iter().filter(|server| server.is_tls()).count();
        if self.tls.is_none() && by_tls > 0 && by_tls < self.servers.len() {
            bail!(
                "nats.{name}.servers: expected all of them as tls:// or none; found both: whoever keeps the node from the one kind would get its credentials on the way to the other. Where all have TLS, set nats.{name}.tls"
            );
        }
        let defaults = ConnectionSettings::new(self.servers.clone());
        let within = |key: &str, value: Option<HumanDuration>, default: Duration, most: HumanDuration| {
            let value = value.map_or(default, HumanDuration::get);
            if value > most.get() {
                bail!("nats.{name}.{key}: expected at most {most}; found more");
            }
            Ok(value)
        };
        let max_body = self.max_body.map_or(defaults.max_body, ByteSize::get);
        if !(1..=NATS_MAX_BODY.get()).contains(&max_body) {
            bail!("nats.{name}.max_body: expected 1B to {NATS_MAX_BODY}; found {max_body} bytes");
        }
        let tls = self.tls.as_ref().map(TlsFile::settings).transpose();
        let settings = ConnectionSettings {
            auth: self.credentials.as_ref().map_or(Auth::None, CredentialsFile::auth),
            tls: tls.with_context(|| format!("nats.{name}.tls"))?,
            connect_timeout: within(
                "connect_timeout",
                self.connect_timeout,
                defaults.connect_timeout,
                HumanDuration::secs(60),
            )?,
            ping_interval: within(
                "ping_interval",
                self.ping_interval,
                defaults.ping_interval,
                HumanDuration::secs(60),
            )?,
            max_body,
            ..defaults
        };
        settings.check().map_err(|problem| anyhow::anyhow!("nats.{name}: {problem}"))?;
        Ok(settings)
    }
}

impl FileConfig {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("configuration file {} cannot be read", path.display()))?;
        Self::parse(&text, &path.display().to_string())
    }

    fn parse(text: &str, name: &str) -> anyhow::Result<Self> {
        toml::from_str(text)
            .map_err(|error| anyhow::anyhow!(misread(text, name, error.span(), error.message())))
    }
}

impl Config {
    /// Puts flags (which hold the environment too) over the file over the defaults.
    pub(crate) fn resolve(args: ServeArgs) -> anyhow::Result<Self> {
        let file = args.config.as_deref().map(FileConfig::read).transpose()?.unwrap_or_default();
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let first = |flag: Vec<SocketAddr>, file: Vec<SocketAddr>| if flag.is_empty() { file } else { flag };
        let mut listen = first(args.listen, file.listen);
        if listen.is_empty() {
            listen.push(SocketAddr::from(([127, 0, 0, 1], 8080)));
        }
        let admin = args.admin.or(file.admin).unwrap_or(SocketAddr::from(([127, 0, 0, 1], 9090)));
        if admin.port() != 0 && listen.contains(&admin) {
            bail!("listen and admin are both {admin}: choose another address for one of them");
        }
        let data_dir = args.data_dir.or(file.data_dir).unwrap_or_else(|| "beamline-data".into());
        let queue = file.queue.over_defaults(data_dir.join("queue"));
        let nats = file.nats.iter().map(|(name, nats)| Ok((name.clone(), nats.settings(name)?)));
        let nats = Connections::new(nats.collect::<anyhow::Result<Vec<_>>>()?);
        let defaults = EngineSettings::default();
        let Ok(log) = args.log.or(file.log).unwrap_or_else(|| "stdout".into()).parse();
        let span = |flag: Option<HumanDuration>, file: Option<HumanDuration>, default: HumanDuration| {
            flag.or(file).unwrap_or(default).get()
        };
        Ok(Self {
            listen,
            admin,
            data_dir,
            seal_key_file: args.seal_key_file.or(file.seal_key_file),
            workers: args.workers.or(file.workers).map_or(processors, |n| n.get() as usize),
            log,
            otlp_endpoint: args.otlp_endpoint.or(file.otlp_endpoint),
            sampler: args.sample_ratio.or(file.sample_ratio).unwrap_or(Sampler::ALWAYS),
            lame_duck: span(args.lame_duck, file.drain.lame_duck, HumanDuration::secs(5)),
            drain_idle_grace: span(args.drain_idle_grace, file.drain.idle_grace, HumanDuration::secs(1)),
            drain_timeout: span(args.drain_timeout, file.drain.timeout, HumanDuration::secs(30)),
            queue,
            pool_instances: file.filters.pool_instances.map_or(defaults.pool_instances, Bounded::get),
            slow_lane_threads: file
                .filters
                .slow_lane_threads
                .map_or(defaults.slow_lane_threads, |n| n.get() as usize),
            reset_tier: args.reset_tier.or(file.filters.reset_tier).unwrap_or(defaults.reset_tier),
            limits: LimitClasses {
                small: file.limits.small.ceilings(LimitClass::Small)?,
                large: file.limits.large.ceilings(LimitClass::Large)?,
            },
            nats,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn flags_go_before_the_file_and_the_file_before_defaults() {
        let dir = std::env::temp_dir().join(format!("beamline-config-{}", std::process::id()));
        let text = "workers = 3\nlisten = [\"127.0.0.1:1\"]\n[drain]\nlame_duck = \"9s\"\n\
                    [filters]\nreset_tier = false\n";
        std::fs::write(&dir, text).unwrap();
        let args = ServeArgs {
            config: Some(dir.clone()),
            workers: Some("5".parse().unwrap()),
            ..Default::default()
        };
        let config = Config::resolve(args).unwrap();
        let again = ServeArgs { config: Some(dir.clone()), reset_tier: Some(true), ..Default::default() };
        assert!(Config::resolve(again).unwrap().reset_tier);
        std::fs::remove_file(dir).unwrap();
        assert_eq!((config.workers, config.reset_tier), (5, false));
        assert!(Config::resolve(ServeArgs::default()).unwrap().reset_tier);
        assert_eq!(config.listen[0].port(), 1);
        assert_eq!(config.lame_duck, Duration::from_secs(9));
        assert_eq!(config.admin.port(), 9090);
    }

    #[test]
    fn a_tenants_share_of_the_queue_follows_the_nodes_or_is_its_own() {
        let settings = |text: &str| FileConfig::parse(text, "f").unwrap().queue.over_defaults("queue".into());
        let whole = settings("[queue]\nmax_records = 10\nmax_bytes = \"4GiB\"\n");
        assert_eq!((whole.max_records, whole.tenant_max_records), (10, None), "none: half");
        let own = settings(
            "[queue]\ntenant_max_records = 3\ntenant_max_bytes = \"1MiB\"\ndisk_reserve = \"2GiB\"\n",
        );
        assert_eq!((own.tenant_max_records, own.tenant_max_bytes), (Some(3), Some(1 << 20)));
        assert_eq!((own.max_records, own.min_free_disk), (1_000_000, 2 << 30));
    }

    #[test]
    fn the_defaults_of_the_queue_are_those_of_the_reference_page() {
        let page = include_str!("../../../docs/reference/configuration.md");
        let queue = beamline_queue::Settings::new("queue");
        let mib = |bytes: u64| ByteSize::mib(bytes >> 20).to_string();
        for (key, default) in [
            ("queue.max_records", queue.max_records.to_string()),
            ("queue.max_bytes", mib(queue.max_bytes)),
            ("queue.disk_reserve", mib(queue.min_free_disk)),
            ("queue.max_in_flight", queue.max_in_flight.to_string()),
            ("queue.max_receipts", queue.max_receipts.to_string()),
        ] {
            let row = page.lines().find(|line| line.starts_with(&format!("| `{key}`"))).unwrap();
            assert!(row.contains(&format!("| `{default}` |")), "{row}: expected {default}");
        }
    }

    #[test]
    fn a_nats_connection_is_read_with_its_secret_from_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        std::fs::write(&path, "sesame\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let of = |text: &str| {
            let file = FileConfig::parse(&format!("[nats.main]\n{text}"), "f").map_err(|e| e.to_string())?;
            file.nats
                .iter()
                .next()
                .unwrap()
                .1
                .settings(&"main".parse().unwrap())
                .map_err(|e| format!("{e:#}"))
        };
        let servers = "servers = [\"nats://127.0.0.1:4222\", \"nats://nats.internal\"]\n";
        let user = format!("credentials = {{ user = \"edge\", password_file = {path:?} }}\n");
        let settings = of(&format!("{servers}{user}ping_interval = \"9s\"\n")).unwrap();
        assert_eq!(settings.auth, Auth::User { user: "edge".into(), password_file: path.clone() });
        assert_eq!(settings.tls, None);
        assert_eq!((settings.servers.len(), settings.ping_interval), (2, Duration::from_secs(9)));
        for (text, expected) in [
            ("servers = []\n".to_owned(), "nats.main.servers: expected 1 to 16 servers"),
            ("servers = [\"tls://a\", \"nats://b\"]\n".into(), "expected all of them as tls:// or none"),
            ("servers = [\"nats://u:p@a\"]\n".into(), "credentials do not belong here"),
            (format!("{servers}max_body = \"1GiB\"\n"), "nats.main.max_body: expected 1B to 8128KiB"),
            (format!("{servers}ping_interval = \"2m\"\n"), "nats.main.ping_interval: expected at most 1m"),
            (format!("{servers}password = \"x\"\n"), "unknown field `password`"),
            (format!("{servers}credentials = {{ password = \"x\" }}\n"), "or { creds_file = \"…\" }"),
            (
                format!("{servers}credentials = {{ token_file = \"/none\" }}\n"),
                "nats.main: /none cannot be read",
            ),
            (
                format!("{servers}credentials = {{ nkey_seed_file = {path:?} }}\n"),
                "expected a user's NKey seed",
            ),
            (format!("{servers}credentials = {{ creds_file = {path:?} }}\n"), "expected a .creds file"),
            (format!("{servers}tls = {{ ca_file = \"/none\" }}\n"), "nats.main: /none cannot be read"),
            (format!("{servers}tls = {{ ca_file = {path:?} }}\n"), "expected certificates in PEM"),
            (format!("{servers}tls = {{ cert_file = {path:?} }}\n"), "expected key_file beside cert_file"),
            (format!("{servers}tls = {{ key_file = {path:?} }}\n"), "expected cert_file beside key_file"),
            (format!("{servers}tls = {{ verify = false }}\n"), "unknown field `verify`"),
        ] {
            let error = of(&text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        // What may be a secret is not repeated, wherever it was put.
        for (text, expected) in [
            ("servers = [\"nats://edge:hunter2@host\"]\n".to_owned(), "f:2: "),
            ("servers = [\n  \"nats://edge:hunter2@host\",\n]\n".into(), "credentials do not belong here"),
            (format!("{servers}password = \"hunter2\"\n"), "in `password`"),
            (format!("{servers}credentials = \"hunter2\"\n"), "in `credentials`"),
            (format!("{servers}credentials = {{ password = \"hunter2\" }}\n"), "in `credentials`"),
            (format!("{servers}max_body = [\"hunter2\"]\n"), "in `max_body`"),
            (format!("{servers}password \"hunter2\"\n"), "f:3: "),
            ("servers = \"hunter2\"\n".into(), "in `servers`"),
        ] {
            let error = of(&text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
            assert!(!error.contains("hunter2"), "{text}: {error}");
        }
    }

    #[test]
    fn the_defaults_of_a_nats_connection_are_those_of_the_reference_page() {
        let page = include_str!("../../../docs/reference/configuration.md");
        let defaults = ConnectionSettings::new(Vec::new());
        let seconds = |duration: Duration| format!("{}s", duration.as_secs());
        for (key, default) in [
            ("nats.NAME.connect_timeout", seconds(defaults.connect_timeout)),
            ("nats.NAME.ping_interval", seconds(defaults.ping_interval)),
            ("nats.NAME.max_body", ByteSize::kib(defaults.max_body >> 10).to_string()),
        ] {
            let row = page.lines().find(|line| line.starts_with(&format!("| `{key}`"))).unwrap();
            assert!(row.contains(&format!("| `{default}` |")), "{row}: expected {default}");
        }
    }

    #[test]
    fn the_ceilings_of_a_class_are_held_within_what_the_node_can_do() {
        let of = |text: &str| {
            let file = FileConfig::parse(text, "f").map_err(|e| e.to_string())?;
            file.limits.large.ceilings(LimitClass::Large).map_err(|e| e.to_string())
        };
        assert_eq!(of(""), Ok(Ceilings::of(LimitClass::Large)));
        let set = of("[limits.large]\ncpu = \"10ms\"\nmodule_size = \"64MiB\"\n").unwrap();
        assert_eq!((set.filter.cpu, set.module.size), (HumanDuration::millis(10), ByteSize::mib(64)));
        for (text, expected) in [
            ("memory = \"65MiB\"", "limits.large: limits.memory = 65MiB is beyond the ceiling of 64MiB"),
            ("module_size = \"65MiB\"", "limits.large.module_size: expected at most 64MiB"),
            ("compile_cpu = \"11m\"", "limits.large.compile_cpu: expected 1s to 10m; found 11m"),
            ("compile_memory = \"1MiB\"", "limits.large.compile_memory: expected 512MiB to 16GiB"),
            ("modul_size = \"1MiB\"", "unknown field `modul_size`"),
        ] {
            let error = of(&format!("[limits.large]\n{text}\n")).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_wrong_key_is_named_with_its_line() {
        let error =
            FileConfig::parse("workers = 2\n[drain]\nlameduck = \"5s\"\n", "beamline.toml").unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("beamline.toml:3: ") && text.contains("lameduck"), "{text}");
    }

    #[test]
    fn the_reference_page_shows_a_file_that_is_read_and_has_every_key() {
        let page = include_str!("../../../docs/reference/configuration.md");
        let file = page.split("```toml").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let parsed = FileConfig::parse(file, "configuration.md").unwrap();
        let keys = format!("{parsed:?}");
        assert!(
            !keys.contains("None") && !keys.contains("[]"),
            "a key is missing from the page's file: {keys}"
        );
    }
}

//! From a module's bytes to a module that runs: registry, cache, or the compile worker.

use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
    path::PathBuf,
    process::Stdio,
    sync::{self, Arc, PoisonError, Weak},
    time::Instant,
};

use beamline_model::{ByteSize, Digest, Duration as HumanDuration, LimitClass, ModuleLimits, TenantName};
use bytes::Bytes;
use thiserror::Error;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
};

use crate::{
    cache::Cache,
    compile_worker::{self, Told},
    engine::Engine,
    inspect::{ModuleInfo, Rejection},
    module::Module,
    reset, signature,
    turns::Turns,
};

/// The largest answer of the worker.
const MAX_ANSWER: u64 = 256 << 20;

/// Why there is no compiled module.
#[derive(Clone, Debug, Error)]
pub enum CompileError {
    /// The module cannot be taken, and why.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// The worker was ended by its limits.
    #[error(
        "compiling the module took more than the node gives it ({cpu} of CPU time, {memory} of memory): make the module smaller or simpler"
    )]
    OutOfBounds {
        /// The limit of CPU time; of wall time it is twice that.
        cpu: HumanDuration,
        /// The limit of address space.
        memory: ByteSize,
    },
    /// A fault of the node, not of the module.
    #[error("{0}")]
    Host(String),
}

/// Where modules are compiled and kept.
#[derive(Clone, Debug)]
pub struct CompilerSettings {
    /// The folder of the artifact cache; made with mode 0700.
    pub cache_dir: PathBuf,
    /// The program that runs [`crate::compile_worker`] when called with `compile-worker`. Default `/proc/self/exe`.
    pub worker: PathBuf,
}

impl CompilerSettings {
    /// The running program as its own worker, the cache in `cache_dir`.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self { cache_dir: cache_dir.into(), worker: "/proc/self/exe".into() }
    }
}

/// For whom a module is made ready, and what that may cost.
#[derive(Clone, Debug)]
pub struct Compilation {
    /// The tenant that asked first.
    pub tenant: TenantName,
    /// The tenant's class: each has a lane of its own, so that what may take long keeps nobody waiting who has not asked for
    /// that.
    pub class: LimitClass,
    /// What the module may be, and what compiling it may cost.
    pub limits: ModuleLimits,
}

/// A module that is ready, and whether it had to be compiled for that.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The module.
    pub module: Arc<Module>,
    /// What was found out about it.
    pub info: ModuleInfo,
    /// Whether it came from the registry or the cache.
    pub cached: bool,
}

/// Compiles modules one at a time for each limit class, each digest once. Cheap to clone.
#[derive(Clone)]
pub struct Compiler {
    shared: Arc<Shared>,
}

struct Shared {
    engine: Arc<Engine>,
    cache: Cache,
    worker: PathBuf,
    lanes: Lanes,
    // Control plane only, held for a look-up.
    loaded: sync::Mutex<HashMap<Digest, Weak<Module>>>,
}

/// One compilation at a time in each: of the tenants that wait, the one goes first whose last turn is longest ago.
#[derive(Default)]
struct Lanes {
    small: Arc<Turns>,
    large: Arc<Turns>,
}

impl Lanes {
    fn of(&self, class: LimitClass) -> &Arc<Turns> {
        match class {
            LimitClass::Small => &self.small,
            LimitClass::Large => &self.large,
        }
    }
}

/// Names what a cached artifact depends on: the engines, how modules are rewritten, this version, and the interface,
/// against which a module is checked only when it is compiled.
fn cache_name<'a>(engine: &Engine, rewriter: u32, interface: impl Iterator<Item = &'a str>) -> String {
    let mut hasher = std::hash::DefaultHasher::new();
    engine.wasmtime().precompile_compatibility_hash().hash(&mut hasher);
    engine.cores().wasmtime().precompile_compatibility_hash().hash(&mut hasher);
    rewriter.hash(&mut hasher);
    env!("CARGO_PKG_VERSION").hash(&mut hasher);
    for part in interface {
        part.hash(&mut hasher);
    }
    format!("{:016x}", hasher.finish())
}

impl Compiler {
    /// A compiler for `engine`.
    ///
    /// # Errors
    /// Where the cache's folder or key cannot be made or read.
    pub fn new(engine: Arc<Engine>, settings: CompilerSettings) -> Result<Self, CompileError> {
        let name = cache_name(&engine, reset::REWRITE_VERSION, signature::interface());
        let cache = Cache::open(&settings.cache_dir, name).map_err(|e| {
            CompileError::Host(format!("artifact cache {}: {e}", settings.cache_dir.display()))
        })?;
        Ok(Self {
            shared: Arc::new(Shared {
                engine,
                cache,
                worker: settings.worker,
                lanes: Lanes::default(),
                loaded: sync::Mutex::default(),
            }),
        })
    }

    fn loaded(&self, digest: &Digest) -> Option<Compiled> {
        let mut loaded = self.shared.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let module = loaded.get(digest)?.upgrade();
        let Some(module) = module else {
            loaded.remove(digest);
            return None;
        };
        Some(Compiled { info: module.info().clone(), module, cached: true })
    }

    /// The module of `bytes`, ready to run.
    ///
    /// # Errors
    /// [`CompileError::Rejected`] says what is wrong with the module; the others what the node could not do.
    pub async fn compile(&self, bytes: Bytes, of: &Compilation) -> Result<Compiled, CompileError> {
        let limit = usize::try_from(of.limits.size.get()).unwrap_or(usize::MAX);
        if bytes.len() > limit {
            return Err(Rejection::TooLarge { size: bytes.len(), limit }.into());
        }
        let digest = Digest::of(&bytes);
        if let Some(compiled) = self.loaded(&digest) {
            return Ok(compiled);
        }
        // What needs no compiling waits for no compilation.
        if let Some(compiled) = self.cached(digest).await? {
            return Ok(compiled);
        }
        let _turn = self.shared.lanes.of(of.class).of(&of.tenant).await;
        // Somebody before us in the queue may have brought the same module.
        if let Some(compiled) = self.loaded(&digest) {
            return Ok(compiled);
        }
        if let Some(compiled) = self.cached(digest).await? {
            return Ok(compiled);
        }
        let started = Instant::now();
        let (mut info, artifact) = self.in_worker(&bytes, &of.limits).await?;
        info.compile_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let this = self.clone();
        let module = tokio::task::spawn_blocking(move || {
            if let Err(error) = this.shared.cache.put(&info, &artifact) {
                tracing::warn!(%error, %digest, "a compiled module could not be cached; it will be compiled again");
            }
            this.shared.engine.load(&artifact, info)
        })
        .await
        .map_err(|e| CompileError::Host(e.to_string()))??;
        Ok(self.keep(module, false))
    }

    /// The module of an artifact in the cache. One that does not load there is as good as none.
    async fn cached(&self, digest: Digest) -> Result<Option<Compiled>, CompileError> {
        let this = self.clone();
        let module = tokio::task::spawn_blocking(move || {
            let (info, artifact) = this.shared.cache.get(&digest)?;
            this.shared.engine.load(&artifact, info).ok()
        })
        .await
        .map_err(|e| CompileError::Host(e.to_string()))?;
        Ok(module.map(|module| self.keep(module, true)))
    }

    fn keep(&self, module: Arc<Module>, cached: bool) -> Compiled {
        let mut loaded = self.shared.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.retain(|_, module| module.strong_count() > 0);
        loaded.insert(module.digest(), Arc::downgrade(&module));
        Compiled { info: module.info().clone(), module, cached }
    }

    async fn in_worker(
        &self,
        bytes: &[u8],
        limits: &ModuleLimits,
    ) -> Result<(ModuleInfo, Vec<u8>), CompileError> {
        let out_of_bounds =
            || CompileError::OutOfBounds { cpu: limits.compile_cpu, memory: limits.compile_memory };
        let host = |e: std::io::Error| CompileError::Host(format!("compile worker: {e}"));
        // What this process was started with and knows nothing of is not for the worker either.
        close_fds::set_fds_cloexec_threadsafe(3, &[]);
        let mut child = Command::new(&self.shared.worker)
            .arg("compile-worker")
            .args(compile_worker::arguments(limits))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(host)?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let mut output = Vec::new();
        let exchange = async {
            let feed = async {
                if let Some(mut stdin) = stdin {
                    // A worker that answers before it has read everything closes its end: its answer counts.
                    let _ = stdin.write_all(bytes).await;
                }
            };
            let answer = async {
                if let Some(stdout) = stdout {
                    let mut stdout = stdout.take(MAX_ANSWER);
                    // Whatever has come stays, should the time run out.
                    while stdout.read_buf(&mut output).await? > 0 {}
                }
                Ok::<_, std::io::Error>(())
            };
            let complaint = async {
                let mut text = String::new();
                if let Some(stderr) = stderr {
                    let _ = stderr.take(4096).read_to_string(&mut text).await;
                }
                text
            };
            let ((), answer, complaint) = tokio::join!(feed, answer, complaint);
            answer?;
            Ok::<_, std::io::Error>((complaint, child.wait().await?))
        };
        let ended = tokio::time::timeout(limits.compile_cpu.get() * 2, exchange)
            .await
            .ok()
            .transpose()
            .map_err(host)?;
        let told = Told::parse(&output);
        match (told, ended) {
            (Some(told), _) => Ok(told.artifact()?),
            (None, Some((_, status))) if status.success() => {
                Err(CompileError::Host("the compile worker's answer is not of the expected form".into()))
            }
            (None, ended) => {
                if let Some((complaint, status)) = ended {
                    let complaint = complaint.trim();
                    tracing::warn!(%status, complaint, "the compile worker ended without an answer");
                }
                Err(out_of_bounds())
            }
        }
    }
}

impl std::fmt::Debug for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Compiler")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn what_may_take_long_keeps_no_small_one_waiting() {
        let folder = tempfile::tempdir().unwrap();
        // A worker that is not there: who has the turn is told so.
        let settings =
            CompilerSettings { cache_dir: folder.path().into(), worker: folder.path().join("none") };
        let compiler = Compiler::new(Arc::clone(crate::tests::engine()), settings).unwrap();
        let _long = compiler.shared.lanes.large.of(&"acme".parse().unwrap()).await;
        let compile = async |class, patience| {
            let of = Compilation {
                tenant: "acme".parse().unwrap(),
                class,
                limits: beamline_model::Ceilings::of(class).module,
            };
            let compiled = compiler.compile(Bytes::from_static(b"\0asm\x01\0\0\0"), &of);
            tokio::time::timeout(patience, compiled).await
        };
        let small = compile(LimitClass::Small, Duration::from_secs(20)).await.expect("it waits for nobody");
        assert!(matches!(small, Err(CompileError::Host(_))), "{small:?}");
        let large = compile(LimitClass::Large, Duration::from_millis(50)).await;
        assert!(large.is_err(), "its lane is taken: {large:?}");
    }

    #[test]
    fn an_artifact_of_another_interface_is_not_this_ones() {
        let engine = crate::tests::engine();
        let here: Vec<_> = signature::interface().collect();
        let name = |interface: &[&'static str]| cache_name(engine, 7, interface.iter().copied());
        assert_eq!(name(&here), cache_name(engine, 7, signature::interface()));
        for changed in 0..here.len() {
            let mut other = here.clone();
            other[changed] = "other";
            assert_ne!(name(&other), name(&here));
        }
    }

    #[test]
    fn an_artifact_that_was_rewritten_in_another_way_is_not_this_ones() {
        let engine = crate::tests::engine();
        assert_ne!(
            cache_name(engine, 7, signature::interface()),
            cache_name(engine, 8, signature::interface())
        );
    }
}

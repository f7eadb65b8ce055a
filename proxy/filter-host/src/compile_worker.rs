//! The child process that sees a module's bytes first: checks, compiles, answers, ends.
//!
//! `beamline compile-worker` reads one module from standard input and writes one answer to standard output: the
//! length of a JSON document (u32, little endian), the document, and where the module was taken, its artifact.
//! It sets its own limits of address space and CPU time before it reads a byte. A bomb kills it, never the proxy.

use std::{
    io::{self, Read, Write},
    time::{Duration, Instant},
};

use beamline_model::Digest;
use rustix::process::{Resource, Rlimit};
use serde::{Deserialize, Serialize};

use crate::{
    artifact::Artifact,
    bindings::RequestFilterPre,
    engine::{compiling_core_engine, compiling_engine, linker},
    inspect::{Inspected, MAX_MODULE_BYTES, ModuleInfo, Rejection, Tier, inspect},
    reset::{Unqualified, qualify, rewrite},
    signature,
};

/// Address space of the worker.
const MAX_ADDRESS_SPACE: u64 = 2 << 30;
/// What the first compilation may take for there to be a second one: the worker's CPU time must do for both.
const LONG: Duration = Duration::from_secs(6);
/// CPU seconds of the worker.
pub(crate) const MAX_CPU_SECONDS: u64 = 20;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    Taken(ModuleInfo),
    Rejected(Rejection),
}

/// The worker's whole life. Returns the process's exit code.
pub fn run() -> i32 {
    let limit = |maximum| Rlimit { current: Some(maximum), maximum: Some(maximum) };
    let limited = rustix::process::setrlimit(Resource::As, limit(MAX_ADDRESS_SPACE))
        .and_then(|()| rustix::process::setrlimit(Resource::Cpu, limit(MAX_CPU_SECONDS)))
        .and_then(|()| rustix::process::setrlimit(Resource::Core, limit(0)));
    if let Err(error) = limited {
        eprintln!("compile-worker: limits could not be set: {error}");
        return 1;
    }
    // Compiling gives way to serving. Without the right to say so, it competes.
    let _ = rustix::process::setpriority_process(None, 15);
    let mut bytes = Vec::new();
    let answered = io::stdin()
        .lock()
        .take(MAX_MODULE_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| e.to_string())
        .and_then(|_| compile(&bytes))
        .and_then(|(answer, artifact)| write(&answer, &artifact).map_err(|e| e.to_string()));
    match answered {
        Ok(()) => 0,
        Err(problem) => {
            eprintln!("compile-worker: {problem}");
            1
        }
    }
}

fn write(answer: &Answer, artifact: &[u8]) -> io::Result<()> {
    let json = serde_json::to_vec(answer)?;
    let length = u32::try_from(json.len()).map_err(io::Error::other)?;
    let mut out = io::stdout().lock();
    out.write_all(&length.to_le_bytes())?;
    out.write_all(&json)?;
    out.write_all(artifact)?;
    out.flush()
}

/// Checks and compiles one module. `Err` is a fault of the host.
pub(crate) fn compile(bytes: &[u8]) -> Result<(Answer, Vec<u8>), String> {
    let started = Instant::now();
    let inspected = match inspect(bytes) {
        Ok(inspected) => inspected,
        Err(rejection) => return Ok((Answer::Rejected(rejection), Vec::new())),
    };
    let engine = compiling_engine().map_err(|e| format!("{e:#}"))?;
    let mismatch = |e: wasmtime::Error| Answer::Rejected(Rejection::Mismatch { problem: format!("{e:#}") });
    let component = match wasmtime::component::Component::new(&engine, &inspected.component) {
        Ok(component) => component,
        Err(error) => {
            let rejection = Rejection::Invalid { problem: format!("{error:#}") };
            return Ok((Answer::Rejected(rejection), Vec::new()));
        }
    };
    if let Some(resources) = component.resources_required()
        && (resources.num_memories > 1 || resources.max_initial_memory_size.is_some_and(|m| m > 64 << 20))
    {
        let problem = format!(
            "{} memories of at first {} bytes; an instance may have 1 memory of at most 64 MiB",
            resources.num_memories,
            resources.max_initial_memory_size.unwrap_or(0)
        );
        return Ok((Answer::Rejected(Rejection::TooDemanding { problem }), Vec::new()));
    }
    let linker = linker(&engine).map_err(|e| format!("{e:#}"))?;
    if let Err(error) = linker.instantiate_pre(&component).and_then(RequestFilterPre::new) {
        return Ok((mismatch(error), Vec::new()));
    }
    if let Err(rejection) = signature::check(&engine, &component) {
        return Ok((Answer::Rejected(rejection), Vec::new()));
    }
    let core = core(bytes, &inspected, started);
    let (tier, tier_reason) = match &core {
        Ok(_) => (Tier::Reset, None),
        Err(reason) => (Tier::Component, Some(reason.to_string())),
    };
    let artifact =
        Artifact { component: component.serialize().map_err(|e| format!("{e:#}"))?, core: core.ok() };
    let artifact = artifact.to_bytes();
    let info = ModuleInfo {
        digest: Digest::of(bytes),
        kind: inspected.kind,
        phases: inspected.phases,
        imports: inspected.imports,
        tier,
        tier_reason,
        size: bytes.len() as u64,
        artifact_size: artifact.len() as u64,
        compile_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    Ok((Answer::Taken(info), artifact))
}

/// The module compiled for the reset tier, or why it is not in it.
fn core(bytes: &[u8], inspected: &Inspected, started: Instant) -> Result<Vec<u8>, Unqualified> {
    let qualified = qualify(bytes, inspected.kind, &inspected.component, &inspected.phases)?;
    if started.elapsed() > LONG {
        return Err(Unqualified::Slow);
    }
    let rewritten = rewrite(&qualified)?;
    compiling_core_engine()
        .and_then(|engine| engine.precompile_module(&rewritten))
        .map_err(|e| Unqualified::Rewrite(format!("{e:#}")))
}

//! The child process that sees a module's bytes first: checks, compiles, answers, ends.
//!
//! `beamline compile-worker` reads one module from standard input and writes one answer to standard output: the
//! length of a JSON document (u32, little endian), the document, and where the module was taken, its artifact.
//! Its arguments are its limits: bytes of the module, seconds of CPU time, bytes of address space. It sets them before it
//! reads a byte. A bomb kills it, never the proxy.

use std::{
    io::{self, Read, Write},
    time::Instant,
};

use beamline_model::{Digest, ModuleLimits};
use rustix::process::{Resource, Rlimit};
use serde::{Deserialize, Serialize};

use crate::{
    engine::{compiling_engine, linker},
    inspect::{ModuleInfo, Rejection, inspect},
    signature,
};

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    Taken(ModuleInfo),
    Rejected(Rejection),
}

/// The worker's limits as its arguments, in the order in which [`run`] reads them.
pub(crate) fn arguments(limits: &ModuleLimits) -> [String; 3] {
    [limits.size.get(), limits.compile_cpu.get().as_secs().max(1), limits.compile_memory.get()]
        .map(|n| n.to_string())
}

/// The worker's whole life. `arguments` are those after its name. Returns the process's exit code.
pub fn run(arguments: impl Iterator<Item = String>) -> i32 {
    let numbers: Option<Vec<u64>> = arguments.map(|n| n.parse().ok()).collect();
    let Some(&[size, cpu_seconds, address_space]) = numbers.as_deref() else {
        eprintln!(
            "compile-worker: expected three numbers: module bytes, CPU seconds, bytes of address space"
        );
        return 1;
    };
    let limit = |maximum| Rlimit { current: Some(maximum), maximum: Some(maximum) };
    let limited = rustix::process::setrlimit(Resource::As, limit(address_space))
        .and_then(|()| rustix::process::setrlimit(Resource::Cpu, limit(cpu_seconds)))
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
        .take(size)
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
    let linked =
        linker.instantiate_pre(&component).and_then(|_| linker.substituted_component_type(&component));
    match linked.map(|ty| signature::check(&engine, &ty)) {
        Ok(Ok(())) => {}
        Ok(Err(rejection)) => return Ok((Answer::Rejected(rejection), Vec::new())),
        Err(error) => return Ok((mismatch(error), Vec::new())),
    }
    let artifact = component.serialize().map_err(|e| format!("{e:#}"))?;
    let info = ModuleInfo {
        digest: Digest::of(bytes),
        kind: inspected.kind,
        phases: inspected.phases,
        imports: inspected.imports,
        size: bytes.len() as u64,
        artifact_size: artifact.len() as u64,
        compile_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    Ok((Answer::Taken(info), artifact))
}

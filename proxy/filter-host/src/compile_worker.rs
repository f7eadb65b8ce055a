//! The child process that sees a module's bytes first: checks, compiles, answers, ends.
//!
//! `beamline compile-worker` reads one module from standard input and answers on standard output with one frame or two: the
//! length of a JSON document (u32, little endian), the document, the length of machine code, the code. The first says
//! whether the module was taken, and has its component. Of one that was taken, the second has the core module for the
//! reset tier, or the reason why there is none. A worker that dies of the second compilation has given the first answer.
//! Its arguments are its limits: bytes of the module, seconds of CPU time, bytes of address space. It sets them before it
//! reads a byte. A bomb kills it, never the proxy.

use std::{
    io::{self, Read, Write},
    time::Duration,
};

use beamline_model::{Digest, ModuleLimits};
use rustix::process::{Resource, Rlimit};
use serde::{Deserialize, Serialize};

use crate::{
    artifact::Artifact,
    call::thread_cpu,
    engine::{compiling_core_engine, compiling_engine, linker},
    inspect::{Inspected, ModuleInfo, Rejection, Tier, inspect},
    reset::{Unqualified, qualify, rewrite},
    signature,
};

/// CPU time that the first compilation may take for there to be a second one: the worker's CPU time must do for both.
const LONG: Duration = Duration::from_secs(6);

/// What the first frame says.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    Taken(ModuleInfo),
    Rejected(Rejection),
}

/// What the second frame says.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum CoreAnswer {
    Compiled,
    /// Why there is no core module.
    Unqualified(String),
}

/// What the worker has said so far: both frames, as far as they are whole.
pub(crate) struct Told {
    pub(crate) answer: Answer,
    pub(crate) component: Vec<u8>,
    /// The core module, or why there is none.
    core: Result<Vec<u8>, String>,
}

impl Told {
    /// Of the worker's output, which may end anywhere. None where the first frame is not whole.
    pub(crate) fn parse(output: &[u8]) -> Option<Self> {
        let (answer, component, rest) = parse_frame(output)?;
        let core = match parse_frame(rest) {
            Some((CoreAnswer::Compiled, core, _)) => Ok(core.to_vec()),
            Some((CoreAnswer::Unqualified(reason), ..)) => Err(reason),
            None => Err(Unqualified::OutOfBounds.to_string()),
        };
        Some(Self { answer, component: component.to_vec(), core })
    }

    /// The module's description and its artifact, or why it was not taken.
    pub(crate) fn artifact(self) -> Result<(ModuleInfo, Vec<u8>), Rejection> {
        let mut info = match self.answer {
            Answer::Taken(info) => info,
            Answer::Rejected(rejection) => return Err(rejection),
        };
        (info.tier, info.tier_reason) = match &self.core {
            Ok(_) => (Tier::Reset, None),
            Err(reason) => (Tier::Component, Some(reason.clone())),
        };
        let artifact = Artifact { component: self.component, core: self.core.ok() }.to_bytes();
        info.artifact_size = artifact.len() as u64;
        Ok((info, artifact))
    }
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
        .and_then(|_| answer(&bytes, &mut io::stdout().lock()));
    match answered {
        Ok(()) => 0,
        Err(problem) => {
            eprintln!("compile-worker: {problem}");
            1
        }
    }
}

fn write_frame(out: &mut impl Write, answer: &impl Serialize, code: &[u8]) -> io::Result<()> {
    for part in [serde_json::to_vec(answer)?.as_slice(), code] {
        let length = u32::try_from(part.len()).map_err(io::Error::other)?;
        out.write_all(&length.to_le_bytes())?;
        out.write_all(part)?;
    }
    out.flush()
}

/// A frame's answer and code, and what follows it. None where it is not whole, or not of this form.
fn parse_frame<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Option<(T, &'a [u8], &'a [u8])> {
    fn part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        rest.split_at_checked(u32::from_le_bytes(*length) as usize)
    }
    let (json, rest) = part(bytes)?;
    let (code, rest) = part(rest)?;
    Some((serde_json::from_slice(json).ok()?, code, rest))
}

/// Checks and compiles one module, and answers. `Err` is a fault of the host.
pub(crate) fn answer(bytes: &[u8], out: &mut impl Write) -> Result<(), String> {
    let broken = |e: &dyn std::fmt::Display| format!("{e:#}");
    let began = thread_cpu();
    let inspected = match inspect(bytes) {
        Ok(inspected) => inspected,
        Err(rejection) => {
            return write_frame(out, &Answer::Rejected(rejection), &[]).map_err(|e| broken(&e));
        }
    };
    let (answer, component) = component(bytes, &inspected)?;
    write_frame(out, &answer, &component).map_err(|e| broken(&e))?;
    if let Answer::Rejected(_) = answer {
        return Ok(());
    }
    let (answer, core) = match core(bytes, &inspected, began) {
        Ok(core) => (CoreAnswer::Compiled, core),
        Err(reason) => (CoreAnswer::Unqualified(reason.to_string()), Vec::new()),
    };
    write_frame(out, &answer, &core).map_err(|e| broken(&e))
}

/// The module's description with its component compiled, or why it is not taken. `Err` is a fault of the host.
fn component(bytes: &[u8], inspected: &Inspected) -> Result<(Answer, Vec<u8>), String> {
    let engine = compiling_engine().map_err(|e| format!("{e:#}"))?;
    let rejected = |rejection| Ok((Answer::Rejected(rejection), Vec::new()));
    let component = match wasmtime::component::Component::new(&engine, &inspected.component) {
        Ok(component) => component,
        Err(error) => return rejected(Rejection::Invalid { problem: format!("{error:#}") }),
    };
    if let Some(resources) = component.resources_required()
        && (resources.num_memories > 1 || resources.max_initial_memory_size.is_some_and(|m| m > 64 << 20))
    {
        let problem = format!(
            "{} memories of at first {} bytes; an instance may have 1 memory of at most 64 MiB",
            resources.num_memories,
            resources.max_initial_memory_size.unwrap_or(0)
        );
        return rejected(Rejection::TooDemanding { problem });
    }
    let linker = linker(&engine).map_err(|e| format!("{e:#}"))?;
    let linked =
        linker.instantiate_pre(&component).and_then(|_| linker.substituted_component_type(&component));
    match linked.map(|ty| signature::check(&engine, &ty)) {
        Ok(Ok(())) => {}
        Ok(Err(rejection)) => return rejected(rejection),
        Err(error) => return rejected(Rejection::Mismatch { problem: format!("{error:#}") }),
    }
    let info = ModuleInfo {
        digest: Digest::of(bytes),
        kind: inspected.kind,
        phases: inspected.phases.clone(),
        imports: inspected.imports.clone(),
        tier: Tier::Component,
        tier_reason: None,
        size: bytes.len() as u64,
        // The host knows these when it has both frames.
        artifact_size: 0,
        compile_ms: 0,
    };
    Ok((Answer::Taken(info), component.serialize().map_err(|e| format!("{e:#}"))?))
}

/// The module compiled for the reset tier, or why it is not in it. `began`: this thread's CPU time at first.
fn core(bytes: &[u8], inspected: &Inspected, began: Duration) -> Result<Vec<u8>, Unqualified> {
    let qualified = qualify(bytes, inspected.kind, &inspected.component, &inspected.phases)?;
    if thread_cpu().saturating_sub(began) > LONG {
        return Err(Unqualified::Slow);
    }
    let rewritten = rewrite(&qualified)?;
    compiling_core_engine()
        .and_then(|engine| engine.precompile_module(&rewritten))
        .map_err(|e| Unqualified::Rewrite(format!("{e:#}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_dies_of_the_second_compilation_has_answered_for_the_component() {
        let module = crate::tests::guest("tiny.wasm");
        let mut output = Vec::new();
        answer(&module, &mut output).unwrap();
        let (info, whole) = Told::parse(&output).unwrap().artifact().unwrap();
        assert_eq!((info.tier, info.tier_reason), (Tier::Reset, None));
        assert_eq!(info.artifact_size, whole.len() as u64);
        let (_, component, rest) = parse_frame::<Answer>(&output).unwrap();
        // Wherever within the second frame it ends.
        for left in [0, 1, 10, rest.len() - 1] {
            let cut = &output[..output.len() - rest.len() + left];
            let (info, artifact) = Told::parse(cut).unwrap().artifact().unwrap();
            assert_eq!(info.tier, Tier::Component);
            assert_eq!(info.tier_reason, Some(Unqualified::OutOfBounds.to_string()));
            assert_eq!(Artifact::split(&artifact), Some((component, None)));
        }
        // Within the first there is no answer.
        assert!(Told::parse(&output[..output.len() - rest.len() - 1]).is_none());
    }
}

//! `make bench SUITE=…`: figures that depend on time, held against bars. What `make test` counts, this measures.

mod cpu;
mod envoy;
mod proxies;
mod report;
mod suites;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};

/// Measures BeamLine beside its peers and says which bars were met or missed.
#[derive(Parser, Debug)]
#[command(name = "bench")]
struct Settings {
    /// What is measured.
    #[arg(default_value = "core")]
    suite: Suite,
    /// Rounds: each system has a turn in each of them. Default 15, of the queue suite 5.
    #[arg(long)]
    rounds: Option<usize>,
    /// How long a turn lasts.
    #[arg(long, default_value_t = 500, value_name = "MS")]
    round_ms: u64,
    /// Connections of the load generator.
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// How many modules the node with many modules has, each in a tenant of its own.
    #[arg(long, default_value_t = 1000)]
    modules: usize,
    /// How many tenants the density suite's node has.
    #[arg(long, default_value_t = 10_000)]
    tenants: usize,
    /// The filter that reads 12 headers, `x-h1` to `x-h12`, and routes to `origin`.
    #[arg(long, default_value = "target/guests/tiny.wasm", value_name = "FILE")]
    filter: PathBuf,
    /// Whether the core suite runs its scenes, which measure latency, beside its CPU tables.
    #[arg(long, default_value = "all", value_name = "WHICH")]
    scenes: Scenes,
    /// Of the core suite, this scene alone. May be given again.
    #[arg(long, value_name = "SCENE", conflicts_with = "scenes")]
    scene: Vec<suites::scenes::Which>,
    /// Of the queue suite, this part alone. May be given again.
    #[arg(long, value_name = "PART")]
    part: Vec<suites::queue::Part>,
    /// Another build of BeamLine that takes its turns in the same rounds, for comparing two builds. May be given again.
    #[arg(long, value_name = "BINARY")]
    against: Vec<PathBuf>,
    /// Where the figures go as JSON.
    #[arg(long, default_value = "target/bench", value_name = "FOLDER")]
    out: PathBuf,
    /// Ends with an error where a bar was missed.
    #[arg(long)]
    strict: bool,
}

impl Settings {
    /// The filter's bytes.
    fn filter_module(&self) -> Result<Vec<u8>> {
        std::fs::read(&self.filter).with_context(|| {
            format!("the filter {} can't be read: `make guests` builds it", self.filter.display())
        })
    }

    /// What of the core suite is to be run.
    fn scenes(&self) -> Scenes {
        if self.scene.is_empty() { self.scenes } else { Scenes::Only }
    }

    /// As many rounds as were asked for.
    fn rounds(&self, otherwise: usize) -> usize {
        self.rounds.unwrap_or(otherwise)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// CPU per request beside nginx, without a filter and with one.
    Core,
    /// Filters in each tier: what they add to a request.
    Filter,
    /// Ten thousand tenants on one node.
    Density,
    /// The durable queue.
    Queue,
    /// HTTP in all its shapes.
    Dataplane,
    /// What logs, spans and metrics cost.
    Telemetry,
    /// No measurement: the mix that a release build is trained with.
    Train,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scenes {
    /// The scenes without the CPU tables.
    Only,
    /// The CPU tables without the scenes.
    None,
    /// The CPU tables, then the scenes.
    All,
}

fn main() -> Result<ExitCode> {
    let settings = Settings::parse();
    let missed = match settings.suite {
        Suite::Core => suites::core::run(&settings)?,
        Suite::Filter => suites::filter::run(&settings)?,
        Suite::Density => suites::density::run(&settings)?,
        Suite::Queue => suites::queue::run(&settings)?,
        Suite::Train => {
            suites::train::run(&settings)?;
            0
        }
        other => {
            let name = other.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default();
            println!("{name}: no bars yet");
            0
        }
    };
    Ok(if settings.strict && missed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

//! `beamline`: the node (`serve`), and the command line to it.

mod bounded;
mod cli;
mod config;
mod housekeeping;
mod inherit;
mod lifecycle;
mod seal_keys;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A multi-tenant edge proxy whose tenants upload their routing logic as WebAssembly modules.
///
/// Start a node with `beamline serve`, create a tenant with `beamline tenant create`, give it a manifest with
/// `beamline apply`. Everything but `serve` talks to a node's admin API.
#[derive(Parser, Debug)]
#[command(name = "beamline", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run a node
    ///
    /// Serves tenants' traffic and the admin API until SIGTERM or SIGINT, then drains. The first start writes the
    /// operator's token to DATA_DIR/operator-token (readable by its owner alone).
    Serve(Box<config::ServeArgs>),
    /// Compile one module from standard input: the node's own helper process
    #[command(hide = true)]
    CompileWorker,
    SealKey(cli::SealKeyArgs),
    #[command(flatten)]
    Client(cli::Command),
}

fn main() -> ExitCode {
    // Before anything else: this process is about to read hostile bytes and needs none of what follows.
    if std::env::args_os().nth(1).is_some_and(|a| a == "compile-worker") {
        // The node's own, which a child process begins with.
        let _ = rustix::thread::disable_transparent_huge_pages(false);
        let limits = std::env::args_os().skip(2).map(|a| a.to_string_lossy().into_owned());
        return ExitCode::from(u8::try_from(beamline_filter_host::compile_worker(limits)).unwrap_or(1));
    }
    match Cli::parse().command {
        Command::CompileWorker => ExitCode::FAILURE,
        Command::Serve(args) => match serve::run(*args) {
            Ok(code) => code,
            Err(error) => {
                eprintln!("beamline: {error:#}");
                ExitCode::from(2)
            }
        },
        Command::SealKey(args) => cli::print_key(&args),
        Command::Client(command) => cli::run(&command),
    }
}

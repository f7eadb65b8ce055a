//! The client side of the command line: each command is one or a few requests to a node's admin API.
//!
//! A command answers with a [`Report`] or a [`Failure`]; only [`run`] prints and chooses the exit code. Nothing here
//! decides what the node decides: what it refuses is shown as it said it.

mod apply;
mod audit;
mod client;
mod failure;
mod node_args;
mod push;
mod queue;
#[cfg(test)]
mod reference;
mod report;
mod rollback;
mod seal_key;
mod secret;
mod show;
mod status;
mod tenant;
#[cfg(test)]
mod testing;
mod token;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Subcommand;

use failure::Failure;
use node_args::NodeArgs;
use report::Report;
pub(crate) use seal_key::SealKeyArgs;

/// What a node can be asked to do. Each command's file holds its help.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Tenant(tenant::TenantArgs),
    Push(push::PushArgs),
    Apply(apply::ApplyArgs),
    Show(show::ShowArgs),
    Rollback(rollback::RollbackArgs),
    Secret(secret::SecretArgs),
    Status(status::StatusArgs),
    Queue(queue::QueueArgs),
    Audit(audit::AuditArgs),
}

/// Does what `command` says, prints what came of it, and returns the process's exit code: 0 done, 1 refused by the
/// node, 2 wrong here, 3 no node to be reached.
pub(crate) fn run(command: &Command) -> ExitCode {
    let json = command.node().json;
    // A reader that went away, as `head` does, has seen what it wanted.
    match ask(command) {
        Ok(report) => {
            let _ = write_flushed(io::stdout(), &report.rendered(json));
            ExitCode::SUCCESS
        }
        Err(failure) => {
            let _ = write_flushed(io::stderr(), &failure.rendered(json));
            failure.exit_code()
        }
    }
}

/// Prints a new key for a node's seal key file; no node is asked.
pub(crate) fn print_key(args: &SealKeyArgs) -> ExitCode {
    let mut out = io::stdout().lock();
    let line = seal_key::line(args);
    // A key that did not come through whole must not be taken for one.
    match writeln!(out, "{}", line.reveal()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(2),
    }
}

fn write_flushed(mut to: impl Write, text: &str) -> io::Result<()> {
    to.write_all(text.as_bytes())?;
    to.flush()
}

impl Command {
    fn node(&self) -> &NodeArgs {
        match self {
            Self::Tenant(args) => &args.node,
            Self::Push(args) => &args.node,
            Self::Apply(args) => &args.node,
            Self::Show(args) => &args.node,
            Self::Rollback(args) => &args.node,
            Self::Secret(args) => &args.node,
            Self::Status(args) => &args.node,
            Self::Queue(args) => &args.node,
            Self::Audit(args) => &args.node,
        }
    }
}

fn ask(command: &Command) -> Result<Report, Failure> {
    match command {
        Command::Tenant(args) => tenant::run(args),
        Command::Push(args) => push::run(args),
        Command::Apply(args) => apply::run(args),
        Command::Show(args) => show::run(args),
        Command::Rollback(args) => rollback::run(args),
        Command::Secret(args) => secret::run(args),
        Command::Status(args) => status::run(args),
        Command::Queue(args) => queue::run(args),
        Command::Audit(args) => audit::run(args),
    }
}

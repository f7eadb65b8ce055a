//! The options that every command to a node has.

use std::path::PathBuf;

use clap::Args;

/// Which node to talk to, on whose authority, and how to print what it says.
///
/// To be flattened in last, since the heading holds for what follows. Part of each command and not of the program, since `serve` has an `--admin` of its own: the address to serve it on.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Node options")]
pub(crate) struct NodeArgs {
    /// The node's admin API
    #[arg(
        long,
        global = true,
        env = "BEAMLINE_ADMIN",
        hide_env_values = true,
        value_name = "URL",
        default_value = "http://127.0.0.1:9090"
    )]
    pub(crate) admin: String,

    /// The token that says who is asking: the operator's or a tenant's
    ///
    /// Other users of the machine can see the arguments of a command: prefer --token-file or the environment.
    #[arg(long, global = true, env = "BEAMLINE_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub(crate) token: Option<String>,

    /// A file that holds the token; goes before --token
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,

    /// The data folder of a node on this machine
    ///
    /// Where no token is given, the operator's token in its file `operator-token` is used, and sent to a node on this
    /// machine only.
    #[arg(
        long,
        global = true,
        env = "BEAMLINE_DATA_DIR",
        hide_env_values = true,
        value_name = "DIR",
        default_value = "beamline-data"
    )]
    pub(crate) data_dir: PathBuf,

    /// Print JSON: the node's answer on standard output, a refusal on standard error
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

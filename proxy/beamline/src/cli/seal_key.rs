//! `beamline seal-key`: keys for a node's seal key file.

use std::time::{SystemTime, UNIX_EPOCH};

use beamline_seal::{KeyId, KeyLine};
use clap::{Args, Subcommand};

use super::report::time;

/// Make keys by which a node seals secrets and credentials
#[derive(Args, Debug)]
pub(crate) struct SealKeyArgs {
    #[command(subcommand)]
    command: SealKeyCommand,
}

#[derive(Debug, Subcommand)]
enum SealKeyCommand {
    /// Print a new key as a line of a seal key file
    ///
    /// The first key of the file seals, all of them open: to replace a key put a new one before it and restart the node,
    /// which seals its secrets anew. The old key is needed until the queued requests whose credentials it sealed are gone.
    #[command(
        after_help = "Example:\n  (umask 077; beamline seal-key generate > /etc/beamline/seal-keys)\n  beamline serve --seal-key-file /etc/beamline/seal-keys"
    )]
    Generate(GenerateArgs),
}

#[derive(Args, Debug)]
struct GenerateArgs {
    /// The key's id, by which what is sealed names it: 1 to 32 letters, digits, "-", "_" and "." [default: the date]
    #[arg(long)]
    id: Option<KeyId>,
}

/// What is printed.
pub(crate) fn line(args: &SealKeyArgs) -> KeyLine {
    let SealKeyCommand::Generate(GenerateArgs { id }) = &args.command;
    let id = id.clone().unwrap_or_else(|| dated(SystemTime::now()));
    KeyLine::generate(&id)
}

/// An id such as `2026-03-01`.
fn dated(now: SystemTime) -> KeyId {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = time(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    let date = now.split('T').next().unwrap_or_default();
    date.parse().expect("a date has digits and hyphens alone")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use beamline_seal::SealKeys;
    use clap::Parser as _;

    use super::*;

    #[test]
    fn a_printed_line_is_a_key_file() {
        assert_eq!(dated(UNIX_EPOCH + Duration::from_secs(86_400)).as_str(), "1970-01-02");
        let parsed =
            crate::Cli::try_parse_from(["beamline", "seal-key", "generate", "--id", "march"]).unwrap();
        let crate::Command::SealKey(args) = parsed.command else { panic!("it is seal-key") };
        let keys = SealKeys::parse(line(&args).reveal()).unwrap();
        assert_eq!(keys.current().as_str(), "march");
    }
}

//! `docs/reference/cli.md` is what the commands themselves print for `--help`.

use std::{fmt::Write as _, path::Path};

use clap::{Args, CommandFactory};

use super::NodeArgs;

/// What stands before the commands' own texts.
const PREAMBLE: &str = "\
# The command line

`beamline` is one program: the node itself (`serve`), and the commands that talk to a node's [admin API](admin-api.md). This page is
the text of each command's `--help`; a test holds it against the program.

The commands that talk to a node end with one of these exit codes:

| code | meaning |
|---|---|
| 0 | done |
| 1 | the node refused, and said why |
| 2 | wrong usage, or something on this side: a file, a manifest, a missing token |
| 3 | no node could be reached, or it went away before it had answered |

With `--json`, standard output holds the node's answer as one JSON document, and standard error a refusal as the problem
document that the node sent, or `{\"detail\": …}` for what went wrong on this side.
";

/// What stands before the options that all commands to a node share.
const SHARED: &str = "
## Node options

Every command that talks to a node has these too. The token is that of `--token-file`, else of `--token` or `BEAMLINE_TOKEN`,
else the operator's token of the data folder. A tenant's token reaches that tenant alone.
";

/// The heading of the options that all commands to a node share.
const SHARED_HEADING: &str = "Node options";

/// The page of a command and all below it.
fn page(mut root: clap::Command) -> String {
    root.build();
    let mut page = PREAMBLE.to_owned();
    section(&mut page, &root);
    page.push_str(SHARED);
    let shared = NodeArgs::augment_args(clap::Command::new("beamline").disable_help_flag(true));
    block(&mut page, shared.help_template("{options}"));
    page
}

fn section(page: &mut String, command: &clap::Command) {
    let _ = write!(page, "\n## `{}`\n", command.get_bin_name().unwrap_or(command.get_name()));
    let for_the_page = |arg: clap::Arg| {
        // Once on the page is enough; and what the environment holds now is nobody's reference.
        let shared = arg.get_help_heading() == Some(SHARED_HEADING);
        arg.hide(shared).hide_env_values(true)
    };
    block(page, command.clone().mut_args(for_the_page));
    for below in command.get_subcommands().filter(|c| c.get_name() != "help" && !c.is_hide_set()) {
        section(page, below);
    }
}

fn block(page: &mut String, command: clap::Command) {
    let help = command.term_width(100).render_long_help().to_string();
    let lines: Vec<_> = help.lines().map(str::trim_end).collect();
    let _ = write!(page, "\n```text\n{}\n```\n", lines.join("\n").trim_matches('\n'));
}

#[test]
fn the_reference_page_is_what_the_commands_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/cli.md");
    let expected = page(crate::Cli::command());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "docs/reference/cli.md is not what the commands say: run this test with UPDATE_DOCS=1 and look at what changed"
    );
}

#[test]
fn the_commands_fit_together() {
    crate::Cli::command().debug_assert();
}

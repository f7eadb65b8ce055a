//! After the story: what to try next while everything stays up, and the orderly end.

use std::{
    io::stdin,
    sync::mpsc::{self, Receiver},
    time::{Duration, Instant},
};

use anyhow::Result;
use rustix::{process::getpgrp, termios::tcgetpgrp};

use super::{
    Told,
    printer::Style,
    stage::{ACME, GLOBEX, Stage, Tenant},
};

/// How often it is looked whether Ctrl-C came, the node ended, or memory should be freed.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How many requests and spans are kept while a person tries things, load generators among them.
const KEPT: usize = 20_000;
/// How long a drain may take: its own deadline, and then some.
const DRAINED_WITHIN: Duration = Duration::from_secs(40);

/// Stays until Ctrl-C, then ends the node. A node that ends by itself, or is killed, is started again.
pub(super) fn stay(stage: &mut Stage) -> Told {
    invite(stage)?;
    let enters = enters();
    while stage.interrupt.count() == 0 {
        if !stage.node.runs() {
            let how = stage.node.last_exit().map_or_else(String::new, |status| format!(" ({status})"));
            stage.node.launch()?;
            let pid = stage.node.pid()?;
            stage
                .print
                .scene(&format!("the node ended{how} and runs again on the same folder, as process {pid}"));
        }
        if enters.try_recv().is_ok() {
            toggle(stage)?;
        }
        for origin in &stage.origins {
            if origin.count() > KEPT as u64 {
                origin.forget();
            }
        }
        if stage.traces.count() > KEPT {
            stage.traces.forget();
        }
        std::thread::sleep(LOOK_EVERY);
    }
    stop(stage)
}

/// Whether somebody sits at the terminal. In the background, reading from it would stop this process.
fn is_attended() -> bool {
    tcgetpgrp(stdin()).is_ok_and(|foreground| foreground == getpgrp())
}

/// Each Enter at the terminal; none where nobody sits there.
fn enters() -> Receiver<()> {
    let (enter, enters) = mpsc::channel();
    if is_attended() {
        // Lives as long as the process: nothing ends a read of a terminal.
        std::thread::spawn(move || {
            stdin().lines().map_while(Result::ok).try_for_each(|_| enter.send(())).ok();
        });
    }
    enters
}

/// Stops the first origin where it runs, else starts it.
fn toggle(stage: &mut Stage) -> Told {
    let port = stage.settings.origin_1;
    if stage.origins[0].runs() {
        stage.origins[0].stop();
        stage
            .print
            .scene(&format!("origin {port} is stopped: POST an order, GET its receipt. Enter starts it"));
    } else {
        stage.origins[0].start_again()?;
        stage.print.scene(&format!("origin {port} is back: the receipt says `delivered` within seconds"));
    }
    Ok(())
}

/// Ends the node as an operator would. A second Ctrl-C kills it.
pub(super) fn stop(stage: &mut Stage) -> Told {
    let before = stage.interrupt.count();
    stage.print.title("The end");
    stage.print.command(&format!("kill -TERM {}", stage.node.pid()?));
    stage.node.sigterm()?;
    let code = drained(stage, before)?;
    stage.claim(
        "the node drained and ended in an orderly way",
        code == "exit status: 0",
        "exit status: 0",
        code,
    )
}

fn drained(stage: &mut Stage, interrupts: usize) -> Result<String> {
    let mut waiting = stage.print.waiting("draining");
    let until = Instant::now() + DRAINED_WITHIN;
    while stage.node.runs() && Instant::now() < until {
        if stage.interrupt.count() > interrupts {
            stage.node.kill_nine()?;
        }
        waiting.tick();
        std::thread::sleep(LOOK_EVERY);
    }
    Ok(match stage.node.last_exit() {
        Some(status) if !stage.node.runs() => status.to_string(),
        _ => format!("it still runs after {DRAINED_WITHIN:?}"),
    })
}

fn invite(stage: &Stage) -> Told {
    let proxy = format!("http://{}", stage.node.address());
    let curl = |tenant: &Tenant, rest: &str, path: &str| {
        format!("curl -i -H 'Host: {}' {rest}'{proxy}{path}'", tenant.host)
    };
    let manifest = stage.example(&ACME)?.to_apply(stage.node.folder(), "acme.toml")?;
    let settings = format!(
        "export BEAMLINE_DATA_DIR={} BEAMLINE_ADMIN={}",
        stage.node.data_dir().display(),
        stage.settings.admin_url()
    );
    stage.print.title("Everything stays up until Ctrl-C. To try next, in another terminal in this folder:");
    let scenes: [(&str, &[String]); 6] = [
        (
            "the command line of this node",
            &[format!("alias beamline={}", stage.binary().display()), settings],
        ),
        (
            "requests",
            &[
                curl(&ACME, "", "/api/orders?page=2"),
                curl(&ACME, "-H 'X-User: alice' ", "/"),
                curl(&ACME, "-H 'X-Account: 7' -d '{\"item\":1}' ", "/orders"),
                curl(&GLOBEX, "", "/"),
            ],
        ),
        ("what is where", &["beamline status".into(), format!("beamline show {}", ACME.name)]),
        (
            "change the canary's percent, apply, take it back",
            &[
                format!("beamline apply {} --tenant {}", manifest.display(), ACME.name),
                format!("beamline show {} --revisions", ACME.name),
                format!("beamline rollback --tenant {}", ACME.name),
            ],
        ),
        ("every request as it ends", &[format!("tail -f {}", stage.node.log_file().display())]),
        ("the node comes back by itself", &[format!("kill -9 {}", stage.node.pid()?)]),
    ];
    for (what, lines) in scenes {
        stage.print.line(&format!("\n  # {what}"));
        lines
            .iter()
            .for_each(|line| stage.print.line(&format!("  {}", stage.print.paint(Style::Command, line))));
    }
    if is_attended() {
        let port = stage.settings.origin_1;
        stage.print.line(&format!("\n  # an outage: Enter, here, stops origin {port} or starts it again"));
    }
    Ok(())
}

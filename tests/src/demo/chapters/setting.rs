//! The node starts, gets its tenants, and takes their filters.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::Chapter;
use crate::demo::{
    Told,
    stage::{ACME, GLOBEX, Stage, Tenant, shown},
};

pub(super) const CHAPTER: Chapter = Chapter {
    title: "A node, two tenants, their filters",
    shows: "One binary and an empty folder are a node. A tenant gets a grant: the hosts it may serve and the addresses\n\
            it may reach. A filter is a plain Wasm module: checked, compiled in a child process, named by its content.",
    tell,
};

const FILTERS: [&str; 3] = ["router", "canary", "maintenance"];

fn tell(stage: &mut Stage) -> Told {
    start(stage)?;
    create(stage, &ACME)?;
    create(stage, &GLOBEX)?;
    let compiled = FILTERS
        .iter()
        .map(|filter| push(stage, filter))
        .collect::<Result<Vec<_>>>()?
        .iter()
        .all(|said| *said);
    stage.claim(
        "the stock filters are checked and compiled",
        compiled,
        "a size and a compile time for each",
        "the lines above",
    )?;
    for tenant in [&ACME, &GLOBEX] {
        stage.apply(tenant, &stage.example(tenant)?, &format!("{}.toml", tenant.name))?;
    }
    let list = stage.beamline(&["show"])?;
    stage.print.detail(&list);
    let serving = |tenant: &Tenant| {
        list.lines().any(|line| {
            let cells: Vec<_> = line.split_whitespace().collect();
            cells == [tenant.name, "1", tenant.host]
        })
    };
    let both = serving(&ACME) && serving(&GLOBEX);
    stage.claim("both tenants serve by their first revision", both, "acme and globex at revision 1", &list)
}

fn start(stage: &mut Stage) -> Told {
    let arguments = stage.node.arguments();
    let words: Vec<_> = arguments.iter().map(|word| word.to_string_lossy()).collect();
    stage.print.command(&format!("beamline {}", words.join(" ")));
    let began = Instant::now();
    stage.node.launch()?;
    stage.print.detail(&format!("ready after {} ms", began.elapsed().as_millis()));
    let token = stage.node.data_dir().join("operator-token");
    stage.print.detail(&format!("operator's token: {}", token.display()));
    let settings = format!(
        "export BEAMLINE_DATA_DIR={} BEAMLINE_ADMIN={}",
        stage.node.data_dir().display(),
        stage.settings.admin_url()
    );
    stage.print.command(&settings);
    stage.wait("the node to be healthy", Duration::from_secs(10), || {
        let status = stage.quietly(&["status"])?;
        let healthy = status.lines().next().is_some_and(|line| line.contains("healthy"));
        Ok(if healthy { Ok(()) } else { Err(status) })
    })
}

fn create(stage: &Stage, tenant: &Tenant) -> Result<()> {
    let [first, second] = stage.settings.origins();
    let ranges = format!("127.0.0.1:{first},127.0.0.1:{second}");
    let token = stage.node.folder().join(format!("{}.token", tenant.name));
    let said = stage.beamline(&[
        "tenant",
        "create",
        tenant.name,
        "--host",
        tenant.host,
        "--upstream-range",
        &ranges,
        "--save-token",
        shown(&token)?,
    ])?;
    stage.print.detail(said.lines().next().unwrap_or_default());
    Ok(())
}

/// Whether the node told the module's size and how long it compiled.
fn push(stage: &Stage, filter: &str) -> Result<bool> {
    let module = stage.settings.guests.join(format!("{filter}.wasm"));
    let said = stage.beamline(&["push", shown(&module)?, "--tenant", ACME.name])?;
    let row = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let effort = row("size").context("`beamline push` tells the size")?;
    let digest = row("digest").context("`beamline push` tells the digest")?;
    let short: String = digest.chars().take("sha256:".len() + 12).collect();
    stage.print.detail(&format!("{effort}, {short}…"));
    Ok(effort.contains("KiB") && effort.contains("compiled in"))
}

//! The manifests that are applied: those of `examples/`, as they are or with a change that the story is about.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use toml::{Table, Value};

use super::settings::Settings;

/// A manifest of an example tenant.
pub(super) struct Manifest {
    /// Where it was read.
    file: PathBuf,
    document: Table,
    /// Whether the file in `examples/` is what is to be applied.
    is_as_written: bool,
}

impl Manifest {
    /// Reads `examples/{tenant}/manifest.toml`; ports and module paths are made to fit the settings.
    pub(super) fn example(settings: &Settings, tenant: &str) -> Result<Self> {
        let file = settings.examples.join(tenant).join("manifest.toml");
        let text = fs::read_to_string(&file).with_context(|| format!("no manifest at {}", file.display()))?;
        let document = text.parse().with_context(|| format!("{} is not TOML", file.display()))?;
        let mut manifest = Self { file, document, is_as_written: true };
        if !settings.are_those_of_the_examples() {
            manifest.fit(settings)?;
        }
        Ok(manifest)
    }

    fn fit(&mut self, settings: &Settings) -> Result<()> {
        self.is_as_written = false;
        let upstreams = self.document.get_mut("upstreams").and_then(Value::as_table_mut);
        let endpoints = upstreams.into_iter().flat_map(|upstreams| {
            upstreams.iter_mut().filter_map(|(_, upstream)| upstream.get_mut("endpoints")?.as_array_mut())
        });
        for endpoint in endpoints.flatten() {
            let moved = Settings::ORIGINS.iter().zip(settings.origins());
            for (written, port) in moved {
                if endpoint.as_str() == Some(&format!("127.0.0.1:{written}")) {
                    *endpoint = format!("127.0.0.1:{port}").into();
                    break;
                }
            }
        }
        self.find_modules(&settings.guests)
    }

    /// Names every module by its whole path, so that the manifest can stand in another folder.
    fn find_modules(&mut self, guests: &Path) -> Result<()> {
        for filter in self.filters()? {
            let name = filter.get("module").and_then(Value::as_str).map(Path::new).and_then(Path::file_name);
            if let Some(name) = name {
                let whole = whole(&guests.join(name))?;
                filter["module"] = whole.into();
            }
        }
        Ok(())
    }

    fn filters(&mut self) -> Result<&mut Vec<Value>> {
        self.document
            .entry("filters")
            .or_insert_with(|| Value::Array(Vec::new()))
            .as_array_mut()
            .context("filters are an array of tables")
    }

    /// The same with a filter put before the others.
    pub(super) fn with_first(
        mut self,
        settings: &Settings,
        name: &str,
        module: &str,
        config: Table,
    ) -> Result<Self> {
        self.is_as_written = false;
        self.find_modules(&settings.guests)?;
        let mut filter = Table::new();
        filter.insert("name".into(), name.into());
        filter.insert("module".into(), whole(&settings.guests.join(module))?.into());
        filter.insert("config".into(), config.into());
        self.filters()?.insert(0, filter.into());
        Ok(self)
    }

    /// The same with another module and configuration behind a filter's name.
    pub(super) fn with_replaced(
        mut self,
        settings: &Settings,
        name: &str,
        module: &str,
        config: Table,
    ) -> Result<Self> {
        self.is_as_written = false;
        self.find_modules(&settings.guests)?;
        let module = whole(&settings.guests.join(module))?;
        let named = self.filters()?.iter_mut().filter_map(Value::as_table_mut);
        let filter = { named }.find(|f| f.get("name").and_then(Value::as_str) == Some(name));
        let filter = filter.with_context(|| format!("the example has no filter {name}"))?;
        filter.insert("module".into(), module.into());
        filter.insert("config".into(), config.into());
        Ok(self)
    }

    /// The file to apply: the example itself, or a copy with the changes in `folder`.
    pub(super) fn to_apply(&self, folder: &Path, name: &str) -> Result<PathBuf> {
        if self.is_as_written {
            return Ok(self.file.clone());
        }
        let file = folder.join(name);
        fs::write(&file, toml::to_string_pretty(&self.document)?)?;
        Ok(file)
    }
}

fn whole(module: &Path) -> Result<String> {
    let path = fs::canonicalize(module)
        .with_context(|| format!("no module at {}: build it with `make guests`", module.display()))?;
    Ok(path.to_str().context("a path in UTF-8")?.to_owned())
}

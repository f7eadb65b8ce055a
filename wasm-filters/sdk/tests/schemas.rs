//! The stock filters' schemas say what their code takes.

use std::{fs, path::Path};

use boon::{Compiler, Schemas};
use serde_json::Value;

/// What a schema cannot say: it is the code's alone.
const BEYOND_SCHEMAS: [&str; 9] = [
    "a body does not grow beyond measure",
    "a burst is there again within a day",
    "a name stands once",
    "a name stands once in a pattern",
    "a pattern has at most 16 names",
    "a place is closed",
    "a target has names of its pattern",
    "names differ",
    "shares beyond 100 percent are a mistake",
];

/// The stock filters: every folder beside the SDK's that has cases.
fn filters(folder: &Path) -> Vec<String> {
    let entries =
        fs::read_dir(folder).expect("the workspace's folder").map(|entry| entry.expect("an entry").path());
    let entries = entries.filter(|path| path.join("cases.json").exists());
    let names =
        entries.map(|path| path.file_name().expect("a folder has a name").to_string_lossy().into_owned());
    let names: Vec<_> = names.collect();
    assert!(names.len() >= 14, "expected the stock filters, found {names:?}");
    names
}

/// A file of a filter, which is JSON.
fn read(folder: &Path, file: &str) -> Value {
    let text = fs::read_to_string(folder.join(file)).expect("each filter has the file");
    serde_json::from_str(&text).expect("the file is JSON")
}

/// Says what is wrong with a configuration by the schema in a filter's folder.
fn problem(folder: &Path, config: &Value) -> Option<String> {
    let mut schemas = Schemas::new();
    let mut compiler = Compiler::new();
    compiler
        .add_resource("file:///config.schema.json", read(folder, "config.schema.json"))
        .expect("a schema");
    let schema = compiler.compile("file:///config.schema.json", &mut schemas).expect("a valid schema");
    schemas.validate(config, schema).err().map(|error| error.to_string())
}

#[test]
fn schemas_accept_what_the_filters_accept_and_refuse_what_they_refuse() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for filter in filters(&folder) {
        for case in read(&folder.join(&filter), "cases.json").as_array().expect("cases are an array") {
            let name = case["name"].as_str().expect("a case has a name");
            let found = problem(&folder.join(&filter), &case["config"]);
            let refused = case["expect"].get("config-error").is_some() && !BEYOND_SCHEMAS.contains(&name);
            assert_eq!(found.is_some(), refused, "{filter}: {name}: {found:?}");
        }
    }
}

#[test]
fn each_readme_has_an_example_that_is_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for filter in filters(&folder) {
        let readme = fs::read_to_string(folder.join(&filter).join("README.md")).expect("each filter has one");
        let example =
            readme.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
        let manifest: Value = toml::from_str(example).unwrap_or_else(|error| panic!("{filter}: {error}"));
        let wanted = &manifest["filters"][0];
        assert_eq!(wanted["name"], filter.as_str());
        assert_eq!(wanted["module"], format!("./{filter}.wasm"));
        assert_eq!(problem(&folder.join(&filter), &wanted["config"]), None, "{filter}");
    }
}

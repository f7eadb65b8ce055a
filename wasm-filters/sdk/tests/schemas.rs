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
    let names = entries.filter(|path| path.join("cases.json").exists());
    names.map(|path| path.file_name().expect("a folder has a name").to_string_lossy().into_owned()).collect()
}

#[test]
fn schemas_accept_what_the_filters_accept_and_refuse_what_they_refuse() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let filters = filters(&folder);
    assert!(filters.len() >= 14, "expected the stock filters, found {filters:?}");
    for filter in filters {
        let read = |file: &str| -> Value {
            let text = fs::read_to_string(folder.join(&filter).join(file)).expect("each filter has the file");
            serde_json::from_str(&text).expect("the file is JSON")
        };
        let mut schemas = Schemas::new();
        let mut compiler = Compiler::new();
        compiler.add_resource("file:///config.schema.json", read("config.schema.json")).expect("a schema");
        let schema = compiler.compile("file:///config.schema.json", &mut schemas).expect("a valid schema");
        for case in read("cases.json").as_array().expect("cases are an array") {
            let name = case["name"].as_str().expect("a case has a name");
            let verdict = schemas.validate(&case["config"], schema);
            let refused = case["expect"].get("config-error").is_some() && !BEYOND_SCHEMAS.contains(&name);
            assert_eq!(verdict.is_err(), refused, "{filter}: {name}: {verdict:?}");
        }
    }
}

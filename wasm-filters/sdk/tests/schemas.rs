//! The stock filters' schemas say what their code takes.

use std::{fs, path::Path};

use boon::{Compiler, Schemas};
use serde_json::Value;

/// What a schema cannot say: it is the code's alone.
const BEYOND_SCHEMAS: [&str; 1] = ["shares beyond 100 percent are a mistake"];

#[test]
fn schemas_accept_what_the_filters_accept_and_refuse_what_they_refuse() {
    let filters = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for filter in ["router", "canary", "maintenance"] {
        let read = |file: &str| -> Value {
            let text = fs::read_to_string(filters.join(filter).join(file)).expect("each filter has the file");
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

//! The stock filters' schemas say what their code takes.

use std::{fs, path::Path};

use beamline_sdk::field;
use boon::{Compiler, Schemas};
use serde_json::Value;

/// What a schema cannot say: it is the code's alone.
const BEYOND_SCHEMAS: [&str; 10] = [
    "a body does not grow beyond measure",
    "a burst is there again within a day",
    "a method is written as it is sent",
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
fn each_readme_has_an_example_that_is_valid_and_run() {
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
        // What the filter makes of it, its own tests say, which run all of its cases.
        let cases = read(&folder.join(&filter), "cases.json");
        let is_run =
            |case: &Value| case["config"] == wanted["config"] && case["expect"].get("config-error").is_none();
        let cases = cases.as_array().expect("cases are an array");
        assert!(cases.iter().any(is_run), "{filter}: expected a case with the configuration of the README");
    }
}

/// The name of a field as some write it: each word with a capital.
fn capitalized(name: &str) -> String {
    let words = name.split('-').map(|word| [&word[..1].to_ascii_uppercase(), &word[1..]].concat());
    words.collect::<Vec<_>>().join("-")
}

#[test]
fn schemas_know_the_fields_that_are_not_a_filters_to_change() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let not_sent = field::NOT_SENT.map(str::to_owned).into_iter();
    let begun = field::NOT_SENT_BEGINNINGS.map(|beginning| [beginning, "x"].concat());
    let not_sent: Vec<_> = not_sent.chain(begun).collect();
    let mut looked_at = 0;
    for filter in filters(&folder) {
        let schema = read(&folder.join(&filter), "config.schema.json");
        for (kind, is_sent) in [("changeable_field", false), ("sent_field", true)] {
            let Some(definition) = schema["$defs"].get(kind) else {
                continue;
            };
            looked_at += 1;
            let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
            compiler.add_resource("file:///field.json", definition.clone()).expect("a schema");
            let schema = compiler.compile("file:///field.json", &mut schemas).expect("a valid schema");
            let takes = |name: &str| schemas.validate(&name.into(), schema).is_ok();
            for name in field::HOSTS {
                assert!(!takes(name) && !takes(&capitalized(name)), "{filter}: {kind}: {name}");
            }
            for name in &not_sent {
                assert_eq!(takes(name), !is_sent, "{filter}: {kind}: {name}");
                assert_eq!(takes(&capitalized(name)), !is_sent, "{filter}: {kind}: {name}");
                assert_eq!(takes(&name.replace('-', "_")), !is_sent, "{filter}: {kind}: {name}");
            }
            for name in
                ["x-user", "Authorization", "Idempotency-Key", "viable", "x-te", "proxy-plan", "x-beamline-a"]
            {
                assert!(takes(name), "{filter}: {kind}: {name}");
            }
            assert!(!takes("") && !takes("x user"), "{filter}: {kind}");
        }
    }
    assert_eq!(looked_at, 5, "ab-split, jwt, maintenance, security-headers, sign");
}

#[test]
fn the_reference_names_the_fields_that_belong_to_the_host() {
    let page = fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/filter-interface.md"),
    );
    let page = page.expect("the page is there");
    let section = page.split("### Fields that belong to the host\n").nth(1).expect("a section");
    let list = section.split(" They can be read").next().expect("a list");
    let mut named: Vec<_> = list.split('`').skip(1).step_by(2).collect();
    let mut hosts = field::HOSTS;
    hosts.sort_unstable();
    named.sort_unstable();
    assert_eq!(named, hosts);
}

#[test]
fn the_readme_of_the_sdk_names_each_of_its_modules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(root.join("README.md")).expect("the README is there");
    let library = fs::read_to_string(root.join("src/lib.rs")).expect("the library is there");
    let modules = library.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let modules: Vec<_> = modules.collect();
    assert!(modules.len() >= 18, "{modules:?}");
    for module in modules {
        assert!(readme.contains(&format!("`{module}`")), "expected the SDK's README to name `{module}`");
    }
}

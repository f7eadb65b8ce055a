//! What an `apply` would change, as lines for a person.

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// The most characters of one value that a line shows.
const VALUE_MAX: usize = 120;

/// The most lines; what goes beyond is counted in the last one.
const LINES_MAX: usize = 500;

/// The lines that lead from one manifest's JSON to another's, in the order of their keys:
/// `+ key: value`, `- key: value`, `~ key: old -> new`. Filters go by name, then by their order.
pub(crate) fn diff(before: &Value, after: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    walk("", before, after, &mut lines);
    if lines.len() > LINES_MAX {
        let more = lines.len() - (LINES_MAX - 1);
        lines.truncate(LINES_MAX - 1);
        lines.push(format!("… and {more} more"));
    }
    lines
}

fn walk(key: &str, before: &Value, after: &Value, lines: &mut Vec<String>) {
    match (before, after) {
        _ if before == after => {}
        (Value::Object(before), Value::Object(after)) => objects(key, before, after, lines),
        (Value::Null, Value::Object(after)) if key.is_empty() => objects(key, &Map::new(), after, lines),
        (Value::Array(before), Value::Array(after)) if key == "filters" => filters(before, after, lines),
        (Value::Array(before), Value::Array(after)) if all_texts(before) && all_texts(after) => {
            for gone in before.iter().filter(|v| !after.contains(v)) {
                lines.push(format!("- {key}: {}", shown(gone)));
            }
            for new in after.iter().filter(|v| !before.contains(v)) {
                lines.push(format!("+ {key}: {}", shown(new)));
            }
            if same_members(before, after) {
                lines.push(format!("~ {key}: order is now {}", shown(&Value::Array(after.clone()))));
            }
        }
        _ => lines.push(format!("~ {key}: {} -> {}", shown(before), shown(after))),
    }
}

fn objects(key: &str, before: &Map<String, Value>, after: &Map<String, Value>, lines: &mut Vec<String>) {
    let mut keys: Vec<&String> = before.keys().chain(after.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    for part in keys {
        let path = if key.is_empty() { part.clone() } else { format!("{key}.{part}") };
        match (before.get(part), after.get(part)) {
            (Some(before), Some(after)) => walk(&path, before, after, lines),
            (Some(gone), None) => lines.push(format!("- {path}: {}", shown(gone))),
            (None, Some(Value::Array(new))) if path == "filters" => filters(&[], new, lines),
            (None, Some(new)) => lines.push(format!("+ {path}: {}", shown(new))),
            (None, None) => {}
        }
    }
}

fn filters(before: &[Value], after: &[Value], lines: &mut Vec<String>) {
    let name = |filter: &Value| filter["name"].as_str().unwrap_or_default().to_owned();
    let find = |all: &'_ [Value], wanted: &str| all.iter().find(|f| name(f) == wanted).cloned();
    let path = |filter: &Value| format!("filters[{}]", name(filter));
    for filter in before.iter().filter(|f| find(after, &name(f)).is_none()) {
        lines.push(format!("- {}: {}", path(filter), shown(filter)));
    }
    for filter in after {
        match find(before, &name(filter)) {
            Some(old) => walk(&path(filter), &old, filter, lines),
            None => lines.push(format!("+ {}: {}", path(filter), shown(filter))),
        }
    }
    let order = |all: &[Value], other: &[Value]| {
        all.iter().map(name).filter(|n| find(other, n).is_some()).collect::<Vec<_>>()
    };
    if order(before, after) != order(after, before) {
        lines.push(format!(
            "~ filters: order is now {}",
            after.iter().map(name).collect::<Vec<_>>().join(", ")
        ));
    }
}

fn all_texts(values: &[Value]) -> bool {
    values.iter().all(Value::is_string)
}

fn same_members(before: &[Value], after: &[Value]) -> bool {
    before.len() == after.len() && before.iter().all(|v| after.contains(v))
}

/// A value in one line, cut where it is long.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(VALUE_MAX) {
        None => text,
        Some((end, _)) => {
            let mut cut = text[..end].to_owned();
            let _ = write!(cut, "… ({} bytes)", text.len());
            cut
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_names_the_key_and_both_values() {
        let before = json!({
            "hosts": ["a.test", "b.test"],
            "limits": { "cpu": "50ms", "log": "8KiB" },
            "upstreams": { "api": { "endpoints": ["10.0.0.1:80"] }, "old": {} },
            "filters": [
                { "name": "router", "module": "sha256:aa", "config": { "rules": [1] } },
                { "name": "canary", "module": "sha256:bb" },
                { "name": "gone", "module": "sha256:cc" },
            ],
        });
        let after = json!({
            "hosts": ["b.test", "c.test"],
            "limits": { "cpu": "20ms", "log": "8KiB" },
            "upstreams": { "api": { "endpoints": ["10.0.0.1:80", "10.0.0.2:80"] } },
            "default_upstream": "api",
            "filters": [
                { "name": "canary", "module": "sha256:bb" },
                { "name": "router", "module": "sha256:dd", "config": { "rules": [1] } },
                { "name": "new", "module": "sha256:ee" },
            ],
        });
        assert_eq!(
            diff(&before, &after),
            [
                r#"+ default_upstream: "api""#,
                r#"- filters[gone]: {"module":"sha256:cc","name":"gone"}"#,
                r#"~ filters[router].module: "sha256:aa" -> "sha256:dd""#,
                r#"+ filters[new]: {"module":"sha256:ee","name":"new"}"#,
                "~ filters: order is now canary, router, new",
                r#"- hosts: "a.test""#,
                r#"+ hosts: "c.test""#,
                r#"~ limits.cpu: "50ms" -> "20ms""#,
                r#"+ upstreams.api.endpoints: "10.0.0.2:80""#,
                "- upstreams.old: {}",
            ]
        );
    }

    #[test]
    fn nothing_changed_is_no_line_and_a_first_manifest_is_all_new() {
        let manifest = json!({ "hosts": ["a.test"], "version": 1, "filters": [{ "name": "f" }] });
        assert!(diff(&manifest, &manifest).is_empty());
        assert_eq!(
            diff(&Value::Null, &manifest),
            [r#"+ filters[f]: {"name":"f"}"#, r#"+ hosts: ["a.test"]"#, "+ version: 1"]
        );
    }

    #[test]
    fn order_counts_where_it_has_a_meaning() {
        let lines = diff(&json!({ "hosts": ["a", "b"] }), &json!({ "hosts": ["b", "a"] }));
        assert_eq!(lines, [r#"~ hosts: order is now ["b","a"]"#]);
    }

    #[test]
    fn long_values_and_long_diffs_are_cut() {
        let long = json!({ "config": "é".repeat(1000) });
        let lines = diff(&json!({ "config": 1 }), &long);
        assert!(lines[0].chars().count() < 200 && lines[0].ends_with("… (2002 bytes)"), "{}", lines[0]);
        let many = Value::Object((0..600).map(|i| (format!("k{i}"), json!(i))).collect());
        let lines = diff(&Value::Null, &many);
        assert_eq!((lines.len(), lines[499].as_str()), (500, "… and 101 more"));
    }
}
